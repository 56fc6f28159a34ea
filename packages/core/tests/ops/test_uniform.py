"""The compiled counter-based numbers are those of the integer arithmetic in PyTorch."""

import pytest
import torch

from ssl_core.ops import cpp
from ssl_core.philox import reference_uniform


@pytest.mark.parametrize("isa", cpp.instruction_sets())
@pytest.mark.parametrize("num_draws", [0, 1, 4, 7, 38])
@pytest.mark.parametrize("seed", [0, 2**64 - 1, -5], ids=str)
def test_compiled_uniform_numbers_are_philoxs_words(seed, num_draws, isa, monkeypatch):
    monkeypatch.setenv("SSL_CORE_CPU_ISA", isa)
    streams = torch.tensor([[0, 0, 0], [2**32 - 1, 5, 2**31], [7, 2**32 - 1, 3]])
    assert torch.equal(cpp.uniform(seed, streams, num_draws), reference_uniform(seed, streams, num_draws))


@pytest.mark.skipif(not cpp.instruction_sets(), reason="needs the compiled kernels")
def test_streams_of_32_bits_draw_the_same_numbers():
    streams = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert torch.equal(cpp.uniform(0, streams.int(), 5), cpp.uniform(0, streams, 5))
