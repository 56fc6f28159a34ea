"""The rank of the true class among the scores, from which top-1 and top-5 are counted."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ssl_core.data import ImageSource
from ssl_core.data.voc import VOC_NAME, VOC_SEVERAL


def label_ranks(scores: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Number of classes that come before the true one, so that ``label_ranks(...) < 5`` marks the top-5 hits.

    Conventions: among equal scores the lower class comes first; a row with NaN at its label is a miss.

    Args:
        scores: (n classes) score of each class.
        labels: (n) true class, in [0, classes).

    Returns:
        (n) ranks in [0, classes].

    Example:
        >>> label_ranks(torch.tensor([[0.1, 0.7, 0.7]]), torch.tensor([2]))
        tensor([1])
    """
    own = scores.gather(1, labels[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    behind = (scores < own) | ((scores == own) & (classes >= labels[:, None]))
    return (~behind).sum(dim=1)


def check_labels(labels: Int64[Tensor, " n"], num_classes: int, images: str) -> None:
    """Refuse labels that cannot be counted.

    Raises:
        ValueError: if an image has no label (-1) or one outside [0, num_classes); ``images`` says whose.
    """
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {len(labels)} {images} images have no label; "
            "choose a source with several class folders or a label column"
        )
    if len(labels) and int(labels.max()) >= num_classes:
        raise ValueError(f"the {images} images have label {int(labels.max())}, but there are {num_classes} classes")


def check_classes(train: ImageSource, test: ImageSource) -> None:
    """Refuse sources whose labels cannot be compared, before their images are read.

    Raises:
        ValueError: if an image has no label, or several, or a test image a class that no training image can have.
    """
    num_classes = count_classes(train)
    check_labels(source_labels(train), num_classes, "training")
    labels = source_labels(test)
    if test.classes is not None and (labels >= num_classes).any():
        unknown = sorted({test.classes[label] for label in labels.tolist() if label >= num_classes})
        raise ValueError(f"{test.name} has classes that are not in {train.name}: {unknown[:5]}")
    check_labels(labels, num_classes, "test")


def source_labels(source: ImageSource) -> Int64[Tensor, " n"]:
    """The labels of all images of a source, -1 where unknown."""
    return torch.tensor([source.label(index) for index in range(len(source))], dtype=torch.int64)


def balanced_accuracy(is_right: Bool[Tensor, " n"], labels: Int64[Tensor, " n"]) -> float:
    """Mean over the classes that occur of the fraction of their images that are right, in [0, 1].

    Example:
        >>> balanced_accuracy(torch.tensor([True, True, False]), torch.tensor([0, 0, 1]))
        0.5
    """
    counts = labels.bincount()
    right = labels.bincount(is_right.double())
    return (right / counts)[counts > 0].mean().item()


def balanced_text(top1: float, balanced: float) -> str:
    """The balanced accuracy in words; empty where it is top-1, as with classes of one size."""
    text = f"{100 * balanced:.2f}"
    return "" if text == f"{100 * top1:.2f}" else f", balanced over classes {text}"


def count_classes(source: ImageSource) -> int:
    """Number of classes of a labeled source: of their names, or else one more than the largest label.

    Raises:
        ValueError: if an image may have several.
    """
    if source.classes is None and source.name == VOC_NAME:
        raise ValueError(f"{VOC_NAME}: {VOC_SEVERAL}; here each image needs one class")
    if source.classes is not None:
        return len(source.classes)
    return 1 + int(source_labels(source).max())
