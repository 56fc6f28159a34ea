"""Batches for detectors: images of a drawn size, flipped or not, padded to the largest, with their boxes and masks.

Training images are one endless row: round after round, each a new order of all images, of which none is left out. What
the row is, and how large and which way round each image is, are functions of (seed, round, image), so that neither the
number of workers or processes nor where an epoch is entered changes them. With repeat factors an image is several times
in a round, a number that is drawn anew for each where the factor is not whole.
Paper: Gupta et al., 2019, appendix B, 1908.03195: the factor of class c is max(1, sqrt(threshold / f_c)), where f_c is
the share of images that show it, and that of an image is the largest of its classes.
"""

import bisect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int64, Shaped, UInt8
from torch import Tensor

from ssl_core.data.files import FileImages
from ssl_core.data.pipeline import Batch
from ssl_core.data.pixels import BrokenImageError
from ssl_core.data.source import ImageSource, LazyImages
from ssl_core.data.workers import Loader, Requests, check_shared_memory
from ssl_core.detect.annotations import Annotations
from ssl_core.distributed import equal_share
from ssl_core.philox import permutation, uniform
from ssl_core.views.images import to_unit

_ORDER_STREAM = 0x64657472  # "detr"
_REPEAT_STREAM = 0x72657074  # "rept"; stands where a view's index stands, which is never as large
_VIEW_STREAM = 0x64657476  # "detv"; the copies of an image in a round count from here on


class DetectionBatches:
    """The batches that a detector is trained on; one epoch is read at a time.

    The views of a batch are pixels (n c h w), normalized, and 0 at the right and below where an image is smaller than
    the batch; sizes (n 2), height and width of each resized image; and objects (m 6), of each the place of its image in
    the batch, its class and its box in pixels of the resized image. With masks, a fourth is (m h w), 1 inside of each
    object. An epoch here is as many whole batches as a round fills, or one.

    Args:
        annotations: images with their objects, as :meth:`Annotations.training` leaves them.
        batch_size: number of images of an optimizer step over all processes.
        seed: seed of the order of the images, their repetitions, sizes and flips.
        mean: mean of each channel, subtracted from pixels in [0, 1].
        std: standard deviation of each channel, by which pixels are divided.
        short_sides: lengths in pixels of an image's shorter side, one of which is drawn.
        max_size: largest length of its longer side, for which the shorter one gets less.
        masks: whether the shapes of the objects are wanted.
        repeat_threshold: share of images that a class is repeated up to; None repeats none.
        workers: number of processes that make batches; 0 makes them in this one.
        pin_memory: whether batches are in page-locked memory, for a GPU.
        rank: index of this process.
        world_size: number of processes.
        broken_limit: largest fraction of images that cannot be read; each is replaced by the next that can.

    Attributes:
        batches_per_epoch: number of optimizer steps of an epoch.

    Raises:
        ValueError: if the batch cannot be divided, there are no images, masks are wanted and there are no shapes, or
            the shared memory does not hold the batches of the workers.
    """

    def __init__(
        self,
        annotations: Annotations,
        *,
        batch_size: int,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        short_sides: Sequence[int],
        max_size: int,
        masks: bool = False,
        repeat_threshold: float | None = None,
        workers: int = 0,
        pin_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
        broken_limit: float = 0.01,
    ) -> None:
        if not len(annotations):
            raise ValueError(f"{annotations.name} has no image with an object, which could be trained on")
        rows = equal_share("batch_size", batch_size, processes=world_size)
        self._batch_size, self._rank, self._layout = batch_size, rank, (-1, world_size, rows, 3)
        self._seed = seed
        self._factors = (
            None if repeat_threshold is None else torch.from_numpy(repeat_factors(annotations, repeat_threshold))
        )
        self._num_images = len(annotations)
        in_round = self._num_images if self._factors is None else float(self._factors.sum())
        self.batches_per_epoch = max(1, int(in_round / batch_size))
        self._round_starts = [0]
        self._source = LazyImages(_SizedImages(annotations, len(mean)), broken_limit=broken_limit)
        make = _Maker(
            self._source,
            annotations,
            mean=mean,
            std=std,
            short_sides=short_sides,
            max_size=max_size,
            masks=masks,
            seed=seed,
        )
        check_shared_memory(make.most_bytes(rows), self.batches_per_epoch, workers)
        self._requests: Requests[Tensor] = Requests()
        self._loader: Loader[Tensor, Batch] = Loader(
            make, self._requests, workers, persistent=True, pin_memory=pin_memory
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's share of each batch of an epoch.

        Args:
            epoch: number of the epoch; any may follow any.
            start: number of optimizer steps to leave out at its beginning.

        Raises:
            RuntimeError: if this epoch is continued after another was started.
        """
        first, stop = epoch * self.batches_per_epoch + start, (epoch + 1) * self.batches_per_epoch
        drawn = self._drawn(first * self._batch_size, stop * self._batch_size)
        own = drawn.reshape(self._layout)[:, self._rank]
        yield from self._requests.results(self._loader, own, epoch)

    def identifier(self, index: int) -> str:
        """The image's path."""
        return self._source.identifier(index)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: batches depend on this object's arguments alone."""
        return {}

    def _drawn(self, start: int, stop: int) -> Int64[Tensor, "n 3"]:
        """Image, round and copy at some places of the endless row."""
        while self._round_starts[-1] <= start:
            self._round_starts.append(self._round_starts[-1] + int(self._repeats(len(self._round_starts) - 1).sum()))
        number = bisect.bisect_right(self._round_starts, start) - 1
        before = self._round_starts[number]
        parts, length = [], before - start
        while length < stop - start:
            parts.append(self._round(number))
            length += len(parts[-1])
            number += 1
        return torch.cat(parts)[start - before :][: stop - start]

    def _repeats(self, number: int) -> Int64[Tensor, " n"]:
        """How often each image is in a round."""
        images = torch.arange(self._num_images)
        if self._factors is None:
            return torch.ones_like(images)
        streams = torch.stack([images, torch.full_like(images, number), torch.full_like(images, _REPEAT_STREAM)], dim=1)
        whole = self._factors.floor()
        return (whole + (uniform(self._seed, streams, 1)[:, 0] < self._factors - whole)).long()

    def _round(self, number: int) -> Int64[Tensor, "n 3"]:
        repeats = self._repeats(number)
        images = torch.arange(self._num_images).repeat_interleave(repeats)
        copies = torch.arange(len(images)) - (repeats.cumsum(0) - repeats).repeat_interleave(repeats)
        rows = torch.stack([images, torch.full_like(images, number), copies], dim=1)
        return rows[permutation(self._seed, (_ORDER_STREAM, number), len(rows))]


def evaluation_batches(
    annotations: Annotations,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    short_side: int,
    max_size: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Every image once, alone and as it is, at one size; views as of :class:`DetectionBatches`, without masks.

    Args:
        annotations: images with their objects.
        mean: mean of each channel, subtracted from pixels in [0, 1].
        std: standard deviation of each channel, by which pixels are divided.
        short_side: length in pixels of an image's shorter side.
        max_size: largest length of its longer side, for which the shorter one gets less.
        workers: number of processes that make batches; 0 makes them in this one.
        rank: index of this process, the first of whose images this is.
        world_size: number of processes, each of which has every so many-th image.

    Raises:
        BrokenImageError: for an image that cannot be read.
    """
    make = _Maker(
        _SizedImages(annotations, len(mean)),
        annotations,
        mean=mean,
        std=std,
        short_sides=[short_side],
        max_size=max_size,
        masks=False,
        seed=None,
    )
    requests = [torch.tensor([[image, 0, 0]]) for image in range(rank, len(annotations), world_size)]
    check_shared_memory(make.most_bytes(1), len(requests), workers)
    yield from Loader(make, requests, workers)


def check_readable(annotations: Annotations, *, channels: int = 3, rank: int = 0, world_size: int = 1) -> None:
    """Read every image, before a training whose test an image that cannot be read would end.

    Args:
        annotations: images of the test.
        channels: number of channels to read.
        rank: index of this process, the first of whose images this is.
        world_size: number of processes, each of which has every so many-th image.

    Raises:
        BrokenImageError: for an image that cannot be read, or is of another size than its boxes are for.
    """
    images = _SizedImages(annotations, channels)
    for index in range(rank, len(annotations), world_size):
        images.image(index)


def resized(height: int, width: int, short_side: int, max_size: int) -> tuple[int, int]:
    """Height and width with a shorter side of some length, or less, so that the longer one has at most ``max_size``.

    Example:
        >>> resized(480, 640, 800, 1333), resized(480, 1280, 800, 1333)
        ((800, 1067), (500, 1333))
    """
    scale = short_side / min(height, width)
    if scale * max(height, width) > max_size:
        scale = max_size / max(height, width)
    # A half is rounded up, as the references do.
    return max(1, math.floor(scale * height + 0.5)), max(1, math.floor(scale * width + 0.5))


def boxes_in_image(
    boxes: Float[Tensor, "k 4"], size: tuple[int, int], image_size: tuple[int, int]
) -> Float[Tensor, "k 4"]:
    """Boxes of a resized image in pixels of the image, cut at its edges.

    Args:
        boxes: (k 4) boxes in the resized image.
        size: height and width of the resized image.
        image_size: height and width of the image.
    """
    (height, width), (image_height, image_width) = size, image_size
    scaled = boxes * boxes.new_tensor([image_width / width, image_height / height] * 2)
    return scaled.clamp(min=0).minimum(boxes.new_tensor([image_width, image_height] * 2))


def repeat_factors(annotations: Annotations, threshold: float) -> Float64[np.ndarray, " n"]:
    """How often each image is trained on in a round, on average.

    Args:
        annotations: images with their objects.
        threshold: share of images below which a class is repeated.
    """
    shown = np.unique(np.stack([annotations.image, annotations.labels]), axis=1)
    share = np.bincount(shown[1], minlength=len(annotations.classes)) / len(annotations)
    of_class = np.sqrt(threshold / np.maximum(share, np.finfo(float).tiny)).clip(min=1)
    factors = np.ones(len(annotations))
    np.maximum.at(factors, shown[0], of_class[shown[1]])
    return factors


class _SizedImages:
    """The images of annotations, whose labels are their own numbers; one of another size than annotated is broken."""

    def __init__(self, annotations: Annotations, channels: int) -> None:
        self.name, self.classes = annotations.name, None
        self._sizes = annotations.sizes
        numbers = torch.arange(len(annotations))
        self._files = FileImages(annotations.name, annotations.paths, numbers, None, channels)

    def __len__(self) -> int:
        return len(self._files)

    def image(self, index: int) -> Shaped[Tensor, "c h w"]:
        image = self._files.image(index)
        height, width = self._sizes[index].tolist()
        if image.shape[1:] != (height, width):
            raise BrokenImageError(
                f"{self.identifier(index)}: {image.shape[2]} x {image.shape[1]} pixels, but its boxes are of an image "
                f"of {width} x {height}; correct the size and the boxes"
            )
        return image

    def label(self, index: int) -> int:
        return self._files.label(index)

    def identifier(self, index: int) -> str:
        return self._files.identifier(index)


class _Maker:
    """Makes a batch from rows of image, round and copy."""

    def __init__(
        self,
        source: ImageSource,
        annotations: Annotations,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        short_sides: Sequence[int],
        max_size: int,
        masks: bool,
        seed: int | None,
    ) -> None:
        if masks and annotations.segments is None:
            raise ValueError(f"{annotations.name} has no shapes, which masks are made of; open it with masks")
        self._source, self._annotations = source, annotations
        self._starts = np.searchsorted(annotations.image, np.arange(len(annotations) + 1))
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (mean, std))
        self._short_sides, self._max_size, self._masks = short_sides, max_size, masks
        self._seed = seed

    def most_bytes(self, num_images: int) -> int:
        """Size of the pixels of a batch in which one image lies and another stands."""
        return 4 * num_images * len(self._mean) * self._max_size**2

    def __call__(self, request: Int64[Tensor, "n 3"]) -> Batch:
        short_sides, flips = self._views(request)
        images, sizes, objects, masks = [], [], [], []
        for place, index in enumerate(request[:, 0].tolist()):
            image = to_unit(self._source.image(index))
            number = self._source.label(index)  # asked for after the image, since a broken one has been replaced
            size = resized(image.shape[1], image.shape[2], short_sides[place], self._max_size)
            pixels = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
            boxes = self._boxes(number, size)
            if flips[place]:
                pixels = pixels.flip(2)
                boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]]
            things = slice(*self._starts[number : number + 2])
            labels = torch.from_numpy(self._annotations.labels[things]).float()
            images.append((pixels - self._mean) / self._std)
            sizes.append(size)
            objects.append(torch.cat([torch.full((len(boxes), 1), float(place)), labels[:, None], boxes], dim=1))
            if self._masks:
                mask = self._shapes(number, size)
                masks.append(mask.flip(2) if flips[place] else mask)
        height, width = map(max, zip(*sizes, strict=True))
        views = [_padded_to(images, height, width, torch.stack), torch.tensor(sizes), torch.cat(objects)]
        if self._masks:
            views.append(_padded_to(masks, height, width, torch.cat))
        return Batch(tuple(views), request[:, 0].clone())

    def _views(self, request: Int64[Tensor, "n 3"]) -> tuple[list[int], list[bool]]:
        """Length of the shorter side, and whether it is flipped, of each image."""
        if self._seed is None:
            return [self._short_sides[0]] * len(request), [False] * len(request)
        image, number, copy = request.unbind(1)
        draws = uniform(self._seed, torch.stack([image, number, _VIEW_STREAM + copy], dim=1), 2)
        choice = (draws[:, 0] * len(self._short_sides)).long()
        return [self._short_sides[each] for each in choice.tolist()], (draws[:, 1] < 0.5).tolist()

    def _boxes(self, number: int, size: tuple[int, int]) -> Float32[Tensor, "m 4"]:
        """Boxes in the resized image; what lies outside of it is cut off."""
        height, width = self._annotations.sizes[number].tolist()
        boxes = self._annotations.boxes[slice(*self._starts[number : number + 2])]
        scale = np.array([size[1] / width, size[0] / height] * 2)
        return torch.from_numpy((boxes.clip(0, [width, height] * 2) * scale).astype(np.float32))

    def _shapes(self, number: int, size: tuple[int, int]) -> UInt8[Tensor, "m h w"]:
        segments = self._annotations.segments
        assert segments is not None
        height, width = self._annotations.sizes[number].tolist()
        masks = [segments.mask(index, (height, width), size) for index in range(*self._starts[number : number + 2])]
        return torch.from_numpy(np.stack(masks)) if masks else torch.zeros((0, *size), dtype=torch.uint8)


def _padded_to(images: Sequence[Tensor], height: int, width: int, join: Any) -> Tensor:
    """Images or masks with zeros at the right and below, in one tensor."""
    padded: Tensor = join([F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in images])
    return padded
