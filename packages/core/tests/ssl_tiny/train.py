"""A method in two forms: MoCo with queue and momentum branch, SimCLR with neither."""

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ssl_core import distributed
from ssl_core.losses import info_nce
from ssl_core.nn import HeadConfig, Queue, mlp_head
from ssl_core.pretrain import PretrainConfig, run_command
from ssl_core.train import StepOutput


class Tiny(nn.Module):
    def __init__(self, encoder, projector, *, views, dim, negatives="queue", queue_length=64, momentum=0.9):
        super().__init__()
        if momentum > 1:
            raise ValueError(f"momentum must be at most 1, got {momentum}")
        self.views, self.negatives, self.momentum = views, negatives, momentum
        self.encoder, self.projector = encoder, projector
        if negatives == "queue":
            self.momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
            self.momentum_projector = copy.deepcopy(projector).requires_grad_(False)
            self.queue = Queue(queue_length, dim)

    def forward(self, views, step):
        query = F.normalize(self.projector(self.encoder(views[0])), dim=1)
        if self.negatives == "queue":
            with torch.no_grad():
                key = F.normalize(self.momentum_projector(self.momentum_encoder(views[1])), dim=1)
            metrics = {"chance_loss": torch.tensor(4.0), "queue_fill": torch.tensor(1.0)}
            loss = info_nce(query, key, self.queue.keys, 0.2).mean()
            return StepOutput(loss, distributed.gather(key), metrics)
        keys = distributed.gather_with_grad(F.normalize(self.projector(self.encoder(views[1])), dim=1))
        own = torch.arange(len(query)) + distributed.rank() * len(query)
        return StepOutput(F.cross_entropy(query @ keys.T / 0.2, own), None, {})

    @torch.no_grad()
    def update(self, keys, step):
        if self.negatives == "queue":
            modules = (self.momentum_encoder, self.encoder), (self.momentum_projector, self.projector)
            for target, online in modules:
                for parameter, value in zip(target.parameters(), online.parameters(), strict=True):
                    parameter.lerp_(value, 1 - self.momentum)
            self.queue.enqueue_(keys)


@dataclass(frozen=True)
class TinyConfig:
    projector: HeadConfig = field(default_factory=HeadConfig)
    negatives: Literal["queue", "batch"] = "queue"
    queue_length: int = 256
    momentum: float = 0.9


@dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    method: TinyConfig = field(default_factory=TinyConfig)


def make_method(config, encoder, num_features, views):
    settings = {name: value for name, value in vars(config.method).items() if name != "projector"}
    if config.method.negatives == "batch" and config.method.queue_length != TinyConfig().queue_length:
        raise ValueError(f"queue_length {config.method.queue_length} has no effect without a queue")
    head = config.method.projector
    return Tiny(encoder, mlp_head(num_features, **asdict(head)), views=views, dim=head.out_dim, **settings)


def main(arguments=None):
    recipes = Path(__file__).parent / "recipes"
    run_command(Config, make_method, arguments, prog="ssl-tiny-train", description="Train Tiny.", recipes=recipes)


if __name__ == "__main__":
    main()
