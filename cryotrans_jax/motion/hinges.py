"""Search for hinges: rotate the chain on one side of a residue about it, to fit the density that is not explained yet.

Most domains hang on their neighbours by one or two strands of the chain. Turned about such a strand, a domain has only
its rotation to be found. This is found in more noise than a pose that may be anywhere.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cryotrans_jax.density.align import even_rotations
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.io.maps import Map

Points = Float[np.ndarray, "points 3"]


@dataclass(frozen=True)
class HingeSearch:
    """How hinges are searched for.

    Attributes:
        anchors: bodies at most that stay where they are, while what hangs on them is turned.
        pivots: residues of a chain that are tried, at most.
        reach: residues at most that are turned with one side.
        least: points of density at least that are turned.
        rotations: number of rotations that are tried.
        each: of these kept for each pivot and side.
        refined: turned sides that are refined,
        kept: and further motions that are kept.
        settle: Å by which the refinement moves a side at most; rotations lie 25° apart.
        apart: rms distance from which on two of them are not the same, Å.
    """

    anchors: int = 3
    pivots: int = 120
    reach: int = 150
    least: int = 12
    rotations: int = 1000
    each: int = 2
    refined: int = 60
    kept: int = 24
    settle: float = 12.0
    apart: float = 1.5


class TurnedSide(NamedTuple):
    """Points on one side of a hinge, turned.

    Attributes:
        gain: by how much more of the target they explain, in units of the density's squares.
        points: numbers of the points.
        motion: their motion from the initial map to the target, Å.
    """

    gain: float
    points: Int[np.ndarray, "some"]
    motion: Transform


class Density(NamedTuple):
    """Points of the initial map's density, and how they are now explained.

    Attributes:
        x: positions, Å.
        density: band-passed density of each.
        residue: number of the residue at each, -1 where there is none.
        explained: product of its density with the target's where its present motion takes it.
        fixed: which of them stay with the anchor.
    """

    x: Points
    density: Float[np.ndarray, "points"]
    residue: Int[np.ndarray, "points"]
    explained: Float[np.ndarray, "points"]
    fixed: Bool[np.ndarray, "points"]


def turned_sides(chain: Chain, given: Density, anchor: Transform, left: Map, search: HingeSearch) -> list[TurnedSide]:
    """Turn each side of the chain about residues of a body that stays where it is.

    How far along the chain a side reaches is chosen for each rotation, so that the most is gained.

    Args:
        chain: the chain.
        given: the initial map's density; its fixed points are those of the body.
        anchor: motion of the body that stays, Å.
        left: what this body leaves of the target, band-passed.
        search: how hinges are searched for.

    Returns:
        The best for each residue and side.
    """
    turns, found = even_rotations(search.rotations).as_matrix(), list[TurnedSide]()
    segment, moved = chain.segment, anchor(given.x)
    look_up, inverse = NearestVoxel.of(left), turns.transpose(0, 2, 1).astype(np.float32)
    own = np.unique(given.residue[given.fixed & (given.residue >= 0)])
    for pivot in own[:: -(-len(chain.x) // search.pivots)]:
        centre, away = anchor(chain.x[pivot][None])[0], given.residue - pivot
        near = (given.residue >= 0) & (segment[given.residue] == segment[pivot]) & (np.abs(away) <= search.reach)
        for side in (away > 0, away < 0):
            points = np.flatnonzero(near & side)
            points = points[np.argsort(np.abs(away[points]), kind="stable")]
            if len(points) < search.least:
                continue
            there = look_up((moved[points] - centre).astype(np.float32) @ inverse, centre)
            gains = np.cumsum(given.density[points] * there - given.explained[points], axis=1)[:, search.least - 1 :]
            reached, best = gains.argmax(1), gains.max(1)
            for turn in np.argsort(-best)[: search.each]:
                motion = Transform(turns[turn], centre - turns[turn] @ centre).after(anchor)
                found.append(TurnedSide(float(best[turn]), points[: search.least + reached[turn]], motion))
    return found


class NearestVoxel(NamedTuple):
    """Densities of the voxels nearest to many positions, 0 outside of the map.

    Attributes:
        density: of the map with a border of zeros, in one row.
        shape: with the border.
        origin: centre of the border's first voxel, Å.
        size: of a voxel, Å.
    """

    density: Float[np.ndarray, "voxels"]
    shape: Int[np.ndarray, "3"]
    origin: Float[np.ndarray, "3"]
    size: Float[np.ndarray, "3"]

    @classmethod
    def of(cls, map_: Map) -> "NearestVoxel":
        """Those of a map."""
        padded = np.pad(map_.density, 1)
        return cls(padded.ravel(), np.array(padded.shape), map_.origin - map_.voxel_size, map_.voxel_size)

    def __call__(self, x: Float[np.ndarray, "*some 3"], shift: Float[np.ndarray, "3"]) -> Float[np.ndarray, "*some"]:
        """Densities at the positions x + shift, Å."""
        index = x / self.size.astype(x.dtype) + ((shift - self.origin) / self.size + 0.5).astype(x.dtype)
        index = np.clip(index, 0, (self.shape - 1).astype(x.dtype)).astype(np.int32)
        return self.density[(index[..., 0] * self.shape[1] + index[..., 1]) * self.shape[2] + index[..., 2]]
