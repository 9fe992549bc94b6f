"""Find, read and check the maps and models that the flags name, or simulate the maps."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gemmi
import jax
import numpy as np
from absl.flags import FlagValues

from cryotrans_jax.density import align, contour, mask, simulation, thresholds
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.fit.recipes import Schedule
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, read_map, same_grid
from cryotrans_jax.motion import partition

from . import archives, log, paths, prechecks, ranges
from .case import MAP_SUFFIXES, Case, Waypoint, grid_of
from .find import (
    INITIAL,
    base_model,
    existing_file,
    fetch_missing,
    find,
    find_entry,
    other_half_map,
    resolution_in_name,
    resolution_of,
    unique_stems,
)
from .masks import mask_all, masked, protein_in, without_micelles
from .run_folder import write_input
from .score import load_reference

STAGE = re.compile(r"(?P<loss>w2|l2):(?P<steps>[1-9][0-9]*):(?P<rate>[0-9]*\.?[0-9]+(e-?[0-9]+)?)")
WAYPOINT = re.compile(r"(?P<name>.+?)@(?P<time>[0-9]*\.?[0-9]+)(,|$)")
POOR = 0.25  # correlation at high resolution of a wrong pose, or a wrong hand; two states of a molecule fit better
INSIDE = 0.98  # of a target's mass: with less of it in the initial map's box the user is warned
NEAR = 0.9  # of the Nyquist limit: good maps are deposited with resolutions down to this
FEWEST = 27  # voxels of the smallest molecule: a cube with sides of 3


def from_flags(settings, out_dir: Path) -> Case:
    """Read the case that the flags name.

    Args:
        settings: values of the flags.
        out_dir: the run's folder; maps that are simulated and masks go to its folder inputs.

    Raises:
        InputError: an input is missing or cannot be used.
    """
    initial_name, target_names = settings.initial or INITIAL, settings.target
    if not target_names:
        raise InputError("--initial is given but no --target: name the map of the rare conformation as well")
    waypoints = parse_waypoints(settings.waypoint)
    names = [*target_names, *(name for name, _ in waypoints)]
    if settings.fetch:
        fetch_missing(settings, [initial_name, *names])
    known = [resolution_of(name, settings.data_dir) for name in (initial_name, *names)]
    if settings.target_resolution and not (settings.initial_resolution or known[0]):
        raise InputError("--target_resolution is given without --initial_resolution: give both, or neither")
    resolutions = [settings.target_resolution or resolution for resolution in known[1:]]
    sizes = {initial_name: settings.voxel_size} | dict.fromkeys(names, settings.target_voxel_size)
    initial, maps, files = load(initial_name, names, settings.data_dir, out_dir, sizes, settings.all_models)
    sharpness = [settings.initial_resolution or known[0], *resolutions]
    check_resolutions(settings, [initial_name, *names], [initial, *maps], sharpness)
    given_maps = prechecks.initial_first([initial_name, *names], [initial, *maps])
    (initial, *maps), doubts = prechecks.sound(given_maps, settings.invert)
    check_mass(settings.mass_kda, initial)
    initial, maps, masks = mask_all(settings, initial, maps)
    used = {name: files[name] for name in (initial_name, *names)} | masks
    model = None
    if settings.model:
        used[settings.model] = existing_file(settings.model, settings.data_dir)
        model = atoms.read_model(used[settings.model], settings.all_models)
        check_inside(model, initial.density.shape, initial.voxel_size, initial.origin, settings.model)
    if settings.micelle == "auto":
        has_mask = [bool(settings.mask), *([bool(settings.target_mask)] * len(names))]
        (initial, *maps), protein_masks = without_micelles(
            [initial_name, *names], [initial, *maps], sharpness, has_mask, model, out_dir
        )
        used |= protein_masks
    given = settings.reference or []
    if len(given) not in (0, 1, len(target_names)):
        raise InputError(f"{len(given)} references for {len(target_names)} targets: give one, or one for each target")
    used |= {name: existing_file(name, settings.data_dir) for name in given}
    given = given * len(target_names) if len(given) == 1 else given or [None] * len(target_names)
    halves = half_maps(settings, len(target_names))
    superposed = base_model(initial_name, settings.data_dir) is not None  # and so were targets made from models
    aligned = [
        align_target(initial, map_, settings, superposed and files[name].parent == out_dir / "inputs")
        for name, map_ in zip(names, maps, strict=True)
    ]
    for name, (_, found) in zip(names, aligned, strict=True):
        log_alignment(files[name], found)
    reading = {"target_voxel_size": settings.target_voxel_size, "all_models": settings.all_models}
    count, alignments = len(target_names), [found for _, found in aligned]
    maps, boxes = [map_ for map_, _ in aligned], [grid_of(map_) for map_ in maps]
    return Case(
        initial=initial,
        targets=maps[:count],
        files=used | {str(path): path for pair in halves for path in pair},
        target_names=unique_stems(target_names),
        initial_resolution=settings.initial_resolution or known[0],
        target_resolutions=resolutions[:count],
        model=model,
        references=[
            name and load_reference(used[name], initial, found.transform, reading)
            for name, found in zip(given, alignments, strict=False)
        ],
        waypoints=[
            Waypoint(name, map_, time, resolution)
            for (name, time), map_, resolution in zip(waypoints, maps[count:], resolutions[count:], strict=True)
        ],
        halves=[
            tuple(load_half_map(initial, path, found, used.get(protein_in(name)), settings) for path in pair)
            for pair, found, name in zip(halves, alignments, names, strict=False)
        ],
        alignments=alignments[:count],
        boxes=boxes[:count],
        doubts=[doubt if (doubt.target or 0) < count else doubt._replace(target=None) for doubt in doubts],
    )


def skip_unusable_targets(settings) -> dict[str, str]:
    """Remove targets that cannot be used from the settings' lists, if others can, so that one bad map stops no run.

    A name without a file is not skipped: it is a mistake that the user can correct.

    Returns:
        Why targets were skipped, by the names of their folders.
    """
    names = settings.target or []
    if len(names) < 2:
        return {}
    stems, faults = unique_stems(names), [fault_of_target(settings, number) for number in range(len(names))]
    if all(faults) or not any(faults):
        return {}
    for name, fault in zip(names, faults, strict=True):
        if fault:
            log.target_skipped(name, fault)
    kept = [number for number, fault in enumerate(faults) if not fault]
    for key in ("target", "target_half1", "target_half2", "target_mask", "reference"):
        if len(given := getattr(settings, key) or []) == len(names):
            setattr(settings, key, [given[number] for number in kept])
    return {stem: fault for stem, fault in zip(stems, faults, strict=True) if fault}


def fault_of_target(settings, number: int) -> str:
    """Why the target of this number cannot be used; "" if it can, or if there is no such file."""
    path = find(settings.target[number], settings.data_dir)
    masks = settings.target_mask or []
    try:
        if path is not None:
            name = masks[number] if len(masks) == len(settings.target) else masks[0] if len(masks) == 1 else None
            size, mask_path = settings.target_voxel_size, name and find(name, settings.data_dir)
            (map_,), _ = prechecks.sound([prechecks.Input("target", path.name, read_map(path, size))], settings.invert)
            map_ = masked(map_, mask_path, settings.mask_radius, size)
            thresholds.apply_threshold(map_, settings.target_threshold, f"map {path.name}")
    except InputError as error:
        return str(error)
    return ""


def half_maps(settings, count: int) -> list[tuple[Path, Path]]:
    """Files of the half-maps of each of `count` targets; none if no half-maps are given.

    Where only the first half-maps are given, the second ones are found by name.
    """
    first, second = settings.target_half1 or [], settings.target_half2 or []
    if second and not first:
        raise InputError("--target_half2 is given without --target_half1: name the first half-map as well")
    first = [existing_file(name, settings.data_dir) for name in first]
    second = [existing_file(name, settings.data_dir) for name in second] or [other_half_map(path) for path in first]
    if len(first) != len(second) or len(first) not in (0, count):
        raise InputError(
            f"{len(first)} first and {len(second)} second half-maps for {count} targets: give two for each"
        )
    return [*zip(first, second, strict=True)]


def load_half_map(initial: Map, path: Path, found: align.Alignment, protein: Path | None, settings) -> Map:
    """Read a half-map and resample it on the initial map's grid.

    Args:
        initial: the initial map.
        path: the half-map's file; the map is negated if targets are.
        found: how its target was superposed on the initial map.
        protein: mask that removed the target's micelle, applied to half-maps on the target's grid; None without one.
        settings: values of the flags.
    """
    half = prechecks.as_fitted(read_map(path, settings.target_voxel_size), "target", settings.invert)
    kept = protein and read_map(protein)
    if kept is not None and same_grid(half, kept) is None:
        half = mask.masked(half, kept, str(protein))
    return align.resampled(half, initial, found.transform)


def align_target(initial: Map, target: Map, settings, superposed: bool) -> tuple[Map, align.Alignment]:
    """Resample a target on the initial map's grid, superposed on it unless it is already or --align=none."""
    return align.onto(
        initial,
        target,
        "none" if superposed else settings.align,
        check_hand=settings.check_hand,
        initial_threshold=settings.initial_threshold,
        target_threshold=settings.target_threshold,
    )


def log_alignment(path: Path, found: align.Alignment) -> None:
    """Print, once for all processes, how a target was superposed, and warn of what is doubtful about it."""
    if jax.process_index():
        return
    agreement = found.agreement
    log.alignment(path.name, found.status, agreement and agreement.overlap, agreement and agreement.resolutions[0])
    if agreement and found.transform is not align.IDENTITY:
        log.alignment_motion(found.transform.angle, found.moved, agreement.overlap_before)
    if agreement and agreement.best is not None and agreement.best < POOR:
        log.alignment_poor(path.name, agreement.best, agreement.resolutions[1])
    if found.inside is not None and found.inside < INSIDE:
        log.mass_outside_box(path.name, found.inside)
    if agreement and agreement.mirrored is not None:
        log.hand(path.name, agreement.wrong_hand, agreement.mirrored, agreement.best)


def parse_waypoints(given: list[str]) -> list[tuple[str, float]]:
    """Parse the values of --waypoint, such as a.mrc@0.3,b.mrc@0.6.

    Args:
        given: the values, each with one or several waypoints.

    Returns:
        Name and time of each waypoint.

    Raises:
        InputError: a value is not of that form, or a time is not between 0 and 1.
    """
    found = []
    for texts in given:
        while texts:
            if not (match := WAYPOINT.match(texts)):
                raise InputError(
                    f"--waypoint={texts} is not FILE@TIME: give a map and a time between 0 and 1, such as mid.mrc@0.5"
                )
            time = in_range(match["time"], ranges.TIME, f"--waypoint={texts}: the time")
            found.append((paths.expand(match["name"]), time))
            texts = texts[match.end() :]
    return found


def check_resolutions(settings, names: list[str], maps: list[Map], resolutions: list[float | None]) -> None:
    """Check the resolutions (Å) of maps by name; the initial map comes first."""
    for number, (name, map_, resolution) in enumerate(zip(names, maps, resolutions, strict=True)):
        flag = "target_resolution" if number else "initial_resolution"
        check_resolution(map_, resolution, name, f"--{flag}" if is_given(settings, flag) else "")


def is_given(settings, name: str) -> bool:
    """Whether the user gave a flag; experiments.reproduce sets some to published values."""
    return bool(settings[name].present if isinstance(settings, FlagValues) else getattr(settings, name))


def check_resolution(map_: Map, resolution: float | None, name: str, flag: str) -> None:
    """Check the resolution of a map against its voxels and its box.

    Args:
        map_: the map.
        resolution: in Å; None if unknown.
        name: of the map, for the message.
        flag: by which the user gave the resolution; empty where it is from an archive, a publication or the file's
            name, which a flag overrides.

    Raises:
        InputError: the user gave a resolution that no map on this grid can have; of others there is a warning.
    """
    if resolution is None:
        return
    size, edge = float(map_.voxel_size.min()), float((map_.voxel_size * map_.density.shape).max())
    message, impossible = "", resolution < finest_detail(size) or resolution > edge
    if resolution > edge:
        message = f"is coarser than its box of {edge:.4g} Å"
    elif resolution < NEAR * 2 * size:
        message = f"is finer than {2 * size:.3g} Å, the Nyquist limit of its voxels of {size:.3g} Å"
    if message and impossible and flag:
        raise InputError(f"{flag}={resolution:g} of {Path(name).name} {message}: give it in Å (1 nm is 10 Å)")
    if message and not jax.process_index():
        which = flag or "--initial_resolution or --target_resolution"
        log.resolution_doubtful(Path(name).name, resolution, message, which)


def finest_detail(voxel_size: float) -> float:
    """Finest detail (Å) on voxels of this size (Å): twice their size over √3, along a diagonal."""
    return 2 * voxel_size / 3**0.5


def check_detail(resolution: float, voxel_size: float, flag: str = "--resolution") -> None:
    """Raise InputError where a map of this resolution cannot be simulated on voxels of this size (both in Å)."""
    if resolution < finest_detail(voxel_size):
        raise InputError(
            f"{flag}={resolution:g} is finer than the {finest_detail(voxel_size):.3g} Å that voxels of "
            f"{voxel_size:.3g} Å can hold: give it in Å (1 nm is 10 Å), or take smaller voxels"
        )


def check_mass(mass_kda: float | None, initial: Map) -> None:
    """Raise InputError where a molecule of this weight would fill fewer than FEWEST voxels, or more than the box."""
    if mass_kda is None:
        return
    filled, there = 1e3 * mass_kda * thresholds.DALTON / float(np.prod(initial.voxel_size)), initial.density.size
    if not FEWEST <= filled <= there:
        raise InputError(
            f"--mass_kda={mass_kda:g} would fill {filled:.3g} of the initial map's {there} voxels: give the molecular "
            "weight in kDa, of all that the map shows"
        )


def add_parts(case: Case, settings) -> None:
    """Add the parts that the flags name to the case, with the factors of the rigidity's weight."""
    case.part_rigidity = settings.part_rigidity or []
    if settings.parts in ("auto", "none"):
        case.parts = settings.parts if settings.parts == "auto" else None
        return
    names = paths.split(settings.parts)
    if not all(name.lower().endswith(MAP_SUFFIXES) for name in names):
        if case.model is None:
            raise InputError(f"--parts={settings.parts} is not a map: to select residues give the model with --model")
        case.parts = partition.from_model(case.model, settings.parts, case.initial)
        return
    files = {name: existing_file(name, settings.data_dir) for name in names}
    case.files |= files
    maps = [read_map(files[name], settings.voxel_size) for name in names]
    if len(maps) == 1:
        case.parts = partition.from_labels(maps[0], case.initial, names[0])
    else:
        case.parts = partition.from_masks(maps, case.initial, names)


def add_symmetry(case: Case, settings) -> None:
    """Add the symmetry that the flags name to the case: of its maps, or of the assembly if they show one unit.

    Raises:
        InputError: flags contradict each other, or there is no such symmetry.
    """
    given = settings.symmetry
    if not given:
        if settings.one_unit or settings.symmetry_axis or settings.symmetry_centre:
            raise InputError(
                "--one_unit, --symmetry_axis and --symmetry_centre describe a --symmetry: give that as well"
            )
        return
    if settings.one_unit and settings.align != "none" and case.alignments:
        raise InputError(
            "a single unit that is aligned may lose its place about the symmetry axis: add --align=none to --one_unit"
        )
    axis, centre = (vector(settings, name) for name in ("symmetry_axis", "symmetry_centre"))
    axis = axis or (0, 0, 1)
    if (path := find(given, settings.data_dir)) is not None:
        case.files[given], found = path, Symmetry.from_file(path)
    elif centre is not None:
        found = Symmetry.named(given, centre, axis)
    else:  # the axis cannot be found from one unit
        solvent_free = None if settings.one_unit else without_solvent(case.initial, settings)
        found = Symmetry.of(given, case.initial, solvent_free, axis)
    if settings.one_unit:
        case.repeated = found
    else:
        case.symmetry = found


def without_solvent(initial: Map, settings) -> Map:
    """The initial map, zero below its threshold."""
    level = settings.initial_threshold
    level = thresholds.choose_threshold(initial.density) if level is None else level
    return Map(thresholds.carried_mass(initial.density, level), initial.voxel_size, initial.origin)


def vector(settings, name: str) -> list[float] | None:
    """Three numbers of a flag, or None if it is not given; raise InputError where there are more or fewer."""
    given = getattr(settings, name)
    if given is None or len(given) == 3:
        return given
    raise InputError(f"--{name}={','.join(f'{each:g}' for each in given)} is not three numbers such as 0,0,1")


def parse_schedule(settings) -> Schedule | None:
    """Parse the schedule of the recipe paper; None if the flags give none.

    Raises:
        InputError: a stage is not of the form LOSS:STEPS:RATE, or a number is out of range.
    """
    if not settings.schedule and not settings.width:
        return None
    stages = []
    for text in settings.schedule or []:
        if not (match := STAGE.fullmatch(text)):
            raise InputError(f"--schedule={text} is not LOSS:STEPS:RATE: give stages such as w2:2000:1e-3,l2:500:1e-4")
        steps = in_range(match["steps"], ranges.STAGE_STEPS, f"--schedule={text}: the number of steps", int)
        made = max(1, round(steps * settings.steps))
        in_range(made, ranges.STAGE_STEPS, f"--schedule={text}: the number of steps times --steps,", int)
        rate = in_range(match["rate"], ranges.LEARNING_RATE, f"--schedule={text}: the learning rate")
        stages.append((match["loss"], steps, rate))
    return Schedule(tuple(stages), settings.width or Schedule.width)


def in_range(given: str | float, allowed: ranges.Range, label: str, kind: type = float) -> Any:
    """Read a number that is only a part of a flag's value.

    Args:
        given: the number, or its text.
        allowed: its range.
        label: how the message names the number.
        kind: `float`, or `int` for whole numbers.

    Raises:
        InputError: it is not a number, or out of range.
    """
    try:
        return allowed.number(given, kind)
    except ValueError as error:
        raise InputError(f"{label} {given} {error}") from None


def contours(case: Case, settings) -> list[dict]:
    """Display contours of the initial map and of each target, as from `contour.describe`."""
    levels = [settings.initial_threshold] + [settings.target_threshold] * len(case.targets)
    resolutions = [case.initial_resolution, *case.target_resolutions]
    names = [settings.initial or INITIAL, *settings.target] if settings.target else case.files
    files = [case.files[name] for name in names]  # those of the maps come first
    each = zip([case.initial, *case.targets], files, resolutions, levels, strict=False)
    known = dict(mass_kda=settings.mass_kda, model=case.model)
    return [
        contour.describe(map_, resolution, given=level, deposited=archives.contour(path), **known)
        for map_, path, resolution, level in each
    ]


def built_in_pair(out_dir: Path) -> Case:
    """Simulate the built-in pair at 3 and 7 Å, with both models, and write its files to `out_dir`/inputs."""
    folder = out_dir / "inputs"
    folder.mkdir(parents=True, exist_ok=True)
    models = dict(zip(("closed", "open"), hinge_pair(), strict=True))
    grid = simulation.common_grid(list(models.values()), 1.0, 3.0)
    files, maps = {}, {}
    for (name, model), resolution in zip(models.items(), (3.0, 7.0), strict=True):
        atoms.write_model(folder / f"{name}.cif", model)
        key = f"{name}_{resolution:g}A.mrc"
        files[key], maps[key] = folder / key, simulation.simulate_map(model, *grid, resolution)
        write_input(files[key], maps[key])
    log.built_in_pair(folder)
    (initial, target), (start, end) = maps.values(), models.values()
    return Case(initial, [target], files, ["open_7A"], 3.0, [7.0], start, [end])


def load(
    initial: str,
    targets: list[str],
    data_dir: str,
    out_dir: Path,
    voxel_sizes: Mapping[str, list[float] | None] = MappingProxyType({}),
    all_models: bool = False,
) -> tuple[Map, list[Map], dict[str, Path]]:
    """Read the maps, and simulate those that are missing.

    A map that is missing and has a name of the form <PDB id>_<r>A.mrc is simulated at r Å from the entry's model, after
    superposition on the initial entry's model, and written to `out_dir`/inputs. Its grid is the initial map's; if that
    is simulated as well, it is a grid that holds all models.

    Args:
        initial: name of the initial map.
        targets: names of the target maps.
        data_dir: where names that are not files are looked up.
        out_dir: the run's folder.
        voxel_sizes: by name, those of maps whose headers have none or a wrong one (Å).
        all_models: take all models of a file that do not overlap, instead of the first.

    Returns:
        The initial map, the target maps, and the file of each name.
    """
    names = [initial, *targets]
    found = {name: find(name, data_dir) for name in names}
    entries = {name: find_entry(name, data_dir) for name in names if found[name] is None}
    if not entries:
        maps = {name: read_map(path, voxel_sizes.get(name)) for name, path in found.items()}
        return maps[initial], [maps[t] for t in targets], found
    base = entries.get(initial) or base_model(initial, data_dir)
    models = {name: atoms.read_model(path, all_models) for name, path in entries.items()}
    if base:
        fixed = models.get(initial) or atoms.read_model(base, all_models)
        models = {n: m if n == initial else atoms.superpose(m, fixed) for n, m in models.items()}
    maps = {name: read_map(path, voxel_sizes.get(name)) for name, path in found.items() if path}
    like = maps.get(initial) or next(iter(maps.values()), None)
    if like:
        grid = like.density.shape, like.voxel_size, like.origin
    else:
        sharpest = min(resolution_in_name(name) for name in models)
        grid = simulation.common_grid(list(models.values()), sharpest / 3, sharpest)
    (out_dir / "inputs").mkdir(parents=True, exist_ok=True)
    for name, model in models.items():
        check_inside(model, *grid, f"the model of {name}")
        maps[name] = simulation.simulate_map(model, *grid, resolution_in_name(name))
        found[name] = out_dir / "inputs" / Path(name).name
        write_input(found[name], maps[name])
    return maps[initial], [maps[t] for t in targets], found


def check_inside(model: gemmi.Structure, shape, voxel_size, origin, name: str) -> None:
    """Raise InputError where heavy atoms lie outside the grid."""
    x = (atoms.heavy_atoms(model)[0] - origin) / voxel_size
    outside = int(((x < -0.5) | (x > np.array(shape) - 0.5)).any(axis=1).sum())
    if outside:
        raise InputError(
            f"{outside} of {len(x)} atoms of {name} lie outside the map: move the model into it (experiments.simulate "
            "--superpose_on), or simulate all maps in a box that covers all models (--cover)"
        )
