"""How deep in a molecule each of some places lies, and how dense the molecule is there."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from cryotrans_jax.density.thresholds import carried_mass
from cryotrans_jax.io.maps import Map

LEAST = 1e-3  # share or mass: less counts as much


@dataclass(frozen=True)
class SurroundingRules:
    """Windows around a place.

    Attributes:
        depth: standard deviation of the Gaussian window that shows how deep a place lies, Å.
        density: standard deviation of the one that shows how dense the molecule is there, Å.
    """

    depth: float = 10.0
    density: float = 3.0


class Surroundings(NamedTuple):
    """Surroundings of some places.

    Attributes:
        exposure: inverse of the share of the wide window that the molecule fills.
        thinness: inverse of the mean mass in the narrow window, relative to the median over the molecule.
    """

    exposure: Float[np.ndarray, "n"]
    thinness: Float[np.ndarray, "n"]


def surroundings(
    map_: Map,
    level: float,
    points: Float[np.ndarray, "n 3"],
    rules: SurroundingRules = SurroundingRules(),
) -> Surroundings:
    """Measure the surroundings of the places at which the mass of a map is.

    Args:
        map_: the map.
        level: its threshold.
        points: the places of all of its mass (Å), as from `displacement.mass_points`.
        rules: windows around a place.
    """
    mass = carried_mass(map_.density, level).astype(np.float32)

    def around(values: Float[np.ndarray, "x y z"], window: float) -> Float[np.ndarray, "n"]:
        mean = ndimage.gaussian_filter(values, window / map_.voxel_size, mode="constant", truncate=3)
        return np.maximum(Map(mean, map_.voxel_size, map_.origin).interpolate(points), LEAST)

    filled, dense = around((mass > 0).astype(np.float32), rules.depth), around(mass, rules.density)
    return Surroundings(1 / filled, np.median(dense) / dense)
