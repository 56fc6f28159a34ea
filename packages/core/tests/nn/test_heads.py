import pytest
import torch
from torch import nn

from ssl_core.nn import mlp_head


def described(head):
    """Linear with (+) or without (-) bias, BatchNorm with (BN) or without (bn) scale and shift, ReLU."""
    words = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            words.append(f"{layer.in_features}>{layer.out_features}{'-' if layer.bias is None else '+'}")
        elif isinstance(layer, nn.BatchNorm1d):
            words.append("BN" if layer.affine else "bn")
        else:
            assert isinstance(layer, nn.ReLU)
            words.append("R")
    return " ".join(words)


@pytest.mark.parametrize(
    ("arguments", "options", "layers"),
    [
        ((9, 9, 3), {"num_layers": 1}, "9>3+"),
        ((9, 8, 3), {"norm": False}, "9>8+ R 8>3+"),
        ((9, 9, 3), {}, "9>9- BN R 9>3+"),
        ((9, 8, 3), {"num_layers": 3, "last_norm": "plain"}, "9>8- BN R 8>8- BN R 8>3- bn"),
        ((9, 8, 3), {"num_layers": 3, "last_norm": "affine"}, "9>8- BN R 8>8- BN R 8>3- BN"),
        ((3, 20, 3), {}, "3>20- BN R 20>3+"),
        ((3, 20, 3), {"bias": False}, "3>20- BN R 20>3-"),
        ((9, 8, 3), {"last_norm": "scale"}, "9>8- BN R 8>3- BN"),
        ((9, 8, 8), {"num_layers": 3, "bias": False}, "9>8- BN R 8>8- BN R 8>8-"),
    ],
    ids=[
        "moco-linear",
        "moco-v2",
        "sce-small",
        "sce-imagenet-simsiam",
        "dssl-simsiam",
        "predictor",
        "moco-v3-predictor",
        "simclr",
        "barlow",
    ],
)
def test_each_papers_head_is_one_call(arguments, options, layers):
    head = mlp_head(*arguments, **options)
    assert described(head) == layers
    assert head(torch.randn(4, arguments[0])).shape == (4, arguments[2])


def test_a_plain_last_norm_gives_zero_mean_and_unit_variance():
    head, images = mlp_head(5, 7, 3, last_norm="plain").double(), torch.randn(64, 5).double()
    output, variance = head(images), head[:-1](images).var(0, correction=0)
    torch.testing.assert_close(output.mean(0), torch.zeros(3).double())
    torch.testing.assert_close(output.var(0, correction=0), variance / (variance + head[-1].eps))


def test_a_last_norm_that_scales_learns_no_shift():
    last = mlp_head(5, 7, 3, last_norm="scale")[-1]
    assert {name: value.requires_grad for name, value in last.named_parameters()} == {"weight": True, "bias": False}
    assert last.bias.unique().tolist() == [0.0]


def test_no_layers_is_an_error():
    with pytest.raises(ValueError, match="got 0"):
        mlp_head(2, 2, 2, num_layers=0)
