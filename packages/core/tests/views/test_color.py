"""Color ops against torchvision's and Pillow's, and what they do where those have no definition."""

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as oracle

from ssl_core.testing import DOUBLE, ROUNDING, SINGLE
from ssl_core.views.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    adjust_sharpness,
    autocontrast,
    equalize,
    gray,
    invert,
    posterize,
    solarize,
)

FACTORS = [0.0, 0.6, 1.4, 2.5]
SHIFTS = [-0.5, -0.1, -0.01, 0.0, 0.07, 0.1, 0.5]


def rgb(dtype=torch.float64):
    """Random colors, and those where hue has a case of its own: grays, black, white, two equal channels."""
    image = torch.rand(3, 16, 12, generator=torch.Generator().manual_seed(0), dtype=dtype)
    image[:, 0] = image[:1, 0]
    image[:, 1], image[:, 2] = 0.0, 1.0
    image[0, 3] = image[1, 3]
    image[1, 4] = image[2, 4]
    image[2, 5] = image[0, 5]
    image[:, 6] = torch.eye(3, dtype=dtype).repeat(1, 4)
    return image


def channels(count):
    return torch.rand(count, 7, 5, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


def assert_same(actual, expected, atol=DOUBLE):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# Torchvision's gray and hue are those of float32, whatever the image.


def test_gray_is_torchvisions_for_three_channels():
    assert_same(gray(rgb()), oracle.rgb_to_grayscale(rgb()), atol=SINGLE)


@pytest.mark.parametrize("factor", FACTORS)
def test_brightness_contrast_and_saturation_are_torchvisions(factor):
    assert_same(adjust_brightness(rgb(), factor), oracle.adjust_brightness(rgb(), factor))
    assert_same(adjust_contrast(rgb(), factor), oracle.adjust_contrast(rgb(), factor), atol=SINGLE)
    assert_same(adjust_saturation(rgb(), factor), oracle.adjust_saturation(rgb(), factor), atol=SINGLE)


@pytest.mark.parametrize("shift", SHIFTS)
def test_hue_is_torchvisions(shift):
    assert_same(adjust_hue(rgb(), shift), oracle.adjust_hue(rgb(), shift), atol=2 * SINGLE)


@pytest.mark.parametrize("shift", SHIFTS)
def test_hue_is_a_shift_in_hsv(shift):
    image = rgb()
    shifted = torch.empty_like(image)
    for row in range(16):
        for column in range(12):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column].tolist())
            color = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
            shifted[:, row, column] = torch.tensor(color, dtype=torch.float64)
    assert_same(adjust_hue(image, shift), shifted)


def test_a_third_of_a_turn_takes_red_to_green_by_hand():
    red = torch.tensor([1.0, 0.0, 0.0]).double().view(3, 1, 1)
    assert_same(adjust_hue(red, 1 / 3).flatten(), torch.tensor([0.0, 1.0, 0.0]).double())


def test_solarizing_is_torchvisions():
    assert torch.equal(solarize(rgb(), 0.5), oracle.solarize(rgb(), 0.5))
    by_hand = solarize(torch.tensor([0.125, 0.25, 0.75]).view(1, 1, 3), 0.25)
    assert by_hand.flatten().tolist() == [0.125, 0.75, 0.25]  # at the threshold is inverted: 1 - 0.25


# 8-bit images against Pillow. Few pixels and skewed histograms are where equalising has its corners.

SIZES = [(1, 1), (2, 5), (7, 3), (15, 17), (16, 16), (32, 32), (61, 43), (224, 97)]


def levels(size, skew, count=3):
    """Levels of noise to the power of ``skew``, in a range of its own for each channel."""
    noise = torch.rand(count, *size, generator=torch.Generator().manual_seed(size[0] * size[1]))
    widths = torch.tensor([255.0, 190.0, 31.0, 1.0, 0.0])[:count, None, None]
    return (noise**skew * widths + (255 - widths) / 3).to(torch.uint8)


def pillow(function, image, *arguments):
    picture = Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())
    return torch.from_numpy(np.array(function(picture, *arguments))).view(*image.shape[1:], -1).permute(2, 0, 1)


def assert_exact(actual, expected_levels):
    torch.testing.assert_close(actual, expected_levels / 255, rtol=0, atol=ROUNDING)  # the unit in the last place


@pytest.mark.parametrize("skew", [1, 6], ids=["even", "skewed"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_what_is_defined_on_levels_is_pillows(size, skew):
    image = levels(size, skew)
    assert_exact(autocontrast(image / 255), pillow(ImageOps.autocontrast, image))
    assert_exact(equalize(image / 255), pillow(ImageOps.equalize, image))
    assert_exact(invert(image / 255), pillow(ImageOps.invert, image))
    for bits in range(1, 9):
        assert_exact(posterize(image / 255, bits), pillow(ImageOps.posterize, image, bits))


def test_autocontrast_is_pillows_for_any_extremes():
    for low in range(0, 255, 7):
        for high in range(low, 256, 11):
            image = torch.arange(low, high + 1, dtype=torch.uint8).view(1, 1, -1)
            assert_exact(autocontrast(image / 255), pillow(ImageOps.autocontrast, image))


def test_equalising_by_hand():
    # 300 pixels: 100 of level 10, 150 of level 20, 50 of level 30. 250 lie below the highest: step 250 // 255 = 0.
    image = torch.tensor([10.0] * 100 + [20.0] * 150 + [30.0] * 50).view(1, 15, 20) / 255
    assert_exact(equalize(image), image * 255)
    # Six times as many: step 1500 // 255 = 5. (2 + 0) // 5 = 0; (2 + 600) // 5 = 120; (2 + 1500) // 5 = 300, so 255.
    several = equalize(image.repeat(1, 2, 3))
    assert (several * 255).round().unique().tolist() == [0, 120, 255]


def test_levels_are_rounded_before_they_are_changed():
    # 127.4 and 127.6 are levels 127 and 128, 0111 1111 and 1000 0000.
    image = torch.tensor([127.4, 127.6]).view(1, 1, 2) / 255
    assert_exact(posterize(image, 1), torch.tensor([0, 128]).view(1, 1, 2))
    assert_exact(autocontrast(image), torch.tensor([0, 255]).view(1, 1, 2))


# Pillow cuts the blend to a level, so ours is up to 1 higher; and it rounds what it blends with, which counts by
# 1 - factor: the gray to half a level (and luma weights differ by 1e-4 of 255), the mean of that gray by half a
# level more, the smoothed image by half a level.
BLENDS = {
    adjust_brightness: (ImageEnhance.Brightness, 0.0),
    adjust_saturation: (ImageEnhance.Color, 0.53),
    adjust_contrast: (ImageEnhance.Contrast, 1.03),
    adjust_sharpness: (ImageEnhance.Sharpness, 0.5),
}


@pytest.mark.parametrize("adjust", BLENDS, ids=lambda adjust: adjust.__name__)
@pytest.mark.parametrize("factor", [*(0.9 * level / 10 + 0.05 for level in range(1, 10)), 0.0, 1.0, 1.9])
def test_enhancements_are_pillows_within_its_rounding(adjust, factor):
    enhance, rounded = BLENDS[adjust]
    for size in SIZES:
        image = levels(size, skew=1)
        expected = pillow(lambda picture: enhance(picture).enhance(factor), image)
        excess = adjust(image / 255, factor) * 255 - expected
        slack = rounded * abs(1 - factor) + 255 * SINGLE
        assert excess.min() >= -slack
        assert excess.max() <= 1 + slack


@pytest.mark.parametrize("factor", FACTORS)
def test_sharpness_is_torchvisions(factor):
    for image in (rgb(), channels(1), *(torch.rand(3, *size).double() for size in ((2, 9), (9, 1), (3, 3)))):
        assert_same(adjust_sharpness(image, factor), oracle.adjust_sharpness(image, factor))


def test_each_channel_is_distorted_on_its_own():
    for count in (1, 2, 5):
        image = levels((20, 30), 1, count) / 255
        for distort in (
            autocontrast,
            equalize,
            invert,
            lambda image: posterize(image, 3),
            lambda image: adjust_sharpness(image, 0.2),
        ):
            assert torch.equal(distort(image), torch.cat([distort(channel[None]) for channel in image]))


def test_gray_of_other_channel_counts_is_their_mean():
    assert torch.equal(gray(channels(1)), channels(1))
    for count in (2, 4, 6):
        assert_same(gray(channels(count)), channels(count).mean(0, keepdim=True))


def test_contrast_blends_any_channels_with_the_mean_of_the_gray():
    for count in (1, 2, 4, 6):
        image = channels(count)
        assert_same(adjust_contrast(image, 0.5), (image + image.mean()) / 2)


def test_saturation_leaves_one_channel_and_blends_others_with_their_gray():
    assert torch.equal(adjust_saturation(channels(1), 0.3), channels(1))
    for count in (2, 4, 6):
        image = channels(count)
        assert_same(adjust_saturation(image, 0.5), (image + image.mean(0)) / 2)


def test_hue_leaves_one_and_two_channels():
    for count in (1, 2):
        assert torch.equal(adjust_hue(channels(count), 0.2), channels(count))


@pytest.mark.parametrize("count", [4, 5, 6])
def test_hue_of_many_channels_turns_color_and_keeps_gray(count):
    image = 0.4 + 0.2 * channels(count)  # away from the borders, where clipping would hide the rotation
    turned = adjust_hue(image, 0.1)
    assert not torch.allclose(turned, image, atol=1e-2)  # by two levels and more
    assert_same(turned.mean(0), image.mean(0))
    assert_same(turned.square().sum(0), image.square().sum(0))  # a rotation keeps lengths
    assert_same(adjust_hue(turned, -0.1), image)
    grays = torch.rand(1, 7, 5).double().expand(count, -1, -1)
    assert_same(adjust_hue(grays, 0.1), grays)


def test_hue_of_many_channels_is_a_rotation_of_the_first_harmonic():
    # One period of a cosine over 6 channels moves by shift * 6 channels: a sixth of a turn is one channel.
    wave = torch.cos(torch.arange(6.0).double() * 2 * math.pi / 6).mul(0.2).add(0.5).view(6, 1, 1)
    assert_same(adjust_hue(wave, 1 / 6), wave.roll(1, dims=0))
    # The second harmonic is another plane and stays.
    second = torch.cos(torch.arange(6.0).double() * 4 * math.pi / 6).mul(0.2).add(0.5).view(6, 1, 1)
    assert_same(adjust_hue(second, 1 / 6), second)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_color_ops_stay_in_the_unit_interval_and_leave_their_input(count):
    image = channels(count)
    before = image.clone()
    for op in (adjust_brightness, adjust_contrast, adjust_saturation, adjust_sharpness):
        assert op(image, 2.5).min() >= 0
        assert op(image, 2.5).max() <= 1
    assert adjust_hue(image, 0.4).min() >= 0
    assert adjust_hue(image, 0.4).max() <= 1
    for op in (autocontrast, equalize, invert):
        assert op(image).min() >= 0
        assert op(image).max() <= 1
    posterize(image, 4)
    solarize(image, 0.5)
    assert torch.equal(image, before)
