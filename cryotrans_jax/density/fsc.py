"""Fourier shell correlation."""

import os

import numpy as np
import scipy.fft
from jaxtyping import Float

from cryotrans_jax.io.maps import radial_frequency


def fsc(
    a: Float[np.ndarray, "x y z"], b: Float[np.ndarray, "x y z"], voxel_size: float | Float[np.ndarray, "3"]
) -> tuple[Float[np.ndarray, "shells"], Float[np.ndarray, "shells"]]:
    """Fourier shell correlation of two maps on one grid (Harauz and van Heel, Optik 73, 1986).

    FSC(s) = Re Σ F_a F_b* / √(Σ |F_a|² Σ |F_b|²), sums over the shell about s.

    Args:
        a: density.
        b: density on the same grid.
        voxel_size: Å, of all axes or of each.

    Returns:
        Frequency [1/Å] and correlation of each shell up to Nyquist. A shell is as wide as the shortest side of the box
        allows; a shell without power has correlation 0.
    """
    voxel_size = np.broadcast_to(np.asarray(voxel_size, np.float64), 3)
    side = np.array(a.shape) * voxel_size
    last = int(0.5 * side.min() / voxel_size.max() + 1e-6)  # margin against rounding down n / 2
    s = radial_frequency(a.shape, voxel_size)
    shell = np.rint(s * side.min()).astype(np.int32)
    keep = shell <= last
    shell, weight = shell[keep], np.broadcast_to(multiplicity(a.shape[2]), keep.shape)[keep]
    fa, fb = (scipy.fft.rfftn(np.asarray(v, np.float64), workers=os.cpu_count())[keep] for v in (a, b))

    def power(f, g):
        return np.bincount(shell, weight * (f.real * g.real + f.imag * g.imag), last + 1)

    norm = np.sqrt(power(fa, fa)) * np.sqrt(power(fb, fb))
    return np.arange(last + 1) / side.min(), power(fa, fb) / np.where(norm > 0, norm, np.inf)


def multiplicity(length: int) -> Float[np.ndarray, "half"]:
    """Multiplicity, in the complex transform, of each coefficient along the halved axis of a real transform."""
    times = np.full(length // 2 + 1, 2.0)
    times[0] = 1
    if length % 2 == 0:
        times[-1] = 1
    return times
