"""Frames of a fit as maps and models: in the frame of the initial map or of the target, and as the assembly."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np
from jaxtyping import Float

from cryotrans_jax.density.align import resampled
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.fit import trajectory
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import whole_file
from cryotrans_jax.io.maps import Map, read_map, write_map
from cryotrans_jax.scores import geometry, metrics

from . import log
from .case import Case, frame_number
from .run_folder import FRAMES, result_files, write_rows
from .settings import OutputSettings

ERROR_ITEM = "cryotrans_predicted_error"  # of _atom_site: distance (Å) from the truth that 68 % do not exceed


class Place(NamedTuple):
    """A folder for frames, and how maps and models are moved before they are written there.

    Attributes:
        folder: the folder, which exists.
        map: moves a map; None leaves maps out.
        model: moves a model.
    """

    folder: Path
    map: Callable[[Map], Map] | None = lambda map_: map_
    model: Callable[[gemmi.Structure], gemmi.Structure] = lambda model: model


def target_frame(case: Case, number: int, folder: Path) -> Place:
    """Make the folder target_frame, for results in the frame of the target's file.

    Maps there are on the grid of the target's file, with its voxels or, where these are finer, the initial map's.
    """
    back = case.alignments[number].transform.inverse
    target = case.originals[number].map
    size = np.minimum(target.voxel_size, case.initial.voxel_size)
    shape = np.ceil(np.array(target.density.shape) * target.voxel_size / size - 1e-6).astype(int)
    grid = Map(np.broadcast_to(np.float32(0), tuple(shape.tolist())), size, target.origin)
    (folder / "target_frame").mkdir(exist_ok=True)
    return Place(folder / "target_frame", lambda map_: resampled(map_, grid, back), back.move)


def assembly(symmetry: Symmetry, folder: Path) -> Place:
    """Make the folder assembly, for models that are repeated; for its maps, all frames are needed first."""
    (folder / "assembly").mkdir(exist_ok=True)
    return Place(folder / "assembly", None, symmetry.copy_model)


def write_all_frames(
    fit: Fit, case: Case, number: int, settings: OutputSettings, folder: Path
) -> tuple[Map, list[Place]]:
    """Write the frames of a target's fit to its folder and, where there are such, to target_frame and assembly.

    Returns:
        The last frame, and the places for the frames of a model.
    """
    places = [Place(folder)]
    if case.originals and settings.frame == "target":
        places.append(target_frame(case, number, folder))
    last = write_frames(fit, settings.frames, places)
    if case.repeated is not None:
        places.append(assembly(case.repeated, folder))
        write_assembly_maps(case.repeated, folder)
    return last, places


def with_render(fit: Fit, render: str | None) -> Fit:
    """The fit whose frames are made and recorded in this way; None: as its recipe has it."""
    return replace(fit, config=replace(fit.config, render=render)) if render else fit


def write_frames(fit: Fit, frames: int, places: Sequence[Place]) -> Map:
    """Write all frames and the generated map of a fit of one target.

    Args:
        places: where to write them.

    Returns:
        The last frame, in the initial map's frame.
    """
    for number, frame in enumerate(fit.frames(frames)):
        for folder, moved, _ in places:
            if moved is not None:
                write_map(folder / f"frame_{frame_number(number, frames)}.mrc", moved(frame))
    for folder, moved, _ in places:
        if moved is not None:
            with whole_file(folder / "generated.mrc") as temporary:
                shutil.copyfile(folder / f"frame_{frame_number(frames - 1, frames)}.mrc", temporary)
    return frame


def write_assembly_maps(symmetry: Symmetry, folder: Path) -> None:
    """Write the maps in a folder to its folder assembly, repeated, on a grid that holds the copies of all of them.

    They are read from their files, twice, as memory may not hold all of them.
    """
    maps = [path for path in result_files(folder, FRAMES) if path.suffix == ".mrc"]
    room = symmetry.enclosing_grid(map(read_map, maps))
    for path in maps:
        write_map(folder / "assembly" / path.name, symmetry.copy_map(read_map(path), room))


def write_models(
    fit: Fit,
    model: gemmi.Structure,
    settings: OutputSettings,
    places: Sequence[Place],
    reference: gemmi.Structure | Map | None = None,
    errors: Float[np.ndarray, "atoms"] | None = None,
) -> tuple[dict, gemmi.Structure]:
    """Write the carried models, their trajectory and geometry.csv.

    Args:
        settings: of the output. With `idealise` bonds, angles and side chains of the written models are restored,
            and geometry.csv has columns carried_... for the models before that.
        places: where to write the models; geometry.csv is written to the first one.
        reference: the target state, if it is known.
        errors: predicted errors of the atoms at the end, Å, which become the models' B-factors. At a time before the
            end they are that fraction of it, as the initial model has none.

    Returns:
        Scores of the geometry before and after, of idealised models also the CA RMSD to the reference; and the last
        model.
    """
    times = trajectory.frame_times(settings.frames)
    frames, topology = fit.move(model, times), geometry.topology(model)
    rows = [model_geometry(topology, carried) for carried in frames]
    if settings.idealise:
        ideal = geometry.idealise_each(topology, [atoms.positions(carried) for carried in frames])
        frames = [atoms.with_positions(carried, xyz) for carried, xyz in zip(frames, ideal, strict=True)]
        before = [{f"carried_{key}": value for key, value in row.items()} for row in rows]
        rows = [model_geometry(topology, carried) | old for carried, old in zip(frames, before, strict=True)]
    if errors is not None:
        frames = [atoms.with_b_factors(carried, time * errors) for carried, time in zip(frames, times, strict=True)]
    for place in places:
        write_model_files([place.model(carried) for carried in frames], place.folder, errors is not None)
    write_rows(
        places[0].folder / "geometry.csv",
        [{"frame": n, "time": t} | row for n, (t, row) in enumerate(zip(times, rows, strict=True))],
    )
    start = model_geometry(topology, model)
    scores = {f"{key}_{when}": row[key] for key in start for when, row in (("before", start), ("after", rows[-1]))}
    scores["clashes_worst"] = max(row["clashes"] for row in rows)
    if settings.idealise and isinstance(reference, gemmi.Structure):
        scores["rmsd_idealised"] = metrics.ca_displacement(frames[-1], reference)["rmsd"]
    return scores, frames[-1]


def write_model_files(frames: Sequence[gemmi.Structure], folder: Path, with_errors: bool = False) -> None:
    """Write the models of all frames to a file each, the last one as generated.cif, and all as one trajectory.

    The trajectory is a PDB file or, where that format cannot hold the models, an mmCIF file.

    Args:
        frames: the models.
        folder: where to write.
        with_errors: whether the B-factors are predicted errors, so that mmCIF files have them under that name too.
    """
    repeat = ERROR_ITEM if with_errors else None
    for number, carried in enumerate(frames):
        atoms.write_model(folder / f"model_{frame_number(number, len(frames))}.cif", carried, repeat)
    atoms.write_model(folder / "generated.cif", frames[-1], repeat)
    if all(not chain.name.strip() for chain in frames[-1][0]):  # mmCIF has no blank chains: keep them in a PDB as well
        atoms.write_model(folder / "generated.pdb", frames[-1])
    obstacle = next(filter(None, map(atoms.pdb_obstacle, frames)), None)
    if obstacle:
        log.trajectory_in_mmcif(obstacle)
    atoms.write_trajectory(folder / ("trajectory.cif" if obstacle else "trajectory.pdb"), frames)


def model_geometry(topology: geometry.Topology, model: gemmi.Structure) -> dict:
    """`geometry.measure` of a model, without the values that it lacks (no CA atoms, for example)."""
    found = geometry.measure(topology, atoms.positions(model))
    return {key: value for key, value in found.items() if np.isfinite(value)}
