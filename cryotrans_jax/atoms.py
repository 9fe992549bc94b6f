"""Atomic models: read, write, move and compare them, and simulate maps from them."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import gemmi
import numpy as np
import scipy.fft
from jaxtyping import Float

from cryotrans_jax import memory, structures
from cryotrans_jax.files import InputError, whole_file
from cryotrans_jax.maps import FARTHEST, Map

SIGMA = 0.225  # width of an atom's Gaussian for each Å of resolution, 1/(π√2) (ChimeraX molmap)
REACH = 5  # widths at which a Gaussian is cut: exp(-12.5), 4e-6 of its peak
BOX = 1 << 31  # voxels that are made about models at most; more than that a stray atom asks for
VOXEL = 16  # bytes that each of them takes while a map is made
PDB_ATOMS = 99999  # the PDB format's numbers have five digits
BLOCK = 8  # voxels along the side of a block of atoms that are spread together, at least
Atoms = tuple[Float[np.ndarray, "atoms 3"], Float[np.ndarray, "atoms"]]
BIOLOGICAL = {"H", "D", "C", "N", "O", "S", "Se", "P", "F", "Cl", "Br", "I", "B"}  # within an amino acid


def read_model(path: str | os.PathLike, all_models: bool = False) -> gemmi.Structure:
    """Read one model from a PDB or mmCIF file, plain or compressed, with elements even if the file lacks them.

    Of a file with several models the first is read, with an `InputWarning` that says so. Residues of one chain that
    repeat a number and differ in segment (CHARMM, NAMD), or are separated by TER, become chains of their own, with a
    warning as well.

    Args:
        path: of the file.
        all_models: take all models that stand apart, as copies in a biological assembly do, as chains of one.

    Returns:
        A structure with one model.

    Raises:
        InputError: the file is missing, is no atomic model, has no atoms, or coordinates that are no numbers, no place,
            or not in the columns of the PDB format.
    """
    return _checked(path, structures.one_model(path, structures.read(path), all_models))


def read_models(path: str | os.PathLike) -> list[gemmi.Structure]:
    """All models of such a file, each by itself: the frames of a trajectory.

    Raises:
        InputError: as `read_model` does.
    """
    whole, each = structures.read(path), []
    for model in whole:
        one = gemmi.Structure()
        one.name, one.cell = whole.name, whole.cell
        one.add_model(model)
        each.append(_checked(path, one))
    return each


def write_model(path: str | os.PathLike, structure: gemmi.Structure) -> None:
    """Nothing; the model is in the file, mmCIF or PDB by its suffix, whole or not at all.

    Raises:
        InputError: the suffix is neither .cif nor .pdb, or the model does not fit the PDB format.
    """
    path = Path(path)
    if path.suffix.lower() not in (".cif", ".pdb"):
        raise InputError(f"{path} is not a model's name: end it in .cif or .pdb")
    structure = structure.clone()
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".cif":
            _complete(structure)
            structure.make_mmcif_document().write_file(str(temporary))
            return
        try:
            structure.setup_entities()
            structure.write_pdb(str(temporary))
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path} cannot hold this model ({error}): end the name in .cif") from error


def write_trajectory(path: str | os.PathLike, frames: Sequence[gemmi.Structure]) -> None:
    """Nothing; the frames of one model are in the file as its models 1, 2, ..., mmCIF or PDB by its suffix.

    Raises:
        InputError: as `write_model` does.
    """
    together = frames[0].clone()
    for number, frame in enumerate(frames[1:], 2):
        model = frame[0].clone()
        model.num = number
        together.add_model(model)
    write_model(path, together)


def pdb_obstacle(structure: gemmi.Structure) -> str | None:
    """Why the PDB format cannot hold a model for all programs, in words; None if it can."""
    count, chains = structure[0].count_atom_sites(), [chain.name for chain in structure[0]]
    numbers = [n for chain in structure[0] for residue in chain if (n := residue.seqid.num) is not None]
    if count + len(chains) > PDB_ATOMS:  # each chain's end is numbered too
        return f"it has {count} atoms, more than {PDB_ATOMS}"
    if long := [name for name in chains if len(name) > 1]:
        return f"its chain {long[0]} has a name of more than one letter"
    if long := [residue.name for chain in structure[0] for residue in chain if len(residue.name) > 3]:
        return f"its residue {long[0]} has a name of more than three letters"
    if len(numbers) < sum(len(chain) for chain in structure[0]):
        return "it has a residue without a number"
    if not -999 <= min(numbers) <= max(numbers) <= 9999:
        return f"its residues are numbered from {min(numbers)} to {max(numbers)}"
    low, high = positions(structure).min(), positions(structure).max()
    if low <= -999.9995 or high >= 9999.9995:
        return f"its coordinates are from {low:.0f} to {high:.0f} Å"
    return None


def positions(structure: gemmi.Structure) -> Float[np.ndarray, "atoms 3"]:
    """The position of every atom of the first model, in Å, chain by chain in the file's order."""
    return np.array([site.atom.pos.tolist() for site in structure[0].all()], np.float64).reshape(-1, 3)


def moved(structure: gemmi.Structure, xyz: Float[np.ndarray, "atoms 3"]) -> gemmi.Structure:
    """A copy of a model with its atoms at `xyz` [Å], in the order of `positions`; all else is kept.

    Anisotropic displacements are dropped: how they turn is not known.
    """
    copy = structure.clone()
    for site, position in zip(copy[0].all(), np.asarray(xyz, np.float64), strict=True):
        site.atom.pos = gemmi.Position(*position)
        site.atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    return copy


def with_b_factors(structure: gemmi.Structure, values: Float[np.ndarray, "atoms"]) -> gemmi.Structure:
    """A copy of a model whose atoms have the values as isotropic B-factors, in the order of `positions`."""
    copy = structure.clone()
    for site, value in zip(copy[0].all(), values, strict=True):
        site.atom.b_iso = float(value)
        site.atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    return copy


def heavy_atoms(structure: gemmi.Structure) -> Atoms:
    """Positions [Å] and atomic numbers of all but hydrogens, of the first of alternative conformations."""
    atoms = [
        (*atom.pos.tolist(), atom.element.atomic_number)
        for chain in structure[0]
        for residue in chain.first_conformer()
        for atom in residue.first_conformer()
        if not atom.is_hydrogen()
    ]
    table = np.array(atoms, np.float64).reshape(-1, 4)
    return table[:, :3], table[:, 3]


def molecular_weight(structure: gemmi.Structure) -> float:
    """The weight in Da of a model's atoms, without water, with the hydrogens that its residues have.

    Hydrogens come with the heavy atoms that are there, in the residue's own proportion, whether the file has them or
    not, so that a backbone weighs what a backbone does. Occupancies do not count: an atom that is partly elsewhere is
    still one.
    """
    weights = (
        _hydrogens(residue.name) * sum(a.element.weight for a in residue.first_conformer() if not a.is_hydrogen())
        for chain in structure[0]
        for residue in chain.first_conformer()
        if not residue.is_water()
    )
    return sum(weights, 0.0)


def common_ca(*structures: gemmi.Structure) -> tuple[Float[np.ndarray, "atoms 3"], ...]:
    """For each model, the positions [Å] of the CA atoms that all of them have, in the first one's order.

    Atoms are the same where chain name and residue number are. Models of one chain each, with names
    that all differ from the first's, are matched by residue number and residue name.

    Raises:
        InputError: there is no CA atom in common.
    """
    tables = [_ca_atoms(structure) for structure in structures]
    chains = [{chain for chain, _, _ in table} for table in tables]
    if all(len(names) == 1 for names in chains) and all(chains[0].isdisjoint(names) for names in chains[1:]):
        tables = [{key[1:]: xyz for key, xyz in table.items()} for table in tables]
    else:
        tables = [{key[:2]: xyz for key, xyz in table.items()} for table in tables]
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    if not shared:
        counts = " and ".join(str(len(table)) for table in tables)
        raise InputError(
            f"the models have no CA atom in common (of {counts}): give them one naming of chains and residues"
        )
    return tuple(np.array([table[key] for key in shared]) for table in tables)


def superpose(mobile: gemmi.Structure, fixed: gemmi.Structure) -> gemmi.Structure:
    """A copy of `mobile` turned and shifted onto `fixed`, with least squares over their common CA atoms.

    Raises:
        InputError: they have fewer than three CA atoms in common, or these lie on one line.
    """
    onto, move = common_ca(fixed, mobile)
    if len(onto) < 3:
        raise InputError(f"the models have {len(onto)} CA atoms in common: superposing them takes three")
    places, moving = ([gemmi.Position(*position) for position in xyz] for xyz in (onto, move))
    copy, transform = mobile.clone(), gemmi.superpose_positions(places, moving).transform
    if not np.isfinite(transform.mat.tolist()).all():
        raise InputError(
            "the CA atoms that the models have in common lie on one line: superposing them takes others too"
        )
    copy[0].transform_pos_and_adp(transform)
    return copy


def simulate(
    structure: gemmi.Structure,
    resolution: float,
    *,
    like: Map | None = None,
    voxel_size: float | Float[np.ndarray, "3"] | None = None,
    cover: Sequence[gemmi.Structure] = (),
) -> Map:
    """The map of a model at a resolution in Å (`simulate_map`), on the grid of a map `like`, or in a box about it.

    The box also holds the models `cover`; its voxels [Å] are a third of the resolution unless given.

    Raises:
        InputError: both a grid and what is to make one are given.
    """
    if like is None:
        grid = common_grid([structure, *cover], voxel_size or resolution / 3, resolution)
    elif voxel_size or cover:
        raise InputError("the map like already sets the grid: leave out voxel_size and cover")
    else:
        grid = like.density.shape, like.voxel_size, like.origin
    return simulate_map(structure, *grid, resolution)


def simulate_map(
    atoms: gemmi.Structure | Atoms,
    shape: tuple[int, int, int],
    voxel_size: float | Float[np.ndarray, "3"],
    origin: Float[np.ndarray, "3"],
    resolution: float,
) -> Map:
    """The map of a model, or of positions [Å] and weights, on a given grid, at a resolution in Å.

    density(y) = Σ_a Z_a (2πσ²)^(-3/2) exp(-|y - x_a|² / 2σ²), σ = 0.225 resolution, so that it integrates
    to the sum of the atomic numbers (ChimeraX molmap); hydrogens are left out, mass outside the grid is lost.
    Atoms are spread together, a block of voxels' atoms at a time: over a box about the block the sum of
    products g(x) g(y) g(z) is one matrix product.
    """
    xyz, weights = heavy_atoms(atoms) if isinstance(atoms, gemmi.Structure) else atoms
    voxel_size, origin = (np.broadcast_to(np.asarray(v, np.float64), 3).copy() for v in (voxel_size, origin))
    sigma = SIGMA * resolution / voxel_size  # from here on in voxels
    x, reach = (np.asarray(xyz, np.float64) - origin) / voxel_size, np.ceil(REACH * sigma).astype(int)
    weights = np.asarray(weights, np.float64) / (np.sqrt(2 * np.pi) * SIGMA * resolution) ** 3
    density = np.zeros(shape)
    side = np.maximum(reach, BLOCK)
    for block, members in _blocks(x / side):
        low = np.maximum(block * side - reach, 0)
        high = np.minimum((block + 1) * side + reach + 1, shape)
        if np.any(low >= high):
            continue
        offsets = (np.arange(low[k], high[k])[:, None] - x[members, k] for k in range(3))
        gx, gy, gz = (np.exp(-0.5 * (d / s) ** 2) for d, s in zip(offsets, sigma, strict=True))
        plane = (gx * weights[members])[:, None] * gy
        box = tuple(slice(*ends) for ends in zip(low, high, strict=True))
        density[box] += (plane.reshape(-1, len(members)) @ gz.T).reshape(high - low)
    return Map(density.astype(np.float32), voxel_size, origin)


def common_grid(
    structures: Sequence[gemmi.Structure],
    voxel_size: float | Float[np.ndarray, "3"],
    resolution: float,
    padding: float | None = None,
) -> tuple[tuple[int, int, int], Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Shape, voxel size and origin [Å] of the smallest box that holds all models with padding on every side.

    The padding is 3 × resolution unless given [Å]. Sides are even and quick to transform; the origin is a
    whole number of voxels from 0. Raises InputError where the box would have more than BOX voxels, or more than there
    is memory for.
    """
    padding = 3 * resolution if padding is None else padding
    voxel_size = np.broadcast_to(np.asarray(voxel_size, np.float64), 3).copy()
    xyz = np.concatenate([positions(structure) for structure in structures])
    low = np.floor((xyz.min(0) - padding) / voxel_size).astype(int)
    needed = np.ceil((xyz.max(0) + padding) / voxel_size).astype(int) - low + 1
    if (sides := needed.astype(float)).prod() > min(BOX, memory.available() / VOXEL):
        raise InputError(
            f"the box about the models would be {' x '.join(f'{n:.0f}' for n in sides)} voxels, more than there is "
            "memory for: take larger voxels, or remove atoms that lie far from the rest"
        )
    shape = tuple(2 * scipy.fft.next_fast_len(int(n + 1) // 2, real=True) for n in needed)
    return shape, voxel_size, (low - (np.array(shape) - needed) // 2) * voxel_size


def _checked(path, structure):
    """The structure of one model, with its elements. Raises InputError where positions are no numbers or no place."""
    xyz = positions(structure)
    if not np.isfinite(xyz).all():
        raise InputError(f"{path} has coordinates that are not numbers: mend or remove those atoms")
    far = np.abs(xyz).max(initial=0.0)
    if far > FARTHEST:
        raise InputError(f"{path} has an atom {far:g} Å from 0: mend or remove it, coordinates are in Å")
    _mend_elements(structure)
    return structure


def _blocks(x):
    """Pairs of a block, as whole numbers of its side, and the indices of the atoms inside it."""
    cells = np.floor(x).astype(int)
    blocks, owner, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(owner.ravel(), kind="stable")
    return zip(blocks, np.split(order, np.cumsum(count)[:-1]), strict=True) if len(x) else ()


def _ca_atoms(structure):
    """The positions of CA atoms by chain name, residue number (with insertion code) and residue name."""
    return {
        (chain.name, str(residue.seqid), residue.name): ca.pos.tolist()
        for chain in structure[0]
        for residue in chain.first_conformer()
        if (ca := residue.find_atom("CA", "*", gemmi.Element("C")))
    }


@functools.cache
def _hydrogens(name):
    """A residue's weight over that of its heavy atoms; an unknown one's is that of the amino acids."""
    known = gemmi.find_tabulated_residue(name)
    if not known.found() or not known.weight:
        known = gemmi.find_tabulated_residue("LEU")
    lost = (
        2 if known.is_amino_acid() or known.is_nucleic_acid() else 0
    )  # with the water that a bond of the chain sets free
    weight = known.weight - lost / 2 * 18.015
    return weight / (weight - 1.008 * (known.hydrogen_count - lost))


def _mend_elements(structure):
    """Nothing; elements that the file leaves out are set: the CA of an amino acid is carbon, not calcium.

    A residue with N, CA and C is an amino acid, whatever its name (HSD, HSE, HIP, ...).
    """
    for chain in structure[0]:
        for residue in chain:
            known = gemmi.find_tabulated_residue(residue.name)
            polymer = known.is_amino_acid() or known.is_nucleic_acid()
            polymer = polymer or {"N", "CA", "C"} <= {atom.name for atom in residue}
            for atom in residue:
                if atom.element.atomic_number == 0 or polymer and atom.element.name not in BIOLOGICAL:
                    letter = next((c for c in atom.name if c.isalpha()), "C")
                    atom.element = gemmi.Element(letter if letter in "HCNOSP" else "C")


def _complete(structure):
    """Nothing; the model gets what mmCIF needs: chain names, entities, sequences, numbers in the sequence."""
    for chain in structure[0]:
        chain.name = chain.name.strip() or "A"  # mmCIF has no word for a chain without a name
    structure.setup_entities()
    for entity in structure.entities:
        if entity.entity_type == gemmi.EntityType.Polymer and not entity.full_sequence:
            entity.full_sequence = structure[0].get_subchain(entity.subchains[0]).extract_sequence()
    structure.assign_label_seq_id(True)
