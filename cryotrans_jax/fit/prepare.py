"""Prepare maps for a fit: thresholds, one frame, the crop to the mass, levels of binning."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cryotrans_jax.core.grid import Frame, bounding_box, crop
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.density.spectrum import blur_between, sharpen, sharpening_variance
from cryotrans_jax.density.thresholds import apply_threshold, denoise
from cryotrans_jax.io.maps import Map

CROP_MULTIPLE = 8  # the crop starts and ends on multiples of this many voxels, so that every level's bins fit


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
