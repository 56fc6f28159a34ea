"""Matrices as kernels read them that take a stride from row to row."""

from torch import Tensor


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor with each row contiguous, itself where it is so already."""
    return tensor if tensor.shape[1] <= 1 or tensor.stride(1) == 1 else tensor.contiguous()
