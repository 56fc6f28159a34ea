"""Classification of PASCAL VOC 2007, whose images may show several of 20 classes, from frozen features.

``ssl-core eval voc07 RUN --data.root ROOT`` prints the protocol, then a line for each number of images, such as
``voc07 16 shots mAP 79.47 std 0.52 (C 0.5, 5 draws of 320 images, 0 of 100 fits not converged, 4952 images)``.

Legend: n images, f features, c classes. Values: 1 of the class, 0 of difficult objects of it only, -1 not of it.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_core import distributed
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
from ssl_core.data.voc import VOC_CLASSES, VOC_NAME
from ssl_core.evaluate.average_precision import MeanAveragePrecision, mean_average_precision
from ssl_core.evaluate.classifier import (
    Classifier,
    Folders,
    make_linear,
    train_labelled,
    with_fitting_batch,
)
from ssl_core.evaluate.encoder import Layer
from ssl_core.evaluate.features import evaluating, evaluation_view
from ssl_core.evaluate.plan import Plan, choose_protocol, trials_result, trials_text
from ssl_core.evaluate.subject import Subject, load_subject
from ssl_core.evaluate.svm import (
    FOLDS,
    NEGATIVES,
    Labels,
    Svms,
    cross_validated_costs,
    drawn_for_all,
    drawn_for_each,
    fit_svms,
    unit_length,
)
from ssl_core.evaluate.voc07_protocol import (
    VOC07_PROTOCOLS,
    Difficult,
    Shots,
    Voc07Protocol,
    voc07_text,
    with_difficult,
)
from ssl_core.train import TrainConfig
from ssl_core.views import HorizontalFlip, RandomResizedCrop, Resize, ViewSpec


class VocImages(NamedTuple):
    """Features of images, and the values of their lists.

    Attributes:
        features: (n f) features of the images.
        values: (n c) 1, -1, and 0 for images that show difficult objects only.
    """

    features: Float[np.ndarray, "n f"]
    values: Labels


class _Draw(NamedTuple):
    """Rows of the labeled images that SVMs learn from, their labels, and the labels of those that they do not."""

    rows: Any
    labels: Labels
    others: Labels


def svm_scores(
    labelled: VocImages,
    is_validation: Bool[np.ndarray, " n"],
    test: VocImages,
    protocol: Voc07Protocol,
    shots: Shots,
    *,
    seed: int,
) -> dict[str, Any]:
    """The scores of SVMs that learn from some number of images of each class.

    With several costs there are two results. One is of the cost that the test images chose, as papers report it. The
    other is of the cost that labeled images chose: those for validation, by SVMs of the others; or those not drawn.

    Args:
        labelled: training images, with those for validation among them.
        is_validation: (n) whether each training image is for validation.
        test: test images.
        protocol: protocol of the fits.
        shots: number of images of each class.
        seed: seed of the draws.

    Returns:
        The number of ``images`` of a draw, of ``fits`` and of fits ``not_converged``; and ``cost``, ``trials``,
        ``mean``, ``std`` and ``classes``, or with several costs ``test_selected`` and ``val_selected``, each of which
        has these.
    """
    difficult = protocol.difficult_of(shots)
    assert protocol.cost is not None
    training = with_difficult(labelled.values, difficult, training=True)
    unseen = with_difficult(labelled.values, difficult, training=False)
    tested = with_difficult(test.values, difficult, training=False)
    num_classes = training.shape[1]
    fits = not_converged = 0

    def fitted(draw: _Draw, costs: Sequence[float]) -> Svms:
        nonlocal fits, not_converged
        svms = fit_svms(labelled.features[draw.rows], draw.labels, costs)
        fits, not_converged = fits + num_classes, not_converged + svms.not_converged
        return svms

    def on_test(svms: Svms) -> MeanAveragePrecision:
        return mean_average_precision(svms.scores(test.features), tested, "area")

    whole = _Draw(slice(None), training, np.zeros_like(training))
    if shots == "full" and protocol.kind == "vissl":
        costs, not_converged = cross_validated_costs(labelled.features, training, protocol.cost)
        fits = FOLDS * len(protocol.cost) * num_classes
        result = _result([on_test(fitted(whole, costs))])
        result = {"cost": dict(zip(VOC_CLASSES, costs, strict=True)), **result}
    else:
        if isinstance(shots, str):
            own = np.flatnonzero(~is_validation)
            draws, choosing = [whole], [_Draw(own, training[own], np.where(is_validation[:, None], unseen, 0))]
        else:
            make = _draw_for_each if protocol.kind == "vissl" else _draw_for_all
            draws = choosing = [make(training, unseen, shots, seed, draw) for draw in range(protocol.trials)]
        found, chosen = [], []  # of each cost
        for cost in protocol.cost:
            svms = [fitted(draw, [cost] * num_classes) for draw in draws]
            found.append([on_test(each) for each in svms])
            if len(protocol.cost) > 1:
                if choosing is not draws:
                    svms = [fitted(draw, [cost] * num_classes) for draw in choosing]
                chosen.append(
                    [
                        mean_average_precision(each.scores(labelled.features), draw.others, "area")
                        for each, draw in zip(svms, choosing, strict=True)
                    ]
                )
        result = {"cost": protocol.cost[0], **_result(found[0])}
        if len(protocol.cost) > 1:
            result = {
                name: {"cost": protocol.cost[_best(by)], **_result(found[_best(by)])}
                for name, by in (("test_selected", found), ("val_selected", chosen))
            }
    images = len(training) if isinstance(shots, str) else shots * num_classes
    return {"images": images, "fits": fits, "not_converged": not_converged, **result}


def _draw_for_all(training: Labels, unseen: Labels, shots: int, seed: int, draw: int) -> _Draw:
    rows = drawn_for_all(training, shots, seed, draw)
    others = unseen.copy()
    others[rows] = 0
    return _Draw(rows, training[rows], others)


def _draw_for_each(training: Labels, unseen: Labels, shots: int, seed: int, draw: int) -> _Draw:
    labels = drawn_for_each(training, shots, seed, draw)
    return _Draw(slice(None), labels, np.where(labels == 0, unseen, 0))


def _best(of_costs: Sequence[Sequence[MeanAveragePrecision]]) -> int:
    return int(np.argmax([statistics.fmean(each.mean for each in draws) for draws in of_costs]))


def _result(draws: Sequence[MeanAveragePrecision]) -> dict[str, Any]:
    by_class = zip(VOC_CLASSES, zip(*(draw.classes for draw in draws), strict=True), strict=True)
    classes = {name: None if None in values else float(np.mean(values)) for name, values in by_class}
    return {**trials_result([draw.mean for draw in draws]), "classes": classes}


def multi_label_scores(scores: Float[np.ndarray, "n c"], labels: Labels) -> dict[str, float]:
    """Four scores of a classifier of images with several classes, each in [0, 1], of which no two can be compared.

    Args:
        scores: (n c) score of each class.
        labels: (n c) 1 or -1; images without a 1 are in the first two numbers only.

    Returns:
        ``map_area`` and ``map_11_point``, means over the classes of average precisions over the images; ``image_ap``,
        mean over the images of the average precision, not interpolated, over the classes; and ``first_present``,
        fraction of the images whose highest score is of a class that they show.
    """
    shows = (labels == 1).any(axis=1)
    first = scores[shows].argmax(axis=1)
    return {
        "map_area": mean_average_precision(scores, labels, "area").mean,
        "map_11_point": mean_average_precision(scores, labels, "11-point").mean,
        "image_ap": mean_average_precision(scores.T, labels.T, "none").mean,
        "first_present": float((labels[shows][np.arange(len(first)), first] == 1).mean()),
    }


def linear_scores(
    subject: Subject,
    train: ImageSource,
    test: VocImages,
    protocol: Voc07Protocol,
    *,
    folders: Folders,
    settings: Mapping[str, Any],
    progress: bool = False,
) -> list[dict[str, float]]:
    """The scores of :func:`multi_label_scores` for linear classifiers after their last epoch, for each seed.

    Args:
        subject: encoder, which works in eval mode and does not change, and the description of its input.
        train: training images.
        test: test images.
        protocol: protocol of the training.
        folders: seeds of the trials, and the folder from which each is continued.
        settings: plain values that tell one training from others that could be continued.
        progress: whether bars are shown.

    Raises:
        ValueError: if a folder holds what other settings have begun, or a classifier diverges.
    """
    assert protocol.epochs is not None
    assert protocol.batch_size is not None
    assert protocol.lr is not None
    num_classes, results = len(VOC_CLASSES), []
    view = ViewSpec((RandomResizedCrop((0.08, 1.0)), HorizontalFlip()), (subject.card.image_size,), name="train")
    targets = (multi_labels(subject.data, train) == 1).float()
    features = torch.from_numpy(test.features).to(subject.device)
    labels = with_difficult(test.values, "negative", training=False)
    # The classifier's loss is a mean over the classes, the protocol's their sum: the same steps at a higher rate.
    rate = num_classes * protocol.lr
    for seed in folders.seeds:
        linear = make_linear(features.shape[1], num_classes, "normal", seed).to(subject.device)

        def score(linear: nn.Linear = linear) -> dict[str, float]:
            with torch.no_grad():
                return multi_label_scores(linear(features).cpu().numpy(), labels)

        [measured] = train_labelled(
            Classifier(subject.encoder, linear, frozen=True),
            subject.batches(train, view, batch_size=protocol.batch_size, seed=seed, labels=targets),
            torch.optim.SGD(linear.parameters(), lr=rate, momentum=0.9),
            TrainConfig(epochs=protocol.epochs, batch_size=protocol.batch_size, precision="float32"),
            work=folders.of(seed),
            learning_rate=lambda step: rate,
            settings={**settings, "seed": seed},
            score=score,
            every=None,
            quiet=not progress,
        )
        results.append({name: value for name, value in measured.items() if name != "epoch"})
    return results


class _PooledMaps(nn.Module):
    """The last maps of a convolutional encoder, averaged to 2 x 2 by windows one pixel short of them, as VISSL does."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Float32[Tensor, "n f"]:
        maps = self.encoder.forward_features(images)
        return F.avg_pool2d(maps, (maps.shape[2] - 1, maps.shape[3] - 1), 1).flatten(1)


def _with_pooled_maps(subject: Subject) -> Subject:
    encoder: Any = subject.encoder
    shape: tuple[int, ...] = ()
    if hasattr(encoder, "forward_features"):
        image = torch.zeros(1, subject.card.channels, subject.card.image_size, subject.card.image_size)
        with evaluating(encoder):
            shape = encoder.forward_features(image.to(subject.device)).shape[1:]
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise ValueError(
            f"protocol svm_vissl pools an encoder's last maps to 2 x 2, and {subject.name} has "
            f"{'none' if len(shape) != 3 else f'one of {shape[1]} x {shape[2]}'}; take protocol svm"
        )
    return subject._replace(encoder=_PooledMaps(encoder))


def _features(subject: Subject, source: ImageSource, view: ViewSpec, progress: str) -> VocImages:
    features = subject.together(source, progress, view=view).features.numpy()
    return VocImages(features, multi_labels(subject.data, source).numpy()[readable(source)])


def evaluate_voc07(
    encoder: str,
    *,
    protocol: str = "svm",
    shots: int | str | list[int | str] | None = None,
    cost: float | list[float] | None = None,
    trials: int | None = None,
    difficult: Difficult | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    data: DataConfig | None = None,
    like: str | None = None,
    features: Layer = "backbone",
    device: torch.device | str = "cpu",
    seed: int = 0,
    out: str | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Tell which of the 20 classes of VOC 2007 an image shows, from frozen features; prints ``voc07 full mAP 88.24``.

    Several processes share the images, and the classes that SVMs are fitted to.

    Args:
        encoder: run directory, ``.safetensors`` file, ``timm:NAME``, ``random`` or ``pixels``.
        protocol: name in ``VOC07_PROTOCOLS``: svm (SVMs, as SCE has them), svm_vissl, or clsa (linear).
        shots: number of images of each class that SVMs learn from, or several as in [16,32,64,full]; full is all.
        cost: C of the SVMs; of several, there is a result for the one that test images choose, and for the one that
            other images choose.
        trials: number of draws of each number of images, or of seeds of clsa's classifier; full has one.
        difficult: treatment of an image, by a class of which it shows difficult objects only: negative, ignore (left
            out), or vissl_full (left out of the test alone).
        epochs: number of epochs in place of clsa's.
        lr: learning rate in place of clsa's.
        batch_size: batch size in place of clsa's; None takes of fewer images the largest power of two.
        data: settings of the images, of which ``root`` is the folder with VOCdevkit.
        like: run directory or exported backbone whose input ``random`` and ``pixels`` take.
        features: layer to evaluate: ``backbone``, or ``projection``, the projector after it.
        device: device that computes the features.
        seed: seed of the draws, clsa's classifier, order and crops, and the weights of ``random``.
        out: folder of the result; None is the folder of ``encoder``, or nowhere if that has none.
        dry_run: whether to print protocol, images and cost, and do no more.
        progress: whether bars are shown.

    Returns:
        The content of ``voc07-PROTOCOL.json``: ``shots``, the result of :func:`svm_scores` by number of images, or the
        numbers of :func:`multi_label_scores`, of several trials their means and ``trials``; and every setting.

    Raises:
        FileNotFoundError: for a path or a list that does not exist.
        ValueError: for an unknown protocol, an option that it does not have, more shots than a class has images, and
            what does not fit together.
    """
    if data is None:
        raise ValueError("voc07 needs data.root, the folder that holds VOCdevkit")
    chosen, changed = choose_protocol(
        VOC07_PROTOCOLS,
        protocol,
        shots=shots if shots is None else tuple(shots) if isinstance(shots, list) else (shots,),
        cost=cost if cost is None else tuple(cost) if isinstance(cost, list) else (cost,),
        trials=trials,
        difficult=difficult,
        difficult_shots=difficult,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
    )
    subject = load_subject(encoder, data=data, like=like, features=features, device=device, seed=seed, out=out)
    size = subject.card.image_size
    data = dataclasses.replace(data, source=VOC_NAME, channels=data.channels or subject.card.channels)
    subject = subject._replace(data=data)
    view = evaluation_view(size)
    if chosen.kind == "vissl":
        view, subject = ViewSpec((Resize(),), (size,), name="squashed"), _with_pooled_maps(subject)
    images, unseen = (open_encoded(data, split) for split in ("labelled", "test"))
    values, is_validation = multi_labels(data, images).numpy(), _is_validation(data, images)
    _check_values(values, is_validation, chosen)
    if not (multi_labels(data, unseen) == 1).any():
        raise ValueError("no test image shows an object that is not difficult; unpack VOCtest_06-Nov-2007.tar anew")
    if chosen.batch_size is not None and batch_size is None:
        chosen, changed = with_fitting_batch(chosen, changed, len(images))
    num_validation = int(is_validation.sum())
    counts = {"train": len(images) - num_validation, "validation": num_validation, "test": len(unseen)}
    text = voc07_text(protocol, chosen, size)
    plan = Plan(protocol, chosen, changed, text, {VOC_NAME: counts}, _selection(chosen), _cost(chosen, counts))
    if distributed.is_main():
        print(plan, flush=True)
    settings = {**plan.settings(), "difficult": chosen.difficult or "negative", "features": features, "seed": seed}
    if dry_run:
        return settings
    subject.check_folder(out)
    folders = Folders(subject.folder(out), f"voc07-{protocol}", range(seed, seed + chosen.trials))
    same = {**settings, "digest": subject.digest(), "train": identity(images, torch.from_numpy(values))}
    folders.check(same)
    train, test = (decoded(each, data, split=split) for each, split in ((images, "labelled"), (unseen, "test")))
    tested = _features(subject, test, view, "test features" if progress else "")
    result: dict[str, Any]
    if chosen.kind == "linear":
        trained = linear_scores(subject, train, tested, chosen, folders=folders, settings=same, progress=progress)
        result = {name: statistics.fmean(each[name] for each in trained) for name in trained[0]}
        result |= {"trials": trained} if len(trained) > 1 else {}
        percent = {name: trials_text([each[name] for each in trained]) for name in trained[0]}
        if distributed.is_main():
            print(
                f"voc07 class mAP area {percent['map_area']}, 11-point {percent['map_11_point']}; image AP "
                f"{percent['image_ap']}; highest score present {percent['first_present']} (protocol {protocol}, "
                f"{chosen.epochs} epochs, difficult negative, {len(tested.values)} images)"
            )
    else:
        labelled = _features(subject, train, view, "training features" if progress else "")
        labelled, tested = (VocImages(unit_length(each.features), each.values) for each in (labelled, tested))
        is_validation = _is_validation(data, train)[readable(train)]
        result = {"shots": {}}
        for each in chosen.shots or ():
            found = svm_scores(labelled, is_validation, tested, chosen, each, seed=seed)
            if distributed.is_main():
                print(_svm_text(each, found, chosen, len(tested.values)), flush=True)
            result["shots"][str(each)] = found
    result |= {**settings, **subject.settings(is_shared=True, train=train, test=test)}
    if distributed.is_main():
        subject.save(result, f"voc07-{protocol}.json", out)
        if chosen.kind == "linear":
            folders.remove()
    return result


def _is_validation(data: DataConfig, source: ImageSource) -> NDArray[np.bool_]:
    held_out = official_validation(data, source)
    assert held_out is not None
    return np.isin(np.arange(len(source)), held_out.numpy())


def _check_values(values: Labels, is_validation: NDArray[np.bool_], protocol: Voc07Protocol) -> None:
    """Refuse what SVMs cannot learn from, before images are read."""
    for shots in protocol.shots or ():
        parts = {"training": with_difficult(values, protocol.difficult_of(shots), training=True)}
        needed, others = (1, 1) if isinstance(shots, str) else (shots, 0)
        if protocol.kind == "vissl":
            needed, others = (FOLDS, FOLDS) if isinstance(shots, str) else (shots, NEGATIVES * shots)
        elif shots == "full" and len(protocol.cost or ()) > 1:
            parts["official training"] = parts["training"][~is_validation]
        for part, labels in parts.items():
            for name, column in zip(VOC_CLASSES, labels.T, strict=True):
                for number, what, least in (
                    ((column == 1).sum(), "with", needed),
                    ((column == -1).sum(), "without", others),
                ):
                    if number < least:
                        raise ValueError(
                            f"shots {shots}: SVMs need {least} {part} images {what} {name}, and its lists have "
                            f"{number}; give fewer shots, or unpack VOC2007's archives anew"
                        )


def _selection(protocol: Voc07Protocol) -> str:
    if protocol.kind == "vissl":
        return "best on test and validation; of all images cross-validation"
    return "best on test and validation" if len(protocol.cost or ()) > 1 else "last"


def _cost(protocol: Voc07Protocol, counts: Mapping[str, int]) -> str:
    num_labelled = counts["train"] + counts["validation"]
    if protocol.epochs is not None:
        passes = protocol.epochs * protocol.trials
        return f"{passes * num_labelled + counts['test']:,} images through the frozen encoder"
    fits, costs = 0, len(protocol.cost or ())
    for shots in protocol.shots or ():
        if shots != "full":
            fits += protocol.trials * costs
        elif protocol.kind == "vissl":
            fits += FOLDS * costs + 1
        else:
            fits += costs * (2 if costs > 1 else 1)
    return f"{num_labelled + counts['test']:,} images through the encoder, {fits * len(VOC_CLASSES):,} fits of an SVM"


def _svm_text(shots: Shots, found: Mapping[str, Any], protocol: Voc07Protocol, num_test: int) -> str:
    def chosen(result: Mapping[str, Any]) -> str:
        cost = "C of each class by cross-validation" if isinstance(result["cost"], dict) else f"C {result['cost']:g}"
        return f"{trials_text(result['trials'])} ({cost}"

    one = found.get("test_selected", found)
    text = f"{chosen(one)}, "
    if one is not found:
        text = f"test-selected {chosen(one)}), val-selected {chosen(found['val_selected'])}) ("
    draws = "" if shots == "full" else f"{protocol.trials} draws of {found['images']} images, "
    left_out = [name for name, value in one["classes"].items() if value is None]
    untested = f", without {', '.join(left_out)}, which no test image shows" if left_out else ""
    return (
        f"voc07 {shots if shots == 'full' else f'{shots} shots'} mAP {text}{draws}{found['not_converged']} of "
        f"{found['fits']} fits not converged, {num_test} images{untested})"
    )
