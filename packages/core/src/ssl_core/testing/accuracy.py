"""How accurate is accurate enough: the one tolerance law of all kernels."""

from torch import Tensor


def assert_as_accurate(actual: Tensor, eager: Tensor, exact: Tensor, floor: float = 1e-5) -> None:
    """Check that a kernel is about as accurate as plain PyTorch in the same dtype: the one tolerance law.

    max |actual - exact| <= 2 max |eager - exact| + floor, over finite entries; infinite entries must agree.

    Args:
        actual: what the kernel computed.
        eager: the same formula in plain PyTorch, in the kernel's dtype, on the same inputs.
        exact: the same formula in float64, on the same inputs.
        floor: absolute, in the unit of the values; for where eager happens to be exact.

    Raises:
        AssertionError: with the excess over the allowed error.

    Example:
        >>> import torch
        >>> exact = torch.tensor([1.0], dtype=torch.float64)
        >>> assert_as_accurate(torch.tensor([1.0]), torch.tensor([1.0]), exact)
        >>> assert_as_accurate(torch.tensor([1.1]), torch.tensor([1.0]), exact, floor=0.0)
        Traceback (most recent call last):
        AssertionError: excess 1.000e-01: error 1.000e-01, eager's 0.000e+00, allowed 0.000e+00
    """
    actual, eager, exact = (tensor.detach().double().cpu() for tensor in (actual, eager, exact))
    assert actual.shape == exact.shape, f"shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    is_finite = exact.isfinite()
    assert (actual[~is_finite] == exact[~is_finite]).all(), "infinite entries disagree"
    error = _largest((actual - exact)[is_finite])
    eager_error = _largest((eager - exact)[is_finite])
    allowed = 2 * eager_error + floor
    # Written so that a NaN fails.
    assert error <= allowed, (
        f"excess {error - allowed:.3e}: error {error:.3e}, eager's {eager_error:.3e}, allowed {allowed:.3e}"
    )


def _largest(error: Tensor) -> float:
    return float(error.abs().max()) if error.numel() else 0.0
