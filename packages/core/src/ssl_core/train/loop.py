"""The one training loop: schedule, forward, backward, optimizer, update, log, checkpoint.

Extension is by argument: a method, batches, a learning rate and callables; there is nothing to subclass.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.files import copy_atomically
from ssl_core.step import Step
from ssl_core.train.checkpoint import save_checkpoint
from ssl_core.train.config import TrainConfig
from ssl_core.train.log import Log
from ssl_core.train.method import Method
from ssl_core.train.stepper import MicroBatch, Stepper
from ssl_core.train.stop import StopSignal
from ssl_core.train.window import Speed, Window


@runtime_checkable
class BatchSource(Protocol):
    """The source of the loop's batches."""

    @property
    def batches_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[MicroBatch]:
        """The micro-batches of an epoch, from optimizer step ``start`` on."""

    def identifier(self, index: int) -> str:
        """Name of an image for a person, such as its path."""

    def state_dict(self) -> dict[str, Any]:
        """The state that the batches of later epochs depend on, for a checkpoint; tensors and plain values."""


class CollapseError(ArithmeticError):
    """All images are mapped to the same embedding, or nearly, and the run was told to stop there."""


def train(
    method: Method,
    batches: BatchSource,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    *,
    folder: Path,
    learning_rate: Callable[[Step], float],
    start: int = 0,
    settings: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    health: Callable[[Tensor], dict[str, float]] | None = None,
    collapse: Callable[[Mapping[str, float]], str | None] | None = None,
    before_epoch: Callable[[int], dict[str, float]] | None = None,
    on_epoch: Callable[[int], dict[str, float]] | None = None,
    quiet: bool = False,
    continued_by: str | None = None,
) -> Speed | None:
    """Train a method, from its first step or from where a checkpoint has left it.

    Stopping at any step and continuing gives the same losses as never having stopped, to the last bit on CPU.
    SIGINT and SIGTERM save a checkpoint after the current step and raise SystemExit.

    Args:
        method: method to train, an ``nn.Module`` that satisfies :class:`Method`, on the device to train on.
        batches: source of the micro-batches of each epoch.
        optimizer: optimizer of the method's trainable parameters. A group may carry ``lr_scale`` (default 1); one with
            a true ``constant_lr`` keeps the learning rate that it has.
        config: settings of the training.
        folder: run directory; ``checkpoints/`` and ``metrics.jsonl`` are written there.
        learning_rate: function of the step that returns the learning rate, before a group's ``lr_scale``.
        start: number of optimizer steps already done, which :func:`ssl_core.train.checkpoint.restore_` returns.
        settings: complete configuration of the run as plain values, to be kept in checkpoints.
        data: plain values that tell the images from others, to be kept in checkpoints.
        health: function of a batch of embeddings (n d) that returns measures for the log.
        collapse: function of the latest value of every number in the log, by name, that returns the sign of a collapse
            of the embeddings, or None. It is asked from the second epoch on, since an untrained head may look
            collapsed. The log has its answer at the first record where there is one, and again after a recovery.
        before_epoch: function of the number of epochs done that returns numbers for the log, called before the first
            step of each epoch. It may change ``batches``. A checkpoint between two epochs is from before the call, so
            that a resumed run makes it again.
        on_epoch: function of the number of epochs done that returns numbers for the log, called after each epoch.
        quiet: whether neither a bar nor a line for each epoch is shown.
        continued_by: command line that continues a run that was told to stop; None is ``--resume`` with its folder.

    Returns:
        The speed of the steps taken; None if there were none left.

    Raises:
        OSError: if a checkpoint or the log cannot be written.
        ValueError: if ``config.precision`` is not decided.
        FloatingPointError: at the first loss that is not finite.
        CollapseError: where ``collapse`` gives a reason, with ``config.stop_on_collapse``; a checkpoint is saved.
    """
    if config.precision == "auto":
        raise ValueError("train.precision auto is for `ssl_core.pretrain`, which tries both; choose one")
    module = cast(nn.Module, method)
    last = folder / "checkpoints" / "last.pt"
    last.parent.mkdir(parents=True, exist_ok=True)
    done = start
    per_epoch = batches.batches_per_epoch
    total = config.total_steps(per_epoch)
    checkpoint_every = config.checkpoint_every or per_epoch
    stepper = Stepper(method, optimizer, config)
    module.train()

    with (
        StopSignal() as stop,
        Log(
            folder,
            start=done,
            total_images=total * config.batch_size,
            images_per_step=config.batch_size,
            tensorboard=config.tensorboard,
            active=distributed.is_main(),
            quiet=quiet,
        ) as log,
    ):
        window = Window(last, batches.identifier, health)
        latest: dict[str, float] = {}
        has_collapsed = False

        def save() -> None:
            window.check()  # never save what a bad loss has spoilt
            save_checkpoint(
                last,
                method=module,
                optimizer=optimizer,
                batches=batches.state_dict(),
                step=done,
                config=dict(settings or {}),
                data=dict(data or {}),
            )

        def leave() -> NoReturn:
            save()
            how = continued_by or f"--resume {folder}"
            log.say(f"stopped by {stop.name} after step {done}; saved {last}; continue with {how}")
            raise SystemExit(128 + stop.number)

        interruptible = functools.partial(stop.at_once, leave)

        def between_epochs(work: Callable[[int], dict[str, float]] | None, epochs: int, when: str) -> None:
            with interruptible():
                values = {} if work is None else work(epochs)
            module.train()
            if values:
                latest.update(values)
                log.record(done, {when: float(epochs), **values})
                if not quiet:
                    log.say(f"epoch {epochs}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
                window.restart_clock()

        for epoch in range(done // per_epoch, math.ceil(total / per_epoch)):
            if done % per_epoch == 0:
                between_epochs(before_epoch, epoch, "before_epoch")
            micro_batches = batches.epoch(epoch, start=done % per_epoch)
            for index in range(done, min((epoch + 1) * per_epoch, total)):
                step = Step(index, total, per_epoch)
                _set_learning_rate(optimizer, learning_rate(step))
                output = stepper.take(micro_batches, step, window, interruptible)
                done = index + 1
                log.advance()
                if done % config.log_every == 0 or done == total:
                    values = window.summary(output)
                    values |= {"epoch": done / per_epoch, "lr": learning_rate(step)}
                    log.record(done, values, shown=_shown(values))
                    latest.update(values)
                    reason = None
                    if collapse is not None and done > per_epoch:
                        # One process decides: the last bit of a GPU's eigenvalues must not divide them.
                        reason = distributed.broadcast_object(collapse(latest))
                    if reason is not None and config.stop_on_collapse:
                        save()
                        raise CollapseError(f"the embeddings have collapsed after step {done}: {reason}; saved {last}")
                    if reason is not None and not has_collapsed:
                        log.say(f"WARNING: the embeddings have collapsed after step {done}: {reason}")
                    has_collapsed = reason is not None
                if stop.asked(done % config.log_every == 0):
                    leave()
                if done % checkpoint_every == 0 or done == total:
                    save()
            if done % per_epoch:
                break  # the run's end, within an epoch
            if config.keep_every and (epoch + 1) % config.keep_every == 0:
                save()
                if distributed.is_main():
                    copy_atomically(last, last.with_name(f"epoch_{epoch + 1:04d}.pt"))
            between_epochs(on_epoch, epoch + 1, "epoch")
    return window.speed()


def _set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        if not group.get("constant_lr", False):
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)


def _shown(values: Mapping[str, float]) -> str:
    text = f"epoch {values['epoch']:.1f} loss {values['loss']:.3f}"
    if "chance_loss" in values:
        text += f" (chance {values['chance_loss']:.2f})"
    text += f" wait {100 * values['data_wait']:.0f}%"
    if values.get("queue_fill", 1.0) < 1.0:
        text += f" queue still filling ({100 * values['queue_fill']:.0f}%)"
    return text
