"""Contrast, units, identity and pose are judged from the maps, and no good map is suspected."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryotrans_jax.density import checks, simulation
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import Map


@pytest.fixture(scope="module")
def models():
    return hinge_pair()


@pytest.fixture(scope="module")
def states(models):
    """Both states of the built-in pair at 5 Å on voxels of 2 Å, with room about them."""
    grid = simulation.common_grid(list(models), 2.0, 5.0, padding=16.0)
    return [simulation.simulate_map(model, *grid, 5.0) for model in models]


def noise_of(map_, share):
    """The map with noise of a share of its maximum."""
    noise = np.random.default_rng(1).normal(0, share * map_.density.max(), map_.density.shape)
    return replace(map_, density=(map_.density + noise).astype(np.float32))


def ripples(map_):
    """The map with negative ripples about its density, as sharpening leaves them."""
    fine, coarse = (ndimage.gaussian_filter(map_.density, width) for width in (0.5, 1.5))
    return replace(map_, density=fine + 1.5 * (fine - coarse))


def tight(map_):
    """The map cropped to its molecule, which then touches the faces of the box."""
    box = ndimage.find_objects((map_.density > 0.3 * map_.density.max()).astype(int))[0]
    return replace(map_, density=map_.density[box].copy())


def first_residues(model, count):
    """The first residues of a model of one chain."""
    model = model.clone()
    while len(model[0][0]) > count:
        del model[0][0][count]
    return model


VARIANTS = {
    "clean": lambda m: m,
    "offset and scale": lambda m: replace(m, density=37 * m.density - 5),
    "noise": lambda m: noise_of(m, 0.3),
    "masked": lambda m: replace(m, density=np.where(m.density > 0.1 * m.density.max(), m.density, 0)),
    "sharpened": ripples,
    "sharpened noise": lambda m: noise_of(ripples(m), 0.1),
    "cropped": tight,
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_molecule_is_told_from_its_negative(states, kind):
    map_ = VARIANTS[kind](states[0])
    assert not checks.survey(map_).inverted
    assert checks.survey(replace(map_, density=-map_.density)).inverted or kind == "cropped"


def test_noise_alone_has_no_contrast(states):
    noise = replace(states[0], density=np.random.default_rng(0).normal(size=states[0].density.shape).astype(np.float32))
    assert abs(checks.survey(noise).skewness) < 0.5 and not checks.survey(noise).inverted


@pytest.mark.parametrize("level", [0.0, 4.0])
def test_a_molecule_that_fills_most_of_its_box_is_not_taken_for_an_inverted_one(level):
    """What is common in the box is then the molecule's density, and the solvent is the rest, at the faces."""
    density = np.full((24, 24, 24), level, np.float32)
    density[2:22, 2:22, 2:22] = level + 1
    assert not checks.survey(Map(density, np.full(3, 2.0), np.zeros(3))).inverted


@pytest.mark.parametrize("residues", [22, 140])
def test_voxel_sizes_in_nanometres_are_told_of_a_protein_and_of_a_peptide(models, residues):
    """The first helix alone weighs 2.4 kDa."""
    model = first_residues(models[0], residues)
    map_ = simulation.simulate_map(model, *simulation.common_grid([model], 2.0, 5.0), 5.0)
    kda = checks.survey(map_).kda
    assert 0.7 < 1e3 * kda / atoms.molecular_weight(model) < 2.5
    assert not checks.in_nanometres(map_, kda)
    small = Map(map_.density, 0.1 * map_.voxel_size, 0.1 * map_.origin)
    assert checks.in_nanometres(small, checks.survey(small).kda)


def test_fine_voxels_are_of_a_large_assembly_in_nanometres(states):
    fine = Map(states[0].density, np.full(3, 0.11), np.zeros(3))
    assert checks.in_nanometres(fine, 5.0) and not checks.in_nanometres(replace(fine, voxel_size=np.full(3, 0.4)), 5.0)


def test_one_density_is_the_same_at_any_scale_and_another_state_is_not(states):
    one, other = states
    assert checks.same_density(one, replace(one, density=3 * one.density + 2))
    assert not checks.same_density(one, other)
    low = [replace(m, density=ndimage.gaussian_filter(m.density, 3.0)) for m in states]
    assert not checks.same_density(*low)


def moved(model: gemmi.Structure, turn: float, shift: float) -> gemmi.Structure:
    """The model turned about its middle by so many degrees, and shifted along x by so many Å."""
    xyz = atoms.positions(model)
    rotation = Rotation.from_rotvec(np.radians(turn) * np.array([0.6, 0.8, 0.0])).as_matrix()
    return atoms.with_positions(model, (xyz - xyz.mean(0)) @ rotation.T + xyz.mean(0) + [shift, 0, 0])


@pytest.mark.parametrize("kind", ["clean", "noise", "offset and scale", "sharpened"])
def test_a_model_fits_its_own_map_and_no_other_place_of_it(models, states, kind):
    map_ = VARIANTS[kind](states[0])
    assert checks.fit_of_model(map_, models[0]) > 8 * checks.FITS
    assert checks.fit_of_model(map_, moved(models[0], 2.0, 1.0)) > checks.FITS  # a small error of pose
    for turn, shift in ((90, 0), (0, 30)):
        assert checks.fit_of_model(map_, moved(models[0], turn, shift)) < checks.FITS


@pytest.mark.parametrize("residues", [22, 140])
def test_a_protein_and_a_peptide_fit_their_maps_at_low_resolution(models, residues):
    model = first_residues(models[0], residues)
    map_ = simulation.simulate_map(model, *simulation.common_grid([model], 3.0, 10.0, padding=16.0), 10.0)
    assert checks.fit_of_model(map_, model) > 2 * checks.FITS
