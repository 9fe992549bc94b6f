"""Every voxel has a part, by labels, masks or a model; the masks of parts add up to one."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from cryotrans_jax.io import atoms, selections
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion import partition
from cryotrans_jax.motion.partition import (
    Partition,
    SmallestPart,
    from_labels,
    from_masks,
    from_model,
    remove_fragments,
)

GRID = np.array([1.5, 2.0, 1.0]), np.array([-7.0, 3.0, 20.0])  # voxel size, origin
SEAM = 2.0  # Å
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
    np.testing.assert_array_equal(selections.select_residues(models[0], text, "--parts"), [*numbers])


def test_a_chain_without_a_name_is_selected_by_none(models):
    model = models[0].clone()
    model[0][0].name = " "
    np.testing.assert_array_equal(selections.select_residues(model, ":2-3", "--parts"), [1, 2])
    with pytest.raises(InputError, match="the model has the chains .no name, as in :1-320."):
        selections.select_residues(model, "A:2-3", "--parts")


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
    shares = np.stack([share.on_grid(support.shape) for share in found.soft_masks(support, SEAM)])
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


def test_a_body_of_a_large_molecule_is_a_domain_or_more():
    assert SmallestPart().fraction(1e5) == SmallestPart.mass
    assert SmallestPart().fraction(3e6) * 3e6 == pytest.approx(SmallestPart.volume)
    assert (
        SmallestPart().fraction(3e5, 3) == SmallestPart.mass / 3
    )  # of three units, each with bodies as large as alone


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


def test_nothing_is_not_divided_into_parts(initial):
    with pytest.raises(InputError, match="no voxel of the map belongs to any part"):
        partition.complete_labels(np.zeros(SHAPE, int), initial)
    assert SmallestPart().fraction(0.0) == SmallestPart.mass
    assert not remove_fragments(np.zeros(SHAPE, int), GRID[0]).any()


def test_label_maps_may_lack_numbers(initial, labels):
    """As they do where a part was deleted: 3 and 90 are parts one and two."""
    found = from_labels(Map(np.where(labels == 7, 3, np.where(labels == 40, 90, 0)).astype(np.float32), *GRID), initial)
    assert sorted(np.unique(found.labels)) == [1, 2]
