"""SimCLR's loss: hand-worked values, its dense twin, gradients to both views, shares of a batch, memory."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from ssl_core.losses import nt_xent
from ssl_core.ops import cpp
from ssl_core.testing import ROUNDING, SIX_DIGITS, assert_as_accurate, loss_rounding

BACKENDS = ["tiled", "reference", *(["cpp"] if cpp.instruction_sets() else [])]


def unit_rows(*shape, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def dense(first, second, temperature):
    """Algorithm 1 of SimCLR's paper: all similarities of 2n rows but each with itself."""
    rows = torch.cat([first, second])
    logits = (rows @ rows.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(rows)).roll(len(first)))


def loss_and_gradients(loss, *views):
    leaves = [view.clone().requires_grad_() for view in views]
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


# tau = 0.5, rows a1 a2 b1 b2; exp of each row's logits, its positive's first:
# a1: 1.6 (b1), 0 (a2), 0 (b2): 4.953032 + 1 + 1 = 6.953032, log 1.939178 - 1.6 = 0.339178
# a2: 2 (b2), 0 (a1), 1.2 (b1): 7.389056 + 1 + 3.320117 = 11.709173, log 2.460373 - 2 = 0.460373
# b1: 1.6 (a1), 1.2 (a2), 1.2 (b2): 4.953032 + 3.320117 + 3.320117 = 11.593266, log 2.450424 - 1.6 = 0.850424
# b2: 2 (a2), 0 (a1), 1.2 (b1): as a2; mean (0.339178 + 0.460373 + 0.850424 + 0.460373) / 4
FIRST = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
SECOND = torch.tensor([[0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)


def test_the_value_by_hand():
    assert nt_xent(FIRST, SECOND, 0.5).item() == pytest.approx(0.527587, abs=SIX_DIGITS)


@pytest.mark.parametrize("num_images", [2, 7, 64, 65])
def test_value_and_gradients_are_those_of_the_dense_loss(num_images):
    views = unit_rows(num_images, 5), unit_rows(num_images, 5)
    actual = loss_and_gradients(lambda *leaves: nt_xent(*leaves, 0.2), *views)
    expected = loss_and_gradients(lambda *leaves: dense(*leaves, 0.2), *views)
    torch.testing.assert_close(actual, expected)


def test_the_gradients_match_finite_differences():
    views = unit_rows(3, 4).requires_grad_(), unit_rows(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda *leaves: nt_xent(*leaves, 0.3), views)


def test_the_gradient_to_the_batch_matches_finite_differences():
    leaves = [unit_rows(3, 4).requires_grad_() for _ in range(2)] + [unit_rows(7, 4).requires_grad_() for _ in range(2)]

    def of_all(first, second, *batch):
        return nt_xent(first, second, 0.3, batch=batch, row_offset=2)

    assert torch.autograd.gradcheck(of_all, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_back_ends_are_as_accurate_as_the_dense_loss(backend):
    views = unit_rows(37, 16, dtype=torch.float32), unit_rows(37, 16, dtype=torch.float32)
    actual = loss_and_gradients(lambda *leaves: nt_xent(*leaves, 0.1, backend=backend), *views)
    eager = loss_and_gradients(lambda *leaves: dense(*leaves, 0.1), *views)
    exact = loss_and_gradients(lambda *leaves: dense(*leaves, 0.1), *(view.double() for view in views))
    for results in zip(actual, eager, exact, strict=True):
        assert results[0].dtype == torch.float32
        assert_as_accurate(*results)


def test_the_order_of_the_views_does_not_matter():
    first, second = unit_rows(6, 8), unit_rows(6, 8)
    torch.testing.assert_close(nt_xent(second, first, 0.2), nt_xent(first, second, 0.2))


def test_shares_of_a_batch_give_the_mean_and_the_gradients_of_the_whole():
    views = unit_rows(6, 8), unit_rows(6, 8)

    def of_shares(first, second):
        shares = [
            nt_xent(first[rows], second[rows], 0.2, batch=(first, second), row_offset=rows.start)
            for rows in (slice(0, 2), slice(2, 4), slice(4, 6))
        ]
        return torch.stack(shares).mean()

    whole = loss_and_gradients(lambda *leaves: nt_xent(*leaves, 0.2), *views)
    torch.testing.assert_close(loss_and_gradients(of_shares, *views), whole)


def test_a_positive_that_dominates_keeps_its_value_and_gradients():
    # The logits of every row are 20 (its positive), -20 and -20: loss log(1 + 2 e^-40), w = 2 e^-40 = 1 - p_ii.
    # Gradient to a1 = (1, 0), from four rows of weight 1 / 4, its first component:
    # its own row w (-1 - 1) / tau / 4 = -10 w, as b1's positive -w / tau / 4 = -5 w, as a negative of a2 and b2 -5 w.
    views = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    value, *gradients = loss_and_gradients(lambda *leaves: nt_xent(*leaves, 0.05), views, views)
    weight = 2 * math.exp(-40)
    rtol = 4 * 40 * ROUNDING  # of e^-40: four roundings of the exponent
    torch.testing.assert_close(value, torch.tensor(weight), rtol=rtol, atol=0)
    for gradient in gradients:
        torch.testing.assert_close(gradient, -20 * weight * views, rtol=rtol, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_image_has_no_negatives_and_no_loss(backend):
    views = unit_rows(1, 8, dtype=torch.float32), unit_rows(1, 8, dtype=torch.float32)
    for result in loss_and_gradients(lambda *leaves: nt_xent(*leaves, 0.1, backend=backend), *views):
        assert (result == 0).all()


def test_forward_and_backward_hold_six_tensors_of_a_views_size_and_no_similarities(peak_bytes):
    leaves = unit_rows(256, 64).float().requires_grad_(), unit_rows(256, 64).float().requires_grad_()

    def of(loss):
        return peak_bytes(lambda: torch.autograd.grad(loss(*leaves, 0.1), leaves))

    assert of(nt_xent) < 6 * leaves[0].nbytes
    assert of(dense) > 4 * 512 * 512


def test_the_columns_are_read_for_a_gradient_only_where_one_is_asked_for(passes):
    views = unit_rows(6, 8), unit_rows(6, 8)
    assert len(passes(lambda: nt_xent(*views, 0.1))) == 4
    views[0].requires_grad_()
    assert len(passes(lambda: nt_xent(*views, 0.1))) == 8
    with torch.no_grad():
        assert len(passes(lambda: nt_xent(*views, 0.1))) == 4


def test_a_graph_that_is_kept_gives_the_same_gradients_twice():
    views = unit_rows(6, 8).requires_grad_(), unit_rows(6, 8).requires_grad_()
    loss = nt_xent(*views, 0.1)
    once, twice = (torch.autograd.grad(2 * loss, views, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, once, twice))


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_a_second_derivative_is_refused(backend):
    views = unit_rows(6, 8).requires_grad_(), unit_rows(6, 8).requires_grad_()
    with pytest.raises(RuntimeError, match="nt_xent has no second derivative"):
        torch.autograd.grad(nt_xent(*views, 0.1, backend=backend), views, create_graph=True)


@pytest.mark.parametrize("gathered", [False, True])
def test_autocast_and_bfloat16_embeddings_give_a_float32_loss_and_bfloat16_gradients(gathered):
    views = unit_rows(6, 8).bfloat16().requires_grad_(), unit_rows(6, 8).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(*views, 0.1, batch=views if gathered else None)
    assert loss.dtype == torch.float32
    exact, *gradients = loss_and_gradients(
        lambda *leaves: dense(*leaves, 0.1), *(view.detach().double() for view in views)
    )
    torch.testing.assert_close(loss.double(), exact, atol=loss_rounding(0.1, 8, 11), rtol=0)
    # One rounding to bfloat16; of a gradient in two parts, as rows and as columns, each part and their sum.
    roundings = (3 if gathered else 1) * torch.finfo(torch.bfloat16).eps / 2
    for gradient, expected in zip(torch.autograd.grad(loss, views), gradients, strict=True):
        assert gradient.dtype == torch.bfloat16
        atol = roundings * expected.abs().max().item()
        torch.testing.assert_close(gradient.double(), expected, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"batch": (torch.ones(7, 8), torch.ones(7, 8)), "row_offset": 2}, "batch has 7 rows, which must include"),
        ({"batch": (torch.ones(7, 8), torch.ones(7, 8)), "row_offset": -1}, "from row_offset=-1 on"),
        ({"backend": "abacus"}, "backend='abacus' cannot run queue_attention"),
    ],
    ids=["temperature", "batch", "row_offset", "backend"],
)
def test_a_bad_argument_is_an_error_that_names_it(options, message):
    arguments = {"temperature": 0.1} | options
    with pytest.raises(ValueError, match=message):
        nt_xent(torch.ones(6, 8), torch.ones(6, 8), **arguments)


def test_views_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"the same shape, got \(6, 8\) and \(5, 8\), and batch \(7, 8\)"):
        inspect.unwrap(nt_xent)(torch.ones(6, 8), torch.ones(5, 8), 0.1, batch=(torch.ones(7, 8), torch.ones(7, 8)))
    with pytest.raises(ValueError, match=r"batch \(7, 8\) and \(8, 8\)"):
        inspect.unwrap(nt_xent)(torch.ones(6, 8), torch.ones(6, 8), 0.1, batch=(torch.ones(7, 8), torch.ones(8, 8)))
