"""Comparison of encoders by the same tests on the same images: nearest neighbors, a linear classifier, few labels.

``ssl-core compare pixels random RUN`` prints a table: of each test every encoder's top-1 with its 95 % interval, its
difference from the best with the interval of that, and the p-value of the difference.

Intervals are percentiles of a bootstrap over the test images (Efron and Tibshirani, 1993, chapter 13), paired: all
encoders are scored on the same resamples. The p-value is of the exact two-sided randomization test of paired scores
(Pitman, 1937): if two encoders were equally good, which of them an image's better score belongs to would be a coin's
toss. Of images that are right or wrong once it is the exact test of McNemar (1947), to which Dietterich (1998) leads
where classifiers are trained once.

Legend: n test images.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ssl_core import distributed
from ssl_core.data import DataConfig, Images, ImageSource, decoded, open_encoded
from ssl_core.evaluate.accuracy import check_classes, count_classes, source_labels
from ssl_core.evaluate.encoder import Layer, load_encoders, shared_data
from ssl_core.evaluate.features import Features
from ssl_core.evaluate.few_labels import DRAWS, drawn_by_class, few_label_curve, fitting_shots, standardized
from ssl_core.evaluate.knn import checked_neighbours, knn_ranks
from ssl_core.evaluate.logistic import Limits, LogisticFit, choose_penalty, fit_classifier
from ssl_core.evaluate.subject import Subject, check_out
from ssl_core.files import write_json
from ssl_core.folder import check_writable
from ssl_core.philox import uniform

logger = logging.getLogger(__name__)

RESAMPLES = 2000
TEMPERATURE = 0.1
PENALTIES = (1000.0, 100.0, 10.0, 1.0, 0.1, 0.01)
LIMITS = Limits(decrease=1e-5)  # beyond it accuracy no longer changes, at a third of the time: docs/evaluate.md
_HELD_OUT = 5  # one in so many training images chooses the penalty
_BOOTSTRAP_STREAM = 0x626F6F74  # "boot"
_NAME_LENGTH = 34  # characters
_BLOCK = 2**22  # draws of the bootstrap at a time: 32 MiB


@dataclass(frozen=True)
class Row:
    """The result of an encoder in a test, beside the best encoder's; all numbers but ``p`` are fractions in [0, 1].

    Attributes:
        test: name of the test: ``knn``, ``linear``, ``1 label``, ``5 labels`` and so on.
        encoder: name of the encoder.
        top1: fraction of right classes, over all draws of the labels where there are several.
        interval: ends of the 95 % interval of ``top1``.
        difference: ``top1`` less the best encoder's; 0 is the best.
        difference_interval: ends of the 95 % interval of ``difference``.
        p: p-value of ``difference``.
        draws: ``top1`` of each draw of the labels.
    """

    test: str
    encoder: str
    top1: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    p: float
    draws: tuple[float, ...]


def paired_comparison(
    test: str, is_right: Mapping[str, Bool[Tensor, "draws n"]], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Row]:
    """The results of some encoders on the same test images, in the order given.

    Args:
        test: name of the test.
        is_right: whether the class of each image is right, in each draw of the labels, by encoder; (1 n) without draws.
        resamples: number of the bootstrap's resamples.
        seed: seed of the resamples.

    Example:
        >>> right = {"a": torch.tensor([[True, True, True, True]]), "b": torch.tensor([[True, False, False, False]])}
        >>> [(row.top1, row.difference, row.p) for row in paired_comparison("knn", right)]
        [(1.0, 0.0, 1.0), (0.25, -0.75, 0.25)]
    """
    counts = torch.stack([draws.sum(dim=0) for draws in is_right.values()])  # (encoders n)
    num_draws = len(next(iter(is_right.values())))
    best = int(counts.sum(dim=1).argmax())
    means = bootstrap_means(counts.double() / num_draws, resamples=resamples, seed=seed)
    differences = means - means[:, best : best + 1]
    top1 = (counts.double().mean(dim=1) / num_draws).tolist()
    return [
        Row(
            test,
            encoder,
            top1[row],
            _interval(means[:, row]),
            top1[row] - top1[best],
            _interval(differences[:, row]),
            paired_p_value(counts[row] - counts[best]),
            tuple(draws.double().mean(dim=1).tolist()),
        )
        for row, (encoder, draws) in enumerate(is_right.items())
    ]


def comparison_rows(right: Mapping[str, Mapping[str, Bool[Tensor, "draws n"]]], *, seed: int = 0) -> list[Row]:
    """The results of all encoders, test by test, from what :func:`correctness` gives of each.

    Args:
        right: whether each test image is right, by encoder and test; all encoders have the same tests and images.
        seed: seed of the bootstrap.
    """
    tests = next(iter(right.values()))
    return [
        row
        for test in tests
        for row in paired_comparison(test, {encoder: of_tests[test] for encoder, of_tests in right.items()}, seed=seed)
    ]


def bootstrap_means(
    scores: Float64[Tensor, "encoders n"], *, resamples: int, seed: int
) -> Float64[Tensor, "resamples encoders"]:
    """Mean scores on resamples of the images, each of n images drawn with replacement and the same for all encoders."""
    num_images = scores.shape[1]
    means = []
    for rows in torch.split(torch.arange(resamples), max(1, _BLOCK // num_images)):
        streams = torch.stack([rows, torch.full_like(rows, _BOOTSTRAP_STREAM), rows * 0], dim=1)
        drawn = (uniform(seed, streams, num_images) * num_images).long()
        times = torch.zeros_like(drawn, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape).double())
        means.append(times @ scores.T / num_images)
    return torch.cat(means)


def _interval(means: Tensor) -> tuple[float, float]:
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return low, high


def paired_p_value(differences: Int64[Tensor, " n"]) -> float:
    """P-value of the exact two-sided randomization test of paired scores, see this file's beginning.

    P(|sum_i s_i d_i| >= |sum_i d_i|) for signs s_i that are +1 or -1 with probability 1/2 each.

    Args:
        differences: (n) differences d_i of whole numbers.

    Example:
        >>> paired_p_value(torch.tensor([1, 1, 1, 0])), paired_p_value(torch.tensor([2, -1, 0]))
        (0.25, 1.0)
    """
    from scipy.stats import binom  # type: ignore[attr-defined]  # half a second of import that nothing else needs

    # With b of c differences of size m positive, these add m (2 b - c) to the sum.
    prob = np.ones(1)  # of (sum + total) / 2
    for size, count in enumerate(differences.abs().bincount().tolist()[1:], start=1):
        added = np.zeros(size * count + 1)
        added[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        prob = np.convolve(prob, added)
    sums = np.abs(2 * np.arange(len(prob)) - (len(prob) - 1))
    return min(1.0, float(prob[sums >= abs(int(differences.sum()))].sum()))


def correctness(
    train: Features, test: Features, *, num_classes: int, k: int, shots: Sequence[int], seed: int = 0
) -> tuple[dict[str, Bool[Tensor, "draws n"]], dict[str, Any]]:
    """Whether each test image is right in each test, from the features of an encoder.

    Args:
        train: (m f) features of the training images, and their labels.
        test: (n f) features of the test images, and their labels.
        num_classes: number of classes.
        k: number of neighbors that vote.
        shots: numbers of labels of each class that a logistic regression learns from.
        seed: seed of the draws of labels, and of the images that choose the penalty.

    Returns:
        (draws n) by name of the test, and what was chosen: ``penalty``, and whether the last fit has ``converged``.
    """
    knn = knn_ranks(train, test, k=k, temperature=TEMPERATURE, num_classes=num_classes) < 1
    train, test = standardized(train, test)
    linear, chosen = linear_right(train, test, num_classes=num_classes, seed=seed)
    curve = few_label_curve(train, test, num_classes=num_classes, shots=shots, seed=seed)
    few = {shots_name(count): right for count, right in curve.items()}
    return {"knn": knn[None], "linear": linear[None], **few}, chosen


def shots_name(shots: int) -> str:
    """Name of the test of so many labels a class.

    Example:
        >>> shots_name(1), shots_name(5)
        ('1 label', '5 labels')
    """
    return f"{shots} label{'s' * (shots > 1)}"


def linear_right(
    train: Features, test: Features, *, num_classes: int, seed: int = 0
) -> tuple[Bool[Tensor, " n"], dict[str, Any]]:
    """Whether each test image is right by a logistic regression from all labels; see :func:`correctness`.

    A fifth of each class is held out to choose the penalty, and then the training images are fitted all together.
    """
    orders = drawn_by_class(train.labels, seed=seed, draw=DRAWS)
    shares = [min(len(indices) - 1, max(1, len(indices) // _HELD_OUT)) if len(indices) else 0 for indices in orders]
    held = torch.cat([indices[:share] for indices, share in zip(orders, shares, strict=True)])
    fitted = torch.cat([indices[share:] for indices, share in zip(orders, shares, strict=True)])

    def score(fit: LogisticFit) -> float:
        right = fit.scores(train.features[held]).argmax(dim=1) == train.labels[held]
        return right.double().mean().item()

    features, labels = train.features[fitted], train.labels[fitted]
    choice = choose_penalty(features, labels, num_classes, PENALTIES, score, limits=LIMITS)
    fit = fit_classifier(*train, num_classes, choice.penalty, limits=LIMITS)
    chosen = {"penalty": choice.penalty, "validation": max(choice.scores), "converged": fit.converged}
    return fit.scores(test.features).argmax(dim=1) == test.labels, chosen


def comparison_text(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """The rows as a table of at most 100 columns; of long names it shows the ends, unless these are the same.

    Args:
        rows: results, test by test.
        titles: title of each test; the name where it has none.
    """
    names = {row.encoder: row.encoder for row in rows}
    short = {name: name if len(name) <= _NAME_LENGTH else f"...{name[3 - _NAME_LENGTH :]}" for name in names}
    if len({*short.values()}) == len(names):
        names = short
    width = max(len("top-1 in %"), *map(len, names.values()))
    interval = "95 % interval"
    lines = [f"  {'top-1 in %':<{width}}         {interval:<15}  to best  {interval:<16}        p"]
    for name in dict.fromkeys(row.test for row in rows):
        lines.append(titles.get(name, name))
        for row in rows:
            if row.test != name:
                continue
            line = f"  {names[row.encoder]:<{width}}  {100 * row.top1:5.1f}  {_interval_text(row.interval, ''):<15}"
            if row.difference < 0:
                line += f"  {100 * row.difference:+7.1f}  {_interval_text(row.difference_interval, '+'):<16}"
                line += f"  {p_text(row.p):>7}"
            else:
                line += "     best"
            lines.append(line.rstrip())
    return "\n".join(lines)


def p_text(p: float) -> str:
    """A p-value as tables show it.

    Example:
        >>> p_text(0.25), p_text(0.00002)
        ('0.2500', '<0.0001')
    """
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def _interval_text(ends: tuple[float, float], sign: str) -> str:
    low, high = (f"{100 * end:{sign}.1f}" for end in ends)
    return f"{low} to {high}"


def compare(
    encoders: Sequence[str],
    *,
    data: DataConfig | None = None,
    like: str | None = None,
    features: Layer = "backbone",
    shots: int | list[int] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare encoders by kNN, a linear classifier and few labels, each with its interval and the best beside it.

    Several processes share the images, and then the encoders.

    Args:
        encoders: encoders to compare, each a run directory, a ``.safetensors`` file, ``timm:NAME``, ``random`` or
            ``pixels``.
        data: labeled images; None takes those of the runs among ``encoders`` and ``like``, if they agree.
        like: run directory or exported backbone whose input ``random`` and ``pixels`` take; None is the first among
            ``encoders``.
        features: layer to evaluate: ``backbone``, or ``projection``, the projector after it.
        shots: numbers of labels of each class to learn from; None takes those of 1, 5 and 20 that each class has.
        device: device that computes the features.
        seed: seed of the draws of labels, of the bootstrap, and of the weights of ``random``.
        out: folder of ``compare.json``; None writes nothing.
        progress: whether bars are shown.

    Returns:
        The content of ``compare.json``: ``rows``, the result of each encoder in each test as :class:`Row`; and every
        setting. In the first process; nothing in the others.

    Raises:
        FileNotFoundError: for a path that does not exist, a run's checkpoint among them.
        ValueError: for an encoder that is given twice, weights that cannot be fetched, runs on different data, missing
            labels, images of one class, more shots than a class has images, and what does not fit together.
    """
    check_out(out)
    if out is not None:
        check_writable(Path(out))
    loaded = load_encoders(encoders, like=like, features=features, seed=seed)
    data = data or shared_data(encoders, like)
    labelled, unseen = (open_encoded(data, split) for split in ("labelled", "test"))
    counts = _checked_shots(labelled, unseen, [shots] if isinstance(shots, int) else shots)
    k = checked_neighbours(labelled, unseen, 200, fewer=True)
    num_classes = count_classes(labelled)

    named = dict(zip(encoders, loaded, strict=True))
    settings: dict[str, dict[str, Any]] = {}
    sources: dict[int, dict[str, ImageSource]] = {}

    def extract(encoder: str) -> tuple[str, list[Features]]:
        module, card = named[encoder]
        if card.channels not in sources:
            sources.clear()  # those of other channels, which no encoder takes any more
            sources[card.channels] = {
                split: decoded(replace(images, channels=card.channels), data, split=split)
                for split, images in (("labelled", labelled), ("test", unseen))
            }
        train, test = sources[card.channels].values()
        subject = Subject(encoder, module.to(device), card, data, device)
        found = [
            subject.together(source, f"{encoder}, {split}" if progress else "")
            for split, source in (("training", train), ("test", test))
        ]
        settings[encoder] = subject.settings(train=train, test=test)
        return encoder, found

    def judge(extracted: tuple[str, list[Features]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        encoder, (train, test) = extracted
        logger.info("%s: nearest neighbors and classifiers of %d features", encoder, train.features.shape[1])
        return correctness(train.to(device), test.to(device), num_classes=num_classes, k=k, shots=counts, seed=seed)

    by_channels = sorted(encoders, key=lambda encoder: named[encoder][1].channels)
    judged = dict(distributed.prepared_and_shared_out(by_channels, extract, judge))
    right, chosen = ({encoder: judged[encoder][part] for encoder in encoders} for part in (0, 1))
    if not distributed.is_main():
        return {}
    rows = comparison_rows(right, seed=seed)
    titles = {"knn": f"kNN, k {k}, T {TEMPERATURE:g}", "linear": "linear, a logistic regression of all labels"}
    titles |= {shots_name(count): f"{shots_name(count)} a class, {DRAWS} draws" for count in counts}
    first = settings[encoders[0]]
    print(
        f"{first['num_train']:,} training and {first['num_test']:,} test images of {first['test']}, {num_classes} "
        f"classes, {features} features"
    )
    print(comparison_text(rows, titles))
    result: dict[str, Any] = {
        "rows": [asdict(row) for row in rows],
        "titles": titles,
        "intervals": f"percentiles 2.5 and 97.5 of {RESAMPLES} resamples of the test images",
        "p": "exact paired randomization test against the best of each test, not corrected for several encoders",
        "features": features,
        "k": k,
        "temperature": TEMPERATURE,
        "shots": list(counts),
        "seed": seed,
        "linear": chosen,
        "encoders": {encoder: settings[encoder] for encoder in by_channels},
    }
    if out is not None:
        write_json(Path(out) / "compare.json", result)
    return result


def _checked_shots(train: Images, test: Images, shots: Sequence[int] | None) -> tuple[int, ...]:
    """The numbers of labels to learn from, after a check that images can serve all tests, before they are read."""
    check_classes(train, test)
    labels = source_labels(train)
    counts = labels.bincount()
    there = (counts > 0).nonzero().flatten()
    if len(there) < 2:
        raise ValueError(f"the {len(train)} training images of {train.name} are all of one class; a test needs two")
    if counts.max() < 2:
        raise ValueError(
            f"{train.name} has one training image of each class: none is left to choose the linear classifier's "
            "penalty; give more"
        )
    if len(test) < 2:
        raise ValueError(f"{len(test)} test image of {test.name} says nothing of a difference; give more")
    if shots is None:
        return fitting_shots(labels)
    least = int(there[counts[there].argmin()])
    for count in shots:
        if not 1 <= count <= counts[least]:
            name = train.classes[least] if train.classes else least
            raise ValueError(
                f"shots {count}: class {name} has {int(counts[least])} training images; give 1 to {int(counts[least])}"
            )
    return tuple(dict.fromkeys(shots))
