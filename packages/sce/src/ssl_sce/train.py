"""Train SCE, MoCo v2 or ReSSL on a folder of images.

ssl-sce-train --config list
ssl-sce-train --config cifar10 --data.root data --out runs/cifar10
ssl-sce-train --config imagenet100 --data.source images/train --optim.lr 0.5
ssl-sce-train --resume runs/cifar10
torchrun --nproc-per-node 8 -m ssl_sce.train --config imagenet --data.root data
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from ssl_core.nn import HeadConfig, mlp_head
from ssl_core.pretrain import PretrainConfig, check_batch, run_command
from ssl_core.views import ViewSpec
from ssl_sce.method import SCE


@dataclass(frozen=True)
class SCEConfig:
    """What :class:`ssl_sce.SCE` takes, with its heads described; see there for each value.

    Attributes:
        projector: the head after the encoder.
        predictor: the head after the projector on the online branch; null for none.
    """

    projector: HeadConfig = field(default_factory=HeadConfig)
    predictor: HeadConfig | None = None
    queue_length: int = 65536
    queue_initial: Literal["random", "empty"] = "random"
    queue_dtype: Literal["float32", "bfloat16"] = "float32"
    temperature: float = 0.1
    target_temperature: float = 0.05
    target_temperature_start: float = 0.05
    target_temperature_warmup_epochs: float = 0.0
    coefficient: float = 0.5
    coefficient_start: float = 1.0
    coefficient_warmup_epochs: float = 0.0
    coefficient_final: float | None = None
    weights: tuple[float, float, float] | None = None
    self_similarity: Literal["mask", "zero"] = "mask"
    in_batch_negatives: bool = False
    symmetric: bool = False
    momentum: float = 0.996
    momentum_schedule: Literal["constant", "cosine"] = "cosine"
    shuffle: bool = True
    batch_norm_splits: int = 1
    split_online: bool = False


@dataclass(frozen=True, kw_only=True)
class Config(PretrainConfig):
    """The configuration of a run; the target view comes first in ``views``, then the online views."""

    method: SCEConfig = field(default_factory=SCEConfig)


def make_method(config: Config, encoder: nn.Module, num_features: int, views: tuple[ViewSpec, ...]) -> SCE:
    """The method that a configuration describes, around an encoder with ``num_features`` outputs."""
    settings = {name: value for name, value in vars(config.method).items() if name not in ("projector", "predictor")}
    check_batch(
        config.train,
        queue_length=config.method.queue_length,
        keys_per_image=2 if config.method.symmetric else 1,
        batch_norm_splits=config.method.batch_norm_splits,
    )
    projector, predictor = config.method.projector, config.method.predictor
    if predictor is not None and predictor.out_dim != projector.out_dim:
        raise ValueError(
            f"method.predictor.out_dim {predictor.out_dim} must equal method.projector.out_dim {projector.out_dim}: "
            "its output is compared with the momentum branch's projection"
        )
    return SCE(
        encoder,
        mlp_head(num_features, **asdict(projector)),
        predictor=None if predictor is None else mlp_head(projector.out_dim, **asdict(predictor)),
        views=views,
        dim=projector.out_dim,
        seed=config.seed,
        **settings,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``ssl-sce-train``."""
    run_command(
        Config,
        make_method,
        arguments,
        prog="ssl-sce-train",
        description="Pretrain an image encoder with SCE, MoCo v2 or ReSSL.",
        recipes=Path(__file__).parent / "recipes",
    )


if __name__ == "__main__":
    main()
