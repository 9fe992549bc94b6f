"""Correspondences between two maps, for motions that W2 misreads.

Both maps, at matched resolution, become clouds of points with rotation-invariant descriptors of their neighbourhoods. A
fused Gromov-Wasserstein coupling (Vayer et al. 2020) of the two clouds sends points to similar points not far away, and
neighbours to neighbours. Its linear problems are solved by ott-jax's Sinkhorn. The loop around them is written here
because ε falls from round to round, and ott-jax's quadratic solver has a constant ε.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn
from scipy import ndimage, spatial
from scipy.linalg import get_lapack_funcs

from cryotrans_jax.core.grid import binned, block_points
from cryotrans_jax.core.losses import Carried, Leaf, Points, Scalar, Term
from cryotrans_jax.density.boxes import power_of_two
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.density.thresholds import mass_fraction_threshold
from cryotrans_jax.io.programs import program


@dataclass(frozen=True)
class CorrespondenceSearch:
    """How correspondences are searched for.

    Attributes:
        spacing: Å between a cloud's points, wider if one would have more than `max_points`.
        max_points: points of a cloud at most. Memory is that of three numbers for each pair of points.
        radius: width of the neighbourhood that is kept together, in spacings.
        density_widths: blurs of the density among the descriptors, Å.
        gradient_widths: blurs of its gradient, Å.
        tensor_widths: blurs of the structure tensor, Å.
        working_voxel: voxel size for descriptors, Å.
        components: of the whitened descriptors.
        descriptor_cost: Å² per unit of squared distance between descriptors.
        neighbour_cost: Å² for a neighbourhood whose every pair is torn apart.
        first_epsilon: entropy of the first round, Å².
        last_epsilon: entropy of the last rounds, Å².
        falling_rounds: rounds over which the entropy falls.
        last_rounds: rounds after that.
        kernel_error: largest error of an entry of a neighbourhood's kernel (at most 1).
        iterations: of Sinkhorn in a round.
        half_weight_spread: spread of a point's images that halves its weight, in spacings.
    """

    spacing: float = 5.0
    max_points: int = 10_000
    radius: float = 2.0
    density_widths: tuple[float, ...] = (1.5, 3.0, 4.5, 6.0, 8.0, 10.0, 13.0)
    gradient_widths: tuple[float, ...] = (1.5, 3.0)
    tensor_widths: tuple[float, ...] = (4.0, 7.0, 10.0)
    working_voxel: float = 2.0
    components: int = 10
    descriptor_cost: float = 300.0
    neighbour_cost: float = 6e4
    first_epsilon: float = 8.0
    last_epsilon: float = 0.8
    falling_rounds: int = 20
    last_rounds: int = 10
    kernel_error: float = 3e-2
    iterations: int = 10
    half_weight_spread: float = 0.6

    @property
    def epsilons(self) -> np.ndarray:
        """Entropy of each round, Å²."""
        falling = np.geomspace(self.first_epsilon, self.last_epsilon, self.falling_rounds)
        return np.concatenate([falling, np.full(self.last_rounds, self.last_epsilon)])


DEFAULT = CorrespondenceSearch()


class Cloud(NamedTuple):
    """A map as points: positions (Å), fractions of the mass, descriptors."""

    x: np.ndarray
    share: np.ndarray
    descriptors: np.ndarray


def ends(
    problem: Problem, target: int, x: Float[Array | np.ndarray, "points 3"], search: CorrespondenceSearch = DEFAULT
) -> tuple[Float[np.ndarray, "points 3"], Float[np.ndarray, "points"]]:
    """Find where points of the initial map belong in a target.

    Means over the nearest four points of the initial map's cloud. Points whose coupling spreads over several places
    count less.

    Args:
        problem: the prepared maps.
        target: number of the target.
        x: points of the initial map, unit box.
        search: how correspondences are searched for.

    Returns:
        The ends (unit box), and the weight (0 to 1) of each.
    """
    start, end, spacing = clouds(problem, target, search)
    image, spread = images(start, end, spacing, search)
    cloud_confidence = 1 / (1 + (spread / (search.half_weight_spread * spacing)) ** 2)
    x = problem.frame.to_angstrom(np.asarray(x, np.float64))
    distance, near = spatial.cKDTree(start.x).query(x, k=min(4, len(start.x)))
    distance, near = distance.reshape(len(x), -1), near.reshape(len(x), -1)
    weight = np.exp(-0.5 * ((distance - distance[:, :1]) / (0.8 * spacing)) ** 2)
    weight /= weight.sum(1, keepdims=True)
    confidence = np.einsum("pk,pk->p", weight, cloud_confidence[near])
    shift = np.einsum("pk,pkc->pc", weight * cloud_confidence[near], (image - start.x)[near])
    return problem.frame.to_unit(x + shift / np.maximum(confidence, 1e-6)[:, None]), confidence


def clouds(problem: Problem, target: int, search: CorrespondenceSearch = DEFAULT) -> tuple[Cloud, Cloud, float]:
    """The initial map and a target at matched resolution, as clouds with whitened descriptors; and their spacing, Å."""
    variance = problem.blurs[target] + problem.denoising_blurs[target]
    maps = [problem.initial, problem.targets[target]]
    sharper = 0 if variance > 0 else 1
    maps[sharper] = blurred(maps[sharper], np.sqrt(abs(variance)), problem.voxel_size)
    ((x, share), (y, share_end)), spacing = spaced_points(maps, problem.voxel_size, search)
    raw, raw_end = (describe(m, problem.voxel_size, at, search) for m, at in zip(maps, (x, y), strict=True))
    first, second = whiten(raw, raw_end, share, share_end, search.components)
    origin = problem.frame.to_angstrom(problem.corner)
    return Cloud(origin + x, share, first), Cloud(origin + y, share_end, second), spacing


def spaced_points(
    maps: Sequence[np.ndarray], voxel_size: np.ndarray, search: CorrespondenceSearch = DEFAULT
) -> tuple[list[tuple[np.ndarray, np.ndarray]], float]:
    """`points` of each map as near to one another as `search` allows, and their spacing, Å."""
    spacing = search.spacing
    while True:
        found = [points(map_, voxel_size, spacing) for map_ in maps]
        most = max(len(x) for x, _ in found)
        if most <= search.max_points:
            return found, spacing
        spacing = max(spacing + float(voxel_size.max()), spacing * (most / search.max_points) ** (1 / 3))


def points(density: np.ndarray, voxel_size: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres of mass (Å from the crop's corner) of blocks of about `spacing`, and their fractions of the mass.

    Of the strongest voxels with 98 % of the mass. Half of the mass is in blocks at least as heavy as a typical one.
    Blocks with less than a fifth of its mass are left out: most of them hold noise, or the rest of a micelle.
    """
    strong = np.where(density >= mass_fraction_threshold(density[density > 0]), density, 0)
    size = np.maximum(np.round(spacing / voxel_size), 1).astype(int)
    strong = np.pad(strong, [(0, -n % s) for n, s in zip(strong.shape, size, strict=True)])
    place, mass, _ = block_points(strong, size)
    kept = mass > 0.2 * mass_fraction_threshold(mass, 0.5)
    return place[kept] * voxel_size, mass[kept] / mass[kept].sum()


def describe(
    density: np.ndarray, voxel_size: np.ndarray, x: np.ndarray, search: CorrespondenceSearch = DEFAULT
) -> np.ndarray:
    """Rotation-invariant descriptors (n, 25) of a map at the points x (n, 3; Å from the corner).

    The density blurred by several widths, and the square roots of the eigenvalues of the structure tensor (the mean
    outer product of the gradient with itself) for several widths of both.
    """
    factor = power_of_two(search.working_voxel / voxel_size.min())
    density, size = binned(density, factor), voxel_size * factor
    index = (x / size - 0.5).T
    at = lambda volume: ndimage.map_coordinates(volume, index, order=1, mode="nearest")  # noqa: E731
    found = [at(blurred(density, width, size)) for width in search.density_widths]
    for width in search.gradient_widths:
        slope = [blurred(density, width, size, axis) / size[axis] for axis in range(3)]
        tensors = np.zeros((len(search.tensor_widths), len(x), 3, 3))
        for i in range(3):
            for j in range(i, 3):
                product = slope[i] * slope[j]
                for tensor, wide in zip(tensors, search.tensor_widths, strict=True):
                    tensor[:, i, j] = tensor[:, j, i] = at(blurred(product, wide, size))
        found += [value for tensor in tensors for value in np.sqrt(np.maximum(np.linalg.eigvalsh(tensor), 0)).T]
    return np.stack(found, -1)


def blurred(density: np.ndarray, width: float, voxel_size: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The density blurred by a Gaussian of this width (Å), or the derivative of that along an axis, per voxel."""
    order = [int(k == axis) for k in range(3)]
    return ndimage.gaussian_filter(density, width / voxel_size, order=order, mode="constant")


def whiten(
    first: np.ndarray,
    second: np.ndarray,
    share: np.ndarray,
    share_end: np.ndarray,
    components: int = DEFAULT.components,
) -> tuple[np.ndarray, np.ndarray]:
    """Both clouds' descriptors in their largest principal components, of unit variance over both clouds."""
    every, weight = np.concatenate([first, second]), 0.5 * np.concatenate([share, share_end])
    every = every - weight @ every
    every = every / np.sqrt(np.maximum(weight @ every**2, 1e-30))
    value, vector = np.linalg.eigh((every * weight[:, None]).T @ every)
    largest = np.argsort(value)[::-1][:components]
    component = every @ vector[:, largest] / np.sqrt(np.maximum(value[largest], 1e-9))
    return component[: len(first)], component[len(first) :]


def images(
    start: Cloud, end: Cloud, spacing: float, search: CorrespondenceSearch = DEFAULT
) -> tuple[np.ndarray, np.ndarray]:
    """Mean position (n, 3) of the end's points that each point is coupled to, and their spread about it, both in Å."""
    middle, scale = end.share @ end.x, np.sqrt(search.descriptor_cost)
    x, y = (np.concatenate([cloud.x - middle, scale * cloud.descriptors], axis=1) for cloud in (start, end))
    each = zip((start, end), distance_factors(x, y), strict=True)
    sides = [side_of(cloud, cost, search.radius * spacing, search.kernel_error) for cloud, cost in each]
    weight = np.float32(search.neighbour_cost / 2 / (sides[0].share @ sides[0].own))
    plan = np.asarray(coupling(*sides, weight, search.epsilons.astype(np.float32), iterations=search.iterations))
    moments = np.ones((len(y), 1)), end.x - middle, row_squares(end.x - middle)
    ends = np.concatenate(moments, axis=1).astype(np.float32)
    total, *mean, square = (plan @ ends).astype(np.float64).T
    mean = np.stack(mean, -1) / np.maximum(total, 1e-30)[:, None]
    square /= np.maximum(total, 1e-30)
    return middle + mean, np.sqrt(np.maximum(square - (mean**2).sum(1), 0))


class Side(NamedTuple):
    """A cloud as `coupling` takes it.

    Attributes:
        cost: factor of the linear cost, which is the product of both clouds' (Å²).
        near: factor L of the kernel of its neighbourhoods, K = L Lᵀ.
        own: sum of the squares of each point's row of the kernel, weighted by the shares.
        share: fractions of the mass.
    """

    cost: Float[Array | np.ndarray, "n factors"]
    near: Float[Array | np.ndarray, "n rank"]
    own: Float[Array | np.ndarray, "n"]
    share: Float[Array | np.ndarray, "n"]


def side_of(cloud: Cloud, cost: Float[np.ndarray, "n factors"], radius: float, error: float) -> Side:
    """A cloud with neighbourhoods of this radius (Å), whose kernel is kept to `error`."""
    x = (cloud.x - cloud.share @ cloud.x).astype(np.float32)
    kernel = x @ x.T
    kernel *= 2
    kernel -= row_squares(x)
    kernel -= row_squares(x)[:, 0]
    kernel *= 0.5 / radius**2
    np.exp(kernel, out=kernel)
    share = cloud.share.astype(np.float32)
    own = np.einsum("ij,ij,j->i", kernel, kernel, share)
    return Side(cost.astype(np.float32), low_rank_factor(kernel, error), own, share)


def distance_factors(
    x: Float[np.ndarray, "n k"], y: Float[np.ndarray, "m k"]
) -> tuple[Float[np.ndarray, "n k+2"], Float[np.ndarray, "m k+2"]]:
    """Factor the matrix of squared distances between the rows of x and those of y as A Bᵀ; return A and B."""
    first = np.concatenate([-2 * x, row_squares(x), np.ones((len(x), 1))], axis=1)
    return first, np.concatenate([y, np.ones((len(y), 1)), row_squares(y)], axis=1)


def row_squares(x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n 1"]:
    """Sum of the squares of each row."""
    return np.einsum("ij,ij->i", x, x)[:, None]


def low_rank_factor(kernel: np.ndarray, error: float = DEFAULT.kernel_error) -> np.ndarray:
    """Matrix L (n, r) with |kernel − L Lᵀ| ≤ `error` everywhere; r is a fifth of n for a cloud's neighbourhoods.

    Cholesky decomposition with pivoting, ended early: the remainder of a positive definite matrix is positive definite,
    and its largest entry is on its diagonal.
    """
    (pivoted,) = get_lapack_funcs(("pstrf",), (kernel,))
    lower, order, rank, _ = pivoted(kernel.T, tol=error, lower=1)  # in LAPACK's order of memory
    unordered = np.empty((len(kernel), rank), kernel.dtype)
    unordered[order - 1] = np.tril(lower[:, :rank])
    return unordered


@program(static_argnames="iterations")
def coupling(
    start: Side,
    end: Side,
    weight: Float[Array, ""],
    epsilons: Float[Array, "rounds"],
    iterations: int = DEFAULT.iterations,
) -> Float[Array, "n m"]:
    """Coupling P that makes <C, P> + weight/2 Σ (K_ik − K'_jl)² P_ij P_kl small, with entropy ε.

    C is the linear cost, and K and K' are the kernels of the clouds. By successive linearisation (Peyré, Cuturi and
    Solomon 2016), one per round at that round's ε, each from the potentials of the round before; the first plan is that
    of the linear cost alone. The sum of squares is that of the kernels' own, and a product of the kernels and the plan,
    so that the cost of a round is a product of two factors.

    Args:
        start: the initial cloud.
        end: the target cloud.
        weight: of the quadratic term, Å².
        epsilons: ε of each round, Å².
        iterations: of Sinkhorn in a round.
    """
    solver = sinkhorn.Sinkhorn(min_iterations=iterations, max_iterations=iterations, inner_iterations=iterations)
    shares = jnp.asarray(start.share), jnp.asarray(end.share)

    def solve(cost, epsilon, f, g):
        problem = linear_problem.LinearProblem(geometry.Geometry(cost, epsilon=epsilon), *shares)
        solution = solver(problem, init=(f, g))
        return solution.matrix, solution.f, solution.g

    def round_(i, at):
        plan, f, g = at
        together = start.near.T @ plan @ end.near
        factor = jnp.concatenate([start.cost, start.near @ (-2 * weight * together)], axis=1)
        cost = factor @ jnp.concatenate([end.cost, end.near], axis=1).T
        return solve(cost + weight * (start.own[:, None] + end.own), epsilons[i], f, g)

    with jax.default_matmul_precision("float32"):  # accelerators would keep three digits, an error of many ε
        initial = solve(start.cost @ end.cost.T, epsilons[0], *map(jnp.zeros_like, shares))
        return jax.lax.fori_loop(0, len(epsilons), round_, initial)[0]


@struct.dataclass
class Correspondences(Term):
    """Distance of the carried points from where they belong.

    Attributes:
        ends: where each point belongs (points, 3), unit box.
        weight: of each point.
        reach: distance from which the loss is linear, in unit boxes.
    """

    ends: Leaf
    weight: Leaf
    reach: Leaf

    def __call__(self, carried: Carried) -> Float[Array, ""]:
        """Weighted mean of the Huber loss of the distances, in units of the reach."""
        return huber(carried.x, self.ends, self.weight, self.reach)

    def misplaced(self, carried: Carried, distance: float) -> Float[Array, ""]:
        """Fraction of the weight further from its ends than `distance` times the reach."""
        far = jnp.linalg.norm(carried.x - self.ends, axis=-1) > distance * self.reach
        return jnp.vdot(self.weight, far) / jnp.sum(self.weight)


def huber(moved: Points, ends: Points, weight: Float[Array, "points"], reach: Scalar) -> Float[Array, ""]:
    """Weighted mean of the Huber loss of the distances between points and their ends, in units of `reach`.

    Half the square of distances below `reach`, linear above.

    Args:
        moved: points after the flow, unit box.
        ends: where they belong, unit box.
        weight: weight of each point.
        reach: distance from which the loss is linear, in unit boxes.
    """
    distance = jnp.sqrt(jnp.sum((moved - ends) ** 2, axis=-1) + (1e-3 * reach) ** 2)
    return jnp.vdot(weight, optax.losses.huber_loss(distance / reach)) / jnp.sum(weight)
