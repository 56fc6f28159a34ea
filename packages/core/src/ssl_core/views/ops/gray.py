"""Colors taken away."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ssl_core.ops.instructions import Instruction, Opcode
from ssl_core.views.color import gray
from ssl_core.views.ops.numbers import check_prob


@dataclass(frozen=True)
class Grayscale:
    """Every channel replaced by the image's gray with probability ``prob``."""

    prob: float = 0.2

    name: ClassVar[str] = "grayscale"
    parameters: ClassVar[tuple[str, ...]] = ("gray",)  # 0 or 1
    num_draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_prob(self.name, self.prob)

    def sample(self, draws: Tensor, size: Tensor, side: int) -> Tensor:
        return (draws < self.prob).double()

    def render(self, image: Tensor, values: Sequence[float], side: int) -> Tensor:
        return gray(image).expand_as(image) if values[0] else image

    def instructions(self) -> list[Instruction]:
        return [Instruction(Opcode.GRAY)]
