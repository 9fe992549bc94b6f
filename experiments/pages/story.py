"""Write what presents a finished run: the report, its pictures, and maps and scripts for other programs."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import gemmi
import numpy as np
from scipy import ndimage

from cryotrans_jax import plots
from cryotrans_jax.density import align, similarity
from cryotrans_jax.fit import trajectory
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.strain import SAMPLE, is_stretched, jacobians
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError, checksum, write_file
from cryotrans_jax.io.maps import Map, write_map
from cryotrans_jax.motion.displacement import CELL, displacement_map, distances, mass_points, sample_motion
from cryotrans_jax.scores import metrics
from cryotrans_jax.scores.confidence import ErrorModel

from .. import exchange, finished, run_folder, score
from ..masks import masks_used, read_as_used
from . import film, packing, page, pictures, places, scene, words
from .cautions import Caution, Measured, cautions, chosen, target_index, target_name, warnings
from .film import REACH, ROOM, CarriedMass, Frame, crop

SHOWN = 2_000_000  # voxels of a sliced volume: with the frames the page stays below 20 MB for maps of any noise
STILLS = 5  # pictures on the page at most
RIM = 2  # voxels that count as the sides of the box
CHAINS = 6  # whose residues' errors are plotted, at most
BOUNDS = 0.68, 0.9  # fractions of residues within the plotted errors
SAME = 1e-3  # difference allowed between correlations of the same maps, which rounding explains


@dataclass
class Story:
    """A finished run of one target.

    Attributes:
        folder: of its results.
        config: config.json.
        scores: metrics.json.
        fit: of this target.
        initial: the part of the initial map that is carried, as in the frame at time 0.
        generated: the generated map.
        target: the target map; None where its file is gone.
        curves: as from `score.fsc_curves`.
        model: of the initial state.
    """

    folder: Path
    config: dict
    scores: dict
    fit: Fit
    initial: Map
    generated: Map
    target: Map | None
    curves: dict[str, plots.Curve] = field(default_factory=dict)
    model: gemmi.Structure | None = None


@dataclass
class Views:
    """Densities on one grid around the molecule, for the page and its pictures.

    Attributes:
        volumes: by name; "difference" is the generated map, blurred and scaled to the target, less the target.
        voxel_size: in Å.
        origin: in Å.
        matched: correlations with the target at its resolution, of the initial and of the generated map; None where the
            target's file is gone.
    """

    volumes: dict[str, np.ndarray]
    voxel_size: np.ndarray
    origin: np.ndarray
    matched: tuple[float, float] | None


def write_story(story: Story, whole: bool = True) -> list[str]:
    """Write the files for other programs and, if `whole`, the report and its pictures.

    Returns:
        The warnings, which are added to the scores in metrics.json.
    """
    config, moved = story.config, motion_of(story)
    write_map(story.folder / "displacement.mrc", displacement_map(moved.motion, moved.points, story.generated))
    if story.model is not None:
        end = story.fit.move(story.model)
        far = np.linalg.norm(atoms.positions(end) - atoms.positions(story.model), axis=-1)
        atoms.write_model(story.folder / "displacement.cif", atoms.with_b_factors(end, far))
    if story.curves:
        exchange.write_fsc(story.folder, story.curves)
    write_scripts(story.folder, config, moved.top)
    views = make_views(story, moved) if whole else None
    found = cautions(config, story.scores, measure(story, moved, views))
    run_folder.write_json(story.folder / "metrics.json", story.scores | {"warnings": warnings(found)})
    if views is not None:
        write_report(story, moved, views, found)
    return warnings(found)


def write_report(story: Story, moved: CarriedMass, views: Views, found: list[Caution]) -> None:
    """Write report.html, and its pictures as files."""
    folder, config = story.folder, story.config
    drawings = {"slices": plots.slices_drawing(views.volumes, views.voxel_size)}
    if story.curves:
        drawings["fsc"] = plots.fsc_drawing(story.curves)
    if "verdict" in story.scores and (folder / "generated.cif").is_file():
        drawings["errors"] = errors_drawing(atoms.read_model(folder / "generated.cif"))
    if (folder / "loss.csv").is_file():  # all that a finished run keeps of its losses
        drawings["loss"] = plots.loss_drawing(read_losses(folder / "loss.csv"))
    for name, drawing in drawings.items():
        exchange.write_drawing(folder, name, drawing)
    # Frames are read back from their files one by one, as memory may not hold all of them.
    frames = film.read_frames(folder, config["settings"]["frames"], story.initial, story.generated, moved)
    title, names = words.motion(story.scores), f"{config['initial']} → {config['target']}"
    drawn = film.draw_pictures(frames, display_contours(config)["initial"], moved, title, names)
    write_file(folder / "morph.gif", pictures.animation(drawn))
    pictures.write_film(folder / "morph.mp4", drawn)
    stills = film.pick_evenly([*zip(frames, drawn, strict=True)], STILLS)
    text = page.build(
        config=config,
        scores=story.scores,
        found=found,
        drawings={name: plots.svg(drawing) for name, drawing in drawings.items()},
        stills=[(frame.time, pictures.still(picture)) for frame, picture in stills],
        data=page_data(story, frames, moved, views),
        made=[path.name for path in folder.iterdir()],
    )
    write_file(folder / "report.html", text)


def errors_drawing(model: gemmi.Structure) -> plots.Drawing:
    """Plot the predicted errors of the residues of the longest chains, which are the model's B-factors."""
    found: dict[str, list[tuple[int, float]]] = {}
    for chain, residue, atom in atoms.residue_sites(model):
        found.setdefault(chain.name, []).append((residue.seqid.num or 0, atom.b_iso))
    longest = sorted(found, key=lambda name: -len(found[name]))[:CHAINS]
    curves = {}
    for name in [name for name in found if name in longest]:
        numbers, errors = np.array(found[name]).T
        bounds = {f"{100 * share:.0f} % within": (numbers, ErrorModel().within(share) * errors) for share in BOUNDS}
        curves[f"chain {name}: predicted error [Å]"] = bounds
    return plots.panels_drawing(curves, "residue", 0.0)


def motion_of(story: Story) -> CarriedMass:
    """Sample the motion of the mass that a run carries."""
    points, rho = mass_points(story.initial, story.fit.threshold)
    motion = sample_motion(story.fit.carry, points.min(0) - ROOM, points.max(0) + ROOM)
    far = max(float(np.percentile(distances(motion, points), 99)), 1.0)
    unit = 10 ** np.floor(np.log10(far)) / 10
    top = float(np.ceil(far / unit) * unit)
    return CarriedMass(points, rho, motion, top, places.read_places(story.folder, points))


def measure(story: Story, moved: CarriedMass, views: Views | None) -> Measured:
    """Measure what `cautions` needs besides the scores, and write folded.mrc if the flow folds.

    Args:
        views: whose correlations are of the molecule; without them those in the scores are taken, of the whole box.
    """
    whole_box = tuple(story.scores.get(f"correlation_matched_{when}") for when in ("before", "after"))
    mass = np.maximum(story.generated.density, 0)
    inner, whole = (part.sum(dtype=np.float64) for part in (mass[(slice(RIM, -RIM),) * 3], mass))
    every = -(-len(moved.points) // SAMPLE)
    points, rho = moved.points[::every], moved.rho[::every]
    strained = jacobians(story.fit.flow(), points)
    folded = ~(np.linalg.det(strained) > 0)
    write_folded(story, points[folded], every)
    return Measured(
        matched=views.matched if views else None if None in whole_box else whole_box,
        stretched=float(rho[is_stretched(strained)].sum() / rho.sum()),
        at_edge=float(1 - inner / whole) if whole else 0.0,
        farthest=float(distances(moved.motion, moved.points).max()),
        outside=fraction_outside(story, moved),
        folded=float(rho[folded].sum() / rho.sum()),
    )


def fraction_outside(story: Story, moved: CarriedMass) -> float:
    """Fraction of the mass that is carried out of the initial map's box."""
    end = moved.points + moved.motion.displacements_at(moved.points)[-1]
    at = (end - story.initial.origin) / story.initial.voxel_size + 0.5
    out = ((at < 0) | (at > story.initial.density.shape)).any(-1)
    return float(moved.rho[out].sum() / moved.rho.sum())


def write_folded(story: Story, points: np.ndarray, every: int) -> None:
    """Write folded.mrc, which is 1 at points (n, 3) in Å where the flow folds; no such file where there are none.

    Args:
        every: of how many points of mass each stands for.
    """
    (story.folder / "folded.mrc").unlink(missing_ok=True)
    if len(points):
        like, shown = story.initial, np.zeros(story.initial.density.shape, bool)
        at = np.rint((points - like.origin) / like.voxel_size).astype(int)
        shown[tuple(at.clip(0, np.array(shown.shape) - 1).T)] = True
        wide = np.maximum(np.rint(CELL * every ** (1 / 3) / like.voxel_size), 1).astype(int)
        shown = ndimage.maximum_filter(shown, size=tuple(wide.tolist()))
        write_map(story.folder / "folded.mrc", Map(shown.astype(np.float32), like.voxel_size, like.origin))


def make_views(story: Story, moved: CarriedMass) -> Views:
    """Crop the maps to the mass on its whole way and to the target, and compare them."""
    config = story.config
    reached = [moved.points + shift for shift in moved.motion.displacements_at(moved.points)]
    if story.target is not None:
        reached.append(mass_points(story.target, config["chosen"]["targets"][target_index(config)]["threshold"])[0])
    low, high = np.min([p.min(0) for p in reached], 0) - REACH, np.max([p.max(0) for p in reached], 0) + REACH
    initial, generated = (crop(map_, low, high) for map_ in (story.initial, story.generated))
    volumes = {"initial": initial.density, "generated": generated.density}
    matched = None
    if story.target is not None:
        target = crop(story.target, low, high)
        blur = chosen(config, "blur_variance") or 0.0
        start, goal = metrics.matched(initial, target, blur)
        end, _ = metrics.matched(generated, target, blur)
        volumes = {"initial": initial.density, "target": target.density, "generated": generated.density}
        volumes["difference"] = end - goal
        matched = similarity.correlation(start, goal), similarity.correlation(end, goal)
    maps = {name: film.resampled(replace(initial, density=density), SHOWN) for name, density in volumes.items()}
    grid = maps["initial"]
    return Views({name: map_.density for name, map_ in maps.items()}, grid.voxel_size, grid.origin, matched)


def page_data(story: Story, frames: Sequence[Frame], moved: CarriedMass, views: Views) -> dict:
    """Collect the data of the page's script."""
    view, centre, sides = film.scene(moved)
    first, contours = np.maximum(views.volumes["initial"], 0), display_contours(story.config)
    weights = [first.sum(other) + 1e-12 for other in ((1, 2), (0, 2), (0, 1))]
    times = [frame.time for frame in frames]
    return {
        "grid": packing.grid(Map(first, views.voxel_size, views.origin)),
        "middle": [int(np.average(np.arange(len(w)), weights=w)) for w in weights],
        "volumes": packing.pack_volumes(views.volumes),
        "film": packing.pack_frames(frames, contours["initial"], moved.top),
        "levels": contours,
        "sigmas": {
            "morph": float(story.generated.density.std()),
            "target": 1.0 if story.target is None else float(story.target.density.std()),
        },
        "palette": plots.PALETTE,
        "errors": {"palette": scene.ERRORS, "top": places.TOP_ERROR, "known": moved.places.known},
        "bodies": scene.bodies(story.scores.get("parts", []), moved.places),
        "model": story.model and scene.model(story.model, story.fit, times, centre, moved.places, moved.top),
        "centre": centre.tolist(),
        "sides": sides.tolist(),
        "view": view.tolist(),
    }


def write_scripts(folder: Path, config: dict, top: float) -> None:
    """Write view.cxc for ChimeraX in a target's folder and, if they exist, in its folders target_frame and assembly.

    The script of the assembly leaves out the target map, which shows one asymmetric unit.

    Args:
        top: displacement at the end of the colour key (Å).
    """
    name, settings, target = target_name(config), config["settings"], None
    if name:
        size, negated = settings.get("target_voxel_size"), settings.get("invert") in ("target", "both")
        target = exchange.Target(Path(config["inputs"][name]["file"]), target_pose(config), size, negated)
    own = target and target._replace(pose=align.IDENTITY)
    for inside, shown in (("", target), ("target_frame", own), ("assembly", None)):
        if (folder / inside).is_dir():
            text = exchange.chimerax_script(folder / inside, display_contours(config), top, shown)
            write_file(folder / inside / "view.cxc", text)
            if recording := exchange.recording_script(folder / inside):
                write_file(folder / inside / "movie.cxc", recording)


def display_contours(config: dict) -> dict[str, float]:
    """Display contours of the initial map and of the folder's target; of older runs the thresholds."""
    seen, used = config.get("contours"), config["chosen"]
    initial, target = (
        (seen[0], seen[1 + target_index(config)]) if seen else (used["initial"], used["targets"][target_index(config)])
    )
    return {
        name: max(float(level.get("contour", level.get("threshold"))), 1e-9)  # surfaces need a level above 0
        for name, level in (("initial", initial), ("target", target))
    }


def read_losses(path: Path) -> list[tuple[str, np.ndarray]]:
    """Read loss.csv: for each stage its name and the losses; columns that older runs wrote besides are left out."""
    stages: dict[tuple[str, str], list[float]] = {}
    try:
        with path.open(newline="") as file:
            for stage, name, _, value, *_ in list(csv.reader(file))[1:]:
                stages.setdefault((stage, name), []).append(float(value))
    except (ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path} is not as a run writes it ({error}): remove it to do without the figure") from error
    return [(name, np.array(values)) for (_, name), values in stages.items()]


def read_story(run_dir: Path, initial: str | None = None, target: str | None = None) -> Story:
    """Read a finished run from its folder.

    Args:
        run_dir: the folder of the run of one target.
        initial: where the initial map is now, if it is no longer where the run read it.
        target: where the target map is now, likewise.
    """
    config, scores = finished.read_config(run_dir), finished.read_scores(run_dir)
    fit, generated = finished.load_fit(run_dir), finished.load_map(run_dir, "generated.mrc")
    start, goal = read_first_frame(run_dir, config, fit, initial), read_target(config, scores, generated, target)
    if finished.has(run_dir, "loss.csv"):
        finished.verify(run_dir, "loss.csv")
    if finished.has(run_dir, "fsc.csv"):
        curves = exchange.read_fsc(finished.verify(run_dir, "fsc.csv"))
    else:
        curves = score.fsc_curves(start, generated, goal, read_reference(config, generated)) if goal else {}
    first = config["settings"]["frames"] > 1  # a single frame is the last one
    whole = first and finished.has(run_dir, "model_00.cif")
    model = atoms.read_model(finished.verify(run_dir, "model_00.cif")) if whole else None
    return Story(run_dir, config, scores, fit, start, generated, goal, curves, model)


def find_unchanged(config: dict, name: str | None, path: str | None = None) -> Path | None:
    """File of an input of the run; None if it is gone or changed.

    Args:
        path: where the file is now, if not where the run read it.
    """
    entry = config["inputs"].get(name)
    found = Path(path or (entry or {}).get("file", ""))
    if entry and found.is_file() and checksum(found) == entry["sha256"]:
        return found
    if path:
        raise InputError(f"{path} is not the run's {name} (it is gone, or checksums differ): give the path of that map")
    return None


def read_first_frame(run_dir: Path, config: dict, fit: Fit, given: str | None) -> Map:
    """The initial map as carried: the frame at time 0, or without one computed from the map itself."""
    frames = (finished.has(run_dir, f"frame_{k:02d}.mrc") for k in (0, 1))
    if not given and all(frames):  # a single frame is the last one
        return finished.load_map(run_dir, "frame_00.mrc")
    path = find_unchanged(config, config["initial"], given)
    if path is None:
        raise InputError(f"the run's initial map {config['initial']} is gone: say where it is now with --initial")
    masks = masks_used(config, config["initial"], config["settings"].get("mask"))
    initial = read_as_used(config, path, "initial", masks)
    return trajectory.carried_density(initial, fit.threshold)


def read_target(config: dict, scores: dict, generated: Map, given: str | None) -> Map | None:
    """Read the target map as it was fitted, and check its correlation with the generated map against the run's.

    Returns:
        The map; None if its file is gone or changed, or if the correlation differs.
    """
    name = target_name(config)
    path = find_unchanged(config, name, given)
    if path is None:
        return None
    flags = config["settings"].get("target_mask") or [None]
    try:
        masks = masks_used(config, name, flags[target_index(config)] if len(flags) > 1 else flags[0])
    except InputError:
        return None
    target = align.resampled(read_as_used(config, path, "target", masks), generated, target_pose(config))
    now, then = similarity.correlation(generated.density, target.density), scores["correlation_with_target_after"]
    return target if abs(now - then) < SAME else None


def target_pose(config: dict) -> align.Transform:
    """The transform by which the run superposed the target on the initial map."""
    record = config.get("alignment")
    return align.Transform.from_matrix(record["transform"]) if record else align.IDENTITY


def read_reference(config: dict, generated: Map) -> Map | None:
    """Read the reference as a map; None where the run had none, or it is gone."""
    names = config["settings"].get("reference") or [None]
    path = find_unchanged(config, names[target_index(config)] if len(names) > 1 else names[0])
    if path is None:
        return None
    size, whole = (config["settings"].get(name) for name in ("target_voxel_size", "all_models"))
    reference = score.place_reference(score.read_reference(path, size, bool(whole)), generated, target_pose(config))
    return score.reference_map(reference, generated, config["resolutions"]["initial"])
