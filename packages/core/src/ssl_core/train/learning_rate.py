"""The learning rate of each step, as a pure function of the step."""

import math
from collections.abc import Sequence

from ssl_core.schedules import cosine_schedule, linear_schedule
from ssl_core.train.optim import OptimConfig, scaled_learning_rate


def warmup_cosine(position: int, warmup: int, total: int) -> float:
    """Factor of the learning rate: linear from 0 to 1, then along half a cosine to 0.

    ``position / (warmup - 1)`` before ``warmup``, then
    ``(1 + cos(pi (position - warmup) / (total - warmup))) / 2``, which is 0 at ``position = total``.
    Source: the scheduler of SCE's released code.

    Args:
        position: place in the run, in steps or epochs. Counted from 0, the factor never quite falls to 0 at the end;
            counted from 1, it does.
        warmup: length of the warm-up, in the same unit.
        total: length of the run, in the same unit.

    Example:
        >>> [round(warmup_cosine(step, 3, 7), 2) for step in range(7)]
        [0.0, 0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if position < warmup:
        return position / max(1, warmup - 1)
    return cosine_schedule(1.0, 0.0, (position - warmup) / max(1, total - warmup))


def step_decay(epoch: int, milestones: Sequence[int], factor: float = 0.1) -> float:
    """``factor`` for each milestone reached, multiplied.

    Args:
        epoch: number of the epoch, from 0.
        milestones: epochs at which the value falls, each the first with the smaller value.
        factor: factor by which one milestone multiplies the value.

    Example:
        >>> [round(step_decay(epoch, (60, 80)), 2) for epoch in (0, 59, 60, 80)]
        [1.0, 1.0, 0.1, 0.01]
    """
    return factor ** sum(epoch >= milestone for milestone in milestones)


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int, total_steps: int, batch_size: int) -> float:
    """The learning rate of an optimizer step.

    ``cosine`` is SCE's: :func:`warmup_cosine` over steps counted from 0; where it ends at ``final_scale`` of the
    highest, it is Barlow Twins'. ``cosine_epoch`` is that of MoCo's CIFAR-10 notebook: over epochs counted from 1, so
    that the last epoch's learning rate is 0. MoCo v2's and CLSA's codes count epochs from 0: ``cosine_epoch_from_0``,
    or, as CLSA's ``cos`` 2, ``quarter_cosine_epoch``, which is ``cos(pi epoch / (2 epochs))``. ``step`` is
    :func:`step_decay` over epochs counted from 0, after a linear warm-up over steps.

    Args:
        config: settings of the schedule and of the highest learning rate.
        step: number of the optimizer step, from 0.
        steps_per_epoch: number of optimizer steps of one epoch.
        total_steps: number of steps of the run.
        batch_size: number of images of one optimizer step over all processes, for the learning rate's scale.
    """
    highest = scaled_learning_rate(config, batch_size)
    epoch, epochs = step // steps_per_epoch, math.ceil(total_steps / steps_per_epoch)
    if config.schedule == "cosine_epoch":
        return highest * warmup_cosine(epoch + 1, round(config.warmup_epochs), epochs)
    if config.schedule == "cosine_epoch_from_0":
        return highest * warmup_cosine(epoch, round(config.warmup_epochs), epochs)
    if config.schedule == "quarter_cosine_epoch":
        return highest * math.cos(math.pi / 2 * epoch / epochs)
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if config.schedule == "step" and step >= warmup_steps:
        return highest * step_decay(epoch, config.milestones)
    factor = warmup_cosine(step, warmup_steps, total_steps)
    return highest * (factor if step < warmup_steps else linear_schedule(config.final_scale, 1.0, factor))
