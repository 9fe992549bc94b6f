"""What is computed on large grids a slab at a time, so that memory holds it: distances and Fourier shells."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from cryotrans_jax.density.boxes import box_slices
from cryotrans_jax.io.maps import frequencies

VOXELS = 1 << 22  # about as many at once


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Slices along the first axis of a grid, of about VOXELS voxels each."""
    thick = max(VOXELS // max(int(np.prod(shape[1:])), 1), 1)
    return (slice(first, min(first + thick, shape[0])) for first in range(0, shape[0], thick))


def distance_within(
    reach: float, inside: Bool[np.ndarray, "x y z"], voxel_size: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "x y z"]:
    """Distance (Å) of each voxel from the nearest one inside, up to a reach (Å); infinite beyond it."""
    distance = np.full(inside.shape, np.inf, np.float32)
    if not inside.any():
        return distance
    margin = np.ceil(reach / voxel_size).astype(int)
    near = box_slices(inside, margin)
    held, found = inside[near], distance[near]
    for rows in slabs(held.shape):
        first = max(rows.start - margin[0], 0)
        wide = held[first : rows.stop + margin[0]]
        if wide.any():
            own = ndimage.distance_transform_edt(~wide, sampling=voxel_size)[rows.start - first : rows.stop - first]
            found[rows] = np.where(own <= reach, own, np.inf)
    return distance


def shells(
    shape: Sequence[int], voxel_size: Float[np.ndarray, "3"], side: float, count: int
) -> Iterator[tuple[slice, Int[np.ndarray, "coefficients"]]]:
    """Number of the Fourier shell of each coefficient of a real transform.

    Args:
        shape: of the map.
        voxel_size: Å.
        side: whose inverse is the width of a shell, Å.
        count: number of shells; coefficients beyond the last one have this number.

    Yields:
        Slices of the first axis, and the numbers there, in one row.
    """
    along_x, *others = frequencies(shape, voxel_size)
    across = sum(along**2 for along in others)
    for rows in slabs((shape[0], shape[1], shape[2] // 2 + 1)):
        number = np.rint(side * np.sqrt(along_x[rows] ** 2 + across)).astype(np.int32)
        yield rows, np.minimum(number, count).ravel()
