"""A control lattice: the flow is integrated at coarse nodes and interpolated to the voxels between them.

The displacement Φ(x, 1) − x is smooth over several voxels, so the network need not run at each of them. Interpolation
is cubic convolution (Keys 1981, a = −1/2), exact for quadratics, applied one axis at a time as a small matrix product:
this is fast on every kind of device, and its transpose is its gradient.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.spatial import cKDTree

NEAREST = 12  # active nodes from which a node of the rim is extrapolated


class Lattice(NamedTuple):
    """Nodes that control the voxels of a box, as a tuple of arrays that passes through jit (made with NumPy).

    Attributes:
        nodes: positions (unit box) of the active nodes: the corners of all cells with a voxel that nodes surround.
        active: flat indices of the active nodes in the dense lattice.
        rim: flat indices of the nodes one further out, which cubic interpolation also uses.
        rim_sources: the active nodes from which each rim node is extrapolated, as numbers into `nodes`.
        rim_weights: their weights.
        weights: for each axis the interpolation matrix (voxels of the axis × nodes of the axis).
        voxels: flat indices, in the box, of the wanted voxels.
    """

    nodes: Float[Array | np.ndarray, "nodes 3"]
    active: Int[Array | np.ndarray, "nodes"]
    rim: Int[Array | np.ndarray, "rim"]
    rim_sources: Int[Array | np.ndarray, "rim nearest"]
    rim_weights: Float[Array | np.ndarray, "rim nearest"]
    weights: tuple[Float[Array | np.ndarray, "_ _"], ...]
    voxels: Int[Array | np.ndarray, "points"]


def make_lattice(
    wanted: np.ndarray, corner: np.ndarray, voxel: np.ndarray, spacing: float, around: np.ndarray | None = None
) -> Lattice:
    """Make the lattice that controls some voxels of a box.

    Args:
        wanted: which voxels (bool, axes x, y, z).
        corner: outer corner of the box's first voxel, unit box.
        voxel: sides of a voxel, in unit boxes.
        spacing: distance between nodes, in units of the smallest side of a voxel.
        around: voxels (bool) that have nodes around them, all that are wanted and perhaps more; None: those.
    """
    around = wanted if around is None else around
    pitch = spacing * voxel.min() / voxel
    weights = tuple(keys_weights(n, h) for n, h in zip(wanted.shape, pitch, strict=True))
    near = [np.abs(np.arange(n)[:, None] / h + 1 - np.arange(w.shape[1])) < 1 for n, h, w in
            zip(wanted.shape, pitch, weights, strict=True)]  # fmt: skip
    active = nodes_used(around, near)
    rim = nodes_used(around, [w != 0 for w in weights]) & ~active
    where, outside = np.argwhere(active), np.argwhere(rim)
    sources, shares = extrapolation_weights(outside, where)
    return Lattice(
        nodes=(corner + voxel * ((where - 1) * pitch + 0.5)).astype(np.float32),
        active=np.asarray(np.ravel_multi_index(tuple(where.T), active.shape)),
        rim=np.asarray(np.ravel_multi_index(tuple(outside.T), active.shape)),
        rim_sources=sources,
        rim_weights=shares.astype(np.float32),
        weights=tuple(w.astype(np.float32) for w in weights),
        voxels=np.flatnonzero(wanted).astype(np.int32),
    )


def nodes_used(wanted: np.ndarray, used_by_axis: Sequence[np.ndarray]) -> np.ndarray:
    """Nodes (bool, dense lattice) that any wanted voxel uses.

    `used_by_axis` holds for each axis a matrix (voxels × nodes along the axis), not 0 where a voxel uses a node.
    """
    return along_axes([uses.T.astype(np.float32) for uses in used_by_axis], wanted.astype(np.float32)) > 0


def along_axes(matrices: Sequence[np.ndarray], values: np.ndarray) -> np.ndarray:
    """Multiply values (n, m, ...) by a matrix (new × old) along each of their axes."""
    for axis, matrix in enumerate(matrices):
        values = np.moveaxis(np.tensordot(matrix, values, axes=([1], [axis])), 0, axis)
    return values


def extrapolation_weights(outside: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each place outside, the NEAREST places inside and the weights that extrapolate from them.

    The value is that of the affine function that fits the values inside best, with weights 1 / distance². It is exact
    for affine functions wherever the neighbours span space, and their mean in directions that they do not span.
    """
    nearest = min(NEAREST, len(inside))
    distance, sources = cKDTree(inside).query(outside, nearest)
    distance, sources = distance.reshape(-1, nearest), sources.reshape(-1, nearest)
    trust = 1 / distance**2
    middle = (trust[..., None] * inside[sources]).sum(1) / trust.sum(1)[:, None]
    arms = inside[sources] - middle[:, None]
    spread = np.einsum("rk,rki,rkj->rij", trust, arms, arms)
    slope = np.einsum("ri,rij->rj", outside - middle, np.linalg.pinv(spread, rcond=1e-3, hermitian=True))
    return sources, trust * (1 / trust.sum(1)[:, None] + np.einsum("rj,rkj->rk", slope, arms))


def batch_lattices(lattices: Sequence[Lattice]) -> Lattice:
    """Stack lattices over boxes of one shape, with a leading axis for `jax.vmap`.

    Nodes are padded to the largest number of them, with indices outside the dense lattice, where JAX drops what is
    written.
    """
    outside = int(np.prod([w.shape[1] for w in lattices[0].weights]))
    fills = dict(active=outside, rim=outside)
    each = {
        name: pad_and_stack([getattr(lattice, name) for lattice in lattices], fills.get(name, 0))
        for name in Lattice._fields
        if name != "weights"
    }
    weights = zip(*(lattice.weights for lattice in lattices), strict=True)
    return Lattice(weights=tuple(np.stack(axis) for axis in weights), **each)


def pad_and_stack(arrays: Sequence[np.ndarray], fill: int = 0) -> np.ndarray:
    """Stack arrays, each padded at the end of its first axis to the longest of them."""
    most = max(len(a) for a in arrays)
    rows = [np.pad(a, [(0, most - len(a))] + [(0, 0)] * (a.ndim - 1), constant_values=fill) for a in arrays]
    return np.stack(rows)


def node_indices(lattice: Lattice) -> np.ndarray:
    """Indices (nodes, 3) of the active nodes in the dense lattice."""
    shape = tuple(w.shape[1] for w in lattice.weights)
    return np.stack(np.unravel_index(lattice.active, shape), -1)


def cell_indices(voxels: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Index of the node at the lower corner of the lattice cell in which each voxel (n, 3) of the box lies."""
    return np.floor(voxels / pitch).astype(int) + 1


def keys_weights(n: int, pitch: float) -> np.ndarray:
    """Matrix (n, nodes) of cubic convolution from nodes at (j − 1) * pitch to voxels at 0, ..., n − 1."""
    at = np.arange(n) / pitch + 1.0
    t = np.abs(at[:, None] - np.arange(int(np.ceil(at[-1])) + 2))
    near = ((1.5 * t - 2.5) * t) * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def to_dense(lattice: Lattice, values: Float[Array, "*times nodes 3"]) -> Float[Array, "*times lx ly lz 3"]:
    """Values at the active nodes and the rim on the dense lattice, zero at the other nodes."""
    shape = tuple(w.shape[1] for w in lattice.weights)
    rim = jnp.einsum("rk,...rkc->...rc", lattice.rim_weights, values[..., lattice.rim_sources, :])
    places, both = jnp.concatenate([lattice.active, lattice.rim]), jnp.concatenate([values, rim], axis=-2)
    flat = jnp.zeros((*values.shape[:-2], int(np.prod(shape)), 3), values.dtype).at[..., places, :].set(both)
    return flat.reshape(*values.shape[:-2], *shape, 3)


def interpolate(lattice: Lattice, values: Float[Array, "*times nodes 3"]) -> Float[Array, "*times points 3"]:
    """Interpolate values from the nodes to the wanted voxels."""
    wx, wy, wz = lattice.weights
    u = to_dense(lattice, values)
    u = jnp.einsum("zc,...xyck->...xyzk", wz, u)
    u = jnp.einsum("yb,...xbzk->...xyzk", wy, u)
    u = jnp.einsum("xa,...ayzk->...xyzk", wx, u)
    return u.reshape(*values.shape[:-2], -1, 3)[..., lattice.voxels, :]
