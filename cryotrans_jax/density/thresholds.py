"""Choose thresholds that separate a molecule from noise, and take the mass above them."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map

DALTON = 1.21  # Å³: volume of a dalton of protein, of 0.73 cm³/g
MEDIAN = 0.8741  # of a Gaussian's absolute deviations above 0.3, in standard deviations


@dataclass(frozen=True)
class ThresholdRules:
    """How a threshold is chosen where none is given.

    Attributes:
        fraction: of the positive mass above the noise that lies above the threshold.
        sigmas: standard deviations of the noise above the solvent that noise hardly ever exceeds.
        max_noise: fraction of the maximum; a target with stronger noise is blurred before its mass is taken.
        max_blur: limit of that blur (standard deviation), Å.
        finest: resolution at which a target's mass is taken, if the target's own is finer, Å. Motions are found by the
            mass, and above a threshold a sharp map with noise is in pieces.
    """

    fraction: float = 0.98
    sigmas: float = 3.5
    max_noise: float = 0.15
    max_blur: float = 8.0
    finest: float = 6.0


DEFAULT = ThresholdRules()


def choose_threshold(density: np.ndarray, rules: ThresholdRules = DEFAULT) -> float:
    """Choose the threshold that keeps a fraction of the positive mass above the solvent noise.

    Most of a box is solvent, so the noise is taken to be symmetric about the map's median. Its limit is `sigmas`
    standard deviations, measured below the median. Among the voxels above that limit, the threshold is where the
    strongest hold `fraction` of the mass. In a map without noise the limit is about zero, and the
    fraction alone decides.

    Raises:
        InputError: no density is above the noise.
    """
    limit = max(noise_limit(density, rules.sigmas), 0.0)
    kept = density[density > limit]
    if not kept.size:
        raise InputError(
            f"the map's maximum of {density.max():g} is not above its noise, which by the histogram reaches "
            f"{limit:g}: give a threshold, or a map in which the molecule fills less than half of the box"
        )
    return mass_fraction_threshold(kept, rules.fraction)


def noise_limit(density: np.ndarray, sigmas: float = DEFAULT.sigmas) -> float:
    """Density that solvent noise hardly ever exceeds; see `choose_threshold`.

    Where a map was masked, or resampled from a smaller box, it is 0 or nearly so and shows no noise. So deviations of
    less than 0.3 standard deviations are left out: in noise they are a known share, in empty regions they are all.
    """
    values = density.ravel()
    solvent = float(np.median(values))
    below = solvent - values[values < solvent]
    if below.size <= 0.05 * values.size:
        return solvent
    noise = float(np.sqrt(np.mean(below**2, dtype=np.float64)))
    for _ in range(4):
        noise = float(np.median(below[below > 0.3 * noise])) / MEDIAN
    return solvent + sigmas * noise


def denoise(map_: Map, rules: ThresholdRules = DEFAULT) -> tuple[Map, float]:
    """Blur a map just enough that its noise stays below `max_noise` of its maximum.

    Returns:
        The map, and the width (standard deviation) of the blur in Å.
    """
    width, denoised = 0.0, map_
    while (
        noise_limit(denoised.density, rules.sigmas) > rules.max_noise * denoised.density.max()
        and width < rules.max_blur
    ):
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
    map_: Map, threshold: float | None, name: str, volume: float | None = None, rules: ThresholdRules = DEFAULT
) -> tuple[np.ndarray, dict]:
    """Set the density below a threshold, negative values and dust to 0.

    Args:
        map_: the map.
        threshold: None: the one that encloses `volume`, or without a volume that of `choose_threshold`.
        name: the map's, for messages.
        volume: Å³.
        rules: for `choose_threshold`.

    Returns:
        The density, and a report: the threshold, how it was chosen, and what it keeps.

    Raises:
        InputError: no density is above the threshold.
    """
    chosen = "given" if threshold is not None else "by rule" if volume is None else "by volume"
    if threshold is None:
        threshold = choose_threshold(map_.density, rules) if volume is None else enclosing_threshold(map_, volume)
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


def carried_mass(density: np.ndarray, threshold: float, dust: float = 0.01) -> np.ndarray:
    """Positive density at or above the threshold, without dust; zero elsewhere.

    Dust is a connected piece with less than this fraction of the mass of the largest one: solvent noise leaves such
    pieces all over the box at any threshold that shows the whole molecule.
    """
    mass = np.where((density >= threshold) & (density > 0), density, 0).astype(np.float32)
    inside = mass > 0
    pieces, count = ndimage.label(inside, structure=np.ones((3, 3, 3)))
    if count < 2:
        return mass
    piece, own = pieces[inside], mass[inside]
    held = np.bincount(piece, own)
    mass[inside] = np.where(held[piece] < dust * held[1:].max(), 0, own)
    return mass
