"""SCE's loss against the paper: equations (1) to (9) of Denize et al., 2023, written densely here."""

import pytest
import torch
import torch.nn.functional as F

from ssl_core.losses import Columns
from ssl_core.testing import APART, DOUBLE, SIX_DIGITS, loss_rounding
from ssl_sce.loss import sce_loss


def unit_rows(n, d=8):
    return F.normalize(torch.randn(n, d, dtype=torch.float64), dim=1)


@pytest.fixture
def inputs():
    """Query, key, queue."""
    return unit_rows(5), unit_rows(5), unit_rows(30)


def dense_terms(query, key, queue, temperature=0.1, target_temperature=0.05):
    """Logits and softmaxes of the paper; column 0 is the own key."""
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ queue.T], dim=1) / temperature
    relations = (key @ queue.T / target_temperature).softmax(dim=1)
    return logits, relations


def info_nce_of_moco(logits):
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))


def ressl(logits, relations):
    return -(relations * logits[:, 1:].log_softmax(dim=1)).sum(dim=1).mean()


def ceiling(logits):
    return -(1 - logits.softmax(dim=1)[:, 0]).log().mean()


# Two images and three queue rows, tau = 0.5, tau_m = 0.4, lambda = 0.25:
#
# image 1: own key 0.8 / 0.5 = 1.6, queue (2, 0, -1.2); exp 4.953032, (7.389056, 1, 0.301194), sum 13.643283,
#          log 2.613247
#          z2 (2, 1.5, 0) exp (7.389056, 4.481689, 1), sum 12.870745
#          s2 = (0.574097, 0.348208, 0.077696); sum_k s2 logit = 2 * 0.574097 - 1.2 * 0.077696 = 1.054959
# image 2: own key 1.6, queue (0, 2, 1.6); exp 4.953032, (1, 7.389056, 4.953032), sum 18.295121, log 2.906634
#          z2 (1.5, 2, 0.7) exp (4.481689, 7.389056, 2.013753), sum 13.884498
#          s2 = (0.322784, 0.532180, 0.145036); sum_k s2 logit = 2 * 0.532180 + 1.6 * 0.145036 = 1.296418
EXAMPLE = {
    "query": torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64),
    "key": torch.tensor([[0.8, 0.6], [0.6, 0.8]], dtype=torch.float64),
    "columns": torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.6, 0.8]], dtype=torch.float64),
    "temperature": 0.5,
    "target_temperature": 0.4,
    "coefficient": 0.25,
}


def test_the_masked_loss_by_hand():
    # 2.613247 - 0.25 * 1.6 - 0.75 * 1.054959 = 1.422028
    # 2.906634 - 0.25 * 1.6 - 0.75 * 1.296418 = 1.534321, mean 1.478174
    assert sce_loss(**EXAMPLE).item() == pytest.approx(1.478174, abs=SIX_DIGITS)


def test_the_loss_with_self_similarity_zero_by_hand():
    # The own column of the target's softmax gets 1 / (1 + 12.870745) = 0.072094 and 1 / (1 + 13.884498) = 0.067184:
    # 2.613247 - (0.25 + 0.75 * 0.072094) * 1.6 - 0.75 * 0.927906 * 1.054959 = 1.392557
    # 2.906634 - (0.25 + 0.75 * 0.067184) * 1.6 - 0.75 * 0.932816 * 1.296418 = 1.519024, mean 1.455790
    assert sce_loss(**EXAMPLE, self_similarity="zero").item() == pytest.approx(1.455790, abs=SIX_DIGITS)


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0])
def test_the_loss_is_the_cross_entropy_of_equation_8(coefficient, inputs):
    logits, relations = dense_terms(*inputs)
    target = torch.cat([torch.full((5, 1), coefficient), (1 - coefficient) * relations], dim=1)
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(sce_loss(*inputs, coefficient=coefficient), expected)


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0])
def test_proposition_1_splits_the_loss_into_contrastive_relational_and_ceiling(coefficient, inputs):
    logits, relations = dense_terms(*inputs)
    rest = 1 - coefficient
    expected = coefficient * info_nce_of_moco(logits) + rest * ressl(logits, relations) + rest * ceiling(logits)
    torch.testing.assert_close(sce_loss(*inputs, coefficient=coefficient), expected)
    torch.testing.assert_close(sce_loss(*inputs, weights=(coefficient, rest, rest)), expected)


def test_coefficient_one_is_the_loss_of_moco_v2(inputs):
    torch.testing.assert_close(sce_loss(*inputs, coefficient=1.0), info_nce_of_moco(dense_terms(*inputs)[0]))


def test_weights_0_1_0_are_ressl(inputs):
    torch.testing.assert_close(sce_loss(*inputs, weights=(0.0, 1.0, 0.0)), ressl(*dense_terms(*inputs)))


def test_coefficient_zero_is_not_ressl(inputs):
    difference = sce_loss(*inputs, coefficient=0.0) - sce_loss(*inputs, weights=(0.0, 1.0, 0.0))
    torch.testing.assert_close(difference, ceiling(dense_terms(*inputs)[0]))
    assert difference > APART


def test_free_weights_weigh_the_three_terms(inputs):
    logits, relations = dense_terms(*inputs)
    expected = 0.5 * info_nce_of_moco(logits) + 0.7 * ressl(logits, relations) + 0.2 * ceiling(logits)
    torch.testing.assert_close(sce_loss(*inputs, weights=(0.5, 0.7, 0.2)), expected)


def test_self_similarity_zero_differs_from_mask_by_its_closed_form(inputs):
    _, key, queue = inputs
    logits, relations = dense_terms(*inputs)
    log_prob = logits.log_softmax(dim=1)
    # L_zero - L_mask = (1 - lambda) s_self (-log p_ii + sum_k s2_ik log p_ik)
    self_prob = 1 / (1 + (key @ queue.T / 0.05).exp().sum(dim=1))
    expected = (0.7 * self_prob * (-log_prob[:, 0] + (relations * log_prob[:, 1:]).sum(dim=1))).mean()
    actual = sce_loss(*inputs, coefficient=0.3, self_similarity="zero") - sce_loss(*inputs, coefficient=0.3)
    assert expected.abs() > 1e6 * DOUBLE
    torch.testing.assert_close(actual, expected, rtol=0, atol=DOUBLE)


@pytest.mark.parametrize("self_similarity", ["mask", "zero"])
def test_in_batch_columns_are_the_other_keys_of_the_global_batch(self_similarity, inputs):
    query, _, queue = inputs
    batch_keys = unit_rows(9)
    key = batch_keys[3:8]
    losses = []
    for row in range(5):
        others = torch.cat([batch_keys[: 3 + row], batch_keys[4 + row :]])
        columns = torch.cat([queue, others])
        # Row by row, the others are simply more queue.
        losses.append(sce_loss(query[[row]], key[[row]], columns, self_similarity=self_similarity))
    loss = sce_loss(query, key, Columns(queue, None, batch_keys, 3), self_similarity=self_similarity)
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_in_batch_columns_agree_with_a_dense_loss(inputs):
    query, key, queue = inputs
    mask = torch.eye(5, dtype=torch.bool)
    logits = torch.cat([query @ key.T, query @ queue.T], dim=1) / 0.1
    own = torch.cat([mask, torch.zeros(5, 30, dtype=torch.bool)], dim=1)
    relations = (torch.cat([key @ key.T, key @ queue.T], dim=1) / 0.05).masked_fill(own, -torch.inf).softmax(dim=1)
    target = 0.4 * own + 0.6 * relations
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(sce_loss(query, key, Columns(queue, batch_keys=key), coefficient=0.4), expected)


@pytest.mark.parametrize(
    ("options", "of_columns"),
    [
        ({}, {}),
        ({"self_similarity": "zero"}, {}),
        ({"weights": (0.5, 0.7, 0.2)}, {}),
        ({}, {"length": torch.tensor(11)}),
        ({}, {"batch_keys": F.normalize(torch.arange(40.0).sin().reshape(5, 8).double(), dim=1)}),
    ],
    ids=["mask", "zero", "weights", "length", "batch_keys"],
)
def test_the_gradient_matches_finite_differences(options, of_columns, inputs):
    query, key, queue = inputs
    columns = Columns(queue, **of_columns)
    assert torch.autograd.gradcheck(lambda query: sce_loss(query, key, columns, **options), query.requires_grad_())


@pytest.mark.parametrize("options", [{}, {"self_similarity": "zero"}, {"weights": (1.0, 1.0, 1.0)}], ids=str)
def test_an_empty_queue_gives_no_loss_and_no_gradient(options, inputs):
    query, key, queue = inputs
    loss = sce_loss(query.requires_grad_(), key, Columns(queue, torch.tensor(0)), **options)
    loss.backward()
    assert loss == 0
    assert (query.grad == 0).all()


def test_a_partly_filled_queue_is_its_filled_part(inputs):
    query, key, queue = inputs
    expected = sce_loss(query, key, queue[:11])
    torch.testing.assert_close(sce_loss(query, key, Columns(queue, torch.tensor(11))), expected)


def test_key_and_queue_receive_no_gradient(inputs):
    leaves = [tensor.requires_grad_() for tensor in inputs]
    sce_loss(*leaves).backward()
    assert [leaf.grad is not None for leaf in leaves] == [True, False, False]


def test_the_loss_is_a_float32_scalar_under_autocast(inputs):
    query, key, queue = (tensor.bfloat16() for tensor in inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sce_loss(query, key, queue)
    assert loss.dtype == torch.float32
    exact = sce_loss(query.double(), key.double(), queue.double())
    torch.testing.assert_close(loss.double(), exact, atol=loss_rounding(0.1, 8, 30), rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"target_temperature": -0.05}, "target_temperature must be > 0, got -0.05"),
        ({"coefficient": 2.0}, r"coefficient must be in \[0, 1\], got 2.0"),
        ({"self_similarity": "one"}, "self_similarity must be 'mask' or 'zero', got 'one'"),
        (
            {"weights": (0.5, 0.5, 0.5), "self_similarity": "zero"},
            "free weights need self_similarity='mask', got 'zero'",
        ),
        (
            {"weights": (0.5, 0.5, 0.5), "coefficient": 0.7},
            "take the place of coefficient; leave it alone, got 0.7",
        ),
    ],
    ids=["temperature", "target_temperature", "coefficient", "self_similarity", "weights", "weights and coefficient"],
)
def test_a_bad_argument_is_an_error_that_names_it(options, message, inputs):
    with pytest.raises(ValueError, match=message):
        sce_loss(*inputs, **options)
