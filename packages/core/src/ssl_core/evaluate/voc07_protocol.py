"""Named protocols of the classification of VOC 2007, each on a scale of its own."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ssl_core.evaluate.features import evaluation_view
from ssl_core.evaluate.svm import FOLDS, NEGATIVES, Labels
from ssl_core.views import CenterCrop

Difficult: TypeAlias = Literal["negative", "vissl_full", "ignore"]
Shots: TypeAlias = int | str  # or "full"


@dataclass(frozen=True)
class Voc07Protocol:
    """The settings of a classification of VOC 2007.

    Attributes:
        source: paper or code that the numbers are from.
        kind: kind of classifier. ``pcl``: SVMs of pooled features; the images drawn for each class serve all of them.
            ``vissl``: SVMs of the last maps pooled to 2 x 2; each class has a draw of its own, of 19 negatives for each
            positive, and with all images a cost of its own, by cross-validation. ``linear``: a linear classifier, by
            gradient descent.
        shots: numbers of positives of each class that SVMs learn from; ``full`` is all images.
        cost: C of the SVMs; of several, one is chosen.
        trials: number of draws, or of seeds of the linear classifier.
        difficult: treatment of an image, by a class of which it shows difficult objects only: ``negative``; ``ignore``,
            left out; or ``vissl_full``, left out of the test alone. None is ``negative``, and allows nothing else.
        difficult_shots: the same treatment where images are drawn.
        epochs: number of passes over the training images.
        batch_size: number of images of one optimizer step.
        lr: learning rate, the same all along.
    """

    source: str
    kind: Literal["pcl", "vissl", "linear"]
    trials: int
    shots: tuple[Shots, ...] | None = None
    cost: tuple[float, ...] | None = None
    difficult: Difficult | None = None
    difficult_shots: Difficult | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None

    def __post_init__(self) -> None:
        for shots in self.shots or ():
            if shots != "full" and (isinstance(shots, bool | str) or shots < 1):
                raise ValueError(
                    f"shots {shots!r} is neither a number of images from 1 on nor full, as in [16,32,64,full]"
                )
        for name, values in (("shots", self.shots), ("cost", self.cost)):
            if values is not None and not 0 < len(set(values)) == len(values):
                raise ValueError(f"{name} needs one value or several that differ, got {list(values)}")
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials}")
        if not all(cost > 0 for cost in self.cost or ()):  # NaN compares as false
            raise ValueError(f"cost must be positive, got {self.cost}")

    def difficult_of(self, shots: Shots) -> Difficult:
        """The treatment of difficult objects where SVMs learn from that many images."""
        return (self.difficult if shots == "full" else self.difficult_shots) or "negative"


VOC07_PROTOCOLS: dict[str, Voc07Protocol] = {
    "svm": Voc07Protocol(
        "PCL (Li et al., 2021), released code, which SCE's table 10 follows",
        "pcl",
        trials=5,
        shots=(16, 32, 64, "full"),
        cost=(0.5,),
        difficult="negative",
        difficult_shots="negative",
    ),
    "svm_vissl": Voc07Protocol(
        "VISSL (Goyal et al., 2021), released configurations",
        "vissl",
        trials=5,
        shots=(1, 2, 4, 8, 16, 32, 64, 96, "full"),
        cost=(0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
        difficult="vissl_full",
        difficult_shots="ignore",
    ),
    "clsa": Voc07Protocol(
        "CLSA (Wang and Qi, 2022), the paper's values",
        "linear",
        trials=1,
        epochs=100,
        batch_size=256,
        lr=0.05,
    ),
}

_DIFFICULT_TEXT = {
    "negative": "negative",
    "vissl_full": "negative in training, left out of the test",
    "ignore": "left out",
}


def voc07_text(name: str, protocol: Voc07Protocol, size: int) -> str:
    """A protocol in words, for an encoder whose input has that side in pixels.

    Example:
        >>> print(voc07_text("svm", VOC07_PROTOCOLS["svm"], 224))
        protocol svm: PCL (Li et al., 2021), released code, which SCE's table 10 follows
          features: short side 256 (bilinear), center crop 224, extracted once, divided by their length
          SVMs of 16, 32, 64 images of each class in 5 draws, of all images once; C 0.5
          difficult objects alone: negative
          tested: mean over 20 classes of the average precision (area)
        >>> print(voc07_text("svm_vissl", VOC07_PROTOCOLS["svm_vissl"], 224))
        protocol svm_vissl: VISSL (Goyal et al., 2021), released configurations
          features: squashed to 224 x 224 (bilinear), last maps pooled to 2 x 2, extracted once, divided by their length
          SVMs of 1, 2, 4, 8, 16, 32, 64, 96 images of each class in 5 draws, of all images once; C 0.01 to 1000 (11)
          each class has a draw of its own, with 19 negatives for each image, and of all images a C by 3-fold validation
          difficult objects alone: negative in training, left out of the test; where images are drawn: left out
          tested: mean over 20 classes of the average precision (area)
        >>> print(voc07_text("clsa", VOC07_PROTOCOLS["clsa"], 224))
        protocol clsa: CLSA (Wang and Qi, 2022), the paper's values
          linear classifier on the frozen encoder: 100 epochs, batch 256, sgd, lr 0.05, binary cross-entropies, summed
          train: random resized crop 224 of area 0.08 to 1 (bilinear), flip
          difficult objects alone: negative
          tested: short side 256 (bilinear), center crop 224
    """
    view = evaluation_view(size).ops[0]
    assert isinstance(view, CenterCrop)
    center = f"short side {view.short_side} (bilinear), center crop {size}"
    difficult = f"  difficult objects alone: {_DIFFICULT_TEXT[protocol.difficult or 'negative']}"
    lines = [f"protocol {name}: {protocol.source}"]
    if protocol.kind == "linear":
        lines += [
            f"  linear classifier on the frozen encoder: {protocol.epochs} epochs, batch {protocol.batch_size}, sgd, "
            f"lr {protocol.lr:g}, binary cross-entropies, summed",
            f"  train: random resized crop {size} of area 0.08 to 1 (bilinear), flip",
            difficult,
            f"  tested: {center}",
        ]
        return "\n".join(lines)
    shots, costs = protocol.shots or (), [f"{cost:g}" for cost in protocol.cost or ()]
    drawn = ", ".join(str(each) for each in shots if each != "full")
    numbers = [f"{drawn} images of each class in {protocol.trials} draws"] * bool(drawn)
    numbers += ["all images once"] * ("full" in shots)
    cost = f"{costs[0]} to {costs[-1]} ({len(costs)})" if len(costs) > 1 else costs[0]
    squashed = f"squashed to {size} x {size} (bilinear), last maps pooled to 2 x 2"
    lines += [
        f"  features: {squashed if protocol.kind == 'vissl' else center}, extracted once, divided by their length",
        f"  SVMs of {', of '.join(numbers)}; C {cost}",
    ]
    if protocol.kind == "vissl":
        lines.append(
            f"  each class has a draw of its own, with {NEGATIVES} negatives for each image, and of all images a C by "
            f"{FOLDS}-fold validation"
        )
    if protocol.difficult_shots != protocol.difficult:
        difficult += f"; where images are drawn: {_DIFFICULT_TEXT[protocol.difficult_shots or 'negative']}"
    return "\n".join([*lines, difficult, "  tested: mean over 20 classes of the average precision (area)"])


def with_difficult(values: Labels, difficult: Difficult, *, training: bool) -> Labels:
    """Labels as a classifier takes them: 1, -1, and 0 for what is left out.

    Args:
        values: (n c) values as in the lists of VOC 2007, with 0 for images that show difficult objects only.
        difficult: treatment of these images.
        training: whether images are for training, and not for the test.

    Example:
        >>> values = np.array([[1, 0, -1]])
        >>> with_difficult(values, "vissl_full", training=True), with_difficult(values, "vissl_full", training=False)
        (array([[ 1, -1, -1]]), array([[ 1,  0, -1]]))
    """
    is_negative = difficult == "negative" or (difficult == "vissl_full" and training)
    return np.where(values == 0, -1, values) if is_negative else values
