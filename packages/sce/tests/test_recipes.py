"""Every shipped recipe keeps what all recipes promise, and has the values and scores of SCE's paper."""

from operator import attrgetter

import pytest
import torch

from ssl_core.nn import HeadConfig
from ssl_core.testing import Recipes
from ssl_core.train import make_optimizer
from ssl_sce import train

RECIPES = Recipes(train, words=["SCE", "MoCo", "ReSSL"], keys_per_image=lambda method: 1 + method.symmetric)
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


# -- values, from the specification (docs/papers/sce.md says where paper and code differ)

CIFAR = {
    "encoder.name": "resnet18",
    "encoder.init": "torch_stem",
    "projector.num_layers": 2,
    "projector.hidden_dim": 512,
    "projector.out_dim": 128,
    "projector.norm": True,
    "projector.last_norm": "none",
    "predictor": None,
    "method.queue.length": 4096,
    "method.temperature": 0.1,
    "method.target_temperature": 0.05,
    "method.coefficient": 0.5,
    "method.weights": None,
    "method.symmetric": False,
    "method.momentum.value": 0.99,
    "method.momentum.schedule": "constant",
    "method.momentum.shuffle": True,
    "method.momentum.batch_norm_splits": 8,
    "method.momentum.split_online": False,
    "optim.name": "sgd",
    "optim.lr": 0.06,
    "optim.scale_lr": True,
    "optim.momentum": 0.9,
    "optim.weight_decay": 5e-4,
    "optim.exclude_1d": False,
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 5,
    "train.epochs": 200,
    "train.batch_size": 256,
    "train.sync_batch_norm": False,
}
MEDIUM = CIFAR | {"encoder.init": "default", "method.queue.length": 16384, "method.momentum.value": 0.996}
IMAGENET100 = CIFAR | {
    "encoder.name": "resnet50",
    "encoder.init": "default",
    "projector.hidden_dim": 4096,
    "projector.out_dim": 256,
    "projector.norm": False,
    "method.queue.length": 65536,
    "method.queue.dtype": "bfloat16",
    "method.target_temperature": 0.07,
    "method.momentum.value": 0.996,
    "method.momentum.schedule": "cosine",
    "method.momentum.batch_norm_splits": 1,
    "optim.lr": 0.3,
    "optim.weight_decay": 1e-4,
    "train.batch_size": 512,
}
IMAGENET = IMAGENET100 | {
    "projector.num_layers": 3,
    "projector.hidden_dim": 2048,
    "projector.norm": True,
    "projector.last_norm": "plain",
    "optim.lr": 0.5,
}
LARGE_BATCH = IMAGENET | {
    "predictor": HeadConfig(num_layers=2, hidden_dim=4096, out_dim=256, bias=False),
    "method.symmetric": True,
    "method.momentum.value": 0.99,
    "method.momentum.shuffle": False,
    "optim.name": "lars",
    "optim.lr": 0.6,
    "optim.weight_decay": 1e-6,
    "optim.exclude_1d": True,
    "optim.joint_norm": True,
    "optim.trust_coefficient": 0.001,
    "optim.warmup_epochs": 10,
    "train.epochs": 100,
    "train.batch_size": 4096,
    "train.sync_batch_norm": True,
}
MULTICROP = LARGE_BATCH | {"projector.hidden_dim": 4096, "optim.lr": 0.3, "train.epochs": 200}
MOCO_NOTEBOOK = CIFAR | {
    "projector.num_layers": 1,
    "projector.hidden_dim": HeadConfig().hidden_dim,  # of no effect
    "method.coefficient": 1.0,
    "method.momentum.split_online": True,
    "optim.scale_lr": False,
    "optim.schedule": "cosine_epoch",
    "optim.warmup_epochs": 0,
    "train.batch_size": 512,
    "train.precision": "float32",
    "evaluate.k": 200,
    "evaluate.temperature": 0.1,
    "evaluate.features": "projection",
}
VALUES = {
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "stl10": MEDIUM,
    "tiny_imagenet": MEDIUM,
    "imagenet100": IMAGENET100,
    "imagenet": IMAGENET,
    "imagenet_large_batch": LARGE_BATCH,
    "imagenet_multicrop": MULTICROP,
    "moco_cifar10": MOCO_NOTEBOOK,
}
VIEWS = {  # augmentation, size and crop scale of each view
    "cifar10": [("weak", 32, None), ("strong", 32, None)],
    "cifar100": [("weak", 32, None), ("strong", 32, None)],
    "stl10": [("weak", 64, None), ("strong", 64, None)],
    "tiny_imagenet": [("weak", 64, None), ("strong", 64, None)],
    "imagenet100": [("weak", 224, None), ("strong", 224, None)],
    "imagenet": [("weak", 224, None), ("strong", 224, None)],
    "imagenet_large_batch": [("strong_alpha", 224, None), ("strong_beta", 224, None)],
    "imagenet_multicrop": [
        ("strong_alpha", 224, None),
        ("strong_beta", 224, None),
        ("strong_gamma", 192, (0.172, 0.86)),
        ("strong_gamma", 160, (0.143, 0.715)),
        ("strong_gamma", 128, (0.114, 0.571)),
        ("strong_gamma", 96, (0.086, 0.429)),
    ],
    "moco_cifar10": [("moco_cifar", 32, None)] * 2,
}


@pytest.mark.parametrize("name", VALUES)
def test_the_values_are_those_of_the_specification(name):
    config = parse("--config", name)
    assert {path: attrgetter(path)(config) for path in VALUES[name]} == VALUES[name]
    views = [(view.augmentation, view.size, view.crop_scale) for view in config.views for _ in range(view.count)]
    assert views == VIEWS[name]


def test_the_sum_of_two_losses_is_their_mean_at_twice_the_rate_and_half_the_decay():
    recipe = parse("--config", "moco_cifar10")
    symmetric = [
        parse("--config", "moco_cifar10", *options)
        for _, options in overrides("moco_cifar10")
        if "--method.symmetric" in options
    ]
    assert {(config.optim.lr, config.optim.weight_decay) for config in symmetric} == {
        (2 * recipe.optim.lr, recipe.optim.weight_decay / 2)
    }
    weights = [torch.nn.Linear(3, 1, bias=False).double() for _ in range(2)]
    weights[1].load_state_dict(weights[0].state_dict())
    for weight, config, scale in zip(weights, (recipe, symmetric[0]), (1.0, 0.5), strict=True):
        optimizer = make_optimizer(weight, config.optim, batch_size=512)
        for step in range(3):
            optimizer.zero_grad()
            (scale * (weight.weight + step).pow(2).sum()).backward()
            optimizer.step()
    torch.testing.assert_close(weights[0].weight, weights[1].weight)


# -- scores, copied from the paper's tables

TABLE_5 = {  # MoCo v2, ReSSL (both reproductions), SCE
    "imagenet": (68.8, 70.2, 70.5),
    "imagenet100": (80.46, 81.58, 83.37),
    "cifar10": (87.56, 90.20, 90.34),
    "cifar100": (61.00, 64.01, 65.45),
    "stl10": (86.53, 89.05, 89.94),
    "tiny_imagenet": (45.93, 49.47, 51.90),
}
TABLE_1 = dict(
    zip(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        (81.53, 81.77, 82.54, 82.81, 82.91, 82.94, 82.17, 81.58, 81.75, 81.79, 81.11),
        strict=True,
    )
)
TABLE_3 = {  # at tau_m 0.05 and 0.07
    (1.0, 0.0, 0.0): (81.11, 81.11),
    (0.5, 0.5, 0.0): (82.80, 82.49),
    (0.5, 0.5, 0.5): (82.94, 83.37),
    (0.0, 1.0, 0.0): (80.79, 78.35),
    (0.0, 1.0, 1.0): (81.53, 79.64),
}
TABLE_4 = {  # online, target, symmetric
    ("strong", "weak", False): 82.94,
    ("strong_gamma", "weak", False): 83.00,
    ("weak", "strong", False): 73.43,
    ("strong", "strong", False): 80.54,
    ("strong_alpha", "strong_beta", False): 80.74,
    ("strong", "weak", True): 83.66,
    ("strong", "strong", True): 83.00,
    ("strong_alpha", "strong_beta", True): 84.17,
}
TABLE_6 = {  # at tau 0.1 and 0.2
    0.03: (82.33, 81.28),
    0.04: (82.52, 81.15),
    0.05: (82.94, 81.19),
    0.06: (82.54, 81.19),
    0.07: (83.37, 81.13),
    0.08: (82.71, 80.91),
    0.09: (82.53, 81.18),
    0.10: (82.07, 81.20),
}


def row(config):
    """What tells a row of the ablations from another."""
    method, (target, online) = config.method, [view.augmentation for view in config.views]
    return (
        method.weights or (method.coefficient, 1 - method.coefficient, 1 - method.coefficient),
        method.temperature,
        method.target_temperature,
        (online, target, method.symmetric),
    )


def scored(name):
    return [(score, parse("--config", name, *options)) for score, options in overrides(name) if score is not None]


@pytest.mark.slow
def test_imagenet100_has_every_row_of_the_ablations_with_its_score():
    half, usual = (0.5, 0.5, 0.5), ("strong", "weak", False)
    published = [(score, ((c, 1 - c, 1 - c), 0.1, 0.05, usual)) for c, score in TABLE_1.items()]
    for weights, scores in TABLE_3.items():
        published += [(scores[0], (weights, 0.1, 0.05, usual)), (scores[1], (weights, 0.1, 0.07, usual))]
    published += [(score, (half, 0.1, 0.05, views)) for views, score in TABLE_4.items()]
    for tau_m, scores in TABLE_6.items():
        published += [(scores[0], (half, 0.1, tau_m, usual)), (scores[1], (half, 0.2, tau_m, usual))]
    baselines = TABLE_5["imagenet100"]
    published += [(baselines[0], ((1.0, 0.0, 0.0), 0.2, 0.07, usual))]
    published += [(baselines[1], ((0.0, 1.0, 0.0), 0.1, 0.04, usual))]
    assert sorted((score, row(config)) for score, config in scored("imagenet100")) == sorted(published)


@pytest.mark.parametrize("name", TABLE_5)
def test_the_score_of_table_5_is_in_the_header(name):
    assert f"top-1 {TABLE_5[name][2]:.{1 if name == 'imagenet' else 2}f} (table 5" in "\n".join(header(name))


@pytest.mark.parametrize("name", ["imagenet", "cifar100", "stl10", "tiny_imagenet"])
def test_the_baselines_of_table_5_are_overrides(name):
    moco, ressl = [(score, config.method) for score, config in scored(name)]
    assert (moco[0], ressl[0]) == TABLE_5[name][:2]
    assert (moco[1].coefficient, moco[1].weights, moco[1].temperature) == (1.0, None, 0.2)
    assert (ressl[1].weights, ressl[1].temperature, ressl[1].target_temperature) == ((0.0, 1.0, 0.0), 0.1, 0.04)


def test_moco_v2_on_imagenet_has_the_projector_of_imagenet100():
    moco = next(config for score, config in scored("imagenet") if score == 68.8)
    assert moco.projector == parse("--config", "imagenet100").projector


def test_the_baselines_on_cifar10_are_sces_recipe_but_for_the_stated_difference():
    moco = ["--method.coefficient", "1", "--method.temperature", "0.2"]
    assert parse("--config", "mocov2_cifar10") == parse("--config", "cifar10", *moco)
    ressl = ["--method.weights", "[0,1,0]", "--method.target_temperature", "0.04"]
    assert parse("--config", "ressl_cifar10") == parse("--config", "cifar10", *ressl)
    for name, score in zip(("mocov2_cifar10", "ressl_cifar10"), TABLE_5["cifar10"], strict=False):
        assert f"top-1 {score:.2f} (table 5" in "\n".join(header(name))


def test_longer_large_batch_runs_have_their_published_scores():
    def settings(score, config):
        return score, config.train.epochs, config.optim.lr, config.optim.weight_decay, config.method.momentum.value

    assert [settings(score, config) for score, config in scored("imagenet_large_batch")] == [
        (72.7, 200, 0.3, 1e-6, 0.99),
        (73.3, 300, 0.3, 1e-6, 0.99),
        (74.1, 1000, 0.3, 1.5e-6, 0.996),
    ]
