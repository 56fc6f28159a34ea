"""N processes with B / N images each give what one gives with B, through the training loop.

A file of tests says which methods to compare: ``CASES``, a name and options for each, and ``make_method``, which
takes the options. :func:`check_ranks` trains every case in this process and again in two others, on shares of the
batch, and compares.
"""

import os
import runpy
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not export it by name

from ssl_core import distributed
from ssl_core.testing.accuracy import DOUBLE
from ssl_core.testing.process import TIMEOUT_S, run_in_processes
from ssl_core.train import TrainConfig, train
from ssl_core.train.checkpoint import whole_state

_PROCESSES = 2
_BATCH = 8
_STEPS = 2  # the second sees the queue and the momentum branch that the first has left


def check_ranks(file: str | Path, folder: Path) -> None:
    """Check that two processes with half the batch each train as one does with all of it.

    Compared after two steps, to a relative 1e-13: gradients, parameters, and all other state, the queue and its cursor
    among it, in every process; a queue that is sharded over them as a whole. All is float64. BatchNorm's statistics
    are the one thing that belongs to a process by design, so the methods have none.

    Args:
        file: Python file, usually the caller's own ``__file__``. Its ``CASES`` maps names to keyword arguments of
            its ``make_method``, which returns a small method on 3-channel images.
        folder: empty folder to work in.

    Raises:
        AssertionError: naming the cases and what differs in them.
        torch.multiprocessing.ProcessException: if one of the two fails.
    """
    run_as_ranks(_train_as_rank, (str(file), folder), processes=_PROCESSES)
    of_ranks = [torch.load(_results(folder, rank)) for rank in range(_PROCESSES)]
    failures = []
    for case, expected in _train_cases(file, folder / "one").items():
        largest = max(value.abs().max() for name, value in expected.items() if name.startswith("gradient of encoder."))
        assert largest > 1e-4, f"{case}: a gradient of zero would prove nothing"
        for rank, of_rank in enumerate(of_ranks):
            for name, value in expected.items():
                found = of_rank[case].get(name)
                if found is None and rank > 0 and name == "queue.keys":
                    continue  # sharded: the first process has taken it together
                if not torch.allclose(found, value, rtol=DOUBLE, atol=DOUBLE):
                    error = (found - value).abs().max()
                    failures.append(f"{case}: {name} of process {rank} differs by {error:.1e}")
    assert not failures, f"{_PROCESSES} processes do not train as one:\n" + "\n".join(failures)


def run_as_ranks(function: Callable[..., object], arguments: Sequence[Any], *, processes: int) -> None:
    """Call a function in several new processes, which find each other as those of torchrun do, and wait for them.

    Args:
        function: function (*arguments) -> anything, importable by its name, that calls ``distributed.setup`` or
            has it called.
        arguments: arguments of the function, which can be pickled.
        processes: number of processes, each with one thread.

    Raises:
        torch.multiprocessing.ProcessException: if one fails, with its traceback.
        AssertionError: if they do not end in time.
    """
    # Where they find each other; port 0 is any free one.
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=TIMEOUT_S))
    run_in_processes(_run_as_rank, (processes, store.port, function, arguments), processes=processes)


def _run_as_rank(
    rank: int, processes: int, port: int, function: Callable[..., object], arguments: Sequence[Any]
) -> None:
    """The work of one of several processes, with the variables that torchrun sets."""
    torch.set_num_threads(1)
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
    }
    os.environ |= {name: str(value) for name, value in place.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    function(*arguments)
    distributed.teardown()


def _results(folder: Path, rank: int) -> Path:
    return folder / f"results_of_{rank}.pt"


def _train_cases(file: str | Path, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Gradients and state of each case after training on this process's share of the batches."""
    cases = runpy.run_path(str(file))
    results = {}
    for index, (case, options) in enumerate(cases["CASES"].items()):
        torch.manual_seed(0)
        method = cases["make_method"](**options).double()
        norms = [name for name, module in method.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert not norms, f"{case}: {norms} have statistics of their own in each process"
        trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
        train(
            method,
            _Shares(method),
            torch.optim.SGD(trained, lr=0.0),
            TrainConfig(epochs=1, batch_size=_BATCH),
            folder=folder / str(index),
            learning_rate=lambda step: 0.5,
        )
        gradients = {
            f"gradient of {name}": value.grad for name, value in method.named_parameters() if value.grad is not None
        }
        results[case] = gradients | whole_state(method)
    return results


def _train_as_rank(file: str, folder: Path) -> None:
    distributed.setup(torch.device("cpu"))
    torch.save(_train_cases(file, folder / "many"), _results(folder, distributed.rank()))


class _Batch(NamedTuple):
    views: tuple[Tensor, ...]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class _Shares:
    """Random images; of each batch, this process's share."""

    batches_per_epoch = _STEPS

    def __init__(self, method: Any) -> None:
        sizes = [size for spec in method.views for size in spec.sizes]
        self._views = [torch.randn(_STEPS, _BATCH, 3, size, size, dtype=torch.float64) for size in sizes]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[_Batch]:
        own = torch.arange(_BATCH).chunk(distributed.world_size())[distributed.rank()]
        for step in range(start, _STEPS):
            yield _Batch(tuple(view[step, own] for view in self._views), own)

    def identifier(self, index: int) -> str:
        return f"image {index}"

    def state_dict(self) -> dict[str, Any]:
        return {}
