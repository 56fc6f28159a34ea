"""Mean and standard deviation of each channel, in [0, 1], by which views are normalized."""

import logging
from typing import TypeAlias

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from ssl_core.data.config import DataConfig
from ssl_core.data.source import ImageSource, announce
from ssl_core.data.workers import worker_map
from ssl_core.philox import permutation

logger = logging.getLogger(__name__)

Channels: TypeAlias = tuple[float, ...]

# Published values, as the methods' code normalizes: CIFAR and STL-10 from SCE's, Tiny-ImageNet from ReSSL's.
KNOWN: dict[str, tuple[Channels, Channels]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023)),
    "stl10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

NUM_SAMPLED = 2000
_SAMPLE_STREAM = (0x73616D70, 0)  # "samp"
_LEVELS = {torch.uint8: 255, torch.uint16: 65535}


def normalization(config: DataConfig, source: ImageSource) -> tuple[Channels, Channels]:
    """Mean and standard deviation to normalize a source's views by.

    The first of these that there is: the configuration's values, the published values of a named set, a measurement
    on up to 2,000 images.

    Args:
        config: settings that the source was opened with.
        source: training images.

    Raises:
        ValueError: if the lengths of those configured are not the number of channels.
    """
    num_channels = source.image(0).shape[0]
    if config.mean is not None and config.std is not None:
        mean, std = (numbers * num_channels if len(numbers) == 1 else numbers for numbers in (config.mean, config.std))
        if not len(mean) == len(std) == num_channels:
            raise ValueError(
                f"data.mean {config.mean} and data.std {config.std} need one number for all, or one for each of the "
                f"{num_channels} channels of {source.name}"
            )
        return mean, std
    if isinstance(config.source, str) and config.source in KNOWN and num_channels == 3:
        return KNOWN[config.source]
    mean, std = channel_statistics(source, workers=config.workers)
    logger.info(
        "%s: mean (%s), std (%s), measured on %d images",
        source.name,
        ", ".join(f"{value:.4f}" for value in mean),
        ", ".join(f"{value:.4f}" for value in std),
        min(len(source), NUM_SAMPLED),
    )
    return mean, std


def channel_statistics(
    source: ImageSource, *, max_images: int = NUM_SAMPLED, workers: int = 0
) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel over images that each count the same, whatever their size.

    Args:
        source: images of one number of channels.
        max_images: size of the fixed random sample that is measured where there are more images.
        workers: number of processes that decode; 0 decodes in this one.

    Raises:
        ValueError: if a channel is constant, so that nothing can be divided by its deviation.
    """
    sample = permutation(0, _SAMPLE_STREAM, len(source))[:max_images].sort().values
    chunks = [sample[start : start + 64].tolist() for start in range(0, len(sample), 64)]
    moments = torch.cat(list(worker_map(_Moments(source), chunks, workers)))
    return mean_and_std(moments.mean(dim=0), source.name)


# Half a level of 16 bits, below which there is nothing but rounding.
LEAST_STD = 0.5 / 65535


def mean_and_std(moments: Float64[Tensor, "2 c"], name: str) -> tuple[Channels, Channels]:
    """Mean and standard deviation from the means of x and x^2.

    Raises:
        ValueError: if a channel is constant.
    """
    mean, mean_square = moments
    variance = mean_square - mean**2
    if (variance < LEAST_STD**2).any():
        raise ValueError(f"{name} has a constant channel (variances {variance.tolist()}); set data.mean and data.std")
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def image_moments(image: Shaped[Tensor, "c h w"]) -> Float64[Tensor, "2 c"]:
    """Means of x and x^2 of each channel of an image, with x in [0, 1]."""
    pixels = image.flatten(1).double() / _LEVELS.get(image.dtype, 1)
    return torch.stack([pixels.mean(dim=1), pixels.square().mean(dim=1)])


class _Moments:
    """Moments of some images of a source, (n 2 c)."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def __call__(self, indices: list[int]) -> Tensor:
        announce(self._source, indices)
        return torch.stack([image_moments(self._source.image(index)) for index in indices])
