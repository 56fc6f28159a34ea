from dataclasses import dataclass, field

import pytest
from jsonargparse import ArgumentParser

from ssl_core.views import (
    HEAVY,
    PRESETS,
    Choice,
    ColorJitter,
    Grayscale,
    Jigsaw,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Solarize,
    ViewConfig,
    ViewSpec,
    make_ops,
    make_view_specs,
)


def test_a_preset_and_its_count_become_specs_in_order():
    weak, strong, again = make_view_specs([ViewConfig("weak", 32), ViewConfig("strong", 32, count=2)])
    assert weak == ViewSpec(PRESETS["weak"], (32,), "weak")
    assert strong == again == ViewSpec(PRESETS["strong"], (32,), "strong")


def test_crop_scale_makes_local_crops():
    (local,) = make_view_specs([ViewConfig("strong_gamma", 96, crop_scale=(0.086, 0.429))])
    assert local.ops == (RandomResizedCrop(scale=(0.086, 0.429)), *PRESETS["strong_gamma"][1:])
    assert local.sizes == (96,)


def test_a_list_of_ops_is_read_with_defaults_and_whole_numbers():
    augmentation = [
        {"random_resized_crop": {"scale": [0.5, 1]}},
        {"color_jitter": {"prob": 1}},
        {"random_crop": {"padding": 2}},
        {"solarize": None},
        {"rand_augment": {"pool": "clsa_paper14", "level_range": [3, 3]}},
        {"rand_augment": {"level_range": "continuous"}},
    ]
    (view,) = make_view_specs([ViewConfig(augmentation, 32)])
    assert view.ops == (
        RandomResizedCrop(scale=(0.5, 1.0)),
        ColorJitter(prob=1.0),
        RandomCrop(padding=2),
        Solarize(),
        RandAugment("clsa_paper14", level_range=(3, 3)),
        RandAugment(level_range="continuous"),
    )
    assert view.name == "custom"


def test_a_derived_view_continues_the_view_of_that_index():
    heavy = ViewConfig([{"solarize": {"prob": 1.0}}], 32, derived_from=1, count=2)
    views = make_view_specs([ViewConfig("weak", 32), ViewConfig("strong", 32), heavy])
    for view in views[2:]:
        assert view.ops == (*PRESETS["strong"], Solarize(prob=1.0))
        assert (view.derived_from, view.shared_ops) == (1, len(PRESETS["strong"]))


def test_names_and_ops_follow_each_other_in_a_list():
    (ra,) = HEAVY["ra_2_5"]
    assert make_ops("dssl_cifar") == PRESETS["dssl_cifar"]
    assert make_ops("ra_2_5") == make_ops(["ra_2_5"]) == (ra,)
    assert make_ops(["ra_2_5", "jigsaw_4"]) == (ra, Jigsaw(4))
    assert make_ops(["ra_2_5", {"grayscale": {"prob": 1}}]) == (ra, Grayscale(prob=1.0))
    assert make_ops([{"jigsaw": {"grid": 2}}, "weak", "ua"]) == (Jigsaw(2), *PRESETS["weak"], *HEAVY["ua"])
    assert make_ops([]) == ()


def test_a_choice_is_read_with_names_and_ops_of_its_own():
    second = [{"jigsaw": {"grid": 4}}]
    for first in (
        [{"rand_augment": {"pool": "dssl_code16", "num_ops": 2, "prob": 1, "level_range": [9, 9]}}],
        "ra_2_9",
    ):
        entry = {"choice": {"prob": 0.9, "first": first, "second": second}}
        assert make_ops([entry]) == HEAVY["imagenet_code"]
        assert list(entry["choice"]) == ["prob", "first", "second"]  # what was given is left as it is
    assert make_ops([{"choice": {"prob": 1, "first": [], "second": []}}]) == (Choice(1.0, (), ()),)


def test_a_heavy_preset_follows_its_standard_view():
    standard, heavy = make_view_specs(
        [ViewConfig("dssl_cifar", 32), ViewConfig(["ra_2_5", "jigsaw_4"], 32, derived_from=0)]
    )
    assert heavy.ops == (*standard.ops, *HEAVY["paper"])
    assert (heavy.derived_from, heavy.shared_ops, heavy.name) == (0, 4, "custom")
    (_, named) = make_view_specs([ViewConfig("dssl_cifar", 32), ViewConfig("paper", 32, derived_from=0)])
    assert (named.ops, named.name) == (heavy.ops, "paper")


def test_a_list_of_sizes_is_one_view_at_several_sizes():
    (view,) = make_view_specs([ViewConfig("moco_v2", [224, 160])])
    assert view.sizes == (224, 160)


def test_a_view_that_shares_a_crop_takes_the_draws_of_the_crop_alone():
    views = [ViewConfig("strong", 32), ViewConfig("strong", [32, 24], share_crop_with=0)]
    _, view = make_view_specs(views)
    assert view == ViewSpec(PRESETS["strong"], (32, 24), "strong", derived_from=0, shared_ops=1)


def test_views_of_a_partner_say_so_and_what_is_derived_from_them_too():
    own, partner = ViewConfig("weak", 32), ViewConfig("weak", 32, partner=True)
    shared = ViewConfig("weak", 32, share_crop_with=1, partner=True)
    assert [view.partner for view in make_view_specs([own, partner, shared])] == [False, True, True]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ViewConfig("strong", share_crop_with=0), "share_crop_with 0 needs .* begin with one and the same"),
        (ViewConfig("weak", crop_scale=(0.1, 0.2), share_crop_with=0), r"scale=\(0.1, 0.2\).*scale=\(0.2, 1.0\)"),
        (ViewConfig("weak", share_crop_with=1), "derived_from 1 is not the index of an earlier view: there are 1"),
        (ViewConfig("weak", share_crop_with=0, derived_from=0), "derived_from 0 and share_crop_with 0 exclude"),
        (ViewConfig("weak", share_crop_with=0, partner=True), "view 1 has partner True, .* whose partner is False"),
        (ViewConfig([{"solarize": {}}], derived_from=0, partner=True), "view 1 has partner True"),
    ],
)
def test_draws_are_shared_between_views_of_one_image_and_one_crop(config, words):
    first = ViewConfig("plain" if config.augmentation == "strong" else "weak", 224)
    with pytest.raises(ValueError, match=words):
        make_view_specs([first, config])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ViewConfig("stronk"), "'stronk'.*weak, strong, strong_alpha.*plain"),
        (ViewConfig([{"color_jiter": {}}]), "'color_jiter'.*random_resized_crop, .*color_jitter"),
        (ViewConfig([{"color_jitter": {"hui": 0.1}}]), "color_jitter.*hui"),
        (ViewConfig([{"color_jitter": {"hue": "much"}}]), "(?s)color_jitter.hue.*much"),
        (ViewConfig([{"color_jitter": {"hue": 0.7}}]), "hue .* 0.7"),
        (ViewConfig([{"random_resized_crop": {"scale": [0.1, 0.2, 0.3]}}]), "(?s)random_resized_crop.*scale"),
        (ViewConfig([{"rand_augment": {"level_range": "code"}}]), "level_range .* 'continuous', got 'code'"),
        (ViewConfig([{"rand_augment": {"level_range": [1, 2.5]}}]), "(?s)rand_augment.level_range.*2.5"),
        (ViewConfig([{"random_resized_crop": 3}]), "random_resized_crop.* 3"),
        (ViewConfig("ra_2_5"), "do not end at the view's size"),
        (ViewConfig(["weak", "jigsaw_4"], 30), "grid 4 does not divide .* 30"),
        (ViewConfig(["weak", "jigsaw_5"]), "'jigsaw_5'.*weak, .*plain, cifar_code, .*jigsaw_4, ua, or a list"),
        (ViewConfig([{"jigsaw": {"grid": 1}}]), "grid must be >= 2"),
        (ViewConfig([{"choice": {"prob": 0.5, "first": "ua"}}]), "required: choice.second"),
        (ViewConfig([{"choice": {"prob": 0.5, "first": None, "second": "ua"}}]), "required: choice.first"),
        (ViewConfig([{"choice": {"first": "ua", "second": "ua"}}]), "required: choice.prob"),
        (ViewConfig([{"choice": {"prob": 1, "frist": 2, "first": "ua", "second": "ua"}}]), "choice.*frist"),
        (ViewConfig([{"choice": {"prob": 1, "first": "weak", "second": "ua"}}]), "choice: random_resized_crop cannot"),
        (ViewConfig([{"choice": {"prob": 1, "first": [7], "second": "ua"}}]), "(?s)choice.first.*7"),
        (ViewConfig([{"resize": {}, "solarize": {}}]), "name: .argument: value"),
        (ViewConfig([{"solarize": {}}]), "do not end at the view's size"),
        (ViewConfig([]), "do not end at the view's size"),
        (ViewConfig("weak", size=0), "sizes"),
        (ViewConfig("weak", count=0), "count .* 0"),
        (ViewConfig("weak", crop_scale=(0.0, 1.0)), "scale"),
        (ViewConfig("plain", crop_scale=(0.1, 0.4)), "crop_scale .* needs a random_resized_crop"),
        (ViewConfig("weak", derived_from=0), "derived_from 0 is not the index of an earlier view"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_name(config, words):
    with pytest.raises(ValueError, match=words):
        make_view_specs([config])


@dataclass
class Settings:
    views: list[ViewConfig] = field(default_factory=list)


def test_a_yaml_file_is_read_as_a_list_of_views(tmp_path):
    file = tmp_path / "views.yaml"
    file.write_text(
        """
        views:
          - {augmentation: strong, size: 32}
          - augmentation: strong_gamma
            size: 16
            crop_scale: [0.1, 0.4]
            count: 2
          - augmentation:
              - random_resized_crop: {scale: [0.5, 1]}
              - horizontal_flip:
              - rand_augment: {num_ops: 2, level_range: [9, 9]}
            size: 8
          - {augmentation: paper, size: 16, derived_from: 1}
          - augmentation:
              - ra_2_5
              - choice: {prob: 0.9, first: [ra_1_1, grayscale: {prob: 1}], second: jigsaw_4}
            size: 32
            derived_from: 0
        """
    )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Settings)
    views = [ViewConfig(**view) for view in parser.parse_args(["--config", str(file)]).views]
    assert views[:2] == [ViewConfig("strong", 32), ViewConfig("strong_gamma", 16, (0.1, 0.4), 2)]
    specs = make_view_specs(views)
    assert [view.sizes for view in specs] == [(32,), (16,), (16,), (8,), (16,), (32,)]
    assert specs[3].ops[-1] == RandAugment(num_ops=2, level_range=(9, 9))
    assert specs[4].ops[-2:] == HEAVY["paper"]
    choice = Choice(0.9, (*HEAVY["ra_1_1"], Grayscale(prob=1.0)), (Jigsaw(4),))
    assert specs[5].ops[-2:] == (*HEAVY["ra_2_5"], choice)
    # As the run's own config.yaml, it says the same again.
    file.write_text(parser.dump(parser.parse_args(["--config", str(file)])))
    again = [ViewConfig(**view) for view in parser.parse_args(["--config", str(file)]).views]
    assert make_view_specs(again) == specs
