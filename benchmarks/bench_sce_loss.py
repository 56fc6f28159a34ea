"""Peak memory above its inputs, and time, of SCE's loss: forward and backward at n 256, k 65536, d 128.

python benchmarks/bench_sce_loss.py            # CPU, and the GPU if there is one
python benchmarks/bench_sce_loss.py --quick

Memory on the CPU is the rise of the peak resident set (VmHWM, reset before the call) of a fresh process over its
resident set with the inputs there (Linux with glibc; good to about 1 MB). A tiny call first loads what libraries load
once. Free heap goes back to the system before (malloc_trim) and large allocations come straight from it
(MALLOC_MMAP_THRESHOLD_), so that nothing hides in memory freed earlier. On the GPU it is the peak of torch's allocator
over what the inputs occupy.
"""

import argparse
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import describe_machine, median_times_s

from ssl_sce.loss import sce_loss

NUM_ROWS, QUEUE_LENGTH, DIM = 256, 65536, 128
BACKENDS = ["reference", "tiled"]


def forward_and_backward(num_rows: int, queue_length: int, device: torch.device, backend: str) -> Callable[[], None]:
    query = F.normalize(torch.randn(num_rows, DIM, device=device), dim=1).requires_grad_()
    key = F.normalize(torch.randn(num_rows, DIM, device=device), dim=1)
    queue = torch.randn(queue_length, DIM, device=device)
    queue /= queue.norm(dim=1, keepdim=True)

    def run() -> None:
        query.grad = None
        sce_loss(query, key, queue, backend=backend).backward()

    return run


def cpu_peak_bytes(backend: str) -> int:
    """Runs in a process of its own."""
    cpu = torch.device("cpu")
    forward_and_backward(8, 64, cpu, backend)()
    run = forward_and_backward(NUM_ROWS, QUEUE_LENGTH, cpu, backend)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}")


def cpu_peak_bytes_of_fresh_process(backend: str) -> int:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", backend],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def gpu_peak_bytes(backend: str) -> int:
    device = torch.device("cuda")
    run = forward_and_backward(NUM_ROWS, QUEUE_LENGTH, device, backend)
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--quick", action="store_true", help="3 repeats")
    parser.add_argument("--measure", choices=BACKENDS, help="print the CPU peak of one call in bytes, and nothing else")
    arguments = parser.parse_args()
    if arguments.measure:
        print(cpu_peak_bytes(arguments.measure))
        return
    repeats = 3 if arguments.quick else arguments.repeats
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

    print(f"SCE's loss, float32, forward and backward, n {NUM_ROWS}, k {QUEUE_LENGTH}, d {DIM}")
    print(describe_machine(torch.device(devices[-1])))
    print(f"peak memory above inputs (10^6 bytes; the goal on the CPU is below 40); median time of {repeats} runs\n")
    print(f"{'device':>6}  {'back-end':>9}  {'peak':>10}  {'time':>10}")
    for name in devices:
        device = torch.device(name)
        runs = {backend: forward_and_backward(NUM_ROWS, QUEUE_LENGTH, device, backend) for backend in BACKENDS}
        times_s = median_times_s(runs, repeats, device)
        for backend in BACKENDS:
            if name == "cuda":
                peak = f"{gpu_peak_bytes(backend) / 1e6:>7.1f} MB"
            elif sys.platform == "linux":
                peak = f"{cpu_peak_bytes_of_fresh_process(backend) / 1e6:>7.1f} MB"
            else:
                peak = "Linux only"
            print(f"{name:>6}  {backend:>9}  {peak:>10}  {1e3 * times_s[backend]:>7.2f} ms")


if __name__ == "__main__":
    main()
