"""DSSL's loss: a base's loss of standard views, and heavy views attracted to the standard views that they come from."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_core.losses import negative_cosine


class Embedded(NamedTuple):
    """One view after the networks, in the paper's words.

    Attributes:
        prediction: (n d) z, with gradient; None where no term asks for it.
        target: (n d) y, without gradient; None where no term asks for it.
    """

    prediction: Tensor | None
    target: Tensor | None


def given(tensor: Tensor | None) -> Tensor:
    """A prediction or target that a term of the loss has asked for."""
    assert tensor is not None, "a term asks for what was not made"
    return tensor


def directional_loss(
    standard: Sequence[Embedded],
    heavy: Sequence[Embedded],
    pair_loss: Callable[[Embedded, Embedded], Float[Tensor, ""]],
    *,
    sources: Sequence[int] = (0, 1),
    alpha: float = 1.0,
    beta: float = 0.0,
    gamma: float = 1.0,
    delta: float = 0.0,
) -> Float[Tensor, ""]:
    """The weighted sum of the four comparisons between standard views v and heavy views v^.

    L = alpha L_S(v, v') + beta L_S(v^, v^') + gamma L_A(v^ -> v) + delta L_A(v -> v^)            (6)
    L_A(v^ -> v) = 1/2 [D(z^, y) + D(z^', y')],  D(z, y) = -<z, y> / (|z| |y|)                   (4)

    Paper: Bai et al., 2022, 2110.13555.  L_S = pair_loss, z = prediction, y = target.

    With alpha = gamma = 1 and beta = delta = 0 it is DSSL, eq. (5): heavy views learn from standard ones, and nothing
    learns from heavy ones. With all four at 1 it is the symmetric method, with alpha alone the base. A term of weight
    0 is not computed. The 1/2 is the released code's mean over the heavy views, here over any number of them; L_S of
    several pairs of standard views is their mean as well.

    Args:
        standard: pairs of standard views of the same images, one pair after the other.
        heavy: heavy views of these images; two where beta is not 0.
        pair_loss: function that gives the base's scalar loss of two views.
        sources: standard view that each heavy view comes from.
        alpha: weight of the base's loss of standard views, >= 0.
        beta: weight of the base's loss of heavy views, >= 0.
        gamma: weight of heavy predictions against standard targets, >= 0.
        delta: weight of standard predictions against heavy targets, >= 0.

    Returns:
        Scalar loss.

    Raises:
        ValueError: if heavy views and sources do not match, or beta asks for two heavy views.

    Example:
        >>> from ssl_dssl import SimSiam
        >>> along, across = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
        >>> standard = [Embedded(along, along), Embedded(along, along)]
        >>> heavy = [Embedded(along, along), Embedded(across, across)]
        >>> directional_loss(standard, heavy, SimSiam().loss)  # -1, and the mean of -1 and 0
        tensor(-1.5000)
    """
    if len(heavy) != len(sources):
        raise ValueError(f"each heavy view needs its source, got {len(heavy)} heavy views and sources {tuple(sources)}")
    if beta and len(heavy) != 2:
        raise ValueError(f"beta {beta:g} is the weight of a pair of heavy views, got {len(heavy)} of them")
    terms = []
    if alpha:
        pairs = [pair_loss(standard[i], standard[i + 1]) for i in range(0, len(standard), 2)]
        terms.append(alpha * torch.stack(pairs).mean())
    if beta:
        terms.append(beta * pair_loss(*heavy))
    sided = [(view, standard[source]) for view, source in zip(heavy, sources, strict=True)]
    if gamma and sided:
        terms.append(gamma * _mean_cosine([(view.prediction, source.target) for view, source in sided]))
    if delta and sided:
        terms.append(delta * _mean_cosine([(source.prediction, view.target) for view, source in sided]))
    if not terms:
        raise ValueError(
            f"nothing is left to learn from {len(standard)} standard and {len(heavy)} heavy views with "
            f"alpha {alpha:g}, beta {beta:g}, gamma {gamma:g} and delta {delta:g}"
        )
    return torch.stack(terms).sum()


def _mean_cosine(pairs: Sequence[tuple[Tensor | None, Tensor | None]]) -> Tensor:
    return torch.stack([negative_cosine(given(one), given(other)).mean() for one, other in pairs]).mean()
