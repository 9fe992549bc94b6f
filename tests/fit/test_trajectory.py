"""Frames carry the map along the flow at every time, keep its peaks (pull back) or its mass (push forward)."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rounding
from scipy import ndimage

from cryotrans_jax.core.flow import Field, flow, split_time
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.density import simulation
from cryotrans_jax.fit import strain, trajectory
from cryotrans_jax.fit.morph import morph
from cryotrans_jax.fit.options import Options
from cryotrans_jax.fit.stage import Config, Stage
from cryotrans_jax.fit.target_flow import Flow
from cryotrans_jax.fit.terms import L2
from cryotrans_jax.fit.trajectory import PullBack, frame_times, move, pull_back, push_forward, soft_support
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import same_grid
from cryotrans_jax.motion import displacement
from cryotrans_jax.motion.partition import Partition

FIELD = Field(Velocity(width=32, centre=0.5), 5)
FRAME = Frame(np.array([-14.0, 20.0, 50.0]), 33.0)  # no corner of the map's
SHIFT = np.array([3.1, -2.3, 1.7])  # Å
TIMES = np.array([0.0, 0.33, 0.6, 1.0])


@pytest.fixture(scope="module")
def bending():
    """Parameters of a flow that turns, bends and shifts by up to some 6 Å."""
    params = jax.jit(FIELD.init)(jax.random.key(4))
    params = jax.tree.map(lambda p: 20 * p, params)
    params["params"]["Dense_0"]["bias"] = jax.random.uniform(jax.random.key(1), (32,), minval=-0.3, maxval=0.3)
    return params


@pytest.fixture(scope="module")
def translation(bending):
    """Parameters of a constant velocity: no weights, the shift as the last layer's bias."""
    params = jax.tree.map(jnp.zeros_like, bending)
    params["params"]["Dense_2"]["bias"] = jnp.asarray(SHIFT / FRAME.edge, jnp.float32)
    return params


@pytest.fixture(scope="module")
def xyz(models):
    return atoms.positions(models[0])


@pytest.fixture(scope="module")
def initial(maps, models):
    """A map so smooth, 1.25 voxels the Gaussian's width, that cubic splines err little between its voxels."""
    return simulation.simulate_map(models[0], maps[0].density.shape, maps[0].voxel_size, maps[0].origin, 12.0)


@pytest.fixture(scope="module")
def threshold(initial):
    return float(0.1 * initial.density.max())


@pytest.fixture(scope="module")
def bent(initial, bending, threshold):
    return list(pull_back(Flow(FIELD, bending, FRAME), initial, threshold, TIMES))


def test_frame_times_run_from_zero_to_one():
    np.testing.assert_allclose(frame_times(5), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(frame_times(1), [1])


@pytest.mark.parametrize("steps", [5, 10, 7])
def test_times_of_whole_steps_have_no_part(steps):
    """Rounding must not leave a tiny step: k/n * n is not always k."""
    for k in range(steps + 1):
        assert split_time(k / steps, steps) == (k, 0.0)
        assert split_time(float(np.linspace(0, 1, steps + 1)[k]), steps) == (k, 0.0)
    whole, part = split_time(0.33, 5)
    assert whole == 1 and part == pytest.approx(0.65)


def test_move_ends_where_the_flow_does(bending, xyz):
    end = flow(partial(FIELD.network.apply, bending), jnp.asarray(FRAME.to_unit(xyz), jnp.float32), 5)
    moved = move(Flow(FIELD, bending, FRAME), xyz, np.array([0.0, 1.0]))
    np.testing.assert_array_equal(moved[0], xyz)
    np.testing.assert_allclose(moved[1], FRAME.to_angstrom(np.asarray(end)), atol=rounding(33.0, 50))  # Å: five steps
    assert np.ptp(moved[1] - xyz, axis=0).max() > 2  # no translation


def test_move_is_straight_between_steps(bending, xyz):
    moved = move(Flow(FIELD, bending, FRAME), xyz, np.array([0.2, 0.25, 0.35, 0.4, 0.6]))
    for t, at in ((0.25, moved[1]), (0.35, moved[2])):
        np.testing.assert_allclose(at, moved[0] + (t - 0.2) / 0.2 * (moved[3] - moved[0]), atol=1e-9)
    bend = moved[4] - moved[3] - (moved[3] - moved[0])
    assert np.abs(bend).max() > 1e-2  # but not beyond


def test_move_does_not_depend_on_how_many_points_there_are(bending, xyz):
    """More points than a padded block holds, and fewer."""
    many = np.tile(xyz, (trajectory.PAD_MULTIPLE // len(xyz) + 1, 1))
    times = np.array([1.0])
    few = move(Flow(FIELD, bending, FRAME), xyz, times)[0]
    np.testing.assert_allclose(
        move(Flow(FIELD, bending, FRAME), many, times)[0, -len(xyz) :], few, atol=rounding(33.0, 50)
    )  # Å, as above


def test_the_support_fades_beyond_its_skin(initial, threshold):
    """Full to 4 Å from the density above the threshold, nothing from 8 Å on."""
    density, size = initial.density, initial.voxel_size
    mask = soft_support(density, threshold, size)
    inside = np.argwhere(density >= threshold) * size
    everywhere = np.argwhere(np.ones_like(density)) * size
    distance = np.sqrt(((everywhere[:, None] - inside[None]) ** 2).sum(-1).min(1)).reshape(density.shape)
    assert (mask[distance <= 4] == 1).all() and (mask[distance >= 8] == 0).all()
    between = (distance > 4.1) & (distance < 7.9)
    assert (mask[between] > 0).all() and (mask[between] < 1).all()


def test_the_first_frame_is_the_initial_map(initial, bent, threshold):
    mask = soft_support(initial.density, threshold, initial.voxel_size)
    # inside the support; beyond, the map fades to zero. A spline passes through its values, in float32.
    np.testing.assert_allclose(bent[0].density, initial.density * mask, atol=1e-4 * initial.density.max())


def test_frames_lie_on_the_grid_of_the_initial_map(initial, bent):
    for frame in bent:
        assert same_grid(frame, initial) is None
        np.testing.assert_array_equal(frame.origin, initial.origin)


@pytest.mark.parametrize("number", range(len(TIMES)))
def test_a_frame_has_at_each_carried_place_the_density_that_was_there(initial, bending, bent, threshold, number):
    """f_t(Φ(x, t)) = f_0(x), also between two Euler steps."""
    strong = np.argwhere(initial.density > 0.3 * initial.density.max())
    to = move(Flow(FIELD, bending, FRAME), initial.origin + strong * initial.voxel_size, TIMES[number : number + 1])[0]
    at = (to - initial.origin) / initial.voxel_size
    found = ndimage.map_coordinates(bent[number].density, at.T, order=3)
    # Two splines, and 0.1 Å of the control lattice where the slope is a tenth of the peak an angstrom, err by 1 % each.
    density = initial.density[tuple(strong.T)]
    np.testing.assert_allclose(found, density, atol=0.03 * density.max())
    if number:
        unmoved = bent[number].density[tuple(strong.T)]
        assert np.abs(unmoved - density).max() > 0.2 * density.max()


def test_pull_back_of_a_translation_is_the_shifted_map(initial, models, translation):
    threshold = float(1e-4 * initial.density.max())
    frames = list(pull_back(Flow(FIELD, translation, FRAME), initial, threshold, np.array([0.3, 1.0])))
    for t, frame in zip((0.3, 1.0), frames, strict=True):
        shifted = ndimage.shift(initial.density, t * SHIFT / initial.voxel_size, order=3, mode="constant")
        np.testing.assert_allclose(frame.density, shifted, atol=1e-3 * initial.density.max())  # the mask's tail
        moved = atoms.with_positions(models[0], atoms.positions(models[0]) + t * SHIFT)
        exact = simulation.simulate_map(moved, initial.density.shape, initial.voxel_size, initial.origin, 12.0)
        # splines between voxels err by less than 1 % of the peak
        np.testing.assert_allclose(frame.density, exact.density, atol=0.01 * initial.density.max())


def test_push_forward_keeps_mass_and_moves_its_centre(initial, translation, threshold):
    mass = np.where(initial.density >= threshold, initial.density, 0)
    place = [np.arange(n) for n in mass.shape]

    def centre(a):
        a = a.astype(np.float64)
        return np.array([np.moveaxis(a, k, 0).sum((1, 2)) @ place[k] / a.sum() for k in range(3)]) * initial.voxel_size

    for t, frame in zip(
        (0.3, 1.0), push_forward(Flow(FIELD, translation, FRAME), initial, threshold, np.array([0.3, 1.0])), strict=True
    ):
        assert frame.density.sum(dtype=float) == pytest.approx(mass.sum(dtype=float), rel=1e-5)  # float32
        np.testing.assert_allclose(centre(frame.density), centre(mass) + t * SHIFT, atol=1e-3)  # Å; float32


def test_push_forward_keeps_mass_under_a_bending_flow(initial, bending, threshold):
    mass = initial.density[initial.density >= threshold].sum(dtype=float)
    for frame in push_forward(Flow(FIELD, bending, FRAME), initial, threshold, TIMES):
        assert frame.density.sum(dtype=float) == pytest.approx(mass, rel=1e-5)  # float32


def test_fits_that_agree_have_no_spread(initial, bending, threshold):
    carry = partial(move, Flow(FIELD, bending, FRAME))
    shown, apart = trajectory.spread([carry, carry], FRAME, initial, threshold)
    assert np.abs(apart).max() < 1e-5 and np.abs(shown.density).max() < 1e-5


def test_the_spread_is_the_distance_from_the_mean_where_the_first_fit_carries_the_density(
    initial, translation, threshold
):
    """Two fits that carry everything by the shift, and not at all, are each half the shift from their mean."""
    still = jax.tree.map(jnp.zeros_like, translation)
    carries = [partial(move, Flow(FIELD, params, FRAME)) for params in (translation, still)]
    shown, apart = trajectory.spread(carries, FRAME, initial, threshold)
    half = np.linalg.norm(SHIFT) / 2
    np.testing.assert_allclose(apart, half, rtol=1e-4)
    there = shown.density > 0
    np.testing.assert_allclose(shown.density[there], half, rtol=1e-4)
    moved = ndimage.center_of_mass(there) * initial.voxel_size
    before = ndimage.center_of_mass(initial.density >= threshold) * initial.voxel_size
    np.testing.assert_allclose(moved - before, SHIFT, atol=1.0)  # half a voxel
    assert not same_grid(shown, initial)


@pytest.mark.parametrize("parts", [False, True])
def test_strain_is_that_of_the_motion_of_each_part(monkeypatch, parts):
    """Of a linear motion, or of one for each part; neighbours of a point belong to its part, wherever they are."""
    rng = np.random.default_rng(3)
    turns, size = rng.normal(size=(2, 3, 3)), 0.2  # Å: voxels, of either part by chance, smaller than a difference
    xyz = size * rng.integers(0, 60, (40, 3))
    partition = Partition(rng.integers(1, 3, (60, 60, 60)), np.full(3, size), np.zeros(3))
    part = partition.part_at(xyz) if parts else None

    def move(flow, xyz, times, part=None):
        each = xyz @ turns[0].T + 5 if part is None else np.einsum("nij,nj->ni", turns[part], xyz)
        return each[None]

    monkeypatch.setattr(trajectory, "move", move)
    own = turns[[0] * 40 if part is None else part]
    flow = Flow(FIELD, {}, Frame(np.zeros(3), 1.0), partition if parts else None)
    np.testing.assert_allclose(strain.volume_change(flow, xyz), np.linalg.det(own), rtol=1e-9)
    values = np.linalg.svd(own, compute_uv=False)
    np.testing.assert_allclose(strain.stretches(strain.jacobians(flow, xyz)), values[:, [2, 0]], rtol=1e-9)


def test_the_stretched_fraction_is_that_of_the_mass(initial, monkeypatch):
    """Here all beyond the middle of the mass along x is extended by a third, and the rest turned."""
    level = float(0.2 * initial.density.max())
    x, mass = displacement.mass_points(initial, level)
    middle = np.median(x[:, 0]) + 0.6  # Å: so that no difference at a point in the middle crosses it

    def move(flow, xyz, times, part=None):
        turned = xyz[:, [1, 0, 2]] * [-1, 1, 1]
        return np.where(xyz[:, :1] > middle, xyz * [4 / 3, 1, 1], turned)[None]

    monkeypatch.setattr(trajectory, "move", move)
    fraction = strain.stretched_fraction(Flow(FIELD, {}, FRAME), initial, level)
    assert fraction == pytest.approx(mass[x[:, 0] > middle].sum() / mass.sum(), abs=0.02)


def test_the_widths_of_pulled_back_frames_are_those_of_the_configuration(maps):
    """A thinner skin moves less of the density around the molecule."""
    config = Config((Stage((L2(),), 1, 1e-3, 1e-3, bin=4, sampling=4),), Field(steps=2))
    fits = [
        morph(maps[0], maps[1], Options(replace(config, pull_back=PullBack(skin=skin)), align="none", parts=None))
        for skin in (1.0, 4.0)
    ]
    thin, thick = (np.count_nonzero(fit.generated().density) for fit in fits)
    assert thin < 0.8 * thick
