"""The kNN beside training: its images, its times, and its numbers."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ssl_core import distributed
from ssl_core.backbone import BackboneCard
from ssl_core.data import DataConfig, ImageSource, open_source
from ssl_core.evaluate.accuracy import count_classes
from ssl_core.evaluate.encoder import Layer
from ssl_core.evaluate.features import evaluation_view
from ssl_core.evaluate.knn import checked_neighbours, ranks_among_neighbours
from ssl_core.evaluate.similarity import intra_class_similarity
from ssl_core.evaluate.subject import Subject
from ssl_core.given import is_given
from ssl_core.nn import with_first_statistics
from ssl_core.train import Method
from ssl_core.views import ViewSpec, shortest_side

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateConfig:
    """The weighted kNN that accompanies the training, where the data has labels.

    During training the intra-class similarity of the test features is logged beside it.

    Attributes:
        knn_every: number of epochs between two evaluations; None evaluates once, at the end, and 0 never.
        k: number of neighbors that vote.
        temperature: divisor in the weight of a vote, exp(cosine / temperature).
        features: layer to evaluate, ``backbone`` or ``projection``.
    """

    knn_every: int | None = None
    k: int = 200
    temperature: float = 0.1
    features: Layer = "backbone"

    def __post_init__(self) -> None:
        if self.knn_every is not None and self.knn_every < 0:
            raise ValueError(f"evaluate.knn_every must be 0 or more epochs, or null, got {self.knn_every}")
        if self.k < 1 or not self.temperature > 0:
            raise ValueError(
                f"evaluate.k and evaluate.temperature must be positive, got {self.k} and {self.temperature}; "
                "evaluate.knn_every 0 turns the kNN off"
            )


def decoded_side(specs: Sequence[ViewSpec]) -> int | None:
    """Pixels that each side of an image must keep when it is decoded, for these views and for the kNN's."""
    return shortest_side((*specs, evaluation_view(max(size for spec in specs for size in spec.sizes))))


def fitting_knn(
    data: DataConfig,
    config: EvaluateConfig,
    train: ImageSource,
    at_least: int | None,
    given: Collection[str] | None = None,
) -> tuple[EvaluateConfig, tuple[ImageSource, ImageSource] | None]:
    """The kNN that the data allows: its settings, and its labeled images, bank and queries.

    Where there can be no kNN, the images are None and the log says why. A recipe's number of neighbors gives way too.

    Args:
        data: settings of the data.
        config: settings of the kNN.
        train: training images.
        at_least: number of pixels that each side of a JPEG must keep, as `open_source` takes it.
        given: options that the user has set, which do not give way; None is all.

    Raises:
        ValueError: if there can be none and the user has asked for it: during training, by test images of their own
            or by a number of neighbors.
    """
    if config.knn_every == 0:
        return config, None
    try:
        if train.classes is None and data.source != "stl10":
            raise ValueError("the data has no labels")
        bank = open_source(data, split="labelled") if data.source == "stl10" else train
        test = open_source(data, split="test", at_least=at_least)
        k = checked_neighbours(bank, test, config.k, fewer=not is_given(given, "evaluate.k"))
    except ValueError as error:
        asked = {"evaluate.knn_every": config.knn_every, "data.test_source": data.test_source}
        if given is not None:  # else it may be the default
            asked["evaluate.k"] = config.k
        if any(value is not None and is_given(given, name) for name, value in asked.items()):
            raise ValueError(f"no kNN can be computed: {error}; evaluate.knn_every 0 trains without it") from error
        # Training needs no labels, so it is not refused for an evaluation that nobody asked for.
        if distributed.is_main():  # all processes would say the same
            logger.warning("no kNN: %s", error)
        return replace(config, knn_every=None), None
    logger.info("kNN: %d images of %s, among %d of %s", len(test), test.name, len(bank), bank.name)
    if k < config.k:
        logger.info("evaluate.k: %d instead of %d, as many as a class of %s has images", k, config.k, bank.name)
    return replace(config, k=k), (bank, test)


def knn_of_method(
    config: EvaluateConfig,
    method: Method,
    card: BackboneCard,
    data: DataConfig,
    bank: ImageSource,
    test: ImageSource,
    device: torch.device,
) -> dict[str, float]:
    """Accuracy of the kNN, and the similarity within classes, by name; all processes call it and share the work.

    Args:
        config: settings of the kNN.
        method: method in training, whose encoder has the first process's running statistics here.
        card: description of the encoder's input.
        data: settings of the data, of which the number of workers counts.
        bank: labeled training images.
        test: labeled test images.
        device: device of the method.
    """
    features = method.encoder if config.features == "backbone" else nn.Sequential(method.encoder, method.projector)
    subject = Subject("", with_first_statistics(features), card, data, device)
    ranks, tested = ranks_among_neighbours(subject, bank, test, k=config.k, temperature=config.temperature)
    measured = {"knn_top1": (ranks < 1).double().mean().item()}
    if tested.labels.bincount().max() >= 2:  # or no two images have a class in common
        measured["intra_class_similarity"] = intra_class_similarity(*tested, count_classes(bank))
    return measured
