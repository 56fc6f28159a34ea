"""The command ssl-clim-train, as a person uses it: run, stop, resume, and get things wrong."""

import importlib.metadata
from dataclasses import replace

import pytest
import torch

from ssl_clim import neighbours, partners, train
from ssl_core import budget
from ssl_core.build import build
from ssl_core.data import Batches, open_source
from ssl_core.testing import check_bad_input, check_exact_resume, check_imports, check_run, error_of, make_images
from ssl_core.testing.recipes import parse
from ssl_core.train import load_checkpoint, read_metrics


@pytest.mark.slow
def test_importing_costs_little_and_listing_recipes_nothing():
    check_imports("ssl_clim")


@pytest.mark.slow
def test_a_run_leaves_what_is_promised_and_can_be_repeated(tmp_path):
    check_run(train, tmp_path)


@pytest.mark.slow
def test_partners_are_chosen_and_logged_between_epochs(tmp_path):
    train.main(["--config", "smoke", "--device", "cpu", "--out", str(tmp_path / "run"), "--train.log_every", "1"])
    records = read_metrics(tmp_path / "run")
    (chosen,) = [record for record in records if "positives_purity" in record]
    assert chosen["step"] == 21
    assert ["partner_similarity" in record for record in records if "loss" in record] == [False] * 21 + [True] * 21
    partners = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["batches"]["partners"]
    assert partners.shape == (1397, 10)


@pytest.mark.nightly
def test_killed_and_resumed_gives_the_same_losses_to_the_last_bit(tmp_path):
    options = ["--method.queue.length=72", "--method.queue.initial=empty", "--method.momentum.value=0.9"]
    check_exact_resume(train, tmp_path, [*options, "--neighbours.k=20", "--neighbours.positives=3"])


@pytest.mark.parametrize(
    ("num_images", "left"),
    [
        (10_000, {}),
        (9_999, {"neighbours.clusters": None}),
        (300, {"train.batch_size": 256, "neighbours.clusters": None}),
    ],
)
def test_more_clusters_than_images_give_way_to_one_for_every_128(num_images, left):
    assert parse(train, "--config", "imagenet").fitting(num_images) == left


def train_on_few(folder, *options):
    few = [f"--data.source={make_images(folder / 'images')}", "--train.batch_size=16", "--method.queue.length=64"]
    few += ["--neighbours.k=20", "--neighbours.positives=3"]
    train.main(["--config", "smoke", "--device", "cpu", "--out", str(folder / "run"), *few, *options])


UNMIXED = "[{augmentation: moco_v2, size: 16, count: 2}, {augmentation: moco_v2, size: 16, partner: true}]"
QUERIES = "{augmentation: moco_v2, size: [16, 12]}, {augmentation: moco_v2, size: [16, 12], partner: true}"
KEYS = (
    "{augmentation: moco_v2, size: [16, 12], share_crop_with: 0}, "
    "{augmentation: moco_v2, size: [16, 12], share_crop_with: 1, partner: true}"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--views", f"[{QUERIES}, {KEYS}]"],
        ["--neighbours.selection", "none"],
        ["--neighbours.selection", "random", "--neighbours.start_epoch", "0"],
        ["--neighbours.memory_gib", "0", "--neighbours.spherical", "true"],
        ["--method.mixing", "none", "--views", UNMIXED],
    ],
    ids=["two resolutions", "no partners", "random from the start", "on disk", "no mixing"],
)
def test_the_switches_train(tmp_path, options):
    train_on_few(tmp_path, *options)
    record = [record for record in read_metrics(tmp_path / "run") if "loss" in record][-1]
    assert 0 < record["loss"] < 1.05 * record["chance_loss"]
    assert ("partner_similarity" in record) == (options != ["--neighbours.selection", "none"])


@pytest.mark.slow
def test_bad_input_is_one_clear_error(tmp_path):
    two_views = "--views '[{augmentation: moco_v2, size: 16, count: 2}]'"
    mistakes = {
        "--method.temperature 0": "temperature must be positive, got 0",
        "--method.queue.length 8 --train.batch_size 16": "queue.length 8 is less than the 16 keys",
        "--method.momentum.batch_norm_splits 3": "momentum.batch_norm_splits 3 does not divide",
        two_views: "neighbours.selection center_wise gives each image a partner, but no view of it is in `views`",
        f"{two_views} --neighbours.selection median": "neighbours.selection",
        "--method.mixing none": "with mixing 'none' the partner's views have the sizes [(16,)]",
        "--neighbours.update_every 0": "neighbours.update_every must be at least 1, got 0",
        "--neighbours.k 1397": "neighbours.k 1397: ",
        "--neighbours.start_epoch 2": "neighbours.start_epoch 2: no partner would be chosen in 2 epochs",
        "--neighbours.positives 41": "neighbours.positives 41: ",
        "--neighbours.clusters 2000": "neighbours.clusters 2000: ",
    }
    check_bad_input(train, tmp_path, mistakes)


@pytest.mark.parametrize(
    ("installed", "words"),
    [([], "ssl-clim[cpu]"), (["faiss-cpu", "faiss-gpu"], "faiss-cpu, faiss-gpu are all installed")],
)
@pytest.mark.slow
def test_without_one_faiss_nothing_is_begun(tmp_path, monkeypatch, installed, words):
    monkeypatch.setattr(neighbours, "packages_distributions", lambda: {"faiss": installed})
    assert importlib.metadata.packages_distributions()["faiss"]  # it is there, in truth
    message = error_of(train, "--config", "smoke", "--device", "cpu", "--out", str(tmp_path / "run"))
    assert words in message
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["none", "random"])
def test_without_a_search_faiss_is_not_asked_for(tmp_path, monkeypatch, selection):
    monkeypatch.setattr(neighbours, "packages_distributions", dict)
    train_on_few(tmp_path, "--neighbours.selection", selection, "--neighbours.start_epoch", "0", "--train.epochs", "1")
    assert (tmp_path / "run" / "backbone.safetensors").exists()


def test_the_choices_of_partners_keep_their_parts_of_a_run_and_take_their_share_of_a_budget():
    config = parse(train, "--config", "quickstart")
    neighbours = config.lasting(200, 10).neighbours  # 20 epochs in place of 100
    assert (neighbours.start_epoch, neighbours.update_every) == (10, 2)
    assert config.upkeep(100.0) == (5, 0.5)
    assert parse(train, "--config", "quickstart", "--neighbours.selection", "none").upkeep(100.0) == (0, 0.0)


def test_a_budget_times_the_steps_without_and_with_partners(monkeypatch):
    config = parse(train, "--config", "quickstart", "--budget", "5m")
    monkeypatch.setattr(
        budget, "time_steps", lambda method, optimizer, config, micro, **_: float(len(next(micro).views))
    )
    specs, device = config.view_specs(), torch.device("cpu")
    source = open_source(config.data)
    shape = {"batch_size": 128, "mean": (0.1,), "std": (0.2,)}
    batches = Batches(source, specs, **shape, seed=0, workers=0)
    parts = build(config, train.make_method, channels=1, device=device)
    costs = budget.measured_costs(config, parts, batches, source, mean=(0.1,), std=(0.2,), device=device)
    assert (costs.step_s, costs.partner_step_s) == (2.0, 4.0)
    assert min(costs) > 0
    config = replace(config, neighbours=replace(config.neighbours, selection="none"))
    assert config.search_seconds(1397, 8, device) == 0.0


def test_a_search_of_many_is_timed_among_a_few(monkeypatch):
    asked = []

    def search(features, selection, faiss, *, clusters, neighbours, **_):
        asked.append((features.shape, selection, clusters, neighbours))

    monkeypatch.setattr(partners, "find_positives", search)
    monkeypatch.setattr(partners.time, "perf_counter", iter((0.0, 2.0, 0.0, 2.0)).__next__)
    config = parse(train, "--config", "quickstart")
    assert config.search_seconds(40_000, 512, torch.device("cpu")) == 2.0 * 4**2
    config = replace(config, neighbours=replace(config.neighbours, features="backbone", clusters=7))
    assert config.search_seconds(1397, 512, torch.device("cpu")) == 2.0
    dim = config.projector.out_dim
    assert asked == [((10_000, dim), "center_wise", 78, 40), ((1397, 512), "center_wise", 7, 40)]
