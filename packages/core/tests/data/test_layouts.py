"""Each row of the tables of layouts in docs/data.md, made and read: what the document says is what comes out."""

import datetime
import decimal
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_core.data import TRANSFER_SETS, DataConfig, open_source

DOCUMENT = Path(__file__).parents[4] / "docs" / "data.md"

PAIRS = [
    ("train", "val"),
    ("train", "valid"),
    ("train", "validation"),
    ("train", "dev"),
    ("train", "eval"),
    ("train", "test"),
    ("training", "testing"),
    ("Train", "Valid"),
    ("TRAIN", "TEST"),
    ("train2017", "val2017"),
    ("seg_train", "seg_test"),
    ("trainset", "testset"),
    ("traindata", "testdata"),
    ("TrainingSet", "TestSet"),
    ("set/train", "set/valid"),
]

# A row's first cell: files of a source. The images of a folder are named in it, and those of lists are 1.png to 4.png.
FOLDERS = {
    "`1.png`, `2.png`": None,
    "`a/1.png`, `b/2.png`": None,
    "`a/1.png`, `b/2.png`, `3.png`": None,
    "`2/1.png`, `10/2.png`": None,
    "`images/1.png`, `images/2.png`": None,
    "`set/a/1.png`, `set/b/2.png`": None,
    "`images/train/1.png`, `images/val/2.png`, `labels/train/1.txt`, `labels/val/2.txt`": None,
    "`train/images/1.png`, `train/labels/1.txt`, `valid/images/2.png`, `valid/labels/2.txt`": None,
    "`train/a/1.png`, `train/b/2.png`": None,
    **{f"`{train}/a/1.png`, `{train}/b/2.png`, `{test}/a/3.png`": None for train, test in PAIRS},
    "`train/a/1.png`, `train/b/2.png`, `valid/a/3.png`, `test/b/4.png`": None,
    "`train/a/1.png`, `train/b/2.png`, `val/3.png`": None,
    "`train/a/1.png`, `train/b/2.png`, `val/c/3.png`": None,
    "`train/1.png`, `extra/2.png`": None,
    "`bullet_train/1.png`, `test_tube/2.png`, `cat/3.png`": None,
    "`train/a/1.png`, `train/b/2.png`, `val/.keep`, `test/a/3.png`": None,
    "`a/1.png`, `b/2.png`, `train/config.yaml`, `train/backbone.json`, `train/3.png` (a run)": None,
    "`train/1.png`, `val/config.yaml`, `val/backbone.json`, `val/2.png` (a run), `test/3.png`": None,
    "`train/a/1.png`, `train/b/2.png`, `test1/3.png`": None,
    "`train/a/1.png`, `train/b/2.png`, `test_images/3.png`, `sample/4.png`": None,
    "`trainval/1.png`, `test/2.png`": None,
    "`01_train/1.png`, `02_test/2.png`": None,
    "`train2/1.png`, `val/2.png`": None,
    "`validation/a/1.png`, `validation/b/2.png`, `test/a/3.png`": None,
    "`a/train/1.png`, `a/test/2.png`, `b/train/3.png`, `b/test/4.png`": None,
}
LISTS = {
    "`list.txt`: a path in each line": ("list.txt", "1.png\n2.png\n3.png\n"),
    "a path, a space and a whole number": ("list.txt", "1.png 10\n2.png 2\n3.png 2\n"),
    "a path, a space and a name": ("list.txt", "1.png dog\n2.png cat\n3.png cat\n"),
    "a path, a tab and a name": ("list.txt", "1.png\tbig dog\n2.png\tcat\n3.png\tcat\n"),
    "a path, a comma and a name": ("list.txt", "1.png,dog\n2.png,cat\n3.png,cat\n"),
    "`list.csv`: a path and a name": ("list.csv", "1.png,dog\n2.png,cat\n3.png,cat\n"),
    "the header `path,label`": ("list.csv", "path,label\n1.png,2\n2.png,10\n3.png,2\n"),
    "the header `ImageId,Class`": ("list.csv", "ImageId,Class\n1.png,2\n2.png,10\n3.png,2\n"),
    "the header `label,filename`": ("list.csv", "label,filename\n2,1.png\n10,2.png\n2,3.png\n"),
    "the header `path,width,label`": ("list.csv", "path,width,label\n1.png,4,a\n2.png,4,b\n3.png,4,a\n"),
    "the header `path,width,kind`": ("list.csv", "path,width,kind\n1.png,4,a\n2.png,4,b\n3.png,4,a\n"),
    "the same with `--data.label_column kind`": ("list.csv", "path,width,kind\n1.png,4,a\n2.png,4,b\n3.png,4,a\n"),
    "pandas' index, `,path,label`": ("list.csv", ",path,label\n0,1.png,a\n1,2.png,b\n2,3.png,a\n"),
    "pandas' index of paths, `,label`": ("list.csv", ",label\n1.png,a\n2.png,b\n3.png,a\n"),
    "semicolons": ("list.csv", "path;label\n1.png;a\n2.png;b\n3.png;a\n"),
    "`list.tsv`": ("list.tsv", "path\tlabel\n1.png\ta\n2.png\tb\n3.png\ta\n"),
    "lines that end in CR LF, a byte order mark (Excel)": ("list.csv", "\ufeff1.png,a\r\n2.png,b\r\n"),
    "UTF-16 (PowerShell)": ("list.txt", "1.png\r\n2.png\r\n3.png\r\n".encode("utf-16")),
    "some labels empty, or -1": ("list.csv", "path,label\n1.png,1.0\n2.png,\n3.png,0.0\n4.png,-1\n"),
    "a first line of another form, `1.png cat` above `2.png 2`": ("list.txt", "1.png cat\n2.png 2\n3.png 10\n"),
    "a path that is not there, without a suffix, above others": ("list.txt", "no 1\n1.png 2\n2.png 10\n"),
    "pandas' columns without names, `0,1`": ("list.csv", "0,1\n1.png,2\n2.png,10\n3.png,2\n"),
    "a comment above the header": ("list.csv", "# of May\npath,label\n1.png,2\n2.png,10\n3.png,2\n"),
    "a path, a space and -1": ("list.txt", "1.png -1\n2.png 0\n3.png 1\n"),
    "NaN, nan, NULL, null, None, N/A, n/a, NA, <NA> or #N/A (pandas, Excel)": (
        "list.csv",
        "\n1.png,".join(["1.png,a", "b", "NaN", "nan", "NULL", "null", "None", "N/A", "n/a", "NA", "<NA>", "#N/A"]),
    ),
    "the first line `sep=;` (Excel)": ("list.csv", "sep=;\r\npath;label\r\n1.png;a, b\r\n2.png;c\r\n"),
    "the header `path,split,label`": ("list.csv", "path,split,label\n1.png,train,a\n2.png,train,b\n3.png,test,a\n"),
    "the header `path,Set`, of training, validation and test": (
        "list.csv",
        "path,Set\n1.png,Training\n2.png,Training\n3.png,Validation\n4.png,Test\n",
    ),
    "the header `path,fold,label`": ("list.csv", "path,fold,label\n1.png,0,a\n2.png,1,b\n3.png,2,a\n"),
    "labels that are no classes": ("list.csv", "path,label\n1.png,0.37\n2.png,1\n3.png,0.5\n"),
    "Latin-1": ("list.csv", "1.png,Gr\u00f6\u00dfe\n".encode("latin-1")),
    "a quote that does not end": ("list.csv", 'path,label\n"1.png,a\n2.png,b\n'),
    "no path that exists": ("list.csv", "path,label\nhttps://host/1.png,a\nhttps://host/2.png,b\n"),
    "a header alone": ("list.csv", "path,label\n"),
}
NAMES = {"info": {"features": {"label": {"names": ["ape", "bee", "cat"], "_type": "ClassLabel"}}}}
COLUMNS = {
    "whole numbers": [10, 2, 2],
    "whole numbers with names of classes (ClassLabel)": [2, 0, 2],
    "-1 for all (test sets of the Hub)": [-1, -1, -1],
    "null for all": pa.nulls(3),
    "64-bit numbers": [10**12, 10**12 + 1, 10**12],
    "whole numbers as floating-point, and NaN": [1.0, 0.0, float("nan")],
    "floating-point numbers such as 0.37": [0.37, 1.0, 2.0],
    "decimals": [decimal.Decimal("1.00"), decimal.Decimal("2.00"), None],
    "text": ["dog", "cat", ""],
    "bytes": [b"dog", b"cat", b"dog"],
    "truth values": [True, False, True],
    "dictionary": pa.array(["dog", "cat", "dog"]).dictionary_encode(),
    "dates or times": [datetime.datetime(2020, 1, day) for day in (1, 2, 1)],
    "lists": [[0, 1], [1], [2]],
    "structs": [{"name": "a"}, {"name": "b"}, {"name": "a"}],
}
SHARDS = {
    "no column `label`": {"a.parquet": {}},
    "`label` in one of two shards": {"a.parquet": {"label": [1, 0, 1]}, "b.parquet": {}},
    "numbers in one shard, the same as text in another": {
        "a.parquet": {"label": [1, 0, 1]},
        "b.parquet": {"label": ["1", "0", "1"]},
    },
    "images in `image`, and in another shard in `img`": {"a.parquet": {}, "b.parquet": {"rename": "img"}},
    "`label=a/0.parquet`, `label=b/0.parquet` (Hive)": {"label=a/0.parquet": {}, "label=b/0.parquet": {}},
    "`split=train/0.parquet`, `split=test/0.parquet`": {"split=train/0.parquet": {}, "split=test/0.parquet": {}},
    "`train-00000-of-00001.parquet`, `validation-00000-of-00001.parquet`": {
        "train-00000-of-00001.parquet": {},
        "validation-00000-of-00001.parquet": {},
    },
    "`data/train-0.parquet`, `data/val-0.parquet`, `data/test-0.parquet`": {
        "data/train-0.parquet": {},
        "data/val-0.parquet": {},
        "data/test-0.parquet": {},
    },
    "`default/train/0000.parquet`, `default/test/0000.parquet` (the Hub's converted branch)": {
        "default/train/0000.parquet": {},
        "default/test/0000.parquet": {},
    },
    "`one/train/0.parquet`, `two/train/0.parquet`": {"one/train/0.parquet": {}, "two/train/0.parquet": {}},
    "two columns of images": {"a.parquet": {"mask": [b"1", b"2", b"3"]}},
    "paths and no bytes": {"a.parquet": {"image": [{"bytes": None, "path": "1.png"}]}},
    "lists of images": {"a.parquet": {"image": [[b"1"], [b"2"], [b"3"]]}},
    "no rows": {"a.parquet": {"image": pa.array([], pa.binary())}},
}
OPTIONS = {"the same with `--data.label_column kind`": {"label_column": "kind"}}


def rows_of(heading):
    """The rows of the table below a heading: the text of the first cell, and the others."""
    text = DOCUMENT.read_text().partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {first: others for first, *others in rows[2:]}


def what_is_read(source, root, **options):
    """The cells of a row: training images, test images."""
    cells = []
    for split in ("train", "test"):
        try:
            images = open_source(DataConfig(str(source), workers=0, **options), split=split)
        except ValueError as error:
            message = re.sub(r"\s+", " ", str(error).replace(f"{root}/", "").replace(str(root), "DIR"))
            cells.append("none" if "has no test split" in message else f"refused: {message}")
            continue
        labels = [images.label(index) for index in range(len(images))]
        counts = [f"{labels.count(number)} of {name}" for number, name in enumerate(images.classes or ())]
        unknown = [f"{labels.count(-1)} without label"] if -1 in labels else []
        where = "" if images.name in (str(root), str(source)) else f"{images.name.removeprefix(f'{root}/')}: "
        cells.append(where + ", ".join([*counts, *unknown]))
    return [cells[0], "the same" if cells[1] == cells[0] else cells[1]]


@pytest.mark.parametrize("layout", FOLDERS)
def test_folders_are_read_as_the_document_says(layout, tmp_path, make):
    make.write_images(tmp_path, re.findall("`(.*?)`", layout), size=4)  # pictures all, but .txt is not looked into
    assert what_is_read(tmp_path, tmp_path) == rows_of("Folders")[layout]


@pytest.mark.parametrize("layout", LISTS)
def test_lists_are_read_as_the_document_says(layout, tmp_path, make):
    make.write_images(tmp_path, ["1.png", "2.png", "3.png", "4.png"], size=4)
    name, content = LISTS[layout]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert what_is_read(tmp_path / name, tmp_path, **OPTIONS.get(layout, {})) == rows_of("Lists")[layout]


def write_shard(path, make, columns, metadata=None):
    image = [{"bytes": make.encoded(make.noise(4, 4, 3, seed=seed)), "path": None} for seed in range(3)]
    columns = {"image": image} | columns
    if "rename" in columns:
        columns = {columns["rename"]: image}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    pq.write_table(table.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize("layout", COLUMNS)
def test_label_columns_are_read_as_the_document_says(layout, tmp_path, make):
    metadata = {"huggingface": json.dumps(NAMES)} if "ClassLabel" in layout else None
    write_shard(tmp_path / "a.parquet", make, {"label": COLUMNS[layout]}, metadata)
    training, _ = what_is_read(tmp_path / "a.parquet", tmp_path)
    assert [training] == rows_of("Label columns of parquet")[layout]


@pytest.mark.parametrize("layout", SHARDS)
def test_shards_are_read_as_the_document_says(layout, tmp_path, make):
    for name, columns in SHARDS[layout].items():
        write_shard(tmp_path / name, make, columns)
    assert what_is_read(tmp_path, tmp_path) == rows_of("Shards of parquet")[layout]


def test_the_document_has_no_other_rows():
    tables = {"Folders": FOLDERS, "Lists": LISTS, "Label columns of parquet": COLUMNS, "Shards of parquet": SHARDS}
    for heading, rows in tables.items():
        assert list(rows_of(heading)) == list(rows)


def test_the_document_has_the_named_sets():
    rows = rows_of("Named sets")
    assert list(rows) == [f"`{name}`" for name in TRANSFER_SETS]
    for known, row in zip(TRANSFER_SETS.values(), rows.values(), strict=True):
        numbers = [known.classes, known.train, known.validation, known.test]
        assert row[:5] == [*(f"{number:,}" if number else "-" for number in numbers), known.metric]
