"""Train CLSA, or a baseline of its paper, on a folder of images.

ssl-clsa-train --config list
ssl-clsa-train --config cifar10 --data.root data --out runs/cifar10
ssl-clsa-train --config imagenet_single --data.source images/train --train.batch_size 512
ssl-clsa-train --resume runs/cifar10
torchrun --nproc-per-node 8 -m ssl_clsa --config imagenet_multi --data.root data
"""

from dataclasses import dataclass, field

from torch import nn

from ssl_clsa.method import CLSA, CLSAConfig
from ssl_core.command import Command
from ssl_core.nn import mlp_head
from ssl_core.run import PretrainConfig, check_batch
from ssl_core.views import ViewSpec


@dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    """The configuration of a run; the key view comes first in ``views``, then the weak views, then the strong ones."""

    method: CLSAConfig = field(default_factory=CLSAConfig)


def make_method(config: Config, encoder: nn.Module, num_features: int, views: tuple[ViewSpec, ...]) -> CLSA:
    """The method that a configuration describes, around an encoder with ``num_features`` outputs."""
    method, projector = config.method, config.projector
    check_batch(config.train, method.momentum, method.queue, keys_per_image=2 if method.symmetric else 1)
    head = mlp_head(num_features, **vars(projector))
    return CLSA(encoder, head, method, views=views, dim=projector.out_dim, seed=config.seed)


main = Command("ssl-clsa-train", Config, make_method, "Pretrain an image encoder with CLSA.")
