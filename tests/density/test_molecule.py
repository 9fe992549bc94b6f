"""The outline of a molecule, with a model and without."""

import numpy as np
import pytest
from scipy import ndimage

from cryotrans_jax.density.molecule import OutlineRules, outline
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.io.maps import Map

SIZE = np.array([1.0, 1.0, 2.0])
ORIGIN = np.array([-20.0, 7.0, 100.0])


def side_chains(seed=0):
    """A ball of dense spots as a sharp map shows a molecule, with noise; where it is; and where its mass shows."""
    rng, shape = np.random.default_rng(seed), (48, 48, 24)
    at = np.stack(np.indices(shape), -1) * SIZE
    inside = np.linalg.norm(at - np.array(shape) * SIZE / 2, axis=-1) < 14
    spots = ndimage.gaussian_filter(inside * (rng.random(shape) < 0.05).astype(np.float32), 0.8)
    density = (spots / spots.max() + 0.12 * rng.standard_normal(shape)).astype(np.float32)
    return density, inside, density > 0.5


def overlap(found, expected):
    """Of what either holds, the fraction that both hold."""
    return (found & expected).sum() / (found | expected).sum()


def test_without_a_model_the_molecule_is_what_a_blurred_map_shows():
    density, inside, shown = side_chains()
    found = outline(Map(density, SIZE, ORIGIN), shown)
    assert found[shown].all()
    assert overlap(found, inside) > 0.75 > 0.4 > overlap(shown, inside)
    assert overlap(outline(Map(density, SIZE, ORIGIN), shown, rules=OutlineRules(blur=0.1)), inside) < 0.5


def test_the_volume_of_the_molecule_decides_where_it_is_known():
    density, inside, shown = side_chains()
    volume = 0.5 * inside.sum() * SIZE.prod()
    found = outline(Map(density, SIZE, ORIGIN), shown & False, volume=volume)
    assert found.sum() * SIZE.prod() == pytest.approx(volume, rel=0.1)


def test_with_a_model_the_molecule_is_where_its_residues_are():
    """And where there is mass."""
    density, _, shown = side_chains()
    site = np.array([[40.0, 16.0, 16.0]])
    found = outline(Map(density, SIZE, ORIGIN), shown, Chain(site + ORIGIN, np.zeros(1, bool)))
    at = np.stack(np.indices(shown.shape), -1) * SIZE
    np.testing.assert_array_equal(found, shown | (np.linalg.norm(at - site, axis=-1) <= 5.0))


def test_residues_outside_of_the_box_are_left_out():
    density, _, shown = side_chains()
    far = np.array([[-60.0, 0.0, 0.0], [500.0, 0, 0]])
    np.testing.assert_array_equal(
        outline(Map(density, SIZE, ORIGIN), shown, Chain(far + ORIGIN, np.zeros(2, bool))), shown
    )
