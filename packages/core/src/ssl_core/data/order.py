"""The order of the images in an epoch, a function of (seed, epoch): at random, or a few shards at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Int64
from torch import Tensor

from ssl_core.philox import permutation, shuffled

_ORDER_STREAM = 0x6F726472  # "ordr"
_SHARD_STREAM = 0x73686172  # "shar"


@dataclass(frozen=True, eq=False)
class Order:
    """Shards at random, a window of them at a time, whose images are at random.

    The images of a window stand in it as they do in the order of all images together, so that one window of all shards
    is that order.

    Attributes:
        lengths: (s) number of images of each shard; one shard of all is their order at random.
        window: number of shards whose images are mixed.

    Raises:
        ValueError: if the window holds no shard.

    Example:
        >>> import torch
        >>> order = Order(torch.tensor([3, 2, 4]), window=2)
        >>> [part.sort().values.tolist() for part in order.parts(seed=0, epoch=0)]
        [[0, 1, 2, 5, 6, 7, 8], [3, 4]]
    """

    lengths: Int64[Tensor, " s"]
    window: int = 1

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"data.window must be at least 1, got {self.window}")

    def parts(self, seed: int, epoch: int, start: int = 0) -> Iterator[Int64[Tensor, " _"]]:
        """The images of an epoch in their order, window by window.

        Args:
            seed: seed of the order.
            epoch: number of the epoch.
            start: number of images to leave out at its beginning; windows that lie there are not made.
        """
        firsts = (self.lengths.cumsum(0) - self.lengths).tolist()
        lengths = self.lengths.tolist()
        shards = permutation(seed, (_SHARD_STREAM, epoch), len(lengths)).tolist()
        for first in range(0, len(shards), self.window):
            ranges = [(firsts[shard], lengths[shard]) for shard in shards[first : first + self.window]]
            number = sum(length for _, length in ranges)
            if start < number:
                yield shuffled(seed, (_ORDER_STREAM, epoch), ranges)[start:]
            start = max(0, start - number)
