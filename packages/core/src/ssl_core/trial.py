"""Measurements before a run begins, of methods that are built for it and thrown away."""

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.build import Parts
from ssl_core.data import Batch, Images, probed, rows_at_once
from ssl_core.nn import make_encoder
from ssl_core.run import Config, PretrainConfig, TrainedMethod
from ssl_core.step import Step
from ssl_core.train import Method, TrainConfig
from ssl_core.train.captured import WARM_UP
from ssl_core.train.stepper import MicroBatch, Stepper
from ssl_core.train.window import Window

_FIRST = 3  # steps that choose kernels, fill caches and start workers
_ROUNDS, _ROUND_S = 2, 0.5  # of a comparison: times that each has its turn, and seconds of a turn
# Images of noise: no larger batch is tried than this, and none that would take so many seconds.
_MOST_NOISE, _LONG_NOISE_S = 64, 1.0


def random_views(method: Any, rows: int, channels: int) -> tuple[Tensor, ...]:
    """A batch of noise for each view and size that a method asks for: (n c s s) each."""
    return tuple(torch.randn(rows, channels, size, size) for spec in method.views for size in spec.sizes)


def time_steps(
    method: Method,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    micro_batches: Iterator[MicroBatch],
    *,
    seconds: float,
    health: Callable[[Tensor], dict[str, float]] | None = None,
) -> float:
    """Seconds that an optimizer step takes, its batch, its update and its share of the log included.

    The method's queue and momentum branch move, its parameters do not: the learning rate is 0. Build another for the
    training.

    Args:
        method: method on its device.
        optimizer: optimizer of the method's parameters.
        config: settings of the training.
        micro_batches: iterator of micro-batches, of which a step takes ``config.accumulate``.
        seconds: time to spend on it, beyond the first steps; where one step takes longer, only a second one follows.
        health: function of a batch of embeddings (n d) that returns measures for the log.
    """
    module = cast(nn.Module, method)
    device = next(module.parameters()).device
    stepper = Stepper(method, optimizer, config)
    module.train()
    window = Window(Path(), str, health)
    step = Step(index=0, total=2, steps_per_epoch=1)
    for group in optimizer.param_groups:
        group["lr"] = 0.0

    def take(number: int) -> float:
        started = time.perf_counter()
        for done in range(1, number + 1):
            output = stepper.take(micro_batches, step, window)
            if done % config.log_every == 0:
                window.summary(output)
        _wait_for(device)
        return time.perf_counter() - started

    first = WARM_UP + 1 if config.capture else _FIRST  # the last of them is captured, which takes longer than a step
    # All processes must take as many.
    if distributed.broadcast_object(take(1)) < seconds:
        take(first - 1)
    step_s = distributed.broadcast_object(take(1))
    number = int(seconds / step_s)
    return distributed.broadcast_object(take(number) / number) if number > 1 else step_s


def time_in_turns(
    parts: dict[str, Parts[TrainedMethod]], configs: dict[str, Config], channels: int
) -> dict[str, float]:
    """Seconds of a step on noise of each of several builds, the least of its turns.

    Args:
        parts: parts of each build, by name.
        configs: configuration of each build, by name.
        channels: number of channels of the images.
    """
    seconds = dict.fromkeys(parts, math.inf)
    for _ in range(_ROUNDS):
        for name, each in parts.items():
            seconds[name] = min(seconds[name], _time_noise(each, configs[name], channels, _ROUND_S))
    return seconds


def fits_memory(config: Config, build: Callable[[Config], Parts[TrainedMethod]], *, channels: int) -> bool:
    """Whether a few steps of a configuration, on noise, fit the memory of its GPU in every process."""
    try:
        _time_noise(build(config), config, channels, 0.0)
        fits = True
    except torch.OutOfMemoryError:
        fits = False
    torch.cuda.empty_cache()
    return all(distributed.gather_objects(fits))


def decoding_seconds(images: Images) -> float:
    """Seconds of one core in which an image is decoded, of a few evenly spaced ones; broken ones count too."""
    started = time.perf_counter()
    readable, broken = probed(images)
    return (time.perf_counter() - started) / (len(readable) + len(broken))


def _time_noise(parts: Parts[TrainedMethod], config: Config, channels: int, seconds: float) -> float:
    rows = _rows(config)
    views = random_views(parts.method, rows, channels)
    device = next(parts.encoder.parameters()).device
    noise = Batch(tuple(view.to(device) for view in views), torch.zeros(rows, dtype=torch.int64))
    return time_steps(parts.method, parts.optimizer, config.train, itertools.repeat(noise), seconds=seconds)


def image_seconds(config: PretrainConfig, *, channels: int, device: torch.device) -> float:
    """Seconds that an image takes in one process, about: noise goes through the encoder and back for each view.

    Args:
        config: configuration of the run.
        channels: number of channels of the images.
        device: device that trains.
    """
    sizes = Counter(size for spec in config.view_specs() for size in spec.sizes)
    encoder = make_encoder(config.encoder, channels=channels, image_size=max(sizes), other_sizes=sizes).to(device)
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    encoder.to(memory_format=memory_format)

    def size_seconds(size: int, precision: str) -> float:
        image_s = math.inf
        for rows in (2, 4, 8, 16, 32, _MOST_NOISE):  # an image may take less time in a larger batch
            if rows > 2 and (rows > _rows(config) or rows * image_s > _LONG_NOISE_S):
                break
            noise = torch.randn(rows, channels, size, size, device=device).to(memory_format=memory_format)
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                features = encoder(noise)
            features.float().sum().backward()
            _wait_for(device)
            image_s = min(image_s, (time.perf_counter() - started) / rows)
        return image_s

    precisions = ("float32", "bfloat16") if config.train.precision == "auto" else (config.train.precision,)
    return min(
        sum(number * size_seconds(size, precision) for size, number in sizes.items()) for precision in precisions
    )


def _rows(config: PretrainConfig) -> int:
    return rows_at_once(config.train.batch_size, config.train.accumulate, distributed.world_size())


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()
