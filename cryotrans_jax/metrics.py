"""How near a predicted map or model is to a reference: Fourier shell correlation, CA displacement."""

import os

import gemmi
import numpy as np
import scipy.fft
from jaxtyping import Float
from scipy import ndimage

from cryotrans_jax.atoms import common_ca, simulate_map
from cryotrans_jax.files import InputError
from cryotrans_jax.maps import Map, same_grid

MOVED = 3.0  # Å from the initial model beyond which an atom counts as moved


def fsc(
    a: Float[np.ndarray, "x y z"], b: Float[np.ndarray, "x y z"], voxel_size: float | Float[np.ndarray, "3"]
) -> tuple[Float[np.ndarray, "shells"], Float[np.ndarray, "shells"]]:
    """Frequency [1/Å] and Fourier shell correlation of each shell up to Nyquist, for two maps on one grid.

    FSC(s) = Re Σ F_a F_b* / √(Σ |F_a|² Σ |F_b|²), sums over the shell about s (Harauz and van Heel, Optik 73,
    1986). A shell is as wide as the shortest side of the box allows. A shell without power correlates by 0.
    """
    voxel_size = np.broadcast_to(np.asarray(voxel_size, np.float64), 3)
    side = np.array(a.shape) * voxel_size
    last = int(0.5 * side.min() / voxel_size.max() + 1e-6)  # the margin: n / 2 is n / 2 despite rounding
    shell, weight = _shells(a.shape, voxel_size)
    keep = shell <= last
    shell, weight = shell[keep], np.broadcast_to(weight, keep.shape)[keep]
    fa, fb = (scipy.fft.rfftn(np.asarray(v, np.float64), workers=os.cpu_count())[keep] for v in (a, b))

    def power(f, g):
        return np.bincount(shell, weight * (f.real * g.real + f.imag * g.imag), last + 1)

    norm = np.sqrt(power(fa, fa)) * np.sqrt(power(fb, fb))
    return np.arange(last + 1) / side.min(), power(fa, fb) / np.where(norm > 0, norm, np.inf)


def resolution_at(
    frequency: Float[np.ndarray, "shells"], correlation: Float[np.ndarray, "shells"], threshold: float
) -> float:
    """The resolution in Å at which a Fourier shell correlation first falls below a threshold.

    Linear between shells, the zeroth left out; Nyquist where the curve stays above.
    """
    below = np.flatnonzero(correlation[1:] < threshold) + 1
    if not len(below):
        return float(1 / frequency[-1])
    i = below[0]
    if i == 1:
        return float(1 / frequency[1])
    return float(1 / np.interp(-threshold, -correlation[i - 1 : i + 1], frequency[i - 1 : i + 1]))


def map_fsc(map: Map, reference: Map) -> tuple[Float[np.ndarray, "shells"], Float[np.ndarray, "shells"]]:
    """Frequency [1/Å] and Fourier shell correlation of two maps.

    Raises:
        InputError: their grids differ.
    """
    if difference := same_grid(map, reference):
        raise InputError(f"the maps are on different grids ({difference}): resample one on the other's grid")
    return fsc(map.density, reference.density, map.voxel_size)


def model_map_fsc(
    map: Map, structure: gemmi.Structure, resolution: float
) -> tuple[Float[np.ndarray, "shells"], Float[np.ndarray, "shells"]]:
    """Frequency [1/Å] and Fourier shell correlation of a map and a model's, simulated at a resolution [Å]."""
    reference = simulate_map(structure, map.density.shape, map.voxel_size, map.origin, resolution)
    return fsc(map.density, reference.density, map.voxel_size)


def correlation(a: Float[np.ndarray, "x y z"], b: Float[np.ndarray, "x y z"]) -> float:
    """Pearson's correlation of two maps on one grid, over all voxels."""
    a, b = (v - v.mean(dtype=np.float64).astype(v.dtype) for v in (a, b))
    aa, ab, bb = (np.sum(u * v, dtype=np.float64) for u, v in ((a, a), (a, b), (b, b)))
    return float(ab / np.sqrt(aa * bb))


def matched(map: Map, target: Map, variance: float) -> tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "x y z"]]:
    """A map's density blurred to a target's resolution and scaled to fit it best, and the target's, on one grid.

    `variance` (Å²) is that of the Gaussian that takes the map to the target; where it is negative, the target is the
    sharper one and is blurred instead.
    """
    width = np.sqrt(abs(variance)) / map.voxel_size
    blur = lambda density: ndimage.gaussian_filter(density, width, mode="constant")  # noqa: E731
    a, b = (blur(map.density), target.density) if variance > 0 else (map.density, blur(target.density))
    return np.vdot(a, b) / max(np.vdot(a, a), 1e-30) * a, b


def ca_displacement(
    predicted: gemmi.Structure, reference: gemmi.Structure, initial: gemmi.Structure | None = None
) -> dict[str, int | float]:
    """Distances in Å from predicted to reference CA atoms, not superposed: n, rmsd, median, max.

    With `initial` also where the prediction started (initial_rmsd), and the same over the moved_n atoms that
    are over 3 Å from there in the reference (moved_rmsd, moved_initial_rmsd; absent where none is).

    Raises:
        InputError: there is no CA atom in common.
    """
    distance = _distance(*common_ca(reference, predicted))
    result = {
        "n": len(distance),
        "rmsd": _rms(distance),
        "median": float(np.median(distance)),
        "max": float(distance.max()),
    }
    if initial is not None:
        target, end, start = common_ca(reference, predicted, initial)
        left, whole = _distance(target, end), _distance(target, start)
        far = whole > MOVED
        result |= {"initial_rmsd": _rms(whole), "moved_n": int(far.sum())}
        if far.any():
            result |= {"moved_rmsd": _rms(left[far]), "moved_initial_rmsd": _rms(whole[far])}
    return result


def path_distance(frames: Float[np.ndarray, "frames n 3"], path: Float[np.ndarray, "path n 3"]) -> float:
    """How far a known path is from a trajectory: mean over its models of the least RMSD [Å] to any frame."""
    squared = ((path[:, None] - frames[None]) ** 2).sum(-1).mean(-1)
    return float(np.sqrt(squared.min(1)).mean())


def _shells(shape, voxel_size):
    """For each coefficient of a real transform, its shell, and how often it stands in the complex one."""
    axes = [scipy.fft.fftfreq(n, d) for n, d in zip(shape[:2], voxel_size[:2], strict=True)]
    axes.append(scipy.fft.rfftfreq(shape[2], voxel_size[2]))
    s = np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
    weight = np.full(len(axes[2]), 2.0)
    weight[0] = 1
    if shape[2] % 2 == 0:
        weight[-1] = 1
    return np.rint(s * (np.array(shape) * voxel_size).min()).astype(np.int32), weight


def _distance(a, b):
    """The distances between paired points."""
    return np.linalg.norm(a - b, axis=-1)


def _rms(values) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))
