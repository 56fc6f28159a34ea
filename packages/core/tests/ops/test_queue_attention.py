"""Queue attention: hand-worked values, properties, tiled against the reference, gradients, op registration."""

import inspect
import math
import multiprocessing
import os
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ssl_core.ops import _triton, cpp, cuda, queue_attention, queue_attention_reference
from ssl_core.ops.queue_attention import _TILE_ELEMENTS, _TILE_ROWS
from ssl_core.testing import DOUBLE, ROUNDING, SIX_DIGITS, assert_as_accurate, assert_attention_is_accurate
from ssl_core.testing.process import TIMEOUT_S

# The package gives the function the module's name.
MODULE = sys.modules["ssl_core.ops.queue_attention"]
# Opaque back-ends, of the compiled one every instruction set that this machine has.
COMPILED_KERNELS = [f"cpp {isa}" for isa in cpp.instruction_sets()]
# TRITON_INTERPRET=1 runs Triton's kernels here, slowly: nox -s tests_interpret.
TRITON_KERNELS = ["triton"] if _triton.is_interpreted() else []
KERNELS = ["tiled", *COMPILED_KERNELS, *TRITON_KERNELS]
OPAQUE = pytest.mark.parametrize("backend", KERNELS, indirect=True)
EVERY = pytest.mark.parametrize("backend", ["reference", *KERNELS], indirect=True)
needs_interpreter = pytest.mark.skipif(not TRITON_KERNELS, reason="needs TRITON_INTERPRET=1: nox -s tests_interpret")
TRITON = pytest.mark.parametrize("backend", [pytest.param("triton", marks=needs_interpreter)], indirect=True)
COMPILED = pytest.mark.parametrize("backend", COMPILED_KERNELS, indirect=True)


@pytest.fixture
def backend(request, monkeypatch):
    """The name of a back-end, with the instruction set of the parameter in force."""
    name, _, isa = request.param.partition(" ")
    monkeypatch.setenv("SSL_CORE_CPU_ISA", isa)
    return name


def unit_rows(n, d, dtype=torch.float32):
    return F.normalize(torch.randn(n, d), dim=1).to(dtype)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 5 x 7 at most, so that small shapes have many."""
    monkeypatch.setattr(MODULE, "_TILE_ROWS", 5)
    monkeypatch.setattr(MODULE, "_TILE_ELEMENTS", 35)


# (1) Values worked by hand.


@EVERY
def test_lse_and_expectation_of_two_queries_and_three_keys_by_hand(backend):
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    queue = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    lse, expectation = queue_attention(query, queue, 0.5, backend=backend)
    # q1: s = (1, 0, 0.6) / 0.5 = (2, 0, 1.2); exp = (7.389056, 1, 3.320117), sum 11.709173, log 2.460373
    #     E = (7.389056 + 0.6 3.320117, 1 + 0.8 3.320117) / 11.709173 = (0.801178, 0.312242)
    # q2: s = (0, 1, 0.8) / 0.5 = (0, 2, 1.6); exp = (1, 7.389056, 4.953032), sum 13.342088, log 2.590924
    #     E = (1 + 0.6 4.953032, 7.389056 + 0.8 4.953032) / 13.342088 = (0.297691, 0.850802)
    atol = SIX_DIGITS + 18 * ROUNDING  # the law's w of L = 2, d = 2, k = 3
    torch.testing.assert_close(lse, torch.tensor([2.460373, 2.590924]), atol=atol, rtol=0)
    expected = torch.tensor([[0.801178, 0.312242], [0.297691, 0.850802]])
    torch.testing.assert_close(expectation, expected, atol=atol, rtol=0)


@EVERY
def test_length_exclude_and_bias_leave_one_key_by_hand(backend):
    queue = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
    # Columns 2 and 3 are beyond the length and 0 is excluded: s = (0 / 0.5 + 0.25,), E is key 1.
    lse, expectation = queue_attention(
        torch.tensor([[1.0, 0.0]]),
        queue,
        0.5,
        length=2,
        exclude=torch.tensor([0]),
        key_bias=torch.tensor([9.0, 0.25, 9.0, 9.0]),
        backend=backend,
    )
    # The compiled kernels count in units of log 2: four roundings of 1/4.
    assert lse.item() == pytest.approx(0.25, abs=ROUNDING)
    assert expectation.tolist() == [[0.0, 1.0]]


# (2) Properties.


@EVERY
def test_permuting_the_queue_changes_nothing(backend):
    query, queue = unit_rows(3, 8), unit_rows(50, 8)
    permuted = queue_attention(query, queue[torch.randperm(50)], 0.1, backend=backend)
    torch.testing.assert_close(permuted, queue_attention(query, queue, 0.1, backend=backend))


@EVERY
def test_equal_keys_give_log_k_more_and_the_key_itself(backend):
    key = unit_rows(1, 8)
    lse, expectation = queue_attention(unit_rows(1, 8) * 0, key.expand(64, 8), 0.05, backend=backend)
    torch.testing.assert_close(lse, torch.tensor([math.log(64)]))
    torch.testing.assert_close(expectation, key)


@EVERY
def test_no_column_gives_minus_infinity_and_zero_and_no_gradient(backend):
    empty = {
        "length 0": {"length": 0},
        "device length 0": {"length": torch.tensor(0)},
        "bias": {"key_bias": torch.full((6,), -torch.inf)},
        "length and exclude": {"length": torch.tensor(1), "exclude": torch.zeros(2, dtype=torch.int64)},
    }
    for name, options in empty.items():
        query, queue = unit_rows(2, 4).requires_grad_(), unit_rows(6, 4).requires_grad_(backend == "reference")
        lse, expectation = queue_attention(query, queue, 0.1, backend=backend, **options)
        (lse.masked_fill(lse == -torch.inf, 0.0).sum() + expectation.sum()).backward()
        assert (lse == -torch.inf).all(), name
        assert (expectation == 0).all(), name
        assert (query.grad == 0).all(), name
        assert queue.grad is None or (queue.grad == 0).all(), name


@EVERY
def test_a_queue_without_rows_is_an_empty_queue(backend):
    lse, expectation = queue_attention(unit_rows(2, 4), torch.empty(0, 4), 0.1, backend=backend)
    assert (lse == -torch.inf).all()
    assert (expectation == 0).all()


@EVERY
@pytest.mark.parametrize("length", [7, torch.tensor(7)], ids=["int", "tensor"])
def test_length_is_the_queue_cut_short_whatever_lies_beyond(backend, length):
    query, queue = unit_rows(3, 4), unit_rows(12, 4)
    expected = queue_attention(query, queue[:7], 0.1, backend=backend)
    queue[7:] = 1e20
    torch.testing.assert_close(queue_attention(query, queue, 0.1, length=length, backend=backend), expected)


@EVERY
def test_exclude_is_the_queue_without_that_column(backend):
    query, queue = unit_rows(4, 4), unit_rows(12, 4)
    exclude = torch.tensor([0, -1, 11, 5])
    lse, expectation = queue_attention(query, queue, 0.1, exclude=exclude, backend=backend)
    for row, column in enumerate(exclude.tolist()):
        kept = torch.cat([queue[:column], queue[column + 1 :]]) if column >= 0 else queue
        expected = queue_attention(query[row : row + 1], kept, 0.1, backend=backend)
        torch.testing.assert_close((lse[row : row + 1], expectation[row : row + 1]), expected)


@EVERY
def test_one_temperature_per_row_is_each_row_alone(backend):
    query, queue, temperature = unit_rows(3, 4), unit_rows(12, 4), torch.tensor([0.05, 0.1, 1.0])
    lse, expectation = queue_attention(query, queue, temperature, backend=backend)
    for row in range(3):
        expected = queue_attention(query[row : row + 1], queue, float(temperature[row]), backend=backend)
        torch.testing.assert_close((lse[row : row + 1], expectation[row : row + 1]), expected)


@pytest.mark.parametrize("backend", [*KERNELS, "sdpa"], indirect=True)
def test_a_nan_is_not_hidden(backend):
    query = torch.tensor([[torch.nan, 0.0], [1.0, 0.0]])
    lse, expectation = queue_attention(query, torch.eye(2), 0.1, backend=backend)
    assert lse.isnan().tolist() == [True, False]
    assert expectation.isnan().any(dim=1).tolist() == [True, False]


@OPAQUE
def test_two_calls_agree_to_the_last_bit(backend):
    query, queue = unit_rows(64, 16), unit_rows(5000, 16)
    first, second = (queue_attention(query, queue, 0.05, backend=backend) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_the_default_is_an_opaque_kernel():
    query, queue = unit_rows(3, 4), unit_rows(9, 4)
    assert not queue_attention(query.requires_grad_(), queue, 0.1)[1].requires_grad


# (3) Tiled against the reference, by the tolerance law.


@pytest.mark.parametrize(
    ("n", "k", "d"),
    [(5, 7, 3), (10, 14, 4), (1, 1, 1), (4, 6, 3), (6, 8, 3), (1, 29, 5), (13, 31, 7), (11, 1, 64)],
    ids=["one tile", "exact tiles", "size 1", "one short", "one over", "one row", "primes", "one key"],
)
@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.2, 1.0])
def test_tiled_is_as_accurate_as_eager_across_tiles(small_tiles, n, k, d, temperature):
    assert_attention_is_accurate("tiled", unit_rows(n, d), unit_rows(k, d), temperature)


@OPAQUE
def test_all_options_together_agree_across_tiles(small_tiles, backend):
    n, k, d = 13, 31, 6
    bias = torch.randn(k)
    bias[::5] = -torch.inf
    assert_attention_is_accurate(
        backend,
        unit_rows(n, d),
        unit_rows(k, d),
        torch.linspace(0.03, 1.0, n),
        length=torch.tensor(23),
        exclude=torch.arange(-1, n - 1) * 2,
        key_bias=bias,
        normalized=True,
    )


@pytest.mark.parametrize(
    ("n", "k"),
    [(3, _TILE_ELEMENTS // 64 + 1), (_TILE_ROWS + 1, _TILE_ELEMENTS // _TILE_ROWS + 1)],
    ids=["columns", "rows and columns"],
)
def test_tiles_of_the_real_size_break_where_they_should(n, k):
    assert_attention_is_accurate("tiled", unit_rows(n, 64), unit_rows(k, 64), 0.07)


@OPAQUE
@pytest.mark.parametrize("temperature", [0.01, 0.05])
def test_near_duplicates_of_the_query_are_as_accurate_as_eager(small_tiles, backend, temperature):
    query = unit_rows(8, 16)
    queue = torch.cat([F.normalize(query + 1e-3 * torch.randn(8, 16), dim=1), unit_rows(40, 16), query])
    assert_attention_is_accurate(backend, query, queue, temperature)


@OPAQUE
def test_vectors_without_unit_length_do_not_overflow(small_tiles, backend):
    # Logits up to 100, beyond float32's exponential without the maximum.
    assert_attention_is_accurate(backend, 5 * torch.randn(8, 16), 5 * torch.randn(40, 16), 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_are_accumulated_in_float32(small_tiles, dtype):
    assert_attention_is_accurate("tiled", unit_rows(9, 16, dtype), unit_rows(50, 16, dtype), 0.05)
    assert_attention_is_accurate("tiled", unit_rows(9, 16), unit_rows(50, 16, dtype), 0.05)


@COMPILED
@pytest.mark.parametrize(
    ("n", "k", "d"),
    [
        (1, 1, 1),
        (1, 7, 3),
        (16, 192, 16),
        (17, 193, 17),
        (33, 191, 48),
        (63, 6, 64),
        (64, 12, 65),
        (65, 385, 128),
        (127, 200, 96),
        (130, 577, 160),
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
def test_compiled_kernels_are_as_accurate_as_eager_across_blocks(backend, n, k, d, temperature):
    assert_attention_is_accurate(backend, unit_rows(n, d), unit_rows(k, d), temperature)
    assert_attention_is_accurate(
        backend, unit_rows(n, d), unit_rows(k, d, torch.bfloat16), temperature, normalized=True
    )


@TRITON
@pytest.mark.parametrize(
    ("n", "k", "d"),
    [(1, 1, 1), (1, 7, 3), (32, 32, 16), (33, 33, 17), (31, 200, 64), (70, 31, 20), (5, 129, 130)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
def test_triton_is_as_accurate_as_eager_across_tiles(backend, n, k, d, dtype, temperature):
    query, queue = unit_rows(n, d, dtype), unit_rows(k, d, dtype)
    assert_attention_is_accurate(backend, query, queue, temperature)
    assert_attention_is_accurate(
        backend, query, queue, temperature, normalized=True, length=torch.tensor(k - 1), exclude=torch.arange(n) % k
    )


@TRITON
def test_triton_rounds_the_query_to_the_dtype_of_the_queue(backend):
    query, queue = unit_rows(5, 16), unit_rows(40, 16, torch.bfloat16)
    rounded = queue_attention(query.bfloat16(), queue, 0.05, backend=backend)
    assert all(map(torch.equal, queue_attention(query, queue, 0.05, backend=backend), rounded))


@TRITON
def test_a_configuration_of_triton_comes_from_the_environment(backend, monkeypatch):
    query, queue = unit_rows(33, 20), unit_rows(70, 20)
    monkeypatch.setenv("SSL_CORE_TRITON_CONFIG", "16,64,4,1,3")
    assert_attention_is_accurate(backend, query, queue, 0.05, normalized=True)
    monkeypatch.setenv("SSL_CORE_TRITON_CONFIG", "16,64,4,1")
    with pytest.raises(ValueError, match="must be block_n,block_k,warps,stages,residents as numbers, got '16,64,4,1'"):
        queue_attention(query, queue, 0.05, backend=backend)


def test_the_cuda_library_gets_addresses_that_it_may_copy_16_bytes_from(monkeypatch):
    launched = []
    monkeypatch.setattr(cuda, "_launch", lambda *arguments: launched.append(arguments))
    for offset in (0, 1, 4, 8):
        query, queue = (torch.ones(offset + n * 64).bfloat16()[offset:].view(n, 64) for n in (3, 70))
        cuda.queue_attention(query, queue, torch.ones(3), None, None, None, False)
    assert [address % 16 for _, _, *addresses in launched for address in addresses[:2]] == [0] * 8


@TRITON
def test_more_dimensions_than_triton_holds_are_an_error_and_go_elsewhere_by_themselves(backend):
    query, queue = torch.ones(1, 513), torch.ones(1, 513)
    with pytest.raises(ValueError, match="it holds rows of d up to 512, got 513"):
        queue_attention(query, queue, 1.0, backend=backend)


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (5, 7, 3), (33, 65, 17), (64, 600, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
def test_attention_of_pytorch_is_as_accurate_as_eager(n, k, d, dtype, temperature):
    query, queue = unit_rows(n, d, dtype), unit_rows(k, d, dtype)
    assert_attention_is_accurate("sdpa", query, queue, temperature)
    bias = torch.randn(k)
    bias[1::3] = -torch.inf
    assert_attention_is_accurate(
        "sdpa", query, queue, torch.linspace(0.1, 1.0, n), length=torch.tensor(k - 1), key_bias=bias
    )


@pytest.mark.parametrize("options", [{"length": torch.tensor(0)}, {"key_bias": torch.full((6,), -torch.inf)}], ids=str)
def test_attention_of_pytorch_without_a_column_gives_minus_infinity_and_zero_and_no_gradient(options):
    query = unit_rows(2, 4).requires_grad_()
    lse, expectation = queue_attention(query, unit_rows(6, 4), 0.1, backend="sdpa", **options)
    lse.masked_fill(lse == -torch.inf, 0.0).sum().backward()
    assert (lse == -torch.inf).all()
    assert (expectation == 0).all()
    assert (query.grad == 0).all()


def test_attention_of_pytorch_cannot_hide_a_column_of_each_row():
    with pytest.raises(ValueError, match=r"backend='sdpa' cannot run .*: it cannot hide one column of each row"):
        queue_attention(
            unit_rows(2, 4), unit_rows(6, 4), 0.1, exclude=torch.zeros(2, dtype=torch.int64), backend="sdpa"
        )


@COMPILED
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("n", "k"), [(3, 1600), (300, 200)], ids=["threads share the queue", "and the queries"])
def test_every_number_of_threads_gives_the_same_answer(backend, n, k, normalized):
    query, queue, exclude = unit_rows(n, 20), unit_rows(k, 20), torch.arange(n) % k
    options = {"exclude": exclude, "length": torch.tensor(k - 5), "normalized": normalized}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            assert_attention_is_accurate(backend, query, queue, torch.linspace(0.03, 1.0, n), **options)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork") or not COMPILED_KERNELS, reason="needs fork and the compiled kernels")
def test_a_forked_child_computes_without_the_threads_of_its_parent():
    query, queue, inverse_temperature = unit_rows(64, 16), unit_rows(2000, 16), torch.full((64,), 10.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cpp.queue_attention(query, queue, inverse_temperature, None, None, None, False)  # starts the threads
        arguments = (query, queue, inverse_temperature, None, None, None, False)
        child = multiprocessing.get_context("fork").Process(target=cpp.queue_attention, args=arguments)
        child.start()
        child.join(TIMEOUT_S)
        is_stuck = child.is_alive()
        child.kill()
        child.join()
    finally:
        torch.set_num_threads(before)
    assert not is_stuck
    assert child.exitcode == 0


@COMPILED
def test_sums_of_a_long_queue_are_cut_into_short_chains(backend):
    # Of two distinct logits, equal weights round alike: in one chain of all keys, E would be 20 times as far off.
    keys = torch.randn(100_000, 1).sign()
    assert_attention_is_accurate(backend, torch.ones(1, 1), keys, 0.5)


@OPAQUE
@pytest.mark.parametrize("dim", [128, 256, 512])
def test_equal_components_are_as_accurate_as_their_sum_promises(backend, dim):
    row = torch.full((1, dim), dim**-0.5)
    assert_attention_is_accurate(backend, row, row.expand(3, dim), 0.05, are_components_alike=True)


@pytest.mark.parametrize(
    ("backend", "roundings"),
    [*((name, 2) for name in COMPILED_KERNELS), ("tiled", 4), ("sdpa", 4)],
    indirect=["backend"],
)
def test_the_exponential_is_right_to_a_few_roundings(backend, roundings):
    # Scores 0 and x <= -25 give weights 1 and b^x, whose sum is 1: E is b^x as it was computed, times 1. The compiled
    # kernels' b is 2, and log(2) log2(e) is 1 in float32; PyTorch's is e.
    base, smallest = (2.0, -126) if backend == "cpp" else (math.e, -87)
    exponents = torch.cat([torch.arange(-26, -25, 2.0**-18), torch.arange(smallest, -26, 0.01)])
    inverse_temperature = torch.full_like(exponents, math.log(base))
    keys = torch.tensor([[0.0], [1.0]])
    arguments = exponents[:, None], keys, inverse_temperature, None, None, None, False, backend
    _, power = torch.ops.ssl_core.queue_attention(*arguments)
    error = power[:, 0].double() / (exponents.double() * math.log(base)).exp() - 1
    assert float(error.abs().max()) <= roundings * 2**-24


@COMPILED
def test_the_promise_of_unit_rows_is_not_used_at_temperatures_where_it_would_underflow(backend):
    query = unit_rows(20, 8)
    assert_attention_is_accurate(backend, query, -query[:1], torch.full((20,), 0.01), normalized=True)


@COMPILED
def test_queries_in_half_precision_are_read_exactly(backend):
    query, queue = unit_rows(9, 16, torch.float16), unit_rows(50, 16)
    actual = queue_attention(query, queue, 0.05, backend=backend)
    assert all(map(torch.equal, actual, queue_attention(query.float(), queue, 0.05, backend=backend)))


@pytest.mark.parametrize(
    ("query", "queue", "reason"),
    [
        (torch.float64, torch.float32, "it computes in float32"),
        (torch.float32, torch.float16, "it reads and writes queues of float32 and bfloat16"),
    ],
    ids=["float64", "float16 queue"],
)
def test_what_the_compiled_kernels_do_not_read_is_an_error_or_another_backend(query, queue, reason):
    query, queue = unit_rows(3, 4, query), unit_rows(9, 4, queue)
    with pytest.raises(ValueError, match=f"backend='cpp' cannot run queue_attention on cpu with .*: {reason}"):
        queue_attention(query, queue, 0.1, backend="cpp")
    automatic = queue_attention(query, queue, 0.1)
    assert all(map(torch.equal, automatic, queue_attention(query, queue, 0.1, backend="tiled")))


@COMPILED
def test_an_instruction_set_that_is_not_there_is_an_error(backend, monkeypatch):
    monkeypatch.setenv("SSL_CORE_CPU_ISA", "abacus")
    with pytest.raises(ValueError, match=r"SSL_CORE_CPU_ISA='abacus' cannot run here; this machine has .*generic"):
        queue_attention(unit_rows(3, 4), unit_rows(9, 4), 0.1, backend=backend)


def test_float64_stays_float64():
    query, queue = unit_rows(3, 4, torch.float64), unit_rows(9, 4, torch.float64)
    actual = queue_attention(query, queue, 0.1, backend="tiled")
    assert actual[0].dtype == actual[1].dtype == torch.float64
    torch.testing.assert_close(actual, queue_attention_reference(query, queue, 0.1), rtol=DOUBLE, atol=DOUBLE)


@EVERY
@pytest.mark.parametrize("length", [None, torch.tensor(40)], ids=["whole", "length"])
def test_autocast_changes_nothing(backend, length):
    query, queue = unit_rows(9, 16).requires_grad_(), unit_rows(50, 16)
    plain = queue_attention(query, queue, 0.05, length=length, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = queue_attention(query, queue, 0.05, length=length, backend=backend)
    torch.testing.assert_close(under_autocast, plain)


@OPAQUE
def test_strided_inputs_agree_with_contiguous_ones(small_tiles, backend):
    query, queue = unit_rows(9, 16), unit_rows(50, 16)
    expected = queue_attention(query, queue, 0.1, backend=backend)
    strided_query = torch.stack([query, query], dim=1)[:, 1]
    strided_queue = queue.T.contiguous().T
    torch.testing.assert_close(queue_attention(strided_query, strided_queue, 0.1, backend=backend), expected)
    every_other = torch.stack([queue, -queue], dim=1).flatten(0, 1)[::2]
    torch.testing.assert_close(queue_attention(query, every_other, 0.1, backend=backend), expected)


class LargestAllocation(TorchDispatchMode):
    """Records the bytes of the largest storage that any operation returns, other than one that exists already."""

    def __init__(self, *existing):
        super().__init__()
        self.existing = {tensor.untyped_storage().data_ptr() for tensor in existing}
        self.num_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in self.existing:
            self.num_bytes = max(self.num_bytes, out.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "k"), [(1100, 4096), (2, 2**18)], ids=["many rows", "many columns"])
def test_tiled_allocates_one_tile_and_nothing_larger(n, k, dtype):
    query, queue = unit_rows(n, 16), unit_rows(k, 16).to(dtype)
    # Called below the op, where a dispatch mode sees every tensor; above it there are only (n d) and (n).
    with LargestAllocation(query, queue) as allocation:
        MODULE._tiled(query, queue, torch.full((n,), 10.0), None, torch.arange(n), None, True)
    assert allocation.num_bytes <= 4 * _TILE_ELEMENTS
    assert max(n, 16) * k > 3 * _TILE_ELEMENTS


# (4) Gradients.


def test_gradients_of_lse_to_query_and_temperature_match_finite_differences(small_tiles):
    query, queue = unit_rows(6, 3, torch.float64), unit_rows(17, 3, torch.float64)
    temperature = torch.linspace(0.1, 1.0, 6, dtype=torch.float64)
    exclude = torch.arange(6) * 3 - 1

    def lse(query, temperature):
        return queue_attention(
            query, queue, temperature, exclude=exclude, length=torch.tensor(15), key_bias=queue[:, 0], backend="tiled"
        )[0]

    assert torch.autograd.gradcheck(lse, (query.requires_grad_(), temperature.requires_grad_()))
    one_temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lse, (query, one_temperature))


def test_the_reference_differentiates_everything_twice():
    query, queue = unit_rows(2, 2, torch.float64), unit_rows(4, 2, torch.float64)
    temperature, bias = torch.tensor(0.5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    inputs = tuple(tensor.requires_grad_() for tensor in (query, queue, temperature, bias))

    def both(query, queue, temperature, bias):
        return queue_attention(
            query, queue, temperature, key_bias=bias, exclude=torch.tensor([0, -1]), length=3, backend="reference"
        )

    assert torch.autograd.gradcheck(both, inputs)
    assert torch.autograd.gradgradcheck(both, inputs)


@OPAQUE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_has_the_dtype_of_the_query_and_the_accuracy_of_eager(small_tiles, backend, dtype):
    query, queue = unit_rows(9, 16, dtype), unit_rows(50, 16, dtype)
    gradients = []
    for name, cast in ((backend, dtype), ("reference", dtype), ("reference", torch.float64)):
        leaf = query.to(cast).detach().requires_grad_()
        queue_attention(leaf, queue.to(cast), 0.05, backend=name)[0].sum().backward()
        assert leaf.grad.dtype == cast
        gradients.append(leaf.grad)
    assert_as_accurate(*gradients)


@OPAQUE
def test_a_second_derivative_is_an_error(backend):
    query = unit_rows(3, 4).requires_grad_()
    lse, _ = queue_attention(query, unit_rows(9, 4), 0.1, backend=backend)
    with pytest.raises(RuntimeError, match="no second derivative: use backend='reference'"):
        torch.autograd.grad(lse.sum(), query, create_graph=True)


@OPAQUE
@pytest.mark.parametrize("argument", ["queue", "key_bias"])
def test_a_gradient_is_not_lost_in_silence(backend, argument):
    options = {"queue": unit_rows(9, 4), "key_bias": torch.zeros(9)}
    options[argument].requires_grad_()
    with pytest.raises(ValueError, match=f"{argument} requires a gradient, which back-end '{backend}' does not give"):
        queue_attention(unit_rows(3, 4), temperature=0.1, backend=backend, **options)
    with torch.no_grad():
        queue_attention(unit_rows(3, 4), temperature=0.1, backend=backend, **options)


# (5) The op itself. Compilation is in test_compile.py.


@pytest.mark.parametrize("options", ["none", "all"])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [(KERNELS[-1], torch.float32), ("tiled", torch.float32), ("tiled", torch.bfloat16), ("tiled", torch.float64)],
    indirect=["backend"],
    ids=str,
)
def test_the_op_is_registered_correctly(backend, options, dtype):
    query, queue = unit_rows(3, 4, dtype), unit_rows(9, 4, dtype)
    inverse_temperature = torch.full((3,), 10.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    some = (torch.tensor(5), torch.arange(3), torch.zeros(9)) if options == "all" else (None, None, None)
    torch.library.opcheck(
        torch.ops.ssl_core.queue_attention, (query, queue, inverse_temperature, *some, False, backend)
    )
    transposed = (query.T.contiguous().T, queue.T.contiguous().T)
    torch.library.opcheck(torch.ops.ssl_core.queue_attention, (*transposed, inverse_temperature, *some, True, backend))


def test_the_flop_counter_sees_two_products():
    with FlopCounterMode(display=False) as counter:
        queue_attention(unit_rows(3, 4), unit_rows(9, 4), 0.1, backend="tiled")
    assert counter.get_total_flops() == 4 * 3 * 9 * 4


# Errors. Annotations are checked before the function's own checks under the test hook, so it is unwrapped here.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queue": torch.ones(9, 5)}, "query has dimension 4, queue has 5"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"temperature": -0.1}, "temperature must be > 0, got -0.1"),
        ({"temperature": math.nan}, "temperature must be > 0, got nan"),
        ({"temperature": torch.ones(2)}, r"temperature must be one number or \(3\), got \(2,\)"),
        ({"length": 10}, r"length must be in \[0, 9\], the rows of the queue, got 10"),
        ({"length": -1}, r"length must be in \[0, 9\]"),
        ({"exclude": torch.zeros(2, dtype=torch.int64)}, r"exclude must be \(3\)"),
        ({"key_bias": torch.zeros(8)}, r"key_bias must be \(9\)"),
        ({"backend": "cuda"}, "backend='cuda' cannot run queue_attention on cpu"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_bad_argument_is_an_error_that_names_it(change, message):
    arguments = {"query": torch.ones(3, 4), "queue": torch.ones(9, 4), "temperature": 0.1} | change
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(queue_attention)(**arguments)
