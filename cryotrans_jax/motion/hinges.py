"""Search for hinges: rotate the chain on one side of a residue about it, to fit the density that is not explained yet.

Most domains hang on their neighbours by one or two strands of the chain. Turned about such a strand, a domain has only
its rotation to be found. This is found in more noise than a pose that may be anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cryotrans_jax.density.align import even_rotations
from cryotrans_jax.density.boxes import padded_row, padded_size
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.io.maps import Map
from cryotrans_jax.io.programs import mapped, program

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
    turns, segment, moved = even_rotations(search.rotations).as_matrix(), chain.segment, anchor(given.x)
    sides, own = list[Side](), np.unique(given.residue[given.fixed & (given.residue >= 0)])
    for pivot in own[:: -(-len(chain.x) // search.pivots)]:
        centre, away = anchor(chain.x[pivot][None])[0], given.residue - pivot
        near = (given.residue >= 0) & (segment[given.residue] == segment[pivot]) & (np.abs(away) <= search.reach)
        for beyond in (away > 0, away < 0):
            points = np.flatnonzero(near & beyond)
            if len(points) >= search.least:
                sides.append(Side(centre, points[np.argsort(np.abs(away[points]), kind="stable")]))
    if not sides:
        return []
    hanging, volume = hanging_sides(sides, moved, given, left), voxels_of(left, turns)
    found = jax.device_get(best_turns(hanging, volume, search.least, search.each))
    return [
        TurnedSide(float(gain), side.points[:reached], about(side.centre, turns[turn]).after(anchor))
        for side, *best in zip(sides, *found, strict=False)  # the last ones of `found` are padding
        for gain, turn, reached in zip(*best, strict=True)
    ]


class Side(NamedTuple):
    """What hangs on one side of a residue.

    Attributes:
        centre: position of the residue with its body, Å.
        points: numbers of the points, the nearest along the chain first.
    """

    centre: Float[np.ndarray, "3"]
    points: Int[np.ndarray, "some"]


class Hanging(NamedTuple):
    """The points of several sides, padded to the largest, and beyond the last side by sides without points.

    Attributes:
        sizes: number of points of each.
        x: positions of the points from the centre, Å.
        centre: in voxels of the target.
        density: band-passed density of each point.
        explained: product of its density with the target's where its present motion takes it.
    """

    sizes: Int[np.ndarray, "sides"]
    x: Float[np.ndarray, "sides most 3"]
    centre: Float[np.ndarray, "sides 3"]
    density: Float[np.ndarray, "sides most"]
    explained: Float[np.ndarray, "sides most"]


class Voxels(NamedTuple):
    """A density, to be looked up under many rotations.

    Attributes:
        density: of the map with a border of zeros, in one row, padded.
        shape: with the border.
        turns: for each axis of the map (first) what takes positions (Å) to voxels, for each rotation (last).
    """

    density: Float[np.ndarray, "voxels"]
    shape: Int[np.ndarray, "3"]
    turns: Float[np.ndarray, "3 3 turns"]


def about(centre: Float[np.ndarray, "3"], turn: Float[np.ndarray, "3 3"]) -> Transform:
    """The rotation by this matrix about a position, Å."""
    return Transform(turn, centre - turn @ centre)


def hanging_sides(sides: Sequence[Side], moved: Points, given: Density, left: Map) -> Hanging:
    """The points of sides, moved with their body (Å), above the target that the body leaves."""
    count, most = padded_size(len(sides)), padded_size(max(len(side.points) for side in sides))
    found = Hanging(
        np.zeros(count, np.int32),
        np.zeros((count, most, 3), np.float32),
        np.zeros((count, 3), np.float32),
        np.zeros((count, most), np.float32),
        np.zeros((count, most), np.float32),
    )
    for number, (centre, points) in enumerate(sides):
        own = number, slice(len(points))
        found.sizes[number] = len(points)
        found.x[own], found.density[own] = moved[points] - centre, given.density[points]
        found.explained[own] = given.explained[points]
        found.centre[number] = (centre - left.origin) / left.voxel_size + 1.5  # the border is one voxel
    return found


def voxels_of(map_: Map, turns: Float[np.ndarray, "turns 3 3"]) -> Voxels:
    """The density of a map, to be looked up under rotations by these matrices."""
    density = np.pad(map_.density, 1)
    scaled = (turns / map_.voxel_size[:, None]).transpose(1, 2, 0)
    return Voxels(padded_row(density), np.array(density.shape, np.int32), scaled.astype(np.float32))


@program(static_argnames=("least", "each"))
def best_turns(
    sides: Hanging, target: Voxels, least: int, each: int
) -> tuple[Float[Array, "sides each"], Int[Array, "sides each"], Int[Array, "sides each"]]:
    """The rotations about each side's centre by which it explains the most of a target.

    Args:
        sides: the sides.
        target: the target, looked up at the nearest voxels.
        least: points at least that are turned with a side.
        each: number of rotations that are kept for each side.

    Returns:
        For each side the gains, the numbers of the rotations, and how many of the points are turned.
    """

    def of_side(side: Hanging) -> tuple[Array, Array, Array]:
        def add_point(number, at):
            total, best, reached = at
            index = jnp.zeros(total.shape, jnp.int32)
            for axis in range(3):
                place = side.x[number] @ target.turns[axis] + side.centre[axis]
                place = jnp.clip(place, 0, target.shape[axis] - 1).astype(jnp.int32)
                index = index * target.shape[axis] + place
            total = total + side.density[number] * target.density[index] - side.explained[number]
            better = (number + 1 >= least) & (total > best)
            return total, jnp.where(better, total, best), jnp.where(better, number + 1, reached)

        turns = target.turns.shape[-1]
        begun = jnp.zeros(turns), jnp.full(turns, -jnp.inf), jnp.zeros(turns, jnp.int32)
        _, best, reached = jax.lax.fori_loop(0, side.sizes, add_point, begun)
        gain, turn = jax.lax.top_k(best, each)
        return gain, turn, reached[turn]

    with jax.default_matmul_precision("float32"):  # accelerators would keep three digits
        return mapped(of_side, sides)
