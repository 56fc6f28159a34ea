"""What every method's command does, with the smallest method: refuse folders, stop on a signal, skip broken images."""

import dataclasses
import json
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
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from ssl_tiny.train import main

from ssl_core import cli, distributed, pretrain
from ssl_core.data import Batches, DataConfig, pack
from ssl_core.evaluate import evaluate_similarity
from ssl_core.folder import LAST, claimed, last_saved_ns
from ssl_core.nn import MomentumConfig
from ssl_core.ops import _triton, cpp
from ssl_core.run import check_batch
from ssl_core.testing import SINGLE, error_of, make_images, started_process
from ssl_core.testing.process import TIMEOUT_S
from ssl_core.train import TrainConfig, load_checkpoint, read_metrics

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


@pytest.mark.slow
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
    assert f"cannot write to the folder {locked_folder / 'run'}" in message


def test_a_file_in_the_place_of_the_run_directory_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    assert "cannot write to the folder" in error(f"--out={tmp_path / 'run'}")


@pytest.mark.parametrize("out", ["images", "images/cats", "images/cats/deep"])
def test_a_folder_of_images_is_refused_since_a_run_there_would_hide_them(tmp_path, out):
    images = make_images(tmp_path / "images")
    before = contents(tmp_path)
    message = error(f"--data.source={images}", f"--out={tmp_path / out}")
    assert f"{tmp_path / out} holds images, and in a run directory none are read any more" in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["random", "pixels", "timm:resnet50"])
def test_a_run_directory_called_like_another_encoder_is_refused(name):
    assert f"out {name}: ssl-core eval takes this name for another encoder" in error(f"--out={name}")


def contents(folder):
    """Everything in a folder, with its time, as a refused command must leave it."""
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


@pytest.fixture
def without_tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def refuse(run):
    raise ValueError(f"no partners among {len(run.source)} images")


REFUSED = {
    "--data.source=nowhere": "'nowhere' does not exist in ",
    "--train.tensorboard=true": "train.tensorboard is on but tensorboard is not installed",
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *REFUSED.items(),
        ("--method.momentum=0.3 --data.mean=[0.1] --data.std=[0.7]", "method.momentum: 0.9 -> 0.3"),
        ("--train.epochs=2", "--encoder.weights {run}/checkpoints/last.pt"),
        ("--data.source={images}", "images: 1397 -> 80\n  classes: 10 -> 2\n  names, sizes or pixels differ"),
        ("--data.holdout=0.5", "data.holdout"),
    ],
)
@pytest.mark.slow
def test_a_refused_command_changes_no_file_of_a_finished_run(
    smoke_run, tmp_path, without_tensorboard, options, message
):
    before = contents(smoke_run)
    images = make_images(tmp_path / "images")
    assert message.format(run=smoke_run) in error(f"--out={smoke_run}", *options.format(images=images).split())
    assert contents(smoke_run) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *REFUSED.items(),
        ("--encoder.weights=nowhere.pt", "nowhere.pt"),
        ("--train.batch_size=2000", "fewer than one batch"),
        ("", "no partners among 1397 images"),
        ("--resume={run} --train.epochs=2", "train.epochs: 1 -> 2"),
        ("--resume={run} --out={run}/../other", "other holds a run already"),
    ],
)
@pytest.mark.parametrize("out", [[], ["--out=runs/x"]], ids=["a new folder", "out"])
@pytest.mark.slow
def test_a_refused_command_leaves_nothing_behind(
    smoke_run, tmp_path, monkeypatch, without_tensorboard, out, options, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ssl_tiny.train, "main", dataclasses.replace(main, prepare=refuse))
    (smoke_run.parent / "other" / LAST.parent).mkdir(parents=True, exist_ok=True)
    (smoke_run.parent / "other" / LAST).touch()
    before = contents(smoke_run)
    assert message in error(*out, *options.format(run=smoke_run).split())
    assert not list(tmp_path.iterdir())
    assert contents(smoke_run) == before


def test_a_run_directory_in_use_is_refused_and_not_touched(smoke_run, monkeypatch):
    monkeypatch.setattr("ssl_core.folder._TOUCHED_EVERY_S", 1000.0)  # not by its holder either
    before = contents(smoke_run)
    with claimed(smoke_run, "", saved_ns=last_saved_ns(smoke_run)):
        held = contents(smoke_run)
        assert f"{smoke_run} is in use by process {os.getpid()} on " in error(f"--out={smoke_run}")
        assert contents(smoke_run) == held
    assert held.keys() == before.keys()


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """A run of three epochs on 80 images that was stopped in the second, in the folder that holds them."""

    class Stopped(ssl_tiny.train.Tiny):
        def update(self, keys, step):
            super().update(keys, step)
            if step.index + 1 == 8:
                os.kill(os.getpid(), signal.SIGTERM)

    images = make_images(tmp_path_factory.mktemp("stopped") / "images")
    options = [
        "--data.source=.",
        "--train.batch_size=16",
        "--train.epochs=3",
        "--train.keep_every=1",
        "--train.log_every=4",
        "--encoder.init=torch_stem",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(images)
        patch.setattr(ssl_tiny.train, "Tiny", Stopped)
        with pytest.raises(SystemExit):
            main([*SMOKE, *options, "--out=runs/x"])
    return images / "runs" / "x"


@pytest.fixture
def images_run(stopped_run, tmp_path, monkeypatch):
    """A copy of it to work with, from inside its folder of images."""
    monkeypatch.chdir(shutil.copytree(stopped_run.parents[1], tmp_path / "images"))
    return tmp_path / "images" / "runs" / "x"


def steps(run):
    return [record["step"] for record in read_metrics(run) if "loss" in record]


@pytest.mark.slow
def test_the_card_of_a_vit_at_another_size_says_that_size_to_timm(tmp_path):
    run = tmp_path / "run"
    vit = ["--encoder.name=vit_tiny_patch16_224", "--encoder.options={depth: 1, patch_size: 8, embed_dim: 6}"]
    main([*SMOKE, *vit, "--train.steps=1", "--out", str(run)])
    encoder = timm.create_model(card(run)["architecture"], num_classes=0, in_chans=1, **card(run)["options"])
    encoder.load_state_dict(load_file(run / "backbone.safetensors"))


def card(run):
    return json.loads((run / "backbone.json").read_text())


def test_a_run_among_its_images_continues_on_them_alone_wherever_they_are_by_then(images_run, tmp_path, monkeypatch):
    before = card(images_run)
    assert before["init"] == "torch_stem"
    assert before["method"] == "Stopped"  # the class, since it has no name
    (tmp_path / "images").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "moved" / "runs" / "x"
    moved = [f"--data.source={tmp_path / 'moved'}", f"--data.test_source={tmp_path / 'moved'}"]
    main([f"--resume={run}", *moved, "--evaluate.knn_every=0"])
    assert load_checkpoint(run / "checkpoints" / "last.pt")["step"] == 15
    assert {name: card(run)[name] for name in ("mean", "std")} == {name: before[name] for name in ("mean", "std")}
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["source"] == str(tmp_path / "moved")


def losses(run):
    return {record["step"]: record["loss"] for record in read_metrics(run) if "loss" in record}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """80 images, and beside them the same in tars."""
    folder = tmp_path_factory.mktemp("packed")
    data = DataConfig(source=str(make_images(folder / "images")), workers=0)
    assert pack(data, str(folder / "shards"), shard_size="40kB")["train"].num_shards == 9
    return folder


ON_PACKED = [*SMOKE, "--data.memory_gib=0", "--train.batch_size=16", "--train.epochs=2", "--train.log_every=1"]


def test_a_run_on_tars_is_that_on_their_folder_to_the_last_bit_and_may_move_to_them(packed, tmp_path):
    for name in ("images", "shards"):
        source = f"--data.source={packed / name}"
        main([*ON_PACKED, source, "--train.keep_every=1", f"--out={tmp_path / name}"])
    expected = losses(tmp_path / "images")
    assert len(expected) == 10
    assert losses(tmp_path / "shards") == expected
    earlier = f"--resume={tmp_path / 'images' / 'checkpoints' / 'epoch_0001.pt'}"
    main([earlier, f"--data.source={packed / 'shards'}", "--data.workers=1", f"--out={tmp_path / 'moved'}"])
    assert losses(tmp_path / "moved") == expected
    assert card(tmp_path / "moved")["order"] == "random"


def test_a_run_through_windows_of_shards_resumes_exactly_and_says_its_window(packed, tmp_path, monkeypatch):
    options = [*ON_PACKED, f"--data.source={packed / 'shards'}", "--data.read=sequential", "--data.window=2"]
    main([*options, f"--out={tmp_path / 'whole'}"])
    main([*ON_PACKED, f"--data.source={packed / 'shards'}", "--train.steps=1", f"--out={tmp_path / 'random'}"])

    class Stopped(ssl_tiny.train.Tiny):
        def update(self, keys, step):
            super().update(keys, step)
            if step.index + 1 == 7:
                os.kill(os.getpid(), signal.SIGTERM)

    run = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(ssl_tiny.train, "Tiny", Stopped)
        with pytest.raises(SystemExit):
            main([*options, f"--out={run}"])
    assert len(losses(run)) == 7
    message = error_of(ssl_tiny.train, f"--resume={run}", "--data.window=3")
    assert "data.window: 2 -> 3" in message
    main([f"--resume={run}", "--data.workers=1"])
    assert losses(run) == losses(tmp_path / "whole")
    assert losses(run)[1] != losses(tmp_path / "random")[1]
    assert card(run)["order"] == "sequential, 2 shards at a time"


def darker(images):
    for file in sorted(images.rglob("??.png"))[:20]:
        with Image.open(file) as image:
            image.point(lambda level: level // 4).save(file.with_name(f"dark_{file.name}"))


def test_changed_images_are_refused_and_if_accepted_normalized_as_before(images_run, caplog):
    before, kept = contents(images_run), card(images_run)
    darker(images_run.parents[1])
    message = error_of(ssl_tiny.train, f"--resume={images_run}")
    assert "up to step 8:\n  images: 80 -> 100\n  names, sizes or pixels differ\n" in message
    assert contents(images_run) == before
    main([f"--resume={images_run}", "--data.changed=accept"])
    assert "goes on from step 8 with other data: images: 80 -> 100" in caplog.text
    assert {name: card(images_run)[name] for name in ("mean", "std")} == {n: kept[n] for n in ("mean", "std")}
    data = load_checkpoint(images_run / "checkpoints" / "last.pt")["data"]
    assert (data["images"], list(data["mean"])) == (100, kept["mean"])
    (images_run.parents[1] / "more.png").write_bytes(b"")
    assert "images: 100 -> 101" in error_of(ssl_tiny.train, f"--resume={images_run}")  # accepted once


@pytest.mark.parametrize("from_", ["", "checkpoints/epoch_0001.pt"], ids=["the last", "an earlier"])
@pytest.mark.slow
def test_a_run_continues_in_another_folder_and_stays_as_it_is(images_run, tmp_path, from_):
    before = contents(images_run)
    main([f"--resume={images_run / from_}", f"--out={tmp_path / 'other'}"])
    assert contents(images_run) == before
    assert steps(tmp_path / "other") == [4, 8, 12, 15]
    main([f"--resume={images_run / from_}"])
    assert steps(images_run) == steps(tmp_path / "other")
    ours, theirs = (load_checkpoint(run / "checkpoints" / "last.pt") for run in (images_run, tmp_path / "other"))
    assert all(torch.equal(value, theirs["method"][name]) for name, value in ours["method"].items())
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / "views.png").write_bytes(b"of what a first try was given")
    main([f"--resume={images_run}", f"--out={tmp_path / 'finished'}"])  # where nothing is left to do but to export
    assert (tmp_path / "finished" / "views.png").read_bytes() == (images_run / "views.png").read_bytes()
    assert load_checkpoint(tmp_path / "finished" / "checkpoints" / "last.pt")["step"] == 15


@pytest.mark.slow
def test_a_saved_configuration_repeats_its_run_in_a_new_folder_with_pictures_of_its_own(images_run, tmp_path):
    before = contents(images_run)
    main(["--config", str(images_run / "config.yaml")])
    (again,) = (path for path in images_run.parent.iterdir() if path != images_run)
    assert contents(images_run) == before
    assert (again / "views.png").read_bytes() == (images_run / "views.png").read_bytes()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "views.png").write_bytes(b"of what a first try was given")
    main(["--config", str(images_run / "config.yaml"), f"--out={tmp_path / 'run'}"])
    assert (tmp_path / "run" / "views.png").read_bytes() == (images_run / "views.png").read_bytes()
    assert steps(tmp_path / "run") == steps(again) == [4, 8, 12, 15]


@pytest.fixture
def foreign(tmp_path):
    """A recipe for other data than the 40 images beside it, and the command that trains it on these."""
    recipe = yaml.safe_load((Path(ssl_tiny.train.__file__).parent / "recipes" / "smoke.yaml").read_text())
    recipe["data"] |= {"source": "imagenet", "class_list": "imagenet100"}
    recipe["evaluate"] = {"knn_every": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    images = make_images(tmp_path / "images", 40)
    return [
        f"--config={tmp_path / 'recipe.yaml'}",
        "--device=cpu",
        f"--data.source={images}",
        f"--out={tmp_path / 'run'}",
    ]


@pytest.mark.slow
def test_what_of_a_recipe_does_not_fit_other_data_gives_way_once_and_for_all(foreign, tmp_path, caplog):
    run = tmp_path / "run"
    caplog.set_level("INFO")
    main(foreign)
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert (saved["data"]["class_list"], saved["train"]["batch_size"]) == (None, 32)
    assert saved["evaluate"]["knn_every"] is None
    for line in (
        f"data.class_list: null instead of imagenet100, for {tmp_path / 'images'} has none of its folders",
        "train.batch_size: 32 instead of 64, for there are 40 images",
        f"no kNN: data.source '{tmp_path / 'images'}' has no test split",
    ):
        assert caplog.text.count(line) == 1
    make_images(tmp_path / "images", 64)  # which the recipe's batch would fit
    for again in (["--resume", str(run)], foreign):
        main([*again, "--data.changed=accept"])
        assert yaml.safe_load((run / "config.yaml").read_text()) == saved
        assert load_checkpoint(run / LAST)["config"]["train"]["batch_size"] == 32
    main(["--config", str(run / "config.yaml"), f"--out={tmp_path / 'other'}"])
    assert yaml.safe_load((tmp_path / "other" / "config.yaml").read_text()) == saved
    shutil.rmtree(tmp_path / "images")
    make_images(tmp_path / "images", 20)
    message = error_of(ssl_tiny.train, "--resume", str(run), "--data.changed=accept")
    assert "has 20 images, fewer than one batch of 32" in message


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.class_list=imagenet100", "has no subfolder for 100 of 100 classes"),
        ("--train.batch_size=64", "has 40 images, fewer than one batch of 64"),
        ("--evaluate.knn_every=1", "has no test split"),
        ("--train={batch_size: 64}", "has 40 images, fewer than one batch of 64"),
        ("--data.source=imagenet", "needs data.root"),
    ],
)
def test_what_is_given_does_not_give_way_and_is_refused_before_anything_is_written(foreign, tmp_path, option, message):
    before = set(tmp_path.rglob("*"))
    assert message in error_of(ssl_tiny.train, *foreign, option)
    assert set(tmp_path.rglob("*")) == before


def test_a_recipe_that_asks_for_something_else_by_now_is_refused_with_the_difference(foreign, tmp_path):
    main(foreign)
    assert "train.batch_size: 32 -> 64" in error_of(ssl_tiny.train, *foreign, "--train.batch_size=64")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("batch_size: 64", "batch_size: 128"))
    assert "train.batch_size: 32 -> 128" in error_of(ssl_tiny.train, *foreign)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "processes", "num_images", "left"),
    [
        (64, 1, 1, 64, None),
        (64, 1, 1, 63, 32),
        (4096, 1, 8, 300, 256),
        (96, 8, 2, 50, 48),
        (64, 1, 1, 3, 2),
        (64, 1, 1, 1, 2),  # which is refused in its turn
        (64, 1, 3, 20, None),  # likewise
    ],
)
def test_a_batch_is_halved_until_there_are_images_for_it(
    monkeypatch, batch_size, accumulate, processes, num_images, left
):
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    config = ssl_tiny.train.Config(train=TrainConfig(batch_size=batch_size, accumulate=accumulate))
    assert config.fitting(num_images) == ({} if left is None else {"train.batch_size": left})


def test_processes_that_do_not_divide_the_batch_are_named_before_what_follows_from_them(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(
        ValueError, match=r"train.batch_size 16 cannot .* 3 processes: take 15 or 18, or start 2 or 4 processes"
    ):
        check_batch(TrainConfig(batch_size=16), MomentumConfig(batch_norm_splits=2), None)


@pytest.mark.slow
def test_a_path_may_begin_at_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(make_images(tmp_path / "images"))
    paths = ["--data.source=~/images", "--data.test_source=~/images", "--out=~/runs/x"]
    main([*SMOKE, *paths, "--train.batch_size=16", "--evaluate.knn_every=0"])
    main(
        [
            *SMOKE,
            "--data.source=images",
            "--data.root=~/",
            "--encoder.weights=~/runs/x",
            "--out=~/y",
            "--train.batch_size=16",
        ]
    )
    evaluate = ["--out", "~/y", "--data.source", "~/images", "--data.holdout", "0.2", "--k", "5"]
    cli.main(["eval", "knn", "~/runs/x", *evaluate])
    assert {"knn.json", "backbone.safetensors"} <= {path.name for path in (tmp_path / "y").iterdir()}
    assert not list((tmp_path / "images").glob("~*"))


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
