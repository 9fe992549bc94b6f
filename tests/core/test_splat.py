"""Splat keeps mass and its centre, and gather is its adjoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rounding
from jax.test_util import check_grads

from cryotrans_jax.core.splat import corners, gather, splat

SHAPE = (5, 7, 6)
CORNER = np.array([-0.2, 0.1, 0.3])
VOXEL = np.array([0.10, 0.15, 0.20])
CENTRES = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) * VOXEL + CORNER + 0.5 * VOXEL


def points(n, beyond, seed=0):
    """Points and masses; uniform over the box of outermost voxel centres and `beyond` voxels about it."""
    u = np.random.default_rng(seed).uniform(-beyond, np.array(SHAPE) - 1 + beyond, (n, 3))
    rho = np.random.default_rng(seed + 1).uniform(0.5, 2, n)
    return jnp.asarray(CORNER + (u + 0.5) * VOXEL, jnp.float32), jnp.asarray(rho, jnp.float32)


def test_splat_keeps_mass_and_centre_of_mass():
    x, rho = points(200, beyond=0)
    volume = np.asarray(splat(x, rho, SHAPE, CORNER, VOXEL), np.float64)
    mass = np.asarray(rho, np.float64)
    assert volume.sum() == pytest.approx(mass.sum(), rel=rounding(1, 50))  # a voxel adds up some fifty shares
    centre = np.tensordot(volume, CENTRES, axes=3) / volume.sum()
    np.testing.assert_allclose(centre, mass @ np.asarray(x, np.float64) / mass.sum(), atol=rounding(1.5, 50))


def test_gather_is_the_adjoint_of_splat_outside_too():
    x, rho = points(300, beyond=3)
    v = jnp.asarray(np.random.default_rng(2).normal(size=SHAPE), jnp.float32)
    left = jnp.vdot(splat(x, rho, SHAPE, CORNER, VOXEL), v)
    terms = np.asarray(rho * gather(v, x, CORNER, VOXEL), np.float64)
    assert left == pytest.approx(terms.sum(), abs=rounding(np.abs(terms).sum(), 50))


def test_gather_of_a_linear_volume_is_linear():
    x, _ = points(100, beyond=0)
    slope = np.array([1.0, -2.0, 0.5])
    v = jnp.asarray(CENTRES @ slope, jnp.float32)
    np.testing.assert_allclose(
        gather(v, x, CORNER, VOXEL), np.asarray(x) @ slope, atol=rounding(4.0, 30)
    )  # eight corners of values up to 4


@pytest.mark.parametrize("voxel", [(0, 0, 0), (4, 6, 5), (1, 5, 2)])
def test_a_point_at_a_voxel_centre_lands_in_that_voxel_alone(voxel):
    """The place of the voxel, apart from rounding, and along each axis: SHAPE and VOXEL are uneven."""
    x = jnp.asarray(CENTRES[voxel][None], jnp.float32)
    expected = np.zeros(SHAPE)
    expected[voxel] = 3
    # a centre is not exact in float32: 1e-7 over voxels of 0.1 leaks 1e-6 of the mass
    np.testing.assert_allclose(splat(x, jnp.array([3.0]), SHAPE, CORNER, VOXEL), expected, atol=2e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [-1, 1])
def test_mass_is_lost_in_part_past_the_outermost_centre_and_whole_a_voxel_from_it(axis, side):
    at = np.array([2, 3, 2])
    at[axis] = 0 if side < 0 else SHAPE[axis] - 1
    beyond = np.array([0.25, 0.999, 1.001, 1.5, 4.0, 1e4])
    x = CENTRES[tuple(at)] + side * beyond[:, None] * VOXEL * np.eye(3)[axis]
    one = jax.jit(lambda x: splat(x[None], jnp.ones(1), SHAPE, CORNER, VOXEL))
    volumes = [np.asarray(one(jnp.asarray(p, jnp.float32))) for p in x]
    for volume, share in zip(volumes, np.maximum(1 - beyond, 0), strict=True):
        assert volume.sum() == pytest.approx(share, abs=2e-5)  # as above
        assert volume[tuple(at)] == pytest.approx(share, abs=2e-5)  # nothing wraps to the other side
        assert (volume >= 0).all()


def test_every_point_has_indices_within_the_padded_volume_and_no_weight_where_it_touches_none():
    """So that no index needs to be checked, however far away a point is."""
    x, _ = points(200, beyond=4)
    x = jnp.concatenate([x, 1e4 * (x - 0.5), jnp.full((1, 3), jnp.nan)])
    index, weight = corners(x, SHAPE, CORNER, VOXEL)
    assert np.min(index) >= 0 and np.max(index) < np.prod(np.add(SHAPE, 2))
    place = (np.asarray(x) - CORNER) / VOXEL - 0.5
    misses = ((place <= -1) | (place >= SHAPE)).any(1)
    assert 100 < misses.sum() < 400 and not np.any(np.array(weight)[:, misses])


def test_a_place_that_is_no_number_is_seen_and_one_at_infinity_is_lost():
    for place in (np.nan, np.inf, -np.inf, 1e30):
        x = jnp.asarray([[place, 0.5, 1.0]], jnp.float32)
        total = float(splat(x, jnp.ones(1), SHAPE, CORNER, VOXEL).sum())
        assert np.isnan(total) if np.isnan(place) else total == 0


def test_gradient_of_splat_is_that_of_finite_differences():
    with jax.enable_x64(True):
        x, rho = (jnp.asarray(np.asarray(p), jnp.float64) for p in points(20, beyond=1))
        corner, voxel = jnp.asarray(CORNER), jnp.asarray(VOXEL)
        check_grads(
            jax.jit(lambda x, rho: splat(x, rho, SHAPE, corner, voxel)), (x, rho), order=1, modes=["rev"], eps=1e-6
        )


@pytest.mark.parametrize("level", [0, 1])
def test_a_point_on_a_voxel_s_centre_stays_there_however_the_compiler_rounds(level):
    """Indices and weights come from one position: two, rounded apart, would put the mass one voxel away."""
    cells = np.random.default_rng(0).integers(2, 17, (500, 3))
    size = np.full(3, 1 / 30, np.float32)
    x = ((cells + 0.5) / 30).astype(np.float32)
    shift, one, box = size * np.float32([0, 0, 2]), jnp.ones(500), (20, 20, 30)
    expected = np.zeros((20, 20, 30))
    np.add.at(expected, tuple((cells + [0, 0, 2]).T), 1)
    moved = jax.jit(
        lambda x: splat(x + shift, one, box, 0 * size, size), compiler_options={"xla_backend_optimization_level": level}
    )
    found = moved(x)
    np.testing.assert_allclose(found, expected, atol=rounding(30.0, 8))  # positions in voxels
