"""Standard streams and Ctrl-C of every command, from before anything large is imported."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_STREAMS = ("stdin", "stdout", "stderr")


@contextlib.contextmanager
def console(prog: str) -> Iterator[None]:
    """The whole of a command: Ctrl-C and a standard output that cannot be written end it in one line.

    Where nobody reads standard output any more, as after ``| head``, the command ends without one, as others do.

    Args:
        prog: name of the command.
    """
    open_closed_streams()
    _interrupt_once()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # at the interpreter's end nobody could say that it fails
    except KeyboardInterrupt:
        _leave(f"{prog}: interrupted\n", 128 + signal.SIGINT)
    except BrokenPipeError:
        _discard(sys.stdout)
        _leave("", 141)  # 128 + SIGPIPE, by which others are ended
    except OSError as error:
        _discard(sys.stdout)
        _leave(f"{prog}: error: standard output: {error.strerror}\n", 1)


def open_closed_streams() -> None:
    """Open standard streams that were closed, as ``2>&-`` does, on nothing.

    Else the next file that is opened would take the number of the stream, and what anything prints.
    """
    for number, name in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115  # until the process ends


@contextlib.contextmanager
def lasting(*names: str) -> Iterator[None]:
    """Work that goes on where standard streams cannot be written any more.

    A training run may take days and leaves all of its results in files. So where its output goes into a pipe whose
    reader ends, to a full disk or to a lost terminal, the run goes on without, and says so on the other stream.

    Args:
        names: names of the streams: ``stdout``, ``stderr`` or both.
    """
    open_closed_streams()
    before = {name: getattr(sys, name) for name in names}
    for name, stream in before.items():
        setattr(sys, name, Lasting(stream))
    try:
        yield
    finally:
        for name, stream in before.items():
            setattr(sys, name, stream)


class Lasting:
    """A text stream whose end is not that of the work that writes to it.

    Args:
        stream: standard output or standard error, or a stream in its place.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as the stream does."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush as the stream does."""
        self._try(self._stream.flush)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            _discard(self._stream)
            if self._stream.fileno() == 1:
                sys.stderr.write(f"standard output: {error.strerror}; the run goes on without it\n")


def _discard(stream: Any) -> None:
    """Let all that is written to a stream from now on, and what it still holds, vanish."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


def _leave(text: str, status: int) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
    raise SystemExit(status)


def _interrupt_once() -> None:
    """Let the first Ctrl-C raise KeyboardInterrupt, and later ones not disturb what is done then, unless it hangs."""
    # In a shell's background, Ctrl-C is ignored.
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_heard or threading.current_thread() is not threading.main_thread():
        return

    def first(number: int, frame: FrameType | None) -> None:
        came_at = time.monotonic()

        def again(number: int, frame: FrameType | None) -> None:
            if time.monotonic() > came_at + 1:  # else a bouncing key, or one that a terminal and a launcher pass on
                os._exit(128 + number)

        signal.signal(number, again)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)
