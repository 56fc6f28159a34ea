"""Shapes and options that nobody thought of: every kernel against the reference in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from ssl_core.ops import cpp, enqueue_
from ssl_core.testing import assert_attention_is_accurate

# Said here, since hypothesis marks tests only after ops/conftest.py has looked.
pytestmark = pytest.mark.hypothesis

KERNELS = ["tiled", *(f"cpp {isa}" for isa in cpp.instruction_sets())]


@st.composite
def problems(draw):
    n, k, d = draw(st.integers(1, 140)), draw(st.integers(0, 600)), draw(st.integers(1, 150))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    query, queue = (F.normalize(torch.randn(rows, d, generator=generator), dim=1) for rows in (n, k))
    if draw(st.booleans()) and k:  # near-duplicates of queries
        queue[: min(n, k)] = F.normalize(query[: min(n, k)] + 1e-3 * queue[: min(n, k)], dim=1)
    if draw(st.booleans()):
        queue = queue.bfloat16()
    low, high = sorted(draw(st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0))))
    options = {"normalized": draw(st.booleans())}
    if draw(st.booleans()):
        options["length"] = torch.tensor(draw(st.integers(0, k)))
    if draw(st.booleans()):
        options["exclude"] = torch.randint(-1, max(k, 1), (n,), generator=generator)
    if draw(st.booleans()):
        bias = torch.randn(k, generator=generator)
        options["key_bias"] = bias.masked_fill(torch.rand(k, generator=generator) < 0.2, -torch.inf)
    return query, queue, torch.linspace(low, high, n), options


def two_logits(k):
    """Keys of +1 and -1: weights that are alike, whose sums round the same way again and again."""
    keys = torch.randn(k, 1, generator=torch.Generator().manual_seed(k)).sign()
    return torch.ones(1, 1), keys, torch.tensor([0.5]), {"normalized": False}


@pytest.mark.parametrize("kernel", KERNELS)
@example(problem=two_logits(100), threads=1)
@example(problem=two_logits(192), threads=1)
@example(problem=two_logits(600), threads=2)
@given(problem=problems(), threads=st.integers(1, 4))
def test_any_problem_is_as_accurate_as_eager(kernel, problem, threads):
    query, queue, temperature, options = problem
    backend, _, isa = kernel.partition(" ")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CORE_CPU_ISA", isa)
            assert_attention_is_accurate(backend, query, queue, temperature, **options)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("isa", ["reference", *cpp.instruction_sets()])
@given(
    num_rows=st.integers(1, 40),
    dim=st.integers(1, 40),
    batches=st.lists(st.integers(0, 90), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_sequence_of_batches_leaves_the_last_keys_in_order(isa, num_rows, dim, batches, dtype):
    queue, cursor, length = torch.zeros(num_rows, dim, dtype=dtype), torch.tensor(0), torch.tensor(0)
    keys = torch.randn(sum(batches), dim)
    with pytest.MonkeyPatch.context() as patch:
        if isa == "reference":
            patch.setenv("SSL_CORE_BACKEND", "reference")
        else:
            patch.setenv("SSL_CORE_CPU_ISA", isa)
        for batch in keys.split(batches) if batches else ():
            enqueue_(queue, batch, cursor, length)
    kept = keys[-num_rows:]
    assert int(length) == len(kept)
    assert int(cursor) == len(keys) % num_rows
    rows = (len(keys) - len(kept) + torch.arange(len(kept))) % num_rows
    torch.testing.assert_close(queue[rows], F.normalize(kept, dim=1).to(dtype))
