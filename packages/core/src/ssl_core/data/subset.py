"""Subsets of the labeled images: those of a list, a fraction of each class, or all but some held out.

A fraction's images depend on names and seed alone, not on the order in which images are found, and a smaller fraction
is part of a larger one.
"""

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from ssl_core.data.config import Images
from ssl_core.data.files import FileImages, read_text
from ssl_core.data.tar import TarImages
from ssl_core.philox import permutation

_FRACTION_STREAM = 0x66726163  # "frac"
_HELD_OUT_STREAM = 0x68656C64  # "held"
_NAMED = 5


def listed_subset(images: Images, file: str) -> Int64[Tensor, " m"]:
    """Indices of the images that a list names, such as SimCLR's ``imagenet_subsets/1percent.txt``.

    Args:
        images: labeled images in files or tars.
        file: text file with an image's name, or the end of its path, on each line.

    Returns:
        (m) indices in the order of the images.

    Raises:
        FileNotFoundError: if there is no such list.
        ValueError: if the images have no file names, a line names none of them, several, or one that another line
            names too, or none is left of a class.
    """
    if not isinstance(images, FileImages | TarImages):
        raise ValueError(f"subset {file} names files, and {images.name} has none; give a fraction instead")
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no list {file} of the images to train on (subset)")
    lines = [line.strip().replace("/", os.sep) for line in read_text(Path(file)).splitlines() if line.strip()]
    found: dict[str, list[int]] = {os.path.basename(line): [] for line in lines}
    for index in range(len(images)):
        name = os.path.basename(images.identifier(index))
        if name in found:
            found[name].append(index)
    matches = [
        [
            index
            for index in found[os.path.basename(line)]
            if f"{os.sep}{images.identifier(index)}".endswith(os.sep + line)
        ]
        for line in lines
    ]
    sizes = [len(match) for match in matches]
    _refuse(file, lines, [size == 0 for size in sizes], f"match no labeled image of {images.name}")
    _refuse(file, lines, [size > 1 for size in sizes], "match several images; write more of their paths")
    chosen = [match[0] for match in matches]
    times = Counter(chosen)
    _refuse(file, lines, [times[index] > 1 for index in chosen], "name an image that another line names too")
    indices = torch.tensor(chosen, dtype=torch.int64).sort().values
    absent = [name for name, of_class in _classes(images) if not torch.isin(of_class, indices).any()]
    if absent:
        raise ValueError(f"{file} has no image of {len(absent)} classes: {_some(absent)}")
    return indices


def balanced_subset(images: Images, fraction: float, seed: int) -> Int64[Tensor, " m"]:
    """Indices of a fraction of the images of each class, at least one of each.

    Args:
        images: labeled images.
        fraction: fraction of the images to take, in (0, 1]; 1 is all.
        seed: seed of the choice.

    Returns:
        (m) indices in the order of the images.

    Raises:
        ValueError: for another fraction.

    Example:
        >>> from ssl_core.data import DataConfig, open_encoded
        >>> digits = open_encoded(DataConfig(source="digits"))
        >>> subset = balanced_subset(digits, 0.01, seed=0)
        >>> digits.labels[subset].bincount().tolist()
        [1, 1, 1, 2, 1, 1, 1, 1, 1, 1]
    """
    if images.classes is None:
        raise ValueError(f"fraction {fraction} is of each class, and an image of {images.name} has not one")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}; 0.01 is 1 %")
    return _of_each_class(images, lambda count: max(1, round(fraction * count)), seed, _FRACTION_STREAM)


def selection_split(
    images: Images,
    indices: Int64[Tensor, " n"],
    validation: int | float,
    seed: int,
    official: Int64[Tensor, " v"] | None = None,
) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " k"]]:
    """Indices of the images to train on, and of those by which settings are chosen.

    Args:
        images: labeled images.
        indices: indices of the images whose labels are used.
        validation: fraction of ``indices`` that is held out of each class, which keeps one image at least; or, from 1
            on, number of images taken from outside of ``indices``, fewer where there are not so many.
        seed: seed of the choice.
        official: indices of the images that the set itself keeps for validation; the ones among ``indices`` are then
            held out, and no others.

    Raises:
        ValueError: if no image is left to choose by.
    """
    if official is not None:
        is_held = torch.isin(indices, official)
        train, held = indices[~is_held], indices[is_held]
    elif validation < 1:
        part = images.subset(indices)
        held = _of_each_class(
            part, lambda count: min(count - 1, max(1, round(validation * count))), seed, _HELD_OUT_STREAM
        )
        train, held = indices[_others(len(indices), held)], indices[held]
    else:
        others = _others(len(images), indices)
        train, held = (
            indices,
            others[permutation(seed, (_HELD_OUT_STREAM, 0), len(others))[: int(validation)].sort().values],
        )
    if not len(held):
        raise ValueError(
            f"no image of {images.name} is left to choose settings by: {len(indices)} of {len(images)} are trained on; "
            "give a smaller fraction, or more images"
        )
    return train, held


def _others(length: int, indices: Int64[Tensor, " m"]) -> Int64[Tensor, " k"]:
    is_other = torch.ones(length, dtype=torch.bool)
    is_other[indices] = False
    return is_other.nonzero().flatten()


def subset_digest(images: Images) -> str:
    """Hash of the images' classes and names, whatever their order and wherever they lie."""
    classes = (*(images.classes or ()), "")  # -1 is of none
    named = sorted(
        f"{classes[images.label(index)]}/{os.path.basename(images.identifier(index))}" for index in range(len(images))
    )
    return hashlib.blake2b("\n".join(named).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _classes(images: Images) -> Iterator[tuple[str, Int64[Tensor, " n"]]]:
    """Name and indices of each class that has images, those in files or tars in the order of their paths."""
    order = torch.arange(len(images))
    if isinstance(images, FileImages):
        order = torch.tensor(sorted(range(len(images)), key=images.paths.__getitem__))
    elif isinstance(images, TarImages):
        order = torch.tensor(sorted(range(len(images)), key=images.members.column("name").to_pylist().__getitem__))
    for label, name in enumerate(images.classes or ()):
        of_class = order[images.labels[order] == label]
        if len(of_class):
            yield name, of_class


def _of_each_class(images: Images, number: Callable[[int], int], seed: int, stream: int) -> Int64[Tensor, " m"]:
    parts = []
    for name, indices in _classes(images):
        order = permutation(seed, (stream, zlib.crc32(name.encode(errors="surrogateescape"))), len(indices))
        parts.append(indices[order[: number(len(indices))]])
    return torch.cat(parts).sort().values


def _refuse(file: str, lines: Sequence[str], is_bad: Sequence[bool], what: str) -> None:
    bad = [line for line, is_one in zip(lines, is_bad, strict=True) if is_one]
    if bad:
        raise ValueError(f"{file}: {len(bad)} of {len(lines)} lines {what}: {_some(bad)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED)
