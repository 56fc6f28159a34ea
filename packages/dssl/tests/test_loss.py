"""DSSL's loss against the paper: equations (4) to (6) of Bai et al., 2022, written out here."""

import pytest
import torch
import torch.nn.functional as F

from ssl_core.testing import SINGLE
from ssl_dssl import BarlowTwins, Embedded, SimCLR, SimSiam, directional_loss
from ssl_dssl.bases import BYOL

WEIGHTS = {"alpha": 0.7, "beta": 0.3, "gamma": 0.9, "delta": 0.1}


def views(number, rows=5, dim=8):
    """Predictions and targets of as many views, each a leaf that asks for gradient."""
    tensors = torch.randn(number, 2, rows, dim, dtype=torch.float64)
    return [Embedded(*(tensor.clone().requires_grad_() for tensor in pair)) for pair in tensors]


def cosine(prediction, target):
    """D of equation (4), averaged over the batch."""
    return -(F.normalize(prediction, dim=1) * F.normalize(target, dim=1)).sum(dim=1).mean()


def symmetric(first, second):
    """L_S of SimSiam and BYOL."""
    return (cosine(first.prediction, second.target) + cosine(second.prediction, first.target)) / 2


def asymmetric(heavy, standard):
    """L_A of heavy predictions and standard targets, with the released code's 1/2."""
    return sum(cosine(h.prediction, s.target) for h, s in zip(heavy, standard, strict=True)) / 2


def test_the_loss_by_hand():
    # One image in the plane. D = -cos: of parallel vectors -1, of orthogonal ones 0, of (1, 0) and (3, 4) -0.6.
    # L_S(v, v'): z = (2, 0) and y' = (3, 4) give -0.6; z' = (0, 1) and y = (0, 5) give -1; half the sum is -0.8
    # L_S(v^, v^'): z^ = (3, 4) and y^' = (1, 0) give -0.6; z^' = (1, 0) and y^ = (0, 1) give 0; -0.3
    # L_A(v^ -> v): z^ = (3, 4) and y = (0, 5) give -0.8; z^' = (1, 0) and y' = (3, 4) give -0.6; -0.7
    # L_A(v -> v^): z = (2, 0) and y^ = (0, 1) give 0; z' = (0, 1) and y^' = (1, 0) give 0; 0
    def row(*numbers):
        return torch.tensor([numbers])

    standard = [Embedded(row(2.0, 0.0), row(0.0, 5.0)), Embedded(row(0.0, 1.0), row(3.0, 4.0))]
    heavy = [Embedded(row(3.0, 4.0), row(0.0, 1.0)), Embedded(row(1.0, 0.0), row(1.0, 0.0))]
    expected = {"alpha": -0.8, "beta": -0.3, "gamma": -0.7, "delta": 0.0}
    for name, value in expected.items():
        weights = dict.fromkeys(expected, 0.0) | {name: 2.0}
        loss = directional_loss(standard, heavy, SimSiam().loss, **weights)
        torch.testing.assert_close(loss, torch.tensor(2 * value), msg=name)
    # DSSL, eq. (5), is what it is by default.
    torch.testing.assert_close(directional_loss(standard, heavy, SimSiam().loss), torch.tensor(-1.5))


def test_it_is_the_weighted_sum_of_the_four_terms():
    standard, heavy = views(2), views(2)
    expected = (
        0.7 * symmetric(*standard)
        + 0.3 * symmetric(*heavy)
        + 0.9 * asymmetric(heavy, standard)
        + 0.1 * asymmetric(standard, heavy)
    )
    torch.testing.assert_close(directional_loss(standard, heavy, SimSiam().loss, **WEIGHTS), expected)


@pytest.mark.parametrize("base", [SimSiam(), BYOL(), SimCLR(0.3), BarlowTwins()], ids=lambda base: type(base).__name__)
def test_alpha_alone_is_the_base(base):
    standard, heavy = views(2), views(2)
    alone = {"beta": 0.0, "gamma": 0.0, "delta": 0.0}
    torch.testing.assert_close(directional_loss(standard, heavy, base.loss, **alone), base.loss(*standard))
    torch.testing.assert_close(directional_loss(standard, [], base.loss, sources=()), base.loss(*standard))


def test_all_ones_treat_standard_and_heavy_views_alike():
    standard, heavy = views(2), views(2)
    ones = dict.fromkeys(WEIGHTS, 1.0)
    loss = directional_loss(standard, heavy, SimSiam().loss, **ones)
    torch.testing.assert_close(directional_loss(heavy, standard, SimSiam().loss, **ones), loss)
    # Every pair of views that eq. (6) counts, in both directions.
    pairs = [(0, 1), (1, 0), (2, 3), (3, 2), (2, 0), (3, 1), (0, 2), (1, 3)]
    every = [*standard, *heavy]
    expected = sum(cosine(every[a].prediction, every[b].target) for a, b in pairs) / 2
    torch.testing.assert_close(loss, expected)


def test_directional_terms_give_standard_views_no_gradient_at_all():
    standard, heavy = views(2), views(2)
    directional_loss(standard, heavy, SimSiam().loss, alpha=0.0).backward()
    assert [tensor.grad for view in standard for tensor in view] == [None] * 4
    assert all(view.prediction.grad.abs().max() > 0 for view in heavy)
    assert [view.target.grad for view in heavy] == [None, None]


def test_delta_turns_the_direction_round():
    standard, heavy = views(2), views(2)
    directional_loss(standard, heavy, SimSiam().loss, alpha=0.0, gamma=0.0, delta=1.0).backward()
    assert [tensor.grad for view in heavy for tensor in view] == [None] * 4
    assert all(view.prediction.grad.abs().max() > 0 for view in standard)


def test_two_pairs_of_standard_views_are_their_mean():
    standard = views(4)
    expected = (symmetric(*standard[:2]) + symmetric(*standard[2:])) / 2
    torch.testing.assert_close(directional_loss(standard, [], SimSiam().loss, sources=()), expected)


def test_one_heavy_view_is_drawn_to_its_own_source():
    standard, (heavy,) = views(2), views(1)
    weights = {"alpha": 0.0, "gamma": 0.9, "delta": 0.1}
    loss = directional_loss(standard, [heavy], SimCLR().loss, sources=(1,), **weights)
    second = standard[1]
    expected = 0.9 * cosine(heavy.prediction, second.target) + 0.1 * cosine(second.prediction, heavy.target)
    torch.testing.assert_close(loss, expected)


def test_a_term_of_weight_0_needs_nothing():
    standard = [Embedded(None, view.target) for view in views(2)]
    heavy = [Embedded(view.prediction, None) for view in views(2)]
    loss = directional_loss(standard, heavy, SimSiam().loss, alpha=0.0)
    torch.testing.assert_close(loss, asymmetric(heavy, standard))


def test_the_gradient_matches_finite_differences():
    tensors = [tensor.detach().requires_grad_() for view in views(4, rows=3, dim=4) for tensor in view]

    def of_predictions(*predictions):
        given = [Embedded(z, y.detach()) for z, y in zip(predictions, tensors[1::2], strict=True)]
        return directional_loss(given[:2], given[2:], SimSiam().loss, **WEIGHTS)

    assert torch.autograd.gradcheck(of_predictions, tensors[::2])


def test_autocast_and_bfloat16_embeddings_give_a_float32_loss():
    exact = views(4)
    rounded = [Embedded(*(tensor.detach().bfloat16() for tensor in view)) for view in exact]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = directional_loss(rounded[:2], rounded[2:], SimSiam().loss, **WEIGHTS)
    assert loss.dtype == torch.float32
    doubled = [Embedded(*(tensor.double() for tensor in view)) for view in rounded]
    expected = directional_loss(doubled[:2], doubled[2:], SimSiam().loss, **WEIGHTS)
    torch.testing.assert_close(loss.double(), expected, atol=sum(WEIGHTS.values()) * SINGLE, rtol=0)


@pytest.mark.parametrize(
    ("num_heavy", "options", "message"),
    [
        (1, {}, r"1 heavy views and sources \(0, 1\)"),
        (1, {"sources": (0,), "beta": 1.0}, "beta 1 is the weight of a pair of heavy views, got 1"),
        (2, {"alpha": 0.0, "gamma": 0.0}, "nothing is left to learn"),
    ],
    ids=["sources", "beta", "weights"],
)
def test_arguments_that_do_not_fit_are_refused(num_heavy, options, message):
    with pytest.raises(ValueError, match=message):
        directional_loss(views(2), views(num_heavy), SimSiam().loss, **options)
