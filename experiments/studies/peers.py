"""Other ways to a model of the target state from the maps of a case, for the table of validations as deposited.

domains: each domain is fitted as a rigid body, as people do by hand. blend: the initial model stays where it is, as a
mixture of both maps says nothing of it. Models of other programs are read from a folder. All begin with the initial
model superposed on the true one, and `domains` also knows which domains there are: both are more than a fit is given.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Int
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from cryotrans_jax.density.overlap import Filtered, Overlap, Placement, body, maximise
from cryotrans_jax.density.simulation import common_grid, simulate_map
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.io.selections import residues
from cryotrans_jax.motion.rigid_bodies import find_bodies

from .. import paths
from .deposited_cases import SUFFIXES

LEAST = 0.06  # fraction of the residues that a domain has at least
CLOSE = 1e-7  # gain of the correlation below which the search for a domain's place ends


def stay(placed: gemmi.Structure, truth: gemmi.Structure, target: Map, resolution: float) -> gemmi.Structure:
    """Leave the model where it is; arguments as for `fit_domains`."""
    return placed


def fit_domains(placed: gemmi.Structure, truth: gemmi.Structure, target: Map, resolution: float) -> gemmi.Structure:
    """Fit the domains of a model into a map, each as a rigid body from where it is to the nearest maximum.

    As ChimeraX's fitmap does, but on band-passed maps (`Overlap.sharp`): domains found their places more often without
    detail coarser than twice the resolution.

    Args:
        placed: the initial model, superposed on `truth`.
        truth: the model of the target state in the map, by which the domains are known.
        target: the map.
        resolution: of the map, Å.

    Returns:
        The model with all domains in their new places.
    """
    domain, xyz = find_domains(placed, truth), atoms.positions(placed)
    heavy, weights = atoms.heavy_atoms(placed)
    own = domain[cKDTree(xyz).query(heavy)[1]]
    grid = common_grid([placed], resolution / 3, resolution)
    moved, fixed = xyz.copy(), body(target, name="target map")
    for number in range(domain.max() + 1):
        part = simulate_map((heavy[own == number], weights[own == number]), *grid, resolution)
        moving = body(part, 0.0, "map of a domain")
        begin = Placement(Rotation.identity(), moving.centre - fixed.centre, 0.0)
        (found,) = maximise([Overlap(Filtered(fixed, resolution, sharp=True), moving)], [begin], CLOSE)
        moved[domain == number] = found.motion(fixed, moving)(xyz[domain == number])
    return atoms.with_positions(placed, moved)


def find_domains(start: gemmi.Structure, end: gemmi.Structure) -> Int[np.ndarray, "atoms"]:
    """Find the rigid bodies that move between two models: the number (0, 1, ...) of each atom of the first one.

    A residue that the second model lacks belongs to the domain of the nearest one that it has.
    """
    x, y = atoms.common_ca(start, end)
    owner = find_bodies(x, y, np.ones(len(x)), least=LEAST)[0].owner
    whole = [residue for residue in residues(start) if len(residue)]
    places = [(atoms.residue_atom(residue) or residue[0]).pos.tolist() for residue in whole]
    return np.repeat(owner[cKDTree(x).query(places)[1]], [len(residue) for residue in whole])


def read_written(folder: Path, case: str, start: gemmi.Structure) -> gemmi.Structure:
    """Read the model that another program wrote for a case.

    Args:
        folder: its models, named CASE.pdb or CASE.cif.
        case: name of the case.
        start: the initial model; the other program's must have all of its residues.

    Raises:
        InputError: there is no such file, or residues are lacking.
    """
    path = next((path for end in SUFFIXES if (path := folder / f"{case}{end}").is_file()), None)
    if path is None:
        raise InputError(f"{folder} has no {case}.pdb: the program wrote no model for this case")
    model = atoms.read_model(path)
    held, count = len(atoms.common_ca(start, model)[0]), len(atoms.common_ca(start)[0])
    if held < count:
        raise InputError(f"{path} has {held} of the {count} residues of the initial model: write all of them")
    return model


PEERS = {"domains": fit_domains, "blend": stay}


def known(names: Sequence[str]) -> Sequence[str]:
    """The names, if all are of PEERS; raise InputError if not."""
    if unknown := [name for name in names if name not in PEERS]:
        raise InputError(f"--peers={unknown[0]} is no other method: choose of {', '.join(PEERS)}")
    return names


def find_folders(texts: Iterable[str]) -> dict[str, str]:
    """Folders of other programs' models by the name of the program, from texts NAME:FOLDER.

    Raises:
        InputError: a text does not have that form, a name comes twice or is one of PEERS, or there is no such folder.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, folder = text.partition(":")
        path = Path(paths.expand(folder))
        if not name or not folder or name in (*PEERS, *found) or not path.is_dir():
            raise InputError(f"--models_of={text} is not NAME:FOLDER: give a new name and a folder of models")
        found[name] = str(path)
    return found


def check_models(folders: Mapping[str, str], cases: Sequence[str]) -> None:
    """Raise InputError if a folder has no model for any of the cases, as its files then have other names."""
    for folder in folders.values():
        if not any((Path(folder) / f"{case}{suffix}").is_file() for case in cases for suffix in SUFFIXES):
            raise InputError(f"{folder} has no model for a case of this study: name them like {cases[0]}.pdb")
