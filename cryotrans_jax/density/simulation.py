"""Maps of atomic models: one Gaussian an atom, as ChimeraX's molmap makes them."""

from collections.abc import Sequence

import gemmi
import numpy as np
import scipy.fft
from jaxtyping import Float

from cryotrans_jax.io import memory
from cryotrans_jax.io.atoms import Atoms, heavy_atoms, positions
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map

SIGMA = 0.225  # standard deviation of an atom's Gaussian per Å of resolution, 1/(π√2) (ChimeraX molmap)
REACH = 5  # standard deviations at which a Gaussian is cut: exp(-12.5), 4e-6 of its peak
BOX = 1 << 31  # most voxels of a box around models; only a stray atom needs more
VOXEL = 16  # bytes of memory per voxel while a map is simulated
BLOCK = 8  # shortest side, in voxels, of a block whose atoms are added together


def simulate(
    structure: gemmi.Structure,
    resolution: float,
    *,
    like: Map | None = None,
    voxel_size: float | Float[np.ndarray, "3"] | None = None,
    cover: Sequence[gemmi.Structure] = (),
) -> Map:
    """Simulate the map of a model at a resolution (`simulate_map`), on the grid of another map or in a box around it.

    Args:
        structure: the model.
        resolution: Å.
        like: map whose grid is used; None for a box around the models (`common_grid`).
        voxel_size: voxel size of that box, Å; None for a third of the resolution.
        cover: further models that the box must enclose.

    Raises:
        InputError: both `like` and one of `voxel_size` and `cover` are given.
    """
    if like is None:
        grid = common_grid([structure, *cover], voxel_size or resolution / 3, resolution)
    elif voxel_size or cover:
        raise InputError("the map like already sets the grid: leave out voxel_size and cover")
    else:
        grid = like.density.shape, like.voxel_size, like.origin
    return simulate_map(structure, *grid, resolution)


def simulate_map(
    atoms: gemmi.Structure | Atoms,
    shape: tuple[int, int, int],
    voxel_size: float | Float[np.ndarray, "3"],
    origin: Float[np.ndarray, "3"],
    resolution: float,
) -> Map:
    """Simulate the map of a model, or of weighted points, on a given grid (ChimeraX molmap).

    density(y) = Σ_a Z_a (2πσ²)^(-3/2) exp(-|y - x_a|² / 2σ²), σ = 0.225 resolution. It integrates to the sum of the
    atomic numbers; hydrogens are left out, mass outside the grid is lost. The atoms of one block of voxels are added
    together: over a box around the block the sum of products g(x) g(y) g(z) is one matrix product.

    Args:
        atoms: a model, or positions [Å] and weights.
        shape: number of voxels along each axis.
        voxel_size: Å, of all axes or of each.
        origin: position of the centre of voxel (0, 0, 0), Å.
        resolution: Å.
    """
    xyz, weights = heavy_atoms(atoms) if isinstance(atoms, gemmi.Structure) else atoms
    voxel_size, origin = (np.broadcast_to(np.asarray(v, np.float64), 3).copy() for v in (voxel_size, origin))
    sigma = SIGMA * resolution / voxel_size  # lengths below are in voxels
    x, reach = (np.asarray(xyz, np.float64) - origin) / voxel_size, np.ceil(REACH * sigma).astype(int)
    weights = np.asarray(weights, np.float64) / (np.sqrt(2 * np.pi) * SIGMA * resolution) ** 3
    density = np.zeros(shape)
    side = np.maximum(reach, BLOCK)
    for block, members in _blocks(x / side):
        low = np.maximum(block * side - reach, 0)
        high = np.minimum((block + 1) * side + reach + 1, shape)
        if np.any(low >= high):
            continue
        offsets = (np.arange(low[k], high[k])[:, None] - x[members, k] for k in range(3))
        gx, gy, gz = (np.exp(-0.5 * (d / s) ** 2) for d, s in zip(offsets, sigma, strict=True))
        plane = (gx * weights[members])[:, None] * gy
        box = tuple(slice(*ends) for ends in zip(low, high, strict=True))
        density[box] += (plane.reshape(-1, len(members)) @ gz.T).reshape(high - low)
    return Map(density.astype(np.float32), voxel_size, origin)


def common_grid(
    structures: Sequence[gemmi.Structure],
    voxel_size: float | Float[np.ndarray, "3"],
    resolution: float,
    padding: float | None = None,
) -> tuple[tuple[int, int, int], Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """The smallest grid that holds all models with padding on every side.

    Sides are even and fast to transform; the origin is a whole number of voxels from 0.

    Args:
        structures: the models.
        voxel_size: Å, of all axes or of each.
        resolution: Å.
        padding: Å; None for 3 × resolution.

    Returns:
        Shape, voxel size [Å] and origin [Å].

    Raises:
        InputError: the box would have more than BOX voxels, or more than there is memory for.
    """
    padding = 3 * resolution if padding is None else padding
    voxel_size = np.broadcast_to(np.asarray(voxel_size, np.float64), 3).copy()
    xyz = np.concatenate([positions(structure) for structure in structures])
    low = np.floor((xyz.min(0) - padding) / voxel_size).astype(int)
    needed = np.ceil((xyz.max(0) + padding) / voxel_size).astype(int) - low + 1
    if (sides := needed.astype(float)).prod() > min(BOX, memory.available() / VOXEL):
        raise InputError(
            f"the box about the models would be {' x '.join(f'{n:.0f}' for n in sides)} voxels, more than there is "
            "memory for: take larger voxels, or remove atoms that lie far from the rest"
        )
    shape = tuple(2 * scipy.fft.next_fast_len(int(n + 1) // 2, real=True) for n in needed)
    return shape, voxel_size, (low - (np.array(shape) - needed) // 2) * voxel_size


def _blocks(x):
    """Group positions by cubes of side 1: pairs of a cube's index and the indices of the atoms in it."""
    cells = np.floor(x).astype(int)
    blocks, owner, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(owner.ravel(), kind="stable")
    return zip(blocks, np.split(order, np.cumsum(count)[:-1]), strict=True) if len(x) else ()
