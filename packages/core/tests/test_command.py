import pytest
import torch

from ssl_core.command import errors_in_one_line


def allocate_everything():
    torch.empty(10**15)


def raising(error):
    def function():
        raise error

    return function


class InductorError(RuntimeError):
    __module__ = "torch._inductor.exc"


CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which"
MPS = "MPS backend out of memory (MPS allocated: 17.9 GB). Tried to allocate 32.00 MB on private pool. Use PYTORCH_MPS_"
COMPILER = "InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')\n\nSet T"
PEER = "[/a/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4093. This may"
KILLED = "DataLoader worker (pid 123) is killed by signal: Killed. "


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (raising(ValueError("optim.lr")), "optim.lr"),
        (
            raising(torch.OutOfMemoryError(CUDA)),
            "Tried to allocate 20.00 MiB; a smaller --train.batch_size",
        ),
        (
            raising(RuntimeError(MPS)),
            "(MPS allocated: 17.9 GB). Tried to allocate 32.00 MB on private pool; a smaller",
        ),
        (
            allocate_everything,
            "tried to allocate 4000000000000000 bytes; a smaller --train.batch_size",
        ),
        (raising(MemoryError()), "out of memory; a smaller --train.batch_size, a larger --train.accumulate"),
        (raising(InductorError(COMPILER)), "(None, 'g++'); without it the same is trained: --train.compile false"),
        (
            raising(RuntimeError(PEER)),
            "process 0 has lost another process (Connection closed by peer [10.0.0.2]:4093); what that one says is",
        ),
        (raising(torch.distributed.DistNetworkError("timed out\nException")), "has lost another process (timed out);"),
        (
            raising(RuntimeError(KILLED)),
            "signal: Killed; the system may be out of memory: set fewer --data.workers",
        ),
    ],
    ids=["value", "cuda", "mps", "cpu", "python", "compiler", "gloo", "store", "worker"],
)
def test_what_a_user_can_mend_is_one_line_with_the_remedy(function, told, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stopped, errors_in_one_line("tool"):
        function()
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tool: error: ")
    assert told in line
    monkeypatch.setenv("SSL_CORE_TRACEBACK", "1")
    with pytest.raises((ValueError, RuntimeError, MemoryError)), errors_in_one_line("tool"):
        function()


@pytest.mark.parametrize("error", [KeyError("a"), RuntimeError("shapes"), BrokenPipeError(), KeyboardInterrupt()])
def test_other_errors_are_left_alone(error):
    with pytest.raises(type(error)), errors_in_one_line("tool"):
        raise error
