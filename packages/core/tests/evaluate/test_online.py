import logging

import pytest
from PIL import Image

from ssl_core.data import DataConfig, open_source
from ssl_core.evaluate import EvaluateConfig
from ssl_core.evaluate.online import fitting_knn


@pytest.fixture
def open_folder(tmp_path):
    """Opens a folder with three training images of each of two classes, and the files that are named besides."""

    def opened(names, **options):
        for name in [f"train/{label}/{number}.png" for label in ("a", "b") for number in range(3)] + names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
        data = DataConfig(str(tmp_path), workers=0, **options)
        return data, open_source(data)

    return opened


UNUSABLE = {
    "a flat test folder": (["val/1.png", "val/2.png"], 2, "2 of 2 test images have no label"),
    "a test image outside of the classes": (["val/a/1.png", "val/2.png"], 2, "1 of 2 test images have no label"),
    "a training image outside of the classes": (["train/x.png", "val/a/1.png"], 2, "1 of 7 training images have no"),
    "a class of the test images only": (["val/a/1.png", "val/c/1.png"], 2, r"not in .*train: \['c'\]"),
    "fewer images than k": (["val/a/1.png"], 7, "k 7 is more than the 6 labeled images of"),
    "a test folder without images": (["val/a/notes.md"], 2, "has no test split"),
    "no test folder": ([], 2, "has no test split"),
}


@pytest.mark.parametrize(("names", "k", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_knn_that_cannot_be_is_said_before_training_and_refused_where_it_was_asked_for(
    open_folder, names, k, reason, caplog
):
    data, train = open_folder(names)
    assert fitting_knn(data, EvaluateConfig(k=k), train, None) == (EvaluateConfig(k=k), None)
    assert "no kNN: " in caplog.text
    with pytest.raises(ValueError, match=f"no kNN can be computed: .*{reason}.*; evaluate.knn_every 0 trains without"):
        fitting_knn(data, EvaluateConfig(k=k, knn_every=1), train, None)
    caplog.clear()
    assert fitting_knn(data, EvaluateConfig(k=k, knn_every=0), train, None) == (EvaluateConfig(k=k, knn_every=0), None)
    assert caplog.text == ""


@pytest.mark.parametrize("given", ["data.source", "evaluate.temperature"])
@pytest.mark.parametrize("names", [names for names, k, _ in UNUSABLE.values() if k == 2])
def test_the_knn_of_a_recipe_gives_way_in_one_line(open_folder, names, given, caplog):
    data, train = open_folder(names)
    settings = EvaluateConfig(knn_every=10, k=2)
    assert fitting_knn(data, settings, train, None, {given}) == (EvaluateConfig(knn_every=None, k=2), None)
    (record,) = [record for record in caplog.records if "kNN" in record.message]
    assert record.message.startswith("no kNN: ")


@pytest.mark.parametrize("given", ["evaluate.knn_every", "evaluate.k", "evaluate"])
def test_a_knn_that_is_given_on_the_command_line_does_not_give_way(open_folder, given):
    data, train = open_folder([])
    with pytest.raises(ValueError, match=r"has no test split.*; evaluate.knn_every 0 trains without it"):
        fitting_knn(data, EvaluateConfig(knn_every=10, k=2), train, None, {"data.source", given})


@pytest.mark.parametrize(
    ("wanted", "left"), [(3, 3), (4, 3), (6, 3), (200, 3)], ids=["a class", "one more", "all", "more than there are"]
)
def test_of_more_neighbours_than_a_class_has_as_many_are_left(open_folder, wanted, left, caplog):
    data, train = open_folder(["val/a/1.png"])
    with caplog.at_level(logging.INFO):
        settings, sources = fitting_knn(data, EvaluateConfig(knn_every=1, k=wanted), train, None, {"data.source"})
    assert settings == EvaluateConfig(knn_every=1, k=left)
    assert sources is not None
    said = f"evaluate.k: {left} instead of {wanted}, as many as a class of {train.name} has images"
    assert (said in caplog.text) is (left < wanted)


def test_a_number_of_neighbours_that_is_given_does_not_give_way(open_folder):
    data, train = open_folder(["val/a/1.png"])
    with pytest.raises(ValueError, match="k 7 is more than the 6 labeled images"):
        fitting_knn(data, EvaluateConfig(k=7), train, None, {"evaluate.k"})


def test_a_test_source_asks_for_a_knn(open_folder, tmp_path):
    data, train = open_folder(["elsewhere/1.png"], test_source=str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="1 of 1 test images have no label"):
        fitting_knn(data, EvaluateConfig(k=2), train, None)
    fitting_knn(data, EvaluateConfig(k=2), train, None, {"data.source"})  # it was of a recipe's data


def test_which_images_the_knn_compares_is_said(open_folder, caplog):
    data, train = open_folder(["val/a/1.png", "test/b/1.png", "test/b/2.png"])
    with caplog.at_level(logging.INFO):
        fitting_knn(data, EvaluateConfig(k=2), train, None)
    assert "val tests what train trains; not read: test (data.test_source names another)" in caplog.text
    assert f"kNN: 1 images of {data.source}/val, among 6 of {data.source}/train" in caplog.text


@pytest.mark.parametrize("options", [{"k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}, {"knn_every": -1}])
def test_numbers_that_no_knn_can_have_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"evaluate\.{name}"):
        EvaluateConfig(**options)
