"""Specs as instructions: parameters' columns, conditions and continued pictures."""

import pytest
import torch

from ssl_core.ops import cpp
from ssl_core.ops.instructions import Distortion, Instruction, Opcode, numbered
from ssl_core.views import (
    HEAVY,
    JITTER_ORDERS,
    PRESETS,
    Choice,
    ColorJitter,
    Grayscale,
    HorizontalFlip,
    Jigsaw,
    RandAugment,
    RandomResizedCrop,
    ViewSpec,
    derive,
    num_parameters,
)
from ssl_core.views.program import make_programs

CROP = RandomResizedCrop()


def column(program, name):
    return program.instructions[:, Instruction._fields.index(name)].tolist()


def test_instructions_read_the_parameters_of_their_own_op():
    (program,) = make_programs((ViewSpec((CROP, HorizontalFlip(), ColorJitter(), Grayscale()), (32,)),))
    assert column(program, "opcode") == [Opcode.CROP, Opcode.FLIP, Opcode.JITTER, Opcode.GRAY]
    assert column(program, "column") == [0, 4, 5, 10]
    assert column(program, "condition") == [-1] * 4


@pytest.mark.parametrize(("pool", "width"), [("clsa_code14", 2), ("dssl_code16", 4)])
def test_each_drawn_distortion_is_an_instruction(pool, width):
    (program,) = make_programs(
        (ViewSpec((CROP, RandAugment(pool, num_ops=3, level_range=(9, 9)), Grayscale()), (32,)),)
    )
    assert column(program, "column") == [0, 4, 4 + width, 4 + 2 * width, 4 + 3 * width]
    assert column(program, "a")[1:4] == [width == 4] * 3


def test_both_sides_of_a_choice_are_instructions_with_a_condition():
    choice = Choice(0.9, (Grayscale(),), (Jigsaw(2), HorizontalFlip()))
    (program,) = make_programs((ViewSpec((CROP, choice, HorizontalFlip()), (32,)),))
    assert column(program, "opcode") == [Opcode.CROP, Opcode.GRAY, Opcode.JIGSAW, Opcode.FLIP, Opcode.FLIP]
    assert column(program, "column") == [0, 5, 6, 10, 11]
    assert column(program, "condition") == [-1, 4, 4, 4, -1]
    assert column(program, "wanted") == [0, 1, 0, 0, 0]


def test_a_derived_view_continues_its_parents_picture_of_its_size():
    parent = ViewSpec((CROP, HorizontalFlip()), (32, 16))
    specs = (parent, derive([parent], 0, [Grayscale()]), derive([parent], 0, [Grayscale()], sizes=(24,)))
    programs = make_programs(specs)
    assert [(program.spec, program.size, program.continues) for program in programs] == [
        (0, 32, -1),
        (0, 16, -1),
        (1, 32, 0),
        (1, 16, 1),
        (2, 24, -1),
    ]
    assert column(programs[2], "opcode") == [Opcode.GRAY]
    assert column(programs[4], "opcode") == [Opcode.CROP, Opcode.FLIP, Opcode.GRAY]


def test_a_view_that_shares_the_crop_alone_begins_with_the_image():
    parent = ViewSpec((CROP, HorizontalFlip()), (32,))
    programs = make_programs((parent, derive([parent], 0, [Grayscale()], shared_ops=1)))
    assert programs[1].continues == -1
    assert column(programs[1], "opcode") == [Opcode.CROP, Opcode.GRAY]


@pytest.mark.parametrize("name", [*PRESETS, *HEAVY])
def test_every_shipped_view_reads_columns_that_it_has(name):
    ops = PRESETS[name] if name in PRESETS else (*PRESETS["dssl_cifar"], *HEAVY[name])
    spec = ViewSpec(ops, (32,))
    (program,) = make_programs((spec,))
    assert program.instructions.dtype == torch.float64
    read = [place for place, opcode in zip(column(program, "column"), column(program, "opcode"), strict=True)
            if opcode not in (Opcode.CENTER_CROP, Opcode.RESIZE)]  # fmt: skip
    assert max(read, default=0) < max(1, num_parameters(spec))


@pytest.mark.parametrize(("enumeration", "names"), [(Opcode, "opcodes"), (Distortion, "distortions")], ids=str)
def test_the_compiled_kernels_count_as_python_does(enumeration, names):
    if not cpp.instruction_sets():
        pytest.skip("needs the compiled kernels")
    assert list(enumeration) == list(range(len(enumeration)))
    assert getattr(cpp._C, names) == [member.name.lower() for member in enumeration]


def test_jitter_orders_are_those_that_the_kernels_compute():
    # csrc/cpu/views/color.h and the Triton kernels count in this order.
    assert JITTER_ORDERS[1] == (0, 1, 3, 2)


@pytest.mark.parametrize("number", [11.0, -1.0, 0.5, float("nan"), float("inf")])
def test_a_number_that_is_no_opcode_is_refused(number):
    with pytest.raises(ValueError, match=rf"no opcode has number {number:g}: 0 is CROP and 10 is JIGSAW"):
        numbered(Opcode, number)
