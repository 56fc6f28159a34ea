"""A method of your own in one file: settings, loss, forward and update; the command, the data and the rest are there.

python examples/your_own_method.py --config digits --out runs/dcl
ssl-core report runs/dcl

The method is decoupled contrastive learning on MoCo: InfoNCE without the positive in its denominator, so that an easy
positive does not take the gradient from the negatives. Paper: Yeh et al., 2022, arXiv 2110.06848.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.command import Command
from ssl_core.nn import MomentumBranch, MomentumConfig, Queue, QueueConfig, mlp_head, unit
from ssl_core.ops import queue_attention
from ssl_core.run import PretrainConfig, check_batch
from ssl_core.train import Step, StepOutput
from ssl_core.views import ViewSpec


@dataclass(frozen=True)
class DCLConfig:
    """Settings of :class:`DCL`: each is an option of the command, with this line as its help.

    Attributes:
        temperature: tau, divisor of the similarities.
        queue: past keys, the negatives.
        momentum: moving average of the online branch, which makes the keys.
    """

    temperature: float = 0.1
    queue: QueueConfig = field(default_factory=QueueConfig)
    momentum: MomentumConfig = field(default_factory=lambda: MomentumConfig(0.99))

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.queue.sharded or self.queue.initial == "empty":
            raise ValueError("the loss reads all rows of the queue: leave queue.initial random and queue.sharded false")


def dcl_loss(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Mean over the batch of log sum_j exp(q.k_j / tau) - q.k+ / tau, k_j over the queue; the scores are never held."""
    log_negatives, _ = queue_attention(query, queue, temperature)
    positive = (query * key).sum(dim=1) / temperature
    return (log_negatives - positive).mean()


class DCL(nn.Module):
    """View 0 gives the keys, view 1 the queries; any class with these five names is a method."""

    def __init__(
        self, encoder: nn.Module, projector: nn.Module, config: DCLConfig, *, views: tuple[ViewSpec, ...], dim: int
    ) -> None:
        super().__init__()
        self.config, self.views = config, views
        self.encoder, self.projector = encoder, projector
        self.momentum_branch = MomentumBranch(encoder, projector, config.momentum)
        self.queue = Queue(config.queue, dim)

    def forward(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The loss of a batch. It changes nothing: a step can be repeated, and a run resumed to the last bit."""
        query = unit(self.projector(self.encoder(views[1])))
        key = self.momentum_branch(views[0], step)
        loss = dcl_loss(query, key, self.queue.keys, self.config.temperature)
        return StepOutput(loss, distributed.gather(key), {"queue_fill": self.queue.fill})

    def update(self, keys: Tensor, step: Step) -> None:
        """The only change of state, after the optimizer's step."""
        self.momentum_branch.update_(self.encoder, self.projector, step)
        self.queue.enqueue_(keys)


@dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    """Data, views, encoder, projector, optimizer and training as for every method, and this one's settings."""

    method: DCLConfig = field(default_factory=DCLConfig)


def make_method(config: Config, encoder: nn.Module, num_features: int, views: tuple[ViewSpec, ...]) -> DCL:
    """The method that a configuration describes, with a check of what its numbers need of each other."""
    check_batch(config.train, config.method.momentum, config.method.queue)
    projector = mlp_head(num_features, **vars(config.projector))
    return DCL(encoder, projector, config.method, views=views, dim=config.projector.out_dim)


main = Command("dcl-train", Config, make_method, "Pretrain an image encoder with decoupled contrastive learning.")

if __name__ == "__main__":
    main()
