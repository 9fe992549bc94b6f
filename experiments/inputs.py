"""Read the maps of a run, or simulate them from models."""

from collections.abc import Sequence
from pathlib import Path

import gemmi
import numpy as np

from cryotrans_jax.density import simulation
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, read_map

from . import log
from .case import Case
from .find import base_model, find, find_entry, resolution_in_name
from .run_folder import write_input


def built_in_pair(out_dir: Path) -> Case:
    """Simulate the built-in pair at 3 and 7 Å, with both models, and write its files to `out_dir`/inputs."""
    folder = out_dir / "inputs"
    folder.mkdir(parents=True, exist_ok=True)
    models = dict(zip(("closed", "open"), hinge_pair(), strict=True))
    grid = simulation.common_grid(list(models.values()), 1.0, 3.0)
    files, maps = {}, {}
    for (name, model), resolution in zip(models.items(), (3.0, 7.0), strict=True):
        atoms.write_model(folder / f"{name}.cif", model)
        key = f"{name}_{resolution:g}A.mrc"
        files[key], maps[key] = folder / key, simulation.simulate_map(model, *grid, resolution)
        write_input(files[key], maps[key])
    log.built_in_pair(folder)
    (initial, target), (start, end) = maps.values(), models.values()
    return Case(initial, [target], files, ["open_7A"], 3.0, [7.0], start, [end])


def load_maps(
    names: Sequence[str],
    data_dir: str,
    out_dir: Path,
    voxel_sizes: Sequence[list[float] | None],
    all_models: bool = False,
) -> tuple[list[Map], dict[str, Path]]:
    """Read the maps, and simulate those that are missing.

    A map that is missing and has a name of the form <PDB id>_<r>A.mrc is simulated at r Å from the entry's model, after
    superposition on the initial entry's model, and written to `out_dir`/inputs. Its grid is the initial map's; if that
    is simulated as well, it is a grid that holds all models.

    Args:
        names: of the maps; the initial map comes first.
        data_dir: where names that are not files are looked up.
        voxel_sizes: of each map, where its header has none or a wrong one (Å).
        all_models: take all models of a file that do not overlap, instead of the first.

    Returns:
        The maps, and the file of each name.
    """
    initial, files = names[0], {name: find(name, data_dir) for name in names}
    entries = {name: find_entry(name, data_dir) for name, path in files.items() if path is None}
    sizes = dict(zip(names, voxel_sizes, strict=True))
    maps = {name: read_map(path, sizes[name]) for name, path in files.items() if path}
    if entries:
        models = superposed_models(entries, initial, data_dir, all_models)
        like = maps.get(initial) or next(iter(maps.values()), None)
        (out_dir / "inputs").mkdir(parents=True, exist_ok=True)
        for name, map_ in simulate_entries(models, like).items():
            maps[name], files[name] = map_, out_dir / "inputs" / Path(name).name
            write_input(files[name], map_)
    return [maps[name] for name in names], files


def superposed_models(
    entries: dict[str, Path], initial: str, data_dir: str, all_models: bool
) -> dict[str, gemmi.Structure]:
    """Read the models of entries, by the names of their maps; superpose them on the initial map's, if it has one."""
    models = {name: atoms.read_model(path, all_models) for name, path in entries.items()}
    base = None if initial in models else base_model(initial, data_dir)
    fixed = models.get(initial) or (base and atoms.read_model(base, all_models))
    if fixed is None:
        return models
    return {name: model if name == initial else atoms.superpose(model, fixed) for name, model in models.items()}


def simulate_entries(models: dict[str, gemmi.Structure], like: Map | None) -> dict[str, Map]:
    """Simulate maps of models by the resolutions in their names, on the grid of `like` or one that holds them all."""
    if like:
        grid = like.density.shape, like.voxel_size, like.origin
    else:
        sharpest = min(resolution_in_name(name) for name in models)
        grid = simulation.common_grid(list(models.values()), sharpest / 3, sharpest)
    for name, model in models.items():
        check_inside(model, *grid, f"the model of {name}")
    return {name: simulation.simulate_map(model, *grid, resolution_in_name(name)) for name, model in models.items()}


def check_inside(model: gemmi.Structure, shape, voxel_size, origin, name: str) -> None:
    """Raise InputError where heavy atoms lie outside the grid."""
    x = (atoms.heavy_atoms(model)[0] - origin) / voxel_size
    outside = int(((x < -0.5) | (x > np.array(shape) - 0.5)).any(axis=1).sum())
    if outside:
        raise InputError(
            f"{outside} of {len(x)} atoms of {name} lie outside the map: move the model into it (experiments.simulate "
            "--superpose_on), or simulate all maps in a box that covers all models (--cover)"
        )


def finest_detail(voxel_size: float) -> float:
    """Finest detail (Å) on voxels of this size (Å): twice their size over √3, along a diagonal."""
    return 2 * voxel_size / 3**0.5


def check_detail(resolution: float, voxel_size: float, flag: str = "--resolution") -> None:
    """Raise InputError where a map of this resolution cannot be simulated on voxels of this size (both in Å)."""
    if resolution < finest_detail(voxel_size):
        raise InputError(
            f"{flag}={resolution:g} is finer than the {finest_detail(voxel_size):.3g} Å that voxels of "
            f"{voxel_size:.3g} Å can hold: give it in Å (1 nm is 10 Å), or take smaller voxels"
        )
