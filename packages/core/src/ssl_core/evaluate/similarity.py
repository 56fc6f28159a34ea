"""Similarity of images within a class and between classes, by frozen features.

``ssl-core eval similarity RUN`` prints ``similarity intra-class 0.612 inter-class 0.204 (10000 test images, ...)``.
Paper: CLIM, ICLR 2021 submission, appendix C and Table 12: over the 1000 classes of ImageNet's validation set 0.75
for a supervised encoder, 0.58 for MoCo v2, 0.65 for CLIM.
It does not say of which layer; the command takes the backbone's, the only one that a supervised encoder has too.
Features that gather in a narrow cone are alike whatever their class: the first number says little without the second.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ssl_core import distributed
from ssl_core.data import DataConfig, open_source
from ssl_core.evaluate.accuracy import check_labels, count_classes
from ssl_core.evaluate.encoder import Layer
from ssl_core.evaluate.subject import load_subject

_ROWS = 8192  # of 2048 features in float64: 128 MiB


def intra_class_similarity(features: Float[Tensor, "n f"], labels: Int64[Tensor, " n"], num_classes: int) -> float:
    """Mean cosine of two images of the same class.

    mean over classes c of (|s_c|^2 - sum_i |u_i|^2) / (m_c (m_c - 1)), with u_i the unit rows of the m_c images of
    class c and s_c their sum: the mean of u_i u_j over all pairs i != j of the class, without the n x n matrix.
    Paper: CLIM, ICLR 2021 submission, appendix C: the "average cosine distance among all intra-class pairwise samples",
    averaged over the classes. Whether an image is paired with itself it does not say; here it is not.
    Conventions: rows are l2-normalized here, a zero row has similarity 0 with everything; each class counts the same,
    those of fewer than two images not at all; float64.

    Args:
        features: (n f) features, floating.
        labels: (n) class of each image, in [0, num_classes).
        num_classes: largest number of classes.

    Returns:
        Similarity in [-1, 1].

    Raises:
        ValueError: if a label is missing or out of range, or no class has two images.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
        >>> round(intra_class_similarity(features, torch.tensor([0, 0, 1]), 2), 4)
        0.6
    """
    counts, sums, squares = _class_sums(features, labels, num_classes)
    paired = counts >= 2
    if not paired.any():
        raise ValueError(
            f"no class has two of the {len(labels)} test images, and a similarity needs a pair; give more test images"
        )
    similarity = (sums.square().sum(dim=1) - squares)[paired] / (counts * (counts - 1))[paired]
    return similarity.mean().item()


def inter_class_similarity(features: Float[Tensor, "n f"], labels: Int64[Tensor, " n"], num_classes: int) -> float:
    """Mean cosine of two images of different classes.

    (|sum_c s_c|^2 - sum_c |s_c|^2) / (n^2 - sum_c m_c^2), in the symbols of :func:`intra_class_similarity`. This number
    is not in the paper; it is the level to compare the other one with. Each pair counts the same, so a larger class
    counts more. Conventions, arguments and result are those of :func:`intra_class_similarity`.

    Raises:
        ValueError: if a label is missing or out of range, or all images are of one class.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
        >>> round(inter_class_similarity(features, torch.tensor([0, 0, 1]), 2), 4)
        0.4
    """
    counts, sums, _ = _class_sums(features, labels, num_classes)
    num_pairs = len(labels) ** 2 - counts.square().sum()
    if num_pairs == 0:
        raise ValueError(f"the {len(labels)} test images are all of one class; give images of two classes or more")
    return ((sums.sum(dim=0).square().sum() - sums.square().sum()) / num_pairs).item()


def _class_sums(
    features: Tensor, labels: Tensor, num_classes: int
) -> tuple[Int64[Tensor, " classes"], Float64[Tensor, "classes f"], Float64[Tensor, " classes"]]:
    """Of each class: its images, the sum of their unit rows, and the sum of those rows' squared norms."""
    check_labels(labels, num_classes, "test")
    labels = labels.cpu()  # where index_add_ adds in a fixed order
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64)
    squares = torch.zeros(num_classes, dtype=torch.float64)
    for block, block_labels in zip(torch.split(features, _ROWS), torch.split(labels, _ROWS), strict=True):
        unit = F.normalize(block.cpu().double(), dim=1)
        sums.index_add_(0, block_labels, unit)
        squares.index_add_(0, block_labels, unit.square().sum(dim=1))  # 1 each, but for zero rows
    return labels.bincount(minlength=num_classes), sums, squares


def evaluate_similarity(
    encoder: str,
    *,
    data: DataConfig | None = None,
    like: str | None = None,
    features: Layer = "backbone",
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare test images within and between classes; prints ``similarity intra-class 0.612 inter-class ...``.

    The mean cosine of two test images of one class, and of two classes, see :func:`intra_class_similarity`. Several
    processes share the images.

    Args:
        encoder: run directory, ``.safetensors`` file, ``timm:NAME``, ``random`` or ``pixels``.
        data: labeled images; None takes those of the run that ``encoder``, or else ``like``, names.
        like: run directory or exported backbone whose input ``random`` and ``pixels`` take.
        features: layer to evaluate: ``backbone``, or ``projection``, the projector after it.
        device: device that computes the features.
        seed: seed of the weights of ``random``.
        out: folder of ``similarity.json``; None is the folder of ``encoder``, or nowhere if that has none.
        progress: whether a bar is shown.

    Returns:
        The content of ``similarity.json``: ``intra_class``, ``inter_class``, ``num_classes`` that have two images or
        more, and every setting.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for missing labels, images of one class or of no two of any, and what does not fit together.
    """
    subject = load_subject(encoder, data=data, like=like, features=features, device=device, seed=seed, out=out)
    subject.check_folder(out)
    test = open_source(subject.data, split="test")
    found = subject.together(test, "test features" if progress else "")
    result: dict[str, Any] = {
        "intra_class": intra_class_similarity(*found, count_classes(test)),
        "inter_class": inter_class_similarity(*found, count_classes(test)),
        "num_classes": int((found.labels.bincount() >= 2).sum()),
        "features": features,
        "view": subject.view_text(),
        **subject.settings(test=test),
    }
    if distributed.is_main():
        print(
            f"similarity intra-class {result['intra_class']:.3f} inter-class {result['inter_class']:.3f} "
            f"({result['num_test']} test images, {result['num_classes']} classes, {features})"
        )
        subject.save(result, "similarity.json", out)
    return result
