import itertools

import pytest
import torch

from ssl_core.nn import EncoderConfig, MomentumConfig, QueueConfig, make_encoder, mlp_head
from ssl_core.testing import APART, DOUBLE, check_method, random_views
from ssl_core.train import Step
from ssl_core.views import ViewConfig, make_view_specs
from ssl_sce import SCE, SCEConfig

TWO_VIEWS = (ViewConfig("weak", 16), ViewConfig("strong", 16))
LOCAL_VIEWS = (*TWO_VIEWS, ViewConfig("strong_gamma", 8, crop_scale=(0.05, 0.2), count=2))
SEEDS = itertools.count()


def make_method(*, views=TWO_VIEWS, predictor=False, seed=None, **settings):
    torch.manual_seed(next(SEEDS) if seed is None else seed)
    encoder = make_encoder(
        EncoderConfig("resnet18", options={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}),
        channels=3,
        image_size=16,
    )
    return SCE(
        encoder,
        mlp_head(8, 16, 8),
        SCEConfig(**{"queue": QueueConfig(20)} | settings),
        predictor=mlp_head(8, 16, 8) if predictor else None,
        views=make_view_specs(views),
        dim=8,
    )


CASES = {
    "default": {},
    "moco v2": {"coefficient": 1.0},
    "ressl": {"weights": (0.0, 1.0, 0.0)},
    "zero self-similarity": {"self_similarity": "zero"},
    "symmetric": {"symmetric": True},
    "predictor": {"predictor": True, "symmetric": True},
    "multi-crop": {"symmetric": True, "views": LOCAL_VIEWS},
    "local crops, not symmetric": {"views": LOCAL_VIEWS},
    "in-batch negatives": {"in_batch_negatives": True},
    "split BatchNorm": {"momentum": MomentumConfig(batch_norm_splits=4)},
    "split BatchNorm on both": {"momentum": MomentumConfig(batch_norm_splits=4, split_online=True)},
    "empty queue": {"queue": QueueConfig(20, "empty"), "in_batch_negatives": True},
    "bfloat16 queue": {"queue": QueueConfig(20, dtype="bfloat16")},
    "constant momentum": {"momentum": MomentumConfig(0.9)},
    "no shuffle": {"momentum": MomentumConfig(shuffle=False)},
}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "SCE"),
        ({"coefficient": 1.0}, "MoCo v2"),
        ({"coefficient": 1.0, "coefficient_final": 0.0}, "SCE"),
        ({"coefficient": 1.0, "coefficient_start": 0.5}, "MoCo v2"),  # without a warm-up nothing starts
        ({"coefficient": 1.0, "coefficient_start": 0.5, "coefficient_warmup_epochs": 1.0}, "SCE"),
        ({"weights": (2.0, 0.0, 0.0)}, "MoCo v2"),
        ({"weights": (0.0, 0.5, 0.0)}, "ReSSL"),
        ({"weights": (0.5, 0.5, 0.0)}, "SCE"),
        ({"weights": (0.0, 1.0, 1.0)}, "SCE"),
    ],
)
def test_the_settings_say_which_method_it_is(settings, name):
    assert make_method(**settings).name == name


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_method_contract_holds(case, monkeypatch):
    monkeypatch.setitem(globals(), "SEEDS", itertools.count())  # the same, whatever ran before
    check_method(lambda: make_method(**CASES[case]))


def test_the_momentum_branch_starts_as_a_copy():
    method = make_method()
    for online, momentum in (
        (method.encoder, method.momentum_branch.encoder),
        (method.projector, method.momentum_branch.projector),
    ):
        for left, right in zip(online.parameters(), momentum.parameters(), strict=True):
            assert torch.equal(left, right)


def test_cosine_momentum_ends_at_one_so_that_the_last_update_moves_nothing():
    method = make_method(momentum=MomentumConfig(0.5, "cosine"))
    for parameter in method.encoder.parameters():
        parameter.data += 1
    before = [parameter.clone() for parameter in method.momentum_branch.encoder.parameters()]
    keys = torch.nn.functional.normalize(torch.randn(4, 8), dim=1)
    method.update(keys, Step(9, total=10, steps_per_epoch=5))
    for old, new in zip(before, method.momentum_branch.encoder.parameters(), strict=True):
        assert torch.equal(old, new)
    method.update(keys, Step(0, total=10, steps_per_epoch=5))
    for old, new in zip(before, method.momentum_branch.encoder.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.5)


def test_symmetric_enqueues_the_keys_of_view_0_and_then_of_view_1():
    method = make_method(symmetric=True, momentum=MomentumConfig(shuffle=False)).eval()
    views = random_views(method, 4, 3)
    step = Step(0, total=2, steps_per_epoch=1)
    output = method(views, step)
    with torch.no_grad():
        expected = [
            torch.nn.functional.normalize(method.momentum_branch.projector(method.momentum_branch.encoder(view)), dim=1)
            for view in views
        ]
    torch.testing.assert_close(output.keys, torch.cat(expected))
    method.update(output.keys, step)
    torch.testing.assert_close(method.queue.keys[:8], torch.cat(expected))


def test_shuffling_changes_only_which_images_share_statistics():
    plain, shuffled = (make_method(seed=3, momentum=MomentumConfig(shuffle=shuffle)) for shuffle in (False, True))
    views = random_views(plain, 8, 3)
    step = Step(0, total=2, steps_per_epoch=1)
    # Without groups the statistics are those of the same eight images.
    torch.testing.assert_close(plain(views, step).keys, shuffled(views, step).keys)
    plain, shuffled = (
        make_method(seed=3, momentum=MomentumConfig(shuffle=shuffle, batch_norm_splits=4)) for shuffle in (False, True)
    )
    assert not torch.allclose(plain(views, step).keys, shuffled(views, step).keys, atol=APART)


def test_without_symmetry_view_0_reaches_only_the_momentum_branch():
    method = make_method(momentum=MomentumConfig(shuffle=False))
    views = [view.requires_grad_() for view in random_views(method, 4, 3)]
    method(tuple(views), Step(0, total=2, steps_per_epoch=1)).loss.backward()
    assert views[0].grad is None
    assert views[1].grad.abs().max() > 0


def test_the_multi_crop_loss_is_the_mean_over_pairs_of_target_and_other_online_views():
    method = make_method(symmetric=True, views=LOCAL_VIEWS, momentum=MomentumConfig(shuffle=False)).eval()
    views = random_views(method, 4, 3)
    step = Step(0, total=2, steps_per_epoch=1)
    pairs = []
    for target, online in [(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]:
        single = make_method(momentum=MomentumConfig(shuffle=False), seed=0).eval()
        single.load_state_dict(method.state_dict())
        pairs.append(single((views[target], views[online]), step).loss)
    torch.testing.assert_close(method(views, step).loss, torch.stack(pairs).mean())


@pytest.mark.parametrize(
    ("epoch", "temperature", "coefficient"),
    [(0, 0.02, 1.0), (1, None, None), (2, 0.05, 0.5), (9.9, 0.05, 0.0)],
)
def test_schedules_warm_up_and_decay(epoch, temperature, coefficient):
    method = make_method(
        target_temperature=0.05,
        target_temperature_start=0.02,
        target_temperature_warmup_epochs=2.0,
        coefficient=0.5,
        coefficient_start=1.0,
        coefficient_warmup_epochs=2.0,
        coefficient_final=0.0,
    )
    step = Step(round(epoch * 10), total=100, steps_per_epoch=10)
    now = method.config.target_temperature_at(step), method.config.coefficient_at(step)
    if temperature is None:
        assert 0.02 < now[0] < 0.05
        assert 0.5 < now[1] < 1.0
    else:
        assert now == pytest.approx((temperature, coefficient), abs=DOUBLE)


RESSL = (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"target_temperature": -0.1}, "target_temperature must be positive, got -0.1"),
        ({"coefficient": 1.5}, "coefficient must be between 0 and 1, got 1.5"),
        ({"views": TWO_VIEWS[:1]}, "at least two views"),
        (
            {"weights": RESSL, "coefficient": 0.9},
            r"coefficient 0.9 has no effect with weights \[0.0, 1.0, 0.0\]; leave it at 0.5",
        ),
        (
            {"weights": RESSL, "coefficient_warmup_epochs": 3.0},
            "coefficient_warmup_epochs 3.0 has no effect with weights",
        ),
        (
            {"weights": RESSL, "coefficient_final": 0.1},
            "coefficient_final 0.1 has no effect with weights .* leave it at null",
        ),
    ],
    ids=[
        "temperature",
        "target temperature",
        "coefficient",
        "one view",
        "weights and coefficient",
        "weights and warm-up",
        "weights and decay",
    ],
)
def test_impossible_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_method(**options)
