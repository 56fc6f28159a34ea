import pytest
import torch
from torch import nn

from ssl_core.train.checkpoint import load_checkpoint, restore_, save_checkpoint


@pytest.fixture
def state():
    method = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    method(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"method": method, "optimizer": optimizer, "batches": {"partners": None}}


def test_a_checkpoint_gives_back_state_generators_and_step(tmp_path, state):
    path = tmp_path / "last.pt"
    save_checkpoint(path, **state, step=7, config={"seed": 1})
    expected = torch.rand(3)
    fresh = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.5, momentum=0.9)
    content = load_checkpoint(path)
    assert restore_(content, method=fresh, optimizer=optimizer) == 7
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(fresh.weight, state["method"].weight)
    assert optimizer.state_dict()["state"].keys() == state["optimizer"].state_dict()["state"].keys()
    assert content["config"] == {"seed": 1}
    assert content["batches"] == {"partners": None}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99], ids=["empty", "a third", "almost whole"])
def test_a_truncated_checkpoint_is_a_clear_error(tmp_path, state, fraction):
    path = tmp_path / "last.pt"
    save_checkpoint(path, **state, step=1, config={})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_another_file_of_torch_is_not_a_checkpoint(tmp_path):
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt is not a checkpoint of a run"):
        load_checkpoint(tmp_path / "other.pt")


def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_sentence(tmp_path):
    torch.save({"format": 2, "method": {}}, tmp_path / "earlier.pt")
    with pytest.raises(ValueError, match=r"earlier.pt is of format 2, from another version .* reads format 3"):
        load_checkpoint(tmp_path / "earlier.pt")


def test_a_file_that_would_run_code_is_not_loaded(tmp_path):
    torch.save({"format": 1, "method": nn.Linear(1, 1)}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "code.pt")


@pytest.mark.parametrize("bytes_left", [0, 2000], ids=["at once", "midway"])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, state, bytes_left):
    resource = pytest.importorskip("resource", reason="only on POSIX can the size of files be limited")
    path = tmp_path / "last.pt"
    save_checkpoint(path, **state, step=1, config={})
    assert path.stat().st_size > 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))  # the kernel refuses to write more, as a full disk
    try:
        with pytest.raises(OSError, match=r"could not save step 2.*is intact"):
            save_checkpoint(path, **state, step=2, config={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
