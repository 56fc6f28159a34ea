"""What every method's command does, with the smallest method: refuse folders, stop on a signal, skip broken images."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ssl_tiny.train
import torch
from PIL import Image
from ssl_tiny.train import main

from ssl_core import pretrain
from ssl_core.data import Batches
from ssl_core.evaluate import evaluate_similarity
from ssl_core.ops import _triton, cpp
from ssl_core.testing import SINGLE, error_of, make_images, started_process
from ssl_core.testing.process import TIMEOUT_S
from ssl_core.train import load_checkpoint, read_metrics

SMOKE = ["--config", "smoke", "--device", "cpu"]


def error(*arguments):
    return error_of(ssl_tiny.train, *SMOKE, *arguments)


def test_a_command_without_recipe_and_views_says_where_they_come_from(tmp_path):
    message = error_of(ssl_tiny.train, "--device=cpu", f"--out={tmp_path / 'run'}")
    assert "`views` is empty: name a recipe, such as --config smoke" in message
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("smoke") / "run"
    main([*SMOKE, "--out", str(run)])
    return run


@pytest.mark.slow
def test_terminating_saves_and_the_message_says_how_to_go_on(tmp_path):
    run = tmp_path / "run"
    options = ["--data.source", str(make_images(tmp_path / "images")), "--data.workers=2", "--train.epochs=500"]
    command = [sys.executable, "-m", "ssl_tiny", *SMOKE, *options, "--train.log_every=1", "--out", str(run)]
    with started_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert process.poll() is None
            time.sleep(0.02)
        process.terminate()
        _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"--resume {run}" in errors
    assert "Traceback" not in errors
    assert load_checkpoint(run / "checkpoints" / "last.pt")["step"] >= 1


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without mps")
def test_a_device_that_is_not_there_is_refused(tmp_path):
    message = error("--device=mps", f"--out={tmp_path / 'run'}")
    assert "train.device mps: torch" in message
    assert "sees no such device" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("renderer", "text"),
    [
        ("reference", "reference"),
        pytest.param(
            "auto",
            "cpu: ",
            marks=pytest.mark.skipif(not cpp.instruction_sets(), reason="needs the compiled kernels"),
        ),
    ],
)
def test_a_run_says_what_renders_its_views_and_how_fast_it_was(tmp_path, capsys, renderer, text):
    main([*SMOKE, f"--data.renderer={renderer}", f"--out={tmp_path / 'run'}"])
    printed = capsys.readouterr().out
    assert f"views     weak 16 px, weak 16 px (rendered by {text}" in printed
    assert re.search(r"trained in \d+ s, [\d,]+ images/s, \d+\.\d % waiting for data; the backbone is", printed)


@pytest.mark.skipif(_triton.is_interpreted(), reason="interpreted, Triton runs on the CPU")
def test_a_renderer_that_cannot_run_here_is_refused_before_anything_is_read(tmp_path):
    message = error("--data.renderer=device", "--data.source=nowhere", f"--out={tmp_path / 'run'}")
    assert "data.renderer device: it runs on CUDA devices" in message
    assert "there is auto, " in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("allowed", [True, False])
def test_training_decodes_large_jpegs_at_what_its_smallest_crop_needs(tmp_path, monkeypatch, allowed):
    image = Image.fromarray(torch.randint(256, (170, 200, 3), dtype=torch.uint8).numpy())
    (tmp_path / "images").mkdir()
    for index in range(16):
        image.save(tmp_path / "images" / f"{index}.jpg")
    seen = []

    def batches(source, *arguments, **options):
        seen.append(source)
        return Batches(source, *arguments, **options)

    monkeypatch.setattr(pretrain, "Batches", batches)
    data = [f"--data.source={tmp_path / 'images'}", f"--data.scaled_decode={allowed}", "--train.batch_size=16"]
    main([*SMOKE, *data, f"--out={tmp_path / 'run'}"])
    # The weak crop's narrowest box is sqrt(0.2 * 0.75) of a side; 16 pixels of it need a short side of 42.
    assert tuple(seen[0].image(0).shape) == ((3, 43, 50) if allowed else (3, 170, 200))


def test_learning_rates_of_vectors_and_parts_are_shown(tmp_path, capsys):
    rates = ["--optim.lr=0.4", "--optim.lr_1d=0.04", "--optim.constant_lr=[projector]"]
    main([*SMOKE, *rates, f"--out={tmp_path / 'run'}"])
    expected = "learning rate 0.1 = 0.4 x 64 / 256, of one-dimensional parameters 0.01, constant in projector\n"
    assert expected in capsys.readouterr().out


def test_a_constant_learning_rate_of_a_part_that_is_not_there_is_refused(tmp_path):
    message = error("--optim.constant_lr=[predictor]", f"--out={tmp_path / 'run'}")
    assert "optim.constant_lr names 'predictor'" in message
    assert "it has encoder, projector" in message


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in error(f"--data.source={tmp_path / 'empty'}", f"--out={tmp_path / 'run'}")


@pytest.fixture
def locked_folder(tmp_path):
    """A folder in which nothing can be made: root, whom permissions do not stop, finds one in /sys."""
    if os.geteuid() == 0:
        if not Path("/sys/kernel").is_dir():
            pytest.skip("root may write anywhere on a system without /sys")
        return Path("/sys/kernel")
    (tmp_path / "locked").mkdir(mode=0o500)
    return tmp_path / "locked"


def test_a_folder_that_cannot_be_written_is_refused(locked_folder):
    message = error(f"--out={locked_folder / 'run'}")
    assert f"cannot write to the run directory {locked_folder / 'run'}" in message


def test_a_file_in_the_place_of_the_run_directory_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    assert "cannot write to the run directory" in error(f"--out={tmp_path / 'run'}")


@pytest.mark.parametrize("name", ["random", "pixels", "timm:resnet50"])
def test_a_run_directory_called_like_another_encoder_is_refused(name):
    assert f"out {name}: ssl-core eval takes this name for another encoder" in error(f"--out={name}")


def test_another_configuration_in_the_same_folder_is_refused_with_the_difference(smoke_run):
    before = {file: file.read_bytes() for file in smoke_run.rglob("*") if file.is_file()}
    message = error(f"--out={smoke_run}", "--method.momentum=0.3", "--data.mean=[0.1]", "--data.std=[0.7]")
    assert "method.momentum: 0.9 -> 0.3" in message
    assert {file: file.read_bytes() for file in smoke_run.rglob("*") if file.is_file()} == before


def test_a_truncated_checkpoint_is_refused(smoke_run, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text((smoke_run / "config.yaml").read_text())
    content = (smoke_run / "checkpoints" / "last.pt").read_bytes()
    (run / "checkpoints" / "last.pt").write_bytes(content[: len(content) // 2])
    assert "not a readable checkpoint" in error_of(ssl_tiny.train, f"--resume={run}")


def test_broken_images_are_skipped_and_listed(tmp_path, caplog):
    images = make_images(tmp_path / "images")
    (images / "cats" / "zero.png").write_bytes(b"")
    content = (images / "dogs" / "deep" / "00.png").read_bytes()
    (images / "dogs" / "cut.png").write_bytes(content[: len(content) // 2])
    small = ["--train.batch_size=16", "--data.broken_limit=0.1"]
    main([*SMOKE, *small, f"--data.source={images}", f"--out={tmp_path / 'run'}"])
    assert "zero.png" in caplog.text
    assert "cut.png" in caplog.text
    assert (tmp_path / "run" / "backbone.safetensors").exists()


def evaluated(run):
    return [record for record in read_metrics(run) if "knn_top1" in record]


@pytest.mark.slow
def test_the_similarity_of_test_images_is_logged_with_the_knn(tmp_path):
    run = tmp_path / "run"
    main([*SMOKE, "--evaluate.knn_every=1", "--out", str(run)])
    (record,) = evaluated(run)
    expected = evaluate_similarity(str(run), out=str(tmp_path), progress=False)["intra_class"]
    assert record["intra_class_similarity"] == pytest.approx(expected, abs=SINGLE)


def test_the_knn_is_logged_without_similarity_where_no_class_has_two_test_images(tmp_path):
    images = make_images(tmp_path / "images")
    for name, first in (("cats", "01.png"), ("dogs", "00.png")):
        (tmp_path / "test" / name).mkdir(parents=True)
        shutil.copy(images / name / "deep" / first, tmp_path / "test" / name)
    data = [f"--data.source={images}", f"--data.test_source={tmp_path / 'test'}", "--train.batch_size=16"]
    main([*SMOKE, *data, "--evaluate.knn_every=1", "--evaluate.k=5", f"--out={tmp_path / 'run'}"])
    (record,) = evaluated(tmp_path / "run")
    assert "intra_class_similarity" not in record
