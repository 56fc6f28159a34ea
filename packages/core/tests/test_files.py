"""What a full disk leaves, and what is said of it."""

import pytest
import torch
from torch import nn

from ssl_core.backbone import BackboneCard, save_backbone, save_card
from ssl_core.config import save_config
from ssl_core.files import check_file, copy_atomically, new_folder
from ssl_core.train import TrainConfig
from ssl_core.train.log import Log
from ssl_core.views import ViewConfig, make_view_specs, save_view_gallery

CARD = BackboneCard("resnet18", 3, 16, (0.5,) * 3, (0.3,) * 3, 8)


class Noise:
    def __len__(self):
        return 8

    def image(self, index):
        return torch.randint(256, (3, 16, 16), dtype=torch.uint8)


@pytest.fixture
def full_disk():
    """The kernel refuses to write files of more than 100 bytes, as if the disk was full by then."""
    resource = pytest.importorskip("resource", reason="only on POSIX can the size of files be limited")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "config.yaml": lambda path: save_config(TrainConfig(), path),
    "backbone.json": lambda path: save_card(path, CARD),
    "backbone.safetensors": lambda path: save_backbone(path, nn.Linear(8, 8), CARD),
    "views.png": lambda path: save_view_gallery(Noise(), make_view_specs([ViewConfig("weak", size=16)]), path),
    "epoch_0001.pt": lambda path: copy_atomically(path.parent / "last.pt", path),
}


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_with_the_file_and_changes_none(tmp_path, request, name, before):
    (tmp_path / "last.pt").write_bytes(bytes(200))
    if before is not None:
        (tmp_path / name).write_bytes(before)
    left = {path: path.read_bytes() for path in tmp_path.iterdir()}
    request.getfixturevalue("full_disk")
    said = "the one before it is intact" if before else "there is none before it"
    with pytest.raises(OSError, match=rf"^cannot write \S+/{name} \(File too large\); {said}$"):
        WRITERS[name](tmp_path / name)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == left


def test_a_full_disk_ends_the_log_with_its_name(tmp_path, full_disk):
    with Log(tmp_path, start=0, total_images=10, images_per_step=10) as log:
        log.record(1, {"loss": 1.0})
        with pytest.raises(OSError, match=r"^cannot write \S+/metrics.jsonl \(File too large\); "):
            log.record(2, {"number": 1.0, "of_more_than_fits": 0.123456789, "into_a_hundred_bytes": 0.123456789})
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(b'{"step": 1, "loss": 1.0}\n{"step": 2')


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot write .*none/config.yaml \(No such file or directory\)"):
        save_config(TrainConfig(), tmp_path / "none" / "config.yaml")


def test_a_file_that_cannot_be_written_is_named_before_the_work_and_nothing_is_left(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no folder .*none to write x\.png to"):
        check_file(tmp_path / "none" / "x.png")
    (tmp_path / "x.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"x\.png is a folder; give the name of a file"):
        check_file(tmp_path / "x.png")
    check_file(tmp_path / "y.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(PermissionError, match=r"cannot write .*y\.png \(Permission denied\)"):
        check_file(tmp_path / "y.png")


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_there_whole_or_not_at_all(tmp_path, there):
    path = tmp_path / "x"
    if there:
        path.mkdir()
    (tmp_path / "x.part").mkdir()  # as a killed process leaves it
    (tmp_path / "x.part" / "half").touch()
    before = {"x"} if there else set()

    def fill(*, stopped):
        with new_folder(path) as part:
            (part / "y").touch()
            if stopped:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(stopped=True)
    assert {child.name for child in tmp_path.rglob("*")} == before
    fill(stopped=False)
    assert {child.name for child in tmp_path.rglob("*")} == {"x", "y"}
