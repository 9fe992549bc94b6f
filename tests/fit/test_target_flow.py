"""A fit's flow as functions: as `carry` moves points, differentiable, and with the velocity that moves them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.stage import Config
from cryotrans_jax.fit.state import initial_state
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.waypoints import Timed

FIELD = Field(Velocity(width=8, centre=0.5, waves=4, wave_number=3.0), 4)
FRAME = Frame(np.array([-10.0, 5.0, 20.0]), 40.0)
X = np.random.default_rng(0).uniform(0, 40, (30, 3)) + FRAME.corner


def fit_of(kind):
    """A fit by one field, by a field that depends on time, or by a field for each half of the box."""
    field = Timed(FIELD, (0.4,)) if kind == "timed" else FIELD
    params = initial_state(field, 3, 1, 2 if kind == "parts" else 0).params
    scale = jnp.array([[1.3, 1.5]]) if kind == "parts" else jnp.array([1.3])
    params = jax.tree.map(lambda p: p * scale.reshape(*scale.shape, *[1] * (p.ndim - scale.ndim)), params)
    labels = 1 + (np.arange(20)[:, None, None] > 9) * np.ones((20, 20, 20), int)
    parts = (Partition(labels, np.full(3, 2.0), FRAME.corner),) if kind == "parts" else ()
    return Fit(Config((), FIELD), field, params, FRAME, 0.1, partitions=parts)


@pytest.mark.parametrize("kind", ["one", "timed", "parts"])
def test_positions_are_those_of_carry_at_any_time(kind):
    fit = fit_of(kind)
    times = [0.0, 0.2, 0.5, 0.9, 1.0]
    found = jax.jit(jax.vmap(fit, (None, 0)))(X, jnp.array(times))
    np.testing.assert_allclose(found, fit.carry(X, times), atol=2e-3)  # Å: float32, of some ten
    assert np.abs(found[-1] - X).max() > 1
    np.testing.assert_allclose(fit(X[3], 1.0), found[-1, 3], atol=2e-3)


@pytest.mark.parametrize("kind", ["one", "parts"])
def test_the_jacobians_determinant_is_the_change_of_volume(kind):
    fit = fit_of(kind)
    inside = X[np.abs(X[:, 0] - FRAME.corner[0] - 19) > 1.5]  # differences do not cross the border of the parts
    jacobians = jax.vmap(jax.jacobian(fit), (0, None))(jnp.asarray(inside), 1.0)
    off = np.abs(np.linalg.det(jacobians) - fit.volume_change(inside))
    assert np.median(off) < 0.01 and off.max() < 0.2  # differences over 0.25 Å see the creases of the field


@pytest.mark.parametrize("kind", ["one", "timed", "parts"])
def test_an_euler_step_is_the_velocity_times_its_length(kind):
    fit = fit_of(kind)
    step = fit(X, 0.25) - X
    np.testing.assert_allclose(0.25 * fit.velocity(X, 0.0), step, atol=2e-3)
