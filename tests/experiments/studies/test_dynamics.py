"""Pseudo-time is matched to time in order, and the job tells how near a run's trajectory comes to a known one."""

import csv
import json

import numpy as np
import pytest
from conftest import record

from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.scores import metrics
from experiments.studies import trajectory


def slow_match_from(cost, first):
    """The least total of all matches in order that begin at `first` or later, by trying them all."""
    return min(cost[0, j] + (slow_match_from(cost[1:], j) if len(cost) > 1 else 0) for j in range(first, cost.shape[1]))


def test_the_match_is_in_order_and_the_best_of_all():
    for seed in range(20):
        cost = np.random.default_rng(seed).uniform(size=(5, 6))
        match = metrics.monotone_match(cost)
        assert (np.diff(match) >= 0).all()
        assert cost[np.arange(5), match].sum() == pytest.approx(slow_match_from(cost, 0))


def test_a_path_is_found_in_a_finer_one_at_its_own_times():
    """Of a line walked ever faster the times come back, and beside the way the distance from it."""
    ends = np.random.default_rng(0).normal(size=(2, 7, 3))
    fine = ends[0] + np.linspace(0, 1, 101)[:, None, None] * (ends[1] - ends[0])
    t = np.array([0, 1, 4, 9, 16, 100])
    match, error = metrics.match_path(fine, fine[t])
    np.testing.assert_array_equal(match, t)
    np.testing.assert_allclose(error, 0, atol=1e-6)
    off = np.cross(ends[1] - ends[0], [0.3, 1.0, -0.2])  # square to the way of each point
    off /= np.sqrt((off**2).sum(-1).mean())
    match, error = metrics.match_path(fine, fine[t] + 2 * off)
    np.testing.assert_array_equal(match, t)
    np.testing.assert_allclose(error, 2, rtol=1e-6)


def test_all_models_of_a_file_are_read(tmp_path, bent):
    frames = [bent(turn) for turn in (0.0, 0.3, 0.6)]
    atoms.write_trajectory(tmp_path / "path.pdb", frames)
    found = atoms.read_models(tmp_path / "path.pdb")
    assert len(found) == 3 and all(len(one) == 1 for one in found)
    for one, frame in zip(found, frames, strict=True):
        np.testing.assert_allclose(atoms.positions(one), atoms.positions(frame), atol=1e-3)
    with pytest.raises(InputError, match="does not exist"):
        atoms.read_models(tmp_path / "none.pdb")


@pytest.fixture
def folder(tmp_path, monkeypatch, bent):
    """A run's folder as far as the job looks at it, and its trajectory backwards and turned as a whole."""

    class Bending:
        """A fit whose flow is the bend itself."""

        @classmethod
        def load(cls, path, initial=None):
            return cls()

        def carry(self, xyz, times):
            return np.stack([atoms.positions(bent(0.6 * t)) for t in times])

    monkeypatch.setattr("experiments.finished.Fit", Bending)
    atoms.write_model(tmp_path / "initial.cif", bent(0.0))
    (tmp_path / "checkpoint").mkdir()
    record(tmp_path, "initial.cif", {"model": "initial.cif"})
    frames = [bent(turn) for turn in np.linspace(0.6, 0, 7)]
    atoms.write_trajectory(tmp_path / "path.pdb", frames)
    turned = [
        atoms.with_positions(f, atoms.positions(f) @ np.array([[0, 1.0, 0], [-1, 0, 0], [0, 0, 1]]) + 5) for f in frames
    ]
    atoms.write_trajectory(tmp_path / "turned.pdb", turned)
    return tmp_path


@pytest.mark.parametrize("more", [("path.pdb",), ("turned.pdb", "--superpose")])
def test_a_run_that_is_the_path_lies_on_it(folder, job, more):
    status, out, error = job("trajectory", f"--run_dir={folder}", f"--dynamics={folder / more[0]}", *more[1:])
    assert status == 0, error
    found = json.loads((folder / "dynamics.json").read_text())
    assert found["reversed"] and "backwards" in out
    assert found["run_max"] < 0.02 < found["straight_max"]  # a hundredth of the way, and decimals of the file
    with (folder / "dynamics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in rows] == [6, 5, 4, 3, 2, 1, 0]
    np.testing.assert_allclose([float(row["run_time"]) for row in rows], np.linspace(0, 1, 7), atol=0.011)
    status, _, error = job("trajectory", f"--run_dir={folder}", f"--dynamics={folder / more[0]}")
    assert status == 2 and "--overwrite" in error


def test_the_models_between_a_pairs_states_have_these_for_ends(folder, job, bent):
    """So that the straight line is that of the states, a bend of 0.3 away from half way."""
    for name, turn in (("start", 0.0), ("middle", 0.3), ("end", 0.6)):
        atoms.write_model(folder / f"{name}.cif", bent(turn))
    pair = {"initial": "start.cif", "target": "end.cif", "path": {"models": ["middle.cif"]}}
    (folder / "pair.json").write_text(json.dumps(pair))
    status, _, error = job("trajectory", f"--run_dir={folder}", f"--dynamics={folder}", "--times=3")
    assert status == 0, error
    start, middle, end = (atoms.positions(bent(turn)) for turn in (0.0, 0.3, 0.6))
    found = json.loads((folder / "dynamics.json").read_text())
    assert found["frames"] == 3 and found["run_max"] < 2e-3
    apart = np.sqrt((((start + end) / 2 - middle) ** 2).sum(-1).mean())
    assert found["straight_max"] == pytest.approx(apart, abs=2e-3)


def test_what_cannot_be_matched_is_said(folder, job):
    for dynamics, said in ((folder, "without a pair.json"), (folder / "none.pdb", "does not exist")):
        status, _, error = job("trajectory", f"--run_dir={folder}", f"--dynamics={dynamics}")
        assert status == 2 and said in error
    status, _, error = job("trajectory", f"--run_dir={folder / 'no'}", f"--dynamics={folder / 'path.pdb'}")
    assert status == 2 and "holds no run" in error


@pytest.mark.filterwarnings("ignore")  # it warns of what a PDB file lacks
def test_whatever_mdanalysis_reads_is_read(folder, bent):
    pytest.importorskip("MDAnalysis")
    found = trajectory.with_mdanalysis([str(folder / "path.pdb"), str(folder / "path.pdb")])
    assert len(found) == 7
    np.testing.assert_allclose(atoms.positions(found[0]), atoms.positions(bent(0.6)), atol=1e-3)
