"""Details taken away."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ssl_core.ops.instructions import Instruction, Opcode
from ssl_core.views.ops.numbers import between, check_prob, check_range


@dataclass(frozen=True)
class GaussianBlur:
    """Convolution with a Gaussian of random standard deviation, with probability ``prob``.

    The kernel has 2 ceil(3 sigma) + 1 taps: beyond three standard deviations 0.3 % of the mass is left, and a
    kernel as wide as its sigma needs costs little for small sigmas. The image continues by reflection.

    Args:
        prob: probability of blurring.
        sigma: range of the standard deviation, uniform, in pixels of the view.
    """

    prob: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    name: ClassVar[str] = "gaussian_blur"
    parameters: ClassVar[tuple[str, ...]] = ("sigma",)  # 0 when not blurred
    num_draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_prob(self.name, self.prob)
        check_range(self.name, "sigma", self.sigma, upto=float("inf"))

    def sample(self, draws: Tensor, size: Tensor, side: int) -> Tensor:
        return torch.where(draws[:, :1] < self.prob, between(self.sigma, draws[:, 1:]), 0.0)

    def render(self, image: Tensor, values: Sequence[float], side: int) -> Tensor:
        (sigma,) = values
        if not sigma:
            return image
        _, height, width = image.shape
        radius = math.ceil(3 * sigma)
        columns = _convolution_matrix(height, sigma, radius).to(image)
        rows = columns if width == height else _convolution_matrix(width, sigma, radius).to(image)
        return _banded_product(rows, _banded_product(columns, image, radius).mT, radius).mT

    def instructions(self) -> list[Instruction]:
        return [Instruction(Opcode.BLUR)]


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
