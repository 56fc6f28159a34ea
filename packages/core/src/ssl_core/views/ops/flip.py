"""Left and right exchanged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ssl_core.ops.instructions import Instruction, Opcode
from ssl_core.views.ops.numbers import check_prob


@dataclass(frozen=True)
class HorizontalFlip:
    """Left and right exchanged with probability ``prob``."""

    prob: float = 0.5

    name: ClassVar[str] = "horizontal_flip"
    parameters: ClassVar[tuple[str, ...]] = ("flip",)  # 0 or 1
    num_draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_prob(self.name, self.prob)

    def sample(self, draws: Tensor, size: Tensor, side: int) -> Tensor:
        return (draws < self.prob).double()

    def render(self, image: Tensor, values: Sequence[float], side: int) -> Tensor:
        return image.flip(-1) if values[0] else image

    def instructions(self) -> list[Instruction]:
        return [Instruction(Opcode.FLIP)]
