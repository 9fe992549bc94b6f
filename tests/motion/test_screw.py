"""A screw moves a body without any strain, whatever its angle; it can be learnt, turned with a molecule, and timed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rounding
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.motion.screw import Screw, screw_of
from cryotrans_jax.motion.symmetric import Symmetric
from cryotrans_jax.motion.waypoints import Timed

NETWORK = Velocity(width=12, centre=0.5, waves=4, wave_number=3.0)
FIELD = Screw(Field(NETWORK, 5))
X = np.random.default_rng(0).uniform(0, 1, (20, 3)).astype(np.float32)


def motion(seed, degrees):
    rng = np.random.default_rng(seed)
    axis = rng.standard_normal(3)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    matrix[:3, 3] = rng.uniform(-0.3, 0.3, 3)
    return matrix


def moved(matrix, x=X):
    return x @ matrix[:3, :3].T + matrix[:3, 3]


@pytest.fixture(scope="module")
def params():
    return jax.jit(FIELD.init)(jax.random.key(0))


@pytest.mark.parametrize("degrees", [0.0, 0.01, 20.0, 120.0, 180.0])
def test_a_rigid_body_arrives_and_keeps_its_shape_on_the_way(params, degrees):
    rigid = FIELD.rigid(params, [motion(1, degrees)])
    visited = np.asarray(jax.jit(FIELD.path)(rigid, X))
    np.testing.assert_allclose(visited[-1], moved(motion(1, degrees)), atol=rounding(2, 50))
    for at in visited:
        np.testing.assert_allclose(pdist(at), pdist(X), atol=rounding(2, 50))


def test_each_step_of_a_screw_is_the_same_motion(params):
    """So that half of the time is half of the angle, about the same axis."""
    visited = np.asarray(jax.jit(FIELD.path)(FIELD.rigid(params, [motion(2, 100.0)]), X), np.float64)
    middled = visited - visited.mean(1, keepdims=True)
    turns = [Rotation.align_vectors(b, a)[0] for a, b in itertools.pairwise(middled)]
    np.testing.assert_allclose([np.degrees(turn.magnitude()) for turn in turns], 20.0, atol=1e-3)


def test_parameters_of_no_motion_move_nothing_and_can_be_fitted(params):
    still = FIELD.rigid(params, [np.eye(4)])
    np.testing.assert_array_equal(jax.jit(FIELD.ends)(still, X), X)
    wanted, x = moved(motion(3, 10.0)), jnp.asarray(X)
    slopes = jax.jit(jax.grad(lambda p: jnp.sum((FIELD.ends(p, x) - wanted) ** 2)))(still)
    assert np.abs(slopes["screws"]).max() > 0 and np.abs(slopes["params"]["Dense_2"]["kernel"]).max() > 0
    assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))


def test_a_screw_learns_at_its_rate(params):
    """A step of the optimiser changes the motion of a whole body by the rate times the step."""
    twist = np.array([0.1, -0.2, 0.05, 0.02, 0.01, -0.03], np.float32)
    still = FIELD.rigid(params, [np.eye(4)])
    ends = [
        jax.jit(Screw(FIELD.field, rate=rate).ends)(still | {"screws": twist[None] / rate}, X) for rate in (0.25, 1.0)
    ]
    np.testing.assert_allclose(*ends, atol=rounding(1, 50))


def test_a_turned_field_does_at_the_copy_of_a_place_what_the_field_does_there(params):
    turn, shift = motion(4, 75.0)[:3, :3], motion(4, 75.0)[:3, 3]
    params = FIELD.rigid(params, [motion(5, 60.0)])
    params = jax.tree.map(lambda p: p + 0.05 * np.random.default_rng(1).standard_normal(p.shape), params)
    params = jax.tree.map(lambda p: np.asarray(p, np.float32), params)
    ends = jax.jit(FIELD.ends)
    there = ends(FIELD.rotated(params, turn, shift), (X @ turn.T + shift).astype(np.float32))
    np.testing.assert_allclose(there, ends(params, X) @ turn.T + shift, atol=rounding(3, 200))


def test_a_path_through_waypoints_is_one_screw_after_the_other():
    times = (0.3, 0.7)
    field = Timed(Screw(Field(NETWORK, 10), times), times)
    poses = [motion(6, 90.0), motion(7, 150.0), motion(8, 30.0)]
    params = jax.jit(field.init)(jax.random.key(0))
    ends = jax.jit(field.ends)(screw_of(field).rigid(params, poses), X)
    for found, pose in zip(ends, poses, strict=True):
        np.testing.assert_allclose(found, moved(pose), atol=rounding(2, 100))


def test_under_a_symmetry_a_screw_commutes_with_its_operators(params):
    half_turn = np.diag([-1.0, -1.0, 1.0])
    centre = np.array([0.5, 0.5, 0.0])
    rows = [(*turn.ravel(), *(centre - turn @ centre)) for turn in (np.eye(3), half_turn)]
    ends = jax.jit(Symmetric(FIELD, tuple(tuple(map(float, row)) for row in rows)).ends)
    params = FIELD.rigid(params, [motion(9, 40.0)])
    copy = (X - centre) @ half_turn + centre
    found = ends(params, copy.astype(np.float32))
    np.testing.assert_allclose(found, (ends(params, X) - centre) @ half_turn + centre, atol=rounding(2, 100))


def test_a_motion_without_a_screw_says_what_it_needs():
    assert screw_of(Timed(FIELD, (0.5,))) is FIELD
    with pytest.raises(TypeError, match="Field cannot move rigid bodies: wrap it in"):
        screw_of(Timed(Field(NETWORK), (0.5,)))
