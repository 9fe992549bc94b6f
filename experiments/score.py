"""Scores of a fit: correlations and FSC with the target, and with a reference if there is one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gemmi
import numpy as np

from cryotrans_jax.density import similarity, simulation
from cryotrans_jax.density.thresholds import carried_mass
from cryotrans_jax.density.transform import IDENTITY, Transform, resampled
from cryotrans_jax.fit import trajectory
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import Map, has_voxel_size, read_map
from cryotrans_jax.motion.rigid_bodies import part_motions
from cryotrans_jax.plots import Curve
from cryotrans_jax.scores import metrics, qscore

from .case import MAP_SUFFIXES, Case, Waypoint

DISPLACEMENTS = {  # keys of `metrics.ca_displacement`, and names in metrics.json
    "initial_rmsd": "rmsd_before",
    "rmsd": "rmsd_after",
    "median": "median_after",
    "max": "max_after",
    "moved_rmsd": "moved_rmsd_after",
    "moved_initial_rmsd": "moved_rmsd_before",
    "moved_n": "moved_n",
}


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
    curves = fsc_curves(start, generated, case.targets[number], truth)
    if case.halves:
        curves["half_maps"] = metrics.map_fsc(*case.halves[number])
    return Comparison(start, truth, curves)


def fsc_curves(start: Map, generated: Map, target: Map, truth: Map | None) -> dict[str, Curve]:
    """Fourier shell correlations, named target_before, target_after and, with a reference, reference_before and _after.

    Args:
        start: the initial map, as carried ("before").
        generated: the generated map ("after").
        truth: map of the reference, if there is one.
    """
    against = {"target": target} | ({} if truth is None else {"reference": truth})
    sides = {"before": start, "after": generated}
    return {f"{a}_{when}": metrics.map_fsc(map_, other) for a, other in against.items() for when, map_ in sides.items()}


def score(fit: Fit, case: Case, number: int, generated: Map, compared: Comparison | None = None) -> dict:
    """Score the initial map ("before") and the generated map ("after"), for metrics.json.

    Always: correlation with the target map, FSC = 0.5 with it (Å), mass kept, and consistency of the flow with its
    inverse (Å). With a reference: where FSC falls to 0.5 and 0.143 (Å), a model being simulated at the initial map's
    resolution, 3 Å if unknown. With a model: its Q-score in the initial map, and that of the carried model in the
    generated map. With models of both states: CA RMSD (Å) and TM-score. With a model of the target state: its Q-score
    in both maps. For each waypoint: correlation of the initial map and of the frame at its time. With several parts:
    how each moves.

    Args:
        number: of the target in the case.
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
    out["nyquist"] = float(1 / curves["target_after"][0][-1])
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
    if case.model is not None:
        moved = fit.move(case.model)
        for when, map_, model in (("before", compared.start, case.model), ("after", generated, moved)):
            out[f"model_q_score_{when}"] = qscore.q_score(map_, model)
        if isinstance(reference, gemmi.Structure):
            out |= score_models(case.model, moved, reference)
    if isinstance(reference, gemmi.Structure):
        for when, map_ in (("before", compared.start), ("after", generated)):
            out[f"q_score_{when}"] = qscore.q_score(map_, reference)
    return out


def score_models(model: gemmi.Structure, moved: gemmi.Structure, reference: gemmi.Structure) -> dict:
    """CA RMSD (Å) and TM-score of the model and of the carried model to that of the target state."""
    found = metrics.ca_displacement(moved, reference, model)
    out = {name: found[key] for key, name in DISPLACEMENTS.items() if key in found}
    for when, carried in (("before", model), ("after", moved)):
        out[f"tm_score_{when}"] = metrics.tm_score(carried, reference)
    return out


def score_waypoint(fit: Fit, start: Map, waypoint: Waypoint) -> dict:
    """Correlation and FSC = 0.5 (Å) with a waypoint, of the carried initial map and of the frame at its time.

    They are compared in the frame of the alignment, in which the waypoint is.
    """
    fit = replace(fit, still=())
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


def read_reference(path: Path, voxel_size: list[float] | None, all_models: bool) -> gemmi.Structure | Map:
    """Read the reference: a model, or a map by the file's suffix.

    Args:
        path: the file.
        voxel_size: in Å, for a map without a voxel size in its header.
        all_models: take all models of a file that do not overlap, instead of the first.
    """
    if path.name.lower().endswith(MAP_SUFFIXES):
        return read_map(path, None if has_voxel_size(path) else voxel_size)
    return atoms.read_model(path, all_models)


def place_reference(given: gemmi.Structure | Map, initial: Map, transform: Transform) -> gemmi.Structure | Map:
    """Move the reference by the motion that places its target, and resample a map on the initial map's grid."""
    if isinstance(given, Map):
        return resampled(given, initial, transform)
    return given if transform is IDENTITY else transform.move(given)
