"""What ``ssl-core eval ...``, ``embed`` and ``export`` do, and the picture of ``report``.

Each is one function of plain arguments that raises for what a user can cause, prints its result and returns it.
"""

import dataclasses
import json
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pyarrow.lib import FixedSizeListArray, array, table
from pyarrow.parquet import write_table
from torch import nn

from ssl_core.backbone import BackboneCard, save_backbone
from ssl_core.data import DataConfig, ImageSource, MemoryImages, open_source
from ssl_core.evaluate.accuracy import check_labels, count_classes
from ssl_core.evaluate.encoder import BASELINES, Layer, load_encoder, run_data, shared_data
from ssl_core.evaluate.features import Features, evaluation_view, extract_features
from ssl_core.evaluate.knn import knn_ranks
from ssl_core.evaluate.linear import linear_probe
from ssl_core.evaluate.neighbours import choose_queries, neighbour_picture
from ssl_core.evaluate.protocol import (
    TestCrop,
    find_protocol,
    protocol_text,
    random_crops_text,
    view_for_random_crops,
)
from ssl_core.evaluate.similarity import inter_class_similarity, intra_class_similarity
from ssl_core.evaluate.tsne import MOST_CLASSES, check_plot, choose_images, tsne_picture, tsne_points
from ssl_core.files import write_atomically


def evaluate_knn(
    encoder: str,
    *,
    data: DataConfig | None = None,
    like: str | None = None,
    features: Layer = "backbone",
    k: int = 200,
    temperature: float = 0.1,
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    progress: bool = True,
    sources: tuple[ImageSource, ImageSource] | None = None,
) -> dict[str, Any]:
    """Classify test images by their nearest training images; prints ``knn top1 47.31 (k=200, ...)``.

    Args:
        encoder: which, as :func:`load_encoder` takes it.
        data: labelled images; None is the data of the run that ``encoder``, or else ``like``, names.
        like: for ``random`` and ``pixels``.
        features: of the backbone, or of the projector after it.
        k: neighbours.
        temperature: of their weights exp(cosine / temperature).
        device: where to compute.
        seed: of ``random``.
        out: folder for ``knn.json``; None is the folder of ``encoder``, and none if that has no folder.
        progress: show bars.
        sources: labelled and test images, if the caller has them open; otherwise they are read from ``data``.

    Returns:
        What ``knn.json`` says: ``top1``, with ten classes or more ``top5``, and every setting.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for missing labels, k beyond the training images, and what does not fit together.
    """
    subject = _subject(encoder, data, like, features, device, seed)
    train, test = sources or (open_source(subject.data, split=split) for split in ("labelled", "test"))
    bank = subject.extract(train, "training features" if progress else "")
    queries = subject.extract(test, "test features" if progress else "")
    num_classes = count_classes(train)
    ranks = knn_ranks(
        bank.features.to(device),
        bank.labels,
        queries.features.to(device),
        queries.labels,
        k=k,
        temperature=temperature,
        num_classes=num_classes,
    )
    result: dict[str, Any] = {"top1": (ranks < 1).double().mean().item()}
    if num_classes >= 10:
        result["top5"] = (ranks < 5).double().mean().item()
    result |= {"k": k, "temperature": temperature, "features": features, "view": subject.view_text()}
    result |= _settings(encoder, subject, train=train, test=test)
    print(f"knn top1 {100 * result['top1']:.2f} (k={k}, T={temperature:g}, {len(test)} images)")
    _save_result(result, "knn.json", out, encoder)
    return result


def evaluate_linear(
    encoder: str,
    *,
    protocol: str = "moco",
    data: DataConfig | None = None,
    like: str | None = None,
    features: Layer = "backbone",
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    crop: TestCrop = "center",
    crop_seeds: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a linear classifier on frozen features; prints the protocol, then ``linear top1 last 83.10 ...``.

    Args:
        encoder: which, as :func:`load_encoder` takes it.
        protocol: a name in ``PROTOCOLS``.
        data: labelled images; None is the data of the run that ``encoder``, or else ``like``, names.
        like: for ``random`` and ``pixels``.
        features: of the backbone, or of the projector after it.
        epochs: in place of the protocol's; milestones move along.
        lr: in place of the protocol's, before it is scaled by the batch size where the protocol does so.
        batch_size: in place of the protocol's.
        crop: of test images: ``center`` as the protocol says; ``random`` and ``random_window`` test the same
            classifier on random crops as well, see :func:`view_for_random_crops`, and print a line of their own.
        crop_seeds: how many seeds, from ``seed`` on, the random crops are drawn with, at least 3; null is 3.
        device: where to compute.
        seed: of the classifier, the order, the crops, and of ``random``.
        out: folder for ``linear.json``; None is the folder of ``encoder``, and none if that has no folder.
        progress: show bars.

    Returns:
        What ``linear.json`` says: ``last``, ``best``, ``best_epoch``, ``random_crops``, and every setting.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for an unknown protocol, missing labels, and what does not fit together.
    """
    if crop == "center" and crop_seeds is not None:
        raise ValueError(f"crop_seeds {crop_seeds} are of random crops: give crop random or random_window too")
    if crop_seeds is not None and crop_seeds < 3:
        raise ValueError(f"crop_seeds must be at least 3 for a mean and its spread, got {crop_seeds}")
    asked: dict[str, Any] = {"epochs": epochs, "lr": lr, "batch_size": batch_size}
    changes = {name: value for name, value in asked.items() if value is not None}
    chosen = dataclasses.replace(find_protocol(protocol), **changes)
    subject = _subject(encoder, data, like, features, device, seed)
    train, test = (open_source(subject.data, split=split) for split in ("labelled", "test"))
    print(protocol_text(protocol, chosen, subject.card.image_size))
    random_view = None if crop == "center" else view_for_random_crops(chosen, crop, subject.card.image_size)
    seeds = [seed + draw for draw in range(crop_seeds or 3)]
    accuracy = linear_probe(
        subject.encoder,
        train,
        test,
        chosen,
        num_classes=count_classes(train),
        image_size=subject.card.image_size,
        mean=subject.card.mean,
        std=subject.card.std,
        seed=seed,
        device=device,
        workers=subject.data.workers,
        random_view=random_view,
        crop_seeds=seeds,
        progress=progress,
    )
    result = {
        **accuracy._asdict(),
        "protocol": {"name": protocol, **dataclasses.asdict(chosen)},
        "changed": sorted(changes),
        "features": features,
        "seed": seed,
        **_settings(encoder, subject, train=train, test=test),
    }
    print(
        f"linear top1 last {100 * accuracy.last:.2f} best {100 * accuracy.best:.2f} "
        f"(protocol {protocol}, {chosen.epochs} epochs, {len(test)} images)"
    )
    if random_view is not None:
        mean, std = statistics.mean(accuracy.random_crops), statistics.stdev(accuracy.random_crops)
        crops = random_crops_text(random_view)
        result |= {"crop": crops, "crop_seeds": seeds, "random_crops_mean": mean, "random_crops_std": std}
        print(f"linear top1 random crops {100 * mean:.2f} std {100 * std:.2f} ({len(seeds)} seeds; {crops})")
    _save_result(result, "linear.json", out, encoder)
    return result


def evaluate_similarity(
    encoder: str,
    *,
    data: DataConfig | None = None,
    like: str | None = None,
    features: Layer = "backbone",
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Compare test images within and between classes; prints ``similarity intra-class 0.612 inter-class ...``.

    The mean cosine of two test images of one class, and of two classes, see :func:`intra_class_similarity`.

    Args:
        encoder: which, as :func:`load_encoder` takes it.
        data: labelled images; None is the data of the run that ``encoder``, or else ``like``, names.
        like: for ``random`` and ``pixels``.
        features: of the backbone, or of the projector after it.
        device: where to compute.
        seed: of ``random``.
        out: folder for ``similarity.json``; None is the folder of ``encoder``, and none if that has no folder.
        progress: show a bar.

    Returns:
        What ``similarity.json`` says: ``intra_class``, ``inter_class``, ``num_classes`` that have two images or more,
        and every setting.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for missing labels, images of one class or of no two of any, and what does not fit together.
    """
    subject = _subject(encoder, data, like, features, device, seed)
    test = open_source(subject.data, split="test")
    found = subject.extract(test, "test features" if progress else "")
    result: dict[str, Any] = {
        "intra_class": intra_class_similarity(*found, count_classes(test)),
        "inter_class": inter_class_similarity(*found, count_classes(test)),
        "num_classes": int((found.labels.bincount() >= 2).sum()),
        "features": features,
        "view": subject.view_text(),
        **_settings(encoder, subject, test=test),
    }
    print(
        f"similarity intra-class {result['intra_class']:.3f} inter-class {result['inter_class']:.3f} "
        f"({len(test)} test images, {result['num_classes']} classes, {features})"
    )
    _save_result(result, "similarity.json", out, encoder)
    return result


def draw_tsne(
    encoders: Sequence[str],
    *,
    out: str = "tsne.png",
    classes: int = 10,
    images_per_class: int = 100,
    perplexity: float = 30.0,
    data: DataConfig | None = None,
    like: str | None = None,
    features: Layer = "backbone",
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Draw t-SNE of the same test images by one or more encoders, side by side, as a PNG.

    Features are l2-normalised, so near means of large cosine; above each panel stands the mean cosine within and
    between classes of the images shown.

    Args:
        encoders: which, each as :func:`load_encoder` takes it.
        out: the PNG; its folder exists.
        classes: random classes to show, 2 to 10; all where there are no more.
        images_per_class: random test images of each; all where there are no more.
        perplexity: of t-SNE: neighbours that each image is to keep close, about.
        data: labelled images; None is the data of the runs among ``encoders`` and ``like``, if they agree.
        like: for ``random`` and ``pixels``.
        features: of the backbone, or of the projector after it.
        device: where to compute features.
        seed: of classes, images, t-SNE, and ``random``.
        progress: show bars.

    Returns:
        The file.

    Raises:
        FileNotFoundError: for a path that does not exist, the folder of ``out`` among them.
        ImportError: if matplotlib is not installed.
        ValueError: for another suffix, settings out of range, runs on different data, missing labels, and what does
            not fit together.
    """
    path = Path(out)
    check_plot()
    if path.suffix != ".png":
        raise ValueError(f"the picture is written as .png, not {out!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    if not 2 <= classes <= MOST_CLASSES:
        raise ValueError(f"classes must be 2 to {MOST_CLASSES}, as many as colours can tell apart, got {classes}")
    if images_per_class < 2:
        raise ValueError(f"images_per_class must be at least 2, got {images_per_class}")
    if like is not None and not BASELINES & set(encoders):
        raise ValueError(f"like {like!r} is for random and pixels; {', '.join(encoders)} say themselves what they are")
    loaded = [
        load_encoder(encoder, like=like if encoder in BASELINES else None, features=features, seed=seed)
        for encoder in encoders
    ]
    channels = {card.channels: encoder for encoder, (_, card) in zip(encoders, loaded, strict=True)}
    if len(channels) > 1:
        takes = " and ".join(f"{encoder} takes {count}" for count, encoder in channels.items())
        raise ValueError(f"images have one number of channels, but {takes}; draw these encoders one by one")
    data = data or shared_data(encoders, like)
    test = open_source(data, split="test")
    shown = _random_images(test, classes, images_per_class, seed)
    if not 0 < perplexity < len(shown):
        raise ValueError(f"perplexity must be positive and below the {len(shown)} images shown, got {perplexity:g}")

    panels = []
    for encoder, (module, card) in zip(encoders, loaded, strict=True):
        name = Path(encoder).resolve().name if Path(encoder).exists() else encoder
        found = _Subject(module.to(device), card, data, device).extract(shown, name if progress else "")
        intra, inter = (mean(*found, count_classes(test)) for mean in (intra_class_similarity, inter_class_similarity))
        print(f"{encoder}: similarity intra-class {intra:.3f} inter-class {inter:.3f}")
        title = f"{textwrap.fill(name, 40)}\nintra-class {intra:.2f}, inter-class {inter:.2f}"
        panels.append((title, tsne_points(found.features, perplexity=perplexity, seed=seed)))
    num_classes = int((shown.labels.bincount() > 0).sum())
    of = f"{len(shown)} test images, {num_classes} classes"
    how = f"t-SNE of l2-normalised {features} features, perplexity {perplexity:g}, seed {seed}"
    source = "/".join(Path(test.name).parts[-2:])  # a picture travels farther than a path
    names = test.classes or [str(label) for label in range(count_classes(test))]
    caption = f"{source}, {of}; {how}; above: mean cosine of pairs"
    figure = tsne_picture(panels, shown.labels, names, caption=caption)
    write_atomically(path, lambda part: figure.savefig(part, format="png"))
    print(f"wrote {path}: {how}; {of} of {test.name}")
    return path


def _random_images(test: ImageSource, classes: int, images_per_class: int, seed: int) -> MemoryImages:
    """What :func:`choose_images` chooses, read once for all encoders."""
    labels = torch.tensor([test.label(index) for index in range(len(test))])
    check_labels(labels, count_classes(test), "test")
    chosen = choose_images(labels, classes=classes, images_per_class=images_per_class, seed=seed)
    images = {index: test.image(index) for index in chosen.tolist()}
    # In place of a broken image stands the next one, which may be of another class.
    kept = [index for index in images if test.label(index) == labels[index]]
    identifiers = [test.identifier(index) for index in kept]
    return MemoryImages(test.name, [images[index] for index in kept], labels[kept], test.classes, identifiers)


def embed(
    encoder: str,
    out: str,
    *,
    data: DataConfig | None = None,
    split: str = "train",
    like: str | None = None,
    features: Layer = "backbone",
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write the features of a source, with identifiers and labels (-1 where unknown), in its order.

    Args:
        encoder: which, as :func:`load_encoder` takes it.
        out: ends in ``.npz`` (arrays ``features``, ``labels``, ``identifiers``) or ``.parquet`` (columns
            ``identifier``, ``label``, ``features``).
        data: the images; None is the data of the run that ``encoder``, or else ``like``, names.
        split: of the data: ``train``, ``test`` or ``labelled``.
        like: for ``random`` and ``pixels``.
        features: of the backbone, or of the projector after it.
        device: where to compute.
        seed: of ``random``.
        progress: show a bar.

    Returns:
        The file.

    Raises:
        FileNotFoundError: for a path that does not exist, the folder of ``out`` among them.
        ValueError: for another suffix, and for what does not fit together.
    """
    path = Path(out)
    # Before the work, which may take hours.
    if path.suffix not in (".npz", ".parquet"):
        raise ValueError(f"features are written as .npz or .parquet, not {out!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    subject = _subject(encoder, data, like, features, device, seed)
    source = open_source(subject.data, split=split)
    found = subject.extract(source, "features" if progress else "")
    identifiers = [source.identifier(index) for index in range(len(source))]
    write_atomically(path, lambda part: _write_features(part, path.suffix, found, identifiers))
    print(f"wrote {len(source)} features of length {found.features.shape[1]} to {path}")
    return path


def _write_features(part: Path, suffix: str, found: Features, identifiers: list[str]) -> None:
    features, labels = found.features.numpy(), found.labels.numpy()
    if suffix == ".npz":
        with part.open("wb") as file:  # given a name, numpy would append a suffix
            np.savez(file, features=features, labels=labels, identifiers=np.array(identifiers))
    else:
        rows = FixedSizeListArray.from_arrays(array(features.ravel()), features.shape[1])
        rows_table = table({"identifier": identifiers, "label": labels, "features": rows})
        write_table(rows_table, part)  # type: ignore[no-untyped-call]  # pyarrow's is untyped


def draw_neighbours(
    encoder: str,
    out: str,
    *,
    data: DataConfig | None = None,
    rows: int = 10,
    k: int = 6,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write a PNG of the nearest training images of some test images: by the encoder, a random one, and pixels.

    Args:
        encoder: a run directory or an exported backbone.
        out: the PNG; its folder exists.
        data: the images; None is the run's.
        rows: queries, chosen by :func:`choose_queries`.
        k: neighbours.
        device: where to compute.
        seed: of the random encoder.
        progress: show bars.

    Returns:
        The file.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for what does not fit together.
    """
    path = Path(out)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    data = data or run_data(encoder)
    train, test = (open_source(data, split=split) for split in ("labelled", "test"))
    queries = choose_queries(torch.tensor([test.label(index) for index in range(len(test))]), rows)
    blocks = {}
    for title, spec, like in (("trained", encoder, None), ("random", "random", encoder), ("pixels", "pixels", encoder)):
        subject = _subject(spec, data, like, "backbone", device, seed)
        bank, tested = (subject.extract(source, title if progress else "").features for source in (train, test))
        blocks[f"{title} encoder" if title != "pixels" else title] = (bank, tested[queries])
    caption = f"{encoder}: nearest of {len(train)} training images to {len(queries)} test images of {test.name}"
    picture = neighbour_picture(train, test, queries, blocks, image_size=subject.card.image_size, k=k, caption=caption)
    write_atomically(path, lambda part: picture.save(part, format="PNG"))
    print(f"wrote {path}")
    return path


def export(encoder: str, out: str) -> Path:
    """Write an encoder as ``x.safetensors`` in timm's and torchvision's names, with its card ``x.json``.

    Args:
        encoder: a run directory, whose last checkpoint is taken, or another that :func:`load_encoder` takes.
        out: ends in ``.safetensors``; its folder exists.

    Returns:
        The file.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for another suffix, and for weights that do not fit their card.
    """
    module, card = load_encoder(encoder)
    save_backbone(out, module, card)
    print(
        f"wrote {out}: {card.architecture}, {card.num_features} features, input {card.channels} x {card.image_size} px"
    )
    return Path(out)


class _Subject(NamedTuple):
    """An encoder, and the data that it is evaluated on."""

    encoder: nn.Module
    card: BackboneCard
    data: DataConfig
    device: torch.device | str

    def extract(self, source: ImageSource, progress: str) -> Features:
        """Features of a source in the evaluation view."""
        return extract_features(
            self.encoder,
            source,
            evaluation_view(self.card.image_size),
            mean=self.card.mean,
            std=self.card.std,
            device=self.device,
            workers=self.data.workers,
            progress=progress,
        )

    def view_text(self) -> str:
        """The evaluation view in words."""
        view = evaluation_view(self.card.image_size)
        return f"{view.ops[0]}, size {view.sizes[0]}"


def _subject(
    encoder: str, data: DataConfig | None, like: str | None, features: Layer, device: torch.device | str, seed: int
) -> _Subject:
    module, card = load_encoder(encoder, like=like, features=features, seed=seed)
    return _Subject(module.to(device), card, data or run_data(like or encoder), device)


def _settings(encoder: str, subject: _Subject, **sources: ImageSource) -> dict[str, Any]:
    counted: dict[str, Any] = {}
    for split, source in sources.items():
        counted |= {split: source.name, f"num_{split}": len(source)}
    return {
        "encoder": encoder,
        "architecture": subject.card.architecture,
        "recipe": subject.card.recipe,
        **counted,
        "holdout": subject.data.holdout,
        "versions": subject.card.versions,
    }


def _save_result(result: dict[str, Any], name: str, out: str | None, encoder: str) -> None:
    folder = _folder(encoder) if out is None else Path(out)
    if folder is not None:
        write_atomically(folder / name, lambda part: part.write_text(json.dumps(result, indent=2) + "\n"))


def _folder(encoder: str) -> Path | None:
    """The run directory, or the folder of an exported backbone; None for other encoders."""
    path = Path(encoder)
    if not path.exists():
        return None
    return path if path.is_dir() else path.parent
