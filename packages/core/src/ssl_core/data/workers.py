"""Worker processes, which decode images and make views beside the main process.

An error in a worker is raised in the main process: one of the function as it would be without workers, and a lack of
shared memory, file descriptors or processes as a :class:`WorkerError` that names what helps.
"""

import contextlib
import logging
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils.pin_memory import pin_memory

from ssl_core import distributed

Item = TypeVar("Item")
Result = TypeVar("Result")

_SHARED_MEMORY = "/dev/shm"
_PREFETCHED = 2  # results of each worker
_MORE_SHARED_MEMORY = (
    "give the container more (docker run --shm-size=8g), lower the batch size, or set --data.workers 0"
)
# By what the system says.
_REMEDIES = {
    "No space left": f"{_SHARED_MEMORY} is full: {_MORE_SHARED_MEMORY}",
    "Bus error": f"{_SHARED_MEMORY} is full: {_MORE_SHARED_MEMORY}",
    "Too many open files": "raise the limit (ulimit -n 4096), or set fewer --data.workers",
    "Killed": "the system may be out of memory: set fewer --data.workers, or lower the batch size",
}
# By which a run is told to stop, beside SIGTERM; the main process alone decides what that means.
_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class WorkerError(RuntimeError):
    """Worker processes cannot be started or cannot go on."""


def worker_error(trouble: BaseException) -> WorkerError:
    """The error for some trouble with worker processes: its first line, and a remedy."""
    # Where a worker has died, the cause says of which signal.
    cause = (str(trouble.__cause__ or "") or str(trouble)).strip().partition("\n")[0].rstrip(". ")
    remedies = (remedy for said, remedy in _REMEDIES.items() if said in cause)
    return WorkerError(f"worker processes: {cause}; {next(remedies, '--data.workers 0 does without them')}")


class Loader(Generic[Item, Result]):
    """``function(item)`` for each item, in order; ``items`` is read anew at each pass.

    Args:
        function: function that the workers call.
        items: arguments of the function, iterated once per pass.
        workers: number of processes; 0 calls the function in this one.
        persistent: whether the workers are kept between passes.
        pin_memory: whether results are copied into page-locked memory, for a GPU.

    Raises:
        ValueError: if workers is negative.
    """

    def __init__(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        workers: int,
        *,
        persistent: bool = False,
        pin_memory: bool = False,
    ) -> None:
        if workers < 0:
            raise ValueError(f"data.workers must be at least 0, got {workers}")
        # Fork shares the decoded images without a copy. It is safe here: a DataLoader's worker runs on one torch
        # thread, so it never waits for threads that only its parent has. Elsewhere images are pickled into shared
        # memory. That has no names (torch's sharing strategy file_descriptor, its default on Linux): results are few
        # and large, so that descriptors suffice, and the system frees what a killed process leaves.
        with _any_number_of_workers():
            self._loader: DataLoader[Result | _Parcel] = DataLoader(
                _Applied(function),
                batch_size=None,
                sampler=items,
                num_workers=workers,
                collate_fn=_unchanged,
                worker_init_fn=_prepare_worker,
                persistent_workers=persistent and workers > 0,
                pin_memory=pin_memory,
                multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
                prefetch_factor=_PREFETCHED if workers else None,
                # A DataLoader draws a seed at each pass; drawn from here, it leaves torch's own generator alone.
                generator=torch.Generator(),
            )

    def __iter__(self) -> Iterator[Result]:
        """One pass.

        Raises:
            WorkerError: if the workers cannot be started or cannot go on.
        """
        try:
            with _signals_blocked(), _any_number_of_workers():
                self._check_resources()
                results = iter(self._loader)
        except OSError as error:
            raise worker_error(error) from error
        try:
            for result in results:
                opened = result.opened() if isinstance(result, _Parcel) else result
                if isinstance(opened, WorkerError):
                    time.sleep(0.2)  # if its worker has died, a signal arrives and torch's handler says of what
                if isinstance(opened, Exception):
                    raise opened
                yield opened
        finally:
            del results  # workers that are not kept leave now, though the traceback of an error may hold this frame

    def _check_resources(self) -> None:
        """Fail where workers would: what a DataLoader has begun to start then prints tracebacks at the end."""
        workers = self._loader.num_workers
        # Of each worker the parent has four descriptors, two as a queue has them; a few batches are on their way.
        del [multiprocessing.SimpleQueue() for _ in range(2 * workers + 8 if workers else 0)][:]


class Requests(Generic[Item]):
    """The items of a loader's current pass, which are others in the next; they are made as the loader asks for them."""

    def __init__(self) -> None:
        self._items: Iterable[Item] = ()
        self._passes = 0

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def results(self, loader: Iterable[Result], items: Iterable[Item], epoch: int) -> Iterator[Result]:
        """A pass over some items.

        Args:
            loader: results of what this holds.
            items: items of the pass.
            epoch: number of the pass, for the message.

        Raises:
            RuntimeError: if this pass is continued after another was started.
        """
        self._items = items
        self._passes += 1
        current = self._passes
        for result in loader:
            yield result
            if current != self._passes:
                raise RuntimeError(f"epoch {epoch} was left for another and cannot be continued; start it again")


def worker_map(function: Callable[[Item], Result], items: list[Item], workers: int) -> Iterator[Result]:
    """``function(item)`` for each item, in order, in worker processes where there is more than one item."""
    return iter(Loader(function, items, workers if len(items) > 1 else 0))


def free_shared_memory() -> float:
    """Bytes that are free in the shared memory; infinity where the system has none of a size of its own."""
    if not os.path.isdir(_SHARED_MEMORY):
        return math.inf
    found = os.statvfs(_SHARED_MEMORY)
    return float(found.f_bavail * found.f_frsize)


def most_workers(result_bytes: int) -> int:
    """The number of processes whose results the shared memory holds."""
    at_once = free_shared_memory() / distributed.local_world_size() / result_bytes
    return sys.maxsize if at_once == math.inf else max(0, int(at_once - 1) // _PREFETCHED)


def check_shared_memory(result_bytes: int, num_results: int, workers: int) -> None:
    """Check that the shared memory holds what workers have made before it is used.

    Args:
        result_bytes: size of a result.
        num_results: number of results of a pass.
        workers: number of processes that make them.

    Raises:
        ValueError: if it is too small.
    """
    if not workers:
        return
    # Beside what is prefetched, the result in use. The processes of a machine share its memory.
    at_once = min(_PREFETCHED * workers + 1, num_results) * distributed.local_world_size()
    free_bytes = free_shared_memory()
    if at_once * result_bytes > free_bytes:
        raise ValueError(
            f"{_SHARED_MEMORY} has {free_bytes / 2**20:,.0f} MiB free, but data.workers {workers} need "
            f"{at_once * result_bytes / 2**20:,.0f} MiB ({at_once} batches of {result_bytes / 2**20:,.1f} MiB): "
            f"{_MORE_SHARED_MEMORY}"
        )


class _Applied(Dataset[Any], Generic[Item, Result]):
    """A function in the clothes of a data set, so that a DataLoader can call it in its workers."""

    def __init__(self, function: Callable[[Item], Result]) -> None:
        self._function = function

    def __getitem__(self, item: Item) -> "Result | _Parcel":
        if get_worker_info() is None:
            return self._function(item)
        try:
            return _Parcel(self._function(item))
        except Exception as error:  # whatever the function raises is raised in the main process
            sent = _picklable(error)
            sent.add_note(f"in worker process {os.getpid()}:\n{traceback.format_exc()}")
            return _Parcel(sent)


class _Parcel:
    """A result or an error on its way from a worker, already in shared memory.

    A DataLoader would put it there in a thread of the worker. Where that fails, the thread prints a traceback, and the
    main process waits for ever. It would also change the message of an error.
    """

    def __init__(self, content: object) -> None:
        try:
            self._pickled = bytes(ForkingPickler.dumps(content))
        except (OSError, RuntimeError) as error:
            self._pickled = bytes(ForkingPickler.dumps(worker_error(error)))

    def opened(self) -> Any:
        """The content; an error where it cannot be taken over."""
        try:
            return pickle.loads(self._pickled)
        except (OSError, EOFError, RuntimeError) as error:
            return worker_error(error)

    def pin_memory(self) -> Any:
        """The content in page-locked memory, which a DataLoader asks for in a thread."""
        return pin_memory(self.opened())  # type: ignore[no-untyped-call]  # torch's is untyped


def _picklable(error: Exception) -> Exception:
    """The error, or where its class cannot be pickled, one of the built-in class that it is made from."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a class may refuse to be pickled, or to be made anew, in any way
        kind: type[Exception] = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
        return kind(str(error))
    return error


def _unchanged(result: Any) -> Any:
    return result


@contextlib.contextmanager
def _any_number_of_workers() -> Iterator[None]:
    """A DataLoader does not warn of more workers than processors, which somebody asked for or do no harm."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Signals wait while workers are started, and never reach those."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker(worker: int) -> None:
    """Leave signals to the main process, which may want to finish a step and save before its workers go.

    Ctrl-C, a lost terminal and a scheduler's SIGTERM reach all processes of a job; a worker ends when its parent tells
    it to, or has ended itself.
    """
    logging.getLogger("ssl_core").setLevel(logging.WARNING)  # or each says what an op runs as
    sys.excepthook = _tell_of_error
    if sys.platform == "win32":  # elsewhere they are blocked, from before the worker was started
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # sigtimedwait is not everywhere
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_with_parent, daemon=True).start()


def _tell_of_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that is raised nowhere, unless it is that the parent left while it took a result over."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _leave_with_parent() -> None:
    # A DataLoader's worker also looks for its parent, but then waits for ever for somebody to read its results.
    parent = multiprocessing.parent_process()
    assert parent is not None
    told = None
    while os.getppid() == parent.pid and (told is None or told.si_pid != parent.pid):
        told = signal.sigtimedwait({signal.SIGTERM}, 1.0)
    os._exit(0)
