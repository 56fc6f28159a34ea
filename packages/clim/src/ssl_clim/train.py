"""Train CLIM on a folder of images.

ssl-clim-train --config list
ssl-clim-train --config cifar10 --data.root data --out runs/cifar10
ssl-clim-train --config imagenet --data.source images/train --train.epochs 800
ssl-clim-train --resume runs/cifar10
torchrun --nproc-per-node 8 -m ssl_clim --config imagenet --data.root data
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import nn

from ssl_clim.method import CLIM, CLIMConfig
from ssl_clim.partners import NeighbourConfig, prepare_partners, search_seconds
from ssl_core.command import Command
from ssl_core.nn import mlp_head
from ssl_core.run import PretrainConfig, Upkeep, check_batch
from ssl_core.views import ViewSpec


@dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    """The configuration of a run.

    Of ``views``, an image's key comes after its queries, and so does its partner's (``partner: true``).
    """

    method: CLIMConfig = field(default_factory=CLIMConfig)
    neighbours: NeighbourConfig = field(default_factory=NeighbourConfig)

    def fitting(self, num_images: int) -> dict[str, Any]:
        """As `PretrainConfig.fitting`; more clusters than images become one for every 128."""
        has_too_many = (self.neighbours.clusters or 0) > num_images
        return super().fitting(num_images) | ({"neighbours.clusters": None} if has_too_many else {})

    def scaled(self, ratio: float) -> "Config":
        """As `PretrainConfig.scaled`: partners are chosen at the same parts of the run, and as often."""
        neighbours = replace(
            self.neighbours,
            start_epoch=int(ratio * self.neighbours.start_epoch),
            update_every=max(1, round(ratio * self.neighbours.update_every)),
        )
        return replace(cast(Config, super().scaled(ratio)), neighbours=neighbours)

    def upkeep(self, epochs: float) -> Upkeep:
        """The choices of partners, each of which embeds all images, and the steps that have them."""
        neighbours = self.neighbours
        if neighbours.selection == "none":
            return Upkeep()
        choices = len(range(neighbours.start_epoch, math.ceil(epochs), neighbours.update_every))
        return Upkeep(choices, max(0.0, 1 - neighbours.start_epoch / epochs))

    def search_seconds(self, num_images: int, num_features: int, device: torch.device) -> float:
        """As `PretrainConfig.search_seconds`, of the search that chooses partners."""
        dim = self.projector.out_dim if self.neighbours.features == "projection" else num_features
        return search_seconds(self.neighbours, num_images, dim, device)


def make_method(config: Config, encoder: nn.Module, num_features: int, views: tuple[ViewSpec, ...]) -> CLIM:
    """The method that a configuration describes, around an encoder with ``num_features`` outputs."""
    method, projector = config.method, config.projector
    check_batch(config.train, method.momentum, method.queue)
    _check_partners(config, views)
    head = mlp_head(num_features, **vars(projector))
    return CLIM(encoder, head, method, views=views, dim=projector.out_dim, seed=config.seed)


def _check_partners(config: Config, views: tuple[ViewSpec, ...]) -> None:
    """Refuse a selection of partners that no view would see."""
    neighbours = config.neighbours
    if neighbours.selection == "none":
        return
    if not any(view.partner for view in views):
        raise ValueError(
            f"neighbours.selection {neighbours.selection} gives each image a partner, but no view of it is in `views`; "
            "add them with `partner: true`, or take selection none"
        )


main = Command(
    "ssl-clim-train",
    Config,
    make_method,
    "Pretrain an image encoder with CLIM, or with MoCo v2.",
    prepare_partners,
)
