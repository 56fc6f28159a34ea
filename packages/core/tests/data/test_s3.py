"""Images of moto's S3 server on this machine, which cuts connections, throttles and loses objects: nox -s tests_s3."""

import importlib.util
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ssl_tiny.train import main

from ssl_core import cli
from ssl_core.data import Batches, DataConfig, identity, open_encoded, open_source, pack
from ssl_core.data import remote as remote_module
from ssl_core.data.remote import RemoteError
from ssl_core.train.log import read_metrics
from ssl_core.views import ViewConfig, make_view_specs

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("moto", "s3fs", "flask")), reason="needs moto[server] and s3fs"
)


class Server:
    def __init__(self, url):
        self.url = url

    def fail(self, *faults):
        """Let requests fail, each (what kind, where, how often), and forget what was asked."""
        content = [{"kind": kind, "path": path, "times": times} for kind, path, times in faults]
        request = urllib.request.Request(f"{self.url}/faults", json.dumps(content).encode(), method="POST")
        with urllib.request.urlopen(request):
            pass

    def asked(self):
        with urllib.request.urlopen(f"{self.url}/asked") as answer:
            return json.loads(answer.read())


@pytest.fixture(scope="module")
def server():
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("s3_server.py")], stdout=subprocess.PIPE, text=True
    ) as process:
        patch = pytest.MonkeyPatch()
        url = process.stdout.readline().strip()
        values = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "who", "AWS_SECRET_ACCESS_KEY": "what"}
        # What boto tries again by itself takes a minute in all; one try of it is enough for a test.
        values |= {"AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}
        for name, value in values.items():
            patch.setenv(name, value)
        yield Server(url)
        patch.undo()
        process.kill()


@pytest.fixture
def bucket(server, tmp_path, make):
    """A new bucket with photos, a list, tars and parquet of them, which are in the temporary folder too."""
    remote_module._opened.cache_clear()
    names = [f"train/c{number % 3}/{number}.png" for number in range(24)] + [f"val/c{n}/{n}.png" for n in range(3)]
    make.write_images(tmp_path / "photos", names, size=16)
    (tmp_path / "photos/list.txt").write_text("".join(f"{name}\t{name[7]}\n" for name in sorted(names[:24])))
    pack(DataConfig(source=str(tmp_path / "photos"), workers=0), str(tmp_path / "shards"), shard_size="20kB")
    (tmp_path / "parquet").mkdir()
    for split in ("train", "val"):
        files = sorted((tmp_path / "photos" / split).rglob("*.png"))
        columns = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
        pq.write_table(pa.table(columns), tmp_path / "parquet" / f"{split}-0.parquet", row_group_size=4)
    system = fsspec.filesystem("s3")
    name = tmp_path.name.replace("_", "-").lower()[-40:].strip("-")
    server.fail()
    system.mkdir(name)
    for folder in ("photos", "shards", "parquet"):
        system.put(str(tmp_path / folder), f"{name}/{folder}", recursive=True)
    system.pipe(f"{name}/photos/train/", b"")  # as consoles mark a folder
    yield f"s3://{name}"
    system.invalidate_cache()


def config(source, **options):
    return DataConfig(source=str(source), **{"workers": 0, "memory_gib": 0.0, **options})


def listed_here(bucket, tmp_path):
    """A list on this machine of the photos in the bucket."""
    lines = (tmp_path / "photos/list.txt").read_text().splitlines()
    (tmp_path / "there.txt").write_text("".join(f"{bucket}/photos/{line}\n" for line in lines))
    return tmp_path / "there.txt"


def test_images_of_a_bucket_are_those_of_the_folder(bucket, server, tmp_path):
    kinds = ("photos", "photos/train", "photos/list.txt", "shards", "shards/train/0*.tar", "parquet")
    addresses = {kind: f"{bucket}/{kind}" for kind in kinds}
    for kind, address in [*addresses.items(), ("photos/list.txt", listed_here(bucket, tmp_path))]:
        here = open_encoded(config(tmp_path / kind))
        there = open_encoded(config(address, cache=str(tmp_path / "cache")))
        assert identity(here, here.labels) == identity(there, there.labels)
        assert [here.encoded(at) for at in range(24)] == [there.encoded(at) for at in range(24)]
    # The listing has all sizes, and an image is one request.
    server.fail()
    photos = open_encoded(config(f"{bucket}/photos", channels=3))
    photos.digest()
    assert not [line for line in server.asked() if line.endswith(".png")]
    server.fail()
    remote_module._opened.cache_clear()
    photos.encoded(3)
    assert len(server.asked()) == 1
    shards = open_encoded(config(f"{bucket}/shards", cache=str(tmp_path / "cache"), channels=3))
    shards.encoded(0)
    server.fail()
    shards.encoded(1)
    assert server.asked() == [f"GET /{bucket[5:]}/shards/train/000000.tar"]
    rows = open_encoded(config(f"{bucket}/parquet", channels=3))
    rows.encoded(0)
    server.fail()
    assert rows.encoded(3) != rows.encoded(4)
    assert server.asked() == [f"GET /{bucket[5:]}/parquet/train-0.parquet"]


def views(source, workers, **options):
    batches = Batches(
        open_source(config(source, **options)),
        make_view_specs([ViewConfig("weak", size=8, count=1)]),
        batch_size=4,
        seed=0,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        workers=workers,
    )
    return [batch.views[0] for batch in batches.epoch(0)]


def test_worker_processes_have_connections_of_their_own_and_share_the_cache(bucket, server, tmp_path):
    options = {"cache": str(tmp_path / "cache"), "local_cache": str(tmp_path / "kept"), "local_cache_size": "50MB"}
    wanted = views(tmp_path / "shards", 0)
    for workers in (0, 2):  # the first of which leaves connections to the second
        assert all(map(torch.equal, wanted, views(f"{bucket}/shards", workers, cache=options["cache"])))
    server.fail()
    assert all(map(torch.equal, wanted, views(f"{bucket}/shards", 2, **options)))
    tars = len([*(tmp_path / "shards/train").glob("*.tar")])
    assert len([line for line in server.asked() if line.startswith("GET") and line.endswith(".tar")]) == tars
    server.fail()
    assert all(map(torch.equal, wanted, views(f"{bucket}/shards", 2, **options)))
    assert not [line for line in server.asked() if line.startswith("GET") and line.endswith(".tar")]


@pytest.mark.parametrize("kind", ["cut", "slow down"])
@pytest.mark.parametrize("source", ["photos/train", "photos/list.txt", "shards/train", "parquet/train-0.parquet"])
def test_a_server_that_heals_gives_the_same_images(bucket, server, tmp_path, monkeypatch, kind, source):
    monkeypatch.setattr(remote_module, "_FIRST_PAUSE_S", 0.01)
    server.fail((kind, r"\.(txt|parquet)$", 7))  # more than s3fs tries
    images = open_encoded(config(f"{bucket}/{source}", cache=str(tmp_path / "cache"), channels=3))
    server.fail((kind, r"\.(png|tar|parquet)$", 7))
    assert images.encoded(5) == open_encoded(config(tmp_path / source)).encoded(5)
    assert len(server.asked()) > 7


def test_a_server_that_says_nothing_is_asked_again_and_then_an_error(bucket, server, monkeypatch, caplog):
    source = open_source(config(f"{bucket}/photos", broken_limit=0.9))
    monkeypatch.setattr(remote_module, "_SILENCE_S", 1.0)
    server.fail(("silent", r"\.png$", 1))
    source.image(0)
    assert "train/c0/0.png: no answer in 1 s (TimeoutError); trying again for 120 s" in caplog.text
    monkeypatch.setattr(remote_module, "_PATIENCE_S", 0.6)
    for path, read in ((r"\.png$", lambda: source.image(1)), ("", lambda: open_source(config(f"{bucket}/photos")))):
        server.fail(("silent", path, 10**6))
        with pytest.raises(
            RemoteError, match=r"(12.png cannot be read, in 0.6 s of trying:|photos cannot be read:) no answer"
        ):
            read()
    server.fail()
    assert not source.broken


def test_a_server_that_does_not_heal_is_an_error_with_its_name(bucket, server, monkeypatch):
    monkeypatch.setattr(remote_module, "_PATIENCE_S", 0.5)
    source = open_source(config(f"{bucket}/photos", broken_limit=0.9))
    server.fail(("slow down", r"\.png$", 10**6))
    with pytest.raises(RemoteError, match=r"train/c0/0.png cannot be read, in 0.5 s of trying: .*Please reduce your"):
        source.image(0)
    assert not source.broken


def test_an_object_that_goes_or_changes_while_it_is_read_is_an_error(bucket, server, tmp_path):
    system = fsspec.filesystem("s3")
    listed = listed_here(bucket, tmp_path)
    for address, path in (
        (f"{bucket}/photos/train", "photos/train/c0/0.png"),
        (f"{bucket}/photos/list.txt", "photos/train/c0/12.png"),
        (listed, "photos/train/c0/15.png"),
        (f"{bucket}/shards/train", "shards/train/000000.tar"),
        (f"{bucket}/parquet/train-0.parquet", "parquet/train-0.parquet"),
    ):
        source = open_source(config(address, cache=str(tmp_path / "cache"), broken_limit=0.9))
        at = next((at for at in range(24) if source.identifier(at).endswith(path)), 0)
        source.image((at + 5) % 24)  # of another row group, for one that was read is kept
        content = system.cat(f"{bucket}/{path}")
        if not path.endswith(".png"):
            system.pipe(f"{bucket}/{path}", content[:-1] + b"x")  # of the same size: the server knows by its tag
            with pytest.raises(RemoteError, match=rf"{path} has changed since it was found"):
                source.image(at)
        system.rm(f"{bucket}/{path}")
        with pytest.raises(RemoteError, match=rf"{path} is gone: put it back"):
            source.image(at)
        assert not source.broken
        system.pipe(f"{bucket}/{path}", content)


def test_a_bucket_that_is_not_there_or_may_not_be_read_says_so(bucket, server, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nothing is at s3://no-such-bucket-1/photos"):
        open_source(config("s3://no-such-bucket-1/photos"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/no/such/home")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(RemoteError, match=r"cannot be read: Unable to locate credentials .*look at the credentials"):
        open_source(config(f"{bucket}/photos"))
    fsspec.filesystem("s3").clear_instance_cache()


def losses(source, out, *options):
    """The losses of a run."""
    small = [
        "--data.memory_gib=0",
        "--train.batch_size=8",
        "--train.epochs=2",
        "--train.log_every=1",
        f"--data.cache={out.parent / 'cache'}",
    ]
    main(["--config", "smoke", "--device=cpu", *small, f"--data.source={source}", f"--out={out}", *options])
    return {record["step"]: record["loss"] for record in read_metrics(out) if "loss" in record}


def test_a_run_on_a_bucket_that_fails_now_and_then_is_that_on_the_folder_to_the_last_bit(
    bucket, server, tmp_path, capsys
):
    expected = losses(tmp_path / "photos", tmp_path / "here", "--data.workers=0", "--train.keep_every=1")
    assert len(expected) == 6
    server.fail(("cut", r"\.png$", 3), ("slow down", r"c0/0\.png$", 7))  # more than s3fs tries
    assert losses(f"{bucket}/photos", tmp_path / "there", "--data.workers=2") == expected
    kept = [f"--data.local_cache={tmp_path / 'kept'}", "--data.local_cache_size=50MB"]
    server.fail(("cut", r"\.tar$", 3), ("slow down", r"\.tar$", 3))
    assert losses(f"{bucket}/shards", tmp_path / "tars", "--data.workers=2", *kept) == expected
    server.fail(("cut", r"\.parquet$", 3), ("slow down", r"\.parquet$", 3))
    assert losses(f"{bucket}/parquet", tmp_path / "parquets", "--data.workers=2") == expected
    for name, source in (("list", f"{bucket}/photos/list.txt"), ("listed", listed_here(bucket, tmp_path))):
        server.fail(("cut", r"\.(png|txt)$", 3), ("slow down", r"\.(png|txt)$", 3))
        assert losses(source, tmp_path / name, "--data.workers=2") == expected
    earlier = f"--resume={tmp_path / 'here/checkpoints/epoch_0001.pt'}"  # the images have moved to the bucket
    main([earlier, f"--data.source={bucket}/photos", "--data.workers=2", f"--out={tmp_path / 'moved'}"])
    assert {record["step"]: record["loss"] for record in read_metrics(tmp_path / "moved")} == expected
    cli.main(["data", f"{bucket}/shards"])
    cli.main(["eval", "knn", str(tmp_path / "tars"), "--device", "cpu"])
    assert "3, of 8 to 8 images" in capsys.readouterr().out
