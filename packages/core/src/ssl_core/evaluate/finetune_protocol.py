"""Named protocols of fine-tuning, and of supervised training by the same loop.

In all of them the encoder and a new linear layer on its pooled features learn by SGD with momentum 0.9, BatchNorm takes
its statistics over all processes, and training images are cropped at random and flipped. Values that a paper and its
code do not state are ours; ``source`` names them.
"""

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, NamedTuple

from ssl_core.evaluate.classifier import Head
from ssl_core.evaluate.features import evaluation_view
from ssl_core.evaluate.protocol import cropped_view, view_text
from ssl_core.schedules import cosine_schedule
from ssl_core.step import Step
from ssl_core.train.learning_rate import step_decay
from ssl_core.views import ViewSpec


@dataclass(frozen=True)
class FinetuneProtocol:
    """The settings of a fine-tuning and its test. Several epochs, rates or decays are a grid.

    Attributes:
        source: paper or code that the numbers are from, and which of them are ours.
        batch_size: number of images of one optimizer step.
        lr: learning rate of the encoder at the start, and of the linear layer where ``lr_head`` is None.
        epochs: number of passes over the training set; None where ``steps`` gives the length.
        epochs_of_many: number of epochs from a tenth of the labels on; None is ``epochs``.
        steps: number of optimizer steps; None where ``epochs`` gives the length.
        lr_head: learning rate of the linear layer at the start.
        scale_lr: whether rates are multiplied by batch_size / 256.
        milestones: fractions of the epochs at which rates are multiplied by ``factor``; empty is a cosine to 0 at every
            step.
        factor: factor of the rates at a milestone.
        weight_decay: factor of each parameter that is added to its gradient.
        decay_over_lr: whether ``weight_decay`` is divided by ``lr``.
        nesterov: whether momentum is Nesterov's.
        head: start of the linear layer: zeros; normal, from N(0, 0.01^2); torch, as ``nn.Linear`` begins.
        short_batch_norm: whether running statistics of BatchNorm move by min(10 / steps of an epoch, 0.1), not by 0.1.
        crop: crop of training images, see :class:`ssl_core.evaluate.Protocol`.
        resize: short side of a test image before its center crop, as a multiple of the crop's side.
        interpolation: interpolation of training and test images.
        labels: fraction of the labels that the protocol is for; None is any.
        validation: images by which a point of a grid is chosen where a set has no validation images of its own: a
            fraction of each class of the training images, or from 1 on a number of images whose labels are not used.
        selection: epoch of the reported number: the last, or the best on test images.
    """

    source: str
    batch_size: int
    lr: tuple[float, ...]
    epochs: tuple[int, ...] | None = None
    epochs_of_many: int | None = None
    steps: int | None = None
    lr_head: float | None = None
    scale_lr: bool = False
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    weight_decay: tuple[float, ...] = (0.0,)
    decay_over_lr: bool = False
    nesterov: bool = False
    head: Head = "normal"
    short_batch_norm: bool = False
    crop: Literal["random_resized", "padded"] = "random_resized"
    resize: float = 256 / 224
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    labels: float | None = None
    validation: int | float = 0.2
    selection: Literal["last", "best on test"] = "last"

    def __post_init__(self) -> None:
        for name in ("batch_size", "lr", "epochs", "steps", "lr_head"):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            if value is not None and not (values and all(0 < each < math.inf for each in values)):
                raise ValueError(f"{name} of a fine-tuning must be positive, not {value}")
        if not self.weight_decay or not all(0 <= decay < math.inf for decay in self.weight_decay):
            raise ValueError(f"weight_decay of a fine-tuning must be at least 0, not {self.weight_decay}")

    @property
    def grid(self) -> list["Setting"]:
        """The settings that are tried, of which the first of equals is taken."""
        return [Setting(*values) for values in product(self.epochs or (None,), self.lr, self.weight_decay)]


class Setting(NamedTuple):
    """One point of a grid.

    Attributes:
        epochs: number of passes over the training set; None where the protocol counts steps.
        lr: learning rate of the encoder, before it is scaled.
        weight_decay: weight decay, before it is divided.
    """

    epochs: int | None
    lr: float
    weight_decay: float


def _logspace(first: float, last: float, count: int) -> tuple[float, ...]:
    """Numbers from 10^first to 10^last in equal ratios."""
    return tuple(10 ** (first + (last - first) * point / (count - 1)) for point in range(count))


_SIMCLR_SEMI = FinetuneProtocol(
    "SimCLR (Chen et al., 2020), appendix B.5 and released code",
    batch_size=4096,
    lr=(0.05,),
    epochs=(60,),
    scale_lr=True,
    nesterov=True,
    head="zeros",
    interpolation="bicubic",
    labels=0.01,
)
_SWAV_SEMI = FinetuneProtocol(
    "SwAV (Caron et al., 2020), released code",
    batch_size=256,
    lr=(0.02,),
    lr_head=5.0,
    epochs=(20,),
    milestones=(0.6, 0.8),
    factor=0.2,
    head="torch",
    labels=0.01,
    selection="best on test",
)
_LEOCLR_SEMI = replace(
    _SIMCLR_SEMI,
    source="LeOCLR (Alkhalefi et al., 2024), section 4, which names SimCLR's; batch and rate are ours",
    batch_size=256,
)
_SIMCLR_TRANSFER = FinetuneProtocol(
    "SimCLR (Chen et al., 2020), appendix B.8, also BYOL and LeOCLR; schedule and head are ours",
    batch_size=256,
    lr=_logspace(-4.0, -1.0, 7),
    steps=20_000,
    weight_decay=(0.0, *_logspace(-6.0, -3.0, 7)),
    decay_over_lr=True,
    nesterov=True,
    short_batch_norm=True,
    interpolation="bicubic",
)
_SUPERVISED_IMAGENET = FinetuneProtocol(
    "no paper's: the usual 90 epochs of a ResNet on ImageNet",
    batch_size=256,
    lr=(0.1,),
    epochs=(90,),
    scale_lr=True,
    milestones=(30 / 90, 60 / 90, 80 / 90),
    weight_decay=(1e-4,),
    head="torch",
)
_SUPERVISED_SEMI = replace(
    _SUPERVISED_IMAGENET,
    source="no paper's: supervised_imagenet, longer; S4L's (Zhai et al., 2019) search is not repeated, so expect less",
    epochs=(900,),
    labels=0.01,
)

FINETUNE_PROTOCOLS: dict[str, FinetuneProtocol] = {
    "simclr_semi_1": _SIMCLR_SEMI,
    "simclr_semi_10": replace(_SIMCLR_SEMI, epochs=(30,), labels=0.1),
    "byol_semi": FinetuneProtocol(
        "BYOL (Grill et al., 2020), appendix C.1; schedule and head are ours",
        batch_size=1024,
        lr=(0.005, 0.01, 0.02, 0.05, 0.1),
        epochs=(30, 50),
        nesterov=True,
        interpolation="bicubic",
        validation=10_009,
    ),
    "swav_semi_1": _SWAV_SEMI,
    "swav_semi_10": replace(_SWAV_SEMI, lr=(0.01,), lr_head=0.2, labels=0.1),
    "clim_semi": FinetuneProtocol(
        "CLIM (Li et al., 2021), section 4.2; batch, decay and head are ours",
        batch_size=256,
        lr=(1e-4,),
        lr_head=10.0,
        epochs=(60,),
        milestones=(20 / 60, 40 / 60),
    ),
    "leoclr_semi_1": _LEOCLR_SEMI,
    "leoclr_semi_10": replace(_LEOCLR_SEMI, epochs=(30,), labels=0.1),
    "leoclr_fraction": replace(
        _LEOCLR_SEMI,
        source="LeOCLR (Alkhalefi et al., 2024), figure 5; batch, rate and length are ours",
        epochs_of_many=30,
        labels=None,
    ),
    "simclr_transfer": _SIMCLR_TRANSFER,
    "ssl_transfer_finetune": FinetuneProtocol(
        "Ericsson et al., 2021, released code",
        batch_size=64,
        lr=_logspace(-1.0, -4.0, 4),
        steps=5_000,
        weight_decay=(0.0, *_logspace(-6.0, -3.0, 4)),
        decay_over_lr=True,
        nesterov=True,
        head="torch",
        resize=1.0,
        interpolation="bicubic",
    ),
    "kornblith_random": replace(
        _SIMCLR_TRANSFER,
        source="SimCLR, appendix B.8, from a random encoder, after Kornblith et al., 2019; the rest as simclr_transfer",
        lr=_logspace(-3.0, 0.0, 7),
        steps=40_000,
        weight_decay=_logspace(-5.0, -1.5, 8),
    ),
    "supervised_imagenet": _SUPERVISED_IMAGENET,
    "supervised_cifar": FinetuneProtocol(
        "no paper's: the usual 200 epochs of a ResNet on CIFAR-10",
        batch_size=128,
        lr=(0.1,),
        epochs=(200,),
        weight_decay=(5e-4,),
        head="torch",
        crop="padded",
        resize=1.0,
    ),
    "supervised_semi_1": _SUPERVISED_SEMI,
    "supervised_semi_10": replace(_SUPERVISED_SEMI, epochs=(270,), labels=0.1),
}


def finetune_views(protocol: FinetuneProtocol, size: int) -> tuple[ViewSpec, ViewSpec]:
    """The views of a training and a test image, for an encoder whose input has that side, in pixels."""
    test = evaluation_view(size, resize=protocol.resize, interpolation=protocol.interpolation)
    return cropped_view(protocol.crop, size, protocol.interpolation), test


def finetune_rate(protocol: FinetuneProtocol, setting: Setting, step: Step) -> float:
    """Learning rate of the encoder at a step.

    Example:
        >>> protocol = FINETUNE_PROTOCOLS["swav_semi_1"]
        >>> (setting,) = protocol.grid
        >>> [round(finetune_rate(protocol, setting, Step(5 * epoch, 100, 5)), 6) for epoch in (0, 11, 12, 16)]
        [0.02, 0.02, 0.004, 0.0008]
    """
    start = setting.lr * _scale(protocol)
    if not protocol.milestones:
        return cosine_schedule(start, 0.0, step.index / step.total)
    assert setting.epochs is not None
    milestones = [round(milestone * setting.epochs) for milestone in protocol.milestones]
    return start * step_decay(step.index // step.steps_per_epoch, milestones, protocol.factor)


def _scale(protocol: FinetuneProtocol) -> float:
    return protocol.batch_size / 256 if protocol.scale_lr else 1.0


def finetune_text(name: str, protocol: FinetuneProtocol, size: int) -> str:
    """A protocol in words, with its crops in pixels for an encoder whose input has that side.

    Example:
        >>> print(finetune_text("clim_semi", FINETUNE_PROTOCOLS["clim_semi"], 224))
        protocol clim_semi: CLIM (Li et al., 2021), section 4.2; batch, decay and head are ours
          60 epochs, batch 256, sgd with momentum 0.9, weight decay 0
          lr 0.0001 of the encoder, 10 of the linear layer, x 0.1 after epochs 20 and 40
          linear layer: N(0, 0.01); BatchNorm: over all processes
          train: random resized crop 224 of area 0.08 to 1 (bilinear), flip
          test: short side 256 (bilinear), center crop 224
    """
    train, test = finetune_views(protocol, size)
    length = f"{protocol.steps:,} steps" if protocol.epochs is None else f"{_some(protocol.epochs)} epochs"
    momentum = "Nesterov momentum" if protocol.nesterov else "momentum"
    decay = f"weight decay {_some(protocol.weight_decay)}" + " divided by lr" * protocol.decay_over_lr
    scale = _scale(protocol)
    rate = f"lr {_some([lr * scale for lr in protocol.lr])}"
    if protocol.lr_head is not None:
        rate += f" of the encoder, {protocol.lr_head * scale:g} of the linear layer"
    if protocol.scale_lr:
        rate += f" ({_some(protocol.lr)} x {protocol.batch_size} / 256)"
    if protocol.milestones:
        of_epochs = [
            " and ".join(str(round(milestone * epochs)) for milestone in protocol.milestones)
            for epochs in protocol.epochs or ()
        ]
        rate += f", x {protocol.factor:g} after epochs {' or '.join(of_epochs)}"
    else:
        rate += ", cosine to 0 at every step"
    head = {"zeros": "zeros", "normal": "N(0, 0.01)", "torch": "as nn.Linear begins"}[protocol.head]
    statistics = ", running ones moved by min(10 / steps of an epoch, 0.1)" * protocol.short_batch_norm
    lines = [
        f"protocol {name}: {protocol.source}",
        f"{length}, batch {protocol.batch_size}, sgd with {momentum} 0.9, {decay}",
        rate,
        f"linear layer: {head}; BatchNorm: over all processes{statistics}",
        f"train: {view_text(train)}",
        f"test: {view_text(test)}",
    ]
    if len(protocol.grid) > 1:
        how = (
            f"{protocol.validation:.0%} of each class" if protocol.validation < 1 else f"{protocol.validation:,} others"
        )
        lines.append(
            f"grid of {len(protocol.grid)}: the first of the best on the set's validation images, or else {how}"
        )
    return "\n  ".join(lines)


def _some(values: tuple[float, ...] | list[float] | tuple[int, ...]) -> str:
    """Values of a grid in words.

    Example:
        >>> _some([0.5]), _some([1.0, 0.1, 0.25]), _some([0.0, *(10.0**-power for power in range(9))])
        ('0.5', '1, 0.1 or 0.25', '0, 1 .. 1e-08 (10)')
    """
    texts = [f"{value:.3g}" for value in values]
    if len(texts) > 5:
        start = 2 if texts[0] == "0" else 1
        return f"{', '.join(texts[:start])} .. {texts[-1]} ({len(texts)})"
    return " or ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
