"""The unit box and Å, boxes on a grid, and voxels as points of mass."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from scipy import ndimage


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


def bounding_box(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First voxel inside along each axis, and one past the last."""
    where = ndimage.find_objects(inside.astype(np.int8))[0]
    return np.array([s.start for s in where]), np.array([s.stop for s in where])


def box_slices(inside: np.ndarray, margin: int | Int[np.ndarray, "3"] = 0) -> tuple[slice, ...]:
    """Slices of the bounding box of `inside` with a margin (voxels), as far as the grid extends."""
    low, high = bounding_box(inside)
    ends = zip(low - margin, high + margin, inside.shape, strict=True)
    return tuple(slice(max(int(a), 0), min(int(b), n)) for a, b, n in ends)


def crop(a: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """a[low:high], with zeros beyond the end of the array."""
    part = a[tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))].astype(np.float32)
    return np.pad(part, [(0, hi - lo - n) for lo, hi, n in zip(low, high, part.shape, strict=True)])


def pad_to_blocks(density: np.ndarray, factor: int | np.ndarray) -> np.ndarray:
    """Pad a density with zeros at the far ends, to a whole number of blocks of `factor` voxels along each axis."""
    factors = np.broadcast_to(factor, density.ndim)
    return np.pad(density, [(0, -n % f) for n, f in zip(density.shape, factors, strict=True)])


def points_of_blocks(
    mass: np.ndarray, origin: np.ndarray, voxel_size: np.ndarray, spacing: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Represent a mass as points at the centres of mass of blocks of voxels.

    Args:
        mass: mass of each voxel.
        origin: centre of the first voxel, Å.
        voxel_size: Å.
        spacing: about the side of a block, Å.

    Returns:
        Positions (Å); masses; which blocks have mass, in the order of the points; and the voxels along a block's sides.
    """
    factor = np.maximum(np.rint(spacing / voxel_size), 1).astype(int)
    x, held, filled = block_points(pad_to_blocks(mass, factor), factor)
    return origin + (x - 0.5) * voxel_size, held, filled, factor


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
    shape = [m for n, f in zip(mass.shape, np.broadcast_to(factor, 3), strict=True) for m in (n // f, f)]
    total = mass.reshape(shape).sum((1, 3, 5), dtype=np.float64)
    filled = total > 0
    place = []
    for axis, n in enumerate(mass.shape):
        at = (np.arange(n) + 0.5).reshape([-1 if k == axis else 1 for k in range(3)])
        moment = (mass * at).reshape(shape).sum((1, 3, 5), dtype=np.float64)
        place.append(moment[filled] / total[filled])
    return np.stack(place, -1), total[filled], filled
