"""Find and replace outlier voxels, such as a broken detector pixel or a bad interpolation leaves."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cryotrans_jax.io.maps import Map


class Outliers(NamedTuple):
    """Outlier voxels of a map, the strongest first.

    Attributes:
        voxels: indices of the outliers.
        largest: largest deviation of an outlier from the map's median.
        usual: largest deviation of all other voxels from the median.
    """

    voxels: Int[np.ndarray, "n 3"]
    largest: float
    usual: float

    def __str__(self) -> str:
        """Describe how many voxels are outliers, by how much, and where the first one is."""
        count, (x, y, z) = len(self.voxels), self.voxels[0]
        voxels = f"{count} voxels are" if count > 1 else "1 voxel is"
        return f"{voxels} up to {self.largest / self.usual:.0f} times as strong as all others, such as ({x}, {y}, {z})"


def without_outliers(map_: Map) -> tuple[Map, Outliers | None]:
    """Replace a map's outliers by the median of the voxels around each.

    Args:
        map_: any map.

    Returns:
        The repaired map and its outliers; the same map object and None if there are none.
    """
    found = outliers(map_.density)
    if found is None:
        return map_, None
    density, bad = map_.density.copy(), np.zeros(map_.density.shape, bool)
    bad[tuple(found.voxels.T)] = True
    for voxel in found.voxels:
        density[tuple(voxel)] = local_median(map_.density, bad, voxel)
    return replace(map_, density=density), found


def outliers(density: Float[np.ndarray, "x y z"], most: int = 100, jump: float = 5.0) -> Outliers | None:
    """Find a few voxels that deviate much more from the median than all others.

    Of several such sets the largest is taken, so that outliers of very different strength are found together.

    Args:
        density: of the map.
        most: outliers at most: a molecule of 1 kDa fills more voxels, unless they are wider than 2 Å.
        jump: least ratio to the strongest other voxel: density is band-limited, so its values lie closer together.

    Returns:
        The outliers; None if there are none.
    """
    count = min(most, density.size // 2)
    away = np.abs(density - np.median(density)).ravel()
    usual = np.partition(away, -(count + 1))[-(count + 1)]  # strongest of the voxels beyond the largest count
    strong = np.flatnonzero(away > usual)
    strong = strong[np.argsort(-away[strong], kind="stable")]
    falling = np.append(away[strong], usual).astype(np.float64)
    jumps = np.flatnonzero((falling[:-1] > jump * falling[1:]) & (falling[1:] > 0))
    if not len(jumps):
        return None
    last = int(jumps[-1]) + 1
    voxels = np.stack(np.unravel_index(strong[:last], density.shape), -1)
    return Outliers(voxels, float(falling[0]), float(falling[last]))


def local_median(
    density: Float[np.ndarray, "x y z"], bad: np.ndarray, voxel: Int[np.ndarray, "3"], reach: int = 6
) -> float:
    """Median of the good voxels in the smallest box, of `reach` voxels at most to each side, around an outlier.

    The map's median if there are none.
    """
    for side in range(1, reach + 1):
        box = tuple(slice(max(int(at) - side, 0), int(at) + side + 1) for at in voxel)
        if (good := density[box][~bad[box]]).size:
            return float(np.median(good))
    return float(np.median(density))
