"""A rectangle of the image overwritten."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ssl_core.philox import uniform
from ssl_core.views.ops.numbers import between, check_prob, check_range, exp

_CANDIDATES = 10


@dataclass(frozen=True)
class RandomErasing:
    """A rectangle of random area, aspect ratio and place overwritten with ``value``, with probability ``prob``.

    In an image of H x W pixels, a rectangle of area S H W, S ~ U(scale), and aspect ratio r, log r ~ U(log ratio), has
    round(sqrt(S H W r)) rows and round(sqrt(S H W / r)) columns. Ten are sampled, and the first that has fewer of both
    than the image lies at any place in it with the same probability; if none has, the image stays as it is. A view of
    several sizes shows the same rectangle at each.
    Paper: Zhong et al., 2020, algorithm 1, 1708.04896, which samples r ~ U(ratio) and tries until a rectangle fits.
    Ten tries, log r and the defaults are those of torchvision's RandomErasing.

    torchvision erases images that are normalized, so that its 0 is their mean and its "random" a normal distribution.
    Here views are normalized last: 0 is black, and random values are uniform, as in the paper.

    Args:
        prob: probability that a rectangle is overwritten.
        scale: range of the rectangle's area as a fraction of the image's.
        ratio: range of the rectangle's height / width.
        value: color in [0, 1], one number or one for each channel; "random" is one for each pixel and channel.
    """

    prob: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float | tuple[float, ...] | str = 0.0

    name: ClassVar[str] = "random_erasing"
    # Fractions of the image's height and width, 0 where nothing is overwritten; what random values come from.
    parameters: ClassVar[tuple[str, ...]] = ("top", "left", "height", "width", "noise")
    # Whether, (area, ratio) of ten candidates, the position of the one taken, and the noise.
    num_draws: ClassVar[int] = 24

    def __post_init__(self) -> None:
        check_prob(self.name, self.prob)
        check_range(self.name, "scale", self.scale, upto=1.0)
        check_range(self.name, "ratio", self.ratio, upto=20.0)
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        if self.value != "random" and not all(isinstance(each, int | float) and 0 <= each <= 1 for each in values):
            raise ValueError(f"{self.name}: value must be numbers in [0, 1] or 'random', got {self.value!r}")

    def sample(self, draws: Tensor, size: Tensor, side: int) -> Tensor:
        height_n1, width_n1 = size[:, :1], size[:, 1:]
        apply, area, ratio, place, noise = torch.split(draws, [1, _CANDIDATES, _CANDIDATES, 2, 1], dim=1)
        area = height_n1 * width_n1 * between(self.scale, area)
        ratio = exp(between((math.log(self.ratio[0]), math.log(self.ratio[1])), ratio))
        height, width = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (height < height_n1) & (width < width_n1)
        first_n1 = fits.int().argmax(dim=1, keepdim=True)
        box = torch.cat([height.gather(1, first_n1), width.gather(1, first_n1)], dim=1)
        corner = (place * (size - box + 1)).floor()
        applied = (apply < self.prob) & fits.any(dim=1, keepdim=True)
        # Draws are multiples of 2^-32.
        return torch.where(applied, torch.cat([corner / size, box / size, noise * 2**32], dim=1), 0.0)

    def render(self, image: Tensor, values: Sequence[float], side: int) -> Tensor:
        channels, *size = image.shape
        (top, left), (height, width) = (
            [round(part * length) for part, length in zip(parts, size, strict=True)]
            for parts in (values[:2], values[2:4])
        )
        if self.value == "random":
            stream = torch.zeros(1, 3, dtype=torch.int64)
            value = uniform(int(values[4]), stream, channels * height * width).view(channels, height, width)
        else:
            value = torch.tensor(self.value, dtype=torch.float64).view(-1, 1, 1)
            if len(value) not in (1, channels):
                raise ValueError(f"{self.name}: value has {len(value)} numbers for an image of {channels} channels")
        erased = image.clone()
        erased[:, top : top + height, left : left + width] = value.to(image)
        return erased

    def instructions(self) -> None:
        return None
