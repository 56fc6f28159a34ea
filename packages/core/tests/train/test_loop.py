"""The loop with a toy method: a linear map that learns the mean of its images, with a counter as its momentum state."""

import json
import os
import signal
import threading
import time
from collections import namedtuple

import pytest
import torch
from torch import nn

from ssl_core.philox import permutation
from ssl_core.train import (
    CollapseError,
    OptimConfig,
    Step,
    StepOutput,
    TrainConfig,
    load_checkpoint,
    make_optimizer,
    read_metrics,
    train,
)
from ssl_core.train.checkpoint import restore_

Batch = namedtuple("Batch", ["views", "index"])

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture(autouse=True)
def _no_signal_ignored():
    """Signals as they are unless ``nohup`` or a shell's background, where a test may run, ignores some."""
    heard = {number: signal.SIG_DFL for number in SIGNALS} | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in heard.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Toy(nn.Module):
    views = ()

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.projector = nn.Linear(4, 4), nn.Identity()
        self.register_buffer("key_sum", torch.zeros(4))
        self.seen = []

    def forward(self, views, step):
        output = self.encoder(views[0].flatten(1))
        # Uses the global generator, as dropout would: a resumed run must continue its stream.
        noise = torch.rand(())
        loss = ((output - views[0].flatten(1)) ** 2).mean() * (1 + noise) + 0 * self.key_sum.sum()
        self.seen.append((step, loss.item()))
        return StepOutput(loss, output.detach(), {"chance_loss": torch.tensor(1.0)})

    def update(self, keys, step):
        self.key_sum += keys.sum(dim=0)


class Images:
    """Sixteen images in batches of four, divided into micro-batches."""

    batches_per_epoch = 4

    def __init__(self, accumulate=1, poison=None):
        self.accumulate = accumulate
        self.shift = torch.tensor(0.0)  # added to every image
        self.images = torch.randn(16, 1, 2, 2, generator=torch.Generator().manual_seed(1))
        if poison is not None:
            self.images[poison] = float("nan")

    def epoch(self, epoch, start=0):
        order = permutation(0, (0, epoch), 16)
        for index in order.reshape(4 * self.accumulate, -1)[start * self.accumulate :]:
            yield Batch((self.images[index] + self.shift,), index)

    def identifier(self, index):
        return f"image-{index}"

    def state_dict(self):
        return {"shift": self.shift}

    def load_state_dict(self, state):
        self.shift = state["shift"]


def run(folder, **options):
    return trained(folder, **options)[0]


def trained(folder, *, method=None, images=None, optim=None, **options):
    """The method and the speed of its training."""
    method = method or Toy()
    callables = {name: options.pop(name, None) for name in ("health", "collapse", "before_epoch", "on_epoch")}
    config = {"epochs": 3, "batch_size": 4, "log_every": 1, "device": "cpu"} | options
    optim = optim or OptimConfig(lr=0.1, scale_lr=False, weight_decay=0.0)
    optimizer = make_optimizer(method, optim, batch_size=config["batch_size"])
    images, start = images or Images(config.get("accumulate", 1)), 0
    if (last := folder / "checkpoints" / "last.pt").exists():
        content = load_checkpoint(last)
        images.load_state_dict(content["batches"])
        start = restore_(content, method=method, optimizer=optimizer)
    speed = train(
        method,
        images,
        optimizer,
        TrainConfig(**config),
        folder=folder,
        learning_rate=lambda step: 0.1 * (1 - step.progress),
        start=start,
        **callables,
    )
    return method, speed


class Embedding(Toy):
    """Gives embeddings beside its keys: all of them the number of its step."""

    def forward(self, views, step):
        return super().forward(views, step)._replace(embeddings=torch.full((4, 2), float(step.index)))


def mean(embeddings):
    return {"mean": embeddings.mean().item()}


def test_the_log_judges_the_embeddings_where_a_method_gives_them_and_its_keys_otherwise(tmp_path):
    run(tmp_path / "given", method=Embedding(), health=mean)
    assert [record["mean"] for record in read_metrics(tmp_path / "given")] == list(range(12))
    run(tmp_path / "keys", health=mean)
    assert len({record["mean"] for record in read_metrics(tmp_path / "keys")}) == 12


def collapse_between(first, last, seen=None):
    def collapse(latest):
        if seen is not None:
            seen.append(dict(latest))
        return f"mean {latest['mean']:g}" if first <= latest["mean"] <= last else None

    return collapse


def test_a_collapse_is_said_once_and_again_after_a_recovery(tmp_path, capsys):
    between = collapse_between(2, 6)
    run(
        tmp_path,
        method=Embedding(),
        health=mean,
        collapse=lambda latest: between(latest) or collapse_between(9, 9)(latest),
    )
    printed = capsys.readouterr().err
    assert printed.count("WARNING: the embeddings have collapsed") == 2
    assert "after step 5: mean 4" in printed  # not in the first epoch, where it begins
    assert "after step 10: mean 9" in printed


def test_the_judgment_on_collapse_sees_what_was_measured_after_an_epoch(tmp_path):
    seen = []
    run(
        tmp_path,
        method=Embedding(),
        health=mean,
        collapse=collapse_between(99, 99, seen),
        on_epoch=lambda epoch: {"knn_top1": epoch / 10},
    )
    assert [latest["knn_top1"] for latest in seen] == [0.1] * 4 + [0.2] * 4


def test_a_run_that_is_told_to_stops_on_collapse_and_keeps_a_checkpoint(tmp_path):
    options = {"method": Embedding(), "health": mean, "collapse": collapse_between(6, 99)}
    with pytest.raises(CollapseError, match=r"collapsed after step 7: mean 6; saved .*last\.pt"):
        run(tmp_path, **options, stop_on_collapse=True)
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"] == 7
    run(tmp_path, **options)
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(1, 13))


def test_every_step_of_every_epoch_is_taken_once_and_in_order(tmp_path):
    method = run(tmp_path)
    assert [step for step, _ in method.seen] == [Step(i, 12, 4) for i in range(12)]
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(1, 13))
    assert read_metrics(tmp_path)[-1]["lr"] == 0.0


def test_a_length_in_steps_may_end_within_an_epoch(tmp_path):
    epochs = []
    options = {"steps": 10, "keep_every": 1, "on_epoch": lambda epoch: epochs.append(epoch) or {}}
    method = run(tmp_path, **options)
    assert [step for step, _ in method.seen] == [Step(i, 10, 4) for i in range(10)]
    assert epochs == [1, 2]
    steps = {path.stem: load_checkpoint(path)["step"] for path in (tmp_path / "checkpoints").iterdir()}
    assert steps == {"epoch_0001": 4, "epoch_0002": 8, "last": 10}
    assert run(tmp_path, **options).seen == []


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    class Quiet(Toy):
        def forward(self, views, step):
            output = self.encoder(views[0].flatten(1))
            return StepOutput((output**2).mean(), output.detach(), {})

    whole = run(tmp_path / "whole", method=Quiet())
    parts = run(tmp_path / "parts", method=Quiet(), accumulate=2)
    torch.testing.assert_close(whole.encoder.weight, parts.encoder.weight)
    torch.testing.assert_close(whole.key_sum, parts.key_sum)


@pytest.mark.parametrize(("stop_at", "steps"), [(1, None), (4, None), (6, None), (4, 7), (6, 7), (8, 8)])
def test_stopping_and_resuming_gives_the_same_losses_to_the_last_bit(tmp_path, stop_at, steps):
    class Interrupted(Toy):
        def update(self, keys, step):
            super().update(keys, step)
            if step.index + 1 == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

    whole = run(tmp_path / "whole", steps=steps)
    first = Interrupted()
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "parts", method=first, steps=steps)
    assert stopped.value.code == 128 + signal.SIGTERM
    second = run(tmp_path / "parts", steps=steps)
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.encoder.weight, whole.encoder.weight)
    losses = [[record["loss"] for record in read_metrics(tmp_path / part)] for part in ("whole", "parts")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["step", "data", "before_epoch", "on_epoch"])
def test_each_signal_saves_at_any_moment_and_exits_with_its_number(tmp_path, number, moment, capsys):
    def interrupt(*_):
        os.kill(os.getpid(), number)
        return {}

    class Interrupted(Toy):
        def update(self, keys, step):
            super().update(keys, step)
            if moment == "step" and step.index == 3:
                interrupt()

    class Late(Images):
        def epoch(self, epoch, start=0):
            for number, batch in enumerate(super().epoch(epoch, start)):
                if moment == "data" and (epoch, number) == (1, 0):
                    interrupt()
                    raise AssertionError("the data are waited for")
                yield batch

    callables = {moment: lambda epoch: interrupt() if epoch == 1 else {}} if "epoch" in moment else {}
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, method=Interrupted(), images=Late(), **callables)
    assert stopped.value.code == 128 + number
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert f"stopped by {number.name} after step 4; saved" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["step"] == 4


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1], ids=lambda number: number.name)
def test_what_schedulers_and_shells_send_twice_saves_all_the_same(tmp_path, number):
    class Interrupted(Toy):
        def update(self, keys, step):
            super().update(keys, step)
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, method=Interrupted())
    assert stopped.value.code == 128 + number


def test_a_second_interrupt_acts_at_once(tmp_path):
    class Interrupted(Toy):
        def update(self, keys, step):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, method=Interrupted())


def test_under_torchrun_a_second_sigterm_which_slurm_and_it_send_saves_all_the_same(tmp_path, monkeypatch):
    class Interrupted(Toy):
        def update(self, keys, step):
            super().update(keys, step)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, method=Interrupted())
    assert stopped.value.code == 128 + signal.SIGTERM


def test_a_signal_that_was_ignored_stays_so(tmp_path):
    class Interrupted(Toy):
        def update(self, keys, step):
            super().update(keys, step)
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert len(run(tmp_path, method=Interrupted()).seen) == 12
    finally:
        signal.signal(signal.SIGHUP, before)


def test_training_works_in_a_thread_where_there_are_no_signals(tmp_path):
    methods = []
    thread = threading.Thread(target=lambda: methods.append(run(tmp_path)))
    thread.start()
    thread.join()
    assert len(methods[0].seen) == 12


class Predicting(Toy):
    """All gradients are 1, so what a parameter moves by is the sum of its learning rates."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.predictor = nn.Linear(2, 2)
        self.stop_at = stop_at

    def forward(self, views, step):
        loss = sum(parameter.sum() for parameter in self.parameters())
        return StepOutput(loss, views[0].flatten(1), {})

    def update(self, keys, step):
        super().update(keys, step)
        if step.index + 1 == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


RATES = OptimConfig(lr=0.1, lr_1d=0.02, scale_lr=False, momentum=0.0, weight_decay=0.0, constant_lr=("predictor",))


@pytest.mark.parametrize("stop_at", [None, 2])
def test_vectors_follow_the_schedule_at_their_own_rate_and_constant_parts_do_not_also_after_a_stop(tmp_path, stop_at):
    if stop_at:
        with pytest.raises(SystemExit):
            run(tmp_path, method=Predicting(stop_at), optim=RATES, epochs=1)
    start, method = Predicting(), run(tmp_path, method=Predicting(), optim=RATES, epochs=1)
    moved = {
        name: before - after
        for (name, before), after in zip(start.named_parameters(), method.parameters(), strict=True)
    }
    # Four steps: 0.1 (1 + 2/3 + 1/3 + 0) = 0.2 by schedule, a fifth of it for vectors; constant 4 x 0.1 and 4 x 0.02.
    expected = {"encoder.weight": 0.2, "encoder.bias": 0.04, "predictor.weight": 0.4, "predictor.bias": 0.08}
    for name, distance in expected.items():
        torch.testing.assert_close(moved[name], torch.full_like(moved[name], distance))


@pytest.mark.parametrize("stop_at", [3, 4, 6])
def test_what_is_done_before_an_epoch_is_kept_over_a_stop_and_repeated_only_at_its_beginning(tmp_path, stop_at):
    class Interrupted(Toy):
        def update(self, keys, step):
            super().update(keys, step)
            if step.index + 1 == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

    def shifted(folder, method, calls):
        images = Images()

        def before_epoch(epoch):
            calls.append(epoch)
            # Depends on the state of the training, as a search among features does.
            images.shift = torch.tensor(float(epoch)) + method.encoder.weight.sum().detach()
            return {"shift": images.shift.item()}

        return run(folder, method=method, images=images, before_epoch=before_epoch)

    calls, parts = [], []
    whole = shifted(tmp_path / "whole", Toy(), calls)
    assert calls == [0, 1, 2]
    with pytest.raises(SystemExit):
        shifted(tmp_path / "parts", Interrupted(), parts)
    second = shifted(tmp_path / "parts", Toy(), parts)
    assert parts == [0, 1, 2]
    assert torch.equal(second.encoder.weight, whole.encoder.weight)
    shifts = [[r["shift"] for r in read_metrics(tmp_path / part) if "shift" in r] for part in ("whole", "parts")]
    assert shifts[0] == shifts[1]
    assert len(set(shifts[0])) == 3


def test_what_was_done_before_the_epoch_of_a_killed_run_is_logged_once(tmp_path):
    class Killed(Toy):
        def update(self, keys, step):
            if step.index == 5:
                raise KeyboardInterrupt
            super().update(keys, step)

    def searched(method):
        return run(
            tmp_path, method=method, before_epoch=lambda epoch: {"found": 1.0}, on_epoch=lambda epoch: {"knn": 0.5}
        )

    with pytest.raises(KeyboardInterrupt):
        searched(Killed())
    searched(Toy())
    records = read_metrics(tmp_path)
    assert [(record["step"], record["before_epoch"]) for record in records if "found" in record] == [
        (0, 0),
        (4, 1),
        (8, 2),
    ]
    assert [record["step"] for record in records if "knn" in record] == [4, 8, 12]


def test_records_after_the_last_checkpoint_of_a_killed_run_are_not_kept_twice(tmp_path):
    class Killed(Toy):
        def update(self, keys, step):
            if step.index == 7:
                raise KeyboardInterrupt
            super().update(keys, step)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, method=Killed(), checkpoint_every=5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    run(tmp_path, checkpoint_every=5)
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(1, 13))


def test_a_loss_that_is_not_finite_names_step_images_and_the_last_good_checkpoint(tmp_path):
    position = permutation(0, (0, 0), 16).tolist().index(5)
    with pytest.raises(FloatingPointError) as error:
        run(tmp_path, images=Images(poison=5), checkpoint_every=1)
    step = position // 4
    assert f"at step {step} " in str(error.value)
    assert "image-5" in str(error.value)
    checkpoint = tmp_path / "checkpoints" / "last.pt"
    assert (str(checkpoint) if step else "none yet") in str(error.value)
    if step:
        assert load_checkpoint(checkpoint)["step"] == step


def test_on_a_cpu_a_bad_loss_stops_before_it_reaches_the_weights(tmp_path):
    method = Toy()
    with pytest.raises(FloatingPointError):
        run(tmp_path, method=method, images=Images(poison=5), log_every=100)
    assert method.encoder.weight.isfinite().all()


def test_kept_checkpoints_stand_beside_the_last_one(tmp_path):
    run(tmp_path, keep_every=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["epoch_0002.pt", "last.pt"]
    assert load_checkpoint(tmp_path / "checkpoints" / "epoch_0002.pt")["step"] == 8


def test_what_on_epoch_returns_is_logged(tmp_path):
    run(tmp_path, on_epoch=lambda epoch: {"knn_top1": epoch / 10})
    logged = [record["knn_top1"] for record in read_metrics(tmp_path) if "knn_top1" in record]
    assert logged == [0.1, 0.2, 0.3]


def test_tensorboard_events_are_written_on_request(tmp_path):
    run(tmp_path, tensorboard=True, epochs=1)
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_bfloat16_autocast_keeps_parameters_in_float32(tmp_path):
    method = run(tmp_path, precision="bfloat16", epochs=1)
    assert method.encoder.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "train.epochs must be at least 1, got 0"),
        ({"steps": 0}, "train.steps must be at least 1 or null, got 0"),
        ({"batch_size": 10, "accumulate": 3}, "10 is not a multiple of train.accumulate 3"),
        ({"checkpoint_every": 0}, "train.checkpoint_every must be at least 1 or null, got 0"),
        ({"timeout": "10"}, "train.timeout '10' is no time; write it as 2h, 45m, 600s or 1h30m"),
    ],
    ids=["no epochs", "no steps", "indivisible batch", "no checkpoint step", "a time without a unit"],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


def test_a_precision_that_nobody_has_decided_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train\.precision auto is for"):
        run(tmp_path, precision="auto")


class SlowImages(Images):
    """Waits for each batch."""

    def epoch(self, epoch, start=0):
        for batch in super().epoch(epoch, start):
            time.sleep(0.01)
            yield batch


def test_the_speed_is_that_of_all_records_without_evaluations(tmp_path):
    def evaluate(epoch):
        time.sleep(0.2)
        return {"knn_top1": 0.5}

    _, speed = trained(tmp_path, images=SlowImages(), on_epoch=evaluate)
    records = [record for record in read_metrics(tmp_path) if "loss" in record]
    seconds = [4 / record["images_per_s"] for record in records]
    assert speed.images_per_s == pytest.approx(48 / sum(seconds))
    waited = sum(second * record["data_wait"] for second, record in zip(seconds, records, strict=True))
    assert speed.data_wait == pytest.approx(waited / sum(seconds))
    assert waited > 12 * 0.01  # each batch waits for a hundredth of a second


def test_a_finished_run_has_no_speed(tmp_path):
    run(tmp_path)
    assert trained(tmp_path)[1] is None


def test_metrics_are_one_json_object_a_line(tmp_path):
    run(tmp_path, epochs=1)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert {"step", "loss", "lr", "epoch", "images_per_s", "data_wait"} <= json.loads(line).keys()
