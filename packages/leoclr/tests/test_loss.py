"""LeOCLR's loss against the paper: equations (2) and (3) of Alkhalefi et al., 2024, written densely here."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_core.losses import Columns, info_nce
from ssl_core.testing import SIX_DIGITS, loss_rounding
from ssl_leoclr.loss import leoclr_loss


def unit_rows(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.fixture
def inputs():
    """Query, keys of two crops, queue."""
    return unit_rows(5, 8), unit_rows(2, 5, 8), unit_rows(30, 8)


def loss_of_moco(query, key, queue, temperature=0.2):
    """MoCo's own code: the positive's logit first, label 0, mean over the batch."""
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))


def test_the_loss_by_hand():
    # Two images, two queue rows, tau = 0.5:
    # image 1: queue logits (2, 0), exp 7.389056 + 1 = 8.389056
    #   v1: 0.8 / 0.5 = 1.6, exp 4.953032; log 13.342089 - 1.6 = 0.990924
    #   v2: 0, exp 1; log 9.389056 - 0 = 2.239545
    # image 2: queue logits (0, 2), the same sum
    #   v1: 0.6 / 0.5 = 1.2, exp 3.320117; log 11.709173 - 1.2 = 1.260373
    #   v2: 2, exp 7.389056; log 15.778112 - 2 = 0.758624
    # ((0.990924 + 2.239545) + (1.260373 + 0.758624)) / 2
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    keys = torch.tensor([[[0.8, 0.6], [0.8, 0.6]], [[0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
    loss = leoclr_loss(query, keys, torch.eye(2).double(), temperature=0.5)
    assert loss.item() == pytest.approx(2.624732, abs=SIX_DIGITS)


def test_equal_crops_give_twice_the_loss_and_gradient_of_moco(inputs):
    query, keys, queue = inputs
    leaves = [query.clone().requires_grad_() for _ in range(2)]
    loss = leoclr_loss(leaves[0], torch.stack([keys[0], keys[0]]), queue)
    of_moco = loss_of_moco(leaves[1], keys[0], queue)
    torch.testing.assert_close(loss, 2 * of_moco)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves[0])[0], 2 * torch.autograd.grad(of_moco, leaves[1])[0])


def test_the_loss_is_the_sum_of_both_crops_losses_with_a_denominator_for_each(inputs):
    query, keys, queue = inputs
    torch.testing.assert_close(
        leoclr_loss(query, keys, queue), loss_of_moco(query, keys[0], queue) + loss_of_moco(query, keys[1], queue)
    )


def test_one_key_is_the_loss_of_moco_v2(inputs):
    query, keys, queue = inputs
    torch.testing.assert_close(leoclr_loss(query, keys[:1], queue), loss_of_moco(query, keys[0], queue))


def test_the_order_of_the_crops_does_not_matter(inputs):
    query, keys, queue = inputs
    torch.testing.assert_close(leoclr_loss(query, keys.flip(0), queue), leoclr_loss(query, keys, queue))


def test_the_temperature_divides_every_similarity(inputs):
    query, keys, queue = inputs
    expected = sum(loss_of_moco(query, key, queue, temperature=0.07) for key in keys)
    torch.testing.assert_close(leoclr_loss(query, keys, queue, temperature=0.07), expected)


def test_the_gradient_matches_finite_differences(inputs):
    query, keys, queue = inputs
    assert torch.autograd.gradcheck(lambda query: leoclr_loss(query, keys, queue), query.requires_grad_())


def test_keys_and_queue_receive_no_gradient(inputs):
    leaves = [tensor.requires_grad_() for tensor in inputs]
    leoclr_loss(*leaves).backward()
    assert [leaf.grad is not None for leaf in leaves] == [True, False, False]


class Passes(TorchDispatchMode):
    """Rows and columns of each pass over the queue."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.ssl_core.queue_attention.default:
            self.seen.append((len(args[0]), len(args[1])))
        return function(*args, **(kwargs or {}))


def test_both_crops_share_one_pass_over_the_queue(inputs):
    with Passes() as passes:
        leoclr_loss(*inputs)
    assert passes.seen == [(5, 30)]


def test_a_partly_filled_queue_is_its_filled_part(inputs):
    query, keys, queue = inputs
    torch.testing.assert_close(
        leoclr_loss(query, keys, Columns(queue, torch.tensor(11))), leoclr_loss(query, keys, queue[:11])
    )


def test_an_empty_queue_gives_no_loss_and_no_gradient(inputs):
    query, keys, queue = inputs
    loss = leoclr_loss(query.requires_grad_(), keys, Columns(queue, torch.tensor(0)))
    loss.backward()
    assert loss == 0
    assert (query.grad == 0).all()


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_the_back_end_reaches_the_queue(backend, inputs):
    expected = info_nce(*inputs, 0.2).sum(dim=0).mean()
    torch.testing.assert_close(leoclr_loss(*inputs, backend=backend), expected)
    with pytest.raises(ValueError, match="backend='abacus' cannot run queue_attention"):
        leoclr_loss(*inputs, backend="abacus")


def test_the_loss_is_a_float32_scalar_under_autocast(inputs):
    query, keys, queue = (tensor.bfloat16() for tensor in inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = leoclr_loss(query, keys, queue)
    assert loss.dtype == torch.float32
    exact = leoclr_loss(query.double(), keys.double(), queue.double())
    torch.testing.assert_close(loss.double(), exact, atol=len(keys) * loss_rounding(0.2, 8, 30), rtol=0)


def test_a_temperature_that_is_not_positive_is_refused(inputs):
    with pytest.raises(ValueError, match=r"temperature must be > 0, got 0\.0"):
        leoclr_loss(*inputs, temperature=0.0)
