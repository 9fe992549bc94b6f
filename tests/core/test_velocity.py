"""The velocity field is the paper's network, which may also see sines of the positions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rounding
from scipy.spatial.transform import Rotation

from cryotrans_jax.core.flow import flow
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.motion.network import rotate_network


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
    v = jax.jit(Velocity(centre=centre).apply)(params, x)
    # two layers' sums over 100 units
    np.testing.assert_allclose(v, h, atol=rounding(np.abs(h).max(), 200))


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
    np.testing.assert_allclose(
        v[1, 2], apply(params, x[1, 2]), atol=rounding(np.abs(v).max(), 200)
    )  # sums in another order


WAVES = dict(width=50, centre=0.5, waves=400, wave_number=5.0)


@pytest.fixture(scope="module")
def waving():
    """Parameters of a network with so many waves that their distribution shows."""
    return jax.jit(Velocity(**WAVES).init)(jax.random.key(3), jnp.zeros((1, 3)))


def test_velocity_with_waves_is_the_network_written_out(waving):
    """The first hidden layer sees the positions about the centre, and the sines of affine functions of them."""
    x = np.random.default_rng(0).uniform(-1, 2, (7, 3)).astype(np.float32)
    names = ["waves_in", *(f"Dense_{k}" for k in range(3))]
    waves, *hidden, last = ({k: np.asarray(p, np.float64) for k, p in waving["params"][n].items()} for n in names)
    h = x - 0.5
    h = np.concatenate([h, np.sin(h @ waves["kernel"] + waves["bias"])], axis=-1)
    for layer in hidden:
        h = h @ layer["kernel"] + layer["bias"]
        h = np.where(h > 0, h, 0.01 * h)
    v = jax.jit(Velocity(**WAVES).apply)(waving, x)
    assert v.shape == x.shape
    np.testing.assert_allclose(
        v, h @ last["kernel"] + last["bias"], atol=rounding(1.0, 400)
    )  # sums of this size over 403 inputs


def test_waves_start_from_their_wave_number_hidden_layers_from_he_and_the_last_small(waving):
    """A standard deviation of n numbers is known to 1 / sqrt(2 n); four times that is allowed."""

    def deviates(layer, expected):
        values = np.ravel(waving["params"][layer]["kernel"])
        return values.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * values.size))

    assert deviates("waves_in", 5.0)
    assert deviates("Dense_0", np.sqrt(2 / 403)) and deviates("Dense_1", np.sqrt(2 / 50))  # He: of 2 / inputs
    assert deviates("Dense_2", 0.01)
    phases = waving["params"]["waves_in"]["bias"]
    assert 0 <= phases.min() < 0.3 and 2 * np.pi - 0.3 < phases.max() <= 2 * np.pi  # all over the circle
    assert not any(np.any(waving["params"][f"Dense_{k}"]["bias"]) for k in range(3))


@pytest.mark.parametrize("waves", [0, 32])
def test_the_flow_starts_near_the_identity(waves):
    """By much less than a box; a hundredth is 1 Å in a box of 100 Å."""
    network = Velocity(centre=0.5, waves=waves, wave_number=4.0)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 3)))
    x = np.random.default_rng(1).uniform(size=(200, 3)).astype(np.float32)
    moved = np.asarray(jax.jit(lambda x: flow(lambda y: network.apply(params, y), x, 5))(x)) - x
    assert 0 < np.sqrt((moved**2).sum(1).mean()) < (0.1 if waves else 0.01)


def test_the_wave_number_sets_over_which_distance_the_field_changes():
    """At three times the wave number as much in a third of the distance; the layers behind are the same ones."""

    @partial(jax.jit, static_argnums=0)
    def change(wave_number, distance):
        network = Velocity(centre=0.5, waves=64, wave_number=wave_number)
        params = network.init(jax.random.key(0), jnp.zeros((1, 3)))
        x = jax.random.uniform(jax.random.key(1), (300, 3))
        step = jax.random.normal(jax.random.key(2), x.shape) * distance
        v, there = (network.apply(params, at) for at in (x, x + step))
        return jnp.mean((v - there) ** 2) / jnp.mean(jnp.var(v, axis=0))

    near, far = float(change(10.0, 0.03)), float(change(10.0, 0.09))
    assert change(30.0, 0.03) == pytest.approx(far, rel=0.25)  # besides the waves, the layers see the positions
    assert far > 2 * near


@pytest.mark.parametrize("waves", [0, 8])
def test_velocity_sees_the_time_beside_the_positions_and_starts_blind_to_it(waves):
    network = Velocity(width=20, centre=0.5, waves=waves, wave_number=4.0)
    x = np.random.default_rng(1).uniform(size=(6, 3)).astype(np.float32)
    apply = jax.jit(network.apply)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 4)))
    early, late = (np.concatenate([x, np.full((6, 1), t, np.float32)], axis=-1) for t in (0.0, 0.75))
    still = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 3)))
    for at in (early, late):
        found, expected = apply(params, at), apply(still, x)
        np.testing.assert_allclose(found, expected, atol=rounding(np.abs(expected).max(), 100))
    kernel = np.random.default_rng(2).normal(size=(1, 20)).astype(np.float32)
    params["params"]["time_in"] = {"kernel": kernel}
    assert np.abs(np.asarray(apply(params, early)) - np.asarray(apply(params, late))).max() > 1e-4
    # a bias of the first hidden layer that grows with time: four units a unit of it, none half way
    moved = jax.device_get(still)
    moved["params"]["Dense_0"]["bias"] = moved["params"]["Dense_0"]["bias"] + kernel[0] * 4.0 * 0.25
    found, expected = apply(params, late), apply(moved, x)
    np.testing.assert_allclose(found, expected, atol=rounding(np.abs(expected).max(), 100))


@pytest.mark.parametrize(("waves", "depth", "axes"), [(0, 2, 3), (8, 2, 3), (8, 1, 4)])
def test_a_turned_field_does_at_the_copy_of_a_place_what_the_field_does_there(waves, depth, axes):
    """For all kinds of first layers; a fourth coordinate, the time, is left alone."""
    rng = np.random.default_rng(1)
    network = Velocity(width=16, depth=depth, waves=waves, wave_number=5.0, centre=0.5, init_std=0.3)
    x = rng.random((50, axes)).astype(np.float32)
    params = jax.device_get(jax.jit(network.init)(jax.random.key(0), x))
    params = jax.tree.map(lambda p: (p + 0.1 * rng.standard_normal(p.shape)).astype(np.float32), params)
    turn, shift = Rotation.from_rotvec([0.3, -1.2, 0.8]).as_matrix(), rng.random(3)
    there = np.concatenate([x[:, :3] @ turn.T + shift, x[:, 3:]], axis=-1).astype(np.float32)
    apply = jax.jit(network.apply)
    found = apply(rotate_network(params, turn, shift, 0.5), there)
    np.testing.assert_allclose(
        found, apply(params, x) @ turn.T, atol=rounding(3.0, 200)
    )  # positions and shift come to 3
