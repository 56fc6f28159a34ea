"""Optimizer steps for the time that they take: of a method that is built for it, and thrown away."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.step import Step
from ssl_core.train.loop import MicroBatch, TrainConfig, take_step, wrapped
from ssl_core.train.method import Method
from ssl_core.train.window import Window

_FIRST = 3  # steps that choose kernels, fill caches and start workers


class RandomViews(NamedTuple):
    """A micro-batch of noise, which takes as long as one of images.

    Attributes:
        views: one (n c s s) tensor for each size of each view.
        index: (n) zeros.
    """

    views: tuple[Tensor, ...]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


def random_views(method: Method, rows: int, channels: int, device: torch.device) -> Iterator[RandomViews]:
    """The same micro-batch of noise for ever, as a method wants its views."""
    views = tuple(torch.rand(rows, channels, size, size, device=device) for view in method.views for size in view.sizes)
    while True:
        yield RandomViews(views, torch.zeros(rows, dtype=torch.int64))


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

    The method is moved about on the way, at a learning rate of 0; build another for the training.

    Args:
        method: method on its device.
        optimizer: its optimizer.
        config: settings of the training.
        micro_batches: ``config.accumulate`` for each step, as many as are asked for.
        seconds: time to spend on it, beyond the first steps; at least one step is taken.
        health: measures of a batch of embeddings (n d), for the log.
    """
    module = cast(nn.Module, method)
    device = next(module.parameters()).device
    forward = wrapped(module, config)
    module.train()
    window = Window(Path(), str, health, config.batch_size // config.accumulate)
    step = Step(index=0, total=2, steps_per_epoch=1)
    for group in optimizer.param_groups:
        group["lr"] = 0.0

    def take(number: int) -> float:
        started = time.perf_counter()
        for done in range(1, number + 1):
            output = take_step(forward, micro_batches, optimizer, config, step, window, contextlib.nullcontext)
            method.update(output.keys, step)
            if done % config.log_every == 0:
                window.summary(output)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - started

    take(_FIRST)
    # All processes must take as many.
    number = distributed.broadcast_object(max(1, int(seconds / take(1))))
    return distributed.broadcast_object(take(number) / number)
