import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ssl_core.evaluate import inter_class_similarity, intra_class_similarity
from ssl_core.testing import DOUBLE


def brute_force(features, labels):
    """Mean cosine within classes (of their means) and between classes (of all pairs), pair by pair."""
    unit = F.normalize(features.double(), dim=1)
    within, between = {}, []
    for i in range(len(unit)):
        for j in range(len(unit)):
            cosine = (unit[i] @ unit[j]).item()
            if labels[i] != labels[j]:
                between.append(cosine)
            elif i != j:
                within.setdefault(int(labels[i]), []).append(cosine)
    means = [math.fsum(cosines) / len(cosines) for cosines in within.values()]
    return (
        math.fsum(means) / len(means) if means else None,
        math.fsum(between) / len(between) if between else None,
    )


# Class 0: cosines 0.6 of the first pair, 0 of the second, 0.8 of the third; class 1: -1. Lengths do not matter.
FEATURES = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 0.5], [0.0, 7.0], [0.0, -1.0]])
LABELS = torch.tensor([0, 0, 0, 1, 1])


def test_intra_class_similarity_is_the_hand_worked_value():
    # Class 0: (0.6 + 0 + 0.8) / 3; class 1: -1; each class counts the same.
    expected = (1.4 / 3 - 1) / 2
    assert intra_class_similarity(FEATURES, LABELS, 2) == pytest.approx(expected, abs=DOUBLE)


def test_inter_class_similarity_is_the_hand_worked_value():
    # The rows of class 0 with (0, 1): 0, 0.8, 1; with (0, -1) their negatives. Without the last row: 1.8 / 3.
    assert inter_class_similarity(FEATURES, LABELS, 2) == pytest.approx(0, abs=DOUBLE)
    assert inter_class_similarity(FEATURES[:4], LABELS[:4], 2) == pytest.approx(0.6, abs=DOUBLE)


@given(
    num_images=st.integers(2, 30),
    num_classes=st.integers(1, 6),
    length=st.integers(1, 9),
    zeros=st.floats(0, 0.5),
    seed=st.integers(0, 2**31),
)
def test_both_equal_brute_force_over_all_pairs(num_images, num_classes, length, zeros, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_images, length, generator=generator)
    features[torch.rand(num_images, generator=generator) < zeros] = 0
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    intra, inter = brute_force(features, labels)
    for expected, similarity in ((intra, intra_class_similarity), (inter, inter_class_similarity)):
        if expected is None:
            with pytest.raises(ValueError, match="test images"):
                similarity(features, labels, num_classes)
        else:
            assert similarity(features, labels, num_classes) == pytest.approx(expected, abs=DOUBLE)


def test_more_rows_than_a_block_change_nothing(monkeypatch):
    features, labels = torch.randn(23, 5), torch.randint(4, (23,))
    whole = intra_class_similarity(features, labels, 4), inter_class_similarity(features, labels, 4)
    monkeypatch.setattr("ssl_core.evaluate.similarity._ROWS", 7)
    blocks = intra_class_similarity(features, labels, 4), inter_class_similarity(features, labels, 4)
    assert blocks == pytest.approx(whole, abs=DOUBLE)


def test_a_class_of_one_image_and_an_empty_one_do_not_count():
    with_one = torch.cat([FEATURES, torch.tensor([[1.0, 1.0]])]), torch.cat([LABELS, torch.tensor([3])])
    assert intra_class_similarity(*with_one, 5) == intra_class_similarity(FEATURES, LABELS, 2)


def test_duplicates_have_similarity_one():
    features = torch.tensor([[1.0, 2.0, 3.0]]).repeat(4, 1)
    labels = torch.tensor([0, 0, 1, 1])
    assert intra_class_similarity(features, labels, 2) == pytest.approx(1, abs=DOUBLE)
    assert inter_class_similarity(features, labels, 2) == pytest.approx(1, abs=DOUBLE)


def test_a_zero_row_has_similarity_zero_with_everything():
    # Of three pairs one is alike.
    features = torch.tensor([[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]])
    assert intra_class_similarity(features, torch.tensor([0, 0, 0]), 1) == pytest.approx(1 / 3, abs=DOUBLE)
    assert intra_class_similarity(torch.zeros(3, 2), torch.tensor([0, 0, 0]), 1) == 0


def test_half_precision_is_accepted():
    features = torch.randn(8, 4).bfloat16()
    labels = torch.tensor([0, 1] * 4)
    assert intra_class_similarity(features, labels, 2) == intra_class_similarity(features.float(), labels, 2)


def test_missing_labels_are_counted_and_refused():
    for similarity in (intra_class_similarity, inter_class_similarity):
        with pytest.raises(ValueError, match="2 of 3 test images have no label"):
            similarity(torch.eye(3), torch.tensor([0, -1, -1]), 1)
        with pytest.raises(ValueError, match="label 2, but there are 2 classes"):
            similarity(torch.eye(3), torch.tensor([0, 1, 2]), 2)


def test_images_without_a_pair_are_refused():
    with pytest.raises(ValueError, match="no class has two of the 3 test images"):
        intra_class_similarity(torch.eye(3), torch.tensor([0, 1, 2]), 3)
    with pytest.raises(ValueError, match="the 3 test images are all of one class"):
        inter_class_similarity(torch.eye(3), torch.tensor([1, 1, 1]), 3)
