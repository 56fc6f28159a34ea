"""The moving average of parameters."""

import pytest
import torch

from ssl_core.ops import _triton, cpp, gpu, momentum_update_
from ssl_core.testing import assert_as_accurate

SHAPES = [(), (1,), (5,), (3, 4), (0,), (2, 3, 1, 1)]


TRITON_KERNELS = ["triton"] if _triton.is_interpreted() else []


@pytest.fixture(params=["reference", *cpp.instruction_sets(), *TRITON_KERNELS], autouse=True)
def _implementation(request, monkeypatch):
    """Each test with the reference and with the compiled kernels, of which every instruction set."""
    if request.param in ("reference", "triton"):
        monkeypatch.setenv("SSL_CORE_BACKEND", request.param)
    else:
        monkeypatch.setenv("SSL_CORE_CPU_ISA", request.param)


def parameters(dtype=torch.float32):
    return [torch.randn(shape).to(dtype) for shape in SHAPES]


def test_two_values_by_hand():
    target, online = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 2.0])
    momentum_update_([target], [online], 0.75)
    # 0.75 * 1 + 0.25 * 3 = 1.5 and 0.75 * -2 + 0.25 * 2 = -1
    assert target.tolist() == [1.5, -1.0]
    assert online.tolist() == [3.0, 2.0]


@pytest.mark.parametrize("momentum", [0.0, torch.tensor(0.0)], ids=["float", "tensor"])
def test_momentum_zero_copies_to_the_last_bit(momentum):
    target, online = parameters(), parameters()
    momentum_update_(target, online, momentum)
    assert all(torch.equal(a, b) for a, b in zip(target, online, strict=True))


@pytest.mark.parametrize("momentum", [1.0, torch.tensor(1.0)], ids=["float", "tensor"])
def test_momentum_one_freezes_to_the_last_bit(momentum):
    target = parameters()
    before = [tensor.clone() for tensor in target]
    momentum_update_(target, parameters(), momentum)
    assert all(torch.equal(a, b) for a, b in zip(target, before, strict=True))


@pytest.mark.parametrize("online_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("momentum", [0.99, 0.9996])
def test_the_average_is_as_accurate_as_eager_whatever_the_online_dtype(online_dtype, momentum):
    target, online = torch.randn(1000), torch.randn(1000).to(online_dtype)
    eager = momentum * target + (1 - momentum) * online.float()
    exact = momentum * target.double() + (1 - momentum) * online.double()
    momentum_update_([target], [online], momentum)
    assert_as_accurate(target, eager, exact, floor=0.0)  # of a thousand numbers eager rounds some


def test_small_steps_add_up():
    target, online = torch.zeros(3), torch.ones(3)
    for _ in range(1000):
        momentum_update_([target], [online], 0.9999)
    # 1 - 0.9999 ** 1000; float32 rounds each of the 1000 steps by at most 2 ** -28.
    torch.testing.assert_close(target, torch.full((3,), 1 - 0.9999**1000), atol=1000 * 2**-28, rtol=0)


def test_a_tensor_as_momentum_is_its_value():
    one, other, online = parameters(), parameters(), parameters()
    for a, b in zip(one, other, strict=True):
        b.copy_(a)
    momentum_update_(one, online, 0.75)
    momentum_update_(other, online, torch.tensor(0.75))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_parameters_of_modules_are_updated_without_a_graph():
    target, online = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    momentum_update_(list(target.parameters()), list(online.parameters()), 0.5)
    assert all(parameter.grad_fn is None and parameter.is_leaf for parameter in target.parameters())


def test_parameters_of_any_memory_format_are_updated():
    weight, online = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    formats = {"contiguous_format": weight.clone(), "channels_last": weight.to(memory_format=torch.channels_last)}
    for target in (
        *formats.values(),
        weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        torch.stack([weight, weight], dim=4)[..., 0],
    ):
        for other in (online, online.to(memory_format=torch.channels_last)):
            updated = target.clone(memory_format=torch.preserve_format)
            momentum_update_([updated], [other], 0.75)
            torch.testing.assert_close(updated, 0.75 * weight + 0.25 * other)


def test_many_parameters_of_any_size_are_shared_among_threads():
    sizes = [1, 3, 70000, 0, 17, 40000]
    targets, onlines = ([torch.randn(size) for size in sizes] for _ in range(2))
    shadows = [torch.empty(size, dtype=torch.bfloat16) for size in sizes]
    expected = [0.75 * target + 0.25 * online for target, online in zip(targets, onlines, strict=True)]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        momentum_update_(targets, onlines, 0.75, shadow_params=shadows)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(targets, expected)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(shadows, targets, strict=True))


def test_shadows_are_the_rounded_averages():
    target, online, shadow = parameters(), parameters(), parameters(torch.bfloat16)
    momentum_update_(target, online, 0.75, shadow_params=shadow)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(shadow, target, strict=True))


def test_an_encoders_table_of_addresses_lives_as_long_as_it_does():
    encoders = [([torch.zeros(5), torch.zeros(0)], [torch.ones(5), torch.ones(0)], []) for _ in range(2)]
    before = len(gpu._tables)
    tables = [gpu.address_table(*encoder) for encoder in encoders]
    # As captured CUDA graphs do, which read the same memory at each replay.
    assert all(gpu.address_table(*encoder) is table for encoder, table in zip(encoders, tables, strict=True))
    (target, _), (online, _), _ = encoders[1]
    assert tables[1].tolist() == [[target.data_ptr(), online.data_ptr(), 0, 0, 5]]
    encoders[0][0][0] = torch.zeros(5)
    assert len(gpu._tables) == before + 1


def test_the_op_is_registered_correctly():
    torch.library.opcheck(
        torch.ops.ssl_core.momentum_update_,
        (parameters(), parameters(), parameters(torch.bfloat16), torch.tensor(0.9, dtype=torch.float64)),
    )


@pytest.mark.parametrize(
    ("target", "online", "momentum", "error", "message"),
    [
        ([(3,)], [(3,), (2,)], 0.9, ValueError, "1 momentum parameters, 2 online parameters"),
        ([(3,), (2, 1)], [(3,), (2,)], 0.9, ValueError, r"parameter 1: momentum \(2, 1\), online \(2,\)"),
        ([(3,)], [(3,)], 1.1, ValueError, r"momentum must be in \[0, 1\], got 1.1"),
        ([(3,)], [(3,)], float("nan"), ValueError, r"momentum must be in \[0, 1\], got nan"),
    ],
    ids=["numbers", "shapes", "too large", "nan"],
)
def test_what_does_not_fit_is_an_error(target, online, momentum, error, message):
    with pytest.raises(error, match=message):
        momentum_update_([torch.zeros(s) for s in target], [torch.zeros(s) for s in online], momentum)


def test_parameters_and_momentum_on_several_devices_are_an_error():
    here, elsewhere = torch.zeros(3), torch.zeros(3, device="meta")
    with pytest.raises(ValueError, match="momentum parameter 1 is on meta, parameter 0 on cpu: update those of each"):
        momentum_update_([here, elsewhere], [here, elsewhere], 0.9)
    with pytest.raises(ValueError, match="momentum is on meta, the parameters on cpu"):
        momentum_update_([here], [here], torch.zeros((), device="meta"))


def test_shadows_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"parameter 0: momentum \(3,\), shadow \(2,\)"):
        momentum_update_([torch.zeros(3)], [torch.zeros(3)], 0.9, shadow_params=[torch.zeros(2)])


def test_a_momentum_encoder_in_half_precision_is_an_error():
    with pytest.raises(
        TypeError, match=r"momentum parameter 1 is torch.bfloat16, .* keep the momentum encoder in float32"
    ):
        momentum_update_([torch.zeros(1), torch.zeros(1).bfloat16()], [torch.zeros(1)] * 2, 0.9)
