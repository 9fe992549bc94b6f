"""The whole way as one function: two maps in, a fit out, from which frames and moved models are had."""

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

from cryotrans_jax import atoms, borders, checkpoints, prepare, recipes, train, trajectory
from cryotrans_jax.align import Alignment, onto, resampled
from cryotrans_jax.files import InputError
from cryotrans_jax.maps import Map, MapLike, as_map, describe, same_grid
from cryotrans_jax.outliers import without_outliers
from cryotrans_jax.partition import Partition, Unit, from_flow, in_copies
from cryotrans_jax.progress import ProgressCallback, show_progress
from cryotrans_jax.snapshots import Recorder, Snapshot
from cryotrans_jax.symmetry import Symmetry
from cryotrans_jax.velocity import turned

RENDERS = {"pull_back": trajectory.pull_back, "splat": trajectory.push_forward}


@dataclass(frozen=True, repr=False)
class Fit:
    """Velocity fields that carry one initial map onto each of its targets, and what is needed to use them.

    `params` have a leading axis of targets; `threshold` is the initial map's; `history` holds, for each stage, the
    losses (steps, targets); `judged`, of a fit with half-maps, those by the second one after every few steps (the
    training loss itself where the stage has none); `report` what was chosen by rule. Where the initial map is in parts,
    each has a field of its own, along the second axis of `params`, and `partitions` holds one for each target.
    `initial` is the initial map, None in a fit that was loaded without it; `alignments` tells how `morph` laid each
    target over it. Where targets were given up, `failed` says why of each ("" of the others): their parameters are of
    no use.

    Methods that need the initial map raise InputError where it is not there. Where there are several targets, `target`
    is the number of the one that is meant, from 0 on.
    """

    config: train.Config
    params: PyTree
    frame: prepare.Frame
    threshold: float
    history: tuple[np.ndarray, ...] = ()
    judged: tuple[np.ndarray, ...] = ()
    report: dict | None = None
    partitions: tuple[Partition, ...] = ()
    initial: Map | None = None
    alignments: tuple[Alignment, ...] = ()
    failed: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """What was fitted, in a few lines."""
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

    def of(self, target: int) -> PyTree:
        """The parameters for one target."""
        return jax.tree.map(lambda p: p[target], self.params)

    def partition(self, target: int = 0) -> Partition | None:
        """The parts that a target's flow has, None where it is one field."""
        return self.partitions[target] if self.partitions else None

    def select(self, targets: Sequence[int]) -> "Fit":
        """The same fit with the targets of these numbers, in this order; `report` still tells of all."""
        chosen = list(targets)
        params = jax.tree.map(lambda p: p[chosen], self.params)
        history, judged = (tuple(a[:, chosen] for a in kind) for kind in (self.history, self.judged))
        partitions = tuple(self.partitions[target] for target in chosen) if self.partitions else ()
        alignments = tuple(self.alignments[target] for target in chosen) if self.alignments else ()
        failed = tuple(self.failed[target] for target in chosen) if self.failed else ()
        return replace(
            self,
            params=params,
            history=history,
            judged=judged,
            partitions=partitions,
            alignments=alignments,
            failed=failed,
        )

    def start(self) -> Map:
        """The initial map. Raises InputError where the fit was loaded without it."""
        if self.initial is None:
            raise InputError("the fit was loaded without its initial map: load it as Fit.load(path, initial)")
        return self.initial

    def frames(self, times: int | trajectory.Times = 11, target: int = 0, render: str = "pull_back") -> Iterator[Map]:
        """Maps at the times (0 to 1), on the initial map's grid, one after the other.

        A whole number asks for so many equally spaced frames, from the initial map to the end. `render` is "pull_back",
        which keeps the detail, or "splat", which keeps the mass.

        Raises InputError where times or `render` cannot be.
        """
        if render not in RENDERS:
            raise InputError(f"frames cannot be made by {render!r}: choose one of {', '.join(RENDERS)}")
        flow = self.config, self.of(target), self.frame
        times = trajectory.as_times(times)
        return RENDERS[render](*flow, self.start(), self.threshold, times, self.partition(target))

    def generated(self, target: int = 0) -> Map:
        """The initial map carried to the target's conformation: the last of the frames."""
        return next(self.frames([1.0], target))

    def consistency(self, target: int = 0) -> float:
        """How far (Å, rms) density is from its start after it was carried to the end and back."""
        flow = self.config, self.of(target), self.frame
        return trajectory.consistency(*flow, self.start(), self.threshold, self.partition(target))

    def spread(self, others: Sequence["Fit"], target: int = 0) -> tuple[Map, np.ndarray]:
        """How far apart (Å) this fit and others from other seeds carry the same density: `trajectory.spread`."""
        carries = [partial(fit.carry, target=target) for fit in (self, *others)]
        return trajectory.spread(carries, self.frame, self.start(), self.threshold)

    @overload
    def move(self, model: gemmi.Structure, times: None = None, target: int = 0) -> gemmi.Structure: ...

    @overload
    def move(self, model: gemmi.Structure, times: int | trajectory.Times, target: int = 0) -> list[gemmi.Structure]: ...

    def move(
        self, model: gemmi.Structure, times: int | trajectory.Times | None = None, target: int = 0
    ) -> gemmi.Structure | list[gemmi.Structure]:
        """The initial state's model, each atom carried by the flow to the end; or a list of models at the times.

        Times are as for `frames`. Where there are parts, atoms move by the flow of their residue's. The model lies in
        the initial map's frame.
        """
        if times is None:
            return self.move(model, [1.0], target)[0]
        xyz, parts, times = atoms.positions(model), self.partition(target), trajectory.as_times(times)
        each = trajectory.move(self.config, self.of(target), self.frame, xyz, times, parts and parts.of_atoms(model))
        return [atoms.with_positions(model, at) for at in each]

    def carry(self, xyz: np.ndarray, times: int | trajectory.Times, target: int = 0) -> np.ndarray:
        """Positions (times, n, 3) in Å to which the positions xyz (n, 3) have come at the times."""
        parts, times = self.partition(target), trajectory.as_times(times)
        return trajectory.move(self.config, self.of(target), self.frame, xyz, times, parts and parts.at(xyz))

    def volumes(self, xyz: np.ndarray, target: int = 0) -> np.ndarray:
        """By what factor the flow changes volume at positions xyz (n, 3) in Å; it folds where that is not above 0."""
        parts = self.partition(target)
        return trajectory.volumes(self.config, self.of(target), self.frame, xyz, parts and parts.at(xyz))

    def parts_map(self, target: int = 0) -> Map:
        """The number (1, 2, ...) of the part to which each voxel of what is carried belongs, 0 elsewhere."""
        initial = self.start()
        return self.partition(target).shown(
            trajectory.soft_support(initial.density, self.threshold, initial.voxel_size) > 0
        )

    def save(self, path: str | os.PathLike) -> None:
        """Nothing; `Fit.load(path, initial)` gives this fit back, without its history and the initial map."""
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
            return cls._of(params, saved, None if initial is None else repaired(initial), path)

    @classmethod
    def _of(cls, params: dict, saved: dict, initial: Map | None, path: str | os.PathLike) -> "Fit":
        """The fit with these arrays and this description, which `path` holds."""
        settings, grid = saved["config"], saved.get("partition")
        labels = params.pop("labels") if grid else ()
        grid = [np.array(grid[name]) for name in ("voxel_size", "origin")] if grid else []
        settings["waypoints"] = tuple(settings.get("waypoints", ()))
        settings["symmetry"] = tuple(map(tuple, settings.get("symmetry", ())))
        stages = tuple(train.Stage(**stage) for stage in settings.pop("stages"))
        rival = train.Stage(**rival) if (rival := settings.pop("rival", None)) else None
        if initial and (known := saved.get("grid")):
            was = Map(np.broadcast_to(0.0, known["shape"]), *(np.array(known[k]) for k in ("voxel_size", "origin")))
            if difference := same_grid(initial, was):
                raise InputError(f"the map is not that of the fit under {path} ({difference}): give its initial map")
        return cls(
            config=train.Config(stages=stages, rival=rival, **settings),
            params=params,
            frame=prepare.Frame(np.array(saved["corner"]), saved["edge"]),
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
    share: Sequence[int] | None = None,
    progress: bool | ProgressCallback = False,
    spread: train.Spread | None = None,
    prepared: Callable[[dict], None] = lambda report: None,
    begun: Snapshot | None = None,
    keep: Callable[[Snapshot], None] | None = None,
    say: Callable[[int, str], None] = train.warn,
) -> Fit:
    """A fit of the flow that carries `initial` onto each of the targets: maps, or paths of MRC files.

    With `align` "auto" targets are laid over the initial map where that fits clearly better, with "none" they are taken
    where their origins put them; either way they are brought onto its grid. `Fit.alignments` tells where each lay.
    `recipe` is "default" or "paper"; `steps` multiplies every stage's number of steps; thresholds are densities
    and resolutions Å, both chosen or estimated where they are None; with the molecule's `volume` (Å³) thresholds are
    those that enclose it. `bin` and `schedule`, which says its steps, are for the paper's recipe.
    `halves` are the targets' half-maps, two for each: the fit compares with the first; the second judges it, which
    keeps the best parameters and tells when a stage ends; contour, blur and motion are still the target's.
    `waypoints` are maps with the times (between 0 and 1) at which the flow onto the only target is to pass them; the
    target's threshold is theirs as well.
    `parts` of the initial map each move by a field of their own; "auto" are, for each target, the bodies that the flow
    moves nearly rigidly after the recipe's first stages, from which each goes on by itself; with None one field moves
    all. `part_rigidity` multiplies the weight of the rigidity in each part.
    `symmetry` is that of all maps: "C3", "D8", "T", "O" or "I" about an axis along z of the initial map, an mmCIF file
    with an assembly, or `Symmetry.named(...)` for any other axis or centre. The flow then commutes with its operators,
    and is fitted to the points of one unit; each copy of a body of it is a part, by the body's flow turned alike.
    `share` are the numbers of the targets to fit (None: all), which the fit then holds alone, in that order; the crop,
    the contour levels and the schedule are those for all, so that parts fitted apart are parts of one fit.
    With `progress=True` it is shown how far the fit is, in a notebook, a terminal or a log; of a function
    `progress(config, stage, step, losses)` is called every few steps. Several targets are shared by all devices of
    this host, or as `spread` says. `prepared(report)` is told the contour levels before the first step.
    `keep(snapshot)` is handed after every few steps, and at the end, what a later call with otherwise the same
    arguments takes as `begun` to go on from there, to the same end bit for bit. `say(target, what)` is told where a
    target's numbers went wrong: see `train.fit`. Targets that were given up are named in the fit's `failed`.

    Raises InputError where a file cannot be read, a target has next to nothing in the initial map's box, nothing is
    above a threshold, there is no such recipe or target, or waypoints have several targets or impossible times, or
    parts cannot be, a map does not have the symmetry, or every target was given up.
    """
    if recipe not in recipes.RECIPES:
        raise InputError(f"there is no recipe {recipe!r}: choose one of {', '.join(recipes.RECIPES)}")
    if bin != 1 and recipe != "paper":
        raise InputError(f"bin={bin} is for the recipe paper: the recipe {recipe} chooses its own")
    if schedule and recipe != "paper":
        raise InputError(f"a schedule is for the recipe paper: the recipe {recipe} chooses its own")
    initial, targets = repaired(initial), [targets] if isinstance(targets, MapLike) else list(targets)
    passed, times, sharpness = in_order(waypoints, waypoint_resolution)
    if halves is not None:
        halves = [tuple(halves)] if isinstance(halves[0], MapLike) else list(halves)
        if len(halves) != len(targets):
            raise InputError(f"{len(halves)} pairs of half-maps for {len(targets)} targets: give one for each target")
        if recipe == "paper":
            raise InputError("half-maps are of no use to the recipe paper: it makes all its steps")
        if times:
            raise InputError("half-maps and waypoints do not go together yet: leave one of them out")
    if times and len(targets) > 1:
        raise InputError(f"waypoints are for one target, and there are {len(targets)}: fit each with its own")
    check_parts(parts, part_rigidity, initial)
    if symmetry and isinstance(parts, Partition):
        raise InputError("parts and a symmetry do not go together yet: leave one of them out")
    share = [*range(len(targets))] if share is None else [*share]
    if not share or not set(share) <= set(range(len(targets))):
        raise InputError(f"share={share} names no targets, or others than the {len(targets)} given, counted from 0")
    levels = {"initial_threshold": initial_threshold, "target_threshold": target_threshold}
    passed, targets, halves, alignments = laid(initial, passed, targets, halves, align, levels)
    count, spread = len(share), spread or train.Spread.automatic(len(share))
    resolutions = one_each(target_resolution, len(targets))
    problem = prepare.prepare(
        initial,
        passed + targets,
        **levels,
        initial_resolution=initial_resolution,
        target_resolutions=sharpness + resolutions,
        halves=halves,
        volume=volume,
        whole_box=recipe == "paper",
        waypoints=times,
    )
    if symmetry:
        problem, operators = symmetrical(problem, symmetry, initial)
    variances = {"blur_variance": problem.blurs.tolist(), "quieting_variance": problem.quieting.tolist()}
    variances |= {"sharpening_variance": (np.maximum(problem.blurs, 0) - np.maximum(problem.rests, 0)).tolist()}
    report = with_waypoints(problem.report | variances, times)
    prepared(report)
    if recipe == "paper":
        known = initial_resolution and resolutions[0]
        config = recipes.paper(problem, seed, bin, (initial_resolution, resolutions[0]) if known else None, schedule)
    else:
        config = recipes.default(problem, seed)
    if symmetry:
        config = replace(config, symmetry=operators)
    rival = train.scaled((config.rival,), steps)[0] if config.rival else None
    config = replace(config, stages=train.scaled(config.stages, steps), rival=rival)
    if part_rigidity and not any(stage.rigidity for stage in config.stages):
        raise InputError(f"the recipe {recipe} has no rigidity: part_rigidity is for another one")
    call = (lambda *at: progress(config, *at)) if progress else (lambda *at: None)
    rows = share + share[-1:] * (-count % spread.devices)  # copies fill up the last devices
    recorder = Recorder(begun, keep)
    fit = partial(train.fit, progress=call, spread=spread, keep=recorder, say=say)
    problem, state = problem if times else problem.select(rows), begun and begun.state
    if parts == "auto" and config.bodies:
        state, parts, off = by_bodies(problem, config, fit, initial, state, recorder, spread)
        report = report | {"bodies_rms": off[:count]}
    else:
        parts = [parts] * problem.trajectories if isinstance(parts, Partition) else []
        divided = problem.divided([p.labels for p in parts], part_rigidity) if parts else problem
        state, _ = fit(divided, config, state=state)
    if train.lost(state):
        raise InputError(f"the fit went wrong: {state.failed[0]}; see that the maps are sound and of one molecule")
    if keep:
        end = recorder.snapshot(state._replace(stage=len(config.stages)))  # from which nothing is left to be done
        keep(replace(end, finished=True))
    how, rivals = ("correspondences", "transport"), state.rivals[:count] or (config.stages[0].loss == "w2",) * count
    params = state.params
    if symmetry and parts:  # from here on the copies of a body are parts like any others
        config, params = replace(config, symmetry=()), in_all_copies(params, problem, config)
    return Fit(
        config=config,
        params=jax.tree.map(lambda p: np.asarray(p)[:count], params),
        frame=problem.frame,
        threshold=problem.report["initial"]["threshold"],
        history=tuple(losses[:, :count] for losses in recorder.history),
        judged=tuple(scores[:, :count] for scores in state.scores) if halves else (),
        report=report
        | {"start": [how[rival] for rival in rivals]}
        | ({"setbacks": [*state.setbacks[:count]]} if state.setbacks else {}),
        partitions=tuple(parts[:count]),
        initial=initial,
        alignments=tuple(alignments[number] for number in share),
        failed=state.failed[:count],
    )


def repaired(given: MapLike) -> Map:
    """The map that is given, or that is in the file of that path, without outliers; warns of those that it had."""
    map_, found = without_outliers(as_map(given))
    if found is not None:
        warnings.warn(f"{found}: each is set to the median of the voxels around it", stacklevel=3)
    return map_


def laid(
    initial: Map,
    waypoints: Sequence[MapLike],
    targets: Sequence[MapLike],
    halves: Sequence[tuple[MapLike, MapLike]] | None,
    align: str,
    levels: dict[str, float | None],
) -> tuple[list[Map], list[Map], list[tuple[Map, ...]] | None, list[Alignment]]:
    """Waypoints, targets and half-maps on the initial map's grid, and how each target was laid there.

    Each is aligned by itself, but half-maps, which go where their target went. `levels` are the thresholds.
    """
    each = [onto(initial, repaired(given), align, **levels) for given in (*waypoints, *targets)]
    maps, alignments = [map_ for map_, _ in each], [found for _, found in each][len(waypoints) :]
    if halves is not None:
        halves = [
            tuple(resampled(repaired(half), initial, found.transform) for half in pair)
            for pair, found in zip(halves, alignments, strict=True)
        ]
    return maps[: len(waypoints)], maps[len(waypoints) :], halves, alignments


def symmetrical(
    problem: prepare.Problem, given: Symmetry | str, initial: Map
) -> tuple[prepare.Problem, tuple[tuple[float, ...], ...]]:
    """The problem of which one unit is carried, and the operators that copy it, as `Config.symmetry` has them.

    Raises InputError where a map does not have the symmetry.
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
    problem = replace(problem, unit=symmetry.unit_mask(start), turns=turns, shifts=shifts, report=report)
    return problem, tuple(map(tuple, rows.tolist()))


def one_each(given: float | Sequence[float | None] | None, count: int) -> list[float | None]:
    """The values given for each, or the one given for all."""
    return list(given) if isinstance(given, list | tuple) else [given] * count


def in_order(
    waypoints: Sequence[tuple[MapLike, float]], resolution: float | Sequence[float | None] | None
) -> tuple[list[MapLike], list[float], list[float | None]]:
    """The waypoints' maps, times and resolutions (Å) by rising time.

    Raises InputError where a time is not between 0 and 1, or two are the same.
    """
    known = one_each(resolution, len(waypoints))
    rows = sorted(((map_, float(t), r) for (map_, t), r in zip(waypoints, known, strict=True)), key=lambda row: row[1])
    times = [t for _, t, _ in rows]
    if wrong := [t for t in times if not 0 < t < 1]:
        raise InputError(
            f"a waypoint is at the time {wrong[0]:g}: give one between 0 (the initial map) and 1 (the end)"
        )
    if len(set(times)) < len(times):
        raise InputError(f"two waypoints are at one time ({', '.join(f'{t:g}' for t in times)}): give each its own")
    return [row[0] for row in rows], times, [row[2] for row in rows]


def with_waypoints(report: dict, times: Sequence[float]) -> dict:
    """The report with what it tells of the first targets, which are waypoints at these times, under "waypoints"."""
    rows = {name: value for name, value in report.items() if isinstance(value, list)}
    apart = {name: value[len(times) :] for name, value in rows.items()}
    used = [
        {"time": t, **rows["targets"][k]} | {name: value[k] for name, value in rows.items() if name != "targets"}
        for k, t in enumerate(times)
    ]
    return report | apart | ({"waypoints": used} if used else {})


def check_parts(parts: Partition | str | None, rigidity: Sequence[float] | None, initial: Map) -> None:
    """Nothing; raises InputError where the parts, or their weights of the rigidity, cannot be."""
    if isinstance(parts, str) and parts != "auto":
        raise InputError(f"there are no parts {parts!r}: give a partition, or auto")
    if isinstance(parts, Partition) and parts.labels.shape != initial.density.shape:
        raise InputError("the parts lie on another grid than the initial map: make them for this one")
    if rigidity and not isinstance(parts, Partition):
        raise InputError("part_rigidity is for parts that are known: give them as well, and not as auto")
    if rigidity and min(rigidity) < 0:
        raise InputError(f"part_rigidity holds {min(rigidity):g}: weights of the rigidity are not negative")


def by_bodies(
    problem: prepare.Problem,
    config: train.Config,
    fit: Callable,
    initial: Map,
    state: train.State | None,
    recorder: Recorder,
    spread: train.Spread,
) -> tuple[train.State, list[Partition], list[list[float]]]:
    """State and each target's partition, of a fit whose first stages find the bodies that move nearly rigidly.

    And for each target the rms distances (Å) from rigid motions with one body, two and so on. Each body goes on from
    the field of the whole; after further stages their borders are drawn anew, by which field explains the target
    best. No partitions where there is but one body for every target. Where there is a symmetry, they are of all copies
    of the bodies, and the state has fields, then free ones, for those of one unit.
    """
    whole, stage, free = problem, config.bodies, replace(config, symmetry=())
    if state is None or state.stage < stage:
        state, _ = fit(problem, replace(config, stages=config.stages[:stage]), state=state)
        if train.lost(state):
            return state, [], []
        parts, off = bodies_of(problem, config, state, initial)
        count = max(each.count for each in parts)
        recorder.partitions, recorder.bodies_rms = tuple(parts) if count > 1 else (), tuple(map(tuple, off))
        if count == 1:
            state = train.begun(state, stage)
        elif config.symmetry:
            state = train.freed(config, state, in_parts(whole, recorder.partitions, initial), stage, spread)
        else:
            state = train.divided(state, count, stage)
    if not recorder.partitions:
        state, _ = fit(whole, config, state=state)
        return state, [], [[*off] for off in recorder.bodies_rms]
    if state.stage < config.redrawn:
        problem = in_parts(whole, recorder.partitions, initial)
        state, _ = fit(problem, replace(free, stages=config.stages[: config.redrawn]), state=state)
        if train.lost(state):
            return state, [], []
        every = in_all_copies(state.params, whole, config)
        each = enumerate(recorder.partitions)
        recorder.partitions = tuple(redrawn(whole, free, every, own, initial, target) for target, own in each)
        state = train.begun(state, config.redrawn)
    state, _ = fit(in_parts(whole, recorder.partitions, initial), free, state=state)
    return state, [*recorder.partitions], [[*off] for off in recorder.bodies_rms]


def in_parts(whole: prepare.Problem, partitions: Sequence[Partition], initial: Map) -> prepare.Problem:
    """The problem divided into the parts of each target; into the bodies of one unit, where those are its copies."""
    unit = unit_of(whole, initial)
    if unit is None:
        return whole.divided([each.labels for each in partitions])
    inside = on_whole_grid(whole.initial, whole, initial) > 0
    units = [unit.share(each, inside) for each in partitions]
    return whole.divided([unit.bodies(each) for each in partitions], units=units)


def in_all_copies(params: PyTree, problem: prepare.Problem, config: train.Config) -> PyTree:
    """The parameters of the fields (targets, parts) of bodies, and of all their copies where there is a symmetry."""
    if problem.turns is None:
        return params
    targets, bodies = jax.tree.leaves(params)[0].shape[:2]
    operators = [*zip(problem.turns, problem.shifts, strict=True)]
    one = jax.device_get(params)
    each = [
        turned(jax.tree.map(lambda p, t=target, k=body: p[t, k], one), *operator, config.centre)
        for target in range(targets)
        for body in range(bodies)
        for operator in operators
    ]
    return jax.tree.map(lambda *p: np.stack(p).reshape(targets, -1, *p[0].shape), *each)


def bodies_of(
    problem: prepare.Problem, config: train.Config, state: train.State, initial: Map
) -> tuple[list[Partition], list[list[float]]]:
    """For each target the bodies that its flow moves nearly rigidly, and what `from_flow` says of other numbers."""
    threshold, unit, found = problem.report["initial"]["threshold"], unit_of(problem, initial), []
    for target in range(problem.trajectories):
        params = jax.tree.map(lambda p, k=target: p[k], state.params)
        found.append(from_flow(partial(trajectory.move, config, params, problem.frame), initial, threshold, unit))
    parts, off = zip(*found, strict=True)
    if unit is not None and max(each.count for each in parts) > 1:  # what is one body there is one in a unit here
        inside = on_whole_grid(problem.initial, problem, initial) > 0
        one = in_copies((unit.mass > 0).astype(int), inside, initial, unit)
        parts = [each if each.count > 1 else one for each in parts]
    return [*parts], [*off]


def unit_of(problem: prepare.Problem, initial: Map) -> Unit | None:
    """The unit of the initial map that is carried, None where all of it is."""
    if problem.turns is None:
        return None
    mass = on_whole_grid(problem.carried, problem, initial)
    return Unit(mass, problem.turns, np.array(problem.report["symmetry"]["centre"]))


def on_whole_grid(
    cropped: Float[np.ndarray, "x y z"], problem: prepare.Problem, initial: Map
) -> Float[np.ndarray, "nx ny nz"]:
    """What is on the problem's crop, on the initial map's whole grid; zero elsewhere."""
    whole = np.zeros(initial.density.shape, np.float32)
    room = whole[tuple(slice(first, None) for first in problem.start)]  # the crop may reach past the map's end
    held = cropped[tuple(map(slice, room.shape))]
    room[tuple(map(slice, held.shape))] = held
    return whole


def redrawn(
    problem: prepare.Problem, config: train.Config, params: PyTree, parts: Partition, initial: Map, target: int
) -> Partition:
    """A target's parts with their borders where their fields explain the target, or the trajectory's end, best."""
    fields = [jax.tree.map(lambda p, k=k: p[target, k], params) for k in range(parts.count)]
    carries = [partial(trajectory.move, config, params, problem.frame) for params in fields]
    number = target - problem.trajectories  # from the last, which is the end where there are waypoints
    rest, size = problem.rests[number], initial.voxel_size
    start, end = initial.density, problem.densities[number]
    blurred = partial(gaussian_filter, sigma=np.sqrt(abs(rest)) / size)
    start, end = (blurred(start) if rest > 0 else start), (blurred(end) if rest < 0 else end)
    here, there = Map(start, size, initial.origin), Map(end, size, initial.origin + problem.start * size)
    threshold, unit = problem.report["initial"]["threshold"], unit_of(problem, initial)
    drawn = borders.redrawn(parts, carries, here, there, threshold, 1 if unit is None else len(unit.turns))
    if unit is None or drawn is parts:
        return drawn
    inside = on_whole_grid(problem.initial, problem, initial) > 0
    own = np.where(inside & ((drawn.labels - 1) % len(unit.turns) == 0), drawn.labels, 0)
    whole = in_copies(own, inside, initial, unit)
    return whole if len(np.unique(whole.labels)) == parts.count else parts  # where a copy has none of a part
