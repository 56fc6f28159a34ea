"""What every benchmark prints beside its numbers: date, hardware, versions, commit, load; and how times are taken."""

import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

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


def median_times_s(runs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each run, after one warm-up; taken in turns, so that all see the same load."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if repeat > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


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
