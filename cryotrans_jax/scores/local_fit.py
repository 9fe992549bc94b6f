"""How well a generated map fits its target in each place, and how well the target determines that place."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from cryotrans_jax.density.boxes import box_slices
from cryotrans_jax.density.slabs import distance_within
from cryotrans_jax.density.spectrum import filtered, shell_power
from cryotrans_jax.io.maps import Map, radial_frequency

INDEPENDENT = 2**-1.5  # sum of squares of a Gaussian window over its sum: what it leaves of the noise's variance


@dataclass(frozen=True)
class LocalFitRules:
    """How the maps are compared in each place.

    Attributes:
        window: standard deviation of the Gaussian window around a place, Å.
        edge: Å around the generated map's mass that are compared too.
        reach: displacement that is expected before the maps are compared (standard deviation), Å.
        floor: difference between two maps of one conformation, as a fraction of the signal's power; noise below it
            counts as that much.
        weakest: least local scale of the generated map relative to its scale in the whole target.
    """

    window: float = 5.0
    edge: float = 3.0
    reach: float = 4.0
    floor: float = 0.01
    weakest: float = 0.02


class LocalFit(NamedTuple):
    """Fit of a generated map to its target.

    Attributes:
        shift: displacement by which the density around each place would fit the target better, Å.
        uncertainty: standard deviation of that displacement by the target's noise, Å.
        residual: rms difference of the maps around each place, relative to its median over all places.
    """

    shift: Float[np.ndarray, "n"]
    uncertainty: Float[np.ndarray, "n"]
    residual: Float[np.ndarray, "n"]


def local_fit(
    carried: Float[np.ndarray, "x y z"],
    target: Map,
    noise: Float[np.ndarray, "shells"],
    inside: Bool[np.ndarray, "x y z"],
    at: Float[np.ndarray, "n 3"],
    rules: LocalFitRules = LocalFitRules(),
) -> LocalFit:
    """Compare a carried map with its target around each of some places.

    Both are filtered by signal / (signal + noise) of each Fourier shell (Wiener 1949). Around each place the
    displacement d of the carried map c is that which fits the target t best, with t(x) = a c(x − d) to first order in d
    (Lucas and Kanade 1981): F d = −Σ a ∇c (t − a c), with the Fisher information F = Σ a² ∇c ∇cᵀ / variance of the
    noise, and a displacement of `reach` expected before. The uncertainty is the square root of the trace of the inverse
    of F.

    Args:
        carried: the generated map at the target's resolution and scale, as from `metrics.matched`.
        target: the target.
        noise: power of its noise in each Fourier shell, as from `noise.measure_noise`.
        inside: where the generated map's mass is.
        at: the places, Å.
        rules: how the maps are compared.
    """
    size = target.voxel_size
    near = distance_within(rules.edge, inside, size) < np.inf
    edge = ndimage.gaussian_filter(near.astype(np.float32), rules.edge / size)
    s, signal = shell_power(carried * edge, size)
    signal /= max(float(np.sum(edge**2)), 1.0)
    noise = noise + rules.floor * signal
    gain = signal / np.maximum(signal + noise, 1e-30)
    wiener = np.interp(radial_frequency(target.density.shape, size), s, gain, right=0.0)
    c, t = filtered(carried, wiener), filtered(target.density, wiener)
    left = noise * gain**2  # of the noise after the filter
    seen = s**4 * gain**2 * signal  # power of the gradient; a shell has about s² coefficients
    at_gradients = float(seen @ left / max(seen.sum(), 1e-30)) * INDEPENDENT

    box = box_slices(near, np.ceil(3 * rules.window / size).astype(int))
    corner = target.origin + size * [along.start for along in box]
    c, t = c[box], t[box]
    voxels = (2 * np.pi) ** 1.5 * rules.window**3 / np.prod(size)  # in a window

    def around(values: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"]:
        return ndimage.gaussian_filter(values, rules.window / size, mode="constant", truncate=3)

    def sums(values: Float[np.ndarray, "x y z"]) -> Float[np.ndarray, "n"]:
        return Map(around(values), size, corner).interpolate(at) * voxels

    power = around(c * c)
    scale = np.maximum(around(c * t) / np.maximum(power, 1e-6 * power.max()), rules.weakest)
    rest, slopes = t - scale * c, np.gradient(c, *size)
    a = Map(scale, size, corner).interpolate(at)
    towards = -a[:, None] * np.stack([sums(slope * rest) for slope in slopes], -1)
    information = np.empty((len(at), 3, 3))
    for i, j in zip(*np.triu_indices(3), strict=True):
        information[:, i, j] = information[:, j, i] = a**2 * sums(slopes[i] * slopes[j])
    covariance = np.linalg.inv(information + at_gradients / rules.reach**2 * np.eye(3))
    shift = np.linalg.norm(np.einsum("nij,nj->ni", covariance, towards), axis=-1)
    uncertainty = np.sqrt(at_gradients * np.trace(covariance, axis1=1, axis2=2))
    difference = np.sqrt(np.maximum(sums(rest**2), 0.0))
    return LocalFit(shift, uncertainty, difference / max(float(np.median(difference)), 1e-30))
