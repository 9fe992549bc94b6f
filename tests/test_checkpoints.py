"""A fit saved and loaded is the same fit; what is no checkpoint says so."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from cryotrans_jax import checkpoints, recipes
from cryotrans_jax.morphing import Fit
from cryotrans_jax.prepare import Frame
from cryotrans_jax.train import start

TIMES = np.array([0.5, 1.0])


@pytest.fixture
def fit(problem, maps):
    config = replace(recipes.default(problem, seed=3), width=16)
    return Fit(config, start(config, 2).params, Frame(np.array([-20.1, 12.0, 41.0]), 30.3), 0.004, initial=maps[0])


def test_a_loaded_fit_makes_identical_frames_and_models(tmp_path, fit, maps, models):
    fit.save(tmp_path / "checkpoint")
    loaded = Fit.load(tmp_path / "checkpoint", maps[0])
    assert loaded.config == fit.config and loaded.threshold == fit.threshold
    for target in (0, 1):
        for a, b in zip(fit.frames(TIMES, target), loaded.frames(TIMES, target), strict=True):
            np.testing.assert_array_equal(a.density, b.density)
    for a, b in zip(fit.move(models[0], TIMES, 1), loaded.move(models[0], TIMES, 1), strict=True):
        assert a[0]["A"][5]["CA"][0].pos.tolist() == b[0]["A"][5]["CA"][0].pos.tolist()


def test_arrays_and_description_survive(tmp_path):
    arrays = {"a": {"b": np.arange(6.0).reshape(2, 3)}, "c": np.array([1, 2], np.int32)}
    described = {"text": "Å", "none": None, "number": 0.1, "list": [1, {"x": True}]}
    checkpoints.save(tmp_path / "c", arrays, described)
    found, said = checkpoints.restore(tmp_path / "c")
    np.testing.assert_array_equal(found["a"]["b"], arrays["a"]["b"])
    np.testing.assert_array_equal(found["c"], arrays["c"])
    assert said == described


def test_no_checkpoint_is_unpickled(tmp_path, monkeypatch):
    """What a stranger's checkpoint holds is arrays and JSON: unpickling would run what it says."""
    checkpoints.save(tmp_path / "c", {"a": np.arange(3.0)}, {"x": 1})
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.delattr(pickle, name)
    arrays, described = checkpoints.restore(tmp_path / "c")
    assert described == {"x": 1} and arrays["a"].tolist() == [0, 1, 2]
    for path in (tmp_path / "c").rglob("*"):
        assert path.is_dir() or not path.read_bytes().startswith(b"\x80")  # as pickles begin


def test_saving_again_replaces(tmp_path):
    for value in (1.0, 2.0):
        checkpoints.save(tmp_path / "c", {"a": np.full(3, value)}, {"value": value})
    arrays, described = checkpoints.restore(tmp_path / "c")
    assert described == {"value": 2.0} and (arrays["a"] == 2).all()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_missing_or_partial_checkpoint_is_not_found(tmp_path):
    (tmp_path / "partial/arrays").mkdir(parents=True)
    for name in ("none", "partial"):
        with pytest.raises(FileNotFoundError) as caught:
            Fit.load(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
