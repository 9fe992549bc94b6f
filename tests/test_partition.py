"""Every voxel has a part, by labels, masks, a model or the bodies of a flow; the masks of parts add up to one."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion import partition
from cryotrans_jax.motion.partition import (
    SEAM,
    Partition,
    find_bodies,
    fit_rigid_motion,
    from_flow,
    from_labels,
    from_masks,
    from_model,
    remove_fragments,
)

GRID = np.array([1.5, 2.0, 1.0]), np.array([-7.0, 3.0, 20.0])  # voxel size, origin
SHAPE = (9, 7, 11)


@pytest.fixture(scope="module")
def initial():
    return Map(np.random.default_rng(0).uniform(0.1, 1, SHAPE).astype(np.float32), *GRID)


@pytest.fixture(scope="module")
def labels():
    """Two labelled blocks that do not touch, and nothing elsewhere."""
    labels = np.zeros(SHAPE, np.float32)
    labels[1:4, 1:3, 2:6], labels[5:8, 3:6, 6:10] = 40, 7
    return labels


def places(shape=SHAPE):
    return GRID[1] + np.argwhere(np.ones(shape, bool)) * GRID[0]


def test_voxels_without_a_label_belong_to_the_nearest_part(initial, labels):
    """Parts are numbered in the order of their labels; found by comparing all distances."""
    found = from_labels(Map(labels, *GRID), initial)
    assert found.count == 2
    near = np.stack(
        [cKDTree(GRID[1] + np.argwhere(labels == value) * GRID[0]).query(places())[0] for value in (7, 40)], axis=1
    )
    clear = np.abs(near[:, 0] - near[:, 1]) > 1e-6
    np.testing.assert_array_equal(found.labels.ravel()[clear], near.argmin(1)[clear] + 1)
    np.testing.assert_array_equal(found.part_at(places()), found.labels.ravel() - 1)


def test_a_partition_that_is_written_and_read_is_the_same(initial, labels):
    first = from_labels(Map(labels, *GRID), initial)
    support = np.random.default_rng(1).uniform(size=SHAPE) < 0.5
    shown = first.to_map(support)
    assert not shown.density[~support].any() and (shown.density[support] > 0).all()
    again = from_labels(shown, initial)
    np.testing.assert_array_equal(again.labels[support], first.labels[support])


def test_of_masks_the_largest_has_the_voxel(initial):
    one = np.clip(np.linspace(2, -1, 9), 0, 1)[:, None, None] * np.ones(SHAPE)
    other = np.clip(np.linspace(-2, 1, 9), 0, 1)[:, None, None] * np.ones(SHAPE)
    found = from_masks([Map(m.astype(np.float32), *GRID) for m in (one, other)], initial)
    np.testing.assert_array_equal(found.labels[one > other], 1)
    np.testing.assert_array_equal(found.labels[one < other], 2)
    with pytest.raises(InputError, match="mask 2 is nowhere the largest"):
        from_masks([Map(m.astype(np.float32), *GRID) for m in (one + 0.1, one)], initial)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda m: replace(m, origin=m.origin + 1), "lies on another grid than the initial map"),
        (lambda m: replace(m, density=m.density + 0.5), "contains values that are not labels"),
        (lambda m: replace(m, density=m.density - 1), "contains values that are not labels"),
        (lambda m: replace(m, density=0 * m.density), "give at least one part"),
    ],
)
def test_what_is_no_label_map_is_refused(initial, labels, change, sentence):
    with pytest.raises(InputError, match=sentence):
        from_labels(change(Map(labels, *GRID)), initial)


def test_voxels_belong_to_the_part_of_the_nearest_selected_atom(models, maps):
    """Residues 4 to 6 are in no selection: what is about them is shared between the others."""
    model, initial = models[0], maps[0]
    found = from_model(model, "A:1-3,A:12-16;A:7-11", initial)
    owner = np.array([1] * 3 + [0] * 3 + [2] * 5 + [1] * 5)
    xyz = atoms.positions(model)
    inside = np.argwhere(initial.density > 0.05 * initial.density.max())
    _, nearest = cKDTree(xyz[owner > 0]).query(initial.origin + inside * initial.voxel_size)
    np.testing.assert_array_equal(found.labels[tuple(inside.T)], owner[owner > 0][nearest])
    assert set(np.unique(found.labels)) == {1, 2}


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("A:1-3;A:3-5", "A:3-5 in --parts selects residues of an earlier part"),
        ("A:1-3;B", "B in --parts selects no residue: the model has the chains A"),
        ("A:20-30", "A:20-30 in --parts selects no residue"),
        ("A:1-3;", "'' in --parts is no selection"),
        ("A:x", "'A:x' in --parts is no selection"),
    ],
)
def test_a_selection_that_selects_nothing_is_refused(models, maps, text, sentence):
    with pytest.raises(InputError, match=sentence):
        from_model(models[0], text, maps[0])


@pytest.mark.parametrize("text, numbers", [("A", range(16)), ("A:5", [4]), ("A:-2-2", [0, 1]), ("A:15-40", [14, 15])])
def test_selections_are_chains_and_residues_by_number(models, text, numbers):
    np.testing.assert_array_equal(partition.select_residues(models[0], text), [*numbers])


def test_a_chain_without_a_name_is_selected_by_none(models):
    model = models[0].clone()
    model[0][0].name = " "
    np.testing.assert_array_equal(partition.select_residues(model, ":2-3"), [1, 2])
    with pytest.raises(InputError, match="the model has the chains .no name, as in :1-320."):
        partition.select_residues(model, "A:2-3")


def test_no_residue_is_torn(models, maps):
    """An atom just across a border goes with its residue."""
    model = models[0].clone()
    residue = model[0][0][7]
    for shift in (-0.5, -0.4, 0.9):
        atom = residue[0].clone()
        atom.pos.z += shift
        residue.add_atom(atom)
    xyz = atoms.positions(model)
    half = maps[0].origin[2] + np.arange(maps[0].density.shape[2]) * maps[0].voxel_size[2] > xyz[7, 2] + 0.3
    cut = Partition(np.where(half, 2, 1) * np.ones(maps[0].density.shape, int), maps[0].voxel_size, maps[0].origin)
    each = cut.of_atoms(model)
    assert len(set(cut.part_at(xyz)[7:11])) == 2 and len(set(each[7:11])) == 1
    np.testing.assert_array_equal(np.delete(each, range(7, 11)), np.delete(cut.part_at(xyz), range(7, 11)))


def test_the_masks_of_parts_add_up_to_one_and_pass_into_each_other_at_the_borders(initial, labels):
    found = from_labels(Map(labels, *GRID), initial)
    support = np.zeros(SHAPE, bool)
    support[1:8, 1:6, 2:10] = True
    shares = np.stack([share.on_grid(support.shape) for share in found.soft_masks(support)])
    np.testing.assert_allclose(shares.sum(0), support, atol=1e-5)  # float32
    inside = support.ravel()
    for part in range(2):
        own = found.labels.ravel() == part + 1
        to_others, to_own = (cKDTree(places()[which & inside]).query(places())[0] for which in (~own, own))
        share = shares[part].ravel()
        np.testing.assert_allclose(share[inside & own & (to_others >= SEAM)], 1, atol=1e-5)
        np.testing.assert_array_equal(share[inside & (to_own >= SEAM)], 0)
        assert (np.abs(share[inside & own & (to_others < SEAM)] - 0.5) <= 0.5).all()
        assert ((share > 0.01) & (share < 0.99) & inside).any()


def turned(x, angle, about):
    """Positions turned about the z axis through a point."""
    c, s = np.cos(angle), np.sin(angle)
    return (x - about) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + about


@pytest.fixture(scope="module")
def points():
    """A rod of 900 points, some 5 Å apart, 100 Å long."""
    rng = np.random.default_rng(3)
    return rng.uniform(0, 1, (900, 3)) * [100, 30, 30], rng.uniform(0.5, 1.5, 900)


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
    assert off[0] > 3 * off[2] and off[3] > partition.GAIN * off[2]
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
    assert len(found.motions) == 6 and off[1] > partition.GAIN * off[0]  # the rule for the whole would find one
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
    assert off[1] > partition.GAIN * off[0] and off[-1] < partition.STILL_RMS


@pytest.mark.parametrize("most", [1, 3])
def test_there_are_no_more_bodies_than_allowed(points, monkeypatch, most):
    """Of a rod that is cut into five, each of which goes another way."""
    x, mass = points
    monkeypatch.setattr(partition, "MAX_BODIES", most)
    away = np.array([[0, 0, 0], [0, 25, 0], [0, 0, 25], [0, -25, 0], [0, 0, -25.0]])
    assert len(find_bodies(x, x + away[(x[:, 0] // 20.01).astype(int)], mass)[0].motions) == most


@pytest.mark.parametrize("shape", [(9, 7, 11), (6, 8, 10)])
def test_all_mass_is_in_the_points_however_the_box_is_divided(shape):
    """In blocks of three voxels a side, some of which reach beyond the box."""
    density = np.random.default_rng(0).uniform(0.5, 1, shape).astype(np.float32)
    map_ = Map(density, np.full(3, 1.5), GRID[1])
    x, mass, filled, factor = partition.mass_points(density, map_, 4.5)
    assert factor.tolist() == [3, 3, 3] and filled.shape == tuple(-(-n // 3) for n in shape)
    assert mass.sum() == pytest.approx(density.sum(), rel=1e-5)
    centre = np.average(np.argwhere(density), axis=0, weights=density.ravel())
    np.testing.assert_allclose(mass @ x / mass.sum(), map_.origin + 1.5 * centre, rtol=1e-5)


def test_a_large_body_has_few_beside_it(points, monkeypatch):
    """Of a heavy rod that stays, and eight small ones beside it that go each another way."""
    x, mass = points
    beside = [x[:90] * [0.12, 0.4, 1] + [28 * (k % 4), -40 + 80 * (k // 4), 0] for k in range(8)]
    gone = [small + 20 * np.array([np.cos(k), np.sin(k), (-1) ** k]) for k, small in enumerate(beside)]
    given = *(np.concatenate([x, *each]) for each in (beside, gone)), np.concatenate([mass * 2.5, *[mass[:90]] * 8])
    few, _ = find_bodies(*given)
    largest = np.bincount(few.owner, given[2]).max() / given[2].sum()
    assert len(few.motions) * largest <= partition.MAX_COST < (len(few.motions) + 1) * largest
    monkeypatch.setattr(partition, "MAX_COST", 20.0)
    assert len(find_bodies(*given)[0].motions) > len(few.motions)


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
    unit = partition.AsymmetricUnit(np.zeros((1, 1, 1)), turns, centre)
    np.testing.assert_allclose(unit.copies(x + centre)[1], turned(x, np.pi / 4, np.zeros(3)) + centre, atol=1e-9)
    found, off = find_bodies(x[chosen] + centre, y[chosen] + centre, np.ones(chosen.sum()), unit=unit)
    assert len(found.motions) == 1 and off == [pytest.approx(0, abs=1e-6)]
    assert len(np.unique(found.copy)) == (1 if offset == 0 else 2)


@pytest.fixture
def halves():
    """A map that a half turn keeps, one half of it as the unit, and labels of two bodies there: of the first its own
    copy, of the second the other one's."""
    inside = np.zeros((24, 24, 4), bool)
    inside[2:22, 6:18] = True
    initial = Map(inside.astype(np.float32), np.full(3, 2.0), np.array([5.0, 0, 0]))
    mass = np.where(np.arange(24)[:, None, None] < 12, initial.density, 0)
    half_turn = np.stack([np.eye(3), np.diag([-1.0, -1, 1])])
    unit = partition.AsymmetricUnit(mass, half_turn, initial.origin + 2.0 * np.array([11.5, 11.5, 0]))
    labels = np.where(mass > 0, np.where(np.arange(24)[:, None] > 11, 4, 1), 0)
    return initial, unit, labels


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
    parts = partition.replicate_bodies(labels, inside, initial, unit)
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


def test_a_body_of_a_large_molecule_is_a_domain_or_more():
    assert partition.smallest_mass(1e5) == partition.MIN_MASS
    assert partition.smallest_mass(3e6) * 3e6 == pytest.approx(partition.MIN_VOLUME)
    assert (
        partition.smallest_mass(3e5, 3) == partition.MIN_MASS / 3
    )  # of three units, each with bodies as large as alone


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
    motions = partition.part_motions(found, carry, initial, 0.5)
    still, moving = motions[first], motions[last]
    assert still.turn < 3 and moving.turn == pytest.approx(np.degrees(0.6), abs=3)
    assert still.share_of_mass + moving.share_of_mass == pytest.approx(1) and moving.shift > 5 > still.shift


@pytest.mark.parametrize("most, apart", [(4000, 5.0), (64, 10.0)])
def test_bodies_are_made_of_points_five_angstroms_apart_or_of_fewer_in_a_large_map(monkeypatch, most, apart):
    """Of a cube 40 Å wide on voxels of 2.5 Å, of which blocks of whole ones are taken."""
    monkeypatch.setattr(partition, "MAX_POINTS", most)
    asked = []

    def carry(xyz, times):
        asked.append(xyz)
        return xyz[None]

    from_flow(carry, Map(np.ones((16, 16, 16), np.float32), np.full(3, 2.5), np.zeros(3)), 0.5)
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


def test_chips_of_a_part_are_no_pieces_of_it():
    labels = np.ones((20, 10, 10), int)
    labels[12:], labels[3:5, 3:5, 3:5], labels[8:11, :, :] = 2, 2, 3  # 8 voxels of 2000 are less than 2 %
    kept = remove_fragments(labels, np.ones(3))
    assert not kept[3:5, 3:5, 3:5].any()
    kept[3:5, 3:5, 3:5] = 2
    np.testing.assert_array_equal(kept, labels)
    few = np.zeros((20, 10, 10), int)
    few[:15], few[17, 5, 5] = 1, 2
    np.testing.assert_array_equal(remove_fragments(few, np.ones(3)), few)  # all that a part has


def test_a_part_too_small_for_a_point_has_no_motion(initial):
    """Points stand for blocks of 5 Å and more, each of which is in the part of its middle."""
    labels = np.ones(SHAPE, np.int16)
    labels[0, 0, 0] = 2
    motions = partition.part_motions(
        Partition(labels, *GRID), lambda xyz, times: (xyz + [3.0, 0, 0])[None], initial, 0.0
    )
    assert motions[0].shift == pytest.approx(3) and motions[0].share_of_mass == pytest.approx(1)
    assert motions[1] == (0, 0, 0, 0)


def test_nothing_is_not_divided_into_parts(initial):
    with pytest.raises(InputError, match="no voxel of the map belongs to any part"):
        partition.complete_labels(np.zeros(SHAPE, int), initial)
    with pytest.raises(InputError, match="no density of the initial map is above 2: give a lower threshold"):
        from_flow(lambda xyz, times: xyz[None], initial, 2.0)
    assert partition.smallest_mass(0.0) == partition.MIN_MASS
    assert not remove_fragments(np.zeros(SHAPE, int), GRID[0]).any()


def test_label_maps_may_lack_numbers(initial, labels):
    """As they do where a part was deleted: 3 and 90 are parts one and two."""
    found = from_labels(Map(np.where(labels == 7, 3, np.where(labels == 40, 90, 0)).astype(np.float32), *GRID), initial)
    assert sorted(np.unique(found.labels)) == [1, 2]
