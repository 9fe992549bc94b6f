"""A place is the more exposed the less of its surroundings the molecule fills."""

import numpy as np
import pytest

from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.displacement import mass_points
from cryotrans_jax.scores.surroundings import exposure

SIZE, SIDE, LEVEL, RADIUS = np.full(3, 3.0), 54, 0.5, 60.0


@pytest.fixture(scope="module")
def ball():
    """A ball with a weaker half."""
    x = SIZE[0] * (np.indices((SIDE,) * 3) - (SIDE - 1) / 2)
    density = np.where((x**2).sum(0) < RADIUS**2, np.where(x[0] > 0, 4.0, 2.0), 0.0).astype(np.float32)
    return Map(density, SIZE, np.full(3, -SIZE[0] * (SIDE - 1) / 2))


def test_half_of_the_surroundings_of_a_surface_are_filled(ball):
    """Deep inside all is filled, and outwards ever less; how strong the density is does not matter."""
    points, _ = mass_points(ball, LEVEL)
    found, away = exposure(ball, LEVEL, points), np.linalg.norm(points, axis=1)
    assert np.median(found) == pytest.approx(1)
    inner, surface = found[away < 30], found[np.abs(away - RADIUS) < 1.5]
    assert np.ptp(inner) < 0.03 * inner.mean()
    assert 1.8 < np.median(surface) / inner.mean() < 2.8
    shells = [np.mean(found[(away >= low) & (away < low + 6)]) for low in (30, 36, 42, 48, 54)]
    assert shells == sorted(shells)
    weak = points[:, 0] < 0
    assert np.median(found[weak]) == pytest.approx(np.median(found[~weak]), rel=0.02)


def test_a_lonely_place_has_finite_evidence(ball):
    """Beside a map's corner, far from all density."""
    found = exposure(ball, LEVEL, np.array([[-79.0, -79.0, -79.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert np.isfinite(found).all() and found[0] > 100 * found[1]
