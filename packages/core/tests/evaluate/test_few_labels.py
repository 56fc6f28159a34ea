import pytest
import torch

from ssl_core.evaluate import Features, few_label_curve, fitting_shots, standardized
from ssl_core.evaluate.few_labels import drawn_by_class
from ssl_core.evaluate.logistic import Limits, fit_classifier
from ssl_core.testing import SINGLE


def toy_features(count, *, seed, length=4, spread=1.0):
    """Three classes of a skewed number of images around three corners of a cube."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 6 % 4 % 3
    return Features(torch.eye(length)[labels] + spread * torch.randn(count, length, generator=generator), labels)


def test_the_shots_are_those_that_the_smallest_class_with_images_has():
    for smallest, shots in ((1, (1,)), (4, (1,)), (5, (1, 5)), (20, (1, 5, 20))):
        labels = torch.tensor([0] * 50 + [3] * smallest)  # classes 1 and 2 have no image
        assert fitting_shots(labels) == shots


def test_a_draw_orders_the_images_of_each_class_by_seed_and_number_alone():
    labels = torch.arange(60) % 3
    first, again = (drawn_by_class(labels, seed=1, draw=0) for _ in range(2))
    for label, indices in enumerate(first):
        assert indices.sort().values.tolist() == list(range(label, 60, 3))
    assert torch.equal(torch.cat(first), torch.cat(again))
    for other in ({"seed": 2, "draw": 0}, {"seed": 1, "draw": 1}):
        assert not torch.equal(torch.cat(first), torch.cat(drawn_by_class(labels, **other)))


def test_the_curve_is_of_classifiers_of_the_first_drawn_images_of_each_class(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "ssl_core.evaluate.few_labels.fit_classifier",
        lambda features, labels, *args, **options: (
            seen.append(labels) or fit_classifier(features, labels, *args, **options)
        ),
    )
    train, test = toy_features(60, seed=0), toy_features(40, seed=1)
    curve = few_label_curve(train, test, num_classes=3, shots=[1, 5], draws=2, seed=7)
    assert [labels.bincount().tolist() for labels in seen] == [[1] * 3] * 2 + [[5] * 3] * 2
    for shots, right in curve.items():
        for draw in range(2):
            chosen = torch.cat([indices[:shots] for indices in drawn_by_class(train.labels, seed=7, draw=draw)])
            fit = fit_classifier(train.features[chosen], train.labels[chosen], 3, 0.3, limits=Limits(200))
            assert torch.equal(right[draw], fit.scores(test.features).argmax(dim=1) == test.labels)


def test_more_labels_do_better_and_labels_without_meaning_do_as_chance():
    train, test = toy_features(200, seed=0, spread=0.5), toy_features(2000, seed=1, spread=0.5)
    curve = few_label_curve(*standardized(train, test), num_classes=3, shots=(1, 5, 20))
    accuracy = [right.double().mean().item() for right in curve.values()]
    assert accuracy == sorted(accuracy)
    assert accuracy[0] > 0.4
    same = standardized(train._replace(features=torch.ones(200, 4)), test._replace(features=torch.ones(2000, 4)))
    assert same[0].features.isfinite().all()
    flat = few_label_curve(*same, num_classes=3, shots=(5,))[5]
    assert flat.double().mean().item() == pytest.approx((test.labels == 0).double().mean().item())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_neither_scale_nor_place_of_features_counts(scale):
    train, test = toy_features(60, seed=0), toy_features(100, seed=1)
    moved = [each._replace(features=scale * each.features + 5) for each in (train, test)]
    for one, other in zip(standardized(*moved), standardized(train, test), strict=True):
        assert torch.allclose(one.features, other.features, atol=1e-3)  # 5 / 1e-3 in float32
    features = standardized(train, test)[0].features
    assert features.mean(dim=0).abs().max() < SINGLE
    assert features.square().sum(dim=1).mean().item() == pytest.approx(1, abs=SINGLE)


def test_features_longer_than_there_are_images_give_the_same_classifier_in_the_space_of_these():
    train, test = toy_features(30, seed=0, length=50), toy_features(100, seed=1, length=50)
    small = standardized(train, test)
    assert [each.features.shape for each in small] == [(30, 30), (100, 30)]
    mean, length = train.features.mean(dim=0), (train.features - train.features.mean(dim=0)).square().sum(1).mean()
    whole = [each._replace(features=(each.features - mean) / length.sqrt()) for each in (train, test)]
    scores = [
        fit_classifier(*tr, 3, 0.1, limits=Limits(2000, 1e-9, 0.0)).scores(te.features) for tr, te in (small, whole)
    ]
    assert torch.allclose(*scores, atol=1e-4)
