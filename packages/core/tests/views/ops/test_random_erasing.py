import math

import pytest
import torch
from torchvision.transforms.v2 import RandomErasing as Oracle
from torchvision.transforms.v2 import functional as oracle

from ssl_core.data import Batches, MemoryImages
from ssl_core.ops import cpp
from ssl_core.philox import uniform
from ssl_core.testing import DOUBLE
from ssl_core.views import (
    Choice,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    ViewConfig,
    ViewSpec,
    choose_renderer,
    make_ops,
    make_view_specs,
    render,
    sample_parameters,
)

CPU = torch.device("cpu")


def sample(op, size, num_images=4000):
    """(n 5) parameters on images of one size."""
    index = torch.arange(num_images)
    draws = uniform(0, torch.stack([index, index * 0, index * 0], dim=1), op.num_draws)
    return op.sample(draws, torch.tensor(size).expand(num_images, 2).double(), 32)


def boxes(op, size):
    """(n 4) top, left, height and width in pixels, of the images where something is overwritten."""
    parameters = sample(op, size)
    height, width = size
    found = parameters[parameters[:, 2] > 0, :4] * torch.tensor([height, width, height, width])
    torch.testing.assert_close(found, found.round(), rtol=DOUBLE, atol=0)
    return found.round()


def test_a_rectangle_of_known_draws_by_hand():
    # An image of 20 x 30 pixels, area 600; scale 0.02 to 0.22, ratio 1/4 to 4.
    op = RandomErasing(prob=0.5, scale=(0.02, 0.22), ratio=(0.25, 4.0))
    draws = torch.zeros(3, 24, dtype=torch.float64)
    draws[0, 0] = 0.49  # below 0.5: applied
    draws[0, 1], draws[0, 11] = 0.5, 0.5  # area 600 * 0.12 = 72, ratio exp(0) = 1: 8.49, so 8 x 8 pixels
    draws[0, 21], draws[0, 22] = 0.5, 0.99  # top int(0.5 * 13) = 6, left int(0.99 * 23) = 22
    draws[0, 23] = 3 / 2**32
    draws[1] = draws[0]
    draws[1, 0] = 0.5  # not applied
    draws[2] = draws[0]
    draws[2, 1], draws[2, 11] = 0.999999, 0.999999  # area 132, ratio 4: 22.98 rows are more than 20
    draws[2, 2], draws[2, 12] = 0.5, 0.0  # the second: area 72, ratio 1/4: 4.24 x 16.97, so 4 x 17 pixels
    parameters = op.sample(draws, torch.tensor([[20.0, 30.0]]).double().expand(3, 2), 32)
    expected = [
        [6 / 20, 22 / 30, 8 / 20, 8 / 30, 3],
        [0] * 5,
        [int(0.5 * 17) / 20, int(0.99 * 14) / 30, 4 / 20, 17 / 30, 3],
    ]
    torch.testing.assert_close(parameters, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=DOUBLE)


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_it_overwrites_with_its_probability(prob):
    applied = len(boxes(RandomErasing(prob=prob), (60, 40)))
    assert abs(applied / 4000 - prob) <= 4 * math.sqrt(prob * (1 - prob) / 4000)


def test_rectangles_are_distributed_as_torchvisions():
    # Mean and standard deviation of the rows, columns and corners of as many of torchvision's; four standard errors.
    height, width = 50, 90
    ours = boxes(RandomErasing(prob=1.0), (height, width))
    torch.manual_seed(0)
    theirs = []
    for _ in range(4000):
        erasing = Oracle(p=1.0).make_params([torch.zeros(1, height, width)])
        theirs.append([erasing[part] for part in "ijhw"])
    theirs = torch.tensor(theirs).double()
    assert len(ours) == len(theirs)  # one of ten fits practically always
    error = theirs.std(0) * math.sqrt(2 / 4000)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error).all()
    assert ((ours.std(0) - theirs.std(0)).abs() < 4 * error).all()


@pytest.mark.parametrize("size", [(50, 90), (7, 5), (300, 5)])
def test_rectangles_lie_inside_and_leave_some_of_each_side(size):
    found = boxes(RandomErasing(prob=1.0, scale=(0.02, 0.9)), size)
    assert len(found) > 100
    assert (found >= 0).all()
    for axis in (0, 1):
        assert (found[:, 2 + axis] < size[axis]).all()
        assert (found[:, axis] + found[:, 2 + axis] <= size[axis]).all()


def test_an_image_that_no_rectangle_fits_into_stays():
    assert not sample(RandomErasing(prob=1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0)), (30, 30)).any()
    # A rectangle without pixels fits into a single one, in torchvision too, and overwrites nothing.
    (rows, columns) = sample(RandomErasing(prob=1.0), (1, 1))[:, 2:4].unbind(1)
    assert not rows.any()
    assert not columns.any()


@pytest.mark.parametrize("value", [0.0, 0.25, (0.1, 0.5, 0.9)], ids=str)
def test_it_is_torchvisions_erase(value):
    image = torch.rand(3, 20, 30)
    spec = ViewSpec((Resize(), RandomErasing(value=value)), (20,))
    parameters = torch.tensor([2 / 20, 5 / 20, 11 / 20, 3 / 20, 0.0]).double()
    (view,) = render(image, parameters, spec)
    whole = render(image, torch.zeros(5).double(), spec)[0]
    fill = torch.tensor(value).view(-1, 1, 1).expand(3, 11, 3)
    assert torch.equal(view, oracle.erase(whole, 2, 5, 11, 3, fill))
    assert not torch.equal(view, whole)


def test_random_values_are_uniform_and_depend_on_their_parameter_alone():
    spec = ViewSpec((Resize(), RandomErasing(value="random")), (40,))
    first, again, other = (
        render(torch.zeros(3, 40, 40), torch.tensor([0.1, 0.2, 0.5, 0.5, noise]).double(), spec)[0]
        for noise in (7, 7, 8)
    )
    assert torch.equal(first, again)
    values = first[:, 4:24, 8:28]
    assert first.count_nonzero() == values.count_nonzero()
    assert not torch.equal(first, other)
    assert len(values.unique()) > 1190  # of 1,200
    ordered = values.flatten().sort().values
    assert (ordered - torch.linspace(0, 1, 1200)).abs().max() < 1.95 / math.sqrt(1200)  # Kolmogorov, p 0.001


def test_several_sizes_and_derived_views_show_the_same_rectangle():
    spec = ViewSpec((RandomResizedCrop(), RandomErasing(prob=1.0)), (32, 64))
    parameters = sample_parameters(
        spec, seed=0, epoch=0, image_index=torch.arange(8), view_index=0, image_size=torch.full((8, 2), 50)
    )
    for row in parameters:
        small, large = (view[0] == 0 for view in render(torch.ones(1, 50, 50), row, spec))
        assert small.any()
        assert torch.equal(small.repeat_interleave(2, 0).repeat_interleave(2, 1), large)


def test_it_does_not_write_into_its_input():
    image = torch.ones(3, 8, 8)
    RandomErasing().render(image, [0.0, 0.0, 0.5, 0.5, 0.0], 8)
    assert image.min() == 1


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"prob": 1.5}, "random_erasing: prob .* 1.5"),
        ({"scale": (0.5, 0.2)}, "random_erasing: scale .* rising"),
        ({"scale": (0.5, 1.2)}, "scale .* 1.2"),
        ({"ratio": (0.0, 1.0)}, "random_erasing: ratio"),
        ({"value": 1.5}, r"value must be numbers in \[0, 1\] or 'random', got 1.5"),
        ({"value": (0.5, -1.0)}, r"got \(0.5, -1.0\)"),
        ({"value": "noise"}, "got 'noise'"),
        ({"value": float("nan")}, "got nan"),
    ],
)
def test_numbers_that_cannot_be_are_refused(numbers, words):
    with pytest.raises(ValueError, match=words):
        RandomErasing(**numbers)


def test_a_value_for_each_channel_is_refused_for_other_channels():
    with pytest.raises(ValueError, match="value has 3 numbers for an image of 1 channels"):
        RandomErasing(value=(0.1, 0.2, 0.3)).render(torch.ones(1, 8, 8), [0.0, 0.0, 0.5, 0.5, 0.0], 8)


def test_a_configuration_names_it_and_auto_falls_to_the_reference_with_a_line(caplog):
    line = ["weak", {"random_erasing": {"prob": 1, "scale": [0.1, 0.3], "value": "random"}}]
    assert make_ops(line)[-1] == RandomErasing(prob=1.0, scale=(0.1, 0.3), value="random")
    assert make_ops([{"random_erasing": {"value": [0, 0.5, 1]}}]) == (RandomErasing(value=(0.0, 0.5, 1.0)),)
    assert make_ops([{"random_erasing": None}]) == (RandomErasing(),)
    specs = make_view_specs([ViewConfig(line, size=8)])
    images = MemoryImages("gray", torch.full((4, 3, 12, 10), 128, dtype=torch.uint8), torch.full((4,), -1))
    caplog.set_level("INFO")
    arguments = {"batch_size": 4, "seed": 0, "mean": (0.5,) * 3, "std": (0.5,) * 3, "workers": 0}
    batches = Batches(images, specs, renderer="auto", **arguments)
    assert batches.renderer == "reference"
    (views,) = next(batches.epoch(0)).views
    assert (views.flatten(1).std(1) > 0.05).all()
    if cpp.has_kernels(CPU):
        reason = "view 'custom': random_erasing is rendered by the reference alone"
        assert caplog.messages == [f"views are rendered by reference, and not by cpu: {reason}"]
        with pytest.raises(ValueError, match=rf"data.renderer cpu: {reason}; there is auto, reference"):
            Batches(images, specs, renderer="cpu", **arguments)


@pytest.mark.skipif(not cpp.has_kernels(CPU), reason="needs the compiled kernels")
def test_a_choice_that_may_erase_is_refused_too():
    spec = ViewSpec((Resize(), Choice(0.5, (RandomErasing(),), ())), (8,), name="either")
    with pytest.raises(
        ValueError, match=r"data.renderer cpu: view 'either': random_erasing is rendered by the reference"
    ):
        choose_renderer("cpu", CPU, [spec])
