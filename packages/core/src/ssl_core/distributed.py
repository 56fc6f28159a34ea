"""Many processes as one: rank, world size, and the collectives that methods use.

Started by ``torchrun``; each process holds its share of the global batch, in rank order. In one process every
function here is the identity or trivial, so that callers never ask how many processes there are.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int64, Shaped
from torch import Tensor

from ssl_core.machine import usable_cores

_Object = TypeVar("_Object")
_Prepared = TypeVar("_Prepared")
_Result = TypeVar("_Result")

# How long processes wait for each other, unless they are told. CLIM's first process may search for long; torch's
# default for NCCL, ten minutes, would end the run.
TIMEOUT_S = 3600.0

_ROWS_AT_ONCE = 2**16  # of a large tensor that is gathered in parts


def rank() -> int:
    """Index of this process, 0 when there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files."""
    return rank() == 0


def has_launcher() -> bool:
    """Whether ``torchrun`` started this process."""
    return dist.is_torchelastic_launched()


def equal_share(name: str, total: int, *, micro_batches: int = 1, processes: int | None = None) -> int:
    """The share of a number that falls to each process, and there to each micro-batch.

    Args:
        name: name of the number, for the error.
        total: number that is shared.
        micro_batches: number of micro-batches of each process.
        processes: number of processes; None is that of now.

    Raises:
        ValueError: if the shares would not be equal, or empty; with the nearest numbers that can be shared, and the
            nearest numbers of processes that can share this one.

    Example:
        >>> equal_share("train.batch_size", 96, micro_batches=2, processes=8)
        6
    """
    processes = world_size() if processes is None else processes
    unit = micro_batches * processes
    share, rest = divmod(total, unit)
    if share and not rest:
        return share
    remedies = [" or ".join(str(nearest) for nearest in (share * unit, share * unit + unit) if nearest)]
    fitting = [number for number in range(1, total // micro_batches + 1) if total % (micro_batches * number) == 0]
    fewer, more = ([number for number in fitting if sign * (number - processes) > 0] for sign in (-1, 1))
    if fitting:
        remedies.append(f"start {' or '.join(map(str, fewer[-1:] + more[:1]))} processes")
    each = f" of {micro_batches} micro-batches each" if micro_batches > 1 else ""
    raise ValueError(
        f"{name} {total} cannot be shared equally by {processes} process{'es' * (processes > 1)}{each}: "
        f"take {', or '.join(remedies)}"
    )


def setup(device: torch.device, *, timeout_s: float = TIMEOUT_S) -> torch.device:
    """Join the other processes if ``torchrun`` started several.

    Args:
        device: kind of the device: ``cpu`` (gloo) or ``cuda`` (NCCL).
        timeout_s: number of seconds after which a process that waits for another one gives up.

    Returns:
        The device of this process: with several, ``cuda`` becomes the one of its local rank.

    Raises:
        ValueError: if several processes were started for another kind of device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device, timeout=timedelta(seconds=timeout_s))
    elif device.type == "cpu":
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
    else:
        raise ValueError(f"several processes need device cpu or cuda, not {device.type}")
    return device


def lost_touch(error: Exception) -> str | None:
    """What to say where processes can no longer exchange: one has ended, is stopped, or cannot be reached.

    Returns:
        One line; None for any other error.
    """
    text = str(error)
    if not isinstance(error, dist.DistError) and "gloo/" not in text:  # gloo's own errors have no class, but a place
        return None
    cause = re.sub(r"^\[\S*\] ", "", text.partition("\n")[0]).partition(". ")[0].rstrip(".")
    return (
        f"process {os.environ.get('RANK', '0')} has lost another process ({cause}); what that one says is the reason, "
        "and if it says nothing, it was killed, stopped or cut off. The same command goes on from the last checkpoint, "
        "where it writes any"
    )


def teardown() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def broadcast_object(value: _Object) -> _Object:
    """The value that process 0 passed, in every process; pickled."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def broadcast_(tensor: Tensor) -> Tensor:
    """The values of process 0, in every process, in place."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def shared_out(items: Sequence[_Object], work: Callable[[_Object], _Result]) -> list[_Result]:
    """What ``work`` makes of each item, in every process; each item is one process's work, in turn; pickled.

    Args:
        items: items, the same in every process.
        work: function of an item, without collectives.

    Example:
        >>> shared_out(["a", "b", "c"], str.upper)
        ['A', 'B', 'C']
    """
    results: list[Any] = [None] * len(items)
    for first, done in enumerate(gather_objects([work(item) for item in items[rank() :: world_size()]])):
        results[first :: world_size()] = done
    return results


def prepared_and_shared_out(
    items: Sequence[_Object], prepare: Callable[[_Object], _Prepared], work: Callable[[_Prepared], _Result]
) -> Iterator[tuple[_Object, _Result]]:
    """Each item, and what ``work`` makes of what ``prepare`` made of it; all prepare together, and each works alone.

    Of as many items as there are processes at a time, so that a process keeps what is prepared of one.

    Args:
        items: items, the same in every process.
        prepare: function of an item that all processes call together.
        work: function of what was prepared, without collectives.
    """
    for start in range(0, len(items), world_size()):
        group, own = items[start : start + world_size()], list[_Prepared]()
        for place, item in enumerate(group):
            prepared = prepare(item)
            if place == rank():
                own.append(prepared)
            del prepared
        with _threads_of_idle(len(group)):
            results = [work(each) for each in own]
        yield from zip(group, [each for part in gather_objects(results) for each in part], strict=True)


@contextmanager
def _threads_of_idle(busy: int) -> Iterator[None]:
    """Let the processes that are busy have all cores of their machine, of which torchrun leaves each one."""
    before, busy = torch.get_num_threads(), min(busy, local_world_size())
    if world_size() > 1:
        torch.set_num_threads(max(before, usable_cores() // busy))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def goes_on_alone() -> bool:
    """Whether this process does by itself what is left, with the threads of all cores; the others have no more to do.

    All call it, and none goes on before all have: a file that is written then is not there when another looks for it.
    ``torchrun`` leaves each of several processes one thread.
    """
    barrier()
    if world_size() > 1 and is_main():
        torch.set_num_threads(usable_cores())
    return is_main()


def gather_objects(value: _Object, *, everywhere: bool = True) -> list[_Object]:
    """The values of all processes in rank order; pickled.

    Args:
        value: value of this process.
        everywhere: whether all processes have them; otherwise the first one has, and the others their own.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    if everywhere:
        dist.all_gather_object(values, value)
        return values
    dist.gather_object(value, values if is_main() else None)
    return values if is_main() else [value]


@torch.no_grad()
def gather(tensor: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "rows ..."]:
    """Rows of all processes in rank order, (N n ...), without gradient.

    Args:
        tensor: (n ...) rows of this process, of the same shape in every process.

    Raises:
        ValueError: in every process, if their numbers of rows differ.
    """
    if world_size() == 1:
        return tensor.detach()
    _check_equal_numbers(tensor)
    rows = tensor.new_empty(world_size() * len(tensor), *tensor.shape[1:])
    dist.all_gather_into_tensor(rows, tensor.contiguous())
    return rows


def _check_equal_numbers(rows: Tensor) -> None:
    """Refuse unequal numbers of rows, which hang NCCL or give wrong ones; a message and a device sync."""
    counts = torch.empty(world_size(), dtype=torch.int64, device=rows.device)
    dist.all_gather_into_tensor(counts, torch.full((1,), len(rows), device=rows.device))
    if len(set(counts.tolist())) > 1:
        raise ValueError(
            f"processes hold {counts.tolist()} rows, but gathering needs equal numbers; drop the last batch"
        )


def gather_with_grad(tensor: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "rows ..."]:
    """Rows of all processes in rank order, (N n ...), with gradient.

    The gradient of a row is the sum over all processes of their losses' gradients to it. So where each
    process takes the mean over its own rows, the average over processes, as DistributedDataParallel takes
    it, is the gradient of the mean over all rows.

    Args:
        tensor: (n ...) rows of this process, of the same shape in every process; gradient flows.

    Raises:
        ValueError: in every process, if their numbers of rows differ.
    """
    if world_size() == 1:
        return tensor
    rows: Tensor = _GatherWithGrad.apply(tensor)
    return rows


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        own = grad.new_empty(len(grad) // world_size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(own, grad.contiguous())
        return own


def exchange(tensor: Shaped[Tensor, "rows ..."]) -> Shaped[Tensor, "rows ..."]:
    """Block i of process j goes to process i as block j; (N n ...) in blocks of n rows, with gradient.

    Args:
        tensor: (N n ...) a block for each process in rank order, of the same shape in every process; gradient flows.

    Returns:
        (N n ...) the blocks that all processes have for this one, in rank order.
    """
    if world_size() == 1:
        return tensor
    blocks: Tensor = _Exchange.apply(tensor)
    return blocks


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        blocks = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        dist.all_to_all_single(blocks, tensor.contiguous())
        return blocks

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return exchange(grad)  # it is its own inverse, and its own transpose


@torch.no_grad()
def interleaved(tensor: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "rows ..."] | None:
    """Row i of process j as row N i + j, (N n ...), in the first process and on the CPU; None in the others.

    The first process's device holds a part of it at a time.

    Args:
        tensor: (n ...) rows of this process, of the same shape in every process.
    """
    if world_size() == 1:
        return tensor.cpu()
    whole = torch.empty(len(tensor), world_size(), *tensor.shape[1:], dtype=tensor.dtype) if is_main() else None
    for first in range(0, len(tensor), _ROWS_AT_ONCE):
        part = tensor[first : first + _ROWS_AT_ONCE].contiguous()
        parts = None if whole is None else [torch.empty_like(part) for _ in range(world_size())]
        dist.gather(part, parts)
        if whole is not None and parts is not None:
            whole[first : first + len(part)] = torch.stack(parts, dim=1).cpu()
    return None if whole is None else whole.flatten(0, 1)


def shuffle(images: Shaped[Tensor, "n ..."], order: Int64[Tensor, " rows"]) -> Shaped[Tensor, "n ..."]:
    """This process's share of the global batch in another order, for shuffle-BN.

    Position j of the shuffled global batch holds row ``order[j]`` of the original one. Each image goes to the process
    that needs it, and to no other.
    Paper: He et al., 2020, section 3.3, arXiv 1911.05722, whose code gathers all images in every process.

    Args:
        images: (n ...) images of this process.
        order: (N n) permutation of the global batch, the same in every process; on the CPU, so that its part is known
            without a device sync.

    Returns:
        (n ...) images of this process's share, without gradient.

    Raises:
        ValueError: if ``order`` does not have one entry for each row of the global batch, or, in every process, if
            their numbers of rows differ.
    """
    return _permuted(images, order)


def unshuffle(keys: Shaped[Tensor, "n ..."], order: Int64[Tensor, " rows"]) -> Shaped[Tensor, "n ..."]:
    """This process's share of the keys in the order before :func:`shuffle`.

    Args:
        keys: (n ...) keys of the images that ``shuffle`` gave this process.
        order: (N n) permutation given to ``shuffle``.

    Returns:
        (n ...) keys of this process's own images, without gradient.

    Raises:
        ValueError: as :func:`shuffle`.

    Example:
        >>> order = torch.tensor([2, 0, 1])
        >>> unshuffle(shuffle(torch.tensor([5, 6, 7]), order), order)
        tensor([5, 6, 7])
    """
    return _permuted(keys, order.argsort())


@torch.no_grad()
def _permuted(rows: Tensor, order: Tensor) -> Tensor:
    """This process's part of the global batch whose position j holds row order[j]."""
    num_rows, processes = len(rows), world_size()
    if len(order) != processes * num_rows:
        raise ValueError(f"an order of {len(order)} does not fit {processes} processes of {num_rows} rows")
    if processes == 1:
        return rows.detach()[order.to(rows.device)]
    _check_equal_numbers(rows)
    order = order.cpu()
    owner = order // num_rows  # (N n)
    # Positions in ascending order: those of one receiver follow each other, as all_to_all takes them.
    sent = (owner == rank()).nonzero().flatten()
    sources = owner[rank() * num_rows :][:num_rows]
    received = rows.new_empty(rows.shape)
    dist.all_to_all_single(
        received,
        rows[(order[sent] % num_rows).to(rows.device)].contiguous(),
        sources.bincount(minlength=processes).tolist(),
        (sent // num_rows).bincount(minlength=processes).tolist(),
    )
    # Those of one sender come in the order of their positions.
    return received[sources.argsort(stable=True).argsort().to(rows.device)]
