"""The term that keeps distances along a model's backbone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.losses import Carried
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.fit.backbone import Backbone
from cryotrans_jax.fit.levels import Sampling, make_levels
from cryotrans_jax.fit.morph import morph
from cryotrans_jax.fit.options import Options, Waypoint
from cryotrans_jax.fit.stage import Config, Stage
from cryotrans_jax.fit.targets import rigidity_factor
from cryotrans_jax.fit.terms import Matched
from cryotrans_jax.io import atoms
from cryotrans_jax.io.chain import Chain

FIELD = Field(Velocity(width=16, centre=0.5), 4)


@pytest.fixture(scope="module")
def chained(problem, xyz):
    """One target, with a chain through the molecule in two segments; its last residue is outside of the box."""
    x = np.concatenate([xyz[:12], xyz[:1] + 500.0])
    return replace(problem.select([0]), chain=Chain(x, np.arange(13) != 6))


@pytest.fixture(scope="module")
def xyz(problem):
    """Places in the molecule, some Å apart from one to the next."""
    inside = np.argwhere(problem.initial > 0.2)
    middle = inside[:: len(inside) // 12][:12]
    return problem.frame.to_angstrom(problem.positions(middle)) + 0.3


def made(problem):
    """The term, and the nodes of its level before the motion."""
    level = make_levels(problem, FIELD, Sampling(1, 1, 6.0, True))[0]
    term = Backbone(weight=2.0).make(problem, level, 1, 0)
    lattice = (level.scene.motion.each if level.scene.motion.divided else level.scene.motion).lattice
    return term, np.asarray(lattice.nodes, np.float64).reshape(-1, 3)


def value(term, nodes):
    nothing = jnp.zeros((1, 3))
    return float(term(Carried(nothing, jnp.zeros(1), jnp.asarray(nodes, jnp.float32))))


def residues(term, nodes):
    return np.einsum("rk,rkc->rc", term.shares, nodes[term.nodes])


@pytest.fixture(scope="module")
def divided(chained):
    """The same, divided into two parts across the chain."""
    middle = int(np.median(np.argwhere(chained.initial > 0)[:, 2])) + chained.start[2]
    whole = np.array(chained.start) + chained.initial.shape
    labels = np.where(np.indices(whole)[2] < middle, 1, 2)
    return chained.divide([labels])


@pytest.mark.parametrize("parts", ["chained", "divided"])
def test_residues_move_with_the_nodes_around_them(parts, request):
    """Exactly so in any affine motion; a residue outside of the box is not carried."""
    problem = request.getfixturevalue(parts)
    term, nodes = made(problem)
    x = problem.frame.to_unit(problem.chain.x)[:12]
    np.testing.assert_allclose(residues(term, nodes)[:12], x, atol=1e-5)  # float32
    f = np.eye(3) + 0.3 * np.random.default_rng(0).normal(size=(3, 3))
    np.testing.assert_allclose(residues(term, nodes @ f.T + 0.1)[:12], x @ f.T + 0.1, atol=1e-5)
    assert not term.counted[term.first == 11].any() and term.counted.sum() == pytest.approx(1)


def test_it_is_zero_for_a_rigid_motion_and_four_times_the_squared_strain_of_a_small_one(chained):
    term, nodes = made(chained)
    turn = Rotation.from_rotvec([0.4, -0.2, 1.0]).as_matrix()
    assert value(term, nodes @ turn.T + 0.2) < 1e-6
    factor = 2.0 * rigidity_factor(chained, 0)
    assert value(term, 1.01 * nodes) == pytest.approx(factor * 4 * 0.01**2, rel=0.02)
    assert value(term, 11 * nodes) == pytest.approx(factor * 8 * 0.3 * (10 - 0.3), rel=0.02)  # in proportion to it


def test_two_parts_that_move_apart_tear_the_chain(divided):
    """Distances within each part stay; those between parts of one segment do not."""
    term, nodes = made(divided)
    half = len(nodes) // 2
    moved = np.concatenate([nodes[:half], nodes[half:] + [0.3, 0, 0]])
    part = term.nodes[:, 0] >= half
    torn = (part[term.first] != part[term.first + 1]) & (term.counted > 0)
    assert torn.any() and value(term, moved) > 0.01 * torn.mean()
    whole = replace(term, counted=np.where(torn, 0, term.counted))
    assert value(whole, moved) < 1e-6


def test_distances_are_those_within_a_segment(chained):
    term, _ = made(chained)
    lengths = np.linalg.norm(np.diff(chained.frame.to_unit(chained.chain.x), axis=0), axis=1)
    assert 6 not in term.first and len(term.first) == 11
    np.testing.assert_allclose(term.lengths[:10], lengths[term.first[:10]], rtol=1e-5)


def test_without_a_model_the_term_is_zero(chained):
    for chain in (None, Chain(np.zeros((0, 3)), np.zeros(0, bool)), Chain(np.ones((1, 3)), np.zeros(1, bool))):
        term, nodes = made(replace(chained, chain=chain))
        assert value(term, 2 * nodes) == 0


def test_its_gradient_is_finite_where_two_residues_meet(chained):
    term, nodes = made(chained)
    gradient = jax.grad(lambda nodes: term(Carried(nodes, nodes[:, 0], nodes)))(jnp.zeros(nodes.shape, jnp.float32))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("waypoint", [False, True])
def test_a_fit_with_a_model_keeps_its_backbone(maps, models, waypoint):
    """With two targets of their own, and on the way through a map to another one."""
    stage = Stage((Matched(), Backbone(weight=30.0)), 40, 1e-2, 1e-3, bin=2, sampling=2, spacing=6.0)
    config = Config((stage,), Field(Velocity(width=16, centre=0.5, waves=8, wave_number=6.0), 4))
    targets, passed = ([maps[1]], [Waypoint(maps[2], 0.5)]) if waypoint else ([maps[1], maps[2]], [])

    def strain(schedule):
        recipe = replace(config, schedule=schedule)
        fit = morph(maps[0], targets, Options(recipe, align="none"), model=models[0], waypoints=passed)
        moved = atoms.positions(fit.move(models[0]))
        before = np.linalg.norm(np.diff(atoms.positions(models[0]), axis=0), axis=1)
        return np.abs(np.linalg.norm(np.diff(moved, axis=0), axis=1) / before - 1).mean(), fit.history[0][-1]

    with_it, loss = strain((stage,))
    without, _ = strain((replace(stage, terms=stage.terms[:1]),))
    assert np.isfinite(loss).all() and with_it < 0.7 * without


def test_on_the_way_through_a_map_residues_are_held_by_the_parts_of_the_only_trajectory(problem, chained, divided):
    """Each map that is passed has a term of its own, and the parts are those of the whole way."""
    labels = np.zeros(np.array(problem.start) + problem.initial.shape, int)
    labels[tuple(slice(first, None) for first in problem.start)] = divided.labels[0]
    passing = replace(problem, waypoints=(0.5,), chain=chained.chain).divide([np.maximum(labels, 1)])
    (level,) = make_levels(passing, FIELD, Sampling(1, 1, 6.0, True))
    first, last = (Backbone().make(passing, level, 1, target) for target in range(2))
    assert first.counted.any()
    np.testing.assert_array_equal(first.nodes, last.nodes)
    np.testing.assert_array_equal(first.counted, last.counted)
