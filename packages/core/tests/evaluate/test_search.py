import pytest
import torch
import torch.nn.functional as F

from ssl_core.evaluate import nearest
from ssl_core.evaluate.search import nearest_others, search


@pytest.fixture
def rows():
    """Rows around thirty centers, of which the last ten are nearly those of the first ten."""
    unit = F.normalize(torch.randn(30, 16)[torch.arange(600) % 30] + 0.7 * torch.randn(600, 16), dim=1)
    unit[-10:] = F.normalize(unit[:10] + 0.01 * torch.randn(10, 16), dim=1)
    return unit


@pytest.mark.parametrize("exact", [600, 0], ids=["all pairs", "cells"])
def test_near_rows_are_found_and_a_row_is_not_its_own_neighbor(rows, exact):
    similarity, index = nearest_others(rows, 3, exact=exact)
    expected, found_by_all = nearest(rows, rows, 4)
    assert (index != torch.arange(600)[:, None]).all()
    assert index[-10:, 0].tolist() == [*range(10)]
    torch.testing.assert_close(similarity[:, 0], expected[:, 1])
    assert (index[:, 0] == found_by_all[:, 1]).all()


@pytest.mark.parametrize("exact", [64, 0], ids=["all pairs", "cells"])
def test_of_equal_rows_each_has_the_others(exact):
    _, index = nearest_others(F.normalize(torch.ones(64, 4), dim=1), 2, exact=exact)
    assert (index != torch.arange(64)[:, None]).all()


def test_what_no_cell_holds_is_at_no_similarity(rows):
    similarity, _ = search(rows, rows[:5], 600, exact=0)
    assert (similarity[:, :300].isfinite()).all()
    assert (similarity.diff(dim=1).nan_to_num(0) <= 0).all()
