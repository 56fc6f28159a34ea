"""Cells of the image in another order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ssl_core.ops.instructions import Instruction, Opcode
from ssl_core.views.geometry import shuffle_cells
from ssl_core.views.ops.numbers import check_prob


@dataclass(frozen=True)
class Jigsaw:
    """The image's grid x grid cells in a random order, with probability ``prob``; every order is as likely.

    Paper: Bai et al., 2022 (DSSL), section 4.1, where the cells stay one image.

    Args:
        grid: number of cells along each side, >= 2, a divisor of the image's side in pixels.
        prob: probability that the cells are shuffled.
    """

    grid: int = 4
    prob: float = 1.0

    name: ClassVar[str] = "jigsaw"

    @property
    def parameters(self) -> tuple[str, ...]:
        """For each place, row by row, the cell that it shows; its own where nothing is shuffled."""
        return tuple(f"cell_{place}" for place in range(self.grid**2))

    @property
    def num_draws(self) -> int:
        """Whether to shuffle, and one for each cell, whose ranks are the order."""
        return 1 + self.grid**2

    def __post_init__(self) -> None:
        if self.grid < 2:
            raise ValueError(f"{self.name}: grid must be >= 2 cells along a side, got {self.grid}")
        check_prob(self.name, self.prob)

    def misfit(self, sides: tuple[int, ...], sizes: tuple[int, ...]) -> str | None:
        if not sides:
            return (
                f"{self.name} comes before the image has one known side: put it after a random_resized_crop, "
                "random_crop, center_crop or resize"
            )
        for side in sides:
            if side % self.grid:
                return (
                    f"{self.name}'s grid {self.grid} does not divide the side of {side} pixels: choose another grid "
                    "or size"
                )
        return None

    def sample(self, draws: Tensor, size: Tensor, side: int) -> Tensor:
        order = draws[:, 1:].argsort(dim=1, stable=True)
        unchanged = torch.arange(self.grid**2, device=draws.device)
        return torch.where(draws[:, :1] < self.prob, order, unchanged).double()

    def render(self, image: Tensor, values: Sequence[float], side: int) -> Tensor:
        return shuffle_cells(image, self.grid, [int(cell) for cell in values])

    def instructions(self) -> list[Instruction]:
        return [Instruction(Opcode.JIGSAW, a=self.grid)]
