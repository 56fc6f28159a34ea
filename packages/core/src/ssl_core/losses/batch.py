"""Losses within a batch: the other images of the batch, and not a queue, are what a row is compared with.

Everything is computed in float32 (float64 for float64), whatever autocast says.

Shapes: n images, d dimension, m images of the global batch.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_core.losses.precision import at_least_float32
from ssl_core.losses.queue import merged_lse
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
    Never holds n m similarities, forward or backward. A batch of one image has no negatives, and the loss 0. Unit
    length is relied on.

    Args:
        first: (n d) l2-normalised; gradient flows.
        second: (n d) l2-normalised, the same images in the other view; gradient flows.
        temperature: > 0, dimensionless.
        batch: both views of the images of all processes in rank order, own rows included, l2-normalised; gradient
            flows (``ssl_core.distributed.gather_with_grad``). None with one process.
        row_offset: the row of ``batch`` that belongs to the first image.
        backend: of ``queue_attention``; one that knows ``exclude``.

    Returns:
        Scalar mean over the 2n rows, nats; can be differentiated once.

    Raises:
        ValueError: if sizes disagree or temperature <= 0.

    Example:
        >>> views = torch.eye(2)
        >>> nt_xent(views, views, 0.5)  # log(1 + 2 e^-2)
        tensor(0.2395)
    """
    n = len(first)
    first, second = at_least_float32(first), at_least_float32(second)
    sides = (first, second) if batch is None else (at_least_float32(batch[0]), at_least_float32(batch[1]))
    num_columns = len(sides[0])
    if first.shape != second.shape or sides[0].shape != sides[1].shape:
        raise ValueError(
            f"two views must have the same shape, got {tuple(first.shape)} and {tuple(second.shape)}, "
            f"and batch {tuple(sides[0].shape)} and {tuple(sides[1].shape)}"
        )
    if not 0 <= row_offset <= num_columns - n:
        raise ValueError(
            f"batch has {num_columns} rows, which must include the own {n} from row_offset={row_offset} on"
        )
    rows = torch.cat([first, second])
    own = row_offset + torch.arange(n, device=rows.device)
    # Row i leaves out column i of each side, itself and its positive: the negatives' lse keeps a positive that
    # dominates from cancelling.
    of_sides = [
        queue_attention(rows, side.detach(), temperature, exclude=own.repeat(2), normalized=True, backend=backend)[0]
        for side in sides
    ]
    lse, _ = merged_lse(torch.stack(of_sides))
    positive = ((first * second).sum(dim=1) / temperature).repeat(2)
    loss = F.softplus(lse - positive).sum()

    # The columns' gradient: with p_ij what row i gives to column k_j, sum_i p_ij q_i / tau = d/dk_j of
    # sum_i exp(q_i.k_j / tau - log Z_i) at constant q and Z. So the roles change, and the term's value is removed.
    log_normalizer = torch.logaddexp(lse, positive).detach()
    image = torch.arange(num_columns, device=rows.device) - row_offset
    own_image = torch.where((image >= 0) & (image < n), image, -1).repeat(2)
    columns = rows if batch is None else torch.cat(sides)
    for view, bias in zip((first, second), torch.split(log_normalizer, n), strict=True):
        log_mass, _ = queue_attention(
            columns, view.detach(), temperature, exclude=own_image, key_bias=-bias, backend=backend
        )
        loss = loss + (log_mass.exp() - log_mass.exp().detach()).sum()
    return loss / (2 * n)


def negative_cosine(
    prediction: Float[Tensor, "n d"],
    target: Float[Tensor, "n d"],
) -> Float[Tensor, " n"]:
    """Minus the cosine of each row and its target: SimSiam's loss, and BYOL's but for 2 + 2 D.

    D_i = -z_i.y_i / (|z_i| |y_i|)
    Paper: Chen and He, 2021, eq. (1), 2011.10566; BYOL: Grill et al., 2020, eq. (2), 2006.07733.  z = prediction,
    y = target.
    The cosine with a row of zeros is 0.

    Args:
        prediction: (n d), of any length; gradient flows.
        target: (n d), of any length, no gradient.

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

    L = sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2, C the (d d) correlations over the batch of the views'
    dimensions: each less its mean over its biased standard deviation, with 1e-5 added to the variance as BatchNorm
    does.
    Paper: Zbontar et al., 2021, eq. (1) and (2), 2103.03230.  lambda = off_diagonal_weight.
    With several processes each passes the rows of all (``ssl_core.distributed.gather_with_grad``) and computes the
    loss of the whole batch; the average over processes, as DistributedDataParallel takes it, is its gradient.

    Args:
        first: (n d), of any length; gradient flows.
        second: (n d), the same images in the other view; gradient flows.
        off_diagonal_weight: of the sum over pairs of dimensions.

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
        raise ValueError(f"barlow_twins standardises over the batch, which needs at least 2 images, got {n}")
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
