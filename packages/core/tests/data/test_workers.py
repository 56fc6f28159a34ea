import multiprocessing
import os
import re
import resource
import signal
import socket
import sys
import time
from collections import namedtuple
from multiprocessing.reduction import ForkingPickler
from multiprocessing.resource_sharer import DupFd

import pytest
import torch

from ssl_core.data import BrokenImageError
from ssl_core.data.workers import Loader, WorkerError, check_shared_memory, worker_error, worker_map


class PeculiarError(ValueError):
    """Takes an argument that its message does not have, so that pickle cannot make it again."""

    def __init__(self, place, *, reason):
        super().__init__(f"{place}: {reason}")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a.png has 2 channels"),
        BrokenImageError("a.png: torn"),
        KeyError("b"),
        PeculiarError("a", reason="odd"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_in_a_worker_is_the_one_that_it_would_be_without(error):
    def function(item):
        raise error

    caught = []
    for workers in (0, 1):
        with pytest.raises(type(error).__mro__[isinstance(error, PeculiarError)]) as raised:
            list(worker_map(function, [1, 2], workers))
        caught.append(raised.value)
    assert str(caught[0]) == str(caught[1])
    assert not multiprocessing.active_children()  # the workers have left, and nobody has waited for them
    assert "in worker process" in caught[1].__notes__[0]
    assert "raise error" in caught[1].__notes__[0]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("unable to allocate shared memory(shm) for file </t>: No space left on device (28)"), "shm-size"),
        (RuntimeError("unable to open shared memory object </t> in read-write mode: Read-only"), "workers 0"),
        (OSError(24, "Too many open files"), r"^worker processes: \[Errno 24\] .*; raise the limit \(ulimit -n"),
    ],
    ids=["full", "read-only", "descriptors"],
)
def test_a_result_that_cannot_be_sent_ends_the_work_in_the_main_process(error, message, monkeypatch):
    dumps = ForkingPickler.dumps

    def fail(content):
        if isinstance(content, torch.Tensor):
            raise error
        return dumps(content)

    monkeypatch.setattr(ForkingPickler, "dumps", fail)
    with pytest.raises(WorkerError, match=message):
        list(worker_map(torch.ones, [1, 2], 1))


def with_descriptors(number, function):
    """Call a function where so many more descriptors than are open now can be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + number, limits[1]))
    try:
        return function()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# Too few to start with; enough to start, but not for the tensors of all results.
@pytest.mark.filterwarnings("error")  # of what could not be cleaned up
@pytest.mark.parametrize("descriptors", [2, 20, 40])
def test_too_few_descriptors_are_named(descriptors):
    def some(size):
        return [torch.ones(size) for _ in range(40)]

    with pytest.raises(WorkerError, match="ulimit -n"):
        with_descriptors(descriptors, lambda: list(worker_map(some, [1] * 8, 2)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS], ids=lambda number: number.name)
def test_a_worker_that_dies_ends_the_work_in_the_main_process(number):
    with pytest.raises(RuntimeError, match=r"^DataLoader worker") as raised:
        list(worker_map(lambda item: time.sleep(0.2) or os.kill(os.getpid(), number), [1, 2], 1))
    told = str(worker_error(raised.value))
    assert re.match(r"worker processes: DataLoader worker \(pid \d+\) is killed by signal: .*; .*--data.workers", told)


def test_a_worker_that_exits_ends_the_work_in_the_main_process():
    with pytest.raises(RuntimeError, match=r"^DataLoader worker \(pid.*\) exited unexpectedly"):
        list(worker_map(lambda item: os._exit(3), [1, 2], 1))


@pytest.mark.slow
def test_workers_whose_parent_was_killed_end_with_what_nobody_reads():
    reading, writing = os.pipe()
    if (parent := os.fork()) == 0:
        results = worker_map(lambda item: os.write(writing, b"%d " % os.getpid()) and bytes(10**6), [1] * 8, 2)
        next(results)
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(writing)
    os.waitpid(parent, 0)
    with os.fdopen(reading) as file:
        assert len(set(file.read().split())) == 2  # ends when all who could write have ended


def test_workers_leave_signals_to_the_main_process():
    def survive(item):
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        return os.getpid() != item

    assert list(worker_map(survive, [os.getpid()] * 2, 1)) == [True, True]


def test_a_worker_says_nothing_of_a_main_process_that_leaves_while_it_takes_a_result(capfd):
    results = worker_map(lambda item: DupFd(item), [0, 0], 1)
    shared = next(results)
    with socket.socket(socket.AF_UNIX) as leaving:
        leaving.connect(shared._id[0])
    os.close(shared.detach())  # what asks later is served later
    assert capfd.readouterr().err == ""


def test_a_worker_tells_of_other_errors_that_are_raised_nowhere(capfd):
    list(worker_map(lambda item: sys.excepthook(ValueError, ValueError("odd"), None), [0, 0], 1))
    assert "ValueError: odd" in capfd.readouterr().err


Space = namedtuple("Space", ["f_bavail", "f_frsize"])


def test_a_shared_memory_that_is_too_small_is_found_beforehand(monkeypatch):
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    monkeypatch.setattr(os, "statvfs", lambda path: Space(16 * 1024, 4096))  # Docker's
    # Each of two workers has two ready, and one is in use: 5 x 12 MiB are 60, 5 x 13 MiB are 65.
    check_shared_memory(12 * 2**20, 100, 2)
    message = r"/dev/shm has 64 MiB free, but data\.workers 2 need 65 MiB \(5 batches of 13\.0 MiB\): .*--shm-size"
    with pytest.raises(ValueError, match=message):
        check_shared_memory(13 * 2**20, 100, 2)
    check_shared_memory(13 * 2**20, 4, 2)  # no more than there are
    check_shared_memory(13 * 2**20, 100, 0)
    monkeypatch.setattr("ssl_core.distributed.local_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"need 72 MiB \(6 batches"):
        check_shared_memory(12 * 2**20, 3, 2)


def test_results_are_made_anew_at_each_pass_and_by_the_same_workers_where_they_are_kept():
    items = [1, 2]
    loader = Loader(lambda item: (item, os.getpid()), items, 1, persistent=True)
    first = list(loader)
    items.append(3)
    assert [item for item, _ in loader] == [1, 2, 3]
    assert {process for _, process in loader} == {process for _, process in first}
