"""Optimisers: SGD, LARS and AdamW, if asked without weight decay of biases and BatchNorm parameters."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim.lars import Lars
from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    """How parameters move.

    Attributes:
        name: ``sgd``, ``lars`` or ``adamw``.
        lr: highest learning rate, before scaling.
        scale_lr: multiply ``lr`` by ``batch_size / 256``.
        momentum: of SGD and LARS; AdamW's beta_1.
        nesterov: Nesterov's momentum, for SGD and LARS.
        weight_decay: added to the gradient times the parameter (SGD, LARS), or decoupled (AdamW).
        exclude_1d: one-dimensional parameters (biases, BatchNorm) get neither weight decay nor LARS's trust
            ratio.
        trust_coefficient: of LARS.
        schedule: ``cosine`` falls to 0 at every step; ``cosine_epoch``, ``cosine_epoch_from_0`` and
            ``quarter_cosine_epoch`` once an epoch; ``step`` is constant between ``milestones``; see
            :func:`ssl_core.train.learning_rate`.
        warmup_epochs: epochs in which the learning rate rises linearly from 0.
        milestones: epochs at which schedule ``step`` divides the learning rate by 10.
    """

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    lr: float = 0.06
    scale_lr: bool = True
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    exclude_1d: bool = False
    trust_coefficient: float = 0.001
    schedule: Literal["cosine", "cosine_epoch", "cosine_epoch_from_0", "quarter_cosine_epoch", "step"] = "cosine"
    warmup_epochs: int = 0
    milestones: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.milestones and self.schedule != "step":
            raise ValueError(f"optim.milestones {self.milestones} need optim.schedule step, not {self.schedule}")
        if self.nesterov and self.name == "adamw":
            raise ValueError("optim.nesterov needs optim.name sgd or lars, not adamw")
        if self.warmup_epochs < 0:
            raise ValueError(f"optim.warmup_epochs must be at least 0, got {self.warmup_epochs}")
        if self.warmup_epochs and self.schedule == "quarter_cosine_epoch":
            raise ValueError(f"optim.schedule quarter_cosine_epoch has no warm-up, got {self.warmup_epochs} epochs")


def scaled_learning_rate(config: OptimConfig, batch_size: int) -> float:
    """The highest learning rate: ``lr``, times ``batch_size / 256`` where ``scale_lr`` asks for it.

    Args:
        config: holds ``lr`` and ``scale_lr``.
        batch_size: images of one optimiser step over all processes.

    Example:
        >>> scaled_learning_rate(OptimConfig(lr=0.5), 512)
        1.0
    """
    return config.lr * batch_size / 256 if config.scale_lr else config.lr


def make_optimizer(module: nn.Module, config: OptimConfig, *, batch_size: int) -> torch.optim.Optimizer:
    """An optimiser over the parameters of a module that ask for gradient.

    LARS is timm's. For a parameter w with gradient g, unless excluded:
    ``v <- momentum v + trust |w| / (|g| + decay |w|) (g + decay w)``, then ``w <- w - lr v``.
    Paper: You et al., 2017, eq. (6), arXiv 1708.03888, but for the learning rate, which is outside of v.
    The released codes of MoCo v3, SCE and Barlow Twins divide by ``|g + decay w|`` instead, which is smaller
    by at most ``2 decay |w|``; their weight decay is 1e-6.

    Args:
        module: parameters with ``requires_grad`` are optimised.
        config: which optimiser, and its constants.
        batch_size: images of one optimiser step over all processes, for the learning rate's scale.

    Raises:
        ValueError: if no parameter asks for gradient, or a constant is out of range.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"{type(module).__name__} has no parameter that asks for gradient")
    excluded = [parameter for parameter in parameters if config.exclude_1d and parameter.ndim <= 1]
    included = [parameter for parameter in parameters if not (config.exclude_1d and parameter.ndim <= 1)]
    groups: list[dict[str, Any]] = [
        {"params": included, "weight_decay": config.weight_decay},
        {"params": excluded, "weight_decay": 0.0},
    ]
    lr = scaled_learning_rate(config, batch_size)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr, betas=(config.momentum, 0.999))
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr, config.momentum, nesterov=config.nesterov)
    # By default timm adapts the groups with weight decay only, which would leave weight decay 0 without LARS.
    groups[0]["always_adapt"] = True
    return Lars(groups, lr, config.momentum, nesterov=config.nesterov, trust_coeff=config.trust_coefficient)
