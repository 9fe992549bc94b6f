"""How much memory this process may still take, and how much a run is going to."""

import contextlib
import sys
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # as on Windows
    resource = None  # type: ignore[assignment]

GROUPS = Path("/sys/fs/cgroup")
BASE, MOST_BASE = 0.8 * 2**30, 1.3 * 2**30  # bytes: libraries and compiled programs, at least and at most
VOXEL, MOST_VOXEL = (60, 8), (80, 16)  # bytes a voxel of the maps' box: for the first target, and for each more
TARGET = 0.25 * 2**30  # bytes a target at most, besides


def available() -> float:
    """Bytes that this process may still take: what the machine has left, its control group, and its own limit."""
    room = [psutil.virtual_memory().available, *map(left_in, groups())]
    if resource and (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        room.append(limit - psutil.Process().memory_info().vms)
    return float(max(min(room), 0))


def taken() -> float:
    """Bytes that this process has."""
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
    """The folders of this process's control group and those above it, of both versions."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds == "" or "memory" in kinds.split(","):
                top = GROUPS / "memory" if kinds else GROUPS
                own = top / place.lstrip("/")
                found += [own, *(folder for folder in own.parents if top == folder or top in folder.parents)]
    return found


def left_in(group: Path) -> float:
    """Bytes left in a control group; infinite where it has no limit. Files that it caches do not count."""
    for limit, usage, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):
            most = int((group / limit).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return float(most - int((group / usage).read_text()) + int(stat.get(cached, 0)))
    return float("inf")


def needed(voxels: int, targets: int) -> tuple[float, float]:
    """Bytes that a run takes at least, and at most, for maps of so many voxels: as measured, on a CPU."""
    least, most = (first + more * (targets - 1) for first, more in (VOXEL, MOST_VOXEL))
    return BASE + least * voxels, MOST_BASE + TARGET * targets + most * voxels


def coarser(voxels: int, targets: int, room: float) -> float:
    """By what factor voxels must be wider for a run to take no more than `room` bytes; infinite if none is enough."""
    (_, most), (_, fixed) = needed(voxels, targets), needed(0, targets)
    return float("inf") if room <= fixed else max(1.0, ((most - fixed) / (room - fixed)) ** (1 / 3))
