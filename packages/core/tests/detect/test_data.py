import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_core.data.pixels import BrokenImageError
from ssl_core.detect.data import (
    DetectionBatches,
    boxes_in_image,
    evaluation_batches,
    repeat_factors,
    resized,
)
from ssl_core.detect.sets import open_set
from ssl_core.train.loop import BatchSource

SQUARE, TALL = (8, 16, 40, 48), (48, 8, 80, 88)
IMAGES = [[(0, SQUARE)], [(1, TALL), (2, SQUARE)], [], [(2, TALL)], [(0, TALL)]]
COLORS = torch.eye(3)  # of the three classes


@pytest.fixture
def train(coco_folder):
    return open_set("coco", coco_folder({"train2017": IMAGES, "val2017": IMAGES}), masks=True)[0]


make = partial(
    DetectionBatches,
    batch_size=2,
    seed=1,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    short_sides=(96,),
    max_size=200,
    masks=True,
)
whole = partial(evaluation_batches, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), short_side=96, max_size=200)


def rows(batches, epochs, start=0):
    """Number, size and boxes of each image, over some epochs."""
    found = []
    for epoch in epochs:
        for batch in batches.epoch(epoch, start):
            _, sizes, objects, *_ = batch.views
            for place, index in enumerate(batch.index.tolist()):
                boxes = objects[objects[:, 0] == place, 1:].tolist()
                found.append((index, tuple(sizes[place].tolist()), tuple(map(tuple, boxes))))
    return found


def test_a_batch_has_pixels_sizes_objects_and_masks(train):
    for batch in make(train, short_sides=(48, 96, 144)).epoch(0):
        pixels, sizes, objects, masks = batch.views
        height, width = sizes.max(dim=0).values.tolist()
        assert pixels.shape == (2, 3, height, width)
        assert pixels.dtype == objects.dtype == torch.float32
        assert sizes.dtype == torch.int64
        assert masks.shape == (len(objects), height, width)
        assert masks.dtype == torch.uint8
        assert len(objects) == sum(len(IMAGES[4 - index]) for index in batch.index.tolist())
        for (place, label, *box), mask in zip(objects.tolist(), masks, strict=True):
            x1, y1, x2, y2 = map(round, box)
            # Boxes, masks and pixels agree: the rectangle has the color of its class, and ends where they end.
            inside = pixels[int(place), :, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1]
            assert (inside - COLORS[int(label)][:, None, None]).abs().max() < 1e-4
            assert pixels[int(place), :, y1:y2, x2 + 1 : x2 + 3].max() < 1e-4
            expected = torch.zeros_like(mask)
            expected[y1:y2, x1:x2] = 1
            assert torch.equal(mask, expected)


def test_what_an_image_lacks_of_its_batch_is_zero(train):
    batches = make(train, short_sides=(40, 80), mean=(0.5, 0.5, 0.5))
    seen = set()
    for batch in itertools.chain.from_iterable(batches.epoch(epoch) for epoch in range(6)):
        pixels, sizes, _, masks = batch.views
        assert masks.shape[1:] == pixels.shape[2:]
        largest = sizes.max().item()
        assert pixels.shape[2:] == (largest, largest)
        for image, (height, width) in zip(pixels, sizes.tolist(), strict=True):
            seen.add((height, largest))
            assert image[:, height:].abs().sum() == image[:, :, width:].abs().sum() == 0
            assert image[:, :height, :width].min() == -0.5
    assert (40, 80) in seen


def test_an_image_without_objects_and_a_batch_of_them_work(train):
    alone = train.subset(np.array([2]))
    batch = next(make(alone).epoch(0))
    assert batch.views[2].shape == (0, 6)
    assert batch.views[3].shape == (0, 96, 96)


def test_half_of_the_images_are_flipped_and_all_sizes_are_taken(train):
    batches = make(train.training(), short_sides=(48, 64, 96), masks=False)
    found = rows(batches, range(60))
    sizes = [size for _, size, _ in found]
    counts = [sizes.count((side, side)) / len(sizes) for side in (48, 64, 96)]
    assert counts == pytest.approx([1 / 3] * 3, abs=0.08)
    # The wide side of the room beside a box is at the right, and after a flip at the left.
    flipped = [boxes[0][1] * 96 / size[0] > 40 for index, size, boxes in found if index == 3]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.12)
    sizes = [size for index, size, _ in found if index == 3]
    assert len(set(zip(sizes, flipped, strict=True))) == 6


def test_in_a_round_every_image_is_once_and_none_is_left_out(train):
    batches = make(train, masks=False)
    assert isinstance(batches, BatchSource)
    assert batches.batches_per_epoch == 2
    # Five epochs of four images are four rounds of five.
    images = [index for index, *_ in rows(batches, range(5))]
    rounds = [images[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(each) == [0, 1, 2, 3, 4] for each in rounds)
    assert len(set(map(tuple, rounds))) > 1


def test_more_images_in_a_batch_than_there_are_come_from_several_rounds(train):
    batches = make(train, batch_size=12, masks=False)
    assert batches.batches_per_epoch == 1
    counts = np.bincount([index for index, *_ in rows(batches, [0])])
    assert sorted(counts) == [2, 2, 2, 3, 3]


@pytest.mark.parametrize("threshold", [None, 0.6], ids=["once", "repeated"])
def test_batches_do_not_depend_on_where_an_epoch_is_entered(train, threshold):
    arguments = {"short_sides": (48, 96), "masks": False, "repeat_threshold": threshold}
    expected = rows(make(train, **arguments), range(6))
    steps = make(train, **arguments).batches_per_epoch
    assert rows(make(train, **arguments), [3], start=1) == expected[2 * (3 * steps + 1) : 2 * 4 * steps]
    assert rows(make(train, **arguments), [5, 0]) == expected[2 * 5 * steps :] + expected[: 2 * steps]


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_images_of_one(train, world_size):
    arguments = {"batch_size": 4, "short_sides": (48, 96), "masks": False}
    expected = rows(make(train, **arguments), range(3))
    parts = [
        [
            rows_of
            for epoch in range(3)
            for rows_of in make(train, **arguments, world_size=world_size, rank=rank).epoch(epoch)
        ]
        for rank in range(world_size)
    ]
    found = [index for each in zip(*parts, strict=True) for batch in each for index in batch.index.tolist()]
    assert found == [index for index, *_ in expected]
    ranks = [rows(make(train, **arguments, world_size=world_size, rank=rank), range(3)) for rank in range(world_size)]
    assert sorted(itertools.chain.from_iterable(ranks)) == sorted(expected)


def test_workers_make_the_same_batches(train):
    here, there = (next(make(train, short_sides=(48, 96), workers=workers).epoch(0)) for workers in (0, 1))
    assert torch.equal(here.index, there.index)
    for one, other in zip(here.views, there.views, strict=True):
        assert torch.equal(one, other)


def test_an_epoch_that_was_left_is_not_continued(train):
    batches = make(train, batch_size=1, masks=False)
    first = batches.epoch(0)
    next(first)
    next(batches.epoch(1))
    with pytest.raises(RuntimeError, match="epoch 0 was left for another"):
        next(first)


def test_repeat_factors_are_those_of_an_images_rarest_class(annotated):
    box = (0, 0, 9, 9)
    # Class 0 is in 4 of 4 images, class 1 in 2, class 2 in 1 (twice); class 3 in none.
    rows = [
        (0, 0, *box),
        (1, 0, *box),
        (1, 1, *box),
        (2, 0, *box),
        (2, 1, *box),
        (2, 2, *box),
        (2, 2, *box),
        (3, 0, *box),
    ]
    factors = repeat_factors(annotated(rows, classes="abcd"), 1.0)
    assert factors.tolist() == pytest.approx([1, np.sqrt(2), 2, 1])
    assert repeat_factors(annotated(rows, classes="abcd"), 0.001).tolist() == [1] * 4


def test_an_image_is_repeated_as_often_as_its_factor_says(train):
    images = train.training()
    # Of four images one alone shows class 1: sqrt(0.5 / 0.25). The other classes are in half of them.
    assert repeat_factors(images, 0.5).tolist() == pytest.approx([1, 1, np.sqrt(2), 1])
    batches = make(images, batch_size=1, masks=False, repeat_threshold=0.5)
    assert batches.batches_per_epoch == 4
    counts = np.bincount([index for index, *_ in rows(batches, range(30))])
    assert np.ptp(counts[[0, 1, 3]]) <= 1
    assert counts[2] / counts[0] == pytest.approx(np.sqrt(2), abs=0.15)


def test_copies_of_an_image_in_a_round_differ_in_size_and_flip(train):
    images = train.training()
    assert repeat_factors(images, 1.0)[2] == 2
    batches = make(images, batch_size=1, masks=False, repeat_threshold=1.0, short_sides=(32, 48, 64, 80, 96))
    twice = [row[1:] for row in rows(batches, range(20)) if row[0] == 2]
    # Two draws differ in 9 of 10. The last round may not be whole.
    assert np.mean([one != other for one, other in zip(twice[::2], twice[1::2], strict=False)]) > 0.7


def test_every_test_image_is_read_once_whatever_the_number_of_processes(train):
    alone = list(whole(train))
    assert [batch.index.tolist() for batch in alone] == [[0], [1], [2], [3], [4]]
    shares = [list(whole(train, rank=rank, world_size=3)) for rank in range(3)]
    assert [[batch.index.tolist() for batch in share] for share in shares] == [[[0], [3]], [[1], [4]], [[2]]]
    pixels, sizes, objects = alone[4].views
    assert sizes.tolist() == [[96, 96]]
    assert objects.tolist() == [[0, 0, *SQUARE]]
    assert torch.allclose(pixels[0, :, 30, 20], COLORS[0])
    assert list(whole(train.subset(np.array([0])), rank=1, world_size=2)) == []


def test_boxes_go_to_the_resized_image_and_back(train, coco_folder, tmp_path):
    index = train.paths.tolist().index(next(path for path in train.paths if path.endswith(b"0.png")))
    (batch,) = whole(train.subset(np.array([index])), short_side=60)
    size = tuple(batch.views[1][0].tolist())
    assert size == (60, 60)
    assert batch.views[2][0, 2:].tolist() == pytest.approx([side * 60 / 96 for side in SQUARE])
    boxes = boxes_in_image(batch.views[2][:, 2:], size, (96, 96))
    assert boxes[0].tolist() == pytest.approx(SQUARE, abs=1e-4)
    beyond = boxes_in_image(torch.tensor([[-3.0, 10, 70, 80]]), (60, 120), (30, 40))
    assert beyond.tolist() == [[0, 5, pytest.approx(70 / 3), 30]]


def test_a_box_that_exceeds_its_image_is_cut(train):
    boxes = train.boxes.copy()
    boxes[0] = [-0.5, 10, 96.5, 40]
    batch = next(whole(replace(train, boxes=boxes)))
    assert batch.views[2][0, 2:].tolist() == [0, 10, 96, 40]


@pytest.mark.parametrize(
    ("height", "width", "short_side", "max_size", "expected"),
    [
        (480, 640, 800, 1333, (800, 1067)),
        (640, 480, 800, 1333, (1067, 800)),
        (375, 500, 480, 1333, (480, 640)),
        (100, 1000, 800, 1333, (133, 1333)),
        (1, 5000, 800, 1333, (1, 1333)),
    ],
)
def test_the_shorter_side_gets_its_length_unless_the_longer_is_too_long(height, width, short_side, max_size, expected):
    assert resized(height, width, short_side, max_size) == expected


def spoil(train, place, size=(96, 90)):
    Image.new("RGB", size[::-1]).save(Path(train.paths[place].decode()))


def test_a_broken_image_is_replaced_with_its_objects_by_the_next(train, caplog):
    spoil(train, 3)
    batches = make(train, masks=False, batch_size=5, broken_limit=0.3, seed=3)
    found = dict((index, boxes) for index, _, boxes in rows(batches, [0]))
    assert len(found[3]) == len(found[4]) == 1
    assert {box[0] for box in found[3]} == {0.0}  # the class of the only object of image 4
    assert "90 x 96 pixels, but its boxes are of an image of 96 x 96" in caplog.text


def test_too_many_broken_images_are_refused(train):
    for place in (0, 1):
        spoil(train, place)
    with pytest.raises(ValueError, match=r"2 of 5 images .* more than data.broken_limit 0.2"):
        list(make(train, batch_size=5, broken_limit=0.2, masks=False).epoch(0))


def test_a_broken_test_image_is_named(train):
    spoil(train, 1)
    with pytest.raises(BrokenImageError, match="90 x 96 pixels, but its boxes are of an image of 96 x 96"):
        list(whole(train))


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (lambda train: train.subset(np.array([], int)), {}, "has no image with an object"),
        (lambda train: replace(train, segments=None), {}, "has no shapes, which masks are made of"),
        (lambda train: train, {"world_size": 3}, "2 cannot be shared equally by 3 processes: take 3, or start 2"),
        (lambda train: train, {"workers": -1}, "data.workers must be at least 0"),
    ],
)
def test_what_cannot_be_batched_is_refused(train, change, arguments, said):
    with pytest.raises(ValueError, match=said):
        make(change(train), **arguments)
