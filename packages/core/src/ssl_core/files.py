"""Files that are either whole or as they were before."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in its place: a crash or a full disk changes nothing.

    Args:
        path: the file; its folder exists.
        write: is called with the path of ``NAME.part``, which a killed process may leave behind and the next
            write replaces.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "x.txt", lambda part: part.write_text("whole"))
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['x.txt']
    """
    part = path.with_name(f"{path.name}.part")
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
