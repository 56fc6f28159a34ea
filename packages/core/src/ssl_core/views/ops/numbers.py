"""Checks of the ops' numbers, and arithmetic that every device does alike."""

import torch
from torch import Tensor


def check_prob(op: str, prob: float) -> None:
    """Refuse a number that is no probability, by a ValueError that names the op."""
    if not 0 <= prob <= 1:
        raise ValueError(f"{op}: prob must be in [0, 1], got {prob}")


def check_range(op: str, name: str, bounds: tuple[float, float], *, upto: float) -> None:
    """Refuse bounds that do not rise or do not lie in (0, ``upto``], by a ValueError that names the op."""
    if not 0 < bounds[0] <= bounds[1] <= upto:
        raise ValueError(f"{op}: {name} must be two rising numbers in (0, {upto:g}], got {bounds}")


def between(bounds: tuple[float, float], draws: Tensor) -> Tensor:
    """Numbers of [0, 1) moved into a range."""
    low, high = bounds
    return low + (high - low) * draws


def exp(x: Tensor) -> Tensor:
    """Exponential of numbers in [-3, 3], exact to about 1e-14.

    torch.exp differs in the last bit between a vector register and its remainder loop, and between devices.
    """
    x = x / 16
    series = torch.ones_like(x)
    for term in range(12, 0, -1):
        series.mul_(x).div_(term).add_(1)
    for _ in range(4):
        series.mul_(series)
    return series
