"""One optimizer step: batch, forward, backward, optimizer, update; on a GPU, where that is asked for, as one launch."""

import contextlib
import inspect
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_core import distributed
from ssl_core.step import Step
from ssl_core.train.captured import CapturedStep
from ssl_core.train.config import TrainConfig
from ssl_core.train.method import Method, Sharded, StepOutput
from ssl_core.train.window import Window

logger = logging.getLogger(__name__)


@runtime_checkable
class MicroBatch(Protocol):
    """The views of the images of one micro-batch, and the numbers of these images."""

    @property
    def views(self) -> tuple[Tensor, ...]:
        """One (n c h w) tensor for each view; behind them, where a method takes them, labels."""

    @property
    def index(self) -> Tensor:
        """(n) image indices."""


class Stepper:
    """Takes the optimizer steps of a training.

    Args:
        method: method to train, on its device.
        optimizer: optimizer of the method's trainable parameters.
        config: settings of the training.
    """

    def __init__(self, method: Method, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        self._method, self._optimizer, self._config = method, optimizer, config
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._device = self._parameters[0].device
        self._forward = wrapped(cast(nn.Module, method), config)
        self._captured: CapturedStep | None = None
        if config.capture:
            reason = why_not_captured(config, optimizer, self._device)
            logger.info("train.capture: %s", f"steps run as they are, for {reason}" if reason else "steps are captured")
            self._captured = None if reason else CapturedStep(_of_its_owner(self._whole), optimizer)

    def take(
        self,
        micro_batches: Iterator[MicroBatch],
        step: Step,
        window: Window,
        interruptible: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> StepOutput:
        """Take a step, the method's update included.

        Args:
            micro_batches: iterator of which the next ``accumulate`` are taken.
            step: place in the training.
            window: record of losses and of time spent waiting.
            interruptible: function that returns a context in which a run may be left, for the wait for the first batch.

        Returns:
            The output of the last micro-batch, with the keys of all of them concatenated. What a captured step returns
            is overwritten by the next, but for the loss.
        """
        if self._captured is not None:
            views, index = self._fetched(micro_batches, window, interruptible)
            output = self._captured(views, step)
            window.add(step, output.loss.detach(), index)
            return output
        self._optimizer.zero_grad(set_to_none=True)
        keys = []
        for micro in range(self._config.accumulate):
            # Until the first forward nothing has changed: a run whose data do not come can be saved and left.
            leaving = contextlib.nullcontext if micro else interruptible
            views, index = self._fetched(micro_batches, window, leaving)
            output = self._with_gradient(views, step._replace(micro=micro))
            window.add(step, output.loss.detach(), index)
            if output.keys is not None:
                keys.append(output.keys)
        if self._device.type == "cpu":
            window.check()  # costs nothing here; on a GPU it would wait for the device at every step
        output = output._replace(keys=torch.cat(keys) if keys else None)
        self._change(output.keys, step)
        return output

    def _fetched(
        self,
        micro_batches: Iterator[MicroBatch],
        window: Window,
        leaving: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        with window.waiting(), leaving():
            batch = next(micro_batches)
        memory_format = torch.channels_last if self._config.channels_last else torch.preserve_format
        views = tuple(
            view.to(
                self._device,
                non_blocking=True,
                memory_format=memory_format if view.ndim == 4 else torch.preserve_format,
            )
            for view in batch.views
        )
        return views, batch.index

    def _with_gradient(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The output for a micro-batch, whose gradient is added to the parameters'."""
        config, forward = self._config, self._forward
        postpone = isinstance(forward, DistributedDataParallel) and step.micro < config.accumulate - 1
        with forward.no_sync() if postpone else contextlib.nullcontext():  # type: ignore[attr-defined]  # DDP's
            with torch.autocast(self._device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                output = forward(views, step)
            (output.loss / config.accumulate).backward()  # type: ignore[no-untyped-call]  # torch's
        return output

    def _change(self, keys: Tensor | None, step: Step) -> None:
        """All that changes by a step: parameters by their gradients, then the method's momentum branch and queue."""
        if self._config.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip_grad_norm)
        self._optimizer.step()
        self._method.update(keys, step)

    def _whole(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """A step of a single micro-batch, of which nothing is read by the host."""
        self._optimizer.zero_grad(set_to_none=True)
        output = self._with_gradient(views, step)
        self._change(output.keys, step)
        return output


def _of_its_owner(whole: Callable[[tuple[Tensor, ...], Step], StepOutput]) -> Callable[..., StepOutput]:
    """A method of an object that it does not keep alive."""
    # In a cycle a trial's graphs would hold their gigabytes until garbage is collected.
    reference = weakref.WeakMethod(whole)
    return lambda *arguments: cast(Callable[..., StepOutput], reference())(*arguments)


def wrapped(method: nn.Module, config: TrainConfig) -> Callable[[tuple[Tensor, ...], Step], StepOutput]:
    """A method's forward as training calls it: in step with other processes, and compiled if asked for."""
    forward: Any = method
    if distributed.world_size() > 1:
        # Buffers are not broadcast: queues agree by construction, or are shards; running statistics belong to each
        # process. Gradients are views of the buckets that are reduced: no copy, and no second memory for them.
        options = inspect.signature(DistributedDataParallel).parameters
        renamed_in_torch_2_13 = "forward_sync_buffers" in options
        option = "forward_sync_buffers" if renamed_in_torch_2_13 else "broadcast_buffers"
        keywords: dict[str, Any] = {option: False, "gradient_as_bucket_view": True}
        # At its start torch 2.13 sends the first process's buffers to all the same, which shards must be left out of.
        shards = [
            f"{name}.{buffer}"
            for name, module in method.named_modules()
            if isinstance(module, Sharded)
            for buffer in module.sharded_buffers
        ]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, shards)  # type: ignore[no-untyped-call]  # torch's
        forward = DistributedDataParallel(method, **keywords)
    return cast(
        Callable[[tuple[Tensor, ...], Step], StepOutput],
        torch.compile(forward) if config.compile else forward,
    )


def why_not_captured(config: TrainConfig, optimizer: torch.optim.Optimizer, device: torch.device) -> str | None:
    """The reason why steps cannot be captured; None if they can."""
    if device.type != "cuda":
        return f"a graph is of a GPU's work, and the device is {device.type}"
    if distributed.world_size() > 1:
        return "several processes wait for each other"
    if config.accumulate > 1:
        return "a step has several micro-batches"
    if config.compile:
        return "train.compile makes graphs of its own"
    if not all(group.get("fused") for group in optimizer.param_groups):
        return f"{type(optimizer).__name__} reads its learning rate on the host"
    return None
