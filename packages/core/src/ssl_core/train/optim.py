"""Optimizers: SGD, LARS and AdamW, if asked without weight decay of biases and BatchNorm parameters."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rate.

    Attributes:
        name: name of the optimizer: ``sgd``, ``lars`` or ``adamw``.
        lr: highest learning rate, before scaling.
        lr_1d: highest learning rate of one-dimensional parameters (biases, BatchNorm); None is ``lr``.
        scale_lr: whether ``lr`` and ``lr_1d`` are multiplied by ``batch_size / 256``.
        momentum: momentum of SGD and LARS; beta_1 of AdamW.
        nesterov: whether the momentum of SGD and LARS is Nesterov's.
        weight_decay: factor of the parameter that is added to its gradient (SGD, LARS), or decoupled decay (AdamW).
        exclude_1d: whether one-dimensional parameters (biases, BatchNorm) get neither weight decay nor LARS's trust
            ratio.
        trust_coefficient: trust coefficient of LARS.
        joint_norm: whether LARS divides by ``|g + decay w|``, as in the released codes of SCE, MoCo v3, Barlow Twins
            and SimCLR, and not by ``|g| + decay |w|``, as in its paper and in timm.
        schedule: course of the learning rate: ``cosine`` falls toward 0 at every step; ``cosine_epoch``,
            ``cosine_epoch_from_0`` and ``quarter_cosine_epoch`` once an epoch; ``step`` is constant between
            ``milestones``; see :func:`ssl_core.train.learning_rate`.
        warmup_epochs: number of epochs in which the learning rate rises linearly from 0; schedules that change once an
            epoch round it.
        final_scale: learning rate at the end of a schedule ``cosine``, as a fraction of the highest.
        milestones: epochs at which schedule ``step`` divides the learning rate by 10.
        constant_lr: parts of the method whose learning rate is the highest at all times, such as ``predictor``
            for SimSiam (Chen and He, 2021, 2011.10566).
    """

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    lr: float = 0.06
    lr_1d: float | None = None
    scale_lr: bool = True
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    exclude_1d: bool = False
    trust_coefficient: float = 0.001
    joint_norm: bool = False
    schedule: Literal["cosine", "cosine_epoch", "cosine_epoch_from_0", "quarter_cosine_epoch", "step"] = "cosine"
    warmup_epochs: int | float = 0
    final_scale: float = 0.0
    milestones: tuple[int, ...] = ()
    constant_lr: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.lr < float("inf"):  # NaN is neither
            raise ValueError(f"optim.lr must be a finite number of at least 0, got {self.lr}")
        if self.milestones and self.schedule != "step":
            raise ValueError(f"optim.milestones {self.milestones} need optim.schedule step, not {self.schedule}")
        if self.nesterov and self.name == "adamw":
            raise ValueError("optim.nesterov needs optim.name sgd or lars, not adamw")
        if self.joint_norm and self.name != "lars":
            raise ValueError(f"optim.joint_norm needs optim.name lars, not {self.name}")
        if not 0 <= self.final_scale <= 1:
            raise ValueError(f"optim.final_scale must be between 0 and 1, got {self.final_scale}")
        if self.final_scale and self.schedule != "cosine":
            raise ValueError(f"optim.final_scale {self.final_scale} needs optim.schedule cosine, not {self.schedule}")
        if self.warmup_epochs < 0:
            raise ValueError(f"optim.warmup_epochs must be at least 0, got {self.warmup_epochs}")
        if self.warmup_epochs and self.schedule == "quarter_cosine_epoch":
            raise ValueError(f"optim.schedule quarter_cosine_epoch has no warm-up, got {self.warmup_epochs} epochs")
        if self.lr_1d is not None and not (self.lr > 0 and self.lr_1d >= 0):
            raise ValueError(f"optim.lr_1d is followed as a multiple of optim.lr, got {self.lr_1d} and {self.lr}")


def scaled_learning_rate(config: OptimConfig, batch_size: int) -> float:
    """The highest learning rate: ``lr``, times ``batch_size / 256`` where ``scale_lr`` asks for it.

    Args:
        config: settings of the optimizer, of which ``lr`` and ``scale_lr`` count.
        batch_size: number of images of one optimizer step over all processes.

    Example:
        >>> scaled_learning_rate(OptimConfig(lr=0.5), 512)
        1.0
    """
    return config.lr * batch_size / 256 if config.scale_lr else config.lr


def make_optimizer(module: nn.Module, config: OptimConfig, *, batch_size: int) -> torch.optim.Optimizer:
    """An optimizer over the parameters of a module that ask for gradient.

    LARS is timm's. For a parameter w with gradient g, unless excluded:
    ``v <- momentum v + trust |w| / (|g| + decay |w|) (g + decay w)``, then ``w <- w - lr v``.
    Paper: You et al., 2017, eq. (6), arXiv 1708.03888, but for the learning rate, which is outside of v.
    With ``joint_norm`` the divisor is ``|g + decay w|``.

    Args:
        module: module whose parameters with ``requires_grad`` are optimized.
        config: settings of the optimizer.
        batch_size: number of images of one optimizer step over all processes, for the learning rate's scale.

    Returns:
        The optimizer. Groups carry ``lr_scale``, a factor of the scheduled learning rate, or ``constant_lr``, for
        :func:`ssl_core.train.train`.

    Raises:
        ValueError: if no parameter asks for gradient, a part of ``constant_lr`` does not exist or has none that does,
            or a constant is out of range.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"{type(module).__name__} has no parameter that asks for gradient")
    constant = {parameter for name in config.constant_lr for parameter in _parameters_of_part(module, name)}
    has_1d_apart = config.exclude_1d or config.lr_1d is not None
    lr = scaled_learning_rate(config, batch_size)

    options: dict[str, Any] = {"weight_decay": config.weight_decay}
    if config.joint_norm:
        options = {"weight_decay": 0.0, "joint_decay": config.weight_decay}
    if config.name == "lars":
        # By default timm adapts the groups with weight decay only, which would leave weight decay 0 without LARS.
        options["always_adapt"] = True
    options_1d: dict[str, Any] = {"weight_decay": 0.0} if config.exclude_1d else dict(options)
    if config.lr_1d is not None:
        scale = config.lr_1d / config.lr
        options_1d |= {"lr": scale * lr, "lr_scale": scale}
    # Is its learning rate constant, and is it one-dimensional where that matters?
    kinds = {(False, False): options, (False, True): options_1d}
    if constant:
        held = {"constant_lr": True}
        kinds |= {(True, False): options | held, (True, True): options_1d | held}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if (p in constant, has_1d_apart and p.ndim <= 1) == kind], **of_kind}
        for kind, of_kind in kinds.items()
    ]
    # One kernel for all parameters; on CPUs the rounding of earlier versions is kept.
    fused = True if all(parameter.is_cuda for parameter in parameters) else None
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr, betas=(config.momentum, 0.999), fused=fused)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr, config.momentum, nesterov=config.nesterov, fused=fused)
    from timm.optim.lars import Lars  # importing timm takes seconds

    lars = Lars(groups, lr, config.momentum, nesterov=config.nesterov, trust_coeff=config.trust_coefficient)
    if config.joint_norm:
        lars.register_step_pre_hook(_decay_gradients_)
    return lars


@torch.no_grad()
def _decay_gradients_(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Add ``decay w`` to the gradients: LARS without weight decay then divides by the norm of the sum."""
    for group in optimizer.param_groups:
        decayed = [parameter for parameter in group["params"] if parameter.grad is not None]
        if decayed and group.get("joint_decay"):
            torch._foreach_add_([parameter.grad for parameter in decayed], decayed, alpha=group["joint_decay"])


def _parameters_of_part(module: nn.Module, name: str) -> list[nn.Parameter]:
    parts = {part: [p for p in child.parameters() if p.requires_grad] for part, child in module.named_modules() if part}
    if not parts.get(name):
        trainable = [part for part, _ in module.named_children() if parts[part]]
        raise ValueError(
            f"optim.constant_lr names {name!r}, which is no part of {type(module).__name__} with parameters that ask "
            f"for gradient; it has {', '.join(trainable)}"
        )
    return parts[name]
