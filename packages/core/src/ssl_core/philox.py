"""Counter-based random numbers: the same draw for the same counter, on any device, in any order.

Philox4x32-10 turns a key and a counter into four 32-bit words with integer arithmetic only, so that one image,
a whole batch, a worker process and a GPU draw identical numbers, and no number depends on those drawn before.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ssl_core.ops import cpp

# Multipliers and key increments of Philox4x32 (Salmon et al., 2011, section 3.3 and Random123's philox.h).
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_MASK = 0xFFFFFFFF
_ROUNDS = 10
# Elements of a permutation at once: what a round needs stays in the cache, and takes no more memory than the result.
_CHUNK = 2**16


def philox(seed: int, counters: Int64[Tensor, "n 4"]) -> Int64[Tensor, "n 4"]:
    """Four pseudo-random 32-bit words for each counter, in [0, 2**32).

    Args:
        seed: 64-bit key, any Python integer; taken modulo 2**64.
        counters: (n 4) counters, each entry in [0, 2**32).

    Returns:
        (n 4) words, int64 because torch has few operations on uint32.

    Example:
        >>> [hex(word) for word in philox(0, torch.zeros(1, 4, dtype=torch.int64))[0].tolist()]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    # int64 products wrap modulo 2**64, so shifting and masking gives the exact high word.
    word_0, word_1, word_2, word_3 = counters.unbind(1)
    key_0, key_1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        product_0, product_1 = word_0 * _MULTIPLIER_0, word_2 * _MULTIPLIER_1
        high_0, low_0 = (product_0 >> 32) & _MASK, product_0 & _MASK
        high_1, low_1 = (product_1 >> 32) & _MASK, product_1 & _MASK
        word_0, word_1, word_2, word_3 = (
            high_1 ^ word_1 ^ key_0,
            low_1,
            high_0 ^ word_3 ^ key_1,
            low_0,
        )
        key_0, key_1 = (key_0 + _WEYL_0) & _MASK, (key_1 + _WEYL_1) & _MASK
    return torch.stack([word_0, word_1, word_2, word_3], dim=1)


def uniform(seed: int, streams: Int64[Tensor, "n 3"], num_draws: int) -> Float64[Tensor, "n draws"]:
    """Uniform numbers in [0, 1) for each stream.

    Args:
        seed: 64-bit key.
        streams: (n 3) name of each row, such as (image, epoch, view), each entry in [0, 2**32).
        num_draws: number of draws for each row, >= 0; the first m of them do not depend on ``num_draws``.

    Returns:
        (n num_draws) draws in [0, 1), multiples of 2**-32.
    """
    if cpp.has_kernels(streams.device):
        return cpp.uniform(seed, streams, num_draws)
    return reference_uniform(seed, streams, num_draws)


def reference_uniform(seed: int, streams: Int64[Tensor, "n 3"], num_draws: int) -> Float64[Tensor, "n draws"]:
    """`uniform` in plain PyTorch: the words of the stream's counters 0, 1, ..., in order."""
    num_blocks = -(-num_draws // 4)
    blocks = torch.arange(num_blocks, device=streams.device)
    counters = torch.cat([streams.repeat_interleave(num_blocks, dim=0), blocks.repeat(len(streams))[:, None]], dim=1)
    words = philox(seed, counters).reshape(len(streams), num_blocks * 4)
    return words[:, :num_draws].double() / 2**32


def permutation(seed: int, stream: tuple[int, int], length: int) -> Int64[Tensor, " length"]:
    """A random order of ``range(length)`` that depends on the seed and the stream alone.

    Args:
        seed: 64-bit key.
        stream: name of the order, such as (purpose, epoch), each in [0, 2**32).
        length: number of elements, below 2**32.

    Returns:
        (length) indices in their new order.
    """
    return shuffled(seed, stream, [(0, length)])


def shuffled(seed: int, stream: tuple[int, int], ranges: Sequence[tuple[int, int]]) -> Int64[Tensor, " m"]:
    """The numbers of some ranges in the order in which :func:`permutation` has them among all.

    Args:
        seed: 64-bit key.
        stream: name of the order.
        ranges: first number of each range, and how many there are; none is in two of them.

    Returns:
        (m) the numbers.

    Example:
        >>> order = permutation(0, (1, 2), 10)
        >>> torch.equal(shuffled(0, (1, 2), [(6, 4), (0, 2)]), order[(order >= 6) | (order < 2)])
        True
    """
    ranges = sorted(ranges)  # of equal words the smaller number comes first
    ranks = [_ranks(seed, stream, first, length) for first, length in ranges]
    if len(ranges) == 1:
        return ranks[0].argsort(stable=True).add_(ranges[0][0])
    numbers = torch.cat([torch.arange(first, first + length) for first, length in ranges])
    return numbers[torch.cat(ranks).argsort(stable=True)]


def _ranks(seed: int, stream: tuple[int, int], first: int, length: int) -> Int64[Tensor, " length"]:
    """A number of 62 bits for each element: ties are practically impossible, and a stable sort makes them harmless."""
    ranks = torch.empty(length, dtype=torch.int64)
    for start in range(0, length, _CHUNK):
        elements = torch.arange(first + start, first + min(start + _CHUNK, length))
        # Streams of `uniform` end in a block number; a last word of 2**32 - 1 keeps permutations apart from them.
        names = (torch.full_like(elements, word) for word in (*stream, _MASK))
        words = philox(seed, torch.stack([elements, *names], dim=1))
        ranks[start : start + len(elements)] = (words[:, 0] << 30) | (words[:, 1] >> 2)
    return ranks
