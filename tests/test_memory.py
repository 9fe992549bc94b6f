"""Memory is foreseen: what is left within every limit, and what a run takes, with the setting that would fit."""

import resource

import numpy as np
import pytest

from cryotrans_jax import memory, train
from cryotrans_jax.files import InputError


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
    assert memory.left_in(tmp_path / "a") == memory.left_in(tmp_path / "none") == np.inf


def test_the_process_own_limit_counts(monkeypatch):
    used = memory.psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + 1e8, used + 1e8))
    assert 0 < memory.available() <= 1.2e8


@pytest.mark.parametrize("targets", [1, 5])
def test_voxels_so_much_wider_just_fit(targets):
    voxels, room = 400**3, memory.needed(100**3, targets)[1]
    wider = memory.coarser(voxels, targets, room)
    assert wider == pytest.approx(4.0)
    assert memory.coarser(voxels, targets, 2 * memory.needed(voxels, targets)[1]) == 1.0
    assert memory.coarser(voxels, targets, memory.needed(0, targets)[1]) == np.inf
    assert memory.needed(voxels, targets)[0] < memory.needed(voxels, targets)[1]


def test_a_stage_that_the_device_cannot_hold_is_refused_before_the_first_step(problem):
    """By XLA's own count, which is of some MiB here; and the setting that would fit is told."""
    stages = (
        train.Stage("points", 5, 1e-3, 1e-3, bin=2, sampling=2),
        train.Stage("matched", 5, 1e-3, 1e-3, spacing=6.0),
    )
    config, made = train.Config(stages, width=8, centre=0.5, euler_steps=2), []
    one = problem.select([0])
    with pytest.raises(InputError, match=r"stage \d takes .* GiB and the device has 0.0: take voxels [\d.]+ times"):
        train.fit(one, config, spread=train.Spread(memory=1000), progress=lambda *at: made.append(at))
    assert made == []
    assert train.check_memory(0, float("nan"), train.Spread(memory=1000)) is None
