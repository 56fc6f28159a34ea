import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_core.views import (
    CenterCrop,
    GaussianBlur,
    HorizontalFlip,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ViewConfig,
    ViewSpec,
    make_view_specs,
    sample_parameters,
    shortest_side,
)


def test_the_smallest_crop_by_hand():
    # An area of 0.08 s^2 at a ratio of 3/4 is sqrt(0.06) s wide: 224 / 0.24495 = 914.5.
    assert shortest_side([ViewSpec((RandomResizedCrop(),), (224,))]) == 915
    # At a ratio of 4 it is sqrt(0.25 / 4) s = s / 4 high.
    assert shortest_side([ViewSpec((RandomResizedCrop((0.25, 1.0), (1.0, 4.0)),), (32,))]) == 128
    # Ratios from 9 on: sqrt(1 / 16) s, but the central box of a square is s wide and s / 9 high, and 9 < 16.
    assert shortest_side([ViewSpec((RandomResizedCrop((1.0, 1.0), (9.0, 16.0)),), (32,))]) == 32 * 9


@given(
    size=st.integers(1, 64),
    extra=st.tuples(st.integers(0, 50), st.integers(0, 2000)),
    scale=st.floats(0.01, 1),
    ratio=st.tuples(st.floats(0.05, 20), st.floats(1, 4)),
    is_wide=st.booleans(),
)
def test_no_box_in_an_image_of_that_short_side_is_enlarged(size, extra, scale, ratio, is_wide):
    crop = RandomResizedCrop((scale, min(1.0, 1.1 * scale)), (ratio[0], min(20.0, ratio[0] * ratio[1])))
    spec = ViewSpec((crop,), (size,))
    short = shortest_side([spec]) + extra[0]
    sides = (short, short + extra[1]) if is_wide else (short + extra[1], short)
    boxes = sample_parameters(
        spec,
        seed=0,
        epoch=0,
        image_index=torch.arange(200),
        view_index=0,
        image_size=torch.tensor([sides]).expand(200, 2),
    )
    assert boxes[:, 2:].min() >= size


@pytest.mark.parametrize(
    ("ops", "side"),
    [
        ((CenterCrop(),), 24),
        ((CenterCrop(40),), 40),
        ((Resize(),), 24),
        ((Resize(mode="pad"),), 24),
        ((Resize(50), RandomResizedCrop()), 50),
        ((RandomCrop(),), None),
        ((HorizontalFlip(), RandomResizedCrop()), None),
        ((GaussianBlur(), CenterCrop()), None),
    ],
    ids=lambda value: "-".join(op.name for op in value) if isinstance(value, tuple) else str(value),
)
def test_each_first_op_needs_what_it_reads(ops, side):
    assert shortest_side([ViewSpec(ops, (24,))]) == side


def test_the_most_demanding_view_decides():
    weak, local = ViewConfig("weak", size=[96, 224]), ViewConfig("weak", size=96, crop_scale=(0.05, 0.2))
    sides = [shortest_side(make_view_specs(views)) for views in ([weak], [local], [weak, local])]
    assert sides == [579, 496, 579]
    assert shortest_side([*make_view_specs([weak]), ViewSpec((RandomCrop(),), (24,))]) is None
    assert shortest_side([]) is None
