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

from ssl_core import distributed
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
from ssl_core.evaluate.features import Features, gathered
from ssl_core.evaluate.subject import Subject, load_subject

_ROWS, _COLUMNS = 1024, 8192  # a block of similarities and its ordering keys: 100 MiB


def nearest(
    bank: Float[Tensor, "m f"],
    queries: Float[Tensor, "n f"],
    k: int,
    *,
    rows: int = _ROWS,
    columns: int = _COLUMNS,
    is_shared: bool = False,
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
        is_shared: whether all processes hold the bank together, each some consecutive rows in rank order, and ask for
            the neighbors of the same queries: then these are looked for by all, and found in every process.

    Returns:
        (n k) similarities in [-1, 1], and (n k) indices into the bank.

    Raises:
        ValueError: if k is not in [1, m].

    Example:
        >>> nearest(torch.eye(3), torch.tensor([[1.0, 2.0, 0.0]]), 2)[1]
        tensor([[1, 0]])
    """
    lengths = distributed.gather_objects(len(bank)) if is_shared else [len(bank)]
    if not 1 <= k <= sum(lengths):
        raise ValueError(f"k is {k}, but there are {sum(lengths)} images to choose from; pass k in [1, {sum(lengths)}]")
    first = sum(lengths[: distributed.rank()]) if is_shared else 0
    found = []
    for block in torch.split(queries, rows):
        keys = _nearest_keys(bank, block, k, columns, first)
        if is_shared:
            absent = keys.new_full((len(keys), k - keys.shape[1]), torch.iinfo(torch.int64).min)
            of_all = distributed.gather(torch.cat([keys, absent], dim=1)[None])  # (processes n k)
            keys = of_all.transpose(0, 1).flatten(1).topk(k, dim=1).values
        found.append(keys)
    keys = torch.cat(found)
    return _similarity(keys), _LOW_WORD - (keys & _LOW_WORD)


def _nearest_keys(bank: Tensor, queries: Tensor, k: int, columns: int, first: int) -> Tensor:
    """Ordering keys (n k) of the nearest bank rows, in descending order; the bank's first row has the index first."""
    queries = F.normalize(queries.float(), dim=1)
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), columns):
        similarity = queries @ F.normalize(bank[start : start + columns].float(), dim=1).T
        block = _ordering_keys(similarity, first + start)
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
    train: Features,
    test: Float[Tensor, "n f"],
    *,
    k: int = 200,
    temperature: float = 0.1,
    num_classes: int,
    is_shared: bool = False,
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
        is_shared: whether the features of ``train`` are this process's share, as :func:`nearest` takes it, of those
            that its labels are of.

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
    similarity, index = nearest(train.features, test, k, is_shared=is_shared)
    # On the CPU, where scatter_add_ adds in a fixed order.
    weights = (similarity.cpu().double() / temperature).softmax(dim=1)
    votes = torch.zeros(len(test), num_classes, dtype=torch.float64)
    return votes.scatter_add_(1, train.labels.cpu()[index.cpu()], weights)


def knn_ranks(
    train: Features,
    test: Features,
    *,
    k: int = 200,
    temperature: float = 0.1,
    num_classes: int,
    is_shared: bool = False,
) -> Int64[Tensor, " n"]:
    """Rank of each test image's true class in the vote, 0 for first; a class without votes ranks last.

    Arguments and errors as :func:`knn_votes`; labels of ``test`` are in [0, num_classes) too.
    """
    check_labels(test.labels, num_classes, "test")
    ranks = []
    for block, labels in zip(torch.split(test.features, _ROWS), torch.split(test.labels.cpu(), _ROWS), strict=True):
        votes = knn_votes(train, block, k=k, temperature=temperature, num_classes=num_classes, is_shared=is_shared)
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


def ranks_among_neighbours(
    subject: Subject, train: ImageSource, test: ImageSource, *, k: int, temperature: float, progress: bool = False
) -> tuple[Int64[Tensor, " n"], Features]:
    """Rank of each test image's class in the vote of its neighbors, and the features of the test images.

    All processes call it, and all have the result. Each looks at its share of the images, keeps the features of its
    share of ``train``, and looks for the neighbors of all test images there.

    Args:
        subject: encoder, the same in every process, and the description of its input.
        train: labeled images of the bank.
        test: labeled test images.
        k: number of neighbors that vote.
        temperature: divisor in the weight of a vote, exp(cosine / temperature).
        progress: whether bars are shown.
    """
    share = subject.together(train, "training features" if progress else "", whole="nowhere")
    queries = subject.together(test, "test features" if progress else "").to(subject.device)
    features = share.features if len(share.features) else share.features.new_empty(0, queries.features.shape[1])
    bank = Features(features, gathered(share.labels)).to(subject.device)
    num_classes = count_classes(train)
    return knn_ranks(bank, queries, k=k, temperature=temperature, num_classes=num_classes, is_shared=True), queries


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
) -> dict[str, Any]:
    """Classify test images by their nearest training images; prints ``knn top1 47.31 (k=200, ...)``.

    Several processes share the images, and the search.

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

    Returns:
        The content of ``knn.json``: ``top1``; ``balanced``, the mean of the classes' top-1; with ten classes or more
        ``top5``; and every setting.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for missing labels, k beyond the training images, and what does not fit together.
    """
    subject = load_subject(encoder, data=data, like=like, features=features, device=device, seed=seed, out=out)
    subject.check_folder(out)
    train, test = (open_source(subject.data, split=split) for split in ("labelled", "test"))
    k = checked_neighbours(train, test, 200 if k is None else k, fewer=k is None)
    return knn_of_subject(
        subject, train, test, features=features, k=k, temperature=temperature, out=out, progress=progress
    )


def knn_of_subject(
    subject: Subject,
    train: ImageSource,
    test: ImageSource,
    *,
    features: Layer,
    k: int,
    temperature: float,
    out: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """As :func:`evaluate_knn`, of an encoder and of images that the caller has open; all processes call it."""
    ranks, queries = ranks_among_neighbours(subject, train, test, k=k, temperature=temperature, progress=progress)
    balanced = balanced_accuracy(ranks < 1, queries.labels)
    result: dict[str, Any] = {"top1": (ranks < 1).double().mean().item(), "balanced": balanced}
    if count_classes(train) >= 10:
        result["top5"] = (ranks < 5).double().mean().item()
    result |= {"k": k, "temperature": temperature, "features": features, "view": subject.view_text()}
    result |= subject.settings(train=train, test=test)
    if distributed.is_main():
        print(
            f"knn top1 {100 * result['top1']:.2f} (k={k}, T={temperature:g}, {result['num_test']} images"
            f"{balanced_text(result['top1'], balanced)})"
        )
        subject.save(result, "knn.json", out)
    return result
