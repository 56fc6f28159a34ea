"""The directory of a run: which one, what it continues from, and that one process at a time writes into it.

A run reads and decides first (:func:`find_run`, :func:`check_writable`), then claims its directory and writes.
"""

import contextlib
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ssl_core import distributed
from ssl_core.address import is_address

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LAST = Path("checkpoints") / "last.pt"
_LOCK = ".lock"
# Some file systems that machines share keep locks to one machine (Lustre with localflock, NFS with local_lock). So the
# holder also touches its lock, and another machine takes it over once it has seen no touch for a while.
_TOUCHED_EVERY_S = 5.0
_DEAD_AFTER_S = 30.0

_held: set[TextIO] = set()
if hasattr(os, "register_at_fork"):
    # A worker would hold the lock of a main process that was killed until it notices.
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _held])


def named_run(path: str) -> tuple[Path, Path]:
    """The run directory and the checkpoint that ``--resume`` names: a run, whose last one it is, or one in it."""
    named = Path(os.path.expanduser(path))
    return (named.parent.parent, named) if named.is_file() else (named, named / LAST)


def find_run(out: str | None, resume: str | None) -> tuple[Path | None, Path | None]:
    """The run directory, None for a new one, and the checkpoint to continue from, None to begin.

    Args:
        out: run directory; None is that of ``resume``, or else a new one.
        resume: run directory to continue from, or a checkpoint in one; None is ``out``, if that holds a checkpoint.

    Raises:
        ValueError: if ``out`` holds another run, or a configuration of none, or has a name that evaluation takes for
            another encoder, or one is an address.
    """
    if out in ("random", "pixels") or (out or "").startswith("timm:"):
        raise ValueError(f"out {out}: ssl-core eval takes this name for another encoder; take runs/{out}")
    for name in (out, resume):
        if name is not None and is_address(name):
            raise ValueError(
                f"{name} is an address, and a run is in a folder of this machine: copy it from or to there"
            )
    folder = None if out is None else Path(os.path.expanduser(out))
    run, checkpoint = (None, None) if resume is None else named_run(resume)
    if folder is None or (run is not None and folder.resolve() == run.resolve()):
        return run, checkpoint
    if (last := folder / LAST).exists():
        if resume is None:
            return folder, last
        raise ValueError(f"{folder} holds a run already: continue it with --resume {folder}, or choose another --out")
    if (folder / "backbone.safetensors").exists():
        raise ValueError(f"{folder} holds a run's backbone without its checkpoint: choose another --out")
    if (folder / "config.yaml").exists() and not (folder / "backbone.json").exists():
        raise ValueError(f"{folder / 'config.yaml'} is of no run and would be overwritten: choose another --out")
    return folder, checkpoint


def last_saved_ns(folder: Path | None) -> int | None:
    """Time at which the last checkpoint in a run directory was written; None where there is none."""
    return (folder / LAST).stat().st_mtime_ns if folder is not None and (folder / LAST).exists() else None


def check_writable(folder: Path) -> None:
    """Find that a run directory cannot be made or written before any work is done; nothing is left behind.

    Raises:
        OSError: naming it, and why.
    """
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


@contextlib.contextmanager
def claimed(folder: Path | None, name: str, *, saved_ns: int | None) -> Iterator[Path]:
    """A run directory for this process, or the group that ``torchrun`` started, alone; it is made if it is not there.

    All processes have decided by then. If the block fails before anything has been written, what was made is gone.

    Args:
        folder: run directory; None makes a new one in ``runs/``.
        name: beginning of a new directory's name.
        saved_ns: time that :func:`last_saved_ns` returned when the checkpoint was read.

    Raises:
        OSError: if another process holds it or has trained there meanwhile, or it cannot be written.
    """
    distributed.barrier()
    with contextlib.ExitStack() as stack:
        answer: Path | OSError = Path()
        if distributed.is_main():
            try:
                answer = stack.enter_context(_made_and_locked(folder, name))
                if last_saved_ns(answer) != saved_ns:
                    raise OSError(f"another process has trained in {answer} meanwhile: start again")
            except OSError as error:
                answer = error
        answer = distributed.broadcast_object(answer)
        if isinstance(answer, OSError):
            raise answer
        yield answer


@contextlib.contextmanager
def _made_and_locked(given: Path | None, name: str) -> Iterator[Path]:
    folder = given or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.parent.mkdir(parents=True, exist_ok=True)
        if given is None:
            made[:1] = [folder := _new(folder)]
        else:
            folder.mkdir(exist_ok=True)
        before = set(os.listdir(folder))
        file = (folder / _LOCK).open("a+")
    except OSError as error:
        raise _unwritable(folder, error) from error
    with file, contextlib.ExitStack() as held:
        _lock(folder, file)
        _held.add(file)
        held.callback(_held.remove, file)
        held.callback(_empty, file)  # nobody has to look whether its holder lives
        held.enter_context(_touched(folder / _LOCK))
        try:
            yield folder
        except BaseException:  # a Ctrl-C too must leave nothing behind
            if set(os.listdir(folder)) - before == {_LOCK}:
                with contextlib.suppress(OSError):  # another may have a run beside it by now
                    (folder / _LOCK).unlink()
                    for path in made:
                        path.rmdir()
            raise


def _empty(file: TextIO) -> None:
    with contextlib.suppress(OSError):  # of a disk that has gone
        file.truncate(0)


@contextlib.contextmanager
def _touched(lock: Path) -> Iterator[None]:
    """Touch a file every few seconds, whatever the process does meanwhile."""
    done = threading.Event()

    def touch() -> None:
        while not done.wait(_TOUCHED_EVERY_S):
            with contextlib.suppress(OSError):  # a disk that is away for a moment
                os.utime(lock)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _new(folder: Path) -> Path:
    """Make a folder that was not there, with a number behind its name where there is one of that name."""
    path, number = folder, 1
    while True:
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
            path = folder.with_name(f"{folder.name}-{number}")


def _lock(folder: Path, file: TextIO) -> None:
    """Lock an open file, which the system releases when the process ends in whatever way, and write down who holds it.

    Raises:
        OSError: naming who holds it.
    """
    file.seek(0)
    holder, _, machine = file.read().strip().partition("\n")
    in_use = OSError(f"{folder} is in use by {holder or 'another process'}; wait for its end, or choose another --out")
    is_locked = False
    try:
        if fcntl is None:
            raise OSError("this system has no such locks")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_locked = True
    except BlockingIOError as error:
        raise in_use from error
    except OSError as error:
        logger.warning("%s cannot be locked (%s): see to it that no other command trains there", folder, error)
    if holder and not (is_locked and machine == _machine()):
        logger.warning("%s belongs to %s: watching for %g s whether that lives", folder, holder, _DEAD_AFTER_S)
        if _is_touched(folder / _LOCK):
            raise in_use
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n{_machine()}\n")
    file.flush()


def _machine() -> str:
    """What no other running machine has in common with this one, not even one of the same name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}".strip()


def _is_touched(lock: Path) -> bool:
    """Whether somebody touches a file while it is watched; no clock of another machine is trusted."""
    until = time.monotonic() + _DEAD_AFTER_S

    def touched_ns() -> int:
        with lock.open() as file:  # NFS asks its server when a file is opened
            return os.fstat(file.fileno()).st_mtime_ns

    before = touched_ns()
    while time.monotonic() < until:
        time.sleep(min(1.0, _DEAD_AFTER_S / 10))
        if touched_ns() != before:
            return True
    return False


def _unwritable(folder: Path, error: OSError) -> OSError:
    return OSError(f"cannot write to the folder {folder} ({error.strerror or error}); choose another --out")
