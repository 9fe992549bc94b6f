"""Actions that give each rigid body a motion of its own, and redraw the bodies' borders."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from jaxtyping import Bool, Float, PyTree
from scipy.ndimage import gaussian_filter

from cryotrans_jax.core.flow import FieldMotion
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.fit import trajectory
from cryotrans_jax.fit.background import Background
from cryotrans_jax.fit.better_end import data_losses, stage_losses
from cryotrans_jax.fit.schedule import Fitting
from cryotrans_jax.fit.stage import Action, Stage
from cryotrans_jax.fit.state import (
    State,
    begin_stage,
    failed_targets,
    initial_watch,
    lower_losses,
    where_target,
    with_starts,
)
from cryotrans_jax.fit.target_flow import Flow
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion import borders
from cryotrans_jax.motion.borders import BorderRules
from cryotrans_jax.motion.docking import Docking, DockingSearch, searched
from cryotrans_jax.motion.offers import Docked
from cryotrans_jax.motion.partition import (
    AsymmetricUnit,
    Partition,
    SmallestPart,
    complete_labels,
    replicate_bodies,
)
from cryotrans_jax.motion.rigid_bodies import BodySearch, from_flow, rigid_motions, sort_voxels
from cryotrans_jax.motion.screw import screw_of
from cryotrans_jax.motion.symmetric import replicate_fields, without_symmetry

Bodies = tuple[Partition, list[Transform]]  # rigid bodies, and the motion of each


@dataclass(frozen=True)
class FindRigidBodies(Action):
    """Find the rigid bodies that the flow moves, and give each a motion of its own.

    Each body starts as rigid, with the motion nearest to its flow, so that it has none of the strain by which the flow
    of the whole made up for what one field cannot do. If every target has but one body, nothing changes; beside targets
    with several, the field of a target with one goes on as it is. With a symmetry the fields are those of the bodies of
    the asymmetric unit, and no longer symmetric. The fit needs the motion `Screw`.

    Attributes:
        search: how bodies are searched for.
    """

    search: BodySearch = BodySearch()
    divides = True

    def __call__(self, fitting: Fitting) -> Fitting:
        """Divide the initial map into the bodies of each target's flow."""
        initial = fitting.initial_map
        partitions, rms = find_bodies(fitting.whole, fitting.field, fitting.state, initial, self.search)
        fitting = replace(fitting, bodies_rms=tuple(map(tuple, rms)))
        if max(each.count for each in partitions) == 1:
            return fitting
        return divided(fitting, partitions, motions_of_flows(fitting, partitions))


@dataclass(frozen=True)
class DockBodies(Action):
    """Find rigid bodies by docking pieces of the initial map, and keep them where they make a better start.

    A domain that turns by a large angle, or passes behind another one, is found by docking and by no flow. The loss
    after a trial decides between the bodies that the fit has and those of each search that ends elsewhere. A fit with
    waypoints keeps its bodies: docking finds where they end, and not the way there.

    Attributes:
        trial: stage that is fitted from each.
        search: how pieces are docked.
        smallest: how small a body may be.
    """

    trial: Stage
    search: DockingSearch = DockingSearch()
    smallest: SmallestPart = SmallestPart(mass=0.04)
    divides = True

    def scaled(self, factor: float) -> "DockBodies":
        """The action with `factor` times the steps of the trial."""
        return replace(self, trial=self.trial.scaled(factor))

    def ahead(self, fitting: Fitting, background: Background) -> Callable[[Fitting], Fitting]:
        """Begin the first search of each target, which needs no flow."""
        if fitting.problem.waypoints:
            return self
        whole, stopped = fitting.whole, background.closed.is_set
        searches = [background.submit(searched, whole, n, self.search, stopped) for n in range(fitting.targets)]
        return lambda fitting: self.choose(fitting, awaited(searches))

    def __call__(self, fitting: Fitting) -> Fitting:
        """Choose the bodies of each target."""
        if fitting.problem.waypoints:
            return fitting
        return self.choose(fitting, [searched(fitting.whole, n, self.search) for n in range(fitting.targets)])

    def choose(self, fitting: Fitting, dockings: Sequence[Docking]) -> Fitting:
        """Choose the bodies of each target among those that the fit has and those that are docked."""
        found = [self.dock(fitting, target, docking) for target, docking in enumerate(dockings)]
        found += found[-1:] * (fitting.whole.trajectories - fitting.targets)  # copies that fill up the last devices
        count = max(len(each) for each in found)
        ranks = [[each[min(rank, len(each) - 1)] for each in found] for rank in range(count)]
        present: list[list[Bodies]] = [[(bodies, []) for bodies in fitting.partitions]] if fitting.partitions else []
        tried = [one for rank in present + ranks for one in rank]
        losses = self.loss(divided_into(repeated(fitting, len(present) + count), tried)).reshape(-1, len(found))
        before = losses[0] if present else self.loss(fitting)  # at once, where there is one program for all
        losses = losses[len(present) :]
        better = lower_losses(before, losses.min(0)) & ~failed_targets(fitting.state)
        if not better.any():
            return fitting
        docked = divided_into(fitting, [ranks[best][target] for target, best in enumerate(losses.argmin(0))])
        chosen = choose_bodies(fitting, docked, better)
        first = fitting.config.stages[0].label
        return replace(chosen, state=with_starts(chosen.state, better, "docked", first))

    def loss(self, fitting: Fitting) -> Float[np.ndarray, "targets"]:
        """The loss of each target after the trial, with all mass; infinite where it is not finite."""
        ((state, _),) = fitting.try_anew(self.trial, (fitting.state,))
        losses = stage_losses(replace(fitting, state=state), fitting.problem, self.trial)
        return np.where(np.isfinite(losses), losses, np.inf)

    def dock(self, fitting: Fitting, target: int, docking: Docking) -> list[Bodies]:
        """Dock pieces into one target; return for each result the bodies, and the motion of each."""
        return [self.bodies(fitting, each) for each in docking.results(motions_of_bodies(fitting, target))]

    def bodies(self, fitting: Fitting, found: Docked) -> Bodies:
        """The bodies that blocks have chosen, and the motion of each."""
        whole, initial = fitting.whole, fitting.initial_map
        unit = asymmetric_unit(whole, initial)
        within = np.ones(len(found.owner), bool)
        if unit is not None:
            within = Map(unit.mass, initial.voxel_size, initial.origin).interpolate(found.blocks.x) > 0
        carried = whole.initial if unit is None else unit.mass
        volume = np.count_nonzero(carried) * np.prod(initial.voxel_size)
        bodies = found.bodies(within, self.smallest.fraction(volume))
        copies = 1 if unit is None else len(unit.rotations)
        labels, threshold = copies * (bodies.labels - 1) + 1, whole.report["initial"]["threshold"]
        return sort_voxels(bodies.x, labels, initial, threshold, unit, self.smallest), bodies.motions


@dataclass(frozen=True)
class RedrawBorders(Action):
    """Redraw the borders of the bodies where their fields explain the target best.

    In a noisy target a border may be drawn by the noise. Then the bodies as a whole match the target less well.

    Attributes:
        rules: how borders are redrawn.
        most_loss: a target keeps its old borders if the new ones make the loss larger than this many times.
    """

    rules: BorderRules = BorderRules()
    most_loss: float = 1.05
    divides = True

    def __call__(self, fitting: Fitting) -> Fitting:
        """Redraw the borders; a fit without bodies stays as it is."""
        if not fitting.partitions:
            return fitting
        whole, initial = fitting.whole, fitting.initial_map
        every = replicate_fields(fitting.field, fitting.state.params, whole.operators)
        each = enumerate(fitting.partitions)
        drawn = tuple(
            redraw_borders(whole, fitting.field, every, own, initial, target, self.rules) for target, own in each
        )
        before = data_losses(fitting, fitting.problem, fitting.next_stage)
        after = data_losses(fitting, divide_into_parts(whole, drawn, initial), fitting.next_stage)
        pairs = zip(drawn, fitting.partitions, after < self.most_loss * before, strict=True)
        chosen = tuple(new if better else old for new, old, better in pairs)
        return replace(fitting, partitions=chosen, problem=divide_into_parts(whole, chosen, initial))


def awaited(searches: Sequence["Future[Docking]"]) -> list[Docking]:
    """Searches that were begun in the background, once they have ended."""
    return [search.result() for search in searches]


def repeated(fitting: Fitting, count: int) -> Fitting:
    """The fit of each target this many times, so that several divisions of the initial map are tried at once."""
    order = [*range(fitting.whole.trajectories)] * count
    params = jax.tree.map(lambda p: np.asarray(p)[order], fitting.state.params)
    state = fitting.state._replace(params=params, watch=initial_watch(len(order)))
    problem = fitting.whole.select(order)
    return replace(fitting, whole=problem, problem=problem, state=state, targets=len(order))


def divided_into(fitting: Fitting, bodies: Sequence[Bodies]) -> Fitting:
    """The fit divided into the rigid bodies of each target, with the motion of each."""
    return divided(fitting, [own for own, _ in bodies], [[[motion] for motion in motions] for _, motions in bodies])


def divided(
    fitting: Fitting, partitions: Sequence[Partition], motions: Sequence[Sequence[Sequence[Transform]]]
) -> Fitting:
    """The fit divided into rigid bodies, each with a field of its own.

    Args:
        fitting: the fit so far.
        partitions: for each target its bodies; with a symmetry those of the asymmetric unit and their copies.
        motions: for each target and body its motion (Å) to each waypoint and to the end; none where the fields of the
            target go on as they are.
    """
    problem = divide_into_parts(fitting.whole, partitions, fitting.initial_map)
    field, params = without_symmetry(fitting.field), jax.device_get(fitting.state.params)

    def start(target: int, part: int) -> PyTree:
        own = jax.tree.map(lambda p: p[target, min(part, p.shape[1] - 1)] if fitting.partitions else p[target], params)
        if part >= len(motions[target]):
            return own
        return screw_of(field).rigid(own, [in_unit_box(motion, problem.frame) for motion in motions[target][part]])

    rows = [start(target, part) for target in range(problem.trajectories) for part in range(problem.parts)]
    stacked = jax.tree.map(lambda *p: np.stack(p).reshape(-1, problem.parts, *p[0].shape), *rows)
    state = begin_stage(fitting.state._replace(params=jax.device_put(stacked)), fitting.state.stage)
    return replace(fitting, partitions=tuple(partitions), problem=problem, field=field, state=state)


def in_unit_box(motion: Transform, frame: Frame) -> Float[np.ndarray, "4 4"]:
    """A rigid motion as a matrix on columns (x, y, z, 1) in the unit box."""
    matrix = motion.matrix
    matrix[:3, 3] = frame.to_unit(motion(frame.corner[None])[0])
    return matrix


def motions_of_flows(fitting: Fitting, partitions: Sequence[Partition]) -> list[list[list[Transform]]]:
    """The rigid motions nearest to the flows of an undivided fit, as `divided` takes them; none of a single body."""
    whole, initial, found = fitting.whole, fitting.initial_map, []
    times, copies = (*whole.waypoints, 1.0), max(1, len(whole.operators))
    threshold = whole.report["initial"]["threshold"]
    for target, own in enumerate(partitions):
        carry = carry_undivided(whole, fitting.field, fitting.state, target)
        found.append(rigid_motions(own, carry, times, initial, threshold)[::copies] if own.count > 1 else [])
    return found


def motions_of_bodies(fitting: Fitting, target: int) -> list[Transform]:
    """The rigid motions (Å) nearest to the fields of a target's bodies and of their copies; none without bodies."""
    if not fitting.partitions:
        return []
    carry, threshold = partial(fitting.fit().carry, target=target), fitting.whole.report["initial"]["threshold"]
    motions = rigid_motions(fitting.partitions[target], carry, (1.0,), fitting.initial_map, threshold)
    return [motion for (motion,) in motions]


def carry_undivided(
    problem: Problem, field: FieldMotion, state: State, target: int
) -> Callable[[np.ndarray, trajectory.Times], np.ndarray]:
    """The function that carries positions (n, 3) in Å to some times by a target's flow, before it is divided."""
    params = jax.tree.map(lambda p: np.asarray(p)[target], state.params)
    return partial(trajectory.move, Flow(field, params, problem.frame))


def choose_bodies(fitting: Fitting, other: Fitting, better: Bool[np.ndarray, "targets"]) -> Fitting:
    """The fit in which some targets have the bodies and fields of another fit."""
    if better.all():
        return other
    if not fitting.partitions:
        each = [one_body(fitting.whole, fitting.initial_map)] * len(better)
        fitting = divided(fitting, each, motions_of_flows(fitting, each))
    both = zip(better, other.partitions, fitting.partitions, strict=True)
    partitions = tuple(new if chosen else old for chosen, new, old in both)
    problem = divide_into_parts(fitting.whole, partitions, fitting.initial_map)

    def padded(params: PyTree) -> PyTree:
        return jax.tree.map(lambda p: p[:, np.minimum(np.arange(problem.parts), p.shape[1] - 1)], params)

    params = where_target(better, padded(other.state.params), padded(fitting.state.params))
    state = begin_stage(fitting.state._replace(params=params), fitting.state.stage)
    return replace(fitting, partitions=partitions, problem=problem, state=state)


def one_body(problem: Problem, initial: Map, smallest: SmallestPart = BodySearch.smallest) -> Partition:
    """The whole as one body, or with a symmetry the asymmetric unit as one, beside its copies."""
    unit = asymmetric_unit(problem, initial)
    if unit is None:
        return complete_labels(np.ones(initial.density.shape, int), initial)
    inside = to_whole_grid(problem.initial, problem, initial) > 0
    return replicate_bodies((unit.mass > 0).astype(int), inside, initial, unit, smallest)


def divide_into_parts(whole: Problem, partitions: Sequence[Partition], initial: Map) -> Problem:
    """Divide the problem into the parts of each target, or with a symmetry into the bodies of the asymmetric unit."""
    unit = asymmetric_unit(whole, initial)
    if unit is None:
        return whole.divide([each.labels for each in partitions])
    inside = to_whole_grid(whole.molecule, whole, initial) > 0
    units = [unit.soft_mask(each, inside) for each in partitions]
    return whole.divide([unit.bodies(each) for each in partitions], units=units)


def find_bodies(
    problem: Problem, field: FieldMotion, state: State, initial: Map, search: BodySearch
) -> tuple[list[Partition], list[list[float]]]:
    """For each target the rigid bodies of its flow, and the rms distances that `from_flow` returns."""
    threshold, unit, found = problem.report["initial"]["threshold"], asymmetric_unit(problem, initial), []
    for target in range(problem.trajectories):
        carry = carry_undivided(problem, field, state, target)
        found.append(from_flow(carry, initial, threshold, unit, search))
    parts, rms = [bodies for bodies, _ in found], [rms for _, rms in found]
    if unit is not None and max(each.count for each in parts) > 1:  # one body there is one body per unit here
        parts = [each if each.count > 1 else one_body(problem, initial, search.smallest) for each in parts]
    return parts, rms


def asymmetric_unit(problem: Problem, initial: Map) -> AsymmetricUnit | None:
    """The asymmetric unit of the initial map; None without a symmetry."""
    if problem.rotations is None:
        return None
    mass = to_whole_grid(problem.carried, problem, initial)
    return AsymmetricUnit(mass, problem.rotations, np.array(problem.report["symmetry"]["centre"]))


def to_whole_grid(cropped: Float[np.ndarray, "x y z"], problem: Problem, initial: Map) -> Float[np.ndarray, "nx ny nz"]:
    """Values on the problem's crop, on the initial map's whole grid; zero elsewhere."""
    whole = np.zeros(initial.density.shape, np.float32)
    room = whole[tuple(slice(first, None) for first in problem.start)]  # the crop may extend beyond the map
    held = cropped[tuple(map(slice, room.shape))]
    room[tuple(map(slice, held.shape))] = held
    return whole


def redraw_borders(
    problem: Problem,
    field: FieldMotion,
    params: PyTree,
    parts: Partition,
    initial: Map,
    target: int,
    rules: BorderRules,
) -> Partition:
    """A target's parts with borders where their fields explain the target (with waypoints, the last one) best."""
    fields = [jax.tree.map(lambda p, k=k: np.asarray(p)[target, k], params) for k in range(parts.count)]
    carries = [partial(trajectory.move, Flow(field, params, problem.frame)) for params in fields]
    number = target - problem.trajectories  # counted from the last target, which is the end with waypoints
    variance, size = problem.residual_blurs[number], initial.voxel_size
    start, end = initial.density, problem.densities[number]
    blurred = partial(gaussian_filter, sigma=np.sqrt(abs(variance)) / size)
    start, end = (blurred(start) if variance > 0 else start), (blurred(end) if variance < 0 else end)
    start_map, end_map = Map(start, size, initial.origin), Map(end, size, initial.origin + problem.start * size)
    threshold, unit = problem.report["initial"]["threshold"], asymmetric_unit(problem, initial)
    copies = 1 if unit is None else len(unit.rotations)
    drawn = borders.redraw(parts, carries, start_map, end_map, threshold, copies, rules)
    if unit is None or drawn is parts:
        return drawn
    inside = to_whole_grid(problem.initial, problem, initial) > 0
    own = np.where(inside & ((drawn.labels - 1) % len(unit.rotations) == 0), drawn.labels, 0)
    whole = replicate_bodies(own, inside, initial, unit, rules.smallest)
    return whole if len(np.unique(whole.labels)) == parts.count else parts  # keep the old ones if a copy lacks a part
