"""Which views DSSL makes of two standard ones."""

import pytest
import torch

from ssl_core.views import (
    HorizontalFlip,
    Jigsaw,
    RandomResizedCrop,
    Resize,
    ViewSpec,
    make_ops,
    render,
    sample_parameters,
)
from ssl_dssl.views import heavier, partially_ordered_views

CROP, FLIP, SHUFFLE = RandomResizedCrop(), HorizontalFlip(), Jigsaw(2)
STANDARD = (ViewSpec((CROP, FLIP), (16,), "first"), ViewSpec((CROP,), (16,), "second"))


def test_derived_heavy_views_continue_the_standard_views():
    views = partially_ordered_views(STANDARD, [SHUFFLE])
    assert views[:2] == STANDARD
    assert [view.ops for view in views[2:]] == [(CROP, FLIP, SHUFFLE), (CROP, SHUFFLE)]
    assert [(view.derived_from, view.shared_ops) for view in views[2:]] == [(0, 2), (1, 1)]


def test_heavy_views_of_the_image_have_nothing_of_the_standard_views():
    views = partially_ordered_views(STANDARD, [SHUFFLE], source="image")
    assert [view.ops for view in views[2:]] == [(Resize(), SHUFFLE)] * 2
    assert [view.derived_from for view in views[2:]] == [None, None]


def test_independent_heavy_views_draw_a_standard_view_of_their_own():
    views = partially_ordered_views(STANDARD, [SHUFFLE], source="independent")
    assert [view.ops for view in views[2:]] == [(CROP, FLIP, SHUFFLE), (CROP, SHUFFLE)]
    assert [view.derived_from for view in views[2:]] == [None, None]


def test_one_heavy_view_belongs_to_the_standard_view_it_names():
    (*_, view) = partially_ordered_views(STANDARD, [SHUFFLE], sources=(1,))
    assert (view.ops, view.derived_from) == ((CROP, SHUFFLE), 1)


def test_a_heavier_view_has_all_ops_and_no_parent():
    view = heavier(STANDARD[0], [SHUFFLE])
    assert (view.ops, view.derived_from, view.name) == ((CROP, FLIP, SHUFFLE), None, "first, heavy")


def pictures(views, image):
    index, size = torch.tensor([3]), torch.tensor([list(image.shape[1:])])
    drawn = (
        sample_parameters(view, seed=0, epoch=0, image_index=index, view_index=place, image_size=size)
        for place, view in enumerate(views)
    )
    return [render(image, parameters[0], view)[0] for parameters, view in zip(drawn, views, strict=True)]


@pytest.mark.parametrize(("source", "is_same"), [("derived", True), ("independent", False), ("image", False)])
def test_only_a_derived_heavy_view_is_made_of_the_very_picture_that_is_its_source(source, is_same):
    views = partially_ordered_views(STANDARD, [SHUFFLE], source=source)
    standard, _, heavy, _ = pictures(views, torch.rand(3, 40, 30))
    # The cells are shuffled, and nothing else is done to them.
    cells = [picture.unfold(1, 8, 8).unfold(2, 8, 8).flatten(1, 2).sum(dim=(0, 2, 3)) for picture in (standard, heavy)]
    assert torch.allclose(*(cell.sort().values for cell in cells)) == is_same


def test_heavy_views_come_after_any_standard_view():
    views = partially_ordered_views(STANDARD, make_ops("byol_harder"))
    assert all(picture.shape == (3, 16, 16) for picture in pictures(views, torch.rand(3, 40, 30)))
