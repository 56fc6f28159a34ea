"""Nearest images among very many: exact where these are few, and otherwise by cells of k-means.

Each row lies in the cell of its nearest center, and a query is compared with the rows of the few cells whose centers
are nearest to it. Two images that are near-duplicates have nearly the same order of centers, so that hardly one is
missed; of neighbors that are far, some are. Queries are taken cell by cell, so that all is products of matrices.
Legend: m images of the bank, n queries, f features, c cells.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from ssl_core.evaluate.knn import nearest
from ssl_core.philox import permutation
from ssl_core.progress import progress_bar

EXACT = 20_000  # images up to which all pairs are compared, in half a minute
PROBES = 16  # cells that a query looks into
_SAMPLE_STREAM = (0x63656C6C, 0)  # "cell"
_SAMPLE = 64  # rows for each center that k-means sees
_ITERATIONS = 10
_ROWS, _PAIRS = 8192, 2**24  # a block of rows; of similarities, 64 MiB


def search(
    bank: Float[Tensor, "m f"], queries: Float[Tensor, "n f"], k: int, *, exact: int = EXACT, progress: str = ""
) -> tuple[Float32[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Cosine similarity and index of the k rows of a bank that are nearest to each query, nearest first, on the CPU.

    Args:
        bank: (m f) l2-normalized features to search.
        queries: (n f) l2-normalized features.
        k: number of neighbors, in [1, m].
        exact: largest bank in which no neighbor is missed; a larger one is parted into cells, of which a query that
            finds fewer than k rows has similarity -inf in the last places.
        progress: text before a progress bar; empty shows none.

    Returns:
        (n k) similarities, and (n k) indices into the bank.
    """
    if len(bank) <= exact:
        return nearest(bank, queries, k)
    centers = _centers(bank)
    home = _nearest_centers(bank, centers, 1)[:, 0]
    probed = _nearest_centers(queries, centers, min(PROBES, len(centers)))
    members, asking = _by_cell(home[:, None], len(centers)), _by_cell(probed, len(centers))
    similarity, index = torch.full((len(queries), k), -math.inf), torch.zeros(len(queries), k, dtype=torch.int64)
    with progress_bar(len(centers), "cell", desc=progress, disable=not progress) as bar:
        for inside, outside in zip(members, asking, strict=True):
            rows = bank[inside]
            for block in torch.split(outside, max(1, _PAIRS // max(1, len(inside)))):
                found, place = (queries[block] @ rows.T).topk(min(k, len(inside)), dim=1)
                best, chosen = torch.cat([similarity[block], found], dim=1).topk(k, dim=1)
                similarity[block] = best
                index[block] = torch.cat([index[block], inside[place]], dim=1).gather(1, chosen)
            bar.update()
    return similarity, index


def nearest_others(
    unit: Float[Tensor, "n f"], k: int, *, exact: int = EXACT, progress: str = ""
) -> tuple[Float32[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """The k nearest other rows of each row, as :func:`search` finds them; k is in [1, n - 1].

    Example:
        >>> nearest_others(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), 1)[1].flatten()
        tensor([1, 2, 1])
    """
    similarity, index = search(unit, unit, k + 1, exact=exact, progress=progress)
    others = index != torch.arange(len(unit))[:, None]
    others[others.all(dim=1), -1] = False  # equal rows have taken the own place
    return similarity[others].reshape(-1, k), index[others].reshape(-1, k)


def _centers(bank: Tensor) -> Tensor:
    """Centers of about sqrt(m) cells, by k-means of a sample with cosine as its similarity."""
    number = round(math.sqrt(len(bank)))
    sample = bank[permutation(0, _SAMPLE_STREAM, len(bank))[: _SAMPLE * number]]
    centers = sample[:number].clone()
    for _ in range(_ITERATIONS):
        sums = torch.zeros_like(centers).index_add_(0, _nearest_centers(sample, centers, 1)[:, 0], sample)
        filled = sums.norm(dim=1) > 0
        centers[filled] = F.normalize(sums[filled], dim=1)
    return centers


def _nearest_centers(rows: Tensor, centers: Tensor, count: int) -> Int64[Tensor, "n count"]:
    return torch.cat([(block @ centers.T).topk(count, dim=1).indices for block in torch.split(rows, _ROWS)])


def _by_cell(cells: Int64[Tensor, "n count"], number: int) -> list[Tensor]:
    """The rows that name each cell."""
    order = cells.flatten().argsort(stable=True)
    return list(torch.split(order // cells.shape[1], cells.flatten().bincount(minlength=number).tolist()))
