"""The whole method as one function: two maps in, a fit out, which makes frames and carries models."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import gemmi
import numpy as np

from cryotrans_jax.core.flow import FieldMotion
from cryotrans_jax.density.align import Alignment, onto
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.density.transform import resampled
from cryotrans_jax.fit import prepare
from cryotrans_jax.fit.bodies import divide_into_parts
from cryotrans_jax.fit.devices import DeviceLayout
from cryotrans_jax.fit.frame import express
from cryotrans_jax.fit.options import Options, Running, Waypoint
from cryotrans_jax.fit.progress import ProgressCallback, reporting
from cryotrans_jax.fit.record import plain_values, to_plain
from cryotrans_jax.fit.result import Fit, read_repaired
from cryotrans_jax.fit.schedule import Fitting, run
from cryotrans_jax.fit.snapshots import Snapshot
from cryotrans_jax.fit.stage import Config
from cryotrans_jax.fit.state import all_failed
from cryotrans_jax.fit.supervise import SILENT, Callbacks
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, MapLike, as_map, is_one_map
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.symmetric import Symmetric, without_symmetry
from cryotrans_jax.motion.waypoints import Timed

Halves = tuple[MapLike, MapLike]  # the two half-maps of a target
Operators = tuple[tuple[float, ...], ...]  # for `Symmetric`


def morph(
    initial: MapLike,
    targets: MapLike | Sequence[MapLike],
    options: Options = Options(),
    *,
    model: gemmi.Structure | None = None,
    halves: Halves | Sequence[Halves] | None = None,
    waypoints: Sequence[Waypoint] = (),
    progress: bool | ProgressCallback = False,
    running: Running = Running(),
) -> Fit:
    """Fit the flow that carries `initial` onto each of the targets.

    Args:
        initial: the initial map, or the path of an MRC file.
        targets: one or several target maps, or paths.
        options: recipe, thresholds, resolutions, parts, symmetry and more.
        model: atomic model of the initial map; the search for rigid bodies follows its chain, and it
            outlines the molecule. `Fit.move` carries any model, given here or not.
        halves: two half-maps for each target. They show its noise, and so how stiff the flow is to be. The fit compares
            with the target itself, which has less noise than either.
        waypoints: maps that the flow passes on its way to the only target.
        progress: True shows the progress in a notebook, a terminal or a log; a function is called with (config, stage,
            step, losses) after every chunk of steps.
        running: targets to fit, devices, a snapshot to resume from, and callbacks.

    Returns:
        The fit. Its `failed` names targets that were given up.

    Raises:
        InputError: a file cannot be read, a target has next to nothing in the initial map's box, no density is above a
            threshold, an option is invalid or does not fit the others, a map does not have the symmetry, or every
            target was given up.
    """
    start, ends = read_repaired(initial), as_list(targets)
    options.check(start, halves is not None)
    inputs = align_all(start, ends, pairs_of(halves), sort_waypoints(waypoints), options)
    chosen = running.chosen(len(ends))
    problem, operators = prepare_problem(inputs, options, None if model is None else Chain.of(model))
    report = report_of_problem(problem)
    running.on_prepared(report)
    config = configure(problem, options)
    with reporting(progress) as callback:
        setting = Callbacks(partial(callback, config), SILENT.on_state, running.on_setback)
        aligned = tuple(inputs.alignments[number] for number in chosen)
        fitting = begin(problem, config, operators, options, chosen, running.layout)
        fitting = replace(fitting, callbacks=setting, initial=start, report=report, alignments=aligned)
        fitting = resumed(fitting, running.resume_from) if running.resume_from else fitting
        fitting = run(fitting, running.on_snapshot)
    if all_failed(fitting.state):
        why = fitting.state.failed[0]
        raise InputError(f"the fit went wrong: {why}; see that the maps are sound and of one molecule")
    if running.on_snapshot:
        running.on_snapshot(fitting.snapshot(finished=True))
    found = replace(fitting.fit(), config=config)  # with the steps of all targets, to repeat the fit from
    return express(found, options.still, options.align == "none", options.preparation.frame)


class AlignedMaps(NamedTuple):
    """The maps of a fit on the initial map's grid.

    Attributes:
        initial: the initial map.
        targets: the target maps.
        halves: the half-maps of each target; None where there are none.
        waypoints: the waypoints, sorted by time.
        alignments: how each target was aligned.
    """

    initial: Map
    targets: list[Map]
    halves: list[tuple[Map, Map]] | None
    waypoints: list[Waypoint]
    alignments: list[Alignment]


def prepare_problem(inputs: AlignedMaps, options: Options, chain: Chain | None = None) -> tuple[Problem, Operators]:
    """Prepare the maps for the fit; return the problem and the operators of the symmetry."""
    resolutions = [waypoint.resolution for waypoint in inputs.waypoints]
    resolutions += options.resolutions.of_targets(len(inputs.targets))
    problem = prepare.prepare(
        inputs.initial,
        [as_map(waypoint.map) for waypoint in inputs.waypoints] + inputs.targets,
        replace(options.resolutions, targets=resolutions),
        options.thresholds,
        halves=inputs.halves and [*[None] * len(inputs.waypoints), *inputs.halves],
        waypoints=[waypoint.time for waypoint in inputs.waypoints],
        chain=chain,
        rules=options.rules,
    )
    return impose_symmetry(problem, options.symmetry, inputs.initial) if options.symmetry else (problem, ())


def configure(problem: Problem, options: Options) -> Config:
    """The configuration that the recipe makes for the problem."""
    recipe = options.chosen_recipe
    config = recipe if isinstance(recipe, Config) else recipe(problem, options).scaled(options.steps)
    if options.part_rigidity and not any(term.rigid for stage in config.stages for term in stage.terms):
        raise InputError("the recipe has no rigidity: leave part_rigidity out, or give a recipe with the term Rigidity")
    for stage in config.stages:
        if stage.target_steps and len(stage.target_steps) != problem.trajectories:
            raise InputError(
                f"a stage has steps for {len(stage.target_steps)} targets, and there are {problem.trajectories}: give "
                "one number for each in target_steps, or none"
            )
    to_plain(config)  # what the record could not hold is refused before the first step, and not when the fit is saved
    return config if options.parts == "auto" else config.without_division()


def begin(
    problem: Problem,
    config: Config,
    operators: Operators,
    options: Options,
    chosen: list[int],
    layout: DeviceLayout | None,
) -> Fitting:
    """The fit of the chosen targets before its first step."""
    field: FieldMotion = Symmetric(config.field, operators) if operators else config.field
    field = Timed(field, problem.waypoints) if problem.waypoints else field
    layout = layout or DeviceLayout.automatic(len(chosen))
    last_devices = chosen[-1:] * (-len(chosen) % layout.devices)  # copies that fill up the last devices
    problem = problem if problem.waypoints else problem.select(chosen + last_devices)
    given = [options.parts] * problem.trajectories if isinstance(options.parts, Partition) else []
    divided = problem.divide([p.labels for p in given], options.part_rigidity or None) if given else problem
    config = config.select(chosen + last_devices)
    return Fitting.begin(divided, config, field, targets=len(chosen), layout=layout, given_parts=tuple(given))


def report_of_problem(problem: Problem) -> dict:
    """The problem's report with the variances of its blurs (Å²), as JSON values."""
    sharpening = np.maximum(problem.blurs, 0) - np.maximum(problem.residual_blurs, 0)
    variances = {
        "blur_variance": problem.blurs.tolist(),
        "quieting_variance": problem.denoising_blurs.tolist(),
        "sharpening_variance": sharpening.tolist(),
    }
    return plain_values(report_waypoints(problem.report | variances, problem.waypoints))


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


def align_all(
    initial: Map,
    targets: Sequence[MapLike],
    halves: Sequence[Halves] | None,
    waypoints: Sequence[Waypoint],
    options: Options,
) -> AlignedMaps:
    """Align waypoints, targets and half-maps to the initial map, and resample them on its grid.

    Each map is aligned separately, but half-maps follow their target.

    Raises:
        InputError: half-maps or waypoints do not fit the number of targets.
    """
    check_targets(len(targets), halves, waypoints)
    rules, known = options.preparation, options.thresholds

    def aligned(given: MapLike) -> tuple[Map, Alignment]:
        return onto(
            initial,
            read_repaired(given),
            options.align,
            initial_threshold=known.initial,
            target_threshold=known.targets,
            rules=rules.alignment,
            mass_rules=rules.thresholds,
        )

    def on_grid(half: MapLike, found: Alignment) -> Map:
        return resampled(read_repaired(half), initial, found.transform)

    passed = [waypoint._replace(map=aligned(waypoint.map)[0]) for waypoint in waypoints]
    each = [aligned(given) for given in targets]
    alignments, pairs = [found for _, found in each], None
    if halves is not None:
        pairs = [(on_grid(a, found), on_grid(b, found)) for (a, b), found in zip(halves, alignments, strict=True)]
    return AlignedMaps(initial, [map_ for map_, _ in each], pairs, passed, alignments)


def impose_symmetry(problem: Problem, given: Symmetry | str, initial: Map) -> tuple[Problem, Operators]:
    """Restrict the problem to the asymmetric unit.

    Returns:
        The problem restricted to one asymmetric unit, and the operators for `Symmetric`.

    Raises:
        InputError: a map does not have the symmetry.
    """
    origin = initial.origin + problem.start * problem.voxel_size
    start, *ends = (Map(mass, problem.voxel_size, origin) for mass in (problem.initial, *problem.targets))
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
    unit = symmetry.unit_mask(replace(start, density=problem.molecule.astype(np.float32)))
    problem = replace(problem, unit=unit, rotations=turns, shifts=shifts, report=report)
    return problem, tuple(map(tuple, rows.tolist()))


def pairs_of(halves: Halves | Sequence[Halves] | None) -> list[Halves] | None:
    """The half-maps of each target, given as one pair or as several; None without half-maps."""
    if halves is None:
        return None
    pairs: Any = [halves] if is_one_map(halves[0]) else halves
    return [(first, second) for first, second in pairs]


def as_list(maps: Any) -> list[MapLike]:
    """One map, or several, as a list."""
    return [maps] if is_one_map(maps) else [*maps]


def sort_waypoints(waypoints: Sequence[Waypoint]) -> list[Waypoint]:
    """Sort the waypoints by time.

    Raises:
        InputError: a time is not between 0 and 1, or two are the same.
    """
    rows = sorted((Waypoint(*each) for each in waypoints), key=lambda row: row.time)
    times = [float(row.time) for row in rows]
    if wrong := [t for t in times if not 0 < t < 1]:
        raise InputError(
            f"a waypoint is at the time {wrong[0]:g}: give one between 0 (the initial map) and 1 (the end)"
        )
    if len(set(times)) < len(times):
        raise InputError(f"two waypoints have the same time ({', '.join(f'{t:g}' for t in times)}): give each its own")
    return rows


def report_waypoints(report: dict, times: Sequence[float]) -> dict:
    """The report with the entries of the first targets, which are waypoints at these times, under "waypoints"."""
    rows = {name: value for name, value in report.items() if isinstance(value, list)}
    apart = {name: value[len(times) :] for name, value in rows.items()}
    used = [
        {"time": t, **rows["targets"][k]} | {name: value[k] for name, value in rows.items() if name != "targets"}
        for k, t in enumerate(times)
    ]
    return report | apart | ({"waypoints": used} if used else {})


def check_targets(count: int, halves: Sequence[Halves] | None, waypoints: Sequence[Waypoint]) -> None:
    """Raise InputError if half-maps or waypoints do not fit this number of targets."""
    if halves is not None and len(halves) != count:
        raise InputError(f"{len(halves)} pairs of half-maps for {count} targets: give one for each target")
    if waypoints and count > 1:
        raise InputError(f"waypoints are for one target, and there are {count}: fit each with its own")
