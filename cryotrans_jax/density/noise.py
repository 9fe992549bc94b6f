"""The noise of a target, by spatial frequency: from its half-maps, its solvent, or the molecule's surface."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from cryotrans_jax.density.fsc import fsc
from cryotrans_jax.density.mask import soft_edge
from cryotrans_jax.density.slabs import distance_within
from cryotrans_jax.density.spectrum import shell_frequencies, shell_power
from cryotrans_jax.io.maps import Map


@dataclass(frozen=True)
class NoiseRules:
    """How noise is measured.

    Attributes:
        fade: Å from the mass, over which the solvent's density counts more and more.
        surface: Å from the mass, within which negative density shows the noise of a target that was masked.
        nothing: fraction of that noise's standard deviation; where less is seen a target was masked.
        least: solvent that is needed, as a fraction of the volume of the mass.
    """

    fade: float = 8.0
    surface: float = 3.0
    nothing: float = 0.01
    least: float = 0.5


class Noise(NamedTuple):
    """Noise of a target.

    Attributes:
        power: of each Fourier shell, as the variance of white noise that has this power in all.
        source: where it was measured: "half-maps", "solvent" or "surface"; "none" where there is none.
    """

    power: Float[np.ndarray, "shells"]
    source: str


def measure_noise(
    target: Map,
    inside: Bool[np.ndarray, "x y z"],
    halves: tuple[Map, Map] | None = None,
    resolution: float | None = None,
    rules: NoiseRules = NoiseRules(),
) -> Noise:
    """Measure the noise of a target.

    With half-maps it is the share (1 − FSC) / (1 + FSC) of the target's power in the molecule, in each shell, whatever
    scale and sharpening the half-maps have. Otherwise noise is measured in the solvent. Around a target that was masked
    there is too little of it. But a molecule is not negative: the mean square of negative density at its surface is the
    variance of the noise, which is taken to be white up to the resolution.

    Args:
        target: the target.
        inside: where its mass is.
        halves: its two half-maps, on the same grid.
        resolution: of the target, Å; None: noise at the surface is taken to be white.
        rules: how noise is measured.
    """
    size = target.voxel_size
    distance = distance_within(max(rules.fade, rules.surface), inside, size)
    solvent = 1 - soft_edge(distance, rules.fade)
    s = shell_frequencies(target.density.shape, size)
    if halves is not None:
        near = 1 - solvent
        at, found = fsc(halves[0].density * near, halves[1].density * near, size)
        correlation = np.clip(np.interp(s, at, found), 0.0, 1.0)
        power = power_within(target.density, near, size)
        return Noise(power * (1 - correlation) / (1 + correlation), "half-maps")
    negative = target.density[(distance > 0) & (distance <= rules.surface) & (target.density < 0)]
    variance = float(np.mean(negative**2)) if negative.size else 0.0
    solvent *= np.abs(target.density) > rules.nothing * np.sqrt(variance)
    if np.sum(solvent**2) >= rules.least * np.count_nonzero(inside):
        return Noise(power_within(target.density, solvent, size), "solvent")
    limit = 1 / resolution if resolution else 1 / size.min()
    share = min(4 / 3 * np.pi * limit**3 * np.prod(size), 1.0)  # of all frequencies
    return Noise(np.where(s <= limit, variance / share, 0.0), "surface" if variance else "none")


def power_within(
    density: Float[np.ndarray, "x y z"], weight: Float[np.ndarray, "x y z"], voxel_size: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "shells"]:
    """Power of a density in each Fourier shell where a weight is, as the variance of white noise of this power.

    Where it is 0 exactly, beyond a mask or the box of a map, there is nothing.
    """
    _, power = shell_power(density * weight, voxel_size)
    return power / max(float(np.sum((weight * (density != 0)) ** 2)), 1.0)
