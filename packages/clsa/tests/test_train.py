"""The command ssl-clsa-train, as a person uses it: run, stop, resume, and get things wrong."""

import pytest

from ssl_clsa import train
from ssl_core.testing import check_bad_input, check_exact_resume, check_imports, check_run


@pytest.mark.slow
def test_importing_costs_little_and_listing_recipes_nothing():
    check_imports("ssl_clsa")


@pytest.mark.slow
def test_a_run_leaves_what_is_promised_and_can_be_repeated(tmp_path):
    check_run(train, tmp_path)


@pytest.mark.nightly
def test_killed_and_resumed_gives_the_same_losses_to_the_last_bit(tmp_path):
    check_exact_resume(train, tmp_path, ["--method.queue.length=72", "--method.momentum.batch_norm_splits=4"])


@pytest.mark.slow
def test_bad_input_is_one_clear_error(tmp_path):
    mistakes = {
        "--method.temperature 0": "temperature must be positive, got 0",
        "--method.queue.length 8 --train.batch_size 16": "queue.length 8 is less than the 16 keys",
        "--method.queue.length 64 --method.symmetric true": "queue.length 64 is less than the 128 keys",
        "--method.momentum.batch_norm_splits 3": "momentum.batch_norm_splits 3 does not divide",
        "--method.num_weak 2": "strong_loss 'ddm' needs strong views",
        "--method.strong_loss divergence": "method.strong_loss",
        "--views '[{augmentation: moco_v2, size: 16}]'": "num_weak must be from 0 to 0",
    }
    check_bad_input(train, tmp_path, mistakes)
