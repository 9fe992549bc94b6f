"""Levels of binning: the points of mass at one resolution, how they move, and what the terms need to know of them."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from cryotrans_jax.core.flow import FieldMotion
from cryotrans_jax.core.grid import block_points
from cryotrans_jax.core.train import Scene
from cryotrans_jax.density.boxes import bounding_box, crop
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.motion.lattice import (
    Lattice,
    batch_lattices,
    cell_indices,
    make_lattice,
    node_indices,
    pad_and_stack,
)
from cryotrans_jax.motion.piecewise import AtPoints, OnLattice, Piecewise, arrange_rows
from cryotrans_jax.motion.symmetric import Copies, all_copies


class Sampling(NamedTuple):
    """How finely a stage samples the maps.

    Attributes:
        bin: voxel size of the comparison grid, in voxels of the map.
        points: distance between the points of mass, in voxels of the map.
        spacing: of the control lattice, Å; 0 integrates the flow at every point.
        tetrahedra: whether to make those of the rigidity.
    """

    bin: int = 1
    points: int = 1
    spacing: float = 0.0
    tetrahedra: bool = False


class Tetrahedra(NamedTuple):
    """Tetrahedra of nodes, for the rigidity.

    Attributes:
        nodes: numbers of the four nodes of each.
        edges: distances between neighbouring nodes along the axes, in unit boxes.
        share: weight of each, one in sum.
        corner: position of the first node of each, unit box.
        part: part (from 0) that each is in. What pads the smaller parts has no share.
    """

    nodes: Int[np.ndarray, "tetrahedra 4"]
    edges: Float[np.ndarray, "3"]
    share: Float[np.ndarray, "tetrahedra"]
    corner: Float[np.ndarray, "tetrahedra 3"]
    part: Int[np.ndarray, "tetrahedra"]


class Level(NamedTuple):
    """One target's points of mass at one binning, as NumPy's arrays in the unit box.

    They are made with NumPy, because operations that JAX runs outside of a program are compiled anew for every shape.

    Attributes:
        scene: points of mass and how they move.
        points: positions of the mass before the motion, in the order of the scene's masses.
        corner: outer corner of the comparison grid's first voxel.
        voxel: sides of its voxels.
        tetrahedra: of the nodes at which the flow is integrated; none unless asked for.
    """

    scene: Scene
    points: Float[np.ndarray, "all 3"]
    corner: Float[np.ndarray, "3"]
    voxel: Float[np.ndarray, "3"]
    tetrahedra: Tetrahedra


class Carried(NamedTuple):
    """What is carried by one velocity field, in the box around it.

    Attributes:
        mass: the mass, which is compared with the target.
        molecule: where it is, and the rest of the molecule, which is as rigid.
        start: first voxel of the box, a multiple of the distance between sampled points along each axis.
    """

    mass: Float[np.ndarray, "x y z"]
    molecule: Bool[np.ndarray, "x y z"]
    start: Int[np.ndarray, "3"]

    def sides(self, step: int) -> Int[np.ndarray, "3"]:
        """Sides of the molecule's box, in voxels that are sampled `step` apart."""
        low, high = bounding_box(self.molecule)
        return (high - 1) // step - low // step + 1


class Piece(NamedTuple):
    """Sampled points that one velocity field carries.

    Attributes:
        x: positions of the mass.
        rho: its masses.
        lattice: controls the points; None where the flow is integrated at each of them.
        tetrahedra: of the nodes, for the rigidity.
        weight: in the rigidity: the molecule's volume, or without a lattice the mass.
    """

    x: Float[np.ndarray, "points 3"]
    rho: Float[np.ndarray, "points"]
    lattice: Lattice | None
    tetrahedra: Tetrahedra
    weight: float

    @property
    def nodes(self) -> Float[np.ndarray, "nodes 3"]:
        """Points at which the flow is integrated."""
        return self.x if self.lattice is None else np.asarray(self.lattice.nodes)


def make_levels(problem: Problem, field: FieldMotion, sampling: Sampling) -> list[Level]:
    """Make the level of each trajectory; where the initial map is not divided it is the same for all.

    Args:
        problem: the prepared maps.
        field: the motion by one velocity field.
        sampling: how finely the maps are sampled.
    """
    if not problem.parts:
        whole = Carried(problem.carried, problem.carried_molecule, np.zeros(3, int))
        piece = make_piece(problem, whole, sampling)
        motion = AtPoints(field) if piece.lattice is None else OnLattice(field, piece.lattice)
        scene = Scene(motion, piece.x, piece.rho)
        return [make_level(problem, scene, piece.x, piece.tetrahedra, sampling)] * problem.trajectories
    each = [partial(parts_of, *own, sampling.points) for own in problem.labels_and_carried]  # one part in memory
    sides = np.max([part.sides(sampling.points) for parts in each for part in parts()], axis=0)
    pieces = [[make_piece(problem, part, sampling, sides) for part in parts()] for parts in each]
    return divided_levels(problem, field, pieces, sampling)


def parts_of(labels: np.ndarray, mass: np.ndarray, molecule: np.ndarray, step: int) -> Iterator[Carried]:
    """Mass and outline of each part in its box, in the order of the labels (1, 2, ...); boxes start every `step`."""
    within = np.where(molecule | (mass > 0), labels, 0)  # voxels of the solvent have the label of the nearest part
    for part, box in enumerate(ndimage.find_objects(within), 1):
        start = np.array([along.start for along in box]) // step * step
        whole = tuple(slice(low, -(-along.stop // step) * step) for low, along in zip(start, box, strict=True))
        own = labels[whole] == part
        yield Carried(np.where(own, mass[whole], 0), own & molecule[whole], start)


def make_level(problem: Problem, scene: Scene, points: np.ndarray, tetrahedra: Tetrahedra, sampling: Sampling) -> Level:
    """Level of a scene of the asymmetric unit, or of the whole where there is no symmetry; `points` are those of it."""
    unit = problem.voxel_size / problem.frame.edge
    if problem.rotations is not None:
        operators = [np.asarray(a, np.float32) for a in (problem.rotations, problem.shifts)]
        points = np.asarray(all_copies(points, *operators))
        scene = Scene(Copies(scene.motion, *operators), scene.x, np.tile(scene.rho, len(problem.rotations)))
    corner, voxel = problem.corner.astype(np.float32), (sampling.bin * unit).astype(np.float32)
    return Level(scene, points, corner, voxel, tetrahedra)


def divided_levels(
    problem: Problem, field: FieldMotion, pieces: Sequence[Sequence[Piece]], sampling: Sampling
) -> list[Level]:
    """Make the level of each trajectory from the pieces of its parts.

    All are padded alike: points to the largest part, trajectories with fewer parts than others by parts of no weight. A
    part's weight in the rigidity is that of its piece times its stiffness.
    """
    parts, count = len(problem.stiffness), len(pieces)
    each = [piece for own in pieces for piece in [*own, *[own[0]] * (parts - len(own))]]
    held = np.array([[piece.weight for piece in own] + [0.0] * (parts - len(own)) for own in pieces])
    weights = (held / held.sum(1, keepdims=True) * problem.stiffness).astype(np.float32)
    padded = [[len(piece.nodes) for piece in own] + [0] * (parts - len(own)) for own in pieces]
    most_nodes, rows = max(map(max, padded)), arrange_rows(padded)

    def by_part(arrays: Sequence[np.ndarray]) -> np.ndarray:
        stacked = pad_and_stack(arrays)
        return stacked.reshape(count, parts, *stacked.shape[1:])

    x = by_part([piece.x for piece in each])
    places = [[k * x.shape[2] + np.arange(len(piece.x)) for k, piece in enumerate(own)] for own in pieces]
    valid = pad_and_stack([np.concatenate(own) for own in places])
    rho = pad_and_stack([np.concatenate([piece.rho for piece in own]) for own in pieces])
    lattices = None if each[0].lattice is None else batch_lattices([piece.lattice for piece in each if piece.lattice])
    nodes, corners, own_shares = (
        by_part([getattr(piece.tetrahedra, name) for piece in each]) for name in ("nodes", "corner", "share")
    )
    nodes = nodes + most_nodes * np.arange(parts)[:, None, None]
    shares, part = weights[..., None] * own_shares, np.repeat(np.arange(parts), nodes.shape[2])
    edges, levels = each[0].tetrahedra.edges, []
    for number in range(count):
        own = slice(number * parts, (number + 1) * parts)
        motion = AtPoints(field) if lattices is None else OnLattice(field, select(lattices, own))
        scene = Scene(Piecewise(motion, rows[number], valid[number]), x[number], rho[number])
        at = nodes[number].reshape(-1, 4), edges, shares[number].ravel(), corners[number].reshape(-1, 3), part
        levels.append(make_level(problem, scene, x[number].reshape(-1, 3)[valid[number]], Tetrahedra(*at), sampling))
    return levels


def select(lattices: Lattice, chosen: slice) -> Lattice:
    """Some lattices of a stack of them."""
    values = {name: getattr(lattices, name)[chosen] for name in Lattice._fields if name != "weights"}
    return Lattice(weights=tuple(axis[chosen] for axis in lattices.weights), **values)


def make_piece(
    problem: Problem, carried: Carried, sampling: Sampling, sides: Int[np.ndarray, "3"] | None = None
) -> Piece:
    """The points of what one velocity field carries.

    `sides` is the size of the lattice's box in sampled voxels, where it should be larger than the molecule.
    """
    unit, step = problem.voxel_size / problem.frame.edge, sampling.points
    place, rho, filled = block_points(carried.mass, step)
    x, edges = (problem.corner + (carried.start + place) * unit).astype(np.float32), step * unit
    cells = nodes = np.argwhere(filled)
    lattice, held, spacing = None, rho, sampling.spacing
    if spacing:
        _, held, inside = block_points(carried.molecule.astype(np.float32), step)
        low, high = bounding_box(inside)
        end = high if sides is None else low + sides
        around, points = (crop(a, low, end) > 0 for a in (inside, filled))
        pitch = spacing / (step * problem.voxel_size.min())
        corner = problem.corner + (carried.start + low * step) * unit
        lattice = make_lattice(points, corner, step * unit, pitch, around)
        cells = cell_indices(np.argwhere(inside) - low, spacing / (step * problem.voxel_size))
        nodes, edges = node_indices(lattice), np.full(3, spacing / problem.frame.edge)
    rows, share = make_tetrahedra(nodes, cells, held) if sampling.tetrahedra else (np.zeros((0, 4), int), np.zeros(0))
    first = (x if lattice is None else np.asarray(lattice.nodes))[rows[:, 0]]
    part = np.zeros(len(rows), int)
    tetrahedra = Tetrahedra(rows, edges.astype(np.float32), share.astype(np.float32), first, part)
    return Piece(x, rho.astype(np.float32), lattice, tetrahedra, float(held.sum()))


def make_tetrahedra(nodes: np.ndarray, cells: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tetrahedra of the rigidity: rows (i, its next node along x, along y, along z), where the cell at i holds any.

    Args:
        nodes: grid points (n, 3).
        cells: the cell (points, 3) that contains each point of the molecule.
        held: mass or volume of the points.

    Returns:
        The rows, and the share of mass or volume in the cell of each.
    """
    shape = np.maximum(nodes.max(0), cells.max(0)) + 2
    number, in_cell = np.full(shape, -1), np.zeros(shape)
    number[tuple(nodes.T)] = np.arange(len(nodes))
    np.add.at(in_cell, tuple(cells.T), held)
    rows = np.stack([number[tuple((nodes + step).T)] for step in np.eye(4, 3, -1, dtype=int)], -1)
    rows = rows[(rows >= 0).all(1) & (in_cell[tuple(nodes.T)] > 0)]
    share = in_cell[tuple(nodes[rows[:, 0]].T)]
    return rows, share / share.sum()
