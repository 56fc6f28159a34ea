"""From a command line to a run directory: what every method's command does around the loop.

Order: everything that can be refused is refused first (folder, device, data, views, encoder, method), then training
starts; afterwards the backbone is exported and, where the data has labels, a kNN says what it is worth.
"""

import inspect
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, Literal, TypeAlias, TypeVar, cast

import torch
from torch import nn

from ssl_core import distributed, ops
from ssl_core.allocator import keep_freed_memory
from ssl_core.backbone import BackboneCard, head_layers, save_backbone, save_card
from ssl_core.config import parse_config, save_config, to_dict
from ssl_core.data import Batches, DataConfig, ImageSource, has_test_split, normalization, open_source
from ssl_core.evaluate import (
    collapse,
    count_classes,
    evaluate_knn,
    evaluation_view,
    extract_features,
    health,
    intra_class_similarity,
    knn_accuracy,
)
from ssl_core.nn import (
    EncoderConfig,
    HeadConfig,
    MomentumBranch,
    MomentumConfig,
    QueueConfig,
    make_encoder,
    stem_for,
    sync_batch_norm,
)
from ssl_core.train import (
    CollapseError,
    Method,
    OptimConfig,
    TrainConfig,
    learning_rate,
    make_optimizer,
    scaled_learning_rate,
    train,
)
from ssl_core.views import ViewConfig, ViewSpec, choose_renderer, make_view_specs, save_view_gallery, shortest_side

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateConfig:
    """The weighted kNN that accompanies the training, where the data has labels.

    During training the intra-class similarity of the test features is logged beside it.

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
        projector: head after the encoder.
        out: run directory; null makes a new one in ``runs/``.
        seed: seeds weights, queue, order of images and views.
    """

    data: DataConfig = field(default_factory=DataConfig)
    views: list[ViewConfig] = field(default_factory=list)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    projector: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    out: str | None = None
    seed: int = 0

    def view_specs(self) -> tuple[ViewSpec, ...]:
        """What each image becomes: those of ``views``, unless a method makes more of them.

        Raises:
            ValueError: for views that do not make sense.
        """
        return make_view_specs(self.views)


Config = TypeVar("Config", bound=PretrainConfig)
TrainedMethod = TypeVar("TrainedMethod", bound=Method)
Config_co = TypeVar("Config_co", covariant=True)
Method_co = TypeVar("Method_co", covariant=True)


@dataclass(frozen=True)
class Run(Generic[Config_co, Method_co]):
    """A run under way, for what a method does between its epochs.

    Attributes:
        config: configuration of the run.
        method: what ``make_method`` made, on its device.
        source: training images.
        batches: batches of them.
        card: description of the backbone: how images are normalised and how large they are, among others.
        device: where the method is.
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


@dataclass(frozen=True)
class Command(Generic[Config, TrainedMethod]):
    """A method's command: read the configuration, train, export, evaluate.

    Called with the command line without the program's name, or with nothing, which reads ``sys.argv``. The recipes
    that it ships are in the folder ``recipes`` beside the module that defines the configuration.

    Attributes:
        prog: name of the command.
        config_class: class of the method's configuration.
        make_method: (config, encoder, features of the encoder, views) -> method, on the CPU.
        description: help text.
        prepare: work between epochs, as in :func:`pretrain`.
    """

    prog: str
    config_class: type[Config]
    make_method: MakeMethod[Config, TrainedMethod]
    description: str
    prepare: Prepare[Config, TrainedMethod] | None = None

    def __call__(self, arguments: Sequence[str] | None = None) -> None:
        """Run the command."""
        recipes = Path(inspect.getfile(self.config_class)).parent / "recipes"
        config = parse_config(
            self.config_class, arguments, prog=self.prog, description=self.description, recipes=recipes
        )
        with errors_in_one_line(self.prog):
            pretrain(config, self.make_method, name=self.prog.removesuffix("-train"), prepare=self.prepare)


@contextmanager
def errors_in_one_line(prog: str) -> Iterator[None]:
    """Print what a user can cause as one message instead of a traceback, and exit with status 1.

    ``SSL_CORE_TRACEBACK=1`` shows the traceback.
    """
    # torchrun's processes would all say the same.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(format="%(message)s", level=level, stream=sys.stderr)
    try:
        yield
    except (ValueError, OSError, FloatingPointError, CollapseError, ImportError) as error:
        if os.environ.get("SSL_CORE_TRACEBACK"):
            raise
        sys.stderr.write(f"{prog}: error: {error}\n")
        raise SystemExit(1) from error
    finally:
        distributed.teardown()


def pretrain(
    config: Config,
    make_method: MakeMethod[Config, TrainedMethod],
    *,
    name: str,
    prepare: Prepare[Config, TrainedMethod] | None = None,
) -> Path:
    """Train a method as a configuration says, continuing its run directory if there is a checkpoint in it.

    Args:
        config: configuration of the run.
        make_method: (config, encoder, features of the encoder, views) -> method, on the CPU.
        name: what a new run directory's name starts with.
        prepare: called once in every process, before anything is written, to refuse what it cannot serve; what it
            returns is called before the first step of each epoch with the number of epochs done, and returns numbers
            for the log.

    Returns:
        the run directory: ``config.yaml``, ``views.png``, ``metrics.jsonl``, ``checkpoints/``, ``backbone.safetensors``
        and card.

    Raises:
        ValueError: for settings that do not fit each other or the data.
        OSError: if the run directory cannot be written.
    """
    device = distributed.setup(choose_device(config.train.device))
    specs = config.view_specs()
    renderer = choose_renderer(config.data.renderer, device, specs)  # refuses before anything is read
    if device.type == "cpu":
        keep_freed_memory()
    # Every process starts from the same weights; views and order have generators of their own.
    torch.manual_seed(config.seed)
    folder = prepare_folder(config, name)
    image_size = max(size for spec in specs for size in spec.sizes)
    at_least = decoded_side(specs)
    source = open_source(config.data, split="train", at_least=at_least)
    mean, std = normalization(config.data, source)
    encoder = make_encoder(config.encoder, channels=len(mean), image_size=image_size)
    num_features = cast(int, encoder.num_features)
    method = make_method(config, encoder, num_features, specs)
    module = cast(nn.Module, method)  # changed in place from here on
    if config.train.sync_batch_norm:
        sync_batch_norm(module, device)
    module.to(device)
    if config.train.channels_last:
        module.to(memory_format=torch.channels_last)
    if config.train.precision == "bfloat16":
        for part in module.modules():
            if isinstance(part, MomentumBranch):
                part.use_bfloat16_weights_()
    optimizer = make_optimizer(module, config.optim, batch_size=config.train.batch_size)
    batches = Batches(
        source,
        specs,
        batch_size=config.train.batch_size,
        seed=config.seed,
        mean=mean,
        std=std,
        workers=config.data.workers,
        renderer=renderer,
        device=device,
        channels_last=config.train.channels_last,
        accumulate=config.train.accumulate,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    stem = stem_for(config.encoder, image_size)
    card = BackboneCard(
        architecture=config.encoder.name,
        channels=len(mean),
        image_size=image_size,
        mean=mean,
        std=std,
        num_features=num_features,
        stem=stem,
        options=config.encoder.options,
        recipe=name,
        projector=head_layers(method.projector),
    )
    knn = knn_sources(config.data, config.evaluate, source, at_least)
    run = Run(config, method, source, batches, card, device, folder)
    before_epoch = prepare and prepare(run)
    if distributed.is_main():
        save_config(config, folder / "config.yaml")
        save_card(folder / "backbone.json", card)
        if not (pictures := folder / "views.png").exists():
            save_view_gallery(source, specs, pictures, seed=config.seed)
        print(summary(run), flush=True)

    def on_epoch(epoch: int) -> dict[str, float]:
        every = config.evaluate.knn_every
        if every is None or epoch % every or knn is None:
            return {}
        return distributed.broadcast_object(knn_of_method(config.evaluate, method, card, *knn, device))

    started = time.perf_counter()
    speed = train(
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
        collapse=collapse,
        before_epoch=before_epoch,
        on_epoch=on_epoch,
    )
    trained_s = time.perf_counter() - started

    if distributed.is_main():
        save_backbone(folder / "backbone.safetensors", encoder, card)
        reached = speed and f", {speed.images_per_s:,.0f} images/s, {100 * speed.data_wait:.1f} % waiting for data"
        print(f"trained in {trained_s:.0f} s{reached or ''}; the backbone is {folder / 'backbone.safetensors'}")
        if knn is not None:
            settings = config.evaluate
            result = evaluate_knn(
                str(folder),
                features=settings.features,
                k=settings.k,
                temperature=settings.temperature,
                device=device,
                sources=knn,
            )
            save_card(folder / "backbone.json", replace(card, metrics={"knn_top1": result["top1"]}))
    distributed.barrier()
    return folder


def decoded_side(specs: Sequence[ViewSpec]) -> int | None:
    """Pixels that each side of an image must keep when it is decoded, for its views and for the kNN's."""
    return shortest_side((*specs, evaluation_view(max(size for spec in specs for size in spec.sizes))))


def knn_sources(
    data: DataConfig, config: EvaluateConfig, train: ImageSource, at_least: int | None
) -> tuple[ImageSource, ImageSource] | None:
    """The labelled images of the kNN, bank and queries; None, said aloud, where there are none."""
    reason = ""
    if not has_test_split(data):
        reason = "the data has no test split (data.test_source or data.holdout give it one)"
    elif train.classes is None and data.source != "stl10":
        reason = "the data has no labels"
    if reason:
        if config.knn_every is not None:
            raise ValueError(f"evaluate.knn_every {config.knn_every}: {reason}")
        logger.info("no kNN at the end: %s", reason)
        return None
    bank = open_source(data, split="labelled") if data.source == "stl10" else train
    test = open_source(data, split="test", at_least=at_least)
    if config.k > len(bank):
        raise ValueError(f"evaluate.k {config.k} is more than the {len(bank)} labelled images of {bank.name}")
    return bank, test


@torch.no_grad()
def knn_of_method(
    config: EvaluateConfig,
    method: Method,
    card: BackboneCard,
    bank: ImageSource,
    test: ImageSource,
    device: torch.device,
) -> dict[str, float]:
    """What the method's features are worth as it is now, by name; computed by the first process alone."""
    if not distributed.is_main():
        return {}
    features = method.encoder if config.features == "backbone" else nn.Sequential(method.encoder, method.projector)
    view = evaluation_view(card.image_size)
    train_features, test_features = (
        extract_features(features, source, view, mean=card.mean, std=card.std, device=device) for source in (bank, test)
    )
    num_classes = count_classes(bank)
    accuracy = knn_accuracy(
        *train_features, *test_features, k=config.k, temperature=config.temperature, num_classes=num_classes
    )
    measured = {"knn_top1": accuracy}
    if test_features.labels.bincount().max() >= 2:  # or no two images have a class in common
        measured["intra_class_similarity"] = intra_class_similarity(*test_features, num_classes)
    return measured


def summary(run: Run[PretrainConfig, Method]) -> str:
    """What is about to happen, with everything that was chosen automatically."""
    config, card, batches = run.config, run.card, run.batches
    optim, training = config.optim, config.train
    rate = scaled_learning_rate(optim, training.batch_size)
    scaling = f" = {optim.lr:g} x {training.batch_size} / 256" if optim.scale_lr else ""
    of_1d = "" if optim.lr_1d is None else f", of one-dimensional parameters {rate * optim.lr_1d / optim.lr:g}"
    constant = f", constant in {', '.join(optim.constant_lr)}" if optim.constant_lr else ""
    parameters = sum(parameter.numel() for parameter in run.method.encoder.parameters()) / 1e6
    stems = {"imagenet": "its own stem", "small": "3x3 stem, no max-pool", "small_pool": "3x3 stem, max-pool"}
    numbers = [", ".join(f"{value:.3f}" for value in values) for values in (card.mean, card.std)]
    views = ", ".join(
        f"{spec.name} {'/'.join(map(str, spec.sizes))} px{' (partner)' if spec.partner else ''}"
        for spec in run.method.views
    )
    backends = ", ".join(f"{op} {where[run.device.type]}" for op, where in ops.implementations().items())
    lines = {
        "run": f"{run.folder}",
        "data": f"{run.source.name}: {len(run.source):,} images, {card.channels} channels, "
        f"mean ({numbers[0]}), std ({numbers[1]})",
        "views": f"{views} (rendered by {_renderer_text(batches, config.data.workers)})",
        "encoder": f"{card.architecture}, {stems[card.stem]}, {parameters:.1f} M parameters, "
        f"{card.num_features} features",
        "training": f"{training.epochs} epochs of {batches.batches_per_epoch} steps, batch {training.batch_size} over "
        f"{distributed.world_size()} process(es), {optim.name}, learning rate {rate:g}{scaling}{of_1d}{constant}",
        "device": f"{run.device}, {training.precision}; {backends}",
    }
    return "\n".join(f"{name:9} {value}" for name, value in lines.items())


def _renderer_text(batches: Batches, workers: int) -> str:
    """What renders the views, and what it renders them from."""
    if batches.renderer == "cpu":
        return f"cpu: {ops.cpp.chosen_instruction_set()}"
    if batches.renderer == "device":
        if batches.held_bytes:
            return f"device: {batches.held_bytes / 2**20:,.0f} MiB of images live there, no workers"
        return f"device: images come from {workers} worker(s)"
    return batches.renderer


def check_batch(
    train: TrainConfig, momentum: MomentumConfig, queue: QueueConfig | None, *, keys_per_image: int = 1
) -> None:
    """Check that a method's queue holds the keys of a step and that its split BatchNorm divides a forward's images.

    Args:
        train: batch, over processes and micro-batches.
        momentum: momentum branch, whose BatchNorm may be split.
        queue: queue of the method; None without one.
        keys_per_image: number of keys of an image that a step enqueues.

    Raises:
        ValueError: if not.
    """
    keys_per_step = train.batch_size * keys_per_image
    if queue is not None and queue.length < keys_per_step:
        raise ValueError(
            f"queue.length {queue.length} is less than the {keys_per_step} keys of one step; "
            "use a longer queue or a smaller train.batch_size"
        )
    rows = train.batch_size // (train.accumulate * distributed.world_size())
    if rows % momentum.batch_norm_splits:
        raise ValueError(
            f"momentum.batch_norm_splits {momentum.batch_norm_splits} does not divide the {rows} images that a "
            "process forwards at once (train.batch_size over train.accumulate and processes)"
        )


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
        raise ValueError(f"train.device {name}: torch {torch.__version__} sees no such device; there is {there}")
    return torch.device(name)


def prepare_folder(config: PretrainConfig, name: str) -> Path:
    """Make the run directory, or find that it cannot be written before any work is done.

    Raises:
        OSError: if it cannot be made or written.
        ValueError: for a name that evaluation takes for another encoder.
    """
    if config.out in ("random", "pixels") or (config.out or "").startswith("timm:"):
        raise ValueError(f"out {config.out}: ssl-core eval takes this name for another encoder; take runs/{config.out}")
    folder = Path(distributed.broadcast_object(config.out or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"))
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the run directory {folder} ({error}); choose another --out") from error
    return folder
