"""The protocol of a method: the views it wants, the networks that are kept, a pure forward, and an update.

A method is an ``nn.Module`` that satisfies :class:`Method`; it inherits nothing of ours.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from ssl_core.step import Step
from ssl_core.views import ViewSpec


class StepOutput(NamedTuple):
    """The result of a forward.

    Attributes:
        loss: scalar loss, float32, with gradient.
        keys: (n d) l2-normalized keys of all processes, to be given to ``update``; None without a queue.
        metrics: detached scalars for the log. The log compares the loss with ``chance_loss``, the loss of uniform
            predictions in nats; ``queue_fill`` is the fraction of the queue that holds real keys.
        embeddings: (n d) l2-normalized embeddings of this process, without gradient, by which the log judges a
            collapse; None judges the keys, and nothing where there are no keys either.
    """

    loss: Tensor
    keys: Tensor | None
    metrics: dict[str, Tensor]
    embeddings: Tensor | None = None


@runtime_checkable
class Method(Protocol):
    """A method of self-supervised learning, as a run sees it.

    A class that is several methods by its settings also has ``name``, a property: which of them this is, such as
    ``MoCo v2``. The name of others is that of their class.
    """

    @property
    def views(self) -> tuple[ViewSpec, ...]:
        """Views of each image, in the order in which ``forward`` receives them."""

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
            keys: keys of all micro-batches of this optimizer step, concatenated.
            step: step just taken.
        """


def method_name(method: Method) -> str:
    """Which method it is: its ``name``, or else that of its class. Runs of the same can be ranked without labels."""
    return str(getattr(method, "name", type(method).__name__))


@runtime_checkable
class Sharded(Protocol):
    """A part of a method of whose state each process holds a share, as :class:`ssl_core.nn.Queue` may be."""

    @property
    def sharded_buffers(self) -> tuple[str, ...]:
        """Names of the buffers that differ from process to process."""

    def whole_state(self) -> dict[str, Tensor]:
        """What a checkpoint holds in their place, by name, in the first process; called in all."""
