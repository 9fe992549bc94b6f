"""The methods that are compared: what they are given, and the frames that they make."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np

from cryotrans_jax.density import contour, thresholds
from cryotrans_jax.density.spectrum import filtered, shell_power
from cryotrans_jax.fit import trajectory
from cryotrans_jax.fit.progress import Progress
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import checksum
from cryotrans_jax.io.maps import Map, radial_frequency, write_map
from cryotrans_jax.scores import metrics

from . import baselines, results
from .case import Case, frame_number
from .contest import Comparison, path_distance
from .run_folder import FRAMES, result_files
from .score import reference_map
from .settings import FitSettings

EDGE = 1.15  # end of the filter on a simulated target, relative to the frequency of its resolution


def make_comparison(
    case: Case, path: list[gemmi.Structure], levels: tuple[float | None, float | None], frames: int
) -> Comparison:
    """Prepare the input of all methods: both maps without solvent, and the truth for scoring.

    The fits get the maps as they are, and remove the solvent themselves.

    Args:
        case: the maps, and models of both states if they are known.
        path: models of the path between the states.
        levels: thresholds of the initial and the target map; None to choose them by rule.
    """
    seen = contour.describe(case.initial, case.initial_resolution, given=levels[0], model=case.model)
    maps, masses = [], []
    for name, map_, threshold in zip(("initial", "target"), (case.initial, case.targets[0]), levels, strict=True):
        shown = map_ if threshold is not None or name == "initial" else thresholds.denoise(map_)[0]
        mass, report = thresholds.apply_threshold(shown, threshold, f"{name} map")
        mask = trajectory.soft_support(shown.density, report["threshold"], map_.voxel_size)
        maps.append(replace(map_, density=map_.density * mask))
        masses.append(mass)
    scale = np.float32(masses[0].sum(dtype=np.float64) / masses[1].sum(dtype=np.float64))
    reference = case.references[0] if case.references else None
    known = [model for model in (case.model, *case.references[-1:]) if isinstance(model, gemmi.Structure)]
    sharp = case.initial_resolution or 3.0
    return Comparison(
        initial=maps[0],
        target=replace(maps[1], density=maps[1].density * scale),
        level=seen["contour"],
        times=trajectory.frame_times(frames),
        resolution=sharp,
        inside=(masses[0] > 0) | (masses[1] > 0),
        truth=None if reference is None else reference_map(reference, case.initial, sharp),
        models=(known[0], known[1]) if len(known) == 2 else None,
        path=path,
    )


def method_frames(
    method: str, case: Case, comparison: Comparison, settings: FitSettings
) -> tuple[list[Map], float | None]:
    """Frames of a method, and the distance (Å) of a known path from its models, None if no path is known."""
    initial, target, times, path = comparison.initial, comparison.target, comparison.times, comparison.path
    if method == "blend":
        return list(baselines.blend(initial, target, times)), None
    if method == "barycentre":
        return list(baselines.barycentre(initial, target, times)), None
    if method == "models":
        frames = list(baselines.interpolate_models(*comparison.models, initial, comparison.resolution, times))
        if not path:
            return frames, None
        start, end, *known = atoms.common_ca(*comparison.models, *path)
        return frames, metrics.path_distance(start + times[:, None, None] * (end - start), np.stack(known))
    fit = fit_method(method, case, settings)
    far = path_distance(comparison, fit.move(case.model, times)) if path else None
    return list(fit.frames(times)), far


def fit_method(method: str, case: Case, settings: FitSettings) -> Fit:
    """Fit the flow of a method."""
    if method != "l2":
        return results.fit_case(case, replace(settings, recipe="paper" if method == "paper" else "default"))
    with Progress() as progress:
        return baselines.squared_flow(
            case.initial,
            case.targets[0],
            seed=settings.seed,
            steps=settings.steps,
            initial_threshold=settings.initial_threshold,
            target_threshold=settings.target_threshold,
            resolutions=(case.initial_resolution, case.target_resolutions[0]),
            progress=progress,
        )


def with_noise(map_: Map, resolution: float) -> Map:
    """Add noise, always the same, to a map so that its FSC with the noise-free map is 0.5 at the resolution (Å).

    The noise is white, with three times the map's power at that frequency. Beyond it both are filtered out, as is usual
    in real maps.
    """
    s, power = shell_power(map_.density, map_.voxel_size)
    strength = np.sqrt(3 * np.interp(1 / resolution, s, power) / map_.density.size)
    noise = np.random.default_rng(0).standard_normal(map_.density.shape, np.float32)
    s = radial_frequency(map_.density.shape, map_.voxel_size)
    passed = 0.5 + 0.5 * np.cos(np.pi * np.clip((s * resolution - 1) / (EDGE - 1), 0, 1))
    noisy = map_.density + np.float32(strength) * noise
    return replace(map_, density=filtered(noisy, passed.astype(np.float32)))


def describe_inputs(case: Case, files: Mapping[str, Iterable[Path]]) -> dict[str, dict[str, str]]:
    """Paths and checksums of the input files, with those of other programs' frames."""
    used = case.files | {str(path): path for given in files.values() for path in given}
    return {name: {"file": str(path.resolve()), "sha256": checksum(path)} for name, path in used.items()}


def write_frames(frames: Sequence[Map], folder: Path) -> None:
    """Write the frames into the folder, replacing the frames in it."""
    for earlier in result_files(folder, FRAMES):
        earlier.unlink()
    for number, frame in enumerate(frames):
        write_map(folder / f"frame_{frame_number(number, len(frames))}.mrc", frame)
