import logging

import pytest
from PIL import Image

from ssl_core.data import DataConfig, open_source
from ssl_core.evaluate import EvaluateConfig
from ssl_core.evaluate.online import knn_sources


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
    "fewer images than k": (["val/a/1.png"], 7, "k 7 is more than the 6 labelled images of"),
    "a test folder without images": (["val/a/notes.md"], 2, "has no test split"),
    "no test folder": ([], 2, "has no test split"),
}


@pytest.mark.parametrize(("names", "k", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_knn_that_cannot_be_is_said_before_training_and_refused_where_it_was_asked_for(
    open_folder, names, k, reason, caplog
):
    data, train = open_folder(names)
    assert knn_sources(data, EvaluateConfig(k=k), train, None) is None
    assert "no kNN at the end: " in caplog.text
    with pytest.raises(ValueError, match=f"no kNN can be computed: .*{reason}.*; evaluate.knn_every 0 trains without"):
        knn_sources(data, EvaluateConfig(k=k, knn_every=1), train, None)
    caplog.clear()
    assert knn_sources(data, EvaluateConfig(k=k, knn_every=0), train, None) is None
    assert caplog.text == ""


def test_a_test_source_asks_for_a_knn(open_folder, tmp_path):
    data, train = open_folder(["elsewhere/1.png"], test_source=str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="1 of 1 test images have no label"):
        knn_sources(data, EvaluateConfig(k=2), train, None)


def test_which_images_the_knn_compares_is_said(open_folder, caplog):
    data, train = open_folder(["val/a/1.png", "test/b/1.png", "test/b/2.png"])
    with caplog.at_level(logging.INFO):
        knn_sources(data, EvaluateConfig(k=2), train, None)
    assert "val tests what train trains; not read: test (data.test_source names another)" in caplog.text
    assert f"kNN: 1 images of {data.source}/val, among 6 of {data.source}/train" in caplog.text


@pytest.mark.parametrize("options", [{"k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}, {"knn_every": -1}])
def test_numbers_that_no_knn_can_have_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"evaluate\.{name}"):
        EvaluateConfig(**options)
