"""Distortions from a pool, as RandAugment and its relatives apply them."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, assert_never

import torch
from jaxtyping import Float64
from torch import Tensor

from ssl_core.ops.instructions import Distortion, Instruction, Opcode, numbered
from ssl_core.views import color, geometry
from ssl_core.views.ops.numbers import check_prob
from ssl_core.views.pools import POOLS


@dataclass(frozen=True)
class RandAugment:
    """Distortions sampled from a pool with replacement, each applied with probability ``prob``, in turn.

    A magnitude is the pool's at a level that is sampled for each distortion. Defaults are CLSA's released code.
    Paper: Wang and Qi, 2020 (CLSA), section 3.3 and table 1, after Cubuk et al., 2020 (RandAugment).

    Args:
        pool: name of a pool of distortions and their magnitudes; see `ssl_core.views.POOLS`.
        num_ops: number of distortions that are sampled, >= 1.
        prob: probability that a sampled distortion is applied.
        level_range: lowest and highest level; every whole level from one to the other is as likely, and equal ones make
            a fixed level. "continuous" gives any number from 0 to the pool's top level, so the whole of each range.
    """

    pool: str = "clsa_code14"
    num_ops: int = 5
    prob: float = 0.5
    level_range: tuple[int, int] | str = (1, 9)

    name: ClassVar[str] = "rand_augment"

    @property
    def parameters(self) -> tuple[str, ...]:
        """Number of the `Distortion`, 0 where none is applied, and magnitude of each, sign included.

        Where the pool has cutout, its center too, as fractions of width and height; 0 for what has no place.
        """
        place = ("x", "y") if POOLS[self.pool].has_cutout else ()
        parts = ("distortion", "magnitude", *place)
        return tuple(f"{part}_{index}" for index in range(1, self.num_ops + 1) for part in parts)

    @property
    def num_draws(self) -> int:
        """Which distortion, its level, whether to apply it, its sign, for each; x and y where the pool has cutout."""
        return (6 if POOLS[self.pool].has_cutout else 4) * self.num_ops

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ValueError(f"{self.name}: no pool is called {self.pool!r}; there are {', '.join(POOLS)}")
        if self.num_ops < 1:
            raise ValueError(f"{self.name}: num_ops must be >= 1, got {self.num_ops}")
        check_prob(self.name, self.prob)
        top = POOLS[self.pool].top_level
        if isinstance(self.level_range, str):
            is_range = self.level_range == "continuous"
        else:
            is_range = 0 <= self.level_range[0] <= self.level_range[1] <= top
        if not is_range:
            raise ValueError(
                f"{self.name}: level_range must be two rising levels in [0, {top}] or 'continuous', "
                f"got {self.level_range!r}"
            )

    def sample(self, draws: Tensor, size: Tensor, side: int) -> Tensor:
        pool = POOLS[self.pool]
        each = draws.view(len(draws), self.num_ops, self.num_draws // self.num_ops)
        which, level, apply, sign, *place = each.unbind(2)
        if isinstance(self.level_range, str):  # continuous
            level = level * pool.top_level
        else:
            lowest, highest = self.level_range
            level = lowest + (level * (highest - lowest + 1)).floor()

        table = _table(self.pool, draws.device)
        chosen = table[(which * len(table)).floor().long()]
        distortion, low, span, signed, whole = chosen.unbind(2)
        # A GPU takes division by a Python number for a product with the reciprocal, which is not exact.
        change = span * level / torch.full_like(level, pool.top_level)
        magnitude = low + torch.where(whole == 1, change.trunc(), change)
        magnitude = torch.where((signed == 1) & (sign < 0.5), -magnitude, magnitude)
        place = [torch.where(distortion == Distortion.CUTOUT, part, 0.0) for part in place]
        applied = (apply < self.prob)[..., None]
        return torch.where(applied, torch.stack([distortion, magnitude, *place], dim=2), 0.0).flatten(1)

    def render(self, image: Tensor, values: Sequence[float], side: int) -> Tensor:
        width = len(values) // self.num_ops
        for start in range(0, len(values), width):
            number, magnitude, *place = values[start : start + width]
            image = _distorted(image, numbered(Distortion, number), magnitude, place)
        return image

    def instructions(self) -> list[Instruction]:
        has_place = POOLS[self.pool].has_cutout
        width = 4 if has_place else 2
        return [Instruction(Opcode.DISTORT, width * index, has_place) for index in range(self.num_ops)]


@functools.cache
def _table(pool: str, device: torch.device) -> Float64[Tensor, "distortions 5"]:
    """Number, low, high - low, signed and whole of each; kept on the device, since a copy would wait for it."""
    rows = [
        (Distortion[name.upper()], magnitude.low, magnitude.high - magnitude.low, magnitude.signed, magnitude.whole)
        for name, magnitude in POOLS[pool].magnitudes.items()
    ]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def _distorted(image: Tensor, distortion: Distortion, magnitude: float, place: list[float]) -> Tensor:
    match distortion:
        case Distortion.IDENTITY:
            return image
        case Distortion.AUTOCONTRAST:
            return color.autocontrast(image)
        case Distortion.BRIGHTNESS:
            return color.adjust_brightness(image, magnitude)
        case Distortion.COLOR:
            return color.adjust_saturation(image, magnitude)
        case Distortion.CONTRAST:
            return color.adjust_contrast(image, magnitude)
        case Distortion.EQUALIZE:
            return color.equalize(image)
        case Distortion.INVERT:
            return color.invert(image)
        case Distortion.POSTERIZE:
            return color.posterize(image, max(1, int(magnitude)))
        case Distortion.ROTATE:
            return geometry.rotate(image, magnitude)
        case Distortion.SHARPNESS:
            return color.adjust_sharpness(image, magnitude)
        case Distortion.SHEAR_X:
            return geometry.shear_x(image, magnitude)
        case Distortion.SHEAR_Y:
            return geometry.shear_y(image, magnitude)
        case Distortion.SOLARIZE:
            # Half a level below, so that the rounding of what came before does not decide.
            return color.solarize(image, (math.ceil(magnitude) - 0.5) / 255)
        case Distortion.TRANSLATE_X:
            return geometry.translate_x(image, magnitude)
        case Distortion.TRANSLATE_Y:
            return geometry.translate_y(image, magnitude)
        case Distortion.SOLARIZE_ADD:
            return color.solarize((image + magnitude / 255).clamp_(max=1), 127.5 / 255)
        case Distortion.CUTOUT:
            return geometry.cutout(image, magnitude, *place)
        case Distortion.TRANSLATE_X_PX:
            return geometry.translate_x_px(image, magnitude)
        case Distortion.TRANSLATE_Y_PX:
            return geometry.translate_y_px(image, magnitude)
        case _:
            assert_never(distortion)
