"""Correspondences find the parts of a map again after motions that mass alone misreads."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rounding
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from cryotrans_jax.core import grid
from cryotrans_jax.core.flow import Field
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit import levels, prepare
from cryotrans_jax.fit.options import Resolutions
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion import correspond
from cryotrans_jax.motion.correspond import Cloud, CorrespondenceSearch, Side, huber

SEARCH = CorrespondenceSearch()
SHAPE = (38, 28, 32)
VOXEL = np.array([2.0, 2.2, 2.1])
ORIGIN = np.array([-21.3, 11.2, 40.7])  # no whole number of voxels
MIDDLE = ORIGIN + VOXEL * (19, 13, 17)
TURNS = [Rotation.from_rotvec(2.0 * np.array(axis)).as_matrix() for axis in ([0.6, 0.8, 0.0], [0.0, 0.6, -0.8])]
SIDES = np.array([[-15.0, 0, 0], [15.0, 0, 0]])  # Å from the middle: where the domains stand


def blobs(centres, heights, width, shape=SHAPE, voxel=VOXEL, origin=ORIGIN):
    """Gaussians of one width (Å) at the centres (Å), as a density."""
    density = np.zeros(shape)
    for centre, height in zip(centres, heights, strict=True):
        x, y, z = (
            np.exp(-0.5 * ((o + np.arange(n) * v - c) / width) ** 2)
            for o, n, v, c in zip(origin, shape, voxel, centre, strict=True)
        )
        density += height * x[:, None, None] * y[:, None] * z
    return density.astype(np.float32)


def scattered(seed, count, spread):
    """Centres about the origin and heights."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-spread, spread, (count, 3)), rng.uniform(0.5, 1.5, count)


# Descriptors


def test_each_width_of_a_neighbourhood_is_wider_than_the_one_before():
    """So that descriptors see from side chains to domains, and none tells what another does."""
    for widths in (SEARCH.density_widths, SEARCH.gradient_widths, SEARCH.tensor_widths):
        ratio = np.divide(widths[1:], widths[:-1])
        assert (ratio >= 1.2).all() and (ratio <= 2).all()


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_descriptors_do_not_change_when_the_map_turns_by_a_right_angle(scale):
    """At voxels that are binned first (1 Å) and at those that are not."""
    voxel = VOXEL * scale
    centres, heights = scattered(0, 8, 8)
    density = blobs(centres, heights, 3.0, (24, 20, 28), voxel, -voxel * (11.5, 9.5, 13.5))
    size = voxel * density.shape
    x = np.random.default_rng(1).uniform(0.3, 0.7, (20, 3)) * size
    turned, order = np.rot90(density, axes=(0, 2)), [2, 1, 0]
    there = x[:, order]
    there[:, 0] = size[2] - there[:, 0]  # rot90 takes (a, c) to (last - c, a)
    before = correspond.describe(density, voxel, x)
    after = correspond.describe(np.ascontiguousarray(turned), voxel[order], there)
    assert before.shape == (20, 25) and before.std(0).min() > 1e-3 * np.abs(before).max(0).max() / 100
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-6)  # float32


def test_descriptors_hardly_change_when_the_map_turns_by_any_angle():
    """Linear interpolation between voxels of 2 Å of blobs of 3 Å: a few per cent of what points differ by."""
    centres, heights = scattered(0, 8, 9)
    turn = Rotation.from_rotvec([0.7, -0.5, 0.4]).as_matrix()
    x = centres + np.random.default_rng(1).normal(0, 2, centres.shape)
    grid = (34, 32, 33)
    corner = -0.5 * VOXEL * grid
    density, turned = (blobs(at, heights, 3.0, grid, VOXEL, corner + 0.5 * VOXEL) for at in (centres, centres @ turn.T))
    before = correspond.describe(density, VOXEL, x - corner)
    after = correspond.describe(turned, VOXEL, x @ turn.T - corner)
    assert (np.sqrt(((after - before) ** 2).mean(0)) < 0.08 * before.std(0)).all()


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_densities_among_descriptors_are_those_of_the_blurred_map(scale):
    """A Gaussian of width 4 blurred by another is a wider and lower one; widths are in Å on uneven voxels."""
    voxel, grid, width = VOXEL * scale, (40, 36, 38), 6.0
    middle = 0.5 * voxel * grid + [0.3, -0.2, 0.4]
    density = blobs([middle], [1.3], width, grid, voxel, 0.5 * voxel)
    x = middle + np.random.default_rng(0).normal(0, 3, (30, 3))
    found = correspond.describe(density, voxel, x)[:, : len(SEARCH.density_widths)]
    bins = 8 if scale == 0.5 else 1  # a bin holds the total of its voxels
    for width_by, column in zip(SEARCH.density_widths[:4], found.T, strict=False):
        total = width**2 + width_by**2
        exact = 1.3 * bins * (width**2 / total) ** 1.5 * np.exp(-0.5 * ((x - middle) ** 2).sum(1) / total)
        np.testing.assert_allclose(column, exact, rtol=0.08)  # by 1 Å² or so that bins and interpolation add


def test_structure_tensor_of_a_slope_is_its_gradient_squared():
    """One eigenvalue is the square of the gradient, in Å, whatever the voxels; across the slope nothing changes."""
    grid, gradient = (40, 36, 38), np.array([0.03, -0.05, 0.02])
    axes = np.meshgrid(*((np.arange(n) + 0.5) * v for n, v in zip(grid, VOXEL, strict=True)), indexing="ij")
    density = 10 + sum(g * a for g, a in zip(gradient, axes, strict=True))
    x = 0.5 * VOXEL * grid + np.random.default_rng(0).normal(0, 2, (5, 3))
    first = correspond.describe(density, VOXEL, x)[:, 7:10]  # of the narrowest widths: the others see the edges
    np.testing.assert_allclose(first[:, 2], np.linalg.norm(gradient), rtol=5e-3)  # of 0.7 voxels, sampled
    np.testing.assert_allclose(first[:, :2], 0, atol=1e-2 * np.linalg.norm(gradient))


# Whitening


@pytest.fixture(scope="module")
def features():
    """Descriptors of 70 and 90 points in which ten hidden causes of unlike scale stand, and little else; shares."""
    rng = np.random.default_rng(0)
    causes = rng.normal(size=(160, 10)) + rng.normal(size=10)
    mixed = causes @ rng.normal(size=(10, 25)) + 1e-4 * rng.normal(size=(160, 25))
    share, share_end = (s / s.sum() for s in (rng.uniform(0.5, 2, 70), rng.uniform(0.5, 2, 90)))
    return causes, mixed * np.geomspace(1e-3, 1e3, 25) + 5, share, share_end


def test_whitened_components_are_uncorrelated_and_of_unit_variance(features):
    _, raw, share, share_end = features
    both = np.concatenate(correspond.whiten(raw[:70], raw[70:], share, share_end))
    weight = np.concatenate([share, share_end]) / 2
    assert both.shape == (160, SEARCH.components)
    np.testing.assert_allclose(weight @ both, 0, atol=1e-9)
    np.testing.assert_allclose((both * weight[:, None]).T @ both, np.eye(SEARCH.components), atol=1e-6)


def test_whitened_components_hold_what_is_in_the_descriptors(features):
    """All ten causes follow from the components, and the units of a descriptor make no difference."""
    causes, raw, share, share_end = features
    both = np.concatenate(correspond.whiten(raw[:70], raw[70:], share, share_end))
    known = np.column_stack([both, np.ones(160)])
    left = causes - known @ np.linalg.lstsq(known, causes, rcond=None)[0]
    assert np.abs(left).max() < 0.01 * causes.std()
    scaled = raw * np.linspace(1, 40, 25) - 3
    again = np.concatenate(correspond.whiten(scaled[:70], scaled[70:], share, share_end))
    np.testing.assert_allclose(cdist(again, again), cdist(both, both), atol=1e-5)


# Points


def test_points_keep_mass_and_centre():
    """Of a body of even density, whose every voxel is among those that hold 98 %; its sides are no whole blocks."""
    density = np.zeros((17, 13, 22), np.float32)
    density[3:16, 2:12, 5:21] = 2.0
    at = (np.argwhere(density) + 0.5) * VOXEL
    x, share = correspond.points(density, VOXEL, 5.0)
    size = np.array([2, 2, 2])  # voxels nearest to 5 Å
    blocks = np.unique(np.argwhere(density) // size, axis=0)
    assert len(x) == len(blocks) and share.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_array_equal(np.floor(x / (VOXEL * size)), blocks)
    np.testing.assert_allclose(share @ x, at.mean(0), rtol=1e-5)  # summed as float32 in a block


def test_points_follow_the_strong_density_only():
    """A block weaker than what holds 98 % of the mass and one that is nearly empty make no points."""
    rng = np.random.default_rng(0)
    density = np.zeros((15, 15, 15), np.float32)
    density[3:12, 3:12, 3:12] = rng.uniform(150, 250, (9, 9, 9))
    density[:3, :3, :3] = 30.0  # 0.6 % of the mass
    density[14, 14, 14] = 200.0  # a twenty-seventh of a block
    x, share = correspond.points(density, np.full(3, 2.0), 6.0)
    assert len(x) == 3**3 and share.sum() == pytest.approx(1, abs=1e-12)
    assert (x > 3 * 2.0).all() and (x < 12 * 2.0).all()
    every, _ = correspond.points(density, np.full(3, 2.0), 0.1)  # no block is smaller than a voxel
    assert 0.97 * 9**3 < len(every) <= 9**3 + 1


def test_points_leave_noise_out_even_where_most_blocks_hold_nothing_else():
    density = np.zeros((40, 40, 40), np.float32)
    density[15:24, 15:24, 15:24] = 100.0  # 27 blocks of 3³ voxels
    noise = np.random.default_rng(0).uniform(0, 1, (40, 40, 40)).astype(np.float32)  # 13³ blocks, a third of the mass
    x, share = correspond.points(density + noise, np.full(3, 2.0), 6.0)
    assert len(x) == 3**3 and share.sum() == pytest.approx(1, abs=1e-12)
    assert (x > 15 * 2.0).all() and (x < 24 * 2.0).all()


def test_clouds_have_their_points_apart_so_that_there_are_no_more_than_most(problem):
    maps = [problem.initial, problem.targets[0]]
    every, spacing = correspond.spaced_points(maps, problem.voxel_size)
    assert spacing == SEARCH.spacing
    counts = [len(x) for x, _ in every]
    for most in (max(counts), max(counts) - 1, 30):
        found, wider = correspond.spaced_points(maps, problem.voxel_size, CorrespondenceSearch(max_points=most))
        assert 0.1 * most < max(len(x) for x, _ in found) <= most
        assert (wider == SEARCH.spacing) == (most == max(counts))


# Coupling


def naive(linear, near, near_end, share, share_end, weight, epsilons, iterations):
    """The same successive linearisation in float64, with every sum written out."""

    def solve(cost, epsilon, f, g):
        for _ in range(iterations):
            g = -epsilon * np.log(np.exp((f[:, None] - cost) / epsilon).sum(0) / share_end)
            f = -epsilon * np.log(np.exp((g - cost) / epsilon).sum(1) / share)
        return np.exp((f[:, None] + g - cost) / epsilon), f, g

    difference = (near[:, None, :, None] - near_end[None, :, None, :]) ** 2  # i, j, k, l
    plan, f, g = solve(linear, epsilons[0], 0 * share, 0 * share_end)
    for epsilon in epsilons:
        plan, f, g = solve(linear + weight * np.einsum("ijkl,kl->ij", difference, plan), epsilon, f, g)
    return plan


@pytest.fixture(scope="module")
def small():
    """A matching problem of 10 points and 9: linear cost, kernels of both clouds, shares, weight."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 3)), rng.normal(size=(9, 3))
    share, share_end = (s / s.sum() for s in (rng.uniform(1, 2, 10), rng.uniform(1, 2, 9)))
    near, near_end = (np.exp(-cdist(c, c, "sqeuclidean") / 3) for c in (x, y))
    return cdist(x, y, "sqeuclidean"), near, near_end, share, share_end, np.array(40.0)


def sides(small):
    """The same problem as `coupling` takes it; the first cost is the linear one."""
    linear, near, near_end, share, share_end, weight = small
    roots = (np.linalg.cholesky(k + 1e-9 * np.eye(len(k))) for k in (near, near_end))
    costs = linear, np.eye(len(share_end))
    each = zip(costs, roots, (near**2 @ share, near_end**2 @ share_end), (share, share_end), strict=True)
    return *(Side(*(jnp.asarray(a, jnp.float32) for a in side)) for side in each), jnp.float32(weight)


def coupled(small, epsilons):
    return np.asarray(correspond.coupling(*sides(small), jnp.asarray(epsilons, jnp.float32)), np.float64)


def test_the_coupling_is_that_of_the_linearisation_written_out(small):
    epsilons = np.geomspace(4.0, 1.0, 12)
    plan, expected = coupled(small, epsilons), naive(*small, epsilons, SEARCH.iterations)
    np.testing.assert_allclose(plan, expected, atol=1e-3 * expected.max())  # columns are exact only in the limit
    apart = naive(*small[:5], 0.0, epsilons, SEARCH.iterations)
    assert np.abs(plan - apart).max() > 0.2 * expected.max()  # the quadratic part decides


def test_the_coupling_has_its_marginals(small):
    plan = coupled(small, np.concatenate([np.geomspace(4.0, 1.0, 12), np.ones(8)]))
    np.testing.assert_allclose(plan.sum(1), small[3], rtol=1e-4)  # float32: rows are set last
    np.testing.assert_allclose(plan.sum(0), small[4], rtol=1e-2)


def test_products_of_kernels_and_plan_keep_all_digits_on_an_accelerator(small):
    """These products stand for costs of thousands of ε; by default a GPU keeps three digits and a TPU fewer."""
    written = str(jax.make_jaxpr(correspond.coupling.function)(*sides(small), np.ones(3, np.float32)))
    assert written.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == written.count("dot_general") == 5


def test_neighbours_alone_tell_points_apart(small):
    """The cost between the clouds does not matter, only which points are near one another: a permutation is found."""
    _, near, _, share, *_ = small
    order = np.random.default_rng(1).permutation(10)
    hint = 0.3 * (order[None] != np.arange(10)[:, None])  # hardly more than nothing
    plan = coupled((hint, near, near[order][:, order], share, share[order], np.array(300.0)), np.geomspace(2, 0.1, 20))
    np.testing.assert_array_equal(order[plan.argmax(1)], np.arange(10))
    assert plan.max(1).sum() > 0.95


def test_the_plan_starts_from_the_linear_cost(small):
    """Two equal places and a strong wish to keep together: the linear cost tells which of two answers is found."""
    x = np.array([[0.0, 0, 0], [1, 0, 0]])
    near, share = np.exp(-cdist(x, x, "sqeuclidean")), np.full(2, 0.5)
    for turned in (False, True):
        hint = np.abs(np.eye(2) - (0 if turned else 1)) * 4.0
        plan = coupled((hint, near, near, share, share, np.array(60.0)), np.full(10, 0.5))
        expected = np.eye(2) if not turned else 1 - np.eye(2)
        np.testing.assert_allclose(plan, 0.5 * expected, atol=1e-3)


def test_a_cloud_has_the_kernel_of_its_neighbourhoods():
    rng = np.random.default_rng(5)
    cloud = Cloud(300 + rng.uniform(0, 30, (300, 3)), np.full(300, 1 / 300), rng.normal(size=(300, 2)))
    kernel = np.exp(-0.5 * cdist(cloud.x, cloud.x, "sqeuclidean") / 8.0**2)
    side = correspond.side_of(cloud, np.ones((300, 1)), 8.0, 0.01)
    assert side.near.dtype == np.float32 and side.near.shape[1] < 200
    assert np.abs(side.near @ side.near.T - kernel).max() < 0.011
    np.testing.assert_allclose(side.own, kernel**2 @ cloud.share, rtol=1e-4)


def test_a_factor_gives_the_kernel_back_within_its_error_at_a_lower_rank():
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 12, (400, 3))  # in units of the kernel's width squared over two
    kernel = np.exp(-0.5 * cdist(x, x, "sqeuclidean") / 4.0)
    root = correspond.low_rank_factor(kernel)
    assert root.shape[0] == 400 and root.shape[1] < 300
    error = np.abs(root @ root.T - kernel)
    assert 0.1 * SEARCH.kernel_error < error.max() <= SEARCH.kernel_error * (1 + 1e-9)


# Images


def test_the_image_of_a_point_is_the_mean_of_its_ends_and_spread_their_distance_from_it():
    """The second point is like two ends, 6 Å on either side of it; the first and the last like one each."""
    start = np.array([[0.0, 0, 0], [40, 0, 0], [80, 0, 0]])
    end = np.array([[3.0, 0, 0], [40, 6, 0], [40, -6, 0], [80, 0, 4]])
    kinds = np.eye(3)
    clouds = (
        Cloud(start, np.array([0.4, 0.3, 0.3]), kinds),
        Cloud(end, np.array([0.4, 0.15, 0.15, 0.3]), kinds[[0, 1, 1, 2]]),
    )
    mean, spread = correspond.images(*clouds, 5.0)
    np.testing.assert_allclose(mean, [[3, 0, 0], [40, 0, 0], [80, 0, 4]], atol=1e-2)  # float32
    np.testing.assert_allclose(spread, [0, 6, 0], atol=0.1)


def test_likeness_decides_against_distance_and_distance_among_the_alike():
    """An exchange of two unlike points over 30 Å; of two alike ones, each goes to the nearer end."""
    x, share = np.array([[0.0, 0, 0], [30, 0, 0]]), np.full(2, 0.5)
    unlike, alike = np.array([[0.0], [4.0]]), np.zeros((2, 1))
    # 2 (30² − 300 · 4²) < 0
    there, _ = correspond.images(Cloud(x, share, unlike), Cloud(x, share, unlike[::-1]), 5.0)
    np.testing.assert_allclose(there, x[::-1], atol=1e-2)
    here, _ = correspond.images(Cloud(x, share, alike), Cloud(x, share, alike), 5.0)
    np.testing.assert_allclose(here, x, atol=1e-2)
    # and what is worth less than the distance does not: 30² > 300 · 1.5²
    less, _ = correspond.images(Cloud(x, share, unlike * 0.375), Cloud(x, share, unlike[::-1] * 0.375), 5.0)
    np.testing.assert_allclose(less, x, atol=1e-2)


# Ends


def plain(shape=(16, 16, 16), blur=0.0, quieting=0.0, initial=None, target=None):
    """A problem of one target on a grid of the tests' voxels, without a molecule of its own."""
    empty = np.zeros(shape, np.float32)
    initial, target = (empty if a is None else a for a in (initial, target))
    frame = grid.Frame(ORIGIN - 7.0, 50.0)
    report = {"origin": ORIGIN}
    start = np.array([3, 1, 2])
    variances = np.array([blur]), np.array([blur]), np.array([quieting])
    return Problem(
        initial, initial > 0, target[None], target[None], start, VOXEL, frame, *variances, np.zeros((1, 1)), report
    )


def unit(problem, x):
    """Places (Å) in unit boxes."""
    return jnp.asarray(problem.frame.to_unit(x), jnp.float32)


@pytest.fixture
def found(monkeypatch):
    """Sets what `ends` is to find: positions of the cloud's points, their images and spreads."""

    def set_(at, image, spread):
        cloud = Cloud(at, np.full(len(at), 1 / len(at)), np.zeros((len(at), 1)))
        monkeypatch.setattr(correspond, "clouds", lambda *_: (cloud, cloud, SEARCH.spacing))
        monkeypatch.setattr(correspond, "images", lambda *_, **__: (image, spread))

    return set_


def test_points_go_with_the_clouds_points_about_them(found):
    """By a common displacement exactly; one at a point of a coarse cloud with that point."""
    problem = plain()
    at = ORIGIN + np.stack(np.meshgrid(*[np.arange(0, 30, 10.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
    x = ORIGIN + np.random.default_rng(0).uniform(0, 20, (40, 3))
    shift = np.array([3.0, -8.0, 5.0])
    found(at, at + shift, np.zeros(len(at)))
    end, sure = correspond.ends(problem, 0, unit(problem, x))
    np.testing.assert_allclose(problem.frame.to_angstrom(end), x + shift, atol=1e-4)  # float32
    np.testing.assert_allclose(sure, 1)
    found(at, at + 0.2 * (at - ORIGIN), np.zeros(len(at)))
    end, _ = correspond.ends(problem, 0, unit(problem, at))
    # others are ten angstrom further off: exp(−½ (10 / 4)²) = 0.044 each, three of them
    moved = problem.frame.to_angstrom(end) - at - 0.2 * (at - ORIGIN)
    assert 0 < np.abs(moved).max() < 0.2 * 10 * 0.044 / 1.13 * 1.5


def test_a_spread_image_counts_for_less(found):
    """A spread of DOUBT spacings halves a point's weight, and between two points the sure one leads."""
    problem, doubt = plain(), SEARCH.half_weight_spread * SEARCH.spacing
    at = ORIGIN + np.array([[0.0, 0, 0], [4, 0, 0], [100, 0, 0], [100, 4, 0]])
    shift = np.array([[0.0, 2, 0], [0, 6, 0], [0, 0, 9], [0, 0, 9]])
    middle = ORIGIN + np.array([[2.0, 0, 0], [100, 2, 0]])
    found(at, at + shift, doubt * np.array([0, np.sqrt(3), 1, 1]))  # weights 1, 1/4, 1/2, 1/2
    end, sure = correspond.ends(problem, 0, unit(problem, middle))
    np.testing.assert_allclose(sure, [(1 + 1 / 4) / 2, 1 / 2], rtol=1e-4)
    expected = [[0, (2 + 6 / 4) / (1 + 1 / 4), 0], [0, 0, 9]]
    np.testing.assert_allclose(problem.frame.to_angstrom(end) - middle, expected, atol=1e-4)


def test_fewer_than_four_points_are_enough(found):
    problem, at = plain(), ORIGIN[None]
    found(at, at + 2.0, np.zeros(1))
    end, sure = correspond.ends(problem, 0, unit(problem, at + [[1.0, 0, 0]]))
    np.testing.assert_allclose(problem.frame.to_angstrom(end), at + [[3.0, 2, 2]], atol=1e-4)
    assert sure.shape == (1,)


# Clouds


@pytest.mark.parametrize("sign, quieting", [(1, 0.0), (-1, 0.0), (1, 5.0), (-1, 5.0)])
def test_clouds_are_compared_at_one_resolution_in_one_frame(sign, quieting):
    """The sharper of both maps is blurred by what the other lacks, be that resolution or noise: the clouds are one."""
    centres, heights = scattered(2, 10, 8)
    sharp = blobs(centres + 24, heights, 2.5, (24, 22, 23), VOXEL, 0.5 * VOXEL)
    blurred = ndimage.gaussian_filter(sharp, 3.0 / VOXEL, mode="constant")
    maps = (sharp, blurred)[::sign]
    problem = plain(blur=9.0 * sign - quieting, quieting=quieting, initial=maps[0], target=maps[1])
    first, second, _ = correspond.clouds(problem, 0)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
    total = blurred / blurred.sum(dtype=np.float64)
    axes = [np.arange(n) * v for n, v in zip(sharp.shape, VOXEL, strict=True)]
    centre = [total.sum(tuple({0, 1, 2} - {k})) @ axes[k] for k in range(3)]
    whole = ORIGIN + problem.start * VOXEL + centre
    np.testing.assert_allclose(first.share @ first.x, whole, atol=0.3)  # without the weakest 2 %
    one, other, _ = correspond.clouds(replace(problem, blurs=-problem.denoising_blurs), 0)  # unblurred it is another
    assert len(one.x) != len(other.x) or np.abs(one.descriptors - other.descriptors).max() > 0.5


# All of it


@pytest.fixture(scope="module")
def exchanged():
    """A rod that is a helix and a ball that is none change sides, 30 Å apart, each turned by 2 radians.

    The problem, and where a place (Å) of the initial map belongs.
    """
    k = np.arange(30)
    rod = np.stack([3 * np.cos(1.2 * k), 3 * np.sin(1.2 * k), 0.9 * (k - 14.5)], -1)
    rng = np.random.default_rng(2)
    ball = rng.normal(size=(26, 3))
    ball *= [10.4, 5.6, 8.0] * (np.cbrt(rng.uniform(0.2, 1, 26)) / np.linalg.norm(ball, axis=1))[:, None]
    domains, heights = (rod, ball), np.concatenate([np.where(k < 12, 1.6, 1.0), rng.uniform(0.5, 1.5, 26)])
    sides = MIDDLE + SIDES
    before = np.concatenate([d + s for d, s in zip(domains, sides, strict=True)])
    after = np.concatenate([d @ t.T + s for d, t, s in zip(domains, TURNS, sides[::-1], strict=True)])
    maps = [Map(blobs(at, heights, 2.0), VOXEL, ORIGIN) for at in (before, after)]
    problem = prepare.prepare(maps[0], maps[1:], Resolutions(8.0, [8.0]))

    def belongs(x, turns=TURNS):
        own = cdist(x, before)
        number = (own[:, : len(rod)].min(1) > own[:, len(rod) :].min(1)).astype(int)
        away = x - sides[number]
        return sides[::-1][number] + np.einsum("pij,pj->pi", np.array(turns)[number], away)

    return problem, belongs


def test_exchanged_and_turned_domains_are_found_where_mass_alone_leaves_them(exchanged):
    """To about the distance between the cloud's points; half of that is not the shift of a domain but its turn."""
    problem, belongs = exchanged
    points = levels.make_levels(problem, Field(), levels.Sampling(2, 2))[0].points
    end, sure = correspond.ends(problem, 0, points)
    x = problem.frame.to_angstrom(np.asarray(points, np.float64))
    assert end.shape == x.shape and sure.shape == (len(x),) and (sure > 0).all() and (sure < 1 + 1e-9).all()

    def off(a, b):
        return np.linalg.norm(a - b, axis=1).mean()

    true, found = belongs(x), problem.frame.to_angstrom(end)
    unturned = belongs(x, [np.eye(3)] * 2)
    first, second, _ = correspond.clouds(problem, 0)
    rows, columns = linear_sum_assignment(cdist(first.x, second.x, "sqeuclidean"))  # W2 of as many as there are
    transported = off(second.x[columns], belongs(first.x[rows]))
    assert transported > 25 and off(x, true) > 25
    assert off(found, true) < SEARCH.spacing < 0.55 * off(unturned, true)
    assert off(found, true) < 0.2 * transported


def test_a_map_that_has_not_changed_stays_and_is_sure(exchanged):
    """The last ε are so small that entropy draws nothing together: to a hundredth of the points' distance."""
    problem, _ = exchanged
    still = replace(problem, targets=problem.initial[None], densities=problem.initial[None])
    points = levels.make_levels(still, Field(), levels.Sampling(2, 2))[0].points
    end, sure = correspond.ends(still, 0, points)
    moved = np.linalg.norm(end - points, axis=1) * problem.frame.edge
    assert moved.max() < 0.01 * SEARCH.spacing and sure.min() > 0.98


def at_distances(distances):
    """Points at these distances from where they belong, each in a direction of its own, and where that is."""
    rng = np.random.default_rng(0)
    away, ends = rng.normal(size=(len(distances), 3)), rng.normal(size=(len(distances), 3))
    away *= (np.asarray(distances) / np.linalg.norm(away, axis=1))[:, None]
    return jnp.asarray(ends + away, jnp.float32), jnp.asarray(ends, jnp.float32)


@pytest.mark.parametrize("reach", [0.5, 2.0])
@pytest.mark.parametrize("units, expected", [(0.0, 0.0), (0.5, 0.125), (0.99, 0.49), (1.5, 1.0), (10.0, 9.5)])
def test_huber_is_half_the_square_within_reach_and_linear_beyond(reach, units, expected):
    one = jnp.ones(1)
    # a thousandth of the reach rounds off the distance at 0
    assert huber(*at_distances([units * reach]), one, reach) == pytest.approx(expected, abs=1e-6, rel=1e-3)


def test_huber_is_a_mean_weighted_by_the_points_weights():
    moved, ends = at_distances([0.5, 4.0, 0.5, 1.0])
    values = np.array([0.125, 3.5, 0.125, 0.5])  # at a reach of 1
    weight = np.array([1.0, 0.5, 0.0, 2.0], np.float32)
    found = float(huber(moved, ends, jnp.asarray(weight), 1.0))
    assert found == pytest.approx(weight @ values / weight.sum(), rel=1e-4)  # float32
    assert huber(moved, ends, jnp.asarray(7 * weight), 1.0) == pytest.approx(found, rel=rounding(1, 30))


def test_the_gradient_of_huber_is_finite_where_a_point_is_in_place():
    """And 1 / reach a unit of weight towards the end for a point that is far."""
    moved, ends = at_distances([0.0, 5.0])
    gradient = np.asarray(jax.grad(huber)(moved, ends, jnp.ones(2), 0.5))
    np.testing.assert_allclose(gradient[0], 0, atol=1e-5)
    np.testing.assert_allclose(gradient[1], (moved - ends)[1] / 5.0 / 0.5 / 2, rtol=1e-4)
