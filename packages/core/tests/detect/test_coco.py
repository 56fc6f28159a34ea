import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from ssl_core.detect.segments import encode_masks
from ssl_core.detect.sets import open_folder, open_set

A, B = (10, 20, 40, 60), (50, 50, 90, 95)
IMAGES = [[(2, A), (0, B)], [], [(1, B)]]
PARTS = {"train2017": IMAGES, "val2017": IMAGES}


def names(annotations):
    return [Path(path.decode()).name for path in annotations.paths]


def test_classes_are_in_the_order_of_the_file_and_images_in_that_of_their_ids(coco_folder):
    train, test = open_set("coco", coco_folder(PARTS))
    for part in (train, test):
        assert part.classes == ("red", "green", "blue")
        assert part.category_ids == (30, 20, 10)
        assert part.image_ids == (7, 14, 21)
        assert names(part) == ["2.png", "1.png", "0.png"]
        assert part.image.tolist() == [0, 2, 2]
        assert part.labels.tolist() == [1, 2, 0]
        assert part.boxes.tolist() == [list(B), list(A), list(B)]
        assert part.areas.tolist() == [40 * 45 - 1, 30 * 40 - 1, 40 * 45 - 1]
        assert part.segments is part.federation is None
    assert Path(test.paths[0].decode()).parent.name == "val2017"


def test_empty_images_and_crowds_are_not_trained_on_and_are_tested_on(coco_folder):
    def crowd(content):
        # The only object of the image "2.png".
        content["annotations"][2] |= {"iscrowd": 1, "segmentation": encode_masks(np.ones((1, 96, 96)))[0]}
        content["annotations"][2]["segmentation"]["counts"] = content["annotations"][2]["segmentation"][
            "counts"
        ].decode()

    train, test = open_set("coco", coco_folder(PARTS, change=crowd), masks=True)
    assert test.is_crowd.tolist() == [True, False, False]
    assert len(test) == 3
    training = train.training()
    assert names(training) == ["0.png"]
    assert training.image_ids == (21,)
    assert training.labels.tolist() == [2, 0]
    assert training.segments.segmentation(1) == [[50, 50, 90, 50, 90, 95, 50, 95]]
    assert test.segments.mask(0, (96, 96), (96, 96)).all()


def test_parts_of_an_own_folder_are_those_named_for_training_and_testing(coco_folder):
    train, test = open_folder(coco_folder({"training": IMAGES[:1], "valid": IMAGES}))
    assert (len(train), len(test)) == (1, 3)


def test_lvis_knows_what_each_image_was_searched_for(coco_folder):
    train, test = open_set("lvis", coco_folder(PARTS, frequency="rcf"))
    assert names(train) == ["2.png", "1.png", "0.png"]
    assert test.federation.frequency == ("r", "c", "f")
    assert test.federation.negatives == ((2,),) * 3
    assert test.federation.not_exhaustive == ((1,),) * 3
    assert train.training().federation.negatives == ((2,),) * 2


def test_images_of_lvis_are_found_by_their_addresses(coco_folder):
    def address(content):
        for image in content["images"]:
            name = image["file_name"].rpartition("_")[2]
            image |= {"file_name": "other.jpg", "coco_url": f"http://images.cocodataset.org/train2017/{name}"}

    _, test = open_set("lvis", coco_folder(PARTS, frequency="rcf", change=address))
    assert names(test) == ["2.png", "1.png", "0.png"]
    assert Path(test.paths[0].decode()).parent.name == "train2017"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda content: content["images"][0].update(neg_category_ids=[99]),
            "neg_category_ids names 99, .* none of its",
        ),
        (lambda content: content["images"][0].update(not_exhaustive_category_ids=None), "_ids of an image is no list"),
        (lambda content: content["categories"][0].update(frequency="x"), "frequency is 'x', none of r, c and f"),
        (lambda content: content["categories"][0].pop("frequency"), "train.json is no file of LVIS"),
    ],
)
def test_what_lvis_does_not_say_of_its_images_is_named(coco_folder, change, said):
    def changed(content):
        for image in content["images"]:  # found whatever the set is
            image["file_name"] = image["file_name"].rpartition("_")[2]
        change(content)

    with pytest.raises(ValueError, match=rf"lvis_v0.5_train.json.*{said}|{said}"):
        open_set("lvis", coco_folder(PARTS, frequency="rcf", change=changed))


def test_an_image_of_lvis_without_an_address_is_found_by_its_name(coco_folder):
    def nowhere(content):
        for image in content["images"]:
            image["coco_url"] = None

    assert len(open_set("lvis", coco_folder(PARTS, frequency="rcf", change=nowhere))[0]) == 3


def first(**fields):
    return lambda content: content["annotations"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (first(bbox=[10, 20, 0, 40]), r"annotation 1 \(10, 20, 0, 40\) is empty"),
        (first(bbox=[10, 20, -5, 40]), r"annotation 1 \(10, 20, -5, 40\) is empty"),
        (first(bbox=[10, 20, 90, 40]), r"annotation 1 \(10, 20, 90, 40\) is outside its image of 96 x 96"),
        (first(bbox=[-5, 20, 30, 40]), r"annotation 1 \(-5, 20, 30, 40\) is outside its image"),
        (first(bbox=[10, 20, 30]), r"annotation 1: its bbox \[10, 20, 30\] is not four numbers"),
        (first(bbox=["a", 20, 30, 4]), r"annotation 1: its bbox .* is not four numbers"),
        (first(category_id=99), r"annotation 1: its category_id 99 is none of the file's"),
        (first(image_id=99), r"annotation 1: its image_id 99 is none of the file's"),
        (first(segmentation=[]), r"annotation 1 has no polygon of three points: Mask R-CNN"),
        (first(segmentation=[[1, 2, 3, 4]]), r"annotation 1 has no polygon"),
        (first(segmentation={"size": [9, 9], "counts": [81]}), r"annotation 1 has runs of an image of size \[9, 9\]"),
        (first(segmentation={"size": [96, 96], "counts": [10**6]}), "annotation 1 has runs .* read .RLE counts exceed"),
        (lambda content: content["annotations"][0].pop("segmentation"), r"annotation 1 has no polygon"),
        (lambda content: content["annotations"][0].pop("bbox"), r"annotations has an entry without bbox"),
        (lambda content: content.pop("categories"), r"has no list of categories"),
        (lambda content: content["categories"].clear(), r"has no list of categories"),
        (lambda content: content["images"][0].pop("width"), r"images has an entry without width"),
        (
            lambda content: content["images"][0].update(width=None),
            r"images has an entry without width, or of another kind",
        ),
        (lambda content: content["images"][0].update(id="7"), r"images has numbers and texts as ids"),
        (lambda content: content["images"].append(1), r"images has an entry without id, or of another kind: 1"),
        (first(category_id=[1]), r"annotations has an entry without category_id, or of another kind"),
        (first(bbox=None), r"annotations has an entry without bbox, or of another kind"),
        (first(segmentation=[1, 2, 11, 2, 11, 14]), r"annotation 1 has no polygon"),
        (first(segmentation=5), r"annotation 1 has no polygon"),
        (first(segmentation=[[1, 2, 11, 2, 11, float("nan")]]), r"annotation 1 has no polygon"),
        (first(segmentation={"size": 96, "counts": [96 * 96]}), r"annotation 1 has runs of an image of size 96"),
        (first(segmentation={"size": [96, 96]}), r"annotation 1 has runs that cannot be read"),
        (first(segmentation={"size": [96, 96], "counts": ["a"]}), r"annotation 1 has runs that cannot be read"),
        (first(segmentation={"size": [96, 96], "counts": [5]}), r"cannot be read .*decoded 5 pixels but expected 9216"),
        (first(segmentation={"size": [96, 96], "counts": "é"}), r"annotation 1 has runs that cannot be read"),
        (first(area="large"), r"annotation 1: its area 'large' is not a number"),
        (first(iscrowd="0"), r"annotation 1: its iscrowd '0' is not 0 or 1"),
        (lambda content: content["images"][0].update(height=0), r"image 21 has 96 x 0 pixels; correct its size"),
        (lambda content: content["images"][0].update(width=float("nan")), r"image 21 has nan x 96 pixels"),
        (lambda content: content["images"][0].update(width=float("inf")), r"image 21 has inf x 96 pixels"),
        (lambda content: content["images"].append(content["images"][0]), r"images has entries of one id"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_named(coco_folder, change, said):
    with pytest.raises(ValueError, match=f"instances_train2017.json.*{said}|{said}"):
        open_set("coco", coco_folder(PARTS, change=change), masks=True)


def test_without_masks_no_shape_is_asked_for(coco_folder):
    def change(content):
        del content["annotations"][0]["segmentation"], content["annotations"][1]["iscrowd"]
        del content["annotations"][1]["area"]

    train, _ = open_set("coco", coco_folder(PARTS, change=change))
    assert len(train.labels) == 3
    assert train.areas.tolist()[2] == 40 * 45


def test_a_few_objects_that_cannot_be_used_are_left_out_and_said(coco_folder, caplog):
    with caplog.at_level(logging.WARNING):
        train, _ = open_set("coco", coco_folder(PARTS, change=first(bbox=[10, 20, 0, 40])), broken_limit=0.4)
    assert train.labels.tolist() == [1, 0]
    assert "left out 1 of 3 objects" in caplog.text


def test_a_listed_image_that_is_not_there_is_counted(coco_folder, caplog):
    folder = coco_folder(PARTS)
    (folder / "train2017" / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images that its lists name are not there: .*0\.png"):
        open_set("coco", folder)
    train, _ = open_set("coco", folder, broken_limit=0.4)
    assert names(train) == ["2.png", "1.png"]
    assert train.labels.tolist() == [1]


def test_a_box_may_exceed_its_image_by_a_pixel(coco_folder):
    train, _ = open_set("coco", coco_folder(PARTS, change=first(bbox=[-0.5, 20, 97.25, 40])))
    assert train.boxes[1].tolist() == [-0.5, 20, 96.75, 60]


def test_some_images_keep_their_objects_and_what_is_known_of_them(coco_folder):
    _, test = open_set("lvis", coco_folder(PARTS, frequency="rcf"), masks=True)
    some = test.subset(np.array([1, 2]))
    assert names(some) == ["1.png", "0.png"]
    assert some.image_ids == (14, 21)
    assert some.image.tolist() == [1, 1]
    assert some.boxes.tolist() == [list(A), list(B)]
    assert some.segments.segmentation(0) == [[10, 20, 40, 20, 40, 60, 10, 60]]
    assert some.federation.negatives == ((2,),) * 2


def test_parts_of_other_classes_are_refused(coco_folder):
    folder = coco_folder({"train2017": IMAGES})
    coco_folder({"val2017": IMAGES}, ("red", "green", "violet"))
    with pytest.raises(ValueError, match="have not the same classes in the same order: blue, violet"):
        open_set("coco", folder)


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        (
            lambda folder: (folder / "annotations/instances_val2017.json").unlink(),
            "instances_val2017.json is not there",
        ),
        (lambda folder: (folder / "annotations/instances_val2017.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "annotations/instances_val2017.json").write_text("[]"), "has no list of images"),
        (lambda folder: shutil.rmtree(folder / "val2017"), "val2017 is not there: it holds the images"),
    ],
)
def test_a_set_that_is_not_whole_is_named(coco_folder, break_, said):
    folder = coco_folder(PARTS)
    break_(folder)
    with pytest.raises((FileNotFoundError, ValueError), match=said):
        open_set("coco", folder)


def test_images_may_lie_in_folders_of_their_own(coco_folder):
    folder = coco_folder(PARTS)
    file = folder / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["file_name"] = f"../val2017/{image['file_name']}"
    file.write_text(json.dumps(content))
    assert len(open_set("coco", folder)[0]) == 3
