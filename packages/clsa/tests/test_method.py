import itertools

import pytest
import torch
import torch.nn.functional as F

from ssl_clsa import CLSA, CLSAConfig, clsa_loss
from ssl_core.nn import EncoderConfig, MomentumConfig, QueueConfig, make_encoder, mlp_head
from ssl_core.testing import APART, check_method, random_views
from ssl_core.train import Step
from ssl_core.views import ViewConfig, make_view_specs

WEAK, STRONG = ViewConfig("moco_v2", 16), ViewConfig("clsa_strong", 12)
SINGLE = (WEAK, WEAK, STRONG)
MULTI_PAPER = (WEAK, WEAK, ViewConfig("clsa_strong", 16), STRONG)
MULTI = (WEAK, WEAK, ViewConfig("moco_v2", 12), ViewConfig("clsa_strong", 16), STRONG)
SEEDS = itertools.count()
STEP = Step(0, total=2, steps_per_epoch=1)


def make_method(*, views=SINGLE, seed=None, **settings):
    torch.manual_seed(next(SEEDS) if seed is None else seed)
    encoder = make_encoder(
        EncoderConfig("resnet18", options={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}),
        channels=3,
        image_size=16,
    )
    # Long against what the contract enqueues: were most columns an image's own keys, the moving target could raise
    # the divergence for longer than the contract's 20 steps.
    config = CLSAConfig(**{"queue": QueueConfig(256)} | settings)
    return CLSA(encoder, mlp_head(8, 16, 8, norm=False), config, views=make_view_specs(views), dim=8)


CASES = {
    "single": {},
    "multi": {"views": MULTI, "num_weak": 2},
    "multi_paper": {"views": MULTI_PAPER},
    "two temperatures": {"divergence_temperature": 0.1},
    "mean": {"views": MULTI, "num_weak": 2, "reduction": "mean", "divergence_weight": 0.5},
    "own key and queue": {"in_batch_negatives": False},
    "target with gradient": {"detach_target": False},
    "symmetric": {"symmetric": True},
    "strong views in InfoNCE": {"strong_loss": "contrastive"},
    "moco v2": {"views": (WEAK, WEAK), "strong_loss": "none", "in_batch_negatives": False},
    "strong query": {"views": (WEAK, STRONG), "num_weak": 0, "strong_loss": "contrastive"},
    "split BatchNorm": {"momentum": MomentumConfig(batch_norm_splits=4)},
    "split BatchNorm on both": {"momentum": MomentumConfig(batch_norm_splits=4, split_online=True)},
    "empty queue": {"queue": QueueConfig(256, "empty")},
    "empty queue, own key alone": {"queue": QueueConfig(256, "empty"), "in_batch_negatives": False},
    "bfloat16 queue": {"queue": QueueConfig(256, dtype="bfloat16")},
    "no shuffle": {"momentum": MomentumConfig(shuffle=False)},
}


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("single", "CLSA"),
        ("multi_paper", "CLSA"),
        ("strong views in InfoNCE", "CLSA with contrastive loss"),
        ("strong query", "MoCo v2"),
        ("moco v2", "MoCo v2"),
    ],
)
def test_the_settings_say_which_method_it_is(case, name):
    assert make_method(**CASES[case]).name == name


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_method_contract_holds(case, monkeypatch):
    monkeypatch.setitem(globals(), "SEEDS", itertools.count())  # the same, whatever ran before
    check_method(lambda: make_method(**CASES[case]))


def test_the_momentum_branch_takes_the_stated_step():
    method = make_method(momentum=MomentumConfig(0.75))
    momentum = list(method.momentum_branch.parameters())
    online = [*method.encoder.parameters(), *method.projector.parameters()]
    for parameter in online:
        parameter.data += 1
    before = [parameter.clone() for parameter in momentum]
    method.update(F.normalize(torch.randn(4, 8), dim=1), STEP)
    for old, new in zip(before, momentum, strict=True):
        torch.testing.assert_close(new, old + 0.25)


def test_the_key_view_reaches_only_the_momentum_branch_and_all_others_only_the_online_one():
    method = make_method(views=MULTI, num_weak=2)
    views = [view.requires_grad_() for view in random_views(method, 4, 3)]
    method(tuple(views), STEP).loss.backward()
    assert views[0].grad is None
    assert all(view.grad.abs().max() > 0 for view in views[1:])


@pytest.mark.parametrize(
    ("options", "weak", "strong"),
    [
        ({"views": MULTI, "num_weak": 2}, [1, 2], [3, 4]),
        ({"views": MULTI_PAPER}, [1], [2, 3]),
        ({"views": MULTI_PAPER, "strong_loss": "contrastive"}, [1, 2, 3], []),
        ({"views": MULTI_PAPER, "num_weak": 0, "strong_loss": "contrastive"}, [1, 2, 3], []),
        ({"views": SINGLE, "num_weak": 2, "strong_loss": "none"}, [1, 2], []),
    ],
    ids=["multi", "multi_paper", "contrastive", "no weak view", "none"],
)
def test_the_switches_say_which_views_have_info_nce_and_which_the_divergence(options, weak, strong, monkeypatch):
    method = make_method(**options).eval()
    views = random_views(method, 4, 3)
    seen = []

    def record(weak_queries, strong_queries, *inputs, **_):
        seen.append((weak_queries, strong_queries))
        return clsa_loss(weak_queries, strong_queries, *inputs)

    monkeypatch.setattr("ssl_clsa.method.clsa_loss", record)
    method(views, STEP)
    for queries, expected in zip(*seen, (weak, strong), strict=True):
        assert len(queries) == len(expected)
        for query, view in zip(queries, expected, strict=True):
            torch.testing.assert_close(query, method._query(views[view]))


def test_every_switch_of_the_loss_reaches_it(monkeypatch):
    switches = {
        "temperature": 0.3,
        "divergence_temperature": 0.1,
        "divergence_weight": 0.5,
        "reduction": "mean",
        "detach_target": False,
    }
    seen = {}

    def record(*inputs, **options):
        seen.update(options, columns=inputs[3])
        return clsa_loss(*inputs, **options)

    monkeypatch.setattr("ssl_clsa.method.clsa_loss", record)
    method = make_method(queue=QueueConfig(256, "empty"), in_batch_negatives=False, **switches)
    method(random_views(method, 4, 3), STEP)
    assert switches.items() <= seen.items()
    assert seen["columns"].length is method.queue.filled
    assert seen["columns"].batch_keys is None


def test_the_queue_takes_the_keys_of_the_key_view():
    method = make_method(momentum=MomentumConfig(shuffle=False)).eval()
    views = random_views(method, 4, 3)
    output = method(views, STEP)
    torch.testing.assert_close(output.keys, method.momentum_branch(views[0], STEP))
    method.update(output.keys, STEP)
    torch.testing.assert_close(method.queue.keys[:4], output.keys)


def test_the_symmetric_loss_is_the_mean_over_both_roles_of_key_and_first_weak_view():
    symmetric, plain = (
        make_method(views=MULTI, num_weak=2, symmetric=symmetric, seed=0).eval() for symmetric in (True, False)
    )
    views = random_views(plain, 4, 3)
    output = symmetric(views, STEP)
    halves = [plain(views, STEP), plain((views[1], views[0], *views[2:]), STEP)]
    torch.testing.assert_close(output.loss, (halves[0].loss + halves[1].loss) / 2)
    torch.testing.assert_close(output.keys, torch.cat([half.keys for half in halves]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"views": MULTI, "num_weak": 2, "divergence_weight": 0.5, "divergence_temperature": 0.1},
        {"views": MULTI, "num_weak": 2, "divergence_weight": 0.5, "reduction": "mean"},
        {"in_batch_negatives": False},
        {"strong_loss": "contrastive"},
        {"views": (WEAK, WEAK), "strong_loss": "none", "reduction": "mean"},
        {"symmetric": True},
    ],
    ids=["single", "multi", "mean", "own key and queue", "contrastive", "none", "symmetric"],
)
def test_queries_that_see_all_keys_alike_have_the_chance_loss(options, monkeypatch):
    method = make_method(**options)
    monkeypatch.setattr(method, "_query", lambda images: torch.zeros(len(images), 8))
    output = method(random_views(method, 4, 3), STEP)
    torch.testing.assert_close(output.metrics["chance_loss"], output.loss)


def test_shuffling_changes_only_which_images_share_statistics():
    plain, shuffled = (make_method(seed=3, momentum=MomentumConfig(shuffle=shuffle)) for shuffle in (False, True))
    views = random_views(plain, 8, 3)
    # Without groups the statistics are those of the same eight images.
    torch.testing.assert_close(plain(views, STEP).keys, shuffled(views, STEP).keys)
    plain, shuffled = (
        make_method(seed=3, momentum=MomentumConfig(shuffle=shuffle, batch_norm_splits=4)) for shuffle in (False, True)
    )
    assert not torch.allclose(plain(views, STEP).keys, shuffled(views, STEP).keys, atol=APART)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"divergence_temperature": -0.1}, "divergence_temperature must be positive, got -0.1"),
        ({"divergence_weight": -1.0}, "divergence_weight must be at least 0, got -1.0"),
        ({"num_weak": 3}, "num_weak must be from 0 to 2, the views after the key view, got 3"),
        ({"num_weak": -1}, "got -1"),
        ({"views": (WEAK, WEAK)}, "strong_loss 'ddm' needs strong views: .* 1 weak .* and 0 strong ones; add some"),
        ({"views": (WEAK, WEAK), "strong_loss": "contrastive"}, "strong_loss 'contrastive' needs strong views"),
        ({"strong_loss": "none"}, "strong_loss 'none' leaves strong views without use: .* 1 strong ones; remove"),
        ({"num_weak": 0}, "strong_loss 'ddm', symmetric False needs weak views"),
        ({"views": (WEAK,), "num_weak": 0, "strong_loss": "none"}, "needs weak views"),
        ({"num_weak": 0, "strong_loss": "contrastive", "symmetric": True}, "symmetric True needs weak views"),
        ({"strong_loss": "contrastive", "divergence_weight": 0.5}, "divergence_weight 0.5 has no effect"),
        ({"strong_loss": "contrastive", "divergence_temperature": 0.1}, "divergence_temperature 0.1 has no effect"),
        ({"strong_loss": "contrastive", "detach_target": False}, "detach_target False has no effect"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_impossible_combinations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_method(**options)
