"""Preparation keeps mass and its centre, puts all maps in one frame, and chooses sensible levels and blurs."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryotrans_jax.core import grid
from cryotrans_jax.core.flow import Field
from cryotrans_jax.density import boxes, simulation, spectrum, thresholds, transform
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.fit import levels, prepare, targets
from cryotrans_jax.fit.options import Preparation, Resolutions, Thresholds
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.piecewise import arrange_rows

RULES = thresholds.ThresholdRules()


@pytest.fixture
def density():
    """Random values with an empty border of four voxels."""
    return np.pad(np.random.default_rng(0).uniform(size=(16, 8, 24)), 4).astype(np.float32)


def centre(density, width=1.0):
    """Centre of mass in voxels of the finest grid from its outer edge."""
    at = [(np.arange(n) + 0.5) * width for n in density.shape]
    total = density.sum(dtype=np.float64)
    return [np.moveaxis(density, k, 0).sum((1, 2), dtype=np.float64) @ at[k] / total for k in range(3)]


@pytest.mark.parametrize("factor", [2, 4])
def test_binning_keeps_mass_and_centre(density, factor):
    coarse = grid.binned(density, factor)
    assert coarse.shape == tuple(n // factor for n in density.shape)
    assert coarse.sum() == pytest.approx(density.sum(), rel=1e-5)  # float32
    np.testing.assert_allclose(centre(coarse, factor), centre(density), atol=1e-4)


def test_binning_by_one_changes_nothing(density):
    np.testing.assert_array_equal(grid.binned(density, 1), density)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_block_points_keep_mass_and_centre_and_stay_in_their_block(density, factor):
    place, rho, filled = grid.block_points(density, factor)
    assert rho.sum() == pytest.approx(density.sum(dtype=np.float64), rel=1e-12)
    np.testing.assert_allclose(rho @ place / rho.sum(), centre(density), rtol=1e-5)  # summed as float32 in a block
    np.testing.assert_array_equal(np.floor(place / factor), np.argwhere(filled))
    assert (
        len(rho)
        == (density.reshape([m for n in density.shape for m in (n // factor, factor)]) > 0).any((1, 3, 5)).sum()
    )


def test_block_points_of_uneven_blocks_keep_mass_and_centre(density):
    factors = np.array([2, 4, 1])
    place, rho, filled = grid.block_points(density, factors)
    assert filled.shape == tuple(n // f for n, f in zip(density.shape, factors, strict=True))
    assert rho.sum() == pytest.approx(density.sum(dtype=np.float64), rel=1e-12)
    np.testing.assert_allclose(rho @ place / rho.sum(), centre(density), rtol=1e-5)  # summed as float32 in a block
    np.testing.assert_array_equal(np.floor(place / factors), np.argwhere(filled))


@pytest.mark.parametrize("share, level", [(0.3, 4.0), (0.4, 4.0), (0.41, 3.0), (0.98, 1.0)])
def test_the_strongest_values_hold_their_share(share, level):
    """4, 3, 2 and 1 hold four, seven, nine and ten tenths."""
    assert thresholds.mass_fraction_threshold(np.array([2.0, 1.0, 4.0, 3.0]), share) == level


def test_targets_hold_the_initial_mass(problem):
    for mass in problem.targets:
        assert mass.sum(dtype=float) == pytest.approx(problem.initial.sum(dtype=float), rel=1e-5)  # float32
    assert problem.initial.max() == 1


def test_densities_are_the_targets_scaled_as_their_masses(problem, maps):
    for number, (mass, density) in enumerate(zip(problem.targets, problem.densities, strict=True)):
        inside = mass > 0
        np.testing.assert_array_equal(mass[inside], density[inside])
        level = problem.report["targets"][number]["threshold"]
        scale = density.max() / maps[number + 1].density.max()
        assert density[~inside].max() < level * scale <= density[inside].min() * (1 + 1e-6)  # float32


@pytest.mark.parametrize("margin", [2.0, 8.0])
def test_the_crop_holds_all_mass_and_is_a_multiple_of_eight(maps, margin):
    problem = prepare.prepare(maps[0], maps[1:], rules=Preparation(margin=margin))
    assert all(n % 8 == 0 for n in problem.initial.shape) and not (problem.start % 8).any()
    whole = [np.where(m.density >= thresholds.choose_threshold(m.density), m.density, 0) for m in maps]
    assert (problem.initial > 0).sum() == (whole[0] > 0).sum()
    assert [(m > 0).sum() for m in problem.targets] == [(w > 0).sum() for w in whole[1:]]
    # where the crop starts, the full grid's values follow
    low, shape = problem.start, problem.initial.shape
    inside = tuple(slice(lo, lo + n) for lo, n in zip(low, shape, strict=True))
    part = whole[0][inside] / whole[0].max()
    np.testing.assert_allclose(problem.initial[tuple(slice(0, n) for n in part.shape)], part, rtol=1e-5)


def test_the_unit_box_is_the_cube_about_the_initial_mass(problem, maps):
    level = problem.report["initial"]["threshold"]
    voxels = np.argwhere(maps[0].density >= level)
    size, origin = maps[0].voxel_size, maps[0].origin
    low, high = (voxels.min(0) - 0.5) * size + origin, (voxels.max(0) + 0.5) * size + origin
    unit = problem.frame.to_unit(np.stack([low, high]))
    np.testing.assert_allclose(unit.sum(0), 1)  # about the middle
    assert np.ptp(unit, axis=0).max() == pytest.approx(1)


def test_the_frame_does_not_depend_on_the_targets(maps):
    frames = [prepare.prepare(maps[0], targets).frame for targets in (maps[1:2], maps[1:], maps[2:])]
    for frame in frames[1:]:
        assert frame.edge == frames[0].edge
        np.testing.assert_array_equal(frame.corner, frames[0].corner)


def test_the_whole_box_is_the_unit_box_where_asked(maps):
    problem = prepare.prepare(maps[0], maps[1:2], rules=Preparation(whole_box=True))
    outer = maps[0].origin - 0.5 * maps[0].voxel_size
    np.testing.assert_allclose(problem.frame.to_unit(outer), 0, atol=1e-12)
    np.testing.assert_allclose(problem.corner, 0, atol=1e-12)
    assert problem.frame.edge == pytest.approx((np.array(maps[0].density.shape) * maps[0].voxel_size).max())


def test_positions_survive_the_frame():
    frame = grid.Frame(np.array([-3.0, 100.0, 7.0]), 61.7)
    xyz = np.random.default_rng(0).normal(0, 100, (9, 3))
    np.testing.assert_allclose(frame.to_angstrom(frame.to_unit(xyz)), xyz)
    np.testing.assert_allclose(frame.to_unit(frame.corner + [61.7, 0, 30.85]), [1, 0, 0.5], atol=1e-12)


@pytest.mark.parametrize("sampling, spacing", [(1, 0.0), (2, 0.0), (1, 5.0), (2, 9.0)])
def test_points_of_a_level_stand_where_the_mass_is(problem, maps, sampling, spacing):
    level = levels.make_levels(problem, Field(), levels.Sampling(2, sampling, spacing, True))[0]
    size, inside = maps[0].voxel_size, np.where(problem.initial > 0, problem.initial, 0)
    whole = problem.report["origin"] + (np.array(centre(inside)) - 0.5 + problem.start) * size
    rho = np.asarray(level.scene.rho, np.float64)
    found = problem.frame.to_angstrom(rho @ np.asarray(level.points, np.float64) / rho.sum())
    np.testing.assert_allclose(found, whole, atol=1e-4)  # Å; float32
    # the tetrahedra's edges are what they are said to be
    tetrahedra = level.tetrahedra
    corner = level.scene.motion.start(jnp.asarray(level.scene.x))[tetrahedra.nodes]
    if spacing or sampling == 1:  # with larger blocks points stand at their centres of mass
        edges = (corner[:, 1:] - corner[:, :1]) - np.diag(tetrahedra.edges)
        assert np.abs(edges).max() < 1e-5  # float32
    assert tetrahedra.share.sum() == pytest.approx(1, abs=1e-5)


def test_the_contour_level_of_a_noiseless_map_keeps_its_share(maps):
    density = maps[0].density
    for share in (0.9, 0.98):
        level = thresholds.choose_threshold(density, replace(RULES, fraction=share))
        kept, total = density[density >= level].sum(dtype=float), density.sum(dtype=float)
        one = density.max() / total  # the level is a voxel's value, and takes that voxel in
        assert share <= kept / total < share + one


def test_the_contour_level_stands_above_the_noise(maps):
    """Noise of a twentieth of the peak: few voxels far from the molecule pass, and its volume is sensible."""
    clean = maps[0].density
    sigma = 0.05 * clean.max()
    noisy = np.pad(clean, 6) + np.random.default_rng(0).normal(0, sigma, np.array(clean.shape) + 12)
    level = thresholds.choose_threshold(noisy.astype(np.float32))
    assert 3 * sigma < level < 0.5 * clean.max()
    near = ndimage.binary_dilation(np.pad(clean, 6) > 0.05 * clean.max(), iterations=1)
    inside = noisy >= level
    # the share of a normal distribution beyond three deviations is 0.13 %
    assert inside[~near].mean() < 0.0013
    share = clean[clean > level].sum() / clean.sum()
    assert inside.sum() == pytest.approx((clean > level).sum(), rel=0.2) and share > 0.6


def test_the_volume_kept_is_about_the_molecules():
    model = hinge_pair()[0]
    grid = simulation.common_grid([model], 1.5, 4.0)
    map = simulation.simulate_map(model, *grid, 4.0)
    level = thresholds.choose_threshold(map.density)
    volume = (map.density >= level).sum() * 1.5**3
    # a protein of 110 Da a residue, 1.21 Å³ a Da and 8 heavy atoms a residue fills 16.6 Å³ an atom; a contour that
    # holds 98 % of a map of 4 Å stands somewhat outside of that
    filled = 16.6 * len(atoms.heavy_atoms(model)[1])
    assert filled < volume < 1.5 * filled


@pytest.fixture(scope="module")
def states():
    """The built-in pair's states on one grid, simulated at a resolution."""
    models = hinge_pair()
    grid = simulation.common_grid(models, 1.2, 4.0)
    return lambda state, resolution: simulation.simulate_map(models[state], *grid, resolution)


def test_relative_blur_of_other_conformations_is_that_of_the_resolutions(states):
    found = spectrum.relative_blur(states(0, 3.0), states(1, 7.0))
    assert found == pytest.approx(0.225**2 * (7**2 - 3**2), rel=0.05)


def test_relative_blur_at_equal_resolution_is_nothing(states):
    for resolution in (3.0, 5.0):
        # 2 % of the blur that takes a map of 3 Å to 7 Å
        assert abs(spectrum.relative_blur(states(0, resolution), states(1, resolution))) < 0.04


def test_relative_blur_is_negative_where_the_target_is_sharper(states):
    found = spectrum.relative_blur(states(0, 6.0), states(1, 4.0))
    assert found == pytest.approx(0.225**2 * (4**2 - 6**2), rel=0.05)


def test_given_resolutions_set_the_blur(maps):
    problem = prepare.prepare(maps[0], maps[1:], Resolutions(8.0, [10.0, 6.0]))
    np.testing.assert_allclose(problem.blurs, 0.225**2 * np.array([36.0, -28.0]))


@pytest.mark.parametrize("which, name", [("initial", "initial map"), ("targets", "target map 1")])
def test_nothing_above_the_threshold_is_explained(maps, which, name):
    with pytest.raises(InputError, match=f"{name} .*threshold 3.5 .*maximum is 0\\.") as caught:
        prepare.prepare(maps[0], maps[1:2], thresholds=Thresholds(**{which: 3.5}))
    assert f"{maps[which == 'targets'].density.max():g}" in str(caught.value)


def test_a_map_that_is_all_molecule_has_no_contour_level_by_rule():
    """What is common in its box, and as such taken for solvent with its noise, is the molecule."""
    rng = np.random.default_rng(0)
    density = ndimage.gaussian_filter(rng.normal(size=(16, 16, 16)), 3.0)
    density = (np.minimum(density, 0) / density.std()).astype(np.float32) + 2
    with pytest.raises(InputError, match="is not above its noise.*give a threshold"):
        thresholds.choose_threshold(density)


def test_the_carried_map_and_the_target_are_compared_at_one_resolution(maps):
    """Blurred by what each lacks, two maps of one conformation become equal, whichever is the sharper."""
    model = maps[0]
    blurred = [Map(ndimage.gaussian_filter(model.density, s / model.voxel_size), model.voxel_size, model.origin)
               for s in (2.0, 3.0)]  # fmt: skip
    variance = 3.0**2 - 2.0**2
    resolutions = 2.0 / 0.225, 3.0 / 0.225
    for a, b, sign in ((0, 1, 1), (1, 0, -1)):
        known, everything = Resolutions(resolutions[a], [resolutions[b]]), Thresholds(0.0, 0.0)
        problem = prepare.prepare(blurred[a], [blurred[b]], known, everything)
        assert problem.blurs[0] == pytest.approx(sign * variance)
        target = targets.at_matched_resolution(problem, problem.densities[0], 1, 0)
        widths = targets.matched_widths(problem)
        carried = ndimage.gaussian_filter(problem.initial, widths[0] / problem.voxel_size, mode="constant")
        inner = tuple(slice(4, -4) for _ in range(3))
        difference = (carried - target)[inner]
        assert np.abs(difference).max() < 0.02 * carried.max()


def test_specks_of_noise_are_not_carried_and_do_not_widen_the_crop(maps):
    """Noise of a tenth of the peak reaches the level in specks all over the box; the crop stays about the molecule."""
    clean, target = (np.pad(m.density, 40) for m in maps[:2])
    rng = np.random.default_rng(0)
    noisy = [d + 0.1 * d.max() * rng.normal(size=d.shape).astype(np.float32) for d in (clean, target)]
    as_map = [Map(d.astype(np.float32), maps[0].voxel_size, maps[0].origin) for d in noisy]
    level = thresholds.choose_threshold(as_map[0].density)
    assert ((as_map[0].density > level) & (clean < 1e-3 * clean.max())).sum() > 20  # there are specks
    problem = prepare.prepare(as_map[0], as_map[1:])
    assert np.prod(problem.initial.shape) < 0.2 * clean.size
    kept = thresholds.carried_mass(as_map[0].density, level) > 0
    assert (clean[kept] > 1e-3 * clean.max()).mean() > 0.95


def test_relative_blur_is_not_led_astray_by_a_low_pass_filter():
    """A 7 Å target cut off at 7 Å, the edge two shells wide, is still one of 7 Å to a quarter of the variance."""
    closed, opened = hinge_pair()
    grid = simulation.common_grid([closed, opened], 1.0, 3.0)
    sharp, blurred = simulation.simulate_map(closed, *grid, 3.0), simulation.simulate_map(opened, *grid, 7.0)
    axes = [np.fft.fftfreq(n) for n in grid[0]]
    s = np.sqrt(sum(f**2 for f in np.meshgrid(*axes, indexing="ij", sparse=True)))
    edge = np.clip((1 / 7 - s) * max(grid[0]) / 2, 0, 1)
    cut = Map(np.fft.ifftn(np.fft.fftn(blurred.density) * edge).real.astype(np.float32), *grid[1:])
    assert spectrum.relative_blur(sharp, cut) == pytest.approx(0.225**2 * 40, rel=0.25)


def noisy(map_, strength):
    """The map in a wider box with noise of this share of its maximum, and the clean one in that box."""
    clean = np.pad(map_.density, 8)
    noise = strength * clean.max() * np.random.default_rng(0).normal(size=clean.shape)
    return [Map(d.astype(np.float32), map_.voxel_size, map_.origin) for d in (clean + noise, clean)]


def test_a_map_without_noise_is_quiet_as_it_is(maps):
    quiet, width = thresholds.denoise(maps[0])
    assert width == 0 and quiet is maps[0]
    assert thresholds.denoise(noisy(maps[0], 0.02)[0])[1] == 0  # 3.5 deviations of 2 % are below 15 %


@pytest.mark.parametrize("strength", [0.05, 0.1])
def test_noise_is_blurred_away_by_no_more_than_it_needs(maps, strength):
    """By one of the widths that grow by sqrt(2) from a voxel: the narrowest whose noise stays below `max_noise`."""
    loud, _ = noisy(maps[1], strength)
    quiet, width = thresholds.denoise(loud)
    steps = 2 * np.log2(width / loud.voxel_size.min())
    assert steps == pytest.approx(round(steps), abs=1e-6) and 0 < width < RULES.max_blur

    def share(width):
        density = ndimage.gaussian_filter(loud.density, width / loud.voxel_size)
        return thresholds.noise_limit(density) / density.max(), density

    assert share(width)[0] <= RULES.max_noise < share(width / np.sqrt(2) if steps > 0.5 else 0)[0]
    np.testing.assert_array_equal(quiet.density, share(width)[1])


def test_the_noise_of_a_target_is_its_own_beside_what_is_empty(maps):
    """Zeros outside a target's own box, or under a mask, do not lower the estimate of its noise."""
    loud, _ = noisy(maps[1], 0.1)
    masked, whole = loud.density.copy(), np.ones_like(loud.density)
    masked[: len(masked) // 4] = 0
    turn = transform.Transform(Rotation.from_rotvec([0.4, 0.5, 0.2]).as_matrix(), np.array([8.0, -5.0, 3.0]))
    moved, masked, within = (
        transform.resampled(replace(loud, density=each), loud, turn).density for each in (loud.density, masked, whole)
    )
    assert np.mean(within < 0.01) > 0.2
    own = thresholds.noise_limit(moved[within > 0.99])
    assert thresholds.noise_limit(moved) == pytest.approx(own, rel=0.1)
    assert thresholds.noise_limit(masked) == pytest.approx(own, rel=0.1)


def test_noise_alone_is_blurred_to_the_widest_at_most():
    noise = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    _, width = thresholds.denoise(Map(noise, np.full(3, 2.0), np.zeros(3)))
    assert RULES.max_blur <= width < np.sqrt(2) * RULES.max_blur * (1 + 1e-9)


def test_the_mass_of_a_noisy_target_is_the_molecule(maps):
    """Noise of a tenth of the maximum: most of the mass stands where the clean map is, and most of that holds mass."""
    (start, _), (loud, clean) = noisy(maps[0], 0.0), noisy(maps[1], 0.1)
    problem = prepare.prepare(start, [loud])
    assert problem.denoising_blurs[0] == thresholds.denoise(loud)[1] ** 2 > 0
    truth = ndimage.gaussian_filter(clean.density, np.sqrt(problem.denoising_blurs[0]) / clean.voxel_size)
    low, high = problem.start, problem.start + problem.initial.shape
    truth = boxes.crop(truth, low, high) > 0.1 * truth.max()
    mass = problem.targets[0]
    assert mass[truth].sum() > 0.85 * mass.sum() and (mass[truth] > 0).mean() > 0.85
    given = prepare.prepare(start, [loud], thresholds=Thresholds(targets=0.8 * float(clean.density.max())))
    assert given.denoising_blurs[0] == 0  # where a level is given, it is the map's
    both = prepare.prepare(start, [loud, start]).select([1])
    assert both.denoising_blurs.shape == (1,) and both.denoising_blurs[0] == 0


@pytest.mark.parametrize("deviation", [0.0, 0.5])
def test_the_power_of_a_signal_is_without_its_noises(deviation):
    rng = np.random.default_rng(0)
    inside = np.zeros((30, 30, 30), bool)
    inside[5:15, 8:20, 10:25] = True
    signal = np.where(inside, rng.uniform(0.5, 1, inside.shape), 0)
    volume = (signal + deviation * rng.normal(size=inside.shape)).astype(np.float32)
    power = targets.signal_power(volume, volume, inside)
    assert power == pytest.approx(np.sum(signal**2), rel=0.1)  # of 27000 voxels' noise
    assert targets.signal_power(volume, volume, inside | True) == pytest.approx(np.sum(volume**2), rel=1e-5)
    assert targets.signal_power(volume * ~inside, volume, inside) >= 0


def test_the_edge_of_a_blurred_molecule_is_not_taken_for_noise(problem):
    """So that no loss lies below zero."""
    each = problem.densities[0], problem.densities[0] * (problem.targets[0] == 0)
    volumes, noise = (targets.at_matched_resolution(problem, density, 2, 0, 4.0) for density in each)
    power = targets.signal_power(volumes, noise, grid.binned(problem.targets[0], 2) > 0)
    assert power == pytest.approx(np.sum(volumes**2), rel=0.01)


def test_the_rigidity_keeps_its_proportion_to_what_a_target_tells(blurring):
    """Less where there is little detail, more where there is noise, and for each target by itself."""

    def held(noise, scale=1.0):
        initial, target, _ = blurring(noise)
        target = Map(scale * target.density, target.voxel_size, target.origin)
        problem = prepare.prepare(initial, [target, initial], Resolutions(3.0, [7.0, 3.0]))
        return [targets.rigidity_factor(problem, number, targets.Balance(noise_weight=0.5)) for number in range(2)]

    (clear, own), (quiet, _), (noisy, _), (louder, _) = map(held, (0.0, 0.3, 1.0, 2.0))
    assert own == pytest.approx(1, abs=0.05)  # 3 Å
    assert clear == pytest.approx(own, abs=2e-3)  # sharpened back to that
    assert quiet < 0.5 * own  # not sharpened any more
    assert louder - quiet == pytest.approx((4 - 0.09) / (1 - 0.09) * (noisy - quiet), rel=0.2) and noisy > 1.1 * quiet
    assert held(1.0, scale=7.0)[0] == pytest.approx(noisy, rel=1e-4)


# Sharpening


@pytest.fixture(scope="module")
def blurring():
    """Two states' maps, 3 Å and 7 Å, and the second as noise of this strength over the molecule's leaves it."""
    start, end = hinge_pair()
    grid = simulation.common_grid([start, end], 1.0, 4.0, padding=22.0)
    initial, target = simulation.simulate_map(start, *grid, 3.0), simulation.simulate_map(end, *grid, 7.0)
    white = np.random.default_rng(0).normal(size=grid[0])

    def make(noise):
        inside = target.density > thresholds.choose_threshold(target.density)
        density = target.density + noise * target.density[inside].std() * white
        return initial, Map(density.astype(np.float32), target.voxel_size, target.origin), inside

    return make


VARIANCE = 0.225**2 * 40  # from 3 Å to 7 Å


def test_sharpening_undoes_a_blur(blurring):
    _, target, _ = blurring(0.0)
    _, end = hinge_pair()
    sharp = simulation.simulate_map(end, target.density.shape, target.voxel_size, target.origin, 3.0)
    found = spectrum.sharpen(target, VARIANCE)
    unlike = np.sum((found.density - sharp.density) ** 2) / np.sum(sharp.density**2)
    before = np.sum((target.density - sharp.density) ** 2) / np.sum(sharp.density**2)
    assert unlike < 0.02 < 0.3 < before  # what the map of 3 Å holds beyond the frequency of Nyquist is left out
    np.testing.assert_array_equal(spectrum.sharpen(target, 0.0).density, target.density)


def test_without_noise_all_of_the_blur_is_undone(blurring):
    initial, target, inside = blurring(0.0)
    assert spectrum.sharpening_variance(initial, target, inside, VARIANCE) == pytest.approx(VARIANCE)
    assert spectrum.sharpening_variance(initial, target, inside, -1.0) == 0  # the target is the sharper one


@pytest.mark.parametrize("noise", [0.01, 0.02, 0.05])
def test_as_much_blur_is_undone_as_leaves_the_noise_its_small_share(blurring, noise):
    """The noise is known here: sharpened by itself, it holds SHARP of the power, and would hold more a step further."""
    initial, target, inside = blurring(noise)
    found = spectrum.sharpening_variance(initial, target, inside, VARIANCE)
    assert 0 < found < VARIANCE
    alone = Map(target.density - blurring(0.0)[1].density, target.voxel_size, target.origin)

    def share(variance):
        return np.sum(spectrum.sharpen(alone, variance).density ** 2) / np.sum(
            spectrum.sharpen(target, variance).density ** 2
        )

    assert share(found) < 1.2 * spectrum.SharpeningRules().max_noise < share(found + 0.2 * VARIANCE)


def test_strong_noise_is_not_sharpened(blurring):
    initial, target, inside = blurring(1.0)
    assert spectrum.sharpening_variance(initial, target, inside, VARIANCE) == 0


def test_what_a_filter_has_taken_out_is_not_sharpened(blurring):
    """A target cut at 7 Å, without noise: undoing its blur would ask the carried map for details that it lacks."""
    initial, target, inside = blurring(0.0)
    axes = np.meshgrid(*(np.fft.fftfreq(n) for n in target.density.shape), indexing="ij", sparse=True)
    kept = sum(f**2 for f in axes) < (1 / 7) ** 2  # voxels of 1 Å
    cut = np.fft.ifftn(np.fft.fftn(target.density) * kept).real.astype(np.float32)
    assert (
        spectrum.sharpening_variance(initial, Map(cut, target.voxel_size, target.origin), inside, VARIANCE)
        < 0.2 * VARIANCE
    )


def test_no_edge_is_sharpened_into_a_wall(blurring):
    """A box that cuts through the tails of the density holds frequencies that the molecule has not."""
    initial, target, inside = blurring(0.0)
    near = slice(int(np.argmax(target.density.max((1, 2)) > 0.05 * target.density.max())), None)
    initial, target = (Map(m.density[near], m.voxel_size, m.origin) for m in (initial, target))
    found = spectrum.sharpening_variance(initial, target, inside[near], VARIANCE)
    assert found < VARIANCE

    def edge(variance):
        power = spectrum.sharpen(target, variance).density ** 2
        return power[[0, 1, -2, -1]].sum() / power.sum()

    assert edge(found) < 0.02 < edge(VARIANCE)


def test_the_fit_compares_with_the_sharpened_target_and_what_blur_is_left(blurring):
    initial, target, _ = blurring(0.05)
    problem = prepare.prepare(initial, [target], Resolutions(3.0, [7.0]))
    gain = problem.blurs[0] - problem.residual_blurs[0]
    assert problem.blurs[0] == pytest.approx(VARIANCE) and 0 < gain < VARIANCE
    sharp = spectrum.sharpen(target, gain).density
    mine = problem.densities[0]
    cut = tuple(slice(s, s + n) for s, n in zip(problem.start, mine.shape, strict=True))
    part = sharp[cut]
    mine = mine[tuple(slice(0, n) for n in part.shape)]
    np.testing.assert_allclose(mine / mine.max(), part / part.max(), atol=1e-4)
    assert targets.matched_widths(problem) == [pytest.approx(np.sqrt(problem.residual_blurs[0]))]


@pytest.mark.parametrize(
    ("sizes", "most"),
    [([[4000, 300]], 4700), ([[900, 900, 900]], 2750), ([[5]], 16), ([[700, 20, 0], [300, 300, 300]], 2150)],
)
def test_parts_of_any_sizes_lie_in_rows_of_one_part_each_with_little_padding(sizes, most):
    rows = arrange_rows(sizes)
    assert sum(own.points.size for own in rows) <= most
    longest = max(map(max, sizes))
    for (points, owner, place), own in zip(rows, sizes, strict=True):
        assert place.shape == (len(own), longest)
        for part, size in enumerate(own):
            where = place[part, :size]
            np.testing.assert_array_equal(points.ravel()[where], part * longest + np.arange(size))
            assert (owner[where // points.shape[1]] == part).all()


@pytest.mark.parametrize("resolution, finest", [(4.0, 8.0), (8.0, 8.0), (12.0, 8.0), (None, 8.0)])
def test_the_mass_of_a_fine_target_is_taken_at_a_coarser_resolution(maps, resolution, finest):
    """As of the target blurred by what its resolution lacks; a coarser one, or one of unknown resolution, as it is."""
    rules = Preparation(thresholds=thresholds.ThresholdRules(finest=finest))
    known = Resolutions(4.0, [resolution]) if resolution else Resolutions()
    problem = prepare.prepare(maps[0], maps[1:2], known, rules=rules)
    width = simulation.SIGMA * np.sqrt(max(finest**2 - (resolution or finest) ** 2, 0.0))
    expected = maps[1].density if not width else ndimage.gaussian_filter(maps[1].density, width / maps[1].voxel_size)
    threshold = thresholds.choose_threshold(expected)
    assert problem.report["targets"][0]["threshold"] == pytest.approx(threshold, rel=1e-5)
    assert problem.denoising_blurs[0] == pytest.approx(width**2) and problem.report["noisy"] == [False]
    given = prepare.prepare(
        maps[0], maps[1:2], known, Thresholds(targets=float(maps[1].density.max() / 3)), rules=rules
    )
    assert given.denoising_blurs[0] == 0
