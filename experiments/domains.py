"""The table of domains: the axis and the hinges of each body's motion, and its predicted errors."""

from typing import Any

import gemmi
import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from cryotrans_jax.density.transform import Transform
from cryotrans_jax.fit.errors import Errors
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms, selections
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.motion.rigid_bodies import rigid_motions

LEAST_TURN = 0.5  # degrees: bodies that turn by less have no axis


def describe(parts: list[dict[str, Any]], fit: Fit, model: gemmi.Structure | None, errors: Errors | None) -> None:
    """Add to the motions of a fit's bodies their axes, the residues that are their hinges, and predicted errors.

    Args:
        parts: the motions, as in metrics.json; one of each set of symmetry mates.
        fit: of one target.
        model: of the initial state; None leaves the hinges out.
        errors: predicted errors; None leaves them out.
    """
    partition = fit.partition()
    if partition is None:
        return
    motions = rigid_motions(partition, fit.carry, [1.0], fit.require_initial(), fit.threshold)
    chain = None if model is None else Chain.of(model)
    for number, part in enumerate(parts):
        body = number * part.get("copies", 1)
        part |= axis_of(motions[body][0])
        if model is not None and chain is not None:
            own = np.asarray(partition.part_at(chain.x)) == body
            part["residues"] = selections.name_residues(model, of_sites(model, own))
            part["hinges"] = selections.name_residues(model, hinges(model, chain, own))
        if errors is not None:
            part |= errors_of(errors, partition.part_at(errors.points) == body)


def axis_of(motion: Transform) -> dict[str, list[float]]:
    """Direction of a motion's axis, and the point on it that is nearest to the origin, Å; empty if it hardly turns.

    Seen against the direction the rotation is counter-clockwise.
    """
    if motion.angle < LEAST_TURN:
        return {}
    turn = Rotation.from_matrix(motion.rotation).as_rotvec()
    direction = turn / np.linalg.norm(turn)
    across = motion.shift - direction * (direction @ motion.shift)
    point = np.linalg.lstsq(np.eye(3) - motion.rotation, across, rcond=None)[0]
    point -= direction * (direction @ point)
    return {"axis": direction.tolist(), "axis_point": point.tolist()}


def hinges(model: gemmi.Structure, chain: Chain, own: Bool[np.ndarray, "sites"]) -> Bool[np.ndarray, "residues"]:
    """Which residues are joined to one on the other side of a body's border.

    Args:
        model: the model.
        chain: its chain.
        own: which residues of the chain are in the body.
    """
    across = chain.joined[:-1] & (own[:-1] != own[1:])
    near = np.zeros(len(own), bool)
    near[:-1] |= across
    near[1:] |= across
    return of_sites(model, near)


def of_sites(model: gemmi.Structure, chosen: Bool[np.ndarray, "sites"]) -> Bool[np.ndarray, "residues"]:
    """Which residues of a model are those of chosen sites of its chain."""
    sites = zip(atoms.residue_sites(model), chosen, strict=True)
    found = {(chain.name, str(residue.seqid), residue.name) for (chain, residue, _), own in sites if own}
    return np.array([(c.name, str(residue.seqid), residue.name) in found for c in model[0] for residue in c])


def errors_of(errors: Errors, inside: Bool[np.ndarray, "n"]) -> dict[str, float]:
    """Predicted errors of a body's place (Å, rms over its mass) and of its rotation (degrees); empty without mass.

    An error of place at the distance of the body's radius of gyration from its centre is one of its rotation.
    """
    if not inside.any():
        return {}
    mass, at = errors.mass[inside], errors.points[inside]
    error = float(np.sqrt(np.average(errors.error[inside] ** 2, weights=mass)))
    spread: Float[np.ndarray, "some 3"] = at - np.average(at, axis=0, weights=mass)
    radius = np.sqrt(np.average(np.sum(spread**2, axis=1), weights=mass))
    return {"error": error, "turn_error": float(np.degrees(np.arctan2(error, radius)))}
