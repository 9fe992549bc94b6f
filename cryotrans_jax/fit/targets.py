"""What a stage compares the carried map with: targets at one binning, their power, and the blurs that match them."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from cryotrans_jax.core import losses
from cryotrans_jax.core.grid import binned
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.density.spectrum import shell_power


def matched_widths(problem: Problem, extra: float = 0.0) -> list[float]:
    """Width (Å) of the blur that takes the carried map to each target's resolution, with `extra` (Å) in addition."""
    return [float(np.sqrt(max(variance, 0.0) + extra**2)) for variance in problem.residual_blurs]


def at_matched_resolution(
    problem: Problem, density: np.ndarray, bin_: int, target: int, extra: float = 0.0
) -> np.ndarray:
    """A density at one binning, not thresholded, at matched resolution.

    Args:
        problem: the prepared maps.
        density: the target's, or its solvent's.
        bin_: voxel size, in voxels of the map.
        target: number of the target; if it is sharper than the initial map the density is blurred here.
        extra: blur in addition, Å.
    """
    if (sigma := np.sqrt(max(-problem.residual_blurs[target], 0.0) + extra**2)) > 0:
        kernel = losses.gaussian_blur(density.shape, problem.voxel_size, sigma)
        density = np.asarray(losses.blur(jnp.asarray(density), kernel))
    return binned(density, bin_)


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


@dataclass(frozen=True)
class Balance:
    """How stiffness is weighed against what a target tells.

    Attributes:
        detail_at_3a: mean square spatial frequency of a map at 3 Å, 1/Å².
        noise_weight: weight of the target's noise, 1/Å³; 1 expects strains of about 9 % in cubes of 4 Å.
        noisy_slip: strain beyond which the rigidity hardly grows where the noise decides how stiff the molecule is.
    """

    detail_at_3a: float = 0.045
    noise_weight: float = 1.0
    noisy_slip: float = 0.1


def rigidity_factor(problem: Problem, target: int, balance: Balance = Balance()) -> float:
    """Factor on the weight of the rigidity: the sum of `rigidity_parts`."""
    return sum(rigidity_parts(problem, target, balance))


def rigidity_parts(problem: Problem, target: int, balance: Balance = Balance()) -> tuple[float, float]:
    """What keeps the weight of the rigidity in proportion to the target's information.

    The matched loss of points with an rms error d is about (4π²/3) s² d², with s² the mean square spatial frequency of
    the carried map at the target's resolution, weighted by its power. A target with less detail weighs less against the
    rigidity. The first part is the square root of s² over that of a map at 3 Å, at most 1: halfway between a
    constant weight and one that is proportional to s².

    The second part is the noise's, as by Bayes' rule a prior weighs more the noisier the data are: `noise_weight` times
    the power of the noise in a volume of the molecule's size (Å³) over that of the signal. The noise is that of the
    frequencies at which displacements are seen: the loss changes with a displacement by s² times the carried map's
    power, and where the noise of a map is limited to its resolution it is much stronger there than the variance of a
    voxel says.

    Args:
        problem: the prepared maps.
        target: number of the target.
        balance: how stiffness is weighed against what the target tells.

    Returns:
        The parts of the detail and of the noise.
    """
    s, power = shell_power(problem.initial, problem.voxel_size)
    volume = np.count_nonzero(problem.molecule) * problem.voxel_size.prod()
    inside, density = problem.targets[target] > 0, problem.densities[target]
    rest = max(problem.residual_blurs[target], 0.0)
    weight = s**2 * power * np.exp(-4 * np.pi**2 * rest * s**2)  # a shell has about s² coefficients
    detail = weight @ s**2 / weight.sum() / balance.detail_at_3a
    seen = weight * s**2
    noise = float(seen @ problem.noise[target] / seen.sum())
    noise *= volume / signal_power(density, density * ~inside, inside)
    return float(np.sqrt(min(detail, 1.0))), float(balance.noise_weight * noise)


def level_blur(problem: Problem, bin_: int, widths: Sequence[float], target: int) -> losses.Blur | None:
    """Matrices (n, n) for each axis that blur a carried map by the target's width (Å).

    None where no target needs a blur; `widths` are those of all targets.
    """
    if max(widths) < 1e-3:
        return None
    shape = tuple(n // bin_ for n in problem.initial.shape)
    return losses.gaussian_blur(shape, bin_ * problem.voxel_size, widths[target])
