import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve

from ssl_core.evaluate.average_precision import (
    average_precision,
    mean_average_precision,
    ranked_average_precision,
)

INTERPOLATIONS = ("11-point", "area", "none")


def of_ranking(labels, interpolation, **options):
    """Labels in the order of their rank."""
    return average_precision(-np.arange(len(labels), dtype=float), np.array(labels), interpolation, **options)


@pytest.mark.parametrize(
    ("labels", "eleven_points", "area"),
    [
        # Precision 1, 2/3, 3/6 from recall 1/3, 2/3, 3/3 on: 4, 3 and 4 of the 11 recalls.
        ([1, -1, -1, 1, -1, 1], (4 + 3 / 2 + 4 / 2) / 11, (1 + 1 / 2 + 1 / 2) / 3),
        ([1, -1, 0, 1, -1, 1], (4 + 3 * 2 / 3 + 4 * 3 / 5) / 11, (1 + 2 / 3 + 3 / 5) / 3),
        # 4 positives at precision 1, 2/3, 3/4, 4/6.
        ([1, -1, 1, 1, -1, 1], (3 + 5 * 3 / 4 + 3 * 2 / 3) / 11, (1 + 3 / 4 + 3 / 4 + 2 / 3) / 4),
    ],
    ids=["difficult is negative", "difficult is left out", "difficult is positive"],
)
def test_values_worked_by_hand(labels, eleven_points, area):
    assert of_ranking(labels, "11-point") == pytest.approx(eleven_points, abs=1e-15)
    assert of_ranking(labels, "area") == pytest.approx(area, abs=1e-15)


def test_a_detector_that_misses_boxes_has_their_recall_against_it():
    hits = np.array([True, False, False, True])
    assert ranked_average_precision(hits, 2, "11-point") == 17 / 22  # 6 recalls at 1, 5 at 1/2
    assert ranked_average_precision(hits, 4, "area") == (1 + 1 / 2) / 4
    assert ranked_average_precision(np.array([], bool), 4, "11-point") == 0


def test_interpolation_differs_where_precision_rises_again():
    labels = [1, -1, 1, -1, -1, 1]
    # Precision 1, 2/3, 1/2 at recall 1/3, 2/3, 1: falling, so that interpolation changes nothing.
    assert of_ranking(labels, "11-point") == pytest.approx(8 / 11, abs=1e-15)
    assert of_ranking(labels, "area") == pytest.approx(13 / 18, abs=1e-15)
    assert of_ranking(labels, "none") == pytest.approx(13 / 18, abs=1e-15)
    assert of_ranking([-1, 1, 1], "none") == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-15)
    assert of_ranking([-1, 1, 1], "area") == pytest.approx(2 / 3, abs=1e-15)


@pytest.mark.parametrize("positives", [10, 20, 30])
def test_a_recall_of_exactly_three_tenths_is_reached(positives):
    first = positives * 3 // 10
    labels = [1] * first + [-1] * positives + [1] * (positives - first)
    rest = positives / (2 * positives)
    assert of_ranking(labels, "11-point") == pytest.approx((4 + 7 * rest) / 11, abs=1e-15)


rankings = st.lists(st.sampled_from([1, -1, 0]), min_size=1, max_size=40).filter(lambda labels: 1 in labels)
scored = rankings.flatmap(
    lambda labels: st.tuples(
        st.just(np.array(labels)),
        st.lists(st.integers(-5, 5), min_size=len(labels), max_size=len(labels)).map(lambda s: np.array(s, float)),
    )
)


@given(scored)
def test_the_interpolated_area_is_at_least_the_other(drawn):
    labels, scores = drawn
    assert average_precision(scores, labels, "area") >= average_precision(scores, labels, "none") - 1e-12


@given(scored, st.sampled_from(INTERPOLATIONS), st.sampled_from(["every image", "sklearn"]))
def test_an_increasing_map_of_the_scores_changes_nothing(drawn, interpolation, curve):
    labels, scores = drawn
    before = average_precision(scores, labels, interpolation, curve=curve)
    assert average_precision(np.exp(scores) - 7, labels, interpolation, curve=curve) == before


@given(st.integers(1, 50), st.integers(0, 50), st.sampled_from(INTERPOLATIONS))
def test_a_perfect_ranking_has_an_average_precision_of_one(positives, negatives, interpolation):
    assert of_ranking([1] * positives + [-1] * negatives, interpolation) == pytest.approx(1, abs=1e-12)


@given(scored)
def test_the_curve_of_scikit_learn_is_its_own(drawn):
    labels, scores = drawn
    kept = labels != 0
    precision, recall, _ = precision_recall_curve(labels[kept] == 1, scores[kept])
    terms = [precision[recall >= t].max(initial=0) for t in np.linspace(0, 1, 11)]
    ours = {each: average_precision(scores, labels, each, curve="sklearn") for each in INTERPOLATIONS}
    assert ours["11-point"] == pytest.approx(np.mean(terms), abs=1e-12)
    assert terms[0] == 1
    expected = average_precision_score(labels[kept] == 1, scores[kept])
    assert ours["none"] == pytest.approx(expected, abs=1e-12)


def test_a_class_without_positives_is_left_out_of_the_mean():
    scores = np.array([[0.3, 0.1, 0.2], [0.2, 0.2, 0.3], [0.1, 0.3, 0.1]])
    labels = np.array([[1, -1, 1], [-1, 0, -1], [-1, -1, -1]])
    assert mean_average_precision(scores, labels, "area") == (3 / 4, (1, None, 1 / 2))
    with pytest.raises(ValueError, match="there is no positive"):
        mean_average_precision(scores[:, 1:2], labels[:, 1:2], "area")


def test_equal_scores_stay_in_the_order_of_the_images():
    generator = np.random.default_rng(0)
    scores, labels = generator.integers(0, 3, 200).astype(float), generator.choice([-1, 1], 200)
    ranking = [labels[n] for n in sorted(range(200), key=lambda n: -scores[n])]  # Python's sort is stable
    assert average_precision(scores, labels, "area") == of_ranking(ranking, "area")
