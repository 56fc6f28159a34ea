import copy

import pytest
import torch
from torch import nn

from ssl_core.nn import EncoderConfig, MomentumBranch, SplitBatchNorm, make_encoder, mlp_head, momentum_copy
from ssl_core.train import Step

STEP = Step(index=3, total=10, steps_per_epoch=5)


def test_the_copy_is_equal_separate_and_without_gradient():
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    online(torch.randn(8, 3))
    copy = momentum_copy(online)
    for key, value in online.state_dict().items():
        assert torch.equal(copy.state_dict()[key], value)
        assert copy.state_dict()[key].data_ptr() != value.data_ptr()
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert all(parameter.requires_grad for parameter in online.parameters())


def test_the_copy_follows_the_mode_of_its_owner():
    owner = nn.Module()
    owner.online = nn.BatchNorm1d(2)
    owner.momentum = momentum_copy(owner.online)
    assert owner.momentum.training
    assert not owner.eval().momentum.training


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


def test_keys_are_normalised_and_those_of_the_online_modules_at_first():
    encoder, projector = online_modules()
    images = torch.randn(8, 3, 16, 16)
    keys = MomentumBranch(encoder, projector, shuffle=False)(images, STEP)
    expected = nn.functional.normalize(projector(encoder(images)), dim=1)
    torch.testing.assert_close(keys, expected.detach())


def test_the_update_averages_parameters_and_leaves_statistics_alone():
    online = online_modules()
    branch = MomentumBranch(*online)
    before = copy.deepcopy(branch.state_dict())
    moved(online)
    online[0](torch.randn(8, 3, 16, 16))
    branch.update_(*online, momentum=0.75)
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
    branch = MomentumBranch(nn.Flatten(), nn.Identity())
    for step, view in [(STEP, 0), (STEP, 1), (STEP._replace(index=4), 0), (STEP._replace(micro=1), 0)]:
        branch(torch.randn(32, 3, 1, 1), step, view)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert all(sorted(order.tolist()) == list(range(32)) for order in orders)


def test_shuffling_gives_each_image_its_own_key():
    branch = MomentumBranch(nn.Flatten(), nn.Identity())
    images = torch.randn(16, 5, 1, 1)
    torch.testing.assert_close(branch(images, STEP), nn.functional.normalize(images.flatten(1), dim=1))


def test_only_the_momentum_encoder_is_split():
    online = online_modules()
    branch = MomentumBranch(*online, batch_norm_splits=2)
    assert any(isinstance(layer, SplitBatchNorm) for layer in branch.encoder.modules())
    assert not any(isinstance(layer, SplitBatchNorm) for module in online for layer in module.modules())


def test_split_online_splits_the_online_encoder_too_in_place():
    online = online_modules()
    branch = MomentumBranch(*online, batch_norm_splits=2, split_online=True)
    for encoder in (branch.encoder, online[0]):
        norms = [layer for layer in encoder.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        assert {(type(layer), layer.num_splits) for layer in norms} == {(SplitBatchNorm, 2)}


# -- the bfloat16 copy of the weights


@pytest.fixture
def branches():
    """The same branch with and without a bfloat16 copy, and the online modules."""
    online = online_modules()
    plain = MomentumBranch(*online, batch_norm_splits=2)
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
        branch.update_(*online, momentum=0.5)
    assert_same(plain, rounded)
    assert not torch.equal(keys_of(rounded, images), before)


def test_a_bfloat16_copy_follows_a_loaded_state(branches):
    plain, rounded, online = branches
    plain.update_(*moved(online), momentum=0.5)
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
