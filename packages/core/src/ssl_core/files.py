"""Files that are either whole or as they were before."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


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
