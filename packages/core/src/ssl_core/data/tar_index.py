"""The index of tar shards in WebDataset's layout: where each image lies, and its label, in one Arrow file.

A shard is read once, header by header. A sample is what has one key, the name of a member up to the first dot behind
its folders: ``cat/1.jpg`` and ``cat/1.cls``. A key is one of its shard alone, whose members may come in any order.
"""

# PyArrow's classes are compiled and carry no types.
# mypy: disable-error-code="no-untyped-call,name-defined,attr-defined,misc"

import hashlib
import json
import logging
import math
import os
import re
import socket
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from ssl_core.address import is_address
from ssl_core.data.decode import IMAGE_SUFFIXES
from ssl_core.data.local_cache import LocalCache
from ssl_core.data.pixels import in_one_line
from ssl_core.data.remote import AnyPath, RemotePath
from ssl_core.data.shards import Shard, open_shard
from ssl_core.data.source import listing
from ssl_core.data.workers import worker_map
from ssl_core.files import waited_lock, write_atomically
from ssl_core.machine import usable_cores
from ssl_core.progress import progress_bar

logger = logging.getLogger(__name__)

INDEX_NAME = "ssl_core_index"
_VERSION = "2"  # of what is read from a shard: an index of another one is made anew
SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),  # its number among those of the file, in the order of their names
        ("offset", pa.int64()),  # of the image's first byte in the shard
        ("size", pa.int64()),
        ("name", pa.large_binary()),  # of the member: key, dot and extension
        ("label", pa.large_string()),  # null for none
    ]
)
_NO_ROWS = pa.RecordBatch.from_pylist([], SCHEMA)
_KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
# First bytes of compressed files, and what makes a tar of one.
_COMPRESSED = {b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\xfd7zXZ\0": "xz -d", b"\x28\xb5\x2f\xfd": "zstd -d"}
_NUMBERS = ((124, 12), (148, 8))  # first byte and width of a header's size and checksum
_TEXTS = ((0, 100), (345, 155))  # and of its name and of what stands before it
_BLOCK = 2**16


class TarIndex(NamedTuple):
    """The images of some shards, of a file that is mapped into memory, which processes share.

    Attributes:
        shards: shards of the file, to which the column ``shard`` refers.
        rows: columns shard, offset, size, name and label of each image, in the order of the shards that were asked for.
        ignored: number of members of each other kind, by suffix.
    """

    shards: tuple[Shard, ...]
    rows: pa.RecordBatch
    ignored: Counter[str]


class Scanned(NamedTuple):
    """What one shard holds."""

    rows: pa.RecordBatch
    ignored: dict[str, int]
    remarks: str = ""


class _Known(NamedTuple):
    """A file of an index: its shards by name, what is said of each, and its rows."""

    entries: dict[str, dict[str, Any]]
    rows: pa.RecordBatch

    def of(self, shard: Shard) -> Scanned | None:
        """What is known of a shard; None if that is nothing, or of another time."""
        entry = self.entries.get(shard.name)
        if entry is None or _as_indexed(shard.path, shard.name, entry) != shard:
            return None
        return Scanned(self.rows.slice(entry["first"], entry["images"]), entry["ignored"])


def tar_index(
    shards: Sequence[Shard],
    folder: AnyPath,
    *,
    cache: Path,
    image_column: str | None = None,
    label_column: str = "label",
    workers: int = 0,
    local: LocalCache | None = None,
) -> TarIndex:
    """The index of some shards: what is known of them already, and the others read now and written down.

    The file is in the folder of the shards, or in the cache where that is remote or cannot be written. Of
    several processes one reads the shards, and the others wait for it.

    Args:
        shards: shards, in order, each named by its path from ``folder`` on.
        folder: folder that all shards have in common.
        cache: folder for the index of remote shards, and of those whose own folder cannot be written; made if it is not
            there.
        image_column: extension of the images where samples have several; None takes the one without a dot.
        label_column: field of ``.json`` that holds the label; ``label`` is read from ``.cls`` first.
        workers: 0 reads the shards in this process, else one for each processor does.
        local: pieces of remote shards on this machine.

    Raises:
        ValueError: naming all shards that cannot be read, or have samples that can be understood in two ways.
        OSError: if the index can be written nowhere.
        RemoteError: if a remote shard cannot be read, though it is there.
    """
    settings = [image_column, label_column]
    mark = "" if settings == [None, "label"] else "-" + _short_hash(settings)
    beside = None if isinstance(folder, RemotePath) else folder / f"{INDEX_NAME}{mark}.arrow"
    elsewhere = cache / f"{INDEX_NAME}-{_short_hash([str(folder.resolve()), *settings])}.arrow"
    for file in filter(None, (beside, elsewhere)):
        if (known := _load(file)) is not None and all(known.of(shard) is not None for shard in shards):
            return _selected(known, shards, folder)
    scan = partial(_scan, local, image_column, label_column)
    if beside is not None and os.access(beside.parent, os.W_OK):
        try:
            return _selected(_completed(beside, folder, shards, scan, workers), shards, folder)
        except OSError as error:  # such as of a full disk
            logger.warning("%s; the index goes to data.cache %s", error, cache)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"the index of {folder} can be written neither there nor to data.cache {cache} "
            f"({error.strerror or error}): set data.cache"
        ) from error
    return _selected(_completed(elsewhere, folder, shards, scan, workers), shards, folder)


def _completed(file: Path, folder: AnyPath, shards: Sequence[Shard], scan: Any, workers: int) -> _Known:
    """The index of a file, after what it lacks has been read and written there."""
    with waited_lock(file.with_suffix(".lock")):
        known = _load(file)
        missing = [shard for shard in shards if known is None or known.of(shard) is None]
        if missing:  # and not read by another process meanwhile
            stale = [shard.name for shard in missing if known is not None and shard.name in known.entries]
            if stale:
                logger.info("%s: %d shards have changed and are read anew: %s", file, len(stale), listing(stale))
            known = _read_missing(file, folder, known, shards, missing, scan, workers)
    assert known is not None  # nothing is missing of no shards, and there is one at least
    return known


def _read_missing(
    file: Path,
    folder: AnyPath,
    known: _Known | None,
    shards: Sequence[Shard],
    missing: Sequence[Shard],
    scan: Any,
    workers: int,
) -> _Known:
    """The index with the missing shards, written down; those that can be read are, before the others are refused."""
    found: dict[str, tuple[Shard, Scanned]] = {}
    there = {shard.name for shard in shards}
    for name, entry in (known.entries if known is not None else {}).items():
        shard = _as_indexed(str(folder / name), name, entry)
        if (
            known is not None
            and (name in there or (folder / name).exists())
            and (scanned := known.of(shard)) is not None
        ):
            found[name] = (shard, scanned)
    problems = []
    with progress_bar(len(missing), "shard", desc="indexing", delay=2, leave=False) as bar:
        scans = worker_map(scan, list(missing), usable_cores() if workers else 0)
        for shard, scanned in zip(missing, scans, strict=True):
            if isinstance(scanned, str):
                found.pop(shard.name, None)
                problems.append(f"{shard.path} {scanned}")
            else:
                found[shard.name] = (shard, scanned)
                if scanned.remarks:
                    logger.warning("%s: %s", shard.path, scanned.remarks)
            bar.update()
    if found:
        save_index(file, [found[name] for name in sorted(found)])
    if problems:
        raise ValueError(f"{len(problems)} of {len(missing)} shards are refused: {listing(problems)}")
    loaded = _load(file)
    assert loaded is not None  # written above
    return loaded


def save_index(file: Path, found: Sequence[tuple[Shard, Scanned]]) -> None:
    """Write an index of some shards, in the order of their names; errors as :func:`write_atomically`."""
    entries, first = [], 0
    for shard, scanned in found:
        entries.append(
            {
                "name": shard.name,
                "size": shard.size,
                "mtime_ns": shard.mtime_ns,
                "tag": shard.tag,
                "first": first,
                "images": scanned.rows.num_rows,
                "ignored": scanned.ignored,
            }
        )
        first += scanned.rows.num_rows
    numbered = [
        scanned.rows.set_column(0, "shard", pa.array([number] * scanned.rows.num_rows, pa.int32()))
        for number, (_, scanned) in enumerate(found)
    ]
    schema = SCHEMA.with_metadata({"shards": json.dumps(entries), "version": _VERSION})
    # One batch, so that a column is one piece of memory and a row is found by its number.
    (rows,) = pa.Table.from_batches(numbered, SCHEMA).combine_chunks().to_batches() or [_NO_ROWS]
    logger.info("%s: %d images in %d shards", file, first, len(found))

    def write(out: BinaryIO) -> None:
        with pa.ipc.new_file(out, schema) as writer:
            writer.write(rows)

    # Of a name of its own: where a file system has no locks, another process may write the same.
    own = file.with_name(f"{file.stem}-{socket.gethostname()}-{os.getpid()}{file.suffix}")
    write_atomically(own, write)
    own.replace(file)


def _load(file: Path) -> _Known | None:
    """An index, mapped into memory; None if there is none, or one that is damaged, which is made anew."""
    if not file.is_file():
        return None
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        metadata = reader.schema.metadata or {}
        if metadata.get(b"version", b"").decode() != _VERSION:
            raise ValueError("it is of another version of this package")
        entries = json.loads(metadata[b"shards"])
        rows = reader.get_batch(0) if reader.num_record_batches else _NO_ROWS
        if rows.schema.names != SCHEMA.names or sum(entry["images"] for entry in entries) != rows.num_rows:
            raise ValueError("it has other columns or rows than it says")
        return _Known({entry["name"]: entry for entry in entries}, rows)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s cannot be read (%s): the shards are read anew", file, in_one_line(error))
        return None


def _selected(known: _Known, shards: Sequence[Shard], folder: AnyPath) -> TarIndex:
    """The rows of some shards, without a copy where they follow each other in the file."""
    ranges: list[list[int]] = []
    ignored: Counter[str] = Counter()
    for shard in shards:
        entry = known.entries[shard.name]
        ignored.update(entry["ignored"])
        if ranges and sum(ranges[-1]) == entry["first"]:
            ranges[-1][1] += entry["images"]
        else:
            ranges.append([entry["first"], entry["images"]])
    slices = [known.rows.slice(first, length) for first, length in ranges]
    if len(slices) > 1:
        slices = pa.Table.from_batches(slices).combine_chunks().to_batches() or slices[:1]
    every = (_as_indexed(str(folder / name), name, each) for name, each in known.entries.items())
    return TarIndex(tuple(every), slices[0], ignored)


def _as_indexed(path: str, name: str, entry: dict[str, Any]) -> Shard:
    return Shard(path, name, entry["size"], entry["mtime_ns"], entry.get("tag", ""))


def _scan(local: LocalCache | None, image_column: str | None, label_column: str, shard: Shard) -> Scanned | str:
    """What a shard holds, or why it is refused."""
    members = _Samples(image_column, label_column)
    if not is_address(shard.path) and not os.path.isfile(shard.path):
        return "is no file"  # but a pipe, say, which nobody may ever write to
    try:
        with open_shard(shard, local, ahead=True) as file:
            start = file.read(8)
            for magic, remedy in _COMPRESSED.items():
                if start.startswith(magic):
                    return f"is compressed, and an image is read from its place in a tar: unpack it ({remedy})"
            file.seek(0)
            if shard.size == 0:
                return "has zero bytes; copy it again"
            end = 0
            for member in _members(file, shard.size):
                members.add(member, file)
                end = member.end
            if trouble := _trouble_at_end(file, end, shard.size):
                return trouble
        return members.scanned()
    except tarfile.TarError as error:
        return f"is truncated or no tar ({in_one_line(error)}): copy it again"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except _RefusedError as error:
        return str(error)


class _Member(NamedTuple):
    """A member of a tar.

    Attributes:
        name: name with its folders.
        offset: first byte of its content.
        size: size of its content.
        end: first byte behind it, where the next one begins.
        kind: what it is, where it is no file with a content of its own.
    """

    name: str
    offset: int
    size: int
    end: int
    kind: str = ""


def _members(file: BinaryIO, size: int) -> Iterator[_Member]:
    """The members of a tar: plain headers are read here, since `tarfile` takes thrice as long; others there.

    Raises:
        tarfile.TarError: if it is truncated or none.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        tar.firstmember = None  # which is read again
        position = 0
        while position <= size:
            file.seek(position)
            # A global header may change all that follow.
            member = None if tar.pax_headers else _plain_member(file.read(tarfile.BLOCKSIZE), position)
            if member is None:
                file.seek(position)
                tar.offset = position
                info = tar.next()
                if info is None:
                    return
                tar.members.clear()  # of which it keeps all, for what asks by name
                member = _Member(info.name, info.offset_data, info.size, tar.offset, _kind(info))
            yield member
            position = member.end
    raise tarfile.ReadError("unexpected end of data")


def _plain_member(header: bytes, position: int) -> _Member | None:
    """The file that a header of 512 bytes says; None for any other kind, and for what is not plain."""
    if header[156:157] not in (b"0", b"\0"):
        return None
    try:
        size, checksum = (int(header[start : start + width].partition(b"\0")[0], 8) for start, width in _NUMBERS)
    except ValueError:
        return None
    name, prefix = (header[start : start + width].partition(b"\0")[0] for start, width in _TEXTS)
    is_whole = sum(header) - sum(header[148:156]) + 8 * ord(" ") == checksum
    if not is_whole or size < 0 or name.endswith(b"/"):
        return None
    name = prefix + b"/" + name if prefix else name
    offset = position + tarfile.BLOCKSIZE
    end = offset - -size // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
    return _Member(name.decode("utf-8", "surrogateescape"), offset, size, end)


def _kind(info: tarfile.TarInfo) -> str:
    if info.isdir():
        return "a folder"
    if info.issparse():
        return "sparse"
    return "a link" if info.islnk() or info.issym() else "" if info.isreg() else "no file"


def _trouble_at_end(file: BinaryIO, end: int, size: int) -> str:
    """What is wrong where tarfile has found no further member, be it for zeros or for something else."""
    if size < end + tarfile.BLOCKSIZE:
        return "is truncated, for it has no end (blocks of zeros): copy it again"
    file.seek(end)
    tail = file.read(tarfile.BLOCKSIZE)
    while tail:
        if tail.count(0) < len(tail):
            return f"has damage, or a second tar, behind byte {end}: copy it again, or join shards by tar -A"
        tail = file.read(_BLOCK)
    return ""


class _RefusedError(Exception):
    """A member that makes a shard unreadable."""


class _Samples:
    """The members of a shard that matter: images and labels, by key."""

    def __init__(self, image_column: str | None, label_column: str) -> None:
        self._image_column, self._label_column = image_column, label_column
        self._seen: set[tuple[str, str]] = set()  # key and extension
        self._images: dict[str, list[tuple[str, int, int, str]]] = {}  # of each key: extension, offset, size, name
        self._labels: dict[str, dict[str, str | None]] = {"cls": {}, "json": {}}  # of each extension by key
        self._unread: list[str] = []
        self._ignored: Counter[str] = Counter()

    def add(self, member: _Member, file: BinaryIO) -> None:
        """Take a member in.

        Raises:
            _RefusedError: for one that is there twice, or has no content of its own.
        """
        name = member.name.removeprefix("./")
        if member.kind == "a folder" or any(_is_hidden(part) for part in name.split("/")):
            return
        match = _KEY.fullmatch(name)
        key, extension = (match[1], match[2].lower()) if match else (name, "")
        suffix = f".{extension.rpartition('.')[2]}" if extension else ""
        is_image = suffix in IMAGE_SUFFIXES
        if not is_image and extension not in self._labels:
            self._ignored[suffix] += 1
            return
        if (key, extension) in self._seen:
            raise _RefusedError(f"has two members {name}, and which of them counts is not said: write it anew")
        self._seen.add((key, extension))
        if member.kind:
            raise _RefusedError(f"has a member {name} that is {member.kind}: write it anew with a file in its place")
        if is_image:
            self._images.setdefault(key, []).append((extension, member.offset, member.size, name))
        elif extension == "json" or self._label_column == "label":
            file.seek(member.offset)
            try:
                self._labels[extension][key] = _label(extension, file.read(member.size), self._label_column)
            except (ValueError, RecursionError):  # of JSON that is nested without end
                self._unread.append(name)

    def scanned(self) -> Scanned:
        """The images in their order, each with its label.

        Raises:
            _RefusedError: for a sample of several images.
        """
        rows = []
        wanted = None if self._image_column is None else self._image_column.lower().removeprefix(".")
        for key, found in self._images.items():
            if wanted is not None:
                found = [each for each in found if each[0] == wanted]
            elif len(found) > 1:
                found = [each for each in found if "." not in each[0]] or found
            if len(found) > 1:
                extensions = ", ".join(extension for extension, *_ in found)
                raise _RefusedError(
                    f"has several images of the key {key}, {extensions}: name one as data.image_column; where they are "
                    "samples of their own, write them without dots in their names"
                )
            rows += [(offset, size, name, key) for _, offset, size, name in found]
        rows.sort()  # as they lie in the shard
        labels = self._labels["json"] | self._labels["cls"]
        columns = [
            pa.array([0] * len(rows), pa.int32()),
            pa.array([offset for offset, *_ in rows], pa.int64()),
            pa.array([size for _, size, *_ in rows], pa.int64()),
            pa.array([os.fsencode(name) for _, _, name, _ in rows], pa.large_binary()),
            pa.array([labels.get(key) for *_, key in rows], pa.large_string()),
        ]
        remarks = []
        if self._unread:
            remarks.append(f"{len(self._unread)} labels cannot be read, such as {self._unread[0]}")
        if alone := [key for key in labels if key not in self._images]:
            remarks.append(f"{len(alone)} labels have no image, such as that of {alone[0]}")
        return Scanned(pa.RecordBatch.from_arrays(columns, schema=SCHEMA), dict(self._ignored), "; ".join(remarks))


def _label(extension: str, data: bytes, column: str) -> str | None:
    """The label in a member, as text.

    Raises:
        ValueError: if it cannot be read.
    """
    text = data.decode("utf-8-sig")
    if extension == "cls":
        return None if text.strip().lower() in ("", "nan") else text.strip()
    content = json.loads(text)
    value = content.get(column) if isinstance(content, dict) else content
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{value} is no label")
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _is_hidden(part: str) -> bool:
    return part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))


def _short_hash(values: Sequence[Any]) -> str:
    return hashlib.blake2b(repr(values).encode(errors="surrogateescape"), digest_size=6).hexdigest()
