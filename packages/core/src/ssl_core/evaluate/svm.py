r"""Linear support vector machines of frozen features, one for each class, and the few images that they learn from.

minimize  1/2 (|w|^2 + b^2)  +  C \sum_i weight_i max(0, 1 - y_i (w x_i + b))^2,

y_i = 1 with weight 2 for images of the class, y_i = -1 with weight 1 for others; as VISSL and PCL fit them with
scikit-learn's LinearSVC. Features are divided by their length before.

Legend: n images, f features, c classes. Labels: 1 of the class, -1 not, 0 left out.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray

from ssl_core import distributed
from ssl_core.evaluate.average_precision import average_precision
from ssl_core.philox import permutation

Labels: TypeAlias = Int[np.ndarray, "n c"]

FOLDS = 3
NEGATIVES = 19  # of each class for each of its positives

_SHOTS_STREAM, _NEGATIVES_STREAM = 0x73686F74, 0x6E656761  # "shot", "nega"
_MAX_ITERATIONS = 2000
_SEED = 0  # of the order in which a fit visits images


class Svms(NamedTuple):
    """A fit for each class.

    Attributes:
        weights: (c f) weights of each class.
        bias: (c) bias of each class.
        not_converged: number of the fits that stopped at their last iteration.
    """

    weights: Float64[np.ndarray, "c f"]
    bias: Float64[np.ndarray, " c"]
    not_converged: int

    def scores(self, features: Float[np.ndarray, "n f"]) -> Float64[np.ndarray, "n c"]:
        """Signed distances, in the units of the margin."""
        scores: NDArray[np.float64] = features @ self.weights.T + self.bias
        return scores


def unit_length(features: Float[np.ndarray, "n f"]) -> Float64[np.ndarray, "n f"]:
    """The features x as x / (|x| + 1e-5), in float64."""
    features = features.astype(np.float64)
    scaled: NDArray[np.float64] = features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-5)
    return scaled


def fit_svms(features: Float[np.ndarray, "n f"], labels: Labels, costs: Sequence[float]) -> Svms:
    """One fit for each class, which several processes share; all call it.

    Args:
        features: (n f) features, which are divided by their length.
        labels: (n c) labels, with at least a 1 and a -1 for each class.
        costs: C of each class.
    """
    classes = list(zip(labels.T, costs, strict=True))
    fits = distributed.shared_out(classes, lambda each: _fit_class(features, *each))
    weights, bias, has_converged = zip(*fits, strict=True)
    return Svms(np.stack(weights), np.array(bias), has_converged.count(False))


def _fit_class(
    features: NDArray[Any], column: NDArray[np.integer], cost: float
) -> tuple[NDArray[np.float64], float, bool]:
    """Weights and bias of one class, and whether the fit has converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC  # a second of import that nothing else needs

    # Not in threads: LIBLINEAR's random numbers are those of the process.
    svm: Any = LinearSVC(  # type: ignore[no-untyped-call]  # scikit-learn's
        C=cost, class_weight={1: 2, -1: 1}, dual=True, max_iter=_MAX_ITERATIONS, random_state=_SEED
    )
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # counted by the caller
        svm.fit(features[column != 0], column[column != 0])
    return svm.coef_[0], float(svm.intercept_[0]), bool(svm.n_iter_ < _MAX_ITERATIONS)


def cross_validated_costs(
    features: Float[np.ndarray, "n f"], labels: Labels, costs: Sequence[float]
) -> tuple[list[float], int]:
    """For each class the first of the costs with the best mean, over three folds, of the average precision.

    Several processes share the classes; all call it.

    Args:
        features: (n f) features, which are divided by their length.
        labels: (n c) labels, with at least three 1 and three -1 for each class.
        costs: values of C to try.

    Returns:
        The cost of each class, and the number of fits that did not converge.
    """
    from sklearn.model_selection import StratifiedKFold

    def try_costs(column: NDArray[np.integer]) -> tuple[float, int]:
        scores, not_converged = np.zeros(len(costs)), 0
        kept = np.flatnonzero(column)
        folds: Any = StratifiedKFold(FOLDS)  # type: ignore[no-untyped-call]  # scikit-learn's
        for train, test in folds.split(kept, column[kept]):
            fitted, scored = kept[train], kept[test]
            for at, cost in enumerate(costs):
                weights, bias, has_converged = _fit_class(features[fitted], column[fitted], cost)
                not_converged += not has_converged
                ranked = features[scored] @ weights + bias
                scores[at] += average_precision(ranked, column[scored], "none", curve="sklearn")
        return costs[int(scores.argmax())], not_converged

    chosen, not_converged = zip(*distributed.shared_out(list(labels.T), try_costs), strict=True)
    return list(chosen), sum(not_converged)


def drawn_for_all(labels: Labels, shots: int, seed: int, draw: int) -> Int[np.ndarray, " m"]:
    """Indices of ``shots`` positives of each class, one class after the other: an image may be there twice.

    All their labels count, so that an image drawn for one class may be one of another too.

    Args:
        labels: (n c) labels, with at least ``shots`` times 1 for each class.
        shots: number of positives to draw for each class.
        seed: seed of the draws.
        draw: number of the draw.

    Example:
        >>> drawn_for_all(np.array([[1, -1], [1, 1]]), 1, seed=0, draw=0).shape
        (2,)
    """
    return np.concatenate([_drawn(labels, c, 1, shots, seed, draw) for c in range(labels.shape[1])])


def drawn_for_each(labels: Labels, shots: int, seed: int, draw: int) -> Labels:
    """The labels of ``shots`` positives and 19 times as many negatives of each class; 0 for all others.

    Arguments as :func:`drawn_for_all`, with enough -1 of each class.
    """
    kept = np.zeros_like(labels)
    for c in range(labels.shape[1]):
        for value, number in ((1, shots), (-1, NEGATIVES * shots)):
            kept[_drawn(labels, c, value, number, seed, draw), c] = value
    return kept


def _drawn(labels: Labels, c: int, value: int, number: int, seed: int, draw: int) -> NDArray[np.int64]:
    found = np.flatnonzero(labels[:, c] == value)
    stream = _SHOTS_STREAM if value == 1 else _NEGATIVES_STREAM
    order = permutation(seed, (stream, draw * labels.shape[1] + c), len(found))
    drawn: NDArray[np.int64] = found[order[:number].numpy()]
    return drawn
