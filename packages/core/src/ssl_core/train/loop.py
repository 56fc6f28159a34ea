"""The one training loop: schedule, forward, backward, optimizer, update, log, checkpoint.

Extension is by argument: a method, batches, a learning rate and callables; there is nothing to subclass.
"""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_core import distributed
from ssl_core.files import copy_atomically
from ssl_core.step import Step
from ssl_core.train.checkpoint import save_checkpoint
from ssl_core.train.log import Log
from ssl_core.train.method import Method, StepOutput
from ssl_core.train.stop import StopSignal
from ssl_core.train.window import Speed, Window


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training.

    Attributes:
        epochs: number of passes over the training set.
        steps: number of optimizer steps in place of ``epochs``; schedules end at the last, within an epoch or not.
        batch_size: number of images of one optimizer step, over all processes and micro-batches.
        accumulate: number of micro-batches of one optimizer step, a divisor of ``batch_size``. In-batch negatives and
            BatchNorm see one micro-batch.
        precision: dtype of the forward pass. ``bfloat16`` is autocast with float32 parameters; ``auto`` tries both
            before training, and takes and saves the faster one.
        sync_batch_norm: whether BatchNorm takes its statistics over all processes (with several, CUDA only).
        channels_last: whether images and convolutions are in channels-last memory.
        compile: whether the method runs through ``torch.compile``.
        clip_grad_norm: largest norm of the gradient; None does not clip.
        device: device to train on: ``auto`` (cuda, then mps, then cpu), ``cpu``, ``cuda`` or ``mps``.
        log_every: number of optimizer steps between two records.
        checkpoint_every: number of optimizer steps between two checkpoints; None means once an epoch.
        keep_every: number of epochs between checkpoints that are kept beside the last one; None keeps the last only.
        stop_on_collapse: whether the run ends where the embeddings have collapsed; the log warns in any case.
        tensorboard: whether TensorBoard events are written beside ``metrics.jsonl``.
    """

    epochs: int = 200
    steps: int | None = None
    batch_size: int = 256
    accumulate: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    sync_batch_norm: bool = False
    channels_last: bool = False
    compile: bool = False
    clip_grad_norm: float | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    log_every: int = 10
    checkpoint_every: int | None = None
    keep_every: int | None = None
    stop_on_collapse: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "checkpoint_every", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"train.{name} must be at least 1 or null, got {value}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"train.batch_size {self.batch_size} is not a multiple of train.accumulate {self.accumulate}"
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        return self.steps or self.epochs * steps_per_epoch


@runtime_checkable
class MicroBatch(Protocol):
    """The views of the images of one micro-batch, and the numbers of these images."""

    @property
    def views(self) -> tuple[Tensor, ...]:
        """One (n c h w) tensor for each view; behind them, where a method takes them, labels."""

    @property
    def index(self) -> Tensor:
        """(n) image indices."""


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
    forward = wrapped(module, config)
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
                output = take_step(forward, micro_batches, optimizer, config, step, window, interruptible)
                method.update(output.keys, step)
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


def wrapped(method: nn.Module, config: TrainConfig) -> Callable[[tuple[Tensor, ...], Step], StepOutput]:
    """A method's forward as training calls it: in step with other processes, and compiled if asked for."""
    forward: Any = method
    if distributed.world_size() > 1:
        # Buffers are not broadcast: queues agree by construction, running statistics belong to each process.
        options = inspect.signature(DistributedDataParallel).parameters
        renamed_in_torch_2_13 = "forward_sync_buffers" in options
        option = "forward_sync_buffers" if renamed_in_torch_2_13 else "broadcast_buffers"
        keywords: dict[str, Any] = {option: False}
        forward = DistributedDataParallel(method, **keywords)
    return cast(
        Callable[[tuple[Tensor, ...], Step], StepOutput],
        torch.compile(forward) if config.compile else forward,
    )


def take_step(
    forward: Callable[[tuple[Tensor, ...], Step], StepOutput],
    micro_batches: Iterator[MicroBatch],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    step: Step,
    window: Window,
    interruptible: Callable[[], contextlib.AbstractContextManager[None]],
) -> StepOutput:
    """One optimizer step, without the method's update.

    Args:
        forward: the method's forward, as :func:`wrapped` returns it.
        micro_batches: iterator of which the next ``config.accumulate`` are taken.
        optimizer: optimizer of the method's trainable parameters.
        config: settings of the training.
        step: place in the training.
        window: record of losses and of time spent waiting.
        interruptible: function that returns a context in which a run may be left, for the wait for the first batch.

    Returns:
        The output of the last micro-batch, with the keys of all of them concatenated.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device = parameters[0].device
    memory_format = torch.channels_last if config.channels_last else torch.preserve_format
    optimizer.zero_grad(set_to_none=True)
    keys = []
    for micro in range(config.accumulate):
        # Until the first forward nothing has changed: a run whose data do not come can be saved and left.
        with window.waiting(), contextlib.nullcontext() if micro else interruptible():
            batch = next(micro_batches)
        views = tuple(
            view.to(device, non_blocking=True, memory_format=memory_format if view.ndim == 4 else torch.preserve_format)
            for view in batch.views
        )
        postpone = isinstance(forward, DistributedDataParallel) and micro < config.accumulate - 1
        with forward.no_sync() if postpone else contextlib.nullcontext():  # type: ignore[attr-defined]  # DDP's
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                output = forward(views, step._replace(micro=micro))
            (output.loss / config.accumulate).backward()  # type: ignore[no-untyped-call]  # torch's
        window.add(step, output.loss.detach(), batch.index)
        if output.keys is not None:
            keys.append(output.keys)
    if device.type == "cpu":
        window.check()  # costs nothing here; on a GPU it would wait for the device at every step
    if config.clip_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_grad_norm)
    optimizer.step()
    return output._replace(keys=torch.cat(keys) if keys else None)


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
