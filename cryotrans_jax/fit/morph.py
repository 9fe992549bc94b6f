"""The whole method as one function: two maps in, a fit out, which makes frames and carries models."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from cryotrans_jax.core.flow import FieldMotion
from cryotrans_jax.density.align import Alignment, onto
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.density.transform import resampled
from cryotrans_jax.fit import prepare, recipes
from cryotrans_jax.fit.devices import DeviceLayout
from cryotrans_jax.fit.progress import ProgressCallback, show_progress
from cryotrans_jax.fit.result import Fit, read_repaired
from cryotrans_jax.fit.rigid_bodies import divide_into_parts, replicate_fields
from cryotrans_jax.fit.schedule import Fitting, run
from cryotrans_jax.fit.snapshots import Snapshot
from cryotrans_jax.fit.stage import Action, Config
from cryotrans_jax.fit.state import all_failed
from cryotrans_jax.fit.supervise import SILENT, Callbacks, warn_of_setback
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, MapLike
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.symmetric import Symmetric, without_symmetry
from cryotrans_jax.motion.waypoints import Timed


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
    config: Config | None = None,
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
        config: schedule, network and supervision to use instead of those of the recipe; with its own seed.
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
    check_recipe(recipe, bin, schedule, halves is not None)
    initial, given = read_repaired(initial), [targets] if isinstance(targets, MapLike) else [*targets]
    waypoint_maps, times, waypoint_resolutions = sort_waypoints(waypoints, waypoint_resolution)
    pairs = None if halves is None else pairs_of(halves)
    check_targets(len(given), pairs, times)
    check_parts(parts, part_rigidity, symmetry, initial)
    chosen = choose_targets(target_indices, len(given))
    thresholds = initial_threshold, target_threshold
    passed, ends, pairs_on_grid, alignments = align_all(initial, waypoint_maps, given, pairs, align, thresholds)
    resolutions = one_per_target(target_resolution, len(given))
    problem = prepare.prepare(
        initial,
        passed + ends,
        initial_threshold=initial_threshold,
        target_threshold=target_threshold,
        initial_resolution=initial_resolution,
        target_resolutions=waypoint_resolutions + resolutions,
        halves=pairs_on_grid,
        volume=volume,
        whole_box=recipe == "paper",
        waypoints=times,
    )
    problem, operators = impose_symmetry(problem, symmetry, initial) if symmetry else (problem, ())
    report = report_of_problem(problem)
    on_prepared(report)
    if config is None and recipe == "paper":
        known = (initial_resolution, resolutions[0]) if initial_resolution and resolutions[0] else None
        config = recipes.paper(problem, seed, bin, known, schedule)
    elif config is None:
        config = recipes.default(problem, seed)
    config = config.scaled(steps) if parts == "auto" else config.scaled(steps).without_division()
    if part_rigidity and not any(term.rigid for stage in config.stages for term in stage.terms):
        raise InputError(f"the recipe {recipe} has no rigidity: part_rigidity is for another one")
    field: FieldMotion = Symmetric(config.field, operators) if symmetry else config.field
    field = Timed(field, problem.waypoints) if times else field
    layout = layout or DeviceLayout.automatic(len(chosen))
    last_devices = chosen[-1:] * (-len(chosen) % layout.devices)  # copies that fill up the last devices
    problem = problem if times else problem.select(chosen + last_devices)
    partitions = [parts] * problem.trajectories if isinstance(parts, Partition) else []
    divided = problem.divide([p.labels for p in partitions], part_rigidity) if partitions else problem
    callback = partial(progress, config) if callable(progress) else SILENT.progress
    callbacks = Callbacks(callback, SILENT.on_state, on_setback)
    fitting = Fitting.begin(divided, config, field, layout=layout, callbacks=callbacks, initial=initial)
    fitting = run(resumed(fitting, resume_from) if resume_from else fitting, on_snapshot)
    if all_failed(fitting.state):
        why = fitting.state.failed[0]
        raise InputError(f"the fit went wrong: {why}; see that the maps are sound and of one molecule")
    if on_snapshot:
        on_snapshot(fitting.snapshot(finished=True))
    return replace(
        fit_of(fitting, initial, report, partitions, len(chosen)),
        alignments=tuple(alignments[number] for number in chosen),
    )


def fit_of(fitting: Fitting, initial: Map, report: dict, partitions: Sequence[Partition], count: int) -> Fit:
    """The fit of the first `count` targets, whose parts were given as `partitions` or were found."""
    state, found = fitting.state, fitting.partitions
    params = state.params
    if found:  # with a symmetry, the copies of a body become parts like any others
        params = replicate_fields(params, fitting.whole, fitting.field.net.centre)
    validated = fitting.problem.validation_densities is not None
    return Fit(
        config=fitting.config,
        field=fitting.field,
        params=jax.tree.map(lambda p: np.asarray(p)[:count], params),
        frame=fitting.problem.frame,
        threshold=fitting.problem.report["initial"]["threshold"],
        history=tuple(losses[:, :count] for losses in fitting.history),
        validation_history=tuple(scores[:, :count] for scores in state.scores) if validated else (),
        report=report | report_of_fit(fitting, count),
        partitions=(found or tuple(partitions))[:count],
        initial=initial,
        failed=state.failed[:count],
    )


def report_of_problem(problem: Problem) -> dict:
    """The problem's report, with the variances of its blurs (Å²)."""
    sharpening = np.maximum(problem.blurs, 0) - np.maximum(problem.residual_blurs, 0)
    variances = {
        "blur_variance": problem.blurs.tolist(),
        "quieting_variance": problem.denoising_blurs.tolist(),
        "sharpening_variance": sharpening.tolist(),
    }
    return report_waypoints(problem.report | variances, problem.waypoints)


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
    problem = divide_into_parts(fitting.whole, snapshot.partitions, fitting.initial_map)
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


def align_all(
    initial: Map,
    waypoints: Sequence[MapLike],
    targets: Sequence[MapLike],
    halves: Sequence[tuple[MapLike, MapLike]] | None,
    align: str,
    thresholds: tuple[float | None, float | None],
) -> tuple[list[Map], list[Map], list[tuple[Map, Map]] | None, list[Alignment]]:
    """Align waypoints, targets and half-maps to the initial map, and resample them on its grid.

    Each map is aligned separately, but half-maps follow their target. `thresholds` are the initial map's and the
    targets'.

    Returns:
        Waypoints, targets, half-maps, and the alignment of each target.
    """
    own, theirs = thresholds
    each = [
        onto(initial, read_repaired(given), align, initial_threshold=own, target_threshold=theirs)
        for given in (*waypoints, *targets)
    ]
    maps, alignments = [map_ for map_, _ in each], [found for _, found in each][len(waypoints) :]
    if halves is None:
        return maps[: len(waypoints)], maps[len(waypoints) :], None, alignments

    def on_grid(half: MapLike, found: Alignment) -> Map:
        return resampled(read_repaired(half), initial, found.transform)

    both = [(on_grid(a, found), on_grid(b, found)) for (a, b), found in zip(halves, alignments, strict=True)]
    return maps[: len(waypoints)], maps[len(waypoints) :], both, alignments


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


def pairs_of(
    halves: tuple[MapLike, MapLike] | Sequence[tuple[MapLike, MapLike]],
) -> list[tuple[MapLike, MapLike]]:
    """The half-maps of each target, given as one pair or as several."""
    pairs: list[Any] = [halves] if isinstance(halves[0], MapLike) else [*halves]
    return [(first, second) for first, second in pairs]


def one_per_target(given: float | Sequence[float | None] | None, count: int) -> list[float | None]:
    """The values given for each target, or the one value for all, as a list."""
    return [*given] if isinstance(given, Sequence) else [given] * count


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


def check_recipe(recipe: str, bin_: int, schedule: recipes.Schedule | None, halves: bool) -> None:
    """Raise InputError if there is no such recipe, or it does not take what is given."""
    if recipe not in recipes.RECIPES:
        raise InputError(f"there is no recipe {recipe!r}: choose one of {', '.join(recipes.RECIPES)}")
    if bin_ != 1 and recipe != "paper":
        raise InputError(f"bin={bin_} is for the recipe paper: the recipe {recipe} chooses its own")
    if schedule and recipe != "paper":
        raise InputError(f"a schedule is for the recipe paper: the recipe {recipe} chooses its own")
    if halves and recipe == "paper":
        raise InputError("half-maps have no effect in the recipe paper, which makes all its steps: leave them out")


def check_targets(count: int, halves: Sequence[tuple] | None, times: Sequence[float]) -> None:
    """Raise InputError if half-maps or waypoints do not fit this number of targets."""
    if halves is not None and len(halves) != count:
        raise InputError(f"{len(halves)} pairs of half-maps for {count} targets: give one for each target")
    if halves is not None and times:
        raise InputError("half-maps and waypoints do not go together yet: leave one of them out")
    if times and count > 1:
        raise InputError(f"waypoints are for one target, and there are {count}: fit each with its own")


def choose_targets(indices: Sequence[int] | None, count: int) -> list[int]:
    """Numbers of the targets to fit; raise InputError if there are none or they do not fit `count` targets."""
    chosen = [*range(count)] if indices is None else [*indices]
    if not chosen or not set(chosen) <= set(range(count)):
        raise InputError(f"target_indices={chosen} does not fit {count} targets: give numbers from 0 to {count - 1}")
    return chosen


def check_parts(
    parts: Partition | str | None, rigidity: Sequence[float] | None, symmetry: Symmetry | str | None, initial: Map
) -> None:
    """Raise InputError if the parts, or their weights of the rigidity, are invalid."""
    if symmetry and isinstance(parts, Partition):
        raise InputError("parts and a symmetry do not go together yet: leave one of them out")
    if isinstance(parts, str) and parts != "auto":
        raise InputError(f"there are no parts {parts!r}: give a partition, or auto")
    if isinstance(parts, Partition) and parts.labels.shape != initial.density.shape:
        raise InputError("the parts are on another grid than the initial map: make them on its grid")
    if rigidity and not isinstance(parts, Partition):
        raise InputError("part_rigidity is only for given parts: give parts as well, and not auto")
    if rigidity and min(rigidity) < 0:
        raise InputError(f"part_rigidity contains {min(rigidity):g}: give weights that are not negative")
