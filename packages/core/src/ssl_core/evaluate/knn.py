"""Weighted k-nearest-neighbor classification of frozen features.

``ssl-core eval knn RUN`` prints ``knn top1 47.31 (k=200, T=0.1, 10000 images)``.
Paper: Wu et al., 2018, section 3.4, arXiv 1805.01978.
Legend: m images of the bank (the training images), n test images, f features.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ssl_core.data import DataConfig, ImageSource, open_source
from ssl_core.evaluate.accuracy import (
    balanced_accuracy,
    balanced_text,
    check_classes,
    check_labels,
    count_classes,
    label_ranks,
)
from ssl_core.evaluate.encoder import Layer
from ssl_core.evaluate.features import Features
from ssl_core.evaluate.subject import load_subject

_ROWS, _COLUMNS = 1024, 8192  # a block of similarities and its ordering keys: 100 MiB


def nearest(
    bank: Float[Tensor, "m f"],
    queries: Float[Tensor, "n f"],
    k: int,
    *,
    rows: int = _ROWS,
    columns: int = _COLUMNS,
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Cosine similarity and index of the k rows of a bank that are nearest to each query, nearest first.

    Conventions: rows are l2-normalized here, a zero row has similarity 0 with everything; among equal
    similarities the lower index comes first; no (n m) matrix is ever held; float32.

    Args:
        bank: (m f) features of the bank, floating.
        queries: (n f) features of the queries, on the bank's device.
        k: number of neighbors, in [1, m].
        rows: number of queries in a block.
        columns: number of bank rows in a block.

    Returns:
        (n k) similarities in [-1, 1], and (n k) indices into the bank.

    Raises:
        ValueError: if k is not in [1, m].

    Example:
        >>> nearest(torch.eye(3), torch.tensor([[1.0, 2.0, 0.0]]), 2)[1]
        tensor([[1, 0]])
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k}, but there are {len(bank)} images to choose from; pass k in [1, {len(bank)}]")
    keys = torch.cat([_nearest_keys(bank, block, k, columns) for block in torch.split(queries, rows)])
    return _similarity(keys), _LOW_WORD - (keys & _LOW_WORD)


def _nearest_keys(bank: Tensor, queries: Tensor, k: int, columns: int) -> Tensor:
    """Ordering keys (n k) of the nearest bank rows, in descending order."""
    queries = F.normalize(queries.float(), dim=1)
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), columns):
        similarity = queries @ F.normalize(bank[start : start + columns].float(), dim=1).T
        block = _ordering_keys(similarity, start)
        best = torch.cat([best, block.topk(min(k, block.shape[1]), dim=1).values], dim=1)
        best = best.topk(min(k, best.shape[1]), dim=1).values
    return best


# torch.topk does not say which of equal values it keeps. So each similarity becomes an integer with the same
# order in its high word (the bits of a float, reversed where negative) and its reversed index in the low word:
# no two are equal, and the lower index wins.
_LOW_WORD = 2**32 - 1
_MAGNITUDE = 2**31 - 1


def _ordering_keys(similarity_nm: Tensor, start: int) -> Tensor:
    bits = (similarity_nm + 0.0).view(torch.int32)  # -0.0 + 0.0 = 0.0: one zero, not two
    ordered = (bits >> 31).bitwise_and_(_MAGNITUDE).bitwise_xor_(bits)
    reversed_index = _LOW_WORD - torch.arange(start, start + bits.shape[1], device=bits.device)
    return ordered.long().mul_(2**32).add_(reversed_index)


def _similarity(keys: Tensor) -> Tensor:
    ordered = (keys >> 32).int()
    return (((ordered >> 31) & _MAGNITUDE) ^ ordered).view(torch.float32)


def knn_votes(
    train: Features, test: Float[Tensor, "n f"], *, k: int = 200, temperature: float = 0.1, num_classes: int
) -> Float64[Tensor, "n classes"]:
    """Share of the votes that each class receives from the k nearest training images.

    score_c = sum of exp(cos_i / T) over neighbors i of class c; votes = scores divided by their sum.
    Paper: Wu et al., 2018, section 3.4, arXiv 1805.01978.  T = temperature.

    Args:
        train: (m f) features of the training images, and their labels in [0, num_classes).
        test: (n f) features of the test images, on the same device.
        k: number of neighbors, in [1, m].
        temperature: T, divisor of the similarities, > 0.
        num_classes: number of columns of the result.

    Returns:
        (n classes) votes, whose rows sum to 1, on the CPU.

    Raises:
        ValueError: if k is not in [1, m], temperature <= 0, or a label is missing or out of range.

    Example:
        >>> bank = Features(torch.eye(2), torch.tensor([0, 1]))
        >>> knn_votes(bank, torch.tensor([[1.0, 0.0]]), k=1, num_classes=2)
        tensor([[1., 0.]], dtype=torch.float64)
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    check_labels(train.labels, num_classes, "training")
    similarity, index = nearest(train.features, test, k)
    # On the CPU, where scatter_add_ adds in a fixed order.
    weights = (similarity.cpu().double() / temperature).softmax(dim=1)
    votes = torch.zeros(len(test), num_classes, dtype=torch.float64)
    return votes.scatter_add_(1, train.labels.cpu()[index.cpu()], weights)


def knn_ranks(
    train: Features, test: Features, *, k: int = 200, temperature: float = 0.1, num_classes: int
) -> Int64[Tensor, " n"]:
    """Rank of each test image's true class in the vote, 0 for first; a class without votes ranks last.

    Arguments and errors as :func:`knn_votes`; labels of ``test`` are in [0, num_classes) too.
    """
    check_labels(test.labels, num_classes, "test")
    ranks = []
    for block, labels in zip(torch.split(test.features, _ROWS), torch.split(test.labels.cpu(), _ROWS), strict=True):
        votes = knn_votes(train, block, k=k, temperature=temperature, num_classes=num_classes)
        without_votes = votes.gather(1, labels[:, None]).squeeze(1) == 0
        ranks.append(label_ranks(votes, labels).masked_fill(without_votes, num_classes))
    return torch.cat(ranks)


def knn_accuracy(train: Features, test: Features, *, k: int = 200, temperature: float = 0.1, num_classes: int) -> float:
    """Fraction of the test images whose class wins the vote, in [0, 1].

    Arguments and errors as :func:`knn_ranks`.

    Example:
        >>> bank = Features(torch.eye(2), torch.tensor([0, 1]))
        >>> knn_accuracy(bank, bank, k=1, num_classes=2)
        1.0
    """
    ranks = knn_ranks(train, test, k=k, temperature=temperature, num_classes=num_classes)
    return (ranks < 1).double().mean().item()


def checked_neighbours(train: ImageSource, test: ImageSource, k: int, *, fewer: bool) -> int:
    """The number of neighbors that vote, after a check that a kNN can serve the sources, before images are read.

    A smaller number is the number of images that a class has on average: of more neighbors some would have to vote for
    another class, however good the features are.

    Args:
        train: images of the bank.
        test: test images.
        k: number of neighbors that is wanted.
        fewer: whether a smaller number will do.

    Raises:
        ValueError: if a label is missing or cannot be compared, or k is beyond the training images.
    """
    check_classes(train, test)
    if fewer:
        return min(k, max(1, len(train) // count_classes(train)))
    if k > len(train):
        raise ValueError(f"k {k} is more than the {len(train)} labeled images of {train.name}; give a smaller one")
    return k


def evaluate_knn(
    encoder: str,
    *,
    data: DataConfig | None = None,
    like: str | None = None,
    features: Layer = "backbone",
    k: int | None = None,
    temperature: float = 0.1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    progress: bool = True,
    sources: tuple[ImageSource, ImageSource] | None = None,
) -> dict[str, Any]:
    """Classify test images by their nearest training images; prints ``knn top1 47.31 (k=200, ...)``.

    Args:
        encoder: run directory, ``.safetensors`` file, ``timm:NAME``, ``random`` or ``pixels``.
        data: labeled images; None takes those of the run that ``encoder``, or else ``like``, names.
        like: run directory or exported backbone whose input ``random`` and ``pixels`` take.
        features: layer to evaluate: ``backbone``, or ``projection``, the projector after it.
        k: number of neighbors that vote; None takes 200, or as many as a class has images on average, if fewer.
        temperature: divisor in the weight of a vote, exp(cosine / temperature).
        device: device that computes the features.
        seed: seed of the weights of ``random``.
        out: folder of ``knn.json``; None is the folder of ``encoder``, or nowhere if that has none.
        progress: whether bars are shown.
        sources: labeled and test images that the caller has open; None opens those of ``data``.

    Returns:
        The content of ``knn.json``: ``top1``; ``balanced``, the mean of the classes' top-1; with ten classes or more
        ``top5``; and every setting.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for missing labels, k beyond the training images, and what does not fit together.
    """
    subject = load_subject(encoder, data=data, like=like, features=features, device=device, seed=seed, out=out)
    subject.check_folder(out)
    train, test = sources or (open_source(subject.data, split=split) for split in ("labelled", "test"))
    k = checked_neighbours(train, test, 200 if k is None else k, fewer=k is None)
    bank = subject.extract(train, "training features" if progress else "").to(device)
    queries = subject.extract(test, "test features" if progress else "").to(device)
    num_classes = count_classes(train)
    ranks = knn_ranks(bank, queries, k=k, temperature=temperature, num_classes=num_classes)
    balanced = balanced_accuracy(ranks < 1, queries.labels)
    result: dict[str, Any] = {"top1": (ranks < 1).double().mean().item(), "balanced": balanced}
    if num_classes >= 10:
        result["top5"] = (ranks < 5).double().mean().item()
    result |= {"k": k, "temperature": temperature, "features": features, "view": subject.view_text()}
    result |= subject.settings(train=train, test=test)
    print(
        f"knn top1 {100 * result['top1']:.2f} (k={k}, T={temperature:g}, {result['num_test']} images"
        f"{balanced_text(result['top1'], balanced)})"
    )
    subject.save(result, "knn.json", out)
    return result
