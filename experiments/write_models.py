"""Carried models, their trajectory and their geometry, as files."""

from collections.abc import Sequence
from pathlib import Path

import gemmi
import numpy as np

from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.fit import trajectory
from cryotrans_jax.fit.morphing import Fit
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import Map, read_map, write_map
from cryotrans_jax.scores import geometry, metrics

from . import log
from .case import frame_number
from .run_folder import FRAMES, result_files, write_rows
from .settings import OutputSettings


def write_models(
    fit: Fit,
    model: gemmi.Structure,
    settings: OutputSettings,
    folder: Path,
    reference: gemmi.Structure | Map | None = None,
) -> dict:
    """Write the carried models, their trajectory and geometry.csv.

    Args:
        fit: of one target.
        model: of the initial state.
        settings: of the output. With `idealise` bonds, angles and side chains of the written models are restored,
            and geometry.csv has columns carried_... for the models before that.
        folder: where to write.
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
