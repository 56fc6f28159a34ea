"""Geometry of one image: rotation, shear, translation, a gray box, and cells in another order.

The first three copy the nearest pixel, and zeros from outside, exactly as Pillow does: each pixel of the result copies
the pixel of the image in which its center falls. ``matrix`` (a, b, c, d, e, f) takes a point (x, y) of the result,
from its upper left corner, to (a x + b y + c, d x + e y + f) of the image. Positions are integers in units of
2**-16 pixels, as in Pillow, so that every device copies the same pixels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_ONE = 65536  # of the fixed-point numbers
_CUTOUT_LEVELS = (125, 123, 114)  # CIFAR-10's mean, rounded; DSSL's code fills with it


def rotate(image: Float[Tensor, "c h w"], degrees: float) -> Float[Tensor, "c h w"]:
    """The image turned counter-clockwise around its center."""
    _, height, width = image.shape
    # Pillow rounds so that whole quarter turns have exact coefficients.
    cosine, sine = (round(part(math.radians(degrees)), 15) for part in (math.cos, math.sin))
    x, y = width / 2, height / 2
    return affine(image, (cosine, -sine, x - (cosine * x - sine * y), sine, cosine, y - (sine * x + cosine * y)))


def shear_x(image: Float[Tensor, "c h w"], slope: float) -> Float[Tensor, "c h w"]:
    """Rows moved to the left by ``slope`` pixels for each pixel below the upper edge, which stays."""
    return affine(image, (1.0, slope, 0.0, 0.0, 1.0, 0.0))


def shear_y(image: Float[Tensor, "c h w"], slope: float) -> Float[Tensor, "c h w"]:
    """Columns moved up by ``slope`` pixels for each pixel right of the left edge, which stays."""
    return affine(image, (1.0, 0.0, 0.0, slope, 1.0, 0.0))


def translate_x(image: Float[Tensor, "c h w"], fraction: float) -> Float[Tensor, "c h w"]:
    """The image moved to the left by a fraction of its width, cut to whole pixels."""
    return translate_x_px(image, float(int(fraction * image.shape[2])))


def translate_y(image: Float[Tensor, "c h w"], fraction: float) -> Float[Tensor, "c h w"]:
    """The image moved up by a fraction of its height, cut to whole pixels."""
    return translate_y_px(image, float(int(fraction * image.shape[1])))


def translate_x_px(image: Float[Tensor, "c h w"], pixels: float) -> Float[Tensor, "c h w"]:
    """The image moved to the left by a number of pixels, which need not be whole."""
    return affine(image, (1.0, 0.0, pixels, 0.0, 1.0, 0.0))


def translate_y_px(image: Float[Tensor, "c h w"], pixels: float) -> Float[Tensor, "c h w"]:
    """The image moved up by a number of pixels, which need not be whole."""
    return affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, pixels))


def affine(
    image: Float[Tensor, "c h w"], matrix: tuple[float, float, float, float, float, float]
) -> Float[Tensor, "c h w"]:
    """The image seen through an affine map from the result's points to its own; see above."""
    a, b, c, d, e, f = matrix
    _, height, width = image.shape
    column = torch.arange(width, device=image.device)
    row = torch.arange(height, device=image.device)[:, None]
    # From the center of the first pixel.
    x = (_fixed(a) * column + (_fixed(b) * row + _fixed(c + a * 0.5 + b * 0.5))) >> 16
    y = (_fixed(d) * column + (_fixed(e) * row + _fixed(f + d * 0.5 + e * 0.5))) >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # What comes from outside copies a zero that follows the last pixel.
    source = torch.where(inside, y * width + x, height * width)
    return F.pad(image.flatten(1), (0, 1)).index_select(1, source.flatten()).view_as(image)


def cutout(image: Float[Tensor, "c h w"], side: float, x: float, y: float) -> Float[Tensor, "c h w"]:
    """The image with a gray square of ``side`` pixels around (x w, y h).

    Pillow fills both edges of a rectangle, so that the square is a pixel wider than ``side``. At the left and upper
    border it is moved inside, at the others it is cut.
    """
    channels, height, width = image.shape
    left, top = int(max(0, x * width - side / 2)), int(max(0, y * height - side / 2))
    right, bottom = int(min(width, left + side)), int(min(height, top + side))
    levels = _CUTOUT_LEVELS if channels == 3 else [sum(_CUTOUT_LEVELS) / 3] * channels
    result = image.clone()
    result[:, top : bottom + 1, left : right + 1] = image.new_tensor(levels)[:, None, None] / 255
    return result


def shuffle_cells(image: Float[Tensor, "c h w"], grid: int, cells: Sequence[int]) -> Float[Tensor, "c h w"]:
    """The image's grid x grid cells, numbered row by row, in another order: place i shows cell ``cells[i]``."""
    channels, height, width = image.shape
    cut = image.reshape(channels, grid, height // grid, grid, width // grid).permute(1, 3, 0, 2, 4)
    placed = cut.flatten(0, 1)[list(cells)].view(cut.shape)
    return placed.permute(2, 0, 3, 1, 4).reshape(image.shape)


def _fixed(number: float) -> int:
    return math.floor(number * _ONE + 0.5)
