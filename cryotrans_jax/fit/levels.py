"""Levels of binning: the points of mass, lattices and targets of a stage."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cryotrans_jax.core import losses
from cryotrans_jax.core.grid import binned, block_points, bounding_box
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.density.spectrum import shell_power
from cryotrans_jax.motion import lattice as lattices

DETAIL_AT_3A = 0.045  # 1/Å²: mean square spatial frequency of a map at 3 Å
NOISE_RIGIDITY = 0.5  # 1/Å³: weight of the noise in the weight of the rigidity
MAX_ROWS = 64  # rows into which the points of the largest part are divided
ROW_COST = 32  # points: cost of a row besides that of the points in it


class Rows(NamedTuple):
    """Points of several parts in rows of one part each, to evaluate fields of parts of any size in one batch.

    Attributes:
        points: numbers of each row's points among those of all parts, padded to the width.
        owner: part of each row.
        place: where each part's points are among those of all rows.
    """

    points: Int[Array, "*trajectories rows width"]
    owner: Int[Array, "*trajectories rows"]
    place: Int[Array, "*trajectories parts most"]


class Level(NamedTuple):
    """A problem at one binning, as a tuple of arrays in the unit box that passes through jit.

    Where the initial map is divided into parts, every array has a leading axis of trajectories, and `x`, `lattice`,
    `tetrahedra` and `mass_fraction` an axis of parts after it, padded to the largest part. With a symmetry, all arrays
    but `rho` are those of the asymmetric unit.

    Attributes:
        x: positions of the points of mass.
        rho: mass of the points; with parts, of the `valid` points; with a symmetry, of the points of all copies, copy
            after copy.
        corner: outer corner of the comparison grid's first voxel.
        voxel: sides of its voxels.
        lattice: control lattice of the points; None: the flow is integrated at the points.
        tetrahedra: for the rigidity, indices of nodes (of points without a lattice).
        edges: distances between neighbouring nodes.
        mass_fraction: fraction of the mass in each tetrahedron.
        valid: with parts, indices of the points of all parts, one part after the other, without padding.
        rows: with parts, the points at which the flow is integrated (the lattice's nodes if there is one), with little
            padding.
        rotations: rotations of the symmetry's operators.
        shifts: their shifts.
    """

    x: Float[Array, "*trajectories_parts points 3"]
    rho: Float[Array, "*trajectories all"]
    corner: Float[Array, "*trajectories 3"]
    voxel: Float[Array, "*trajectories 3"]
    lattice: lattices.Lattice | None = None
    tetrahedra: Int[Array, "*trajectories_parts tetrahedra 4"] | None = None
    edges: Float[Array, "*trajectories 3"] | None = None
    mass_fraction: Float[Array, "*trajectories_parts tetrahedra"] | None = None
    valid: Int[Array, "trajectories all"] | None = None
    rows: Rows | None = None
    rotations: Float[Array, "*trajectories copies 3 3"] | None = None
    shifts: Float[Array, "*trajectories copies 3"] | None = None

    @property
    def has_parts(self) -> bool:
        """Whether there is an axis of parts."""
        return self.x.ndim > 2

    @property
    def points(self) -> Float[Array, "all 3"]:
        """Points with mass of one trajectory's level, of all parts and copies."""
        return self.with_copies(self.x if self.valid is None else self.x.reshape(-1, 3)[self.valid])

    def with_copies(self, x: Float[Array, "*times unit 3"]) -> Float[Array, "*times all 3"]:
        """Points of the asymmetric unit and of all its copies, of one trajectory; `x` itself without a symmetry."""
        if self.rotations is None:
            return x
        every = jnp.einsum("gij,...nj->...gni", self.rotations, x, precision="highest") + self.shifts[:, None]
        return every.reshape(*x.shape[:-2], -1, 3)

    def for_trajectory(self, trajectory: int) -> "Level":
        """The level of one trajectory: its own where the initial map is divided, else the one that all share."""
        return jax.tree.map(lambda a: a[trajectory], self) if self.has_parts else self


def make_level(problem: Problem, bin_: int, sampling: int, spacing: float, tetrahedra: bool) -> Level:
    """The problem at one binning.

    Args:
        problem: the prepared maps.
        bin_: voxel size of the comparison grid, in voxels of the map.
        sampling: distance between the points of mass, in voxels of the map.
        spacing: of the control lattice, Å; 0 integrates the flow at every point.
        tetrahedra: whether to make those of the rigidity.
    """
    settings = bin_, sampling, spacing, tetrahedra
    if not problem.parts:
        return to_device(add_operators(problem, level_of_mass(problem, problem.carried, *settings)))
    masses = [
        [np.where(labels == part + 1, carried, 0) for part in range(int(labels.max()))]
        for labels, carried in problem.labels_and_mass
    ]
    boxes = [bounding_box(mass > 0) for own in masses for mass in own]
    sides = np.max([(high - 1) // sampling - low // sampling + 1 for low, high in boxes], axis=0)
    levels = [[level_of_mass(problem, mass, *settings, sides) for mass in own] for own in masses]
    return to_device(add_operators(problem, batch_levels(levels, problem.stiffness)))


def add_operators(problem: Problem, level: Level) -> Level:
    """Add to a level of the asymmetric unit what its copies need; the level itself without a symmetry."""
    if problem.rotations is None:
        return level
    operators = [np.asarray(a, np.float32) for a in (problem.rotations, problem.shifts)]
    if level.has_parts:
        operators = [np.stack([a] * len(level.x)) for a in operators]
    return level._replace(rho=np.tile(level.rho, len(problem.rotations)), rotations=operators[0], shifts=operators[1])


def to_device(level: Level) -> Level:
    """The level with JAX's arrays.

    It is made with NumPy's, because operations that JAX runs outside of a program are compiled anew for every shape.
    """
    return jax.tree.map(jnp.asarray, level)


def batch_levels(levels: Sequence[Sequence[Level]], stiffness: Sequence[float]) -> Level:
    """Stack the levels of each trajectory's parts; a part's weight in the rigidity is its mass times its stiffness.

    Trajectories with fewer parts than others are padded with parts of no mass.
    """
    parts, count = len(stiffness), len(levels)
    each = [level for own in levels for level in [*own, *[own[0]] * (parts - len(own))]]
    masses = np.array([[float(level.rho.sum()) for level in own] + [0.0] * (parts - len(own)) for own in levels])

    def by_part(a: np.ndarray) -> np.ndarray:
        return a.reshape(count, parts, *a.shape[1:])

    first, x = each[0], by_part(lattices.pad_and_stack([level.x for level in each]))
    places = [[k * x.shape[2] + np.arange(len(level.x)) for k, level in enumerate(own)] for own in levels]
    batched = first._replace(
        x=x,
        valid=lattices.pad_and_stack([np.concatenate(own) for own in places]),
        rho=lattices.pad_and_stack([np.concatenate([level.rho for level in own]) for own in levels]),
        **{name: np.stack([getattr(first, name)] * count) for name in ("corner", "voxel")},
    )
    sizes = [[len(level.x if level.lattice is None else level.lattice.nodes) for level in own] for own in levels]
    batched = batched._replace(rows=arrange_rows([own + [0] * (parts - len(own)) for own in sizes]))
    if first.lattice is not None:
        batched = batched._replace(
            lattice=jax.tree.map(by_part, lattices.batch_lattices([level.lattice for level in each]))
        )
    if first.mass_fraction is not None:
        weights = (masses / masses.sum(1, keepdims=True) * stiffness).astype(np.float32).ravel()
        shares = [weight * level.mass_fraction for weight, level in zip(weights, each, strict=True)]
        rows = lattices.pad_and_stack([level.tetrahedra for level in each])
        edges = np.stack([first.edges] * count)
        batched = batched._replace(
            tetrahedra=by_part(rows), mass_fraction=by_part(lattices.pad_and_stack(shares)), edges=edges
        )
    return batched


def arrange_rows(sizes: Sequence[Sequence[int]]) -> Rows:
    """Arrange parts of these numbers of points in rows, for each trajectory, of the width that costs least."""
    most = max(map(max, sizes))
    widths = {-(-most // parts // 16) * 16 for parts in range(1, MAX_ROWS + 1)}

    def needed(width: int) -> int:
        return max(sum(-(-n // width) for n in own) for own in sizes)

    width = min(widths, key=lambda width: needed(width) * (width + ROW_COST))
    shape = len(sizes), needed(width)
    points, owner = np.zeros((*shape, width), int), np.zeros(shape, int)
    place = np.zeros((len(sizes), len(sizes[0]), most), int)
    for trajectory, own in enumerate(sizes):
        row = 0
        for part, size in enumerate(own):
            taken, each = -(-size // width), np.arange(size)
            points[trajectory, row : row + taken].flat[:size] = part * most + each
            owner[trajectory, row : row + taken] = part
            place[trajectory, part, :size] = row * width + each
            row += taken
    return Rows(points, owner, place)


def level_of_mass(
    problem: Problem,
    mass: np.ndarray,
    bin_: int,
    sampling: int,
    spacing: float,
    tetrahedra: bool,
    sides: Int[np.ndarray, "3"] | None = None,
) -> Level:
    """`make_level` for this mass, a part of the initial map's, under one velocity field.

    `sides` is the size of the lattice's box in sampled voxels, where it should be larger than the mass.
    """
    unit = problem.voxel_size / problem.frame.edge
    place, rho, filled = block_points(mass, sampling)
    level = Level(
        x=(problem.corner + place * unit).astype(np.float32),
        rho=rho.astype(np.float32),
        corner=problem.corner.astype(np.float32),
        voxel=(bin_ * unit).astype(np.float32),
    )
    cells, edges = np.argwhere(filled), sampling * unit
    if spacing:
        low, high = bounding_box(filled)
        pitch = spacing / (sampling * problem.voxel_size.min())
        box = filled[tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))]
        if sides is not None:
            box = np.pad(box, [(0, n - m) for n, m in zip(sides, box.shape, strict=True)])
        lattice = lattices.make_lattice(box, problem.corner + low * sampling * unit, sampling * unit, pitch)
        level = level._replace(lattice=lattice)
        cells = lattices.cell_indices(cells - low, spacing / (sampling * problem.voxel_size))
        edges = np.full(3, spacing / problem.frame.edge)
    if tetrahedra:
        nodes = lattices.node_indices(level.lattice) if spacing else cells
        rows, mass_fraction = make_tetrahedra(nodes, cells, rho)
        level = level._replace(
            tetrahedra=rows, edges=edges.astype(np.float32), mass_fraction=mass_fraction.astype(np.float32)
        )
    return level


def make_tetrahedra(nodes: np.ndarray, cells: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tetrahedra of the rigidity: rows (i, its next node along x, along y, along z), where the cell at i has mass.

    Args:
        nodes: grid points (n, 3).
        cells: the cell (points, 3) that contains each point of mass.
        mass: of the points.

    Returns:
        The rows, and the fraction of the mass in the cell of each.
    """
    shape = np.maximum(nodes.max(0), cells.max(0)) + 2
    number, mass_in_cell = np.full(shape, -1), np.zeros(shape)
    number[tuple(nodes.T)] = np.arange(len(nodes))
    np.add.at(mass_in_cell, tuple(cells.T), mass)
    rows = np.stack([number[tuple((nodes + step).T)] for step in np.eye(4, 3, -1, dtype=int)], -1)
    rows = rows[(rows >= 0).all(1) & (mass_in_cell[tuple(nodes.T)] > 0)]
    fraction = mass_in_cell[tuple(nodes[rows[:, 0]].T)]
    return rows, fraction / fraction.sum()


def level_targets(problem: Problem, bin_: int, kind: str, extra: float = 0.0) -> tuple[np.ndarray, list[float]]:
    """Targets at one binning, and the width (Å) of the blur of the carried map for each.

    Args:
        problem: the prepared maps.
        bin_: voxel size, in voxels of the map.
        kind: "mass" (thresholded, no blur) or "density" (not thresholded, at matched resolution: a target sharper than
            the initial map is itself blurred here).
        extra: blur of both sides in addition, Å ("density" only).
    """
    if kind == "mass":
        return np.stack([binned(m, bin_) for m in problem.masses]), [0.0] * len(problem.masses)
    volumes, widths = [], []
    for density, variance in zip(problem.densities, problem.residual_blurs, strict=True):
        if (sigma := np.sqrt(max(-variance, 0.0) + extra**2)) > 0:
            kernel = losses.gaussian_blur(density.shape, problem.voxel_size, sigma)
            density = np.asarray(losses.blur(jnp.asarray(density), kernel))
        volumes.append(binned(density, bin_))
        widths.append(float(np.sqrt(max(variance, 0.0) + extra**2)))
    return np.stack(volumes), widths


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


def rigidity_factors(problem: Problem) -> list[float]:
    """Factor on the weight of the rigidity for each target, which keeps it in proportion to the target's information.

    The matched loss of points with an rms error d is about (4π²/3) s² d², with s² the mean square spatial frequency of
    the carried map at the target's resolution, weighted by its power. A target with less detail weighs less against the
    rigidity. The factor is the square root of s² over that of a map at 3 Å (DETAIL_AT_3A), at most 1: halfway between a
    constant weight and one that is proportional to s².

    Noise adds to the factor, as by Bayes' rule a prior weighs more the noisier the data are: NOISE_RIGIDITY times the
    power of the noise in a volume of the molecule's size (Å³) over that of the signal.
    """
    s, power = shell_power(problem.initial, problem.voxel_size)
    volume = np.count_nonzero(problem.initial) * problem.voxel_size.prod()

    def one(rest: float, density: np.ndarray, outside: np.ndarray, inside: np.ndarray) -> float:
        weight = s**2 * power * np.exp(-4 * np.pi**2 * max(rest, 0.0) * s**2)  # a shell has about s² coefficients
        detail = weight @ s**2 / weight.sum() / DETAIL_AT_3A
        noise = noise_variance(outside, inside) * volume / signal_power(density, outside, inside)
        return float(np.sqrt(min(detail, 1.0)) + NOISE_RIGIDITY * noise)

    every = problem.residual_blurs, problem.densities, problem.solvent.densities, problem.masses > 0
    return [one(*each) for each in zip(*every, strict=True)]


def level_blur(problem: Problem, bin_: int, widths: Sequence[float]) -> losses.Blurs | None:
    """Matrices (targets, n, n) for each axis that blur a carried map by the widths (Å); None where none is needed."""
    if max(widths) < 1e-3:
        return None
    shape = tuple(n // bin_ for n in problem.initial.shape)
    each = [losses.gaussian_blur(shape, bin_ * problem.voxel_size, w) for w in widths]
    return tuple(jnp.stack(axis) for axis in zip(*each, strict=True))
