"""A fit makes its loss small, goes on where it stopped, and fits each target as it would alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drift, rounding

from cryotrans_jax.core.losses import huber, rigidity
from cryotrans_jax.fit.levels import rigidity_factors
from cryotrans_jax.fit.train import (
    NEARBY_BLUR,
    Config,
    DeviceLayout,
    Stage,
    carry,
    choose_start,
    downweight_missing,
    fit,
    fit_to_memory,
    initial_state,
    is_torn,
    memory_needed,
    objective,
    scale_steps,
    stage_inputs,
    targets_at_once,
    train_steps,
    validation_loss,
    widen_window,
)
from cryotrans_jax.motion import correspond

STAGES = (
    Stage("w2", 20, 6e-3, 6e-3, bin=2, sampling=2, epsilon=2e-3, window=4),
    Stage("matched", 30, 6e-3, 1e-4, bin=2, sampling=2, spacing=6.0, rigidity=0.03),
)
# One velocity field for all fits, which then share their programs
CONFIG = Config(stages=STAGES, width=24, centre=0.5, waves=8, wave_number=2.0, euler_steps=4, seed=5)
POINTS = Stage("points", 60, 3e-3, 1e-3, bin=2, sampling=2, rigidity=1.0, slip=0.03)
WAVING = replace(CONFIG, stages=(POINTS,))
CHUNK = 8  # does not divide the first stage's steps
OBJECTIVE = jax.jit(objective, static_argnums=(0, 1))
CARRY = jax.jit(carry, static_argnums=0)
LIGHTENED = jax.jit(downweight_missing, static_argnums=0)


@pytest.fixture(scope="module")
def whole(two):
    """The fit, its losses, and what progress was told."""
    told = []
    state, history = fit(two, CONFIG, progress=lambda *at: told.append(at), chunk=CHUNK)
    return state, history, told


def one(problem, target):
    return problem.select([target])


def field(params, target):
    """The parameters of one target."""
    return jax.tree.map(lambda p: np.asarray(p)[target], params)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def carried(problem, params, target, config=CONFIG):
    """Where the points of the last stage end, in Å."""
    level = stage_inputs(problem, STAGES[-1])[0]
    params = field(params, target)
    return np.asarray(CARRY(config.flow, params, level)[0]) * problem.frame.edge


def test_the_loss_falls_for_every_target_and_stage(whole):
    _, history, _ = whole
    for stage, losses in zip(STAGES, history, strict=True):
        assert losses.shape == (stage.steps, 2)
        floor = 0.85 if stage.loss == "w2" else 0.7  # the entropy's share of W2 stays
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
    alone, losses = fit(one(two, target), CONFIG, chunk=CHUNK)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a[target], b[0], atol=drift(CONFIG))
    together, single = carried(two, state.params, target), carried(two, alone.params, 0)
    begin = np.asarray(stage_inputs(two, STAGES[-1])[0].x) * two.frame.edge
    assert np.abs(together - begin).max() > 1.0
    np.testing.assert_allclose(together, single, atol=0.02)  # Å, of more than 1
    for a, b in zip(history, losses, strict=True):
        np.testing.assert_allclose(a[:, target], b[:, 0], rtol=1e-3)


@pytest.fixture(scope="module")
def followed(two):
    """A fit to correspondences, and what it was fitted to."""
    return fit(two, WAVING, chunk=CHUNK), *stage_inputs(two, POINTS)


def test_a_fit_to_correspondences_carries_the_points_to_their_ends(two, followed):
    """To half of where they were; the rigidity keeps the rest, and targets near and far alike."""
    (state, history), level, goal = followed
    assert history[0].shape == (60, 2) and (history[0][-1] < 0.5 * history[0][0]).all()
    for target in range(2):
        params = field(state.params, target)
        moved = np.asarray(CARRY(WAVING.flow, params, level)[0])
        weight = np.asarray(goal.weight[target])
        left, before = (weight @ np.linalg.norm(x - goal.ends[target], axis=1) for x in (moved, np.asarray(level.x)))
        assert before / weight.sum() * two.frame.edge > 0.5  # Å: there is a way to go
        assert left < 0.5 * before


@pytest.mark.parametrize("target", [0, 1])
def test_a_target_follows_its_correspondences_as_it_would_alone(two, followed, target):
    (state, history), *_ = followed
    alone, losses = fit(one(two, target), WAVING, chunk=CHUNK)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a[target], b[0], atol=drift(WAVING))
    np.testing.assert_allclose(history[0][:, target], losses[0][:, 0], rtol=1e-3)


def test_the_goal_of_correspondences_is_theirs_for_each_target(two, followed):
    """Points weigh as much as they hold, and as sure as they are; the reach is in unit boxes."""
    _, level, goal = followed
    assert goal.volume is None and goal.blur is None
    for target in range(2):
        end, sure = correspond.ends(two, target, level.x)
        np.testing.assert_allclose(goal.ends[target], end, atol=rounding(1.0, 10))
        np.testing.assert_allclose(goal.weight[target], sure * np.asarray(level.rho), rtol=1e-5)
        assert goal.reach[target] * two.frame.edge == pytest.approx(POINTS.reach, rel=1e-6)
    assert not np.allclose(goal.ends[0], goal.ends[1], atol=0.5 / two.frame.edge)


def test_the_objective_is_the_distance_and_the_weighted_rigidity_with_slip(two, followed):
    (state, _), level, goals = followed
    params, goal = field(state.params, 0), field(goals, 0)

    @jax.jit
    def both(params, level, goal):
        moved, nodes = carry(WAVING, params, level)
        strain = rigidity(nodes, level.tetrahedra, level.edges, level.mass_fraction, 0.03)
        return huber(moved, goal.ends, goal.weight, goal.reach), strain

    apart, strain = both(params, level, goal)
    for weight in (1.0, 7.0):
        total, error = OBJECTIVE(WAVING, replace(POINTS, rigidity=weight), params, level, goal)
        assert total == pytest.approx(float(apart + weight * strain), rel=1e-4) and error == 0
    held, _ = OBJECTIVE(WAVING, POINTS, params, level, goal._replace(rigidity_factor=jnp.float32(3.0)))
    assert held == pytest.approx(float(apart + 3 * POINTS.rigidity * strain), rel=1e-4)
    assert strain > 0.01 * apart and POINTS.rigidity > 0


def test_only_a_balanced_stage_holds_by_what_the_targets_tell(two):
    stage = replace(STAGES[1], loss="matched", rigidity=1.0)
    assert stage_inputs(two, stage)[1].rigidity_factor is None
    np.testing.assert_allclose(
        stage_inputs(two, replace(stage, balanced=True))[1].rigidity_factor, rigidity_factors(two), rtol=1e-6
    )


CONTEST = replace(CONFIG, stages=(replace(POINTS, steps=30), replace(STAGES[1], steps=30)), rival=STAGES[0])


def test_a_target_is_torn_where_its_points_are_left_far_from_their_ends(two, followed):
    """By three times the reach, of two per cent of the mass; for each target by itself."""
    (state, _), level, goal = followed
    moved = np.stack([CARRY(WAVING.flow, field(state.params, k), level)[0] for k in range(2)])
    weight = np.ones(moved.shape[:2], np.float32)
    many = int(0.04 * len(level.x))
    away = np.zeros_like(moved)
    away[0, :many, 1], away[1, :many, 1] = 3.1 * goal.reach[0], 2.9 * goal.reach[0]
    ends = goal._replace(ends=jnp.asarray(moved + away), weight=jnp.asarray(weight))
    np.testing.assert_array_equal(is_torn(WAVING, (level, ends), state), [True, False])
    weight[0, many:] = 1e3  # those that are far weigh next to nothing
    light = ends._replace(weight=jnp.asarray(weight))
    np.testing.assert_array_equal(is_torn(WAVING, (level, light), state), [False, False])


@pytest.fixture(scope="module")
def contest(two):
    """Targets, and the fit with a rival, where the first one's correspondences are nonsense."""
    ends = correspond.ends

    def some(problem, target, level):
        end, sure = ends(problem, target, level)
        if problem.blurs[target] != two.blurs[0]:
            return end, sure
        return np.random.default_rng(0).permutation(end), sure

    def run(problem, config, **how):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(correspond, "ends", some)
            return fit(problem, config, chunk=CHUNK, **how)

    return run(two, CONTEST), run


def test_a_start_that_does_not_hold_together_gives_way_to_a_better_one(two, contest):
    (state, history), run = contest
    assert state.rivals == (True, False) and [len(losses) for losses in history] == [30, 30]
    led_astray, told = run(two, replace(CONTEST, rival=None))
    assert led_astray.rivals == ()
    assert history[1][-1, 0] < 0.9 * told[1][-1, 0]
    np.testing.assert_array_equal(history[0], told[0])


@pytest.mark.parametrize("target", [0, 1])
def test_a_target_has_the_start_that_it_would_have_alone(two, contest, target):
    """Another target's rival is none of its own: it is not even asked."""
    (state, history), run = contest
    alone, losses = run(one(two, target), CONTEST)
    assert alone.rivals == ((True,) if target == 0 else ())
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a[target], b[0], atol=drift(CONTEST))
    np.testing.assert_allclose(history[1][:, target], losses[1][:, 0], rtol=1e-3)


def test_a_fit_stopped_between_two_stages_tries_the_rival_when_it_goes_on(two, contest):
    (state, _), run = contest
    middle, _ = run(two, CONTEST, progress=lambda stage, step, _: step == 30)
    assert (middle.stage, middle.step, middle.rivals) == (0, 30, ())
    resumed, _ = run(two, CONTEST, state=middle)
    assert equal(resumed, state)
    following = CONTEST.stages[1], stage_inputs(two, CONTEST.stages[1])
    kept = choose_start(two, CONTEST, middle, np.zeros(2, bool), following, CHUNK, DeviceLayout())  # none is in doubt
    assert kept.rivals == (False, False) and equal(kept.params, middle.params)


@pytest.mark.parametrize("stop", [(0, 16), (0, 20), (1, 8)])
def test_a_resumed_fit_equals_an_uninterrupted_one(two, whole, stop):
    """Bit for bit, stopped in the middle of a stage or between two; losses go on where they stopped."""
    state, history, _ = whole
    middle, before = fit(two, CONFIG, progress=lambda stage, step, _: (stage, step) == stop, chunk=CHUNK)
    assert (middle.stage, middle.step) == stop
    resumed, after = fit(two, CONFIG, state=middle, chunk=CHUNK)
    assert equal(resumed, state)
    before = before + [np.zeros((0, 2))] * (2 - len(before))
    after = [np.zeros((0, 2))] * (2 - len(after)) + after
    for first, second, losses in zip(before, after, history, strict=True):
        np.testing.assert_array_equal(np.concatenate([first, second]), losses)


def test_a_fit_leaves_the_state_it_goes_on_from(two):
    state = initial_state(CONFIG, 2)
    first, second = (fit(two, CONFIG, state=state, progress=lambda *_: True, chunk=CHUNK)[0] for _ in range(2))
    assert equal(first, second)


def test_another_seed_makes_another_fit(two, whole):
    """The same seed makes the same one: see above, where each fit starts anew."""
    state = initial_state(replace(CONFIG, seed=6), 2)
    assert not equal(state.params, initial_state(CONFIG, 2).params)
    assert not equal(fit(two, CONFIG, state=state, chunk=CHUNK)[0].params, whole[0].params)


def test_every_target_starts_from_the_same_parameters():
    params = initial_state(CONFIG, 2).params
    assert equal(field(params, 0), field(params, 1))


@pytest.mark.parametrize("step, share", [(0, 1.0), (15, 0.5), (29, 0.0027)])
def test_the_learning_rate_falls_along_half_a_cosine(step, share):
    assert STAGES[1].rates[step] == pytest.approx(1e-4 + share * (6e-3 - 1e-4), rel=1e-2)
    assert len(STAGES[1].rates) == 30


def test_the_first_step_is_as_long_as_its_learning_rate(two):
    """Adam's first step moves every parameter by the rate, whatever its gradient."""
    begin, stage = initial_state(CONFIG, 2), STAGES[1]
    rates = jnp.asarray([[2e-3] + [5e-3] * (CHUNK - 1)] * 2)  # of the shape for which there is a program
    inputs = jnp.zeros(2), begin.params, begin.optimiser, *stage_inputs(two, stage)
    params, *_ = train_steps(CONFIG.flow, stage.program, jnp.int32(1), rates, *inputs, DeviceLayout())
    both = zip(*map(jax.tree.leaves, jax.device_get((params, begin.params))), strict=True)
    moved = [np.abs(a - b).max() for a, b in both]
    np.testing.assert_allclose(moved, 2e-3, rtol=1e-2)


@pytest.mark.parametrize("start, end, expected", [(0.0, 1.0, (0.0, 0.5, 0.9973)), (1.0, 1.0, (1.0, 1.0, 1.0))])
def test_the_power_that_lightens_goes_along_half_a_cosine(start, end, expected):
    powers = replace(STAGES[1], lighten=start, final_lighten=end).lighten_powers
    assert powers[[0, 15, 29]] == pytest.approx(expected, abs=1e-3)


@pytest.fixture(scope="module")
def lacking(problem):
    """A level and the goal of a target that is the initial map without its end, and the depth (Å) of points in that."""
    gone = np.zeros(problem.initial.shape, bool)
    gone[..., gone.shape[2] // 2 :] = True
    depth = problem.voxel_size[2] * (np.arange(gone.shape[2]) - gone.shape[2] // 2 + 0.5)
    left, none = np.where(gone, 0, problem.initial)[None], np.zeros(1)
    without = replace(
        problem.select([0]), masses=left, densities=left, blurs=none, residual_blurs=none, denoising_blurs=none
    )
    stage = replace(STAGES[1], bin=1, sampling=1, final_lighten=1.0)
    level, goal = stage_inputs(without, stage)
    return level, field(goal, 0), np.broadcast_to(depth, gone.shape)[problem.initial > 0]


def still(power, level, goal):
    """The shares of their mass that the points keep in a flow that moves nothing."""
    params = jax.tree.map(np.zeros_like, field(initial_state(CONFIG, 1).params, 0))
    return np.asarray(LIGHTENED(CONFIG.flow, params, level, goal, np.float32(power))) / np.asarray(level.rho)


def test_what_the_target_has_not_is_let_go_and_the_rest_is_not(lacking):
    level, goal, depth = lacking
    kept = still(1.0, level, goal)
    assert (kept <= 1 + rounding(1, 10)).all() and (kept >= 0).all()
    deep = 2 * NEARBY_BLUR  # from where on a blur by NEARBY_BLUR shows 2 % of the other side
    assert (depth > deep).sum() > 20 and kept[depth > deep].max() < 0.1
    assert (depth < -deep).sum() > 50 and kept[depth < -deep].min() > 0.9


def test_the_square_lets_go_twice_and_the_power_zero_nothing(lacking):
    once, twice, never = (still(power, *lacking[:2]) for power in (1.0, 2.0, 0.0))
    np.testing.assert_allclose(twice, once**2, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(never, 1)


def test_neither_rates_nor_steps_compile_anew(two):
    """A schedule with other steps and learning rates runs the programs that are there."""
    fit(two, CONFIG, chunk=CHUNK)
    compiled = train_steps.jitted._cache_size()
    stages = tuple(replace(s, steps=2, learning_rate=1e-3, final_learning_rate=1e-3) for s in STAGES)
    fit(two, replace(CONFIG, stages=stages, seed=8), chunk=CHUNK)
    assert train_steps.jitted._cache_size() == compiled


@pytest.mark.parametrize("factor, steps", [(1.0, (20, 30)), (0.5, (10, 15)), (2.55, (51, 76)), (1e-4, (1, 1))])
def test_scaled_multiplies_the_steps_and_nothing_else(factor, steps):
    stages = scale_steps(STAGES, factor)
    assert tuple(s.steps for s in stages) == steps
    assert tuple(replace(s, steps=o.steps) for s, o in zip(stages, STAGES, strict=True)) == STAGES


@pytest.mark.slow
def test_a_window_that_is_too_narrow_is_widened_until_it_changes_nothing(two):
    """The fit from a window of one voxel is that of the whole grid: the steps done with the narrow one do not count."""
    stage = replace(STAGES[0], steps=20)
    narrow, whole = (fit(two, replace(CONFIG, stages=(replace(stage, window=w),)))[0].params for w in (1, None))
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)  # the bound is 1 % of epsilon, the learning rate 3e-3
    begin, inputs = initial_state(CONFIG, 2), stage_inputs(two, stage)
    few = (
        jnp.int32(5),
        jnp.full((2, 25), 3e-3),
        jnp.zeros(2),
        begin.params,
        begin.optimiser,
    )  # of the shapes that `fit` has compiled
    *_, error = train_steps(CONFIG.flow, replace(stage, window=1).program, *few, *inputs, DeviceLayout())
    assert (np.asarray(error) > 1).all()  # the narrow window is seen for what it is


def test_widening_ends_at_the_whole_grid():
    assert widen_window(replace(STAGES[0], window=3), (12, 10, 14)).window == 6
    assert widen_window(replace(STAGES[0], window=7), (12, 10, 14)).window is None


# When a stage ends


LATE = replace(CONFIG, stages=(replace(STAGES[1], steps=80, learning_rate=2e-3, patience=2),))
PATIENT = replace(LATE, stages=(replace(LATE.stages[0], patience=0),))


def test_a_stage_that_gains_nothing_goes_to_its_end(two):
    """Two chunks after the first without a gain, and the last fifth of the steps; none is left out without patience."""
    still = replace(LATE.stages[0], learning_rate=0.0, final_learning_rate=0.0)
    for patience, made in ((2, 3 * CHUNK + 16), (0, 80)):
        config = replace(LATE, stages=(replace(still, patience=patience),))
        _, (losses,) = fit(two, config, chunk=CHUNK)
        assert len(losses) == made


@pytest.mark.slow
def test_every_target_ends_as_it_would_alone(two):
    """One that stays the initial map has nothing to gain; the other goes on meanwhile."""
    late = replace(STAGES[1], bin=1, sampling=1, steps=120, learning_rate=3e-3, patience=2)  # on the maps' own voxels
    config, blurs = replace(CONFIG, stages=(late,), waves=0), np.zeros(2)
    own = replace(two, densities=np.stack([two.initial, two.densities[1]]), blurs=blurs, residual_blurs=blurs)
    state, _ = fit(own, config, chunk=15)
    skipped = state.watch.skipped
    assert skipped[0] > 0 and skipped[0] > skipped[1]
    for target in range(2):
        alone, (losses,) = fit(one(own, target), config, chunk=15)
        assert alone.watch.skipped == skipped[target] and len(losses) == 120 - skipped[target]
        # float32's rounding, which Adam makes steps of where gradients are next to nothing
        np.testing.assert_allclose(
            *(carried(own, *each, config) for each in ((state.params, target), (alone.params, 0))), atol=0.02
        )


@pytest.fixture(scope="module")
def judged_by(two):
    """Targets with half-maps: one that is the initial map, and one that is the target."""
    blurs = np.zeros(2)
    return replace(
        two, blurs=blurs, residual_blurs=blurs, validation_densities=np.stack([two.initial, two.densities[1]])
    )


@pytest.fixture(scope="module")
def by_judge(judged_by):
    """The fit that they judge, and its losses."""
    return fit(judged_by, LATE, chunk=CHUNK)


@pytest.fixture(scope="module")
def unjudged(judged_by):
    """The fit without half-maps, by all steps, and its losses."""
    return fit(replace(judged_by, validation_densities=None), PATIENT, chunk=CHUNK)


def test_the_other_half_map_chooses_among_the_parameters(judged_by, by_judge, unjudged):
    """One that is the initial map finds every step worse than the last; one that is the target finds them better."""
    own, (state, (losses,)), (plain, _) = judged_by, by_judge, unjudged
    assert state.watch.skipped[0] > 0 and len(losses) > LATE.stages[0].steps - state.watch.skipped[0]
    for a, kept in zip(*map(jax.tree.leaves, (plain.params, state.params)), strict=True):
        np.testing.assert_allclose(a[1], kept[1], atol=drift(LATE))
    level, goal = stage_inputs(own, LATE.stages[0])
    seen, at_end = (validation_loss(CONFIG.flow, LATE.stages[0].program, s.params, level, goal) for s in (state, plain))
    np.testing.assert_allclose(seen, state.watch.best, rtol=1e-3)
    # not by more, as on coarse voxels a still flow has a loss of nearly 0.2
    assert at_end[0] > 1.25 * seen[0] and at_end[1] == pytest.approx(float(seen[1]), rel=1e-3)


def test_a_half_map_changes_no_step(judged_by, unjudged):
    """It is looked at, not fitted to."""
    _, with_judge = fit(replace(judged_by, validation_densities=judged_by.densities[::-1].copy()), PATIENT, chunk=CHUNK)
    np.testing.assert_array_equal(with_judge[0], unjudged[1][0])


@pytest.mark.parametrize("stop", [CHUNK, 3 * CHUNK])
def test_a_fit_with_a_judge_goes_on_as_if_never_stopped(judged_by, by_judge, stop):
    middle, _ = fit(judged_by, LATE, chunk=CHUNK, progress=lambda stage, step, _: step == stop)
    assert middle.step == stop and equal(fit(judged_by, LATE, state=middle, chunk=CHUNK)[0], by_judge[0])


@pytest.mark.parametrize("batch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_targets_in_turn_are_fitted_as_at_once(two, batch):
    config = replace(CONFIG, stages=STAGES[1:])
    (state, (losses,)), (whole, (together,)) = (
        fit(two, config, chunk=CHUNK, layout=layout) for layout in (DeviceLayout(batch=batch), DeviceLayout())
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
    stage = Stage("l2", 10, 3e-3, 3e-3, bin=2, sampling=2)
    five, config = two.select([0, 1, 0, 1, 0]), replace(CONFIG, stages=(stage,))
    state, inputs = initial_state(config, 5), stage_inputs(five, stage)
    none = np.int32(0), np.zeros((5, 10), np.float32), np.zeros(5, np.float32)
    call = config.flow, stage.program, *none, state.params, state.optimiser, *inputs
    few, every = (sum(memory_needed(DeviceLayout(batch=batch), *call)) for batch in (2, None))
    assert few < every
    memory = round((few + every) / 2 / 0.8)
    chosen = fit_to_memory(DeviceLayout(memory=memory), *call)
    assert chosen in [DeviceLayout(batch=2), DeviceLayout(batch=3), DeviceLayout(batch=4)]
    assert sum(memory_needed(chosen, *call)) < 0.8 * memory
    assert fit_to_memory(DeviceLayout(memory=round(every / 0.79)), *call) == DeviceLayout()
    assert fit_to_memory(DeviceLayout(memory=round(few / 100)), *call) == DeviceLayout(batch=1)
    some, all_ = (fit(five, config, chunk=10, layout=DeviceLayout(memory=m))[0].params for m in (memory, None))
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
