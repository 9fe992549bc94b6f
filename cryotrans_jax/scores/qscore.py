"""Q-score: resolvability of atoms, by how much the density around each resembles that of a well resolved one.

Pintilie, Zhang, Su, Li, Schmid and Chiu, Nature Methods 17 (2020) 328-334.
"""

import gemmi
import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree

from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import Map

SIGMA = 0.6  # Å: standard deviation of the Gaussian of a well resolved atom
RADII = np.arange(21) / 10  # Å: radii of the shells
POINTS = 8  # in each shell, nearer to the atom than to any other one
TRIED = (8, 16, 32, 64, 128)  # sizes of sets of directions; a larger set is used where too few are the atom's own
CHUNK = 500  # atoms whose neighbours are searched together


def q_scores(map: Map, model: gemmi.Structure | atoms.Atoms) -> Float[np.ndarray, "atoms"]:
    """Q-score (at most 1) of each heavy atom of a model.

    Q is the correlation about the means of the density, at points in shells of RADII around the atom, with a Gaussian
    of SIGMA at these radii. Each shell has POINTS points that are nearer to this atom than to any other, fewer where
    there are not enough. The density is interpolated linearly, and zero outside the box. Q does not depend on the map's
    scale and offset; it is 0 where the density is the same at all points.

    Args:
        map: the map.
        model: a model, or positions [Å] and weights.

    Returns:
        The Q-scores, in the order of `atoms.heavy_atoms`.
    """
    x = (atoms.heavy_atoms(model) if isinstance(model, gemmi.Structure) else model)[0]
    towards = [sphere(count) for count in TRIED]
    crowded = crowding(x, np.concatenate(towards))
    sets = np.split(np.arange(sum(TRIED)), np.cumsum(TRIED)[:-1])
    values, used = np.zeros((2, len(RADII), len(x), POINTS))
    for shell, radius in enumerate(RADII):
        u, own = choose_points(2 * radius * crowded < 1, sets, np.concatenate(towards))
        values[shell] = map.interpolate((x[:, None] + radius * u).reshape(-1, 3)).reshape(own.shape)
        used[shell] = own
    reference = np.exp(-0.5 * (RADII / SIGMA) ** 2)[:, None, None]
    count = used.sum((0, 2))
    u, v = ((a - (used * a).sum((0, 2), keepdims=True) / count[:, None]) * used for a in (values, reference))
    norm = np.sqrt((u * u).sum((0, 2)) * (v * v).sum((0, 2)))
    flat = (u * u).sum((0, 2)) <= 1e-12 * np.maximum((used * values**2).sum((0, 2)), 1e-30)
    return np.where(flat, 0.0, (u * v).sum((0, 2)) / np.maximum(norm, 1e-30))


def q_score(map: Map, model: gemmi.Structure) -> float:
    """Q-score of a map: the mean over a model's heavy atoms."""
    return float(q_scores(map, model).mean())


def sphere(count: int) -> Float[np.ndarray, "count 3"]:
    """Directions spread evenly over the sphere: a Fibonacci spiral."""
    k = np.arange(count) + 0.5
    z, turn = 1 - 2 * k / count, np.pi * (1 + 5**0.5) * k
    return np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], -1)


def crowding(x: Float[np.ndarray, "atoms 3"], u: Float[np.ndarray, "directions 3"]) -> Float[np.ndarray, "atoms all"]:
    """Crowding c [1/Å] of each atom in each direction: the point at radius R is nearest to this atom if 2 R c < 1.

    With another atom at v, x + R u is nearer to x where u · v / |v|² < 1 / 2R.
    """
    out, tree, far = np.zeros((len(x), len(u))), cKDTree(x), 2 * RADII[-1]
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        most = max(int(tree.query_ball_point(part, far, return_length=True).max()), 2)
        distance, index = tree.query(part, most, distance_upper_bound=far)
        known = np.isfinite(distance) & (distance > 0)
        v = np.where(known[..., None], x[np.where(known, index, 0)] - part[:, None], 0)
        towards = v / np.where(known, distance, 1)[..., None] ** 2
        out[start : start + CHUNK] = (towards.astype(np.float32) @ u.T.astype(np.float32)).max(1)
    return out


def choose_points(
    own: Bool[np.ndarray, "atoms all"], sets: list[np.ndarray], u: Float[np.ndarray, "all 3"]
) -> tuple[Float[np.ndarray, "atoms points 3"], Bool[np.ndarray, "atoms points"]]:
    """Choose POINTS directions for each atom, evenly from the first set in which so many are its own.

    Where no set has enough, the own directions of the largest set are used.

    Args:
        own: for each atom and direction, whether the point there is nearest to this atom.
        sets: indices of the directions of each set, from the smallest set to the largest.
        u: all directions.

    Returns:
        The directions, and which of them count.
    """
    towards, counts = np.zeros((len(own), POINTS, 3)), np.zeros((len(own), POINTS), bool)
    left = np.arange(len(own))
    for number, members in enumerate(sets):
        mine = own[np.ix_(left, members)]
        total = mine.sum(1)
        take = (total >= POINTS) | (number == len(sets) - 1)
        rows, mine, total = left[take], mine[take], np.maximum(total[take], 1)
        order = np.argsort(~mine, axis=1, kind="stable")
        rank = np.where(total[:, None] >= POINTS, np.arange(POINTS) * total[:, None] // POINTS, np.arange(POINTS))
        pick = np.take_along_axis(order, rank, 1)
        towards[rows], counts[rows] = u[members[pick]], np.take_along_axis(mine, pick, 1)
        left = left[~take]
    return towards, counts
