import pytest
import torch

from ssl_core.nn import unit


def test_rows_have_length_1_and_their_direction():
    rows = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    torch.testing.assert_close(unit(rows), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
    torch.testing.assert_close(unit(torch.stack([rows, 7 * rows])), unit(rows).expand(2, 2, 2))


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_the_precision_is_at_least_float32_and_float64_stays(given, expected):
    with torch.autocast("cpu", torch.bfloat16):
        assert unit(torch.ones(2, 3, dtype=given)).dtype == expected


def test_the_gradient_flows():
    rows = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, rows)
