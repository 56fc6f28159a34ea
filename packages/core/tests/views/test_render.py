"""Each op against torchvision's function, on float32 images as the definition asks, and what any image may be."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as oracle

from ssl_core.views import (
    JITTER_ORDERS,
    PRESETS,
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
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


def assert_same(actual, expected, atol=1e-6):
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


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "shape",
    [(40, 60), (61, 40), (50, 50), (20, 30), (375, 500), (1, 1)],
    ids=str,
)
def test_centre_crops_are_torchvisions_resize_and_centre_crop(shape, interpolation):
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


def test_resize_squashes_the_whole_image():
    image = some_image()
    (view,) = render(image, numbers(), ViewSpec((Resize(),), (32,)))
    assert_same(view, oracle.resize(unit(image), [32, 32], antialias=True))


def test_an_image_of_the_views_size_is_left_as_it_is():
    image = some_image(height=32, width=32)
    for op in (CenterCrop(), Resize()):
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


def test_flip_gray_and_solarising_are_applied_when_their_parameter_says_so():
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
    assert_same(view, expected, atol=3e-6)  # rounding of hue, magnified by the factors after it


def test_the_whole_strong_view_is_torchvisions_functions_in_order():
    spec = ViewSpec(PRESETS["strong_beta"], (32,))
    images = [some_image(height=30 + index, width=50) for index in range(40)]
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
            near = (expected - 0.5).abs() < 1e-5  # rounding decides on which side of the threshold
            expected = torch.where(near, 0.5, oracle.solarize(expected, 0.5))
        if flipped:
            expected = oracle.horizontal_flip(expected)
        assert_same(render(image, row, spec)[0], expected, atol=1e-5)


# What an image may be.


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("shape", [(1, 1), (3000, 2), (2, 90), (32, 32), (37, 53)], ids=str)
def test_any_channels_type_and_shape_give_a_view_in_the_unit_interval(count, shape):
    spec = ViewSpec(PRESETS["strong_beta"], (32,))
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
@pytest.mark.parametrize("preset", ["plain", "strong_beta"])
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


def test_several_sizes_show_the_same_box_and_colours():
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
