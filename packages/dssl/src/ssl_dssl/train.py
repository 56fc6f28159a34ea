"""Train DSSL, or one of its base methods, on a folder of images.

ssl-dssl-train --config list
ssl-dssl-train --config cifar10 --data.root data --out runs/cifar10
ssl-dssl-train --config cifar10 --data.root data --method.heavy none
ssl-dssl-train --config imagenet --data.source images/train --method.heavy '[ra_2_5, jigsaw_4]'
ssl-dssl-train --resume runs/cifar10
torchrun --nproc-per-node 8 -m ssl_dssl --config imagenet --data.root data
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import nn

from ssl_core.command import Command
from ssl_core.nn import HeadConfig, make_predictor, mlp_head
from ssl_core.run import PretrainConfig, check_batch
from ssl_core.views import ViewSpec, make_ops, make_view_specs
from ssl_dssl.bases import BYOL, BarlowTwins, MoCoV2, SimCLR, make_base
from ssl_dssl.method import DSSL, DSSLConfig
from ssl_dssl.views import heavier, partially_ordered_views


@dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    """The configuration of a run; ``views`` are the two standard views, to which ``method`` adds the heavy ones.

    Attributes:
        predictor: head after the projector, for simsiam and byol. null is the base's own, of two layers: its hidden
            width is a quarter of the projector's output for simsiam, and the projector's hidden width for byol.
    """

    method: DSSLConfig = field(default_factory=DSSLConfig)
    predictor: HeadConfig | None = None

    def open_queue(self, given: Collection[str]) -> str | None:
        """As `PretrainConfig.open_queue`, of a base that has one; who names the base has not set its queue yet."""
        key = "method.base.mocov2.queue.length"
        return key if isinstance(make_base(self.method.base), MoCoV2) and key not in given else None

    def view_specs(self) -> tuple[ViewSpec, ...]:
        """The standard views, then the heavy ones."""
        method, standard = self.method, make_view_specs(self.views)
        if len(standard) != 2 or any(len(view.sizes) > 1 or view.derived_from is not None for view in standard):
            raise ValueError(
                "views: DSSL takes two standard views, each of one size and sampled on its own, got "
                f"{[(view.name, view.sizes, view.derived_from) for view in standard]}"
            )
        if any(view.partner for view in standard):
            raise ValueError("views: partner true, but DSSL has no partners")
        if method.sources:
            heavy = make_ops(method.heavy)
            return partially_ordered_views(standard, heavy, source=method.heavy_source, sources=method.sources)
        if method.naive == "views":
            standard = tuple(heavier(view, make_ops(method.heavy)) for view in standard)
        return standard * (method.pairs or (2 if make_base(method.base).has_predictor else 1))


def make_method(config: Config, encoder: nn.Module, num_features: int, views: tuple[ViewSpec, ...]) -> DSSL:
    """The method that a configuration describes, around an encoder with ``num_features`` outputs."""
    projector, base = config.projector, make_base(config.method.base)
    if isinstance(base, BYOL | MoCoV2):
        check_batch(config.train, base.momentum, base.queue if isinstance(base, MoCoV2) else None)
    if isinstance(base, SimCLR | BarlowTwins) and config.train.accumulate > 1:
        raise ValueError(
            f"train.accumulate {config.train.accumulate}: {type(base).__name__} compares the images that are forwarded "
            "at once; use 1 and a batch that fits"
        )
    if config.predictor is not None and not base.has_predictor:
        raise ValueError(f"predictor has no effect with base {type(base).__name__}; leave it at null")
    predictor = None
    if base.has_predictor:
        own_dim = projector.hidden_dim if isinstance(base, BYOL) else max(1, projector.out_dim // 4)
        head = config.predictor or HeadConfig(hidden_dim=own_dim, out_dim=projector.out_dim)
        predictor = make_predictor(head, projector)
    return DSSL(
        encoder,
        mlp_head(num_features, **vars(projector)),
        config.method,
        views=views,
        dim=projector.out_dim,
        predictor=predictor,
        seed=config.seed,
    )


main = Command(
    "ssl-dssl-train",
    Config,
    make_method,
    "Pretrain an image encoder with DSSL over SimCLR, SimSiam, BYOL, MoCo v2 or Barlow Twins.",
)
