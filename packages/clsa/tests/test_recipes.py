"""Every shipped recipe keeps what all recipes promise, and has the values and scores of CLSA's paper and code."""

from dataclasses import replace
from operator import attrgetter

import pytest

from ssl_clsa import train
from ssl_core.testing import Recipes
from ssl_core.views import RandAugment, make_view_specs

RECIPES = Recipes(train, words=["CLSA"], keys_per_image=lambda method: 1 + method.symmetric)
parse, overrides = RECIPES.parse, RECIPES.overrides


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES.names)
def test_everything_in_the_header_holds(name):
    RECIPES.check_header(name)


@pytest.mark.parametrize("name", RECIPES.names)
def test_the_method_builds_at_full_size(name):
    RECIPES.check_full_size(name)


@pytest.mark.parametrize("name", RECIPES.names)
def test_a_shrunk_recipe_takes_a_step(name):
    RECIPES.check_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES.names)
def test_a_recipe_takes_a_folder_of_few_images_without_labels(name, tmp_path):
    RECIPES.check_folder(name, tmp_path)


# -- values, from the specification (docs/papers/clsa.md says where paper and code differ)

IMAGENET = {
    "encoder.name": "resnet50",
    "projector.num_layers": 2,
    "projector.hidden_dim": 2048,
    "projector.out_dim": 128,
    "projector.norm": False,
    "projector.last_norm": "none",
    "method.num_weak": 1,
    "method.strong_loss": "ddm",
    "method.temperature": 0.2,
    "method.divergence_temperature": 0.2,
    "method.divergence_weight": 1.0,
    "method.in_batch_negatives": True,
    "method.reduction": "sum",
    "method.detach_target": True,
    "method.symmetric": False,
    "method.queue.length": 65536,
    "method.queue.initial": "random",
    "method.queue.dtype": "bfloat16",
    "method.momentum.value": 0.999,
    "method.momentum.shuffle": True,
    "method.momentum.batch_norm_splits": 1,
    "method.momentum.split_online": False,
    "optim.name": "sgd",
    "optim.lr": 0.03,
    "optim.scale_lr": False,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "optim.exclude_1d": False,
    "optim.schedule": "cosine_epoch_from_0",
    "optim.warmup_epochs": 0,
    "train.epochs": 200,
    "train.batch_size": 256,
    "train.sync_batch_norm": False,
}
CIFAR = IMAGENET | {
    "encoder.name": "resnet18",
    "encoder.stem": "small",
    "encoder.init": "torch_stem",
    "projector.hidden_dim": 512,
    "method.queue.length": 4096,
    "method.queue.dtype": "float32",
    "method.momentum.value": 0.99,
    "method.momentum.batch_norm_splits": 8,
    "optim.lr": 0.06,
    "optim.scale_lr": True,
    "optim.weight_decay": 5e-4,
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 5,
}
MULTI = {"method.num_weak": 5}
VALUES = {
    "imagenet_single": IMAGENET,
    "imagenet_multi": IMAGENET | MULTI,
    "imagenet_multi_paper": IMAGENET,
    "cifar10": CIFAR,
    "cifar10_multi": CIFAR | MULTI,
    "cifar10_multi_paper": CIFAR,
}
SCALES = [None, (0.172, 0.86), (0.143, 0.715), (0.114, 0.571), (0.086, 0.429)]


def flat(views):
    """(augmentation, size, crop scale) of each view."""
    return [(view.augmentation, view.size, view.crop_scale) for view in views for _ in range(view.count)]


def all_sizes_of(augmentation, name):
    """The five views of the released script's Multi, from the largest to the smallest, as :func:`flat` says them."""
    sizes = (224, 192, 160, 128, 96) if "imagenet" in name else (32, 28, 24, 20, 16)
    return [(augmentation, size, scale) for size, scale in zip(sizes, SCALES, strict=True)]


@pytest.mark.parametrize("name", VALUES)
def test_the_values_are_those_of_the_specification(name):
    config = parse("--config", name)
    assert {path: attrgetter(path)(config) for path in VALUES[name]} == VALUES[name]


@pytest.mark.parametrize("name", VALUES)
def test_the_views_are_those_of_the_specification(name):
    weak, strong = all_sizes_of("moco_v2", name), all_sizes_of("clsa_strong", name)
    after_the_key = [weak[0], strong[-1]]
    if "multi" in name:
        after_the_key = [weak[0], *strong] if "paper" in name else [*weak, *strong]
    assert flat(parse("--config", name).views) == [weak[0], *after_the_key]


# -- scores, copied from the paper's tables 2 and 4


def row(config):
    """What tells a row of the tables from another."""
    method = config.method
    return config.train.epochs, method.strong_loss, method.num_weak, method.in_batch_negatives, flat(config.views)


def scored(name):
    return {score: row(parse("--config", name, *options)) for score, options in overrides(name) if score is not None}


def test_every_row_of_the_ablations_is_there_with_its_score():
    weak, small = ("moco_v2", 224, None), ("clsa_strong", 96, SCALES[-1])
    assert scored("imagenet_single") == {
        72.2: (800, "ddm", 1, True, [weak, weak, small]),
        67.5: (200, "none", 1, False, [weak, weak]),
        67.7: (200, "contrastive", 0, False, [weak, small]),
        67.0: (200, "contrastive", 0, False, [small, small]),
        68.0: (200, "contrastive", 1, True, [weak, weak, small]),
    }


@pytest.mark.parametrize("name", ["imagenet_multi", "imagenet_multi_paper"])
def test_both_forms_of_multi_have_the_score_of_800_epochs(name):
    (score, settings), *rest = scored(name).items()
    assert (score, settings[0], rest) == (76.2, 800, [])
    assert "top-1 73.3 (table 2)" in "\n".join(RECIPES.header(name))


def test_the_papers_operations_are_a_view_that_differs_in_those_alone():
    recipe = parse("--config", "imagenet_single")
    (variant,) = [
        config
        for _, options in overrides("imagenet_single")
        if (config := parse("--config", "imagenet_single", *options)).views != recipe.views
        and config.method == recipe.method
        and config.views[-1].augmentation != "clsa_strong_crop"
    ]
    (*weak, strong), (*same, papers) = make_view_specs(recipe.views), make_view_specs(variant.views)
    distortions = RandAugment(pool="clsa_paper14", num_ops=5, level_range="continuous")
    assert same == weak
    assert replace(papers, name="clsa_strong") == replace(strong, ops=(*strong.ops[:-1], distortions))
