"""The moving average of all parameters in one launch, through a table of their addresses on the device."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssl_core.ops._triton.launch import on_device_of, round_to_bfloat16

_BLOCK = 4096

# The last table of each device, and what it was made for: a training run has one momentum encoder.
_tables: dict[torch.device, tuple[tuple[object, ...], Tensor]] = {}


@triton.jit
@no_type_check
def _momentum_update_kernel(
    table,  # (chunks, 5): addresses of target, online and shadow, first element, size
    momentum,
    HAS_SHADOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = table + tl.program_id(0).to(tl.int64) * 5
    offsets = tl.load(row + 3) + tl.arange(0, BLOCK)
    mask = offsets < tl.load(row + 4)
    target = tl.load(row).to(tl.pointer_type(tl.float32)) + offsets
    online = tl.load(row + 1).to(tl.pointer_type(tl.float32)) + offsets
    old = tl.load(target, mask=mask)
    difference = tl.load(online, mask=mask) - old
    # As torch.lerp: exact at both ends. 1 - momentum is taken in the momentum's own precision.
    weight = (1 - tl.load(momentum)).to(tl.float32)
    new = tl.where(weight < 0.5, old + weight * difference, (old + difference) - (1 - weight) * difference)
    new = tl.where(weight == 1.0, tl.load(online, mask=mask), new)
    tl.store(target, new, mask=mask)
    if HAS_SHADOW:
        shadow = tl.load(row + 2).to(tl.pointer_type(tl.int16)) + offsets
        tl.store(shadow, round_to_bfloat16(new), mask=mask)


def momentum_update(
    momentum_params: list[Tensor], online_params: list[Tensor], shadow_params: list[Tensor], momentum: Tensor
) -> None:
    """As ``ssl_core::momentum_update_``, for parameters that may be walked through as flat memory."""
    if not momentum_params:
        return
    device = momentum_params[0].device
    key = tuple(tensor.data_ptr() for tensor in (*momentum_params, *online_params, *shadow_params))
    key += tuple(tensor.numel() for tensor in momentum_params)
    if device not in _tables or _tables[device][0] != key:
        _tables[device] = (key, _table(momentum_params, online_params, shadow_params).to(device))
    table = _tables[device][1]
    if len(table) == 0:
        return
    with on_device_of(momentum_params[0]):
        _momentum_update_kernel[(len(table),)](
            table, momentum.to(device), HAS_SHADOW=bool(shadow_params), BLOCK=_BLOCK, num_warps=8
        )


def _table(momentum_params: list[Tensor], online_params: list[Tensor], shadow_params: list[Tensor]) -> Tensor:
    shadows = [tensor.data_ptr() for tensor in shadow_params] or [0] * len(momentum_params)
    rows = [
        (target.data_ptr(), online.data_ptr(), shadow, first, target.numel())
        for target, online, shadow in zip(momentum_params, online_params, shadows, strict=True)
        for first in range(0, target.numel(), _BLOCK)
    ]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)
