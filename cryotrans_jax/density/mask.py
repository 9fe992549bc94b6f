"""Masks: what of a map takes part, as values from 0 to 1 that multiply the density."""

import numpy as np

from cryotrans_jax.density.thresholds import carried_mass, choose_threshold
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, same_grid

EDGE = 5.0  # Å over which a sphere fades out, so that it cuts no sharp edge into the density


def masked(map_: Map, mask: Map, name: str = "the mask") -> Map:
    """The map times the mask.

    Raises InputError where they lie on different grids, values are not from 0 to 1, or all that is left is 0.
    """
    if difference := same_grid(map_, mask):
        raise InputError(f"{name} lies on another grid than its map ({difference}): resample it on the map's grid")
    low, high = float(mask.density.min()), float(mask.density.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise InputError(f"{name} holds values from {low:g} to {high:g}: a mask's lie between 0 and 1")
    density = map_.density * np.clip(mask.density, 0, 1)
    if not (density > 0).any():
        raise InputError(f"{name} leaves nothing of its map: give one that covers the molecule")
    return Map(density, map_.voxel_size, map_.origin)


def sphere(map_: Map, radius: float) -> Map:
    """The mask that is 1 within `radius` Å about the centre of the map's mass, and fades to 0 over EDGE Å beyond.

    The mass is that above the threshold of `choose_threshold`, without dust.

    Raises InputError where the map has none.
    """
    mass = carried_mass(map_.density, choose_threshold(map_.density)).astype(np.float64)
    squares = []
    for axis, (n, size) in enumerate(zip(mass.shape, map_.voxel_size, strict=True)):
        along = mass.sum(tuple(k for k in range(3) if k != axis))
        offset = (np.arange(n) - along @ np.arange(n) / along.sum()) * size
        squares.append(np.reshape(offset**2, [-1 if k == axis else 1 for k in range(3)]))
    beyond = np.clip((np.sqrt(sum(squares)) - radius) / EDGE, 0, 1)
    return Map((0.5 + 0.5 * np.cos(np.pi * beyond)).astype(np.float32), map_.voxel_size, map_.origin)
