"""Barlow Twins' loss: a value worked by hand, its dense twin in both forms, gradients, memory."""

import inspect

import pytest
import torch

from ssl_core.losses import barlow_twins
from ssl_core.testing import DOUBLE, assert_as_accurate

# Fewer images than half the dimensions, and more; either side of 2 n = d.
SHAPES = {"wide": (5, 37), "narrow": (37, 5), "below": (8, 17), "equal": (8, 16), "above": (8, 15), "one": (3, 1)}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
ONE = 1 / (1 + 1e-5)  # the correlation of a dimension of variance 1 with itself: 1e-5 is added to the variance


def correlated_views(n, d, dtype=torch.float64):
    """Dimensions of different means, widths and correlations, some of the wrong sign."""
    first = torch.randn(n, d, dtype=dtype) @ torch.randn(d, d, dtype=dtype) + torch.randn(d, dtype=dtype)
    sign = torch.where(torch.arange(d) % 3 == 0, -1.0, 1.0).to(dtype)
    return first, sign * (first + 0.5 * torch.randn(n, d, dtype=dtype))


def dense(first, second, off_diagonal_weight=0.0051):
    """The paper's formula, with all correlations."""
    first, second = (
        (view - view.mean(dim=0)) / (view.var(dim=0, correction=0) + 1e-5).sqrt() for view in (first, second)
    )
    correlation = first.T @ second / len(first)
    is_diagonal = torch.eye(len(correlation), dtype=torch.bool)
    weight = torch.where(is_diagonal, 1.0, off_diagonal_weight)
    return (weight * (correlation - is_diagonal.to(correlation)).square()).sum()


def loss_and_gradients(loss, *views):
    leaves = [view.clone().requires_grad_() for view in views]
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def test_the_value_by_hand():
    # Columns of mean 0 and variance 1: a = (1, -1, 1, -1), b = (1, 1, -1, -1).
    # First (a, b), second (b, b): C = [[a.b, a.b], [b.b, b.b]] / 4 = [[0, 0], [ONE, ONE]].
    a, b = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]]).double()
    loss = barlow_twins(torch.stack([a, b], dim=1), torch.stack([b, b], dim=1), off_diagonal_weight=0.5)
    assert loss.item() == pytest.approx((1 - 0) ** 2 + (1 - ONE) ** 2 + 0.5 * (0**2 + ONE**2), abs=DOUBLE)


def test_the_value_by_hand_with_more_dimensions_than_images():
    # Two images, five dimensions of which each is x or -x with x = (1, -1): C_ij = ONE s_i t_j with signs s and t.
    # s = t but in the last one, so the diagonal is ONE (1, 1, 1, 1, -1), and 20 other entries are ONE or -ONE.
    first = torch.tensor([[1.0, -1.0, 1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, -1.0, 1.0]]).double()
    second = first * torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])
    loss = barlow_twins(first, second, off_diagonal_weight=0.5)
    assert loss.item() == pytest.approx(4 * (1 - ONE) ** 2 + (1 + ONE) ** 2 + 0.5 * 20 * ONE**2, abs=DOUBLE)


@shapes
def test_value_and_gradients_are_those_of_the_dense_formula(shape):
    views = correlated_views(*shape)
    torch.testing.assert_close(loss_and_gradients(barlow_twins, *views), loss_and_gradients(dense, *views))


@shapes
@pytest.mark.parametrize("difference", [1.0, 0.001], ids=["apart", "almost equal"])
def test_it_is_as_accurate_as_the_dense_formula(shape, difference):
    first, second = correlated_views(*shape, dtype=torch.float32)
    views = first, first.lerp(second, difference)
    actual, eager = loss_and_gradients(barlow_twins, *views), loss_and_gradients(dense, *views)
    exact = loss_and_gradients(dense, *(view.double() for view in views))
    for results in zip(actual, eager, exact, strict=True):
        assert results[0].dtype == torch.float32
        assert_as_accurate(*results)


@pytest.mark.parametrize("shape", [(3, 8), (6, 4)], ids=["wide", "narrow"])
def test_the_gradients_match_finite_differences(shape):
    views = [view.requires_grad_() for view in correlated_views(*shape)]
    assert torch.autograd.gradcheck(barlow_twins, views)


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)], ids=["wide", "narrow"])
def test_shifts_widths_and_the_order_of_images_and_views_do_not_matter(shape):
    first, second = (1000 * view for view in correlated_views(*shape))  # 1e-5 is nothing to their variance
    expected = barlow_twins(first, second)
    order, width, shift = torch.randperm(shape[0]), torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    torch.testing.assert_close(barlow_twins(width * first + shift, second), expected)
    torch.testing.assert_close(barlow_twins(first[order], second[order]), expected)
    torch.testing.assert_close(barlow_twins(second, first), expected)


def test_equal_views_without_correlated_dimensions_have_next_to_no_loss():
    views, _ = torch.linalg.qr(torch.cat([torch.ones(64, 1), torch.randn(64, 16)], dim=1).double())
    views = 8 * views[:, 1:]  # orthogonal to the ones: mean 0; variance 1
    assert barlow_twins(views, views).item() == pytest.approx(16 * (1 - ONE) ** 2, abs=DOUBLE)


@pytest.mark.parametrize("shape", [(5, 37), (37, 5)], ids=["wide", "narrow"])
def test_dimensions_that_do_not_vary_cost_one_each(shape):
    views = torch.ones(shape, requires_grad=True), torch.zeros(shape, requires_grad=True)
    loss = barlow_twins(*views)
    loss.backward()
    assert loss.item() == shape[1]
    assert all(view.grad.isfinite().all() for view in views)


@pytest.mark.parametrize("shape", [(16, 256), (256, 16)], ids=["wide", "narrow"])
def test_forward_and_backward_hold_eight_tensors_of_a_views_size(shape, peak_bytes):
    leaves = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
    held = peak_bytes(lambda: torch.autograd.grad(barlow_twins(*leaves), leaves))
    assert held < 8 * leaves[0].nbytes  # half of one 256 x 256 matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(8, 64), (64, 8)], ids=["wide", "narrow"])
def test_autocast_changes_nothing_and_the_loss_is_float32(shape, dtype):
    views = [view.to(dtype) for view in correlated_views(*shape)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = barlow_twins(*views)
    assert loss.dtype == torch.float32
    eager, exact = (dense(*(view.to(of) for view in views)) for of in (torch.float32, torch.float64))
    assert_as_accurate(loss, eager, exact)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 4), (1, 4)), "needs at least 2 images, got 1"),
        (((3, 4), (3, 5)), r"two views must have the same shape, got \(3, 4\) and \(3, 5\)"),
    ],
    ids=["one image", "shapes"],
)
def test_views_that_cannot_be_compared_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(barlow_twins)(*map(torch.ones, shapes))
