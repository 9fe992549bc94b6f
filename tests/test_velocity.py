"""The velocity field is the paper's network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryotrans_jax.velocity import Velocity


@pytest.fixture(scope="module")
def params():
    return jax.jit(Velocity().init)(jax.random.key(3), jnp.zeros((1, 3)))


def layers(params):
    return [params["params"][f"Dense_{k}"] for k in range(len(params["params"]))]


@pytest.mark.parametrize("centre", [0.0, 0.5])
def test_velocity_is_the_network_written_out(params, centre):
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    x = rng.uniform(-1, 2, (7, 3)).astype(np.float32)
    h = x.astype(np.float64) - centre
    for number, layer in enumerate(layers(params)):
        h = h @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
        if number < 2:
            h = np.where(h > 0, h, 0.01 * h)
    v = Velocity(centre=centre).apply(params, jnp.asarray(x))
    # float32: 1e-7 of terms whose sum over 100 units has this size
    np.testing.assert_allclose(v, h, atol=1e-5 * np.abs(h).max())


@pytest.mark.parametrize("width, depth", [(100, 2), (7, 1), (5, 4)])
def test_velocity_has_as_many_parameters_as_its_layers_need(width, depth):
    params = jax.eval_shape(Velocity(width=width, depth=depth).init, jax.random.key(0), jnp.zeros((1, 3)))
    expected = (3 + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * 3
    assert sum(p.size for p in jax.tree.leaves(params)) == expected


def test_velocity_starts_from_small_normal_weights_and_no_bias(params):
    weights = np.concatenate([np.ravel(layer["kernel"]) for layer in layers(params)])
    n = weights.size  # 10600: the deviation is known to 1 / sqrt(2 n) = 0.7 %; four times that is allowed
    assert weights.std() == pytest.approx(0.01, rel=4 / np.sqrt(2 * n))
    assert abs(weights.mean()) < 4 * 0.01 / np.sqrt(n)
    # of a normal distribution 4.55 % lie beyond two deviations, a uniform one has none there
    assert np.mean(np.abs(weights) > 0.02) == pytest.approx(0.0455, abs=4 * np.sqrt(0.0455 / n))
    assert not any(np.any(layer["bias"]) for layer in layers(params))


def test_velocity_of_a_point_does_not_depend_on_the_others(params):
    x = jax.random.uniform(jax.random.key(1), (2, 4, 3))
    apply = jax.jit(Velocity().apply)
    v = apply(params, x)
    assert v.shape == x.shape
    np.testing.assert_allclose(v[1, 2], apply(params, x[1, 2]), rtol=1e-5)  # sums in another order
