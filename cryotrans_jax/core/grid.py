"""The unit box and Å, binning, and voxels as points of mass."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frame:
    """The unit box in space.

    Attributes:
        corner: its origin, Å.
        edge: its side, Å.
    """

    corner: np.ndarray
    edge: float

    def to_unit(self, xyz):
        """Convert positions (n, 3) from Å to the unit box."""
        return (xyz - self.corner) / self.edge

    def to_angstrom(self, x):
        """Convert positions (n, 3) from the unit box to Å."""
        return x * self.edge + self.corner


def binned(density: np.ndarray, factor: int) -> np.ndarray:
    """Bin a density: the total in voxels `factor` times as wide, as if every voxel's value were splatted there.

    Unlike block sums this keeps the centre of mass as well as the mass, and carried points are compared with it. Values
    within half a coarse voxel of the edge of the box stay in the outermost voxels.
    """
    for axis, n in enumerate(density.shape):
        at = (np.arange(n) + 0.5) / factor - 0.5
        coarse = np.clip(at, 0, n // factor - 1)[:, None] - np.arange(n // factor)
        weights = np.maximum(1 - np.abs(coarse), 0).astype(density.dtype)
        density = np.moveaxis(np.tensordot(density, weights, axes=([axis], [0])), -1, axis)
    return density


def block_points(mass: np.ndarray, factor: int | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Represent the mass in blocks of voxels as points at the blocks' centres of mass.

    Mass and centre of mass are kept exactly.

    Args:
        mass: mass of each voxel.
        factor: voxels along a block's side, one number or one for each axis.

    Returns:
        Positions, in voxels from the outer edge of the first voxel; masses; and which blocks have mass (bool).
    """
    factors = np.broadcast_to(factor, 3)
    shape = tuple(n // f for n, f in zip(mass.shape, factors, strict=True))
    at = np.nonzero(mass)
    held, block = mass[at], np.ravel_multi_index([a // f for a, f in zip(at, factors, strict=True)], shape)
    total = np.bincount(block, held, np.prod(shape))
    filled = total > 0
    moments = (np.bincount(block, held * (a + 0.5), len(total)) for a in at)
    place = [moment[filled] / total[filled] for moment in moments]
    return np.stack(place, -1), total[filled], filled.reshape(shape)
