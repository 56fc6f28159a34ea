"""Linear classification of frozen features.

``ssl-core eval linear RUN --protocol moco`` prints the protocol, then
``linear top1 last 83.10 best 83.20 (protocol moco, 100 epochs, 10000 images)``.
"""

import dataclasses
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from timm.optim.lars import Lars
from torch import Tensor

from ssl_core.data import Batches, DataConfig, ImageSource, open_source
from ssl_core.evaluate.accuracy import balanced_accuracy, balanced_text, check_classes, count_classes, label_ranks
from ssl_core.evaluate.encoder import Layer
from ssl_core.evaluate.features import Features, evaluating
from ssl_core.evaluate.protocol import (
    Protocol,
    TestCrop,
    find_protocol,
    learning_rate,
    protocol_text,
    random_crops_text,
    view_for_random_crops,
    view_for_testing,
    view_for_training,
)
from ssl_core.evaluate.subject import Subject, load_subject
from ssl_core.philox import permutation
from ssl_core.progress import progress_bar
from ssl_core.views import ViewSpec

logger = logging.getLogger(__name__)

_SHUFFLE_STREAM = 1

# Features and labels of the batches of an epoch.
_Batches: TypeAlias = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


class LinearResult(NamedTuple):
    """Accuracy of a linear probe on the test images, in [0, 1].

    Attributes:
        last: accuracy after the last epoch: the number to compare.
        best: accuracy after the best epoch, which the test images chose: some papers report it.
        best_epoch: number of that epoch, counted from 1.
        balanced: mean over the classes of their accuracy after the last epoch.
        random_crops: accuracy after the last epoch on random crops of the test images, for each seed of the crops.
    """

    last: float
    best: float
    best_epoch: int
    balanced: float
    random_crops: tuple[float, ...] = ()


def linear_probe(
    subject: Subject,
    train: ImageSource,
    test: ImageSource,
    protocol: Protocol,
    *,
    seed: int = 0,
    random_view: ViewSpec | None = None,
    crop_seeds: Sequence[int] = (),
    progress: bool = False,
) -> LinearResult:
    """Train a linear classifier on a frozen encoder, and test it after every epoch.

    Args:
        subject: encoder, which works in eval mode and does not change, and what it is fed.
        train: labelled images.
        test: labelled images, all of which are tested.
        protocol: length, rate and crops of the training.
        seed: seeds the initial weights, the order of the images and their crops.
        random_view: view in which the last classifier is tested too, once for each of ``crop_seeds``.
        crop_seeds: seeds of that view's crops.
        progress: whether bars are shown.

    Raises:
        ValueError: if a label is missing, there is less than one batch of images, or the classifier diverges.
    """
    num_classes, card, device = count_classes(train), subject.card, subject.device
    check_classes(train, test)
    if len(train) < protocol.batch_size:
        raise ValueError(
            f"{len(train)} training images are less than one batch of {protocol.batch_size}; give a smaller batch_size"
        )
    view = view_for_testing(protocol, card.image_size)
    tested = subject.extract(test, "test features" if progress else "", view=view)

    batches: _Batches
    if protocol.crop == "none":
        stored = subject.extract(train, "training features" if progress else "", view=view)
        batches = partial(_stored_batches, stored, protocol.batch_size, seed)
    else:
        source = Batches(
            train,
            (view_for_training(protocol, card.image_size),),
            batch_size=protocol.batch_size,
            seed=seed,
            mean=card.mean,
            std=card.std,
            workers=subject.data.workers,
            device=device,
        )
        batches = partial(_encoded_batches, subject, source, train)
    accuracy, classifier = _train_classifier(batches, tested, protocol, num_classes, seed, device, progress)
    random_crops = []
    if random_view is not None:
        for crop_seed in crop_seeds:
            cut = subject.extract(test, "random crops" if progress else "", view=random_view, seed=crop_seed)
            random_crops.append(_accuracy(classifier(cut.features), cut.labels))
    best = max(accuracy)
    balanced = balanced_accuracy(label_ranks(classifier(tested.features), tested.labels) < 1, tested.labels)
    return LinearResult(accuracy[-1], best, accuracy.index(best) + 1, balanced, tuple(random_crops))


def _stored_batches(stored: Features, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = permutation(seed, (_SHUFFLE_STREAM, epoch), len(stored.labels))
    for index in torch.split(order[: len(order) // batch_size * batch_size], batch_size):
        yield stored.features[index], stored.labels[index]


def _encoded_batches(
    subject: Subject, batches: Batches, source: ImageSource, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches.epoch(epoch):
        with evaluating(subject.encoder):
            features = subject.encoder(batch.views[0].to(subject.device)).float()
        # Asked for after the image: one that replaces a broken image brings its own label.
        yield features, _labels(source, batch.index.tolist())


def _labels(source: ImageSource, indices: Iterable[int]) -> Tensor:
    return torch.tensor([source.label(index) for index in indices], dtype=torch.int64)


def _train_classifier(
    batches: _Batches,
    test: Features,
    protocol: Protocol,
    num_classes: int,
    seed: int,
    device: torch.device | str,
    progress: bool,
) -> tuple[list[float], Callable[[Tensor], Tensor]]:
    """Accuracy on the test features after each epoch, and the last classifier: features to scores on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.normal(0.0, 0.01, (num_classes, test.features.shape[1]), generator=generator).to(device)
    bias = torch.zeros(num_classes, device=device)

    @torch.no_grad()
    def classifier(features: Tensor) -> Tensor:
        return F.linear(features.to(device), weight, bias).cpu()

    test_features = test.features.to(device)
    optimizer = _optimizer([weight.requires_grad_(), bias.requires_grad_()], protocol)
    accuracy = []
    epochs = progress_bar(
        protocol.epochs, "epoch", iterable=range(protocol.epochs), desc="linear", disable=not progress
    )
    for epoch in epochs:
        optimizer.param_groups[0]["lr"] = learning_rate(protocol, epoch)
        for features, labels in batches(epoch):
            scores = F.linear(features.to(device), weight, bias)
            optimizer.zero_grad()
            F.cross_entropy(scores, labels.to(device)).backward()  # type: ignore[no-untyped-call]  # torch's is untyped
            optimizer.step()
        scores = classifier(test_features)
        if not scores.isfinite().all():
            raise ValueError(
                f"the linear classifier diverged in epoch {epoch + 1} at learning rate "
                f"{learning_rate(protocol, epoch):g}; give a smaller lr"
            )
        accuracy.append(_accuracy(scores, test.labels))
        epochs.set_postfix_str(f"top1 {100 * accuracy[-1]:.2f}")
    return accuracy, classifier


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return (label_ranks(scores, labels) < 1).double().mean().item()


def _optimizer(parameters: list[Tensor], protocol: Protocol) -> torch.optim.Optimizer:
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=protocol.lr, momentum=0.9)
    # Without weight decay timm's LARS is plain SGD unless told to adapt always.
    lars: torch.optim.Optimizer = Lars(parameters, lr=protocol.lr, momentum=0.9, trust_coeff=0.001, always_adapt=True)
    return lars


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
        encoder: a run directory, a ``.safetensors`` file, ``timm:NAME``, ``random`` or ``pixels``.
        protocol: name in ``PROTOCOLS``.
        data: labelled images; None takes those of the run that ``encoder``, or else ``like``, names.
        like: run directory or exported backbone whose input ``random`` and ``pixels`` take.
        features: layer to evaluate: ``backbone``, or ``projection``, the projector after it.
        epochs: number of epochs in place of the protocol's; milestones move along.
        lr: learning rate in place of the protocol's, which the protocol may scale by the batch size.
        batch_size: batch size in place of the protocol's; None takes of fewer images the largest power of two.
        crop: crop of test images: ``center`` as the protocol says; ``random`` and ``random_window`` test the same
            classifier on random crops as well, see :func:`view_for_random_crops`, and print a line of their own.
        crop_seeds: number of seeds of the random crops, from ``seed`` on, at least 3; null is 3.
        device: device that computes the features.
        seed: seeds the classifier, the order, the crops, and the weights of ``random``.
        out: folder of ``linear.json``; None is the folder of ``encoder``, or nowhere if that has none.
        progress: whether bars are shown.

    Returns:
        What ``linear.json`` says: ``last``, ``best``, ``best_epoch``, ``balanced``, ``random_crops``, and every
        setting.

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
    subject = load_subject(encoder, data=data, like=like, features=features, device=device, seed=seed)
    train, test = (open_source(subject.data, split=split) for split in ("labelled", "test"))
    if batch_size is None and len(train) < chosen.batch_size:
        fewer = changes["batch_size"] = 2 ** int(math.log2(len(train)))
        logger.info("batch_size: %d instead of %d, for there are %d images", fewer, chosen.batch_size, len(train))
        chosen = dataclasses.replace(chosen, batch_size=fewer)
    print(protocol_text(protocol, chosen, subject.card.image_size))
    random_view = None if crop == "center" else view_for_random_crops(chosen, crop, subject.card.image_size)
    seeds = [seed + draw for draw in range(crop_seeds or 3)]
    accuracy = linear_probe(
        subject, train, test, chosen, seed=seed, random_view=random_view, crop_seeds=seeds, progress=progress
    )
    result = {
        **accuracy._asdict(),
        "protocol": {"name": protocol, **dataclasses.asdict(chosen)},
        "changed": sorted(changes),
        "features": features,
        "seed": seed,
        **subject.settings(train=train, test=test),
    }
    print(
        f"linear top1 last {100 * accuracy.last:.2f} best {100 * accuracy.best:.2f} "
        f"(protocol {protocol}, {chosen.epochs} epochs, {result['num_test']} images"
        f"{balanced_text(accuracy.last, accuracy.balanced)})"
    )
    if random_view is not None:
        mean, std = statistics.mean(accuracy.random_crops), statistics.stdev(accuracy.random_crops)
        crops = random_crops_text(random_view)
        result |= {"crop": crops, "crop_seeds": seeds, "random_crops_mean": mean, "random_crops_std": std}
        print(f"linear top1 random crops {100 * mean:.2f} std {100 * std:.2f} ({len(seeds)} seeds; {crops})")
    subject.save(result, "linear.json", out)
    return result
