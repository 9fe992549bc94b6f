"""What noise in a target changes: it weighs the rigidity, draws no borders, and never makes the result worse."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.fit import prepare
from cryotrans_jax.fit.better_end import KeepStart
from cryotrans_jax.fit.bodies import FindRigidBodies, RedrawBorders
from cryotrans_jax.fit.morph import morph
from cryotrans_jax.fit.options import Options, Resolutions, Running
from cryotrans_jax.fit.stage import Config, Stage
from cryotrans_jax.fit.targets import Balance, rigidity_factor
from cryotrans_jax.fit.terms import Matched
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.screw import Screw


def factors(maps, noise, weights=(0.0, 1.0, 10.0)):
    """Factors of the rigidity for these weights of the noise, of a target with this noise."""
    target = replace(maps[1], density=(maps[1].density + noise).astype(np.float32))
    problem = prepare.prepare(maps[0], [target])
    return [rigidity_factor(problem, 0, Balance(noise_weight=weight)) for weight in weights]


def test_noise_weighs_the_rigidity_by_its_power_where_displacements_are_seen(maps):
    """Noise that a filter limits to coarse detail is stronger there than white noise of the same variance."""
    strength, shape = 0.03 * maps[1].density.max(), maps[1].density.shape
    white = np.random.default_rng(0).standard_normal(shape)
    coarse = gaussian_filter(white, 0.8, mode="wrap")
    none, by_white, by_coarse = (factors(maps, strength * noise) for noise in (0, white, coarse / coarse.std()))
    assert by_white[2] - by_white[0] == pytest.approx(10 * (by_white[1] - by_white[0]), rel=1e-6)
    assert none[1] - none[0] < 0.05 * (by_white[1] - by_white[0])
    assert by_coarse[1] - by_coarse[0] > 1.5 * (by_white[1] - by_white[0])


def test_noise_of_a_masked_target_is_that_of_its_half_maps_or_of_its_surface(maps):
    """No noise is to be seen around it. At the surface it is found to within a factor of three."""
    start, target = maps[:2]
    rng, strength = np.random.default_rng(1), 0.05 * target.density.max()
    shown = target.density > 0.01 * target.density.max()
    noise = [gaussian_filter(rng.standard_normal(shown.shape), 0.8) * strength for _ in range(2)]
    known = Resolutions(*(float(n * start.voxel_size.max()) for n in (3, 6)))  # to half of the noise's power

    def of_noise(noise, halves=None, masked=True):
        density = ((target.density + noise) * (shown if masked else 1)).astype(np.float32)
        problem = prepare.prepare(start, [replace(target, density=density)], known, halves=halves)
        with_noise, without = (rigidity_factor(problem, 0, Balance(noise_weight=weight)) for weight in (1.0, 0.0))
        return with_noise - without, problem.report["noise"]

    # of another scale than the target, as half-maps are before they are sharpened
    halves = [tuple(replace(target, density=(7 * (target.density + n)).astype(np.float32)) for n in noise)]
    (by_halves, first), (at_surface, second), (around, third) = (
        of_noise(0.5 * sum(noise), given, masked) for given, masked in ((halves, True), (None, True), (None, False))
    )
    assert by_halves == pytest.approx(around, rel=0.5)
    assert 1 / 3 < at_surface / around < 3
    assert [first, second, third] == [["half-maps"], ["surface"], ["solvent"]]


@pytest.mark.parametrize(("most_loss", "taken"), [(1.05, False), (np.inf, True)])
def test_borders_that_fit_worse_are_not_taken(maps, monkeypatch, most_loss, taken):
    along = np.indices(maps[0].density.shape)[2]
    halves = Partition(1 + (along > along.max() // 2).astype(int), maps[0].voxel_size, maps[0].origin)
    noisy = replace(halves, labels=1 + np.random.default_rng(0).integers(0, 2, along.shape))
    monkeypatch.setattr("cryotrans_jax.fit.bodies.find_bodies", lambda *_: ([halves], [[2.0, 1.0]]))
    monkeypatch.setattr("cryotrans_jax.fit.bodies.redraw_borders", lambda *_: noisy)
    stage = Stage((Matched(),), 40, 3e-3, 3e-3, bin=2, sampling=2)
    schedule = (stage, FindRigidBodies(), stage, RedrawBorders(most_loss=most_loss), stage)
    config = Config(schedule, Screw(Field(Velocity(width=16, centre=0.5), 2)))
    fit = morph(maps[0], maps[1], Options(config, align="none"))
    np.testing.assert_array_equal(fit.partition().labels, (noisy if taken else halves).labels)


@pytest.mark.parametrize("rate", [3e-3, 0.0])
def test_a_flow_that_fits_no_better_than_the_start_is_not_kept(maps, rate):
    stage = Stage((Matched(),), 40, rate, rate, bin=2, sampling=2)
    config = Config((stage, KeepStart()), Field(Velocity(width=16, centre=0.5, init_std=0.05), 2))
    said = []
    running = Running(on_setback=lambda target, what: said.append(what))
    fit = morph(maps[0], maps[1], Options(config, align="none"), running=running)
    x = maps[0].origin + np.array([[10.0, 12, 14], [20, 20, 20]])
    moved = np.abs(fit.carry(x, [1.0])[0] - x).max()
    if rate:
        assert moved > 0.1 and not said
    else:  # the first weights are random: they move the map, and to no end
        assert moved < 1e-4 and len(said) == 1 and "given back unmoved" in said[0]


def test_a_loss_below_its_floor_ends_the_stage_with_the_parameters_before(maps, monkeypatch):
    """More than all of the signal is explained if its power was taken to be too small."""
    monkeypatch.setattr("cryotrans_jax.fit.terms.signal_power", lambda volume, *_: np.float32(0.3 * np.sum(volume**2)))
    said = []

    def fitted(rate):
        first = Stage((Matched(),), 100, rate, rate, bin=2, sampling=2)
        config = Config((first,), Field(Velocity(width=16, centre=0.5, init_std=0.05), 2))
        running = Running(on_setback=lambda target, what: said.append((target, what)))
        return morph(maps[0], maps[1:], Options(config, align="none"), running=running)

    fit = fitted(3e-3)
    assert len(fit.history[0]) == 25 and (fit.history[0] < 0).any() and not fit.failed
    assert [target for target, _ in said] == [0, 1] and all("follows noise" in what for _, what in said)
    for found, start in zip(jax.tree.leaves(fit.params), jax.tree.leaves(fitted(0.0).params), strict=True):
        np.testing.assert_array_equal(found, start)
    monkeypatch.undo()
    said.clear()
    assert len(fitted(3e-3).history[0]) == 100 and not said
