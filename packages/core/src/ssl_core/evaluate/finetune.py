"""Fine-tuning: an encoder and a linear classifier learn together, from all labels or few; supervised training too.

``ssl-core eval finetune RUN --protocol clim_semi --fraction 0.01`` prints the protocol, then
``finetune top1 last 59.30 best 59.41, top5 81.60 (protocol clim_semi, 12811 labels, 50000 images)``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_core import distributed
from ssl_core.backbone import save_backbone
from ssl_core.data import (
    DataConfig,
    ImageSource,
    decoded,
    identity,
    multi_labels,
    official_validation,
    open_encoded,
)
from ssl_core.data.source import readable
from ssl_core.data.subset import balanced_subset, listed_subset, selection_split, subset_digest
from ssl_core.data.transfer_sets import Metric
from ssl_core.data.voc import VOC_CLASSES, VOC_NAME
from ssl_core.evaluate.accuracy import balanced_accuracy, count_classes, label_ranks
from ssl_core.evaluate.classifier import (
    Classifier,
    Folders,
    check_batch_size,
    make_linear,
    matmuls_in,
    save_classifier,
    train_labelled,
    with_fitting_batch,
)
from ssl_core.evaluate.features import gathered, own_share
from ssl_core.evaluate.finetune_protocol import (
    FINETUNE_PROTOCOLS,
    FinetuneProtocol,
    Setting,
    finetune_rate,
    finetune_text,
    finetune_views,
)
from ssl_core.evaluate.grid import Point, at_end, choose_setting, setting_text
from ssl_core.evaluate.metric import fitting_metric, metric_score
from ssl_core.evaluate.plan import Plan, choose_protocol, summed_up, trials_text
from ssl_core.evaluate.subject import Precision, Subject, load_subject
from ssl_core.folder import check_writable
from ssl_core.nn import strides_over_a_pixel, sync_batch_norm
from ssl_core.step import Step
from ssl_core.train import TrainConfig

_IMAGENET = 1_281_167


class Tuned(NamedTuple):
    """The result of a fine-tuning.

    Attributes:
        scores: numbers of each measurement: ``epoch``, and of the test images, in [0, 1], ``top1``,
            ``mean_per_class``, with ten classes or more ``top5``, and the metric that was asked for.
        encoder: encoder after the last epoch.
        linear: classifier after the last epoch.
    """

    scores: list[dict[str, float]]
    encoder: nn.Module
    linear: nn.Linear


class _Scorer(nn.Module):
    """A classifier as what extracts features: they are the scores."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.scores(images)


def fine_tune(
    subject: Subject,
    train: ImageSource,
    test: ImageSource,
    protocol: FinetuneProtocol,
    setting: Setting,
    *,
    seed: int = 0,
    work: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    metric: Metric = "top1",
    targets: tuple[Tensor, Tensor] | None = None,
    every: int | None = 1,
    progress: bool = False,
) -> Tuned:
    """Fine-tune a subject's encoder, which changes, with a new linear layer.

    Args:
        subject: encoder, and the description of its input.
        train: labeled images to train on.
        test: labeled images to measure it by.
        protocol: protocol, of which batch, schedule and crops count.
        setting: length, learning rate and weight decay.
        seed: seed of the linear layer, the order of the images, their crops, and dropout.
        work: folder of checkpoint and log, from which it is continued; None keeps nothing.
        settings: plain values that tell it from other fine-tunings that could be continued.
        metric: metric to measure beside top-1, top-5 and the mean over the classes of their top-1.
        targets: (n k) targets of the training and of the test images, which may be of several classes: 1 in the columns
            of these and else 0. None takes the sources' labels.
        every: number of epochs from one measurement to the next; None measures after the last epoch alone.
        progress: whether bars are shown.

    Raises:
        ValueError: if there is less than one batch of images, processes cannot share a batch equally, or ``work`` holds
            what other settings have begun.
        DivergedError: if the loss is no longer finite.
    """
    card, device = subject.card, torch.device(subject.device)
    check_batch_size(protocol.batch_size, len(train))
    encoder = subject.encoder
    if distributed.world_size() > 1:
        encoder = sync_batch_norm(encoder, device)
    num_classes = count_classes(train) if targets is None else targets[0].shape[1]
    linear = make_linear(card.num_features, num_classes, protocol.head, seed).to(device)
    train_view, test_view = finetune_views(protocol, card.image_size)
    own_labels = None if targets is None else targets[0]
    batches = subject.batches(train, train_view, batch_size=protocol.batch_size, seed=seed, labels=own_labels)
    if protocol.short_batch_norm:
        for module in encoder.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = min(10 / batches.batches_per_epoch, 0.1)
    classifier = Classifier(encoder, linear, (train_view,))
    scorer = subject._replace(encoder=_Scorer(classifier))

    def score() -> dict[str, float]:
        share = own_share(len(test))
        scores, labels = scorer.extract(test, view=test_view, images=share)
        values = {}
        if metric == "map11":
            whole = set(readable(test))
            rows = [index for index in share if index in whole]
            own = F.one_hot(labels, num_classes) if targets is None else targets[1][rows]
            values["map11"] = metric_score(metric, gathered(scores).double(), gathered(own).long())
        if targets is None:
            ranks, labels = gathered(label_ranks(scores, labels)), gathered(labels)
            is_right = ranks < 1
            values |= {"top1": is_right.double().mean().item(), "mean_per_class": balanced_accuracy(is_right, labels)}
            if num_classes >= 10:
                values["top5"] = (ranks < 5).double().mean().item()
        return values

    lr = finetune_rate(protocol, setting, Step(0, 1, 1))
    decay = setting.weight_decay / (setting.lr if protocol.decay_over_lr else 1.0)
    groups: list[dict[str, Any]] = [
        {"params": list(encoder.parameters())},
        {"params": list(linear.parameters()), "lr_scale": (protocol.lr_head or setting.lr) / setting.lr},
    ]
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, nesterov=protocol.nesterov, weight_decay=decay)
    config = TrainConfig(
        epochs=setting.epochs or 1,
        steps=protocol.steps,
        batch_size=protocol.batch_size,
        precision="bfloat16" if subject.precision == "bfloat16" else "float32",
        channels_last=device.type == "cuda",
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        scores = train_labelled(
            classifier,
            batches,
            optimizer,
            config,
            work=work,
            learning_rate=lambda step: finetune_rate(protocol, setting, step),
            settings={**(settings or {}), "seed": seed, "setting": setting._asdict()},
            score=score,
            every=every,
            quiet=not progress,
        )
    return Tuned(scores, encoder, linear)


def evaluate_finetune(
    encoder: str,
    *,
    protocol: str,
    data: DataConfig | None = None,
    like: str | None = None,
    subset: str | None = None,
    fraction: float | None = None,
    subset_seed: int = 0,
    epochs: int | None = None,
    steps: int | None = None,
    lr: float | list[float] | None = None,
    lr_head: float | None = None,
    weight_decay: float | list[float] | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    metric: Metric | None = None,
    trials: int = 1,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    keep: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train encoder and classifier together, from all labels or few; prints ``finetune top1 last 59.30 ...``.

    Several processes share each batch. What was stopped is continued by the same command.

    Args:
        encoder: run directory, ``.safetensors`` file or ``timm:NAME``; or ``random``, for supervised training.
        protocol: simclr_semi_1, simclr_semi_10, byol_semi, swav_semi_1, swav_semi_10, clim_semi, leoclr_semi_1,
            leoclr_semi_10, leoclr_fraction, simclr_transfer, ssl_transfer_finetune, kornblith_random,
            supervised_imagenet, supervised_cifar, supervised_semi_1 or supervised_semi_10.
        data: labeled images; None takes those of the run that ``encoder``, or else ``like``, names.
        like: run directory or exported backbone whose architecture and input ``random`` takes.
        subset: text file that names an image to train on in each line, such as SimCLR's 1percent.txt.
        fraction: fraction of the images of each class that are trained on, in (0, 1].
        subset_seed: seed of the choice of these images, and of the images by which a point of a grid is chosen.
        epochs: number of epochs in place of the protocol's; milestones move along.
        steps: number of steps in place of the protocol's.
        lr: learning rate of the encoder in place of the protocol's, which the protocol may scale by the batch size;
            several are a grid.
        lr_head: learning rate of the linear layer in place of the protocol's.
        weight_decay: weight decay in place of the protocol's; several are a grid.
        batch_size: batch size in place of the protocol's; None takes of fewer images the largest power of two.
        image_size: side of the encoder's input in pixels; None is the side that it was trained with.
        metric: metric to compare and report: top1; mean_per_class, the mean over the classes of their top-1; or map11,
            the mean of their 11-point average precisions. None is the usual metric of a named set, or else top1.
        trials: number of fine-tunings, of seeds from ``seed`` on, whose mean and standard deviation are printed.
        precision: number format: ``float32``; ``bfloat16`` in the encoder; ``tf32``, on GPUs, instead of float32.
        device: device to train on.
        seed: seed of the linear layer, the order of the images, their crops, and the weights of ``random``.
        out: folder of ``finetune-PROTOCOL.json`` and of ``finetune-PROTOCOL-seedN``, with encoder, classifier and log
            of each trial; None is the folder of ``encoder``, or else ``runs/ENCODER``, for random ``runs/random-LIKE``.
        keep: whether the checkpoints of the trials are kept when all is done.
        dry_run: whether to print protocol, images and cost, and do no more.
        progress: whether bars are shown.

    Returns:
        The content of the JSON file: ``last``, ``best``, ``best_epoch``, and with ten classes or more ``top5_last`` and
        ``top5_best``; of several trials the means of these, ``trials``, ``mean`` and ``std``; of a grid ``last`` alone,
        ``grid`` and ``chosen``; and every setting.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for an unknown protocol, missing labels, and what does not fit together.
    """
    if subset is not None and fraction is not None:
        raise ValueError(f"subset {subset} and fraction {fraction} both say which images are trained on; give one")
    if encoder == "pixels":
        raise ValueError("pixels have nothing to fine-tune; give a run, a .safetensors file, timm:NAME or random")
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    chosen, changed = choose_protocol(
        FINETUNE_PROTOCOLS,
        protocol,
        epochs=None if epochs is None else (epochs,),
        steps=steps,
        lr=_values(lr),
        lr_head=lr_head,
        weight_decay=_values(weight_decay),
        batch_size=batch_size,
    )
    if chosen.labels is not None and subset is None and fraction is None:
        raise ValueError(
            f"protocol {protocol} is for {chosen.labels:.0%} of the labels: give subset, a list such as SimCLR's "
            f"{100 * chosen.labels:g}percent.txt, or fraction {chosen.labels:g}, or fraction 1 for all of them"
        )

    def load(seed: int) -> Subject:
        loaded = load_subject(encoder, data=data, like=like, device=device, seed=seed)
        return loaded.fitted(image_size)._replace(precision=precision)

    subject = load(seed)
    _check_encoder(subject)
    labelled, unseen = (open_encoded(subject.data, split) for split in ("labelled", "test"))
    metric = fitting_metric(metric, subject.data, labelled, unseen)
    has_several = subject.data.source == VOC_NAME
    used = torch.arange(len(labelled))
    if subset is not None:
        used = listed_subset(labelled, subset)
    elif fraction is not None:
        used = balanced_subset(labelled, fraction, subset_seed)
    # Rounded, for a tenth of each class may be less than one of all, as SimCLR's list of ImageNet is by seven images.
    if epochs is None and chosen.epochs_of_many is not None and round(100 * len(used) / len(labelled)) >= 10:
        chosen = replace(chosen, epochs=(chosen.epochs_of_many,))
    grid, train_on, held = chosen.grid, used, None
    if len(grid) > 1:
        official = official_validation(subject.data, labelled)
        train_on, held = selection_split(labelled, used, chosen.validation, subset_seed, official)
    if batch_size is None:
        chosen, changed = with_fitting_batch(chosen, changed, len(train_on))
    check_batch_size(chosen.batch_size, len(train_on))
    # Not more often than testing takes four times as long as training: forward is a third of forward and backward.
    often = 1 if chosen.selection == "best on test" else math.ceil(len(unseen) / (12 * len(used)))
    every = often if held is None else None

    counts = {"train": len(train_on), **({} if held is None else {"validation": len(held)}), "test": len(unseen)}
    plan = Plan(
        protocol,
        chosen,
        changed,
        finetune_text(protocol, chosen, subject.card.image_size),
        {labelled.name: counts},
        chosen.selection if held is None else "validation",
        f"{_cost(chosen, len(train_on), len(used), trials)}, tested {_when(every)}",
        precision,
    )
    if distributed.is_main():
        print(plan, flush=True)
    settings = {
        **plan.settings(),
        "metric": metric,
        "precision": precision,
        "image_size": subject.card.image_size,
        "digest": subject.digest(),
        "subset": {
            "file": subset,
            "fraction": fraction,
            "seed": subset_seed,
            "labels": len(used),
            "digest": subset_digest(labelled.subset(used)),
        },
    }
    if dry_run:
        return settings
    kept = dict(settings)
    for split, images in (("train", labelled), ("test", unseen)):
        kept[split] = identity(images, multi_labels(subject.data, images) if has_several else images.labels)
    name = f"finetune-{protocol}"
    if subset is not None:
        name += f"-{Path(subset).stem}"
    elif fraction is not None:
        name += f"-{100 * fraction:g}percent"
    folder = subject.folder(out) or Path("runs") / folder_name(encoder, like)
    check_writable(folder)
    folders = Folders(folder, name, range(seed, seed + trials))
    folders.check(kept)
    test = decoded(unseen, subject.data, split="test")

    def targets_of(train: ImageSource, test: ImageSource) -> tuple[Tensor, Tensor] | None:
        if not has_several:
            return None
        first, second = ((multi_labels(subject.data, source) == 1).float() for source in (train, test))
        return first, second

    tune = partial(fine_tune, protocol=chosen, settings=kept, metric=metric, progress=progress)
    setting, points = grid[0], list[Point]()
    with matmuls_in(precision, device):
        if held is not None:
            fitted, validation = (decoded(labelled.subset(indices), subject.data) for indices in (train_on, held))
            chosen_by = targets_of(fitted, validation)

            def measure(setting: Setting, work: Path | None) -> float:
                tuned = tune(
                    load(seed),
                    fitted,
                    validation,
                    setting=setting,
                    seed=seed,
                    work=work,
                    targets=chosen_by,
                    every=None,
                )
                return tuned.scores[-1][metric]

            setting, points = choose_setting(grid, measure, folder=folder, name=f"{name}-grid", settings=kept)
            del fitted, validation
        train = decoded(labelled.subset(used), subject.data)
        targets, outcomes = targets_of(train, test), []
        for each in folders.seeds:
            tuned = tune(
                load(each),
                train,
                test,
                setting=setting,
                seed=each,
                work=folders.of(each),
                targets=targets,
                every=every,
            )
            outcomes.append(_outcome(tuned.scores, metric))
            if distributed.is_main():
                work = folders.of(each)
                assert work is not None
                recipe = protocol if encoder == "random" else f"{subject.card.recipe}, {protocol}"
                method = f"{subject.card.method}, fine-tuned" if subject.card.method else ""
                last: dict[str, float] = {metric: outcomes[-1]["last"]}
                card = replace(subject.card, recipe=recipe, method=method, projector=(), metrics=last)
                save_backbone(work / "backbone.safetensors", tuned.encoder, card)
                save_classifier(work / "linear.safetensors", tuned.linear)
    result = {
        **summed_up(outcomes),
        **settings,
        "seed": seed,
        "classes": list(VOC_CLASSES if has_several else train.classes or ()),
    }
    if has_several:
        result["difficult"] = "negative"
    if points:
        result["grid"] = [{**tried._asdict(), "score": score, "diverged": bad} for tried, score, bad in points]
        result["chosen"] = setting._asdict()
        result["at_end"] = at_end(setting, grid)
        result["validation"] = max(point.score for point in points)
    result |= subject.settings(is_shared=True, train=train, test=test)
    if distributed.is_main():
        print(_line(result, outcomes, points))
        print(f"encoder, classifier and log: {folders.of(seed)}")
        subject.save(result, f"{name}.json", str(folder))
        if not keep:
            folders.remove("checkpoints")
        if points:
            (folder / f"{name}-grid.json").unlink()
    return result


def folder_name(encoder: str, like: str | None) -> str:
    """Name of the folder of what has none of its own; what is random is another beside each run.

    Example:
        >>> folder_name("timm:resnet50", None), folder_name("random", "runs/x/backbone.safetensors")
        ('timm-resnet50', 'random-x')
    """
    if like is None:
        return encoder.replace(":", "-").replace("/", "-")
    path = Path(like).resolve()
    return f"{encoder}-{(path if path.is_dir() else path.parent).name}"


def _values(given: float | list[float] | None) -> tuple[float, ...] | None:
    return None if given is None else tuple(given) if isinstance(given, list) else (given,)


def _check_encoder(subject: Subject) -> None:
    """Refuse what cannot be trained on this device."""
    card, kind = subject.card, torch.device(subject.device).type
    if distributed.world_size() > 1:
        sync_batch_norm(subject.encoder, torch.device(kind))  # as each trial will
    if subject.precision != "bfloat16" or kind != "cpu":
        return
    if strides_over_a_pixel(subject.encoder, card.channels, [card.image_size]):
        raise ValueError(
            f"precision bfloat16: at {card.image_size} px a convolution of {card.architecture} strides over a single "
            f"pixel, of which PyTorch {torch.__version__} computes a wrong gradient on CPUs; take float32"
        )


def _cost(protocol: FinetuneProtocol, num_tried: int, num_used: int, trials: int) -> str:
    """The cost of the training, in words.

    Example:
        >>> _cost(FINETUNE_PROTOCOLS["simclr_transfer"], 1020, 2040, 1)
        '291,840,000 images forward and backward in 57 runs, 228 epochs of ImageNet'
    """
    grid = protocol.grid

    def images(setting: Setting, number: int) -> int:
        return setting.epochs * number if setting.epochs else (protocol.steps or 0) * protocol.batch_size

    tried = sum(images(setting, num_tried) for setting in grid) if len(grid) > 1 else 0
    total = tried + trials * max(images(setting, num_used) for setting in grid)
    runs = (len(grid) if tried else 0) + trials
    large = f", {total / _IMAGENET:.0f} epochs of ImageNet" if total >= _IMAGENET else ""
    return f"{total:,} images forward and backward in {runs} run{'s' * (runs > 1)}{large}"


def _when(every: int | None) -> str:
    return "after the last epoch" if every is None else "after each epoch" if every == 1 else f"every {every} epochs"


def _outcome(scores: Sequence[Mapping[str, float]], metric: str) -> dict[str, float]:
    """The numbers of a trial after the last epoch and, where it was measured before that, after the best one."""
    found = [each[metric] for each in scores]
    outcome = {"last": found[-1]}
    if "top5" in scores[-1]:
        outcome["top5_last"] = scores[-1]["top5"]
    if len(scores) > 1:
        best = found.index(max(found))
        outcome |= {"best": found[best], "best_epoch": int(scores[best]["epoch"])}
        if "top5" in scores[best]:
            outcome["top5_best"] = scores[best]["top5"]
    return outcome


def _line(result: Mapping[str, Any], outcomes: Sequence[Mapping[str, float]], points: Sequence[Point]) -> str:
    def text(name: str) -> str:
        return trials_text([outcome[name] for outcome in outcomes])

    order = ("best", "last") if result["selection"] == "best on test" else ("last", "best")
    said = " ".join(f"{name} {text(name)}" for name in order if name in outcomes[0])
    if "top5_last" in outcomes[0]:
        said += f", top5 {text(f'top5_{order[0]}')}"
    trials = f"{len(outcomes)} trials, " * (len(outcomes) > 1)
    counts = f"{result['subset']['labels']} labels, {result['num_test']} images"
    details = f"{trials}protocol {result['protocol']['name']}, {counts}"
    if points:
        diverged = sum(point.diverged for point in points)
        details += f"; {setting_text(Setting(**result['chosen']))} by validation {100 * result['validation']:.2f}"
        details += f", {diverged} of {len(points)} diverged" * (diverged > 0)
        details += f", {' and '.join(result['at_end'])} at an end of the grid" * bool(result["at_end"])
    return f"finetune {result['metric']} {said} ({details})"
