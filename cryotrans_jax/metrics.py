"""How near a predicted map, model or path is to a reference, and what a path of maps keeps on its way."""

import os

import gemmi
import numpy as np
import scipy.fft
from jaxtyping import Bool, Float, Int
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from cryotrans_jax import losses
from cryotrans_jax.atoms import common_ca, simulate
from cryotrans_jax.files import InputError
from cryotrans_jax.maps import Map, frequencies, same_grid
from cryotrans_jax.programs import program

MOVED = 3.0  # Å from the initial model beyond which an atom counts as moved
ROUNDS = 20  # of the TM-score's search
MOST_FRAGMENTS = 32  # of the shortest kind from which that starts, about half of them

found_near = program(losses.fraction_in_target)


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
    reference = simulate(structure, resolution, like=map)
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


def lacking(
    density: Float[np.ndarray, "x y z"], target: Float[np.ndarray, "x y z"], voxel_size: np.ndarray, width: float
) -> float:
    """The share of a map's mass for which the target has no density, of the two at matched resolution.

    Both blurred by `width` (Å), over which density may be displaced. Noise in the target adds a little: 0.03 where it
    is three times as strong as the signal.
    """
    here, there = (ndimage.gaussian_filter(a, width / voxel_size, mode="constant") for a in (density, target))
    mass = np.maximum(density, 0)
    return 1 - float(np.vdot(mass, np.asarray(found_near(here, there))) / max(mass.sum(), 1e-30))


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


def tm_score(predicted: gemmi.Structure, reference: gemmi.Structure) -> float:
    """The TM-score (0 to 1) of a predicted model's CA atoms against the reference's, whose residues set the scale.

    max over superpositions of 1/L Σ 1 / (1 + (d / d0)²), d0 = 1.24 (L − 15)^(1/3) − 1.8 Å and at least 0.5 (Zhang and
    Skolnick, Proteins 57, 2004). Residues correspond by chain and number, so that nothing is aligned by structure as
    TM-align does; the search starts from fragments of L, L/2, L/4 ... residues and goes on with those that come near.

    Raises:
        InputError: there is no CA atom in common.
    """
    y, x = common_ca(reference, predicted)
    length = len(common_ca(reference)[0])
    d0 = max(1.24 * max(length - 15, 0) ** (1 / 3) - 1.8, 0.5)
    near, best = min(max(d0, 4.5), 8.0), 0.0
    used = np.array(list(_fragments(len(x))), np.float64)
    for _ in range(ROUNDS):
        distance = np.linalg.norm(_superposed(x, y, used) - y, axis=-1)
        best = max(best, float((1 / (1 + (distance / d0) ** 2)).sum(1).max() / length))
        used = (distance < np.maximum(near, np.partition(distance, min(3, len(x) - 1), axis=1)[:, 3:4])) * 1.0
    return best


def coverage(rebuilt: gemmi.Structure, reference: gemmi.Structure, within: float = 3.0) -> dict[str, int | float]:
    """How much of a reference's backbone a rebuilt model has found, whatever its chains and numbers are.

    Of each reference CA atom the nearest rebuilt one: `n` are paired within so many Å, both ways nearest; `coverage`
    is their share of the reference, `precision` that of the rebuilt atoms, `rmsd` (Å) that of the pairs, `order` the
    share of pairs whose next in the chain is paired as the next. Sequences are not compared.

    Raises:
        InputError: one of them has no CA atom.
    """
    (y,), (x,) = common_ca(reference), common_ca(rebuilt)
    there, back = cKDTree(x).query(y)[1], cKDTree(y).query(x)[1]
    distance = _distance(y, x[there])
    paired = (back[there] == np.arange(len(y))) & (distance < within)
    both = paired[:-1] & paired[1:]
    runs = np.abs(np.diff(there)) == 1  # chains may run either way
    return {
        "n": int(paired.sum()),
        "coverage": float(paired.mean()),
        "precision": float(paired.sum() / len(x)),
        "rmsd": _rms(distance[paired]) if paired.any() else float("nan"),
        "order": float(runs[both].mean()) if both.any() else 0.0,
    }


def detail(density: Float[np.ndarray, "x y z"], band: tuple[float, float] = (0.35, 0.45)) -> float:
    """The share of a map's power, its mean apart, that lies in a band of frequencies in cycles a voxel."""
    power = np.abs(scipy.fft.rfftn(density - density.mean(), workers=os.cpu_count())) ** 2
    s = np.sqrt(sum(np.square(axis) for axis in frequencies(density.shape, 1.0)))
    power *= _times(density.shape[2])
    return float(power[(s >= band[0]) & (s <= band[1])].sum() / power.sum())


def visible(density: Float[np.ndarray, "x y z"], level: float) -> float:
    """The mass of the density at or above a level."""
    return float(density[density >= level].sum(dtype=np.float64))


def between(density: Float[np.ndarray, "x y z"], ends: Bool[np.ndarray, "x y z"]) -> float:
    """The share of a map's positive mass where `ends`, the places of both ends of its path, do not hold."""
    mass = np.maximum(density, 0)
    return float(mass[~ends].sum(dtype=np.float64) / mass.sum(dtype=np.float64))


def appearing(
    a: Float[np.ndarray, "x y z"], b: Float[np.ndarray, "x y z"], block: int, reach: int = 1
) -> tuple[float, float]:
    """The mass of b that cannot have come from a within a few blocks, and that of a which cannot have gone to b.

    In the unit of the densities, which must not be negative. Masses are summed over blocks of `block` voxels, and each
    block's may go to blocks up to `reach` away along every axis; what cannot be placed so has appeared, or vanished.
    Both are lower bounds, as what flows on in a chain counts as moved (Strassen's theorem: the first is the greatest
    excess of b's mass in any set of blocks over a's in the set and about it). Found as a maximal flow.
    """
    sums = [_blocks(v, block) for v in (a, b)]
    unit = float(max(sums[0].sum(), sums[1].sum())) / 2**30  # capacities are integers of 32 bits
    if unit == 0:
        return 0.0, 0.0
    whole = [np.rint(v / unit).astype(np.int32) for v in sums]
    (ours, theirs), shape = [np.flatnonzero(v) for v in whole], whole[0].shape
    row, place = np.full(whole[0].size, -1), np.stack(np.unravel_index(ours, shape), -1)
    row[theirs] = np.arange(len(theirs))
    edges = []
    for step in np.ndindex(*(2 * reach + 1,) * 3):
        to = place + np.array(step) - reach
        inside = ((to >= 0) & (to < shape)).all(1)
        at = row[np.ravel_multi_index(tuple(to[inside].T), shape)]
        edges.append(np.stack([np.flatnonzero(inside)[at >= 0], at[at >= 0]]))
    left, right = np.concatenate(edges, 1)
    source, sink = len(ours) + len(theirs), len(ours) + len(theirs) + 1
    tail = np.concatenate([np.full(len(ours), source), left, len(ours) + np.arange(len(theirs))])
    head = np.concatenate([np.arange(len(ours)), len(ours) + right, np.full(len(theirs), sink)])
    supply, demand = whole[0].ravel()[ours], whole[1].ravel()[theirs]
    room = np.concatenate([supply, supply[left], demand])
    graph = sparse.csr_array((room, (tail, head)), shape=(sink + 1, sink + 1))
    moved = csgraph.maximum_flow(graph, source, sink).flow_value
    return float(demand.sum(dtype=np.int64) - moved) * unit, float(supply.sum(dtype=np.int64) - moved) * unit


def path_distance(frames: Float[np.ndarray, "frames n 3"], path: Float[np.ndarray, "path n 3"]) -> float:
    """How far a known path is from a trajectory: mean over its models of the least RMSD [Å] to any frame."""
    squared = ((path[:, None] - frames[None]) ** 2).sum(-1).mean(-1)
    return float(np.sqrt(squared.min(1)).mean())


def monotone_match(cost: Float[np.ndarray, "path frames"]) -> Int[np.ndarray, "path"]:
    """For each step of a path the frame that it is matched with: never an earlier one than the step before has.

    Of all such matches the one of least total cost, by dynamic programming; frames may be left out or serve again.
    """
    total, came = cost.astype(np.float64), np.zeros(cost.shape, np.int64)
    for step in range(1, len(cost)):
        least = np.minimum.accumulate(total[step - 1])
        first = np.r_[True, total[step - 1, 1:] < least[:-1]]
        came[step] = np.maximum.accumulate(np.where(first, np.arange(cost.shape[1]), 0))
        total[step] += least
    match = np.zeros(len(cost), np.int64)
    match[-1] = total[-1].argmin()
    for step in range(len(cost) - 1, 0, -1):
        match[step - 1] = came[step, match[step]]
    return match


def along_path(
    frames: Float[np.ndarray, "frames n 3"], path: Float[np.ndarray, "path n 3"]
) -> tuple[Int[np.ndarray, "path"], Float[np.ndarray, "path"]]:
    """For each model of a known path the frame matched with it in order of time, and the RMSD [Å] to that.

    Positions are compared as they are, not superposed. Mean squared deviations are what is least in all.
    """
    norms = [(v**2).sum((1, 2)) for v in (path, frames)]
    products = path.reshape(len(path), -1) @ frames.reshape(len(frames), -1).T
    squared = np.maximum(norms[0][:, None] + norms[1] - 2 * products, 0) / path.shape[1]
    match = monotone_match(squared)
    return match, np.array([_rms(_distance(path[k], frames[match[k]])) for k in range(len(path))])


def _shells(shape, voxel_size):
    """For each coefficient of a real transform, its shell, and how often it stands in the complex one."""
    s = np.sqrt(sum(np.square(axis) for axis in frequencies(shape, voxel_size)))
    return np.rint(s * (np.array(shape) * voxel_size).min()).astype(np.int32), _times(shape[2])


def _times(length):
    """How often each coefficient along the halved axis of a real transform, of this length, is in the complex one."""
    times = np.full(length // 2 + 1, 2.0)
    times[0] = 1
    if length % 2 == 0:
        times[-1] = 1
    return times


def _distance(a, b):
    """The distances between paired points."""
    return np.linalg.norm(a - b, axis=-1)


def _rms(values) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def _fragments(length):
    """Which of so many residues belong to each fragment from which the TM-score's search starts."""
    size = length
    while size >= min(4, max(length, 1)):
        for start in dict.fromkeys([*range(0, length - size + 1, max(size // 2, 1)), length - size]):
            yield (np.arange(length) >= start) & (np.arange(length) < start + size)
        size //= 2
        if size * MOST_FRAGMENTS < length:
            return


def _superposed(x, y, used):
    """x (n, 3) superposed on y by least squares over each row of weights `used` (starts, n): (starts, n, 3)."""
    share = used / used.sum(1, keepdims=True)
    cx, cy = share @ x, share @ y
    covariance = np.einsum("sn,ni,nj->sij", share, x, y) - cx[:, :, None] * cy[:, None]
    u, _, vt = np.linalg.svd(covariance)
    hand = np.ones((len(used), 3))
    hand[:, 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    turn = (u * hand[:, None]) @ vt
    return np.matmul(x - cx[:, None], turn) + cy[:, None]


def _blocks(density, block):
    """Sums over blocks of voxels; the box is filled up with zeros."""
    padded = np.pad(density, [(0, -n % block) for n in density.shape])
    return padded.reshape([m for n in padded.shape for m in (n // block, block)]).sum((1, 3, 5), dtype=np.float64)
