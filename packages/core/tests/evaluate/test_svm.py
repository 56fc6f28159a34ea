import numpy as np
import pytest

from ssl_core.evaluate.svm import (
    cross_validated_costs,
    drawn_for_all,
    drawn_for_each,
    fit_svms,
    unit_length,
)


def random_task(n=60, f=5, c=3, seed=0):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(n, f))
    labels = np.where(features @ generator.normal(size=(f, c)) + generator.normal(size=(n, c)) > 0.5, 1, -1)
    return features, labels


def test_features_are_divided_by_slightly_more_than_their_length():
    assert unit_length(np.array([[3.0, 4.0]], np.float32)) == pytest.approx(np.array([[3, 4]]) / 5.00001)
    assert unit_length(np.zeros((1, 2))).tolist() == [[0, 0]]


def test_a_fit_is_the_minimum_of_its_equation():
    features, labels = random_task()
    svms = fit_svms(features, labels, [0.5, 2.0, 0.5])
    assert svms.not_converged == 0
    for c, cost in enumerate((0.5, 2.0, 0.5)):
        y = labels[:, c]
        slack = np.maximum(0, 1 - y * svms.scores(features)[:, c]) * np.where(y == 1, 2, 1)
        assert svms.weights[c] == pytest.approx(2 * cost * (slack * y) @ features, abs=1e-2)
        assert svms.bias[c] == pytest.approx(2 * cost * (slack * y).sum(), abs=1e-2)


def test_images_of_label_0_are_left_out_of_their_class_alone():
    features, labels = random_task()
    labels[:20, 1] = 0
    svms, others = fit_svms(features, labels, [1.0] * 3), fit_svms(features[20:], labels[20:], [1.0] * 3)
    assert svms.weights[1].tolist() == others.weights[1].tolist()
    assert svms.weights[0].tolist() != others.weights[0].tolist()


def test_a_fit_that_stops_early_is_counted_and_not_warned_of(monkeypatch, recwarn):
    monkeypatch.setattr("ssl_core.evaluate.svm._MAX_ITERATIONS", 2)
    features, labels = random_task()
    assert fit_svms(features, labels, [1000.0] * 3).not_converged == 3
    assert not recwarn.list


def test_a_draw_has_so_many_positives_of_each_class_one_class_after_the_other():
    _, labels = random_task()
    labels[:9, 0] = 0
    rows = drawn_for_all(labels, 4, seed=0, draw=0)
    assert len(rows) == 12
    for c in range(3):
        own = rows[4 * c : 4 * c + 4]
        assert len(set(own)) == 4
        assert (labels[own, c] == 1).all()
    assert drawn_for_all(labels, 4, seed=0, draw=0).tolist() == rows.tolist()
    draws = {tuple(drawn_for_all(labels, 4, seed=seed, draw=draw)) for seed in (0, 1) for draw in range(5)}
    assert len(draws) == 10


def test_a_draw_of_its_own_has_nineteen_negatives_for_each_positive():
    _, labels = random_task(n=100)
    drawn = drawn_for_each(labels, 2, seed=0, draw=1)
    assert [(column == 1).sum() for column in drawn.T] == [2] * 3
    assert [(column == -1).sum() for column in drawn.T] == [38] * 3
    assert (drawn == labels)[drawn != 0].all()


def test_the_cost_of_each_class_is_the_best_of_its_folds():
    features, labels = random_task(n=90, seed=3)
    costs, not_converged = cross_validated_costs(features, labels, [1e-4, 1.0])
    assert not_converged == 0
    # Of two equal costs the first is taken.
    assert cross_validated_costs(features, labels, [1.0, 1.0])[0] == [1.0] * 3
    features[:, :] = 0
    assert cross_validated_costs(features, labels, [3.0, 1.0])[0] == [3.0] * 3
    assert set(costs) <= {1e-4, 1.0}
