"""From a command line to a run directory: what every method's command does around the loop.

Order: everything that can be refused is refused first (folder, device, data, views, encoder, method), then training
starts; afterwards the backbone is exported and, where the data has labels, a kNN says what it is worth.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from ssl_core import distributed
from ssl_core.backbone import BackboneCard, head_layers, save_backbone
from ssl_core.config import parse_config, save_config, to_dict
from ssl_core.data import Batches, DataConfig, ImageSource, normalization, open_source
from ssl_core.evaluate import evaluation_view, health, knn_accuracy
from ssl_core.nn import EncoderConfig, make_encoder, stem_for, sync_batch_norm
from ssl_core.train import (
    OptimConfig,
    TrainConfig,
    learning_rate,
    make_optimizer,
    train,
)
from ssl_core.views import ViewConfig, ViewSpec, make_view_specs


@dataclass(frozen=True)
class EvaluateConfig:
    """The weighted kNN that accompanies the training, where the data has labels.

    Attributes:
        knn_every: epochs between two evaluations; None evaluates once, at the end.
        k: neighbours.
        temperature: of the neighbours' weights exp(cosine / temperature).
        features: ``backbone`` or ``projection``.
    """

    knn_every: int | None = None
    k: int = 200
    temperature: float = 0.1
    features: Literal["backbone", "projection"] = "backbone"


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The nodes of every method's configuration; a method adds its own ``method``.

    Attributes:
        views: what each image becomes, in the order in which the method takes them.
        out: the run directory; null makes a new one in ``runs/``.
        seed: of weights, queue, order of images and views.
    """

    data: DataConfig = field(default_factory=DataConfig)
    views: list[ViewConfig] = field(default_factory=list)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    out: str | None = None
    seed: int = 0


Config = TypeVar("Config", bound=PretrainConfig)
MakeMethod = Callable[[Config, nn.Module, int, tuple[ViewSpec, ...]], Any]


def run_command(
    config_class: type[Config],
    make_method: MakeMethod[Config],
    arguments: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    recipes: Path,
) -> None:
    """A method's command: read the configuration, train, export, evaluate.

    Args:
        config_class: the method's configuration.
        make_method: (config, encoder, features of the encoder, views) -> method, on the CPU.
        arguments: the command line without the program's name; None reads ``sys.argv``.
        prog: the command's name.
        description: its help text.
        recipes: the folder of its shipped recipes.
    """
    config = parse_config(config_class, arguments, prog=prog, description=description, recipes=recipes)
    with errors_in_one_line(prog):
        pretrain(config, make_method, name=prog.removesuffix("-train"))


@contextmanager
def errors_in_one_line(prog: str) -> Iterator[None]:
    """Print what a user can cause as one message instead of a traceback, and exit with status 1.

    ``SSL_CORE_TRACEBACK=1`` shows the traceback.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        yield
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        if os.environ.get("SSL_CORE_TRACEBACK"):
            raise
        sys.stderr.write(f"{prog}: error: {error}\n")
        raise SystemExit(1) from error
    finally:
        distributed.teardown()


def pretrain(config: Config, make_method: MakeMethod[Config], *, name: str) -> Path:
    """Train a method as a configuration says, continuing its run directory if there is a checkpoint in it.

    Args:
        config: of the run.
        make_method: (config, encoder, features of the encoder, views) -> method, on the CPU.
        name: what a new run directory's name starts with.

    Returns:
        the run directory: ``config.yaml``, ``metrics.jsonl``, ``checkpoints/``, ``backbone.safetensors`` and card.

    Raises:
        ValueError: for settings that do not fit each other or the data.
        OSError: if the run directory cannot be written.
    """
    device = distributed.setup(choose_device(config.train.device))
    # Every process starts from the same weights; views and order have generators of their own.
    torch.manual_seed(config.seed)
    folder = prepare_folder(config, name)
    specs = make_view_specs(config.views)
    image_size = max(size for spec in specs for size in spec.sizes)
    source = open_source(config.data, split="train")
    mean, std = normalization(config.data, source)
    encoder = make_encoder(config.encoder, channels=len(mean), image_size=image_size)
    num_features: int = encoder.num_features
    method = make_method(config, encoder, num_features, specs)
    if config.train.sync_batch_norm:
        method = sync_batch_norm(method, device)
    method = method.to(
        device, memory_format=torch.channels_last if config.train.channels_last else torch.preserve_format
    )
    optimizer = make_optimizer(method, config.optim, batch_size=config.train.batch_size)
    batches = Batches(
        source,
        specs,
        batch_size=config.train.batch_size,
        seed=config.seed,
        mean=mean,
        std=std,
        workers=config.data.workers,
        accumulate=config.train.accumulate,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=device.type == "cuda",
    )
    evaluation = _make_evaluation(config, method, source, evaluation_view(image_size), mean, std)
    if distributed.is_main():
        save_config(config, folder / "config.yaml")
        stem = stem_for(config.encoder, image_size)
        print(
            _summary(
                config, source, specs, batches.batches_per_epoch, mean, std, encoder, stem, device, folder
            )
        )

    started = time.perf_counter()
    train(
        method,
        batches,
        optimizer,
        config.train,
        folder=folder,
        learning_rate=lambda step: learning_rate(
            config.optim, step.index, step.steps_per_epoch, step.total, config.train.batch_size
        ),
        settings=to_dict(config),
        health=health,
        on_epoch=evaluation.after_epoch if evaluation else None,
    )
    trained_s = time.perf_counter() - started

    metrics = evaluation.final() if evaluation else {}
    if distributed.is_main():
        card = BackboneCard(
            architecture=config.encoder.name,
            channels=len(mean),
            image_size=image_size,
            mean=mean,
            std=std,
            num_features=num_features,
            stem=stem_for(config.encoder, image_size),
            options=config.encoder.options,
            recipe=name,
            metrics=metrics,
            projector=head_layers(method.projector),
        )
        save_backbone(folder / "backbone.safetensors", method.encoder, card)
        print(f"trained in {trained_s:.0f} s; backbone in {folder / 'backbone.safetensors'}")
    distributed.barrier()
    return folder


def choose_device(name: str) -> torch.device:
    """The device of ``train.device``; ``auto`` takes cuda, then mps, then cpu.

    Raises:
        ValueError: if the device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        there = ", ".join(device for device, there in available.items() if there)
        raise ValueError(
            f"train.device {name}: torch {torch.__version__} sees no such device; there is {there}"
        )
    return torch.device(name)


def prepare_folder(config: PretrainConfig, name: str) -> Path:
    """Make the run directory, or find that it cannot be written before any work is done.

    Raises:
        OSError: if it cannot be made or written.
    """
    folder = Path(distributed.broadcast_object(config.out or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"))
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to the run directory {folder} ({error}); choose another --out"
        ) from error
    return folder


class _Evaluation:
    """The kNN of a run's encoder on its own labelled images."""

    def __init__(
        self,
        config: PretrainConfig,
        features: nn.Module,
        train: ImageSource,
        test: ImageSource,
        num_classes: int,
        extract: Callable[[nn.Module, ImageSource], Features],
    ) -> None:
        self._config = config.evaluate
        self._epochs = config.train.epochs
        self._features = features
        self._train = train
        self._test = test
        self._num_classes = num_classes
        self._extract = extract
        self._last: dict[str, float] = {}

    def after_epoch(self, epoch: int) -> dict[str, float]:
        """KNN accuracy every few epochs and after the last."""
        every = self._config.knn_every
        if epoch < self._epochs and (every is None or epoch % every):
            return {}
        if distributed.is_main():
            bank, queries = (self._extract(self._features, source) for source in (self._train, self._test))
            accuracy = knn_accuracy(
                bank.features,
                bank.labels,
                queries.features,
                queries.labels,
                k=self._config.k,
                temperature=self._config.temperature,
                num_classes=self._num_classes,
            )
            self._last = {"knn_top1": accuracy}
        self._last = distributed.broadcast_object(self._last)
        return self._last
