"""Scores of a generated map, model or path against a reference, and of how well a path of maps conserves mass."""

from functools import partial

import gemmi
import numpy as np
import scipy.fft
from jaxtyping import Bool, Float, Int
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from cryotrans_jax.core import losses
from cryotrans_jax.density.boxes import pad_to_blocks
from cryotrans_jax.density.fsc import fsc, multiplicity
from cryotrans_jax.density.simulation import simulate
from cryotrans_jax.density.transform import superposing_rotations
from cryotrans_jax.io import cores
from cryotrans_jax.io.atoms import common_ca
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, radial_frequency, same_grid
from cryotrans_jax.io.programs import program
from cryotrans_jax.io.structures import is_nucleotide

MOVED = 3.0  # Å: displacement beyond which a residue counts as displaced
ROUNDS = 20  # of the search for the TM-score
MOST_FRAGMENTS = 32  # of the shortest length from which the search starts, about half of all

found_near = program(losses.fraction_in_target)


def resolution_at(
    frequency: Float[np.ndarray, "shells"], correlation: Float[np.ndarray, "shells"], threshold: float
) -> float:
    """Resolution [Å] at which a Fourier shell correlation first falls below a threshold.

    Args:
        frequency: of each shell, 1/Å.
        correlation: of each shell.
        threshold: such as 0.5 or 0.143.

    Returns:
        The resolution, interpolated linearly between shells without the zeroth; Nyquist where the curve stays above.
    """
    below = np.flatnonzero(correlation[1:] < threshold) + 1
    if not len(below):
        return float(1 / frequency[-1])
    i = below[0]
    if i == 1:
        return float(1 / frequency[1])
    return float(1 / np.interp(-threshold, -correlation[i - 1 : i + 1], frequency[i - 1 : i + 1]))


def map_fsc(map: Map, reference: Map) -> tuple[Float[np.ndarray, "shells"], Float[np.ndarray, "shells"]]:
    """Fourier shell correlation of two maps, see `fsc`.

    Returns:
        Frequency [1/Å] and correlation of each shell.

    Raises:
        InputError: their grids differ.
    """
    if difference := same_grid(map, reference):
        raise InputError(f"the maps are on different grids ({difference}): resample one on the other's grid")
    return fsc(map.density, reference.density, map.voxel_size)


def model_map_fsc(
    map: Map, structure: gemmi.Structure, resolution: float
) -> tuple[Float[np.ndarray, "shells"], Float[np.ndarray, "shells"]]:
    """Fourier shell correlation of a map with the map simulated from a model, see `fsc`.

    Args:
        map: the map.
        structure: the model.
        resolution: of the simulated map, Å.

    Returns:
        Frequency [1/Å] and correlation of each shell.
    """
    reference = simulate(structure, resolution, like=map)
    return fsc(map.density, reference.density, map.voxel_size)


def matched(map: Map, target: Map, variance: float) -> tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "x y z"]]:
    """Match a map to a target on its grid: blur the sharper one to the other's resolution, and scale the map to fit.

    Args:
        map: map to be scaled, by least squares.
        target: the target map.
        variance: variance of the Gaussian that takes the map to the target, Å². If negative, the target is the sharper
            one and is blurred instead.

    Returns:
        The two densities.
    """
    blur = partial(ndimage.gaussian_filter, sigma=np.sqrt(abs(variance)) / map.voxel_size, mode="constant")
    a, b = (blur(map.density), target.density) if variance > 0 else (map.density, blur(target.density))
    return np.vdot(a, b) / max(np.vdot(a, a), 1e-30) * a, b


def missing_mass(
    density: Float[np.ndarray, "x y z"], target: Float[np.ndarray, "x y z"], voxel_size: np.ndarray, width: float
) -> float:
    """Share of a map's mass where the target has no density.

    Noise in the target adds a little: 0.03 where it is three times as strong as the signal.

    Args:
        density: the map's density.
        target: the target's density on the same grid, matched in resolution.
        voxel_size: Å, along each axis.
        width: standard deviation of a blur of both, Å, over which density may be displaced.
    """
    blurred, blurred_target = (
        ndimage.gaussian_filter(a, width / voxel_size, mode="constant") for a in (density, target)
    )
    mass = np.maximum(density, 0)
    return 1 - float(np.vdot(mass, np.asarray(found_near(blurred, blurred_target))) / max(mass.sum(), 1e-30))


def ca_displacement(
    predicted: gemmi.Structure, reference: gemmi.Structure, initial: gemmi.Structure | None = None
) -> dict[str, int | float]:
    """Distances [Å] between corresponding residues of a predicted and a reference model, without superposition.

    A residue is where its CA atom is, and a nucleotide where its C4' is (`atoms.common_ca`).

    Args:
        predicted: the predicted model.
        reference: the reference model.
        initial: the model before the prediction; None if there is none.

    Returns:
        The number `n` of atoms, and `rmsd`, `median` and `max` of their distances. With `initial` also its RMSD
        `initial_rmsd`, and the number `moved_n` of displaced residues, over 3 Å from it in the reference, with their
        RMSD `moved_rmsd` and `moved_initial_rmsd` (absent where there are none).

    Raises:
        InputError: the models have no residue in common.
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
    """TM-score (0 to 1) of a predicted model's residues, normalised by the reference's length.

    max over superpositions of 1/L Σ 1 / (1 + (d / d0)²), with d0 of `tm_scale` and distances d of CA atoms (C4' of
    nucleotides). Residues correspond by chain and number; there is no structural alignment as in TM-align. The search
    starts from fragments of L, L/2, L/4 ... residues and continues with the residues that superpose well.

    Raises:
        InputError: the models have no residue in common.
    """
    y, x = common_ca(reference, predicted)
    length = len(common_ca(reference)[0])
    nucleotides = sum(is_nucleotide(residue) for chain in reference[0] for residue in chain.first_conformer())
    d0 = tm_scale(length, nucleotides > length / 2)
    near, best = min(max(d0, 4.5), 8.0), 0.0
    used = np.array(list(_fragments(len(x))), np.float64)
    for _ in range(ROUNDS):
        distance = np.linalg.norm(_superpose(x, y, used) - y, axis=-1)
        best = max(best, float((1 / (1 + (distance / d0) ** 2)).sum(1).max() / length))
        used = (distance < np.maximum(near, np.partition(distance, min(3, len(x) - 1), axis=1)[:, 3:4])) * 1.0
    return best


def tm_scale(length: int, nucleic: bool) -> float:
    """Scale d0 [Å] of the TM-score, by which a score does not depend on a molecule's length.

    Proteins: Zhang and Skolnick, Proteins 57 (2004). Nucleic acids: Gong, Zhang and Zhang, Bioinformatics 35 (2019),
    RNA-align. A complex has the scale of what it has more residues of.

    Args:
        length: number of residues.
        nucleic: whether they are nucleotides.
    """
    if not nucleic:
        return max(1.24 * max(length - 15, 0) ** (1 / 3) - 1.8, 0.5)
    if length < 30:
        return 0.3 + 0.1 * sum(length >= least for least in (12, 16, 20, 24))
    return 0.6 * (length - 0.5) ** 0.5 - 2.5


def coverage(rebuilt: gemmi.Structure, reference: gemmi.Structure, within: float = 3.0) -> dict[str, int | float]:
    """Score how much of a reference's backbone a rebuilt model covers, regardless of chain names, numbers and sequence.

    Args:
        rebuilt: the rebuilt model.
        reference: the reference model.
        within: largest distance of paired CA atoms (C4' of nucleotides), Å.

    Returns:
        The number `n` of pairs of such atoms that are mutually nearest and less than `within` apart; their share of the
        reference (`coverage`) and of the rebuilt atoms (`precision`); their `rmsd` [Å]; and `order`, the share of pairs
        whose successor in the chain is paired with a neighbour in the rebuilt chain.

    Raises:
        InputError: one of them has no such atom.
    """
    (y,), (x,) = common_ca(reference), common_ca(rebuilt)
    to_x, to_y = cKDTree(x).query(y)[1], cKDTree(y).query(x)[1]
    distance = _distance(y, x[to_x])
    paired = (to_y[to_x] == np.arange(len(y))) & (distance < within)
    both = paired[:-1] & paired[1:]
    runs = np.abs(np.diff(to_x)) == 1  # chains may run in either direction
    return {
        "n": int(paired.sum()),
        "coverage": float(paired.mean()),
        "precision": float(paired.sum() / len(x)),
        "rmsd": _rms(distance[paired]) if paired.any() else float("nan"),
        "order": float(runs[both].mean()) if both.any() else 0.0,
    }


def detail(density: Float[np.ndarray, "x y z"], band: tuple[float, float] = (0.35, 0.45)) -> float:
    """Share of a map's power, without its mean, in a band of frequencies.

    Args:
        density: the map.
        band: lowest and highest frequency, cycles per voxel.
    """
    power = np.abs(scipy.fft.rfftn(density - density.mean(), workers=cores.usable())) ** 2
    s = radial_frequency(density.shape, 1.0)
    power *= multiplicity(density.shape[2])
    return float(power[(s >= band[0]) & (s <= band[1])].sum() / power.sum())


def visible_mass(density: Float[np.ndarray, "x y z"], level: float) -> float:
    """Mass of the density at or above a display contour."""
    return float(density[density >= level].sum(dtype=np.float64))


def share_between(density: Float[np.ndarray, "x y z"], ends: Bool[np.ndarray, "x y z"]) -> float:
    """Share of a map's positive mass outside the region that the two ends of its path occupy.

    Args:
        density: an intermediate map.
        ends: voxels that either end occupies.
    """
    mass = np.maximum(density, 0)
    return float(mass[~ends].sum(dtype=np.float64) / mass.sum(dtype=np.float64))


def appearing_mass(
    a: Float[np.ndarray, "x y z"], b: Float[np.ndarray, "x y z"], block: int, reach: int = 1
) -> tuple[float, float]:
    """Lower bounds on the mass that appears and vanishes between two maps, instead of moving.

    Masses are summed over blocks, and the mass of each block may move up to `reach` blocks along every axis; the rest
    has appeared or vanished. Both are lower bounds, because mass that is passed on along a chain of blocks counts as
    moved (Strassen's theorem: the first is the greatest excess of b's mass in any set of blocks over a's in that set
    and around it). Computed as a maximal flow.

    Args:
        a: the earlier density, not negative.
        b: the later density, not negative.
        block: side of a block, voxels.
        reach: blocks that mass may move along every axis.

    Returns:
        The mass of b that cannot have come from a, and the mass of a that cannot have gone to b, in the unit of the
        densities.
    """
    sums = [_blocks(v, block) for v in (a, b)]
    unit = float(max(sums[0].sum(), sums[1].sum())) / 2**30  # capacities are integers of 32 bits
    if unit == 0:
        return 0.0, 0.0
    before, after = (np.rint(v / unit).astype(np.int32) for v in sums)
    moved = _mass_that_can_move(before, after, reach)
    return float(after.sum(dtype=np.int64) - moved) * unit, float(before.sum(dtype=np.int64) - moved) * unit


def _mass_that_can_move(before, after, reach):
    """Largest mass that can move from the blocks `before` to those `after`, by `reach` blocks along every axis."""
    (sources, sinks), shape = [np.flatnonzero(v) for v in (before, after)], before.shape
    row, place = np.full(before.size, -1), np.stack(np.unravel_index(sources, shape), -1)
    row[sinks] = np.arange(len(sinks))
    edges = []
    for step in np.ndindex(*(2 * reach + 1,) * 3):
        to = place + np.array(step) - reach
        inside = ((to >= 0) & (to < shape)).all(1)
        at = row[np.ravel_multi_index(tuple(to[inside].T), shape)]
        edges.append(np.stack([np.flatnonzero(inside)[at >= 0], at[at >= 0]]))
    left, right = np.concatenate(edges, 1)
    source, sink = len(sources) + len(sinks), len(sources) + len(sinks) + 1
    tail = np.concatenate([np.full(len(sources), source), left, len(sources) + np.arange(len(sinks))])
    head = np.concatenate([np.arange(len(sources)), len(sources) + right, np.full(len(sinks), sink)])
    supply = before.ravel()[sources]
    room = np.concatenate([supply, supply[left], after.ravel()[sinks]])
    graph = sparse.csr_array((room, (tail, head)), shape=(sink + 1, sink + 1))
    return csgraph.maximum_flow(graph, source, sink).flow_value


def path_distance(frames: Float[np.ndarray, "frames n 3"], path: Float[np.ndarray, "path n 3"]) -> float:
    """Distance [Å] of a known path from a trajectory: mean over its models of the smallest RMSD to any frame."""
    squared = ((path[:, None] - frames[None]) ** 2).sum(-1).mean(-1)
    return float(np.sqrt(squared.min(1)).mean())


def monotone_match(cost: Float[np.ndarray, "path frames"]) -> Int[np.ndarray, "path"]:
    """Match each step of a path to a frame, in order of time, at the least total cost, by dynamic programming.

    Args:
        cost: of each pair of step and frame.

    Returns:
        The frame of each step, never earlier than that of the step before; frames may be skipped or repeated.
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


def match_path(
    frames: Float[np.ndarray, "frames n 3"], path: Float[np.ndarray, "path n 3"]
) -> tuple[Int[np.ndarray, "path"], Float[np.ndarray, "path"]]:
    """Match each model of a known path to a frame, in order of time, without superposition.

    The match minimises the sum of mean squared deviations (`monotone_match`).

    Args:
        frames: positions in each frame of a trajectory, Å.
        path: positions in each model of the known path, Å.

    Returns:
        The frame of each model, and the RMSD [Å] from it.
    """
    norms = [(v**2).sum((1, 2)) for v in (path, frames)]
    products = path.reshape(len(path), -1) @ frames.reshape(len(frames), -1).T
    squared = np.maximum(norms[0][:, None] + norms[1] - 2 * products, 0) / path.shape[1]
    match = monotone_match(squared)
    return match, np.array([_rms(_distance(path[k], frames[match[k]])) for k in range(len(path))])


def _distance(a, b):
    """Distances between paired points."""
    return np.linalg.norm(a - b, axis=-1)


def _rms(values) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def _fragments(length):
    """Masks of the fragments from which the search for the TM-score starts."""
    size = length
    while size >= min(4, max(length, 1)):
        for start in dict.fromkeys([*range(0, length - size + 1, max(size // 2, 1)), length - size]):
            yield (np.arange(length) >= start) & (np.arange(length) < start + size)
        size //= 2
        if size * MOST_FRAGMENTS < length:
            return


def _superpose(x, y, used):
    """Superpose x (n, 3) on y by least squares with each row of the weights `used` (starts, n): (starts, n, 3)."""
    share = used / used.sum(1, keepdims=True)
    cx, cy = share @ x, share @ y
    covariance = np.einsum("sn,ni,nj->sij", share, x, y) - cx[:, :, None] * cy[:, None]
    return np.matmul(x - cx[:, None], superposing_rotations(covariance)) + cy[:, None]


def _blocks(density, block):
    """Sums over blocks of voxels, of a box padded with zeros."""
    padded = pad_to_blocks(density, block)
    return padded.reshape([m for n in padded.shape for m in (n // block, block)]).sum((1, 3, 5), dtype=np.float64)
