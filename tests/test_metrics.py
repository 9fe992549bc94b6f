"""Fourier shell correlation, correlation and displacement obey their laws and agree with a judge."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from cryotrans_jax import atoms, metrics
from cryotrans_jax.files import InputError
from cryotrans_jax.maps import Map, write_map

SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs ../shared, data and tools")
VOXEL = np.array([1.1, 1.0, 1.2])


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(size=(2, 33, 30, 28)).astype(np.float32)


def score(*arguments):
    command = [sys.executable, str(SHARED / "tools/score.py"), *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def test_fsc_is_one_against_itself_and_minus_one_against_its_negative(noise):
    frequency, curve = metrics.fsc(noise[0], noise[0], VOXEL)
    np.testing.assert_allclose(curve, 1, atol=1e-12)
    np.testing.assert_allclose(metrics.fsc(noise[0], -noise[0], VOXEL)[1], -1, atol=1e-12)
    assert frequency[0] == 0 and frequency[-1] <= 0.5 / VOXEL.max() < frequency[-1] + frequency[1]


def test_fsc_is_symmetric_and_blind_to_scale_offset_and_common_shift(noise):
    a, b = noise[0], noise[0] + noise[1]
    curve = metrics.fsc(a, b, VOXEL)[1]
    np.testing.assert_allclose(metrics.fsc(b, a, VOXEL)[1], curve, atol=1e-12)
    np.testing.assert_allclose(metrics.fsc(3 * a, 0.2 * b, VOXEL)[1], curve, atol=1e-6)
    np.testing.assert_allclose(metrics.fsc(a + 5, b - 2, VOXEL)[1][1:], curve[1:], atol=1e-6)
    shifted = (np.roll(v, (3, -2, 5), (0, 1, 2)) for v in (a, b))
    np.testing.assert_allclose(metrics.fsc(*shifted, VOXEL)[1], curve, atol=1e-12)


def test_fsc_does_not_depend_on_which_axis_is_halved(noise):
    a, b = noise[0], noise[0] + noise[1]
    curve = metrics.fsc(a, b, VOXEL)[1]
    for axes in ((1, 2, 0), (2, 0, 1), (0, 2, 1)):
        np.testing.assert_allclose(metrics.fsc(a.transpose(axes), b.transpose(axes), VOXEL[list(axes)])[1], curve)


def test_fsc_equals_sums_over_the_whole_transform(noise):
    a, b, voxel = noise[0].astype(float), (noise[0] + noise[1]).astype(float), VOXEL
    fa, fb = np.fft.fftn(a), np.fft.fftn(b)
    s = np.stack(np.meshgrid(*map(np.fft.fftfreq, a.shape, voxel), indexing="ij"))
    side = (np.array(a.shape) * voxel).min()
    shell = np.round(np.linalg.norm(s, axis=0) * side)
    frequency, curve = metrics.fsc(a, b, voxel)
    for k in range(len(curve)):
        at = shell == k
        slow = (fa[at] * fb[at].conj()).sum().real / np.linalg.norm(fa[at]) / np.linalg.norm(fb[at])
        np.testing.assert_allclose(curve[k], slow, atol=1e-9)
        np.testing.assert_allclose(frequency[k], k / side)


def test_signal_with_equal_noise_correlates_by_the_square_root_of_a_half(noise):
    """E FSC(f, f + n) = 1 / sqrt(1 + |n|^2 / |f|^2)."""
    curve = metrics.fsc(noise[0], noise[0] + noise[1], 1.0)[1]
    np.testing.assert_allclose(curve[8:], np.sqrt(0.5), atol=0.05)  # shells of over 800 terms: 1 / sqrt(800)


def test_a_map_without_power_correlates_by_zero(noise):
    assert not metrics.fsc(noise[0], 0 * noise[0], 1.0)[1].any()


def test_resolution_is_read_off_a_straight_line():
    frequency = np.arange(6) * 0.1
    assert metrics.resolution_at(frequency, np.array([1, 0.9, 0.7, 0.3, 0.9, 0]), 0.5) == pytest.approx(1 / 0.25)
    assert metrics.resolution_at(frequency, np.ones(6), 0.5) == pytest.approx(1 / 0.5)
    assert metrics.resolution_at(frequency, np.zeros(6), 0.5) == pytest.approx(1 / 0.1)


def test_correlation_is_blind_to_scale_and_offset(noise):
    assert metrics.correlation(noise[0], 2 * noise[0] + 7) == pytest.approx(1)
    assert metrics.correlation(noise[0], -noise[0]) == pytest.approx(-1)


def test_maps_on_different_grids_are_refused(noise):
    a = Map(noise[0], VOXEL, np.zeros(3))
    with pytest.raises(InputError, match="different grids .*origin"):
        metrics.map_fsc(a, Map(noise[0], VOXEL, np.ones(3)))


@needs_shared
def test_map_scores_agree_with_the_judge(tmp_path):
    first, second = (SHARED / f"data/pairs/adk/{name}.pdb" for name in ("open", "closed_on_open"))
    models = [atoms.read_model(path) for path in (first, second)]
    grid = atoms.common_grid(models, np.array([1.6, 1.5, 1.7]), 5.0)
    maps = [atoms.simulate_map(model, *grid, 5.0) for model in models]
    for name, map in zip(("a.mrc", "b.mrc"), maps, strict=True):
        write_map(tmp_path / name, map)
    judged = score("map", tmp_path / "a.mrc", tmp_path / "b.mrc")
    for threshold in (0.5, 0.143):
        ours = metrics.resolution_at(*metrics.map_fsc(*maps), threshold)
        assert ours == pytest.approx(judged[f"fsc_{threshold}"], rel=1e-3)
    assert metrics.correlation(*(map.density for map in maps)) == pytest.approx(judged["correlation"], abs=1e-3)
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
    target, near = atoms.moved(start, xyz + shift), atoms.moved(start, xyz + 0.75 * shift)
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
