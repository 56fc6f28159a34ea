"""The ops on a CUDA device: as on the CPU, and nothing that waits for the device."""

import pytest
import torch
import torch.nn.functional as F

from ssl_core.ops import enqueue_, momentum_update_, queue_attention
from ssl_core.testing import assert_as_accurate

pytestmark = pytest.mark.gpu


@pytest.fixture
def no_sync():
    """Any operation that makes the host wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def unit_rows(n, d, dtype=torch.float32):
    return F.normalize(torch.randn(n, d), dim=1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tiled_is_as_accurate_as_eager(dtype):
    query, queue = unit_rows(33, 64, dtype), unit_rows(40_001, 64, dtype)
    options = {"exclude": torch.arange(33) - 1, "length": torch.tensor(30_000)}
    on_gpu = {name: value.cuda() for name, value in options.items()}
    actual = queue_attention(query.cuda(), queue.cuda(), 0.05, backend="tiled", **on_gpu)
    eager = queue_attention(query.cuda(), queue.cuda(), 0.05, backend="reference", **on_gpu)
    exact = queue_attention(query.double(), queue.double(), 0.05, backend="reference", **options)
    assert_as_accurate(actual[0], eager[0], exact[0], floor=1e-5)
    assert_as_accurate(actual[1], eager[1], exact[1], floor=1e-6)


def test_queue_attention_and_its_gradient_do_not_sync(no_sync):
    query = torch.randn(8, 16, device="cuda", requires_grad=True)
    queue = torch.randn(100, 16, device="cuda")
    length, exclude = torch.full((), 50, device="cuda"), torch.arange(8, device="cuda")
    lse, _ = queue_attention(query, queue, 0.1, length=length, exclude=exclude, backend="tiled")
    lse.sum().backward()


def test_enqueue_does_not_sync(no_sync):
    cursor, length = (torch.full((), 5, device="cuda") for _ in range(2))
    enqueue_(torch.zeros(7, 3, device="cuda"), torch.ones(4, 3, device="cuda"), cursor, length)


def test_momentum_update_takes_its_momentum_from_the_device_without_a_sync(no_sync):
    target, online = torch.zeros(5, device="cuda"), torch.ones(5, device="cuda")
    momentum_update_([target], [online], torch.full((), 0.75, device="cuda"))
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(target.cpu(), torch.full((5,), 0.25))
