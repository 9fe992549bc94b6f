"""Selections of a model's residues, as flags name them: CHAIN, CHAIN:NUMBER or CHAIN:FIRST-LAST."""

import itertools
import re

import gemmi
import numpy as np
from jaxtyping import Bool, Int

from cryotrans_jax.io.files import InputError

SELECTION = re.compile(r"(?P<chain>[^:\x00-\x1f]*)(:(?P<first>-?[0-9]{1,9})(-(?P<last>-?[0-9]{1,9}))?)?")


def residues(model: gemmi.Structure) -> list[gemmi.Residue]:
    """All residues of the first model, in the order of `atoms.positions`."""
    return [residue for chain in model[0] for residue in chain]


def first_atoms(model: gemmi.Structure) -> Int[np.ndarray, "residues"]:
    """Number of the first atom of each residue, in the order of `atoms.positions`."""
    counts = [len(residue) for residue in residues(model)]
    return np.cumsum([0, *counts[:-1]])


def select_residues(model: gemmi.Structure, text: str, flag: str) -> Int[np.ndarray, "chosen"]:
    """Indices, in the order of `residues`, of the residues that a selection names.

    Args:
        model: the model.
        text: CHAIN, CHAIN:NUMBER or CHAIN:FIRST-LAST; a chain without a name is written :1-320.
        flag: that the selection was given with, for messages.

    Raises:
        InputError: the text does not have that form, or selects nothing.
    """
    if not text or not (match := SELECTION.fullmatch(text)):
        raise InputError(f"{text!r} in {flag} is no selection: give CHAIN, CHAIN:NUMBER or CHAIN:FIRST-LAST")
    names = [chain.name.strip() for chain in model[0] for _ in chain]
    first = int(match["first"]) if match["first"] else None
    last = int(match["last"]) if match["last"] else first
    chosen = [
        number
        for number, (residue, name) in enumerate(zip(residues(model), names, strict=True))
        if name == match["chain"].strip() and (first is None or last is None or in_range(residue, first, last))
    ]
    if not chosen:
        known = ", ".join(name or "(no name, as in :1-320)" for name in dict.fromkeys(names))
        raise InputError(f"{text} in {flag} selects no residue: the model has the chains {known}")
    return np.array(chosen)


def in_range(residue: gemmi.Residue, first: int, last: int) -> bool:
    """Whether the residue has a number from the first to the last."""
    return residue.seqid.num is not None and first <= residue.seqid.num <= last


def without(model: gemmi.Structure, text: str, flag: str) -> gemmi.Structure:
    """Copy a model without the residues that selections name.

    Args:
        model: the model.
        text: selections as for `select_residues`, separated by commas; empty selects nothing.
        flag: that they were given with, for messages.

    Raises:
        InputError: one of them is none or selects nothing, or no residue is left.
    """
    chosen = select_each(model, text, flag) if text else set()
    kept = set(range(len(residues(model)))) - chosen
    if not kept:
        raise InputError(f"{flag}={text} selects the whole model: leave a part of it")
    return keep(model, kept)


def only(model: gemmi.Structure, text: str, flag: str = "the selection") -> gemmi.Structure:
    """Copy the residues of a model that selections name; arguments and errors are as for `without`."""
    return keep(model, select_each(model, text, flag))


def select_each(model: gemmi.Structure, text: str, flag: str) -> set[int]:
    """Indices of the residues that any of some selections names, which are separated by commas."""
    return {int(k) for each in text.split(",") for k in select_residues(model, each.strip(), flag)}


def keep(model: gemmi.Structure, kept: set[int]) -> gemmi.Structure:
    """Copy a model with the residues of these indices alone."""
    copy, last = model.clone(), len(residues(model))
    for chain in reversed(copy[0]):
        for number in reversed(range(len(chain))):
            last -= 1
            if last not in kept:
                del chain[number]
    copy.remove_empty_chains()
    return copy


def name_residues(model: gemmi.Structure, chosen: Bool[np.ndarray, "residues"]) -> list[str]:
    """Selections that name residues, a run of a chain each (A:12-40, B:7).

    Args:
        model: the model.
        chosen: which of its residues, in the order of `residues`.
    """
    found, count = [], 0
    for chain in model[0]:
        own, count = chosen[count : count + len(chain)], count + len(chain)
        for wanted, run in itertools.groupby(zip(own, chain, strict=True), lambda each: bool(each[0])):
            if wanted:
                numbers = [residue.seqid.num for _, residue in run]
                first, last = numbers[0], numbers[-1]
                found.append(f"{chain.name}:{first}" + (f"-{last}" if last != first else ""))
    return found
