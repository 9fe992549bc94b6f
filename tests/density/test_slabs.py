"""What is computed a slab at a time is what would be computed at once."""

import numpy as np
import pytest
from scipy import ndimage

from cryotrans_jax.density import slabs
from cryotrans_jax.density.fsc import fsc
from cryotrans_jax.density.spectrum import shell_power
from cryotrans_jax.io.maps import radial_frequency

SHAPE, SIZE = (37, 30, 25), np.array([1.1, 0.9, 1.3])


@pytest.fixture(params=[1, 30 * 25 * 7, 1 << 22])
def thin(request, monkeypatch):
    """Slabs of one layer, of seven, and of the whole grid."""
    monkeypatch.setattr(slabs, "VOXELS", request.param)


def test_slabs_cover_a_grid_once(thin):
    layers = [layer for rows in slabs.slabs(SHAPE) for layer in range(SHAPE[0])[rows]]
    assert layers == list(range(SHAPE[0]))


@pytest.mark.parametrize("reach", [2.0, 6.0, 100.0])
def test_distances_are_those_of_the_whole_grid_up_to_the_reach(thin, reach):
    inside = np.zeros(SHAPE, bool)
    inside[3, 4, 5] = inside[20:24, 10, 10:20] = inside[36, 29, 0] = True
    whole = ndimage.distance_transform_edt(~inside, sampling=SIZE)
    found = slabs.distance_within(reach, inside, SIZE)
    assert found.dtype == np.float32 and ((found < np.inf) == (whole <= reach)).all()
    np.testing.assert_allclose(found[whole <= reach], whole[whole <= reach], rtol=1e-6)


def test_nothing_is_near_a_mask_without_voxels(thin):
    assert np.isinf(slabs.distance_within(5.0, np.zeros(SHAPE, bool), SIZE)).all()


def test_shells_are_as_wide_as_the_inverse_of_the_side(thin):
    expected = np.rint(40.0 * radial_frequency(SHAPE, SIZE)).ravel()
    for count in (int(expected.max()) + 1, 7):  # beyond the last shell all have its number
        found = np.concatenate([number for _, number in slabs.shells(SHAPE, SIZE, 40.0, count)])
        np.testing.assert_array_equal(found, np.minimum(expected, count))


def test_spectra_do_not_depend_on_the_slabs(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    at_once = fsc(a, a + b, SIZE), shell_power(a, SIZE)
    monkeypatch.setattr(slabs, "VOXELS", 30 * 13 * 4)
    np.testing.assert_allclose((fsc(a, a + b, SIZE)), at_once[0], atol=1e-12)
    np.testing.assert_allclose(shell_power(a, SIZE), at_once[1], rtol=1e-6)
    assert shell_power(a, SIZE)[1][1:].mean() == pytest.approx(a.size, rel=0.05)  # of white noise of variance 1
