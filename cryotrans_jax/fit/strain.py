"""How the whole flow deforms what it carries: changes of volume, compression and extension."""

import numpy as np
from jaxtyping import Float

from cryotrans_jax.fit import trajectory
from cryotrans_jax.fit.target_flow import Flow
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.displacement import mass_points

DIFFERENCE_STEP = 0.25  # Å, for derivatives of the flow by differences
STRETCH = 1.25  # factor of extension, and of compression its inverse, beyond which mass counts as stretched
SAMPLE = 20_000  # points of mass at most, at which strain is looked at


def jacobians(flow: Flow, xyz: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3 3"]:
    """Jacobians of the whole flow at positions (Å), by differences under the field of each position's own part.

    Parts that slide along each other do not count as deformed.
    """
    at = np.concatenate([xyz, *(xyz + step for step in DIFFERENCE_STEP * np.eye(3))])
    part = flow.part_at(xyz)
    part = None if part is None else np.tile(part, 4)
    end = trajectory.move(flow, at, [1.0], part)[0].reshape(4, -1, 3)
    return np.moveaxis((end[1:] - end[0]) / DIFFERENCE_STEP, 0, -1)


def volume_change(flow: Flow, xyz: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    """Factor by which the whole flow changes volume at positions (Å): the determinant of its Jacobian.

    Where it is at or below zero the flow folds, or turns inside out.
    """
    return np.linalg.det(jacobians(flow, xyz))


def stretches(flow: Flow, xyz: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
    """Strongest compression (below 1) and extension (above 1) by the whole flow at positions (Å).

    The least and the largest singular value of its Jacobian.
    """
    return np.linalg.svd(jacobians(flow, xyz), compute_uv=False)[:, [2, 0]]


def stretched_fraction(flow: Flow, initial: Map, threshold: float) -> float:
    """Fraction of the carried mass that the flow extends or compresses by more than a quarter (STRETCH).

    Args:
        flow: the flow.
        initial: the initial map.
        threshold: the initial map's.
    """
    points, mass = mass_points(initial, threshold)
    every = -(-len(points) // SAMPLE)
    factors, mass = stretches(flow, points[::every]), mass[::every]
    stretched = (factors[:, 0] < 1 / STRETCH) | (factors[:, 1] > STRETCH)
    return float(mass[stretched].sum() / mass.sum())
