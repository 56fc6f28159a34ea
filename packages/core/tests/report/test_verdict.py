"""Each judgment on a log as such a run writes it; docs/report.md has the rules."""

import math
import time

import pytest
from PIL import Image
from ssl_tiny.train import main

from ssl_core.data import Batches
from ssl_core.report import verdicts
from ssl_core.train.log import read_metrics

STEPS = 40


def log(*, loss=lambda part: 6 + 2 * math.exp(-12 * part), wait=0.02, std=0.08, rank=40.0, knn=None, steps=STEPS):
    """Records of a run, with the loss by the part of the run that is done."""
    records = []
    for index in range(steps):
        part = (index + 1) / steps
        records.append(
            {"step": 20 * (index + 1), "loss": loss(part), "chance_loss": 8.3, "data_wait": wait}
            | {"embedding_std": std, "embedding_std_even": 0.088, "effective_rank": rank}
        )
        if knn is not None and (index + 1) % (steps // 8) == 0:
            records.append({"step": 20 * (index + 1), "knn_top1": knn(part)})
    return records


def kinds(records):
    return [verdict.kind for verdict in verdicts(records)]


def test_a_loss_that_has_settled_below_chance_is_healthy():
    (verdict,) = verdicts(log())
    assert verdict == ("healthy", "The loss ends at 6.00, where chance is 8.30.", "")


@pytest.mark.parametrize(("std", "rank"), [(0.001, 40.0), (0.08, 2.0)], ids=["no spread", "no dimensions"])
def test_embeddings_that_are_all_alike_have_collapsed_and_nothing_is_promised_of_longer_training(std, rank):
    (verdict,) = verdicts(log(std=std, rank=rank, loss=lambda part: 7 - part))
    assert verdict.kind == "collapsed"
    assert "--optim.lr" in verdict.remedy


def test_a_loss_at_the_level_of_guessing_is_at_chance():
    assert kinds(log(loss=lambda part: 8.3 - 0.05 * part)) == ["at chance"]


def test_waiting_for_a_fifth_of_the_time_is_starvation_whatever_the_loss():
    assert kinds(log(wait=0.19)) == ["healthy"]
    (verdict,) = verdicts(log(wait=0.35))
    assert verdict.kind == "starved of data"
    assert "35 %" in verdict.text
    assert "--data.workers" in verdict.remedy


def test_a_loss_that_still_falls_is_improving():
    assert kinds(log(loss=lambda part: 8 - 2 * part)) == ["healthy", "still improving"]


def test_the_last_quarter_ends_with_the_last_record():
    # Of 11 records the last two have fallen: were they seen with the one before, or left out, the fall would be small.
    flat = [8.0] * 9
    assert kinds(log(loss=lambda part: [*flat, 6.0, 6.0][round(11 * part) - 1], steps=11)) == [
        "healthy",
        "still improving",
    ]


def test_noise_is_no_improvement():
    # The quarter before the last is above the others, by less than two standard errors.
    noisy = log(loss=lambda part: 6 + 0.3 * (-1) ** round(part * STEPS) + 0.05 * (0.5 < part <= 0.75))
    assert kinds(noisy) == ["healthy"]


def test_knn_decides_over_the_loss_where_it_was_measured():
    falling = {"loss": lambda part: 8 - 2 * part}
    assert kinds(log(**falling, knn=lambda part: 0.5)) == ["healthy"]
    assert kinds(log(knn=lambda part: 0.3 + 0.2 * part)) == ["healthy", "still improving"]


def test_a_loss_without_a_level_of_chance_is_judged_by_the_rest():
    records = [{name: value for name, value in record.items() if name != "chance_loss"} for record in log()]
    assert kinds(records) == ["healthy"]


@pytest.mark.parametrize("steps", [0, 7])
def test_of_a_few_records_nothing_is_said(steps):
    assert kinds(log(steps=steps)) == ["too short"]


def trained(folder, *options):
    """The judgments of a run, of twenty steps unless ``options`` say otherwise."""
    main(["--config", "smoke", "--train.steps=20", "--train.log_every=2", f"--out={folder / 'run'}", *options])
    return kinds(read_metrics(folder / "run"))


@pytest.mark.slow
def test_a_run_that_waits_for_its_images_is_starved(tmp_path, monkeypatch):
    made = Batches.epoch

    def slow(self, epoch, start=0):
        for batch in made(self, epoch, start):
            time.sleep(0.2)
            yield batch

    monkeypatch.setattr(Batches, "epoch", slow)
    assert "starved of data" in trained(tmp_path)


@pytest.mark.slow
def test_a_run_on_images_that_are_all_the_same_has_collapsed(tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(80):
        Image.new("L", (16, 16), 128).save(tmp_path / "images" / f"{index}.png")
    data = [
        "--data.mean=[0.4]",
        "--data.std=[0.3]",
        "--views=[{augmentation: [{center_crop: {}}], size: 16, count: 2}]",
    ]
    assert trained(tmp_path, f"--data.source={tmp_path / 'images'}", *data)[0] == "collapsed"


@pytest.mark.slow
def test_a_run_that_learns_nothing_is_at_chance(tmp_path):
    assert trained(tmp_path, "--optim.lr=1e-12") == ["at chance"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--train.steps=60"], ["healthy"]),
        (["--train.steps=20"], ["healthy", "still improving"]),
        (["--train.log_every=5"], ["too short"]),
    ],
    ids=["until it has settled", "too soon over", "seldom logged"],
)
def test_a_run_that_learns_is_healthy_and_improving_until_it_has_settled(tmp_path, options, expected):
    learns = ["--method.negatives=batch", "--train.batch_size=16", "--optim.lr=0.3"]
    assert trained(tmp_path, *learns, *options) == expected
