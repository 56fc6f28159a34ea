"""The command ssl-core on small data; what its functions compute is tested where they stand."""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ssl_core import jpeg, machine, ops
from ssl_core.backbone import BackboneCard, head_layers, save_backbone
from ssl_core.cli import main, read_nodes
from ssl_core.nn import EncoderConfig, make_encoder, mlp_head
from ssl_core.train import save_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory of an untrained encoder on a folder of eighty images in ten classes."""
    folder = tmp_path_factory.mktemp("run")
    generator = torch.Generator().manual_seed(0)
    for index in range(80):
        images = folder / "images" / str(index % 10)
        images.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (16, 16, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(images / f"{index}.png")
    options = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
    method = torch.nn.Module()
    method.encoder = make_encoder(EncoderConfig("resnet18", options=options), channels=3, image_size=16)
    method.projector = mlp_head(8, 8, 4)
    (folder / "checkpoints").mkdir()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    save_checkpoint(
        folder / "checkpoints" / "last.pt", method=method, optimizer=optimizer, batches={}, step=1, config={}, data={}
    )
    card = BackboneCard(
        "resnet18",
        3,
        16,
        (0.5,) * 3,
        (0.3,) * 3,
        8,
        "small",
        options,
        recipe="ssl-any",
        projector=head_layers(method.projector),
    )
    save_backbone(folder / "backbone.safetensors", method.encoder, card)
    data = {"source": str(folder / "images"), "holdout": 0.25, "workers": 0}
    config = {
        "data": data,
        "views": [{"augmentation": "weak", "size": 16}, {"augmentation": "strong", "size": 16}],
        "method": {"nobody": "knows"},
        "evaluate": {"k": 5},
        "seed": 3,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_data_prints_what_is_in_a_source(run, capsys):
    main(["data", str(run / "images"), "--data.workers", "0"])
    printed = capsys.readouterr().out
    assert "80" in printed
    assert "10, of 8 to 8 images" in printed
    assert "80 images are few" in printed


def test_data_ends_with_what_auto_would_take_of_training_images(run, capsys):
    main(["data", str(run / "images"), "--data.workers", "0"])
    _, plan = capsys.readouterr().out.split("\n\n")
    assert plan.startswith("the recipe auto would take, on ")
    (batch,) = (line for line in plan.splitlines() if "train.batch_size" in line)
    assert batch.split()[1] == "8"
    main(["data", str(run / "images"), "--data.workers=0", "--data.holdout=0.25", "--split=test"])
    assert "would take" not in capsys.readouterr().out


def test_views_draws_a_gallery_of_a_configuration(run, capsys, tmp_path):
    main(["views", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "v.png"), "--rows", "3"])
    assert Image.open(tmp_path / "v.png").size[1] > 3 * 90
    assert "3 images" in capsys.readouterr().out


def test_knn_takes_the_runs_data_and_what_is_given_replaces_part_of_it(run, capsys):
    main(["eval", "knn", str(run), "--k", "5", "--device", "cpu"])
    assert "20 images" in capsys.readouterr().out
    main(["eval", "knn", str(run), "--k", "5", "--data.holdout", "0.5", "--device", "cpu"])
    assert "40 images" in capsys.readouterr().out
    assert json.loads((run / "knn.json").read_text())["num_test"] == 40


def test_a_result_is_written_though_nobody_reads_what_is_printed(run, tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        main(["eval", "knn", str(run), f"--out={tmp_path}", "--device=cpu"])
    assert (tmp_path / "knn.json").exists()


@pytest.mark.parametrize("sets", ["digits", "[digits]", '["digits"]'])
def test_transfer_reads_named_sets_in_place_of_the_runs_images(run, capsys, sets):
    main(["eval", "transfer", str(run), "--sets", sets, "--data.workers", "0", "--dry_run", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert "digits: train 1,118, validation 279, test 800 images" in lines
    assert lines[-1] == "cost: 2,197 images through the encoder at 16 px, 46 fits"


def test_linear_prints_last_and_best(run, capsys):
    main(["eval", "linear", str(run), "--protocol", "cached", "--epochs", "2", "--batch_size", "20", "--device", "cpu"])
    assert "linear top1 last" in capsys.readouterr().out


def test_linear_tests_random_crops_where_it_is_told_to(run, capsys):
    probe = ["eval", "linear", str(run), "--protocol", "cached", "--epochs", "2", "--batch_size", "20"]
    main([*probe, "--crop", "random", "--device", "cpu"])
    assert (
        "(3 seeds; resized to 18 x 18 (bilinear), random resized crop 16 of area 0.2 to 1)" in capsys.readouterr().out
    )


def test_finetune_takes_a_grid_and_says_what_it_would_do(run, capsys):
    command = ["eval", "finetune", str(run), "--protocol", "clim_semi", "--lr", "[0.1, 0.01]", "--weight_decay", "0"]
    main([*command, "--batch_size", "16", "--dry_run", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "lr 0.1 or 0.01 of the encoder" in printed
    assert "train 49, validation 11, test 20 images" in printed
    assert not list(run.glob("finetune*"))


@pytest.mark.parametrize("command", [["report", "RUN"], ["data", "digits"], ["data", "pack", "digits", "packed"]])
def test_what_processes_cannot_share_is_refused_under_torchrun(run, capsys, monkeypatch, tmp_path, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main([str(run) if word == "RUN" else word for word in command])
    assert not Path("packed").exists()
    assert "2 processes would each do the same: start this command without torchrun" in capsys.readouterr().err


def test_similarity_prints_both_and_which_features(run, capsys):
    main(["eval", "similarity", str(run), "--device", "cpu"])
    main(["eval", "similarity", str(run), "--features", "projection", "--device", "cpu"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("similarity intra-class ")
    # Of the twenty held out, four classes have two or more.
    assert first.endswith("(20 test images, 4 classes, backbone)")
    assert second.endswith("(20 test images, 4 classes, projection)")


@pytest.mark.slow
def test_tsne_takes_several_encoders_and_what_is_given_replaces_part_of_their_data(run, capsys, tmp_path):
    out = tmp_path / "tsne.png"
    encoders = ["eval", "tsne", "pixels", str(run), "--like", str(run)]
    main([*encoders, "--out", str(out), "--perplexity", "5", "--classes", "4", "--device", "cpu"])
    width = Image.open(out).size[0]
    main([*encoders[:2], str(run), "--out", str(out), "--perplexity", "5", "--data.holdout", "0.5", "--device", "cpu"])
    assert Image.open(out).size[0] < width
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote"))
    assert ", 4 classes of" in first
    assert "; 39 test images, 9 classes of" in second  # of forty held out, one is alone in its class


def test_features_of_the_projector_and_of_baselines(run, capsys):
    main(["eval", "knn", str(run), "--k", "5", "--features", "projection", "--device", "cpu"])
    main(["eval", "knn", "pixels", "--like", str(run), "--k", "5", "--device", "cpu"])
    main(["eval", "knn", "random", "--like", str(run), "--k", "5", "--device", "cpu"])
    assert capsys.readouterr().out.count("knn top1") == 3


def test_embed_writes_features(run, tmp_path, capsys):
    out = tmp_path / "features.npz"
    main(
        ["embed", str(run / "images"), "--model", str(run), "--out", str(out), "--data.workers", "0", "--device", "cpu"]
    )
    assert out.exists()
    columns = ["--points", "--neighbors=2", "--thumbnails=16", f"--out={tmp_path / 'x.parquet'}"]
    main(["embed", str(run / "images"), "--model", str(run), "--data.workers=0", "--device=cpu", *columns])
    assert "x and y by t-SNE, perplexity 26.3; 2 neighbors; images of 16 px" in capsys.readouterr().out


def test_export_writes_weights_and_card(run, tmp_path):
    main(["export", str(run), str(tmp_path / "x.safetensors")])
    assert (tmp_path / "x.json").exists()


def test_export_writes_what_others_load(run, tmp_path, capsys):
    main(["export", str(run), str(tmp_path / "x.pt2"), "--to", "torch"])
    assert torch.export.load(tmp_path / "x.pt2").module()(torch.rand(3, 3, 16, 16)).shape == (3, 8)
    assert capsys.readouterr().out == f"wrote {tmp_path}/x.pt2: resnet18, 8 features, input 3 x 16 px\n"
    with pytest.raises(SystemExit):
        main(["export", str(run), str(tmp_path / "x"), "--to", "timm"])
    assert "its stem small is a 3x3 convolution" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(run), str(tmp_path / "x"), "--to", "coreml"])
    assert "--to coreml: expected one of safetensors, timm, onnx, torch" in capsys.readouterr().err


def test_select_takes_the_runs_data_and_what_is_given_replaces_part_of_it(run, capsys, tmp_path):
    main(["select", str(run), "--count=3", "--data.holdout=0.5", f"--out={tmp_path}", "--by=random", "--device=cpu"])
    assert "3 of the 40 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("report", "runs [runs ...] [options]"),
        ("compare", "encoders [encoders ...] [options]"),
        ("embed", "source [source ...] --model MODEL --out OUT [options]"),
        ("export", "encoder out [options]"),
        ("views", "--config CONFIG [options]"),
        ("eval knn", "encoder [options]"),
        ("duplicates", "source [source ...] [options]"),
        ("select", "run --count COUNT [options]"),
    ],
)
def test_the_help_begins_with_what_a_command_needs_and_what_it_is_for(command, usage, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    first, _, about, *more = capsys.readouterr().out.splitlines()
    assert first == f"usage: ssl-core {command} {usage}"
    assert about
    # Of a source the options' defaults hold; beside a run they are the run's.
    own = any("how they are read; what is not given is as in the run" in line for line in more)
    assert own == ("source" not in usage and command != "export")


def test_rank_puts_runs_in_order(run, capsys, tmp_path):
    few = ["--images=50", "--view_images=50", "--views=2", "--data.holdout=0.7", "--device=cpu", f"--out={tmp_path}"]
    main(["rank", str(run), *few])
    assert "50 images of " in capsys.readouterr().out
    assert json.loads((tmp_path / "rank.json").read_text())["order"]["lidar"] == [str(run)]
    with pytest.raises(SystemExit):
        main(["rank", str(run), "--device=cpu"])
    assert "has 20 images; the measures take 50 or more" in capsys.readouterr().err


def test_doctor_says_which_implementation_each_op_uses(capsys):
    main(["doctor"])
    printed = capsys.readouterr().out
    assert f"queue_attention  cpu: {ops.implementations()['queue_attention']['cpu']}" in printed
    assert f"compiled core    {ops.cpp.description()}" in printed
    assert f"cuda library     {ops.cuda.description()}" in printed
    assert torch.__version__.partition("+")[0] in printed
    assert f"ssl-core         {version('ssl-core')}" in printed
    assert f"jpeg             {jpeg.description()}" in printed


def test_doctor_says_how_many_processors_are_usable_and_who_has_set_what_openmp_reads(capsys, monkeypatch):
    monkeypatch.setattr(machine, "affinity", lambda: 8)
    monkeypatch.setattr(machine, "cpu_quota", lambda root=None: 2.5)
    monkeypatch.setattr(machine, "CHOSEN", {"OMP_NUM_THREADS": "5"})
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    main(["doctor"])
    printed = capsys.readouterr().out
    assert "processors       3 usable: 8 by affinity, 2.5 by the control group's quota\n" in printed
    assert "GOMP_SPINCOUNT   77, of the environment\n" in printed
    assert "OMP_NUM_THREADS  5, chosen by this command\n" in printed
    assert "OMP_WAIT_POLICY  not set\n" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "/no/such/folder"], "/no/such/folder"),
        (["eval", "knn", "/no/such/run"], "/no/such/run"),
        (["views", "--config", "nobody:smoke"], "no package ssl-nobody"),
        (["embed", "digits", "--model", "random", "--out", "x.csv"], "x.csv"),
        (["eval", "tsne", "/no/such/run", "/nor/this"], "/no/such/run"),
        (["compare", "pixels", "/no/such/run"], "/no/such/run"),
        (["eval", "tsne", "/no/such/run", "--data.holdout", "0.5"], "/no/such/run"),
        (["eval", "transfer", "/no/such/run", "--sets", "all", "--data.source", "x"], "sets and data.source both say"),
        (["eval", "transfer", "/no/such/run", "--sets=[pets]", "--data.test_source=x"], "sets and data.test_source"),
    ],
    ids=[
        "data",
        "run",
        "recipe",
        "suffix",
        "runs",
        "compared",
        "runs with data",
        "sets and source",
        "sets and test source",
    ],
)
def test_what_a_user_gets_wrong_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("finetune x --protocol clim_semi --metric foo", "--metric foo: expected one of top1, mean_per_class, map11"),
        ("linear x --precision float16", "--precision float16: expected one of float32, bfloat16, tf32"),
        ("voc07 x --difficult easy", "--difficult easy: expected one of negative, vissl_full, ignore"),
        ("voc07 x --cost low", "--cost low: expected float or list"),
        ("knn x --data.renderer fast", "--data.renderer fast: expected one of auto, reference, cpu, device"),
        ("linear x --trials 2.5", "--trials 2.5: expected int"),
        ("transfer x --data.holdout some", "--data.holdout some: expected float"),
        ("voc07 x --data.source digits", "unrecognized arguments: --data.source digits"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it_and_what_it_takes(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["eval", *arguments.split()])
    assert stopped.value.code == 2
    command = f"ssl-core eval {arguments.split()[0]}"
    assert capsys.readouterr().err == f"ssl-core: error: {said} ({command} --help lists the options)\n"


def test_a_node_that_is_wrong_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("data: {sorce: digits}\n")
    with pytest.raises(ValueError, match="sorce"):
        read_nodes(str(tmp_path / "x.yaml"))
