"""Pairs of models whose answer is known: folders with two models and a pair.json, and the known paths between them."""

import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import gemmi
import numpy as np

from cryotrans_jax.density import simulation
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError, read_bytes, read_json
from cryotrans_jax.io.maps import FARTHEST

from .case import Case
from .inputs import check_detail

INITIAL_RESOLUTION, VOXEL_SIZE = 3.0, 1.0  # Å
MAX_BYTES = 1 << 30  # largest size of the frames of a known path


def pair_folder(data_dir: str, name: str) -> Path:
    """Folder of a pair."""
    folder = Path(data_dir) / name
    if not (folder / "pair.json").is_file():
        raise InputError(f"no {folder}/pair.json: give the folder that holds the pairs with --data_dir")
    return folder


def load_models(folder: Path, back: bool = False) -> tuple[gemmi.Structure, gemmi.Structure]:
    """Read the models of a pair's folder, the target's first if `back`, superposed if its pair.json says so."""
    if not (folder / "pair.json").is_file():
        raise InputError(f"no {folder}/pair.json: give the folder of a pair")
    named = read_description(folder)
    states = ("target", "initial") if back else ("initial", "target")
    together = bool(named.get("all_models"))
    start, end = (atoms.read_model(file_of_pair(folder, named.get(state)), together) for state in states)
    return start, atoms.superpose(end, start) if named.get("superpose") else end


def load_pair(folder: Path, resolution: float, back: bool = False) -> Case:
    """Load the case of a pair's folder, or in reverse (`back`): both models' maps on a common grid."""

    check_detail(resolution, VOXEL_SIZE)
    start, end = load_models(folder, back)
    grid = simulation.common_grid([start, end], VOXEL_SIZE, INITIAL_RESOLUTION)
    maps = [simulation.simulate_map(m, *grid, r) for m, r in ((start, INITIAL_RESOLUTION), (end, resolution))]
    return Case(maps[0], [maps[1]], {}, [folder.name], INITIAL_RESOLUTION, [resolution], start, [end])


def known_path(folder: Path, initial: gemmi.Structure) -> list[gemmi.Structure]:
    """Models of the path between a pair's states, in the initial state's frame; empty if the pair names none."""

    named = read_description(folder).get("path", {})
    if not isinstance(named, dict) or not isinstance(named.get("models", []), list):
        raise InputError(f"the path in {folder / 'pair.json'} is none: give models, or frames, as its keys")
    together = bool(read_description(folder).get("all_models"))
    models = [atoms.read_model(file_of_pair(folder, name), together) for name in named.get("models", [])]
    if "frames" in named:
        index, frames = read_frames(file_of_pair(folder, named["frames"]))
        for xyz in frames:
            whole = atoms.positions(initial)
            if index.max(initial=-1) >= len(whole) or index.min(initial=0) < 0:
                raise InputError(f"{named['frames']} moves atoms that {folder / named['initial']} lacks")
            whole[index] = xyz
            models.append(atoms.with_positions(initial, whole))
    return models


def read_description(folder: Path) -> dict:
    """Read the pair.json of a pair's folder."""
    return read_json(folder / "pair.json")


def file_of_pair(folder: Path, name: Any) -> Path:
    """Path of a file in a pair's folder."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
        raise InputError(f"{folder / 'pair.json'} names a file {name!r}: give names of files in its own folder")
    if not os.path.isfile(folder / name):  # also False if the name is too long for a file
        raise InputError(f"{folder} has no {name}, which its pair.json names: put it there")
    return folder / name


def read_frames(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the frames of a known path from an .npz with `atom_index` and `xyz`.

    Returns:
        Rows of the moving atoms (moving,), and their positions in each frame (frames, moving, 3), Å.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            index, frames = (read_array(packed, name) for name in ("atom_index", "xyz"))
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path} holds no frames ({error}): give an .npz with atom_index and xyz") from error
    if index.ndim != 1 or index.dtype.kind not in "iu" or frames.dtype.kind != "f" or frames.ndim != 3:
        raise InputError(f"{path} holds no frames: atom_index is to be whole numbers, xyz (frames, atoms, 3)")
    if frames.shape[1:] != (len(index), 3) or not (abs(frames) < FARTHEST).all():
        raise InputError(f"{path} has frames {frames.shape} of {len(index)} atoms: xyz is to be their places in Å")
    return index, frames


def read_array(packed: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read an array of an opened .npz; its memory is not allocated before the data are read, and nothing is unpickled.

    Raises:
        ValueError: the array is damaged, or has more than MAX_BYTES.
        KeyError: there is no array of this name.
    """
    with packed.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, kind = read(file)
        wanted = math.prod(shape) * kind.itemsize
        if kind.hasobject or not 0 < wanted <= MAX_BYTES:
            raise ValueError(f"{name} would be {wanted} bytes of {kind}")
        data = read_bytes(file, wanted)
    if len(data) < wanted:
        raise ValueError(f"of the {wanted} bytes of {name} {len(data)} are there")
    return np.frombuffer(data, kind).reshape(shape, order="F" if by_columns else "C")
