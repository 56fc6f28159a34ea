"""What the loop asks of a method: the views it wants, a pure forward, and an update.

A method is an ``nn.Module`` that satisfies :class:`Method`; it inherits nothing of ours.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from ssl_core.views import ViewSpec


class Step(NamedTuple):
    """Where the training is: everything about time that a forward or an update may depend on.

    Passed in rather than counted by the method, so that a forward has no hidden state and a resumed run
    needs nothing restored to know its schedules and permutations.

    Example:
        >>> Step(index=50, total=101, steps_per_epoch=20).progress
        0.5
        >>> Step(index=50, total=101, steps_per_epoch=20).epoch
        2.5
    """

    index: int  # type: ignore[assignment]  # hides tuple.index; optimiser steps done before this one
    total: int  # optimiser steps of the whole run
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


class StepOutput(NamedTuple):
    """What a forward gives back.

    Attributes:
        loss: scalar, float32, with gradient.
        keys: (n d) l2-normalised keys of all processes, to be given to ``update``; None without a queue.
        metrics: detached scalars for the log; ``chance_loss``, the loss of uniform predictions in nats, is what the
            log sets the loss against, and ``queue_fill`` is the fraction of the queue that holds real keys.
    """

    loss: Tensor
    keys: Tensor | None
    metrics: dict[str, Tensor]


@runtime_checkable
class Method(Protocol):
    """A method of self-supervised learning, as the loop sees it."""

    @property
    def views(self) -> tuple[ViewSpec, ...]:
        """What each image becomes, in the order in which ``forward`` receives it."""

    def forward(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The loss of one micro-batch; changes no parameter, queue or momentum parameter.

        BatchNorm's running statistics move, as they always do.
        """

    def update(self, keys: Tensor | None, step: Step) -> None:
        """Move the momentum encoder and the queue, after the optimiser's step; the only mutation.

        Args:
            keys: the keys of all micro-batches of this optimiser step, concatenated.
            step: the step just taken.
        """
