"""Each op against torchvision's or Pillow's function of it, and what any image may be."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as oracle

from ssl_core.testing import ROUNDING, SINGLE
from ssl_core.views import (
    DISTORTIONS,
    HEAVY,
    JITTER_ORDERS,
    POOLS,
    PRESETS,
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
    ViewSpec,
    derive,
    eval_spec,
    render,
    render_batch,
    sample_parameters,
)
from ssl_core.views.color import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation


def some_image(count=3, height=40, width=60, dtype=torch.uint8):
    levels = {torch.uint8: 255, torch.uint16: 65535}.get(dtype)
    image = torch.rand(count, height, width, generator=torch.Generator().manual_seed(height * width + count))
    return image.to(dtype) if levels is None else (image * levels).round().to(dtype)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def unit(image):
    return image.float() / 255


def draw(spec, images, view=0):
    return sample_parameters(
        spec,
        seed=0,
        epoch=0,
        image_index=torch.arange(len(images)),
        view_index=view,
        image_size=torch.tensor([image.shape[1:] for image in images]),
    )


def assert_same(actual, expected, atol=SINGLE):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# Ops against torchvision.


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(3, 5, 20, 30), (0, 0, 40, 60), (7, 9, 1, 1), (8, 0, 32, 32), (0, 0, 9, 60)])
def test_crops_are_torchvisions_with_antialias(box, interpolation):
    image = some_image()
    spec = ViewSpec((RandomResizedCrop(interpolation=interpolation),), (32,))
    (view,) = render(image, numbers(*box), spec)
    mode = oracle.InterpolationMode(interpolation)
    expected = oracle.resized_crop(unit(image), *box, [32, 32], interpolation=mode, antialias=True)
    assert_same(view, expected.clamp(0, 1))


@pytest.mark.parametrize("corner", [(-4, -4), (4, 4), (-4, 3), (0, 0)])
def test_padded_windows_are_torchvisions_pad_and_crop(corner):
    image = some_image(height=32, width=32)
    (view,) = render(image, numbers(*corner), ViewSpec((RandomCrop(padding=4),), (32,)))
    padded = oracle.pad(unit(image), [4, 4, 4, 4])
    assert_same(view, oracle.crop(padded, corner[0] + 4, corner[1] + 4, 32, 32))


def test_a_window_beyond_a_small_image_shows_it_between_zeros():
    image = some_image(height=2, width=3)
    (view,) = render(image, numbers(-1, -1), ViewSpec((RandomCrop(padding=1),), (5,)))
    assert torch.equal(view[:, 1:3, 1:4], unit(image))
    view[:, 1:3, 1:4] = 0
    assert not view.any()


@pytest.mark.parametrize("corner", [(-4, 0), (0, -4), (3, 0), (0, 5), (-9, -9)])
def test_a_window_that_misses_the_image_is_black(corner):
    (view,) = render(some_image(height=3, width=5), numbers(*corner), ViewSpec((RandomCrop(padding=4),), (2,)))
    assert view.shape == (3, 2, 2)
    assert not view.any()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "shape",
    [(40, 60), (61, 40), (50, 50), (20, 30), (375, 500), (1, 1)],
    ids=str,
)
def test_center_crops_are_torchvisions_resize_and_center_crop(shape, interpolation):
    image = some_image(height=shape[0], width=shape[1])
    mode = oracle.InterpolationMode(interpolation)
    for size, short_side in ((32, 36), (32, 32), (31, 37)):
        (view,) = render(image, numbers(), eval_spec(size, short_side=short_side, interpolation=interpolation))
        resized = oracle.resize(unit(image), [short_side], interpolation=mode, antialias=True)
        assert_same(view, oracle.center_crop(resized, [size]).clamp(0, 1))


def test_an_image_of_extreme_shape_is_never_blown_up(monkeypatch):
    # 3000 x 2 resized whole to a short side of 256 would be 384,000 x 256.
    pixels = []

    def counted(*args, interpolate=torch.nn.functional.interpolate, **kwargs):
        resized = interpolate(*args, **kwargs)
        pixels.append(resized.numel())
        return resized

    monkeypatch.setattr(torch.nn.functional, "interpolate", counted)
    render(some_image(height=3000, width=2), numbers(), eval_spec(224, short_side=256))
    assert max(pixels) == 3 * 384_000 * 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_result_that_is_one_pixel_wide_is_that_of_the_image_turned(interpolation):
    # torch.nn.functional.interpolate makes all rows of such a result equal.
    image, spec = some_image(height=61, width=2), ViewSpec((Resize(interpolation=interpolation, mode="pad"),), (32,))
    (view,), (turned,) = (render(each, numbers(), spec) for each in (image, image.mT))
    assert_same(view, turned.mT)
    assert len(view[0, :, 15].unique()) == 32


def test_resize_squashes_the_whole_image():
    image = some_image()
    (view,) = render(image, numbers(), ViewSpec((Resize(),), (32,)))
    assert_same(view, oracle.resize(unit(image), [32, 32], antialias=True))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("shape", "inside"),
    # Its first row, rows, first column, columns: 60 x 40 at side 32 is 32 x 21.33, with 11 spare columns, 5 and 6.
    [
        ((60, 40), (0, 32, 5, 21)),
        ((50, 60), (2, 27, 0, 32)),
        ((50, 50), (0, 32, 0, 32)),
        ((8, 4), (0, 32, 8, 16)),
        ((3000, 2), (0, 32, 15, 1)),
        ((1, 1), (0, 32, 0, 32)),
    ],
    ids=str,
)
def test_a_padded_resize_keeps_the_aspect_ratio_between_zeros(shape, inside, interpolation):
    image = some_image(height=shape[0], width=shape[1])
    (view,) = render(image, numbers(), ViewSpec((Resize(interpolation=interpolation, mode="pad"),), (32,)))
    top, height, left, width = inside
    mode = oracle.InterpolationMode(interpolation)
    if width == 1:  # torchvision resizes such an image right when it is turned
        resized = oracle.resize(unit(image).mT, [width, height], interpolation=mode, antialias=True).mT
    else:
        resized = oracle.resize(unit(image), [height, width], interpolation=mode, antialias=True)
    assert_same(view, oracle.pad(resized.clamp(0, 1), [left, top, 32 - width - left, 32 - height - top]))


def test_a_padded_resize_of_another_side_is_cut_afterwards():
    image = some_image(height=10, width=20)
    spec = ViewSpec((Resize(side=20, mode="pad"), RandomCrop()), (10,))
    assert torch.equal(render(image, numbers(5, 3), spec)[0], unit(image)[:, :, 3:13])


def test_an_image_of_the_views_size_is_left_as_it_is():
    image = some_image(height=32, width=32)
    for op in (CenterCrop(), Resize(), Resize(mode="pad")):
        assert torch.equal(render(image, numbers(), ViewSpec((op,), (32,)))[0], unit(image))
    assert torch.equal(render(image, numbers(0, 0, 32, 32), ViewSpec((RandomResizedCrop(),), (32,)))[0], unit(image))


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.34, 2.0])
@pytest.mark.parametrize("shape", [(32, 32), (70, 33), (96, 150)], ids=str)
def test_blur_is_torchvisions_with_a_kernel_of_three_sigma(shape, sigma):
    image = some_image(height=shape[0], width=shape[1])
    spec = ViewSpec((GaussianBlur(), Resize()), (32,))
    (view,) = render(image, numbers(sigma), spec)
    taps = 2 * math.ceil(3 * sigma) + 1
    blurred = oracle.gaussian_blur(unit(image), [taps, taps], [sigma, sigma])
    assert_same(view, oracle.resize(blurred, [32, 32], antialias=True))


@pytest.mark.parametrize("side", [1, 2, 5])
def test_blur_of_an_image_smaller_than_its_kernel_reflects_again_and_again(side):
    image = some_image(height=side, width=side)
    (view,) = render(image, numbers(2.0), ViewSpec((GaussianBlur(), Resize()), (side,)))
    assert 0 <= view.min() < view.max() <= 1
    # By hand for two pixels a b: ... a b a b a ..., so each becomes a mixture of both, even taps its own.
    if side == 2:
        taps = torch.tensor([math.exp(-0.5 * (tap / 2.0) ** 2) for tap in range(-6, 7)])
        own = (taps[::2].sum() / taps.sum()).item()
        mixture = torch.tensor([[own, 1 - own], [1 - own, own]])
        assert_same(view, mixture @ unit(image) @ mixture)


def test_flip_gray_and_solarizing_are_applied_when_their_parameter_says_so():
    image = some_image(height=32, width=32)
    spec = ViewSpec((Resize(), Grayscale(), Solarize(threshold=0.3), HorizontalFlip()), (32,))
    expected = unit(image)
    assert torch.equal(render(image, numbers(0, 0, 0), spec)[0], expected)
    expected = oracle.rgb_to_grayscale(expected, num_output_channels=3)
    assert_same(render(image, numbers(1, 0, 0), spec)[0], expected)
    expected = oracle.solarize(expected, 0.3)
    assert_same(render(image, numbers(1, 1, 0), spec)[0], expected)
    assert_same(render(image, numbers(1, 1, 1), spec)[0], oracle.horizontal_flip(expected))


@pytest.mark.parametrize("order", range(24))
def test_jitter_changes_in_the_drawn_order(order):
    image = some_image(height=32, width=32)
    factors = (1.3, 0.7, 1.4, 0.08)
    (view,) = render(image, numbers(*factors, order), ViewSpec((Resize(), ColorJitter()), (32,)))
    expected = unit(image)
    functions = (oracle.adjust_brightness, oracle.adjust_contrast, oracle.adjust_saturation, oracle.adjust_hue)
    for change in JITTER_ORDERS[order]:
        expected = functions[change](expected, factors[change])
    assert_same(view, expected, atol=1.3 * 1.4 * 2 * SINGLE)  # hue takes twice as many roundings; factors magnify it


def test_the_whole_strong_view_is_torchvisions_functions_in_order():
    spec = ViewSpec(PRESETS["strong_beta"], (32,))
    images = [some_image(height=30 + index, width=50) for index in range(40)]
    atol = 1.4**3 * 60 * ROUNDING  # places between pixels, of up to 60, are rounded; jitter's factors magnify that
    for image, row in zip(images, draw(spec, images), strict=True):
        top, left, height, width, *jitter, order, to_gray, sigma, inverted, flipped = row.tolist()
        box = (int(top), int(left), int(height), int(width))
        expected = oracle.resized_crop(unit(image), *box, [32, 32], antialias=True)
        functions = (
            oracle.adjust_brightness,
            oracle.adjust_contrast,
            oracle.adjust_saturation,
            oracle.adjust_hue,
        )
        for change in JITTER_ORDERS[int(order)]:
            expected = functions[change](expected, jitter[change])
        if to_gray:
            expected = oracle.rgb_to_grayscale(expected, num_output_channels=3)
        if sigma:
            taps = 2 * math.ceil(3 * sigma) + 1
            expected = oracle.gaussian_blur(expected, [taps, taps], [sigma, sigma])
        if inverted:
            near = (expected - 0.5).abs() < atol  # rounding decides on which side of the threshold
            expected = torch.where(near, 0.5, oracle.solarize(expected, 0.5))
        if flipped:
            expected = oracle.horizontal_flip(expected)
        assert_same(render(image, row, spec)[0], expected, atol=atol)


# Distortions on 8-bit images, as CLSA's and DSSL's released code apply them with Pillow.


def pillows_affine(picture, *matrix):
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix)


def pillows_solarize_add(picture, addition):
    added = np.clip(np.array(picture) + addition, 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(added), 128)


def pillows_cutout(picture, side, x, y):
    width, height = picture.size
    left, top = int(max(0, x * width - side / 2)), int(max(0, y * height - side / 2))
    box = (left, top, min(width, left + side), min(height, top + side))
    ImageDraw.Draw(picture).rectangle(box, (125, 123, 114))
    return picture


PILLOW = {
    "identity": lambda picture, _: picture,
    "autocontrast": lambda picture, _: ImageOps.autocontrast(picture),
    "equalize": lambda picture, _: ImageOps.equalize(picture),
    "invert": lambda picture, _: ImageOps.invert(picture),
    "posterize": lambda picture, bits: ImageOps.posterize(picture, max(1, int(bits))),
    "solarize": lambda picture, threshold: ImageOps.solarize(picture, threshold),
    "rotate": lambda picture, degrees: picture.rotate(degrees),
    "shear_x": lambda picture, slope: pillows_affine(picture, 1, slope, 0, 0, 1, 0),
    "shear_y": lambda picture, slope: pillows_affine(picture, 1, 0, 0, slope, 1, 0),
    "translate_x": lambda picture, share: pillows_affine(picture, 1, 0, int(share * picture.width), 0, 1, 0),
    "translate_y": lambda picture, share: pillows_affine(picture, 1, 0, 0, 0, 1, int(share * picture.height)),
    "solarize_add": pillows_solarize_add,
    "cutout": pillows_cutout,
    "translate_x_px": lambda picture, pixels: pillows_affine(picture, 1, 0, pixels, 0, 1, 0),
    "translate_y_px": lambda picture, pixels: pillows_affine(picture, 1, 0, 0, 0, 1, pixels),
    "brightness": lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
    "color": lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
    "contrast": lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
    "sharpness": lambda picture, factor: ImageEnhance.Sharpness(picture).enhance(factor),
}
# Exact but for the rounding inside Pillow, whose bounds test_color.py derives.
BLENDS = ("brightness", "color", "contrast", "sharpness")


def distorted_by_pillow(image, name, *magnitude):
    picture = PILLOW[name](Image.fromarray(image.permute(1, 2, 0).numpy()), *magnitude)
    return unit(torch.from_numpy(np.array(picture)).permute(2, 0, 1))


@pytest.mark.parametrize("level", [(1, 1), (5, 5), (9, 9), "continuous"], ids=str)
@pytest.mark.parametrize("side", [1, 2, *(pytest.param(side, marks=pytest.mark.slow) for side in (31, 32, 97))])
@pytest.mark.parametrize("pool", ["clsa_code14", "clsa_paper14", "dssl_code16", "dssl_code16_relative"])
def test_each_distortion_is_pillows(pool, side, level):
    image = some_image(height=side, width=side)
    spec = ViewSpec((Resize(), RandAugment(pool, 1, 1.0, level)), (side,))
    drawn = draw(spec, [image] * 100)
    assert len(drawn[:, 0].unique()) == len(POOLS[pool].magnitudes)
    for row in drawn:
        index, magnitude, *place = row.tolist()
        name = DISTORTIONS[int(index)]
        (view,) = render(image, row, spec)
        expected = distorted_by_pillow(image, name, magnitude, *(place if name == "cutout" else ()))
        if name in BLENDS:
            assert_same(view, expected, atol=(1 + 1.03) / 255 + SINGLE)
        else:
            assert_same(view, expected)


def test_distortions_follow_each_other_in_the_drawn_order():
    image = some_image(height=32, width=32)
    spec = ViewSpec((Resize(), RandAugment(num_ops=3)), (32,))
    rotate, dark, nothing = (DISTORTIONS.index(name) for name in ("rotate", "brightness", "identity"))
    (view,) = render(image, numbers(rotate, 15, nothing, 0, dark, 0.5), spec)
    assert_same(view, distorted_by_pillow(image, "rotate", 15) / 2)
    # A quarter as bright, then 4 bits, steps of 16; or 4 bits first, so that the steps are a quarter as high.
    coarse = DISTORTIONS.index("posterize")
    (view,) = render(image, numbers(dark, 0.25, coarse, 4, nothing, 0), spec)
    assert {round(level) for level in (view * 255).unique().tolist()} == set(range(0, 65, 16))
    (view,) = render(image, numbers(coarse, 4, dark, 0.25, nothing, 0), spec)
    assert {round(level) for level in (view * 255).unique().tolist()} == set(range(0, 61, 4))


@pytest.mark.parametrize("number", [19.0, -1.0, 1.5, float("nan")])
def test_a_number_that_is_no_distortion_is_refused(number):
    spec = ViewSpec((Resize(), RandAugment(num_ops=1)), (8,))
    with pytest.raises(
        ValueError, match=f"no distortion has number {number:g}: 0 is IDENTITY and 18 is TRANSLATE_Y_PX"
    ):
        render(some_image(), numbers(number, 0.0), spec)


def test_posterizing_to_less_than_one_bit_keeps_one():
    image, spec = some_image(height=32, width=32), ViewSpec((Resize(), RandAugment(num_ops=1)), (32,))
    (view,) = render(image, numbers(DISTORTIONS.index("posterize"), 0), spec)
    assert_same(view, (image >= 128) * (128 / 255))


def test_solarize_add_by_hand():
    # 110 + 18 is 128 and inverted, 109 + 18 is not; 240 + 18 is clipped to 255.
    image = torch.tensor([109, 110, 240], dtype=torch.uint8).view(1, 1, 3).expand(1, 3, 3)
    spec = ViewSpec((RandAugment(num_ops=1), Resize()), (3,))
    (view,) = render(image, numbers(DISTORTIONS.index("solarize_add"), 18), spec)
    assert_same(view[0, 0], torch.tensor([127.0, 127.0, 0.0]) / 255)
    # What follows sees the clipped values: contrast 0 leaves their mean.
    spec = ViewSpec((RandAugment(num_ops=2), Resize()), (3,))
    add, contrast = (DISTORTIONS.index(name) for name in ("solarize_add", "contrast"))
    (view,) = render(image, numbers(add, 18, contrast, 0), spec)
    assert_same(view, torch.full_like(view, 254 / 3 / 255))


def brightest_translations(pool, level, side):
    """The largest value of each translated white image that is a heavy view of one distortion."""
    op = RandAugment(pool, 1, 1.0, (level, level))
    image, spec = torch.ones(3, side, side), ViewSpec((Resize(), op), (side,))
    moves = torch.tensor([index for index, name in enumerate(DISTORTIONS) if name.startswith("translate")])
    drawn = [row for row in draw(spec, [image] * 200) if row[0] in moves]
    assert len({(row[0].item(), row[1].item()) for row in drawn}) == 4  # two axes, two directions
    return [render(image, row, spec)[0].max().item() for row in drawn]


@pytest.mark.parametrize("level", [10, 16, 30])
def test_dssls_translations_leave_nothing_of_32_pixels_from_magnitude_10_on(level):
    assert set(brightest_translations("dssl_code16", level, 32)) == {0.0}


@pytest.mark.parametrize(
    ("pool", "level", "side"),
    [("dssl_code16", 9, 32), ("dssl_code16", 30, 224), ("dssl_code16_relative", 30, 32)],
)
def test_dssls_other_translations_leave_some_of_the_image(pool, level, side):
    assert set(brightest_translations(pool, level, side)) == {1.0}


def test_two_columns_of_32_are_left_at_magnitude_9():
    image, spec = torch.ones(1, 32, 32), ViewSpec((Resize(), RandAugment("dssl_code16", 1)), (32,))
    (view,) = render(image, numbers(DISTORTIONS.index("translate_x_px"), 30.0, 0, 0), spec)
    assert view[0, 0].nonzero().flatten().tolist() == [0, 1]


def test_solarizing_counts_a_value_to_its_nearest_level():
    # 99.6 and 99.4 are levels 100 and 99; what is inverted keeps its fraction.
    image = torch.tensor([99.6, 99.4]).view(1, 1, 2) / 255
    spec = ViewSpec((RandAugment(num_ops=1), Resize()), (2,))
    (view,) = render(image, numbers(DISTORTIONS.index("solarize"), 100), spec)
    assert_same(view[0, 0], torch.tensor([155.4, 99.4]) / 255)


def test_distortions_before_the_crop_see_the_whole_image():
    image = some_image(height=40, width=60)
    spec = ViewSpec((RandAugment(num_ops=1), RandomCrop()), (20,))
    (view,) = render(image, numbers(DISTORTIONS.index("translate_x"), 0.5, 3, 4), spec)
    assert torch.equal(view, unit(image)[:, 3:23, 34:54])  # 30 pixels of 60


@pytest.mark.parametrize("pool", ["dssl_code16", "dssl_paper14"])
def test_distortions_with_a_place_follow_each_other_in_the_drawn_order(pool):
    image, spec = some_image(height=32, width=32), ViewSpec((Resize(), RandAugment(pool, 2)), (32,))
    place = (0.25, 0.75) if POOLS[pool].has_cutout else ()
    rotate, add = (DISTORTIONS.index(name) for name in ("rotate", "invert"))
    (view,) = render(image, numbers(rotate, 15, *place, add, 0, *place), spec)
    assert_same(view, 1 - distorted_by_pillow(image, "rotate", 15))


# Jigsaw and choice.


def test_a_jigsaw_shows_the_cells_that_its_parameters_name():
    image = some_image(height=8, width=8)
    (view,) = render(image, numbers(3, 0, 1, 2), ViewSpec((Resize(), Jigsaw(2)), (8,)))
    a, b, c, d = unit(image)[:, :4, :4], unit(image)[:, :4, 4:], unit(image)[:, 4:, :4], unit(image)[:, 4:, 4:]
    assert torch.equal(view, torch.cat([torch.cat([d, a], dim=2), torch.cat([b, c], dim=2)], dim=1))


@pytest.mark.parametrize("side", [32, 224])
def test_a_jigsaw_that_is_never_applied_leaves_the_image(side):
    image, spec = some_image(height=side, width=side), ViewSpec((Resize(), Jigsaw(4, prob=0.0)), (side,))
    for row in draw(spec, [image] * 5):
        assert torch.equal(render(image, row, spec)[0], unit(image))


def test_a_jigsaw_at_several_sizes_has_one_order():
    quarters = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    image = quarters.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    for view in render(image, numbers(2, 3, 1, 0), ViewSpec((Resize(), Jigsaw(2)), (16, 32))):
        middles = slice(view.shape[1] // 4, None, view.shape[1] // 2)
        assert_same(view[0, middles, middles].flatten(), torch.tensor([0.3, 0.4, 0.2, 0.1]))


def test_a_choice_applies_the_ops_that_its_parameter_names_and_no_other():
    image = some_image(height=32, width=32)
    first, second = (Solarize(threshold=0.0), HorizontalFlip()), (Grayscale(), HorizontalFlip())
    spec = ViewSpec((Resize(), Choice(0.5, first, second), HorizontalFlip()), (32,))
    assert torch.equal(render(image, numbers(1, 1, 0, 1, 1, 0), spec)[0], 1 - unit(image))
    gray = oracle.rgb_to_grayscale(unit(image), num_output_channels=3)
    assert_same(render(image, numbers(0, 1, 1, 1, 0, 0), spec)[0], gray)
    assert_same(render(image, numbers(0, 1, 1, 1, 0, 1), spec)[0], gray.flip(-1))


def test_a_choice_of_nothing_leaves_the_image():
    image, spec = some_image(height=32, width=32), ViewSpec((Resize(), Choice(0.5, (), (Solarize(),))), (32,))
    assert torch.equal(render(image, numbers(1, 1), spec)[0], unit(image))


# What an image may be.


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("name", HEAVY)
def test_every_heavy_view_can_be_rendered(name, side, count):
    image = some_image(count, side, side)
    heavy = derive([ViewSpec(PRESETS["dssl_cifar"], (side,))], 0, HEAVY[name])
    for row in draw(heavy, [image] * 12, view=1):
        (view,) = render(image, row, heavy)
        assert view.shape == (count, side, side)
        assert view.min() >= 0
        assert view.max() <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("shape", [(1, 1), (3000, 2), (2, 90), (32, 32), (37, 53)], ids=str)
@pytest.mark.parametrize("preset", ["strong_beta", "clsa_strong"])
def test_any_channels_type_and_shape_give_a_view_in_the_unit_interval(preset, count, shape):
    spec = ViewSpec(PRESETS[preset], (32,))
    for dtype in (torch.uint8, torch.uint16, torch.float16, torch.float32, torch.float64):
        image = some_image(count, *shape, dtype=dtype)
        for row in draw(spec, [image] * 2):
            (view,) = render(image, row, spec)
            assert view.shape == (count, 32, 32)
            assert view.dtype == torch.float32
            assert view.is_contiguous()
            assert view.min() >= 0
            assert view.max() <= 1


def test_types_show_the_same_picture():
    levels = some_image()
    spec = ViewSpec(PRESETS["strong"], (32,))
    (row,) = draw(spec, [levels])
    (view,) = render(levels, row, spec)
    assert_same(render((levels.int() * 257).to(torch.uint16), row, spec)[0], view)
    assert_same(render(levels / 255, row, spec)[0], view)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_types_show_the_same_distortion(name):
    levels = some_image(height=32, width=32)
    spec = ViewSpec((Resize(), RandAugment("dssl_code16", num_ops=1)), (32,))
    parameters = numbers(DISTORTIONS.index(name), 5 if name == "posterize" else 0.3, 0.5, 0.5)
    (view,) = render(levels, parameters, spec)
    assert torch.equal(render((levels.int() * 257).to(torch.uint16), parameters, spec)[0], view)
    assert torch.equal(render(levels / 255, parameters, spec)[0], view)


def test_one_channel_is_jittered_in_brightness_and_contrast_alone():
    image = some_image(count=1, height=32, width=32)
    order = JITTER_ORDERS.index((3, 2, 1, 0))
    (view,) = render(image, numbers(1.3, 0.7, 0.1, 0.2, order), ViewSpec((Resize(), ColorJitter()), (32,)))
    assert_same(view, adjust_brightness(adjust_contrast(unit(image), 0.7), 1.3))


def test_six_channels_are_jittered_in_all_four():
    image = some_image(count=6, height=32, width=32)
    order = JITTER_ORDERS.index((3, 2, 1, 0))
    (view,) = render(image, numbers(1.3, 0.7, 0.1, 0.2, order), ViewSpec((Resize(), ColorJitter()), (32,)))
    turned = adjust_saturation(adjust_hue(unit(image), 0.2), 0.1)
    assert_same(view, adjust_brightness(adjust_contrast(turned, 0.7), 1.3))


@pytest.mark.parametrize("layout", ["channels last", "cut from a larger image"])
def test_memory_layout_changes_nothing(layout):
    image = some_image()
    if layout == "channels last":
        other = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    else:
        other = torch.zeros(5, 50, 70, dtype=torch.uint8)[1:4, 3:43, 4:64].copy_(image)
    spec = ViewSpec(PRESETS["strong"], (32,))
    for row in draw(spec, [image] * 5):
        assert_same(render(other, row, spec)[0], render(image, row, spec)[0])
        assert render(other, row, spec)[0].is_contiguous()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("preset", ["plain", "strong_beta", "clsa_strong_crop"])
def test_an_image_is_neither_changed_nor_shared(dtype, preset):
    image = some_image(height=32, width=32, dtype=dtype)
    before = image.clone()
    spec = ViewSpec(PRESETS[preset], (32,))
    for row in draw(spec, [image] * 8):
        render(image, row, spec)[0].zero_()
    assert torch.equal(image, before)


def test_rendering_twice_gives_the_same_pixels():
    image, spec = some_image(), ViewSpec(PRESETS["strong_beta"], (32,))
    for row in draw(spec, [image] * 5):
        assert torch.equal(render(image, row, spec)[0], render(image, row, spec)[0])


# Sizes, derived views, batches.


def test_several_sizes_show_the_same_box_and_colors():
    image, ops = some_image(height=90, width=80), PRESETS["strong"]
    spec = ViewSpec(ops, (64, 32, 16))
    (row,) = draw(spec, [image])
    views = render(image, row, spec)
    assert [view.shape[1] for view in views] == [64, 32, 16]
    for view, size in zip(views, spec.sizes, strict=True):
        alone = ViewSpec(ops, (size,))
        assert torch.equal(draw(alone, [image])[0], row)
        assert torch.equal(view, render(image, row, alone)[0])


def test_a_derived_view_continues_its_parents_picture():
    image, parent = some_image(), ViewSpec(PRESETS["strong"], (32,))
    child = derive([parent], 0, [Solarize(prob=1.0)])
    (picture,) = render(image, draw(parent, [image])[0], parent)
    (continued,) = render(image, draw(child, [image], view=1)[0], child)
    assert torch.equal(continued, torch.where(picture >= 0.5, 1 - picture, picture))


@pytest.mark.parametrize("name", HEAVY)
def test_a_heavy_view_continues_its_standard_views_picture(name):
    image, standard = some_image(), ViewSpec(PRESETS["dssl_imagenet"], (32,))
    heavy, alone = derive([standard], 0, HEAVY[name]), ViewSpec((Resize(), *HEAVY[name]), (32,))
    (of_standard,) = draw(standard, [image])
    (of_heavy,) = draw(heavy, [image], view=1)
    (picture,) = render(image, of_standard, standard)
    (expected,) = render(picture, of_heavy[len(of_standard) :], alone)
    assert_same(render(image, of_heavy, heavy)[0], expected)


def test_a_batch_is_its_images_stacked():
    images = [some_image(height=20 + index, width=30) for index in range(5)]
    spec = ViewSpec(PRESETS["strong"], (32, 16))
    parameters = draw(spec, images)
    batch = render_batch(images, parameters, spec)
    assert [views.shape for views in batch] == [(5, 3, 32, 32), (5, 3, 16, 16)]
    for index, image in enumerate(images):
        for views, view in zip(batch, render(image, parameters[index], spec), strict=True):
            assert torch.equal(views[index], view)


# Errors.


@pytest.mark.parametrize("value", [-0.5, 1.5, 255.0, float("nan")])
def test_a_floating_image_outside_the_unit_interval_is_refused(value):
    image = torch.rand(3, 8, 8)
    image[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        render(image, numbers(), eval_spec(8))


def test_an_image_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"uint8, uint16 or floating, got torch\.int64"):
        render(torch.zeros(3, 8, 8, dtype=torch.int64), numbers(), eval_spec(8))


def test_parameters_of_another_view_are_refused():
    with pytest.raises(ValueError, match="'strong' has 12 parameters, got 5"):
        render(some_image(), numbers(0, 0, 1, 1, 0), ViewSpec(PRESETS["strong"], (32,), "strong"))


def test_images_of_different_channel_counts_do_not_make_a_batch():
    with pytest.raises(ValueError, match=r"images of \[1, 3\] channels"):
        render_batch([some_image(1), some_image(3)], torch.zeros(2, 0, dtype=torch.float64), eval_spec(8))
