import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ssl_core.evaluate.logistic import Limits, choose_penalty, fit_classifier

EXACT = Limits(iterations=10_000, gradient=1e-9, decrease=1e-16)


def drawn(num_classes, *, rows=50, features=4):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % num_classes
    centers = torch.randn(num_classes, features, generator=generator)
    return centers[labels] + torch.randn(rows, features, generator=generator), labels


def sklearns(features, labels, strength):
    return LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(features.double().numpy(), labels.numpy())


def test_one_feature_is_fitted_as_worked_by_hand():
    # Of x = -1 and 1 the rows of weights are -d/2 and d/2 by symmetry, so the loss is 2 log(1 + e^-d) + penalty d^2 / 4
    # and its minimum where penalty d / 2 = 2 / (1 + e^d): at d = 1 for the penalty 4 / (1 + e).
    fit = fit_classifier(
        torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 2, 4 / (1 + math.e), limits=Limits(decrease=0.0)
    )
    torch.testing.assert_close(fit.weights, torch.tensor([[-0.5, 0.0], [0.5, 0.0]]).double(), atol=1e-4, rtol=0)


def test_several_classes_are_fitted_as_by_scikit_learn():
    features, labels = drawn(3)
    expected = sklearns(features, labels, 1 / 0.3)
    fit = fit_classifier(features, labels, 3, 0.3, limits=EXACT)
    torch.testing.assert_close(fit.weights[:, :-1], torch.from_numpy(expected.coef_), atol=1e-6, rtol=0)
    torch.testing.assert_close(fit.weights[:, -1], torch.from_numpy(expected.intercept_), atol=1e-6, rtol=0)


def test_two_rows_are_the_binomial_fit_at_twice_its_strength():
    features, labels = drawn(2)
    expected = torch.from_numpy(sklearns(features, labels, 2 / 0.3).decision_function(features.double().numpy()))
    scores = fit_classifier(features, labels, 2, 0.3, limits=EXACT).scores(features)
    torch.testing.assert_close(scores[:, 1] - scores[:, 0], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("binomial", "factor"), [(False, 2), (True, 1)])
def test_fits_for_each_class_are_binomial_at_their_strength_or_twice_it(binomial, factor):
    features, labels = drawn(2)
    expected = torch.from_numpy(sklearns(features, labels, factor / 0.3).decision_function(features.double().numpy()))
    columns = (2 * labels - 1)[:, None]
    found = fit_classifier(features, columns, 1, 0.3, limits=EXACT, binomial=binomial)
    torch.testing.assert_close(found.scores(features)[:, 0], expected, atol=1e-6, rtol=1e-6)
    choice = choose_penalty(features, columns, 1, [0.3], lambda _: 0.0, limits=EXACT, binomial=binomial)
    assert torch.equal(choice.last, found.last)


def test_labels_for_each_class_are_fits_of_their_own():
    features, labels = drawn(3)
    columns = torch.stack([labels == 0, labels != 1], dim=1).long() * 2 - 1
    columns[:5, 0] = 0  # neither is positive
    found = fit_classifier(features, columns, 2, 0.3, limits=EXACT)
    for number, column in enumerate((columns == 1).long().unbind(dim=1)):
        alone = fit_classifier(features, column, 2, 0.3, limits=EXACT).scores(features)
        torch.testing.assert_close(found.scores(features)[:, number], alone[:, 1] - alone[:, 0], atol=1e-6, rtol=0)


def test_a_class_without_images_is_never_the_best():
    features, labels = drawn(2)
    assert fit_classifier(features, labels, 4, 0.1, limits=EXACT).scores(features).argmax(dim=1).max() == 1


def test_what_has_not_converged_says_so_and_goes_on_from_where_it_stopped():
    features, labels = drawn(3)
    first = fit_classifier(features, labels, 3, 1e-6, limits=Limits(iterations=3))
    assert (first.converged, first.iterations) == (False, 3)
    done = fit_classifier(features, labels, 3, 0.3, limits=EXACT)
    again = fit_classifier(features, labels, 3, 0.3, limits=Limits(), start=done.last)
    assert again.iterations <= 1
    assert again.gradient < 1e-4 < first.gradient


def test_the_first_of_equal_penalties_is_chosen_and_each_fit_starts_from_the_one_before():
    features, labels = drawn(3)
    scores = iter([0.5, 0.75, 0.75])
    choice = choose_penalty(features, labels, 3, [0.1, 1.0, 10.0], lambda _: next(scores), limits=Limits(iterations=2))
    assert (choice.penalty, choice.scores, choice.converged) == (1.0, [0.5, 0.75, 0.75], [False] * 3)
    last = None
    for penalty in (0.1, 1.0, 10.0):
        last = fit_classifier(features, labels, 3, penalty, limits=Limits(iterations=2), start=last).last
    assert torch.equal(choice.last, last)


@pytest.mark.slow
def test_the_digits_over_the_whole_grid():
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(labels))
    features, labels = torch.from_numpy(pixels[order] / 16).float(), torch.from_numpy(labels[order])
    train, validation, test = slice(0, 800), slice(800, 1000), slice(1000, None)

    def accuracy(classifier, images):
        return (classifier.scores(features[images]).argmax(dim=1) == labels[images]).double().mean().item()

    choice = choose_penalty(
        features[train],
        labels[train],
        10,
        torch.logspace(-6, 5, 45).tolist(),
        lambda classifier: accuracy(classifier, validation),
        limits=Limits(),
    )
    assert 10 <= choice.converged.count(False) <= 25  # at weak penalties, in 100 iterations
    final = fit_classifier(features[:1000], labels[:1000], 10, choice.penalty, limits=Limits(), start=choice.last)
    assert accuracy(final, test) == pytest.approx(0.955, abs=0.01)
