"""The kNN beside training: which images it compares, how often, and what it says."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ssl_core import distributed
from ssl_core.backbone import BackboneCard
from ssl_core.data import DataConfig, ImageSource, open_source
from ssl_core.evaluate.accuracy import count_classes
from ssl_core.evaluate.encoder import Layer
from ssl_core.evaluate.features import evaluation_view, extract_features
from ssl_core.evaluate.knn import check_knn, knn_accuracy
from ssl_core.evaluate.similarity import intra_class_similarity
from ssl_core.train import Method
from ssl_core.views import ViewSpec, shortest_side

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateConfig:
    """The weighted kNN that accompanies the training, where the data has labels.

    During training the intra-class similarity of the test features is logged beside it.

    Attributes:
        knn_every: number of epochs between two evaluations; None evaluates once, at the end, and 0 never.
        k: number of neighbours that vote.
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


def knn_sources(
    data: DataConfig, config: EvaluateConfig, train: ImageSource, at_least: int | None
) -> tuple[ImageSource, ImageSource] | None:
    """The labelled images of the kNN, bank and queries; None, with a line in the log, where there can be no kNN.

    Raises:
        ValueError: if there can be none and it was asked for: during training, or by test images of their own.
    """
    if config.knn_every == 0:
        return None
    try:
        if train.classes is None and data.source != "stl10":
            raise ValueError("the data has no labels")
        bank = open_source(data, split="labelled") if data.source == "stl10" else train
        test = open_source(data, split="test", at_least=at_least)
        check_knn(bank, test, config.k)
    except ValueError as error:
        if config.knn_every is not None or data.test_source is not None:
            raise ValueError(f"no kNN can be computed: {error}; evaluate.knn_every 0 trains without it") from error
        # Training needs no labels, so it is not refused for an evaluation that nobody asked for.
        logger.warning("no kNN at the end: %s", error)
        return None
    logger.info("kNN: %d images of %s, among %d of %s", len(test), test.name, len(bank), bank.name)
    return bank, test


@torch.no_grad()
def knn_of_method(
    config: EvaluateConfig,
    method: Method,
    card: BackboneCard,
    bank: ImageSource,
    test: ImageSource,
    device: torch.device,
) -> dict[str, float]:
    """Accuracy of the kNN, and the similarity within classes, by name; empty in all processes but the first."""
    if not distributed.is_main():
        return {}
    features = method.encoder if config.features == "backbone" else nn.Sequential(method.encoder, method.projector)
    view = evaluation_view(card.image_size)
    known, tested = (
        extract_features(features, source, view, mean=card.mean, std=card.std, device=device) for source in (bank, test)
    )
    num_classes = count_classes(bank)
    accuracy = knn_accuracy(known, tested, k=config.k, temperature=config.temperature, num_classes=num_classes)
    measured = {"knn_top1": accuracy}
    if tested.labels.bincount().max() >= 2:  # or no two images have a class in common
        measured["intra_class_similarity"] = intra_class_similarity(*tested, num_classes)
    return measured
