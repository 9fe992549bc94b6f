"""Prepare maps for a fit: thresholds, one frame, the crop to the mass, levels of binning."""

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

MAX_NOISE = 0.1  # of the maximum: a target with stronger noise is blurred before its mass is taken
MAX_BLUR = 8.0  # Å: limit of that blur
MAX_NOISE_POWER = 0.02  # fraction of a target's power: limit on its noise after sharpening
NOISE_DISTANCE = 8.0  # Å from a target's mass, beyond which its noise is measured
NOISE_FADE = 4.0  # Å over which that region fades in
DETAIL_AT_3A = 0.045  # 1/Å²: mean square spatial frequency of a map at 3 Å
NOISE_RIGIDITY = 0.5  # 1/Å³: weight of the noise in the weight of the rigidity
DUST = 0.01  # of the mass of the largest connected piece: smaller pieces are dust
DALTON = 1.21  # Å³: volume of a dalton of protein, of 0.73 cm³/g
CROP_MULTIPLE = 8  # the crop starts and ends on multiples of this many voxels, so that every level's bins fit
MAX_ROWS = 64  # rows into which the points of the largest part are divided
ROW_COST = 32  # points: cost of a row besides that of the points in it


@dataclass(frozen=True)
class Frame:
    """The unit box in space.

    Attributes:
        corner: its origin, Å.
        edge: its side, Å.
    """

    corner: np.ndarray
    edge: float

    def to_unit(self, xyz):
        """Convert positions (n, 3) from Å to the unit box."""
        return (xyz - self.corner) / self.edge

    def to_angstrom(self, x):
        """Convert positions (n, 3) from the unit box to Å."""
        return x * self.edge + self.corner


@dataclass(frozen=True)
class Problem:
    """One initial map and its targets, ready to be fitted: all on one crop of the maps' grid.

    Attributes:
        initial: initial map above its threshold, divided by its maximum.
        masses: targets above their thresholds, scaled to the total of `initial`.
        densities: targets without a threshold, sharpened as far as their noise allows, scaled as if all thresholds had
            been chosen by rule. Where the targets have half-maps, these are the first ones.
        start: first voxel of the crop on the full grid.
        voxel_size: Å.
        frame: the unit box.
        blurs: variance (Å²) of the blur that takes the initial map to each target's resolution; negative where the
            target is sharper.
        residual_blurs: the same for the sharpened `densities`, Å².
        denoising_blurs: variance (Å²) of the blur that removed the noise before the masses were taken.
        report: for each map the threshold used and the fraction of its positive mass kept.
        validation_densities: the second half-maps, treated like `densities`.
        waypoints: times at which the trajectory passes the targets but the last, where it ends; empty: one trajectory
            for each target.
        labels: the part (1, 2, ...) of each voxel of the initial map, for each trajectory; None: one part.
        stiffness: factor on the weight of the rigidity of each part.
        unit: fraction (0 to 1) of each voxel of the initial map that belongs to the asymmetric unit; for each
            trajectory where the map is divided into parts; None: no symmetry.
        rotations: rotations of the symmetry's operators, which repeat the unit.
        shifts: shifts of the operators, in unit boxes.
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
        """The mass that is carried: the whole initial map, or its asymmetric unit."""
        return self.initial if self.unit is None else self.initial * self.unit

    @property
    def trajectories(self) -> int:
        """Number of trajectories to fit: one for each target, or one through all of them."""
        return 1 if self.waypoints else len(self.masses)

    @property
    def parts(self) -> int:
        """Number of parts with a velocity field each; 0: one field for the whole."""
        return len(self.stiffness)

    def divide(
        self,
        labels: Sequence[Int[np.ndarray, "nx ny nz"]],
        stiffness: Sequence[float] | None = None,
        units: Sequence[Float[np.ndarray, "nx ny nz"]] | None = None,
    ) -> "Problem":
        """Divide the initial map into parts, for each trajectory by its label map.

        Trajectories may have different numbers of parts.

        Args:
            labels: for each trajectory the part (1, 2, ...) of each voxel of the maps' whole grid.
            stiffness: factor on the weight of the rigidity of each part; None: 1 for all.
            units: for each trajectory the fraction of each voxel that belongs to the asymmetric unit, on the whole
                grid; None: as it is.

        Raises:
            InputError: a part has no mass, or the number of weights is not that of the parts.
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
                    raise InputError(f"part {label} has no density above the initial map's threshold: leave it out")
        return found

    @property
    def labels_and_mass(self) -> Iterator[tuple[Int[np.ndarray, "x y z"], Float[np.ndarray, "x y z"]]]:
        """For each trajectory the labels of its parts, and the mass that is carried."""
        return zip(self.labels, np.broadcast_to(self.carried, self.labels.shape), strict=True)

    @property
    def solvent(self) -> "Problem":
        """The same problem with the densities set to 0 inside the masses, which leaves their noise."""
        return replace(self, densities=self.densities * (self.masses == 0))

    def select(self, targets: Sequence[int]) -> "Problem":
        """The same problem with the targets of these numbers, in this order, on the same crop."""
        names = ("masses", "densities", "blurs", "residual_blurs", "denoising_blurs", "validation_densities", "labels")
        every = {name: getattr(self, name) for name in names}
        return replace(self, **{name: None if a is None else a[list(targets)] for name, a in every.items()})

    @property
    def corner(self) -> np.ndarray:
        """Corner of the crop (outer edge of its first voxel), unit box."""
        return self.frame.to_unit(self.report["origin"] + (self.start - 0.5) * self.voxel_size)


class Rows(NamedTuple):
    """Points of several parts in rows of one part each, to evaluate fields of parts of any size in one batch.

    Attributes:
        points: numbers of each row's points among those of all parts, padded to the width.
        owner: part of each row.
        place: where each part's points are among those of all rows.
    """

    points: Int[Array, "*trajectories rows width"]
    owner: Int[Array, "*trajectories rows"]
    place: Int[Array, "*trajectories parts most"]


class Level(NamedTuple):
    """A problem at one binning, as a tuple of arrays in the unit box that passes through jit.

    Where the initial map is divided into parts, every array has a leading axis of trajectories, and `x`, `lattice`,
    `tetrahedra` and `mass_fraction` an axis of parts after it, padded to the largest part. With a symmetry, all arrays
    but `rho` are those of the asymmetric unit.

    Attributes:
        x: positions of the points of mass.
        rho: mass of the points; with parts, of the `valid` points; with a symmetry, of the points of all copies, copy
            after copy.
        corner: outer corner of the comparison grid's first voxel.
        voxel: sides of its voxels.
        lattice: control lattice of the points; None: the flow is integrated at the points.
        tetrahedra: for the rigidity, indices of nodes (of points without a lattice).
        edges: distances between neighbouring nodes.
        mass_fraction: fraction of the mass in each tetrahedron.
        valid: with parts, indices of the points of all parts, one part after the other, without padding.
        rows: with parts, the points at which the flow is integrated (the lattice's nodes if there is one), with little
            padding.
        rotations: rotations of the symmetry's operators.
        shifts: their shifts.
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
        """Points with mass of one trajectory's level, of all parts and copies."""
        return self.with_copies(self.x if self.valid is None else self.x.reshape(-1, 3)[self.valid])

    def with_copies(self, x: Float[Array, "*times unit 3"]) -> Float[Array, "*times all 3"]:
        """Points of the asymmetric unit and of all its copies, of one trajectory; `x` itself without a symmetry."""
        if self.rotations is None:
            return x
        every = jnp.einsum("gij,...nj->...gni", self.rotations, x, precision="highest") + self.shifts[:, None]
        return every.reshape(*x.shape[:-2], -1, 3)

    def for_trajectory(self, trajectory: int) -> "Level":
        """The level of one trajectory: its own where the initial map is divided, else the one that all share."""
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
    """Prepare the fit of `initial` to each of `targets`, all on one grid.

    Args:
        initial: the initial map.
        targets: the target maps; with `waypoints` the maps that one trajectory passes, the last of them at time 1.
        initial_threshold: density; None: chosen by `choose_threshold`, or so that it encloses `volume`.
        target_threshold: likewise, for all targets. If None, it is chosen after `denoise` removed the noise.
        initial_resolution: Å. With both resolutions the blur between the maps is that of molmap's Gaussians; otherwise
            it is estimated by `relative_blur`.
        target_resolutions: Å, one for each target, None where unknown.
        halves: the two half-maps of each target.
        volume: of the molecule, Å³.
        whole_box: use the maps' whole box as unit box without a crop (the paper). Otherwise the unit box is the cube
            around the initial map's mass, and everything is cropped to the mass of all maps and a margin.
        margin: Å around the mass.
        waypoints: rising times of the targets but the last.

    Raises:
        InputError: no density is above a threshold.
    """
    start_mass, report = apply_threshold(initial, initial_threshold, "initial map", volume)
    reports: dict[str, Any] = {"initial": report, "targets": []}
    masses = []
    denoised = [denoise(target) for target in targets]
    for number, target in enumerate(targets):
        source = denoised[number][0] if target_threshold is None else target
        name = f"waypoint map {number + 1}" if number < len(waypoints) else f"target map {number + 1 - len(waypoints)}"
        mass, report = apply_threshold(source, target_threshold, name, volume)
        masses.append(mass)
        reports["targets"].append(report)
    reports["origin"] = initial.origin

    scale = start_mass.max()
    scales = [start_mass.sum() / m.sum() / scale for m in masses]
    by_rule = [level is None and volume is None for level in (initial_threshold, target_threshold)]
    initial_by_rule = start_mass if by_rule[0] else apply_threshold(initial, None, "initial map")[0]
    targets_by_rule = masses if by_rule[1] else [apply_threshold(q, None, "target map")[0] for q, _ in denoised]
    density_scales = [initial_by_rule.sum() / w.sum() / scale for w in targets_by_rule]
    resolutions = target_resolutions or [None] * len(targets)
    blurs = np.array(
        [blur_between(initial, t, initial_resolution, r) for r, t in zip(resolutions, targets, strict=True)]
    )
    compared, validation_densities = zip(*halves, strict=True) if halves else (targets, None)
    sharpenings = np.array(
        [sharpening_variance(initial, t, w > 0, v) for t, w, v in zip(compared, targets_by_rule, blurs, strict=True)]
    )

    size, whole_map = initial.voxel_size, (np.zeros(3, int), np.array(start_mass.shape))
    low, high = whole_map if whole_box else padded_box(np.maximum.reduce([start_mass, *masses]) > 0, margin / size)
    high = low + -(-(high - low) // CROP_MULTIPLE) * CROP_MULTIPLE
    frame = cube_about(*(whole_map if whole_box else bounding_box(start_mass > 0)), initial, whole_box)
    crop_map = lambda a: crop(a, low, high)  # noqa: E731

    def crop_densities(maps: Sequence[Map]) -> np.ndarray:
        every = zip(maps, sharpenings, density_scales, strict=True)
        return np.stack([crop_map(sharpen(m, gain).density * s) for m, gain, s in every])

    return Problem(
        initial=crop_map(start_mass / scale),
        masses=np.stack([crop_map(m * s) for m, s in zip(masses, scales, strict=True)]),
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
    """First voxel along each axis, and one past the last, of the bounding box of `inside` with a margin (voxels).

    The first is a multiple of CROP_MULTIPLE.
    """
    low, high = bounding_box(inside)
    margin = np.ceil(margin).astype(int)
    return np.maximum(low - margin, 0) // CROP_MULTIPLE * CROP_MULTIPLE, np.minimum(high + margin, inside.shape)


def cube_about(low: np.ndarray, high: np.ndarray, map_: Map, from_corner: bool) -> Frame:
    """Cube as wide as the longest edge of a box of voxels of a map: from the box's corner, or about its middle."""
    sides = (high - low) * map_.voxel_size
    corner = map_.origin + (low - 0.5) * map_.voxel_size
    edge = float(sides.max())
    return Frame(corner if from_corner else corner + 0.5 * (sides - edge), edge)


def choose_threshold(density: np.ndarray, fraction: float = 0.98) -> float:
    """Choose the threshold that keeps a fraction of the positive mass above the solvent noise.

    Most of a box is solvent, so the noise is taken to be symmetric about the map's median. Its limit is 3.5 standard
    deviations, measured below the median. Among the voxels above that limit, the threshold is where the strongest hold
    `fraction` of the mass. In a map without noise the limit is about zero, and the fraction alone decides.

    Raises:
        InputError: no density is above the noise.
    """
    limit = max(noise_limit(density), 0.0)
    kept = density[density > limit]
    if not kept.size:
        raise InputError(
            f"the map's maximum of {density.max():g} is not above its noise, which by the histogram reaches "
            f"{limit:g}: give a threshold, or a map in which the molecule fills less than half of the box"
        )
    return mass_fraction_threshold(kept, fraction)


def noise_limit(density: np.ndarray) -> float:
    """Density that solvent noise hardly ever exceeds; see `choose_threshold`."""
    values = density.ravel()
    solvent = float(np.median(values))
    below = solvent - values[values < solvent]
    noise = 1.4826 * float(np.median(below)) if below.size > 0.05 * values.size else 0.0
    return solvent + 3.5 * noise


def denoise(map_: Map) -> tuple[Map, float]:
    """Blur a map just enough that its noise stays below MAX_NOISE of its maximum.

    Returns:
        The map, and the width (standard deviation) of the blur in Å.
    """
    width, denoised = 0.0, map_
    while noise_limit(denoised.density) > MAX_NOISE * denoised.density.max() and width < MAX_BLUR:
        width = np.sqrt(2) * width or float(map_.voxel_size.min())
        denoised = replace(map_, density=ndimage.gaussian_filter(map_.density, width / map_.voxel_size))
    return denoised, width


def mass_fraction_threshold(values: np.ndarray, fraction: float = 0.98) -> float:
    """Value at and above which positive values hold a fraction of their sum."""
    falling = np.sort(values)[::-1]
    mass = np.cumsum(falling, dtype=np.float64)
    return float(falling[np.searchsorted(mass, fraction * mass[-1])])


def enclosing_threshold(map_: Map, volume: float) -> float:
    """Threshold at which a map without its dust encloses a volume (Å³), to 2 % or as near as the noise allows.

    Raises:
        InputError: less of the box than that has positive density.
    """
    values = np.sort(map_.density, axis=None)[::-1]
    wanted, positive = volume / np.prod(map_.voxel_size), np.count_nonzero(values > 0)
    if wanted > positive:
        raise InputError(
            f"the molecule takes {volume:.0f} Å³ and only {positive / wanted * volume:.0f} Å³ of the map are positive: "
            "give another molecular weight, or a threshold"
        )
    levels, count = {}, wanted
    for _ in range(6):  # the first or second is right where there is little dust, as at a threshold for the molecule
        level = float(values[min(max(round(count), 1), positive) - 1])
        found = np.count_nonzero(carried_mass(map_.density, level))
        levels[abs(found - wanted)] = level
        if min(levels) <= 0.02 * wanted:
            break
        count = np.sqrt(count * count * wanted / max(found, 1))  # half the way in logarithms, as dust joins suddenly
    return levels[min(levels)]


def apply_threshold(
    map_: Map, threshold: float | None, name: str, volume: float | None = None
) -> tuple[np.ndarray, dict]:
    """Set the density below a threshold, negative values and dust to 0.

    Args:
        map_: the map.
        threshold: None: the one that encloses `volume`, or without a volume that of `choose_threshold`.
        name: the map's, for messages.
        volume: Å³.

    Returns:
        The density, and a report: the threshold, how it was chosen, and what it keeps.

    Raises:
        InputError: no density is above the threshold.
    """
    chosen = "given" if threshold is not None else "by rule" if volume is None else "by volume"
    if threshold is None:
        threshold = choose_threshold(map_.density) if volume is None else enclosing_threshold(map_, volume)
    mass = carried_mass(map_.density, threshold)
    if not mass.any():
        raise InputError(
            f"the {name} has no density above the threshold {threshold:g} (its maximum is {map_.density.max():g}): "
            "give a lower threshold, or negate a map in which the molecule is dark"
        )
    positive = map_.density[map_.density > 0].sum(dtype=np.float64)
    kept = np.count_nonzero(mass)
    return mass, {
        "threshold": float(threshold),
        "threshold_chosen": chosen,
        "share_of_mass": float(mass.sum(dtype=np.float64) / positive),
        "volume": float(kept * np.prod(map_.voxel_size)),
        "specks": 1 - kept / np.count_nonzero((map_.density >= threshold) & (map_.density > 0)),
        "clear": None
        if chosen == "by rule"
        else threshold_in_sigmas(threshold, *solvent_noise(np.sort(map_.density, axis=None))),
    }


def threshold_in_sigmas(threshold: float, solvent: float, noise: float) -> float:
    """Threshold above the solvent in standard deviations of the noise, at most 99."""
    return float(min((threshold - solvent) / noise, 99.0)) if noise > 0 else 99.0


def solvent_noise(values: np.ndarray) -> tuple[float, float]:
    """Density of the solvent, and standard deviation of the noise, of sorted values.

    The solvent's density is `common_value`. Deviations are measured below it. In a masked map most values are one
    number.
    """
    solvent = common_value(values)
    below, equal = values[values < solvent].astype(np.float64), np.count_nonzero(values == solvent)
    return solvent, float(np.sqrt(2 * ((solvent - below) ** 2).sum() / max(2 * len(below) + equal, 1)))


def common_value(values: np.ndarray) -> float:
    """Middle of the shortest interval that contains half of the sorted values: the solvent's density.

    Unlike the median it hardly depends on the fraction of the box that the molecule fills, if the box has room.
    """
    half = len(values) // 2
    first = np.argmin(values[half : 2 * half] - values[:half])
    return float(0.5 * (values[first] + values[first + half]))


def carried_mass(density: np.ndarray, threshold: float) -> np.ndarray:
    """Positive density at or above the threshold, without dust; zero elsewhere.

    Dust is a connected piece with less than a hundredth of the mass of the largest one: solvent noise leaves such
    pieces all over the box at any threshold that shows the whole molecule.
    """
    mass = np.where((density >= threshold) & (density > 0), density, 0).astype(np.float32)
    pieces, count = ndimage.label(mass > 0, structure=np.ones((3, 3, 3)))
    if count < 2:
        return mass
    held = np.bincount(pieces.ravel(), mass.ravel())
    return mass * (held >= DUST * held[1:].max())[pieces]


def blur_between(initial: Map, target: Map, initial_resolution: float | None, resolution: float | None) -> float:
    """Variance (Å²) of the blur that takes the initial map to the target's resolution.

    With both resolutions (Å) it is that of molmap's Gaussians (σ = 0.225 × resolution), else that of `relative_blur`.
    Negative where the target is sharper.
    """
    if resolution and initial_resolution:
        return 0.225**2 * (resolution**2 - initial_resolution**2)
    return relative_blur(initial, target)


def relative_blur(initial: Map, target: Map) -> float:
    """Variance (Å²) of the Gaussian blur that takes the initial map's rotationally averaged spectrum to the target's.

    Amplitudes averaged over shells hardly depend on the conformation, so ½ log of the ratio of powers is a straight
    line in s² with slope −2π² σ². The line is fitted from 1/25 Å⁻¹ to where the target's power reaches its noise floor
    or has fallen to 0.3 %, with repeated medians (Siegel 1982), so that the edge of a low-pass filter has little
    influence.
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
    """Variance (Å²) of the blur that can be removed from a target before its noise exceeds MAX_NOISE_POWER.

    The noise of a Fourier shell is the largest of three: the power of the density further than NOISE_DISTANCE from the
    mass, as noise is as strong within the molecule; the power beyond twice that of the blurred initial map, which
    hardly depends on the conformation; and what the power lacks to half of that, as detail that a filter removed cannot
    be restored.

    Args:
        initial: the initial map.
        target: the target map.
        inside: where the target's mass is (bool).
        variance: of the blur that takes the initial map to the target, Å²; the result is at most this.
    """
    s, power = shell_power(target.density, target.voxel_size)
    _, start = shell_power(initial.density, initial.voxel_size)
    expected = start * np.exp(-4 * np.pi**2 * variance * s**2)
    band = (s > 0.04) & (s < 0.1)
    distance = ndimage.distance_transform_edt(~inside, sampling=target.voxel_size)
    away = (0.5 - 0.5 * np.cos(np.pi * np.clip((distance - NOISE_DISTANCE) / NOISE_FADE, 0, 1))).astype(np.float32)
    share_outside = np.mean(away**2)
    if variance <= 0 or share_outside < 0.02 or not band.any():
        return 0.0
    _, noise = shell_power(target.density * away, target.voxel_size)
    expected *= np.median(power[band] / expected[band])
    noise = np.maximum.reduce([noise / share_outside, power - 2 * expected, expected / 2 - power])
    tried = variance * np.linspace(0, 1, 41)
    gain = s**2 * np.exp(4 * np.pi**2 * tried[:, None] * s**2)  # a shell has about s² coefficients
    acceptable = gain @ noise < MAX_NOISE_POWER * (gain @ power)
    return float(tried[np.flatnonzero(acceptable)[-1]]) if acceptable.any() else 0.0


def sharpen(map_: Map, variance: float) -> Map:
    """Remove a Gaussian blur of this variance (Å²) up to the Nyquist frequency; set what lies beyond to 0."""
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
    """Spatial frequency (1/Å) of each Fourier shell up to Nyquist, and the mean power in it."""
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
    """Slices of the bounding box of `inside` with a margin (voxels), as far as the grid extends."""
    low, high = bounding_box(inside)
    ends = zip(low - margin, high + margin, inside.shape, strict=True)
    return tuple(slice(max(int(a), 0), min(int(b), n)) for a, b, n in ends)


def crop(a: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """a[low:high], with zeros beyond the end of the array."""
    part = a[tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))].astype(np.float32)
    return np.pad(part, [(0, hi - lo - n) for lo, hi, n in zip(low, high, part.shape, strict=True)])


def binned(density: np.ndarray, factor: int) -> np.ndarray:
    """Bin a density: the total in voxels `factor` times as wide, as if every voxel's value were splatted there.

    Unlike block sums this keeps the centre of mass as well as the mass, and carried points are compared with it. Values
    within half a coarse voxel of the edge of the box stay in the outermost voxels.
    """
    for axis, n in enumerate(density.shape):
        at = (np.arange(n) + 0.5) / factor - 0.5
        coarse = np.clip(at, 0, n // factor - 1)[:, None] - np.arange(n // factor)
        weights = np.maximum(1 - np.abs(coarse), 0).astype(density.dtype)
        density = np.moveaxis(np.tensordot(density, weights, axes=([axis], [0])), -1, axis)
    return density


def block_points(mass: np.ndarray, factor: int | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Represent the mass in blocks of voxels as points at the blocks' centres of mass.

    Mass and centre of mass are kept exactly.

    Args:
        mass: mass of each voxel.
        factor: voxels along a block's side, one number or one for each axis.

    Returns:
        Positions, in voxels from the outer edge of the first voxel; masses; and which blocks have mass (bool).
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
    """The problem at one binning.

    Args:
        problem: the prepared maps.
        bin_: voxel size of the comparison grid, in voxels of the map.
        sampling: distance between the points of mass, in voxels of the map.
        spacing: of the control lattice, Å; 0 integrates the flow at every point.
        tetrahedra: whether to make those of the rigidity.
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
    """Add to a level of the asymmetric unit what its copies need; the level itself without a symmetry."""
    if problem.rotations is None:
        return level
    operators = [np.asarray(a, np.float32) for a in (problem.rotations, problem.shifts)]
    if level.has_parts:
        operators = [np.stack([a] * len(level.x)) for a in operators]
    return level._replace(rho=np.tile(level.rho, len(problem.rotations)), rotations=operators[0], shifts=operators[1])


def to_device(level: Level) -> Level:
    """The level with JAX's arrays.

    It is made with NumPy's, because operations that JAX runs outside of a program are compiled anew for every shape.
    """
    return jax.tree.map(jnp.asarray, level)


def batch_levels(levels: Sequence[Sequence[Level]], stiffness: Sequence[float]) -> Level:
    """Stack the levels of each trajectory's parts; a part's weight in the rigidity is its mass times its stiffness.

    Trajectories with fewer parts than others are padded with parts of no mass.
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
    """Arrange parts of these numbers of points in rows, for each trajectory, of the width that costs least."""
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
    """`make_level` for this mass, a part of the initial map's, under one velocity field.

    `sides` is the size of the lattice's box in sampled voxels, where it should be larger than the mass.
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
        rows, mass_fraction = make_tetrahedra(nodes, cells, rho)
        level = level._replace(
            tetrahedra=rows, edges=edges.astype(np.float32), mass_fraction=mass_fraction.astype(np.float32)
        )
    return level


def make_tetrahedra(nodes: np.ndarray, cells: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tetrahedra of the rigidity: rows (i, its next node along x, along y, along z), where the cell at i has mass.

    Args:
        nodes: grid points (n, 3).
        cells: the cell (points, 3) that contains each point of mass.
        mass: of the points.

    Returns:
        The rows, and the fraction of the mass in the cell of each.
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
    """Targets at one binning, and the width (Å) of the blur of the carried map for each.

    Args:
        problem: the prepared maps.
        bin_: voxel size, in voxels of the map.
        kind: "mass" (thresholded, no blur) or "density" (not thresholded, at matched resolution: a target sharper than
            the initial map is itself blurred here).
        extra: blur of both sides in addition, Å ("density" only).
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
    """Sum of squares of a volume without that of its noise.

    The noise is as strong everywhere as outside of the molecule. `noise` is the volume there, treated alike but without
    the molecule: in a blurred volume the molecule's edge extends to the outside.
    """
    total = np.sum(volume**2, dtype=np.float64)
    return np.float32(max(total - noise_variance(noise, inside) * volume.size, 1e-3 * total))


def noise_variance(noise: np.ndarray, inside: np.ndarray) -> float:
    """Variance of the noise outside of the molecule; 0 where there is no outside."""
    return float(np.var(noise[~inside])) if (~inside).any() else 0.0


def rigidity_factors(problem: Problem) -> list[float]:
    """Factor on the weight of the rigidity for each target, which keeps it in proportion to the target's information.

    The matched loss of points with an rms error d is about (4π²/3) s² d², with s² the mean square spatial frequency of
    the carried map at the target's resolution, weighted by its power. A target with less detail weighs less against the
    rigidity. The factor is the square root of s² over that of a map at 3 Å (DETAIL_AT_3A), at most 1: halfway between a
    constant weight and one that is proportional to s².

    Noise adds to the factor, as by Bayes' rule a prior weighs more the noisier the data are: NOISE_RIGIDITY times the
    power of the noise in a volume of the molecule's size (Å³) over that of the signal.
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
    """Matrices (targets, n, n) for each axis that blur a carried map by the widths (Å); None where none is needed."""
    if max(widths) < 1e-3:
        return None
    shape = tuple(n // bin_ for n in problem.initial.shape)
    each = [losses.gaussian_blur(shape, bin_ * problem.voxel_size, w) for w in widths]
    return tuple(jnp.stack(axis) for axis in zip(*each, strict=True))
