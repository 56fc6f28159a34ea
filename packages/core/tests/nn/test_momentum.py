import torch
from torch import nn

from ssl_core.nn import momentum_copy


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
