"""CLIM's loss: the query of a mixed image against the keys of both images in it, at every resolution."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_core.losses import Columns, info_nce


def clim_loss(
    mixed_query: Float[Tensor, "n d"] | Float[Tensor, "r n d"],
    anchor_key: Float[Tensor, "n d"] | Float[Tensor, "s n d"],
    neighbour_key: Float[Tensor, "n d"] | Float[Tensor, "s n d"],
    ratio: Float[Tensor, " n"] | Float[Tensor, "r n"],
    columns: Float[Tensor, "k d"] | Columns,
    *,
    temperature: float = 0.2,
    reduction: Literal["sum", "mean"] = "sum",
    backend: str | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE of a mixed image with each of its two images, weighted by what it shows of them.

    l_ab = 1/N sum_i [lambda_ai NCE(q_ai, k_bi) + (1 - lambda_ai) NCE(q_ai, k~_bi)]              (4)
    L = sum_ab l_ab over the resolutions a of the query and b of the keys                        (6)
    NCE(q, k) = -log(exp(q.k / tau) / (exp(q.k / tau) + sum_j exp(q.k_j / tau)))                 (1)

    Paper: Li et al., 2020, 2011.02697.  q = mixed_query, k = anchor_key,
    k~ = neighbour_key, lambda = ratio, k_j = columns, tau = temperature.
    One pass over the queue for all resolutions. Each term has a denominator of its own: neither image is a negative
    of the other's. While the queue is empty the loss is 0. Computed in float32 (float64 for float64), whatever
    autocast says.

    Args:
        mixed_query: (n d), or (r n d) at r resolutions, l2-normalized; gradient flows.
        anchor_key: (n d), or (s n d) at s resolutions, l2-normalized, no gradient.
        neighbour_key: shaped as ``anchor_key``, l2-normalized, no gradient.
        ratio: (n), or (r n), fraction of each mixed image that is its anchor's, in [0, 1]. Ones make it MoCo v2's loss.
        columns: keys of the queue, (k d), l2-normalized, no gradient; ``Columns`` of a queue that is still filling.
        temperature: tau, divisor of the similarities, > 0.
        reduction: way to reduce: ``sum`` over pairs of resolutions, as in equation (6), or their ``mean``.
        backend: implementation of ``ssl_core.ops.queue_attention``; None lets it choose.

    Returns:
        Scalar loss, nats.

    Raises:
        ValueError: if sizes disagree or temperature <= 0.

    Example:
        >>> query, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> ratio = torch.tensor([0.75])  # 0.75 log(1 + e^-2) + 0.25 log(2)
        >>> clim_loss(query, query, queue, ratio, queue, temperature=0.5)
        tensor(0.2685)
    """
    queries = mixed_query
    keys = torch.stack([anchor_key, neighbour_key])
    if queries.ndim == 2:
        queries = queries[None]  # (r n d)
    if keys.ndim == 3:
        keys = keys[:, None]  # (2 s n d)
    if ratio.ndim == 1:
        ratio = ratio[None]  # (r n)
    if keys.shape[2:] != queries.shape[1:] or ratio.shape != queries.shape[:2]:
        raise ValueError(
            f"sizes disagree: mixed_query {tuple(mixed_query.shape)}, keys {tuple(anchor_key.shape)}, "
            f"ratio {tuple(ratio.shape)}"
        )
    num_queries, num_keys = len(queries), keys.shape[1]
    positives = keys[:, :, None].expand(-1, -1, num_queries, -1, -1)  # (2 s r n d)
    nce = info_nce(
        queries.flatten(0, 1),  # (rn d)
        positives.reshape(2 * num_keys, -1, queries.shape[2]),  # (2s rn d)
        columns,
        temperature,
        backend=backend,
    )  # (2s rn)
    of_anchor, of_neighbour = nce.view(2, num_keys, *ratio.shape)  # (s r n) each
    loss: Tensor = ratio * of_anchor + (1 - ratio) * of_neighbour  # (s r n)
    return loss.mean() if reduction == "mean" else loss.sum(dim=(0, 1)).mean()
