"""TIFF: the reader that an image needs, and the meaning of its bands.

In many layouts Pillow drops bands, keeps only the high bytes, or mixes bands up, without a word. So the tags decide:
the layouts that Pillow reads exactly are listed here, tifffile (the extra ``tiff``) reads the bands of others, and a
layout that neither reads exactly is refused.
"""

import io
import math
import re
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from PIL.TiffImagePlugin import COMPRESSION_INFO, TiffImageFile
from torch import Tensor

from ssl_core.data.pixels import BrokenImageError, from_array, over_white, refuse_large, unread_type

# Tags, the values that matter here, and how a message names them.
_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANES, _EXTRA, _FORMAT = 274, 277, 284, 338, 339
_STRIPS, _STRIP_HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _TILES = 273, 278, 322, 323, 324
_DESCRIPTION, _COLOR_MAP, _INK_SET, _DEPTH, _STACK = 270, 320, 332, 32997, 33629
_TAGS = {_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC} | {
    *(_ORIENTATION, _SAMPLES, _PLANES, _EXTRA, _FORMAT),
    *(_STRIPS, _STRIP_HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _TILES),
    *(_DESCRIPTION, _COLOR_MAP, _INK_SET, _DEPTH, _STACK),
}
_REDUCED_OR_MASK = 1 | 4
_OLD_JPEG, _JPEG = 6, 7
_WEBP = 50001  # in Pillow's list, but not in the libtiff of its wheels
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_COLORS = {_RGB: 3, _CMYK: 4, _YCBCR: 3, _LAB: 3}
_NAMES = {
    **{_WHITE_IS_ZERO: "gray, white is zero", _BLACK_IS_ZERO: "gray", _RGB: "RGB", _PALETTE: "palette", _CMYK: "CMYK"},
    **{_YCBCR: "YCbCr", _LAB: "L*a*b*", -1: "no photometric interpretation", 32803: "a camera's mosaic"},
}
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_TYPES = {_UNSIGNED: "uint", _SIGNED: "int", _FLOAT: "float", _UNDEFINED: "uint"}
_ASSOCIATED, _UNASSOCIATED = 1, 2

# By the first two bytes of a file, and by the type of a tag.
_ORDERS = {b"II": "<", b"MM": ">"}
_CODES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "Q", 16: "Q"}

# Photometric interpretation, type, bits of each band, what is beyond color.
_PILLOW_READS = {
    *((photometric, _UNSIGNED, (bits,), ()) for photometric in (0, 1, _PALETTE) for bits in (1, 2, 4, 8)),
    *((_BLACK_IS_ZERO, _UNSIGNED, (bits,), ()) for bits in (12, 16)),
    (_BLACK_IS_ZERO, _FLOAT, (32,), ()),
    (_BLACK_IS_ZERO, _UNSIGNED, (8, 8), (_UNASSOCIATED,)),
    *((_RGB, _UNSIGNED, (bits,) * 3, ()) for bits in (8, 16)),
    *((_RGB, _UNSIGNED, (bits,) * 4, (_UNASSOCIATED,)) for bits in (8, 16)),
    (_CMYK, _UNSIGNED, (8,) * 4, ()),
    (_YCBCR, _UNSIGNED, (8,) * 3, ()),
    (_LAB, _UNSIGNED, (8,) * 3, ()),
}

# Axes of (c h w) to turn around after those of height and width were swapped from 5 on.
_FLIPPED = {2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}


class _Page(NamedTuple):
    """The contents of a page's tags."""

    number: int
    width: int
    height: int
    photometric: int
    kind: int
    bits: tuple[int, ...]
    extra: tuple[int, ...]
    compression: int
    orientation: int
    is_planar: bool
    is_known_to_pillow: bool  # byte order and compression

    @property
    def is_read_by_pillow(self) -> bool:
        is_known = (self.photometric, self.kind, self.bits, self.extra) in _PILLOW_READS
        # Of separate planes Pillow knows those of 8-bit color; it reads YCbCr with no other compression.
        is_whole = not self.is_planar or (len(self.bits) > 2 and self.bits[0] == 8)
        is_decoded = self.photometric != _YCBCR or self.compression in (_OLD_JPEG, _JPEG)
        return is_known and is_whole and is_decoded and self.is_known_to_pillow

    def __str__(self) -> str:
        name = _NAMES.get(self.photometric, f"photometric interpretation {self.photometric}")
        planes = " in separate planes" if self.is_planar else ""
        return f"{name}, {len(self.bits)} bands of {self.bits[0]} bits{planes}"


def tiff_pixels(
    data: bytes, channels: int | None, read_page: Callable[[TiffImageFile, Callable[[], TiffImageFile]], Tensor]
) -> Shaped[Tensor, "c h w"]:
    """Pixels of a TIFF; several gray pages of one size are one image, and reduced copies and masks are left out.

    Args:
        data: content of the file.
        channels: number of channels wanted; the result may have another number.
        read_page: function of a Pillow image, and of a function that opens it anew, that returns the pixels of the page
            that the image is at.

    Raises:
        BrokenImageError: for a layout that nobody reads exactly, and without tifffile for one that it would read.
    """
    pages = _pages(data)
    # All of them, or a small file could fill the memory with one page again and again.
    widest, total_height = max(page.width for page in pages), sum(page.height for page in pages)
    refuse_large(widest, total_height, max(sum(page.bits) for page in pages) // 8)
    if all(page.is_read_by_pillow for page in pages):
        with _opened(data, 0) as image:
            images = []
            for page in pages:
                image.seek(page.number)
                images.append(read_page(image, partial(_opened, data, page.number)))
    else:
        images = _read_by_tifffile(data, pages, channels)
    if len(images) == 1:
        return images[0]
    if any(each.shape != images[0].shape or each.dtype != images[0].dtype for each in images) or len(images[0]) > 1:
        raise BrokenImageError(f"a TIFF of {len(images)} pages that are not all gray and of one size and type")
    return torch.cat(images)


def _pages(data: bytes) -> list[_Page]:
    directories = list(_directories(data))
    if len(directories) == 1 and (slices := _described_slices(directories[0])) > 1:
        raise BrokenImageError(f"a TIFF stack of {slices} slices with the tags of one; save each slice as a page")
    pages = [
        _page(number, tags, data)
        for number, tags in enumerate(directories)
        if not tags.get(_SUBFILE_TYPE, (0,))[0] & _REDUCED_OR_MASK
    ]
    if not pages:
        raise BrokenImageError("a TIFF without a page of full size; a camera's raw file has its image elsewhere")
    return pages


def _described_slices(tags: dict[int, tuple[Any, ...]]) -> int:
    """Of how many slices ImageJ or tifffile wrote the tags of the first alone."""
    (text, *_) = tags.get(_DESCRIPTION, (b"",))
    if found := re.match(rb"ImageJ=.*?\nimages=(\d+)", text, re.DOTALL):
        return int(found[1])
    if found := re.match(rb'{"shape": \[([\d, ]+)\], "truncated": true', text):
        page_size: int = tags[_WIDTH][0] * tags[_HEIGHT][0] * tags.get(_SAMPLES, (1,))[0]
        return math.prod(map(int, found[1].split(b","))) // page_size
    return 1


def _directories(data: bytes) -> Iterator[dict[int, tuple[Any, ...]]]:
    """The tags of each page: whole numbers, a fraction as one, and text as bytes."""
    order, is_big = _ORDERS[data[:2]], _is_big(data)
    number, size = ("Q", 8) if is_big else ("I", 4)
    (offset,) = struct.unpack_from(order + number, data, size)
    seen: set[int] = set()
    while offset and offset not in seen:
        seen.add(offset)
        (num_tags,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, offset)
        if num_tags >= 2**16:  # as only BigTIFF can say
            raise BrokenImageError(f"damaged TIFF: {num_tags} tags")
        start = offset + (8 if is_big else 2)
        tags = {}
        for entry in range(start, start + num_tags * (4 + 2 * size), 4 + 2 * size):
            tag, kind, count = struct.unpack_from(f"{order}HH{number}", data, entry)
            if tag in _TAGS and kind in _CODES:
                value = f"{order}{count}{_CODES[kind]}"
                place = entry + 4 + size
                if struct.calcsize(value) > size:
                    (place,) = struct.unpack_from(order + number, data, place)
                tags[tag] = struct.unpack_from(value, data, place)
        yield tags
        (offset,) = struct.unpack_from(order + number, data, start + num_tags * (4 + 2 * size))


def _is_big(data: bytes) -> bool:
    return b"+" in data[2:4]


def _page(number: int, tags: dict[int, tuple[Any, ...]], data: bytes) -> _Page:
    (compression, *_) = tags.get(_COMPRESSION, (1,))
    is_old_jpeg = compression == _OLD_JPEG
    photometric = _YCBCR if is_old_jpeg else tags.get(_PHOTOMETRIC, (-1,))[0]
    (samples, *_) = tags.get(_SAMPLES, (3 if is_old_jpeg else 1,))
    bits = tags.get(_BITS, (8 if is_old_jpeg else 1,))
    kinds = set(tags.get(_FORMAT, (_UNSIGNED,)))
    if len(kinds) > 1 or len(set(bits)) > 1:
        raise BrokenImageError("a TIFF whose bands have several types; save them as one")
    if not 0 < samples < 2**16:
        raise BrokenImageError(f"damaged TIFF: {samples} bands")
    if (slices := max(tags.get(_DEPTH, (1,))[0], len(tags.get(_STACK, ())))) > 1:
        raise BrokenImageError(f"a TIFF volume of {slices} slices; save each slice as a page")
    if photometric == _CMYK and tags.get(_INK_SET, (1,))[0] != 1:
        raise BrokenImageError("a TIFF of inks other than CMYK; save it as RGB or gray")
    if photometric == _PALETTE and 0 < max(tags.get(_COLOR_MAP, (0,))) < 256:
        raise BrokenImageError("a TIFF whose palette has 8 bits, not the 16 that belong there; save it as RGB")
    is_planar = samples > 1 and tags.get(_PLANES, (1,))[0] == 2
    if not is_old_jpeg:  # which may say elsewhere where its pixels are
        _refuse_missing_parts(tags, samples if is_planar else 1)
    # What Pillow takes for little-endian, or swaps though its library has done so.
    is_swapped = data[:2] == b"MM" and (_is_big(data) or (kinds == {_FLOAT} and compression != 1))
    extra = tuple(kind if kind in (_ASSOCIATED, _UNASSOCIATED) else 0 for kind in tags.get(_EXTRA, ()))
    # Old writers leave the tag out where nothing is known of a band.
    extra = (0,) * (samples - _COLORS.get(photometric, 1) - len(extra)) + extra
    return _Page(
        number,
        tags[_WIDTH][0],
        tags[_HEIGHT][0],
        photometric,
        kinds.pop(),
        bits[:1] * samples,
        extra,
        compression,
        tags.get(_ORIENTATION, (1,))[0],
        is_planar=is_planar,
        is_known_to_pillow=compression in COMPRESSION_INFO.keys() - {_WEBP} and not is_swapped,
    )


def _refuse_missing_parts(tags: dict[int, tuple[int, ...]], num_planes: int) -> None:
    """Refuse a page of fewer strips or tiles than its size needs, the rest of which readers leave black."""
    width, height = tags[_WIDTH][0], tags[_HEIGHT][0]
    part_width = tags.get(_TILE_WIDTH, (width,))[0]
    part_height = tags.get(_TILE_HEIGHT, tags.get(_STRIP_HEIGHT, (height,)))[0]
    needed = num_planes * math.ceil(width / part_width) * math.ceil(height / part_height)
    have = len(tags.get(_TILES, tags.get(_STRIPS, ())))
    if have < needed:
        raise BrokenImageError(f"damaged TIFF: {have} of {needed} strips or tiles")


def _opened(data: bytes, page: int) -> TiffImageFile:
    image = TiffImageFile(io.BytesIO(data), "")
    image.seek(page)
    return image


def _read_by_tifffile(data: bytes, pages: list[_Page], channels: int | None) -> list[Tensor]:
    for page in pages:
        _refuse_unread(page)
    try:
        import tifffile
    except ImportError:
        raise BrokenImageError(f"a TIFF ({pages[0]}) that tifffile reads: pip install 'ssl-core[tiff]'") from None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        images = []
        for page in pages:
            stored = file.pages[page.number]
            # Some decoders make up the pixels that are missing.
            parts = zip(stored.dataoffsets, stored.databytecounts, strict=False)
            if any(start + length > len(data) for start, length in parts):
                raise BrokenImageError("damaged TIFF: it ends before its pixels do")
            # One thread: a worker process has no other either.
            images.append(_meant(stored.asarray(maxworkers=1), page, channels))
        return images


def _refuse_unread(page: _Page) -> None:
    bits = page.bits[0]
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        raise BrokenImageError(f"a TIFF ({page}) that cannot be read exactly; save it as RGB or gray")
    if page.kind not in _TYPES or page.kind == _SIGNED or (page.kind != _FLOAT and bits > 16):
        raise unread_type(f"{_TYPES.get(page.kind, 'complex')}{bits}")
    if bits < 8 or (page.photometric == _WHITE_IS_ZERO and (page.kind == _FLOAT or page.extra)):
        raise BrokenImageError(f"a TIFF ({page}) that cannot be read exactly; save its bands as 8 or 16 bits")


def _meant(array: NDArray[np.generic], page: _Page, channels: int | None) -> Shaped[Tensor, "c h w"]:
    """The picture that the bands of a page stand for."""
    bands = array.reshape(-1, page.height, page.width) if page.is_planar else _bands_first(array, page)
    image = from_array(bands, len(bands))
    if page.photometric == _WHITE_IS_ZERO:
        image = (2 ** page.bits[0] - 1 - image.int()).to(image.dtype)
    if page.extra in ((_ASSOCIATED,), (_UNASSOCIATED,)) and channels not in (len(bands), 4):
        image = over_white(image, premultiplied=page.extra == (_ASSOCIATED,))
    elif page.extra in ((_ASSOCIATED,), (_UNASSOCIATED,)) and (len(bands), channels) == (2, 4):
        image = image[[0, 0, 0, 1]]
    if page.orientation in range(5, 9):
        image = image.mT
    return image.flip(_FLIPPED.get(page.orientation, ()))


def _bands_first(array: NDArray[np.generic], page: _Page) -> NDArray[np.generic]:
    return array.reshape(page.height, page.width, -1).transpose(2, 0, 1)
