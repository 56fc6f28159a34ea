"""Matrices as kernels read them: some take a stride from row to row, others want them aligned."""

from torch import Tensor


def contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor with each row contiguous, itself where it is so already."""
    return tensor if tensor.shape[1] <= 1 or tensor.stride(1) == 1 else tensor.contiguous()


def aligned(tensor: Tensor) -> Tensor:
    """The tensor contiguous, from a multiple of 16 bytes on; itself if it is so already."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
