"""What benchmarks share: date, hardware, versions, commit and load to print, and how times and memory are taken."""

import ctypes
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch


def describe_machine(device: torch.device) -> str:
    """Date, hardware, versions, commit and load in three lines."""
    # With other processes at work, times of several threads mean little: every barrier waits for a time slice.
    load = f"  load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return "\n".join(
        [
            f"{datetime.date.today()}  commit {_commit()}  {platform.system()} {platform.machine()}",
            f"Python {platform.python_version()}  torch {torch.__version__}  CUDA {torch.version.cuda}",
            f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads{load}"
            + (f"  {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""),
        ]
    )


class Times(NamedTuple):
    """Seconds: the median, and the quantiles 0.2 and 0.8."""

    median: float
    low: float
    high: float


def times_s(runs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, Times]:
    """Time of each run, after one warm-up; taken in turns, so that all see the same load."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if repeat > 0:
                times[name].append(time.perf_counter() - start)
    found = {}
    for name, values in times.items():
        quantiles = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.5, 0.2, 0.8]).double())
        found[name] = Times(*quantiles.tolist())
    return found


def measured_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that the device was seen to reach: of fused multiply-adds on the CPU, of a product on a GPU.

    Raises:
        OSError: if the CPU has no C++ compiler to build fma_peak.cpp with.
    """
    if device.type == "cuda":
        a, b = (torch.randn(8192, 8192, device=device, dtype=dtype) for _ in range(2))
        best = min(times_s({"mm": lambda: a @ b}, 20, device)["mm"][:2])
        return 2 * 8192**3 / best
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(__file__).with_name("fma_peak.cpp"), f"{folder}/fma_peak"
        command = [os.environ.get("CXX", "g++"), "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", str(source)]
        subprocess.run([*command, "-o", program], check=True)
        done = subprocess.run([program, str(torch.get_num_threads())], capture_output=True, text=True, check=True)
        return float(done.stdout)


def allocated_bytes(run: Callable[[], object]) -> int:
    """Rise of torch's memory on the current GPU in the second call of a run."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident_bytes(run: Callable[[], object]) -> int:
    """Rise of this process's resident set in one call of a run (Linux with glibc; to about 1 MB)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def measured_in_new_process(file: str, task: str) -> int:
    """The number that ``python file --measure task`` prints last, whose heap is free of what ran before."""
    done = subprocess.run(
        [sys.executable, file, "--measure", task],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
