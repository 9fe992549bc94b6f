"""Read, write, move and compare atomic models, and simulate maps from them."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Float

from cryotrans_jax.io import structures
from cryotrans_jax.io.files import InputError, whole_file
from cryotrans_jax.io.maps import FARTHEST

PDB_ATOMS = 99999  # serial numbers of the PDB format have five digits
NUCLEOTIDE_ATOMS = ("C4'", "C4*", "P")  # the first that is there stands for a nucleotide; C4* in files before 2007
RESIDUE_ATOMS = ("CA", "C4'", "P")  # names that an atom has that stands for a residue
Atoms = tuple[Float[np.ndarray, "atoms 3"], Float[np.ndarray, "atoms"]]


def read_model(path: str | os.PathLike, all_models: bool = False) -> gemmi.Structure:
    """Read one model from a PDB or mmCIF file, plain or compressed, with elements even if the file lacks them.

    Of a file with several models the first is read, with an `InputWarning` that says so. Residues of one chain that
    repeat a number and differ in segment (CHARMM, NAMD), or are separated by TER, become separate chains, also with a
    warning. Elements that no amino acid or nucleotide has, such as calcium of CA atoms, become those of the atoms'
    names, also with a warning; true ions are kept.

    Args:
        path: path of the file.
        all_models: read all models that do not overlap, as copies in a biological assembly, as chains of one model.

    Returns:
        A structure with one model.

    Raises:
        InputError: the file is missing, is not an atomic model or has no atoms, or coordinates are not numbers, too
            large, or not in the columns of the PDB format.
    """
    return _validate(path, structures.one_model(path, structures.read(path), all_models))


def read_models(path: str | os.PathLike) -> list[gemmi.Structure]:
    """Read all models of a PDB or mmCIF file, each as a structure: the frames of a trajectory.

    Raises:
        InputError: as `read_model` does.
    """
    whole, each = structures.read(path), []
    for model in whole:
        one = gemmi.Structure()
        one.name, one.cell = whole.name, whole.cell
        one.add_model(model)
        each.append(_validate(path, one))
    return each


def write_model(path: str | os.PathLike, structure: gemmi.Structure, b_factors_are: str | None = None) -> None:
    """Write the model as mmCIF or PDB, by the suffix of the name; the file appears whole or not at all.

    Args:
        path: path of the file, which ends in .cif or .pdb.
        structure: the model.
        b_factors_are: name of a further item of _atom_site with the values of the B-factors, for what they stand for;
            only in mmCIF.

    Raises:
        InputError: the suffix is neither .cif nor .pdb, or the model does not fit the PDB format.
    """
    path = Path(path)
    if path.suffix.lower() not in (".cif", ".pdb"):
        raise InputError(f"{path} is not a model's name: end it in .cif or .pdb")
    structure = structure.clone()
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".cif":
            _complete_for_mmcif(structure)
            document = structure.make_mmcif_document()
            if b_factors_are:
                _repeat_b_factors(document.sole_block(), b_factors_are)
            document.write_file(str(temporary))
            return
        try:
            structure.setup_entities()
            structure.write_pdb(str(temporary))
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path} cannot hold this model ({error}): end the name in .cif") from error


def write_trajectory(path: str | os.PathLike, frames: Sequence[gemmi.Structure]) -> None:
    """Write the frames of one model as models 1, 2, ... of one mmCIF or PDB file.

    Args:
        path: path of the file, which ends in .cif or .pdb.
        frames: structures with the same atoms.

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
    """Explain in words why the PDB format cannot hold a model for all programs; None if it can."""
    count, chains = structure[0].count_atom_sites(), [chain.name for chain in structure[0]]
    numbers = [n for chain in structure[0] for residue in chain if (n := residue.seqid.num) is not None]
    if count + len(chains) > PDB_ATOMS:  # TER records are numbered too
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
    """Positions [Å] of all atoms of the first model, chain by chain in the file's order."""
    return structures.positions(structure[0])


def with_positions(structure: gemmi.Structure, xyz: Float[np.ndarray, "atoms 3"]) -> gemmi.Structure:
    """Copy a model with its atoms at new positions; all else is kept.

    Anisotropic displacements are dropped, because their rotation is not known.

    Args:
        structure: the model.
        xyz: positions, Å, in the order of `positions`.
    """
    copy = structure.clone()
    for site, position in zip(copy[0].all(), np.asarray(xyz, np.float64), strict=True):
        site.atom.pos = gemmi.Position(*position)
        site.atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    return copy


def with_b_factors(structure: gemmi.Structure, values: Float[np.ndarray, "atoms"]) -> gemmi.Structure:
    """Copy a model with new isotropic B-factors, in the order of `positions`."""
    copy = structure.clone()
    for site, value in zip(copy[0].all(), values, strict=True):
        site.atom.b_iso = float(value)
        site.atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    return copy


def heavy_sites(structure: gemmi.Structure) -> Iterator[tuple[gemmi.Chain, gemmi.Residue, gemmi.Atom]]:
    """Yield all atoms but hydrogens, of the first alternative conformation, with their chains and residues."""
    for chain in structure[0]:
        for residue in chain.first_conformer():
            yield from ((chain, residue, atom) for atom in residue.first_conformer() if not atom.is_hydrogen())


def heavy_atoms(structure: gemmi.Structure) -> Atoms:
    """Positions [Å] and atomic numbers of the atoms of `heavy_sites`."""
    sites = [(*atom.pos.tolist(), atom.element.atomic_number) for _, _, atom in heavy_sites(structure)]
    table = np.array(sites, np.float64).reshape(-1, 4)
    return table[:, :3], table[:, 3]


def molecular_weight(structure: gemmi.Structure) -> float:
    """Molecular weight [Da] of a model, without water, with the hydrogens that its residues have.

    Hydrogens are counted in each residue's own proportion to the heavy atoms present, whether or not the file has
    them, so that a backbone weighs what a backbone does. Occupancies are ignored: an atom with alternative positions is
    one atom.
    """
    weights = (
        _hydrogen_factor(residue.name) * sum(a.element.weight for a in residue.first_conformer() if not a.is_hydrogen())
        for chain in structure[0]
        for residue in chain.first_conformer()
        if not residue.is_water()
    )
    return sum(weights, 0.0)


def common_ca(*structures: gemmi.Structure) -> tuple[Float[np.ndarray, "atoms 3"], ...]:
    """Positions [Å] of the atoms, one a residue (`residue_atom`), that several models have in common.

    These are CA atoms, and C4' of nucleotides. They correspond by chain name and residue number. Where each model has
    one chain of amino acids, and not all of these chains have one name, they correspond by residue number and residue
    name; nucleotides likewise.

    Args:
        structures: the models.

    Returns:
        For each model an array of positions, in the order of the first model.

    Raises:
        InputError: there is no such atom in common.
    """
    tables = [_residue_atoms(structure) for structure in structures]
    renamed = {
        kind: _are_renamed([{key[0] for key in table if key[3] == kind} for table in tables]) for kind in RESIDUE_ATOMS
    }
    tables = [
        {(key[1:] if renamed[key[3]] else (key[0], key[1], key[3])): xyz for key, xyz in table.items()}
        for table in tables
    ]
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    if not shared:
        counts = " and ".join(str(len(table)) for table in tables)
        raise InputError(
            f"the models have no CA atom in common, and no C4' of a nucleotide (of {counts} residues): give them one "
            "naming of chains and residues"
        )
    return tuple(np.array([table[key] for key in shared]) for table in tables)


def residue_atom(residue: gemmi.Residue) -> gemmi.Atom | None:
    """The atom that stands for a residue in scores: CA of an amino acid, C4' of a nucleotide, None of others.

    C4' is chosen because every nucleotide has it, while P is lacking at 5' ends; P stands for a nucleotide only in
    models without sugars.
    """
    if ca := residue.find_atom("CA", "*", gemmi.Element("C")):
        return ca
    names = NUCLEOTIDE_ATOMS if structures.is_nucleotide(residue) else ()
    return next(filter(None, (residue.find_atom(name, "*") for name in names)), None)


def residue_sites(structure: gemmi.Structure) -> Iterator[tuple[gemmi.Chain, gemmi.Residue, gemmi.Atom]]:
    """Every residue of the first conformation that has a `residue_atom`, with its chain and that atom."""
    for chain in structure[0]:
        for residue in chain.first_conformer():
            if atom := residue_atom(residue):
                yield chain, residue, atom


def superpose(mobile: gemmi.Structure, fixed: gemmi.Structure) -> gemmi.Structure:
    """Copy `mobile` superposed on `fixed`, by least squares over the atoms of `common_ca`.

    Raises:
        InputError: they have fewer than three such atoms in common, or these lie on one line.
    """
    onto, move = common_ca(fixed, mobile)
    if len(onto) < 3:
        raise InputError(f"the models have {len(onto)} residues in common: superposing them takes three")
    places, moving = ([gemmi.Position(*position) for position in xyz] for xyz in (onto, move))
    copy, transform = mobile.clone(), gemmi.superpose_positions(places, moving).transform
    if not np.isfinite(transform.mat.tolist()).all():
        raise InputError(
            "the residues that the models have in common lie on one line: superposing them takes others too"
        )
    copy[0].transform_pos_and_adp(transform)
    return copy


def _validate(path, structure):
    """Raise InputError if positions of a structure of one model are not numbers or too large; return the structure."""
    xyz = positions(structure)
    if not np.isfinite(xyz).all():
        raise InputError(f"{path} has coordinates that are not numbers: correct or remove those atoms")
    far = np.abs(xyz).max(initial=0.0)
    if far > FARTHEST:
        raise InputError(f"{path} has an atom {far:g} Å from 0: correct or remove it, coordinates are in Å")
    return structure


def _residue_atoms(structure):
    """Positions of `residue_atom`s by chain name, residue number (with insertion code), residue name and atom name."""
    return {
        (chain.name, str(residue.seqid), residue.name, atom.name.replace("*", "'")): atom.pos.tolist()
        for chain, residue, atom in residue_sites(structure)
    }


def _are_renamed(chains):
    """Whether models with these sets of chain names have one chain each, and not all under one name."""
    return all(len(names) == 1 for names in chains) and any(names != chains[0] for names in chains[1:])


@functools.cache
def _hydrogen_factor(name):
    """Ratio of a residue's weight to that of its heavy atoms; for an unknown residue that of leucine."""
    known = gemmi.find_tabulated_residue(name)
    if not known.found() or not known.weight:
        known = gemmi.find_tabulated_residue("LEU")
    polymer = known.is_amino_acid() or known.is_nucleic_acid()
    lost = 2 if polymer else 0  # hydrogens: each bond of the chain releases one water
    weight = known.weight - lost / 2 * 18.015
    return weight / (weight - 1.008 * (known.hydrogen_count - lost))


def _repeat_b_factors(block, name):
    """Add an item of this name with the values of the B-factors to the atoms of an mmCIF block."""
    values = [*block.find_loop("_atom_site.B_iso_or_equiv")]
    block.find_loop("_atom_site.id").get_loop().add_columns([f"_atom_site.{name}"], "?")
    column = block.find_loop(f"_atom_site.{name}")
    for row, value in enumerate(values):
        column[row] = value


def _complete_for_mmcif(structure):
    """Add what mmCIF needs: chain names, entities, sequences, sequence numbers."""
    for chain in structure[0]:
        chain.name = chain.name.strip() or "A"  # mmCIF cannot express a chain without a name
    structure.setup_entities()
    for entity in structure.entities:
        if entity.entity_type == gemmi.EntityType.Polymer and not entity.full_sequence:
            entity.full_sequence = structure[0].get_subchain(entity.subchains[0]).extract_sequence()
    structure.assign_label_seq_id(True)
