"""Files that are either whole or as they were before."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module elsewhere


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in its place: a crash or a full disk changes nothing.

    Args:
        path: file to write, in a folder that exists.
        write: function that is called with the open file ``NAME.part``, which a killed process may leave behind and
            the next write replaces.

    Raises:
        OSError: naming the file and the cause, if it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "x.txt", lambda file: file.write(b"whole"))
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['x.txt']
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:
        # What the file said to torch's writer is hidden behind an error of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        before = "the one before it is intact" if path.exists() else "there is none before it"
        raise type(cause)(f"cannot write {path} ({cause.strerror or cause}); {before}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_json(path: Path, content: object) -> None:
    """Write plain values as JSON, as :func:`write_atomically` writes."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def copy_atomically(source: Path, path: Path) -> None:
    """Copy a file as :func:`write_atomically` writes one."""
    with source.open("rb") as content:
        write_atomically(path, lambda file: shutil.copyfileobj(content, file))


def check_file(path: Path) -> None:
    """Find that a file cannot be written before any work is done; nothing is left behind.

    Raises:
        OSError: naming it, and why.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise type(error)(f"cannot write {path} ({error.strerror or error})") from error


@contextlib.contextmanager
def waited_lock(path: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for; where the system has no such locks they do not wait.

    Args:
        path: file of the lock, in a folder that can be written; it is left there.
    """
    with path.open("w") as file:
        with contextlib.suppress(OSError):
            _lock(file)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # and not left to the closing: a forked process may have a copy
                _lock(file, release=True)


def _lock(file: TextIO, *, release: bool = False) -> None:
    if fcntl is None:
        raise OSError("this system has no such locks")
    fcntl.flock(file, fcntl.LOCK_UN if release else fcntl.LOCK_EX)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder ``NAME.part`` to fill, which then takes its place at ``path``: that is whole, or as it was before.

    A killed process may leave the part behind; the next one replaces it.

    Args:
        path: folder that does not exist, or is empty, in one that exists.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with new_folder(Path(folder) / "x") as part:
        ...         _ = (part / "y.txt").write_text("whole")
        ...     [str(path.relative_to(folder)) for path in Path(folder).rglob("*")]
        ['x', 'x/y.txt']
    """
    path = path.resolve()
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        if path.exists():
            path.rmdir()
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
