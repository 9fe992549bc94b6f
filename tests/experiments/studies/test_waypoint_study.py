"""What a waypoint is worth is told by what no fit was told of, beside lines that know the answer."""

import json

import numpy as np
import pytest

from cryotrans_jax.density import simulation
from cryotrans_jax.io import atoms
from experiments import results
from experiments.studies import waypoints

TURNS = {"start": 0.0, "early": 0.3, "middle": 0.6, "late": 0.9, "end": 1.2}


@pytest.fixture
def pairs(tmp_path, bent):
    """A folder with one pair, whose way is a bend."""
    folder = tmp_path / "bend"
    folder.mkdir()
    for name, turn in TURNS.items():
        atoms.write_model(folder / f"{name}.cif", bent(turn))
    path = {"models": [f"{name}.cif" for name in ("late", "middle", "early")], "runs_from": "target"}
    (folder / "pair.json").write_text(json.dumps({"initial": "start.cif", "target": "end.cif", "path": path}))
    return tmp_path


@pytest.fixture
def fits(monkeypatch, bent):
    """Fits that go the straight way, and with a waypoint the bend itself; and what each was given."""
    given = []

    class Going:
        def __init__(self, case):
            self.passes = bool(case.waypoints)

        def move(self, model, times):
            start, end = (atoms.positions(bent(TURNS[name])) for name in ("start", "end"))
            line = [atoms.with_positions(model, start + t * (end - start)) for t in times]
            return [bent(TURNS["end"] * t) for t in times] if self.passes else line

    def fit_case(case, settings):
        given.append((list(case.waypoints), settings.seed))
        return Going(case)

    monkeypatch.setattr(results, "fit_case", fit_case)
    return given


def apart(a, b):
    return np.sqrt(((a - b) ** 2).sum(-1).mean())


def test_the_way_is_judged_by_what_was_not_told(pairs, fits, job, bent):
    """Frames every twentieth of the way hit each of the models; the lines' distances follow from the models."""
    status, out, error = job("waypoints", f"--data_dir={pairs}", "--pairs=bend", "--seeds=4,5", f"--out_dir={pairs}/o")
    assert status == 0, error
    rows = json.loads((pairs / "o" / "waypoints.json").read_text())["rows"]
    assert [row["way"] for row in rows] == [*waypoints.WAYS, *waypoints.WAYS[:2]]  # lines are the same for all seeds
    assert (pairs / "o" / "waypoints.md").read_text() in out
    free, passing, line, lines = rows[:4]
    at = {name: atoms.positions(bent(turn)) for name, turn in TURNS.items()}
    half = apart((at["start"] + at["end"]) / 2, at["middle"])
    assert all(row["models"] == 2 and row["end"] == pytest.approx(0, abs=2e-3) for row in rows)
    assert [row["waypoint"] for row in (free, passing, line, lines)] == pytest.approx([half, 0, half, 0], abs=2e-3)
    ways = [at["start"] + t * (at["end"] - at["start"]) for t in np.linspace(0, 1, waypoints.FRAMES)]
    far = [min(apart(each, at[name]) for each in ways) for name in ("early", "late")]
    for row in (free, line):
        assert [row["path"], row["path_largest"]] == pytest.approx([np.mean(far), max(far)], abs=2e-3)
    assert passing["path_largest"] < 2e-3 < lines["path"] < line["path"]


def test_the_waypoint_is_the_middle_model_simulated_as_the_target(pairs, fits, job, bent):
    status, _, error = job(
        "waypoints", f"--data_dir={pairs}", "--pairs=bend", "--resolutions=6", f"--out_dir={pairs}/o"
    )
    assert status == 0, error
    (none, _), ((passed,), seed) = fits
    assert none == [] and seed == 0 and (passed.time, passed.resolution) == (0.5, 6.0)
    like = passed.map
    expected = simulation.simulate_map(bent(TURNS["middle"]), like.density.shape, like.voxel_size, like.origin, 6.0)
    np.testing.assert_allclose(like.density, expected.density, atol=2e-3 * expected.density.max())


def test_what_cannot_be_studied_is_said(pairs, fits, job):
    given = f"--data_dir={pairs}", f"--out_dir={pairs}/o"
    for more, said in ((("--pairs=none",), "pair.json"), (("--pairs=bend", "--seeds=x"), "--seeds=x")):
        status, _, error = job("waypoints", *given, *more)
        assert status == 2 and said in error
    assert job("waypoints", *given, "--pairs=bend")[0] == 0
    status, _, error = job("waypoints", *given, "--pairs=bend")
    assert status == 2 and "--overwrite" in error
    named = json.loads((pairs / "bend" / "pair.json").read_text())
    (pairs / "bend" / "pair.json").write_text(json.dumps(named | {"path": {"models": ["middle.cif"]}}))
    status, _, error = job("waypoints", *given, "--pairs=bend", "--overwrite")
    assert status == 2 and "names 1 models" in error
