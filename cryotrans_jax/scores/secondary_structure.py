"""Helices and strands of a chain, from its CA atoms alone."""

import numpy as np
from jaxtyping import Bool, Float

HELIX, STRAND, COIL = "H", "E", "C"
LENGTHS = {  # Å: distances of CA atoms two, three and four residues apart, and by how much they may differ
    HELIX: ((5.5, 0.5), (5.3, 0.5), (6.4, 0.6)),
    STRAND: ((6.7, 0.6), (9.9, 0.9), (12.4, 1.1)),
}
WINDOW = 5  # residues that are compared at once


def secondary_structure(xyz: Float[np.ndarray, "n 3"], joined: Bool[np.ndarray, "n"]) -> str:
    """Assign helices and strands by the distances of P-SEA (Labesse et al., CABIOS 13:291, 1997).

    Its angles are left out: the result is for pictures.

    Args:
        xyz: positions of the CA atoms, Å.
        joined: whether each residue is joined to the next one.

    Returns:
        A letter for each residue: H in a helix, E in a strand, C elsewhere.
    """
    found = np.full(len(xyz), COIL)
    if len(xyz) < WINDOW:
        return "".join(found)
    windows = len(xyz) - WINDOW + 1
    whole = np.array([joined[first : first + WINDOW - 1].all() for first in range(windows)])
    for kind in (STRAND, HELIX):
        fits = whole.copy()
        for apart, (length, slack) in enumerate(LENGTHS[kind], 2):
            away = np.linalg.norm(xyz[apart:] - xyz[:-apart], axis=-1)
            for first in range(WINDOW - apart):
                fits &= np.abs(away[first : first + windows] - length) <= slack
        for start in np.flatnonzero(fits):
            found[start : start + WINDOW] = kind
    return "".join(found)
