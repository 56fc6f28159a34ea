"""Enqueue in one launch: normalize, round, write, and move the cursor; nothing is read by the host."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssl_core.ops._triton.launch import on_device_of, round_to_bfloat16
from ssl_core.ops.gpu import tickets
from ssl_core.ops.rows import contiguous_rows


@triton.jit
@no_type_check
def _enqueue_kernel(
    queue,
    keys,
    cursor,
    length,
    tickets,
    num_rows,
    num_keys,
    dim,
    queue_stride,
    keys_stride,
    num_dropped,
    BLOCK_D: tl.constexpr,
    IS_BFLOAT16: tl.constexpr,
):
    """One key: of a batch larger than the queue, program 0 is the first that remains."""
    index = num_dropped + tl.program_id(0)
    start = tl.load(cursor)
    dims = tl.arange(0, BLOCK_D)
    key = tl.load(keys + index.to(tl.int64) * keys_stride + dims, mask=dims < dim, other=0.0).to(tl.float32)
    norm = tl.maximum(tl.sqrt(tl.sum(key * key)), 1e-12)
    key = key / norm
    row = (start + index) % num_rows
    at = queue + row * queue_stride + dims
    tl.store(at, round_to_bfloat16(key) if IS_BFLOAT16 else key.to(queue.dtype.element_ty), mask=dims < dim)
    # Whoever takes the last ticket knows that all have read the cursor.
    if tl.atomic_add(tickets, 1) == tl.num_programs(0) - 1:
        tl.store(cursor, (start + num_keys) % num_rows)
        tl.store(length, tl.minimum(tl.load(length) + num_keys, num_rows))
        tl.store(tickets, 0)


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
        _enqueue_kernel[(num_keys - dropped,)](
            rows.view(torch.int16) if is_bfloat16 else rows,
            keys,
            cursor,
            length,
            tickets(queue.device),
            num_rows,
            num_keys,
            dim,
            rows.stride(0),
            keys.stride(0),
            dropped,
            BLOCK_D=triton.next_power_of_2(dim),
            IS_BFLOAT16=is_bfloat16,
            enable_fp_fusion=True,
        )
    if rows is not queue:
        queue.copy_(rows)
