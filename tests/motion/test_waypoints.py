"""A trajectory passes its waypoints: along a curve, out and back, and where they ask for nothing, as without them."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cryotrans_jax.core.batch import Batch
from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.density import simulation
from cryotrans_jax.fit import prepare, trajectory
from cryotrans_jax.fit.better_start import misplaced_fraction
from cryotrans_jax.fit.morph import morph
from cryotrans_jax.fit.options import Options, Resolutions, Waypoint
from cryotrans_jax.fit.recipes import Paper, Schedule, default
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.schedule import Fitting, run
from cryotrans_jax.fit.stage import Config, Stage, stage_inputs
from cryotrans_jax.fit.state import initial_state
from cryotrans_jax.fit.target_flow import Flow
from cryotrans_jax.fit.terms import Correspondences, Matched, Rigidity
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.motion.waypoints import AtEachTime, Timed

MATCHED = Stage((Matched(blur=4.0), Rigidity(0.1)), 400, 1e-2, 1e-4, bin=2, sampling=2)
POINTS = Stage((Correspondences(),), 10, 1e-3, 1e-3, bin=2, sampling=2)
FIELD = Field(Velocity(width=16, centre=0.5, waves=8, wave_number=2.0), 4)
SHORT = Schedule((("l2", 20, 1e-3),))
ALONG, ACROSS = np.array([7.0, 0.0, 0.0]), np.array([0.0, 0.0, 5.0])  # Å


@pytest.fixture(scope="module")
def shifted(models, maps):
    """The initial map with all atoms shifted by so many Å."""

    def shifted(by):
        model = atoms.with_positions(models[0], atoms.positions(models[0]) + by)
        grid = maps[0].density.shape, maps[0].voxel_size, maps[0].origin
        return simulation.simulate_map(model, *grid, 8.0)

    return shifted


@pytest.fixture(scope="module")
def followed(shifted, maps, models):
    """Displacements (times, atoms, 3) of the atoms at some times, by a fit through some shifts."""

    @cache
    def fitted(end, *waypoints):
        waypoints, end = {t: np.array(by) for t, *by in waypoints}, np.array(end)
        ends = [shifted(by) for by in (*waypoints.values(), end)]
        problem = prepare.prepare(maps[0], ends, Resolutions(8.0, [8.0] * len(ends)), waypoints=[*waypoints])
        field = Timed(FIELD, problem.waypoints) if waypoints else FIELD
        fitted = run(Fitting.begin(problem, Config((MATCHED,), FIELD), field))
        return Flow(field, jax.tree.map(lambda p: p[0], fitted.state.params), problem.frame)

    def followed(end, waypoints, times):
        xyz = atoms.positions(models[0])
        return trajectory.move(fitted((*end,), *((t, *by) for t, by in waypoints.items())), xyz, times) - xyz

    return followed


@pytest.mark.slow
def test_a_waypoint_half_way_along_the_straight_line_changes_nothing(followed):
    """Within 0.3 Å, which two fits differ by anyway."""
    free, passing = (followed(ALONG, way, [0.5, 1.0]).mean(1) for way in ({}, {0.5: ALONG / 2}))
    np.testing.assert_allclose(passing, free, atol=0.3)
    np.testing.assert_allclose(passing, [ALONG / 2, ALONG], atol=0.3)


@pytest.mark.slow  # two waypoints are followed in the next test
def test_a_curve_is_followed_with_a_waypoint_and_not_without(followed):
    through = ALONG / 2 + ACROSS
    free, passing = (followed(ALONG, way, [0.5, 1.0]) for way in ({}, {0.5: through}))
    np.testing.assert_allclose(free.mean(1), [ALONG / 2, ALONG], atol=0.3)
    np.testing.assert_allclose(passing.mean(1), [through, ALONG], atol=0.3)
    np.testing.assert_allclose(passing[0], np.broadcast_to(through, passing[0].shape), atol=2.0)  # every atom


def test_a_way_out_and_back_takes_a_field_that_depends_on_time(followed):
    """No field that does not can turn a point round; two waypoints, between two Euler steps and on one."""
    out = followed(np.zeros(3), {0.375: ACROSS, 0.75: ACROSS / 2}, [0.375, 0.75, 1.0]).mean(1)
    np.testing.assert_allclose(out, [ACROSS, ACROSS / 2, np.zeros(3)], atol=0.4)


@pytest.fixture(scope="module")
def problem(shifted, maps):
    ends = [shifted(by) for by in (ACROSS, ALONG)]
    return prepare.prepare(maps[0], ends, Resolutions(8.0, [9.0, 10.0]), waypoints=[0.25])


def test_terms_lie_along_one_trajectory_and_each_is_what_it_would_be_alone(problem):
    alone = replace(problem, waypoints=())
    assert (problem.trajectories, alone.trajectories) == (1, 2)
    for stage in (replace(MATCHED, terms=(Matched(), Rigidity(0.1))), POINTS):
        _, (together,) = stage_inputs(problem, Timed(FIELD, (0.25,)), stage).of_target(0)
        apart = stage_inputs(alone, FIELD, stage)
        for target in range(2):
            each = together.terms.of_target(target), apart.of_target(target)[1]
            for a, b in zip(*map(jax.tree.leaves, each), strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_start_misplaces_mass_where_it_misses_a_waypoint(problem):
    """At the end every point is where it belongs, and at the waypoint half of them are not."""
    field = Timed(FIELD, problem.waypoints)
    scene, (term,) = stage_inputs(problem, field, POINTS).of_target(0)
    still = jax.tree.map(jnp.zeros_like, initial_state(field, 0, 1).params)

    def misplaced(away):
        own = [term.terms.of_target(time)[0] for time in range(2)]
        ends = [
            one.replace(ends=scene.x + shift, weight=jnp.ones(len(scene.x)))
            for one, shift in zip(own, away, strict=True)
        ]
        return misplaced_fraction(still, Batch.of([(scene, (AtEachTime(Batch.of([(one,) for one in ends])),))]), 3.0)

    none, half = np.zeros((2, len(scene.x), 3), np.float32), len(scene.x) // 2
    np.testing.assert_array_equal(misplaced(none), [0.0])
    none[0, :half, 1] = 4 * float(term.terms.of_target(0)[0].reach)
    np.testing.assert_allclose(misplaced(none), [half / len(scene.x)], rtol=1e-5)


def test_the_default_recipe_takes_more_steps_through_waypoints_and_time_as_an_input(problem):
    alone, config = default(replace(problem, waypoints=())), default(problem)
    assert config.field.euler_steps > alone.field.euler_steps
    timed, plain = (
        initial_state(field, 0, 1).params["params"] for field in (Timed(config.field, (0.25,)), alone.field)
    )
    assert not timed.pop("time_in")["kernel"].any()  # from the default's start, blind to time
    jax.tree.map(np.testing.assert_array_equal, timed, plain)


@pytest.fixture(scope="module")
def bent(shifted, maps):
    """A short fit whose field depends on time, and its maps' first."""
    waypoints = [Waypoint(shifted(ALONG), 0.8, 8.0), Waypoint(shifted(ACROSS), 0.37, 8.0)]
    options = Options(Paper(4, SHORT), align="none", resolutions=Resolutions(8.0, 8.0))
    return morph(maps[0], maps[1], options, waypoints=waypoints)


def test_waypoints_are_taken_by_rising_time(bent):
    assert bent.field.times == (0.37, 0.8) and [used["time"] for used in bent.report["waypoints"]] == [0.37, 0.8]
    for name in ("targets", "blur_variance", "start"):  # of the target alone
        assert len(bent.report[name]) == 1
    assert all(used["volume"] > 0 and "blur_variance" in used for used in bent.report["waypoints"])


def test_a_saved_fit_gives_the_same_frames(bent, maps, tmp_path):
    bent.save(tmp_path / "fit")
    again = Fit.load(tmp_path / "fit", maps[0])
    assert again.config == bent.config and again.field == bent.field
    for a, b in zip(*(each.frames([0.3, 1.0]) for each in (bent, again)), strict=True):
        np.testing.assert_array_equal(a.density, b.density)


def test_a_frame_has_at_each_carried_place_the_density_that_was_there(bent, maps, models):
    """f_t(Φ(x, t)) = f_0(x), at a waypoint's time and at others."""
    smooth = simulation.simulate_map(models[0], maps[0].density.shape, maps[0].voxel_size, maps[0].origin, 12.0)
    strong = np.argwhere(smooth.density > 0.3 * smooth.density.max())
    times = [0.37, 0.6, 1.0]
    xyz = bent.carry(smooth.origin + strong * smooth.voxel_size, times)
    density = smooth.density[tuple(strong.T)]
    for to, frame in zip(xyz, replace(bent, initial=smooth).frames(times, render="pull_back"), strict=True):
        found = ndimage.map_coordinates(frame.density, ((to - smooth.origin) / smooth.voxel_size).T, order=3)
        np.testing.assert_allclose(found, density, atol=0.03 * density.max())  # two splines, and the control lattice


def test_waypoints_that_cannot_be_are_refused(shifted, maps):
    mid = shifted(ALONG)
    away = replace(mid, origin=mid.origin + 500)
    for targets, waypoints, sentence in (
        (maps[1], [(mid, 0.0)], "at the time 0: give one between 0"),
        (maps[1], [(mid, 1.0)], "at the time 1: give one between 0"),
        (maps[1], [(mid, 0.5), (mid, 0.5)], r"two waypoints have the same time \(0.5, 0.5\)"),
        (maps[1:], [(mid, 0.5)], "waypoints are for one target, and there are 2"),
        (maps[1], [(away, 0.5)], "mass lies in the initial map's box"),
    ):
        with pytest.raises(InputError, match=sentence):
            morph(maps[0], targets, Options(align="none"), waypoints=[Waypoint(*each) for each in waypoints])
