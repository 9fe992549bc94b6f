"""Where the time of a whole run goes: section run of experiments.studies.benchmark."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from absl import flags

from cryotrans_jax.io.files import InputError

from .. import tables
from . import benchmark_cases as cases

FLAGS = flags.FLAGS

WHENS = "cold", "warm"  # with nothing compiled, and with all programs in the cache
PRODUCT = 1500  # side of the matrices whose product tells how fast a machine is
NAMED = 0.2  # seconds from which on a program is named


def run() -> Iterator[tuple[str, float]]:
    """A whole command in a process of its own, with nothing compiled, and again: seconds by part and by program."""
    square = np.ones((PRODUCT, PRODUCT), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for when in WHENS:
            yield (
                f"run, {when}: product of {PRODUCT} x {PRODUCT} matrices [s]",
                cases.seconds(np.matmul, square, square),
            )
            found = timed_run(shlex.split(FLAGS.run), Path(folder), when)
            yield from rows_of(found, when)


def timed_run(given: list[str], folder: Path, when: str) -> dict:
    """Run experiments.run with these flags, with compiled programs kept in the folder; return its timeline's record.

    Raises:
        InputError: the command failed.
    """
    record, out = folder / f"{when}.json", folder / when
    command = [sys.executable, "-m", "experiments.studies.timeline", str(record), "experiments.run", *given]
    cache = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run([*command, f"--out_dir={out}"], env=os.environ | cache, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise InputError(
            f"the command that --run times failed: {' '.join(last)}: see that --run has flags for its maps"
        )
    return json.loads(record.read_text())


def rows_of(found: dict, when: str) -> Iterator[tuple[str, float]]:
    """Rows of one timeline."""
    wall, cpu = found["wall"], found["cpu"]
    for part in sorted(wall, key=lambda part: -wall[part]):
        yield f"run, {when}: {part}, wall [s]", wall[part]
        yield f"run, {when}: {part}, CPU [s]", cpu[part]
    yield f"run, {when}: all, wall [s]", sum(wall.values())
    yield f"run, {when}: all, CPU [s]", sum(cpu.values())
    yield f"run, {when}: peak memory [MiB]", found["peak"] / 2**20
    for name in ("cache_misses", "cache_hits"):
        yield f"run, {when}: {name.replace('cache_', 'programs, cache ')}", found["counts"].get(name, 0)
    for each in found["programs"]:
        if each["seconds"] >= NAMED:
            yield f"run, {when}: {each['program']} {each['what']} [s]", each["seconds"]


def table(rows: Mapping[str, float]) -> str:
    """The parts of the run as a table of wall and CPU seconds, cold and warm, the longest first."""
    found: dict[str, dict[str, float]] = {}
    for label, value in rows.items():
        head, _, rest = label.partition(": ")
        part, _, kind = rest.rpartition(", ")
        if head.startswith("run, ") and kind in ("wall [s]", "CPU [s]"):
            found.setdefault(part, {})[f"{head.removeprefix('run, ')}, {kind}"] = value
    heads = [f"{when}, {kind}" for when in WHENS for kind in ("wall [s]", "CPU [s]")]
    order = sorted(found, key=lambda part: -max(found[part].values()))
    return tables.markdown(
        ["part", *heads], ([part, *(f"{found[part].get(h, 0):.1f}" for h in heads)] for part in order)
    )
