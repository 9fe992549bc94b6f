"""The backbone of a model of the initial map: residues that follow one another stay as far apart as they are.

No motion of a molecule changes these distances. Noise that strains its map does, and so do bodies that slide along each
other: density alone does not hold a chain together.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int
from scipy.spatial import cKDTree

from cryotrans_jax.core.losses import Carried, Leaf, Term
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit.levels import Level, Tetrahedra
from cryotrans_jax.fit.targets import Balance, rigidity_factor
from cryotrans_jax.fit.terms import TermSettings
from cryotrans_jax.io.chain import Chain


@struct.dataclass
class Distances(Term):
    """Strain of the distances between residues that follow one another.

    Attributes:
        weight: factor of the term.
        nodes: numbers of the four nodes from which each residue's position is made (residues, 4).
        shares: their weights (residues, 4).
        first: number of the first residue of each distance (distances,).
        lengths: distances before the motion (distances,), unit box.
        counted: weight of each (distances,), one in sum.
        reach: strain beyond which the term grows in proportion to it.
    """

    weight: Leaf
    nodes: Leaf
    shares: Leaf
    first: Leaf
    lengths: Leaf
    counted: Leaf
    reach: float = struct.field(pytree_node=False, default=0.3)

    def __call__(self, carried: Carried) -> Float[Array, ""]:
        """Mean of four times the squared strain, which is the rigidity of a small strain along one axis."""
        x = jnp.einsum("rk,rkc->rc", self.shares, carried.nodes[self.nodes])
        ends = x[self.first + jnp.array([[0], [1]])]
        squared = jnp.sum((ends[1] - ends[0]) ** 2, axis=1)
        strain = jnp.sqrt(squared + 1e-4 * self.lengths**2) / self.lengths - 1  # whose derivative is finite at 0
        each = 8 * self.reach**2 * (jnp.sqrt(1 + (strain / self.reach) ** 2) - 1)
        return self.weight * jnp.vdot(self.counted, each)


@dataclass(frozen=True)
class Backbone(TermSettings):
    """Strain of the backbone of the initial map's model; without a model the term is 0.

    Attributes:
        weight: factor of the term, which is multiplied by `targets.rigidity_factor`.
        reach: strain beyond which the term grows in proportion to it.
        balance: for that factor.
    """

    weight: float = 10.0
    reach: float = 0.3
    balance: Balance = Balance()
    label = "backbone"
    rigid = True
    floor = 0.0

    def make(self, problem: Problem, level: Level, bin_: int, target: int) -> Distances:
        """Make the term."""
        chain = problem.chain or Chain(np.zeros((0, 3)), np.zeros(0, bool))
        x, first = problem.frame.to_unit(chain.x), np.flatnonzero(chain.joined[:-1])
        nodes, shares, held = held_by_nodes(level.tetrahedra, x, owners(problem, x, target))
        lengths = np.linalg.norm(x[first + 1] - x[first], axis=1)
        counted = held[first] & held[first + 1] & (lengths > 0)
        factor = rigidity_factor(problem, target, self.balance) if counted.any() else 0.0
        return Distances(
            np.float32(self.weight * factor),
            nodes,
            shares,
            first,
            np.where(counted, lengths, 1.0).astype(np.float32),
            (counted / max(counted.sum(), 1)).astype(np.float32),
            self.reach,
        )


def owners(problem: Problem, x: Float[np.ndarray, "residues 3"], target: int) -> Int[np.ndarray, "residues"]:
    """The part (from 0) that carries each residue; -1 outside of the box, and of the asymmetric unit."""
    shape = np.array(problem.molecule.shape)
    voxel = np.floor((x - problem.corner) * problem.frame.edge / problem.voxel_size).astype(int)
    at, inside = tuple(np.clip(voxel, 0, shape - 1).T), ((voxel >= 0) & (voxel < shape)).all(1)
    trajectory, carried = 0 if problem.waypoints else target, problem.carried_molecule
    carried = carried if carried.ndim == 3 else carried[trajectory]
    part = np.zeros(len(x), int) if problem.labels is None else problem.labels[trajectory][at] - 1
    return np.where(inside & carried[at], part, -1)


def held_by_nodes(
    tetrahedra: Tetrahedra, x: Float[np.ndarray, "residues 3"], part: Int[np.ndarray, "residues"]
) -> tuple[Int[np.ndarray, "residues 4"], Float[np.ndarray, "residues 4"], Bool[np.ndarray, "residues"]]:
    """The nodes of the tetrahedra in whose cells residues are, and their weights.

    The weighted sum of the nodes is the residue's position, also after any affine motion.

    Args:
        tetrahedra: of all parts.
        x: positions of the residues, unit box.
        part: of each; -1 for those that are not carried.

    Returns:
        Numbers of the nodes, their weights, and whether there are any.
    """
    nodes, shares, held = np.zeros((len(x), 4), np.int32), np.zeros((len(x), 4), np.float32), np.zeros(len(x), bool)
    for own in np.unique(part):
        rows = np.flatnonzero((tetrahedra.part == own) & (tetrahedra.share > 0))
        chosen = part == own
        if own < 0 or not len(rows):
            continue
        scaled = x[chosen] / tetrahedra.edges
        _, nearest = cKDTree(tetrahedra.corner[rows] / tetrahedra.edges + 0.5).query(scaled, p=np.inf)
        row = rows[nearest]
        along = scaled - tetrahedra.corner[row] / tetrahedra.edges
        nodes[chosen], held[chosen] = tetrahedra.nodes[row], True
        shares[chosen] = np.concatenate([1 - along.sum(1, keepdims=True), along], axis=1)
    return nodes, shares, held
