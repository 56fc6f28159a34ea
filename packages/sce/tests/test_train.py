"""The command ssl-sce-train, as a person uses it: run, stop, resume, and get things wrong."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ssl_core import load_backbone
from ssl_core.train import load_checkpoint, read_metrics
from ssl_sce.train import main

SMOKE = ["--config", "smoke", "--device", "cpu"]

# What makes an exact resume hard, all at once: workers, a queue that has wrapped, a momentum schedule, accumulation
# and split BatchNorm.
HARD = [
    *SMOKE,
    "--data.source=digits",
    "--data.workers=2",
    "--train.epochs=3",
    "--train.batch_size=32",
    "--train.accumulate=2",
    "--train.log_every=1",
    "--train.checkpoint_every=4",
    "--method.queue_length=96",
    "--method.batch_norm_splits=4",
    "--method.momentum_schedule=cosine",
    "--method.momentum=0.9",
]


def losses(run):
    return {record["step"]: record["loss"] for record in read_metrics(run) if "loss" in record}


@pytest.fixture
def images(tmp_path):
    """A folder of 80 small images in two class folders."""
    generator = torch.Generator().manual_seed(0)
    for index in range(80):
        folder = tmp_path / "images" / ("cats" if index % 2 else "dogs") / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (24, 20, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return tmp_path / "images"


@pytest.fixture
def hard(images):
    return [*HARD, f"--data.source={images}"]


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("smoke") / "run"
    main([*SMOKE, "--out", str(run)])
    return run


def test_a_run_directory_holds_all_that_is_promised(smoke_run):
    names = {str(path.relative_to(smoke_run)) for path in smoke_run.rglob("*") if path.is_file()}
    promised = {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints/last.pt",
        "backbone.safetensors",
        "backbone.json",
    }
    assert promised <= names
    assert not [name for name in names if name.endswith(".part")]
    record = read_metrics(smoke_run)[0]
    assert {
        "loss",
        "chance_loss",
        "lr",
        "images_per_s",
        "data_wait",
        "embedding_std",
        "effective_rank",
    } <= record.keys()


def test_the_backbone_loads_and_its_card_says_what_to_feed_it(smoke_run):
    card = json.loads((smoke_run / "backbone.json").read_text())
    encoder = load_backbone(smoke_run / "backbone.safetensors")
    images = torch.zeros(2, card["channels"], card["image_size"], card["image_size"])
    assert encoder(images).shape == (2, card["num_features"])
    state = load_checkpoint(smoke_run / "checkpoints" / "last.pt")["method"]
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[f"encoder.{name}"]), name


def test_the_saved_configuration_repeats_the_run(smoke_run, tmp_path):
    main(["--config", str(smoke_run / "config.yaml"), "--out", str(tmp_path / "again")])
    assert losses(tmp_path / "again") == losses(smoke_run)


def test_a_finished_run_resumes_to_nothing_left_to_do(smoke_run):
    before = losses(smoke_run)
    main(["--resume", str(smoke_run)])
    assert losses(smoke_run) == before


@pytest.mark.slow
def test_killed_at_a_random_step_and_resumed_gives_the_same_losses_to_the_last_bit(hard, tmp_path):
    main([*hard, "--out", str(tmp_path / "whole")])
    whole = losses(tmp_path / "whole")
    assert len(whole) == 6, "80 images in batches of 32 are 2 steps an epoch"

    killed = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "ssl_sce.train",
        *hard,
        "--train.checkpoint_every=1",
        "--out",
        str(killed),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kill_after = random.Random(time.time()).randint(3, 5)
    deadline = time.monotonic() + 120
    metrics = killed / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < kill_after:
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = load_checkpoint(killed / "checkpoints" / "last.pt")["step"]
    assert 0 < done < 6
    main(["--resume", str(killed)])
    assert losses(killed) == whole
    states = [load_checkpoint(run / "checkpoints" / "last.pt")["method"] for run in (tmp_path / "whole", killed)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_terminating_saves_and_the_message_says_how_to_go_on(hard, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "ssl_sce.train", *hard, "--train.epochs=500", "--out", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"--resume {run}" in errors
    assert "Traceback" not in errors
    assert load_checkpoint(run / "checkpoints" / "last.pt")["step"] >= 1


def error_of(capsys, *arguments):
    """What the command prints as its error."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code in (1, 2)
    return capsys.readouterr().err


def test_bad_input_is_one_clear_error(capsys, images, tmp_path):
    out = f"--out={tmp_path / 'run'}"
    cases = [
        (["--method.temprature=0.1"], "method.temprature"),
        (["--optim.lr=fast"], "optim.lr"),
        (["--data.source=/no/such/folder"], "/no/such/folder"),
        (["--method.temperature=0"], "temperature must be positive, got 0"),
        (["--method.queue_length=8", "--train.batch_size=16"], "method.queue_length 8 is less than the 16 keys"),
        (["--method.batch_norm_splits=3"], "method.batch_norm_splits 3 does not divide"),
        ([f"--data.source={images}", "--train.batch_size=512"], "80 images, fewer than one batch of 512"),
        (["--encoder.name=resnet19"], "resnet19"),
        (["--views=[{augmentation: weak}, {augmentation: stron}]"], "stron"),
        (["--device=mps"] if not torch.backends.mps.is_available() else ["--device=x"], "device"),
        (["--method.predictor.out_dim=7"], "must equal method.projector.out_dim"),
        (["--config=smok"], "did you mean 'smoke'"),
    ]
    for arguments, expected in cases:
        message = error_of(capsys, *SMOKE, out, *arguments)
        assert expected in message, (arguments, message)
        assert "Traceback" not in message
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "work was begun before the refusal"


def test_an_empty_folder_is_refused(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    message = error_of(capsys, *SMOKE, f"--data.source={tmp_path / 'empty'}", f"--out={tmp_path / 'run'}")
    assert str(tmp_path / "empty") in message


@pytest.fixture
def locked_folder(tmp_path):
    """A folder in which nothing can be made: root, whom permissions do not stop, finds one in /sys."""
    if os.geteuid() == 0:
        if not Path("/sys/kernel").is_dir():
            pytest.skip("root may write anywhere on a system without /sys")
        return Path("/sys/kernel")
    (tmp_path / "locked").mkdir(mode=0o500)
    return tmp_path / "locked"


def test_a_folder_that_cannot_be_written_is_refused(capsys, locked_folder):
    message = error_of(capsys, *SMOKE, f"--out={locked_folder / 'run'}")
    assert f"cannot write to the run directory {locked_folder / 'run'}" in message


def test_a_file_in_the_place_of_the_run_directory_is_refused(capsys, tmp_path):
    (tmp_path / "run").write_text("")
    assert "cannot write to the run directory" in error_of(capsys, *SMOKE, f"--out={tmp_path / 'run'}")


def test_another_configuration_in_the_same_folder_is_refused_with_the_difference(capsys, smoke_run):
    message = error_of(capsys, *SMOKE, f"--out={smoke_run}", "--method.temperature=0.3")
    assert "method.temperature: " in message
    assert "-> 0.3" in message


def test_a_truncated_checkpoint_is_refused(capsys, smoke_run, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text((smoke_run / "config.yaml").read_text())
    content = (smoke_run / "checkpoints" / "last.pt").read_bytes()
    (run / "checkpoints" / "last.pt").write_bytes(content[: len(content) // 2])
    assert "not a readable checkpoint" in error_of(capsys, f"--resume={run}")


def test_broken_images_are_skipped_and_listed(images, tmp_path, caplog):
    (images / "cats" / "zero.png").write_bytes(b"")
    content = (images / "dogs" / "deep" / "00.png").read_bytes()
    (images / "dogs" / "cut.png").write_bytes(content[: len(content) // 2])
    small = ["--train.batch_size=16", "--data.broken_limit=0.1"]
    main([*SMOKE, *small, f"--data.source={images}", f"--out={tmp_path / 'run'}"])
    assert "zero.png" in caplog.text
    assert "cut.png" in caplog.text
    assert (tmp_path / "run" / "backbone.safetensors").exists()


def test_the_run_records_its_complete_configuration(smoke_run):
    config = yaml.safe_load((smoke_run / "config.yaml").read_text())
    assert {
        "data",
        "views",
        "encoder",
        "method",
        "optim",
        "train",
        "evaluate",
        "out",
        "seed",
    } == config.keys()
    assert config["method"]["temperature"] > 0
