"""Queue attention in one pass over the queue, split over it, with a combination in fixed order.

A program holds a block of queries and walks through its part of the queue. A tile of keys is loaded once and serves
twice, for scores and for the weighted sum:

    x = (q.k) log2(e) / tau     p = 2^(x - shift)     weight += sum p     sums += p @ k

The shift is the running maximum, or, for unit rows at temperatures from 0.023 on, log2(e) / tau, beyond which no score
can be: then nothing needs to be rescaled. p is rounded to the queue's dtype before the second product (cut off in
bfloat16); two sums of weights are kept, of the exact ones for lse and of the rounded ones to normalize the expectation.
"""

import math
import os
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssl_core.ops._triton import is_interpreted
from ssl_core.ops._triton.launch import on_device_of
from ssl_core.ops.gpu import choose_splits, processors_of
from ssl_core.ops.rows import contiguous_rows

_LOG2E = math.log2(math.e)
# 2 log2(e) / tau < 126, so that the smallest weight of unit rows is a normal number.
_LARGEST_BOUNDED_SCALE = 43 * _LOG2E


class Configuration(NamedTuple):
    """The cut of a product: queries of a program, keys of a tile, warps, stages, programs on a multiprocessor."""

    block_n: int
    block_k: int
    warps: int
    stages: int
    residents: int


# By dimension, for halves. Not yet measured: chosen from compiled code, in which none of them spills more than four
# registers (test_triton_compiles.py). benchmarks/tune_queue_attention.py measures them; SSL_CORE_TRITON_CONFIG, five
# numbers with commas, replaces them.
#
# Compute capability 9.0, 227 KB of shared memory. 128 queries halve what each tile costs the L2 cache. With 64 keys
# the first product reads both factors from shared memory at the rate at which it multiplies; 128 leave a quarter
# free, and at dimension 256 there are no registers for them. Two programs of dimension 64 fit, so that one computes
# weights while the other multiplies.
_HOPPER = {
    64: Configuration(128, 64, 8, 3, 2),
    128: Configuration(128, 128, 8, 3, 1),
    256: Configuration(128, 64, 8, 3, 1),
    512: Configuration(64, 32, 8, 2, 1),
}
# Every other, of which some have only 99 KB.
_OTHERS = {
    64: Configuration(64, 64, 4, 3, 2),
    128: Configuration(64, 64, 4, 2, 2),
    256: Configuration(64, 64, 8, 2, 1),
    512: Configuration(32, 32, 8, 1, 1),
}
# Full products are no work for tensor cores: a tile lies in registers, so it is small.
_FLOAT32 = {
    64: Configuration(32, 32, 8, 1, 2),
    128: Configuration(32, 16, 8, 1, 2),
    256: Configuration(16, 16, 8, 1, 2),
    512: Configuration(16, 16, 8, 1, 2),
}
_INTERPRETED = Configuration(32, 32, 4, 1, 1)


@triton.jit
@no_type_check
def _sweep(
    query,
    queue,
    queue_stride,
    key_bias,
    scale,
    exclude,
    dims,
    dim,
    first,
    last,
    shift,
    weight,
    rounded_weight,
    sums,
    BLOCK_K: tl.constexpr,
    BOUNDED: tl.constexpr,
    HAS_EXCLUDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_BFLOAT16: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Shift, both sums of weights and weighted sums, with the part [first, last) of the queue added."""
    for start in range(first, last, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        is_inside = columns < last
        at = queue + columns.to(tl.int64)[:, None] * queue_stride + dims[None, :]
        keys = tl.load(at, mask=is_inside[:, None] & (dims < dim)[None, :], other=0.0)
        if UPCAST:
            keys = keys.to(tl.float32)
        scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION)
        is_seen = is_inside[None, :]
        if HAS_EXCLUDE:
            is_seen = is_seen & (columns[None, :] != exclude[:, None])
        if BOUNDED:
            p = tl.where(is_seen, tl.exp2(tl.fma(scores, scale[:, None], -shift[:, None])), 0.0)
        else:
            x = scores * scale[:, None]
            if HAS_BIAS:
                x += (tl.load(key_bias + columns, mask=is_inside, other=0.0) * 1.4426950408889634)[None, :]
            x = tl.where(is_seen, x, float("-inf"))
            raised = tl.maximum(shift, tl.max(x, axis=1))
            shrink = tl.exp2(shift - raised)
            weight *= shrink
            rounded_weight *= shrink
            sums *= shrink[:, None]
            shift = raised
            p = tl.exp2(x - shift[:, None])
        weight += tl.sum(p, axis=1)
        if IS_BFLOAT16:
            # Cut off instead of rounded: a mask, where a conversion forth and back takes turns with exp2 for the same
            # slow unit. All weights shrink alike, so that little of it is left in their quotients.
            rounded = (p.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True)
        else:
            rounded = p.to(queue.dtype.element_ty).to(tl.float32)
        rounded_weight += tl.sum(rounded, axis=1)
        sums = tl.dot(rounded.to(keys.dtype), keys, sums, input_precision=PRECISION)
    return shift, weight, rounded_weight, sums


@triton.jit
@no_type_check
def _partial_kernel(
    query,
    queue,
    inverse_temperature,
    length,
    exclude,
    key_bias,
    partial,  # (splits, 3, rows): shift, weight, rounded weight
    partial_sums,  # (splits, rows, dim)
    num_rows,
    num_keys,
    dim,
    query_stride,
    queue_stride,
    keys_per_split,
    LARGEST_BOUNDED_SCALE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NORMALIZED: tl.constexpr,
    HAS_LENGTH: tl.constexpr,
    HAS_EXCLUDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_BFLOAT16: tl.constexpr,
    UPCAST: tl.constexpr,
):
    # Blocks of queries are neighbors, so that all of them read the same part of the queue at about the same time.
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    dims = tl.arange(0, BLOCK_D)
    is_row = rows < num_rows
    mask = is_row[:, None] & (dims < dim)[None, :]
    # In the dtype of the queue: the product runs in it.
    q = tl.load(query + rows.to(tl.int64)[:, None] * query_stride + dims[None, :], mask=mask, other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
    scale = tl.load(inverse_temperature + rows, mask=is_row, other=0.0) * 1.4426950408889634
    excluded = tl.load(exclude + rows, mask=is_row, other=-1) if HAS_EXCLUDE else rows
    limit = num_keys
    if HAS_LENGTH:
        limit = tl.minimum(tl.load(length), num_keys).to(tl.int32)
    first = split * keys_per_split
    last = tl.minimum(first + keys_per_split, limit)
    shift = tl.full([BLOCK_N], -3.4028234663852886e38, tl.float32)
    weight = tl.zeros([BLOCK_N], tl.float32)
    rounded_weight = tl.zeros([BLOCK_N], tl.float32)
    sums = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if NORMALIZED:
        # One of the two sweeps is empty. As branches they would each have shared memory of their own, and the compiler
        # would wait for every product before the next.
        is_bounded = tl.max(scale) <= LARGEST_BOUNDED_SCALE
        middle = tl.where(is_bounded, last, first)
        shift = tl.where(is_bounded, scale, shift)
        shift, weight, rounded_weight, sums = _sweep(
            q, queue, queue_stride, key_bias, scale, excluded, dims, dim, first, middle, shift, weight, rounded_weight,
            sums, BLOCK_K, True, HAS_EXCLUDE, HAS_BIAS, PRECISION, IS_BFLOAT16, UPCAST,
        )  # fmt: skip
        first = middle
    shift, weight, rounded_weight, sums = _sweep(
        q, queue, queue_stride, key_bias, scale, excluded, dims, dim, first, last, shift, weight, rounded_weight,
        sums, BLOCK_K, False, HAS_EXCLUDE, HAS_BIAS, PRECISION, IS_BFLOAT16, UPCAST,
    )  # fmt: skip
    at = partial + split * 3 * num_rows + rows
    tl.store(at, shift, mask=is_row)
    tl.store(at + num_rows, weight, mask=is_row)
    tl.store(at + 2 * num_rows, rounded_weight, mask=is_row)
    row_at = (split * num_rows + rows).to(tl.int64)[:, None] * dim
    tl.store(partial_sums + row_at + dims[None, :], sums, mask=mask)


@triton.jit
@no_type_check
def _combine_kernel(
    partial,
    partial_sums,
    lse,
    expectation,
    num_rows,
    dim,
    num_splits,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One row: the parts of the queue in a fixed order, CHUNK of them at a time, whose loads overlap."""
    row = tl.program_id(0)
    dims = tl.arange(0, BLOCK_D)
    splits = tl.arange(0, BLOCK_S)
    is_split = splits < num_splits
    at = partial + splits * 3 * num_rows + row
    shift = tl.load(at, mask=is_split, other=-3.4028234663852886e38)
    largest = tl.max(shift)
    shrink = tl.exp2(shift - largest)
    weight = tl.sum(shrink * tl.load(at + num_rows, mask=is_split, other=0.0))
    rounded_weight = tl.sum(shrink * tl.load(at + 2 * num_rows, mask=is_split, other=0.0))
    sums = tl.zeros([BLOCK_D], tl.float32)
    for first in range(0, num_splits, CHUNK):
        # Under names of their own: a loop may not change the shape of what it carries.
        parts = first + tl.arange(0, CHUNK)
        is_part = parts < num_splits
        factor = tl.exp2(tl.load(partial + parts * 3 * num_rows + row, mask=is_part, other=largest) - largest)
        sums_at = partial_sums + (parts * num_rows + row).to(tl.int64)[:, None] * dim + dims[None, :]
        mask = is_part[:, None] & (dims < dim)[None, :]
        sums += tl.sum(factor[:, None] * tl.load(sums_at, mask=mask, other=0.0), axis=0)
    is_empty = weight == 0.0
    total = tl.where(is_empty, 1.0, rounded_weight)
    value = tl.where(is_empty, float("-inf"), (largest + tl.log2(tl.where(is_empty, 1.0, weight))) * 0.6931471805599453)
    tl.store(lse + row, value)
    tl.store(expectation + row.to(tl.int64) * dim + dims, sums / total, mask=dims < dim)


def queue_attention(
    query: Tensor,
    queue: Tensor,
    inverse_temperature: Tensor,
    length: Tensor | None,
    exclude: Tensor | None,
    key_bias: Tensor | None,
    normalized: bool,
) -> tuple[Tensor, Tensor]:
    """As ``ssl_core::queue_attention``; the query is rounded to the queue's dtype."""
    num_rows, dim = query.shape
    num_keys = len(queue)
    lse = torch.empty(num_rows, dtype=torch.float32, device=query.device)
    expectation = torch.empty(num_rows, dim, dtype=torch.float32, device=query.device)
    if num_rows == 0:
        return lse, expectation
    query = contiguous_rows(query.to(queue.dtype))
    queue = contiguous_rows(queue)
    block_d = max(16, triton.next_power_of_2(dim))
    block_n, block_k, warps, stages, residents = _configuration(queue)
    row_blocks, tiles = triton.cdiv(num_rows, block_n), triton.cdiv(num_keys, block_k)
    splits = choose_splits(row_blocks, tiles, residents * processors_of(query.device))
    keys_per_split = triton.cdiv(tiles, splits) * block_k
    partial = torch.empty(splits, 3, num_rows, dtype=torch.float32, device=query.device)
    partial_sums = torch.empty(splits, num_rows, dim, dtype=torch.float32, device=query.device)
    nothing = partial  # an address where the kernel reads none
    with on_device_of(query):
        _partial_kernel[(row_blocks, splits)](
            query,
            queue,
            inverse_temperature.contiguous(),
            nothing if length is None else length,
            nothing if exclude is None else exclude.contiguous(),
            nothing if key_bias is None else key_bias.float().contiguous(),
            partial,
            partial_sums,
            num_rows,
            num_keys,
            dim,
            query.stride(0),
            queue.stride(0),
            keys_per_split,
            LARGEST_BOUNDED_SCALE=_LARGEST_BOUNDED_SCALE,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            BLOCK_D=block_d,
            # float16 cannot hold the small weights of the bounded mode; a bias breaks the bound.
            NORMALIZED=normalized and queue.dtype != torch.float16 and key_bias is None,
            HAS_LENGTH=length is not None,
            HAS_EXCLUDE=exclude is not None,
            HAS_BIAS=key_bias is not None,
            PRECISION=_precision(),
            IS_BFLOAT16=queue.dtype == torch.bfloat16,
            UPCAST=is_interpreted(),
            num_warps=warps,
            num_stages=stages,
            enable_fp_fusion=True,
        )
        _combine_kernel[(num_rows,)](
            partial,
            partial_sums,
            lse,
            expectation,
            num_rows,
            dim,
            splits,
            BLOCK_D=block_d,
            BLOCK_S=triton.next_power_of_2(splits),
            CHUNK=16,
            enable_fp_fusion=True,
        )
    return lse, expectation


def configuration(capability: tuple[int, int], dtype: torch.dtype, dim: int) -> Configuration:
    """The table's entry for a compute capability, the queue's dtype, and a dimension up to 512."""
    halves = _HOPPER if capability == (9, 0) else _OTHERS
    table = _FLOAT32 if dtype == torch.float32 else halves
    return table[max(64, triton.next_power_of_2(dim))]


def _configuration(queue: Tensor) -> Configuration:
    if override := os.environ.get("SSL_CORE_TRITON_CONFIG"):
        numbers = override.split(",")
        if len(numbers) != len(Configuration._fields) or not all(number.strip().isdecimal() for number in numbers):
            raise ValueError(
                f"SSL_CORE_TRITON_CONFIG must be {','.join(Configuration._fields)} as numbers, got {override!r}"
            )
        return Configuration(*map(int, numbers))
    if not queue.is_cuda:
        return _INTERPRETED
    return configuration(torch.cuda.get_device_capability(queue.device), queue.dtype, queue.shape[1])


def _precision() -> str:
    """Of products of float32: that of PyTorch's own, however it was set; Triton has names of its own for it."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
