"""Align two maps by a rigid-body motion, and resample one on the other's grid."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import gemmi
import numpy as np
import scipy.fft
from jaxtyping import Float, Int
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from cryotrans_jax.core import grid
from cryotrans_jax.density import thresholds
from cryotrans_jax.density.simulation import SIGMA
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, frequencies, same_grid

COARSE, FINE = 0.6, 0.25  # resolutions of the search and of its last refinement, in radii of gyration
FINEST = 6.0  # Å: resolved by most targets, and fine enough for a tenth of a degree
ROTATIONS = 2000  # 20° apart, within the reach of the refinement at the coarse resolution
BATCH = 1 << 20  # voxels transformed at once
KEPT = (24, 8, 2)  # candidates refined at each of three resolutions
CLOSE = (1e-4, 1e-5, 1e-8)  # gains in correlation below which each refinement ends
EQUAL = 0.9  # of the best correlation: a pose near the present one that fits so well is preferred to the best
NEAR = 0.5  # radii of gyration: rms distance of two poses that domain motions may leave ambiguous
GAIN, SHARE = 0.02, 1 / 3  # gain in overlap that justifies a small move, absolute or of what lacks to 1
LEAST = 0.002  # least gain in any case: less is rounding, and tenths of an angstrom
FALL = 0.05  # largest loss in overlap of a large move
MIRRORED = 1.2  # ratio of correlations at which the mirror image fits clearly better
POINT = 0.8  # voxels: one voxel spread over its neighbours by binning has a radius of gyration of 0.75 at most
NOWHERE = 0.1  # of the target's mass: with less of it in the initial map's box, the maps do not overlap


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


class Alignment(NamedTuple):
    """How a target was aligned with an initial map; None for values that were not computed.

    Attributes:
        transform: motion from the target's frame to the initial map's.
        status: how it was chosen, in words.
        moved: displacement of the target's centre of mass, Å.
        overlap_before: correlation at the first of `resolutions`, in the pose as given.
        overlap: the same in the pose of `transform`.
        correlation_before: sharp correlation (`Overlap`) at the second of `resolutions`, in the pose as given.
        correlation: the same in the pose of `transform`.
        resolutions: coarse and fine resolution of the two correlations, Å.
        best: the sharp correlation of the best pose of all.
        mirrored: the same for the target's mirror image; only where the hand was checked.
        inside: share of the target's mass in the initial map's box.
    """

    transform: Transform = IDENTITY
    status: str = "in its given pose"
    moved: float = 0.0
    overlap_before: float | None = None
    overlap: float | None = None
    correlation_before: float | None = None
    correlation: float | None = None
    resolutions: tuple[float, float] | None = None
    best: float | None = None
    mirrored: float | None = None
    inside: float | None = None

    @property
    def summary(self) -> str:
        """The status, and how far the target was moved."""
        if self.transform is IDENTITY:
            return self.status
        return f"{self.status}: rotated by {self.transform.angle:.1f}° and moved by {self.moved:.1f} Å"

    @property
    def wrong_hand(self) -> bool:
        """Whether the target's mirror image fits clearly better than the target."""
        return self.mirrored is not None and self.best is not None and self.mirrored > MIRRORED * self.best


def onto(
    initial: Map,
    target: Map,
    align: str = "auto",
    *,
    check_hand: bool = False,
    initial_threshold: float | None = None,
    target_threshold: float | None = None,
) -> tuple[Map, Alignment]:
    """Align the target with the initial map and resample it on the initial map's grid, ready for `morph`.

    A target that is on the grid already and is not moved is returned unchanged.

    Args:
        initial: the initial map.
        target: the target map.
        align: "auto" for the pose that `align_bodies` chooses, "none" for the target's own origin.
        check_hand: whether to fit the target's mirror image too.
        initial_threshold: threshold of the initial map; None for the rule of `prepare`.
        target_threshold: threshold of the target; None for the rule of `prepare`.

    Returns:
        The target on the initial map's grid, and the alignment.

    Raises:
        InputError: `align` is neither "auto" nor "none", hardly any of the target's mass comes to lie in the initial
            map's box, or a map shows nothing that could be aligned.
    """
    if align not in ("auto", "none"):
        raise InputError(f"there is no alignment {align!r}: choose auto or none")
    on_grid = same_grid(initial, target) is None
    if on_grid and align == "none" and not check_hand:
        return target, Alignment()
    moving, found = body(target, target_threshold, "target map"), Alignment()
    if align == "auto" or check_hand:
        chosen = align_bodies(body(initial, initial_threshold, "initial map"), moving, check_hand)
        keep = {name: getattr(chosen, name) for name in ("best", "mirrored", "resolutions")}
        found = chosen if align == "auto" else found._replace(**keep)
    inside = mass_inside(moving, initial, found.transform)
    found = found._replace(inside=inside)
    if inside < NOWHERE:
        raise InputError(
            f"only {100 * inside:.0f} % of the target map's mass lies in the initial map's box: align the maps "
            "(--align=auto), or correct the origin and voxel size of both"
        )
    return resampled(target, initial, found.transform), found


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
    spectrum = scipy.fft.rfftn(map_.density, shape, workers=os.cpu_count())
    f = frequencies(shape, map_.voxel_size)
    for axis, width in zip(axes.T, widths, strict=True):
        along = sum(a * g for a, g in zip(axis, f, strict=True))
        spectrum *= np.exp(-2 * (np.pi * width * along) ** 2).astype(np.float32)
    blurred = scipy.fft.irfftn(spectrum, shape, workers=os.cpu_count())
    return blurred[tuple(slice(0, n) for n in map_.density.shape)]


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
        x, mass, *_ = grid.points_of_blocks(self.mass, self.origin, self.size, spacing)
        return x - self.centre, mass

    def blocks(self, factor: Int[np.ndarray, "3"]) -> Float[np.ndarray, "x y z"]:
        """Sum the mass over blocks of `factor` voxels along each axis."""
        padded = grid.pad_to_blocks(self.mass, factor)
        shape = [m for n, f in zip(padded.shape, factor, strict=True) for m in (n // f, f)]
        return padded.reshape(shape).sum((1, 3, 5))

    @property
    def mirrored(self) -> "Body":
        """The mirror image in the plane x = 0 of the same frame."""
        flip = np.array([-1.0, 1, 1])
        first = self.origin + [(self.mass.shape[0] - 1) * self.size[0], 0, 0]
        return self._replace(mass=self.mass[::-1], origin=flip * first, centre=flip * self.centre)


def body(map_: Map, threshold: float | None = None, name: str = "map") -> Body:
    """Extract the mass of a map above its threshold.

    Without a threshold, the map without its noise decides where mass is, and the map itself how much: noise does not
    contribute to a correlation, but the blur that removes it removes detail too.

    Args:
        map_: the map.
        threshold: threshold; None for the rule of `prepare`.
        name: name of the map in messages.

    Raises:
        InputError: there is no mass, or only a point, which has no orientation.
    """
    factor = min(max(int(2.0 / map_.voxel_size.max()), 1), *map_.density.shape)
    density = map_.density if threshold is None else thresholds.apply_threshold(map_, threshold, name)[0]
    coarse = grid.binned(density, factor).astype(np.float32) / factor**3
    size, origin = factor * map_.voxel_size, map_.origin + 0.5 * (factor - 1) * map_.voxel_size
    width = 0.0
    if threshold is None:
        quiet, width = thresholds.denoise(Map(coarse, size, origin))
        coarse = np.where(thresholds.apply_threshold(quiet, None, name)[0] > 0, np.maximum(coarse, 0), 0)
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


def mass_inside(moving: Body, like: Map, transform: Transform) -> float:
    """Share of a body's mass that the transform moves into the box of `like`."""
    x, mass = moving.points(0.0)
    at = (transform(x + moving.centre) - like.origin) / like.voxel_size
    inside = ((at > -0.5) & (at < np.array(like.density.shape) - 0.5)).all(1)
    return float(mass[inside].sum() / mass.sum())


class Pose(NamedTuple):
    """A body rotated about its centre of mass, and how well it fits.

    Attributes:
        rotation: about the centre of mass.
        shift: of its centre of mass from that of the fixed body, Å.
        score: correlation with the fixed body.
    """

    rotation: Rotation
    shift: Float[np.ndarray, "3"]
    score: float


@dataclass(frozen=True)
class Overlap:
    """Correlation of a fixed and a moving body in any pose, at one resolution.

    ⟨a, K b⟩ / √(⟨a, K a⟩⟨b, K b⟩), where K blurs both bodies to the resolution. If `sharp`, K also subtracts from each
    its blur of twice the width, so that surfaces and domains count for more than the bulk, which overlaps in any pose.
    K a is stored as splines, which are evaluated at the points of b.

    Attributes:
        fixed: the fixed body, a.
        moving: the moving body, b.
        resolution: Å.
        sharp: whether K is a band-pass filter instead of a low-pass filter.
    """

    fixed: Body
    moving: Body
    resolution: float
    sharp: bool

    @cached_property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Points of the moving body, and their masses over the norm of the correlation.

        Points lose some of a body's extent, so that they fit it better than by 1; the norm corrects that.
        """
        x, mass = self.moving.points(self.resolution / 3)
        spectrum, size, shape, first = self.spectrum(self.moving)
        blurred = scipy.fft.irfftn(spectrum * self.kernel(shape, size), shape, workers=os.cpu_count())
        own = mass @ ndimage.map_coordinates(blurred, ((x - first) / size).T, mode="constant")
        return x, mass * np.sqrt(self.energy(self.moving) / self.energy(self.fixed)) / own

    def energy(self, body: Body) -> float:
        """⟨b, K b⟩."""
        spectrum, size, shape, _ = self.spectrum(body)
        power = np.abs(spectrum) ** 2 * self.kernel(shape, size)
        twice = 2 * power.sum() - power[..., 0].sum()  # a real transform has half of the coefficients
        return float((twice - power[..., -1].sum() if shape[2] % 2 == 0 else twice) / np.prod(shape))

    def spectrum(self, body: Body) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
        """Fourier transform of a body's mass, padded.

        Voxels are a quarter of the resolution or less, each the sum of several; the effect of the sum on the transform
        is divided out.

        Returns:
            The transform, the voxel size [Å], the shape, and the position of the first voxel from the centre of mass
            [Å].
        """
        factor = np.maximum(self.resolution / 4 / body.size, 1).astype(int)
        room = np.ceil(2 * self.resolution / (factor * body.size)).astype(int)
        size, volume = factor * body.size, body.blocks(factor)
        shape = [scipy.fft.next_fast_len(n + 2 * int(r), real=True) for n, r in zip(volume.shape, room, strict=True)]
        volume = np.pad(volume, [(r, n - r - m) for r, n, m in zip(room, shape, volume.shape, strict=True)])
        first = body.origin - body.centre + 0.5 * (factor - 1) * body.size - room * size
        spectrum = scipy.fft.rfftn(volume, workers=os.cpu_count())
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
    def splines(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Cubic spline coefficients of K a and its derivatives [1/Å]; voxel size and first position [Å]."""
        spectrum, size, shape, first = self.spectrum(self.fixed)
        spectrum = spectrum * self.kernel(shape, size)
        factors = (1.0, *(2j * np.pi * f for f in frequencies(shape, size)))
        volumes = (scipy.fft.irfftn(spectrum * f, shape, workers=os.cpu_count()) for f in factors)
        return [ndimage.spline_filter(v, output=np.float32, mode="mirror") for v in volumes], size, first

    def scan_shifts(self, rotations: Rotation) -> list[Pose]:
        """Find the best shift for each rotation; poses, best first.

        One Fourier transform scores all shifts, on a periodic grid with room for the moving body on every side.
        """
        step = self.resolution / 2.5
        x, mass = self.points
        y, fixed = self.fixed.points(step / 2)
        room = np.linalg.norm(x, axis=1).max()
        low = y.min(0) - room
        shape = [scipy.fft.next_fast_len(int(n) + 2, real=True) for n in (y.max(0) + room - low) / step]
        spectrum = scipy.fft.rfftn(splat_periodic((y - low)[None] / step, fixed, shape)[0]) * self.kernel(shape, step)
        spectrum = spectrum.astype(np.complex64)
        batch = max(BATCH // int(np.prod(shape)), 1)

        def shifted(start: int) -> list[Pose]:
            part = rotations[start : start + batch]
            at = (np.einsum("rij,pj->rpi", part.as_matrix(), x) - low) / step
            found = scipy.fft.rfftn(splat_periodic(at, mass, shape), axes=(1, 2, 3))
            found = scipy.fft.irfftn(found.conj() * spectrum, shape, axes=(1, 2, 3)).reshape(len(part), -1)
            shifts = np.stack(np.unravel_index(found.argmax(1), shape), -1)
            shifts = step * np.where(shifts > np.array(shape) // 2, shifts - np.array(shape), shifts)
            return [Pose(*pose) for pose in zip(part, shifts, found.max(1), strict=True)]

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            poses = [pose for each in pool.map(shifted, range(0, len(rotations), batch)) for pose in each]
        return sorted(poses, key=lambda pose: -pose.score)

    def score(self, rotation: Rotation, shift) -> tuple[float, np.ndarray, np.ndarray]:
        """Correlation in a pose, and its gradients by a further rotation (a rotation vector) and by the shift."""
        x, mass = self.points
        splines, size, first = self.splines
        y = rotation.apply(x)
        at = ((y + shift - first) / size).T
        value, *slopes = (ndimage.map_coordinates(c, at, prefilter=False, mode="constant") for c in splines)
        pull = np.stack(slopes, -1) * mass[:, None]
        return float(value @ mass), np.cross(y, pull).sum(0), pull.sum(0)

    def maximise(self, pose: Pose, close: float) -> Pose:
        """Refine a pose to the nearest maximum by quasi-Newton steps (L-BFGS) in Å, until the gain is below `close`."""
        scale = self.moving.radius

        def down(q):
            turn = Rotation.from_rotvec(q[:3] / scale)
            value, by_turn, by_shift = self.score(turn * pose.rotation, q[3:])
            return -value, -np.concatenate([left_jacobian(q[:3] / scale).T @ by_turn / scale, by_shift])

        start = np.concatenate([np.zeros(3), pose.shift])
        end = optimize.minimize(down, start, jac=True, method="L-BFGS-B", options={"maxiter": 50, "ftol": close})
        return Pose(Rotation.from_rotvec(end.x[:3] / scale) * pose.rotation, end.x[3:], float(-end.fun))


def left_jacobian(turn: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Derivative of the rotation that follows exp(turn), by `turn`: Σ [turn]^k / (k + 1)!."""
    cross = np.cross(np.eye(3), turn)  # cross @ v = turn x v
    result = term = np.eye(3)
    for k in range(2, 12):  # converged for the small turns of a refinement
        term = term @ cross / k
        result = result + term
    return result


def align_bodies(fixed: Body, moving: Body, check_hand: bool = False) -> Alignment:
    """Align the moving body with the fixed one, or find that it is aligned already.

    Of the best pose anywhere and the best pose near the present one, the latter is chosen if its sharp correlation is
    at least EQUAL of the best. If the chosen pose is far from the present one (more than NEAR radii of gyration, rms),
    the body is moved unless the overlap at the coarse resolution falls by FALL. If it is near, the body is moved only
    if the overlap rises by GAIN, or by SHARE of what it lacks to 1: two states of one molecule have no unique
    alignment, so the given one is preferred.

    Args:
        fixed: body of the initial map.
        moving: body of the target.
        check_hand: whether to fit the target's mirror image too.
    """
    levels = resolutions(fixed, moving)
    overlaps = [Overlap(fixed, moving, level, sharp=True) for level in levels]
    present = Pose(Rotation.identity(), moving.centre - fixed.centre, 0.0)
    before = overlaps[-1].score(*present[:2])[0]
    chosen = near = refine(overlaps, [present])[0]
    best = mirrored = None
    if near.score < EQUAL or check_hand:  # otherwise no pose can be that much better
        found = search(overlaps)
        chosen = near if near.score >= EQUAL * found.score else found
        best = max(found.score, near.score)
        image = [Overlap(fixed, moving.mirrored, level, sharp=True) for level in levels]
        mirrored = search(image).score if check_hand else None
    coarse = Overlap(fixed, moving, levels[0], sharp=False)
    old, new = (coarse.score(*pose[:2])[0] for pose in (present, chosen))
    far = pose_distances(moving, chosen, present)[0] > NEAR * min(fixed.radius, moving.radius)
    moves = new - old > (-FALL if far else max(min(GAIN, SHARE * (1 - old)), LEAST))
    rotation = chosen.rotation.as_matrix()
    shift = fixed.centre + chosen.shift - rotation @ moving.centre
    return Alignment(
        transform=Transform(rotation, shift) if moves else IDENTITY,
        status="aligned" if moves else "already aligned",
        moved=float(np.linalg.norm(fixed.centre + chosen.shift - moving.centre)) if moves else 0.0,
        overlap_before=old,
        overlap=new if moves else old,
        correlation_before=before,
        correlation=chosen.score if moves else before,
        resolutions=(levels[0], levels[-1]),
        best=best,
        mirrored=mirrored,
    )


def resolutions(fixed: Body, moving: Body) -> tuple[float, float, float]:
    """Resolutions [Å] of the search, the refinement and the last refinement.

    They scale with the size of the smaller body, so that one set of rotations serves all, but are no finer than voxels
    and noise allow.
    """
    radius = min(fixed.radius, moving.radius)
    floor = max(FINEST, *(2.5 * b.size.max() for b in (fixed, moving)), *(b.width for b in (fixed, moving)))
    fine = float(max(FINE * radius, floor))
    coarse = float(max(COARSE * radius, 1.3 * fine))
    return coarse, float(np.sqrt(coarse * fine)), fine


def search(overlaps: Sequence[Overlap]) -> Pose:
    """Find the best pose: score all shifts of evenly spread rotations, and refine the most promising poses."""
    return refine(overlaps, overlaps[0].scan_shifts(even_rotations(ROTATIONS)))[0]


def refine(overlaps: Sequence[Overlap], poses: list[Pose]) -> list[Pose]:
    """Refine poses at one resolution after the other, fewer each time; best first."""
    for overlap, kept, close in zip(overlaps, KEPT, CLOSE, strict=True):
        overlap.points, overlap.splines  # noqa: B018  cached here once, before threads use them
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            poses = list(pool.map(partial(overlap.maximise, close=close), poses[:kept]))
        poses = drop_duplicates(sorted(poses, key=lambda pose: -pose.score), overlap.moving)
    return poses


def drop_duplicates(poses: list[Pose], moving: Body) -> list[Pose]:
    """Drop poses within a tenth of the body's radius of a better one."""
    kept: list[Pose] = []
    for pose in poses:
        if not kept or pose_distances(moving, pose, *kept).min() > 0.1 * moving.radius:
            kept.append(pose)
    return kept


def pose_distances(moving: Body, pose: Pose, *others: Pose) -> np.ndarray:
    """Rms distance [Å] of the moving body's points between one pose and each of others.

    The body is approximated by a ball of its radius of gyration: the mean of |R x - x|² is 2/3 of its square (3 - tr
    R).
    """
    turns = np.stack([(pose.rotation.inv() * other.rotation).as_matrix() for other in others])
    shifts = np.stack([pose.shift - other.shift for other in others])
    turned = 2 / 3 * moving.radius**2 * (3 - np.trace(turns, axis1=1, axis2=2))
    return np.sqrt(turned + (shifts**2).sum(1))


def splat_periodic(x: Float[np.ndarray, "many n 3"], mass: Float[np.ndarray, "n"], shape) -> np.ndarray:
    """Splat points of mass trilinearly on a periodic grid.

    Args:
        x: positions of the points in each volume, voxels.
        mass: mass of each point.
        shape: number of voxels along each axis.

    Returns:
        Volumes of shape (many, x, y, z), float32.
    """
    low = np.floor(x).astype(np.int64)
    part = x - low
    size = int(np.prod(shape))
    base = size * np.arange(len(x))[:, None]
    total = np.zeros(len(x) * size)
    for corner in np.ndindex(2, 2, 2):
        i, j, k = np.moveaxis((low + corner) % np.array(shape), -1, 0)
        weight = mass * np.prod(np.where(corner, part, 1 - part), -1)
        total += np.bincount((base + (i * shape[1] + j) * shape[2] + k).ravel(), weight.ravel(), len(total))
    return total.reshape(len(x), *shape).astype(np.float32)


def even_rotations(count: int) -> Rotation:
    """Evenly spread rotations: a super-Fibonacci spiral (Alexa, CVPR 2022)."""
    s = np.arange(count) + 0.5
    turn, r = 2 * np.pi * s, np.sqrt(s / count)
    a, b = turn / np.sqrt(2), turn / 1.533751168755204288118041  # the positive root of x⁴ = x + 4
    q = np.sqrt(1 - s / count)
    return Rotation.from_quat(np.stack([r * np.sin(a), r * np.cos(a), q * np.sin(b), q * np.cos(b)], -1))
