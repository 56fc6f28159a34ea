"""Train CLSA, or a baseline of its paper, on a folder of images.

ssl-clsa-train --config list
ssl-clsa-train --config cifar10 --data.root data --out runs/cifar10
ssl-clsa-train --config imagenet_single --data.source images/train --train.batch_size 512
ssl-clsa-train --resume runs/cifar10
torchrun --nproc-per-node 8 -m ssl_clsa.train --config imagenet_multi --data.root data
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from ssl_clsa.method import CLSA
from ssl_core.nn import HeadConfig, mlp_head
from ssl_core.pretrain import PretrainConfig, check_batch, run_command
from ssl_core.views import ViewSpec


@dataclass(frozen=True)
class CLSAConfig:
    """What :class:`ssl_clsa.CLSA` takes, with its head described; see there for each value.

    Attributes:
        projector: the head after the encoder.
    """

    projector: HeadConfig = field(default_factory=HeadConfig)
    num_weak: int = 1
    strong_loss: Literal["ddm", "contrastive", "none"] = "ddm"
    temperature: float = 0.2
    divergence_temperature: float = 0.2
    divergence_weight: float = 1.0
    in_batch_negatives: bool = True
    reduction: Literal["sum", "mean"] = "sum"
    detach_target: bool = True
    symmetric: bool = False
    queue_length: int = 65536
    queue_initial: Literal["random", "empty"] = "random"
    queue_dtype: Literal["float32", "bfloat16"] = "float32"
    momentum: float = 0.999
    shuffle: bool = True
    batch_norm_splits: int = 1
    split_online: bool = False


@dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    """The configuration of a run; the key view comes first in ``views``, then the weak views, then the strong ones."""

    method: CLSAConfig = field(default_factory=CLSAConfig)


def make_method(config: Config, encoder: nn.Module, num_features: int, views: tuple[ViewSpec, ...]) -> CLSA:
    """The method that a configuration describes, around an encoder with ``num_features`` outputs."""
    method = config.method
    check_batch(
        config.train,
        queue_length=method.queue_length,
        keys_per_image=2 if method.symmetric else 1,
        batch_norm_splits=method.batch_norm_splits,
    )
    settings = {name: value for name, value in vars(method).items() if name != "projector"}
    return CLSA(
        encoder,
        mlp_head(num_features, **asdict(method.projector)),
        views=views,
        dim=method.projector.out_dim,
        seed=config.seed,
        **settings,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``ssl-clsa-train``."""
    run_command(
        Config,
        make_method,
        arguments,
        prog="ssl-clsa-train",
        description="Pretrain an image encoder with CLSA.",
        recipes=Path(__file__).parent / "recipes",
    )


if __name__ == "__main__":
    main()
