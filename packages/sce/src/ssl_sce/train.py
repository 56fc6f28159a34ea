"""Train SCE, MoCo v2 or ReSSL on a folder of images.

ssl-sce-train --config list
ssl-sce-train --config cifar10 --data.root data --out runs/cifar10
ssl-sce-train --config imagenet --data.source images/train --optim.lr 0.5
ssl-sce-train --resume runs/cifar10
torchrun --nproc-per-node 8 -m ssl_sce --config imagenet --data.root data
"""

from dataclasses import dataclass, field, replace
from typing import cast

from torch import nn

from ssl_core.command import Command
from ssl_core.nn import HeadConfig, make_predictor, mlp_head
from ssl_core.run import PretrainConfig, check_batch
from ssl_core.views import ViewSpec
from ssl_sce.method import SCE, SCEConfig


@dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    """The configuration of a run; the target view comes first in ``views``, then the online views.

    Attributes:
        predictor: head after the projector on the online branch; null for none.
    """

    method: SCEConfig = field(default_factory=SCEConfig)
    predictor: HeadConfig | None = None

    def scaled(self, ratio: float) -> "Config":
        """As `PretrainConfig.scaled`, with the warm-ups of temperature and coefficient."""
        method = replace(
            self.method,
            target_temperature_warmup_epochs=ratio * self.method.target_temperature_warmup_epochs,
            coefficient_warmup_epochs=ratio * self.method.coefficient_warmup_epochs,
        )
        return replace(cast(Config, super().scaled(ratio)), method=method)


def make_method(config: Config, encoder: nn.Module, num_features: int, views: tuple[ViewSpec, ...]) -> SCE:
    """The method that a configuration describes, around an encoder with ``num_features`` outputs."""
    method, projector, predictor = config.method, config.projector, config.predictor
    check_batch(config.train, method.momentum, method.queue, keys_per_image=2 if method.symmetric else 1)
    return SCE(
        encoder,
        mlp_head(num_features, **vars(projector)),
        method,
        predictor=None if predictor is None else make_predictor(predictor, projector),
        views=views,
        dim=projector.out_dim,
        seed=config.seed,
    )


main = Command("ssl-sce-train", Config, make_method, "Pretrain an image encoder with SCE, MoCo v2 or ReSSL.")
