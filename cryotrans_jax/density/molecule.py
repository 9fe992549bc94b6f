"""Where the molecule is.

A threshold that keeps out the noise of a sharp map shows a part of the molecule only: weak side chains and loops are
below it. What is above is compared with the target. But the molecule between is as rigid as the rest.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from cryotrans_jax.density.boxes import power_of_two
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.io.maps import Map


@dataclass(frozen=True)
class OutlineRules:
    """How a molecule is outlined.

    Attributes:
        gap: Å: gaps in the density up to this width belong to the molecule.
        reach: Å from the atom that stands for a residue, within which the residue is.
        voxel: Å: about the voxel size of the outline in gaps.
    """

    gap: float = 8.0
    reach: float = 5.0
    voxel: float = 2.0


def outline(mass: Map, chain: Chain | None = None, rules: OutlineRules = OutlineRules()) -> Bool[np.ndarray, "x y z"]:
    """Outline a molecule: its mass, and what surrounds the residues of its model or, without one, fills narrow gaps.

    Args:
        mass: density above a threshold, 0 elsewhere; its sides are multiples of 8 voxels.
        chain: of a model of the molecule; None: no model.
        rules: how it is outlined.
    """
    shown = mass.density > 0
    if chain is None or not len(chain.x):
        return shown | gaps(shown, mass.voxel_size, rules)
    return shown | near(chain.x - mass.origin, shown.shape, mass.voxel_size, rules.reach)


def gaps(
    shown: Bool[np.ndarray, "x y z"], voxel_size: Float[np.ndarray, "3"], rules: OutlineRules
) -> Bool[np.ndarray, "x y z"]:
    """What is shown, with narrow gaps closed (morphological closing), on coarse voxels."""
    factor = power_of_two(rules.voxel / voxel_size.min())
    size, half = factor * voxel_size, 0.5 * rules.gap
    blocks = shown.reshape([m for n in shown.shape for m in (n // factor, factor)]).any((1, 3, 5))
    rim = np.ceil(half / size).astype(int) + 1
    dilated = ndimage.distance_transform_edt(~np.pad(blocks, [(n, n) for n in rim]), sampling=size) <= half
    closed = ndimage.distance_transform_edt(dilated, sampling=size) > half
    inner = closed[tuple(slice(n, -n) for n in rim)]
    for axis in range(3):
        inner = np.repeat(inner, factor, axis)
    return inner


def near(
    sites: Float[np.ndarray, "n 3"], shape: tuple[int, ...], voxel_size: Float[np.ndarray, "3"], reach: float
) -> Bool[np.ndarray, "x y z"]:
    """Voxels within reach (Å) of some places, which are in Å from the middle of the first voxel."""
    found, most = np.zeros(shape, bool), np.ceil(reach / voxel_size).astype(int) + 1
    around = np.argwhere(np.ones(2 * most + 1, bool)) - most
    for site in sites:
        voxels = np.rint(site / voxel_size).astype(int) + around
        inside = ((voxels >= 0) & (voxels < shape)).all(1)
        found[tuple(voxels[inside & (np.linalg.norm(voxels * voxel_size - site, axis=1) <= reach)].T)] = True
    return found
