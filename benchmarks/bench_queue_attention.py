"""SCE's loss and InfoNCE over a queue: time, arithmetic and memory of every implementation, in one run.

python benchmarks/bench_queue_attention.py --out benchmarks/results      # on the GPU if there is one
python benchmarks/bench_queue_attention.py --device cpu --quick
python benchmarks/bench_queue_attention.py --dtype bfloat16 --what attention --shapes 1024x65536x128

Losses with their gradient to the queries, and attention (lse and expectation) alone, on the same inputs, in turns;
"unit rows" is attention with the promise of normalized rows. What differs from the reference is not timed. Beside this
repository's back-ends: the loss as the papers' codes write it (dense, autograd), that through torch.compile,
FlexAttention with lse, and lightly's NTXentLoss with a memory bank (InfoNCE only, which enqueues as well). Operations
are counted as 4 n k d for each set of n queries, whatever an implementation executes. Peak memory is what a call adds
to its inputs: on the CPU the rise of the resident set of a fresh process, on the GPU that of torch's allocator.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from ssl_core.ops import queue_attention
from ssl_core.ops.backends import choose_backend
from ssl_core.ops.queue_attention import BACKENDS

# n queries, k queue rows, d dimension.
SHAPES = [(256, 65536, 128), (512, 65536, 256), (512, 16384, 256)]
# On a GPU, where the largest of the tables above take less than a millisecond.
GPU_SHAPES = [(n, 65536, d) for d in (128, 256) for n in (256, 512, 1024, 4096)]
USES_UNIT_ROWS = ("cpp", "triton", "cuda")
# Beyond what any rounding of bfloat16 logits does; nats.
WRONG = 0.2
SWEEP = [4096, 16384, 65536, 262144, 1048576]  # k, at n 256 and d 128
TEMPERATURE, TARGET_TEMPERATURE, COEFFICIENT = 0.1, 0.05, 0.5


class Inputs(NamedTuple):
    """Of one shape, on one device."""

    query: Tensor
    key: Tensor
    queue: Tensor


# Of a loss, its value; of attention, lse and expectation.
Function = Callable[[Inputs], Any]
# Rows of any number of runs: what, shape, dtype and implementation, seconds, and bytes above the inputs.
Record = dict[str, Any]


def make_inputs(n: int, k: int, d: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    query, key, queue = (
        F.normalize(torch.randn(rows, d, generator=generator), dim=1).to(device, dtype) for rows in (n, n, k)
    )
    return Inputs(query.requires_grad_(), key, queue)


def dense_attention(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Lse and expectation as anyone would write them."""
    logits = inputs.query @ inputs.queue.T / TEMPERATURE
    return logits.logsumexp(dim=1), logits.softmax(dim=1) @ inputs.queue


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


def our_attention(backend: str, *, unit_rows: bool = False) -> Function:
    return lambda inputs: queue_attention(
        inputs.query, inputs.queue, TEMPERATURE, normalized=unit_rows, backend=backend
    )


def our_sce(backend: str) -> Function:
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


def our_info_nce(backend: str) -> Function:
    return lambda inputs: info_nce(inputs.query, inputs.key, inputs.queue, TEMPERATURE, backend=backend).mean()


def flex_attention_alone(inputs: Inputs) -> tuple[Tensor, Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    keys = inputs.queue[None, None]
    attend = _compiled(flex_attention)
    expectation, lse = attend(inputs.query[None, None], keys, keys, scale=1 / TEMPERATURE, return_lse=True)
    return lse[0, 0], expectation[0, 0]


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


def lightly_info_nce() -> Function:
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


DENSE: dict[str, Function] = {"attention": dense_attention, "sce": dense_sce, "info_nce": dense_info_nce}


def implementations(what: str, device: torch.device, dtype: torch.dtype, dim: int) -> dict[str, Function | str]:
    """Name -> function of what can run, or why it cannot."""
    ours = {"attention": our_attention, "sce": our_sce, "info_nce": our_info_nce}[what]
    found: dict[str, Function | str] = {}
    for backend in BACKENDS:
        try:
            choose_backend("queue_attention", BACKENDS, device, dtype, dtype, requested=backend, dim=dim, exclude=False)
        except ValueError as error:
            found[backend] = str(error).partition(": ")[2].partition("; available")[0]
            continue
        found[backend] = ours(backend)
        if what == "attention" and backend in USES_UNIT_ROWS:
            found[f"{backend}, unit rows"] = our_attention(backend, unit_rows=True)
    dense = DENSE[what]
    found["eager"] = dense
    found["torch.compile of eager"] = lambda inputs: _compiled(dense)(inputs)
    if what == "attention":
        found["FlexAttention"] = flex_attention_alone
    elif what == "sce":
        found["FlexAttention"] = flex_sce
    else:
        try:
            found["lightly NTXentLoss"] = lightly_info_nce()
        except ImportError:
            found["lightly NTXentLoss"] = "lightly is not installed"
    return found


def step_of(what: str, function: Function, inputs: Inputs) -> Callable[[], None]:
    def step() -> None:
        if what == "attention":
            with torch.no_grad():
                function(inputs)
        else:
            torch.autograd.grad(function(inputs), inputs.query)

    return step


@torch.no_grad()
def largest_difference(what: str, function: Function, inputs: Inputs) -> float:
    """Between an implementation and the reference in float32: of lse and expectation, or of the loss; nats."""
    exact = Inputs(*(tensor.float() for tensor in inputs))
    reference = {"attention": our_attention, "sce": our_sce, "info_nce": our_info_nce}[what]("reference")
    pairs = zip(_as_tuple(function(inputs)), _as_tuple(reference(exact)), strict=True)
    return max(float((ours - other).abs().max()) for ours, other in pairs)


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def peak_bytes(what: str, name: str, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> int:
    """What a call adds to its inputs."""
    if device.type == "cuda":
        function = implementations(what, device, dtype, shape[2])[name]
        assert callable(function)
        return allocated_bytes(step_of(what, function, make_inputs(*shape, device, dtype)))
    return measured_in_new_process(__file__, json.dumps({"what": what, "name": name, "shape": shape}))


def measure(task: str) -> int:
    """What a call adds to its inputs; in a process of its own."""
    options = json.loads(task)
    cpu, what, dim = torch.device("cpu"), options["what"], options["shape"][2]
    function = implementations(what, cpu, torch.float32, dim)[options["name"]]
    assert callable(function)
    step_of(what, function, make_inputs(8, 64, dim, cpu, torch.float32))()  # what is loaded once
    return resident_bytes(step_of(what, function, make_inputs(*options["shape"], cpu, torch.float32)))


def table(
    what: str,
    shape: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    peak_flops: float,
    left_out: Sequence[str] = (),
) -> list[Record]:
    """Print and return the rows of one shape, without those whose names are left out; "memory" leaves out that."""
    n, k, d = shape
    inputs = make_inputs(n, k, d, device, dtype)
    flops = (2 if what == "sce" else 1) * 4 * n * k * d
    runs, excuses = {}, {}
    for name, function in implementations(what, device, dtype, d).items():
        if isinstance(function, str):
            excuses[name] = function
            continue
        if name in left_out:
            excuses[name] = "left out"
            continue
        try:
            step_of(what, function, inputs)()
            # lightly's memory bank holds keys of its own.
            difference = 0.0 if name.startswith("lightly") else largest_difference(what, function, inputs)
        except Exception as error:  # whatever another library raises where it cannot run
            excuses[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            continue
        if difference <= WRONG:
            runs[name] = step_of(what, function, inputs)
        else:  # or not a number
            excuses[name] = f"wrong by {difference:.2g} nats"
    found = times_s(runs, repeats, device)
    name_of_dtype = str(dtype).removeprefix("torch.")
    print(f"\n{what}  n {n}  k {k}  d {d}  {name_of_dtype}  ({flops / 1e9:.1f} GFLOP)\n")
    print("| implementation | median ms | spread ms | GFLOP/s | of peak | to eager | peak MB |")
    print("|---|---|---|---|---|---|---|")
    records: list[Record] = []
    for name, times in found.items():
        record: Record = {"what": what, "n": n, "k": k, "d": d, "dtype": name_of_dtype, "implementation": name}
        record |= {"seconds": times.median, "flops": flops, "peak_flops": peak_flops}
        if "memory" not in left_out:
            record["bytes"] = peak_bytes(what, name, shape, device, dtype)
        records.append(record)
        memory = f"{record['bytes'] / 1e6:.1f}" if "bytes" in record else "not measured"
        print(
            f"| {name} | {1e3 * times.median:.3f} | {1e3 * times.low:.3f} to {1e3 * times.high:.3f} "
            f"| {flops / times.median / 1e9:.0f} | {100 * flops / times.median / peak_flops:.0f} % "
            f"| {found['eager'].median / times.median:.2f}x | {memory} |",
            flush=True,
        )
    for name, excuse in excuses.items():
        print(f"| {name} | not run: {excuse} | | | | | |")
    return records


def plot(records: list[Record], file: Path, title: str) -> None:
    """Time and memory against the length of the queue: ours bold, dense PyTorch broken, our other backends thin."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(record["implementation"] for record in records))
    ours = next(name for name in names if name in BACKENDS)  # the one that runs where nothing is said
    labels = {
        ours: f"this library ({ours})",
        "eager": "PyTorch, dense",
        "torch.compile of eager": "the same, torch.compile",
    }
    figure, (times, memory) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name in names:
        points = [record for record in records if record["implementation"] == name]
        keys = [record["k"] for record in points]
        style = {"color": "0.8", "lw": 1} if name not in labels else {"lw": 3 if name == ours else 1.6, "marker": "o"}
        style |= {"ls": "-" if name in BACKENDS else "--", "zorder": 2 if name in labels else 1}
        for panel, column, scale in ((times, "seconds", 1e3), (memory, "bytes", 1e-6)):
            values = [scale * max(record[column], 1e-9) for record in points]
            (line,) = panel.plot(keys, values, **style)
            if name in labels and panel is memory:  # the colors are those of the other panel too
                place = {"textcoords": "offset points", "va": "center", "color": line.get_color()}
                panel.annotate(labels[name], (keys[-1], values[-1]), (10, 0), **place)
    for panel, what in ((times, "milliseconds, loss and gradient"), (memory, "MB above the inputs")):
        panel.set(xscale="log", yscale="log", xlabel="keys in the queue", title=what)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=9, color="0.4")
    figure.savefig(file, dpi=130)
    print(f"wrote {file}")


def shape_of(text: str) -> tuple[int, int, int]:
    """Of "256x65536x128"."""
    n, k, d = map(int, text.split("x"))
    return n, k, d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="bfloat16 on CUDA only")
    parser.add_argument("--what", nargs="+", default=["sce", "info_nce"], choices=list(DENSE))
    parser.add_argument("--shapes", nargs="+", type=shape_of, help="n x k x d, as in 256x65536x128")
    parser.add_argument("--leave-out", nargs="+", default=[], help='names of rows, and "memory" for that column')
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="3 repeats of the first shape")
    parser.add_argument("--json", type=Path, help="file for all rows, written anew after every table")
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
    shapes = arguments.shapes or (GPU_SHAPES if device.type == "cuda" else SHAPES)
    repeats, shapes = (3, shapes[:1]) if arguments.quick else (arguments.repeats, shapes)

    print(__doc__.partition("\n")[0])
    print(describe_machine(device))
    peak_flops = measured_peak_flops(device, dtype)
    print(f"measured peak of {arguments.dtype} products: {peak_flops / 1e9:.0f} GFLOP/s; {repeats} runs in turns")
    records = []
    for what in arguments.what:
        for shape in shapes:
            records += table(what, shape, device, dtype, repeats, peak_flops, arguments.leave_out)
            if arguments.json:
                arguments.json.write_text(json.dumps(records, indent=1))
    if arguments.out:
        sweep = [record for k in SWEEP for record in table("sce", (256, k, 128), device, dtype, 3, peak_flops)]
        title = f"SCE's loss, n 256, d 128, {arguments.dtype}. {' '.join(describe_machine(device).splitlines()[2:])}"
        plot(sweep, arguments.out / f"queue_attention_{device.type}.png", title)


if __name__ == "__main__":
    main()
