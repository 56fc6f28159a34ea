"""Versions, devices, the implementation of each op, and the decoder of JPEGs."""

import os
import platform
import shutil
from importlib.metadata import distributions, version

import torch

from ssl_core import jpeg, machine, ops


def doctor() -> None:
    """Print versions, processors, devices, which implementation each op uses on each device, and who decodes JPEGs."""
    rows = {"python": f"{platform.python_version()} on {platform.platform()}"}
    installed = {str(found.metadata["Name"]) for found in distributions()}
    ours = sorted(name for name in installed if name.startswith("ssl-"))
    for name in (*ours, "torch", "torchvision", "timm", "triton"):
        rows[name] = version(name) if name in installed else "not installed"
    rows["cpu"] = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    quota = machine.cpu_quota()
    rows["processors"] = f"{machine.usable_cores()} usable: {machine.affinity()} by affinity, " + (
        "no quota" if quota is None else f"{quota:g} by the control group's quota"
    )
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        by = "chosen by this command" if name in machine.CHOSEN else "of the environment"
        rows[name] = f"{os.environ[name]}, {by}" if name in os.environ else "not set"
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        rows[f"cuda:{index}"] = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    if not torch.cuda.is_available():
        rows["cuda"] = f"none that torch can use (built for CUDA {torch.version.cuda})"
    rows["mps"] = "available" if torch.backends.mps.is_available() else "none"
    rows["compiler"] = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), "none")
    rows["compiled core"] = ops.cpp.description()
    rows["cuda library"] = ops.cuda.description()
    for op, where in ops.implementations().items():
        rows[op] = ", ".join(f"{device}: {implementation}" for device, implementation in where.items())
    rows["jpeg"] = jpeg.description()
    for name, value in rows.items():
        print(f"{name:16} {value}")
