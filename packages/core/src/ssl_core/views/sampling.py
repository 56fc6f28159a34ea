"""Parameters of views: what is random about a view, as plain numbers, before any pixel is touched.

Each op takes a fixed number of uniform draws from the counter-based stream (seed; image, epoch, view), so a
view depends on nothing else: not on the batch, the number of workers, the rank layout, the device or what ran
before. Only operations that IEEE 754 rounds exactly (+ - * / sqrt floor round) turn draws into parameters, so
that every device agrees to the last bit.
"""

import functools
import math
from collections.abc import Sequence
from typing import assert_never

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ssl_core.philox import uniform
from ssl_core.views.pools import DISTORTIONS, POOLS
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
)

_CROP_CANDIDATES = 10


def sample_parameters(
    spec: ViewSpec,
    *,
    seed: int,
    epoch: int,
    image_index: Int64[Tensor, " n"],
    view_index: int,
    image_size: Int64[Tensor, "n 2"],
) -> Float64[Tensor, "n p"]:
    """The parameters of one view of each image; the columns are named by `parameter_names`.

    One call for a batch costs about as much as one call for an image.

    Args:
        spec: the view.
        seed: of the run; any 64-bit integer.
        epoch: which pass over the data, in [0, 2**32).
        image_index: (n) of each image in its data set, each in [0, 2**32).
        view_index: place of ``spec`` in the flat tuple of views, in [0, 2**32).
        image_size: (n 2) height and width of each image in pixels.

    Returns:
        (n p) on the device of ``image_index``.

    Example:
        >>> from ssl_core.views import GaussianBlur
        >>> spec = ViewSpec((RandomResizedCrop(), GaussianBlur(prob=1.0)), (32,))
        >>> index, size = torch.tensor([7, 8]), torch.tensor([[300, 400], [32, 32]])
        >>> parameters = sample_parameters(
        ...     spec, seed=0, epoch=0, image_index=index, view_index=0, image_size=size
        ... )
        >>> [row.round(decimals=2).tolist() for row in parameters]
        [[120.0, 115.0, 121.0, 118.0, 1.68], [7.0, 11.0, 19.0, 17.0, 0.98]]
    """
    num_draws = [op.num_draws for op in spec.ops]
    draws = _draws(seed, epoch, image_index, view_index, sum(num_draws))
    if spec.derived_from is not None:
        num_shared = sum(num_draws[: spec.shared_ops])
        draws[:, :num_shared] = _draws(seed, epoch, image_index, spec.derived_from, num_shared)
    return _parameters_of_all(spec.ops, draws, image_size.double(), spec.sizes[0])


def _draws(
    seed: int, epoch: int, image_index: Int64[Tensor, " n"], view_index: int, num_draws: int
) -> Float64[Tensor, "n draws"]:
    streams = torch.stack(
        [image_index, torch.full_like(image_index, epoch), torch.full_like(image_index, view_index)], dim=1
    )
    return uniform(seed, streams, num_draws)


def _parameters_of_all(
    ops: Sequence[ViewOp], draws: Float64[Tensor, "n draws"], size: Float64[Tensor, "n 2"], side: int
) -> Float64[Tensor, "n p"]:
    columns = [draws[:, :0]]
    for op, op_draws in zip(ops, torch.split(draws, [op.num_draws for op in ops], dim=1), strict=True):
        columns.append(_parameters(op, op_draws, size, side))
        size = _size_after(op, size, side)
    return torch.cat(columns, dim=1)


def _size_after(op: ViewOp, size: Float64[Tensor, "n 2"], side: int) -> Float64[Tensor, "n 2"]:
    """Height and width of the images that the next op receives."""
    match op:
        case Resize():
            return torch.full_like(size, op.side or side)
        case RandomResizedCrop() | RandomCrop() | CenterCrop():
            return torch.full_like(size, side)
        case _:
            return size


def _parameters(
    op: ViewOp, draws: Float64[Tensor, "n draws"], size: Float64[Tensor, "n 2"], side: int
) -> Float64[Tensor, "n p"]:
    match op:
        case RandomResizedCrop():
            return _crop_boxes(op, draws, size)
        case RandomCrop():
            return _window_corners(op, draws, size, side)
        case CenterCrop() | Resize():
            return draws  # no draws, no parameters
        case HorizontalFlip() | Grayscale() | Solarize():
            return (draws < op.prob).double()
        case ColorJitter():
            return _jitter(op, draws)
        case GaussianBlur():
            return torch.where(draws[:, :1] < op.prob, _between(op.sigma, draws[:, 1:]), 0.0)
        case RandAugment():
            return _rand_augment(op, draws)
        case Jigsaw():
            order = draws[:, 1:].argsort(dim=1, stable=True)
            return torch.where(draws[:, :1] < op.prob, order, torch.arange(op.grid**2, device=draws.device)).double()
        case Choice():
            of_both = _parameters_of_all((*op.first, *op.second), draws[:, 1:], size, side)
            return torch.cat([(draws[:, :1] < op.prob).double(), of_both], dim=1)
        case _:
            assert_never(op)


def _between(bounds: tuple[float, float], draws: Tensor) -> Tensor:
    low, high = bounds
    return low + (high - low) * draws


def _crop_boxes(
    op: RandomResizedCrop, draws: Float64[Tensor, "n 22"], size: Float64[Tensor, "n 2"]
) -> Float64[Tensor, "n 4"]:
    height_n1, width_n1 = size[:, :1], size[:, 1:]
    area = height_n1 * width_n1 * _between(op.scale, draws[:, :_CROP_CANDIDATES])
    log_ratio = (math.log(op.ratio[0]), math.log(op.ratio[1]))
    ratio = _exp(_between(log_ratio, draws[:, _CROP_CANDIDATES : 2 * _CROP_CANDIDATES]))
    box_width, box_height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (box_width >= 1) & (box_width <= width_n1) & (box_height >= 1) & (box_height <= height_n1)

    # No candidate inside the image: the whole image, or as much of its long side as the ratio allows.
    central_width = torch.minimum(width_n1, (height_n1 * op.ratio[1]).round().clamp(min=1))
    central_height = torch.minimum(height_n1, (width_n1 / op.ratio[0]).round().clamp(min=1))

    first_n1 = fits.int().argmax(dim=1, keepdim=True)
    any_n1 = fits.any(dim=1, keepdim=True)
    box_height = torch.where(any_n1, box_height.gather(1, first_n1), central_height)
    box_width = torch.where(any_n1, box_width.gather(1, first_n1), central_width)
    spare_height, spare_width = height_n1 - box_height, width_n1 - box_width
    top = torch.where(any_n1, (draws[:, -2:-1] * (spare_height + 1)).floor(), (spare_height / 2).floor())
    left = torch.where(any_n1, (draws[:, -1:] * (spare_width + 1)).floor(), (spare_width / 2).floor())
    return torch.cat([top, left, box_height, box_width], dim=1)


def _window_corners(
    op: RandomCrop, draws: Float64[Tensor, "n 2"], size: Float64[Tensor, "n 2"], side: int
) -> Float64[Tensor, "n 2"]:
    spare = size + 2 * op.padding - side
    return torch.where(spare >= 0, (draws * (spare + 1)).floor() - op.padding, ((size - side) / 2).floor())


def _jitter(op: ColorJitter, draws: Float64[Tensor, "n 6"]) -> Float64[Tensor, "n 5"]:
    apply, brightness, contrast, saturation, hue, order = draws.unbind(1)
    factors = [
        torch.where(apply < op.prob, _between((max(0.0, 1 - strength), 1 + strength), draw), 1.0)
        for strength, draw in ((op.brightness, brightness), (op.contrast, contrast), (op.saturation, saturation))
    ]
    shift = torch.where(apply < op.prob, _between((-op.hue, op.hue), hue), 0.0)
    return torch.stack([*factors, shift, (order * len(JITTER_ORDERS)).floor()], dim=1)


def _rand_augment(op: RandAugment, draws: Float64[Tensor, "n draws"]) -> Float64[Tensor, "n p"]:
    pool = POOLS[op.pool]
    which, level, apply, sign, *place = draws.view(len(draws), op.num_ops, op.num_draws // op.num_ops).unbind(2)
    if isinstance(op.level_range, str):  # continuous
        level = level * pool.top_level
    else:
        lowest, highest = op.level_range
        level = lowest + (level * (highest - lowest + 1)).floor()

    table = _table(op.pool, draws.device)
    chosen = table[(which * len(table)).floor().long()]
    distortion, low, span, signed, whole = chosen.unbind(2)
    # A GPU takes division by a Python number for a product with the reciprocal, which is not exact.
    change = span * level / torch.full_like(level, pool.top_level)
    magnitude = low + torch.where(whole == 1, change.trunc(), change)
    magnitude = torch.where((signed == 1) & (sign < 0.5), -magnitude, magnitude)
    place = [torch.where(distortion == DISTORTIONS.index("cutout"), part, 0.0) for part in place]
    applied = (apply < op.prob)[..., None]
    return torch.where(applied, torch.stack([distortion, magnitude, *place], dim=2), 0.0).flatten(1)


@functools.cache
def _table(pool: str, device: torch.device) -> Float64[Tensor, "distortions 5"]:
    """Index, low, high - low, signed and whole of each; kept on the device, since a copy would wait for it."""
    rows = [
        (DISTORTIONS.index(name), magnitude.low, magnitude.high - magnitude.low, magnitude.signed, magnitude.whole)
        for name, magnitude in POOLS[pool].magnitudes.items()
    ]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def _exp(x: Tensor) -> Tensor:
    """Exponential of numbers in [-3, 3], exact to about 1e-14.

    torch.exp differs in the last bit between a vector register and its remainder loop, and between devices.
    """
    x = x / 16
    series = torch.ones_like(x)
    for term in range(12, 0, -1):
        series.mul_(x).div_(term).add_(1)
    for _ in range(4):
        series.mul_(series)
    return series
