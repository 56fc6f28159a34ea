"""The protocol of an op: numbers from a paper, how they become parameters, and how those become pixels.

An op is a frozen dataclass in a file of its own under ``views/ops``. It inherits nothing: having these names is enough.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float64, Num
from torch import Tensor

from ssl_core.ops.instructions import Instruction


@runtime_checkable
class ViewOp(Protocol):
    """One step of a view. ``side`` is the view's, in pixels."""

    @property
    def name(self) -> str:
        """Its name in configurations and in the columns of the parameters."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the numbers that say what happens to one image."""

    @property
    def num_draws(self) -> int:
        """Number of uniform random numbers that an image takes, always the same."""

    def sample(
        self, draws: Float64[Tensor, "n draws"], size: Float64[Tensor, "n 2"], side: int
    ) -> Float64[Tensor, "n p"]:
        """The parameters of images of heights and widths ``size``, of as many numbers in [0, 1) as ``num_draws``.

        Only operations that IEEE 754 rounds exactly may be used: see `ssl_core.views.sampling`.
        """

    def render(self, image: Num[Tensor, "c _ _"], values: Sequence[float], side: int) -> Num[Tensor, "c _ _"]:
        """The changed image, never in place; ``values`` are its ``parameters``.

        Images are float32 in [0, 1]; a `Framing` op, which may cut before it converts, receives integer levels too.
        """

    def instructions(self) -> list[Instruction] | None:
        """The same for compiled renderers, columns counted from the op's first parameter; None: they cannot do it."""


@runtime_checkable
class Framing(Protocol):
    """The further names of an op that makes the image square."""

    def side_after(self, side: int) -> int:
        """Pixels of each side afterward, in a view of ``side`` pixels."""


@runtime_checkable
class Placed(Protocol):
    """The further name of an op that cannot stand everywhere."""

    def misfit(self, sides: tuple[int, ...], sizes: tuple[int, ...]) -> str | None:
        """The reason why the op cannot stand where it does, in a view of these sizes, or None.

        ``sides`` are those of the squares that it receives at each size; () before the first `Framing` op.
        """
