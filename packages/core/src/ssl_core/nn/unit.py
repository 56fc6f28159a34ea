"""Rows of length 1, such as queries and keys."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def unit(projection: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Rows scaled to length 1, in float32 whatever autocast says, and in float64 where they are float64.

    Args:
        projection: (n d) rows, or more dimensions before d; gradient flows.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16))
        tensor([[0.6000, 0.8000]])
    """
    return F.normalize(projection.to(torch.promote_types(projection.dtype, torch.float32)), dim=-1)
