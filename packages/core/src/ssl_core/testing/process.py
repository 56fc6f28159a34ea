"""Processes that tests start: they end with the test, whatever happens."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

# Less than pytest's own limit, so that a process that hangs is killed and its test says so.
TIMEOUT_S = 240.0


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
        timeout_s: seconds after which it is killed, with all processes that it started.
        options: further arguments of ``subprocess.Popen``.

    Raises:
        AssertionError: if it does not end in time, with what it had printed to standard error.
    """
    with started_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _, errors = process.communicate()
            raise AssertionError(f"{command} did not end in {timeout_s:g} s:\n{errors}") from None
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
