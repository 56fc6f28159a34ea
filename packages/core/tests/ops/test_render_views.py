"""Compiled renderers against the reference: op by op, every recipe's view, and programs that nobody thought of."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ssl_core.ops import _triton, cpp
from ssl_core.ops.instructions import PackedImages
from ssl_core.testing import ROUNDING, SINGLE
from ssl_core.views import (
    DISTORTIONS,
    HEAVY,
    JITTER_ORDERS,
    POOLS,
    PRESETS,
    RENDERERS,
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
    num_parameters,
    pack_images,
    render_views,
    sample_parameters,
)

needs_interpreter = pytest.mark.skipif(
    not _triton.is_interpreted(), reason="needs TRITON_INTERPRET=1: nox -s tests_interpret"
)
BACKENDS = [
    *(f"cpp {isa}" for isa in cpp.instruction_sets()),
    pytest.param("triton", marks=needs_interpreter),
]
EVERY = pytest.mark.parametrize("renderer", BACKENDS, indirect=True)
# The interpreter takes a second for each.
FEWER = {"device": {"max_examples": 12}}


@pytest.fixture
def renderer(request, monkeypatch):
    """The name of a back-end's renderer, with the instruction set of the parameter in force."""
    backend, _, isa = request.param.partition(" ")
    monkeypatch.setenv("SSL_CORE_CPU_ISA", isa)
    (name,) = (name for name, each in RENDERERS.items() if each == backend)
    return name


class Tolerance(NamedTuple):
    """Largest and mean error on [0, 1], of all values but a fraction of outliers."""

    largest: float
    mean: float
    outliers: float = 0.0


def roundings(number):
    """As many to float32, of values below 1, at most; they fall either way: a tenth of that, or a half, in the mean."""
    return Tolerance(number * ROUNDING, max(0.5, number / 10) * ROUNDING)


EXACT = roundings(1)  # the same level: level / 255 to one unit in the last place
RESIZED = roundings(32)  # places between pixels are rounded, by half the distance of two numbers from 32 to 64
BLENDED = roundings(8)
# Of single ops on 8-bit images.
TOLERANCE = {
    "random_resized_crop": RESIZED,
    "random_crop": EXACT,
    "center_crop": RESIZED,
    "resize": RESIZED,
    "horizontal_flip": EXACT,
    "color_jitter": roundings(32),  # factors of 1.6, 1.5 and 1.7 magnify the 8 of blends
    "grayscale": roundings(3),
    "gaussian_blur": roundings(16),
    "solarize": EXACT,
    "jigsaw": EXACT,
    "identity": EXACT,
    "autocontrast": EXACT,
    "brightness": EXACT,
    "color": BLENDED,
    "contrast": BLENDED,
    "equalize": EXACT,
    "invert": EXACT,
    "posterize": EXACT,
    "rotate": EXACT,
    "sharpness": BLENDED,
    "shear_x": EXACT,
    "shear_y": EXACT,
    "translate_x": EXACT,
    "translate_y": EXACT,
    "solarize_add": EXACT,
    "cutout": EXACT,
    "translate_x_px": EXACT,
    "translate_y_px": EXACT,
}
# Of whole views. Where levels are cut, an error of 1e-7 before makes one of a level or, if inverted, more; equalize
# and autocontrast make one of a level in all pixels of some levels, which others may amplify.
SMOOTH = roundings(160)  # those of resizing, magnified by several jitters' factors
CUT = SMOOTH._replace(outliers=0.05)
# Random programs have pictures of a few pixels, of which one tie of exact levels is more than a near cut may be.
CUT_AT_RANDOM = Tolerance(8 / 255, 1 / 255, outliers=0.05)


def some_image(channels, height, width, dtype=torch.uint8, seed=0):
    """Noise upon a slope."""
    generator = torch.Generator().manual_seed(seed + 1000 * channels + 100 * height + width)
    slope = torch.linspace(0, 1, height)[:, None] * torch.linspace(0.2, 1, width)
    image = 0.7 * slope + 0.3 * torch.rand(channels, height, width, generator=generator)
    levels = {torch.uint8: 255, torch.uint16: 65535}.get(dtype)
    return image if levels is None else (image * levels).round().to(dtype)


# None of them a multiple of another; thin ones, and one that is a single pixel.
SHAPES = [(40, 57), (33, 31), (1, 1), (61, 2), (3, 70)]


def some_images(channels=3, dtype=torch.uint8):
    return [some_image(channels, *shape, dtype) for shape in SHAPES]


def sampled(specs, images, seed=0):
    size = torch.tensor([image.shape[1:] for image in images])
    index = torch.arange(len(images))
    return [
        sample_parameters(spec, seed=seed, epoch=0, image_index=index, view_index=view, image_size=size)
        for view, spec in enumerate(specs)
    ]


def assert_within(actual, expected, tolerance):
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs()
    assert not error.isnan().any()
    far = error > tolerance.largest
    assert far.double().mean() <= tolerance.outliers, (
        f"{int(far.sum())} of {far.numel()}, the largest {error.max():.2e}"
    )
    mean = error.masked_fill(far, 0).mean()
    assert mean <= tolerance.mean, f"mean error {mean:.2e}"


def assert_drawn(renderer, images, parameters, specs, tolerance):
    """The renderer's pictures are the reference's; images are a list, or packed."""
    packed = images if isinstance(images, PackedImages) else pack_images(images)
    numbers = {"mean": [0.0] * packed.channels, "std": [1.0] * packed.channels}

    def drawn(packed, renderer):
        return render_views(packed, parameters, specs, renderer=renderer, **numbers)

    actual, expected = drawn(packed, renderer), drawn(packed, "reference")
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert_within(one, other, tolerance)
    if tolerance is CUT and not all(map(torch.allclose, actual, expected)):
        # An outlier is near a cut: there the reference draws both sides, of pixels as far off as roundings may be. It
        # lies between them, or as far beyond as a mean over pixels of which more change sides. All but a thousandth
        # do: of exact levels an op may make a tie that the next one cuts, whatever the last bits of the pixels.
        nudged = [drawn(images, "reference") for images in nudges(packed)]
        for one, others in zip(actual, zip(expected, *nudged, strict=True), strict=True):
            low, high = torch.stack(others).aminmax(dim=0)
            assert_within(one.clamp(2 * low - high, 2 * high - low), one, CUT._replace(outliers=1e-3))


def nudges(packed, num_pairs=8):
    """The images with every pixel a little brighter or darker, at random, and the other way round."""
    levels = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}[packed.pixels.dtype]
    pixels, generator = packed.pixels / levels, torch.Generator().manual_seed(0)
    for _ in range(num_pairs):
        noise = SMOOTH.largest * torch.randint(0, 2, pixels.shape, generator=generator).sub(0.5).sign()
        yield from (packed._replace(pixels=(pixels + nudge).clamp(0, 1)) for nudge in (noise, -noise))


def assert_op_is_drawn(renderer, op, rows, shape, *, channels=3, tolerance=None):
    """The op with each row of parameters, on images that are cut without resizing so that they stay 8-bit levels."""
    images = [some_image(channels, *shape, seed=index) for index in range(len(rows))]
    side = min(shape)
    spec = ViewSpec((RandomCrop(), op), (side,))
    parameters = torch.tensor([[0.0, 0.0, *row] for row in rows], dtype=torch.float64)
    assert_drawn(renderer, images, [parameters], [spec], tolerance or TOLERANCE[op.name])


# Geometry.


@EVERY
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "shape"), [(1, (12, 9)), (31, (40, 57)), (33, (40, 57))], ids=str)
def test_crops_are_resized_with_antialias(renderer, interpolation, side, shape):
    height, width = shape
    boxes = [
        (0, 0, height, width),
        (3, 2, side, side),
        (7, 6, 1, 1),
        (0, width - 1, height, 1),
        (height - 1, 0, 1, width),
        (2, 3, 9, 5),
    ]
    spec = ViewSpec((RandomResizedCrop(interpolation=interpolation),), (side,))
    images = [some_image(3, height, width)] * len(boxes)
    parameters = torch.tensor(boxes, dtype=torch.float64)
    assert_drawn(renderer, images, [parameters], [spec], TOLERANCE["random_resized_crop"])


@EVERY
def test_windows_show_zeros_outside_the_image(renderer):
    corners = [(0, 0), (-4, -4), (9, 30), (-33, 57), (40, -33), (-20, 3), (-34, -40), (3, -50), (90, 90)]
    images = [some_image(3, 40, 57)] * len(corners)
    parameters = torch.tensor(corners, dtype=torch.float64)
    assert_drawn(renderer, images, [parameters], [ViewSpec((RandomCrop(),), (33,))], TOLERANCE["random_crop"])


@EVERY
@pytest.mark.parametrize(
    ("op", "side"),
    [
        *[(CenterCrop(short_side), side) for short_side, side in ((None, 31), (33, 32), (35, 32), (70, 33))],
        (CenterCrop(33, "bicubic"), 32),
        *[
            (Resize(interpolation=name, mode=mode), 32)
            for name in ("bilinear", "bicubic")
            for mode in ("squash", "pad")
        ],
    ],
    ids=str,
)
def test_whole_images_of_any_shape_are_resized(renderer, op, side):
    images = some_images()
    assert_drawn(
        renderer, images, [torch.zeros(len(images), 0).double()], [ViewSpec((op,), (side,))], TOLERANCE[op.name]
    )


@EVERY
def test_images_that_are_resized_twice_go_through_the_size_between(renderer):
    images = some_images()
    specs = [
        ViewSpec((Resize(45), RandomResizedCrop(), HorizontalFlip()), (31,)),
        ViewSpec((Resize(12, "bicubic", "pad"), ColorJitter(), CenterCrop(40)), (33,)),
        ViewSpec((Resize(50), RandomCrop(padding=4), GaussianBlur()), (32,)),
    ]
    assert_drawn(renderer, images, sampled(specs, images), specs, SMOOTH)


@EVERY
def test_padding_rounds_halves_of_a_pixel_to_even(renderer):
    # 18 * 10 / 40 is 4.5 and becomes 4; 22 * 10 / 40 is 5.5 and becomes 6.
    images = [some_image(3, 40, 18), some_image(3, 40, 22), some_image(3, 22, 40)]
    spec = ViewSpec((Resize(mode="pad"),), (10,))
    assert_drawn(renderer, images, [torch.zeros(3, 0).double()], [spec], TOLERANCE["resize"])


@EVERY
@pytest.mark.parametrize("op", [RandomResizedCrop((1.0, 1.0), interpolation="bicubic"), CenterCrop(40, "bicubic")])
def test_bicubic_overshoots_are_clipped_before_the_next_op(renderer, op):
    images = [(torch.rand(3, 20, 20) > 0.5).to(torch.uint8) * 255]
    specs = [ViewSpec((op, Grayscale(prob=1.0)), (33,))]
    assert_drawn(renderer, images, sampled(specs, images), specs, SMOOTH)


@EVERY
def test_flips_mirror_columns(renderer):
    for shape in ((1, 1), (31, 31), (32, 32), (33, 33)):
        assert_op_is_drawn(renderer, HorizontalFlip(), [(1.0,), (0.0,)], shape)


@EVERY
def test_a_box_that_reaches_beyond_the_image_is_cut(renderer):
    boxes = [(30.0, 50.0, 40.0, 40.0), (-3.0, 2.0, 10.0, 10.0), (39.0, 56.0, 1.0, 1.0), (60.0, 70.0, 5.0, 5.0)]
    inside = [(30.0, 50.0, 10.0, 7.0), (0.0, 2.0, 10.0, 10.0), (39.0, 56.0, 1.0, 1.0), (39.0, 56.0, 1.0, 1.0)]
    images = pack_images([some_image(3, 40, 57)] * 4)
    specs = [ViewSpec((RandomResizedCrop(),), (16,))]
    found, expected = (
        render_views(images, [torch.tensor(rows).double()], specs, renderer=renderer, mean=(0.0,) * 3, std=(1.0,) * 3)[
            0
        ]
        for rows in (boxes, inside)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("renderer", BACKENDS[:-1], indirect=True)  # a GPU's addresses are not checked
def test_parameters_that_are_no_numbers_of_an_op_are_survived(renderer):
    images = [some_image(3, 20, 20)] * 4
    spec = ViewSpec((RandomCrop(), GaussianBlur(), ColorJitter(), RandAugment("dssl_code16", 1)), (20,))
    rows = torch.tensor([[0, 0, -3, 1, 1, 1, 0, 99, 0, 0, 0, 0]] * 4, dtype=torch.float64)
    rows[1, 0], rows[2, 1], rows[3, 8:10] = float("nan"), 1e300, torch.tensor([16, -1e300], dtype=torch.float64)
    (view,) = render_views(pack_images(images), [rows], [spec], renderer=renderer, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert_within(view[0], images[0] / 255, EXACT)


@EVERY
@pytest.mark.parametrize("number", [19.0, -1.0, 1.5, float("nan"), 1e300])
def test_a_number_that_is_no_distortion_is_refused(renderer, number):
    images = pack_images([some_image(3, 20, 20)] * 3)
    spec = ViewSpec((RandomCrop(), RandAugment("dssl_code16", 2)), (20,))
    rows = torch.tensor([[0.0, 0.0, *[1.0, 0.0, 0.0, 0.0] * 2]] * 3, dtype=torch.float64)
    rows[1, 6] = number
    with pytest.raises(ValueError, match=rf"distortion .*{number:g}".replace("+", r"\+")):
        render_views(images, [rows], [spec], renderer=renderer, mean=(0.0,) * 3, std=(1.0,) * 3)


@EVERY
def test_what_a_choice_does_not_take_may_be_any_number(renderer):
    images = [some_image(3, 20, 20)]
    spec = ViewSpec((RandomCrop(), Choice(0.5, (), (RandAugment("dssl_code16", 1),))), (20,))
    assert_drawn(renderer, images, [torch.tensor([[0, 0, 1, 99, 0, 0, 0]]).double()], [spec], EXACT)


@EVERY
def test_a_crop_after_a_flip_is_of_the_mirrored_picture(renderer):
    spec = ViewSpec((Resize(40), HorizontalFlip(prob=1.0), RandomCrop()), (32,))
    images = some_images()
    assert_drawn(renderer, images, sampled([spec], images), [spec], TOLERANCE["resize"])


@EVERY
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_row_of_any_length_is_resized(renderer, interpolation):
    # As many pixels of the result as a vector has see from a few to many of the image.
    images = [some_image(1, 2, width) for width in (*range(30, 80, 3), 111, 160, 400)]
    spec = ViewSpec((Resize(None, interpolation),), (33,))
    nothing = torch.empty(len(images), 0, dtype=torch.float64)
    assert_drawn(renderer, images, [nothing], [spec], TOLERANCE["resize"])


@EVERY
@pytest.mark.parametrize(("grid", "side"), [(2, 2), (2, 34), (4, 32), (3, 33), (5, 35)])
def test_cells_are_shuffled(renderer, grid, side):
    rows = [torch.randperm(grid**2).double().tolist() for _ in range(2)] + [list(map(float, range(grid**2)))]
    assert_op_is_drawn(renderer, Jigsaw(grid), rows, (side, side))


# Colors.


@EVERY
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_jitter_changes_colors_in_every_order(renderer, channels):
    orders = range(0, len(JITTER_ORDERS), 1 if channels == 3 else 5)
    rows = [(0.6 + 0.04 * order, 1.5 - 0.03 * order, 1.7, 0.5 - 0.04 * order, order) for order in orders]
    assert_op_is_drawn(renderer, ColorJitter(), rows, (9, 9), channels=channels)


@EVERY
@pytest.mark.parametrize("side", [1, 33])
def test_jitter_of_extreme_amounts_and_of_none(renderer, side):
    # Factors of 9 make errors 9 times as large, each.
    rows = [
        (1.0, 1.0, 1.0, 0.0, 7.0),
        (0.0, 1.0, 1.0, 0.0, 0.0),
        (1.0, 0.0, 1.0, 0.0, 5.0),
        (1.0, 1.0, 0.0, 0.0, 11.0),
        (9.0, 9.0, 9.0, 0.5, 23.0),
        (1.0, 1.0, 9.0, -0.5, 2.0),
        (1.0, 1.0, 1.0, 1 / 3, 2.0),
        (1.0, 1.0, 1.0, 1e-9, 2.0),
    ]
    assert_op_is_drawn(renderer, ColorJitter(), rows, (side, side), tolerance=Tolerance(9**3 * 2 * ROUNDING, SINGLE))


@EVERY
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_gray_is_that_of_the_channels(renderer, channels):
    assert_op_is_drawn(renderer, Grayscale(), [(1.0,), (0.0,)], (33, 33), channels=channels)


@EVERY
@pytest.mark.parametrize("threshold", [0.0, 128 / 255, 0.5, 1.0])
def test_values_from_the_threshold_on_are_inverted(renderer, threshold):
    assert_op_is_drawn(renderer, Solarize(threshold=threshold), [(1.0,), (0.0,)], (33, 33))


@EVERY
@pytest.mark.parametrize("side", [1, 2, 33])
def test_blur_reflects_at_the_edges_of_any_size(renderer, side):
    rows = [(0.0,), (1e-3,), (0.1,), (1 / 3,), (2.0,), (side / 3 + 0.1,), (7.0,)]
    assert_op_is_drawn(renderer, GaussianBlur(), rows, (side, side))


MAGNITUDES = {
    "brightness": [0.0, 0.05, 1.0, 1.9],
    "color": [0.0, 0.05, 1.0, 1.9],
    "contrast": [0.0, 0.05, 1.0, 1.9],
    "sharpness": [0.0, 0.05, 1.0, 1.9],
    "posterize": [0.0, 1.0, 4.0, 7.0, 8.0],
    "rotate": [0.0, 30.0, -7.3, 90.0, -90.0, 180.0, 45.0],
    "shear_x": [0.0, 0.3, -0.3, 0.01],
    "shear_y": [0.0, 0.3, -0.3, 0.01],
    "solarize": [0.0, 0.5, 128.0, 255.0, 256.0],
    "translate_x": [0.0, 0.3, -0.3, 0.01, 1.0],
    "translate_y": [0.0, 0.3, -0.3, 0.01, -1.0],
    "solarize_add": [0.0, 1.0, 33.0, 110.0],
    "translate_x_px": [0.0, 0.4, 9.5, -9.5, -100.0],
    "translate_y_px": [0.0, 0.5, 9.5, -9.5, 100.0],
}


def distorted_rows(distortion):
    index = float(DISTORTIONS.index(distortion))
    if distortion == "cutout":
        places = [(0.0, 0.0, 0.0), (5.0, 0.5, 0.5), (9.0, 0.02, 0.9), (20.0, 0.999, 0.3), (100.0, 0.5, 0.5)]
        return [(index, *place) for place in places]
    return [(index, magnitude, 0.0, 0.0) for magnitude in MAGNITUDES.get(distortion, [0.0] * 3)]


@EVERY
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_each_distortion_at_ordinary_and_extreme_magnitudes(renderer, distortion, channels):
    op = RandAugment("dssl_code16", num_ops=1)
    rows, tolerance = distorted_rows(distortion), TOLERANCE[distortion]
    assert_op_is_drawn(renderer, op, rows, (33, 33), channels=channels, tolerance=tolerance)


@EVERY
@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_each_distortion_of_images_that_are_not_square(renderer, distortion):
    # Before the first crop, so that each image has its own size.
    images, rows = some_images(), distorted_rows(distortion)
    rows = [rows[index % len(rows)] for index in range(len(images))]
    spec = ViewSpec((RandAugment("dssl_code16", num_ops=1), RandomCrop()), (33,))
    parameters = torch.tensor([[*row, -1.0, -2.0] for row in rows], dtype=torch.float64)
    assert_drawn(renderer, images, [parameters], [spec], TOLERANCE[distortion])


@EVERY
@pytest.mark.parametrize("distortion", ["autocontrast", "equalize"])
def test_flat_channels_and_few_levels_stay_or_stretch_as_in_the_reference(renderer, distortion):
    images = [
        torch.full((3, 20, 20), 77, dtype=torch.uint8),
        torch.stack([torch.full((20, 20), level, dtype=torch.uint8) for level in (0, 128, 255)]),
        torch.randint(0, 2, (3, 20, 20), dtype=torch.uint8) * 255,
        torch.randint(100, 103, (3, 20, 20), dtype=torch.uint8),
    ]
    op = RandAugment("clsa_code14", num_ops=1)
    row = [0.0, 0.0, DISTORTIONS.index(distortion), 0.0]
    parameters = torch.tensor([row] * len(images), dtype=torch.float64)
    assert_drawn(renderer, images, [parameters], [ViewSpec((RandomCrop(), op), (20,))], EXACT)


@EVERY
@pytest.mark.parametrize("distortion", ["autocontrast", "equalize", "posterize", "solarize", "solarize_add"])
def test_values_between_levels_are_rounded_halves_to_even(renderer, distortion):
    image = (torch.arange(3 * 20 * 20).view(3, 20, 20) % 1017 / 4 / 255).float()
    rows, op = distorted_rows(distortion), RandAugment("dssl_code16", num_ops=1)
    parameters = torch.tensor([[0.0, 0.0, *row] for row in rows], dtype=torch.float64)
    assert_drawn(renderer, [image] * len(rows), [parameters], [ViewSpec((RandomCrop(), op), (20,))], EXACT)


# Whole views.


def is_cut(ops):
    """Whether an op cuts to levels or at one, so that the last bit of what came before decides."""
    return any(
        isinstance(op, RandAugment | Solarize) or (isinstance(op, Choice) and is_cut((*op.first, *op.second)))
        for op in ops
    )


@EVERY
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_drawn(renderer, name):
    images, ops = some_images(), PRESETS[name]
    specs = [ViewSpec(ops, (32,))]
    assert_drawn(renderer, images, sampled(specs, images), specs, CUT if is_cut(ops) else SMOOTH)


@EVERY
@pytest.mark.parametrize("name", HEAVY)
def test_every_heavy_view_continues_its_standard_view(renderer, name):
    images = some_images()
    standard = ViewSpec(PRESETS["dssl_imagenet"], (32,))
    specs = [standard, derive([standard], 0, HEAVY[name])]
    assert_drawn(renderer, images, sampled(specs, images), specs, CUT)


@EVERY
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_of_any_dtype_and_number_of_channels(renderer, channels, dtype):
    images = some_images(channels, dtype)
    specs = [ViewSpec(PRESETS["strong_gamma"], (33,)), ViewSpec((Solarize(), CenterCrop()), (8,))]
    assert_drawn(renderer, images, sampled(specs, images), specs, CUT)


@EVERY
def test_several_sizes_and_derived_views_share_what_they_were_told_to(renderer):
    images = some_images()
    standard = ViewSpec(PRESETS["strong"], (33, 16))
    first = [standard, derive([standard], 0, [])]
    specs = [*first, derive(first, 0, [Jigsaw(2)], shared_ops=1, sizes=(8,)), derive(first, 0, [Solarize(1.0)])]
    assert_drawn(renderer, images, sampled(specs, images), specs, CUT)


@EVERY
def test_a_choice_applies_the_ops_of_one_side_only(renderer):
    images = some_images() * 2
    changes = (ColorJitter(prob=1.0), GaussianBlur(prob=1.0), HorizontalFlip(prob=1.0), Jigsaw(4))
    others = (RandAugment("dssl_code16", num_ops=2, prob=1.0), Grayscale(prob=1.0), Solarize(prob=1.0))
    specs = [
        ViewSpec((RandomResizedCrop(), Choice(0.5, changes, others)), (32,)),
        ViewSpec((Choice(0.5, changes[:3], ()), CenterCrop()), (32,)),
    ]
    parameters = sampled(specs, images)
    assert {0.0, 1.0} == set(parameters[0][:, 4].tolist()) == set(parameters[1][:, 0].tolist())
    assert_drawn(renderer, images, parameters, specs, CUT)


@EVERY
def test_images_lie_in_memory_with_any_strides_and_may_be_the_same(renderer):
    pixels = some_image(1, 60, 50).flatten()
    layout = torch.tensor(
        [
            (7, 20, 11, 250, 12, 1),  # planes and rows apart
            (0, 20, 11, 1, 33, 3),  # channels last
            (7, 20, 11, 250, 12, 1),  # the first image again
            (40, 11, 20, 0, 1, 12),  # transposed, one plane for all channels
            (1, 5, 5, 900, 100, 7),  # every seventh pixel
        ]
    )
    packed = PackedImages(pixels, layout, 3)
    specs = [ViewSpec(PRESETS["moco_cifar"], (16,)), ViewSpec(PRESETS["dssl_byol"], (17,))]
    parameters = [
        sample_parameters(
            spec, seed=1, epoch=0, image_index=torch.arange(5), view_index=view, image_size=layout[:, 1:3]
        )
        for view, spec in enumerate(specs)
    ]
    assert_drawn(renderer, packed, parameters, specs, CUT)


@EVERY
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_views_are_normalized_and_rounded_once_into_the_memory_format(renderer, dtype, channels_last):
    images, specs = some_images(), [ViewSpec((CenterCrop(),), (31,))]
    arguments = (pack_images(images), [torch.zeros(len(images), 0).double()], specs)
    numbers = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    (actual,) = render_views(*arguments, renderer=renderer, dtype=dtype, channels_last=channels_last, **numbers)
    (exact,) = render_views(*arguments, renderer="reference", **numbers)
    assert actual.dtype == dtype
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert actual.is_contiguous(memory_format=memory_format)
    spacing = torch.finfo(dtype).eps
    # Half a unit in the last place, as from rounding the exact view, and the error of float32 before.
    atol = TOLERANCE["center_crop"].largest / min(numbers["std"])
    torch.testing.assert_close(actual.float(), exact, rtol=spacing / 2, atol=atol)


@EVERY
def test_no_images_are_no_views(renderer):
    packed = PackedImages(torch.zeros(0, dtype=torch.uint8), torch.zeros(0, 6, dtype=torch.int64), 3)
    spec = ViewSpec(PRESETS["weak"], (8,))
    numbers = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    (view,) = render_views(
        packed, [torch.zeros(0, num_parameters(spec)).double()], [spec], renderer=renderer, **numbers
    )
    assert view.shape == (0, 3, 8, 8)


@EVERY
def test_an_image_is_drawn_the_same_in_any_batch(renderer):
    images, specs = some_images(), [ViewSpec(PRESETS["clsa_strong"], (32,))]
    numbers = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "renderer": renderer}
    (parameters,) = sampled(specs, images)
    (together,) = render_views(pack_images(images), [parameters], specs, **numbers)
    (alone,) = render_views(pack_images(images[1:2]), [parameters[1:2]], specs, **numbers)
    assert torch.equal(together[1:2], alone)


# Programs that nobody thought of.


@st.composite
def problems(draw):
    channels, num_images = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([torch.uint8, torch.uint16, torch.float32]))
    shapes = draw(st.lists(st.tuples(st.integers(1, 45), st.integers(1, 45)), min_size=num_images, max_size=num_images))
    side = draw(st.integers(4, 34))
    pool, prob = draw(st.sampled_from(sorted(POOLS))), draw(st.sampled_from([0.5, 1.0]))
    interpolation = draw(st.sampled_from(["bilinear", "bicubic"]))
    keeps_size = st.sampled_from(
        [
            HorizontalFlip(prob),
            ColorJitter(prob, 0.8, 0.8, 0.8, 0.5),
            Grayscale(prob),
            GaussianBlur(prob, (0.1, 4.0)),
            Solarize(prob, 0.4),
            RandAugment(pool, 2, prob, "continuous"),
        ]
    )
    frames = st.sampled_from(
        [
            RandomResizedCrop((0.01, 1.0), (0.2, 5.0), interpolation),
            RandomCrop(padding=3),
            CenterCrop(side + 5, interpolation),
            Resize(None, interpolation, "pad"),
            Resize(None, interpolation),
        ]
    )
    ops = [*draw(st.lists(keeps_size, max_size=1)), draw(frames), *draw(st.lists(keeps_size, max_size=3))]
    choice = draw(st.none() | st.tuples(*[st.lists(keeps_size, max_size=2).map(tuple)] * 2))
    continuation = draw(st.none() | st.lists(keeps_size, max_size=2))
    return channels, dtype, shapes, side, ops, choice, continuation, draw(st.integers(0, 2**31))


@EVERY
@pytest.mark.hypothesis
@pytest.mark.slow
def test_any_program_draws_the_references_picture(renderer):
    @settings(phases=[Phase.generate], **FEWER.get(renderer, {}))
    @given(problem=problems())
    def check(problem):
        channels, dtype, shapes, side, ops, choice, continuation, seed = problem
        ops = [*ops, *([Choice(0.5, *choice)] if choice else []), *([Jigsaw(2)] if side % 2 == 0 else [])]
        specs = [ViewSpec(tuple(ops), (side,))]
        if continuation is not None:
            specs.append(derive(specs, 0, continuation))
        images = [some_image(channels, *shape, dtype) for shape in shapes]
        tolerance = CUT_AT_RANDOM if any(is_cut(spec.ops) for spec in specs) else SMOOTH
        assert_drawn(renderer, images, sampled(specs, images, seed), specs, tolerance)

    check()


@EVERY
@pytest.mark.hypothesis
@pytest.mark.slow
def test_any_smooth_program_draws_every_pixel_of_the_reference(renderer):
    @settings(phases=[Phase.generate], **FEWER.get(renderer, {}))
    @given(
        channels=st.integers(1, 5),
        dtype=st.sampled_from([torch.uint8, torch.uint16, torch.float32, torch.float64]),
        shape=st.tuples(st.integers(1, 45), st.integers(1, 45)),
        sizes=st.lists(st.integers(1, 34), min_size=1, max_size=3, unique=True),
        seed=st.integers(0, 2**31),
        chosen=st.lists(st.integers(0, 3), max_size=4),
        turned=st.booleans(),
        channels_last=st.booleans(),
    )
    def check(channels, dtype, shape, sizes, seed, chosen, turned, channels_last):
        pool = [HorizontalFlip(), ColorJitter(0.8, 0.8, 0.8, 0.8, 0.5), Grayscale(0.3), GaussianBlur(0.8, (0.1, 3.0))]
        first = RandomResizedCrop((0.05, 1.0), (0.5, 2.0), "bicubic" if turned else "bilinear")
        images = [some_image(channels, *shape, torch.float32 if dtype == torch.float64 else dtype).to(dtype)] * 2
        images = [image.mT if turned else image for image in images]
        specs = [ViewSpec((first, *(pool[index] for index in chosen)), tuple(sizes))]
        specs.append(derive(specs, 0, [pool[0], pool[1]]))
        parameters, packed = sampled(specs, images, seed), pack_images(images)
        numbers = {"mean": (0.4,) * channels, "std": (0.5,) * channels, "channels_last": channels_last}
        expected = render_views(packed, parameters, specs, renderer="reference", **numbers)
        found = render_views(packed, parameters, specs, renderer=renderer, **numbers)
        for one, other in zip(expected, found, strict=True):
            assert (one - other).abs().max() < 2e-4  # up to five jitters, of factors of up to 1.8 each

    check()
