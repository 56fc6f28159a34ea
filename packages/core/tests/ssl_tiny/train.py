"""A method in two forms: MoCo with queue and momentum branch, SimCLR with neither."""

import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ssl_core import distributed
from ssl_core.command import Command
from ssl_core.config import refuse_changed
from ssl_core.losses import info_nce
from ssl_core.nn import Queue, QueueConfig, mlp_head
from ssl_core.run import PretrainConfig
from ssl_core.train import StepOutput


@dataclass(frozen=True)
class TinyConfig:
    negatives: Literal["queue", "batch"] = "queue"
    queue: QueueConfig = field(default_factory=lambda: QueueConfig(256))
    momentum: float = 0.9

    def __post_init__(self):
        if self.momentum > 1:
            raise ValueError(f"momentum must be at most 1, got {self.momentum}")
        if self.negatives == "batch":
            refuse_changed(self, ["queue"], "without a queue")


class Tiny(nn.Module):
    def __init__(self, encoder, projector, config, *, views, dim):
        super().__init__()
        self.views, self.negatives, self.momentum = views, config.negatives, config.momentum
        self.encoder, self.projector = encoder, projector
        if config.negatives == "queue":
            self.momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
            self.momentum_projector = copy.deepcopy(projector).requires_grad_(False)
            self.queue = Queue(config.queue, dim)

    def forward(self, views, step):
        query = F.normalize(self.projector(self.encoder(views[0])), dim=1)
        if self.negatives == "queue":
            with torch.no_grad():
                key = F.normalize(self.momentum_projector(self.momentum_encoder(views[1])), dim=1)
            metrics = {"chance_loss": torch.tensor(4.0), "queue_fill": self.queue.fill}
            loss = info_nce(query, key, self.queue.columns(), 0.2).mean()
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


@dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    method: TinyConfig = field(default_factory=TinyConfig)


def make_method(config, encoder, num_features, views):
    head = config.projector
    return Tiny(encoder, mlp_head(num_features, **vars(head)), config.method, views=views, dim=head.out_dim)


main = Command("ssl-tiny-train", Config, make_method, "Train Tiny.")
