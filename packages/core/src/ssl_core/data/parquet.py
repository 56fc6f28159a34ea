"""Images in parquet shards, as Hugging Face writes them: a column of encoded bytes, a column of labels.

Parquet cannot fetch one row without reading its row group. So the encoded bytes are held in memory where they
fit, and otherwise each process keeps the row group that it read last; shards with small row groups (Hugging
Face writes 100 images a group) then cost the least.
"""

# PyArrow's classes are compiled and carry no types.
# mypy: disable-error-code="no-untyped-call,name-defined,attr-defined"

import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from ssl_core.data.decode import decode_image
from ssl_core.data.files import TEST_NAMES
from ssl_core.data.pixels import BrokenImageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ParquetImages:
    """Encoded images in row groups of parquet shards, decoded when they are asked for.

    Attributes:
        name: name of the source for a person.
        groups: places of the bytes.
        rows: (n 2), the row group and the row in it of each image.
        labels: (n), -1 when unknown.
        classes: names of the classes.
        channels: number of channels that ``image`` returns; None keeps the images' own.
        at_least: pixels that each side of a JPEG keeps when it is decoded smaller; None decodes it whole.
    """

    name: str
    groups: "_RowGroups"
    rows: Int64[Tensor, "n 2"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...] | None
    channels: int | None = None
    at_least: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Shaped[Tensor, "c h w"]:
        """Pixels of an image.

        Raises:
            BrokenImageError: if the row has no bytes or they cannot be decoded.
        """
        group, row = self.rows[index].tolist()
        data = self.groups.column(group)[row].as_py()
        if data is None:
            raise BrokenImageError(f"{self.identifier(index)}: no bytes in this row")
        return decode_image(data, self.channels, at_least=self.at_least, identifier=self.identifier(index))

    def label(self, index: int) -> int:
        """The class of an image, -1 when unknown."""
        return int(self.labels[index])

    def identifier(self, index: int) -> str:
        """The shard's name and the row in it."""
        group, row = self.rows[index].tolist()
        return self.groups.identifier(group, row)

    def subset(self, indices: Int64[Tensor, " m"]) -> "ParquetImages":
        """The images at some indices."""
        return replace(self, rows=self.rows[indices], labels=self.labels[indices])


class _RowGroups:
    """One column of encoded bytes in several shards, by row group."""

    def __init__(self, files: Sequence[Path], leaf: str, memory_bytes: float) -> None:
        self._files = [str(file) for file in files]
        self._leaf = leaf
        self._places: list[tuple[int, int, int]] = []  # shard, row group in it, its first row
        self._held: dict[int, pa.ChunkedArray] = {}
        self.lengths: list[int] = []
        encoded_bytes = 0
        for shard, file in enumerate(self._files):
            metadata = pq.read_metadata(file)
            first_row = 0
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                self._places.append((shard, number, first_row))
                self.lengths.append(group.num_rows)
                first_row += group.num_rows
                leaves = [group.column(position) for position in range(group.num_columns)]
                encoded_bytes += sum(each.total_uncompressed_size for each in leaves if each.path_in_schema == leaf)
        self._holds_all = encoded_bytes <= memory_bytes
        if self._holds_all:
            for number in range(len(self._places)):
                self.column(number)
        else:
            logger.warning(
                "%s: %.1f GiB of encoded images exceed data.memory_gib, so each image costs the reading of a "
                "row group of up to %d rows; raise data.memory_gib or write smaller row groups",
                self._files[0],
                encoded_bytes / 2**30,
                max(self.lengths),
            )

    def column(self, group: int) -> pa.ChunkedArray:
        """The encoded images of a row group."""
        if group not in self._held:
            shard, number, _ = self._places[group]
            # One thread: Arrow's pool does not survive the fork into a worker.
            table = pq.ParquetFile(self._files[shard]).read_row_group(number, [self._leaf], use_threads=False)
            if not self._holds_all:
                self._held.clear()
            self._held[group] = table.flatten().column(0)
        return self._held[group]

    def identifier(self, group: int, row: int) -> str:
        shard, _, first_row = self._places[group]
        return f"{os.path.basename(self._files[shard])}:{first_row + row}"


def parquet_images(
    files: Sequence[Path], *, image_column: str | None, label_column: str, memory_bytes: float
) -> ParquetImages:
    """The images of parquet shards of one schema.

    Args:
        files: shards, in order.
        image_column: binary, or a struct with a binary field ``bytes``; None takes the only such column.
        label_column: whole numbers or class names; without it the images are unlabelled.
        memory_bytes: largest size of the encoded images that are held in memory.

    Raises:
        ValueError: if a shard is not parquet or the columns are not as described.
    """
    try:
        schema = pq.read_schema(files[0])
        leaf = _leaf(schema, image_column, files[0])
        groups = _RowGroups(files, leaf, memory_bytes)
    except pa.ArrowInvalid as error:
        raise ValueError(f"not all of {[str(file) for file in files]} can be read as parquet: {error}") from error
    rows = torch.cat([_group_rows(group, length) for group, length in enumerate(groups.lengths)])
    labels, classes = torch.full((len(rows),), -1), None
    if label_column in schema.names:
        labels, classes = _labels(files, label_column, schema)
    else:
        logger.info("%s has no column %r (data.label_column): no labels", files[0], label_column)
    name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return ParquetImages(name, groups, rows, labels, classes)


def parquet_files(paths: Sequence[Path], split: str) -> list[Path]:
    """The shards of a split, in order; none if there is no such split.

    Args:
        paths: shards, or folders of shards named after their split (``train-00000-of-00003.parquet``).
        split: ``train`` (without shards of that name: all) or ``test``, which for shards that are named as
            training shards are the test shards beside them.
    """
    if paths[0].is_dir():
        files = [file for path in paths for file in shards_in(path)]
        return _named(files, "train") or files if split == "train" else _test_shards(files)
    if split == "train":
        return list(paths)
    is_training = len(_named(paths, "train")) == len(paths)
    return _test_shards(shards_in(paths[0].parent)) if is_training else []


def shards_in(folder: Path) -> list[Path]:
    """The parquet files in a folder, or in its subfolder ``data``, as Hugging Face lays them out."""
    return sorted(folder.glob("[!.]*.parquet")) or sorted(folder.glob("data/[!.]*.parquet"))


def _test_shards(files: Sequence[Path]) -> list[Path]:
    return next((found for name in TEST_NAMES if (found := _named(files, name))), [])


def _named(files: Sequence[Path], name: str) -> list[Path]:
    return [file for file in files if re.match(rf"{name}[-_.]", file.name)]


def _leaf(schema: pa.Schema, image_column: str | None, file: Path) -> str:
    """The parquet path of the column of encoded bytes."""

    def leaf(field: pa.Field) -> str | None:
        if pa.types.is_struct(field.type):
            inner = field.type.get_field_index("bytes")
            is_image = inner >= 0 and _is_binary(field.type.field(inner).type)
            return f"{field.name}.bytes" if is_image else None
        return field.name if _is_binary(field.type) else None

    leaves = {field.name: path for field in schema if (path := leaf(field)) is not None}
    if image_column is None and len(leaves) == 1:
        return leaves.popitem()[1]
    if image_column in leaves:
        return leaves[image_column]
    raise ValueError(
        f"{file}: data.image_column {image_column!r} does not name a column of image bytes; "
        f"such columns: {sorted(leaves)}, all columns: {schema.names}"
    )


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _group_rows(group: int, length: int) -> Int64[Tensor, "n 2"]:
    return torch.stack([torch.full((length,), group), torch.arange(length)], dim=1)


def _labels(files: Sequence[Path], column: str, schema: pa.Schema) -> tuple[Int64[Tensor, " n"], tuple[str, ...]]:
    values = [value for file in files for value in pq.read_table(file, columns=[column])[column].to_pylist()]
    names: list[Any] = _class_names(schema, column)
    if not all(value is None or isinstance(value, int) for value in values):
        names = sorted({value for value in values if value is not None})
        position = {name: number for number, name in enumerate(names)}
        values = [None if value is None else position[value] for value in values]
    labels = torch.tensor([-1 if value is None else value for value in values])
    names = names or list(range(int(labels.max()) + 1))
    return labels, tuple(str(name) for name in names)


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """Names that Hugging Face's ClassLabel keeps in the schema's metadata; none without it."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(column, {})
    return list(feature.get("names", [])) if isinstance(feature, dict) else []
