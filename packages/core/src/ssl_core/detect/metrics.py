"""Scores of detections: average precision as VOC 2007, COCO and LVIS define it.

VOC: of each class, detections by falling score. One that overlaps its best object by more than a threshold is a hit the
first time and a miss from then on; with a difficult object it is neither. The average precision is that of 11 points.
COCO and LVIS are scored by faster-coco-eval, which gives pycocotools' and lvis' numbers.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped
from numpy.typing import NDArray

from ssl_core.detect.annotations import Annotations
from ssl_core.detect.segments import check_detection
from ssl_core.evaluate.average_precision import ranked_average_precision

logger = logging.getLogger(__name__)

THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))

_COCO_SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
# Behind them the evaluator has recalls, three of which it leaves empty where there is one number of detections.
_LVIS_SCORES = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "APr": 14, "APc": 15, "APf": 16}
LVIS_DETECTIONS = 300  # of an image


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector has found in some images.

    Attributes:
        image: (k) index of the image of each detection.
        labels: (k) class of each detection.
        boxes: (k 4) box of each detection in pixels of the image, as :class:`Annotations` has them.
        scores: (k) score of each detection.
        masks: compressed run-length encoding of each detection's pixels; None without masks.
    """

    image: Int64[np.ndarray, " k"]
    labels: Int64[np.ndarray, " k"]
    boxes: Float[np.ndarray, "k 4"]
    scores: Float[np.ndarray, " k"]
    masks: Sequence[dict[str, Any]] | None = None

    def subset(self, chosen: Shaped[np.ndarray, " l"]) -> "Detections":
        """Some detections, by a flag for each or by their numbers."""
        masks = self.masks
        if masks is not None:
            masks = [masks[index] for index in np.arange(len(masks))[chosen]]
        return Detections(self.image[chosen], self.labels[chosen], self.boxes[chosen], self.scores[chosen], masks)

    def best_of_image(self, number: int) -> "Detections":
        """The detections of the highest scores of each image, over all classes, by image and falling score."""
        chosen = self.subset(np.lexsort((-self.scores, self.image)))
        first = np.searchsorted(chosen.image, chosen.image)
        return chosen.subset(np.arange(len(first)) - first < number)


@dataclass(frozen=True)
class VOCScores:
    """Average precision of VOC 2007, in [0, 1].

    Attributes:
        scores: ``AP``, the mean over ten thresholds of the overlap, ``AP50`` and ``AP75``.
        classes: average precision of each class at an overlap of 0.5; None for a class without objects that are not
            difficult, which is left out of the means.
    """

    scores: dict[str, float]
    classes: dict[str, float | None]


def voc_scores(detections: Detections, annotations: Annotations, *, rounded: bool = False) -> VOCScores:
    """Average precision of VOC 2007: 11 points, difficult objects left out, and so are the crowds of other sets.

    Conventions: an overlap is that of areas of whole pixels, those of both corners included, which VOC has by adding 1
    to 1-based integers and :class:`Annotations` by its edges. It must exceed the threshold. An object is matched with
    the detection that overlaps it best, in the order of their scores; equal scores are in the order of the images.

    Args:
        detections: boxes and scores found.
        annotations: objects of the images.
        rounded: whether scores have three decimals and boxes, counted from 1, one, as in the files by which the
            references pass detections on.

    Raises:
        ValueError: if no class has an object that is not difficult.
    """
    if rounded:
        detections = _rounded(detections)
    precisions: list[list[float] | None] = []
    for label in range(len(annotations.classes)):
        of_class = annotations.labels == label
        is_difficult = (annotations.is_difficult | annotations.is_crowd)[of_class]
        num_positives = int((~is_difficult).sum())
        if not num_positives:
            precisions.append(None)
            continue
        found = detections.subset(detections.labels == label)
        found = found.subset(np.lexsort((found.image, -found.scores)))
        best, overlap = _best_objects(found, annotations.boxes[of_class], annotations.image[of_class])
        rankings = (_hits(best, overlap > threshold, is_difficult) for threshold in THRESHOLDS)
        precisions.append([ranked_average_precision(hits, num_positives, "11-point") for hits in rankings])
    counted = [each for each in precisions if each is not None]
    if not counted:
        raise ValueError(f"{annotations.name} has no objects that are not difficult: nothing can be found in it")
    means = np.mean(counted, axis=0)
    at = {f"AP{round(100 * THRESHOLDS[index])}": float(means[index]) for index in (0, 5)}
    classes = [None if each is None else each[0] for each in precisions]
    return VOCScores({"AP": float(means.mean()), **at}, dict(zip(annotations.classes, classes, strict=True)))


def coco_scores(detections: Detections, annotations: Annotations, *, masks: bool = False) -> dict[str, float | None]:
    """The twelve numbers of COCO, in [0, 1]; None where no object is of the kind.

    Args:
        detections: boxes, or masks, and scores found.
        annotations: objects of the images.
        masks: whether masks are compared instead of boxes.

    Returns:
        ``AP`` over ten thresholds of the overlap, ``AP50``, ``AP75``, ``APs``, ``APm`` and ``APl`` of small, medium and
        large objects (below 32^2, below 96^2, and above); the recalls ``AR1``, ``AR10`` and ``AR100`` by the number of
        detections of an image and class, and ``ARs``, ``ARm`` and ``ARl``.

    Raises:
        ImportError: if faster-coco-eval is not installed.
    """
    return dict(zip(_COCO_SCORES, _evaluated(detections, annotations, masks), strict=False))


def lvis_scores(detections: Detections, annotations: Annotations, *, masks: bool = False) -> dict[str, float | None]:
    """The nine numbers of LVIS, in [0, 1]; None where no object is of the kind. Arguments as :func:`coco_scores`.

    Of an image the 300 detections of the highest scores count, and of those only what is of a class that the image was
    searched for.

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, and ``APr``, ``APc`` and ``APf`` of rare, common and
        frequent classes.
    """
    values = _evaluated(detections.best_of_image(LVIS_DETECTIONS), annotations, masks)
    return {name: values[place] for name, place in _LVIS_SCORES.items()}


def _best_objects(
    found: Detections, boxes: Float64[np.ndarray, "m 4"], image: Int64[np.ndarray, " m"]
) -> tuple[Int64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """The object that each detection overlaps most, the first of several, and the overlap; -1 and 0 for none."""
    start, stop = (np.searchsorted(image, found.image, side) for side in ("left", "right"))
    counts = stop - start
    detection = np.repeat(np.arange(len(counts)), counts)
    thing = np.arange(counts.sum()) + np.repeat(start - (counts.cumsum() - counts), counts)
    overlaps = _overlap(found.boxes[detection].astype(float), boxes[thing])
    order = np.lexsort((thing, -overlaps, detection))
    matched, first = np.unique(detection[order], return_index=True)
    best, overlap = np.full(len(counts), -1), np.zeros(len(counts))
    best[matched], overlap[matched] = thing[order][first], overlaps[order][first]
    return best, overlap


def _overlap(a: Float64[np.ndarray, "p 4"], b: Float64[np.ndarray, "p 4"]) -> Float64[np.ndarray, " p"]:
    """Area of the intersection of each two boxes over that of their union."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    intersection = sides.clip(min=0).prod(axis=1)
    areas = [(box[:, 2:] - box[:, :2]).prod(axis=1) for box in (a, b)]
    return np.asarray(intersection / (areas[0] + areas[1] - intersection))


def _hits(best: NDArray[Any], is_match: NDArray[Any], is_difficult: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each detection is a hit, without those that are neither hit nor miss."""
    is_hit = np.zeros(len(best), bool)
    matches = np.flatnonzero(is_match)
    is_hit[matches[np.unique(best[matches], return_index=True)[1]]] = True
    return np.compress(~(is_match & is_difficult[best]), is_hit)


def _rounded(detections: Detections) -> Detections:
    counted_from_1 = np.array([1, 1, 0, 0], np.float32)
    boxes = detections.boxes.astype(np.float32) + counted_from_1
    decimals = [[round(edge, 1) for edge in box] for box in boxes.tolist()]
    return replace(
        detections,
        scores=np.array([round(score, 3) for score in detections.scores.tolist()]),
        boxes=np.array(decimals).reshape(-1, 4) - counted_from_1,
    )


def _evaluated(detections: Detections, annotations: Annotations, masks: bool) -> list[float | None]:
    """All numbers of faster-coco-eval."""
    check_detection()
    from faster_coco_eval import COCO, COCOeval_faster

    if masks and (annotations.segments is None or detections.masks is None):
        raise ValueError(f"masks of {annotations.name} cannot be compared: the set or the detections have none")
    truth = COCO(_as_coco(annotations, masks))
    evaluator = COCOeval_faster(
        truth,
        truth.loadRes(_as_results(detections, masks)),
        iouType="segm" if masks else "bbox",
        lvis_style=annotations.federation is not None,
        print_function=logger.debug,
    )
    if annotations.federation is not None:
        evaluator.params.maxDets = [LVIS_DETECTIONS]
    evaluator.run()
    return [None if value < 0 else float(value) for value in evaluator.all_stats]


def _as_coco(annotations: Annotations, masks: bool) -> dict[str, Any]:
    """The set as a file of COCO, with the images and classes numbered from 0."""
    images: list[dict[str, Any]] = [
        {"id": index, "height": height, "width": width}
        for index, (height, width) in enumerate(annotations.sizes.tolist())
    ]
    classes: list[dict[str, Any]] = [{"id": label, "name": name} for label, name in enumerate(annotations.classes)]
    if (federation := annotations.federation) is not None:
        for image, negatives, not_exhaustive in zip(
            images, federation.negatives, federation.not_exhaustive, strict=True
        ):
            image |= {"neg_category_ids": negatives, "not_exhaustive_category_ids": not_exhaustive}
        for each, frequency in zip(classes, federation.frequency, strict=True):
            each["frequency"] = frequency
    objects = [
        {"id": number + 1, "image_id": image, "category_id": label, "bbox": box, "iscrowd": crowd, "area": area}
        for number, (image, label, box, crowd, area) in enumerate(
            zip(
                annotations.image.tolist(),
                annotations.labels.tolist(),
                _corner_and_sides(annotations.boxes),
                annotations.is_crowd.astype(int).tolist(),
                annotations.areas.tolist(),
                strict=True,
            )
        )
    ]
    if masks:
        assert annotations.segments is not None
        for number, each in enumerate(objects):
            each["segmentation"] = annotations.segments.segmentation(number)
    return {"images": images, "categories": classes, "annotations": objects}


def _as_results(detections: Detections, masks: bool) -> list[dict[str, Any]]:
    """Detections as COCO's results; those of masks have no box, or an area would be the box's."""
    shapes: Sequence[Any] = (detections.masks or ()) if masks else _corner_and_sides(detections.boxes)
    return [
        {"image_id": image, "category_id": label, "score": score, "segmentation" if masks else "bbox": shape}
        for image, label, score, shape in zip(
            detections.image.tolist(), detections.labels.tolist(), detections.scores.tolist(), shapes, strict=True
        )
    ]


def _corner_and_sides(boxes: Float[np.ndarray, "n 4"]) -> list[list[float]]:
    return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.tolist()]
