"""Rigid bodies are found in a flow, and no more than it moves; with a symmetry, those of one asymmetric unit."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from cryotrans_jax.density.boxes import points_of_blocks
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.partition import AsymmetricUnit, Partition, replicate_bodies
from cryotrans_jax.motion.rigid_bodies import BodySearch, find_bodies, fit_rigid_motion, from_flow, part_motions


def turned(x, angle, about):
    """Positions turned about the z axis through a point."""
    c, s = np.cos(angle), np.sin(angle)
    return (x - about) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + about


@pytest.fixture(scope="module")
def points():
    """A rod of 900 points, some 5 Å apart, 100 Å long."""
    rng = np.random.default_rng(3)
    return rng.uniform(0, 1, (900, 3)) * [100, 30, 30], rng.uniform(0.5, 1.5, 900)


@pytest.fixture
def halves():
    """A map that a half turn keeps, one half of it as the unit, and labels of two bodies there: of the first its own
    copy, of the second the other one's."""
    inside = np.zeros((24, 24, 4), bool)
    inside[2:22, 6:18] = True
    initial = Map(inside.astype(np.float32), np.full(3, 2.0), np.array([5.0, 0, 0]))
    mass = np.where(np.arange(24)[:, None, None] < 12, initial.density, 0)
    half_turn = np.stack([np.eye(3), np.diag([-1.0, -1, 1])])
    unit = AsymmetricUnit(mass, half_turn, initial.origin + 2.0 * np.array([11.5, 11.5, 0]))
    labels = np.where(mass > 0, np.where(np.arange(24)[:, None] > 11, 4, 1), 0)
    return initial, unit, labels


def test_a_rigid_motion_is_found(points):
    x, mass = points
    turn, shift = fit_rigid_motion(x, turned(x, 0.4, np.array([3.0, 1.0, 0.0])) + [1, 2, 3], mass)
    np.testing.assert_allclose(x @ turn + shift, turned(x, 0.4, np.array([3.0, 1.0, 0.0])) + [1, 2, 3], atol=1e-9)
    assert np.linalg.det(turn) == pytest.approx(1)


def test_what_moves_as_one_is_one_body(points):
    x, mass = points
    for y in (x, turned(x, 0.5, np.zeros(3)) + 10, x + np.random.default_rng(0).normal(0, 0.2, x.shape)):
        found, off = find_bodies(x, y, mass)
        assert len(found.motions) == 1 and not found.owner.any() and len(off) == 1


def test_hinged_bodies_are_found_and_no_more_of_them(points):
    """A third of the rod turns at each end; between them the flow bends, as a network's does, within 5 Å."""
    x, mass = points
    left, right = (turned(x, angle, np.array([at, 15.0, 0])) for angle, at in ((0.5, 33.0), (0.7, 67.0)))
    ramp = [0.5 + 0.5 * np.tanh(side / 2.5) for side in (33 - x[:, :1], x[:, :1] - 67)]
    y = x + ramp[0] * (left - x) + ramp[1] * (right - x)
    found, off = find_bodies(x, y, mass)
    assert len(found.motions) == 3 and len(off) == 4
    assert off[0] > 3 * off[2] and off[3] > BodySearch.gain * off[2]
    expected = np.digitize(x[:, 0], [33, 67])
    far = (np.abs(x[:, 0] - 33) > 6) & (np.abs(x[:, 0] - 67) > 6)
    for body in range(3):
        assert len(set(found.owner[far & (expected == body)])) == 1


def test_every_one_of_an_assemblys_many_bodies_is_found(points):
    """Five rods of which a third turns at one end, each another way: each brings down the whole by little."""
    x, mass = points
    rods = [x + [0, 60 * number, 0] for number in range(5)]
    ends = [
        np.where(rod[:, :1] < 67, rod, turned(rod, angle, np.array([67.0, 60 * number + 15, 0])))
        for number, (rod, angle) in enumerate(zip(rods, (0.3, -0.3, 0.5, -0.5, 0.4), strict=True))
    ]
    found, off = find_bodies(np.concatenate(rods), np.concatenate(ends), np.tile(mass, 5))
    assert len(found.motions) == 6 and off[1] > BodySearch.gain * off[0]  # the whole's rule: one
    owner = found.owner.reshape(5, -1)
    still, moving = owner[:, x[:, 0] < 60], owner[:, x[:, 0] > 74]
    assert len(np.unique(still)) == 1 and (moving == moving[:, :1]).all() and len(np.unique(moving)) == 5


def test_all_parts_of_a_ring_that_opens_are_found():
    """Sixteen blocks in a ring, of which each tilts outwards by itself: no few of them are nearly right."""
    rng = np.random.default_rng(5)
    block, angles = rng.uniform(-1, 1, (60, 3)) * [8, 8, 20], np.arange(16) * np.pi / 8
    ring, opened = (
        [turned(shape + [80, 0, 0], angle, np.zeros(3)) for angle in angles]
        for shape in (block, turned(block[:, [0, 2, 1]], 0.6, np.array([0.0, -20, 0]))[:, [0, 2, 1]])
    )
    x, y, mass = np.concatenate(ring), np.concatenate(opened), np.ones(16 * 60)
    found, off = find_bodies(x, y, mass)
    owner = found.owner.reshape(16, -1)
    assert len(found.motions) == 16 and (owner == owner[:, :1]).all() and len(np.unique(owner)) == 16
    assert off[1] > BodySearch.gain * off[0] and off[-1] < BodySearch.still_rms


@pytest.mark.parametrize("most", [1, 3])
def test_there_are_no_more_bodies_than_allowed(points, most):
    """Of a rod that is cut into five, each of which goes another way."""
    (x, mass), search = points, BodySearch(max_bodies=most)
    away = np.array([[0, 0, 0], [0, 25, 0], [0, 0, 25], [0, -25, 0], [0, 0, -25.0]])
    assert len(find_bodies(x, x + away[(x[:, 0] // 20.01).astype(int)], mass, search=search)[0].motions) == most


@pytest.mark.parametrize("shape", [(9, 7, 11), (6, 8, 10)])
def test_all_mass_is_in_the_points_however_the_box_is_divided(shape):
    """In blocks of three voxels a side, some of which reach beyond the box."""
    density = np.random.default_rng(0).uniform(0.5, 1, shape).astype(np.float32)
    map_ = Map(density, np.full(3, 1.5), np.array([-7.0, 3.0, 20.0]))
    x, mass, filled, factor = points_of_blocks(density, map_.origin, map_.voxel_size, 4.5)
    assert factor.tolist() == [3, 3, 3] and filled.shape == tuple(-(-n // 3) for n in shape)
    assert mass.sum() == pytest.approx(density.sum(), rel=1e-5)
    centre = np.average(np.argwhere(density), axis=0, weights=density.ravel())
    np.testing.assert_allclose(mass @ x / mass.sum(), map_.origin + 1.5 * centre, rtol=1e-5)


def test_a_large_body_has_few_beside_it(points):
    """Of a heavy rod that stays, and eight small ones beside it that go each another way."""
    x, mass = points
    beside = [x[:90] * [0.12, 0.4, 1] + [28 * (k % 4), -40 + 80 * (k // 4), 0] for k in range(8)]
    gone = [small + 20 * np.array([np.cos(k), np.sin(k), (-1) ** k]) for k, small in enumerate(beside)]
    given = *(np.concatenate([x, *each]) for each in (beside, gone)), np.concatenate([mass * 2.5, *[mass[:90]] * 8])
    few, _ = find_bodies(*given)
    largest = np.bincount(few.owner, given[2]).max() / given[2].sum()
    assert len(few.motions) * largest <= BodySearch.max_cost < (len(few.motions) + 1) * largest
    assert len(find_bodies(*given, search=BodySearch(max_cost=20.0))[0].motions) > len(few.motions)


@pytest.mark.parametrize("offset", [0.0, 0.5], ids=["between blocks", "through blocks"])
def test_the_copies_of_a_body_are_one_body_wherever_the_unit_ends(offset):
    """Eight blocks in a ring tilt outwards; a unit is an eighth of the ring."""
    rng = np.random.default_rng(5)
    block, angles = rng.uniform(-1, 1, (200, 3)) * [8, 8, 20], np.arange(8) * np.pi / 4
    tilted = turned(block[:, [0, 2, 1]], 0.6, np.array([0.0, -20, 0]))[:, [0, 2, 1]]
    x, y = (np.concatenate([turned(b + [60, 0, 0], a, np.zeros(3)) for a in angles]) for b in (block, tilted))
    chosen = np.rint(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4) - offset) == 1
    turns = np.stack([turned(np.eye(3), a, np.zeros(3)).T for a in angles])
    centre = np.array([1.0, 2.0, 3.0])
    unit = AsymmetricUnit(np.zeros((1, 1, 1)), turns, centre)
    np.testing.assert_allclose(unit.copies(x + centre)[1], turned(x, np.pi / 4, np.zeros(3)) + centre, atol=1e-9)
    found, off = find_bodies(x[chosen] + centre, y[chosen] + centre, np.ones(chosen.sum()), unit=unit)
    assert len(found.motions) == 1 and off == [pytest.approx(0, abs=1e-6)]
    assert len(np.unique(found.copy)) == (1 if offset == 0 else 2)


def test_labels_of_one_unit_are_repeated(halves):
    """A copy's copy is another copy of the same body."""
    initial, unit, labels = halves
    whole = unit.replicate(labels, initial.density > 0, initial)
    assert ((whole > 0) == (initial.density > 0)).all() and set(np.unique(whole)) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(whole[:12], labels[:12])
    other = whole[::-1, ::-1]
    np.testing.assert_array_equal(whole, np.where(other > 0, (other - 1 ^ 1) + 1, 0))


def test_one_unit_of_bodies_has_shares_that_add_up_to_one(halves):
    """And consists of the first copy of each, wherever the unit that was begun with had it."""
    initial, unit, labels = halves
    inside = initial.density > 0
    parts = replicate_bodies(labels, inside, initial, unit)
    share, bodies = unit.soft_mask(parts, inside), unit.bodies(parts)
    np.testing.assert_allclose((share + share[::-1, ::-1])[inside], 1, atol=1e-5)
    assert share[~inside].max() == 0 and share[5, 8].min() > 0.99 > 0.01 > share[5, 15].max()
    assert (bodies[5, 8] == 1).all() and (bodies[18, 8] == 2).all() and share[18, 8].min() > 0.99


def test_what_moves_as_one_under_a_symmetry_is_one_part(halves):
    """As along the axis of a half turn; across it, each half goes its own way."""
    initial, unit, _ = halves

    def along(xyz, times):
        return (xyz + [0, 0, 8.0])[None]

    def apart(xyz, times):
        return (xyz + np.sign(xyz - unit.centre) * [8.0, 0, 0])[None]

    assert from_flow(along, initial, 0.5, unit)[0].count == 1
    found, _ = from_flow(apart, initial, 0.5, unit)
    assert found.count == 2
    left, right = found.labels[5, 6:18], found.labels[18, 6:18]
    assert (left == left[0, 0]).all() and (right == 3 - left).all()


def test_bodies_of_a_flow_are_parts_of_the_map(points):
    """Of a map that is dense in a box about the rod; a voxel goes with the nearest point."""
    density = np.zeros((60, 20, 20), np.float32)
    density[5:55, 2:18, 2:18] = 1
    initial = Map(density, np.array([2.0, 2.0, 2.0]), np.zeros(3))

    def carry(xyz, times):
        return np.where(xyz[:, :1] < 60, xyz, turned(xyz, 0.6, np.array([60.0, 20.0, 0])))[None]

    found, _ = from_flow(carry, initial, 0.5)
    assert found.count == 2
    first, last = found.part_at(np.array([[20.0, 20, 20], [100.0, 20, 20]]))
    x = np.argwhere(density > 0)[:, 0] * 2.0
    at = found.labels[density > 0] - 1
    assert (at[x < 52] == first).all() and (at[x > 68] == last).all() and first != last
    motions = part_motions(found, carry, initial, 0.5)
    still, moving = motions[first], motions[last]
    assert still.turn < 3 and moving.turn == pytest.approx(np.degrees(0.6), abs=3)
    assert still.share_of_mass + moving.share_of_mass == pytest.approx(1) and moving.shift > 5 > still.shift


@pytest.mark.parametrize("most, apart", [(4000, 5.0), (64, 10.0)])
def test_bodies_are_made_of_points_five_angstroms_apart_or_of_fewer_in_a_large_map(most, apart):
    """Of a cube 40 Å wide on voxels of 2.5 Å, of which blocks of whole ones are taken."""
    asked = []

    def carry(xyz, times):
        asked.append(xyz)
        return xyz[None]

    from_flow(
        carry,
        Map(np.ones((16, 16, 16), np.float32), np.full(3, 2.5), np.zeros(3)),
        0.5,
        search=BodySearch(max_points=most),
    )
    (xyz,) = asked
    assert len(xyz) == (40 / apart) ** 3
    np.testing.assert_allclose(cKDTree(xyz).query(xyz, 2)[0][:, 1], apart, rtol=1e-5)


@pytest.mark.parametrize("across", [0.1, 0.6, 1.0, 4.0])
def test_a_motion_is_that_of_all_copies_up_to_what_they_are_apart_after_it(halves, points, across):
    """A shift along the axis of a half turn is; one by d across it takes the copies 2 d apart."""
    (_, unit, _), (x, _) = halves, points
    motion = np.eye(3), np.array([0.0, across, 7.0])
    assert unit.commutes(motion, x, 2.01 * across) and not unit.commutes(motion, x, 1.99 * across)
    turn = turned(np.eye(3), 0.4, np.zeros(3)), np.array([0, 0, 2.0])
    assert unit.commutes(turn, x, 1e-6)


def test_a_part_too_small_for_a_point_has_no_motion():
    """Points stand for blocks of 5 Å and more, each of which is in the part of its middle."""
    grid = np.array([1.5, 2.0, 1.0]), np.array([-7.0, 3.0, 20.0])
    initial = Map(np.random.default_rng(0).uniform(0.1, 1, (9, 7, 11)).astype(np.float32), *grid)
    labels = np.ones((9, 7, 11), np.int16)
    labels[0, 0, 0] = 2
    motions = part_motions(Partition(labels, *grid), lambda xyz, times: (xyz + [3.0, 0, 0])[None], initial, 0.0)
    assert motions[0].shift == pytest.approx(3) and motions[0].share_of_mass == pytest.approx(1)
    assert motions[1] == (0, 0, 0, 0)


def test_no_bodies_are_found_without_density():
    initial = Map(np.ones((4, 4, 4), np.float32), np.ones(3), np.zeros(3))
    with pytest.raises(InputError, match="no density of the initial map is above 2: give a lower threshold"):
        from_flow(lambda xyz, times: xyz[None], initial, 2.0)
