import math

import pytest

from ssl_core.testing import DOUBLE
from ssl_core.train.learning_rate import learning_rate, step_decay, warmup_cosine
from ssl_core.train.optim import OptimConfig


def test_sce_learning_rate_by_hand():
    # Highest 0.06 * 512 / 256 = 0.12; 2 warm-up epochs of 3 steps; 12 steps in all.
    config = OptimConfig(lr=0.06, warmup_epochs=2)
    values = [learning_rate(config, step, 3, 12, 512) for step in range(12)]
    # Warm-up 0.12 * s / 5; then 0.06 (1 + cos(pi (s - 6) / 6)).
    assert values[:6] == pytest.approx([0.0, 0.024, 0.048, 0.072, 0.096, 0.12])
    root = math.sqrt(3) / 2
    assert values[6:] == pytest.approx([0.12, 0.06 * (1 + root), 0.09, 0.06, 0.03, 0.06 * (1 - root)])


def test_without_scaling_the_learning_rate_is_lr():
    assert learning_rate(OptimConfig(lr=0.3, scale_lr=False), 0, 3, 12, 512) == 0.3


def test_moco_cifar_learning_rate_counts_epochs_from_one_and_ends_at_zero():
    config = OptimConfig(lr=0.06, scale_lr=False, schedule="cosine_epoch")
    values = [learning_rate(config, step, 2, 8, 512) for step in range(8)]
    # 0.03 (1 + cos(pi e / 4)) for e = 1..4, the same for both steps of an epoch.
    half = math.sqrt(0.5)
    epochs = [0.03 * (1 + half), 0.03, 0.03 * (1 - half), 0.0]
    assert values == pytest.approx([value for value in epochs for _ in range(2)], rel=DOUBLE, abs=0)
    assert values[-1] == 0.0


def test_barlow_twins_cosine_ends_at_a_thousandth():
    # base q + 0.001 base (1 - q) with q = (1 + cos(pi s / 4)) / 2, s counted from the end of the warm-up.
    config = OptimConfig(lr=0.2, scale_lr=False, warmup_epochs=1, final_scale=0.001)
    values = [learning_rate(config, step, 3, 7, 256) for step in range(7)]
    half = math.sqrt(0.5)
    cosines = [(1 + cosine) / 2 for cosine in (1, half, 0, -half)]
    assert values[:3] == pytest.approx([0, 0.1, 0.2])
    assert values[3:] == pytest.approx([0.2 * q + 0.0002 * (1 - q) for q in cosines])
    assert learning_rate(config, 7, 3, 7, 256) == pytest.approx(0.0002)


def test_clsas_learning_rates_count_epochs_from_zero():
    # 0.015 (1 + cos(pi e / 3)) and 0.03 cos(pi e / 6) for e = 0..2, the same for both steps of an epoch.
    halves, quarters = [0.03, 0.0225, 0.0075], [0.03, 0.03 * math.sqrt(0.75), 0.015]
    for schedule, epochs in {"cosine_epoch_from_0": halves, "quarter_cosine_epoch": quarters}.items():
        config = OptimConfig(lr=0.03, schedule=schedule)
        values = [learning_rate(config, step, 2, 6, 256) for step in range(6)]
        assert values == pytest.approx([value for value in epochs for _ in range(2)])


def test_warm_up_over_epochs_starts_after_zero():
    # DSSL's CIFAR-10 code: np.linspace(0, lr, 10) indexed by epochs from 1, then cosine to exactly 0.
    config = OptimConfig(lr=0.9, scale_lr=False, schedule="cosine_epoch", warmup_epochs=10)
    values = [learning_rate(config, epoch, 1, 20, 512) for epoch in range(20)]
    assert values[:9] == pytest.approx([0.1 * epoch for epoch in range(1, 10)])
    assert values[9] == 0.9
    assert values[-1] == 0.0


def test_step_schedule_falls_at_its_milestones():
    config = OptimConfig(lr=30.0, scale_lr=False, schedule="step", milestones=(2, 3))
    assert [learning_rate(config, step, 2, 8, 256) for step in range(8)] == pytest.approx(
        [30, 30, 30, 30, 3, 3, 0.3, 0.3]
    )
    assert [step_decay(epoch, (60, 80)) for epoch in (0, 59, 60, 79, 80, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_step_schedule_warms_up():
    config = OptimConfig(lr=1.0, scale_lr=False, schedule="step", warmup_epochs=1)
    assert [learning_rate(config, step, 3, 9, 256) for step in range(5)] == [0.0, 0.5, 1.0, 1.0, 1.0]


def test_a_run_may_end_within_an_epoch():
    # 5 steps of 2 in an epoch; half an epoch of warm-up is a step.
    values = [
        learning_rate(OptimConfig(lr=1.0, scale_lr=False, warmup_epochs=0.5), step, 2, 5, 256) for step in range(5)
    ]
    root = math.sqrt(0.5)
    assert values == pytest.approx([0.0, 1.0, (1 + root) / 2, 0.5, (1 - root) / 2])
    # The third epoch, of which there is a half, is the last.
    config = OptimConfig(lr=1.0, scale_lr=False, schedule="cosine_epoch")
    assert [learning_rate(config, step, 2, 5, 256) for step in range(5)] == pytest.approx([0.75, 0.75, 0.25, 0.25, 0.0])


@pytest.mark.parametrize("warmup", [0, 1, 5, 9])
def test_a_warm_up_of_any_length_stays_within_bounds(warmup):
    factors = [warmup_cosine(step, warmup, 5) for step in range(6)]
    assert all(0 <= factor <= 1 for factor in factors)


def test_a_warm_up_of_the_quarter_cosine_is_refused():
    with pytest.raises(ValueError, match="quarter_cosine_epoch has no warm-up, got 2 epochs"):
        OptimConfig(schedule="quarter_cosine_epoch", warmup_epochs=2)
