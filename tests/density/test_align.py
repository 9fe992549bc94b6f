"""A map moves as its model does, any pose is found again, and a pair that lies well is left alone."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryotrans_jax.density import align, simulation
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.density.overlap import Filtered, Overlap, Placement, body, maximise
from cryotrans_jax.density.transform import IDENTITY, Transform, resampled
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, read_map, same_grid

SHARED = Path(__file__).parents[3] / "shared/data"
TURN = Transform(Rotation.from_rotvec([0.4, -0.7, 1.1]).as_matrix(), np.array([13.0, -40.0, 22.0]))


RULES = align.AlignmentSearch()


@pytest.fixture(autouse=True)
def fewer_rotations(monkeypatch, request):
    """The default tests search fewer rotations, and refine fewer; the slow ones, of real maps, all."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(sys.modules[__name__], "RULES", replace(RULES, rotations=200, kept=(16, 4, 2)))


def onto(*args, **options):
    """`align.onto` with the rules of the test."""
    return align.onto(*args, **{"rules": RULES} | options)


def simulated(model, voxel_size, resolution):
    """A model's map in a box of its own."""
    return simulation.simulate_map(model, *simulation.common_grid([model], voxel_size, resolution), resolution)


def posed(model, seed):
    """The model turned anyhow about its middle and shifted by some 60 Å, and the transform that undoes it."""
    middle = atoms.positions(model).mean(0)
    turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    there = Transform(turn, middle + np.random.default_rng(seed).normal(size=3) * 60 - turn @ middle)
    return there.move(model), there.inverse


def error(found, expected, model):
    """Angle (°) between two transforms, and distance (Å) between the middles to which they bring a model."""
    middle = expected.inverse(atoms.positions(model)).mean(0, keepdims=True)
    turn = Rotation.from_matrix(found.rotation @ expected.rotation.T)
    return np.degrees(turn.magnitude()), np.linalg.norm(found(middle) - expected(middle))


@pytest.fixture(scope="module")
def pair():
    """Models of a small protein, closed and open, superposed, and maps at 6 and 7 Å on one grid of wide voxels."""
    closed, opened = hinge_pair()
    opened = atoms.superpose(opened, closed)
    grid = simulation.common_grid([closed, opened], 2.8, 6.0)
    return closed, opened, simulation.simulate_map(closed, *grid, 6.0), simulation.simulate_map(opened, *grid, 7.0)


def test_a_transform_its_inverse_its_matrix_and_a_moved_model_agree(models):
    xyz = atoms.positions(models[0])
    moved = TURN(xyz)
    np.testing.assert_allclose(TURN.inverse(moved), xyz, atol=1e-10)
    columns = TURN.matrix @ np.concatenate([xyz, np.ones((len(xyz), 1))], 1).T
    np.testing.assert_allclose(columns[:3].T, moved, atol=1e-10)
    np.testing.assert_allclose(atoms.positions(TURN.move(models[0])), moved, atol=1e-10)
    assert TURN.angle == pytest.approx(np.degrees(np.linalg.norm([0.4, -0.7, 1.1])))
    first, *_, last = TURN.chimerax(2).removeprefix("view matrix models #2,").split(",")
    assert float(first) == pytest.approx(TURN.rotation[0, 0], abs=1e-6) and float(last) == TURN.shift[2]


def test_resampling_on_its_own_grid_changes_nothing(maps):
    again = resampled(maps[0], maps[1])
    np.testing.assert_allclose(again.density, maps[0].density, atol=1e-5 * maps[0].density.max())  # float32


def test_whole_voxels_are_shifted_exactly_and_outside_is_zero(maps):
    density, size = maps[0].density + 1, maps[0].voxel_size  # not zero at the border
    shifted = Transform(np.eye(3), size * (3, -2, 0))
    moved = resampled(Map(density, size, maps[0].origin), maps[0], shifted).density
    expected = np.zeros_like(density)
    expected[3:, :-2] = density[:-3, 2:]
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_a_map_moves_as_its_model_does(models):
    """Between grids that differ in everything: a turned map is the map of the turned model."""
    voxel, like = np.array([1.4, 1.6, 1.5]), simulated(TURN.move(models[0]), 1.5, 8.0)
    there = resampled(simulated(models[0], voxel, 8.0), like, TURN)
    assert same_grid(there, like) is None
    # half a voxel of blur where an axis gets coarser by 0.1 Å takes 1 - (1 + 0.25 (1.5² - 1.4²) / 1.8²)^-3/2 < 4 %
    np.testing.assert_allclose(there.density, like.density, atol=0.04 * like.density.max())
    assert np.corrcoef(there.density.ravel(), like.density.ravel())[0, 1] > 0.9995


def test_what_a_coarse_grid_cannot_hold_does_not_come_back_as_noise():
    """A wave of 2.5 Å on 1 Å voxels would be one of 15 Å on 3 Å voxels; a wave of 40 Å stays."""
    x = np.arange(96.0)
    short, long = (np.broadcast_to(np.cos(2 * np.pi * x / w)[:, None, None], (96, 8, 8)) for w in (2.5, 40.0))
    like = Map(np.zeros((28, 2, 2), np.float32), np.full(3, 3.0), np.array([6.0, 2.5, 2.5]))
    kept = [resampled(Map(v.astype(np.float32), np.ones(3), np.zeros(3)), like).density for v in (short, long)]
    # exp(-2π² σ² / w²) with σ² = (3² - 1²) / 4
    assert np.abs(kept[0]).max() < 1.5 * np.exp(-2 * np.pi**2 * 2 / 2.5**2)
    expected = np.cos(2 * np.pi * (6 + 3 * np.arange(28)) / 40) * np.exp(-2 * np.pi**2 * 2 / 40**2)
    np.testing.assert_allclose(kept[1][2:-2, 1, 1], expected[2:-2], atol=0.2)  # the box is thin across


def test_even_rotations_leave_no_gap():
    """2000 rotations of one cell each, (8π² / 2000)^(1/3) = 20° apart: none is further than that from its next."""
    rotations = align.even_rotations(2000)
    anything = Rotation.random(300, rng=np.random.default_rng(0))
    nearest = np.abs(anything.as_quat() @ rotations.as_quat().T).max(1)
    assert np.degrees(2 * np.arccos(nearest)).max() < 20
    assert np.abs(rotations.as_matrix().mean(0)).max() < 0.01


@pytest.mark.parametrize("sharp", [True, False])
@pytest.mark.parametrize("resolution", [6.0, 10.0])
def test_a_body_overlaps_with_itself_by_one_and_nowhere_by_more(maps, sharp, resolution):
    mass = body(maps[0])
    overlap = Overlap(Filtered(mass, resolution, sharp), mass)
    assert overlap.score(Rotation.identity(), np.zeros(3))[0] == pytest.approx(1, abs=1e-5)  # sums in float32
    for seed in range(5):
        value = overlap.score(Rotation.random(rng=np.random.default_rng(seed)), np.array([2.0, -1.0, seed]))[0]
        assert value < 0.95


def test_the_overlap_is_the_correlation_of_the_blurred_maps(maps):
    """Against maps of the whole density simulated at the resolution, where it is not sharp; points cost 2 %."""
    fixed, moving = (body(m, 0.0) for m in maps[:2])
    resolution = 12.0
    blurred = [ndimage.gaussian_filter(m.density, 0.225 * resolution / m.voxel_size) for m in maps[:2]]
    expected = np.sum(blurred[0] * blurred[1]) / np.sqrt(np.sum(blurred[0] ** 2) * np.sum(blurred[1] ** 2))
    present = moving.centre - fixed.centre
    found = Overlap(Filtered(fixed, resolution, False), moving).score(Rotation.identity(), present)[0]
    assert found == pytest.approx(expected, abs=0.02)


def test_gradients_of_the_overlap_are_those_of_finite_differences(pair):
    fixed, moving = (body(m) for m in pair[2:])
    overlap = Overlap(Filtered(fixed, 8.0, True), moving)
    pose, shift, step = Rotation.from_rotvec([0.1, 0.1, -0.2]), np.array([1.0, -2.0, 0.5]), 1e-2
    _, by_turn, by_shift = overlap.score(pose, shift)
    for axis in np.eye(3):
        ends = [overlap.score(pose, shift + s * axis)[0] for s in (-step, step)]
        assert by_shift @ axis == pytest.approx(
            (ends[1] - ends[0]) / 2 / step, abs=0.02 * float(np.abs(by_shift).max())
        )
        ends = [overlap.score(Rotation.from_rotvec(0.1 * s * axis) * pose, shift)[0] for s in (-step, step)]
        assert by_turn @ axis == pytest.approx(
            (ends[1] - ends[0]) / 0.2 / step, abs=0.02 * float(np.abs(by_turn).max())
        )


def test_all_shifts_together_find_the_best_that_each_finds_alone(pair):
    """Splatted on the grid of the search, a pose scores a little less than it is worth; its best shift is the best."""
    fixed, moving = (body(m) for m in pair[2:])
    overlap = Overlap(Filtered(fixed, 12.0, False), moving)
    scores = {}
    for pose in overlap.scan_shifts(align.even_rotations(6)):
        alone = overlap.score(pose.rotation, pose.shift)[0]
        assert 0.8 * alone < pose.score < 1.02 * alone
        around = [overlap.score(pose.rotation, pose.shift + 15 * step)[0] for step in (*np.eye(3), *-np.eye(3))]
        assert alone > max(around)
        scores[alone] = pose
    best = scores[max(scores)]
    (free,), (near,) = maximise([overlap], [best], 1e-8), maximise([overlap], [best], 1e-8, reach=0.5)
    assert align.refine_once(overlap, [best], 1e-8)[0].score == free.score
    assert free.score >= max(scores)
    assert max(scores) <= near.score <= free.score + 1e-6 and np.abs(near.shift - best.shift).max() <= 0.5


def test_any_pose_of_another_state_is_found_from_other_grids(pair):
    """As near the initial state as the least squares of paired atoms bring it, or nearly."""
    closed, opened, initial, _ = pair
    moved, _ = posed(opened, 1)
    elsewhere = simulated(moved, np.array([2.6, 2.8, 2.4]), 7.0)
    target, found = onto(initial, elsewhere)
    assert same_grid(target, initial) is None and found.status == "aligned" and found.inside > 0.99
    there = found.transform.move(moved)
    best, reached = (np.sqrt(np.mean((atoms.positions(m) - atoms.positions(closed)) ** 2)) for m in (opened, there))
    assert best < reached < 1.3 * best
    np.testing.assert_array_equal(target.density, resampled(elsewhere, initial, found.transform).density)
    exact = simulation.simulate_map(there, *grid_of(initial), 7.0).density
    assert np.corrcoef(target.density.ravel(), exact.ravel())[0, 1] > 0.99  # splines on voxels of 2.8 Å
    fit = found.agreement
    assert fit.overlap > fit.overlap_before + 0.1 and fit.correlation > fit.correlation_before + 0.1
    assert found.moved > 10


def grid_of(map_):
    """A map's shape, voxel size and origin."""
    return map_.density.shape, map_.voxel_size, map_.origin


@pytest.mark.slow
def test_a_part_in_noise_finds_its_place(pair):
    """Two thirds of the molecule, with noise as strong as the density."""
    closed, _, initial, _ = pair
    part = closed.clone()
    residues = part[0][0]
    for _ in range(len(residues) // 3):
        del residues[len(residues) - 1]
    moved, back = posed(part, 2)
    target = simulated(moved, 1.5, 6.0)
    inside = target.density > 0.05 * target.density.max()
    noise = np.random.default_rng(0).normal(size=target.density.shape) * target.density[inside].std()
    found = onto(initial, Map((target.density + noise).astype(np.float32), *grid_of(target)[1:]))[1]
    angle, distance = error(found.transform, back, part)
    assert angle < 2 and distance < 1


def test_a_pair_that_lies_well_is_left_as_it_is(pair):
    _, _, initial, target = pair
    same, found = onto(initial, target)
    assert same is target and found.transform is IDENTITY and found.status == "already aligned"
    assert found.agreement.overlap == found.agreement.overlap_before
    same, found = onto(initial, initial)
    assert same is initial and found.agreement.correlation == pytest.approx(1, abs=1e-5)


def test_a_small_slip_of_one_state_is_mended_the_same_way_each_time(pair):
    closed, _, initial, _ = pair
    slip = Transform(Rotation.from_rotvec([0.05, 0.04, -0.06]).as_matrix(), np.array([1.0, -2.0, 1.5]))
    target = simulation.simulate_map(slip.move(closed), *grid_of(initial), 6.0)
    found, again = (onto(initial, target)[1] for _ in range(2))
    angle, distance = error(found.transform, slip.inverse, closed)
    assert angle < 0.5 and distance < 0.2
    np.testing.assert_array_equal(found.transform.matrix, again.transform.matrix)  # as every process needs it


def test_the_mirror_image_is_told_from_the_map(pair):
    closed, _, initial, _ = pair
    target = simulated(posed(closed, 3)[0], 2.6, 6.0)
    flipped = Map(target.density[:, ::-1].copy(), target.voxel_size, target.origin)
    found = align.align_bodies(body(initial), body(flipped), check_hand=True, rules=RULES).agreement
    assert found.wrong_hand and found.mirrored > 0.9  # of one state
    assert not found._replace(best=found.mirrored, mirrored=found.best).wrong_hand
    assert not found._replace(mirrored=None).wrong_hand


def test_the_hand_of_a_target_that_stays_where_it_is_is_checked_too(pair):
    initial = pair[2]
    moved = Map(initial.density, initial.voxel_size, initial.origin + 4)
    found = onto(initial, moved, "none", check_hand=True, rules=replace(RULES, rotations=2, kept=(2, 1, 1)))[1]
    assert found.transform is IDENTITY and found.status == "in its given pose" and found.moved == 0
    assert found.agreement.overlap == found.agreement.overlap_before < 0.9  # that of the pose in which it stays
    assert found.agreement.best > 0.9 and not found.agreement.wrong_hand


def test_a_point_cannot_be_aligned(pair):
    """As a wrong threshold leaves it: it has no orientation."""
    _, _, start, end = pair
    top = float(end.density.max())
    with pytest.raises(
        InputError, match="the density of the target map above its threshold is hardly larger than a voxel"
    ):
        onto(start, end, target_threshold=top)


def test_without_alignment_a_target_stays_where_its_origin_puts_it(pair):
    closed, opened, *_ = pair
    grid = simulation.common_grid([closed, opened], 1.0, 3.0)
    initial, target = simulation.simulate_map(closed, *grid, 3.0), simulation.simulate_map(opened, *grid, 7.0)
    elsewhere = simulated(opened, 0.9, 7.0)
    there, found = onto(initial, elsewhere, "none")
    assert found.transform is IDENTITY and found.agreement is None
    np.testing.assert_allclose(there.density, target.density, atol=0.03 * target.density.max())  # voxels of 0.9 Å
    with pytest.raises(InputError, match=r"only 0 % of the target map's mass lies in the initial map's box: align"):
        onto(initial, Map(elsewhere.density, elsewhere.voxel_size, elsewhere.origin + 300), "none")
    with pytest.raises(InputError, match="no alignment 'best': choose auto or none"):
        onto(initial, elsewhere, "best")
    with pytest.raises(InputError, match="target map has no density above the threshold 99"):
        onto(initial, elsewhere, target_threshold=99.0)


def real_map(name):
    """A model and its map at 3 Å, or a real map with its model."""
    if name == "adk":
        model = atoms.read_model(SHARED / "pairs/adk/open.pdb")
        return model, simulated(model, 1.0, 3.0)
    folder = SHARED / "maps/formats"
    return atoms.read_model(folder / "trpv1_model.pdb"), read_map(folder / "trpv1_noncubic.mrc")


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data in ../shared/data")
@pytest.mark.parametrize("name", ["adk", "trpv1"])
def test_twenty_poses_of_a_real_map_are_found(name):
    """The map itself, turned and shifted anyhow, on 1.3 Å voxels: within 2° and 1 Å, in 30 s of two cores."""
    model, initial = real_map(name)
    right, seconds = 0, []
    for seed in range(20):
        _, back = posed(model, seed)
        there = back.inverse
        corners = initial.origin + np.array(list(np.ndindex(2, 2, 2))) * initial.density.shape * initial.voxel_size
        low, high = there(corners).min(0), there(corners).max(0)
        shape = tuple(int(n) for n in np.ceil((high - low) / 1.3) + 1)
        target = resampled(initial, Map(np.zeros(shape, np.float32), np.full(3, 1.3), low), there)
        begin = time.process_time()
        found = onto(initial, target)[1]
        seconds.append(time.process_time() - begin)
        angle, distance = error(found.transform, back, model)
        right += angle < 2 and distance < 1
        print(f"{name} {seed}: {angle:.2f}°, {distance:.2f} Å, {seconds[-1]:.1f} s of one core, {found.status}")
    assert right >= 19 and max(seconds) < 60


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data in ../shared/data")
@pytest.mark.parametrize("names", [("adk/open", "adk/closed_on_open"), ("groel_subunit/1OEL", "groel_subunit/1SX4")])
def test_real_pairs_that_were_superposed_keep_their_pose(names):
    start, end = (atoms.read_model(SHARED / f"pairs/{name}.pdb") for name in names)
    found = onto(simulated(start, 1.0, 3.0), simulated(end, 1.3, 7.0))[1]
    assert found.status == "already aligned" and found.transform is IDENTITY


def test_bodies_that_are_refined_together_end_where_each_ends_alone(pair):
    """Bodies are padded to the largest, and their points are summed in chunks."""
    fixed, moving = (body(m) for m in pair[2:])
    target = Filtered(fixed, 8.0, True)
    several = [Overlap(target, moving, spacing) for spacing in (1.0, 1 / 3, 0.5)]
    assert len({-(-len(overlap.points[1]) // 128) for overlap in several}) > 1
    begin = [Placement(Rotation.from_rotvec([0.1 * k, 0, 0.1]), np.array([1.0, k, 0.0]), 0.0) for k in range(3)]
    together = maximise(several, begin, 1e-7)
    for overlap, start, found in zip(several, begin, together, strict=True):
        (alone,) = maximise([overlap], [start], 1e-7)
        assert found.score == pytest.approx(alone.score, abs=1e-6)
        np.testing.assert_allclose(found.shift, alone.shift, atol=1e-3)
        assert found.score == pytest.approx(overlap.score(found.rotation, found.shift)[0], abs=1e-5)
        assert found.score > overlap.score(*start[:2])[0]
    assert maximise([], [], 1e-7) == []
