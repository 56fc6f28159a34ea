"""Measures configurations of the Triton kernel of queue attention, for the table in ssl_core/ops/_triton.

python benchmarks/tune_queue_attention.py --seconds 300            # on a GPU
python benchmarks/tune_queue_attention.py --interpret              # no GPU: tiny shapes, right or wrong, no times

Every configuration is checked against the reference before it is timed, with unit rows, at several n and a queue that
the L2 cache did not keep. Its score is the geometric mean of its share of the measured matrix rate. What does not fit
(registers, shared memory) is a row that says so. Each dimension and dtype gets an equal share of the seconds and stops
where they end; the configuration in use comes first. The last lines are entries of the table.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

# Triton reads it when kernels are defined.
if "--interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F
from machine import describe_machine, measured_peak_flops, times_s
from torch import Tensor

from ssl_core.ops import queue_attention
from ssl_core.ops._triton.queue_attention import Configuration, configuration

TEMPERATURE = 0.1
# Of lse and of the expectation, in nats and in the keys' unit: above what rounding of the weights does.
WRONG = 0.02


class Problem(NamedTuple):
    """One entry of the table, and the sizes at which it is judged."""

    dim: int
    dtype: torch.dtype
    rows: Sequence[int]
    keys: int


def candidates(problem: Problem, device: torch.device) -> list[Configuration]:
    """A small grid, the entry in use first; programs at once last to vary, since they cost no compilation."""
    if device.type == "cpu":
        return [Configuration(16, 32, 4, 1, 1), Configuration(64, 16, 4, 2, 3)]
    in_use = configuration(torch.cuda.get_device_capability(device), problem.dtype, problem.dim)
    if problem.dtype == torch.float32:
        shapes = product((16, 32, 64), (16, 32), (4, 8), (1, 2))
    else:
        shapes = product((128, 64), (128, 64, 32), (8, 4), (3, 2, 4))
    # Of halves, a warp takes 8 or 16 rows of scores: for more it has no registers.
    grid = [
        Configuration(n, k, warps, stages, residents)
        for n, k, warps, stages in shapes
        if n <= 16 * warps or problem.dtype == torch.float32
        for residents in (1, 2, 3)
        if residents * warps <= 16
    ]
    return list(dict.fromkeys([in_use, *grid]))


class Case(NamedTuple):
    """Queries and queue, with the reference's answer in float32."""

    query: Tensor
    queue: Tensor
    exact: tuple[Tensor, Tensor]


def make_cases(problem: Problem, device: torch.device) -> list[Case]:
    """One for each number of queries, with the same queue."""
    generator = torch.Generator().manual_seed(0)
    queue, *queries = (
        F.normalize(torch.randn(rows, problem.dim, generator=generator), dim=1).to(device, problem.dtype)
        for rows in (problem.keys, *problem.rows)
    )
    return [
        Case(query, queue, queue_attention(query.float(), queue.float(), TEMPERATURE, backend="reference"))
        for query in queries
    ]


def measure(config: Configuration, cases: list[Case], peak_flops: float | None) -> list[float] | str:
    """The share of the measured matrix rate in each case (1 where nothing is timed), or why there is none."""
    os.environ["SSL_CORE_TRITON_CONFIG"] = ",".join(map(str, config))
    shares = []
    try:
        for query, queue, exact in cases:

            def run(query: Tensor = query, queue: Tensor = queue) -> tuple[Tensor, Tensor]:
                return queue_attention(query, queue, TEMPERATURE, normalized=True, backend="triton")

            error = max(float((ours - other).abs().max()) for ours, other in zip(run(), exact, strict=True))
            if not error <= WRONG:
                return f"wrong by {error:.2g}"
            if peak_flops is None:
                shares.append(1.0)
                continue
            seconds = times_s({"run": run}, 9, query.device)["run"].median
            shares.append(4 * query.numel() * len(queue) / seconds / peak_flops)
    except Exception as error:  # what Triton, ptxas or the driver raise for what does not fit
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    finally:
        del os.environ["SSL_CORE_TRITON_CONFIG"]
    return shares


def tune(problem: Problem, device: torch.device, peak_flops: float | None, deadline: float) -> str:
    """Print a row for each configuration until the deadline; the best one, as an entry of the table."""
    name = str(problem.dtype).removeprefix("torch.")
    print(f"\nd {problem.dim}  {name}  k {problem.keys}\n")
    print(f"| {' | '.join(Configuration._fields)} | {' | '.join(f'n {n}' for n in problem.rows)} | score |")
    print("|---" * (len(Configuration._fields) + len(problem.rows) + 1) + "|")
    best, best_score, untried = None, 0.0, 0
    cases = make_cases(problem, device)
    for config in candidates(problem, device):
        if time.monotonic() > deadline:
            untried += 1
            continue
        cells = " | ".join(map(str, config))
        shares = measure(config, cases, peak_flops)
        if isinstance(shares, str):
            print(f"| {cells} | {shares} {'| ' * len(problem.rows)}|", flush=True)
            continue
        score = math.prod(shares) ** (1 / len(shares))
        if score > best_score:
            best, best_score = config, score
        times = " | ".join("right" if peak_flops is None else f"{100 * share:.1f} %" for share in shares)
        print(f"| {cells} | {times} | {'not timed' if peak_flops is None else f'{100 * score:.1f} %'} |", flush=True)
    if untried:
        print(f"\n{untried} configurations were not reached")
    if best is None:
        return f"    # {problem.dim}: nothing ran"
    judged = "not timed" if peak_flops is None else f"{100 * best_score:.0f} % of the measured matrix rate"
    return f"    {problem.dim}: Configuration({', '.join(map(str, best))}),  # {name}: {judged}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", nargs="+", type=int, default=[128, 256, 64])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--rows", nargs="+", type=int, default=[256, 1024, 4096], help="queries")
    parser.add_argument("--keys", type=int, default=65536)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--interpret", action="store_true", help="tiny shapes on the CPU, without times")
    arguments = parser.parse_args()
    if arguments.interpret:
        device, rows, keys = torch.device("cpu"), [19, 48], 130
    elif torch.cuda.is_available():
        device, rows, keys = torch.device("cuda"), arguments.rows, arguments.keys
    else:
        parser.error("there is no CUDA device; --interpret checks the configurations' correctness without one")

    print(__doc__.partition("\n")[0])
    print(describe_machine(device))
    problems = [Problem(dim, getattr(torch, dtype), rows, keys) for dtype in arguments.dtypes for dim in arguments.dims]
    entries = []
    end = time.monotonic() + arguments.seconds
    for index, problem in enumerate(problems):
        now = time.monotonic()
        peak_flops = None if arguments.interpret else measured_peak_flops(device, problem.dtype)
        entries.append(tune(problem, device, peak_flops, now + (end - now) / (len(problems) - index)))
    where = (
        "the interpreter" if arguments.interpret else f"compute capability {torch.cuda.get_device_capability(device)}"
    )
    print(f"\nFor {where}:\n")
    print("\n".join(entries))


if __name__ == "__main__":
    main()
