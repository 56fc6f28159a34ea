"""The presets' numbers, written down once more from table 2 of SCE and from MoCo's code."""

import pytest

from ssl_core.views import (
    PRESETS,
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
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


def test_presets_of_probes_have_no_colour():
    assert PRESETS["crop_flip"] == (RandomResizedCrop(scale=(0.08, 1.0)), HorizontalFlip(prob=0.5))
    assert PRESETS["padded_crop"] == (RandomCrop(padding=4), HorizontalFlip(prob=0.5))
    assert PRESETS["plain"] == (CenterCrop(),)


def test_the_evaluation_view_is_resize_and_centre_crop():
    view = eval_spec(224, short_side=256, interpolation="bicubic")
    assert (view.ops, view.sizes, view.name) == ((CenterCrop(256, "bicubic"),), (224,), "plain")
    assert eval_spec(32).ops == PRESETS["plain"]
