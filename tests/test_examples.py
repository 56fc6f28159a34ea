"""The examples do what they say, on few images."""

import functools
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

import fine_tune_with_timm
import own_loop
import pytest
import torch
import your_own_method
from torch import nn
from torch.distributed.run import get_args_parser
from torchvision.datasets import FakeData

from ssl_core.backbone import BackboneCard, save_backbone
from ssl_core.data.digits import draw_digits
from ssl_core.nn import EncoderConfig, QueueConfig, make_encoder
from ssl_core.testing import check_method, make_images
from ssl_core.views import ViewConfig, make_view_specs

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}


def test_examples_are_short():
    assert not [file.name for file in EXAMPLES.glob("*.py") if len(file.read_text().splitlines()) >= 100]


@pytest.fixture
def slurm_job(tmp_path):
    """The example of a Slurm job, among stand-ins: with what torchrun does, its status and what was queued again."""
    run, queued, binaries = tmp_path / "run", tmp_path / "queued", tmp_path / "bin"
    (run / "checkpoints").mkdir(parents=True)
    binaries.mkdir()

    def job(torchrun: str) -> tuple[int, list[str]]:
        show = 'if [ "$1" = show ]; then printf "%s\\n" first second; else echo "$@" >> queued; fi'
        for name, text in {"srun": '"$@"', "scontrol": show, "torchrun": f'echo "$@" > arguments; {torchrun}'}.items():
            (binaries / name).write_text(f"#!/bin/sh\n{text}\n")
            (binaries / name).chmod(0o755)
        env = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        env |= {"SLURM_JOB_NODELIST": "nodes", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}
        command = ["bash", EXAMPLES / "slurm.sh", "run", "-m", "ssl_sce", "--config", "smoke"]
        done = subprocess.run(command, cwd=tmp_path, env=env, timeout=60, check=False)
        return done.returncode, queued.read_text().splitlines() if queued.exists() else []

    return job


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_a_slurm_job_that_got_ahead_is_queued_again_until_it_is_done_and_one_that_did_not_is_not(slurm_job, tmp_path):
    save = "sleep 0.02; touch run/checkpoints/last.pt"
    assert slurm_job("exit 1") == (1, [])  # an error before the first checkpoint
    assert slurm_job(f"{save}; exit 1") == (1, ["requeue 7"])
    assert slurm_job(f"{save}; exit 1") == (1, ["requeue 7"] * 2)
    assert slurm_job("exit 1") == (1, ["requeue 7"] * 2)  # the same error again
    assert slurm_job(f"{save}; exit 0") == (0, ["requeue 7"] * 2)
    parsed = get_args_parser().parse_args(shlex.split((tmp_path / "arguments").read_text()))
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_endpoint) == ("2", "8", "first:29500")
    assert {"SIGTERM", "SIGUSR1"} < {*parsed.signals_to_handle.split(",")}
    assert parsed.training_script_args == ["--config", "smoke", "--out", "run"]


@pytest.mark.slow
def test_a_loop_of_your_own_trains_an_encoder_and_measures_it(capsys):
    images, _ = draw_digits(train=True)
    encoder = own_loop.train(images[:40], epochs=2, batch_size=4)
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    assert 0 < own_loop.knn(encoder) < 1


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
@pytest.mark.slow
def test_moco_in_lightning_moves_queue_and_momentum_branch_and_resumes_them(tmp_path, monkeypatch):
    import lightning_moco as moco  # only the sessions that run everything have Lightning

    images = functools.partial(FakeData, 32, (3, 32, 32))
    monkeypatch.setattr(moco, "CIFAR10", lambda root, download, transform: images(transform=transform))
    options = {"accelerator": "cpu", "default_root_dir": tmp_path, "logger": False, "enable_progress_bar": False}
    options |= {"batch_size": 16, "workers": 0, "enable_model_summary": False, "accumulate_grad_batches": 2}
    method = moco.train(max_epochs=1, **options)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    resumed = moco.train(max_epochs=2, resume=checkpoint, **options)
    assert (method.queue.filled, resumed.queue.filled) == (32, 64)
    assert torch.equal(method.queue.keys[:32], resumed.queue.keys[:32])
    before, after = (next(each.momentum_branch.parameters()) for each in (method, resumed))
    assert 0 < (after - before).abs().max() < 0.01


def test_a_backbone_is_fine_tuned_with_timm(tmp_path, monkeypatch, capsys):
    encoder = make_encoder(EncoderConfig("resnet18", "imagenet", options=SMALL), channels=3, image_size=32)
    card = BackboneCard("resnet18", 3, 32, (0.5,) * 3, (0.3,) * 3, 8, options=SMALL)
    save_backbone(tmp_path / "backbone.safetensors", encoder, card)
    images = str(make_images(tmp_path / "images"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["", "backbone.safetensors", images, images, "--epochs=2", "--workers=0"])
    fine_tune_with_timm.main()
    assert "test images are right" in capsys.readouterr().out
    assert torch.load("classifier.pt")["fc.weight"].shape == (2, 8)


def make_dcl():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6), nn.Tanh())
    views = make_view_specs([ViewConfig("weak", 8, count=2)])
    return your_own_method.DCL(
        encoder, nn.Linear(6, 5), your_own_method.DCLConfig(queue=QueueConfig(20)), views=views, dim=5
    )


def test_a_method_of_your_own_keeps_what_methods_promise():
    check_method(make_dcl)


@pytest.mark.parametrize("queue", [QueueConfig(initial="empty"), QueueConfig(sharded=True)])
def test_a_method_of_your_own_refuses_a_queue_of_which_it_would_read_rows_that_are_none(queue):
    with pytest.raises(ValueError, match=r"queue\.initial random and queue\.sharded false"):
        your_own_method.DCLConfig(queue=queue)


@pytest.mark.slow
def test_a_method_of_your_own_trains_by_its_command(tmp_path):
    images = make_images(tmp_path / "images")
    small = ["--config=digits", f"--data.source={images}", "--train.batch_size=8", "--train.steps=2"]
    your_own_method.main([*small, f"--out={tmp_path / 'run'}"])
    assert (tmp_path / "run" / "backbone.safetensors").is_file()


def test_the_decoupled_loss_is_infonce_without_the_positive():
    query, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    loss = your_own_method.dcl_loss(query, query, queue, 0.5)
    assert loss.item() == pytest.approx(math.log(2) - 2)  # log(e^0 + e^0) - 1 / 0.5
