"""The precision of losses."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is if it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
