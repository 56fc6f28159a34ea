"""Losses within a batch: a row is compared with the other images of the batch, and not with a queue.

Everything is computed in float32 (float64 for float64), whatever autocast says.

Shapes: n images, d dimension, m images of the global batch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_core.losses.precision import at_least_float32
from ssl_core.ops import queue_attention


def nt_xent(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    temperature: float,
    *,
    batch: tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]] | None = None,
    row_offset: int = 0,
    backend: str | None = None,
) -> Float[Tensor, ""]:
    """SimCLR's loss of two views: each row must tell its other view from all other rows of both.

    L = 1 / 2n sum over the rows z_i of both views of -log(exp(z_i.z_p / tau) / sum_{k != i} exp(z_i.z_k / tau))
    Paper: Chen et al., 2020, eq. (1) and algorithm 1, 2002.05709.  tau = temperature, z_p = the row's other view.
    The loss never holds n m similarities, forward or backward, and relies on unit length. A batch of one image has no
    negatives, and the loss 0.

    Args:
        first: (n d) l2-normalized; gradient flows.
        second: (n d) l2-normalized, the same images in the other view; gradient flows.
        temperature: tau, divisor of the similarities, > 0.
        batch: both views of the images of all processes in rank order, own rows included, l2-normalized; gradient
            flows (``ssl_core.distributed.gather_with_grad``). None with one process.
        row_offset: row of ``batch`` that belongs to the first image.
        backend: back-end of ``queue_attention``, one that knows ``exclude``.

    Returns:
        Scalar mean over the 2n rows, nats; can be differentiated once.

    Raises:
        ValueError: if sizes disagree or temperature <= 0.

    Example:
        >>> views = torch.eye(2)
        >>> nt_xent(views, views, 0.5)  # log(1 + 2 e^-2)
        tensor(0.2395)
    """
    views = at_least_float32(first), at_least_float32(second)
    sides = views if batch is None else (at_least_float32(batch[0]), at_least_float32(batch[1]))
    n, m = len(first), len(sides[0])
    if first.shape != second.shape or sides[0].shape != sides[1].shape:
        raise ValueError(
            f"two views must have the same shape, got {tuple(first.shape)} and {tuple(second.shape)}, "
            f"and batch {tuple(sides[0].shape)} and {tuple(sides[1].shape)}"
        )
    if not 0 <= row_offset <= m - n:
        raise ValueError(f"batch has {m} rows, which must include the own {n} from row_offset={row_offset} on")
    has_batch = batch is not None
    inputs = (*views, *sides) if has_batch else views
    with_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    with torch.no_grad():
        value, gradients = _nt_xent(
            views, sides, temperature, row_offset, backend, has_batch=has_batch, with_gradient=with_gradient
        )
    if not with_gradient:
        return value
    loss: Tensor = _WithGradients.apply(value, *inputs, *gradients)
    return loss


def _nt_xent(
    views: tuple[Tensor, Tensor],
    sides: tuple[Tensor, Tensor],
    temperature: float,
    row_offset: int,
    backend: str | None,
    *,
    has_batch: bool,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The loss and, if asked for, its gradients to both views and, where sides are not the views, to both sides.

    Let p_ij be the probability that row i gives to column k_j. Up to the factor 1 / (2 n tau), the term of row i has
    the gradient sum_j p_ij k_j - (1 - p_ii) z_p to z_i, -(1 - p_ii) z_i to z_p, and p_ij z_i to any other column k_j.
    """
    n, m = len(views[0]), len(sides[0])
    own = row_offset + torch.arange(n, device=views[0].device)  # (n)
    positive = (views[0] * views[1]).sum(dim=1) / temperature  # (n)
    losses, normalizers, misses, gradients = [], [], [], []
    for view in views:
        # Row i leaves out column i of each side, which is itself or its positive: in the lse of the negatives alone, a
        # dominant positive does not cancel.
        negatives = [
            queue_attention(view, side, temperature, exclude=own, normalized=True, backend=backend) for side in sides
        ]  # (n), (n d) of each side
        lse = torch.logaddexp(negatives[0][0], negatives[1][0])  # (n)
        losses.append(F.softplus(lse - positive))
        if with_gradient:
            normalizers.append(torch.logaddexp(lse, positive))  # (n)
            misses.append(torch.sigmoid(lse - positive))  # (n)
            weights = [(side_lse - normalizers[-1]).exp()[:, None] for side_lse, _ in negatives]  # (n 1) of each side
            gradients.append(negatives[0][1].mul_(weights[0]).addcmul_(weights[1], negatives[1][1]))  # (n d)
    loss = torch.stack(losses).mean()
    if not with_gradient:
        return loss, []

    miss_n1 = (misses[0] + misses[1])[:, None]
    gradients[0].addcmul_(miss_n1, views[1], value=-1)
    gradients[1].addcmul_(miss_n1, views[0], value=-1)
    if has_batch:
        gradients += [torch.zeros_like(side) for side in sides]  # (m d)
    # Here the columns become the queries: sum_i p_ij z_i is the mean of z under the weights
    # exp(z_i.k_j / tau - log Z_i), times the sum of these.
    image = torch.arange(m, device=own.device) - row_offset
    own_image = torch.where((image >= 0) & (image < n), image, -1)  # (m)
    for side, gradient in zip(sides, gradients[-2:], strict=True):
        for view, normalizer in zip(views, normalizers, strict=True):
            log_mass, mean = queue_attention(
                side, view, temperature, exclude=own_image, key_bias=-normalizer, backend=backend
            )  # (m), (m d)
            gradient.addcmul_(log_mass.exp()[:, None], mean)
    return loss, [gradient.div_(2 * n * temperature) for gradient in gradients]


class _WithGradients(torch.autograd.Function):
    """A scalar whose gradients to the tensors it is made of are known: ``apply(value, *tensors, *gradients)``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors_and_gradients: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors_and_gradients[len(tensors_and_gradients) // 2 :])
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor | None, ...]:
        # Gradients are on in a backward only under create_graph=True (and while Dynamo traces it).
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("nt_xent has no second derivative, which create_graph=True asks for")
        gradients = ctx.saved_tensors
        return None, *(grad_value * gradient for gradient in gradients), *[None] * len(gradients)


def negative_cosine(
    prediction: Float[Tensor, "n d"],
    target: Float[Tensor, "n d"],
) -> Float[Tensor, " n"]:
    """Minus the cosine of each row and its target: D of SimSiam's loss, and of BYOL's, which is 2 + 2 D.

    D_i = -z_i.y_i / (|z_i| |y_i|)
    Paper: Chen and He, 2021, eq. (1), 2011.10566; BYOL: Grill et al., 2020, eq. (2), 2006.07733.  z = prediction,
    y = target.
    The cosine with a row of zeros is 0.

    Args:
        prediction: (n d) rows of any length; gradient flows.
        target: (n d) rows of any length, no gradient.

    Returns:
        (n) loss per row, in [-1, 1].

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> negative_cosine(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0]]))
        tensor([-0.6000])
    """
    _check_same_shape("prediction and target", prediction, target)
    return -F.cosine_similarity(at_least_float32(prediction), at_least_float32(target.detach()), dim=1)


def barlow_twins(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    *,
    off_diagonal_weight: float = 0.0051,
) -> Float[Tensor, ""]:
    """Barlow Twins' loss of two views: each dimension agrees with itself in the other view, and with no other one.

    L = sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2

    C (d d) holds the correlations of the views' dimensions over the batch. A dimension is standardized by its mean and
    its biased standard deviation, with 1e-5 added to the variance as BatchNorm does.
    Paper: Zbontar et al., 2021, eq. (1) and (2), 2103.03230.  lambda = off_diagonal_weight.
    With several processes each passes the rows of all (``ssl_core.distributed.gather_with_grad``) and computes the
    loss of the whole batch; the average over processes, as DistributedDataParallel takes it, is its gradient.

    Args:
        first: (n d) rows of any length; gradient flows.
        second: (n d) rows of the same images in the other view; gradient flows.
        off_diagonal_weight: lambda, weight of the sum over pairs of different dimensions.

    Returns:
        Scalar, not a mean: it grows with d.

    Raises:
        ValueError: if the shapes differ, or n is 1, whose dimensions have no deviation.

    Example:
        >>> first, second = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
        >>> barlow_twins(first, second)  # no correlation
        tensor(1.)
    """
    _check_same_shape("two views", first, second)
    n, d = first.shape
    if n < 2:
        raise ValueError(f"barlow_twins standardizes over the batch, which needs at least 2 images, got {n}")
    with torch.autocast(first.device.type, enabled=False):
        first, second = (F.batch_norm(at_least_float32(view), None, None, training=True) for view in (first, second))
        if 2 * n < d:
            # sum_ij C_ij^2 = |A^T B|^2 / n^2 = <A A^T, B B^T> / n^2: two (n n) instead of one (d d), in less time.
            # The rank of C is below d / 2 here, so the off-diagonal sum is of the order of the diagonal's or more, and
            # the difference cancels little.
            diagonal_d = (first * second).mean(dim=0)
            sum_of_squares = ((first @ first.T) * (second @ second.T)).sum() / n**2
            off_diagonal = sum_of_squares - diagonal_d.square().sum()
        else:
            correlation_dd = first.T @ (second / n)
            diagonal_d = correlation_dd.diagonal()
            off_diagonal = correlation_dd.square().fill_diagonal_(0).sum()
    return (1 - diagonal_d).square().sum() + off_diagonal_weight * off_diagonal


def _check_same_shape(names: str, first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"{names} must have the same shape, got {tuple(first.shape)} and {tuple(second.shape)}")
