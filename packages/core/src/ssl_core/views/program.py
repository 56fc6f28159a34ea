"""Specs as programs of numbers, which every renderer but the reference runs; see `ssl_core.ops.render_views`."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, assert_never

import torch
from jaxtyping import Float64
from torch import Tensor

from ssl_core.ops.instructions import FIELDS, Opcode
from ssl_core.views.pools import POOLS
from ssl_core.views.spec import (
    CenterCrop,
    Choice,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Jigsaw,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Solarize,
    ViewOp,
    ViewSpec,
)


class Program(NamedTuple):
    """What one view at one size does.

    Attributes:
        spec: index of the view's spec, whose parameters the instructions read.
        instructions: (i 7).
        size: side of the view in pixels.
        continues: index of the program whose picture the instructions begin with; -1: with the image.
    """

    spec: int
    instructions: Float64[Tensor, "i 7"]
    size: int
    continues: int


@functools.cache
def make_programs(specs: tuple[ViewSpec, ...]) -> tuple[Program, ...]:
    """A program for each size of each view, in order.

    A derived view that shares all its parent's ops at its parent's size goes on from the parent's picture.

    Example:
        >>> (program,) = make_programs((ViewSpec((RandomResizedCrop(), HorizontalFlip()), (32,)),))
        >>> program.instructions[:, :2].tolist()  # opcode, first parameter
        [[0.0, 0.0], [4.0, 4.0]]
    """
    programs: list[Program] = []
    for index, spec in enumerate(specs):
        instructions = torch.tensor(list(_instructions(spec.ops)), dtype=torch.float64).view(-1, len(FIELDS))
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


def _instructions(
    ops: Sequence[ViewOp], column: int = 0, condition: tuple[int, int] = (-1, 0)
) -> Iterator[list[int | float]]:
    for op in ops:
        if isinstance(op, Choice):
            middle = column + 1 + sum(len(inner.parameters) for inner in op.first)
            yield from _instructions(op.first, column + 1, (column, 1))
            yield from _instructions(op.second, middle, (column, 0))
        else:
            for opcode, offset, *constants in _of_one(op):
                yield [opcode, column + offset, *constants, *[0.0] * (3 - len(constants)), *condition]
        column += len(op.parameters)


def _of_one(op: ViewOp) -> list[tuple[int | float, ...]]:
    """(opcode, first parameter of the op's own, constants) of each instruction of an op."""
    match op:
        case RandomResizedCrop():
            return [(Opcode.CROP, 0, op.interpolation == "bicubic")]
        case RandomCrop():
            return [(Opcode.WINDOW, 0)]
        case CenterCrop():
            return [(Opcode.CENTER_CROP, 0, op.short_side or 0, op.interpolation == "bicubic")]
        case Resize():
            return [(Opcode.RESIZE, 0, op.side or 0, op.interpolation == "bicubic", op.mode == "pad")]
        case HorizontalFlip():
            return [(Opcode.FLIP, 0)]
        case ColorJitter():
            return [(Opcode.JITTER, 0)]
        case Grayscale():
            return [(Opcode.GRAY, 0)]
        case GaussianBlur():
            return [(Opcode.BLUR, 0)]
        case Solarize():
            return [(Opcode.SOLARIZE, 0, op.threshold)]
        case RandAugment():
            has_place = POOLS[op.pool].has_cutout
            width = 4 if has_place else 2
            return [(Opcode.DISTORT, width * draw, has_place) for draw in range(op.num_ops)]
        case Jigsaw():
            return [(Opcode.JIGSAW, 0, op.grid)]
        case Choice():
            raise AssertionError("a choice holds no choice")
        case _:
            assert_never(op)
