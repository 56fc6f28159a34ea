"""Processes that tests start: they end with the test, whatever happens."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
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
        timeout_s: seconds after which it is asked to end and then killed.
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
