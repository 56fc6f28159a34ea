"""What a run asks of a method: the views it wants, the networks that are kept, a pure forward, and an update.

A method is an ``nn.Module`` that satisfies :class:`Method`; it inherits nothing of ours.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from ssl_core.step import Step
from ssl_core.views import ViewSpec


class StepOutput(NamedTuple):
    """What a forward gives back.

    Attributes:
        loss: scalar, float32, with gradient.
        keys: (n d) l2-normalized keys of all processes, to be given to ``update``; None without a queue.
        metrics: detached scalars for the log; ``chance_loss``, the loss of uniform predictions in nats, is what the
            log sets the loss against, and ``queue_fill`` is the fraction of the queue that holds real keys.
        embeddings: (n d) l2-normalized, of this process, without gradient, by which the log judges whether they
            collapse; None for the keys, and without keys too the log does not judge.
    """

    loss: Tensor
    keys: Tensor | None
    metrics: dict[str, Tensor]
    embeddings: Tensor | None = None


@runtime_checkable
class Method(Protocol):
    """A method of self-supervised learning, as a run sees it."""

    @property
    def views(self) -> tuple[ViewSpec, ...]:
        """What each image becomes, in the order in which ``forward`` receives it."""

    @property
    def encoder(self) -> nn.Module:
        """(n c h w) -> (n f): the backbone that a run exports and evaluates."""

    @property
    def projector(self) -> nn.Module:
        """(n f) -> (n d): the head after it."""

    def forward(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The loss of one micro-batch; changes no parameter, queue or momentum parameter.

        BatchNorm's running statistics move, as they always do.
        """

    def update(self, keys: Tensor | None, step: Step) -> None:
        """Move the momentum encoder and the queue, after the optimizer's step; the only mutation.

        Args:
            keys: the keys of all micro-batches of this optimizer step, concatenated.
            step: the step just taken.
        """
