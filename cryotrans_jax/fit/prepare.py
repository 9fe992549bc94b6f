"""Prepare maps for a fit: thresholds, one frame, the crop to the mass."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from cryotrans_jax.core.grid import Frame
from cryotrans_jax.density.boxes import bounding_box, crop
from cryotrans_jax.density.molecule import outline
from cryotrans_jax.density.noise import Noise, measure_noise
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.density.simulation import SIGMA
from cryotrans_jax.density.spectrum import SharpeningRules, blur_between, sharpen, sharpening_variance
from cryotrans_jax.density.thresholds import ThresholdRules, apply_threshold, denoise
from cryotrans_jax.fit.options import Preparation, Resolutions, Thresholds
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.io.maps import Map

CROP_MULTIPLE = 8  # the crop starts and ends on multiples of this many voxels, so that every level's bins fit


def prepare(
    initial: Map,
    targets: Sequence[Map],
    resolutions: Resolutions = Resolutions(),
    thresholds: Thresholds = Thresholds(),
    *,
    halves: Sequence[tuple[Map, Map] | None] | None = None,
    waypoints: Sequence[float] = (),
    chain: Chain | None = None,
    rules: Preparation = Preparation(),
) -> Problem:
    """Prepare the fit of `initial` to each of `targets`, all on one grid.

    Args:
        initial: the initial map.
        targets: the target maps; with `waypoints` the maps that one trajectory passes, the last of them at time 1.
        resolutions: of the maps. With both the blur between them is that of molmap's Gaussians; otherwise it is
            estimated by `relative_blur`.
        thresholds: of the maps. Where a target's is chosen by rule, this is done after `denoise` removed the noise.
        halves: the two half-maps of each target, or None; they show its noise.
        waypoints: rising times of the targets but the last.
        chain: of a model of the initial map.
        rules: of the preparation.

    Raises:
        InputError: no density is above a threshold.
    """
    start = Thresholded.of(initial, "initial map", thresholds.initial, thresholds.volume, rules.thresholds)
    known = resolutions.of_targets(len(targets))
    named = zip(names_of(len(targets), len(waypoints)), targets, known, strict=True)
    ends = [threshold_target(*each, thresholds, rules.thresholds) for each in named]
    pairs = zip(targets, known, strict=True)
    blurs = np.array([blur_between(initial, target, resolutions.initial, own) for target, own in pairs])
    sharpenings = sharpening_variances(initial, targets, ends, blurs, rules.sharpening)
    size, whole = initial.voxel_size, (np.zeros(3, int), np.array(start.mass.shape))
    low, high = to_multiple(*(whole if rules.whole_box else padded_box(start, *ends, margin=rules.margin / size)))
    scale = start.mass.max()

    def cropped(density: Float[np.ndarray, "x y z"]) -> Map:
        return Map(crop(density, low, high), size, initial.origin + low * size)

    each = zip(targets, sharpenings, ends, strict=True)
    shown = [
        cropped(sharpen(target, gain).density * (start.by_rule.sum() / end.by_rule.sum() / scale))
        for target, gain, end in each
    ]
    masses = [cropped(end.mass * (start.mass.sum() / end.mass.sum() / scale)) for end in ends]
    halved = [pair and (cropped(pair[0].density), cropped(pair[1].density)) for pair in halves or [None] * len(ends)]
    measured = zip(shown, masses, halved, known, strict=True)
    noise = [measure_noise(target, mass.density > 0, pair, r, rules.noise) for target, mass, pair, r in measured]
    molecule = outline(initial, start.mass > 0, chain, thresholds.volume, rules.outline, rules.thresholds)
    return Problem(
        initial=crop(start.mass / scale, low, high),
        molecule=crop(molecule, low, high) > 0,
        targets=np.stack([mass.density for mass in masses]),
        densities=np.stack([target.density for target in shown]),
        start=low,
        voxel_size=size,
        frame=cube_about(*(whole if rules.whole_box else bounding_box(start.mass > 0)), initial, rules.whole_box),
        blurs=blurs,
        residual_blurs=blurs - sharpenings,
        denoising_blurs=np.array([end.denoised**2 for end in ends]),
        noise=np.stack([each.power for each in noise]),
        report=reports(start, ends, initial, noise),
        waypoints=tuple(waypoints),
        chain=chain,
    )


def sharpening_variances(
    initial: Map,
    targets: Sequence[Map],
    ends: Sequence["Thresholded"],
    blurs: Float[np.ndarray, "targets"],
    rules: SharpeningRules,
) -> Float[np.ndarray, "targets"]:
    """Variance (Å²) of the blur that can be removed from each target; see `sharpening_variance`."""
    each = zip(targets, ends, blurs, strict=True)
    return np.array([sharpening_variance(initial, map_, end.by_rule > 0, blur, rules) for map_, end, blur in each])


def reports(start: "Thresholded", ends: Sequence["Thresholded"], initial: Map, noise: Sequence[Noise]) -> dict:
    """What was chosen by rule and measured in the preparation."""
    return {
        "initial": start.report,
        "targets": [end.report for end in ends],
        "origin": initial.origin,
        "noise": [each.source for each in noise],
        "noisy": [end.noisy for end in ends],
    }


def threshold_target(
    name: str, target: Map, resolution: float | None, thresholds: Thresholds, rules: ThresholdRules
) -> "Thresholded":
    """Take a target's mass, at no finer a resolution (Å) than the rules have it."""
    smooth = SIGMA * float(np.sqrt(max(rules.finest**2 - resolution**2, 0.0))) if resolution else 0.0
    return Thresholded.of(target, name, thresholds.targets, thresholds.volume, rules, smooth)


def names_of(targets: int, waypoints: int) -> list[str]:
    """Names of the maps for messages: the waypoints, then the targets."""
    passed = [f"waypoint map {number + 1}" for number in range(waypoints)]
    return passed + [f"target map {number + 1}" for number in range(targets - waypoints)]


class Thresholded(NamedTuple):
    """The mass of a map above its threshold.

    Attributes:
        mass: density above the threshold, 0 elsewhere.
        by_rule: the same for the threshold that is chosen by rule.
        report: the threshold, how it was chosen, and what it keeps.
        denoised: width (standard deviation) of the blur before the mass was taken, Å.
        noisy: whether some of it removed noise.
    """

    mass: Float[np.ndarray, "x y z"]
    by_rule: Float[np.ndarray, "x y z"]
    report: dict
    denoised: float
    noisy: bool

    @classmethod
    def of(
        cls,
        map_: Map,
        name: str,
        given: float | None,
        volume: float | None,
        rules: ThresholdRules,
        smooth: float | None = None,
    ) -> "Thresholded":
        """Take a map's mass.

        Args:
            map_: the map.
            name: of the map, for messages.
            given: the threshold; None: the one that encloses `volume`, or else the rule's.
            volume: of the molecule, Å³.
            rules: by which a threshold is chosen.
            smooth: width of a blur, Å, after which noise is removed as well, before a threshold is chosen; None: the
                mass is taken from the map as it is, as it is above a given threshold.

        Raises:
            InputError: no density is above the threshold.
        """
        quiet, width = map_, 0.0
        if smooth is not None:
            blurred = ndimage.gaussian_filter(map_.density, smooth / map_.voxel_size) if smooth else map_.density
            quiet, width = denoise(replace(map_, density=blurred), rules)
        mass, report = apply_threshold(quiet if given is None else map_, given, name, volume, rules)
        chosen = given is None and volume is None
        by_rule = mass if chosen else apply_threshold(quiet, None, name, rules=rules)[0]
        total = 0.0 if given is not None else float(np.hypot(width, smooth or 0.0))
        return cls(mass, by_rule, report, total, width > 0)


def to_multiple(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The box with sides that are multiples of CROP_MULTIPLE voxels: its end may be beyond the map."""
    return low, low + -(-(high - low) // CROP_MULTIPLE) * CROP_MULTIPLE


def padded_box(*maps: Thresholded, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First voxel along each axis, and one past the last, of the box around the mass of maps with a margin (voxels).

    The first is a multiple of CROP_MULTIPLE.
    """
    inside = np.maximum.reduce([one.mass for one in maps]) > 0
    low, high = bounding_box(inside)
    margin = np.ceil(margin).astype(int)
    return np.maximum(low - margin, 0) // CROP_MULTIPLE * CROP_MULTIPLE, np.minimum(high + margin, inside.shape)


def cube_about(low: np.ndarray, high: np.ndarray, map_: Map, from_corner: bool) -> Frame:
    """Cube as wide as the longest edge of a box of voxels of a map: from the box's corner, or about its middle."""
    sides = (high - low) * map_.voxel_size
    corner = map_.origin + (low - 0.5) * map_.voxel_size
    edge = float(sides.max())
    return Frame(corner if from_corner else corner + 0.5 * (sides - edge), edge)
