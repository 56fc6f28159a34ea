"""An encoder with a linear classifier, which learns from labels: alone on a frozen encoder, or both together."""

import contextlib
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.config import config_difference
from ssl_core.evaluate.features import evaluating
from ssl_core.evaluate.subject import Precision
from ssl_core.files import write_atomically
from ssl_core.folder import LAST, claimed, last_saved_ns
from ssl_core.losses.precision import at_least_float32
from ssl_core.step import Step
from ssl_core.train import Method, StepOutput, TrainConfig, load_checkpoint, read_metrics, train
from ssl_core.train.checkpoint import restore_
from ssl_core.train.loop import BatchSource
from ssl_core.views import ViewSpec

logger = logging.getLogger(__name__)

Head: TypeAlias = Literal["zeros", "normal", "torch"]
P = TypeVar("P")  # a protocol: a frozen dataclass


class Classifier(nn.Module):
    """A linear probe, a fine-tuning or a supervised training, as the training loop sees it.

    The loss is the cross-entropy of ``linear(encoder(images))``, or, of labels that are rows of 0 and 1, the binary
    cross-entropy as a mean over images and classes. Features, scores and loss are float32 whatever autocast says. A
    frozen encoder works in eval mode, has no gradient, and is no part of the module's state.

    Args:
        encoder: module (n c s s) -> (n f); ``nn.Identity`` for features that are there already.
        linear: linear layer (n f) -> (n classes).
        views: view of the training images.
        frozen: whether the linear layer alone learns.
    """

    def __init__(
        self, encoder: nn.Module, linear: nn.Linear, views: Sequence[ViewSpec] = (), *, frozen: bool = False
    ) -> None:
        super().__init__()
        self.encoder: nn.Module
        if frozen:  # no submodule: neither `train` nor the state of a checkpoint reaches it
            object.__setattr__(self, "encoder", encoder)
        else:
            self.encoder = encoder
        self.linear = linear
        self.views, self.frozen = tuple(views), frozen

    @property
    def projector(self) -> nn.Module:
        """The linear layer."""
        return self.linear

    def forward(self, views: tuple[Tensor, ...], step: Step) -> StepOutput:
        """The loss of one micro-batch: images and their labels."""
        images, labels = views
        scores = self.scores(images)
        if labels.ndim == 2:
            loss = F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype))
        else:
            loss = F.cross_entropy(scores, labels)
        return StepOutput(loss, None, {})

    def scores(self, images: Tensor) -> Tensor:
        """(n classes) of the images, float32."""
        with evaluating(self.encoder) if self.frozen else contextlib.nullcontext():
            features = at_least_float32(self.encoder(images))
        with torch.autocast(features.device.type, enabled=False):
            scores: Tensor = self.linear(features)
        return scores

    def update(self, keys: Tensor | None, step: Step) -> None:
        """Change nothing: the optimizer moves everything that learns."""


def make_linear(num_features: int, num_classes: int, head: Head, seed: int) -> nn.Linear:
    """A linear classifier at its start.

    Args:
        num_features: f, length of the features.
        num_classes: number of classes.
        head: start of the weights: ``zeros``; ``normal``, from N(0, 0.01^2) with a bias of zero; ``torch``, as
            ``nn.Linear`` begins.
        seed: seed of the weights; torch's own generator stays as it is.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        linear = nn.Linear(num_features, num_classes)
        if head != "torch":
            std = 0.01 if head == "normal" else 0.0
            linear.weight.normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
            linear.bias.zero_()
    return linear


def save_classifier(path: Path, linear: nn.Linear) -> None:
    """Write a classifier as a ``.safetensors`` file of ``weight`` (classes f) and ``bias`` (classes)."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in linear.state_dict().items()}
    write_atomically(path, lambda file: file.write(save(state)))


def load_classifier(path: Path | str) -> nn.Linear:
    """The classifier that ``ssl-core eval linear`` or ``eval finetune`` wrote: (n f) features to (n classes) scores.

    The JSON file beside it names the classes in their order, and the view and the encoder that the features are of.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no classifier.
    """
    try:
        state = load(Path(path).read_bytes())
        num_classes, num_features = state["weight"].shape
        linear = nn.Linear(num_features, num_classes)
        linear.load_state_dict(state)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} holds no weight (classes, features) and bias of a classifier: {error}") from error
    return linear.eval()


@dataclass(frozen=True)
class Folders:
    """The folders in which the trials of an evaluation keep checkpoint and log while they last.

    Attributes:
        folder: folder of the result; None keeps nothing, so that nothing can be continued.
        name: beginning of the folders' names.
        seeds: seed of each trial.
    """

    folder: Path | None = None
    name: str = ""
    seeds: Sequence[int] = (0,)

    def of(self, seed: int) -> Path | None:
        """Folder of a trial, or None."""
        return None if self.folder is None else self.folder / f"{self.name}-seed{seed}"

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse, before any work, folders that hold what other settings have begun.

        Args:
            settings: those that all trials share.

        Raises:
            ValueError: with the difference.
        """
        for seed in self.seeds:
            if (work := self.of(seed)) is not None and last_saved_ns(work) is not None:
                begun = load_checkpoint(work / LAST)["config"]
                refuse_other(work, {name: value for name, value in begun.items() if name in settings}, settings)

    def remove(self, part: str = "") -> None:
        """Remove the folders, or a part of each."""
        for seed in self.seeds:
            if (work := self.of(seed)) is not None:
                shutil.rmtree(work / part)


NOWHERE = Folders()


def with_fitting_batch(protocol: P, changed: Sequence[str], num_images: int) -> tuple[P, list[str]]:
    """A protocol with a batch that the images fill, of fewer the largest power of two, and the names of its changes.

    Args:
        protocol: frozen dataclass with a field ``batch_size``.
        changed: names of the values that differ already.
        num_images: number of training images.
    """
    size = cast(Any, protocol).batch_size
    if num_images >= size:
        return protocol, list(changed)
    fewer = 1 << (num_images.bit_length() - 1)
    logger.info("batch_size: %d instead of %d, for there are %d images", fewer, size, num_images)
    fitting: P = replace(cast(Any, protocol), batch_size=fewer)
    return fitting, sorted({*changed, "batch_size"})


def check_batch_size(batch_size: int, num_images: int) -> None:
    """Refuse a batch that the images do not fill, or that processes cannot share equally.

    Raises:
        ValueError: with the remedy.
    """
    if num_images < batch_size:
        raise ValueError(
            f"{num_images} training images are less than one batch of {batch_size}; give a smaller batch_size"
        )
    distributed.equal_share("batch_size", batch_size)


@contextlib.contextmanager
def matmuls_in(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """TF32 in a GPU's products and convolutions of float32 where it is asked for, and not otherwise.

    Raises:
        ValueError: if it is asked for on another device.
    """
    if precision == "tf32" and torch.device(device).type != "cuda":
        raise ValueError(f"precision tf32 is one of GPUs, and this is {device}; take float32 or bfloat16")
    torch_backends: Any = torch.backends
    backends = torch_backends.cudnn.conv, torch_backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for backend, earlier in zip(backends, before, strict=True):
            backend.fp32_precision = earlier


class DivergedError(ValueError):
    """A classifier or a detector whose loss or scores are no longer finite."""


def refuse_other(path: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse to continue what other settings have begun.

    Raises:
        ValueError: with the difference.
    """
    if difference := config_difference(before, settings):
        raise ValueError(
            f"{path} holds what other settings have begun:\n  "
            + "\n  ".join(difference)
            + "\nGive these their old values to continue it, remove it, or choose another --out."
        )


def train_labelled(
    method: Method,
    batches: BatchSource,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    *,
    work: Path | None,
    learning_rate: Callable[[Step], float],
    settings: Mapping[str, Any],
    score: Callable[[], dict[str, float]],
    every: int | None = 1,
    quiet: bool = False,
) -> list[dict[str, float]]:
    """Train a classifier or a detector, from where an earlier try with the same settings was stopped on.

    Args:
        method: classifier or detector to train, on the device to train on.
        batches: batches of images and labels.
        optimizer: optimizer of its parameters.
        config: settings of the training: length, batch and precision.
        work: folder of checkpoint and log; None is a temporary one, from which nothing can be continued.
        learning_rate: function of the step that returns the learning rate.
        settings: plain values on which the result depends, all of them.
        score: function that measures it on test images; every process calls it at once, and it returns the
            same numbers in all.
        every: number of epochs from one measurement to the next; None measures after the last epoch alone.
        quiet: whether neither a bar nor a line for each epoch is shown.

    Returns:
        The numbers of ``score`` at each measurement, the last after the last epoch, and ``epoch``, counted from 1.

    Raises:
        ValueError: if ``work`` holds what other settings have begun, with the difference.
        DivergedError: if the loss or a score is not finite.
        OSError: if ``work`` cannot be written or is in use.
    """
    module = cast(nn.Module, method)
    latest = Step(0, 1, 1)

    def rate(step: Step) -> float:
        nonlocal latest
        latest = step
        return learning_rate(step)

    def checked_score() -> dict[str, float]:
        if not all(parameter.isfinite().all() for parameter in module.parameters()):
            raise FloatingPointError
        return score()

    def measured_before(epochs: int) -> dict[str, float]:
        return checked_score() if every is not None and epochs > 0 and epochs % every == 0 else {}

    with contextlib.ExitStack() as stack:
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        start, saved_ns = 0, last_saved_ns(work)
        if saved_ns is not None:
            content = load_checkpoint(work / LAST)
            refuse_other(work, content["config"], settings)
            start = restore_(content, method=module, optimizer=optimizer)
        folder = stack.enter_context(claimed(work, work.name, saved_ns=saved_ns))
        try:
            train(
                method,
                batches,
                optimizer,
                config,
                folder=folder,
                learning_rate=rate,
                start=start,
                settings=settings,
                # Not after an epoch: what a checkpoint between two epochs does not hold is measured again.
                before_epoch=measured_before,
                quiet=quiet,
                continued_by="the same command",
            )
            last = checked_score()
        except FloatingPointError as error:
            raise DivergedError(
                f"training diverged at step {latest.index} of {latest.total} at learning rate "
                f"{learning_rate(latest):g}; give a smaller lr"
            ) from error
        per_epoch = batches.batches_per_epoch
        scores = [last | {"epoch": float(math.ceil(config.total_steps(per_epoch) / per_epoch))}]
        if distributed.is_main():
            earlier = [record for record in read_metrics(folder) if record.keys() >= {"before_epoch", *last}]
            scores[:0] = [{name: each[name] for name in last} | {"epoch": each["before_epoch"]} for each in earlier]
        return distributed.broadcast_object(scores)
