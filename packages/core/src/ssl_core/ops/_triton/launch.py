"""Helpers of all launches.

Every launch says whether products are fused with sums: Triton 3.10 has another default than the versions before.
"""

import contextlib
from contextlib import AbstractContextManager
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@triton.jit
@no_type_check
def round_to_bfloat16(x):
    """The bits of float32 values rounded to bfloat16, ties to even; Triton's interpreter would truncate."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16)
    return tl.where(x == x, rounded, 0x7FC0)
