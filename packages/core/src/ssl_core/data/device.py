"""Images and batches on the device that renders: small sets live there, and batches are made while others are used."""

import functools
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from ssl_core.data.source import ImageSource, MemoryImages, pack
from ssl_core.views import PackedImages

Batch = TypeVar("Batch", bound=Any)

# Of the memory that is free on a device, the part that images may take; the rest is for training.
_SHARE = 1 / 4


def held_on(device: torch.device, source: ImageSource) -> PackedImages | None:
    """All images of a source, pixels on a device; None if not in memory or over a quarter of what is free there.

    Args:
        device: device that renders the views of the images.
        source: source of the images.
    """
    if not isinstance(source, MemoryImages):
        return None
    if device.type == "cuda" and _num_bytes(source) > _SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    images = pack(source, range(len(source)))
    return images._replace(pixels=images.pixels.to(device))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, copied without a wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # itself where a loader has done so
    return tensor.to(device, non_blocking=True)


def prefetched_on(device: torch.device, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, of which each is begun before the one before it is given away.

    On a GPU batches are made on a stream of their own, beside what the caller does with the last one; elsewhere there
    are no streams, and only the order is the same.

    Args:
        device: device on which the batches are made.
        batches: batches with a tuple of tensors ``views``, made on the current stream.
    """
    stream = _stream(device) if device.type == "cuda" else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))  # for what lies on the device already

    def begun() -> tuple[Any, torch.cuda.Event | None]:
        with torch.cuda.stream(stream):  # None: does nothing
            batch = next(batches, None)
            return batch, stream.record_event() if stream is not None else None

    following, is_made = begun()
    while (batch := following) is not None:
        made = is_made
        following, is_made = begun()
        if made is not None:
            consumer = torch.cuda.current_stream(device)
            consumer.wait_event(made)
            for view in batch.views:
                view.record_stream(consumer)  # or its memory would be written again while the caller reads it
        yield batch


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all batches of a device: memory that one has freed is kept for that stream alone."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's


def _num_bytes(source: MemoryImages) -> int:
    """Largest size of the images when packed."""
    images = [source.images] if isinstance(source.images, Tensor) else source.images
    elements = [image.numel() // image.shape[-3] * (source.channels or image.shape[-3]) for image in images]
    return sum(elements) * max(image.element_size() for image in images)
