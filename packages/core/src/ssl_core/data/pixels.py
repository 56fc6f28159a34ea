"""Pixels from arrays and Pillow images: the one place that knows color modes, alpha and types."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

# Rec. 601 luma, as Pillow's conversion of RGB to gray.
_LUMA = (0.299, 0.587, 0.114)

# A file of a few megabytes can hold a picture that fills the memory.
MAX_BYTES = 2**30


class BrokenImageError(ValueError):
    """An image that cannot be read; the message names it and says why."""


def refuse_large(width: int, height: int, pixel_bytes: int = 4) -> None:
    """Refuse an image before its pixels are decoded.

    Args:
        width: width of the image in pixels.
        height: height of the image in pixels.
        pixel_bytes: size of a decoded pixel; Pillow holds a pixel of color in 4 bytes.

    Raises:
        BrokenImageError: for more than 1 GiB.
    """
    if width * height * pixel_bytes > MAX_BYTES:
        raise BrokenImageError(
            f"{width} x {height} pixels take {width * height * pixel_bytes / 2**30:.1f} GiB decoded, more than the "
            f"{MAX_BYTES / 2**30:g} GiB that an image may take; cut it into tiles or scale it down"
        )


def in_one_line(error: Exception) -> str:
    """A library's error for damaged data, which may have many lines or none, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def with_channels(image: Shaped[Tensor, "c h w"], channels: int | None) -> Shaped[Tensor, "d h w"]:
    """An image with another number of channels: gray repeated, or RGB reduced to its luma.

    Raises:
        BrokenImageError: for any other change of the number of channels.
    """
    have = image.shape[0]
    if channels is None or channels == have:
        return image
    if have == 1:
        return image.expand(channels, -1, -1)
    if have == 3 and channels == 1:
        gray = torch.einsum("chw,c->hw", image.float(), torch.tensor(_LUMA))[None]
        return gray if image.dtype.is_floating_point else gray.round().to(image.dtype)
    raise BrokenImageError(f"an image of {have} channels cannot become one of {channels}; see data.channels")


def over_white(image: Shaped[Tensor, "c h w"], *, premultiplied: bool = False) -> Shaped[Tensor, "d h w"]:
    """An image whose last channel is its opacity, on a white ground; premultiplied colors hold theirs already."""
    white = 1 if image.is_floating_point() else torch.iinfo(image.dtype).max
    color, alpha = image[:-1].float(), image[-1:].float() / white
    color = (color if premultiplied else color * alpha) + white * (1 - alpha)
    return color if image.is_floating_point() else color.round().clamp_(max=white).to(image.dtype)


def from_array(array: NDArray[Any], channels: int | None = None) -> Shaped[Tensor, "c h w"]:
    """An image from a NumPy array in one of the layouts and types of :mod:`ssl_core.data.decode` for ``.npy``.

    Raises:
        BrokenImageError: for other shapes and types, and for floating point outside [0, 1].
    """
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.size == 0:
        raise BrokenImageError(f"an array of shape {array.shape} is not (h w), (c h w) or (h w c)")
    first, last = array.shape[0], array.shape[2]
    if (last == channels != first) or (channels not in (first, last) and last < first):
        array = array.transpose(2, 0, 1)
    if array.dtype == bool:
        return torch.from_numpy(array * np.uint8(255))
    if np.issubdtype(array.dtype, np.floating):
        low, high = array.min(), array.max()
        if not np.isfinite([low, high]).all():
            raise BrokenImageError("pixels that are NaN or infinite; replace them, and scale all to [0, 1]")
        if low < 0 or high > 1:
            raise BrokenImageError(f"floating-point pixels span {low} to {high}; scale them to [0, 1]")
        return torch.from_numpy(array.astype(np.float32))
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    raise unread_type(str(array.dtype))


def unread_type(name: str) -> BrokenImageError:
    """The error for pixels of a type whose black and white nobody knows."""
    return BrokenImageError(f"pixels of type {name}; save them as uint8, uint16 or floating point in [0, 1]")


def pillow_pixels(image: Image.Image, channels: int | None = None) -> Shaped[Tensor, "c h w"]:
    """Pixels of a Pillow image of any mode; see :mod:`ssl_core.data.decode` for what becomes of each.

    Args:
        image: page or frame of an image.
        channels: number of channels wanted; the result may still have another number, for :func:`with_channels`.

    Raises:
        BrokenImageError: for integers outside 0 to 65535, and for floating point outside [0, 1].
    """
    if image.mode.startswith("I"):
        levels = np.array(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise BrokenImageError(
                f"integer pixels span {levels.min()} to {levels.max()}; save them as uint16 or floating point in [0, 1]"
            )
        return torch.from_numpy(levels.astype(np.uint16))[None]
    if image.mode == "F":
        return from_array(np.array(image))
    is_gray = image.mode in ("1", "L", "LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        if channels == 4 or (channels == 2 and is_gray):
            return _channels_first(image.convert("RGBA" if channels == 4 else "LA"))
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    to_gray = is_gray or (channels == 1 and image.mode != "LAB")  # of which Pillow knows no way to gray
    mode = "L" if to_gray else "RGB"
    return _channels_first(image if image.mode == mode else image.convert(mode))  # which would copy


def _channels_first(image: Image.Image) -> Shaped[Tensor, "c h w"]:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
