"""The whole method as one function: two maps in, a fit out, which makes frames and carries models."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import overload

import gemmi
import jax
import numpy as np
from jaxtyping import PyTree

from cryotrans_jax.core.flow import FieldMotion
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.density.align import Alignment, onto, resampled
from cryotrans_jax.density.outliers import without_outliers
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.fit import prepare, recipes, trajectory
from cryotrans_jax.fit.devices import DeviceLayout
from cryotrans_jax.fit.progress import ProgressCallback, show_progress
from cryotrans_jax.fit.record import from_plain, to_plain
from cryotrans_jax.fit.rigid_bodies import divide_into_parts, replicate_fields
from cryotrans_jax.fit.schedule import Fitting, run
from cryotrans_jax.fit.snapshots import Snapshot
from cryotrans_jax.fit.stage import Action, Config
from cryotrans_jax.fit.state import all_failed
from cryotrans_jax.fit.supervise import SILENT, Callbacks, warn_of_setback
from cryotrans_jax.io import atoms, checkpoints
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, MapLike, as_map, describe, same_grid
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.symmetric import Symmetric, without_symmetry
from cryotrans_jax.motion.waypoints import Timed

RENDERERS = {"pull_back": trajectory.pull_back, "splat": trajectory.push_forward}


@dataclass(frozen=True, repr=False)
class Fit:
    """Result of a fit: the velocity fields that carry the initial map onto each target.

    In all methods `target` is the number of the target, from 0. Methods that need the initial map raise InputError if
    the fit was loaded without it.

    Attributes:
        config: schedule and network.
        field: the motion by one velocity field, with waypoints and symmetry.
        params: parameters of the fields, with a leading axis of targets, and a second one of parts where there are
            parts.
        frame: the unit box.
        threshold: the initial map's.
        history: for each stage the losses (steps, targets).
        validation_history: in a fit with half-maps, for each stage the losses against the second one after each chunk
            of steps (the training loss where the stage has none).
        report: thresholds, blurs and other values that were chosen by rule.
        partitions: for each target its parts; empty: one field for the whole.
        initial: the initial map; None in a fit that was loaded without it.
        alignments: how `morph` aligned each target to the initial map.
        failed: for each target why it was given up ("" for the others), in which case its parameters are of no use;
            empty: none was.
    """

    config: Config
    field: FieldMotion
    params: PyTree
    frame: Frame
    threshold: float
    history: tuple[np.ndarray, ...] = ()
    validation_history: tuple[np.ndarray, ...] = ()
    report: dict | None = None
    partitions: tuple[Partition, ...] = ()
    initial: Map | None = None
    alignments: tuple[Alignment, ...] = ()
    failed: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Summary of the fit in a few lines."""
        count, stages = len(jax.tree.leaves(self.params)[0]), self.config.stages
        plural = "s" * (count > 1)
        lines = [f"Fit of {count} target{plural}: {len(stages)} stages of {sum(s.steps for s in stages)} steps at most"]
        grid = "not there" if self.initial is None else describe(self.initial)
        lines.append(f"initial map: {grid}; moved where above {self.threshold:.4g}")
        for target in range(count):
            parts = self.partition(target)
            facts = [self.alignments[target].summary] if self.alignments else []
            facts += [f"{parts.count} parts" if parts else "one flow for all"]
            facts += [f"last loss {self.history[-1][-1, target]:.4g}"] if self.history else []
            facts += [f"given up: {self.failed[target]}"] if self.failed and self.failed[target] else []
            lines.append(f"target {target}: {'; '.join(facts)}")
        return "\n  ".join(lines)

    def target_params(self, target: int) -> PyTree:
        """Parameters for one target."""
        return jax.tree.map(lambda p: p[target], self.params)

    def partition(self, target: int = 0) -> Partition | None:
        """Parts of a target's flow; None where it is one field."""
        return self.partitions[target] if self.partitions else None

    def select(self, targets: Sequence[int]) -> "Fit":
        """The same fit with the targets of these numbers, in this order; `report` still describes all."""
        chosen = list(targets)
        params = jax.tree.map(lambda p: p[chosen], self.params)
        history, validation_history = (
            tuple(a[:, chosen] for a in kind) for kind in (self.history, self.validation_history)
        )
        partitions = tuple(self.partitions[target] for target in chosen) if self.partitions else ()
        alignments = tuple(self.alignments[target] for target in chosen) if self.alignments else ()
        failed = tuple(self.failed[target] for target in chosen) if self.failed else ()
        return replace(
            self,
            params=params,
            history=history,
            validation_history=validation_history,
            partitions=partitions,
            alignments=alignments,
            failed=failed,
        )

    def require_initial(self) -> Map:
        """The initial map; raises InputError if the fit was loaded without it."""
        if self.initial is None:
            raise InputError("the fit was loaded without its initial map: load it as Fit.load(path, initial)")
        return self.initial

    def frames(self, times: int | trajectory.Times = 11, target: int = 0, render: str = "pull_back") -> Iterator[Map]:
        """Maps of the pseudo-trajectory, one after the other, on the initial map's grid (paper, eq. 7).

        Args:
            times: from 0 to 1; or a number of equally spaced frames, from the initial map to the end.
            target: number of the target.
            render: "pull_back", which keeps the detail, or "splat", which keeps the mass.

        Raises:
            InputError: times or `render` are invalid.
        """
        if render not in RENDERERS:
            raise InputError(f"frames cannot be made by {render!r}: choose one of {', '.join(RENDERERS)}")
        flow = self.field, self.target_params(target), self.frame
        times = trajectory.as_times(times)
        return RENDERERS[render](*flow, self.require_initial(), self.threshold, times, self.partition(target))

    def generated(self, target: int = 0) -> Map:
        """The generated map: the initial map carried to the target's conformation, which is the last frame."""
        return next(self.frames([1.0], target))

    def consistency(self, target: int = 0) -> float:
        """RMS distance (Å) of density from its start after it was carried to the end and back."""
        flow = self.field, self.target_params(target), self.frame
        return trajectory.consistency(*flow, self.require_initial(), self.threshold, self.partition(target))

    def spread(self, others: Sequence["Fit"], target: int = 0) -> tuple[Map, np.ndarray]:
        """How far apart (Å) this fit and others from other seeds carry the same density; see `trajectory.spread`."""
        carries = [partial(fit.carry, target=target) for fit in (self, *others)]
        return trajectory.spread(carries, self.frame, self.require_initial(), self.threshold)

    @overload
    def move(self, model: gemmi.Structure, times: None = None, target: int = 0) -> gemmi.Structure: ...

    @overload
    def move(self, model: gemmi.Structure, times: int | trajectory.Times, target: int = 0) -> list[gemmi.Structure]: ...

    def move(
        self, model: gemmi.Structure, times: int | trajectory.Times | None = None, target: int = 0
    ) -> gemmi.Structure | list[gemmi.Structure]:
        """Carry the initial state's model, atom by atom.

        Args:
            model: in the initial map's frame.
            times: as for `frames`; None: the end.
            target: number of the target. With parts, each atom moves by the field of its residue's part.

        Returns:
            The carried model, or with `times` a list of models.
        """
        if times is None:
            return self.move(model, [1.0], target)[0]
        xyz, parts, times = atoms.positions(model), self.partition(target), trajectory.as_times(times)
        each = trajectory.move(
            self.field, self.target_params(target), self.frame, xyz, times, parts and parts.of_atoms(model)
        )
        return [atoms.with_positions(model, at) for at in each]

    def carry(self, xyz: np.ndarray, times: int | trajectory.Times, target: int = 0) -> np.ndarray:
        """Carry positions by the flow.

        Args:
            xyz: positions (n, 3), Å.
            times: as for `frames`.
            target: number of the target.

        Returns:
            Positions (times, n, 3), Å.
        """
        parts, times = self.partition(target), trajectory.as_times(times)
        return trajectory.move(
            self.field, self.target_params(target), self.frame, xyz, times, parts and parts.part_at(xyz)
        )

    def volume_change(self, xyz: np.ndarray, target: int = 0) -> np.ndarray:
        """Factor by which the flow changes volume at positions xyz (n, 3) in Å; at or below 0 the flow folds."""
        parts = self.partition(target)
        return trajectory.volume_change(
            self.field, self.target_params(target), self.frame, xyz, parts and parts.part_at(xyz)
        )

    def parts_map(self, target: int = 0) -> Map:
        """Label map: the part (1, 2, ...) of each voxel that is carried, 0 elsewhere."""
        initial = self.require_initial()
        return self.partition(target).to_map(
            trajectory.soft_support(initial.density, self.threshold, initial.voxel_size) > 0
        )

    def save(self, path: str | os.PathLike) -> None:
        """Save the fit, without its history and the initial map, for `Fit.load(path, initial)`."""
        described = {
            "config": to_plain(self.config),
            "field": to_plain(self.field),
            "corner": self.frame.corner.tolist(),
            "edge": self.frame.edge,
            "threshold": self.threshold,
        }
        if self.initial is not None:
            shape, size, origin = self.initial.density.shape, self.initial.voxel_size, self.initial.origin
            described["grid"] = {"shape": shape, "voxel_size": size.tolist(), "origin": origin.tolist()}
        arrays = self.params
        if self.partitions:
            first = self.partitions[0]
            described["partition"] = {"voxel_size": first.voxel_size.tolist(), "origin": first.origin.tolist()}
            arrays = arrays | {"labels": np.stack([each.labels for each in self.partitions])}
        checkpoints.save(path, arrays, described)

    @classmethod
    def load(cls, path: str | os.PathLike, initial: MapLike | None = None) -> "Fit":
        """Load the fit saved under `path`.

        Args:
            path: the checkpoint's folder.
            initial: the initial map; without it only atoms can be moved.

        Raises:
            FileNotFoundError: there is no fit.
            InputError: the checkpoint is damaged, or the map is not on the grid of the initial one.
        """
        params, saved = checkpoints.restore(path)
        with checkpoints.version_errors(path, "a fit"):
            return cls._of(params, saved, None if initial is None else read_repaired(initial), path)

    @classmethod
    def _of(cls, params: dict, saved: dict, initial: Map | None, path: str | os.PathLike) -> "Fit":
        """The fit with these arrays and this description, read from `path`."""
        grid = saved.get("partition")
        labels = params.pop("labels") if grid else ()
        grid = [np.array(grid[name]) for name in ("voxel_size", "origin")] if grid else []
        if initial and (known := saved.get("grid")):
            original = Map(
                np.broadcast_to(0.0, known["shape"]), *(np.array(known[k]) for k in ("voxel_size", "origin"))
            )
            if difference := same_grid(initial, original):
                raise InputError(f"the map is not that of the fit under {path} ({difference}): give its initial map")
        return cls(
            config=from_plain(saved["config"]),
            field=from_plain(saved["field"]),
            params=params,
            frame=Frame(np.array(saved["corner"]), saved["edge"]),
            threshold=saved["threshold"],
            partitions=tuple(Partition(each, *grid) for each in labels),
            initial=initial,
        )


@show_progress
def morph(
    initial: MapLike,
    targets: MapLike | Sequence[MapLike],
    recipe: str = "default",
    *,
    align: str = "auto",
    seed: int = 0,
    steps: float = 1.0,
    initial_threshold: float | None = None,
    target_threshold: float | None = None,
    initial_resolution: float | None = None,
    target_resolution: float | Sequence[float | None] | None = None,
    volume: float | None = None,
    halves: tuple[MapLike, MapLike] | Sequence[tuple[MapLike, MapLike]] | None = None,
    waypoints: Sequence[tuple[MapLike, float]] = (),
    waypoint_resolution: float | Sequence[float | None] | None = None,
    parts: Partition | str | None = "auto",
    part_rigidity: Sequence[float] | None = None,
    symmetry: Symmetry | str | None = None,
    bin: int = 1,
    schedule: recipes.Schedule | None = None,
    target_indices: Sequence[int] | None = None,
    progress: bool | ProgressCallback = False,
    layout: DeviceLayout | None = None,
    on_prepared: Callable[[dict], None] = lambda report: None,
    resume_from: Snapshot | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    on_setback: Callable[[int, str], None] = warn_of_setback,
) -> Fit:
    """Fit the flow that carries `initial` onto each of the targets.

    Args:
        initial: the initial map, or the path of an MRC file.
        targets: one or several target maps, or paths.
        recipe: "default" or "paper".
        align: "auto" aligns each target to the initial map where that fits clearly better; "none" takes it where its
            origin puts it. Either way it is resampled on the initial map's grid.
        seed: of the network's initial weights.
        steps: factor on the number of steps of every stage.
        initial_threshold: density; None: chosen by rule, or so that it encloses `volume`.
        target_threshold: likewise, for targets and waypoints.
        initial_resolution: Å; None: the difference in resolution is estimated.
        target_resolution: Å, one for all targets or one for each.
        volume: of the molecule, Å³.
        halves: two half-maps for each target. The fit compares with the first; the second validates it, which selects
            the best parameters and stops stages early. Threshold, blur and motion are still the target's.
        waypoints: maps with the times (between 0 and 1) at which the flow onto the only target passes them.
        waypoint_resolution: Å, one for all waypoints or one for each.
        parts: of the initial map, each with its own velocity field (paper, eq. 8-15): a partition, or "auto" for the
            rigid bodies that each target's flow shows after the recipe's first stages; None: one field.
        part_rigidity: factor on the weight of the rigidity in each part of a given partition.
        symmetry: of all maps: "C3", "D8", "T", "O" or "I" about an axis along z of the initial map, the path of an
            mmCIF file with a biological assembly, or `Symmetry.named(...)` for any other axis or centre. The flow then
            commutes with its operators and is fitted to the points of the asymmetric unit. Each copy of a rigid body is
            a part, with the body's field rotated accordingly.
        bin: factor by which maps are binned, for the recipe "paper".
        schedule: stages and width, for the recipe "paper".
        target_indices: numbers of the targets to fit, from 0; None: all. The fit then has these alone, in this order.
            Crop, thresholds and schedule are those for all targets, so that fits of different targets match.
        progress: True shows the progress in a notebook, a terminal or a log; a function is called with (config, stage,
            step, losses) after every chunk of steps.
        layout: how targets are laid out over devices; None: over all devices of this host.
        on_prepared: called with the report of the thresholds before the first step.
        resume_from: a snapshot of an earlier call with otherwise the same arguments. The fit ends the same, bit for
            bit.
        on_snapshot: called with a snapshot after every chunk of steps, and at the end.
        on_setback: called with (target, message) when a target diverged; see `fit.supervise`.

    Returns:
        The fit. Its `failed` names targets that were given up.

    Raises:
        InputError: a file cannot be read, a target has next to nothing in the initial map's box, no density is above a
            threshold, an argument is invalid or does not fit the others, a map does not have the symmetry, or every
            target was given up.
    """
    if recipe not in recipes.RECIPES:
        raise InputError(f"there is no recipe {recipe!r}: choose one of {', '.join(recipes.RECIPES)}")
    if bin != 1 and recipe != "paper":
        raise InputError(f"bin={bin} is for the recipe paper: the recipe {recipe} chooses its own")
    if schedule and recipe != "paper":
        raise InputError(f"a schedule is for the recipe paper: the recipe {recipe} chooses its own")
    initial, targets = read_repaired(initial), [targets] if isinstance(targets, MapLike) else list(targets)
    waypoint_maps, times, waypoint_resolutions = sort_waypoints(waypoints, waypoint_resolution)
    if halves is not None:
        halves = [tuple(halves)] if isinstance(halves[0], MapLike) else list(halves)
        if len(halves) != len(targets):
            raise InputError(f"{len(halves)} pairs of half-maps for {len(targets)} targets: give one for each target")
        if recipe == "paper":
            raise InputError("half-maps have no effect in the recipe paper, which makes all its steps: leave them out")
        if times:
            raise InputError("half-maps and waypoints do not go together yet: leave one of them out")
    if times and len(targets) > 1:
        raise InputError(f"waypoints are for one target, and there are {len(targets)}: fit each with its own")
    check_parts(parts, part_rigidity, initial)
    if symmetry and isinstance(parts, Partition):
        raise InputError("parts and a symmetry do not go together yet: leave one of them out")
    target_indices = [*range(len(targets))] if target_indices is None else [*target_indices]
    if not target_indices or not set(target_indices) <= set(range(len(targets))):
        last = len(targets) - 1
        raise InputError(
            f"target_indices={target_indices} does not fit {last + 1} targets: give numbers from 0 to {last}"
        )
    levels = {"initial_threshold": initial_threshold, "target_threshold": target_threshold}
    waypoint_maps, targets, halves, alignments = align_all(initial, waypoint_maps, targets, halves, align, levels)
    count, layout = len(target_indices), layout or DeviceLayout.automatic(len(target_indices))
    resolutions = one_per_target(target_resolution, len(targets))
    problem = prepare.prepare(
        initial,
        waypoint_maps + targets,
        **levels,
        initial_resolution=initial_resolution,
        target_resolutions=waypoint_resolutions + resolutions,
        halves=halves,
        volume=volume,
        whole_box=recipe == "paper",
        waypoints=times,
    )
    problem, operators = impose_symmetry(problem, symmetry, initial) if symmetry else (problem, ())
    variances = {"blur_variance": problem.blurs.tolist(), "quieting_variance": problem.denoising_blurs.tolist()}
    variances |= {
        "sharpening_variance": (np.maximum(problem.blurs, 0) - np.maximum(problem.residual_blurs, 0)).tolist()
    }
    report = report_waypoints(problem.report | variances, times)
    on_prepared(report)
    if recipe == "paper":
        known = initial_resolution and resolutions[0]
        config = recipes.paper(problem, seed, bin, (initial_resolution, resolutions[0]) if known else None, schedule)
    else:
        config = recipes.default(problem, seed)
    config = config.scaled(steps) if parts == "auto" else config.scaled(steps).without_division()
    if part_rigidity and not any(term.rigid for stage in config.stages for term in stage.terms):
        raise InputError(f"the recipe {recipe} has no rigidity: part_rigidity is for another one")
    field: FieldMotion = Symmetric(config.field, operators) if symmetry else config.field
    field = Timed(field, problem.waypoints) if times else field
    callback = (lambda *at: progress(config, *at)) if progress else (lambda *at: None)
    last_devices = target_indices[-1:] * (-count % layout.devices)  # copies that fill up the last devices
    problem = problem if times else problem.select(target_indices + last_devices)
    given = [parts] * problem.trajectories if isinstance(parts, Partition) else []
    divided = problem.divide([p.labels for p in given], part_rigidity) if given else problem
    callbacks = Callbacks(callback, SILENT.on_state, on_setback)
    fitting = Fitting.begin(divided, config, field, layout=layout, callbacks=callbacks, initial=initial)
    if resume_from:
        fitting = resumed(fitting, resume_from)
    fitting = run(fitting, on_snapshot)
    state = fitting.state
    if all_failed(state):
        raise InputError(f"the fit went wrong: {state.failed[0]}; see that the maps are sound and of one molecule")
    if on_snapshot:
        on_snapshot(fitting.snapshot(finished=True))
    params = state.params
    if symmetry and fitting.partitions:  # the copies of a body become parts like any others
        params = replicate_fields(params, fitting.whole, config.field.network.centre)
    return Fit(
        config=config,
        field=fitting.field,
        params=jax.tree.map(lambda p: np.asarray(p)[:count], params),
        frame=problem.frame,
        threshold=problem.report["initial"]["threshold"],
        history=tuple(losses[:, :count] for losses in fitting.history),
        validation_history=tuple(scores[:, :count] for scores in state.scores) if halves else (),
        report=report | report_of_fit(fitting, count),
        partitions=(fitting.partitions or tuple(given))[:count],
        initial=initial,
        alignments=tuple(alignments[number] for number in target_indices),
        failed=state.failed[:count],
    )


def resumed(fitting: Fitting, snapshot: Snapshot) -> Fitting:
    """The fit as it stood when the snapshot was taken."""
    fitting = replace(
        fitting,
        state=snapshot.state,
        history=snapshot.history,
        partitions=snapshot.partitions,
        bodies_rms=snapshot.bodies_rms,
    )
    if not snapshot.partitions:
        return fitting
    assert fitting.initial is not None
    problem = divide_into_parts(fitting.whole, snapshot.partitions, fitting.initial)
    return replace(fitting, problem=problem, field=without_symmetry(fitting.field))


def report_of_fit(fitting: Fitting, count: int) -> dict:
    """What the fit of the first `count` targets has decided: start, setbacks, bodies."""
    names, state = ("correspondences", "transport"), fitting.state
    rivals = state.rivals[:count] or (fitting.config.stages[0].label == "w2",) * count
    found: dict = {"start": [names[rival] for rival in rivals]}
    if state.setbacks:
        found["setbacks"] = [*state.setbacks[:count]]
    if any(isinstance(item, Action) and item.divides for item in fitting.config.schedule):
        found["bodies_rms"] = [[*off] for off in fitting.bodies_rms[:count]]
    return found


def read_repaired(given: MapLike) -> Map:
    """The given map, or that of the file, without outliers; warns of those found."""
    map_, outliers = without_outliers(as_map(given))
    if outliers is not None:
        warnings.warn(f"{outliers}: each is set to the median of the voxels around it", stacklevel=3)
    return map_


def align_all(
    initial: Map,
    waypoints: Sequence[MapLike],
    targets: Sequence[MapLike],
    halves: Sequence[tuple[MapLike, MapLike]] | None,
    align: str,
    levels: dict[str, float | None],
) -> tuple[list[Map], list[Map], list[tuple[Map, ...]] | None, list[Alignment]]:
    """Align waypoints, targets and half-maps to the initial map, and resample them on its grid.

    Each map is aligned separately, but half-maps follow their target. `levels` are the thresholds.

    Returns:
        Waypoints, targets, half-maps, and the alignment of each target.
    """
    each = [onto(initial, read_repaired(given), align, **levels) for given in (*waypoints, *targets)]
    maps, alignments = [map_ for map_, _ in each], [found for _, found in each][len(waypoints) :]
    if halves is not None:
        halves = [
            tuple(resampled(read_repaired(half), initial, found.transform) for half in pair)
            for pair, found in zip(halves, alignments, strict=True)
        ]
    return maps[: len(waypoints)], maps[len(waypoints) :], halves, alignments


def impose_symmetry(
    problem: Problem, given: Symmetry | str, initial: Map
) -> tuple[Problem, tuple[tuple[float, ...], ...]]:
    """Restrict the problem to the asymmetric unit.

    Returns:
        The problem restricted to one asymmetric unit, and the operators for `Symmetric`.

    Raises:
        InputError: a map does not have the symmetry.
    """
    origin = initial.origin + problem.start * problem.voxel_size
    start, *ends = (Map(mass, problem.voxel_size, origin) for mass in (problem.initial, *problem.masses))
    symmetry = Symmetry.of(given, initial, start)
    symmetry.check(start, "initial map")
    for number, end in enumerate(ends):
        passed = number - len(problem.waypoints)
        symmetry.check(end, f"target map {passed + 1}" if passed >= 0 else f"waypoint map {number + 1}")
    turns = np.stack([operator.rotation for operator in symmetry.operators])
    middle = problem.frame.to_unit(symmetry.centre)
    shifts = middle - turns @ middle
    rows = np.concatenate([turns.reshape(-1, 9), shifts], axis=1)
    facts = {"name": symmetry.name, "centre": symmetry.centre.tolist(), "copies": len(symmetry.operators)}
    report = problem.report | {"symmetry": facts}
    problem = replace(problem, unit=symmetry.unit_mask(start), rotations=turns, shifts=shifts, report=report)
    return problem, tuple(map(tuple, rows.tolist()))


def one_per_target(given: float | Sequence[float | None] | None, count: int) -> list[float | None]:
    """The values given for each target, or the one value for all, as a list."""
    return list(given) if isinstance(given, list | tuple) else [given] * count


def sort_waypoints(
    waypoints: Sequence[tuple[MapLike, float]], resolution: float | Sequence[float | None] | None
) -> tuple[list[MapLike], list[float], list[float | None]]:
    """Sort the waypoints' maps, times and resolutions (Å) by time.

    Raises:
        InputError: a time is not between 0 and 1, or two are the same.
    """
    known = one_per_target(resolution, len(waypoints))
    rows = sorted(((map_, float(t), r) for (map_, t), r in zip(waypoints, known, strict=True)), key=lambda row: row[1])
    times = [t for _, t, _ in rows]
    if wrong := [t for t in times if not 0 < t < 1]:
        raise InputError(
            f"a waypoint is at the time {wrong[0]:g}: give one between 0 (the initial map) and 1 (the end)"
        )
    if len(set(times)) < len(times):
        raise InputError(f"two waypoints have the same time ({', '.join(f'{t:g}' for t in times)}): give each its own")
    return [row[0] for row in rows], times, [row[2] for row in rows]


def report_waypoints(report: dict, times: Sequence[float]) -> dict:
    """The report with the entries of the first targets, which are waypoints at these times, under "waypoints"."""
    rows = {name: value for name, value in report.items() if isinstance(value, list)}
    apart = {name: value[len(times) :] for name, value in rows.items()}
    used = [
        {"time": t, **rows["targets"][k]} | {name: value[k] for name, value in rows.items() if name != "targets"}
        for k, t in enumerate(times)
    ]
    return report | apart | ({"waypoints": used} if used else {})


def check_parts(parts: Partition | str | None, rigidity: Sequence[float] | None, initial: Map) -> None:
    """Raise InputError if the parts, or their weights of the rigidity, are invalid."""
    if isinstance(parts, str) and parts != "auto":
        raise InputError(f"there are no parts {parts!r}: give a partition, or auto")
    if isinstance(parts, Partition) and parts.labels.shape != initial.density.shape:
        raise InputError("the parts are on another grid than the initial map: make them on its grid")
    if rigidity and not isinstance(parts, Partition):
        raise InputError("part_rigidity is only for given parts: give parts as well, and not auto")
    if rigidity and min(rigidity) < 0:
        raise InputError(f"part_rigidity contains {min(rigidity):g}: give weights that are not negative")
