"""The CUDA library's kernels, compiled for the CPU with `cuda_twin.h` in place of CUDA: what they compute.

Warps run ahead of each other by chance, so that a missing barrier may go unseen; `compute-sanitizer` looks, on a GPU.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ssl_core.ops import cuda, enqueue_, momentum_update_, queue_attention
from ssl_core.testing import assert_attention_is_accurate, finished_process

SOURCES = Path(__file__).parents[4] / "csrc" / "cuda"
COMPILER = os.environ.get("CXX") or shutil.which("g++")
OPS = {name: sys.modules[f"ssl_core.ops.{name}"] for name in ("queue_attention", "enqueue", "momentum_update")}

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not SOURCES.is_dir() or COMPILER is None, reason="needs csrc/cuda and a compiler"),
]

# What is CUDA's own, as expressions of the twin.
REWRITTEN = [
    (r"#include <cuda_bf16.h>", '#include "cuda_twin.h"'),
    (r"extern __shared__ \S+ unsigned char shared\[\];", "unsigned char* shared = twin::shared;"),
    (r'asm volatile\("cp.async.cg[^;]*;\\n"[^;]*;', "twin::copy_16_bytes(to, from, size);"),
    (r'asm volatile\("cp.async.commit_group;\\n"\);', "twin::commit();"),
    (r'asm volatile\("cp.async.wait_group (\d);\\n"\);', r"twin::wait_for_copies(\1);"),
    (r'asm volatile\("ldmatrix\S*\.trans\.[^;]*;\\n"[^;]*;', "twin::load_matrices(to, from, true);"),
    (r'asm volatile\("ldmatrix[^;]*;\\n"[^;]*;', "twin::load_matrices(to, from, false);"),
    (r'asm volatile\(\s*"mma\.sync\S*m16n8k16\.row\.col[^;]*;\\n"[^;]*;', "twin::multiply(c, a, b0, b1);"),
    (r'asm\("ex2.approx.ftz.f32[^;]*;"[^;]*;', "y = x < -126 ? 0 : exp2f(x);"),
    (r"(\w+(?:<\w[\w, ]*>)?)<<<(.+?), ([^,]+), [^,]+, \S+>>>\(([^;]*)\);", r"twin::run(\2, \3, [&] { \1(\4); });"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twin")
    for source in SOURCES.glob("*.cu"):
        text = source.read_text()
        for pattern, replacement in REWRITTEN:
            text = re.sub(pattern, replacement, text)
        assert not re.search("asm|<<<", text), source.name
        (folder / f"{source.stem}.cpp").write_text(text)
    files = [str(folder / f"{source.stem}.cpp") for source in SOURCES.glob("*.cu")]
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", f"-I{SOURCES}", f"-I{Path(__file__).parent}"]
    done = finished_process([COMPILER, *flags, *files, "-o", str(folder / "twin.so")])
    assert done.returncode == 0, done.stderr
    return folder / "twin.so"


@pytest.fixture(autouse=True)
def _twin(library, monkeypatch):
    """Back-end ``cuda`` is the twin, for tensors on the CPU."""
    monkeypatch.setattr(cuda, "_LIBRARY", library)
    monkeypatch.setenv("SSL_CORE_BACKEND", "cuda")
    monkeypatch.setattr(cuda, "processors_of", lambda device: 1)  # cuts the queue into parts of several tiles
    for op in OPS.values():
        monkeypatch.setitem(op.BACKENDS, "cuda", lambda *problem, **options: None)
    cuda._library.cache_clear()
    twin = cuda._library()
    cuda._library.cache_clear()
    monkeypatch.setattr(cuda, "_launch", lambda name, _, *args: getattr(twin, f"ssl_core_cuda_{name}")(*args, 0))


def unit_rows(n, d):
    return F.normalize(torch.randn(n, d), dim=1).bfloat16()


@pytest.mark.parametrize(
    ("n", "k", "d"),
    [(1, 1, 64), (7, 63, 64), (33, 301, 64), (63, 0, 64), (64, 64, 128), (65, 400, 128), (17, 97, 256)],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
def test_queue_attention_is_as_accurate_as_eager(n, k, d, temperature):
    query, queue = unit_rows(n, d), unit_rows(k, d)
    length, exclude, bias = torch.tensor(max(k - 3, 0)), torch.arange(n) % max(k, 1), torch.randn(k)
    bias[::3] = -torch.inf
    for options in (
        {"normalized": True},
        {"length": length, "key_bias": bias},
        {"length": length, "exclude": exclude, "normalized": True},
    ):
        assert_attention_is_accurate("cuda", query, queue, temperature, **options)


def test_unfilled_rows_of_the_queue_are_never_read():
    query, queue = unit_rows(70, 64), unit_rows(300, 64)
    results = []
    for queue[130:] in (torch.nan, 0.0):
        results.append(queue_attention(query, queue, 0.1, length=torch.tensor(130)))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("num_keys", [1, 7, 20])
@pytest.mark.parametrize(("d", "dtype"), [(130, torch.bfloat16), (128, torch.float32), (1, torch.float32)], ids=str)
def test_enqueue_is_that_of_the_reference(num_keys, d, dtype, monkeypatch):
    batches, rings = torch.randn(2, num_keys, d), []
    for backend in ("cuda", "reference"):
        monkeypatch.setenv("SSL_CORE_BACKEND", backend)
        rings.append((torch.zeros(7, d, dtype=dtype), torch.tensor(5), torch.tensor(5)))
        for keys in batches:
            enqueue_(rings[-1][0], keys, *rings[-1][1:])
    torch.testing.assert_close(*rings)


@pytest.mark.parametrize("offset", [0, 1, 2])
@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.99, 1.0])
def test_momentum_update_of_any_sizes_and_alignment_with_its_copy(momentum, offset):
    sizes = [1, 3, 7000, 0, 17, 4096, 4097]
    targets, onlines = ([torch.randn(size + offset)[offset:] for size in sizes] for _ in range(2))
    shadows = [torch.zeros(size + offset).bfloat16()[offset:] for size in sizes]
    expected = [torch.lerp(target, online, 1 - momentum) for target, online in zip(targets, onlines, strict=True)]
    momentum_update_(targets, onlines, momentum, shadow_params=shadows)
    torch.testing.assert_close(targets, expected)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(shadows, targets, strict=True))
