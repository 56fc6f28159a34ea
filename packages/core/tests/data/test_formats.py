"""Every cell of the tables of formats in docs/data.md is a test."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import FILES

from ssl_core.data import BrokenImageError, decode_image
from ssl_core.data.decode import suffixes

TABLES = (Path(__file__).parents[4] / "docs/data.md").read_text()
COLUMNS = (None, 1, 2, 3, 4, 5)
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TABLES.splitlines()
    if re.fullmatch(r"\| (?!format)([^|]*\|){10}", line)
]
# Modules behind the last column.
NEEDS = {"": (), "tiff": ("tifffile",), "heif": ("pillow_heif",), "Pillow 11.3": ()}


def expected(cell, stored, premultiplied):
    """What a cell says that is read, (c h w) in levels, from what is stored, (h w c)."""
    white = 1 if stored.dtype.kind == "f" else np.iinfo(stored.dtype).max
    image = stored.transpose(2, 0, 1)
    image = image.astype(np.float32 if white == 1 else np.float64)
    for word in cell.removeprefix("~").strip(" =").split(", "):
        if word == "white":
            image = (image[:-1] if premultiplied else image[:-1] * image[-1:] / white) + white - image[-1:]
        elif word == "luma":
            image = np.einsum("chw,c->hw", image, [0.299, 0.587, 0.114])[None]
        elif word == "thrice":
            image = image[[0, 0, 0, 1]]
        else:
            assert word in ("", "repeat")
    return image


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ", ".join(row[:3]))
@pytest.mark.parametrize("column", COLUMNS)
def test_a_cell_of_the_table_is_what_is_read(row, column, monkeypatch):
    name, cell, needs = ", ".join(row[:3]), row[3 + COLUMNS.index(column)], row[9]
    if needs == "Pillow 11.3" and ".avif" not in suffixes():
        pytest.skip("this Pillow cannot read AVIF")
    data, stored = FILES[name]()
    for module in {"tifffile", "pillow_heif"} - set(NEEDS[needs]):
        monkeypatch.setitem(sys.modules, module, None)
    if cell == "no":
        with pytest.raises(BrokenImageError):
            decode_image(data, column)
        return
    image = decode_image(data, column).numpy()
    read = expected(cell, stored, "premultiplied" in name)
    assert image.dtype == (np.float32 if stored.dtype.kind == "f" else stored.dtype)
    assert len(image) == (len(read) if column is None else column)
    levels = 1 if stored.dtype.kind == "f" else np.iinfo(stored.dtype).max
    if cell.startswith("~"):
        tolerance = 0.1 * levels  # colors of a quarter of the pixels
    elif "white" in cell or "luma" in cell:
        tolerance = 1e-6 if levels == 1 else 1.5  # rounded, by Pillow twice
    else:
        tolerance = 0
    assert np.abs(image - read).max() <= tolerance


@pytest.mark.parametrize("row", [row for row in ROWS if NEEDS[row[9]]], ids=lambda row: ", ".join(row[:3]))
def test_what_an_extra_reads_is_refused_without_it_by_its_name(row, monkeypatch):
    data, _ = FILES[", ".join(row[:3])]()
    for module in NEEDS[row[9]]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BrokenImageError, match=rf"pip install 'ssl-core\[{row[9]}\]'"):
        decode_image(data)


def test_every_file_is_in_the_table_once():
    assert sorted(", ".join(row[:3]) for row in ROWS) == sorted(FILES)
