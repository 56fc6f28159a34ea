"""Lists of image files, with or without labels.

``.txt``: a path or address on each line, then optionally a tab and a label, or a space and a label that is a whole
number; ``.csv`` or ``.tsv``: columns of paths and labels, with or without a header. Relative paths start at the list's
folder. A column ``split`` or the like parts the rows.
"""

import csv
import io
import logging
import os
import re
from collections.abc import Sequence

import numpy as np
import torch

from ssl_core.address import is_address, is_of_web
from ssl_core.data.decode import remedy, suffixes
from ssl_core.data.files import TEST_NAMES, TRAIN_NAMES, FileImages, as_remote, read_text
from ssl_core.data.labels import labels_of
from ssl_core.data.remote import AnyPath, RemotePath, files_beside, joined, path_of

logger = logging.getLogger(__name__)

# Columns of lists that may say the split of a row, in lower case.
_SPLIT_COLUMNS = {"split", "set", "subset", "partition", "phase", "fold"}
# Texts that pandas reads as missing in a column of labels, but for names of floating-point oddities.
_MISSING = {"NaN", "nan", "NULL", "null", "None", "N/A", "n/a", "NA", "<NA>", "#N/A"}
_NUMBER = re.compile(r"-?\d+(\.\d*)?")

# How the lines of a list may be parted; the first that gives files is taken. None: see _text_rows.
_SEPARATORS = {".txt": (None, "\t", ",", ";", " "), ".csv": (",", ";", "\t"), ".tsv": ("\t", ",", ";")}
_EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)  # what Excel heeds in a first line
_TRIED = 16  # lines


def listed_images(file: AnyPath, *, label_column: str = "label", split: str = "train") -> FileImages | None:
    """The images that a list file names; None if it has none of a split.

    The column of paths is the one that names files; the last of the first lines that do not, nor have a word that ends
    like an image or a number beside one path, is a header.
    Labels are in the column that the header calls ``label_column``, or else in the only other one that has a name;
    without a header, in the column after the paths, or the only other one. A column ``split`` or the like parts the
    rows if some are for training, some for testing.

    Raises:
        ValueError: if the list is no text, or names no file.
    """
    rows, column = _table(file)
    header, width = None, max(map(len, rows))
    start = next(
        at
        for at, row in enumerate(rows)
        if _is_file(_path(file, row[column])) or _names_an_image(row) or _has_label_alone(row, column)
    )
    above, rows = rows[:start], rows[start:]
    if above:
        header = above[-1]
    if len(above) > 1 or (above and file.suffix.lower() == ".txt"):
        logger.info("%s: not read as images: %s, the last of which is taken for a header", file, above)
    parting = next(
        (at for at, name in enumerate(header or ()) if name.lower() in _SPLIT_COLUMNS - {label_column}), None
    )
    position = _label_column(header, width, column, parting, label_column)
    chosen = None
    if header is not None and parting is not None:
        chosen = _rows_of_split(rows, parting, split, f"column {header[parting]} of {file}")
    if chosen is not None:
        rows = chosen
    elif split == "test":
        return None
    labels, classes = torch.full((len(rows),), -1), None
    if position is not None:
        name = _cell(header or [], position) or position + 1
        labels, classes = labels_of(
            ["" if (cell := _cell(row, position)) in _MISSING else cell for row in rows], f"column {name} of {file}"
        )
    elif header is not None and width > 1:
        logger.info("%s: which of its columns %s has labels data.label_column does not say: no labels", file, header)
    paths = [_path(file, row[column]) for row in rows]
    remote = None
    if addresses := [path for path in paths if _is_remote(path)]:
        found = files_beside(addresses)
        remote = as_remote([found.get(path) for path in paths])
    return FileImages(str(file), np.array([os.fsencode(path) for path in paths]), labels, classes, remote=remote)


def _path(file: AnyPath, name: str) -> str:
    """The path or address that a list means by a name."""
    if is_address(name):
        return str(path_of(name)) if name.startswith("file:") else name
    return joined(str(file.parent), name) if isinstance(file, RemotePath) else os.path.join(file.parent, name)


def _is_file(path: str) -> bool:
    return path_of(path).is_file() if _is_remote(path) else os.path.isfile(path)


def _is_remote(path: str) -> bool:
    """Whether a path is asked for in a bucket: of a web page nothing is, and it counts as missing."""
    return is_address(path) and not is_of_web(path)


def _table(file: AnyPath) -> tuple[list[list[str]], int]:
    """The rows of a list, and the column whose cells name files: of a sample of the lines, the most."""
    text = read_text(file)
    separators = _SEPARATORS[file.suffix.lower()]
    if None not in separators and (said := _EXCEL_SEPARATOR.match(text)):
        text, separators = text[said.end() :], (said[1],)
    best: tuple[int, list[list[str]], int] = (0, [], 0)
    rows: list[list[str]] = []
    error = None
    for separator in separators:
        try:
            rows = _text_rows(text) if separator is None else _csv_rows(text, separator)
        except csv.Error as refused:
            error = refused
            continue
        sample = rows[1:] or rows
        sample = sample[:: max(1, len(sample) // _TRIED)]
        for column in range(max(map(len, sample), default=0)):
            found = sum(_is_file(_path(file, cell)) for row in sample if (cell := _cell(row, column)))
            if found > best[0]:
                best = (found, rows, column)
        if best[0] == len(sample) > 0:
            break
    if best[0] == 0 and error is not None:
        raise ValueError(f"{file} cannot be read: {error}; is a quote missing?") from error
    if not rows:
        raise ValueError(f"{file} lists no images; it needs one path on each line")
    if best[0] == 0:
        raise ValueError(
            f"none of the lines tried of {file} names a file, such as {','.join(rows[-1])!r:.80}; "
            f"paths start at {file.parent}"
        )
    return [row for row in best[1] if _cell(row, best[2])], best[2]


def _names_an_image(row: Sequence[str]) -> bool:
    """Whether a word of a row ends like an image, as in a line of another form than the rest."""
    endings = {os.path.splitext(word)[1].lower() for cell in row for word in re.split(r"[\s,;]", cell)}
    return any(ending in suffixes() or remedy(ending) for ending in endings)


def _has_label_alone(row: Sequence[str], column: int) -> bool:
    """Whether a row is a path and a number, which is no name of a column; two numbers may be pandas' own names."""
    return len(row) == 2 and [bool(_NUMBER.fullmatch(row[at])) for at in (column, 1 - column)] == [False, True]


def _cell(row: Sequence[str], column: int) -> str:
    return row[column] if column < len(row) else ""


def _rows_of_split(rows: list[list[str]], column: int, split: str, where: str) -> list[list[str]] | None:
    """The rows of a split; None, and a line in the log, where the column's words are not for training and testing."""
    words = [_cell(row, column).lower() for row in rows]
    tests = [word for word in TEST_NAMES if word in words][:1]
    if not tests or not any(word in words for word in TRAIN_NAMES):
        if split == "train":
            logger.info("%s does not part training from test images: not used (data.label_column names labels)", where)
        return None
    if split == "train":
        others = sorted({*words}.difference(TRAIN_NAMES, tests))
        logger.info("%s: its rows of %s are tested; not read: %s", where, tests[0], ", ".join(others) or "none")
    taken = TRAIN_NAMES if split == "train" else tests
    return [row for row, word in zip(rows, words, strict=True) if word in taken]


def _label_column(header: Sequence[str] | None, width: int, paths: int, parting: int | None, name: str) -> int | None:
    """The column of a list that has its labels; None if that cannot be told."""
    if header is None:
        return paths + 1 if paths + 1 < width else 0 if width == 2 else None
    if name in header:
        return header.index(name)
    # Pandas writes its index without a name.
    others = [
        number
        for number in range(width)
        if number not in (paths, parting) and (number >= len(header) or header[number])
    ]
    return others[0] if len(others) == 1 else None


def _text_rows(text: str) -> list[list[str]]:
    rows = []
    for line in io.StringIO(text, newline=None):
        line = line.strip()
        path, separator, label = line.rpartition("\t")
        if not separator:
            path, separator, label = line.rpartition(" ")
            if not _NUMBER.fullmatch(label) and label not in _MISSING:
                path, label = line, ""
        if path:
            rows.append([path.strip(), label.strip()] if label else [path])
    return rows


def _csv_rows(text: str, separator: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows = [[cell.strip() for cell in row] for row in reader]
    return [row for row in rows if any(row)]
