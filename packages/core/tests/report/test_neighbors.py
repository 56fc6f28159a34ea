import dataclasses

import torch

from ssl_core.report.look import Look, Part
from ssl_core.report.neighbors import choose_queries, neighbors


def part(labels, features, name="part"):
    pixels = torch.zeros(len(labels), 3, 8, 8)
    return Part(
        name,
        len(labels),
        [f"{name}-{index}.png" for index in range(len(labels))],
        torch.tensor(labels),
        pixels,
        {"one": torch.tensor(features)},
    )


BANK = part([0, 1, -1, 0], [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]], "bank")


def test_frames_tell_whether_the_classes_agree():
    test = part([1, 0], [[0.0, 1.0], [1.0, 0.1]], "test")
    rows = neighbors(Look(BANK, test, ("cat", "dog"), ["one"]))
    assert [query["alt"] for query, _ in rows] == ["cat: test-1.png", "dog: test-0.png"]  # of each class in turn
    kinds = [[image["kind"] for image in block] for _, (block,) in rows]
    assert kinds == [["same", "same", "", "other"], ["same", "", "other", "other"]]
    assert [image["alt"] for image in rows[1][1][0]] == [
        "dog: bank-1.png",
        "bank-2.png",
        "cat: bank-3.png",
        "cat: bank-0.png",
    ]


def test_an_image_is_not_its_own_neighbor_where_there_is_no_test_split():
    rows = neighbors(Look(BANK, BANK, None, ["one"]))
    assert len(rows) == 3  # with a label
    for query, (block,) in rows:
        assert query["alt"] not in [image["alt"] for image in block]
        assert len(block) == 3


def test_images_without_labels_have_no_kind():
    unlabelled = dataclasses.replace(BANK, labels=torch.full((4,), -1))
    rows = neighbors(Look(unlabelled, unlabelled, None, ["one"]))
    assert len(rows) == 4
    assert {image["kind"] for _, (block,) in rows for image in block} == {""}


def test_queries_are_the_first_of_each_class_then_the_second():
    labels = torch.tensor([1, 1, 0, -1, 2, 0, 1])
    assert choose_queries(labels, 3) == [2, 0, 4]
    assert choose_queries(labels, 99) == [2, 0, 4, 5, 1, 6]


def test_queries_without_labels_are_evenly_spaced():
    assert choose_queries(torch.full((9,), -1), 3) == [0, 4, 8]
    assert choose_queries(torch.full((2,), -1), 3) == [0, 1]
