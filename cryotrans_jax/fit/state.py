"""State of a fit, as one pytree: parameters, optimiser, and where the schedule stands."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from cryotrans_jax.core.flow import FieldMotion
from cryotrans_jax.fit.optimisers import Adam, Optimiser, OptimiserSettings
from cryotrans_jax.io.programs import program


class Watch(NamedTuple):
    """State of early stopping in a stage, for each target separately.

    Attributes:
        best: least loss of a chunk so far.
        stale: number of chunks since one gained.
        skipped: number of steps left out.
        scores: losses of all chunks so far (chunks, targets), nan for chunks that diverged.
        slowed: how often in the stage the best parameters were restored, each time with a lower learning rate.
        kept: the parameters with the least loss.
    """

    best: np.ndarray
    stale: np.ndarray
    skipped: np.ndarray
    scores: np.ndarray
    slowed: np.ndarray
    kept: PyTree = None


class State(NamedTuple):
    """State of a fit; leaves have a leading axis of targets.

    Attributes:
        params: parameters of the velocity fields.
        optimiser: the optimiser and its state.
        stage: number of the current stage, from 0.
        step: steps done in it.
        watch: state of early stopping.
        starts: label of the first stage from which each target started; empty where only one was tried.
        refined: how often the stage's terms were refined.
        setbacks: how often each target's best parameters were restored; empty where none were.
        failed: for each target why it was given up, or ""; empty where none was.
    """

    params: PyTree
    optimiser: Optimiser
    stage: int
    step: int
    watch: Watch
    starts: tuple[str, ...] = ()
    refined: int = 0
    setbacks: tuple[int, ...] = ()
    failed: tuple[str, ...] = ()


def initial_state(
    field: FieldMotion, seed: int, targets: int, parts: int = 0, optimiser: OptimiserSettings = Adam()
) -> State:
    """State before the first step. Every target starts from the same seed, so that it fits as it would alone.

    Args:
        field: the motion by one velocity field.
        seed: of the network's initial weights.
        targets: number of targets, or of trajectories where there are waypoints.
        parts: number of parts, each with its own velocity field along a second axis of the parameters; 0: one field.
        optimiser: the optimiser.
    """
    axes = (targets, parts) if parts else (targets,)
    params, begun = initial_parameters(field, optimiser, axes, seed)
    return State(params, begun, 0, 0, initial_watch(targets))


@program(static_argnames=("field", "optimiser", "axes"))
def initial_parameters(
    field: FieldMotion, optimiser: OptimiserSettings, axes: tuple[int, ...], seed: Int[Array, ""]
) -> tuple[PyTree, Optimiser]:
    """Initial parameters and state of the optimiser, with these leading axes."""
    params = field.init(jax.random.key(seed))
    params = jax.tree.map(lambda p: jnp.broadcast_to(p, (*axes, *p.shape)), params)
    return params, begin_optimiser.function(optimiser, params)


@program(static_argnames="optimiser")
def begin_optimiser(optimiser: OptimiserSettings, params: PyTree) -> Optimiser:
    """State of the optimiser before its first step, for every target."""
    return jax.vmap(partial(Optimiser.begin, optimiser))(params)


def initial_watch(targets: int) -> Watch:
    """State of early stopping before a stage's first step."""
    none = np.zeros(targets, int)
    return Watch(np.full(targets, np.inf), none, none, np.zeros((0, targets)), none)


def begin_stage(state: State, stage: int) -> State:
    """State at the first step of a stage."""
    optimiser = begin_optimiser(state.optimiser.settings, state.params)
    watch = initial_watch(len(state.watch.best))
    return state._replace(optimiser=optimiser, stage=stage, step=0, watch=watch, refined=0)


def lower_losses(
    before: Float[np.ndarray, "targets"], after: Float[np.ndarray, "targets"]
) -> Bool[np.ndarray, "targets"]:
    """Where the losses of a second start are lower than those of the first, or these are not finite."""
    return after < np.where(np.isfinite(before), before, np.inf)


def with_starts(state: State, chosen: Bool[np.ndarray, "targets"], label: str, first: str) -> State:
    """The state with a new label of the start for the chosen targets.

    Args:
        state: the state.
        chosen: which targets have the new start.
        label: of the new start.
        first: label of the first stage, from which the others started unless another start was tried before.
    """
    before = state.starts or (first,) * len(chosen)
    starts = tuple(label if new else old for new, old in zip(chosen, before, strict=True))
    return state._replace(starts=starts)


def where_target(first: np.ndarray, a: PyTree, b: PyTree) -> PyTree:
    """The leaves of `a` for the targets where `first` is true, and of `b` for the others."""
    if first.all() or not first.any():  # always with one target; nothing to compile
        return a if first.any() else b
    return jax.tree.map(lambda p, q: jnp.where(first.reshape(-1, *[1] * (p.ndim - 1)), p, q), a, b)


def failed_targets(state: State) -> np.ndarray:
    """For each target, whether it was given up."""
    return np.array([bool(why) for why in state.failed]) if state.failed else np.zeros(len(state.watch.best), bool)


def all_failed(state: State) -> bool:
    """Whether every target was given up."""
    return bool(state.failed) and all(state.failed)
