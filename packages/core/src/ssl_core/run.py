"""A run: its configuration, its device and its folder, for the command and for a method between epochs."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import torch
from torch import nn

from ssl_core import distributed
from ssl_core.backbone import BackboneCard
from ssl_core.data import Batches, DataConfig, ImageSource, rows_at_once
from ssl_core.duration import seconds_of
from ssl_core.evaluate import EvaluateConfig
from ssl_core.given import is_given
from ssl_core.nn import EncoderConfig, HeadConfig, MomentumConfig, QueueConfig
from ssl_core.train import Method, OptimConfig, TrainConfig
from ssl_core.views import ViewConfig, ViewSpec, make_view_specs


class Upkeep(NamedTuple):
    """The work of a run beside its steps.

    Attributes:
        passes: number of times that the features of all images are computed.
        partners: fraction of the steps whose images have partners.
    """

    passes: int = 0
    partners: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The nodes of every method's configuration; a method adds its own ``method``.

    Attributes:
        views: views of each image, in the order in which the method takes them.
        projector: head after the encoder.
        out: run directory; null is that of ``resume``, or else a new one in ``runs/``.
        resume: run directory to continue, or a checkpoint in one; its ``config.yaml`` is read. With another ``out`` the
            directory stays as it is, and the run goes on in ``out``; with the same one the run begins where there is no
            checkpoint yet.
        seed: seed of the weights, the queue, the order of the images and their views.
        auto: whether values that the command line does not give are decided from the images and the machine, see
            :func:`ssl_core.auto.decided`; the saved configuration says false, and has the values.
        budget: time that the whole run takes, such as 2h, 45m or 600s, in place of ``train.epochs``; the number of
            steps that fit is saved in ``train.steps``.
        report: whether ``report.html`` is written in the end, from 1000 images of a split; null is where the extra
            ``report`` is installed.
    """

    data: DataConfig = field(default_factory=DataConfig)
    views: list[ViewConfig] = field(default_factory=list)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    projector: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    out: str | None = None
    resume: str | None = None
    seed: int = 0
    auto: bool = False
    budget: str | None = None
    report: bool | None = None

    def __post_init__(self) -> None:
        if self.budget is not None:
            try:
                seconds_of(self.budget)
            except ValueError as error:
                raise ValueError(f"budget {error}") from error

    def view_specs(self) -> tuple[ViewSpec, ...]:
        """The views of each image: those of ``views``, unless a method makes more of them.

        Raises:
            ValueError: for views that do not make sense.
        """
        return make_view_specs(self.views)

    def open_queue(self, given: Collection[str]) -> str | None:
        """Key of the length of the method's queue, unless it has none or the user has set it.

        Args:
            given: options that the user has set.
        """
        key = "method.queue.length"
        has_queue = hasattr(getattr(self, "method", None), "queue")
        return key if has_queue and not is_given(given, key) else None

    def fitting(self, num_images: int) -> dict[str, Any]:
        """By key, what takes the place of a recipe's value that does not fit so few images."""
        unit = self.train.accumulate * distributed.world_size()
        rows, rest = divmod(self.train.batch_size, unit)
        if self.train.batch_size <= num_images or rest:
            return {}
        while rows * unit > num_images and rows > 2:  # one image has no negatives and no statistics
            rows //= 2  # not the most that fit, so that split BatchNorm divides them as before
        return {"train.batch_size": rows * unit}

    def scaled(self, ratio: float) -> "PretrainConfig":
        """The same with what is counted in epochs in proportion to another length.

        Args:
            ratio: new length divided by the old one.
        """
        optim = replace(
            self.optim,
            warmup_epochs=ratio * self.optim.warmup_epochs,
            milestones=tuple(max(1, round(ratio * milestone)) for milestone in self.optim.milestones),
        )
        return replace(self, optim=optim)

    def lasting(self, steps: int, steps_per_epoch: int) -> "PretrainConfig":
        """The same with a length in steps, and what is counted in epochs in proportion.

        ``cosine_epoch`` falls at every step of a run of fewer than ten epochs: of one, it would have its end alone.

        Args:
            steps: number of optimizer steps of the whole run.
            steps_per_epoch: number of optimizer steps of an epoch.
        """
        scaled = self.scaled(steps / self.train.total_steps(steps_per_epoch))
        by_epochs = scaled.optim.schedule in ("cosine_epoch", "cosine_epoch_from_0")
        if by_epochs and steps < 10 * steps_per_epoch:
            scaled = replace(scaled, optim=replace(scaled.optim, schedule="cosine"))
        return replace(scaled, train=replace(self.train, steps=steps))

    def upkeep(self, epochs: float) -> Upkeep:
        """The work of a method beside its steps, in that many epochs."""
        return Upkeep()

    def search_seconds(self, num_images: int, num_features: int, device: torch.device) -> float:
        """Seconds, about, that a method searches among the features of all images each time that it has them.

        Args:
            num_images: number of training images.
            num_features: length of the encoder's features.
            device: device that trains.
        """
        return 0.0


Config = TypeVar("Config", bound=PretrainConfig)
TrainedMethod = TypeVar("TrainedMethod", bound=Method)
Config_co = TypeVar("Config_co", covariant=True)
Method_co = TypeVar("Method_co", covariant=True)


@dataclass(frozen=True)
class Run(Generic[Config_co, Method_co]):
    """A run under way, for a method's work between epochs.

    Attributes:
        config: configuration of the run.
        method: method in training, on ``device``.
        source: training images.
        batches: batches of the training images.
        card: description of the backbone: normalization and size of its input, among others.
        device: device of the method.
        folder: run directory.
    """

    config: Config_co
    method: Method_co
    source: ImageSource
    batches: Batches
    card: BackboneCard
    device: torch.device
    folder: Path


MakeMethod: TypeAlias = Callable[[Config, nn.Module, int, tuple[ViewSpec, ...]], TrainedMethod]
# (run) -> (epochs done) -> numbers for the log.
Prepare: TypeAlias = Callable[[Run[Config, TrainedMethod]], Callable[[int], dict[str, float]]]


def check_batch(
    train: TrainConfig, momentum: MomentumConfig, queue: QueueConfig | None, *, keys_per_image: int = 1
) -> None:
    """Check that a method's queue holds the keys of a step and that its split BatchNorm divides a forward's images.

    Args:
        train: settings of the training, with the size of the batch and the number of its micro-batches.
        momentum: settings of the momentum branch, whose BatchNorm may be split.
        queue: settings of the queue; None without one.
        keys_per_image: number of keys of an image that a step enqueues.

    Raises:
        ValueError: if one of them does not.
    """
    keys_per_step = train.batch_size * keys_per_image
    if queue is not None and queue.length < keys_per_step:
        raise ValueError(
            f"queue.length {queue.length} is less than the {keys_per_step} keys of one step; "
            "use a longer queue or a smaller train.batch_size"
        )
    rows = rows_at_once(train.batch_size, train.accumulate, distributed.world_size())
    if rows % momentum.batch_norm_splits:
        raise ValueError(
            f"momentum.batch_norm_splits {momentum.batch_norm_splits} does not divide the {rows} images that a "
            "process forwards at once (train.batch_size over train.accumulate and processes)"
        )


def choose_device(name: str) -> torch.device:
    """The device that ``train.device`` names; ``auto`` takes cuda, then mps, then cpu.

    Raises:
        ValueError: if the device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        there = ", ".join(device for device, there in available.items() if there)
        raise ValueError(f"train.device {name}: torch {torch.__version__} sees no such device; there is {there}")
    return torch.device(name)
