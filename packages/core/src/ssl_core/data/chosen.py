"""Some images of a source as a source of their own, which ``data.source`` takes.

Of files it is a list, of shards it is shards with the chosen images, for a list has no name for them.
"""

import csv
import io
import os
from pathlib import Path

from jaxtyping import Int64
from torch import Tensor

from ssl_core.address import is_address
from ssl_core.data.config import Images
from ssl_core.data.files import FileImages
from ssl_core.data.pack import SHARD_SIZE, write_shards
from ssl_core.data.parquet import ParquetImages
from ssl_core.data.tar import TarImages
from ssl_core.files import write_atomically
from ssl_core.size import bytes_of


def chosen_source(images: Images, stem: Path) -> Path | None:
    """The path that :func:`write_chosen` would write; None for images that have no files, such as a named set's.

    Raises:
        FileExistsError: if it is a folder that holds something already, which would be read as well.
        ValueError: for a path of an image that is no UTF-8, which a list cannot hold.
    """
    if isinstance(images, FileImages):
        for name in map(images.identifier, range(len(images))):
            if any("\udc80" <= character <= "\udcff" for character in name):  # as os.fsdecode marks them
                raise ValueError(f"the path {name!r} is no UTF-8, which a list cannot hold: rename it")
        return stem.with_name(f"{stem.name}.csv")
    if not isinstance(images, ParquetImages | TarImages):
        return None
    if stem.exists() and any(stem.iterdir()):
        raise FileExistsError(f"{stem} is not empty, and what it holds would be read as well: choose another --out")
    return stem


def write_chosen(images: FileImages | ParquetImages | TarImages, indices: Int64[Tensor, " m"], path: Path) -> None:
    """Write the source of some images.

    Args:
        images: images to choose from.
        indices: (m) indices of the images to write, in order; those of shards keep their own order.
        path: path of :func:`chosen_source`.

    Raises:
        OSError: naming the file and the cause, if it cannot be written.
    """
    if isinstance(images, ParquetImages):
        images.groups.copy(path, images.rows[indices])
        return
    if isinstance(images, TarImages):
        path.mkdir(parents=True, exist_ok=True)
        write_shards(images.subset(indices.sort().values), path, most_bytes=bytes_of(SHARD_SIZE), workers=0)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    classes = images.classes
    writer.writerow(["path"] if classes is None else ["path", "label"])
    for index in indices.tolist():
        # Absolute, so that the list may be moved.
        name = images.identifier(index)
        row = [name if is_address(name) else os.path.abspath(name)]
        if classes is not None:
            label = images.label(index)
            row.append("" if label < 0 else classes[label])
        writer.writerow(row)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))
