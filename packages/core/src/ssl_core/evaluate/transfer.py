"""Linear transfer: how well frozen features serve on other images, by a logistic regression.

``ssl-core eval transfer RUN --data.source FOLDER`` prints the protocol, then
``transfer FOLDER top1 93.10 (validation 92.80, penalty 0.00178, 14 of 45 not converged, 6149 images)``.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ssl_core.data import DataConfig, Images, decoded, open_encoded
from ssl_core.data.source import readable
from ssl_core.data.subset import selection_split
from ssl_core.evaluate.accuracy import balanced_accuracy, check_classes, count_classes, label_ranks
from ssl_core.evaluate.encoder import Layer
from ssl_core.evaluate.logistic import Limits, choose_penalty, fit_classifier
from ssl_core.evaluate.plan import Plan, choose_protocol
from ssl_core.evaluate.subject import Subject, load_subject
from ssl_core.views import ViewSpec, eval_spec

logger = logging.getLogger(__name__)

Metric: TypeAlias = Literal["top1", "mean_per_class"]

PENALTIES = tuple(10 ** (-6 + 11 * point / 44) for point in range(45))

_VALIDATION = 0.2  # of the training images, where none are set apart


@dataclass(frozen=True)
class TransferProtocol:
    """How a logistic regression is fitted to the features of a set.

    Attributes:
        source: paper or code that the numbers are from.
        limits: when a fit stops.
        refit: what the last fit starts from: ``warm``, the weights of the grid's last; or ``zeros``.
        validation: how a fifth of the training images is drawn where a set has no validation images of its own:
            ``shuffled``, by NumPy with seed 0; or ``by_class``, a fifth of each.
    """

    source: str
    limits: Limits
    refit: Literal["warm", "zeros"]
    validation: Literal["shuffled", "by_class"]


TRANSFER_PROTOCOLS: dict[str, TransferProtocol] = {
    "ssl_transfer": TransferProtocol(
        "Ericsson et al., 2021, released code, which SCE's table 9 names; after SimCLR and BYOL",
        Limits(),
        refit="warm",
        validation="shuffled",
    ),
    "converged": TransferProtocol(
        "no paper: ssl_transfer with fits that go on until they have converged",
        Limits(iterations=5000, decrease=1e-14),
        refit="zeros",
        validation="by_class",
    ),
}


def transfer_text(name: str, protocol: TransferProtocol, view: ViewSpec) -> str:
    """A protocol in words.

    Example:
        >>> print(transfer_text("ssl_transfer", TRANSFER_PROTOCOLS["ssl_transfer"], transfer_view(224)))
        protocol ssl_transfer: Ericsson et al., 2021, released code, which SCE's table 9 names; after SimCLR and BYOL
          features: short side 224 (bicubic), center crop 224, extracted once
          45 penalties from 1e-06 to 100000, each fit from the weights before, by L-BFGS of 100 iterations
          validation: the set's own, or else a fifth of the training images, shuffled
          tested: a fit of training and validation images that starts from the weights of the grid's last
    """
    (size,) = view.sizes
    drawn = {"shuffled": "a fifth of the training images, shuffled", "by_class": "a fifth of each class"}
    start = {"warm": "the weights of the grid's last", "zeros": "zeros"}
    return (
        f"protocol {name}: {protocol.source}\n"
        f"  features: short side {size} (bicubic), center crop {size}, extracted once\n"
        f"  {len(PENALTIES)} penalties from {PENALTIES[0]:g} to {PENALTIES[-1]:g}, each fit from the weights before, "
        f"by L-BFGS of {protocol.limits.iterations} iterations\n"
        f"  validation: the set's own, or else {drawn[protocol.validation]}\n"
        f"  tested: a fit of training and validation images that starts from {start[protocol.refit]}"
    )


def transfer_view(size: int) -> ViewSpec:
    """The view that features are extracted from: the short side resized to the encoder's input, not to 8/7 of it."""
    return eval_spec(size, interpolation="bicubic")


class Examples(NamedTuple):
    """Features of images, and their classes as :func:`fit_classifier` takes them."""

    features: Float[Tensor, "n f"]
    labels: Int64[Tensor, "n *k"]

    def where(self, chosen: Bool[Tensor, " n"]) -> "Examples":
        """Those of some images."""
        return Examples(self.features[chosen.to(self.features.device)], self.labels[chosen])


class TransferResult(NamedTuple):
    """How a set came out.

    Attributes:
        score: value of the metric on the test images, in [0, 1].
        validation: its value on the validation images, by which the penalty was chosen.
        penalty: penalty of the classifier that was tested.
        C: the same as scikit-learn calls it, 1 / penalty.
        at_end: whether that penalty is the first or the last of the grid, so that one outside it may be better.
        iterations: number of iterations of the last fit.
        gradient: largest component of its gradient at its end.
        converged: whether it has.
        not_converged: number of the grid's penalties whose fits have not.
    """

    score: float
    validation: float
    penalty: float
    C: float
    at_end: bool
    iterations: int
    gradient: float
    converged: bool
    not_converged: int


def metric_score(metric: Metric, scores: Float[Tensor, "n k"], labels: Int64[Tensor, "n *k"]) -> float:
    """Value of a metric, in [0, 1].

    Args:
        metric: ``top1``; or ``mean_per_class``, the mean over the classes that occur of their top-1.
        scores: (n k).
        labels: (n) classes of the images.
    """
    is_right = label_ranks(scores, labels) < 1
    return balanced_accuracy(is_right, labels) if metric == "mean_per_class" else is_right.double().mean().item()


def linear_transfer(
    labelled: Examples,
    is_validation: Bool[Tensor, " n"],
    test: Examples,
    num_classes: int,
    metric: Metric,
    protocol: TransferProtocol,
) -> TransferResult:
    """Choose a penalty on validation images, fit all labelled images with it, and test once.

    Args:
        labelled: features and labels of the training images, those for validation among them.
        is_validation: which these are.
        test: features and labels of the test images.
        num_classes: number of classes.
        metric: what is compared and reported.
        protocol: limits of the fits.
    """
    training, validation = labelled.where(~is_validation), labelled.where(is_validation)
    choice = choose_penalty(
        *training,
        num_classes,
        PENALTIES,
        lambda classifier: metric_score(metric, classifier.scores(validation.features), validation.labels),
        limits=protocol.limits,
    )
    start = choice.last if protocol.refit == "warm" else None
    final = fit_classifier(*labelled, num_classes, choice.penalty, limits=protocol.limits, start=start)
    return TransferResult(
        metric_score(metric, final.scores(test.features), test.labels),
        max(choice.scores),
        choice.penalty,
        1 / choice.penalty,
        choice.penalty in (PENALTIES[0], PENALTIES[-1]),
        final.iterations,
        final.gradient,
        final.converged,
        choice.converged.count(False),
    )


def draw_validation(images: Images, how: Literal["shuffled", "by_class"], *, seed: int = 0) -> Bool[Tensor, " n"]:
    """Which of some training images are for validation, a fifth of them.

    Args:
        images: labelled images.
        how: ``shuffled``, as ssl-transfer draws them, whatever the seed; or a fifth of each class, ``by_class``.
        seed: seeds the latter.

    Raises:
        ValueError: if there are so few images that none would be left for validation.

    Example:
        >>> from ssl_core.data import open_encoded
        >>> int(draw_validation(open_encoded(DataConfig(source="digits")), "shuffled").sum())
        279
    """
    if how == "shuffled":
        order = np.arange(len(images))
        np.random.RandomState(0).shuffle(order)  # the permutation that Python's list would become too
        held_out = torch.from_numpy(order[: int(_VALIDATION * len(images))])
    else:
        held_out = selection_split(images, torch.arange(len(images)), _VALIDATION, seed)[1]
    if not len(held_out):
        raise ValueError(
            f"the {len(images)} training images of {images.name} leave none for validation, by which the penalty is "
            "chosen; give five or more"
        )
    is_validation = torch.zeros(len(images), dtype=torch.bool)
    is_validation[held_out] = True
    return is_validation


class Task(NamedTuple):
    """A set whose images are not decoded yet.

    Attributes:
        data: settings of its images.
        metric: what is compared and reported.
        labelled: training images, with those for validation among them.
        test: test images.
        is_validation: which of the training images are for validation.
    """

    data: DataConfig
    metric: Metric
    labelled: Images
    test: Images
    is_validation: Bool[Tensor, " n"]

    @property
    def name(self) -> str:
        """What a person calls the set."""
        return self.labelled.name

    def counts(self) -> dict[str, int]:
        """Number of images in each split."""
        num_validation = int(self.is_validation.sum())
        return {
            "train": len(self.labelled) - num_validation,
            "validation": num_validation,
            "test": len(self.test),
        }


def open_task(data: DataConfig, metric: Metric, protocol: TransferProtocol, *, seed: int) -> Task:
    """A set, of which no more than its files and labels has been looked at.

    Args:
        data: settings of its images.
        metric: what is compared and reported.
        protocol: how validation images are drawn.
        seed: seeds that.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for missing labels, classes that training images lack, or too few images.
    """
    labelled, test = (open_encoded(data, split) for split in ("labelled", "test"))
    check_classes(labelled, test)
    is_validation = draw_validation(labelled, protocol.validation, seed=seed)
    return Task(data, metric, labelled, test, is_validation)


def run_task(
    task: Task, subject: Subject, view: ViewSpec, protocol: TransferProtocol, *, progress: bool = False
) -> dict[str, Any]:
    """What a result says of a set: how it came out, and the numbers of images and classes.

    Args:
        task: the set.
        subject: encoder, and what it is fed.
        view: view that features are extracted from.
        protocol: how classifiers are fitted.
        progress: whether bars are shown.
    """
    subject = subject._replace(data=task.data)
    labelled, test = decoded(task.labelled, task.data, split="labelled"), decoded(task.test, task.data, split="test")
    for_training, for_testing = (
        Examples(*subject.extract(source, f"{task.name}, {split}" if progress else "", view=view).to(subject.device))
        for source, split in ((labelled, "training"), (test, "test"))
    )
    # By name, since images that turned out broken have been left out.
    names = {task.labelled.identifier(index) for index in task.is_validation.nonzero().flatten().tolist()}
    is_validation = torch.tensor([labelled.identifier(index) in names for index in readable(labelled)])
    num_classes = count_classes(task.labelled)
    found = linear_transfer(for_training, is_validation, for_testing, num_classes, task.metric, protocol)
    result = {
        "metric": task.metric,
        **found._asdict(),
        "num_train": int((~is_validation).sum()),
        "num_validation": int(is_validation.sum()),
        "num_test": len(for_testing.labels),
        "num_classes": num_classes,
        "num_tested_classes": int((for_testing.labels.bincount() > 0).sum()),
    }
    _say(task.name, result)
    return result


def _say(name: str, result: dict[str, Any]) -> None:
    untested = result["num_classes"] - result["num_tested_classes"]
    notes = [
        f"validation {100 * result['validation']:.2f}",
        f"penalty {result['penalty']:.3g}{', an end of the grid' if result['at_end'] else ''}",
        f"{result['not_converged']} of {len(PENALTIES)} not converged",
        f"{result['num_test']} images",
        *([f"{untested} classes without any left out"] if untested else []),
    ]
    print(f"transfer {name} {result['metric']} {100 * result['score']:.2f} ({', '.join(notes)})")


def evaluate_transfer(
    encoder: str,
    *,
    protocol: str = "ssl_transfer",
    metric: Metric | None = None,
    data: DataConfig | None = None,
    like: str | None = None,
    features: Layer = "backbone",
    image_size: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Fit a logistic regression to frozen features of other sets or your own; prints ``transfer NAME top1 93.10 ...``.

    Args:
        encoder: a run directory, a ``.safetensors`` file, ``timm:NAME``, ``random`` or ``pixels``.
        protocol: name in ``TRANSFER_PROTOCOLS``: ssl_transfer or converged.
        metric: what is compared and reported: top1, or mean_per_class, the mean over the classes of their top-1.
        data: labelled images; None takes those of the run that ``encoder``, or else ``like``, names.
        like: run directory or exported backbone whose input ``random`` and ``pixels`` take.
        features: layer to evaluate: ``backbone``, or ``projection``, the projector after it.
        image_size: side of the encoder's input in pixels; None is the side that it was trained with.
        device: device that computes the features.
        seed: seeds the validation images of ``converged``, and the weights of ``random``.
        out: folder of the result; None is the folder of ``encoder``, or nowhere if that has none.
        dry_run: whether to say what would be done, and do nothing.
        progress: whether bars are shown.

    Returns:
        What ``transfer-PROTOCOL.json`` says: ``sets``, how each came out; ``mean`` of their scores; and every setting.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for an unknown protocol, missing labels, and what does not fit together.
    """
    chosen, changed = choose_protocol(TRANSFER_PROTOCOLS, protocol)
    subject = load_subject(encoder, data=data, like=like, features=features, device=device, seed=seed)
    view = transfer_view(image_size or subject.card.image_size)
    own = replace(subject.data, channels=subject.data.channels or subject.card.channels)
    tasks = [open_task(own, metric or "top1", chosen, seed=seed)]
    counts = {task.name: task.counts() for task in tasks}
    num_images = sum(sum(splits.values()) for splits in counts.values())
    plan = Plan(
        protocol,
        chosen,
        changed,
        transfer_text(protocol, chosen, view),
        counts,
        "validation",
        f"{num_images:,} images through the encoder, {len(PENALTIES) + 1} fits a set",
    )
    print(plan)
    result = {**plan.settings(), "features": features, "image_size": view.sizes[0], "seed": seed, **subject.settings()}
    if dry_run:
        return result
    result["sets"] = {}
    for task in tasks:
        result["sets"][task.name] = run_task(task, subject, view, chosen, progress=progress)
        subject.save(result, f"transfer-{protocol}.json", out)
    return result
