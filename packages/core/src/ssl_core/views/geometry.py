"""Rotation, shear and translation of one image: nearest pixel, zeros from outside, exactly Pillow's choice.

Each pixel of the result copies the pixel of the image in which its centre falls; ``matrix`` (a, b, c, d, e, f)
takes a point (x, y) of the result, from its upper left corner, to (a x + b y + c, d x + e y + f) of the image.
Positions are integers in units of 2**-16 pixels, as in Pillow, so that every device copies the same pixels.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_ONE = 65536  # of the fixed-point numbers


def rotate(image: Float[Tensor, "c h w"], degrees: float) -> Float[Tensor, "c h w"]:
    """The image turned counter-clockwise around its centre."""
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
    pixels = float(int(fraction * image.shape[2]))
    return affine(image, (1.0, 0.0, pixels, 0.0, 1.0, 0.0))


def translate_y(image: Float[Tensor, "c h w"], fraction: float) -> Float[Tensor, "c h w"]:
    """The image moved up by a fraction of its height, cut to whole pixels."""
    pixels = float(int(fraction * image.shape[1]))
    return affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, pixels))


def affine(
    image: Float[Tensor, "c h w"], matrix: tuple[float, float, float, float, float, float]
) -> Float[Tensor, "c h w"]:
    """The image seen through an affine map from the result's points to its own; see above."""
    a, b, c, d, e, f = matrix
    _, height, width = image.shape
    column = torch.arange(width, device=image.device)
    row = torch.arange(height, device=image.device)[:, None]
    # From the centre of the first pixel.
    x = (_fixed(a) * column + (_fixed(b) * row + _fixed(c + a * 0.5 + b * 0.5))) >> 16
    y = (_fixed(d) * column + (_fixed(e) * row + _fixed(f + d * 0.5 + e * 0.5))) >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # What comes from outside copies a zero that follows the last pixel.
    source = torch.where(inside, y * width + x, height * width)
    return F.pad(image.flatten(1), (0, 1)).index_select(1, source.flatten()).view_as(image)


def _fixed(number: float) -> int:
    return math.floor(number * _ONE + 0.5)
