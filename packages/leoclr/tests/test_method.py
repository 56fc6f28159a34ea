import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ssl_core.losses import nt_xent
from ssl_core.nn import EncoderConfig, MomentumConfig, QueueConfig, make_encoder, mlp_head
from ssl_core.testing import APART, check_method, random_views
from ssl_core.train import Step
from ssl_core.views import ViewConfig, make_view_specs
from ssl_leoclr import LeOCLR, LeOCLRConfig, leoclr_loss

CROP = ViewConfig("moco_v2", 16)
ANCHOR_AND_CROPS = (ViewConfig("moco_v2_uncropped", 16), CROP, CROP)
SEEDS = itertools.count()
STEP = Step(0, total=2, steps_per_epoch=1)


def make_method(*, views=ANCHOR_AND_CROPS, seed=None, **settings):
    torch.manual_seed(next(SEEDS) if seed is None else seed)
    encoder = make_encoder(
        EncoderConfig("resnet18", options={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}),
        channels=3,
        image_size=16,
    )
    queue = {} if settings.get("framework") == "simclr" else {"queue": QueueConfig(20)}
    config = LeOCLRConfig(**queue | settings)
    return LeOCLR(encoder, mlp_head(8, 16, 8), config, views=make_view_specs(views), dim=8)


BASELINE = {"views": (CROP, CROP), "anchor": "random_crop"}
CASES = {
    "default": {},
    "random crop as anchor": {"views": (CROP, CROP, CROP), "anchor": "random_crop"},
    "attract all": {"attract": "all"},
    "enqueue both": {"enqueue": "both"},
    "moco v2": BASELINE,
    "split BatchNorm": {"momentum": MomentumConfig(batch_norm_splits=4)},
    "split BatchNorm on both": {"momentum": MomentumConfig(batch_norm_splits=4, split_online=True)},
    "empty queue": {"queue": QueueConfig(20, "empty")},
    "bfloat16 queue": {"queue": QueueConfig(20, dtype="bfloat16")},
    "no shuffle": {"momentum": MomentumConfig(shuffle=False)},
    "simclr framework": {"framework": "simclr"},
    "simclr framework, attract all": {"framework": "simclr", "attract": "all"},
    "simclr": BASELINE | {"framework": "simclr"},
}


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("default", "LeOCLR over MoCo v2"),
        ("random crop as anchor", "LeOCLR over MoCo v2"),
        ("moco v2", "MoCo v2"),
        ("simclr framework", "LeOCLR over SimCLR"),
        ("simclr", "SimCLR"),
    ],
)
def test_the_settings_say_which_method_it_is(case, name):
    assert make_method(**CASES[case]).name == name


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_method_contract_holds(case, monkeypatch):
    monkeypatch.setitem(globals(), "SEEDS", itertools.count())  # the same, whatever ran before
    check_method(lambda: make_method(**CASES[case]))


def branches(method, views):
    """Queries of all views, and keys of the crops."""
    queries = [F.normalize(method.projector(method.encoder(view)), dim=1) for view in views]
    branch = method.momentum_branch
    with torch.no_grad():
        keys = [F.normalize(branch.projector(branch.encoder(view)), dim=1) for view in views[1:]]
    return queries, torch.stack(keys)


@pytest.fixture
def method():
    """In eval mode, and its momentum branch not the online one's copy any more."""
    method = make_method(momentum=MomentumConfig(shuffle=False), temperature=0.3).eval()
    for parameter in method.momentum_branch.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return method


def test_the_anchor_is_encoded_by_the_online_branch_and_the_crops_by_the_momentum_branch(method):
    views = random_views(method, 4, 3)
    (query, *_), keys = branches(method, views)
    output = method(views, STEP)
    torch.testing.assert_close(output.loss, leoclr_loss(query, keys, method.queue.keys, temperature=0.3))
    torch.testing.assert_close(output.keys, keys[0])


def test_attract_all_adds_each_crops_query_against_the_other_crops_key(method):
    method.config = replace(method.config, attract="all")
    views = random_views(method, 4, 3)
    (query, first, second), keys = branches(method, views)
    pairs = [(query, keys), (first, keys[1:]), (second, keys[:1])]
    expected = [leoclr_loss(*pair, method.queue.keys, temperature=0.3) for pair in pairs]
    torch.testing.assert_close(method(views, STEP).loss, torch.stack(expected).sum())


def test_only_the_anchor_receives_a_gradient(method):
    views = [view.requires_grad_() for view in random_views(method, 4, 3)]
    method(tuple(views), STEP).loss.backward()
    assert views[0].grad.abs().max() > 0
    assert [view.grad for view in views[1:]] == [None, None]


def test_enqueue_both_writes_the_keys_of_the_first_crop_and_then_of_the_second(method):
    method.config = replace(method.config, enqueue="both")
    views = random_views(method, 4, 3)
    _, keys = branches(method, views)
    output = method(views, STEP)
    method.update(output.keys, STEP)
    torch.testing.assert_close(method.queue.keys[:8], keys.flatten(0, 1))
    assert method.queue.cursor == 8


def test_an_empty_queue_counts_the_keys_that_it_has():
    method = make_method(queue=QueueConfig(20, "empty"), momentum=MomentumConfig(shuffle=False)).eval()
    views = random_views(method, 4, 3)
    output = method(views, STEP)
    assert output.loss == 0
    method.update(output.keys, STEP)
    (query, *_), keys = branches(method, views)
    torch.testing.assert_close(method(views, STEP).loss, leoclr_loss(query, keys, method.queue.keys[:4]))


def test_the_momentum_branch_follows_by_one_minus_m():
    method = make_method(momentum=MomentumConfig(0.9))
    before = [parameter.clone() for parameter in method.momentum_branch.parameters()]
    for parameter in (*method.encoder.parameters(), *method.projector.parameters()):
        parameter.data += 1
    method.update(F.normalize(torch.randn(4, 8), dim=1), STEP)
    for old, new in zip(before, method.momentum_branch.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)


def test_each_crop_is_shuffled_in_its_own_order():
    method = make_method(momentum=MomentumConfig(batch_norm_splits=4))
    view = random_views(method, 8, 3)[0]
    method.config = replace(method.config, enqueue="both")
    first, second = method((view, view, view), STEP).keys.split(8)
    # One order for both would put the same images into the same groups.
    assert not torch.allclose(first, second, atol=APART)


def test_the_simclr_framework_is_the_sum_of_the_pairs_with_the_anchor():
    method = make_method(framework="simclr", temperature=0.3).eval()
    views = random_views(method, 4, 3)
    anchor, first, second = (F.normalize(method.projector(method.encoder(view)), dim=1) for view in views)
    parameters = list(method.parameters())
    of_anchor = nt_xent(anchor, first, 0.3) + nt_xent(anchor, second, 0.3)
    for attract, expected in (("anchor", of_anchor), ("all", of_anchor + nt_xent(first, second, 0.3))):
        method.config = replace(method.config, attract=attract)
        loss = method(views, STEP).loss
        torch.testing.assert_close(loss, expected)
        # As rows and as each other's columns.
        gradients = [torch.autograd.grad(value, parameters, retain_graph=True) for value in (loss, expected)]
        torch.testing.assert_close(*gradients)


def test_the_simclr_framework_trains_through_every_view_and_keeps_nothing_else():
    method = make_method(framework="simclr")
    views = [view.requires_grad_() for view in random_views(method, 4, 3)]
    output = method(tuple(views), STEP)
    output.loss.backward()
    assert all(view.grad.abs().max() > 0 for view in views)
    assert output.keys is None
    assert {name.partition(".")[0] for name in method.state_dict()} == {"encoder", "projector"}


def chance_loss(**options):
    method = make_method(**options)
    return method(random_views(method, 4, 3), STEP).metrics["chance_loss"].item()


@pytest.mark.parametrize(
    ("options", "chances"),
    [
        ({}, 21**2),
        ({"attract": "all"}, 21**4),
        (BASELINE, 21),
        ({"framework": "simclr"}, 7**2),
        ({"framework": "simclr", "attract": "all"}, 7**3),
    ],
    ids=["leoclr", "all", "moco v2", "simclr framework", "simclr framework, all"],
)
def test_the_chance_loss_counts_every_term(options, chances):
    # A queue of 20 and the positive; or 4 images in two views, without the own row.
    assert chance_loss(**options) == pytest.approx(math.log(chances))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"views": (CROP,)}, "`views` has 1$"),
        ({"views": (*ANCHOR_AND_CROPS, CROP)}, "`views` has 4$"),
        ({"anchor": "random_crop"}, "'random_crop', but the first of `views`, 'moco_v2_uncropped', is the whole image"),
        ({"views": (CROP, CROP, CROP)}, "'full', but the first of `views`, 'moco_v2', is cut at random"),
        (BASELINE | {"attract": "all"}, "attract 'all' is about two crops, but `views` has one"),
        (BASELINE | {"enqueue": "both"}, "enqueue 'both' is about two crops, but `views` has one"),
    ],
    ids=["temperature", "one view", "four views", "whole", "cut", "attract", "enqueue"],
)
def test_impossible_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_method(**options)
