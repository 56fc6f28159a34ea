"""The queue: past keys as negatives, in a ring buffer that is part of the method's state."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_core.nn.unit import unit
from ssl_core.ops import enqueue_


class Queue(nn.Module):
    """The last ``length`` keys, oldest replaced first.

    Three buffers, saved with the method: ``keys`` (k d), ``cursor`` () the next row to write, and ``filled``
    () the number of rows that hold keys so far.

    Args:
        length: rows k; at least the keys of one step.
        dim: embedding size d.
        initial: ``random`` starts with directions drawn evenly from the sphere, as MoCo and SCE do, all of
            which count as negatives; ``empty`` starts with none, and ``valid_length`` says how many count.
        seed: of the random rows; they are the same on every device and in every process.
        dtype: of ``keys``.

    Example:
        >>> queue = Queue(4, 2, initial="empty")
        >>> queue.enqueue_(torch.eye(2))
        >>> queue.valid_length
        tensor(2)
    """

    keys: Tensor
    cursor: Tensor
    filled: Tensor

    def __init__(
        self,
        length: int,
        dim: int,
        *,
        initial: Literal["random", "empty"] = "random",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"queue length must be at least 1, got {length}")
        self.initial = initial
        self.register_buffer("keys", torch.zeros(length, dim, dtype=dtype))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        if initial == "random":
            # A generator of its own, on the CPU: the rows depend on neither the device nor what ran before.
            generator = torch.Generator("cpu").manual_seed(seed)
            rows = torch.randn(length, dim, generator=generator, device="cpu")
            self.keys.copy_(unit(rows))

    @property
    def valid_length(self) -> Tensor | None:
        """Rows that count as negatives, as a scalar tensor; None when all do."""
        return self.filled if self.initial == "empty" else None

    @torch.no_grad()
    def enqueue_(self, keys: Float[Tensor, "n d"]) -> None:
        """Write keys over the oldest rows.

        Args:
            keys: (n d) l2-normalised, the same in every process.

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
