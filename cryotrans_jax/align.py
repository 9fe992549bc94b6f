"""Any two maps: the rigid motion that lays one over the other, and the one on the other's grid."""

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

from cryotrans_jax import prepare
from cryotrans_jax.files import InputError
from cryotrans_jax.maps import Map, frequencies, same_grid

SIGMA = 0.225  # width of the Gaussian for each Å of resolution, as in `atoms.simulate_map`
COARSE, FINE = 0.6, 0.25  # resolutions of the search and of its last refinement, in radii of gyration
FINEST = 6.0  # Å: what most targets resolve, and fine enough for a tenth of a degree
ROTATIONS = 2000  # 20° apart, within the reach of the refinement at the coarse resolution
BATCH = 1 << 20  # voxels transformed at once
KEPT = (24, 8, 2)  # candidates refined at each of three resolutions
CLOSE = (1e-4, 1e-5, 1e-8)  # gains in correlation below which that ends
EQUAL = 0.9  # of the best correlation: a pose near the present one that fits so well is taken before the best
NEAR = 0.5  # radii of gyration between two poses (rms) that domain motions may leave open
GAIN, SHARE = 0.02, 1 / 3  # what a small change of pose must gain in overlap, or of what lacks to an overlap of 1
LEAST = 0.002  # what it must gain in any case: less is rounding, and tenths of an angstrom
FALL = 0.05  # what a large one may lose
MIRRORED = 1.2  # times the correlation of the map as it is: its mirror image fits clearly better
POINT = 0.8  # voxels: one voxel spread over its neighbours by binning has a radius of gyration of 0.75 at most
NOWHERE = 0.1  # of the target's mass: with less of it in the initial map's box, the two have nothing in common


@dataclass(frozen=True)
class Transform:
    """The rigid motion x -> rotation x + shift, in Å."""

    rotation: Float[np.ndarray, "3 3"]
    shift: Float[np.ndarray, "3"]

    def __call__(self, xyz: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """The positions moved, Å."""
        return xyz @ self.rotation.T + self.shift

    @classmethod
    def of(cls, matrix: Sequence[Sequence[float]] | Float[np.ndarray, "4 4"]) -> "Transform":
        """The motion whose `matrix` that is; IDENTITY itself where it moves nothing."""
        matrix = np.asarray(matrix, float)
        return IDENTITY if np.array_equal(matrix, np.eye(4)) else cls(matrix[:3, :3], matrix[:3, 3])

    @property
    def inverse(self) -> "Transform":
        """The motion that undoes this one."""
        return Transform(self.rotation.T, -self.rotation.T @ self.shift)

    @property
    def matrix(self) -> Float[np.ndarray, "4 4"]:
        """The motion of columns (x, y, z, 1)."""
        return np.block([[self.rotation, self.shift[:, None]], [np.zeros(3), 1.0]])

    @property
    def angle(self) -> float:
        """The angle by which it turns, degrees."""
        return float(np.degrees(Rotation.from_matrix(self.rotation).magnitude()))

    def chimerax(self, model: int) -> str:
        """The command that moves the model of that number so in ChimeraX."""
        return f"view matrix models #{model}," + ",".join(f"{value:.6f}" for value in self.matrix[:3].ravel())

    def moved(self, model: gemmi.Structure) -> gemmi.Structure:
        """A copy of the model, moved with its anisotropic displacements."""
        copy = model.clone()
        motion = gemmi.Transform(gemmi.Mat33(self.rotation.tolist()), gemmi.Vec3(*self.shift))
        copy[0].transform_pos_and_adp(motion)
        return copy


IDENTITY = Transform(np.eye(3), np.zeros(3))


class Alignment(NamedTuple):
    """How a target was laid over an initial map.

    `transform` takes the target's frame to the initial map's, and its centre of mass by `moved` Å; `status` says in
    words how it was chosen. `overlap` is the correlation at the first of the `resolutions` [Å], in the pose `before`
    and in that of the transform; `correlation` the sharp one at the second, and `best` that of the best pose of all.
    With a check of the hand, `mirrored` is the same for the target's mirror image. `inside` is the share of the
    target's mass in the initial map's box. None is what was not looked for.
    """

    transform: Transform = IDENTITY
    status: str = "taken as it lies"
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
    def described(self) -> str:
        """The status, and by how much the target was moved if it was."""
        if self.transform is IDENTITY:
            return self.status
        return f"{self.status}: turned by {self.transform.angle:.1f}° and moved by {self.moved:.1f} Å"

    @property
    def wrong_hand(self) -> bool:
        """The mirror image of the target fits clearly better than the target."""
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
    """The target on the initial map's grid, ready for `morph`, and how it got there.

    With `align` "auto" in the pose that `aligned` chooses, with "none" where its own origin puts it. A target that is
    on the grid already, and is not moved, is given back as it is. Thresholds are contour levels, by rule where None.

    Raises InputError where hardly any of the target's mass comes to lie in the initial map's box.
    """
    if align not in ("auto", "none"):
        raise InputError(f"there is no alignment {align!r}: choose auto or none")
    there = same_grid(initial, target) is None
    if there and align == "none" and not check_hand:
        return target, Alignment()
    moving, found = body(target, target_threshold, "target map"), Alignment()
    if align == "auto" or check_hand:
        chosen = aligned(body(initial, initial_threshold, "initial map"), moving, check_hand)
        keep = {name: getattr(chosen, name) for name in ("best", "mirrored", "resolutions")}
        found = chosen if align == "auto" else found._replace(**keep)
    inside = share_inside(moving, initial, found.transform)
    found = found._replace(inside=inside)
    if inside < NOWHERE:
        raise InputError(
            f"only {100 * inside:.0f} % of the target map's mass lies in the initial map's box: align the maps "
            "(--align=auto), or see that both have the right origin and voxel size"
        )
    return resampled(target, initial, found.transform), found


def resampled(map_: Map, like: Map, transform: Transform = IDENTITY) -> Map:
    """The map, moved, on the grid of `like`: cubic splines, zero outside of the box that it comes from.

    A map that is not moved, and is on that grid already, is given back as it is.
    Before it goes to coarser voxels it is blurred by a Gaussian of half a voxel (of the variance that is missing), so
    that detail beyond the new Nyquist frequency does not come back as noise.
    """
    if transform is IDENTITY and same_grid(like, map_) is None:
        return map_
    turn = transform.rotation
    density, scale = without_aliases(map_, like, turn), 1 / map_.voxel_size
    matrix = scale[:, None] * turn.T * like.voxel_size
    offset = scale * (transform.inverse(like.origin[None])[0] - map_.origin)
    matrix, offset = (np.where(abs(v - np.rint(v)) < 1e-9, np.rint(v), v) for v in (matrix, offset))
    moved = ndimage.affine_transform(
        density, matrix, offset, like.density.shape, np.float32, order=3, mode="grid-constant"
    )
    return Map(moved, like.voxel_size, like.origin)


def without_aliases(map_: Map, like: Map, turn: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "x y z"]:
    """The map's density blurred for the voxels of `like`, whose axes the rotation `turn` takes the map to."""
    variance = turn.T @ np.diag(like.voxel_size**2) @ turn - np.diag(map_.voxel_size**2)
    values, axes = np.linalg.eigh(0.25 * variance)
    if values.max() < 1e-3 * map_.voxel_size.min() ** 2:
        return map_.density
    widths = np.sqrt(np.maximum(values, 0))
    room = np.ceil(4 * widths.max() / map_.voxel_size).astype(int)  # so that nothing comes in from the other side
    shape = [scipy.fft.next_fast_len(n + int(r), real=True) for n, r in zip(map_.density.shape, room, strict=True)]
    spectrum = scipy.fft.rfftn(map_.density, shape, workers=os.cpu_count())
    f = frequencies(shape, map_.voxel_size)
    for axis, width in zip(axes.T, widths, strict=True):
        along = sum(a * g for a, g in zip(axis, f, strict=True))
        spectrum *= np.exp(-2 * (np.pi * width * along) ** 2).astype(np.float32)
    blurred = scipy.fft.irfftn(spectrum, shape, workers=os.cpu_count())
    return blurred[tuple(slice(0, n) for n in map_.density.shape)]


class Body(NamedTuple):
    """The mass of a map on voxels of about 2 Å: without noise, specks, and what is below its contour level.

    `centre` of mass, `radius` of gyration and voxel `size` in Å; `origin` is the first voxel's centre. `width` is
    that of the blur [Å] that took out noise.
    """

    mass: Float[np.ndarray, "x y z"]
    size: Float[np.ndarray, "3"]
    origin: Float[np.ndarray, "3"]
    centre: Float[np.ndarray, "3"]
    radius: float
    width: float

    def points(self, spacing: float) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n"]]:
        """The mass in blocks of about `spacing` Å as points: positions from the centre of mass, Å, and masses."""
        factor = np.maximum(np.rint(spacing / self.size), 1).astype(int)
        x, mass, _ = prepare.block_points(self.whole(factor), factor)
        return self.origin + (x - 0.5) * self.size - self.centre, mass

    def blocks(self, factor: Int[np.ndarray, "3"]) -> Float[np.ndarray, "x y z"]:
        """The sums of the mass in blocks of so many voxels."""
        whole = self.whole(factor)
        shape = [m for n, f in zip(whole.shape, factor, strict=True) for m in (n // f, f)]
        return whole.reshape(shape).sum((1, 3, 5))

    def whole(self, factor: Int[np.ndarray, "3"]) -> Float[np.ndarray, "x y z"]:
        """The mass with empty voxels added at the far ends, so that they make whole blocks."""
        return np.pad(self.mass, [(0, -n % f) for n, f in zip(self.mass.shape, factor, strict=True)])

    @property
    def mirrored(self) -> "Body":
        """The mirror image in the plane x = 0 of the same frame."""
        flip = np.array([-1.0, 1, 1])
        first = self.origin + [(self.mass.shape[0] - 1) * self.size[0], 0, 0]
        return self._replace(mass=self.mass[::-1], origin=flip * first, centre=flip * self.centre)


def body(map_: Map, level: float | None = None, name: str = "map") -> Body:
    """The mass of a map above a contour level, by rule where it is None.

    Raises InputError where there is none, or only a point that has no orientation.

    By rule, where mass is is judged from the map without its noise, and how much from the map itself: noise has no part
    in a correlation, but the blur that takes it out takes detail as well.
    """
    factor = min(max(int(2.0 / map_.voxel_size.max()), 1), *map_.density.shape)
    density = map_.density if level is None else prepare.apply_threshold(map_, level, name)[0]
    coarse = prepare.binned(density, factor).astype(np.float32) / factor**3
    size, origin = factor * map_.voxel_size, map_.origin + 0.5 * (factor - 1) * map_.voxel_size
    width = 0.0
    if level is None:
        quiet, width = prepare.denoise(Map(coarse, size, origin))
        coarse = np.where(prepare.apply_threshold(quiet, None, name)[0] > 0, np.maximum(coarse, 0), 0)
    x, mass, _ = prepare.block_points(coarse, 1)
    x = origin + (x - 0.5) * size
    centre = mass @ x / mass.sum()
    radius = float(np.sqrt(mass @ ((x - centre) ** 2).sum(1) / mass.sum()))
    if not radius > POINT * np.linalg.norm(size) / np.sqrt(3):
        raise InputError(
            f"what the {name} shows above its threshold is hardly larger than a voxel and cannot be aligned: give a "
            "lower threshold, or see that the map's contrast is right"
        )
    return Body(coarse, size, origin, centre, radius, float(width))


def share_inside(moving: Body, like: Map, transform: Transform) -> float:
    """The share of a body's mass that the transform brings into the box of `like`."""
    x, mass = moving.points(0.0)
    at = (transform(x + moving.centre) - like.origin) / like.voxel_size
    inside = ((at > -0.5) & (at < np.array(like.density.shape) - 0.5)).all(1)
    return float(mass[inside].sum() / mass.sum())


class Pose(NamedTuple):
    """A body turned about its centre of mass, the shift [Å] of that from the other one's, and how well it fits."""

    rotation: Rotation
    shift: Float[np.ndarray, "3"]
    score: float


@dataclass(frozen=True)
class Overlap:
    """The correlation of a fixed body and a moving one in any pose, both at one resolution [Å].

    ⟨a, K b⟩ / √(⟨a, K a⟩⟨b, K b⟩) where K blurs both to the resolution and, if `sharp`, also takes from each what a
    blur of twice the width leaves of it: surfaces and domains then count for more than the bulk, of which any pose
    finds much. K a is kept as splines, in which the points of b are looked up.
    """

    fixed: Body
    moving: Body
    resolution: float
    sharp: bool

    @cached_property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """The moving body's points and their masses, over the norm of the correlation.

        As some of a body's extent is lost in its points, they fit it better than by 1: that is in the norm.
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
        twice = 2 * power.sum() - power[..., 0].sum()  # a real transform has half of the frequencies
        return float((twice - power[..., -1].sum() if shape[2] % 2 == 0 else twice) / np.prod(shape))

    def spectrum(self, body: Body) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
        """The transform of a body's mass with room about it: (itself, voxel size, shape, the first voxel's place, Å).

        On voxels of a quarter of the resolution or less, each the sum of several; what the sum does to the transform
        is undone. Places are from the centre of mass.
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
        """The transform of K on a grid, so that its values between points are in 1/Å³ on every grid."""
        s2 = sum(f**2 for f in frequencies(shape, size))
        variance = (SIGMA * self.resolution) ** 2
        band = (1 - np.exp(-2 * np.pi**2 * 4 * variance * s2)) ** 2 if self.sharp else 1.0
        return np.exp(-2 * np.pi**2 * 2 * variance * s2) * band / np.prod(np.broadcast_to(size, 3))

    @cached_property
    def splines(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Coefficients of cubic splines of K a and of its three derivatives [1/Å]; their voxel size and first place."""
        spectrum, size, shape, first = self.spectrum(self.fixed)
        spectrum = spectrum * self.kernel(shape, size)
        factors = (1.0, *(2j * np.pi * f for f in frequencies(shape, size)))
        volumes = (scipy.fft.irfftn(spectrum * f, shape, workers=os.cpu_count()) for f in factors)
        return [ndimage.spline_filter(v, output=np.float32, mode="mirror") for v in volumes], size, first

    def everywhere(self, rotations: Rotation) -> list[Pose]:
        """For each rotation the pose with the best of all shifts, best first.

        All shifts together are a Fourier transform, on a periodic grid with room for the moving body on every side.
        """
        step = self.resolution / 2.5
        x, mass = self.points
        y, fixed = self.fixed.points(step / 2)
        room = np.linalg.norm(x, axis=1).max()
        low = y.min(0) - room
        shape = [scipy.fft.next_fast_len(int(n) + 2, real=True) for n in (y.max(0) + room - low) / step]
        spectrum = scipy.fft.rfftn(splatted((y - low)[None] / step, fixed, shape)[0]) * self.kernel(shape, step)
        spectrum = spectrum.astype(np.complex64)
        batch = max(BATCH // int(np.prod(shape)), 1)

        def shifted(start: int) -> list[Pose]:
            part = rotations[start : start + batch]
            at = (np.einsum("rij,pj->rpi", part.as_matrix(), x) - low) / step
            found = scipy.fft.rfftn(splatted(at, mass, shape), axes=(1, 2, 3))
            found = scipy.fft.irfftn(found.conj() * spectrum, shape, axes=(1, 2, 3)).reshape(len(part), -1)
            shifts = np.stack(np.unravel_index(found.argmax(1), shape), -1)
            shifts = step * np.where(shifts > np.array(shape) // 2, shifts - np.array(shape), shifts)
            return [Pose(*pose) for pose in zip(part, shifts, found.max(1), strict=True)]

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            poses = [pose for each in pool.map(shifted, range(0, len(rotations), batch)) for pose in each]
        return sorted(poses, key=lambda pose: -pose.score)

    def score(self, rotation: Rotation, shift) -> tuple[float, np.ndarray, np.ndarray]:
        """The correlation in a pose, and its gradients by a turn (a rotation vector) after it, and by the shift."""
        x, mass = self.points
        splines, size, first = self.splines
        y = rotation.apply(x)
        at = ((y + shift - first) / size).T
        value, *slopes = (ndimage.map_coordinates(c, at, prefilter=False, mode="constant") for c in splines)
        pull = np.stack(slopes, -1) * mass[:, None]
        return float(value @ mass), np.cross(y, pull).sum(0), pull.sum(0)

    def climb(self, pose: Pose, close: float) -> Pose:
        """The nearest best pose, by quasi-Newton steps (BFGS) in Å, until one gains less than `close`."""
        scale = self.moving.radius

        def down(q):
            turn = Rotation.from_rotvec(q[:3] / scale)
            value, by_turn, by_shift = self.score(turn * pose.rotation, q[3:])
            return -value, -np.concatenate([left_jacobian(q[:3] / scale).T @ by_turn / scale, by_shift])

        start = np.concatenate([np.zeros(3), pose.shift])
        end = optimize.minimize(down, start, jac=True, method="L-BFGS-B", options={"maxiter": 50, "ftol": close})
        return Pose(Rotation.from_rotvec(end.x[:3] / scale) * pose.rotation, end.x[3:], float(-end.fun))


def left_jacobian(turn: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The derivative of the rotation by which exp(turn) is followed, by `turn`: Σ [turn]^k / (k + 1)!."""
    cross = np.cross(np.eye(3), turn)  # cross @ v = turn x v
    result = term = np.eye(3)
    for k in range(2, 12):  # converged for the small turns of a refinement
        term = term @ cross / k
        result = result + term
    return result


def aligned(fixed: Body, moving: Body, check_hand: bool = False) -> Alignment:
    """How the moving body is best laid over the fixed one, or that it lies well already.

    Of the best pose anywhere and the best near the present one, the latter is chosen if its sharp correlation is EQUAL
    of the best. If that is far from the present pose (more than NEAR radii of gyration, rms), the body is moved unless
    the overlap at the coarse resolution falls by FALL; if it is near, only if the overlap rises by GAIN, or by SHARE of
    what it lacks to 1: states of one molecule have no one right pose, and that in which they come may be preferred.
    """
    levels = resolutions(fixed, moving)
    overlaps = [Overlap(fixed, moving, level, sharp=True) for level in levels]
    present = Pose(Rotation.identity(), moving.centre - fixed.centre, 0.0)
    before = overlaps[-1].score(*present[:2])[0]
    chosen = near = refined(overlaps, [present])[0]
    best = mirrored = None
    if near.score < EQUAL or check_hand:  # else none can be so much better
        found = search(overlaps)
        chosen = near if near.score >= EQUAL * found.score else found
        best = max(found.score, near.score)
        image = [Overlap(fixed, moving.mirrored, level, sharp=True) for level in levels]
        mirrored = search(image).score if check_hand else None
    coarse = Overlap(fixed, moving, levels[0], sharp=False)
    old, new = (coarse.score(*pose[:2])[0] for pose in (present, chosen))
    far = apart(moving, chosen, present)[0] > NEAR * min(fixed.radius, moving.radius)
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
    """The resolutions [Å] of the search, of refinement, and of the last refinement.

    They go with the size of the smaller body, so that one set of rotations serves all, but no finer than voxels and
    noise allow.
    """
    radius = min(fixed.radius, moving.radius)
    floor = max(FINEST, *(2.5 * b.size.max() for b in (fixed, moving)), *(b.width for b in (fixed, moving)))
    fine = float(max(FINE * radius, floor))
    coarse = float(max(COARSE * radius, 1.3 * fine))
    return coarse, float(np.sqrt(coarse * fine)), fine


def search(overlaps: Sequence[Overlap]) -> Pose:
    """The best pose of all: every shift of evenly spread rotations, the most promising refined."""
    return refined(overlaps, overlaps[0].everywhere(even_rotations(ROTATIONS)))[0]


def refined(overlaps: Sequence[Overlap], poses: list[Pose]) -> list[Pose]:
    """The poses refined at one resolution after the other, ever fewer of them; best first."""
    for overlap, kept, close in zip(overlaps, KEPT, CLOSE, strict=True):
        overlap.points, overlap.splines  # noqa: B018  computed once, before the threads want them
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            poses = list(pool.map(partial(overlap.climb, close=close), poses[:kept]))
        poses = distinct(sorted(poses, key=lambda pose: -pose.score), overlap.moving)
    return poses


def distinct(poses: list[Pose], moving: Body) -> list[Pose]:
    """The poses without those that are within a tenth of the body's radius of one that comes before."""
    kept: list[Pose] = []
    for pose in poses:
        if not kept or apart(moving, pose, *kept).min() > 0.1 * moving.radius:
            kept.append(pose)
    return kept


def apart(moving: Body, pose: Pose, *others: Pose) -> np.ndarray:
    """How far from each of other poses one brings the same points of the moving body, rms in Å.

    The body is taken for a ball of its radius of gyration: the mean of |R x - x|² is then 2/3 of its square (3 - tr R).
    """
    turns = np.stack([(pose.rotation.inv() * other.rotation).as_matrix() for other in others])
    shifts = np.stack([pose.shift - other.shift for other in others])
    turned = 2 / 3 * moving.radius**2 * (3 - np.trace(turns, axis1=1, axis2=2))
    return np.sqrt(turned + (shifts**2).sum(1))


def splatted(x: Float[np.ndarray, "many n 3"], mass: Float[np.ndarray, "n"], shape) -> np.ndarray:
    """Volumes (many, x, y, z; float32) of the mass at points x [voxels], spread trilinearly on a periodic grid."""
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
    """So many rotations, evenly spread: a super-Fibonacci spiral (Alexa, CVPR 2022)."""
    s = np.arange(count) + 0.5
    turn, r = 2 * np.pi * s, np.sqrt(s / count)
    a, b = turn / np.sqrt(2), turn / 1.533751168755204288118041  # the positive root of x⁴ = x + 4
    q = np.sqrt(1 - s / count)
    return Rotation.from_quat(np.stack([r * np.sin(a), r * np.cos(a), q * np.sin(b), q * np.cos(b)], -1))
