"""Logistic regression of frozen features from few labels of each class, drawn several times.

The classifier is :func:`ssl_core.evaluate.logistic.fit_classifier`'s, on features that :func:`standardized` has
centered and scaled, so that one penalty means the same for every encoder. A draw depends on the labels and the seed
alone: every encoder learns from the same images, and those of 1 label a class are among those of 5.

Legend: m training images, n test images, f features.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ssl_core.evaluate.features import Features
from ssl_core.evaluate.logistic import Limits, fit_classifier
from ssl_core.philox import permutation

SHOTS = (1, 5, 20)  # labels of each class
DRAWS = 5
PENALTY = 0.3  # of 0.001 to 10 on training images of CIFAR-10: docs/evaluate.md
LIMITS = Limits(iterations=200)
_STREAM = 0x666577  # "few"


def fitting_shots(labels: Int64[Tensor, " m"]) -> tuple[int, ...]:
    """The numbers of labels among 1, 5 and 20 that every class with a training image has.

    Example:
        >>> fitting_shots(torch.tensor([0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2]))
        (1, 5)
    """
    counts = labels.bincount()
    return tuple(shots for shots in SHOTS if shots <= counts[counts > 0].min())


def drawn_by_class(labels: Int64[Tensor, " m"], *, seed: int, draw: int) -> list[Int64[Tensor, " c"]]:
    """Indices of each class's images in a random order, of which the first are drawn.

    Args:
        labels: (m) class of each image, >= 0.
        seed: seed of the orders.
        draw: number of the draw, >= 0.

    Example:
        >>> [sorted(indices.tolist()) for indices in drawn_by_class(torch.tensor([1, 0, 1]), seed=0, draw=0)]
        [[1], [0, 2]]
    """
    order = permutation(seed, (_STREAM, draw), len(labels))
    by_class = order[labels[order].argsort(stable=True)]
    return list(torch.split(by_class, labels.bincount().tolist()))


def standardized(train: Features, test: Features) -> tuple[Features, Features]:
    """Features less the mean of the training images', divided by the root mean square of the length that is left.

    A linear classifier of these is one of the features too. Where they are longer than there are training images, they
    are turned into the space that those span, which leaves every penalized classifier as it is.
    """
    mean = train.features.mean(dim=0)
    features, tested = train.features - mean, test.features - mean
    if features.shape[1] > len(features):
        basis = torch.linalg.qr(features.T).Q
        features, tested = features @ basis, tested @ basis
    length = features.square().sum(dim=1).mean().sqrt()
    if length > 0:  # else all are the same, and a classifier of them is as good as chance
        features, tested = features / length, tested / length
    return train._replace(features=features), test._replace(features=tested)


def few_label_curve(
    train: Features, test: Features, *, num_classes: int, shots: Sequence[int], draws: int = DRAWS, seed: int = 0
) -> dict[int, Bool[Tensor, "draws n"]]:
    """Whether each test image is classified right, by a logistic regression from few labels of each class.

    The penalty is a constant, for images to choose it by would be further labels.

    Args:
        train: (m f) features of the training images, as :func:`standardized` returns them, and their labels.
        test: (n f) features of the test images, likewise.
        num_classes: number of classes.
        shots: numbers of labels of each class, none above the images of the smallest class; see :func:`fitting_shots`.
        draws: number of random draws of the labels.
        seed: seed of the draws, for every encoder the same.

    Returns:
        For each of ``shots``, (draws n) whether the class of a test image is right.
    """
    right: dict[int, Bool[Tensor, "draws n"]] = {}
    for count in shots:
        rows = []
        for draw in range(draws):
            chosen = torch.cat([indices[:count] for indices in drawn_by_class(train.labels, seed=seed, draw=draw)])
            classifier = fit_classifier(
                train.features[chosen], train.labels[chosen], num_classes, PENALTY, limits=LIMITS
            )
            rows.append(classifier.scores(test.features).argmax(dim=1) == test.labels)
        right[count] = torch.stack(rows)
    return right
