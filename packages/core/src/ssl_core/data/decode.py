"""From encoded bytes to pixels: the one place that knows file formats, color modes and bit depths.

JPEG, PNG, WebP, GIF (first frame), BMP, TIFF, PPM and JPEG 2000 are read through Pillow; and NumPy's
``.npy``.

* Orientation: the EXIF flag is applied, so that an image is what its owner sees.
* Transparency: composited over white; kept as a fourth channel where 4 channels are asked for.
* Palette, CMYK, YCbCr and bilevel images become RGB or gray, 8 bits.
* 16-bit PNG and TIFF, gray and color, stay uint16.
* A TIFF of several gray pages of one size is one image with a channel for each page.
* ``.npy``: (h w), (c h w) or (h w c) of bool, uint8, uint16 or floating point in [0, 1]. The channel axis is
  the one with the asked number of channels, else the shorter of first and last, else the first.
"""

import io
import struct
import tokenize
import zlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# Ghostscript, fonts, video containers and the like stay closed: files come from anywhere.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

# Rec. 601 luma, as Pillow's conversion of RGB to gray.
_LUMA = (0.299, 0.587, 0.114)

# Pillow's names for the byte order of 16-bit color, and for the opposite order (N: the machine's, little-endian).
_OTHER_ORDER = {
    f"{color};16{order}": f"{color};16{other}" for color in ("RGB", "RGBA") for order, other in ("BL", "LB", "NB")
}

# What Pillow and NumPy raise on malformed input.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    tokenize.TokenError,
    Image.DecompressionBombError,
)


class BrokenImageError(ValueError):
    """An image that cannot be read; the message names it and says why."""


def decode_image(
    data: bytes, channels: int | None = None, *, at_least: int | None = None, identifier: str = "image"
) -> Shaped[Tensor, "c h w"]:
    """Pixels of an encoded image.

    Args:
        data: the content of an image file or of an ``.npy`` file.
        channels: number of channels wanted; None keeps what the image has (1 for gray, 3 for color).
        at_least: a JPEG may be decoded at a half, a quarter or an eighth of its size, the smallest that leaves each
            side so many pixels; None decodes all of it.
        identifier: name of the image for a person, for the error.

    Returns:
        (c h w) uint8, uint16 or float32, of any strides.

    Raises:
        BrokenImageError: if the data is empty, truncated, not an image, or has channels that cannot become
            the wanted number.
    """
    if not data:
        raise BrokenImageError(f"{identifier}: zero bytes")
    try:
        return with_channels(_pixels(data, channels, at_least), channels)
    except UnidentifiedImageError:
        raise BrokenImageError(f"{identifier}: not an image in a known format") from None
    except _DECODER_ERRORS as error:
        raise BrokenImageError(f"{identifier}: {str(error) or type(error).__name__}") from error


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


def from_array(array: NDArray[Any], channels: int | None = None) -> Shaped[Tensor, "c h w"]:
    """An image from a NumPy array in one of the layouts and types of this module's ``.npy`` rule.

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
        if not (array.min() >= 0 and array.max() <= 1):
            raise BrokenImageError(
                f"floating-point pixels span {array.min():g} to {array.max():g}; scale them to [0, 1]"
            )
        return torch.from_numpy(array.astype(np.float32))
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    raise BrokenImageError(f"pixels of type {array.dtype}; save them as uint8, uint16 or floating point in [0, 1]")


def pillow_pixels(image: Image.Image, channels: int | None = None) -> Shaped[Tensor, "c h w"]:
    """Pixels of a Pillow image of any mode; see the module for what becomes of each.

    Args:
        image: one page or frame.
        channels: number of channels wanted; the result may still have 1 where more are wanted.

    Raises:
        BrokenImageError: for integers of more than 16 bits, and for floating point outside [0, 1].
    """
    if image.mode.startswith("I"):
        levels = np.array(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise BrokenImageError("32-bit integer pixels outside 0 to 65535; save it as uint16 or floating point")
        return torch.from_numpy(levels.astype(np.uint16))[None]
    if image.mode == "F":
        return from_array(np.array(image))
    is_gray = image.mode in ("1", "L", "LA")
    if channels != 4 and (image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if channels == 4:
        image = image.convert("RGBA")
    elif is_gray or channels == 1:
        image = image.convert("L")
    else:
        image = image.convert("RGB")
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _pixels(data: bytes, channels: int | None, at_least: int | None) -> Tensor:
    if data.startswith(b"\x93NUMPY"):
        return from_array(np.load(io.BytesIO(data), allow_pickle=False), channels)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            return _pages(image)
        if image.mode in ("RGB", "RGBA") and any(";16" in str(tile[3]) for tile in image.tile):
            return _deep_pixels(data, channels)
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # does nothing for other formats
        ImageOps.exif_transpose(image, in_place=True)
        return pillow_pixels(image, channels)


def _deep_pixels(data: bytes, channels: int | None) -> Tensor:
    """Color of 16 bits a channel, of which Pillow keeps the high bytes; read in the other order, the low ones."""
    halves = []
    for other_order in (False, True):
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if other_order:
                image.tile = [_in_other_order(tile) for tile in image.tile]
            ImageOps.exif_transpose(image, in_place=True)
            halves.append(np.array(image).astype(np.uint16))
    pixels = torch.from_numpy((halves[0] << 8) | halves[1]).permute(2, 0, 1)
    if len(pixels) == 3 or channels == 4:
        return pixels
    color, alpha = pixels[:3].float(), pixels[3:].float() / 65535
    return (color * alpha + 65535 * (1 - alpha)).round().to(torch.uint16)


def _in_other_order(tile: Any) -> Any:
    """Pillow's description of encoded data, whose last entry is a raw mode or begins with one."""
    *place, arguments = tile
    mode, *rest = [arguments] if isinstance(arguments, str) else arguments
    if mode not in _OTHER_ORDER:
        raise BrokenImageError(f"16 bits a channel in the layout {mode}; save it without alpha, or as .npy")
    return (*place, (_OTHER_ORDER[mode], *rest) if rest else _OTHER_ORDER[mode])


def _pages(image: Image.Image) -> Tensor:
    pages = []
    for number in range(image.n_frames):  # type: ignore[attr-defined]  # only of multi-page images
        image.seek(number)
        pages.append(pillow_pixels(image, None))
    if any(page.shape != pages[0].shape or page.dtype != pages[0].dtype for page in pages) or len(pages[0]) > 1:
        raise BrokenImageError(f"a TIFF of {len(pages)} pages that are not all gray and of one size and type")
    return torch.cat(pages)
