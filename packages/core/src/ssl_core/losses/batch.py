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
