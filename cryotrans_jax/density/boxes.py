"""Boxes on a grid: around density, cropped, padded, and divided into blocks."""

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from cryotrans_jax.core.grid import block_points


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


def power_of_two(wanted: float) -> int:
    """Power of two nearest to the wanted factor, from 1 to 8 (the crop is a multiple of 8 voxels)."""
    return int(2 ** np.clip(np.round(np.log2(max(wanted, 1.0))), 0, 3))


def padded_size(count: int, least: int = 16) -> int:
    """Smallest power of two that is no less than `count` and `least`.

    Arrays that are padded to such sizes find programs that were compiled for other molecules of like size.
    """
    return max(least, 1 << max(count - 1, 0).bit_length())


def padded_row(volume: Float[np.ndarray, "x y z"], least: int = 16) -> Float[np.ndarray, "padded"]:
    """The values of a volume in one row, in single precision, with zeros up to a `padded_size`."""
    row = np.zeros(padded_size(volume.size, least), np.float32)
    row[: volume.size] = volume.ravel()
    return row
