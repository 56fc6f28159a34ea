"""Ways from an image of any size to a square: crops and resizing, with torchvision's conventions.

Geometry is bilinear or bicubic with antialias and reads only the part of the image that it needs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.ops.instructions import Instruction, Opcode
from ssl_core.views.images import to_unit
from ssl_core.views.ops.numbers import between, check_range, exp

INTERPOLATIONS = ("bilinear", "bicubic")
_CANDIDATES = 10


def _check_interpolation(op: str, interpolation: str) -> None:
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"{op}: interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}")


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and aspect ratio, resized to the view's size with antialias.

    Ten boxes are sampled and the first that lies inside the image is taken; if none does, the largest central box
    whose ratio is allowed. The distribution is that of torchvision's transform of this name.

    Args:
        scale: range of the box's area as a fraction of the image's, uniform.
        ratio: range of the box's width / height, log-uniform.
        interpolation: filter of the resizing, bilinear or bicubic.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"

    name: ClassVar[str] = "random_resized_crop"
    # The box in pixels of the image that the op receives; whole numbers.
    parameters: ClassVar[tuple[str, ...]] = ("top", "left", "height", "width")
    # (area, ratio) of ten candidates, then the position of the one taken.
    num_draws: ClassVar[int] = 22

    def __post_init__(self) -> None:
        check_range(self.name, "scale", self.scale, upto=1.0)
        check_range(self.name, "ratio", self.ratio, upto=20.0)
        _check_interpolation(self.name, self.interpolation)

    def side_after(self, side: int) -> int:
        return side

    def sample(self, draws: Tensor, size: Tensor, side: int) -> Tensor:
        height_n1, width_n1 = size[:, :1], size[:, 1:]
        area = height_n1 * width_n1 * between(self.scale, draws[:, :_CANDIDATES])
        log_ratio = (math.log(self.ratio[0]), math.log(self.ratio[1]))
        ratio = exp(between(log_ratio, draws[:, _CANDIDATES : 2 * _CANDIDATES]))
        box_width, box_height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (box_width >= 1) & (box_width <= width_n1) & (box_height >= 1) & (box_height <= height_n1)

        # No candidate inside the image: the whole image, or as much of its long side as the ratio allows.
        central_width = torch.minimum(width_n1, (height_n1 * self.ratio[1]).round().clamp(min=1))
        central_height = torch.minimum(height_n1, (width_n1 / self.ratio[0]).round().clamp(min=1))

        first_n1 = fits.int().argmax(dim=1, keepdim=True)
        any_n1 = fits.any(dim=1, keepdim=True)
        box_height = torch.where(any_n1, box_height.gather(1, first_n1), central_height)
        box_width = torch.where(any_n1, box_width.gather(1, first_n1), central_width)
        spare_height, spare_width = height_n1 - box_height, width_n1 - box_width
        top = torch.where(any_n1, (draws[:, -2:-1] * (spare_height + 1)).floor(), (spare_height / 2).floor())
        left = torch.where(any_n1, (draws[:, -1:] * (spare_width + 1)).floor(), (spare_width / 2).floor())
        return torch.cat([top, left, box_height, box_width], dim=1)

    def render(self, image: Tensor, values: Sequence[float], side: int) -> Tensor:
        top, left, height, width = (int(value) for value in values)
        # Cut before the conversion to float, which then costs no more than the part that is kept.
        return _resize(to_unit(image[:, top : top + height, left : left + width]), side, side, self.interpolation)

    def instructions(self) -> list[Instruction]:
        return [Instruction(Opcode.CROP, a=self.interpolation == "bicubic")]


@dataclass(frozen=True)
class RandomCrop:
    """A window of the view's size at a random place of the zero-padded image, without resizing.

    An image that is smaller than the window even with its padding is centered in it, zeros around.

    Args:
        padding: width of the border of zeros on each side, in pixels.
    """

    padding: int = 0

    name: ClassVar[str] = "random_crop"
    # Corner of the window in pixels of the unpadded image; negative in the padding.
    parameters: ClassVar[tuple[str, ...]] = ("top", "left")
    num_draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"{self.name}: padding must be >= 0 pixels, got {self.padding}")

    def side_after(self, side: int) -> int:
        return side

    def misfit(self, sides: tuple[int, ...], sizes: tuple[int, ...]) -> str | None:
        if len(sizes) == 1:
            return None
        return f"several sizes {sizes} need one geometric op that resizes, got {self.name}: make one view for each size"

    def sample(self, draws: Tensor, size: Tensor, side: int) -> Tensor:
        spare = size + 2 * self.padding - side
        return torch.where(spare >= 0, (draws * (spare + 1)).floor() - self.padding, ((size - side) / 2).floor())

    def render(self, image: Tensor, values: Sequence[float], side: int) -> Tensor:
        return _window(image, int(values[0]), int(values[1]), side)

    def instructions(self) -> list[Instruction]:
        return [Instruction(Opcode.WINDOW)]


@dataclass(frozen=True)
class CenterCrop:
    """The image resized so that its short side is ``short_side``, and the central square of the view's size.

    Nothing is random. "Resize 256, center crop 224" is ``CenterCrop(short_side=256)`` in a view of size 224.

    Args:
        short_side: short side of the resized image in pixels, at least the view's size; None is the view's size, which
            gives the largest central square.
        interpolation: filter of the resizing, bilinear or bicubic.
    """

    short_side: int | None = None
    interpolation: str = "bilinear"

    name: ClassVar[str] = "center_crop"
    parameters: ClassVar[tuple[str, ...]] = ()
    num_draws: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _check_interpolation(self.name, self.interpolation)

    def side_after(self, side: int) -> int:
        return side

    def misfit(self, sides: tuple[int, ...], sizes: tuple[int, ...]) -> str | None:
        if self.short_side is None or self.short_side >= max(sizes):
            return None
        return f"{self.name}'s short_side {self.short_side} is smaller than the view's size {max(sizes)}"

    def sample(self, draws: Tensor, size: Tensor, side: int) -> Tensor:
        return draws

    def render(self, image: Tensor, values: Sequence[float], side: int) -> Tensor:
        image = to_unit(image)
        short_side = self.short_side or side
        _, height, width = image.shape
        # As torchvision: the long side is cut to whole pixels, and the window's corner is rounded to even.
        new_height = short_side if height <= width else short_side * height // width
        new_width = short_side if width <= height else short_side * width // height
        top, left = round((new_height - side) / 2), round((new_width - side) / 2)
        # Each axis is resized and cut before the other is touched: 3000 x 2 must not become 384,000 x 256.
        image = _interpolate(image, new_height, width, self.interpolation)[:, top : top + side]
        image = _interpolate(image, side, new_width, self.interpolation)[:, :, left : left + side]
        return _clipped(image, self.interpolation)

    def instructions(self) -> list[Instruction]:
        return [Instruction(Opcode.CENTER_CROP, a=self.short_side or 0, b=self.interpolation == "bicubic")]


@dataclass(frozen=True)
class Resize:
    """The whole image made square, whatever its aspect ratio. Nothing is random.

    `CenterCrop` is the third way to a square: it keeps the aspect ratio and loses the ends of the long side.

    Args:
        side: side of the square in pixels; None is the view's size.
        interpolation: filter of the resizing, bilinear or bicubic.
        mode: way to make the image square: squash changes its aspect ratio; pad keeps it, with the long side at
            ``side`` and the image centered between black (zeros).
    """

    side: int | None = None
    interpolation: str = "bilinear"
    mode: str = "squash"

    name: ClassVar[str] = "resize"
    parameters: ClassVar[tuple[str, ...]] = ()
    num_draws: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.side is not None and self.side < 1:
            raise ValueError(f"{self.name}: side must be >= 1 pixel, got {self.side}")
        _check_interpolation(self.name, self.interpolation)
        if self.mode not in ("squash", "pad"):
            raise ValueError(f"{self.name}: mode must be squash or pad, got {self.mode!r}")

    def side_after(self, side: int) -> int:
        return self.side or side

    def sample(self, draws: Tensor, size: Tensor, side: int) -> Tensor:
        return draws

    def render(self, image: Tensor, values: Sequence[float], side: int) -> Tensor:
        image, side = to_unit(image), self.side or side
        if self.mode == "squash":
            return _resize(image, side, side, self.interpolation)
        _, height, width = image.shape
        longest = max(height, width)
        new_height, new_width = (max(1, round(length * side / longest)) for length in (height, width))
        resized = _resize(image, new_height, new_width, self.interpolation)
        return _window(resized, -((side - new_height) // 2), -((side - new_width) // 2), side)

    def instructions(self) -> list[Instruction]:
        return [Instruction(Opcode.RESIZE, 0, self.side or 0, self.interpolation == "bicubic", self.mode == "pad")]


def _resize(image: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    return _clipped(_interpolate(image, height, width, interpolation), interpolation)


def _interpolate(image: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    if image.shape[1:] == (height, width):
        return image
    if width == 1:
        # Where a result is one pixel wide, ATen makes all its rows equal to the first.
        image = image.mT.contiguous()
        return F.interpolate(image[None], size=(width, height), mode=interpolation, antialias=True)[0].mT
    return F.interpolate(image[None], size=(height, width), mode=interpolation, antialias=True)[0]


def _clipped(image: Tensor, interpolation: str) -> Tensor:
    return image.clamp(0, 1) if interpolation == "bicubic" else image  # bicubic overshoots


def _window(image: Tensor, top: int, left: int, size: int) -> Tensor:
    """The (size size) window with its corner at (top, left), zeros outside the image."""
    bottom, right = top + size, left + size
    # Ends below zero would count from the other side of the image.
    rows, columns = slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))
    inside = to_unit(image[:, rows, columns])
    result = inside.new_zeros(len(image), size, size)
    first_row, first_column = max(-top, 0), max(-left, 0)
    result[:, first_row : first_row + inside.shape[1], first_column : first_column + inside.shape[2]] = inside
    return result
