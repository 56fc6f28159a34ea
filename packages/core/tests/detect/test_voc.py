import logging
from pathlib import Path

import numpy as np
import pytest

from ssl_core.detect.sets import open_folder, open_set

BCCD = Path(__file__).parents[5] / "shared/data/bccd"

A, B = (10, 20, 40, 60), (50, 50, 90, 95)
TRAIN = {"x": [(1, "dog", A, False), (0, "cat", B, True)], "y": [(0, "cat", A, False)]}
TEST = {"z": [(0, "cat", B, False), (1, "dog", A, True)], "empty": []}


def test_boxes_of_voc_are_read_by_their_edges_and_difficult_ones_are_marked(voc_folder):
    train, test = open_folder(voc_folder({"train": TRAIN, "test": TEST}))
    assert train.classes == test.classes == ("cat", "dog")
    assert train.sizes.tolist() == [[96, 96], [96, 96]]
    assert train.image.tolist() == [0, 0, 1]
    assert train.labels.tolist() == [1, 0, 0]
    assert train.boxes.tolist() == [list(A), list(B), list(A)]
    assert train.areas.tolist() == [30 * 40, 40 * 45, 30 * 40]
    assert [Path(path.decode()).name for path in train.paths] == ["x.png", "y.png"]
    assert test.is_difficult.tolist() == [False, True]


def test_difficult_objects_are_trained_on_and_images_without_objects_are_not(voc_folder):
    train, test = open_folder(voc_folder({"train": TRAIN | TEST, "test": TEST}))
    assert len(train) == 4
    training = train.training()
    assert [Path(path.decode()).stem for path in training.paths] == ["x", "y", "z"]
    assert len(training.labels) == 5
    assert len(test) == 2


@pytest.mark.parametrize(
    ("parts", "train", "test"),
    [
        (("train", "val"), "train", "val"),
        (("train", "val", "trainval", "test"), "trainval", "test"),
        (("train", "val", "test"), "train", "test"),
        (("train", "val", "trainval"), "train", "val"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_test_images_are_never_those_that_are_trained_on(voc_folder, parts, train, test):
    folder = voc_folder({part: TRAIN for part in parts})
    assert [part.name.split()[-1] for part in open_folder(folder)] == [train, test]


def test_voc0712_trains_on_both_years(voc_folder, tmp_path):
    def images(*names):
        return {name: [(0, "person", A, False)] for name in names}

    voc_folder({"trainval": images("a", "b"), "test": images("c")}, tmp_path / "VOCdevkit/VOC2007")
    voc_folder({"trainval": images("a", "d", "e")}, tmp_path / "VOCdevkit/VOC2012")
    train, test = open_set("voc0712", tmp_path)
    assert len(train.classes) == 20
    assert len(train) == 5
    assert train.image.tolist() == [0, 1, 2, 3, 4]
    assert train.labels.tolist() == [14] * 5
    assert [Path(path.decode()).parts[-3] for path in train.paths] == ["VOC2007"] * 2 + ["VOC2012"] * 3
    assert len(test) == 1


def rewrite(folder, name, old, new):
    file = folder / "Annotations" / f"{name}.xml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<xmax>40<", "<xmax>11<", r"x.xml: dog \(11, 21, 11, 60\) is empty"),
        ("<xmax>40<", "<xmax>9<", r"x.xml: dog \(11, 21, 9, 60\) is empty"),
        ("<xmax>40<", "<xmax>nan<", r"x.xml: <xmax> is 'nan', not a number"),
        ("<width>96<", "<width>inf<", r"x.xml: <width> is 'inf', not a number"),
        ("<difficult>0<", "<difficult>false<", r"x.xml: <difficult> is 'false', not a number"),
        ("<xmax>40<", "<xmax>98<", r"x.xml: dog \(11, 21, 98, 60\) is outside its image of 96 x 96"),
        ("<ymin>21<", "<ymin>-2<", r"is outside its image of 96 x 96"),
        ("<xmax>40<", "<xmax>forty<", r"x.xml: <xmax> is 'forty', not a number"),
        ("<xmax>40</xmax>", "", r"x.xml: <xmax> is None, not a number"),
        ("<width>96<", "<width>0<", r"x.xml has an image of 0 x 96 pixels"),
        ("<size>", "<length>", r"x.xml is not XML"),
        (
            "<annotation>",
            '<?xml version="1.0" encoding="gb2312"?><annotation>',
            r"x.xml is not XML .*multi-byte.* UTF-8",
        ),
        ("<annotation>", '<?xml version="1.0" encoding="none"?><annotation>', r"x.xml is not XML .*unknown encoding"),
        ("<name>dog<", "<name> <", r"x.xml: an object of class ''"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_named(voc_folder, old, new, said):
    folder = voc_folder({"train": TRAIN, "test": TEST})
    rewrite(folder, "x", old, new)
    with pytest.raises(ValueError, match=said):
        open_folder(folder)


def test_a_few_boxes_that_cannot_be_used_are_left_out_and_said(voc_folder, caplog):
    folder = voc_folder({"train": TRAIN, "test": {"empty": []}})
    rewrite(folder, "x", "<xmax>40<", "<xmax>11<")
    with caplog.at_level(logging.WARNING):
        train, _ = open_folder(folder, broken_limit=0.5)
    assert train.labels.tolist() == [0, 0]
    assert "left out 1 of 3 objects" in caplog.text
    assert "x.xml: dog (11, 21, 11, 60) is empty" in caplog.text


def test_a_box_counted_from_0_may_touch_the_edges_of_its_image(voc_folder):
    folder = voc_folder({"train": TRAIN, "test": TEST})
    rewrite(folder, "x", "<xmin>11<", "<xmin>0<")
    assert open_folder(folder)[0].boxes[0].tolist() == [-1, 20, 40, 60]


@pytest.mark.parametrize("new", ["", "<difficult></difficult>", "<difficult/>"])
def test_an_object_that_does_not_say_so_is_not_difficult(voc_folder, new):
    folder = voc_folder({"train": TRAIN, "test": TEST})
    rewrite(folder, "x", "<difficult>1</difficult>", new)
    assert not open_folder(folder)[0].is_difficult.any()


def test_a_class_of_testing_that_training_lacks_is_refused(voc_folder):
    folder = voc_folder({"train": TRAIN, "test": {"z": [(2, "cow", A, False)]}})
    with pytest.raises(ValueError, match=r"z.xml: an object of class 'cow', .* none of the 2 .* trained: cat, dog"):
        open_folder(folder)


def test_a_listed_image_that_is_not_there_is_counted(voc_folder, caplog):
    folder = voc_folder({"train": TRAIN, "test": {"empty": []}})
    (folder / "JPEGImages" / "x.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"set train: 1 of 2 images .* not there: JPEGImages/x"):
        open_folder(folder)
    train, _ = open_folder(folder, broken_limit=0.5)
    assert train.paths.tolist()[0].endswith(b"y.png")
    assert train.boxes.tolist() == [list(A)]
    assert "1 of 2 images" in caplog.text


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        (lambda folder: (folder / "ImageSets/Main/train.txt").unlink(), r"train.txt is not there: it names an image"),
        (lambda folder: (folder / "ImageSets/Main/test.txt").unlink(), r"val.txt is not there"),
        (lambda folder: (folder / "Annotations/y.xml").unlink(), r"y.xml is not there, and train.txt names it"),
        (lambda folder: (folder / "JPEGImages").rename(folder / "images"), r"JPEGImages is not there"),
        (lambda folder: (folder / "ImageSets/Main/train.txt").write_text("\n"), r"train.txt names no images"),
        (lambda folder: (folder / "ImageSets/Main/train.txt").write_text("x\ny\nx\n"), r"train.txt names x twice"),
        (lambda folder: (folder / "JPEGImages/x.jpg").touch(), r"x.png beside x.jpg"),
        (lambda folder: (folder / "Annotations").rename(folder / "xml"), r"in no layout that is read"),
    ],
)
def test_a_folder_that_is_not_whole_is_named(voc_folder, break_, said):
    folder = voc_folder({"train": TRAIN, "test": TEST})
    break_(folder)
    with pytest.raises((FileNotFoundError, ValueError), match=said):
        open_folder(folder)


def test_the_archive_that_has_a_missing_list_is_named(voc_folder, tmp_path):
    voc_folder({"trainval": {"a": [(0, "person", A, False)]}}, tmp_path / "VOCdevkit/VOC2007")
    with pytest.raises(FileNotFoundError, match=r"VOC2012.*trainval.txt is not there: VOCtrainval_11-May-2012.tar"):
        open_set("voc0712", tmp_path)


def test_masks_are_refused_where_there_are_only_boxes(voc_folder):
    with pytest.raises(ValueError, match="whose boxes have no shapes: choose a protocol without masks"):
        open_folder(voc_folder({"train": TRAIN, "test": TEST}), masks=True)


@pytest.mark.skipif(not BCCD.is_dir(), reason="needs ../shared/data/bccd")
def test_blood_cells_lack_the_two_boxes_without_area(caplog):
    with caplog.at_level(logging.WARNING):
        train, test = open_folder(BCCD)
    assert (len(train), len(test)) == (292, 72)
    assert train.classes == ("Platelets", "RBC", "WBC")
    assert len(train.labels) + len(test.labels) == 4888 - 2
    assert "BloodImage_00338.xml: RBC (504, 337, 504, 337) is empty" in caplog.text
    assert np.bincount(test.labels).min() > 0
