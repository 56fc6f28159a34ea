import tarfile

import pytest
import torch

from ssl_core import cli
from ssl_core.data import DataConfig, identity, open_encoded, open_source, pack, tar_index
from ssl_core.data.chosen import chosen_source, write_chosen
from ssl_core.size import bytes_of


def config(source, **options):
    return DataConfig(source=str(source), **{"workers": 0, **options})


def contents(images):
    return [images.encoded(index) for index in range(len(images))]


@pytest.fixture
def photos(tmp_path, make):
    make.write_images(tmp_path / "photos", ["cat/a.1.png", "cat/a_1.png", "dog/2.PNG", "dog/3.png", "4.png"])
    (tmp_path / "photos" / "dog" / "5").write_bytes((tmp_path / "photos" / "4.png").read_bytes())
    return tmp_path / "photos"


@pytest.mark.parametrize("shard_size", ["512MB", "1kB"])
def test_a_folder_is_packed_as_it_is_and_indexed(tmp_path, photos, shard_size, monkeypatch):
    packed = pack(config(photos), str(tmp_path / "shards"), shard_size=shard_size)
    assert packed["train"].num_images == 6
    assert packed["train"].num_shards == (1 if shard_size == "512MB" else 6)
    monkeypatch.setattr(tar_index, "_scan", None)  # which is done
    before, after = open_encoded(config(photos)), open_encoded(config(tmp_path / "shards"))
    assert contents(before) == contents(after)
    assert torch.equal(before.labels, after.labels)
    assert before.classes == after.classes == ("cat", "dog")
    names = ["4.png", "cat/a_1.png", "cat/a_1-2.png", "dog/2.PNG", "dog/3.png", "dog/5.png"]
    assert [after.member(index) for index in range(6)] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "shards"]


def test_shards_are_as_large_as_they_may_be_and_no_larger(tmp_path, make):
    make.write_images(tmp_path / "photos", [f"{index % 2}/{index:02d}.png" for index in range(40)])
    pack(config(tmp_path / "photos"), str(tmp_path / "shards"), shard_size="30kB")
    shards = sorted((tmp_path / "shards").glob("*.tar"))
    assert {shard.stat().st_size for shard in shards[:-1]} == {20480}  # of records of 10,240 bytes, two
    assert contents(open_encoded(config(tmp_path / "shards"))) == contents(open_encoded(config(tmp_path / "photos")))
    with tarfile.open(shards[0]) as tar:
        assert [member.name for member in tar.getmembers()][:2] == ["0/00.png", "0/00.cls"]
        assert tar.extractfile("0/00.cls").read() == b"0"


def test_the_images_of_a_packed_folder_are_known_to_be_the_same(tmp_path, make):
    make.write_images(tmp_path / "photos", ["train/cat/1.png", "train/dog/2.png", "val/dog/3.png", "val/cow/4.png"])
    packed = pack(config(tmp_path / "photos"), str(tmp_path / "shards"))
    assert [*packed] == ["train", "test"]
    for split in ("train", "test"):
        before, after = (open_encoded(config(tmp_path / name), split) for name in ("photos", "shards"))
        assert identity(before, before.labels) == identity(after, after.labels)
        assert before.classes == after.classes
    assert before.classes == ("cat", "dog", "cow")


def test_named_sets_lists_parquet_and_tars_are_packed(tmp_path, photos, make):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pack(config("digits"), str(tmp_path / "digits"))
    for split in ("train", "test"):
        before, after = (open_source(config(source), split=split) for source in ("digits", tmp_path / "digits"))
        assert before.classes == after.classes
        assert torch.equal(before.images, after.images)
        assert torch.equal(before.labels, after.labels)
    pq.write_table(pa.table({"image": [make.encoded(make.noise(4, 4, 3)), make.encoded(make.noise(4, 4, 3, seed=1))]}),
                   tmp_path / "a.parquet")  # fmt: skip
    pack(config(tmp_path / "a.parquet"), str(tmp_path / "from_parquet"))
    assert contents(open_encoded(config(tmp_path / "from_parquet"))) == contents(
        open_encoded(config(tmp_path / "a.parquet"))
    )
    (tmp_path / "photos.txt").write_text("photos/4.png\nphotos/cat/a.1.png\nphotos/4.png")
    pack(config(tmp_path / "photos.txt"), str(tmp_path / "from_list"))
    again = pack(config(tmp_path / "from_list"), str(tmp_path / "from_tars"))
    assert again["train"].num_images == 3
    lists = [open_encoded(config(tmp_path / name)) for name in ("photos.txt", "from_list", "from_tars")]
    assert contents(lists[0]) == contents(lists[1]) == contents(lists[2])
    assert lists[1].digest() == lists[2].digest()


def test_broken_images_are_listed_and_not_packed(tmp_path, photos, capsys):
    (photos / "cat" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (photos / "dog" / "no.jpg").write_bytes(b"")
    cli.main(["data", "pack", str(photos), str(tmp_path / "shards"), "--data.workers", "0"])
    printed = capsys.readouterr().out
    assert "wrote 6 images (train) in 1 shards" in printed
    assert "left out 2 broken images" in printed
    listed = (tmp_path / "shards" / "broken.txt").read_text().splitlines()
    assert [line.partition(": ")[0] for line in listed] == [
        str(photos / "cat" / "bad.png"),
        str(photos / "dog" / "no.jpg"),
    ]
    assert len(open_encoded(config(tmp_path / "shards"))) == 6
    for path in photos.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of"):
        pack(config(photos), str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_packed_is_refused_before_anything_is_read_or_written(tmp_path, photos, monkeypatch):
    def refused(source=photos, out=tmp_path / "shards", **options):
        with pytest.raises((ValueError, OSError)) as error:
            pack(config(source), str(out), **options)
        return str(error.value)

    assert "is there already, and is no empty folder" in refused("nowhere", out=photos)
    assert "s3://x is an address, and shards are written to a folder of this machine" in refused(out="s3://x")
    assert "there is no folder" in refused("nowhere", out=tmp_path / "no" / "shards")
    assert "shard_size 'many' is no size: give a number with a unit, such as 512MB" in refused(
        "nowhere", shard_size="many"
    )
    assert "shard_size '0MB' is no size" in refused("nowhere", shard_size="0MB")
    for name in ("two\nlines", "two\u2028lines", " space"):
        (photos / name).mkdir()
        (photos / "4.png").rename(photos / name / "4.png")
        assert "cannot be a line of classes.txt" in refused()
        (photos / name / "4.png").rename(photos / "4.png")
        (photos / name).rmdir()

    def full(*_):
        raise OSError(28, "No space left")

    for step in ("close", "addfile"):  # a small tar is written when it is closed, and a close may follow a failure
        monkeypatch.setattr(tarfile.TarFile, step, full)
        assert refused() == f"cannot write {tmp_path / 'shards.part' / '000000.tar'} (No space left)"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_sizes_have_units():
    assert [bytes_of(text) for text in ("7", "512MB", "1 GiB", "1.5kB", "2TB")] == [
        7,
        512 * 10**6,
        2**30,
        1500,
        2 * 10**12,
    ]


def test_chosen_images_of_tars_become_tars(tmp_path, photos):
    pack(config(photos), str(tmp_path / "shards"))
    images = open_encoded(config(tmp_path / "shards"))
    path = chosen_source(images, tmp_path / "chosen")
    write_chosen(images, torch.tensor([4, 1]), path)
    chosen = open_encoded(config(path))
    assert contents(chosen) == [images.encoded(1), images.encoded(4)]
    assert [chosen.classes[label] for label in chosen.labels] == ["cat", "dog"]
    with pytest.raises(FileExistsError, match="is not empty"):
        chosen_source(images, tmp_path / "chosen")
