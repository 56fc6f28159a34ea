"""Health of embeddings: two numbers for the training log, each with its reference, and the judgment of a collapse.

A collapsed encoder maps all images to one point (standard deviation 0) or into few dimensions (low rank).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Untrained encoders, to which all images look alike, have a fifth of the even standard deviation and more.
_LOWEST_STD = 0.05  # of the even one
_LOWEST_RANK = 3.0  # below which a batch is all but a line


def embedding_std(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Standard deviation of l2-normalized embeddings over the batch, averaged over dimensions.

    Directions spread evenly over the sphere give 1 / sqrt(d); one point gives 0.
    Paper: Chen and He, 2021, section 4.1 and Figure 2, arXiv 2011.10566.
    Conventions: rows are normalized here; divides by n, not n - 1; float32.

    Args:
        embeddings: (n d) embeddings, n >= 1, floating.

    Returns:
        Scalar without gradient, dimensionless.

    Example:
        >>> embedding_std(torch.eye(2)).item()
        0.5
    """
    normalized_nd = F.normalize(embeddings.detach().float(), dim=1)
    return normalized_nd.std(dim=0, correction=0).mean()


def effective_rank(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Number of dimensions that the embeddings fill, between 1 and min(n, d).

    rank = exp(- sum_k p_k log p_k), p_k = sigma_k / sum_j sigma_j, with sigma the singular values.
    Paper: Garrido et al., RankMe, 2023, eq. (1), arXiv 2210.02885.
    Conventions: rows are taken as they are (not centered, not normalized); 0 log 0 = 0; all zeros give 1. Singular
    values are square roots of the smaller Gram matrix' eigenvalues, in float64.

    Args:
        embeddings: (n d) embeddings, n >= 1, floating; (512 2048) costs some tens of milliseconds on a CPU.

    Returns:
        Scalar without gradient.

    Example:
        >>> round(effective_rank(torch.eye(3, 5)).item(), 4)
        3.0
    """
    rows = embeddings.detach()
    rows = rows.cpu().double() if rows.device.type == "mps" else rows.double()  # which has no float64
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return entropy_rank(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().float())


def entropy_rank(values: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """exp(- sum_k p_k log p_k), p_k = value_k / sum_j value_j: how many of some values, all >= 0, are large.

    Paper: Roy and Vetterli, 2007 (EUSIPCO), definition 1. Conventions: 0 log 0 = 0; all zeros give 1.

    Example:
        >>> entropy_rank(torch.tensor([3.0, 3.0, 0.0])).item()
        2.0
    """
    # The floor only keeps 0 / 0 out: values of this size carry nothing.
    prob = values / values.sum().clamp_min(torch.finfo(torch.float32).tiny)
    entropy: Tensor = torch.special.entr(prob).sum()
    return entropy.exp()


def health(embeddings: Float[Tensor, "n d"]) -> dict[str, float]:
    """Both measures, and what the first is for directions spread evenly, under the names of the log.

    Example:
        >>> measures = health(torch.cat([torch.eye(4), -torch.eye(4)]))
        >>> {name: round(value, 4) for name, value in measures.items()}
        {'embedding_std': 0.5, 'embedding_std_even': 0.5, 'effective_rank': 4.0}
    """
    return {
        "embedding_std": embedding_std(embeddings).item(),
        "embedding_std_even": embeddings.shape[1] ** -0.5,
        "effective_rank": effective_rank(embeddings).item(),
    }


def collapse(measures: Mapping[str, float]) -> str | None:
    """The figures, where the embeddings have collapsed; None where they have not, or nothing was measured.

    They have where their standard deviation is below a twentieth of the even one, or the effective rank below 3.

    Args:
        measures: the measures of :func:`health`, and ``knn_top1``, in [0, 1], where it was measured.

    Example:
        >>> collapse(health(torch.ones(8, 4)) | {"knn_top1": 0.1})
        'std of embeddings 0.0000 (0.5000 if even), effective rank 1.0, kNN top-1 10.0 %'
        >>> collapse(health(torch.eye(4)))
    """
    if "embedding_std" not in measures:
        return None
    std, even, rank = (measures[name] for name in ("embedding_std", "embedding_std_even", "effective_rank"))
    if std >= _LOWEST_STD * even and rank >= _LOWEST_RANK:
        return None
    knn = f", kNN top-1 {100 * measures['knn_top1']:.1f} %" if "knn_top1" in measures else ""
    return f"std of embeddings {std:.4f} ({even:.4f} if even), effective rank {rank:.1f}{knn}"
