"""The correlation of two maps' mass in any pose, its gradient and its maxima."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np
import scipy.fft
from jaxtyping import Float, Int
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryotrans_jax.core import grid
from cryotrans_jax.density import boxes, thresholds
from cryotrans_jax.density.refine_pose import LARGE, Placed, Splines, best_poses, correlations
from cryotrans_jax.density.simulation import SIGMA
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.io import cores
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, frequencies

BATCH = 1 << 20  # voxels transformed at once
VOXELS = 1 << 21  # to which volumes are padded at least
POINT = 0.8  # voxels: one voxel spread over its neighbours by binning has a radius of gyration of 0.75 at most


class Body(NamedTuple):
    """The mass of a map on voxels of about 2 Å: without noise, dust, and density below its threshold.

    Attributes:
        mass: mass of each voxel.
        size: voxel size, Å.
        origin: position of the first voxel's centre, Å.
        centre: centre of mass, Å.
        radius: radius of gyration, Å.
        width: standard deviation of the blur that removed noise, Å.
    """

    mass: Float[np.ndarray, "x y z"]
    size: Float[np.ndarray, "3"]
    origin: Float[np.ndarray, "3"]
    centre: Float[np.ndarray, "3"]
    radius: float
    width: float

    def points(self, spacing: float) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n"]]:
        """Sum the mass over blocks: their positions from the centre of mass [Å], and masses.

        Args:
            spacing: about the side of a block, Å.
        """
        x, mass, *_ = boxes.points_of_blocks(self.mass, self.origin, self.size, spacing)
        return x - self.centre, mass

    def blocks(self, factor: Int[np.ndarray, "3"]) -> Float[np.ndarray, "x y z"]:
        """Sum the mass over blocks of `factor` voxels along each axis."""
        padded = boxes.pad_to_blocks(self.mass, factor)
        shape = [m for n, f in zip(padded.shape, factor, strict=True) for m in (n // f, f)]
        return padded.reshape(shape).sum((1, 3, 5))

    @property
    def mirrored(self) -> "Body":
        """The mirror image in the plane x = 0 of the same frame."""
        flip = np.array([-1.0, 1, 1])
        first = self.origin + [(self.mass.shape[0] - 1) * self.size[0], 0, 0]
        return self._replace(mass=self.mass[::-1], origin=flip * first, centre=flip * self.centre)


def body(
    map_: Map,
    threshold: float | None = None,
    name: str = "map",
    rules: thresholds.ThresholdRules = thresholds.DEFAULT,
) -> Body:
    """Extract the mass of a map above its threshold.

    Without a threshold, the map without its noise decides where mass is, and the map itself how much: noise does not
    contribute to a correlation, but the blur that removes it removes detail too.

    Args:
        map_: the map.
        threshold: threshold; None for the rule of `prepare`.
        name: name of the map in messages.
        rules: of that choice.

    Raises:
        InputError: there is no mass, or only a point, which has no orientation.
    """
    factor = min(max(int(2.0 / map_.voxel_size.max()), 1), *map_.density.shape)
    density = map_.density if threshold is None else thresholds.apply_threshold(map_, threshold, name)[0]
    coarse = grid.binned(density, factor).astype(np.float32) / factor**3
    size, origin = factor * map_.voxel_size, map_.origin + 0.5 * (factor - 1) * map_.voxel_size
    width = 0.0
    if threshold is None:
        quiet, width = thresholds.denoise(Map(coarse, size, origin), rules)
        coarse = np.where(thresholds.apply_threshold(quiet, None, name, rules=rules)[0] > 0, np.maximum(coarse, 0), 0)
    x, mass, _ = grid.block_points(coarse, 1)
    x = origin + (x - 0.5) * size
    centre = mass @ x / mass.sum()
    radius = float(np.sqrt(mass @ ((x - centre) ** 2).sum(1) / mass.sum()))
    if not radius > POINT * np.linalg.norm(size) / np.sqrt(3):
        raise InputError(
            f"the density of the {name} above its threshold is hardly larger than a voxel and cannot be aligned: give "
            "a lower threshold, or check the map's contrast"
        )
    return Body(coarse, size, origin, centre, radius, float(width))


class Placement(NamedTuple):
    """A body rotated about its centre of mass, and how well it fits.

    Attributes:
        rotation: about the centre of mass.
        shift: of its centre of mass from that of the fixed body, Å.
        score: correlation with the fixed body.
    """

    rotation: Rotation
    shift: Float[np.ndarray, "3"]
    score: float

    @classmethod
    def of(cls, motion: Transform, fixed: Body, moving: Body) -> "Placement":
        """The pose to which a motion takes the moving body, not scored yet."""
        return cls(Rotation.from_matrix(motion.rotation), motion(moving.centre[None])[0] - fixed.centre, 0.0)

    def motion(self, fixed: Body, moving: Body) -> Transform:
        """The motion of the moving body from its place to this pose."""
        rotation = self.rotation.as_matrix()
        return Transform(rotation, fixed.centre + self.shift - rotation @ moving.centre)


@dataclass(frozen=True)
class Filtered:
    """The mass of a body under a filter K, which blurs it to a resolution.

    If `sharp`, K also subtracts the blur of twice the width, so that surfaces and domains count for more than the bulk,
    which overlaps in any pose.

    Attributes:
        body: the body, b.
        resolution: Å.
        sharp: whether K is a band-pass filter instead of a low-pass filter.
    """

    body: Body
    resolution: float
    sharp: bool

    @cached_property
    def spectrum(self) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
        """Fourier transform of the body's mass, padded.

        Voxels are a quarter of the resolution or less, each the sum of several; the effect of the sum on the transform
        is divided out.

        Returns:
            The transform, the voxel size [Å], the shape, and the position of the first voxel from the centre of mass
            [Å].
        """
        body = self.body
        factor = np.maximum(self.resolution / 4 / body.size, 1).astype(int)
        room = np.ceil(2 * self.resolution / (factor * body.size)).astype(int)
        size, volume = factor * body.size, body.blocks(factor)
        shape = [scipy.fft.next_fast_len(n + 2 * int(r), real=True) for n, r in zip(volume.shape, room, strict=True)]
        volume = np.pad(volume, [(r, n - r - m) for r, n, m in zip(room, shape, volume.shape, strict=True)])
        first = body.origin - body.centre + 0.5 * (factor - 1) * body.size - room * size
        spectrum = scipy.fft.rfftn(volume, workers=cores.usable())
        for f, step, count in zip(frequencies(shape, size), size, factor, strict=True):
            spectrum *= np.sinc(f * step / count) / np.sinc(f * step)
        return spectrum, size, shape, first

    def kernel(self, shape, size) -> np.ndarray:
        """Fourier transform of K on a grid, normalised so that K between points is in 1/Å³ on every grid."""
        s2 = sum(f**2 for f in frequencies(shape, size))
        variance = (SIGMA * self.resolution) ** 2
        band = (1 - np.exp(-2 * np.pi**2 * 4 * variance * s2)) ** 2 if self.sharp else 1.0
        return np.exp(-2 * np.pi**2 * 2 * variance * s2) * band / np.prod(np.broadcast_to(size, 3))

    @cached_property
    def energy(self) -> float:
        """⟨b, K b⟩."""
        spectrum, size, shape, _ = self.spectrum
        power = np.abs(spectrum) ** 2 * self.kernel(shape, size)
        twice = 2 * power.sum() - power[..., 0].sum()  # a real transform has half of the coefficients
        return float((twice - power[..., -1].sum() if shape[2] % 2 == 0 else twice) / np.prod(shape))

    def at(self, x: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        """K b at positions from the centre of mass, Å."""
        _, size, _, first = self.spectrum
        return ndimage.map_coordinates(self.volume(), ((x - first) / size).T, mode="constant")

    def volume(self) -> Float[np.ndarray, "x y z"]:
        """K b on the grid of the transform."""
        spectrum, size, shape, _ = self.spectrum
        return scipy.fft.irfftn(spectrum * self.kernel(shape, size), shape, workers=cores.usable())

    @cached_property
    def splines(self) -> Splines:
        """K b as splines, from the centre of mass."""
        _, size, shape, first = self.spectrum
        row = boxes.padded_row(ndimage.spline_filter(self.volume(), output=np.float32, mode="mirror"), VOXELS)
        first, size = first.astype(np.float32), size.astype(np.float32)
        return Splines(jax.device_put(row), np.asarray(shape, np.int32), first, size)


@dataclass(frozen=True)
class Overlap:
    """Correlation of a fixed and a moving body in any pose, at one resolution.

    ⟨a, K b⟩ / √(⟨a, K a⟩⟨b, K b⟩), where K is the filter of both. K a is stored as splines, which are evaluated at the
    points of b.

    Attributes:
        fixed: the filtered fixed body, a. Its transform and splines are computed once for all moving bodies.
        moving: the moving body, b.
        spacing: of the points of b, in units of the resolution.
    """

    fixed: Filtered
    moving: Body
    spacing: float = 1 / 3

    @cached_property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Points of the moving body, and their masses over the norm of the correlation.

        Points lose some of a body's extent, so that they fit it better than by 1; the norm corrects that.
        """
        x, mass = self.moving.points(self.spacing * self.fixed.resolution)
        filtered = replace(self.fixed, body=self.moving)
        return x, mass * np.sqrt(filtered.energy / self.fixed.energy) / (mass @ filtered.at(x))

    def scan_shifts(self, rotations: Rotation) -> list[Placement]:
        """Find the best shift for each rotation; poses, best first.

        The moving body's centre of mass stays within the box of the fixed body. One Fourier transform scores all
        shifts, on a periodic grid with so much room that the moving body meets no image of the fixed one.
        """
        step = self.fixed.resolution / 2.5
        x, mass = self.points
        y, fixed = self.fixed.body.points(step / 2)
        low, room = y.min(0), np.linalg.norm(x, axis=1).max()
        sides = np.ceil((y.max(0) - low) / step).astype(int) + 1  # of the box, in steps
        shape = [scipy.fft.next_fast_len(int(n) + 1, real=True) for n in sides + room / step]
        first = np.rint(low / step).astype(int)  # shift at the box's corner, in steps
        spectrum = scipy.fft.rfftn(splat_periodic((y - low)[None] / step, fixed, shape)[0])
        spectrum = (spectrum * self.fixed.kernel(shape, step)).astype(np.complex64)
        batch = max(BATCH // int(np.prod(shape)), 1)

        def shifted(start: int) -> list[Placement]:
            part = rotations[start : start + batch]
            at = (np.einsum("rij,pj->rpi", part.as_matrix(), x) + step * first - low) / step
            found = scipy.fft.rfftn(splat_periodic(at, mass, shape), axes=(1, 2, 3))
            found = scipy.fft.irfftn(found.conj() * spectrum, shape, axes=(1, 2, 3))
            found = found[:, : sides[0], : sides[1], : sides[2]].reshape(len(part), -1)
            shifts = step * (np.stack(np.unravel_index(found.argmax(1), sides), -1) + first)
            return [Placement(*pose) for pose in zip(part, shifts, found.max(1), strict=True)]

        with ThreadPoolExecutor(cores.usable()) as pool:
            poses = [pose for each in pool.map(shifted, range(0, len(rotations), batch)) for pose in each]
        return sorted(poses, key=lambda pose: -pose.score)

    def score(self, rotation: Rotation, shift) -> tuple[float, np.ndarray, np.ndarray]:
        """Correlation in a pose, and its gradients by a further rotation (a rotation vector) and by the shift."""
        bodies = placed([self], [Placement(rotation, shift, 0.0)])
        values, slopes = jax.device_get(correlations(bodies, self.fixed.splines))
        return float(values[0]), self.moving.radius * slopes[0, :3], slopes[0, 3:]


def maximise(
    overlaps: Sequence[Overlap], poses: Sequence[Placement], close: float, reach: float = np.inf
) -> list[Placement]:
    """Refine a pose of each of some moving bodies to the nearest maximum of its overlap with one fixed body.

    Args:
        overlaps: of the bodies, with one `fixed`.
        poses: where to start.
        close: gain of the score that is none.
        reach: Å by which a pose may change at most along each axis, and by turning.
    """
    if not overlaps:
        return []
    bodies, fixed = placed(overlaps, poses), overlaps[0].fixed
    rules = (np.float32(value) for value in (fixed.resolution, close, min(reach, LARGE)))
    found = jax.device_get(best_poses(bodies, fixed.splines, *rules))
    each = zip(*(array[: len(overlaps)].astype(float) for array in found), strict=True)
    return [Placement(Rotation.from_matrix(turn), shift, float(score)) for turn, shift, score in each]


def placed(overlaps: Sequence[Overlap], poses: Sequence[Placement]) -> Placed:
    """The points of the moving bodies in these poses."""
    bodies = Placed.empty(len(overlaps), max(len(overlap.points[1]) for overlap in overlaps))
    for number, (overlap, pose) in enumerate(zip(overlaps, poses, strict=True)):
        x, mass = overlap.points
        bodies.sizes[number] = len(mass)
        bodies.x[number, : len(mass)], bodies.mass[number, : len(mass)] = x, mass
        bodies.rotation[number], bodies.shift[number] = pose.rotation.as_matrix(), pose.shift
        bodies.radius[number] = overlap.moving.radius
    return bodies


def splat_periodic(x: Float[np.ndarray, "many n 3"], mass: Float[np.ndarray, "n"], shape) -> np.ndarray:
    """Splat points of mass trilinearly on a periodic grid.

    Args:
        x: positions of the points in each volume, voxels.
        mass: mass of each point.
        shape: number of voxels along each axis.

    Returns:
        Volumes of shape (many, x, y, z), float32.
    """
    low = np.floor(x)
    part, low = x - low, low.astype(np.int64)
    size, volume = int(np.prod(shape)), np.arange(len(x))[:, None]
    places, weights = [], []
    for corner in np.ndindex(2, 2, 2):
        at, weight = volume, mass
        for axis, side in enumerate(corner):
            at = at * shape[axis] + (low[..., axis] + side) % shape[axis]
            weight = weight * (part[..., axis] if side else 1 - part[..., axis])
        places.append(at)
        weights.append(weight)
    total = np.bincount(np.stack(places).ravel(), np.stack(weights).ravel(), len(x) * size)
    return total.reshape(len(x), *shape).astype(np.float32)
