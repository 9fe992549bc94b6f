"""Blur adds exactly its variance, L2 is relative, and rigidity is the paper's sum over singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rounding
from scipy.spatial.transform import Rotation

from cryotrans_jax.core.losses import (
    blur,
    fraction_in_target,
    gaussian_blur,
    gaussian_matrix,
    l2,
    rigidity,
    scale_invariant_l2,
)
from cryotrans_jax.fit import levels

BLUR = jax.jit(blur)
EDGES = np.array([0.05, 0.07, 0.06], np.float32)


@pytest.fixture
def volume():
    return jnp.asarray(np.random.default_rng(0).uniform(size=(9, 12, 10)), jnp.float32)


@pytest.fixture(scope="module")
def grid():
    """Points of a grid with uneven edges, the masses on them, and the tetrahedra and shares of the rigidity."""
    cells = np.argwhere(np.random.default_rng(0).uniform(size=(6, 5, 4)) < 0.9)
    mass = np.random.default_rng(1).uniform(1, 2, len(cells))
    rows, share = levels.make_tetrahedra(cells, cells, mass)
    assert len(rows) > 20
    return jnp.asarray(cells * EDGES, jnp.float32), jnp.asarray(rows), jnp.asarray(share, jnp.float32)


def affine(x, f):
    return jnp.asarray(np.asarray(x) @ f.T + [0.3, -0.1, 0.2], jnp.float32)


def test_l2_is_zero_on_itself_and_one_for_nothing(volume):
    assert l2(volume, volume) == 0
    assert l2(0 * volume, volume) == 1
    assert l2(1.3 * volume, volume) == pytest.approx(0.09, rel=1e-5)  # float32


def test_unscaled_l2_is_the_least_over_all_scales(volume):
    other = volume + jnp.asarray(np.random.default_rng(1).uniform(size=volume.shape), jnp.float32)
    least = scale_invariant_l2(volume, other, jnp.sum(other**2))
    best = jnp.vdot(volume, other) / jnp.vdot(volume, volume)
    assert least == pytest.approx(float(l2(best * volume, other)), rel=1e-4)  # float32
    assert least < min(l2(s * best * volume, other) for s in (0.99, 1.01))
    assert scale_invariant_l2(3 * volume, 5 * other, jnp.sum((5 * other) ** 2)) == pytest.approx(float(least), rel=1e-4)
    assert scale_invariant_l2(3 * volume, volume, jnp.sum(volume**2)) == pytest.approx(0, abs=1e-5)


def test_unscaled_l2_of_the_signal_from_the_noisy_volume_is_nothing():
    """Relative to the power of the signal; the noise's own power, four times as large here, does not count."""
    rng = np.random.default_rng(0)
    signal, noise = (rng.normal(0, s, (20, 20, 20)).astype(np.float32) for s in (1.0, 2.0))
    power = np.sum(signal**2)
    # twice the noise's projection on the signal: 2 · 2 / sqrt(8000) is its deviation
    assert scale_invariant_l2(*map(jnp.asarray, (signal, signal + noise, power))) == pytest.approx(0, abs=0.1)
    assert scale_invariant_l2(*map(jnp.asarray, (np.roll(signal, 3), signal + noise, power))) == pytest.approx(
        1, abs=0.1
    )


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_what_a_target_has_of_a_volume_is_its_share_at_the_scale_that_fits_best(volume, scale):
    """Halves with 1/2 and 3/2 of the density: at the best scale, 1, one is there by 1/2, the other whole."""
    first = (jnp.arange(10) < 5) * jnp.ones(volume.shape)
    even = (volume + volume[:, :, ::-1]) * scale  # both halves of z are alike
    np.testing.assert_allclose(fraction_in_target(even, even * (1.5 - first)), 1 - 0.5 * first, rtol=1e-5)  # float32
    np.testing.assert_allclose(fraction_in_target(even, 7 * even), 1, rtol=1e-5)
    np.testing.assert_array_equal(fraction_in_target(even, -even), 0)


def test_negative_density_is_not_carried_and_not_found(volume):
    """Where nothing is carried all of it is found if the target has density, and nothing else matters."""
    outside = jnp.arange(9)[:, None, None] < 3
    here, there = jnp.where(outside, -volume, volume), jnp.where(outside, -9.0, volume)
    np.testing.assert_allclose(fraction_in_target(here, volume), 1, rtol=1e-5)
    np.testing.assert_allclose(fraction_in_target(here, there)[3:], 1, rtol=1e-5)
    assert not np.any(fraction_in_target(here, there)[:3]) and not np.any(fraction_in_target(0 * volume, 0 * volume))


@pytest.mark.parametrize("sigma", [0.2, 0.5, 0.9, 1.0, 1.2, 2.0, 3.0])
def test_blur_keeps_mass_and_adds_its_variance(sigma):
    n = 61  # the middle is ten deviations from the edge
    offset = np.arange(n) - n // 2
    row = gaussian_matrix(n, sigma)[n // 2]
    assert row.sum() == pytest.approx(1, abs=rounding(1, 61))
    assert offset**2 @ row == pytest.approx(sigma**2, abs=rounding(10, 61))
    assert row.min() > -1e-6  # a density stays positive


@pytest.mark.parametrize("sigma", [1.5, 3.0])
def test_a_wide_blur_is_the_gaussian(sigma):
    offset = np.arange(61) - 30
    exact = np.exp(-0.5 * (offset / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(gaussian_matrix(61, sigma)[30], exact, atol=1e-4 * exact.max())


def test_blur_of_almost_no_width_is_the_identity(volume):
    kernel = gaussian_blur(volume.shape, np.array([1.0, 1.3, 0.9]), 1e-3)
    np.testing.assert_allclose(
        BLUR(volume, kernel), volume, atol=2e-6 + rounding(1, 60)
    )  # weights of 1e-6 beside the middle
    none = gaussian_blur(volume.shape, np.array([1.0, 1.3, 0.9]), 0.0)
    np.testing.assert_allclose(BLUR(volume, none), volume, atol=rounding(1, 60))


def test_blur_is_the_same_width_in_angstrom_along_every_axis():
    shape, size, sigma = (25, 31, 27), np.array([1.0, 0.8, 0.9]), 1.7
    one = jnp.zeros(shape).at[12, 15, 13].set(1.0)
    blurred = np.asarray(BLUR(one, gaussian_blur(shape, size, sigma)), np.float64)
    assert blurred.sum() == pytest.approx(1, abs=1e-5)  # seven deviations to the edge, float32
    for axis in range(3):
        at = np.arange(shape[axis]) * size[axis]
        profile = blurred.sum(axis=tuple({0, 1, 2} - {axis}))
        assert profile @ at**2 - (profile @ at) ** 2 == pytest.approx(sigma**2, rel=1e-4)  # float32


def test_blur_commutes_with_exchange_of_axes(volume):
    size, order = np.array([1.0, 1.4, 0.8]), (2, 0, 1)
    kernel = gaussian_blur(volume.shape, size, 1.5)
    turned = gaussian_blur(tuple(volume.shape[k] for k in order), size[list(order)], 1.5)
    np.testing.assert_allclose(
        BLUR(volume.transpose(order), turned), BLUR(volume, kernel).transpose(order), atol=rounding(1, 60)
    )


def test_rigidity_is_zero_under_a_rigid_motion(grid):
    x, rows, share = grid
    turn = Rotation.from_rotvec([0.5, -0.8, 0.3]).as_matrix()
    assert (
        rigidity(affine(x, turn), rows, jnp.asarray(EDGES), share) < 1e-9
    )  # float32: an edge of 0.05 to 1e-6, squared
    assert rigidity(affine(x, 1.1 * turn), rows, jnp.asarray(EDGES), share) > 0.1


@pytest.mark.parametrize("scale", [0.0, 0.7, 1.5])
def test_rigidity_under_scaling(grid, scale):
    x, rows, share = grid
    expected = 3 * (scale**2 - 1) ** 2
    for weights in (share, None):
        assert rigidity(affine(x, scale * np.eye(3)), rows, jnp.asarray(EDGES), weights) == pytest.approx(
            expected, rel=1e-4
        )


def test_rigidity_is_the_sum_over_singular_values(grid):
    x, rows, share = grid
    f = np.eye(3) + 0.4 * np.random.default_rng(2).normal(size=(3, 3))
    expected = ((np.linalg.svd(f)[1] ** 2 - 1) ** 2).sum()
    assert rigidity(affine(x, f), rows, jnp.asarray(EDGES), share) == pytest.approx(expected, rel=1e-4)  # float32


def test_rigidity_weighs_each_tetrahedron_by_its_mass():
    """One cell with three times the mass of the other, scaled in one of them only."""
    cells = np.stack(np.meshgrid([0, 1, 10, 11], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3)
    mass = np.where(cells[:, 0] < 5, 3.0, 1.0) * (cells % 10 == 0).all(1)
    rows, share = levels.make_tetrahedra(cells, cells, mass)
    assert len(rows) == 2
    moved = np.where(cells[:, :1] < 5, cells, [10, 0, 0] + 1.2 * (cells - [10, 0, 0])) * EDGES
    found = rigidity(
        jnp.asarray(moved, jnp.float32), jnp.asarray(rows), jnp.asarray(EDGES), jnp.asarray(share, jnp.float32)
    )
    assert found == pytest.approx(0.25 * 3 * (1.2**2 - 1) ** 2, rel=1e-4)  # float32


@pytest.mark.parametrize("slip", [0.03, 2.0])
def test_rigidity_with_slip_is_zero_under_a_rigid_motion(grid, slip):
    x, rows, share = grid
    turn = Rotation.from_rotvec([0.5, -0.8, 0.3]).as_matrix()
    assert rigidity(affine(x, turn), rows, jnp.asarray(EDGES), share, slip) < 1e-9  # float32, as above


def test_rigidity_with_slip_is_the_published_one_for_tiny_strains(grid):
    """slip log(1 + s / slip) = s − s² / (2 slip) + …; the strain is 3 (1.01² − 1)² = 0.0012."""
    x, rows, share = grid
    moved, strain = affine(x, 1.01 * np.eye(3)), 3 * (1.01**2 - 1) ** 2
    for weights in (share, None):
        found = rigidity(moved, rows, jnp.asarray(EDGES), weights, 0.12)
        plain = float(rigidity(moved, rows, jnp.asarray(EDGES), weights))
        assert found == pytest.approx(plain * (1 - strain / 0.24), rel=1e-4)  # the next term is (s / slip)² / 3


def test_rigidity_with_slip_grows_with_the_logarithm_of_large_strains(grid):
    """By slip · log 4 where strains beyond it grow fourfold; of each tetrahedron by itself, before the mean."""
    x, rows, share = grid
    slip, scales = 0.03, np.sqrt(1 + np.array([2.0, 4.0, 8.0]))  # strains of 12, 48 and 192
    found = [rigidity(affine(x, s * np.eye(3)), rows, jnp.asarray(EDGES), share, slip) for s in scales]
    np.testing.assert_allclose(np.diff(found), slip * np.log(4), rtol=3e-3)  # the 1 in log(1 + s / slip)
    assert rigidity(affine(x, scales[1] * np.eye(3)), rows, jnp.asarray(EDGES), share) == pytest.approx(48, rel=1e-4)
    half = np.where(np.arange(len(x))[:, None] < len(x) // 2, x, affine(x, scales[1] * np.eye(3)))  # torn in the middle
    corner = half[np.asarray(rows)]
    f = (corner[:, 1:] - corner[:, :1]) / EDGES[:, None]
    strain = ((np.linalg.svd(f)[1] ** 2 - 1) ** 2).sum(1)
    expected = np.asarray(share, np.float64) @ (slip * np.log(1 + strain / slip))
    torn = rigidity(jnp.asarray(half), rows, jnp.asarray(EDGES), share, slip)
    assert torn == pytest.approx(expected, rel=1e-3)  # float32
