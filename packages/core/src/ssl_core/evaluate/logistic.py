"""Logistic regression of frozen features, with the strength of its L2 penalty chosen on validation images.

minimize  - sum_i log softmax(W x_i + b)[y_i]  +  penalty / 2 |W|^2,

by L-BFGS, over penalties from weak to strong, each fit from the weights of the one before. The bias b is not
penalized; C, as scikit-learn calls it, is 1 / penalty. Where an image has a label for each class, each class is told
from all others by a fit of its own, with two rows of weights. That is scikit-learn's binomial fit at twice this C, or
at C with ``binomial``, which doubles the penalty.

The loss is the sum over images, in float64. A fit stops by ``gradient`` and ``decrease`` as in scikit-learn 0.22, from
which published numbers are. Later versions divide by the number of images before they compare, and so stop after a few
iterations where a fit here goes on to its limit.

Legend: n images, f features, k classes, r rows of weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

# Multiplications of a step from which threads pay; with fewer they wait, beside other work for most of the time.
_THREADED = 2**26


@dataclass(frozen=True)
class Limits:
    """The limits at which a fit stops.

    Attributes:
        iterations: largest number of iterations.
        gradient: size of the largest component of the gradient below which a fit has converged.
        decrease: decrease of the loss in an iteration, relative to the loss, below which a fit has converged.
    """

    iterations: int = 100
    gradient: float = 1e-4
    decrease: float = 2.2e-9


class LogisticFit(NamedTuple):
    """A fit, or one for each class.

    Attributes:
        weights: (k f+1) weights that give the scores, the bias last.
        last: (r f+1) weights of the last fit, from which another may start.
        iterations: number of iterations of all fits.
        converged: whether all fits have converged.
        gradient: largest component of a fit's gradient at its end.
    """

    weights: Float64[Tensor, "k g"]
    last: Float64[Tensor, "r g"]
    iterations: int
    converged: bool
    gradient: float

    def scores(self, features: Float[Tensor, "n f"]) -> Float64[Tensor, "n k"]:
        """Scores of each class, on the CPU."""
        return (features.double() @ self.weights[:, :-1].T + self.weights[:, -1]).cpu()


class Choice(NamedTuple):
    """The results of a grid of penalties.

    Attributes:
        penalty: first of the penalties with the best score.
        scores: score of each penalty on the validation images.
        converged: whether the fits of each penalty have converged.
        last: weights of the last fit.
    """

    penalty: float
    scores: list[float]
    converged: list[bool]
    last: Float64[Tensor, "r g"]


def fit_classifier(
    features: Float[Tensor, "n f"],
    labels: Int64[Tensor, "n *k"],
    num_classes: int,
    penalty: float,
    *,
    limits: Limits,
    start: Float64[Tensor, "r g"] | None = None,
    binomial: bool = False,
) -> LogisticFit:
    """A classifier of one penalty.

    Args:
        features: (n f) features, on the device that computes.
        labels: (n) class of each image; or (n k), where 1 says that it is of a class, and anything else not.
        num_classes: number of classes.
        penalty: strength of the L2 penalty, > 0.
        limits: limits at which a fit stops.
        start: weights of an earlier fit to start from; None is zeros. Where each class has a fit of its own, each fit
            starts from the one before.
        binomial: whether the penalty is that of a binomial fit, where each class has a fit of its own.

    Example:
        >>> features, labels = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
        >>> fit_classifier(features, labels, 2, 1.0, limits=Limits()).scores(features).argmax(dim=1)
        tensor([0, 1])
    """
    if labels.ndim == 1:
        return _fit(features, labels, num_classes, penalty, limits, start)
    fits: list[LogisticFit] = []
    penalty *= 1 + binomial
    for column in (labels == 1).long().unbind(dim=1):
        fits.append(_fit(features, column, 2, penalty, limits, start))
        start = fits[-1].last
    return LogisticFit(
        torch.stack([fit.weights[1] - fit.weights[0] for fit in fits]),
        fits[-1].last,
        sum(fit.iterations for fit in fits),
        all(fit.converged for fit in fits),
        max(fit.gradient for fit in fits),
    )


def choose_penalty(
    features: Float[Tensor, "n f"],
    labels: Int64[Tensor, "n *k"],
    num_classes: int,
    penalties: Sequence[float],
    score: Callable[[LogisticFit], float],
    *,
    limits: Limits,
    binomial: bool = False,
) -> Choice:
    """The penalty whose classifier has the best score, each fitted from the weights of the one before.

    ``penalties`` are tried in their order, ``score`` gives a number from a classifier; other arguments as
    :func:`fit_classifier`.
    """
    scores, converged, last = [], [], None
    for penalty in penalties:
        classifier = fit_classifier(
            features, labels, num_classes, penalty, limits=limits, start=last, binomial=binomial
        )
        scores.append(score(classifier))
        converged.append(classifier.converged)
        last = classifier.last
    assert last is not None
    return Choice(penalties[scores.index(max(scores))], scores, converged, last)


def _fit(
    features: Tensor, labels: Tensor, num_rows: int, penalty: float, limits: Limits, start: Tensor | None
) -> LogisticFit:
    from scipy.optimize import minimize  # half a second of import that nothing else needs
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has none

    ones = torch.ones_like(features[:, :1])
    inputs = torch.cat([features, ones], dim=1).double()
    labels = labels.to(inputs.device)[:, None]

    def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = torch.from_numpy(flat).to(inputs.device).reshape(num_rows, -1)
        penalized = weights.clone()
        penalized[:, -1] = 0
        log_prob = (inputs @ weights.T).log_softmax(dim=1)
        loss = penalty / 2 * penalized.square().sum() - log_prob.gather(1, labels).sum()
        residual = log_prob.exp_().scatter_add_(1, labels, -ones.double())
        gradient = torch.addmm(penalized, residual.T, inputs, beta=penalty)
        return loss.item(), gradient.flatten().cpu().numpy()

    zeros = inputs.new_zeros(num_rows, inputs.shape[1])
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if inputs.numel() * num_rows >= _THREADED else 1)
    try:
        with threadpool_limits(1, user_api="blas"):  # SciPy's, which works on short vectors
            found = minimize(  # type: ignore[no-untyped-call]  # SciPy's
                loss_and_gradient,
                (zeros if start is None else start).flatten().cpu().numpy(),
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": limits.iterations, "gtol": limits.gradient, "ftol": limits.decrease},
            )
    finally:
        torch.set_num_threads(threads)
    weights = torch.from_numpy(found.x).reshape(zeros.shape).to(zeros.device)
    return LogisticFit(weights, weights, found.nit, bool(found.success), float(abs(found.jac).max()))
