"""Load the case that the flags describe: its maps, superposed on the initial one, with models and references."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import gemmi
import jax

from cryotrans_jax.density import align, contour, mask, thresholds
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.density.transform import IDENTITY, resampled
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, read_map, same_grid
from cryotrans_jax.motion import partition

from . import archives, log, paths, prechecks
from .case import MAP_SUFFIXES, Case, Doubt, Original, Waypoint
from .find import base_model, existing_file, find, one_for_each, other_half_map, resolution_of, unique_stems
from .inputs import check_inside, load_maps
from .masks import mask_all, masked, without_micelles
from .parse import parse_waypoints
from .score import place_reference, read_reference
from .settings import LISTED_BY_TARGET, InputSettings, SymmetrySettings

POOR = 0.25  # correlation at high resolution of a wrong pose, or a wrong hand; two states of a molecule fit better
INSIDE = 0.98  # of a target's mass: with less of it in the initial map's box the user is warned


def load_case(settings: InputSettings, out_dir: Path) -> Case:
    """Load the case that the settings describe.

    Args:
        out_dir: the run's folder; maps that are simulated and masks go to its folder inputs.
    """
    if not settings.target:
        raise InputError("--initial is given but no --target: name the map of the rare conformation as well")
    waypoints, count = parse_waypoints(settings.waypoint), len(settings.target)
    names = [settings.initial_name, *settings.target, *(name for name, _ in waypoints)]
    if settings.archives is not None:
        fetch_missing(settings, settings.archives, names)
    resolutions = known_resolutions(settings, names)
    maps, files, doubts = read_maps(settings, names, resolutions, out_dir)
    model = read_model(settings, maps[0], files)
    proteins: dict[str, Map] = {}
    if settings.micelle == "auto":
        rules = settings.preparation.micelle
        has_mask = [bool(settings.mask)] + [bool(settings.target_mask)] * (len(names) - 1)
        maps, proteins, masks = without_micelles(names, maps, resolutions, has_mask, model, out_dir, rules)
        files |= masks
    references, halves = one_for_each(settings.reference, count, "references"), half_map_files(settings)
    files |= {name: existing_file(name, settings.data_dir) for name in settings.reference}
    reading, last = (settings.target_voxel_size, settings.all_models), 1 + count  # waypoints follow
    given = [read_reference(files[name], *reading) if name else None for name in references]
    truths = [each if isinstance(each, Map) else None for each in given] or [None] * count
    originals = [Original(*each) for each in zip(maps[1:last], truths, strict=True)]
    maps[1:], alignments = superposed(settings, names, maps, files, out_dir)
    return Case(
        initial=maps[0],
        targets=maps[1:last],
        files=files | {str(path): path for pair in halves for path in pair},
        target_names=unique_stems(settings.target),
        initial_resolution=resolutions[0],
        target_resolutions=resolutions[1:last],
        model=model,
        references=[
            None if each is None else place_reference(each, maps[0], found.transform)
            for each, found in zip(given, alignments, strict=False)
        ],
        waypoints=[
            Waypoint(name, map_, time, resolution)
            for (name, time), map_, resolution in zip(waypoints, maps[last:], resolutions[last:], strict=True)
        ],
        halves=[
            tuple(load_half_map(maps[0], path, found, proteins.get(name), settings) for path in pair)
            for pair, found, name in zip(halves, alignments, settings.target, strict=False)
        ],
        alignments=alignments[:count],
        originals=originals,
        preparation=settings.preparation,
        doubts=[doubt if (doubt.target or 0) < count else doubt._replace(target=None) for doubt in doubts],
    )


def fetch_missing(settings: InputSettings, source: archives.Archives, maps: Sequence[str]) -> None:
    """Fetch into the data folder the entries of public archives that are named and that are not there."""
    others = [settings.model, settings.mask, *settings.reference, *settings.target_mask]
    missing = [name for name in (*maps, *filter(None, others)) if find(name, settings.data_dir) is None]
    for entry, parts in archives.wanted(missing):
        Path(settings.data_dir).mkdir(parents=True, exist_ok=True)
        archives.fetch(entry, source, Path(settings.data_dir), parts)


def known_resolutions(settings: InputSettings, names: Sequence[str]) -> list[float | None]:
    """Resolutions (Å) of the maps of these names, given or recorded; None where unknown. The initial map is first."""
    initial, *others = (resolution_of(name, settings.data_dir) for name in names)
    initial = settings.initial_resolution or initial
    if settings.target_resolution and not initial:
        raise InputError("--target_resolution is given without --initial_resolution: give both, or neither")
    return [initial, *(settings.target_resolution or resolution for resolution in others)]


def read_maps(
    settings: InputSettings, names: Sequence[str], resolutions: Sequence[float | None], out_dir: Path
) -> tuple[list[Map], dict[str, Path], list[Doubt]]:
    """Read, check and mask the maps of these names, the initial one first.

    Returns:
        The maps, the files with those of masks by name, and warnings.
    """
    sizes = [settings.voxel_size] + [settings.target_voxel_size] * (len(names) - 1)
    maps, files = load_maps(names, settings.data_dir, out_dir, sizes, settings.all_models)
    prechecks.check_resolutions(names, maps, resolutions, settings.resolutions_given)
    maps, doubts = prechecks.sound(prechecks.initial_first(names, maps), settings.invert)
    prechecks.check_mass(settings.mass_kda, maps[0])
    maps, masks = mask_all(settings, maps)
    return maps, files | masks, doubts


def read_model(settings: InputSettings, initial: Map, files: dict[str, Path]) -> gemmi.Structure | None:
    """Read the model of the initial state, if there is one, and add its file to `files`."""
    if not settings.model:
        return None
    files[settings.model] = existing_file(settings.model, settings.data_dir)
    model = atoms.read_model(files[settings.model], settings.all_models)
    check_inside(model, initial.density.shape, initial.voxel_size, initial.origin, settings.model)
    return model


def superposed(
    settings: InputSettings, names: Sequence[str], maps: Sequence[Map], files: Mapping[str, Path], out_dir: Path
) -> tuple[list[Map], list[align.Alignment]]:
    """Superpose all maps but the first on that one, resampled on its grid, and say how.

    Those that were simulated from models that had been superposed, and all with --align=none, keep their place.
    """
    modelled = base_model(names[0], settings.data_dir) is not None
    found = []
    for name, map_ in zip(names[1:], maps[1:], strict=True):
        there = modelled and files[name].parent == out_dir / "inputs"
        found.append(
            align.onto(
                maps[0],
                map_,
                "none" if there else settings.align,
                check_hand=settings.check_hand,
                initial_threshold=settings.initial_threshold,
                target_threshold=settings.target_threshold,
                rules=settings.preparation.alignment,
                mass_rules=settings.preparation.thresholds,
            )
        )
    for name, (_, alignment) in zip(names[1:], found, strict=True):
        log_alignment(files[name], alignment)
    return [map_ for map_, _ in found], [alignment for _, alignment in found]


def log_alignment(path: Path, found: align.Alignment) -> None:
    """Print, once for all processes, how a target was superposed, and warn of what is doubtful about it."""
    if jax.process_index():
        return
    agreement = found.agreement
    log.alignment(path.name, found.status, agreement and agreement.overlap, agreement and agreement.resolutions[0])
    if agreement and found.transform is not IDENTITY:
        log.alignment_motion(found.transform.angle, found.moved, agreement.overlap_before)
    if agreement and agreement.best is not None and agreement.best < POOR:
        log.alignment_poor(path.name, agreement.best, agreement.resolutions[1])
    if found.inside is not None and found.inside < INSIDE:
        log.mass_outside_box(path.name, found.inside)
    if agreement and agreement.mirrored is not None:
        log.hand(path.name, agreement.wrong_hand, agreement.mirrored, agreement.best)


def half_map_files(settings: InputSettings) -> list[tuple[Path, Path]]:
    """Files of the half-maps of each target; none if no half-maps are given.

    Where only the first half-maps are given, the second ones are found by name.
    """
    first, second = settings.target_half1, settings.target_half2
    if second and not first:
        raise InputError("--target_half2 is given without --target_half1: name the first half-map as well")
    ones = [existing_file(name, settings.data_dir) for name in first]
    others = [existing_file(name, settings.data_dir) for name in second] or [other_half_map(path) for path in ones]
    if len(ones) != len(others) or len(ones) not in (0, count := len(settings.target)):
        raise InputError(f"{len(ones)} first and {len(others)} second half-maps for {count} targets: give two for each")
    return [*zip(ones, others, strict=True)]


def load_half_map(
    initial: Map, path: Path, found: align.Alignment, protein: Map | None, settings: InputSettings
) -> Map:
    """Read a half-map and resample it on the initial map's grid.

    Args:
        path: the half-map's file; the map is negated if targets are.
        found: how its target was superposed on the initial map.
        protein: mask that removed the target's micelle, applied to half-maps on the target's grid; None without one.
    """
    half = prechecks.as_fitted(read_map(path, settings.target_voxel_size), "target", settings.invert)
    if protein is not None and same_grid(half, protein) is None:
        half = mask.masked(half, protein, "the mask of the target's protein")
    return resampled(half, initial, found.transform)


def without_unusable_targets(settings: InputSettings) -> tuple[InputSettings, dict[str, str]]:
    """Leave out targets that cannot be used, if others can, so that one bad map stops no run.

    A name without a file is not left out: it is a mistake that the user can correct.

    Returns:
        The settings with the other targets, and why targets were left out, by the names of their folders.
    """
    names = settings.target
    faults = [fault_of_target(settings, number) for number in range(len(names))] if len(names) > 1 else []
    if all(faults) or not any(faults):
        return settings, {}
    failed = {stem: fault for stem, fault in zip(unique_stems(names), faults, strict=True) if fault}
    for name, fault in zip(names, faults, strict=True):
        if fault:
            log.target_skipped(name, fault)
    kept = [number for number, fault in enumerate(faults) if not fault]
    lists = {key: getattr(settings, key) for key in LISTED_BY_TARGET}
    fewer = {key: [each[number] for number in kept] for key, each in lists.items() if len(each) == len(names)}
    return replace(settings, **fewer), failed


def fault_of_target(settings: InputSettings, number: int) -> str:
    """Why the target of this number cannot be used; "" if it can, or if there is no such file."""
    path, size = find(settings.target[number], settings.data_dir), settings.target_voxel_size
    if path is None:
        return ""
    try:
        name = one_for_each(settings.target_mask, len(settings.target), "target masks")[number]
        (map_,), _ = prechecks.sound([prechecks.Input("target", path.name, read_map(path, size))], settings.invert)
        map_ = masked(map_, name and find(name, settings.data_dir), settings.mask_radius, size)
        thresholds.apply_threshold(
            map_, settings.target_threshold, f"map {path.name}", rules=settings.preparation.thresholds
        )
    except InputError as error:
        return str(error)
    return ""


def contours(case: Case, settings: InputSettings) -> list[dict]:
    """Display contours of the initial map and of each target, as from `contour.describe`."""
    levels = [settings.initial_threshold] + [settings.target_threshold] * len(case.targets)
    resolutions = [case.initial_resolution, *case.target_resolutions]
    names = case.files if settings.built_in else [settings.initial_name, *settings.target]
    files = [case.files[name] for name in names]  # those of the maps come first
    each = zip([case.initial, *case.targets], files, resolutions, levels, strict=False)
    known = dict(mass_kda=settings.mass_kda, model=case.model)
    return [
        contour.describe(map_, resolution, given=level, deposited=archives.contour(path), **known)
        for map_, path, resolution, level in each
    ]


def add_parts(case: Case, settings: InputSettings) -> None:
    """Add the parts that the settings name to the case, with the factors of the rigidity's weight."""
    case.part_rigidity = settings.part_rigidity
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


def add_symmetry(case: Case, symmetry: SymmetrySettings, settings: InputSettings) -> None:
    """Add the symmetry that is described to the case: of its maps, or of the assembly if they show one unit."""
    given = symmetry.symmetry
    if not given:
        if symmetry.one_unit or symmetry.symmetry_axis or symmetry.symmetry_centre:
            raise InputError(
                "--one_unit, --symmetry_axis and --symmetry_centre describe a --symmetry: give that as well"
            )
        return
    if symmetry.one_unit and settings.align != "none" and case.alignments:
        raise InputError(
            "a single unit that is aligned may lose its place about the symmetry axis: add --align=none to --one_unit"
        )
    axis = three_numbers(symmetry.symmetry_axis, "symmetry_axis") or (0, 0, 1)
    centre = three_numbers(symmetry.symmetry_centre, "symmetry_centre")
    if (path := find(given, settings.data_dir)) is not None:
        case.files[given], found = path, Symmetry.from_file(path)
    elif centre is not None:
        found = Symmetry.named(given, centre, axis)
    else:  # the axis cannot be found from one unit
        solvent_free = None if symmetry.one_unit else without_solvent(case.initial, settings)
        found = Symmetry.of(given, case.initial, solvent_free, axis)
    if symmetry.one_unit:
        case.repeated = found
    else:
        case.symmetry = found


def without_solvent(initial: Map, settings: InputSettings) -> Map:
    """The initial map, zero below its threshold."""
    level = settings.initial_threshold
    if level is None:
        level = thresholds.choose_threshold(initial.density, settings.preparation.thresholds)
    return Map(thresholds.carried_mass(initial.density, level), initial.voxel_size, initial.origin)


def three_numbers(given: list[float] | None, name: str) -> list[float] | None:
    """The numbers that the flag of this name gives, or None; raise InputError where they are not three."""
    if given is None or len(given) == 3:
        return given
    raise InputError(f"--{name}={','.join(f'{each:g}' for each in given)} is not three numbers such as 0,0,1")
