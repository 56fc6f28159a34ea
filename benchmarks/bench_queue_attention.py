"""SCE's loss and InfoNCE over a queue: time, arithmetic and memory of every implementation, in one run.

python benchmarks/bench_queue_attention.py --out benchmarks/results      # on the GPU if there is one
python benchmarks/bench_queue_attention.py --device cpu --quick

Forward and gradient to the queries, on the same inputs, in turns. Beside this repository's back-ends: the loss as the
papers' codes write it (dense, autograd), that through torch.compile, FlexAttention with lse, and lightly's NTXentLoss
with a memory bank (InfoNCE only, which enqueues as well). Operations are counted as 4 n k d for each set of n queries,
whatever an implementation executes. Peak memory is what a call adds to its inputs: on the CPU the rise of the resident
set of a fresh process, on the GPU that of torch's allocator.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from machine import (
    allocated_bytes,
    describe_machine,
    measured_in_new_process,
    measured_peak_flops,
    resident_bytes,
    times_s,
)
from torch import Tensor

from ssl_core.losses import info_nce, soft_target_cross_entropy
from ssl_core.ops.backends import choose_backend
from ssl_core.ops.queue_attention import BACKENDS

# n queries, k queue rows, d dimension.
SHAPES = [(256, 65536, 128), (512, 65536, 256), (512, 16384, 256)]
SWEEP = [4096, 16384, 65536, 262144, 1048576]  # k, at n 256 and d 128
TEMPERATURE, TARGET_TEMPERATURE, COEFFICIENT = 0.1, 0.05, 0.5


class Inputs(NamedTuple):
    """Of one shape, on one device."""

    query: Tensor
    key: Tensor
    queue: Tensor


Loss = Callable[[Inputs], Tensor]


def make_inputs(n: int, k: int, d: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    query, key, queue = (
        F.normalize(torch.randn(rows, d, generator=generator), dim=1).to(device, dtype) for rows in (n, n, k)
    )
    return Inputs(query.requires_grad_(), key, queue)


def dense_sce(inputs: Inputs) -> Tensor:
    """The loss as the released codes write it: a matrix of logits for the student, another for the teacher."""
    query, key, queue = inputs
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ queue.T], dim=1) / TEMPERATURE
    with torch.no_grad():
        relations = (key @ queue.T / TARGET_TEMPERATURE).softmax(dim=1)
        own = torch.full_like(relations[:, :1], COEFFICIENT)
        target = torch.cat([own, (1 - COEFFICIENT) * relations], dim=1)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


def dense_info_nce(inputs: Inputs) -> Tensor:
    query, key, queue = inputs
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ queue.T], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64, device=query.device))


def our_sce(backend: str) -> Loss:
    def loss(inputs: Inputs) -> Tensor:
        return soft_target_cross_entropy(
            inputs.query,
            inputs.key,
            inputs.key,
            inputs.queue,
            temperature=TEMPERATURE,
            target_temperature=TARGET_TEMPERATURE,
            coefficient=COEFFICIENT,
            backend=backend,
        ).mean()

    return loss


def our_info_nce(backend: str) -> Loss:
    return lambda inputs: info_nce(inputs.query, inputs.key, inputs.queue, TEMPERATURE, backend=backend).mean()


def flex_sce(inputs: Inputs) -> Tensor:
    """Two calls of FlexAttention, whose lse is differentiable and whose output is the teacher's mean."""
    from torch.nn.attention.flex_attention import flex_attention

    attend = _compiled(flex_attention)
    query, key, queue = inputs
    keys = queue[None, None]
    _, lse = attend(query[None, None], keys, keys, scale=1 / TEMPERATURE, return_lse=True)
    with torch.no_grad():
        mean = attend(key[None, None], keys, keys, scale=1 / TARGET_TEMPERATURE)[0, 0]
    lse, positive = lse[0, 0], (query * key).sum(dim=1) / TEMPERATURE
    relational = lse - (query * mean).sum(dim=1) / TEMPERATURE
    contrastive, ceiling = F.softplus(lse - positive), F.softplus(positive - lse)
    return (COEFFICIENT * contrastive + (1 - COEFFICIENT) * (relational + ceiling)).mean()


def lightly_info_nce() -> Loss:
    from lightly.loss import NTXentLoss

    banks: dict[tuple[int, ...], NTXentLoss] = {}

    def loss(inputs: Inputs) -> Tensor:
        shape = tuple(inputs.queue.shape)
        if shape not in banks:
            banks[shape] = NTXentLoss(TEMPERATURE, memory_bank_size=shape).to(inputs.query.device)
        return banks[shape](inputs.query, inputs.key)

    return loss


_compilations: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    if function not in _compilations:
        _compilations[function] = torch.compile(function)
    return _compilations[function]


def implementations(loss: str, device: torch.device, dtype: torch.dtype) -> dict[str, Loss | str]:
    """Name -> loss of what can run, or why it cannot."""
    found: dict[str, Loss | str] = {}
    for backend in BACKENDS:
        try:
            choose_backend("queue_attention", BACKENDS, device, dtype, dtype, requested=backend)
        except ValueError as error:
            found[backend] = str(error).partition(": ")[2].partition("; available")[0]
        else:
            found[backend] = our_sce(backend) if loss == "sce" else our_info_nce(backend)
    dense = dense_sce if loss == "sce" else dense_info_nce
    found["eager"] = dense
    found["torch.compile of eager"] = lambda inputs: _compiled(dense)(inputs)
    if loss == "sce":
        found["FlexAttention"] = flex_sce
    else:
        try:
            found["lightly NTXentLoss"] = lightly_info_nce()
        except ImportError:
            found["lightly NTXentLoss"] = "lightly is not installed"
    return found


def step_of(loss: Loss, inputs: Inputs) -> Callable[[], None]:
    def step() -> None:
        torch.autograd.grad(loss(inputs), inputs.query)

    return step


def peak_bytes(loss: str, name: str, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> int:
    """What a call adds to its inputs."""
    if device.type == "cuda":
        function = implementations(loss, device, dtype)[name]
        assert callable(function)
        return allocated_bytes(step_of(function, make_inputs(*shape, device, dtype)))
    return measured_in_new_process(__file__, json.dumps({"loss": loss, "name": name, "shape": shape}))


def measure(task: str) -> int:
    """What a call adds to its inputs; in a process of its own."""
    options = json.loads(task)
    cpu = torch.device("cpu")
    function = implementations(options["loss"], cpu, torch.float32)[options["name"]]
    step_of(function, make_inputs(8, 64, options["shape"][2], cpu, torch.float32))()  # what is loaded once
    return resident_bytes(step_of(function, make_inputs(*options["shape"], cpu, torch.float32)))


def table(
    loss: str, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, repeats: int, peak_flops: float
) -> dict[str, tuple[float, float]]:
    """Print the rows of one loss and shape; median seconds and peak bytes by name."""
    n, k, d = shape
    inputs = make_inputs(n, k, d, device, dtype)
    flops = (2 if loss == "sce" else 1) * 4 * n * k * d
    runs, excuses = {}, {}
    for name, function in implementations(loss, device, dtype).items():
        if isinstance(function, str):
            excuses[name] = function
            continue
        try:
            step_of(function, inputs)()
        except Exception as error:  # whatever another library raises where it cannot run
            excuses[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
        else:
            runs[name] = step_of(function, inputs)
    found = times_s(runs, repeats, device)
    print(f"\n{loss}  n {n}  k {k}  d {d}  {str(dtype).removeprefix('torch.')}  ({flops / 1e9:.1f} GFLOP)\n")
    print("| implementation | median ms | spread ms | GFLOP/s | of peak | to eager | peak MB |")
    print("|---|---|---|---|---|---|---|")
    results = {}
    for name, times in found.items():
        peak = peak_bytes(loss, name, shape, device, dtype)
        results[name] = (times.median, peak)
        print(
            f"| {name} | {1e3 * times.median:.2f} | {1e3 * times.low:.2f} to {1e3 * times.high:.2f} "
            f"| {flops / times.median / 1e9:.0f} | {100 * flops / times.median / peak_flops:.0f} % "
            f"| {found['eager'].median / times.median:.2f}x | {peak / 1e6:.1f} |",
            flush=True,
        )
    for name, excuse in excuses.items():
        print(f"| {name} | not run: {excuse} | | | | | |")
    return results


def plot(sweep: dict[int, dict[str, tuple[float, float]]], file: Path, title: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (times, memory) = plt.subplots(1, 2, figsize=(10, 4.2))
    for name in dict.fromkeys(name for results in sweep.values() for name in results):
        points = [(k, *results[name]) for k, results in sweep.items() if name in results]
        keys, seconds, peaks = zip(*points, strict=True)
        style = {"marker": "o", "lw": 2.4 if name in BACKENDS else 1.2, "ls": "-" if name in BACKENDS else "--"}
        times.plot(keys, [1e3 * value for value in seconds], label=name, **style)
        memory.plot(keys, [max(value, 1e5) / 1e6 for value in peaks], label=name, **style)
    times.set(xscale="log", yscale="log", xlabel="queue rows", ylabel="ms, forward and gradient")
    memory.set(xscale="log", yscale="log", xlabel="queue rows", ylabel="MB above the inputs (at least 0.1)")
    times.legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    print(f"wrote {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="bfloat16 on CUDA only")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="3 repeats of the first shape")
    parser.add_argument(
        "--out", type=Path, help="folder for the plot of the sweep over k; without it there is no sweep"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(arguments.measure))
        return
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    if dtype == torch.bfloat16 and device.type != "cuda":
        parser.error("--dtype bfloat16 is for CUDA")
    repeats, shapes = (3, SHAPES[:1]) if arguments.quick else (arguments.repeats, SHAPES)

    print(__doc__.partition("\n")[0])
    print(describe_machine(device))
    peak_flops = measured_peak_flops(device, dtype)
    print(f"measured peak of {arguments.dtype} products: {peak_flops / 1e9:.0f} GFLOP/s; {repeats} runs in turns")
    for shape in shapes:
        table("sce", shape, device, dtype, repeats, peak_flops)
        table("info_nce", shape, device, dtype, repeats, peak_flops)
    if arguments.out:
        sweep = {k: table("sce", (256, k, 128), device, dtype, 3, peak_flops) for k in SWEEP}
        title = f"SCE's loss, n 256, d 128, {arguments.dtype}. {' '.join(describe_machine(device).splitlines()[2:])}"
        plot(sweep, arguments.out / f"queue_attention_{device.type}.png", title)


if __name__ == "__main__":
    main()
