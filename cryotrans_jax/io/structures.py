"""Parse atomic structures from PDB and mmCIF files: their chains, and several models in one file."""

import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from cryotrans_jax.io import pdb
from cryotrans_jax.io.files import InputError, InputWarning, foreign_format, open_unpacked, read_bytes

ASCII = bytes(range(128)) + b"?" * 128
CIF = re.compile(rb"\s*(?:#[^\n]*\n\s*)*(?:data_|\{)", re.IGNORECASE)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
NEAR = 2.0  # Å: atoms of different molecules are farther apart
OVERLAP = 0.1  # share of atoms within NEAR of another model's below which two models are copies side by side
SHOWN = 6  # most names in a message
STANDARD = frozenset({"H", "D", "C", "N", "O", "S", "P"})  # elements of standard amino acids and nucleotides
MODIFIED = STANDARD | {"Se", "F", "Cl", "Br", "I", "B"}  # of modified ones, such as MSE
AMINO_ACID = {"N", "CA", "C"}  # a residue with these atoms is an amino acid, whatever its name (HSD, HIP)
NUCLEOTIDE = {"C1'", "C3'", "C4'", "O3'"}  # and one with these a nucleotide (ADE, 5MC),
LIGAND = {"PA", "PB"}  # unless it is a diphosphate or triphosphate, such as GTP
REDUCED = {"C4'", "P"}  # nucleotides of reduced models have no more than these
TWO_LETTERS = {"SE", "BR", "CL", "FE", "MG", "ZN"}  # names of atoms that are also their elements, and nothing else

Piece = tuple[str, list[gemmi.Residue]]  # segment, and a run of residues between two TER records


def read(path: str | os.PathLike) -> gemmi.Structure:
    """Read all models of a PDB or mmCIF file, plain or compressed, with elements even if the file lacks them.

    Residues of one chain that repeat a number and differ in segment, or are separated by a TER record, become separate
    chains, with a warning. Elements that no amino acid or nucleotide has are read by the atoms' names, with a warning.

    Raises:
        InputError: the file is missing, is not an atomic model, has no atoms, or has unreadable lines of atoms.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {found}: give the path of an atomic model in PDB or mmCIF format")
    text = _read_text(path)
    try:
        structure = _parse(path, text)
    except pdb.FormatError as error:
        raise InputError(
            f"{path} does not keep to the columns of the PDB format ({error}): save the model again, as mmCIF if "
            "numbers are too large for the columns"
        ) from error
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        if found := foreign_format(text[:512], "atomic model"):
            raise InputError(f"{path} {found}") from error
        reason = str(error).splitlines()[0].rstrip(":.") if str(error) else type(error).__name__
        raise InputError(f"{path} is not an atomic model in PDB or mmCIF format ({reason})") from error
    if not len(structure) or not structure[0].count_atom_sites():
        if found := foreign_format(text[:512], "atomic model"):
            raise InputError(f"{path} {found}")
        raise InputError(f"{path} has no atoms: give an atomic model in PDB or mmCIF format")
    if (wrong := _correct_elements(structure)) and _has_elements(text):
        warnings.warn(f"{path}: {wrong}", InputWarning, stacklevel=3)
    return structure


def one_model(path: str | os.PathLike, structure: gemmi.Structure, all_models: bool) -> gemmi.Structure:
    """Reduce a structure to one model: its first, or all models that do not overlap as chains of one; see `read_model`.

    Args:
        path: path of the file, for the warning that models are left out.
        structure: the structure with all models; it is modified.
        all_models: whether models that do not overlap are merged as chains of one.
    """
    count = len(structure)
    if count == 1:
        return structure
    apart = are_disjoint(structure)
    if apart and all_models:
        return merge_models(structure)
    if apart:
        remark = "that do not overlap, as copies in an assembly: only the first is read; add --all_models to read all"
    else:
        remark = "that overlap, as in an ensemble: only the first is read"
    warnings.warn(f"{path} holds {count} models {remark}", InputWarning, stacklevel=3)
    del structure[1:]
    return structure


def are_disjoint(structure: gemmi.Structure) -> bool:
    """Whether no further model overlaps the first: true of copies in an assembly, false of models of an ensemble."""
    first, *others = map(positions, structure)
    if not np.isfinite(first).all():
        return False
    tree = cKDTree(first)
    return all(
        np.isfinite(xyz).all() and np.isfinite(tree.query(xyz, distance_upper_bound=NEAR)[0]).mean() < OVERLAP
        for xyz in others
        if len(xyz)
    )


def positions(model: gemmi.Model) -> Float[np.ndarray, "atoms 3"]:
    """Positions [Å] of all atoms of a model, chain by chain in the file's order."""
    return np.array([site.atom.pos.tolist() for site in model.all()], np.float64).reshape(-1, 3)


def is_nucleotide(residue: gemmi.Residue) -> bool:
    """Whether a residue is a nucleotide, by its name or, if that is unknown, by the atoms of its sugar."""
    known = gemmi.find_tabulated_residue(residue.name)
    if known.found():
        return known.is_nucleic_acid()
    names = {atom.name.replace("*", "'") for atom in residue}  # C4* in files before 2007
    return names >= NUCLEOTIDE and not names & LIGAND or {"C4'"} <= names <= REDUCED


def merge_models(structure: gemmi.Structure) -> gemmi.Structure:
    """Merge all models into one, renaming chains whose name is already used."""
    whole = structure.clone()
    del whole[1:]
    unused = unused_names({chain.name for chain in whole[0]})
    for model in list(structure)[1:]:
        for chain in model:
            copy = chain.clone()
            copy.name = unused(chain.name)
            whole[0].add_chain(copy)
    whole.setup_entities()
    return whole


def chain_names() -> Iterator[str]:
    """Generate A, B, ..., Z, a, ..., 9, then AA, AB and so on."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(LETTERS, repeat=length))


def unused_names(used: set[str]) -> Callable[[str], str]:
    """Make a function that returns the preferred chain name, or the next free one if it is taken; each name once.

    Args:
        used: names that are already taken.
    """
    used = set(used)
    others = (name for name in chain_names() if name not in used)

    def choose_name(preferred: str) -> str:
        name = preferred if preferred and preferred not in used else next(others)
        used.add(name)
        return name

    return choose_name


def _read_text(path: Path) -> bytes:
    """Read a file, decompressed, with every byte that is not ASCII replaced by "?"."""
    with open_unpacked(path) as (stream, most):
        text = bytes(stream.read() if most is None else read_bytes(stream, most + 1))
    if most is not None and len(text) > most:
        raise InputError(f"{path} unpacks to more than {most} bytes: if that is right, unpack it first, with gunzip")
    return text if text.isascii() else text.translate(ASCII)  # byte for byte: PDB has fixed columns


def _parse(path: Path, text: bytes) -> gemmi.Structure:
    """Parse the text of a PDB or mmCIF file."""
    lines = 0 if CIF.match(text) else sum(1 for line in text.splitlines() if pdb.ATOM.match(line))
    if not lines:
        return gemmi.read_structure_string(text, format=gemmi.CoorFormat.Detect)
    text, names = pdb.correct_columns(text)
    structure = gemmi.read_pdb_string(text, split_chain_on_ter=True)
    if splits := _separate_chains(structure):
        warnings.warn(f"{path}: {splits}", InputWarning, stacklevel=4)
    else:
        structure = gemmi.read_pdb_string(text)
        structure.merge_chain_parts()
    if (found := sum(model.count_atom_sites() for model in structure)) != lines:
        raise ValueError(f"{found} of {lines} lines of atoms could be read")
    for model in structure if names else ():
        for chain in model:
            for residue in chain:
                residue.name = names.get(residue.name, residue.name)
    return structure


def _has_elements(text: bytes) -> bool:
    """Whether a file names the elements of its atoms; otherwise gemmi guesses them."""
    return bool(CIF.match(text)) or any(
        line[76:78].strip().isalpha() for line in text.splitlines() if pdb.ATOM.match(line)
    )


def _correct_elements(structure: gemmi.Structure) -> str:
    """Set elements that are unknown, or that an amino acid or a nucleotide cannot have, from the atoms' names.

    Some programs take the first letters of a name as the element: CA becomes calcium, CD cadmium and HG mercury.

    Returns:
        Which elements were wrong; "" if none were, as unknown ones are not.
    """
    count, before, after = 0, set(), set()
    for residue in (residue for model in structure for chain in model for residue in chain):
        possible = _elements(residue)
        for atom in residue:
            known = atom.element.atomic_number > 0
            if known and (possible is None or atom.element.name in possible):
                continue
            found = _element_of_name(atom.name, possible or MODIFIED, alone=possible is None and len(residue) == 1)
            if known and found != atom.element:
                count += 1
                before.add(atom.element.name)
                after.add(found.name)
            atom.element = found
    if not count:
        return ""
    return (
        f"{count} atoms of amino acids or nucleotides had the elements {shortlist(sorted(before))}, which these do "
        f"not have; read by the atoms' names as {shortlist(sorted(after))}"
    )


def _elements(residue: gemmi.Residue) -> frozenset[str] | None:
    """Elements that an amino acid or a nucleotide can have; None for other residues, which can have any."""
    known = gemmi.find_tabulated_residue(residue.name)
    if is_nucleotide(residue) or known.is_amino_acid() or AMINO_ACID <= {atom.name for atom in residue}:
        return STANDARD if known.is_standard() else MODIFIED
    return None


def _element_of_name(name: str, possible: frozenset[str], alone: bool) -> gemmi.Element:
    """Element of an atom by its name: HG11 is hydrogen, CA carbon, SE selenium; carbon if it tells none.

    Args:
        name: of the atom.
        possible: elements that the first letter may stand for.
        alone: whether it is the only one of its residue, which is then an ion: ZN is zinc.
    """
    letters = "".join(filter(str.isalpha, name)).upper()
    if letters in TWO_LETTERS or alone and gemmi.Element(letters).atomic_number:
        return gemmi.Element(letters)
    return gemmi.Element(letters[:1] if letters[:1] in possible else "C")


def _separate_chains(structure: gemmi.Structure) -> str:
    """Split chains whose pieces repeat residue numbers; describe the splits, "" if there are none."""
    found: dict[str, list[tuple[str, str]]] = {}  # segments and new names by old name
    models = []
    for model in structure:
        pieces = _pieces(model)
        groups = {name: _groups(some) for name, some in pieces.items()}
        unused = unused_names({name for name in groups if name})
        models.append(gemmi.Model(model.num))
        for name, some in groups.items():
            renamed: list[tuple[str, str]] = []
            for segment, residues in some:
                keeps = len(some) == 1 or name and not renamed
                new = name if keeps else unused(segment[-1:] if segment[-1:] in LETTERS else "")
                chain = models[-1].add_chain(new)
                chain.append_residues(residues)
                renamed.append((segment, new))
            if len(some) > 1:
                found.setdefault(name, renamed)
    if not found:
        return ""
    del structure[:]
    for model in models:
        structure.add_model(model)
    _drop_records(structure, set(found))
    structure.setup_entities()
    return "; ".join(_describe_split(name, made) for name, made in found.items())


def _pieces(model: gemmi.Model) -> dict[str, list[Piece]]:
    """Runs of residues by chain name, each within one segment and not interrupted by TER."""
    found: dict[str, list[Piece]] = {}
    for chain in model:
        some = found.setdefault(chain.name, [])
        some += [(segment, list(run)) for segment, run in itertools.groupby(chain, lambda residue: residue.segment)]
    return found


def _groups(pieces: list[Piece]) -> list[Piece]:
    """Merge pieces of one chain that repeat no residue number; several groups remain only where some do."""
    numbers = [{str(residue.seqid) for residue in residues} for _, residues in pieces]
    if sum(map(len, numbers)) == len(set().union(*numbers)):
        return [("", [residue for _, residues in pieces for residue in residues])]
    groups: list[tuple[Piece, set[str]]] = []
    for (segment, residues), own in zip(pieces, numbers, strict=True):
        for (other, together), known in groups:
            if other == segment and known.isdisjoint(own):
                together += residues
                known |= own
                break
        else:
            groups.append(((segment, list(residues)), set(own)))
    return [group for group, _ in groups]


def _drop_records(structure: gemmi.Structure, names: set[str]) -> None:
    """Remove bonds, helices, sheets and entities of chains that were split: the header names the old chains."""
    structure.connections = gemmi.ConnectionList(
        [c for c in structure.connections if names.isdisjoint((c.partner1.chain_name, c.partner2.chain_name))]
    )
    structure.helices = gemmi.HelixList([h for h in structure.helices if h.start.chain_name not in names])
    structure.sheets = gemmi.SheetList()
    structure.entities = gemmi.EntityList()


def _describe_split(name: str, made: list[tuple[str, str]]) -> str:
    """Describe which chains were made of one."""
    segments = [segment for segment, _ in made]
    where = f" in segments {shortlist(segments)}" if any(segments) else ""
    chain = f"chain {name}" if name else "the chain without a name"
    return f"{chain} repeats residue numbers{where}, read as chains {shortlist([new for _, new in made])}"


def shortlist(names: list[str], most: int = SHOWN) -> str:
    """List the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
