"""CLSA's loss against the paper's equations and the released code's formula, written densely here."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_clsa.loss import clsa_loss
from ssl_core.losses import Columns, info_nce
from ssl_core.testing import DOUBLE, SIX_DIGITS, loss_rounding

# w weak and s strong views: the released scripts' Single and Multi, and the paper's reading of Multi.
MODES = pytest.mark.parametrize(("w", "s"), [(1, 1), (5, 5), (1, 5)], ids=["single", "multi", "multi_paper"])


def unit_rows(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def make_inputs(w=2, s=3, n=5, k=30, d=8):
    """Weak queries, strong queries, key, queue."""
    return unit_rows(w, n, d), unit_rows(s, n, d), unit_rows(n, d), unit_rows(k, d)


@pytest.fixture
def inputs():
    return make_inputs()


def loss_of(
    weak_queries,
    strong_queries,
    key,
    queue,
    *,
    in_batch_negatives=True,
    length=None,
    batch_keys=None,
    row_offset=0,
    **options,
):
    """The loss over the released code's columns, in one process, or over the paper's."""
    batch_keys = key if batch_keys is None and in_batch_negatives else batch_keys
    return clsa_loss(weak_queries, strong_queries, key, Columns(queue, length, batch_keys, row_offset), **options)


def released_loss(
    weak, strong, key, queue, *, temperature=0.2, divergence_temperature=0.2, weight=1.0, row_offset=0, detach=True
):
    """Every logit matrix of the released code: all keys of the batch as columns, then the queue; sums over views."""
    columns = torch.cat([key, queue])
    own = row_offset + torch.arange(weak.shape[1])
    contrastive = divergence = 0
    for weak_n in weak:
        logits = weak_n @ columns.T
        contrastive = contrastive + F.cross_entropy(logits / temperature, own)
        target = (logits / divergence_temperature).softmax(dim=1)
        for strong_n in strong:
            log_prob = (strong_n @ columns.T / divergence_temperature).log_softmax(dim=1)
            divergence = divergence - ((target.detach() if detach else target) * log_prob).sum(dim=1).mean()
    return contrastive + weight * divergence, contrastive, divergence


# (1) Worked by hand. Two images, one weak and one strong view of each, one queue row, tau = 0.5, tau_2 = 0.4. Logits
# of [own key, other key, queue row]:
#
# weak 1, tau    (1.6, 1.2, -1.2)  exp (4.953032, 3.320117, 0.301194), sum 8.574344, log 2.148774
# weak 1, tau_2  (2, 1.5, -1.5)    exp (7.389056, 4.481689, 0.223130), p (0.610975, 0.370575, 0.018450)
# strong 1       (2.4, 2.5, 0.7)   exp (11.023176, 12.182494, 2.013753), sum 25.219423, log 3.227614
# weak 2, tau    (1.6, 1.2, 1.6)   exp (4.953032, 3.320117, 4.953032), sum 13.226182, log 2.582198
# weak 2, tau_2  (2, 1.5, 2)       exp (7.389056, 4.481689, 7.389056), p (0.383652, 0.232697, 0.383652)
# strong 2       (1.5, 2, -1.5)    exp (4.481689, 7.389056, 0.223130), sum 12.093875, log 2.492699
EXAMPLE = {
    "weak_queries": torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64),
    "strong_queries": torch.tensor([[[0.6, 0.8], [1.0, 0.0]]], dtype=torch.float64),
    "key": torch.tensor([[0.8, 0.6], [0.6, 0.8]], dtype=torch.float64),
    "queue": torch.tensor([[-0.6, 0.8]], dtype=torch.float64),
    "temperature": 0.5,
    "divergence_temperature": 0.4,
}


def test_the_loss_by_hand():
    # contrastive: 2.148774 - 1.6 = 0.548774, 2.582198 - 1.6 = 0.982198, mean 0.765486
    # divergence: 3.227614 - (2.4 * 0.610975 + 2.5 * 0.370575 + 0.7 * 0.018450) = 0.821922,
    #             2.492699 - (1.5 * 0.383652 + 2 * 0.232697 - 1.5 * 0.383652) = 2.027306, mean 1.424614
    # total: 0.765486 + 0.5 * 1.424614 = 1.477793
    loss = loss_of(**EXAMPLE, divergence_weight=0.5)
    assert [value.item() for value in loss] == pytest.approx([1.477793, 0.765486, 1.424614], abs=SIX_DIGITS)


def test_the_loss_of_the_papers_columns_by_hand():
    # Own key and queue row alone. Weak 1 log(4.953032 + 0.301194) = 1.659033, weak 2 log(2 * 4.953032) = 2.293147:
    # contrastive 0.059033 and 0.693147, mean 0.376090
    # p 7.389056 / (7.389056 + 0.223130) = 0.970688 and 0.5; strong log 2.567786 and 1.548587
    # divergence 2.567786 - (2.4 * 0.970688 + 0.7 * 0.029312) = 0.217617, 1.548587 - 0, mean 0.883102
    loss = loss_of(**EXAMPLE, in_batch_negatives=False)
    assert [value.item() for value in loss] == pytest.approx([1.259192, 0.376090, 0.883102], abs=SIX_DIGITS)


# (2) The released code.


@MODES
@pytest.mark.parametrize("divergence_temperature", [0.2, 0.1])
def test_value_and_gradients_are_those_of_the_released_code(w, s, divergence_temperature):
    weak, strong, key, queue = make_inputs(w, s)
    results = []
    for loss in (loss_of, released_loss):
        leaves = weak.clone().requires_grad_(), strong.clone().requires_grad_()
        values = loss(*leaves, key, queue, temperature=0.2, divergence_temperature=divergence_temperature)
        results.append((tuple(values), torch.autograd.grad(values[0], leaves)))
    torch.testing.assert_close(*results)


def test_the_defaults_are_those_of_the_released_code(inputs):
    torch.testing.assert_close(tuple(loss_of(*inputs)), released_loss(*inputs))


def test_the_weight_is_that_of_the_divergence(inputs):
    actual = loss_of(*inputs, divergence_weight=0.3)
    torch.testing.assert_close(tuple(actual), released_loss(*inputs, weight=0.3))


def test_without_in_batch_negatives_the_columns_are_the_own_key_and_the_queue(inputs):
    weak, strong, key, queue = inputs
    alone = [
        released_loss(weak[:, [row]], strong[:, [row]], key[[row]], queue, divergence_temperature=0.1)[0]
        for row in range(5)
    ]
    loss = loss_of(*inputs, divergence_temperature=0.1, in_batch_negatives=False)
    torch.testing.assert_close(loss.total, torch.stack(alone).mean())


@pytest.mark.parametrize("divergence_temperature", [0.2, 0.1])
def test_two_processes_with_half_the_batch_have_the_loss_of_the_whole(divergence_temperature, inputs):
    weak, strong, key, queue = inputs
    options = {"divergence_temperature": divergence_temperature}
    whole = loss_of(*inputs, **options).total
    parts = [
        len(key[rows])
        * loss_of(
            weak[:, rows], strong[:, rows], key[rows], queue, batch_keys=key, row_offset=rows.start, **options
        ).total
        for rows in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(sum(parts) / 5, whole)


# (3) Properties.


def test_a_strong_view_equal_to_the_weak_one_has_its_entropy_and_no_gradient(inputs):
    weak, _, key, queue = inputs
    strong = weak[:1].clone().requires_grad_()
    divergence = loss_of(weak[:1], strong, key, queue).divergence
    log_prob = (weak[0] @ torch.cat([key, queue]).T / 0.2).log_softmax(dim=1)
    torch.testing.assert_close(divergence, -(log_prob.exp() * log_prob).sum(dim=1).mean())
    (gradient,) = torch.autograd.grad(divergence, strong)
    assert gradient.abs().max() < DOUBLE


def test_the_divergence_is_at_least_the_entropy_of_the_target(inputs):
    weak, strong, key, queue = inputs
    log_prob = (weak[0] @ torch.cat([key, queue]).T / 0.1).log_softmax(dim=1)
    entropy = -(log_prob.exp() * log_prob).sum(dim=1).mean()
    assert loss_of(weak[:1], strong[:1], key, queue, divergence_temperature=0.1).divergence > entropy


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_averaged_target_gives_every_pair_of_a_weak_and_a_strong_view(reduction, inputs):
    weak, strong, key, queue = inputs
    pairs = [
        [loss_of(weak[[i]], strong[[j]], key, queue, divergence_temperature=0.1) for j in range(3)] for i in range(2)
    ]
    contrastive = torch.stack([row[0].contrastive for row in pairs])
    divergence = torch.stack([pair.divergence for row in pairs for pair in row])
    loss = loss_of(*inputs, divergence_temperature=0.1, reduction=reduction)
    torch.testing.assert_close(loss.contrastive, getattr(contrastive, reduction)())
    torch.testing.assert_close(loss.divergence, getattr(divergence, reduction)())
    torch.testing.assert_close(loss.total, loss.contrastive + loss.divergence)


def test_permuting_the_batch_or_the_queue_changes_nothing(inputs):
    weak, strong, key, queue = inputs
    order = torch.randperm(5)
    permuted = loss_of(weak[:, order], strong[:, order], key[order], queue[torch.randperm(30)])
    torch.testing.assert_close(permuted.total, loss_of(*inputs).total)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_without_strong_views_the_loss_is_info_nce(reduction, inputs):
    weak, _, key, queue = inputs
    loss = loss_of(weak, weak[:0], key, queue, divergence_temperature=0.1, reduction=reduction)
    rows = torch.stack([info_nce(query, key, Columns(queue, batch_keys=key), 0.2).mean() for query in weak])
    torch.testing.assert_close(loss.contrastive, getattr(rows, reduction)())
    assert loss.total == loss.contrastive
    assert loss.divergence == 0


def test_a_partly_filled_queue_is_its_filled_part(inputs):
    weak, strong, key, queue = inputs
    expected = loss_of(weak, strong, key, queue[:11])
    torch.testing.assert_close(loss_of(*inputs, length=torch.tensor(11)), expected)


@pytest.mark.parametrize("backend", ["tiled", "reference"])
@pytest.mark.parametrize("in_batch_negatives", [False, True], ids=["no batch", "batch of one"])
@pytest.mark.parametrize("divergence_temperature", [0.2, 0.1])
def test_an_empty_queue_gives_no_loss_and_no_gradient(backend, in_batch_negatives, divergence_temperature):
    weak, strong, key, queue = make_inputs(n=1)
    leaves = weak.requires_grad_(), strong.requires_grad_()
    loss = loss_of(
        *leaves,
        key,
        queue,
        length=torch.tensor(0),
        in_batch_negatives=in_batch_negatives,
        divergence_temperature=divergence_temperature,
        backend=backend,
    )
    assert not torch.stack(loss).any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss.total, leaves))


class PassCounter(TorchDispatchMode):
    """Records the rows and columns of each pass."""

    def __init__(self):
        super().__init__()
        self.passes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.ssl_core.queue_attention.default:
            self.passes.append((len(args[0]), len(args[1])))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("s", "options", "passes"),
    [
        (5, {}, [(50, 30), (50, 5)]),
        (5, {"divergence_temperature": 0.1}, [(75, 30), (75, 5)]),
        (0, {"divergence_temperature": 0.1}, [(25, 30), (25, 5)]),
        (5, {"in_batch_negatives": False}, [(50, 30)]),
    ],
    ids=["equal temperatures", "two temperatures", "no strong view", "own key and queue"],
)
def test_one_pass_over_the_queue_serves_all_views(s, options, passes):
    with PassCounter() as counter:
        loss_of(*make_inputs(5, s), **options)
    assert counter.passes == passes


# (4) Gradients and precision.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"divergence_temperature": 0.1, "divergence_weight": 0.7},
        {"in_batch_negatives": False},
        {"reduction": "mean", "length": torch.tensor(11)},
        {"batch_keys": F.normalize(torch.arange(36.0).sin().reshape(9, 4).double(), dim=1), "row_offset": 3},
    ],
    ids=["default", "two temperatures", "own key and queue", "mean", "batch_keys"],
)
def test_the_gradient_of_the_contrastive_term_and_to_the_strong_queries_matches_finite_differences(options):
    weak, strong, key, queue = make_inputs(n=3, k=14, d=4)
    assert torch.autograd.gradcheck(
        lambda weak: loss_of(weak, strong, key, queue, **options)[1], weak.clone().requires_grad_()
    )
    assert torch.autograd.gradcheck(
        lambda strong: loss_of(weak, strong, key, queue, **options)[0], strong.requires_grad_()
    )


def test_the_target_carries_no_gradient(inputs):
    weak, strong, key, queue = inputs
    for backend in ("tiled", "reference"):
        divergence = loss_of(weak.requires_grad_(), strong, key, queue, backend=backend).divergence
        assert not divergence.requires_grad or not torch.autograd.grad(divergence, weak)[0].any()


@pytest.mark.parametrize("divergence_temperature", [0.2, 0.1])
@pytest.mark.parametrize("in_batch_negatives", [False, True])
def test_a_target_with_gradient_matches_finite_differences(divergence_temperature, in_batch_negatives):
    weak, strong, key, queue = make_inputs(n=3, k=14, d=4)
    options = {
        "divergence_temperature": divergence_temperature,
        "in_batch_negatives": in_batch_negatives,
        "detach_target": False,
    }
    leaves = weak.requires_grad_(), strong.requires_grad_()
    assert torch.autograd.gradcheck(lambda *queries: loss_of(*queries, key, queue, **options), leaves)


def test_a_target_with_gradient_has_the_gradient_of_the_dense_formula(inputs):
    weak, *rest = inputs
    weak.requires_grad_()
    divergences = loss_of(weak, *rest, detach_target=False)[2], released_loss(weak, *rest, detach=False)[2]
    torch.testing.assert_close(*(torch.autograd.grad(divergence, weak) for divergence in divergences))


def test_keys_and_queue_receive_no_gradient(inputs):
    leaves = [tensor.requires_grad_() for tensor in (*inputs, unit_rows(9, 8))]
    loss_of(*leaves[:4], batch_keys=leaves[4], row_offset=2).total.backward()
    assert [leaf.grad is not None for leaf in leaves] == [True, True, False, False, False]


@pytest.mark.parametrize("divergence_temperature", [0.2, 0.1])
def test_the_loss_is_float32_under_autocast_and_exact_for_its_inputs(divergence_temperature, inputs):
    rounded = [tensor.bfloat16() for tensor in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(*rounded, divergence_temperature=divergence_temperature)
    assert {value.dtype for value in loss} == {torch.float32}
    exact = loss_of(*(tensor.double() for tensor in rounded), divergence_temperature=divergence_temperature)
    atol = (2 + 2 * 3) * loss_rounding(0.1, 8, 35)  # weak views, and pairs of a weak and a strong one
    torch.testing.assert_close(torch.stack(loss).double(), torch.stack(exact), atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"divergence_temperature": -0.2}, "divergence_temperature must be > 0, got -0.2"),
        ({"divergence_weight": -1.0}, "divergence_weight must be >= 0, got -1.0"),
        ({"reduction": "max"}, "reduction must be 'sum' or 'mean', got 'max'"),
        ({"detach_target": False, "backend": "tiled"}, "detach_target=False needs backend='reference', got 'tiled'"),
        ({"row_offset": 1}, "batch_keys has 5 rows"),
        ({"length": 31}, r"length must be in \[0, 30\]"),
        ({"weak_queries": torch.empty(0, 5, 8)}, "weak_queries holds no view"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_argument_is_an_error_that_names_it(options, message, inputs):
    arguments = dict(zip(("weak_queries", "strong_queries", "key", "queue"), inputs, strict=True))
    with pytest.raises(ValueError, match=message):
        loss_of(**arguments | options)
