"""Detection and segmentation: a detector on an encoder learns from boxes, and is measured as its set has it.

``ssl-core eval detection RUN --protocol voc0712_c4_24k --data.root DATA`` prints the protocol, then
``detection AP 57.50 AP50 82.80 AP75 64.50 (protocol voc0712_c4_24k, 4,952 images)``.
"""

import hashlib
import itertools
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_core import distributed
from ssl_core.address import is_address
from ssl_core.data import DataConfig
from ssl_core.detect.annotations import Annotations
from ssl_core.detect.data import DetectionBatches, check_readable, resized
from ssl_core.detect.metrics import Detections, coco_scores, lvis_scores, voc_scores
from ssl_core.detect.model import Detector, precise_batch_norm_, stage_channels
from ssl_core.detect.predict import detect, draw_detections, results
from ssl_core.detect.protocol import (
    DETECTION_PROTOCOLS,
    DetectionProtocol,
    detection_optimizer,
    detection_rate,
    detection_text,
)
from ssl_core.detect.sets import open_folder, open_set
from ssl_core.duration import duration
from ssl_core.evaluate.classifier import Folders, matmuls_in, train_labelled
from ssl_core.evaluate.finetune import folder_name
from ssl_core.evaluate.plan import Plan, choose_protocol, trials_text
from ssl_core.evaluate.subject import Precision, Subject, load_subject
from ssl_core.files import write_json
from ssl_core.folder import check_writable
from ssl_core.nn import sync_batch_norm
from ssl_core.step import Step
from ssl_core.train import TrainConfig

_LONG_FOR_SHORT = 1333 / 800


class Trained(NamedTuple):
    """A detector after its training.

    Attributes:
        scores: numbers of the test images in [0, 1], those of masks after ``mask_``; None where no object is of a kind.
        classes: of VOC, the average precision of each class at an overlap of 0.5; None for other sets.
        detections: objects found in the test images.
    """

    scores: dict[str, float | None]
    classes: dict[str, float | None] | None
    detections: Detections


def train_detector(
    subject: Subject,
    train: Annotations,
    test: Annotations,
    protocol: DetectionProtocol,
    *,
    seed: int = 0,
    work: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Trained:
    """Train a detector on a subject's encoder, which changes, and measure it.

    Args:
        subject: encoder, and the description of its input.
        train: images to train on, as :meth:`Annotations.training` leaves them.
        test: images to measure it by.
        protocol: settings of both.
        seed: seed of the new layers, of the order of the images, their sizes and flips, and of the proposals.
        work: folder of checkpoint and log, from which it is continued; None keeps nothing.
        settings: plain values that tell it from other trainings that could be continued.
        progress: whether bars are shown.

    Raises:
        ValueError: if the encoder is none that a detector is built on, processes cannot share a batch equally, or
            ``work`` holds what other settings have begun.
        DivergedError: if the loss is no longer finite.
    """
    card, device, masks = subject.card, torch.device(subject.device), protocol.detector.masks
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        detector = Detector(subject.encoder, protocol.detector, len(train.classes)).to(device)
        if distributed.world_size() > 1:
            detector = sync_batch_norm(detector, device)
        batches = DetectionBatches(
            train,
            batch_size=protocol.batch_size,
            seed=seed,
            mean=card.mean,
            std=card.std,
            short_sides=protocol.short_sides,
            max_size=protocol.long_side,
            masks=masks,
            repeat_threshold=protocol.repeat_threshold,
            workers=subject.data.workers,
            pin_memory=device.type == "cuda",
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            broken_limit=subject.data.broken_limit,
        )
        config = TrainConfig(
            epochs=1,
            steps=protocol.iterations,
            batch_size=protocol.batch_size,
            precision="bfloat16" if subject.precision == "bfloat16" else "float32",
            channels_last=device.type == "cuda",
        )
        train_labelled(
            detector,
            batches,
            detection_optimizer(detector, protocol),
            config,
            work=work,
            learning_rate=partial(detection_rate, protocol),
            settings={**(settings or {}), "seed": seed},
            score=dict,
            every=None,
            quiet=not progress,
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            views = _views_after(batches, protocol.iterations, device)
            precise_batch_norm_(detector, itertools.islice(views, protocol.precise_batches))
            detections = detect(
                detector,
                test,
                sides=protocol.test_sides,
                mean=card.mean,
                std=card.std,
                device=device,
                workers=subject.data.workers,
                progress=progress,
            )
    return Trained(*_scores(detections, test, protocol), detections)


def _views_after(batches: DetectionBatches, steps: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """The batches that would be trained on next."""
    first, start = divmod(steps, batches.batches_per_epoch)
    for epoch in itertools.count(first):
        for batch in batches.epoch(epoch, start):
            yield tuple(view.to(device) for view in batch.views)
        start = 0


def _scores(
    detections: Detections, test: Annotations, protocol: DetectionProtocol
) -> tuple[dict[str, float | None], dict[str, float | None] | None]:
    if protocol.images == "voc0712":
        voc = voc_scores(detections, test)
        return dict(voc.scores), voc.classes
    measure = coco_scores if test.federation is None else lvis_scores
    scores = dict(measure(detections, test))
    if protocol.detector.masks:
        scores |= {f"mask_{name}": value for name, value in measure(detections, test, masks=True).items()}
    return scores, None


def evaluate_detection(
    encoder: str,
    *,
    protocol: str,
    data: DataConfig | None = None,
    like: str | None = None,
    iterations: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    trials: int = 1,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    keep: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a detector on an encoder, and find objects with it; prints ``detection AP 57.50 AP50 82.80 ...``.

    Several processes share each batch. What was stopped is continued by the same command. The parts are torchvision's,
    not detectron2's; the protocol's last line says what that changes.

    Args:
        encoder: run directory, ``.safetensors`` file, ``timm:NAME`` or ``random``: a ResNet with its own stem.
        protocol: voc0712_c4_24k, coco_c4_1x, coco_c4_2x, coco_c4_triplet, coco_fpn_1x, coco_fpn_2x, lvis_fpn_90k or
            lvis_fpn_180k.
        data: settings of the images: ``root`` is the folder of the protocol's set; or ``source`` is a folder of one's
            own in VOC's or COCO's layout.
        like: run directory or exported backbone whose architecture ``random`` takes.
        iterations: number of optimizer steps in place of the protocol's; milestones move along.
        lr: learning rate in place of the protocol's, which is for its batch size.
        batch_size: number of images of a step in place of the protocol's.
        image_size: length of the short side of every image in pixels, in place of the protocol's lengths; the long side
            is at most 1.67 times as long.
        trials: number of trainings, of seeds from ``seed`` on, whose mean and standard deviation are printed.
        precision: number format: ``float32``; ``bfloat16`` in convolutions; ``tf32``, on GPUs, instead of float32.
        device: device to train on.
        seed: seed of new layers, order, sizes, flips and proposals, and of the weights of ``random``.
        out: folder of ``detection-PROTOCOL.json`` and of ``detection-PROTOCOL-seedN``, with log, ``detections.json``
            and a picture, ``detections.png``, of each trial; None is the folder of ``encoder``, or else
            ``runs/ENCODER``, for random ``runs/random-LIKE``.
        keep: whether the checkpoints of the trials are kept when all is done.
        dry_run: whether to print protocol, images and cost, a step of which is measured, and do no more.
        progress: whether bars are shown.

    Returns:
        The content of the JSON file: each score, of several trials their means, ``std`` and ``trials``; for VOC
        ``classes``, AP50 by class; and every setting.

    Raises:
        FileNotFoundError: for a path that does not exist.
        BrokenImageError: for a test image that cannot be read, or of another size than annotated, before the training.
        ValueError: for an unknown protocol, an encoder that is no ResNet with its own stem, and what does not fit
            together.
        ImportError: for masks, COCO or LVIS, if faster-coco-eval is not installed.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    sides = image_size and (image_size, round(image_size * _LONG_FOR_SHORT))
    chosen, changed = choose_protocol(
        DETECTION_PROTOCOLS,
        protocol,
        iterations=iterations,
        lr=lr,
        batch_size=batch_size,
        short_sides=sides and sides[:1],
        long_side=sides and sides[1],
        test_sides=sides,
    )
    own = data is not None and data.source != DataConfig.source
    if data is None or not (own or data.root):
        raise ValueError(
            f"protocol {protocol} needs data.root, the folder that holds its set, or data.source, a folder of your own "
            "in VOC's or COCO's layout"
        )
    for name, value in (("data.root", data.root or ""), ("data.source", str(data.source))):
        if is_address(value):
            raise ValueError(f"{name} {value} is an address, and detection reads a folder of this machine: copy it")
    if encoder == "pixels":
        raise ValueError("pixels have nothing to train; give a run, a .safetensors file, timm:NAME or random")
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")

    def load(seed: int) -> Subject:
        return load_subject(encoder, data=data, like=like, device=device, seed=seed)._replace(precision=precision)

    subject = load(seed)
    stage_channels(subject.encoder)
    distributed.equal_share("batch_size", chosen.batch_size)
    masks, folder = chosen.detector.masks, Path(data.root or "")
    options: dict[str, Any] = {"masks": masks, "broken_limit": data.broken_limit}
    if own:
        train, test = open_folder(folder / str(data.source), **options)
    else:
        train, test = open_set(chosen.images, folder, **options)
    train = train.training()
    _check_objects(train, test)
    text = detection_text(protocol, chosen, f"{train.name}, tested on {test.name}" if own else None)
    text += f"\n  {len(train.labels):,} objects of {len(train.classes)} classes to train on"
    counts = {train.name: {"train": len(train)}, test.name: {"test": len(test)}}
    if train.name == test.name:
        counts = {train.name: {"train": len(train), "test": len(test)}}
    cost = _cost(chosen, len(train), len(test), trials)
    plan = Plan(protocol, chosen, changed, text, counts, "last", cost, precision)
    if distributed.is_main():
        print(plan, flush=True)
    settings = {**plan.settings(), "precision": precision, "digest": subject.digest()}
    if dry_run:
        with matmuls_in(precision, device):
            if distributed.is_main():
                print(_measured(subject, chosen, train, test, trials))
        return settings
    kept = {**settings, "train": _digest(train), "test": _digest(test)}
    out_folder = subject.folder(out) or Path("runs") / folder_name(encoder, like)
    check_writable(out_folder)
    name = f"detection-{protocol}"
    folders = Folders(out_folder, name, range(seed, seed + trials))
    folders.check(kept)
    check_readable(test, rank=distributed.rank(), world_size=distributed.world_size())
    outcomes = []
    with matmuls_in(precision, device):
        for each in folders.seeds:
            work = folders.of(each)
            assert work is not None
            trained = train_detector(
                load(each), train, test, chosen, seed=each, work=work, settings=kept, progress=progress
            )
            outcomes.append(trained)
            if distributed.is_main():
                write_json(work / "detections.json", results(trained.detections, test))
                draw_detections(work / "detections.png", test, trained.detections)
    result = {
        **_summed_up([outcome.scores for outcome in outcomes]),
        **settings,
        "seed": seed,
        "num_train": len(train),
        "num_test": len(test),
        "names": list(train.classes),
        **subject.settings(),
    }
    if outcomes[0].classes is not None:
        result["classes"] = _means([outcome.classes or {} for outcome in outcomes])
    if distributed.is_main():
        print(_line(result, [outcome.scores for outcome in outcomes]))
        print(f"log, detections and picture: {folders.of(seed)}")
        subject.save(result, f"{name}.json", str(out_folder))
        if not keep:
            folders.remove("checkpoints")
    return result


def _check_objects(train: Annotations, test: Annotations) -> None:
    """Refuse sets that nothing can be learned from, or judged by."""
    if not len(train):
        raise ValueError(f"{train.name} has no image with an object, which could be trained on")
    if (test.is_crowd | test.is_difficult).all():
        raise ValueError(f"{test.name} has no object that is neither difficult nor a crowd: nothing can be found in it")


def _cost(protocol: DetectionProtocol, num_train: int, num_test: int, trials: int) -> str:
    """The cost in words.

    Example:
        >>> _cost(DETECTION_PROTOCOLS["voc0712_c4_24k"], 16_551, 4_952, 1)
        '384,000 images forward and backward, 23.2 epochs; 4,952 images tested'
    """
    images = protocol.iterations * protocol.batch_size
    times = f"{trials} times " * (trials > 1)
    return f"{times}{images:,} images forward and backward, {images / num_train:.1f} epochs; {num_test:,} images tested"


def _measured(subject: Subject, protocol: DetectionProtocol, train: Annotations, test: Annotations, trials: int) -> str:
    """Time and memory in words, by an image of median size and of noise."""
    device, masks = torch.device(subject.device), protocol.detector.masks
    detector = Detector(subject.encoder, protocol.detector, len(train.classes)).to(device)
    short = int(statistics.median(protocol.short_sides))
    sizes = [resized(height, width, short, protocol.long_side) for height, width in train.sizes.tolist()]
    size = tuple(np.median(sizes, axis=0).astype(int).tolist())
    views = [torch.randn(1, 3, *size, device=device), torch.tensor([size])]
    views.append(torch.tensor([[0.0, 0, size[1] / 4, size[0] / 4, size[1] / 2, size[0] / 2]], device=device))
    views += [torch.ones(1, *size, dtype=torch.uint8, device=device)] * masks
    before = _memory_bytes(device)

    def seconds(work: Any) -> float:
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=subject.precision == "bfloat16"):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    def step() -> None:
        detector(tuple(views), Step(0, 1, 1)).loss.backward()

    def look() -> None:
        detector.predict(views[0], views[1])

    # The first on a GPU compiles and chooses kernels.
    step_s, look_s = (min(seconds(work) for _ in range(1 + (device.type == "cuda"))) for work in (step, look))
    own_rows = protocol.batch_size // distributed.world_size()
    memory = before + own_rows * (_memory_bytes(device) - before)
    images = own_rows * (protocol.iterations * step_s + protocol.precise_batches * step_s / 3)
    total_s = trials * (images + len(test) / distributed.world_size() * look_s)
    return (
        f"{device.type}: {step_s:.2f} s for an image of {size[1]} x {size[0]} in training, {look_s:.2f} s in a test, "
        f"without reading it: {duration(total_s)} in all; about {memory / 2**30:.1f} GiB"
    )


def _memory_bytes(device: torch.device) -> int:
    """Largest memory so far: of a GPU what tensors took, of a CPU the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _digest(annotations: Annotations) -> str:
    """Hash of what is trained on or judged by, wherever its images lie."""
    known = annotations.classes, annotations.federation, annotations.segments and annotations.segments.runs
    digest = hashlib.blake2b(repr(known).encode(), digest_size=16)
    for path in annotations.paths:
        digest.update(os.path.basename(path))
    for values in (annotations, annotations.segments):
        for column in vars(values).values() if values is not None else ():
            if isinstance(column, np.ndarray) and column is not annotations.paths:
                digest.update(column.tobytes())
    return digest.hexdigest()


def _means(trials: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each score over the trials that have it, or None.

    Example:
        >>> _means([{"cat": 0.25, "cow": None}, {"cat": 0.75, "cow": None}])
        {'cat': 0.5, 'cow': None}
    """
    known = {name: [value for each in trials if (value := each[name]) is not None] for name in trials[0]}
    return {name: statistics.fmean(values) if values else None for name, values in known.items()}


def _summed_up(scores: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """The scores of one trial; of several their means, ``std`` and ``trials``.

    Example:
        >>> _summed_up([{"AP50": 0.25}, {"AP50": 0.75}])
        {'AP50': 0.5, 'std': {'AP50': 0.3535533905932738}, 'trials': {'AP50': [0.25, 0.75]}}
    """
    trials = {name: [each[name] for each in scores] for name in scores[0]}
    means = _means(scores)
    if len(scores) == 1:
        return dict(means)
    spread = {
        name: statistics.stdev(value for value in values if value is not None)
        for name, values in trials.items()
        if None not in values
    }
    return {**means, "std": spread, "trials": trials}


def _line(result: Mapping[str, Any], scores: Sequence[Mapping[str, float | None]]) -> str:
    """The result in words.

    Example:
        >>> result = {"protocol": {"name": "mine"}, "num_test": 3, "classes": {"cat": 0.5, "cow": None}}
        >>> print(_line(result, [{"AP": 0.25, "AR1": 0.5, "mask_AP": 0.125}]))
        detection AP 25.00 mask AP 12.50 (protocol mine, 3 images)
        AP50 by class: cat 50.00, cow -
    """
    names = [name for name in ("AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75") if name in scores[0]]
    said = " ".join(f"{name.replace('_', ' ')} {trials_text([each[name] or 0.0 for each in scores])}" for name in names)
    trials = f"{len(scores)} trials, " * (len(scores) > 1)
    line = f"detection {said} ({trials}protocol {result['protocol']['name']}, {result['num_test']:,} images)"
    classes = result.get("classes") or {}
    if 1 < len(classes) <= 20:
        line += "\nAP50 by class: "
        line += ", ".join(f"{name} {'-' if value is None else f'{100 * value:.2f}'}" for name, value in classes.items())
    return line
