"""Choice of an implementation: argument, then environment, then the first that fits."""

import pytest
import torch

from ssl_core.ops import cpp, implementations, queue_attention
from ssl_core.ops.backends import choose_backend, log_choice, runs_anywhere

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def needs_cuda(device, *dtypes):
    return None if device.type == "cuda" else "needs a CUDA device"


BACKENDS = {"triton": needs_cuda, "tiled": runs_anywhere, "reference": runs_anywhere}


@pytest.fixture(autouse=True)
def _no_choice_in_the_environment(monkeypatch):
    monkeypatch.delenv("SSL_CORE_BACKEND", raising=False)


def test_the_first_backend_that_fits_is_automatic():
    assert choose_backend("op", BACKENDS, CPU, torch.float32) == "tiled"
    assert choose_backend("op", BACKENDS, CUDA, torch.float32) == "triton"


def test_the_environment_wins_over_automatic(monkeypatch):
    monkeypatch.setenv("SSL_CORE_BACKEND", "reference")
    assert choose_backend("op", BACKENDS, CPU, torch.float32) == "reference"
    assert implementations()["queue_attention"]["cpu"] == "reference"


def test_the_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("SSL_CORE_BACKEND", "reference")
    assert choose_backend("op", BACKENDS, CPU, torch.float32, requested="tiled") == "tiled"


def test_a_backend_that_cannot_run_here_is_an_error_with_reason_and_alternatives():
    message = (
        r"backend='triton' cannot run op on cpu with torch.float32: needs a CUDA device; available: tiled, reference"
    )
    with pytest.raises(ValueError, match=message):
        choose_backend("op", BACKENDS, CPU, torch.float32, requested="triton")


def test_an_unknown_backend_in_the_environment_is_an_error_that_names_the_variable(monkeypatch):
    monkeypatch.setenv("SSL_CORE_BACKEND", "abacus")
    with pytest.raises(ValueError, match=r"SSL_CORE_BACKEND='abacus' .* no back-end of that name; available: .*tiled"):
        queue_attention(torch.ones(1, 2), torch.ones(3, 2), 0.1)


def test_an_op_without_the_backend_of_the_environment_makes_its_own_choice(monkeypatch):
    monkeypatch.setenv("SSL_CORE_BACKEND", "cpp")
    assert choose_backend("op", BACKENDS, CPU, torch.float32) == "tiled"


def test_implementations_name_every_op_on_the_cpu():
    compiled = bool(cpp.instruction_sets())
    assert {op: where["cpu"] for op, where in implementations().items()} == {
        "queue_attention": "cpp" if compiled else "tiled",
        "enqueue_": "cpp" if compiled else "reference",
        "momentum_update_": "cpp" if compiled else "reference",
        "render_views": "cpp" if compiled else "reference",
    }


def test_the_choice_is_logged_once_with_the_reason_against_anything_faster(caplog):
    log_choice.cache_clear()
    caplog.set_level("INFO")
    for _ in range(2):
        log_choice("op", tuple(BACKENDS.items()), "tiled", CPU, torch.float32)
    assert caplog.messages == ["op on cpu runs as tiled; not triton: needs a CUDA device"]
