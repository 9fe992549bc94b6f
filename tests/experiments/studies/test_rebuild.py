"""What Phenix needs lies in the generated map's frame, and what was built is scored there."""

import json

import numpy as np
import pytest
from conftest import record

from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.io import atoms
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


def test_without_a_run_or_a_reference_it_says_so(folder, job, tmp_path):
    status, _, error = job("rebuild", f"--run_dir={tmp_path / 'none'}")
    assert status == 2 and "holds no run" in error
    saved = json.loads((folder / "config.json").read_text()) | {"settings": {}}
    (folder / "config.json").write_text(json.dumps(saved))
    run_folder.sign(folder)
    status, _, error = job("rebuild", f"--run_dir={folder}")
    assert status == 2 and "--reference" in error
