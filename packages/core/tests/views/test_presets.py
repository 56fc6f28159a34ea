"""The presets' numbers, written down once more from table 2 of SCE, and the code of MoCo and DSSL."""

import pytest

from ssl_core.views import (
    HEAVY,
    PRESETS,
    CenterCrop,
    Choice,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Jigsaw,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Solarize,
    eval_spec,
)

# name: jitter prob, saturation, gray prob, blur prob, solarize prob
TABLE_2 = {
    "weak": (0.0, 0.0, 0.0, 0.0, 0.0),
    "strong": (0.8, 0.4, 0.2, 0.5, 0.0),
    "strong_alpha": (0.8, 0.2, 0.2, 1.0, 0.0),
    "strong_beta": (0.8, 0.2, 0.2, 0.1, 0.2),
    "strong_gamma": (0.8, 0.2, 0.2, 0.5, 0.2),
}


def only(ops, kind):
    found = [op for op in ops if isinstance(op, kind)]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize("name", TABLE_2)
def test_presets_have_the_numbers_of_table_2(name):
    ops = PRESETS[name]
    jitter_prob, saturation, gray_prob, blur_prob, solarize_prob = TABLE_2[name]
    assert only(ops, RandomResizedCrop) == RandomResizedCrop(
        scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), interpolation="bilinear"
    )
    assert only(ops, HorizontalFlip) == HorizontalFlip(prob=0.5)
    jitter = only(ops, ColorJitter)
    if jitter_prob:
        assert jitter == ColorJitter(jitter_prob, brightness=0.4, contrast=0.4, saturation=saturation, hue=0.1)
    else:
        assert jitter is None
    for kind, prob in ((Grayscale, gray_prob), (GaussianBlur, blur_prob), (Solarize, solarize_prob)):
        op = only(ops, kind)
        assert (op.prob if op else 0.0) == prob
    blur, solarize = only(ops, GaussianBlur), only(ops, Solarize)
    assert blur is None or blur.sigma == (0.1, 2.0)
    assert solarize is None or solarize.threshold == 0.5


def test_ops_follow_the_order_of_the_released_code():
    names = [op.name for op in PRESETS["strong_gamma"]]
    expected = ["random_resized_crop", "color_jitter", "grayscale", "gaussian_blur", "solarize", "horizontal_flip"]
    assert names == expected
    assert [op.name for op in PRESETS["strong"]] == [name for name in expected if name != "solarize"]


def test_moco_presets_have_the_numbers_of_mocos_code():
    assert PRESETS["moco_v2"] == (
        RandomResizedCrop(scale=(0.2, 1.0)),
        ColorJitter(prob=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        Grayscale(prob=0.2),
        GaussianBlur(prob=0.5, sigma=(0.1, 2.0)),
        HorizontalFlip(prob=0.5),
    )
    assert PRESETS["moco_cifar"] == (
        RandomResizedCrop(scale=(0.08, 1.0)),
        HorizontalFlip(prob=0.5),
        ColorJitter(prob=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        Grayscale(prob=0.2),
    )


def test_clsas_strong_views_distort_the_weak_view_or_the_crop_alone():
    five = RandAugment(pool="clsa_code14", num_ops=5, prob=0.5, level_range=(1, 9))
    assert PRESETS["clsa_strong"] == (*PRESETS["moco_v2"], five)
    assert PRESETS["clsa_strong_crop"] == (RandomResizedCrop(scale=(0.2, 1.0)), five)


@pytest.mark.parametrize("name", ["moco_v2", "moco_cifar"])
def test_uncropped_presets_see_the_whole_image_and_are_otherwise_the_same(name):
    crop, *others = PRESETS[name]
    assert isinstance(crop, RandomResizedCrop)
    assert PRESETS[f"{name}_uncropped"] == (Resize(), *others)


CROP, FLIP, GRAY = RandomResizedCrop(scale=(0.2, 1.0)), HorizontalFlip(prob=0.5), Grayscale(prob=0.2)
JITTER = ColorJitter(prob=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
BLUR = GaussianBlur(prob=0.5, sigma=(0.1, 2.0))


def always(num_ops, magnitude):
    return RandAugment("dssl_code16", num_ops, prob=1.0, level_range=(magnitude, magnitude))


def test_dssls_standard_views_have_the_numbers_and_the_order_of_its_code():
    assert PRESETS["dssl_cifar"] == (CROP, FLIP, JITTER, GRAY)
    assert PRESETS["dssl_imagenet"] == (CROP, FLIP, JITTER, GRAY, BLUR)
    assert PRESETS["dssl_byol"] == (always(2, 9), CROP, FLIP, JITTER, GRAY, BLUR)
    assert PRESETS["dssl_crop_color"] == (CROP, JITTER, GRAY)


def test_dssls_heavy_views_are_those_of_its_code_and_paper():
    assert HEAVY["cifar_code"] == (always(2, 9),)
    assert HEAVY["imagenet_code"] == (Choice(0.9, (always(2, 9),), (Jigsaw(4, prob=1.0),)),)
    stronger = ColorJitter(prob=0.8, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1)
    assert HEAVY["byol_harder"] == (always(8, 16), CROP, FLIP, stronger, GRAY, BLUR, Jigsaw(4, prob=0.1))
    assert HEAVY["paper"] == (always(2, 5), Jigsaw(4, prob=1.0))


@pytest.mark.parametrize("name", [name for name in HEAVY if name.startswith("ra_")])
def test_a_rand_augment_is_named_by_its_number_of_ops_and_magnitude(name):
    num_ops, magnitude = map(int, name.removeprefix("ra_").split("_"))
    assert HEAVY[name] == (always(num_ops, magnitude),)


def test_every_row_of_dssls_figures_is_there():
    rows = {"ra_1_1", "ra_2_1", "ra_2_5", "ra_2_9", "ra_4_10", "ra_8_16", "jigsaw_2", "jigsaw_4", "ua"}
    assert rows == HEAVY.keys() - {"cifar_code", "imagenet_code", "byol_harder", "paper"}
    assert (HEAVY["jigsaw_2"], HEAVY["jigsaw_4"]) == ((Jigsaw(2, prob=1.0),), (Jigsaw(4, prob=1.0),))
    assert HEAVY["ua"] == (RandAugment("dssl_code16", 2, prob=0.5, level_range="continuous"),)


BICUBIC = RandomResizedCrop(scale=(0.08, 1.0), interpolation="bicubic")


def test_simclrs_presets_have_the_jitter_of_their_strength():
    strong, half = ColorJitter(0.8, 0.8, 0.8, 0.8, 0.2), ColorJitter(0.8, 0.4, 0.4, 0.4, 0.1)
    assert PRESETS["simclr_imagenet"] == (BICUBIC, FLIP, strong, GRAY, GaussianBlur(0.5, sigma=(0.2, 2.0)))
    assert PRESETS["simclr_cifar"] == (BICUBIC, FLIP, half, GRAY)


def test_the_two_views_of_barlow_twins_differ():
    jitter = ColorJitter(0.8, 0.4, 0.4, 0.2, 0.1)
    assert PRESETS["barlow_1"] == (BICUBIC, FLIP, jitter, GRAY, GaussianBlur(1.0))
    assert PRESETS["barlow_2"] == (BICUBIC, FLIP, jitter, GRAY, GaussianBlur(0.1), Solarize(0.2))


def test_no_two_presets_share_a_name():
    assert not PRESETS.keys() & HEAVY.keys()


def test_presets_of_probes_have_no_color():
    assert PRESETS["crop_flip"] == (RandomResizedCrop(scale=(0.08, 1.0)), HorizontalFlip(prob=0.5))
    assert PRESETS["padded_crop"] == (RandomCrop(padding=4), HorizontalFlip(prob=0.5))
    assert PRESETS["plain"] == (CenterCrop(),)


def test_the_evaluation_view_is_resize_and_center_crop():
    view = eval_spec(224, short_side=256, interpolation="bicubic")
    assert (view.ops, view.sizes, view.name) == ((CenterCrop(256, "bicubic"),), (224,), "plain")
    assert eval_spec(32).ops == PRESETS["plain"]
