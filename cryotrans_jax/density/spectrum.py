"""Power of maps by spatial frequency: the blur between two maps, and sharpening."""

from dataclasses import dataclass, replace

import numpy as np
import scipy.fft

from cryotrans_jax.density.mask import soft_edge
from cryotrans_jax.density.simulation import SIGMA
from cryotrans_jax.density.slabs import distance_within, shells
from cryotrans_jax.io import cores
from cryotrans_jax.io.maps import Map, frequencies


@dataclass(frozen=True)
class SharpeningRules:
    """How far a target may be sharpened.

    Attributes:
        distance: Å from the target's mass, beyond which its noise is measured.
        fade: Å over which that region fades in.
        max_noise: fraction of the target's power: limit on its noise after sharpening.
    """

    distance: float = 8.0
    fade: float = 4.0
    max_noise: float = 0.02


def blur_between(initial: Map, target: Map, initial_resolution: float | None, resolution: float | None) -> float:
    """Variance (Å²) of the blur that takes the initial map to the target's resolution.

    With both resolutions (Å) it is that of the Gaussians of simulated maps, else that of `relative_blur`.
    Negative where the target is sharper.
    """
    if resolution and initial_resolution:
        return SIGMA**2 * (resolution**2 - initial_resolution**2)
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
    slope = repeated_median_slope(s[good] ** 2, 0.5 * np.log(end[good] / start[good]))
    return -slope / (2 * np.pi**2)


def repeated_median_slope(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of a line through points, robust to outliers among fewer than half of them (Siegel 1982).

    It is the median over the points of the median slope to all others. SciPy has the same as
    `stats.siegelslopes`, whose module takes a third of a second to import.
    """
    others = ~np.eye(len(x), dtype=bool)
    rise, run = (np.subtract.outer(a, a)[others].reshape(len(a), -1) for a in (y, x))
    return float(np.median(np.median(rise / run, axis=1)))


def sharpening_variance(
    initial: Map, target: Map, inside: np.ndarray, variance: float, rules: SharpeningRules = SharpeningRules()
) -> float:
    """Variance (Å²) of the blur that can be removed from a target before its noise exceeds `max_noise`.

    The noise of a Fourier shell is the largest of three: the power of the density further than `distance` from the
    mass, as noise is as strong within the molecule; the power beyond twice that of the blurred initial map, which
    hardly depends on the conformation; and what the power lacks to half of that, as detail that a filter removed cannot
    be restored.

    Args:
        initial: the initial map.
        target: the target map.
        inside: where the target's mass is (bool).
        variance: of the blur that takes the initial map to the target, Å²; the result is at most this.
        rules: the numbers above.
    """
    s, power = shell_power(target.density, target.voxel_size)
    _, start = shell_power(initial.density, initial.voxel_size)
    expected = start * np.exp(-4 * np.pi**2 * variance * s**2)
    band = (s > 0.04) & (s < 0.1)
    if variance <= 0 or not band.any():
        return 0.0
    distance = distance_within(rules.distance + rules.fade, inside, target.voxel_size)
    away = 1 - soft_edge(distance - rules.distance, rules.fade)
    share_outside = np.mean(away**2)
    if share_outside < 0.02:
        return 0.0
    _, noise = shell_power(target.density * away, target.voxel_size)
    expected *= np.median(power[band] / expected[band])
    noise = np.maximum.reduce([noise / share_outside, power - 2 * expected, expected / 2 - power])
    tried = variance * np.linspace(0, 1, 41)
    gain = s**2 * np.exp(4 * np.pi**2 * tried[:, None] * s**2)  # a shell has about s² coefficients
    acceptable = gain @ noise < rules.max_noise * (gain @ power)
    return float(tried[np.flatnonzero(acceptable)[-1]]) if acceptable.any() else 0.0


def sharpen(map_: Map, variance: float) -> Map:
    """Remove a Gaussian blur of this variance (Å²) up to the Nyquist frequency; set what lies beyond to 0."""
    if variance <= 0:
        return map_
    n, v = map_.density.shape, map_.voxel_size
    s2 = sum(f**2 for f in frequencies(n, v))
    limit = (0.5 / v.max()) ** 2
    gain = np.where(s2 <= limit, np.exp(2 * np.pi**2 * variance * np.minimum(s2, limit)), 0).astype(np.float32)
    return replace(map_, density=filtered(map_.density, gain))


def filtered(density: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Multiply each Fourier coefficient of a density, as `rfftn` arranges them, by a gain."""
    workers = cores.usable()
    coefficients = scipy.fft.rfftn(density, workers=workers) * gain
    return scipy.fft.irfftn(coefficients, s=density.shape, workers=workers).astype(np.float32)


def shell_power(density: np.ndarray, voxel_size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spatial frequency (1/Å) of each Fourier shell up to Nyquist, and the mean power in it."""
    found = shell_frequencies(density.shape, voxel_size)
    transform, count, power = scipy.fft.rfftn(density, workers=cores.usable()), *np.zeros((2, len(found) + 1))
    for rows, shell in shells(density.shape, voxel_size, max(density.shape * voxel_size), len(found)):
        count += np.bincount(shell, minlength=len(count))
        power += np.bincount(shell, (np.abs(transform[rows]) ** 2).ravel(), len(count))
    return found, (power / np.maximum(count, 1))[:-1]  # the last bin is beyond Nyquist


def shell_frequencies(shape: tuple[int, ...], voxel_size: np.ndarray) -> np.ndarray:
    """Spatial frequency (1/Å) of each Fourier shell of a grid up to Nyquist; see `shell_power`."""
    width = 1.0 / max(shape * voxel_size)
    return np.arange(max(int(0.5 / max(voxel_size) / width), 1)) * width
