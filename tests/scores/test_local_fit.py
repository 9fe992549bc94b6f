"""The local fit finds displacements, says how well they are known, and measures differences by their median."""

import numpy as np
import pytest
from scipy import ndimage

from cryotrans_jax.density.spectrum import shell_frequencies
from cryotrans_jax.io.maps import Map
from cryotrans_jax.scores.local_fit import LocalFitRules, local_fit

SHAPE, SIZE, ORIGIN = (40, 44, 42), np.array([1.5, 1.4, 1.6]), np.array([-3.0, 20.0, 7.0])
RULES = LocalFitRules(floor=1e-6)


@pytest.fixture(scope="module")
def density():
    """A rough blob in the middle of a box, as a molecule at 6 Å."""
    grains = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 2.0 / SIZE)
    distance = np.linalg.norm((np.indices(SHAPE).T - np.array(SHAPE) / 2) * SIZE, axis=-1).T
    blob = np.where(distance < 14, grains - grains.min(), 0.0)
    return ndimage.gaussian_filter(blob, 1.35 / SIZE).astype(np.float32)


@pytest.fixture(scope="module")
def places(density):
    """Positions (Å) well inside the blob."""
    middle = ORIGIN + SIZE * np.array(SHAPE) / 2
    return middle + 4 * np.random.default_rng(1).uniform(-1, 1, (50, 3))


def white(density, share, seed):
    """White noise with this share of the density's largest value, and its power in each shell."""
    sigma = share * density.max()
    noise = sigma * np.random.default_rng(seed).standard_normal(SHAPE)
    return noise.astype(np.float32), np.full(len(shell_frequencies(SHAPE, SIZE)), sigma**2)


def compared(density, target, power, places, rules=RULES):
    return local_fit(density, Map(target, SIZE, ORIGIN), power, density > 0.1 * density.max(), places, rules)


def test_a_displaced_map_is_found_to_be_so(density, places):
    """A whole map that is 0.4 Å off, and one of the other hand of the shift; where all is in place nothing is."""
    _, power = white(density, 0.01, 0)
    off = 0.4 / SIZE[0]
    for sign in (-1, 1):
        moved = ndimage.shift(density, (sign * off, 0, 0), order=5).astype(np.float32)
        found = compared(density, moved, power, places)
        np.testing.assert_allclose(found.shift, 0.4, rtol=0.2)
    assert compared(density, density, power, places).shift.max() < 1e-3


def test_the_scale_of_the_target_does_not_matter_to_the_shift(density, places):
    _, power = white(density, 0.01, 0)
    moved = ndimage.shift(density, (0, 0.3 / SIZE[1], 0), order=5).astype(np.float32)
    one, half = (compared(density, scale * moved, scale**2 * power, places).shift for scale in (1.0, 0.5))
    np.testing.assert_allclose(half, one, rtol=0.2)


def test_the_uncertainty_is_the_scatter_of_the_shift_over_noise(density, places):
    """With the map in place shifts are those of the noise alone.

    The windows' edges, which have more noise and less weight than is taken here, make the bound a cautious one.
    """
    found = []
    for seed in range(12):
        noise, power = white(density, 0.15, seed)
        found.append(compared(density, density + noise, power, places))
    scatter = np.sqrt(np.mean([each.shift**2 for each in found], axis=0))
    stated = np.mean([each.uncertainty for each in found], axis=0)
    assert 0.01 < stated.mean() < 1.0
    assert 0.5 * stated.mean() < scatter.mean() < 1.2 * stated.mean()


def test_the_residual_is_relative_to_its_median_whatever_the_noise(density, places):
    """Noise that is three times as strong is no evidence of where the fit is wrong; a place that differs is."""
    noise, power = white(density, 0.1, 3)
    once, thrice = (compared(density, (density + k * noise).astype(np.float32), k**2 * power, places) for k in (1, 3))
    for found in (once, thrice):
        assert np.median(found.residual) == pytest.approx(1.0) and found.residual.max() < 1.5
    middle = places[0]
    distance = np.linalg.norm((np.indices(SHAPE).T * SIZE + ORIGIN - middle), axis=-1).T
    worse = density * (1 + 1.5 * np.exp(-((distance / 4) ** 2)))
    found = compared(density, (worse + noise).astype(np.float32), power, places)
    near = np.linalg.norm(places - middle, axis=1) < 2.5
    assert found.residual[near].mean() > found.residual[~near].mean()


def test_where_the_target_has_nothing_the_place_is_unknown(density, places):
    """There the uncertainty is that of a displacement of `reach` along each axis."""
    noise, power = white(density, 0.2, 4)
    half = density * (np.arange(SHAPE[0]) < SHAPE[0] / 2)[:, None, None]
    middle = (places - ORIGIN)[:, 0] / SIZE[0] - SHAPE[0] / 2
    edge = ORIGIN + SIZE * np.array([0.9 * SHAPE[0], SHAPE[1] / 2, SHAPE[2] / 2])
    found = compared(density, (half + noise).astype(np.float32), power, np.concatenate([places, edge[None]]))
    assert found.uncertainty[:-1][middle < 0].mean() < found.uncertainty[:-1][middle > 0].mean()
    assert found.uncertainty[-1] == pytest.approx(np.sqrt(3) * RULES.reach, rel=0.1)


def test_a_perfect_target_leaves_no_uncertainty_but_that_of_the_floor(density, places):
    power = np.zeros(len(shell_frequencies(SHAPE, SIZE)))
    some, more = (compared(density, density, power, places, LocalFitRules(floor=floor)) for floor in (0.01, 0.04))
    for found in (some, more):
        assert all(np.isfinite(values).all() for values in found)
    assert 0 < some.uncertainty.mean() < more.uncertainty.mean() < np.sqrt(3) * RULES.reach
