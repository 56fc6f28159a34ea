"""Encoders: timm models without their classifier, with a stem that suits the size of the images.

The module is timm's own, so parameter names are timm's (for ResNets also torchvision's) and a pretrained
backbone loads elsewhere as it is.
"""

import difflib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import timm
import torch
from timm.models import is_model_in_modules
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ssl_core.nn.weights import load_weights_

logger = logging.getLogger(__name__)

# At 32 px a 7x7 stride-2 stem with max-pool leaves 8x8 positions to the first block (MoCo's CIFAR notebook
# removes both); at 64 px the released ReSSL recipes for STL-10 and Tiny-ImageNet keep the max-pool.
_SMALL_UP_TO_PX = 40
_SMALL_POOL_UP_TO_PX = 100


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder, and the weights that it starts from.

    Attributes:
        name: name of a timm model.
        stem: first layers: ``imagenet`` keeps the model's own stem; ``small`` replaces the stem of a timm ResNet by a
            3x3 stride-1 convolution of as many channels, without max-pool; ``small_pool`` does the same and keeps the
            max-pool; ``auto`` chooses by the size of the images, see :func:`stem_for`.
        weights: origin of the weights: ``random`` (torch's global generator), ``timm`` (downloaded), or the path of a
            run or of a file. A file is a ``backbone.safetensors``, a run's ``checkpoints/*.pt``, or a checkpoint of
            another project, such as MoCo, SimSiam, DINO, MAE, solo-learn, lightly or VISSL, of which the encoder is
            taken.
        init: start of random weights in a timm ResNet. ``default``: torchvision's, convolutions from N(0, 2 / fan_out).
            ``torch_stem``: the same, but the convolution of a small stem starts as torch makes it, uniform in
            +-1 / sqrt(fan_in) (MoCo's CIFAR-10 notebook, SCE's code). ``torch``: every convolution starts that way
            (DSSL's code). ``zero_residual``: as ``default``, but the last BatchNorm of each residual block scales by 0
            (SimSiam's and Barlow Twins' codes). Other models start as timm has them, which is ``default``.
        options: keyword arguments of ``timm.create_model``, such as
            ``{layers: [1, 1, 1, 1], channels: [32, 64, 128, 256]}`` for a narrow ResNet, with
            ``stem_type: deep, stem_width: 16`` too for a stem of 32 channels (it has 64), or
            ``{dynamic_img_size: true}`` for a ViT whose views differ in size.
    """

    name: str = "resnet18"
    stem: Literal["auto", "imagenet", "small", "small_pool"] = "auto"
    weights: str = "random"
    init: Literal["default", "torch_stem", "torch", "zero_residual"] = "default"
    options: dict[str, Any] = field(default_factory=dict)


def stem_for(config: EncoderConfig, image_size: int) -> str:
    """The stem that an encoder gets: ``imagenet`` (the model's own), ``small`` or ``small_pool``.

    For timm ResNets ``auto`` is ``small`` up to 40 px and ``small_pool`` up to 100 px; otherwise it is
    ``imagenet``, as it is with ``timm`` weights, which were trained with the model's own stem.

    Args:
        config: settings of the encoder.
        image_size: side of the largest view, pixels.

    Example:
        >>> [stem_for(EncoderConfig(), size) for size in (32, 64, 224)]
        ['small', 'small_pool', 'imagenet']
    """
    if config.stem != "auto":
        return config.stem
    if config.weights == "timm" or not _is_resnet(config.name):
        return "imagenet"
    if image_size <= _SMALL_UP_TO_PX:
        return "small"
    return "small_pool" if image_size <= _SMALL_POOL_UP_TO_PX else "imagenet"


def make_encoder(
    config: EncoderConfig, *, channels: int, image_size: int, other_sizes: Iterable[int] = ()
) -> nn.Module:
    """A timm model that maps images (n c h w) to features (n f), with f its ``num_features``.

    Args:
        config: settings of the encoder and of its first weights.
        channels: number of channels of the images.
        image_size: side of the largest view, pixels; chooses the stem, and sizes models that need to know it.
        other_sizes: sides of further views, pixels.

    Raises:
        ValueError: if timm does not know the name, the model cannot have the options or the stem, does not map views
            of a size to features, or a weights file does not fit it; the message lists the keys that do not.
        FileNotFoundError: if the weights file does not exist, or timm's weights cannot be fetched.

    Example:
        >>> encoder = make_encoder(EncoderConfig("resnet18"), channels=1, image_size=28)
        >>> encoder(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 512])
    """
    if not timm.is_model(config.name):
        close = timm.list_models(f"{config.name}*") or difflib.get_close_matches(config.name, timm.list_models())
        hint = f"did you mean {' or '.join(close[:3])}? " if close else ""
        raise ValueError(f"encoder.name {config.name!r} is not a timm model; {hint}timm.list_models() lists them")
    stem = stem_for(config, image_size)
    if stem not in ("imagenet", "small", "small_pool"):
        raise ValueError(f"encoder.stem {stem!r} is not one of auto, imagenet, small, small_pool")
    if stem != "imagenet" and config.weights == "timm":
        raise ValueError(f"encoder.weights timm were trained with the model's own stem, not {stem}; use stem imagenet")
    _check_init(config, stem)
    encoder = _create(config, channels, image_size)
    if stem != "imagenet":
        _make_stem_small_(encoder, config, channels, keep_pool=stem == "small_pool")
    if config.init == "torch":
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
    for size in {image_size, *other_sizes}:
        # timm's own figure is the width before a model's last layers, such as those of VGG or MobileNetV3.
        cast(Any, encoder).num_features = _num_features(encoder, config.name, channels, size)
    if config.weights not in ("random", "timm"):
        logger.info(load_weights_(encoder, config.weights, name=config.name))
    return encoder


def encoder_options(config: EncoderConfig, image_size: int) -> dict[str, Any]:
    """The arguments of ``timm.create_model``, beside name and channels, for a module that takes an encoder's weights.

    That is ``options``, and ``img_size`` for a model that is built for one size (most ViTs), unless it is the model's
    default.

    Args:
        config: settings of the encoder.
        image_size: side of the largest view, pixels.

    Example:
        >>> encoder_options(EncoderConfig("vit_tiny_patch16_224", options={"depth": 1}), 64)
        {'img_size': 64, 'depth': 1}
    """
    model = timm.get_pretrained_cfg(config.name)
    fixed = model is not None and model.fixed_input_size and model.input_size[-1] != image_size
    return ({"img_size": image_size} if fixed else {}) | config.options


def _create(config: EncoderConfig, channels: int, image_size: int) -> nn.Module:
    options = _initialization_option(config) | encoder_options(config, image_size)
    pretrained = config.weights == "timm"
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it says each of five tries twice
    try:
        return timm.create_model(config.name, pretrained=pretrained, num_classes=0, in_chans=channels, **options)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"timm's weights of {config.name} are neither on this machine nor can they be fetched ({reason}); fetch "
            "them where there is a network, and copy the folder ~/.cache/huggingface, or the one that HF_HOME names"
        ) from error
    except Exception as error:  # options reach the code of any model
        if not config.options:
            raise
        raise ValueError(
            f"encoder.options {config.options} do not fit {config.name} ({str(error) or type(error).__name__}); "
            "--encoder.options '{}' drops those of a recipe for another encoder"
        ) from error


def _num_features(encoder: nn.Module, name: str, channels: int, size: int) -> int:
    """Length of the features that an encoder gives; it must take images of a size."""
    device = next(encoder.parameters()).device
    try:
        with torch.no_grad():
            features = encoder.eval()(torch.zeros(1, channels, size, size, device=device))
    except Exception as error:  # anything inside any model
        raise ValueError(
            f"encoder {name} does not take {size} px ({error}); use views of another size, or for a ViT "
            "--encoder.options '{dynamic_img_size: true}'"
        ) from error
    encoder.train()
    if not isinstance(features, Tensor) or features.ndim != 2:
        given = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"encoder {name} gives {given} instead of features (n f); look at its encoder.options")
    return features.shape[1]


def strides_over_a_pixel(encoder: nn.Module, channels: int, sizes: Iterable[int]) -> bool:
    """Whether a convolution with a stride has inputs of one pixel at some size of the views.

    On CPUs with AVX512-BF16, torch 2.15 gives such a convolution's weights a bfloat16 gradient that depends on what
    memory held before: for a 3x3 convolution of stride 2, of 4 to 256 channels, it was not finite in 1 to 11 of 20
    tries after NaN had been freed. Inputs of 2x2 pixels, and strides of 1, were right.

    Args:
        encoder: module (n c s s) -> (n f), on the CPU, in training mode.
        channels: number of channels c.
        sizes: sides s of the views, pixels.
    """
    found = []

    def look(convolution: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        is_strided = max(convolution.stride) > 1 and max(convolution.kernel_size) > 1
        found.append(is_strided and inputs[0].shape[-2:].numel() == 1)

    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    handles = [convolution.register_forward_pre_hook(look) for convolution in convolutions]
    encoder.eval()
    with torch.no_grad():
        for size in sizes:
            encoder(torch.zeros(1, channels, size, size))
    encoder.train()
    for handle in handles:
        handle.remove()
    return any(found)


def _is_resnet(name: str) -> bool:
    return is_model_in_modules(name, ("resnet",))


def _check_init(config: EncoderConfig, stem: str) -> None:
    if config.init not in ("default", "torch_stem", "torch", "zero_residual"):
        raise ValueError(f"encoder.init {config.init!r} is not one of default, torch_stem, torch, zero_residual")
    if config.init != "default" and not _is_resnet(config.name):
        raise ValueError(f"encoder.init {config.init} is for timm ResNets, not {config.name}; take default")
    if config.init == "torch_stem" and stem == "imagenet":
        raise ValueError(
            "encoder.init torch_stem is about a small stem, which encoder.stem imagenet is not; use default"
        )


def _initialization_option(config: EncoderConfig) -> dict[str, bool]:
    """The start of residual blocks, by default as torchvision's ResNets and most of the released codes have it.

    timm's default, a last BatchNorm of zero, gives the 3x3 convolutions of a block no gradient at the first step.
    """
    return {"zero_init_last": config.init == "zero_residual"} if _is_resnet(config.name) else {}


def _make_stem_small_(encoder: nn.Module, config: EncoderConfig, channels: int, *, keep_pool: bool) -> None:
    if not isinstance(encoder, ResNet):
        raise ValueError(
            f"encoder.stem: only timm ResNets can have a small stem, not {config.name}; use auto or imagenet"
        )
    width = cast(int, encoder.feature_info[0]["num_chs"])
    convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    if config.init != "torch_stem":
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")  # as timm's ResNet
    encoder.add_module("conv1", convolution)
    if not keep_pool:
        encoder.add_module("maxpool", nn.Identity())
