"""Every shipped recipe keeps what all recipes promise, and has the values and scores of CLIM's paper."""

from operator import attrgetter

import pytest

from ssl_clim import train
from ssl_core.testing import Recipes
from ssl_core.views import make_view_specs

RECIPES = Recipes(train, words=["CLIM"])
parse, header, overrides = RECIPES.parse, RECIPES.header, RECIPES.overrides


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES.names)
def test_everything_in_the_header_holds(name):
    RECIPES.check_header(name)


@pytest.mark.parametrize("name", RECIPES.names)
@pytest.mark.slow
def test_the_method_builds_at_full_size(name):
    RECIPES.check_full_size(name)


@pytest.mark.parametrize("name", RECIPES.names)
def test_a_shrunk_recipe_takes_a_step(name):
    RECIPES.check_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES.names)
def test_a_recipe_takes_a_folder_of_few_images_without_labels(name, tmp_path):
    RECIPES.check_folder(name, tmp_path)


# -- values, from the specification (docs/papers/clim.md says what the paper leaves open)

IMAGENET = {
    "encoder.name": "resnet50",
    "encoder.stem": "auto",
    "projector.num_layers": 2,
    "projector.hidden_dim": 2048,
    "projector.out_dim": 128,
    "projector.norm": False,
    "projector.last_norm": "none",
    "method.mixing": "cutmix",
    "method.alpha": 2.0,
    "method.per_batch": False,
    "method.ratio": "area",
    "method.reduction": "sum",
    "method.temperature": 0.2,
    "method.queue.length": 65536,
    "method.queue.dtype": "bfloat16",
    "method.momentum.value": 0.999,
    "method.momentum.shuffle": True,
    "method.momentum.batch_norm_splits": 1,
    "neighbours.selection": "center_wise",
    "neighbours.clusters": 10000,
    "neighbours.k": 40,
    "neighbours.positives": 10,
    "neighbours.start_epoch": 5,
    "neighbours.update_every": 5,
    "neighbours.encoder": "momentum",
    "neighbours.features": "projection",
    "neighbours.spherical": False,
    "optim.name": "sgd",
    "optim.lr": 0.03,  # 0.06 for 512
    "optim.scale_lr": True,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "optim.schedule": "cosine_epoch_from_0",
    "optim.warmup_epochs": 0,
    "train.epochs": 200,
    "train.batch_size": 512,
    "train.sync_batch_norm": False,
}
SMALL = {"neighbours.clusters": None}  # a cluster for every 128 images, as on ImageNet
NOTEBOOK = (
    IMAGENET
    | SMALL
    | {
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
        "train.precision": "float32",
        "evaluate.k": 200,
        "evaluate.temperature": 0.1,
        "evaluate.features": "projection",
    }
)
STL10 = (
    IMAGENET
    | SMALL
    | {
        "encoder.name": "resnet18",
        "encoder.stem": "imagenet",
        "projector.hidden_dim": 512,
        "method.queue.dtype": "float32",
        "method.momentum.batch_norm_splits": 8,
        "method.momentum.split_online": True,
        "train.batch_size": 256,
    }
)
VALUES = {
    "imagenet": IMAGENET,
    "imagenet_multi_resolution": IMAGENET,
    "imagenet_multi_resolution_independent": IMAGENET,
    "cifar10": NOTEBOOK,
    "stl10": STL10,
}


@pytest.mark.parametrize("name", VALUES)
def test_the_values_are_those_of_the_specification(name):
    config = parse("--config", name)
    assert {path: attrgetter(path)(config) for path in VALUES[name]} == VALUES[name]


def described(config):
    """(sizes, of the partner, whose draws, how many of them) of each view, and the presets in it."""
    specs = make_view_specs(config.views)
    return [(spec.sizes, spec.partner, spec.derived_from) for spec in specs], {spec.name for spec in specs}


VIEWS = {
    "imagenet": ("moco_v2", 224),
    "cifar10": ("moco_cifar", 32),
    "stl10": ("moco_v2", 96),
    "smoke": ("moco_v2", 16),
}


@pytest.mark.parametrize("name", VIEWS)
def test_the_views_are_query_and_key_of_an_image_and_its_partner(name):
    preset, size = VIEWS[name]
    views = [((size,), partner, None) for partner in (False, True, False, True)]
    assert described(parse("--config", name)) == (views, {preset})


@pytest.mark.parametrize(
    ("name", "parents"),
    [
        ("imagenet_multi_resolution", (None, None, 0, 1)),
        ("imagenet_multi_resolution_independent", (None,) * 4),
    ],
)
def test_at_two_resolutions_the_key_has_the_querys_crop_or_one_of_its_own(name, parents):
    views = [((224, 160), partner, parent) for partner, parent in zip((False, True) * 2, parents, strict=True)]
    assert described(parse("--config", name)) == (views, {"moco_v2"})


# -- scores, copied from the paper's tables

SCORES = {"imagenet": "70.1 (table 10)", "imagenet_multi_resolution": "72.3 (table 13)"}


@pytest.mark.parametrize("name", SCORES)
def test_the_score_is_the_papers(name):
    assert f"linear top-1 {SCORES[name]}" in "\n".join(header(name))


CHANGED = (
    "neighbours.selection",
    "neighbours.k",
    "neighbours.clusters",
    "method.mixing",
    "method.alpha",
    "train.epochs",
)


def row(config):
    return (*(attrgetter(path)(config) for path in CHANGED), *described(config)[0])


@pytest.mark.slow
def test_imagenet_has_every_row_of_the_ablations():
    pair = [((224,), partner, None) for partner in (False, True, False, True)]
    unmixed = [((224,), False, None), ((224,), False, None), ((224,), True, None)]
    crops = [((224,), False, None), *[((96,), False, None)] * 2, ((224,), False, None)]
    crops += [(sizes, True, parent) for sizes, _, parent in crops]

    def of(selection="center_wise", *, k=40, clusters=10000, mixing="cutmix", alpha=2.0, epochs=200, views=pair):
        return (selection, k, clusters, mixing, alpha, epochs, *views)

    no_mixing = {"mixing": "none", "views": unmixed}
    published = {
        of("none"): 67.5,
        of("none", epochs=800): 71.1,  # table 11
        of(epochs=800): 73.7,
        of("random"): 67.1,  # table 6
        of("knn"): None,
        of("kmeans"): None,
        of("knn_kmeans"): None,
        of("random", **no_mixing): 62.3,
        of("knn", **no_mixing): None,
        of("kmeans", **no_mixing): None,
        of("knn_kmeans", **no_mixing): 68.5,
        of(**no_mixing): None,
        of(views=crops): 69.7,  # table 7
        of(k=20): None,  # table 8
        of(k=60): None,
        of(clusters=5000): None,
        of(clusters=20000): None,
        of(alpha=1.0): 69.7,  # table 9
        of(alpha=1.5): 69.9,
        of(alpha=2.5): 69.8,
        of(mixing="mixup", alpha=0.2): 69.5,  # table 10
    }
    found = {}
    for score, options in overrides("imagenet"):
        changed = row(parse("--config", "imagenet", *options))
        if changed != of() and not parse("--config", "imagenet", *options).method.partner_only:
            assert changed not in found
            found[changed] = score
    assert found == published


def test_multi_resolution_has_the_longer_trainings():
    scores = {
        score: parse("--config", "imagenet_multi_resolution", *options).train.epochs
        for score, options in overrides("imagenet_multi_resolution")
        if score is not None
    }
    assert scores == {75.2: 800, 75.5: 1200}


def test_local_crops_of_multi_crop_have_swavs_scale():
    (options,) = [options for score, options in overrides("imagenet") if "crop_scale" in str(options)]
    scales = [view.crop_scale for view in parse("--config", "imagenet", *options).views]
    assert scales == [None, (0.05, 0.14), None, None, (0.05, 0.14), None]
