"""Settings of the training."""

from dataclasses import dataclass
from typing import Literal

from ssl_core.duration import seconds_of


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training.

    Attributes:
        epochs: number of passes over the training set.
        steps: number of optimizer steps in place of ``epochs``; schedules end at the last, within an epoch or not.
        batch_size: number of images of one optimizer step, over all processes and micro-batches.
        accumulate: number of micro-batches of one optimizer step, a divisor of ``batch_size``. In-batch negatives and
            BatchNorm see one micro-batch.
        precision: dtype of the forward pass. ``bfloat16`` is autocast with float32 parameters; ``auto`` tries both
            before training, and takes and saves the faster one.
        sync_batch_norm: whether BatchNorm takes its statistics over all processes.
        channels_last: whether images and convolutions are in channels-last memory.
        compile: whether the method runs through ``torch.compile``.
        capture: whether an optimizer step on a GPU is captured as one CUDA graph, which costs one launch in place of a
            thousand. Where that cannot be, as in several processes, the log says why, and steps run as they are.
        clip_grad_norm: largest norm of the gradient; None does not clip.
        device: device to train on: ``auto`` (cuda, then mps, then cpu), ``cpu``, ``cuda`` or ``mps``.
        timeout: time, such as 1h, 10m or 600s, after which a process that waits for another one gives up and the run
            ends. It has to be longer than the longest work that the first process does alone, such as a checkpoint.
        log_every: number of optimizer steps between two records.
        checkpoint_every: number of optimizer steps between two checkpoints; None means once an epoch.
        keep_every: number of epochs between checkpoints that are kept beside the last one; None keeps the last only.
        stop_on_collapse: whether the run ends where the embeddings have collapsed; the log warns in any case.
        processes_changed: answer where a resumed run has other processes than before and BatchNorm whose statistics are
            of one process: ``refuse`` or ``accept``.
        tensorboard: whether TensorBoard events are written beside ``metrics.jsonl``.
    """

    epochs: int = 200
    steps: int | None = None
    batch_size: int = 256
    accumulate: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    sync_batch_norm: bool = False
    channels_last: bool = False
    compile: bool = False
    capture: bool = False
    clip_grad_norm: float | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    timeout: str = "1h"
    log_every: int = 10
    checkpoint_every: int | None = None
    keep_every: int | None = None
    stop_on_collapse: bool = False
    processes_changed: Literal["refuse", "accept"] = "refuse"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "checkpoint_every", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"train.{name} must be at least 1 or null, got {value}")
        try:
            seconds_of(self.timeout)
        except ValueError as error:
            raise ValueError(f"train.timeout {error}") from error
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"train.batch_size {self.batch_size} is not a multiple of train.accumulate {self.accumulate}"
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        return self.steps or self.epochs * steps_per_epoch
