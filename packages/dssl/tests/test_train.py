"""The command ssl-dssl-train, as a person uses it: run, stop, resume, and get things wrong."""

from dataclasses import replace

import pytest
import torch

from ssl_core.auto import Machine, Seen, decided
from ssl_core.config import given_options
from ssl_core.nn import make_encoder
from ssl_core.testing import (
    check_bad_input,
    check_exact_resume,
    check_imports,
    check_run,
    error_of,
    make_images,
    recipes,
)
from ssl_core.train import read_metrics
from ssl_dssl import train
from ssl_dssl.bases import BASES


@pytest.mark.slow
def test_importing_costs_little_and_listing_recipes_nothing():
    check_imports("ssl_dssl")


def parse(*options):
    return recipes.parse(train, "--config", "smoke", *options)


def make_method(config):
    encoder = make_encoder(config.encoder, channels=1, image_size=16)
    return train.make_method(config, encoder, encoder.num_features, config.view_specs())


@pytest.mark.slow
def test_a_run_leaves_what_is_promised_and_can_be_repeated(tmp_path):
    check_run(train, tmp_path)


@pytest.mark.nightly
def test_killed_and_resumed_gives_the_same_losses_to_the_last_bit(tmp_path):
    check_exact_resume(train, tmp_path)


@pytest.mark.nightly
def test_with_a_momentum_encoder_and_a_queue_it_resumes_to_the_last_bit_too(tmp_path):
    momentum = "momentum: {value: 0.9, batch_norm_splits: 4}"
    base = f"{{mocov2: {{queue: {{length: 72, initial: empty}}, {momentum}}}}}"
    check_exact_resume(train, tmp_path, [f"--method.base={base}"])


def smoke(folder, *options):
    train.main(["--config", "smoke", "--device", "cpu", "--out", str(folder), *options])
    return read_metrics(folder)


@pytest.mark.parametrize(
    ("base", "length"),
    [
        ("mocov2", 128),
        ("{mocov2: {temperature: 0.1}}", 128),
        ("{mocov2: {queue: {length: 512}}}", 512),
        ("{mocov2: {queue: {initial: empty}}}", 128),
        ("byol", None),
    ],
)
def test_auto_decides_the_queue_of_a_base_where_the_command_line_does_not(base, length):
    arguments = ["--config", "auto", f"--method.base={base}"]
    config, machine = recipes.parse(train, *arguments), Machine(torch.device("cpu"), 2)
    config, _ = decided(config, Seen(300, (128,), 3), machine, given_options(arguments))
    [(name, numbers)] = config.method.base.items()
    assert base.strip("{").startswith(name)
    assert (numbers["queue"]["length"] if "queue" in numbers else None) == length


@pytest.mark.slow
def test_the_same_command_goes_on_with_the_queue_that_was_decided(tmp_path, capsys):
    source = make_images(tmp_path / "images")
    narrow = "--encoder.options={layers: [1, 1, 1, 1], channels: [4, 4, 4, 4]}"
    command = [f"--data.source={source}", "--train.steps=1", "--device=cpu", "--train.precision=float32", narrow]
    command += ["--method.base=mocov2", f"--out={tmp_path / 'run'}"]
    train.main(command)
    saved = (tmp_path / "run/config.yaml").read_text()
    for again in (command, ["--resume", str(tmp_path / "run")], command):
        capsys.readouterr()
        train.main(again)
        assert "decided" not in capsys.readouterr().out
        assert (tmp_path / "run/config.yaml").read_text() == saved
    assert "queue.length: 32 -> 512" in error_of(train, *command, "--method.base={mocov2: {queue: {length: 512}}}")


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_every_base_trains_alone(base, tmp_path):
    described = "{mocov2: {queue: {length: 512}}}" if base == "mocov2" else base
    few = [f"--data.source={make_images(tmp_path / 'images')}", "--train.batch_size=16"]
    record = smoke(tmp_path / "run", f"--method.base={described}", "--method.heavy=none", *few)[-1]
    assert "heavy_similarity" not in record
    assert record["embedding_std"] > 0.05 * record["embedding_std_even"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["dssl_cifar"] * 2 + ["dssl_cifar, heavy"] * 2),
        (["--method.heavy=none"], ["dssl_cifar"] * 4),
        (["--method.heavy=none", "--method.pairs=1"], ["dssl_cifar"] * 2),
        (["--method.heavy=none", "--method.base=simclr"], ["dssl_cifar"] * 2),
        (["--method.naive=views"], ["dssl_cifar, heavy"] * 4),
        (["--method.naive=views", "--method.base=barlow"], ["dssl_cifar, heavy"] * 2),
        (["--method.naive=all_pairs"], ["dssl_cifar"] * 2 + ["dssl_cifar, heavy"] * 2),
        (["--method.heavy_per_image=1", "--method.base=simclr"], ["dssl_cifar"] * 2 + ["dssl_cifar, heavy"]),
        (["--method.heavy_source=image"], ["dssl_cifar"] * 2 + ["dssl_cifar, heavy, of the image"] * 2),
    ],
    ids=["dssl", "plain", "one pair", "plain simclr", "naive", "naive barlow", "all pairs", "one heavy", "image"],
)
def test_the_views_are_those_of_the_switches(options, names):
    config = parse(*options)
    assert [view.name for view in config.view_specs()] == names
    assert make_method(config).num_standard == sum(name == names[0] for name in names)


def test_derived_heavy_views_are_attracted_to_what_they_are_derived_from():
    config = parse("--method.base=simclr", "--method.heavy_per_image=1")
    assert [view.derived_from for view in config.view_specs()] == [None, None, 1]
    assert make_method(config).sources == (1,)


def test_all_pairs_gives_every_term_the_weight_1():
    assert make_method(parse()).weights == {"alpha": 1.0, "beta": 0.0, "gamma": 1.0, "delta": 0.0}
    assert set(make_method(parse("--method.naive=all_pairs")).weights.values()) == {1.0}


@pytest.mark.parametrize(("base", "width"), [("simsiam", 16), ("byol", 64)])
def test_a_predictors_hidden_layer_is_the_bases_own_unless_it_is_given(base, width):
    widths = [
        make_method(parse(f"--method.base={base}", *options)).predictor[0].out_features
        for options in ([], ["--predictor={hidden_dim: 24, out_dim: 64}"])
    ]
    assert widths == [width, 24]


@pytest.mark.nightly
def test_collapse_is_warned_of_and_stops_a_run_that_asks_for_it(tmp_path, capsys, monkeypatch):
    make = train.make_method

    def make_collapsed(*arguments):
        method = make(*arguments)
        for parameter in method.projector.parameters():
            parameter.data.zero_()
        return method

    monkeypatch.setattr(train, "main", replace(train.main, make_method=make_collapsed))
    options = ["--optim.lr=0", "--projector.last_norm=affine", "--train.log_every=5", "--train.epochs=2"]
    smoke(tmp_path / "warned", *options)
    assert "WARNING: the embeddings have collapsed after step 25: std of embeddings 0.0000" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        smoke(tmp_path / "stopped", *options, "--train.stop_on_collapse=true")
    assert stopped.value.code == 1
    assert "ssl-dssl-train: error: the embeddings have collapsed after step 25" in capsys.readouterr().err
    assert read_metrics(tmp_path / "stopped")[-1]["step"] == 25


CIFAR = "{augmentation: dssl_cifar"


@pytest.mark.slow
def test_bad_input_is_one_clear_error(tmp_path):
    mistakes = {
        "--method.heavy ra_3_3": "no augmentation is called 'ra_3_3'",
        f"--method.heavy jigsaw_4 --views '[{CIFAR}, size: 18, count: 2}}]'": "18",
        f"--views '[{CIFAR}, size: 16, count: 3}}]'": "DSSL takes two standard views",
        "--method.heavy none --method.naive views": "naive views has no effect with heavy none",
        "--method.heavy none --method.gamma 0.5": "gamma 0.5 has no effect with heavy none; leave it at 1.0",
        "--method.naive views --method.heavy_source image": "heavy_source image has no effect with naive views",
        "--method.naive all_pairs --method.delta 0.1": "delta 0.1 has no effect with naive all_pairs",
        "--method.pairs 2": "pairs 2 has no effect with heavy views; leave it at null",
        "--method.heavy_per_image 1": "heavy_per_image 1 is for simclr, mocov2 and barlow; simsiam takes 2",
        "--method.base simclr --method.heavy none --method.pairs 2": "pairs 2 is for simsiam and byol",
        "--method.gamma -1": "gamma must be at least 0, got -1",
        "--method.base simclr --method.heavy_per_image 1 --method.beta 1": "beta 1 is about two heavy views",
        "--method.base '{simsiam: {temperature: 0.1}}'": "temperature",
        "--method.base '{simclr: {}, byol: {}}'": "base names one of simclr, simsiam, byol, mocov2, barlow",
        "--method.base.mocov2.temperature 0.1": "give the whole node, as --method.base '{...}'",
        "--method.base simclr --predictor.hidden_dim 8": "predictor has no effect with base SimCLR",
        "--predictor.out_dim 8": "predictor.out_dim 8 must equal projector.out_dim 64",
        "--method.temperature 0.1": "method.temperature",
        "--method.heavy [7]": "no augmentation is called '[7]'",
        f"--views '[{CIFAR}, size: [16, 8]}}]'": "each of one size and sampled on its own",
        f"--views '[{CIFAR}, size: 16}}, {{augmentation: jigsaw_2, derived_from: 0, size: 16}}]'": "sampled on its own",
        f"--views '[{CIFAR}, size: 16, count: 2, partner: true}}]'": "DSSL has no partners",
        "--method.naive all_pairs --method.heavy_per_image 1": "heavy_per_image 1 has no effect",
        "--method.base '{simclr: {temperature: 0}}'": "temperature must be positive, got 0",
        "--method.base simclr --train.accumulate 2": "train.accumulate 2: SimCLR compares the images",
        "--method.base barlow --train.accumulate 2": "train.accumulate 2: BarlowTwins compares the images",
        "--method.base '{mocov2: {queue: {length: 8}}}'": "queue.length 8 is less than the 64 keys",
        "--method.base '{mocov2: {momentum: {batch_norm_splits: 3}}}'": "momentum.batch_norm_splits 3 does not divide",
        "--method.base byool": "byool",
    }
    check_bad_input(train, tmp_path, mistakes)
