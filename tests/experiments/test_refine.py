"""What starts a refinement holds the residues that are known to be right, in the frame of the target's file."""

import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryotrans_jax.density.align import Alignment
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.io import atoms
from experiments import refine
from experiments.case import Case

ERRORS = np.repeat([0.5, 1.5, 2.5, 9.0], 4)  # Å, of the 16 residues of one atom each
POSE = Transform(Rotation.from_rotvec([0.3, -0.2, 0.9]).as_matrix(), np.array([3.0, -40.0, 7.0]))


@pytest.fixture
def written(tmp_path, maps, models):
    files = {name: tmp_path / name for name in ("initial.mrc", "target.mrc")}
    case = Case(maps[0], [maps[1]], files, ["target"], 8.0, [9.0], alignments=[Alignment(POSE)])
    refine.write(models[0], ERRORS, case, 0, tmp_path)
    return tmp_path


def test_the_model_is_moved_into_the_frame_of_the_targets_file(written, models):
    found = atoms.positions(atoms.read_model(written / refine.START))
    np.testing.assert_allclose(POSE(found), atoms.positions(models[0]), atol=2e-3)


def test_isolde_restrains_residues_the_less_the_larger_their_errors(written):
    lines = (written / "isolde.cxc").read_text().splitlines()
    found = [re.fullmatch(r'isolde restrain distances "#1(\S+)" kappa (\S+)', line) for line in lines]
    groups = {match[1]: float(match[2]) for match in found if match}
    assert list(groups) == ["/A:1-4", "/A:5-8", "/A:9-12"]
    np.testing.assert_allclose(list(groups.values()), [10.0, 2.5, 10 / 9], rtol=0.01)
    assert 'open "target.mrc"' in lines and lines.index("open refine_start.cif") < lines.index("isolde start")


def test_phenix_holds_what_is_right_as_closely_as_it_is_known(written):
    text = (written / "phenix.eff").read_text()
    assert "selection = (chain 'A' and resseq 1:8)\n" in text and "enabled = True" in text
    sigma = float(re.search(r"sigma = (\S+)", text)[1])
    assert sigma == pytest.approx(np.sqrt((0.5**2 + 1.5**2) / 2), abs=0.01)
    assert 'phenix.real_space_refine refine_start.cif "target.mrc" resolution=9 phenix.eff' in text
    assert text.count("{") == text.count("}")


def test_nothing_is_held_where_nothing_is_known(tmp_path, maps, models):
    files = {name: tmp_path / name for name in ("initial.mrc", "a;b.mrc")}
    case = Case(maps[0], [maps[1]], files, ["target"], None, [None])
    refine.write(models[0], np.full(16, 20.0), case, 0, tmp_path)
    script, parameters = ((tmp_path / name).read_text() for name in ("isolde.cxc", "phenix.eff"))
    assert "restrain" not in script.replace("are restrained", "") and "a;b" not in script
    assert "enabled = False" in parameters and "resolution=RESOLUTION" in parameters
