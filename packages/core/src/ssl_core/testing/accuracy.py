"""Tolerances: the one law of all kernels, and the reasons for all other tolerances.

Where a test may choose the dtype it takes float64, in which hardly any error is left to explain.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_core.ops import queue_attention

# Half the distance from 1 to the next float32: the relative error of one rounding.
ROUNDING = 2.0**-24
# Numbers around 1 after a few operations, in whatever order: 16 roundings to float32, 900 to float64.
SINGLE = 16 * ROUNDING
DOUBLE = 1e-13
# Values worked by hand are written to six digits and compared in float64.
SIX_DIGITS = 5e-7
# What differs by more than this is not equal but for rounding, however long the computation.
APART = 1e-3
# Keys whose weights are added up one after another before they join the sum of the queue: kKeys of
# csrc/cpu/queue_attention.cpp.
_CHAIN = 192


def assert_as_accurate(actual: Tensor, eager: Tensor, exact: Tensor, floor: float | Tensor | None = None) -> None:
    """Check that a kernel is about as accurate as plain PyTorch in the same dtype: the one tolerance law.

    |actual - exact| <= 2 max |eager - exact| + floor, over finite entries; infinite entries must agree.

    Args:
        actual: result of the kernel.
        eager: result of the same formula in plain PyTorch, in the kernel's dtype, on the same inputs.
        exact: result of the same formula in float64, on the same inputs.
        floor: absolute error that is allowed where eager happens to be exact, in the unit of the values; one number, or
            one for each entry. The default is eight roundings to float32 of the largest value, or of 1.

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
    error = (actual - exact)[is_finite].abs()
    eager_error, largest = (float(F.pad(of[is_finite].abs(), (0, 1)).max()) for of in (eager - exact, exact))
    floor = 8 * ROUNDING * max(1.0, largest) if floor is None else floor
    allowed = 2 * eager_error + torch.as_tensor(floor, dtype=torch.float64).cpu().expand_as(exact)[is_finite]
    # Written so that a NaN fails.
    if not (error <= allowed).all():
        worst = (error - allowed).argmax()  # a NaN is the largest
        raise AssertionError(
            f"excess {error[worst] - allowed[worst]:.3e}: error {error[worst]:.3e}, eager's {eager_error:.3e}, "
            f"allowed {allowed[worst]:.3e}"
        )


def loss_rounding(temperature: float, dim: int, num_keys: int) -> float:
    """Bound of the rounding of a float32 loss of unit rows: a log-sum-exp of their logits minus one, or a mean of them.

    As :func:`assert_attention_is_accurate` has it with L = 1 / temperature: (4 + sqrt d) L u + (4 + k) u of the sum,
    (1 + sqrt d) L u of the logit, and L u of their difference.

    Args:
        temperature: smallest temperature, > 0.
        dim: d, dimension of the rows.
        num_keys: k, number of terms of the sum.

    Returns:
        Absolute error of one term, in nats.

    Example:
        >>> round(loss_rounding(0.1, 64, 4096) * 1e6)
        257
    """
    return ((6 + 2 * math.sqrt(dim)) / temperature + 4 + num_keys) * ROUNDING


def assert_attention_is_accurate(
    backend: str,
    query: Tensor,
    queue: Tensor,
    temperature: float | Tensor,
    *,
    are_components_alike: bool = False,
    **options: Any,
) -> None:
    """Check lse and E of a back-end of :func:`~ssl_core.ops.queue_attention` by the law, on whatever device they are.

    The floors are bounds of what the kernels round, u = 2^-24 a rounding, in which eager may be lucky. With the largest
    logit L = |q| max |k| / temperature + max |bias| of a row, every weight is off by the factor 1 + w,

        w = (4 + sqrt d) L u        the scaled query, the shift, and a product of d unlike numbers, whose roundings fall
                                    either way (Higham and Mary, 2019, doi:10.1137/18M1226312); of d numbers that are
                                    alike, (4 + d) L u
          + 2 u                     the exponential; elsewhere than in csrc/cpu 4 u
          + c u                     a sum of c numbers, one after another: those of two distinct logits are alike, and
                                    their roundings fall the same way; c = min(k, 192) + k / 192 in csrc/cpu, else k

    so that lse is off by w and its own rounding, and E by w (sum_j p_j |k_j| + |E|). Queues of halves add the rounding
    of weights and, on a GPU, of queries to them, and PyTorch's attention there that of the query scaled by the
    temperature, and of E.

    Args:
        backend: name of a back-end.
        query: (n d) queries.
        queue: (k d) keys, of the query's dtype or a narrower one.
        temperature: divisor of the similarities, > 0; one number or one for each query.
        are_components_alike: whether the products of a query's components with a key's are alike.
        options: further arguments of ``queue_attention``.

    Raises:
        AssertionError: with the excess over the allowed error.
    """
    actual = queue_attention(query, queue, temperature, backend=backend, **options)
    eager = queue_attention(query, queue, temperature, backend="reference", **options)
    # Zeros beside the query and |k| beside the keys change no logit, and E holds sum_j p_j |k_j| as well.
    doubles: dict[str, Any] = {
        n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in options.items()
    }
    dim = query.shape[1]
    wide_query = F.pad(query.double(), (0, dim))
    wide_queue = torch.cat([queue.double(), queue.double().abs()], dim=1)
    lse, wide = queue_attention(wide_query, wide_queue, temperature, backend="reference", **doubles)
    expectation, sizes = wide.chunk(2, dim=1)

    num_keys = len(queue)
    largest_key = F.pad(queue.double().norm(dim=1), (0, 1)).max()  # 0 of an empty queue
    largest_logit = query.double().norm(dim=1) * largest_key / torch.as_tensor(temperature, device=query.device)
    if isinstance(bias := options.get("key_bias"), Tensor):
        largest_logit = largest_logit + F.pad(bias.double().nan_to_num(neginf=0.0).abs(), (0, 1)).max()
    rounds_weights = backend in ("triton", "cuda")
    half = torch.finfo(queue.dtype).eps if queue.dtype != torch.float32 else 0.0
    rounds_result = backend == "sdpa" and query.is_cuda
    rounds_query = rounds_result or (rounds_weights and query.dtype != queue.dtype)

    is_ours = backend == "cpp"
    products = dim if are_components_alike else math.sqrt(dim)
    chain = min(num_keys, _CHAIN) + math.ceil(num_keys / _CHAIN) if is_ours else num_keys
    factor = ((4 + products) * largest_logit + (2 if is_ours else 4) + chain) * ROUNDING
    factor = factor + (half * largest_logit if rounds_query else 0.0)
    lse_floor = factor + (largest_logit + math.log(num_keys + 1)) * ROUNDING
    factor = factor + (half if rounds_weights or rounds_result else 0.0)
    floors = lse_floor, factor[:, None] * (sizes + expectation.abs())
    for value, plain, truth, floor in zip(actual, eager, (lse, expectation), floors, strict=True):
        assert value.dtype == plain.dtype == torch.float32, f"{value.dtype} and {plain.dtype}, expected float32"
        assert_as_accurate(value, plain, truth, floor=floor)
