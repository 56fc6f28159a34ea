"""Queue losses: hand-worked values, properties, dense twins, exact gradients, empty queues."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_core.losses import (
    Columns,
    info_nce,
    key_softmax,
    soft_target_cross_entropy,
    soft_target_terms,
)
from ssl_core.testing import ROUNDING, SIX_DIGITS, assert_as_accurate, loss_rounding

TEMPERATURES = {"temperature": 0.1, "target_temperature": 0.05}

# The example of all values worked by hand: two queries, three queue rows.
QUERY = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
POSITIVE = torch.tensor([[0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
TARGET_QUERY = torch.tensor([[0.6, 0.8], [0.8, 0.6]], dtype=torch.float64)
QUEUE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)


def unit_rows(*shape, dtype=torch.float32):
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def loss_options(queue, options):
    """Options of a loss, those of its columns made one."""
    of_columns = {name: options[name] for name in Columns._fields if name in options}
    columns = Columns(queue, **of_columns) if of_columns else queue
    return {"columns": columns} | {name: value for name, value in options.items() if name not in of_columns}


def soft(query, positive, target_query, queue, *, coefficient=0.4, **options):
    options = {"coefficient": coefficient} | TEMPERATURES | loss_options(queue, options)
    return soft_target_cross_entropy(query, positive, target_query, **options)


def relational(query, positive, target_query, queue, **options):
    return soft_target_terms(query, positive, target_query, **TEMPERATURES | loss_options(queue, options)).relational


def contrastive(query, positive, target_query, queue, *, temperature=0.1, **options):
    return info_nce(query, positive, temperature=temperature, **loss_options(queue, options))


ALL = pytest.mark.parametrize("loss", [contrastive, relational, soft], ids=lambda loss: loss.__name__)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=SIX_DIGITS, rtol=0)


# (1) Values worked by hand. With tau = 0.5 and tau_m = 0.4:
#
# query 1: logits (2, 0, 1.2), exp (7.389056, 1, 3.320117), sum 11.709173, lse 2.460373
#          positive 0.8 / 0.5 = 1.6, exp 4.953032; log(11.709173 + 4.953032) = 2.813143
#          target logits (1.5, 2, 2.5), exp (4.481689, 7.389056, 12.182494), sum 24.053239
#          target (0.186324, 0.307196, 0.506480), its mean of the logits 2 * 0.186324 + 1.2 * 0.506480 = 0.980424
# query 2: logits (0, 2, 1.6), exp (1, 7.389056, 4.953032), sum 13.342089, lse 2.590924
#          positive 2, exp 7.389056; log(13.342089 + 7.389056) = 3.031637
#          target logits (2, 1.5, 2.4), exp (7.389056, 4.481689, 11.023176), sum 22.893922
#          target (0.322752, 0.195759, 0.481489), its mean of the logits 2 * 0.195759 + 1.6 * 0.481489 = 1.161901


def test_info_nce_by_hand():
    # 2.813143 - 1.6, 3.031637 - 2
    assert_close(info_nce(QUERY, POSITIVE, QUEUE, 0.5), [1.213143, 1.031637])


def test_the_relational_term_by_hand():
    # 2.460373 - 0.980424, 2.590924 - 1.161901
    loss = relational(QUERY, POSITIVE, TARGET_QUERY, QUEUE, temperature=0.5, target_temperature=0.4)
    assert_close(loss, [1.479949, 1.429023])


def test_terms_by_hand():
    terms = soft_target_terms(QUERY, POSITIVE, TARGET_QUERY, QUEUE, temperature=0.5, target_temperature=0.4)
    assert_close(terms.contrastive, [1.213143, 1.031637])
    assert_close(terms.relational, [1.479949, 1.429023])
    # 2.813143 - 2.460373, 3.031637 - 2.590924
    assert_close(terms.ceiling, [0.352770, 0.440714])
    # 1 / (1 + 24.053239), 1 / (1 + 22.893922)
    assert_close(terms.self_prob, [0.039915, 0.041852])


def test_soft_target_cross_entropy_by_hand_with_the_self_column_masked():
    # w = 0.5 onehot + 0.5 target; 2.813143 - 0.5 * 1.6 - 0.5 * 0.980424, 3.031637 - 0.5 * 2 - 0.5 * 1.161901
    options = {"temperature": 0.5, "target_temperature": 0.4, "self_similarity": "mask"}
    assert_close(soft(QUERY, POSITIVE, TARGET_QUERY, QUEUE, coefficient=0.5, **options), [1.522931, 1.450687])


def test_soft_target_cross_entropy_by_hand_with_self_similarity_zero():
    # The positive's share is 0.5 + 0.5 * 0.039915 = 0.519957 and 0.5 + 0.5 * 0.041852 = 0.520926:
    # 2.813143 - 0.519957 * 1.6 - 0.480043 * 0.980424, 3.031637 - 0.520926 * 2 - 0.479074 * 1.161901
    options = {"temperature": 0.5, "target_temperature": 0.4, "self_similarity": "zero"}
    assert_close(soft(QUERY, POSITIVE, TARGET_QUERY, QUEUE, coefficient=0.5, **options), [1.510566, 1.433149])


def test_key_softmax_by_hand():
    # The positive joins the queue; the target queries are a second set of queries, at 0.4:
    # query 1: log(4.953032 + 11.709173) = 2.813143; p (0.297262, 0.443462, 0.060016, 0.199260)
    # query 2: 3.031637; p (0.356423, 0.048237, 0.356423, 0.238917)
    # target query 1: positive 0.96 / 0.4 = 2.4, exp 11.023176; log(11.023176 + 24.053239) = 3.557529;
    #                 p (0.314262, 0.127769, 0.210656, 0.347313)
    # target query 2: positive 0.6 / 0.4 = 1.5, exp 4.481689; log(4.481689 + 22.893922) = 3.309652;
    #                 p (0.163711, 0.269914, 0.163711, 0.402664)
    softmax = key_softmax(torch.stack([QUERY, TARGET_QUERY]), POSITIVE, QUEUE, [0.5, 0.4])
    assert_close(softmax.lse, [[2.813143, 3.031637], [3.557529, 3.309652]])
    # 1.6 - 2.813143, 2 - 3.031637, 2.4 - 3.557529, 1.5 - 3.309652
    assert_close(softmax.log_prob, [[-1.213143, -1.031637], [-1.157529, -1.809652]])
    # p_1 k+ + p_2 (1, 0) + p_3 (0, 1) + p_4 (0.6, 0.8)
    of_queries, of_target_queries = (
        [[0.800827, 0.397781], [0.191587, 0.903980]],
        [[0.587566, 0.677063], [0.511512, 0.649553]],
    )
    assert_close(softmax.expectation, [of_queries, of_target_queries])


# (2) Properties.


@pytest.fixture
def inputs():
    """Query, positive, target query, queue."""
    return unit_rows(6, 8), unit_rows(6, 8), unit_rows(6, 8), unit_rows(40, 8)


def test_coefficient_one_is_info_nce(inputs):
    query, positive, _, queue = inputs
    torch.testing.assert_close(soft(*inputs, coefficient=1.0), info_nce(query, positive, queue, 0.1))


def test_the_loss_is_at_least_the_entropy_of_the_target(inputs):
    query, positive, target_query, queue = (tensor.double() for tensor in inputs)
    target = (target_query @ queue.T / 0.05).softmax(dim=1)
    for coefficient in (0.0, 0.4, 1.0):
        mixed = torch.cat([torch.full((6, 1), coefficient).double(), (1 - coefficient) * target], dim=1)
        entropy = -torch.xlogy(mixed, mixed).sum(dim=1)
        assert (soft(query, positive, target_query, queue, coefficient=coefficient) >= entropy).all()
    assert (relational(query, positive, target_query, queue) >= -torch.xlogy(target, target).sum(dim=1)).all()


def test_the_relational_loss_is_the_entropy_where_student_and_target_agree(inputs):
    query, _, _, queue = (tensor.double() for tensor in inputs)
    log_prob = (query @ queue.T / 0.07).log_softmax(dim=1)
    loss = relational(query, query, query, queue, temperature=0.07, target_temperature=0.07)
    torch.testing.assert_close(loss, -(log_prob.exp() * log_prob).sum(dim=1))


@ALL
def test_permuting_the_queue_changes_nothing(loss, inputs):
    query, positive, target_query, queue = inputs
    permuted = loss(query, positive, target_query, queue[torch.randperm(40)])
    torch.testing.assert_close(permuted, loss(*inputs))


@ALL
def test_a_shift_of_all_logits_changes_neither_loss_nor_gradient(loss, inputs):
    # One vector added to every key adds the same number to all logits of a row.
    query, positive, target_query, queue = (tensor.double() for tensor in inputs)
    shift = torch.randn(8, dtype=torch.float64)
    results = []
    for vector in (shift * 0, shift):
        leaf = query.clone().requires_grad_()
        rows = loss(leaf, positive + vector, target_query, queue + vector)
        rows.sum().backward()
        results.append((rows, leaf.grad))
    torch.testing.assert_close(results[1], results[0])


def test_each_of_several_positives_has_its_own_denominator(inputs):
    query, _, _, queue = inputs
    positives = unit_rows(3, 6, 8)
    alone = torch.stack([info_nce(query, positive, queue, 0.1) for positive in positives])
    torch.testing.assert_close(info_nce(query, positives, queue, 0.1), alone)


@pytest.mark.parametrize("self_similarity", ["mask", "zero"])
def test_views_that_share_a_target_have_the_losses_that_they_have_alone(self_similarity, inputs):
    _, positive, target_query, queue = inputs
    views, batch_keys = unit_rows(3, 6, 8).requires_grad_(), unit_rows(9, 8)
    options = {"self_similarity": self_similarity, "batch_keys": batch_keys, "row_offset": 2}
    alone = torch.stack([soft(view, positive, target_query, queue, **options) for view in views])
    together = soft(views, positive, target_query, queue, **options)
    torch.testing.assert_close(together, alone)
    gradients = [torch.autograd.grad(losses.sum(), views)[0] for losses in (together, alone)]
    torch.testing.assert_close(*gradients)


def test_the_terms_add_up_to_the_loss(inputs):
    terms = soft_target_terms(*inputs, **TEMPERATURES)
    weighted = 0.4 * terms.contrastive + 0.6 * (terms.relational + terms.ceiling)
    torch.testing.assert_close(soft(*inputs, coefficient=0.4), weighted)


# (3) Against dense twins, and what the losses cost.


def dense_losses(query, positive, target_query, columns, seen, coefficient, self_similarity):
    """All three losses in float64 from full matrices; seen (n columns) says which columns a row has."""
    hidden = ~seen
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ columns.T], dim=1) / 0.1
    logits[:, 1:].masked_fill_(hidden, -torch.inf)
    self_logit = torch.full((len(query), 1), -torch.inf if self_similarity == "mask" else 0.0).double()
    target_logits = (target_query @ columns.T / 0.05).masked_fill(hidden, -torch.inf)
    onehot = F.one_hot(torch.zeros(len(query), dtype=torch.int64), logits.shape[1])
    target = coefficient * onehot + (1 - coefficient) * torch.cat([self_logit, target_logits], dim=1).softmax(1)

    def cross_entropy(target, logits):
        log_prob = logits.log_softmax(dim=1)
        return -(target * log_prob.masked_fill(target == 0, 0.0)).sum(dim=1)

    return {
        contrastive: cross_entropy(onehot.double(), logits),
        relational: cross_entropy(target_logits.softmax(1), logits[:, 1:]),
        soft: cross_entropy(target, logits),
    }


@ALL
@pytest.mark.parametrize("self_similarity", ["mask", "zero"])
@pytest.mark.parametrize("length", [40, 17, 0])
def test_queue_and_batch_columns_agree_with_a_dense_loss(loss, self_similarity, length, inputs):
    query, positive, target_query, queue = (tensor.double() for tensor in inputs)
    batch_keys = unit_rows(9, 8, dtype=torch.float64)
    seen = torch.ones(6, 49, dtype=torch.bool)
    seen[:, length:40] = False
    seen[torch.arange(6), 40 + 2 + torch.arange(6)] = False
    columns = torch.cat([queue, batch_keys])
    options = {"self_similarity": self_similarity} if loss is soft else {}
    leaves = [query.clone().requires_grad_() for _ in range(2)]
    actual = loss(
        leaves[0],
        positive,
        target_query,
        queue,
        length=torch.tensor(length),
        batch_keys=batch_keys,
        row_offset=2,
        **options,
    )
    expected = dense_losses(leaves[1], positive, target_query, columns, seen, 0.4, self_similarity)[loss]
    torch.testing.assert_close(actual, expected)
    actual.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


@ALL
def test_tiled_losses_are_as_accurate_as_those_of_the_reference(loss, inputs):
    query, _, _, queue = inputs
    queue[:6] = F.normalize(query + 0.01 * torch.randn(6, 8), dim=1)
    actual = loss(*inputs, backend="tiled")
    eager = loss(*inputs, backend="reference")
    assert actual.dtype == torch.float32
    assert_as_accurate(actual, eager, loss(*(tensor.double() for tensor in inputs)))


@ALL
def test_two_halves_of_a_batch_with_row_offsets_are_the_whole(loss, inputs):
    query, positive, target_query, queue = inputs
    keys = unit_rows(6, 8)
    whole = loss(*inputs, batch_keys=keys)
    halves = [
        loss(query[rows], positive[rows], target_query[rows], queue, batch_keys=keys, row_offset=rows.start)
        for rows in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(torch.cat(halves), whole)


def test_each_loss_reads_the_queue_once(inputs, passes):
    query, _, _, queue = inputs
    for run, expected in (
        (lambda: info_nce(query, unit_rows(3, 6, 8), queue, 0.1), [(6, 40)]),
        (lambda: relational(*inputs), [(12, 40)]),
        (lambda: soft(*inputs, self_similarity="zero"), [(12, 40)]),
        (lambda: soft(*inputs, batch_keys=query), [(12, 40), (12, 6)]),
        (lambda: soft(unit_rows(3, 6, 8), *inputs[1:]), [(24, 40)]),
    ):
        assert passes(run) == expected


@ALL
def test_autocast_changes_nothing(loss, inputs):
    plain = loss(*inputs, batch_keys=inputs[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(*inputs, batch_keys=inputs[1]), plain)


@ALL
def test_bfloat16_embeddings_give_a_float32_loss(loss, inputs):
    halves = [tensor.bfloat16() for tensor in inputs]
    actual = loss(*halves, batch_keys=halves[1])
    assert actual.dtype == torch.float32
    doubles = [tensor.double() for tensor in halves]
    exact = loss(*doubles, batch_keys=doubles[1])
    torch.testing.assert_close(actual.double(), exact, atol=loss_rounding(0.1, 8, 46), rtol=0)


# (4) Gradients.


@ALL
def test_the_gradient_matches_finite_differences(loss):
    inputs = [unit_rows(3, 4, dtype=torch.float64) for _ in range(3)] + [unit_rows(7, 4, dtype=torch.float64)]
    batch_keys, temperature = unit_rows(3, 4, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)

    def of_query_and_temperature(query, temperature):
        return loss(query, *inputs[1:], temperature=temperature, batch_keys=batch_keys)

    leaves = (inputs[0].requires_grad_(), temperature.requires_grad_())
    assert torch.autograd.gradcheck(of_query_and_temperature, leaves)


def test_several_positives_and_self_similarity_zero_match_finite_differences():
    query, positives = unit_rows(3, 4, dtype=torch.float64).requires_grad_(), unit_rows(2, 3, 4, dtype=torch.float64)
    queue = unit_rows(7, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda query: info_nce(query, positives, queue, 0.2), query)
    assert torch.autograd.gradcheck(
        lambda query: soft(query, *positives, queue, self_similarity="zero", temperature=0.2), query
    )


@ALL
def test_only_the_query_receives_a_gradient(loss, inputs):
    batch_keys = unit_rows(6, 8)
    leaves = [tensor.requires_grad_() for tensor in (*inputs, batch_keys)]
    loss(*leaves[:4], batch_keys=batch_keys).sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == [True, False, False, False, False]


SATURATED = 2 * 16 * ROUNDING  # of e^-16: two roundings of the exponent


def test_a_saturated_info_nce_keeps_its_value_and_gradient():
    # s+ = 1 / 0.1 = 10, lse = -0.6 / 0.1 = -6: loss log(1 + e^-16) = 1.12535e-7, and the gradient is
    # w (E - k+) / tau with w = sigmoid(-16) = 1.12535e-7 and E - k+ = (-0.6, 0.8) - (1, 0) = (-1.6, 0.8).
    query = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = info_nce(query, torch.tensor([[1.0, 0.0]]), torch.tensor([[-0.6, 0.8]]), 0.1)
    loss.sum().backward()
    weight = 1 / (1 + math.exp(16))
    torch.testing.assert_close(loss, torch.tensor([math.log1p(math.exp(-16))]), rtol=SATURATED, atol=0)
    torch.testing.assert_close(query.grad, weight * torch.tensor([[-16.0, 8.0]]), rtol=SATURATED, atol=0)


def test_a_saturated_negative_keeps_the_gradient_of_the_ceiling():
    # s+ = -6, lse = 10: -log(1 - p) = log(1 + e^-16) and its gradient p (k+ - E) / tau.
    query = torch.tensor([[1.0, 0.0]], requires_grad=True)
    positive, queue = torch.tensor([[-0.6, 0.8]]), torch.tensor([[1.0, 0.0]])
    ceiling = soft_target_terms(query, positive, positive, queue, **TEMPERATURES).ceiling
    ceiling.sum().backward()
    prob = 1 / (1 + math.exp(16))
    torch.testing.assert_close(ceiling, torch.tensor([math.log1p(math.exp(-16))]), rtol=SATURATED, atol=0)
    torch.testing.assert_close(query.grad, prob * torch.tensor([[-16.0, 8.0]]), rtol=SATURATED, atol=0)


# The softmax over positive and columns.


def dense_key_softmax(query, positive, queue, temperatures, batch_keys, row_offset):
    """The same as (lse, expectation, log_prob) from full matrices; differentiable."""
    num_rows = query.shape[1]
    own = torch.eye(len(batch_keys), dtype=torch.bool)[row_offset:][:num_rows]
    keys = torch.cat([positive[:, None], torch.cat([queue, batch_keys]).expand(num_rows, -1, -1)], dim=1)
    hidden = torch.cat([torch.zeros(num_rows, 1 + len(queue), dtype=torch.bool), own], dim=1)
    logits = torch.einsum("vnd,nkd->vnk", query, keys) / torch.tensor(temperatures).double()[:, None, None]
    logits = logits.masked_fill(hidden, -torch.inf)
    expectation = torch.einsum("vnk,nkd->vnd", logits.softmax(-1), keys)
    return logits.logsumexp(-1), expectation, logits.log_softmax(-1)[..., 0]


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_the_softmax_over_positive_and_columns_agrees_with_a_dense_one(backend):
    query, positive = unit_rows(3, 6, 8, dtype=torch.float64), unit_rows(6, 8, dtype=torch.float64)
    queue, batch_keys = unit_rows(40, 8, dtype=torch.float64), unit_rows(9, 8, dtype=torch.float64)
    temperatures = [0.1, 0.2, 0.1]
    actual = key_softmax(query, positive, Columns(queue, None, batch_keys, 2), temperatures, backend=backend)
    expected = dense_key_softmax(query, positive, queue, temperatures, batch_keys, 2)
    torch.testing.assert_close(tuple(actual), expected)


@pytest.mark.parametrize("batch", [False, True], ids=["queue", "queue and batch"])
def test_the_softmaxs_values_match_finite_differences_and_with_the_reference_its_expectation_too(batch):
    query, positive = unit_rows(2, 3, 4, dtype=torch.float64).requires_grad_(), unit_rows(3, 4, dtype=torch.float64)
    columns = Columns(unit_rows(7, 4, dtype=torch.float64), batch_keys=positive if batch else None)

    def softmax(query, backend):
        return key_softmax(query, positive, columns, [0.1, 0.2], backend=backend)

    assert torch.autograd.gradcheck(lambda query: softmax(query, "tiled")[::2], query)
    assert torch.autograd.gradcheck(lambda query: softmax(query, "reference")[::2], query)
    assert torch.autograd.gradcheck(lambda query: softmax(query, "reference").expectation, query)
    assert not softmax(query, "tiled").expectation.requires_grad


def test_a_saturated_softmax_keeps_the_log_probability_of_its_positive():
    # s+ = 10, lse = -6 of the columns: -log(1 + e^-16), where the difference of the two sums is 0.
    query, queue = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[-0.6, 0.8]])
    log_prob = key_softmax(query, query[0], queue, [0.1]).log_prob
    torch.testing.assert_close(log_prob, torch.tensor([[-math.log1p(math.exp(-16))]]), rtol=SATURATED, atol=0)


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_without_any_column_the_positive_has_all_the_mass(backend):
    query, positive = unit_rows(2, 1, 4).requires_grad_(), unit_rows(1, 4)
    columns = Columns(unit_rows(5, 4), length=0, batch_keys=positive)
    softmax = key_softmax(query, positive, columns, [0.1, 0.2], backend=backend)
    assert torch.equal(softmax.log_prob.abs(), torch.zeros(2, 1))
    torch.testing.assert_close(softmax.expectation, positive.expand(2, 1, 4))
    (gradient,) = torch.autograd.grad(softmax.lse.sum(), query)
    torch.testing.assert_close(gradient, torch.stack([positive / 0.1, positive / 0.2]))


def test_a_set_of_queries_without_a_temperature_is_an_error():
    with pytest.raises(ValueError, match="one number for each of 2 sets, got 1"):
        key_softmax(unit_rows(2, 3, 4), unit_rows(3, 4), unit_rows(5, 4), [0.1])


# Empty queues and errors.


@ALL
@pytest.mark.parametrize("backend", ["tiled", "reference"])
@pytest.mark.parametrize("length", [0, torch.tensor(0), None], ids=["int", "tensor", "no rows"])
@pytest.mark.parametrize("batch", [False, True], ids=["queue alone", "own key alone"])
def test_without_any_column_loss_and_gradient_are_zero(loss, backend, length, batch):
    query, positive, target_query = (unit_rows(1, 4) for _ in range(3))
    options = {"batch_keys": positive} if batch else {}
    queue = unit_rows(5, 4) if length is not None else torch.empty(0, 4)
    rows = loss(query.requires_grad_(), positive, target_query, queue, length=length, backend=backend, **options)
    rows.sum().backward()
    assert torch.equal(rows.abs(), torch.zeros(1))
    assert torch.equal(query.grad.abs(), torch.zeros(1, 4))


def test_without_any_column_self_similarity_zero_is_zero_as_well():
    query, positive = unit_rows(2, 4).requires_grad_(), unit_rows(2, 4)
    rows = soft(query, positive, positive, unit_rows(5, 4), length=0, self_similarity="zero")
    rows.sum().backward()
    assert torch.equal(rows.abs(), torch.zeros(2))
    assert torch.equal(query.grad.abs(), torch.zeros(2, 4))


@ALL
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"batch_keys": torch.ones(7, 8), "row_offset": 2}, "batch_keys has 7 rows, which must include the own 6"),
        ({"batch_keys": torch.ones(7, 8), "row_offset": -1}, "from row_offset=-1 on"),
        ({"length": 41}, r"length must be in \[0, 40\]"),
        ({"backend": "abacus"}, "backend='abacus' cannot run queue_attention"),
    ],
    ids=["temperature", "batch_keys", "row_offset", "length", "backend"],
)
def test_a_bad_argument_is_an_error_that_names_it(loss, options, message, inputs):
    with pytest.raises(ValueError, match=message):
        loss(*inputs, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_temperature": -1.0}, "target_temperature must be > 0, got -1.0"),
        ({"coefficient": 1.5}, r"coefficient must be in \[0, 1\], got 1.5"),
        ({"self_similarity": "one"}, "self_similarity must be 'mask' or 'zero', got 'one'"),
    ],
    ids=["target_temperature", "coefficient", "self_similarity"],
)
def test_a_bad_argument_of_the_soft_target_is_an_error_that_names_it(options, message, inputs):
    with pytest.raises(ValueError, match=message):
        soft(*inputs, **options)
