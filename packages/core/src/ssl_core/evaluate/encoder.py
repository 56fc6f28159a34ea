"""The encoder that is evaluated: a run's, an exported one, timm's, a random one, or only the pixels.

=====================  =========================================================================
``RUN``                a run directory: its last checkpoint
``x.safetensors``      an exported backbone or another weights file, with its card ``x.json`` beside it
``timm:resnet50``      timm's pretrained weights, downloaded where they are not cached
``random``             a fresh encoder of the architecture of ``like``
``pixels``             the pixels that an encoder like ``like`` is fed
=====================  =========================================================================
"""

import dataclasses
import logging
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import timm
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import nn

from ssl_core.backbone import BackboneCard, load_backbone, load_card, make_card_encoder, make_head
from ssl_core.data import DataConfig
from ssl_core.nn import EncoderConfig, make_encoder
from ssl_core.train import load_checkpoint
from ssl_core.views import ViewConfig

logger = logging.getLogger(__name__)

Layer: TypeAlias = Literal["backbone", "projection"]

BASELINES = frozenset({"random", "pixels"})  # take their input from another

# What of a data configuration decides which images are tested, and what their labels mean.
_WHICH_IMAGES = ("source", "test_source", "holdout", "root", "class_list", "image_column", "label_column")


def load_encoder(
    spec: str, *, like: str | None = None, features: Layer = "backbone", seed: int = 0
) -> tuple[nn.Module, BackboneCard]:
    """An encoder in eval mode on the CPU, (n c s s) -> (n f), and the card that describes its input.

    Args:
        spec: name or path of the encoder, as in the table above.
        like: run directory or exported backbone whose architecture and input ``random`` and ``pixels`` take.
        features: layer to evaluate; ``projection`` appends the projector, which only a run directory has.
        seed: seed of the weights of ``random``.

    Raises:
        FileNotFoundError: if a path, or a file in it, does not exist.
        ValueError: if an argument does not apply, or weights do not fit their card.
    """
    if spec in BASELINES and like is None:
        raise ValueError(
            f"{spec} has the size of its input from another encoder, a run directory or a .safetensors file: give "
            "like; a command without that option takes what was trained alone"
        )
    if spec not in BASELINES and like is not None:
        raise ValueError(f"like {like!r} is for random and pixels; {spec!r} says itself what it is")
    if features == "projection":
        return _run_projection(spec)
    if spec == "pixels":
        card = find_card(str(like))
        num_features = card.channels * card.image_size**2
        return nn.Flatten().eval(), BackboneCard(
            "pixels", card.channels, card.image_size, card.mean, card.std, num_features=num_features
        )
    if spec == "random":
        card = dataclasses.replace(find_card(str(like)), recipe="random", method="", metrics={}, projector=())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make_card_encoder(card).eval(), card
    if spec.startswith("timm:"):
        return _timm_encoder(spec.removeprefix("timm:"))
    card = find_card(spec)
    if Path(spec).is_dir():
        return make_card_encoder(card, weights=_checkpoint(spec)).eval(), card
    return load_backbone(spec), card


def load_encoders(
    specs: Sequence[str], *, like: str | None = None, features: Layer = "backbone", seed: int = 0
) -> list[tuple[nn.Module, BackboneCard]]:
    """Several encoders as of :func:`load_encoder`, to be shown side by side.

    Args:
        specs: names or paths of the encoders.
        like: run directory or exported backbone whose architecture and input ``random`` and ``pixels`` take; None is
            the first among ``specs``.
        features: layer to evaluate.
        seed: seed of the weights of ``random``.

    Raises:
        FileNotFoundError: if a path, or a file in it, does not exist.
        ValueError: if an encoder is given twice, or an argument does not apply.
    """
    check_distinct(specs)
    if like is not None and not BASELINES & set(specs):
        raise ValueError(f"like {like!r} is for random and pixels; {', '.join(specs)} say themselves what they are")
    like = like or next((spec for spec in specs if spec not in BASELINES and not spec.startswith("timm:")), None)
    return [
        load_encoder(spec, like=like if spec in BASELINES else None, features=features, seed=seed) for spec in specs
    ]


def check_distinct(specs: Sequence[str]) -> None:
    """Find that an encoder is given twice, perhaps by another spelling of its path.

    Raises:
        ValueError: naming it.
    """
    names = [str(Path(spec).resolve()) if Path(spec).exists() else spec for spec in specs]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"{specs[number]} is given twice; give each encoder once")


def check_channels(cards: Mapping[str, BackboneCard]) -> None:
    """Find that some encoders do not take the same images, before any are read.

    Args:
        cards: description of each encoder, by its name.

    Raises:
        ValueError: naming the encoders and their numbers of channels.
    """
    channels = {card.channels: encoder for encoder, card in cards.items()}
    if len(channels) > 1:
        takes = " and ".join(f"{encoder} takes {count}" for count, encoder in channels.items())
        raise ValueError(f"images have one number of channels, but {takes}; show these encoders one by one")


def find_card(path: str) -> BackboneCard:
    """The card of a run directory or of an exported backbone.

    Raises:
        FileNotFoundError: if the path does not exist, or there is no card.
        ValueError: for ``random`` and ``pixels``.
    """
    if path in BASELINES:
        raise ValueError(f"{path} was not trained and has no card: give a run directory or a .safetensors file")
    if not Path(path).exists():
        raise FileNotFoundError(
            f"{path!r} does not exist; an encoder is a run directory, a .safetensors file, timm:NAME, random or pixels"
        )
    if not Path(path).is_dir():
        return load_card(Path(path).with_suffix(".json"))
    if not (Path(path) / "backbone.json").is_file():
        raise FileNotFoundError(
            f"{path} is not a run directory, or of a run that has not begun: no backbone.json in it"
        )
    return load_card(Path(path) / "backbone.json")


def run_data(run: str) -> DataConfig:
    """The data that a run was trained on: the node ``data`` of its ``config.yaml``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the node is not a data configuration.
    """
    data: DataConfig = _node(run, "data", DataConfig, "names the run's data; give the data to evaluate on")
    return data


def run_views(run: str) -> list[ViewConfig]:
    """The views of a run: the node ``views`` of its ``config.yaml``, to which a method may have added others.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the node is not a list of views.
    """
    views: list[ViewConfig] = _node(run, "views", list[ViewConfig], "names the run's views")
    return views


def _node(run: str, name: str, kind: Any, holds: str) -> Any:
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path} that {holds}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=kind)
    try:
        values = parser.parse_object({name: yaml.safe_load(path.read_text())[name]})
        return getattr(parser.instantiate(values), name)
    except (ArgumentError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} has no readable node {name}: {error}") from error


def shared_data(encoders: Sequence[str], like: str | None = None) -> DataConfig:
    """The data that the run directories among some encoders, and ``like``, were all trained on.

    Raises:
        FileNotFoundError: if a run names no data.
        ValueError: if no run is among them, or two differ in the images.
    """
    named = [like, *(encoder for encoder in encoders if encoder not in BASELINES)]
    runs = [run for run in named if run is not None and Path(run).is_dir()]
    if not runs:
        raise ValueError(f"none of {', '.join(encoders)} is a run that names its data; give the data to evaluate on")
    data = [run_data(run) for run in runs]
    first = data[0]
    for run, other in zip(runs, data, strict=True):
        for name in _WHICH_IMAGES:
            ours, theirs = getattr(first, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(
                    f"{runs[0]} and {run} were trained on different data (data.{name} {ours!r} and {theirs!r}); "
                    "give the data to evaluate on"
                )
    return first


def _checkpoint(run: str) -> Path:
    path = Path(run) / "checkpoints" / "last.pt"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no checkpoint {path}; to use an exported backbone, give its .safetensors file"
        )
    return path


def _run_projection(run: str) -> tuple[nn.Module, BackboneCard]:
    if not Path(run).is_dir():
        raise ValueError(f"the projector is in the checkpoint of a run directory alone: give one, not {run!r}")
    encoder, card = load_encoder(run)
    if not card.projector:
        raise ValueError(f"the card of {run} describes no projector; use features backbone")
    state = load_checkpoint(_checkpoint(run))["method"]
    prefix = "projector."
    weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    projector = make_head(card.projector)
    try:
        projector.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the projector in {run} is not the one that its card describes: {error}") from error
    num_features = next(layer[2] for layer in reversed(card.projector) if layer[0] == "linear")
    return nn.Sequential(encoder, projector).eval(), dataclasses.replace(card, num_features=int(num_features))


def _timm_encoder(name: str) -> tuple[nn.Module, BackboneCard]:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ValueError(f"timm has no pretrained weights for {name!r}; timm.list_pretrained() lists those it has")
    torchvisions = f"{name}.tv_in1k"
    if "." not in name and config.tag != "tv_in1k" and timm.list_pretrained(torchvisions):
        logger.warning(
            "timm:%s is %s.%s; the supervised network of papers is torchvision's, by another recipe: timm:%s",
            *(name, name, config.tag, torchvisions),
        )
    channels, _, image_size = config.input_size
    encoder = make_encoder(EncoderConfig(name, "imagenet", "timm"), channels=channels, image_size=image_size)
    card = BackboneCard(
        name,
        channels,
        image_size,
        tuple(config.mean),
        tuple(config.std),
        num_features=cast(int, encoder.num_features),
        recipe=f"timm:{name}",
    )
    return encoder.eval(), card
