"""A run that is told to stop finishes its step first."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from ssl_core import distributed

# By which people and schedulers end a run: Ctrl-C, `kill`, a lost terminal, and what Slurm sends before the time limit.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
# A person who repeats these wants no more than the end. The others come more than once without being meant so: SIGHUP
# from the shell and from the kernel, SIGUSR1 to a job's step and to its processes. Under torchrun these do too: from
# Slurm, which signals all processes of a step, and from torchrun, which passes on what it gets, and kills in the end.
_AT_ONCE_WHEN_REPEATED = ("SIGINT", "SIGTERM")


class _Stopped(BaseException):
    """Raised by a signal in work that may be left at once."""


class StopSignal:
    """Remembers a signal to stop until the current step is done.

    A signal that was ignored, as ``nohup`` ignores SIGHUP, stays so; outside of the main thread none is heard, for
    Python has no signals there.
    """

    def __init__(self) -> None:
        self.number = 0
        self._may_leave = False

    @property
    def name(self) -> str:
        """Name of the signal that came, ``SIGTERM`` say."""
        return signal.Signals(self.number).name

    def asked(self, may_communicate: bool) -> bool:
        """True when any process was told to stop.

        Args:
            may_communicate: whether all processes may exchange, at this step, if they were told (it is a device sync);
                with one process it does not matter.
        """
        if distributed.world_size() == 1:
            return self.number != 0
        if not may_communicate:
            return False
        self.number = max(distributed.gather_objects(self.number))
        return self.number != 0

    @contextlib.contextmanager
    def at_once(self, leave: Callable[[], NoReturn]) -> Iterator[None]:
        """Work that need not be finished: where there is one process, a signal ends it.

        Args:
            leave: function that is called at such a signal.
        """
        self._may_leave = distributed.world_size() == 1
        try:
            yield
        except _Stopped:
            leave()
        finally:
            self._may_leave = False

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self.name in _AT_ONCE_WHEN_REPEATED and not distributed.has_launcher():
            signal.signal(number, self._previous[number])
        if self._may_leave:
            self._may_leave = False
            raise _Stopped

    def __enter__(self) -> "StopSignal":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]  # Windows has two
            handlers = {number: signal.getsignal(number) for number in numbers}
            # None: set by another language's code, which could not be put back.
            self._previous = {n: handler for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
        for number in self._previous:
            signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
