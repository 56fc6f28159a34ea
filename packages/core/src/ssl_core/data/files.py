"""Images in files: folders of any nesting, list files, and the train and test folders inside a folder.

* Folder: every image file below it, in the order of their paths; hidden files and folders, run directories and folders
  that systems make are ignored. A file without a suffix is an image if it begins as one. First-level subfolders that
  hold images are the classes, used by probes only; a single one is none.
* List file: ``.txt``, a path on each line, then optionally a tab and a label, or a space and a label that is
  a whole number; ``.csv``, ``path[,label]``. Relative paths start at the list file's folder.
* ``train`` beside ``val``, ``validation`` or ``test``: a folder's natural split (ImageNet, Tiny-ImageNet).
"""

import csv
import errno
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor

from ssl_core.data.decode import HEADER_BYTES, decode_image, image_kind, remedy, suffixes
from ssl_core.data.pixels import BrokenImageError

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
TEST_NAMES = ("val", "validation", "test")


@dataclass(frozen=True, eq=False)
class FileImages:
    """Image files, decoded when they are asked for.

    Attributes:
        name: name of the source for a person.
        paths: (n) file names as bytes: one array, which forked workers share, unlike a list of strings.
        labels: (n), -1 when unknown.
        classes: names of the classes.
        channels: number of channels that ``image`` returns; None keeps the images' own.
        ignored: files found beside the images whose suffix is not an image's.
        at_least: pixels that each side of a JPEG keeps when it is decoded smaller; None decodes it whole.
    """

    name: str
    paths: NDArray[Any]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...] | None
    channels: int | None = None
    ignored: tuple[str, ...] = ()
    at_least: int | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Shaped[Tensor, "c h w"]:
        """Pixels of an image.

        Raises:
            BrokenImageError: if the file cannot be read or decoded.
        """
        try:
            with open(self.paths[index], "rb", opener=_open_regular) as file:
                data = file.read()
        except OSError as error:
            raise BrokenImageError(f"{self.identifier(index)}: {error.strerror}") from error
        return decode_image(data, self.channels, at_least=self.at_least, identifier=self.identifier(index))

    def label(self, index: int) -> int:
        """The class of an image, -1 when unknown."""
        return int(self.labels[index])

    def identifier(self, index: int) -> str:
        """The image's path."""
        return os.fsdecode(self.paths[index])

    def subset(self, indices: Int64[Tensor, " m"]) -> "FileImages":
        """The images at some indices."""
        return replace(self, paths=self.paths[indices.numpy()], labels=self.labels[indices])


def _open_regular(path: str | bytes, flags: int) -> int:
    """What ``open`` calls: a pipe would wait for ever for somebody who writes, and a device may have no end."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has neither the flag nor such pipes
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def folder_images(folder: Path, *, class_list: Sequence[str] | None = None) -> FileImages:
    """The images below a folder.

    Args:
        folder: folder of any nesting.
        class_list: first-level subfolders, the only ones that are read, in the order of the classes.

    Raises:
        ValueError: if there is no image, or a listed class has no subfolder.
    """
    if (folder / "val_annotations.txt").is_file():
        return _tiny_imagenet_val(folder, class_list)
    if class_list is None:
        found = sorted(_walk(folder))
    else:
        missing = [name for name in class_list if not (folder / name).is_dir()]
        if missing:
            raise ValueError(f"{folder} has no subfolder for {len(missing)} classes of data.class_list: {missing[:5]}")
        found = sorted(path for name in class_list for path in _walk(folder / name))
    paths: list[str] = []
    ignored: list[str] = []
    readable = suffixes()
    for path in found:
        suffix = _suffix(path)
        (paths if suffix in readable or (not suffix and _begins_as_image(path)) else ignored).append(path)
    if not paths:
        others = f"; its {len(ignored)} files, such as {ignored[0]}, are of other kinds" if ignored else ""
        kinds = f"; {unread_kinds(ignored)}".rstrip("; ")
        raise ValueError(f"{folder} holds no images{others}{kinds}. Looked for {' '.join(readable)}")
    start = len(str(folder)) + 1
    tops = [path[start:].partition(os.sep) for path in paths]
    names = [top if below else None for top, _, below in tops]
    classes = class_list or sorted({name for name in names if name is not None})
    return replace(_file_images(str(folder), paths, names, classes), ignored=tuple(ignored))


def unread_kinds(ignored: Sequence[str]) -> str:
    """How many of the ignored files may be images, of which kinds, and what would read them; empty for none."""
    counts = Counter(suffix for path in ignored if (suffix := _suffix(path)) not in _NOTES)
    if not counts:
        return ""
    kinds = [f"{count:,} {suffix}{remedy(suffix)}" for suffix, count in counts.most_common(_MOST_KINDS)]
    more = ", ..." if len(counts) > _MOST_KINDS else ""
    return f"ignored {counts.total():,} files of kinds that are not read: {', '.join(kinds)}{more}"


def listed_images(file: Path) -> FileImages:
    """The images that a list file names; classes are in numeric order if all labels are whole numbers.

    Raises:
        ValueError: if the list is empty.
    """
    rows = list(_csv_rows(file) if file.suffix == ".csv" else _text_rows(file))
    if not rows:
        raise ValueError(f"{file} lists no images; it needs one path on each line")
    paths = [os.path.join(file.parent, path) for path, _ in rows]
    names = [name for _, name in rows]
    known = {name for name in names if name is not None}
    numeric = all(name.isdecimal() for name in known)
    return _file_images(str(file), paths, names, sorted(known, key=int if numeric else None))


def split_folder(folder: Path, split: str) -> Path | None:
    """The folder of a split; None if there is none.

    Args:
        folder: folder as the user named it.
        split: ``train`` or ``test``.
    """
    test = next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    if test is None or not (folder / "train").is_dir():
        return folder if split == "train" else None
    return folder / "train" if split == "train" else test


def concatenated(parts: Sequence[FileImages]) -> FileImages:
    """Several sources as one; classes of one name are one class."""
    if len(parts) == 1:
        return parts[0]
    names = sorted({name for part in parts for name in part.classes or ()})
    return FileImages(
        name=", ".join(part.name for part in parts),
        paths=np.concatenate([part.paths for part in parts]),
        labels=torch.cat([relabelled(part, names) for part in parts]),
        classes=tuple(names) or None,
        ignored=tuple(path for part in parts for path in part.ignored),
    )


def relabelled(source: Any, classes: Sequence[str]) -> Int64[Tensor, " n"]:
    """A source's labels as positions in another list of classes.

    Raises:
        ValueError: if a class of the source is not in the list.
    """
    own = source.classes or ()
    if unknown := sorted(set(own) - set(classes)):
        raise ValueError(f"{source.name} has classes that are not in the training source: {unknown[:5]}")
    position = {name: number for number, name in enumerate(classes)}
    table = torch.tensor([position[name] for name in own] + [-1])
    return table[source.labels]


def _file_images(name: str, paths: Sequence[str], names: Sequence[str | None], classes: Sequence[str]) -> FileImages:
    position: dict[str | None, int] = {name: number for number, name in enumerate(classes)}
    return FileImages(
        name=name,
        paths=np.array([os.fsencode(path) for path in paths]),
        labels=torch.tensor([position.get(each, -1) for each in names]),
        classes=tuple(classes) or None,
    )


def _walk(folder: Path) -> Iterator[str]:
    """Paths of all files below a folder but hidden ones and those of runs; links are followed, each folder once."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if "config.yaml" in files and ("checkpoints" in folders or "backbone.json" in files):
            logger.info("%s is a run directory: its pictures are not read", parent)
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name.lower() not in _CLUTTER)
        yield from (os.path.join(parent, name) for name in files if not name.startswith("."))


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _begins_as_image(path: str) -> bool:
    try:
        with open(path, "rb", opener=_open_regular) as file:
            return image_kind(file.read(HEADER_BYTES)) is not None
    except OSError:
        return False


def _refuse(error: OSError) -> None:
    raise type(error)(f"{error.filename} cannot be listed: {error.strerror}; check its permissions") from error


def _tiny_imagenet_val(folder: Path, class_list: Sequence[str] | None) -> FileImages:
    """Tiny-ImageNet's flat validation folder; each line of its annotations is a file, a class and a box."""
    rows = [line.split("\t")[:2] for line in (folder / "val_annotations.txt").read_text().splitlines()]
    if class_list is not None:
        rows = [row for row in rows if row[1] in class_list]
    classes = class_list or sorted({name for _, name in rows})
    paths = [os.path.join(folder, "images", file) for file, _ in rows]
    return _file_images(str(folder), paths, [name for _, name in rows], classes)


def _text_rows(file: Path) -> Iterator[tuple[str, str | None]]:
    for line in file.read_text().splitlines():
        path, separator, label = line.rpartition("\t")
        if not separator:
            path, separator, label = line.rpartition(" ")
            if not label.isdecimal():
                path, label = line, ""
        if path.strip():
            yield path.strip(), label.strip() or None


def _csv_rows(file: Path) -> Iterator[tuple[str, str | None]]:
    with file.open(newline="") as lines:
        for number, row in enumerate(csv.reader(lines)):
            if not row or not row[0].strip() or (number == 0 and row[0].strip().lower() in ("path", "file", "image")):
                continue
            yield row[0].strip(), (row[1].strip() or None) if len(row) > 1 else None
