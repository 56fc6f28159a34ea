"""Time of queue attention, forward and gradient: tiled against the dense reference.

python benchmarks/bench_queue_attention.py            # on the GPU if there is one
python benchmarks/bench_queue_attention.py --device cpu --quick
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from machine import describe_machine, median_times_s
from torch import Tensor

from ssl_core.ops import queue_attention

# n queries, k queue rows, d dimension.
SHAPES = [(252, 65536, 128), (510, 65536, 256), (510, 16384, 256)]
BACKENDS = ["reference", "tiled"]


def forward_and_gradient(query: Tensor, queue: Tensor, temperature: Tensor, backend: str) -> Callable[[], None]:
    def run() -> None:
        lse, _ = queue_attention(query, queue, temperature, backend=backend)
        torch.autograd.grad(lse.sum(), query)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--quick", action="store_true", help="3 repeats of the first shape")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    repeats, shapes = (3, SHAPES[:1]) if arguments.quick else (arguments.repeats, SHAPES)

    print("Queue attention, float32, forward and gradient to the query, one temperature per row")
    print(describe_machine(device))
    print(f"median of {repeats} runs, back-ends in turns\n")
    print(f"{'n x k x d':>18}  " + "  ".join(f"{name:>12}" for name in BACKENDS) + "  speed-up  tiled GFLOP/s")
    for n, k, d in shapes:
        query = F.normalize(torch.randn(n, d, device=device), dim=1).requires_grad_()
        queue = F.normalize(torch.randn(k, d, device=device), dim=1)
        temperature = torch.linspace(0.05, 0.1, n, device=device)
        runs = {name: forward_and_gradient(query, queue, temperature, name) for name in BACKENDS}
        times_s = median_times_s(runs, repeats, device)
        print(
            f"{f'{n} x {k} x {d}':>18}  "
            + "  ".join(f"{1e3 * times_s[name]:>9.2f} ms" for name in BACKENDS)
            + f"  {times_s['reference'] / times_s['tiled']:>7.2f}x"
            + f"  {4 * n * k * d / times_s['tiled'] / 1e9:>13.0f}"
        )


if __name__ == "__main__":
    main()
