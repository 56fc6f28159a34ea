"""Linear classification of frozen features.

``ssl-core eval linear RUN --protocol moco`` prints the protocol, then
``linear top1 last 83.10 best 83.20 (protocol moco, 100 epochs, 10000 images)``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from timm.optim.lars import Lars
from torch import Tensor, nn
from tqdm import trange

from ssl_core.data import Batches, ImageSource
from ssl_core.evaluate.accuracy import check_labels, label_ranks
from ssl_core.evaluate.features import Features, evaluating, extract_features
from ssl_core.evaluate.protocol import Protocol, learning_rate, view_for_testing, view_for_training
from ssl_core.philox import permutation
from ssl_core.views import ViewSpec

_SHUFFLE_STREAM = 1

# Features and labels of the batches of an epoch.
_Batches: TypeAlias = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


class LinearResult(NamedTuple):
    """Accuracy of a linear probe on the test images, in [0, 1].

    Attributes:
        last: after the last epoch: the number to compare.
        best: after the best epoch, which the test images chose: some papers report it.
        best_epoch: which that was, counted from 1.
        random_crops: after the last epoch, on random crops of the test images, for each seed of the crops.
    """

    last: float
    best: float
    best_epoch: int
    random_crops: tuple[float, ...] = ()


def linear_probe(
    encoder: nn.Module,
    train: ImageSource,
    test: ImageSource,
    protocol: Protocol,
    *,
    num_classes: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 0,
    random_view: ViewSpec | None = None,
    crop_seeds: Sequence[int] = (),
    progress: bool = False,
) -> LinearResult:
    """Train a linear classifier on a frozen encoder, and test it after every epoch.

    Args:
        encoder: (n c s s) -> (n f), on ``device``; works in eval mode and does not change.
        train: labelled images.
        test: labelled images, all of which are tested.
        protocol: how.
        num_classes: outputs of the classifier.
        image_size: side of the encoder's input, pixels.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        seed: of the initial weights, the order of the images and their crops.
        device: where the encoder is.
        workers: processes that read images, and render them if the CPU does that.
        random_view: in which the last classifier is tested too, once for each of ``crop_seeds``.
        crop_seeds: of that view's draws.
        progress: show bars.

    Raises:
        ValueError: if a label is missing, there is less than one batch of images, or the classifier diverges.
    """
    check_labels(_labels(train, range(len(train))), num_classes, "training")
    if len(train) < protocol.batch_size:
        raise ValueError(
            f"{len(train)} training images are less than one batch of {protocol.batch_size}; give a smaller batch_size"
        )
    view = view_for_testing(protocol, image_size)
    extract = partial(extract_features, encoder, mean=mean, std=std, device=device, workers=workers)
    tested = extract(test, view, progress="test features" if progress else "")
    check_labels(tested.labels, num_classes, "test")

    batches: _Batches
    if protocol.crop == "none":
        stored = extract(train, view, progress="training features" if progress else "")
        batches = partial(_stored_batches, stored, protocol.batch_size, seed)
    else:
        views = (view_for_training(protocol, image_size),)
        source = Batches(
            train,
            views,
            batch_size=protocol.batch_size,
            seed=seed,
            mean=mean,
            std=std,
            workers=workers,
            device=device,
        )
        batches = partial(_encoded_batches, encoder, source, train, device)
    accuracy, classifier = _train_classifier(batches, tested, protocol, num_classes, seed, device, progress)
    random_crops = []
    if random_view is not None:
        for crop_seed in crop_seeds:
            cut = extract(test, random_view, seed=crop_seed, progress="random crops" if progress else "")
            random_crops.append(_accuracy(classifier(cut.features), cut.labels))
    best = max(accuracy)
    return LinearResult(accuracy[-1], best, accuracy.index(best) + 1, tuple(random_crops))


def _stored_batches(stored: Features, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = permutation(seed, (_SHUFFLE_STREAM, epoch), len(stored.labels))
    for index in torch.split(order[: len(order) // batch_size * batch_size], batch_size):
        yield stored.features[index], stored.labels[index]


def _encoded_batches(
    encoder: nn.Module, batches: Batches, source: ImageSource, device: torch.device | str, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches.epoch(epoch):
        with evaluating(encoder):
            features = encoder(batch.views[0].to(device)).float()
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
    epochs = trange(protocol.epochs, desc="linear", unit="epoch", disable=not progress)
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
