"""Schedules: the value of a number at a given step, as pure functions of the step."""

import math
from typing import Literal


def linear_schedule(start: float, end: float, progress: float) -> float:
    """From ``start`` to ``end`` in a straight line.

    Args:
        start: value at progress 0.
        end: value at progress 1.
        progress: fraction of the training that is done, in [0, 1].

    Example:
        >>> linear_schedule(1.0, 0.5, 0.5)
        0.75
    """
    return start + (end - start) * progress


def cosine_schedule(start: float, end: float, progress: float) -> float:
    """From ``start`` to ``end`` along half a cosine, flat at both ends.

    ``end - (end - start) (cos(pi progress) + 1) / 2``. With end 1 and progress t / (T - 1) over T steps it is
    the momentum of BYOL and SCE, ``1 - (1 - m_0)(cos(pi t / (T - 1)) + 1) / 2``.
    Paper: Grill et al., 2020, section 3.2, arXiv 2006.07733.

    Args:
        start: value at progress 0.
        end: value at progress 1.
        progress: fraction of the training that is done, in [0, 1].

    Example:
        >>> cosine_schedule(0.99, 1.0, 0.0), cosine_schedule(0.99, 1.0, 1.0)
        (0.99, 1.0)
    """
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


_SHAPES = {"linear": linear_schedule, "cosine": cosine_schedule}


def scalar_schedule(
    value: float,
    step: int,
    total_steps: int,
    *,
    start: float,
    warmup_steps: int = 0,
    warmup_shape: Literal["linear", "cosine"] = "linear",
    final: float | None = None,
) -> float:
    """A temperature or coefficient over time: from ``start`` to ``value``, then there or on to ``final``.

    Args:
        value: value after the warm-up.
        step: number of the optimizer step, from 0.
        total_steps: number of steps of the run.
        start: value at step 0 if there is a warm-up.
        warmup_steps: number of steps of the warm-up; ``value`` is reached at the last of them.
        warmup_shape: shape of the warm-up.
        final: value at the last step of the run, reached linearly; None stays at ``value``.

    Example:
        >>> [scalar_schedule(0.5, step, 6, start=1.0, warmup_steps=3, final=0.0) for step in range(6)]
        [1.0, 0.75, 0.5, 0.5, 0.25, 0.0]
    """
    if step < warmup_steps:
        return _SHAPES[warmup_shape](start, value, step / max(1, warmup_steps - 1))
    if final is None:
        return value
    return linear_schedule(value, final, (step - warmup_steps) / max(1, total_steps - warmup_steps - 1))
