"""Every shipped recipe keeps what all recipes promise, and has the values and scores of LeOCLR's paper."""

from operator import attrgetter

import pytest

from ssl_core.testing import Recipes
from ssl_core.views import (
    PRESETS,
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    RandomResizedCrop,
    Resize,
    make_view_specs,
)
from ssl_leoclr import train


def keys_per_image(method):
    if method.framework == "simclr":
        return 0
    return 2 if method.enqueue == "both" else 1


RECIPES = Recipes(train, words=["LeOCLR"], keys_per_image=keys_per_image)
parse, header, overrides = RECIPES.parse, RECIPES.header, RECIPES.overrides


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


# -- values, from the specification (docs/papers/leoclr.md says what the paper leaves open)

IMAGENET = {
    "encoder.name": "resnet50",
    "encoder.stem": "auto",
    "method.framework": "moco",
    "method.anchor": "full",
    "method.attract": "anchor",
    "projector.num_layers": 2,
    "projector.hidden_dim": 2048,
    "projector.out_dim": 128,
    "projector.norm": False,
    "projector.last_norm": "none",
    "method.queue.length": 65536,
    "method.queue.dtype": "bfloat16",
    "method.temperature": 0.2,
    "method.enqueue": "first",
    "method.momentum.value": 0.999,
    "method.momentum.shuffle": True,
    "method.momentum.batch_norm_splits": 1,
    "method.momentum.split_online": False,
    "optim.name": "sgd",
    "optim.lr": 0.03,
    "optim.scale_lr": True,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "optim.exclude_1d": False,
    "optim.schedule": "cosine_epoch_from_0",
    "optim.warmup_epochs": 0,
    "train.epochs": 200,
    "train.batch_size": 256,
    "train.sync_batch_norm": False,
}
SIMCLR = IMAGENET | {
    "method.framework": "simclr",
    "projector.norm": True,
    "projector.last_norm": "scale",
    "method.queue.dtype": "float32",
    "method.temperature": 0.1,
    "optim.name": "lars",
    "optim.lr": 0.3,
    "optim.weight_decay": 1e-6,
    "optim.exclude_1d": True,
    "optim.joint_norm": True,
    "optim.schedule": "cosine",
    "optim.trust_coefficient": 0.001,
    "optim.warmup_epochs": 10,
    "train.sync_batch_norm": True,
}
PAPER_LIKE = IMAGENET | {
    "encoder.name": "resnet18",
    "encoder.stem": "imagenet",
    "projector.hidden_dim": 512,
    "method.queue.dtype": "float32",
    "method.momentum.batch_norm_splits": 8,
    "method.momentum.split_online": True,
    "train.epochs": 800,
}
NOTEBOOK = IMAGENET | {
    "encoder.name": "resnet18",
    "encoder.stem": "small",
    "encoder.init": "torch_stem",
    "projector.num_layers": 1,
    "projector.norm": True,  # of no effect with one layer
    "method.queue.length": 4096,
    "method.queue.dtype": "float32",
    "method.temperature": 0.1,
    "method.momentum.value": 0.99,
    "method.momentum.batch_norm_splits": 8,
    "method.momentum.split_online": True,
    "optim.lr": 0.06,
    "optim.scale_lr": False,
    "optim.weight_decay": 5e-4,
    "optim.schedule": "cosine_epoch",
    "train.batch_size": 512,
    "train.precision": "float32",
    "evaluate.k": 200,
    "evaluate.temperature": 0.1,
    "evaluate.features": "projection",
}
VALUES = {
    "imagenet": IMAGENET,
    "imagenet_simclr": SIMCLR,
    "cifar10_paper_like": PAPER_LIKE,
    "stl10": PAPER_LIKE,
    "cifar10": NOTEBOOK,
}
VIEWS = {  # the crops' preset and the size; the anchor is the preset without its crop
    "imagenet": ("moco_v2", 224),
    "imagenet_simclr": ("moco_v2", 224),
    "cifar10_paper_like": ("moco_v2", 32),
    "stl10": ("moco_v2", 96),
    "cifar10": ("moco_cifar", 32),
    "smoke": ("moco_v2", 16),
}


@pytest.mark.parametrize("name", VALUES)
def test_the_values_are_those_of_the_specification(name):
    config = parse("--config", name)
    assert {path: attrgetter(path)(config) for path in VALUES[name]} == VALUES[name]


@pytest.mark.parametrize("name", VIEWS)
def test_the_views_are_the_anchor_and_two_crops(name):
    crop, size = VIEWS[name]
    views = [(view.augmentation, view.size, view.crop_scale, view.count) for view in parse("--config", name).views]
    assert views == [(f"{crop}_uncropped", size, None, 1), (crop, size, None, 2)]


# -- scores, copied from the paper's tables

SCORES = {  # LeOCLR, and its baseline of two crops where the paper has one
    "imagenet": ("71.7 (table 7)", 67.5),
    "imagenet_simclr": ("65.5 (table 5)", 62.0),
    "cifar10_paper_like": ("79.59 (table 6)", 73.88),
    "stl10": ("85.20 (table 6)", 80.08),
}


@pytest.mark.parametrize("name", SCORES)
def test_the_score_is_the_papers_and_the_baseline_has_its_own(name):
    score, baseline = SCORES[name]
    assert f"linear top-1 {score}" in "\n".join(header(name))
    scored = [(value, parse("--config", name, *options)) for value, options in overrides(name) if value is not None]
    (config,) = [config for value, config in scored if value == baseline]
    crop, size = VIEWS[name]
    assert [(view.augmentation, view.size, view.count) for view in config.views] == [(crop, size, 2)]
    assert config.method.anchor == "random_crop"


def row(config):
    """What tells a row of the ablations from another: switches, epochs, and the ops of each view."""
    method, specs = config.method, make_view_specs(config.views)
    return (method.anchor, method.attract, method.enqueue, config.train.epochs, tuple(spec.ops for spec in specs))


# MoCo v2's operations, written down once more.
CROP, JITTER, GRAY, BLUR, FLIP = (
    RandomResizedCrop((0.2, 1.0)),
    ColorJitter(0.8, 0.4, 0.4, 0.4, 0.1),
    Grayscale(0.2),
    GaussianBlur(0.5, (0.1, 2.0)),
    HorizontalFlip(0.5),
)


def test_imagenet_has_every_row_of_the_ablations():
    every = (JITTER, GRAY, BLUR, FLIP)

    def views(*ops, anchor=None, count=2):
        return (*(() if anchor is None else ((anchor, *ops),)), *((CROP, *ops),) * count)

    leoclr = views(*every, anchor=Resize())
    full, cut = ("full", "anchor", "first", 200), ("random_crop", "anchor", "first", 200)
    published = [
        (76.2, ("full", "anchor", "first", 800, leoclr)),  # table 1
        (None, ("full", "anchor", "both", 200, leoclr)),
        (None, (*full, leoclr)),  # as eight GPUs on one
        (67.5, (*cut, views(*every))),  # table 7
        (69.3, (*cut, views(*every, count=3))),  # table 8
        (67.7, ("full", "all", "first", 200, leoclr)),
        (None, (*full, views(JITTER, BLUR, FLIP, anchor=Resize()))),  # figure 4
        (None, (*full, views(BLUR, FLIP, anchor=Resize()))),
        (46.6, (*full, views(anchor=Resize()))),
        (None, (*cut, views(JITTER, BLUR, FLIP))),
        (None, (*cut, views(BLUR, FLIP))),
        (39.5, (*cut, views())),
        (None, (*full, ((Resize(mode="pad"), *every), *views(*every)))),  # how it becomes square
        (None, (*full, ((CenterCrop(), *every), *views(*every)))),
    ]
    found = [(score, row(parse("--config", "imagenet", *options))) for score, options in overrides("imagenet")]
    assert sorted(found, key=str) == sorted(published, key=str)


def test_the_whole_image_is_what_the_recipe_says():
    assert PRESETS["moco_v2_uncropped"] == (Resize(mode="squash"), JITTER, GRAY, BLUR, FLIP)
