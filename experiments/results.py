"""Fit a case (maps, perhaps models), and write the files and scores of the run's folder."""

import csv
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cryotrans_jax.density import similarity
from cryotrans_jax.density.contour import BODY
from cryotrans_jax.density.thresholds import DALTON
from cryotrans_jax.fit.morph import morph
from cryotrans_jax.fit.options import Options, Resolutions, Running, Thresholds, Waypoint
from cryotrans_jax.fit.progress import Progress
from cryotrans_jax.fit.recipes import Paper, Schedule
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.terms import Matched
from cryotrans_jax.io import memory
from cryotrans_jax.io.files import InputError, whole_file
from cryotrans_jax.io.maps import Map, write_map
from cryotrans_jax.scores import metrics

from . import domains, log, prechecks, refine, trust, vectors
from .case import Case, replaced_folders, target_folders
from .frames import write_all_frames, write_models
from .pages import reading, story
from .record import alignment_record
from .result_frame import frame_record, frame_scores, in_result_frame
from .run_folder import (
    check_free,
    replacing_run,
    results_in,
    sign,
    updating_checksums,
    write_json,
)
from .score import compare, score
from .score_rows import Score, score_rows
from .settings import FitSettings, OutputSettings


def check_disk_space(case: Case, settings: OutputSettings, out_dir: Path, targets: int) -> None:
    """Raise InputError where the disk has no room for the maps of this number of targets."""
    folders_each = 2 if case.originals and settings.frame == "target" else 1
    needed = targets * folders_each * (settings.frames + 8) * 4 * case.initial.density.size
    if (free := shutil.disk_usage(out_dir).free) < needed:
        raise InputError(
            f"the results take about {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free on the disk of {out_dir}: "
            "make room, give another --out_dir, or fewer --frames"
        )


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
        overwrite: whether another run's results may be replaced.

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
    case: Case, settings: FitSettings, share: Sequence[int] | None = None, seed_number: int = 0, keeper: Any = None
) -> Fit:
    """Fit a case, showing progress.

    Args:
        settings: what decides the fit besides its inputs.
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
            options_of(case, settings, settings.seed + seed_number),
            model=case.model,
            halves=case.halves or None,
            waypoints=[Waypoint(w.map, w.time, w.resolution) for w in case.waypoints],
            progress=progress,
            running=Running(
                targets=share or (),
                resume_from=keeper and keeper.load_snapshot(seed_number),
                on_snapshot=keeper and partial(keeper.keep, seed_number),
                on_setback=say,
                on_prepared=partial(log_preparation, case) if first else lambda report: None,
            ),
        )


def options_of(case: Case, settings: FitSettings, seed: int) -> Options:
    """The options of the fit of a case from this seed.

    Raises:
        InputError: a setting is of the recipe paper, and the recipe is another one.
    """
    recipe: Any = settings.recipe
    if case.config is not None:
        recipe = replace(case.config, seed=seed)
    elif recipe == "paper":
        recipe = Paper(settings.bin, case.schedule or Schedule())
    elif settings.bin != 1:
        raise InputError(f"bin={settings.bin} is for the recipe paper: the recipe {recipe} chooses its own")
    elif case.schedule:
        raise InputError(f"a schedule is for the recipe paper: the recipe {recipe} chooses its own")
    volume = 1e3 * settings.mass_kda * DALTON if settings.mass_kda else None
    return Options(
        recipe=recipe,
        seed=seed,
        steps=settings.steps,
        align="none",  # the targets are superposed already
        thresholds=Thresholds(settings.initial_threshold, settings.target_threshold, volume),
        resolutions=Resolutions(case.initial_resolution, case.target_resolutions),
        parts=case.parts,
        part_rigidity=tuple(case.part_rigidity),
        symmetry=case.symmetry,
        still=case.still,
        preparation=case.preparation,
    )


def write(
    fit: Fit,
    case: Case,
    settings: OutputSettings,
    description: dict,
    out_dir: Path,
    share: Sequence[int],
    others: Sequence[Fit] = (),
    withheld: Sequence[dict] = (),
) -> dict[str, str]:
    """Write the results of each target, and print its scores.

    Results of an earlier run are removed, and restored if the new ones cannot be written.

    Args:
        description: of the run, as from `record.describe`.
        out_dir: the run's folder; each target's folder is a run by itself.
        share: numbers of the targets of the fit.
        others: fits of the same targets from other seeds.
        withheld: tests with hidden regions of the only target, as from `withhold.test`.

    Returns:
        Why targets failed, by their names.
    """
    failed = {case.target_names[number]: why for number, why in zip(share, fit.failed, strict=False) if why}
    with replacing_run(replaced_folders(case, out_dir, share)):
        stories = []
        for place, number in enumerate(share):
            one, folder = fit.select([place]), target_folders(case, out_dir)[number]
            same = [seed for seed in (other.select([place]) for other in others) if not any(seed.failed)]
            if not any(one.failed):
                stories.append(write_target(one, case, settings, description, folder, number, same))
                if withheld:
                    stories[-1].scores["withheld"] = [*withheld]
        for region in withheld:
            log.withheld(region)
        for entry in stories:  # once all results are there
            with updating_checksums(entry.folder):
                found = story.write_story(entry, whole=settings.report)
            for warning in found:
                log.target_warning(entry.scores["target"], warning)
        for name, why in (failed | (case.failed if 0 in share else {})).items():
            (out_dir / name).mkdir(exist_ok=True)
            write_json(out_dir / name / "failed.json", {"target": name, "failed": why})
    log.results_written(out_dir, settings.report, len(case.targets) + len(case.failed))
    return failed | case.failed


def write_target(
    fit: Fit,
    case: Case,
    settings: OutputSettings,
    description: dict,
    folder: Path,
    number: int,
    others: Sequence[Fit],
) -> reading.Story:
    """Write the results of a fit of one target, but for its story, and print its scores.

    Args:
        description: of the run, as from `record.describe`.
        number: of the target in the case.
        others: fits of it from other seeds that did not fail.
    """
    aligned, case = case, in_result_frame(case, number, fit)
    name, target = case.target_names[number], case.targets[number]
    folder.mkdir(parents=True, exist_ok=True)
    alignment = alignment_record(case, number, settings.error)
    config = {"target": name} | alignment | frame_record(fit) | description
    write_json(folder / "config.json", config)
    if alignment:
        write_json(folder / "transform.json", alignment["alignment"])
    fit.save(folder / "checkpoint")
    write_losses(folder / "loss.csv", fit, name)
    if fit.partitions:
        write_map(folder / "parts.mrc", fit.parts_map())
    last, places = write_all_frames(fit, case, number, settings, folder)
    compared = compare(fit, case, number, last)
    scores = score(fit, case, number, last, compared) | frame_scores(fit)
    scores |= write_unexplained(compared.start, last, target, description["chosen"]["blur_variance"][number], folder)
    errors = trust.predict(fit, aligned, case, number, last) if settings.error else None
    if errors is not None:
        scores |= trust.write(errors, case.model, last, folder)
    domains.describe(scores.get("parts", []), fit, case.model, errors)
    vectors.write(fit, errors, last, folder)
    if case.model is not None:
        reference = case.references[number] if case.references else None
        of_atoms = None if errors is None else errors.of_atoms(case.model)
        more, moved = write_models(fit, case.model, settings, places, reference, of_atoms)
        scores |= more
        if of_atoms is not None:
            refine.write(moved, of_atoms, case, number, folder)
    if others:
        scores |= write_spread(fit, others, folder)
    scores["peak_mib"] = memory.peak() / 2**20
    sign(folder)
    log_scores(name, scores, "rigid body" if case.parts == "auto" else "part")
    return reading.Story(folder, config, scores, fit, compared.start, last, target, compared.curves, case.model)


def write_unexplained(start: Map, generated: Map, target: Map, variance: float, folder: Path) -> dict:
    """Write unexplained.mrc, the target less the generated map at the target's resolution.

    It is above zero where the target has more density.

    Args:
        generated: the generated map; blurred and scaled to the target before the difference is taken.
        variance: of the blur between the maps (Å²).
        folder: where to write.

    Returns:
        Correlations with the target at its resolution before and after, and the fraction of the generated map's mass
        for which the target has no density.
    """
    end, goal = metrics.matched(generated, target, variance)
    write_map(folder / "unexplained.mrc", replace(target, density=goal - end))
    before, after = similarity.correlation(*metrics.matched(start, target, variance)), similarity.correlation(end, goal)
    lacking = metrics.missing_mass(end, goal, target.voxel_size, Matched.nearby)
    return {"correlation_matched_before": before, "correlation_matched_after": after, "target_lacks": lacking}


def write_spread(fit: Fit, others: Sequence[Fit], folder: Path) -> dict:
    """Write seed_spread.mrc, the spread between seeds (Å); return its median and 95th percentile over the mass."""
    spread, distances = fit.spread(others)
    write_map(folder / "seed_spread.mrc", spread)
    return {"seed_spread_median": float(np.median(distances)), "seed_spread_95": float(np.percentile(distances, 95))}


def write_losses(path: Path, fit: Fit, name: str) -> None:
    """Write loss.csv: for each step the stage, the name of its loss, the step and the loss, under the target's name."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["stage", "loss", "step", name])
        for number, (stage, history) in enumerate(zip(fit.config.stages, fit.history, strict=True)):
            rows.writerows([number, stage.label, step, f"{value:.8g}"] for step, (value,) in enumerate(history))


def log_preparation(case: Case, report: dict) -> None:
    """Print what is fitted: each map's levels, the symmetry, and the blur between the maps.

    Args:
        case: what is fitted; its `contours` may be empty.
        report: what was chosen by rule, from `on_prepared` of `morph`; of all targets, not of one process's alone.
    """
    several = len(case.target_names) > 1
    targets = [f"target map {name}" if several else "target map" for name in case.target_names]
    contours = case.contours or [None] * (1 + len(targets))
    log_map("initial map", report["initial"], contours[0], outlined=case.model is not None)
    for used in report.get("waypoints", []):
        log_map(f"waypoint map (time {used['time']:g})", used)
    for name, used, contour in zip(targets, report["targets"], contours[1:], strict=False):
        log_map(name, used, contour)
    if found := report.get("symmetry"):
        log.symmetry(found["name"], found["centre"])
    keys = ("quieting_variance", "noisy", "blur_variance", "sharpening_variance")
    for name, quieting, noisy, blur, sharpening in zip(targets, *(report[key] for key in keys), strict=False):
        if quieting:
            log.target_filtered(name, quieting**0.5, noisy)
        log.blur(name, blur)
        if sharpening:
            log.target_sharpened(name, sharpening**0.5)


def log_map(name: str, used: dict, contour: dict | None = None, outlined: bool = False) -> None:
    """Print a map's threshold and, from what `contour.describe` says of it, its display contour and volume.

    Args:
        outlined: whether a model shows where its molecule is.
    """
    threshold = log.Level(used["threshold"], used["threshold_chosen"], used["volume"], used["share_of_mass"])
    if contour is None:
        log.map_levels(name, threshold)
        return
    display = log.Level(*(contour[f"contour{key}"] for key in ("", "_chosen", "_volume", "_share_of_mass")))
    log.map_levels(name, threshold, display)
    volume = contour["body_volume"]
    if volume:
        log.molecular_volume(volume, BODY, volume / DALTON / 1e3)
    for doubt in prechecks.threshold_doubts(used, volume, outlined):
        log.map_doubtful(name, doubt)


def log_scores(target: str, scores: dict, kind: str) -> None:
    """Print a target's metrics.json: a table of scores, and how its bodies move, which are of a `kind`."""
    rows = score_rows(scores)
    for waypoint in scores.get("waypoints", []):
        values = (f"{waypoint[f'correlation_{when}']:.3f}" for when in ("before", "after"))
        rows.append(Score(f"correlation with the waypoint at {waypoint['time']:g}", *values))
    if "rmsd_idealised" in scores:
        rows.append(Score("CA RMSD of the idealised model [Å]", "", f"{scores['rmsd_idealised']:.2f}"))
    if "verdict" in scores:
        log.verdict(target, scores["verdict_text"])
    log.scores(target, rows)
    if parts := scores.get("parts"):
        keys = ("share_of_mass", "turn", "shift", "from_rigid")
        log.rigid_bodies(
            kind,
            [log.RigidBody(*(part[key] for key in keys), part.get("copies", 1), part.get("error")) for part in parts],
        )
    if frame := scores.get("result_frame"):
        log.result_frame(frame, scores.get("still_rotation"), scores.get("still_translation"))
    if "seed_spread_median" in scores:
        log.seed_spread(scores["seed_spread_median"], scores["seed_spread_95"])
