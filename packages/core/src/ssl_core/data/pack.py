"""Any source as tar shards in WebDataset's layout, which ``data.source`` takes in its place."""

import contextlib
import io
import itertools
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ssl_core.address import is_address
from ssl_core.data.config import DataConfig, Images, open_encoded, open_test
from ssl_core.data.decode import IMAGE_SUFFIXES, decode_image, image_kind
from ssl_core.data.files import FileImages, shared_length
from ssl_core.data.pixels import BrokenImageError
from ssl_core.data.source import MemoryImages, announce, check_broken
from ssl_core.data.tar import CLASSES_NAME, TarImages, tar_images
from ssl_core.data.workers import worker_map
from ssl_core.files import new_folder
from ssl_core.progress import progress_bar
from ssl_core.size import bytes_of

BROKEN_NAME = "broken.txt"
SHARD_SIZE = "512MB"
_CHUNK = 32
# Suffix of an image whose file had none, by its format.
_SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp", "WebP": ".webp", "TIFF": ".tif", "PPM": ".ppm"}
_SUFFIX |= {"NumPy": ".npy", "JPEG_2000": ".jp2", "AVIF": ".avif", "HEIC": ".heic"}


class Packed(NamedTuple):
    """What :func:`pack` has written of a split.

    Attributes:
        num_images: number of images.
        num_shards: number of shards.
        broken: lines that name each image that was left out because it could not be read.
    """

    num_images: int
    num_shards: int
    broken: tuple[str, ...]


def pack(data: DataConfig, out: str, *, shard_size: str = SHARD_SIZE) -> dict[str, Packed]:
    """Write the images of a source, as they are encoded, as tar shards.

    Shards of a source with test images are in the folders ``train`` and ``test``. The images have the order and, where
    they are files, the names of the source: a training goes on with the shards as it began with the folder. A dot
    inside of a name becomes ``_``, since a key ends at the first. Images that have no file are PNG.

    Args:
        data: images to pack.
        out: folder to write, which is whole or not there.
        shard_size: largest size of a shard of more than one image: a number with kB, MB, GB, KiB, MiB or GiB.

    Returns:
        What was written of each split, by its name.

    Raises:
        FileExistsError: if the folder holds something already.
        ValueError: as `open_encoded`, for a size that is none, and if more images are broken than ``data.broken_limit``
            allows.
        OSError: if the folder cannot be written.
    """
    if is_address(out):
        raise ValueError(
            f"{out} is an address, and shards are written to a folder of this machine: copy them from there"
        )
    folder, most_bytes = Path(out), bytes_of(shard_size)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already, and is no empty folder: choose another")
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {folder.absolute().parent} to write {folder.name} to")
    splits = {"train": open_encoded(data)}
    if (test := open_test(data)) is not None:
        splits["test"] = test
    for images in splits.values():
        _check_classes(images)
    packed = {}
    with new_folder(folder) as part:
        for split, images in splits.items():
            inner = part / split if len(splits) > 1 else part
            inner.mkdir(exist_ok=True)
            packed[split] = write_shards(images, inner, most_bytes=most_bytes, workers=data.workers)
    return packed


def write_shards(images: Images, folder: Path, *, most_bytes: int, workers: int) -> Packed:
    """Write some images as tar shards with their index, the names of their classes, and a list of the broken ones.

    Args:
        images: images to write.
        folder: folder that is empty.
        most_bytes: largest size of a shard of more than one image.
        workers: number of processes that read and decode images.

    Raises:
        ValueError: if no image can be read.
    """
    broken: list[str] = []
    chunks = [range(start, min(start + _CHUNK, len(images))) for start in range(0, len(images), _CHUNK)]
    shards, names = _Shards(folder, most_bytes), _names(images)
    with contextlib.closing(shards), progress_bar(len(images), "image", desc="packing", delay=2, leave=False) as bar:
        for chunk, contents in zip(chunks, worker_map(_Reader(images), chunks, workers), strict=True):
            for index, content, name in zip(chunk, contents, names, strict=False):
                if isinstance(content, str):
                    broken.append(content)
                else:
                    shards.add(name, content, images.label(index))
            bar.update(len(chunk))
    if not shards.num_images:
        check_broken(broken, len(images), images.name, 0.0)
    if broken:
        (folder / BROKEN_NAME).write_bytes("".join(f"{line}\n" for line in broken).encode(errors="surrogateescape"))
    if images.classes is not None:
        (folder / CLASSES_NAME).write_text("".join(f"{name}\n" for name in images.classes), encoding="utf-8")
    # Which also writes the index, where nobody waits for it.
    read = tar_images(shards.files, image_column=None, label_column="label", cache=folder, workers=workers)
    assert len(read) == shards.num_images
    return Packed(shards.num_images, len(shards.files), tuple(broken))


class _Reader:
    """The encoded images of a range; a broken one becomes its message."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def __call__(self, indices: range) -> list[bytes | str]:
        announce(self._images, indices)
        return [self._content(index) for index in indices]

    def _content(self, index: int) -> bytes | str:
        images = self._images
        try:
            if isinstance(images, MemoryImages):
                return _png(images.image(index))
            content = images.encoded(index)
            decode_image(content, images.channels, identifier=images.identifier(index))  # or it is broken
        except BrokenImageError as error:
            return str(error)
        return content


def _png(pixels: Tensor) -> bytes:
    """Pixels of a named set, which are gray or RGB of 8 bits."""
    array = pixels.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, "PNG")
    return file.getvalue()


class _Shards:
    """Tars that are filled one after the other."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._tar: tarfile.TarFile | None = None
        self._keys: set[str] = set()  # of the current tar
        self.files: list[Path] = []
        self.num_images = 0

    def close(self) -> None:
        """Write the end of the current tar."""
        if self._tar is not None:
            tar, self._tar = self._tar, None
            with self._named():
                tar.close()

    def add(self, name: str, content: bytes, label: int) -> None:
        """Write an image and its label."""
        key, suffix = os.path.splitext(name)
        if suffix.lower() not in IMAGE_SUFFIXES:
            key, suffix = name, _SUFFIX[image_kind(content) or "PNG"]
        key = _unused(_as_key(key), self._keys)
        members = [(tarfile.TarInfo(f"{key}{suffix}"), content)]
        if label >= 0:
            members.append((tarfile.TarInfo(f"{key}.cls"), str(label).encode()))
        for info, data in members:
            info.size = len(data)
        needed = sum(len(info.tobuf()) + _blocks(info.size, tarfile.BLOCKSIZE) for info, _ in members)
        tar = self._tar
        # Its end are two empty blocks, filled up to a record.
        if tar is None or _blocks(tar.offset + needed + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE) > self._most_bytes:
            tar = self._next()
        with self._named():
            for info, data in members:
                tar.addfile(info, io.BytesIO(data))
        tar.members.clear()  # type: ignore[attr-defined]  # not in the stubs; it keeps all
        self._keys.add(key)
        self.num_images += 1

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Say which file cannot be written, where one cannot."""
        try:
            yield
        except OSError as error:
            raise type(error)(f"cannot write {self.files[-1]} ({error.strerror or error})") from error

    def _next(self) -> tarfile.TarFile:
        self.close()
        self._keys.clear()
        self.files.append(self._folder / f"{len(self.files):06d}.tar")
        self._tar = tarfile.open(self.files[-1], "w")  # noqa: SIM115  # closed when it is full
        return self._tar


def _blocks(size: int, block: int) -> int:
    """A size filled up to whole blocks."""
    return -(-size // block) * block


def _as_key(path: str) -> str:
    """A path without suffix as a key: it ends at the first dot of its name, and hidden members are not read."""
    folders, slash, name = path.replace(os.sep, "/").rpartition("/")
    return re.sub(r"(^|/)\.", r"\1_", folders) + slash + name.replace(".", "_")


def _unused(key: str, used: set[str]) -> str:
    """The key, or with a number where it is used: of names that differ in a dot, or a file that is listed twice."""
    numbered = (key if number == 1 else f"{key}-{number}" for number in itertools.count(1))
    return next(each for each in numbered if each not in used)


def _names(images: Images) -> Iterator[str]:
    """A name for each image: its path from the folder on that all have in common, its member's, or its number."""
    if isinstance(images, FileImages):
        paths = images.paths.tolist()
        start = shared_length(min(paths), max(paths), os.sep)
        yield from (os.fsdecode(path[start:]) for path in paths)
    elif isinstance(images, TarImages):
        yield from map(images.member, range(len(images)))
    else:
        yield from (f"{index:09d}" for index in range(len(images)))


def _check_classes(images: Images) -> None:
    """Refuse names of classes that a list of lines cannot hold, before anything is read."""
    for name in images.classes or ():
        is_line = name.strip().splitlines() == [name]
        if not is_line or any("\udc80" <= character <= "\udcff" for character in name):
            raise ValueError(f"the class {name!r} of {images.name} cannot be a line of {CLASSES_NAME}: rename it")
