import pytest
import ssl_tiny.train
import yaml
from ssl_tiny.train import main

from ssl_core import budget, pretrain
from ssl_core.budget import Costs, within_budget
from ssl_core.config import with_values
from ssl_core.run import PretrainConfig, Upkeep
from ssl_core.testing import error_of, make_images
from ssl_core.testing.recipes import parse
from ssl_core.train import OptimConfig, load_checkpoint, read_metrics

COSTS = Costs(step_s=0.5, partner_step_s=0.5, image_s=0.0, checkpoint_s=0.0)


def fitted(costs=COSTS, *, config=None, elapsed_s=0.0, steps_per_epoch=10, num_evaluated=0):
    return within_budget(
        with_values(config or PretrainConfig(), {"budget": "101.5s"}),
        costs,
        elapsed_s=elapsed_s,
        steps_per_epoch=steps_per_epoch,
        num_images=100,
        num_evaluated=num_evaluated,
    )


@pytest.mark.parametrize(
    ("costs", "arguments", "steps"),
    [
        (COSTS, {}, 200),
        (COSTS, {"elapsed_s": 50.0}, 100),
        (COSTS._replace(image_s=0.1), {}, 200),
        (COSTS._replace(image_s=0.1), {"num_evaluated": 500}, 100),
        (COSTS._replace(checkpoint_s=5.0), {}, 100),
        (COSTS._replace(partner_step_s=9.0), {}, 200),
    ],
    ids=["steps", "elapsed", "unevaluated", "evaluated", "checkpoints", "no partners"],
)
def test_what_is_left_of_the_budget_is_filled_with_steps(costs, arguments, steps):
    assert fitted(costs, **arguments).train.steps == steps


def test_evaluations_during_training_have_their_share():
    config = with_values(PretrainConfig(), {"evaluate.knn_every": 2})
    # In 20 steps: 10 s of steps and 10 s of features; and 10 s of them at the end.
    costs = COSTS._replace(image_s=0.1)
    assert fitted(costs, config=config, num_evaluated=100).train.steps == 90


class WithPartners(PretrainConfig):
    def upkeep(self, epochs):
        return Upkeep(passes=2, partners=0.5)


def test_steps_with_partners_and_passes_between_epochs_have_their_share():
    costs = Costs(step_s=0.5, partner_step_s=1.5, image_s=0.1, checkpoint_s=0.0)
    assert fitted(costs, config=WithPartners()).train.steps == 80  # (100 - 2 x 100 x 0.1) s / 1 s
    assert fitted(costs._replace(search_s=5.0), config=WithPartners()).train.steps == 70


def test_checkpoints_that_are_kept_have_their_share():
    config = with_values(PretrainConfig(), {"train.keep_every": 1})
    assert fitted(COSTS._replace(checkpoint_s=2.5), config=config).train.steps == 100  # an epoch takes 5 + 2 x 2.5 s


def test_a_budget_without_time_for_a_step_is_refused():
    with pytest.raises(ValueError, match=r"budget 101.5s: .* not one step of 0.5 s .* give more"):
        fitted(elapsed_s=99.8)


def test_what_is_counted_in_epochs_keeps_its_part_of_the_run():
    optim = OptimConfig(warmup_epochs=10, schedule="step", milestones=(120, 160))
    config = with_values(PretrainConfig(optim=optim), {"train.epochs": 200})
    short, long = config.lasting(500, 10).optim, config.lasting(4000, 10).optim
    assert (short.warmup_epochs, short.milestones) == (2.5, (30, 40))
    assert (long.warmup_epochs, long.milestones) == (20, (240, 320))
    assert config.lasting(10, 10).optim.milestones == (1, 1)  # and not from the first epoch on


@pytest.mark.parametrize(("steps", "schedule"), [(99, "cosine"), (100, "cosine_epoch")])
def test_a_schedule_of_epochs_is_one_of_steps_where_there_are_few(steps, schedule):
    config = PretrainConfig(optim=OptimConfig(schedule="cosine_epoch"))
    assert config.lasting(steps, 10).optim.schedule == schedule


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("photos"))


def command(photos, run, *arguments):
    return [
        "--config=smoke",
        "--device=cpu",
        "--train.batch_size=16",
        f"--data.source={photos}",
        f"--out={run}",
        *arguments,
    ]


@pytest.fixture
def quick(monkeypatch):
    """Steps seem to take so long that five of them fit, and are tried as shortly as can be."""
    monkeypatch.setattr(budget, "_TRIAL", (0.0, 0.0, 0.0))
    monkeypatch.setattr(pretrain, "within_budget", lambda config, *_, **__: config.lasting(5, 3))


@pytest.mark.slow
def test_a_budget_becomes_steps_which_are_saved_and_repeated(photos, tmp_path, quick):
    run = tmp_path / "run"
    main(command(photos, run, "--budget=5m", "--train.log_every=1"))
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert (saved["budget"], saved["train"]["steps"]) == ("5m", 5)
    losses = [each["loss"] for each in read_metrics(run) if "loss" in each]
    assert len(losses) == 5
    # Known already, the steps are measured neither for a repetition nor for the same command again.
    main([f"--config={run / 'config.yaml'}", f"--out={tmp_path / 'again'}"])
    assert [each["loss"] for each in read_metrics(tmp_path / "again") if "loss" in each] == losses
    main(command(photos, run, "--budget=5m", "--train.log_every=1"))
    assert [each["loss"] for each in read_metrics(run) if "loss" in each] == losses


def test_the_trial_leaves_no_trace_in_the_training(photos, tmp_path, quick):
    main(command(photos, tmp_path / "budget", "--budget=5m"))
    main(command(photos, tmp_path / "steps", "--train.steps=5"))
    states = [load_checkpoint(tmp_path / name / "checkpoints" / "last.pt")["method"] for name in ("budget", "steps")]
    assert all((states[0][name] == value).all() for name, value in states[1].items())


def test_another_recipe_in_the_directory_of_a_run_is_refused(photos, tmp_path, quick):
    run = tmp_path / "run"
    main(command(photos, run, "--budget=5m"))
    message = error_of(ssl_tiny.train, *command(photos, run, "--budget=5m", "--optim.momentum=0.5"))
    assert "optim.momentum: 0.9 -> 0.5" in message
    assert "train.steps" not in message
    message = error_of(ssl_tiny.train, *command(photos, run, "--budget=5m", "--config=batch"))
    assert "method.negatives: queue -> batch" in message


@pytest.mark.slow
def test_epochs_that_are_asked_for_take_the_place_of_steps_that_a_budget_has_become(photos, tmp_path, quick, caplog):
    caplog.set_level("INFO", "ssl_core")
    first, other = tmp_path / "run", tmp_path / "other"
    main(command(photos, first, "--budget=5m"))
    options = [f"--config={first / 'config.yaml'}", f"--out={other}", "--budget=null", "--train.epochs=2"]
    for again in (options, options, [f"--resume={other}"]):
        main(again)
        saved = yaml.safe_load((other / "config.yaml").read_text())["train"]
        assert (saved["epochs"], saved["steps"]) == (2, None)
    assert "train.steps: null instead of 5, for train.epochs is given" in caplog.text
    assert load_checkpoint(other / "checkpoints" / "last.pt")["step"] == 10


def test_another_budget_for_a_run_that_has_begun_is_refused(photos, tmp_path, quick):
    run = tmp_path / "run"
    main(command(photos, run, "--budget=5m"))
    assert "budget: 5m -> 1h" in error_of(ssl_tiny.train, *command(photos, run, "--budget=1h"))


@pytest.mark.slow
def test_from_python_too_a_run_goes_on_with_what_it_has_decided(photos, tmp_path, quick):
    config = parse(
        ssl_tiny.train, *command(photos, tmp_path / "run", "--config=auto", "--budget=5m", "--train.log_every=1")
    )
    for _ in range(2):
        run = pretrain.pretrain(config, ssl_tiny.train.make_method, name="tiny")
    assert len([each for each in read_metrics(run) if "loss" in each]) == 5


def test_a_budget_that_is_no_time_is_refused(photos, tmp_path):
    assert "budget '5 minutes' is no time" in error_of(ssl_tiny.train, *command(photos, tmp_path, "--budget=5 minutes"))
