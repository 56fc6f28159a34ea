"""The budget of a run: from a time to a number of optimizer steps.

A run with ``budget`` is measured before it begins: steps of its own batches, features of some of its images, a
checkpoint. Steps fill the time that everything else leaves. Their number is then fixed and saved as ``train.steps``,
so that schedules, a resumed run and a repetition know nothing of a clock.
"""

import itertools
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import nn

from ssl_core import distributed
from ssl_core.build import Parts
from ssl_core.config import with_given
from ssl_core.data import Batches, ImageSource
from ssl_core.duration import seconds_of
from ssl_core.evaluate import evaluation_view, health, iterate_features
from ssl_core.run import Config, PretrainConfig, TrainedMethod
from ssl_core.train.checkpoint import save_checkpoint
from ssl_core.trial import time_steps

_TRIAL = (0.03, 2.0, 60.0)  # of the budget, at least and at most seconds for one measurement of steps
_END_S = 1.5  # export, and the end of the process
_FEATURE_BATCH = 256


class Costs(NamedTuple):
    """The times that a run is made of.

    Attributes:
        step_s: seconds of an optimizer step while images have no partners.
        partner_step_s: seconds of an optimizer step while images have partners.
        image_s: seconds for the features of an image.
        checkpoint_s: seconds of a checkpoint.
        search_s: seconds of a method's search among the features of all images.
    """

    step_s: float
    partner_step_s: float
    image_s: float
    checkpoint_s: float
    search_s: float = 0.0


def measured_costs(
    config: PretrainConfig,
    parts: Parts[TrainedMethod],
    batches: Batches,
    source: ImageSource,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
) -> Costs:
    """Costs of a run, tried out; the parts and the batches are of no more use after it.

    Args:
        config: configuration of the run, with a budget.
        parts: parts of the run: encoder, method and optimizer.
        batches: batches of the training images.
        source: training images.
        mean: mean of each channel.
        std: standard deviation of each channel.
        device: device of the parts.
    """
    assert config.budget is not None
    fraction, least_s, most_s = _TRIAL
    seconds = min(max(fraction * seconds_of(config.budget), least_s), most_s)

    def steps_s() -> float:
        micro_batches = itertools.chain.from_iterable(batches.epoch(epoch) for epoch in itertools.count())
        return time_steps(parts.method, parts.optimizer, config.train, micro_batches, seconds=seconds, health=health)

    step_s = partner_step_s = steps_s()
    steps_per_epoch = batches.batches_per_epoch
    if config.upkeep(config.train.total_steps(steps_per_epoch) / steps_per_epoch).partners:
        batches.set_partners(torch.arange(len(source), dtype=torch.int32)[:, None])
        partner_step_s = steps_s()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        save_checkpoint(
            Path(folder) / "last.pt",
            method=cast(nn.Module, parts.method),
            optimizer=parts.optimizer,
            batches=batches.state_dict(),
            step=0,
            config={},
            data={},
        )
        checkpoint_s = time.perf_counter() - started
    image_s = _image_s(parts.encoder, config, source, mean, std, device)
    search_s = config.search_seconds(len(source), parts.num_features, device) if distributed.is_main() else 0.0
    return distributed.broadcast_object(Costs(step_s, partner_step_s, image_s, checkpoint_s, search_s))


def _image_s(
    encoder: nn.Module,
    config: PretrainConfig,
    source: ImageSource,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
) -> float:
    """Seconds for the features of an image, at the second time."""
    size = max(size for spec in config.view_specs() for size in spec.sizes)
    batch = range(min(_FEATURE_BATCH, len(source)))
    taken_s = 0.0
    for _ in range(2):
        started = time.perf_counter()
        for features in iterate_features(
            encoder, source, evaluation_view(size), [batch], mean=mean, std=std, device=device
        ):
            features.cpu()  # waits for the device
        taken_s = time.perf_counter() - started
    return taken_s / len(batch)


def within_budget(
    config: Config,
    costs: Costs,
    *,
    elapsed_s: float,
    steps_per_epoch: int,
    num_images: int,
    num_evaluated: int,
    end_s: float = 0.0,
    given: Collection[str] = (),
) -> Config:
    """The configuration with as many steps as end in time.

    Args:
        config: configuration of the run, with a budget.
        costs: times that the run is made of.
        elapsed_s: seconds of the budget that are gone.
        steps_per_epoch: number of optimizer steps of an epoch.
        num_images: number of training images.
        num_evaluated: number of images whose features a kNN needs; 0 without one.
        end_s: seconds of what follows the kNN.
        given: keys that stay as they are.

    Raises:
        ValueError: if not even one step does.
    """
    assert config.budget is not None
    left_s = seconds_of(config.budget) - elapsed_s - _END_S - end_s - num_evaluated * costs.image_s
    fitted = config
    steps = 0
    for _ in range(4):  # what is done between epochs depends on their number, which depends on it
        epochs = max(1, steps) / steps_per_epoch
        upkeep = fitted.upkeep(epochs)
        between_s = upkeep.passes * (num_images * costs.image_s + costs.search_s)
        step_s = upkeep.partners * costs.partner_step_s + (1 - upkeep.partners) * costs.step_s
        step_s += costs.checkpoint_s / (config.train.checkpoint_every or steps_per_epoch)
        if config.train.keep_every:
            step_s += costs.checkpoint_s / (config.train.keep_every * steps_per_epoch)
        if config.evaluate.knn_every:
            step_s += num_evaluated * costs.image_s / (config.evaluate.knn_every * steps_per_epoch)
        steps = int((left_s - between_s) / step_s)
        if steps < 1:
            raise ValueError(
                f"budget {config.budget}: the data are read and the speed is measured, and not one step of "
                f"{step_s:.1f} s and the evaluation end in time; give more, or a smaller encoder or batch, as "
                "--config auto chooses"
            )
        fitted = with_given(cast(Config, config.lasting(steps, steps_per_epoch)), config, given)
    return distributed.broadcast_object(fitted)
