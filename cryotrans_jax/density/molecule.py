"""Where the molecule is.

A threshold that keeps out the noise of a sharp map shows a part of the molecule only: weak side chains and loops are
below it. What is above is compared with the target. But the molecule between is as rigid as the rest.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from cryotrans_jax.density.thresholds import DEFAULT, ThresholdRules, apply_threshold
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.io.maps import Map


@dataclass(frozen=True)
class OutlineRules:
    """How a molecule is outlined.

    Attributes:
        reach: Å from the atom that stands for a residue, within which the residue is.
        blur: Å (standard deviation) of the blur of a map without a model; at this resolution a threshold that keeps
            out the noise encloses the molecule.
    """

    reach: float = 5.0
    blur: float = 2.0


def outline(
    initial: Map,
    shown: Bool[np.ndarray, "x y z"],
    chain: Chain | None = None,
    volume: float | None = None,
    rules: OutlineRules = OutlineRules(),
    thresholds: ThresholdRules = DEFAULT,
) -> Bool[np.ndarray, "x y z"]:
    """Outline a molecule: its mass, and what surrounds the residues of its model or shows in a blurred map.

    Args:
        initial: the initial map.
        shown: where it has mass.
        chain: of a model of the molecule; None: no model.
        volume: of the molecule, Å³; None where it is not known.
        rules: how it is outlined.
        thresholds: how the blurred map's threshold is chosen.
    """
    if chain is not None and len(chain.x):
        return shown | near(chain.x - initial.origin, shown.shape, initial.voxel_size, rules.reach)
    blurred = ndimage.gaussian_filter(initial.density, rules.blur / initial.voxel_size)
    mass, _ = apply_threshold(replace(initial, density=blurred), None, "initial map", volume, thresholds)
    return shown | (mass > 0)


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
