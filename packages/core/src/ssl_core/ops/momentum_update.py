"""The moving average that makes the momentum encoder: target <- m target + (1 - m) online."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_core.ops import _triton, cpp, cuda
from ssl_core.ops.backends import Unsupported, choose_backend, log_choice, runs_anywhere

# Fastest first. Parameters of other dtypes or of unlike strides take the reference beside a kernel.
BACKENDS: dict[str, Unsupported] = {
    "cpp": cpp.unsupported,
    "triton": _triton.unsupported,
    "cuda": cuda.unsupported,
    "reference": runs_anywhere,
}


def momentum_update_(
    momentum_params: Sequence[Tensor],
    online_params: Sequence[Tensor],
    momentum: float | Float[Tensor, ""],
    *,
    shadow_params: Sequence[Tensor] | None = None,
) -> None:
    """Move each momentum parameter toward its online parameter, in place.

    target <- momentum target + (1 - momentum) online, in the target's dtype; 0 copies and 1 freezes exactly.
    The average itself needs float32, since bfloat16 rounds small steps away; an encoder that runs in bfloat16 gets
    its weights as ``shadow_params``, which are the rounded targets.
    Parameters only: buffers (BatchNorm's statistics) are the momentum encoder's own. There is no gradient.

    Args:
        momentum_params: target tensors, float32 or float64; changed.
        online_params: online tensors, one of the same shape for each target, in any floating dtype.
        momentum: m, in [0, 1]; a 0-dim tensor on the targets' device is not read by the host, nor checked.
        shadow_params: tensors that become copies of the new targets, one of the same shape for each, in any floating
            dtype.

    Raises:
        ValueError: if numbers, shapes or devices disagree, parameters lie on several devices, or momentum is outside
            [0, 1].
        TypeError: if a momentum parameter has a dtype that rounds the small steps of the average away.

    Example:
        >>> target, online = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])
        >>> momentum_update_([target], [online], 0.75)
        >>> target
        tensor([0.2500, 1.2500])
    """
    for name, others in {"online": online_params, "shadow": shadow_params}.items():
        if others is None:
            continue
        if len(momentum_params) != len(others):
            raise ValueError(f"{len(momentum_params)} momentum parameters, {len(others)} {name} parameters")
        for index, (target, other) in enumerate(zip(momentum_params, others, strict=True)):
            if target.shape != other.shape:
                raise ValueError(f"parameter {index}: momentum {tuple(target.shape)}, {name} {tuple(other.shape)}")
            if target.device != other.device:
                raise ValueError(f"parameter {index}: momentum on {target.device}, {name} on {other.device}")
    for index, target in enumerate(momentum_params):
        if target.device != momentum_params[0].device:
            raise ValueError(
                f"momentum parameter {index} is on {target.device}, parameter 0 on {momentum_params[0].device}: "
                "update those of each device in a call of their own"
            )
        if target.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"momentum parameter {index} is {target.dtype}, in which steps of 1 - momentum vanish: "
                "keep the momentum encoder in float32"
            )
    if not isinstance(momentum, Tensor):
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        momentum = torch.tensor(momentum, dtype=torch.float64)
    elif momentum_params and momentum.device not in (torch.device("cpu"), momentum_params[0].device):
        raise ValueError(f"momentum is on {momentum.device}, the parameters on {momentum_params[0].device}")
    with torch.no_grad():
        torch.ops.ssl_core.momentum_update_(
            list(momentum_params), list(online_params), list(shadow_params or ()), momentum
        )


torch.library.define(
    "ssl_core::momentum_update_",
    "(Tensor(a!)[] momentum_params, Tensor[] online_params, Tensor(b!)[] shadow_params, Tensor momentum) -> ()",
)


@torch.library.impl("ssl_core::momentum_update_", "CompositeExplicitAutograd")
def _momentum_update_(
    momentum_params: list[Tensor], online_params: list[Tensor], shadow_params: list[Tensor], momentum: Tensor
) -> None:
    shadows: Sequence[Tensor | None] = shadow_params or [None] * len(momentum_params)
    left = list(zip(momentum_params, online_params, shadows, strict=True))
    device = momentum_params[0].device if momentum_params else torch.device("cpu")
    name = choose_backend("momentum_update_", BACKENDS, device, torch.float32)
    log_choice("momentum_update_", tuple(BACKENDS.items()), name, device, torch.float32)
    if name != "reference":
        is_flat = [_is_flat(*parameter) for parameter in left]
        _run_kernel(name, *_columns(left, is_flat), momentum)
        left = [parameter for parameter, is_done in zip(left, is_flat, strict=True) if not is_done]
    if left:
        _reference(*_columns(left, [True] * len(left)), momentum)


def _run_kernel(
    name: str,
    momentum_params: list[Tensor],
    online_params: list[Tensor],
    shadow_params: list[Tensor],
    momentum: Tensor,
) -> None:
    if name == "cpp":
        cpp.momentum_update(momentum_params, online_params, shadow_params, float(momentum))
    elif name == "cuda":
        cuda.momentum_update(momentum_params, online_params, shadow_params, momentum)
    else:
        from ssl_core.ops._triton.momentum_update import momentum_update

        momentum_update(momentum_params, online_params, shadow_params, momentum)


def _is_flat(target: Tensor, online: Tensor, shadow: Tensor | None) -> bool:
    """Whether a kernel may walk through these parameters as through flat memory of the dtypes it knows."""
    is_dense = target.is_contiguous() or (target.ndim == 4 and target.is_contiguous(memory_format=torch.channels_last))
    return (
        is_dense
        and target.stride() == online.stride()
        and target.dtype == online.dtype == torch.float32
        and (shadow is None or (shadow.stride() == target.stride() and shadow.dtype == torch.bfloat16))
    )


def _columns(
    parameters: list[tuple[Tensor, Tensor, Tensor | None]], chosen: list[bool]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Targets, online parameters and shadows of the chosen ones."""
    rows = [row for row, is_chosen in zip(parameters, chosen, strict=True) if is_chosen]
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows if row[2] is not None]


def _reference(
    momentum_params: list[Tensor], online_params: list[Tensor], shadow_params: list[Tensor], momentum: Tensor
) -> None:
    # A copy only of parameters whose dtype differs; foreach wants one dtype.
    online_params = [online.to(target.dtype) for target, online in zip(momentum_params, online_params, strict=True)]
    weight = 1 - momentum
    if momentum.device.type == "cpu":
        torch._foreach_lerp_(momentum_params, online_params, weight.item())
    else:
        # One launch per parameter, the price of a momentum that the host does not know.
        weights = [weight.to(target.dtype) for target in momentum_params]
        torch._foreach_lerp_(momentum_params, online_params, weights)
    if shadow_params:
        torch._foreach_copy_(shadow_params, momentum_params)


def _fake(
    momentum_params: list[Tensor], online_params: list[Tensor], shadow_params: list[Tensor], momentum: Tensor
) -> None:
    return None


torch.library.register_fake("ssl_core::momentum_update_", _fake)
