"""A place is the more exposed the less of its surroundings the molecule fills, and thin where its density is weak."""

import numpy as np
import pytest

from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.displacement import mass_points
from cryotrans_jax.scores.surroundings import SurroundingRules, surroundings

SIZE, SIDE, LEVEL = np.full(3, 2.0), 40, 0.5


@pytest.fixture(scope="module")
def ball():
    """A ball of 24 Å radius of density 2, of which one half (x > 0) is twice as dense."""
    x = SIZE[0] * (np.indices((SIDE,) * 3) - (SIDE - 1) / 2)
    density = np.where((x**2).sum(0) < 24**2, np.where(x[0] > 0, 4.0, 2.0), 0.0).astype(np.float32)
    return Map(density, SIZE, np.full(3, -SIZE[0] * (SIDE - 1) / 2))


def test_half_of_the_surroundings_of_a_flat_surface_are_filled(ball):
    """Deep inside all is filled; outwards ever less."""
    points, _ = mass_points(ball, LEVEL)
    found = surroundings(ball, LEVEL, points, SurroundingRules(depth=4.0)).exposure
    away = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(found[away < 12], 1.0, rtol=0.02)
    rings = [np.mean(found[(away >= low) & (away < low + 3)]) for low in (9, 12, 15, 18, 21)]
    assert rings == sorted(rings)
    at_surface = np.abs(away - 24) < 1
    assert 1.8 < np.median(found[at_surface]) < 2.8


def test_density_is_relative_to_its_median(ball):
    """Ten times the density is the same; of two halves the weaker is thinner by as much as it is weaker."""
    points, _ = mass_points(ball, LEVEL)
    found = surroundings(ball, LEVEL, points).thinness
    more = Map(10 * ball.density, ball.voxel_size, ball.origin)
    np.testing.assert_allclose(surroundings(more, 10 * LEVEL, points).thinness, found, rtol=1e-5)
    inner = np.linalg.norm(points, axis=1) < 14
    dense, weak = (np.median(found[inner & side]) for side in (points[:, 0] > 9, points[:, 0] < -9))
    assert weak / dense == pytest.approx(2.0, rel=0.02)


def test_a_lonely_place_has_finite_evidence(ball):
    """Beside a map's corner, far from all density."""
    found = surroundings(ball, LEVEL, np.array([[-39.0, -39.0, -39.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert all(np.isfinite(values).all() for values in found) and found.exposure[0] > 100 * found.exposure[1]
