import pytest
import torch

from ssl_core.data import DataConfig, MemoryImages, channel_statistics, normalization


def source(images, name="here"):
    return MemoryImages(name, images, torch.full((len(images),), -1))


def test_statistics_by_hand():
    # Channel 0 is 0 or 255: mean 1/2, deviation 1/2. Channel 1 is 51, 102, 153, 204: mean 1/2 and variance
    # (0.09 + 0.01 + 0.01 + 0.09) / 4 = 0.05.
    images = torch.tensor([[[[0, 255]], [[51, 102]]], [[[255, 0]], [[153, 204]]]], dtype=torch.uint8)
    mean, std = channel_statistics(source(images))
    assert mean == pytest.approx((0.5, 0.5))
    assert std == pytest.approx((0.5, 0.05**0.5))


def test_every_image_counts_the_same_whatever_its_size_and_type():
    images = [
        torch.zeros(1, 1, 1, dtype=torch.uint8),
        torch.full((1, 30, 30), 65535, dtype=torch.uint16),
        torch.full((1, 2, 3), 0.5),
    ]
    mean, std = channel_statistics(source(images))
    assert mean == pytest.approx((0.5,))
    assert std == pytest.approx(((0.25 + 0.25 + 0.0) ** 0.5 / 3**0.5,))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_large_source_is_measured_on_a_sample_that_does_not_change(workers):
    images = torch.rand(300, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    sample = channel_statistics(source(images), max_images=100, workers=workers)
    assert sample == channel_statistics(source(images), max_images=100)
    assert sample != channel_statistics(source(images[:100]), max_images=100)


def test_a_constant_channel_is_refused():
    with pytest.raises(ValueError, match=r"constant channel .* set data\.mean and data\.std"):
        channel_statistics(source(torch.full((3, 1, 4, 4), 0.3)))


def test_normalization_is_configured_published_or_measured():
    noise = source(torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    mean, std = (0.1, 0.2, 0.3), (1.0, 1.0, 1.0)
    assert normalization(DataConfig(source="cifar10", mean=mean, std=std), noise) == (mean, std)
    assert normalization(DataConfig(source="cifar10"), noise)[0] == (0.4914, 0.4822, 0.4465)
    assert normalization(DataConfig(source="photos", workers=0), noise) == channel_statistics(noise)


def test_published_values_are_not_used_for_another_number_of_channels():
    noise = source(torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert normalization(DataConfig(source="cifar10", workers=0), noise) == channel_statistics(noise)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_number_is_that_of_all_channels(channels):
    found = normalization(DataConfig(mean=(0.0,), std=(1.0,)), source(torch.rand(2, channels, 2, 2)))
    assert found == ((0.0,) * channels, (1.0,) * channels)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), None, "go together"),
        ((0.5, 0.5), (1.0, 1.0), "one number for all, or one for each of the 3 channels"),
        ((0.5,) * 3, (1.0, 0.0, 1.0), "be positive"),
        ((0.5,) * 3, (1.0, -0.2, 1.0), "be positive"),
        ((0.5,) * 3, (1.0, float("nan"), 1.0), "be positive"),
        ((float("nan"), 0.5, 0.5), (1.0,) * 3, r"must lie in \[0, 1\]"),
        ((-0.1, 0.5, 0.5), (1.0,) * 3, r"must lie in \[0, 1\]"),
        ((1.01, 0.5, 0.5), (1.0,) * 3, "divide values for 8-bit pixels by 255"),
        ((123.675, 116.28, 103.53), (0.229, 0.224, 0.225), "divide values for 8-bit pixels by 255"),
        ((0.485, 0.456, 0.406), (58.395, 57.12, 57.375), "divide values for 8-bit pixels by 255"),
    ],
    ids=["alone", "length", "zero", "negative", "nan", "nan mean", "below", "above", "mean of 255", "std of 255"],
)
def test_a_wrong_normalization_is_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        normalization(DataConfig(mean=mean, std=std), source(torch.rand(2, 3, 2, 2)))
