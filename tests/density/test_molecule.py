"""The outline of a molecule, with a model and without."""

import numpy as np
import pytest

from cryotrans_jax.density.molecule import OutlineRules, outline
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.io.maps import Map

SIZE = np.array([1.0, 1.0, 2.0])
ORIGIN = np.array([-20.0, 7.0, 100.0])


def outlined(mass, sites=None, **rules):
    """The outline, with residues at these places from the middle of the first voxel."""
    chain = None if sites is None else Chain(sites + ORIGIN, np.zeros(len(sites), bool))
    return outline(Map(mass, SIZE, ORIGIN), chain, OutlineRules(**rules))


def slabs(apart):
    """Two slabs of mass in the middle of a box, with this many empty voxels (1 Å) between them."""
    mass = np.zeros((48, 32, 16), np.float32)
    mass[16:20, 8:24, 4:12] = mass[20 + apart : 24 + apart, 8:24, 4:12] = 0.3
    return mass


@pytest.mark.parametrize(("apart", "filled"), [(4, True), (12, False)])
def test_a_gap_belongs_to_the_molecule_if_it_is_narrow(apart, filled):
    mass = slabs(apart)
    found = outlined(mass)
    assert found[mass > 0].all()
    middle = found[20 : 20 + apart, 12:20, 6:10]
    assert middle.all() if filled else not middle.any()
    assert not found[:14].any() and not found[:, :6].any()  # and no more than the blocks of the coarse grid around


def test_wider_gaps_are_filled_where_the_rules_say_so():
    assert outlined(slabs(12), gap=14.0)[26, 16, 8]


def test_with_a_model_the_molecule_is_where_its_residues_are():
    """And where there is mass; a gap without a residue does not belong to it."""
    mass, site = slabs(4), np.array([[40.0, 16.0, 16.0]])
    found = outlined(mass, site)
    at = np.stack(np.indices(mass.shape), -1) * SIZE
    near = np.linalg.norm(at - site, axis=-1) <= 5.0
    np.testing.assert_array_equal(found, (mass > 0) | near)


def test_residues_outside_of_the_box_are_left_out():
    mass = slabs(4)
    np.testing.assert_array_equal(outlined(mass, np.array([[-60.0, 0.0, 0.0], [500.0, 0, 0]])), mass > 0)
