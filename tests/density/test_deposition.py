"""A map as deposited has the noise that its resolution implies, and no more detail than that."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from cryotrans_jax.density import deposition
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.density.deposition import Conditions, deposit, random_pose, with_extra, without_side
from cryotrans_jax.density.fsc import fsc
from cryotrans_jax.density.simulation import simulate
from cryotrans_jax.density.spectrum import shell_power
from cryotrans_jax.density.transform import superposing_rotations
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import read_map
from cryotrans_jax.scores.metrics import resolution_at

SHARED = Path(__file__).parents[3] / "shared"  # another simulator of maps as deposited, where it is at hand


@pytest.fixture(scope="module")
def model():
    return hinge_pair()[0]


def mean_fsc(model, conditions, frequencies, voxel_size=1.5, seeds=6):
    """FSC of half-maps within the mask at some frequencies, the mean over a few seeds."""
    curves = []
    for seed in range(seeds):
        found = deposit(model, conditions, voxel_size, seed)
        s, curve = fsc(*(half.density * found.mask.density for half in found.halves), found.map.voxel_size)
        curves.append(np.interp(frequencies, s, ndimage.uniform_filter1d(curve, 3)))
    return np.mean(curves, axis=0)


@pytest.mark.parametrize("resolution, b_factor", [(4.5, None), (6.0, 100.0), (8.0, None)])
def test_the_half_maps_agree_up_to_the_resolution(model, resolution, b_factor):
    """0.99 at half its frequency and 0.143 at it; the box has few coefficients in a shell, hence the tolerance."""
    found = mean_fsc(model, Conditions(resolution, b_factor=b_factor), np.array([0.5, 1.0]) / resolution)
    assert found[0] == pytest.approx(0.99, abs=0.02) and found[1] == pytest.approx(0.143, abs=0.07)


def test_the_wanted_curve_passes_its_two_points():
    np.testing.assert_allclose(deposition.wanted_fsc(np.array([0.5, 1.0]), 0.99), [0.99, 0.143])


def test_the_noise_of_the_halves_is_independent_and_comes_from_the_seed(model):
    a, b, c = (deposit(model, Conditions(6.0), 2.0, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.map.density, b.map.density)
    assert not np.allclose(a.map.density, c.map.density, atol=1e-3)
    solvent = a.mask.density == 0
    first, second = (half.density[solvent] for half in a.halves)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert a.map.density.std() == pytest.approx(1) and a.map.density[solvent].std() < 0.5 * first.std()


def test_scale_and_offset_are_those_of_the_full_map(model):
    plain, other = (deposit(model, Conditions(8.0, scale=s, offset=o), 2.5) for s, o in ((1.0, 0.0), (0.02, -3.0)))
    for a, b in zip((plain.map, *plain.halves), (other.map, *other.halves), strict=True):
        np.testing.assert_allclose(b.density, 0.02 * a.density - 3, atol=1e-5)


def test_b_factors_that_grow_outwards_blur_the_rim_and_not_the_middle(model):
    sharp, grown = (
        deposition.blurred_atoms(model, simulate(model, 3.0), Conditions(3.0, 60.0, growth)) for growth in (0.0, 400.0)
    )
    like = simulate(model, 3.0)
    xyz = atoms.heavy_atoms(model)[0]
    away = np.linalg.norm(xyz - xyz.mean(0), axis=1)
    at = np.rint((xyz - like.origin) / like.voxel_size).astype(int)
    ratio = grown[tuple(at.T)] / sharp[tuple(at.T)]
    assert np.median(ratio[away < 10]) > 0.75 > 0.45 > np.median(ratio[away > np.percentile(away, 90)])
    assert grown.sum() == pytest.approx(sharp.sum(), rel=1e-3)


def test_a_belt_has_density_without_detail(model):
    plain, belted = (deposit(model, Conditions(6.0, 100.0, belt=belt), 2.0) for belt in (False, True))
    ratio = belted.mask.density.sum() / plain.mask.density.sum()
    assert ratio > 1.5  # the belt is larger than the thin built-in protein
    signal = deposition.blurred_atoms(model, plain.map, Conditions(6.0, 100.0))
    extra = deposition.belt_density(model, signal, plain.map, Conditions(6.0, 100.0, belt=True))
    s, power = shell_power(extra, plain.map.voxel_size)
    _, own = shell_power(signal, plain.map.voxel_size)
    fine = (s > 1 / 8) & (s < 1 / 5)
    assert power[fine].sum() / power.sum() < 0.1 * own[fine].sum() / own.sum()
    smooth = ndimage.gaussian_filter(signal, 4.0 / plain.map.voxel_size)
    level = np.median(smooth[deposition.inside(signal, plain.map.voxel_size)])
    assert 0.4 < extra.max() / level < 0.56


def test_sharpening_undoes_the_fall_of_the_amplitudes(model):
    dull, sharpened = (deposit(model, Conditions(4.0, 150.0, sharpen=sharpen), 1.3) for sharpen in (False, True))
    assert dull.sharpening == 0 < sharpened.sharpening
    falls = [
        deposition.guinier_b_factor(each.map.density, each.map.voxel_size, Conditions(4.0))
        for each in (dull, sharpened)
    ]
    assert falls[1] < 0.4 * falls[0]


def test_a_pose_has_the_angle_and_the_shift_that_are_asked_for(model):
    moved = random_pose(model, 40.0, 15.0, 3).move(model)
    before, after = (atoms.positions(each) for each in (model, moved))
    assert np.linalg.norm(after.mean(0) - before.mean(0)) == pytest.approx(15, abs=1e-6)
    rotation = superposing_rotations((before - before.mean(0)).T @ (after - after.mean(0)))
    assert np.degrees(np.arccos((np.trace(rotation) - 1) / 2)) == pytest.approx(40, abs=1e-3)


def test_residues_that_are_lacking_have_no_density_and_the_rest_is_as_without_them(model):
    chain = model[0][0].name
    numbers = [residue.seqid.num for residue in model[0][0]]
    first, last = numbers[0], numbers[len(numbers) // 4]
    cut = model.clone()
    for number in reversed([k for k, found in enumerate(numbers) if first <= found <= last]):
        del cut[0][0][number]
    found, expected = (
        deposit(each, Conditions(6.0, lacking=lacking), 2.0)
        for each, lacking in ((model, f"{chain}:{first}-{last}"), (cut, ""))
    )
    np.testing.assert_array_equal(found.map.density, expected.map.density)
    np.testing.assert_array_equal(found.mask.density, expected.mask.density)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6, 1.0])
def test_a_side_is_left_out_and_the_rest_stays(model, share):
    """The residues left out lie beyond a plane; another seed leaves out another side."""
    before = atoms.positions(model)
    left = without_side(model, share, 1)
    xyz = {tuple(x) for x in np.round(atoms.positions(left), 3)}
    stays = np.array([tuple(x) in xyz for x in np.round(before, 3)])
    count, whole = (sum(map(len, each[0])) for each in (left, model))
    assert count == max(round((1 - share) * whole), 1) and stays.sum() == len(xyz)
    if 0 < share < 1:
        normal = np.random.default_rng(1).standard_normal(3)
        normal /= np.linalg.norm(normal)
        assert (before[stays] @ normal).max() - (before[~stays] @ normal).min() < 8  # Å: two half residues
        other = {tuple(x) for x in np.round(atoms.positions(without_side(model, share, 2)), 3)}
        assert other != xyz
    np.testing.assert_array_equal(atoms.positions(model), before)


@pytest.mark.parametrize("lacking, sentence", [("Q:1-9", "Q:1-9 in --lacking selects no residue"), (None, "whole")])
def test_what_cannot_be_lacking_is_refused(model, lacking, sentence):
    everything = ",".join(chain.name for chain in model[0])
    with pytest.raises(InputError, match=sentence):
        deposit(model, Conditions(6.0, lacking=lacking or everything), 2.0)


@pytest.mark.parametrize("share, seed", [(0.001, 0), (0.2, 1), (0.3, 2), (1.0, 3)])
def test_extra_density_has_its_mass_and_touches_without_overlap(model, share, seed):
    """To a residue's mass; the nearest atoms of the two are in contact, and the model itself stays as it is."""
    (xyz, weights), (every, masses) = (atoms.heavy_atoms(m) for m in (model, with_extra(model, share, seed)))
    np.testing.assert_array_equal(every[: len(xyz)], xyz)
    extra, mass = every[len(xyz) :], masses[len(xyz) :].sum()
    heaviest = max(sum(a.element.atomic_number for a in residue) for chain in model[0] for residue in chain)
    assert -1e-5 < mass / weights.sum() - share < heaviest / weights.sum() + 1e-5
    assert cKDTree(xyz).query(extra)[0].min() == pytest.approx(deposition.CONTACT, abs=1e-4)


def test_extra_density_lies_elsewhere_for_other_seeds_and_is_in_the_box_and_mask(model):
    places = [atoms.positions(with_extra(model, 0.2, seed))[len(atoms.positions(model)) :] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(places[0], places[1])
    assert np.linalg.norm(places[0].mean(0) - places[2].mean(0)) > 10
    found = deposit(model, Conditions(6.0, extra=0.2), 2.0, seed=1)
    at = np.rint((places[0] - found.map.origin) / found.map.voxel_size).astype(int)
    assert found.mask.density[tuple(at.T)].min() > 0.5


def test_the_full_map_has_no_noise_where_the_half_maps_have_nothing_in_common(model):
    """The weight is sqrt(2 FSC / (1 + FSC)); at one and a half times the resolution the FSC is below 0.001."""
    resolution = 8.0
    found = deposit(model, Conditions(resolution), 1.5)
    mean = 0.5 * (found.halves[0].density + found.halves[1].density)
    (s, full), (_, noise) = (shell_power(each, found.map.voxel_size) for each in (found.map.density, mean))
    beyond = s > 1.5 / resolution
    assert beyond.sum() > 10 and (full[beyond] < 0.002 * noise[beyond]).all()


def noise_to_density(map_, xyz):
    """Deviation of the noise beyond 10 Å from the atoms, relative to the median density at the atoms."""
    grid = np.indices(map_.density.shape).reshape(3, -1).T * map_.voxel_size + map_.origin
    away = np.isinf(cKDTree(xyz).query(grid, distance_upper_bound=10.0)[0]).reshape(map_.density.shape)
    at = ndimage.map_coordinates(map_.density, ((xyz - map_.origin) / map_.voxel_size).T, order=1)
    return map_.density[away].std() / np.median(at)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "tools/deposit.py").is_file(), reason="needs ../shared, data and tools")
def test_another_simulator_makes_maps_with_the_same_noise(tmp_path):
    """Its atoms have (0.45 voxel)² more variance than their B-factors, and its mask is narrower by some 2 Å.

    A narrower mask allows of more noise at one FSC; for that the tolerances.
    """
    path, resolution, voxel = SHARED / "data/pairs/groel_subunit/1OEL.pdb", 6.0, 1.3
    command = [SHARED / "tools/deposit.py", path, tmp_path / "other.mrc", f"--resolution={resolution}", "--halves"]
    subprocess.run([sys.executable, *command, f"--voxel={voxel}"], check=True)
    full, *halves = (read_map(tmp_path / f"other{end}.mrc") for end in ("", "_half1", "_half2"))
    model = atoms.read_model(path)
    b_factor = 10 * resolution**2 + 8 * np.pi**2 * (0.45 * voxel) ** 2
    ours = deposit(model, Conditions(resolution, b_factor=b_factor), voxel)
    reached = json.loads((tmp_path / "other.json").read_text())["half_map_fsc_0143"]
    s, curve = fsc(*(half.density * ours.mask.density for half in ours.halves), ours.map.voxel_size)
    assert resolution_at(s, ndimage.uniform_filter1d(curve, 5), 0.143) == pytest.approx(reached, rel=0.04)
    for a, b in ((ours.map, full), (ours.halves[0], halves[0])):
        ratio = noise_to_density(a, atoms.positions(model)) / noise_to_density(b, atoms.positions(model))
        assert ratio == pytest.approx(1, abs=0.2)
    signal = np.arange(0.03, 0.8 / resolution, 0.01)
    amplitudes = []
    for each in (ours.map, full):
        s, power = shell_power(each.density, each.voxel_size)
        amplitudes.append(np.sqrt(np.interp(signal, s, ndimage.uniform_filter1d(power, 3))))
    ratio = amplitudes[0] / amplitudes[1]
    np.testing.assert_allclose(ratio / np.median(ratio), 1, atol=0.15)
