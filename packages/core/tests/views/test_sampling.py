import math
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from ssl_core.philox import uniform
from ssl_core.views import (
    DISTORTIONS,
    HEAVY,
    POOLS,
    PRESETS,
    CenterCrop,
    Choice,
    ColorJitter,
    GaussianBlur,
    HorizontalFlip,
    Jigsaw,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Solarize,
    ViewSpec,
    derive,
    num_parameters,
    parameter_names,
    sample_parameters,
)

BETA = ViewSpec(PRESETS["strong_beta"], (32,))


def sample(spec, index, size=(40, 60), *, seed=0, epoch=0, view=0):
    index = torch.as_tensor(index)
    sizes = torch.tensor(size).expand(len(index), 2)
    return sample_parameters(spec, seed=seed, epoch=epoch, image_index=index, view_index=view, image_size=sizes)


def named(spec, num_images=4000, **where):
    columns = sample(spec, range(num_images), **where).unbind(1)
    return dict(zip(parameter_names(spec), columns, strict=True))


def sample_indices(indices):
    return sample(BETA, indices)


# What a view depends on.


@pytest.mark.parametrize("preset", ["strong_beta", "clsa_strong"])
def test_an_image_alone_draws_what_it_draws_in_a_batch(preset):
    spec = ViewSpec(PRESETS[preset], (32,))
    batch = sample(spec, range(37))
    assert batch.shape == (37, num_parameters(spec))
    for index in (0, 5, 36):
        assert torch.equal(sample(spec, [index])[0], batch[index])


@pytest.mark.parametrize("name", HEAVY)
def test_an_image_alone_draws_its_heavy_view_as_in_a_batch(name):
    spec = derive([ViewSpec(PRESETS["dssl_cifar"], (32,))], 0, HEAVY[name])
    batch = sample(spec, range(37), view=1)
    assert batch.shape == (37, num_parameters(spec))
    for index in (0, 5, 36):
        assert torch.equal(sample(spec, [index], view=1)[0], batch[index])
    assert sample(spec, torch.arange(0), view=1).shape == (0, num_parameters(spec))


def test_the_order_of_a_batch_changes_nothing():
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(BETA, order), sample(BETA, range(37))[order])


def test_the_size_of_other_images_changes_nothing():
    index, sizes = torch.arange(3), torch.tensor([[40, 60], [1, 1], [3000, 2]])
    mixed = sample_parameters(BETA, seed=0, epoch=0, image_index=index, view_index=0, image_size=sizes)
    assert torch.equal(mixed[0], sample(BETA, [0])[0])
    assert torch.equal(mixed[2], sample(BETA, [2], (3000, 2))[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_draw_the_same(workers):
    loader = DataLoader(range(10), batch_size=3, num_workers=workers, collate_fn=sample_indices)
    assert torch.equal(torch.cat(list(loader)), sample(BETA, range(10)))


def test_global_generators_are_neither_read_nor_moved():
    torch.manual_seed(0)
    first, state = sample(BETA, range(4)), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(sample(BETA, range(4)), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def some_sizes(num_images):
    return torch.randint(1, 400, (num_images, 2), generator=torch.Generator().manual_seed(0))


def test_memory_layout_changes_nothing():
    draw = partial(sample_parameters, BETA, seed=0, epoch=0, view_index=0)
    index, sizes = torch.arange(16), some_sizes(16)
    strided = draw(image_index=index.repeat_interleave(2)[::2], image_size=sizes.t().contiguous().t())
    assert torch.equal(strided, draw(image_index=index, image_size=sizes))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "ops", [*PRESETS.values(), *(PRESETS["weak"] + ops for ops in HEAVY.values())], ids=[*PRESETS, *HEAVY]
)
def test_a_gpu_draws_the_same(ops):
    index, sizes = torch.arange(1000), some_sizes(1000)
    draw = partial(sample_parameters, ViewSpec(ops, (32,)), seed=0, epoch=0, view_index=0)
    on_gpu = draw(image_index=index.cuda(), image_size=sizes.cuda())
    assert torch.equal(on_gpu.cpu(), draw(image_index=index, image_size=sizes))


def test_seed_epoch_image_and_view_each_give_other_draws():
    reference = sample(BETA, [3])
    others = [
        sample(BETA, [4]),
        sample(BETA, [3], seed=1),
        sample(BETA, [3], seed=2**32),
        sample(BETA, [3], seed=2**63 + 5),
        sample(BETA, [3], epoch=1),
        sample(BETA, [3], view=1),
    ]
    draws = torch.cat([reference, *others])
    assert len(torch.unique(draws, dim=0)) == len(draws)


def test_a_view_without_randomness_has_no_parameters():
    spec = ViewSpec((CenterCrop(),), (8,))
    assert sample(spec, range(3)).shape == (3, 0)


def test_adding_an_op_at_the_end_changes_no_earlier_draw():
    longer = ViewSpec((*BETA.ops, Solarize()), (32,))
    assert torch.equal(sample(longer, range(20))[:, :-1], sample(BETA, range(20)))


# Derived views.


def test_a_derived_view_has_its_parents_draws_and_its_own_after_them():
    parent, own = ViewSpec(PRESETS["strong"], (32,)), [GaussianBlur(prob=1.0)]
    child = derive([BETA, parent], 1, own)
    drawn = sample(child, range(50), view=2)
    assert torch.equal(drawn[:, :-1], sample(parent, range(50), view=1))
    sibling = sample(derive([BETA, parent], 1, own), range(50), view=3)
    assert torch.equal(sibling[:, :-1], drawn[:, :-1])
    assert not torch.any(sibling[:, -1] == drawn[:, -1])


@pytest.mark.parametrize("name", HEAVY)
def test_a_heavy_view_has_its_standard_views_draws_whatever_the_other_views_are(name):
    standard, other = ViewSpec(PRESETS["dssl_imagenet"], (32,)), ViewSpec(PRESETS["dssl_byol"], (32,))
    heavy = derive([standard, standard], 0, HEAVY[name])
    drawn = sample(heavy, range(50), view=2)
    shared = num_parameters(standard)
    assert torch.equal(drawn[:, :shared], sample(standard, range(50), view=0))
    assert torch.equal(drawn, sample(derive([standard, other], 0, HEAVY[name]), range(50), view=2))
    sibling = sample(derive([standard, standard], 1, HEAVY[name]), range(50), view=3)
    assert not torch.equal(sibling[:, shared:], drawn[:, shared:])


def test_a_derived_view_may_share_the_crop_alone():
    parent = ViewSpec(PRESETS["strong"], (32,))
    child = derive([parent], 0, PRESETS["strong"][1:], shared_ops=1)
    own, shared = sample(child, range(50), view=1), sample(parent, range(50), view=0)
    assert torch.equal(own[:, :4], shared[:, :4])
    assert not torch.equal(own[:, 4:], shared[:, 4:])
    # What is not shared is drawn where a view that is not derived would draw it.
    assert torch.equal(own[:, 4:], sample(parent, range(50), view=1)[:, 4:])


# Distributions.


def test_flips_gray_and_solarizing_occur_with_their_probability():
    drawn = named(ViewSpec((RandomResizedCrop(), *BETA.ops[2:]), (32,)))
    for name, prob in {
        "horizontal_flip.flip": 0.5,
        "grayscale.gray": 0.2,
        "solarize.solarize": 0.2,
    }.items():
        values = drawn[name]
        assert set(values.tolist()) == {0.0, 1.0}
        # Four standard deviations of a binomial frequency.
        assert abs(values.mean().item() - prob) < 4 * math.sqrt(prob * (1 - prob) / len(values))


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_probabilities_of_zero_and_one_are_never_and_always(prob):
    drawn = named(ViewSpec((Resize(), HorizontalFlip(prob=prob), GaussianBlur(prob=prob)), (32,)), 2000)
    assert set(drawn["horizontal_flip.flip"].tolist()) == {prob}
    assert bool((drawn["gaussian_blur.sigma"] > 0).all()) == bool(prob)


def test_blur_sigma_is_uniform_in_its_range_where_it_is_applied():
    sigma = named(ViewSpec((Resize(), GaussianBlur(prob=0.5, sigma=(0.1, 2.0))), (32,)))["gaussian_blur.sigma"]
    applied = sigma[sigma > 0]
    assert abs(len(applied) / len(sigma) - 0.5) < 4 * 0.5 / math.sqrt(len(sigma))
    assert_uniform(applied, 0.1, 2.0)


def test_jitter_factors_are_uniform_in_their_ranges():
    op = ColorJitter(prob=1.0, brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    drawn = named(ViewSpec((Resize(), op), (32,)))
    assert_uniform(drawn["color_jitter.brightness"], 0.6, 1.4)
    assert_uniform(drawn["color_jitter.contrast"], 0.0, 2.5)  # a factor is never negative
    assert_uniform(drawn["color_jitter.saturation"], 0.8, 1.2)
    assert_uniform(drawn["color_jitter.hue"], -0.1, 0.1)
    orders = drawn["color_jitter.order"].long().bincount()
    assert len(orders) == 24
    assert bool(((orders / 4000 - 1 / 24).abs() < 4 * math.sqrt(1 / 24 / 4000)).all())


def test_a_jitter_that_is_not_applied_is_the_identity():
    drawn = torch.stack(list(named(ViewSpec((Resize(), ColorJitter(prob=0.8)), (32,))).values()), dim=1)
    identity = (drawn[:, :4] == torch.tensor([1.0, 1.0, 1.0, 0.0])).all(dim=1)
    assert abs(identity.double().mean().item() - 0.2) < 4 * 0.4 / math.sqrt(len(drawn))
    assert not (drawn[~identity, :4] == torch.tensor([1.0, 1.0, 1.0, 0.0])).any()


@pytest.mark.parametrize("size", [(500, 400), (32, 32)], ids=["photo", "cifar"])
def test_crop_boxes_lie_inside_and_keep_scale_and_ratio(size):
    height, width = size
    drawn = named(ViewSpec((RandomResizedCrop(scale=(0.2, 1.0)),), (32,)), size=size)
    top, left, box_height, box_width = drawn.values()
    assert all(torch.equal(value, value.round()) for value in drawn.values())
    assert bool((top >= 0).all() and (top + box_height <= height).all() and (box_height >= 1).all())
    assert bool((left >= 0).all() and (left + box_width <= width).all() and (box_width >= 1).all())
    # Sides are rounded to pixels: half a pixel of each side.
    slack = 0.5 * (box_height + box_width) + 0.25
    area = box_height * box_width
    assert bool((area + slack >= 0.2 * height * width).all() and (area - slack <= height * width).all())
    low, high = (box_width - 0.5) / (box_height + 0.5), (box_width + 0.5) / (box_height - 0.5)
    assert bool((high >= 3 / 4).all() and (low <= 4 / 3).all())
    # Every position where the box fits is as likely: the mean of the relative position is a half.
    relative = (top / (height - box_height))[box_height < height]
    assert abs(relative.mean().item() - 0.5) < 4 * math.sqrt(1 / 12 / len(relative)) + 1 / (2 * height)


def test_small_crops_have_uniform_area_and_log_uniform_ratio():
    # Boxes this small always fit, so that the first candidate is taken.
    drawn = named(ViewSpec((RandomResizedCrop(scale=(0.05, 0.3), ratio=(0.5, 2.0)),), (32,)), size=(4000, 4000))
    _, _, height, width = drawn.values()
    assert_uniform(height * width / 4000**2, 0.05, 0.3, slack=1e-3)
    assert_uniform((width / height).log2(), -1, 1, slack=1e-2)


def test_the_first_candidate_that_fits_is_taken():
    spec = ViewSpec((RandomResizedCrop(scale=(0.9, 1.0), ratio=(0.5, 2.0)),), (32,))
    drawn = sample(spec, range(300), (100, 80))
    streams = torch.stack([torch.arange(300), torch.zeros(300).long(), torch.zeros(300).long()], dim=1)
    for box, draws in zip(drawn.tolist(), uniform(0, streams, 22).tolist(), strict=True):
        for area_draw, ratio_draw in zip(draws[:10], draws[10:20], strict=True):
            area = 8000 * (0.9 + (1.0 - 0.9) * area_draw)
            ratio = math.exp(math.log(0.5) + (math.log(2) - math.log(0.5)) * ratio_draw)
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if width <= 80 and height <= 100:
                expected = [int(draws[20] * (101 - height)), int(draws[21] * (81 - width)), height, width]
                break
        else:
            expected = [0, 0, 100, 80]  # 80 / 100 is an allowed ratio: the whole image
        assert box == expected


@pytest.mark.parametrize(
    ("size", "scale", "box"),
    [
        ((1, 1), (0.01, 0.02), [0, 0, 1, 1]),  # candidates round to nothing
        ((3000, 2), (0.9, 1.0), [1498, 0, 3, 2]),  # 2 / (3/4) = 2.67 rows, rounded; (3000 - 3) // 2
        ((2, 3000), (0.9, 1.0), [0, 1498, 2, 3]),  # 2 * 4/3 = 2.67 columns
    ],
    ids=["one pixel", "tall", "wide"],
)
def test_the_largest_central_box_is_taken_where_no_candidate_fits(size, scale, box):
    spec = ViewSpec((RandomResizedCrop(scale=scale),), (32,))
    assert sample(spec, range(5), size).tolist() == [box] * 5


def test_padded_windows_take_every_position_equally_often():
    drawn = named(ViewSpec((RandomCrop(padding=4),), (32,)), 4500, size=(32, 32))
    for corner in drawn.values():
        counts = (corner + 4).long().bincount()
        assert len(counts) == 9  # -4 .. 4
        assert bool(((counts / 4500 - 1 / 9).abs() < 4 * math.sqrt(1 / 9 / 4500)).all())


def test_a_window_larger_than_the_padded_image_is_centered():
    assert sample(ViewSpec((RandomCrop(padding=1),), (32,)), [0], (10, 31)).tolist()[0][0] == -11
    assert sample(ViewSpec((RandomCrop(),), (5,)), [0], (1, 2)).tolist() == [[-2, -2]]


def test_a_second_crop_is_drawn_in_the_frame_of_the_first():
    drawn = named(ViewSpec((RandomResizedCrop(), RandomResizedCrop()), (32,)), 200, size=(500, 400))
    assert drawn["random_resized_crop_2.height"].max() <= 32
    assert drawn["random_resized_crop.height"].max() > 100
    resized = named(ViewSpec((Resize(side=256), RandomResizedCrop()), (32,)), 200, size=(20, 10))
    assert 200 < resized["random_resized_crop.height"].max() <= 256


def distortions(num_images=4000, **op):
    """Names' indices (n, num_ops) and magnitudes (n, num_ops) of a view that does nothing but distort."""
    drawn = sample(ViewSpec((Resize(), RandAugment(**op)), (32,)), range(num_images))
    drawn = drawn.unflatten(1, (-1, 4 if POOLS[op.get("pool", "clsa_code14")].has_cutout else 2))
    return drawn[..., 0].long(), drawn[..., 1]


def test_distortions_of_known_draws_by_hand(monkeypatch):
    # Which of 14, level of 9, apply below 0.5, negative below 0.5.
    draws = [
        [0.5, 0.5, 0.49, 0.49],  # 7: rotate; level 1 + int(4.5) = 5: 30 * 5 / 10 degrees; negative
        [0.99, 0.99, 0.0, 0.5],  # int(13.86) = 13: translate_y; level 1 + int(8.91) = 9: 0.3 * 9 / 10; positive
        [0.45, 0.4, 0.2, 0.1],  # int(6.3) = 6: posterize; level 1 + int(3.6) = 4: 4 + int(1.6) bits; no sign
        [0.79, 0.0, 0.3, 0.3],  # int(11.06) = 11: solarize; level 1: 256 - int(25.6)
        [0.0, 0.7, 0.5, 0.3],  # autocontrast, not applied
    ]
    monkeypatch.setattr("ssl_core.views.sampling.uniform", lambda *_: torch.tensor(draws).double().view(1, 20))
    names, magnitudes = distortions(1)
    assert [DISTORTIONS[index] for index in names[0]] == ["rotate", "translate_y", "posterize", "solarize", "identity"]
    assert magnitudes[0].tolist() == pytest.approx([-15, 0.27, 5, 231, 0])


def test_distortions_of_dssls_pool_of_known_draws_by_hand(monkeypatch):
    # Which of 16, level (fixed at 9 of 30), apply, negative below 0.5, x, y.
    draws = [
        [0.9, 0.1, 0.9, 0.4, 0.2, 0.3],  # int(14.4) = 14: translate_x_px; 100 * 9 / 30; negative
        [0.85, 0.9, 0.0, 0.1, 0.25, 0.75],  # int(13.6) = 13: cutout; 40 * 9 / 30; no sign; its place
        [0.4, 0.5, 0.5, 0.5, 0.6, 0.7],  # int(6.4) = 6: solarize_add; int(110 * 9 / 30)
    ]
    monkeypatch.setattr("ssl_core.views.sampling.uniform", lambda *_: torch.tensor(draws).double().view(1, 18))
    spec = ViewSpec((Resize(), RandAugment("dssl_code16", 3, 1.0, (9, 9))), (32,))
    translate, cutout, add = (DISTORTIONS.index(name) for name in ("translate_x_px", "cutout", "solarize_add"))
    expected = [translate, -30, 0, 0, cutout, 12, 0.25, 0.75, add, 33, 0, 0]
    assert sample(spec, [0]).tolist()[0] == pytest.approx(expected)


def test_a_cutout_has_a_uniform_place_and_nothing_else_has_one():
    drawn = sample(ViewSpec((Resize(), RandAugment("dssl_code16", 2, 0.5)), (32,)), range(20000)).view(-1, 4)
    cut = drawn[:, 0] == DISTORTIONS.index("cutout")
    for part in (2, 3):
        assert not drawn[~cut, part].any()
        assert_uniform(drawn[cut, part], 0, 1)
    # Pearson's correlation of independent numbers has a standard deviation of 1 / sqrt(n).
    assert abs(torch.corrcoef(drawn[cut, 2:].T)[0, 1].item()) < 4 / math.sqrt(int(cut.sum()))


def test_the_draws_of_a_pool_with_cutout_are_six_each_whatever_is_drawn():
    names, magnitudes = distortions(50, pool="dssl_code16", num_ops=2)
    many = distortions(50, pool="dssl_code16", num_ops=5)
    assert torch.equal(names, many[0][:, :2])
    assert torch.equal(magnitudes, many[1][:, :2])
    assert RandAugment("dssl_code16", num_ops=5).num_draws == 30


@pytest.mark.parametrize(("num_ops", "share"), [(2, 0.23), (4, 0.41), (8, 0.66)])
def test_so_many_of_dssls_heavy_views_are_translated(num_ops, share):
    names, _ = distortions(pool="dssl_code16", num_ops=num_ops, prob=1.0, level_range=(10, 10))
    translated = torch.isin(names, torch.tensor([DISTORTIONS.index(f"translate_{axis}_px") for axis in "xy"]))
    prob = 1 - (14 / 16) ** num_ops
    assert round(prob, 2) == share
    frequency = translated.any(dim=1).double().mean().item()
    assert abs(frequency - prob) < 4 * math.sqrt(prob * (1 - prob) / 4000)


def test_uniform_augment_applies_every_distortion_half_of_the_time_at_any_magnitude():
    (op,) = HEAVY["ua"]
    drawn = sample(ViewSpec((Resize(), op), (32,)), range(20000)).view(-1, 4)
    applied = drawn[drawn[:, 0] > 0]  # the pool has no identity of its own
    assert abs(len(applied) / len(drawn) - 0.5) < 4 * 0.5 / math.sqrt(len(drawn))
    for name, low, high in (("rotate", -30, 30), ("translate_y_px", -100, 100), ("cutout", 0, 40), ("color", 0.1, 1.9)):
        assert_uniform(applied[applied[:, 0] == DISTORTIONS.index(name), 1], low, high)


def test_a_jigsaws_order_is_the_ranks_of_its_draws(monkeypatch):
    rows = [
        [0.49, 0.7, 0.1, 0.9, 0.3],  # shuffled; smallest is draw 1, then 3, 0 and 2
        [0.5, 0.7, 0.1, 0.9, 0.3],  # not shuffled
        [0.0, 0.2, 0.1, 0.2, 0.1],  # equal draws in their order
    ]
    monkeypatch.setattr("ssl_core.views.sampling.uniform", lambda *_: torch.tensor(rows).double())
    drawn = sample(ViewSpec((Resize(), Jigsaw(2, prob=0.5)), (32,)), range(3))
    assert drawn.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3], [1, 3, 0, 2]]


def test_a_jigsaw_draws_every_order_equally_often():
    drawn = sample(ViewSpec((Resize(), Jigsaw(2)), (32,)), range(4800))
    counts = torch.unique(drawn, dim=0, return_counts=True)[1]
    assert len(counts) == 24
    # Pearson's statistic has mean 23 and standard deviation sqrt(2 * 23) if all orders are as likely.
    assert abs(((counts - 200) ** 2 / 200).sum().item() - 23) < 4 * math.sqrt(2 * 23)


@pytest.mark.parametrize("prob", [0.0, 0.1, 1.0])
def test_a_jigsaw_is_a_permutation_and_shuffles_with_its_probability(prob):
    drawn = sample(ViewSpec((Resize(), Jigsaw(4, prob)), (32,)), range(4000))
    identity = torch.arange(16.0).double()
    assert torch.equal(drawn.sort(dim=1).values, identity.expand(4000, 16))
    # One shuffle of 16! is the identity.
    shuffled = (drawn != identity).any(dim=1).double().mean().item()
    assert abs(shuffled - prob) <= 4 * math.sqrt(prob * (1 - prob) / 4000)


def test_a_choice_takes_its_first_ops_with_their_probability():
    drawn = named(ViewSpec((Resize(), *HEAVY["imagenet_code"]), (32,)))
    first = drawn["choice.takes_first"]
    assert set(first.tolist()) == {0.0, 1.0}
    assert abs(first.mean().item() - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 4000)


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_what_a_choice_does_not_take_is_drawn_all_the_same(prob):
    blur, solarize = GaussianBlur(), Solarize(prob=0.5)
    chosen = ViewSpec((Resize(), Choice(prob, (blur,), (solarize, Jigsaw(2))), HorizontalFlip()), (32,))
    columns = sample(chosen, range(50))
    # Its draws are the choice's own, then those of the first ops and of the second in order. A flip's one draw stands
    # in for the choice's, and shows it.
    plain = sample(
        ViewSpec((Resize(), HorizontalFlip(prob), blur, solarize, Jigsaw(2), HorizontalFlip()), (32,)), range(50)
    )
    assert torch.equal(columns, plain)


def test_a_choice_of_nothing_has_one_parameter():
    assert sample(ViewSpec((Resize(), Choice(1.0, (), ())), (32,)), range(3)).tolist() == [[1.0]] * 3


def test_distortions_are_drawn_equally_often_and_independently():
    names, _ = distortions(prob=1.0, num_ops=2)
    pool = [DISTORTIONS.index(name) for name in POOLS["clsa_code14"].magnitudes]
    pairs = (names[:, 0] * len(DISTORTIONS) + names[:, 1]).bincount(minlength=len(DISTORTIONS) ** 2)
    counts = pairs.view(len(DISTORTIONS), -1)[pool][:, pool]  # 196 pairs, with replacement
    assert counts.sum() == 4000
    # Pearson's statistic has mean 195 and standard deviation sqrt(2 * 195) if all pairs are as likely.
    assert abs(((counts - 4000 / 196) ** 2 / (4000 / 196)).sum().item() - 195) < 4 * math.sqrt(2 * 195)


def test_levels_are_drawn_equally_often():
    names, magnitudes = distortions(prob=1.0)
    factors = magnitudes[names == DISTORTIONS.index("brightness")]
    levels, counts = ((factors - 0.05) / 0.09).round().long().unique(return_counts=True)
    assert levels.tolist() == list(range(1, 10))
    share = 1 / 9
    assert bool(((counts / len(factors) - share).abs() < 4 * math.sqrt(share * (1 - share) / len(factors))).all())


def test_signs_are_drawn_equally_often_and_only_where_the_pool_says_so():
    names, magnitudes = distortions(prob=1.0)
    for name, magnitude in POOLS["clsa_code14"].magnitudes.items():
        negative = (magnitudes[names == DISTORTIONS.index(name)] < 0).double()
        if magnitude.signed:
            assert abs(negative.mean().item() - 0.5) < 4 * 0.5 / math.sqrt(len(negative))
        else:
            assert not negative.any()


@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_each_draw_is_applied_with_its_probability(prob):
    names, magnitudes = distortions(pool="clsa_paper14", prob=prob)
    applied = (names > 0).double()  # this pool has no identity of its own
    assert applied.shape == (4000, 5)
    assert bool(((applied.mean(dim=0) - prob).abs() <= 4 * math.sqrt(prob * (1 - prob) / 4000)).all())
    assert not magnitudes[names == 0].any()
    five = applied.sum(dim=1).long().bincount(minlength=6) / 4000
    expected = torch.tensor([math.comb(5, count) * prob**count * (1 - prob) ** (5 - count) for count in range(6)])
    assert bool(((five - expected).abs() <= 4 * (expected * (1 - expected) / 4000).sqrt()).all())


def test_continuous_levels_fill_the_ranges_of_the_paper():
    names, magnitudes = distortions(20000, pool="clsa_paper14", prob=1.0, level_range="continuous")

    def drawn(name):
        return magnitudes[names == DISTORTIONS.index(name)]

    for name in ("brightness", "color", "contrast", "sharpness"):
        assert_uniform(drawn(name), 0.05, 0.95)
    for name in ("shear_x", "shear_y", "translate_x", "translate_y"):
        assert_uniform(drawn(name), -0.3, 0.3)
    assert drawn("posterize").unique().tolist() == [4, 5, 6, 7]  # 8 bits has no probability
    assert_uniform(drawn("rotate"), -30, 30)
    assert_uniform(drawn("solarize") - 0.5, 0, 256, slack=0.5)


def test_distortions_depend_neither_on_what_else_is_drawn_nor_on_the_size():
    few, many = distortions(50, num_ops=2), distortions(50, num_ops=5)
    assert torch.equal(few[0], many[0][:, :2])
    assert torch.equal(few[1], many[1][:, :2])
    spec = ViewSpec((Resize(), RandAugment()), (32,))
    assert torch.equal(sample(spec, range(50), (1, 1)), sample(spec, range(50), (3000, 2)))


@pytest.mark.parametrize("pool", [name for name in POOLS if not POOLS[name].has_cutout])
@pytest.mark.parametrize("level_range", [(0, 0), (1, 9), (10, 10), "continuous"], ids=str)
def test_distortions_without_a_place_take_the_same_draws_whatever_their_pool_and_levels(pool, level_range):
    op = RandAugment(pool, 3, 0.5, level_range)
    assert op.num_draws == 12
    after = named(ViewSpec((Resize(), op, GaussianBlur()), (32,)), 50)["gaussian_blur.sigma"]
    reference = named(ViewSpec((Resize(), RandAugment(num_ops=3), GaussianBlur()), (32,)), 50)
    assert torch.equal(after, reference["gaussian_blur.sigma"])


def assert_uniform(values, low, high, slack=1e-9):
    """Inside the bounds, and mean and spread within four standard errors of a uniform distribution's."""
    assert low - slack <= values.min()
    assert values.max() <= high + slack
    spread = (high - low) / math.sqrt(12)
    assert abs(values.mean().item() - (low + high) / 2) < 4 * spread / math.sqrt(len(values)) + slack
    # The standard error of a uniform sample's standard deviation is spread * sqrt(0.2 / n).
    assert abs(values.std().item() - spread) < 4 * spread * math.sqrt(0.2 / len(values)) + slack
