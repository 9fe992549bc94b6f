"""Measure the memory available to this process, and estimate the memory of a run."""

import contextlib
import sys
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

GROUPS = Path("/sys/fs/cgroup")
BASE, MOST_BASE = 0.95 * 2**30, 1.6 * 2**30  # bytes: libraries and compiled programs, least and most
VOXEL, MOST_VOXEL = (58, 8), (76, 16)  # bytes per voxel of the maps' box: for the first target, and each further one
TARGET = 0.25 * 2**30  # bytes: most per target, besides


def available() -> float:
    """Bytes available to this process, by the machine's free memory, its control group, and its own limit."""
    room = [psutil.virtual_memory().available, *map(cgroup_available, groups())]
    if resource and (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        room.append(limit - psutil.Process().memory_info().vms)
    return float(max(min(room), 0))


def resident() -> float:
    """Resident memory of this process, bytes."""
    return float(psutil.Process().memory_info().rss)


def peak() -> float:
    """Largest resident memory of this process so far, in bytes.

    Linux counts it for the program (VmHWM); its `ru_maxrss` would start at that of the program that started this one.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 2**10
    if resource:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(most if sys.platform == "darwin" else most * 2**10)
    now = psutil.Process().memory_info()
    return float(getattr(now, "peak_wset", now.rss))


def groups() -> list[Path]:
    """Folders of this process's control group and of its ancestors, of both cgroup versions."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds == "" or "memory" in kinds.split(","):
                top = GROUPS / "memory" if kinds else GROUPS
                own = top / place.lstrip("/")
                found += [own, *(folder for folder in own.parents if top == folder or top in folder.parents)]
    return found


def cgroup_available(group: Path) -> float:
    """Bytes available in a control group, including its file cache; infinite where it has no limit."""
    for limit, usage, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):
            most = int((group / limit).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return float(most - int((group / usage).read_text()) + int(stat.get(cached, 0)))
    return float("inf")


def estimate(voxels: int, targets: int) -> tuple[float, float]:
    """Least and most bytes that a run takes, from measurements on a CPU; `voxels` are those of each map."""
    least, most = (first + more * (targets - 1) for first, more in (VOXEL, MOST_VOXEL))
    return BASE + least * voxels, MOST_BASE + TARGET * targets + most * voxels


def coarsening_factor(voxels: int, targets: int, room: float) -> float:
    """Factor by which voxels must be wider for a run to fit into `room` bytes; infinite if no factor is enough."""
    (_, most), (_, fixed) = estimate(voxels, targets), estimate(0, targets)
    return float("inf") if room <= fixed else max(1.0, ((most - fixed) / (room - fixed)) ** (1 / 3))
