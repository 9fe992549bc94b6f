"""Cores that this process may use, and how they are divided among processes that run at the same time."""

import contextlib
import os

import numpy as np


def usable() -> int:
    """Number of cores that this thread may use; only its own where it is bound to some."""
    return len(own()) or os.cpu_count() or 1


def own() -> list[int]:
    """Numbers of the cores that this thread may use; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def shares(count: int) -> list[set[int]]:
    """Divide the cores that this process may use among others, evenly.

    Args:
        count: number of processes.

    Returns:
        Numbers of each one's cores; none, which `bind` takes for all, where there are fewer cores than processes, or
        where the system does not say.
    """
    found = own()
    return [set(part.tolist()) for part in np.array_split(found, count)] if len(found) >= count else [set()] * count


def bind(process: int, cores: set[int]) -> None:
    """Have a process (0: this thread), and what it starts from now on, use these cores alone; all without cores.

    On common cores the threads of several processes hinder one another.
    """
    if cores:
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setaffinity(process, cores)
