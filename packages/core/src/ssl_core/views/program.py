"""Specs as programs of numbers, which every renderer but the reference runs; see `ssl_core.ops.render_views`."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from ssl_core.ops.instructions import Instruction
from ssl_core.views.op import ViewOp
from ssl_core.views.spec import ViewSpec


class ReferenceOnlyError(ValueError):
    """A view holds an op that no compiled renderer knows."""


class Program(NamedTuple):
    """The instructions of one view at one size.

    Attributes:
        spec: index of the view's spec, whose parameters the instructions read.
        instructions: (i 7) table with a row for each instruction.
        size: side of the view in pixels.
        continues: index of the program from whose picture the instructions go on; -1: they begin with the image.
    """

    spec: int
    instructions: Float64[Tensor, "i 7"]
    size: int
    continues: int


@functools.cache
def make_programs(specs: tuple[ViewSpec, ...]) -> tuple[Program, ...]:
    """A program for each size of each view, in order.

    A derived view that shares all its parent's ops at its parent's size goes on from the parent's picture.

    Raises:
        ReferenceOnlyError: if a view has an op without instructions.

    Example:
        >>> from ssl_core.views import HorizontalFlip, RandomResizedCrop
        >>> (program,) = make_programs((ViewSpec((RandomResizedCrop(), HorizontalFlip()), (32,)),))
        >>> program.instructions[:, :2].tolist()  # opcode, first parameter
        [[0.0, 0.0], [4.0, 4.0]]
    """
    programs: list[Program] = []
    for index, spec in enumerate(specs):
        try:
            instructions = torch.tensor(instructions_of(spec.ops), dtype=torch.float64).view(
                -1, len(Instruction._fields)
            )
        except ReferenceOnlyError as error:
            raise ReferenceOnlyError(f"view {spec.name!r}: {error}") from None
        for size in spec.sizes:
            continues = _continued(specs, spec, size, programs)
            first = 0 if continues < 0 else len(programs[continues].instructions)
            programs.append(Program(index, instructions[first:], size, continues))
    return tuple(programs)


def _continued(specs: Sequence[ViewSpec], spec: ViewSpec, size: int, programs: Sequence[Program]) -> int:
    if spec.derived_from is None or spec.shared_ops < len(specs[spec.derived_from].ops):
        return -1
    assert specs[spec.derived_from].derived_from is None  # `derive` makes no other
    for index, program in enumerate(programs):
        if program.spec == spec.derived_from and program.size == size:
            return index
    return -1


def instructions_of(ops: Sequence[ViewOp]) -> list[Instruction]:
    """The instructions of ops that follow one another.

    Raises:
        ReferenceOnlyError: if one of them has none.
    """
    found: list[Instruction] = []
    column = 0
    for op in ops:
        own = op.instructions()
        if own is None:
            raise ReferenceOnlyError(f"{op.name} is rendered by the reference alone")
        found += [instruction.moved(column) for instruction in own]
        column += len(op.parameters)
    return found
