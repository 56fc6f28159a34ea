"""Packing, the choice of a renderer, and what a call with any renderer promises."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from ssl_core.ops import cpp
from ssl_core.ops.instructions import PackedImages, View
from ssl_core.ops.render_views import render_views as run_programs
from ssl_core.testing import ROUNDING
from ssl_core.views import (
    PRESETS,
    RENDERERS,
    Choice,
    HorizontalFlip,
    Jigsaw,
    RandomResizedCrop,
    Solarize,
    ViewSpec,
    choose_renderer,
    derive,
    pack_images,
    render,
    render_views,
    sample_parameters,
    unpack_images,
)

CPU = torch.device("cpu")
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
RUNNING = ["reference", *(["cpu"] if cpp.has_kernels(CPU) else [])]


def some_image(height, width, dtype=torch.uint8, channels=3):
    levels = {torch.uint8: 255, torch.uint16: 65535}.get(dtype)
    image = torch.rand(channels, height, width, generator=torch.Generator().manual_seed(height * width))
    return image.to(dtype) if levels is None else (image * levels).round().to(dtype)


def sampled(specs, images):
    return [
        sample_parameters(
            spec,
            seed=0,
            epoch=0,
            image_index=torch.arange(len(images.layout)),
            view_index=index,
            image_size=images.layout[:, 1:3],
        )
        for index, spec in enumerate(specs)
    ]


def test_packed_images_are_the_images():
    images = [some_image(5, 7), some_image(1, 1), some_image(4, 3).permute(0, 2, 1)]
    packed = pack_images(images)
    assert packed.pixels.numel() == 3 * (35 + 1 + 12)
    for unpacked, image in zip(unpack_images(packed), images, strict=True):
        assert torch.equal(unpacked, image)


def test_pixels_of_whole_rows_are_packed_as_they_lie():
    decoded = some_image(5, 7).permute(1, 2, 0).contiguous()
    packed = pack_images([decoded.permute(2, 0, 1)])
    assert torch.equal(packed.pixels, decoded.flatten())


@pytest.mark.parametrize("finest", [torch.uint16, torch.float32, torch.float64], ids=str)
def test_images_of_several_dtypes_keep_their_values(finest):
    images = [some_image(6, 5), some_image(3, 8, finest)]
    packed = pack_images(images)
    assert packed.pixels.dtype == (torch.uint16 if finest == torch.uint16 else torch.float32)
    spec = ViewSpec(PRESETS["plain"], (4,))
    nothing = torch.empty(0, dtype=torch.float64)
    for unpacked, image in zip(unpack_images(packed), images, strict=True):
        assert torch.equal(render(unpacked, nothing, spec)[0], render(image, nothing, spec)[0])


def test_images_that_make_no_batch_are_refused():
    with pytest.raises(ValueError, match="no images: a batch needs one at least"):
        pack_images([])
    with pytest.raises(ValueError, match=r"images of \[1, 3\] channels do not make a batch; set data.channels"):
        pack_images([some_image(4, 4), some_image(4, 4, channels=1)])
    with pytest.raises(TypeError, match=r"must be uint8, uint16 or floating, got torch.int64: convert it first"):
        pack_images([torch.zeros(3, 4, 4, dtype=torch.int64)])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got values in \[0.0, 2.0\]: rescale it"):
        pack_images([torch.tensor([0.0, 2.0, 1.0]).view(3, 1, 1)])


@pytest.mark.parametrize("renderer", RUNNING)
def test_a_call_gives_every_size_of_every_view_normalized(renderer):
    images = pack_images([some_image(20, 30), some_image(40, 25)])
    specs = [ViewSpec(PRESETS["weak"], (8,)), ViewSpec(PRESETS["strong"], (16, 9))]
    parameters = sampled(specs, images)
    numbers = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    views = render_views(images, parameters, specs, renderer=renderer, **numbers)
    assert [view.shape for view in views] == [(2, 3, 8, 8), (2, 3, 16, 16), (2, 3, 9, 9)]
    mean, std = (torch.tensor(values)[:, None, None] for values in numbers.values())
    # Places between pixels, of up to 40, are rounded, and jitter makes the pixels' differences 1.4 times as large.
    atol = (1.4 * 40 * ROUNDING / std.min()).item()
    for row, image in enumerate(unpack_images(images)):
        pictures = [
            picture
            for spec, drawn in zip(specs, parameters, strict=True)
            for picture in render(image, drawn[row], spec)
        ]
        for view, picture in zip(views, pictures, strict=True):
            torch.testing.assert_close(view[row], (picture - mean) / std, rtol=0, atol=atol)


@pytest.mark.parametrize("renderer", RUNNING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_views_have_the_dtype_and_the_memory_asked_for(dtype, renderer):
    images = pack_images([some_image(20, 30)] * 2)
    specs = [ViewSpec(PRESETS["weak"], (8,))]
    parameters = sampled(specs, images)
    (plain,) = render_views(images, parameters, specs, renderer=renderer, **PLAIN)
    (view,) = render_views(images, parameters, specs, renderer=renderer, dtype=dtype, channels_last=True, **PLAIN)
    assert view.dtype == dtype
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(view.contiguous(), plain.to(dtype))


@pytest.mark.parametrize("renderer", RUNNING)
def test_a_derived_view_goes_on_from_its_parents_picture(renderer):
    images = pack_images([some_image(20, 30)] * 2)
    standard = ViewSpec((RandomResizedCrop(), HorizontalFlip(prob=1.0)), (8,))
    specs = [standard, derive([standard], 0, [Solarize(prob=1.0, threshold=0.0)])]
    parent, derived = render_views(images, sampled(specs, images), specs, renderer=renderer, **PLAIN)
    assert torch.equal(derived, 1 - parent)


@pytest.mark.parametrize("renderer", RUNNING)
def test_a_view_of_one_pixel_leaves_the_memory_of_the_others_as_asked_for(renderer):
    images = pack_images([some_image(20, 30)] * 2)
    specs = [ViewSpec((RandomResizedCrop(),), (1, 16))]
    parameters = sampled(specs, images)
    plain = render_views(images, parameters, specs, renderer=renderer, **PLAIN)
    last = render_views(images, parameters, specs, renderer=renderer, channels_last=True, **PLAIN)
    assert all(torch.equal(one, other) for one, other in zip(plain, last, strict=True))


@pytest.mark.parametrize("renderer", RUNNING)
def test_no_views_are_no_pictures(renderer):
    assert render_views(pack_images([some_image(4, 4)]), [], [], renderer=renderer, **PLAIN) == ()


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        ([], "view 0: its instructions do not end at its size of 8 pixels"),
        ([[7, 0, 0, 0, 0, -1, 0]], "view 0: its instructions do not end at its size of 8 pixels"),
        ([[3, 0, 9, 0, 0, -1, 0]], "view 0: its instructions do not end at its size of 8 pixels"),
        ([[0, 1, 0, 0, 0, -1, 0]], "view 0: CROP reads 4 parameters from column 1 on .* but there are 4"),
        ([[0, 0, 0, 0, 0, -1, 0], [10, 0, 3, 0, 0, -1, 0]], "JIGSAW reads 9 parameters from column 0 on"),
        (
            [[0, 0, 0, 0, 0, -1, 0], [6, 0, 0, 0, 0, 4, 0]],
            "GRAY reads 1 parameters .* condition in column 4, but there",
        ),
        ([[0, 0, 0, 0, 0, 2, 0]], "CROP changes a picture's size and takes no condition"),
        ([[0, 0, 0, 0, 0, -1, 0], [11, 0, 0, 0, 0, -1, 0]], "no opcode has number 11: 0 is CROP and 10 is JIGSAW"),
    ],
)
def test_a_program_that_cannot_be_run_is_refused(instructions, message):
    view = View(torch.tensor(instructions, dtype=torch.float64).view(-1, 7), torch.zeros(1, 4, dtype=torch.float64), 8)
    with pytest.raises(ValueError, match=message):
        run_programs(pack_images([some_image(20, 20)]), [view], mean=torch.zeros(3), std=torch.ones(3))


def test_parameters_of_another_view_are_refused():
    images = pack_images([some_image(20, 30)])
    specs = [ViewSpec(PRESETS["weak"], (8,), name="weak")]
    with pytest.raises(ValueError, match="view 'weak' has 5 parameters, got 4"):
        render_views(images, [sampled(specs, images)[0][:, :4]], specs, renderer="reference", **PLAIN)


def test_a_renderer_that_cannot_run_is_refused_with_those_that_can():
    with pytest.raises(
        ValueError, match=r"data.renderer device: it runs on CUDA devices .*; there is auto, .*reference"
    ):
        choose_renderer("device", CPU)
    with pytest.raises(ValueError, match=r"data.renderer fast: there is no renderer of that name; there is auto"):
        choose_renderer("fast", CPU)


def test_auto_takes_the_reference_where_there_are_no_kernels(monkeypatch):
    monkeypatch.setattr(cpp, "_MISSING", "no compiler")
    assert choose_renderer("auto", CPU, []) == "reference"
    with pytest.raises(ValueError, match=r"data.renderer cpu: no compiler; there is auto, reference"):
        choose_renderer("cpu", CPU)


@pytest.mark.skipif(not cpp.has_kernels(CPU), reason="needs the compiled kernels")
def test_auto_takes_the_kernels_and_then_the_environments_wish(monkeypatch):
    assert choose_renderer("auto", CPU, []) == "cpu"
    monkeypatch.setenv("SSL_CORE_BACKEND", "reference")
    assert choose_renderer("auto", CPU, []) == "reference"
    assert set(RENDERERS) == {"device", "cpu", "reference"}


@dataclass(frozen=True)
class Negative:
    """An op that nobody has written a kernel for."""

    name: ClassVar[str] = "negative"
    parameters: ClassVar[tuple[str, ...]] = ()
    num_draws: ClassVar[int] = 0

    def sample(self, draws, size, side):
        return draws

    def render(self, image, values, side):
        return 1 - image

    def instructions(self):
        return None


REFERENCE_ONLY = {
    "view": ViewSpec((RandomResizedCrop(), Negative()), (8,), name="strange"),
    "choice": ViewSpec((RandomResizedCrop(), Choice(0.5, (), (Negative(),))), (8,), name="strange"),
}


@pytest.mark.skipif(not cpp.has_kernels(CPU), reason="needs the compiled kernels")
@pytest.mark.parametrize("spec", REFERENCE_ONLY.values(), ids=REFERENCE_ONLY)
def test_auto_takes_the_reference_for_an_op_without_kernels_and_says_so(caplog, spec):
    caplog.set_level("INFO")
    weak = ViewSpec(PRESETS["weak"], (8,))
    assert choose_renderer("auto", CPU, [weak]) == "cpu"
    assert not caplog.messages
    assert choose_renderer("auto", CPU, [weak, spec]) == "reference"
    reason = "view 'strange': negative is rendered by the reference alone"
    assert caplog.messages == [f"views are rendered by reference, and not by cpu: {reason}"]


@pytest.mark.skipif(not cpp.has_kernels(CPU), reason="needs the compiled kernels")
@pytest.mark.parametrize("spec", REFERENCE_ONLY.values(), ids=REFERENCE_ONLY)
def test_a_renderer_without_a_kernel_for_an_op_refuses_it(spec):
    message = "view 'strange': negative is rendered by the reference alone"
    with pytest.raises(ValueError, match=f"data.renderer cpu: {message}; there is auto, reference"):
        choose_renderer("cpu", CPU, [spec])
    assert choose_renderer("reference", CPU, [spec]) == "reference"
    images = pack_images([some_image(20, 30)])
    with pytest.raises(ValueError, match=message):
        render_views(images, sampled([spec], images), [spec], renderer="cpu", **PLAIN)


@pytest.mark.skipif(not cpp.has_kernels(CPU), reason="needs the compiled kernels")
def test_kernels_that_are_older_than_an_opcode_refuse_it(monkeypatch, caplog):
    caplog.set_level("INFO")
    specs = [ViewSpec((RandomResizedCrop(), Jigsaw(2)), (8,))]
    images = pack_images([some_image(20, 30)])
    monkeypatch.setattr(cpp._C, "opcodes", cpp._C.opcodes[:-1])
    assert choose_renderer("auto", CPU, specs) == "reference"
    assert caplog.messages == ["views are rendered by reference, and not by cpu: it has no kernel of JIGSAW"]
    with pytest.raises(ValueError, match=r"data.renderer cpu: it has no kernel of JIGSAW"):
        choose_renderer("cpu", CPU, specs)
    with pytest.raises(ValueError, match="it has no kernel of JIGSAW"):
        render_views(images, sampled(specs, images), specs, renderer="cpu", **PLAIN)


@pytest.mark.skipif(not cpp.has_kernels(CPU), reason="needs the compiled kernels")
def test_an_opcode_that_the_kernels_do_not_know_is_an_error_of_theirs():
    # What the op that calls them refuses before: a library that is older than its check.
    instructions = torch.tensor([[0, 0, 0, 0, 0, -1, 0], [11, 0, 0, 0, 0, -1, 0]], dtype=torch.float64)
    view = View(instructions, torch.tensor([[0, 0, 8, 8]], dtype=torch.float64), 8)
    result = torch.empty(1, 3, 8, 8)
    with pytest.raises(ValueError, match="no opcode of the compiled kernels has number 11: 0 is crop and 10 is jigsaw"):
        cpp.render_views(pack_images([some_image(20, 20)]), [view], torch.zeros(3), torch.ones(3), [result])


@pytest.mark.skipif(not cpp.has_kernels(CPU), reason="needs the compiled kernels")
@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([0, 4, 4, 16, 4, 1], "image 0 ends at 47 of 40 pixels"),
        ([1, 2, 2, -1, 2, 1], "a layout holds a negative number, or an image without pixels"),
        ([0, 0, 2, 4, 2, 1], "a layout holds a negative number, or an image without pixels"),
    ],
    ids=["beyond the end", "negative", "empty"],
)
def test_an_image_outside_its_memory_is_refused(layout, message):
    images = PackedImages(torch.zeros(40, dtype=torch.uint8), torch.tensor([layout]), 3)
    spec = ViewSpec(PRESETS["plain"], (2,))
    with pytest.raises(ValueError, match=message):
        render_views(images, [torch.empty(1, 0, dtype=torch.float64)], [spec], renderer="cpu", **PLAIN)


@pytest.mark.skipif(not cpp.has_kernels(CPU), reason="needs the compiled kernels")
def test_the_number_of_threads_changes_nothing():
    images = pack_images([some_image(20 + i, 30 - i) for i in range(9)])
    specs = [ViewSpec(PRESETS["clsa_strong"], (16,))]
    parameters, threads = sampled(specs, images), torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(render_views(images, parameters, specs, renderer="cpu", **PLAIN)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
