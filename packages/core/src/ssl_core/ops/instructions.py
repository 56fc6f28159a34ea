"""The input of renderers: images in one flat piece of memory, and a program of numbers for each view.

What an instruction does is defined by the op that gives it: ``render`` in ``views/ops``.
"""

import enum
from collections.abc import Collection
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

PIXEL_DTYPES = (torch.uint8, torch.uint16, torch.float32)
VIEW_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Columns of `PackedImages.layout`.
LAYOUT = ("offset", "height", "width", "channel_stride", "row_stride", "column_stride")


class Opcode(enum.IntEnum):
    """Kinds of instructions, with (parameters; constants). Append only: csrc/ssl_core.h has the same, in this order."""

    CROP = 0  # (top, left, height, width; a: bicubic) the box resized to the view's size
    WINDOW = 1  # (top, left) of the view's size, zeros outside the picture
    CENTER_CROP = 2  # (; a: short side, 0 for the view's size, b: bicubic)
    RESIZE = 3  # (; a: side, 0 for the view's size, b: bicubic, c: padded to keep the aspect ratio)
    FLIP = 4  # (whether)
    JITTER = 5  # (brightness, contrast, saturation, hue, order)
    GRAY = 6  # (whether)
    BLUR = 7  # (sigma, 0 for none)
    SOLARIZE = 8  # (whether; a: threshold)
    DISTORT = 9  # (number of the Distortion, magnitude, and where a is 1: x, y)
    JIGSAW = 10  # (the cell of each place; a: grid)


class Distortion(enum.IntEnum):
    """Kinds of distortions, each with its magnitude. Append only, as `Opcode`; saved parameters hold these."""

    IDENTITY = 0
    AUTOCONTRAST = 1
    BRIGHTNESS = 2  # factor, as the other three enhancements
    COLOR = 3
    CONTRAST = 4
    EQUALIZE = 5
    INVERT = 6
    POSTERIZE = 7  # bits that are kept of each 8-bit value; at least one is
    ROTATE = 8  # degrees, counter-clockwise
    SHARPNESS = 9
    SHEAR_X = 10  # pixels to the left for each row down
    SHEAR_Y = 11  # pixels up for each column to the right
    SOLARIZE = 12  # lowest 8-bit value that is inverted
    TRANSLATE_X = 13  # fraction of the width, to the left
    TRANSLATE_Y = 14  # fraction of the height, up
    SOLARIZE_ADD = 15  # levels that are added before values from 128 on are inverted
    CUTOUT = 16  # side of the gray square, in pixels; the one distortion with a place
    TRANSLATE_X_PX = 17  # pixels to the left
    TRANSLATE_Y_PX = 18  # pixels up


Numbered = TypeVar("Numbered", Opcode, Distortion)


def numbered(enumeration: type[Numbered], number: float) -> Numbered:
    """The opcode or distortion of a number; of any other number, a ValueError."""
    try:
        return enumeration(number)  # type: ignore[arg-type]  # 3.0 finds 3
    except ValueError:
        names = f"{min(enumeration):d} is {min(enumeration).name} and {max(enumeration):d} is {max(enumeration).name}"
        raise ValueError(f"no {enumeration.__name__.lower()} has number {number:g}: {names}") from None


def beyond(opcodes: Collection[Opcode], last: int) -> str | None:
    """The reason why kernels whose newest opcode is ``last`` cannot run a program of these; None if they can."""
    newer = ", ".join(opcode.name for opcode in sorted(opcodes) if opcode > last)
    return f"it has no kernel of {newer}" if newer else None


class Instruction(NamedTuple):
    """A row of `View.instructions`.

    Attributes:
        opcode: number of the operation.
        column: column of the operation's first parameter.
        a: first constant of the operation, as `Opcode` says.
        b: second constant of the operation.
        c: third constant of the operation.
        condition: column of a parameter; an image that does not have the value ``wanted`` there skips the instruction.
            -1: no image skips it. An instruction that changes the picture's size has no condition.
        wanted: value of the parameter that the condition asks for, 0 or 1.
    """

    opcode: Opcode
    column: int = 0
    a: float = 0
    b: float = 0
    c: float = 0
    condition: int = -1
    wanted: int = 0

    def moved(self, columns: int) -> "Instruction":
        """The same for parameters that stand this many columns further on."""
        condition = self.condition if self.condition < 0 else self.condition + columns
        return self._replace(column=self.column + columns, condition=condition)


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
    """Number of parameters that an instruction reads.

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
        pixels: pixels of all images in one flat tensor; uint8, uint16, or float32 in [0, 1].
        layout: (n 6) place and size of each image, on the device of ``pixels``; see `LAYOUT`; strides and offset in
            elements.
        channels: number of channels of every image.
    """

    pixels: Shaped[Tensor, " elements"]
    layout: Int64[Tensor, "n 6"]
    channels: int


class View(NamedTuple):
    """One view of every image.

    Attributes:
        instructions: (i 7) table with a row for each `Instruction`, on the CPU.
        parameters: (n p) table with a row for each image, on the device of the images.
        size: side of the square result in pixels.
        continues: index of an earlier view of the same size in the same call, from whose picture the instructions go
            on; -1: they begin with the image.
    """

    instructions: Float64[Tensor, "i 7"]
    parameters: Float64[Tensor, "n p"]
    size: int
    continues: int = -1
