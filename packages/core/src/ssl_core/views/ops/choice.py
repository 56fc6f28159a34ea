"""Either of two sequences of ops."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ssl_core.ops.instructions import Instruction
from ssl_core.views.op import Framing, Placed, ViewOp
from ssl_core.views.ops.numbers import check_prob
from ssl_core.views.program import instructions_of
from ssl_core.views.render import render_ops
from ssl_core.views.sampling import sample_ops
from ssl_core.views.spec import names_of


@dataclass(frozen=True)
class Choice:
    """Either the ops ``first``, with probability ``prob``, or the ops ``second``. No ops leave the image as it is.

    In a configuration: ``{choice: {prob: 0.9, first: [{grayscale: {prob: 1}}], second: [jigsaw_4]}}``.

    Args:
        prob: probability of ``first``.
        first: ops in order, none of which changes the image's size or is a choice itself.
        second: ops in order, of the same kinds.
    """

    prob: float
    first: tuple[ViewOp, ...]
    second: tuple[ViewOp, ...]

    name: ClassVar[str] = "choice"

    @property
    def parameters(self) -> tuple[str, ...]:
        """1 for ``first`` and 0 for ``second``, then the parameters of both; those of the other one do nothing."""
        first, second = names_of(self.first), names_of(self.second)
        return ("takes_first", *(f"first.{name}" for name in first), *(f"second.{name}" for name in second))

    @property
    def num_draws(self) -> int:
        """One for the choice, then those of both sides."""
        return 1 + sum(op.num_draws for op in (*self.first, *self.second))

    def __post_init__(self) -> None:
        check_prob(self.name, self.prob)
        for op in (*self.first, *self.second):
            if isinstance(op, Framing | Choice):
                raise ValueError(
                    f"{self.name}: {op.name} cannot be one of its ops: they must keep the image's size and not choose "
                    "themselves; put it before or after"
                )

    def misfit(self, sides: tuple[int, ...], sizes: tuple[int, ...]) -> str | None:
        misfits = (op.misfit(sides, sizes) for op in (*self.first, *self.second) if isinstance(op, Placed))
        return next((misfit for misfit in misfits if misfit), None)

    def sample(self, draws: Tensor, size: Tensor, side: int) -> Tensor:
        of_both = sample_ops((*self.first, *self.second), draws[:, 1:], size, side)
        return torch.cat([(draws[:, :1] < self.prob).double(), of_both], dim=1)

    def render(self, image: Tensor, values: Sequence[float], side: int) -> Tensor:
        middle = 1 + len(names_of(self.first))
        if values[0]:
            return render_ops(self.first, image, values[1:middle], side)
        return render_ops(self.second, image, values[middle:], side)

    def instructions(self) -> list[Instruction]:
        """Those of both, each on the condition that its side is taken."""
        middle = 1 + len(names_of(self.first))
        return [
            instruction.moved(start)._replace(condition=0, wanted=wanted)
            for ops, start, wanted in ((self.first, 1, 1), (self.second, middle, 0))
            for instruction in instructions_of(ops)
        ]
