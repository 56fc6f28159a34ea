"""Geometry against Pillow, pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.views.geometry import affine, rotate, shear_x, shear_y, translate_x, translate_y

# CLSA's nine levels, both signs, and magnitudes of no level.
DEGREES = [sign * degrees for sign in (1, -1) for degrees in (*range(3, 28, 3), 0.7, 29.99, 45, 90, 180)]
SHARES = [sign * share for sign in (1, -1) for share in (*(level * 0.3 / 10 for level in range(1, 10)), 0.29999, 1.0)]
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
    # Row centres are 0.5, 1.5 and 2.5 below the edge: 0.5 + 0.25, 0.5 + 0.75 and 0.5 + 1.25 in the first column.
    assert rows(shear_x(image, 0.5)) == [[1, 2, 3], [5, 6, 0], [8, 9, 0]]
    assert rows(shear_y(image, 0.5)) == [[1, 5, 6], [4, 8, 9], [7, 0, 0]]
    assert rows(rotate(image, 90.0)) == [[3, 6, 9], [2, 5, 8], [1, 4, 7]]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_channels_move_together(channels):
    image = levels(17, 12, channels) / 255
    for distort in (rotate, shear_x, shear_y, translate_x, translate_y):
        alone = [distort(channel[None], 0.3) for channel in image]
        assert torch.equal(distort(image, 0.3), torch.cat(alone))


def test_the_image_is_left_as_it_is():
    image = levels(8, 9) / 255
    before = image.clone()
    for distort in (rotate, shear_x, shear_y, translate_x, translate_y):
        distort(image, 0.2).zero_()
    assert torch.equal(image, before)
