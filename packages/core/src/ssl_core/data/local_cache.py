"""Pieces of remote files on a disk of this machine: those that were used last, up to a size.

Processes and runs share the folder. A piece is written beside its place and then renamed, so that it is whole or not
there; of a machine that stops it may be shorter, for file systems write a size after its data. One process fetches a
piece while the others that want it wait. A file that is read may be deleted: the system keeps it for its reader.
"""

import contextlib
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ssl_core.files import waited_lock

logger = logging.getLogger(__name__)

_FOLDER = "ssl_core_blocks"
_INNER = re.compile(r"[0-9a-f]{2}")
_PIECE = re.compile(r"[0-9a-f]{2,}-\d+(-.*)?")  # the last part of one that is being written
_LOCK = "lock"
_TOTAL = "bytes"  # what all pieces take, those that are being written included
_ROOM = 0.9  # of the limit, to which old pieces are deleted at once, since finding the oldest looks at all


@dataclass(frozen=True)
class LocalCache:
    """A folder of pieces of remote files, the oldest of which make room for new ones.

    Attributes:
        folder: folder that :func:`open_cache` has made, of nothing else.
        limit_bytes: largest size of all pieces.
    """

    folder: Path
    limit_bytes: int

    def part(self, key: str, length: int, start: int, stop: int, fetch: Callable[[], bytes]) -> bytes:
        """Some bytes of a piece.

        Args:
            key: name of the piece, hexadecimal digits at its beginning.
            length: size of the piece in bytes.
            start: first byte.
            stop: byte behind the last one.
            fetch: function that gets the whole piece where it is not here.
        """
        file = self.folder / key[:2] / key
        if (found := _read(file, length, start, stop)) is not None:
            return found
        with contextlib.ExitStack() as held:
            try:
                file.parent.mkdir(exist_ok=True)
                held.enter_context(waited_lock(file.with_name(_LOCK)))
            except OSError as error:
                _tell(self.folder, error)
            if (found := _read(file, length, start, stop)) is not None:  # by another process meanwhile
                return found
            content = fetch()
            try:
                self._write(file, content)
            except OSError as error:
                _tell(self.folder, error)
        return content[start:stop]

    def held_bytes(self) -> int:
        """Size of all pieces."""
        return sum(size for _, size, _ in self._pieces())

    def _write(self, file: Path, content: bytes) -> None:
        with waited_lock(self.folder / _LOCK):
            self._make_room(len(content))
        own = file.with_name(f"{file.name}-{socket.gethostname()}-{os.getpid()}")
        try:
            own.write_bytes(content)
            own.replace(file)
        finally:
            own.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Count a piece that is about to be written, and delete the oldest where all would be too large."""
        total = self.folder / _TOTAL
        try:
            held = int(total.read_text())
        except (OSError, ValueError):  # none yet, or a machine that stopped while it was written
            held = self.held_bytes()
        if held + size > self.limit_bytes:
            pieces = sorted(self._pieces())
            held = sum(each for _, each, _ in pieces)
            for _, each, path in pieces:
                if held + size <= _ROOM * self.limit_bytes:
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                held -= each
        total.write_text(str(held + size))

    def _pieces(self) -> Iterator[tuple[int, int, str]]:
        """Time of last use, size and path of each piece; one that a killed process has left half is one too."""
        for folder in os.scandir(self.folder):
            for each in os.scandir(folder.path) if _INNER.fullmatch(folder.name) else ():
                with contextlib.suppress(FileNotFoundError):  # which another process has deleted
                    if _PIECE.fullmatch(each.name):
                        found = each.stat()
                        yield found.st_mtime_ns, found.st_size, each.path


def open_cache(folder: Path, limit_bytes: int, *, least_bytes: int) -> LocalCache:
    """A cache in a folder of its own in another, which are made if they are not there.

    Args:
        folder: folder that the user has named, whatever else is in it.
        limit_bytes: largest size of all pieces.
        least_bytes: size of the largest piece.

    Raises:
        OSError: if the folder cannot be made or written.
        ValueError: if the disk has no room for so much, or the limit none for a piece.
    """
    if limit_bytes < least_bytes:
        raise ValueError(
            f"data.local_cache_size of {limit_bytes:,} bytes is less than one piece, {least_bytes:,}: raise it"
        )
    own = folder / _FOLDER
    try:
        own.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=own):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise type(error)(f"data.local_cache {folder} cannot be written ({error.strerror or error})") from error
    cache = LocalCache(own, limit_bytes)
    if (held := cache.held_bytes()) + free < limit_bytes:
        raise ValueError(
            f"data.local_cache {folder} holds {held / 1e9:,.1f} GB and its disk has {free / 1e9:,.1f} GB free, less "
            f"than data.local_cache_size, {limit_bytes / 1e9:,.1f} GB: lower that, or name a folder on another disk"
        )
    return cache


def _read(file: Path, length: int, start: int, stop: int) -> bytes | None:
    """Some bytes of a file, which is the newest then; None if it is not there, or has lost a part in a crash."""
    try:
        with file.open("rb") as opened:
            if os.fstat(opened.fileno()).st_size != length:
                return None
            opened.seek(start)
            content = opened.read(stop - start)
        with contextlib.suppress(OSError):  # deleted meanwhile, or of another user
            os.utime(file)
    except OSError:
        return None
    return content


_told: set[tuple[int, Path]] = set()


def _tell(folder: Path, error: OSError) -> None:
    """Say once in each process that it goes on without keeping what it reads."""
    if (os.getpid(), folder) not in _told:
        _told.add((os.getpid(), folder))
        logger.warning(
            "data.local_cache %s cannot be written (%s): what it lacks is fetched each time it is read",
            folder,
            error.strerror or error,
        )
