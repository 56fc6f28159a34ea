import pytest
import ssl_tiny.train
import torch

from ssl_core.build import build
from ssl_core.testing.recipes import parse

CPU = torch.device("cpu")


def config(size, *arguments):
    return parse(ssl_tiny.train, "--config=smoke", f"--views=[{{size: {size}, count: 2}}]", *arguments)


def test_the_parts_of_a_run_are_the_same_each_time():
    first = build(config(16), ssl_tiny.train.make_method, channels=3, device=CPU)
    torch.rand(3)  # whatever is drawn between
    second = build(config(16), ssl_tiny.train.make_method, channels=3, device=CPU)
    assert first.num_features == 16
    again = second.method.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.method.state_dict().items())


def test_bfloat16_is_refused_where_a_processor_gets_it_wrong():
    options = ["--encoder.stem=small_pool", "--train.precision=bfloat16"]
    with pytest.raises(ValueError, match="at 8 px a convolution of resnet18 strides over a single pixel"):
        build(config(8, *options), ssl_tiny.train.make_method, channels=3, device=CPU)
    build(config(16, *options), ssl_tiny.train.make_method, channels=3, device=CPU)
