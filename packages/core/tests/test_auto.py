import dataclasses

import pytest
import ssl_tiny.train
import torch
import yaml
from ssl_tiny.train import main

from ssl_core import auto, pretrain, trial
from ssl_core.auto import (
    Machine,
    Seen,
    decided,
    decisions_text,
    faster_precision,
    feeding_workers,
    fitting_batch,
    forecast,
)
from ssl_core.build import build
from ssl_core.config import with_values
from ssl_core.data import MemoryImages
from ssl_core.testing import error_of, make_images
from ssl_core.testing.recipes import parse
from ssl_core.train import read_metrics

LAPTOP = Machine(torch.device("cpu"), 2)
GPU = Machine(torch.device("cuda"), 16, 80.0, "a GPU")
PHOTOS = Seen(3000, (120, 128, 400), 3)


def recipe(*arguments):
    return parse(ssl_tiny.train, "--config=auto", *arguments)


def decide(seen=PHOTOS, machine=LAPTOP, given=(), config=None):
    return decided(config or recipe(), seen, machine, given)[0]


def sizes(config):
    return [size for view in config.view_specs() for size in view.sizes]


@pytest.mark.parametrize(
    ("sides", "machine", "size"),
    [
        ((300, 400, 5000), LAPTOP, 32),
        ((300, 400, 5000), Machine(torch.device("cpu"), 32), 64),
        ((300, 400, 5000), GPU, 224),
        ((300, 400, 5000), Machine(torch.device("cuda"), 8, 8.0), 128),
        ((28, 28, 28), LAPTOP, 28),
        ((96, 96, 97), GPU, 96),
        ((5, 6, 7), LAPTOP, 8),
    ],
    ids=["laptop", "server", "gpu", "tiny", "gpu-small", "gpu-images", "few-pixels"],
)
def test_views_are_as_large_as_the_machine_trains_and_no_larger_than_images(sides, machine, size):
    assert sizes(decide(PHOTOS._replace(sides=sides), machine)) == [size, size]


@pytest.mark.parametrize(("sides", "said"), [((28, 28, 28), "28 px"), ((5, 6, 7), "5 to 7 px")])
def test_small_images_are_the_reason_for_small_views(sides, said):
    assert (
        decided(recipe(), PHOTOS._replace(sides=sides), LAPTOP, ())[1][0].reason
        == f"images have a short side of {said}"
    )


def test_views_keep_their_proportions():
    config = recipe("--views", "[{size: [32, 16]}, {size: 24}]")
    assert sizes(decide(PHOTOS._replace(sides=(500,)), GPU, config=config)) == [224, 112, 168]


def test_colors_are_changed_where_there_are_any():
    (entry,) = decide(PHOTOS._replace(channels=1)).views
    assert [next(iter(op)) for op in entry.augmentation] == ["random_resized_crop", "color_jitter"]
    jitter = entry.augmentation[1]["color_jitter"]
    assert (jitter["saturation"], jitter["hue"]) == (0, 0)
    assert jitter["brightness"] > 0
    for channels in (2, 3, 5):
        (entry,) = decide(PHOTOS._replace(channels=channels)).views
        assert entry.augmentation[1:] == recipe().views[0].augmentation[1:]


@pytest.mark.parametrize(("number", "least"), [(3000, 0.7), (10**6, 0.5)])
def test_crops_of_few_images_are_large(number, least):
    (entry,) = decide(PHOTOS._replace(number=number)).views
    assert entry.augmentation[0] == {"random_resized_crop": {"scale": [least, 1.0]}}


@pytest.mark.parametrize("number", [16, 17, 100, 300, 3000, 10**5, 10**7])
@pytest.mark.parametrize("machine", [LAPTOP, GPU], ids=["laptop", "gpu"])
def test_batch_and_queue_fit_the_number_of_images(number, machine):
    config = decide(PHOTOS._replace(number=number), machine)
    batch, queue = config.train.batch_size, config.method.queue.length
    assert 2 * batch <= number
    assert 2 * batch <= queue
    assert queue <= max(number / 2, 2 * batch)
    assert queue <= 4096  # the recipe's
    assert 100 <= config.train.epochs <= 1000


@pytest.mark.parametrize("accumulate", [3, 5, 64])
def test_a_batch_can_be_divided_into_its_micro_batches(accumulate):
    config = decide(config=recipe(f"--train.accumulate={accumulate}", f"--train.batch_size={accumulate}"))
    assert config.train.batch_size % accumulate == 0


def test_an_encoder_that_is_named_is_not_made_narrow():
    assert decide(given=["encoder.name"]).encoder.options == {}
    assert decide().encoder.options["layers"] == [1, 1, 1, 1]


@pytest.mark.parametrize(("size", "stem"), [(64, "small_pool"), (224, "auto")])
def test_the_stem_suits_views_that_are_given(size, stem):
    config = recipe(f"--views=[{{size: {size}}}]", "--encoder.stem=auto")
    assert decide(given=["views"], config=config).encoder.stem == stem


def test_what_the_command_line_gives_is_left_alone():
    arguments = {
        "--views": "[{size: 48}]",
        "--encoder.name": "resnet34",
        "--encoder.stem": "imagenet",
        "--train.batch_size": "24",
        "--method.queue": "{length: 77}",
        "--train.epochs": "3",
        "--data.workers": "5",
    }
    given = [name.removeprefix("--") for name in arguments if name != "--method.queue"] + ["method.queue.length"]
    config = recipe(*(f"{name}={value}" for name, value in arguments.items()))
    changed, decisions = decided(config, PHOTOS, LAPTOP, given)
    assert changed == dataclasses.replace(config, auto=False)
    assert decisions == []
    # Blocks of a narrow ResNet-18 would not fit it.
    assert changed.encoder.options == {}


@pytest.mark.parametrize(
    ("length", "warmup"), [("--train.epochs=200", 8), ("--train.epochs=50", 2), ("--train.steps=930", 0.4)]
)
def test_what_a_recipe_counts_in_epochs_keeps_its_part_of_the_run(length, warmup):
    # The recipe's 4 of 100 epochs; 93 steps of 32 images are an epoch of 3,000.
    config = recipe("--optim.warmup_epochs=4", length)
    given = [length.removeprefix("--").partition("=")[0]]
    assert decide(given=given, config=config).optim.warmup_epochs == pytest.approx(warmup)
    assert decide(given=["optim", *given], config=config).optim.warmup_epochs == 4


def test_an_encoder_with_weights_keeps_its_own_blocks():
    config = recipe("--encoder.weights", "timm")
    assert decide(given=["encoder.weights"], config=config).encoder.options == {}
    assert decide().encoder.options["layers"] == [1, 1, 1, 1]


@pytest.mark.slow
def test_an_encoder_with_the_weights_of_a_run_is_made_as_that_one(auto_run):
    config = recipe(f"--encoder.weights={auto_run}")
    other = Machine(torch.device("cpu"), 32)  # which would take all blocks
    changed, decisions = decided(config, PHOTOS, other, ["encoder.weights"])
    assert decide(machine=other).encoder.options == {}
    saved = yaml.safe_load((auto_run / "config.yaml").read_text())["encoder"]
    assert dataclasses.asdict(changed.encoder) == saved | {"weights": str(auto_run)}
    build(
        with_values(changed, {"train.precision": "float32"}),
        ssl_tiny.train.make_method,
        channels=3,
        device=LAPTOP.device,
    )
    assert decisions[2][::2] == ("encoder.name", "of the run that encoder.weights names")


@pytest.mark.parametrize(
    ("machine", "free_mib", "workers"),
    [
        (LAPTOP, 1000, 0),
        (Machine(torch.device("cpu"), 32), 1000, 8),
        (Machine(torch.device("cpu"), 32), 10, 1),  # batches of 32 pairs of 64 px: 3 MiB
        (GPU, 100_000, 15),
        (GPU, 2000, 1),  # batches of 256 images of 400 x 400 in float32: 469 MiB
        (GPU, 64, 0),  # docker's default
    ],
)
def test_workers_are_as_many_as_cores_and_shared_memory_allow(machine, free_mib, workers, monkeypatch):
    monkeypatch.setattr("ssl_core.data.workers.free_shared_memory", lambda: float(free_mib * 2**20))
    assert decide(machine=machine).data.workers == workers


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="has 15 images and --config auto takes 16 or more"):
        decide(PHOTOS._replace(number=15))


def test_decisions_are_said_in_columns_with_their_reasons():
    lines = decisions_text(decided(recipe(), PHOTOS, LAPTOP, ())[1]).splitlines()
    (queue,) = (line for line in lines if "queue.length" in line)
    assert "1,024" in queue
    reasons = ("at most half", "trains on 2 CPU cores")
    assert len({line.index(reason) for line in lines for reason in reasons if reason in line}) == 1


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_the_precision_whose_steps_take_less_time_is_taken(faster, monkeypatch):
    def timed(method, optimizer, config, micro_batches, *, seconds):
        assert len(next(micro_batches).views[0]) == config.batch_size
        return 1.0 if config.precision == faster else 2.0

    monkeypatch.setattr(trial, "time_steps", timed)
    device = torch.device("cpu")

    def make(config):
        return build(config, ssl_tiny.train.make_method, channels=3, device=device)

    config, decision = faster_precision(decide(), make, channels=3, device=device)
    assert config.train.precision == decision.text == faster
    assert "float32" in decision.reason
    assert "bfloat16" in decision.reason


def test_the_batch_is_halved_until_a_step_fits_the_memory(monkeypatch):
    def timed(method, optimizer, config, micro_batches, *, seconds):
        assert len(next(micro_batches).views[0]) == config.batch_size // 2  # micro-batches
        if config.batch_size > 50:
            raise torch.OutOfMemoryError
        return 1.0

    monkeypatch.setattr(trial, "time_steps", timed)
    device = torch.device("cpu")

    def make(config):
        return build(config, ssl_tiny.train.make_method, channels=3, device=device)

    config = with_values(decide(), {"train.batch_size": 256, "train.accumulate": 2})
    assert fitting_batch(config, make, channels=3).train.batch_size == 32
    monkeypatch.setattr(auto, "fits_memory", lambda *_, **__: False)
    with pytest.raises(ValueError, match="not one step of 8 images fits the memory of the GPU"):
        fitting_batch(config, make, channels=3)


@pytest.mark.parametrize(
    ("decoding_s", "workers", "said"),
    [
        (0.001, 2, "a batch takes 128 ms to decode and 100 ms on the GPU"),
        (0.00001, 1, "a batch takes 1.28 ms to decode and 100 ms on the GPU"),
        (0.005, 7, None),
    ],
    ids=["fewer", "one", "all"],
)
def test_workers_are_no_more_than_a_gpu_waits_for(decoding_s, workers, said, monkeypatch):
    monkeypatch.setattr(auto, "time_in_turns", lambda *_: {"": 0.1})
    monkeypatch.setattr(auto, "decoding_seconds", lambda _: decoding_s)
    config = with_values(decide(), {"train.batch_size": 128, "data.workers": 7})
    images = MemoryImages("some", [], torch.zeros(0, dtype=torch.int64))
    fed, decision = feeding_workers(config, lambda _: None, images, channels=3)
    assert fed == with_values(config, {"data.workers": workers})
    assert (decision and decision.reason) == said


def test_a_broken_image_takes_its_time_to_decode_too(monkeypatch):
    monkeypatch.setattr(trial, "probed", lambda _: ([torch.zeros(3, 8, 8)] * 3, ["a.png: torn"]))
    monkeypatch.setattr(trial.time, "perf_counter", iter((10.0, 12.0)).__next__)
    assert trial.decoding_seconds(MemoryImages("some", [], torch.zeros(0, dtype=torch.int64))) == 0.5


def test_what_would_take_days_is_said_with_what_would_not(monkeypatch):
    monkeypatch.setattr(auto, "image_seconds", lambda *_, **__: 0.5)
    config = recipe("--encoder.name=resnet50", "--views=[{size: 224}]", "--train.epochs=200")
    text = forecast(config, PHOTOS, LAPTOP)
    assert text == (
        "resnet50 at 224 px on 2 CPU cores: about 2 images/s, 3.5 days for 200 epochs of 3,000; "
        "--config auto --budget 1h would take resnet18 at 32 px"
    )
    assert forecast(with_values(config, {"train.epochs": 10}), PHOTOS, LAPTOP) is None
    short = forecast(dataclasses.replace(config, budget="10m"), PHOTOS, LAPTOP)
    assert "so that --budget 10m shows 40 % of 3,000 images once; --config auto --budget 10m would take" in short
    assert forecast(dataclasses.replace(config, budget="1h"), PHOTOS, LAPTOP) is None
    assert "would take" not in forecast(dataclasses.replace(decide(), budget="10m"), PHOTOS, LAPTOP)


@pytest.mark.parametrize(("number", "budget"), [(3000, "127s"), (100, "49s")])
def test_a_budget_that_is_too_short_for_one_step_is_refused_at_once(number, budget, monkeypatch):
    monkeypatch.setattr(auto, "image_seconds", lambda *_, **__: 0.5)
    config = recipe("--encoder.name=resnet50", "--views=[{size: 224}]", "--train.batch_size=256", f"--budget={budget}")
    seen = PHOTOS._replace(number=number)
    reason = f"so that --budget {budget} is too short for one step of {min(number, 256)} images; --config auto --budget"
    with pytest.raises(ValueError, match=reason):
        forecast(config, seen, LAPTOP)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def auto_run(photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("auto") / "run"
    main([f"--data.source={photos}", "--device=cpu", "--train.epochs=2", f"--out={run}"])
    return run


def test_without_a_recipe_auto_decides_and_saves_what_it_has_decided(auto_run):
    saved = yaml.safe_load((auto_run / "config.yaml").read_text())
    assert saved["auto"] is False
    assert saved["train"]["precision"] in ("float32", "bfloat16")
    assert saved["train"]["epochs"] == 2
    assert saved["encoder"]["stem"] == "small_pool"


def test_the_same_command_again_goes_on_and_decides_nothing(auto_run, photos, capsys):
    before = yaml.safe_load((auto_run / "config.yaml").read_text())
    losses = read_metrics(auto_run)
    main([f"--data.source={photos}", "--device=cpu", "--train.epochs=2", f"--out={auto_run}"])
    assert "decided" not in capsys.readouterr().out
    assert read_metrics(auto_run) == losses
    assert yaml.safe_load((auto_run / "config.yaml").read_text()) == before


@pytest.mark.slow
def test_a_repetition_decides_nothing_and_has_the_same_losses(auto_run, photos, tmp_path, capsys):
    main([f"--config={auto_run / 'config.yaml'}", f"--data.source={photos}", f"--out={tmp_path / 'again'}"])
    assert "decided" not in capsys.readouterr().out
    assert [each["loss"] for each in read_metrics(tmp_path / "again")] == [
        each["loss"] for each in read_metrics(auto_run)
    ]


def test_a_refusal_comes_before_anything_is_read(photos, tmp_path, monkeypatch):
    monkeypatch.delattr(pretrain, "open_encoded")
    arguments = [f"--data.source={photos}", "--budget=5m", "--train.epochs=2", f"--out={tmp_path / 'run'}"]
    assert "budget 5m and train.epochs both say how long a run is" in error_of(ssl_tiny.train, *arguments)
    assert not (tmp_path / "run").exists()


def test_a_forecast_stands_before_steps_are_tried_and_images_decoded(photos, tmp_path, monkeypatch, caplog):
    class Tried(Exception):  # noqa: N818  # says what happened, and is no error
        pass

    def stop(*_, **__):
        raise Tried

    monkeypatch.setattr(pretrain, "forecast", lambda *_: "it would take long")
    monkeypatch.setattr(pretrain, "faster_precision", stop)  # takes as long as some steps
    with pytest.raises(Tried):
        main(["--config=auto", f"--data.source={photos}", f"--out={tmp_path / 'run'}"])
    assert "it would take long" in caplog.text
