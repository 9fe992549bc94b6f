"""Structures of atoms as PDB and mmCIF files hold them: their chains, and several models in one file."""

import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import gemmi
import numpy as np
from scipy.spatial import cKDTree

from cryotrans_jax import pdb
from cryotrans_jax.files import InputError, InputWarning, foreign, taken, unpacked

ASCII = bytes(range(128)) + b"?" * 128
CIF = re.compile(rb"\s*(?:#[^\n]*\n\s*)*(?:data_|\{)", re.IGNORECASE)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
NEAR = 2.0  # Å: nearer to each other atoms of two molecules do not come
OVERLAP = 0.1  # share of atoms that near to those of another model, below which two models are copies side by side
SHOWN = 6  # names in a message

Piece = tuple[str, list[gemmi.Residue]]  # a run of residues between two TER records, and its segment


def read(path: str | os.PathLike) -> gemmi.Structure:
    """All models of a PDB or mmCIF file, plain or compressed.

    Residues of one chain that repeat a number and differ in segment, or are separated by a TER record, become chains of
    their own, with a warning.

    Raises:
        InputError: the file is missing, is no atomic model, has no atoms, or lines of atoms that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {found}: give the path of an atomic model in PDB or mmCIF format")
    text = _text(path)
    try:
        structure = _parsed(path, text)
    except pdb.FormatError as error:
        raise InputError(
            f"{path} does not keep to the columns of the PDB format ({error}): save the model again, as mmCIF where "
            "numbers are too large for them"
        ) from error
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        if found := foreign(text[:512], "atomic model"):
            raise InputError(f"{path} {found}") from error
        reason = str(error).splitlines()[0].rstrip(":.") if str(error) else type(error).__name__
        raise InputError(f"{path} is not an atomic model in PDB or mmCIF format ({reason})") from error
    if not len(structure) or not structure[0].count_atom_sites():
        if found := foreign(text[:512], "atomic model"):
            raise InputError(f"{path} {found}")
        raise InputError(f"{path} has no atoms: give an atomic model in PDB or mmCIF format")
    return structure


def one_model(path: str | os.PathLike, structure: gemmi.Structure, all_models: bool) -> gemmi.Structure:
    """The structure with its first model alone, or with all models that stand apart as chains of one; see `read_model`.

    Args:
        path: of its file, for the warning that models are left out.
        structure: with its models; it is changed.
        all_models: whether models that stand apart are taken as chains of one.
    """
    count = len(structure)
    if count == 1:
        return structure
    apart = stand_apart(structure)
    if apart and all_models:
        return united(structure)
    if apart:
        said = "that stand apart, as copies in an assembly do: only the first is read; --all_models takes all of them"
    else:
        said = "that overlap, as those of an ensemble do: only the first is read"
    warnings.warn(f"{path} holds {count} models {said}", InputWarning, stacklevel=3)
    del structure[1:]
    return structure


def stand_apart(structure: gemmi.Structure) -> bool:
    """Whether none of the further models overlaps the first, as copies of a molecule do not."""
    first, *others = (np.array([site.atom.pos.tolist() for site in model.all()]).reshape(-1, 3) for model in structure)
    if not np.isfinite(first).all():
        return False
    tree = cKDTree(first)
    return all(
        np.isfinite(xyz).all() and np.isfinite(tree.query(xyz, distance_upper_bound=NEAR)[0]).mean() < OVERLAP
        for xyz in others
        if len(xyz)
    )


def united(structure: gemmi.Structure) -> gemmi.Structure:
    """A structure of one model with the chains of all models, renamed where a name is used already."""
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
    """A, B, ..., Z, a, ..., 9, then AA, AB and so on."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(LETTERS, repeat=length))


def unused_names(used: set[str]) -> Callable[[str], str]:
    """A function that gives a chain the name that it is called with, or else the next one; each name once.

    Args:
        used: names that are used already.
    """
    used = set(used)
    others = (name for name in chain_names() if name not in used)

    def named(preferred: str) -> str:
        name = preferred if preferred and preferred not in used else next(others)
        used.add(name)
        return name

    return named


def _text(path: Path) -> bytes:
    """The bytes of a file, unpacked, of characters of ASCII alone."""
    with unpacked(path) as (stream, most):
        text = bytes(stream.read() if most is None else taken(stream, most + 1))
    if most is not None and len(text) > most:
        raise InputError(f"{path} unpacks to more than {most} bytes: if that is right, unpack it first, with gunzip")
    return text if text.isascii() else text.translate(ASCII)  # a byte for a byte, as PDB has columns


def _parsed(path: Path, text: bytes) -> gemmi.Structure:
    """The structure that the text describes."""
    lines = 0 if CIF.match(text) else sum(1 for line in text.splitlines() if pdb.ATOM.match(line))
    if not lines:
        return gemmi.read_structure_string(text, format=gemmi.CoorFormat.Detect)
    text, names = pdb.corrected(text)
    structure = gemmi.read_pdb_string(text, split_chain_on_ter=True)
    if said := _separate_chains(structure):
        warnings.warn(f"{path}: {said}", InputWarning, stacklevel=4)
    else:
        structure = gemmi.read_pdb_string(text)
        structure.merge_chain_parts()
    if (found := sum(model.count_atom_sites() for model in structure)) != lines:
        raise ValueError(f"{lines} lines are of atoms, and {found} atoms could be read")
    for model in structure if names else ():
        for chain in model:
            for residue in chain:
                residue.name = names.get(residue.name, residue.name)
    return structure


def _separate_chains(structure: gemmi.Structure) -> str:
    """Make chains of the pieces of a chain that repeat residue numbers; say which, or "" where there are none."""
    found: dict[str, list[tuple[str, str]]] = {}  # by the old name, segments and new names
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
    _forget(structure, set(found))
    structure.setup_entities()
    return "; ".join(_renamed(name, made) for name, made in found.items())


def _pieces(model: gemmi.Model) -> dict[str, list[Piece]]:
    """The runs of residues of each chain's name that neither TER nor another segment interrupts."""
    found: dict[str, list[Piece]] = {}
    for chain in model:
        some = found.setdefault(chain.name, [])
        some += [(segment, list(run)) for segment, run in itertools.groupby(chain, lambda residue: residue.segment)]
    return found


def _groups(pieces: list[Piece]) -> list[Piece]:
    """The pieces of one chain, put together where they repeat no residue number; several only where some do."""
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


def _forget(structure: gemmi.Structure, names: set[str]) -> None:
    """Remove the header's bonds, helices, sheets and entities of chains that were split: they name the old chain."""
    structure.connections = gemmi.ConnectionList(
        [c for c in structure.connections if names.isdisjoint((c.partner1.chain_name, c.partner2.chain_name))]
    )
    structure.helices = gemmi.HelixList([h for h in structure.helices if h.start.chain_name not in names])
    structure.sheets = gemmi.SheetList()
    structure.entities = gemmi.EntityList()


def _renamed(name: str, made: list[tuple[str, str]]) -> str:
    """In words, which chains were made of one."""
    segments = [segment for segment, _ in made]
    where = f" in segments {_some(segments)}" if any(segments) else ""
    chain = f"chain {name}" if name else "the chain without a name"
    return f"{chain} repeats residue numbers{where}, read as chains {_some([new for _, new in made])}"


def _some(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
