"""A fit that goes on from any of its snapshots ends as if it had never stopped, bit for bit."""

import resource
from dataclasses import replace

import jax
import numpy as np
import pytest
import test_train

from cryotrans_jax.fit import train
from cryotrans_jax.fit.morph import morph
from cryotrans_jax.fit.snapshots import Snapshot
from cryotrans_jax.io import checkpoints
from cryotrans_jax.io.files import InputError
from cryotrans_jax.motion.partition import Partition

HOW = dict(steps=0.1, initial_resolution=8.0, target_resolution=8.0, seed=2)


def same(a, b):
    """Whether two pytrees have the same structure, types and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        np.asarray(x).dtype == np.asarray(y).dtype and np.array_equal(x, y, equal_nan=True)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def same_fit(a, b):
    """Whether two fits are the same in all that is written of them."""
    parts = [[p.labels for p in fit.partitions] for fit in (a, b)]
    arrays = [(fit.params, fit.history, fit.validation_history, own) for fit, own in zip((a, b), parts, strict=True)]
    return a.config == b.config and a.report == b.report and a.failed == b.failed and same(*arrays)


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["one", "two"])
def course(maps, request):
    """A fit of one target, or two, by the default recipe, all its snapshots, and the targets."""
    seen, targets = [], maps[1 : 1 + request.param]
    return morph(maps[0], targets, **HOW, on_snapshot=seen.append), seen, targets


def test_snapshots_tell_the_whole_course(course):
    fit, seen, _ = course
    places = [(s.state.stage, s.state.step) for s in seen]
    assert places == sorted(places) and len(set(places)) == len(places)
    assert places[-1][0] == len(fit.config.stages)
    assert same(seen[-1].history, fit.history) and same(seen[-1].state.params, fit.params)


@pytest.mark.parametrize(
    "which",
    [
        "first",
        "of bodies",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("last", "before bodies", "redrawn")),
    ],
)
def test_going_on_from_a_snapshot_on_disk_ends_with_the_same_bits(course, maps, tmp_path, which):
    """Before the first stage's end, at the end, and on either side of where the map is cut into bodies."""
    fit, seen, targets = course
    bodies = fit.config.bodies
    stage = {"first": 0, "before bodies": bodies - 1, "of bodies": bodies, "redrawn": bodies + 1, "last": 5}[which]
    snapshot = next(s for s in seen if s.state.stage == stage)
    snapshot.save(tmp_path / "s", {"told": [1, "Å"]})
    found, told = Snapshot.load(tmp_path / "s")
    assert told == {"told": [1, "Å"]}
    assert same(found.state, jax.device_get(snapshot.state)) and same(found.history, snapshot.history)
    assert [p.labels.dtype for p in found.partitions] == [p.labels.dtype for p in snapshot.partitions]
    assert same_fit(morph(maps[0], targets, **HOW, resume_from=found), fit)


@pytest.mark.slow
def test_a_widened_window_is_not_forgotten(problem):
    """The stage goes on with the window that it was found to need, and not with the one that it began with."""
    stage = train.Stage("w2", 30, 3e-3, 3e-3, bin=2, sampling=2, epsilon=2e-3, window=1)
    config, seen = train.Config((stage,), width=8, centre=0.5, euler_steps=2), []
    one = problem.select([0])
    whole, _ = train.fit(one, config, chunk=10, on_state=lambda state, losses: seen.append(state))
    assert seen[0].window != 0
    assert same(jax.device_get(train.fit(one, config, chunk=10, state=seen[0])[0]), jax.device_get(whole))


def test_what_stands_on_disk_is_replaced_only_by_what_is_whole(tmp_path, monkeypatch):
    checkpoints.save(tmp_path / "c", {"a": np.arange(3)}, {"n": 1})

    def full(*_, **__):
        raise ValueError("OUT_OF_RANGE: Failed writing")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.ocp.Checkpointer, "save", full)
        with pytest.raises(OSError, match="cannot be written"):
            checkpoints.save(tmp_path / "c", {"a": np.arange(4)}, {"n": 2})
    arrays, told = checkpoints.restore(tmp_path / "c")
    assert told == {"n": 1} and len(arrays["a"]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_disk_without_room_says_so_before_anything_is_written(tmp_path, capfd):
    """In one error of the system's own, from which a file's size may not go beyond."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))
    try:
        checkpoints.save(tmp_path / "a", {"a": np.zeros(1000)}, {})
        with pytest.raises(OSError, match="too large") as error:
            checkpoints.save(tmp_path / "b", {"a": np.zeros(10**6)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.filename == str(tmp_path / "b") and "Traceback" not in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# Numbers that go wrong


# As in test_train.py, and so by the same programs
CONFIG = replace(test_train.CONFIG, stages=tuple(replace(stage, steps=32) for stage in test_train.STAGES))


def poisoned(monkeypatch, target, times, value=np.nan):
    """Makes the trainer's parameters of a target bad after its second chunk of steps, and so many times."""
    real, calls = train.train_steps, []

    def steps(*call):
        calls.append(1)
        params, adam, loss, error = real(*call)
        if 2 <= len(calls) < 2 + times:
            params = jax.tree.map(lambda p: p.at[target].multiply(value), params)
        return params, adam, loss, error

    steps.lower = real.lower
    monkeypatch.setattr(train, "train_steps", steps)


@pytest.fixture(scope="module")
def clean(two):
    """A fit of two targets with which nothing goes wrong."""
    return train.fit(two, CONFIG, chunk=8)


@pytest.mark.parametrize(
    "value, why",
    [(np.nan, "not finite"), pytest.param(np.inf, "not finite", marks=pytest.mark.slow), (1e3, "left the box")],
)
def test_a_target_that_goes_wrong_once_goes_back_and_recovers(two, clean, monkeypatch, value, why):
    """It comes nearly as far as without; the other one is the same bit for bit; and it is told."""
    said = []
    poisoned(monkeypatch, 1, 1, value)
    state, history = train.fit(two, CONFIG, chunk=8, on_setback=lambda *what: said.append(what))
    assert not state.failed and len(said) == 1 and said[0][0] == 1
    assert why in said[0][1] and "step 16 of stage 1" in said[0][1] and "divided by 4" in said[0][1]
    pick = lambda p: p[0]  # noqa: E731
    assert same(jax.tree.map(pick, state.params), jax.tree.map(pick, clean[0].params))
    assert np.isfinite(jax.tree.leaves(jax.device_get(state.params))[0]).all()
    assert history[1][-1, 1] < 1.5 * clean[1][1][-1, 1]


def test_a_target_that_goes_on_going_wrong_is_given_up_alone(two, clean, monkeypatch):
    said = []
    poisoned(monkeypatch, 1, 10**6)
    state, _ = train.fit(two, CONFIG, chunk=8, on_setback=lambda *what: said.append(what))
    assert [target for target, _ in said] == [1] * (train.MAX_RESTARTS + 1)
    assert ["given up" in what for _, what in said] == [False] * train.MAX_RESTARTS + [True]
    assert state.failed[0] == "" and "not finite" in state.failed[1]
    pick = lambda p: p[0]  # noqa: E731
    assert same(jax.tree.map(pick, state.params), jax.tree.map(pick, clean[0].params))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))


@pytest.mark.slow
def test_a_fit_of_which_nothing_is_left_says_so(problem, monkeypatch, maps):
    said = []
    poisoned(monkeypatch, 0, 10**6)
    with pytest.raises(InputError, match="fit went wrong"):
        morph(maps[0], maps[1], **HOW, on_setback=lambda *what: said.append(what))
    assert len(said) == train.MAX_RESTARTS + 1
    with pytest.warns(UserWarning, match="target 3: the target is given up"):
        train.warn_of_setback(2, "the target is given up")


def test_a_goal_without_numbers_spoils_no_other_target(two, clean):
    """As a map would that slipped through all checks."""
    bad = replace(two, densities=np.stack([two.densities[0], np.full_like(two.densities[1], np.nan)]))
    state, _ = train.fit(bad, CONFIG, chunk=8, on_setback=lambda *_: None)
    assert state.failed[0] == "" and "stage 2" in state.failed[1]
    pick = lambda p: p[0]  # noqa: E731
    assert same(jax.tree.map(pick, state.params), jax.tree.map(pick, clean[0].params))


def test_labels_take_as_few_bytes_as_hold_them(course, maps, tmp_path):
    _, seen, _ = course
    labels = np.ones(maps[0].density.shape, int)
    labels[3:, 2:] = 2
    parts = Partition(labels, maps[0].voxel_size, maps[0].origin)
    replace(seen[0], partitions=(parts,), bodies_rms=((1.5, 0.25),)).save(tmp_path / "s")
    arrays, _ = checkpoints.restore(tmp_path / "s")
    assert arrays["labels"]["000"].dtype == np.uint8
    found, _ = Snapshot.load(tmp_path / "s")
    assert same(found.partitions[0].labels, labels) and found.bodies_rms == ((1.5, 0.25),)
