import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from ssl_core import distributed
from ssl_core.nn import GatheredBatchNorm, SplitBatchNorm, mlp_head, split_batch_norm, sync_batch_norm


def layer_and_split(channels, num_splits):
    plain = nn.Sequential(nn.BatchNorm2d(channels))
    nn.init.uniform_(plain[0].weight)
    nn.init.uniform_(plain[0].bias)
    return plain, split_batch_norm(copy.deepcopy(plain), num_splits)


def test_two_parts_of_two_images_by_hand():
    split = split_batch_norm(nn.Sequential(nn.BatchNorm2d(1, eps=1e-12)), 2)
    images = torch.tensor([0.0, 2.0, 10.0, 30.0]).reshape(4, 1, 1, 1)
    # Means 1 and 20, standard deviations 1 and 10: each part becomes (-1, 1).
    torch.testing.assert_close(split(images).flatten(), torch.tensor([-1.0, 1, -1, 1]))
    # Running mean 0.9 * 0 + 0.1 * (1 + 20) / 2; running variance 0.9 * 1 + 0.1 * (2 + 200) / 2, unbiased.
    torch.testing.assert_close(split[0].running_mean, torch.tensor([1.05]))
    torch.testing.assert_close(split[0].running_var, torch.tensor([11.0]))
    assert split[0].num_batches_tracked.item() == 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("num_splits", [2, 3, 6])
def test_split_equals_batch_norm_on_each_part(num_splits, memory_format):
    plain, split = layer_and_split(5, num_splits)
    images = torch.randn(12, 5, 3, 4).contiguous(memory_format=memory_format)
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    parts = [copy.deepcopy(plain) for _ in range(num_splits)]
    expected = torch.cat([part(chunk) for part, chunk in zip(parts, theirs.chunk(num_splits), strict=True)])
    output = split(ours)
    torch.testing.assert_close(output, expected)
    assert output.is_contiguous(memory_format=memory_format)
    weights = torch.randn_like(expected)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(split[0].weight.grad, sum(part[0].weight.grad for part in parts))
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(part[0], name) for part in parts]).mean(0)
        torch.testing.assert_close(getattr(split[0], name), mean)


def test_evaluation_is_plain_batch_norm_in_any_batch():
    plain, split = layer_and_split(5, 4)
    for module in (plain, split):
        module[0].running_mean.fill_(0.5)
    images = torch.randn(3, 5, 2, 2)
    assert torch.equal(split.eval()(images), plain.eval()(images))


def test_autocast_keeps_the_dtype_and_float32_statistics():
    _, split = layer_and_split(4, 2)
    images = torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        output = nn.Sequential(nn.Conv2d(3, 4, 3), split)(images)
    assert output.dtype == torch.bfloat16
    assert split[0].running_mean.dtype == torch.float32


def test_conversion_keeps_tensors_names_and_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, eps=1e-3, momentum=0.3))).eval()
    network[1][0].weight.requires_grad_(False)
    before = dict(network.named_parameters()) | dict(network.named_buffers())
    assert split_batch_norm(network, 2) is network
    after = dict(network.named_parameters()) | dict(network.named_buffers())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    layer = network[1][0]
    assert isinstance(layer, SplitBatchNorm)
    assert (layer.eps, layer.momentum, layer.training) == (1e-3, 0.3, False)


def test_only_two_dimensional_layers_are_split_unless_told():
    network = nn.Sequential(nn.BatchNorm2d(3), mlp_head(3, 4, 2, last_norm="plain"))
    split_batch_norm(network, 2)
    assert [type(layer) for layer in network.modules() if "Norm" in type(layer).__name__] == [
        SplitBatchNorm,
        nn.BatchNorm1d,
        nn.BatchNorm1d,
    ]
    split_batch_norm(network, 2, kinds=(nn.BatchNorm1d,))
    assert network[1](torch.randn(4, 3)).shape == (4, 2)
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in network.modules())


def test_one_split_changes_nothing():
    network = nn.Sequential(nn.BatchNorm2d(3))
    assert type(split_batch_norm(network, 1)[0]) is nn.BatchNorm2d


def test_a_batch_that_does_not_divide_is_refused_with_both_numbers():
    _, split = layer_and_split(2, 8)
    with pytest.raises(ValueError, match="batch of 12 cannot be split into 8"):
        split(torch.randn(12, 2, 3, 3))


@pytest.mark.parametrize(
    ("network", "num_splits", "message"),
    [
        (nn.Linear(2, 2), 2, "Linear has no BatchNorm2d to split; use momentum.batch_norm_splits 1"),
        (
            nn.Sequential(BatchNormAct2d(2)),
            2,
            "cannot split BatchNormAct2d, only BatchNorm2d; use momentum.batch_norm_splits 1",
        ),
        (nn.Sequential(nn.BatchNorm2d(2, momentum=None)), 2, "needs a momentum"),
        (nn.Sequential(nn.BatchNorm2d(2)), 0, "got 0"),
    ],
    ids=["none", "subclass", "cumulative", "zero"],
)
def test_what_cannot_be_split_is_an_error(network, num_splits, message):
    with pytest.raises(ValueError, match=message):
        split_batch_norm(network, num_splits)


def test_sync_batch_norm_of_several_processes_on_a_cpu_gathers_and_keeps_the_state(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    network = nn.Sequential(nn.BatchNorm2d(3), mlp_head(3, 4, 2, last_norm="plain")).eval()
    before = network.state_dict(keep_vars=True)
    converted = sync_batch_norm(network, torch.device("cpu"))
    layers = [layer for layer in converted.modules() if isinstance(layer, GatheredBatchNorm)]
    assert [(layer.affine, layer.training) for layer in layers] == [(True, False), (True, False), (False, False)]
    assert all(tensor is before[key] for key, tensor in converted.state_dict(keep_vars=True).items())
    with pytest.raises(ValueError, match="cannot synchronize BatchNormAct2d, only BatchNorm1d or BatchNorm2d; train"):
        sync_batch_norm(nn.Sequential(BatchNormAct2d(2)), torch.device("cpu"))


def test_sync_batch_norm_of_one_process_is_batch_norm_on_any_device():
    images, network = torch.randn(4, 2, 3, 3), nn.Sequential(nn.BatchNorm2d(2))
    synchronized = sync_batch_norm(copy.deepcopy(network), torch.device("cpu"))
    assert torch.equal(synchronized(images), network(images))
    assert torch.equal(synchronized[0].running_var, network[0].running_var)


def test_sync_batch_norm_converts_for_cuda_and_keeps_the_state():
    network = nn.Sequential(nn.BatchNorm2d(3), mlp_head(3, 4, 2, last_norm="plain"))
    keys = list(network.state_dict())
    converted = sync_batch_norm(network, torch.device("cuda"))
    assert sum(isinstance(layer, nn.SyncBatchNorm) for layer in converted.modules()) == 3
    assert list(converted.state_dict()) == keys


def test_split_and_sync_exclude_each_other():
    network = split_batch_norm(nn.Sequential(nn.BatchNorm2d(2)), 2)
    with pytest.raises(ValueError, match="either split or synchronized"):
        sync_batch_norm(network, torch.device("cuda"))
