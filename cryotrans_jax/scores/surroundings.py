"""How exposed each of some places of a molecule is."""

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from cryotrans_jax.density.thresholds import carried_mass
from cryotrans_jax.io.maps import Map

WINDOW = 10.0  # Å: standard deviation of the Gaussian window around a place
LEAST = 1e-3  # share of the window: less counts as much


def exposure(map_: Map, level: float, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    """Inverse share of a wide window around each place that the molecule fills, relative to its median.

    Loops and ends at the surface move by themselves.

    Args:
        map_: the map.
        level: its threshold.
        points: the places of all of its mass (Å), as from `displacement.mass_points`.
    """
    inside = (carried_mass(map_.density, level) > 0).astype(np.float32)
    filled = ndimage.gaussian_filter(inside, WINDOW / map_.voxel_size, mode="constant", truncate=3)
    share = np.maximum(Map(filled, map_.voxel_size, map_.origin).interpolate(points), LEAST)
    return np.median(share) / share
