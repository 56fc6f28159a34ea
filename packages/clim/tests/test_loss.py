"""CLIM's loss against the paper: equations (1), (4) and (6) of Li et al., 2020, written densely here."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_clim.loss import clim_loss
from ssl_core.losses import Columns
from ssl_core.testing import APART, SIX_DIGITS, loss_rounding


def unit_rows(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.fixture
def inputs():
    """Mixed query, keys of anchor and neighbour, ratio, queue."""
    return unit_rows(5, 8), unit_rows(5, 8), unit_rows(5, 8), torch.rand(5, dtype=torch.float64), unit_rows(30, 8)


@pytest.fixture
def resolutions():
    """The same with queries at two resolutions and keys at three."""
    ratio = torch.rand(2, 5, dtype=torch.float64)
    return unit_rows(2, 5, 8), unit_rows(3, 5, 8), unit_rows(3, 5, 8), ratio, unit_rows(30, 8)


def nce(query, key, queue, temperature=0.2):
    """Equation (1) as MoCo's code has it: the positive's logit first, label 0; one loss for each image."""
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="none")


def mixed(query, anchor, neighbour, ratio, queue, temperature=0.2):
    """Equation (4)."""
    of_anchor, of_neighbour = nce(query, anchor, queue, temperature), nce(query, neighbour, queue, temperature)
    return (ratio * of_anchor + (1 - ratio) * of_neighbour).mean()


def test_the_loss_by_hand():
    # Two images, two queue rows, tau = 0.5, queue logits (2, 0) and (0, 2): exp sum 8.389056 for both.
    # image 1, ratio 0.75:
    #   anchor: 0.8 / 0.5 = 1.6, exp 4.953032; log 13.342089 - 1.6 = 0.990924
    #   neighbour: 0, exp 1; log 9.389056 - 0 = 2.239545
    #   0.75 * 0.990924 + 0.25 * 2.239545 = 1.303079
    # image 2, ratio 0.4:
    #   anchor: 0.6 / 0.5 = 1.2, exp 3.320117; log 11.709173 - 1.2 = 1.260373
    #   neighbour: 2, exp 7.389056; log 15.778112 - 2 = 0.758624
    #   0.4 * 1.260373 + 0.6 * 0.758624 = 0.959324
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    anchor = torch.tensor([[0.8, 0.6], [0.8, 0.6]], dtype=torch.float64)
    neighbour = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    ratio = torch.tensor([0.75, 0.4], dtype=torch.float64)
    loss = clim_loss(query, anchor, neighbour, ratio, torch.eye(2).double(), temperature=0.5)
    assert loss.item() == pytest.approx((1.303079 + 0.959324) / 2, abs=SIX_DIGITS)


def test_each_term_has_a_denominator_of_its_own(inputs):
    query, anchor, neighbour, ratio, queue = inputs
    torch.testing.assert_close(clim_loss(*inputs), mixed(*inputs))
    logits = torch.cat([(query * anchor).sum(1)[:, None], (query * neighbour).sum(1)[:, None], query @ queue.T], dim=1)
    log_prob = (logits / 0.2).log_softmax(dim=1)
    two_hot = -(ratio * log_prob[:, 0] + (1 - ratio) * log_prob[:, 1]).mean()
    assert (clim_loss(*inputs) - two_hot).abs() > APART


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_a_ratio_of_one_is_the_loss_and_gradient_of_moco_v2_with_the_anchor_and_zero_with_the_neighbour(inputs, value):
    query, anchor, neighbour, ratio, queue = inputs
    leaves = [query.clone().requires_grad_() for _ in range(2)]
    loss = clim_loss(leaves[0], anchor, neighbour, torch.full_like(ratio, value), queue)
    of_moco = nce(leaves[1], anchor if value else neighbour, queue).mean()
    torch.testing.assert_close(loss, of_moco)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves[0])[0], torch.autograd.grad(of_moco, leaves[1])[0])


def test_with_equal_keys_it_is_moco_v2_whatever_the_ratio(inputs):
    query, anchor, _, ratio, queue = inputs
    torch.testing.assert_close(clim_loss(query, anchor, anchor, ratio, queue), nce(query, anchor, queue).mean())


def test_anchor_and_neighbour_change_places_with_the_ratio(inputs):
    query, anchor, neighbour, ratio, queue = inputs
    torch.testing.assert_close(clim_loss(query, neighbour, anchor, 1 - ratio, queue), clim_loss(*inputs))


def test_resolutions_are_the_sum_over_all_pairs_of_a_query_and_a_key(resolutions):
    query, anchor, neighbour, ratio, queue = resolutions
    pairs = [mixed(query[r], anchor[s], neighbour[s], ratio[r], queue) for r in range(2) for s in range(3)]
    torch.testing.assert_close(clim_loss(*resolutions), torch.stack(pairs).sum())
    torch.testing.assert_close(clim_loss(*resolutions, reduction="mean"), torch.stack(pairs).mean())


def test_one_resolution_may_have_a_dimension_of_its_own(inputs):
    *rows, queue = inputs
    torch.testing.assert_close(clim_loss(*(row[None] for row in rows), queue), clim_loss(*inputs))


def test_the_temperature_divides_every_similarity(inputs):
    torch.testing.assert_close(clim_loss(*inputs, temperature=0.07), mixed(*inputs, temperature=0.07))


def test_the_gradient_matches_finite_differences(resolutions):
    query, *others = resolutions
    assert torch.autograd.gradcheck(lambda query: clim_loss(query, *others), query.requires_grad_())


def test_keys_and_queue_receive_no_gradient(inputs):
    query, anchor, neighbour, ratio, queue = inputs
    leaves = [tensor.requires_grad_() for tensor in (query, anchor, neighbour, queue)]
    clim_loss(*leaves[:3], ratio, leaves[3]).backward()
    assert [leaf.grad is not None for leaf in leaves] == [True, False, False, False]


class Passes(TorchDispatchMode):
    """Rows and columns of each pass over the queue."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.ssl_core.queue_attention.default:
            self.seen.append((len(args[0]), len(args[1])))
        return function(*args, **(kwargs or {}))


def test_all_resolutions_share_one_pass_over_the_queue(resolutions):
    with Passes() as passes:
        clim_loss(*resolutions)
    assert passes.seen == [(2 * 5, 30)]


def test_a_partly_filled_queue_is_its_filled_part(inputs):
    *rows, queue = inputs
    torch.testing.assert_close(clim_loss(*rows, Columns(queue, torch.tensor(11))), clim_loss(*rows, queue[:11]))


def test_an_empty_queue_gives_no_loss_and_no_gradient(inputs):
    query, *others, queue = inputs
    loss = clim_loss(query.requires_grad_(), *others, Columns(queue, torch.tensor(0)))
    loss.backward()
    assert loss == 0
    assert (query.grad == 0).all()


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_the_back_end_reaches_the_queue(backend, inputs):
    torch.testing.assert_close(clim_loss(*inputs, backend=backend), mixed(*inputs))
    with pytest.raises(ValueError, match="backend='abacus' cannot run queue_attention"):
        clim_loss(*inputs, backend="abacus")


def test_the_loss_is_a_float32_scalar_under_autocast(inputs):
    rounded = [tensor.bfloat16() for tensor in inputs]
    rounded[3] = rounded[3].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = clim_loss(*rounded)
    assert loss.dtype == torch.float32
    exact = mixed(*(tensor.double() for tensor in rounded))
    torch.testing.assert_close(loss.double(), exact, atol=loss_rounding(0.2, 8, 30), rtol=0)


def test_a_temperature_that_is_not_positive_is_refused(inputs):
    with pytest.raises(ValueError, match=r"temperature must be > 0, got 0\.0"):
        clim_loss(*inputs, temperature=0.0)


def test_one_ratio_for_queries_at_several_resolutions_is_refused(resolutions):
    query, anchor, neighbour, ratio, queue = resolutions
    with pytest.raises(ValueError, match=r"sizes disagree: mixed_query \(2, 5, 8\), .* ratio \(1, 5\)"):
        clim_loss(query, anchor, neighbour, ratio[0], queue)


def test_keys_of_other_images_are_refused_and_not_taken_for_resolutions(inputs):
    query, anchor, neighbour, ratio, queue = inputs
    rows = slice(0, 4)
    with pytest.raises((ValueError, TypeCheckError)):  # the latter where the annotations are checked
        clim_loss(query[rows], anchor, neighbour, ratio[rows], queue)
    with pytest.raises(ValueError, match=r"sizes disagree: mixed_query \(4, 8\), keys \(5, 8\)"):
        inspect.unwrap(clim_loss)(query[rows], anchor, neighbour, ratio[rows], queue)
