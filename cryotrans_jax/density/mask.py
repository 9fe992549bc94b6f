"""Masks: what of a map takes part, as values from 0 to 1 that multiply the density."""

import numpy as np
from jaxtyping import Float

from cryotrans_jax.density.thresholds import carried_mass, choose_threshold
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, same_grid


def soft_edge(distance: Float[np.ndarray, "x y z"], width: float) -> Float[np.ndarray, "x y z"]:
    """Values that are 1 at distances of 0 and less, and fall to 0 at `width` along half a wave of a cosine."""
    return (0.5 + 0.5 * np.cos(np.pi * np.clip(distance / width, 0, 1))).astype(np.float32)


def masked(map_: Map, mask: Map, name: str = "the mask") -> Map:
    """Multiply a map by a mask.

    Args:
        map_: the map.
        mask: values from 0 to 1 on its grid.
        name: of the mask, for messages.

    Raises:
        InputError: the grids differ, values are not from 0 to 1, or the product is 0 everywhere.
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


def sphere(map_: Map, radius: float, fade: float = 5.0) -> Map:
    """Make a mask that is 1 within `radius` Å of the map's centre of mass, and falls to 0 over `fade` Å beyond.

    The mass is that above the threshold of `choose_threshold`, without dust.

    Raises:
        InputError: the map has no mass.
    """
    mass = carried_mass(map_.density, choose_threshold(map_.density)).astype(np.float64)
    squares = []
    for axis, (n, size) in enumerate(zip(mass.shape, map_.voxel_size, strict=True)):
        along = mass.sum(tuple(k for k in range(3) if k != axis))
        offset = (np.arange(n) - along @ np.arange(n) / along.sum()) * size
        squares.append(np.reshape(offset**2, [-1 if k == axis else 1 for k in range(3)]))
    return Map(soft_edge(np.sqrt(sum(squares)) - radius, fade), map_.voxel_size, map_.origin)
