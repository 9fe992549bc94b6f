"""Predicted errors of a fit: small where it is right, large where the target disagrees or has nothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.fit.errors import ErrorRules, predict_errors, slightness, strain_around, target_quality
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.stage import Config, Stage
from cryotrans_jax.fit.terms import Matched
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.displacement import mass_points
from cryotrans_jax.motion.partition import Partition

FIELD = Field(Velocity(width=32, centre=0.5), 5)
SHIFT = np.array([2.0, -2.2, 2.1])  # Å: a voxel along each axis
NOISE = 0.02  # of the largest density


@pytest.fixture(scope="module")
def fit(maps):
    """A flow that shifts all by SHIFT."""
    edge = 33.0
    params = jax.tree.map(jnp.zeros_like, jax.jit(FIELD.init)(jax.random.key(0)))
    params["params"]["Dense_2"]["bias"] = jnp.asarray(SHIFT / edge, jnp.float32)
    level = float(0.15 * maps[0].density.max())
    report = {"targets": [{"threshold": level}], "blur_variance": [0.0], "quieting_variance": [0.0]}
    return Fit(
        config=Config((Stage((Matched(),), 1, 1e-3, 1e-4),), FIELD),
        field=FIELD,
        params=jax.tree.map(lambda p: np.asarray(p)[None], params),
        frame=Frame(np.array([-14.0, 20.0, 50.0]), edge),
        threshold=level,
        report=report,
        initial=maps[0],
    )


def moved(map_, by, seed=0):
    """The map moved by whole voxels along each axis, with noise."""
    noise = NOISE * map_.density.max() * np.random.default_rng(seed).standard_normal(map_.density.shape)
    return replace(map_, density=(np.roll(map_.density, by, (0, 1, 2)) + noise).astype(np.float32))


def predicted(fit, target):
    return predict_errors(fit, target, target_quality(fit, target))


def test_a_right_flow_has_small_errors_and_a_wrong_one_large_ones(fit, maps):
    right, wrong = (predicted(fit, moved(maps[0], by)) for by in ((1, -1, 1), (-1, 1, 3)))
    assert right.evidence.shift.mean() < wrong.evidence.shift.mean()
    assert right.error.mean() < 0.5 * wrong.error.mean()
    np.testing.assert_allclose(right.ends - right.points, np.broadcast_to(SHIFT, right.points.shape), atol=1e-4)
    assert right.supported.all() and right.mass.min() > 0


@pytest.mark.parametrize("times", [1, 2])
def test_what_the_target_lacks_is_not_supported(fit, maps, times):
    """The target has no density in its lower half along z, which leaves what is carried there undetermined.

    It may have moved as far as the rest, and as far as is expected of anything that is not seen.
    """
    far = replace(fit, params=jax.tree.map(lambda p: times * p, fit.params))
    target = moved(maps[0], (times, -times, times))
    middle = (maps[0].origin + 0.5 * maps[0].voxel_size * maps[0].density.shape)[2]
    half = target.density * (np.arange(target.density.shape[2]) > target.density.shape[2] / 2)
    found = predict_errors(far, replace(target, density=half.astype(np.float32)), target_quality(far, target))
    low, high = found.ends[:, 2] < middle - 8, found.ends[:, 2] > middle + 4
    assert low.any() and high.any()
    assert found.evidence.uncertainty[low].mean() > 2 * found.evidence.uncertainty[high].mean()
    assert found.supported[high].all() and not found.supported[low].all()
    least = max(times * np.linalg.norm(SHIFT), ErrorRules().local.reach)
    np.testing.assert_array_less(0.999 * least, found.error[~found.supported])


def test_atoms_and_the_map_have_the_errors_of_the_mass_around_them(fit, maps, models):
    found = predicted(fit, moved(maps[0], (-1, 1, 3)))
    own = found.of_atoms(models[0])
    at = found.nearest(atoms.positions(models[0]))
    np.testing.assert_array_equal(own, found.error[at])
    shown = found.map(fit.generated())
    assert shown.density.shape == maps[0].density.shape and shown.density.min() >= 0
    read = Map(shown.density, shown.voxel_size, shown.origin).interpolate(found.ends)
    assert np.median(np.abs(read / found.error - 1)) < 0.2


def test_strain_is_that_of_the_flow_around_each_place(fit):
    """A shift strains nothing; a flow that grows by a tenth along x has that strain, near mass and far from it."""
    points = np.array([[0.0, 33.0, 68.0], [3.0, 35.0, 66.0], [90.0, 90.0, 90.0]])
    np.testing.assert_allclose(strain_around(fit, points, 0, ErrorRules()), 0.0, atol=2e-3)
    rate, layers = 0.1, jax.tree.map(np.copy, fit.params)["params"]
    layers["Dense_0"]["kernel"][0, 0, 0], layers["Dense_0"]["bias"][0, 0] = rate, 1.0  # above zero: linear in x
    for number in (1, 2):
        layers[f"Dense_{number}"]["kernel"][0, 0, 0] = 1.0
    found = strain_around(replace(fit, params={"params": layers}), points, 0, ErrorRules())
    steps = FIELD.euler_steps
    np.testing.assert_allclose(found, steps * np.log(1 + rate / steps), rtol=0.05)


def test_a_body_is_the_slighter_the_less_mass_it_has(fit, maps):
    """One body: the radius of a ball of all mass; two: of each one's own."""
    points, mass = mass_points(maps[0], fit.threshold)
    rules = ErrorRules()
    cells, _ = mass_points(maps[0], fit.threshold, rules.cell)
    radius = (3 / (4 * np.pi) * len(cells) * rules.cell**3) ** (1 / 3)
    np.testing.assert_allclose(slightness(fit, points, 0, rules), 1 / radius)
    labels = np.broadcast_to(1 + (np.arange(28) > 17), maps[0].density.shape).astype(np.int16)
    partition = Partition(labels, maps[0].voxel_size, maps[0].origin)
    found = slightness(replace(fit, partitions=(partition,)), points, 0, rules)
    part = np.asarray(partition.part_at(points))
    count = np.bincount(np.asarray(partition.part_at(cells)))
    np.testing.assert_allclose((found[part == 1][0] / found[part == 0][0]) ** 3, count[0] / count[1])
    assert len({*found[part == 0]}) == len({*found[part == 1]}) == 1


def test_a_fit_without_its_initial_map_says_so(fit, maps):
    target = moved(maps[0], (1, -1, 1))
    quality = target_quality(fit, target)
    with pytest.raises(InputError, match="without its initial map"):
        predict_errors(replace(fit, initial=None), target, quality)


def test_a_sharper_target_is_compared_as_blurred_as_the_initial_map(fit, maps):
    """Its noise is that of the blurred target, which has none of high frequency."""
    sharper = replace(fit, report=fit.report | {"blur_variance": [-4.0]})
    target = moved(maps[0], (1, -1, 1))
    plain, blurred = (target_quality(each, target).noise.power for each in (fit, sharper))
    assert blurred[-4:].sum() < 0.2 * plain[-4:].sum()
    assert np.isfinite(predict_errors(sharper, target, target_quality(sharper, target)).error).all()


def test_a_selected_fit_is_compared_by_the_quality_of_its_own_target(fit, maps):
    """Its report still lists those of all targets."""
    target = moved(maps[0], (1, -1, 1))
    lists = {"targets": 2 * fit.report["targets"], "blur_variance": [9.0, 0.0], "quieting_variance": [4.0, 0.0]}
    two = replace(fit, params=jax.tree.map(lambda p: np.repeat(p, 2, axis=0), fit.params), report=lists)
    found = predict_errors(two.select([1]), target, target_quality(two.select([1]), target, 1))
    np.testing.assert_allclose(found.error, predicted(fit, target).error, rtol=1e-5)
