"""Borders run where the parts' flows explain the target, and cut no chain."""

from dataclasses import replace

import numpy as np
import pytest

from cryotrans_jax.density import simulation
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.borders import BorderRules, redraw
from cryotrans_jax.motion.labelling import ChoiceRules, make_blocks
from cryotrans_jax.motion.partition import Partition


@pytest.fixture(scope="module")
def slid():
    """Blobs 8 Å wide in two halves that slide past each other by 9 Å: both maps, the true labels, the flows."""
    size, shape, rng = np.full(3, 1.5), (40, 30, 40), np.random.default_rng(5)
    x = rng.uniform([8, 8, 14], [52, 37, 46], (700, 3))
    shift = np.array([[0, 0, 4.5], [0, 0, -4.5]])
    own = (x[:, 0] > 30).astype(int)
    maps = [
        simulation.simulate_map((at, np.full(len(x), 6.0)), shape, size, np.zeros(3), 4.0) for at in (x, x + shift[own])
    ]
    labels = np.where(np.arange(40)[:, None, None] * 1.5 > 30, 2, 1) * np.ones(shape, int)
    carries = [lambda xyz, times, k=k: (xyz + shift[k])[None] for k in range(2)]
    return *maps, labels, carries, 0.1 * float(maps[0].density.max())


@pytest.mark.parametrize("scale", [1.0, 7.0, 1e-6])
def test_borders_are_drawn_where_the_flows_explain_the_target(slid, scale):
    """From a border that is 6 Å off, whatever the target's scale; and no density beyond its reach changes."""
    initial, target, labels, carries, level = slid
    wrong = Partition(np.roll(labels, 4, axis=0).astype(np.int16), initial.voxel_size, initial.origin)
    wrong.labels[:4] = 1
    found = redraw(wrong, carries, initial, replace(target, density=scale * target.density), level)
    inside = initial.density > level
    share = [(each[inside] == labels[inside]).mean() for each in (wrong.labels, found.labels)]
    assert share[0] < 0.9 and share[1] > 0.95
    far = inside & (np.abs(np.arange(40) * 1.5 - 36) > BorderRules.reach + 1.5 + BorderRules.block)[:, None, None]
    np.testing.assert_array_equal(found.labels[far], wrong.labels[far])


def test_a_part_that_would_vanish_stays(slid):
    initial, target, labels, carries, level = slid
    still = [carries[0], lambda xyz, times: (xyz + 100.0)[None]]  # where there is nothing
    thin = np.where(np.arange(40)[:, None, None] > 36, 2, 1) * np.ones(labels.shape, int)
    given = Partition(thin.astype(np.int16), initial.voxel_size, initial.origin)
    moved = replace(target, density=np.roll(initial.density, 3, axis=2))
    np.testing.assert_array_equal(redraw(given, still, initial, moved, level).labels, given.labels)


def test_parts_stay_where_no_density_is_above_the_threshold(slid):
    """As of an initial map blurred to the resolution of its target."""
    initial, target, labels, carries, _ = slid
    given = Partition(labels.astype(np.int16), initial.voxel_size, initial.origin)
    assert redraw(given, carries, initial, target, 1.01 * float(initial.density.max())) is given


@pytest.mark.parametrize("copies", [1, 2])
def test_a_part_is_no_smaller_than_a_fiftieth_of_one_unit(copies):
    """A blob with 1.5 % of the mass moves aside. It is a part where there are two units, one where there are not."""
    rng, size = np.random.default_rng(6), np.full(3, 1.5)
    x = np.concatenate(
        [rng.uniform([8, 8, 8], [44, 38, 38], (985, 3)), rng.uniform([52, 19, 19], [59, 26, 26], (15, 3))]
    )
    blob = x[:, 0] > 50
    maps = [
        simulation.simulate_map((at, np.full(len(x), 6.0)), (44, 32, 32), size, np.zeros(3), 4.0)
        for at in (x, x + np.outer(blob, [0, 0, 9.0]))
    ]
    carries = [lambda xyz, times, by=by: (xyz + [0, 0, by])[None] for by in (0.0, 9.0)]
    wide = 1 + (np.arange(44) > 26)[:, None, None] * np.ones(maps[0].density.shape, int)
    given = Partition(wide.astype(np.int16), size, np.zeros(3))
    level = 0.3 * float(maps[0].density.max())
    found = redraw(given, carries, *maps, level, *([copies] if copies > 1 else []))  # one is the default
    if copies == 1:
        np.testing.assert_array_equal(found.labels, given.labels)
    else:
        share = (found.labels == 2)[maps[0].density > level].mean()
        assert 0.005 < share < 0.03 and found.labels[37, 14, 14] == 2


def test_empty_space_about_a_map_changes_no_neighbourhood():
    """Density up to the sides of the box, and the same in a box with eight blocks more at each side."""
    density = np.random.default_rng(1).uniform(0.5, 1, (12, 10, 14)).astype(np.float32)
    wide = np.pad(density, 16)
    near, far = (make_blocks(d, Map(d, np.ones(3), np.zeros(3)), BorderRules.block) for d in (density, wide))
    np.testing.assert_allclose(far.x - 16, near.x, atol=1e-4)
    np.testing.assert_allclose(
        far.neighbourhood_sum(far.density, 3.0), near.neighbourhood_sum(near.density, 3.0), rtol=1e-4
    )


def rod(length, at):
    """A map of a rod along x, of so many Å, whose middle is there."""
    x = np.stack([np.linspace(-0.5, 0.5, 2 * length) * length, *np.zeros((2, 2 * length))], -1) + at
    return simulation.simulate_map((x, np.full(len(x), 6.0)), (80, 20, 20), np.ones(3), np.zeros(3), 3.0)


@pytest.mark.parametrize("tie", [0.0, 1.0])
def test_a_chain_is_cut_only_where_nothing_is_to_be_paid_for_that(tie):
    """Half of a rod moves aside, and of a stretch of the other half a little more is found beside it than in place."""
    rules = BorderRules(reach=30.0, choices=ChoiceRules(tie=tie))
    initial = rod(60, (40, 7, 10))
    stays, aside = rod(36, (28, 7, 10)).density, rod(36, (28, 13, 10)).density
    stretch = 0.6 * ((np.arange(80) > 19) & (np.arange(80) < 34))[:, None, None]
    target = replace(initial, density=stays * (1 - stretch) + aside * stretch + rod(24, (58, 13, 10)).density)
    carries = [lambda xyz, times, by=by: (xyz + [0, by, 0])[None] for by in (0.0, 6.0)]
    labels = 1 + (np.arange(80) > 45)[:, None, None] * np.ones(initial.density.shape, int)
    given = Partition(labels.astype(np.int16), initial.voxel_size, initial.origin)
    found = redraw(given, carries, initial, target, 0.3 * float(initial.density.max()), rules=rules)
    along = found.labels[12:68, 7, 10]
    assert np.count_nonzero(np.diff(along)) == (1 if tie else 3)
