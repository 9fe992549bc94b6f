"""What a finished run has to tell, and the files that tell it: a page, pictures, maps and scripts for others."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import gemmi
import numpy as np
from scipy import ndimage

from cryotrans_jax import align, atoms, metrics, plots, trajectory
from cryotrans_jax.files import InputError, checksum, write_file
from cryotrans_jax.maps import Map, write_map
from cryotrans_jax.morphing import Fit
from cryotrans_jax.motion import CELL, displacement_map, distances, mass_points, sample, stretches

from . import exchange, film, inputs, page, results, run_folder
from .cautions import STRETCH, Caution, Measured, cautions, chosen, number, target_name, warnings
from .film import REACH, ROOM, Frame, Moved, part

SHOWN = 2_000_000  # voxels of a sliced volume: with the frames the page stays below 20 MB however noisy the maps are
STILLS = 5  # pictures of the page at most
FOLDS = 20_000  # points at which the flow is looked at for folds
RIM = 2  # voxels at the sides of the box
SAME = 1e-3  # by which correlations of the same maps may differ, their rounding apart


@dataclass
class Story:
    """A finished run of one target: its folder, which holds the rest, its fit and its maps.

    `initial` is the part of the initial map that is carried, as in the frame at time 0; `target` is None where the
    file is gone; `curves` are as from `results.fsc_curves`; `model` is the initial state's.
    """

    folder: Path
    fit: Fit
    initial: Map
    generated: Map
    target: Map | None
    curves: dict[str, plots.Curve] = field(default_factory=dict)
    model: gemmi.Structure | None = None


@dataclass
class Views:
    """What the page and the pictures show: densities on one grid about the molecule, and how well two of them agree.

    "difference" is the generated map, blurred as the target is and scaled to it, less the target; `matched` are the
    correlations with the target, blurred likewise, of the initial and the generated map.
    """

    volumes: dict[str, np.ndarray]
    voxel_size: np.ndarray
    origin: np.ndarray
    matched: tuple[float, float] | None


def tell(story: Story, whole: bool = True) -> list[str]:
    """Write the files for other programs and, if `whole`, the page and the pictures of a finished run.

    Returns the warnings, which are in metrics.json as well.
    """
    config, scores = run_folder.read_config(story.folder), run_folder.read_scores(story.folder)
    moved = moved_by(story)
    write_map(story.folder / "displacement.mrc", displacement_map(moved.motion, moved.points, story.generated))
    if story.model is not None:
        end = story.fit.move(story.model)
        far = np.linalg.norm(atoms.positions(end) - atoms.positions(story.model), axis=-1)
        atoms.write_model(story.folder / "displacement.cif", atoms.with_b_factors(end, far))
    if story.curves:
        exchange.write_fsc(story.folder, story.curves)
    write_scripts(story.folder, config, moved.top)
    views = views_of(story, config, moved) if whole else None
    found = cautions(config, scores, measured(story, moved, views, scores))
    scores["warnings"] = warnings(found)
    run_folder.write_json(story.folder / "metrics.json", scores)
    if whole:
        write_report(story, config, scores, moved, views, found)
    return scores["warnings"]


def write_report(
    story: Story, config: dict, scores: dict, moved: Moved, views: Views, found: Sequence[Caution]
) -> None:
    """Write report.html, and the pictures in it as files."""
    folder = story.folder
    drawings = {"slices": plots.slices_drawing(views.volumes, views.voxel_size)}
    if story.curves:
        drawings["fsc"] = plots.fsc_drawing(story.curves)
    if (story.folder / "loss.csv").is_file():
        drawings["loss"] = plots.loss_drawing(losses(story.folder / "loss.csv"))
    for name, drawing in drawings.items():
        write_file(folder / f"{name}.svg", plots.svg(drawing))
        write_file(folder / f"{name}.png", plots.png(drawing))
    frames = film.frames(folder, config["settings"]["frames"], story.initial, story.generated, moved)
    pictures = film.pictures(frames, levels(config)["initial"], moved)
    write_file(folder / "morph.gif", plots.animation(pictures))
    stills = film.evenly([*zip(frames, pictures, strict=True)], STILLS)
    text = page.build(
        config=config,
        scores=scores,
        found=found,
        drawings={name: plots.svg(drawing) for name, drawing in drawings.items()},
        stills=[(frame.time, plots.still(picture)) for frame, picture in stills],
        data=shown(config, frames, moved, views),
        made=[path.name for path in folder.iterdir()],
    )
    write_file(story.folder / "report.html", text)


def moved_by(story: Story) -> Moved:
    """The story's motion."""
    points, rho = mass_points(story.initial, story.fit.threshold)
    motion = sample(story.fit.carry, points.min(0) - ROOM, points.max(0) + ROOM)
    far = max(float(np.percentile(distances(motion, points), 99)), 1.0)
    unit = 10 ** np.floor(np.log10(far)) / 10
    return Moved(points, rho, motion, float(np.ceil(far / unit) * unit))


def measured(story: Story, moved: Moved, views: Views | None, scores: dict) -> Measured:
    """What `cautions` wants to know besides the scores; the folder has a map of where the flow folds, if it does.

    Without views, which are of the molecule, the scores' correlations stand for theirs.
    """
    whole_box = tuple(scores.get(f"correlation_matched_{when}") for when in ("before", "after"))
    factors, rho = stretches(moved.motion, moved.points), moved.rho
    torn = (factors[:, 0] < 1 / STRETCH) | (factors[:, 1] > STRETCH)
    mass = np.maximum(story.generated.density, 0)
    inner, whole = (part.sum(dtype=np.float64) for part in (mass[(slice(RIM, -RIM),) * 3], mass))
    return Measured(
        matched=views.matched if views else None if None in whole_box else whole_box,
        torn=float(rho[torn].sum() / rho.sum()),
        at_edge=float(1 - inner / whole) if whole else 0.0,
        farthest=float(distances(moved.motion, moved.points).max()),
        outside=outside(story, moved),
        folded=folded(story, moved),
    )


def outside(story: Story, moved: Moved) -> float:
    """The share of the mass that is carried out of the initial map's box."""
    end = moved.points + moved.motion.knots(moved.points)[-1]
    at = (end - story.initial.origin) / story.initial.voxel_size + 0.5
    out = ((at < 0) | (at > story.initial.density.shape)).any(-1)
    return float(moved.rho[out].sum() / moved.rho.sum())


def folded(story: Story, moved: Moved) -> float:
    """The share of the mass where the flow's Jacobian has no positive determinant; if any, folded.mrc is 1 there.

    Of FOLDS points at most.
    """
    every = -(-len(moved.points) // FOLDS)
    points, rho = moved.points[::every], moved.rho[::every]
    wrong = ~(story.fit.volumes(points) > 0)
    (story.folder / "folded.mrc").unlink(missing_ok=True)
    if wrong.any():
        like, shown = story.initial, np.zeros(story.initial.density.shape, bool)
        at = np.rint((points[wrong] - like.origin) / like.voxel_size).astype(int)
        shown[tuple(at.clip(0, np.array(shown.shape) - 1).T)] = True
        wide = np.maximum(np.rint(CELL * every ** (1 / 3) / like.voxel_size), 1).astype(int)
        shown = ndimage.maximum_filter(shown, size=tuple(wide.tolist()))
        write_map(story.folder / "folded.mrc", Map(shown.astype(np.float32), like.voxel_size, like.origin))
    return float(rho[wrong].sum() / rho.sum())


def views_of(story: Story, config: dict, moved: Moved) -> Views:
    """What is shown of the story: all that is carried, on its whole way, and the target."""
    places = [moved.points + shift for shift in moved.motion.knots(moved.points)]
    if story.target is not None:
        places.append(mass_points(story.target, config["chosen"]["targets"][number(config)]["threshold"])[0])
    low, high = np.min([p.min(0) for p in places], 0) - REACH, np.max([p.max(0) for p in places], 0) + REACH
    initial, generated = (part(map_, low, high) for map_ in (story.initial, story.generated))
    volumes = {"initial": initial.density, "generated": generated.density}
    matched = None
    if story.target is not None:
        target = part(story.target, low, high)
        blur = chosen(config, "blur_variance") or 0.0
        start, goal = metrics.matched(initial, target, blur)
        end, _ = metrics.matched(generated, target, blur)
        volumes = {"initial": initial.density, "target": target.density, "generated": generated.density}
        volumes["difference"] = end - goal
        matched = metrics.correlation(start, goal), metrics.correlation(end, goal)
    maps = {name: film.resampled(replace(initial, density=density), SHOWN) for name, density in volumes.items()}
    grid = maps["initial"]
    return Views({name: map_.density for name, map_ in maps.items()}, grid.voxel_size, grid.origin, matched)


def shown(config: dict, frames: Sequence[Frame], moved: Moved, views: Views) -> dict:
    """The numbers that the page's script works with."""
    view, centre, sides = film.scene(moved)
    first, contours = np.maximum(views.volumes["initial"], 0), levels(config)
    weights = [first.sum(other) + 1e-12 for other in ((1, 2), (0, 2), (0, 1))]
    return {
        "grid": page.grid(Map(first, views.voxel_size, views.origin)),
        "middle": [int(np.average(np.arange(len(w)), weights=w)) for w in weights],
        "volumes": page.packed_volumes(views.volumes),
        "film": page.packed_frames(frames, contours["initial"], moved.top),
        "levels": contours,
        "palette": plots.PALETTE,
        "centre": centre.tolist(),
        "sides": sides.tolist(),
        "view": view.tolist(),
    }


def write_scripts(folder: Path, config: dict, top: float) -> None:
    """Write view.cxc for ChimeraX in a target's folder and, if there, in its folders target_frame and assembly.

    Displacements are coloured up to `top` (Å). The assembly's script leaves out the target map, which shows one unit.
    """
    name, settings, target = target_name(config), config["settings"], None
    if name:
        size, negated = settings.get("target_voxel_size"), settings.get("invert") in ("target", "both")
        target = exchange.Target(Path(config["inputs"][name]["file"]), pose(config), size, negated)
    own = target and target._replace(pose=align.IDENTITY)
    for inside, shown in (("", target), ("target_frame", own), ("assembly", None)):
        if (folder / inside).is_dir():
            text = exchange.chimerax_script(folder / inside, levels(config), top, shown)
            write_file(folder / inside / "view.cxc", text)


def levels(config: dict) -> dict[str, float]:
    """At which level to look at the initial map and at the folder's target; in older runs their thresholds."""
    seen, used = config.get("contours"), config["chosen"]
    initial, target = (
        (seen[0], seen[1 + number(config)]) if seen else (used["initial"], used["targets"][number(config)])
    )
    return {
        name: max(float(told.get("contour", told.get("threshold"))), 1e-9)  # surfaces are of what is above 0
        for name, told in (("initial", initial), ("target", target))
    }


def losses(path: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Of each stage the name, the losses, and those by the other half-map (nan where it was not asked).

    From a loss.csv. Raises InputError where it is none.
    """
    stages: dict[tuple[str, str], list[tuple[float, float]]] = {}
    try:
        with path.open(newline="") as file:
            for stage, name, _, value, *judged in list(csv.reader(file))[1:]:
                stages.setdefault((stage, name), []).append((float(value), float(*judged or ["nan"])))
    except (ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path} is not as a run writes it ({error}): remove it to do without the figure") from error
    return [(name, *np.array(values).T) for (_, name), values in stages.items()]


def reread(run_dir: Path, initial: str | None = None, target: str | None = None) -> Story:
    """Read the story of a finished run from its folder.

    Args:
        run_dir: the folder of the run of one target.
        initial: where the initial map is now, if it is no longer where the run read it.
        target: where the target map is now, likewise.

    Raises:
        InputError: the folder is damaged or not whole, or a path that is given is not that of the run's map.
    """
    config, scores = run_folder.read_config(run_dir), run_folder.read_scores(run_dir)
    fit, generated = run_folder.load_fit(run_dir), run_folder.load_map(run_dir, "generated.mrc")
    start, goal = first_frame(run_dir, config, fit, initial), goal_of(config, scores, generated, target)
    if run_folder.has(run_dir, "loss.csv"):
        run_folder.verify(run_dir, "loss.csv")
    if run_folder.has(run_dir, "fsc.csv"):
        curves = exchange.read_fsc(run_folder.verify(run_dir, "fsc.csv"))
    else:
        curves = results.fsc_curves(start, generated, goal, truth_of(config, generated)) if goal else {}
    first = config["settings"]["frames"] > 1  # a single frame is the last one
    whole = first and run_folder.has(run_dir, "model_00.cif")
    model = atoms.read_model(run_folder.verify(run_dir, "model_00.cif")) if whole else None
    return Story(run_dir, fit, start, generated, goal, curves, model)


def unchanged(config: dict, name: str | None, path: str | None = None) -> Path | None:
    """The file of an input of the run, where it still is what it was; None where it is gone or another now.

    Raises InputError where a `path` is given and no such file is there.
    """
    entry = config["inputs"].get(name)
    found = Path(path or (entry or {}).get("file", ""))
    if entry and found.is_file() and checksum(found) == entry["sha256"]:
        return found
    if path:
        raise InputError(f"{path} is not the run's {name} (it is gone, or checksums differ): give the path of that map")
    return None


def first_frame(run_dir: Path, config: dict, fit: Fit, given: str | None) -> Map:
    """What is carried of the initial map: the frame at time 0, or where there is none from the map itself."""
    frames = (run_folder.has(run_dir, f"frame_{k:02d}.mrc") for k in (0, 1))
    if not given and all(frames):  # a single frame is the last one
        return run_folder.load_map(run_dir, "frame_00.mrc")
    path = unchanged(config, config["initial"], given)
    if path is None:
        raise InputError(f"the run's initial map {config['initial']} is gone: say where it is now with --initial")
    masks = inputs.masks_used(config, config["initial"], config["settings"].get("mask"))
    initial = inputs.read_as_used(config, path, "initial", masks)
    return trajectory.carried_part(initial, fit.threshold)


def goal_of(config: dict, scores: dict, generated: Map, given: str | None) -> Map | None:
    """The target map as it was fitted; None where that cannot be had any more.

    It is what the run fitted to if the generated map correlates with it as it did then.
    """
    name = target_name(config)
    path = unchanged(config, name, given)
    if path is None:
        return None
    flags = config["settings"].get("target_mask") or [None]
    try:
        masks = inputs.masks_used(config, name, flags[number(config)] if len(flags) > 1 else flags[0])
    except InputError:
        return None
    target = align.resampled(inputs.read_as_used(config, path, "target", masks), generated, pose(config))
    now, then = metrics.correlation(generated.density, target.density), scores["correlation_with_target_after"]
    return target if abs(now - then) < SAME else None


def pose(config: dict) -> align.Transform:
    """The motion by which the run laid the target over the initial map."""
    told = config.get("alignment")
    return align.Transform.of(told["transform"]) if told else align.IDENTITY


def truth_of(config: dict, generated: Map) -> Map | None:
    """The reference as a map; None where the run had none, or it is gone."""
    names = config["settings"].get("reference") or [None]
    path = unchanged(config, names[number(config)] if len(names) > 1 else names[0])
    if path is None:
        return None
    reference = results.load_reference(path, generated, pose(config), config["settings"])
    return results.reference_map(reference, generated, config["resolutions"]["initial"])
