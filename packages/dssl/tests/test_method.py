import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_core.evaluate import collapse, health
from ssl_core.nn import EncoderConfig, SplitBatchNorm, make_encoder, mlp_head
from ssl_core.testing import APART, check_method, random_views
from ssl_core.train import Step
from ssl_core.views import ViewConfig, make_ops, make_view_specs
from ssl_dssl import DSSL, DSSLConfig, Embedded, directional_loss, make_base
from ssl_dssl.views import partially_ordered_views

STANDARD = make_view_specs([ViewConfig("dssl_cifar", 16, count=2)])
ALL = partially_ordered_views(STANDARD, make_ops(["ra_2_5", "jigsaw_2"]))
SEEDS = itertools.count()
STEP = Step(0, total=2, steps_per_epoch=1)

ONE_HEAVY = {"views": ALL[:2] + ALL[3:], "heavy_per_image": 1}
ALONE = {"views": STANDARD, "heavy": "none"}


def moco(initial="random", **momentum):
    return {"mocov2": {"queue": {"length": 20, "initial": initial}, "momentum": momentum}}


BASES = {name: name for name in ("simclr", "simsiam", "byol", "barlow")} | {"mocov2": moco()}
WITH_PREDICTOR = ("simsiam", "byol")
WITHOUT_GRADIENT = ("simsiam", "byol", "mocov2")  # to the other view, in the base's own loss
WEIGHTS = ("alpha", "beta", "gamma", "delta")


def make_method(base="simsiam", *, views=ALL, heavy="jigsaw_2", seed=0, **settings):
    torch.manual_seed(next(SEEDS))
    encoder = make_encoder(
        EncoderConfig("resnet18", options={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}),
        channels=3,
        image_size=16,
    )
    config = DSSLConfig(BASES[base] if isinstance(base, str) else base, heavy, **settings)
    predictor = mlp_head(8, 4, 8) if make_base(config.base).has_predictor else None
    return DSSL(encoder, mlp_head(8, 16, 8), config, predictor=predictor, views=views, dim=8, seed=seed)


def alone(base, views=STANDARD):
    return make_method(base, views=views, heavy="none")


CONTRACTS = {name: {"base": name} for name in BASES} | {
    "simsiam, all terms": {"beta": 1.0, "delta": 1.0},
    "mocov2, all terms": {"base": "mocov2", "beta": 1.0, "delta": 1.0},
    "byol, delta": {"base": "byol", "gamma": 0.9, "delta": 0.1},
    "simclr, one heavy view": {"base": "simclr"} | ONE_HEAVY,
    "mocov2, split BatchNorm": {"base": moco(batch_norm_splits=4, split_online=True)},
    "mocov2, empty queue": {"base": moco("empty")},
    "simsiam, directional terms alone": {"alpha": 0.0},
    "mocov2, one directional term alone": {"base": "mocov2", "alpha": 0.0} | ONE_HEAVY,
}
CONTRACTS |= {f"{name} alone": {"base": name} | ALONE for name in BASES}
CONTRACTS |= {f"two pairs of {name}": {"base": name, "views": STANDARD * 2, "heavy": "none"} for name in WITH_PREDICTOR}


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("simclr", "SimCLR"),
        ("simsiam", "SimSiam"),
        ("byol", "BYOL"),
        ("mocov2", "MoCo v2"),
        ("barlow", "Barlow Twins"),
    ],
)
def test_the_settings_say_which_method_it_is(base, name):
    assert make_method(base).name == f"DSSL over {name}"
    assert alone(base).name == name
    assert make_method(base, views=STANDARD, naive="views").name == f"naive DSSL over {name}"
    assert make_method(base, naive="all_pairs").name == f"DSSL with all pairs over {name}"


@pytest.mark.slow
@pytest.mark.parametrize("case", CONTRACTS)
def test_the_method_contract_holds(case, monkeypatch):
    monkeypatch.setitem(globals(), "SEEDS", itertools.count())  # the same, whatever ran before
    check_method(lambda: make_method(**CONTRACTS[case]))


def embedded(method, images):
    """Every view's prediction and target, made here with the method's networks."""
    views = []
    for view in images:
        projection = method.projector(method.encoder(view))
        target = projection.detach()
        if hasattr(method, "momentum_branch"):
            branch = method.momentum_branch
            with torch.no_grad():
                target = F.normalize(branch.projector(branch.encoder(view)), dim=1)
        views.append(Embedded(method.predictor(projection), target))
    return views


def apart(method):
    """In eval mode, the momentum branch not a copy of the online one any more, and no order that matters."""
    if hasattr(method, "momentum_branch"):
        method.momentum_branch.config = replace(method.momentum_branch.config, shuffle=False)
        for parameter in method.momentum_branch.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return method.eval()


def pair_loss(method):
    return lambda *pair: method.base.loss(*pair, *([method.queue] if hasattr(method, "queue") else []))


@pytest.mark.parametrize("base", BASES)
def test_the_loss_is_the_directional_loss_of_the_bases_predictions_and_targets(base):
    weights = dict(zip(WEIGHTS, (0.7, 0.3, 0.9, 0.1), strict=True))
    method = apart(make_method(base, **weights))
    images = random_views(method, 4, 3)
    views = embedded(method, images)
    expected = directional_loss(views[:2], views[2:], pair_loss(method), **weights)
    torch.testing.assert_close(method(images, STEP).loss, expected)


@pytest.mark.parametrize("base", BASES)
def test_without_directional_weights_it_is_the_base_in_loss_and_gradient(base):
    method = apart(make_method(base, gamma=0.0))
    plain = apart(alone(base))
    plain.load_state_dict(method.state_dict())
    images = random_views(method, 4, 3)
    losses = [method(images, STEP).loss, plain(images[:2], STEP).loss]
    assert torch.equal(*losses)
    gradients = [
        torch.autograd.grad(loss, model.encoder.parameters())
        for loss, model in zip(losses, (method, plain), strict=True)
    ]
    for ours, of_base in zip(*gradients, strict=True):
        assert torch.equal(ours, of_base)


@pytest.mark.parametrize("base", BASES)
def test_the_asymmetric_term_gives_standard_views_a_gradient_of_exactly_zero(base):
    method = make_method(base, alpha=0.0)
    images = [view.requires_grad_() for view in random_views(method, 4, 3)]
    method(tuple(images), STEP).loss.backward()
    assert [view.grad for view in images[:2]] == [None, None]
    assert all(view.grad.abs().max() > 0 for view in images[2:])


@pytest.mark.parametrize("base", WITHOUT_GRADIENT)
def test_the_bases_own_targets_give_no_gradient(base):
    # The second view is a target in the first term of the loss, and, but for MoCo v2, predicts in the second term. A
    # predictor that is cut off there leaves the target alone to carry a gradient.
    method = alone(base)
    images = [view.requires_grad_() for view in random_views(method, 4, 3)]
    embedded_by_method = method._embedded
    method._embedded = lambda index, *rest: (
        view._replace(prediction=view.prediction.detach())
        if (view := embedded_by_method(index, *rest)).prediction is not None and index == 1
        else view
    )
    method(tuple(images), STEP).loss.backward()
    assert images[0].grad.abs().max() > 0
    assert images[1].grad is None


@pytest.mark.parametrize("base", BASES)
def test_no_target_carries_a_gradient(base):
    method = make_method(base)
    for index, images in enumerate(random_views(method, 4, 3)):
        target = method._embedded(index, images, STEP).target
        assert target is None or not target.requires_grad


def test_each_standard_view_is_shuffled_in_its_own_order():
    method = make_method(moco(batch_norm_splits=4))
    view = random_views(method, 8, 3)[0]
    first, second = (method._embedded(index, view, STEP).target for index in (0, 1))
    # One order for both would put the same images into the same groups.
    assert not torch.allclose(first, second, atol=APART)


def test_every_view_is_forwarded_by_itself():
    method = make_method("simsiam")
    seen = []
    method.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    images = random_views(method, 4, 3)
    method(images, STEP)
    assert len(seen) == 4
    assert all(view is image for view, image in zip(seen, images, strict=True))


def forwards(method):
    """Which views the online encoder sees, and which the momentum encoder."""
    images = random_views(method, 4, 3)
    seen = {"online": [], "momentum": []}

    def note(where):
        return lambda _, arguments: seen[where].extend(
            [index for index, image in enumerate(images) if torch.equal(image, arguments[0])]
        )

    method.encoder.register_forward_pre_hook(note("online"))
    if hasattr(method, "momentum_branch"):
        method.momentum_branch.config = replace(method.momentum_branch.config, shuffle=False)
        method.momentum_branch.encoder.register_forward_pre_hook(note("momentum"))
    method(images, STEP)
    return seen["online"], seen["momentum"]


@pytest.mark.parametrize(
    ("options", "online", "momentum"),
    [
        ({"base": "byol"}, [0, 1, 2, 3], [0, 1]),
        ({"base": "byol", "delta": 1.0}, [0, 1, 2, 3], [0, 1, 2, 3]),
        ({"base": "mocov2"}, [0, 2, 3], [0, 1]),
        ({"base": "mocov2"} | ONE_HEAVY, [0, 2], [1]),
        ({"base": "mocov2"} | ALONE, [0], [1]),
        ({"base": "mocov2", "beta": 1.0, "delta": 1.0}, [0, 1, 2, 3], [0, 1, 2, 3]),
        ({"base": "simclr", "gamma": 0.0}, [0, 1], []),
    ],
    ids=["byol", "byol, delta", "mocov2", "mocov2, one heavy", "mocov2 alone", "mocov2, all", "simclr, gamma 0"],
)
def test_no_view_is_forwarded_without_need(options, online, momentum):
    assert forwards(make_method(**options)) == (online, momentum)


def test_two_pairs_are_the_mean_of_both():
    method = apart(alone("simsiam", STANDARD * 2))
    images = random_views(method, 4, 3)
    views = embedded(method, images)
    expected = (method.base.loss(*views[:2]) + method.base.loss(*views[2:])) / 2
    torch.testing.assert_close(method(images, STEP).loss, expected)


@pytest.mark.parametrize("base", ["byol", "mocov2"])
def test_the_momentum_branch_follows_by_one_minus_m(base):
    method = make_method({"byol": {"momentum": {"value": 0.9}}} if base == "byol" else moco(value=0.9))
    before = [parameter.clone() for parameter in method.momentum_branch.parameters()]
    for parameter in (*method.encoder.parameters(), *method.projector.parameters()):
        parameter.data += 1
    method.update(method(random_views(method, 4, 3), STEP).keys, STEP)
    for old, new in zip(before, method.momentum_branch.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)


@pytest.mark.parametrize(("split_online", "expected"), [(False, (0, 4)), (True, (4, 4))], ids=["momentum", "both"])
def test_moco_splits_the_batch_norm_of_the_branches_it_is_told_to(split_online, expected):
    method = make_method(moco(batch_norm_splits=4, split_online=split_online))
    splits = [
        max((layer.num_splits for layer in branch.modules() if isinstance(layer, SplitBatchNorm)), default=0)
        for branch in (method.encoder, method.momentum_branch.encoder)
    ]
    assert tuple(splits) == expected


def test_moco_passes_on_how_its_queue_begins():
    random, again, empty = (
        make_method(moco(initial), seed=seed).queue for initial, seed in (("random", 0), ("random", 1), ("empty", 0))
    )
    assert not torch.equal(random.keys, again.keys)
    assert random.valid_length is None
    assert empty.valid_length is not None


def test_the_queue_takes_the_second_standard_views_key_and_no_heavy_one():
    method = apart(make_method("mocov2", delta=1.0, beta=1.0))
    images = random_views(method, 4, 3)
    output = method(images, STEP)
    torch.testing.assert_close(output.keys, embedded(method, images)[1].target)
    method.update(output.keys, STEP)
    torch.testing.assert_close(method.queue.keys[:4], output.keys)
    assert method.queue.cursor == 4


@pytest.mark.parametrize("base", BASES)
def test_collapse_is_judged_by_what_the_networks_predict_of_a_standard_view(base):
    method = apart(make_method(base))
    images = random_views(method, 4, 3)
    expected = F.normalize(embedded(method, images)[0].prediction, dim=1)
    torch.testing.assert_close(method(images, STEP).embeddings, expected.detach())


def test_a_projectors_batch_norm_does_not_hide_that_predictions_are_all_the_same():
    method = make_method("simsiam")
    method.projector = mlp_head(8, 16, 8, last_norm="plain")
    method.projector[3].weight.data *= 1e-2
    method.predictor[-1].weight.data.zero_()
    embeddings = method(random_views(method, 32, 3), STEP).embeddings
    assert collapse(health(embeddings)) is not None


def test_the_log_has_both_similarities():
    method = apart(make_method("simsiam"))
    images = random_views(method, 4, 3)
    standard, other, heavy, _ = embedded(method, images)
    metrics = method(images, STEP).metrics
    torch.testing.assert_close(
        metrics["positive_similarity"], F.cosine_similarity(standard.prediction, other.target).mean().detach()
    )
    torch.testing.assert_close(
        metrics["heavy_similarity"], F.cosine_similarity(heavy.prediction, standard.target).mean().detach()
    )


@pytest.mark.parametrize(
    ("options", "chances"),
    [({"base": "simclr"}, 7), ({"base": "mocov2"}, 21), ({"base": "mocov2", "beta": 1.0}, 21**2)],
    ids=["simclr", "mocov2", "mocov2, beta"],
)
def test_the_chance_loss_counts_what_a_row_is_told_from(options, chances):
    # 4 images in two views, without the own row; or a queue of 20 and the positive.
    method = make_method(**options)
    chance = method(random_views(method, 4, 3), STEP).metrics["chance_loss"]
    assert chance.item() == pytest.approx(math.log(chances))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": ALL[:3]}, "leaves 1 standard ones"),
        ({"views": STANDARD}, "leaves 0 standard ones"),
        ({"views": ALL[:3], "heavy": "none"}, "leaves 3 standard ones"),
        ({"views": (*STANDARD, ALL[3], ALL[2])}, "is attracted to view 0, but it is derived from view 1"),
        ({"gamma": -1.0}, "gamma must be at least 0, got -1.0"),
        ({"alpha": 0.0, "gamma": 0.0}, "there is no loss"),
        (ALONE | {"alpha": 0.0}, "alpha 0.0 has no effect with heavy none; leave it at 1.0"),
        (ALONE | {"delta": 1.0}, "delta 1.0 has no effect with heavy none; leave it at 0.0"),
        ({"base": "simclr", "beta": 1.0} | ONE_HEAVY, "beta 1 is about two heavy views"),
    ],
    ids=["three views", "two heavy", "odd", "parent", "negative", "no weight", "no loss", "delta", "beta"],
)
def test_impossible_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_method(**options)


@pytest.mark.parametrize(("base", "message"), [("simsiam", "SimSiam needs a predictor"), ("simclr", "SimCLR has no")])
def test_a_predictor_where_none_belongs_and_none_where_one_does_are_refused(base, message):
    predictor = nn.Identity() if base == "simclr" else None
    with pytest.raises(ValueError, match=message):
        DSSL(nn.Flatten(), nn.Linear(768, 8), DSSLConfig(base), views=STANDARD, dim=8, predictor=predictor)
