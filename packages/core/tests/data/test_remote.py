import contextlib
import dataclasses
import logging
import multiprocessing
import os
import shutil
import sys
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from ssl_core.data import Batches, DataConfig, LazyImages, decoded, identity, inspect, open_encoded, open_source, pack
from ssl_core.data import local_cache as cache_module
from ssl_core.data import remote as remote_module
from ssl_core.data.local_cache import LocalCache, open_cache
from ssl_core.data.remote import RemoteError, RemotePath, path_of
from ssl_core.data.source import packed_copy
from ssl_core.data.workers import worker_map
from ssl_core.views import ViewConfig, make_view_specs


@pytest.fixture
def memory():
    """fsspec's memory, emptied afterwards."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote_module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(remote_module, "_PATIENCE_S", 0.05)
    remote_module._opened.cache_clear()


@pytest.fixture
def here(tmp_path, make):
    """A folder of photos with splits, the same as tars and as parquet, and two lists of it."""
    names = [f"train/c{number % 3}/{number}.png" for number in range(9)] + ["val/c0/0.png", "val/c1/1.png"]
    make.write_images(tmp_path / "photos", names)
    pack(config(tmp_path / "photos"), str(tmp_path / "shards"), shard_size="20kB")
    for split in ("train", "val"):
        files = sorted((tmp_path / "photos" / split).rglob("*.png"))
        table = pa.table(
            {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
        )
        (tmp_path / "parquet").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "parquet" / f"{split}-0.parquet", row_group_size=4)
    (tmp_path / "photos" / "list.txt").write_text("".join(f"{name}\n" for name in names[:9]))
    return tmp_path


def config(source, **options):
    return DataConfig(source=str(source), **{"workers": 0, "memory_gib": 0.0, **options})


def same(one, other):
    assert identity(one, one.labels) == identity(other, other.labels)
    assert one.classes == other.classes
    assert [one.encoded(index) for index in range(len(one))] == [other.encoded(index) for index in range(len(one))]


KINDS = ["photos", "photos/train", "photos/*a*", "photos/list.txt", "shards", "shards/train", "shards/train/0*.tar"]
KINDS += ["parquet", "parquet/train-0.parquet", "parquet/*-0.parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bucket_has_the_images_of_the_folder_that_was_copied_to_it(here, memory, kind):
    for name in ("photos", "shards", "parquet"):
        memory.put(str(here / name), f"/bucket/{name}", recursive=True)
    caches = {"cache": str(here / "cache"), "local_cache": str(here / "kept"), "local_cache_size": "20MB"}
    kept = open_encoded(config(f"memory://bucket/{kind}", **caches))
    same(open_encoded(config(here / kind)), kept)
    same(kept, open_encoded(config(kind, root="memory://bucket", cache=str(here / "cache"))))
    if kind in ("photos", "shards", "parquet", "parquet/train-0.parquet"):
        same(*(open_encoded(config(f"{where}/{kind}", **caches), "test") for where in (here, "memory://bucket")))
    memory.rm("/bucket", recursive=True)  # what was read is kept, whatever becomes of the bucket
    assert [kept.encoded(index) for index in range(len(kept))]


def test_an_address_of_this_machine_is_its_folder(here):
    for kind in ("photos", "shards", "parquet", "photos/list.txt"):
        one, other = open_encoded(config(here / kind)), open_encoded(config(f"file://{here}/{kind}"))
        assert one.name == other.name
        same(one, other)
    assert not (here / "cache").exists()


def test_a_list_names_files_of_a_bucket_and_of_this_machine(here, memory, tmp_path):
    memory.put(str(here / "photos/train"), "/bucket", recursive=True)
    rows = ["memory://bucket/c1/1.png,b", f"file://{here}/photos/val/c1/1.png,b", f"{here}/photos/val/c0/0.png,a"]
    missing = ["memory://bucket/none.png,a", "https://host/1.png,a"]  # of the web nothing is read
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows, *missing, ""]))
    images = open_encoded(config(tmp_path / "list.csv"))
    assert images.labels.tolist() == [1, 1, 0, 0, 0]
    assert images.identifier(1) == str(here / "photos/val/c1/1.png")
    files = [here / "photos/train/c1/1.png", here / "photos/val/c1/1.png", here / "photos/val/c0/0.png"]
    assert [images.encoded(index) for index in range(3)] == [file.read_bytes() for file in files]
    assert images.subset(torch.tensor([0])).encoded(0) == files[0].read_bytes()
    source = LazyImages(images, broken_limit=0.5)
    assert torch.equal(source.image(3), source.image(0))  # one that was not there from the beginning is a broken one
    memory.pipe("/bucket/lists/list.txt", b"../c0/0.png\n./../c1/1.png\n")
    listed = open_encoded(config("memory://bucket/lists/list.txt"))
    assert [listed.encoded(index) for index in range(2)] == [
        (here / "photos/train" / name).read_bytes() for name in ("c0/0.png", "c1/1.png")
    ]


def test_a_bucket_is_listed_once_and_an_image_is_one_request(here, memory, monkeypatch):
    memory.put(str(here / "photos"), "/bucket", recursive=True)
    asked = []
    for name in ("find", "info", "ls", "open", "cat_file"):
        method = getattr(MemoryFileSystem, name)

        def noted(self, *rest, method=method, name=name, **options):
            asked.append(name)
            return method(self, *rest, **options)

        monkeypatch.setattr(MemoryFileSystem, name, noted)
    images = open_encoded(config("memory://bucket", channels=3))
    images.digest()
    assert asked.count("find") == 1
    asked.clear()
    images.encoded(0)
    assert asked == ["cat_file"]
    memory.put(str(here / "shards/train"), "/tars", recursive=True)
    asked.clear()
    open_encoded(config("memory://tars", channels=3, cache=str(here / "cache")))
    assert asked.count("cat_file") == len([*here.glob("shards/train/*.tar")]) + 1  # the names of the classes


def test_views_of_a_bucket_are_those_of_its_folder_whoever_makes_them(here, memory):
    memory.put(str(here / "shards"), "/bucket", recursive=True)
    options = {"cache": str(here / "cache"), "local_cache": str(here / "kept"), "local_cache_size": "20MB"}
    specs = make_view_specs([ViewConfig("weak", size=8, count=1)])
    made = []
    for source, workers in ((here / "shards", 0), ("memory://bucket", 0), ("memory://bucket", 2)):
        batches = Batches(
            open_source(config(source, **options)),
            specs,
            batch_size=4,
            seed=0,
            mean=(0.5,) * 3,
            std=(0.2,) * 3,
            workers=workers,
        )
        made.append([batch.views[0] for batch in batches.epoch(0)])
    assert all(torch.equal(one, other) for views in made[1:] for one, other in zip(made[0], views, strict=True))


def failing(monkeypatch, error, times=10**6):
    """Let every request for content fail some times."""
    left = [times]

    def fails(method):
        def called(*rest, **options):
            if left[0]:
                left[0] -= 1
                raise error
            return method(*rest, **options)

        return called

    for name in ("cat_file", "open"):
        monkeypatch.setattr(MemoryFileSystem, name, fails(getattr(MemoryFileSystem, name)))
    return left


@pytest.mark.parametrize("kind", ["photos/train", "shards/train", "parquet/train-0.parquet"])
def test_what_may_heal_is_tried_again_and_then_an_error_that_names_it(here, memory, monkeypatch, caplog, kind):
    memory.put(str(here / kind), f"/bucket/{kind}", recursive=True)
    source = open_source(config(f"memory://bucket/{kind}", cache=str(here / "cache"), broken_limit=0.5))
    wanted = source.image(8)
    source.image(0)  # of another row group, of which a process keeps the last alone
    remote_module._opened.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(remote_module, "_PATIENCE_S", 60.0)
        left = failing(patch, ConnectionResetError("reset by peer"), times=2)
        assert torch.equal(source.image(8), wanted)
        assert left == [0]
        assert caplog.text.count("reset by peer (ConnectionResetError); trying again for 60 s") == 1
    remote_module._opened.cache_clear()
    failing(monkeypatch, OSError(16, "Please reduce your request rate."))
    with pytest.raises(
        RemoteError, match=r"memory:///bucket/.* cannot be read, in 0.05 s of .* rate.* --resume goes on"
    ):
        source.image(0)
    assert not source.broken


def test_a_server_that_says_nothing_is_asked_again_and_is_an_error_in_the_end(here, memory, monkeypatch, caplog):
    memory.put(str(here / "photos/train"), "/bucket", recursive=True)
    source = open_source(config("memory://bucket", broken_limit=0.5))
    wanted, end = source.image(0), threading.Event()
    for name, times, seconds, read, says in (
        ("cat_file", 1, None, lambda: source.image(0), "0.png: no answer in 0 s (TimeoutError); trying again for 60 s"),
        ("cat_file", 9, None, lambda: source.image(0), "0.png cannot be read, in 0.05 s of trying: no answer in 0 s"),
        ("info", 9, None, lambda: open_source(config("memory://bucket")), "bucket cannot be read: no answer in 0 s"),
        (
            "find",
            1,
            0.1,
            lambda: open_source(config("memory://bucket")).image(0),
            "no answer for 0.01 s; waiting for it",
        ),
    ):
        method, left = getattr(MemoryFileSystem, name), [times]

        def silent(*rest, method=method, left=left, seconds=seconds, **options):
            left[0] -= 1
            if left[0] >= 0:
                end.wait(seconds)
            return method(*rest, **options)

        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, name, silent)
            patch.setattr(remote_module, "_SILENCE_S", 0.2)
            patch.setattr(remote_module, "_TOLD_AFTER_S", 0.01)
            patch.setattr(remote_module, "_SLOWEST_BYTES_PER_S", 10**6)
            caplog.clear()
            if times == 1:
                patch.setattr(remote_module, "_PATIENCE_S", 60.0)
                assert torch.equal(read(), wanted)
                assert says in caplog.text
            else:
                with pytest.raises(RemoteError, match=says):
                    read()
    end.set()
    assert not source.broken


def test_what_cannot_heal_is_an_error_at_once_and_no_gap(here, memory, monkeypatch, caplog):
    monkeypatch.setattr(remote_module, "_PATIENCE_S", 60.0)  # after which all would be errors of another kind
    memory.put(str(here / "photos/train"), "/bucket", recursive=True)
    source = open_source(config("memory://bucket", broken_limit=0.5))
    content = memory.cat("/bucket/c0/0.png")
    for other in (content + b"more", content[:-1]):
        memory.pipe("/bucket/c0/0.png", other)
        with pytest.raises(RemoteError, match=r"c0/0.png has changed since it was found: start again"):
            source.image(0)
    caplog.clear()
    memory.rm("/bucket/c0/0.png")
    with pytest.raises(RemoteError, match=r"c0/0.png is gone: put it back, or start again without it"):
        source.image(0)
    gone = OSError("Entry Not Found")
    gone.response = SimpleNamespace(status_code=404)  # as huggingface_hub has it
    with monkeypatch.context() as patch:
        left = failing(patch, gone, times=7)
        with pytest.raises(RemoteError, match="is gone: put it back"):
            source.image(1)
        assert left == [6]
    refusals = [PermissionError("Access Denied"), OSError("Forbidden: /o/1.png"), OSError("no"), OSError("no")]
    refusals[2].response = SimpleNamespace(status_code=403)  # as requests has it
    refusals[3].__cause__ = Exception()
    refusals[3].__cause__.status = 401  # as aiohttp has it
    for refusal in refusals:
        with monkeypatch.context() as patch:
            left = failing(patch, refusal, times=7)
            with pytest.raises(RemoteError, match=r"may not be read any more: .*credentials"):
                source.image(1)
            assert left == [6]
    assert not source.broken
    assert "trying again" not in caplog.text


def test_a_shard_that_is_another_when_it_is_opened_is_an_error(here, memory):
    memory.put(str(here / "shards/train"), "/bucket", recursive=True)
    options = {"cache": str(here / "cache")}
    source = open_source(config("memory://bucket", **options))
    digest = open_encoded(config("memory://bucket", **options)).digest()
    content = memory.cat("/bucket/000000.tar")
    memory.pipe("/bucket/000000.tar", content)  # of the same size, at another time
    remote_module._opened.cache_clear()
    with pytest.raises(RemoteError, match=r"000000.tar has changed since it was found"):
        source.image(0)
    assert open_encoded(config("memory://bucket", **options)).digest() == digest  # from an index that was made anew
    memory.rm("/bucket/000000.tar")
    remote_module._opened.cache_clear()
    with pytest.raises(RemoteError, match=r"000000.tar is gone"):
        source.image(0)
    memory.pipe("/bucket/000000.tar", content[:700])
    with pytest.raises(ValueError, match=r"1 of 1 shards are refused:\s+memory:///bucket/000000.tar is truncated"):
        open_encoded(config("memory://bucket", **options))


def test_a_bucket_that_cannot_be_opened_says_why_and_what_helps(memory, monkeypatch, tmp_path):
    def refused(*_, **__):
        raise PermissionError("Access Denied")

    with pytest.raises(FileNotFoundError, match=r"nothing is at memory:///none; look at the name"):
        open_source(config("memory://none"))
    with pytest.raises(FileNotFoundError, match=r"nothing is at memory:///none/\*\.tar"):
        open_source(config("memory://none/*.tar"))
    with pytest.raises(ValueError, match=r"'what://bucket' is an address that fsspec cannot read: Protocol not known"):
        open_source(config("what://bucket"))
    absent = {"class": "none.System", "err": "Install s3fs to access S3"}
    for scheme, says in (
        ("s3", r"Install s3fs to access S3 \(pip install s3fs\)"),
        ("absent", "Install s3fs to access S3$"),
    ):
        monkeypatch.setitem(known_implementations, scheme, absent)
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
        with pytest.raises(ImportError, match=f"{scheme}://bucket/1.png: {says}"):
            open_source(config(f"{scheme}://bucket/1.png"))
    memory.pipe("/bucket/1.zip", b"")
    with pytest.raises(ValueError, match=r"bucket/1.zip' is an archive: unpack it"):
        open_source(config("memory://bucket/1.zip"))
    for name in ("root", "cache", "local_cache"):
        options = {"source": "cifar10"} if name == "root" else {"source": "memory://bucket/0.tar"}
        memory.pipe("/bucket/0.tar", b"")
        with pytest.raises(ValueError, match=rf"data.{name} 'memory://x' is an address: name a folder of this machine"):
            open_source(DataConfig(**options, **{name: "memory://x"}))
    for name in ("info", "find"):
        memory.pipe("/bucket/photos/1.png", b"")
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, name, refused)
            with pytest.raises(RemoteError, match=r"photos cannot be read: Access Denied .*credentials"):
                open_source(config("memory://bucket/photos"))


def test_a_path_of_a_bucket_has_the_parts_and_the_order_of_one_of_a_folder(memory):
    path = path_of("memory://bucket/a/1.tar.gz")
    assert (path.name, path.suffix, str(path.parent)) == ("1.tar.gz", ".gz", "memory:///bucket/a")
    assert [str(folder) for folder in path.parents] == ["memory:///bucket/a", "memory:///bucket", "memory://"]
    assert str(path / "../b/./2.png") == "memory:///bucket/a/b/2.png"
    names = ["a-b/0.tar", "a/1.tar", "a/0.tar", "b.tar"]
    for name in names:
        memory.pipe(f"/bucket/{name}", b"")
    found = remote_module.matching("memory://bucket/**/*.tar")
    assert sorted(str(each) for each in found) == sorted(f"memory:///bucket/{name}" for name in names)
    folder = path_of("memory://bucket")
    assert isinstance(folder, RemotePath)
    assert sorted((parent, sorted(inside), sorted(files)) for parent, inside, files in folder.walk()) == [
        ("memory:///bucket", ["a", "a-b"], ["b.tar"]),
        ("memory:///bucket/a", [], ["0.tar", "1.tar"]),
        ("memory:///bucket/a-b", [], ["0.tar"]),
    ]


def test_a_bucket_is_packed_and_looked_at_as_a_folder_is(here, memory, tmp_path):
    memory.put(str(here / "photos/train"), "/bucket", recursive=True)
    report = inspect(config("memory://bucket"), progress=False)
    assert report.num_images == 9
    pack(config("memory://bucket"), str(tmp_path / "packed"))
    same(open_encoded(config(here / "photos/train")), open_encoded(config(tmp_path / "packed")))
    with tarfile.open(tmp_path / "packed/000000.tar") as tar:
        assert tar.getnames()[0] == "c0/0.png"


def held(folder):
    found = {}
    for path in Path(folder).glob("??/*"):
        with contextlib.suppress(FileNotFoundError):  # of a process that makes room meanwhile
            found[path] = path.stat().st_size
    return {path: size for path, size in found.items() if path.name != "lock"}


def test_the_cache_keeps_what_was_used_last_and_never_more_than_its_limit(tmp_path):
    cache = open_cache(tmp_path / "kept", 1000, least_bytes=100)
    fetched = []

    def piece(number):
        def fetch():
            fetched.append(number)
            return bytes([number]) * 100

        return cache.part(f"{number:02x}-0", 100, 10, 14, fetch)

    for number in range(9):
        assert piece(number) == bytes([number]) * 4
    os.utime(cache.folder / "00/00-0", ns=(1, 1))
    assert piece(0) == bytes(4)  # is the newest now
    assert fetched == [*range(9)]
    os.utime(cache.folder / "01/01-0", ns=(1, 1))
    for number in range(9, 40):
        piece(number)
        assert sum(held(cache.folder).values()) <= 1000
        assert piece(0) == bytes(4)
    assert fetched == [*range(40)]
    piece(1)
    assert fetched[-1] == 1
    (cache.folder / "00/00-0").write_bytes(b"half")  # as after a crash
    assert piece(0) == bytes(4)
    assert fetched[-1] == 0
    (cache.folder / "bytes").write_text("")
    for name in ("mine.jpg", "ab/mine.jpg", "photos/ab-1", "abc/ab-1"):  # is nobody's to delete
        path = cache.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(2000))
        os.utime(path, ns=(1, 1))
    piece(2)
    assert int((cache.folder / "bytes").read_text()) == cache.held_bytes() <= 1000
    for number in range(50, 70):
        piece(number)
    assert all((cache.folder / name).exists() for name in ("mine.jpg", "ab/mine.jpg", "photos/ab-1", "abc/ab-1"))


def use(folder, seed):
    cache = LocalCache(Path(folder), 20_000)

    def fetch(number):
        with (Path(folder).parent / "fetched.txt").open("a") as file:
            file.write(f"{number}\n")
        time.sleep(0.001)
        return bytes([number]) * 1000

    for step in range(150):
        number = (7 * step + seed * (step % 3)) % 25
        assert cache.part(f"{number:02x}-0", 1000, 0, 3, lambda number=number: fetch(number)) == bytes([number]) * 3
        assert sum(held(folder).values()) <= 24_000  # and what each of four is writing


def test_processes_share_the_cache_and_its_limit(tmp_path, monkeypatch):
    cache = open_cache(tmp_path, 20_000, least_bytes=1000)
    folder, read = cache.folder, Path.read_text

    def slowly(path):
        content = read(path)
        time.sleep(0.002)  # in which another process would count its piece too
        return content

    monkeypatch.setattr(cache_module.Path, "read_text", slowly)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=use, args=(str(folder), seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert all(size == 1000 for size in held(folder).values())
    assert int(read(folder / "bytes")) == cache.held_bytes() <= 20_000

    shutil.rmtree(folder)
    (tmp_path / "fetched.txt").unlink()
    cache = open_cache(tmp_path, 100_000, least_bytes=1000)

    def same_piece(_):
        def fetch():
            time.sleep(0.1)
            with (tmp_path / "fetched.txt").open("a") as file:
                file.write("x")
            return bytes(1000)

        return len(cache.part("aa-0", 1000, 0, 10, fetch))

    assert [*worker_map(same_piece, [*range(4)], 4)] == [10] * 4
    assert (tmp_path / "fetched.txt").read_text() == "x"  # one has fetched it, and the others have waited


def test_a_cache_that_cannot_be_is_refused_and_one_that_fills_up_is_gone_without_aloud(tmp_path, monkeypatch, caplog):
    for options, message in (
        ({"local_cache_size": "1GB"}, "data.local_cache_size 1GB has no effect without data.local_cache"),
        ({"local_cache": "x", "local_cache_size": "big"}, "data.local_cache_size 'big' is no size"),
    ):
        with pytest.raises(ValueError, match=message):
            DataConfig(**options)
    with pytest.raises(ValueError, match=r"data.local_cache_size of 10 bytes is less than one piece, 8,388,608"):
        open_cache(tmp_path / "kept", 10, least_bytes=remote_module.BLOCK_BYTES)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"data.local_cache .*file/kept cannot be written \(Not a directory\)"):
        open_cache(tmp_path / "file" / "kept", 1000, least_bytes=1)
    with pytest.raises(ValueError, match=r"holds 0.0 GB and its disk has .* GB free, less than data.local_cache_size"):
        open_cache(tmp_path / "kept", 10**18, least_bytes=1)

    cache = open_cache(tmp_path / "kept", 1000, least_bytes=1)

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            cache_module.tempfile, "TemporaryFile", lambda **_: (_ for _ in ()).throw(OSError(30, "Read-only"))
        )
        with pytest.raises(OSError, match=r"data.local_cache .*kept cannot be written \(Read-only\)"):
            open_cache(tmp_path / "kept", 1000, least_bytes=1)
    monkeypatch.setattr(cache_module.Path, "write_bytes", full)
    for number in range(3):
        assert cache.part(f"{number:02x}-0", 4, 1, 3, lambda: b"abcd") == b"bc"
    assert not held(cache.folder)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "ssl_core_blocks cannot be written (No space left on device): what it lacks is fetched each time" in line


def test_a_shard_that_is_no_tar_of_a_bucket_is_refused_as_one_of_a_folder(memory, tmp_path):
    with tarfile.open(tmp_path / "0.tar.gz", "w:gz") as tar:
        tar.add(__file__, "x.txt")
    memory.pipe("/bucket/0.tar", (tmp_path / "0.tar.gz").read_bytes())
    with pytest.raises(ValueError, match=r"memory:///bucket/0.tar is compressed, .*gzip -d"):
        open_encoded(config("memory://bucket/0.tar", cache=str(tmp_path / "cache")))


@pytest.mark.parametrize("kind", ["photos/train", "shards/train"])
def test_the_images_of_a_batch_are_waited_for_at_once_and_each_is_fetched_once(here, memory, monkeypatch, kind):
    memory.put(str(here / kind), "/bucket", recursive=True)
    data = config("memory://bucket", cache=str(here / "cache"), channels=3)
    images = open_encoded(data)
    one = [images.encoded(index) for index in range(9)]
    waiting, most, times, wanted, lock = 0, 0, 0, 4, threading.Lock()
    read = MemoryFileSystem.cat_file

    def together(system, path, *rest, **options):
        nonlocal waiting, most, times
        until = time.monotonic() + 20
        with lock:
            waiting, times = waiting + 1, times + 1
            most = max(most, waiting)
        while most < wanted and not path.endswith("classes.txt") and time.monotonic() < until:
            time.sleep(0.01)
        with lock:
            waiting -= 1
        return read(system, path, *rest, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", together)
    remote_module._opened.cache_clear()
    source = LazyImages(images)
    packed_copy(source, [4, 2, 4, 7, 8])
    assert most == 4
    assert times == 5  # of two that are one, the second is fetched when it is its turn
    wanted = 9
    waiting = most = times = 0
    pack(data, str(here / "packed"))
    own = int("shards" in kind)  # the names of the classes
    assert most == 9
    assert times == own + 9
    waiting = most = times = 0
    inspect(data, progress=False)
    assert most == 9
    assert times == own + 9 + 2 * 9  # of a few it looks for alpha
    source.fetch([0, 1, 2])
    assert [images.encoded(index) for index in range(9)] == one
    other = images.subset(torch.tensor([5, 6]))
    images.fetch([0])
    assert other.encoded(0) == one[5]
    images.fetch([1])
    times = 0
    images.encoded(0)  # which was not asked for when it was its turn
    assert times == 1
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *_, **__: (_ for _ in ()).throw(PermissionError("no")))
    remote_module._opened.cache_clear()
    with pytest.raises(RemoteError, match="may not be read"):
        packed_copy(source, [0, 1])


def test_a_cache_that_is_too_small_for_the_order_is_told(here, memory, caplog):
    memory.put(str(here / "shards/train"), "/bucket", recursive=True)
    memory.pipe("/bucket/none", b"")
    options = {"source": "memory://bucket/*.tar", "cache": str(here / "cache")}
    kept = {"local_cache": str(here / "kept"), "local_cache_size": "8.5MB"}

    def told(**more):
        caplog.clear()
        open_source(config(**options, **more))
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    assert told() == told(**kept) == told(read="sequential", **kept) == []
    assert "sequential asks for image by image, as random does: set data.local_cache" in told(read="sequential")[0]
    for read, says in (
        ("random", "the shards take 0.0 GB, more than data.local_cache_size 8.5MB"),
        ("sequential", "the 16 shards of a window take 0.0 GB"),
    ):
        data = config(**options, **kept, read=read)
        images = open_encoded(data)
        caplog.clear()
        decoded(dataclasses.replace(images, local=dataclasses.replace(images.local, limit_bytes=1000)), data)
        assert says in caplog.text
        assert "cost a block of 8 MiB; raise it, or" in caplog.text


def test_a_cache_of_what_is_on_this_machine_is_said_to_keep_nothing(here, caplog):
    caplog.set_level(logging.INFO)
    open_source(config(here / "photos", local_cache=str(here / "kept")))
    assert f"is on this machine: data.local_cache {here / 'kept'} keeps nothing of it" in caplog.text
    assert not (here / "kept").exists()


def test_a_row_group_of_parquet_is_one_request(here, memory, monkeypatch):
    memory.put(str(here / "parquet"), "/bucket", recursive=True)
    images = open_encoded(config("memory://bucket/train-0.parquet"))
    asked = []
    read = remote_module._fetched
    monkeypatch.setattr(remote_module, "_fetched", lambda *rest: asked.append(rest[1:]) or read(*rest))
    images.encoded(0)
    images.encoded(1)
    assert len(asked) == 1
