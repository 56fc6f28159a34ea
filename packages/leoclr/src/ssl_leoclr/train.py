"""Train LeOCLR, MoCo v2 or SimCLR on a folder of images.

ssl-leoclr-train --config list
ssl-leoclr-train --config cifar10 --data.root data --out runs/cifar10
ssl-leoclr-train --config imagenet --data.source images/train --optim.lr 0.06
ssl-leoclr-train --resume runs/cifar10
torchrun --nproc-per-node 8 -m ssl_leoclr --config imagenet --data.root data
"""

from dataclasses import dataclass, field

from torch import nn

from ssl_core.command import Command
from ssl_core.nn import mlp_head
from ssl_core.run import PretrainConfig, check_batch
from ssl_core.views import ViewSpec
from ssl_leoclr.method import LeOCLR, LeOCLRConfig


@dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    """The configuration of a run; the anchor comes first in ``views``, then the crops."""

    method: LeOCLRConfig = field(default_factory=LeOCLRConfig)


def make_method(config: Config, encoder: nn.Module, num_features: int, views: tuple[ViewSpec, ...]) -> LeOCLR:
    """The method that a configuration describes, around an encoder with ``num_features`` outputs."""
    method, projector = config.method, config.projector
    if method.framework == "moco":
        check_batch(config.train, method.momentum, method.queue, keys_per_image=2 if method.enqueue == "both" else 1)
    elif config.train.accumulate > 1:
        raise ValueError(
            f"train.accumulate {config.train.accumulate}: framework simclr takes its negatives from the images that "
            "are forwarded at once; use 1 and a batch that fits"
        )
    head = mlp_head(num_features, **vars(projector))
    return LeOCLR(encoder, head, method, views=views, dim=projector.out_dim, seed=config.seed)


main = Command("ssl-leoclr-train", Config, make_method, "Pretrain an image encoder with LeOCLR, MoCo v2 or SimCLR.")
