"""Linear transfer: a logistic regression on frozen features of other images.

``ssl-core eval transfer RUN --sets [flowers102,pets] --data.root DATA`` prints the protocol, then of each set
``transfer pets mean_per_class 90.90 (validation 90.12, penalty 0.00178, 14 of 45 not converged, 3669 images)``.
"""

import logging
import statistics
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ssl_core import distributed
from ssl_core.data import (
    TRANSFER_SETS,
    DataConfig,
    Images,
    ImageSource,
    decoded,
    multi_labels,
    official_validation,
    open_encoded,
    split_remark,
)
from ssl_core.data.config import NAMES
from ssl_core.data.source import readable
from ssl_core.data.subset import selection_split
from ssl_core.data.transfer_sets import Metric
from ssl_core.data.voc import VOC_CLASSES, VOC_NAME
from ssl_core.evaluate.accuracy import count_classes
from ssl_core.evaluate.average_precision import Curve
from ssl_core.evaluate.encoder import Layer
from ssl_core.evaluate.logistic import Limits, LogisticFit, choose_penalty, fit_classifier
from ssl_core.evaluate.metric import fitting_metric, metric_score
from ssl_core.evaluate.plan import Plan, choose_protocol
from ssl_core.evaluate.subject import Subject, load_subject
from ssl_core.views import ViewSpec, eval_spec

logger = logging.getLogger(__name__)

PENALTIES = tuple(10 ** (-6 + 11 * point / 44) for point in range(45))

# Names of several sets: SCE's table 9, and with Birdsnap SimCLR's.
_SEVERAL = {"all": [name for name in TRANSFER_SETS if name != "birdsnap"], "all12": [*TRANSFER_SETS]}

_VALIDATION = 0.2  # of the training images, where none are set apart


@dataclass(frozen=True)
class TransferProtocol:
    """The settings of a logistic regression on the features of a set.

    Attributes:
        source: paper or code that the numbers are from.
        limits: limits at which a fit stops.
        refit: start of the last fit: ``warm``, the weights of the grid's last; or ``zeros``.
        validation: choice of validation images, a fifth of the training images, where a set has none of its own:
            ``shuffled``, drawn by NumPy with seed 0; or ``by_class``, a fifth of each class.
        curve: points of the curve of the 11-point average precision, as :func:`average_precision` takes them.
        binomial: whether, where images have several labels, 1 / penalty is C of a binomial fit, and not of a fit with
            two rows of weights.
    """

    source: str
    limits: Limits
    refit: Literal["warm", "zeros"]
    validation: Literal["shuffled", "by_class"]
    curve: Curve
    binomial: bool


TRANSFER_PROTOCOLS: dict[str, TransferProtocol] = {
    "ssl_transfer": TransferProtocol(
        "Ericsson et al., 2021, released code, which SCE's table 9 names; after SimCLR and BYOL",
        Limits(),
        refit="warm",
        validation="shuffled",
        curve="sklearn",
        binomial=False,
    ),
    "converged": TransferProtocol(
        "no paper: ssl_transfer with fits that go on until they have converged",
        Limits(iterations=5000, decrease=1e-14),
        refit="zeros",
        validation="by_class",
        curve="every image",
        binomial=True,
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
          several labels: a fit of two rows for each class, difficult objects negative, 11 points of sklearn's curve
    """
    (size,) = view.sizes
    drawn = {"shuffled": "a fifth of the training images, shuffled", "by_class": "a fifth of each class"}
    start = {"warm": "the weights of the grid's last", "zeros": "zeros"}
    curve = {"sklearn": "sklearn's", "every image": "the"}[protocol.curve]
    fit = "binomial fit" if protocol.binomial else "fit of two rows"
    return (
        f"protocol {name}: {protocol.source}\n"
        f"  features: short side {size} (bicubic), center crop {size}, extracted once\n"
        f"  {len(PENALTIES)} penalties from {PENALTIES[0]:g} to {PENALTIES[-1]:g}, each fit from the weights before, "
        f"by L-BFGS of {protocol.limits.iterations} iterations\n"
        f"  validation: the set's own, or else {drawn[protocol.validation]}\n"
        f"  tested: a fit of training and validation images that starts from {start[protocol.refit]}\n"
        f"  several labels: a {fit} for each class, difficult objects negative, 11 points of {curve} curve"
    )


def transfer_view(size: int) -> ViewSpec:
    """The view that features are extracted from: the short side resized to the encoder's input, not to 8/7 of it."""
    return eval_spec(size, interpolation="bicubic")


class Examples(NamedTuple):
    """Features of images, on the device that computes, and their classes.

    Attributes:
        features: (n f) features of the images.
        labels: (n) class of each image; or, where an image has several, (n k), where 1 is of a class, and anything else
            not.
    """

    features: Float[Tensor, "n f"]
    labels: Int64[Tensor, "n *k"]

    def where(self, chosen: Bool[Tensor, " n"]) -> "Examples":
        """Those of some images."""
        return Examples(self.features[chosen.to(self.features.device)], self.labels[chosen])


class TransferResult(NamedTuple):
    """The result of a set.

    Attributes:
        score: value of the metric on the test images, in [0, 1].
        validation: value of the metric on the validation images, by which the penalty was chosen.
        penalty: penalty of the classifier that was tested.
        C: inverse of the penalty, as scikit-learn calls it.
        at_end: whether the penalty is the first or the last of the grid, so that one outside of it may be better.
        iterations: number of iterations of the last fit.
        gradient: largest component of the last fit's gradient at its end.
        converged: whether the last fit has converged.
        not_converged: number of the grid's penalties whose fits have not converged.
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


def linear_transfer(
    labelled: Examples,
    is_validation: Bool[Tensor, " n"],
    test: Examples,
    num_classes: int,
    metric: Metric,
    protocol: TransferProtocol,
) -> TransferResult:
    """Choose a penalty on validation images, fit all labeled images with it, and test once.

    Args:
        labelled: features and labels of the training images, with those for validation among them.
        is_validation: (n) whether each training image is for validation.
        test: features and labels of the test images.
        num_classes: number of classes.
        metric: metric to compare and report.
        protocol: protocol, of which the settings of the fits count.
    """
    training, validation = labelled.where(~is_validation), labelled.where(is_validation)

    def score(fit: LogisticFit, images: Examples) -> float:
        return metric_score(metric, fit.scores(images.features), images.labels, protocol.curve)

    choice = choose_penalty(
        *training,
        num_classes,
        PENALTIES,
        lambda fit: score(fit, validation),
        limits=protocol.limits,
        binomial=protocol.binomial,
    )
    start = choice.last if protocol.refit == "warm" else None
    final = fit_classifier(
        *labelled, num_classes, choice.penalty, limits=protocol.limits, start=start, binomial=protocol.binomial
    )
    return TransferResult(
        score(final, test),
        max(choice.scores),
        choice.penalty,
        1 / choice.penalty,
        choice.penalty in (PENALTIES[0], PENALTIES[-1]),
        final.iterations,
        final.gradient,
        final.converged,
        choice.converged.count(False),
    )


def draw_validation(images: Images, how: Literal["shuffled", "by_class"], *, seed: int = 0) -> Int64[Tensor, " v"]:
    """Indices of the training images that are for validation, a fifth of them.

    Args:
        images: labeled images.
        how: way to draw them: ``shuffled``, as in ssl-transfer, whatever the seed; or ``by_class``, a fifth of each.
        seed: seed of the draws of ``by_class``.

    Raises:
        ValueError: if there are so few images that none would be left for validation.

    Example:
        >>> from ssl_core.data import open_encoded
        >>> len(draw_validation(open_encoded(DataConfig(source="digits")), "shuffled"))
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
    return held_out


class Task(NamedTuple):
    """A set whose images are not decoded yet.

    Attributes:
        data: settings of the set's images.
        metric: metric to compare and report.
        labelled: training images, with those for validation among them.
        test: test images.
        is_validation: (n) whether each training image is for validation.
    """

    data: DataConfig
    metric: Metric
    labelled: Images
    test: Images
    is_validation: Bool[Tensor, " n"]

    @property
    def name(self) -> str:
        """Name of the set for a person."""
        return self.labelled.name

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(VOC_CLASSES) if self.data.source == VOC_NAME else count_classes(self.labelled)

    def counts(self) -> dict[str, int]:
        """Number of images in each split."""
        num_validation = int(self.is_validation.sum())
        return {
            "train": len(self.labelled) - num_validation,
            "validation": num_validation,
            "test": len(self.test),
        }

    def labels(self, source: ImageSource, labels: Int64[Tensor, " n"]) -> Int64[Tensor, "n *k"]:
        """Labels as the metric takes them, from those of the images of a source that could be read."""
        if self.data.source == VOC_NAME:
            return multi_labels(self.data, source)[readable(source)].long()
        return F.one_hot(labels, self.num_classes) if self.metric == "map11" else labels


def open_task(data: DataConfig, metric: Metric | None, protocol: TransferProtocol, *, seed: int) -> Task:
    """A set, of which no more than its files and labels has been looked at.

    Args:
        data: settings of the set's images.
        metric: metric to compare and report; None is the usual one of the set, or else ``top1``.
        protocol: protocol, which says how validation images are drawn where the set has none of its own.
        seed: seed of these draws.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for missing labels, classes that training images lack, too few images, or a metric of one label
            where there are several.
    """
    labelled, test = (open_encoded(data, split) for split in ("labelled", "test"))
    metric = fitting_metric(metric, data, labelled, test)
    held_out = official_validation(data, labelled)
    if held_out is None:
        held_out = draw_validation(labelled, protocol.validation, seed=seed)
    is_validation = torch.zeros(len(labelled), dtype=torch.bool)
    is_validation[held_out] = True
    return Task(data, metric, labelled, test, is_validation)


class Extracted(NamedTuple):
    """A set as classifiers take it.

    Attributes:
        task: set that was read.
        labelled: training images, with those for validation among them.
        is_validation: (n) whether each of these is for validation.
        test: test images.
        differs: lines on splits whose numbers of images are not the official ones.
    """

    task: Task
    labelled: Examples
    is_validation: Bool[Tensor, " n"]
    test: Examples
    differs: list[str]


def extract_task(task: Task, subject: Subject, view: ViewSpec, *, progress: bool = False) -> Extracted:
    """The features of a set; all processes call it, and each looks at a share of the images.

    Args:
        task: set to evaluate on.
        subject: encoder, and the description of its input.
        view: view that features are extracted from.
        progress: whether bars are shown.
    """
    sources = {
        split: decoded(images, task.data, split=split)
        for split, images in (("labelled", task.labelled), ("test", task.test))
    }
    examples = []
    for split, source in sources.items():
        found = subject.together(source, f"{task.name}, {split}" if progress else "", view=view)
        examples.append(Examples(found.features, task.labels(source, found.labels)))
    # By name, since images that turned out broken have been left out.
    names = {task.labelled.identifier(index) for index in task.is_validation.nonzero().flatten().tolist()}
    is_validation = torch.tensor(
        [sources["labelled"].identifier(index) in names for index in readable(sources["labelled"])]
    )
    remarks = [split_remark(task.data, split, len(readable(source))) for split, source in sources.items()]
    return Extracted(task, examples[0], is_validation, examples[1], [remark for remark in remarks if remark])


def run_task(extracted: Extracted, device: torch.device | str, protocol: TransferProtocol) -> dict[str, Any]:
    """The result of a set, with the numbers of its images and classes.

    Args:
        extracted: features of the set.
        device: device that computes the fits.
        protocol: protocol, of which the settings of the fits count.
    """
    task, is_validation = extracted.task, extracted.is_validation
    labelled, test = (each._replace(features=each.features.to(device)) for each in (extracted.labelled, extracted.test))
    is_tested = (test.labels == 1).any(dim=0) if test.labels.ndim == 2 else test.labels.bincount() > 0
    result = {
        "metric": task.metric,
        **linear_transfer(labelled, is_validation, test, task.num_classes, task.metric, protocol)._asdict(),
        "num_train": int((~is_validation).sum()),
        "num_validation": int(is_validation.sum()),
        "num_test": len(test.labels),
        "num_classes": task.num_classes,
        "num_tested_classes": int(is_tested.sum()),
        "differs": extracted.differs,
    }
    if task.data.source == VOC_NAME:
        result["difficult"] = "negative"
    if protocol.refit == "zeros" and not result["converged"]:
        logger.warning(
            "%s: the last fit has not converged in %d iterations: its gradient is up to %.2g",
            task.name,
            result["iterations"],
            result["gradient"],
        )
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
    sets: list[str] | str | None = None,
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

    Several processes share the images of a set, and then the sets.

    Args:
        encoder: run directory, ``.safetensors`` file, ``timm:NAME``, ``random`` or ``pixels``.
        sets: names of sets below ``data.root``, each with its own metric; all is the 11 of SCE's table 9, all12 has
            birdsnap too. None takes ``data``.
        protocol: name in ``TRANSFER_PROTOCOLS``: ssl_transfer or converged.
        metric: metric to compare and report: top1; mean_per_class, the mean over the classes of their top-1; or map11,
            the mean of their 11-point average precisions. None is the usual metric of a set, or else top1.
        data: labeled images; None takes those of the run that ``encoder``, or else ``like``, names.
        like: run directory or exported backbone whose input ``random`` and ``pixels`` take.
        features: layer to evaluate: ``backbone``, or ``projection``, the projector after it.
        image_size: side of the encoder's input in pixels; None is the side that it was trained with.
        device: device that computes the features.
        seed: seed of the validation images of ``converged``, and the weights of ``random``.
        out: folder of the result; None is the folder of ``encoder``, or nowhere if that has none.
        dry_run: whether to print protocol, images and cost, and do no more.
        progress: whether bars are shown.

    Returns:
        The content of ``transfer-PROTOCOL.json``: ``sets``, the result of each; ``mean``, the mean of their scores; and
        every setting.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for an unknown protocol, missing labels, and what does not fit together.
    """
    chosen, changed = choose_protocol(TRANSFER_PROTOCOLS, protocol)
    if sets is not None:
        if metric is not None:
            raise ValueError(
                f"metric {metric}: each of sets has its own; give one of them as data.source, or no metric"
            )
        data = data or DataConfig()
    loaded = load_subject(encoder, data=data, like=like, features=features, device=device, seed=seed, out=out)
    subject = loaded.fitted(image_size)
    view = transfer_view(subject.card.image_size)
    settings = [subject.data] if sets is None else [replace(subject.data, source=name) for name in _set_names(sets)]
    tasks = [open_task(each, metric, chosen, seed=seed) for each in settings]
    counts = {task.name: task.counts() for task in tasks}
    num_images = sum(sum(splits.values()) for splits in counts.values())
    num_fits = (len(PENALTIES) + 1) * sum(task.num_classes if task.metric == "map11" else 1 for task in tasks)
    cost = f"{num_images:,} images through the encoder at {view.sizes[0]} px, {num_fits:,} fits"
    text = transfer_text(protocol, chosen, view)
    plan = Plan(protocol, chosen, changed, text, counts, "validation", cost)
    if distributed.is_main():
        print(plan, flush=True)
    result = {**plan.settings(), "features": features, "image_size": view.sizes[0], "seed": seed, **subject.settings()}
    if dry_run:
        return result
    subject.check_folder(out)
    result["sets"] = {}

    def extract(task: Task) -> Extracted:
        return extract_task(task, subject._replace(data=task.data), view, progress=progress)

    fit = partial(run_task, device=subject.device, protocol=chosen)
    for task, found in distributed.prepared_and_shared_out(tasks, extract, fit):
        result["sets"][task.name] = found
        if distributed.is_main():
            _say(task.name, found)
            subject.save(result, f"transfer-{protocol}.json", out)  # what comes next may take hours
    if len(tasks) > 1:
        result["mean"] = statistics.fmean(each["score"] for each in result["sets"].values())
    if len(tasks) > 1 and distributed.is_main():
        print(f"transfer mean {100 * result['mean']:.2f} ({len(tasks)} sets, protocol {protocol})")
        subject.save(result, f"transfer-{protocol}.json", out)
    return result


def _set_names(sets: list[str] | str) -> list[str]:
    names = _SEVERAL.get(sets, [sets]) if isinstance(sets, str) else list(dict.fromkeys(sets))
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise ValueError(
            f"sets {unknown} are none of {', '.join(NAMES)}, or all, or all12; images of your own are data.source"
        )
    return names
