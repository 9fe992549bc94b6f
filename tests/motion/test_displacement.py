"""The sampled motion is the flow's own between its nodes; displacement and stretch are those of known motions."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion import displacement

LOW, HIGH = np.array([-3.0, 5.0, 40.0]), np.array([25.0, 29.0, 61.0])
MATRIX = np.array([[1.3, 0.1, 0.0], [0.0, 0.9, -0.2], [0.1, 0.0, 1.05]])
SHIFT = np.array([4.0, -2.0, 1.0])


def affine(xyz, times):
    """Each position moves straight to MATRIX xyz + SHIFT."""
    return np.stack([xyz + t * (xyz @ MATRIX.T + SHIFT - xyz) for t in times])


def winding(xyz, times):
    """Each position turns steadily by 1 about z, in five straight steps, as Euler's scheme has it."""
    knots = np.linspace(0, 1, 6)
    turned = [
        np.stack([xyz @ [np.cos(a), -np.sin(a), 0], xyz @ [np.sin(a), np.cos(a), 0], xyz[:, 2]], -1) for a in knots
    ]
    k = np.minimum((np.asarray(times) * 5).astype(int), 4)
    share = (np.asarray(times) * 5 - k)[:, None, None]
    return (1 - share) * np.stack(turned)[k] + share * np.stack(turned)[k + 1]


def test_a_linear_displacement_is_had_exactly_at_any_place_and_time():
    sampled = displacement.sample_motion(affine, LOW, HIGH)
    xyz = np.random.default_rng(0).uniform(LOW, HIGH, (50, 3))
    knots = sampled.displacements_at(xyz)
    for t in (0.0, 0.37, 1.0):
        # float32 holds displacements of some 100 Å to 1e-5
        np.testing.assert_allclose(xyz + sampled.at_time(knots, t), affine(xyz, [t])[0], atol=1e-4)
    np.testing.assert_allclose(
        displacement.distances(sampled, xyz), np.linalg.norm(xyz @ MATRIX.T + SHIFT - xyz, axis=1), rtol=1e-5
    )


def test_only_the_times_at_which_paths_bend_are_kept():
    assert displacement.sample_motion(affine, LOW, HIGH).times.tolist() == [0, 1]
    np.testing.assert_allclose(displacement.sample_motion(winding, LOW, HIGH).times, np.linspace(0, 1, 6))


@pytest.mark.parametrize("time", [0.0, 0.07, 0.2, 0.55, 0.93, 1.0])
def test_a_path_that_bends_is_had_at_any_time(time):
    """Within what linear interpolation between nodes of a rotation leaves, which is linear in space: float32 alone."""
    sampled = displacement.sample_motion(winding, LOW, HIGH)
    xyz = np.random.default_rng(3).uniform(LOW, HIGH, (40, 3))
    found = xyz + sampled.at_time(sampled.displacements_at(xyz), time)
    np.testing.assert_allclose(found, winding(xyz, [time])[0], atol=1e-4)


def test_the_error_between_nodes_falls_with_the_square_of_their_spacing(monkeypatch):
    def bent(xyz, times):
        return np.stack([xyz + t * 3 * np.sin(xyz / 6) for t in times])

    xyz = np.random.default_rng(1).uniform(LOW, HIGH, (500, 3))
    errors = []
    for spacing in (4.0, 2.0):
        monkeypatch.setattr(displacement, "SPACING", spacing)
        errors.append(
            np.abs(displacement.sample_motion(bent, LOW, HIGH).displacements_at(xyz)[-1] - 3 * np.sin(xyz / 6)).max()
        )
    assert errors[1] < errors[0] / 3  # 4 in the limit


def test_no_more_nodes_than_allowed_in_a_large_box():
    assert (
        displacement.sample_motion(affine, LOW, LOW + 2000.0).shift[0, ..., 0].size < 1.2 * displacement.MAX_NODES
    )  # both ends are nodes


@pytest.mark.parametrize("size", [1.0, 0.35])
def test_mass_and_its_centre_are_kept_in_the_points(maps, size):
    """Also where cells are three voxels wide and reach beyond the box."""
    map_ = Map(maps[0].density[:-1, :, 1:], size * maps[0].voxel_size, maps[0].origin)
    level = float(0.2 * map_.density.max())
    xyz, rho = displacement.mass_points(map_, level)
    mass = np.where(map_.density >= level, map_.density, 0)
    assert rho.sum() == pytest.approx(mass.sum(), rel=1e-5)
    at = map_.origin + np.argwhere(mass) * map_.voxel_size
    np.testing.assert_allclose(rho @ xyz / rho.sum(), mass[mass > 0] @ at / mass.sum(), rtol=1e-4)


def test_the_displacement_map_says_at_the_new_place_how_far_it_came(maps):
    """What is carried by a shift of whole voxels reads its length there, out to the surface and beyond; elsewhere 0."""
    initial, step = maps[0], np.array([2, -1, 3])
    level, shift = float(0.2 * initial.density.max()), step * initial.voxel_size

    def carry(xyz, times):
        return np.stack([xyz + t * shift for t in times])

    points, _ = displacement.mass_points(initial, level)
    sampled = displacement.sample_motion(carry, points.min(0) - 4, points.max(0) + 4)
    found = displacement.displacement_map(sampled, points, initial)
    start = displacement.displacement_map(sampled, points, initial, 0.0)  # the same lengths where all stands at first
    np.testing.assert_allclose(start.density[initial.density >= level], np.linalg.norm(shift), rtol=1e-4)
    assert isinstance(found, Map) and found.density.shape == initial.density.shape
    inside = np.roll(initial.density >= level, step, (0, 1, 2))
    about = inside.copy()
    for axis in range(3):
        about |= np.roll(inside, 1, axis) | np.roll(inside, -1, axis)
    np.testing.assert_allclose(found.density[about], np.linalg.norm(shift), rtol=1e-4)
    assert set(np.unique(found.density == 0)) == {False, True}
    far = np.linalg.norm(
        (np.argwhere(found.density > 0) * initial.voxel_size)[:, None]
        - (np.argwhere(inside) * initial.voxel_size)[None],
        axis=-1,
    ).min(1)
    assert far.max() < 10


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_what_leaves_the_box_is_not_in_the_displacement_map(maps, axis, sign):
    """A shift by half of the box: what arrives in it reads how far it came, and what is far from all mass reads 0."""
    initial = maps[0]
    step = sign * (initial.density.shape[axis] // 2) * np.eye(3)[axis]
    level, shift = float(0.05 * initial.density.max()), step * initial.voxel_size
    points, _ = displacement.mass_points(initial, level)
    sampled = displacement.sample_motion(
        lambda x, times: np.stack([x + t * shift for t in times]), points.min(0), points.max(0)
    )
    found = displacement.displacement_map(sampled, points, initial).density
    arrived = ndimage.shift((initial.density >= level).astype(float), step, order=0) > 0.5
    np.testing.assert_allclose(found[arrived], np.linalg.norm(shift), rtol=1e-3)
    voxels = initial.origin + np.argwhere(np.ones(found.shape)) * initial.voxel_size
    away = cKDTree(points + shift).query(voxels)[0].reshape(found.shape)
    assert (away > 10).any() and not found[away > 10].any()
