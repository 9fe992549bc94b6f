"""Trilinear splat of point masses to a volume (paper, eq. 6), and gather, its adjoint.

A volume's voxel (i, j, k) is centred at corner + (i + 1/2, j + 1/2, k + 1/2) * voxel, in unit boxes.
The paper puts voxel i at i/N; centres at (i + 1/2)/N make the grid symmetric about the middle of the box.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Points = Float[Array, "points 3"]
Vector = Float[Array | np.ndarray, "3"]


def splat(
    x: Points, rho: Float[Array, "points"], shape: tuple[int, int, int], corner: Vector, voxel: Vector
) -> Float[Array, "x y z"]:
    """Volume of mass in each voxel: the mass rho of each point, spread over the 8 voxel centres about x.

    Total mass and centre of mass are kept; mass outside the outermost voxel centres is lost in part, and
    beyond one voxel from them altogether. Differentiable in x and rho.
    """
    index, weight = corners(x, corner, voxel)
    volume = jnp.zeros(shape, rho.dtype)
    for i, w in zip(index, weight, strict=True):
        volume = volume.at[i[:, 0], i[:, 1], i[:, 2]].add(w * rho, mode="drop")
    return volume


def gather(volume: Float[Array, "x y z"], x: Points, corner: Vector, voxel: Vector) -> Float[Array, "points"]:
    """Trilinear interpolation of the volume at x, with zero outside: <splat(x, rho), v> = <rho, gather(v, x)>."""
    index, weight = corners(x, corner, voxel)
    return sum(
        w * volume.at[i[:, 0], i[:, 1], i[:, 2]].get(mode="fill", fill_value=0.0)
        for i, w in zip(index, weight, strict=True)
    )


def corners(
    x: Points, corner: Vector, voxel: Vector
) -> tuple[list[Int[Array, "points 3"]], list[Float[Array, "points"]]]:
    """Indices of the 8 voxels about each point, and their trilinear weights.

    Indices below the volume are moved far above it, because JAX counts negative indices from the end.
    """
    u = (x - corner) / voxel - 0.5
    low = jnp.floor(u)
    part = u - low
    low = low.astype(jnp.int32)
    index, weight = [], []
    for offset in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)):
        o = jnp.array(offset)
        i = low + o
        index.append(jnp.where(i < 0, jnp.iinfo(jnp.int32).max, i))
        weight.append(jnp.prod(jnp.where(o == 1, part, 1 - part), axis=-1))
    return index, weight
