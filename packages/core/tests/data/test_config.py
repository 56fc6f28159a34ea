import logging
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ssl_core.data import (
    DataConfig,
    LazyImages,
    MemoryImages,
    identity,
    open_encoded,
    open_source,
    without_foreign_classes,
)


def config(source, **options):
    return DataConfig(source=str(source), workers=0, **options)


def identifiers(source):
    return [source.identifier(index) for index in range(len(source))]


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split 'valid' is none of train, test, labelled"):
        open_source(DataConfig(), split="valid")


def test_a_holdout_parts_the_images_and_does_not_change(tmp_path, make):
    make.write_images(tmp_path, [f"{index % 2}/1{index:02}.png" for index in range(20)])
    held_out = config(tmp_path, holdout=0.25)
    train, test = open_source(held_out), open_source(held_out, split="test")
    assert (len(train), len(test)) == (15, 5)
    assert sorted(identifiers(train) + identifiers(test)) == identifiers(open_source(config(tmp_path)))
    assert identifiers(open_source(held_out, split="test")) == identifiers(test)
    assert identifiers(test) != identifiers(open_source(config(tmp_path)))[:5]
    assert [test.label(index) for index in range(5)] == [int(name[-9]) for name in identifiers(test)]


@pytest.fixture
def large_jpegs(tmp_path, make):
    """The same JPEG of 80 x 100 pixels as a folder and as a shard."""
    data = make.encoded(make.noise(80, 100, 3), "JPEG")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.jpg").write_bytes(data)
    pq.write_table(pa.table({"image": [data]}), tmp_path / "shard.parquet")
    return tmp_path


@pytest.mark.parametrize("source", ["folder", "shard.parquet"])
@pytest.mark.parametrize("memory_gib", [4.0, 0.0], ids=["in memory", "lazy"])
def test_a_large_jpeg_is_decoded_as_small_as_may_be(large_jpegs, source, memory_gib):
    def shape(at_least, **options):
        opened = open_source(config(large_jpegs / source, memory_gib=memory_gib, **options), at_least=at_least)
        return tuple(opened.image(0).shape)

    assert shape(20) == (3, 20, 25)
    assert shape(21) == (3, 40, 50)
    assert shape(None) == (3, 80, 100)
    assert shape(20, scaled_decode=False) == (3, 80, 100)


def test_smaller_images_take_less_memory(large_jpegs):
    # 80 * 100 * 3 bytes = 2.2e-5 GiB; an eighth of each side is a 64th of that.
    settings = config(large_jpegs / "folder", memory_gib=1e-6)
    assert isinstance(open_source(settings), LazyImages)
    assert isinstance(open_source(settings, at_least=10), MemoryImages)


def test_a_holdout_of_nothing_or_everything_is_refused(tmp_path, make):
    make.write_images(tmp_path, ["1.png", "2.png"])
    for fraction in (0.0, 0.1, 0.9, 1.5):
        with pytest.raises(ValueError, match="leaves no test or no training image"):
            open_source(config(tmp_path, holdout=fraction), split="test")


def test_a_holdout_beside_another_test_split_is_refused(tmp_path, make):
    make.write_images(tmp_path, ["train/1.png", "val/2.png"])
    with pytest.raises(ValueError, match="there already is a test split"):
        open_source(config(tmp_path, holdout=0.5))
    with pytest.raises(ValueError, match="there already is a test split"):
        open_source(config(tmp_path / "train", holdout=0.5, test_source=str(tmp_path / "val")))


def test_a_test_source_has_its_labels_in_the_order_of_the_training_classes(tmp_path, make):
    make.write_images(tmp_path / "a", ["cat/1.png", "dog/2.png", "eel/3.png"])
    make.write_images(tmp_path / "b", ["eel/4.png", "dog/5.png"])
    test = open_source(config(tmp_path / "a", test_source=str(tmp_path / "b")), split="test")
    assert test.classes == ("cat", "dog", "eel")
    assert [test.label(index) for index in range(2)] == [1, 2]


def test_classes_that_training_images_do_not_have_come_last(tmp_path, make):
    make.write_images(tmp_path / "a", ["cat/1.png", "dog/2.png"])
    make.write_images(tmp_path / "b", ["ant/1.png", "cat/2.png"])
    test = open_source(config(tmp_path / "a", test_source=str(tmp_path / "b")), split="test")
    assert test.classes == ("cat", "dog", "ant")
    assert [test.label(index) for index in range(2)] == [2, 0]


def test_an_unlabelled_source_takes_the_classes_of_its_test_source(tmp_path, make):
    make.write_images(tmp_path / "a", ["1.png", "2.png"])
    make.write_images(tmp_path / "b", ["cat/1.png", "fox/2.png"])
    test = open_source(config(tmp_path / "a", test_source=str(tmp_path / "b")), split="test")
    assert test.classes == ("cat", "fox")


def test_relative_paths_start_at_root(tmp_path, make):
    make.write_images(tmp_path / "photos", ["1.png"])
    assert len(open_source(config("photos", root=str(tmp_path)))) == 1


def test_the_number_of_channels_is_the_most_among_the_images_and_is_said(tmp_path, make, caplog):
    (tmp_path / "1.png").write_bytes(make.encoded(make.noise(4, 4)))
    (tmp_path / "2.png").write_bytes(make.encoded(make.noise(4, 4, 3)))
    with caplog.at_level(logging.INFO):
        source = open_source(config(tmp_path))
    assert {len(source.image(index)) for index in range(2)} == {3}
    assert "images of 1 and 3 channels; all are read with 3" in caplog.text
    assert {len(open_source(config(tmp_path, channels=1)).image(index)) for index in range(2)} == {1}


def test_test_images_have_the_channels_of_the_training_images(tmp_path, make):
    make.write_images(tmp_path, ["train/1.png"])
    (tmp_path / "val").mkdir()
    (tmp_path / "val/2.png").write_bytes(make.encoded(make.noise(4, 4)))
    assert open_source(config(tmp_path), split="test").image(0).shape == (3, 4, 4)


def test_many_channels_are_read_from_npy(tmp_path, make):
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", make.noise(12, 20, 20, seed=index, dtype=np.uint16))
    source = open_source(config(tmp_path))
    assert source.images.shape == (3, 12, 20, 20)
    assert source.images.dtype == torch.uint16


def test_images_whose_channels_cannot_be_made_alike_are_refused(tmp_path, make):
    make.write_images(tmp_path, ["1.png"])
    np.save(tmp_path / "2.npy", make.noise(5, 9, 9))
    with pytest.raises(ValueError, match=r"image of 3 channels cannot become one of 5; see data\.channels"):
        open_source(config(tmp_path))


def cifar10(root, monkeypatch):
    """A tiny CIFAR-10 in the layout of the archive, whose checksums torchvision would otherwise check."""
    import torchvision.datasets.cifar as module

    monkeypatch.setattr(module, "check_integrity", lambda *arguments: True)
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate([*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]):
        content = {"data": np.full((2, 3072), number, dtype=np.uint8), "labels": [number, 9]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {index}" for index in range(10)]}))


def test_cifar10_is_read_through_torchvision(tmp_path, monkeypatch):
    cifar10(tmp_path, monkeypatch)
    train = open_source(config("cifar10", root=str(tmp_path)))
    test = open_source(config("cifar10", root=str(tmp_path), channels=1), split="test")
    assert (len(train), len(test)) == (10, 2)
    assert train.image(3).unique().item() == 1
    assert train.label(2) == 1
    assert train.classes[9] == "class 9"
    assert test.image(0).shape == (1, 32, 32)


def stl10(root, monkeypatch):
    import torchvision.datasets.stl10 as module

    monkeypatch.setattr(module.STL10, "_check_integrity", lambda self: True)
    folder = root / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    for name, length in (("train", 2), ("test", 3), ("unlabeled", 4)):
        np.zeros((length, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{name}_X.bin")
        np.arange(1, length + 1, dtype=np.uint8).tofile(folder / f"{name}_y.bin")


def test_stl10_pretrains_on_its_unlabelled_split_and_probes_on_the_labelled_ones(tmp_path, monkeypatch):
    stl10(tmp_path, monkeypatch)
    source = config("stl10", root=str(tmp_path))
    sizes = {split: len(open_source(source, split=split)) for split in ("train", "labelled", "test")}
    assert sizes == {"train": 4, "labelled": 2, "test": 3}
    assert open_source(source).label(0) == -1
    assert open_source(source, split="labelled").label(1) == 1
    assert len(open_source(config("stl10", root=str(tmp_path), stl10_split="train+unlabeled"))) == 6


def test_a_named_set_that_is_not_there_says_where_it_was_looked_for(tmp_path):
    for name in ("cifar10", "cifar100", "stl10"):
        with pytest.raises(FileNotFoundError, match=rf"{name} is not in data\.root '{tmp_path}'.*data\.download true"):
            open_source(config(name, root=str(tmp_path)))


def test_settings_that_a_source_would_ignore_are_refused(tmp_path, make):
    make.write_images(tmp_path, ["1.png"])
    (tmp_path / "list.txt").write_text("1.png\n")
    with pytest.raises(ValueError, match=r"data\.download works for cifar10, cifar100, stl10"):
        open_source(config(tmp_path, download=True))
    with pytest.raises(ValueError, match=r"data\.class_list 'imagenet100' needs class folders, not a list"):
        open_source(config(tmp_path / "list.txt", class_list="imagenet100"))
    with pytest.raises(ValueError, match="needs class folders, which digits does not have"):
        open_source(DataConfig(class_list="imagenet100"))


LISTED = {
    "none of them": (["x/1.png", "y/2.png"], ".", None),
    "a flat folder": (["1.png"], ".", None),
    "none of them in its splits": (["train/x/1.png", "train/y/1.png", "val/x/2.png"], ".", None),
    "a list": (["1.png"], "list.txt", None),
    "several folders": (["x/1.png", "y/1.png"], ["x", "y"], None),
    "a set without folders": (["1.png"], "digits", None),
    "a set with lists": (["1.png"], "flowers102", None),
    "all": (["a/1.png", "b/2.png", "x/3.png"], ".", "classes.txt"),
    "all in its splits": (["train/a/1.png", "train/b/1.png", "val/a/2.png"], ".", "classes.txt"),
    "some, which opening refuses": (["a/1.png", "x/2.png"], ".", "classes.txt"),
    "all further below, which opening refuses": (["set/train/a/1.png", "set/train/b/1.png"], ".", "classes.txt"),
    "a set with folders": (["1.png"], "imagenet", "classes.txt"),
}


@pytest.mark.parametrize(("names", "source", "left"), LISTED.values(), ids=LISTED)
def test_a_recipes_class_list_gives_way_to_a_given_source_with_no_folder_of_it(
    tmp_path, monkeypatch, make, names, source, left, caplog
):
    monkeypatch.chdir(tmp_path)
    make.write_images(tmp_path, names)
    (tmp_path / "list.txt").write_text("1.png\n")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    asked = DataConfig(source, class_list="classes.txt")
    with caplog.at_level("INFO"):
        assert without_foreign_classes(asked, {"data.source"}) == DataConfig(source, class_list=left)
    assert ("data.class_list: null instead of classes.txt, for " in caplog.text) is (left is None)
    for given in (None, {"data.source", "data.class_list"}, {"data.root"}):
        assert without_foreign_classes(asked, given) == asked


def write_list(folder, names):
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in names))


def add(folder, make):
    make.write_images(folder, ["c/4.png"])


CHANGES = {
    "nothing": lambda folder, make: None,
    "added": add,
    "removed": lambda folder, make: (folder / "a" / "1.png").unlink(),
    "renamed": lambda folder, make: (folder / "a" / "1.png").rename(folder / "a" / "0.png"),
    "another class": lambda folder, make: (folder / "a" / "1.png").rename(folder / "b" / "1.png"),
    "rewritten": lambda folder, make: (folder / "a" / "1.png").write_bytes(b""),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("sources", [["."], ["a", "b"]], ids=["a folder", "two folders"])
def test_images_are_known_by_their_names_and_sizes_wherever_they_lie(tmp_path, make, sources, change):
    folder = tmp_path / "here"
    make.write_images(folder, ["a/1.png", "a/2.png", "b/3.png"])

    def found():
        data = DataConfig(source=sources, root=str(folder), workers=0)
        return identity(open_encoded(data))

    before = found()
    assert before["images"] == 3
    (tmp_path / "far").mkdir()
    folder = folder.rename(tmp_path / "far" / "away")
    CHANGES[change](folder, make)
    assert (found() == before) is (change == "nothing" or (change == "added" and sources == ["a", "b"]))


def test_a_list_is_known_by_the_order_of_its_images(tmp_path, make):
    make.write_images(tmp_path, ["a/1.png", "a/2.png", "b/3.png"])
    found = []
    for names in (["a/1.png", "b/3.png"], ["b/3.png", "a/1.png"], ["a/1.png", str(tmp_path / "b" / "3.png")]):
        write_list(tmp_path, names)
        found.append(identity(open_encoded(DataConfig(source=str(tmp_path / "list.txt")))))
    assert found[0] == found[2] != found[1]


def test_images_without_files_are_known_by_their_pixels():
    held = [open_encoded(DataConfig(source="digits"), split) for split in ("train", "train", "test")]
    first, again, test = (identity(images)["digest"] for images in held)
    assert first == again != test
