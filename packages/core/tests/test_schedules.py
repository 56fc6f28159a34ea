import math

import pytest

from ssl_core.schedules import cosine_schedule, linear_schedule, scalar_schedule
from ssl_core.testing import DOUBLE


def test_cosine_and_linear_run_from_start_to_end():
    assert [cosine_schedule(2.0, 4.0, progress) for progress in (0.0, 0.5, 1.0)] == [2.0, 3.0, 4.0]
    # cos(pi / 3) = 1/2: a quarter of the way after a third of the time.
    assert cosine_schedule(0.0, 1.0, 1 / 3) == pytest.approx(0.25)
    assert [linear_schedule(2.0, 4.0, progress) for progress in (0.0, 0.25, 1.0)] == [2.0, 2.5, 4.0]


def test_cosine_momentum_is_the_papers_formula():
    total, start = 11, 0.99
    for step in range(total):
        paper = 1 - (1 - start) * (math.cos(math.pi * step / (total - 1)) + 1) / 2
        assert cosine_schedule(start, 1.0, step / (total - 1)) == pytest.approx(paper, rel=DOUBLE)


def test_scalar_stays_without_warm_up_and_decay():
    assert [scalar_schedule(0.05, step, 4, start=0.1) for step in range(4)] == [0.05] * 4


def test_scalar_warms_up_along_half_a_cosine():
    values = [scalar_schedule(0.09, step, 9, start=0.05, warmup_steps=4, warmup_shape="cosine") for step in range(5)]
    # cos(pi / 3) = 1/2: a quarter of the way at the second of four steps.
    assert values == pytest.approx([0.05, 0.06, 0.08, 0.09, 0.09])


def test_scalar_decays_to_its_final_value_at_the_last_step():
    values = [scalar_schedule(0.5, step, 5, start=1.0, final=0.0) for step in range(5)]
    assert values == pytest.approx([0.5, 0.375, 0.25, 0.125, 0.0])
