"""Fit velocity fields: a schedule of stages, many Adam steps in one compiled loop, vmapped over targets."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from cryotrans_jax import lattice as lattices
from cryotrans_jax import losses
from cryotrans_jax.flow import flow
from cryotrans_jax.prepare import Level, Problem, level_blur, level_targets, make_level
from cryotrans_jax.splat import splat
from cryotrans_jax.transport import w2
from cryotrans_jax.velocity import Velocity


@dataclass(frozen=True)
class Stage:
    """One part of the schedule."""

    loss: str  # "w2", "l2" (both against thresholded targets) or "matched" (l2 at matched resolution)
    steps: int  # Adam steps
    learning_rate: float
    final_learning_rate: float  # reached along half a cosine; equal to learning_rate for a constant one
    bin: int = 1  # voxels of the comparison grid, in voxels of the map
    sampling: int = 1  # spacing of the mass points, in voxels of the map
    spacing: float = 0.0  # of the control lattice in Å; 0: the flow is integrated at every point
    epsilon: float = 0.0  # of the transport, in unit boxes squared
    iterations: int = 5  # of Sinkhorn
    window: int | None = None  # of the transport's kernel, in voxels of the comparison grid; None: all
    blur: float = 0.0  # Å; blurs carried map and target alike ("matched" only), which widens the comparison's reach
    rigidity: float = 0.0  # weight


@dataclass(frozen=True)
class Config:
    """Everything that decides a fit, besides the maps."""

    stages: tuple[Stage, ...]
    width: int = 100  # units in a hidden layer
    depth: int = 2  # hidden layers
    centre: float = 0.0  # subtracted from positions before the first layer, in unit boxes
    euler_steps: int = 10
    seed: int = 0

    @property
    def flow(self) -> "Config":
        """What compiled programs depend on: neither seed nor schedule, so that these do not compile them anew."""
        return replace(self, stages=(), seed=0)

    @property
    def network(self) -> Velocity:
        """The velocity field's module."""
        return Velocity(width=self.width, depth=self.depth, centre=self.centre)


class State(NamedTuple):
    """Where a fit stands; leaves carry a leading axis of targets."""

    params: PyTree
    optimiser: PyTree
    stage: int
    step: int  # steps done in the stage


def scaled(stages: tuple[Stage, ...], factor: float) -> tuple[Stage, ...]:
    """The schedule with every stage's number of steps times `factor` (at least one step each)."""
    return tuple(replace(s, steps=max(1, round(s.steps * factor))) for s in stages)


def start(config: Config, targets: int) -> State:
    """The state before the first step: every target from the same seed, so that each fits as it would alone."""
    params = config.network.init(jax.random.key(config.seed), jnp.zeros((1, 3)))
    params = jax.tree.map(lambda p: jnp.broadcast_to(p, (targets, *p.shape)), params)
    return State(params, jax.vmap(optimiser(config.stages[0]).init)(params), 0, 0)


def optimiser(stage: Stage) -> optax.GradientTransformation:
    """Adam with the stage's learning rate."""
    rate = optax.cosine_decay_schedule(
        stage.learning_rate, stage.steps, stage.final_learning_rate / stage.learning_rate
    )
    return optax.adam(rate)


def carry(config: Config, params: PyTree, level: Level) -> tuple[Float[Array, "points 3"], Float[Array, "nodes 3"]]:
    """The level's points after the flow, and its nodes (the points themselves without a lattice)."""
    velocity = partial(config.network.apply, params)
    if level.lattice is None:
        moved = flow(velocity, level.x, config.euler_steps)
        return moved, moved
    nodes = flow(velocity, level.lattice.nodes, config.euler_steps)
    return level.x + lattices.interpolate(level.lattice, nodes - level.lattice.nodes), nodes


def objective(
    config: Config,
    stage: Stage,
    params: PyTree,
    level: Level,
    target: Float[Array, "x y z"],
    blur: losses.Blur | None,
) -> Float[Array, ""]:
    """The stage's loss for one target."""
    moved, nodes = carry(config, params, level)
    carried = splat(moved, level.rho, target.shape, level.corner, level.voxel)
    if blur is not None:
        carried = losses.blur(carried, blur)
    if stage.loss == "w2":
        loss = w2(carried, target, level.voxel, stage.epsilon, stage.iterations, stage.window)
    else:
        loss = losses.l2(carried, target)
    if stage.rigidity:
        loss = loss + stage.rigidity * losses.rigidity(nodes, level.tetrahedra, level.edges, level.share)
    return loss


@partial(jax.jit, static_argnames=("config", "stage", "most"))
def train_steps(
    config: Config,
    stage: Stage,
    most: int,
    count: Array,
    params: PyTree,
    optimiser_state: PyTree,
    level: Level,
    targets: Float[Array, "targets x y z"],
    blur: losses.Blurs | None,
) -> tuple[PyTree, PyTree, Float[Array, "most targets"]]:
    """Parameters, optimiser's state and each step's losses after `count` (at most `most`) steps for every target."""
    adam = optimiser(stage)

    def step(params, state, target, blur):
        loss, gradient = jax.value_and_grad(partial(objective, config, stage))(params, level, target, blur)
        updates, state = adam.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    def body(i, carried):
        params, state, history = carried
        params, state, loss = jax.vmap(step)(params, state, targets, blur)
        return params, state, history.at[i].set(loss)

    history = jnp.zeros((most, targets.shape[0]), targets.dtype)
    return jax.lax.fori_loop(0, count, body, (params, optimiser_state, history))


Progress = Callable[[int, int, np.ndarray], Any]


def fit(
    problem: Problem,
    config: Config,
    state: State | None = None,
    progress: Progress = lambda stage, step, losses: None,
    chunk: int = 25,
) -> tuple[State, list[np.ndarray]]:
    """The state after the whole schedule, and each stage's losses (steps, targets) from where `state` stood.

    `progress(stage, step, losses)` is called after every chunk of steps, with losses (steps of the chunk, targets); it
    may keep `state` by returning True, which ends the fit there.
    """
    state = start(config, len(problem.masses)) if state is None else state
    static = config.flow
    history = []
    for number in range(state.stage, len(config.stages)):
        stage = config.stages[number]
        level, targets, blur = stage_inputs(problem, stage)
        if number != state.stage:
            state = State(state.params, jax.vmap(optimiser(stage).init)(state.params), number, 0)
        seen = []
        while state.step < stage.steps:
            count = min(chunk, stage.steps - state.step)
            params, opt, loss = train_steps(
                static, stage, chunk, jnp.int32(count), state.params, state.optimiser, level, targets, blur
            )
            state = State(params, opt, number, state.step + count)
            seen.append(np.asarray(loss)[:count])
            if progress(number, state.step, seen[-1]):
                return state, [*history, np.concatenate(seen)]
        history.append(np.concatenate(seen) if seen else np.zeros((0, len(targets)), np.float32))
    return state, history


def stage_inputs(problem: Problem, stage: Stage) -> tuple[Level, Float[Array, "targets x y z"], losses.Blurs | None]:
    """What a stage's steps work on: points and grid, targets, and the blur to their resolution."""
    level = make_level(problem, stage.bin, stage.sampling, stage.spacing, stage.rigidity > 0)
    volumes, widths = level_targets(problem, stage.bin, "density" if stage.loss == "matched" else "mass", stage.blur)
    return level, jnp.asarray(volumes), level_blur(problem, stage.bin, widths)
