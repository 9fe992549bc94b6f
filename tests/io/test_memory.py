"""Memory is foreseen: what is left within every limit, and what a run takes, with the setting that would fit."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.fit.devices import DeviceLayout, check_memory
from cryotrans_jax.fit.schedule import Fitting, run
from cryotrans_jax.fit.stage import Config, Stage
from cryotrans_jax.fit.supervise import Callbacks
from cryotrans_jax.fit.terms import Correspondences, Matched
from cryotrans_jax.io import memory
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import write_map


def limited(folder, limit, usage, stat, names):
    folder.mkdir(parents=True)
    for name, value in zip(names, (limit, usage, stat), strict=True):
        (folder / name).write_text(f"{value}\n")


NAMES = {
    "": ("memory.max", "memory.current", "memory.stat"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"),
}


@pytest.mark.parametrize("version, cached", [("", "inactive_file"), ("memory", "total_inactive_file")])
def test_the_tightest_control_group_counts_without_what_it_caches(tmp_path, monkeypatch, version, cached):
    """7 MB above: 10 less 5, of which 2 are a cache; 90 MB in the group itself."""
    top = tmp_path / version
    limited(top / "user", 10_000_000, 5_000_000, f"anon 1\n{cached} 2000000", NAMES[version])
    limited(top / "user/job", 100_000_000, 10_000_000, f"{cached} 0", NAMES[version])
    own = tmp_path / "cgroup"
    own.write_text(f"{4 if version else 0}:{version}:/user/job\n9:cpu:/other\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    real = memory.Path
    monkeypatch.setattr(memory, "Path", lambda name: own if name == "/proc/self/cgroup" else real(name))
    assert memory.groups()[:2] == [top / "user/job", top / "user"] and memory.groups()[-1] == top
    assert memory.available() == 7_000_000


def test_a_group_without_a_limit_sets_none(tmp_path):
    limited(tmp_path / "a", "max", 5, "inactive_file 1", NAMES[""])
    assert memory.cgroup_available(tmp_path / "a") == memory.cgroup_available(tmp_path / "none") == np.inf


def test_the_process_own_limit_counts(monkeypatch):
    used = memory.psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + 1e8, used + 1e8))
    assert 0 < memory.available() <= 1.2e8


def measured():
    """Voxels of the box and peak memory (GiB) of whole fits of one target, as the page on performance tells them."""
    page = (Path(__file__).parents[2] / "docs" / "results" / "performance.md").read_text()
    head, rows = "| case | residues | box | cold, seconds (CPU) | warm, seconds (CPU) | peak memory |\n", []
    for line in page[page.index(head) + len(head) :].splitlines()[1:]:
        if not line.startswith("|"):
            return rows
        sides = re.search(r"(\d+) × (\d+) × (\d+)", line) or re.search(r"(box) of (\d+)³", line)
        voxels = int(sides[2]) ** 3 if sides[1] == "box" else int(sides[1]) * int(sides[2]) * int(sides[3])
        rows.append((voxels, float(re.search(r"([\d.]+) GiB", line)[1])))
    return rows


def test_the_estimate_holds_the_measurements_between_its_bounds_and_not_far_from_them():
    """Within 15 %, since they differ by that from run to run; and neither bound is off by twice."""
    rows = measured()
    assert len(rows) >= 6
    for voxels, gib in rows:
        least, most = (bound / 2**30 for bound in memory.estimate(voxels, 1))
        assert 0.5 * gib < least < 1.15 * gib and 0.95 * gib < most < 1.75 * gib, (voxels, gib, least, most)


def test_every_further_target_takes_at_least_its_map_as_read_and_as_it_is_fitted():
    """Two arrays of float32, and at most twice as many and a quarter of a GiB for its program and parameters."""
    for voxels in (0, 10**6):
        (least, most), (more, much) = memory.estimate(voxels, 3), memory.estimate(voxels, 7)
        assert more - least == 4 * 2 * 4 * voxels
        assert much - most == 4 * (4 * 4 * voxels + 2**28)


@pytest.mark.slow
@pytest.mark.parametrize("targets", [1, 3])
def test_a_run_takes_as_much_memory_as_is_foreseen(maps, tmp_path, targets):
    """In a program of its own, by its own count; the report and the models' part of it are not foreseen."""
    names = []
    for number in range(targets + 1):
        names.append(str(tmp_path / f"{number}.mrc"))
        write_map(names[-1], maps[1 if number else 0])
    command = [sys.executable, "-m", "experiments.run", f"--initial={names[0]}", f"--target={','.join(names[1:])}"]
    more = ["--align=none", "--steps=0.02", "--frames=2", "--report=false", f"--out_dir={tmp_path / 'out'}"]
    done = subprocess.run([*command, *more], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = sorted((tmp_path / "out").rglob("metrics.json"))
    peak = max(json.loads(path.read_text())["peak_mib"] for path in scores) * 2**20
    least, most = memory.estimate(maps[0].density.size, targets)
    assert 0.6 * least < peak < most


@pytest.mark.parametrize("targets", [1, 5])
def test_voxels_so_much_wider_just_fit(targets):
    voxels, room = 400**3, memory.estimate(100**3, targets)[1]
    wider = memory.coarsening_factor(voxels, targets, room)
    assert wider == pytest.approx(4.0)
    assert memory.coarsening_factor(voxels, targets, 2 * memory.estimate(voxels, targets)[1]) == 1.0
    assert memory.coarsening_factor(voxels, targets, memory.estimate(0, targets)[1]) == np.inf
    assert memory.estimate(voxels, targets)[0] < memory.estimate(voxels, targets)[1]


def test_coarser_voxels_take_just_the_room_there_is():
    random = np.random.default_rng(0)
    for targets in (1, 2, 9):
        voxels = int(random.integers(10**6, 10**9))
        none, all_ = memory.estimate(0, targets)[1], memory.estimate(voxels, targets)[1]
        room = random.uniform(none, all_)
        wider = memory.coarsening_factor(voxels, targets, room)
        assert wider > 1 and memory.estimate(round(voxels / wider**3), targets)[1] == pytest.approx(room, rel=1e-5)


def test_a_stage_that_the_device_cannot_hold_is_refused_before_the_first_step(problem):
    """By XLA's own count, which is of some MiB here; and the setting that would fit is told."""
    stages = (
        Stage((Correspondences(),), 5, 1e-3, 1e-3, bin=2, sampling=2),
        Stage((Matched(),), 5, 1e-3, 1e-3, spacing=6.0),
    )
    config, made, tiny = Config(stages, Field(Velocity(width=8, centre=0.5), 2)), [], DeviceLayout(memory=1000)
    callbacks = Callbacks(progress=lambda *at: made.append(at))
    with pytest.raises(InputError, match=r"stage \d needs .* GiB and the device has 0.0 GiB: use voxels [\d.]+ times"):
        run(Fitting.begin(problem.select([0]), config, layout=tiny, callbacks=callbacks))
    assert made == []
    assert check_memory(0, float("nan"), tiny) is None


def test_the_peak_is_the_program_s_own():
    """Not that of the program which started it, which had 600 MB more at one time."""
    room = np.ones(75_000_000)
    assert memory.peak() > room.nbytes
    command = [sys.executable, "-c", "from cryotrans_jax.io import memory; print(memory.peak())"]
    there = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert 10e6 < float(there.stdout) < 300e6
