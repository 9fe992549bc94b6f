"""Every system of the paper goes from its entries to a scored table, here on stand-ins; and the published facts are whole.

The built-in pair stands in for all of them: as the entries' models, or as maps of these, on one small grid and with one
threshold, so that all fits share one compiled program.
"""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_fetch import Server, serving

from cryotrans_jax import atoms, prepare
from cryotrans_jax.demo import hinge_pair
from cryotrans_jax.maps import read_map, write_map
from cryotrans_jax.recipes import Schedule, paper
from experiments import reproduce, systems

ROOT = Path(__file__).parents[1]
SIDE, VOXEL = 32, 3.0
TINY = ("--recipe=paper", "--steps=0.0001", "--frames=2", "--noreport", f"--box={SIDE}", f"--voxel_size={VOXEL}")
TINY += ("--initial_threshold=0.24", "--width=100", "--align=none")
RESOLUTIONS = {"TmrAB": 7, "PCAT1": 5, "prestin": 7, "Mm-cpn": 5, "spike-RBD": 7}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the built-in pair under the names of all systems' files."""
    folder = tmp_path_factory.mktemp("systems")
    pair = dict(zip(("initial", "target"), hinge_pair(), strict=True))
    grid = reproduce.cube(list(pair.values()), SIDE, VOXEL)
    made = {}
    for role, model in pair.items():
        made[role, "model"] = folder / f"{role}.cif"
        made[role, "map"] = folder / f"{role}.map.gz"
        atoms.write_model(made[role, "model"], model)
        write_map(made[role, "map"], atoms.simulate_map(model, *grid, 3.0 if role == "initial" else 7.0))
    for system in systems.SYSTEMS:
        for role, state in (("initial", system.initial), ("target", system.target)):
            for entry in (state.model, system.check if role == "target" else None):
                if entry:
                    shutil.copy(made[role, "model"], folder / f"{entry}.cif")
            if state.map:
                shutil.copy(made[role, "map"], folder / f"emd_{state.map[4:]}.map.gz")
            elif not state.model:
                kind = "model" if system.name == "spike-RBD" else "map"
                end = ".map.gz" if kind == "map" else ".cif"
                shutil.copy(made[role, kind], folder / f"{system.slug}_{role}{end}")
    return folder


def fitted(job, data, out_dir, name, *more):
    """The output of a job on a system, and what its reproduce.json holds."""
    resolution = [f"--resolution={RESOLUTIONS[name]}"] if name in RESOLUTIONS else []
    given = (f"--system={name}", *resolution, f"--data_dir={data}", f"--out_dir={out_dir}", *TINY, *more)
    status, out, error = job("reproduce", *given)
    assert status == 0, error
    return out, json.loads((out_dir / "reproduce.json").read_text())


@pytest.mark.parametrize("name", [system.name for system in systems.SYSTEMS])
def test_a_system_goes_from_its_files_to_a_scored_table(job, data, tmp_path, name):
    out, told = fitted(job, data, tmp_path / "out", name)
    system, rows = systems.named(name), {row["quantity"]: row for row in told["rows"]}
    assert (tmp_path / "out" / "reproduce.md").read_text() in out
    resolution = RESOLUTIONS.get(name)
    label = "FSC = 0.5 against the reference [Å]"
    assert rows[label]["published"] == (system.result(resolution) or "not published")
    generated = read_map(tmp_path / "out" / "generated.mrc")
    assert generated.density.shape == (SIDE,) * 3 and rows["box [voxels]"]["ours"] == "32 × 32 × 32"
    if resolution or name == "spike":  # there is a model of the target state
        assert float(rows[label]["ours"]) == pytest.approx(told["metrics"]["fsc_after"], abs=0.005)
        assert told["metrics"]["rmsd_before"] > 3  # a domain of the built-in pair turns by 30°
    else:
        assert rows[label]["ours"] == "no --reference" and "fsc_after" not in told["metrics"]
    recipe = system.recipe(resolution)
    if recipe:
        assert rows["thresholds"]["ours"] == "{:g}, {:g}".format(0.24, recipe.thresholds[1])
        assert rows["thresholds"]["published"] == "{:g}, {:g}".format(*recipe.thresholds)
    if system.check:  # which is the same model here
        assert rows["FSC = 0.5 against 6X2A [Å]"]["ours"] == rows[label]["ours"]
