"""The losses of the five bases, each against its paper's formula or code, written out here."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_core.nn import MomentumConfig, Queue, QueueConfig
from ssl_core.testing import DOUBLE
from ssl_dssl import BYOL, BarlowTwins, Embedded, MoCoV2, SimCLR, SimSiam, make_base


def embedded(rows=6, dim=8):
    return Embedded(*torch.randn(2, rows, dim, dtype=torch.float64))


def test_simclr_is_the_dense_loss_of_all_rows_on_all_others():
    first, second = embedded(), embedded()
    rows = F.normalize(torch.cat([first.prediction, second.prediction]), dim=1)
    logits = (rows @ rows.T / 0.3).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, torch.arange(12).roll(6))
    torch.testing.assert_close(SimCLR(0.3).loss(first, second), expected)


def test_simclr_trains_through_both_views():
    views = [Embedded(embedded().prediction.requires_grad_(), None) for _ in range(2)]
    SimCLR().loss(*views).backward()
    assert all(view.prediction.grad.abs().max() > 0 for view in views)


def test_simsiam_by_hand():
    # z = (1, 0), y' = (3, 4): -0.6; z' = (1, 1), y = (0, 2): -1 / sqrt(2); half of the sum.
    first = Embedded(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    second = Embedded(torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 4.0]]))
    expected = torch.tensor(-(0.6 + 1 / math.sqrt(2)) / 2)
    torch.testing.assert_close(SimSiam().loss(first, second), expected)
    torch.testing.assert_close(SimSiam().loss(second, first), expected)


def test_byol_is_its_papers_loss_up_to_scale():
    # |z / |z| - y' / |y'||^2, summed over both directions: 2 - 2 cos each, so 4 + 4 L_S. By hand: z = (1, 0),
    # y' = (3, 4) / 5: (0.4, -0.8), 0.16 + 0.64 = 0.8; z' = (0, 1), y = (0, 1): 0. So L_S = (0.8 - 4) / 4.
    first = Embedded(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    second = Embedded(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(BYOL().loss(first, second), torch.tensor(-0.8))
    first, second = embedded(), embedded()
    squared = sum(
        (F.normalize(a.prediction, dim=1) - F.normalize(b.target, dim=1)).square().sum(dim=1).mean()
        for a, b in ((first, second), (second, first))
    )
    torch.testing.assert_close(4 + 4 * BYOL().loss(first, second), squared)


def test_moco_is_the_papers_code():
    queue = Queue(QueueConfig(20), 8)
    first, second = embedded(), embedded()
    key = F.normalize(second.target, dim=1)
    query = F.normalize(first.prediction, dim=1)
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ queue.keys.double().T], dim=1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    queue = queue.double()
    torch.testing.assert_close(MoCoV2(0.2).loss(first, Embedded(None, key), queue), expected)


def test_barlow_twins_by_hand():
    # Two dimensions, four images; columns already of mean 0 and variance 1, to which 1e-5 is added: c = 1 / (1 + 1e-5).
    # first (1, 1, -1, -1) and (1, -1, 1, -1); second the same with the columns exchanged, and the second one negated.
    # C = first^T second / 4 = [[0, -c], [c, 0]]: (1 - 0)^2 + (1 - 0)^2 + lambda (c^2 + c^2).
    a, b = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]]).double()
    first, second = Embedded(torch.stack([a, b], dim=1), None), Embedded(torch.stack([b, -a], dim=1), None)
    loss = BarlowTwins(off_diagonal_weight=0.25).loss(first, second)
    assert loss.item() == pytest.approx(2 + 0.25 * 2 / (1 + 1e-5) ** 2, abs=DOUBLE)


def test_barlow_twins_is_its_papers_code():
    first, second = embedded(12, 5), embedded(12, 5)
    normalized = [F.batch_norm(view.prediction, None, None, training=True) for view in (first, second)]
    correlation = normalized[0].T @ normalized[1] / 12
    off_diagonal = correlation - correlation.diagonal().diag()
    expected = (correlation.diagonal() - 1).square().sum() + 0.0051 * off_diagonal.square().sum()
    torch.testing.assert_close(BarlowTwins().loss(first, second), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SimCLR(0.0), r"temperature must be positive, got 0\.0"),
        (lambda: MoCoV2(-1.0), r"temperature must be positive, got -1\.0"),
        (lambda: make_base({"mocov2": {"momentum": {"value": 1.5}}}), r"momentum.value must be .* 1, got 1\.5"),
        (lambda: make_base({"byol": {"momentum": {"value": -0.1}}}), r"momentum.value must be .* 1, got -0\.1"),
        (lambda: BarlowTwins(-1.0), r"off_diagonal_weight must be at least 0, got -1\.0"),
    ],
    ids=["simclr", "moco temperature", "moco momentum", "byol momentum", "barlow"],
)
def test_numbers_outside_their_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_base_is_named_or_described_with_what_differs_from_its_defaults():
    assert make_base("simsiam") == SimSiam()
    assert make_base({"byol": {"momentum": {"value": 0.9}}}) == BYOL(MomentumConfig(0.9, shuffle=False))
    described = {"mocov2": {"temperature": 0.1, "queue": {"length": 8, "initial": "empty"}}}
    assert make_base(described) == MoCoV2(0.1, QueueConfig(8, "empty"))


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ("byool", "base names one of simclr, simsiam, byol, mocov2, barlow, .* got byool"),
        ({}, "base names one of"),
        ({"byol": {}, "simclr": {}}, "base names one of .* got {'byol': {}, 'simclr': {}}"),
        ({"simsiam": {"temperature": 0.1}}, "base: .*temperature"),
        ({"simclr": {"temperature": "warm"}}, "base: .*temperature"),
        ({"mocov2": {"queue": {"lenght": 8}}}, "base: .*lenght"),
    ],
    ids=["unknown", "none", "two", "another base's number", "no number", "unknown number"],
)
def test_what_describes_no_base_is_refused_in_one_sentence(described, message):
    with pytest.raises(ValueError, match=message):
        make_base(described)
