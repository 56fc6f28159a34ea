"""Weights files: an encoder's tensors in a file of ours or of another project, among whatever else it holds.

Nothing in a file is executed: it is read with ``weights_only=True``, and an object that is neither a tensor nor a plain
value, such as an ``argparse.Namespace``, becomes an inert stand-in.

Nested mappings are read as one, so MoCo's ``{"state_dict": {"module.encoder_q.conv1.weight": ...}}`` has the prefix
``state_dict.module.encoder_q.``. An encoder stands under a prefix if each of its tensors does, in its shape, and no
other tensor of the same layers. Names are timm's, which for ResNets are torchvision's, or the positions in an
``nn.Sequential`` of the model's children. Other tensors, such as heads and queues, are left out.
"""

import json
import math
import os
import pickle
import pickletools
import re
import shlex
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ssl_core.address import is_address

# Where a file holds several encoders, the first of these is taken: what the project itself evaluates. A file that holds
# one needs no line here: SimSiam's and SimCLR's `module.encoder.`, Barlow Twins' `module.backbone.`, SwAV's `module.`,
# VISSL's `trunk._feature_blocks.`, MAE's `model.`, and any other.
PREFERRED = {
    "method.encoder": "runs of ours, and not the momentum encoder",
    "state_dict_ema": "timm, and not state_dict",
    "model_ema": "torchvision, and not model",
    "teacher": "DINO, iBOT and DINOv2, and not student",
    "teacher_backbone": "DINO in lightly, and not student_backbone",
    "base_model.model": "VISSL, and not the momentum encoder of its loss",
    "backbone": "solo-learn, lightly, mmselfsup, DenseCL, and not momentum_backbone, backbone_momentum, encoder_k",
    "encoder_q": "MoCo v1 and v2, CLSA, and not encoder_k",
    "base_encoder": "MoCo v3, and not momentum_encoder",
    "online_network_state_dict": "BYOL of sthalles, and not target_network_state_dict",
    "online_encoder": "BYOL of lucidrains, and not target_encoder",
    "target_encoder": "I-JEPA, and not encoder",
    "encoder": "PixPro, solo-learn before 1.0.4, and not encoder_k, momentum_encoder",
}

# Parts of a name that DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into it.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

_LISTED = 12

# What torch reads by itself, among them dtypes and storages.
_KNOWN = re.compile(
    r"torch\.(\w+|_utils\.\w+|nn\.parameter\.Parameter)|collections\.OrderedDict|builtins\.set|_codecs\.encode"
)


class _Ignored:
    """Stands for an object in a file that is neither a tensor nor a plain value, and keeps nothing of it."""

    def __init__(self, *_: Any) -> None: ...

    def __new__(cls, *_: Any) -> Any:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...


class _IgnoredMapping:
    """The same for what may be a mapping: torch fills only its own."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _Place(NamedTuple):
    """A place in a file where an encoder may stand: the file's names of its tensors, and the misfits."""

    prefix: str
    names: dict[str, str]
    num_found: int
    problems: list[str]


def load_weights_(encoder: nn.Module, weights: Path | str, *, name: str) -> str:
    """Fill an encoder with the weights in a file.

    Args:
        encoder: timm module, changed in place.
        weights: path of a file of safetensors, of what ``torch.save`` wrote, or of a run directory with its backbone.
        name: name of the encoder, for messages.

    Returns:
        What was taken and what was left, in one line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, holds NaN, or does not hold exactly this encoder once or in a place of
            ``PREFERRED``.
    """
    path = _file(weights)
    originals, tensors = {}, {}
    for original, tensor in _read(path):
        clean = ".".join(part for part in original.split(".") if part not in _WRAPPERS)
        originals[clean], tensors[clean] = original, tensor
    wanted = encoder.state_dict()
    places = list(_places(encoder, wanted, tensors))
    fitting = sorted((place for place in places if not place.problems), key=_rank)
    if not fitting:
        raise ValueError(_refusal(path, name, encoder, wanted, tensors, places))
    taken, *others = fitting
    first = next(iter(wanted))
    prefixes = [
        originals[place.names[first]].removesuffix(place.names[first][len(place.prefix) :]) for place in fitting
    ]
    if others and _rank(taken) == _rank(others[0]):
        raise ValueError(f"{path} holds {len(fitting)} encoders, under {', '.join(prefixes)}; save one alone")
    state = {key: tensors[found] for key, found in taken.names.items() if found in tensors}
    for key, tensor in state.items():
        if not tensor.float().isfinite().all():
            raise ValueError(f"{path} holds NaN or infinity in {originals[taken.names[key]]}; give weights before that")
    encoder.load_state_dict(state, strict=False)
    unused = [key for key in tensors.keys() - taken.names.values() if tensors[key].is_floating_point()]
    left = _groups([originals[key] for key in unused], prefixes[0])
    num_tensors = sum(tensor.is_floating_point() for tensor in wanted.values())  # each, since it fits
    said = f"loaded {num_tensors} of {num_tensors} tensors of the encoder from {path}"
    said += f" (prefix {prefixes[0]})" if prefixes[0] else ""
    said += f"; left: {left}" if left else ""
    return said + (f"; {', '.join(prefixes[1:])} would fit too" if others else "")


def run_encoder(weights: Path | str) -> dict[str, Any] | None:
    """Name, options and stem, by key, of the encoder in a file that a run of ours has written; None of others' files.

    Args:
        weights: value of ``encoder.weights``.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if weights in ("random", "timm"):
        return None
    path = _file(weights)
    is_checkpoint = path.parent.name == "checkpoints"
    card = path.parents[1] / "backbone.json" if is_checkpoint else path.with_suffix(".json")
    values = json.loads(card.read_text()) if card.is_file() else None
    if not isinstance(values, dict) or "architecture" not in values:
        return None
    return {
        "encoder.name": values["architecture"],
        "encoder.options": values.get("options", {}),
        "encoder.stem": values.get("stem", "imagenet"),
    }


def _file(weights: Path | str) -> Path:
    if is_address(str(weights)):
        raise ValueError(f"encoder.weights {weights}: download it and give the file")
    path = Path(os.path.expanduser(weights))
    if (path / "backbone.safetensors").is_file():
        return path / "backbone.safetensors"
    if path.is_dir():
        raise FileNotFoundError(
            f"encoder.weights {str(weights)!r} is a folder without backbone.safetensors; give a file, such as a run's "
            "checkpoints/last.pt"
        )
    if not path.is_file():
        raise FileNotFoundError(f"encoder.weights {str(weights)!r} is neither random, timm nor a file")
    return path


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each in a file."""
    with path.open("rb") as file:
        head = file.read(64)
    foreign: list[str] = []
    try:
        # The length of a header of JSON, which safetensors limits.
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
            content: Any = load_file(path)
        else:
            foreign = _foreign_objects(path, head)
            # Opened, since torch goes by a path's suffix.
            with torch.serialization.safe_globals([*map(_stand_in, foreign)]), path.open("rb") as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what is damaged or of another kind fails in many ways
        lines = str(error).partition("\n\nCheck the documentation")[0].strip().splitlines() or [type(error).__name__]
        reason = _kind(head) or lines[-1 if isinstance(error, pickle.UnpicklingError) else 0].strip()
        if foreign and not isinstance(error, (RuntimeError, EOFError)):  # which are those of damage
            reason = f"it holds {', '.join(sorted(foreign)[:_LISTED])}, which is not read; save its state_dict alone"
        elif head.startswith(b"PK") and isinstance(error, (OSError, RuntimeError)):
            reason = "a zip archive that is truncated, or that torch.save has not written"
        raise ValueError(f"{path} is not a readable weights file: {reason}") from error
    return _flatten(content, "")


def _foreign_objects(path: Path, head: bytes) -> list[str]:
    """Names of the objects in a file that torch does not read by itself."""
    if head.startswith(b"PK"):
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with path.open("rb") as file:  # of before 2020: a number, a version and the system's sizes come before the content
        pickles = [list(pickletools.genops(file)) for _ in range(4)]
    names = {
        str(arg).replace(" ", ".").replace("__builtin__", "builtins")
        for opcode, arg, _ in pickles[3]
        if opcode.name == "GLOBAL"
    }
    return sorted(name for name in names if not _KNOWN.fullmatch(name))


def _kind(head: bytes) -> str:
    """The kind of a file that begins with these bytes, if no weights file does."""
    if not head:
        return "zero bytes"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, whose file was not fetched; run git lfs pull"
    if head.startswith(b"\x1f\x8b"):
        return "a gzip archive; unpack it"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a page of HTML; download the file itself"
    return "text" if head.isascii() and min(head) > 8 else ""


def _stand_in(name: str) -> Callable[..., Any] | tuple[Callable[..., Any], str]:
    return _Ignored if name.startswith("numpy.") else _IgnoredMapping, name


def _flatten(content: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(key, str):  # an optimizer's state is numbered
                yield from _flatten(value, f"{prefix}{key}.")


def _places(encoder: nn.Module, wanted: dict[str, Tensor], tensors: dict[str, Tensor]) -> Iterator[_Place]:
    """Every place in a file where the encoder's first tensor stands."""
    children = [child for child, _ in encoder.named_children()]
    spellings = [{key: key for key in wanted}]
    if all(key.partition(".")[0] in children for key in wanted):
        tops = {child: str(position) for position, child in enumerate(children)}
        spellings.append({key: tops[key.partition(".")[0]] + "." + key.partition(".")[2] for key in wanted})
    for spelling in spellings:
        first = next(iter(spelling.values()))
        layers = {key.partition(".")[0] for key in spelling.values()}
        for key in tensors:
            if f".{key}".endswith(f".{first}"):
                prefix = key.removesuffix(first)
                names = {wanted_key: prefix + spelled for wanted_key, spelled in spelling.items()}
                found = {wanted_key: tensors[key] for wanted_key, key in names.items() if key in tensors}
                # Integers are counters and indices, and older files lack BatchNorm's num_batches_tracked.
                problems = [
                    f"{names[key]} is missing"
                    for key, tensor in wanted.items()
                    if key not in found and tensor.is_floating_point()
                ]
                known = set(names.values())
                problems += [
                    f"{key} is not in the encoder"
                    for key, tensor in tensors.items()
                    if key.startswith(prefix) and key[len(prefix) :].partition(".")[0] in layers
                    if tensor.is_floating_point() and key not in known
                ]
                problems += [
                    f"{names[key]} is {tuple(tensor.shape)}, the encoder's is {tuple(wanted[key].shape)}"
                    for key, tensor in found.items()
                    if tensor.shape != wanted[key].shape
                ]
                yield _Place(prefix, names, len(found), problems)


def _rank(place: _Place) -> int:
    return next((rank for rank, part in enumerate(PREFERRED) if f".{part}." in f".{place.prefix}"), len(PREFERRED))


def _refusal(
    path: Path,
    name: str,
    encoder: nn.Module,
    wanted: dict[str, Tensor],
    tensors: dict[str, Tensor],
    places: list[_Place],
) -> str:
    run = run_encoder(path) or {}
    said = {key: value if isinstance(value, str) else json.dumps(value) for key, value in run.items()}
    made = " ".join(f"--{key} {shlex.quote(value)}" for key, value in said.items())
    place = max(places, key=lambda place: place.num_found, default=None)
    if place is None or 2 * place.num_found < min(len(wanted), len(tensors)):
        shared = os.path.commonprefix(list(tensors)).rpartition(".")[0]  # noqa: RUF071  # parts end at dots
        groups = _groups(list(tensors), shared and f"{shared}.")
        return f"{path} holds no encoder with the names of {name}; it holds {groups or 'no state dict'}" + (
            f"; it was made with {made}" if made else ""
        )
    listed = place.problems[:_LISTED]
    if more := len(place.problems) - len(listed):
        listed.append(f"and {more} more")
    shapes = {key: tensors[found].shape for key, found in place.names.items() if found in tensors}
    hints = "".join(f"; {hint}" for hint in _hints(encoder, wanted, shapes, made))
    return (
        f"{path} does not fit {name}{hints or '; use the name, stem, options and channels it was made with'}:"
        + "".join(f"\n  {problem}" for problem in listed)
    )


def _hints(encoder: nn.Module, wanted: dict[str, Tensor], shapes: dict[str, torch.Size], made: str) -> Iterator[str]:
    """The settings that would give the encoder the shapes in the file, as far as these tell."""
    first = next((key for key in wanted if wanted[key].ndim == 4 and key in shapes and len(shapes[key]) == 4), None)
    if first is not None:
        _, channels, *kernel = shapes[first]
        if channels != wanted[first].shape[1]:
            yield f"it takes {channels} channels: --data.channels {channels}"
        if not made and isinstance(encoder, ResNet) and kernel != [*wanted[first].shape[2:]]:
            yield f"it has another stem: --encoder.stem {'imagenet' if kernel == [7, 7] else 'small (or small_pool)'}"
    if made:
        yield f"it was made with {made}"
        return
    position = shapes.get("pos_embed")
    if position is not None and position != wanted["pos_embed"].shape and len(position) == 3:
        grid = math.isqrt(position[1] - getattr(encoder, "num_prefix_tokens", 0))
        size = grid * shapes["patch_embed.proj.weight"][-1]
        yield f"it is for {size} px: --encoder.options '{{img_size: {size}, dynamic_img_size: true}}'"


def _groups(names: list[str], prefix: str) -> str:
    """Names in words: those that part from the prefix, and from each other, at the same point are counted together."""
    counts: Counter[str] = Counter()
    for name in names:
        stem = prefix
        while not name.startswith(stem):
            stem = stem.rstrip(".").rpartition(".")[0]
            stem += "." if stem else ""
        top, dot, _ = name[len(stem) :].partition(".")
        counts[stem + top + (".*" if dot else "")] += 1
    listed = [f"{group} ({count})" if group.endswith(".*") else group for group, count in sorted(counts.items())]
    if len(listed) > _LISTED:
        listed = [*listed[:_LISTED], f"and {len(listed) - _LISTED} more"]
    return ", ".join(listed)
