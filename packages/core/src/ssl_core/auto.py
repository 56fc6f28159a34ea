"""Decisions of a run before anything is decoded: open values of the recipe ``auto``, and the precision.

A value is decided from the images and the machine, printed with its reason, and saved, so that a resumed run and a
repetition decide nothing. Values that the command line gives are left alone.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch

from ssl_core import distributed
from ssl_core.build import Parts
from ssl_core.config import to_dict, value_at, with_given, with_values
from ssl_core.data import Images, probed
from ssl_core.data.workers import most_workers
from ssl_core.duration import duration, seconds_of
from ssl_core.given import is_given
from ssl_core.machine import usable_cores
from ssl_core.nn import run_encoder, strides_over_a_pixel
from ssl_core.run import Config, PretrainConfig, TrainedMethod
from ssl_core.trial import decoding_seconds, fits_memory, image_seconds, time_in_turns
from ssl_core.views import ViewConfig
from ssl_core.views.ops import RandomResizedCrop

LEAST_IMAGES = 16
# Without epochs and without a budget: images that a run sees in all, within these bounds of epochs.
_IMAGES_SEEN, _LEAST_EPOCHS, _MOST_EPOCHS = 600_000, 100, 1000
_RECIPE_EPOCHS = 100  # that every recipe `auto` is written for
_NARROW = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}
# Under so many images, crops are of this part or more of the area: benchmarks/results/.
_FEW_IMAGES, _LEAST_CROP = 20_000, 0.7
_LONG_S = 24 * 3600
_AHEAD = 1.5  # times as many images as the GPU takes are decoded, since neither takes the same time always


@dataclass(frozen=True)
class Machine:
    """The part of a machine that a run may use.

    Attributes:
        device: device that trains.
        cores: number of processors that this process may use.
        memory_gib: memory of the device; 0 for a CPU.
        name: name of a GPU.
    """

    device: torch.device
    cores: int
    memory_gib: float = 0.0
    name: str = ""

    @property
    def is_small(self) -> bool:
        """Whether it is a CPU of a laptop rather than a server or a GPU."""
        return self.device.type == "cpu" and self.cores <= 16

    def __str__(self) -> str:
        if self.device.type == "cpu":
            return f"{self.cores} CPU core{'s' * (self.cores > 1)}"
        return self.name or self.device.type


def this_machine(device: torch.device) -> Machine:
    """The machine that trains on a device."""
    if device.type != "cuda":
        return Machine(device, usable_cores())
    properties = torch.cuda.get_device_properties(device)
    return Machine(device, usable_cores(), properties.total_memory / 2**30, properties.name)


class Seen(NamedTuple):
    """Facts about the images, from a look at a few.

    Attributes:
        number: number of all images.
        sides: short sides of the few in pixels, ascending, or their smallest, median and largest.
        channels: number of channels that all images are read with.
    """

    number: int
    sides: tuple[int, ...]
    channels: int


def look_at(images: Images) -> Seen:
    """A look at a few images, evenly spaced over all.

    Raises:
        ValueError: if none of the few can be read.
    """
    readable, broken = probed(images)
    if not readable:
        raise ValueError(f"none of {len(broken)} images tried of {images.name} can be read: {broken[0]}")
    return Seen(len(images), tuple(sorted(min(image.shape[-2:]) for image in readable)), len(readable[0]))


class Decision(NamedTuple):
    """A value that was decided.

    Attributes:
        key: dotted key in the configuration.
        text: value as it is printed.
        reason: reason for the value.
    """

    key: str
    text: str
    reason: str


def decided(config: Config, seen: Seen, machine: Machine, given: Collection[str]) -> tuple[Config, list[Decision]]:
    """The configuration with its open values decided, and the decisions.

    Args:
        config: configuration of a recipe ``auto``.
        seen: facts about the training images.
        machine: machine that trains.
        given: keys that stay as they are.

    Raises:
        ValueError: if there are too few images to train on.
    """
    number, sides, channels = seen
    if number < LEAST_IMAGES:
        raise ValueError(
            f"data.source {config.data.source} has {number} images and --config auto takes {LEAST_IMAGES} or more; add "
            "images, or name another recipe"
        )
    decisions: list[Decision] = []

    def take(key: str, value: Any, reason: str, text: str = "") -> None:
        nonlocal config
        config = with_values(config, {key: value})
        decisions.append(Decision(key, text or f"{value:,}", reason))

    def decide(key: str, value: Any, reason: str, text: str = "") -> None:
        if not is_given(given, key):
            take(key, value, reason, text)

    size, why = _view_size(sides, machine)
    least_crop = _LEAST_CROP if number < _FEW_IMAGES else 0.0
    scale = size / max(side for view in config.views for side in view.sizes)
    decide("views", [_adapted(view, scale, channels, least_crop) for view in config.views], why, f"{size} px")
    if decisions and least_crop:
        reason = f"under {_FEW_IMAGES:,} images, smaller crops teach a short run less"
        decisions.append(Decision("", f"crops of {100 * least_crop:.0f} % or more", reason))
    if decisions and channels == 1:
        decisions.append(Decision("", "no hue, saturation, gray", "images have 1 channel"))

    of_run = run_encoder(config.encoder.weights)
    for option, value in (of_run or {}).items():
        decide(option, value, "of the run that encoder.weights names", str(value))
    if of_run is None:
        name = _encoder_name(number, machine)
        decide("encoder.name", name, f"for {number:,} images on {machine}", name)
    is_own = config.encoder.weights == "random" and not is_given(given, "encoder.name") and not config.encoder.options
    if machine.is_small and is_own:
        decide("encoder.options", _NARROW, "trains on a CPU", "a block of 32 to 256 channels a stage")
        if max(size for spec in config.view_specs() for size in spec.sizes) <= 100:
            decide("encoder.stem", "small_pool", "a fourth of the work of a stem without max-pool", "3x3, max-pool")

    most = 32 if machine.device.type == "cpu" else 256
    parts = config.train.accumulate * distributed.world_size()
    batch = max(1, min(most, max(8, 2 ** int(math.log2(number / 8)))) // parts) * parts
    why = "fills a GPU" if batch == 256 else "more steps in the same time than of a larger one"
    decide("train.batch_size", batch, why if batch >= most else f"there are {number:,} images")
    if queue := config.open_queue(given):
        longest = value_at(to_dict(config), queue)
        length = max(min(2 ** int(math.log2(number / 2)), longest), 2 * config.train.batch_size)
        why = "at most half of the images, so that few keys are of those in the batch"
        take(queue, length, why if length <= number / 2 else "keys of two batches")
    if config.budget is None:
        if not is_given(given, "train.steps"):
            epochs = min(max(round(_IMAGES_SEEN / number), _LEAST_EPOCHS), _MOST_EPOCHS)
            decide("train.epochs", epochs, f"{epochs * number:,} images seen; --budget 1h would take an hour")
        steps = max(1, number // config.train.batch_size)
        ratio = config.train.total_steps(steps) / (_RECIPE_EPOCHS * steps)
        config = with_given(cast(Config, config.scaled(ratio)), config, given)
    decide("data.workers", *_workers(config, seen, machine))
    return replace(config, auto=False), decisions


def decisions_text(decisions: Sequence[Decision]) -> str:
    """A line for each decision."""
    widths = [max(len(decision[column]) for decision in decisions) for column in (0, 1)]
    return "\n".join(f"  {key:{widths[0]}}  {text:{widths[1]}}  {reason}" for key, text, reason in decisions)


def _encoder_name(num_images: int, machine: Machine) -> str:
    return "resnet50" if machine.device.type == "cuda" and num_images >= 50_000 else "resnet18"


def _view_size(sides: Sequence[int], machine: Machine) -> tuple[int, str]:
    """Side of the views, and the reason for it."""
    if machine.device.type == "cpu":
        largest = 32 if machine.cores <= 8 else 64
    else:
        largest = 224 if machine.memory_gib >= 15 else 128
    median = sides[len(sides) // 2]
    if median < largest:
        span = f"{sides[0]}" if sides[0] == sides[-1] else f"{sides[0]} to {sides[-1]}"
        return max(8, 4 * (median // 4)), f"images have a short side of {span} px"
    return largest, f"trains on {machine} in reasonable time; images have {sides[0]} px and more"


def _workers(config: PretrainConfig, seen: Seen, machine: Machine) -> tuple[int, str]:
    """Number of worker processes of each training process, and the reason for it."""
    cores = machine.cores // distributed.local_world_size()
    if machine.device.type == "cpu":
        workers, why = cores // 4 if cores > 4 else 0, "the training itself takes the cores"
        image_bytes = 4 * seen.channels * sum(size**2 for spec in config.view_specs() for size in spec.sizes)
    else:
        workers, why = max(0, min(cores - 1, 16)), f"one of {cores} cores is left to the training"
        image_bytes = 4 * seen.channels * seen.sides[-1] ** 2  # images themselves
    fitting = most_workers(config.train.batch_size * image_bytes)
    return (workers, why) if workers <= fitting else (fitting, "as many as /dev/shm holds batches of")


def _adapted(view: ViewConfig, scale: float, channels: int, least_crop: float) -> ViewConfig:
    """A view of a recipe at another size, with larger crops, and without changes of color where there is none."""
    sizes = [max(8, 4 * round(side * scale / 4)) for side in view.sizes]
    ops = view.augmentation
    if not isinstance(ops, str):
        ops = [op if isinstance(op, str) else _adapted_op(op, channels, least_crop) for op in ops]
        ops = [op for op in ops if op]
    return replace(view, size=sizes[0] if isinstance(view.size, int) else sizes, augmentation=ops)


def _adapted_op(op: dict[str, Any], channels: int, least_crop: float) -> dict[str, Any]:
    """An op of a view as it suits the images; empty where it suits none of them."""
    ((name, arguments),) = op.items()
    if name == "random_resized_crop":
        least, most = (arguments or {}).get("scale", RandomResizedCrop().scale)
        return {name: {**(arguments or {}), "scale": [max(least, least_crop), max(most, least_crop)]}}
    if channels > 1 or name not in ("color_jitter", "grayscale"):
        return op
    return {} if name == "grayscale" else {name: {**(arguments or {}), "saturation": 0.0, "hue": 0.0}}


def faster_precision(
    config: Config, build: Callable[[Config], Parts[TrainedMethod]], *, channels: int, device: torch.device
) -> tuple[Config, Decision]:
    """The configuration with the precision in which its steps take less time, tried in turns on noise.

    Args:
        config: configuration with ``train.precision`` auto.
        build: function of a configuration that makes its parts.
        channels: number of channels of the images.
        device: device that trains.
    """
    choices = {name: with_values(config, {"train.precision": name}) for name in ("float32", "bfloat16")}
    built = {"float32": build(choices["float32"])}
    sizes = {size for spec in config.view_specs() for size in spec.sizes}
    if device.type == "cpu" and strides_over_a_pixel(built["float32"].encoder, channels, sizes):
        reason = f"at {min(sizes)} px a convolution strides over a single pixel, which bfloat16 gets wrong"
        return choices["float32"], Decision("train.precision", "float32", reason)
    built["bfloat16"] = build(choices["bfloat16"])
    seconds = time_in_turns(built, choices, channels)
    best = min(seconds, key=lambda name: seconds[name])
    text = ", ".join(f"{name} {1000 * each:.3g} ms" for name, each in seconds.items())
    return choices[best], Decision("train.precision", best, f"a step takes {text}")


def fitting_batch(config: Config, build: Callable[[Config], Parts[TrainedMethod]], *, channels: int) -> Config:
    """The configuration with its batch halved until one step of it, tried on noise, fits the GPU's memory.

    Args:
        config: configuration whose ``train.batch_size`` is tried first.
        build: function of a configuration that makes its parts.
        channels: number of channels of the images.

    Raises:
        ValueError: if not even a batch of 8 fits.
    """
    while not fits_memory(config, build, channels=channels):
        size = config.train.batch_size // 2
        if size < 8:
            raise ValueError(f"not one step of {2 * size} images fits the memory of the GPU; take smaller views")
        config = with_values(config, {"train.batch_size": size})
    return config


def feeding_workers(
    config: Config,
    build: Callable[[Config], Parts[TrainedMethod]],
    images: Images,
    *,
    channels: int,
) -> tuple[Config, Decision | None]:
    """The configuration with no more workers than keep its GPU from waiting for images, and the decision.

    Args:
        config: configuration whose ``data.workers`` are the most that the machine has for it.
        build: function of a configuration that makes its parts.
        images: training images, a few of which are decoded here.
        channels: number of channels of the images.
    """
    step_s = time_in_turns({"": build(config)}, {"": config}, channels)[""]
    batch = config.train.batch_size // distributed.world_size()
    decoding_s = batch * decoding_seconds(images)
    workers = max(1, math.ceil(_AHEAD * decoding_s / step_s))
    if workers >= config.data.workers:
        return config, None
    why = f"a batch takes {1000 * decoding_s:.3g} ms to decode and {1000 * step_s:.3g} ms on the GPU"
    return with_values(config, {"data.workers": workers}), Decision("data.workers", f"{workers}", why)


def forecast(config: PretrainConfig, seen: Seen, machine: Machine) -> str | None:
    """A warning of a run that would take long, or see few images in its budget; None for other runs.

    Args:
        config: configuration of the run.
        seen: facts about the training images.
        machine: machine that trains.

    Raises:
        ValueError: if its budget is too short for one step.
    """
    number, sides, channels = seen
    image_s = distributed.broadcast_object(image_seconds(config, channels=channels, device=machine.device))
    image_s /= distributed.world_size()
    training = config.train
    rows = min(training.batch_size, number)
    is_too_short = config.budget is not None and seconds_of(config.budget) < rows * image_s
    epochs = training.epochs if training.steps is None else training.steps * training.batch_size / number
    sizes = [size for spec in config.view_specs() for size in spec.sizes]
    told = f"{config.encoder.name} at {max(sizes)} px on {machine}: about {1 / image_s:,.3g} images/s"
    if config.budget is not None:
        part = seconds_of(config.budget) / (number * image_s)
        if part >= 1:
            return None
        shown = f"shows {100 * part:.2g} % of {number:,} images once"
        told += f", so that --budget {config.budget} "
        told += f"is too short for one step of {rows} images" if is_too_short else shown
    elif epochs * number * image_s >= _LONG_S:
        told += f", {duration(epochs * number * image_s)} for {epochs:,.0f} epochs of {number:,}"
    else:
        return None
    name, side = _encoder_name(number, machine), _view_size(sides, machine)[0]
    if config.encoder.name != name or side != max(sizes):
        told += f"; --config auto --budget {config.budget or '1h'} would take {name} at {side} px"
    if is_too_short:
        raise ValueError(told)
    return told
