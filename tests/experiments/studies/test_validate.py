"""The validation measures a pair from its folder, with a known path where there is one."""

import json

import numpy as np
import pytest

from cryotrans_jax.density.thresholds import choose_threshold
from cryotrans_jax.io import atoms
from experiments.pairs import known_path, load_pair
from experiments.studies import validate


@pytest.fixture
def pairs(models, tmp_path):
    """A folder of one pair, whose path is the model half way, and that with its target's positions from an npz."""
    folder = tmp_path / "pairs" / "bent"
    folder.mkdir(parents=True)
    for name, model in zip(("initial", "target", "middle"), models, strict=True):
        atoms.write_model(folder / f"{name}.cif", model)
    xyz = np.stack([atoms.positions(models[k])[::-1] for k in (1, 2)])
    np.savez(folder / "path.npz", xyz=xyz, atom_index=np.arange(xyz.shape[1])[::-1])
    path = {"models": ["middle.cif"], "frames": "path.npz"}
    (folder / "pair.json").write_text(json.dumps({"initial": "initial.cif", "target": "target.cif", "path": path}))
    return folder.parent


def test_a_known_path_is_read_from_models_and_from_frames(pairs, models):
    found = known_path(pairs / "bent", models[0])
    expected = [atoms.positions(models[k]) for k in (2, 1, 2)]
    for model, xyz in zip(found, expected, strict=True):
        np.testing.assert_allclose(atoms.positions(model), xyz, atol=1e-3)  # decimals of the file


def test_a_path_is_compared_with_the_fit_and_with_straight_lines(pairs, models):
    """Of a fit whose frames are the straight lines themselves both distances are the same."""

    class Straight:
        def move(self, model, times):
            start, end = (atoms.positions(m) for m in models[:2])
            return [atoms.with_positions(model, start + t * (end - start)) for t in times]

    case = load_pair(pairs / "bent", 8.0)
    scores = validate.path_scores(Straight(), case, pairs / "bent")
    assert scores["path"] == pytest.approx(scores["straight_path"], abs=1e-3)
    assert 0 < scores["path"] < 0.3  # an arc of 0.6 radians hardly leaves its chord
    (pairs / "bent" / "pair.json").write_text(json.dumps({"initial": "initial.cif", "target": "target.cif"}))
    assert validate.path_scores(Straight(), case, pairs / "bent") == {}


def test_a_pair_is_carried_back(pairs, models):
    there, back = (load_pair(pairs / "bent", 8.0, way) for way in (False, True))
    for case, (start, end) in ((there, models[:2]), (back, models[1::-1])):
        np.testing.assert_allclose(atoms.positions(case.model), atoms.positions(start), atol=1e-3)
        np.testing.assert_allclose(atoms.positions(case.references[0]), atoms.positions(end), atol=1e-3)
        assert case.initial.density.max() > case.targets[0].density.max()  # 3 Å, 8 Å


@pytest.mark.slow
def test_every_case_has_a_row_and_every_group_its_median_and_worst(job, pairs, tmp_path):
    given = (f"--data_dir={pairs}", "--resolutions=8", "--seeds=0,1", "--steps=0.02", f"--out_dir={tmp_path / 'out'}")
    status, out, error = job("validate", *given)
    assert status == 0, error
    rows = json.loads((tmp_path / "out" / "validate.json").read_text())
    assert [row["seed"] for row in rows] == [0, 1] and all(row["path"] > 0 for row in rows)
    median, worst = (f(row["rmsd_after"] for row in rows) for f in (lambda v: np.median(list(v)), max))
    assert f"{median:.2f}, {worst:.2f}" in out
    status, _, error = job("validate", *given)
    assert status == 2 and "--overwrite" in error


def test_noise_is_as_strong_as_asked_and_always_the_same(maps):
    density = maps[0].density
    inside = density > choose_threshold(density)
    assert validate.add_noise(maps[0], np.inf).density == pytest.approx(density)
    one, other = (validate.add_noise(maps[0], 0.5).density - density for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert one.std() == pytest.approx(density[inside].std() / 0.5, rel=0.02)  # of 13,000 voxels
