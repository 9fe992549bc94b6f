"""Write what presents a finished run: the report, its pictures, and maps and scripts for other programs."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
from scipy import ndimage

from cryotrans_jax import plots
from cryotrans_jax.density import align, similarity
from cryotrans_jax.fit.strain import SAMPLE, is_stretched, jacobians
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import write_file
from cryotrans_jax.io.maps import Map, write_map
from cryotrans_jax.motion.displacement import CELL, displacement_map, distances, mass_points, sample_motion
from cryotrans_jax.scores import metrics
from cryotrans_jax.scores.confidence import ErrorModel

from .. import exchange, run_folder
from . import contents, film, packing, page, pictures, places, scene, words
from .cautions import Caution, Measured, cautions, chosen, target_index, target_name, warnings
from .film import REACH, ROOM, CarriedMass, Frame, crop
from .reading import Story, display_contours, read_losses, target_pose

SHOWN = 2_000_000  # voxels of a sliced volume: with the frames the page stays below 20 MB for maps of any noise
STILLS = 5  # pictures on the page at most
RIM = 2  # voxels that count as the sides of the box
CHAINS = 6  # whose residues' errors are plotted, at most
BOUNDS = 0.68, 0.9  # fractions of residues within the plotted errors


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
    write_scripts(story.folder, config, moved.top, story.scores.get("parts", []))
    views = make_views(story, moved) if whole else None
    measured = measure(story, moved, views)
    found = cautions(config, story.scores, measured)
    more = {"stretched": measured.stretched, "warnings": warnings(found)}
    run_folder.write_json(story.folder / "metrics.json", story.scores | more)
    if views is not None:
        write_report(story, moved, views, found)
    made = [*(path.name for path in story.folder.iterdir()), "README.txt"]
    write_file(story.folder / "README.txt", contents.folder_text(made, config, story.scores))
    return warnings(found)


def write_report(story: Story, moved: CarriedMass, views: Views, found: list[Caution]) -> None:
    """Write report.html, and its pictures as files."""
    folder, config = story.folder, story.config
    drawings = {"slices": plots.slices_drawing(views.volumes, views.voxel_size, moving_voxel(moved, views))}
    if story.curves:
        drawings["fsc"] = plots.fsc_drawing(story.curves, known_resolutions(config))
    if "verdict" in story.scores and (folder / "generated.cif").is_file():
        drawings["errors"] = errors_drawing(atoms.read_model(folder / "generated.cif"))
    if (folder / "loss.csv").is_file():  # all that a finished run keeps of its losses
        drawings["loss"] = plots.loss_drawing(read_losses(folder / "loss.csv"))
    drawn = {name: exchange.write_drawing(folder, name, drawing) for name, drawing in drawings.items()}
    # Frames are read back from their files one by one, as memory may not hold all of them.
    frames = film.read_frames(folder, config["settings"]["frames"], story.initial, story.generated, moved)
    title, names = words.motion(story.scores), f"{Path(config['initial']).name} → {config['target']}"
    morph = film.draw_pictures(frames, display_contours(config)["initial"], moved, title, names)
    with ThreadPoolExecutor(1) as pool:  # the encoder is a process of its own
        written = pool.submit(pictures.write_film, folder / "morph.mp4", morph)
        write_file(folder / "morph.gif", pictures.animation(morph))
        stills = film.pick_evenly([*zip(frames, morph, strict=True)], STILLS)
        data = page_data(story, frames, moved, views) | curve_data(story.curves, drawings.get("fsc"))
        written.result()
    text = page.build(
        config=config,
        scores=story.scores,
        found=found,
        drawings=drawn,
        stills=[(frame.time, pictures.still(picture)) for frame, picture in stills],
        data=data,
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
    contours = display_contours(story.config)
    times = [frame.time for frame in frames]
    return {
        "grid": packing.grid(Map(views.volumes["initial"], views.voxel_size, views.origin)),
        "middle": moving_voxel(moved, views),
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


def moving_voxel(moved: CarriedMass, views: Views) -> list[int]:
    """The voxel of the views in the middle of what moves, by mass and displacement."""
    weights = moved.rho * (distances(moved.motion, moved.points) + 1e-9)
    at = (np.average(moved.points, axis=0, weights=weights) - views.origin) / views.voxel_size
    return np.clip(np.rint(at), 0, np.array(views.volumes["initial"].shape) - 1).astype(int).tolist()


def known_resolutions(config: dict) -> dict[str, float]:
    """The resolutions of both maps that the run was given, Å."""
    known = config.get("resolutions", {})
    targets = known.get("targets") or []
    place = target_index(config)
    found = {"initial": known.get("initial"), "target": targets[place] if place < len(targets) else None}
    return {name: float(value) for name, value in found.items() if value}


def curve_data(curves: dict[str, plots.Curve], drawing: plots.Drawing | None) -> dict:
    """The Fourier shell correlations for the page's script, and where the axes are in their finished drawing."""
    if drawing is None:
        return {}
    box = drawing.axes[0].get_position().bounds  # left, bottom, width and height, as fractions
    frequency = next(iter(curves.values()))[0]
    values = {name.replace("_", " "): np.round(curve[1], 3).tolist() for name, curve in curves.items()}
    return {"fsc": {"box": [float(side) for side in box], "frequency": frequency.tolist(), "curves": values}}


def write_scripts(folder: Path, config: dict, top: float, parts: Sequence[dict] = ()) -> None:
    """Write view.cxc for ChimeraX in a target's folder and, if they exist, in its folders target_frame and assembly.

    The script of the assembly leaves out the target map, which shows one asymmetric unit.

    Args:
        top: displacement at the end of the colour key (Å).
        parts: motions of the rigid bodies, as in metrics.json.
    """
    bodies = [exchange.Body(scene.body_colour(n), part.get("residues", [])) for n, part in enumerate(parts, 1)]
    name, settings, target = target_name(config), config["settings"], None
    if name:
        size, negated = settings.get("target_voxel_size"), settings.get("invert") in ("target", "both")
        target = exchange.Target(Path(config["inputs"][name]["file"]), target_pose(config), size, negated)
    own = target and target._replace(pose=align.IDENTITY)
    for inside, shown in (("", target), ("target_frame", own), ("assembly", None)):
        if (folder / inside).is_dir():
            text = exchange.chimerax_script(folder / inside, display_contours(config), top, shown, bodies)
            write_file(folder / inside / "view.cxc", text)
            if recording := exchange.recording_script(folder / inside):
                write_file(folder / inside / "movie.cxc", recording)
