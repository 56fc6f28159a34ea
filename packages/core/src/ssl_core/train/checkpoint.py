"""Checkpoints: everything that the next step depends on, in one file that is either whole or absent."""

import copy
import logging
import pickle
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_core import distributed
from ssl_core.config import Config, config_difference, leaves, to_dict, value_at, with_plain_values
from ssl_core.files import write_atomically
from ssl_core.given import is_given
from ssl_core.train.method import Sharded

logger = logging.getLogger(__name__)

_FORMAT = 5


def save_checkpoint(
    path: Path,
    *,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: dict[str, Any],
    step: int,
    config: dict[str, Any],
    data: dict[str, Any],
) -> None:
    """Write a checkpoint atomically: a crash or a full disk leaves the previous file as it was.

    Every process must call this, since each contributes its generator states; the first one writes, and the others wait
    until it has: a launcher that sees one of them end soon ends the first.
    There is no loss scaler to save: mixed precision here is bfloat16, which needs none.

    Args:
        path: file of the checkpoint, in a folder that exists.
        method: module whose parameters and buffers (queue, cursor, running statistics) are kept.
        optimizer: optimizer whose state is kept.
        batches: state of the batches, tensors and plain values.
        step: number of optimizer steps done; with the config it gives the epoch and the position in it.
        config: complete configuration of the run, plain values only.
        data: plain values that tell the run's images from others, their normalization, the values that were ``asked``
            for and gave way to them, by key, and the keys that the user had set ``in_part``.

    Raises:
        OSError: in every process, if the file cannot be written; says whether there is an earlier one.
    """
    generators = distributed.gather_objects(_generator_states())
    state = whole_state(method)
    content = {
        "format": _FORMAT,
        "method": state,
        "optimizer": optimizer.state_dict(),
        "batches": batches,
        "step": step,
        "generators": generators,
        "config": config,
        "data": data,
        "versions": {name: version(name) for name in ("ssl-core", "torch", "timm")},
    }
    trouble = None
    if distributed.is_main():
        try:
            write_atomically(path, lambda file: torch.save(content, file))
        except OSError as error:
            trouble = error
    if (trouble := distributed.broadcast_object(trouble)) is not None:
        raise trouble


def whole_state(method: nn.Module) -> dict[str, Any]:
    """A method's state as that of a single process, whatever is sharded; all processes call it, for the first one."""
    state = method.state_dict()
    for name, module in method.named_modules():
        if isinstance(module, Sharded):
            for share in module.sharded_buffers:
                del state[f"{name}.{share}"]
            state |= {f"{name}.{key}": value for key, value in module.whole_state().items()}
    return state


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, on the CPU, executing nothing from the file.

    Tensors are pages of the file until they are used, so that processes that take a share of a queue hold no more.

    Raises:
        ValueError: if the file is truncated, not a checkpoint, or of another version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        kept = [other for other in sorted(path.parent.glob("epoch_*.pt")) if other != path]
        remedy = f"continue from another, such as --resume {kept[-1]}" if kept else "there is no other beside it"
        raise ValueError(
            f"{path} is not a readable checkpoint: truncated, or of another kind; {remedy}, or choose another --out"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{path} is not a checkpoint of a run")
    if content["format"] != _FORMAT:
        raise ValueError(
            f"{path} is of format {content['format']}, from another version of ssl-core, and this one reads format "
            f"{_FORMAT} alone: resume with the version that wrote it, or choose another --out"
        )
    return content


def load_run(path: Path, config: Config, given: Collection[str] | None) -> tuple[dict[str, Any], Config]:
    """The checkpoint of a run that is to be continued, and its configuration with what gave way at its start.

    Args:
        path: file of the checkpoint.
        config: complete configuration of the run as it is now.
        given: options that the user has set, which do not give way; None if that is not known.

    Raises:
        ValueError: as :func:`load_checkpoint`, and for a checkpoint of another configuration, with the difference.
    """
    content = load_checkpoint(path)
    if not content["data"]:
        raise ValueError(f"{path} is of an evaluation, which its own command continues: choose another --out")
    now = dict(leaves(config))
    same = [
        key
        for key, asked in content["data"]["asked"].items()
        if now[key] == asked and (key in content["data"].get("in_part", ()) or not is_given(given or (), key))
    ]
    if same:
        config = with_plain_values(config, {key: value_at(content["config"], key) for key in same})
    if difference := config_difference(content["config"], to_dict(config)):
        longer = any(line.startswith("train.epochs:") for line in difference)
        raise ValueError(
            f"{path} was made with another configuration, so continuing would mix two runs:\n  "
            + "\n  ".join(difference)
            + "\nChoose another --out, or give these keys their old values."
            + longer * f"\nA new run of so many epochs can start from the encoder of this one: --encoder.weights {path}"
        )
    return content, config


def same_in_all_processes(content: Mapping[str, Any] | None, path: Path | None) -> None:
    """Check that all processes continue from the same step, as they do where they see the same folder.

    Args:
        content: checkpoint that this process has read; None where it has found none.
        path: file or folder in which it has looked.

    Raises:
        ValueError: in every process, if they do not.
    """
    steps = distributed.gather_objects(0 if content is None else content["step"])
    if len({*steps}) > 1:
        raise ValueError(
            f"processes find different checkpoints in {path}, of steps {steps} (0 is none): --out must be a folder "
            "that all machines see. Where it is, a network disk may show an old state for a minute: start again"
        )


def same_data(content: Mapping[str, Any], data: Mapping[str, Any], *, accept: bool) -> bool:
    """Whether a run goes on with the images that it began with.

    Args:
        content: checkpoint that it continues from.
        data: number of images and of classes, and a digest, as they are now.
        accept: whether the run may continue with other images.

    Raises:
        ValueError: if they are others, with the difference, unless ``accept``.
    """
    before = content["data"]
    difference = [f"{key}: {before[key]} -> {data[key]}" for key in ("images", "classes") if before[key] != data[key]]
    if before["digest"] != data["digest"]:
        difference.append("names, sizes or pixels differ")
    if difference and not accept:
        raise ValueError(
            f"the data is no longer what the run has been trained on up to step {content['step']}:\n  "
            + "\n  ".join(difference)
            + "\nGive it the images of before, choose another --out, or go on with these and the run's mean and std: "
            "--data.changed accept"
        )
    if difference:
        logger.warning("the run goes on from step %d with other data: %s", content["step"], ", ".join(difference))
    return not difference


def same_processes(content: Mapping[str, Any], *, batch_size: int, depends: bool, accept: bool) -> None:
    """Check that a run goes on in as many processes as before, where its numbers depend on that.

    Elsewhere each step has the same images, in the same order, and the same queue: losses agree within rounding.

    Args:
        content: checkpoint that it continues from.
        batch_size: number of images of a forward in all processes.
        depends: whether the run has BatchNorm whose statistics are of one process, see
            :func:`ssl_core.nn.depends_on_processes`.
        accept: whether the run may continue all the same.

    Raises:
        ValueError: if it depends on them and there are others, unless ``accept``.
    """
    before, now = len(content["generators"]), distributed.world_size()
    if before == now:
        return
    shares = f"{before} process{'es' * (before > 1)}, {batch_size // before} images each", f"{batch_size // now}"
    text = f"it has been trained in {shares[0]}, up to step {content['step']}, and now there are {now} of {shares[1]}"
    if not depends:
        logger.info("%s: losses agree within rounding", text)
    elif accept:
        logger.warning("%s: BatchNorm's statistics are of other numbers of images from here on", text)
    else:
        raise ValueError(
            f"{text}: BatchNorm's statistics, shuffled, split or plain, are of the images of one process, and would "
            f"make it another run. Start {before} process{'es' * (before > 1)}, or go on all the same: "
            "--train.processes_changed accept. (A run with train.sync_batch_norm goes on in any number.)"
        )


def restore_(content: dict[str, Any], *, method: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint's state into the method, the optimizer and the generators.

    Returns:
        Number of optimizer steps done.
    """
    method.load_state_dict(content["method"])
    optimizer.load_state_dict(copy.deepcopy(content["optimizer"]))  # on a CPU it would keep the file's own pages
    states = content["generators"]
    # Of more processes than before, several go on from the same state, as all do at the start of a run.
    _set_generator_states(states[distributed.rank() % len(states)])
    return int(content["step"])


def _generator_states() -> dict[str, Any]:
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generator_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
