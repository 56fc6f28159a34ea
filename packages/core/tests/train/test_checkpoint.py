import re
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from ssl_core import distributed
from ssl_core.config import to_dict
from ssl_core.train.checkpoint import (
    load_checkpoint,
    load_run,
    restore_,
    same_data,
    same_in_all_processes,
    save_checkpoint,
)


@pytest.fixture
def state():
    method = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    method(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"method": method, "optimizer": optimizer, "batches": {"partners": None}}


def test_a_checkpoint_gives_back_state_generators_and_step(tmp_path, state):
    path = tmp_path / "last.pt"
    save_checkpoint(path, **state, step=7, config={"seed": 1}, data={"images": 3})
    expected = torch.rand(3)
    fresh = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.5, momentum=0.9)
    content = load_checkpoint(path)
    assert restore_(content, method=fresh, optimizer=optimizer) == 7
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(fresh.weight, state["method"].weight)
    assert optimizer.state_dict()["state"].keys() == state["optimizer"].state_dict()["state"].keys()
    assert (content["config"], content["data"]) == ({"seed": 1}, {"images": 3})
    assert content["batches"] == {"partners": None}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_generators_go_on_in_more_processes_than_before(tmp_path, state, monkeypatch):
    save_checkpoint(tmp_path / "last.pt", **state, step=7, config={}, data={})
    expected = torch.rand(3)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    restore_(load_checkpoint(tmp_path / "last.pt"), method=state["method"], optimizer=state["optimizer"])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99], ids=["empty", "a third", "almost whole"])
def test_a_truncated_checkpoint_is_a_clear_error(tmp_path, state, fraction):
    path = tmp_path / "last.pt"
    save_checkpoint(path, **state, step=1, config={}, data={})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_a_truncated_checkpoint_names_another_one_beside_it(tmp_path):
    for name in ("last.pt", "epoch_0002.pt", "epoch_0004.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"last.pt is not a readable .* --resume .*epoch_0004.pt, or choose another"):
        load_checkpoint(tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"such as --resume .*epoch_0002.pt"):
        load_checkpoint(tmp_path / "epoch_0004.pt")


@dataclass(frozen=True)
class Optim:
    lr: float = 0.1


@dataclass(frozen=True)
class Train:
    epochs: int = 2
    log_every: int = 1


@dataclass(frozen=True)
class Settings:
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)


@pytest.mark.parametrize(("longer", "remedy"), [(False, ""), (True, "--encoder.weights {path}")])
def test_a_checkpoint_of_another_configuration_is_refused_with_the_difference(tmp_path, state, longer, remedy):
    path = tmp_path / "last.pt"
    save_checkpoint(path, **state, step=1, config=to_dict(Settings()), data={"asked": {}})
    new = Settings(Optim(0.2), Train(2 + 2 * longer, log_every=5))
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.1 -> 0\.2") as error:
        load_run(path, new, set())
    assert str(error.value).endswith(remedy.format(path=path))
    assert ("train.epochs: 2 -> 4" in str(error.value)) is ("--encoder.weights" in str(error.value)) is longer


def test_a_checkpoint_of_an_evaluation_is_no_runs(tmp_path, state):
    save_checkpoint(tmp_path / "last.pt", **state, step=1, config={}, data={})
    with pytest.raises(ValueError, match=r"last\.pt is of an evaluation, .*choose another --out"):
        load_run(tmp_path / "last.pt", Settings(), set())


def test_what_gave_way_stays_as_it_was_decided_where_the_same_is_asked_for_again(tmp_path, state):
    path = tmp_path / "last.pt"
    save_checkpoint(path, **state, step=1, config=to_dict(Settings(Optim(0.2))), data={"asked": {"optim.lr": 0.1}})
    for given in ({"data.source"}, None):
        assert load_run(path, Settings(), given)[1] == Settings(Optim(0.2))
    for given, lr in (({"optim.lr"}, 0.1), (set(), 0.3), (None, 0.3)):
        with pytest.raises(ValueError, match=rf"optim\.lr: 0\.2 -> {lr}"):
            load_run(path, Settings(Optim(lr)), given)


BEFORE = {"images": 60, "classes": 2, "digest": "a"}


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        ({"images": 80, "digest": "b"}, "images: 60 -> 80\n  names, sizes or pixels differ"),
        ({"digest": "b"}, "names, sizes or pixels differ"),
        ({"classes": 3}, "classes: 2 -> 3"),
    ],
    ids=["more images", "other images", "more classes"],
)
def test_other_data_is_refused_with_the_difference_unless_accepted(caplog, now, difference):
    content = {"step": 7, "data": {**BEFORE, "mean": (0.5,), "std": (0.2,)}}
    assert same_data(content, BEFORE, accept=False)
    with pytest.raises(ValueError, match=r"up to step 7:\n(.*\n)+.*--data\.changed accept") as error:
        same_data(content, BEFORE | now, accept=False)
    assert difference in str(error.value)
    assert not same_data(content, BEFORE | now, accept=True)
    assert difference.replace("\n  ", ", ") in caplog.text


def test_processes_that_find_different_checkpoints_are_refused(tmp_path, monkeypatch):
    same_in_all_processes(None, tmp_path)
    monkeypatch.setattr(distributed, "gather_objects", lambda step: [step, 40])
    same_in_all_processes({"step": 40}, tmp_path)
    for content, steps in ((None, [0, 40]), ({"step": 20}, [20, 40])):
        with pytest.raises(ValueError, match=rf"different checkpoints in {tmp_path}, of steps {re.escape(str(steps))}"):
            same_in_all_processes(content, tmp_path)


def test_another_file_of_torch_is_not_a_checkpoint(tmp_path):
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt is not a checkpoint of a run"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_sentence(tmp_path):
    torch.save({"format": 3, "method": {}}, tmp_path / "earlier.pt")
    with pytest.raises(ValueError, match=r"earlier.pt is of format 3, from another version .* reads format 5"):
        load_checkpoint(tmp_path / "earlier.pt")


def test_a_file_that_would_run_code_is_not_loaded(tmp_path):
    torch.save({"format": 1, "method": nn.Linear(1, 1)}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "code.pt")


@pytest.mark.parametrize("bytes_left", [0, 2000, 50_000], ids=["at once", "midway", "in torch's writer"])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, state, bytes_left):
    resource = pytest.importorskip("resource", reason="only on POSIX can the size of files be limited")
    path = tmp_path / "last.pt"
    save_checkpoint(path, **state, step=1, config={}, data={})
    assert path.stat().st_size > 2000
    state["batches"] = {"partners": torch.zeros(20_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))  # the kernel refuses to write more, as a full disk
    try:
        with pytest.raises(OSError, match=r"cannot write .*last.pt \(File too large\); the one before it is intact"):
            save_checkpoint(path, **state, step=2, config={}, data={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
