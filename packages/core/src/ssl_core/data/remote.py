"""Files behind an address, such as s3://bucket/photos: found, and read in ranges, by the file systems of fsspec.

A path with a scheme is a :class:`RemotePath`, which speaks of files in the words of ``pathlib``. What is read has the
size and tag that it had when it was found, or a :class:`RemoteError` is raised: no image stands in for one that cannot
be reached.

Every process asks fsspec for a file system when it needs one, and gets one of its own: their connections do not survive
a fork.
"""

import contextlib
import functools
import hashlib
import io
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, TypeVar

from ssl_core.address import is_address
from ssl_core.data.local_cache import LocalCache
from ssl_core.data.pixels import in_one_line

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# Of a local cache, and of a file that is read from its beginning to its end: so large that the 100 to 200 ms after
# which S3 begins an answer are not most of a request, and so small that a block for one image is no waste.
BLOCK_BYTES = 8 * 2**20
_PATIENCE_S = 120.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
# Of a server that says nothing, for which gcsfs would wait for ever: longer than s3fs takes until it gives a throttled
# request up, and longer for what is large.
_SILENCE_S, _SLOWEST_BYTES_PER_S = 45.0, 2**16
_TOLD_AFTER_S = 15.0
_OPENED = 1024  # files of a process
_AT_ONCE = 16  # requests of a process; boto lets 10 through
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
# By which file systems tell a file from another in its place, the surest first.
_TAGS = ("ETag", "etag", "blob_id", "LastModified", "last_modified", "updated", "mtime", "created")
_dice = random.SystemRandom()  # and not a generator that a run has seeded


class RemoteError(ValueError):
    """A remote file cannot be read, has changed or is gone."""


class RemoteFile(NamedTuple):
    """A remote file as it was when it was found.

    Attributes:
        url: address.
        size: size in bytes.
        tag: what is another if its content is; empty where the file system has no such thing.
    """

    url: str
    size: int
    tag: str


_FOLDER = RemoteFile("", -1, "")


class _Below:
    """What is known of a folder and all below it."""

    def __init__(self, known: dict[str, RemoteFile | None]) -> None:
        self._known = known  # by address; _FOLDER is a folder, None is nothing
        self._listed: str | None = None
        self._folders: dict[str, tuple[dict[str, None], dict[str, RemoteFile]]] = {}  # names inside, by address

    def at(self, url: str) -> RemoteFile | None:
        """The file at an address, `_FOLDER`, or None."""
        if self._listed is not None and f"{url}/".startswith(f"{self._listed}/"):
            parent, _, name = url.rpartition("/")
            return _FOLDER if url in self._folders else self._folders.get(parent, ({}, {}))[1].get(name)
        if url not in self._known:
            self._known[url] = _found(url)
        return self._known[url]

    def walk(self, url: str) -> Iterator[tuple[str, list[str], list[str]]]:
        """As ``os.walk``, after one listing of everything."""
        if self._listed is None or not f"{url}/".startswith(f"{self._listed}/"):
            self._list(url)
        waiting = [url]
        while waiting:
            parent = waiting.pop()
            folders, files = (list(names) for names in self._folders.get(parent, ({}, {})))
            yield parent, folders, files
            waiting += [f"{parent}/{name}" for name in reversed(folders)]

    def _list(self, url: str) -> None:
        system, path = _file_system(url)
        with _asking(url):
            found = system.find(path, detail=True)
        system.invalidate_cache()  # which holds as much again
        self._listed, self._folders = url, {url: ({}, {})}
        while found:  # of ten million objects nobody holds two lists
            name, entry = found.popitem()
            if entry["type"] == "file" and not name.endswith("/"):  # as consoles mark a folder
                file = _file(url + name[len(path) :], entry)
                parent, _, last = file.url.rpartition("/")
                self._inside(parent)[1][last] = file

    def _inside(self, url: str) -> tuple[dict[str, None], dict[str, RemoteFile]]:
        if url not in self._folders:
            parent, _, name = url.rpartition("/")
            self._inside(parent)[0][name] = None
            self._folders[url] = ({}, {})
        return self._folders[url]


@dataclass(frozen=True)
class RemotePath:
    """An address in the words of ``pathlib``; see there for what has no docstring here.

    Attributes:
        url: address, without a slash at its end.
    """

    url: str
    _below: _Below = field(default_factory=lambda: _Below({}), compare=False, repr=False)

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(joined(self.url, name), self._below)

    @property
    def name(self) -> str:  # noqa: D102  # pathlib's
        return self.url.rpartition("/")[2]

    @property
    def suffix(self) -> str:  # noqa: D102  # pathlib's
        return os.path.splitext(self.name)[1]

    @property
    def parts(self) -> tuple[str, ...]:  # noqa: D102  # pathlib's
        return tuple(self.url.split("/"))

    @property
    def parent(self) -> "RemotePath":  # noqa: D102  # pathlib's
        return RemotePath(self.url.rpartition("/")[0], self._below)

    @property
    def parents(self) -> tuple["RemotePath", ...]:  # noqa: D102  # pathlib's
        above = self.parent
        return () if above.url.endswith(":/") else (above, *above.parents)

    def exists(self) -> bool:  # noqa: D102  # pathlib's
        return self._below.at(self.url) is not None

    def is_dir(self) -> bool:  # noqa: D102  # pathlib's
        return self._below.at(self.url) is _FOLDER

    def is_file(self) -> bool:  # noqa: D102  # pathlib's
        return self.at(self.url) is not None

    def resolve(self) -> "RemotePath":  # noqa: D102  # pathlib's
        return self

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """As ``os.walk``: addresses of folders, names in them."""
        return self._below.walk(self.url)

    def at(self, url: str) -> RemoteFile | None:
        """The file at an address in this folder; None if there is none."""
        found = self._below.at(url)
        return None if found is _FOLDER else found

    def file(self) -> RemoteFile:
        """The file as it is.

        Raises:
            FileNotFoundError: if there is none.
        """
        if (found := self.at(self.url)) is None:
            raise FileNotFoundError(f"there is no file {self.url}")
        return found

    def read_bytes(self) -> bytes:
        """The content of the file; errors as :meth:`file` and :func:`read_range`."""
        file = self.file()
        return read_range(file, 0, file.size)


AnyPath: TypeAlias = Path | RemotePath


def path_of(address: str) -> AnyPath:
    """The path that an address names; of ``file://`` one of this machine.

    Raises:
        ImportError: if the file system of its scheme is not installed.
        ValueError: for a scheme that fsspec does not know.
    """
    from fsspec.implementations.local import LocalFileSystem

    system, path = _file_system(address)
    if isinstance(system, LocalFileSystem):
        return Path(path)
    system.invalidate_cache()  # of what was there when somebody looked before
    return RemotePath(_address(system, path))


def matching(pattern: str) -> list[RemotePath]:
    """What addresses of a pattern name."""
    system, path = _file_system(pattern)
    with _asking(pattern):
        found = system.glob(path, detail=True)
    urls = [(_address(system, name), entry) for name, entry in found.items()]
    return [RemotePath(url, _Below({url: _file(url, entry)})) for url, entry in urls]


def file_at(url: str) -> RemoteFile:
    """The file at an address, as it is.

    Raises:
        FileNotFoundError: if there is none.
    """
    if (found := _found(url)) is None or found is _FOLDER:
        raise FileNotFoundError(f"there is no file {url}")
    return found


def joined(parent: str, name: str) -> str:
    """The address of a name relative to another address, with dots resolved as in paths."""
    if is_address(name):
        return name
    scheme, _, path = parent.partition("://")
    parts: list[str] = path.split("/")
    for part in name.split("/"):
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return f"{scheme}://{'/'.join(parts)}"


def files_beside(urls: list[str]) -> dict[str, RemoteFile]:
    """Those of some addresses that are files, by a listing of the folder of each; a folder is listed once."""
    wanted = set(urls)
    found: dict[str, RemoteFile] = {}
    for folder in sorted({url.rpartition("/")[0] for url in urls}):
        system, path = _file_system(folder)
        with _asking(folder), contextlib.suppress(FileNotFoundError):  # its files are missing
            for entry in system.ls(path, detail=True):
                url = f"{folder}/{entry['name'].rpartition('/')[2]}"
                if url in wanted and entry["type"] == "file":
                    found[url] = _file(url, entry)
        system.invalidate_cache()
    return found


def read_range(file: RemoteFile, start: int, size: int, cache: LocalCache | None = None) -> bytes:
    """Some bytes of a file.

    With a cache its blocks of 8 MiB are fetched and kept, without one just these bytes in one request. After a
    connection that is cut, an answer that says to come later, or 45 seconds without one, it is tried again for two
    minutes; file systems try some times on their own, which is part of that time.

    Args:
        file: file as it was found.
        start: first byte.
        size: number of bytes.
        cache: blocks of files on this machine; None keeps none, and of a file without a tag none is kept.

    Raises:
        RemoteError: if the file cannot be read in that time, may not be read, is gone, or is no longer what was found.
    """
    if cache is None or not file.tag:
        return _fetched(file, start, size)
    name = _short_hash(repr(file))
    parts = []
    for block in range(start // BLOCK_BYTES, -(-(start + size) // BLOCK_BYTES)):
        first = block * BLOCK_BYTES
        length = min(BLOCK_BYTES, file.size - first)
        parts.append(
            cache.part(
                f"{name}-{block}",
                length,
                max(0, start - first),
                min(length, start + size - first),
                functools.partial(_fetched, file, first, length),
            )
        )
    return b"".join(parts)


def read_ranges(wanted: Sequence[tuple[RemoteFile, int, int]], cache: LocalCache | None) -> list[bytes]:
    """Several ranges of files, each of which waits for its answer at the same time; as :func:`read_range`."""
    return list(_threads(os.getpid()).map(lambda each: read_range(each[0], each[1], each[2], cache), wanted))


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, "remote")


def open_remote(file: RemoteFile, cache: LocalCache | None = None, *, ahead: bool = False) -> BinaryIO:
    """A file to read from any place.

    Args:
        file: file as it was found.
        cache: as :func:`read_range` takes it.
        ahead: whether it is read from its beginning to its end, and more at once than is asked for.
    """
    return io.BufferedReader(_Raw(file, cache), BLOCK_BYTES if ahead else 1)


class _Raw(io.RawIOBase):
    mode = "rb"

    def __init__(self, file: RemoteFile, cache: LocalCache | None) -> None:
        self._file, self._cache, self._position = file, cache, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._file.size - self._position))
        buffer[:size] = read_range(self._file, self._position, size, self._cache)
        self._position += size
        return size


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of an address for this process, and its own name for what is there."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)  # type: ignore[no-any-return, no-untyped-call]  # fsspec has no types
    except ImportError as error:
        package = _PACKAGES.get(url.partition("://")[0])
        raise ImportError(f"{url}: {error}" + (f" (pip install {package})" if package else "")) from error
    except ValueError as error:
        raise ValueError(f"{url!r} is an address that fsspec cannot read: {in_one_line(error)}") from error


def _address(system: Any, path: str) -> str:
    return str(system.unstrip_protocol(path)).rstrip("/")


def _file(url: str, entry: dict[str, Any]) -> RemoteFile:
    if entry["type"] != "file":
        return _FOLDER
    tag = next((entry[name] for name in _TAGS if entry.get(name)), None)
    if tag is None:
        return RemoteFile(url, entry["size"], "")
    text = str(tag.timestamp() if isinstance(tag, datetime) else tag)
    return RemoteFile(url, entry["size"], _short_hash(text))


def _short_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _found(url: str) -> RemoteFile | None:
    """What is at an address, at the start of a command."""
    with _asking(url):
        return _answered(functools.partial(_now, url), _SILENCE_S)


def _now(url: str) -> RemoteFile | None:
    """What is at an address, whatever the file system remembers of it."""
    system, path = _file_system(url)
    try:
        system.invalidate_cache(path)
        return _file(url, system.info(path))
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _asking(url: str) -> Iterator[None]:
    """Errors of a file system at the start of a command, where nobody has to wait for it to heal, with the address."""
    words = ("%s: no answer for %g s; waiting for it", url, _TOLD_AFTER_S)
    told = threading.Timer(_TOLD_AFTER_S, logger.warning, words)
    told.daemon = True
    told.start()
    try:
        yield
    except (FileNotFoundError, RemoteError):
        raise
    except Exception as error:  # of whatever library does the work
        raise RemoteError(f"{url} cannot be read: {_cause(error)}") from error
    finally:
        told.cancel()


def _cause(error: Exception) -> str:
    remedy = ""
    if _is_refusal(error) or "redential" in f"{type(error).__name__} {error}":
        remedy = "; look at the credentials that this machine has for it (docs/data.md)"
    return f"{in_one_line(error)} ({type(error).__name__}){remedy}"


def _fetched(file: RemoteFile, start: int, size: int) -> bytes:
    """Some bytes of a file in one request, again and again for a while."""
    pause, until, has_failed = _FIRST_PAUSE_S, time.monotonic() + _PATIENCE_S, False
    while True:
        try:
            fetch = _fetched_anew if has_failed else _fetched_once
            return _answered(functools.partial(fetch, file, start, size), _SILENCE_S + size / _SLOWEST_BYTES_PER_S)
        except _ChangedError:
            raise
        except Exception as error:  # of whatever library does the work: what is not known to last may heal
            if isinstance(error, FileNotFoundError) or _status(error) == "404":
                _refuse_other(file, None)
            if _is_refusal(error):
                raise RemoteError(f"{file.url} may not be read any more: {_cause(error)}") from error
            if time.monotonic() + pause > until:
                raise RemoteError(
                    f"{file.url} cannot be read, in {_PATIENCE_S:g} s of trying: {_cause(error)}; once it can, "
                    "--resume goes on with the run"
                ) from error
            if not has_failed:
                logger.warning("%s: %s; trying again for %g s", file.url, _cause(error), _PATIENCE_S)
            has_failed = True
            time.sleep(pause * _dice.uniform(0.5, 1.0))  # or all processes would come back at once
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def _is_refusal(error: BaseException) -> bool:
    """Whether an error says that something may not be read (401, 403), which file systems say in several ways."""
    has_status = _status(error) in ("401", "403")
    is_own = has_status or isinstance(error, PermissionError) or str(error).startswith("Forbidden")
    return is_own or (error.__cause__ is not None and _is_refusal(error.__cause__))


def _status(error: BaseException) -> str:
    """Status of the answer that an error is about; "None" without one."""
    response = getattr(error, "response", None)
    found = getattr(response, "status_code", None) or getattr(error, "status", None) or getattr(error, "code", None)
    return str(found)


def _answered(ask: Callable[[], Answer], seconds: float) -> Answer:
    """What a function returns, in a thread that is left to itself where that takes longer.

    Raises:
        TimeoutError: if there is nothing after that time.
    """
    answer: Future[Answer] = Future()

    def wait_for_it() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # which is raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=wait_for_it, daemon=True).start()
    if not wait([answer], seconds).done:
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    return answer.result()


def _fetched_anew(file: RemoteFile, start: int, size: int) -> bytes:
    """As :func:`_fetched_once`, after another look at what is there."""
    _opened.cache_clear()
    _refuse_other(file, _now(file.url))
    return _fetched_once(file, start, size)


def _fetched_once(file: RemoteFile, start: int, size: int) -> bytes:
    if size == 0:
        return b""
    if (start, size) == (0, file.size):
        system, path = _file_system(file.url)
        content = system.cat_file(path, start=0, end=size + 1)  # one more, to notice one that has grown
    else:
        content = _opened(os.getpid(), file)(start, start + size)
    if len(content) != size:
        raise OSError(f"{len(content):,} bytes came instead of {size:,}")
    return bytes(content)


@functools.lru_cache(maxsize=_OPENED)
def _opened(process: int, file: RemoteFile) -> Callable[[int, int], bytes]:
    """A file of a process, after a look at its tag, as a function of a range that threads may call at once.

    Of S3 each of its requests asks for that tag. So it is read by what fsspec's files have for their own caches.
    """
    system, path = _file_system(file.url)
    opened = system.open(path, "rb", cache_type="none")
    _refuse_other(file, _file(file.url, getattr(opened, "details", None) or system.info(path)))
    return getattr(opened, "_fetch_range", None) or functools.partial(system.cat_file, path)


class _ChangedError(RemoteError):
    """A file is not what it was."""


def _refuse_other(file: RemoteFile, now: RemoteFile | None) -> None:
    if now is None or now is _FOLDER:
        raise _ChangedError(f"{file.url} is gone: put it back, or start again without it")
    if now != file:
        raise _ChangedError(f"{file.url} has changed since it was found: start again, which looks at it anew")
