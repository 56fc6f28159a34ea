"""What renderers of views are told: images in one flat piece of memory, and a program of numbers for each view.

What an instruction does is defined by `ssl_core.views.render`, the reference.
"""

import enum
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

PIXEL_DTYPES = (torch.uint8, torch.uint16, torch.float32)
VIEW_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Columns of `PackedImages.layout`.
LAYOUT = ("offset", "height", "width", "channel_stride", "row_stride", "column_stride")

# Columns of `View.instructions`. ``column`` is that of the instruction's first parameter; ``a``, ``b`` and ``c`` are
# constants. An image whose parameter in column ``condition`` is not ``wanted`` skips the instruction; -1: none does.
# What changes a picture's size has no condition.
FIELDS = ("opcode", "column", "a", "b", "c", "condition", "wanted")


class Opcode(enum.IntEnum):
    """What an instruction does, (parameters; constants); csrc/ssl_core.h has the same numbers."""

    CROP = 0  # (top, left, height, width; a: bicubic) the box resized to the view's size
    WINDOW = 1  # (top, left) of the view's size, zeros outside the picture
    CENTER_CROP = 2  # (; a: short side, 0 for the view's size, b: bicubic)
    RESIZE = 3  # (; a: side, 0 for the view's size, b: bicubic, c: padded to keep the aspect ratio)
    FLIP = 4  # (whether)
    JITTER = 5  # (brightness, contrast, saturation, hue, order)
    GRAY = 6  # (whether)
    BLUR = 7  # (sigma, 0 for none)
    SOLARIZE = 8  # (whether; a: threshold)
    DISTORT = 9  # (index into DISTORTIONS, magnitude, and where a is 1: x, y)
    JIGSAW = 10  # (the cell of each place; a: grid)


# Of the other two it follows from ``a``.
_NUM_PARAMETERS = {
    Opcode.CROP: 4,
    Opcode.WINDOW: 2,
    Opcode.CENTER_CROP: 0,
    Opcode.RESIZE: 0,
    Opcode.FLIP: 1,
    Opcode.JITTER: 5,
    Opcode.GRAY: 1,
    Opcode.BLUR: 1,
    Opcode.SOLARIZE: 1,
}


def num_parameters_of(opcode: Opcode, a: int) -> int:
    """How many parameters an instruction reads.

    Example:
        >>> num_parameters_of(Opcode.JIGSAW, 4)
        16
    """
    if opcode == Opcode.JIGSAW:
        return a**2
    if opcode == Opcode.DISTORT:
        return 4 if a else 2
    return _NUM_PARAMETERS[opcode]


class PackedImages(NamedTuple):
    """Images of any heights and widths in one flat piece of memory.

    Attributes:
        pixels: flat; uint8, uint16, or float32 in [0, 1].
        layout: (n 6) of each image, on the device of ``pixels``; see `LAYOUT`; strides and offset in elements.
        channels: of every image.
    """

    pixels: Shaped[Tensor, " elements"]
    layout: Int64[Tensor, "n 6"]
    channels: int


class View(NamedTuple):
    """One view of every image.

    Attributes:
        instructions: (i 7) on the CPU; see `FIELDS`.
        parameters: (n p) a row for each image, on the device of the images.
        size: side of the square result in pixels.
        continues: index of an earlier view of the same size in the same call, whose picture the instructions begin
            with; -1: they begin with the image.
    """

    instructions: Float64[Tensor, "i 7"]
    parameters: Float64[Tensor, "n p"]
    size: int
    continues: int = -1
