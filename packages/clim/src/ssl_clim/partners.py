"""Partners of images: from the encoder as it is between two epochs to a table of positives in the batches.

Every few epochs the whole training set is embedded, neighbors are chosen among the embeddings (`neighbours`), and
the batches draw each image's partner from its row of the table until the next time.
"""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import BinaryIO, Literal, Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import nn

from ssl_clim.method import CLIM
from ssl_clim.neighbours import (
    Clusters,
    Positives,
    Selection,
    check_counts,
    find_positives,
    load_faiss,
    num_clusters,
    random_positives,
    summary,
)
from ssl_core import distributed
from ssl_core.data import DataConfig, ImageSource
from ssl_core.evaluate import evaluation_view, iterate_features
from ssl_core.machine import usable_cores
from ssl_core.nn import with_first_statistics
from ssl_core.progress import progress_bar
from ssl_core.run import Run
from ssl_core.train import TrainConfig

logger = logging.getLogger(__name__)

_BATCH = 256  # images of a forward
_TRIED = 10_000  # embeddings among which a search is timed


@dataclass(frozen=True)
class NeighbourConfig:
    """The choice of images' partners.

    Attributes:
        selection: rule of the choice: ``center_wise``, as in the paper's equation (2); ``knn``, ``kmeans``,
            ``knn_kmeans`` or ``random``, to compare with; ``none`` leaves images without partners, which is MoCo v2.
        clusters: m, number of clusters of k-means; null is one for every 128 images, as the paper's 10,000 on ImageNet.
        k: number of nearest neighbors that positives are chosen from.
        positives: number of candidates of each image, from which its partner is drawn in each epoch.
        start_epoch: number of epochs before the first choice; until then images have no partners.
        update_every: number of epochs from one choice to the next.
        encoder: encoder that embeds the images, ``momentum`` or ``online``.
        features: layer that gives the features: ``projection``, l2-normalized, or ``backbone``, as they are.
        spherical: whether the centers of k-means have length 1.
        memory_gib: largest size of the embeddings in memory as float32; larger ones are kept in half precision in a
            file in the run directory.
    """

    selection: Selection | Literal["none"] = "center_wise"
    clusters: int | None = None
    k: int = 40
    positives: int = 10
    start_epoch: int = 5
    update_every: int = 5
    encoder: Literal["momentum", "online"] = "momentum"
    features: Literal["projection", "backbone"] = "projection"
    spherical: bool = False
    memory_gib: float = 8.0

    def __post_init__(self) -> None:
        if self.start_epoch < 0:
            raise ValueError(f"neighbours.start_epoch must be at least 0, got {self.start_epoch}")
        if self.update_every < 1:
            raise ValueError(f"neighbours.update_every must be at least 1, got {self.update_every}")


class WithNeighbours(Protocol):
    """The nodes of a run's configuration that the choice of partners reads."""

    @property
    def data(self) -> DataConfig:
        """The images, and how they are read."""

    @property
    def train(self) -> TrainConfig:
        """Settings of the training."""

    @property
    def neighbours(self) -> NeighbourConfig:
        """The choice of images' partners."""

    @property
    def seed(self) -> int:
        """Seed of the run."""


PartnerRun: TypeAlias = Run[WithNeighbours, CLIM]


def prepare_partners(run: PartnerRun) -> Callable[[int], dict[str, float]]:
    """:func:`choose_partners` for a run, after a look at whether there are images enough for it, and one faiss.

    Raises:
        ValueError: if there are too few images, or no epoch would see a partner; names the key.
        ImportError: if faiss is absent, there twice, or broken.
    """
    config = run.config.neighbours
    steps_per_epoch = run.batches.batches_per_epoch
    epochs = math.ceil(run.config.train.total_steps(steps_per_epoch) / steps_per_epoch)
    if config.selection != "none" and config.start_epoch >= epochs:
        raise ValueError(
            f"neighbours.start_epoch {config.start_epoch}: no partner would be chosen in {epochs} epochs; lower it, or "
            "take selection none"
        )
    if config.selection != "none":
        check_counts(len(run.source), **_counts(run))
    if config.selection not in ("none", "random"):
        logger.info("neighbors are found by %s", load_faiss(run.device).description)
    return partial(choose_partners, run)


def choose_partners(run: PartnerRun, epoch: int) -> dict[str, float]:
    """Give the batches a new table of partners, where it is time; in all processes the same.

    Args:
        run: run whose partners are chosen, by its ``config.neighbours``.
        epoch: number of epochs done.

    Returns:
        Numbers for the log: seconds, positives before filling, sizes of clusters, and the fraction of positives with
        their image's label, where the data has labels. Empty where it is not time.
    """
    config = run.config.neighbours
    since_start = epoch - config.start_epoch
    if config.selection == "none" or since_start < 0 or since_start % config.update_every:
        return {}

    started = time.perf_counter()
    refresh = since_start // config.update_every
    partners, numbers = None, {}
    with tempfile.TemporaryFile(dir=run.folder) as file:
        features = None if config.selection == "random" else _embeddings(run, file)
        embedded_s = time.perf_counter() - started
        if distributed.is_main():
            positives, clusters = _search(run, features, refresh)
            partners, numbers = positives.table, summary(positives, clusters, _labels(run.source))
    partners, numbers = distributed.broadcast_object((partners, numbers))
    assert partners is not None
    run.batches.set_partners(torch.from_numpy(partners))
    return {"partners_s": time.perf_counter() - started, "embedding_s": embedded_s, **numbers}


def search_seconds(config: NeighbourConfig, num_images: int, dim: int, device: torch.device) -> float:
    """Seconds, about, of a search among the embeddings of all images, estimated by a search in a little noise.

    The time grows with the square of the number, since each embedding meets all others, and centers in proportion.

    Args:
        config: settings of the choice of partners.
        num_images: number of training images.
        dim: length of an embedding.
        device: device that trains.

    Raises:
        ValueError: if there are too few images.
        ImportError: if faiss is absent, there twice, or broken.
    """
    if config.selection == "none" or config.selection == "random":
        return 0.0
    ratio = min(1.0, _TRIED / num_images)
    clusters = num_clusters(num_images) if config.clusters is None else config.clusters
    noise = np.random.default_rng(0).standard_normal((round(ratio * num_images), dim), np.float32)
    faiss = load_faiss(device)
    logger.info("a search of partners is timed among %s embeddings of noise", f"{len(noise):,}")
    started = time.perf_counter()
    with _threads_of_all_processes(faiss.library):
        find_positives(
            noise,
            config.selection,
            faiss,
            clusters=max(1, round(ratio * clusters)),
            neighbours=config.k,
            positives=config.positives,
            seed=0,
            spherical=config.spherical,
        )
    return (time.perf_counter() - started) / ratio**2


def _search(
    run: PartnerRun, features: Float[np.ndarray, "n d"] | None, refresh: int
) -> tuple[Positives, Clusters | None]:
    config = run.config.neighbours
    assert config.selection != "none"
    if features is None:
        return random_positives(len(run.source), config.positives, seed=run.config.seed, refresh=refresh), None
    if run.device.type == "cuda":
        torch.cuda.empty_cache()  # which may hold all memory, and faiss allocates beside it
    faiss = load_faiss(run.device)
    with _threads_of_all_processes(faiss.library):
        return find_positives(
            features,
            config.selection,
            faiss,
            **_counts(run),
            seed=run.config.seed,
            refresh=refresh,
            spherical=config.spherical,
            progress="neighbors",
        )


@contextmanager
def _threads_of_all_processes(library: ModuleType) -> Iterator[None]:
    """Let faiss use every core while the other processes wait: torchrun leaves a process one thread."""
    if distributed.world_size() == 1:
        yield
        return
    before = library.omp_get_max_threads()
    library.omp_set_num_threads(usable_cores())
    try:
        yield
    finally:
        library.omp_set_num_threads(before)


def _counts(run: PartnerRun) -> dict[str, int]:
    config = run.config.neighbours
    clusters = num_clusters(len(run.source)) if config.clusters is None else config.clusters
    return {"clusters": clusters, "neighbours": config.k, "positives": config.positives}


def _embeddings(run: PartnerRun, file: BinaryIO) -> Float[np.ndarray, "n d"]:
    """The embeddings of all training images, in the first process; in the others nothing of use.

    The processes share the work, a block of consecutive images each in turn.

    Args:
        run: run whose images are embedded.
        file: file for embeddings that are larger than memory.
    """
    config = run.config.neighbours
    num_images = len(run.source)
    features: Float[np.ndarray, "n d"] = np.empty((0, 0), np.float32)
    blocks = iterate_features(
        _encoder(run),
        run.source,
        evaluation_view(run.card.image_size),
        _batches(num_images),
        mean=run.card.mean,
        std=run.card.std,
        device=run.device,
        workers=run.config.data.workers,
    )
    done = 0
    with (
        torch.autocast(run.device.type, torch.bfloat16, enabled=run.config.train.precision == "bfloat16"),
        progress_bar(num_images, "img", desc="embeddings", disable=not distributed.is_main()) as bar,
    ):
        for block in blocks:
            if config.features == "projection":
                block = F.normalize(block, dim=1)
            rows = distributed.gather(block)[: num_images - done].cpu().numpy()
            if distributed.is_main():
                if done == 0:
                    features = _storage(num_images, rows.shape[1], config.memory_gib, file)
                features[done : done + len(rows)] = rows
            done += len(rows)
            bar.update(len(rows))
    return features


def _storage(num_images: int, dim: int, memory_gib: float, file: BinaryIO) -> Float[np.ndarray, "n d"]:
    """Room for all embeddings: in memory, or in half precision in a file."""
    if 4 * num_images * dim <= memory_gib * 2**30:
        return np.empty((num_images, dim), np.float32)
    return np.memmap(file, np.float16, "w+", shape=(num_images, dim))


def _batches(num_images: int) -> list[list[int]]:
    """This process's images of each forward; all processes' in rank order are consecutive.

    The last one repeats the last image, so that all are equally long.
    """
    per_round = _BATCH * distributed.world_size()
    starts = range(distributed.rank() * _BATCH, -(-num_images // per_round) * per_round, per_round)
    return [[min(start + row, num_images - 1) for row in range(_BATCH)] for start in starts]


def _encoder(run: PartnerRun) -> nn.Module:
    """What embeds the images, with the first process's running statistics in every process."""
    branch = run.method.momentum_branch if run.config.neighbours.encoder == "momentum" else run.method
    modules = [branch.encoder] if run.config.neighbours.features == "backbone" else [branch.encoder, branch.projector]
    return with_first_statistics(nn.Sequential(*modules))


def _labels(source: ImageSource) -> Int64[np.ndarray, " n"]:
    return np.array([source.label(index) for index in range(len(source))])
