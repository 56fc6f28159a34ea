"""Train LeOCLR, MoCo v2 or SimCLR on a folder of images.

ssl-leoclr-train --config list
ssl-leoclr-train --config cifar10 --data.root data --out runs/cifar10
ssl-leoclr-train --config imagenet --data.source images/train --optim.lr 0.06
ssl-leoclr-train --resume runs/cifar10
torchrun --nproc-per-node 8 -m ssl_leoclr.train --config imagenet --data.root data
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from ssl_core.nn import HeadConfig, mlp_head
from ssl_core.pretrain import PretrainConfig, check_batch, run_command
from ssl_core.views import ViewSpec
from ssl_leoclr.method import LeOCLR


@dataclass(frozen=True)
class LeOCLRConfig:
    """What :class:`ssl_leoclr.LeOCLR` takes, with its head described; see there for each value.

    Attributes:
        projector: the head after the encoder.
    """

    projector: HeadConfig = field(default_factory=HeadConfig)
    framework: Literal["moco", "simclr"] = "moco"
    anchor: Literal["full", "random_crop"] = "full"
    attract: Literal["anchor", "all"] = "anchor"
    temperature: float = 0.2
    queue_length: int = 65536
    queue_initial: Literal["random", "empty"] = "random"
    queue_dtype: Literal["float32", "bfloat16"] = "float32"
    enqueue: Literal["first", "both"] = "first"
    momentum: float = 0.999
    shuffle: bool = True
    batch_norm_splits: int = 1
    split_online: bool = False


@dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    """The configuration of a run; the anchor comes first in ``views``, then the crops."""

    method: LeOCLRConfig = field(default_factory=LeOCLRConfig)


# What framework simclr, without momentum branch and queue, has no use for.
_OF_MOCO = (
    "queue_length",
    "queue_initial",
    "queue_dtype",
    "enqueue",
    "momentum",
    "shuffle",
    "batch_norm_splits",
    "split_online",
)


def make_method(config: Config, encoder: nn.Module, num_features: int, views: tuple[ViewSpec, ...]) -> LeOCLR:
    """The method that a configuration describes, around an encoder with ``num_features`` outputs."""
    method = config.method
    if method.framework == "moco":
        check_batch(
            config.train,
            queue_length=method.queue_length,
            keys_per_image=2 if method.enqueue == "both" else 1,
            batch_norm_splits=method.batch_norm_splits,
        )
    else:
        _check_simclr(config)
    settings = {name: value for name, value in vars(method).items() if name != "projector"}
    return LeOCLR(
        encoder,
        mlp_head(num_features, **asdict(method.projector)),
        views=views,
        dim=method.projector.out_dim,
        seed=config.seed,
        **settings,
    )


def _check_simclr(config: Config) -> None:
    """Refuse what framework simclr would ignore, and micro-batches, which would take negatives away."""
    for name in _OF_MOCO:
        value, default = getattr(config.method, name), getattr(LeOCLRConfig(), name)
        if value != default:
            raise ValueError(f"method.{name} {value} has no effect with framework simclr; leave it at {default}")
    if config.train.accumulate > 1:
        raise ValueError(
            f"train.accumulate {config.train.accumulate}: framework simclr takes its negatives from the images that "
            "are forwarded at once; use 1 and a batch that fits"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``ssl-leoclr-train``."""
    run_command(
        Config,
        make_method,
        arguments,
        prog="ssl-leoclr-train",
        description="Pretrain an image encoder with LeOCLR, MoCo v2 or SimCLR.",
        recipes=Path(__file__).parent / "recipes",
    )


if __name__ == "__main__":
    main()
