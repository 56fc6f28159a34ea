"""What the log says while a run goes on."""

import pytest

from ssl_core.train import log as module
from ssl_core.train.log import Log


def lines_of(folder, monkeypatch, capsys, *, step_s, start=0, total_steps=1000):
    """What a log of steps of 10 images prints, of which the first takes a minute more."""
    now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    with Log(folder, start=start, total_images=10 * total_steps, images_per_step=10) as log:
        for step in range(start, min(start + 50, total_steps)):
            now += 60 + step_s if step == start else step_s
            log.advance()
    return [line for line in capsys.readouterr().err.splitlines() if "images/s so far" in line]


@pytest.mark.parametrize(
    ("total_steps", "line"),
    [
        # After the first step and 3 s: 7 steps are done.
        (107, "20 images/s so far: about 50 s of training to go (1,000 images)"),
        (1_007, "20 images/s so far: about 8.3 min of training to go (10,000 images)"),
        (100_007, "20 images/s so far: about 13.9 h of training to go (1,000,000 images)"),
        (1_000_007, "20 images/s so far: about 5.8 days of training to go (10,000,000 images)"),
    ],
)
def test_a_run_says_once_and_at_once_how_long_it_will_take(tmp_path, monkeypatch, capsys, total_steps, line):
    assert lines_of(tmp_path, monkeypatch, capsys, step_s=0.5, total_steps=total_steps) == [line]


def test_a_resumed_run_counts_what_is_left(tmp_path, monkeypatch, capsys):
    lines = lines_of(tmp_path, monkeypatch, capsys, step_s=0.5, start=900)
    assert lines == ["20 images/s so far: about 46 s of training to go (930 images)"]


@pytest.mark.parametrize("step_s", [0.1, 4.0], ids=["short", "the last step comes first"])
def test_a_run_of_which_nothing_is_left_says_nothing(tmp_path, monkeypatch, capsys, step_s):
    assert lines_of(tmp_path, monkeypatch, capsys, step_s=step_s, total_steps=2) == []
