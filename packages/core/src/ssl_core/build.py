"""From a configuration to the parts of a run: the encoder, the method around it, and its optimizer."""

from dataclasses import dataclass
from typing import Generic, cast

import torch
from torch import nn

from ssl_core.nn import MomentumBranch, make_encoder, strides_over_a_pixel, sync_batch_norm
from ssl_core.run import Config, MakeMethod, TrainedMethod
from ssl_core.train import make_optimizer


@dataclass(frozen=True)
class Parts(Generic[TrainedMethod]):
    """The parts of a run, on their device.

    Attributes:
        encoder: backbone, which the method holds.
        num_features: length of the encoder's features.
        method: method around the encoder.
        optimizer: optimizer of the method's parameters.
    """

    encoder: nn.Module
    num_features: int
    method: TrainedMethod
    optimizer: torch.optim.Optimizer


def build(
    config: Config, make_method: MakeMethod[Config, TrainedMethod], *, channels: int, device: torch.device
) -> Parts[TrainedMethod]:
    """The untrained parts of a run, the same each time: their weights follow from ``config.seed``.

    Args:
        config: configuration of the run.
        make_method: function (config, encoder, number of its features, views) -> method, on the CPU.
        channels: number of channels of the images.
        device: device to train on.

    Raises:
        ValueError: for settings that do not fit each other or the device.
    """
    specs = config.view_specs()
    sizes = {size for spec in specs for size in spec.sizes}
    # Every process starts from the same weights; views and order have generators of their own.
    torch.manual_seed(config.seed)
    encoder = make_encoder(config.encoder, channels=channels, image_size=max(sizes), other_sizes=sizes)
    num_features = cast(int, encoder.num_features)
    if config.train.precision == "bfloat16" and device.type == "cpu" and strides_over_a_pixel(encoder, channels, sizes):
        raise ValueError(
            f"train.precision bfloat16: at {min(sizes)} px a convolution of {config.encoder.name} strides over a "
            f"single pixel, of which PyTorch {torch.__version__} computes a wrong gradient on CPUs; take float32, "
            "larger views, or encoder.stem small"
        )
    method = make_method(config, encoder, num_features, specs)
    module = cast(nn.Module, method)  # changed in place from here on
    if config.train.sync_batch_norm:
        sync_batch_norm(module, device)
    module.to(device)
    if config.train.channels_last:
        module.to(memory_format=torch.channels_last)
    if config.train.precision == "bfloat16":
        for part in module.modules():
            if isinstance(part, MomentumBranch):
                part.use_bfloat16_weights_()
    return Parts(
        encoder, num_features, method, make_optimizer(module, config.optim, batch_size=config.train.batch_size)
    )
