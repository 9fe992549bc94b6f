"""Run a stage: chunks of compiled steps, early stopping, and recovery from divergence."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, PyTree

from cryotrans_jax.core.batch import Batch
from cryotrans_jax.core.flow import FieldMotion
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit.devices import DeviceLayout, fit_to_memory, train_steps
from cryotrans_jax.fit.optimisers import Optimiser
from cryotrans_jax.fit.stage import Stage, Supervision
from cryotrans_jax.fit.state import State, Watch, all_failed, begin_optimiser, failed_targets, where_target
from cryotrans_jax.io.programs import program

Progress = Callable[[int, int, np.ndarray], Any]
SAMPLE_POINTS = 512  # points of the mass that are looked at, to see whether it has left the crop


class Callbacks(NamedTuple):
    """Functions that are called after every chunk of steps.

    Attributes:
        progress: see `fit`.
        on_state: called with the state from which a fit can be resumed, and the chunk's losses.
        on_setback: called with a target's number and a message, when its best parameters are restored or it is given
            up.
    """

    progress: Progress = lambda stage, step, losses: None
    on_state: Callable[["State", np.ndarray], None] = lambda state, losses: None
    on_setback: Callable[[int, str], None] = lambda target, what: None


SILENT = Callbacks()


class Box(NamedTuple):
    """Two opposite corners of a box, in unit boxes."""

    low: Float[Array | np.ndarray, "3"]
    high: Float[Array | np.ndarray, "3"]


def crop_of(problem: Problem) -> Box:
    """The problem's crop as a box; mass outside of it is lost."""
    corner = np.asarray(problem.corner)
    sides = np.array(problem.initial.shape) * problem.voxel_size / problem.frame.edge
    return Box(corner.astype(np.float32), (corner + sides).astype(np.float32))


def warn_of_setback(target: int, what: str) -> None:
    """Issue a Python warning about a target."""
    warnings.warn(f"target {target + 1}: {what}", stacklevel=2)


@struct.dataclass
class Sample:
    """Sampled points of mass of each part of each target, or of the whole where there are no parts.

    Their number is fixed, so that one compiled program serves all levels.

    Attributes:
        x: positions (targets, parts, some, 3), unit box.
        rho: masses (targets, parts, some).
        field: the motion of a point.
        divided: whether parameters have an axis of parts.
    """

    x: Any
    rho: Any
    field: FieldMotion = struct.field(pytree_node=False)
    divided: bool = struct.field(pytree_node=False)


class Setting(NamedTuple):
    """What stays the same during a fit.

    Attributes:
        supervision: early stopping, and recovery from divergence.
        callbacks: functions that are called after every chunk of steps.
        layout: how targets are laid out over devices.
        box: the crop; mass outside of it is lost.
    """

    supervision: Supervision
    callbacks: Callbacks
    layout: DeviceLayout
    box: Box


def fit_stage(
    stage: Stage, make_inputs: Callable[[Stage], Batch], inputs: Batch, state: State, setting: Setting
) -> tuple[State, np.ndarray, bool]:
    """Fit one stage.

    Args:
        stage: the stage.
        make_inputs: makes what a stage's steps need, for a stage whose terms have to be refined.
        inputs: what this stage's steps need.
        state: before the stage, or within it.
        setting: what stays the same during a fit.

    Returns:
        The state after the stage, its losses (steps, targets) since `state`, and whether `progress` asked to stop.
    """
    rules, callbacks, layout, _ = setting
    for _ in range(state.refined):
        stage = stage.refined()
    inputs = make_inputs(stage) if state.refined else inputs
    sample = sample_points(inputs, len(state.watch.best))
    chunks, stopped, sized = [np.zeros((0, len(state.watch.best)), np.float32)], False, None
    while not (stopped or all_failed(state)) and (count := steps_left(stage, state, rules.chunk)) > 0:
        call = *chunk_of(stage, state, rules, count), state.params, state.optimiser, inputs
        sized = sized or fit_to_memory(layout, *call)
        params, optimiser, loss, error = train_steps(*call, sized)
        if float(np.max(error)) > rules.term_error and stage.refined() != stage:
            stage, sized, state = stage.refined(), None, state._replace(refined=state.refined + 1)
            inputs = make_inputs(stage)
            continue  # repeat these steps with the refined terms
        chunks.append(np.asarray(loss).T[:count])
        state = supervised(stage, state, (params, optimiser), chunks[-1], sample, setting)
        callbacks.on_state(state, chunks[-1])
        stopped = bool(callbacks.progress(state.stage, state.step, chunks[-1]))
    if not stopped and state.watch.kept is not None:
        state = state._replace(params=where_target(failed_targets(state), state.watch.kept, state.params))
    return state, np.concatenate(chunks), stopped


def steps_left(stage: Stage, state: State, chunk: int) -> int:
    """Number of steps in the next chunk: those that the slowest target has left, at most a chunk."""
    ends = np.array([own.steps for own in stage.of_each(len(state.watch.best))])
    return min(chunk, int((ends - state.step - state.watch.skipped).max()))


def chunk_of(
    stage: Stage, state: State, rules: Supervision, count: int
) -> tuple[np.int32, Float[np.ndarray, "targets chunk"], Float[np.ndarray, "targets"]]:
    """Number of steps in a chunk, their learning rates, and the fraction of the annealing that is left.

    Beyond a target's own steps both are 0.
    """
    rates, left = np.zeros((len(state.watch.best), rules.chunk)), np.zeros(len(state.watch.best))
    factor = rules.rate_divisor**-state.watch.slowed * ~failed_targets(state)
    for target, own in enumerate(stage.of_each(len(rates))):
        position = state.step + state.watch.skipped[target]
        coming = own.rates[position:][: rules.chunk]
        rates[target, : len(coming)] = coming * factor[target]
        left[target] = own.annealing[position] if len(coming) else 0.0
    return np.int32(count), rates.astype(np.float32), left.astype(np.float32)


def supervised(
    stage: Stage,
    state: State,
    after: tuple[PyTree, Optimiser],
    losses: np.ndarray,
    sample: Sample,
    setting: Setting,
) -> State:
    """State after a chunk of steps with these losses (steps, targets): best parameters restored, early stopping.

    `state` is that before the chunk, and `after` the parameters and the optimiser's state after it.
    """
    params, optimiser = after
    messages = find_divergence(state, params, losses, sample, setting)
    kept = state.params if state.watch.kept is None else state.watch.kept  # at first those of the stage's start
    state = state._replace(watch=state.watch._replace(kept=kept), step=state.step + len(losses))
    if any(messages) or any(state.failed):
        params, optimiser, state = restore_best(state, params, optimiser, messages, setting)
    score = losses.mean(0)
    follows_noise = (score < stage.floor) & ~failed_targets(state)
    if follows_noise.any():
        params = where_target(follows_noise, state.watch.kept, params)
        say_that_noise_is_followed(follows_noise, state, setting.callbacks)
    state = state._replace(params=params, optimiser=optimiser)
    score = np.where(follows_noise | [bool(what) for what in messages], np.nan, score)
    watch = update_watch(state, stage, score, setting.supervision)
    ends = np.array([own.steps for own in stage.of_each(len(score))])
    return state._replace(watch=watch._replace(skipped=np.where(follows_noise, ends - state.step, watch.skipped)))


def say_that_noise_is_followed(targets: Bool[np.ndarray, "targets"], state: State, callbacks: Callbacks) -> None:
    """Say for which targets a stage ends because its loss is below its floor."""
    for target in np.flatnonzero(targets):
        callbacks.on_setback(
            int(target),
            f"by step {state.step} of stage {state.stage + 1} the carried map explains more than the signal in the "
            "target, that is, it follows noise: the stage ends, and the parameters before these steps are kept",
        )


def update_watch(state: State, stage: Stage, score: np.ndarray, rules: Supervision) -> Watch:
    """State of early stopping after a chunk of steps with this score.

    A target without a gain for `patience` chunks skips to the stage's final phase. The best parameters are kept.
    """
    best, stale, skipped, scores, slowed, kept = state.watch
    better = score < best
    kept = where_target(better, state.params, kept)
    stale = np.where(score < best - rules.min_gain * np.maximum(np.minimum(best, 1e30), rules.loss_floor), 0, stale + 1)
    final = np.array([rules.final_phase_of(own) for own in stage.of_each(len(best))])
    ahead = final - (state.step + skipped)
    skip = (stale >= stage.patience) & (ahead > 0) & (stage.patience > 0)
    scores, skipped = np.concatenate([scores, score[None]]), skipped + np.where(skip, ahead, 0)
    return Watch(np.fmin(best, score), np.where(skip, 0, stale), skipped, scores, slowed, kept)


def find_divergence(
    state: State, params: PyTree, losses: np.ndarray, sample: Sample, setting: Setting
) -> tuple[str, ...]:
    """Describe how the fit of each target diverged in a chunk of steps; "" where it did not.

    Args:
        state: before the chunk.
        params: after the chunk.
        losses: of the chunk's steps (steps, targets).
        sample: points of mass.
        setting: what stays the same during a fit.
    """
    rules = setting.supervision
    finite = np.asarray(finite_and_outside(params, sample, setting.box))
    first = state.watch.scores[0] if len(state.watch.scores) else np.full(losses.shape[1], np.nan)
    limit = rules.divergence_ratio * np.maximum(first, rules.divergence_floor)  # nan in a stage's first chunk: no limit
    messages, failed = [], failed_targets(state)
    for target, (ok, outside) in enumerate(finite.T):
        own_losses = losses[:, target]
        if failed[target]:
            messages.append("")
        elif not (np.isfinite(own_losses).all() and ok):
            messages.append("the loss or the parameters are not finite numbers")
        elif own_losses.mean() > limit[target]:
            messages.append(f"the loss has grown from {first[target]:.3g} to {own_losses.mean():.3g}")
        elif outside > rules.max_mass_outside:
            messages.append(f"{100 * outside:.0f} % of the mass has left the box")
        else:
            messages.append("")
    return tuple(messages)


def restore_best(
    state: State, params: PyTree, optimiser: Optimiser, messages: tuple[str, ...], setting: Setting
) -> tuple[PyTree, Optimiser, State]:
    """Restore the best parameters of targets that diverged, with the optimiser's initial state.

    A target that was restored as often as allowed before is given up, and keeps its best parameters.

    Returns:
        Parameters, the optimiser's state, and the state with the number of restarts and the failures.
    """
    rules, on_setback = setting.supervision, setting.callbacks.on_setback
    restored = np.array([bool(what) for what in messages])
    failed, slowed = list(state.failed or [""] * len(restored)), state.watch.slowed + restored
    setbacks = np.array(state.setbacks or [0] * len(restored)) + restored
    for target in np.flatnonzero(restored):
        message = f"{messages[target]} by step {state.step} of stage {state.stage + 1}"
        if setbacks[target] > rules.max_restarts:
            failed[target] = f"{message}, after {rules.max_restarts} tries at lower learning rates"
            on_setback(int(target), f"{failed[target]}: the target is given up")
        else:
            divisor = rules.rate_divisor ** slowed[target]
            on_setback(int(target), f"{message}: best parameters restored, learning rate divided by {divisor:g}")
    state = state._replace(
        watch=state.watch._replace(slowed=slowed),
        setbacks=tuple(setbacks.tolist()),
        failed=tuple(failed) if any(failed) else (),
    )
    restored = restored | failed_targets(state)
    kept, begun = state.watch.kept, begin_optimiser(optimiser.settings, state.watch.kept)
    return where_target(restored, kept, params), where_target(restored, begun, optimiser), state


def sample_points(batch: Batch, targets: int) -> Sample:
    """Sample SAMPLE_POINTS points of mass of each part of each target."""
    each = [batch.of_target(target)[0] for target in range(targets)]
    held = [scene.motion.by_part(np.asarray(scene.x), np.asarray(scene.rho)) for scene in each]
    chosen = np.linspace(0, held[0][0].shape[1] - 1, SAMPLE_POINTS).astype(int)
    x, rho = (np.stack([a[:, chosen] for a in kind]) for kind in zip(*held, strict=True))
    return Sample(x, rho, each[0].motion.field, each[0].motion.divided)


@program
def finite_and_outside(params: PyTree, sample: Sample, box: Box) -> Float[Array, "2 targets"]:
    """For each target, whether all parameters are finite (1 or 0) and the fraction of its mass outside the box.

    With waypoints, at the worst of the times.
    """

    def mass_outside(params, x, rho):
        end = sample.field.ends(params, x)
        out = jnp.any((end < box.low) | (end > box.high), axis=-1)
        return jnp.max(jnp.sum(jnp.where(out, rho, 0), axis=-1))

    def one(params, sample):
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
        outside = jnp.sum(jax.vmap(mass_outside, (0 if sample.divided else None, 0, 0))(params, sample.x, sample.rho))
        return jnp.stack([finite.astype(outside.dtype), outside / jnp.sum(sample.rho)])

    return jax.vmap(one)(params, sample).T
