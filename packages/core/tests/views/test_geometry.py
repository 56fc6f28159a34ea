"""Geometry against Pillow, pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ssl_core.views.geometry import (
    affine,
    cutout,
    rotate,
    shear_x,
    shear_y,
    shuffle_cells,
    translate_x,
    translate_x_px,
    translate_y,
    translate_y_px,
)

# CLSA's nine levels, both signs, and magnitudes of no level.
DEGREES = [sign * degrees for sign in (1, -1) for degrees in (*range(3, 28, 3), 0.7, 29.99, 45, 90, 180)]
SHARES = [sign * share for sign in (1, -1) for share in (*(level * 0.3 / 10 for level in range(1, 10)), 0.29999, 1.0)]
GEOMETRY = (rotate, shear_x, shear_y, translate_x, translate_y, translate_x_px, translate_y_px)
SIZES = [(32, 32), (31, 33), (1, 1), (2, 5), (7, 3), (1, 90), (224, 224), (501, 333)]


def levels(height, width, channels=3):
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)


def assert_is_pillows(distort, image, distort_with_pillow):
    """``distort`` of the image equals Pillow's, exactly."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    expected = torch.from_numpy(np.array(distort_with_pillow(picture))).permute(2, 0, 1)
    assert torch.equal(distort(image / 255), expected / 255)


def pillows_affine(*matrix):
    return lambda picture: picture.transform(picture.size, Image.Transform.AFFINE, matrix)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rotation_is_pillows(size):
    for degrees in map(float, DEGREES):
        assert_is_pillows(
            lambda image, by=degrees: rotate(image, by), levels(*size), lambda picture, by=degrees: picture.rotate(by)
        )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_shear_is_pillows(size):
    for slope in SHARES:
        assert_is_pillows(lambda x, by=slope: shear_x(x, by), levels(*size), pillows_affine(1, slope, 0, 0, 1, 0))
        assert_is_pillows(lambda x, by=slope: shear_y(x, by), levels(*size), pillows_affine(1, 0, 0, slope, 1, 0))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_translation_is_pillows_by_whole_pixels(size):
    height, width = size
    for share in SHARES:
        right, down = int(share * width), int(share * height)
        assert_is_pillows(lambda x, by=share: translate_x(x, by), levels(*size), pillows_affine(1, 0, right, 0, 1, 0))
        assert_is_pillows(lambda x, by=share: translate_y(x, by), levels(*size), pillows_affine(1, 0, 0, 0, 1, down))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_translation_by_pixels_is_pillows_by_fractions_of_a_pixel(size):
    # DSSL's at M = 5, 9, 10 and 30, both signs, and where rounding decides.
    for pixels in (100 / 6, -100 / 6, 30.0, -30.0, 100 / 3, -100 / 3, 100.0, 0.5, -0.5, 1.49999):
        right, down = pillows_affine(1, 0, pixels, 0, 1, 0), pillows_affine(1, 0, 0, 0, 1, pixels)
        assert_is_pillows(lambda x, by=pixels: translate_x_px(x, by), levels(*size), right)
        assert_is_pillows(lambda x, by=pixels: translate_y_px(x, by), levels(*size), down)


def pillows_cutout(side, x, y):
    """CutoutAbs as DSSL's code has it, around a given center."""

    def cut(picture):
        width, height = picture.size
        left, top = int(max(0, x * width - side / 2)), int(max(0, y * height - side / 2))
        box = (left, top, min(width, left + side), min(height, top + side))
        ImageDraw.Draw(picture).rectangle(box, (125, 123, 114))
        return picture

    return cut


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cutout_is_pillows_rectangle(size):
    for side in (0.0, 20 / 3, 12.0, 40 / 3, 64 / 3, 40.0):
        for x, y in ((0.0, 0.0), (0.5, 0.5), (0.99, 0.2), (0.3, 0.999), (0.61, 0.47)):
            image = levels(*size)
            assert_is_pillows(lambda image, at=(side, x, y): cutout(image, *at), image, pillows_cutout(side, x, y))


def test_cutout_by_hand():
    # Center (2.4, 0.8) and side 2: columns int(1.4) = 1 to 3, rows int(max(0, -0.2)) = 0 to 2, ends included.
    box = (cutout(torch.zeros(3, 4, 6), 2.0, 0.4, 0.2) * 255).round()
    rows = [[0, 1, 1, 1, 0, 0]] * 3 + [[0, 0, 0, 0, 0, 0]]
    for channel, level in zip(box, (125, 123, 114), strict=True):
        assert (channel / level).tolist() == rows


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_cutout_of_other_channel_numbers_is_the_mean_of_its_gray(channels):
    box = cutout(torch.zeros(channels, 3, 3), 9.0, 0.5, 0.5)
    torch.testing.assert_close(box, torch.full_like(box, (125 + 123 + 114) / 3 / 255))


def test_shuffled_cells_by_hand():
    image = torch.arange(24.0).view(1, 4, 6)
    # Cells of 2 x 3: 0 and 1 in the upper half, 2 and 3 in the lower.
    assert shuffle_cells(image, 2, [3, 0, 1, 2])[0].tolist() == [
        [15, 16, 17, 0, 1, 2],
        [21, 22, 23, 6, 7, 8],
        [3, 4, 5, 12, 13, 14],
        [9, 10, 11, 18, 19, 20],
    ]


@pytest.mark.parametrize(("grid", "side"), [(2, 32), (4, 32), (4, 224), (3, 9)], ids=str)
def test_shuffled_cells_are_the_images_own_each_once(grid, side):
    image = levels(side, side) / 255
    order = torch.randperm(grid**2, generator=torch.Generator().manual_seed(grid))
    shuffled = shuffle_cells(image, grid, order.tolist())
    assert not torch.equal(shuffled, image)
    assert torch.equal(shuffled.flatten(1).sort(dim=1).values, image.flatten(1).sort(dim=1).values)
    assert torch.equal(shuffle_cells(shuffled, grid, order.argsort().tolist()), image)
    assert torch.equal(shuffle_cells(image, grid, range(grid**2)), image)


def test_cells_of_an_image_that_is_not_contiguous_are_the_same():
    image, order = levels(8, 8) / 255, [2, 0, 3, 1]
    assert torch.equal(shuffle_cells(image.mT.contiguous().mT, 2, order), shuffle_cells(image, 2, order))


def test_any_affine_map_is_pillows():
    matrix = (0.8, 0.3, -4.5, -0.2, 1.3, 2.25)
    assert_is_pillows(lambda image: affine(image, matrix), levels(41, 29), pillows_affine(*matrix))


def test_directions_by_hand():
    image = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])[None] / 9

    def rows(distorted):
        return (distorted[0] * 9).round().tolist()

    assert rows(translate_x(image, 0.34)) == [[2, 3, 0], [5, 6, 0], [8, 9, 0]]  # int(1.02) = 1 to the left
    assert rows(translate_x(image, -0.6)) == [[0, 1, 2], [0, 4, 5], [0, 7, 8]]  # int(-1.8) = -1: towards zero
    assert rows(translate_y(image, 0.34)) == [[4, 5, 6], [7, 8, 9], [0, 0, 0]]
    # Row centers are 0.5, 1.5 and 2.5 below the edge: 0.5 + 0.25, 0.5 + 0.75 and 0.5 + 1.25 in the first column.
    assert rows(shear_x(image, 0.5)) == [[1, 2, 3], [5, 6, 0], [8, 9, 0]]
    assert rows(shear_y(image, 0.5)) == [[1, 5, 6], [4, 8, 9], [7, 0, 0]]
    assert rows(rotate(image, 90.0)) == [[3, 6, 9], [2, 5, 8], [1, 4, 7]]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_channels_move_together(channels):
    image = levels(17, 12, channels) / 255
    for distort in (*GEOMETRY, lambda image, _: shuffle_cells(image[:, :16], 2, [2, 0, 3, 1])):
        alone = [distort(channel[None], 0.3) for channel in image]
        assert torch.equal(distort(image, 0.3), torch.cat(alone))


def test_the_image_is_left_as_it_is():
    image = levels(8, 9) / 255
    before = image.clone()
    for distort in GEOMETRY:
        distort(image, 0.2).zero_()
    cutout(image, 3.0, 0.5, 0.5).zero_()
    shuffle_cells(image[:, :, :8], 2, range(4)).zero_()
    assert torch.equal(image, before)
