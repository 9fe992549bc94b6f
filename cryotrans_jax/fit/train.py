"""Fit velocity fields: a schedule of stages, many Adam steps in one compiled loop, vmapped over targets."""

import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from cryotrans_jax.core import losses
from cryotrans_jax.core.flow import (
    Points,
    Scalar,
    VelocityField,
    append_time,
    flow,
    interpolate_path,
    path,
    symmetrize,
    with_time,
)
from cryotrans_jax.core.grid import binned
from cryotrans_jax.core.programs import program
from cryotrans_jax.core.splat import gather, splat
from cryotrans_jax.core.transport import w2_and_error
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit.levels import Level, level_blur, level_targets, make_level, rigidity_factors, signal_power
from cryotrans_jax.io import memory
from cryotrans_jax.io.files import InputError
from cryotrans_jax.motion import correspond
from cryotrans_jax.motion import lattice as lattices


@dataclass(frozen=True)
class Stage:
    """One stage of the schedule: a loss, its settings, and the steps that minimise it.

    Attributes:
        loss: "w2" (eq. 3) or "l2" (both against thresholded targets), "matched" (L2 at matched resolution, independent
            of scale), or "points" (Huber loss to the correspondences).
        steps: Adam steps.
        learning_rate: at the start.
        final_learning_rate: at the end, reached along half a cosine; equal to `learning_rate` for a constant one.
        bin: voxel size of the comparison grid, in voxels of the map.
        sampling: distance between the points of mass, in voxels of the map.
        spacing: of the control lattice, Å; 0 integrates the flow at every point.
        epsilon: entropic regularisation of W2, in unit boxes squared.
        iterations: Sinkhorn iterations.
        window: of the transport's kernel, in voxels of the comparison grid; None: the whole grid.
        blur: Å; blurs carried map and target alike, so that they attract each other from further away ("matched" only).
        reach: Å; distances from the correspondences above this count linearly ("points" only).
        rigidity: weight of the rigidity (eq. 13).
        balanced: whether that weight is multiplied by `prepare.rigidity_factors` ("matched" only).
        slip: strain beyond which the rigidity hardly grows; 0: the published rigidity.
        lighten: power for `downweight_missing` at the start; 0 keeps all mass ("matched" only).
        final_lighten: the power at the end, reached along half a cosine.
        patience: chunks of steps without a gain before early stopping skips to the final phase; 0: all steps are made.
    """

    loss: str
    steps: int
    learning_rate: float
    final_learning_rate: float
    bin: int = 1
    sampling: int = 1
    spacing: float = 0.0
    epsilon: float = 0.0
    iterations: int = 5
    window: int | None = None
    blur: float = 0.0
    reach: float = 2.0
    rigidity: float = 0.0
    balanced: bool = False
    slip: float = 0.0
    lighten: float = 0.0
    final_lighten: float = 0.0
    patience: int = 0

    @property
    def program(self) -> "Stage":
        """The settings that the compiled step depends on, besides the shapes of its inputs."""
        used = {name: getattr(self, name) for name in ("epsilon", "iterations", "window", "rigidity", "slip")}
        return Stage(self.loss, 0, 0.0, 0.0, final_lighten=float(self.lightens), **used)

    @property
    def lightens(self) -> bool:
        """Whether mass that the target does not have is downweighted."""
        return max(self.lighten, self.final_lighten) > 0

    @property
    def annealing(self) -> np.ndarray:
        """Fraction of the way to the final values left at each step (steps,): from 1 to 0 along half a cosine."""
        return 0.5 + 0.5 * np.cos(np.pi * np.arange(self.steps) / max(self.steps, 1))

    @property
    def rates(self) -> np.ndarray:
        """Learning rate of each step (steps,)."""
        return self.final_learning_rate + self.annealing * (self.learning_rate - self.final_learning_rate)

    @property
    def lighten_powers(self) -> np.ndarray:
        """Power for `downweight_missing` at each step (steps,)."""
        return self.final_lighten + self.annealing * (self.lighten - self.final_lighten)

    @property
    def final_phase(self) -> int:
        """First step of the stage's final phase, to which early stopping may skip."""
        return self.steps - round(FINAL_PHASE * self.steps)


@dataclass(frozen=True)
class Config:
    """Everything that decides a fit, besides the maps.

    Attributes:
        stages: the schedule.
        rival: a different first stage, tried for targets whose flow is torn after the first; None: no trial.
        width: units in each hidden layer of the network.
        depth: number of hidden layers.
        centre: subtracted from positions before the first layer, in unit boxes.
        waves: number of sines among the network's inputs.
        wave_number: standard deviation of their initial wave vectors, in radians per unit box.
        euler_steps: M of eq. 5.
        bodies: number of stages after which rigid bodies are found and get a field each; 0: never.
        redrawn: number of stages after which the borders of the bodies are redrawn.
        waypoints: times of all targets but the last, which then lie on one trajectory; empty: one trajectory per
            target.
        symmetry: operators of the point group as 12 numbers each: the three rows of the rotation and the shift, in unit
            boxes; empty: no symmetry.
        seed: of the network's initial weights.
    """

    stages: tuple[Stage, ...]
    rival: Stage | None = None
    width: int = 100
    depth: int = 2
    centre: float = 0.0
    waves: int = 0
    wave_number: float = 0.0
    euler_steps: int = 10
    bodies: int = 0
    redrawn: int = 0
    waypoints: tuple[float, ...] = ()
    symmetry: tuple[tuple[float, ...], ...] = ()
    seed: int = 0

    @property
    def flow(self) -> "Config":
        """The settings that compiled programs depend on, without seed and schedule, which cause no recompilation."""
        return replace(self, stages=(), rival=None, bodies=0, redrawn=0, seed=0)

    @property
    def network(self) -> Velocity:
        """The network of the velocity field."""
        own = {name: getattr(self, name) for name in ("width", "depth", "centre", "waves", "wave_number")}
        return Velocity(**own)


MEMORY_RESERVE = 0.2  # fraction of an accelerator's memory for what XLA does not count, and for the other stages' maps
ADAM = optax.scale_by_adam()
CHUNK = 25  # steps in one call of the compiled program, after which the host looks at the losses
# A flow is torn if more than TORN_MASS (fraction) ends further than TORN_DISTANCE times `reach` from its match.
TORN_DISTANCE, TORN_MASS = 3.0, 0.02
TRIAL_STEPS = 100  # steps of the next stage that decide between two starts
# A chunk of steps gains if it lowers the loss by more than MIN_GAIN of it, or of LOSS_FLOOR where the loss is smaller.
MIN_GAIN, LOSS_FLOOR = 0.005, 0.01
FINAL_PHASE = 0.2  # fraction of a stage's steps, with falling learning rates, that early stopping does not skip
TRANSFER_RIGIDITY = 1.0  # weight of the rigidity where a flow is fitted to another flow
NEARBY_BLUR = 3.0  # Å: blur within which the target is searched for carried mass
WINDOW_ERROR = 1e-2  # epsilon: a window that may change the potentials by more is doubled
# A loss above DIVERGENCE_RATIO times that of the stage's first chunk, or of DIVERGENCE_FLOOR if larger, has diverged.
DIVERGENCE_RATIO, DIVERGENCE_FLOOR = 10.0, 0.1
# A fit has diverged if more than MAX_MASS_OUTSIDE (fraction) is outside the crop, by a sample of SAMPLE_POINTS points.
MAX_MASS_OUTSIDE, SAMPLE_POINTS = 0.25, 512
RATE_DIVISOR = 4.0  # the learning rate is divided by this whenever a target's best parameters are restored
MAX_RESTARTS = 3  # how often in a fit they are, before the target is given up


@dataclass(frozen=True)
class DeviceLayout:
    """How a function of one target is applied to all: across devices, and in batches on each device.

    Attributes:
        mesh: has one axis, "targets", whose devices share the targets evenly (the number of targets must be a multiple
            of theirs); None: everything runs on the default device.
        batch: targets computed at once on a device; None: all of them, or as many as fit into `memory`. 1 is fastest on
            a CPU, as many as fit into memory on a GPU.
        memory: bytes that a device can hold; None: unknown.
    """

    mesh: jax.sharding.Mesh | None = None
    batch: int | None = None
    memory: int | None = None

    @classmethod
    def automatic(cls, targets: int) -> "DeviceLayout":
        """Share targets over all devices of this host: as many at once as memory holds, one where that is unknown."""
        devices = jax.local_devices()
        mesh = jax.sharding.Mesh(np.array(devices), ("targets",)) if min(len(devices), targets) > 1 else None
        limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
        return cls(mesh, None, min(limits)) if all(limits) else cls(mesh, 1)

    @property
    def devices(self) -> int:
        """Number of devices that share the targets."""
        return 1 if self.mesh is None else self.mesh.size

    def map(self, function: Callable, shared: PyTree, each: PyTree) -> PyTree:
        """function(shared, one) for every target; leaves of `each` and of the result have a leading axis of targets."""
        if self.mesh is None:
            return self.map_on_device(function, shared, each)
        along, whole = jax.sharding.PartitionSpec("targets"), jax.sharding.PartitionSpec()
        local = partial(self.map_on_device, function)
        sharded = jax.shard_map(local, mesh=self.mesh, in_specs=(whole, along), out_specs=along, check_vma=False)
        return sharded(shared, each)

    def map_on_device(self, function: Callable, shared: PyTree, each: PyTree) -> PyTree:
        """`map` on one device."""
        count = jax.tree.leaves(each)[0].shape[0]
        if self.batch is None or self.batch >= count:
            return jax.vmap(partial(function, shared))(each)
        return jax.lax.map(partial(function, shared), each, batch_size=self.batch if self.batch > 1 else None)


class Goal(NamedTuple):
    """What a stage compares the flow with; leaves have a leading axis of targets, and of times with waypoints.

    Attributes:
        volume: the target on the level's grid, in its units.
        power: sum of squares of the target, without that of its noise.
        blur: matrices that blur a carried map to the target's resolution; None: no blur.
        ends: where the level's points belong ("points" only), unit box.
        weight: mass of each point times the confidence in its correspondence ("points" only).
        reach: the stage's, in unit boxes ("points" only).
        validation: the target's second half-map, which no gradient sees.
        validation_power: sum of squares of that, without that of its noise.
        nearby: matrices of a blur by NEARBY_BLUR, where the stage downweights mass that the target does not have.
        rigidity_factor: factor on the weight of the rigidity, where the stage is balanced.
    """

    volume: Float[Array, "*targets x y z"] | None = None
    power: Float[Array, "*targets"] | None = None
    blur: losses.Blur | losses.Blurs | None = None
    ends: Float[Array, "*targets points 3"] | None = None
    weight: Float[Array, "*targets points"] | None = None
    reach: Float[Array, "*targets"] | None = None
    validation: Float[Array, "*targets x y z"] | None = None
    validation_power: Float[Array, "*targets"] | None = None
    nearby: losses.Blur | losses.Blurs | None = None
    rigidity_factor: Float[Array, "*targets"] | None = None

    @property
    def for_validation(self) -> "Goal":
        """The same with the second half-map as target."""
        return Goal(volume=self.validation, power=self.validation_power, blur=self.blur)


class Watch(NamedTuple):
    """State of early stopping in a stage, for each target separately.

    Attributes:
        best: least loss of a chunk so far; the validation loss where there are half-maps.
        stale: number of chunks since `best` fell by MIN_GAIN.
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
        optimiser: Adam's state.
        stage: number of the current stage, from 0.
        step: steps done in it.
        watch: state of early stopping.
        rivals: for each target, whether it started from the rival stage; empty where none was tried.
        scores: for each finished stage, the scores of its `watch`.
        window: of the transport, where the stage had to widen it (None: the whole grid); 0: the stage's own.
        setbacks: how often each target's best parameters were restored; empty where none were.
        failed: for each target why it was given up, or ""; empty where none was.
    """

    params: PyTree
    optimiser: PyTree
    stage: int
    step: int
    watch: Watch
    rivals: tuple[bool, ...] = ()
    scores: tuple[np.ndarray, ...] = ()
    window: int | None = 0
    setbacks: tuple[int, ...] = ()
    failed: tuple[str, ...] = ()


def scale_steps(stages: tuple[Stage, ...], factor: float) -> tuple[Stage, ...]:
    """Multiply the number of steps of every stage by `factor`, with at least one step each."""
    return tuple(replace(s, steps=max(1, round(s.steps * factor))) for s in stages)


def initial_state(config: Config, targets: int, parts: int = 0) -> State:
    """State before the first step. Every target starts from the same seed, so that it fits as it would alone.

    Args:
        config: the configuration.
        targets: number of targets, or of trajectories where there are waypoints.
        parts: number of parts, each with its own velocity field along a second axis of the parameters; 0: one field.
    """
    axes = (targets, parts) if parts else (targets,)
    return State(*initial_parameters(config.flow, axes, config.seed), 0, 0, initial_watch(targets))


@program(static_argnames=("config", "axes"))
def initial_parameters(config: Config, axes: tuple[int, ...], seed: Int[Array, ""]) -> tuple[PyTree, PyTree]:
    """Initial parameters and Adam's state, with these leading axes."""
    params = config.network.init(jax.random.key(seed), network_inputs(config, jnp.zeros((1, 3)), 0.0))
    params = jax.tree.map(lambda p: jnp.broadcast_to(p, (*axes, *p.shape)), params)
    return params, jax.vmap(ADAM.init)(params)


def divide_state(state: State, parts: int, stage: int) -> State:
    """State at the first step of a stage in which each part has its own field, initially a copy of the whole's."""
    params = jax.tree.map(lambda p: jnp.asarray(np.repeat(np.asarray(p)[:, None], parts, axis=1)), state.params)
    return begin_stage(state._replace(params=params), stage)


def release_symmetry(config: Config, state: State, problem: Problem, number: int, layout: DeviceLayout) -> State:
    """State at the first step of a stage in which each body of the asymmetric unit has a field without the symmetry.

    Each new field starts from the network of the symmetric field and is fitted to its flow: as in the first stage to
    the correspondences, but these ends are certain.

    Args:
        config: the configuration with the symmetry.
        state: the state with one symmetric field per target.
        problem: the problem divided into bodies.
        number: the stage that follows.
        layout: how targets are laid out over devices.
    """
    stage = replace(config.stages[0], rigidity=TRANSFER_RIGIDITY)
    level = make_level(problem, stage.bin, stage.sampling, stage.spacing, stage.rigidity > 0)
    ends = carry_all_copies(config.flow, state.params, level)
    reach = jnp.full(ends.shape[:-2], stage.reach / problem.frame.edge)
    goal = Goal(ends=ends, weight=jnp.broadcast_to(level.rho, ends.shape[:-1]), reach=reach)
    free, initial = replace(config, symmetry=()), divide_state(state, problem.parts, 0)
    fitted, *_ = fit_stage(free, stage, (level, goal), initial, SILENT, CHUNK, layout, crop_of(problem))
    return begin_stage(state._replace(params=fitted.params), number)


@program(static_argnames="config")
def carry_all_copies(config: Config, params: PyTree, level: Level) -> Float[Array, "trajectories *times points 3"]:
    """Points of divided levels, all copies included, after the flow of one field for the whole."""

    def one(params, level):
        moved = advect(config, params, level.x.reshape(-1, 3))
        return level.with_copies(moved[..., level.valid, :])

    return jax.vmap(one)(params, level)


def initial_watch(targets: int) -> Watch:
    """State of early stopping before a stage's first step."""
    none = np.zeros(targets, int)
    return Watch(np.full(targets, np.inf), none, none, np.zeros((0, targets)), none)


def field(config: Config, params: PyTree) -> VelocityField:
    """Velocity field on points from `network_inputs`.

    It depends on time where there are waypoints, and commutes with the symmetry's operators where there are some.
    """
    velocity = partial(config.network.apply, params)
    if config.symmetry:
        rows = np.array(config.symmetry, np.float32)
        velocity = symmetrize(velocity, rows[:, :9].reshape(-1, 3, 3), rows[:, 9:])
    return with_time(velocity) if config.waypoints else velocity


def network_inputs(config: Config, x: Points, t: Scalar) -> Float[Array, "points coordinates"]:
    """Points x (n, 3) as `field` takes them: with the time t as a fourth coordinate where there are waypoints."""
    return append_time(x, t) if config.waypoints else x


def carry(
    config: Config, params: PyTree, level: Level
) -> tuple[Float[Array, "*times points 3"], Float[Array, "*times_parts nodes 3"]]:
    """Carry a level's points and nodes by the flow.

    Returns:
        The points with mass after the flow (part after part, and all copies where there is a symmetry), and the nodes
        of the lattice, or the points themselves without one. Nodes have an axis of parts before the last two where
        there are parts, and are those of the asymmetric unit. With waypoints, both have a leading axis of times: each
        waypoint's and the end.
    """
    start = level.x if level.lattice is None else level.lattice.nodes
    if not level.has_parts:
        nodes = advect(config, params, start)
        return level.with_copies(
            nodes if level.lattice is None else carry_by_lattice(level.x, level.lattice, start, nodes)
        ), nodes
    rows = jax.tree.map(lambda p: p[level.rows.owner], params), start.reshape(-1, 3)[level.rows.points]
    arrived = jax.vmap(partial(advect, config), out_axes=-3)(*rows)
    moved = nodes = arrived.reshape(*arrived.shape[:-3], -1, 3)[..., level.rows.place, :]
    if level.lattice is not None:
        moved = jax.vmap(carry_by_lattice, (0, 0, 0, -3), -3)(level.x, level.lattice, start, nodes)
    return level.with_copies(moved.reshape(*moved.shape[:-3], -1, 3)[..., level.valid, :]), nodes


def advect(config: Config, params: PyTree, x: Float[Array, "points 3"]) -> Float[Array, "*times points 3"]:
    """Points after the flow of one velocity field; with waypoints, at the time of each and at the end."""
    velocity = field(config, params)
    if not config.waypoints:
        return flow(velocity, x, config.euler_steps)
    visited = path(velocity, network_inputs(config, x, 0.0), config.euler_steps)[..., :3]
    return jnp.stack([interpolate_path(visited, t) for t in (*config.waypoints, 1.0)])


def carry_by_lattice(
    x: Float[Array, "points 3"],
    lattice: lattices.Lattice,
    start: Float[Array, "nodes 3"],
    nodes: Float[Array, "*times nodes 3"],
) -> Float[Array, "*times points 3"]:
    """Points after the flow that moved the lattice's nodes from `start` to `nodes`, at one or several times."""
    interpolate = partial(lattices.interpolate, lattice)
    return x + (jax.vmap(interpolate) if nodes.ndim > 2 else interpolate)(nodes - start)


def objective(
    config: Config, stage: Stage, params: PyTree, level: Level, goal: Goal
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The stage's loss for one target, averaged over waypoints and end.

    Returns:
        The loss, and the bound on what the transport's window may have changed, in epsilon.
    """
    moved, nodes = carry(config, params, level)
    if not config.waypoints:
        return stage_loss(stage, moved, nodes, level, goal)
    each = jax.lax.map(
        lambda at: stage_loss(stage, at[0], at[1], level._replace(rho=at[2]), at[3]),
        (moved, nodes, jnp.broadcast_to(level.rho, moved.shape[:-1]), goal),
    )
    return jnp.mean(each[0]), jnp.max(each[1])


def stage_loss(
    stage: Stage, moved: Float[Array, "points 3"], nodes: Float[Array, "*parts nodes 3"], level: Level, goal: Goal
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The stage's loss for carried points and nodes at one time, and the bound of `objective`."""
    loss, error = data_term(stage, moved, level, goal)
    if stage.rigidity:
        weight = stage.rigidity if goal.rigidity_factor is None else stage.rigidity * goal.rigidity_factor
        loss = loss + weight * rigidity_term(stage, nodes, level)
    return loss, error


def rigidity_term(stage: Stage, nodes: Float[Array, "*parts nodes 3"], level: Level) -> Float[Array, ""]:
    """Rigidity of the flow, a mean over the mass; parts are independent of each other."""

    def one(nodes, tetrahedra, mass_fraction):
        return losses.rigidity(nodes, tetrahedra, level.edges, mass_fraction, stage.slip)

    if not level.has_parts:
        return one(nodes, level.tetrahedra, level.mass_fraction)
    return jnp.sum(jax.vmap(one)(nodes, level.tetrahedra, level.mass_fraction))


def data_term(
    stage: Stage, moved: Float[Array, "points 3"], level: Level, goal: Goal
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The stage's loss without the rigidity, and the bound of `objective`."""
    if stage.loss == "points":
        return losses.huber(moved, goal.ends, goal.weight, goal.reach), jnp.zeros(())
    carried = carried_map(moved, level, goal)
    if stage.loss == "w2":
        return w2_and_error(carried, goal.volume, level.voxel, stage.epsilon, stage.iterations, stage.window)
    if stage.loss == "matched":
        return losses.scale_invariant_l2(carried, goal.volume, goal.power), jnp.zeros(())
    return losses.l2(carried, goal.volume), jnp.zeros(())


def carried_map(moved: Float[Array, "points 3"], level: Level, goal: Goal) -> Float[Array, "x y z"]:
    """Mass of the carried points on the target's grid, at the target's resolution."""
    carried = splat(moved, level.rho, goal.volume.shape, level.corner, level.voxel)
    return carried if goal.blur is None else losses.blur(carried, goal.blur)


def downweight_missing(
    config: Config, params: PyTree, level: Level, goal: Goal, power: Float[Array, ""]
) -> Float[Array, "*times points"]:
    """Reduce the mass of points for which the target has no density.

    Each point's mass is multiplied by (target / carried map)^power at its carried position, both blurred by NEARBY_BLUR
    and the ratio at most 1. A domain that the target does not have is so removed and attracts nothing; mass that is not
    yet in place comes back as it arrives. A power that rises during the fit leaves all mass in the first steps, which
    find the motion.

    Returns:
        The mass of each point.
    """

    def at_one_time(moved, goal):
        both = carried_map(moved, level, goal), goal.volume
        fraction = losses.fraction_in_target(*(losses.blur(volume, goal.nearby) for volume in both))
        return level.rho * gather(fraction, moved, level.corner, level.voxel) ** power

    moved, _ = carry(config, params, level)
    return jax.lax.map(lambda at: at_one_time(*at), (moved, goal)) if config.waypoints else at_one_time(moved, goal)


@program(static_argnames=("config", "stage", "layout"))
def train_steps(
    config: Config,
    stage: Stage,
    count: Int[Array, ""],
    rates: Float[Array, "targets most"],
    powers: Float[Array, "targets"],
    params: PyTree,
    optimiser_state: PyTree,
    level: Level,
    goal: Goal,
    layout: DeviceLayout = DeviceLayout(),
) -> tuple[PyTree, PyTree, Float[Array, "targets most"], Float[Array, "targets"]]:
    """Run Adam steps for every target in one compiled loop.

    Args:
        config: `Config.flow`.
        stage: `Stage.program`.
        count: number of steps, at most the number of columns of `rates`.
        rates: learning rates.
        powers: powers for `downweight_missing`, which is applied before the first of the steps.
        params: parameters of the velocity fields.
        optimiser_state: Adam's state.
        level: points and grid.
        goal: what they are compared with.
        layout: how targets are laid out over devices.

    Returns:
        Parameters, Adam's state, the loss of each step, and the largest error that the transport's window may have
        caused (`transport.window_error`).
    """

    def steps(shared, one):
        count, whole = shared
        rates, power, params, state, goal, own = one
        level = whole or own
        if stage.lightens:
            level = level._replace(rho=downweight_missing(config, params, level, goal, power))

        def body(i, carried):
            params, state, history, worst = carried
            differentiated = jax.value_and_grad(partial(objective, config, stage), has_aux=True)
            (loss, error), gradient = differentiated(params, level, goal)
            updates, state = ADAM.update(gradient, state)
            params = jax.tree.map(lambda p, u: p - rates[i] * u, params, updates)
            return params, state, history.at[i].set(loss), jnp.maximum(worst, error)

        start = params, state, jnp.zeros(rates.shape, level.x.dtype), jnp.zeros((), level.x.dtype)
        return jax.lax.fori_loop(0, count, body, start)

    whole, own = split_by_trajectory(level)
    return layout.map(steps, (count, whole), (rates, powers, params, optimiser_state, goal, own))


def split_by_trajectory(level: Level) -> tuple[Level | None, Level | None]:
    """The level as (shared, per trajectory): one of the two is None."""
    return (None, level) if level.has_parts else (level, None)


@program(static_argnames=("config", "stage", "layout"))
def validation_loss(
    config: Config, stage: Stage, params: PyTree, level: Level, goal: Goal, layout: DeviceLayout = DeviceLayout()
) -> Float[Array, "targets"]:
    """The stage's loss against the second half-map, without the rigidity, for every target."""

    def loss(whole, one):
        params, goal, own = one
        level = whole or own
        return data_term(stage, carry(config, params, level)[0], level, goal.for_validation)[0]

    whole, own = split_by_trajectory(level)
    return layout.map(loss, whole, (params, goal, own))


def targets_at_once(limit: float, fixed: float, per_target: float, targets: int) -> int:
    """Number of targets for which `fixed` and `per_target` bytes fit into `limit`, with MEMORY_RESERVE left."""
    free = (1 - MEMORY_RESERVE) * limit - fixed
    if not free > per_target:  # true also where a need is unknown (nan)
        return 1
    return min(targets, int(free / per_target)) if per_target > 0 else targets


def memory_needed(layout: DeviceLayout, *call) -> tuple[float, float]:
    """Memory of `train_steps(*call, layout)` on a device, by XLA's count.

    Returns:
        Bytes of arguments and results, and of working space. Infinite where the program is too large to be compiled,
        nan where XLA does not say.
    """
    try:
        return compiled_memory(train_steps.lower(*call, layout).compile())
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf, math.inf


def compiled_memory(compiled: Any) -> tuple[float, float]:
    """`memory_needed` of a compiled program."""
    analysis = compiled.memory_analysis()
    argument, output, alias, temporary = (
        float(getattr(analysis, f"{kind}_size_in_bytes", math.nan)) for kind in ("argument", "output", "alias", "temp")
    )
    return argument + output - alias, temporary


def fit_to_memory(layout: DeviceLayout, *call) -> DeviceLayout:
    """Reduce the layout's batch until `train_steps(*call, layout)` fits into `layout.memory`.

    All targets at once are tried first: this costs only the compilation that is needed anyway. Otherwise the need of
    each target is the difference between programs for two and for one.
    """
    if layout.memory is None:
        return layout
    whole_batch = replace(layout, memory=None)
    *same, rates, powers, params, adam, level, goal = call
    count = jax.tree.leaves(goal)[0].shape[0] // layout.devices

    def subset(n: int) -> tuple:
        few = partial(jax.tree.map, lambda a: jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype))
        return (*same, *few((rates, powers, params, adam)), few(level) if level.has_parts else level, few(goal))

    if count == 1 or sum(memory_needed(whole_batch, *call)) < (1 - MEMORY_RESERVE) * layout.memory:
        return whole_batch
    one, two = (memory_needed(DeviceLayout(), *subset(n)) for n in (1, 2))
    resident, working = two[0] - one[0], two[1] - one[1]
    fixed = one[0] + (count - 1) * resident + one[1] - working
    batch = targets_at_once(float(layout.memory), fixed, working, count)
    while (
        batch > 1
        and not sum(memory_needed(replace(whole_batch, batch=batch), *call)) < (1 - MEMORY_RESERVE) * layout.memory
    ):
        batch //= 2  # the loop over batches needs some memory as well
    return replace(whole_batch, batch=batch)


Progress = Callable[[int, int, np.ndarray], Any]


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

    low: Float[Array, "3"]
    high: Float[Array, "3"]


def crop_of(problem: Problem) -> Box:
    """The problem's crop as a box; mass outside of it is lost."""
    corner = np.asarray(problem.corner)
    sides = np.array(problem.initial.shape) * problem.voxel_size / problem.frame.edge
    return Box(jnp.asarray(corner, jnp.float32), jnp.asarray(corner + sides, jnp.float32))


def warn_of_setback(target: int, what: str) -> None:
    """Issue a Python warning about a target."""
    warnings.warn(f"target {target + 1}: {what}", stacklevel=2)


def fit(
    problem: Problem,
    config: Config,
    state: State | None = None,
    progress: Progress = lambda stage, step, losses: None,
    chunk: int = CHUNK,
    layout: DeviceLayout | None = None,
    on_state: Callable[[State, np.ndarray], None] = SILENT.on_state,
    on_setback: Callable[[int, str], None] = warn_of_setback,
) -> tuple[State, list[np.ndarray]]:
    """Fit the velocity fields by the whole schedule.

    A target diverges if its loss or parameters are not finite, its loss grows DIVERGENCE_RATIO times, or its mass
    leaves the crop. Then its best parameters in the stage are restored and its learning rate is divided by
    RATE_DIVISOR. After MAX_RESTARTS of these it is given up, and the other targets go on as they would without it.

    Args:
        problem: the prepared maps.
        config: schedule, network and symmetry.
        state: the state to resume from; None: the initial one. A resumed fit ends the same, bit for bit.
        progress: called with (stage, step, losses) after every chunk of steps, losses of shape (steps of the chunk,
            targets). If it returns True the fit ends there.
        chunk: steps in one call of the compiled program.
        layout: how targets are laid out over devices; None: all on the default device at once.
        on_state: called with (state, losses) after every chunk of steps, with a state to resume from.
        on_setback: called with (target, message) when a target's best parameters are restored or it is given up; by
            default a Python warning.

    Returns:
        The state after the schedule, and for each stage the losses (steps, targets) since `state`. `failed` of the
        state says why targets were given up.

    Raises:
        InputError: a stage needs more memory than there is.
    """
    state = initial_state(config, problem.trajectories, problem.parts) if state is None else state
    layout = DeviceLayout() if layout is None else layout
    history, callbacks, box = [], Callbacks(progress, on_state, on_setback), crop_of(problem)

    def compile_stage(number: int) -> tuple:
        inputs = stage_inputs(problem, config.stages[number])
        count = problem.trajectories
        zeros = jnp.int32(0), jnp.zeros((count, chunk), jnp.float32), jnp.zeros(count, jnp.float32)
        call = config.flow, config.stages[number].program, *zeros, state.params, state.optimiser, *inputs
        # compiled but not called, which would take memory
        compiled = train_steps.lower(*call, fit_to_memory(layout, *call)).compile()
        check_memory(number, sum(compiled_memory(compiled)), layout)
        return inputs

    background = ThreadPoolExecutor(1)  # compiles the later stages, one after the other, during the first
    try:
        compiling = {n: background.submit(compile_stage, n) for n in range(state.stage, len(config.stages))}
        for number in compiling:
            for later in compiling.values():
                if later.done():  # raise an error of a later stage now
                    later.result()
            stage, inputs = config.stages[number], compiling[number].result()
            if number != state.stage:
                state = begin_stage(state, number)
            state, losses_, stopped = fit_stage(config, stage, inputs, state, callbacks, chunk, layout, box)
            history.append(losses_)
            if stopped or all_failed(state):
                break
            state = state._replace(scores=(*state.scores, state.watch.scores))
            if config.rival and number == 0 and (doubted := is_torn(config, inputs, state)).any():
                following = config.stages[1], compiling[1].result()
                state = choose_start(problem, config, state, doubted, following, chunk, layout)
    finally:
        background.shutdown(wait=False, cancel_futures=True)
    return state, history


def check_memory(stage: int, required: float, layout: DeviceLayout) -> None:
    """Raise InputError if a stage's steps need more bytes than the device has, or than this machine has left.

    Memory that this process holds already counts as left: earlier stages give it back.
    """
    free, where = memory.available() + memory.resident(), "the machine"
    if layout.memory is not None:
        free, where = layout.memory, "the device"
    if required > free:  # false where XLA does not say (nan)
        wider = (required / free) ** (1 / 3)
        raise InputError(
            f"stage {stage + 1} needs {required / 2**30:.1f} GiB and {where} has {free / 2**30:.1f} GiB: use voxels "
            f"{wider:.2f} times as wide, crop the maps to the molecule, or use a larger bin with the recipe paper"
        )


def all_failed(state: State) -> bool:
    """Whether every target was given up."""
    return bool(state.failed) and all(state.failed)


def fit_stage(
    config: Config,
    stage: Stage,
    inputs: tuple,
    state: State,
    callbacks: Callbacks,
    chunk: int,
    layout: DeviceLayout,
    box: Box,
) -> tuple[State, np.ndarray, bool]:
    """Fit one stage.

    Returns:
        The state after the stage, its losses (steps, targets) since `state`, and whether `progress` asked to stop.
    """
    sized_layout = None  # the layout that fits into memory
    level, goal = inputs
    chunks, stopped = [np.zeros((0, len(state.watch.best)), np.float32)], False
    padded, powers = (np.pad(a, (0, stage.steps + chunk)) for a in (stage.rates, stage.lighten_powers))
    stage = stage if state.window == 0 else replace(stage, window=state.window)
    points = sample_points(level)
    while (
        not (stopped or all_failed(state)) and (left := stage.steps - state.step - int(state.watch.skipped.min())) > 0
    ):
        count, position = min(chunk, left), state.step + state.watch.skipped
        factor = RATE_DIVISOR**-state.watch.slowed * ~failed_targets(state)
        rates = jnp.asarray(padded[position[:, None] + np.arange(chunk)] * factor[:, None], jnp.float32)
        power = jnp.asarray(powers[position], jnp.float32)
        call = config.flow, stage.program, jnp.int32(count), rates, power, state.params, state.optimiser, level, goal
        sized_layout = sized_layout or fit_to_memory(layout, *call)
        params, adam, loss, error = train_steps(*call, sized_layout)
        if stage.window is not None and float(jnp.max(error)) > WINDOW_ERROR:
            stage, sized_layout = widen_window(stage, goal.volume.shape[-3:]), None
            state = state._replace(window=stage.window)
            continue  # repeat these steps with the wider window
        chunks.append(np.asarray(loss).T[:count])
        messages = find_divergence(config, state, params, chunks[-1], points, box)
        kept = state.params if state.watch.kept is None else state.watch.kept  # at first those of the stage's start
        state = state._replace(watch=state.watch._replace(kept=kept), step=state.step + count)
        if any(messages) or any(state.failed):
            params, adam, state = restore_best(config, state, params, adam, messages, callbacks.on_setback)
        state = state._replace(params=params, optimiser=adam)
        score = chunks[-1].mean(0)
        if goal.validation is not None:
            score = np.asarray(validation_loss(config.flow, stage.program, params, level, goal, sized_layout))
        state = state._replace(watch=update_watch(state, stage, np.where([bool(w) for w in messages], np.nan, score)))
        callbacks.on_state(state, chunks[-1])
        stopped = bool(callbacks.progress(state.stage, state.step, chunks[-1]))
    if not stopped and state.watch.kept is not None:
        chosen = failed_targets(state) | (goal.validation is not None)
        state = state._replace(params=where_target(chosen, state.watch.kept, state.params)) if chosen.any() else state
    return state, np.concatenate(chunks), stopped


def update_watch(state: State, stage: Stage, score: np.ndarray) -> Watch:
    """State of early stopping after a chunk of steps with this score.

    A target without a gain for `patience` chunks skips to the stage's final phase. The best parameters are kept.
    """
    best, stale, skipped, scores, slowed, kept = state.watch
    better = score < best
    kept = where_target(better, state.params, kept)
    stale = np.where(score < best - MIN_GAIN * np.maximum(np.minimum(best, 1e30), LOSS_FLOOR), 0, stale + 1)
    ahead = stage.final_phase - (state.step + skipped)
    skip = (stale >= stage.patience) & (ahead > 0) & (stage.patience > 0)
    scores, skipped = np.concatenate([scores, score[None]]), skipped + np.where(skip, ahead, 0)
    return Watch(np.fmin(best, score), np.where(skip, 0, stale), skipped, scores, slowed, kept)


def where_target(first: np.ndarray, a: PyTree, b: PyTree) -> PyTree:
    """The leaves of `a` for the targets where `first` is true, and of `b` for the others."""
    if first.all() or not first.any():  # always with one target; nothing to compile
        return a if first.any() else b
    return jax.tree.map(lambda p, q: jnp.where(first.reshape(-1, *[1] * (p.ndim - 1)), p, q), a, b)


def failed_targets(state: State) -> np.ndarray:
    """For each target, whether it was given up."""
    return np.array([bool(why) for why in state.failed]) if state.failed else np.zeros(len(state.watch.best), bool)


def find_divergence(
    config: Config, state: State, params: PyTree, losses: np.ndarray, points: tuple, box: Box
) -> tuple[str, ...]:
    """Describe how the fit of each target diverged in a chunk of steps; "" where it did not.

    Args:
        config: the configuration.
        state: before the chunk.
        params: after the chunk.
        losses: of the chunk's steps (steps, targets).
        points: sampled positions and masses, from `sample_points`.
        box: the crop.
    """
    finite = np.asarray(finite_and_outside(config.flow, params, *points, box))
    first = state.watch.scores[0] if len(state.watch.scores) else np.full(losses.shape[1], np.nan)
    limit = DIVERGENCE_RATIO * np.maximum(first, DIVERGENCE_FLOOR)  # nan in a stage's first chunk: no limit
    messages, failed = [], failed_targets(state)
    for target, (ok, outside) in enumerate(finite.T):
        own_losses = losses[:, target]
        if failed[target]:
            messages.append("")
        elif not (np.isfinite(own_losses).all() and ok):
            messages.append("the loss or the parameters are not finite numbers")
        elif own_losses.mean() > limit[target]:
            messages.append(f"the loss has grown from {first[target]:.3g} to {own_losses.mean():.3g}")
        elif outside > MAX_MASS_OUTSIDE:
            messages.append(f"{100 * outside:.0f} % of the mass has left the box")
        else:
            messages.append("")
    return tuple(messages)


def restore_best(
    config: Config,
    state: State,
    params: PyTree,
    adam: PyTree,
    messages: tuple[str, ...],
    on_setback: Callable[[int, str], None],
) -> tuple[PyTree, PyTree, State]:
    """Restore the best parameters of targets that diverged, with Adam's initial state.

    A target that was restored MAX_RESTARTS times before is given up, and keeps its best parameters.

    Returns:
        Parameters, Adam's state, and the state with the number of restarts and the failures.
    """
    restored = np.array([bool(what) for what in messages])
    failed, slowed = list(state.failed or [""] * len(restored)), state.watch.slowed + restored
    setbacks = np.array(state.setbacks or [0] * len(restored)) + restored
    for target in np.flatnonzero(restored):
        message = f"{messages[target]} by step {state.step} of stage {state.stage + 1}"
        if setbacks[target] > MAX_RESTARTS:
            failed[target] = f"{message}, after {MAX_RESTARTS} tries at lower learning rates"
            on_setback(int(target), f"{failed[target]}: the target is given up")
        else:
            divisor = RATE_DIVISOR ** slowed[target]
            on_setback(int(target), f"{message}: best parameters restored, learning rate divided by {divisor:g}")
    updates = {"setbacks": tuple(setbacks.tolist()), "failed": tuple(failed) if any(failed) else ()}
    state = state._replace(watch=state.watch._replace(slowed=slowed), **updates)
    restored = restored | failed_targets(state)
    fresh_adam = initial_adam(state.watch.kept)
    return where_target(restored, state.watch.kept, params), where_target(restored, fresh_adam, adam), state


def sample_points(level: Level) -> tuple[Float[np.ndarray, "*parts some 3"], Float[np.ndarray, "*parts some"]]:
    """Sample SAMPLE_POINTS of a level's points (of each part) and their masses.

    The number is fixed, so that one compiled program serves all levels.
    """
    x, rho = np.asarray(level.x), np.asarray(level.rho)
    if level.has_parts:  # padding has no mass
        held = np.zeros((len(rho), x[0, ..., 0].size), rho.dtype)
        kept = np.asarray(level.valid)
        np.add.at(held, (np.arange(len(rho))[:, None], kept), rho[:, : kept.shape[1]])  # of the asymmetric unit
        rho = held.reshape(x.shape[:-1])
    chosen = np.linspace(0, x.shape[-2] - 1, SAMPLE_POINTS).astype(int)
    return x[..., chosen, :], rho[..., chosen]


@program(static_argnames="config")
def finite_and_outside(
    config: Config, params: PyTree, x: Float[Array, "*a some 3"], rho: Float[Array, "*a some"], box: Box
) -> Float[Array, "2 targets"]:
    """For each target, whether all parameters are finite (1 or 0) and the fraction of its mass outside the box.

    With waypoints, at the worst of the times.
    """
    divided = x.ndim > 2

    def mass_outside(params, x, rho):
        end = advect(config, params, x)
        out = jnp.any((end < box.low) | (end > box.high), axis=-1)
        return jnp.max(jnp.sum(jnp.where(out, rho, 0), axis=-1))

    def one(params, own):
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
        here, mass = own or (x, rho)
        left = jnp.sum(jax.vmap(mass_outside)(params, here, mass)) if divided else mass_outside(params, here, mass)
        return jnp.stack([finite.astype(x.dtype), left / jnp.sum(mass)])

    return jax.vmap(one)(params, (x, rho) if divided else None).T


def begin_stage(state: State, stage: int) -> State:
    """State at the first step of a stage."""
    adam, watch = initial_adam(state.params), initial_watch(len(state.watch.best))
    return state._replace(optimiser=adam, stage=stage, step=0, watch=watch, window=0)


initial_adam = program(jax.vmap(ADAM.init))  # Adam's initial state, for every target


def is_torn(config: Config, inputs: tuple, state: State) -> np.ndarray:
    """For each target, whether the flow is torn: more than TORN_MASS ends far from its correspondences."""
    return np.asarray(misplaced_fraction(config.flow, state.params, *inputs)) > TORN_MASS


@program(static_argnames="config")
def misplaced_fraction(config: Config, params: PyTree, level: Level, goal: Goal) -> Float[Array, "targets"]:
    """For each target, the fraction of the mass that the flow leaves far from its ends, at the worst of the times."""

    def share(moved, goal):
        far = jnp.linalg.norm(moved - goal.ends, axis=-1) > TORN_DISTANCE * goal.reach
        return jnp.vdot(goal.weight, far) / jnp.sum(goal.weight)

    def worst(params, goal, own):
        moved, _ = carry(config, params, whole or own)
        return jnp.max(jax.vmap(share)(moved, goal)) if config.waypoints else share(moved, goal)

    whole, own = split_by_trajectory(level)
    return jax.vmap(worst)(params, goal, own)


def choose_start(
    problem: Problem,
    config: Config,
    state: State,
    doubted: np.ndarray,
    following: tuple[Stage, tuple],
    chunk: int,
    layout: DeviceLayout,
) -> State:
    """Choose between the first stage's state and the rival stage's, by the next stage's loss after TRIAL_STEPS.

    Args:
        problem: the prepared maps.
        config: the configuration, with a rival stage.
        state: after the first stage.
        doubted: targets for which the rival is considered; the others keep the first stage's state, as they would
            alone.
        following: the next stage and its inputs.
        chunk: steps in one call of the compiled program.
        layout: how targets are laid out over devices.

    Returns:
        The state with the better parameters for each target.
    """
    stage, inputs = following
    trial, settings = (
        replace(stage, steps=min(TRIAL_STEPS, stage.steps), patience=0),
        (SILENT, chunk, layout, crop_of(problem)),
    )
    other = initial_state(config, problem.trajectories, problem.parts)
    other, *_ = fit_stage(config, config.rival, stage_inputs(problem, config.rival), other, *settings)
    starts = [begin_stage(s._replace(failed=(), setbacks=()), 1) for s in (state, other)]
    final_losses = [fit_stage(config, trial, inputs, s, *settings)[1][-1] for s in starts]
    better = (
        doubted
        & (final_losses[1] < np.where(np.isfinite(final_losses[0]), final_losses[0], np.inf))
        & ~failed_targets(other)
    )
    params = where_target(better, other.params, state.params)
    return state._replace(params=params, rivals=tuple(map(bool, better)))


def widen_window(stage: Stage, shape: tuple[int, ...]) -> Stage:
    """The stage with twice the window, or with none once it would span the whole grid."""
    window = 2 * stage.window
    return replace(stage, window=window if window < max(shape) - 1 else None)


def stage_inputs(problem: Problem, stage: Stage) -> tuple[Level, Goal]:
    """Points and grid of a stage, and what they are compared with."""
    level = make_level(problem, stage.bin, stage.sampling, stage.spacing, stage.rigidity > 0)
    goal = make_goal(problem, stage, level)
    return level, jax.tree.map(lambda a: a[None], goal) if problem.waypoints else goal


def make_goal(problem: Problem, stage: Stage, level: Level) -> Goal:
    """What a stage compares the level's points with, for each target."""
    if stage.loss == "points":
        count = len(problem.masses)
        own = [level.for_trajectory(target % problem.trajectories) for target in range(count)]
        correspondences = [correspond.ends(problem, target, one.points) for target, one in enumerate(own)]
        end, weight = (jnp.asarray(np.stack(each), jnp.float32) for each in zip(*correspondences, strict=True))
        weight = weight * jnp.stack([one.rho for one in own])
        return Goal(ends=end, weight=weight, reach=jnp.full(count, stage.reach / problem.frame.edge))
    kind = "density" if stage.loss == "matched" else "mass"

    def binned_targets(problem: Problem) -> tuple[Array, Array, list[float]]:
        volumes, widths = level_targets(problem, stage.bin, kind, stage.blur)
        noise = volumes  # thresholded masses have no noise outside
        if kind == "density":
            noise, _ = level_targets(problem.solvent, stage.bin, kind, stage.blur)
        inside = [binned(mass, stage.bin) > 0 for mass in problem.masses]
        power = [signal_power(*each) for each in zip(volumes, noise, inside, strict=True)]
        return jnp.asarray(volumes), jnp.asarray(power), widths

    volume, power, widths = binned_targets(problem)
    goal = Goal(volume, power, level_blur(problem, stage.bin, widths))
    if kind == "density" and problem.validation_densities is not None:
        validation, validation_power, _ = binned_targets(replace(problem, densities=problem.validation_densities))
        goal = goal._replace(validation=validation, validation_power=validation_power)
    if stage.balanced:
        goal = goal._replace(rigidity_factor=jnp.asarray(rigidity_factors(problem), jnp.float32))
    if stage.lightens:
        goal = goal._replace(nearby=level_blur(problem, stage.bin, [NEARBY_BLUR] * len(problem.masses)))
    return goal
