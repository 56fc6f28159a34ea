import pytest
import torch
from PIL import Image

from ssl_core.data import Batches, ImageSource, channel_statistics, dataset_source
from ssl_core.views import ViewConfig, make_view_specs


def test_pil_images_tensors_and_arrays_are_images(make):
    pixels = make.noise(4, 6, 3)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    source = dataset_source([Image.fromarray(pixels), (expected, 3), [pixels, 4, "more"]])
    assert isinstance(source, ImageSource)
    assert all(torch.equal(source.image(index), expected) for index in range(3))
    assert [source.label(index) for index in range(3)] == [-1, 3, 4]


def test_targets_and_classes_are_taken_from_the_data_set_as_torchvision_has_them():
    class Data(list):
        targets = (1, 0)
        classes = ("cat", "dog")

    source = dataset_source(Data([None, None]))
    assert [source.label(index) for index in range(2)] == [1, 0]
    assert source.classes == ("cat", "dog")


def test_channels_are_made_alike(make):
    mixed = [Image.fromarray(make.noise(4, 6)), Image.fromarray(make.noise(4, 6, 4))]
    source = dataset_source(mixed, channels=3)
    assert [len(source.image(index)) for index in range(2)] == [3, 3]


def test_an_item_that_is_no_image_is_named():
    with pytest.raises(TypeError, match=r"item 0 of mine is .*dict"):
        dataset_source([{}], name="mine").image(0)


def test_batches_are_made_of_a_data_set(make):
    data = [(Image.fromarray(make.noise(8, 8, 3, seed=seed)), seed) for seed in range(6)]
    source = dataset_source(data)
    mean, std = channel_statistics(source)
    specs = make_view_specs([ViewConfig("weak", size=8)])
    batches = Batches(source, specs, batch_size=4, seed=0, mean=mean, std=std, workers=0)
    (batch,) = batches.epoch(0)
    assert batch.views[0].shape == (4, 3, 8, 8)
    assert batch.views[0].isfinite().all()
