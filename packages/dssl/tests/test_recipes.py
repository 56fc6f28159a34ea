"""Every shipped recipe keeps what all recipes promise, and has the values and scores of DSSL's paper and code."""

import copy
from dataclasses import asdict, replace
from functools import reduce

import pytest
import torch
from torch import nn

from ssl_core.losses import barlow_twins
from ssl_core.nn import HeadConfig
from ssl_core.testing import Recipes
from ssl_core.train import make_optimizer
from ssl_core.views import PRESETS, make_ops
from ssl_dssl import make_base, train

RECIPES = Recipes(
    train,
    words=["DSSL"],
    keys_per_image=lambda method: 1 if "mocov2" in method.base else 0,
)
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


@pytest.mark.parametrize("name", RECIPES.names)
@pytest.mark.slow
def test_every_override_makes_views_and_weights_that_fit(name):
    for _, options in overrides(name):
        config = parse("--config", name, *options)
        assert len(config.view_specs()) >= 2
        make_base(config.method.base)


# -- values, from the specification (docs/papers/dssl.md says what paper and code leave open)

DSSL = {
    "method.heavy": "paper",
    "method.heavy_source": "derived",
    "method.heavy_per_image": 2,
    "method.naive": "none",
    "method.alpha": 1.0,
    "method.beta": 0.0,
    "method.gamma": 1.0,
    "method.delta": 0.0,
    "method.pairs": None,
    "train.batch_size": 512,
}
CIFAR = DSSL | {
    "encoder.name": "resnet18",
    "encoder.stem": "small",
    "encoder.init": "torch",
    "optim.name": "sgd",
    "optim.lr": 0.03,
    "optim.scale_lr": True,
    "optim.momentum": 0.9,
    "optim.weight_decay": 5e-4,
    "optim.exclude_1d": False,
    "optim.schedule": "cosine_epoch",
    "optim.warmup_epochs": 10,
    "optim.constant_lr": (),
    "train.epochs": 800,
    "train.sync_batch_norm": False,
}
IMAGENET = DSSL | {
    "encoder.name": "resnet50",
    "encoder.stem": "auto",
    "encoder.init": "default",
    "optim.name": "sgd",
    "optim.lr": 0.05,
    "optim.scale_lr": True,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "optim.exclude_1d": False,
    "optim.schedule": "cosine_epoch_from_0",
    "optim.warmup_epochs": 0,
    "optim.constant_lr": (),
    "train.epochs": 100,
    "train.sync_batch_norm": True,
}
LARS = {"optim.name": "lars", "optim.exclude_1d": True, "optim.joint_norm": True}
LARS |= {"optim.schedule": "cosine", "optim.warmup_epochs": 10}


def head(num_layers, hidden_dim, out_dim, *, norm=True, bias=True, last_norm="none"):
    values = locals()
    return {f"projector.{name}": value for name, value in values.items()}


def base(name, **settings):
    return {f"method.base.{name}.{setting.replace('__', '.')}": value for setting, value in settings.items()}


SIMSIAM = {"method.base.simsiam": {}, "predictor": HeadConfig(512, 2048)}
BYOL = base("byol", momentum__value=0.99, momentum__schedule="constant") | {"predictor": HeadConfig(4096, 256)}
VALUES = {
    "cifar10": CIFAR | SIMSIAM | head(2, 2048, 2048, last_norm="plain"),
    "cifar10_ablation": CIFAR | SIMSIAM | head(2, 2048, 2048, last_norm="plain") | {"method.heavy": "ra_2_5"},
    "cifar10_simclr": CIFAR | base("simclr", temperature=0.5) | head(2, 2048, 128, last_norm="scale"),
    "cifar10_byol": CIFAR | BYOL | head(2, 4096, 256),
    "cifar10_mocov2": CIFAR
    | base("mocov2", temperature=0.1, queue__length=4096)
    | base("mocov2", momentum__value=0.99, momentum__batch_norm_splits=8, momentum__split_online=True)
    | head(2, 512, 128, norm=False),
    "cifar10_barlow": CIFAR | base("barlow", off_diagonal_weight=0.0051) | head(3, 2048, 2048, bias=False),
    "imagenet": IMAGENET | SIMSIAM | {"encoder.init": "torch"} | head(3, 2048, 2048, last_norm="affine"),
    "imagenet_byol": IMAGENET | BYOL | head(2, 4096, 256),
    "imagenet_simclr": IMAGENET
    | LARS
    | base("simclr", temperature=0.1)
    | {"optim.lr": 0.3, "optim.weight_decay": 1e-6, "data.mean": (0,), "data.std": (1,)}
    | head(2, 2048, 128, last_norm="scale"),
    "imagenet_mocov2": IMAGENET
    | base("mocov2", temperature=0.2, queue__length=65536, momentum__value=0.999, momentum__batch_norm_splits=1)
    | {"optim.lr": 0.03, "train.sync_batch_norm": False}
    | head(2, 2048, 128, norm=False),
    "imagenet_barlow": IMAGENET
    | LARS
    | base("barlow", off_diagonal_weight=0.0051)
    | {"encoder.init": "zero_residual", "optim.lr": 0.2, "optim.lr_1d": 0.0048 / 8}
    | {"optim.weight_decay": 8 * 1e-6, "optim.final_scale": 0.001}
    | head(3, 8192, 8192, bias=False),
}
VIEWS = {name: ("dssl_cifar", 32) if name.startswith("cifar10") else ("dssl_imagenet", 224) for name in VALUES} | {
    "cifar10_ablation": ("dssl_crop_color", 32),
    "imagenet_simclr": ("simclr_imagenet", 224),
    "smoke": ("dssl_cifar", 16),
}


def value_at(config, path):
    """What stands at a path of keys; the base is a mapping, as in a recipe."""
    return reduce(
        lambda node, key: node[key] if isinstance(node, dict) else getattr(node, key), path.split("."), config
    )


@pytest.mark.parametrize("name", VALUES)
def test_the_values_are_those_of_the_specification(name):
    config = parse("--config", name)
    assert {path: value_at(config, path) for path in VALUES[name]} == VALUES[name]


@pytest.mark.parametrize("name", VIEWS)
def test_standard_views_are_the_same_twice_and_heavy_ones_are_derived_from_them(name):
    augmentation, size = VIEWS[name]
    config = parse("--config", name)
    standard, heavy = PRESETS[augmentation], make_ops(config.method.heavy)
    views = config.view_specs()
    assert [view.ops for view in views] == [standard] * 2 + [(*standard, *heavy)] * 2
    assert [view.derived_from for view in views] == [None, None, 0, 1]
    assert {view.sizes for view in views} == {(size,)}


def barlow_twins_code_on_gpus(network, views, *, gpus, steps, batch_size=512, weight_decay=1e-6):
    """Steps of Barlow Twins' code at its learning rates: 1 / gpus of the loss's gradient, and its LARS."""
    momentum = [torch.zeros_like(parameter) for parameter in network.parameters()]
    for _ in range(steps):
        network.zero_grad()
        barlow_twins(*(network(view) for view in views), off_diagonal_weight=0.0051).backward()
        with torch.no_grad():
            for parameter, velocity in zip(network.parameters(), momentum, strict=True):
                update, lr = parameter.grad / gpus, 0.0048
                if parameter.ndim > 1:
                    update, lr = update + weight_decay * parameter, 0.2
                    update = update * 0.001 * parameter.norm() / update.norm()
                velocity.mul_(0.9).add_(update)
                parameter.sub_(lr * batch_size / 256 * velocity)


def test_barlow_twins_moves_as_its_code_does_on_eight_gpus():
    theirs = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5, bias=False)).double()
    ours = copy.deepcopy(theirs)
    views = torch.randn(2, 32, 6, dtype=torch.float64)
    config = parse("--config", "imagenet_barlow")
    # Weight decay 1e4 times as strong, so that it is seen.
    optim = replace(config.optim, weight_decay=1e4 * config.optim.weight_decay)
    optimizer = make_optimizer(ours, optim, batch_size=config.train.batch_size)
    for _ in range(20):
        optimizer.zero_grad()
        barlow_twins(*(ours(view) for view in views), off_diagonal_weight=0.0051).backward()
        optimizer.step()
    barlow_twins_code_on_gpus(theirs, views, gpus=8, steps=20, weight_decay=1e4 * 1e-6)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


# -- scores, copied from the paper's tables

NONE, NAIVE = {"heavy": "none"}, {"naive": "views"}
FIGURE_1 = {"jigsaw_2": (92.79, 93.56), "jigsaw_4": (89.72, 91.95), "ra_1_1": (88.00, 92.29), "ra_2_1": (82.80, 93.09)}
FIGURE_1 |= {"ra_2_5": (9.78, 94.17), "ua": (91.11, 93.27)}
THREE = ["ra_2_5", "ua", "jigsaw_4"]
SPLIT = {"batch_norm_splits": 8, "split_online": True}
ACTS_AS_EIGHT = {"mocov2": asdict(make_base({"mocov2": {"queue": {"dtype": "bfloat16"}, "momentum": SPLIT}}))}


def naive_and_dssl(heavy, naive, dssl):
    return [(naive, {"heavy": heavy} | NAIVE), (dssl, {"heavy": heavy})]


ROWS = {  # the header's score; then each row, with what of the node `method` differs; None where nothing is published
    "cifar10": (
        94.5,
        [
            (92.1, NONE),
            (None, NAIVE),
            (None, {"naive": "all_pairs"}),
            (None, {}),  # the views of the paper's text
            (None, {"heavy": "cifar_code", "gamma": 0.9, "delta": 0.1}),
            *(row for heavy, scores in FIGURE_1.items() for row in naive_and_dssl(heavy, *scores)),
        ],
    ),
    "cifar10_simclr": (93.2, [(91.5, NONE), (92.2, NAIVE), (None, {"heavy_per_image": 1}), (None, {})]),
    "cifar10_byol": (
        94.7,
        [
            (92.2, NONE),
            (94.4, NAIVE),
            *naive_and_dssl("ra_4_10", 84.1, 94.4),
            *naive_and_dssl("ra_8_16", None, 94.0),
            *naive_and_dssl(["ra_4_10", "jigsaw_4"], None, None),
            *naive_and_dssl(["ra_8_16", "jigsaw_4"], None, None),
        ],
    ),
    "imagenet": (
        68.6,
        # The last two are about networks and about the predictor's learning rate.
        [
            (67.4, NONE),
            (None, NAIVE),
            *naive_and_dssl(THREE, None, 67.7),
            (None, {"heavy": "imagenet_code"}),
            (None, {}),
            (None, {}),
        ],
    ),
    "imagenet_byol": (
        68.3,
        [
            (67.8, NONE),
            (68.3, NAIVE),
            *naive_and_dssl("ra_8_16", 60.6, 67.8),
            *naive_and_dssl(["ra_8_16", "jigsaw_4"], None, None),
            *naive_and_dssl(THREE, 67.1, 69.3),
            (None, {"heavy": "byol_harder"}),
        ],
    ),
    "imagenet_simclr": (
        60.3,
        [(59.5, NONE), (60.0, NAIVE), *naive_and_dssl(THREE, 55.7, 60.8), (None, {"heavy_per_image": 1})],
    ),
    # Lines without settings of the method are about views and optimizer.
    "imagenet_mocov2": (
        65.3,
        [(64.4, NONE), (64.2, NAIVE), (None, {"heavy_per_image": 1}), (None, {"base": ACTS_AS_EIGHT}), (None, {})],
    ),
    "imagenet_barlow": (62.6, [(62.4, NONE), (62.0, NAIVE), (None, {"heavy_per_image": 1}), *5 * [(None, {})]]),
    "cifar10_ablation": (
        94.2,
        [
            (None, {"naive": "all_pairs"}),
            (59.7, {"heavy_source": "image", "delta": 1.0}),
            (20.4, {"heavy_source": "independent", "delta": 1.0}),
            (None, {"beta": 1.0}),
            (93.1, {"heavy_source": "image"}),
            (None, {"delta": 1.0}),
            (93.7, {"heavy_source": "independent"}),
            (None, {}),  # views without grayscale
            *((None, {"gamma": round(1 - tenths / 10, 1), "delta": tenths / 10}) for tenths in range(1, 11)),
        ],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_header_has_every_row_of_the_papers_tables_and_figures(name):
    score, rows = ROWS[name]
    assert f"linear top-1 {score}" in "\n".join(header(name))
    default = vars(parse("--config", name).method)
    found = []
    for published, options in overrides(name):
        method = vars(parse("--config", name, *options).method)
        found.append((published, {key: value for key, value in method.items() if value != default[key]}))
    assert sorted(found, key=str) == sorted(rows, key=str)


def test_the_byol_code_augments_standard_views_too():
    (options,) = [options for _, options in overrides("imagenet_byol") if "byol_harder" in options]
    config = parse("--config", "imagenet_byol", *options)
    assert [view.ops for view in config.view_specs()[:2]] == [PRESETS["dssl_byol"]] * 2


def test_simsiams_own_code_keeps_the_predictors_learning_rate():
    (options,) = [options for _, options in overrides("imagenet") if "--optim.constant_lr" in options]
    assert parse("--config", "imagenet", *options).optim.constant_lr == ("predictor",)
