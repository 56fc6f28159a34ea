"""A ResNet in a file that detectron2 loads, and the lines of configuration by which detectron2 builds that ResNet.

The configurations of the papers' detectors are in the folder ``detectron2_configs`` beside this file. detectron2 skips
a tensor of another shape with no more than a warning, and asks for no tensor that it misses. So what it would build is
compared here, shape by shape and then by the features of the same weights, before anything is written.
"""

import pickle
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from ssl_core.backbone import BackboneCard
from ssl_core.files import write_atomically

CONFIGS = Path(__file__).with_name("detectron2_configs")

_FORMATS = {1: "L", 3: "RGB"}  # modes of Pillow, as which detectron2 reads an image of so many channels
_DEPTHS: dict[tuple[type[nn.Module], tuple[int, ...]], int] = {
    (BasicBlock, (2, 2, 2, 2)): 18,
    (BasicBlock, (3, 4, 6, 3)): 34,
    (Bottleneck, (3, 4, 6, 3)): 50,
    (Bottleneck, (3, 4, 23, 3)): 101,
    (Bottleneck, (3, 8, 36, 3)): 152,
}
_BASIC_CHANNELS = 64  # of res2, in every ResNet of basic blocks that detectron2 builds


def write_detectron2(path: Path, encoder: nn.Module, card: BackboneCard) -> str:
    """Write an encoder's weights by detectron2's names.

    Args:
        path: file to write: ``.pth`` holds tensors, ``.pkl`` NumPy's arrays.
        encoder: timm module in eval mode, on the CPU.
        card: description of the encoder.

    Returns:
        What detectron2 has to be told to build the encoder.

    Raises:
        ValueError: naming why detectron2 does not build this encoder, and the alternative.
    """
    config = {"MODEL.WEIGHTS": str(path.resolve()), **detectron2_config(encoder, card)}
    state = {detectron2_name(name): tensor.detach().contiguous() for name, tensor in encoder.state_dict().items()}
    content: dict[str, Any] = {"model": state, "__author__": "ssl-core", "matching_heuristics": True}
    if path.suffix == ".pkl":
        content["model"] = {name: tensor.numpy() for name, tensor in state.items()}
        write_atomically(path, lambda file: pickle.dump(content, file))
    else:
        write_atomically(path, lambda file: torch.save(content, file))
    lines = " \\\n".join(f"  {key} {shlex.quote(str(value))}" for key, value in config.items())
    notes = [f"detectron2 builds this encoder by these words at the end of its command:\n{lines}"]
    if config["MODEL.RESNETS.DEPTH"] < 50:
        notes.append("with FPN alone: the C4 head has bottleneck blocks, which would start from random weights")
    notes.append(f"configurations of the papers' detectors, not run: {CONFIGS}")
    return "\n".join(notes)


def detectron2_name(name: str) -> str:
    """The name that detectron2 has for a tensor of timm's or torchvision's ResNet.

    Example:
        >>> [detectron2_name(name) for name in ("bn1.bias", "layer1.0.conv3.weight", "layer2.0.downsample.1.weight")]
        ['stem.conv1.norm.bias', 'res2.0.conv3.weight', 'res3.0.shortcut.norm.weight']
    """
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    stage = re.match(r"layer(\d)", name)
    return f"res{int(stage[1]) + 1}{name[stage.end() :]}" if stage else f"stem.{name}"


def detectron2_config(encoder: nn.Module, card: BackboneCard) -> dict[str, Any]:
    """The keys of detectron2's configuration by which it builds an encoder and feeds it, and freezes nothing of it.

    Args:
        encoder: timm module in eval mode, on the CPU.
        card: description of the encoder.

    Raises:
        ValueError: naming why detectron2 does not build this encoder, and the alternative.
    """
    if card.channels not in _FORMATS:
        raise _refusal(card, f"it reads images of 1 channel or 3, not {card.channels}")
    if card.stem != "imagenet":
        remedy = "pretrain with --encoder.stem imagenet, or take --to onnx or torch"
        raise _refusal(card, f"its stem is a 7x7 convolution of stride 2 with a max-pool, not {card.stem}", remedy)
    shape = _find_shape(encoder, card)
    _check_plain(encoder, card, shape)
    return {
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.PIXEL_MEAN": [round(255 * value, 6) for value in card.mean],
        "MODEL.PIXEL_STD": [round(255 * value, 6) for value in card.std],
        "MODEL.RESNETS.DEPTH": shape.depth,
        "MODEL.RESNETS.NUM_GROUPS": shape.groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": shape.group_width,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": shape.out_channels,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "INPUT.FORMAT": _FORMATS[card.channels],
    }


class _Shape(NamedTuple):
    """A ResNet in detectron2's terms: its widths are those of the first stage, and double from stage to stage."""

    block: type[BasicBlock | Bottleneck]
    layers: tuple[int, ...]
    groups: int
    group_width: int
    out_channels: int

    @property
    def depth(self) -> int:
        return _DEPTHS[self.block, self.layers]


def _find_shape(encoder: nn.Module, card: BackboneCard) -> _Shape:
    if not isinstance(encoder, ResNet):
        raise _refusal(card, f"it builds ResNets, not a {type(encoder).__name__}")
    stages = [cast(Any, child) for name, child in encoder.named_children() if name.startswith("layer")]
    layers, first = tuple(map(len, stages)), stages[0][0]
    if (type(first), layers) not in _DEPTHS:
        blocks = f"{' + '.join(map(str, layers))} {type(first).__name__}s"
        raise _refusal(card, f"it builds ResNets of 18, 34, 50, 101 and 152 layers, not of {blocks}")
    out_channels = first.conv2.out_channels if type(first) is BasicBlock else first.conv3.out_channels
    if type(first) is BasicBlock and out_channels != _BASIC_CHANNELS:
        raise _refusal(card, f"its basic blocks begin with {_BASIC_CHANNELS} channels, not {out_channels}")
    groups = first.conv2.groups
    return _Shape(type(first), layers, groups, first.conv2.out_channels // groups, out_channels)


def _check_plain(encoder: nn.Module, card: BackboneCard, shape: _Shape) -> None:
    """Refuse what is more than a ResNet of its shape: another stem or shortcut, attention, antialiasing, dilation."""
    planes = shape.out_channels // shape.block.expansion
    plain = ResNet(
        cast(Any, shape.block),
        shape.layers,
        num_classes=0,
        in_chans=card.channels,
        cardinality=shape.groups,
        base_width=cast(int, 64 * shape.group_width / planes),
        channels=tuple(planes * 2**stage for stage in range(4)),
    ).eval()
    state, wanted = encoder.state_dict(), plain.state_dict()
    for name in [*state, *wanted]:
        found, expected = (tuple(tensors[name].shape) if name in tensors else None for tensors in (state, wanted))
        if found != expected:
            difference = f"no {name}" if expected is None else f"{name} of shape {expected}, not {found}"
            raise _refusal(card, f"its ResNet-{shape.depth} has {difference}")
    plain.load_state_dict(state)
    images = torch.randn(2, card.channels, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = torch.equal(plain.forward_features(images), cast(ResNet, encoder).forward_features(images))
    if not same:
        reason = f"its ResNet-{shape.depth} of the same weights gives other features"
        raise _refusal(card, f"{reason}, for want of this one's antialiasing, dilation, activation or the like")


def _refusal(card: BackboneCard, reason: str, remedy: str = "take --to onnx or torch") -> ValueError:
    return ValueError(f"detectron2 cannot build {card.architecture}: {reason}; {remedy}")
