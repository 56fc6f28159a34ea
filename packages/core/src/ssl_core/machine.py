"""The processors that this process may use, and OpenMP's number of threads, set before torch is imported."""

import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath

# Variables that this command has set in its environment.
CHOSEN: dict[str, str] = {}


def configure_openmp() -> None:
    """Let OpenMP take as many threads as a quota holds, where torch is not imported yet; it heeds the affinity alone.

    What is set already wins: the user's, or the ``OMP_NUM_THREADS=1`` of torchrun's processes. How the threads wait is
    left to OpenMP: no other way was faster beside a busy process without a cost alone, see
    benchmarks/results/2026-11-28-waiting-cpu-2-cores.md.
    """
    if "torch" in sys.modules or sys.platform != "linux":  # OpenMP reads its variables when torch is imported
        return
    if "OMP_NUM_THREADS" not in os.environ and usable_cores() < affinity():
        CHOSEN["OMP_NUM_THREADS"] = str(min(usable_cores(), physical_cores()))
    os.environ.update(CHOSEN)


def usable_cores(root: Path = Path("/")) -> int:
    """Processors that this process may use at once, by affinity and by quota; at least 1.

    A quota is rounded up: threads that wait for each other are stopped together when it is used up, and lose little.

    Args:
        root: directory in which ``proc`` and ``sys`` are.
    """
    quota = cpu_quota(root)
    return affinity() if quota is None else min(affinity(), math.ceil(quota))


def processor_name(root: Path = Path("/")) -> str:
    """Model of the processor, as far as the system says it.

    Args:
        root: directory in which ``proc`` is.
    """
    models = (line for line in _read(root / "proc/cpuinfo").splitlines() if line.startswith("model name"))
    return next(models, "").partition(":")[2].strip() or platform.processor() or "unknown processor"


def affinity() -> int:
    """Processors on which the system lets this process run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores(root: Path = Path("/")) -> int:
    """Cores among the processors of the affinity (Linux): MKL, and torch after it, takes a thread for each of them.

    Args:
        root: directory in which ``sys`` is.
    """
    cpu = root / "sys/devices/system/cpu"
    numbers = os.sched_getaffinity(0)
    return len({_read(cpu / f"cpu{n}/topology/thread_siblings_list") or n for n in numbers})


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors whose time the control groups of this process grant it, such as 1.5; None without a quota.

    The smallest counts, of its own group and of all groups around that which can be seen: ``cpu.max`` (version 2)
    or ``cpu.cfs_quota_us`` (version 1). CPU limits of Kubernetes and docker and systemd's CPUQuota are quotas.

    Args:
        root: directory in which ``proc`` and ``sys`` are.
    """
    return min((quota for group in _control_groups(root) if (quota := _quota(group)) is not None), default=None)


def _control_groups(root: Path) -> Iterator[Path]:
    """Directories of the groups that limit this process's time, its own ones and those around them."""
    paths = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path
    for line in _read(root / "proc/self/mountinfo").splitlines():
        fields, _, filesystem = line.partition(" - ")
        kind = filesystem.partition(" ")[0]
        if kind in paths:
            top, point = fields.split(" ")[3:5]
            # In a container, the top of what is mounted may be the group of the container, or lie outside of what it
            # sees (/..); a group that is none of ours may be mounted as well.
            names = PurePath(os.path.relpath(paths[kind], top)).parts
            if ".." not in names:
                yield from (root / point.lstrip("/") / PurePath(*names[:length]) for length in range(len(names) + 1))


def _quota(group: Path) -> float | None:
    text = _read(group / "cpu.max") or f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
    quota, _, period = text.partition(" ")
    return int(quota) / int(period) if quota.isdigit() else None  # no limit: max in version 2, -1 in version 1


def _read(file: Path) -> str:
    """A file's text; nothing where there is none, as on other systems, or none that may be read, as in snaps."""
    try:
        return file.read_text(errors="replace").strip()  # mount points have names of any encoding
    except OSError:
        return ""
