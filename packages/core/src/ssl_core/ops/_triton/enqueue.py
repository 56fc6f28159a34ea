"""Enqueue in two launches: normalize, round and write; then move the cursor. Nothing is read by the host."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssl_core.ops._triton.launch import on_device_of, round_to_bfloat16
from ssl_core.ops.rows import contiguous_rows


@triton.jit
@no_type_check
def _write_kernel(
    queue,
    keys,
    cursor,
    num_rows,
    dim,
    queue_stride,
    keys_stride,
    num_dropped,
    BLOCK_D: tl.constexpr,
    IS_BFLOAT16: tl.constexpr,
):
    """One key: of a batch larger than the queue, program 0 is the first that remains."""
    index = num_dropped + tl.program_id(0)
    dims = tl.arange(0, BLOCK_D)
    key = tl.load(keys + index.to(tl.int64) * keys_stride + dims, mask=dims < dim, other=0.0).to(tl.float32)
    norm = tl.sqrt(tl.sum(key * key))
    key = key / tl.where(norm < 1e-12, 1e-12, norm)  # a NaN stays one
    row = (tl.load(cursor) + index) % num_rows
    at = queue + row * queue_stride + dims
    tl.store(at, round_to_bfloat16(key) if IS_BFLOAT16 else key.to(queue.dtype.element_ty), mask=dims < dim)


@triton.jit
@no_type_check
def _advance_kernel(cursor, length, num_rows, num_keys):
    """A launch of its own: when it begins, all keys have found their row by the old cursor."""
    tl.store(cursor, (tl.load(cursor) + num_keys) % num_rows)
    tl.store(length, tl.minimum(tl.load(length) + num_keys, num_rows))


def enqueue(queue: Tensor, keys: Tensor, cursor: Tensor, length: Tensor) -> None:
    """As ``ssl_core::enqueue_``."""
    num_rows, dim = queue.shape
    num_keys = len(keys)
    if num_keys == 0:
        return
    keys, rows = contiguous_rows(keys), contiguous_rows(queue)
    is_bfloat16 = rows.dtype == torch.bfloat16
    dropped = max(0, num_keys - num_rows)
    with on_device_of(queue):
        _write_kernel[(num_keys - dropped,)](
            rows.view(torch.int16) if is_bfloat16 else rows,
            keys,
            cursor,
            num_rows,
            dim,
            rows.stride(0),
            keys.stride(0),
            dropped,
            BLOCK_D=triton.next_power_of_2(dim),
            IS_BFLOAT16=is_bfloat16,
            enable_fp_fusion=True,
        )
        _advance_kernel[(1,)](cursor, length, num_rows, num_keys, num_warps=1, enable_fp_fusion=True)
    if rows is not queue:
        queue.copy_(rows)
