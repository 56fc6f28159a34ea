"""Processes that tests start: they end with the test, whatever happens."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Less than pytest's own limit, so that a process that hangs is killed and its test says so.
TIMEOUT_S = 240.0
# In which a process ends that was asked to.
_GRACE_S = 30.0


@contextlib.contextmanager
def started_process(command: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process in a group of its own; in the end all of the group is killed.

    Args:
        command: program and arguments.
        options: further arguments of ``subprocess.Popen``.
    """
    with subprocess.Popen(command, text=True, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def finished_process(
    command: Sequence[str], *, timeout_s: float = TIMEOUT_S, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """A process that has ended, with what it printed.

    Args:
        command: program and arguments.
        timeout_s: number of seconds after which the process is asked to end and then killed.
        options: further arguments of ``subprocess.Popen``.

    Raises:
        AssertionError: if it does not end in time, with what it had printed to standard error.
    """
    with started_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            # torchrun starts its processes in groups of their own, and ends them when it is asked to end.
            process.terminate()
            errors = ""
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, errors = process.communicate(timeout=_GRACE_S)
            raise AssertionError(f"{command} did not end in {timeout_s:g} s:\n{errors}") from None
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_in_processes(function: Callable[..., object], arguments: Sequence[Any], *, processes: int) -> None:
    """Call a function in several new processes at once, and wait for them.

    They are forked from a server that has done nothing but import what takes seconds: torch, and the part of it that
    the first step of an optimizer imports.

    Args:
        function: function (rank, *arguments) -> anything, importable by its name.
        arguments: further arguments of the function, which can be pickled.
        processes: number of processes.

    Raises:
        torch.multiprocessing.ProcessException: if one fails, with its traceback.
        AssertionError: if they do not end in time.
    """
    from torch.multiprocessing.spawn import (
        start_processes,
    )  # this module is light, so that what others import can be counted

    multiprocessing.set_forkserver_preload(["torch", "torch._dynamo"])
    started = start_processes(  # type: ignore[no-untyped-call]  # torch's is untyped
        function, tuple(arguments), processes, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while not started.join(timeout=1.0):
            assert time.monotonic() < deadline, f"{function} did not end in {TIMEOUT_S:g} s"
    finally:
        for process in started.processes:
            process.kill()
