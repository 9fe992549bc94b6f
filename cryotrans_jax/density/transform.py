"""Rigid-body motions of models and maps, and maps resampled on other grids."""

from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np
import scipy.fft
from jaxtyping import Float
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryotrans_jax.io import cores
from cryotrans_jax.io.maps import Map, frequencies, same_grid


@dataclass(frozen=True)
class Transform:
    """The rigid-body motion x -> rotation x + shift, in Å."""

    rotation: Float[np.ndarray, "3 3"]
    shift: Float[np.ndarray, "3"]

    def __call__(self, xyz: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Move positions, Å."""
        return xyz @ self.rotation.T + self.shift

    @classmethod
    def from_matrix(cls, matrix: Sequence[Sequence[float]] | Float[np.ndarray, "4 4"]) -> "Transform":
        """The motion of a 4 × 4 matrix; IDENTITY itself for the unit matrix."""
        matrix = np.asarray(matrix, float)
        return IDENTITY if np.array_equal(matrix, np.eye(4)) else cls(matrix[:3, :3], matrix[:3, 3])

    def after(self, first: "Transform") -> "Transform":
        """The motion by `first`, and then by this one."""
        return Transform(self.rotation @ first.rotation, self.rotation @ first.shift + self.shift)

    @property
    def inverse(self) -> "Transform":
        """The inverse motion."""
        return Transform(self.rotation.T, -self.rotation.T @ self.shift)

    @property
    def matrix(self) -> Float[np.ndarray, "4 4"]:
        """The motion as a matrix on columns (x, y, z, 1)."""
        return np.block([[self.rotation, self.shift[:, None]], [np.zeros(3), 1.0]])

    @property
    def angle(self) -> float:
        """Rotation angle, degrees."""
        return float(np.degrees(Rotation.from_matrix(self.rotation).magnitude()))

    def chimerax(self, model: int) -> str:
        """ChimeraX command that places the model of that number so."""
        return f"view matrix models #{model}," + ",".join(f"{value:.6f}" for value in self.matrix[:3].ravel())

    def move(self, model: gemmi.Structure) -> gemmi.Structure:
        """Copy a model and move it, with its anisotropic displacements."""
        copy = model.clone()
        motion = gemmi.Transform(gemmi.Mat33(self.rotation.tolist()), gemmi.Vec3(*self.shift))
        copy[0].transform_pos_and_adp(motion)
        return copy


IDENTITY = Transform(np.eye(3), np.zeros(3))


def resampled(map_: Map, like: Map, transform: Transform = IDENTITY) -> Map:
    """Resample a map, moved, on the grid of another: cubic splines, zero outside the map's box.

    A map that is not moved and is on that grid already is returned unchanged. Before resampling on coarser voxels the
    map is blurred by a Gaussian of half a voxel (of the variance that is missing), so that detail beyond the new
    Nyquist frequency does not alias to noise.

    Args:
        map_: the map.
        like: map whose grid is used.
        transform: motion of the map.
    """
    if transform is IDENTITY and same_grid(like, map_) is None:
        return map_
    turn = transform.rotation
    density, scale = antialias(map_, like, turn), 1 / map_.voxel_size
    matrix = scale[:, None] * turn.T * like.voxel_size
    offset = scale * (transform.inverse(like.origin[None])[0] - map_.origin)
    matrix, offset = (np.where(abs(v - np.rint(v)) < 1e-9, np.rint(v), v) for v in (matrix, offset))
    moved = ndimage.affine_transform(
        density, matrix, offset, like.density.shape, np.float32, order=3, mode="grid-constant"
    )
    return Map(moved, like.voxel_size, like.origin)


def antialias(map_: Map, like: Map, turn: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "x y z"]:
    """Blur a density for the voxels of `like`, to whose axes the rotation `turn` takes the map."""
    variance = turn.T @ np.diag(like.voxel_size**2) @ turn - np.diag(map_.voxel_size**2)
    values, axes = np.linalg.eigh(0.25 * variance)
    if values.max() < 1e-3 * map_.voxel_size.min() ** 2:
        return map_.density
    widths = np.sqrt(np.maximum(values, 0))
    room = np.ceil(4 * widths.max() / map_.voxel_size).astype(int)  # the transform is periodic: keep the sides apart
    shape = [scipy.fft.next_fast_len(n + int(r), real=True) for n, r in zip(map_.density.shape, room, strict=True)]
    spectrum = scipy.fft.rfftn(map_.density, shape, workers=cores.usable())
    f = frequencies(shape, map_.voxel_size)
    for axis, width in zip(axes.T, widths, strict=True):
        along = sum(a * g for a, g in zip(axis, f, strict=True))
        spectrum *= np.exp(-2 * (np.pi * width * along) ** 2).astype(np.float32)
    blurred = scipy.fft.irfftn(spectrum, shape, workers=cores.usable())
    return blurred[tuple(slice(0, n) for n in map_.density.shape)]


def superposing_rotations(covariance: Float[np.ndarray, "*many 3 3"]) -> Float[np.ndarray, "*many 3 3"]:
    """Rotations R that take points nearest to others, x -> x R, from their covariances xᵀ y (Kabsch 1976).

    `Rotation.align_vectors` takes three times as long, one superposition at a time, and fails for a single point.
    """
    u, _, vt = np.linalg.svd(covariance)
    u[..., -1] *= np.sign(np.linalg.det(u @ vt))[..., None]
    return u @ vt
