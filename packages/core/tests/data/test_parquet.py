import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuzz_images import varint, with_footer_length

from ssl_core.data import DataConfig, LazyImages, identity, open_encoded, open_source

CIFAR = Path(__file__).parents[5] / "shared/data/cifar10"


def config(source, **options):
    return DataConfig(source=str(source), workers=0, **options)


def write_shard(path, images, *, column="img", struct=True, labels=None, names=None, row_group_size=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [{"bytes": image, "path": None} for image in images] if struct else images
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    columns = {column: pa.array(values, kind)}
    if labels is not None:
        columns["label"] = pa.array(labels)
    table = pa.table(columns)
    if names is not None:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=row_group_size)


@pytest.fixture
def pngs(make):
    return [make.encoded(make.noise(4, 6, 3, seed=seed)) for seed in range(7)]


def pixels(make, seed):
    return torch.from_numpy(make.noise(4, 6, 3, seed=seed)).permute(2, 0, 1)


@pytest.mark.parametrize("memory_gib", [4.0, 0.0], ids=["held", "by row group"])
@pytest.mark.parametrize("struct", [True, False], ids=["struct", "bytes"])
def test_a_shard_gives_its_images_in_order(tmp_path, make, pngs, struct, memory_gib):
    write_shard(tmp_path / "a.parquet", pngs, struct=struct, row_group_size=3)
    source = open_source(config(tmp_path / "a.parquet", memory_gib=memory_gib))
    assert isinstance(source, LazyImages) == (memory_gib == 0)
    for index in (6, 0, 3, 2):
        assert torch.equal(source.image(index), pixels(make, index))
    assert source.identifier(4) == "a.parquet:4"
    assert source.classes is None


def test_shards_are_known_by_name_size_and_rows(tmp_path, pngs):
    def found(source, **options):
        return identity(open_encoded(config(source, **options)))

    for name, images in (("a", pngs), ("b", pngs), ("c", pngs[:6])):
        write_shard(tmp_path / name / "train.parquet", images)
    first = found(tmp_path / "a")
    assert first["images"] == 7
    assert found(tmp_path / "b") == first != found(tmp_path / "c")
    assert found(tmp_path / "a", holdout=0.3)["digest"] != first["digest"]
    (tmp_path / "a" / "train.parquet").rename(tmp_path / "a" / "other.parquet")
    assert found(tmp_path / "a") != first


def test_class_names_come_from_hugging_face_metadata(tmp_path, pngs):
    write_shard(tmp_path / "a.parquet", pngs[:2], labels=[2, None], names=["ape", "bee", "cat"])
    source = open_source(config(tmp_path / "a.parquet"))
    assert source.classes == ("ape", "bee", "cat")
    assert [source.label(index) for index in range(2)] == [2, -1]


def test_labels_may_be_names_or_plain_numbers(tmp_path, pngs):
    write_shard(tmp_path / "names.parquet", pngs[:3], labels=["dog", "cat", "dog"])
    source = open_source(config(tmp_path / "names.parquet"))
    assert source.classes == ("cat", "dog")
    assert [source.label(index) for index in range(3)] == [1, 0, 1]
    write_shard(tmp_path / "numbers.parquet", pngs[:3], labels=[0, 3, 1])
    assert open_source(config(tmp_path / "numbers.parquet")).classes == ("0", "1", "3")


def test_a_folder_of_shards_has_its_natural_splits(tmp_path, make, pngs):
    write_shard(tmp_path / "data/train-00001-of-00002.parquet", pngs[2:4])
    write_shard(tmp_path / "data/train-00000-of-00002.parquet", pngs[:2])
    write_shard(tmp_path / "data/test-00000-of-00001.parquet", pngs[4:])
    train, test = open_source(config(tmp_path)), open_source(config(tmp_path), split="test")
    assert (len(train), len(test)) == (4, 3)
    assert torch.equal(train.image(2), pixels(make, 2))
    assert torch.equal(test.image(0), pixels(make, 4))


def test_some_training_shards_have_the_test_shards_beside_them(tmp_path, pngs):
    write_shard(tmp_path / "train-0.parquet", pngs[:2])
    write_shard(tmp_path / "train-1.parquet", pngs[2:4])
    write_shard(tmp_path / "validation-0.parquet", pngs[4:])
    one = config(tmp_path / "train-1.parquet")
    pattern = config(tmp_path / "train-*.parquet")
    several = DataConfig(source=[str(tmp_path / f"train-{i}.parquet") for i in (0, 1)], workers=0)
    assert [len(open_source(each)) for each in (one, pattern, several)] == [2, 4, 4]
    assert [len(open_source(each, split="test")) for each in (one, pattern, several)] == [3, 3, 3]


def test_without_a_test_split_the_error_says_what_to_set(tmp_path, pngs):
    write_shard(tmp_path / "a.parquet", pngs)
    with pytest.raises(ValueError, match=r"no test split; give data\.test_source, or .* data\.holdout"):
        open_source(config(tmp_path / "a.parquet"), split="test")


def test_columns_are_configurable_and_a_wrong_one_is_named(tmp_path, pngs):
    table = pa.table({"left": pngs[:2], "right": pngs[2:4], "kind": [1, 0]})
    pq.write_table(table, tmp_path / "a.parquet")
    right = config(tmp_path / "a.parquet", image_column="right", label_column="kind")
    source = open_source(right)
    assert source.label(0) == 1
    assert not torch.equal(source.image(0), open_source(config(tmp_path / "a.parquet", image_column="left")).image(0))
    for column in (None, "kind"):
        with pytest.raises(
            ValueError,
            match=r"such columns: \['left', 'right'\], all columns: left \(binary\), right \(binary\), kind \(int64\)",
        ):
            open_source(config(tmp_path / "a.parquet", image_column=column))


def test_rows_without_bytes_and_broken_bytes_are_broken_images(tmp_path, pngs):
    write_shard(tmp_path / "a.parquet", [*pngs, None, b"", pngs[0][:50]])
    source = open_source(config(tmp_path / "a.parquet", broken_limit=0.5))
    assert len(source) == 7
    assert [line.partition(": ")[0] for line in source.broken] == ["a.parquet:7", "a.parquet:8", "a.parquet:9"]
    assert "no bytes in this row" in source.broken[0]


def test_shards_of_one_name_in_several_folders_are_told_apart(tmp_path, pngs):
    for name in ("label=a%2Fb", "label=c", "label=__HIVE_DEFAULT_PARTITION__"):
        write_shard(tmp_path / name / "train-0.parquet", pngs[:1])
    source = open_source(config(tmp_path))
    assert [source.identifier(index) for index in range(3)] == [
        "label=__HIVE_DEFAULT_PARTITION__/train-0.parquet:0",
        "label=a%2Fb/train-0.parquet:0",
        "label=c/train-0.parquet:0",
    ]
    assert source.classes == ("a/b", "c")
    assert [source.label(index) for index in range(3)] == [-1, 0, 1]


@pytest.mark.parametrize("memory_gib", [4.0, 0.0], ids=["held", "by row group"])
def test_the_images_of_a_damaged_row_group_are_broken(tmp_path, make, pngs, memory_gib):
    write_shard(tmp_path / "a.parquet", pngs, row_group_size=3)
    place = pq.read_metadata(tmp_path / "a.parquet").row_group(1).column(0)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    start = place.dictionary_page_offset or place.data_page_offset
    data[start : start + 30] = b"\xff" * 30
    (tmp_path / "a.parquet").write_bytes(data)
    source = open_source(config(tmp_path / "a.parquet", memory_gib=memory_gib, broken_limit=0.5))
    images = [source.image(index) for index in range(len(source))]
    assert torch.equal(images[0], pixels(make, 0))
    assert torch.equal(images[-1], pixels(make, 6))
    assert [line.partition(": ")[0] for line in source.broken] == [f"a.parquet:{row}" for row in (3, 4, 5)]


@pytest.mark.parametrize("memory_gib", [4.0, 0.0], ids=["held", "by row group"])
def test_the_images_of_a_row_group_that_lacks_rows_are_broken(tmp_path, pngs, memory_gib):
    write_shard(tmp_path / "a.parquet", pngs)
    data = (tmp_path / "a.parquet").read_bytes()
    # In the footer, each number of rows: 7 becomes 8 (Thrift's i64, which holds the double).
    (tmp_path / "a.parquet").write_bytes(data.replace(b"\x16\x0e", b"\x16\x10"))
    with pytest.raises(ValueError, match=r"a\.parquet:7: 7 rows in a row group of 8"):
        open_source(config(tmp_path / "a.parquet", memory_gib=memory_gib, channels=3)).image(7)


@pytest.mark.parametrize("place", range(3), ids=["of the file", "of images", "of a row group"])
def test_numbers_of_rows_that_contradict_each_other_ask_for_no_memory(tmp_path, pngs, place):
    write_shard(tmp_path / "a.parquet", pngs, struct=False)
    data = (tmp_path / "a.parquet").read_bytes()
    parts = data.split(b"\x16\x0e")  # as above
    assert len(parts) == 4
    numbers = [b"\x16\x0e"] * 3
    numbers[place] = b"\x16" + varint(2**40)
    damaged = b"".join(part + number for part, number in zip(parts, [*numbers, b""], strict=True))
    footer_bytes = int.from_bytes(data[-8:-4], "little") + len(damaged) - len(data)
    (tmp_path / "a.parquet").write_bytes(with_footer_length(damaged, footer_bytes))
    with pytest.raises(ValueError, match=r"cannot be read as parquet: \d+ images in .*\d+ rows"):
        open_source(config(tmp_path / "a.parquet"))


@pytest.mark.parametrize("footer", [b"PAR1 or not", b"PAR1" + bytes(9) + b"\x09\0\0\0PAR1"], ids=["none", "damaged"])
def test_a_file_that_is_not_parquet_is_an_error_of_one_line(tmp_path, footer):
    (tmp_path / "a.parquet").write_bytes(footer)
    with pytest.raises(ValueError, match=r"cannot be read as parquet: [^\n]+\Z"):
        open_source(config(tmp_path / "a.parquet"))


def test_a_pattern_without_a_match_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file matches"):
        open_source(config(tmp_path / "train-*.parquet"))


def test_mixed_kinds_are_refused(tmp_path, make, pngs):
    write_shard(tmp_path / "a.parquet", pngs)
    make.write_images(tmp_path / "folder", ["1.png"])
    mixed = DataConfig(source=[str(tmp_path / "a.parquet"), str(tmp_path / "folder")], workers=0)
    with pytest.raises(ValueError, match="mixes folder and parquet"):
        open_source(mixed)


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason=f"{CIFAR} is not there")
def test_cifar10_in_parquet_is_read():
    test = open_source(config(CIFAR), split="test")
    assert test.images.shape == (10000, 3, 32, 32)
    assert test.classes[0] == "airplane"
    assert np.bincount(test.labels).tolist() == [1000] * 10
