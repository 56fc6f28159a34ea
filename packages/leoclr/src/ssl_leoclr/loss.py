"""LeOCLR's loss: the query of the uncropped image against the key of each of its crops."""

from jaxtyping import Float
from torch import Tensor

from ssl_core.losses import Columns, info_nce


def leoclr_loss(
    query: Float[Tensor, "n d"],
    keys: Float[Tensor, "p n d"],
    columns: Float[Tensor, "k d"] | Columns,
    *,
    temperature: float = 0.2,
    backend: str | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE of each image with each of its crops, summed over the crops and averaged over the batch.

    l_t = 1/N sum_i [l(u_i, v1_i) + l(u_i, v2_i)]                                                (3)
    l(u, v) = -log(exp(u.v / tau) / (exp(u.v / tau) + sum_k exp(u.q_k / tau)))                   (2)

    Paper: Alkhalefi et al., 2024, 2403.06813, which sums over the batch.  u = query, v1 and v2 = keys,
    q_k = columns, tau = temperature.
    One pass over the queue serves all crops. Each crop has a denominator of its own: no crop is another's positive or
    negative. While the queue is empty the loss is 0. Computed in float32 (float64 for float64), whatever autocast
    says.

    Args:
        query: (n d) l2-normalized, of the uncropped images through the online branch; gradient flows.
        keys: (2 n d) l2-normalized, of the two crops through the momentum branch, no gradient. One key for each
            image, (1 n d), makes it MoCo v2's loss.
        columns: keys of the queue, (k d), l2-normalized, no gradient; ``Columns`` of a queue that is still filling.
        temperature: tau, divisor of the similarities, > 0.
        backend: implementation of ``ssl_core.ops.queue_attention``; None lets it choose.

    Returns:
        Scalar loss, nats.

    Raises:
        ValueError: if sizes disagree or temperature <= 0.

    Example:
        >>> import torch
        >>> query, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> leoclr_loss(query, torch.stack([query, queue]), queue, temperature=0.5)  # log(1 + e^-2) + log(2)
        tensor(0.8201)
    """
    nce = info_nce(query, keys, columns, temperature, backend=backend)  # (p n)
    return nce.sum(dim=0).mean()
