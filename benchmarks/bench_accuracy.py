"""How far lse and E are from float64, against the length of the queue, and the error of the exponential by itself.

python benchmarks/bench_accuracy.py --out benchmarks/results
python benchmarks/bench_accuracy.py --quick

Each back-end and, of the compiled one, each instruction set; keys that are random, keys of which three take turns, so
that every block of the queue rounds alike, and keys that are all the same. Errors are the largest of 16 queries.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import compiled, describe_machine
from torch import Tensor

from ssl_core.ops import cpp, queue_attention

BACKENDS = [*(f"cpp {isa}" for isa in cpp.instruction_sets()), "tiled", "sdpa", "reference"]
DIMENSIONS = [1, 2, 128]
LENGTHS = [100, 1000, 10_000, 65_536, 262_144]
NUM_QUERIES, TEMPERATURE = 16, 0.5
ROUNDING = 2.0**-24
KEYS = {
    "random": lambda k, d: torch.randn(k, d),
    "three in turn": lambda k, d: torch.randn(3, d).repeat(k // 3 + 1, 1)[:k],
    "one and the same": lambda k, d: torch.randn(1, d).expand(k, d),
}
# (keys, d, k) -> back-end -> largest errors of lse and E.
Errors = dict[tuple[str, int, int], dict[str, tuple[float, float]]]


def errors_of(query: Tensor, queue: Tensor) -> dict[str, tuple[float, float]]:
    """Largest errors of lse (nats) and of E, by back-end."""
    exact = queue_attention(query.double(), queue.double(), TEMPERATURE, backend="reference")
    found = {}
    for name in BACKENDS:
        backend, _, isa = name.partition(" ")
        os.environ["SSL_CORE_CPU_ISA"] = isa
        actual = queue_attention(query, queue, TEMPERATURE, backend=backend)
        lse, expectation = (float((a.double() - e).abs().max()) for a, e in zip(actual, exact, strict=True))
        found[name] = lse, expectation
    del os.environ["SSL_CORE_CPU_ISA"]
    return found


def measure(lengths: list[int]) -> Errors:
    errors = {}
    for kind, make in KEYS.items():
        for d in DIMENSIONS:
            for k in lengths:
                torch.manual_seed(2)  # with it two of three keys of dimension 1 are alike
                query, queue = (F.normalize(rows, dim=1) for rows in (torch.randn(NUM_QUERIES, d), make(k, d)))
                errors[kind, d, k] = errors_of(query, queue)
    return errors


def print_exponential() -> None:
    """Table of the exponential of each instruction set, in units of the rounding 2^-24."""
    print(f"\n### 2^x at every float32 from -126 to 0: relative errors in units of {ROUNDING:.2e}, one rounding\n")
    print("| implementation | largest | at x | mean | root mean square |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for isa in cpp.instruction_sets():
            lines = compiled("exp2_error.cpp", isa, folder)().splitlines()
            names = [f"kernels, {isa}", "the C library's"] if isa == "generic" else [f"kernels, {isa}"]
            for name, line in zip(names, lines, strict=False):
                largest, mean, square, at = map(float, line.split())
                errors = (f"{value / ROUNDING:.3f}" for value in (mean, square))
                print(f"| {name} | {largest / ROUNDING:.2f} | {at:.6g} | {' | '.join(errors)} |", flush=True)


def print_errors(errors: Errors) -> None:
    names = [name.replace("reference", "eager") for name in BACKENDS]
    for index, what in enumerate(("lse, nats", "E, of unit keys")):
        print(f"\n### Largest error of {what}; temperature {TEMPERATURE}, {NUM_QUERIES} queries\n")
        print(f"| keys | d | k | {' | '.join(names)} |\n|{'---|' * (3 + len(names))}")
        for (kind, d, k), found in errors.items():
            print(f"| {kind} | {d} | {k:,} | {' | '.join(f'{found[name][index]:.1e}' for name in BACKENDS)} |")


def plot(errors: Errors, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = {BACKENDS[0]: "C0", "tiled": "C1", "sdpa": "C2", "reference": "C3"}
    lengths = list(dict.fromkeys(k for _, _, k in errors))
    figure, panels = plt.subplots(len(KEYS), len(DIMENSIONS), figsize=(11, 9), sharex=True, sharey=True)
    for row, kind in zip(panels, KEYS, strict=True):
        for panel, d in zip(row, DIMENSIONS, strict=True):
            for name, color in shown.items():
                # Exact results are drawn at the lower edge.
                values = [max(errors[kind, d, k][name][1], 1e-9) for k in lengths]
                label = name.replace("reference", "eager PyTorch")
                panel.plot(
                    lengths, values, marker="o", color=color, lw=2.2 if name == BACKENDS[0] else 1.2, label=label
                )
            panel.set(xscale="log", yscale="log", title=f"d {d}, keys {kind}")
            panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("queue rows k")
    for panel in panels[:, 0]:
        panel.set_ylabel("largest error of E")
    panels[0, 0].legend(fontsize=8)
    figure.suptitle(f"Error of E against float64, float32, temperature {TEMPERATURE}", fontsize=11)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    print(f"\nwrote {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="queues of up to 10,000 keys, and no exponential")
    parser.add_argument("--out", type=Path, help="folder for the plot")
    arguments = parser.parse_args()
    print(__doc__.partition("\n")[0])
    print(describe_machine(torch.device("cpu")))
    if not arguments.quick:
        print_exponential()
    errors = measure(LENGTHS[:3] if arguments.quick else LENGTHS)
    print_errors(errors)
    if arguments.out:
        plot(errors, arguments.out / "accuracy_cpu.png")


if __name__ == "__main__":
    main()
