"""Borders between parts, redrawn by what the parts' own flows do to the density."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import ndimage

from cryotrans_jax.density.boxes import points_of_blocks
from cryotrans_jax.density.thresholds import carried_mass
from cryotrans_jax.io.chain import Links
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.partition import (
    Partition,
    Points,
    SmallestPart,
    complete_labels,
    remove_fragments,
)


@dataclass(frozen=True)
class BorderRules:
    """How the borders of parts are redrawn.

    Attributes:
        block: side of the blocks of density that are assigned to parts, Å.
        reach: Å on either side of a border within which density may change its part.
        window: width of the neighbourhood over which densities are compared, Å.
        tie: thickness of a layer of density, quite unlike the target's, that costs as much as a cut, Å.
        torn: Å; a cut whose sides are carried apart by this or more costs the full amount.
        link: volume of density, quite unlike the target's, that costs as much as an Å by which a link of the chain
            becomes longer or shorter, Å³.
        most_stretch: Å; a link that changes by more costs no more.
        rounds: of messages among neighbours.
        choices: parts at most among which a block chooses: those with the least cost.
        smallest: how small a part, or a fragment of one, may be.
    """

    block: float = 2.0
    reach: float = 8.0
    window: float = 3.0
    tie: float = 1.0
    torn: float = 4.0
    link: float = 30.0
    most_stretch: float = 16.0
    rounds: int = 30
    choices: int = 6
    smallest: SmallestPart = SmallestPart()


class Blocks(NamedTuple):
    """Carried density of a map in blocks.

    Attributes:
        x: centres of mass, Å.
        density: mean densities.
        filled: which blocks of the grid have density, in the order of the others.
        size: sides of a block, Å.
        factor: sides of a block, voxels.
    """

    x: Points
    density: Float[np.ndarray, "points"]
    filled: Bool[np.ndarray, "bx by bz"]
    size: Float[np.ndarray, "3"]  # Å
    factor: Int[np.ndarray, "3"]  # voxels

    def on_grid(self, values: Shaped[np.ndarray, "points"]) -> Float[np.ndarray, "bx by bz"]:
        """Values of the blocks on their grid, 0 elsewhere."""
        whole = np.zeros(self.filled.shape, np.float32)
        whole[self.filled] = values
        return whole

    def on_voxels(self, values: Shaped[np.ndarray, "points"], shape: tuple[int, ...]) -> Shaped[np.ndarray, "x y z"]:
        """Values of the blocks on the voxels of their map, of this shape; 0 elsewhere."""
        whole = self.on_grid(values)
        for axis, factor in enumerate(self.factor):
            whole = whole.repeat(factor, axis)
        return whole[tuple(map(slice, shape))]

    def neighbourhood_sum(self, values: Float[np.ndarray, "points"], width: float) -> Float[np.ndarray, "points"]:
        """Weighted sums over the neighbourhood of each block, of a width in Å."""
        spread = ndimage.gaussian_filter(self.on_grid(values), width / self.size, mode="constant")
        return spread[self.filled]

    def pairs(self) -> list[Int[np.ndarray, "pairs 2"]]:
        """Numbers of blocks that share a face, for each axis across which they do."""
        number = np.full(self.filled.shape, -1)
        number[self.filled] = np.arange(len(self.x))
        along = (np.moveaxis(number, axis, 0) for axis in range(3))
        both = (np.stack([each[:-1], each[1:]], -1) for each in along)
        return [each[(each >= 0).all(-1)] for each in both]


def redraw(
    partition: Partition,
    carries: Sequence[Callable],
    initial: Map,
    target: Map,
    threshold: float,
    copies: int = 1,
    rules: BorderRules = BorderRules(),
) -> Partition:
    """Redraw the borders of a partition where the parts' own flows explain the target best and tear the density least.

    Each block of density chooses a part within `rules.reach`. Its cost is the difference between the initial density
    around it and the target's where the part takes it. Where neighbours choose parts that carry them apart, the cost is
    `rules.tie` times the face that they share, more for denser blocks. So a border runs through the gap between two
    domains, or where their flows agree, and cuts no chain.

    Args:
        partition: the parts as they are.
        carries: for each part the function that carries positions (n, 3) in Å to some times.
        initial: the initial map, at matched resolution.
        target: the target map, at matched resolution.
        threshold: density of the initial map at or above this is carried.
        copies: number of copies of each part.
        rules: how borders are redrawn.

    Returns:
        The new partition; the given one if a part would almost vanish or no voxel is above the threshold.
    """
    mass = carried_mass(initial.density, threshold)
    if not mass.any():  # the map blurred to the target's resolution may be below the threshold everywhere
        return partition
    blocks = make_blocks(mass, initial, rules.block)
    own = partition.part_at(blocks.x)
    y = np.stack([carry(blocks.x, [1.0])[0] for carry in carries], axis=1)
    costs = np.prod(blocks.size) * differences(blocks, own, y, initial, target, rules)
    owner, _ = choose_parts(blocks, y, costs, rules)
    labels = blocks.on_voxels(owner + 1, initial.density.shape).astype(int)
    labels = np.where(initial.density >= threshold, labels, 0)
    better = remove_fragments(labels, initial.voxel_size, copies, rules.smallest)
    held = np.bincount(better.ravel(), initial.density.ravel(), len(carries) + 1)[1:]
    least = rules.smallest.fraction(np.count_nonzero(labels) * np.prod(initial.voxel_size), copies)
    return complete_labels(better, initial) if held.min() > least * held.sum() else partition


def make_blocks(mass: Float[np.ndarray, "x y z"], initial: Map, side: float) -> Blocks:
    """Divide the carried mass of the initial map into blocks of about this side (Å)."""
    x, held, filled, factor = points_of_blocks(mass, initial.origin, initial.voxel_size, side)
    return Blocks(x, held / np.prod(factor), filled, factor * initial.voxel_size, factor)


def differences(
    blocks: Blocks,
    own: Int[np.ndarray, "points"],
    y: Float[np.ndarray, "points parts 3"],
    initial: Map,
    target: Map,
    rules: BorderRules,
) -> Float[np.ndarray, "points parts"]:
    """Difference between the initial density around each block and the target's where each part takes it.

    Mean squares over the neighbourhood, relative to those of the density itself, up to the maps' scale. Infinite beyond
    `rules.reach` of the part. `own` is each block's part so far.
    """
    here = initial.interpolate(blocks.x)
    there = np.stack([target.interpolate(y[:, part]) for part in range(y.shape[1])], axis=1)
    current = there[np.arange(len(own)), own]
    scale = np.vdot(here, current) / max(np.vdot(current, current), 1e-30)
    found = np.full(there.shape, np.inf)
    for part in range(y.shape[1]):
        away = ndimage.distance_transform_edt(blocks.on_grid(own == part) == 0, sampling=blocks.size)
        near = away[blocks.filled] < rules.reach
        off = blocks.neighbourhood_sum(near * (here - scale * there[:, part]) ** 2, rules.window)
        found[near, part] = (off / np.maximum(blocks.neighbourhood_sum(near * here**2, rules.window), 1e-30))[near]
    return found


def choose_parts(
    blocks: Blocks,
    y: Float[np.ndarray, "points parts 3"],
    costs: Float[np.ndarray, "points parts"],
    rules: BorderRules,
    links: Links | None = None,
) -> tuple[Int[np.ndarray, "points"], float]:
    """Choose a part for each block, with the least sum of the blocks' `costs` and of the tears between them.

    Args:
        blocks: the blocks.
        y: where each part takes each block, Å.
        costs: of each part for each block; only the cheapest are compared.
        rules: how borders are redrawn.
        links: of the chain, if there is a model.

    Returns:
        The part of each block, and the sum.
    """
    choices = np.argsort(costs, axis=1, kind="stable")[:, : rules.choices]
    costs, y = np.take_along_axis(costs, choices, 1), np.take_along_axis(y, choices[:, :, None], 1)
    faces = np.prod(blocks.size) / blocks.size
    pairs = blocks.pairs()
    cuts = [
        np.float32(rules.tie * face) * tear_costs(blocks, y, each, rules.torn)
        for face, each in zip(faces, pairs, strict=True)
    ]
    if links is not None:
        pairs.append(links.pairs)
        stretches = np.minimum(links.stretches(choices), rules.most_stretch)
        cuts.append((rules.link * stretches).astype(np.float32))
    neighbours, torn = np.concatenate(pairs), np.concatenate(cuts)
    chosen, each = least_cost_labels(costs, neighbours, torn, rules.rounds), np.arange(len(choices))
    first, second = chosen[neighbours].T
    cost = costs[each, chosen].sum() + torn[np.arange(len(torn)), first, second].sum(dtype=float)
    return choices[each, chosen], float(cost)


def tear_costs(
    blocks: Blocks, y: Float[np.ndarray, "points choices 3"], pairs: Int[np.ndarray, "pairs 2"], torn: float
) -> Float[np.ndarray, "pairs choices choices"]:
    """How badly each pair of neighbours is torn, for each choice of the first and of the second.

    From 0 to 1 by the distance that they gain, relative to `torn` (Å); times the lesser density of the two, relative to
    the mean of all.
    """
    first, second = pairs.T
    before = np.linalg.norm(blocks.x[first] - blocks.x[second], axis=-1)
    held = np.minimum(blocks.density[first], blocks.density[second]) / blocks.density.mean()
    found = np.empty((len(pairs), y.shape[1], y.shape[1]), np.float32)
    for one, other in np.ndindex(found.shape[1:]):  # one at a time: all at once would take some GiB with large maps
        after = np.linalg.norm(y[first, one] - y[second, other], axis=-1)
        found[:, one, other] = held * np.clip((after - before) / torn, 0, 1)
    return found


def least_cost_labels(
    costs: Float[np.ndarray, "points labels"],
    pairs: Int[np.ndarray, "pairs 2"],
    cuts: Float[np.ndarray, "pairs labels labels"],
    rounds: int = BorderRules.rounds,
) -> Int[np.ndarray, "points"]:
    """A label for each point, such that the sum of the labels' costs and of the pairs' costs is nearly the least.

    By messages among neighbours (min-sum belief propagation; Felzenszwalb & Huttenlocher 2006), damped by half.

    Args:
        costs: of each label for each point.
        pairs: neighbours.
        cuts: costs of the labels of each pair.
        rounds: of messages.
    """
    costs = np.minimum(costs - costs.min(1, keepdims=True), 1e6).astype(np.float32)
    first, second = pairs.T
    to_first, to_second = np.zeros((2, len(pairs), costs.shape[1]), np.float32)

    def beliefs():
        return costs + np.stack(
            [
                np.bincount(first, a, len(costs)) + np.bincount(second, b, len(costs))
                for a, b in zip(to_first.T, to_second.T, strict=True)
            ],
            axis=1,
        ).astype(np.float32)

    for _ in range(rounds):
        belief = beliefs()
        for_second = ((belief[first] - to_first)[:, :, None] + cuts).min(1)
        for_first = ((belief[second] - to_second)[:, None, :] + cuts).min(2)
        to_second = 0.5 * (to_second + for_second - for_second.min(1, keepdims=True))
        to_first = 0.5 * (to_first + for_first - for_first.min(1, keepdims=True))
    return beliefs().argmin(1)
