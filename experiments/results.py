"""Fit a case (maps, perhaps models), and write the files and scores of the run's folder."""

import csv
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import gemmi
import jax
import numpy as np

from cryotrans_jax.density import similarity, simulation
from cryotrans_jax.density.align import IDENTITY, Alignment, Transform, resampled
from cryotrans_jax.density.contour import BODY, CLEAR, DUST
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.density.thresholds import DALTON, carried_mass
from cryotrans_jax.fit import train, trajectory
from cryotrans_jax.fit.morphing import Fit, morph
from cryotrans_jax.fit.progress import Progress
from cryotrans_jax.fit.recipes import Schedule
from cryotrans_jax.io import atoms, memory
from cryotrans_jax.io.files import InputError, checksum, whole_file
from cryotrans_jax.io.maps import COMPRESSION, SUFFIXES, Map, has_voxel_size, read_map, write_map
from cryotrans_jax.motion.partition import Partition, part_motions
from cryotrans_jax.scores import geometry, metrics, qscore

from . import log
from .exchange import target_number
from .prechecks import Doubt
from .run_folder import (
    FRAMES,
    check_free,
    put_back,
    result_files,
    results_in,
    set_aside,
    sign,
    updating_checksums,
    write_json,
)

PACKAGES = (
    "cryotrans-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "ott-jax",
    "gemmi",
    "mrcfile",
    "numpy",
    "scipy",
)
MAP_SUFFIXES = (*SUFFIXES, *(suffix + packed for packed in COMPRESSION for suffix in SUFFIXES))
THIN = 1 / 3  # of the molecular volume: a threshold that encloses less is doubtful
Curve = tuple[np.ndarray, np.ndarray]  # spatial frequency [1/Å], Fourier shell correlation


class Waypoint(NamedTuple):
    """A map that the flow has to pass at a time between 0 and 1; resolution in Å, None if unknown."""

    name: str
    map: Map
    time: float
    resolution: float | None


@dataclass
class Case:
    """The inputs of a run.

    Attributes:
        initial: the initial map.
        targets: the target maps, on the initial map's grid.
        files: the files that were read, by their names; those of the initial map and of the targets come first.
        target_names: names of the targets' folders.
        initial_resolution: in Å; None if unknown.
        target_resolutions: in Å; None if unknown.
        model: atomic model of the initial state.
        references: for each target a model or a map of the target state to score against, or None.
        contours: display contours of the initial map and of each target, as from `contour.describe`.
        waypoints: maps to pass on the way; only with a single target.
        halves: the half-maps of each target, if there are any.
        alignments: how each target was superposed on the initial map; empty where the maps share a frame.
        boxes: the grid of each target before that, as a map without density; empty likewise.
        parts: of the initial map, each with a velocity field of its own: given, "auto" to find rigid bodies, or None.
        part_rigidity: factor of the rigidity's weight for each part that was given.
        symmetry: of all maps.
        repeated: symmetry of the assembly, where the maps show one asymmetric unit of is
    `copy_map` of the recipe paper; None for the published one.
        sums: SHA-256 of the files when they were read.
        failed: why targets could not be used, by their names; these are not among `targets`.
        doubts: about the inputs, of which the user is warned.
    """

    initial: Map
    targets: list[Map]
    files: dict[str, Path]
    target_names: list[str]
    initial_resolution: float | None
    target_resolutions: list[float | None]
    model: gemmi.Structure | None = None
    references: list[gemmi.Structure | Map | None] = field(default_factory=list)
    contours: list[dict] = field(default_factory=list)
    waypoints: list[Waypoint] = field(default_factory=list)
    halves: list[tuple[Map, Map]] = field(default_factory=list)
    alignments: list[Alignment] = field(default_factory=list)
    boxes: list[Map] = field(default_factory=list)
    parts: Partition | str | None = "auto"
    part_rigidity: list[float] = field(default_factory=list)
    symmetry: Symmetry | str | None = None
    repeated: Symmetry | None = None
    schedule: Schedule | None = None
    sums: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    doubts: list[Doubt] = field(default_factory=list)


def check_disk_space(case: Case, settings: Any, out_dir: Path, targets: int) -> None:
    """Raise InputError where the disk has no room for the maps of this number of targets."""
    folders_each = 2 if case.boxes and settings.frame == "target" else 1
    needed = targets * folders_each * (settings.frames + 4) * 4 * case.initial.density.size
    if (free := shutil.disk_usage(out_dir).free) < needed:
        raise InputError(
            f"the results take about {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free on the disk of {out_dir}: "
            "make room, give another --out_dir, or fewer --frames"
        )


def target_folders(case: Case, out_dir: Path) -> list[Path]:
    """Folder of each target's results: `out_dir` itself, or for several targets a folder with the target's name."""
    several = len(case.targets) + len(case.failed) > 1
    return [out_dir / name if several else out_dir for name in case.target_names]


def replaced_folders(case: Case, out_dir: Path, share: Sequence[int]) -> list[Path]:
    """Folders in which fits of these targets replace results; `out_dir` itself belongs to the first target."""
    found = {target_folders(case, out_dir)[number] for number in share}
    return sorted(found | {out_dir} if 0 in share else found)  # an earlier run of one target wrote to `out_dir` itself


def check_memory(case: Case, targets: int) -> None:
    """Print how much memory a fit of this number of targets takes.

    Raises:
        InputError: there is less memory than it takes at least.
    """
    sides, room = case.initial.density.shape, memory.available() + memory.resident()
    least, most = memory.estimate(case.initial.density.size, targets)
    wider = memory.coarsening_factor(case.initial.density.size, targets, room)
    advice = f"take voxels of {wider * case.initial.voxel_size.min():.1f} Å, or crop the maps to the molecule"
    if targets > 1 and memory.estimate(case.initial.density.size, 1)[1] < room:
        advice = "fit fewer targets at once"
    elif wider == float("inf"):
        advice = "take a machine with more"
    if least > room:
        raise InputError(
            f"maps of {' x '.join(map(str, sides))} voxels with {targets} target{'s' * (targets > 1)} take at least "
            f"{least / 2**30:.1f} GiB of memory and {room / 2**30:.1f} GiB are available: {advice}"
        )
    if most < room:
        log.memory(least, most, room)
    else:
        log.memory_short(least, most, room, advice)


def check_replaceable(case: Case, out_dir: Path, overwrite: bool, share: Sequence[int]) -> None:
    """Check that fits of these targets may write to their folders.

    Args:
        case: the inputs.
        out_dir: the run's folder.
        overwrite: whether another run's results may be replaced.
        share: numbers of the targets.

    Raises:
        InputError: an input would be replaced, or another run without `overwrite`.
    """
    for number in share:
        check_free(target_folders(case, out_dir)[number], overwrite)
    replaced = {path.resolve() for path in results_in(replaced_folders(case, out_dir, share))}
    for path in case.files.values():
        if path.resolve() in replaced:
            raise InputError(f"the input {path} is a result in the folder to be overwritten: give another --out_dir")


def fit_case(
    case: Case, settings: Any, share: Sequence[int] | None = None, seed_number: int = 0, keeper: Any = None
) -> Fit:
    """Fit a case, showing progress.

    Args:
        case: the inputs.
        settings: values of the flags: recipe, seed, steps, thresholds, mass_kda, bin.
        share: numbers of the targets to fit; None fits all.
        seed_number: added to the seed of the flags.
        keeper: saves the state of the fit from time to time, and has the state from which to resume.
    """
    names = [case.target_names[number] for number in share or range(len(case.targets))]

    def say(target: int, text: str) -> None:
        if target < len(names):  # no copy that fills up the last devices
            log.target_warning(names[target], text)

    first = jax.process_index() == seed_number == 0  # prints what is prepared, which is of all targets and seeds
    with Progress() as progress:
        return morph(
            case.initial,
            case.targets,
            settings.recipe,
            align="none",  # the targets are superposed already
            seed=settings.seed + seed_number,
            steps=settings.steps,
            initial_threshold=settings.initial_threshold,
            target_threshold=settings.target_threshold,
            initial_resolution=case.initial_resolution,
            target_resolution=case.target_resolutions,
            volume=1e3 * settings.mass_kda * DALTON if settings.mass_kda else None,
            waypoints=[(w.map, w.time) for w in case.waypoints],
            waypoint_resolution=[w.resolution for w in case.waypoints],
            halves=case.halves or None,
            parts=case.parts,
            part_rigidity=case.part_rigidity or None,
            symmetry=case.symmetry,
            bin=settings.bin,
            schedule=case.schedule,
            target_indices=share,
            progress=progress,
            resume_from=keeper and keeper.load_snapshot(seed_number),
            on_snapshot=keeper and partial(keeper.keep, seed_number),
            on_setback=say,
            on_prepared=partial(log_preparation, case) if first else lambda report: None,
        )


def write(
    fit: Fit,
    case: Case,
    settings: Any,
    out_dir: Path,
    share: Sequence[int],
    aside: Path,
    others: Sequence[Fit] = (),
) -> dict[str, str]:
    """Write the results of each target, and print its scores.

    Files of an earlier run are moved `aside` first, and moved back if the new ones cannot be written.

    Args:
        fit: of the targets in `share`.
        case: the inputs.
        settings: values of the flags.
        out_dir: the run's folder; each target's folder is a run by itself.
        share: numbers of the targets of the fit.
        aside: folder for results of an earlier run.
        others: fits of the same targets from other seeds.

    Returns:
        Why targets failed, by their names.
    """
    description = describe(fit, case, settings)
    failed = {case.target_names[number]: why for number, why in zip(share, fit.failed, strict=False) if why}
    set_aside(replaced_folders(case, out_dir, share), out_dir, aside)
    try:
        write_targets(fit, case, settings, out_dir, share, others, description)
        for name, why in (failed | (case.failed if 0 in share else {})).items():
            (out_dir / name).mkdir(exist_ok=True)
            write_json(out_dir / name / "failed.json", {"target": name, "failed": why})
    except Exception:
        put_back(aside, out_dir)
        raise
    log.results_written(out_dir, bool(settings.report), len(case.targets) + len(case.failed))
    return failed | case.failed


def write_targets(
    fit: Fit,
    case: Case,
    settings: Any,
    out_dir: Path,
    share: Sequence[int],
    others: Sequence[Fit],
    description: dict,
) -> None:
    """Write the folders of the targets that did not fail, and print their scores."""
    from . import story

    scores, stories = [], []
    for place, number in enumerate(share):
        one, name, folder = fit.select([place]), case.target_names[number], target_folders(case, out_dir)[number]
        if any(one.failed):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        alignment = alignment_record(case, number)
        write_json(folder / "config.json", {"target": name} | alignment | description)
        if alignment:
            write_json(folder / "transform.json", alignment["alignment"])
        one.save(folder / "checkpoint")
        write_losses(folder / "loss.csv", one, name)
        if one.partitions:
            write_map(folder / "parts.mrc", one.parts_map())
        last = write_frames(one, settings.frames, settings.render, folder)
        compared = compare(one, case, number, last)
        scores.append(score(one, case, number, last, compared))
        variance = fit.report["blur_variance"][number]
        scores[-1] |= write_unexplained(compared.start, last, case.targets[number], variance, folder)
        if case.model is not None:
            reference = case.references[number] if case.references else None
            scores[-1] |= write_models(one, case.model, settings, folder, reference)
        if others:
            same = [other.select([place]) for other in others]
            scores[-1] |= write_spread(one, [other for other in same if not any(other.failed)], folder)
        scores[-1]["peak_mib"] = memory.peak() / 2**20
        write_json(folder / "metrics.json", scores[-1])
        if case.repeated is not None:
            write_assembly(case.repeated, folder)
        if case.boxes and settings.frame == "target":
            write_in_target_frame(case, number, folder)
        sign(folder)
        log_scores(name, scores[-1], "rigid body" if case.parts == "auto" else "part")
        stories.append(
            story.Story(folder, one, compared.start, last, case.targets[number], compared.curves, case.model)
        )
    for entry, values in zip(stories, scores, strict=True):  # once all results are there
        with updating_checksums(entry.folder):
            found = story.write_story(entry, whole=settings.report)
        for warning in found:
            log.target_warning(values["target"], warning)


def write_frames(fit: Fit, frames: int, render: str, folder: Path) -> Map:
    """Write all frames and the generated map of a fit of one target; return the last frame."""
    for number, frame in enumerate(fit.frames(frames, render=render)):
        write_map(folder / f"frame_{frame_number(number, frames)}.mrc", frame)
    copy_file(folder / f"frame_{frame_number(number, frames)}.mrc", folder / "generated.mrc")
    return frame


def write_unexplained(start: Map, generated: Map, target: Map, variance: float, folder: Path) -> dict:
    """Write unexplained.mrc, the target less the generated map at the target's resolution.

    It is above zero where the target has more density.

    Args:
        start: the initial map, as carried.
        generated: the generated map; blurred and scaled to the target before the difference is taken.
        target: the target map.
        variance: of the blur between the maps (Å²).
        folder: where to write.

    Returns:
        Correlations with the target at its resolution before and after, and the fraction of the generated map's mass
        for which the target has no density.
    """
    end, goal = metrics.matched(generated, target, variance)
    write_map(folder / "unexplained.mrc", replace(target, density=goal - end))
    before, after = similarity.correlation(*metrics.matched(start, target, variance)), similarity.correlation(end, goal)
    lacking = metrics.missing_mass(end, goal, target.voxel_size, train.NEARBY_BLUR)
    return {"correlation_matched_before": before, "correlation_matched_after": after, "target_lacks": lacking}


def frame_number(number: int, count: int) -> str:
    """Number of a frame out of `count`, padded with zeros so that names sort by time."""
    return f"{number:0{max(2, len(str(count - 1)))}d}"


def write_models(fit: Fit, model: gemmi.Structure, settings: Any, folder: Path, reference: Any = None) -> dict:
    """Write the carried models, their trajectory and geometry.csv.

    Args:
        fit: of one target.
        model: of the initial state.
        settings: values of the flags. With `idealise` bonds, angles and side chains of the written models are restored,
            and geometry.csv has columns carried_... for the models before that.
        folder: where to write.
        reference: model of the target state, if it is known.

    Returns:
        Scores of the geometry before and after; of idealised models also the CA RMSD to the reference.
    """
    times = trajectory.frame_times(settings.frames)
    frames, topology = fit.move(model, times), geometry.topology(model)
    rows = [model_geometry(topology, carried) for carried in frames]
    if settings.idealise:
        ideal = [geometry.idealise(topology, atoms.positions(carried)) for carried in frames]
        frames = [atoms.with_positions(carried, xyz) for carried, xyz in zip(frames, ideal, strict=True)]
        before = [{f"carried_{key}": value for key, value in row.items()} for row in rows]
        rows = [model_geometry(topology, carried) | old for carried, old in zip(frames, before, strict=True)]
    for number, carried in enumerate(frames):
        atoms.write_model(folder / f"model_{frame_number(number, len(frames))}.cif", carried)
    atoms.write_model(folder / "generated.cif", carried)
    if all(not chain.name.strip() for chain in carried[0]):  # mmCIF has no blank chains: keep them in a PDB as well
        atoms.write_model(folder / "generated.pdb", carried)
    write_movie(frames, folder)
    write_rows(
        folder / "geometry.csv",
        [{"frame": n, "time": t} | row for n, (t, row) in enumerate(zip(times, rows, strict=True))],
    )
    start = model_geometry(topology, model)
    scores = {f"{key}_{when}": row[key] for key in start for when, row in (("before", start), ("after", rows[-1]))}
    scores["clashes_worst"] = max(row["clashes"] for row in rows)
    if settings.idealise and isinstance(reference, gemmi.Structure):
        scores["rmsd_idealised"] = metrics.ca_displacement(carried, reference)["rmsd"]
    return scores


def write_movie(frames: Sequence[gemmi.Structure], folder: Path) -> None:
    """Write the models to one file: trajectory.pdb or, where the PDB format cannot hold them, trajectory.cif."""
    obstacle = next(filter(None, map(atoms.pdb_obstacle, frames)), None)
    if obstacle:
        log.trajectory_in_mmcif(obstacle)
    atoms.write_trajectory(folder / ("trajectory.cif" if obstacle else "trajectory.pdb"), frames)


def model_geometry(topology: geometry.Topology, model: gemmi.Structure) -> dict:
    """`geometry.measure` of a model, without the values that it lacks (no CA atoms, for example)."""
    found = geometry.measure(topology, atoms.positions(model))
    return {key: value for key, value in found.items() if np.isfinite(value)}


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Write rows as CSV, headed by their keys."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def write_spread(fit: Fit, others: Sequence[Fit], folder: Path) -> dict:
    """Write seed_spread.mrc, the spread between seeds (Å); return its median and 95th percentile over the mass."""
    spread, distances = fit.spread(others)
    write_map(folder / "seed_spread.mrc", spread)
    return {"seed_spread_median": float(np.median(distances)), "seed_spread_95": float(np.percentile(distances, 95))}


def grid_of(map_: Map) -> Map:
    """Grid of a map, as a map of zeros that takes no memory."""
    return Map(np.broadcast_to(np.float32(0), map_.density.shape), map_.voxel_size, map_.origin)


def write_in_target_frame(case: Case, number: int, folder: Path) -> None:
    """Write frames, generated map and models to the folder target_frame, in the frame of the target's file.

    Maps are on the grid of the target's file, with its voxels or, where these are finer, the initial map's.
    """
    place, back = folder / "target_frame", case.alignments[number].transform.inverse
    place.mkdir(exist_ok=True)
    target, size = case.boxes[number], np.minimum(case.boxes[number].voxel_size, case.initial.voxel_size)
    shape = np.ceil(np.array(target.density.shape) * target.voxel_size / size - 1e-6).astype(int)
    grid = Map(np.broadcast_to(np.float32(0), tuple(shape.tolist())), size, target.origin)
    for path in result_files(folder, FRAMES):
        if path.suffix == ".mrc":
            write_map(place / path.name, resampled(read_map(path), grid, back))
        elif path.name.startswith(("model", "generated")):
            atoms.write_model(place / path.name, back.move(atoms.read_model(path)))
    if carried := sorted(path.name for path in result_files(folder, FRAMES) if path.name.startswith("model")):
        write_movie([atoms.read_model(place / name) for name in carried], place)


def write_assembly(symmetry: Symmetry, folder: Path) -> None:
    """Write the assembly to a folder of that name: frames, generated map and models of the asymmetric unit repeated."""
    place = folder / "assembly"
    place.mkdir(exist_ok=True)
    made = result_files(folder, FRAMES)
    maps = [path for path in made if path.suffix == ".mrc"]
    room = symmetry.enclosing_grid(map(read_map, maps))
    for path in maps:
        write_map(place / path.name, symmetry.copy_map(read_map(path), room))
    for path in made:
        if path.name.startswith(("model", "generated")) and path.suffix == ".cif":
            atoms.write_model(place / path.name, symmetry.copy_model(atoms.read_model(path)))
    if carried := sorted(path.name for path in result_files(place, FRAMES) if path.name.startswith("model")):
        write_movie([atoms.read_model(place / name) for name in carried], place)


def alignment_record(case: Case, number: int) -> dict:
    """Record of a target's superposition, for config.json and transform.json; empty if there was none."""
    if not case.alignments:
        return {}
    found = case.alignments[number]
    return {
        "alignment": found._asdict()
        | {
            "transform": found.transform.matrix.tolist(),
            "transform_is": "4 x 4 matrix from the target's frame to the initial map's, Å",
            "chimerax": found.transform.chimerax(target_number(case.model is not None)),
            "rotation": found.transform.angle,
            "wrong_hand": found.wrong_hand if found.mirrored is not None else None,
        }
    }


def copy_file(source: Path, destination: Path) -> None:
    """Copy a file atomically."""
    with whole_file(destination) as temporary:
        shutil.copyfile(source, temporary)


@dataclass
class Comparison:
    """The initial map as carried, the reference as a map if there is one, and the FSC curves against target and it."""

    start: Map
    truth: Map | None
    curves: dict[str, Curve]


def compare(fit: Fit, case: Case, number: int, generated: Map) -> Comparison:
    """Compare the initial map and the generated map of a fit with the case's target of this number."""
    reference = case.references[number] if case.references else None
    truth = None if reference is None else reference_map(reference, generated, case.initial_resolution)
    start = trajectory.carried_density(case.initial, fit.threshold)  # without the solvent, as the generated map
    return Comparison(start, truth, fsc_curves(start, generated, case.targets[number], truth))


def fsc_curves(start: Map, generated: Map, target: Map, truth: Map | None) -> dict[str, Curve]:
    """Fourier shell correlations, named target_before, target_after and, with a reference, reference_before and _after.

    Args:
        start: the initial map, as carried ("before").
        generated: the generated map ("after").
        target: the target map.
        truth: map of the reference, if there is one.
    """
    against = {"target": target} | ({} if truth is None else {"reference": truth})
    sides = {"before": start, "after": generated}
    return {f"{a}_{when}": metrics.map_fsc(map_, other) for a, other in against.items() for when, map_ in sides.items()}


def score(fit: Fit, case: Case, number: int, generated: Map, compared: Comparison | None = None) -> dict:
    """Score the initial map ("before") and the generated map ("after"), for metrics.json.

    Always: correlation with the target map, FSC = 0.5 with it (Å), mass kept, and consistency of the flow with its
    inverse (Å). With a reference: where FSC falls to 0.5 and 0.143 (Å), a model being simulated at the initial map's
    resolution, 3 Å if unknown. With models of both states: CA RMSD (Å) and TM-score. With a model of the target state:
    its Q-score in the map. For each waypoint: correlation of the initial map and of the frame at its time. With several
    parts: how each moves.

    Args:
        fit: of the target alone.
        case: the inputs.
        number: of the target in the case.
        generated: the generated map.
        compared: as from `compare`, which is called if it is not given.
    """
    target, reference = case.targets[number], case.references[number] if case.references else None
    out: dict[str, Any] = {
        "target": case.target_names[number],
        "mass_kept": mass_kept(case.initial, generated, fit),
        "consistency": fit.consistency(),
    }
    compared = compared or compare(fit, case, number, generated)
    truth, curves = compared.truth, compared.curves
    for when, map_ in (("before", compared.start), ("after", generated)):
        out[f"correlation_with_target_{when}"] = similarity.correlation(map_.density, target.density)
        out[f"fsc_with_target_{when}"] = metrics.resolution_at(*curves[f"target_{when}"], 0.5)
        if truth is not None:
            out[f"fsc_{when}"] = metrics.resolution_at(*curves[f"reference_{when}"], 0.5)
            out[f"fsc_0.143_{when}"] = metrics.resolution_at(*curves[f"reference_{when}"], 0.143)
            out[f"correlation_{when}"] = similarity.correlation(map_.density, truth.density)
    if fit.partitions:
        moves = part_motions(fit.partition(), fit.carry, case.initial, fit.threshold)
        copies = (fit.report or {}).get("symmetry", {}).get("copies", 1)
        out["parts"] = [move._asdict() | ({"copies": copies} if copies > 1 else {}) for move in moves[::copies]]
    if case.waypoints:
        out["waypoints"] = [score_waypoint(fit, compared.start, waypoint) for waypoint in case.waypoints]
    if case.model is not None and isinstance(reference, gemmi.Structure):
        moved = fit.move(case.model)
        found = metrics.ca_displacement(moved, reference, case.model)
        names = {
            "initial_rmsd": "rmsd_before",
            "rmsd": "rmsd_after",
            "median": "median_after",
            "max": "max_after",
        }
        names |= {
            "moved_rmsd": "moved_rmsd_after",
            "moved_initial_rmsd": "moved_rmsd_before",
            "moved_n": "moved_n",
        }
        out |= {name: found[key] for key, name in names.items() if key in found}
        for when, carried in (("before", case.model), ("after", moved)):
            out[f"tm_score_{when}"] = metrics.tm_score(carried, reference)
    if isinstance(reference, gemmi.Structure):
        for when, map_ in (("before", compared.start), ("after", generated)):
            out[f"q_score_{when}"] = qscore.q_score(map_, reference)
    return out


def score_waypoint(fit: Fit, start: Map, waypoint: Waypoint) -> dict:
    """Correlation and FSC = 0.5 (Å) with a waypoint, of the carried initial map and of the frame at its time."""
    out: dict[str, Any] = {"waypoint": waypoint.name, "time": waypoint.time}
    for when, map_ in (("before", start), ("after", next(fit.frames([waypoint.time])))):
        out[f"correlation_{when}"] = similarity.correlation(map_.density, waypoint.map.density)
        out[f"fsc_{when}"] = metrics.resolution_at(*metrics.map_fsc(map_, waypoint.map), 0.5)
    return out


def reference_map(reference: gemmi.Structure | Map, like: Map, resolution: float | None) -> Map:
    """Reference as a map on the grid of `like`; a model is simulated at the resolution (Å; 3 Å if None)."""
    if isinstance(reference, Map):
        return reference
    return simulation.simulate(reference, resolution or 3.0, like=like)


def mass_kept(initial: Map, generated: Map, fit: Fit) -> float:
    """Mass of the generated map relative to the mass of the initial map that was carried."""
    carried = carried_mass(initial.density, fit.threshold).sum(dtype=np.float64)
    left = carried_mass(generated.density, fit.threshold).sum(dtype=np.float64)
    return float(left / carried)


def describe(fit: Fit, case: Case, settings: Any) -> dict:
    """Everything that decided a run, for config.json: settings, versions, checksums, what was chosen by rule."""
    report = {key: value for key, value in fit.report.items() if key != "origin"}
    return {
        "command": sys.argv,
        "settings": settings_of(settings),
        "recipe": asdict(fit.config),
        "initial": next(iter(case.files)),
        "targets": case.target_names,
        **({"failed": case.failed} if case.failed else {}),
        "inputs": {
            n: {"file": str(p.resolve()), "sha256": case.sums.get(n) or checksum(p)} for n, p in case.files.items()
        },
        "resolutions": {"initial": case.initial_resolution, "targets": case.target_resolutions},
        "waypoints": [{"waypoint": waypoint.name, "time": waypoint.time} for waypoint in case.waypoints],
        "chosen": report,
        "contours": case.contours,
        "doubts": [doubt._asdict() for doubt in case.doubts],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "processes": jax.process_count(),
        "device": jax.local_devices()[0].device_kind,
    }


def settings_of(settings: Any) -> dict:
    """Values of the flags that this program defines, without those of libraries."""
    modules = settings.flags_by_module_dict()
    own = [name for name in modules if name.startswith(f"{__package__}.") or name in ("__main__", sys.argv[0])]
    return {flag.name: flag.value for name in own for flag in modules[name]}


def version(package: str) -> str:
    """Installed version of a package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def write_losses(path: Path, fit: Fit, name: str) -> None:
    """Write loss.csv: for each step the stage, the name of its loss, the step and the loss, under the target's name.

    With half-maps also, where it was computed, the loss by the half-map that the fit does not see.
    """
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["stage", "loss", "step", name] + ["other half-map"] * bool(fit.validation_history))
        for number, (stage, history) in enumerate(zip(fit.config.stages, fit.history, strict=True)):
            judged = fit.validation_history[number] if fit.validation_history and stage.loss == "matched" else []
            last = [min(train.CHUNK * (k + 1), len(history)) - 1 for k in range(len(judged))]
            seen = dict(zip(last, judged, strict=True))
            for step, (value,) in enumerate(history):
                rows.writerow([number, stage.loss, step, f"{value:.8g}", *(f"{v:.8g}" for v in seen.get(step, []))])


def log_preparation(case: Case, report: dict) -> None:
    """Print what is fitted: each map's levels, the symmetry, and the blur between the maps.

    Args:
        case: what is fitted; its `contours` may be empty.
        report: what was chosen by rule, from `on_prepared` of `morph`; of all targets, not of one process's alone.
    """
    several = len(case.target_names) > 1
    targets = [f"target map {name}" if several else "target map" for name in case.target_names]
    contours = case.contours or [None] * (1 + len(targets))
    log_map("initial map", report["initial"], contours[0])
    for used in report.get("waypoints", []):
        log_map(f"waypoint map (time {used['time']:g})", used)
    for name, used, contour in zip(targets, report["targets"], contours[1:], strict=False):
        log_map(name, used, contour)
    if found := report.get("symmetry"):
        log.symmetry(found["name"], found["centre"])
    variances = zip(
        targets, report["quieting_variance"], report["blur_variance"], report["sharpening_variance"], strict=False
    )
    for name, quieting, blur, sharpening in variances:
        if quieting:
            log.target_noisy(name, quieting**0.5)
        log.blur(name, blur)
        if sharpening:
            log.target_sharpened(name, sharpening**0.5)


def log_map(name: str, used: dict, contour: dict | None = None) -> None:
    """Print a map's threshold and, from what `contour.describe` says of it, its display contour and volume."""
    threshold = log.Level(used["threshold"], used["threshold_chosen"], used["volume"], used["share_of_mass"])
    if contour is None:
        log.map_levels(name, threshold)
        return
    display = log.Level(*(contour[f"contour{key}"] for key in ("", "_chosen", "_volume", "_share_of_mass")))
    log.map_levels(name, threshold, display)
    volume = contour["body_volume"]
    if volume:
        log.molecular_volume(volume, BODY, volume / DALTON / 1e3)
    for doubt in threshold_doubts(used, volume):
        log.map_doubtful(name, doubt)


def threshold_doubts(used: dict, volume: float | None) -> list[str]:
    """Find what is doubtful about the density that is carried.

    Args:
        used: the threshold and what it encloses, as from `prepare.apply_threshold`.
        volume: molecular volume (Å³); None where noise hides it.
    """
    found = []
    if volume is None:
        found.append("noise is as strong as the molecule at its surface, so its volume cannot be estimated")
    if used["clear"] is not None and used["clear"] < CLEAR:
        found.append(
            f"solvent is carried along, as the threshold is only {used['clear']:.1f} standard deviations of its noise "
            "above it"
        )
    if used["specks"] > DUST:
        found.append(f"{100 * used['specks']:.0f} % of the voxels above the threshold are dust, which is left out")
    if volume and used["volume"] < THIN * volume:
        share = 100 * used["volume"] / volume
        found.append(f"the threshold encloses {share:.0f} % of the molecular volume, the rest is lost in noise")
    return found


def log_scores(target: str, scores: dict, kind: str) -> None:
    """Print a target's metrics.json: a table of scores, and how its bodies move, which are of a `kind`."""
    rows = log.score_rows(scores)
    for waypoint in scores.get("waypoints", []):
        values = (f"{waypoint[f'correlation_{when}']:.3f}" for when in ("before", "after"))
        rows.append(log.Score(f"correlation with the waypoint at {waypoint['time']:g}", *values))
    if "rmsd_idealised" in scores:
        rows.append(log.Score("CA RMSD of the idealised model [Å]", "", f"{scores['rmsd_idealised']:.2f}"))
    log.scores(target, rows)
    if parts := scores.get("parts"):
        keys = ("share_of_mass", "turn", "shift", "from_rigid")
        log.rigid_bodies(
            kind, [log.RigidBody(*(part[key] for key in keys), copies=part.get("copies", 1)) for part in parts]
        )
    if "seed_spread_median" in scores:
        log.seed_spread(scores["seed_spread_median"], scores["seed_spread_95"])


def load_reference(path: Path, initial: Map, transform: Transform, settings: dict) -> gemmi.Structure | Map:
    """Read the reference: a model, or a map, which is resampled on the initial map's grid.

    Args:
        path: the file; a map by its suffix.
        initial: the initial map.
        transform: by which the target was superposed on the initial map, and with it the reference is.
        settings: may have `target_voxel_size` (Å), for a map without a voxel size in its header, and `all_models`.
    """
    if path.name.lower().endswith(MAP_SUFFIXES):
        size = None if has_voxel_size(path) else settings.get("target_voxel_size")
        return resampled(read_map(path, size), initial, transform)
    model = atoms.read_model(path, settings.get("all_models", False))
    return model if transform is IDENTITY else transform.move(model)
