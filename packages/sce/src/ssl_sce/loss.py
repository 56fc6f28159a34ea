"""SCE's loss: a query's softmax over its key and past keys, against a one-hot mixed with its key's similarities."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from ssl_core.losses import Columns, soft_target_cross_entropy, soft_target_terms


def sce_loss(
    query: Float[Tensor, "n d"] | Float[Tensor, "v n d"],
    key: Float[Tensor, "n d"],
    columns: Float[Tensor, "k d"] | Columns,
    *,
    temperature: float | Float[Tensor, ""] = 0.1,
    target_temperature: float | Float[Tensor, ""] = 0.05,
    coefficient: float | Float[Tensor, ""] = 0.5,
    self_similarity: str = "mask",
    weights: tuple[float, float, float] | None = None,
    backend: str | None = None,
) -> Float[Tensor, ""]:
    """Similarity contrastive estimation, averaged over the batch.

    L = -1/N sum_i sum_k w2_ik log p1_ik                              (8)
    w2_ik = lambda 1[i=k] + (1 - lambda) s2_ik                        (6)
    s2_i = softmax over k != i of z2_i.z2_k / tau_m                   (3)
    p1_i = softmax over all k of z1_i.z2_k / tau                      (7)
    L = lambda L_InfoNCE + mu L_ReSSL + eta L_Ceil, mu = eta = 1 - lambda        (9)

    Paper: Denize et al., 2023, 2111.14585.  z1 = query, z2 = key, lambda = coefficient, tau = temperature,
    tau_m = target_temperature, (lambda, mu, eta) = weights; k runs over the own key and the columns.
    coefficient = 1 is MoCo v2's loss, weights = (0, 1, 0) is ReSSL's. While the queue is empty the loss is 0.
    Computed in float32 (float64 for float64), whatever autocast says.

    Args:
        query: (n d), or (v n d) for v views that share a key's target in one pass over the queue; l2-normalized, of
            the online branch; gradient flows.
        key: (n d) l2-normalized, of the momentum branch, no gradient; the positive and the origin of the
            target.
        columns: keys that all queries are compared with; a (k d) tensor is a queue alone.
        temperature: tau, divisor of the query's similarities, > 0.
        target_temperature: tau_m, divisor of the key's similarities, > 0; below ``temperature`` it sharpens the target.
        coefficient: lambda, weight of the one-hot in the target, in [0, 1]; left alone with ``weights``.
        self_similarity: the own key in s2: "mask" keeps it out, as in the paper; "zero" gives it the similarity 0, as
            in the authors' code.
        weights: free (lambda, mu, eta) of equation (9) in place of ``coefficient``; with "mask" only.
        backend: implementation of ``ssl_core.ops.queue_attention``; None lets it choose.

    Returns:
        Scalar mean loss, nats.

    Raises:
        ValueError: if sizes disagree, a temperature is <= 0, ``self_similarity`` is another word, or ``weights``
            come with "zero" or with another ``coefficient`` than 0.5.

    Example:
        >>> import torch
        >>> query, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> sce_loss(query, query, queue, temperature=0.5, coefficient=0.75)
        tensor(0.6269)
    """
    options: dict[str, Any] = {
        "temperature": temperature,
        "target_temperature": target_temperature,
        "backend": backend,
    }
    if weights is None:
        return soft_target_cross_entropy(
            query, key, key, columns, coefficient=coefficient, self_similarity=self_similarity, **options
        ).mean()
    if coefficient != 0.5:
        raise ValueError(f"weights {weights} take the place of coefficient; leave it alone, got {coefficient}")
    if self_similarity != "mask":
        raise ValueError(f"free weights need self_similarity='mask', got {self_similarity!r}")
    terms = soft_target_terms(query, key, key, columns, **options)  # each (n), or (v n)
    contrastive, relational, ceiling = weights
    return (contrastive * terms.contrastive + relational * terms.relational + ceiling * terms.ceiling).mean()
