r"""Average precision of a ranking, the score of VOC2007 and its successors.

Images are sorted by falling score. After i of them tp_i are positive, the precision is P_i = tp_i / i and the recall
R_i = tp_i / npos, where npos is the number of all positives.

* ``11-point`` (VOC 2007): 1/11 \sum_{t=0..10} max {P_i : 10 tp_i >= t npos}, where the maximum of nothing is 0
* ``area`` (VOC 2010 on, VISSL, PCL): \sum_i (R_i - R_{i-1}) max_{j>=i} P_j
* ``none``, not interpolated (scikit-learn): \sum_i (R_i - R_{i-1}) P_i
"""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray

Interpolation: TypeAlias = Literal["11-point", "area", "none"]
Curve: TypeAlias = Literal["every image", "sklearn"]


class MeanAveragePrecision(NamedTuple):
    """Average precisions of some classes.

    Attributes:
        mean: mean over the classes that have an average precision, in [0, 1].
        classes: average precision of each class; None for a class without positives.
    """

    mean: float
    classes: tuple[float | None, ...]


def average_precision(
    scores: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    interpolation: Interpolation,
    *,
    curve: Curve = "every image",
) -> float:
    """Average precision of a class, in [0, 1].

    Conventions: equal scores stay in the order of the images; a recall is compared in whole numbers, since
    ``np.linspace(0, 1, 11)``, as the references have it, exceeds 0.3, 0.6 and 0.7 by one unit.

    Args:
        scores: (n) scores, finite.
        labels: (n) 1 for a positive, -1 for a negative, 0 for an image that is left out.
        interpolation: name of the formula, as above.
        curve: points of the precision-recall curve. ``sklearn`` are those of scikit-learn's ``precision_recall_curve``,
            to compare with numbers made by it: equal scores are one point; a point of recall 0 and precision 1 is
            added, which makes the first of the 11 terms 1; and a recall is compared with ``np.linspace(0, 1, 11)``.

    Raises:
        ValueError: if no label is 1.

    Example:
        >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([-1, 1, -1]), "area")
        0.5
    """
    scores, labels = scores[labels != 0], labels[labels != 0]
    order = np.argsort(-scores, kind="stable")
    is_positive = labels[order] == 1
    if curve == "every image":
        return ranked_average_precision(is_positive, int(is_positive.sum()), interpolation)
    _check_positives(int(is_positive.sum()))
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each group of equal scores
    found = np.append(0, is_positive.cumsum()[last])
    precision = np.append(1.0, found[1:] / (last + 1))
    recall = found / found[-1]
    return _interpolated(precision, recall, recall >= np.linspace(0, 1, 11)[:, None], interpolation)


def ranked_average_precision(
    is_positive: Bool[np.ndarray, " n"], num_positives: int, interpolation: Interpolation
) -> float:
    """Average precision of a ranking, which may lack some of the positives, as that of a detector does.

    Args:
        is_positive: (n) whether each of the ranking is a positive, the first in rank first.
        num_positives: number of positives in all.
        interpolation: name of the formula, as above.

    Raises:
        ValueError: if there are no positives.

    Example:
        >>> ranked_average_precision(np.array([True, False, False, True]), 2, "11-point") == 17 / 22
        True
    """
    _check_positives(num_positives)
    found = is_positive.cumsum()
    reached = 10 * found >= np.arange(11)[:, None] * num_positives
    return _interpolated(found / np.arange(1, len(found) + 1), found / num_positives, reached, interpolation)


def mean_average_precision(
    scores: Float[np.ndarray, "n c"],
    labels: Int[np.ndarray, "n c"],
    interpolation: Interpolation,
    *,
    curve: Curve = "every image",
) -> MeanAveragePrecision:
    """Average precision of each class, and their mean; classes without positives have none and are left out of it.

    Args:
        scores: (n c) scores, a column for each class.
        labels: (n c) labels, as :func:`average_precision` takes them.
        interpolation: name of the formula, as above.
        curve: points of the curve, as :func:`average_precision` takes them.

    Raises:
        ValueError: if no class has a positive.
    """
    classes = [
        average_precision(scores[:, c], labels[:, c], interpolation, curve=curve) if (labels[:, c] == 1).any() else None
        for c in range(labels.shape[1])
    ]
    counted = [each for each in classes if each is not None]
    _check_positives(len(counted))
    return MeanAveragePrecision(float(np.mean(counted)), tuple(classes))


def _check_positives(number: int) -> None:
    if number == 0:
        raise ValueError("there is no positive, of which the precision could be averaged")


def _interpolated(
    precision: NDArray[np.floating],
    recall: NDArray[np.floating],
    reached: Shaped[np.ndarray, "11 n"],
    interpolation: Interpolation,
) -> float:
    if interpolation == "11-point":
        return float(np.where(reached, precision, 0).max(axis=1, initial=0).mean())
    if interpolation == "area":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.diff(recall, prepend=0) @ precision)
