"""Helices and strands of ideal geometry are recognised, and nothing across a break."""

import numpy as np
import pytest

from cryotrans_jax.scores.secondary_structure import secondary_structure


def spiral(count, radius, rise, turn):
    """CA atoms on a spiral: radius and rise in Å, turn in degrees for each residue."""
    k = np.arange(count)
    angle = np.radians(turn) * k
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), rise * k], -1)


HELIX, STRAND = spiral(12, 2.3, 1.5, 100), spiral(12, 0.9, 3.3, 180)  # an alpha helix, a pleated strand


def joined(count):
    return np.append(np.ones(count - 1, bool), False)


@pytest.mark.parametrize(("xyz", "letter"), [(HELIX, "H"), (STRAND, "E"), (spiral(12, 0.0, 3.8, 0), "C")])
def test_ideal_chains(xyz, letter):
    assert secondary_structure(xyz, joined(len(xyz))) == 12 * letter


def test_both_in_one_chain_and_nothing_across_a_break():
    xyz = np.concatenate([HELIX, STRAND + [0, 8, 20]])
    parted = joined(24)
    parted[11] = False
    assert secondary_structure(xyz, parted) == 12 * "H" + 12 * "E"
    broken = joined(12)
    broken[[3, 7]] = False
    assert secondary_structure(HELIX, broken) == 12 * "C"  # four residues a piece


def test_a_short_chain_has_none():
    assert secondary_structure(HELIX[:4], joined(4)) == "CCCC" and secondary_structure(HELIX[:0], joined(1)[:0]) == ""
