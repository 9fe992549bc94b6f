"""Read a finished run of one target again, with the maps that it used, to present it."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import gemmi
import numpy as np

from cryotrans_jax import plots
from cryotrans_jax.density import align, similarity
from cryotrans_jax.fit import trajectory
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError, checksum
from cryotrans_jax.io.maps import Map

from .. import exchange, finished, score
from ..masks import masks_used, read_as_used
from .cautions import target_index, target_name

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
