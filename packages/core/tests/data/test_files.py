import contextlib
import os
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from ssl_core.data import BrokenImageError, DataConfig, inspect, open_source
from ssl_core.data.decode import suffixes


def config(source, **options):
    return DataConfig(source=str(source), workers=0, **options)


def test_a_folder_of_any_nesting_is_read_in_the_order_of_its_paths(tmp_path, make):
    make.write_images(tmp_path, ["b/2/x.png", "b/1.png", "a/deep/er/y.png"])
    source = open_source(config(tmp_path))
    names = [source.identifier(index) for index in range(len(source))]
    assert names == [str(tmp_path / name) for name in ("a/deep/er/y.png", "b/1.png", "b/2/x.png")]


def test_first_level_folders_are_the_classes(tmp_path, make):
    make.write_images(tmp_path, ["dog/1.png", "cat/in/side/2.png", "3.png"])
    source = open_source(config(tmp_path))
    assert source.classes == ("cat", "dog")
    labels = {source.identifier(index)[-5:]: source.label(index) for index in range(3)}
    assert labels == {"1.png": 1, "2.png": 0, "3.png": -1}


def test_a_single_folder_inside_is_not_a_class(tmp_path, make):
    make.write_images(tmp_path, ["images/1.png", "images/2.png"])
    source = open_source(config(tmp_path))
    assert source.classes is None
    assert source.label(0) == -1


def test_hidden_files_and_folders_are_ignored(tmp_path, make):
    make.write_images(tmp_path, ["1.png", ".2.png", ".cache/3.png", "__MACOSX/._1.png"])
    assert len(open_source(config(tmp_path))) == 1


@pytest.mark.parametrize("left", ["checkpoints/last.pt", "backbone.json"])
def test_run_directories_among_the_images_are_not_read(tmp_path, make, caplog, left):
    caplog.set_level("INFO")
    make.write_images(tmp_path, ["1.png", "2.png", "runs/x/views.png", "runs/x/deep/3.png", "checkpoints/4.png"])
    for name in ("config.yaml", left):
        (tmp_path / "runs" / "x" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "runs" / "x" / name).touch()
    source = open_source(config(tmp_path))
    assert [Path(source.identifier(index)).name for index in range(len(source))] == ["1.png", "2.png", "4.png"]
    assert f"{tmp_path / 'runs' / 'x'} is a run directory: its pictures are not read" in caplog.text


def test_files_of_other_kinds_are_ignored_and_listed(tmp_path, make):
    make.write_images(tmp_path, ["1.png"])
    (tmp_path / "notes.md").write_text("not an image")
    assert len(open_source(config(tmp_path))) == 1
    assert inspect(config(tmp_path), progress=False).ignored == (str(tmp_path / "notes.md"),)


def test_a_file_without_a_suffix_is_an_image_if_it_begins_as_one(tmp_path, make):
    make.write_images(tmp_path, ["image", "other.png"])
    for name, content in {"README": b"hello", "LICENSE": b"", "Icon\r": b"x"}.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    assert len(open_source(config(tmp_path))) == 2


@pytest.mark.parametrize(
    "folder", ["@eaDir/1.png", "__MACOSX", ".AppleDouble", "lost+found", "$RECYCLE.BIN", "System Volume Information"]
)
def test_what_systems_leave_in_a_folder_is_neither_read_nor_listed(folder, tmp_path, make, monkeypatch):
    make.write_images(tmp_path, ["1.png", f"{folder}/2.png"])
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) != str(tmp_path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(open_source(config(tmp_path))) == 1


def test_a_start_says_how_many_files_of_which_kinds_are_not_read(tmp_path, make, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    make.write_images(tmp_path, ["1.png", "2.JFIF"])
    for name in ("a.HEIC", "b.heic", "c.psd", "notes.txt", "1.json", "README"):
        (tmp_path / name).write_text("")
    assert len(open_source(config(tmp_path))) == 2
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert (
        line
        == f"{tmp_path}: ignored 3 files of kinds that are not read: 2 .heic (pip install 'ssl-core[heif]'), 1 .psd"
    )


def test_held_out_images_do_not_say_it_again(tmp_path, make, caplog):
    make.write_images(tmp_path, ["1.png", "2.png"])
    (tmp_path / "a.psd").write_text("")
    for split in ("train", "test"):
        open_source(config(tmp_path, holdout=0.5), split=split)
    assert caplog.text.count("a.psd") == 0
    assert caplog.text.count("1 .psd") == 1


def test_a_folder_of_kinds_that_are_not_read_says_what_would_read_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_text("")
    with pytest.raises(ValueError, match=r"holds no images.* 1 \.heic \(pip install 'ssl-core\[heif\]'\)\. Looked for"):
        open_source(config(tmp_path))


def test_every_suffix_that_the_document_names_is_an_image(tmp_path, make):
    document = (Path(__file__).parents[4] / "docs/data.md").read_text().partition("## Files of a folder")[2]
    listed = re.findall(r"`\.\w[^`]*`", document.partition("Others are ignored")[0])
    assert {suffix for part in listed for suffix in part.strip("`").split()} == {*suffixes(), ".avif", ".avifs"}


def test_links_are_followed_and_a_loop_ends(tmp_path, make):
    make.write_images(tmp_path / "elsewhere", ["1.png"])
    folder = tmp_path / "data"
    folder.mkdir()
    os.symlink(tmp_path / "elsewhere", folder / "linked")
    os.symlink(folder, folder / "loop")
    assert len(open_source(config(folder))) == 1


def test_names_that_are_not_ascii_or_not_utf8_work(tmp_path, make):
    make.write_images(tmp_path, ["Größe/日本.png"])
    os.rename(tmp_path / "Größe/日本.png", os.fsencode(tmp_path / "Größe") + b"/\xff.png")
    source = open_source(config(tmp_path))
    assert source.image(0).shape == (3, 8, 8)
    assert os.fsencode(source.identifier(0)).endswith(b"\xff.png")


def test_an_empty_folder_is_an_error_that_says_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"holds no images\. Looked for \.jpg"):
        open_source(config(tmp_path))


def test_a_folder_of_other_files_is_an_error_that_names_one(tmp_path):
    (tmp_path / "table.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"table\.xlsx, are of other kinds"):
        open_source(config(tmp_path))


def test_a_missing_path_is_an_error_that_lists_the_names():
    with pytest.raises(FileNotFoundError, match=r"does not exist; it is no name either .*cifar10"):
        open_source(config("/no/such/folder"))


def test_an_unreadable_folder_is_an_error(tmp_path, make, monkeypatch):
    make.write_images(tmp_path, ["a/1.png"])
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="/a cannot be listed: Permission denied; check its permissions"):
        open_source(config(tmp_path))


def test_a_list_file_gives_paths_beside_it_and_labels(tmp_path, make):
    make.write_images(tmp_path, ["a 1.png", "b.png", "c.png"])
    (tmp_path / "list.txt").write_text("a 1.png 10\n\nb.png 2\nc.png\n")
    source = open_source(config(tmp_path / "list.txt"))
    assert [os.path.basename(source.identifier(index)) for index in range(3)] == ["a 1.png", "b.png", "c.png"]
    # Whole numbers in numeric order: 2, then 10.
    assert source.classes == ("2", "10")
    assert [source.label(index) for index in range(3)] == [1, 0, -1]


def test_a_list_file_may_have_class_names_after_a_tab(tmp_path, make):
    make.write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "list.txt").write_text("a.png\tsmall dog\nb.png\tcat\n")
    source = open_source(config(tmp_path / "list.txt"))
    assert source.classes == ("cat", "small dog")
    assert source.label(0) == 1


def test_a_csv_list_may_have_a_header_and_quoted_paths(tmp_path, make):
    make.write_images(tmp_path, ["a,1.png", "b.png"])
    (tmp_path / "list.csv").write_text('path,label\n"a,1.png",dog\nb.png,cat\n')
    source = open_source(config(tmp_path / "list.csv"))
    assert source.classes == ("cat", "dog")
    assert [source.label(index) for index in range(2)] == [1, 0]


def test_a_file_that_a_list_names_wrongly_is_broken(tmp_path, make):
    make.write_images(tmp_path, ["a.png"])
    (tmp_path / "list.txt").write_text("a.png\nmissing.png\n")
    with pytest.raises(ValueError, match=r"none of .* names a file, such as 'missing\.png'; paths start at"):
        open_source(config(tmp_path / "list.txt"))


def test_a_list_of_something_else_is_refused_in_a_short_line(tmp_path):
    (tmp_path / "list.txt").write_text("\x01" * 10_000)
    with pytest.raises(ValueError, match=r"names a file, such as '.{,79}; paths start at"):
        open_source(config(tmp_path / "list.txt"))


def test_an_empty_list_is_an_error(tmp_path):
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(ValueError, match="lists no images"):
        open_source(config(tmp_path / "list.txt"))


def test_several_folders_are_one_source_with_common_classes(tmp_path, make):
    make.write_images(tmp_path / "x", ["cat/1.png", "dog/2.png"])
    make.write_images(tmp_path / "y", ["ape/3.png", "cat/4.png"])
    source = open_source(DataConfig(source=[str(tmp_path / "x"), str(tmp_path / "y")], workers=0))
    assert source.classes == ("ape", "cat", "dog")
    assert [source.label(index) for index in range(4)] == [1, 2, 0, 1]


def test_train_and_val_folders_are_the_splits(tmp_path, make):
    make.write_images(tmp_path, ["train/a/1.png", "train/b/2.png", "train/c/3.png", "val/c/4.png", "val/a/5.png"])
    assert len(open_source(config(tmp_path))) == 3
    test = open_source(config(tmp_path), split="test")
    assert [test.label(index) for index in range(2)] == [0, 2]
    assert test.classes == ("a", "b", "c")


def test_imagenet_is_that_layout_below_root(tmp_path, make):
    make.write_images(tmp_path, ["train/n01/1.JPEG", "train/n02/2.JPEG", "val/n02/3.JPEG"])
    source = config("imagenet", root=str(tmp_path))
    assert len(open_source(source)) == 2
    assert open_source(source, split="test").label(0) == 1
    with pytest.raises(FileNotFoundError, match="is not imagenet: it needs the folders train and val"):
        open_source(config("imagenet", root=str(tmp_path / "train")))
    with pytest.raises(ValueError, match=r"needs data\.root"):
        open_source(config("imagenet"))


def test_a_class_list_restricts_and_orders_the_classes(tmp_path, make):
    make.write_images(tmp_path, ["train/a/1.png", "train/b/2.png", "train/c/3.png", "val/c/4.png", "val/a/5.png"])
    (tmp_path / "classes.txt").write_text("c\na\n")
    restricted = config(tmp_path, class_list=str(tmp_path / "classes.txt"))
    train, test = open_source(restricted), open_source(restricted, split="test")
    assert train.classes == test.classes == ("c", "a")
    assert [train.label(index) for index in range(len(train))] == [1, 0]
    assert [test.label(index) for index in range(len(test))] == [1, 0]


def test_a_listed_class_without_a_folder_is_named(tmp_path, make):
    make.write_images(tmp_path, ["a/1.png"])
    (tmp_path / "classes.txt").write_text("a\nzebra\n")
    with pytest.raises(ValueError, match=r"no subfolder for 1 of 2 classes .*zebra.*\(null\)"):
        open_source(config(tmp_path, class_list=str(tmp_path / "classes.txt")))


def test_the_published_imagenet100_list_ships(tmp_path, make):
    from ssl_core.data.config import _class_list

    classes = _class_list("imagenet100")
    assert len(classes) == len(set(classes)) == 100
    assert classes[:2] == ["n02869837", "n01749939"]
    assert classes[-1] == "n02090622"
    make.write_images(tmp_path, [f"train/{name}/1.png" for name in [*classes, "n00000000"]])
    make.write_images(tmp_path, [f"val/{name}/1.png" for name in classes])
    source = open_source(config("imagenet", root=str(tmp_path), class_list="imagenet100"))
    assert len(source) == 100
    assert source.classes == tuple(classes)


def test_tiny_imagenet_as_distributed_has_its_labels_in_an_annotation_file(tmp_path, make):
    make.write_images(tmp_path, ["train/n1/images/n1_0.png", "train/n2/images/n2_0.png", "val/images/val_0.png"])
    make.write_images(tmp_path, ["val/images/val_1.png", "test/images/test_0.png"])
    (tmp_path / "train/n1/n1_boxes.txt").write_text("n1_0.png\t0\t0\t63\t63\n")
    annotations = "val_0.png\tn2\t0\t0\t63\t63\nval_1.png\tn1\t0\t0\t63\t63\n"
    (tmp_path / "val/val_annotations.txt").write_text(annotations)
    tiny = config("tiny_imagenet", root=str(tmp_path))
    assert open_source(tiny).classes == ("n1", "n2")
    test = open_source(tiny, split="test")
    assert {test.identifier(index)[-9:]: test.label(index) for index in range(2)} == {"val_0.png": 1, "val_1.png": 0}


def test_a_file_that_is_no_source_is_refused(tmp_path, make):
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(
        ValueError, match=r"notes\.md' is not a folder, a list file \(\.txt, \.csv, \.tsv\), a parquet file or a tar"
    ):
        open_source(config(tmp_path / "notes.md"))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("photos.zip", "is an archive: unpack it"),
        ("photos.tar.gz", "is an archive: unpack it"),
        ("1.png", "is one image: give its folder"),
        ("https://host/photos.zip", "'https://host/photos.zip' is an address of the web"),
        (r"C:\\photos", "is a path of Windows"),
        ("C:/photos", "is a path of Windows"),
        (r"\\\\server\\photos", "is a path of Windows"),
    ],
)
def test_what_is_no_folder_is_named_as_what_it_is(name, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "/" not in name and "\\" not in name:
        Path(name).write_bytes(b"")
    for options in ({"source": name}, {"source": "cifar10", "root": name}, {"source": "photos", "root": name}):
        if "root" in options and Path(name).exists():
            continue
        with pytest.raises(ValueError, match=remedy):
            open_source(DataConfig(**options))


def test_a_deleted_file_is_a_broken_image(tmp_path, make):
    make.write_images(tmp_path, [f"{index}.png" for index in range(3)])
    source = open_source(config(tmp_path, memory_gib=0.0, broken_limit=0.5))
    (tmp_path / "1.png").unlink()
    assert np.array_equal(source.image(1), source.image(2))
    with pytest.raises(BrokenImageError, match=r"1\.png: No such file"):
        source._source.image(1)


def link_to_zeros(path):
    path.symlink_to("/dev/zero")


def socket_at(path):
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(path))


@pytest.mark.parametrize("make_other", [os.mkfifo, link_to_zeros, socket_at], ids=["pipe", "endless device", "socket"])
@pytest.mark.parametrize("listed", [False, True], ids=["folder", "list"])
def test_what_is_no_regular_file_is_a_broken_image(make_other, listed, tmp_path, make, monkeypatch):
    monkeypatch.chdir(tmp_path)  # since the path of a socket must be short
    names = ["a.png", "b.png", "c.png"]
    make.write_images(tmp_path, names)
    Path("b.png").unlink()
    make_other(Path("b.png"))
    Path("list.txt").write_text("\n".join(names))
    source = open_source(config(tmp_path / "list.txt" if listed else tmp_path, memory_gib=0.0, broken_limit=0.5))
    assert np.array_equal(source.image(1), source.image(2))
    with pytest.raises(BrokenImageError, match=r"b\.png: (not a regular file|No such device or address)"):
        source._source.image(1)


@pytest.mark.parametrize("line", ["", "val_1.png"])
def test_a_short_line_of_annotations_is_named(line, tmp_path, make):
    make.write_images(tmp_path, ["train/n1/0.png", "train/n2/1.png", "val/images/val_0.png"], size=4)
    (tmp_path / "val/val_annotations.txt").write_text(f"val_0.png\tn2\t0\t0\t63\t63\n{line}\nval_0.png\tn1\n")
    with pytest.raises(
        ValueError, match=rf"line 2 of {re.escape(str(tmp_path))}.*val_annotations.txt, '{line}', is no"
    ):
        open_source(config(tmp_path), split="test")


def test_classes_that_are_named_like_splits_are_told_by_a_list(tmp_path, make):
    make.write_images(tmp_path, ["bullet_train/1.png", "test_tube/2.png"], size=4)
    with pytest.raises(ValueError, match="name them in a file for data"):
        open_source(config(tmp_path))
    (tmp_path / "classes.txt").write_text("bullet_train\ntest_tube\n")
    assert open_source(config(tmp_path, class_list=str(tmp_path / "classes.txt"))).classes == (
        "bullet_train",
        "test_tube",
    )


def test_the_log_says_which_first_lines_of_a_list_are_no_images(tmp_path, make, caplog):
    make.write_images(tmp_path, ["1.png", "2.png"], size=4)
    (tmp_path / "list.txt").write_text("cats and dogs\n1.png\n2.png\n")
    with caplog.at_level("INFO", "ssl_core"):
        assert len(open_source(config(tmp_path / "list.txt"))) == 2
    assert "list.txt: not read as images: [['cats and dogs']], the last of which is taken for a header" in caplog.text


def test_the_log_says_what_a_column_of_splits_does(tmp_path, make, caplog):
    make.write_images(tmp_path, ["1.png", "2.png"], size=4)
    for words, said in [("train test", "its rows of test are tested"), ("0 1", "not used (")]:
        first, second = words.split()
        (tmp_path / "list.csv").write_text(f"path,split\n1.png,{first}\n2.png,{second}\n")
        with caplog.at_level("INFO"):
            open_source(config(tmp_path / "list.csv"))
        assert f"column split of {tmp_path / 'list.csv'}" in caplog.text
        assert said in caplog.text
