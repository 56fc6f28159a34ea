"""The negative cosine: values worked by hand, its gradient, and what it does not depend on."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from ssl_core.losses import negative_cosine
from ssl_core.testing import SINGLE

# Lengths 5 and 13: cosines (3 * 5 + 4 * 12) / 65 = 63 / 65, and 0.
PREDICTION = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
TARGET = torch.tensor([[5.0, 12.0], [-8.0, 6.0]])


def test_the_value_by_hand():
    torch.testing.assert_close(negative_cosine(PREDICTION, TARGET), torch.tensor([-63 / 65, 0.0]))


def test_two_plus_twice_the_loss_is_the_squared_distance_of_unit_rows():
    prediction, target = torch.randn(7, 5), torch.randn(7, 5)
    squared_distance = (F.normalize(prediction, dim=1) - F.normalize(target, dim=1)).square().sum(dim=1)
    torch.testing.assert_close(2 + 2 * negative_cosine(prediction, target), squared_distance)


def test_lengths_do_not_matter():
    prediction, target, scale = torch.randn(7, 5), torch.randn(7, 5), torch.rand(2, 7, 1) + 0.1
    torch.testing.assert_close(
        negative_cosine(scale[0] * prediction, scale[1] * target), negative_cosine(prediction, target)
    )


def test_the_gradient_matches_finite_differences():
    prediction, target = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3).double()
    assert torch.autograd.gradcheck(lambda leaf: negative_cosine(leaf, target), prediction)


def test_only_the_prediction_receives_a_gradient():
    prediction, target = PREDICTION.clone().requires_grad_(), TARGET.clone().requires_grad_()
    negative_cosine(prediction, target).sum().backward()
    assert prediction.grad is not None
    assert target.grad is None


def test_a_row_of_zeros_has_loss_zero_and_a_finite_gradient():
    prediction = torch.zeros(2, 3, requires_grad=True)
    loss = negative_cosine(prediction, torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast_changes_nothing_and_the_loss_is_float32_or_float64(dtype):
    prediction, target = torch.randn(7, 5).to(dtype), torch.randn(7, 5).to(dtype)
    exact = negative_cosine(prediction.double(), target.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = negative_cosine(prediction, target)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), exact, atol=SINGLE, rtol=0)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"prediction and target must have the same shape, got \(2, 2\) and \(2, 3\)"):
        inspect.unwrap(negative_cosine)(PREDICTION, torch.ones(2, 3))
