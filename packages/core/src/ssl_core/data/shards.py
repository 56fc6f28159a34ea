"""Shards, files that hold many images each: those of a split, by their names, and their bytes.

A folder of shards has its splits in their names, ``train-00000-of-00003.parquet``, or in those of their folders,
``default/train/0000.parquet``.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ssl_core.address import is_address
from ssl_core.data.decode import suffixes
from ssl_core.data.files import TEST_NAMES, TRAIN_NAMES, children_of, split_name, visible_files
from ssl_core.data.local_cache import LocalCache
from ssl_core.data.remote import AnyPath, RemoteFile, RemotePath, open_remote
from ssl_core.data.remote import read_range as read_remote
from ssl_core.data.remote import read_ranges as read_remotes

logger = logging.getLogger(__name__)


class Shard(NamedTuple):
    """A shard as it was when it was indexed.

    Attributes:
        path: path to open.
        name: name for a person: the path from the folder on that all shards have in common.
        size: size in bytes.
        mtime_ns: time of its last change, nanoseconds; 0 of a remote one.
        tag: what is another if the content of a remote one is.
    """

    path: str
    name: str
    size: int
    mtime_ns: int
    tag: str = ""


class ChangedShardError(ValueError):
    """A shard is no longer what was indexed, so that where its images lie is not known."""


def common_folder(paths: Sequence[AnyPath]) -> AnyPath:
    """The folder that all of some files have in common."""
    if isinstance(paths[0], RemotePath):
        return next(folder for folder in paths[0].parents if all(str(path).startswith(f"{folder}/") for path in paths))
    return Path(os.path.commonpath([Path(str(path)).absolute().parent for path in paths]))


def shards_at(paths: Sequence[AnyPath]) -> list[Shard]:
    """Shards as they are now, each named by its path from the folder on that all have in common."""
    folder = str(common_folder(paths))
    return [_shard_at(path, folder) for path in paths]


def _shard_at(path: AnyPath, folder: str) -> Shard:
    if isinstance(path, RemotePath):
        file = path.file()
        return Shard(file.url, file.url[len(folder) + 1 :], file.size, 0, file.tag)
    found = os.stat(path)
    return Shard(str(path), os.path.relpath(path, folder), found.st_size, found.st_mtime_ns)


def open_shard(shard: Shard, cache: LocalCache | None = None, *, ahead: bool = False) -> BinaryIO:
    """A shard to read from any place; arguments and errors as :func:`ssl_core.data.remote.open_remote`."""
    if is_address(shard.path):
        return open_remote(_remote(shard), cache, ahead=ahead)
    return open(shard.path, "rb")


def read_range(shard: Shard, offset: int, size: int, cache: LocalCache | None = None) -> bytes:
    """Some bytes of a shard; it is opened each time, so that no process holds or shares a descriptor.

    Raises:
        ChangedShardError: if the shard has changed or is gone.
        RemoteError: if that is so of a remote one, or it cannot be read.
        OSError: if one of this machine cannot be read.
    """
    if is_address(shard.path):
        return read_remote(_remote(shard), offset, size, cache)
    try:
        with open(shard.path, "rb") as file:
            found = os.fstat(file.fileno())
            if (found.st_size, found.st_mtime_ns) == (shard.size, shard.mtime_ns):
                file.seek(offset)
                return file.read(size)
    except FileNotFoundError:
        raise ChangedShardError(f"{shard.path} is gone: put it back, or start again without it") from None
    raise ChangedShardError(f"{shard.path} has changed since it was indexed: start again, which reads its index anew")


def read_ranges(wanted: Sequence[tuple[Shard, int, int]], cache: LocalCache | None) -> list[bytes]:
    """Ranges of remote shards, as :func:`ssl_core.data.remote.read_ranges`."""
    return read_remotes([(_remote(shard), offset, size) for shard, offset, size in wanted], cache)


def _remote(shard: Shard) -> RemoteFile:
    return RemoteFile(shard.path, shard.size, shard.tag)


def split_shards(paths: Sequence[AnyPath], split: str, suffix: str) -> list[AnyPath]:
    """The shards of a split, in order; none if there is no such split.

    Args:
        paths: shards, or folders of shards whose names, or whose folders' names, say their split.
        split: name of the split: ``train``, which is all shards where none has that name; or ``test``, which is the
            test shards beside them where ``paths`` names training shards.
        suffix: suffix of the shards, ``.parquet`` or ``.tar``.

    Raises:
        ValueError: if a folder holds several data sets.
    """
    if not paths[0].is_dir():
        if split == "train":
            return list(paths)
        is_training = all((split_name(path.name) or ("",))[0] in TRAIN_NAMES for path in paths)
        return _test_shards(_by_split(shards_in(paths[0].parent, suffix), paths[0].parent)) if is_training else []
    found: dict[str, list[AnyPath]] = {}
    for path in paths:
        for name, files in _by_split(shards_in(path, suffix), path).items():
            found.setdefault(name, []).extend(files)
    if split == "test":
        return _test_shards(found)
    return found.get("train") or [file for files in found.values() for file in files]


def shards_in(folder: AnyPath, suffix: str) -> list[AnyPath]:
    """The shards in a folder, or in its subfolder ``data``, or below it where no image is met before.

    Beside images a tar is none: it may be the archive that they were unpacked from.
    """
    if suffix == ".tar":
        return _tars_in(folder)
    for inner in (folder, folder / "data"):
        names = [os.path.basename(path) for path in children_of(inner)[1]] if inner.is_dir() else []
        if found := [inner / name for name in names if name.endswith(suffix)]:
            return in_order(found)
    known = {*suffixes(), suffix}
    met = (os.path.splitext(path)[1].lower() for path in visible_files(folder))
    if next((each for each in met if each in known), None) != suffix:
        return []
    return in_order(folder / path[len(str(folder)) + 1 :] for path in visible_files(folder) if path.endswith(suffix))


def in_order(paths: Iterable[AnyPath]) -> list[AnyPath]:
    """Paths in the order of their folders and names."""
    return sorted(paths, key=lambda path: path.parts)


def _tars_in(folder: AnyPath) -> list[AnyPath]:
    images = {*suffixes()}
    found: list[AnyPath] = []
    for path in visible_files(folder):
        ending = os.path.splitext(path)[1].lower()
        if ending in images:
            return []
        if ending == ".tar":
            found.append(folder / path[len(str(folder)) + 1 :])
    return in_order(found)


def _by_split(files: Sequence[AnyPath], folder: AnyPath) -> dict[str, list[AnyPath]]:
    """Shards by the word for their split, ``train`` for each word for training; under "" those without one."""
    found: dict[str, list[AnyPath]] = {}
    parents: dict[str, set[AnyPath]] = {}
    for file in files:
        word, parent = "", folder
        for part in (file, *file.parents):
            if part == folder:
                break
            # Of Hive's names, split=test says a split, and label=test says a class.
            if (split := split_name(part.name)) is not None and (
                "=" not in part.name or part.name.startswith("split=")
            ):
                word, parent = "train" if split[0] in TRAIN_NAMES else split[0], part.parent
                break
        while "=" in parent.name:
            parent = parent.parent
        found.setdefault(word, []).append(file)
        parents.setdefault(word, set()).add(parent)
    several = sorted({str(parent) for each in parents.values() if len(each) > 1 for parent in each})
    if several:
        raise ValueError(f"{folder} holds several data sets: {', '.join(several)}; give one of these folders")
    return found


def _test_shards(found: dict[str, list[AnyPath]]) -> list[AnyPath]:
    tests = [name for name in TEST_NAMES if name in found]
    if len(tests) > 1:
        logger.info("the shards of %s are tested; not read: %s (data.test_source names others)", tests[0], tests[1:])
    return found[tests[0]] if tests else []
