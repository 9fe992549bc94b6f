"""Align two maps by a rigid-body motion, and resample one on the other's grid."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from cryotrans_jax.density.overlap import Body, Overlap, Pose, body
from cryotrans_jax.density.transform import IDENTITY, Transform, resampled
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, same_grid

COARSE, FINE = 0.6, 0.25  # resolutions of the search and of its last refinement, in radii of gyration
FINEST = 6.0  # Å: resolved by most targets, and fine enough for a tenth of a degree
ROTATIONS = 2000  # 20° apart, within the reach of the refinement at the coarse resolution
KEPT = (24, 8, 2)  # candidates refined at each of three resolutions
CLOSE = (1e-4, 1e-5, 1e-8)  # gains in correlation below which each refinement ends
EQUAL = 0.9  # of the best correlation: a pose near the present one that fits so well is preferred to the best
NEAR = 0.5  # radii of gyration: rms distance of two poses that domain motions may leave ambiguous
GAIN, SHARE = 0.02, 1 / 3  # gain in overlap that justifies a small move, absolute or of what lacks to 1
LEAST = 0.002  # least gain in any case: less is rounding, and tenths of an angstrom
FALL = 0.05  # largest loss in overlap of a large move
MIRRORED = 1.2  # ratio of correlations at which the mirror image fits clearly better
NOWHERE = 0.1  # of the target's mass: with less of it in the initial map's box, the maps do not overlap


class Agreement(NamedTuple):
    """How well a target fits the initial map, in its given pose and in the one that was chosen.

    Attributes:
        overlap_before: correlation at the first of `resolutions`, in the pose as given.
        overlap: the same in the chosen pose.
        correlation_before: sharp correlation (`Overlap`) at the second of `resolutions`, in the pose as given.
        correlation: the same in the chosen pose.
        resolutions: coarse and fine resolution of the two correlations, Å.
        best: the sharp correlation of the best pose of all; None where the pose as given fits so well that no other was
            tried.
        mirrored: the same for the target's mirror image; None where the hand was not checked.
    """

    overlap_before: float
    overlap: float
    correlation_before: float
    correlation: float
    resolutions: tuple[float, float]
    best: float | None
    mirrored: float | None

    @property
    def wrong_hand(self) -> bool:
        """Whether the target's mirror image fits clearly better than the target."""
        return self.mirrored is not None and self.best is not None and self.mirrored > MIRRORED * self.best

    @property
    def as_given(self) -> "Agreement":
        """The same for a target that stays in its given pose."""
        return self._replace(overlap=self.overlap_before, correlation=self.correlation_before)


class Alignment(NamedTuple):
    """How a target was aligned with an initial map.

    Attributes:
        transform: motion from the target's frame to the initial map's.
        status: how it was chosen, in words.
        moved: displacement of the target's centre of mass, Å.
        agreement: how well the target fits; None where that was not measured.
        inside: share of the target's mass in the initial map's box; None where the two have one grid.
    """

    transform: Transform = IDENTITY
    status: str = "in its given pose"
    moved: float = 0.0
    agreement: Agreement | None = None
    inside: float | None = None

    def to_plain(self) -> dict[str, Any]:
        """The alignment as JSON values."""
        agreement = None if self.agreement is None else self.agreement._asdict()
        return self._asdict() | {"transform": self.transform.matrix.tolist(), "agreement": agreement}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Alignment":
        """The alignment of `to_plain`."""
        found = plain["agreement"]
        agreement = found and Agreement(**found | {"resolutions": tuple(found["resolutions"])})
        return cls(**plain | {"transform": Transform.from_matrix(plain["transform"]), "agreement": agreement})

    @property
    def summary(self) -> str:
        """The status, and how far the target was moved."""
        if self.transform is IDENTITY:
            return self.status
        return f"{self.status}: rotated by {self.transform.angle:.1f}° and moved by {self.moved:.1f} Å"


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
        found = align_bodies(body(initial, initial_threshold, "initial map"), moving, check_hand)
    if align == "none" and found.agreement:
        found = Alignment(agreement=found.agreement.as_given)
    found = found._replace(inside=mass_inside(moving, initial, found.transform))
    return resampled(target, initial, found.transform), found


def mass_inside(moving: Body, initial: Map, transform: Transform) -> float:
    """Share of a body's mass that the transform moves into the initial map's box.

    Raises:
        InputError: it is less than NOWHERE.
    """
    x, mass = moving.points(0.0)
    at = (transform(x + moving.centre) - initial.origin) / initial.voxel_size
    within = ((at > -0.5) & (at < np.array(initial.density.shape) - 0.5)).all(1)
    share = float(mass[within].sum() / mass.sum())
    if share < NOWHERE:
        raise InputError(
            f"only {100 * share:.0f} % of the target map's mass lies in the initial map's box: align the maps "
            "(--align=auto), or correct the origin and voxel size of both"
        )
    return share


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
    agreement = Agreement(old, new, before, chosen.score, (levels[0], levels[-1]), best, mirrored)
    if not new - old > (-FALL if far else max(min(GAIN, SHARE * (1 - old)), LEAST)):
        return Alignment(status="already aligned", agreement=agreement.as_given)
    rotation, centre = chosen.rotation.as_matrix(), fixed.centre + chosen.shift
    moved = float(np.linalg.norm(centre - moving.centre))
    return Alignment(Transform(rotation, centre - rotation @ moving.centre), "aligned", moved, agreement)


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


def even_rotations(count: int) -> Rotation:
    """Evenly spread rotations: a super-Fibonacci spiral (Alexa, CVPR 2022)."""
    s = np.arange(count) + 0.5
    turn, r = 2 * np.pi * s, np.sqrt(s / count)
    a, b = turn / np.sqrt(2), turn / 1.533751168755204288118041  # the positive root of x⁴ = x + 4
    q = np.sqrt(1 - s / count)
    return Rotation.from_quat(np.stack([r * np.sin(a), r * np.cos(a), q * np.sin(b), q * np.cos(b)], -1))
