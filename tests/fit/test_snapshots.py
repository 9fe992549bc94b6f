"""A fit that goes on from any of its snapshots ends as if it had never stopped, bit for bit."""

import resource
from dataclasses import dataclass, replace

import jax
import numpy as np
import optax
import pytest

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.fit import supervise
from cryotrans_jax.fit.bodies import FindRigidBodies, RedrawBorders
from cryotrans_jax.fit.morph import morph, resumed
from cryotrans_jax.fit.optimisers import OptimiserSettings
from cryotrans_jax.fit.options import Options, Resolutions, Running
from cryotrans_jax.fit.schedule import Fitting, run
from cryotrans_jax.fit.snapshots import Snapshot
from cryotrans_jax.fit.stage import Config, Stage, Supervision
from cryotrans_jax.fit.supervise import Callbacks, warn_of_setback
from cryotrans_jax.fit.terms import L2, W2, Matched, Rigidity
from cryotrans_jax.io import checkpoints
from cryotrans_jax.io.files import InputError
from cryotrans_jax.motion.partition import Partition

HOW = Options(steps=0.5, resolutions=Resolutions(8.0, 8.0), seed=4)


def same(a, b):
    """Whether two pytrees have the same structure, types and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        np.asarray(x).dtype == np.asarray(y).dtype and np.array_equal(x, y, equal_nan=np.asarray(x).dtype.kind == "f")
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def same_fit(a, b):
    """Whether two fits are the same in all that is written of them."""
    parts = [[p.labels for p in fit.partitions] for fit in (a, b)]
    arrays = [(fit.params, fit.history, own) for fit, own in zip((a, b), parts, strict=True)]
    settings = [(fit.config, fit.field, fit.report, fit.failed) for fit in (a, b)]
    return settings[0] == settings[1] and same(*arrays)


def stages_before(action, config):
    """Number of the schedule's stages before its first action of this kind."""
    place = next(k for k, item in enumerate(config.schedule) if isinstance(item, action))
    return sum(isinstance(item, Stage) for item in config.schedule[:place])


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)], ids=["one", "two"])
def course(maps, request):
    """A fit of one target, or two, by the default recipe, all its snapshots, and the targets."""
    seen, targets = [], maps[1 : 1 + request.param]
    return morph(maps[0], targets, HOW, running=Running(on_snapshot=seen.append)), seen, targets


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
    bodies, redrawn = (stages_before(action, fit.config) for action in (FindRigidBodies, RedrawBorders))
    stage = {"first": 0, "before bodies": bodies - 1, "of bodies": bodies, "redrawn": redrawn, "last": 5}[which]
    snapshot = next(s for s in seen if s.state.stage == stage)
    assert bool(snapshot.partitions) == (stage >= bodies)
    snapshot.save(tmp_path / "s", {"described": [1, "Å"]})
    found, described = Snapshot.load(tmp_path / "s")
    assert described == {"described": [1, "Å"]}
    assert same(found.state, jax.device_get(snapshot.state)) and same(found.history, snapshot.history)
    assert [p.labels.dtype for p in found.partitions] == [p.labels.dtype for p in snapshot.partitions]
    assert same_fit(morph(maps[0], targets, HOW, running=Running(resume_from=found)), fit)


@pytest.mark.slow
def test_a_widened_window_is_not_forgotten(problem):
    """The stage goes on with the window that it was found to need, and not with the one that it began with."""
    stage = Stage((W2(2e-3, window=1),), 30, 3e-3, 3e-3, bin=2, sampling=2)
    config, seen = Config((stage,), Field(Velocity(width=8, centre=0.5), 2), Supervision(chunk=10)), []
    start = Fitting.begin(problem.select([0]), config)
    whole = run(start, seen.append)
    assert seen[0].state.refined > 0
    again = run(resumed(start, seen[0]))
    assert same(*(jax.device_get((fitting.state, fitting.history)) for fitting in (again, whole)))


@dataclass(frozen=True)
class ClippedLion(OptimiserSettings):
    """Lion on clipped gradients, as a user may write it."""

    norm: float = 1.0

    def make(self):
        return optax.chain(optax.clip_by_global_norm(self.norm), optax.scale_by_lion())


def test_a_fit_by_an_own_optimiser_is_resumed_with_the_same_bits(problem, tmp_path):
    stage = Stage((L2(),), 20, 1e-3, 1e-3, bin=2, sampling=2)
    config, seen = Config((stage,), Field(Velocity(width=8, centre=0.5), 2), Supervision(chunk=8)), []
    own = replace(config, optimiser=ClippedLion(0.5))
    start = Fitting.begin(problem.select([0]), own)
    whole = run(start, seen.append)
    assert whole.history[0][-1, 0] < whole.history[0][0, 0]
    seen[0].save(tmp_path / "s")
    found, _ = Snapshot.load(tmp_path / "s")
    assert found.state.optimiser.settings == ClippedLion(0.5)
    assert same(found.state, jax.device_get(seen[0].state))
    again = run(resumed(start, found))
    assert same(*(jax.device_get((fitting.state, fitting.history)) for fitting in (again, whole)))


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


STAGES = (  # with the field and the terms of test_train.py, and so by the same programs
    Stage((W2(2e-3, window=4),), 32, 6e-3, 6e-3, bin=2, sampling=2),
    Stage((Matched(), Rigidity(0.03)), 32, 6e-3, 1e-4, bin=2, sampling=2, spacing=6.0),
)
FIELD = Field(Velocity(width=24, centre=0.5, waves=8, wave_number=2.0), 4)
CONFIG = Config(STAGES, FIELD, Supervision(chunk=8), seed=5)
RESTARTS = CONFIG.supervision.max_restarts


def fitted(problem, said=None):
    """A fit, whose setbacks are appended to `said`."""
    on_setback = warn_of_setback if said is None else lambda *what: said.append(what)
    return run(Fitting.begin(problem, CONFIG, callbacks=Callbacks(on_setback=on_setback)))


def same_target(target, a, b):
    """Whether a target's parameters are the same in two fits."""
    return same(*(jax.tree.map(lambda p: p[target], fitting.state.params) for fitting in (a, b)))


def poisoned(monkeypatch, target, times, value=np.nan):
    """Makes the trainer's parameters of a target bad after its second chunk of steps, and so many times."""
    real, calls = supervise.train_steps, []

    def steps(*call):
        calls.append(1)
        params, adam, loss, error = real(*call)
        if 2 <= len(calls) < 2 + times:
            params = jax.tree.map(lambda p: p.at[target].multiply(value), params)
        return params, adam, loss, error

    monkeypatch.setattr(supervise, "train_steps", steps)


@pytest.fixture(scope="module")
def clean(two):
    """A fit of two targets with which nothing goes wrong."""
    return fitted(two)


@pytest.mark.parametrize(
    "value, why",
    [(np.nan, "not finite"), pytest.param(np.inf, "not finite", marks=pytest.mark.slow), (1e3, "left the box")],
)
def test_a_target_that_goes_wrong_once_goes_back_and_recovers(two, clean, monkeypatch, value, why):
    """It comes nearly as far as without; the other one is the same bit for bit; and it is told."""
    said = []
    poisoned(monkeypatch, 1, 1, value)
    found = fitted(two, said)
    assert not found.state.failed and len(said) == 1 and said[0][0] == 1
    assert why in said[0][1] and "step 16 of stage 1" in said[0][1] and "divided by 4" in said[0][1]
    assert same_target(0, found, clean)
    assert np.isfinite(jax.tree.leaves(jax.device_get(found.state.params))[0]).all()
    assert found.history[1][-1, 1] < 1.5 * clean.history[1][-1, 1]


def test_a_target_that_goes_on_going_wrong_is_given_up_alone(two, clean, monkeypatch):
    said = []
    poisoned(monkeypatch, 1, 10**6)
    found = fitted(two, said)
    assert [target for target, _ in said] == [1] * (RESTARTS + 1)
    assert ["given up" in what for _, what in said] == [False] * RESTARTS + [True]
    assert found.state.failed[0] == "" and "not finite" in found.state.failed[1]
    assert same_target(0, found, clean)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(found.state.params)))


@pytest.mark.slow
def test_a_fit_of_which_nothing_is_left_says_so(problem, monkeypatch, maps):
    said = []
    poisoned(monkeypatch, 0, 10**6)
    with pytest.raises(InputError, match="fit went wrong"):
        morph(maps[0], maps[1], HOW, running=Running(on_setback=lambda *what: said.append(what)))
    assert len(said) == RESTARTS + 1
    with pytest.warns(UserWarning, match="target 3: the target is given up"):
        warn_of_setback(2, "the target is given up")


def test_a_goal_without_numbers_spoils_no_other_target(two, clean):
    """As a map would that slipped through all checks."""
    bad = replace(two, densities=np.stack([two.densities[0], np.full_like(two.densities[1], np.nan)]))
    found = fitted(bad, [])
    assert found.state.failed[0] == "" and "stage 2" in found.state.failed[1]
    assert same_target(0, found, clean)


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
