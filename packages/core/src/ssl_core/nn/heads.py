"""Heads: every projector and predictor of the methods here is one call of one function."""

from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True)
class HeadConfig:
    """Settings of a head: the arguments of :func:`mlp_head`, without the number of features that come in."""

    hidden_dim: int = 2048
    out_dim: int = 128
    num_layers: int = 2
    norm: bool = True
    bias: bool = True
    last_norm: Literal["none", "affine", "scale", "plain"] = "none"


def mlp_head(
    in_dim: int,
    hidden_dim: int,
    out_dim: int,
    *,
    num_layers: int = 2,
    norm: bool = True,
    bias: bool = True,
    last_norm: Literal["none", "affine", "scale", "plain"] = "none",
) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between them; nothing after the last one unless asked for.

    A linear layer before BatchNorm has no bias, because BatchNorm would remove it.

    ====================================== ==================================================================
    Head                                   Call
    ====================================== ==================================================================
    MoCo, CIFAR-10 notebook: linear        ``mlp_head(512, 512, 128, num_layers=1)``
    MoCo v2, ReSSL projector               ``mlp_head(2048, 2048, 128, norm=False)``
    SCE small projector                    ``mlp_head(512, 512, 128)``
    SCE ImageNet projector                 ``mlp_head(2048, 2048, 256, num_layers=3, last_norm="plain")``
    BYOL predictor                         ``mlp_head(256, 4096, 256)``
    MoCo v3 ResNet projector               ``mlp_head(2048, 4096, 256, last_norm="plain")``
    SCE, MoCo v3 predictor                 ``mlp_head(256, 4096, 256, bias=False)``
    SimSiam projector                      ``mlp_head(2048, 2048, 2048, num_layers=3, last_norm="plain")``
    SimSiam projector, CIFAR-10            ``mlp_head(512, 2048, 2048, last_norm="plain")``
    SimSiam projector, DSSL's code         ``mlp_head(2048, 2048, 2048, num_layers=3, last_norm="affine")``
    SimSiam predictor                      ``mlp_head(2048, 512, 2048)``
    BYOL projector                         ``mlp_head(2048, 4096, 256)``
    SimCLR projector                       ``mlp_head(2048, 2048, 128, last_norm="scale")``
    Barlow Twins projector                 ``mlp_head(2048, 8192, 8192, num_layers=3, bias=False)``
    ====================================== ==================================================================

    Args:
        in_dim: number of features that come in.
        hidden_dim: width of all layers but the last; of no effect with one layer.
        out_dim: number of features that go out.
        num_layers: number of linear layers, >= 1; 1 is a linear head.
        norm: whether BatchNorm follows every linear layer but the last.
        bias: whether the linear layers that no BatchNorm follows have a bias.
        last_norm: BatchNorm after the last layer: ``none``, ``affine`` (with scale and shift), ``scale`` (whose shift
            stays 0) or ``plain`` (without).

    Raises:
        ValueError: if ``num_layers`` < 1.

    Example:
        >>> [type(layer).__name__ for layer in mlp_head(512, 512, 128)]
        ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    """
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1):
        layers.append(nn.Linear(in_dim, hidden_dim, bias=bias and not norm))
        if norm:
            layers.append(nn.BatchNorm1d(hidden_dim))
        layers.append(nn.ReLU(inplace=True))
        in_dim = hidden_dim
    layers.append(nn.Linear(in_dim, out_dim, bias=bias and last_norm == "none"))
    if last_norm != "none":
        last = nn.BatchNorm1d(out_dim, affine=last_norm != "plain")
        if last_norm == "scale":
            last.bias.requires_grad_(False)
        layers.append(last)
    return nn.Sequential(*layers)


def make_predictor(predictor: HeadConfig, projector: HeadConfig) -> nn.Sequential:
    """A head after a projector, whose output is compared with projections.

    Args:
        predictor: layers of the head.
        projector: layers of the projector before it.

    Raises:
        ValueError: if the two outputs differ in width.
    """
    if predictor.out_dim != projector.out_dim:
        raise ValueError(
            f"predictor.out_dim {predictor.out_dim} must equal projector.out_dim {projector.out_dim}: "
            "its output is compared with projections"
        )
    return mlp_head(projector.out_dim, **vars(predictor))
