"""The queue: past keys as negatives, in a ring buffer that is part of the method's state."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.losses import Columns
from ssl_core.nn.unit import unit
from ssl_core.ops import enqueue_

# A multiple of 16, the numbers that torch's generator makes at once: so parts are what the whole would be.
_ROWS_AT_ONCE = 2**16


@dataclass(frozen=True)
class QueueConfig:
    """Settings of a :class:`Queue`.

    Attributes:
        length: number of rows k; at least the number of keys of one step.
        initial: rows at the start: ``random`` has directions spread evenly over the sphere, as in MoCo and SCE, all of
            which count as negatives; ``empty`` has none, and ``Queue.valid_length`` says how many count.
        dtype: number format of the rows; ``bfloat16`` halves the queue's memory, and on a GPU makes the products with
            it bfloat16 too.
        sharded: whether each of N processes holds one N-th of the rows, which must divide ``length``, in place of all.
            Then queries are sent to all processes, and losses are the same within rounding.
    """

    length: int = 65536
    initial: Literal["random", "empty"] = "random"
    dtype: Literal["float32", "bfloat16"] = "float32"
    sharded: bool = False

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"queue.length must be at least 1, got {self.length}")


class Queue(nn.Module):
    """The last keys, of which the oldest are replaced first.

    It has three buffers, which are saved with the method: ``keys`` (k d); ``cursor`` (), the next row to write; and
    ``filled`` (), the number of rows that hold keys so far. Of a queue that is sharded over N processes, process i has
    the rows i, i + N, i + 2 N, ... in a buffer ``shard`` instead of ``keys``, so that all write and read equally many.
    Cursor and number are those of the whole, which a checkpoint holds. Losses take either by :meth:`columns`.

    Args:
        config: length, start and number format.
        dim: d, size of an embedding.
        seed: seed of the random rows, which are the same on every device and in every process.

    Attributes:
        length: k, number of rows in all processes.

    Raises:
        ValueError: if processes cannot share its rows equally, with the nearest lengths and numbers of processes that
            fit.

    Example:
        >>> queue = Queue(QueueConfig(4, "empty"), 2)
        >>> queue.enqueue_(torch.eye(2))
        >>> queue.columns().length, queue.fill
        (tensor(2), tensor(0.5000))
    """

    keys: Tensor
    shard: Tensor
    cursor: Tensor
    filled: Tensor

    def __init__(self, config: QueueConfig, dim: int, *, seed: int = 0) -> None:
        super().__init__()
        self.initial, self.length = config.initial, config.length
        self._place, self._num_shards = 0, 1
        if config.sharded:
            self._place, self._num_shards = distributed.rank(), distributed.world_size()
        num_rows = distributed.equal_share("queue.length", config.length, processes=self._num_shards)
        self._rows_name = "keys" if self._num_shards == 1 else "shard"
        self.register_buffer(self._rows_name, torch.zeros(num_rows, dim, dtype=getattr(torch, config.dtype)))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        if config.initial == "random":
            first = 0
            for rows in _random_rows(config.length, dim, seed):
                skipped = (self._place - first) % self._num_shards
                own = rows[skipped :: self._num_shards]
                start = (first + skipped) // self._num_shards
                self._rows[start : start + len(own)].copy_(own)
                first += len(rows)
        self.register_load_state_dict_pre_hook(_take_own_rows)  # type: ignore[no-untyped-call]  # torch's is untyped

    def __getattr__(self, name: str) -> Any:
        if name == "keys" and self._rows_name == "shard":
            raise AttributeError("a sharded queue has no keys, of which a loss would see a share: give it columns()")
        return super().__getattr__(name)

    @property
    def _rows(self) -> Tensor:
        """The rows that this process holds."""
        return self.get_buffer(self._rows_name)

    @property
    def valid_length(self) -> Tensor | None:
        """Number of this process's rows that count as negatives, as a scalar tensor; None when all do."""
        if self.initial != "empty":
            return None
        if self._num_shards == 1:
            return self.filled
        return (self.filled - self._place + self._num_shards - 1) // self._num_shards

    @property
    def fill(self) -> Tensor:
        """Fraction of the rows that hold keys so far, as a scalar tensor; rows of a random start hold none."""
        return self.filled / self.length

    def columns(self, batch_keys: Float[Tensor, "m d"] | None = None, row_offset: int = 0) -> Columns:
        """The keys that the queries of a batch are compared with, for a loss.

        Args:
            batch_keys: (m d) keys of all processes in rank order, of which each query sees all but its own; None for
                the queue alone.
            row_offset: row of ``batch_keys`` that is the first query's own.
        """
        return Columns(self._rows, self.valid_length, batch_keys, row_offset, self._num_shards > 1)

    @torch.no_grad()
    def enqueue_(self, keys: Float[Tensor, "n d"]) -> None:
        """Write keys over the oldest rows; each process writes those that it holds.

        Args:
            keys: (n d) l2-normalized, the same in every process.

        Raises:
            ValueError: if there are more keys than rows, or not equally many for each shard.
        """
        num_keys = len(keys)
        if num_keys > self.length:
            raise ValueError(
                f"a queue of {self.length} rows cannot hold the {num_keys} keys of one step; "
                "use a longer queue or a smaller batch"
            )
        if self._num_shards == 1:
            enqueue_(self._rows, keys, self.cursor, self.filled)
            return
        num_own = distributed.equal_share("number of keys", num_keys, processes=self._num_shards)
        first = (self._place - self.cursor) % self._num_shards  # the first key that falls to this process
        own = keys[first + self._num_shards * torch.arange(num_own, device=keys.device)]
        row = (self.cursor + first) % self.length // self._num_shards
        enqueue_(self._rows, own, row, torch.zeros_like(row))
        self.cursor.add_(num_keys).remainder_(self.length)
        self.filled.add_(num_keys).clamp_(max=self.length)

    @property
    def sharded_buffers(self) -> tuple[str, ...]:
        """Names of the buffers that are a process's own: ``shard``, where the queue is sharded."""
        return ("shard",) if self._num_shards > 1 else ()

    def whole_state(self) -> dict[str, Tensor]:
        """What a checkpoint holds in place of a shard: all rows by name, as one process has them, on the CPU.

        All processes call it; it is empty in all but the first, and where the queue is not sharded.
        """
        whole = distributed.interleaved(self.shard) if self._num_shards > 1 else None
        return {} if whole is None else {"keys": whole}

    def extra_repr(self) -> str:
        """Length, dim, start and share, for ``print``."""
        share = f", {len(self._rows)} rows here" * (self._num_shards > 1)
        return f"{self.length}, {self._rows.shape[1]}, initial={self.initial!r}{share}"


def _random_rows(length: int, dim: int, seed: int) -> Iterator[Tensor]:
    """Random directions in parts, so that not all of them are in memory at once; whole, they would be the same."""
    # A generator of its own, on the CPU: the rows depend on neither the device nor what ran before.
    generator = torch.Generator("cpu").manual_seed(seed)
    bounds = [*range(0, max(1, length - _ROWS_AT_ONCE + 1), _ROWS_AT_ONCE), length]
    for start, stop in itertools.pairwise(bounds):
        yield unit(torch.randn(stop - start, dim, generator=generator, device="cpu"))


def _take_own_rows(queue: Queue, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Of a whole queue that is loaded, whatever had been sharded over how many processes, take this process's share."""
    if queue._num_shards > 1 and f"{prefix}keys" in state:
        state[f"{prefix}shard"] = state.pop(f"{prefix}keys")[queue._place :: queue._num_shards]
