"""The common part of the back-ends ``triton`` and ``cuda``: cuts of the queue, and numbers kept on the device."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# Elements of a parameter that one program updates.
CHUNK = 4096

# Of each momentum encoder, by its first target, the table and what it was made for. A captured CUDA graph reads it at
# each replay: it lives as long as the target, whatever other encoders are updated.
_tables = WeakTensorKeyDictionary()


@functools.cache
def choose_splits(row_blocks: int, tiles: int, slots: int) -> int:
    """Number of parts that the queue is cut into: the fewest that finish earliest, with waves and combination counted.

    cost(s) = ceil(row_blocks s / slots) ceil(tiles / s) + row_blocks s / 100, in units of one tile's time, for a
    device that runs ``slots`` programs at once. One tile of one block takes 4 n' k' d operations of a multiprocessor
    and adds 8 n' d bytes to write and read again, n' queries and k' keys: at 3.3 TFLOP/s, 5.5 TB/s of L2 cache and 64
    to 128 keys that is a fiftieth to a hundredth. Both rates are estimates for an H200.

    Example:
        >>> choose_splits(2, 512, 132)  # 256 queries in blocks of 128 on 132 processors: one wave of 8 tiles each
        64
    """

    def cost(splits: int) -> tuple[float, int]:
        waves = -(-row_blocks * splits // slots)
        return waves * -(-tiles // splits) + row_blocks * splits / 100, splits

    return min(range(1, max(1, min(tiles, 2 * slots // row_blocks + 1)) + 1), key=cost)


def processors_of(device: torch.device) -> int:
    """Multiprocessors of a GPU; under Triton's interpreter a number that makes it cut the queue."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def address_table(targets: Sequence[Tensor], onlines: Sequence[Tensor], shadows: Sequence[Tensor]) -> Tensor:
    """(chunks 5) addresses of target, online and shadow (or 0), first element and size; kept while they hold."""
    key = tuple(tensor.data_ptr() for tensor in (*targets, *onlines, *shadows))
    key += tuple(tensor.numel() for tensor in targets)
    if targets[0] not in _tables or _tables[targets[0]][0] != key:
        addresses = [tensor.data_ptr() for tensor in shadows] or [0] * len(targets)
        rows = [
            (target.data_ptr(), online.data_ptr(), shadow, first, target.numel())
            for target, online, shadow in zip(targets, onlines, addresses, strict=True)
            for first in range(0, target.numel(), CHUNK)
        ]
        _tables[targets[0]] = key, torch.tensor(rows, dtype=torch.int64).reshape(-1, 5).to(targets[0].device)
    table: Tensor = _tables[targets[0]][1]
    return table


def scalar_on(device: torch.device, scalar: Tensor) -> Tensor:
    """A 0-dim tensor on a device; one from the host gets there without a wait."""
    return torch.full((), scalar.item(), dtype=scalar.dtype, device=device) if scalar.device.type == "cpu" else scalar
