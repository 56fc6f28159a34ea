"""Image sources, in two forms: held decoded in memory, or decoded when asked for."""

import hashlib
import logging
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor

from ssl_core import distributed
from ssl_core.data.pixels import BrokenImageError, with_channels
from ssl_core.data.workers import worker_map
from ssl_core.progress import progress_bar
from ssl_core.views import PackedImages, pack_images

logger = logging.getLogger(__name__)

# Broken files that a message lists by name; `ssl-core data` lists them all.
_LISTED = 20
_CHUNK = 256


@runtime_checkable
class ImageSource(Protocol):
    """Images by index, with labels where there are any."""

    @property
    def name(self) -> str:
        """Name of the source for a person."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of the labels; None without labels."""

    def __len__(self) -> int:
        """Number of images."""

    def image(self, index: int) -> Shaped[Tensor, "c h w"]:
        """Pixels, (c h w) uint8, uint16 or float32 in [0, 1]; raises BrokenImageError."""

    def label(self, index: int) -> int:
        """The class of an image, -1 when unknown."""

    def identifier(self, index: int) -> str:
        """Name of an image for a person, such as its path."""


@runtime_checkable
class FetchingSource(ImageSource, Protocol):
    """A source that waits for its images, and may wait for several at once."""

    def fetch(self, indices: Sequence[int]) -> None:
        """Get some encoded images that are asked for next, each once, and forget those that were not."""


def announce(source: ImageSource, indices: Iterable[int]) -> None:
    """Tell a source which images are asked for next."""
    if isinstance(source, FetchingSource):
        source.fetch(list(indices))


@dataclass(frozen=True, eq=False)
class MemoryImages:
    """Decoded images in memory, which worker processes share without a copy.

    Attributes:
        name: name of the source for a person.
        images: one (n c h w) tensor where all shapes and types agree, else a list of images.
        labels: (n) label of each image, -1 when unknown.
        classes: names of the classes.
        identifiers: name of each image for a person; None numbers them.
        channels: number of channels that ``image`` returns; None keeps the images' own.
        broken: lines that name each image that was left out because it could not be read.
    """

    name: str
    images: Shaped[Tensor, "n c h w"] | list[Tensor]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...] | None = None
    identifiers: Sequence[str] | None = None
    channels: int | None = None
    broken: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Shaped[Tensor, "c h w"]:
        """Pixels of an image."""
        return with_channels(self.images[index], self.channels)

    def label(self, index: int) -> int:
        """The class of an image, -1 when unknown."""
        return int(self.labels[index])

    def digest(self) -> str:
        """Hash of the pixels."""
        digest = hashlib.blake2b(digest_size=16)
        for image in self.images:
            digest.update(image.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def identifier(self, index: int) -> str:
        """The image's file or row."""
        return f"{self.name}:{index}" if self.identifiers is None else self.identifiers[index]

    def subset(self, indices: Int64[Tensor, " m"]) -> "MemoryImages":
        """The images at some indices."""
        chosen = indices.tolist()
        images = self.images[indices] if isinstance(self.images, Tensor) else [self.images[index] for index in chosen]
        identifiers = [self.identifier(index) for index in chosen]
        return replace(self, images=images, labels=self.labels[indices], identifiers=identifiers)


class LazyImages:
    """Images decoded when they are asked for; a broken one is replaced by the next one that can be read.

    The flags of broken images are shared with worker processes, so that each is reported once. From the first time that
    a broken image is asked for, it has the label of the image that replaces it.

    Args:
        source: encoded images, whose ``image`` may raise BrokenImageError.
        broken_limit: largest fraction of broken images.
    """

    def __init__(self, source: ImageSource, *, broken_limit: float = 0.01) -> None:
        self.name, self.classes = source.name, source.classes
        self._source = source
        self._broken_limit = broken_limit
        # Zeros that forked processes share, without a file in /dev/shm.
        self._is_broken = torch.frombuffer(mmap.mmap(-1, len(source)), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int) -> Shaped[Tensor, "c h w"]:
        """Pixels of an image, or of the next one that can be read.

        Raises:
            ValueError: if more than the allowed fraction of the images has turned out broken.
        """
        while True:
            index = self._readable(index)
            try:
                return self._source.image(index)
            except BrokenImageError as error:
                self._is_broken[index] = 1
                logger.warning("replaced by the next readable image: %s", error)
                check_broken(self.broken, len(self), self.name, self._broken_limit)

    def fetch(self, indices: Sequence[int]) -> None:
        """As :meth:`FetchingSource.fetch`."""
        announce(self._source, map(self._readable, indices))

    def label(self, index: int) -> int:
        """The class of an image, -1 when unknown."""
        return self._source.label(self._readable(index))

    def identifier(self, index: int) -> str:
        """The image's file or row."""
        return self._source.identifier(self._readable(index))

    @property
    def broken(self) -> tuple[str, ...]:
        """Identifiers of the images found broken so far, by any worker process."""
        return tuple(self._source.identifier(index) for index in self._is_broken.nonzero().flatten().tolist())

    def readable(self) -> list[int]:
        """Indices of the images that have not been found broken so far, by any worker process."""
        return (self._is_broken == 0).nonzero().flatten().tolist()

    def leave_out(self, indices: Iterable[int]) -> None:
        """Take images as broken that another process has found so.

        Raises:
            ValueError: as :meth:`image`.
        """
        self._is_broken[list(indices)] = 1
        check_broken(self.broken, len(self), self.name, self._broken_limit)

    def _readable(self, index: int) -> int:
        # Ends: a limit below 1 leaves readable images, and check_broken refuses a source without any.
        while self._is_broken[index]:
            index = (index + 1) % len(self)
        return index


def readable(source: ImageSource) -> list[int]:
    """Indices of the images of a source that have not been found broken so far."""
    return source.readable() if isinstance(source, LazyImages) else list(range(len(source)))


def agree_on_readable(source: ImageSource) -> None:
    """Leave out, in every process, the images that any process has found broken so far; all call it.

    Raises:
        ValueError: if these are more than the source allows.
    """
    if isinstance(source, LazyImages):
        broken = set(range(len(source))).difference(source.readable())
        source.leave_out(set[int]().union(*distributed.gather_objects(broken)))


def pack(source: ImageSource, indices: Sequence[int]) -> PackedImages:
    """Some images as renderers take them, without a copy where they lie in the memory of one tensor.

    Raises:
        BrokenImageError: for an image that cannot be read.
        ValueError: if the images differ in their number of channels.

    Example:
        >>> images = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
        >>> packed = pack(MemoryImages("two", images, torch.tensor([0, 0])), [1])
        >>> packed.layout.tolist(), packed.pixels.data_ptr() == images.data_ptr()
        ([[12, 2, 2, 4, 2, 1]], True)
    """
    if isinstance(source, MemoryImages) and isinstance(source.images, Tensor):
        images, own_channels = source.images, source.images.shape[1]
        # Floating images are looked at in any case, for whether they lie in [0, 1].
        if images.dtype in (torch.uint8, torch.uint16) and source.channels in (None, own_channels):
            stride, *strides = images.stride()
            elements = 1 + sum((length - 1) * step for length, step in zip(images.shape, images.stride(), strict=True))
            layout = torch.tensor([0, *images.shape[2:], *strides]).repeat(len(indices), 1)
            layout[:, 0] = torch.tensor(indices) * stride
            return PackedImages(images.as_strided((elements,), (1,)), layout, own_channels)
    return packed_copy(source, indices)


def packed_copy(source: ImageSource, indices: Sequence[int]) -> PackedImages:
    """Some images in memory of their own, as renderers take them; errors as :func:`pack`."""
    announce(source, indices)
    images = [source.image(index) for index in indices]
    for index, image in zip(indices, images, strict=True):
        if len(image) != len(images[0]):
            raise ValueError(
                f"{source.identifier(index)} has {len(image)} channels but {source.identifier(indices[0])} has "
                f"{len(images[0])}; set data.channels"
            )
    return pack_images(images)


def hold_in_memory(source: ImageSource, *, workers: int = 0, broken_limit: float = 0.01) -> MemoryImages:
    """All readable images of a source, decoded.

    Args:
        source: encoded images, whose ``image`` may raise BrokenImageError.
        workers: number of processes that decode; 0 decodes in this one.
        broken_limit: largest fraction of images that may be broken; these are left out and listed once.

    Raises:
        ValueError: if more images are broken than allowed.
    """
    images: list[Tensor] = []
    kept: list[int] = []
    broken: list[str] = []
    chunks = [range(start, min(start + _CHUNK, len(source))) for start in range(0, len(source), _CHUNK)]
    with progress_bar(len(source), "image", desc="decoding", delay=2, leave=False) as bar:
        for chunk, decoded in zip(chunks, worker_map(_Decoder(source), chunks, workers), strict=True):
            for index, image in zip(chunk, decoded, strict=True):
                if isinstance(image, str):
                    broken.append(image)
                else:
                    kept.append(index)
                    images.append(torch.from_numpy(image))
            bar.update(len(chunk))
    check_broken(broken, len(source), source.name, broken_limit)
    if broken and distributed.is_main():  # all processes have the same
        logger.warning("%s: left out %d of %d images: %s", source.name, len(broken), len(source), listing(broken))
    return MemoryImages(
        name=source.name,
        images=_stacked(images),
        labels=torch.tensor([source.label(index) for index in kept]),
        classes=source.classes,
        identifiers=[source.identifier(index) for index in kept],
        broken=tuple(broken),
    )


def check_broken(broken: Sequence[str], length: int, name: str, limit: float) -> None:
    """Refuse a source with too many broken images, or with no other.

    Raises:
        ValueError: naming the broken images and the setting that allows more.
    """
    if len(broken) > limit * length or len(broken) == length:
        raise ValueError(
            f"{len(broken)} of {length} images of {name} cannot be read, more than data.broken_limit "
            f"{limit:g} allows: {listing(broken)}\nRepair or remove them, or raise data.broken_limit."
        )


class _Decoder:
    """Decodes a range of images; a broken one becomes its message."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def __call__(self, indices: range) -> list[NDArray[Any] | str]:
        # Arrays, not tensors: a tensor would cost a file descriptor each on its way to the parent process.
        announce(self._source, indices)
        return [self._decoded(index) for index in indices]

    def _decoded(self, index: int) -> NDArray[Any] | str:
        try:
            return self._source.image(index).contiguous().numpy()
        except BrokenImageError as error:
            return str(error)


def _stacked(images: list[Tensor]) -> Tensor | list[Tensor]:
    """One tensor if all images agree; each image is freed once copied, so memory is not held twice."""
    if len({(image.shape, image.dtype) for image in images}) > 1:
        return images
    stacked = torch.empty((len(images), *images[0].shape), dtype=images[0].dtype)
    for index in range(len(images)):
        stacked[index] = images[index]
        images[index] = stacked[index]
    return stacked


def listing(lines: Sequence[str]) -> str:
    """Lines of a message, each on its own; of many, the first twenty."""
    more = f"\n  ... and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return "\n  " + "\n  ".join(lines[:_LISTED]) + more
