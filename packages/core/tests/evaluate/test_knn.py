import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_core.evaluate import Features, knn_accuracy, knn_ranks, knn_votes, label_ranks, nearest
from ssl_core.evaluate.knn import _ordering_keys
from ssl_core.testing import ROUNDING, SINGLE


def brute_force(train, train_labels, test, k, temperature, num_classes):
    """Scores over the whole similarity matrix in float64, neighbours in a stable order."""
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    similarity = test @ train.T
    scores = np.zeros((len(test), num_classes))
    for row, neighbours in enumerate(np.argsort(-similarity, axis=1, kind="stable")[:, :k]):
        for neighbour in neighbours:
            scores[row, train_labels[neighbour]] += math.exp(similarity[row, neighbour] / temperature)
    return scores / scores.sum(axis=1, keepdims=True)


def test_votes_are_the_hand_worked_value():
    # Cosines of the test image (1, 0) with the bank: 1, 0.6, 0, -1. Of k = 3 neighbours, class 0 has the
    # first and class 1 the next two, so with T = 0.5 the votes are e^2 : e^1.2 + e^0.
    bank = torch.tensor([[-2.0, 0.0], [3.0, 0.0], [0.6, 0.8], [0.0, 5.0]])
    labels = torch.tensor([0, 0, 1, 1])
    votes = knn_votes(Features(bank, labels), torch.tensor([[0.5, 0.0]]), k=3, temperature=0.5, num_classes=2)
    zero, one = math.exp(2), math.exp(1.2) + 1
    expected = torch.tensor([[zero, one]], dtype=torch.float64) / (zero + one)
    torch.testing.assert_close(votes, expected, rtol=SINGLE, atol=0)


def test_a_temperature_decides_between_one_close_and_two_farther_neighbours():
    # Cosines 1, 0.6, 0.6: at T = 2, e^0.5 < 2 e^0.3; at T = 0.1, e^10 > 2 e^6.
    bank = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
    train = Features(bank, torch.tensor([0, 1, 1]))
    test = Features(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert knn_accuracy(train, test, k=3, temperature=0.1, num_classes=2) == 1
    assert knn_accuracy(train, test, k=3, temperature=2.0, num_classes=2) == 0


@pytest.mark.parametrize("k", [1, 5, 37, 83], ids=["one", "few", "prime", "all"])
def test_votes_equal_brute_force(k):
    train, test, labels = torch.randn(83, 7), torch.randn(29, 7), torch.randint(0, 5, (83,))
    votes = knn_votes(Features(train, labels), test, k=k, temperature=0.1, num_classes=5)
    expected = brute_force(train.double().numpy(), labels.numpy(), test.double().numpy(), k, 0.1, 5)
    # Cosines of 7 numbers are off by 7 + 4 roundings, votes by ten times that, above and below the line of a share.
    np.testing.assert_allclose(votes.numpy(), expected, rtol=2 * 10 * (7 + 4) * ROUNDING)


@pytest.mark.parametrize(("rows", "columns"), [(29, 83), (1, 1), (7, 13), (4, 82), (100, 100)])
def test_blocks_change_nothing(rows, columns):
    train, test = torch.randn(83, 7), torch.randn(29, 7)
    similarity, index = nearest(train, test, 11, rows=rows, columns=columns)
    whole = F.normalize(test) @ F.normalize(train).T
    expected, order = whole.sort(dim=1, descending=True)
    torch.testing.assert_close(similarity, expected[:, :11])
    assert torch.equal(index, order[:, :11])


def test_no_matrix_of_test_by_train_is_held(monkeypatch):
    largest = 0
    topk = torch.Tensor.topk

    def spy(keys, *args, **kwargs):
        nonlocal largest
        largest = max(largest, keys.numel())
        return topk(keys, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "topk", spy)
    nearest(torch.randn(500, 3), torch.randn(200, 3), 5, rows=16, columns=32)
    assert largest <= 16 * (32 + 5)


@pytest.mark.parametrize("columns", [1, 2, 3, 9])
def test_among_equal_neighbours_the_lower_index_comes_first(columns):
    # Positive, zero and negative ties, and one zero of each sign.
    bank = torch.tensor([[-1.0, 0.0], [0.0, 2.0], [1.0, 0.0], [-0.0, -1.0], [-3.0, 0.0], [5.0, 0.0], [0.0, 1.0]])
    similarity, index = nearest(bank, torch.tensor([[1.0, 0.0]]), 7, columns=columns)
    assert index.tolist() == [[2, 5, 1, 3, 6, 0, 4]]
    assert similarity.tolist() == [[1, 1, 0, 0, 0, -1, -1]]


def test_the_two_zeros_are_one_similarity():
    keys = _ordering_keys(torch.tensor([[-0.0, 0.0, -0.0]]), 0)
    assert keys.argsort(dim=1, descending=True).tolist() == [[0, 1, 2]]


def test_a_tie_between_classes_goes_to_the_lower_class():
    bank = Features(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([1, 0]))
    ranks = knn_ranks(bank, Features(torch.tensor([[1.0, 0.0]]), torch.tensor([0])), k=2, num_classes=3)
    assert ranks.tolist() == [0]


def test_a_class_without_votes_is_never_a_hit():
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    ranks = knn_ranks(Features(bank, torch.tensor([3, 4])), Features(bank, torch.tensor([0, 4])), k=1, num_classes=5)
    assert ranks.tolist() == [5, 0]


def test_a_small_temperature_does_not_overflow():
    bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    votes = knn_votes(Features(bank, labels), bank, k=3, temperature=1e-4, num_classes=3)
    torch.testing.assert_close(votes, torch.eye(3, dtype=torch.float64))


def test_k_beyond_the_bank_is_refused_with_the_size_of_the_bank():
    bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"k is 200, but there are 3 images .* k in \[1, 3\]"):
        knn_votes(Features(bank, labels), bank, k=200, num_classes=3)


def test_a_temperature_of_zero_is_refused():
    bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="temperature must be positive, not 0"):
        knn_votes(Features(bank, labels), bank, k=1, temperature=0.0, num_classes=3)


def test_missing_labels_are_counted_and_refused():
    whole, gaps = (Features(torch.eye(3), torch.tensor(labels)) for labels in ([0, 1, 2], [0, -1, -1]))
    with pytest.raises(ValueError, match="2 of 3 training images have no label"):
        knn_accuracy(gaps, whole, k=1, num_classes=3)
    with pytest.raises(ValueError, match="2 of 3 test images have no label"):
        knn_accuracy(whole, gaps, k=1, num_classes=3)
    with pytest.raises(ValueError, match="label 2, but there are 2 classes"):
        knn_accuracy(whole, whole, k=1, num_classes=2)


def test_a_score_that_is_not_a_number_is_a_miss():
    scores = torch.tensor([[math.nan, 0.0, 1.0], [0.0, 1.0, 2.0]])
    assert label_ranks(scores, torch.tensor([0, 2])).tolist() == [3, 0]
