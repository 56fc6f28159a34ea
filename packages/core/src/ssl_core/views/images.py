"""Images as they come: their checks, and many of them in one flat piece of memory."""

from collections.abc import Sequence

import torch
from jaxtyping import Float32, Num, Shaped
from torch import Tensor

from ssl_core.ops.instructions import PackedImages

_LEVELS = {torch.uint8: 255, torch.uint16: 65535}


def check_image(image: Shaped[Tensor, "c h w"]) -> None:
    """Refuse a tensor that is no image.

    Raises:
        TypeError: for an image that is neither uint8, uint16 nor floating.
        ValueError: for a floating image with values outside [0, 1].
    """
    if image.is_floating_point():
        low, high = (bound.item() for bound in image.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"a floating image must lie in [0, 1], got values in [{low}, {high}]: rescale it")
    elif image.dtype not in _LEVELS:
        raise TypeError(f"an image must be uint8, uint16 or floating, got {image.dtype}: convert it first")


def check_channels(images: Sequence[Shaped[Tensor, "c _ _"]]) -> None:
    """Refuse images that differ in their number of channels, by a ValueError."""
    channels = {len(image) for image in images}
    if len(channels) > 1:
        raise ValueError(f"images of {sorted(channels)} channels do not make a batch; set data.channels")


def to_unit(image: Num[Tensor, "c h w"]) -> Float32[Tensor, "c h w"]:
    """The image as float32 in [0, 1]; itself if it is that already."""
    levels = _LEVELS.get(image.dtype)
    return image.float() if levels is None else image.float().div_(levels)


def pack_images(images: Sequence[Shaped[Tensor, "c _ _"]]) -> PackedImages:
    """Images one after the other in one flat tensor.

    Images of several dtypes take the finest of them, which is exact: 8 bits fit into 16, and both into float32.

    Args:
        images: images (c h w), uint8, uint16 or floating in [0, 1]; of any strides.

    Raises:
        TypeError: for an image of another dtype.
        ValueError: if there is no image, the images differ in their number of channels, or a floating image has values
            outside [0, 1].
    """
    if not images:
        raise ValueError("no images: a batch needs one at least")
    check_channels(images)
    for image in images:
        check_image(image)
    dtypes = {image.dtype for image in images}
    if len(dtypes) > 1:
        images = [_finer(image, dtypes) for image in images]
    elif images[0].is_floating_point():
        images = [image.float() for image in images]
    flat, layout, offset = [], [], 0
    for image in images:
        # Decoders give rows of whole pixels; such an image is copied as it lies, and any other in its own order.
        dense = image.permute(1, 2, 0).is_contiguous()
        channel_count, height, width = image.shape
        flat.append(image.permute(1, 2, 0).reshape(-1) if dense else image.reshape(-1))
        strides = (1, width * channel_count, channel_count) if dense else (height * width, width, 1)
        layout.append((offset, height, width, *strides))
        offset += image.numel()
    return PackedImages(torch.cat(flat), torch.tensor(layout), len(images[0]))


def unpack_images(images: PackedImages) -> list[Shaped[Tensor, "c _ _"]]:
    """The images, (c h w) each, which share the packed memory."""
    first = images.pixels.storage_offset()
    return [
        images.pixels.as_strided((images.channels, height, width), strides, first + offset)
        for offset, height, width, *strides in images.layout.tolist()
    ]


def _finer(image: Tensor, dtypes: set[torch.dtype]) -> Tensor:
    """The image in the finest of these dtypes; 255 levels of 257 are 65,535, so that its values stay the same."""
    if any(dtype.is_floating_point for dtype in dtypes):
        return to_unit(image)
    return image if image.dtype == torch.uint16 else image.to(torch.int32).mul(257).to(torch.uint16)
