"""The product of a run: an encoder's weights in timm's names, and a card that says how to use them.

``backbone.safetensors`` holds the state dict of the timm module, whose names are torchvision's for ResNets;
``backbone.json`` beside it is the card: how to build the encoder, and how to feed it.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias, cast

from safetensors.torch import save
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_core.files import write_atomically, write_json
from ssl_core.nn import EncoderConfig, load_weights_, make_encoder

# ("linear", in, out, bias), ("batch_norm", features, affine, eps) or ("relu",)
Layer: TypeAlias = tuple[str | int | float | bool, ...]


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("ssl-core", "torch", "torchvision", "timm")}


@dataclass(frozen=True)
class BackboneCard:
    """Description of an encoder: how to build it, how to feed it, and its origin.

    Attributes:
        architecture: name of a timm model.
        channels: number of channels of the encoder's input.
        image_size: side of the encoder's input, pixels.
        mean: mean of each channel, of pixels in [0, 1]; the input is (pixel - mean) / std.
        std: standard deviation of each channel.
        num_features: length of the feature vector.
        stem: stem as :func:`ssl_core.nn.stem_for` resolves it.
        options: further keyword arguments of ``timm.create_model``.
        init: start of random weights, see :class:`ssl_core.nn.EncoderConfig`, so that an untrained one is made alike.
        order: order of the images in an epoch of its training: at random, or how many shards at a time.
        recipe: package, protocol or model that the encoder is from, such as ``ssl-sce``.
        method: method that trained it, such as ``MoCo v2``; one package may have several. Empty where none is known.
        metrics: results by name, such as ``{"knn_top1": 0.4731}``.
        projector: layers of the projector, as :func:`head_layers` describes them; its weights are in the
            run's checkpoint.
        versions: versions of the libraries that wrote the file.
    """

    architecture: str
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_features: int
    stem: str = "imagenet"
    options: dict[str, Any] = field(default_factory=dict)
    init: str = "default"
    order: str = "random"
    recipe: str = ""
    method: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    projector: tuple[Layer, ...] = ()
    versions: dict[str, str] = field(default_factory=_versions)


def save_backbone(path: Path | str, encoder: nn.Module, card: BackboneCard) -> None:
    """Write weights and card, each atomically: ``x.safetensors`` and ``x.json``.

    Args:
        path: file that ends in ``.safetensors``, in a folder that exists.
        encoder: timm module, on any device and in any memory format.
        card: description of the encoder.

    Raises:
        ValueError: if the path does not end in ``.safetensors``.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a backbone is a .safetensors file, not {path}")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    write_atomically(path, lambda file: file.write(save(state, metadata={"format": "pt"})))
    save_card(path.with_suffix(".json"), card)


def load_backbone(path: Path | str) -> nn.Module:
    """The encoder that :func:`save_backbone` wrote, or another project's: a timm module in eval mode, on the CPU.

    It maps (n c h w), normalized with the card's mean and std, to (n f) features; :func:`load_card` reads
    the card.

    Raises:
        FileNotFoundError: if the weights or the card beside them are missing.
        ValueError: if the file is damaged, or does not hold what its card says.
    """
    path = Path(path)
    card = load_card(path.with_suffix(".json"))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, only its card")
    return make_card_encoder(card, weights=path).eval()


def make_card_encoder(card: BackboneCard, *, weights: Path | str | None = None) -> nn.Module:
    """An encoder of a card's architecture, random or with the weights in a file."""
    config = EncoderConfig(card.architecture, cast(Any, card.stem), init=cast(Any, card.init), options=card.options)
    encoder = make_encoder(config, channels=card.channels, image_size=card.image_size)
    if weights is not None:
        load_weights_(encoder, weights, name=card.architecture)
    return encoder


def save_card(path: Path | str, card: BackboneCard) -> None:
    """Write a card as JSON, atomically."""
    write_json(Path(path), dataclasses.asdict(card))


def load_card(path: Path | str) -> BackboneCard:
    """The card in a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a card.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no card {path}, which says what to build and what to feed it; for weights of others write one: "
            '{"architecture": "resnet50", "channels": 3, "image_size": 224, "mean": [0.485, 0.456, 0.406], '
            '"std": [0.229, 0.224, 0.225], "num_features": 2048}, or as they are'
        )
    try:
        values = json.loads(path.read_text())
        for key in ("mean", "std"):
            values[key] = tuple(values[key])
        values["projector"] = tuple(tuple(layer) for layer in values.get("projector", ()))
        return BackboneCard(**values)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a backbone card: {error}") from error


def head_layers(head: nn.Module) -> tuple[Layer, ...]:
    """Describe a head in plain values, so that a card can hold it and :func:`make_head` rebuild it.

    Raises:
        TypeError: if it is not a Sequential of Linear, BatchNorm and ReLU layers.

    Example:
        >>> head_layers(nn.Sequential(nn.Linear(8, 4, bias=False), nn.ReLU()))
        (('linear', 8, 4, False), ('relu',))
    """
    if not isinstance(head, nn.Sequential):
        raise TypeError(f"a card can describe an nn.Sequential, not {type(head).__name__}")
    return tuple(_layer(module) for module in head)


def _layer(module: nn.Module) -> Layer:
    match module:
        case nn.Linear():
            return ("linear", module.in_features, module.out_features, module.bias is not None)
        case _BatchNorm():  # split or synchronized ones too: they are the same in evaluation
            return ("batch_norm", module.num_features, module.affine, module.eps)
        case nn.ReLU():
            return ("relu",)
        case _:
            raise TypeError(f"a card can describe Linear, BatchNorm and ReLU layers, not {type(module).__name__}")


def make_head(layers: tuple[Layer, ...]) -> nn.Sequential:
    """Build a head from its description, freshly initialized.

    Raises:
        ValueError: if a layer's kind is unknown.
    """
    return nn.Sequential(*(_module(layer) for layer in layers))


def _module(layer: Layer) -> nn.Module:
    match layer:
        case ("linear", int(in_features), int(out_features), bool(bias)):
            return nn.Linear(in_features, out_features, bias=bias)
        case ("batch_norm", int(num_features), bool(affine), float(eps)):
            return nn.BatchNorm1d(num_features, eps=eps, affine=affine)
        case ("relu",):
            return nn.ReLU()
        case _:
            raise ValueError(f"a card's layer is linear, batch_norm or relu with its sizes, not {layer!r}")
