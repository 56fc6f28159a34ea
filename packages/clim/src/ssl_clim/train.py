"""Train CLIM on a folder of images.

ssl-clim-train --config list
ssl-clim-train --config cifar10 --data.root data --out runs/cifar10
ssl-clim-train --config imagenet --data.source images/train --train.epochs 800
ssl-clim-train --resume runs/cifar10
torchrun --nproc-per-node 8 -m ssl_clim.train --config imagenet --data.root data
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from ssl_clim.method import CLIM
from ssl_clim.partners import NeighbourConfig, prepare_partners
from ssl_core.nn import HeadConfig, mlp_head
from ssl_core.pretrain import PretrainConfig, check_batch, run_command
from ssl_core.views import ViewSpec


@dataclass(frozen=True)
class CLIMConfig:
    """What :class:`ssl_clim.CLIM` takes, with its head described; see there for each value.

    Attributes:
        projector: the head after the encoder.
    """

    projector: HeadConfig = field(default_factory=HeadConfig)
    mixing: Literal["cutmix", "mixup", "none"] = "cutmix"
    alpha: float = 2.0
    per_batch: bool = False
    ratio: Literal["area", "beta"] = "area"
    partner_only: bool = False
    reduction: Literal["sum", "mean"] = "sum"
    temperature: float = 0.2
    queue_length: int = 65536
    queue_initial: Literal["random", "empty"] = "random"
    queue_dtype: Literal["float32", "bfloat16"] = "float32"
    momentum: float = 0.999
    shuffle: bool = True
    batch_norm_splits: int = 1
    split_online: bool = False


@dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    """The configuration of a run.

    Of ``views``, an image's key comes after its queries, and so does its partner's (``partner: true``).
    """

    method: CLIMConfig = field(default_factory=CLIMConfig)
    neighbours: NeighbourConfig = field(default_factory=NeighbourConfig)


def make_method(config: Config, encoder: nn.Module, num_features: int, views: tuple[ViewSpec, ...]) -> CLIM:
    """The method that a configuration describes, around an encoder with ``num_features`` outputs."""
    method = config.method
    check_batch(
        config.train,
        queue_length=method.queue_length,
        keys_per_image=1,
        batch_norm_splits=method.batch_norm_splits,
    )
    _check_partners(config, views)
    settings = {name: value for name, value in vars(method).items() if name != "projector"}
    return CLIM(
        encoder,
        mlp_head(num_features, **asdict(method.projector)),
        views=views,
        dim=method.projector.out_dim,
        seed=config.seed,
        **settings,
    )


def _check_partners(config: Config, views: tuple[ViewSpec, ...]) -> None:
    """Refuse a selection of partners that no view or no epoch would see."""
    neighbours = config.neighbours
    if neighbours.selection == "none":
        return
    if not any(view.partner for view in views):
        raise ValueError(
            f"neighbours.selection {neighbours.selection} gives each image a partner, but no view of it is in `views`; "
            "add them with `partner: true`, or take selection none"
        )
    if neighbours.start_epoch >= config.train.epochs:
        raise ValueError(
            f"neighbours.start_epoch {neighbours.start_epoch}: no partner would be chosen in {config.train.epochs} "
            "epochs; lower it, or take selection none"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``ssl-clim-train``."""
    run_command(
        Config,
        make_method,
        arguments,
        prog="ssl-clim-train",
        description="Pretrain an image encoder with CLIM, or with MoCo v2.",
        recipes=Path(__file__).parent / "recipes",
        prepare=prepare_partners,
    )


if __name__ == "__main__":
    main()
