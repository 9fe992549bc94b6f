"""Align two maps by a rigid-body motion, and resample one on the other's grid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from cryotrans_jax.density import thresholds
from cryotrans_jax.density.overlap import Body, Filtered, Overlap, Placement, body, maximise
from cryotrans_jax.density.thresholds import ThresholdRules
from cryotrans_jax.density.transform import IDENTITY, Transform, resampled
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, same_grid


@dataclass(frozen=True)
class AlignmentSearch:
    """How a target's pose is searched for and chosen; see `align_bodies`.

    Attributes:
        coarse: resolution of the search, in radii of gyration.
        fine: resolution of its last refinement, in radii of gyration.
        finest: Å; no refinement is finer. Most targets resolve this, and it is fine enough for a tenth of a degree.
        rotations: number of rotations that are tried: 2000 are 20° apart, within the reach of the coarse refinement.
        kept: candidates that are refined at each of three resolutions.
        close: gains in correlation below which each refinement ends.
        equal: ratio to the best correlation at which a pose near the present one is preferred to the best.
        near: rms distance of two poses that domain motions may leave ambiguous, in radii of gyration.
        gain: gain in overlap that justifies a small move;
        share: or, if that is less, this share of what the overlap lacks to 1.
        least_gain: of overlap, in any case: less is rounding, and tenths of an angstrom.
        fall: largest loss in overlap of a large move.
        least_inside: least share of the target's mass in the initial map's box; with less the maps do not overlap.
    """

    coarse: float = 0.6
    fine: float = 0.25
    finest: float = 6.0
    rotations: int = 2000
    kept: tuple[int, ...] = (24, 8, 2)
    close: tuple[float, ...] = (1e-4, 1e-5, 1e-8)
    equal: float = 0.9
    near: float = 0.5
    gain: float = 0.02
    share: float = 1 / 3
    least_gain: float = 0.002
    fall: float = 0.05
    least_inside: float = 0.1


DEFAULT = AlignmentSearch()


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
        """Whether the target's mirror image fits clearly better than the target: 1.2 times its correlation."""
        return self.mirrored is not None and self.best is not None and self.mirrored > 1.2 * self.best

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
    rules: AlignmentSearch = DEFAULT,
    mass_rules: ThresholdRules = thresholds.DEFAULT,
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
        rules: how the pose is searched for.
        mass_rules: how a threshold is chosen.

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
    moving, found = body(target, target_threshold, "target map", mass_rules), Alignment()
    if align == "auto" or check_hand:
        fixed = body(initial, initial_threshold, "initial map", mass_rules)
        found = align_bodies(fixed, moving, check_hand, rules)
    if align == "none" and found.agreement:
        found = Alignment(agreement=found.agreement.as_given)
    found = found._replace(inside=mass_inside(moving, initial, found.transform, rules.least_inside))
    return resampled(target, initial, found.transform), found


def mass_inside(moving: Body, initial: Map, transform: Transform, least: float) -> float:
    """Share of a body's mass that the transform moves into the initial map's box.

    Raises:
        InputError: it is less than `least`.
    """
    x, mass = moving.points(0.0)
    at = (transform(x + moving.centre) - initial.origin) / initial.voxel_size
    within = ((at > -0.5) & (at < np.array(initial.density.shape) - 0.5)).all(1)
    share = float(mass[within].sum() / mass.sum())
    if share < least:
        raise InputError(
            f"only {100 * share:.0f} % of the target map's mass lies in the initial map's box: align the maps "
            "(--align=auto), or correct the origin and voxel size of both"
        )
    return share


def align_bodies(fixed: Body, moving: Body, check_hand: bool = False, rules: AlignmentSearch = DEFAULT) -> Alignment:
    """Align the moving body with the fixed one, or find that it is aligned already.

    Of the best pose anywhere and the best pose near the present one, the latter is chosen if its sharp correlation is
    at least `equal` of the best. If the chosen pose is far from the present one (more than `near` radii of gyration,
    rms), the body is moved unless the overlap at the coarse resolution falls by `fall`. If it is near, the body is
    moved only if the overlap rises by `gain`, or by `share` of what it lacks to 1: two states of one molecule have no
    unique alignment, so the given one is preferred.

    Args:
        fixed: body of the initial map.
        moving: body of the target.
        check_hand: whether to fit the target's mirror image too.
        rules: the numbers above, and how the best pose is searched for.
    """
    levels = resolutions(fixed, moving, rules)
    overlaps = [Overlap(Filtered(fixed, level, sharp=True), moving) for level in levels]
    present = Placement(Rotation.identity(), moving.centre - fixed.centre, 0.0)
    before = overlaps[-1].score(*present[:2])[0]
    chosen = near = refine(overlaps, [present], rules)[0]
    best = mirrored = None
    if near.score < rules.equal or check_hand:  # otherwise no pose can be that much better
        found = search(overlaps, rules)
        chosen = near if near.score >= rules.equal * found.score else found
        best = max(found.score, near.score)
        image = [replace(overlap, moving=moving.mirrored) for overlap in overlaps]
        mirrored = search(image, rules).score if check_hand else None
    coarse = Overlap(Filtered(fixed, levels[0], sharp=False), moving)
    old, new = (coarse.score(*pose[:2])[0] for pose in (present, chosen))
    far = pose_distances(moving, chosen, present)[0] > rules.near * min(fixed.radius, moving.radius)
    agreement = Agreement(old, new, before, chosen.score, (levels[0], levels[-1]), best, mirrored)
    needed = -rules.fall if far else max(min(rules.gain, rules.share * (1 - old)), rules.least_gain)
    if not new - old > needed:
        return Alignment(status="already aligned", agreement=agreement.as_given)
    moved = float(np.linalg.norm(fixed.centre + chosen.shift - moving.centre))
    return Alignment(chosen.motion(fixed, moving), "aligned", moved, agreement)


def resolutions(fixed: Body, moving: Body, rules: AlignmentSearch) -> tuple[float, float, float]:
    """Resolutions [Å] of the search, the refinement and the last refinement.

    They scale with the size of the smaller body, so that one set of rotations serves all, but are no finer than voxels
    and noise allow.
    """
    radius = min(fixed.radius, moving.radius)
    floor = max(rules.finest, *(2.5 * b.size.max() for b in (fixed, moving)), *(b.width for b in (fixed, moving)))
    fine = float(max(rules.fine * radius, floor))
    coarse = float(max(rules.coarse * radius, 1.3 * fine))
    return coarse, float(np.sqrt(coarse * fine)), fine


def search(overlaps: Sequence[Overlap], rules: AlignmentSearch) -> Placement:
    """Find the best pose: score all shifts of evenly spread rotations, and refine the most promising poses."""
    return refine(overlaps, overlaps[0].scan_shifts(even_rotations(rules.rotations)), rules)[0]


def refine(overlaps: Sequence[Overlap], poses: list[Placement], rules: AlignmentSearch) -> list[Placement]:
    """Refine poses at one resolution after the other, fewer each time; best first."""
    for overlap, kept, close in zip(overlaps, rules.kept, rules.close, strict=True):
        poses = refine_once(overlap, poses[:kept], close)
    return poses


def refine_once(overlap: Overlap, poses: Sequence[Placement], close: float) -> list[Placement]:
    """Refine poses at one resolution, until the gain is below `close`; best first, without duplicates."""
    refined = maximise([overlap] * len(poses), poses, close)
    return drop_duplicates(sorted(refined, key=lambda pose: -pose.score), overlap.moving)


def drop_duplicates(poses: list[Placement], moving: Body) -> list[Placement]:
    """Drop poses within a tenth of the body's radius of a better one."""
    kept: list[Placement] = []
    for pose in poses:
        if not kept or pose_distances(moving, pose, *kept).min() > 0.1 * moving.radius:
            kept.append(pose)
    return kept


def pose_distances(moving: Body, pose: Placement, *others: Placement) -> np.ndarray:
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
