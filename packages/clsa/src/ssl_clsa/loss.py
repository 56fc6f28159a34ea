"""CLSA's loss: InfoNCE of weak queries, whose softmax over the keys is the target of the strong queries."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_core.losses import Columns, key_softmax


class CLSALoss(NamedTuple):
    """Scalars, nats, with gradient to the queries.

    Attributes:
        total: contrastive + divergence_weight times divergence, the loss.
        contrastive: InfoNCE of the weak queries.
        divergence: cross-entropy of the strong queries with the weak ones' softmax.
    """

    total: Tensor
    contrastive: Tensor
    divergence: Tensor


def clsa_loss(
    weak_queries: Float[Tensor, "w n d"],
    strong_queries: Float[Tensor, "s n d"],
    key: Float[Tensor, "n d"],
    columns: Float[Tensor, "k d"] | Columns,
    *,
    temperature: float = 0.2,
    divergence_temperature: float = 0.2,
    divergence_weight: float = 1.0,
    reduction: str = "sum",
    detach_target: bool = True,
    backend: str | None = None,
) -> CLSALoss:
    """Contrastive learning with stronger augmentations, averaged over the batch.

    L = sum_i L_C(i) + beta sum_i sum_j L_D(i, j)                          (Alg. 1, line 7)
    L_C(i) = -log p(z | z'_i)                                              (1)
    L_D(i, j) = -sum_k p2(z_k | z'_i) log p2(z_k | z''_j)                  (4)
    p(z_k | z') = softmax over all k of z'.z_k / tau, p2 at tau_2          (3)

    Paper: Wang and Qi, 2021, 2104.07713.  z'_i = weak_queries, z''_j = strong_queries, z = key, tau = temperature,
    beta = divergence_weight; k runs over the own key and the columns.
    tau_2 = divergence_temperature divides both sides of (4); it is the code's ``clsa_t``.
    Cross-entropy is linear in its target, so sum_i L_D(i, j) is w times the cross-entropy with the mean target: one
    pass over the queue and s cross-entropies give all w s terms.
    The loss is 0 where a query has no key but its own. Computed in float32 (float64 for float64), whatever autocast
    says.

    Args:
        weak_queries: (w n d) w >= 1 weak views, l2-normalized, of the online branch; gradient flows.
        strong_queries: (s n d) strong views, l2-normalized, of the online branch; s = 0 leaves InfoNCE alone;
            gradient flows.
        key: (n d) l2-normalized, of the momentum branch, no gradient; the positive of all queries.
        columns: keys that all queries are compared with: a queue (k d) alone, as in the paper, or ``Columns`` with the
            other keys of the global batch, as in the released code.
        temperature: tau, divisor of InfoNCE's similarities, > 0.
        divergence_temperature: tau_2, divisor of the similarities on both sides of the divergence, > 0.
        divergence_weight: beta, weight of the divergence, >= 0.
        reduction: way to reduce: "sum" over views and pairs of views, as in the released code, or their "mean".
        detach_target: whether the target is a constant. False lets gradient into the weak queries through it as well;
            that is dense, in n k memory for each set of queries, and for backend "reference" alone.
        backend: implementation of ``ssl_core.ops.queue_attention``; None lets it choose.

    Returns:
        Total, contrastive and divergence.

    Raises:
        ValueError: if sizes disagree, a value is outside its range, or ``detach_target=False`` comes with another
            back-end than the reference.

    Example:
        >>> import torch
        >>> query, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> clsa_loss(query[None], query[None], query, queue, temperature=0.5, divergence_temperature=0.5)
        CLSALoss(total=tensor(0.4923), contrastive=tensor(0.1269), divergence=tensor(0.3653))
    """
    for name, value in {"temperature": temperature, "divergence_temperature": divergence_temperature}.items():
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")
    if not divergence_weight >= 0:
        raise ValueError(f"divergence_weight must be >= 0, got {divergence_weight}")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    if len(weak_queries) == 0:
        raise ValueError("weak_queries holds no view; InfoNCE and the target of the divergence need at least one")
    if not detach_target:
        if backend not in (None, "reference"):
            raise ValueError(f"detach_target=False needs backend='reference', got {backend!r}")
        backend = "reference"

    num_weak, num_strong = len(weak_queries), len(strong_queries)
    queries, temperatures = [weak_queries, strong_queries], [temperature] * num_weak
    temperatures += [divergence_temperature] * num_strong
    # With equal temperatures the weak queries' softmax is InfoNCE's and the target's.
    target_of = slice(0, num_weak)
    if num_strong > 0 and divergence_temperature != temperature:
        target_of = slice(num_weak + num_strong, None)
        queries.append(weak_queries)
        temperatures += [divergence_temperature] * num_weak
    softmax = key_softmax(torch.cat(queries), key, columns, temperatures, backend=backend)  # (v n), v >= w + s
    # The mean of the keys under the mean of the weak queries' softmaxes.
    target = softmax.expectation[target_of].mean(dim=0)  # (n d)
    if detach_target:
        target = target.detach()
    strong_lse, strong_logit = softmax.lse[num_weak:][:num_strong], (strong_queries * target).sum(dim=-1)  # (s n)
    contrastive_w = -softmax.log_prob[:num_weak].mean(dim=1)
    divergence_s = (strong_lse - strong_logit / divergence_temperature).mean(dim=1)
    contrastive, divergence = contrastive_w.sum(), num_weak * divergence_s.sum()
    if reduction == "mean":
        contrastive, divergence = contrastive / num_weak, divergence / max(1, num_weak * num_strong)
    return CLSALoss(contrastive + divergence_weight * divergence, contrastive, divergence)
