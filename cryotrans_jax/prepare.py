"""From maps as read to what a fit needs: thresholds, one frame, the crop to the mass, levels of binning."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Array, Float, Int
from scipy import ndimage, stats

from cryotrans_jax import lattice as lattices
from cryotrans_jax import losses
from cryotrans_jax.files import InputError
from cryotrans_jax.maps import Map, frequencies

MAX_NOISE = 0.1  # of the maximum: a target whose noise reaches higher is blurred before its mass is taken
MAX_BLUR = 8.0  # Å: by as much at most
MAX_NOISE_POWER = 0.02  # of a target's power: sharpening must not make its noise more than this
NOISE_DISTANCE, NOISE_FADE = (
    8.0,
    4.0,
)  # Å about a target's mass where its noise is not judged, and over which that region begins
DETAIL_AT_3A = 0.045  # 1/Å²: mean square spatial frequency of a map at 3 Å
NOISE_RIGIDITY = 0.5  # 1/Å³: what noise counts in the weight of the rigidity
DUST = 0.01  # of the largest connected piece: what holds less is taken for noise
DALTON = 1.21  # Å³: the volume of a dalton of protein, of 0.73 cm³/g
CROP_MULTIPLE = 8  # the crop starts and ends on multiples of this many voxels, so that every level's bins fit
MAX_ROWS = 64  # in which the points of the largest part are laid, for the fields of parts to be applied side by side
ROW_COST = 32  # points: about what a row costs besides those in it


@dataclass(frozen=True)
class Frame:
    """The unit box in space: `corner` (Å) is its origin and `edge` (Å) its side."""

    corner: np.ndarray
    edge: float

    def to_unit(self, xyz):
        """Positions in unit boxes from positions in Å, both (n, 3)."""
        return (xyz - self.corner) / self.edge

    def to_angstrom(self, x):
        """Positions in Å from positions in unit boxes, both (n, 3)."""
        return x * self.edge + self.corner


@dataclass(frozen=True)
class Problem:
    """One initial map and one or several targets, ready to be fitted: all on one crop of the maps' grid.

    `initial` (x, y, z) is the thresholded initial density over its maximum. `masses` (targets, x, y, z) are the
    thresholded targets scaled to the initial's total; `densities` the targets without a threshold, sharpened as far as
    their noise allows, scaled as if both levels had been chosen by rule. `start` is the crop's first voxel on the full
    grid; `voxel_size` in Å; `frame` is the unit box. Variances in Å², one a target: `blurs` is that of the blur that
    takes the initial map to the target's resolution, negative where the target is the sharper one; `residual_blurs` what is
    left of it for the sharpened `densities`; `denoising_blurs` that of the blur that took the noise out of the masses. Where
    the targets have half-maps, `densities` are the first ones and `validation_densities`, treated alike, the second ones.
    `report` holds, for each map, the level used and the share of its positive mass kept. With `waypoints`, all targets
    lie on one trajectory, which ends at the last of them and is to pass the others at these times. Where the initial
    map is divided into parts, for each trajectory in its own way, `labels` (1, 2, ...) say to which of them each voxel
    belongs, and `stiffness` by what to multiply the weight of the rigidity in each. Where the maps have a symmetry,
    `unit` are the shares (0 to 1) of the initial map's voxels that are of one unit, which is repeated by its operators,
    of rotations `rotations` and `shifts` (unit boxes); each trajectory has its own where the map is divided.
    """

    initial: Float[np.ndarray, "x y z"]
    masses: Float[np.ndarray, "targets x y z"]
    densities: Float[np.ndarray, "targets x y z"]
    start: np.ndarray
    voxel_size: np.ndarray
    frame: Frame
    blurs: np.ndarray
    residual_blurs: np.ndarray
    denoising_blurs: np.ndarray
    report: dict
    validation_densities: Float[np.ndarray, "targets x y z"] | None = None
    waypoints: tuple[float, ...] = ()
    labels: Int[np.ndarray, "trajectories x y z"] | None = None
    stiffness: tuple[float, ...] = ()
    unit: Float[np.ndarray, "*trajectories x y z"] | None = None
    rotations: Float[np.ndarray, "copies 3 3"] | None = None
    shifts: Float[np.ndarray, "copies 3"] | None = None

    @property
    def carried(self) -> Float[np.ndarray, "*trajectories x y z"]:
        """What is carried of the initial map: all of it, or one unit where the others are its copies."""
        return self.initial if self.unit is None else self.initial * self.unit

    @property
    def trajectories(self) -> int:
        """How many are to be fitted: one for each target, or one through all of them."""
        return 1 if self.waypoints else len(self.masses)

    @property
    def parts(self) -> int:
        """How many there are with velocity fields of their own; 0 where there is one field for the whole."""
        return len(self.stiffness)

    def divide(
        self,
        labels: Sequence[Int[np.ndarray, "nx ny nz"]],
        stiffness: Sequence[float] | None = None,
        units: Sequence[Float[np.ndarray, "nx ny nz"]] | None = None,
    ) -> "Problem":
        """The same problem with the initial map divided into parts, for each trajectory by its labels (1, 2, ...).

        These are on the maps' whole grid, and so are the shares that one unit has, where there is a symmetry.
        Trajectories may have different numbers of parts. Raises InputError where a part holds no mass, or there are not
        as many weights as parts.
        """
        count = max(int(each.max()) for each in labels)
        stiffness = (1.0,) * count if stiffness is None else tuple(map(float, stiffness))
        if len(stiffness) != count:
            raise InputError(f"{len(stiffness)} weights of the rigidity for {count} parts: give one for each")
        ends = self.start, self.start + self.initial.shape
        own = np.stack([crop(each, *ends) for each in labels]).astype(np.int16)
        unit = self.unit if units is None else np.stack([crop(each, *ends) for each in units])
        found = replace(self, labels=own, stiffness=stiffness, unit=unit)
        for each, mass in found.labels_and_mass:
            for label in range(1, int(each.max()) + 1):
                if not mass[each == label].any():
                    raise InputError(f"part {label} holds no density above the initial map's threshold: leave it out")
        return found

    @property
    def labels_and_mass(self) -> Iterator[tuple[Int[np.ndarray, "x y z"], Float[np.ndarray, "x y z"]]]:
        """The labels of each trajectory's parts, and what is carried."""
        return zip(self.labels, np.broadcast_to(self.carried, self.labels.shape), strict=True)

    @property
    def solvent(self) -> "Problem":
        """The same problem with nothing left of the densities but what they have outside of the masses: their noise."""
        return replace(self, densities=self.densities * (self.masses == 0))

    def select(self, targets: Sequence[int]) -> "Problem":
        """The same problem with the targets of these numbers, in this order, on the same crop."""
        names = ("masses", "densities", "blurs", "residual_blurs", "denoising_blurs", "validation_densities", "labels")
        every = {name: getattr(self, name) for name in names}
        return replace(self, **{name: None if a is None else a[list(targets)] for name, a in every.items()})

    @property
    def corner(self) -> np.ndarray:
        """The crop's corner (outer edge of its first voxel) in the unit box."""
        return self.frame.to_unit(self.report["origin"] + (self.start - 0.5) * self.voxel_size)


class Rows(NamedTuple):
    """Points of several parts in rows of one part each, for fields of parts of any sizes to be applied side by side.

    `points` are their numbers among those of all parts, padded to the largest; `owner` is each row's part; `place` is
    where each part's points are among those of all rows.
    """

    points: Int[Array, "*trajectories rows width"]
    owner: Int[Array, "*trajectories rows"]
    place: Int[Array, "*trajectories parts most"]


class Level(NamedTuple):
    """A problem at one binning; arrays only, in the unit box, so that it passes through jit.

    Points `x` of mass `rho` and the grid (corner, voxel) on which they are compared with a target; `lattice`
    controls the points where there is one; `tetrahedra` (indices of nodes, or of points without a lattice), `edges`
    and the `share` of the mass in each are for the rigidity.

    Where the initial map is divided, everything has a leading axis of trajectories, and `x`, `lattice`, `tetrahedra`
    and `share` have one of parts after it, padded to the largest of them; `kept` are the points of all parts, one after
    the other, that are no padding, and `rho` is their mass; `rows` are the points that the flow is integrated at, or
    the lattice's nodes, with little padding. `of` gives one trajectory's level.

    Where there is a symmetry, all this is of one unit, but `rho`, which is the mass of all copies' points, copy after
    copy; `rotations` and `shifts` are the operators that make them.
    """

    x: Float[Array, "*trajectories_parts points 3"]
    rho: Float[Array, "*trajectories all"]
    corner: Float[Array, "*trajectories 3"]
    voxel: Float[Array, "*trajectories 3"]
    lattice: lattices.Lattice | None = None
    tetrahedra: Int[Array, "*trajectories_parts tetrahedra 4"] | None = None
    edges: Float[Array, "*trajectories 3"] | None = None
    mass_fraction: Float[Array, "*trajectories_parts tetrahedra"] | None = None
    valid: Int[Array, "trajectories all"] | None = None
    rows: Rows | None = None
    rotations: Float[Array, "*trajectories copies 3 3"] | None = None
    shifts: Float[Array, "*trajectories copies 3"] | None = None

    @property
    def has_parts(self) -> bool:
        """Whether there is an axis of parts."""
        return self.x.ndim > 2

    @property
    def points(self) -> Float[Array, "all 3"]:
        """Those of one trajectory's level that have mass, those of all parts and copies where there are some."""
        return self.with_copies(self.x if self.valid is None else self.x.reshape(-1, 3)[self.valid])

    def with_copies(self, x: Float[Array, "*times unit 3"]) -> Float[Array, "*times all 3"]:
        """A unit's points and those of all its copies, of one trajectory; the points themselves without a symmetry."""
        if self.rotations is None:
            return x
        every = jnp.einsum("gij,...nj->...gni", self.rotations, x, precision="highest") + self.shifts[:, None]
        return every.reshape(*x.shape[:-2], -1, 3)

    def for_trajectory(self, trajectory: int) -> "Level":
        """One trajectory's level: its own where the initial map is divided, else that of all."""
        return jax.tree.map(lambda a: a[trajectory], self) if self.has_parts else self


def prepare(
    initial: Map,
    targets: Sequence[Map],
    *,
    initial_threshold: float | None = None,
    target_threshold: float | None = None,
    initial_resolution: float | None = None,
    target_resolutions: Sequence[float | None] | None = None,
    halves: Sequence[tuple[Map, Map]] | None = None,
    volume: float | None = None,
    whole_box: bool = False,
    margin: float = 8.0,
    waypoints: Sequence[float] = (),
) -> Problem:
    """The problem of carrying `initial` onto each of `targets`, all on one grid.

    Or, if there are `waypoints`, through all of `targets` but the last at these rising times, and at 1 onto the last.

    Thresholds not given are chosen by `contour_level`, or with a `volume` (Å³) given so that they enclose that, of
    targets after `quieted` has taken out their noise. With both resolutions (Å) given, the blur between the maps
    is that of molmap's Gaussians; otherwise it is estimated by `relative_blur`. `whole_box` takes the maps' whole
    box as unit box and crops nothing (the paper); otherwise the unit box is the cube about the initial map's mass,
    and everything is cropped to the mass of all maps and `margin` Å about it.

    Raises InputError when nothing is above a threshold.
    """
    start_mass, report = apply_threshold(initial, initial_threshold, "initial map", volume)
    reports: dict[str, Any] = {"initial": report, "targets": []}
    masses = []
    denoised = [denoise(target) for target in targets]
    for number, target in enumerate(targets):
        shown = denoised[number][0] if target_threshold is None else target
        name = f"waypoint map {number + 1}" if number < len(waypoints) else f"target map {number + 1 - len(waypoints)}"
        mass, report = apply_threshold(shown, target_threshold, name, volume)
        masses.append(mass)
        reports["targets"].append(report)
    reports["origin"] = initial.origin

    scale = start_mass.max()
    scales = [start_mass.sum() / m.sum() / scale for m in masses]
    by_rule = [level is None and volume is None for level in (initial_threshold, target_threshold)]
    whole = start_mass if by_rule[0] else apply_threshold(initial, None, "initial map")[0]
    wholes = masses if by_rule[1] else [apply_threshold(q, None, "target map")[0] for q, _ in denoised]
    density_scales = [whole.sum() / w.sum() / scale for w in wholes]
    resolutions = target_resolutions or [None] * len(targets)
    blurs = np.array(
        [blur_between(initial, t, initial_resolution, r) for r, t in zip(resolutions, targets, strict=True)]
    )
    compared, validation_densities = zip(*halves, strict=True) if halves else (targets, None)
    sharpenings = np.array(
        [sharpening_variance(initial, t, w > 0, v) for t, w, v in zip(compared, wholes, blurs, strict=True)]
    )

    size, whole_map = initial.voxel_size, (np.zeros(3, int), np.array(start_mass.shape))
    low, high = whole_map if whole_box else padded_box(np.maximum.reduce([start_mass, *masses]) > 0, margin / size)
    high = low + -(-(high - low) // CROP_MULTIPLE) * CROP_MULTIPLE
    frame = cube_about(*(whole_map if whole_box else bounding_box(start_mass > 0)), initial, whole_box)
    crop = lambda a: crop(a, low, high)  # noqa: E731

    def crop_densities(maps: Sequence[Map]) -> np.ndarray:
        every = zip(maps, sharpenings, density_scales, strict=True)
        return np.stack([crop(sharpen(m, gain).density * s) for m, gain, s in every])

    return Problem(
        initial=crop(start_mass / scale),
        masses=np.stack([crop(m * s) for m, s in zip(masses, scales, strict=True)]),
        densities=crop_densities(compared),
        start=low,
        voxel_size=size,
        frame=frame,
        blurs=blurs,
        residual_blurs=blurs - sharpenings,
        denoising_blurs=np.array([0.0 if target_threshold is not None else width**2 for _, width in denoised]),
        report=reports,
        validation_densities=crop_densities(validation_densities) if validation_densities else None,
        waypoints=tuple(waypoints),
    )


def padded_box(inside: np.ndarray, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First voxel along each axis, and one past the last, of the box of what is inside and so many voxels about it.

    The first is a multiple of ALIGN.
    """
    low, high = bounding_box(inside)
    margin = np.ceil(margin).astype(int)
    return np.maximum(low - margin, 0) // CROP_MULTIPLE * CROP_MULTIPLE, np.minimum(high + margin, inside.shape)


def cube_about(low: np.ndarray, high: np.ndarray, map_: Map, from_corner: bool) -> Frame:
    """The cube as wide as the longest edge of these voxels of a map: from their corner, or about their middle."""
    sides = (high - low) * map_.voxel_size
    corner = map_.origin + (low - 0.5) * map_.voxel_size
    edge = float(sides.max())
    return Frame(corner if from_corner else corner + 0.5 * (sides - edge), edge)


def contour_level(density: np.ndarray, share: float = 0.98) -> float:
    """Level that keeps the given share of the positive mass standing above the solvent noise.

    Noise is taken to be symmetric about the map's median (most of a box is solvent): 3.5 standard deviations of
    what lies below the median is its ceiling. Above that ceiling the voxels are sorted, and the level is where the
    strongest of them hold `share` of their mass. A noiseless map has a ceiling of about zero and the rule is the
    share alone.

    Raises InputError where nothing stands above the ceiling.
    """
    limit = max(noise_limit(density), 0.0)
    kept = density[density > limit]
    if not kept.size:
        raise InputError(
            f"the map's maximum of {density.max():g} is not above its noise, which by the histogram reaches "
            f"{limit:g}: give a threshold, or a map in which the molecule fills less than half of the box"
        )
    return mass_fraction_level(kept, share)


def noise_limit(density: np.ndarray) -> float:
    """The density that the solvent's noise hardly ever passes: see `contour_level`."""
    values = density.ravel()
    solvent = float(np.median(values))
    below = solvent - values[values < solvent]
    noise = 1.4826 * float(np.median(below)) if below.size > 0.05 * values.size else 0.0
    return solvent + 3.5 * noise


def denoise(map_: Map) -> tuple[Map, float]:
    """The map blurred just enough that its noise stays below NOISY of its maximum, and the width of that blur (Å)."""
    width, denoised = 0.0, map_
    while noise_limit(denoised.density) > MAX_NOISE * denoised.density.max() and width < MAX_BLUR:
        width = np.sqrt(2) * width or float(map_.voxel_size.min())
        denoised = replace(map_, density=ndimage.gaussian_filter(map_.density, width / map_.voxel_size))
    return denoised, width


def mass_fraction_level(values: np.ndarray, share: float = 0.98) -> float:
    """The value at and above which positive values hold the given share of their sum."""
    falling = np.sort(values)[::-1]
    mass = np.cumsum(falling, dtype=np.float64)
    return float(falling[np.searchsorted(mass, share * mass[-1])])


def enclosing_level(map_: Map, volume: float) -> float:
    """The level at which a map encloses a volume in Å³, its specks not counted: to 2 %, or as near as noise allows.

    Raises InputError where not so much of the box has positive density.
    """
    values = np.sort(map_.density, axis=None)[::-1]
    wanted, positive = volume / np.prod(map_.voxel_size), np.count_nonzero(values > 0)
    if wanted > positive:
        raise InputError(
            f"a volume of {volume:.0f} Å³ was asked for and {positive / wanted * volume:.0f} Å³ of the map are positive: "
            "give another molecular weight, or a threshold"
        )
    levels, count = {}, wanted
    for _ in range(6):  # specks are few at a level that shows a molecule, and then the first or second try is right
        level = float(values[min(max(round(count), 1), positive) - 1])
        found = np.count_nonzero(carried_mass(map_.density, level))
        levels[abs(found - wanted)] = level
        if min(levels) <= 0.02 * wanted:
            break
        count = np.sqrt(count * count * wanted / max(found, 1))  # half the way in logarithms: specks join suddenly
    return levels[min(levels)]


def apply_threshold(map_: Map, level: float | None, name: str, volume: float | None = None) -> tuple[np.ndarray, dict]:
    """The map's density with everything below the level (and every negative value) set to 0, and what that keeps.

    Without a level it is the one that encloses the volume (Å³), and without a volume `contour_level`.
    """
    chosen = "given" if level is not None else "by rule" if volume is None else "by volume"
    if level is None:
        level = contour_level(map_.density) if volume is None else enclosing_level(map_, volume)
    mass = carried_mass(map_.density, level)
    if not mass.any():
        raise InputError(
            f"the {name} has no density above the threshold {level:g} (its maximum is {map_.density.max():g}): "
            "give a lower threshold, or negate a map in which the molecule is dark"
        )
    positive = map_.density[map_.density > 0].sum(dtype=np.float64)
    kept = np.count_nonzero(mass)
    return mass, {
        "threshold": float(level),
        "threshold_chosen": chosen,
        "share_of_mass": float(mass.sum(dtype=np.float64) / positive),
        "volume": float(kept * np.prod(map_.voxel_size)),
        "specks": 1 - kept / np.count_nonzero((map_.density >= level) & (map_.density > 0)),
        "clear": None
        if chosen == "by rule"
        else level_in_sigmas(level, *solvent_noise(np.sort(map_.density, axis=None))),
    }


def level_in_sigmas(level: float, solvent: float, noise: float) -> float:
    """By how many standard deviations of the noise a level stands above the solvent, 99 at most."""
    return float(min((level - solvent) / noise, 99.0)) if noise > 0 else 99.0


def solvent_noise(values: np.ndarray) -> tuple[float, float]:
    """The solvent's level, and the standard deviation of the noise about it; of sorted values.

    Deviations are judged below the solvent, whose level is the `common_value`; a masked map's is mostly one number.
    """
    solvent = common_value(values)
    below, equal = values[values < solvent].astype(np.float64), np.count_nonzero(values == solvent)
    return solvent, float(np.sqrt(2 * ((solvent - below) ** 2).sum() / max(2 * len(below) + equal, 1)))


def common_value(values: np.ndarray) -> float:
    """The middle of the shortest interval that holds half of the sorted values: the solvent's, in a map with room.

    Unlike the median it hardly moves with the part of the box that the molecule fills.
    """
    half = len(values) // 2
    first = np.argmin(values[half : 2 * half] - values[:half])
    return float(0.5 * (values[first] + values[first + half]))


def carried_mass(density: np.ndarray, level: float) -> np.ndarray:
    """The density at or above the level, without what is not positive and without specks; zero elsewhere.

    A speck is a connected piece that holds less than a hundredth of what the largest one holds: solvent noise leaves
    them all over the box at any level that shows the whole molecule.
    """
    mass = np.where((density >= level) & (density > 0), density, 0).astype(np.float32)
    pieces, count = ndimage.label(mass > 0, structure=np.ones((3, 3, 3)))
    if count < 2:
        return mass
    held = np.bincount(pieces.ravel(), mass.ravel())
    return mass * (held >= DUST * held[1:].max())[pieces]


def blur_between(initial: Map, target: Map, initial_resolution: float | None, resolution: float | None) -> float:
    """Variance (Å²) of the blur that takes the initial map to the target's resolution.

    With both resolutions (Å) it is that of molmap's Gaussians, else that of `relative_blur`; negative where the target
    is the sharper one.
    """
    if resolution and initial_resolution:
        return 0.225**2 * (resolution**2 - initial_resolution**2)
    return relative_blur(initial, target)


def relative_blur(initial: Map, target: Map) -> float:
    """Variance (Å²) of the Gaussian blur that takes the initial map's rotationally averaged spectrum to the target's.

    Amplitudes averaged over shells hardly depend on the conformation, so ½ log of the ratio of powers is a
    straight line in s² with slope −2π² σ². The line is fitted from 1/25 Å⁻¹ to where the target's power meets its
    noise floor or has fallen to 0.3 %, with repeated medians (Siegel 1982), so that the edge of a low-pass filter
    counts for little.
    """
    s, start = shell_power(initial.density, initial.voxel_size)
    _, end = shell_power(target.density, target.voxel_size)
    low = (s > 0.04) & (s < 0.06)
    reference = np.median(end[low]) if low.any() else end.max()
    floor = max(3 * np.median(end[-max(len(end) // 10, 1) :]), 3e-3 * reference)
    good = (s > 0.04) & (end > floor) & (start > 1e-10 * start.max())
    good &= np.cumprod(np.where(s > 0.04, good, True)).astype(bool)
    if good.sum() < 3:
        return 0.0
    slope = stats.siegelslopes(0.5 * np.log(end[good] / start[good]), s[good] ** 2).slope
    return float(-slope / (2 * np.pi**2))


def sharpening_variance(initial: Map, target: Map, inside: np.ndarray, variance: float) -> float:
    """Variance (Å²), up to `variance`, of the blur that can be undone in the target before its noise is SHARP of it.

    `variance` is what takes the initial map to the target. Noise is, in each Fourier shell, the power of the density
    further than CLEAR from where `inside` holds, as it is as strong within the molecule, or else what the shell holds
    beyond twice the power of the initial map blurred, which hardly depends on the conformation, or lacks to half of it:
    what a filter has taken out of a target cannot be had back.
    """
    s, power = shell_power(target.density, target.voxel_size)
    _, start = shell_power(initial.density, initial.voxel_size)
    expected = start * np.exp(-4 * np.pi**2 * variance * s**2)
    band = (s > 0.04) & (s < 0.1)
    distance = ndimage.distance_transform_edt(~inside, sampling=target.voxel_size)
    away = (0.5 - 0.5 * np.cos(np.pi * np.clip((distance - NOISE_DISTANCE) / NOISE_FADE, 0, 1))).astype(np.float32)
    share = np.mean(away**2)
    if variance <= 0 or share < 0.02 or not band.any():
        return 0.0
    _, noise = shell_power(target.density * away, target.voxel_size)
    expected *= np.median(power[band] / expected[band])
    noise = np.maximum.reduce([noise / share, power - 2 * expected, expected / 2 - power])
    tried = variance * np.linspace(0, 1, 41)
    gain = s**2 * np.exp(4 * np.pi**2 * tried[:, None] * s**2)  # a shell has about s² coefficients
    acceptable = gain @ noise < MAX_NOISE_POWER * (gain @ power)
    return float(tried[np.flatnonzero(acceptable)[-1]]) if acceptable.any() else 0.0


def sharpen(map_: Map, variance: float) -> Map:
    """The map with a Gaussian blur of this variance (Å²) undone up to the Nyquist frequency, and nothing beyond."""
    if variance <= 0:
        return map_
    n, v = map_.density.shape, map_.voxel_size
    s2 = sum(f**2 for f in frequencies(n, v))
    limit = (0.5 / v.max()) ** 2
    gain = np.where(s2 <= limit, np.exp(2 * np.pi**2 * variance * np.minimum(s2, limit)), 0).astype(np.float32)
    workers = os.cpu_count()
    density = scipy.fft.irfftn(gain * scipy.fft.rfftn(map_.density, workers=workers), s=n, workers=workers)
    return replace(map_, density=density)


def shell_power(density: np.ndarray, voxel_size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spatial frequency (1/Å) of each Fourier shell up to Nyquist, and the mean power there."""
    power = np.abs(scipy.fft.rfftn(density, workers=os.cpu_count())) ** 2
    n, v = density.shape, voxel_size
    s = np.sqrt(sum(f**2 for f in frequencies(n, v)))
    width = 1.0 / max(n * v)
    shell = np.round(s / width).astype(int).ravel()
    count = np.bincount(shell)
    last = max(int(0.5 / max(v) / width), 1)
    return np.arange(last) * width, (np.bincount(shell, power.ravel()) / np.maximum(count, 1))[:last]


def bounding_box(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First voxel inside along each axis, and one past the last."""
    where = ndimage.find_objects(inside.astype(np.int8))[0]
    return np.array([s.start for s in where]), np.array([s.stop for s in where])


def box_slices(inside: np.ndarray, margin: int | Int[np.ndarray, "3"] = 0) -> tuple[slice, ...]:
    """Slices of the box of all that is inside, and of so many voxels about it as far as there are any."""
    low, high = bounding_box(inside)
    ends = zip(low - margin, high + margin, inside.shape, strict=True)
    return tuple(slice(max(int(a), 0), min(int(b), n)) for a, b, n in ends)


def crop(a: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """a[low:high], with zeros where that reaches past the end of the array."""
    part = a[tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))].astype(np.float32)
    return np.pad(part, [(0, hi - lo - n) for lo, hi, n in zip(low, high, part.shape, strict=True)])


def binned(density: np.ndarray, factor: int) -> np.ndarray:
    """Total in voxels `factor` times as wide: what splatting every voxel's value onto the coarse grid gives.

    Unlike block sums this keeps the centre of mass as well as the mass, and it is what carried points are compared
    with. Values within half a coarse voxel of the edge of the box stay in the outermost voxels.
    """
    for axis, n in enumerate(density.shape):
        at = (np.arange(n) + 0.5) / factor - 0.5
        coarse = np.clip(at, 0, n // factor - 1)[:, None] - np.arange(n // factor)
        weights = np.maximum(1 - np.abs(coarse), 0).astype(density.dtype)
        density = np.moveaxis(np.tensordot(density, weights, axes=([axis], [0])), -1, axis)
    return density


def block_points(mass: np.ndarray, factor: int | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mass in blocks of `factor` voxels (one number, or one an axis) as points: (positions, masses, filled blocks).

    Each point stands at its block's centre of mass, so that mass and centre are kept exactly. Positions are in voxels
    from the outer edge of the first one.
    """
    shape = [m for n, f in zip(mass.shape, np.broadcast_to(factor, 3), strict=True) for m in (n // f, f)]
    total = mass.reshape(shape).sum((1, 3, 5), dtype=np.float64)
    filled = total > 0
    place = []
    for axis, n in enumerate(mass.shape):
        at = (np.arange(n) + 0.5).reshape([-1 if k == axis else 1 for k in range(3)])
        moment = (mass * at).reshape(shape).sum((1, 3, 5), dtype=np.float64)
        place.append(moment[filled] / total[filled])
    return np.stack(place, -1), total[filled], filled


def make_level(problem: Problem, bin_: int, sampling: int, spacing: float, tetrahedra: bool) -> Level:
    """The problem compared on voxels `bin_` times as wide, its mass as points every `sampling` voxels.

    `spacing` (Å) is the control lattice's; 0 integrates the flow at every point. `tetrahedra` asks for those of
    the rigidity.
    """
    settings = bin_, sampling, spacing, tetrahedra
    if not problem.parts:
        return to_device(add_operators(problem, level_of_mass(problem, problem.carried, *settings)))
    masses = [
        [np.where(labels == part + 1, carried, 0) for part in range(int(labels.max()))]
        for labels, carried in problem.labels_and_mass
    ]
    boxes = [bounding_box(mass > 0) for own in masses for mass in own]
    sides = np.max([(high - 1) // sampling - low // sampling + 1 for low, high in boxes], axis=0)
    levels = [[level_of_mass(problem, mass, *settings, sides) for mass in own] for own in masses]
    return to_device(add_operators(problem, batch_levels(levels, problem.stiffness)))


def add_operators(problem: Problem, level: Level) -> Level:
    """The level of one unit with what it takes to copy that; the level itself where there is no symmetry."""
    if problem.rotations is None:
        return level
    operators = [np.asarray(a, np.float32) for a in (problem.rotations, problem.shifts)]
    if level.has_parts:
        operators = [np.stack([a] * len(level.x)) for a in operators]
    return level._replace(rho=np.tile(level.rho, len(problem.rotations)), rotations=operators[0], shifts=operators[1])


def to_device(level: Level) -> Level:
    """The level with JAX's arrays. It is made with NumPy's: what JAX computes on its own it has to compile, anew for
    every shape."""
    return jax.tree.map(jnp.asarray, level)


def batch_levels(levels: Sequence[Sequence[Level]], stiffness: Sequence[float]) -> Level:
    """The levels of each trajectory's parts as one; a part's share in the rigidity is its mass's, times its stiffness.

    Where a trajectory has fewer parts than others, parts of no mass fill up.
    """
    parts, count = len(stiffness), len(levels)
    each = [level for own in levels for level in [*own, *[own[0]] * (parts - len(own))]]
    masses = np.array([[float(level.rho.sum()) for level in own] + [0.0] * (parts - len(own)) for own in levels])

    def by_part(a: np.ndarray) -> np.ndarray:
        return a.reshape(count, parts, *a.shape[1:])

    first, x = each[0], by_part(lattices.pad_and_stack([level.x for level in each]))
    places = [[k * x.shape[2] + np.arange(len(level.x)) for k, level in enumerate(own)] for own in levels]
    batched = first._replace(
        x=x,
        valid=lattices.pad_and_stack([np.concatenate(own) for own in places]),
        rho=lattices.pad_and_stack([np.concatenate([level.rho for level in own]) for own in levels]),
        **{name: np.stack([getattr(first, name)] * count) for name in ("corner", "voxel")},
    )
    sizes = [[len(level.x if level.lattice is None else level.lattice.nodes) for level in own] for own in levels]
    batched = batched._replace(rows=arrange_rows([own + [0] * (parts - len(own)) for own in sizes]))
    if first.lattice is not None:
        batched = batched._replace(
            lattice=jax.tree.map(by_part, lattices.batch_lattices([level.lattice for level in each]))
        )
    if first.mass_fraction is not None:
        weights = (masses / masses.sum(1, keepdims=True) * stiffness).astype(np.float32).ravel()
        shares = [weight * level.mass_fraction for weight, level in zip(weights, each, strict=True)]
        rows = lattices.pad_and_stack([level.tetrahedra for level in each])
        edges = np.stack([first.edges] * count)
        batched = batched._replace(
            tetrahedra=by_part(rows), mass_fraction=by_part(lattices.pad_and_stack(shares)), edges=edges
        )
    return batched


def arrange_rows(sizes: Sequence[Sequence[int]]) -> Rows:
    """Rows for parts of these numbers of points, for each trajectory, as wide as makes the least work."""
    most = max(map(max, sizes))
    widths = {-(-most // parts // 16) * 16 for parts in range(1, MAX_ROWS + 1)}

    def needed(width: int) -> int:
        return max(sum(-(-n // width) for n in own) for own in sizes)

    width = min(widths, key=lambda width: needed(width) * (width + ROW_COST))
    shape = len(sizes), needed(width)
    points, owner = np.zeros((*shape, width), int), np.zeros(shape, int)
    place = np.zeros((len(sizes), len(sizes[0]), most), int)
    for trajectory, own in enumerate(sizes):
        row = 0
        for part, size in enumerate(own):
            taken, each = -(-size // width), np.arange(size)
            points[trajectory, row : row + taken].flat[:size] = part * most + each
            owner[trajectory, row : row + taken] = part
            place[trajectory, part, :size] = row * width + each
            row += taken
    return Rows(points, owner, place)


def level_of_mass(
    problem: Problem,
    mass: np.ndarray,
    bin_: int,
    sampling: int,
    spacing: float,
    tetrahedra: bool,
    sides: Int[np.ndarray, "3"] | None = None,
) -> Level:
    """The same for this mass, a part of the initial map's, under one velocity field.

    `room` is the size of the lattice's box in sampled voxels, where it is to be larger than the mass.
    """
    unit = problem.voxel_size / problem.frame.edge
    place, rho, filled = block_points(mass, sampling)
    level = Level(
        x=(problem.corner + place * unit).astype(np.float32),
        rho=rho.astype(np.float32),
        corner=problem.corner.astype(np.float32),
        voxel=(bin_ * unit).astype(np.float32),
    )
    cells, edges = np.argwhere(filled), sampling * unit
    if spacing:
        low, high = bounding_box(filled)
        pitch = spacing / (sampling * problem.voxel_size.min())
        box = filled[tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))]
        if sides is not None:
            box = np.pad(box, [(0, n - m) for n, m in zip(sides, box.shape, strict=True)])
        lattice = lattices.make_lattice(box, problem.corner + low * sampling * unit, sampling * unit, pitch)
        level = level._replace(lattice=lattice)
        cells = lattices.cell_indices(cells - low, spacing / (sampling * problem.voxel_size))
        edges = np.full(3, spacing / problem.frame.edge)
    if tetrahedra:
        nodes = lattices.node_indices(level.lattice) if spacing else cells
        rows, share = make_tetrahedra(nodes, cells, rho)
        level = level._replace(tetrahedra=rows, edges=edges.astype(np.float32), mass_fraction=share.astype(np.float32))
    return level


def make_tetrahedra(nodes: np.ndarray, cells: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (i, its next along x, along y, along z) for the grid points `nodes` (n, 3) whose cell holds mass.

    And the share of the mass in the cell of each; `cells` (points, 3) says in which cell each point's mass is.
    """
    shape = np.maximum(nodes.max(0), cells.max(0)) + 2
    number, mass_in_cell = np.full(shape, -1), np.zeros(shape)
    number[tuple(nodes.T)] = np.arange(len(nodes))
    np.add.at(mass_in_cell, tuple(cells.T), mass)
    rows = np.stack([number[tuple((nodes + step).T)] for step in np.eye(4, 3, -1, dtype=int)], -1)
    rows = rows[(rows >= 0).all(1) & (mass_in_cell[tuple(nodes.T)] > 0)]
    fraction = mass_in_cell[tuple(nodes[rows[:, 0]].T)]
    return rows, fraction / fraction.sum()


def level_targets(problem: Problem, bin_: int, kind: str, extra: float = 0.0) -> tuple[np.ndarray, list[float]]:
    """Targets (targets, x, y, z) at one binning, and the width (Å) by which to blur the carried map for each.

    `kind` is "mass" (thresholded, no blur) or "density": not thresholded, at matched resolution, where a target
    sharper than the initial map is itself blurred here. Both sides are blurred by `extra` Å besides.
    """
    if kind == "mass":
        return np.stack([binned(m, bin_) for m in problem.masses]), [0.0] * len(problem.masses)
    volumes, widths = [], []
    for density, variance in zip(problem.densities, problem.residual_blurs, strict=True):
        if (sigma := np.sqrt(max(-variance, 0.0) + extra**2)) > 0:
            kernel = losses.gaussian_blur(density.shape, problem.voxel_size, sigma)
            density = np.asarray(losses.blur(jnp.asarray(density), kernel))
        volumes.append(binned(density, bin_))
        widths.append(float(np.sqrt(max(variance, 0.0) + extra**2)))
    return np.stack(volumes), widths


def signal_power(volume: np.ndarray, noise: np.ndarray, inside: np.ndarray) -> np.float32:
    """Sum of squares of a volume without its noise's, which is as strong everywhere as outside of the molecule.

    `noise` is what becomes of the noise outside alone where the volume was blurred: the volume has the molecule's
    blurred edge there.
    """
    total = np.sum(volume**2, dtype=np.float64)
    return np.float32(max(total - noise_variance(noise, inside) * volume.size, 1e-3 * total))


def noise_variance(noise: np.ndarray, inside: np.ndarray) -> float:
    """Variance of the noise outside of the molecule, 0 where nothing is outside."""
    return float(np.var(noise[~inside])) if (~inside).any() else 0.0


def rigidity_factors(problem: Problem) -> list[float]:
    """By what to multiply the weight of the rigidity for each target, to keep its proportion to what the target tells.

    The matched loss of points that are off by d, rms, is about (4π²/3) s² d², with s² the mean square spatial frequency
    of the carried map at the target's resolution, weighted by its power: a target with less detail says less against
    the rigidity. The factor is the root of s² over that of a map at 3 Å (DETAIL), halfway between a weight that stays
    and one that falls alike, and at most 1. Noise adds to it, as by Bayes' rule a prior weighs the more the noisier the
    data: NOISE times the noise's power in a volume of the molecule's size (Å³) over that of the signal.
    """
    s, power = shell_power(problem.initial, problem.voxel_size)
    volume = np.count_nonzero(problem.initial) * problem.voxel_size.prod()

    def one(rest: float, density: np.ndarray, outside: np.ndarray, inside: np.ndarray) -> float:
        weight = s**2 * power * np.exp(-4 * np.pi**2 * max(rest, 0.0) * s**2)  # a shell has about s² coefficients
        detail = weight @ s**2 / weight.sum() / DETAIL_AT_3A
        noise = noise_variance(outside, inside) * volume / signal_power(density, outside, inside)
        return float(np.sqrt(min(detail, 1.0)) + NOISE_RIGIDITY * noise)

    every = problem.residual_blurs, problem.densities, problem.solvent.densities, problem.masses > 0
    return [one(*each) for each in zip(*every, strict=True)]


def level_blur(problem: Problem, bin_: int, widths: Sequence[float]) -> losses.Blurs | None:
    """Matrices (targets, n, n) for each axis that blur a carried map by the widths (Å), None where none is wanted."""
    if max(widths) < 1e-3:
        return None
    shape = tuple(n // bin_ for n in problem.initial.shape)
    each = [losses.gaussian_blur(shape, bin_ * problem.voxel_size, w) for w in widths]
    return tuple(jnp.stack(axis) for axis in zip(*each, strict=True))
