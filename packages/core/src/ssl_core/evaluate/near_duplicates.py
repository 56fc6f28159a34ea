"""Near-duplicates and outliers among frozen features.

Features are whitened first, so that no few directions, such as brightness, decide alone; retrieval does so
(Jegou and Chum, 2012). Two images are near-duplicates if their cosine is above a threshold, which follows from the
k nearest neighbors of all images. Where unrelated images lie around image i, as many as

    (k - 1) (t / r_ik)^m

are expected within the distance t, by the distance r_ik of its k-th neighbor and the dimension m of the features:
points of a Poisson process. The threshold is the t at which these numbers add up to 1 over all images. The dimension is
log(2) / (median of log(r_ik / r_ij)) with j = k / 2, for (r_ij / r_ik)^m is Beta(j, k - j)-distributed, with the
median 1/2; it is that of the densest quarter of the images, of which nearly all of the sum is. So up to j - 1 copies of
each image change little; of images that lie even closer than the densest hundredth, such as fifty frames of a film, the
k-th neighbor counts as far as the hundredth's.
Legend: n images, f features, k neighbors, p components.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

NEIGHBOURS = 10
# Directions that are whitened, at most and at least, and rows that each needs beyond the least.
_COMPONENTS, _LEAST_COMPONENTS, _ROWS_EACH = 256, 10, 10
_FLOOR = 1e-4  # of the largest variance; directions below it are noise
_ROWS = 8192
_LEAST, _EQUAL = 100, 0.9999  # rows that a distribution needs, and the cosine of equal features otherwise


class Whitening(NamedTuple):
    """The principal components of features, each divided by its standard deviation.

    Attributes:
        mean: (f) mean of the features.
        weights: (f p) directions, scaled.
    """

    mean: Float32[Tensor, " f"]
    weights: Float32[Tensor, "f p"]

    def unit(self, features: Float[Tensor, "n f"]) -> Float32[Tensor, "n p"]:
        """Whitened rows of length 1."""
        blocks = torch.split(features, _ROWS)
        return torch.cat([F.normalize((block.float() - self.mean) @ self.weights, dim=1) for block in blocks])


@dataclass(frozen=True)
class NearDuplicates:
    """Groups of images that are nearly the same.

    Attributes:
        threshold: least cosine of whitened features.
        reason: derivation of the threshold in words.
        groups: images of each group; all are within the threshold of the first, which is the one to keep.
    """

    threshold: float
    reason: str
    groups: list[list[int]]


def whitening(features: Float[Tensor, "n f"]) -> Whitening:
    """The whitening of some features, by one component for ten images, of which there are ten to 256.

    Raises:
        ValueError: if all features are the same.
    """
    mean = features.mean(dim=0, dtype=torch.float64)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for block in torch.split(features, _ROWS):
        centered = block.double() - mean
        covariance.addmm_(centered.T, centered, alpha=1 / len(features))
    variance, directions = torch.linalg.eigh(covariance)  # ascending
    if variance[-1] <= 1e-12 * mean.square().mean():
        raise ValueError(f"the features of {len(features)} images are all the same: the encoder has collapsed")
    count = min(_COMPONENTS, max(_LEAST_COMPONENTS, len(features) // _ROWS_EACH))
    weights = directions[:, -count:] / variance[-count:].clamp_min(_FLOOR * variance[-1]).sqrt()
    return Whitening(mean.float(), weights.float())


def near_duplicates(
    unit: Float[Tensor, "n p"],
    similarity: Float[Tensor, "n k"],
    index: Int64[Tensor, "n k"],
    *,
    threshold: float | None = None,
    sizes: Sequence[int] | None = None,
) -> NearDuplicates:
    """Groups of images whose features are nearly the same.

    Args:
        unit: (n p) rows of :meth:`Whitening.unit`.
        similarity: (n k) cosine of each row to its nearest others, see :func:`ssl_core.evaluate.nearest_others`; k
            is ``NEIGHBOURS`` where there are as many.
        index: (n k) those others.
        threshold: least cosine; None takes that of :func:`chosen_threshold`.
        sizes: (n) pixels of each image, the largest of which is kept; None keeps the first.

    Example:
        >>> from ssl_core.evaluate import nearest_others
        >>> unit = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.99, 0.01], [-1.0, 0.0]]))
        >>> near_duplicates(unit, *nearest_others(unit, 1), threshold=0.9, sizes=[1, 1, 4, 1]).groups
        [[2, 0]]
    """
    reason = "given"
    if threshold is None:
        threshold, reason = chosen_threshold(similarity)
    size = torch.tensor(sizes if sizes is not None else [0] * len(unit))
    groups = []
    for members in _components(similarity >= threshold, index):
        left = members[size[members].argsort(descending=True, stable=True)]
        while len(left) > 1:
            near = unit[left] @ unit[left[0]] >= threshold
            near[0] = True
            if near.sum() > 1:
                groups.append(left[near].tolist())
            left = left[~near]
    return NearDuplicates(threshold, reason, groups)


def chosen_threshold(similarity: Float[Tensor, "n k"]) -> tuple[float, str]:
    """The cosine above which one of n unrelated images is expected to be to another, and its derivation in words.

    Args:
        similarity: (n k) cosine of each image to its nearest others, nearest first; ten where there are as many.
    """
    number, k = similarity.shape
    distance = (1 - similarity.double()).clamp_min(1e-7).log()
    if number < _LEAST:
        return _EQUAL, f"{number:,} images say too little of how near unrelated ones come, so only equal features count"
    half, whole = distance[:, k // 2 - 1], distance[:, k - 1]
    closest, close = (float(whole.kthvalue(1 + number // part).values) for part in (100, 4))
    whole = whole.clamp_min(closest)
    spread = float((whole - half)[whole <= close].median())
    if spread <= 0:
        return _EQUAL, "most images have several with the same features, so only equal features count"
    dimension = math.log(2) / spread
    expected = math.log(k - 1) + float(torch.logsumexp(-dimension * whole, dim=0))  # at distance 1
    threshold = 1 - math.exp(-expected / dimension)
    return threshold, (
        f"where one of {number:,} unrelated images is expected to come as near to another; the median cosine is "
        f"{float(similarity[:, 0].median()):.3f} to the nearest and {float(similarity[:, -1].median()):.3f} to the "
        f"{k}th nearest"
    )


def _components(linked: Tensor, index: Tensor) -> list[Tensor]:
    """The images of each connected component of two or more, ascending."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    number = len(index)
    rows = linked.nonzero()[:, 0].numpy()
    # SciPy's has no types.
    graph = coo_matrix((linked[linked].numpy(), (rows, index[linked].numpy())), shape=(number, number))  # type: ignore[no-untyped-call]
    component = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
    sizes = component.bincount()
    several = (sizes[component] > 1).nonzero().flatten()
    order = several[component[several].argsort(stable=True)]
    return list(torch.split(order, sizes[sizes > 1].tolist()))


def outliers(similarity: Float[Tensor, "n k"], count: int) -> list[int]:
    """The images that are farthest from all others, by the mean cosine to their k nearest, farthest first.

    Args:
        similarity: (n k) cosine of whitened features to the nearest others.
        count: number of images; all where there are no more.
    """
    return similarity.mean(dim=1).argsort(stable=True)[:count].tolist()


def false_negatives(group_sizes: Sequence[int], num_images: int, queue_length: int) -> tuple[float, float]:
    """Expected keys in a queue that are no negatives of a query: of its duplicates, and of its own image.

    Each epoch sees all n images in a random order and a queue holds the last k keys. So each of the s - 1 others of a
    group of s images is there k / n times, on average over queries sum s (s - 1) / n of them. An image's own key of the
    epoch before is there k^2 / (2 n^2) times, or k / n - 1/2 times where k > n.

    Args:
        group_sizes: s, number of images of each group of duplicates.
        num_images: n.
        queue_length: k.

    Example:
        >>> false_negatives([2, 2], num_images=100, queue_length=50)
        (0.02, 0.125)
    """
    share = queue_length / num_images
    others = sum(size * (size - 1) for size in group_sizes) / num_images
    return share * others, share**2 / 2 if share <= 1 else share - 0.5
