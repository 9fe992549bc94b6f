"""How the whole flow deforms what it carries: changes of volume, compression and extension."""

import numpy as np
from jaxtyping import Bool, Float

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


def stretches(jacobians: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "n 2"]:
    """Strongest compression (below 1) and extension (above 1): the least and the largest singular value."""
    return np.linalg.svd(jacobians, compute_uv=False)[:, [2, 0]]


def log_strains(jacobians: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "n"]:
    """Largest strain in any direction, as the absolute logarithm of the factor; at most log(100)."""
    factors = np.clip(stretches(jacobians), 0.01, 100.0)
    return np.abs(np.log(factors)).max(-1)


def is_stretched(jacobians: Float[np.ndarray, "n 3 3"]) -> Bool[np.ndarray, "n"]:
    """Whether mass is extended or compressed by more than a quarter (STRETCH)."""
    factors = stretches(jacobians)
    return (factors[:, 0] < 1 / STRETCH) | (factors[:, 1] > STRETCH)


def stretched_fraction(flow: Flow, initial: Map, threshold: float) -> float:
    """Fraction of the carried mass that the flow extends or compresses by more than a quarter.

    Args:
        flow: the flow.
        initial: the initial map.
        threshold: the initial map's.
    """
    points, mass = mass_points(initial, threshold)
    every = -(-len(points) // SAMPLE)
    stretched, mass = is_stretched(jacobians(flow, points[::every])), mass[::every]
    return float(mass[stretched].sum() / mass.sum())
