"""Trilinear splat of point masses to a volume (paper, eq. 6), and gather, its adjoint.

Voxel (i, j, k) of a volume is centred at corner + (i + 1/2, j + 1/2, k + 1/2) * voxel, in unit boxes. The paper puts
voxel i at i/N; centres at (i + 1/2)/N make the grid symmetric about the middle of the box.
"""

import itertools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Points = Float[Array, "points 3"]
Vector = Float[Array | np.ndarray, "3"]


def splat(
    x: Points, rho: Float[Array, "points"], shape: tuple[int, int, int], corner: Vector, voxel: Vector
) -> Float[Array, "x y z"]:
    """Distribute points of mass over the voxels of a grid, trilinearly (paper, eq. 6).

    Total mass and centre of mass are kept for points inside the outermost voxel centres. Mass further out is lost in
    part, and beyond one voxel from them altogether. Differentiable in x and rho.

    Args:
        x: positions, unit box.
        rho: mass of each point.
        shape: number of voxels along each axis.
        corner: outer corner of the first voxel, unit box.
        voxel: sides of a voxel, in unit boxes.

    Returns:
        The mass in each voxel.
    """
    index, weight = corners(x, shape, corner, voxel)
    nx, ny, nz = shape
    padded = nx + 2, ny + 2, nz + 2
    volume = jnp.zeros(math.prod(padded), rho.dtype)
    volume = volume.at[index].add(weight * rho, mode="promise_in_bounds")
    return volume.reshape(padded)[1:-1, 1:-1, 1:-1]


def gather(volume: Float[Array, "x y z"], x: Points, corner: Vector, voxel: Vector) -> Float[Array, "points"]:
    """Interpolate a volume at points, trilinearly, with zero outside of it.

    The adjoint of `splat`: <splat(x, rho), v> = <rho, gather(v, x)>. Arguments are as for `splat`.
    """
    nx, ny, nz = volume.shape
    index, weight = corners(x, (nx, ny, nz), corner, voxel)
    flat = jnp.pad(volume, 1).ravel()
    return jnp.sum(weight * flat.at[index].get(mode="promise_in_bounds"), axis=0)


def corners(
    x: Points, shape: tuple[int, int, int], corner: Vector, voxel: Vector
) -> tuple[Int[Array, "8 points"], Float[Array, "8 points"]]:
    """Flat indices and trilinear weights of the 8 voxels around each point.

    Indices refer to the volume padded by one voxel on every side. Points that touch no voxel of the volume get weight 0
    and indices inside, so that no index needs a check: on a CPU this makes the sum and its gradient more than twice as
    fast.
    """
    # One subtraction and one division: with more, a compiler may compute u twice, for the indices and for the weights,
    # round it differently, and so put a point that lies on a voxel's centre one voxel away.
    u = (x - (corner + 0.5 * voxel)) / voxel
    low = jnp.floor(u)
    fraction, size = u - low, jnp.array(shape)
    misses = jnp.any((low < -1) | (low >= size), axis=-1)
    low = jnp.clip(low.astype(jnp.int32), -1, size - 1) + 1  # clip integers: this bounds indices of NaN positions too
    row = shape[2] + 2  # stride along y, and along x:
    plane = (shape[1] + 2) * row
    first = low[:, 0] * plane + low[:, 1] * row + low[:, 2]
    near = (
        jnp.where(misses, 0, (1 - fraction).T),
        jnp.where(misses, 0, fraction.T),
    )  # weights of the lower and of the upper voxel
    each = [*itertools.product((0, 1), repeat=3)]
    index = first + jnp.array([a * plane + b * row + c for a, b, c in each])[:, None]
    return index, jnp.stack([near[a][0] * near[b][1] * near[c][2] for a, b, c in each])
