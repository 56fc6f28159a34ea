from itertools import repeat
from types import SimpleNamespace

import pytest
import ssl_tiny.train
import torch

from ssl_core import trial
from ssl_core.build import build
from ssl_core.testing.recipes import parse


@pytest.mark.parametrize(
    ("step_s", "taken", "capture"),
    [(0.25, 3 + 1 + 8, False), (1.5, 3 + 1, False), (30.0, 2, False), (0.25, 4 + 1 + 8, True)],
    ids=["fast", "slow", "slower than the time", "captured at the fourth"],
)
def test_slow_steps_are_measured_by_few_and_captured_ones_as_they_are_repeated(step_s, taken, capture, monkeypatch):
    clock = [0.0]

    def take(*_):
        is_capture = capture and len(clock) == 4
        clock.append(clock[-1] + (100 * step_s if is_capture else step_s))
        return SimpleNamespace(keys=None)

    config = parse(ssl_tiny.train, "--config=smoke", "--method.negatives=batch", f"--train.capture={capture}")
    parts = build(config, ssl_tiny.train.make_method, channels=1, device=torch.device("cpu"))
    monkeypatch.setattr(trial.Stepper, "take", take)
    monkeypatch.setattr(trial.time, "perf_counter", lambda: clock[-1])
    monkeypatch.setattr(trial.Window, "summary", lambda *_: {})
    assert trial.time_steps(parts.method, parts.optimizer, config.train, repeat(()), seconds=2.0) == step_s
    assert len(clock) - 1 == taken
