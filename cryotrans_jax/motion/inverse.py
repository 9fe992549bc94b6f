"""Invert a motion that is known at the nodes of a grid: trace density back to where it came from."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.lattice import along_axes, keys_weights, nodes_used

Places = Float[np.ndarray, "n 3"]
Inverse = Callable[[Places], tuple[Places, Bool[np.ndarray, "n"]]]
APPROXIMATE = 0.5  # a node that is found near a place is at most this much further away than the nearest, relatively
LEAST_VOLUME = 0.1  # to which the surroundings of a node may shrink; below it, the motion is about to fold
CHUNK = 2**18  # places whose origin is found at once


class Nodes(NamedTuple):
    """Nodes of a grid around some density.

    Attributes:
        places: of the nodes, Å.
        spacing: between nodes along each axis, Å.
        used: those from which cubic interpolation takes values for the density.
        weights: for each axis the matrix (voxels × nodes) of cubic interpolation to the voxels of the box.
    """

    places: Float[np.ndarray, "x y z 3"]
    spacing: Float[np.ndarray, "3"]
    used: Bool[np.ndarray, "x y z"]
    weights: tuple[Float[np.ndarray, "_ _"], ...]

    def coordinates(self, x: Places) -> Float[np.ndarray, "3 n"]:
        """Places (Å) in units of the spacing, from the first node."""
        return ((x - self.places[0, 0, 0]) / self.spacing).T

    def around(self, x: Places) -> Bool[np.ndarray, "n"]:
        """Whether the node nearest to each place (Å) is around the density."""
        at, size = np.rint(self.coordinates(x)).astype(int), np.array(self.used.shape)[:, None]
        return ((at >= 0) & (at < size)).all(0) & self.used[tuple(at.clip(0, size - 1))]

    def to_voxels(self, values: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "i j k"]:
        """Interpolate values at the nodes to the voxels of the box."""
        return along_axes(self.weights, values)

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """For each voxel of the box the value of the nearest node."""
        return values[np.ix_(*(weights.argmax(1) for weights in self.weights))]


def nodes_about(voxels: Int[np.ndarray, "n 3"], grid: Map, spacing: float) -> Nodes:
    """Make nodes around some voxels of a map, given by their indices; else as `nodes_of_box`."""
    low, high = voxels.min(0), voxels.max(0)
    inside = np.zeros(high - low + 1, bool)
    inside[tuple((voxels - low).T)] = True
    nodes = nodes_of_box(low, high, grid, spacing)
    return nodes._replace(used=nodes_used(inside, [weights != 0 for weights in nodes.weights]))


def nodes_of_box(low: Int[np.ndarray, "3"], high: Int[np.ndarray, "3"], grid: Map, spacing: float) -> Nodes:
    """Make nodes around a box of voxels.

    Args:
        low: the first voxel.
        high: the last one.
        grid: the map whose voxels these are; its density is not used.
        spacing: between nodes, Å; a voxel's side where that is longer.
    """
    size = grid.voxel_size
    pitch = np.maximum(spacing / size, 1.0)
    counts = (high - low + 1).tolist()
    weights = tuple(keys_weights(n, each).astype(np.float32) for n, each in zip(counts, pitch, strict=True))
    shape = [w.shape[1] for w in weights]
    number = np.moveaxis(np.indices(shape), 0, -1) - 1
    return Nodes(grid.origin + (low + number * pitch) * size, pitch * size, np.ones(shape, bool), weights)


def invert(nodes: Nodes, moved: Float[np.ndarray, "x y z 3"]) -> Inverse:
    """Invert a motion.

    The first estimate is by the motion's derivatives at a node that is carried near to y, among those around the
    density. A step of Newton's method corrects it, with the motion interpolated between the nodes. Where the motion
    carries several places to y, this finds one of them.

    Args:
        nodes: the nodes.
        moved: where the motion carries each of them, Å.

    Returns:
        A function of places y (n, 3) after the motion, Å. It returns the places (n, 3) before the motion, Å, and which
        of them are among the nodes around the density.
    """
    shift = (moved - nodes.places).astype(np.float32)
    slopes = np.stack(np.gradient(shift, *nodes.spacing, axis=(0, 1, 2)), -2) + np.eye(3, dtype=np.float32)
    start, end = nodes.places[nodes.used], moved[nodes.used]
    tree, inverse = cKDTree(end), inverses(slopes[nodes.used])

    def find(y: Places) -> tuple[Places, Bool[np.ndarray, "n"]]:
        near = tree.query(y, eps=APPROXIMATE)[1]
        back = inverse[near]
        x = start[near] + rows_times(y - end[near], back)
        known = nodes.around(x)
        x[known] += rows_times(y[known] - interpolate(nodes, moved, slopes, x[known]), back[known])
        return x, known

    def find_in_chunks(y: Places) -> tuple[Places, Bool[np.ndarray, "n"]]:
        x, known = zip(*(find(some) for some in np.split(y, range(CHUNK, len(y), CHUNK))), strict=True)
        return np.concatenate(x), np.concatenate(known)

    return find_in_chunks


def interpolate(
    nodes: Nodes, moved: Float[np.ndarray, "x y z 3"], slopes: Float[np.ndarray, "x y z 3 3"], x: Places
) -> Places:
    """Where the motion carries places, from where it carries the nodes, and from its derivatives there (dy = dx slope).

    The eight nodes around a place are weighted as in linear interpolation. Each contributes its value and half of the
    change that its derivatives predict, which makes the result exact for quadratic motions.
    """
    at, size = nodes.coordinates(x), nodes.used.shape
    low = np.floor(at).astype(int).clip(0, np.array(size)[:, None] - 2)
    beyond, found = at - low, np.zeros_like(x)
    for corner in np.ndindex(2, 2, 2):
        upper = np.array(corner)[:, None]
        weight, number = np.prod(np.where(upper, beyond, 1 - beyond), axis=0), tuple(low + upper)
        change = rows_times(x - nodes.places[number], slopes[number])
        found += weight[:, None] * (moved[number] + 0.5 * change)
    return found


def origins_of_voxels(
    nodes: Nodes, moved: Float[np.ndarray, "x y z 3"], grid: Map, spacing: float
) -> tuple[Int[np.ndarray, "3 n"], Float[np.ndarray, "3 n"]]:
    """Where the density in each voxel came from.

    `invert` finds it at nodes around the density's present place, and it is interpolated to the voxels between them.

    Args:
        nodes: nodes around the density before the motion.
        moved: where the motion carries each of them, Å.
        grid: the map whose voxels are filled; its density is not used.
        spacing: between the nodes around the present place, Å.

    Returns:
        Indices of the voxels in which there may be density now, and the places (in voxels) before the motion.
    """
    reached = (moved[nodes.used] - grid.origin) / grid.voxel_size
    last = np.array(grid.density.shape) - 1
    low = np.floor(reached.min(0)).astype(int).clip(0, last)
    high = np.ceil(reached.max(0)).astype(int).clip(low, last)
    around = nodes_of_box(low, high, grid, spacing)
    y = around.places.reshape(-1, 3)
    x, known = invert(nodes, moved)(y)
    shown = around.nearest(known.reshape(around.used.shape))
    voxels = np.argwhere(shown).T + low[:, None]
    shifts = ((x - y) / grid.voxel_size).astype(np.float32).T.reshape(3, *around.used.shape)
    places = [n + around.to_voxels(shift)[shown] for n, shift in zip(voxels, shifts, strict=True)]
    return voxels, np.stack(places, dtype=np.float32)


def inverses(slopes: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "n 3 3"]:
    """Inverses of matrices, and zero for those whose determinant is within LEAST_VOLUME of zero."""
    regular = np.abs(np.linalg.det(slopes)) > LEAST_VOLUME
    found = np.zeros_like(slopes)
    found[regular] = np.linalg.inv(slopes[regular])
    return found


def rows_times(x: Places, matrices: Float[np.ndarray, "n 3 3"]) -> Places:
    """Each row times its matrix."""
    return np.einsum("ni,nij->nj", x, matrices)
