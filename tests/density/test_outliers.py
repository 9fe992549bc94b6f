"""A handful of absurd voxels changes nothing about a map, and a map without them stays the very same."""

from dataclasses import replace

import numpy as np
import pytest

import cryotrans_jax
from cryotrans_jax.density import contour, thresholds
from cryotrans_jax.density.outliers import outliers, without_outliers

PLACES = {  # of a map of 24 x 20 x 28 voxels
    "alone": [(3, 4, 5)],
    "in the molecule": [(11, 10, 13)],
    "at a corner": [(0, 0, 0)],
    "a cluster": list(np.ndindex(3, 3, 3)),
    "scattered": [(2, 3, 4), (20, 15, 25), (23, 19, 27), (5, 17, 2)],
}


def with_voxels(map_, places, values):
    """The map with values, as multiples of its maximum, in some voxels."""
    density = map_.density.copy()
    density[tuple(np.transpose(places))] = np.multiply(values, density.max())
    return replace(map_, density=density)


@pytest.fixture(scope="module")
def noisy(maps):
    noise = np.random.default_rng(0).normal(0, 0.02 * maps[0].density.max(), maps[0].density.shape)
    return replace(maps[0], density=(maps[0].density + noise).astype(np.float32))


@pytest.mark.parametrize("factor", [1e3, -1e3, 1e6, -1e6])
@pytest.mark.parametrize("kind", PLACES)
def test_a_few_absurd_voxels_change_nothing_else(noisy, kind, factor):
    places = PLACES[kind]
    repaired, found = without_outliers(with_voxels(noisy, places, factor))
    assert sorted(map(tuple, found.voxels.tolist())) == sorted(places)
    changed = np.zeros(noisy.density.shape, bool)
    changed[tuple(np.transpose(places))] = True
    np.testing.assert_array_equal(repaired.density[~changed], noisy.density[~changed])
    assert np.abs(repaired.density).max() <= np.abs(noisy.density).max()
    # the molecule is the one that it was, but for these voxels
    seen = [
        thresholds.apply_threshold(map_, thresholds.choose_threshold(noisy.density), "map")[0] > 0
        for map_ in (noisy, repaired)
    ]
    assert not (seen[0] ^ seen[1])[~changed].any()
    assert without_outliers(repaired) == (repaired, None)


def test_outliers_of_very_different_sizes_are_found_together(noisy):
    places, sizes = PLACES["scattered"], [1e2, -1e4, 1e6, 30]
    assert len(without_outliers(with_voxels(noisy, places, sizes))[1].voxels) == len(places)


def test_a_map_without_outliers_is_the_very_same(maps, noisy):
    for map_ in (*maps, noisy, replace(noisy, density=-noisy.density), replace(noisy, density=noisy.density + 50)):
        same, found = without_outliers(map_)
        assert same is map_ and found is None


def test_more_voxels_than_a_handful_are_a_molecule():
    """On a solvent of 1e-3 the strong voxels are outliers up to so many, and then density."""
    density = np.full((12, 12, 12), 1e-3, np.float32) * np.random.default_rng(0).uniform(1, 2, (12, 12, 12))
    density = density.astype(np.float32)
    density.flat[:100] = 1
    assert len(outliers(density).voxels) == 100
    density.flat[:101] = 1
    assert outliers(density) is None


def test_a_hot_voxel_replaced_leaves_the_level_to_look_at(noisy):
    hot = with_voxels(noisy, [(2, 2, 2)], [1e4])
    levels = [contour.describe(map_, 8.0)["contour"] for map_ in (noisy, without_outliers(hot)[0])]
    assert levels[1] == pytest.approx(levels[0], rel=0.01)


def test_a_fit_in_python_works_on_the_repaired_maps_and_says_so(maps, monkeypatch):
    """As far as the maps come, which are looked at where a problem is made of them."""

    class Prepared(Exception):
        pass

    def stop(initial, targets, *settings, **rules):
        raise Prepared(initial, targets)

    monkeypatch.setattr("cryotrans_jax.fit.morph.prepare.prepare", stop)
    hot = with_voxels(maps[1], [(2, 2, 2)], [1e4])
    with pytest.raises(Prepared) as stopped, pytest.warns(UserWarning, match="10000 times as strong as all others"):
        cryotrans_jax.morph(maps[0], hot, cryotrans_jax.Options(align="none"))
    initial, (target,) = stopped.value.args
    assert initial is maps[0]
    np.testing.assert_array_equal(target.density, without_outliers(hot)[0].density)
