"""Fourier shell correlation."""

import numpy as np
import scipy.fft
from jaxtyping import Float

from cryotrans_jax.density.slabs import shells
from cryotrans_jax.io import cores


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
    weight, sums = multiplicity(a.shape[2]), np.zeros((3, last + 2))  # the last column: beyond Nyquist
    fa, fb = (scipy.fft.rfftn(np.asarray(v, np.float64), workers=cores.usable()) for v in (a, b))
    for rows, shell in shells(a.shape, voxel_size, side.min(), last + 1):
        for total, f, g in zip(sums, (fa, fb, fa), (fa, fb, fb), strict=True):
            power = weight * (f[rows].real * g[rows].real + f[rows].imag * g[rows].imag)
            total += np.bincount(shell, power.ravel(), last + 2)
    own, other, both = sums[:, : last + 1]
    norm = np.sqrt(own) * np.sqrt(other)
    return np.arange(last + 1) / side.min(), both / np.where(norm > 0, norm, np.inf)


def multiplicity(length: int) -> Float[np.ndarray, "half"]:
    """Multiplicity, in the complex transform, of each coefficient along the halved axis of a real transform."""
    times = np.full(length // 2 + 1, 2.0)
    times[0] = 1
    if length % 2 == 0:
        times[-1] = 1
    return times
