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

from cryotrans_jax import correspond, losses, memory
from cryotrans_jax import lattice as lattices
from cryotrans_jax.files import InputError
from cryotrans_jax.flow import Points, Scalar, VelocityField, at_time, between, flow, path, symmetric, timed
from cryotrans_jax.prepare import Level, Problem, binned, holds, level_blur, level_targets, make_level, signal_power
from cryotrans_jax.programs import program
from cryotrans_jax.splat import gather, splat
from cryotrans_jax.transport import w2_and_error
from cryotrans_jax.velocity import Velocity


@dataclass(frozen=True)
class Stage:
    """One part of the schedule."""

    loss: (
        str  # "w2", "l2" (both against thresholded targets), "matched" (l2 at matched resolution, any scale), "points"
    )
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
    reach: float = 2.0  # Å; up to which distances from the correspondences count in full ("points" only)
    rigidity: float = 0.0  # weight
    balanced: bool = False  # whether that weight follows what each target tells ("matched" only; `prepare.holds`)
    slip: float = 0.0  # of the rigidity: strain beyond which it hardly grows; 0: the published one
    lighten: float = 0.0  # power by which mass is `lightened` at the start ("matched" only)
    final_lighten: float = 0.0  # reached along half a cosine
    patience: int = 0  # chunks of steps without a gain, after which the stage comes to its end; 0: all steps are made

    @property
    def program(self) -> "Stage":
        """What the compiled step depends on, besides the shapes of its inputs."""
        used = {name: getattr(self, name) for name in ("epsilon", "iterations", "window", "rigidity", "slip")}
        return Stage(self.loss, 0, 0.0, 0.0, final_lighten=float(self.lightens), **used)

    @property
    def lightens(self) -> bool:
        """Whether it lets go of mass that the target does not have."""
        return max(self.lighten, self.final_lighten) > 0

    @property
    def left(self) -> np.ndarray:
        """How much of the stage's way is left at every step (steps,), from 1 to 0 along half a cosine."""
        return 0.5 + 0.5 * np.cos(np.pi * np.arange(self.steps) / max(self.steps, 1))

    @property
    def rates(self) -> np.ndarray:
        """Learning rate of every step (steps,)."""
        return self.final_learning_rate + self.left * (self.learning_rate - self.final_learning_rate)

    @property
    def powers(self) -> np.ndarray:
        """The power of `lightened` at every step (steps,)."""
        return self.final_lighten + self.left * (self.lighten - self.final_lighten)

    @property
    def ending(self) -> int:
        """The step from which on the learning rates are those of the stage's end, to which it may skip."""
        return self.steps - round(ENDING * self.steps)


@dataclass(frozen=True)
class Config:
    """Everything that decides a fit, besides the maps."""

    stages: tuple[Stage, ...]
    rival: Stage | None = None  # another way to begin, tried for targets whose correspondences do not hold together
    width: int = 100  # units in a hidden layer
    depth: int = 2  # hidden layers
    centre: float = 0.0  # subtracted from positions before the first layer, in unit boxes
    waves: int = 0  # sines among the network's inputs
    wave_number: float = 0.0  # of those at the start, in radians per unit box
    euler_steps: int = 10
    bodies: int = 0  # stages after which what moves nearly as a body goes on with a field of its own; 0: never
    redrawn: int = 0  # stages after which the borders of bodies are drawn anew
    waypoints: tuple[float, ...] = ()  # times of all targets but the last, which then lie on one trajectory
    symmetry: tuple[tuple[float, ...], ...] = ()  # operators: three rows of a rotation and the shift, in unit boxes
    seed: int = 0

    @property
    def flow(self) -> "Config":
        """What compiled programs depend on: neither seed nor schedule, so that these do not compile them anew."""
        return replace(self, stages=(), rival=None, bodies=0, redrawn=0, seed=0)

    @property
    def network(self) -> Velocity:
        """The velocity field's module."""
        own = {name: getattr(self, name) for name in ("width", "depth", "centre", "waves", "wave_number")}
        return Velocity(**own)


FREE = 0.2  # of an accelerator's memory: for what XLA does not count, and the other stages' maps
ADAM = optax.scale_by_adam()
CHUNK = 25  # steps in one call of the compiled program, after which the host looks at the losses
FAR, TORN = 3.0, 0.02  # a point is torn if FAR times `reach` from its end; this share of the mass is too much
TRIAL = 100  # steps of the next stage, after which the better of two starts is known
GAIN, SMALL = 0.005, 0.01  # a chunk of steps that lowers the loss, or SMALL, by less than this part gains nothing
ENDING = 0.2  # of a stage's steps, with falling learning rates, that are made in any case
SURE = 1.0  # weight of the rigidity where a flow is fitted to another one
NEARBY = 3.0  # Å: over which mass is looked for in the target
WINDOW_ERROR = 1e-2  # epsilon: a window that may change the potentials by more is doubled
DIVERGED, FAIR = 10.0, 0.1  # a loss so many times that of the stage's first chunk, or FAIR, has diverged
STRAY, SAMPLE = 0.25, 512  # more of the mass outside the crop is lost; judged by so many points of it
SLOWER, TRIES = 4.0, 3  # the learning rate's divisor where a target goes back to its best state; so often in a fit


@dataclass(frozen=True)
class Spread:
    """How a function of one target is applied to all: over devices, and on each of them so many at a time.

    `mesh` has one axis, "targets", whose devices share the targets evenly (their number must be a multiple); without
    one everything runs on the default device. `batch` targets are computed at once, the others after them: 1 is
    quickest on a CPU, as many as fit into memory on a GPU (None: all, or as many as `memory` bytes a device can hold).
    """

    mesh: jax.sharding.Mesh | None = None
    batch: int | None = None
    memory: int | None = None

    @classmethod
    def automatic(cls, targets: int) -> "Spread":
        """Targets over all of this host's devices; on each as many at once as its memory holds, one where unknown."""
        devices = jax.local_devices()
        mesh = jax.sharding.Mesh(np.array(devices), ("targets",)) if min(len(devices), targets) > 1 else None
        limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
        return cls(mesh, None, min(limits)) if all(limits) else cls(mesh, 1)

    @property
    def devices(self) -> int:
        """Number of devices that share the targets."""
        return 1 if self.mesh is None else self.mesh.size

    def map(self, function: Callable, shared: PyTree, each: PyTree) -> PyTree:
        """function(shared, one) for every target; the leaves of `each` and of the result have an axis of targets."""
        if self.mesh is None:
            return self.in_turn(function, shared, each)
        along, whole = jax.sharding.PartitionSpec("targets"), jax.sharding.PartitionSpec()
        local = partial(self.in_turn, function)
        spread = jax.shard_map(local, mesh=self.mesh, in_specs=(whole, along), out_specs=along, check_vma=False)
        return spread(shared, each)

    def in_turn(self, function: Callable, shared: PyTree, each: PyTree) -> PyTree:
        """The same on one device."""
        count = jax.tree.leaves(each)[0].shape[0]
        if self.batch is None or self.batch >= count:
            return jax.vmap(partial(function, shared))(each)
        return jax.lax.map(partial(function, shared), each, batch_size=self.batch if self.batch > 1 else None)


class Goal(NamedTuple):
    """What a stage compares with; leaves carry a leading axis of targets, and one of times where there are waypoints.

    `volume` is the target on the level's grid, in its units, and `power` its sum of squares without that of its noise;
    `blur` are the matrices that take a carried map to its resolution. Where the loss is "points", `ends` are where the
    level's points belong, `weight` how sure that is, and `reach` (unit boxes) the stage's. `judge` and `judge_power`
    are volume and power of the target's other half-map, where there is one: no gradient sees it. `nearby` are the
    matrices of a blur by NEARBY, where the stage lightens what the target has not; `hold` what the rigidity's weight is
    multiplied by, where the stage is balanced.
    """

    volume: Float[Array, "*targets x y z"] | None = None
    power: Float[Array, "*targets"] | None = None
    blur: losses.Blur | losses.Blurs | None = None
    ends: Float[Array, "*targets points 3"] | None = None
    weight: Float[Array, "*targets points"] | None = None
    reach: Float[Array, "*targets"] | None = None
    judge: Float[Array, "*targets x y z"] | None = None
    judge_power: Float[Array, "*targets"] | None = None
    nearby: losses.Blur | losses.Blurs | None = None
    hold: Float[Array, "*targets"] | None = None

    @property
    def by_judge(self) -> "Goal":
        """The same with the other half-map to compare with."""
        return Goal(volume=self.judge, power=self.judge_power, blur=self.blur)


class Watch(NamedTuple):
    """What decides when a stage ends, for each target by itself.

    `best` is the least loss of a chunk so far (the judge's where there is one), `stale` how many chunks there have been
    since it fell by GAIN, `skipped` how many steps were left out; `kept` are the parameters with the least loss.
    `scores` (chunks, targets) are the losses of all chunks so far, nan where one counts for nothing; `slowed` is how
    often in the stage the target went back to `kept`, each time to go on with a lower learning rate.
    """

    best: np.ndarray
    stale: np.ndarray
    skipped: np.ndarray
    scores: np.ndarray
    slowed: np.ndarray
    kept: PyTree = None


class State(NamedTuple):
    """Where a fit stands; leaves carry a leading axis of targets."""

    params: PyTree
    optimiser: PyTree
    stage: int
    step: int  # steps done in the stage
    watch: Watch
    rivals: tuple[bool, ...] = ()  # targets that went on from the rival start; empty where none was tried
    scores: tuple[np.ndarray, ...] = ()  # of each stage that is done, as its watch saw them
    window: int | None = 0  # of the transport, where the stage had to widen it (None: all); 0: the stage's own
    setbacks: tuple[int, ...] = ()  # how often each target went back to an earlier state; empty where none did
    failed: tuple[str, ...] = ()  # what went wrong with each target that was given up, "" for the others; or empty


def scaled(stages: tuple[Stage, ...], factor: float) -> tuple[Stage, ...]:
    """The schedule with every stage's number of steps times `factor` (at least one step each)."""
    return tuple(replace(s, steps=max(1, round(s.steps * factor))) for s in stages)


def start(config: Config, targets: int, parts: int = 0) -> State:
    """The state before the first step: every target from the same seed, so that each fits as it would alone.

    With `parts`, each has a velocity field of its own, along a second axis of the parameters.
    """
    axes = (targets, parts) if parts else (targets,)
    return State(*weights(config.flow, axes, config.seed), 0, 0, unwatched(targets))


@program(static_argnames=("config", "axes"))
def weights(config: Config, axes: tuple[int, ...], seed: Int[Array, ""]) -> tuple[PyTree, PyTree]:
    """Parameters and Adam's state at the start, with these leading axes."""
    params = config.network.init(jax.random.key(seed), placed(config, jnp.zeros((1, 3)), 0.0))
    params = jax.tree.map(lambda p: jnp.broadcast_to(p, (*axes, *p.shape)), params)
    return params, jax.vmap(ADAM.init)(params)


def divided(state: State, parts: int, stage: int) -> State:
    """The state at the first step of a stage, from which each part goes on with the field of the whole."""
    params = jax.tree.map(lambda p: jnp.asarray(np.repeat(np.asarray(p)[:, None], parts, axis=1)), state.params)
    return begun(state._replace(params=params), stage)


def freed(config: Config, state: State, problem: Problem, number: int, spread: Spread) -> State:
    """The state at the first step of a stage, from which each of a unit's bodies goes on with a free field of its own.

    Each begins where the symmetric field of the whole has led: from the network of that it is fitted to its flow, as in
    the first stage to the correspondences, but these ends are sure. `problem` is the one divided into bodies.
    """
    stage = replace(config.stages[0], rigidity=SURE)
    level = make_level(problem, stage.bin, stage.sampling, stage.spacing, stage.rigidity > 0)
    ends = images(config.flow, state.params, level)
    reach = jnp.full(ends.shape[:-2], stage.reach / problem.frame.edge)
    goal = Goal(ends=ends, weight=jnp.broadcast_to(level.rho, ends.shape[:-1]), reach=reach)
    free, begin = replace(config, symmetry=()), divided(state, problem.parts, 0)
    followed, *_ = fit_stage(free, stage, (level, goal), begin, SILENT, CHUNK, spread, crop_of(problem))
    return begun(state._replace(params=followed.params), number)


@program(static_argnames="config")
def images(config: Config, params: PyTree, level: Level) -> Float[Array, "trajectories *times points 3"]:
    """Where the flows of fields that are one for the whole carry the points of divided levels, copies included."""

    def one(params, level):
        moved = arrive(config, params, level.x.reshape(-1, 3))
        return level.copied(moved[..., level.kept, :])

    return jax.vmap(one)(params, level)


def unwatched(targets: int) -> Watch:
    """What is known before a stage's first step."""
    none = np.zeros(targets, int)
    return Watch(np.full(targets, np.inf), none, none, np.zeros((0, targets)), none)


def field(config: Config, params: PyTree) -> VelocityField:
    """The velocity field, on points as `placed` makes them: it depends on time where there are waypoints.

    It commutes with the symmetry's operators where there are some.
    """
    velocity = partial(config.network.apply, params)
    if config.symmetry:
        rows = np.array(config.symmetry, np.float32)
        velocity = symmetric(velocity, rows[:, :9].reshape(-1, 3, 3), rows[:, 9:])
    return timed(velocity) if config.waypoints else velocity


def placed(config: Config, x: Points, t: Scalar) -> Float[Array, "points coordinates"]:
    """The points on which `field` works: x (n, 3), with the time t as a fourth coordinate if V depends on it."""
    return at_time(x, t) if config.waypoints else x


def carry(
    config: Config, params: PyTree, level: Level
) -> tuple[Float[Array, "*times points 3"], Float[Array, "*times_parts nodes 3"]]:
    """The level's points after the flow, and its nodes (the points themselves without a lattice).

    Where there are waypoints, both at the time of each and at the end. Where there are parts, nodes have an axis of
    them before the last two, and points are those of all that have mass, part after part. Where there is a symmetry,
    nodes are those of one unit, and points those of all its copies.
    """
    begin = level.x if level.lattice is None else level.lattice.nodes
    if not level.divided:
        nodes = arrive(config, params, begin)
        return level.copied(nodes if level.lattice is None else follow(level.x, level.lattice, begin, nodes)), nodes
    rows = jax.tree.map(lambda p: p[level.rows.owner], params), begin.reshape(-1, 3)[level.rows.points]
    there = jax.vmap(partial(arrive, config), out_axes=-3)(*rows)
    moved = nodes = there.reshape(*there.shape[:-3], -1, 3)[..., level.rows.place, :]
    if level.lattice is not None:
        moved = jax.vmap(follow, (0, 0, 0, -3), -3)(level.x, level.lattice, begin, nodes)
    return level.copied(moved.reshape(*moved.shape[:-3], -1, 3)[..., level.kept, :]), nodes


def arrive(config: Config, params: PyTree, x: Float[Array, "points 3"]) -> Float[Array, "*times points 3"]:
    """Points after the flow of one velocity field; where there are waypoints, at the time of each and at the end."""
    velocity = field(config, params)
    if not config.waypoints:
        return flow(velocity, x, config.euler_steps)
    visited = path(velocity, placed(config, x, 0.0), config.euler_steps)[..., :3]
    return jnp.stack([between(visited, t) for t in (*config.waypoints, 1.0)])


def follow(
    x: Float[Array, "points 3"],
    lattice: lattices.Lattice,
    begin: Float[Array, "nodes 3"],
    nodes: Float[Array, "*times nodes 3"],
) -> Float[Array, "*times points 3"]:
    """Points after the flow that has carried the lattice's nodes from where they begin, once or at several times."""
    interpolate = partial(lattices.interpolate, lattice)
    return x + (jax.vmap(interpolate) if nodes.ndim > 2 else interpolate)(nodes - begin)


def objective(
    config: Config, stage: Stage, params: PyTree, level: Level, goal: Goal
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The stage's loss for one target, and the bound on what the transport's window may have changed, in epsilon.

    The mean over the waypoints and the end, where there are waypoints.
    """
    moved, nodes = carry(config, params, level)
    if not config.waypoints:
        return misfit(stage, moved, nodes, level, goal)
    each = jax.lax.map(
        lambda at: misfit(stage, at[0], at[1], level._replace(rho=at[2]), at[3]),
        (moved, nodes, jnp.broadcast_to(level.rho, moved.shape[:-1]), goal),
    )
    return jnp.mean(each[0]), jnp.max(each[1])


def misfit(
    stage: Stage, moved: Float[Array, "points 3"], nodes: Float[Array, "*parts nodes 3"], level: Level, goal: Goal
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The stage's loss for points and nodes that were carried there, and the same bound."""
    loss, error = distance(stage, moved, level, goal)
    if stage.rigidity:
        weight = stage.rigidity if goal.hold is None else stage.rigidity * goal.hold
        loss = loss + weight * strain(stage, nodes, level)
    return loss, error


def strain(stage: Stage, nodes: Float[Array, "*parts nodes 3"], level: Level) -> Float[Array, ""]:
    """The rigidity, a mean over the mass; parts are free of one another."""

    def one(nodes, tetrahedra, share):
        return losses.rigidity(nodes, tetrahedra, level.edges, share, stage.slip)

    if not level.divided:
        return one(nodes, level.tetrahedra, level.share)
    return jnp.sum(jax.vmap(one)(nodes, level.tetrahedra, level.share))


def distance(
    stage: Stage, moved: Float[Array, "points 3"], level: Level, goal: Goal
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The stage's loss without the rigidity, and the same bound."""
    if stage.loss == "points":
        return losses.huber(moved, goal.ends, goal.weight, goal.reach), jnp.zeros(())
    carried = carried_map(moved, level, goal)
    if stage.loss == "w2":
        return w2_and_error(carried, goal.volume, level.voxel, stage.epsilon, stage.iterations, stage.window)
    if stage.loss == "matched":
        return losses.unscaled_l2(carried, goal.volume, goal.power), jnp.zeros(())
    return losses.l2(carried, goal.volume), jnp.zeros(())


def carried_map(moved: Float[Array, "points 3"], level: Level, goal: Goal) -> Float[Array, "x y z"]:
    """The carried points' mass on the target's grid, at its resolution."""
    carried = splat(moved, level.rho, goal.volume.shape, level.corner, level.voxel)
    return carried if goal.blur is None else losses.blur(carried, goal.blur)


def lightened(
    config: Config, params: PyTree, level: Level, goal: Goal, power: Float[Array, ""]
) -> Float[Array, "*times points"]:
    """The points' mass, less where the target has less than they carry there: times the ratio of the two, to a power.

    Of target and carried map, blurred by NEARBY, and at most 1. What has no counterpart in the target (a domain that
    is not there) is so let go, and pulls on nothing; what is merely not yet in place comes back as it arrives. A power
    that rises as the flow takes shape leaves the first steps to find the way.
    """

    def at_one_time(moved, goal):
        both = carried_map(moved, level, goal), goal.volume
        found = losses.found(*(losses.blur(volume, goal.nearby) for volume in both))
        return level.rho * gather(found, moved, level.corner, level.voxel) ** power

    moved, _ = carry(config, params, level)
    return jax.lax.map(lambda at: at_one_time(*at), (moved, goal)) if config.waypoints else at_one_time(moved, goal)


@program(static_argnames=("config", "stage", "spread"))
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
    spread: Spread = Spread(),
) -> tuple[PyTree, PyTree, Float[Array, "targets most"], Float[Array, "targets"]]:
    """Parameters and Adam's state after the first `count` of steps at its learning rates, for every target.

    And each step's losses, and the largest error that the transport's window can have made, as
    `transport.window_error` bounds it. `powers` are those by which mass is `lightened` before the first of the steps.
    """

    def steps(shared, one):
        count, whole = shared
        rates, power, params, state, goal, own = one
        level = whole or own
        if stage.lightens:
            level = level._replace(rho=lightened(config, params, level, goal, power))

        def body(i, carried):
            params, state, history, worst = carried
            differentiated = jax.value_and_grad(partial(objective, config, stage), has_aux=True)
            (loss, error), gradient = differentiated(params, level, goal)
            updates, state = ADAM.update(gradient, state)
            params = jax.tree.map(lambda p, u: p - rates[i] * u, params, updates)
            return params, state, history.at[i].set(loss), jnp.maximum(worst, error)

        start = params, state, jnp.zeros(rates.shape, level.x.dtype), jnp.zeros((), level.x.dtype)
        return jax.lax.fori_loop(0, count, body, start)

    whole, own = whose(level)
    return spread.map(steps, (count, whole), (rates, powers, params, optimiser_state, goal, own))


def whose(level: Level) -> tuple[Level | None, Level | None]:
    """The level where all trajectories share it, and where each has its own, with a leading axis of them."""
    return (None, level) if level.divided else (level, None)


@program(static_argnames=("config", "stage", "spread"))
def judged(
    config: Config, stage: Stage, params: PyTree, level: Level, goal: Goal, spread: Spread = Spread()
) -> Float[Array, "targets"]:
    """The stage's loss without the rigidity, compared with what the fit has not seen, for every target."""

    def loss(whole, one):
        params, goal, own = one
        level = whole or own
        return distance(stage, carry(config, params, level)[0], level, goal.by_judge)[0]

    whole, own = whose(level)
    return spread.map(loss, whole, (params, goal, own))


def at_once(limit: float, fixed: float, per_target: float, targets: int) -> int:
    """How many targets to compute at once where `limit` bytes hold `fixed` and `per_target` each, and FREE stays."""
    room = (1 - FREE) * limit - fixed
    if not room > per_target:  # nor where a need is unknown (nan)
        return 1
    return min(targets, int(room / per_target)) if per_target > 0 else targets


def needed(spread: Spread, *call) -> tuple[float, float]:
    """Bytes a device of arguments with results, and of working space, that XLA counts for `train_steps(*call, spread)`.

    Infinite where the program was too large to be compiled, nan where XLA does not say.
    """
    try:
        return counted(train_steps.lower(*call, spread).compile())
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf, math.inf


def counted(compiled: Any) -> tuple[float, float]:
    """The same of a compiled program."""
    said = compiled.memory_analysis()
    argument, output, alias, temporary = (
        float(getattr(said, f"{kind}_size_in_bytes", math.nan)) for kind in ("argument", "output", "alias", "temp")
    )
    return argument + output - alias, temporary


def sized(spread: Spread, *call) -> Spread:
    """The spread with as many targets at once as `spread.memory` holds when `train_steps` is called so.

    All of them if they fit, which costs no compilation but the one that is needed anyway. Otherwise what each needs is
    the difference between two and one.
    """
    if spread.memory is None:
        return spread
    every = replace(spread, memory=None)
    *same, rates, powers, params, adam, level, goal = call
    count = jax.tree.leaves(goal)[0].shape[0] // spread.devices

    def part(n: int) -> tuple:
        few = partial(jax.tree.map, lambda a: jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype))
        return (*same, *few((rates, powers, params, adam)), few(level) if level.divided else level, few(goal))

    if count == 1 or sum(needed(every, *call)) < (1 - FREE) * spread.memory:
        return every
    one, two = (needed(Spread(), *part(n)) for n in (1, 2))
    resident, working = two[0] - one[0], two[1] - one[1]
    fixed = one[0] + (count - 1) * resident + one[1] - working
    batch = at_once(float(spread.memory), fixed, working, count)
    while batch > 1 and not sum(needed(replace(every, batch=batch), *call)) < (1 - FREE) * spread.memory:
        batch //= 2  # going through them in turn needs some space of its own
    return replace(every, batch=batch)


Progress = Callable[[int, int, np.ndarray], Any]


class Listener(NamedTuple):
    """Who is told of a fit's course after every chunk of steps: functions that return nothing.

    `keep(state, losses)` has all that it takes to go on from there; `say(target, what)` tells of a target that went
    back to an earlier state, or is given up.
    """

    progress: Progress = lambda stage, step, losses: None
    keep: Callable[["State", np.ndarray], None] = lambda state, losses: None
    say: Callable[[int, str], None] = lambda target, what: None


SILENT = Listener()


class Box(NamedTuple):
    """Two opposite corners, in unit boxes, of what is fitted in."""

    low: Float[Array, "3"]
    high: Float[Array, "3"]


def crop_of(problem: Problem) -> Box:
    """The problem's crop, beyond which mass is lost."""
    corner = np.asarray(problem.corner)
    sides = np.array(problem.initial.shape) * problem.voxel_size / problem.frame.edge
    return Box(jnp.asarray(corner, jnp.float32), jnp.asarray(corner + sides, jnp.float32))


def warn(target: int, what: str) -> None:
    """Nothing; what there is to say of a target is a warning of Python's."""
    warnings.warn(f"target {target + 1}: {what}", stacklevel=2)


def fit(
    problem: Problem,
    config: Config,
    state: State | None = None,
    progress: Progress = lambda stage, step, losses: None,
    chunk: int = CHUNK,
    spread: Spread | None = None,
    keep: Callable[[State, np.ndarray], None] = SILENT.keep,
    say: Callable[[int, str], None] = warn,
) -> tuple[State, list[np.ndarray]]:
    """The state after the whole schedule, and each stage's losses (steps, targets) from where `state` stood.

    `progress(stage, step, losses)` is called after every chunk of steps, with losses (steps of the chunk, targets); it
    may keep `state` by returning True, which ends the fit there. `spread` says how targets are laid out over devices.
    `keep(state, losses)` is told the same with a state from which this function goes on to the same end, bit for bit.

    A target whose loss or parameters are no finite numbers, whose loss grows DIVERGED times or whose mass leaves the
    crop goes back to its best state in the stage and on at a lower learning rate, which `say(target, what)` is told;
    after TRIES of that it is given up, `state.failed` says why, and the others go on as they would without it.
    """
    state = start(config, problem.trajectories, problem.parts) if state is None else state
    spread = Spread() if spread is None else spread
    history, told, box = [], Listener(progress, keep, say), crop_of(problem)

    def ready(number: int) -> tuple:
        inputs = stage_inputs(problem, config.stages[number])
        count = problem.trajectories
        none = jnp.int32(0), jnp.zeros((count, chunk), jnp.float32), jnp.zeros(count, jnp.float32)
        call = config.flow, config.stages[number].program, *none, state.params, state.optimiser, *inputs
        compiled = train_steps.lower(*call, sized(spread, *call)).compile()  # not called: that would take memory
        check_memory(number, sum(counted(compiled)), spread)
        return inputs

    background = ThreadPoolExecutor(1)  # makes the later stages ready, compiled, in turn, meanwhile
    try:
        waiting = {n: background.submit(ready, n) for n in range(state.stage, len(config.stages))}
        for number in waiting:
            for later in waiting.values():
                if later.done():  # what will go wrong there is better known now
                    later.result()
            stage, inputs = config.stages[number], waiting[number].result()
            if number != state.stage:
                state = begun(state, number)
            state, losses_, stopped = fit_stage(config, stage, inputs, state, told, chunk, spread, box)
            history.append(losses_)
            if stopped or lost(state):
                break
            state = state._replace(scores=(*state.scores, state.watch.scores))
            if config.rival and number == 0 and (doubted := torn(config, inputs, state)).any():
                following = config.stages[1], waiting[1].result()
                state = better_start(problem, config, state, doubted, following, chunk, spread)
    finally:
        background.shutdown(wait=False, cancel_futures=True)
    return state, history


def check_memory(stage: int, needed: float, spread: Spread) -> None:
    """Nothing; raises InputError where a stage's steps take more bytes than the device has, or this machine has left.

    What this process has already counts as left: earlier stages give it back.
    """
    room, where = memory.available() + memory.resident(), "the machine"
    if spread.memory is not None:
        room, where = spread.memory, "the device"
    if needed > room:  # nor where XLA does not say
        wider = (needed / room) ** (1 / 3)
        raise InputError(
            f"stage {stage + 1} takes {needed / 2**30:.1f} GiB and {where} has {room / 2**30:.1f}: take voxels "
            f"{wider:.2f} times as wide, crop the maps to the molecule, or with the recipe paper a larger bin"
        )


def lost(state: State) -> bool:
    """Whether every target was given up."""
    return bool(state.failed) and all(state.failed)


def fit_stage(
    config: Config,
    stage: Stage,
    inputs: tuple,
    state: State,
    told: Listener,
    chunk: int,
    spread: Spread,
    box: Box,
) -> tuple[State, np.ndarray, bool]:
    """The state after the stage, its losses (steps, targets) from where `state` stood, and whether to stop there."""
    here = None  # the spread that fits into memory
    level, goal = inputs
    seen, stopped = [np.zeros((0, len(state.watch.best)), np.float32)], False
    padded, powers = (np.pad(a, (0, stage.steps + chunk)) for a in (stage.rates, stage.powers))
    stage = stage if state.window == 0 else replace(stage, window=state.window)
    points = sampled(level)
    while not (stopped or lost(state)) and (left := stage.steps - state.step - int(state.watch.skipped.min())) > 0:
        count, at = min(chunk, left), state.step + state.watch.skipped
        slower = SLOWER**-state.watch.slowed * ~given_up(state)
        rates = jnp.asarray(padded[at[:, None] + np.arange(chunk)] * slower[:, None], jnp.float32)
        power = jnp.asarray(powers[at], jnp.float32)
        call = config.flow, stage.program, jnp.int32(count), rates, power, state.params, state.optimiser, level, goal
        here = here or sized(spread, *call)
        params, adam, loss, error = train_steps(*call, here)
        if stage.window is not None and float(jnp.max(error)) > WINDOW_ERROR:
            stage, here = widened(stage, goal.volume.shape[-3:]), None
            state = state._replace(window=stage.window)
            continue  # these steps count for nothing: they are done again
        seen.append(np.asarray(loss).T[:count])
        wrong = troubles(config, state, params, seen[-1], points, box)
        kept = state.params if state.watch.kept is None else state.watch.kept  # of the stage's start at first
        state = state._replace(watch=state.watch._replace(kept=kept), step=state.step + count)
        if any(wrong) or any(state.failed):
            params, adam, state = set_back(config, state, params, adam, wrong, told.say)
        state = state._replace(params=params, optimiser=adam)
        score = seen[-1].mean(0)
        if goal.judge is not None:
            score = np.asarray(judged(config.flow, stage.program, params, level, goal, here))
        state = state._replace(watch=watched(state, stage, np.where([bool(w) for w in wrong], np.nan, score)))
        told.keep(state, seen[-1])
        stopped = bool(told.progress(state.stage, state.step, seen[-1]))
    if not stopped and state.watch.kept is not None:
        chosen = given_up(state) | (goal.judge is not None)
        state = state._replace(params=chosen_from(chosen, state.watch.kept, state.params)) if chosen.any() else state
    return state, np.concatenate(seen), stopped


def watched(state: State, stage: Stage, score: np.ndarray) -> Watch:
    """The watch after a chunk of steps with this score.

    A target that has not gained for `patience` chunks skips to the stage's ending. The best parameters are kept.
    """
    best, stale, skipped, scores, slowed, kept = state.watch
    better = score < best
    kept = chosen_from(better, state.params, kept)
    stale = np.where(score < best - GAIN * np.maximum(np.minimum(best, 1e30), SMALL), 0, stale + 1)
    ahead = stage.ending - (state.step + skipped)
    skip = (stale >= stage.patience) & (ahead > 0) & (stage.patience > 0)
    scores, skipped = np.concatenate([scores, score[None]]), skipped + np.where(skip, ahead, 0)
    return Watch(np.fmin(best, score), np.where(skip, 0, stale), skipped, scores, slowed, kept)


def chosen_from(first: np.ndarray, a: PyTree, b: PyTree) -> PyTree:
    """The leaves of `a` for the targets where `first` holds, and of `b` for the others."""
    if first.all() or not first.any():  # as ever with one target, and nothing is to be compiled
        return a if first.any() else b
    return jax.tree.map(lambda p, q: jnp.where(first.reshape(-1, *[1] * (p.ndim - 1)), p, q), a, b)


def given_up(state: State) -> np.ndarray:
    """For each target, whether it was given up."""
    return np.array([bool(why) for why in state.failed]) if state.failed else np.zeros(len(state.watch.best), bool)


def troubles(
    config: Config, state: State, params: PyTree, losses: np.ndarray, points: tuple, box: Box
) -> tuple[str, ...]:
    """What is wrong with each target after a chunk of steps with these losses (steps, targets), "" where nothing is.

    `state` is that before the chunk, `params` are those after it.
    """
    finite = np.asarray(finite_and_outside(config.flow, params, *points, box))
    first = state.watch.scores[0] if len(state.watch.scores) else np.full(losses.shape[1], np.nan)
    most = DIVERGED * np.maximum(first, FAIR)  # nan, and so no limit, before there is anything to compare with
    found, over = [], given_up(state)
    for target, (ok, outside) in enumerate(finite.T):
        own = losses[:, target]
        if over[target]:
            found.append("")
        elif not (np.isfinite(own).all() and ok):
            found.append("the loss or the parameters are not finite numbers")
        elif own.mean() > most[target]:
            found.append(f"the loss has grown from {first[target]:.3g} to {own.mean():.3g}")
        elif outside > STRAY:
            found.append(f"{100 * outside:.0f} % of the mass has left the box")
        else:
            found.append("")
    return tuple(found)


def set_back(
    config: Config, state: State, params: PyTree, adam: PyTree, wrong: tuple[str, ...], say: Callable[[int, str], None]
) -> tuple[PyTree, PyTree, State]:
    """Parameters and Adam's state with those of the best chunk, and a fresh start, for targets with which something is
    wrong; and the state that knows of it.

    A target that was set back TRIES times is given up, and stays what it was at its best.
    """
    back = np.array([bool(what) for what in wrong])
    failed, slowed = list(state.failed or [""] * len(back)), state.watch.slowed + back
    setbacks = np.array(state.setbacks or [0] * len(back)) + back
    for target in np.flatnonzero(back):
        what = f"{wrong[target]} by step {state.step} of stage {state.stage + 1}"
        if setbacks[target] > TRIES:
            failed[target] = f"{what}, after {TRIES} tries at lower learning rates"
            say(int(target), f"{failed[target]}: it is given up")
        else:
            now = SLOWER ** slowed[target]
            say(int(target), f"{what}: it goes back to its best state, and on at a learning rate {now:g} times lower")
    known = {"setbacks": tuple(setbacks.tolist()), "failed": tuple(failed) if any(failed) else ()}
    state = state._replace(watch=state.watch._replace(slowed=slowed), **known)
    back = back | given_up(state)
    fresh = adam_at_rest(state.watch.kept)
    return chosen_from(back, state.watch.kept, params), chosen_from(back, fresh, adam), state


def sampled(level: Level) -> tuple[Float[np.ndarray, "*parts some 3"], Float[np.ndarray, "*parts some"]]:
    """So many of a level's points (of each part), and their masses: always SAMPLE, for one program to serve all."""
    x, rho = np.asarray(level.x), np.asarray(level.rho)
    if level.divided:  # what fills up a part has no mass
        held = np.zeros((len(rho), x[0, ..., 0].size), rho.dtype)
        kept = np.asarray(level.kept)
        np.add.at(held, (np.arange(len(rho))[:, None], kept), rho[:, : kept.shape[1]])  # of one unit
        rho = held.reshape(x.shape[:-1])
    chosen = np.linspace(0, x.shape[-2] - 1, SAMPLE).astype(int)
    return x[..., chosen, :], rho[..., chosen]


@program(static_argnames="config")
def finite_and_outside(
    config: Config, params: PyTree, x: Float[Array, "*a some 3"], rho: Float[Array, "*a some"], box: Box
) -> Float[Array, "2 targets"]:
    """For each target whether all parameters are finite (1 or 0), and the share of its mass that ends outside the box.

    With waypoints, at the worst of the times.
    """
    divided = x.ndim > 2

    def away(params, x, rho):
        end = arrive(config, params, x)
        out = jnp.any((end < box.low) | (end > box.high), axis=-1)
        return jnp.max(jnp.sum(jnp.where(out, rho, 0), axis=-1))

    def one(params, own):
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
        here, mass = own or (x, rho)
        left = jnp.sum(jax.vmap(away)(params, here, mass)) if divided else away(params, here, mass)
        return jnp.stack([finite.astype(x.dtype), left / jnp.sum(mass)])

    return jax.vmap(one)(params, (x, rho) if divided else None).T


def begun(state: State, stage: int) -> State:
    """The state at the first step of a stage."""
    adam, watch = adam_at_rest(state.params), unwatched(len(state.watch.best))
    return state._replace(optimiser=adam, stage=stage, step=0, watch=watch, window=0)


adam_at_rest = program(jax.vmap(ADAM.init))  # Adam's state before its first step, for every target


def torn(config: Config, inputs: tuple, state: State) -> np.ndarray:
    """For each target, whether the flow leaves more than TORN of the mass far from where correspondences put it.

    There or at a waypoint.
    """
    return np.asarray(left_behind(config.flow, state.params, *inputs)) > TORN


@program(static_argnames="config")
def left_behind(config: Config, params: PyTree, level: Level, goal: Goal) -> Float[Array, "targets"]:
    """For each target, the share of the mass that the flow leaves far from its ends, at the worst of the times."""

    def share(moved, goal):
        far = jnp.linalg.norm(moved - goal.ends, axis=-1) > FAR * goal.reach
        return jnp.vdot(goal.weight, far) / jnp.sum(goal.weight)

    def worst(params, goal, own):
        moved, _ = carry(config, params, whole or own)
        return jnp.max(jax.vmap(share)(moved, goal)) if config.waypoints else share(moved, goal)

    whole, own = whose(level)
    return jax.vmap(worst)(params, goal, own)


def better_start(
    problem: Problem,
    config: Config,
    state: State,
    doubted: np.ndarray,
    following: tuple[Stage, tuple],
    chunk: int,
    spread: Spread,
) -> State:
    """The state after the first stage, or after the rival of that, whichever soon gets the next stage's loss lower.

    For every doubted target by itself; the others keep the first stage's, as they would alone.
    """
    stage, inputs = following
    trial, how = replace(stage, steps=min(TRIAL, stage.steps), patience=0), (SILENT, chunk, spread, crop_of(problem))
    other = start(config, problem.trajectories, problem.parts)
    other, *_ = fit_stage(config, config.rival, stage_inputs(problem, config.rival), other, *how)
    both = [begun(s._replace(failed=(), setbacks=()), 1) for s in (state, other)]
    outcome = [fit_stage(config, trial, inputs, s, *how)[1][-1] for s in both]
    better = doubted & (outcome[1] < np.where(np.isfinite(outcome[0]), outcome[0], np.inf)) & ~given_up(other)
    params = chosen_from(better, other.params, state.params)
    return state._replace(params=params, rivals=tuple(map(bool, better)))


def widened(stage: Stage, shape: tuple[int, ...]) -> Stage:
    """The stage with twice the window, or with none once that would reach across the whole grid."""
    window = 2 * stage.window
    return replace(stage, window=window if window < max(shape) - 1 else None)


def stage_inputs(problem: Problem, stage: Stage) -> tuple[Level, Goal]:
    """What a stage's steps work on: points and grid, and what they are compared with."""
    level = make_level(problem, stage.bin, stage.sampling, stage.spacing, stage.rigidity > 0)
    goal = make_goal(problem, stage, level)
    return level, jax.tree.map(lambda a: a[None], goal) if problem.waypoints else goal


def make_goal(problem: Problem, stage: Stage, level: Level) -> Goal:
    """What the level's points are compared with in a stage, for each target by itself."""
    if stage.loss == "points":
        count = len(problem.masses)
        own = [level.of(target % problem.trajectories) for target in range(count)]
        found = [correspond.ends(problem, target, one.points) for target, one in enumerate(own)]
        end, weight = (jnp.asarray(np.stack(each), jnp.float32) for each in zip(*found, strict=True))
        weight = weight * jnp.stack([one.rho for one in own])
        return Goal(ends=end, weight=weight, reach=jnp.full(count, stage.reach / problem.frame.edge))
    kind = "density" if stage.loss == "matched" else "mass"

    def compared(problem: Problem) -> tuple[Array, Array, list[float]]:
        volumes, widths = level_targets(problem, stage.bin, kind, stage.blur)
        noise = volumes  # of masses, which have none outside
        if kind == "density":
            noise, _ = level_targets(problem.outside, stage.bin, kind, stage.blur)
        inside = [binned(mass, stage.bin) > 0 for mass in problem.masses]
        power = [signal_power(*each) for each in zip(volumes, noise, inside, strict=True)]
        return jnp.asarray(volumes), jnp.asarray(power), widths

    volume, power, widths = compared(problem)
    goal = Goal(volume, power, level_blur(problem, stage.bin, widths))
    if kind == "density" and problem.judges is not None:
        judge, judge_power, _ = compared(replace(problem, densities=problem.judges))
        goal = goal._replace(judge=judge, judge_power=judge_power)
    if stage.balanced:
        goal = goal._replace(hold=jnp.asarray(holds(problem), jnp.float32))
    if stage.lightens:
        goal = goal._replace(nearby=level_blur(problem, stage.bin, [NEARBY] * len(problem.masses)))
    return goal
