"""Bright values inverted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ssl_core.ops.instructions import Instruction, Opcode
from ssl_core.views.color import solarize
from ssl_core.views.ops.numbers import check_prob


@dataclass(frozen=True)
class Solarize:
    """Values at or above ``threshold`` inverted, x -> 1 - x, with probability ``prob``."""

    prob: float = 0.2
    threshold: float = 0.5

    name: ClassVar[str] = "solarize"
    parameters: ClassVar[tuple[str, ...]] = ("solarize",)  # 0 or 1
    num_draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_prob(self.name, self.prob)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"{self.name}: threshold must be in [0, 1], got {self.threshold}")

    def sample(self, draws: Tensor, size: Tensor, side: int) -> Tensor:
        return (draws < self.prob).double()

    def render(self, image: Tensor, values: Sequence[float], side: int) -> Tensor:
        return solarize(image, self.threshold) if values[0] else image

    def instructions(self) -> list[Instruction]:
        return [Instruction(Opcode.SOLARIZE, a=self.threshold)]
