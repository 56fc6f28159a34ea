"""The queue: past keys as negatives, in a ring buffer that is part of the method's state."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_core.nn.unit import unit
from ssl_core.ops import enqueue_


@dataclass(frozen=True)
class QueueConfig:
    """Settings of a :class:`Queue`.

    Attributes:
        length: number of rows k; at least the number of keys of one step.
        initial: rows at the start: ``random`` has directions spread evenly over the sphere, as in MoCo and SCE, all of
            which count as negatives; ``empty`` has none, and ``Queue.valid_length`` says how many count.
        dtype: number format of the rows; ``bfloat16`` halves the queue's memory, and on a GPU makes the products with
            it bfloat16 too.
    """

    length: int = 65536
    initial: Literal["random", "empty"] = "random"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"queue.length must be at least 1, got {self.length}")


class Queue(nn.Module):
    """The last keys, of which the oldest are replaced first.

    It has three buffers, which are saved with the method: ``keys`` (k d); ``cursor`` (), the next row to write; and
    ``filled`` (), the number of rows that hold keys so far.

    Args:
        config: length, start and number format.
        dim: d, size of an embedding.
        seed: seed of the random rows, which are the same on every device and in every process.

    Example:
        >>> queue = Queue(QueueConfig(4, "empty"), 2)
        >>> queue.enqueue_(torch.eye(2))
        >>> queue.valid_length, queue.fill
        (tensor(2), tensor(0.5000))
    """

    keys: Tensor
    cursor: Tensor
    filled: Tensor

    def __init__(self, config: QueueConfig, dim: int, *, seed: int = 0) -> None:
        super().__init__()
        self.initial = config.initial
        self.register_buffer("keys", torch.zeros(config.length, dim, dtype=getattr(torch, config.dtype)))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        if config.initial == "random":
            # A generator of its own, on the CPU: the rows depend on neither the device nor what ran before.
            generator = torch.Generator("cpu").manual_seed(seed)
            self.keys.copy_(unit(torch.randn(config.length, dim, generator=generator, device="cpu")))

    @property
    def valid_length(self) -> Tensor | None:
        """Number of rows that count as negatives, as a scalar tensor; None when all do."""
        return self.filled if self.initial == "empty" else None

    @property
    def fill(self) -> Tensor:
        """Fraction of the rows that hold keys so far, as a scalar tensor; rows of a random start hold none."""
        return self.filled / len(self.keys)

    @torch.no_grad()
    def enqueue_(self, keys: Float[Tensor, "n d"]) -> None:
        """Write keys over the oldest rows.

        Args:
            keys: (n d) l2-normalized, the same in every process.

        Raises:
            ValueError: if there are more keys than rows.
        """
        if len(keys) > len(self.keys):
            raise ValueError(
                f"a queue of {len(self.keys)} rows cannot hold the {len(keys)} keys of one step; "
                "use a longer queue or a smaller batch"
            )
        enqueue_(self.keys, keys, self.cursor, self.filled)

    def extra_repr(self) -> str:
        """Length, dim and start, for ``print``."""
        return f"{len(self.keys)}, {self.keys.shape[1]}, initial={self.initial!r}"
