"""What benchmarks share: date, hardware, versions, commit and load to print, and how times and memory are taken.

python benchmarks/machine.py    # prints that, and the rates that the machine reaches
"""

import argparse
import ctypes
import datetime
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_core.machine import processor_name


def describe_machine(device: torch.device) -> str:
    """Date, hardware, versions, commit and load in three lines."""
    # With other processes at work, times of several threads mean little: every barrier waits for a time slice.
    load = f"  load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return "\n".join(
        [
            f"{datetime.date.today()}  commit {_commit()}  {platform.system()} {platform.machine()}",
            f"Python {platform.python_version()}  torch {torch.__version__}  {_triton()}  CUDA {torch.version.cuda}",
            f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads{load}"
            + (f"  {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""),
        ]
    )


# The peak is that of the instruction set that the kernels are held to.
_FLAGS = {None: ["-march=native"], "avx512": ["-march=native"], "avx2": ["-mavx2", "-mfma"], "generic": []}


class Times(NamedTuple):
    """Seconds: the median, and the quantiles 0.2 and 0.8."""

    median: float
    low: float
    high: float


def wall_times_s(runs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, Times]:
    """Time of each run as the host sees it, after one warm-up; taken in turns, so that all see the same load."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if repeat > 0:
                times[name].append(time.perf_counter() - start)
    return {name: _quantiles(values) for name, values in times.items()}


def times_s(runs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, Times]:
    """Time of each run, as :func:`wall_times_s`; on a GPU what the device needs, with nothing in its L2 cache.

    The GPU is kept busy until the host has queued the whole run, so that launches cost nothing, as in a training step
    whose host is ahead.
    """
    if device.type != "cuda":
        return wall_times_s(runs, repeats, device)
    # More than the L2 cache of any GPU holds.
    pushes_out = torch.empty(2**28, dtype=torch.int8, device=device)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            torch.cuda._sleep(10_000_000)  # cycles, about 5 ms
            pushes_out.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            if repeat > 0:
                events[name].append((start, end))
    _wait(device)
    return {name: _quantiles([1e-3 * a.elapsed_time(b) for a, b in pairs]) for name, pairs in events.items()}


def measured_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that the device was seen to reach: of fused multiply-adds on the CPU, of a product on a GPU.

    Raises:
        OSError: if the CPU has no C++ compiler to build fma_peak.cpp with.
    """
    if device.type == "cuda":
        a, b = (torch.randn(8192, 8192, device=device, dtype=dtype) for _ in range(2))
        return 2 * 8192**3 / times_s({"mm": lambda: a @ b}, 20, device)["mm"].low
    with tempfile.TemporaryDirectory() as folder:
        run = compiled("fma_peak.cpp", os.environ.get("SSL_CORE_CPU_ISA"), folder)
        return float(run(str(torch.get_num_threads())))


def compiled(name: str, isa: str | None, folder: str) -> Callable[..., str]:
    """A C++ file of this folder as a function of its arguments that returns what it prints.

    Args:
        name: of the file.
        isa: instruction set to compile for, by default the machine's.
        folder: for the program.
    """
    program = str(Path(folder, f"{Path(name).stem}_{isa}"))
    flags = ["-O3", *_FLAGS[isa], "-ffp-contract=fast", "-fopenmp"]
    command = [os.environ.get("CXX", "g++"), *flags, str(Path(__file__).with_name(name)), "-o", program]
    subprocess.run(command, check=True)
    return lambda *arguments: subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def allocated_bytes(run: Callable[[], object]) -> int:
    """Rise of torch's memory on the current GPU in the second call of a run."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident_bytes(run: Callable[[], object], *, peak: bool = True) -> int:
    """Rise of this process's resident set in one call of a run (Linux with glibc; to about 1 MB).

    Args:
        run: call that is measured.
        peak: whether the largest rise within the call counts, or what is left after it.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    run()
    if not peak:
        ctypes.CDLL(None).malloc_trim(0)
    return _status_bytes("VmHWM" if peak else "VmRSS") - before


def measured_in_new_process(file: str, task: str) -> int:
    """The number that ``python file --measure task`` prints last, whose heap is free of what ran before."""
    done = subprocess.run(
        [sys.executable, file, "--measure", task],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def compare_losses(
    file: str,
    doc: str,
    losses: Mapping[str, Callable[..., Tensor]],
    make_inputs: Callable[..., Sequence[Tensor]],
    *,
    sizes: tuple[int, ...],
    small: tuple[int, ...],
    shown: str,
) -> None:
    """A benchmark's command: each loss with its gradients, in turns; time, and what a call adds to its inputs.

    The first loss is what the others are compared with, the last one is the truth that all must agree with, in float64.

    Args:
        file: of the benchmark, which measures memory in a process of its own.
        doc: the benchmark's docstring.
        losses: (inputs) -> scalar.
        make_inputs: (sizes, device) -> inputs; the gradient is to those that ask for one.
        sizes: to measure.
        small: sizes of a first call, which loads what is loaded once.
        shown: the sizes in words.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=torch.device)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="2 repeats")
    parser.add_argument("--measure", choices=losses, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    def step_of(name: str, inputs: Sequence[Tensor]) -> Callable[[], object]:
        asking = [tensor for tensor in inputs if tensor.requires_grad]
        return lambda: torch.autograd.grad(losses[name](*inputs), asking)

    if arguments.measure:
        cpu = torch.device("cpu")
        step_of(arguments.measure, make_inputs(*small, cpu))()
        print(resident_bytes(step_of(arguments.measure, make_inputs(*sizes, cpu))))
        return
    device, repeats = arguments.device, 2 if arguments.quick else arguments.repeats

    print(doc.partition("\n")[0])
    print(describe_machine(device))
    print(f"{shown}  float32; {repeats} runs in turns\n")
    inputs = make_inputs(*sizes, device)
    exact = list(losses.values())[-1](*(tensor.detach().double() for tensor in inputs))
    for name, loss in losses.items():
        torch.testing.assert_close(loss(*inputs).double(), exact, rtol=1e-5, atol=0, msg=f"{name} is another loss")
    steps = {name: step_of(name, inputs) for name in losses}
    found = times_s(steps, repeats, device)
    unit = next(iter(found.values())).median
    print("| loss | median ms | spread ms | ours is faster by | peak MB |")
    print("|---|---|---|---|---|")
    for name, times in found.items():
        peak = allocated_bytes(steps[name]) if device.type == "cuda" else measured_in_new_process(file, name)
        print(
            f"| {name} | {1e3 * times.median:.1f} | {1e3 * times.low:.1f} to {1e3 * times.high:.1f} "
            f"| {times.median / unit:.2f}x | {peak / 1e6:.1f} |",
            flush=True,
        )


def measured_copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    source = torch.ones(2**30 if device.type == "cuda" else 2**26, device=device)
    copy = torch.empty_like(source)
    return 2 * source.nbytes / times_s({"copy": lambda: copy.copy_(source)}, 10, device)["copy"].low


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}")


def _quantiles(values: list[float]) -> Times:
    quantiles = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    return Times(*torch.tensor(values, dtype=torch.float64).quantile(quantiles).tolist())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _triton() -> str:
    return f"triton {version('triton')}" if find_spec("triton") else "no triton"


def _commit() -> str:
    if shutil.which("git") is None:
        return "unknown"
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    print(describe_machine(device))
    for dtype in (torch.bfloat16, torch.float32) if device.type == "cuda" else (torch.float32,):
        name = str(dtype).removeprefix("torch.")
        print(f"measured peak of {name} products: {measured_peak_flops(device, dtype) / 1e9:.0f} GFLOP/s")
    print(f"measured copy bandwidth, read and written: {measured_copy_bandwidth(device) / 1e9:.0f} GB/s")


if __name__ == "__main__":
    main()
