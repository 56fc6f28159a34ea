import copy
import math

import pytest
import torch
from timm.optim import Lars
from torch import nn

from ssl_core.train.optim import OptimConfig, make_optimizer, scaled_learning_rate


def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    nn.init.uniform_(layers[1].weight)
    return layers


def take_steps(module, optimizer, num_steps=4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_steps):
        optimizer.zero_grad()
        module(torch.randn(8, 3, generator=generator)).square().sum().backward()
        optimizer.step()


def one_step(parameter, grad, config):
    """The parameter after one step with a given gradient."""
    module = nn.Module()
    module.parameter = nn.Parameter(torch.tensor(parameter))
    optimizer = make_optimizer(module, config, batch_size=256)
    module.parameter.grad = torch.tensor(grad)
    optimizer.step()
    return module.parameter.detach()


def test_sgd_step_by_hand():
    # w - lr (g + decay w) = 2 - 0.5 (1 + 0.1 * 2) = 1.4
    config = OptimConfig(lr=0.5, weight_decay=0.1)
    torch.testing.assert_close(one_step([2.0], [1.0], config), torch.tensor([1.4]))


def test_lars_step_by_hand():
    # |w| = 5, |g| = 2, decay 0.2: trust 0.01 * 5 / (2 + 0.2 * 5) = 1/60; g + decay w = (2.6, 0.8).
    config = OptimConfig("lars", lr=6.0, weight_decay=0.2, trust_coefficient=0.01)
    expected = torch.tensor([[3.0 - 0.26, 4.0 - 0.08]])
    torch.testing.assert_close(one_step([[3.0, 4.0]], [[2.0, 0.0]], config), expected)


def test_lars_adapts_without_weight_decay_too():
    # trust 0.01 * 5 / 2 = 0.025
    config = OptimConfig("lars", lr=1.0, weight_decay=0.0, trust_coefficient=0.01)
    expected = torch.tensor([[3.0 - 0.05, 4.0]])
    torch.testing.assert_close(one_step([[3.0, 4.0]], [[2.0, 0.0]], config), expected)


def test_lars_equals_timms_with_the_exclusions_as_groups():
    ours, theirs = network(), network()
    config = OptimConfig("lars", lr=0.3, scale_lr=False, weight_decay=1e-2, exclude_1d=True)
    matrices = [parameter for parameter in theirs.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in theirs.parameters() if parameter.ndim == 1]
    reference = Lars(
        [{"params": matrices, "weight_decay": 1e-2}, {"params": vectors}],
        lr=0.3,
        momentum=0.9,
        trust_coeff=0.001,
    )
    take_steps(ours, make_optimizer(ours, config, batch_size=64))
    take_steps(theirs, reference)
    for ours_p, theirs_p in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours_p, theirs_p)


def released_lars(module, losses, *, lr, lr_1d, weight_decay):
    """LARS of the released codes of SCE, MoCo v3 and Barlow Twins: trust |w| / |g + decay w|, plain SGD for vectors."""
    velocities = [torch.zeros_like(parameter) for parameter in module.parameters()]
    for loss in losses:
        module.zero_grad()
        loss(module).backward()
        with torch.no_grad():
            for parameter, velocity in zip(module.parameters(), velocities, strict=True):
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update + weight_decay * parameter
                    update = update * 0.001 * parameter.norm() / update.norm()
                velocity.mul_(0.9).add_(update)
                parameter.sub_((lr if parameter.ndim > 1 else lr_1d) * velocity)


def losses(num_steps=50):
    for step in range(num_steps):
        images = torch.randn(8, 3, generator=torch.Generator().manual_seed(step)).double()
        yield lambda module, images=images: (module(images) - images[:, :2]).square().mean()


@pytest.mark.parametrize(("joint_norm", "is_same"), [(True, True), (False, False)])
def test_lars_divides_by_the_norm_of_the_released_codes_where_asked(joint_norm, is_same):
    ours, theirs = network().double(), network().double()
    numbers = {"lr": 4.8, "lr_1d": 0.01, "weight_decay": 1e-2}
    config = OptimConfig("lars", scale_lr=False, exclude_1d=True, joint_norm=joint_norm, **numbers)
    optimizer = make_optimizer(ours, config, batch_size=64)
    for loss in losses():
        optimizer.zero_grad()
        loss(ours).backward()
        optimizer.step()
    released_lars(theirs, losses(), **numbers)
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    distance = max(((one - other).norm() / other.norm()).item() for one, other in pairs)
    # Here 3e-8, for timm adds 1e-8 to the divisor, and 3e-2.
    assert (distance < 1e-6) == is_same, distance


def test_vectors_that_are_not_excluded_decay_in_the_joint_norm_too():
    # |w| = 5, g + 0.2 w = (2.6, 0.8): trust 0.01 * 5 / sqrt(7.4), times 6 and the sum.
    config = OptimConfig("lars", lr=6.0, weight_decay=0.2, trust_coefficient=0.01, joint_norm=True)
    step = 0.3 / math.sqrt(7.4)
    expected = torch.tensor([3.0 - 2.6 * step, 4.0 - 0.8 * step])
    torch.testing.assert_close(one_step([3.0, 4.0], [2.0, 0.0], config), expected)


def test_excluded_vectors_get_plain_sgd():
    config = OptimConfig("lars", lr=0.5, weight_decay=0.1, exclude_1d=True)
    torch.testing.assert_close(one_step([2.0], [1.0], config), torch.tensor([1.5]))


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_exclusion_takes_weight_decay_from_vectors_only(name):
    module = network()
    optimizer = make_optimizer(module, OptimConfig(name, weight_decay=0.1, exclude_1d=True), batch_size=256)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[id(p)] for p in module.parameters()] == [0.1 if p.ndim > 1 else 0.0 for p in module.parameters()]


def test_without_exclusion_everything_decays():
    optimizer = make_optimizer(network(), OptimConfig(weight_decay=0.1), batch_size=256)
    assert {group["weight_decay"] for group in optimizer.param_groups if group["params"]} == {0.1}


def test_only_parameters_that_ask_for_gradient_are_optimized():
    module = network()
    module[0].requires_grad_(False)
    optimizer = make_optimizer(module, OptimConfig(), batch_size=256)
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in module.parameters() if p.requires_grad}


def test_a_module_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="Linear has no parameter"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig(), batch_size=256)


def test_adamw_takes_momentum_as_its_first_beta():
    optimizer = make_optimizer(network(), OptimConfig("adamw", momentum=0.8), batch_size=256)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.999)


def test_the_learning_rate_scales_with_the_batch():
    assert scaled_learning_rate(OptimConfig(lr=0.03), 512) == 0.06
    assert scaled_learning_rate(OptimConfig(lr=0.03, scale_lr=False), 512) == 0.03
    assert make_optimizer(network(), OptimConfig(lr=0.03), batch_size=512).param_groups[0]["lr"] == 0.06


@pytest.mark.parametrize("name", ["sgd", "lars", "lars in the joint norm", "adamw"])
def test_a_restored_optimizer_continues_to_the_bit(name):
    config = OptimConfig(name.split()[0], lr=0.01, exclude_1d=True, joint_norm=name.endswith("norm"))
    module = network()
    optimizer = make_optimizer(module, config, batch_size=256)
    take_steps(module, optimizer)
    again = copy.deepcopy(module)
    restored = make_optimizer(again, config, batch_size=256)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(module, optimizer)
    take_steps(again, restored)
    for one, other in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


class Predicting(nn.Module):
    """An encoder and a predictor, each with matrices and vectors; a part that is not trained."""

    def __init__(self):
        super().__init__()
        self.encoder = network()
        self.predictor = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)

    def forward(self, images):
        return self.predictor(self.encoder(images))


def options_of(module, config, key):
    """What the group of each trainable parameter says, by the parameter's name."""
    groups = make_optimizer(module, config, batch_size=512).param_groups
    found = {id(parameter): group.get(key) for group in groups for parameter in group["params"]}
    return {name: found[id(parameter)] for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_vectors_have_a_learning_rate_of_their_own():
    module = Predicting()
    config = OptimConfig(lr=0.2, lr_1d=0.05)  # twice that at 512 images
    rates, scales = (options_of(module, config, key) for key in ("lr", "lr_scale"))
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert rates[name] == pytest.approx(0.4 if parameter.ndim == 2 else 0.1)
            assert scales[name] == (None if parameter.ndim == 2 else 0.25)


@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        (("predictor",), ("predictor.",)),
        (("encoder.2", "predictor"), ("encoder.2.", "predictor.")),
        (("encoder", "encoder.2"), ("encoder.",)),
        (("encoder", "predictor"), ("encoder.", "predictor.")),
    ],
    ids=["predictor", "nested", "overlapping", "all"],
)
def test_only_named_parts_have_a_constant_learning_rate(parts, prefixes):
    for name, constant in options_of(Predicting(), OptimConfig(constant_lr=parts), "constant_lr").items():
        assert constant is (True if name.startswith(prefixes) else None)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
@pytest.mark.parametrize("exclude_1d", [True, False])
@pytest.mark.parametrize("lr_1d", [None, 0.1])
@pytest.mark.parametrize("constant_lr", [(), ("predictor",)])
def test_each_trainable_parameter_is_in_one_group_and_has_the_weight_decay_of_its_dimension(
    name, exclude_1d, lr_1d, constant_lr
):
    module = Predicting()
    config = OptimConfig(name, exclude_1d=exclude_1d, lr_1d=lr_1d, constant_lr=constant_lr, weight_decay=0.1)
    optimizer = make_optimizer(module, config, batch_size=256)
    optimized = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(optimized) == sorted(id(parameter) for parameter in module.parameters() if parameter.requires_grad)
    decay = options_of(module, config, "weight_decay")
    adapt = options_of(module, config, "always_adapt")
    for name_of, parameter in module.named_parameters():
        if parameter.requires_grad:
            excluded = exclude_1d and parameter.ndim == 1
            assert decay[name_of] == (0.0 if excluded else 0.1)
            if name == "lars":
                assert adapt[name_of] is not excluded


@pytest.mark.parametrize(("exclude_1d", "sizes"), [(True, [4, 6]), (False, [10, 0])])
def test_without_rates_of_their_own_there_are_two_groups_which_checkpoints_know_by_order(exclude_1d, sizes):
    module = Predicting()
    groups = make_optimizer(module, OptimConfig(exclude_1d=exclude_1d), batch_size=256).param_groups
    assert [len(group["params"]) for group in groups] == sizes
    assert all(not {"lr_scale", "constant_lr"} & group.keys() for group in groups)


@pytest.mark.parametrize("name", ["predictr", "target", "predictor.1", ""])
def test_a_part_without_trainable_parameters_is_refused_with_those_that_have_some(name):
    message = f"optim.constant_lr names '{name}', .* of Predicting .*; it has encoder, predictor$"
    with pytest.raises(ValueError, match=message):
        make_optimizer(Predicting(), OptimConfig(constant_lr=("encoder", name)), batch_size=256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"milestones": (60, 80)}, "optim.schedule step"),
        ({"name": "adamw", "nesterov": True}, "optim.nesterov"),
        ({"joint_norm": True}, "optim.joint_norm needs optim.name lars, not sgd"),
        ({"final_scale": 2.0}, "optim.final_scale must be between 0 and 1, got 2.0"),
        ({"final_scale": 0.1, "schedule": "cosine_epoch"}, "needs optim.schedule cosine, not cosine_epoch"),
        ({"warmup_epochs": -1}, "got -1"),
        ({"lr": -1.0}, "optim.lr must be a finite number of at least 0, got -1.0"),
        ({"lr": float("nan")}, "got nan"),
        ({"lr_1d": -0.1}, "got -0.1 and 0.06"),
        ({"lr": 0.0, "lr_1d": 0.1}, "got 0.1 and 0.0"),
    ],
    ids=[
        "milestones",
        "nesterov",
        "joint-norm",
        "final-scale",
        "final-scale-of-epochs",
        "warm-up",
        "negative",
        "nan",
        "lr_1d",
        "lr",
    ],
)
def test_settings_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**options)
