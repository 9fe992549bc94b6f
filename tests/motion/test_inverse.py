"""Where density came from: the inverse of a motion that is known at nodes around it."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.inverse import invert, nodes_about, origins_of_voxels

SIZE, ORIGIN, SPACING = np.array([1.0, 1.1, 1.25]), np.array([-20.0, 7.0, 300.0]), 2.5
GRID = Map(np.zeros((40, 36, 32), np.float32), SIZE, ORIGIN)


MIDDLE = np.array([15.0, 16.0, 17.0])
TURN = Rotation.from_rotvec([0.5, -1.0, 0.8]).as_matrix()
SQUEEZE = np.diag([1.3, 0.8, 1.0])


def turned(x):
    """A turn by 79°, a squeeze and a shift."""
    centre = ORIGIN + MIDDLE
    return (x - centre) @ SQUEEZE @ TURN + centre + np.array([4.0, -3.0, 2.0])


def bent(x):
    """A twist by 8° an Å about an axis through the middle, in rows of the x axis."""
    centre = ORIGIN + MIDDLE
    angle = np.deg2rad(8.0) * (x[:, 0] - centre[0])
    y, z = (x - centre)[:, 1:].T
    return np.stack([x[:, 0], y * np.cos(angle) - z * np.sin(angle), y * np.sin(angle) + z * np.cos(angle)], -1) + (
        centre * [0, 1, 1]
    )


def nodes_of_ball(motion):
    """Positions of the voxels in a ball, nodes around them, and where a motion carries the nodes."""
    voxels = np.argwhere(np.ones(GRID.density.shape, bool))
    voxels = voxels[np.linalg.norm(voxels * SIZE - MIDDLE, axis=1) < 8]
    x = ORIGIN + voxels * SIZE
    nodes = nodes_about(voxels, GRID, SPACING)
    return x, nodes, motion(nodes.places.reshape(-1, 3)).reshape(nodes.places.shape)


@pytest.mark.parametrize("motion, error", [(turned, 1e-6), (bent, 0.1)])
def test_places_are_found_again_after_a_motion(motion, error):
    """An affine motion exactly; a twist to the accuracy of interpolation between nodes 2.5 Å apart."""
    x, nodes, moved = nodes_of_ball(motion)
    found, known = invert(nodes, moved)(motion(x))
    assert known.all() and np.abs(motion(x) - x).max() > 4
    assert np.abs(found - x).max() < error


def test_places_that_the_motion_does_not_reach_are_not_known():
    x, nodes, moved = nodes_of_ball(turned)
    _, known = invert(nodes, moved)(turned(x) + np.array([0, 0, 40.0]))
    assert not known.any()


def test_where_the_motion_folds_one_of_the_places_is_found():
    """All beyond the middle is mirrored onto the other half, and at the crease the derivative is zero."""
    crease = ORIGIN[0] + MIDDLE[0]

    def folded(x):
        return np.concatenate([crease - np.abs(x[:, :1] - crease), x[:, 1:]], -1)

    x, nodes, moved = nodes_of_ball(folded)
    found, _ = invert(nodes, moved)(folded(x))
    assert np.isfinite(found).all()
    far = np.abs(x[:, 0] - crease) > 2 * SPACING
    np.testing.assert_allclose(folded(found[far]), folded(x[far]), atol=0.2)


@pytest.mark.parametrize("motion", [turned, bent])
def test_all_voxels_about_carried_density_are_found(motion):
    x, nodes, moved = nodes_of_ball(motion)
    found, places = origins_of_voxels(nodes, moved, GRID, SPACING)
    drawn = np.zeros(GRID.density.shape, bool)
    drawn[tuple(found)] = True
    at = np.floor((motion(x) - ORIGIN) / SIZE).astype(int)
    for corner in np.ndindex(2, 2, 2):
        assert drawn[tuple((at + corner).T)].all()
    assert drawn.mean() < 0.5
    back = motion(ORIGIN + places.T * SIZE)
    inside = np.linalg.norm(places.T * SIZE - MIDDLE, axis=1) < 8
    np.testing.assert_allclose(back[inside], (ORIGIN + found.T * SIZE)[inside], atol=0.05)


def test_density_that_leaves_the_box_is_in_none_of_its_voxels():
    _, nodes, moved = nodes_of_ball(lambda x: x + np.array([0, 200.0, 0]))
    found, places = origins_of_voxels(nodes, moved, GRID, SPACING)
    assert found.shape == places.shape == (3, 0)
