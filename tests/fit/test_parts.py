"""Parts move each by a field of its own, and are added: one part is the whole, two may slide past each other."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drift, fit_problem, rounding

from cryotrans_jax.core import grid
from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.train import carry, objective
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.density import simulation, thresholds
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.fit import prepare, trajectory
from cryotrans_jax.fit.bodies import DockBodies, FindRigidBodies
from cryotrans_jax.fit.levels import Sampling, make_levels
from cryotrans_jax.fit.morph import morph
from cryotrans_jax.fit.options import Options, Resolutions
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.stage import Config, Stage, stage_inputs
from cryotrans_jax.fit.state import initial_state
from cryotrans_jax.fit.target_flow import Flow
from cryotrans_jax.fit.terms import Correspondences, Matched, Rigidity
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.borders import make_blocks
from cryotrans_jax.motion.docking import Docked, Docking
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.screw import Screw

POINTS = Stage((Correspondences(), Rigidity(1.0, slip=0.03)), 30, 3e-3, 1e-3, bin=2, sampling=2)
MATCHED = Stage((Matched(), Rigidity(1.0)), 30, 3e-3, 1e-3, bin=2, sampling=2, spacing=6.0)
FIELD = Field(Velocity(width=16, centre=0.5, waves=8, wave_number=2.0), 4)
CONFIG = Config((MATCHED,), FIELD)
CARRY = jax.jit(carry)


def level_of(problem, sampling, spacing, target=0):
    """A target's points of mass, with tetrahedra."""
    return make_levels(problem, FIELD, Sampling(sampling, sampling, spacing, True))[target]


@pytest.fixture(scope="module")
def alone(problem):
    """From the initial state to one target."""
    return problem.select([0])


@pytest.fixture(scope="module")
def halves(maps):
    """The chain's two halves, which turn about its middle; the first one the smaller."""
    above = maps[0].origin[2] + np.arange(maps[0].density.shape[2]) * maps[0].voxel_size[2] > 66.0
    labels = np.where(above, 2, 1) * np.ones(maps[0].density.shape, int)
    return Partition(labels, maps[0].voxel_size, maps[0].origin)


@pytest.fixture(scope="module")
def both(alone, halves):
    return alone.divide([halves.labels])


def of(each, number):
    """What belongs to one target, or part; of NumPy's arrays, of which none is compiled."""
    return jax.tree.map(lambda p: np.asarray(p)[number], each)


def masses(problem):
    return [np.where(problem.labels[0] == part + 1, problem.initial, 0) for part in range(problem.parts)]


def parts_alone(alone, both):
    """For each part a problem in which it is the whole molecule."""
    every = enumerate(masses(both), 1)
    return [replace(alone, initial=mass, molecule=both.molecule & (both.labels[0] == part)) for part, mass in every]


@pytest.mark.parametrize("spacing", [0.0, 6.0])
@pytest.mark.parametrize("sampling", [1, 2])
def test_a_level_of_parts_holds_each_as_it_would_be_alone(alone, both, sampling, spacing):
    """The rest is padding: points that are not kept, tetrahedra of no share."""
    level, each = (
        level_of(both, sampling, spacing),
        [level_of(part, sampling, spacing) for part in parts_alone(alone, both)],
    )
    scene, whole = level.scene, np.concatenate([own.scene.rho for own in each])
    np.testing.assert_array_equal(level.points, np.concatenate([own.points for own in each]))
    np.testing.assert_array_equal(scene.rho, whole)
    shares = level.tetrahedra.share.reshape(2, -1)
    for part, (own, one) in enumerate(zip(each, parts_alone(alone, both), strict=True)):
        n, rows = len(own.points), len(own.tetrahedra.share)
        np.testing.assert_array_equal(scene.x[part, :n], own.points)
        amount = one.molecule.sum() / both.molecule.sum() if spacing else own.scene.rho.sum() / whole.sum()
        np.testing.assert_allclose(shares[part, :rows], float(amount) * own.tetrahedra.share, rtol=1e-5)  # float32
        assert not shares[part, rows:].any()
    assert whole.sum() == pytest.approx(alone.initial.sum(dtype=float), rel=1e-5)


@pytest.mark.parametrize("spacing", [0.0, 6.0])
def test_each_part_is_carried_by_its_own_field_as_it_would_be_alone(alone, both, spacing):
    fields = [jax.tree.map(lambda p: 3 * p, of(initial_state(FIELD, seed, 1).params, 0)) for seed in (1, 2)]
    level = level_of(both, 1, spacing)
    carried = CARRY(jax.tree.map(lambda *p: np.stack(p), *fields), level.scene)
    moved = np.split(carried.x, [int((masses(both)[0] > 0).sum())])
    nodes = carried.nodes.reshape(2, -1, 3)
    for part, (field, one) in enumerate(zip(fields, parts_alone(alone, both), strict=True)):
        own = level_of(one, 1, spacing)
        there = CARRY(field, own.scene)
        assert np.abs(there.x - own.points).max() > 0.01
        near = rounding(1.0, 100)  # four steps of three layers, whose sums have some ten terms
        np.testing.assert_allclose(moved[part], there.x, atol=near)
        np.testing.assert_allclose(nodes[part, : len(there.nodes)], there.nodes, atol=near)


@pytest.fixture(scope="module")
def losses():
    """Loss, and its gradient, of some parameters in a stage, for one of the targets."""

    loss = jax.jit(jax.value_and_grad(lambda params, *model: objective(params, *model)[0]))

    def losses(problem, stage, params, target=0):
        return jax.device_get(loss(params, *stage_inputs(problem, FIELD, stage).of_target(target)))

    return losses


@pytest.mark.parametrize("stage", [pytest.param(POINTS, marks=pytest.mark.slow), MATCHED], ids=["points", "matched"])
def test_one_part_is_no_parts(alone, losses, stage):
    """The same loss and gradient, in float32; so is the start."""
    one = alone.divide([np.ones(tuple(alone.start + alone.initial.shape), int)])
    params, own = initial_state(FIELD, 0, 1).params, initial_state(FIELD, 0, 1, 1).params
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rounding(1, 10)), of(params, 0), of(own, (0, 0)))
    whole, part = (losses(p, stage, of(q, 0)) for p, q in ((alone, params), (one, own)))
    assert part[0] == pytest.approx(float(whole[0]), rel=1e-4)  # sums over all voxels
    for a, b in zip(*map(jax.tree.leaves, (whole[1], part[1])), strict=True):
        np.testing.assert_allclose(a, b[0], atol=1e-4 * np.abs(a).max())


def test_parts_under_one_field_make_the_whole_map_and_slip_at_their_border(alone, both, losses):
    """The loss is that of the whole, as carried points are the same; only tetrahedra across the border are missing."""
    stage = replace(MATCHED, terms=(Matched(),), bin=1, sampling=1, spacing=0.0)  # no point is divided
    params = [of(initial_state(FIELD, 0, 1, parts).params, 0) for parts in (0, 2)]
    whole, parts = (losses(problem, stage, p) for problem, p in zip((alone, both), params, strict=True))
    assert parts[0] == pytest.approx(float(whole[0]), rel=1e-4)  # sums over all voxels
    for a, b in zip(*map(jax.tree.leaves, (whole[1], parts[1])), strict=True):
        np.testing.assert_allclose(a, b.sum(0), atol=1e-4 * np.abs(a).max())


def test_stiffness_multiplies_the_rigidity_of_its_part_alone(alone, halves, losses):
    params = jax.tree.map(lambda p: 3 * p, of(initial_state(FIELD, 3, 1, 2).params, 0))
    plain, first, second, none = (
        float(losses(alone.divide([halves.labels], stiffness), MATCHED, params)[0])
        for stiffness in ((1.0, 1.0), (3.0, 1.0), (1.0, 5.0), (0.0, 0.0))
    )
    assert first > plain and second > plain > none
    # rigidity is r1 + r2: 3 r1 + r2 and r1 + 5 r2
    assert (first - plain) / 2 + (second - plain) / 4 == pytest.approx(plain - none, rel=1e-3)


@pytest.fixture(scope="module")
def sliding():
    """Two rods side by side, and the same after they slid past each other by 8 Å: maps, labels."""
    rng = np.random.default_rng(0)
    size, shape = np.full(3, 2.0), (20, 20, 30)
    z = np.arange(14.0, 46.0, 1.5)
    x = np.concatenate([np.stack([np.full_like(z, at), np.full_like(z, 20.0), z], -1) for at in (15.0, 25.0)])
    x += rng.normal(0, 1.5, x.shape)
    shift = np.where(x[:, :1] < 20, [0, 0, 4.0], [0, 0, -4.0])
    initial, target = (
        simulation.simulate_map((at, np.full(len(x), 6.0)), shape, size, np.zeros(3), 6.0) for at in (x, x + shift)
    )
    labels = np.where(np.arange(20)[:, None, None] < 10, 1, 2) * np.ones(shape, int)
    return initial, target, Partition(labels, size, np.zeros(3)), x, shift


STIFF = Stage((Matched(blur=3.0), Rigidity(3.0)), 300, 1e-2, 1e-4, bin=2)


@pytest.mark.slow  # that bodies with fields of their own go on to a better fit: test_bodies_are_found_and_go_on
def test_bodies_that_slide_past_each_other_are_fitted_by_two_parts_and_not_by_one_field(sliding):
    """Under a rigidity that forbids to shear; without it the one field follows as well."""
    initial, target, partition, x, shift = sliding
    problem = prepare.prepare(initial, [target], Resolutions(6.0, [6.0]))
    config = replace(CONFIG, schedule=(STIFF,))
    off = {}
    for name, given, parts in (("one", problem, None), ("two", problem.divide([partition.labels]), partition)):
        state, history = fit_problem(given, config)
        params = jax.tree.map(lambda p: p[0], state.params)
        moved = trajectory.move(Flow(FIELD, params, problem.frame, parts), x, [1.0])[0]
        off[name] = np.sqrt(((moved - x - shift) ** 2).sum(-1).mean()), history[0][-1, 0]
    assert off["two"][0] < 0.2 and off["one"][0] > 1.5  # Å, of 4
    assert off["two"][1] < 0.2 * off["one"][1]


@pytest.fixture(scope="module")
def slid(sliding):
    """A fit that carries the parts of the rods by constant velocities, which a network without weights has."""
    initial, _, partition, *_ = sliding
    frame = grid.Frame(np.zeros(3), 60.0)
    field = Field(Velocity(width=8), 4)
    params = jax.tree.map(jnp.zeros_like, initial_state(field, 0, 1, 2).params)
    shift = jnp.array([[0, 0, 4.0], [0, 0, -4.0]]) / frame.edge
    params["params"]["Dense_2"]["bias"] = shift[None].astype(jnp.float32)
    threshold = 0.05 * float(initial.density.max())
    return Fit(Config((), field), field, params, frame, threshold, partitions=(partition,), initial=initial)


@pytest.mark.parametrize("render", ["pull_back", "splat"])
def test_frames_are_the_parts_each_carried_by_its_own_flow(sliding, slid, render):
    """By 4 Å, two voxels: the end is the parts' densities moved by whole voxels."""
    initial, _, partition, *_ = sliding
    first, last = slid.frames([0.0, 1.0], render=render)
    carried = thresholds.carried_mass(initial.density, slid.threshold)
    mask = carried > 0
    shares = [partition.labels == 1, partition.labels == 2]
    if render == "pull_back":  # with soft masks and a soft edge
        mask = trajectory.soft_support(initial.density, slid.threshold, initial.voxel_size)
        shares = [share.on_grid(mask.shape) for share in partition.soft_masks(mask > 0, trajectory.PullBack.seam)]
        carried = initial.density * mask
    np.testing.assert_allclose(first.density, carried, atol=1e-4 * carried.max())  # no seam; splines in float32
    moved = np.roll(carried * shares[0], 2, axis=2) + np.roll(carried * shares[1], -2, axis=2)
    np.testing.assert_allclose(last.density, moved, atol=2e-3 * carried.max())  # the spline between float32 places
    assert np.abs(moved - carried).max() > 0.2 * carried.max()


def test_positions_move_with_the_part_in_which_they_are(sliding, slid):
    *_, x, shift = sliding
    np.testing.assert_allclose(slid.carry(x, [0.5, 1.0]), x + np.array([0.5, 1.0])[:, None, None] * shift, atol=1e-4)
    assert slid.consistency() < 1e-3  # Å


def test_a_saved_fit_of_parts_gives_the_same_frames(sliding, slid, tmp_path):
    slid.save(tmp_path / "fit")
    again = Fit.load(tmp_path / "fit", sliding[0])
    np.testing.assert_array_equal(again.partition().labels, slid.partition().labels)
    for a, b in zip(*(each.frames([0.3, 1.0]) for each in (slid, again)), strict=True):
        np.testing.assert_array_equal(a.density, b.density)


def test_bodies_are_found_and_go_on_as_rigid_where_the_whole_left_them(sliding, monkeypatch):
    """The whole's field has no parts."""
    initial, target, *_, x, shift = sliding
    stage = replace(STIFF, terms=(Matched(blur=3.0), Rigidity(0.01)))
    soft = replace(CONFIG, schedule=(stage, FindRigidBodies(), stage), field=Screw(FIELD))
    monkeypatch.setattr("cryotrans_jax.fit.recipes.default", lambda problem, seed: soft)
    found = morph(initial, target, Options(align="none", resolutions=Resolutions(6.0, 6.0)))
    assert found.partition().count == 2 and len(found.config.stages) == 2 == len(found.history)
    part = found.partition().part_at(x)
    assert (part == part[0])[x[:, 0] < 17].mean() > 0.9 and (part != part[0])[x[:, 0] > 23].mean() > 0.9
    off = found.report["bodies_rms"][0]
    assert len(off) >= 2 and off[1] < 0.75 * off[0]
    assert jax.tree.leaves(found.params)[0].shape[:2] == (1, 2)
    # rigid bodies go on near where the whole's flow stood, and arrive nearer
    assert found.history[1][-1] < found.history[0][-1] and found.history[1][0] < 0.15 * found.history[0][0]


def test_docked_bodies_are_taken_by_the_targets_that_they_fit_better(sliding, monkeypatch):
    """Also where another result of the docking costs less.

    The second target is the initial map itself; no stage moves anything, so that the choice alone is seen.
    """
    initial, target, labels, x, shift = sliding

    def docked(*_):
        blocks = make_blocks(np.maximum(initial.density, 0), initial, 4.0)
        motions = [Transform(np.eye(3), np.array([0.0, 0, along])) for along in (4.0, -4.0)]
        right = Docked(blocks, labels.part_at(blocks.x), np.ones(len(blocks.x)), motions, 2.0)
        return [right._replace(motions=motions[::-1], cost=1.0), right, right._replace(motions=motions[:1] * 2)]

    monkeypatch.setattr("cryotrans_jax.fit.bodies.searched", lambda *_: object.__new__(Docking))
    monkeypatch.setattr(Docking, "results", docked)
    still = Stage((Matched(blur=3.0),), 1, 0.0, 0.0, bin=2)
    config = Config((still, FindRigidBodies(), DockBodies(trial=still), still), Screw(Field(Velocity(init_std=0.0), 2)))
    options = Options(config, align="none", resolutions=Resolutions(6.0, 6.0))
    both = morph(initial, [target, initial], options)
    assert [both.partition(number).count for number in range(2)] == [2, 1]
    assert both.report["start"] == ["docking", "matched"]
    np.testing.assert_allclose(both.carry(x, [1.0])[0], x + shift, atol=1e-4)
    for number, end in enumerate((target, initial)):
        alone = morph(initial, end, options)
        np.testing.assert_allclose(both.carry(x, [1.0], number), alone.carry(x, [1.0]), atol=1e-4)


def test_a_target_of_fewer_parts_than_another_has_the_loss_that_it_has_alone(problem, halves, losses):
    """Parts of no mass fill up, and change nothing; nor do their fields."""
    given = [halves.labels, np.ones_like(halves.labels)]
    params = of(initial_state(FIELD, 2, 1, 2).params, 0)
    own = jax.tree.map(lambda p: p[:1], params)
    among = losses(problem.divide(given), MATCHED, params, 1)
    alone = losses(problem.select([1]).divide(given[1:]), MATCHED, own)
    assert among[0] == pytest.approx(float(alone[0]), rel=1e-4)  # sums over all voxels
    for a, b in zip(*map(jax.tree.leaves, (among[1], alone[1])), strict=True):
        np.testing.assert_allclose(a[:1], b, atol=1e-4 * np.abs(b).max())
        assert not np.any(a[1])


@pytest.mark.slow
def test_each_target_has_parts_of_its_own_as_it_would_alone(problem, halves):
    """Here two for the first and one for the second; parts of no mass fill up, and change nothing."""
    whole = np.ones_like(halves.labels)
    config = replace(CONFIG, schedule=(replace(POINTS, steps=20), MATCHED), seed=2)
    given = [halves.labels, whole]
    both = fit_problem(problem.divide(given), config)
    assert level_of(problem.divide(given), 2, 6.0).scene.x.shape[0] == 2
    for target in range(2):
        alone, losses = fit_problem(problem.select([target]).divide([given[target]]), config)
        count = jax.tree.leaves(alone.params)[0].shape[1]
        assert count == 2 - target
        for a, b in zip(*map(jax.tree.leaves, (both[0].params, alone.params)), strict=True):
            np.testing.assert_allclose(a[target, :count], b[0], atol=drift(config))
        np.testing.assert_allclose(both[1][1][:, target], losses[1][:, 0], rtol=1e-3)


def test_parts_that_cannot_be_are_refused(maps, halves):
    empty = Partition(np.where(np.arange(24)[:, None, None] < 1, 2, halves.labels.clip(1, 1)), *GRID(maps))
    small = Partition(halves.labels[1:], *GRID(maps))
    for parts, rigidity, targets, sentence in (
        (empty, None, 1, "part 2 has no density above the initial map's threshold"),
        (small, None, 1, "the parts are on another grid"),
        ("some", None, 1, "there are no parts 'some'"),
        ("auto", [1.0, 2.0], 1, "part_rigidity is only for given parts"),
        (None, [1.0], 1, "part_rigidity is only for given parts"),
        (halves, [1.0], 1, "1 weights of the rigidity for 2 parts"),
        (halves, [1.0, -1.0], 1, "part_rigidity contains -1"),
    ):
        with pytest.raises(InputError, match=sentence):
            options = Options(align="none", parts=parts, part_rigidity=rigidity or ())
            morph(maps[0], maps[1 : 1 + targets], options)
    bare = Config((Stage((Matched(),), 1, 1e-3, 1e-3, bin=4, sampling=4),))
    with pytest.raises(InputError, match="the recipe has no rigidity"):
        morph(maps[0], maps[1], Options(bare, align="none", parts=halves, part_rigidity=(1.0, 2.0)))


def GRID(maps: tuple[Map, ...]):
    return maps[0].voxel_size, maps[0].origin
