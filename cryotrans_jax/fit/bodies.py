"""Actions that give each rigid body a velocity field of its own, and redraw the bodies' borders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree
from scipy.ndimage import gaussian_filter

from cryotrans_jax.core.batch import Batch
from cryotrans_jax.core.flow import FieldMotion
from cryotrans_jax.core.losses import Correspondences, Term
from cryotrans_jax.core.programs import program
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit import terms, trajectory
from cryotrans_jax.fit.better_end import data_losses
from cryotrans_jax.fit.levels import Level, Sampling, make_levels
from cryotrans_jax.fit.schedule import Fitting
from cryotrans_jax.fit.stage import Action, Inputs, Stage
from cryotrans_jax.fit.state import State, divide_state
from cryotrans_jax.fit.supervise import SILENT, fit_stage
from cryotrans_jax.fit.target_flow import Flow
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion import borders
from cryotrans_jax.motion.borders import BorderRules
from cryotrans_jax.motion.partition import AsymmetricUnit, Partition, replicate_bodies
from cryotrans_jax.motion.rigid_bodies import BodySearch, from_flow
from cryotrans_jax.motion.symmetric import all_copies, replicate_fields, without_symmetry
from cryotrans_jax.motion.waypoints import AtEachTime


@dataclass(frozen=True)
class FindRigidBodies(Action):
    """Find the rigid bodies that the flow moves, and give each a field of its own.

    Each body continues with a copy of the whole's field. If every target has but one body, nothing changes. With a
    symmetry the fields are those of the bodies of the asymmetric unit, and no longer symmetric: each starts from the
    symmetric network and is fitted to its flow by the `transfer` stage, whose correspondences are certain.

    Attributes:
        transfer: fits the field of a body to the symmetric flow.
        search: how bodies are searched for.
    """

    transfer: Stage
    search: BodySearch = BodySearch()
    divides = True

    def scaled(self, factor: float) -> "FindRigidBodies":
        """The action with `factor` times the steps of the transfer."""
        return replace(self, transfer=self.transfer.scaled(factor))

    def __call__(self, fitting: Fitting) -> Fitting:
        """Divide the initial map into the bodies of each target's flow."""
        initial = fitting.initial_map
        partitions, rms = find_bodies(fitting.whole, fitting.field, fitting.state, initial, self.search)
        fitting = replace(fitting, bodies_rms=tuple(map(tuple, rms)))
        if max(each.count for each in partitions) == 1:
            return fitting
        problem = divide_into_parts(fitting.whole, partitions, initial)
        divided = replace(
            fitting,
            partitions=tuple(partitions),
            problem=problem,
            field=without_symmetry(fitting.field),
            state=divide_state(fitting.state, problem.parts, fitting.state.stage),
        )
        return self.released(divided, fitting) if fitting.whole.operators else divided

    def released(self, divided: Fitting, symmetric: Fitting) -> Fitting:
        """The divided fit with fields fitted to the symmetric flow."""
        stage, problem = self.transfer, divided.problem
        operators = problem.operators
        levels = make_levels(problem, divided.field, Sampling(stage.bin, stage.sampling, stage.spacing, True))
        each = []
        for trajectory_, level in enumerate(levels):
            params = jax.tree.map(lambda p, k=trajectory_: p[k], symmetric.state.params)
            own = level.points[: len(level.points) // len(operators)]
            ends = np.asarray(copied_ends(symmetric.field, params, own, *map(np.stack, zip(*operators, strict=True))))
            each.append((level.scene, self.transfer_terms(problem, level, ends)))
        inputs, setting = Inputs(Batch.of(each), None), divided.setting(SILENT)
        fitted, *_ = fit_stage(stage, divided.make_inputs, inputs, divided.state, setting)
        return replace(divided, state=divided.state._replace(params=fitted.params))

    def transfer_terms(
        self, problem: Problem, level: Level, ends: Float[np.ndarray, "*times points 3"]
    ) -> tuple[Term, ...]:
        """Terms of the transfer to these ends, with weights by mass alone."""

        def to(ends: Float[np.ndarray, "points 3"]) -> tuple[Term, ...]:
            return tuple(
                Correspondences(ends, level.scene.rho, np.float32(term.reach / problem.frame.edge))
                if isinstance(term, terms.Correspondences)
                else term.make(problem, level, self.transfer.bin, 0)
                for term in self.transfer.terms
            )

        return (AtEachTime(Batch.of([to(at) for at in ends])),) if problem.waypoints else to(ends)


@program(static_argnames="field")
def copied_ends(
    field: FieldMotion,
    params: PyTree,
    x: Float[Array, "points 3"],
    rotations: Float[Array, "copies 3 3"],
    shifts: Float[Array, "copies 3"],
) -> Float[Array, "*times all 3"]:
    """Points of the asymmetric unit after the flow, and their copies."""
    return all_copies(field.ends(params, x), rotations, shifts)


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
        every = replicate_fields(fitting.state.params, whole.operators, fitting.field.net.centre)
        each = enumerate(fitting.partitions)
        drawn = tuple(
            redraw_borders(whole, fitting.field, every, own, initial, target, self.rules) for target, own in each
        )
        before = data_losses(fitting, fitting.problem, fitting.next_stage)
        after = data_losses(fitting, divide_into_parts(whole, drawn, initial), fitting.next_stage)
        pairs = zip(drawn, fitting.partitions, after < self.most_loss * before, strict=True)
        chosen = tuple(new if better else old for new, old, better in pairs)
        return replace(fitting, partitions=chosen, problem=divide_into_parts(whole, chosen, initial))


def divide_into_parts(whole: Problem, partitions: Sequence[Partition], initial: Map) -> Problem:
    """Divide the problem into the parts of each target, or with a symmetry into the bodies of the asymmetric unit."""
    unit = asymmetric_unit(whole, initial)
    if unit is None:
        return whole.divide([each.labels for each in partitions])
    inside = to_whole_grid(whole.initial, whole, initial) > 0
    units = [unit.soft_mask(each, inside) for each in partitions]
    return whole.divide([unit.bodies(each) for each in partitions], units=units)


def find_bodies(
    problem: Problem, field: FieldMotion, state: State, initial: Map, search: BodySearch
) -> tuple[list[Partition], list[list[float]]]:
    """For each target the rigid bodies of its flow, and the rms distances that `from_flow` returns."""
    threshold, unit, found = problem.report["initial"]["threshold"], asymmetric_unit(problem, initial), []
    for target in range(problem.trajectories):
        params = jax.tree.map(lambda p, k=target: p[k], state.params)
        found.append(
            from_flow(partial(trajectory.move, Flow(field, params, problem.frame)), initial, threshold, unit, search)
        )
    parts, rms = [bodies for bodies, _ in found], [rms for _, rms in found]
    if unit is not None and max(each.count for each in parts) > 1:  # one body there is one body per unit here
        inside = to_whole_grid(problem.initial, problem, initial) > 0
        one = replicate_bodies((unit.mass > 0).astype(int), inside, initial, unit, search.smallest)
        parts = [each if each.count > 1 else one for each in parts]
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
    fields = [jax.tree.map(lambda p, k=k: p[target, k], params) for k in range(parts.count)]
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
