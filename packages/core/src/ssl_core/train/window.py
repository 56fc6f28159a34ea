"""Measurements of the loop between two records of its log: losses, throughput, waiting."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_core import distributed
from ssl_core.step import Step
from ssl_core.train.method import StepOutput


class Speed(NamedTuple):
    """Speed of a run, without its evaluations.

    Attributes:
        images_per_s: images of all processes that a second of training took in.
        data_wait: fraction of the time in which this process waited for a batch. A GPU's work on a batch, such as
            rendering its views beside the last step, is no wait of the process.
    """

    images_per_s: float
    data_wait: float


class Window:
    """The time since the last record: its losses and their images, and how long the loop waited for data.

    Args:
        last_checkpoint: file that the error names where a loss is not finite.
        identifier: function of an image's index that returns its name for a person.
        health: function of a batch of embeddings (n d) that returns measures for the log.
    """

    def __init__(
        self,
        last_checkpoint: Path,
        identifier: Callable[[int], str],
        health: Callable[[Tensor], dict[str, float]] | None,
    ) -> None:
        self._last_checkpoint = last_checkpoint
        self._identifier = identifier
        self._health = health
        self._unchecked: list[tuple[Step, Tensor, Tensor]] = []
        self._losses: list[Tensor] = []
        self._num_since = 0  # images of this process
        self.restart_clock()
        # Of all records.
        self._num_images, self._total_s, self._total_waited_s = 0, 0.0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as time spent waiting for data."""
        before = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - before

    def add(self, step: Step, loss: Tensor, index: Tensor) -> None:
        """Take in the loss of a micro-batch and the indices of its images; no device sync."""
        self._unchecked.append((step, loss, index))
        self._losses.append(loss)
        self._num_since += len(index)

    def restart_clock(self) -> None:
        """Leave what was done since the last record, an evaluation say, out of the throughput."""
        self._losses.clear()
        self._num_since = 0
        self._waited_s = 0.0
        self._since = time.perf_counter()

    def check(self) -> None:
        """Raise at the first loss since the last check that is not finite, in any process."""
        if not self._unchecked:
            return
        losses = torch.stack([loss for _, loss, _ in self._unchecked])
        gathered = distributed.gather(losses[None])
        bad = (~gathered.isfinite()).any(dim=0).nonzero().flatten().tolist()
        if not bad:
            self._unchecked.clear()
            return
        step, _, index = self._unchecked[bad[0]]
        images = distributed.gather(index.to(losses.device)).tolist()
        names = ", ".join(self._identifier(image) for image in images[:8])
        survivor = str(self._last_checkpoint) if self._last_checkpoint.exists() else "none yet"
        raise FloatingPointError(
            f"the loss is {gathered[:, bad[0]].tolist()} at step {step.index} (epoch {step.epoch:.2f}); "
            f"its {len(images)} images are {images} ({names}{', ...' if len(images) > 8 else ''}); "
            f"last good checkpoint: {survivor}. A lower --optim.lr, --train.clip_grad_norm or "
            "--train.precision float32 usually helps."
        )

    def summary(self, output: StepOutput) -> dict[str, float]:
        """The numbers of a record; starts the next window."""
        self.check()
        losses = distributed.gather(torch.stack(self._losses)[None])
        elapsed_s = time.perf_counter() - self._since
        num_images = self._num_since * distributed.world_size()
        self._num_images += num_images
        self._total_s += elapsed_s
        self._total_waited_s += self._waited_s
        values = {
            "loss": losses.mean().item(),
            "images_per_s": num_images / elapsed_s,
            "data_wait": min(1.0, self._waited_s / elapsed_s),
        }
        values |= {name: value.item() for name, value in output.metrics.items()}
        # Of all processes, so that all come to the same judgment; keys are that already.
        embeddings = output.keys if output.embeddings is None else distributed.gather(output.embeddings)
        if self._health is not None and embeddings is not None:
            values |= self._health(embeddings)
        self.restart_clock()
        return values

    def speed(self) -> Speed | None:
        """Speed over all records; None without any."""
        if not self._num_images:
            return None
        return Speed(self._num_images / self._total_s, min(1.0, self._total_waited_s / self._total_s))
