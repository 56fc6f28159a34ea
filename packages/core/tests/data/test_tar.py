import io
import multiprocessing
import os
import tarfile
from pathlib import Path

import pytest
import torch

from ssl_core.data import BrokenImageError, DataConfig, LazyImages, identity, open_encoded, open_source
from ssl_core.data import shards as shards_module
from ssl_core.data import tar_index as tar_index_module
from ssl_core.data.shards import ChangedShardError
from ssl_core.data.subset import balanced_subset, listed_subset


def config(source, **options):
    return DataConfig(source=str(source), **{"workers": 0, **options})


def write_tar(path, members, *, format=tarfile.PAX_FORMAT, **options):
    """A tar of names and contents, or of headers of links and the like."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format, **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            content = content if isinstance(content, bytes) else str(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def link(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "0.png"
    return info


@pytest.fixture
def pngs(make):
    return [make.encoded(make.noise(4, 6, 3, seed=seed)) for seed in range(8)]


def pixels(make, seed):
    return torch.from_numpy(make.noise(4, 6, 3, seed=seed)).permute(2, 0, 1)


def labelled(pngs, start, stop):
    """Images of classes 0, 1 and 2, in class folders, with their labels."""
    return [
        member
        for number in range(start, stop)
        for member in ((f"c{number % 3}/{number}.png", pngs[number]), (f"c{number % 3}/{number}.cls", number % 3))
    ]


@pytest.mark.parametrize("memory_gib", [4.0, 0.0], ids=["held", "read when needed"])
@pytest.mark.parametrize("source", ["", "*.tar", "one"], ids=["folder", "pattern", "shard"])
def test_shards_give_their_images_and_labels_in_order(tmp_path, make, pngs, source, memory_gib):
    if source == "one":
        write_tar(tmp_path / "one", labelled(pngs, 0, 8))
        (tmp_path / "one").rename(tmp_path / "one.tar")
        source = "one.tar"
    else:
        write_tar(tmp_path / "0.tar", labelled(pngs, 0, 5))
        write_tar(tmp_path / "1.tar", labelled(pngs, 5, 8))
    images = open_source(config(tmp_path / source, memory_gib=memory_gib))
    assert isinstance(images, LazyImages) == (memory_gib == 0)
    for index in (7, 0, 5, 4):
        assert torch.equal(images.image(index), pixels(make, index))
        assert images.label(index) == index % 3
    assert images.classes == ("0", "1", "2")
    assert images.identifier(7) == ("one.tar/c1/7.png" if source == "one.tar" else "1.tar/c1/7.png")


def test_images_of_a_folder_and_of_shards_are_known_to_be_the_same(tmp_path, pngs):
    members = sorted(labelled(pngs, 0, 8))
    inside = [(f"set/{name}", content) for name, content in members]  # from what all have in common on, they are alike
    write_tar(tmp_path / "shards" / "0.tar", inside[:6])
    write_tar(tmp_path / "shards" / "1.tar", inside[6:])
    (tmp_path / "shards" / "classes.txt").write_text("c0\nc1\nc2\n")
    for name, content in members:
        if name.endswith(".png"):
            path = tmp_path / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    folder, shards = (open_encoded(config(tmp_path / name)) for name in ("photos", "shards"))
    assert identity(folder, folder.labels) == identity(shards, shards.labels)
    assert folder.classes == shards.classes
    some = torch.tensor([1, 4, 7])
    assert folder.subset(some).digest() == shards.subset(some).digest() != shards.digest()
    assert torch.equal(balanced_subset(folder, 0.5, seed=0), balanced_subset(shards, 0.5, seed=0))
    (tmp_path / "list.txt").write_text("c1/1.png\n0.tar/set/c0/0.png\n5.png")
    listed = listed_subset(shards, str(tmp_path / "list.txt")).tolist()
    assert [shards.member(index) for index in listed] == ["set/c0/0.png", "set/c1/1.png", "set/c2/5.png"]


def test_what_lies_where_does_not_depend_on_the_tar_format_and_long_names(tmp_path, pngs):
    for format, width in ((tarfile.USTAR_FORMAT, 70), (tarfile.GNU_FORMAT, 120), (tarfile.PAX_FORMAT, 120)):
        long = "d" * width + "/" + "e" * width  # of ustar in two fields, else in headers of their own
        members = [(f"{long}/0.png", pngs[0]), (f"{long}/0.cls", "1"), ("ü.png", pngs[1]), ("./a/2.png", pngs[2])]
        write_tar(tmp_path / str(format) / "0.tar", members, format=format)
        images = open_encoded(config(tmp_path / str(format)))
        assert [images.member(index) for index in range(3)] == [f"{long}/0.png", "ü.png", "a/2.png"]
        assert [images.encoded(index) for index in range(3)] == pngs[:3]
        assert images.labels.tolist() == [-1, -1, -1]  # of one class there is nothing to tell apart
    whole = [(f"{number}.png", png) for number, png in enumerate(pngs)]
    write_tar(tmp_path / "header" / "0.tar", whole, pax_headers={"path": "same.png"})  # which is of all that follow
    with pytest.raises(ValueError, match="has two members same"):
        open_encoded(config(tmp_path / "header"))
    name = "x\udcff.png"  # a byte that is no UTF-8
    write_tar(tmp_path / "bytes" / "0.tar", [(name, pngs[0])], format=tarfile.GNU_FORMAT)
    assert open_encoded(config(tmp_path / "bytes")).member(0) == name


def test_a_label_is_in_cls_or_in_a_field_of_json(tmp_path, pngs, caplog):
    members = [(f"{number}.png", pngs[number]) for number in range(8)]
    members += [("0.cls", "3\n"), ("1.cls", "-1"), ("2.cls", "2"), ("2.json", '{"label": 9}')]
    members += [
        ("3.json", '{"label": 3, "kind": "cat"}'),
        ("4.json", '{"kind": "dog"}'),
        ("5.json", "{"),
        ("9.cls", "1"),
    ]
    members += [("6.json", '{"label": [1, 2]}'), ("7.json", '{"label": NaN}')]
    members += [(f"{name}.png", pngs[0]) for name in ("nan", "nested", "marked")]
    members += [("nan.cls", "nan"), ("nested.json", "[" * 100_000), ("marked.cls", b"\xef\xbb\xbf3")]
    write_tar(tmp_path / "0.tar", members)
    images = open_encoded(config(tmp_path))
    names = (*images.classes, None)
    assert [names[label] for label in images.labels] == ["3", None, "2", "3", *6 * [None], "3"]
    assert "3 labels cannot be read, such as 5.json; 1 labels have no image, such as that of 9" in caplog.text
    images = open_encoded(config(tmp_path, label_column="kind"))
    assert [label for label in images.labels.tolist() if label >= 0] == [0, 1]
    assert images.classes == ("cat", "dog")
    write_tar(tmp_path / "all.tar", [(f"{number}.jpg", pngs[number]) for number in range(2)])
    unlabeled = open_encoded(config(tmp_path / "all.tar"))
    assert unlabeled.classes is None
    assert unlabeled.labels.tolist() == [-1, -1]


def test_of_several_images_of_a_key_the_one_without_a_dot_or_the_named_one_is_read(tmp_path, pngs):
    write_tar(tmp_path / "a.tar", [("0.JPG", pngs[0]), ("0.seg.png", pngs[1]), ("1.seg.png", pngs[2])])
    assert [open_encoded(config(tmp_path / "a.tar")).member(index) for index in range(2)] == ["0.JPG", "1.seg.png"]
    images = open_encoded(config(tmp_path / "a.tar", image_column="seg.png"))
    assert [images.encoded(index) for index in range(len(images))] == pngs[1:3]
    write_tar(tmp_path / "b.tar", [("IMG.2019.jpg", pngs[0]), ("IMG.2020.jpg", pngs[1])])
    with pytest.raises(ValueError, match=r"several images of the key IMG, 2019.jpg, 2020.jpg: name one as"):
        open_encoded(config(tmp_path / "b.tar"))
    with pytest.raises(ValueError, match=r"there is no image with the extension mask.png \(data.image_column\)"):
        open_encoded(config(tmp_path / "a.tar", image_column="mask.png"))


def cut(data, at):
    return data[:at]


def test_shards_that_cannot_be_read_are_all_named_and_the_others_are_indexed(tmp_path, pngs):
    good = tmp_path / "good.tar"
    write_tar(good, labelled(pngs, 0, 4))
    data = good.read_bytes()
    end = data.rindex(b"3.cls") // 512 * 512
    bad = {
        "cut in a header": (data[: end + 100], "is truncated, for it has no end"),
        "cut in an image": (data[:700], "is truncated or no tar"),
        "cut after a member": (data[:end], "is truncated, for it has no end"),
        "damaged": (data[:end] + b"x" * 512 + data[end + 512 :], "has damage, or a second tar, behind byte"),
        "joined": (data + data, "has damage, or a second tar, behind byte"),
        "empty": (b"", "has zero bytes"),
        "compressed": (b"\x1f\x8b\x08\0" + bytes(1000), "unpack it (gzip -d)"),
        "text": (b"hello" * 1000, "is truncated or no tar"),
    }
    for name, (content, _) in bad.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
    for name, members, message in [
        ("twice", [("0.png", pngs[0]), ("0.png", pngs[1])], "has two members 0.png"),
        ("two labels", [("0.png", pngs[0]), ("0.cls", "1"), ("0.CLS", "2")], "has two members 0.CLS"),
        ("link", [("0.png", pngs[0]), link("1.png", tarfile.LNKTYPE)], "has a member 1.png that is a link"),
        ("symlink", [("0.png", pngs[0]), link("1.png", tarfile.SYMTYPE)], "has a member 1.png that is a link"),
        ("pipe", [("0.png", pngs[0]), link("1.png", tarfile.FIFOTYPE)], "has a member 1.png that is no file"),
        ("sparse", [("0.png", pngs[0]), link("1.png", tarfile.GNUTYPE_SPARSE)], "has a member 1.png that is sparse"),
    ]:
        write_tar(tmp_path / f"{name}.tar", members)
        bad[name] = (None, message)
    os.mkfifo(tmp_path / "waits.tar")
    bad["waits"] = (None, "is no file")
    with pytest.raises(ValueError, match="15 of 16 shards are refused") as refused:
        open_encoded(config(tmp_path))
    for name, (_, message) in bad.items():
        (line,) = (line for line in str(refused.value).splitlines() if f"/{name}.tar" in line)
        assert message in line
    for name in bad:
        (tmp_path / f"{name}.tar").unlink()
    assert len(open_encoded(config(tmp_path))) == 4


def test_other_members_are_ignored_and_told(tmp_path, pngs, caplog):
    write_tar(
        tmp_path / "0.tar",
        [("a/0.png", pngs[0]), ("../up/0.png", pngs[1]), ("a/../1.png", pngs[2])]
        + [
            (name, b"x") for name in ("a/._0.png", ".h/1.png", "__MACOSX/a/0.png", "0.mp4", "0.txt", "in.tar", "README")
        ],
    )
    source = open_source(config(tmp_path))
    assert len(source) == 3
    assert "ignored 2 files of kinds that are not read: 1 .mp4, 1 .tar" in caplog.text
    write_tar(tmp_path / "in" / "0.tar", [("n01.tar", b"x"), ("n02.tar", b"x")])
    with pytest.raises(ValueError, match=r"no image; its other members: 2 .tar; give the tars inside"):
        open_encoded(config(tmp_path / "in" / "0.tar"))


def test_an_index_is_read_again_and_made_anew_for_shards_that_have_changed(tmp_path, pngs, monkeypatch, caplog):
    write_tar(tmp_path / "0.tar", labelled(pngs, 0, 4))
    write_tar(tmp_path / "1.tar", labelled(pngs, 4, 8))
    read = []
    scan = tar_index_module._scan
    monkeypatch.setattr(tar_index_module, "_scan", lambda *rest: read.append(rest[-1].name) or scan(*rest))
    open_encoded(config(tmp_path / "1.tar"))
    assert read == ["1.tar"]
    first = open_encoded(config(tmp_path)).digest()
    assert read == ["1.tar", "0.tar"]
    assert open_encoded(config(tmp_path)).digest() == first
    assert len(read) == 2

    before = os.stat(tmp_path / "0.tar")
    write_tar(tmp_path / "0.tar", labelled(pngs, 0, 2))
    os.utime(tmp_path / "0.tar", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert len(open_encoded(config(tmp_path))) == 6
    assert read[2:] == ["0.tar"]
    os.utime(tmp_path / "0.tar")  # of another time alone
    assert len(open_encoded(config(tmp_path))) == 6
    assert read[3:] == ["0.tar"]
    (tmp_path / "1.tar").unlink()
    assert len(open_encoded(config(tmp_path))) == 2
    assert len(read) == 4

    (tmp_path / "ssl_core_index.arrow").write_bytes(b"ARROW1 and no more")
    assert len(open_encoded(config(tmp_path))) == 2
    assert "ssl_core_index.arrow cannot be read" in caplog.text
    assert len(read) == 5


def test_an_index_of_another_version_is_made_anew(tmp_path, pngs, monkeypatch, caplog):
    write_tar(tmp_path / "0.tar", labelled(pngs, 0, 4))
    with monkeypatch.context() as before:
        before.setattr(tar_index_module, "_VERSION", "1")
        open_encoded(config(tmp_path))
    for is_read in (True, False):
        caplog.clear()
        assert len(open_encoded(config(tmp_path))) == 4
        assert ("it is of another version of this package): the shards are read anew" in caplog.text) == is_read


def test_of_several_processes_one_reads_the_shards(tmp_path, pngs, monkeypatch):
    for number in range(4):
        write_tar(tmp_path / f"{number}.tar", labelled(pngs, 2 * number, 2 * number + 2))
    scan = tar_index_module._scan

    def noted(*rest):
        with (tmp_path / "read.txt").open("a") as file:
            file.write(rest[-1].name)
        return scan(*rest)

    monkeypatch.setattr(tar_index_module, "_scan", noted)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=open_encoded, args=(config(tmp_path),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "read.txt").read_text() == "0.tar1.tar2.tar3.tar"
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.stem == "ssl_core_index") == [".arrow", ".lock"]


def test_shards_in_a_folder_that_cannot_be_written_are_indexed_in_the_cache(tmp_path, pngs, monkeypatch):
    write_tar(tmp_path / "shards" / "0.tar", labelled(pngs, 0, 4))
    monkeypatch.setattr(tar_index_module.os, "access", lambda path, mode: Path(path) != tmp_path / "shards")
    for _ in range(2):
        assert len(open_encoded(config(tmp_path / "shards", cache=str(tmp_path / "cache")))) == 4
        monkeypatch.setattr(tar_index_module, "_read_missing", None)  # which the second time needs no more
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["0.tar"]
    assert len([*(tmp_path / "cache").glob("ssl_core_index-*.arrow")]) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"can be written neither there nor to data.cache"):
        open_encoded(config(tmp_path / "shards", cache=str(tmp_path / "file" / "cache")))


def test_shards_on_a_full_disk_are_indexed_in_the_cache(tmp_path, pngs, monkeypatch, caplog):
    write_tar(tmp_path / "shards" / "0.tar", labelled(pngs, 0, 4))
    written = tar_index_module.write_atomically

    def full(path, write):
        if path.parent == tmp_path / "shards":
            raise OSError(28, f"cannot write {path} (No space left on device)")
        written(path, write)

    monkeypatch.setattr(tar_index_module, "write_atomically", full)
    assert len(open_encoded(config(tmp_path / "shards", cache=str(tmp_path / "cache")))) == 4
    assert f"(No space left on device); the index goes to data.cache {tmp_path / 'cache'}" in caplog.text


def test_a_shard_that_changes_or_goes_while_it_is_read_is_an_error_and_no_gap(tmp_path, pngs):
    write_tar(tmp_path / "0.tar", labelled(pngs, 0, 4))
    source = open_source(config(tmp_path, memory_gib=0.0))
    os.utime(tmp_path / "0.tar", ns=(1, 1))
    with pytest.raises(ChangedShardError, match="has changed since it was indexed"):
        source.image(0)
    (tmp_path / "0.tar").unlink()
    with pytest.raises(ChangedShardError, match="is gone: put it back"):
        source.image(0)


def test_an_image_that_is_damaged_inside_of_its_shard_is_a_broken_one(tmp_path, pngs, monkeypatch):
    write_tar(tmp_path / "0.tar", [("0.png", pngs[0]), ("1.png", pngs[1][:40]), ("2.png", b"")])
    source = open_source(config(tmp_path, broken_limit=0.7))
    assert len(source) == 1
    assert [line.partition(":")[0] for line in source.broken] == ["0.tar/1.png", "0.tar/2.png"]

    def fails(*_):
        raise OSError(5, "Input/output error")

    images = open_encoded(config(tmp_path))
    monkeypatch.setattr(shards_module, "open", fails, raising=False)
    with pytest.raises(BrokenImageError, match=r"0.tar/0.png: Input/output error"):
        images.image(0)
