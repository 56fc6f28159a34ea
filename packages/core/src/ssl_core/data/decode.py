"""From encoded bytes to pixels: the one place that knows file formats and their suffixes; docs/data.md is the table.

JPEG, PNG, WebP, GIF (first frame), BMP, TIFF, PPM and JPEG 2000 are read through Pillow, which may read AVIF too;
other TIFF by tifffile (the extra ``tiff``), HEIC by pillow-heif (``heif``); and NumPy's ``.npy``. The first bytes of a
file say its format, whatever its name is.

* Orientation: the EXIF flag is applied, so that an image is what its owner sees. Color profiles are not.
* Transparency: composited over white; kept as the last channel where 4 channels are asked for, or 2 of gray.
* Palette, CMYK, YCbCr and bilevel images become RGB or gray, 8 bits.
* 16-bit PNG and TIFF, gray and color, stay uint16. An image that would lose bits or bands is refused.
* A TIFF of several gray pages of one size is one image with a channel for each page.
* ``.npy``: (h w), (c h w) or (h w c) of bool, uint8, uint16 or floating point in [0, 1]. The channel axis is
  the one with the asked number of channels, else the shorter of first and last, else the first.
"""

import importlib.util
import io
import re
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import ExifTags, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile, get_sampling
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from ssl_core.data.pixels import (
    BrokenImageError,
    from_array,
    in_one_line,
    over_white,
    pillow_pixels,
    refuse_large,
    with_channels,
)
from ssl_core.data.tiff import tiff_pixels
from ssl_core.jpeg import faster_decoder

try:
    from PIL.AvifImagePlugin import SUPPORTED as _HAS_AVIF
except ImportError:  # before Pillow 11.3
    _HAS_AVIF = False

# Suffixes by which a folder's images are found.
_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".npy"),
)
# Read with the extra ``heif`` only.
_AVIF_SUFFIXES = (".avif", ".avifs")
_HEIC_SUFFIXES = (".heic", ".heics", ".heif", ".heifs", ".hif")
# Whatever is installed: what is in an index of shards does not depend on it.
IMAGE_SUFFIXES = frozenset((*_SUFFIXES, *_AVIF_SUFFIXES, *_HEIC_SUFFIXES))

# What the first bytes of a file say that it is, whatever its name.
_KIND = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<GIF>GIF8[79]a)|(?P<BMP>BM)|(?P<WebP>RIFF.{4}WEBP)"
    rb"|(?P<TIFF>(?:II|MM)(?:[*+]\0|\0[*+]))|(?P<PPM>P[1-6f]\s)|(?P<NumPy>\x93NUMPY)"
    rb"|(?P<JPEG_2000>\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n)"
    # HEIF's general brand may stand before the one that tells the codec.
    rb"|(?P<AVIF>.{4}ftyp(?:avi[fs]|mi[af]1.{4}(?:.{4}){0,8}?avif))|(?P<HEIC>.{4}ftyp(?:he[iv][cmsx]|m[is]f1))",
    re.DOTALL,
)
HEADER_BYTES = 64  # enough to tell
# Of a BMP of run lengths, which Pillow decodes pixel by pixel in Python: some seconds.
_MOST_RUN_PIXELS = 2**24

# PNG's chunks of text and of color profiles, save those that may hold the orientation.
_UNREAD_CHUNK = re.compile(rb"iCCP|(?:tEX|zTX|iTX)t(?!Raw profile type exif\0|XML:com\.adobe\.xmp\0)")

# Pillow's names for the byte order of 16-bit color, and for the opposite order (N: the machine's, little-endian).
_OTHER_ORDER = {
    f"{color};16{order}": f"{color};16{other}" for color in ("RGB", "RGBA") for order, other in ("BL", "LB", "NB")
}


def decode_image(
    data: bytes, channels: int | None = None, *, at_least: int | None = None, identifier: str = "image"
) -> Shaped[Tensor, "c h w"]:
    """Pixels of an encoded image.

    Args:
        data: content of an image file or of an ``.npy`` file.
        channels: number of channels wanted; None keeps the image's own (1 for gray, 3 for color).
        at_least: number of pixels that each side of a JPEG must keep; it is then decoded at the smallest of its size, a
            half, a quarter and an eighth that does. None decodes it whole.
        identifier: name of the image for a person, for the error.

    Returns:
        (c h w) pixels, uint8, uint16 or float32, of any strides.

    Raises:
        BrokenImageError: if the data is empty, truncated, not an image, cannot be read exactly, or has channels that
            cannot become the wanted number.
    """
    kind = image_kind(data)
    if kind is None:
        raise BrokenImageError(f"{identifier}: {_what_else(data)}")
    try:
        return with_channels(_READERS[kind](data, channels, at_least), channels)
    except BrokenImageError as error:
        raise BrokenImageError(f"{identifier}: {error}") from error
    except Exception as error:  # of damaged bytes a decoder may raise anything, and one image must not end a command
        raise BrokenImageError(f"{identifier}: damaged {kind.replace('_', ' ')}: {in_one_line(error)}") from error


def image_kind(data: bytes) -> str | None:
    """Name of the format that the first bytes of a file show; None for none that is read."""
    match = _KIND.match(data)
    return match and match.lastgroup


def suffixes() -> tuple[str, ...]:
    """Suffixes of the files that can be read with what is installed."""
    has_heic = importlib.util.find_spec("pillow_heif") is not None
    return (*_SUFFIXES, *(_AVIF_SUFFIXES if _HAS_AVIF else ()), *(_HEIC_SUFFIXES if has_heic else ()))


def remedy(suffix: str) -> str:
    """The installation that makes files of a suffix readable, in brackets; empty if none does."""
    return " (pip install 'ssl-core[heif]')" if suffix in (*_AVIF_SUFFIXES, *_HEIC_SUFFIXES) else ""


def _what_else(data: bytes) -> str:
    if not data:
        return "zero bytes"
    if data.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, whose image was not fetched; run git lfs pull"
    return f"not an image in a known format; it begins with {bytes(data[:24])!r}"


def _through_pillow(
    open_file: Callable[[io.BytesIO, str], ImageFile],
    data: bytes,
    channels: int | None,
    at_least: int | None,
    refuse: Callable[[ImageFile], None] | None = None,
) -> Tensor:
    # Not Image.open, whose limit of pixels is a setting of the whole process, and which hides what a decoder says.
    reopened = partial(_opened, open_file, data)
    with reopened() as image:
        if refuse is not None:
            refuse(image)
        return _page_pixels(image, reopened, channels, at_least)


def _opened(open_file: Callable[[io.BytesIO, str], ImageFile], data: bytes) -> ImageFile:
    return open_file(io.BytesIO(data), "")


def _page_pixels(
    image: ImageFile, reopened: Callable[[], ImageFile], channels: int | None, at_least: int | None = None
) -> Tensor:
    """Pixels of the page or frame that an opened image is at; ``reopened`` gives it anew."""
    refuse_large(*image.size)
    raw_modes = [str(tile[3]) for tile in image.tile]
    is_deep = any(";16" in mode for mode in raw_modes)
    if "transparency" in image.info and (is_deep or any("L;" in mode for mode in raw_modes)):
        raise BrokenImageError("a transparent color of 2, 4 or 16 bits; save it with an alpha channel")
    if is_deep and image.mode in ("RGB", "RGBA"):
        return _deep_pixels(reopened, channels)
    if at_least is not None:
        image.draft(None, (at_least, at_least))  # does nothing for other formats
    ImageOps.exif_transpose(image, in_place=True)
    return pillow_pixels(image, channels)


def _deep_pixels(reopened: Callable[[], ImageFile], channels: int | None) -> Tensor:
    """Color of 16 bits a channel, of which Pillow keeps the high bytes; read in the other order, the low ones."""
    halves = []
    for other_order in (False, True):
        with reopened() as image:
            if other_order:
                image.tile = [_in_other_order(tile) for tile in image.tile]
            ImageOps.exif_transpose(image, in_place=True)
            halves.append(np.array(image).astype(np.uint16))
    pixels = torch.from_numpy((halves[0] << 8) | halves[1]).permute(2, 0, 1)
    return pixels if len(pixels) == 3 or channels == 4 else over_white(pixels)


def _in_other_order(tile: Any) -> Any:
    """Pillow's description of encoded data, whose last entry is a raw mode or begins with one."""
    *place, arguments = tile
    mode, *rest = [arguments] if isinstance(arguments, str) else arguments
    if mode not in _OTHER_ORDER:
        raise BrokenImageError(f"16 bits a channel in the layout {mode}; save it without alpha, or as .npy")
    make = getattr(tile, "_make", tuple)  # a plain tuple before Pillow 11
    return make([*place, (_OTHER_ORDER[mode], *rest) if rest else _OTHER_ORDER[mode]])


def _jpeg(data: bytes, channels: int | None, at_least: int | None) -> Tensor:
    """A JPEG up to its last byte that was written: of zeros Pillow makes pixels, and bytes of ones it reads slowly."""
    data = data.rstrip(b"\0\xff")
    decode = faster_decoder()
    pixels = None if decode is None else _plain_jpeg(decode, data, channels, at_least)
    return _through_pillow(JpegImageFile, data, channels, at_least) if pixels is None else pixels


def _plain_jpeg(
    decode: Callable[[bytes], Tensor], data: bytes, channels: int | None, at_least: int | None
) -> Tensor | None:
    """A JPEG in gray or RGB that is upright and decoded whole; None for all others, which Pillow reads."""
    with JpegImageFile(io.BytesIO(data), "") as image:
        refuse_large(*image.size)
        is_whole = at_least is None or min(image.size) < 2 * at_least
        is_upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        # The samplings that the decoder was tried on; of RGB Pillow makes gray in a way of its own.
        is_plain = image.mode == "L" or (image.mode == "RGB" and get_sampling(image) >= 0 and channels != 1)
        if not (is_whole and is_upright and is_plain):
            return None
        for name, content in image.applist:
            if name == "APP1":  # where the decoder would look for an orientation by rules of its own
                data = data.replace(content, bytes(len(content)), 1)
    try:
        pixels = decode(data)
    except RuntimeError:  # damaged: Pillow says how, or reads it all the same
        return None
    return pixels if pixels.shape == (len(image.getbands()), image.height, image.width) else None


def _png(data: bytes, channels: int | None, at_least: int | None) -> Tensor:
    """A PNG without its texts and color profile: nobody asks for them, and Pillow refuses long ones."""
    kept, start, position = [], 0, 8
    while data[position + 4 : position + 8].isalpha():
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if _UNREAD_CHUNK.match(data, position + 4):
            kept.append(data[start:position])
            start = end
        position = end
    return _through_pillow(PngImageFile, b"".join([*kept, data[start:]]) if kept else data, channels, at_least)


def _refuse_long_runs(image: ImageFile) -> None:
    if image.tile[0][0] == "bmp_rle" and image.width * image.height > _MOST_RUN_PIXELS:
        raise BrokenImageError(f"a BMP of {image.width} x {image.height} pixels in run lengths; save it as PNG")


def _refuse_deep_ppm(image: ImageFile) -> None:
    arguments = image.tile[0][3]  # raw mode and largest level, of which each pixel is a fraction
    if image.mode == "RGB" and isinstance(arguments, tuple) and isinstance(arguments[1], int) and arguments[1] > 255:
        raise BrokenImageError("a PPM in color of more than 8 bits a channel; save it as PNG or TIFF")


def _jpeg_2000(data: bytes, channels: int | None, at_least: int | None) -> Tensor:
    start = data.index(b"\xff\x4f\xff\x51")  # the markers SOC and SIZ
    (num_bands,) = struct.unpack_from(">H", data, start + 40)
    depths = [struct.unpack_from("B", data, start + 42 + 3 * band)[0] for band in range(num_bands)]
    if max(depths) >= 128 or (num_bands > 1 and max(depths) >= 8):  # a sign bit, and the number of bits less one
        raise BrokenImageError("a JPEG 2000 of signed numbers, or in color of more than 8 bits; save it as PNG or TIFF")
    return _through_pillow(Jpeg2KImageFile, data, channels, at_least)


def _avif(data: bytes, channels: int | None, at_least: int | None) -> Tensor:
    if not _HAS_AVIF:
        raise BrokenImageError("an AVIF image, which this Pillow cannot read: pip install 'ssl-core[heif]'")
    from PIL.AvifImagePlugin import AvifImageFile

    codec = data.index(b"av1C") + 4
    if data[codec + 2] & 0x40:  # high_bitdepth
        raise BrokenImageError("an AVIF of more than 8 bits a channel; save it as PNG or TIFF of 16 bits")
    return _through_pillow(AvifImageFile, data, channels, at_least)


def _heic(data: bytes, channels: int | None, at_least: int | None) -> Tensor:
    try:
        import pillow_heif
    except ImportError:
        raise BrokenImageError("a HEIC image, whatever its name: pip install 'ssl-core[heif]'") from None
    image = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)  # as its owner sees it
    width, height = image.size
    refuse_large(width, height, 8 if ";16" in image.mode else 4)
    pixels = torch.from_numpy(np.array(image))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    if len(pixels) < 4 or channels == 4:
        return pixels
    return over_white(pixels, premultiplied=image.mode.startswith("RGBa"))


def _tiff(data: bytes, channels: int | None, at_least: int | None) -> Tensor:
    return tiff_pixels(data, channels, partial(_page_pixels, channels=channels))


def _npy(data: bytes, channels: int | None, at_least: int | None) -> Tensor:
    return from_array(np.load(io.BytesIO(data), allow_pickle=False), channels)


_READERS: dict[str, Callable[[bytes, int | None, int | None], Tensor]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": partial(_through_pillow, GifImageFile),
    "BMP": partial(_through_pillow, BmpImageFile, refuse=_refuse_long_runs),
    "WebP": partial(_through_pillow, WebPImageFile),
    "TIFF": _tiff,
    "PPM": partial(_through_pillow, PpmImageFile, refuse=_refuse_deep_ppm),
    "NumPy": _npy,
    "JPEG_2000": _jpeg_2000,
    "AVIF": _avif,
    "HEIC": _heic,
}
