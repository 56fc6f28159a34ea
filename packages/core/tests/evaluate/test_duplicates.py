import json
import os
import shutil

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image, ImageOps
from pyarrow import BufferOutputStream, table

from ssl_core.data import DataConfig, open_encoded
from ssl_core.evaluate import find_duplicates

QUIET = {"progress": False}


def names(paths):
    return [path.rpartition("images/")[2] for path in paths]


def groups(result):
    return {
        names([group["keep"]])[0]: [(*names([each["image"]]), each["by"]) for each in group["leave"]]
        for group in result["groups"]
    }


@pytest.fixture
def images(run, tmp_path):
    """The run's fifteen training images, in three classes, beside nine of a test split."""
    return tmp_path / "images" / "train"


def data_of(folder, **settings):
    return DataConfig(source=str(folder), workers=0, **settings)


def kept(result):
    return open_encoded(DataConfig(source=result["kept"], workers=0))


def test_same_bytes_and_same_pixels_are_found_and_one_of_each_is_listed(images, tmp_path, capsys):
    shutil.copy(images / "dark/0.png", images / "dark/9 copy, of 0.png")
    Image.open(images / "gray/1.png").save(images / "gray/1.bmp")
    result = find_duplicates(data_of(images), out=str(tmp_path / "out"), **QUIET)
    assert groups(result) == {
        "train/dark/0.png": [("train/dark/9 copy, of 0.png", "bytes")],
        "train/gray/1.bmp": [("train/gray/1.png", "pixels")],
    }
    assert result == json.loads((tmp_path / "out/duplicates.json").read_text())
    before, after = open_encoded(data_of(images)), kept(result)
    assert [after.classes, after.classes[after.label(0)]] == [before.classes, "bright"]
    remaining = set(range(17)) - {names_of(before).index("9 copy, of 0.png"), names_of(before).index("1.png", 12)}
    assert [before.identifier(index) for index in sorted(remaining)] == [after.identifier(i) for i in range(15)]
    assert after.labels.tolist() == before.labels[sorted(remaining)].tolist()
    printed = capsys.readouterr().out
    assert "near        not looked for: --model RUN" in printed
    assert f"kept        15 images: --data.source {tmp_path}/out/kept.csv" in printed


def test_the_test_split_of_the_source_is_named_beside_the_list_which_has_none(images, tmp_path, capsys):
    result = find_duplicates(data_of(images.parent), out=str(tmp_path / "my out"), **QUIET)
    assert f"--data.source '{tmp_path}/my out/kept.csv' --data.test_source {images.parent}\n" in capsys.readouterr().out
    cleaned = data_of(result["kept"], test_source=result["kept_test"])
    assert names_of(open_encoded(cleaned, "test")) == names_of(open_encoded(data_of(images.parent), "test"))
    find_duplicates(data_of(images), out=str(tmp_path / "out"), **QUIET)
    assert "test_source" not in capsys.readouterr().out


def names_of(source):
    return [source.identifier(index).rpartition("/")[2] for index in range(len(source))]


def test_pixels_of_other_shape_or_type_are_not_the_same(tmp_path):
    for name, size in (("wide", (8, 4)), ("high", (4, 8)), ("small", (4, 4))):
        Image.new("L", size).save(tmp_path / f"{name}.png")
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    assert find_duplicates(data_of(tmp_path), out=str(tmp_path / "out"), **QUIET)["groups"] == []


def test_unreadable_images_are_left_out_and_named(images, tmp_path, capsys):
    (images / "dark/0.png").write_bytes(b"")
    result = find_duplicates(data_of(images), out=str(tmp_path / "out"), **QUIET)
    assert [each.endswith("dark/0.png: zero bytes") for each in result["broken"]] == [True]
    assert (result["num_images"], len(kept(result))) == (14, 14)
    assert "dark/0.png: zero bytes" in capsys.readouterr().out


def test_nearly_the_same_and_mirrored_images_are_found_by_features_and_the_largest_is_kept(
    run, images, tmp_path, capsys
):
    smooth = Image.linear_gradient("L").convert("RGB")
    for name, side in (("a", 16), ("b", 64), ("c", 16)):
        smooth.resize((side, side)).save(images / f"dark/{name}.png")
    ImageOps.mirror(Image.open(images / "gray/2.png")).save(images / "gray/mirrored.png")
    out = str(tmp_path / "out")
    result = find_duplicates(data_of(images), model=str(run), threshold=0.99, out=out, **QUIET)
    found = groups(result)
    assert found["train/dark/b.png"] == [("train/dark/a.png", "features"), ("train/dark/c.png", "features")]
    assert found["train/gray/2.png"] == [("train/gray/mirrored.png", "features")]
    assert len(kept(result)) == 19 - 3
    assert len(result["outliers"]) == 18
    assert "near        3 left out, with a cosine of 0.990 or more\n            given" in capsys.readouterr().out


def test_test_images_in_training_are_leaks_by_three_kinds_and_are_not_kept(run, images, tmp_path, capsys):
    test = images.parent / "val"
    shutil.copy(images / "dark/0.png", test / "dark/same.png")
    Image.open(images / "gray/1.png").save(test / "gray/same.bmp")
    ImageOps.mirror(Image.open(images / "gray/2.png")).save(test / "gray/mirrored.png")
    result = find_duplicates(data_of(images), model=str(run), against=str(test), out=str(tmp_path / "out"), **QUIET)
    assert [(*names([leak["test"], leak["train"]]), leak["by"]) for leak in result["leaks"]] == [
        ("val/dark/same.png", "train/dark/0.png", "bytes"),
        ("val/gray/same.bmp", "train/gray/1.png", "pixels"),
        ("val/gray/mirrored.png", "train/gray/2.png", "features"),
    ]
    assert len(kept(result)) == result["num_kept"] == 12
    assert (
        "leaks       3 of 12 test images are in training: 1 by bytes, 1 by pixels, 1 by features"
        in capsys.readouterr().out
    )


def test_the_test_split_of_the_source_itself_may_be_compared_with_it(images, tmp_path):
    shutil.copy(images / "dark/0.png", images.parent / "val/dark/same.png")
    result = find_duplicates(data_of(images.parent), against=str(images.parent), out=str(tmp_path / "out"), **QUIET)
    assert (result["num_images"], result["num_test"], len(result["leaks"])) == (15, 10, 1)


def test_expected_false_negatives_are_those_of_the_runs_queue(run, images, tmp_path, capsys):
    shutil.copy(images / "dark/0.png", images / "dark/same.png")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["method"] = {"base": {"mocov2": {"queue": {"length": 8}}}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    result = find_duplicates(data_of(images), model=str(run), out=str(tmp_path / "out"), **QUIET)
    assert [result["queue_length"], result["false_negatives"], result["own_keys"]] == [8, 8 / 16 * 2 / 16, 1 / 8]
    assert "of 8 keys 0.0625 are of a query's duplicates and 0.125 of its own image" in capsys.readouterr().out


def write_shard(path, rows):
    pq.write_table(
        table({"image": [row for row, _ in rows], "label": [label for _, label in rows]}), path, row_group_size=2
    )


def encoded(seed):
    stream = BufferOutputStream()
    pixels = torch.randint(256, (4, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(stream, format="PNG")
    return stream.getvalue().to_pybytes()


def test_of_parquet_the_rows_that_are_kept_are_shards_again(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "train-0.parquet", [(encoded(seed), seed % 3) for seed in (0, 1, 1, 2, 3)])
    write_shard(folder / "train-1.parquet", [(encoded(seed), seed % 3) for seed in (4, 0)])
    write_shard(folder / "train-2.parquet", [(encoded(0), 0)])
    result = find_duplicates(data_of(folder), out=str(tmp_path / "out"), **QUIET)
    assert result["kept"] == str(tmp_path / "out/kept")
    source = kept(result)
    assert source.labels.tolist() == [0, 1, 2, 0, 1]
    assert [source.identifier(index) for index in (0, 4)] == ["train-0.parquet:0", "train-1.parquet:0"]
    assert source.encoded(3) == encoded(3)
    with pytest.raises(FileExistsError, match="is not empty, and what it holds would be read as well"):
        find_duplicates(data_of(folder), out=str(tmp_path / "out"), **QUIET)


def test_a_path_that_no_list_can_hold_is_refused_before_images_are_read(images, tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_core.evaluate.duplicates._readable", lambda *_: pytest.fail("images are read"))
    shutil.copy(images / "dark/0.png", os.fsencode(images) + b"/dark/caf\xe9.png")
    with pytest.raises(ValueError, match="is no UTF-8, which a list cannot hold: rename it"):
        find_duplicates(data_of(images), out=str(tmp_path / "out"), **QUIET)


def test_of_images_without_files_there_is_no_list(toy_source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ssl_core.evaluate.duplicates.open_encoded", lambda *_: toy_source([0, 0, 1]))
    result = find_duplicates(DataConfig(workers=0), out=str(tmp_path / "out"), **QUIET)
    assert "kept" not in result
    assert "3 images, which have no files to list" in capsys.readouterr().out


def test_where_all_images_are_leaks_there_is_no_list(images, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "copied")
    result = find_duplicates(data_of(images), against=str(tmp_path / "copied"), out=str(tmp_path / "out"), **QUIET)
    assert ("kept" in result, result["num_kept"], len(result["leaks"])) == (False, 0, 15)
    assert "kept        0 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.9}, "threshold 0.9 is for features"),
        ({"model": "run", "threshold": 1.5}, "threshold must be a cosine above 0 and at most 1, got 1.5"),
        ({"model": "nowhere"}, "'nowhere' does not exist"),
        ({"against": "images/train"}, "is the source itself"),
        ({"against": "images/../images/train"}, "is the source itself"),
        ({"against": "elsewhere"}, "'elsewhere' does not exist"),
        ({"out": "images/train/dark/0.png"}, "cannot write"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_before_images_are_read(run, images, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ssl_core.evaluate.duplicates._readable", lambda *_: pytest.fail("images are read"))
    with pytest.raises((ValueError, OSError), match=message):
        find_duplicates(data_of(images), **QUIET, **settings)


def test_one_image_has_nothing_to_be_compared_with(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="is one image, and there is nothing to compare it with"):
        find_duplicates(data_of(tmp_path), out=str(tmp_path / "out"), **QUIET)


def test_images_that_are_all_the_same_are_one_group(run, tmp_path, capsys):
    (tmp_path / "equal").mkdir()
    for name in "ab":
        Image.new("RGB", (16, 16)).save(tmp_path / f"equal/{name}.bmp")
    result = find_duplicates(data_of(tmp_path / "equal"), model=str(run), out=str(tmp_path / "out"), **QUIET)
    assert result["num_kept"] == 1
    assert "not looked for" not in capsys.readouterr().out
