"""From parameters and an image to pixels: the reference renderer, which defines the picture.

One image at a time, with torchvision's conventions. Geometry is bilinear or bicubic with antialias and reads
only the part of the image that it needs; colour ops work in float32 on [0, 1], in the drawn order, without
rounding in between. No op writes into its input.
"""

import functools
import math
from collections.abc import Sequence
from typing import assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Float64, Num
from torch import Tensor

from ssl_core.views.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    adjust_sharpness,
    autocontrast,
    equalize,
    gray,
    invert,
    posterize,
    solarize,
)
from ssl_core.views.geometry import (
    cutout,
    rotate,
    shear_x,
    shear_y,
    shuffle_cells,
    translate_x,
    translate_x_px,
    translate_y,
    translate_y_px,
)
from ssl_core.views.images import check_channels, check_image, to_unit
from ssl_core.views.pools import DISTORTIONS, Distortion
from ssl_core.views.spec import (
    JITTER_ORDERS,
    CenterCrop,
    Choice,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Jigsaw,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Solarize,
    ViewOp,
    ViewSpec,
    num_parameters,
)


def render(
    image: Num[Tensor, "c h w"], parameters: Float64[Tensor, " p"], spec: ViewSpec
) -> tuple[Float32[Tensor, "c _ _"], ...]:
    """One view of one image, at each of its sizes.

    Args:
        image: (c h w) uint8, uint16, or floating with values in [0, 1]; any number of channels.
        parameters: (p) one row of `sample_parameters`, drawn for this image's height and width.
        spec: the view that the parameters were drawn for.

    Returns:
        One (c s s) image in [0, 1] for each size of the view; they share no memory with ``image``.

    Raises:
        TypeError: for an image of another dtype.
        ValueError: for a floating image with values outside [0, 1], or if ``parameters`` is not the spec's.

    Example:
        >>> from ssl_core.views import make_view_specs, sample_parameters, ViewConfig
        >>> (spec,) = make_view_specs([ViewConfig("strong", size=32)])
        >>> image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
        >>> index, size = torch.tensor([7]), torch.tensor([[40, 60]])
        >>> parameters = sample_parameters(
        ...     spec, seed=0, epoch=0, image_index=index, view_index=0, image_size=size
        ... )
        >>> [view.shape for view in render(image, parameters[0], spec)]
        [torch.Size([3, 32, 32])]
    """
    check_image(image)
    if len(parameters) != num_parameters(spec):
        raise ValueError(f"view {spec.name!r} has {num_parameters(spec)} parameters, got {len(parameters)}")
    values = parameters.tolist()
    # Rounding leaves the unit interval; the copy is a tensor of its own.
    return tuple(_apply_all(spec.ops, values, image, size).contiguous().clamp(0, 1) for size in spec.sizes)


def render_batch(
    images: Sequence[Num[Tensor, "c _ _"]], parameters: Float64[Tensor, "n p"], spec: ViewSpec
) -> tuple[Float32[Tensor, "n c _ _"], ...]:
    """`render` for a batch of images of any heights and widths: one (n c s s) tensor for each size.

    Raises:
        TypeError: as `render`.
        ValueError: as `render`, and if the images differ in their number of channels.
    """
    check_channels(images)
    rows = [render(image, row, spec) for image, row in zip(images, parameters, strict=True)]
    return tuple(torch.stack(views) for views in zip(*rows, strict=True))


def _apply_all(ops: Sequence[ViewOp], values: list[float], image: Tensor, size: int) -> Tensor:
    start = 0
    for op in ops:
        stop = start + len(op.parameters)
        image = _apply(op, values[start:stop], image, size)
        start = stop
    return image


def _apply(op: ViewOp, values: list[float], image: Tensor, size: int) -> Tensor:
    # These two cut before the conversion to float, which then costs no more than the part they keep.
    if isinstance(op, RandomResizedCrop):
        top, left, height, width = (int(value) for value in values)
        return _resize(to_unit(image[:, top : top + height, left : left + width]), size, size, op.interpolation)
    if isinstance(op, RandomCrop):
        return _window(image, int(values[0]), int(values[1]), size)
    image = to_unit(image)
    match op:
        case CenterCrop():
            return _center_crop(image, op.short_side or size, size, op.interpolation)
        case Resize():
            side = op.side or size
            if op.mode == "pad":
                return _fitted(image, side, op.interpolation)
            return _resize(image, side, side, op.interpolation)
        case HorizontalFlip():
            return image.flip(-1) if values[0] else image
        case ColorJitter():
            return _jitter(image, values)
        case Grayscale():
            return gray(image).expand_as(image) if values[0] else image
        case GaussianBlur():
            return _blur(image, values[0]) if values[0] else image
        case Solarize():
            return solarize(image, op.threshold) if values[0] else image
        case RandAugment():
            width = len(values) // op.num_ops
            for start in range(0, len(values), width):
                index, magnitude, *place = values[start : start + width]
                image = _distorted(image, DISTORTIONS[int(index)], magnitude, place)
            return image
        case Jigsaw():
            return shuffle_cells(image, op.grid, [int(cell) for cell in values])
        case Choice():
            middle = 1 + sum(len(inner.parameters) for inner in op.first)
            if values[0]:
                return _apply_all(op.first, values[1:middle], image, size)
            return _apply_all(op.second, values[middle:], image, size)
        case _:
            assert_never(op)


def _distorted(image: Tensor, distortion: Distortion, magnitude: float, place: list[float]) -> Tensor:
    match distortion:
        case "identity":
            return image
        case "autocontrast":
            return autocontrast(image)
        case "brightness":
            return adjust_brightness(image, magnitude)
        case "color":
            return adjust_saturation(image, magnitude)
        case "contrast":
            return adjust_contrast(image, magnitude)
        case "equalize":
            return equalize(image)
        case "invert":
            return invert(image)
        case "posterize":
            return posterize(image, max(1, int(magnitude)))
        case "rotate":
            return rotate(image, magnitude)
        case "sharpness":
            return adjust_sharpness(image, magnitude)
        case "shear_x":
            return shear_x(image, magnitude)
        case "shear_y":
            return shear_y(image, magnitude)
        case "solarize":
            # Half a level below, so that the rounding of what came before does not decide.
            return solarize(image, (math.ceil(magnitude) - 0.5) / 255)
        case "translate_x":
            return translate_x(image, magnitude)
        case "translate_y":
            return translate_y(image, magnitude)
        case "solarize_add":
            return solarize((image + magnitude / 255).clamp_(max=1), 127.5 / 255)
        case "cutout":
            return cutout(image, magnitude, *place)
        case "translate_x_px":
            return translate_x_px(image, magnitude)
        case "translate_y_px":
            return translate_y_px(image, magnitude)
        case _:
            assert_never(distortion)


def _resize(image: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    return _clipped(_interpolate(image, height, width, interpolation), interpolation)


def _fitted(image: Tensor, side: int, interpolation: str) -> Tensor:
    """The whole image at its aspect ratio in the middle of a (side side) square, zeros around."""
    _, height, width = image.shape
    longest = max(height, width)
    new_height, new_width = (max(1, round(length * side / longest)) for length in (height, width))
    resized = _resize(image, new_height, new_width, interpolation)
    return _window(resized, -((side - new_height) // 2), -((side - new_width) // 2), side)


def _center_crop(image: Tensor, short_side: int, size: int, interpolation: str) -> Tensor:
    _, height, width = image.shape
    # As torchvision: the long side is cut to whole pixels, and the window's corner is rounded to even.
    new_height = short_side if height <= width else short_side * height // width
    new_width = short_side if width <= height else short_side * width // height
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    # Each axis is resized and cut before the other is touched: 3000 x 2 must not become 384,000 x 256.
    image = _interpolate(image, new_height, width, interpolation)[:, top : top + size]
    image = _interpolate(image, size, new_width, interpolation)[:, :, left : left + size]
    return _clipped(image, interpolation)


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


def _jitter(image: Tensor, values: list[float]) -> Tensor:
    *amounts, order = values
    for change in JITTER_ORDERS[int(order)]:
        amount = amounts[change]
        if change == 3:
            image = adjust_hue(image, amount) if amount else image
        elif amount != 1:
            image = (adjust_brightness, adjust_contrast, adjust_saturation)[change](image, amount)
    return image


def _blur(image: Tensor, sigma: float) -> Tensor:
    _, height, width = image.shape
    radius = math.ceil(3 * sigma)
    columns = _convolution_matrix(height, sigma, radius).to(image)
    rows = columns if width == height else _convolution_matrix(width, sigma, radius).to(image)
    return _banded_product(rows, _banded_product(columns, image, radius).mT, radius).mT


def _convolution_matrix(length: int, sigma: float, radius: int) -> Tensor:
    """(length length) what convolution with a Gaussian does to a line of pixels."""
    taps = [math.exp(-0.5 * (distance / sigma) ** 2) for distance in range(-radius, radius + 1)]
    weights = torch.tensor(taps).div_(sum(taps)).expand(length, -1)
    return torch.zeros(length, length).scatter_add_(1, _sources(length, radius), weights)


# Blocks of the convolution's banded matrix are several times faster than conv2d on few channels.
_BLOCK = 64


def _banded_product(matrix: Tensor, image: Tensor, radius: int) -> Tensor:
    """``matrix @ image`` for a matrix whose entries are zero more than ``radius`` away from its diagonal."""
    if len(matrix) <= _BLOCK:
        return matrix @ image
    blocks = []
    for start in range(0, len(matrix), _BLOCK):
        rows, columns = slice(start, start + _BLOCK), slice(max(0, start - radius), start + _BLOCK + radius)
        blocks.append(matrix[rows, columns] @ image[:, columns])
    return torch.cat(blocks, dim=1)


@functools.lru_cache(maxsize=256)
def _sources(length: int, radius: int) -> Tensor:
    """(length 2*radius+1) the pixel that each tap reads, reflected at the edge pixel without repeating it."""
    index = torch.arange(length)[:, None] + torch.arange(-radius, radius + 1)
    period = max(1, 2 * (length - 1))
    index = index % period
    return torch.minimum(index, period - index) if length > 1 else index
