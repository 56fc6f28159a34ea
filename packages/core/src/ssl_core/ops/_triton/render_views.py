"""Views of images in one launch for each view: a program renders one image's view from its first pixel to its last.

The view's instructions are constants of the kernel, compiled once for each spec and size. An image's parameters are
read on the device: an operation that an image does not take part in, such as a blur, is a branch that its program does
not enter, and nothing waits for the host. Between instructions the picture lies in one of two pieces of memory of its
own (`view_kernels.py`); at 32 pixels, 12 KB each, they never leave the multiprocessor's cache.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssl_core.ops._triton import LAST_DISTORTION, is_interpreted
from ssl_core.ops._triton.launch import on_device_of, round_to_bfloat16
from ssl_core.ops._triton.view_kernels import (
    blur,
    clipped,
    distort,
    jitter,
    make_gray,
    move,
    resample,
    shuffle_cells,
    solarize,
    tile,
)
from ssl_core.ops.instructions import Opcode, PackedImages, View

_CROP = tl.constexpr(int(Opcode.CROP))
_WINDOW = tl.constexpr(int(Opcode.WINDOW))
_CENTER_CROP = tl.constexpr(int(Opcode.CENTER_CROP))
_RESIZE = tl.constexpr(int(Opcode.RESIZE))
_FLIP = tl.constexpr(int(Opcode.FLIP))
_JITTER = tl.constexpr(int(Opcode.JITTER))
_GRAY = tl.constexpr(int(Opcode.GRAY))
_BLUR = tl.constexpr(int(Opcode.BLUR))
_SOLARIZE = tl.constexpr(int(Opcode.SOLARIZE))
_DISTORT = tl.constexpr(int(Opcode.DISTORT))
_JIGSAW = tl.constexpr(int(Opcode.JIGSAW))

# What pixels have for 1.
_HIGHEST = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.float32: 1.0}


class _Step(NamedTuple):
    """An instruction (`FIELDS`) as constants of the kernel; its repetitions take parameters one after the other."""

    opcode: int
    repetitions: int
    column: int
    number: int | float  # the instruction's a
    is_padded: bool
    condition: int
    wanted: int
    is_bicubic: bool


_STEP_FIELDS = tl.constexpr(len(_Step._fields))


@triton.jit
@no_type_check
def _fitted(length, longest, side):
    """round(length * side / longest), halves to even, at least 1."""
    whole, rest = length * side // longest, length * side % longest
    is_up = (2 * rest > longest) | ((2 * rest == longest) & (whole % 2 == 1))
    return tl.maximum(whole + is_up.to(tl.int32), 1)


@triton.jit
@no_type_check
def _framed(
    source,
    channel_stride,
    row_stride,
    column_stride,
    target,
    height,
    width,
    row,
    size,
    HIGHEST: tl.constexpr,
    OPCODE: tl.constexpr,
    SIDE: tl.constexpr,  # of an instruction that has one; 0 for the view's
    IS_PADDED: tl.constexpr,
    IS_BICUBIC: tl.constexpr,
    CHANNELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One of the four instructions that change the picture's size; the side that it has then."""
    top, left = height * 0, width * 0
    window_top, window_left = top, left
    side = size
    new_height, new_width = side, side
    if OPCODE == _CROP:
        # Cut to the picture, as a slice would be.
        top = tl.minimum(tl.maximum(tl.load(row).to(tl.int32), 0), height - 1)
        left = tl.minimum(tl.maximum(tl.load(row + 1).to(tl.int32), 0), width - 1)
        height = tl.minimum(tl.maximum(tl.load(row + 2).to(tl.int32), 1), height - top)
        width = tl.minimum(tl.maximum(tl.load(row + 3).to(tl.int32), 1), width - left)
    elif OPCODE == _WINDOW:
        window_top, window_left = tl.load(row).to(tl.int32), tl.load(row + 1).to(tl.int32)
        new_height, new_width = height, width
    elif OPCODE == _CENTER_CROP:
        if SIDE != 0:
            new_height, new_width = top + SIDE, top + SIDE
        shortest, short_side = tl.minimum(height, width), new_height
        new_height, new_width = short_side * height // shortest, short_side * width // shortest
        # Half of the spare pixels, halves to even.
        window_top = ((new_height - side) // 2) + (((new_height - side) // 2) & (new_height - side) & 1)
        window_left = ((new_width - side) // 2) + (((new_width - side) // 2) & (new_width - side) & 1)
    else:
        if SIDE != 0:
            side = top + SIDE
        new_height, new_width = side, side
        if IS_PADDED:
            longest = tl.maximum(height, width)
            new_height, new_width = _fitted(height, longest, side), _fitted(width, longest, side)
            window_top, window_left = -((side - new_height) // 2), -((side - new_width) // 2)
    resample(
        source, channel_stride, row_stride, column_stride, target, side, side, top, left, height, width, new_height,
        new_width, window_top, window_left, HIGHEST, IS_BICUBIC, CHANNELS, C, BLOCK,
    )  # fmt: skip
    return side


@triton.jit
@no_type_check
def _changed(
    picture,
    spare,
    height,
    width,
    row,  # the image's parameters
    size,
    OPCODE: tl.constexpr,
    REPETITIONS: tl.constexpr,
    COLUMN: tl.constexpr,
    NUMBER: tl.constexpr,
    IS_PADDED: tl.constexpr,
    CONDITION: tl.constexpr,
    WANTED: tl.constexpr,
    IS_BICUBIC: tl.constexpr,
    CHANNELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One instruction on a picture; where it and spare memory are then, and its size."""
    num_pixels = height * width
    takes_part = num_pixels > 0
    if CONDITION >= 0:
        takes_part = tl.load(row + CONDITION) == WANTED
    first = row + COLUMN
    if OPCODE <= _RESIZE:
        side = _framed(
            picture, num_pixels, width, 1, spare, height, width, first, size, 1.0, OPCODE, NUMBER, IS_PADDED,
            IS_BICUBIC, CHANNELS, C, BLOCK,
        )  # fmt: skip
        height, width = side, side
        picture, spare = spare, picture
    elif OPCODE == _DISTORT:
        if takes_part:
            for _ in range(REPETITIONS):
                magnitude = tl.load(first + 1)
                x, y = magnitude, magnitude
                if NUMBER != 0:
                    x, y = tl.load(first + 2), tl.load(first + 3)
                index = tl.load(first).to(tl.int32)
                picture, spare = distort(picture, spare, height, width, index, magnitude, x, y, CHANNELS, C, BLOCK)
                first += 4 if NUMBER != 0 else 2
    elif OPCODE == _JITTER:
        if takes_part:
            brightness, contrast = tl.load(first), tl.load(first + 1)
            saturation, hue = tl.load(first + 2), tl.load(first + 3)
            order = tl.load(first + 4).to(tl.int64)
            if (brightness != 1.0) | (contrast != 1.0) | (saturation != 1.0) | (hue != 0.0):
                jitter(picture, num_pixels, brightness, contrast, saturation, hue, order, CHANNELS, C, BLOCK)
    elif OPCODE == _JIGSAW:
        if takes_part:
            shuffle_cells(picture, spare, height, first, NUMBER, CHANNELS, C, BLOCK)
            picture, spare = spare, picture
    else:
        amount = tl.load(first)
        if takes_part & (amount != 0.0):
            if OPCODE == _FLIP:
                zero = amount * 0.0
                mirrored, upright = zero - 1.0, zero + 1.0
                move(
                    picture, spare, height, width, mirrored, zero, zero + width, zero, upright, zero, CHANNELS, C, BLOCK
                )
                picture, spare = spare, picture
            elif OPCODE == _GRAY:
                make_gray(picture, num_pixels, CHANNELS, C, BLOCK)
            elif OPCODE == _BLUR:
                blur(picture, spare, height, width, amount, CHANNELS, C, BLOCK)
            elif OPCODE == _SOLARIZE:
                solarize(picture, num_pixels, 0.0, NUMBER, CHANNELS, C, BLOCK)
            else:
                tl.static_assert(False, "an opcode without a kernel")
    return picture, spare, height, width


# Numbers of which any value is as good, so that a 1 or a multiple of 16 is not compiled again.
@triton.jit(do_not_specialize=["num_parameters", "slot", "size", "image_stride"])
@no_type_check
def _render_kernel(
    pixels,
    layout,  # None: the pixels are planar squares of the view's size
    parameters,
    num_parameters,
    memory,
    slot,  # floats that a picture takes, ...
    starts,  # ... or where each image's pictures begin, if they differ in that
    mean_std,
    kept,  # the picture before it is normalized, or None
    result,
    size,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    PROGRAM: tl.constexpr,  # the fields of every `_Step`, one after the other: Triton 3.6 knows no tuples of tuples
    FRAMED: tl.constexpr,  # whether the first of them changes the picture's size
    HIGHEST: tl.constexpr,  # what the pixels have for 1
    CHANNELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_BFLOAT16: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    row = parameters + image * num_parameters
    if starts is None:
        picture = memory + 2 * image * slot
        spare = picture + slot
    else:
        start = tl.load(starts + image)
        picture = memory + 2 * start
        spare = picture + (tl.load(starts + image + 1) - start)
    if layout is None:
        height, width = size, size
        source = pixels + image * CHANNELS * size * size
        source_channel, source_row, source_column = size * size, size, 1
    else:
        fields = layout + image * 6
        source = pixels + tl.load(fields)
        height, width = tl.load(fields + 1).to(tl.int32), tl.load(fields + 2).to(tl.int32)
        source_channel, source_row = tl.load(fields + 3).to(tl.int32), tl.load(fields + 4).to(tl.int32)
        source_column = tl.load(fields + 5).to(tl.int32)
    if FRAMED:
        side = _framed(
            source, source_channel, source_row, source_column, picture, height, width, row + PROGRAM[2], size,
            HIGHEST, PROGRAM[0], PROGRAM[3], PROGRAM[4], PROGRAM[7], CHANNELS, C, BLOCK,
        )  # fmt: skip
        height, width = side, side
    else:
        resample(
            source, source_channel, source_row, source_column, picture, height, width, 0, 0, height, width, height,
            width, 0, 0, HIGHEST, False, CHANNELS, C, BLOCK,
        )  # fmt: skip
    for field in tl.static_range(_STEP_FIELDS if FRAMED else 0, len(PROGRAM), _STEP_FIELDS):
        picture, spare, height, width = _changed(
            picture, spare, height, width, row, size, PROGRAM[field], PROGRAM[field + 1], PROGRAM[field + 2],
            PROGRAM[field + 3], PROGRAM[field + 4], PROGRAM[field + 5], PROGRAM[field + 6], PROGRAM[field + 7],
            CHANNELS, C, BLOCK,
        )  # fmt: skip
    channels = tl.arange(0, C)
    mean = tl.load(mean_std + channels, mask=channels < CHANNELS, other=0.0)[:, None]
    std = tl.load(mean_std + CHANNELS + channels, mask=channels < CHANNELS, other=1.0)[:, None]
    drawn = result + image * image_stride
    for first in range(0, size * size, BLOCK):
        at, mask = tile(first, size * size, CHANNELS, C, BLOCK)
        x = tl.load(picture + at, mask=mask, other=0.0)
        if kept is not None:
            tl.store(kept + image * CHANNELS * size * size + at, x, mask=mask)
        x = tl.math.div_rn(clipped(x) - mean, tl.broadcast_to(std, [C, BLOCK]))
        pixel = first + tl.arange(0, BLOCK)
        pixel_at = pixel // size * row_stride + pixel % size * column_stride
        x = round_to_bfloat16(x) if IS_BFLOAT16 else x.to(result.dtype.element_ty)
        tl.store(drawn + (pixel_at[None, :] + (channels * channel_stride)[:, None]), x, mask=mask)


def render_views(
    images: PackedImages, views: Sequence[View], mean: Tensor, std: Tensor, results: Sequence[Tensor]
) -> None:
    """As ``ssl_core.ops.render_views``, into tensors that are there.

    A distortion that there is no kernel of is a ValueError if parameters are on the CPU; if they are on the device,
    it is an error of the device at the next wait for it.

    The host waits for the device where an image is changed before it is first cropped or resized: how much memory
    that takes is known there alone.
    """
    num_images, channels = len(images.layout), images.channels
    if num_images == 0:
        return
    device, dtype = images.pixels.device, images.pixels.dtype
    normalization = _on_device((*mean.tolist(), *std.tolist()), device)
    pictures: dict[int, Tensor] = {}
    for index, (view, result) in enumerate(zip(views, results, strict=True)):
        program = _program(view)
        _check_distortions(index, view, program)
        if view.continues >= 0:
            pixels, layout, highest = pictures[view.continues], None, 1.0
        else:
            pixels = images.pixels.view(torch.int16) if dtype == torch.uint16 else images.pixels
            layout, highest = images.layout, _HIGHEST[dtype]
        if any(later.continues == index for later in views[index + 1 :]):
            pictures[index] = torch.empty(result.shape, dtype=torch.float32, device=device)
        is_framed = len(program) > 0 and program[0].opcode <= Opcode.RESIZE
        side = max([view.size, *(int(step.number) for step in program if step.opcode == Opcode.RESIZE)])
        slot, starts = channels * side * side, None
        if layout is not None and not is_framed:
            starts = _starts(images, slot)
        num_floats = 2 * (num_images * slot if starts is None else int(starts[-1]))
        warps, block = _configuration(view.size)
        with on_device_of(pixels):
            _render_kernel[(num_images,)](
                pixels,
                layout,
                view.parameters.contiguous(),
                view.parameters.shape[1],
                torch.empty(num_floats, dtype=torch.float32, device=device),
                slot,
                starts,
                normalization,
                pictures.get(index),
                result.view(torch.int16) if result.dtype == torch.bfloat16 else result,
                view.size,
                *result.stride(),
                PROGRAM=_flat(program),
                FRAMED=is_framed,
                HIGHEST=highest,
                CHANNELS=channels,
                C=triton.next_power_of_2(channels),
                BLOCK=block,
                IS_BFLOAT16=result.dtype == torch.bfloat16,
                num_warps=warps,
                num_stages=1,
                enable_fp_fusion=False,
            )


def _program(view: View) -> tuple[_Step, ...]:
    """The view's instructions; distortions that follow one another are one step, compiled once."""
    program: list[_Step] = []
    for numbers in view.instructions.tolist():
        # Whole numbers are integers in a kernel.
        opcode, column, a, b, c, condition, wanted = (int(n) if n.is_integer() else n for n in numbers)
        is_bicubic = bool(a if opcode == Opcode.CROP else b)
        step = _Step(opcode, 1, column, a, bool(c), condition, wanted, is_bicubic)
        if program and opcode == Opcode.DISTORT:
            before = program[-1]
            behind = before.column + before.repetitions * (4 if a else 2)
            if before._replace(repetitions=1, column=column) == step and behind == column:
                step = before._replace(repetitions=before.repetitions + 1)
                program.pop()
        program.append(step)
    return tuple(program)


def _flat(program: Sequence[_Step]) -> tuple[int | float, ...]:
    """The constant of the kernel."""
    return tuple(field for step in program for field in step)


def _check_distortions(index: int, view: View, program: Sequence[_Step]) -> None:
    """Refuse distortions that there is no kernel of: at once on the host, and on a device without waiting for it."""
    for step in program:
        if step.opcode != Opcode.DISTORT:
            continue
        width = 4 if step.number else 2
        numbers = view.parameters[:, step.column : step.column + step.repetitions * width : width]
        is_known = (numbers >= 0) & (numbers <= LAST_DISTORTION) & (numbers == numbers.floor())
        if step.condition >= 0:
            is_known |= view.parameters[:, step.condition, None] != step.wanted
        message = f"view {index}: its parameters hold a distortion that is none of 0 to {LAST_DISTORTION:d}"
        if numbers.device.type == "cpu":
            if not is_known.all():
                raise ValueError(f"{message}: {numbers[~is_known][0]:g}")
        else:
            torch._assert_async(is_known.all(), message)


def _starts(images: PackedImages, smallest: int) -> Tensor:
    """(n + 1) where pictures as large as the images begin, and where the last one ends.

    An image may be there twice, so that its place among the pixels is no place for a picture.
    """
    floats = (images.layout[:, 1] * images.layout[:, 2] * images.channels).clamp(min=smallest)
    return torch.nn.functional.pad(floats.cumsum(0), (1, 0))


@functools.lru_cache(maxsize=64)
def _on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """The numbers on a device, kept there: the first call waits for it."""
    return torch.tensor(numbers).to(device)


def _configuration(size: int) -> tuple[int, int]:
    """Warps of a program and pixels of a tile, one for each thread. Not yet measured.

    Without distortions Triton 3.9 takes at most 64 registers, so that a multiprocessor holds 32 warps; 3.6 takes up to
    108, which leaves 16.
    """
    if is_interpreted():
        return 4, 1024
    warps = 8 if size <= 64 else 16
    return warps, 32 * warps
