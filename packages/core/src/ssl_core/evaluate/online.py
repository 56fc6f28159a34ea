"""The kNN beside training: which images it compares, how often, and what it says."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ssl_core import distributed
from ssl_core.backbone import BackboneCard
from ssl_core.data import DataConfig, ImageSource, has_test_split, open_source
from ssl_core.evaluate.accuracy import count_classes
from ssl_core.evaluate.encoder import Layer
from ssl_core.evaluate.features import evaluation_view, extract_features
from ssl_core.evaluate.knn import knn_accuracy
from ssl_core.evaluate.similarity import intra_class_similarity
from ssl_core.train import Method
from ssl_core.views import ViewSpec, shortest_side

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateConfig:
    """The weighted kNN that accompanies the training, where the data has labels.

    During training the intra-class similarity of the test features is logged beside it.

    Attributes:
        knn_every: number of epochs between two evaluations; None evaluates once, at the end.
        k: number of neighbours that vote.
        temperature: divisor in the weight of a vote, exp(cosine / temperature).
        features: layer to evaluate, ``backbone`` or ``projection``.
    """

    knn_every: int | None = None
    k: int = 200
    temperature: float = 0.1
    features: Layer = "backbone"


def decoded_side(specs: Sequence[ViewSpec]) -> int | None:
    """Pixels that each side of an image must keep when it is decoded, for these views and for the kNN's."""
    return shortest_side((*specs, evaluation_view(max(size for spec in specs for size in spec.sizes))))


def knn_sources(
    data: DataConfig, config: EvaluateConfig, train: ImageSource, at_least: int | None
) -> tuple[ImageSource, ImageSource] | None:
    """The labelled images of the kNN, bank and queries; None, with a line in the log, where there are none.

    Raises:
        ValueError: if there are none and ``config`` asks for them during training, or fewer than ``k``.
    """
    reason = ""
    if not has_test_split(data):
        reason = "the data has no test split (data.test_source or data.holdout give it one)"
    elif train.classes is None and data.source != "stl10":
        reason = "the data has no labels"
    if reason:
        if config.knn_every is not None:
            raise ValueError(f"evaluate.knn_every {config.knn_every}: {reason}")
        logger.info("no kNN at the end: %s", reason)
        return None
    bank = open_source(data, split="labelled") if data.source == "stl10" else train
    test = open_source(data, split="test", at_least=at_least)
    if config.k > len(bank):
        raise ValueError(f"evaluate.k {config.k} is more than the {len(bank)} labelled images of {bank.name}")
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
