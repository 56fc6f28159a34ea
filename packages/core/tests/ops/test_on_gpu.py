"""The ops on a CUDA device: as on the CPU, nothing that waits for the device, and all of it inside a CUDA graph."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

from ssl_core.ops import cuda, enqueue_, momentum_update_, queue_attention
from ssl_core.ops.backends import choose_backend
from ssl_core.ops.queue_attention import BACKENDS
from ssl_core.testing import ROUNDING, assert_attention_is_accurate
from ssl_core.views import HEAVY, PRESETS, ViewSpec, derive, pack_images, render_views, sample_parameters

pytestmark = pytest.mark.gpu

ON_GPU = ["triton", "cuda", "tiled", "sdpa"]
KERNELS = pytest.mark.parametrize("kernel", ["triton", "cuda", "reference"], indirect=True)


@contextlib.contextmanager
def waiting_is_an_error():
    """Any operation that makes the host wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def no_sync():
    with waiting_is_an_error():
        yield


@pytest.fixture
def kernel(request, monkeypatch):
    """Forces the implementation of the ops that have no argument for it."""
    if request.param == "cuda" and (reason := cuda.unsupported(torch.device("cuda"), torch.float32)):
        pytest.skip(reason)
    monkeypatch.setenv("SSL_CORE_BACKEND", request.param)
    return request.param


def unit_rows(n, d, dtype=torch.float32):
    return F.normalize(torch.randn(n, d), dim=1).to(dtype)


def skip_unless_supported(backend, dtype, dim, *, exclude):
    device = torch.device("cuda")
    try:
        choose_backend("queue_attention", BACKENDS, device, dtype, dtype, requested=backend, dim=dim, exclude=exclude)
    except ValueError as error:
        pytest.skip(str(error))


def assert_is_accurate(backend, query, queue, temperature, **options):
    on_gpu = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    assert_attention_is_accurate(backend, query.cuda(), queue.cuda(), temperature, **on_gpu)


@pytest.mark.parametrize("backend", ON_GPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "k", "d"),
    [(1, 1, 64), (7, 63, 64), (33, 40_001, 64), (64, 64, 128), (65, 4096, 128), (256, 65536, 128), (129, 5000, 256)],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
def test_every_kernel_is_as_accurate_as_eager(backend, dtype, n, k, d, temperature):
    skip_unless_supported(backend, dtype, d, exclude=False)
    query, queue = unit_rows(n, d, dtype), unit_rows(k, d, dtype)
    assert_is_accurate(backend, query, queue, temperature, normalized=True)
    assert_is_accurate(backend, query, queue, temperature, length=torch.tensor(k - 1), key_bias=torch.randn(k))


@pytest.mark.parametrize("backend", ["triton", "cuda", "tiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("normalized", [False, True])
def test_every_kernel_hides_columns(backend, dtype, normalized):
    skip_unless_supported(backend, dtype, 64, exclude=True)
    query, queue = unit_rows(150, 64, dtype), unit_rows(700, 64, dtype)
    queue[:150] = query
    options = {"exclude": torch.arange(150) - 1, "length": torch.tensor(300), "normalized": normalized}
    assert_is_accurate(backend, query, queue, 0.05, **options)


@pytest.mark.parametrize("backend", ON_GPU)
def test_no_column_gives_minus_infinity_and_zero(backend):
    query, queue = unit_rows(70, 64, torch.bfloat16).cuda(), unit_rows(700, 64, torch.bfloat16).cuda()
    length = torch.zeros((), dtype=torch.int64, device="cuda")
    lse, expectation = queue_attention(query, queue, 0.1, length=length, backend=backend)
    assert (lse == -torch.inf).all()
    assert (expectation == 0).all()


@pytest.mark.parametrize("backend", ON_GPU)
def test_two_calls_agree_to_the_last_bit(backend):
    query, queue = unit_rows(300, 128, torch.bfloat16).cuda(), unit_rows(50_000, 128, torch.bfloat16).cuda()
    first, second = (queue_attention(query, queue, 0.05, backend=backend) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("backend", ["triton", "cuda", "tiled"])
def test_queue_attention_and_its_gradient_do_not_sync(backend, no_sync):
    query = torch.randn(8, 64, device="cuda", requires_grad=True)
    queue = torch.randn(100, 64, device="cuda").bfloat16()
    length, exclude = torch.full((), 50, device="cuda"), torch.arange(8, device="cuda")
    lse, _ = queue_attention(query, queue, 0.1, length=length, exclude=exclude, backend=backend)
    lse.sum().backward()


@KERNELS
@pytest.mark.parametrize("num_keys", [4, 7, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_enqueue_is_that_of_the_cpu(kernel, num_keys, dtype, monkeypatch):
    keys, queues = torch.randn(2, num_keys, 130), []
    for device in ("cuda", "cpu"):
        monkeypatch.setenv("SSL_CORE_BACKEND", kernel if device == "cuda" else "reference")
        queue = torch.zeros(7, 130, dtype=dtype, device=device)
        cursor, length = (torch.full((), 5, device=device) for _ in range(2))
        for batch in keys:
            enqueue_(queue, batch.to(device), cursor, length)
        queues.append((queue.float().cpu(), cursor.cpu(), length.cpu()))
    torch.testing.assert_close(queues[0], queues[1])


@KERNELS
def test_enqueue_does_not_sync(kernel, no_sync):
    cursor, length = (torch.full((), 5, device="cuda") for _ in range(2))
    enqueue_(torch.zeros(7, 3, device="cuda"), torch.ones(4, 3, device="cuda"), cursor, length)


@pytest.mark.parametrize("kernel", ["triton", "cuda"], indirect=True)
def test_queues_on_two_streams_do_not_disturb_each_other(kernel):
    streams, keys = [torch.cuda.Stream() for _ in range(2)], torch.randn(2000, 64, device="cuda")
    rings = [
        (torch.zeros(4099, 64, device="cuda"), *(torch.zeros((), dtype=torch.int64, device="cuda") for _ in range(2)))
        for _ in streams
    ]
    torch.cuda.synchronize()
    for _ in range(20):
        for stream, ring in zip(streams, rings, strict=True):
            with torch.cuda.stream(stream):
                enqueue_(ring[0], keys, *ring[1:])
    torch.cuda.synchronize()
    assert [(cursor.item(), length.item()) for _, cursor, length in rings] == [(40_000 % 4099, 4099)] * 2


@KERNELS
def test_momentum_update_is_that_of_the_formula_with_its_shadow(kernel):
    sizes = [1, 3, 70_000, 17, 40_000]
    targets, onlines = ([torch.randn(size, device="cuda") for size in sizes] for _ in range(2))
    expected = [0.75 * target + 0.25 * online for target, online in zip(targets, onlines, strict=True)]
    shadows = [target.bfloat16() for target in targets]
    momentum_update_(targets, onlines, 0.75, shadow_params=shadows)
    torch.testing.assert_close(targets, expected)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(shadows, targets, strict=True))


@KERNELS
@pytest.mark.parametrize("on_device", [True, False], ids=["tensor", "float"])
def test_momentum_update_does_not_sync(kernel, on_device):
    target, online = torch.zeros(5, device="cuda"), torch.ones(5, device="cuda")
    momentum = torch.full((), 0.75, device="cuda") if on_device else 0.75
    momentum_update_([target], [online], momentum)  # makes what is kept between calls
    with waiting_is_an_error():
        momentum_update_([target], [online], momentum)
    torch.testing.assert_close(target.cpu(), torch.full((5,), 1 - 0.75**2))


@pytest.mark.parametrize("kernel", ["triton", "cuda"], indirect=True)
def test_a_step_replays_from_a_cuda_graph(kernel):
    query, keys = unit_rows(16, 64).cuda(), unit_rows(16, 64).cuda()
    target, online = torch.zeros(5, device="cuda"), torch.ones(5, device="cuda")
    momentum = torch.full((), 0.5, device="cuda")

    def start():
        cursor, length = (torch.zeros((), dtype=torch.int64, device="cuda") for _ in range(2))
        return torch.zeros(40, 64, device="cuda").bfloat16(), cursor, length

    def step(queue, cursor, length):
        lse, _ = queue_attention(query, queue, 0.1, length=length)
        enqueue_(queue, keys, cursor, length)
        momentum_update_([target], [online], momentum)
        return lse

    eager = start()
    expected = [step(*eager) for _ in range(4)][-1]
    target.zero_()
    state = start()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lse = step(*state)
    for _ in range(4):
        graph.replay()
    torch.testing.assert_close((lse, *state), (expected, *eager))
    torch.testing.assert_close(target.cpu(), torch.full((5,), 1 - 0.5**4))


SPECS = {
    **{name: [ViewSpec(PRESETS[name], (32,))] for name in ("strong_gamma", "clsa_strong", "dssl_byol", "padded_crop")},
    "large": [ViewSpec(PRESETS["strong"], (224, 96))],
}
SPECS["heavy"] = [*SPECS["strong_gamma"], derive(SPECS["strong_gamma"], 0, HEAVY["imagenet_code"])]
NORMALIZATION = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def some_images(dtype=torch.uint8):
    levels = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}[dtype]
    return pack_images([(torch.rand(3, 40 + index, 90 - index) * levels).to(dtype) for index in range(20)])


def drawn_on_gpu(specs, images):
    size, index = images.layout[:, 1:3].cuda(), torch.arange(len(images.layout), device="cuda")
    return [
        sample_parameters(spec, seed=0, epoch=0, image_index=index, view_index=view, image_size=size)
        for view, spec in enumerate(specs)
    ]


def on_gpu(packed):
    return packed._replace(pixels=packed.pixels.cuda(), layout=packed.layout.cuda())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_views_are_those_of_the_reference_and_cut_to_other_levels_at_most(name, dtype):
    images = some_images(dtype)
    drawn = drawn_on_gpu(SPECS[name], images)
    on_cpu = [rows.cpu() for rows in drawn]
    actual = render_views(on_gpu(images), drawn, SPECS[name], renderer="device", **NORMALIZATION)
    expected = render_views(images, on_cpu, SPECS[name], renderer="reference", **NORMALIZATION)
    for one, other in zip(actual, expected, strict=True):
        error = (one.cpu() - other).abs() * 0.25
        assert error.mean() < 1e-3  # a quarter of a level
        # Where levels are cut, equalize and autocontrast move all pixels of some levels, which may be a tenth of them.
        assert (error > 160 * ROUNDING).double().mean() <= (0.0 if name in ("padded_crop", "large") else 0.1)


@pytest.mark.parametrize("name", ["strong_gamma", "clsa_strong", "heavy"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_views_do_not_sync(name, dtype):
    images = some_images()
    arguments = (on_gpu(images), drawn_on_gpu(SPECS[name], images), SPECS[name])
    options = {"renderer": "device", "dtype": dtype, "channels_last": True, **NORMALIZATION}
    first = render_views(*arguments, **options)  # compiles, and makes what is kept between calls
    with waiting_is_an_error():
        second = render_views(*arguments, **options)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_an_image_that_is_there_twice_is_changed_whole_in_memory_of_its_own():
    specs, images = SPECS["dssl_byol"], some_images()
    same = images._replace(layout=images.layout[:1].expand(9, -1).contiguous())
    (drawn,) = drawn_on_gpu(specs, same)
    (together,) = render_views(on_gpu(same), [drawn], specs, renderer="device", **NORMALIZATION)
    one = on_gpu(same._replace(layout=same.layout[:1]))
    alone = [render_views(one, [row[None]], specs, renderer="device", **NORMALIZATION)[0] for row in drawn]
    assert torch.equal(together, torch.cat(alone))
