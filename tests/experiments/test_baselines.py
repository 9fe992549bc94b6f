"""Baselines: other ways to get from one map to another."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.density import similarity, simulation
from cryotrans_jax.fit import recipes, terms
from cryotrans_jax.fit.stage import Config, Stage
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, read_map
from cryotrans_jax.scores import metrics
from experiments import baselines

MMCPN = Path(__file__).parents[3] / "shared" / "data" / "maps" / "mmcpn"
SHAPE, VOXEL, ORIGIN = (14, 12, 13), np.array([2.0, 2.2, 1.9]), np.array([4.0, -3.0, 9.0])


def blob(middle, width, mass=50.0):
    """A Gaussian of this mass, middle and width in voxels."""
    d = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) - np.array(middle)
    density = np.exp(-0.5 * (d**2).sum(-1) / width**2)
    return Map((mass * density / density.sum()).astype(np.float32), VOXEL, ORIGIN)


def moments(map_):
    """Mass, mean and variances along the axes, in voxels."""
    at = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    weights = map_.density / map_.density.sum()
    mean = np.einsum("xyz,xyzk->k", weights, at)
    return map_.density.sum(), mean, np.einsum("xyz,xyzk->k", weights, (at - mean) ** 2)


def test_a_blend_is_both_maps_at_once(maps):
    start, half, end = baselines.blend(maps[0], maps[1], [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(start.density, maps[0].density)
    np.testing.assert_array_equal(end.density, maps[1].density)
    np.testing.assert_allclose(half.density, (maps[0].density + maps[1].density) / 2, atol=1e-7)


def test_the_barycentre_of_two_gaussians_moves_between_them():
    """Voxels are a cube's, so that axes cost alike; its mean is on the line, its width theirs and a little more.

    The entropy widens it by at most the kernel's variance, epsilon / 2.
    """
    first, last = np.array([5, 5, 5]), np.array([9, 6, 7])
    ends = [replace(blob(middle, 1.2), voxel_size=np.ones(3)) for middle in (first, last)]
    ends[1] = replace(ends[1], density=3 * ends[1].density)  # another scale, which does not count
    epsilon, times, window = 1.0, [0.25, 1.0], 4  # which is as far as one has to go
    for t, frame in zip(times, baselines.barycentre(*ends, times, epsilon, 60, window), strict=True):
        mass, mean, variance = moments(frame)
        assert mass == pytest.approx(50, rel=1e-3)
        np.testing.assert_allclose(mean, (1 - t) * first + t * last, atol=0.02)
        assert (variance > 1.2**2 - 0.05).all() and (variance < 1.2**2 + epsilon / 2 + 0.05).all()


@pytest.mark.slow
def test_a_barycentre_knows_that_voxels_are_not_cubes():
    """Moved along the longer side: the mean is half way in Å all the same."""
    ends = [blob(middle, 1.2) for middle in ((6, 4, 6), (6, 7, 6))]
    (frame,) = baselines.barycentre(*ends, [0.5], 1.0, 60, 4)
    np.testing.assert_allclose(moments(frame)[1], (6, 5.5, 6), atol=0.02)
    (early,) = baselines.barycentre(*ends, [0.5], 1.0, 2, 4)  # which has not converged
    assert np.abs(early.density - frame.density).max() > 0.01 * frame.density.max()


def test_the_straight_line_starts_and_ends_at_the_models_maps(models, maps):
    first, half, last = baselines.interpolate_models(models[0], models[1], maps[0], 8.0, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(first.density, maps[0].density, atol=1e-6)
    np.testing.assert_allclose(last.density, maps[1].density, atol=1e-6)
    middle = atoms.with_positions(models[0], (atoms.positions(models[0]) + atoms.positions(models[1])) / 2)
    np.testing.assert_allclose(half.density, simulation.simulate_map(middle, *grid(maps[0]), 8.0).density, atol=1e-6)


def grid(map_):
    return map_.density.shape, map_.voxel_size, map_.origin


def test_atoms_in_common_are_found_whatever_the_only_chain_is_called(models):
    other = models[1].clone()
    other[0][0].name = "Q"
    del other[0][0][3]
    a, b, weights = baselines.common_heavy(models[0], other)
    kept = np.arange(16) != 3
    np.testing.assert_allclose(a, atoms.positions(models[0])[kept])
    np.testing.assert_allclose(b, atoms.positions(models[1])[kept])
    assert set(weights) == {6.0}
    for residue in other[0][0]:
        residue.seqid.num += 500
    with pytest.raises(InputError, match="no heavy atom in common"):
        baselines.common_heavy(models[0], other)


def test_the_recipe_by_squared_difference_is_the_default_without_correspondences_and_actions(problem):
    whole = recipes.default(problem, 3)
    config = baselines.squared_recipe(whole)
    assert {type(stage.terms[0]) for stage in config.schedule} == {terms.Matched}
    assert set(whole.stages) - set(config.schedule) == {whole.stages[0]}
    assert config == replace(whole, schedule=config.stages)


def test_a_flow_by_squared_difference_takes_the_thresholds_and_reports_progress(maps, monkeypatch):
    short = Config((Stage((terms.Matched(),), 4, 1e-3, 1e-3, bin=2, sampling=2),), Field(Velocity(width=4), 2))
    asked, seen = [], []

    def default(problem, seed):
        asked.append(problem)
        return replace(short, seed=seed)

    monkeypatch.setattr(recipes, "default", default)
    given = dict(steps=0.5, seed=3, initial_threshold=0.02, target_threshold=0.03, resolutions=(8.0, 8.0))
    made = baselines.squared_flow(maps[0], maps[2], progress=lambda *at: seen.append(at), **given)
    assert made.config == replace(short, seed=3).scaled(0.5) and made.field == short.field
    assert made.threshold == pytest.approx(0.02) and made.initial is maps[0]
    assert asked[0].report["targets"][0]["threshold"] == pytest.approx(0.03) and asked[0].blurs[0] == 0
    assert [losses.shape for losses in made.history] == [(2, 1)]
    assert [at[:3] for at in seen] == [(made.config, 0, 2)]


@pytest.mark.slow
def test_a_flow_by_squared_difference_needs_no_correspondences(maps):
    fit = baselines.squared_flow(maps[0], maps[2], steps=0.06, resolutions=(8.0, 8.0))
    end = next(iter(fit.frames([1.0]))).density
    before, after = (similarity.correlation(d, maps[2].density) for d in (maps[0].density, end))
    assert after > before + 0.3 * (1 - before)


@pytest.mark.slow
@pytest.mark.skipif(not MMCPN.is_dir(), reason="needs ../shared/data")
def test_the_barycentre_is_that_which_morphots_authors_published():
    ends = [read_map(MMCPN / f"EMD-{number}.mrc") for number in (5140, 5138)]
    (ours,) = baselines.barycentre(*ends, [0.5])
    theirs = read_map(MMCPN / "morphot_weight5138_0.50.mrc")
    assert similarity.correlation(ours.density, theirs.density) > 0.98
    mean = sum(metrics.detail(end.density) for end in ends) / 2
    assert metrics.detail(ours.density) / mean == pytest.approx(metrics.detail(theirs.density) / mean, abs=0.05)
