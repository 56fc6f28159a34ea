"""A run that goes on in another number of processes is the same run, within rounding, or is refused."""

import logging
from pathlib import Path

import pytest
import ssl_tiny.train
import torch
from torch import nn

from ssl_core import distributed
from ssl_core.nn import SplitBatchNorm, depends_on_processes
from ssl_core.testing.command import make_images
from ssl_core.testing.ranks import run_as_ranks
from ssl_core.train import load_checkpoint, read_metrics
from ssl_core.train.checkpoint import same_processes

# 4 epochs of 2 steps of 2 micro-batches of 16 images, without BatchNorm; the queue wraps, and its cursor is not at 0.
OPTIONS = [
    *("--config", "smoke", "--device", "cpu", "--train.epochs=4", "--train.batch_size=32", "--train.accumulate=2"),
    *("--train.log_every=1", "--train.keep_every=1", "--method.queue.length=72", "--evaluate.knn_every=0"),
    *("--encoder.name=vit_tiny_patch16_224", "--projector.norm=false", "--encoder.stem=imagenet"),
    "--encoder.options={patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}",
]


def train_and_continue(images: str, out: Path, other: Path | None) -> None:
    """A whole run, and one that goes on from where another number of processes has come to."""
    ssl_tiny.train.main([*OPTIONS, f"--data.source={images}", f"--out={out / 'whole'}"])
    if other is not None:
        continue_from(other, out / "continued")


def continue_from(other: Path, out: Path) -> None:
    ssl_tiny.train.main([f"--resume={other / 'checkpoints/epoch_0002.pt'}", f"--out={out}"])


def losses(run: Path) -> torch.Tensor:
    return torch.tensor([record["loss"] for record in read_metrics(run) if "loss" in record])


@pytest.mark.distributed
def test_a_run_goes_on_in_two_processes_and_back_in_one_with_the_same_images_losses_and_queue(tmp_path):
    images = str(make_images(tmp_path / "images"))
    one, two = tmp_path / "one", tmp_path / "two"
    train_and_continue(images, one, None)
    run_as_ranks(train_and_continue, (images, two, one / "whole"), processes=2)
    continue_from(two / "whole", one / "continued")
    expected = load_checkpoint(one / "whole/checkpoints/last.pt")["method"]
    assert expected["queue.cursor"] == 8 * 32 % 72
    for run in (two / "whole", two / "continued", one / "continued"):
        assert len(losses(run)) == 8
        torch.testing.assert_close(losses(run), losses(one / "whole"), rtol=1e-5, atol=0)
        state = load_checkpoint(run / "checkpoints/last.pt")["method"]
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-5)
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
        (nn.GroupNorm(1, 2), False),
    ],
)
def test_the_number_of_processes_matters_to_batch_norm_of_one_of_them(layer, depends):
    assert depends_on_processes(nn.Sequential(nn.Conv2d(3, 2, 1), layer)) is depends
