import itertools

import pytest
import torch
import torch.nn.functional as F

from ssl_clim import CLIM, CLIMConfig, clim_loss
from ssl_clim.mixing import cutmix, draw_mixtures, mixup
from ssl_core.losses import info_nce
from ssl_core.nn import EncoderConfig, MomentumConfig, QueueConfig, make_encoder, mlp_head
from ssl_core.testing import check_method, random_views
from ssl_core.train import Step
from ssl_core.views import ViewConfig, make_view_specs

SEEDS = itertools.count()
STEP = Step(0, total=2, steps_per_epoch=1)


def own(size=16):
    return ViewConfig("moco_v2", size)


def partner(size=16):
    return ViewConfig("moco_v2", size, partner=True)


PAIR = (own(), partner(), own(), partner())
RESOLUTIONS = (own([16, 12]), partner([16, 12]), own([16, 12]), partner([16, 12]))
MULTI_CROP = (own(), own(8), own(8), own(), partner(), partner(8), partner(8), partner())
UNMIXED = (own(), own(), partner())


def make_method(*, views=PAIR, seed=None, **settings):
    torch.manual_seed(next(SEEDS) if seed is None else seed)
    encoder = make_encoder(
        EncoderConfig("resnet18", options={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}),
        channels=3,
        image_size=16,
    )
    config = CLIMConfig(**{"queue": QueueConfig(20)} | settings)
    return CLIM(encoder, mlp_head(8, 16, 8), config, views=make_view_specs(views), dim=8)


CASES = {
    "default": {},
    "ratio as drawn": {"ratio": "beta"},
    "one box for the batch": {"per_batch": True},
    "mixup": {"mixing": "mixup", "alpha": 0.2},
    "no mixing": {"views": UNMIXED, "mixing": "none"},
    "partner only": {"views": UNMIXED, "mixing": "none", "partner_only": True},
    "multi-resolution": {"views": RESOLUTIONS},
    "multi-resolution, mean": {"views": RESOLUTIONS, "reduction": "mean"},
    "multi-resolution, no mixing": {"views": (own([16, 12]), own([16, 12]), partner([16, 12])), "mixing": "none"},
    "multi-crop": {"views": MULTI_CROP},
    "moco v2": {"views": (own(), own())},
    "split BatchNorm": {"momentum": MomentumConfig(batch_norm_splits=4)},
    "split BatchNorm on both": {"momentum": MomentumConfig(batch_norm_splits=4, split_online=True)},
    "empty queue": {"queue": QueueConfig(20, "empty")},
    "bfloat16 queue": {"queue": QueueConfig(20, dtype="bfloat16")},
    "no shuffle": {"momentum": MomentumConfig(shuffle=False)},
}


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("default", "CLIM"),
        ("no mixing", "CLIM"),
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


def ready(**options):
    """In eval mode, and its momentum branch not the online one's copy any more."""
    method = make_method(momentum=MomentumConfig(shuffle=False), temperature=0.3, **options).eval()
    for parameter in method.momentum_branch.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return method


def query_of(method, images):
    return F.normalize(method.projector(method.encoder(images)), dim=1)


@torch.no_grad()
def key_of(method, images):
    branch = method.momentum_branch
    return F.normalize(branch.projector(branch.encoder(images)), dim=1)


def boxes(method, place=0, step=STEP, number=4):
    return draw_mixtures(method.seed, step.index, torch.arange(number), alpha=method.config.alpha, stream=place)


def test_queries_are_mixed_and_meet_the_keys_of_image_and_partner():
    method = ready()
    query, query_partner, key, key_partner = random_views(method, 4, 3)
    mixed, kept = cutmix(query, query_partner, boxes(method))
    keys = key_of(method, key), key_of(method, key_partner)
    expected = clim_loss(query_of(method, mixed), *keys, kept, method.queue.keys, temperature=0.3)
    output = method((query, query_partner, key, key_partner), STEP)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.keys, keys[0])


def test_the_order_in_which_partners_are_listed_does_not_matter():
    views = dict(zip(("query", "query partner", "key", "key partner"), random_views(ready(), 4, 3), strict=True))
    other = (own(), own(), partner(), partner())
    losses = [
        ready(views=specs, seed=5)(tuple(views[name] for name in names), STEP).loss
        for specs, names in ((PAIR, views), (other, ("query", "key", "query partner", "key partner")))
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_without_partners_it_is_moco_v2():
    method = ready()
    query, _, key, _ = random_views(method, 4, 3)
    expected = info_nce(query_of(method, query), key_of(method, key), method.queue.keys, 0.3).mean()
    output = method((query, key), STEP)
    torch.testing.assert_close(output.loss, expected)
    assert "partner_similarity" not in output.metrics


@pytest.mark.parametrize(("partner_only", "weights"), [(False, (0.5, 0.5)), (True, (0.0, 1.0))])
def test_without_mixing_the_query_is_the_images_own(partner_only, weights):
    method = ready(views=UNMIXED, mixing="none", partner_only=partner_only)
    query, key, key_partner = random_views(method, 4, 3)
    keys = torch.stack([key_of(method, key), key_of(method, key_partner)])
    losses = info_nce(query_of(method, query), keys, method.queue.keys, 0.3).mean(dim=1)
    torch.testing.assert_close(method((query, key, key_partner), STEP).loss, losses @ torch.tensor(weights))


def test_mixup_mixes_pixels():
    method = ready(mixing="mixup", alpha=0.2)
    query, query_partner, key, key_partner = random_views(method, 4, 3)
    mixed, ratio = mixup(query, query_partner, boxes(method))
    keys = key_of(method, key), key_of(method, key_partner)
    expected = clim_loss(query_of(method, mixed), *keys, ratio, method.queue.keys, temperature=0.3)
    torch.testing.assert_close(method((query, query_partner, key, key_partner), STEP).loss, expected)


def test_ratio_beta_weighs_by_the_draw_and_not_by_the_area():
    method = ready(ratio="beta")
    query, query_partner, key, key_partner = random_views(method, 4, 3)
    mixtures = boxes(method)
    mixed, kept = cutmix(query, query_partner, mixtures)
    assert not torch.allclose(kept, mixtures.ratio.float())
    keys = key_of(method, key), key_of(method, key_partner)
    ratio = mixtures.ratio.float()
    expected = clim_loss(query_of(method, mixed), *keys, ratio, method.queue.keys, temperature=0.3)
    torch.testing.assert_close(method((query, query_partner, key, key_partner), STEP).loss, expected)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_every_resolution_of_the_query_shows_one_box_and_meets_every_resolution_of_the_keys(reduction):
    method = ready(views=RESOLUTIONS, reduction=reduction)
    views = random_views(method, 4, 3)
    query, query_partner, key, key_partner = (views[index : index + 2] for index in range(0, 8, 2))
    losses = []
    for images, others in zip(query, query_partner, strict=True):
        mixed, kept = cutmix(images, others, boxes(method))
        for keys in zip(key, key_partner, strict=True):
            of_keys = [key_of(method, images) for images in keys]
            losses.append(clim_loss(query_of(method, mixed), *of_keys, kept, method.queue.keys, temperature=0.3))
    expected = torch.stack(losses).sum() if reduction == "sum" else torch.stack(losses).mean()
    torch.testing.assert_close(method(views, STEP).loss, expected)


@pytest.mark.parametrize("sizes", [[16, 12], [12, 16]])
def test_the_keys_of_the_largest_resolution_are_enqueued(sizes):
    method = ready(views=(own(sizes), partner(sizes), own(sizes), partner(sizes)))
    views = random_views(method, 4, 3)
    (largest,) = [view for view in views[4:6] if view.shape[-1] == 16]
    torch.testing.assert_close(method(views, STEP).keys, key_of(method, largest))


def test_multi_crop_mixes_each_query_with_its_own_box_and_attracts_all_to_one_pair_of_keys():
    method = ready(views=MULTI_CROP)
    views = random_views(method, 4, 3)
    keys = key_of(method, views[3]), key_of(method, views[7])
    losses = []
    for place in range(3):
        mixed, kept = cutmix(views[place], views[4 + place], boxes(method, place))
        losses.append(clim_loss(query_of(method, mixed), *keys, kept, method.queue.keys, temperature=0.3))
    torch.testing.assert_close(method(views, STEP).loss, torch.stack(losses).sum())


def test_boxes_change_from_step_to_step_and_between_micro_batches():
    method = ready(seed=1)
    views = random_views(method, 4, 3)
    losses = {method(views, step).loss.item() for step in (STEP, STEP._replace(index=1), STEP._replace(micro=1))}
    assert len(losses) == 3


def test_only_the_queries_receive_a_gradient():
    method = ready()
    views = [view.requires_grad_() for view in random_views(method, 4, 3)]
    method(tuple(views), STEP).loss.backward()
    assert [view.grad is not None for view in views] == [True, True, False, False]


def test_the_keys_of_a_step_are_enqueued_once_each():
    method = ready()
    output = method(random_views(method, 4, 3), STEP)
    method.update(output.keys, STEP)
    torch.testing.assert_close(method.queue.keys[:4], output.keys)
    assert method.queue.cursor == 4


def test_an_empty_queue_counts_the_keys_that_it_has():
    method = ready(queue=QueueConfig(20, "empty"))
    views = random_views(method, 4, 3)
    output = method(views, STEP)
    assert output.loss == 0
    method.update(output.keys, STEP)
    query, query_partner, key, key_partner = views
    mixed, kept = cutmix(query, query_partner, boxes(method))
    keys = key_of(method, key), key_of(method, key_partner)
    expected = clim_loss(query_of(method, mixed), *keys, kept, method.queue.keys[:4], temperature=0.3)
    torch.testing.assert_close(method(views, STEP).loss, expected)


def test_the_momentum_branch_follows_by_one_minus_m():
    method = make_method(momentum=MomentumConfig(0.9))
    before = [parameter.clone() for parameter in method.momentum_branch.parameters()]
    for parameter in (*method.encoder.parameters(), *method.projector.parameters()):
        parameter.data += 1
    method.update(F.normalize(torch.randn(4, 8), dim=1), STEP)
    for old, new in zip(before, method.momentum_branch.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)


def test_chance_is_the_loss_of_uniform_predictions():
    for views, reduction, terms in ((PAIR, "sum", 1), (RESOLUTIONS, "sum", 4), (RESOLUTIONS, "mean", 1)):
        method = make_method(views=views, reduction=reduction, temperature=1e9)
        output = method(random_views(method, 4, 3), STEP)
        torch.testing.assert_close(output.loss, output.metrics["chance_loss"])
        assert output.metrics["chance_loss"].item() == pytest.approx(terms * torch.tensor(21.0).log().item())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"views": (own(), partner())}, "at least two views of an image.*`views` has 1"),
        ({"views": (own(), own(), partner())}, r"'cutmix' .* sizes \[\(16,\), \(16,\)\].*but `views` has \[\(16,\)\]"),
        ({"views": (own(), own(), partner(12), partner())}, r"`views` has \[\(12,\), \(16,\)\]"),
        (
            {"mixing": "none"},
            r"'none' .* sizes \[\(16,\)\], as those of the image \(its key\), but `views` has \[\(16,",
        ),
        ({"partner_only": True}, "partner_only True has no effect with mixing cutmix; leave it at False"),
        ({"mixing": "mixup", "ratio": "beta"}, "ratio beta has no effect with mixing mixup; leave it at area"),
        ({"views": UNMIXED, "mixing": "none", "alpha": 1.0}, "alpha 1.0 has no effect with mixing none"),
        ({"views": UNMIXED, "mixing": "none", "per_batch": True}, "per_batch True has no effect with mixing none"),
        ({"alpha": 0.0}, "alpha must be positive, got 0.0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        make_method(**options)
