"""The command of a method package as a person uses it: train, stop, resume, and get things wrong.

Every package's recipe ``smoke`` trains in seconds on the CPU; all checks start from it.
"""

import contextlib
import importlib
import io
import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
import yaml
from PIL import Image

from ssl_core.backbone import load_backbone
from ssl_core.config import to_dict
from ssl_core.testing.process import TIMEOUT_S, started_process
from ssl_core.testing.recipes import parse
from ssl_core.train import load_checkpoint, read_metrics
from ssl_core.train.log import Log

_SMOKE = ["--config", "smoke", "--device", "cpu"]

_IMAGES = 80
_STEPS = 8  # of a run that is killed: 4 epochs of 2 batches
_BATCH = 32


def check_run(train: ModuleType, folder: Path) -> None:
    """Check a run of the recipe ``smoke``: what it leaves behind, and that it can be repeated and resumed.

    The run directory holds configuration, metrics, checkpoint and backbone; the configuration is complete and repeats
    the losses; the backbone loads, is the trained encoder, and takes the images that its card describes; to resume
    the finished run does nothing. A method with a queue logs its fill, the loss of chance, and how its keys spread.

    Args:
        train: module ``train`` of the package, with its ``Config`` and ``main``, and ``recipes/`` beside it.
        folder: empty folder to work in.

    Raises:
        AssertionError: naming what is missing or differs.
    """
    run, command = folder / "run", [*_SMOKE, "--evaluate.k=5"]  # more than a class has images would give way
    train.main([*command, "--out", str(run)])

    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    promised = {"config.yaml", "views.png", "metrics.jsonl", "checkpoints/last.pt"}
    promised |= {"backbone.safetensors", "backbone.json"}
    assert promised <= files, f"the run directory has no {sorted(promised - files)}"
    assert not [name for name in files if name.endswith(".part")], f"half-written files are left: {sorted(files)}"
    state = load_checkpoint(run / "checkpoints" / "last.pt")["method"]
    logged = {"loss", "lr", "epoch", "images_per_s", "data_wait"}
    if "queue.keys" in state:
        logged |= {"queue_fill", "chance_loss", "embedding_std", "effective_rank"}
    missing = logged - read_metrics(run)[0].keys()
    assert not missing, f"the log has no {sorted(missing)}"

    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved == to_dict(parse(train, *command)), "config.yaml is not the complete configuration of the run"

    card = json.loads((run / "backbone.json").read_text())
    encoder = load_backbone(run / "backbone.safetensors")
    features = encoder(torch.zeros(2, card["channels"], card["image_size"], card["image_size"]))
    assert features.shape == (2, card["num_features"]), f"the card says {card}, the features are {features.shape}"
    assert card["method"], "the card names no method"
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[f"encoder.{name}"]), f"{name} of the backbone is not the trained encoder's"

    losses = _losses(run)
    train.main(["--config", str(run / "config.yaml"), "--out", str(folder / "again")])
    assert _losses(folder / "again") == losses, "the saved configuration gives other losses"
    train.main(["--resume", str(run)])
    assert _losses(run) == losses, "to resume the finished run changes its log"


def check_exact_resume(train: ModuleType, folder: Path, options: Sequence[str] = ()) -> None:
    """Check that a run that is killed and resumed ends as one that never stopped, to the last bit.

    What makes this hard comes together: worker processes, accumulation, and whatever ``options`` add. The run takes 8
    steps of 32 images and is killed between its fifth and its last; a queue should have wrapped by then, and not just
    be at its first row again: 72 is a good length.

    Args:
        train: module ``train`` of the package.
        folder: empty folder to work in.
        options: further options of the command line, for all state that the method has: a short queue, schedules,
            permutations; ``--train.accumulate=1`` for a method that refuses to accumulate.

    Raises:
        AssertionError: if losses or final state differ.
    """
    command = [*_SMOKE, *_on_images(folder), "--data.workers=2", "--train.epochs=4", f"--train.batch_size={_BATCH}"]
    command += ["--train.accumulate=2", "--train.log_every=1", *options]
    whole, killed = folder / "whole", folder / "killed"
    train.main([*command, "--out", str(whole)])
    assert len(_losses(whole)) == _STEPS, f"{_IMAGES} images in batches of {_BATCH}, and {len(_losses(whole))} steps"
    expected = load_checkpoint(whole / "checkpoints" / "last.pt")["method"]
    if rows := len(expected.get("queue.keys", ())):
        hides = rows > 3 * _BATCH or any(step * _BATCH % rows == 0 for step in range(3, _STEPS))
        assert not hides, f"a queue of {rows} rows has not wrapped at the kill, or its cursor is 0: take 72"

    kill_after = 5  # records; the last one's checkpoint may be missing
    command += ["--train.checkpoint_every=1", "--out", str(killed)]
    # It waits before its last step, so that it cannot end before it is killed, however busy the machine is.
    with started_process([sys.executable, __file__, train.__name__, *command], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while _num_records(killed) < kill_after:
            assert process.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < deadline, "the run does not get ahead"
            time.sleep(0.002)
    done = load_checkpoint(killed / "checkpoints" / "last.pt")["step"]
    assert 0 < done < _STEPS, f"killed after step {done} of {_STEPS}"

    train.main(["--resume", str(killed)])
    assert _losses(killed) == _losses(whole), f"resumed after step {done}: {_losses(killed)}, not {_losses(whole)}"
    state = load_checkpoint(killed / "checkpoints" / "last.pt")["method"]
    different = [name for name, value in expected.items() if not torch.equal(value, state[name])]
    assert not different, f"resumed after step {done}, these differ at the end: {different}"


def check_bad_input(train: ModuleType, folder: Path, mistakes: Mapping[str, str]) -> None:
    """Check that each mistake is one clear error before any work is done: no traceback, status 1 or 2.

    Beside the package's own mistakes, those that everyone can make: unknown keys, recipes, encoders, augmentations, a
    wrong type, a folder that is not there, fewer images than a batch.

    Args:
        train: module ``train`` of the package.
        folder: empty folder to work in.
        mistakes: options to add to the recipe ``smoke``, each with the words that the message must have, such as
            ``{"--method.temperature 0": "temperature must be positive, got 0"}``.

    Raises:
        AssertionError: naming the mistake that is accepted, or refused in other words.
    """
    everyones = {
        "--method.no_such_option 1": "method.no_such_option",
        "--optim.lr fast": "optim.lr",
        "--data.source /no/such/folder": "/no/such/folder",
        shlex.join([*_on_images(folder), "--train.batch_size=96"]): f"{_IMAGES} images, fewer than one batch of 96",
        "--encoder.name resnet19": "resnet19",
        "--views '[{augmentation: weak}, {augmentation: stron}]'": "stron",
        "--config smok": "did you mean 'smoke'",
    }
    run = folder / "run"
    for mistake, expected in (everyones | dict(mistakes)).items():
        message = error_of(train, *_SMOKE, f"--out={run}", *shlex.split(mistake))
        assert expected in message, f"{mistake}: the message is {message!r}, without {expected!r}"
        assert "Traceback" not in message, f"{mistake}: {message}"
    assert not (run / "metrics.jsonl").exists(), "training began before the refusal"


def error_of(train: ModuleType, *arguments: str) -> str:
    """The message that the command prints when it refuses its arguments.

    Raises:
        AssertionError: if it does not, with status 1 or 2.
    """
    status: object = 0
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        try:
            train.main(list(arguments))
        except SystemExit as stopped:
            status = stopped.code
    assert status in (1, 2), f"{shlex.join(arguments)} is not refused, but ends with status {status}"
    return printed.getvalue()


def make_images(folder: Path, number: int = _IMAGES) -> Path:
    """A folder of small random images in two folders of classes."""
    generator = torch.Generator().manual_seed(0)
    for index in range(number):
        file = folder / ("cats" if index % 2 else "dogs") / "deep" / f"{index:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(256, (24, 20, 3), generator=generator, dtype=torch.uint8).numpy()).save(file)
    return folder


def _on_images(folder: Path) -> list[str]:
    return [f"--data.source={make_images(folder / 'images')}"]


def _num_records(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def _losses(run: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_metrics(run) if "loss" in record}


def _train_up_to_the_last_step(train: str, arguments: list[str]) -> None:
    """Run a command that logs every step, and wait for the end when it has logged the last but one."""
    record = Log.record

    def hold(log: Log, step: int, values: Mapping[str, float], *, shown: str = "") -> None:
        record(log, step, values, shown=shown)
        if step == _STEPS - 1:
            threading.Event().wait(TIMEOUT_S)  # not for ever: the test may be gone

    with patch.object(Log, "record", hold):
        importlib.import_module(train).main(arguments)


if __name__ == "__main__":
    _train_up_to_the_last_step(sys.argv[1], sys.argv[2:])
