"""The motion of a morph, sampled on a coarse lattice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from cryotrans_jax.density.boxes import points_of_blocks
from cryotrans_jax.density.thresholds import carried_mass
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.lattice import along_axes

Carry = Callable[[Float[np.ndarray, "n 3"], Sequence[float]], Float[np.ndarray, "times n 3"]]
SPACING = 2.5  # Å between nodes, as where frames are computed
MAX_NODES = 60_000  # nodes; the spacing is wider in boxes that would have more
CELL = 2.0  # Å: side of the cells of mass whose displacements are averaged
TIMES = np.linspace(0, 1, 11)
MIN_WEIGHT = 0.02  # of a full cell's weight after the blur: cells with less are too far from the molecule
STRAIGHT_TOLERANCE = 0.01  # Å: a time is left out if straight lines between its neighbours pass within this distance


@dataclass(frozen=True)
class Motion:
    """Displacements on a lattice of nodes.

    Attributes:
        times: from 0 to 1.
        shift: displacements of the nodes at these times, Å.
        origin: position of the first node, Å.
        spacing: distance between nodes, Å.
    """

    times: Float[np.ndarray, "times"]
    shift: Float[np.ndarray, "times x y z 3"]
    origin: Float[np.ndarray, "3"]
    spacing: float

    def displacements_at(self, xyz: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "times n 3"]:
        """Displacements (Å) of the positions xyz (Å) at `times`, interpolated linearly between nodes."""
        at = ((xyz - self.origin) / self.spacing).T
        each = [
            ndimage.map_coordinates(component, at, order=1, mode="nearest")
            for shift in self.shift
            for component in np.moveaxis(shift, -1, 0)
        ]
        return np.stack(each).reshape(len(self.times), 3, -1).swapaxes(1, 2)

    def at_time(self, knots: Float[np.ndarray, "times n 3"], time: float) -> Float[np.ndarray, "n 3"]:
        """Displacements at any time from 0 to 1, interpolated linearly between those of `displacements_at`."""
        k = int(np.clip(np.searchsorted(self.times, time, "right") - 1, 0, len(self.times) - 2))
        share = (time - self.times[k]) / (self.times[k + 1] - self.times[k])
        return (1 - share) * knots[k] + share * knots[k + 1]


def sample_motion(carry: Carry, low: Float[np.ndarray, "3"], high: Float[np.ndarray, "3"]) -> Motion:
    """Sample the motion in a box.

    Times between which every node moves straight are left out, so that about as many remain as the flow has steps.

    Args:
        carry: function that carries positions (n, 3) in Å to some times.
        low: lower corner of the box, Å.
        high: upper corner of the box, Å.
    """
    spacing = max(SPACING, (np.prod(high - low) / MAX_NODES) ** (1 / 3))
    counts = np.ceil((high - low) / spacing).astype(int) + 1
    grid = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1)
    nodes = low + spacing * grid.reshape(-1, 3)
    shift = (carry(nodes, TIMES.tolist()) - nodes).astype(np.float32)
    kept = bend_times(shift)
    return Motion(TIMES[kept], shift[kept].reshape(-1, *counts, 3), np.asarray(low, np.float64), float(spacing))


def bend_times(path: Float[np.ndarray, "times n 3"]) -> list[int]:
    """Indices of the equally spaced times between which all points move straight and at constant speed."""
    kept = [0]
    for k in range(1, len(path) - 1):
        share = 1 / (k + 1 - kept[-1])
        straight = share * path[kept[-1]] + (1 - share) * path[k + 1]
        if np.abs(path[k] - straight).max() > STRAIGHT_TOLERANCE:
            kept.append(k)
    return [*kept, len(path) - 1]


def mass_points(map_: Map, level: float, cell: float = CELL) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n"]]:
    """Positions (Å) and masses of what the flow carries of a map, in cells of about this side (Å)."""
    x, rho, *_ = points_of_blocks(carried_mass(map_.density, level), map_.origin, map_.voxel_size, cell)
    return x, rho


def distances(motion: Motion, xyz: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    """Distance (Å) between start and end of the motion at the positions xyz (Å)."""
    return np.linalg.norm(motion.displacements_at(xyz)[-1], axis=-1)


def displacement_map(motion: Motion, points: Float[np.ndarray, "n 3"], like: Map, time: float = 1.0) -> Map:
    """Map of how far (Å) the density at each voxel at a time moves from start to end.

    Averaged over about 3 Å and continued as far beyond the molecule, so that its surface can be coloured by it.

    Args:
        motion: the morph's motion.
        points: positions (Å) of the initial map's mass, from `mass_points`.
        like: the map whose grid is used.
        time: when the density is there, from 0 (the initial map) to 1 (the end).

    Returns:
        The distances (Å) on the grid of `like`, zero away from the molecule.
    """
    knots = motion.displacements_at(points)
    return values_map(points + motion.at_time(knots, time), np.linalg.norm(knots[-1], axis=-1), like)


def values_map(points: Float[np.ndarray, "n 3"], values: Float[np.ndarray, "n"], like: Map) -> Map:
    """Map of values that points of mass have, averaged over about 3 Å and continued as far beyond the molecule.

    Args:
        points: positions (Å), as from `mass_points` or where they are carried.
        values: one for each point.
        like: the map whose grid is used.

    Returns:
        The values on the grid of `like`, zero away from the points.
    """
    side = like.voxel_size * np.maximum(np.rint(CELL / like.voxel_size), 1)
    cells = np.ceil(like.density.shape * like.voxel_size / side).astype(int) + 1
    at = np.rint((points - like.origin) / side).astype(int)
    inside = ((at >= 0) & (at < cells)).all(1)
    flat = np.ravel_multi_index(at[inside].T, cells)
    near = []
    for each in (np.ones(inside.sum()), values[inside]):
        coarse = np.bincount(flat, each, cells.prod()).reshape(cells).astype(np.float32)
        near.append(interpolate_cells(ndimage.gaussian_filter(coarse, 1.0, mode="constant"), like, side))
    weight, total = near
    return Map(np.where(weight > MIN_WEIGHT, total / np.maximum(weight, MIN_WEIGHT), 0), like.voxel_size, like.origin)


def interpolate_cells(
    coarse: Float[np.ndarray, "a b c"], like: Map, side: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "x y z"]:
    """Interpolate cells of side `side` (Å) to the voxels of `like`, linearly; both grids have the same first centre."""
    weights = []
    for n, cells, step in zip(like.density.shape, coarse.shape, like.voxel_size / side, strict=True):
        apart = np.abs(np.arange(n)[:, None] * step - np.arange(cells))
        weights.append(np.maximum(1 - apart, 0).astype(np.float32))
    return np.ascontiguousarray(along_axes(weights, coarse))
