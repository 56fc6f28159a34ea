"""The contents of a data set, as ``ssl-core data SOURCE`` prints them."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from ssl_core.data.config import DataConfig, Images, open_encoded, probed, split_remark
from ssl_core.data.files import FileImages, split_name, unread_kinds
from ssl_core.data.parquet import ParquetImages
from ssl_core.data.pixels import BrokenImageError
from ssl_core.data.source import MemoryImages, announce, check_broken
from ssl_core.data.statistics import KNOWN, LEAST_STD, Channels, image_moments
from ssl_core.data.tar import TarImages
from ssl_core.data.voc import VOC_NAME, VOC_SEVERAL
from ssl_core.data.workers import worker_map
from ssl_core.progress import progress_bar

_CHUNK = 64
# What stands out: largest over smallest side, number of images, largest over smallest class.
_FAR_APART, _FEW, _UNEVEN = 20, 1000, 10
_ALPHA = "shown over white; --data.channels 4 reads it as a channel, which is right where it is another band"


class _Facts(NamedTuple):
    height: int
    width: int
    channels: int
    dtype: str
    decoded_bytes: int
    moments: list[list[float]]  # not a tensor, which would cost a file descriptor on its way to the parent process


@dataclass(frozen=True)
class DataReport:
    """The findings of a full scan of a source.

    Attributes:
        name: name of the source.
        split: part of the images that was scanned.
        num_images: number of images that can be read.
        heights: smallest, median and largest height, in pixels.
        widths: smallest, median and largest width, in pixels.
        sides: smallest, median and largest short side, in pixels.
        channels: number of images by their number of channels, as they are stored.
        dtypes: number of images by their type.
        read_channels: number of channels that all images are read with.
        mean: mean of each channel read, in [0, 1], each image counting the same.
        std: standard deviation of each channel read, in [0, 1], each image counting the same.
        published: mean and standard deviation that a named set is normalized by instead.
        decoded_bytes: memory that the images take when held decoded.
        classes: number of images of each class, by name; None without labels.
        num_unlabelled: number of images without a label.
        broken: lines that name each image that cannot be read.
        ignored: files beside the images whose suffix is not an image's; of tars none is listed.
        unread: number and kinds of those that may be images.
        hides_alpha: whether some images have an alpha channel that is not read as a channel.
        differs: difference of a named set from what is published of it, in words; empty where there is none.
    """

    name: str
    split: str
    num_images: int
    heights: tuple[int, int, int]
    widths: tuple[int, int, int]
    sides: tuple[int, int, int]
    channels: dict[int, int]
    dtypes: dict[str, int]
    read_channels: int
    mean: Channels
    std: Channels
    published: tuple[Channels, Channels] | None
    decoded_bytes: int
    classes: dict[str, int] | None
    num_unlabelled: int
    broken: tuple[str, ...]
    ignored: tuple[str, ...]
    unread: str
    hides_alpha: bool
    differs: str

    def __str__(self) -> str:
        lines = [
            ("source", f"{self.name} ({self.split})"),
            ("images", f"{self.num_images:,}, {self.decoded_bytes / 2**30:.2f} GiB decoded"),
            ("height", _span(self.heights)),
            ("width", _span(self.widths)),
            ("channels", f"{_counts(self.channels)}; read with {self.read_channels}"),
            ("type", _counts(self.dtypes)),
            *[("alpha", _ALPHA)] * self.hides_alpha,
            ("mean", _numbers(self.mean)),
            ("std", _numbers(self.std)),
        ]
        if self.published is not None:
            lines.append(("published", f"mean {_numbers(self.published[0])}, std {_numbers(self.published[1])}"))
        if self.classes is None:
            lines.append(("classes", VOC_SEVERAL if self.name == VOC_NAME else "none: images are unlabeled"))
        else:
            sizes = sorted(self.classes.values())
            lines.append(("classes", f"{len(sizes)}, of {sizes[0]:,} to {sizes[-1]:,} images"))
        if self.classes is not None and self.num_unlabelled:
            lines.append(("unlabeled", f"{self.num_unlabelled:,}"))
        lines.append(("broken", "\n            ".join([f"{len(self.broken):,}", *self.broken])))
        kinds = self.unread.removeprefix("ignored ")
        if self.ignored:
            listed = ["; ".join(filter(None, [f"{len(self.ignored):,} other files", kinds])), *self.ignored[:20]]
            lines.append(("ignored", "\n            ".join(listed)))
        elif kinds:
            lines.append(("ignored", kinds))
        lines += [("note", remark) for remark in self.remarks()]
        return "\n".join(f"{name:<11} {value}" for name, value in lines)

    def remarks(self) -> list[str]:
        """Notes on what stands out, each with a remedy."""
        remarks = [self.differs] if self.differs else []
        constant = [str(number) for number, std in enumerate(self.std) if std < LEAST_STD]
        if constant:
            remarks.append(
                f"channel {', '.join(constant)} (from 0) is the same everywhere: leave it out of the files, or set "
                "data.mean and data.std"
            )
        if self.read_channels == 3 and len({*self.mean}) == len({*self.std}) == 1:
            remarks.append("all three channels seem to be one, of gray images: --data.channels 1 reads it alone")
        smallest, largest = self.sides[0], max(self.heights[2], self.widths[2])
        if largest > _FAR_APART * smallest:
            remarks.append(f"sides from {smallest} to {largest} px are far apart: are icons or thumbnails among them?")
        if self.num_images < _FEW:
            remarks.append(
                f"{self.num_images:,} images are few: weights that have been trained on others, such as "
                "--encoder.name resnet18 --encoder.weights timm, may be a better start"
            )
        if self.broken:
            part = len(self.broken) / (self.num_images + len(self.broken))
            remarks.append(f"{100 * part:.2g} % of the images are broken; training takes up to data.broken_limit")
        if self.classes is not None:
            sizes = sorted(self.classes.values())
            if sizes[-1] > _UNEVEN * max(1, sizes[0]):
                remarks.append("classes are of very different sizes: look at the balanced accuracy beside the other")
            splits = [name for name in self.classes if split_name(name) is not None]
            if splits:
                kind = "is read as a class, and" if len(splits) == 1 else "are read as classes, and"
                remarks.append(
                    f"{', '.join(splits)} {kind} named like a split: if it is one, give the folder that trains "
                    "alone as data.source, and the one that tests as data.test_source"
                )
        return remarks


def inspect(config: DataConfig, *, split: str = "train", progress: bool = True) -> DataReport:
    """Read every image of a source and say what is there.

    Args:
        config: settings of the data.
        split: part of the images: ``train``, ``test`` or ``labelled``.
        progress: whether a progress bar is shown.

    Raises:
        ValueError: as `open_source`, and if no image can be read.
    """
    images = open_encoded(config, split)
    channels = images.channels or images.image(0).shape[0]
    chunks = [range(start, min(start + _CHUNK, len(images))) for start in range(0, len(images), _CHUNK)]
    facts: list[_Facts] = []
    labels: list[int] = []
    broken: list[str] = []
    with progress_bar(len(images), "image", desc="reading", disable=not progress) as bar:
        scans = worker_map(_Scan(images, channels), chunks, config.workers)
        for chunk, scanned in zip(chunks, scans, strict=True):
            for index, each in zip(chunk, scanned, strict=True):
                if isinstance(each, str):
                    broken.append(each)
                else:
                    facts.append(each)
                    labels.append(images.label(index))
            bar.update(len(chunk))
    if not facts:
        check_broken(broken, len(images), images.name, config.broken_limit)
    mean, mean_square = torch.tensor([each.moments for each in facts]).double().mean(dim=0)
    std = (mean_square - mean**2).clamp(min=0).sqrt()
    numbers = Counter(labels)
    missing = images.missing if isinstance(images, FileImages) else ()
    return DataReport(
        name=images.name,
        split=split,
        num_images=len(facts),
        heights=_quantiles([each.height for each in facts]),
        widths=_quantiles([each.width for each in facts]),
        sides=_quantiles([min(each.height, each.width) for each in facts]),
        channels=dict(Counter(each.channels for each in facts).most_common()),
        dtypes=dict(Counter(each.dtype for each in facts).most_common()),
        read_channels=channels,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        published=KNOWN.get(config.source) if isinstance(config.source, str) and channels == 3 else None,
        decoded_bytes=sum(each.decoded_bytes for each in facts),
        classes=None if images.classes is None else {c: numbers[n] for n, c in enumerate(images.classes)},
        num_unlabelled=numbers[-1],
        broken=tuple(broken),
        ignored=images.ignored if isinstance(images, FileImages) else (),
        unread=unread_kinds(images.ignored) if isinstance(images, FileImages | TarImages) else "",
        differs=split_remark(config, split, len(facts), missing) or "",
        hides_alpha=channels == 3 and not isinstance(images, MemoryImages) and _has_alpha(images),
    )


def _has_alpha(images: FileImages | ParquetImages | TarImages) -> bool:
    """Whether a few images hold alpha: of 3 channels it alone makes 4, while gray is repeated."""
    stored, _ = probed(replace(images, channels=None))
    read_with_4, _ = probed(replace(images, channels=4))
    return len(read_with_4) > sum(len(image) in (1, 4) for image in stored)


class _Scan:
    """The facts about each image in a range; a broken image becomes its message."""

    def __init__(self, images: Images, channels: int) -> None:
        self._images = images
        self._stored = replace(images, channels=None)
        self._channels = channels

    def __call__(self, indices: range) -> list[_Facts | str]:
        announce(self._stored, indices)
        return [self._facts(index) for index in indices]

    def _facts(self, index: int) -> _Facts | str:
        try:
            image = self._stored.image(index)
            # Alpha becomes a channel where it is asked for, and the axes of an array depend on their number.
            read = image if len(image) == self._channels else self._images.image(index)
        except BrokenImageError as error:
            return str(error)
        own_channels = 4 if (len(image), len(read)) == (3, 4) else len(image)
        dtype = str(image.dtype).removeprefix("torch.")
        _, height, width = read.shape
        return _Facts(
            height,
            width,
            own_channels,
            dtype,
            read.numel() * read.element_size(),
            image_moments(read).tolist(),
        )


def _quantiles(values: list[int]) -> tuple[int, int, int]:
    values = sorted(values)
    return values[0], values[len(values) // 2], values[-1]


def _span(sizes: tuple[int, int, int]) -> str:
    smallest, median, largest = sizes
    return f"{smallest}" if smallest == largest else f"{smallest} to {largest}, median {median}"


def _counts(counts: dict[Any, int]) -> str:
    return ", ".join(f"{value} ({number:,} images)" for value, number in counts.items())


def _numbers(values: Channels) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
