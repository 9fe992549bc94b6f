"""A region of the target is hidden where the fit carries it, and the predicted errors there are tested."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.stage import Config, Stage
from cryotrans_jax.fit.terms import Matched
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import write_map
from cryotrans_jax.motion.displacement import mass_points
from experiments import results, withhold
from experiments.case import Case
from experiments.settings import FitSettings

FIELD, EDGE = Field(Velocity(width=32, centre=0.5), 5), 33.0
SHIFT = np.array([2.0, -2.2, 2.1])  # Å: a voxel along each axis


def shifting(maps, by):
    """A fit that shifts all of the initial map by some Å."""
    params = jax.tree.map(jnp.zeros_like, jax.jit(FIELD.init)(jax.random.key(0)))
    params["params"]["Dense_2"]["bias"] = jnp.asarray(np.asarray(by) / EDGE, jnp.float32)
    level = float(0.15 * maps[0].density.max())
    return Fit(
        config=Config((Stage((Matched(),), 1, 1e-3, 1e-4),), FIELD),
        field=FIELD,
        params=jax.tree.map(lambda p: np.asarray(p)[None], params),
        frame=Frame(np.array([-14.0, 20.0, 50.0]), EDGE),
        threshold=level,
        report={"targets": [{"threshold": level}], "blur_variance": [0.0], "quieting_variance": [0.0]},
        initial=maps[0],
    )


@pytest.fixture(scope="module")
def fit(maps):
    return shifting(maps, SHIFT)


@pytest.fixture
def case(maps, models):
    """The target is the initial map, shifted as the fit has it, with a little noise."""
    noise = 0.02 * maps[0].density.max() * np.random.default_rng(0).standard_normal(maps[0].density.shape)
    target = replace(maps[0], density=(np.roll(maps[0].density, (1, -1, 1), (0, 1, 2)) + noise).astype(np.float32))
    return Case(maps[0], [target], {}, ["target"], 8.0, [8.0], models[0], halves=[(target, target)])


def test_a_selection_is_the_mass_nearest_to_its_residues(fit, case, models):
    (region,) = withhold.regions(["A:1-8"], False, fit, case)
    points, _ = mass_points(case.initial, fit.threshold)
    xyz = atoms.positions(models[0])
    nearest = np.argmin(np.linalg.norm(points[:, None] - xyz[None], axis=-1), axis=1)
    np.testing.assert_array_equal(region.points, nearest < 8)


def test_a_mask_is_of_the_target_where_the_fit_carries_the_mass(fit, case, maps, tmp_path):
    half = np.broadcast_to(np.arange(maps[0].density.shape[2]) < 14, maps[0].density.shape).astype(np.float32)
    write_map(tmp_path / "mask.mrc", replace(maps[0], density=np.ascontiguousarray(half)))
    given = [str(tmp_path / "mask.mrc")]
    withhold.check_flags(given, False, case)
    assert case.files.pop(given[0]) == tmp_path / "mask.mrc"  # so that its checksum is recorded
    with pytest.raises(InputError, match="nothing.mrc"):
        withhold.check_flags([str(tmp_path / "nothing.mrc")], False, case)
    (region,) = withhold.regions(given, False, fit, case)
    points, _ = mass_points(case.initial, fit.threshold)
    below = (points + SHIFT)[:, 2] < maps[0].origin[2] + 13.5 * maps[0].voxel_size[2]
    np.testing.assert_array_equal(region.points, below)


def test_random_regions_are_a_tenth_in_one_place_and_the_same_again(fit, case):
    first, again = (withhold.regions([], True, fit, case) for _ in range(2))
    points, _ = mass_points(case.initial, fit.threshold)
    assert len(first) == withhold.RANDOM
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.points, other.points)
        assert one.points.mean() == pytest.approx(withhold.SHARE, abs=0.02)
        own = points[one.points]
        assert np.linalg.norm(own - own.mean(0), axis=1).max() < np.linalg.norm(points - points.mean(0), axis=1).max()


def test_only_the_density_near_the_region_is_hidden_from_target_and_half_maps(fit, case):
    (region,) = withhold.regions(["A:1-8"], False, fit, case)
    points, _ = mass_points(case.initial, fit.threshold)
    ends = points[region.points] + SHIFT
    blind, weight = withhold.hidden(case, ends)
    voxels = case.initial.origin + np.argwhere(weight >= 0) * case.initial.voxel_size
    distance = np.linalg.norm(voxels[:, None] - ends[None], axis=-1).min(1).reshape(weight.shape)
    size = case.initial.voxel_size.max()
    assert (weight[distance < withhold.NEAR - size] == 1).all()
    assert (weight[distance > withhold.NEAR + withhold.FADE + size] == 0).all()
    for left, whole in zip((blind.targets[0], *blind.halves[0]), (case.targets[0], *case.halves[0]), strict=True):
        np.testing.assert_allclose(left.density, whole.density * (1 - weight), atol=1e-6)
    assert blind.initial is case.initial and case.targets[0].density.min() != 0


@pytest.mark.parametrize("off, right", [(0.0, True), (6.0, False)])
def test_what_a_fit_without_the_region_claims_is_compared(fit, case, maps, monkeypatch, off, right):
    """A second fit that carries all 6 Å elsewhere is that far off, and outside of its bound if it claims less."""
    given = []
    other = shifting(maps, SHIFT + [off, 0, 0])
    monkeypatch.setattr(results, "fit_case", lambda blind, settings: given.append(blind) or other)
    (found,) = withhold.test(["A:1-8"], False, fit, case, FitSettings())
    assert found["region"] == "A:1-8" and found["apart"] == pytest.approx(off, abs=1e-3)
    assert given[0].targets[0].density.sum() < case.targets[0].density.sum()
    assert found["predicted_error"] > 0 and 0 <= found["within_90"] <= 1
    assert (found["correlation_without"] > found["correlation_before"]) == right
    assert found["correlation_with"] > 0.9
    if right:
        assert found["within_90"] == 1


def test_what_cannot_be_tested_is_refused(fit, case, maps):
    bare = replace(case, model=None)
    for given, of, sentence in (
        (["A:1-3"], bare, "give the model with --model"),
        (["C"], case, "selects no residue"),
        ([], replace(case, targets=[maps[0], maps[1]]), "are for one target"),
    ):
        with pytest.raises(InputError, match=sentence):
            withhold.check_flags(given, True, of)
    withhold.check_flags([], False, replace(bare, targets=[maps[0], maps[1]]))
    with pytest.raises(InputError, match="hides nothing of the molecule, or all of it"):
        withhold.regions(["A"], False, fit, case)
