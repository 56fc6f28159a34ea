"""Shards, files that hold many images each: those of a split, by their names, and their bytes.

A folder of shards has its splits in their names, ``train-00000-of-00003.parquet``, or in those of their folders,
``default/train/0000.parquet``.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ssl_core.data.decode import suffixes
from ssl_core.data.files import TEST_NAMES, TRAIN_NAMES, split_name, visible_files

logger = logging.getLogger(__name__)


class Shard(NamedTuple):
    """A shard as it was when it was indexed.

    Attributes:
        path: path to open.
        name: name for a person: the path from the folder on that all shards have in common.
        size: size in bytes.
        mtime_ns: time of its last change, nanoseconds.
    """

    path: str
    name: str
    size: int
    mtime_ns: int


class ChangedShardError(ValueError):
    """A shard is no longer what was indexed, so that where its images lie is not known."""


def shard_at(path: str, name: str) -> Shard:
    """The shard at a path, as it is now."""
    found = os.stat(path)
    return Shard(path, name, found.st_size, found.st_mtime_ns)


def read_range(shard: Shard, offset: int, size: int) -> bytes:
    """Some bytes of a shard; it is opened each time, so that no process holds or shares a descriptor.

    Raises:
        ChangedShardError: if the shard has changed or is gone.
        OSError: if it cannot be read.
    """
    try:
        with open(shard.path, "rb") as file:
            found = os.fstat(file.fileno())
            if (found.st_size, found.st_mtime_ns) == (shard.size, shard.mtime_ns):
                file.seek(offset)
                return file.read(size)
    except FileNotFoundError:
        raise ChangedShardError(f"{shard.path} is gone: put it back, or start again without it") from None
    raise ChangedShardError(f"{shard.path} has changed since it was indexed: start again, which reads its index anew")


def split_shards(paths: Sequence[Path], split: str, suffix: str) -> list[Path]:
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
    found: dict[str, list[Path]] = {}
    for path in paths:
        for name, files in _by_split(shards_in(path, suffix), path).items():
            found.setdefault(name, []).extend(files)
    if split == "test":
        return _test_shards(found)
    return found.get("train") or [file for files in found.values() for file in files]


def shards_in(folder: Path, suffix: str) -> list[Path]:
    """The shards in a folder, or in its subfolder ``data``, or below it where no image is met before.

    Beside images a tar is none: it may be the archive that they were unpacked from.
    """
    if suffix == ".tar":
        return _tars_in(folder)
    if found := sorted(folder.glob(f"[!.]*{suffix}")) or sorted(folder.glob(f"data/[!.]*{suffix}")):
        return found
    known = {*suffixes(), suffix}
    met = (os.path.splitext(path)[1].lower() for path in visible_files(folder))
    if next((each for each in met if each in known), None) != suffix:
        return []
    return sorted(Path(path) for path in visible_files(folder) if path.endswith(suffix))


def _tars_in(folder: Path) -> list[Path]:
    images, found = {*suffixes()}, []
    for path in visible_files(folder):
        ending = os.path.splitext(path)[1].lower()
        if ending in images:
            return []
        if ending == ".tar":
            found.append(Path(path))
    return sorted(found)


def _by_split(files: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """Shards by the word for their split, ``train`` for each word for training; under "" those without one."""
    found: dict[str, list[Path]] = {}
    parents: dict[str, set[Path]] = {}
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


def _test_shards(found: dict[str, list[Path]]) -> list[Path]:
    tests = [name for name in TEST_NAMES if name in found]
    if len(tests) > 1:
        logger.info("the shards of %s are tested; not read: %s (data.test_source names others)", tests[0], tests[1:])
    return found[tests[0]] if tests else []
