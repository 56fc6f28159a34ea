"""Where the true class stands among the scores: what top-1 and top-5 are counted from."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ssl_core.data import ImageSource


def label_ranks(scores: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Number of classes that come before the true one, so that ``label_ranks(...) < 5`` marks the top-5 hits.

    Conventions: among equal scores the lower class comes first; a row with NaN at its label is a miss.

    Args:
        scores: (n classes).
        labels: (n), each in [0, classes).

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
            "choose a source with class folders or a label column"
        )
    if len(labels) and int(labels.max()) >= num_classes:
        raise ValueError(f"the {images} images have label {int(labels.max())}, but there are {num_classes} classes")


def count_classes(source: ImageSource) -> int:
    """Number of classes of a labelled source: of their names, or else one more than the largest label."""
    if source.classes is not None:
        return len(source.classes)
    return 1 + max(source.label(index) for index in range(len(source)))
