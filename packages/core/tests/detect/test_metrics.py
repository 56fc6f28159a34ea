import contextlib
import io
import sys
from dataclasses import replace
from importlib.machinery import PathFinder

import numpy as np
import pytest

from ssl_core.detect.annotations import Federation
from ssl_core.detect.metrics import THRESHOLDS, Detections, coco_scores, lvis_scores, voc_scores
from ssl_core.detect.segments import make_segments


def found(rows):
    """Detections from rows (image, class, score, x1, y1, x2, y2)."""
    table = np.array(rows, float).reshape(-1, 7)
    return Detections(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 3:], table[:, 2])


def voc_box(*corners):
    """A box of VOC, whose pixels are counted from 1 and of which the last belongs to it."""
    x1, y1, x2, y2 = corners
    return (x1 - 1, y1 - 1, x2, y2)


def test_half_of_the_pixels_is_an_overlap_of_half_which_is_no_match(annotated):
    truth = annotated([(0, 0, *voc_box(1, 1, 10, 10))])
    # With +1: 10 x 5 of 10 x 10 pixels. Without, it would be 9 x 4 of 9 x 9.
    half = found([(0, 0, 0.9, *voc_box(1, 1, 10, 5))])
    more = found([(0, 0, 0.9, *voc_box(1, 1, 10, 6))])
    assert voc_scores(half, truth).scores == {"AP": 0, "AP50": 0, "AP75": 0}
    # 0.6 exceeds 0.5 and 0.55 of ten thresholds, and 60 / 100 is not above 60 / 100.
    assert voc_scores(more, truth).scores == pytest.approx({"AP": 0.2, "AP50": 1, "AP75": 0})


def hand_case(annotated):
    """Image 0 (a): a box; image 1 (b): a box, and a difficult one at (21, 21, 30, 30)."""
    box, other = voc_box(1, 1, 10, 10), voc_box(21, 21, 30, 30)
    truth = annotated([(0, 0, *box), (1, 0, *box), (1, 0, *other)], is_difficult=np.array([False, False, True]))
    rows = [
        (1, 0, 0.9, *box),  # hit
        (1, 0, 0.8, *other),  # the difficult one: neither hit nor miss
        (0, 0, 0.7, *other),  # nothing there: miss
        (1, 0, 0.6, *voc_box(1, 1, 10, 9)),  # found already: miss
        (0, 0, 0.5, *box),  # hit
    ]
    return found(rows), truth


def test_voc_scores_of_a_case_worked_by_hand(annotated):
    # Precision at recall: 1 at 1/2, and 2/4 at 1. Six of 11 points have 1, five 1/2: 17/22.
    scores = voc_scores(*hand_case(annotated))
    assert scores.scores["AP50"] == pytest.approx(17 / 22, abs=1e-15)
    assert scores.classes == {"cat": pytest.approx(17 / 22, abs=1e-15)}


@pytest.mark.parametrize("change", [np.sqrt, lambda scores: 3 * scores + 7], ids=["root", "line"])
def test_an_increasing_map_of_scores_changes_nothing(annotated, change):
    detections, truth = hand_case(annotated)
    assert voc_scores(replace(detections, scores=change(detections.scores)), truth) == voc_scores(detections, truth)


def test_equal_scores_stand_in_the_order_of_the_images(annotated):
    box = voc_box(1, 1, 10, 10)
    truth = annotated([(0, 0, *box)], num_images=2)
    rows = [(0, 0, 0.5, *box), (1, 0, 0.5, *box)]
    assert voc_scores(found(rows), truth) == voc_scores(found(rows[::-1]), truth)
    assert voc_scores(found(rows), truth).scores["AP50"] == 1


def test_a_class_without_objects_to_find_is_left_out_of_the_mean(annotated):
    box = voc_box(1, 1, 10, 10)
    truth = annotated([(0, 0, *box), (0, 1, *box)], classes=("cat", "dog", "cow"), is_difficult=np.array([False, True]))
    scores = voc_scores(found([(0, label, 0.9, *box) for label in range(3)]), truth)
    assert scores.scores == {"AP": 1, "AP50": 1, "AP75": 1}
    assert scores.classes == {"cat": 1, "dog": None, "cow": None}


def test_a_set_of_difficult_objects_is_refused(annotated):
    truth = annotated([(0, 0, *voc_box(1, 1, 10, 10))], is_difficult=np.array([True]))
    with pytest.raises(ValueError, match="made has no objects that are not difficult"):
        voc_scores(found([]), truth)


def test_rounding_moves_boxes_to_tenths_of_a_pixel_and_scores_to_thousandths(annotated):
    truth = annotated([(0, 0, *voc_box(1, 1, 10, 10)), (1, 0, *voc_box(1, 1, 10, 10))])
    # 10 x 5.04 pixels become 10 x 5.0, which no longer exceeds a half.
    edge = found([(0, 0, 0.9, 0, 0, 10, 5.04)])
    assert voc_scores(edge, truth).scores["AP50"] > 0
    assert voc_scores(edge, truth, rounded=True).scores["AP50"] == 0
    # Scores that become equal stand in the order of the images: a miss, then a hit.
    close = found([(0, 0, 0.5001, 50, 50, 60, 60), (1, 0, 0.5004, *voc_box(1, 1, 10, 10))])
    assert voc_scores(close, truth).scores["AP50"] == pytest.approx(6 / 11)
    assert voc_scores(close, truth, rounded=True).scores["AP50"] == pytest.approx(6 / 11 / 2)


def reference_voc_ap(detections, truth, label, threshold):
    """Average precision of a class in VOC's own numbers, one detection after another."""
    objects = [
        (image, (x1 + 1, y1 + 1, x2, y2), difficult)
        for image, label_of, (x1, y1, x2, y2), difficult in zip(
            truth.image, truth.labels, truth.boxes, truth.is_difficult | truth.is_crowd, strict=True
        )
        if label_of == label
    ]
    rows = [row for row in range(len(detections.scores)) if detections.labels[row] == label]
    rows.sort(key=lambda row: (-detections.scores[row], detections.image[row]))
    taken, hits = set(), []
    for row in rows:
        x1, y1, x2, y2 = detections.boxes[row] + [1, 1, 0, 0]
        best, best_overlap = None, -1.0
        for number, (image, (u1, v1, u2, v2), _) in enumerate(objects):
            if image != detections.image[row]:
                continue
            width, height = min(x2, u2) - max(x1, u1) + 1, min(y2, v2) - max(y1, v1) + 1
            common = width * height if width > 0 and height > 0 else 0
            both = (x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1)
            if common / (both - common) > best_overlap:
                best, best_overlap = number, common / (both - common)
        if best_overlap > threshold and objects[best][2]:
            continue
        hits.append(best_overlap > threshold and best not in taken)
        if hits[-1]:
            taken.add(best)
    positives = sum(not difficult for *_, difficult in objects)
    if not positives:
        return None
    curve = [(sum(hits[: end + 1]), sum(hits[: end + 1]) / (end + 1)) for end in range(len(hits))]
    at = [max([precision for tp, precision in curve if 10 * tp >= t * positives], default=0) for t in range(11)]
    return sum(at) / 11


def random_boxes(generator, number, side=60):
    corner = generator.integers(0, side, (number, 2))
    return np.concatenate([corner, corner + generator.integers(4, 40, (number, 2))], axis=1).astype(float)


def random_case(annotated, seed, *, decimals=None, num_images=6, num_classes=3):
    """Objects, some of them crowds, some difficult, and detections that are moved objects and others."""
    generator = np.random.default_rng(seed)
    number = generator.integers(5, 40)
    rows = np.column_stack(
        [
            np.sort(generator.integers(0, num_images, number)),
            generator.integers(0, num_classes, number),
            random_boxes(generator, number),
        ]
    )
    truth = annotated(
        rows,
        num_images=num_images,
        classes=[f"class {label}" for label in range(num_classes)],
        is_crowd=generator.random(number) < 0.15,
        is_difficult=generator.random(number) < 0.2,
        areas=generator.uniform(10, 20_000, number),
    )
    near = np.repeat(rows, 2, axis=0)
    near[:, 2:] += generator.integers(-4, 5, (2 * number, 4))
    near[:, 4:] = np.maximum(near[:, 4:], near[:, 2:4] + 1)
    far = np.column_stack(
        [
            generator.integers(0, num_images, 20),
            generator.integers(0, num_classes, 20),
            random_boxes(generator, 20),
        ]
    )
    both = np.concatenate([near, far])
    if decimals:
        both[:, 2:] += generator.random((len(both), 4)).round(decimals)
    # Of so few values that many scores are equal.
    scores = generator.integers(1, 20, len(both)) / 20
    return found(np.column_stack([both[:, :2], scores, both[:, 2:]])), truth


@pytest.mark.parametrize("seed", range(50))
def test_voc_scores_equal_another_implementation(annotated, seed):
    detections, truth = random_case(annotated, seed, decimals=seed % 3)
    by_class = [
        [reference_voc_ap(detections, truth, label, threshold) for threshold in THRESHOLDS]
        for label in range(len(truth.classes))
    ]
    means = np.mean([row for row in by_class if row[0] is not None], axis=0)
    scores = voc_scores(detections, truth)
    expected = {"AP": means.mean(), "AP50": means[0], "AP75": means[5]}
    assert scores.scores == pytest.approx(expected, abs=1e-12)
    assert list(scores.classes.values()) == [row[0] if row[0] is None else pytest.approx(row[0]) for row in by_class]


def pycocotools_evaluation(detections, truth, kind, max_detections=(1, 10, 100)):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [
                {"id": index, "height": height, "width": width}
                for index, (height, width) in enumerate(truth.sizes.tolist())
            ],
            "categories": [{"id": label} for label in range(len(truth.classes))],
            "annotations": [
                {
                    "id": number + 1,
                    "image_id": int(truth.image[number]),
                    "category_id": int(truth.labels[number]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": int(truth.is_crowd[number]),
                    "area": float(truth.areas[number]),
                    "segmentation": truth.segments and truth.segments.segmentation(number),
                }
                for number, (x1, y1, x2, y2) in enumerate(truth.boxes.tolist())
            ],
        }
        coco.createIndex()
        results = [
            {"image_id": image, "category_id": label, "score": score}
            | ({"segmentation": detections.masks[number]} if kind == "segm" else {"bbox": [x1, y1, x2 - x1, y2 - y1]})
            for number, (image, label, score, (x1, y1, x2, y2)) in enumerate(
                zip(
                    detections.image.tolist(),
                    detections.labels.tolist(),
                    detections.scores.tolist(),
                    detections.boxes.tolist(),
                    strict=True,
                )
            )
        ]
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation


def summary(evaluation):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    return [None if value < 0 else value for value in evaluation.stats.tolist()]


def same(values, expected):
    assert len(values) == len(expected)
    for value, other in zip(values, expected, strict=True):
        assert (value is None) == (other is None)
        assert value is None or abs(value - other) <= 1e-12


@pytest.mark.parametrize("seed", range(50))
def test_coco_scores_of_boxes_equal_pycocotools(annotated, seed):
    detections, truth = random_case(annotated, seed, decimals=seed % 3)
    scores = coco_scores(detections, truth)
    assert list(scores) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    same(scores.values(), summary(pycocotools_evaluation(detections, truth, "bbox")))


def polygon(box):
    """A pentagon in a box, which fills seven eighths of it."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, (y1 + y2) / 2, (x1 + x2) / 2, y2, x1, y2]


@pytest.mark.parametrize("seed", range(10))
def test_coco_scores_of_masks_equal_pycocotools(annotated, seed):
    from pycocotools import mask

    detections, truth = random_case(annotated, seed)
    shapes = [
        mask.frPyObjects([polygon(box)], 128, 128)[0] if crowd else [polygon(box)]
        for box, crowd in zip(truth.boxes.tolist(), truth.is_crowd, strict=True)
    ]
    sizes = np.full((len(truth), 2), 128)
    truth = replace(truth, sizes=sizes, segments=make_segments(shapes))
    masks = [mask.frPyObjects([polygon(box)], 128, 128)[0] for box in detections.boxes.clip(0, 128).tolist()]
    detections = replace(detections, masks=masks)
    same(
        coco_scores(detections, truth, masks=True).values(), summary(pycocotools_evaluation(detections, truth, "segm"))
    )


def test_detections_of_which_there_are_none_score_zero(annotated):
    truth = annotated([(0, 0, 10, 10, 30, 30)])
    scores = coco_scores(found([]), truth)
    assert scores["AP"] == scores["AR100"] == 0
    assert scores["APl"] is None
    assert voc_scores(found([]), truth).scores["AP"] == 0


def federation(num_images, frequency, negatives=(), not_exhaustive=()):
    rest = [()] * num_images
    return Federation(tuple(frequency), tuple(negatives or rest), tuple(not_exhaustive or rest))


def test_of_a_class_lvis_counts_what_is_found_in_images_searched_for_it_alone(annotated):
    box = (10, 10, 30, 30)
    wrong = (60, 60, 90, 90)
    rows = [(0, 0, *box), (1, 1, *box), (2, 2, *box)]
    truth = annotated(rows, classes="abc")
    hits = [(0, 0, 0.5, *box), (1, 1, 0.5, *box), (2, 2, 0.5, *box)]
    misses = [(3, 0, 0.9, *wrong), (3, 1, 0.9, *wrong), (2, 2, 0.9, *wrong)]
    truth = replace(
        annotated(rows, classes="abc", num_images=4),
        # Image 3 was searched for class 0 only, and image 2 may show more of class 2 than it has boxes.
        federation=federation(4, "rcf", [(), (), (), (0,)], [(), (), (2,), ()]),
    )
    scores = lvis_scores(found(hits + misses), truth)
    assert list(scores) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
    assert scores["APr"] == pytest.approx(0.5)
    assert scores["APc"] == scores["APf"] == pytest.approx(1)
    assert scores["AP"] == pytest.approx(2.5 / 3)
    assert scores["APm"] is None


@pytest.mark.parametrize("seed", range(5))
def test_lvis_scores_equal_pycocotools_on_the_best_300_of_what_was_searched_for(annotated, seed):
    detections, truth = random_case(annotated, seed, num_images=2)
    truth = replace(truth, is_crowd=np.zeros_like(truth.is_crowd), federation=federation(2, "rfc", [(0, 1), (2,)]))
    many = np.random.default_rng(seed).integers(0, len(detections.scores), 900)
    detections = detections.subset(many)
    # Scores without ties, so that the cut is the same in any order.
    detections = replace(detections, scores=np.random.default_rng(seed).permutation(900) / 900)
    known = {(image, label) for image, labels in enumerate(truth.federation.negatives) for label in labels}
    known |= set(zip(truth.image.tolist(), truth.labels.tolist(), strict=True))
    rows = []
    for image in range(2):
        of_image = np.flatnonzero(detections.image == image)
        rows += of_image[np.argsort(-detections.scores[of_image])][:300].tolist()
    rows = [row for row in rows if (detections.image[row], detections.labels[row]) in known]
    evaluation = pycocotools_evaluation(detections.subset(np.array(rows)), truth, "bbox", [300])
    precision = evaluation.eval["precision"][:, :, :, :, 0]  # threshold, recall, class, area

    def mean(part):
        return part[part > -1].mean() if (part > -1).any() else None

    expected = [
        mean(precision[..., 0]),
        mean(precision[0, ..., 0]),
        mean(precision[5, ..., 0]),
        *(mean(precision[..., area]) for area in (1, 2, 3)),
        *(mean(precision[:, :, label, 0]) for label in (0, 2, 1)),
    ]
    same(lvis_scores(detections, truth).values(), expected)


def test_lvis_counts_300_detections_of_an_image_whatever_their_class(annotated):
    box = (10, 10, 30, 30)
    truth = annotated([(0, 0, *box), (0, 1, *box)], classes="ab", federation=federation(1, "rf"))
    others = [(0, 1, 0.9, *box)] * 299
    assert lvis_scores(found([*others, (0, 0, 0.1, *box)]), truth)["APr"] == pytest.approx(1)
    assert lvis_scores(found([*others, others[0], (0, 0, 0.1, *box)]), truth)["APr"] == 0


def test_the_best_of_an_image_are_taken_over_all_classes():
    rows = [(1, 0, 0.1, 0, 0, 1, 1), (0, 0, 0.2, 0, 0, 1, 1), (0, 1, 0.9, 0, 0, 2, 2), (0, 2, 0.5, 0, 0, 3, 3)]
    best = found(rows).best_of_image(2)
    assert best.image.tolist() == [0, 0, 1]
    assert best.scores.tolist() == [0.9, 0.5, 0.1]


def test_masks_are_not_compared_where_there_are_none(annotated):
    with pytest.raises(ValueError, match="masks of made cannot be compared"):
        coco_scores(found([]), annotated([(0, 0, 10, 10, 30, 30)]), masks=True)


def test_without_faster_coco_eval_one_line_says_what_to_install(annotated, monkeypatch):
    monkeypatch.setattr(PathFinder, "find_spec", lambda *_: None)
    monkeypatch.delitem(sys.modules, "faster_coco_eval", raising=False)
    with pytest.raises(ImportError, match=r'not installed: pip install "ssl-core\[detection\]"$'):
        coco_scores(found([]), annotated([(0, 0, 10, 10, 30, 30)]))
