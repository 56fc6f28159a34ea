"""The place in the training, which everything that changes over time is a function of."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, overload

import torch
from torch import Tensor

StepValue: TypeAlias = float | Tensor


class Step(NamedTuple):
    """The place in the training: everything about time that a forward or an update may depend on.

    It is passed in and not counted by the method, so that a forward has no hidden state, and a resumed run knows its
    schedules and permutations without restoring anything.

    Example:
        >>> Step(index=50, total=101, steps_per_epoch=20).progress
        0.5
        >>> Step(index=50, total=101, steps_per_epoch=20).epoch
        2.5
    """

    index: int  # type: ignore[assignment]  # hides tuple.index; optimizer steps done before this one
    total: int  # optimizer steps of the whole run
    steps_per_epoch: int
    micro: int = 0  # which micro-batch of the step, with gradient accumulation

    @property
    def progress(self) -> float:
        """Fraction of the run, 0 at the first step and 1 at the last."""
        return self.index / max(1, self.total - 1)

    @property
    def epoch(self) -> float:
        """Epochs done before this step, with the fraction of the current one."""
        return self.index / self.steps_per_epoch

    @overload
    def value(self, function: Callable[["Step"], Tensor], device: torch.device) -> Tensor: ...
    @overload
    def value(self, function: Callable[["Step"], float], device: torch.device) -> StepValue: ...
    def value(self, function: Callable[["Step"], StepValue], device: torch.device) -> StepValue:
        """What a function of the step returns, a tensor of it on a device.

        A forward or an update takes everything that changes over time from here, and not from ``index``: then a step
        that was captured as a CUDA graph (``train.capture``) can renew it, and a number is a float64 tensor without
        dimensions. Functions are called in the same order at every step, and what they return has the same shape.

        Args:
            function: function of the step that returns a number or a tensor on the CPU.
            device: device of the tensor.

        Example:
            >>> Step(index=50, total=101, steps_per_epoch=20).value(lambda step: 0.1 * step.epoch, torch.device("cpu"))
            0.25
        """
        value = function(self)
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
