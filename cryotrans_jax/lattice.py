"""A control lattice: the flow is integrated on coarse nodes and interpolated to the voxels between them.

The displacement Φ(x, 1) − x is smooth over several voxels, so the network need not run at each of them.
Interpolation is cubic convolution (Keys 1981, a = −1/2), exact for quadratics, applied one axis at a time as a
small matrix product: that suits every kind of device, and its transpose is its gradient.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Lattice(NamedTuple):
    """Nodes that control the voxels of a box; arrays only, so that it passes through jit.

    `nodes` are the positions (unit box) of the active nodes, `index` their place in the dense lattice
    (flat), `weights` one interpolation matrix (voxels of the axis × nodes of the axis) an axis, and `voxels` the
    flat indices, in the box, of the voxels wanted.
    """

    nodes: Float[Array, "nodes 3"]
    index: Int[Array, "nodes"]
    weights: tuple[Float[Array, "nx lx"], Float[Array, "ny ly"], Float[Array, "nz lz"]]
    voxels: Int[Array, "points"]


def make_lattice(wanted: np.ndarray, corner: np.ndarray, voxel: np.ndarray, spacing: float) -> Lattice:
    """Lattice for the voxels of a box where `wanted` (bool, axes x, y, z) holds.

    `corner` and `voxel` place the box in the unit box as in `splat`; `spacing` is the distance between nodes in
    voxels, rounded for each axis so that nodes are about equally far apart in space.
    """
    pitch = np.maximum(spacing * voxel.min() / voxel, 1e-6)
    weights = tuple(keys_weights(n, h) for n, h in zip(wanted.shape, pitch, strict=True))
    active = wanted.astype(np.float32)
    for w in weights:  # a node is active when any wanted voxel leans on it
        active = np.moveaxis(np.tensordot((w != 0).astype(np.float32), active, axes=([0], [0])), 0, -1)
    where = np.argwhere(active > 0)
    nodes = corner + voxel * ((where - 1) * pitch + 0.5)
    return Lattice(
        nodes=jnp.asarray(nodes, jnp.float32),
        index=jnp.asarray(np.ravel_multi_index(where.T, active.shape)),
        weights=tuple(jnp.asarray(w, jnp.float32) for w in weights),
        voxels=jnp.asarray(np.flatnonzero(wanted)),
    )


def node_places(lattice: Lattice) -> np.ndarray:
    """Place (nodes, 3) of each active node on the dense lattice."""
    shape = tuple(w.shape[1] for w in lattice.weights)
    return np.stack(np.unravel_index(np.asarray(lattice.index), shape), -1)


def cell_of(voxels: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Place of the node at the lower corner of the lattice cell in which each voxel (n, 3) of the box lies."""
    return np.floor(voxels / pitch).astype(int) + 1


def keys_weights(n: int, pitch: float) -> np.ndarray:
    """Matrix (n, nodes) of cubic convolution from nodes at (j − 1) * pitch to voxels at 0, ..., n − 1."""
    at = np.arange(n) / pitch + 1.0
    t = np.abs(at[:, None] - np.arange(int(np.ceil(at[-1])) + 2))
    near = ((1.5 * t - 2.5) * t) * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def dense(lattice: Lattice, values: Float[Array, "nodes 3"]) -> Float[Array, "lx ly lz 3"]:
    """Values at the active nodes laid out on the whole lattice, zero at the others."""
    shape = tuple(w.shape[1] for w in lattice.weights)
    flat = jnp.zeros((int(np.prod(shape)), 3), values.dtype).at[lattice.index].set(values)
    return flat.reshape(*shape, 3)


def interpolate(lattice: Lattice, values: Float[Array, "nodes 3"]) -> Float[Array, "points 3"]:
    """Values at the wanted voxels from values at the nodes."""
    wx, wy, wz = lattice.weights
    u = dense(lattice, values)
    u = jnp.einsum("zc,xyck->xyzk", wz, u)
    u = jnp.einsum("yb,xbzk->xyzk", wy, u)
    u = jnp.einsum("xa,ayzk->xyzk", wx, u)
    return u.reshape(-1, 3)[lattice.voxels]
