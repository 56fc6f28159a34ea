"""Device functions of the renderer, one for each instruction, on one image's picture.

A picture is planar float32, (c h w) in a piece of memory of its own, and belongs to one program, which walks over it in
tiles of all channels and BLOCK pixels, (C BLOCK) with C the power of two from the number of channels on. A function
works in place, or from one piece of memory into another; it ends with a barrier, after which each thread sees what the
others wrote. What is computed is defined by `ssl_core.views.ops`; products are not fused with sums, so that what is
cut to whole numbers does not depend on the device.
"""

import itertools
from typing import no_type_check

import triton
import triton.language as tl

from ssl_core.ops.instructions import Distortion

# Which change is the first, second, ... of a jitter: two bits for each of the 24 orders.
_ORDERS = tl.constexpr(
    tuple(
        sum(change << (2 * order) for order, change in enumerate(column))
        for column in zip(*itertools.permutations(range(4)), strict=True)
    )
)

_AUTOCONTRAST = tl.constexpr(int(Distortion.AUTOCONTRAST))
_BRIGHTNESS = tl.constexpr(int(Distortion.BRIGHTNESS))
_COLOR = tl.constexpr(int(Distortion.COLOR))
_CONTRAST = tl.constexpr(int(Distortion.CONTRAST))
_EQUALIZE = tl.constexpr(int(Distortion.EQUALIZE))
_INVERT = tl.constexpr(int(Distortion.INVERT))
_POSTERIZE = tl.constexpr(int(Distortion.POSTERIZE))
_ROTATE = tl.constexpr(int(Distortion.ROTATE))
_SHARPNESS = tl.constexpr(int(Distortion.SHARPNESS))
_SHEAR_X = tl.constexpr(int(Distortion.SHEAR_X))
_SHEAR_Y = tl.constexpr(int(Distortion.SHEAR_Y))
_SOLARIZE = tl.constexpr(int(Distortion.SOLARIZE))
_TRANSLATE_X = tl.constexpr(int(Distortion.TRANSLATE_X))
_TRANSLATE_Y = tl.constexpr(int(Distortion.TRANSLATE_Y))
_SOLARIZE_ADD = tl.constexpr(int(Distortion.SOLARIZE_ADD))
_CUTOUT = tl.constexpr(int(Distortion.CUTOUT))
_TRANSLATE_X_PX = tl.constexpr(int(Distortion.TRANSLATE_X_PX))
_TRANSLATE_Y_PX = tl.constexpr(int(Distortion.TRANSLATE_Y_PX))


@triton.jit
@no_type_check
def tile(first, num_pixels, CHANNELS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """Places of the pixels from ``first`` on in a planar picture, and a mask of those that exist."""
    pixels = first + tl.arange(0, BLOCK)
    channels = tl.arange(0, C)
    at = channels[:, None] * num_pixels + pixels[None, :]
    return at, (channels < CHANNELS)[:, None] & (pixels < num_pixels)[None, :]


@triton.jit
@no_type_check
def clipped(x):
    """Values moved into [0, 1]."""
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
@no_type_check
def _lerp(start, end, weight):
    """As torch.lerp: exact at both ends."""
    difference = end - start
    return tl.where(weight < 0.5, start + weight * difference, end - difference * (1.0 - weight))


@triton.jit
@no_type_check
def _levels(x):
    """The nearest of 256 levels, halves to even: adding 1.5 * 2**23 leaves no bits for the fraction."""
    return ((x * 255.0 + 12582912.0) - 12582912.0).to(tl.int32)


@triton.jit
@no_type_check
def _unit(levels):
    return tl.math.div_rn(levels.to(tl.float32), 255.0)


# Geometry.


@triton.jit
@no_type_check
def _filter(distance, IS_BICUBIC: tl.constexpr):
    x = tl.abs(distance)
    if IS_BICUBIC:  # Keys' kernel, a = -1/2
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        return tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
    return tl.maximum(1.0 - x, 0.0)


@triton.jit
@no_type_check
def _reach(scale, IS_BICUBIC: tl.constexpr):
    """Distance from its center within which a pixel of the result sees pixels of the source."""
    widened = tl.maximum(scale, 1.0)
    return widened * 2.0 if IS_BICUBIC else widened


@triton.jit
@no_type_check
def resample(
    source,
    channel_stride,
    row_stride,
    column_stride,
    target,  # planar, (c target_height target_width)
    target_height,
    target_width,
    top,  # of a box of the source ...
    left,
    height,
    width,
    new_height,  # ... which gets this size, and of that the target shows ...
    new_width,
    window_top,  # ... what begins at this corner, zeros outside
    window_left,
    HIGHEST: tl.constexpr,  # what the source has for 1
    IS_BICUBIC: tl.constexpr,
    CHANNELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A box of a source of any strides, resized with antialias as in ATen; integer pixels become [0, 1]."""
    scale_y = tl.math.div_rn(height.to(tl.float32), new_height.to(tl.float32))
    scale_x = tl.math.div_rn(width.to(tl.float32), new_width.to(tl.float32))
    reach_y, reach_x = _reach(scale_y, IS_BICUBIC), _reach(scale_x, IS_BICUBIC)
    shrink_y = tl.math.div_rn(1.0, tl.maximum(scale_y, 1.0))
    shrink_x = tl.math.div_rn(1.0, tl.maximum(scale_x, 1.0))
    taps_y = tl.minimum(tl.ceil(2.0 * reach_y).to(tl.int32), height)
    taps_x = tl.minimum(tl.ceil(2.0 * reach_x).to(tl.int32), width)
    num_pixels = target_height * target_width
    is_channel = tl.arange(0, C) < CHANNELS
    planes = source + (tl.arange(0, C) * channel_stride)[:, None]
    for first in range(0, num_pixels, BLOCK):
        at, mask = tile(first, num_pixels, CHANNELS, C, BLOCK)
        pixels = first + tl.arange(0, BLOCK)
        row, column = pixels // target_width + window_top, pixels % target_width + window_left
        is_inside = (row >= 0) & (row < new_height) & (column >= 0) & (column < new_width) & (pixels < num_pixels)
        center_y, center_x = scale_y * (row.to(tl.float32) + 0.5), scale_x * (column.to(tl.float32) + 0.5)
        start_y = tl.maximum((center_y - reach_y + 0.5).to(tl.int32), 0)
        start_x = tl.maximum((center_x - reach_x + 0.5).to(tl.int32), 0)
        stop_y = tl.minimum((center_y + reach_y + 0.5).to(tl.int32), height)
        stop_x = tl.minimum((center_x + reach_x + 0.5).to(tl.int32), width)
        total = tl.zeros([BLOCK], tl.float32)
        sums = tl.zeros([C, BLOCK], tl.float32)
        for tap_y in range(taps_y):
            y = start_y + tap_y
            weight_y = _filter((y.to(tl.float32) - center_y + 0.5) * shrink_y, IS_BICUBIC)
            sees_y = is_inside & (y < stop_y)
            line = (top + y) * row_stride + left * column_stride
            for tap_x in range(taps_x):
                x = start_x + tap_x
                sees = sees_y & (x < stop_x)
                weight = weight_y * _filter((x.to(tl.float32) - center_x + 0.5) * shrink_x, IS_BICUBIC)
                weight = tl.where(sees, weight, 0.0)
                from_ = planes + (line + x * column_stride)[None, :]
                value = tl.load(from_, mask=is_channel[:, None] & sees[None, :], other=0)
                if source.dtype.element_ty == tl.int16:  # the bits of uint16
                    value = value.to(tl.int32) & 0xFFFF
                sums += weight[None, :] * value.to(tl.float32)
                total += weight
        # Levels are divided last, so that a pixel of weight 1 is exactly its level / 255.
        value = tl.math.div_rn(sums, (tl.where(total == 0.0, 1.0, total) * HIGHEST)[None, :])
        tl.store(target + at, clipped(value) if IS_BICUBIC else value, mask=mask)
    tl.debug_barrier()


@triton.jit
@no_type_check
def _fixed(number):
    return tl.floor(number * 65536.0 + 0.5).to(tl.int64)


@triton.jit
@no_type_check
def move(
    picture,
    target,
    height,
    width,
    a,  # (x, y) of the result copies the pixel at (a x + b y + c, d x + e y + f), float64
    b,
    c,
    d,
    e,
    f,
    CHANNELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The picture through an affine map, nearest pixels, in integers of 2**-16 pixels; zeros from outside."""
    x_of_first, y_of_first = _fixed(c + a * 0.5 + b * 0.5), _fixed(f + d * 0.5 + e * 0.5)
    a, b, d, e = _fixed(a), _fixed(b), _fixed(d), _fixed(e)
    for first in range(0, height * width, BLOCK):
        at, mask = tile(first, height * width, CHANNELS, C, BLOCK)
        pixels = first + tl.arange(0, BLOCK)
        row, column = (pixels // width).to(tl.int64), (pixels % width).to(tl.int64)
        x = (a * column + (b * row + x_of_first)) >> 16
        y = (d * column + (e * row + y_of_first)) >> 16
        is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        shift = (y * width + x).to(tl.int32) - pixels
        value = tl.load(picture + (at + shift[None, :]), mask=mask & is_inside[None, :], other=0.0)
        tl.store(target + at, value, mask=mask)
    tl.debug_barrier()


@triton.jit
@no_type_check
def shuffle_cells(
    picture, target, side, cells, GRID: tl.constexpr, CHANNELS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr
):
    """Each place of a GRID x GRID shows the cell that ``cells``, float64, names."""
    cell_side = side // GRID
    for first in range(0, side * side, BLOCK):
        at, mask = tile(first, side * side, CHANNELS, C, BLOCK)
        pixels = first + tl.arange(0, BLOCK)
        row, column = pixels // side, pixels % side
        place = (row // cell_side) * GRID + column // cell_side
        cell = tl.load(cells + place, mask=pixels < side * side, other=0.0).to(tl.int32)
        y = (cell // GRID) * cell_side + row % cell_side
        x = (cell % GRID) * cell_side + column % cell_side
        value = tl.load(picture + (at + (y * side + x - pixels)[None, :]), mask=mask)
        tl.store(target + at, value, mask=mask)
    tl.debug_barrier()


@triton.jit
@no_type_check
def cut_out(picture, height, width, side, x, y, CHANNELS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """A gray square of ``side`` pixels, both edges included, around (x width, y height); float64."""
    left = tl.maximum(x * width - side / 2, 0.0).to(tl.int32)
    top = tl.maximum(y * height - side / 2, 0.0).to(tl.int32)
    right = tl.minimum(left + side, width.to(tl.float64)).to(tl.int32)
    bottom = tl.minimum(top + side, height.to(tl.float64)).to(tl.int32)
    channel = tl.arange(0, C)[:, None]
    if CHANNELS == 3:
        fill = tl.where(channel == 0, 125.0, tl.where(channel == 1, 123.0, 114.0))
    else:
        fill = tl.full([C, 1], 120.66666666666667, tl.float32)
    fill = tl.broadcast_to(tl.math.div_rn(fill, 255.0), [C, BLOCK])
    for first in range(0, height * width, BLOCK):
        at, mask = tile(first, height * width, CHANNELS, C, BLOCK)
        pixels = first + tl.arange(0, BLOCK)
        row, column = pixels // width, pixels % width
        is_cut = (row >= top) & (row <= bottom) & (column >= left) & (column <= right)
        tl.store(picture + at, fill, mask=mask & is_cut[None, :])
    tl.debug_barrier()


# Colors.


@triton.jit
@no_type_check
def _gray(x, CHANNELS: tl.constexpr, C: tl.constexpr):
    """(1 BLOCK): luma for three channels, the mean otherwise."""
    if CHANNELS == 1:
        return x
    channel = tl.arange(0, C)[:, None]
    if CHANNELS == 3:
        last = tl.where(channel == 2, 0.114, 0.0)
        weight = tl.where(channel == 0, 0.2989, tl.where(channel == 1, 0.587, last))
    else:
        weight = tl.where(channel < CHANNELS, 1.0 / CHANNELS, 0.0)
    return tl.sum(x * weight, axis=0, keep_dims=True)


@triton.jit
@no_type_check
def _only(x, channel, C: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, C)[:, None] == channel, x, 0.0), axis=0, keep_dims=True)


@triton.jit
@no_type_check
def _shifted_hue(x, shift, CHANNELS: tl.constexpr, C: tl.constexpr):
    """Colors moved by ``shift`` turns, float64; see `ssl_core.views.color` for the channels."""
    channel = tl.arange(0, C)[:, None]
    if CHANNELS == 3:
        red, green, blue = _only(x, 0, C), _only(x, 1, C), _only(x, 2, C)
        highest = tl.maximum(tl.maximum(red, green), blue)
        lowest = tl.minimum(tl.minimum(red, green), blue)
        chroma = highest - lowest
        # A color's position on the circle in sextants: of its highest channel, 0, 2 or 4, and at most one off.
        difference = tl.where(red == highest, green - blue, tl.where(green == highest, blue - red, red - green))
        position = tl.where(red == highest, 0.0, tl.where(green == highest, 2.0, 4.0))
        hue = tl.math.div_rn(difference, tl.maximum(chroma, 1e-12)) + position
        unshifted = 2.0 * channel.to(tl.float64) - 6.0 * shift + 1.0
        unshifted = (unshifted - tl.floor(unshifted / 6.0) * 6.0 - 1.0).to(tl.float32)
        distance = tl.abs(tl.abs(hue - unshifted) - 3.0)
        return lowest + chroma * clipped(distance - 1.0)
    if CHANNELS < 3:
        return x
    # The plane of the first harmonic is rotated; its two axes are orthonormal.
    phase = channel.to(tl.float32) * (6.283185307179586 / CHANNELS)
    length = tl.sqrt(tl.full([1, 1], 2.0 / CHANNELS, tl.float32))
    cosines = tl.where(channel < CHANNELS, tl.cos(phase) * length, 0.0)
    sines = tl.where(channel < CHANNELS, tl.sin(phase) * length, 0.0)
    along_cosines = tl.sum(cosines * x, axis=0, keep_dims=True)
    along_sines = tl.sum(sines * x, axis=0, keep_dims=True)
    angle = 6.283185307179586 * shift
    turn, sine = (tl.cos(angle) - 1.0).to(tl.float32), tl.sin(angle).to(tl.float32)
    x += cosines * (turn * along_cosines - sine * along_sines)
    x += sines * (turn * along_sines + sine * along_cosines)
    return clipped(x)


@triton.jit
@no_type_check
def _jittered(
    x,
    brightness,
    contrast,
    saturation,
    hue,
    order,  # int64
    mean,
    UNTIL_CONTRAST: tl.constexpr,
    CHANNELS: tl.constexpr,
    C: tl.constexpr,
):
    """A tile after the four changes in their order, or after those that come before contrast."""
    is_done = order < 0
    for turn in tl.static_range(4):
        change = (_ORDERS[turn] >> (2 * order)) & 3
        if UNTIL_CONTRAST:
            is_done = is_done | (change == 1)
        if not is_done:
            if change == 0:
                if brightness != 1.0:
                    x = clipped(x * brightness.to(tl.float32))
            elif change == 1:
                if contrast != 1.0:
                    x = clipped(_lerp(mean, x, contrast.to(tl.float32)))
            elif change == 2:
                if (saturation != 1.0) & (CHANNELS > 1):
                    x = clipped(_lerp(_gray(x, CHANNELS, C), x, saturation.to(tl.float32)))
            else:
                if hue != 0.0:
                    x = _shifted_hue(x, hue, CHANNELS, C)
    return x


@triton.jit
@no_type_check
def jitter(
    picture,
    num_pixels,
    brightness,  # float64, as the other three
    contrast,
    saturation,
    hue,
    order,  # int64
    CHANNELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The four changes; contrast blends with the mean gray of the picture as it is when its turn comes."""
    mean = tl.zeros([1, 1], tl.float32)
    if contrast != 1.0:
        sums = tl.zeros([1, BLOCK], tl.float32)
        for first in range(0, num_pixels, BLOCK):
            at, mask = tile(first, num_pixels, CHANNELS, C, BLOCK)
            x = tl.load(picture + at, mask=mask, other=0.0)
            x = _jittered(x, brightness, contrast, saturation, hue, order, mean, True, CHANNELS, C)
            sums += _gray(x, CHANNELS, C)  # zeros beyond the last pixel, which none of the other three changes
        mean = tl.math.div_rn(tl.sum(sums, axis=1, keep_dims=True), num_pixels.to(tl.float32))
    for first in range(0, num_pixels, BLOCK):
        at, mask = tile(first, num_pixels, CHANNELS, C, BLOCK)
        x = tl.load(picture + at, mask=mask, other=0.0)
        x = _jittered(x, brightness, contrast, saturation, hue, order, mean, False, CHANNELS, C)
        tl.store(picture + at, x, mask=mask)
    tl.debug_barrier()


@triton.jit
@no_type_check
def make_gray(picture, num_pixels, CHANNELS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """Every channel becomes the gray."""
    for first in range(0, num_pixels, BLOCK):
        at, mask = tile(first, num_pixels, CHANNELS, C, BLOCK)
        gray = _gray(tl.load(picture + at, mask=mask, other=0.0), CHANNELS, C)
        tl.store(picture + at, tl.broadcast_to(gray, [C, BLOCK]), mask=mask)
    tl.debug_barrier()


@triton.jit
@no_type_check
def solarize(picture, num_pixels, added, threshold, CHANNELS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """Values, ``added`` to them, from ``threshold`` on inverted."""
    for first in range(0, num_pixels, BLOCK):
        at, mask = tile(first, num_pixels, CHANNELS, C, BLOCK)
        x = tl.minimum(tl.load(picture + at, mask=mask, other=0.0) + added, 1.0)
        tl.store(picture + at, tl.where(x >= threshold, 1.0 - x, x), mask=mask)
    tl.debug_barrier()


@triton.jit
@no_type_check
def posterize(picture, num_pixels, dropped_bits, CHANNELS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """The lowest bits of each 8-bit value become zero."""
    for first in range(0, num_pixels, BLOCK):
        at, mask = tile(first, num_pixels, CHANNELS, C, BLOCK)
        levels = _levels(tl.load(picture + at, mask=mask, other=0.0))
        tl.store(picture + at, _unit((levels >> dropped_bits) << dropped_bits), mask=mask)
    tl.debug_barrier()


@triton.jit
@no_type_check
def autocontrast(picture, num_pixels, CHANNELS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """Each channel's levels stretched to 0 and 255 in double precision, then cut to whole ones."""
    lowest = tl.full([C, BLOCK], 255, tl.int32)
    highest = tl.full([C, BLOCK], 0, tl.int32)
    for first in range(0, num_pixels, BLOCK):
        at, mask = tile(first, num_pixels, CHANNELS, C, BLOCK)
        levels = _levels(tl.load(picture + at, mask=mask, other=0.0))
        lowest = tl.where(mask, tl.minimum(levels, lowest), lowest)
        highest = tl.where(mask, tl.maximum(levels, highest), highest)
    low = tl.min(lowest, axis=1, keep_dims=True)
    high = tl.max(highest, axis=1, keep_dims=True)
    scale = tl.full([C, 1], 255.0, tl.float64) / tl.maximum(high - low, 1).to(tl.float64)
    offset = low.to(tl.float64) * scale
    tl.debug_barrier()
    for first in range(0, num_pixels, BLOCK):
        at, mask = tile(first, num_pixels, CHANNELS, C, BLOCK)
        levels = _levels(tl.load(picture + at, mask=mask, other=0.0))
        stretched = (levels.to(tl.float64) * scale - offset).to(tl.int32)
        stretched = tl.minimum(tl.maximum(stretched, 0), 255)
        tl.store(picture + at, _unit(tl.where(high > low, stretched, levels)), mask=mask)
    tl.debug_barrier()


@triton.jit
@no_type_check
def equalize(picture, num_pixels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Each channel's levels replaced through their histogram, in integers."""
    bins = tl.arange(0, 256)
    for channel in range(CHANNELS):
        plane = picture + channel * num_pixels
        count = tl.zeros([256], tl.int32)
        for first in range(0, num_pixels, BLOCK):
            pixels = first + tl.arange(0, BLOCK)
            mask = pixels < num_pixels
            count += tl.histogram(_levels(tl.load(plane + pixels, mask=mask, other=0.0)), 256, mask)
        highest = tl.max(tl.where(count > 0, bins, 0))
        step = tl.sum(tl.where(bins < highest, count, 0)) // 255
        below = tl.cumsum(count, 0) - count
        table = tl.minimum((step // 2 + below) // tl.maximum(step, 1), 255)
        table = tl.where(step > 0, table, bins)
        tl.debug_barrier()
        for first in range(0, num_pixels, BLOCK):
            pixels = first + tl.arange(0, BLOCK)
            mask = pixels < num_pixels
            levels = _levels(tl.load(plane + pixels, mask=mask, other=0.0))
            tl.store(plane + pixels, _unit(tl.gather(table, levels, 0)), mask=mask)
    tl.debug_barrier()


# Neighbourhoods.


@triton.jit
@no_type_check
def sharpen(picture, target, height, width, factor, CHANNELS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """Blend of the picture with its mean over 3 x 3 pixels, the middle five times; the border stays."""
    for first in range(0, height * width, BLOCK):
        at, mask = tile(first, height * width, CHANNELS, C, BLOCK)
        pixels = first + tl.arange(0, BLOCK)
        row, column = pixels // width, pixels % width
        is_inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
        x = tl.load(picture + at, mask=mask, other=0.0)
        sums = 4.0 * x
        for y in tl.static_range(-1, 2):
            for shift in tl.static_range(-1, 2):
                sums += tl.load(picture + (at + (y * width + shift)), mask=mask & is_inner[None, :], other=0.0)
        smooth = tl.where(is_inner[None, :], tl.math.div_rn(sums, 13.0), x)
        tl.store(target + at, clipped(_lerp(smooth, x, factor)), mask=mask)
    tl.debug_barrier()


@triton.jit
@no_type_check
def _blur_along(
    picture,
    target,
    height,
    width,
    sigma,
    IS_VERTICAL: tl.constexpr,
    CHANNELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    radius = tl.ceil(3.0 * sigma).to(tl.int32)
    inverse = (1.0 / sigma).to(tl.float32)
    length = height if IS_VERTICAL else width
    # A line and its mirror image, whose ends are not repeated.
    period = tl.maximum(2 * (length - 1), 1)
    for first in range(0, height * width, BLOCK):
        at, mask = tile(first, height * width, CHANNELS, C, BLOCK)
        pixels = first + tl.arange(0, BLOCK)
        position = pixels // width if IS_VERTICAL else pixels % width
        total = tl.zeros([1, 1], tl.float32)
        sums = tl.zeros([C, BLOCK], tl.float32)
        for tap in range(-radius, radius + 1):
            distance = tap * inverse
            weight = tl.exp(-0.5 * distance * distance)
            seen = position + (tap % period + period) % period
            seen = tl.where(seen >= period, seen - period, seen)
            shift = tl.minimum(seen, period - seen) - position
            shift = shift * width if IS_VERTICAL else shift
            sums += weight * tl.load(picture + (at + shift[None, :]), mask=mask, other=0.0)
            total += weight
        tl.store(target + at, tl.math.div_rn(sums, total), mask=mask)
    tl.debug_barrier()


@triton.jit
@no_type_check
def blur(picture, spare, height, width, sigma, CHANNELS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """Convolution with a Gaussian of 2 ceil(3 sigma) + 1 taps, reflected at the edges; sigma is float64."""
    _blur_along(picture, spare, height, width, sigma, True, CHANNELS, C, BLOCK)
    _blur_along(spare, picture, height, width, sigma, False, CHANNELS, C, BLOCK)


@triton.jit
@no_type_check
def distort(
    picture,
    spare,
    height,
    width,
    index,
    magnitude,  # float64, as x and y
    x,
    y,
    CHANNELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The `Distortion` of this number, which the host has checked; where the picture and spare memory are then."""
    num_pixels = height * width
    is_moved = (index >= _ROTATE) & (index <= _TRANSLATE_Y) & (index != _SHARPNESS) & (index != _SOLARIZE)
    if is_moved | (index == _TRANSLATE_X_PX) | (index == _TRANSLATE_Y_PX):
        zero = magnitude * 0.0
        a, b, c = zero + 1.0, zero, zero
        d, e, f = zero, zero + 1.0, zero
        if index == _ROTATE:
            angle = magnitude * 0.017453292519943295
            a, d = tl.cos(angle), tl.sin(angle)
            b, e = -d, a
            c, f = width / 2 - (a * (width / 2) + b * (height / 2)), height / 2 - (d * (width / 2) + e * (height / 2))
        elif index == _SHEAR_X:
            b = magnitude
        elif index == _SHEAR_Y:
            d = magnitude
        elif index == _TRANSLATE_X:
            c = (magnitude * width).to(tl.int32).to(tl.float64)
        elif index == _TRANSLATE_Y:
            f = (magnitude * height).to(tl.int32).to(tl.float64)
        elif index == _TRANSLATE_X_PX:
            c = magnitude
        else:
            f = magnitude
        move(picture, spare, height, width, a, b, c, d, e, f, CHANNELS, C, BLOCK)
        picture, spare = spare, picture
    elif (index >= _BRIGHTNESS) & (index <= _CONTRAST):
        none = magnitude * 0.0
        one = none + 1.0
        brightness = tl.where(index == _BRIGHTNESS, magnitude, one)
        saturation = tl.where(index == _COLOR, magnitude, one)
        contrast = tl.where(index == _CONTRAST, magnitude, one)
        jitter(picture, num_pixels, brightness, contrast, saturation, none, none.to(tl.int64), CHANNELS, C, BLOCK)
    elif (index == _INVERT) | (index == _SOLARIZE) | (index == _SOLARIZE_ADD):
        # Half a level below, so that the rounding of what came before does not decide.
        threshold = tl.where(index == _SOLARIZE, (tl.ceil(magnitude) - 0.5) / 255.0, 127.5 / 255.0)
        threshold = tl.where(index == _INVERT, -1.0, threshold)
        added = tl.where(index == _SOLARIZE_ADD, magnitude / 255.0, 0.0)
        solarize(picture, num_pixels, added.to(tl.float32), threshold.to(tl.float32), CHANNELS, C, BLOCK)
    elif index == _AUTOCONTRAST:
        autocontrast(picture, num_pixels, CHANNELS, C, BLOCK)
    elif index == _EQUALIZE:
        equalize(picture, num_pixels, CHANNELS, BLOCK)
    elif index == _POSTERIZE:
        kept_bits = tl.maximum(magnitude.to(tl.int32), 1)
        posterize(picture, num_pixels, 8 - kept_bits, CHANNELS, C, BLOCK)
    elif index == _SHARPNESS:
        sharpen(picture, spare, height, width, magnitude.to(tl.float32), CHANNELS, C, BLOCK)
        picture, spare = spare, picture
    elif index == _CUTOUT:
        cut_out(picture, height, width, magnitude, x, y, CHANNELS, C, BLOCK)
    return picture, spare
