"""The command ssl-sce-train, as a person uses it: run, stop, resume, and get things wrong."""

import pytest

from ssl_core.nn import MomentumBranch
from ssl_core.testing import check_bad_input, check_exact_resume, check_imports, check_run
from ssl_core.testing.recipes import parse
from ssl_sce import train


@pytest.mark.slow
def test_importing_costs_little_and_listing_recipes_nothing():
    check_imports("ssl_sce")


@pytest.mark.slow
def test_a_run_leaves_what_is_promised_and_can_be_repeated(tmp_path):
    check_run(train, tmp_path)


@pytest.mark.nightly
def test_killed_and_resumed_gives_the_same_losses_to_the_last_bit(tmp_path):
    queue = ["--method.queue.length=72", "--method.momentum.batch_norm_splits=4", "--train.precision=bfloat16"]
    check_exact_resume(train, tmp_path, [*queue, "--method.momentum.schedule=cosine", "--method.momentum.value=0.9"])


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "calls"), [("bfloat16", 1), ("float32", 0)])
def test_the_momentum_branch_runs_with_bfloat16_weights_where_the_training_does(
    precision, calls, tmp_path, monkeypatch
):
    called = []
    original = MomentumBranch.use_bfloat16_weights_
    monkeypatch.setattr(
        MomentumBranch, "use_bfloat16_weights_", lambda branch: called.append(branch) or original(branch)
    )
    train.main(["--config", "smoke", "--device", "cpu", f"--train.precision={precision}", f"--out={tmp_path / 'run'}"])
    assert len(called) == calls


@pytest.mark.slow
def test_bad_input_is_one_clear_error(tmp_path):
    mistakes = {
        "--method.temperature 0": "temperature must be positive, got 0",
        "--method.queue.length 8 --train.batch_size 16": "queue.length 8 is less than the 16 keys",
        "--method.momentum.batch_norm_splits 3": "momentum.batch_norm_splits 3 does not divide",
        "--predictor.out_dim 7": "must equal projector.out_dim",
    }
    check_bad_input(train, tmp_path, mistakes)


def test_warm_ups_of_temperature_and_coefficient_keep_their_part_of_a_budget():
    warm_ups = ["--method.target_temperature_warmup_epochs=10", "--method.coefficient_warmup_epochs=20"]
    config = parse(train, "--config", "quickstart", *warm_ups)
    method = config.lasting(200, 10).method  # 20 epochs in place of 100
    assert (method.target_temperature_warmup_epochs, method.coefficient_warmup_epochs) == (2, 4)
