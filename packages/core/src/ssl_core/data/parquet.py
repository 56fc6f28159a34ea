"""Images in parquet shards, as Hugging Face writes them: a column of encoded bytes, a column of labels.

A label may also be in the name of a shard's folder, ``label=cat`` (Hive).

Parquet cannot fetch one row without reading its row group. So the encoded bytes are held in memory where they
fit, and otherwise each process keeps the row group that it read last; shards with small row groups (Hugging
Face writes 100 images a group) then cost the least.
"""

# PyArrow's classes are compiled and carry no types.
# mypy: disable-error-code="no-untyped-call,name-defined,attr-defined"

import contextlib
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from ssl_core.address import is_address
from ssl_core.data.decode import decode_image
from ssl_core.data.labels import labels_of
from ssl_core.data.local_cache import LocalCache
from ssl_core.data.pixels import BrokenImageError, in_one_line
from ssl_core.data.remote import AnyPath
from ssl_core.data.shards import Shard, open_shard, shards_at
from ssl_core.files import write_atomically

logger = logging.getLogger(__name__)

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, eq=False)
class ParquetImages:
    """Encoded images in row groups of parquet shards, decoded when they are asked for.

    Attributes:
        name: name of the source for a person.
        groups: row groups that hold the encoded images.
        rows: (n 2) row group of each image, and its row there.
        labels: (n) label of each image, -1 when unknown.
        classes: names of the classes.
        channels: number of channels that ``image`` returns; None keeps the images' own.
        at_least: number of pixels that each side of a JPEG keeps when it is decoded smaller; None decodes it whole.
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
        data = self.encoded(index)
        return decode_image(data, self.channels, at_least=self.at_least, identifier=self.identifier(index))

    def encoded(self, index: int) -> bytes:
        """Bytes of an image's row.

        Raises:
            BrokenImageError: if it has none.
        """
        group, row = self.rows[index].tolist()
        try:
            data = self.groups.column(group)[row].as_py()
        except (pa.ArrowException, OSError) as error:
            raise BrokenImageError(f"{self.identifier(index)}: {in_one_line(error)}") from error
        if data is None:
            raise BrokenImageError(f"{self.identifier(index)}: no bytes in this row")
        return bytes(data)

    def label(self, index: int) -> int:
        """The class of an image, -1 when unknown."""
        return int(self.labels[index])

    def identifier(self, index: int) -> str:
        """The shard's name, with the folders in which the shards differ, and the row in it."""
        group, row = self.rows[index].tolist()
        return self.groups.identifier(group, row)

    def digest(self) -> str:
        """Hash of the shards' names, sizes and columns, and of which of their rows the images are."""
        digest = hashlib.blake2b(repr(self.groups.shards()).encode(), digest_size=16)
        digest.update(self.rows.numpy().tobytes())
        return digest.hexdigest()

    def subset(self, indices: Int64[Tensor, " m"]) -> "ParquetImages":
        """The images at some indices."""
        return replace(self, rows=self.rows[indices], labels=self.labels[indices])


class _RowGroups:
    """A column of encoded bytes in each of several shards, by row group."""

    def __init__(
        self,
        shards: Sequence[Shard],
        footers: Sequence[pq.FileMetaData],
        leaves: Sequence[str],
        memory_bytes: float,
        local: LocalCache | None,
    ) -> None:
        self._shards, self._footers, self._leaves, self._local = shards, footers, leaves, local
        self._places: list[tuple[int, int, int]] = []  # shard, row group in it, its first row
        self._held: dict[int, pa.ChunkedArray] = {}
        self.lengths: list[int] = []
        encoded_bytes = 0
        for shard, metadata in enumerate(footers):
            first_row = 0
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                self._places.append((shard, number, first_row))
                self.lengths.append(group.num_rows)
                first_row += group.num_rows
                columns = [group.column(position) for position in range(group.num_columns)]
                encoded_bytes += sum(
                    each.total_uncompressed_size for each in columns if each.path_in_schema == leaves[shard]
                )
        self._holds_all = encoded_bytes <= memory_bytes
        if self._holds_all:
            for number in range(len(self._places)):
                with contextlib.suppress(pa.ArrowException, OSError):  # its images are broken, and say why
                    self.column(number)
        else:
            logger.warning(
                "%s: %.1f GiB of encoded images exceed data.memory_gib, so each image costs the reading of a "
                "row group of up to %d rows; raise data.memory_gib or write smaller row groups",
                shards[0].path,
                encoded_bytes / 2**30,
                max(self.lengths),
            )

    def column(self, group: int) -> pa.ChunkedArray:
        """The encoded images of a row group."""
        if group not in self._held:
            shard, number, _ = self._places[group]
            # One thread: Arrow's pool does not survive the fork into a worker.
            table = self._opened(shard).read_row_group(number, [self._leaves[shard]], use_threads=False)
            if not self._holds_all:
                self._held.clear()
            column = table.flatten().column(0)
            if len(column) != self.lengths[group]:
                raise pa.ArrowInvalid(f"{len(column)} rows in a row group of {self.lengths[group]}")
            self._held[group] = column
        return self._held[group]

    def shards(self) -> list[tuple[str, int, str]]:
        """Name, size and column of each shard."""
        return [(shard.name, shard.size, leaf) for shard, leaf in zip(self._shards, self._leaves, strict=True)]

    def _opened(self, shard: int) -> pq.ParquetFile:
        return _parquet_file(self._shards[shard], self._local, self._footers[shard])

    def copy(self, folder: Path, rows: Int64[Tensor, "n 2"]) -> None:
        """Write some rows, of all columns, to shards named as theirs; errors as :func:`write_atomically`."""
        for shard, (_, name, *_) in enumerate(self._shards):
            chosen = [
                (number, sorted(rows[rows[:, 0] == group, 1].tolist()))
                for group, (of, number, _) in enumerate(self._places)
                if of == shard
            ]
            if not any(wanted for _, wanted in chosen):
                continue
            file = self._opened(shard)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, partial(_write_rows, file, chosen))

    def has_no_bytes(self) -> bool:
        """Whether all rows of all groups are null, as in shards that hold paths only."""
        try:
            return all(self.column(group).null_count == length for group, length in enumerate(self.lengths))
        except (pa.ArrowException, OSError):
            return False

    def identifier(self, group: int, row: int) -> str:
        shard, _, first_row = self._places[group]
        return f"{self._shards[shard].name}:{first_row + row}"


def _write_rows(file: pq.ParquetFile, chosen: list[tuple[int, list[int]]], out: BinaryIO) -> None:
    with pq.ParquetWriter(out, file.schema_arrow) as writer:
        for group, wanted in chosen:
            if wanted:
                writer.write_table(file.read_row_group(group).take(wanted))


def parquet_images(
    files: Sequence[AnyPath],
    *,
    image_column: str | None,
    label_column: str,
    memory_bytes: float,
    local: LocalCache | None = None,
) -> ParquetImages:
    """The images of parquet shards.

    Args:
        files: shards, in order.
        image_column: name of a column that is binary, or a struct with a binary field ``bytes``; None takes the only
            such column of a shard.
        label_column: name of a column of whole numbers or class names; images of a shard without it are unlabeled.
        memory_bytes: largest size of the encoded images that are held in memory.
        local: pieces of remote shards on this machine.

    Raises:
        ValueError: if a shard is not parquet, has no column of image bytes, or there is no image.
    """
    leaves: list[str] = []
    footers: list[pq.FileMetaData] = []
    values: list[Any] = []
    names: list[str] = []
    shards = shards_at(files)
    for file, found in zip(files, shards, strict=True):
        try:
            shard = _parquet_file(found, local)
            leaves.append(_leaf(shard.schema_arrow, image_column, label_column, file))
            footers.append(shard.metadata)
            _refuse_wrong_counts(footers[-1], leaves[-1])
            values += _label_values(shard, label_column, file)
            names = names or _class_names(shard.schema_arrow, label_column)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} cannot be read as parquet: {in_one_line(error)}") from error
    groups = _RowGroups(shards, footers, leaves, memory_bytes, local)
    name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    if not values:
        raise ValueError(f"{name}: there is no image, for there are no rows")
    if groups.has_no_bytes():
        raise ValueError(
            f"{name}: there are no bytes in its column of images; list paths in a .csv (path,label) instead"
        )
    labels, classes = labels_of(values, f"column {label_column!r} of {name}", names)
    rows = torch.cat([_group_rows(group, length) for group, length in enumerate(groups.lengths)])
    return ParquetImages(name, groups, rows, labels, classes)


def _parquet_file(shard: Shard, local: LocalCache | None, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """A shard, without another look at a footer that is known."""
    # A file of this machine pyarrow reads by itself, without asking Python for each piece.
    return pq.ParquetFile(open_shard(shard, local) if is_address(shard.path) else shard.path, metadata=footer)


def _leaf(schema: pa.Schema, image_column: str | None, label_column: str, file: AnyPath) -> str:
    """The parquet path of the column of encoded bytes."""

    def leaf(field: pa.Field) -> str | None:
        if pa.types.is_struct(field.type):
            inner = field.type.get_field_index("bytes")
            is_image = inner >= 0 and (
                _is_binary(field.type.field(inner).type) or pa.types.is_null(field.type.field(inner).type)
            )
            return f"{field.name}.bytes" if is_image else None
        return field.name if _is_binary(field.type) else None

    fields = [field for field in schema if field.name != label_column or field.name == image_column]
    leaves = {field.name: path for field in fields if (path := leaf(field)) is not None}
    if image_column is None and len(leaves) == 1:
        return leaves.popitem()[1]
    if image_column in leaves:
        return leaves[image_column]
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise ValueError(
        f"{file}: data.image_column {image_column!r} does not name a column of image bytes, one image in a row; "
        f"such columns: {sorted(leaves)}, all columns: {columns}"
    )


def _refuse_wrong_counts(metadata: pq.FileMetaData, leaf: str) -> None:
    """Refuse numbers of rows that contradict each other, before memory is taken for so many."""
    total = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(position) for position in range(group.num_columns)]
        (num_images,) = (column.num_values for column in columns if column.path_in_schema == leaf)
        if num_images != group.num_rows:
            raise pa.ArrowInvalid(f"{num_images} images in a row group of {group.num_rows} rows")
        total += num_images
    if total != metadata.num_rows:
        raise pa.ArrowInvalid(f"{total} images in {metadata.num_rows} rows")


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _group_rows(group: int, length: int) -> Int64[Tensor, "n 2"]:
    return torch.stack([torch.full((length,), group), torch.arange(length)], dim=1)


def _label_values(shard: pq.ParquetFile, column: str, file: AnyPath) -> list[Any]:
    """The labels of a shard: its column, or what the name of a folder says; None where there are none."""
    num_rows = shard.metadata.num_rows
    if column in shard.schema_arrow.names:
        kind = shard.schema_arrow.field(column).type
        if pa.types.is_nested(kind) or pa.types.is_temporal(kind):
            return [kind] * num_rows  # which is no class, and says more than its values
        return list(shard.read([column], use_threads=False)[column].to_pylist())
    parts = dict(part.partition("=")[::2] for part in file.parts if "=" in part)
    value = unquote(parts.get(column, _HIVE_NULL))
    return [None if value == _HIVE_NULL else value] * num_rows


def _class_names(schema: pa.Schema, column: str) -> list[str]:
    """Names that Hugging Face's ClassLabel keeps in the schema's metadata; none without it."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(column, {})
    return list(feature.get("names", [])) if isinstance(feature, dict) else []
