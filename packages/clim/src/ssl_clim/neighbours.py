"""Positives of every image of the training set, from their features: CLIM's offline step.

Two searches with faiss, k-means and the k nearest neighbors, and the rule that picks p positives from them:

    Omega_p(i) = { x in Omega_1(i) and Omega_2(i) : d(x, c(i)) <= d(x_i, c(i)) }                               (eq. 2)

Omega_1 is the cluster of image i, Omega_2 its k nearest neighbors, c(i) the cluster's center, d the L2 distance.
Paper: Li et al., 2020, section 3.2.1 and appendix A.2, arXiv 2011.02697.
Legend: n images, d embedding, m clusters, k neighbors, p positives, q queries, b rows of a block.

Features are float32 in memory or float16 in a ``numpy.memmap``: rows are read and converted a block at a time.
"""

import importlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import packages_distributions, version
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32

from ssl_core.philox import permutation, uniform
from ssl_core.progress import progress_bar

logger = logging.getLogger(__name__)

Selection = Literal["random", "knn", "kmeans", "knn_kmeans", "center_wise"]

_BLOCK_ROWS = 32768  # 16 MiB of float32 at d = 128
_CHOICE_STREAM = 0x63686F69  # "choi"
_SAMPLE_STREAM = 0x6B6D6561  # "kmea"
_EXTRAS = 'pip install "ssl-clim[cpu]" or pip install "ssl-clim[gpu]"'


@dataclass(frozen=True)
class Faiss:
    """The faiss that runs, and where: on a GPU by its index, or on the CPU (None); the description is for the log."""

    library: ModuleType
    gpu: int | None
    description: str

    def knn(self) -> Any:
        """Exact search: (queries, database, k) -> squared distances, indices (n k). Holds GPU memory while it lives."""
        if self.gpu is None:
            return self.library.knn
        return partial(self.library.knn_gpu, self.library.StandardGpuResources(), device=self.gpu)

    def flat_index(self, dim: int) -> Any:
        """An empty index for exact search by L2."""
        index = self.library.IndexFlatL2(dim)
        if self.gpu is None:
            return index
        return self.library.index_cpu_to_gpu(self.library.StandardGpuResources(), self.gpu, index)


def load_faiss(device: torch.device) -> Faiss:
    """Import faiss, to run on the device, or on the CPU where it cannot use that GPU; the description says why.

    Raises:
        ImportError: if no distribution or more than one provides faiss, or if importing it fails.
    """
    found = sorted(set(packages_distributions().get("faiss", [])))
    if not found:
        raise ImportError(f"CLIM finds positives with faiss, which is not installed; {_EXTRAS}")
    if len(found) > 1:
        names = " ".join(found)
        raise ImportError(
            f"{', '.join(found)} are all installed, and have overwritten each other's files; "
            f"pip uninstall {names}, then {_EXTRAS}"
        )
    name = f"{found[0]} {version(found[0])}"
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells of every instruction set that it tries
    try:
        library = importlib.import_module("faiss")
    except (ImportError, RuntimeError, OSError) as error:  # faiss-gpu's own words for missing libraries, the linker's
        raise ImportError(f"{name} cannot be imported: {error}; pip uninstall {found[0]}, then {_EXTRAS}") from error
    if not hasattr(library, "Clustering"):  # what is left of an uninstalled one imports as an empty package
        raise ImportError(f"{name} cannot be imported: it is not whole; pip uninstall {found[0]}, then {_EXTRAS}")
    if device.type != "cuda":
        return Faiss(library, None, f"{name} on the CPU")
    if not hasattr(library, "StandardGpuResources"):
        return Faiss(library, None, f"{name} on the CPU: a build without GPU; ssl-clim[gpu] would use {device}")
    gpu = torch.cuda.current_device() if device.index is None else device.index
    if gpu >= library.get_num_gpus():
        return Faiss(library, None, f"{name} on the CPU: it sees {library.get_num_gpus()} GPUs, so not cuda:{gpu}")
    return Faiss(library, gpu, f"{name} on cuda:{gpu}")


class Clusters(NamedTuple):
    """The clusters that k-means found.

    Attributes:
        centroids: (m d) centers of the clusters.
        assignment: (n) cluster of each row, the one with the nearest center.
        distance: (n) squared L2 distance of each row to its cluster's center, equal for equal rows of a cluster.
        num_trained: number of rows that k-means saw: all n, or a sample of them.
    """

    centroids: Float32[np.ndarray, "m d"]
    assignment: Int32[np.ndarray, " n"]
    distance: Float32[np.ndarray, " n"]
    num_trained: int


class Positives(NamedTuple):
    """(n p) distinct rows, never the image's own: first as many as the rule chose (n), then the nearest others."""

    table: Int32[np.ndarray, "n p"]
    chosen: Int32[np.ndarray, " n"]


def num_clusters(n: int) -> int:
    """As many images in a cluster as the paper's 10,000 clusters have on ImageNet's 1.28 million, 128; at least 1.

    Example:
        >>> num_clusters(1_280_000), num_clusters(50_000), num_clusters(10)
        (10000, 391, 1)
    """
    return max(1, round(n / 128))


def check_counts(n: int, *, clusters: int = 1, neighbours: int = 1, positives: int = 1) -> None:
    """Refuse counts that :func:`find_positives` could not serve for n images.

    Raises:
        ValueError: unless 1 <= clusters <= n and 1 <= positives <= neighbours < n; names the keys of ``neighbours``.
    """
    if not 1 <= clusters <= n:
        raise ValueError(
            f"neighbours.clusters {clusters}: {n} images make at least 1 cluster and at most {n}; "
            "null makes one for every 128"
        )
    if not 1 <= neighbours < n:
        raise ValueError(f"neighbours.k {neighbours}: of {n} images, each has at least 1 and at most {n - 1}")
    if not 1 <= positives <= neighbours:
        raise ValueError(
            f"neighbours.positives {positives}: at least 1, and at most neighbours.k, which is {neighbours}"
        )


def find_positives(
    features: Float[np.ndarray, "n d"],
    selection: Selection,
    faiss: Faiss,
    *,
    clusters: int,
    neighbours: int = 40,
    positives: int = 10,
    seed: int,
    refresh: int = 0,
    spherical: bool = False,
    progress: str = "",
) -> tuple[Positives, Clusters | None]:
    """Positives of every row of the features, by the search that a selection needs.

    Args:
        features: (n d) features, C-contiguous, float32 or float16, finite.
        selection: name of one of the five functions below.
        faiss: module that :func:`load_faiss` returns.
        clusters: m, number of clusters of k-means.
        neighbours: k, number of nearest neighbors.
        positives: p, number of positives of each image.
        seed: seed of k-means and of the random choice.
        refresh: number of the search in this run, so that each chooses anew.
        spherical: whether k-means is spherical, see :func:`cluster`.
        progress: text before a progress bar; empty shows none.

    Returns:
        The positives, and the clusters that they were chosen with, None for a selection without clusters.

    Raises:
        ValueError: if the counts do not fit together or the features are not as said.
    """
    check_counts(len(features), clusters=clusters, neighbours=neighbours, positives=positives)
    choice = {"seed": seed, "refresh": refresh}
    if selection == "random":
        return random_positives(len(features), positives, **choice), None
    nearest_nk = nearest(features, neighbours, faiss, progress=progress)
    if selection == "knn":
        return knn_positives(nearest_nk, positives), None
    found = cluster(features, clusters, faiss, seed=seed, spherical=spherical)
    choose = {"kmeans": kmeans_positives, "knn_kmeans": knn_kmeans_positives, "center_wise": center_wise_positives}
    return choose[selection](found, nearest_nk, positives, **choice), found


def cluster(
    features: Float[np.ndarray, "n d"],
    num_clusters: int,
    faiss: Faiss,
    *,
    seed: int,
    iterations: int = 20,
    restarts: int = 5,
    spherical: bool = False,
    max_points_per_centroid: int = 1000,
) -> Clusters:
    """Clusters of the rows by k-means with L2 distance, the best of several starts.

    The iterations, restarts and points per centroid are those that PCL takes on ImageNet (Li et al., 2021,
    arXiv 2005.04966); CLIM states none. The same bits for the same seed, machine and number of threads; on a GPU
    sums are taken in any order. A cluster can be empty.

    Args:
        features: (n d) features, C-contiguous, float32 or float16, finite.
        num_clusters: m, number of clusters, in [1, n].
        faiss: module that :func:`load_faiss` returns.
        seed: seed of the first centers and of the sample.
        iterations: number of iterations of each start of k-means.
        restarts: number of starts, of which the one with the least sum of squared distances counts.
        spherical: whether centers are scaled to length 1 after each iteration.
        max_points_per_centroid: largest number of rows for each center. Of more, k-means sees a random sample of that
            size, which is held in memory; every row is assigned.

    Raises:
        ValueError: if num_clusters or the features are not as said.
    """
    n, dim = features.shape
    check_counts(n, clusters=num_clusters)
    _check_features(features)
    num_trained = min(n, max_points_per_centroid * num_clusters)
    seen = features
    if num_trained < n:
        seen = features[permutation(seed, (_SAMPLE_STREAM, 0), n)[:num_trained].sort().values.numpy()]

    logger.info(
        "k-means: %s clusters of %s embeddings, %s starts of %s iterations",
        f"{num_clusters:,}",
        f"{num_trained:,}",
        restarts,
        iterations,
    )
    library = faiss.library
    kmeans = library.Clustering(dim, num_clusters)
    kmeans.niter, kmeans.nredo, kmeans.spherical, kmeans.seed = iterations, restarts, spherical, seed & 0x7FFFFFFF
    # The sample is drawn; and the summary says how small clusters are, so that faiss need not print it.
    kmeans.max_points_per_centroid, kmeans.min_points_per_centroid = max_points_per_centroid, 1
    # As codes, so that faiss converts a block of float16 at a time, where an array would become float32 as a whole.
    codec = library.index_factory(dim, {"float32": "Flat", "float16": "SQfp16"}[features.dtype.name])
    kmeans.train_encoded(seen.view(np.uint8), codec, faiss.flat_index(dim))
    centroids = library.vector_to_array(kmeans.centroids).reshape(num_clusters, dim)

    return Clusters(centroids, *assigned(features, centroids, faiss), num_trained)


def assigned(
    features: Float[np.ndarray, "n d"], centroids: Float32[np.ndarray, "m d"], faiss: Faiss
) -> tuple[Int32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Nearest center of each row, and the squared distance to it."""
    n, knn = len(features), faiss.knn()
    assignment, distance = np.empty(n, np.int32), np.empty(n, np.float32)
    for rows in _blocks(n, _BLOCK_ROWS):
        block = _float32(features, rows)
        assignment[rows] = knn(block, centroids, 1)[1][:, 0]
        # Not faiss's |x|^2 + |c|^2 - 2 x.c: it cancels, and a product's rounding can depend on the row's place.
        distance[rows] = np.square(block - centroids[assignment[rows]]).sum(axis=1)
    return assignment, distance


def nearest(
    features: Float[np.ndarray, "n d"],
    k: int,
    faiss: Faiss,
    *,
    num_queries: int | None = None,
    block_rows: int = _BLOCK_ROWS,
    progress: str = "",
) -> Int32[np.ndarray, "q k"]:
    """The k rows nearest to each row by L2 distance over all others, nearest first.

    Exact up to the rounding of |x|^2 + |y|^2 - 2 x.y in float32: rows whose squared distances differ by about
    1e-7 |x|^2 can change places. On the CPU the lower index comes first of those that are equal after rounding.

    Args:
        features: (n d) features, C-contiguous, float32 or float16, finite.
        k: number of neighbors, in [1, n - 1].
        faiss: module that :func:`load_faiss` returns.
        num_queries: q, number of the first rows that are searched for; None is all n.
        block_rows: number of rows of queries, and of the set, at once; changes memory and speed only.
        progress: text before a progress bar; empty shows none.

    Raises:
        ValueError: if k or the features are not as said.
    """
    n = len(features)
    check_counts(n, neighbours=k)
    _check_features(features)
    num_queries = n if num_queries is None else num_queries
    knn, nearest_qk = faiss.knn(), np.empty((num_queries, k), np.int32)
    with progress_bar(num_queries, "img", desc=progress, disable=not progress) as bar:
        for queries in _blocks(num_queries, block_rows):
            query = _float32(features, queries)
            heap = faiss.library.ResultHeap(len(query), k + 1)
            for database in _blocks(n, block_rows):
                block = _float32(features, database)
                distance, index = knn(query, block, min(k + 1, len(block)))
                heap.add_result(distance, index + database.start)
            heap.finalize()
            # The row itself goes, wherever it stands; if k + 1 rows equal to it have pushed it out, the last.
            others = np.arange(queries.start, queries.stop)[:, None] != heap.I
            others[others.all(axis=1), -1] = False
            nearest_qk[queries] = heap.I[others].reshape(-1, k)
            bar.update(len(query))
    return nearest_qk


def random_positives(n: int, p: int, *, seed: int, refresh: int) -> Positives:
    """Selection ``random``: p others of all n rows."""

    def block(rows: slice) -> tuple[np.ndarray, int]:
        drawn = _subsets(np.full(rows.stop - rows.start, n - 1), _draws(seed, refresh, rows, p))
        return _skipping(drawn, np.arange(rows.start, rows.stop)), p

    return _in_blocks(n, p, block)


def knn_positives(neighbours: Int32[np.ndarray, "n k"], p: int) -> Positives:
    """Selection ``knn``: the p nearest."""
    return Positives(neighbours[:, :p].copy(), np.full(len(neighbours), p, np.int32))


def kmeans_positives(
    clusters: Clusters, neighbours: Int32[np.ndarray, "n k"], p: int, *, seed: int, refresh: int
) -> Positives:
    """Selection ``kmeans``: p random others of the own cluster; where it has fewer, all, and the nearest outside."""
    n = len(neighbours)
    members = np.argsort(clusters.assignment, kind="stable")  # cluster after cluster
    size = np.bincount(clusters.assignment)
    start = np.cumsum(size) - size
    place = np.empty(n, np.int64)  # of each row within its cluster
    place[members] = np.arange(n) - start[clusters.assignment[members]]

    def block(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        own, near = clusters.assignment[rows], neighbours[rows]
        others = size[own] - 1
        drawn = _skipping(_subsets(others, _draws(seed, refresh, rows, p)), place[rows])
        inside = members[np.minimum(start[own, None] + drawn, n - 1)]
        outside_first = (clusters.assignment[near] == own[:, None]).argsort(axis=1, kind="stable")
        outside = np.take_along_axis(near, outside_first, axis=1)
        filling = np.arange(p) - others[:, None]  # from 0 on in the columns that the cluster cannot fill
        filled = np.take_along_axis(outside, np.maximum(filling, 0), axis=1)
        return np.where(filling < 0, inside, filled), np.minimum(others, p)

    return _in_blocks(n, p, block)


def knn_kmeans_positives(
    clusters: Clusters, neighbours: Int32[np.ndarray, "n k"], p: int, *, seed: int, refresh: int
) -> Positives:
    """Selection ``knn_kmeans``: p random ones of the neighbors in the own cluster; filled as ``center_wise``."""
    same_cluster = clusters.assignment[neighbours] == clusters.assignment[:, None]
    return _neighbours_where(same_cluster, neighbours, p, seed, refresh)


def center_wise_positives(
    clusters: Clusters, neighbours: Int32[np.ndarray, "n k"], p: int, *, seed: int, refresh: int
) -> Positives:
    """Selection ``center_wise``: p random ones of Omega_p, eq. (2); where it has fewer, all, and the nearest others."""
    same_cluster = clusters.assignment[neighbours] == clusters.assignment[:, None]
    no_farther = clusters.distance[neighbours] <= clusters.distance[:, None]
    return _neighbours_where(same_cluster & no_farther, neighbours, p, seed, refresh)


def label_purity(table: Int32[np.ndarray, "n p"], labels: Int[np.ndarray, " n"]) -> float:
    """Fraction of positives with their image's label, where both labels are known (>= 0); nan where none are.

    Example:
        >>> label_purity(np.array([[1, 2], [0, 2], [0, 1]], np.int32), np.array([5, 5, 3]))
        0.3333333333333333
    """
    own, of_positives = labels[:, None], labels[table]
    known = (own >= 0) & (of_positives >= 0)
    return float(((own == of_positives) & known).sum() / known.sum()) if known.any() else float("nan")


def summary(
    positives: Positives, clusters: Clusters | None, labels: Int[np.ndarray, " n"] | None = None
) -> dict[str, float]:
    """Numbers for the log: positives before filling, sizes of clusters, and purity where there are labels."""
    numbers = {"positives_chosen": float(positives.chosen.mean())}
    if clusters is not None:
        size = np.bincount(clusters.assignment, minlength=len(clusters.centroids))
        numbers |= {
            "cluster_size_min": float(size.min()),
            "cluster_size_median": float(np.median(size)),
            "cluster_size_max": float(size.max()),
            "clusters_empty": float((size == 0).sum()),
            "kmeans_trained_on": float(clusters.num_trained),
        }
    if labels is not None and (labels >= 0).any():
        numbers["positives_purity"] = label_purity(positives.table, labels)
    return numbers


def _neighbours_where(
    allowed: Bool[np.ndarray, "n k"], neighbours: Int32[np.ndarray, "n k"], p: int, seed: int, refresh: int
) -> Positives:
    n, k = neighbours.shape

    def block(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        # One key decides choice and filling: random below 1 for the allowed, then the others by rank.
        key = np.where(allowed[rows], _draws(seed, refresh, rows, k), 1.0 + np.arange(k))
        first = key.argsort(axis=1, kind="stable")[:, :p]
        return np.take_along_axis(neighbours[rows], first, axis=1), np.minimum(allowed[rows].sum(axis=1), p)

    return _in_blocks(n, p, block)


def _in_blocks(n: int, p: int, block: Callable[[slice], tuple[np.ndarray, np.ndarray | int]]) -> Positives:
    positives = Positives(np.empty((n, p), np.int32), np.empty(n, np.int32))
    for rows in _blocks(n, _BLOCK_ROWS):
        positives.table[rows], positives.chosen[rows] = block(rows)
    return positives


def _draws(seed: int, refresh: int, rows: slice, num_draws: int) -> Float64[np.ndarray, "b draws"]:
    """Uniform numbers that depend on seed, refresh and row alone, and share no stream with the views'."""
    row = torch.arange(rows.start, rows.stop)
    streams = torch.stack([row, torch.full_like(row, refresh), torch.full_like(row, _CHOICE_STREAM)], dim=1)
    return np.asarray(uniform(seed, streams, num_draws))


def _skipping(drawn: Int[np.ndarray, "b p"], own: Int[np.ndarray, " b"]) -> Int[np.ndarray, "b p"]:
    """Draws from all places but the own, from draws of as many places less one."""
    return np.where(drawn >= own[:, None], drawn + 1, drawn)


def _subsets(size: Int[np.ndarray, " b"], draws: Float64[np.ndarray, "b p"]) -> Int[np.ndarray, "b p"]:
    """A random subset of p of range(size) for each row, each as likely; range(p) where size < p.

    R. Floyd's algorithm: the j-th draw is from range(size - p + j + 1), and a repeated one becomes the last of them.
    """
    p = draws.shape[1]
    last = size[:, None] - p + np.arange(p)
    subset: np.ndarray = np.floor(draws * (last + 1)).astype(np.int64)
    for j in range(1, p):
        repeated = (subset[:, :j] == subset[:, j, None]).any(axis=1)
        subset[repeated, j] = last[repeated, j]
    subset[size < p] = np.arange(p)
    return subset


def _check_features(features: np.ndarray) -> None:
    if features.dtype not in (np.float32, np.float16) or not features.flags.c_contiguous:
        raise ValueError(
            f"features are {features.dtype}, C-contiguous: {features.flags.c_contiguous}; "
            "pass a C-contiguous array of float32 or float16"
        )
    for rows in _blocks(len(features), _BLOCK_ROWS):
        finite = np.isfinite(features[rows]).all(axis=1)
        if not finite.all():
            row = rows.start + int(finite.argmin())
            raise ValueError(f"the features of row {row} are not finite: the encoder has diverged")


def _blocks(n: int, rows: int) -> Iterator[slice]:
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def _float32(features: np.ndarray, rows: slice) -> Float32[np.ndarray, "b d"]:
    return np.asarray(features[rows], np.float32)
