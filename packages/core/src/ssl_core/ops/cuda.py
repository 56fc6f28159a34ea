"""Back-end ``cuda``: the kernels of ``csrc/cuda``, in a library without torch that is loaded at its first use.

It is built where nvcc is found and holds its own CUDA runtime, so that loading it needs no driver. Triton is preferred
until both have been measured on the same GPU.
"""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from ssl_core.ops.gpu import CHUNK, address_table, choose_splits, processors_of, scalar_on
from ssl_core.ops.rows import aligned

_LIBRARY = Path(__file__).parents[1] / "libssl_core_cuda.so"
_ABI = 2
_ROWS = 64  # queries of a block
_KEYS = {64: 64, 128: 64, 256: 32}  # of a tile, by dimension
_RESIDENTS = {64: 3, 128: 2, 256: 2}  # blocks that a multiprocessor holds at once, by registers


def unsupported(device: torch.device, *dtypes: torch.dtype, dim: int | None = None, **problem: object) -> str | None:
    """The reason why the kernels cannot run, for queries (or keys) of the first dtype and a queue of the last."""
    if device.type != "cuda":
        return "it runs on CUDA devices"
    if not _LIBRARY.exists():
        return "its library was not built; install nvcc, then ssl-core from source again"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    if dim is None:  # enqueue_ and momentum_update_
        known = {torch.float32, torch.bfloat16} if len(dtypes) > 1 else {torch.float32}
        return None if set(dtypes) <= known else "it takes float32, and queues of bfloat16 too"
    if dtypes[-1] != torch.bfloat16 or torch.float64 in dtypes:
        return "it reads queues of bfloat16"
    if dim not in _KEYS:
        return f"its dimension is one of {tuple(_KEYS)}, got {dim}"
    return None


def description() -> str:
    """The library in words, for ``ssl-core doctor``."""
    return "built" if _LIBRARY.exists() else "not built: nvcc was not found when ssl-core was installed"


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_LIBRARY))
    if library.ssl_core_cuda_abi() != _ABI:
        raise ImportError(f"{_LIBRARY} is of another version of ssl-core; install ssl-core again")
    address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.ssl_core_cuda_queue_attention.argtypes = [*[address] * 10, *[size] * 4, number, address]
    library.ssl_core_cuda_enqueue.argtypes = [*[address] * 4, *[size] * 3, number, address]
    library.ssl_core_cuda_momentum_update.argtypes = [address, size, size, address, address]
    return library


def _launch(name: str, device: torch.device, *arguments: int) -> None:
    with torch.cuda.device(device):
        error = getattr(_library(), f"ssl_core_cuda_{name}")(*arguments, torch.cuda.current_stream().cuda_stream)
    if error:
        raise RuntimeError(f"{name} on {device} failed with CUDA error {error}")


def queue_attention(
    query: Tensor,
    queue: Tensor,
    inverse_temperature: Tensor,
    length: Tensor | None,
    exclude: Tensor | None,
    key_bias: Tensor | None,
    normalized: bool,
) -> tuple[Tensor, Tensor]:
    """As ``ssl_core::queue_attention``; the query is rounded to bfloat16."""
    num_rows, dim = query.shape
    device = query.device
    lse = torch.empty(num_rows, dtype=torch.float32, device=device)
    expectation = torch.empty(num_rows, dim, dtype=torch.float32, device=device)
    if num_rows == 0:
        return lse, expectation
    # Names keep what the addresses point to.
    query, queue = aligned(query.to(torch.bfloat16)), aligned(queue)
    inverse_temperature = inverse_temperature.contiguous()
    exclude = None if exclude is None else exclude.contiguous()
    key_bias = None if key_bias is None else key_bias.float().contiguous()
    row_blocks, tiles = -(-num_rows // _ROWS), -(-len(queue) // _KEYS[dim])
    splits = choose_splits(row_blocks, tiles, _RESIDENTS[dim] * processors_of(device))
    partial = torch.empty(splits, 3, num_rows, dtype=torch.float32, device=device)
    partial_sums = torch.empty(splits, num_rows, dim, dtype=torch.float32, device=device)
    optional = [0 if tensor is None else tensor.data_ptr() for tensor in (length, exclude, key_bias)]
    workspace = [tensor.data_ptr() for tensor in (partial, partial_sums, lse, expectation)]
    _launch(
        "queue_attention",
        device,
        *(query.data_ptr(), queue.data_ptr(), inverse_temperature.data_ptr(), *optional, *workspace),
        *(num_rows, len(queue), dim, splits, int(normalized)),
    )
    return lse, expectation


def enqueue(queue: Tensor, keys: Tensor, cursor: Tensor, length: Tensor) -> None:
    """As ``ssl_core::enqueue_``."""
    if len(keys) == 0:
        return
    keys, rows = keys.float().contiguous(), queue.contiguous()
    addresses = [tensor.data_ptr() for tensor in (rows, keys, cursor, length)]
    sizes = (len(rows), len(keys), rows.shape[1])
    _launch("enqueue", queue.device, *addresses, *sizes, int(rows.dtype == torch.bfloat16))
    if rows is not queue:
        queue.copy_(rows)


def momentum_update(
    momentum_params: list[Tensor], online_params: list[Tensor], shadow_params: list[Tensor], momentum: Tensor
) -> None:
    """As ``ssl_core::momentum_update_``, for dense parameters of equal strides."""
    if not momentum_params:
        return
    device = momentum_params[0].device
    table = address_table(momentum_params, online_params, shadow_params)
    if len(table) == 0:
        return
    on_device = scalar_on(device, momentum).double()
    _launch("momentum_update", device, table.data_ptr(), len(table), CHUNK, on_device.data_ptr())
