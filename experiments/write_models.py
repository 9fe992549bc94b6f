"""Carried models, their trajectory and their geometry, as files."""

from collections.abc import Sequence
from pathlib import Path

import gemmi
import numpy as np

from cryotrans_jax.fit import trajectory
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import Map
from cryotrans_jax.scores import geometry, metrics

from . import log
from .case import frame_number
from .frames import Place
from .run_folder import write_rows
from .settings import OutputSettings


def write_models(
    fit: Fit,
    model: gemmi.Structure,
    settings: OutputSettings,
    places: Sequence[Place],
    reference: gemmi.Structure | Map | None = None,
) -> dict:
    """Write the carried models, their trajectory and geometry.csv.

    Args:
        settings: of the output. With `idealise` bonds, angles and side chains of the written models are restored,
            and geometry.csv has columns carried_... for the models before that.
        places: where to write the models; geometry.csv is written to the first one.
        reference: the target state, if it is known.

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
    for place in places:
        write_frames([place.model(carried) for carried in frames], place.folder)
    write_rows(
        places[0].folder / "geometry.csv",
        [{"frame": n, "time": t} | row for n, (t, row) in enumerate(zip(times, rows, strict=True))],
    )
    start = model_geometry(topology, model)
    scores = {f"{key}_{when}": row[key] for key in start for when, row in (("before", start), ("after", rows[-1]))}
    scores["clashes_worst"] = max(row["clashes"] for row in rows)
    if settings.idealise and isinstance(reference, gemmi.Structure):
        scores["rmsd_idealised"] = metrics.ca_displacement(frames[-1], reference)["rmsd"]
    return scores


def write_frames(frames: Sequence[gemmi.Structure], folder: Path) -> None:
    """Write the models of all frames, each to a file, the last one as generated.cif, and all to one file."""
    for number, carried in enumerate(frames):
        atoms.write_model(folder / f"model_{frame_number(number, len(frames))}.cif", carried)
    atoms.write_model(folder / "generated.cif", frames[-1])
    if all(not chain.name.strip() for chain in frames[-1][0]):  # mmCIF has no blank chains: keep them in a PDB as well
        atoms.write_model(folder / "generated.pdb", frames[-1])
    write_movie(frames, folder)


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
