"""Colour ops against torchvision's, and what they do where torchvision has no definition."""

import colorsys
import math

import pytest
import torch
from torchvision.transforms.v2 import functional as oracle

from ssl_core.views.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gray,
    solarize,
)

FACTORS = [0.0, 0.6, 1.4, 2.5]
SHIFTS = [-0.5, -0.1, -0.01, 0.0, 0.07, 0.1, 0.5]


def rgb(dtype=torch.float32):
    """Random colours, and those where hue has a case of its own: grays, black, white, two equal channels."""
    image = torch.rand(3, 16, 12, generator=torch.Generator().manual_seed(0), dtype=dtype)
    image[:, 0] = image[:1, 0]
    image[:, 1], image[:, 2] = 0.0, 1.0
    image[0, 3] = image[1, 3]
    image[1, 4] = image[2, 4]
    image[2, 5] = image[0, 5]
    image[:, 6] = torch.eye(3, dtype=dtype).repeat(1, 4)
    return image


def channels(count):
    return torch.rand(count, 7, 5, generator=torch.Generator().manual_seed(count))


def assert_same(actual, expected, atol=1e-6):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def test_gray_is_torchvisions_for_three_channels():
    assert_same(gray(rgb()), oracle.rgb_to_grayscale(rgb()))


@pytest.mark.parametrize("factor", FACTORS)
def test_brightness_contrast_and_saturation_are_torchvisions(factor):
    assert_same(adjust_brightness(rgb(), factor), oracle.adjust_brightness(rgb(), factor))
    assert_same(adjust_contrast(rgb(), factor), oracle.adjust_contrast(rgb(), factor))
    assert_same(adjust_saturation(rgb(), factor), oracle.adjust_saturation(rgb(), factor))


@pytest.mark.parametrize("shift", SHIFTS)
def test_hue_is_torchvisions(shift):
    # Torchvision's own error in float32 is about 1e-6.
    assert_same(adjust_hue(rgb(), shift), oracle.adjust_hue(rgb(), shift), atol=2e-6)


@pytest.mark.parametrize("shift", SHIFTS)
def test_hue_is_a_shift_in_hsv(shift):
    image = rgb(torch.float64)
    shifted = torch.empty_like(image)
    for row in range(16):
        for column in range(12):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column].tolist())
            color = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
            shifted[:, row, column] = torch.tensor(color, dtype=torch.float64)
    assert_same(adjust_hue(image, shift), shifted, atol=1e-12)


def test_a_third_of_a_turn_takes_red_to_green_by_hand():
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    assert_same(adjust_hue(red, 1 / 3).flatten(), torch.tensor([0.0, 1.0, 0.0]))


def test_solarising_is_torchvisions():
    assert torch.equal(solarize(rgb(), 0.5), oracle.solarize(rgb(), 0.5))
    by_hand = solarize(torch.tensor([0.125, 0.25, 0.75]).view(1, 1, 3), 0.25)
    assert by_hand.flatten().tolist() == [0.125, 0.75, 0.25]  # at the threshold is inverted: 1 - 0.25


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
def test_hue_of_many_channels_turns_colour_and_keeps_gray(count):
    image = 0.4 + 0.2 * channels(count)  # away from the borders, where clipping would hide the rotation
    turned = adjust_hue(image, 0.1)
    assert not torch.allclose(turned, image, atol=1e-2)
    assert_same(turned.mean(0), image.mean(0))
    assert_same(turned.square().sum(0), image.square().sum(0))  # a rotation keeps lengths
    assert_same(adjust_hue(turned, -0.1), image)
    grays = torch.rand(1, 7, 5).expand(count, -1, -1)
    assert_same(adjust_hue(grays, 0.1), grays)


def test_hue_of_many_channels_is_a_rotation_of_the_first_harmonic():
    # One period of a cosine over 6 channels moves by shift * 6 channels: a sixth of a turn is one channel.
    wave = torch.cos(torch.arange(6.0) * 2 * math.pi / 6).mul(0.2).add(0.5).view(6, 1, 1)
    assert_same(adjust_hue(wave, 1 / 6), wave.roll(1, dims=0))
    # The second harmonic is another plane and stays.
    second = torch.cos(torch.arange(6.0) * 4 * math.pi / 6).mul(0.2).add(0.5).view(6, 1, 1)
    assert_same(adjust_hue(second, 1 / 6), second)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_colour_ops_stay_in_the_unit_interval_and_leave_their_input(count):
    image = channels(count)
    before = image.clone()
    for op in (adjust_brightness, adjust_contrast, adjust_saturation):
        assert op(image, 2.5).min() >= 0
        assert op(image, 2.5).max() <= 1
    assert adjust_hue(image, 0.4).min() >= 0
    assert adjust_hue(image, 0.4).max() <= 1
    solarize(image, 0.5)
    assert torch.equal(image, before)
