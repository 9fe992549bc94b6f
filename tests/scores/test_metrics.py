"""Fourier shell correlation, correlation and displacement obey their laws and agree with a judge."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from cryotrans_jax.density import similarity, simulation
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.density.fsc import fsc
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, write_map
from cryotrans_jax.scores import metrics
from tests.nucleic import bent_rna

SHARED = Path(__file__).parents[3] / "shared"
needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs ../shared, data and tools")
VOXEL = np.array([1.1, 1.0, 1.2])


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(size=(2, 33, 30, 28)).astype(np.float32)


def score(*arguments):
    command = [sys.executable, str(SHARED / "tools/score.py"), *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def test_fsc_is_one_against_itself_and_minus_one_against_its_negative(noise):
    frequency, curve = fsc(noise[0], noise[0], VOXEL)
    np.testing.assert_allclose(curve, 1, atol=1e-12)
    np.testing.assert_allclose(fsc(noise[0], -noise[0], VOXEL)[1], -1, atol=1e-12)
    assert frequency[0] == 0 and frequency[-1] <= 0.5 / VOXEL.max() < frequency[-1] + frequency[1]


def test_fsc_is_symmetric_and_blind_to_scale_offset_and_common_shift(noise):
    a, b = noise[0], noise[0] + noise[1]
    curve = fsc(a, b, VOXEL)[1]
    np.testing.assert_allclose(fsc(b, a, VOXEL)[1], curve, atol=1e-12)
    np.testing.assert_allclose(fsc(3 * a, 0.2 * b, VOXEL)[1], curve, atol=1e-6)
    np.testing.assert_allclose(fsc(a + 5, b - 2, VOXEL)[1][1:], curve[1:], atol=1e-6)
    shifted = (np.roll(v, (3, -2, 5), (0, 1, 2)) for v in (a, b))
    np.testing.assert_allclose(fsc(*shifted, VOXEL)[1], curve, atol=1e-12)


def test_fsc_does_not_depend_on_which_axis_is_halved(noise):
    a, b = noise[0], noise[0] + noise[1]
    curve = fsc(a, b, VOXEL)[1]
    for axes in ((1, 2, 0), (2, 0, 1), (0, 2, 1)):
        np.testing.assert_allclose(fsc(a.transpose(axes), b.transpose(axes), VOXEL[list(axes)])[1], curve)


def test_fsc_equals_sums_over_the_whole_transform(noise):
    a, b, voxel = noise[0].astype(float), (noise[0] + noise[1]).astype(float), VOXEL
    fa, fb = np.fft.fftn(a), np.fft.fftn(b)
    s = np.stack(np.meshgrid(*map(np.fft.fftfreq, a.shape, voxel), indexing="ij"))
    side = (np.array(a.shape) * voxel).min()
    shell = np.round(np.linalg.norm(s, axis=0) * side)
    frequency, curve = fsc(a, b, voxel)
    for k in range(len(curve)):
        at = shell == k
        slow = (fa[at] * fb[at].conj()).sum().real / np.linalg.norm(fa[at]) / np.linalg.norm(fb[at])
        np.testing.assert_allclose(curve[k], slow, atol=1e-9)
        np.testing.assert_allclose(frequency[k], k / side)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_what_the_target_lacks_is_the_share_of_mass_in_what_was_taken_out(share):
    """Of balls of one size, 25 Å apart, and whatever the scale; a quarter of them is one of four."""
    at = np.stack(np.meshgrid(*map(np.arange, (64, 64, 16)), indexing="ij"), -1) * 1.0
    centres = [(20, 20, 8), (20, 45, 8), (45, 20, 8), (45, 45, 8)]
    balls = [np.exp(-0.5 * ((at - centre) ** 2).sum(-1) / 9) for centre in centres]
    kept = sum(balls[int(4 * share) :], np.zeros(at.shape[:3]))
    assert metrics.missing_mass(sum(balls), 3 * kept, np.ones(3), 3.0) == pytest.approx(share, abs=0.01)


def test_a_displacement_below_the_width_lacks_little():
    x = np.arange(48.0)
    a, b = (np.exp(-0.5 * ((x - c) / 4) ** 2)[:, None, None] * np.ones((1, 8, 8)) for c in (20.0, 21.0))
    assert (
        0
        < metrics.missing_mass(a, b, np.ones(3), 3.0)
        < 0.15
        < metrics.missing_mass(a, np.roll(b, 12, 0), np.ones(3), 3.0)
    )


def test_signal_with_equal_noise_correlates_by_the_square_root_of_a_half(noise):
    """E FSC(f, f + n) = 1 / sqrt(1 + |n|^2 / |f|^2)."""
    curve = fsc(noise[0], noise[0] + noise[1], 1.0)[1]
    np.testing.assert_allclose(curve[8:], np.sqrt(0.5), atol=0.05)  # shells of over 800 terms: 1 / sqrt(800)


def test_a_map_without_power_correlates_by_zero(noise):
    assert not fsc(noise[0], 0 * noise[0], 1.0)[1].any()


def test_resolution_is_read_off_a_straight_line():
    frequency = np.arange(6) * 0.1
    assert metrics.resolution_at(frequency, np.array([1, 0.9, 0.7, 0.3, 0.9, 0]), 0.5) == pytest.approx(1 / 0.25)
    assert metrics.resolution_at(frequency, np.ones(6), 0.5) == pytest.approx(1 / 0.5)
    assert metrics.resolution_at(frequency, np.zeros(6), 0.5) == pytest.approx(1 / 0.1)


def test_correlation_is_blind_to_scale_and_offset(noise):
    assert similarity.correlation(noise[0], 2 * noise[0] + 7) == pytest.approx(1)
    assert similarity.correlation(noise[0], -noise[0]) == pytest.approx(-1)


def test_maps_on_different_grids_are_refused(noise):
    a = Map(noise[0], VOXEL, np.zeros(3))
    with pytest.raises(InputError, match="different grids .*origin"):
        metrics.map_fsc(a, Map(noise[0], VOXEL, np.ones(3)))


@needs_shared
def test_map_scores_agree_with_the_judge(tmp_path):
    first, second = (SHARED / f"data/pairs/adk/{name}.pdb" for name in ("open", "closed_on_open"))
    models = [atoms.read_model(path) for path in (first, second)]
    grid = simulation.common_grid(models, np.array([1.6, 1.5, 1.7]), 5.0)
    maps = [simulation.simulate_map(model, *grid, 5.0) for model in models]
    for name, map in zip(("a.mrc", "b.mrc"), maps, strict=True):
        write_map(tmp_path / name, map)
    judged = score("map", tmp_path / "a.mrc", tmp_path / "b.mrc")
    for threshold in (0.5, 0.143):
        ours = metrics.resolution_at(*metrics.map_fsc(*maps), threshold)
        assert ours == pytest.approx(judged[f"fsc_{threshold}"], rel=1e-3)
    assert similarity.correlation(*(map.density for map in maps)) == pytest.approx(judged["correlation"], abs=1e-3)
    judged = score("map", tmp_path / "a.mrc", second, "--resolution", 5)
    assert metrics.resolution_at(*metrics.model_map_fsc(maps[0], models[1], 5.0), 0.5) == pytest.approx(
        judged["fsc_0.5"], rel=1e-3
    )


@needs_shared
def test_displacements_agree_with_the_judge():
    paths = [SHARED / f"data/pairs/serca/image{k}.pdb" for k in (31, 57, 10)]
    judged = score("model", *paths[:2], "--moved", paths[2])
    ours = metrics.ca_displacement(*(atoms.read_model(path) for path in paths))
    assert ours == pytest.approx(judged, abs=1e-3)


def test_displacement_of_a_shift_is_the_shift(tmp_path):
    line = "ATOM      1  CA  ALA A{:4d}    {:8.3f}   0.000   0.000  1.00 20.00           C\n"
    (tmp_path / "a.pdb").write_text("".join(line.format(k, 3.8 * k) for k in range(1, 9)) + "END\n")
    start = atoms.read_model(tmp_path / "a.pdb")
    xyz = atoms.positions(start)
    shift = np.where(np.arange(8)[:, None] < 6, 0.0, [[0, 0, 4.0]])  # two atoms move by 4 Å
    target, near = atoms.with_positions(start, xyz + shift), atoms.with_positions(start, xyz + 0.75 * shift)
    expected = dict(n=8, rmsd=0.5, median=0, max=1, initial_rmsd=2, moved_n=2, moved_rmsd=1, moved_initial_rmsd=4)
    assert metrics.ca_displacement(near, target, start) == pytest.approx(expected)
    assert metrics.ca_displacement(start, start, start)["moved_n"] == 0


def test_a_path_is_as_far_as_its_models_are_from_the_nearest_frames():
    """Frames along a line a unit apart; a path beside it, 3 off, whose models stand at frames or half way between."""
    line = np.arange(5.0)[:, None, None] * [1.0, 0, 0] + np.zeros((5, 7, 3))
    path = np.array([1.0, 2.5])[:, None, None] * [1.0, 0, 0] + [0, 3.0, 0] + np.zeros((2, 7, 3))
    assert metrics.path_distance(line, path) == pytest.approx((3 + np.hypot(3, 0.5)) / 2)
    assert metrics.path_distance(path, path) == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_matched_maps_are_alike_at_one_resolution_and_scale(sign):
    """The sharper of both is blurred; what differs afterwards is what one of them has alone."""
    sharp = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=(24, 20, 28)), 1.5)
    soft = ndimage.gaussian_filter(sharp, 3.0 / VOXEL, mode="constant")
    maps = [Map(d.astype(np.float32), VOXEL, np.zeros(3)) for d in (2 * sharp, soft)[::sign]]
    a, b = metrics.matched(*maps, sign * 9.0)
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    more = replace(maps[1], density=maps[1].density + np.eye(24, 20, dtype=np.float32)[..., None])
    a, b = metrics.matched(maps[0], more, sign * 9.0)
    assert abs(np.vdot(a, b - a)) < 1e-3 * np.vdot(a, a)  # the best scale leaves nothing along a


def test_the_tm_score_is_blind_to_pose_and_one_of_the_same():
    model, other = hinge_pair()
    turned = atoms.with_positions(model, atoms.positions(model) @ np.array([[0, 1.0, 0], [-1, 0, 0], [0, 0, 1]]) + 7)
    assert metrics.tm_score(turned, model) == pytest.approx(1)
    assert metrics.tm_score(other, model) == pytest.approx(metrics.tm_score(other, turned), abs=1e-6)
    mirrored = atoms.with_positions(model, atoms.positions(model) * (1, 1, -1))
    assert metrics.tm_score(mirrored, model) < 0.9


def test_the_tm_score_finds_the_larger_domain():
    """The first domain does not move: laid on itself it scores at least its share of the residues."""
    model, other = hinge_pair()
    (x,) = atoms.common_ca(model)
    numbers = np.array([residue.seqid.num for residue in model[0][0]])
    still = (numbers < 101).mean()
    d0 = 1.24 * (len(x) - 15) ** (1 / 3) - 1.8
    moved = np.linalg.norm(atoms.common_ca(other)[0] - x, axis=1)
    in_place = (1 / (1 + (moved / d0) ** 2)).mean()
    assert still < in_place <= metrics.tm_score(other, model) + 1e-9 < 1


def test_the_tm_score_counts_residues_that_are_missing():
    model = hinge_pair()[0]
    half = model.clone()
    del half[0][0][70:]
    assert metrics.tm_score(half, model) == pytest.approx(70 / 140)


def test_the_tm_score_is_that_of_tmtools_where_its_alignment_is_the_same():
    """Of models that differ by little, so that structures align as residues do."""
    tmtools = pytest.importorskip("tmtools")
    model = hinge_pair()[0]
    (y,) = atoms.common_ca(model)
    shift = 2.5 * np.sin(y[:, [1, 2, 0]] / 9)
    other = atoms.with_positions(model, atoms.positions(model) + 2.5 * np.sin(atoms.positions(model)[:, [1, 2, 0]] / 9))
    letters = "ACDEFGHIKLMNPQRSTVWY" * 7
    found = tmtools.tm_align(y + shift, y, letters, letters)
    assert metrics.tm_score(other, model) == pytest.approx(found.tm_norm_chain2, abs=2e-3)


@pytest.mark.parametrize("length", [12, 20])
def test_the_tm_score_of_short_chains_has_a_scale_of_half_an_angstrom(length):
    """The last residue is 1 Å off, which counts 1 / (1 + (1 / 0.5)²); superposing it a little better gains less."""
    model = hinge_pair()[0]
    del model[0][0][length:]
    number = np.array([site.residue.seqid.num for site in model[0].all()])
    other = atoms.with_positions(model, atoms.positions(model) + np.outer(number == number.max(), [0.6, 0, -0.8]))
    expected = (length - 1 + 1 / (1 + 2.0**2)) / length
    assert expected - 1e-9 <= metrics.tm_score(other, model) < expected + 0.02 / np.sqrt(length)


def test_the_tm_score_of_rna_has_its_own_scale():
    """One of 86 nucleotides is off by the scale itself, and counts half."""
    model = bent_rna()[0]
    scale = 0.6 * np.sqrt(86 - 0.5) - 2.5
    moved = np.array([site.residue.seqid.num == 1 and site.chain.name == "A" for site in model[0].all()])
    other = atoms.with_positions(model, atoms.positions(model) + np.outer(moved, [0.6 * scale, 0, 0.8 * scale]))
    assert 85.5 / 86 - 1e-9 <= metrics.tm_score(other, model) < 85.55 / 86
    assert metrics.ca_displacement(other, model)["rmsd"] == pytest.approx(scale / np.sqrt(86))
    assert [metrics.tm_scale(n, True) for n in (8, 12, 23, 29)] == pytest.approx([0.3, 0.4, 0.6, 0.7])


def test_coverage_is_what_was_built_and_in_its_order():
    model = hinge_pair()[0]
    part = model.clone()
    part[0][0].name = "X"
    for number, residue in enumerate(part[0][0]):
        residue.seqid.num = 1000 - number  # names and numbers are the program's own
    del part[0][0][35:]
    found = metrics.coverage(part, model)
    assert found == {"n": 35, "coverage": 0.25, "precision": 1.0, "rmsd": 0.0, "order": 1.0}
    far = atoms.with_positions(part, atoms.positions(part) + 200)
    assert metrics.coverage(far, model)["n"] == 0
    near = atoms.with_positions(part, atoms.positions(part) + (1.0, 0, 0))
    assert metrics.coverage(near, model)["rmsd"] == pytest.approx(1, abs=1e-6)


def test_detail_is_the_share_of_a_wave(noise):
    """Of two waves of equal power one lies in the band; a mean does not count."""
    x = np.arange(40)
    waves = (
        np.cos(2 * np.pi * 0.4 * x)[:, None, None] + np.cos(2 * np.pi * 0.1 * x)[None, :, None] + np.zeros((1, 1, 41))
    )
    assert metrics.detail(5 + waves) == pytest.approx(0.5)
    smooth = ndimage.gaussian_filter(noise[0], 1.0)  # which leaves exp(-4 π² s²) of the power, 0.002 at 0.4
    assert metrics.detail(smooth) < 0.3 * metrics.detail(noise[0])


def test_mass_that_moves_a_little_does_not_appear_and_mass_that_jumps_does():
    a = np.zeros((24, 20, 22), np.float32)
    a[4:8, 4:8, 4:8] = 1
    a[12:16, 4:8, 4:8] = 2
    near = np.roll(a, (3, -2, 1), (0, 1, 2))
    for block in (4, 5, 7):  # the box need not be so many whole blocks
        assert metrics.appearing_mass(a, near, block) == pytest.approx((0, 0), abs=1e-4)
        assert metrics.appearing_mass(a, 2 * a, block) == pytest.approx((a.sum(), 0), abs=1e-3)
    jumped = a.copy()
    jumped[4:8, 4:8, 4:8], jumped[4:8, 12:16, 12:16] = 0, 1  # 64 of the mass, 8 voxels away along two axes
    assert metrics.appearing_mass(a, jumped, 4) == pytest.approx((64, 64), abs=1e-3)
    assert metrics.appearing_mass(a, jumped, 4, reach=2) == pytest.approx((0, 0), abs=1e-3)
    assert metrics.appearing_mass(a, 0.5 * a, 4) == pytest.approx((0, 96), abs=1e-3)
    assert metrics.appearing_mass(0 * a, 0 * a, 4) == (0, 0)


def test_between_is_what_neither_end_covers():
    density = np.ones((4, 5, 6), np.float32)
    ends = np.zeros((4, 5, 6), bool)
    ends[:3] = True
    assert metrics.share_between(density, ends) == pytest.approx(1 / 4)
    density[3] = -1
    assert metrics.share_between(density, ends) == 0


def test_the_visible_mass_is_that_at_the_level_and_above():
    density = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert metrics.visible_mass(density, 20.0) == 20 + 21 + 22 + 23
    assert metrics.visible_mass(density, 24.0) == 0
