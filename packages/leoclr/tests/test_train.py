"""The command ssl-leoclr-train, as a person uses it: run, stop, resume, and get things wrong."""

import pytest

from ssl_core.testing import check_bad_input, check_exact_resume, check_imports, check_run
from ssl_core.train import read_metrics
from ssl_leoclr import train


@pytest.mark.slow
def test_importing_costs_little_and_listing_recipes_nothing():
    check_imports("ssl_leoclr")


@pytest.mark.slow
def test_a_run_leaves_what_is_promised_and_can_be_repeated(tmp_path):
    check_run(train, tmp_path)


@pytest.mark.nightly
def test_killed_and_resumed_gives_the_same_losses_to_the_last_bit(tmp_path):
    queue = ["--method.queue.length=72", "--method.enqueue=both", "--method.queue.initial=empty"]
    check_exact_resume(
        train, tmp_path, [*queue, "--method.momentum.batch_norm_splits=4", "--method.momentum.value=0.9"]
    )


MOCO = "--method.queue.length 65536 --method.momentum.value 0.999 --method.momentum.batch_norm_splits 1"  # the defaults
SIMCLR = f"--method.framework simclr {MOCO}"


@pytest.mark.slow
def test_the_simclr_framework_trains_without_a_queue(tmp_path):
    train.main(["--config", "smoke", "--device", "cpu", "--out", str(tmp_path / "run"), *SIMCLR.split()])
    record = read_metrics(tmp_path / "run")[-1]
    assert record["loss"] < record["chance_loss"]
    assert "queue_fill" not in record
    assert record["embedding_std"] > 0


@pytest.mark.slow
def test_bad_input_is_one_clear_error(tmp_path):
    two_views = "--views '[{augmentation: moco_v2, size: 16, count: 2}]'"
    mistakes = {
        "--method.temperature 0": "temperature must be positive, got 0",
        "--method.queue.length 8 --train.batch_size 16": "queue.length 8 is less than the 16 keys",
        "--method.queue.length 100 --method.enqueue both": "queue.length 100 is less than the 128 keys",
        "--method.momentum.batch_norm_splits 3": "momentum.batch_norm_splits 3 does not divide",
        "--method.anchor random_crop": "'moco_v2_uncropped', is the whole image",
        two_views: "'moco_v2', is cut at random",
        f"{two_views} --method.anchor random_crop --method.attract all": "attract 'all' is about two crops",
        "--method.framework simclr": "queue.length 512 has no effect with framework simclr; leave it at 65536",
        f"{SIMCLR} --method.enqueue both": "enqueue both has no effect with framework simclr; leave it at first",
        f"{SIMCLR} --train.accumulate 2": "train.accumulate 2: framework simclr takes its negatives from the images",
    }
    check_bad_input(train, tmp_path, mistakes)
