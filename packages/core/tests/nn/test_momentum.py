import copy

import pytest
import torch
from torch import nn

from ssl_core.nn import (
    EncoderConfig,
    MomentumBranch,
    MomentumConfig,
    SplitBatchNorm,
    make_encoder,
    mlp_head,
)
from ssl_core.train import Step

STEP = Step(index=3, total=10, steps_per_epoch=5)


def online_modules():
    encoder = make_encoder(
        EncoderConfig("resnet18", options={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}), channels=3, image_size=16
    )
    return encoder, mlp_head(8, 16, 8)


def moved(modules):
    """The online modules after some training: every parameter elsewhere."""
    for module in modules:
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return modules


def test_the_branch_is_an_equal_separate_copy_without_gradient():
    online = online_modules()
    branch = MomentumBranch(*online, MomentumConfig())
    for name, module in zip(("encoder", "projector"), online, strict=True):
        for key, value in module.state_dict().items():
            copied = branch.state_dict()[f"{name}.{key}"]
            assert torch.equal(copied, value)
            assert copied.data_ptr() != value.data_ptr()
        assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(parameter.requires_grad for parameter in branch.parameters())


def test_the_branch_follows_the_mode_of_its_owner():
    owner = nn.Module()
    owner.branch = MomentumBranch(*online_modules(), MomentumConfig())
    assert owner.branch.encoder.training
    assert not owner.eval().branch.encoder.training


def test_keys_are_normalized_and_those_of_the_online_modules_at_first():
    encoder, projector = online_modules()
    images = torch.randn(8, 3, 16, 16)
    keys = MomentumBranch(encoder, projector, MomentumConfig(shuffle=False))(images, STEP)
    expected = nn.functional.normalize(projector(encoder(images)), dim=1)
    torch.testing.assert_close(keys, expected.detach())


def test_the_update_averages_parameters_and_leaves_statistics_alone():
    online = online_modules()
    branch = MomentumBranch(*online, MomentumConfig(0.75))
    before = copy.deepcopy(branch.state_dict())
    moved(online)
    online[0](torch.randn(8, 3, 16, 16))
    branch.update_(*online, STEP)
    trained = {
        f"{name}.{key}": value
        for name, module in zip(("encoder", "projector"), online, strict=True)
        for key, value in module.state_dict().items()
    }
    parameters = dict(branch.named_parameters())
    for name, value in branch.state_dict().items():
        expected = torch.lerp(before[name], trained[name], 0.25) if name in parameters else before[name]
        torch.testing.assert_close(value, expected)


def test_views_steps_and_micro_batches_have_permutations_of_their_own(monkeypatch):
    orders = []
    monkeypatch.setattr(
        "ssl_core.nn.momentum.distributed.shuffle", lambda images, order: orders.append(order) or images
    )
    branch = MomentumBranch(nn.Flatten(), nn.Identity(), MomentumConfig())
    for step, view in [(STEP, 0), (STEP, 1), (STEP._replace(index=4), 0), (STEP._replace(micro=1), 0)]:
        branch(torch.randn(32, 3, 1, 1), step, view)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert all(sorted(order.tolist()) == list(range(32)) for order in orders)


def test_shuffling_gives_each_image_its_own_key():
    branch = MomentumBranch(nn.Flatten(), nn.Identity(), MomentumConfig())
    images = torch.randn(16, 5, 1, 1)
    torch.testing.assert_close(branch(images, STEP), nn.functional.normalize(images.flatten(1), dim=1))


def test_only_the_momentum_encoder_is_split():
    online = online_modules()
    branch = MomentumBranch(*online, MomentumConfig(0.5, batch_norm_splits=2))
    assert any(isinstance(layer, SplitBatchNorm) for layer in branch.encoder.modules())
    assert not any(isinstance(layer, SplitBatchNorm) for module in online for layer in module.modules())


def test_split_online_splits_the_online_encoder_too_in_place():
    online = online_modules()
    branch = MomentumBranch(*online, MomentumConfig(batch_norm_splits=2, split_online=True))
    for encoder in (branch.encoder, online[0]):
        norms = [layer for layer in encoder.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        assert {(type(layer), layer.num_splits) for layer in norms} == {(SplitBatchNorm, 2)}


def test_a_cosine_schedule_ends_at_one_and_a_constant_one_stays():
    steps = [Step(index, total=3, steps_per_epoch=1) for index in range(3)]
    assert [MomentumConfig(0.9, "cosine").at(step) for step in steps] == pytest.approx([0.9, 0.95, 1.0])
    assert [MomentumConfig(0.9).at(step) for step in steps] == [0.9] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"value": 1.5}, "momentum.value must be between 0 and 1, got 1.5"),
        ({"value": -1.0}, "momentum.value must be between 0 and 1, got -1.0"),
        ({"batch_norm_splits": 0}, "momentum.batch_norm_splits must be at least 1, got 0"),
    ],
    ids=["above", "below", "splits"],
)
def test_numbers_outside_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MomentumConfig(**settings)


# -- the bfloat16 copy of the weights


@pytest.fixture
def branches():
    """The same branch with and without a bfloat16 copy, and the online modules."""
    online = online_modules()
    plain = MomentumBranch(*online, MomentumConfig(0.5, batch_norm_splits=2))
    rounded = copy.deepcopy(plain)
    rounded.use_bfloat16_weights_()
    return plain, rounded, online


def keys_of(branch, images):
    with torch.autocast("cpu", torch.bfloat16):
        return branch(images, STEP)


def assert_same(plain, rounded):
    """Keys, parameters and running statistics agree to the last bit, in training and in evaluation."""
    for training in (True, False):
        images = torch.randn(8, 3, 16, 16)
        assert torch.equal(keys_of(plain.train(training), images), keys_of(rounded.train(training), images))
    assert plain.state_dict().keys() == rounded.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, rounded.state_dict()[name]), name


def test_a_bfloat16_copy_gives_the_keys_of_autocast(branches):
    plain, rounded, _ = branches
    assert_same(plain, rounded)


def test_a_bfloat16_copy_follows_the_updates(branches):
    plain, rounded, online = branches
    images = torch.ones(8, 3, 16, 16)
    before = keys_of(rounded.eval(), images)
    moved(online)
    for branch in (plain, rounded):
        branch.update_(*online, STEP)
    assert_same(plain, rounded)
    assert not torch.equal(keys_of(rounded, images), before)


def test_a_bfloat16_copy_follows_a_loaded_state(branches):
    plain, rounded, online = branches
    plain.update_(*moved(online), STEP)
    owner = nn.Module()
    owner.branch = rounded
    owner.load_state_dict({f"branch.{name}": value for name, value in plain.state_dict().items()})
    assert_same(plain, rounded)


def test_a_bfloat16_copy_is_what_runs(branches):
    _, rounded, _ = branches
    dtypes = []
    for module in rounded._twins:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(lambda layer, *_: dtypes.append(layer.weight.dtype))
    keys_of(rounded, torch.randn(8, 3, 16, 16))
    assert len(dtypes) > 5
    assert set(dtypes) == {torch.bfloat16}
