import logging
from decimal import Decimal

import pytest

from ssl_core.data.labels import labels_of, ordered


@pytest.mark.parametrize(
    ("values", "labels", "classes"),
    [
        ([10, 2, 2], [1, 0, 0], ("2", "10")),
        (["b", "a", " b "], [1, 0, 1], ("a", "b")),
        (["10", "9", "1"], [2, 1, 0], ("1", "9", "10")),
        (["2", "b", "10"], [1, 2, 0], ("10", "2", "b")),
        ([1.0, float("nan"), 0.0, None], [1, -1, 0, -1], ("0", "1")),
        (["1.0", "", "0.0"], [1, -1, 0], ("0", "1")),
        ([Decimal("3.00"), Decimal("NaN")], [0, -1], ("3",)),
        ([1, "1", "0"], [1, 1, 0], ("0", "1")),
        ([True, False], [1, 0], ("False", "True")),
        ([b"dog", b"cat"], [1, 0], ("cat", "dog")),
        ([10**12, 10**12 + 1], [0, 1], ("1000000000000", "1000000000001")),
        ([-1, 0, 3], [-1, 0, 1], ("0", "3")),
        ([-1, -1], [-1, -1], None),
        ([None, None], [-1, -1], None),
        (["1.5", "v2"], [0, 1], ("1.5", "v2")),
    ],
    ids=repr,
)
def test_values_name_classes(values, labels, classes):
    found, names = labels_of(values, "here")
    assert (found.tolist(), names) == (labels, classes)


@pytest.mark.parametrize("value", [0.37, "0.37", [1, 2], {"a": 1}, b"\xff", 1e300], ids=repr)
def test_what_can_be_no_class_is_said_and_nothing_has_a_label(value, caplog):
    labels, classes = labels_of([1, value], "column 'label' of here")
    assert (labels.tolist(), classes) == ([-1, -1], None)
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert record.getMessage().startswith("column 'label' of here: ")
    assert "so there are no labels (data.label_column names another column)" in record.getMessage()


def test_numbers_stand_for_the_names_that_are_given(caplog):
    names = ("ape", "bee", "cat")
    assert labels_of([2, None, -1, 0], "here", names)[0].tolist() == [2, -1, -1, 0]
    assert labels_of([2, 0], "here", names)[1] == names
    assert labels_of([3], "here", names)[1] is None
    assert "3 is none of its 3 classes" in caplog.text


def test_the_images_without_a_label_are_counted(caplog):
    with caplog.at_level(logging.INFO):
        labels_of([None, 1, None], "here")
    assert caplog.messages == ["here: 2 of 3 images have no label"]


def test_classes_are_in_the_order_of_their_numbers_or_letters():
    assert ordered(["10", "9", "01"]) == ["01", "9", "10"]
    assert ordered(["b", "10", "9"]) == ["10", "9", "b"]
    assert ordered({"1", "01"}) == ["01", "1"]
