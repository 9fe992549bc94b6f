"""What the page shows in three dimensions besides maps: the model, its rigid bodies, and what colours them."""

from collections.abc import Sequence
from typing import Any

import gemmi
import numpy as np

from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms, structures
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.plots import SERIES
from cryotrans_jax.scores.secondary_structure import secondary_structure

from .packing import compress, encode, linear_codes
from .places import Places

ERRORS = ("#3b6fb6", "#8fc1d9", "#f4dd86", "#f2994a", "#b2182b")  # colours of predicted errors, from none on
FINEST = 0.01  # Å: step of the model's coordinates
NAMED = 3  # selections that name a body, at most
BEYOND = 8.0  # Å by which an axis extends beyond its body
NUCLEOTIDE = "N"


def bodies(parts: Sequence[dict], places: Places) -> list[dict[str, Any]]:
    """The rigid bodies by number, with copies: name, colour and, where it turns, axis and half of its length, Å."""
    found: list[dict[str, Any]] = []
    for number, part in enumerate(parts, 1):
        for copy in range(part.get("copies", 1)):
            own = places.points[places.body == len(found) + 1]
            entry: dict[str, Any] = {"name": part_name(part, number), "colour": body_colour(number)}
            if "axis" in part and len(own) and not copy:
                along, point = np.array(part["axis"]), np.array(part["axis_point"])
                middle = point + along * ((own.mean(0) - point) @ along)
                half = np.abs((own - middle) @ along).max() + BEYOND
                entry |= {"axis": along.tolist(), "axis_point": middle.tolist(), "half": float(half)}
            found.append(entry)
    return found or [{"name": "the molecule", "colour": body_colour(1)}]


def body_colour(number: int) -> str:
    """Colour of a body or part, by its number from 1."""
    return SERIES[(number - 1) % len(SERIES)]


def part_name(part: dict, number: int) -> str:
    """What a body or part is called: by its residues where there is a model."""
    named = structures.shortlist(part.get("residues", []), NAMED)
    return named or f"body {number}"


def model(
    given: gemmi.Structure, fit: Fit, times: Sequence[float], centre: np.ndarray, places: Places, top: float
) -> dict[str, Any] | None:
    """The model for the page's script: an atom for each residue in every frame; None without residues.

    Args:
        given: the initial state's model.
        fit: that carries it.
        times: of the frames.
        centre: of the scene, Å.
        places: bodies and errors.
        top: displacement at the end of the colour key, Å.
    """
    chain = Chain.of(given)
    if not len(chain.x):
        return None
    frames = fit.carry(chain.x, [*times, 1.0])
    frames, far = frames[:-1] - centre, np.linalg.norm(frames[-1] - chain.x, axis=-1)
    own = places.at(chain.x)
    unit = max(FINEST, float(np.abs(frames).max()) / 32000)
    kinds = [*secondary_structure(chain.x, chain.joined)]
    for number, (_, residue, _) in enumerate(atoms.residue_sites(given)):
        kinds[number] = NUCLEOTIDE if structures.is_nucleotide(residue) else kinds[number]
    ends = np.flatnonzero(~chain.joined) + 1
    hinge = chain.joined[:-1] & (own.body[:-1] != own.body[1:])
    return {
        "chains": [[int(first), int(last)] for first, last in zip([0, *ends[:-1]], ends, strict=True)],
        "kinds": "".join(kinds),
        "unit": unit,
        "frames": [compress(np.rint(xyz / unit).astype("<i2")) for xyz in frames],
        "displacement": encode(linear_codes(far, top)),
        "body": encode(own.body),
        "error": encode(own.error),
        "hinges": np.flatnonzero(np.append(hinge, False) | np.insert(hinge, 0, False)).tolist(),
    }
