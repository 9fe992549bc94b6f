"""Rigid bodies and predicted errors at points of the carried mass, as codes by which the viewer colours."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from scipy.spatial import cKDTree

from cryotrans_jax.io.maps import Map

from .. import finished
from ..vectors import VECTORS

TOP_ERROR = 5.0  # Å at the end of the key of predicted errors
UNSUPPORTED = 255  # code of what the target does not show
NEAR = 6.0  # Å around the mass that are coloured


class Places(NamedTuple):
    """Points of the carried mass, with codes of what the viewer colours by.

    Attributes:
        points: positions in the initial map, Å.
        body: number of each one's rigid body, from 1.
        error: predicted error, from 1 to 254 at TOP_ERROR; UNSUPPORTED where the target does not show it; 0: unknown.
    """

    points: Float[np.ndarray, "n 3"]
    body: UInt8[np.ndarray, "n"]
    error: UInt8[np.ndarray, "n"]

    @property
    def known(self) -> bool:
        """Whether errors were predicted."""
        return bool(self.error.any())

    def at(self, xyz: Float[np.ndarray, "m 3"]) -> "Places":
        """The codes of the nearest points at positions (Å) in the initial map."""
        nearest = cKDTree(self.points).query(xyz)[1]
        return Places(xyz, self.body[nearest], self.error[nearest])

    def on_grid(self, moved: Float[np.ndarray, "n 3"], like: Map) -> tuple[UInt8[np.ndarray, "x y z"], ...]:
        """Codes of bodies and errors on a map's grid when the points have moved (Å); zero away from them."""
        shape = like.density.shape
        voxels = like.origin + like.voxel_size * np.stack(np.indices(shape), -1).reshape(-1, 3)
        away, nearest = cKDTree(moved).query(voxels, distance_upper_bound=NEAR)
        seen, nearest = np.isfinite(away), np.minimum(nearest, len(moved) - 1)
        return tuple(np.where(seen, codes[nearest], 0).astype(np.uint8).reshape(shape) for codes in self[1:])


def read_places(folder: Path, points: Float[np.ndarray, "n 3"]) -> Places:
    """Read bodies and predicted errors at points of mass (Å) from displacement.npz; older runs have neither."""
    if not finished.has(folder, VECTORS):
        return Places(points, np.ones(len(points), np.uint8), np.zeros(len(points), np.uint8))
    with np.load(finished.verify(folder, VECTORS)) as arrays:
        found = Places(arrays["points"], np.minimum(arrays["body"], 255).astype(np.uint8), error_codes(arrays))
    return found.at(points)


def error_codes(arrays: Any) -> UInt8[np.ndarray, "n"]:
    """Codes of the predicted errors in displacement.npz, zero where it has none."""
    if "error" not in arrays:
        return np.zeros(len(arrays["points"]), np.uint8)
    codes = 1 + np.rint(253 * np.clip(arrays["error"] / TOP_ERROR, 0, 1))
    return np.where(arrays["supported"], codes, UNSUPPORTED).astype(np.uint8)
