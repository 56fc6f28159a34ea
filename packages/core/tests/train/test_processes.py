"""A run that goes on in another number of processes is the same run, within rounding, or is refused."""

import json
import logging
from pathlib import Path

import pytest
import ssl_tiny.train
import torch
from torch import nn

from ssl_core import distributed
from ssl_core.nn import GatheredBatchNorm, SplitBatchNorm, depends_on_processes
from ssl_core.testing.command import make_images
from ssl_core.testing.ranks import run_as_ranks
from ssl_core.train import load_checkpoint, read_metrics
from ssl_core.train.checkpoint import same_processes

# 4 epochs of 2 steps of 2 micro-batches of 16 images; the queue wraps, and its cursor is not at 0.
OPTIONS = [
    *("--config", "smoke", "--device", "cpu", "--train.epochs=4", "--train.batch_size=32", "--train.accumulate=2"),
    *("--train.log_every=1", "--train.keep_every=1", "--method.queue.length=72", "--evaluate.knn_every=1"),
    *("--train.sync_batch_norm=true", "--optim.lr=0.001", "--data.holdout=0.2", "--evaluate.k=5"),
]


def train_whole(images: str, out: Path, *options: str) -> None:
    ssl_tiny.train.main([*OPTIONS, f"--data.source={images}", f"--out={out}", *options])


def continue_from(other: Path, out: Path, *options: str) -> None:
    ssl_tiny.train.main([f"--resume={other / 'checkpoints/epoch_0002.pt'}", f"--out={out}", *options])


def logged(run: Path, name: str) -> torch.Tensor:
    return torch.tensor([record[name] for record in read_metrics(run) if name in record])


@pytest.mark.distributed
def test_a_run_goes_on_in_two_processes_and_back_in_one_with_the_same_images_losses_and_queue(tmp_path):
    images = str(make_images(tmp_path / "images"))
    train_whole(images, tmp_path / "one")
    # The queue is sharded in the whole run, and whole in the one that goes on from that of one process.
    run_as_ranks(train_whole, (images, tmp_path / "two", "--method.queue.sharded=true"), processes=2)
    run_as_ranks(continue_from, (tmp_path / "one", tmp_path / "one_then_two"), processes=2)
    continue_from(tmp_path / "two", tmp_path / "two_then_one", "--method.queue.sharded=false")
    expected = load_checkpoint(tmp_path / "one/checkpoints/last.pt")["method"]
    assert expected["queue.cursor"] == 8 * 32 % 72
    for run in (tmp_path / name for name in ("two", "one_then_two", "two_then_one")):
        for name, number in {"loss": 8, "knn_top1": 4, "intra_class_similarity": 4}.items():
            assert len(logged(run, name)) == number
            torch.testing.assert_close(logged(run, name), logged(tmp_path / "one", name), rtol=1e-5, atol=0)
        state = load_checkpoint(run / "checkpoints/last.pt")["method"]
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-5)
        found, wanted = (json.loads((each / "knn.json").read_text()) for each in (run, tmp_path / "one"))
        assert {**found, "encoder": ""} == {**wanted, "encoder": ""}
    keys = expected["queue.keys"]
    nearest = torch.cdist(keys, keys).fill_diagonal_(torch.inf).min()
    assert nearest > 1e-3, "keys of different images are alike, so that the order of the queue is not compared"


def content(processes: int) -> dict[str, object]:
    return {"generators": [{}] * processes, "step": 7}


def test_a_run_whose_batch_norm_sees_one_process_does_not_go_on_in_others_unless_that_is_accepted(caplog, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    options = {"batch_size": 256, "accept": False}
    same_processes(content(4), depends=True, **options)
    assert not caplog.records
    with pytest.raises(
        ValueError, match=r"in 8 processes, 32 images each, up to step 7, and now there are 4 of 64: .*"
    ):
        same_processes(content(8), depends=True, **options)
    with pytest.raises(ValueError, match=r"Start 1 process, or go on all the same: --train.processes_changed accept"):
        same_processes(content(1), depends=True, **options)
    same_processes(content(8), depends=True, batch_size=256, accept=True)
    assert "BatchNorm's statistics are of other numbers of images" in caplog.records[-1].message
    with caplog.at_level(logging.INFO):
        same_processes(content(8), depends=False, **options)
    assert "losses agree within rounding" in caplog.records[-1].message


@pytest.mark.parametrize(
    ("layer", "depends"),
    [
        (nn.BatchNorm2d(2), True),
        (SplitBatchNorm(2, 4), True),
        (nn.SyncBatchNorm(2), False),
        (GatheredBatchNorm(2), False),
        (nn.GroupNorm(1, 2), False),
    ],
)
def test_the_number_of_processes_matters_to_batch_norm_of_one_of_them(layer, depends):
    assert depends_on_processes(nn.Sequential(nn.Conv2d(3, 2, 1), layer)) is depends
