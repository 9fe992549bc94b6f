"""The chain of an atomic model: which residues are joined, and what it takes to part them.

Density alone does not tell one helix from another. The chain does: residues that follow one another stay together.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import gemmi
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import spatial

from cryotrans_jax.io.atoms import residue_sites

Points = Float[np.ndarray, "points 3"]
NEXT = 8.0  # Å: largest distance of residues in sequence; C4' of nucleotides are 5 to 7 Å apart
ALONG = 3.8  # Å that a residue adds to the length of a chain


class Chain(NamedTuple):
    """Residues of a model of the initial state, in its order.

    Attributes:
        x: position of the atom that stands for each (`io.atoms.residue_atom`), Å.
        joined: whether each is joined to the next one.
    """

    x: Float[np.ndarray, "residues 3"]
    joined: Bool[np.ndarray, "residues"]

    @classmethod
    def of(cls, model: gemmi.Structure) -> "Chain":
        """The chain of a model; residues are joined if they follow one another in number and are near each other."""
        sites = [*residue_sites(model)]
        x = np.array([atom.pos.tolist() for *_, atom in sites], float).reshape(-1, 3)
        numbers = np.array([residue.seqid.num for _, residue, _ in sites], int)
        same = np.array([first is second for (first, *_), (second, *_) in pairwise(sites)], bool)
        near = np.linalg.norm(np.diff(x, axis=0), axis=1) < NEXT
        joined = same & np.isin(np.diff(numbers), (0, 1)) & near
        return cls(x, np.append(joined, np.zeros(len(x) - len(joined), bool)))

    @property
    def segment(self) -> Int[np.ndarray, "residues"]:
        """Number of the unbroken segment of the chain that each residue is in."""
        return np.concatenate([[0], np.cumsum(~self.joined)])[: len(self.x)]

    def residues_at(self, points: Points, reach: float) -> Int[np.ndarray, "points"]:
        """Number of the residue nearest to each point, or -1 where that is further away than `reach` (Å)."""
        if not len(self.x):
            return np.full(len(points), -1)
        away, nearest = spatial.cKDTree(self.x).query(points)
        return np.where(away <= reach, nearest, -1)

    def links(self, points: Points, reach: float, carries: Sequence[Callable[[Points], Points]]) -> "Links":
        """Links between points of density: those at which residues are that follow one another.

        Args:
            points: positions of the density, Å.
            reach: largest distance of a residue from its point, Å; residues that have none are passed over.
            carries: for each part the function that carries positions, Å.
        """
        away, place = spatial.cKDTree(points).query(self.x) if len(self.x) else (np.zeros(0), np.zeros(0, int))
        seen = np.flatnonzero(away <= reach)
        first, second, segment = seen[:-1], seen[1:], self.segment
        kept = (segment[first] == segment[second]) & (place[first] != place[second])
        first, second = first[kept], second[kept]
        moved = np.stack([carry(self.x) for carry in carries], axis=1)
        before = np.linalg.norm(self.x[first] - self.x[second], axis=-1)
        pairs = np.stack([place[first], place[second]], axis=1)
        return Links(pairs, before, ALONG * (second - first - 1), moved[first], moved[second])


class Links(NamedTuple):
    """Pairs of points of density that a chain joins.

    Attributes:
        pairs: numbers of the two points.
        length: distance of the residues at them, Å.
        slack: Å by which it may change, as residues between them are not seen.
        first: where each part takes the residue at the first point, Å.
        second: where each part takes that at the second, Å.
    """

    pairs: Int[np.ndarray, "links 2"]
    length: Float[np.ndarray, "links"]
    slack: Float[np.ndarray, "links"]
    first: Float[np.ndarray, "links parts 3"]
    second: Float[np.ndarray, "links parts 3"]

    def stretches(self, choices: Int[np.ndarray, "points choices"]) -> Float[np.ndarray, "links choices choices"]:
        """By how much (Å) each link becomes longer or shorter, for each choice of its first point and of its second.

        Args:
            choices: parts among which each point chooses.
        """
        each = np.arange(len(self.pairs))[:, None]
        first, second = self.first[each, choices[self.pairs[:, 0]]], self.second[each, choices[self.pairs[:, 1]]]
        after = np.linalg.norm(first[:, :, None] - second[:, None], axis=-1)
        return np.maximum(np.abs(after - self.length[:, None, None]) - self.slack[:, None, None], 0)
