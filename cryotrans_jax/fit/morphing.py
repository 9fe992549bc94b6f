"""The whole method as one function: two maps in, a fit out, which makes frames and carries models."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import overload

import gemmi
import jax
import numpy as np
from jaxtyping import Float, PyTree
from scipy.ndimage import gaussian_filter

from cryotrans_jax.core.grid import Frame
from cryotrans_jax.core.velocity import rotate_parameters
from cryotrans_jax.density.align import Alignment, onto
from cryotrans_jax.density.outliers import without_outliers
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.density.transform import resampled
from cryotrans_jax.fit import prepare, recipes, train, trajectory
from cryotrans_jax.fit.progress import ProgressCallback, show_progress
from cryotrans_jax.fit.snapshots import Recorder, Snapshot
from cryotrans_jax.io import atoms, checkpoints
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, MapLike, as_map, describe, same_grid
from cryotrans_jax.motion import borders
from cryotrans_jax.motion.partition import AsymmetricUnit, Partition, replicate_bodies
from cryotrans_jax.motion.rigid_bodies import from_flow

RENDERERS = {"pull_back": trajectory.pull_back, "splat": trajectory.push_forward}


@dataclass(frozen=True, repr=False)
class Fit:
    """Result of a fit: the velocity fields that carry the initial map onto each target.

    In all methods `target` is the number of the target, from 0. Methods that need the initial map raise InputError if
    the fit was loaded without it.

    Attributes:
        config: schedule, network and symmetry.
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

    config: train.Config
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
        flow = self.config, self.target_params(target), self.frame
        times = trajectory.as_times(times)
        return RENDERERS[render](*flow, self.require_initial(), self.threshold, times, self.partition(target))

    def generated(self, target: int = 0) -> Map:
        """The generated map: the initial map carried to the target's conformation, which is the last frame."""
        return next(self.frames([1.0], target))

    def consistency(self, target: int = 0) -> float:
        """RMS distance (Å) of density from its start after it was carried to the end and back."""
        flow = self.config, self.target_params(target), self.frame
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
            self.config, self.target_params(target), self.frame, xyz, times, parts and parts.of_atoms(model)
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
            self.config, self.target_params(target), self.frame, xyz, times, parts and parts.part_at(xyz)
        )

    def volume_change(self, xyz: np.ndarray, target: int = 0) -> np.ndarray:
        """Factor by which the flow changes volume at positions xyz (n, 3) in Å; at or below 0 the flow folds."""
        parts = self.partition(target)
        return trajectory.volume_change(
            self.config, self.target_params(target), self.frame, xyz, parts and parts.part_at(xyz)
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
            "config": asdict(self.config),
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
        settings, grid = saved["config"], saved.get("partition")
        labels = params.pop("labels") if grid else ()
        grid = [np.array(grid[name]) for name in ("voxel_size", "origin")] if grid else []
        settings["waypoints"] = tuple(settings.get("waypoints", ()))
        settings["symmetry"] = tuple(map(tuple, settings.get("symmetry", ())))
        stages = tuple(train.Stage(**stage) for stage in settings.pop("stages"))
        rival = train.Stage(**rival) if (rival := settings.pop("rival", None)) else None
        if initial and (known := saved.get("grid")):
            original = Map(
                np.broadcast_to(0.0, known["shape"]), *(np.array(known[k]) for k in ("voxel_size", "origin"))
            )
            if difference := same_grid(initial, original):
                raise InputError(f"the map is not that of the fit under {path} ({difference}): give its initial map")
        return cls(
            config=train.Config(stages=stages, rival=rival, **settings),
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
    layout: train.DeviceLayout | None = None,
    on_prepared: Callable[[dict], None] = lambda report: None,
    resume_from: Snapshot | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    on_setback: Callable[[int, str], None] = train.warn_of_setback,
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
        on_setback: called with (target, message) when a target diverged; see `train.fit`.

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
    count, layout = len(target_indices), layout or train.DeviceLayout.automatic(len(target_indices))
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
    if symmetry:
        problem, operators = impose_symmetry(problem, symmetry, initial)
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
    if symmetry:
        config = replace(config, symmetry=operators)
    rival = train.scale_steps((config.rival,), steps)[0] if config.rival else None
    config = replace(config, stages=train.scale_steps(config.stages, steps), rival=rival)
    if part_rigidity and not any(stage.rigidity for stage in config.stages):
        raise InputError(f"the recipe {recipe} has no rigidity: part_rigidity is for another one")
    callback = (lambda *at: progress(config, *at)) if progress else (lambda *at: None)
    padded_indices = target_indices + target_indices[-1:] * (
        -count % layout.devices
    )  # pad with copies for the last devices
    recorder = Recorder(resume_from, on_snapshot)
    fit = partial(train.fit, progress=callback, layout=layout, on_state=recorder, on_setback=on_setback)
    problem, state = problem if times else problem.select(padded_indices), resume_from and resume_from.state
    if parts == "auto" and config.bodies:
        state, parts, off = fit_bodies(problem, config, fit, initial, state, recorder, layout)
        report = report | {"bodies_rms": off[:count]}
    else:
        parts = [parts] * problem.trajectories if isinstance(parts, Partition) else []
        divided = problem.divide([p.labels for p in parts], part_rigidity) if parts else problem
        state, _ = fit(divided, config, state=state)
    if train.all_failed(state):
        raise InputError(f"the fit went wrong: {state.failed[0]}; see that the maps are sound and of one molecule")
    if on_snapshot:
        end = recorder.snapshot(state._replace(stage=len(config.stages)))  # a finished fit
        on_snapshot(replace(end, finished=True))
    start_names, rivals = (
        ("correspondences", "transport"),
        state.rivals[:count] or (config.stages[0].loss == "w2",) * count,
    )
    params = state.params
    if symmetry and parts:  # the copies of a body become parts like any others
        config, params = replace(config, symmetry=()), replicate_fields(params, problem, config)
    return Fit(
        config=config,
        params=jax.tree.map(lambda p: np.asarray(p)[:count], params),
        frame=problem.frame,
        threshold=problem.report["initial"]["threshold"],
        history=tuple(losses[:, :count] for losses in recorder.history),
        validation_history=tuple(scores[:, :count] for scores in state.scores) if halves else (),
        report=report
        | {"start": [start_names[rival] for rival in rivals]}
        | ({"setbacks": [*state.setbacks[:count]]} if state.setbacks else {}),
        partitions=tuple(parts[:count]),
        initial=initial,
        alignments=tuple(alignments[number] for number in target_indices),
        failed=state.failed[:count],
    )


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
        The problem restricted to one asymmetric unit, and the operators for `Config.symmetry`.

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


def fit_bodies(
    problem: Problem,
    config: train.Config,
    fit: Callable,
    initial: Map,
    state: train.State | None,
    recorder: Recorder,
    layout: train.DeviceLayout,
) -> tuple[train.State, list[Partition], list[list[float]]]:
    """Fit with rigid bodies that are found after the first stages.

    Each body continues with a copy of the whole's field. After further stages the borders of the bodies are redrawn
    where their fields explain the target best. If every target has but one body, there are no partitions. With a
    symmetry, the partitions contain all copies of the bodies, and the state has fields for the bodies of the asymmetric
    unit: first symmetric, then without the symmetry.

    Args:
        problem: the prepared maps, not divided.
        config: the configuration.
        fit: `train.fit` with its callbacks.
        initial: the initial map.
        state: the state to resume from; None: the initial one.
        recorder: collects losses and partitions.
        layout: how targets are laid out over devices.

    Returns:
        The state; the partition of each target; and for each target the rms distances (Å) from rigid motions with one
        body, two bodies and so on.
    """
    whole, stage, free = problem, config.bodies, replace(config, symmetry=())
    if state is None or state.stage < stage:
        state, _ = fit(problem, replace(config, stages=config.stages[:stage]), state=state)
        if train.all_failed(state):
            return state, [], []
        parts, rms = find_bodies(problem, config, state, initial)
        count = max(each.count for each in parts)
        recorder.partitions, recorder.bodies_rms = tuple(parts) if count > 1 else (), tuple(map(tuple, rms))
        if count == 1:
            state = train.begin_stage(state, stage)
        elif config.symmetry:
            state = train.release_symmetry(
                config, state, divide_into_parts(whole, recorder.partitions, initial), stage, layout
            )
        else:
            state = train.divide_state(state, count, stage)
    if not recorder.partitions:
        state, _ = fit(whole, config, state=state)
        return state, [], [[*off] for off in recorder.bodies_rms]
    if state.stage < config.redrawn:
        problem = divide_into_parts(whole, recorder.partitions, initial)
        state, _ = fit(problem, replace(free, stages=config.stages[: config.redrawn]), state=state)
        if train.all_failed(state):
            return state, [], []
        every = replicate_fields(state.params, whole, config)
        each = enumerate(recorder.partitions)
        recorder.partitions = tuple(redraw_borders(whole, free, every, own, initial, target) for target, own in each)
        state = train.begin_stage(state, config.redrawn)
    state, _ = fit(divide_into_parts(whole, recorder.partitions, initial), free, state=state)
    return state, [*recorder.partitions], [[*off] for off in recorder.bodies_rms]


def divide_into_parts(whole: Problem, partitions: Sequence[Partition], initial: Map) -> Problem:
    """Divide the problem into the parts of each target, or with a symmetry into the bodies of the asymmetric unit."""
    unit = asymmetric_unit(whole, initial)
    if unit is None:
        return whole.divide([each.labels for each in partitions])
    inside = to_whole_grid(whole.initial, whole, initial) > 0
    units = [unit.soft_mask(each, inside) for each in partitions]
    return whole.divide([unit.bodies(each) for each in partitions], units=units)


def replicate_fields(params: PyTree, problem: Problem, config: train.Config) -> PyTree:
    """Parameters of the fields (targets, parts) of bodies and, with a symmetry, of all their copies."""
    if problem.rotations is None:
        return params
    targets, bodies = jax.tree.leaves(params)[0].shape[:2]
    operators = [*zip(problem.rotations, problem.shifts, strict=True)]
    one = jax.device_get(params)
    each = [
        rotate_parameters(jax.tree.map(lambda p, t=target, k=body: p[t, k], one), *operator, config.centre)
        for target in range(targets)
        for body in range(bodies)
        for operator in operators
    ]
    return jax.tree.map(lambda *p: np.stack(p).reshape(targets, -1, *p[0].shape), *each)


def find_bodies(
    problem: Problem, config: train.Config, state: train.State, initial: Map
) -> tuple[list[Partition], list[list[float]]]:
    """For each target the rigid bodies of its flow, and the rms distances that `from_flow` returns."""
    threshold, unit, found = problem.report["initial"]["threshold"], asymmetric_unit(problem, initial), []
    for target in range(problem.trajectories):
        params = jax.tree.map(lambda p, k=target: p[k], state.params)
        found.append(from_flow(partial(trajectory.move, config, params, problem.frame), initial, threshold, unit))
    parts, rms = zip(*found, strict=True)
    if unit is not None and max(each.count for each in parts) > 1:  # one body there is one body per unit here
        inside = to_whole_grid(problem.initial, problem, initial) > 0
        one = replicate_bodies((unit.mass > 0).astype(int), inside, initial, unit)
        parts = [each if each.count > 1 else one for each in parts]
    return [*parts], [*rms]


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
    problem: Problem, config: train.Config, params: PyTree, parts: Partition, initial: Map, target: int
) -> Partition:
    """A target's parts with borders where their fields explain the target (with waypoints, the last one) best."""
    fields = [jax.tree.map(lambda p, k=k: p[target, k], params) for k in range(parts.count)]
    carries = [partial(trajectory.move, config, params, problem.frame) for params in fields]
    number = target - problem.trajectories  # counted from the last target, which is the end with waypoints
    variance, size = problem.residual_blurs[number], initial.voxel_size
    start, end = initial.density, problem.densities[number]
    blurred = partial(gaussian_filter, sigma=np.sqrt(abs(variance)) / size)
    start, end = (blurred(start) if variance > 0 else start), (blurred(end) if variance < 0 else end)
    start_map, end_map = Map(start, size, initial.origin), Map(end, size, initial.origin + problem.start * size)
    threshold, unit = problem.report["initial"]["threshold"], asymmetric_unit(problem, initial)
    drawn = borders.redraw(parts, carries, start_map, end_map, threshold, 1 if unit is None else len(unit.rotations))
    if unit is None or drawn is parts:
        return drawn
    inside = to_whole_grid(problem.initial, problem, initial) > 0
    own = np.where(inside & ((drawn.labels - 1) % len(unit.rotations) == 0), drawn.labels, 0)
    whole = replicate_bodies(own, inside, initial, unit)
    return whole if len(np.unique(whole.labels)) == parts.count else parts  # keep the old ones if a copy lacks a part
