"""A fit makes its loss small, goes on where it stopped, and fits each target as it would alone."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import drift, fit_problem, rounding

from cryotrans_jax.core.batch import Batch
from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.losses import Term, rigidity
from cryotrans_jax.core.train import carry, objective
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.fit.better_start import KeepBetterStart, misplaced_fraction
from cryotrans_jax.fit.bodies import FindRigidBodies, RedrawBorders
from cryotrans_jax.fit.devices import (
    DeviceLayout,
    fit_to_memory,
    memory_needed,
    targets_at_once,
    train_steps,
)
from cryotrans_jax.fit.morph import morph
from cryotrans_jax.fit.optimisers import Adam, Optimiser, OptimiserSettings
from cryotrans_jax.fit.options import Options, Running
from cryotrans_jax.fit.schedule import Fitting
from cryotrans_jax.fit.stage import Action, Config, Stage, Supervision, stage_inputs
from cryotrans_jax.fit.state import initial_state
from cryotrans_jax.fit.supervise import Callbacks
from cryotrans_jax.fit.targets import Balance, rigidity_factor
from cryotrans_jax.fit.terms import L2, W2, Correspondences, Matched, Rigidity, TermSettings
from cryotrans_jax.io.files import InputError
from cryotrans_jax.motion import correspond
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.screw import Screw

CHUNK = 8  # does not divide the first stage's steps
STAGES = (
    Stage((W2(2e-3, window=4),), 20, 6e-3, 6e-3, bin=2, sampling=2),
    Stage((Matched(), Rigidity(0.03)), 30, 6e-3, 1e-4, bin=2, sampling=2, spacing=6.0),
)
# One velocity field for all fits, which then share their programs
FIELD = Field(Velocity(width=24, centre=0.5, waves=8, wave_number=2.0), 4)
CONFIG = Config(STAGES, FIELD, Supervision(chunk=CHUNK), seed=5)
POINTS = Stage((Correspondences(), Rigidity(1.0, slip=0.03)), 60, 3e-3, 1e-3, bin=2, sampling=2)
WAVING = replace(CONFIG, schedule=(POINTS,))
OBJECTIVE, CARRY = jax.jit(objective), jax.jit(carry)


def inputs(problem, stage):
    """Points of mass and terms of a stage."""
    return stage_inputs(problem, FIELD, stage)


@pytest.fixture(scope="module")
def whole(two):
    """The fit, its losses, and what progress was told."""
    told = []
    state, history = fit_problem(two, CONFIG, callbacks=Callbacks(lambda *at: told.append(at)))
    return state, history, told


def one(problem, target):
    return problem.select([target])


def field(params, target):
    """The parameters of one target."""
    return jax.tree.map(lambda p: np.asarray(p)[target], params)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def carried(problem, params, target):
    """Where the points of the last stage end, in Å."""
    scene, _ = inputs(problem, STAGES[-1]).of_target(0)
    return np.asarray(CARRY(field(params, target), scene).x) * problem.frame.edge


@dataclass(frozen=True)
class Descent(OptimiserSettings):
    """Gradient descent, an optimiser of a user's own."""

    def make(self):
        return optax.identity()


def test_a_step_is_the_learning_rate_times_the_optimisers_update():
    params, gradient = {"a": np.array([1.0, -2.0])}, {"a": np.array([0.5, -8.0])}
    moved, state = Optimiser.begin(Descent(), params).step(params, gradient, jnp.float32(0.1))
    np.testing.assert_allclose(moved["a"], params["a"] - 0.1 * gradient["a"], rtol=1e-6)
    moved, state = Optimiser.begin(Adam(), params).step(params, gradient, jnp.float32(0.1))
    np.testing.assert_allclose(moved["a"], params["a"] - 0.1 * np.sign(gradient["a"]), rtol=1e-5)  # Adam's first step
    assert state.settings == Adam() and jax.tree.leaves(state)[0] == 1  # of its count of steps


def test_the_loss_falls_for_every_target_and_stage(whole):
    _, history, _ = whole
    for stage, losses in zip(STAGES, history, strict=True):
        assert losses.shape == (stage.steps, 2)
        floor = 0.85 if stage.label == "w2" else 0.7  # the entropy's share of W2 stays
        assert (losses[-1] < floor * losses[0]).all()


def test_progress_is_told_every_loss_once(whole):
    _, history, told = whole
    assert [(stage, step) for stage, step, _ in told] == [(0, 8), (0, 16), (0, 20), (1, 8), (1, 16), (1, 24), (1, 30)]
    for number, losses in enumerate(history):
        np.testing.assert_array_equal(np.concatenate([t for stage, _, t in told if stage == number]), losses)


@pytest.mark.slow  # in the default suite: each loss as it would be alone, in the tests of correspondences and of rivals
@pytest.mark.parametrize("target", [0, 1])
def test_a_target_is_fitted_as_it_would_be_alone(two, whole, target):
    state, history, _ = whole
    alone, losses = fit_problem(one(two, target), CONFIG)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a[target], b[0], atol=drift(CONFIG))
    together, single = carried(two, state.params, target), carried(two, alone.params, 0)
    begin = np.asarray(inputs(two, STAGES[-1]).of_target(0)[0].x) * two.frame.edge
    assert np.abs(together - begin).max() > 1.0
    np.testing.assert_allclose(together, single, atol=0.02)  # Å, of more than 1
    for a, b in zip(history, losses, strict=True):
        np.testing.assert_allclose(a[:, target], b[:, 0], rtol=1e-3)


@pytest.fixture(scope="module")
def followed(two):
    """A fit to correspondences, and what it was fitted to."""
    return fit_problem(two, WAVING), inputs(two, POINTS)


def test_a_fit_to_correspondences_carries_the_points_to_their_ends(two, followed):
    """To half of where they were; the rigidity keeps the rest, and targets near and far alike."""
    (state, history), batch = followed
    assert history[0].shape == (60, 2) and (history[0][-1] < 0.5 * history[0][0]).all()
    for target in range(2):
        scene, (term, _) = batch.of_target(target)
        moved, weight = np.asarray(CARRY(field(state.params, target), scene).x), np.asarray(term.weight)
        left, before = (weight @ np.linalg.norm(x - term.ends, axis=1) for x in (moved, np.asarray(scene.x)))
        assert before / weight.sum() * two.frame.edge > 0.5  # Å: there is a way to go
        assert left < 0.5 * before


@pytest.mark.parametrize("target", [0, 1])
def test_a_target_follows_its_correspondences_as_it_would_alone(two, followed, target):
    (state, history), *_ = followed
    alone, losses = fit_problem(one(two, target), WAVING)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a[target], b[0], atol=drift(WAVING))
    np.testing.assert_allclose(history[0][:, target], losses[0][:, 0], rtol=1e-3)


def test_the_term_of_correspondences_is_for_its_target(two, followed):
    """Points weigh as much as they hold, and as sure as they are; the reach is in unit boxes."""
    _, batch = followed
    for target in range(2):
        scene, (term, _) = batch.of_target(target)
        end, sure = correspond.ends(two, target, scene.x)
        np.testing.assert_allclose(term.ends, end, atol=rounding(1.0, 10))
        np.testing.assert_allclose(term.weight, sure * np.asarray(scene.rho), rtol=1e-5)
        assert term.reach * two.frame.edge == pytest.approx(POINTS.terms[0].reach, rel=1e-6)
    first, second = (batch.of_target(target)[1][0].ends for target in range(2))
    assert not np.allclose(first, second, atol=0.5 / two.frame.edge)


def test_the_objective_is_the_distance_and_the_weighted_rigidity_with_slip(two, followed):
    (state, _), batch = followed
    params, (scene, (points, rigid)) = field(state.params, 0), batch.of_target(0)

    @jax.jit
    def both(params, scene, points, rigid):
        moved = carry(params, scene)
        strain = rigidity(moved.nodes, rigid.tetrahedra, rigid.edges, rigid.share, 0.03)
        return correspond.huber(moved.x, points.ends, points.weight, points.reach), strain

    apart, strain = both(params, scene, points, rigid)
    for weight in (1.0, 7.0):
        heavier = points, rigid.replace(weight=jnp.float32(weight))
        total, error = OBJECTIVE(params, scene, heavier)
        assert total == pytest.approx(float(apart + weight * strain), rel=1e-4) and error == 0
    assert strain > 0.01 * apart


def test_terms_add_up(two, followed):
    """A term that is there twice counts twice; one defined here counts like the package's own."""

    class Inward(Term):
        def __call__(self, carried):
            return jnp.mean((carried.x - 0.5) ** 2)

    jax.tree_util.register_static(Inward)
    (state, _), batch = followed
    params, (scene, (points, _)) = field(state.params, 0), batch.of_target(0)
    one, twice, own, with_own = (
        float(OBJECTIVE(params, scene, terms)[0])
        for terms in ((points,), (points, points), (Inward(),), (points, Inward()))
    )
    assert twice == pytest.approx(2 * one, rel=1e-5) and with_own == pytest.approx(one + own, rel=1e-5) and own > 0


def test_only_a_balanced_rigidity_weighs_by_what_the_targets_tell(two):
    def weights(balanced):
        stage = replace(STAGES[1], terms=(Matched(), Rigidity(2.0, balanced=balanced)))
        return [float(inputs(two, stage).of_target(target)[1][1].weight) for target in range(2)]

    assert weights(False) == [2.0, 2.0]
    term = Rigidity(2.0, balanced=True)
    factors = [rigidity_factor(two, target, term.balance) for target in range(2)]
    np.testing.assert_allclose(weights(True), 2 * np.array(factors), rtol=1e-6)


def test_the_more_a_balanced_rigidity_weighs_noise_the_less_strain_it_lets_off(two):
    noisy = replace(two, noise=two.noise + 1e-3)

    def slip(noise_weight, balanced=True, slip=0.03):
        balance = Balance(noise_weight=noise_weight, noisy_slip=0.1)
        term = Rigidity(1.0, slip, balanced=balanced, balance=balance)
        return inputs(noisy, replace(STAGES[1], terms=(Matched(), term))).of_target(0)[1][1].slip

    assert slip(0.0) == slip(1.0, balanced=False) == pytest.approx(0.03)
    assert slip(1e9) == pytest.approx(0.1, rel=1e-3)
    some, more = slip(1.0), slip(3.0)
    assert 0.03 < some < more < 0.1
    assert slip(1.0, slip=0.0) is None


START, REFINE = replace(POINTS, steps=30), replace(STAGES[1], steps=30)
CONTEST = replace(CONFIG, schedule=(START, KeepBetterStart(STAGES[0]), REFINE))


def test_mass_is_misplaced_where_it_ends_far_from_its_match(two, followed):
    """By three times the reach; each point by its weight, and each target by itself."""
    (state, _), batch = followed
    scenes, terms = zip(*(batch.of_target(target) for target in range(2)), strict=True)
    moved = [np.asarray(CARRY(field(state.params, k), scene).x) for k, scene in enumerate(scenes)]
    weight, many = np.ones((2, len(moved[0])), np.float32), len(moved[0]) // 20
    away = np.zeros((2, *moved[0].shape), np.float32)
    away[0, :many, 1], away[1, :many, 1] = 3.1 * terms[0][0].reach, 2.9 * terms[1][0].reach

    def misplaced(weight):
        each = [(term[0].replace(ends=moved[k] + away[k], weight=weight[k]),) for k, term in enumerate(terms)]
        return misplaced_fraction(state.params, Batch.of([*zip(scenes, each, strict=True)]), 3.0)

    np.testing.assert_allclose(misplaced(weight), [many / len(moved[0]), 0.0], rtol=1e-5)
    light = weight.copy()
    light[0, many:] = 1e3  # those that are far weigh next to nothing
    np.testing.assert_allclose(misplaced(light), [many / (many + 1e3 * (len(moved[0]) - many)), 0.0], rtol=1e-4)


@pytest.fixture(scope="module")
def contest(two):
    """Targets, and the fit with a rival, where the first one's correspondences are nonsense."""
    ends = correspond.ends

    def some(problem, target, points, search):
        end, sure = ends(problem, target, points, search)
        if problem.blurs[target] != two.blurs[0]:
            return end, sure
        return np.random.default_rng(0).permutation(end), sure

    def fit_with_nonsense(problem, config, **how):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(correspond, "ends", some)
            return fit_problem(problem, config, **how)

    return fit_with_nonsense(two, CONTEST), fit_with_nonsense


def test_a_start_that_does_not_hold_together_gives_way_to_a_better_one(two, contest):
    (state, history), refit = contest
    assert state.starts == ("w2", "points") and [len(losses) for losses in history] == [30, 30]
    led_astray, told = refit(two, replace(CONTEST, schedule=(START, REFINE)))
    assert led_astray.starts == ()
    assert history[1][-1, 0] < 0.9 * told[1][-1, 0]
    np.testing.assert_array_equal(history[0], told[0])


@pytest.mark.parametrize("target", [0, 1])
def test_a_target_has_the_start_that_it_would_have_alone(two, contest, target):
    """Another target's rival is none of its own: it is not even asked."""
    (state, history), refit = contest
    alone, losses = refit(one(two, target), CONTEST)
    assert alone.starts == (("w2",) if target == 0 else ())
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a[target], b[0], atol=drift(CONTEST))
    np.testing.assert_allclose(history[1][:, target], losses[1][:, 0], rtol=1e-3)


def test_a_fit_stopped_between_two_stages_tries_the_rival_when_it_goes_on(two, contest):
    (state, _), refit = contest
    middle, _ = refit(two, CONTEST, callbacks=Callbacks(lambda stage, step, _: step == 30))
    assert (middle.stage, middle.step, middle.starts) == (0, 30, ())
    resumed, _ = refit(two, CONTEST, state=middle)
    assert equal(resumed, state)
    begun = replace(Fitting.begin(two, CONTEST), state=middle)
    kept = CONTEST.schedule[1].choose(begun, np.zeros(2, bool)).state  # none is in doubt
    assert kept.starts == ("points", "points") and equal(kept.params, middle.params)


def test_every_action_of_a_schedule_is_done_once_in_its_place(maps, monkeypatch):
    """Also after one that divides the map; a fit that is resumed within a stage does not repeat those before it."""
    done = []

    @dataclass(frozen=True)
    class Note(Action):
        name: str

        def __call__(self, fitting):
            done.append((self.name, fitting.state.stage, len(fitting.history), bool(fitting.partitions)))
            return fitting

    labels = 1 + (np.arange(maps[0].density.shape[2]) > 15) * np.ones(maps[0].density.shape, int)
    halves = Partition(labels, maps[0].voxel_size, maps[0].origin)
    monkeypatch.setattr("cryotrans_jax.fit.bodies.find_bodies", lambda *_: ([halves], [[2.0, 1.0]]))
    stage = replace(STAGES[1], steps=2)
    schedule = (
        stage,
        Note("a"),
        FindRigidBodies(),
        Note("b"),
        stage,
        RedrawBorders(),
        Note("c"),
        stage,
        Note("d"),
    )
    kept, options = [], Options(replace(CONFIG, schedule=schedule, field=Screw(FIELD)), align="none")
    fit = morph(maps[0], maps[1], options, running=Running(on_snapshot=kept.append))
    expected = [("a", 0, 1, False), ("b", 0, 1, True), ("c", 1, 2, True), ("d", 2, 3, True)]
    assert done == expected and fit.partition().count == 2
    done.clear()
    middle = next(snapshot for snapshot in kept if snapshot.state.stage == 1)
    again = morph(maps[0], maps[1], options, running=Running(resume_from=middle))
    assert done == expected[2:] and equal(again.params, fit.params)


def test_schedules_that_cannot_be_run_are_refused(two):
    with pytest.raises(InputError, match="the schedule begins with KeepBetterStart"):
        Config((KeepBetterStart(STAGES[0]), *STAGES), FIELD)
    blind = replace(CONFIG, schedule=(replace(STAGES[1], steps=1), KeepBetterStart(STAGES[0]), STAGES[1]))
    with pytest.raises(InputError, match="follows a stage without correspondences"):
        fit_problem(two, blind)


@pytest.mark.parametrize("stop", [(0, 16), (0, 20), (1, 8)])
def test_a_resumed_fit_equals_an_uninterrupted_one(two, whole, stop):
    """Bit for bit, stopped in the middle of a stage or between two; losses go on where they stopped."""
    state, history, _ = whole
    middle, before = fit_problem(two, CONFIG, callbacks=Callbacks(lambda stage, step, _: (stage, step) == stop))
    assert (middle.stage, middle.step) == stop
    resumed, after = fit_problem(two, CONFIG, state=middle)
    assert equal(resumed, state)
    before = before + [np.zeros((0, 2))] * (2 - len(before))
    after = [np.zeros((0, 2))] * (2 - len(after)) + after
    for first, second, losses in zip(before, after, history, strict=True):
        np.testing.assert_array_equal(np.concatenate([first, second]), losses)


def test_a_fit_leaves_the_state_it_goes_on_from(two):
    state = initial_state(FIELD, 5, 2)
    first, second = (fit_problem(two, CONFIG, state=state, callbacks=Callbacks(lambda *_: True))[0] for _ in range(2))
    assert equal(first, second)


def test_another_seed_makes_another_fit(two, whole):
    """The same seed makes the same one: see above, where each fit starts anew."""
    state = initial_state(FIELD, 6, 2)
    assert not equal(state.params, initial_state(FIELD, 5, 2).params)
    assert not equal(fit_problem(two, CONFIG, state=state)[0].params, whole[0].params)


def test_every_target_starts_from_the_same_parameters():
    params = initial_state(FIELD, 5, 2).params
    assert equal(field(params, 0), field(params, 1))


@pytest.mark.parametrize("step, share", [(0, 1.0), (15, 0.5), (29, 0.0027)])
def test_the_learning_rate_falls_along_half_a_cosine(step, share):
    assert STAGES[1].rates[step] == pytest.approx(1e-4 + share * (6e-3 - 1e-4), rel=1e-2)
    assert len(STAGES[1].rates) == 30


def test_the_first_step_is_as_long_as_its_learning_rate(two):
    """Adam's first step moves every parameter by the rate, whatever its gradient."""
    begin, stage = initial_state(FIELD, 5, 2), STAGES[1]
    rates = jnp.asarray([[2e-3] + [5e-3] * (CHUNK - 1)] * 2)  # of the shape for which there is a program
    state = jnp.zeros(2), begin.params, begin.optimiser
    params, *_ = train_steps(jnp.int32(1), rates, *state, inputs(two, stage), DeviceLayout())
    both = zip(*map(jax.tree.leaves, jax.device_get((params, begin.params))), strict=True)
    moved = [np.abs(a - b).max() for a, b in both]
    np.testing.assert_allclose(moved, 2e-3, rtol=1e-2)


@pytest.fixture(scope="module")
def lacking(problem):
    """A scene, the term of a target that is the initial map without its end, and the depth (Å) of points in that."""
    gone = np.zeros(problem.initial.shape, bool)
    gone[..., gone.shape[2] // 2 :] = True
    depth = problem.voxel_size[2] * (np.arange(gone.shape[2]) - gone.shape[2] // 2 + 0.5)
    left, none = np.where(gone, 0, problem.initial)[None], np.zeros(1)
    without = replace(
        problem.select([0]), targets=left, densities=left, blurs=none, residual_blurs=none, denoising_blurs=none
    )
    scene, (term,) = inputs(without, Stage((Matched(final_lighten=1.0),), 1, 1.0, 1.0)).of_target(0)
    return scene, term, np.broadcast_to(depth, gone.shape)[problem.initial > 0]


WEIGH = jax.jit(lambda term, carried, left: term.weigh(carried, left))


def still(powers, left, scene, term):
    """The shares of their mass that the points keep in a flow that moves nothing."""
    params = jax.tree.map(np.zeros_like, field(initial_state(FIELD, 5, 1).params, 0))
    mass = WEIGH(term.replace(lighten=powers), CARRY(params, scene), np.float32(left))
    return np.asarray(mass) / np.asarray(scene.rho)


def test_mass_that_the_target_lacks_is_taken_away_and_no_other(lacking):
    *model, depth = lacking
    kept = still((1.0, 1.0), 0.0, *model)
    assert (kept <= 1 + rounding(1, 10)).all() and (kept >= 0).all()
    deep = 2 * Matched.nearby  # from where on a blur by `nearby` shows 2 % of the other side
    assert (depth > deep).sum() > 20 and kept[depth > deep].max() < 0.1
    assert (depth < -deep).sum() > 50 and kept[depth < -deep].min() > 0.9


def test_mass_is_weighed_by_a_power_that_goes_from_the_first_to_the_last(lacking):
    once, twice, never = (still((power, power), 0.3, *lacking[:2]) for power in (1.0, 2.0, 0.0))
    np.testing.assert_allclose(twice, once**2, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(never, 1)
    for left, power in ((1.0, 2.0), (0.0, 1.0), (0.25, 1.25)):
        np.testing.assert_allclose(still((2.0, 1.0), left, *lacking[:2]), once**power, rtol=1e-4, atol=1e-6)


def test_only_a_stage_that_weighs_changes_the_masses(lacking):
    scene, term, _ = lacking
    params = jax.tree.map(np.zeros_like, field(initial_state(FIELD, 5, 1).params, 0))
    carried = CARRY(params, scene)
    np.testing.assert_array_equal(term.replace(nearby=None).weigh(carried, jnp.float32(0)), scene.rho)


def test_neither_rates_nor_steps_compile_anew(two):
    """A schedule with other steps and learning rates runs the programs that are there."""
    fit_problem(two, CONFIG)
    compiled = train_steps.jitted._cache_size()
    schedule = tuple(replace(s, steps=2, learning_rate=1e-3, final_learning_rate=1e-3) for s in STAGES)
    fit_problem(two, replace(CONFIG, schedule=schedule, seed=8))
    assert train_steps.jitted._cache_size() == compiled


@pytest.mark.parametrize("factor, steps", [(1.0, (20, 30)), (0.5, (10, 15)), (2.55, (51, 76)), (1e-4, (1, 1))])
def test_scaled_multiplies_the_steps_and_nothing_else(factor, steps):
    stages = CONFIG.scaled(factor).stages
    assert tuple(s.steps for s in stages) == steps
    assert tuple(replace(s, steps=o.steps) for s, o in zip(stages, STAGES, strict=True)) == STAGES


@pytest.mark.slow
def test_a_window_that_is_too_narrow_is_widened_until_it_changes_nothing(two):
    """The fit from a window of one voxel is that of the whole grid: the steps done with the narrow one do not count."""
    begin, stage = initial_state(FIELD, 5, 2), replace(STAGES[0], steps=20)
    each = [replace(stage, terms=(W2(2e-3, window=window),)) for window in (1, None)]
    narrow, whole = (fit_problem(two, replace(CONFIG, schedule=(own,)))[0] for own in each)
    assert narrow.refined > 1 and whole.refined == 0
    for a, b in zip(jax.tree.leaves(narrow.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)  # the bound is 1 % of epsilon, the learning rate 3e-3
    state = jnp.full((2, CHUNK), 3e-3), jnp.zeros(2), begin.params, begin.optimiser
    *_, error = train_steps(jnp.int32(5), *state, inputs(two, each[0]), DeviceLayout())
    assert (np.asarray(error) > 1).all()  # the narrow window is seen for what it is


def test_refining_widens_the_window_up_to_the_whole_grid(two):
    narrow = W2(2e-3, window=3)
    assert narrow.refined() == W2(2e-3, window=6) and W2(2e-3).refined() == W2(2e-3)
    assert Matched().refined() == Matched()

    def window_of(term):
        return inputs(two, replace(STAGES[0], terms=(term,))).of_target(0)[1][0].window

    shape = inputs(two, STAGES[0]).of_target(0)[1][0].target.shape
    assert window_of(narrow) == 3 and window_of(W2(2e-3, window=max(shape) - 1)) is None


# When a stage ends


LATE = replace(CONFIG, schedule=(replace(STAGES[1], steps=80, learning_rate=2e-3, patience=2),))
PATIENT = replace(LATE, schedule=(replace(LATE.stages[0], patience=0),))


def test_a_stage_that_gains_nothing_goes_to_its_end(two):
    """Two chunks after the first without a gain, and the last fifth of the steps; none is left out without patience."""
    still = replace(LATE.stages[0], learning_rate=0.0, final_learning_rate=0.0)
    for patience, made in ((2, 3 * CHUNK + 16), (0, 80)):
        config = replace(LATE, schedule=(replace(still, patience=patience),))
        _, (losses,) = fit_problem(two, config)
        assert len(losses) == made


def test_early_stopping_knows_the_final_phase_of_each_targets_own_steps(two):
    """Nothing is gained: after three chunks each goes to the last fifth of its own steps."""
    still = replace(LATE.stages[0], learning_rate=0.0, final_learning_rate=0.0)
    state, (losses,) = fit_problem(two, replace(LATE, schedule=(replace(still, target_steps=(40, 80)),)))
    assert [*state.watch.skipped] == [32 - 3 * CHUNK, 64 - 3 * CHUNK] and len(losses) == 3 * CHUNK + 16


@pytest.fixture(scope="module")
def own_steps(two):
    """A schedule whose targets have different numbers of steps, and the state after it."""
    schedule = replace(STAGES[0], target_steps=(20, 11)), replace(STAGES[1], target_steps=(17, 30))
    return schedule, fit_problem(two, replace(CONFIG, schedule=schedule))[0]


@pytest.mark.parametrize("target", [0, 1])
def test_a_target_makes_its_own_steps_among_others_as_it_would_alone(two, own_steps, target):
    """Along its own falling learning rate; then it stays as it is while the other goes on."""
    schedule, together = own_steps
    single = tuple(replace(s, steps=s.target_steps[target], target_steps=()) for s in schedule)
    alone, _ = fit_problem(one(two, target), replace(CONFIG, schedule=single))
    ends = carried(two, together.params, target), carried(two, alone.params, 0)
    np.testing.assert_allclose(*ends, atol=0.02)  # Å, as for targets of equal steps


@pytest.mark.slow
def test_every_target_ends_as_it_would_alone(two):
    """One that stays the initial map has nothing to gain; the other goes on meanwhile."""
    late = replace(STAGES[1], bin=1, sampling=1, steps=120, learning_rate=3e-3, patience=2)  # on the maps' own voxels
    smooth = Field(Velocity(width=24, centre=0.5), 4)
    config, blurs = replace(CONFIG, schedule=(late,), field=smooth, supervision=Supervision(chunk=15)), np.zeros(2)
    masses, densities = (np.stack([two.initial, each[1]]) for each in (two.targets, two.densities))
    own = replace(two, targets=masses, densities=densities, blurs=blurs, residual_blurs=blurs)

    def ends(problem, params, target):
        scene, _ = stage_inputs(problem, smooth, late).of_target(0)
        return np.asarray(CARRY(field(params, target), scene).x) * problem.frame.edge

    state, _ = fit_problem(own, config)
    skipped = state.watch.skipped
    assert skipped[0] > 0 and skipped[0] > skipped[1]
    for target in range(2):
        alone, (losses,) = fit_problem(one(own, target), config)
        assert alone.watch.skipped == skipped[target] and len(losses) == 120 - skipped[target]
        # float32's rounding, which Adam makes steps of where gradients are next to nothing
        np.testing.assert_allclose(
            *(ends(own, *each) for each in ((state.params, target), (alone.params, 0))), atol=0.02
        )


@pytest.mark.parametrize("batch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_targets_in_turn_are_fitted_as_at_once(two, batch):
    config = replace(CONFIG, schedule=STAGES[1:])
    (state, (losses,)), (whole, (together,)) = (
        fit_problem(two, config, layout=layout) for layout in (DeviceLayout(batch=batch), DeviceLayout())
    )
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(a, b, atol=drift(config))
    np.testing.assert_allclose(losses[-1], together[-1], rtol=1e-3)


@pytest.mark.parametrize(
    "limit, fixed, each, targets, batch",
    [
        (10, 0, 1, 100, 8),  # a fifth of the limit stays free
        (10, 3, 1, 100, 5),
        (10, 3, 2, 100, 2),
        (10, 3, 1, 4, 4),
        (10, 9, 1, 4, 1),  # nothing fits: one, which may yet
        (10, 0, 9, 4, 1),
        (10, 0, 0, 4, 4),
        (10, np.inf, np.inf, 4, 1),
        (10, np.nan, np.nan, 4, 1),
    ],
)
def test_as_many_targets_at_once_as_memory_holds(limit, fixed, each, targets, batch):
    assert targets_at_once(float(limit), float(fixed), float(each), targets) == batch


@pytest.mark.slow
def test_a_device_with_little_memory_fits_some_targets_at_once_with_the_same_result(two):
    """The memory is made up: a fifth left free, it lies between what two and five at once need by the count of XLA."""
    stage = Stage((L2(),), 10, 3e-3, 3e-3, bin=2, sampling=2)
    five = two.select([0, 1, 0, 1, 0])
    config = replace(CONFIG, schedule=(stage,), supervision=Supervision(chunk=10))
    state, none = initial_state(FIELD, 5, 5), (np.int32(0), np.zeros((5, 10), np.float32), np.zeros(5, np.float32))
    call = *none, state.params, state.optimiser, inputs(five, stage)
    few, every = (sum(memory_needed(DeviceLayout(batch=batch), *call)) for batch in (2, None))
    assert few < every
    memory = round((few + every) / 2 / 0.8)
    chosen = fit_to_memory(DeviceLayout(memory=memory), *call)
    assert chosen in [DeviceLayout(batch=2), DeviceLayout(batch=3), DeviceLayout(batch=4)]
    assert sum(memory_needed(chosen, *call)) < 0.8 * memory
    assert fit_to_memory(DeviceLayout(memory=round(every / 0.79)), *call) == DeviceLayout()
    assert fit_to_memory(DeviceLayout(memory=round(few / 100)), *call) == DeviceLayout(batch=1)
    some, all_ = (fit_problem(five, config, layout=DeviceLayout(memory=m))[0].params for m in (memory, None))
    for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(all_), strict=True):
        np.testing.assert_allclose(a, b, atol=drift(config))


def test_memory_is_asked_of_devices_that_know_it(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    def found(*stats):
        monkeypatch.setattr(jax, "local_devices", lambda: [Device(s) for s in stats])
        return DeviceLayout.automatic(1)

    assert found(None) == found({}) == found({"bytes_limit": 5}, None) == DeviceLayout(batch=1)
    assert found({"bytes_limit": 5}, {"bytes_limit": 4}) == DeviceLayout(memory=4)


def test_terms_and_actions_that_are_none_are_refused_by_name(two):
    @dataclass(frozen=True)
    class Nothing(Action):
        def __call__(self, fitting):
            pass

    class Plain(Term):
        def __call__(self, carried):
            return jnp.mean(carried.x)

    @dataclass(frozen=True)
    class Settings(TermSettings):
        label = "plain"

        def make(self, problem, level, bin_, target):
            return Plain()

    with pytest.raises(TypeError):
        Stage(Matched(), 1, 1e-3, 1e-3)
    with pytest.raises(TypeError, match="Plain is no pytree"):
        inputs(two, Stage((Settings(),), 1, 1e-3, 1e-3))
    with pytest.raises(TypeError, match="Nothing returned None: return the fit"):
        fit_problem(two, replace(CONFIG, schedule=(replace(STAGES[1], steps=1), Nothing())))
