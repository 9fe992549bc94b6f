"""The flow is forward Euler: exact for constants, of first order, one to one, and differentiable."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rounding
from jax.test_util import check_grads
from scipy.linalg import expm

from cryotrans_jax.core.flow import (
    flow,
    interpolate_path,
    path,
    split_time,
)
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.motion.symmetric import symmetrize
from cryotrans_jax.motion.waypoints import append_time, with_time

CENTRE = np.array([0.3, 0.5, 0.6])
MATRIX = np.array([[0.2, -0.9, 0.1], [0.7, -0.1, 0.3], [0.0, 0.2, -0.4]])


def linear(x):
    return (x - CENTRE) @ MATRIX.T


@pytest.fixture
def x():
    return jax.random.uniform(jax.random.key(0), (50, 3))


@pytest.fixture(scope="module")
def params():
    """Kernels large enough that the field is of size one and folds at its creases."""
    params = jax.jit(Velocity(width=16).init)(jax.random.key(1), jnp.zeros((1, 3)))
    params = jax.tree.map(lambda p: 30 * p, params)
    params["params"]["Dense_0"]["bias"] = jax.random.uniform(jax.random.key(2), (16,), minval=-0.5, maxval=0.5)
    return params


def test_flow_of_a_constant_field_is_a_translation(x):
    v = np.array([0.1, -0.2, 0.3], np.float32)
    np.testing.assert_allclose(
        flow(lambda x: jnp.broadcast_to(v, x.shape), x, 10), x + v, atol=rounding(1.5, 20)
    )  # ten steps


def test_flow_of_a_linear_field_is_the_power_of_one_step(x):
    power = np.linalg.matrix_power(np.eye(3) + MATRIX / 7, 7)
    np.testing.assert_allclose(
        flow(linear, x, 7), (x - CENTRE) @ power.T + CENTRE, atol=rounding(2.0, 40)
    )  # seven steps


def test_flow_converges_to_the_exponential_at_first_order(x):
    exact = (np.asarray(x, np.float64) - CENTRE) @ expm(MATRIX).T + CENTRE
    errors = [np.linalg.norm(flow(linear, x, steps) - exact) for steps in (20, 40, 80)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert coarse / fine == pytest.approx(2, rel=0.05)  # the next order is smaller by 1/20


def test_path_starts_at_the_points_and_ends_at_the_flow(x):
    visited = path(linear, x, 10)
    assert visited.shape == (11, 50, 3)
    np.testing.assert_array_equal(visited[0], x)
    np.testing.assert_allclose(visited[-1], flow(linear, x, 10), atol=rounding(2.0, 60))  # ten steps
    np.testing.assert_allclose(visited[4], flow(lambda x: 0.4 * linear(x), x, 4), atol=rounding(2.0, 24))


def test_gradient_of_the_flow_is_that_of_finite_differences(x, params):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)
        points = jnp.asarray(np.asarray(x[:8]), jnp.float64)
        network = Velocity(width=16)

        @jax.jit
        def end(params, x):
            return flow(partial(network.apply, params), x, 4)

        check_grads(end, (params, points), order=1, modes=["rev"], eps=1e-6)


def test_flow_of_a_field_that_grows_with_time_is_the_sum_of_its_steps(x):
    """Σ τ (k τ) for k = 0, ..., 9, τ = 1/10, is 9/20; time itself arrives at 1."""
    c = np.array([0.4, -0.2, 0.3], np.float32)
    field = with_time(lambda xt: xt[:, 3:] * c)
    visited = path(field, append_time(x, 0.0), 10)
    np.testing.assert_allclose(visited[-1, :, :3], x + 9 / 20 * c, atol=rounding(1.5, 20))  # ten steps
    np.testing.assert_allclose(visited[:, 0, 3], np.arange(11) / 10, atol=rounding(1.0, 20))


def test_a_path_is_straight_between_two_steps(x):
    visited = path(linear, x, 5)
    np.testing.assert_allclose(interpolate_path(visited, 0.5), (visited[2] + visited[3]) / 2, atol=rounding(2.0, 10))
    for k in range(6):
        np.testing.assert_array_equal(interpolate_path(visited, k / 5), visited[k])
    assert split_time(0.33, 5) == (1, pytest.approx(0.65))


def test_a_field_made_symmetric_commutes_with_the_group_and_a_symmetric_one_stays():
    group = Symmetry.named("D2", (0.1, 0.2, 0.3))
    turns, shifts = (np.stack([getattr(one, key) for one in group.operators]) for key in ("rotation", "shift"))
    made = partial(symmetrize, rotations=turns, shifts=shifts)
    weight = jax.random.normal(jax.random.key(0), (4, 3))
    x = jax.random.normal(jax.random.key(1), (20, 4))  # with a time, which no operator turns
    field = made(lambda x: jnp.sin(x @ weight))
    for turn, shift in zip(turns, shifts, strict=True):
        there = jnp.concatenate([x[:, :3] @ turn.T + shift, x[:, 3:]], 1)
        np.testing.assert_allclose(field(there), field(x) @ turn.T, atol=1e-5)
    np.testing.assert_allclose(made(field)(x), field(x), atol=1e-5)
    assert float(abs(field(x)).max()) > 0.1
