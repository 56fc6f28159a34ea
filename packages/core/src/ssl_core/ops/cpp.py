"""Back-end ``cpp``: the kernels of ``csrc/cpu``, for tensors on the CPU.

The kernels take addresses, so that one build serves every version of torch; the functions here check each tensor before
they pass its address. SSL_CORE_CPU_ISA (``avx512``, ``avx2``, ``generic``) chooses an instruction set; by default it is
the widest of the machine.
"""

import os
from collections.abc import Collection, Sequence

import torch  # before _C: torch brings the OpenMP runtime that both share
from torch import Tensor

from ssl_core.ops.instructions import Opcode, PackedImages, View, beyond
from ssl_core.ops.rows import contiguous_rows

try:
    from ssl_core import _C
except ImportError as error:
    _MISSING: str | None = (
        f"the compiled kernels are missing ({error}); install a C++ compiler, then ssl-core from source again"
    )
else:
    _MISSING = None

_DTYPES = (torch.float32, torch.bfloat16)
# As csrc/ssl_core.h.
_DTYPE_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3, torch.uint16: 4}

# OpenMP's threads do not survive a fork, and using them in the child hangs.
_is_forked = False


def _remember_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_remember_fork)


def unsupported(device: torch.device, *dtypes: torch.dtype, **problem: object) -> str | None:
    """The reason why the kernels cannot run, for queries (or keys) of the first dtype and a queue of the last."""
    if device.type != "cpu":
        return "it runs on the CPU"
    if torch.float64 in dtypes:
        return "it computes in float32"
    if dtypes[-1] not in _DTYPES:
        return "it reads and writes queues of float32 and bfloat16"
    return _MISSING


def has_kernels(device: torch.device) -> bool:
    """Whether there are kernels for tensors on this device."""
    return device.type == "cpu" and _MISSING is None


def cannot_render(
    device: torch.device, *dtypes: torch.dtype, opcodes: Collection[Opcode] = (), **problem: object
) -> str | None:
    """The reason why the kernels cannot render views of these opcodes on this device."""
    if device.type != "cpu":
        return "it runs on the CPU"
    return _MISSING or beyond(opcodes, len(_C.opcodes) - 1)


def instruction_sets() -> list[str]:
    """The instruction sets that this machine and this build have, widest first; empty without the kernels."""
    return [] if _MISSING else _C.instruction_sets()


def chosen_instruction_set() -> str:
    """The one in use: SSL_CORE_CPU_ISA, or else the widest.

    Raises:
        ValueError: if the environment names one that this machine does not have.
    """
    name = os.environ.get("SSL_CORE_CPU_ISA")
    available = instruction_sets()
    if name and name not in available:
        raise ValueError(f"SSL_CORE_CPU_ISA={name!r} cannot run here; this machine has {', '.join(available)}")
    return name or available[0]


def description() -> str:
    """The kernels in words, for ``ssl-core doctor``."""
    if _MISSING:
        return _MISSING
    return f"{chosen_instruction_set()} of {', '.join(instruction_sets())}; {'' if _C.openmp else 'no '}OpenMP"


def queue_attention(
    query: Tensor,
    queue: Tensor,
    inverse_temperature: Tensor,
    length: Tensor | None,
    exclude: Tensor | None,
    key_bias: Tensor | None,
    normalized: bool,
) -> tuple[Tensor, Tensor]:
    """As ``ssl_core::queue_attention``."""
    num_rows, dim = query.shape
    lse = torch.empty(num_rows, dtype=torch.float32)
    expectation = torch.empty(num_rows, dim, dtype=torch.float32)
    if num_rows == 0:
        return lse, expectation
    # Names keep what the addresses point to.
    query, queue = contiguous_rows(query.float()), contiguous_rows(queue)
    inverse_temperature = inverse_temperature.contiguous()
    exclude = None if exclude is None else exclude.long().contiguous()
    key_bias = None if key_bias is None else key_bias.float().contiguous()
    num_keys = len(queue) if length is None else min(max(int(length), 0), len(queue))
    _C.queue_attention(
        query.data_ptr(),
        queue.data_ptr(),
        inverse_temperature.data_ptr(),
        _address(exclude),
        _address(key_bias),
        lse.data_ptr(),
        expectation.data_ptr(),
        num_rows,
        num_keys,
        dim,
        query.stride(0),
        queue.stride(0),
        queue.dtype == torch.bfloat16,
        normalized,
        _threads(),
        chosen_instruction_set(),
    )
    return lse, expectation


def enqueue(queue: Tensor, keys: Tensor, cursor: Tensor, length: Tensor) -> None:
    """As ``ssl_core::enqueue_``; a cursor outside of the queue, which would write elsewhere, is a ValueError."""
    if not 0 <= int(cursor) < len(queue):
        raise ValueError(f"cursor must be in [0, {len(queue)}), the rows of the queue, got {int(cursor)}")
    keys = contiguous_rows(keys.float())
    rows = contiguous_rows(queue)
    _C.enqueue(
        rows.data_ptr(),
        keys.data_ptr(),
        cursor.data_ptr(),
        length.data_ptr(),
        *(len(rows), len(keys), rows.shape[1]),
        *(rows.stride(0), keys.stride(0)),
        rows.dtype == torch.bfloat16,
        _threads(),
        chosen_instruction_set(),
    )
    if rows is not queue:
        queue.copy_(rows)


def momentum_update(
    momentum_params: list[Tensor], online_params: list[Tensor], shadow_params: list[Tensor], momentum: float
) -> None:
    """As ``ssl_core::momentum_update_``, for dense parameters of equal strides."""
    _C.momentum_update(
        [tensor.data_ptr() for tensor in momentum_params],
        [tensor.data_ptr() for tensor in online_params],
        [tensor.data_ptr() for tensor in shadow_params],
        [tensor.numel() for tensor in momentum_params],
        momentum,
        _threads(),
        chosen_instruction_set(),
    )


def uniform(seed: int, streams: Tensor, num_draws: int) -> Tensor:
    """As `ssl_core.philox.uniform`."""
    streams = streams.long().contiguous()
    draws = torch.empty(len(streams), num_draws, dtype=torch.float64)
    _C.uniform(seed % 2**64, streams.data_ptr(), draws.data_ptr(), len(streams), num_draws, chosen_instruction_set())
    return draws


def render_views(
    images: PackedImages, views: Sequence[View], mean: Tensor, std: Tensor, results: Sequence[Tensor]
) -> None:
    """As ``ssl_core.ops.render_views``, into tensors that are there.

    An image that does not lie in ``pixels`` is a ValueError.
    """
    # Names keep what the addresses point to.
    pixels, layout = images.pixels.contiguous(), images.layout.long().contiguous()
    _check_layout(images)
    mean, std = mean.float().contiguous(), std.float().contiguous()
    rows = [(view.instructions.double().contiguous(), view.parameters.double().contiguous()) for view in views]
    table = [
        (
            instructions.data_ptr(),
            parameters.data_ptr(),
            result.data_ptr(),
            len(instructions),
            parameters.shape[1],
            view.size,
            view.continues,
        )
        for view, (instructions, parameters), result in zip(views, rows, results, strict=True)
    ]
    _C.render_views(
        pixels.data_ptr(),
        layout.data_ptr(),
        table,
        mean.data_ptr(),
        std.data_ptr(),
        len(layout),
        images.channels,
        _DTYPE_NUMBERS[pixels.dtype],
        _DTYPE_NUMBERS[results[0].dtype],
        # A view of one pixel, or of one channel, is both.
        any(not result.is_contiguous() for result in results),
        _threads(),
        chosen_instruction_set(),
    )


def _check_layout(images: PackedImages) -> None:
    offset, height, width, *strides = images.layout.unbind(1)
    sizes = (torch.full_like(height, images.channels), height, width)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if len(last) and not bool((images.layout.amin(0) >= 0).all() & (images.layout[:, 1:3].amin() >= 1)):
        raise ValueError("a layout holds a negative number, or an image without pixels")
    if len(last) and int(last.max()) >= images.pixels.numel():
        raise ValueError(f"image {int(last.argmax())} ends at {int(last.max())} of {images.pixels.numel()} pixels")


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _threads() -> int:
    return 1 if _is_forked else torch.get_num_threads()
