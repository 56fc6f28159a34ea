"""Images in tar shards of WebDataset's layout: ``key.jpg`` beside ``key.cls``, which holds a whole number as text.

Where each image lies is in an index (``tar_index``), so that any image is one read, and tars are shuffled, shared
among processes and resumed as a folder is. ``classes.txt`` beside the shards has the classes' names, one on a line.
"""

# PyArrow's classes are compiled and carry no types.
# mypy: disable-error-code="no-untyped-call,name-defined,attr-defined"

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from ssl_core.address import is_address
from ssl_core.data.decode import decode_image
from ssl_core.data.files import read_text, shared_length
from ssl_core.data.labels import coded_labels
from ssl_core.data.local_cache import LocalCache
from ssl_core.data.pixels import BrokenImageError
from ssl_core.data.remote import AnyPath
from ssl_core.data.shards import Shard, common_folder, read_range, read_ranges, shards_at
from ssl_core.data.tar_index import tar_index

logger = logging.getLogger(__name__)

CLASSES_NAME = "classes.txt"
_CHUNK = 2**16


@dataclass(frozen=True, eq=False)
class TarImages:
    """Encoded images in tar shards, decoded when they are asked for.

    Attributes:
        name: name of the source for a person.
        shards: shards, to which the column ``shard`` refers.
        members: columns shard, offset, size and name of each image, which lie in a file that all processes share.
        labels: (n) label of each image, -1 when unknown.
        classes: names of the classes.
        channels: number of channels that ``image`` returns; None keeps the images' own.
        ignored: number of members that are no images, by suffix.
        at_least: number of pixels that each side of a JPEG keeps when it is decoded smaller; None decodes it whole.
        local: pieces of remote shards on this machine.
    """

    name: str
    shards: tuple[Shard, ...]
    members: pa.RecordBatch
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...] | None
    channels: int | None = None
    ignored: Counter[str] = field(default_factory=Counter)
    at_least: int | None = None
    local: LocalCache | None = None
    _fetched: dict[int, bytes] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return int(self.members.num_rows)

    def image(self, index: int) -> Shaped[Tensor, "c h w"]:
        """Pixels of an image.

        Raises:
            BrokenImageError: if it cannot be read or decoded.
            ChangedShardError: if its shard has changed or is gone.
            RemoteError: if that is so of a remote one, or it cannot be read.
        """
        data = self.encoded(index)
        return decode_image(data, self.channels, at_least=self.at_least, identifier=self.identifier(index))

    def encoded(self, index: int) -> bytes:
        """Content of an image's member; errors as :meth:`image`."""
        if (fetched := self._fetched.pop(index, None)) is not None:
            return fetched
        try:
            return read_range(*self._range(index), self.local)
        except OSError as error:
            raise BrokenImageError(f"{self.identifier(index)}: {error.strerror or error}") from error

    def fetch(self, indices: Sequence[int]) -> None:
        """As :meth:`ssl_core.data.source.FetchingSource.fetch`, of remote shards."""
        self._fetched.clear()
        wanted = dict.fromkeys(indices)
        if is_address(self.shards[0].path):
            self._fetched.update(zip(wanted, read_ranges([*map(self._range, wanted)], self.local), strict=True))

    def _range(self, index: int) -> tuple[Shard, int, int]:
        shard, offset, size = (self.members.column(name)[index].as_py() for name in ("shard", "offset", "size"))
        return self.shards[shard], offset, size

    def label(self, index: int) -> int:
        """The class of an image, -1 when unknown."""
        return int(self.labels[index])

    def identifier(self, index: int) -> str:
        """The shard's name, with the folders in which the shards differ, and the member's."""
        return f"{self.shards[self.members.column('shard')[index].as_py()].name}/{self.member(index)}"

    def member(self, index: int) -> str:
        """Name of an image in its shard."""
        return os.fsdecode(self.members.column("name")[index].as_py())

    def digest(self) -> str:
        """Hash of the members' names, from the folder on that all have in common, and of their sizes.

        That of the folder whose images, and no others, the shards hold in the same order.
        """
        names, sizes = self.members.column("name"), self.members.column("size")
        bounds = pc.min_max(names)
        start = shared_length(bounds["min"].as_py(), bounds["max"].as_py(), "/")
        digest = hashlib.blake2b(digest_size=16)
        for begin in range(0, len(self), _CHUNK):
            part = zip(
                names[begin : begin + _CHUNK].to_pylist(), sizes[begin : begin + _CHUNK].to_pylist(), strict=True
            )
            digest.update(b"".join(b"%s\0%d\0" % (name[start:], size) for name, size in part))
        return digest.hexdigest()

    def shard_lengths(self) -> Int64[Tensor, " s"]:
        """Number of the images that lie together in each shard, in order."""
        shards = self.members.column("shard").to_numpy()
        bounds = np.flatnonzero(np.diff(shards, prepend=-1, append=-1))
        return torch.from_numpy(np.diff(bounds))

    def shard_bytes(self) -> list[int]:
        """Size in bytes of each shard that has images, in order."""
        return [self.shards[shard].size for shard in pc.unique(self.members.column("shard")).to_pylist()]

    def subset(self, indices: Int64[Tensor, " m"]) -> "TarImages":
        """The images at some indices."""
        return replace(self, members=self.members.take(pa.array(indices.numpy())), labels=self.labels[indices])


def tar_images(
    files: Sequence[AnyPath],
    *,
    image_column: str | None,
    label_column: str,
    cache: Path,
    workers: int,
    local: LocalCache | None = None,
) -> TarImages:
    """The images of tar shards.

    Args:
        files: shards, in order.
        image_column: extension of the images where samples have several; None takes the one without a dot.
        label_column: field of ``.json`` that holds the label; ``label`` is read from ``.cls`` first.
        cache: folder for the index of remote shards, and of those whose own folder cannot be written.
        workers: 0 reads shards that are not indexed in this process, else one for each processor does.
        local: pieces of remote shards on this machine.

    Raises:
        ValueError: naming all shards that cannot be read, or if there is no image.
        OSError: if the index can be written nowhere.
    """
    folder = common_folder(files)
    index = tar_index(
        shards_at(files),
        folder,
        cache=cache,
        image_column=image_column,
        label_column=label_column,
        workers=workers,
        local=local,
    )
    name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    if not index.rows.num_rows:
        others = ", ".join(
            f"{number:,} {suffix or 'without a suffix'}" for suffix, number in index.ignored.most_common(5)
        )
        inner = "; give the tars inside, unpacked" if ".tar" in index.ignored else ""
        wanted = f" with the extension {image_column} (data.image_column)" if image_column is not None else ""
        raise ValueError(f"{name}: there is no image{wanted}; its other members: {others or 'none'}{inner}")
    names = _class_names(folder / CLASSES_NAME)
    labels, classes = _labels(index.rows.column("label"), f".cls or {label_column!r} in .json of {name}", names)
    columns = ["shard", "offset", "size", "name"]
    members = pa.RecordBatch.from_arrays([index.rows.column(each) for each in columns], columns)
    return TarImages(name, index.shards, members, labels, classes, ignored=index.ignored, local=local)


def _labels(column: pa.Array, where: str, names: Sequence[str]) -> tuple[Int64[Tensor, " n"], tuple[str, ...] | None]:
    if column.null_count == len(column):
        return torch.tensor([-1]).expand(len(column)), None  # of any number of images in the memory of one
    encoded = column.dictionary_encode()
    values = encoded.dictionary.to_pylist()
    codes = np.array(encoded.indices.fill_null(len(values)))  # a copy, for Arrow's may not be written
    return coded_labels(codes, [*values, None], where, names)


def _class_names(file: AnyPath) -> list[str]:
    """The names of the classes 0, 1, ..., a line each; none without the file."""
    if not file.is_file():
        return []
    names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if len(set(names)) < len(names):
        raise ValueError(f"{file} must name each class once; it has {len(names)} lines")
    return names
