"""The laws that other tests rely on."""

import pytest
import torch

from ssl_core.testing import ROUNDING, assert_as_accurate

EXACT = torch.tensor([1.0, -torch.inf], dtype=torch.float64)


def with_error(error):
    return torch.tensor([1.0 + error, -torch.inf], dtype=torch.float64)


def test_twice_the_error_of_eager_is_as_accurate():
    assert_as_accurate(with_error(-0.199), with_error(0.1), EXACT, floor=0.0)


def test_more_than_twice_the_error_of_eager_is_not():
    with pytest.raises(AssertionError, match=r"excess 1\.000e-02: error 2\.100e-01"):
        assert_as_accurate(with_error(-0.21), with_error(0.1), EXACT, floor=0.0)


def test_the_floor_is_added():
    assert_as_accurate(with_error(0.009), with_error(0.0), EXACT, floor=0.01)
    with pytest.raises(AssertionError, match="excess"):
        assert_as_accurate(with_error(0.011), with_error(0.0), EXACT, floor=0.01)


def test_the_floor_is_eight_roundings_of_the_largest_value_by_default():
    assert_as_accurate(with_error(7.9 * ROUNDING), EXACT, EXACT)
    with pytest.raises(AssertionError, match="excess"):
        assert_as_accurate(with_error(8.1 * ROUNDING), EXACT, EXACT)


@pytest.mark.parametrize(
    "wrong", [[torch.nan, -torch.inf], [1.0, 0.0], [1.0, torch.inf], [torch.inf, -torch.inf]], ids=str
)
def test_a_nan_or_a_wrong_infinity_is_never_accurate(wrong):
    with pytest.raises(AssertionError):
        assert_as_accurate(torch.tensor(wrong), EXACT, EXACT)


def test_another_shape_is_never_accurate():
    with pytest.raises(AssertionError, match="shape"):
        assert_as_accurate(EXACT[:, None], EXACT, EXACT)
