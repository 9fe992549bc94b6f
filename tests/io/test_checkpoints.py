"""A fit saved and loaded is the same fit; a checkpoint that is damaged, or none, says so."""

import os
import pickle
from dataclasses import fields, replace

import jax
import numpy as np
import pytest
from conftest import identical

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.density.align import Agreement, Alignment
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.fit import recipes
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.snapshots import Snapshot
from cryotrans_jax.fit.state import initial_state
from cryotrans_jax.io import checkpoints
from cryotrans_jax.io.files import InputError
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.symmetric import Symmetric

TIMES = np.array([0.5, 1.0])


@pytest.fixture
def fit(problem, maps):
    config, frame = recipes.default(problem, seed=3), Frame(np.array([-20.1, 12.0, 41.0]), 30.3)
    field = Symmetric(Field(Velocity(width=16, centre=0.5), 5), ((*np.eye(3).ravel().tolist(), 0.0, 0.0, 0.0),))
    return Fit(config, field, initial_state(field, 3, 2).params, frame, 0.004, initial=maps[0])


def test_a_loaded_fit_makes_identical_frames_and_models(tmp_path, fit, maps, models):
    fit.save(tmp_path / "checkpoint")
    loaded = Fit.load(tmp_path / "checkpoint", maps[0])
    assert (loaded.config, loaded.field, loaded.threshold) == (fit.config, fit.field, fit.threshold)
    for target in (0, 1):
        for a, b in zip(fit.frames(TIMES, target), loaded.frames(TIMES, target), strict=True):
            np.testing.assert_array_equal(a.density, b.density)
    for a, b in zip(fit.move(models[0], TIMES, 1), loaded.move(models[0], TIMES, 1), strict=True):
        assert a[0]["A"][5]["CA"][0].pos.tolist() == b[0]["A"][5]["CA"][0].pos.tolist()


def test_a_loaded_fit_is_the_saved_one_in_every_field(tmp_path, fit, maps):
    rng, grid = np.random.default_rng(0), (maps[0].voxel_size, maps[0].origin)
    parts = [Partition(rng.integers(1, n, maps[0].density.shape, kind), *grid) for n, kind in ((2, np.int16), (4, int))]
    moved = Transform(np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), np.array([0.1, 1 / 3, -7.0]))
    agreement = Agreement(0.5, 0.75, 1 / 3, 0.9, (8.0, 6.0), None, 0.1)
    losses = rng.normal(size=(20, 2)).astype(np.float32)
    losses[5, 1] = np.nan  # as of a target that went wrong
    whole = replace(
        fit,
        params=jax.device_get(fit.params),
        history=(losses, np.zeros((0, 2), np.float32), losses[:3]),
        report={"targets": [{"threshold": 0.1, "kept": float("nan")}, {}], "start": ["transport"], "none": None},
        partitions=tuple(parts),
        alignments=(Alignment(), Alignment(moved, "rotated", 3.5, agreement, 0.99)),
        failed=("", "the loss has grown"),
    )
    for number, saved in enumerate((whole, replace(fit, params=whole.params), whole.select([1]))):
        saved.save(tmp_path / str(number))
        loaded = Fit.load(tmp_path / str(number), maps[0])
        assert [f.name for f in fields(Fit) if not identical(getattr(loaded, f.name), getattr(saved, f.name))] == []


def test_arrays_and_description_survive(tmp_path):
    """Empty ones as well."""
    arrays = {"a": {"b": np.arange(6.0).reshape(2, 3)}, "c": np.array([1, 2], np.int32)}
    arrays |= {"d": {}, "e": {"f": np.zeros((0, 3), np.float32), "g": {"h": {}}}}
    described = {"text": "Å", "none": None, "number": 0.1, "list": [1, {"x": True}]}
    checkpoints.save(tmp_path / "c", arrays, described)
    found, said = checkpoints.restore(tmp_path / "c")
    assert identical(found, arrays) and said == described


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


def test_a_missing_checkpoint_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Fit.load(tmp_path / "none")
    assert str(tmp_path / "none") in str(caught.value)


# Damage


@pytest.fixture
def saved(tmp_path):
    """The folder of a checkpoint."""
    checkpoints.save(tmp_path / "c", {"a": {"b": np.arange(6.0)}, "c": np.arange(3)}, {"x": 1})
    return tmp_path / "c"


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_refused(folder):
    """Before anything of it is used, in one sentence that names the folder."""
    with pytest.raises(InputError) as caught:
        checkpoints.restore(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_flipped_bit_in_any_file_is_noticed(saved):
    random = np.random.default_rng(0)
    for path in files_of(saved):
        whole = path.read_bytes()
        bits = {0, 8 * len(whole) - 1, *random.integers(8 * len(whole), size=5).tolist()}
        for bit in bits:
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            check_refused(saved)
        path.write_bytes(whole)
    assert checkpoints.restore(saved)[1] == {"x": 1}


def test_a_file_that_is_cut_short_missing_or_a_folder_is_noticed(saved):
    for path in files_of(saved):
        whole = path.read_bytes()
        for length in {0, 1, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:length])
            check_refused(saved)
        path.unlink()
        check_refused(saved)
        path.mkdir()
        check_refused(saved)
        path.rmdir()
        path.write_bytes(whole)
    checkpoints.restore(saved)


def test_a_checkpoint_with_a_link_a_pipe_or_a_file_of_another_is_refused(saved, tmp_path):
    for path in files_of(saved):
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        check_refused(saved)
        path.unlink()
        (tmp_path / "elsewhere").rename(path)
    os.mkfifo(saved / "pipe")
    check_refused(saved)  # and does not wait for what comes out of it
    (saved / "pipe").unlink()
    (saved / "arrays" / "more").write_bytes(b"")
    check_refused(saved)
    (saved / "arrays" / "more").unlink()
    (saved / ".DS_Store").write_bytes(b"of a file manager")
    checkpoints.restore(saved)


def test_a_checkpoint_of_another_kind_or_version_is_refused(tmp_path):
    checkpoints.save(tmp_path / "other", {"a": np.arange(3)}, {"x": 1})
    for load in (Fit.load, Snapshot.load):
        with pytest.raises(InputError, match="other is not a .* of this version"):
            load(tmp_path / "other")
    (tmp_path / "other" / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match="has no file SHA256SUMS: it is incomplete, or from an earlier version"):
        Fit.load(tmp_path / "other")


def test_saving_follows_no_link(tmp_path):
    """Neither in the checkpoint's own place nor in those of its predecessors."""
    outside, place = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    place.mkdir()
    (outside / "mine").write_text("mine")
    for name in ("c", ".c.new", ".c.old"):
        (place / name).symlink_to(outside)
    for value in (1, 2):
        checkpoints.save(place / "c", {"a": np.full(3, value)}, {"value": value})
    assert checkpoints.restore(place / "c")[1] == {"value": 2}
    assert [path.name for path in outside.iterdir()] == ["mine"] and (outside / "mine").read_text() == "mine"
    assert [path.name for path in place.iterdir()] == ["c"]
