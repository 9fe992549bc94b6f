"""What Phenix needs lies in the generated map's frame, and what was built is scored there."""

import json
import os

import numpy as np
import pytest
from conftest import record

from cryotrans_jax.density import simulation
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import write_map
from experiments import run_folder

TURN = np.array([[0, 1.0, 0, 5], [-1, 0, 0, 2], [0, 0, 1, -3], [0, 0, 0, 1]])


@pytest.fixture
def folder(tmp_path):
    """A run's folder as far as the job looks at it; its target was turned onto the initial map."""
    model = hinge_pair()[1]
    atoms.write_model(tmp_path / "open.cif", model)
    (tmp_path / "generated.mrc").touch()
    more = {"resolutions": {"initial": 3.5}, "alignment": {"transform": TURN.tolist()}}
    record(tmp_path, "open.cif", {"reference": ["open.cif"]}, **more)
    return tmp_path


def in_frame():
    model = hinge_pair()[1]
    return atoms.with_positions(model, atoms.positions(model) @ TURN[:3, :3].T + TURN[:3, 3])


def test_files_and_commands_for_phenix_are_written_once(folder, job):
    status, out, error = job("rebuild", f"--run_dir={folder}")
    assert status == 0, error
    reference = atoms.read_model(folder / "rebuild" / "reference.pdb")
    np.testing.assert_allclose(atoms.positions(reference), atoms.positions(in_frame()), atol=1e-3)
    head, letters = (folder / "rebuild" / "sequence.fasta").read_text().split()
    names = {"ALA": "A", "SER": "S", "LEU": "L", "MET": "M", "GLU": "E", "LYS": "K", "PHE": "F"}
    assert head == ">A" and letters == "".join(names[residue.name] for residue in reference[0][0])
    assert "resolution=3.5" in (folder / "rebuild" / "build.sh").read_text() and "build.sh" in out
    status, _, error = job("rebuild", f"--run_dir={folder}")
    assert status == 2 and "--overwrite" in error


def test_what_was_built_is_scored_in_the_maps_frame(folder, job):
    built = in_frame()
    del built[0][0][35:]
    atoms.write_model(folder / "built.pdb", built)
    status, out, error = job("rebuild", f"--run_dir={folder}", f"--rebuilt={folder / 'built.pdb'}")
    assert status == 0, error
    found = json.loads((folder / "rebuild" / "coverage.json").read_text())
    assert (found["n"], found["coverage"], found["precision"]) == (35, 0.25, 1.0) and "25.0 %" in out
    assert found["rmsd"] == pytest.approx(0, abs=2e-3)


PHENIX = """#!/bin/sh
# Stands in for Phenix: the model is refined already.
test -f "$2" && echo "$3" && {does}
"""


def with_phenix(tmp_path, monkeypatch, does):
    """Put a program of the name on the path, which does this after it has looked at its arguments."""
    path = tmp_path / "bin" / "phenix.real_space_refine"
    path.parent.mkdir()
    path.write_text(PHENIX.format(does=does))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)


def test_the_reference_is_refined_and_scored_where_phenix_is(folder, job, tmp_path, monkeypatch):
    """By its FSC with the generated map, which is made of the reference here."""
    model = in_frame()
    write_map(folder / "generated.mrc", simulation.simulate(model, 3.5, voxel_size=2.0))
    run_folder.sign(folder)
    with_phenix(tmp_path, monkeypatch, 'cp "$1" reference_real_space_refined_000.pdb')
    status, out, error = job("rebuild", f"--run_dir={folder}")
    assert status == 0, error
    assert (folder / "rebuild" / "refine.log").read_text() == "resolution=3.5\n"
    found = json.loads((folder / "rebuild" / "refined.json").read_text())
    assert found["rmsd"] == pytest.approx(0, abs=2e-3) and found["fsc"] < 4.5
    assert "FSC = 0.5 of the generated map with the refined model" in out
    given = f"--run_dir={folder}", f"--refined={found['refined']}"
    status, _, error = job("rebuild", *given)
    assert status == 2 and "holds scores already" in error
    assert job("rebuild", *given, "--overwrite")[0] == 0
    assert json.loads((folder / "rebuild" / "refined.json").read_text()) == found


@pytest.mark.parametrize("does", ["exit 3", "true"])
def test_a_refinement_that_fails_is_explained(folder, job, tmp_path, monkeypatch, does):
    with_phenix(tmp_path, monkeypatch, does)
    status, _, error = job("rebuild", f"--run_dir={folder}")
    assert status == 2 and "phenix.real_space_refine ended with status" in error and "see " in error


def test_without_phenix_the_refinement_is_left_to_the_user(folder, job, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    status, out, error = job("rebuild", f"--run_dir={folder}")
    assert status == 0, error
    script = (folder / "rebuild" / "refine.sh").read_text()
    assert "phenix.real_space_refine ../reference.pdb ../../generated.mrc resolution=3.5\n" in script
    assert "Phenix is not on the path" in out and "--refined" in out
    assert not (folder / "rebuild" / "refined.json").exists()


def test_without_a_run_or_a_reference_it_says_so(folder, job, tmp_path):
    status, _, error = job("rebuild", f"--run_dir={tmp_path / 'none'}")
    assert status == 2 and "holds no run" in error
    saved = json.loads((folder / "config.json").read_text()) | {"settings": {}}
    (folder / "config.json").write_text(json.dumps(saved))
    run_folder.sign(folder)
    status, _, error = job("rebuild", f"--run_dir={folder}")
    assert status == 2 and "--reference" in error
