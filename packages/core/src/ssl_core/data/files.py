"""Images in files: folders of any nesting, and the train and test folders inside a folder.

* Folder: every image file below it, in the order of their paths; hidden files and folders, run directories and folders
  that systems make are ignored. A file without a suffix is an image if it begins as one. First-level subfolders that
  hold images are the classes, used by probes only; a single one is none.
* ``train`` beside ``val``, ``valid``, ``test`` and the like: a folder's natural split (ImageNet, Roboflow).
"""

import codecs
import errno
import hashlib
import logging
import operator
import os
import re
import stat
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor

from ssl_core.address import is_address
from ssl_core.data.decode import HEADER_BYTES, decode_image, image_kind, remedy, suffixes
from ssl_core.data.labels import ordered, relabelled
from ssl_core.data.local_cache import LocalCache
from ssl_core.data.pixels import BrokenImageError
from ssl_core.data.remote import (
    AnyPath,
    RemoteFile,
    RemotePath,
    file_at,
    open_remote,
    read_range,
    read_ranges,
)

logger = logging.getLogger(__name__)

# Folders of archives, network storage and file systems, in lower case: thumbnails, deleted files, snapshots.
_CLUTTER = {
    *("__macosx", "@eadir", "#recycle", "@recycle", "#snapshot"),
    *("lost+found", "$recycle.bin", "system volume information"),
}
# Suffixes of notes, tables and programs, which lie beside images and are none; of others a start says how many.
_NOTES = {
    *(".txt", ".csv", ".tsv", ".md", ".rst", ".html", ".htm", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml"),
    *(".ini", ".cfg", ".log", ".db", ".xls", ".xlsx", ".doc", ".docx", ".py", ".ipynb", ".sh", ".xmp", ".aae"),
    *(".md5", ".sha256", ".lnk", ".url", ""),
}
_MOST_KINDS = 8

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "dev", "eval", "test", "testing")  # of several, the first is taken
_SPLIT_NAMES = (*TRAIN_NAMES, "trainval", *TEST_NAMES)
# Of a remote file: its size and tag; of a file of this machine -1, for these are asked when they are needed.
_REMOTE = [("size", np.int64), ("tag", "S32")]
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


@dataclass(frozen=True, eq=False)
class FileImages:
    """Image files, decoded when they are asked for.

    Attributes:
        name: name of the source for a person.
        paths: (n) file names as bytes, in one array, which forked workers share, unlike a list of strings.
        labels: (n) label of each image, -1 when unknown.
        classes: names of the classes.
        channels: number of channels that ``image`` returns; None keeps the images' own.
        ignored: files found beside the images whose suffix is not an image's.
        at_least: number of pixels that each side of a JPEG keeps when it is decoded smaller; None decodes it whole.
        missing: files that a set's lists name and that are not there.
        remote: (n) size and tag of each remote file, as it was found; None where all are on this machine.
        cache: pieces of remote files on this machine.
    """

    name: str
    paths: NDArray[Any]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...] | None
    channels: int | None = None
    ignored: tuple[str, ...] = ()
    at_least: int | None = None
    missing: tuple[str, ...] = ()
    remote: NDArray[Any] | None = None
    cache: LocalCache | None = None
    _fetched: dict[int, bytes] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Shaped[Tensor, "c h w"]:
        """Pixels of an image.

        Raises:
            BrokenImageError: if the file cannot be read or decoded.
            RemoteError: if a remote file cannot be read.
        """
        data = self.encoded(index)
        return decode_image(data, self.channels, at_least=self.at_least, identifier=self.identifier(index))

    def encoded(self, index: int) -> bytes:
        """Content of an image's file; errors as :meth:`image`."""
        if (fetched := self._fetched.pop(index, None)) is not None:
            return fetched
        if (found := self._remote_file(index)) is not None:
            return read_range(found, 0, found.size, self.cache)
        try:
            with open(self.paths[index], "rb", opener=_open_regular) as file:
                return file.read()
        except OSError as error:
            raise BrokenImageError(f"{self.identifier(index)}: {error.strerror}") from error

    def fetch(self, indices: Sequence[int]) -> None:
        """As :meth:`ssl_core.data.source.FetchingSource.fetch`, of remote files."""
        self._fetched.clear()
        found = {index: file for index in indices if (file := self._remote_file(index)) is not None}
        contents = read_ranges([(file, 0, file.size) for file in found.values()], self.cache) if found else []
        self._fetched.update(zip(found, contents, strict=True))

    def _remote_file(self, index: int) -> RemoteFile | None:
        if self.remote is None or (size := int(self.remote["size"][index])) < 0:
            return None
        return RemoteFile(self.identifier(index), size, self.remote["tag"][index].decode())

    def label(self, index: int) -> int:
        """The class of an image, -1 when unknown."""
        return int(self.labels[index])

    def identifier(self, index: int) -> str:
        """The image's path."""
        return os.fsdecode(self.paths[index])

    def digest(self) -> str:
        """Hash of the files' names, from the folder on that all have in common, and of their sizes."""
        paths: list[bytes] = self.paths.tolist()
        start = shared_length(min(paths), max(paths), os.sep)
        digest = hashlib.blake2b(digest_size=16)
        sizes = [-1] * len(paths) if self.remote is None else self.remote["size"].tolist()
        for path, size in zip(paths, sizes, strict=True):
            digest.update(b"%s\0%d\0" % (path[start:], size if size >= 0 else _size(path)))
        return digest.hexdigest()

    def subset(self, indices: Int64[Tensor, " m"]) -> "FileImages":
        """The images at some indices."""
        chosen = indices.numpy()
        remote = None if self.remote is None else self.remote[chosen]
        return replace(self, paths=self.paths[chosen], labels=self.labels[indices], remote=remote)


def shared_length(first: bytes, last: bytes, separator: str) -> int:
    """Length of the folders that all of some paths have in common.

    Args:
        first: smallest of the paths.
        last: largest of the paths.
        separator: character between folders.
    """
    shared = [*map(operator.eq, first, last), False].index(False)
    return first.rfind(separator.encode(), 0, shared) + 1


def _size(path: bytes) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a broken image
        return -1


def _open_regular(path: str | bytes, flags: int) -> int:
    """An opener of regular files alone: a pipe would wait for ever for a writer, and a device may have no end."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has neither the flag nor such pipes
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def folder_images(folder: AnyPath, *, class_list: Sequence[str] | None = None) -> FileImages:
    """The images below a folder.

    Args:
        folder: folder of any nesting.
        class_list: first-level subfolders to read, in the order of the classes; None reads all.

    Raises:
        ValueError: if there is no image, or a listed class has no subfolder.
    """
    if (folder / "val_annotations.txt").is_file():
        return _tiny_imagenet_val(folder, class_list)
    if class_list is None:
        found = sorted(visible_files(folder))
    else:
        missing = [name for name in class_list if not (folder / name).is_dir()]
        if missing:
            raise ValueError(
                f"{folder} has no subfolder for {len(missing)} of {len(class_list)} classes of data.class_list: "
                f"{missing[:5]}; without one (null) it is read whole"
            )
        found = sorted(path for name in class_list for path in visible_files(folder / name))
    paths: list[str] = []
    ignored: list[str] = []
    readable = suffixes()
    for path in found:
        (paths if _is_image(path, readable) else ignored).append(path)
    if not paths:
        others = f"; its {len(ignored)} files, such as {ignored[0]}, are of other kinds" if ignored else ""
        kinds = f"; {unread_kinds(ignored)}".rstrip("; ")
        raise ValueError(f"{folder} holds no images{others}{kinds}. Looked for {' '.join(readable)}")
    start = len(str(folder)) + 1
    tops = [path[start:].partition(os.sep) for path in paths]
    names = [top if below else None for top, _, below in tops]
    classes = class_list or ordered({name for name in names if name is not None})
    return replace(file_images(str(folder), paths, names, classes, found_in(folder, paths)), ignored=tuple(ignored))


def unread_kinds(ignored: Sequence[str] | Counter[str]) -> str:
    """Number and kinds of the ignored files that may be images, and a reader for them; empty for none.

    Args:
        ignored: paths, or how many there are of each suffix.
    """
    every = ignored if isinstance(ignored, Counter) else Counter(map(_suffix, ignored))
    counts = Counter({suffix: number for suffix, number in every.items() if suffix not in _NOTES})
    if not counts:
        return ""
    kinds = [f"{count:,} {suffix}{remedy(suffix)}" for suffix, count in counts.most_common(_MOST_KINDS)]
    more = ", ..." if len(counts) > _MOST_KINDS else ""
    return f"ignored {counts.total():,} files of kinds that are not read: {', '.join(kinds)}{more}"


def inner_folder(folder: AnyPath) -> AnyPath:
    """The folder, or the only one in it with images, where these lie in folders of their own.

    As archives unpack (``photos/photos/cat``), and where annotations lie beside (``images/train``, ``labels/train``).
    """
    seen: set[str] = set()
    while (real := str(folder.resolve())) not in seen:
        seen.add(real)
        folders, files = children_of(folder)
        holding = [folder / name for name in islice((n for n in folders if _has_images(visible_files(folder / n))), 2)]
        if len(holding) != 1 or _has_images(files) or _has_images(children_of(holding[0])[1]):
            break
        folder = holding[0]
    return folder


def split_folder(folder: AnyPath, split: str) -> AnyPath | None:
    """The folder of a split; None if there is none.

    Splits are subfolders that are named alike but for the words ``train`` and ``val``, ``test`` or the like:
    ``Training`` and ``Testing``, ``train2017`` and ``val2017``.

    Args:
        folder: folder as the user named it.
        split: name of the split, ``train`` or ``test``.
    """
    pair = _split_pair(folder)
    if pair is None:
        return folder if split == "train" else None
    train, test = pair
    if split == "test" and (others := [name for name in children_of(folder)[0] if name not in pair]):
        logger.info(
            "%s: %s tests what %s trains; not read: %s (data.test_source names another)",
            folder,
            test,
            train,
            ", ".join(others),
        )
    return folder / (train if split == "train" else test)


def check_splits(folder: AnyPath) -> None:
    """Refuses a folder whose subfolders seem to be splits and are not named alike: test images would be trained on.

    Raises:
        ValueError: if that is so, or if the subfolders have splits of their own.
    """
    if _split_pair(folder) is not None:
        return
    folders, _ = children_of(folder)
    words = _split_words(folder, folders)
    by_word = sorted(words, key=lambda name: _SPLIT_NAMES.index(words[name][0]))
    is_test = [words[name][0] in TEST_NAMES for name in by_word]
    if len(words) > 1 and any(is_test):
        # A whole name, train beside test_images, is a split whatever else is there; a bullet_train may be a class.
        is_whole = not all(is_test) and any(not _WORD.search(rest) for _, rest in words.values())
        if is_whole or not any(_has_images(visible_files(folder / name)) for name in folders if name not in words):
            raise ValueError(
                f"the folders {', '.join(by_word[:5])} of {folder} look like splits, and which of them to train on is "
                f"not clear: say it, as in --data.source {folder / by_word[0]} --data.test_source "
                f"{folder / by_word[-1]}; where they are classes, name them in a file for data.class_list"
            )
    for name in folders:
        if (pair := _split_pair(folder / name)) is not None:
            raise ValueError(
                f"{folder / name} has splits of its own, {pair[0]} and {pair[1]}, beside other folders: give "
                f"--data.source {folder / name}, or put splits above classes, as in {pair[0]}/{name} and "
                f"{pair[1]}/{name}"
            )


def _split_words(folder: AnyPath, names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The subfolders named like a split that hold images, which a run of that name does not."""
    words = {name: word for name in names if (word := split_name(name)) is not None}
    return {name: word for name, word in words.items() if _has_images(visible_files(folder / name))}


def _split_pair(folder: AnyPath) -> tuple[str, str] | None:
    """The subfolders for training and for testing, named alike but for the word for their split."""
    words = _split_words(folder, children_of(folder)[0])
    trains = {rest: name for name, (word, rest) in words.items() if word in TRAIN_NAMES}
    tests = [
        (rest, TEST_NAMES.index(word), name)
        for name, (word, rest) in words.items()
        if word in TEST_NAMES and rest in trains
    ]
    if not tests:
        return None
    rest, _, test = min(tests)
    return trains[rest], test


def split_name(name: str) -> tuple[str, str] | None:
    """The word for a split in a name, and the name without it; None without such a word.

    Example:
        >>> split_name("Training"), split_name("val2017"), split_name("testset"), split_name("bullet_trains")
        (('training', ''), ('val', '2017'), ('test', 'set'), None)
    """
    for match in _WORD.finditer(name):
        word = match[0].lower().removesuffix("set").removesuffix("data")
        if word in _SPLIT_NAMES:
            return word, name[: match.start()] + name[match.start() + len(word) :]
    return None


def read_text(file: AnyPath) -> str:
    """The text of a file in UTF-8, or in UTF-16 as PowerShell writes it; a byte order mark is left out.

    Raises:
        ValueError: for text in another encoding.
    """
    data = file.read_bytes()
    try:
        text = data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file} is not UTF-8 in line {line} ({error.reason}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{file} is no text in UTF-8; save it as UTF-8")
    return text


def concatenated(parts: Sequence[FileImages]) -> FileImages:
    """Several sources as one; classes of one name are one class."""
    if len(parts) == 1:
        return parts[0]
    names = ordered({name for part in parts for name in part.classes or ()})
    return FileImages(
        name=", ".join(part.name for part in parts),
        paths=np.concatenate([part.paths for part in parts]),
        labels=torch.cat([relabelled(part, names) for part in parts]),
        classes=tuple(names) or None,
        ignored=tuple(path for part in parts for path in part.ignored),
        remote=None
        if all(part.remote is None for part in parts)
        else np.concatenate([_all_local(len(part)) if part.remote is None else part.remote for part in parts]),
    )


def file_images(
    name: str,
    paths: Sequence[str],
    names: Sequence[str | None],
    classes: Sequence[str],
    remote: NDArray[Any] | None = None,
) -> FileImages:
    """Files as a source; each has one of the classes, or None."""
    position: dict[str | None, int] = {name: number for number, name in enumerate(classes)}
    return FileImages(
        name=name,
        paths=np.array([os.fsencode(path) for path in paths]),
        labels=torch.tensor([position.get(each, -1) for each in names]),
        classes=tuple(classes) or None,
        remote=remote,
    )


def found_in(folder: AnyPath, paths: Sequence[str]) -> NDArray[Any] | None:
    """What a listing of a remote folder says of files in it, as :class:`FileImages` takes it."""
    return as_remote([folder.at(path) for path in paths]) if isinstance(folder, RemotePath) else None


def as_remote(files: Sequence[RemoteFile | None]) -> NDArray[Any]:
    """Sizes and tags as :class:`FileImages` takes them; None is a file of this machine, or none."""
    return np.array([(-1, b"") if file is None else (file.size, file.tag.encode()) for file in files], _REMOTE)


def _all_local(number: int) -> NDArray[Any]:
    return as_remote([None] * number)


def holds_images(folder: Path) -> bool:
    """Whether there is a folder, and images in it that are no run's, whose first try may have left ``views.png``."""
    return folder.is_dir() and _has_images(path for path in visible_files(folder) if path != str(folder / "views.png"))


def visible_files(folder: AnyPath) -> Iterator[str]:
    """Paths of all files below a folder but hidden ones and those of runs; links are followed, each folder once."""
    for parent, folders, files in _walk(folder):
        if "config.yaml" in files and ("checkpoints" in folders or "backbone.json" in files):
            logger.info("%s is a run directory: its pictures are not read", parent)
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name.lower() not in _CLUTTER)
        yield from (os.path.join(parent, name) for name in files if not name.startswith("."))


def _walk(folder: AnyPath) -> Iterator[tuple[str, list[str], list[str]]]:
    if isinstance(folder, RemotePath):
        yield from folder.walk()
        return
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield parent, folders, files


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _is_image(path: str, readable: Container[str]) -> bool:
    suffix = _suffix(path)
    return suffix in readable or (not suffix and _begins_as_image(path))


def _begins_as_image(path: str) -> bool:
    if is_address(path):
        with open_remote(file_at(path)) as file:
            return image_kind(file.read(HEADER_BYTES)) is not None
    try:
        with open(path, "rb", opener=_open_regular) as file:
            return image_kind(file.read(HEADER_BYTES)) is not None
    except OSError:
        return False


def _refuse(error: OSError) -> None:
    raise type(error)(f"{error.filename} cannot be listed: {error.strerror}; check its permissions") from error


def children_of(folder: AnyPath) -> tuple[list[str], list[str]]:
    """Names of the folders, and paths of the files, in a folder that are not hidden."""
    _, *found = next(_walk(folder))
    folders, files = (
        sorted(name for name in names if not name.startswith(".") and name.lower() not in _CLUTTER) for names in found
    )
    return folders, [os.path.join(str(folder), name) for name in files]


def _has_images(files: Iterable[str]) -> bool:
    readable = suffixes()
    return any(_is_image(path, readable) for path in files)


def _tiny_imagenet_val(folder: AnyPath, class_list: Sequence[str] | None) -> FileImages:
    """Tiny-ImageNet's flat validation folder; each line of its annotations is a file, a class and a box."""
    file = folder / "val_annotations.txt"
    rows = [line.split("\t")[:2] for line in read_text(file).splitlines()]
    for number, row in enumerate(rows, start=1):
        if len(row) < 2:
            raise ValueError(
                f"line {number} of {file}, {row[0]!r:.80}, is no image, tab and class; repair or remove it"
            )
    if class_list is not None:
        rows = [row for row in rows if row[1] in class_list]
    classes = class_list or sorted({name for _, name in rows})
    paths = [os.path.join(str(folder), "images", file) for file, _ in rows]
    return file_images(str(folder), paths, [name for _, name in rows], classes, found_in(folder, paths))
