"""Correspondences between two maps, for motions that W2 misreads.

Both maps, at matched resolution, become clouds of points with rotation-invariant descriptors of their neighbourhoods. A
fused Gromov-Wasserstein coupling (Vayer et al. 2020) of the two clouds sends points to similar points not far away, and
neighbours to neighbours. Its linear problems are solved by ott-jax's Sinkhorn. The loop around them is written here
because ε falls from round to round, and ott-jax's quadratic solver has a constant ε.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn
from scipy import ndimage, spatial
from scipy.linalg import lapack

from cryotrans_jax.core.grid import binned, block_points
from cryotrans_jax.core.programs import program
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.density.thresholds import mass_fraction_threshold

SPACING = 5.0  # Å between a cloud's points, wider if the initial map would have more than MAX_POINTS
MAX_POINTS = 2000
RADIUS = 2.0  # spacings: width of the neighbourhood that is kept together
DENSITY_WIDTHS = (1.5, 3.0, 4.5, 6.0, 8.0, 10.0, 13.0)  # Å: blurs of the density
GRADIENT_WIDTHS, TENSOR_WIDTHS = (1.5, 3.0), (4.0, 7.0, 10.0)  # Å: blurs of its gradient, of the structure tensor
WORKING_VOXEL = 2.0  # Å: voxel size for descriptors
COMPONENTS = 10  # of the whitened descriptors
DESCRIPTOR_COST = 300.0  # Å² per unit of squared distance between descriptors
NEIGHBOUR_COST = 6e4  # Å² for a neighbourhood whose every pair is torn apart
EPSILONS = np.concatenate([np.geomspace(8.0, 0.8, 20), np.full(10, 0.8)])  # Å², one a round
KERNEL_ERROR = 1e-2  # largest error of an entry of a neighbourhood's kernel (at most 1)
ITERATIONS = 10  # of Sinkhorn in a round
HALF_WEIGHT_SPREAD = 0.6  # spacings: spread of a point's images that halves its weight


class Cloud(NamedTuple):
    """A map as points: positions (Å), fractions of the mass, descriptors."""

    x: np.ndarray
    share: np.ndarray
    descriptors: np.ndarray


def ends(
    problem: Problem, target: int, x: Float[Array | np.ndarray, "points 3"]
) -> tuple[Float[np.ndarray, "points 3"], Float[np.ndarray, "points"]]:
    """Find where points of the initial map belong in a target.

    Means over the nearest four points of the initial map's cloud. Points whose coupling spreads over several places
    count less.

    Args:
        problem: the prepared maps.
        target: number of the target.
        x: points of the initial map, unit box.

    Returns:
        The ends (unit box), and the weight (0 to 1) of each.
    """
    spacing = spacing_for(problem)
    start, end = clouds(problem, target, spacing)
    image, spread = images(start, end, spacing)
    cloud_confidence = 1 / (1 + (spread / (HALF_WEIGHT_SPREAD * spacing)) ** 2)
    x = problem.frame.to_angstrom(np.asarray(x, np.float64))
    distance, near = spatial.cKDTree(start.x).query(x, k=min(4, len(start.x)))
    distance, near = distance.reshape(len(x), -1), near.reshape(len(x), -1)
    weight = np.exp(-0.5 * ((distance - distance[:, :1]) / (0.8 * spacing)) ** 2)
    weight /= weight.sum(1, keepdims=True)
    confidence = np.einsum("pk,pk->p", weight, cloud_confidence[near])
    shift = np.einsum("pk,pkc->pc", weight * cloud_confidence[near], (image - start.x)[near])
    return problem.frame.to_unit(x + shift / np.maximum(confidence, 1e-6)[:, None]), confidence


def spacing_for(problem: Problem) -> float:
    """Distance (Å) between a cloud's points: SPACING, or wider so that there are at most about MAX_POINTS."""
    volume = (problem.initial > 0).sum() * np.prod(problem.voxel_size)
    return max(SPACING, float((volume / MAX_POINTS) ** (1 / 3)))


def clouds(problem: Problem, target: int, spacing: float) -> tuple[Cloud, Cloud]:
    """The initial map and a target at matched resolution, as clouds with whitened descriptors."""
    variance = problem.blurs[target] + problem.denoising_blurs[target]
    maps = [problem.initial, problem.masses[target]]
    sharper = 0 if variance > 0 else 1
    maps[sharper] = blurred(maps[sharper], np.sqrt(abs(variance)), problem.voxel_size)
    (x, share), (y, share_end) = (points(m, problem.voxel_size, spacing) for m in maps)
    raw = [describe(m, problem.voxel_size, at) for m, at in zip(maps, (x, y), strict=True)]
    first, second = whiten(*raw, share, share_end)
    origin = problem.frame.to_angstrom(problem.corner)
    return Cloud(origin + x, share, first), Cloud(origin + y, share_end, second)


def points(density: np.ndarray, voxel_size: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres of mass (Å from the crop's corner) of blocks of about `spacing`, and their fractions of the mass.

    Of the strongest voxels with 98 % of the mass; blocks with next to nothing are left out.
    """
    strong = np.where(density >= mass_fraction_threshold(density[density > 0]), density, 0)
    size = np.maximum(np.round(spacing / voxel_size), 1).astype(int)
    strong = np.pad(strong, [(0, -n % s) for n, s in zip(strong.shape, size, strict=True)])
    place, mass, _ = block_points(strong, size)
    kept = mass > 0.1 * np.median(mass)
    return place[kept] * voxel_size, mass[kept] / mass[kept].sum()


def describe(density: np.ndarray, voxel_size: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Rotation-invariant descriptors (n, 25) of a map at the points x (n, 3; Å from the corner).

    The density blurred by several widths, and the square roots of the eigenvalues of the structure tensor (the mean
    outer product of the gradient with itself) for several widths of both.
    """
    factor = int(np.clip(2 ** np.round(np.log2(WORKING_VOXEL / voxel_size.min())), 1, 8))
    density, size = binned(density, factor), voxel_size * factor
    index = (x / size - 0.5).T
    at = lambda volume: ndimage.map_coordinates(volume, index, order=1, mode="nearest")  # noqa: E731
    found = [at(blurred(density, width, size)) for width in DENSITY_WIDTHS]
    for width in GRADIENT_WIDTHS:
        slope = [blurred(density, width, size, axis) / size[axis] for axis in range(3)]
        tensors = np.zeros((len(TENSOR_WIDTHS), len(x), 3, 3))
        for i in range(3):
            for j in range(i, 3):
                product = slope[i] * slope[j]
                for tensor, wide in zip(tensors, TENSOR_WIDTHS, strict=True):
                    tensor[:, i, j] = tensor[:, j, i] = at(blurred(product, wide, size))
        found += [value for tensor in tensors for value in np.sqrt(np.maximum(np.linalg.eigvalsh(tensor), 0)).T]
    return np.stack(found, -1)


def blurred(density: np.ndarray, width: float, voxel_size: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The density blurred by a Gaussian of this width (Å), or the derivative of that along an axis, per voxel."""
    order = [int(k == axis) for k in range(3)]
    return ndimage.gaussian_filter(density, width / voxel_size, order=order, mode="constant")


def whiten(
    first: np.ndarray, second: np.ndarray, share: np.ndarray, share_end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both clouds' descriptors in their COMPONENTS largest principal components, of unit variance over both clouds."""
    every, weight = np.concatenate([first, second]), 0.5 * np.concatenate([share, share_end])
    every = every - weight @ every
    every = every / np.sqrt(np.maximum(weight @ every**2, 1e-30))
    value, vector = np.linalg.eigh((every * weight[:, None]).T @ every)
    largest = np.argsort(value)[::-1][:COMPONENTS]
    component = every @ vector[:, largest] / np.sqrt(np.maximum(value[largest], 1e-9))
    return component[: len(first)], component[len(first) :]


def images(start: Cloud, end: Cloud, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean position (n, 3) of the end's points that each point is coupled to, and their spread about it, both in Å."""
    first = DESCRIPTOR_COST * squared_distances(start.descriptors, end.descriptors) + squared_distances(start.x, end.x)
    near, near_end = (np.exp(-0.5 * squared_distances(c.x, c.x) / (RADIUS * spacing) ** 2) for c in (start, end))
    own, own_end = near**2 @ start.share, near_end**2 @ end.share
    weight = NEIGHBOUR_COST / 2 / (start.share @ own)
    linear = first + weight * (own[:, None] + own_end)
    given = (first, linear, low_rank_factor(near), low_rank_factor(near_end), start.share, end.share, weight, EPSILONS)
    plan = np.asarray(coupling(*(jnp.asarray(a, jnp.float32) for a in given)), np.float64)
    plan /= np.maximum(plan.sum(1, keepdims=True), 1e-30)
    mean = plan @ end.x
    return mean, np.sqrt(np.maximum(plan @ (end.x**2).sum(1) - (mean**2).sum(1), 0))


def low_rank_factor(kernel: np.ndarray) -> np.ndarray:
    """Matrix L (n, r) with |kernel − L Lᵀ| ≤ KERNEL_ERROR everywhere; r is a fifth of n for a cloud's neighbourhoods.

    Cholesky decomposition with pivoting, ended early: the remainder of a positive definite matrix is positive definite,
    and its largest entry is on its diagonal.
    """
    lower, order, rank, _ = lapack.dpstrf(kernel, tol=KERNEL_ERROR, lower=1)
    unordered = np.empty((len(kernel), rank))
    unordered[order - 1] = np.tril(lower)[:, :rank]
    return unordered


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (n, m) between two sets of points."""
    return spatial.distance.cdist(a, b, "sqeuclidean")


@program
def coupling(
    first: Float[Array, "n m"],
    linear: Float[Array, "n m"],
    near: Float[Array, "n r"],
    near_end: Float[Array, "m q"],
    share: Float[Array, "n"],
    share_end: Float[Array, "m"],
    weight: Float[Array, ""],
    epsilons: Float[Array, "rounds"],
) -> Float[Array, "n m"]:
    """Coupling P that makes <linear, P> − weight Σ K_ik K'_jl P_ij P_kl small, with entropy ε.

    K = near nearᵀ and K' = near_end near_endᵀ are the kernels. With given marginals this is weight/2 Σ (K_ik − K'_jl)²
    P_ij P_kl, except for terms that depend on one cloud alone and are part of `linear`. By successive linearisation
    (Peyré, Cuturi and Solomon 2016), one per round at that round's ε, each from the potentials of the round before.

    Args:
        first: cost of the first coupling.
        linear: linear cost, Å².
        near: factor of the initial cloud's kernel.
        near_end: factor of the target cloud's kernel.
        share: the initial cloud's fractions of the mass.
        share_end: the target cloud's.
        weight: of the quadratic term, Å².
        epsilons: ε of each round, Å².
    """
    solver = sinkhorn.Sinkhorn(min_iterations=ITERATIONS, max_iterations=ITERATIONS, inner_iterations=ITERATIONS)

    def solve(cost, epsilon, f, g):
        problem = linear_problem.LinearProblem(geometry.Geometry(cost, epsilon=epsilon), share, share_end)
        solution = solver(problem, init=(f, g))
        return solution.matrix, solution.f, solution.g

    def round_(i, at):
        plan, f, g = at
        together = near @ (near.T @ plan @ near_end) @ near_end.T
        return solve(linear - 2 * weight * together, epsilons[i], f, g)

    initial = solve(first, epsilons[0], jnp.zeros_like(share), jnp.zeros_like(share_end))
    with jax.default_matmul_precision("float32"):  # accelerators would keep three digits, an error of many ε
        return jax.lax.fori_loop(0, len(epsilons), round_, initial)[0]
