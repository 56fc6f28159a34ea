"""Linear classification of frozen features.

``ssl-core eval linear RUN --protocol moco`` prints the protocol, then
``linear top1 last 83.10 best 83.20 (protocol moco, 100 epochs, 10000 images)``.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.optim.lars import Lars
from torch import Tensor, nn

from ssl_core import distributed
from ssl_core.data import Batch, DataConfig, ImageSource, decoded, identity, open_encoded
from ssl_core.evaluate.accuracy import balanced_accuracy, balanced_text, check_classes, count_classes, label_ranks
from ssl_core.evaluate.classifier import (
    NOWHERE,
    Classifier,
    Folders,
    check_batch_size,
    make_linear,
    matmuls_in,
    save_classifier,
    train_labelled,
    with_fitting_batch,
)
from ssl_core.evaluate.encoder import Layer
from ssl_core.evaluate.features import Features, gathered, own_share
from ssl_core.evaluate.plan import Plan, choose_protocol, summed_up, trials_text
from ssl_core.evaluate.protocol import (
    PROTOCOLS,
    Protocol,
    TestCrop,
    learning_rate,
    protocol_text,
    random_crops_text,
    view_for_random_crops,
    view_for_testing,
    view_for_training,
)
from ssl_core.evaluate.subject import Precision, Subject, load_subject
from ssl_core.philox import permutation
from ssl_core.progress import progress_bar
from ssl_core.train import TrainConfig
from ssl_core.train.loop import BatchSource
from ssl_core.views import ViewSpec

_SHUFFLE_STREAM = 1


class LinearResult(NamedTuple):
    """Accuracy of a linear probe on the test images, in [0, 1].

    Attributes:
        last: accuracy after the last epoch, the number to compare.
        best: accuracy after the best epoch, which the test images chose; some papers report it.
        best_epoch: number of the best epoch, counted from 1.
        balanced: mean over the classes of their accuracy after the last epoch.
        random_crops: accuracy after the last epoch on random crops of the test images, for each seed of the crops.
        top5_last: fraction of images whose class is among the five first after the last epoch; None below 10 classes.
        top5_best: the same fraction after the epoch ``best_epoch``.
    """

    last: float
    best: float
    best_epoch: int
    balanced: float
    random_crops: tuple[float, ...] = ()
    top5_last: float | None = None
    top5_best: float | None = None


def linear_probe(
    subject: Subject,
    train: ImageSource,
    test: ImageSource,
    protocol: Protocol,
    *,
    folders: Folders = NOWHERE,
    random_view: ViewSpec | None = None,
    crop_seeds: Sequence[int] = (),
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> tuple[list[LinearResult], nn.Linear]:
    """Train linear classifiers on a frozen encoder, and test them after every epoch.

    Args:
        subject: encoder, which works in eval mode and does not change, and the description of its input.
        train: labeled images to train on.
        test: labeled images, all of which are tested.
        protocol: protocol, of which length, rate and crops count.
        folders: seeds of the trials, which decide initial weights, order of the images and their crops, and the folder
            from which each trial is continued.
        random_view: view in which the last classifiers are tested too, once for each of ``crop_seeds``.
        crop_seeds: seeds of that view's crops.
        settings: plain values that tell one probe from others that could be continued.
        progress: whether bars are shown.

    Returns:
        The result of each trial, and the classifier of the first trial after its last epoch.

    Raises:
        ValueError: if a label is missing, there is less than one batch of images, processes cannot share a batch
            equally, a folder holds what other settings have begun, or the classifier diverges.
    """
    num_classes, card, device = count_classes(train), subject.card, subject.device
    check_classes(train, test)
    check_batch_size(protocol.batch_size, len(train))
    view = view_for_testing(protocol, card.image_size)
    own = own_share(len(test))
    tested = subject.extract(test, "test features" if progress else "", view=view, images=own).to(device)
    labels = gathered(tested.labels)

    make_batches: Callable[[int], BatchSource]
    encoder = subject.encoder
    if protocol.crop == "none":
        share = subject.extract(train, "training features" if progress else "", view=view, images=own_share(len(train)))
        stored = Features(gathered(share.features), gathered(share.labels))
        make_batches, encoder = partial(_StoredBatches, stored, protocol.batch_size), nn.Identity()
    else:

        def make_batches(seed: int) -> BatchSource:
            cropped = view_for_training(protocol, card.image_size)
            return subject.batches(train, cropped, batch_size=protocol.batch_size, seed=seed, remainder="drop")

    def ranks(classifier: nn.Linear, features: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            scores = classifier(features.to(device)).cpu()
        if not scores.isfinite().all():
            raise FloatingPointError
        return gathered(label_ranks(scores, labels))

    results, classifiers = [], []
    for seed in folders.seeds:
        linear = make_linear(tested.features.shape[1], num_classes, "normal", seed).to(device)
        bar = progress_bar(protocol.epochs, "epoch", desc="linear", disable=not progress or protocol.crop != "none")

        def score(linear: nn.Linear = linear, bar: Any = bar) -> dict[str, float]:
            found = ranks(linear, tested.features, tested.labels)
            values = {"top1": (found < 1).double().mean().item(), "balanced": balanced_accuracy(found < 1, labels)}
            if num_classes >= 10:
                values["top5"] = (found < 5).double().mean().item()
            bar.update()
            bar.set_postfix_str(f"top1 {100 * values['top1']:.2f}")
            return values

        with bar:
            scores = train_labelled(
                Classifier(encoder, linear, frozen=True),
                make_batches(seed),
                _optimizer(list(linear.parameters()), protocol),
                TrainConfig(
                    epochs=protocol.epochs,
                    batch_size=protocol.batch_size,
                    precision="bfloat16" if subject.precision == "bfloat16" else "float32",
                ),
                work=folders.of(seed),
                learning_rate=lambda step: learning_rate(protocol, step.index / step.steps_per_epoch),
                settings={**(settings or {}), "seed": seed},
                score=score,
                quiet=not progress or protocol.crop == "none",
            )
        accuracy = [each["top1"] for each in scores]
        best = max(accuracy)
        best_epoch = 1 + accuracy.index(best)
        top5 = [scores[at].get("top5") for at in (-1, best_epoch - 1)]
        results.append(LinearResult(accuracy[-1], best, best_epoch, scores[-1]["balanced"], (), *top5))
        classifiers.append(linear)
    if random_view is not None:
        for crop_seed in crop_seeds:
            text = "random crops" if progress else ""
            cut = subject.extract(test, text, view=random_view, seed=crop_seed, images=own)
            for trial, linear in enumerate(classifiers):
                accuracy_of_crops = (ranks(linear, cut.features, cut.labels) < 1).double().mean().item()
                results[trial] = results[trial]._replace(random_crops=(*results[trial].random_crops, accuracy_of_crops))
    return results, classifiers[0]


class _StoredBatches:
    """Batches of features that are extracted once; of each, this process's share."""

    def __init__(self, stored: Features, batch_size: int, seed: int) -> None:
        self._stored, self._batch_size, self._seed = stored, batch_size, seed
        self.batches_per_epoch = len(stored.labels) // batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = permutation(self._seed, (_SHUFFLE_STREAM, epoch), len(self._stored.labels))
        for index in torch.split(order[: self.batches_per_epoch * self._batch_size], self._batch_size)[start:]:
            own = index.chunk(distributed.world_size())[distributed.rank()]
            yield Batch((self._stored.features[own], self._stored.labels[own]), own)

    def identifier(self, index: int) -> str:
        return f"features {index}"

    def state_dict(self) -> dict[str, Any]:
        return {}


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
    trials: int = 1,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    keep: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a linear classifier on frozen features; prints the protocol, then ``linear top1 last 83.10 ...``.

    Several processes share each batch. A probe that was stopped is continued by the same command.

    Args:
        encoder: run directory, ``.safetensors`` file, ``timm:NAME``, ``random`` or ``pixels``.
        protocol: moco, sce_imagenet, sce_small, clsa, dssl_cifar, simsiam, leoclr or cached.
        data: labeled images; None takes those of the run that ``encoder``, or else ``like``, names.
        like: run directory or exported backbone whose input ``random`` and ``pixels`` take.
        features: layer to evaluate: ``backbone``, or ``projection``, the projector after it.
        epochs: number of epochs in place of the protocol's; milestones move along.
        lr: learning rate in place of the protocol's, which the protocol may scale by the batch size.
        batch_size: batch size in place of the protocol's; None takes of fewer images the largest power of two.
        crop: crop of test images: ``center`` as the protocol says; ``random`` and ``random_window`` test the same
            classifier on random crops as well, see :func:`view_for_random_crops`, and print a line of their own.
        crop_seeds: number of seeds of the random crops, from ``seed`` on, at least 3; null is 3.
        trials: number of classifiers, of seeds from ``seed`` on, whose mean and standard deviation are printed.
        precision: number format: ``float32``; ``bfloat16`` in the encoder alone; ``tf32``, on GPUs, instead of float32.
        device: device that computes the features.
        seed: seed of the classifier, the order, the crops, and the weights of ``random``.
        out: folder of ``linear.json`` and ``linear.safetensors``, the classifier; None is the folder of ``encoder``, or
            nowhere if that has none.
        keep: whether the folders ``linear-PROTOCOL-seedN``, of checkpoint and log, are kept when all is done.
        dry_run: whether to print protocol, images and cost, and do no more.
        progress: whether bars are shown.

    Returns:
        The content of ``linear.json``: ``last``, ``best``, ``best_epoch``, ``balanced``, ``random_crops``, and with ten
        classes or more ``top5_last`` and ``top5_best``; of several trials the means of these, ``trials``, ``mean`` and
        ``std``; and every setting.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for an unknown protocol, missing labels, and what does not fit together.
    """
    if crop == "center" and crop_seeds is not None:
        raise ValueError(f"crop_seeds {crop_seeds} are of random crops: give crop random or random_window too")
    if crop_seeds is not None and crop_seeds < 3:
        raise ValueError(f"crop_seeds must be at least 3 for a mean and its spread, got {crop_seeds}")
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    chosen, changed = choose_protocol(PROTOCOLS, protocol, epochs=epochs, lr=lr, batch_size=batch_size)
    subject = load_subject(encoder, data=data, like=like, features=features, device=device, seed=seed, out=out)
    subject = subject._replace(precision=precision)
    labelled, unseen = (open_encoded(subject.data, split) for split in ("labelled", "test"))
    check_classes(labelled, unseen)
    if batch_size is None:
        chosen, changed = with_fitting_batch(chosen, changed, len(labelled))
    check_batch_size(chosen.batch_size, len(labelled))
    passes = 1 if chosen.crop == "none" else trials * chosen.epochs
    plan = Plan(
        protocol,
        chosen,
        changed,
        protocol_text(protocol, chosen, subject.card.image_size),
        {labelled.name: {"train": len(labelled), "test": len(unseen)}},
        "last",
        f"{passes * len(labelled) + len(unseen):,} images through the frozen encoder",
        precision,
    )
    if distributed.is_main():
        print(plan, flush=True)
    if dry_run:
        return plan.settings()
    subject.check_folder(out)
    folders = Folders(subject.folder(out), f"linear-{protocol}", range(seed, seed + trials))
    settings = {**plan.settings(), "features": features, "precision": precision, "digest": subject.digest()}
    kept = {**settings, "train": identity(labelled, labelled.labels), "test": identity(unseen, unseen.labels)}
    folders.check(kept)
    train, test = (
        decoded(images, subject.data, split=split) for split, images in (("labelled", labelled), ("test", unseen))
    )
    random_view = None if crop == "center" else view_for_random_crops(chosen, crop, subject.card.image_size)
    cut_seeds = [seed + draw for draw in range(crop_seeds or 3)]
    with matmuls_in(precision, device):
        results, classifier = linear_probe(
            subject,
            train,
            test,
            chosen,
            folders=folders,
            random_view=random_view,
            crop_seeds=cut_seeds,
            settings=kept,
            progress=progress,
        )
    outcomes = [{name: value for name, value in outcome._asdict().items() if value is not None} for outcome in results]
    crops = [accuracy for result in results for accuracy in result.random_crops]
    result: dict[str, Any] = {**summed_up(outcomes), "random_crops": crops, **settings, "seed": seed}
    result |= {"view": plan.text.splitlines()[-1].strip(), "classes": list(train.classes or ())}
    result |= subject.settings(is_shared=True, train=train, test=test)
    last, best = ([getattr(result, name) for result in results] for name in ("last", "best"))
    more = f"{trials} trials, " * (trials > 1)
    top5 = f", top5 {100 * result['top5_last']:.2f}" if "top5_last" in result else ""
    lines = [
        f"linear top1 last {trials_text(last)} best {trials_text(best)} ({more}protocol {protocol}, {chosen.epochs} "
        f"epochs, {result['num_test']} images{top5}{balanced_text(result['last'], result['balanced'])})"
    ]
    if random_view is not None:
        mean, std = statistics.mean(crops), statistics.stdev(crops)
        text = random_crops_text(random_view)
        result |= {"crop": text, "crop_seeds": cut_seeds, "random_crops_mean": mean, "random_crops_std": std}
        lines.append(f"linear top1 random crops {100 * mean:.2f} std {100 * std:.2f} ({len(cut_seeds)} seeds; {text})")
    if distributed.is_main():
        print("\n".join(lines))
        subject.save(result, "linear.json", out)
        if (folder := subject.folder(out)) is not None:
            save_classifier(folder / "linear.safetensors", classifier)
        if not keep:
            folders.remove()
    return result
