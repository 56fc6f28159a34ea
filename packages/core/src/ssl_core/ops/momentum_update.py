"""The moving average that makes the momentum encoder: target <- m target + (1 - m) online."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def momentum_update_(
    momentum_params: Sequence[Tensor],
    online_params: Sequence[Tensor],
    momentum: float | Float[Tensor, ""],
) -> None:
    """Move each momentum parameter towards its online parameter, in place.

    target <- momentum target + (1 - momentum) online, in the target's dtype; 0 copies and 1 freezes exactly.
    Parameters only: buffers (BatchNorm's statistics) are the momentum encoder's own. There is no gradient.

    Args:
        momentum_params: the targets, float32 or float64; changed.
        online_params: as many, of the same shapes, in any floating dtype.
        momentum: in [0, 1]; a 0-dim tensor on the targets' device is not read by the host, nor checked.

    Raises:
        ValueError: if numbers or shapes disagree, or momentum is outside [0, 1].
        TypeError: if a momentum parameter has a dtype that rounds the small steps of the average away.

    Example:
        >>> target, online = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])
        >>> momentum_update_([target], [online], 0.75)
        >>> target
        tensor([0.2500, 1.2500])
    """
    if len(momentum_params) != len(online_params):
        raise ValueError(f"{len(momentum_params)} momentum parameters, {len(online_params)} online parameters")
    for index, (target, online) in enumerate(zip(momentum_params, online_params, strict=True)):
        if target.shape != online.shape:
            raise ValueError(f"parameter {index}: momentum {tuple(target.shape)}, online {tuple(online.shape)}")
        if target.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"momentum parameter {index} is {target.dtype}, in which steps of 1 - momentum vanish: "
                "keep the momentum encoder in float32"
            )
    if not isinstance(momentum, Tensor):
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        momentum = torch.tensor(momentum, dtype=torch.float64)
    with torch.no_grad():
        torch.ops.ssl_core.momentum_update_(list(momentum_params), list(online_params), momentum)


torch.library.define(
    "ssl_core::momentum_update_",
    "(Tensor(a!)[] momentum_params, Tensor[] online_params, Tensor momentum) -> ()",
)


@torch.library.impl("ssl_core::momentum_update_", "CompositeExplicitAutograd")
def _momentum_update_(momentum_params: list[Tensor], online_params: list[Tensor], momentum: Tensor) -> None:
    # A copy only of parameters whose dtype differs; foreach wants one dtype.
    online_params = [online.to(target.dtype) for target, online in zip(momentum_params, online_params, strict=True)]
    weight = 1 - momentum
    if momentum.device.type == "cpu":
        torch._foreach_lerp_(momentum_params, online_params, weight.item())
    else:
        # One launch per parameter, the price of a momentum that the host does not know.
        weights = [weight.to(target.dtype) for target in momentum_params]
        torch._foreach_lerp_(momentum_params, online_params, weights)


def _fake(momentum_params: list[Tensor], online_params: list[Tensor], momentum: Tensor) -> None:
    return None


torch.library.register_fake("ssl_core::momentum_update_", _fake)
