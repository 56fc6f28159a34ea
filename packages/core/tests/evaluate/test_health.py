import math

import pytest
import torch

from ssl_core.evaluate import collapse, effective_rank, embedding_std, health
from ssl_core.testing import ROUNDING, SINGLE


def test_one_point_has_no_spread_and_rank_one():
    embeddings = torch.tensor([[3.0, 4.0]]).repeat(5, 1) * torch.arange(1, 6)[:, None]
    assert embedding_std(embeddings).item() <= ROUNDING
    # An eigenvalue of 2^-50 by rounding is a singular value of p = 2^-25, and entropy of p (1 - ln p) = 18 p.
    assert 1 <= effective_rank(embeddings).item() <= 1 + 18 * 2**-25


def test_even_directions_have_the_spread_of_the_sphere():
    # Rows of the identity and their negatives: every column has mean 0 and mean square 1/d.
    directions = torch.cat([torch.eye(16), -torch.eye(16)])
    assert math.isclose(embedding_std(directions).item(), 1 / math.sqrt(16), rel_tol=SINGLE)
    assert math.isclose(effective_rank(directions).item(), 16, rel_tol=SINGLE)


def test_rank_of_two_unequal_dimensions_is_the_hand_worked_value():
    # Singular values 3 and 1: p = (3/4, 1/4), entropy = ln 4 - (3/4) ln 3 = 0.562335, exp = 1.754765.
    embeddings = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert math.isclose(effective_rank(embeddings).item(), 4 / 3**0.75, rel_tol=SINGLE)


def test_rank_ignores_scale_and_row_order():
    embeddings = torch.randn(20, 6)
    rank = effective_rank(embeddings)
    torch.testing.assert_close(effective_rank(7 * embeddings.flip(0)), rank)


def test_all_zero_embeddings_have_rank_one():
    assert effective_rank(torch.zeros(4, 3)).item() == 1


def test_half_precision_and_gradients_are_accepted():
    embeddings = torch.randn(8, 4, requires_grad=True).bfloat16()
    for measure in (embedding_std, effective_rank):
        value = measure(embeddings)
        assert value.dtype == torch.float32
        assert not value.requires_grad


def around(point, spread, dim=16):
    """Embeddings that deviate from one point by about ``spread`` times what even directions would."""
    generator = torch.Generator().manual_seed(0)
    return point * torch.eye(dim)[0] + spread * torch.randn(64, dim, generator=generator) / dim**0.5


def test_even_directions_have_not_collapsed():
    assert collapse(health(around(0, 1))) is None


def test_directions_as_alike_as_an_untrained_encoders_have_not_collapsed():
    embeddings = around(1, 0.2)
    assert 0.1 < health(embeddings)["embedding_std"] * 16**0.5 < 0.25
    assert collapse(health(embeddings)) is None


def test_embeddings_around_one_point_have_collapsed():
    assert "std of embeddings 0.00" in collapse(health(around(1, 0.02)))


def test_two_opposite_points_have_collapsed_though_they_are_spread():
    embeddings = torch.randn(1, 16) * torch.tensor([1.0, -1.0]).repeat(8)[:, None]
    measures = health(embeddings)
    assert measures["embedding_std"] > 0.5 * measures["embedding_std_even"]
    assert "effective rank 1.0" in collapse(measures)


@pytest.mark.parametrize(("knn", "said"), [({}, False), ({"knn_top1": 0.125}, True)], ids=["none", "measured"])
def test_the_knn_is_said_where_it_was_measured(knn, said):
    assert ("kNN top-1 12.5 %" in collapse(health(torch.ones(4, 8)) | knn)) == said


def test_nothing_measured_is_no_collapse():
    assert collapse({"loss": 0.0}) is None
