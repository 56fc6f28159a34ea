"""The moving average of all parameters in one launch, through a table of their addresses on the device."""

from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor

from ssl_core.ops._triton.launch import on_device_of, round_to_bfloat16
from ssl_core.ops.gpu import CHUNK, address_table, scalar_on


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
    new = tl.load(online, mask=mask)
    difference = new - old
    # As torch.lerp: exact at both ends. 1 - momentum is taken in the momentum's own precision.
    weight = (1 - tl.load(momentum)).to(tl.float32)
    new = tl.where(weight < 0.5, old + weight * difference, new - (1 - weight) * difference)
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
    table = address_table(momentum_params, online_params, shadow_params)
    if len(table) == 0:
        return
    with on_device_of(momentum_params[0]):
        _momentum_update_kernel[(len(table),)](
            table,
            scalar_on(table.device, momentum),
            HAS_SHADOW=bool(shadow_params),
            BLOCK=CHUNK,
            num_warps=8,
            enable_fp_fusion=True,
        )
