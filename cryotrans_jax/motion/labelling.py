"""Assign blocks of density to parts at the least cost: the misfit of each block, and the tears between neighbours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import ndimage

from cryotrans_jax.density.boxes import points_of_blocks
from cryotrans_jax.io.chain import Links
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.partition import Points


@dataclass(frozen=True)
class ChoiceRules:
    """What a choice of parts costs, and how the least cost is searched for.

    Attributes:
        tie: thickness of a layer of density, quite unlike the target's, that costs as much as a cut, Å.
        torn: Å; a cut whose sides are carried apart by this or more costs the full amount.
        link: volume of density, quite unlike the target's, that costs as much as an Å by which a link of the chain
            becomes longer or shorter, Å³.
        most_stretch: Å; a link that changes by more costs no more.
        rounds: of messages among neighbours.
        choices: parts at most among which a block chooses: those with the least cost.
    """

    tie: float = 1.0
    torn: float = 4.0
    link: float = 30.0
    most_stretch: float = 16.0
    rounds: int = 30
    choices: int = 6


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


def make_blocks(mass: Float[np.ndarray, "x y z"], initial: Map, side: float) -> Blocks:
    """Divide the carried mass of the initial map into blocks of about this side (Å)."""
    x, held, filled, factor = points_of_blocks(mass, initial.origin, initial.voxel_size, side)
    return Blocks(x, held / np.prod(factor), filled, factor * initial.voxel_size, factor)


def choose_parts(
    blocks: Blocks,
    y: Float[np.ndarray, "points parts 3"],
    costs: Float[np.ndarray, "points parts"],
    rules: ChoiceRules,
    links: Links | None = None,
) -> Int[np.ndarray, "points"]:
    """Choose a part for each block, with the least sum of the blocks' `costs` and of the tears between them.

    Args:
        blocks: the blocks.
        y: where each part takes each block, Å.
        costs: of each part for each block; only the cheapest are compared.
        rules: what tears cost.
        links: of the chain, if there is a model.
    """
    choices = np.argsort(costs, axis=1, kind="stable")[:, : rules.choices]
    costs, y = np.take_along_axis(costs, choices, 1), np.take_along_axis(y, choices[:, :, None], 1)
    chosen = least_cost_labels(costs, *pair_costs(blocks, y, choices, rules, links), rules.rounds)
    return choices[np.arange(len(choices)), chosen]


def choose_few(
    choose: Callable[[Int[np.ndarray, "kept"]], Int[np.ndarray, "points"]],
    cost: Callable[[Int[np.ndarray, "points"]], float],
    count: int,
    mass: Float[np.ndarray, "points"],
    fragment: float,
) -> Int[np.ndarray, "points"]:
    """Choose among as few parts as are worth their cost: others are left out, the smallest first.

    Noise makes fragments, each with a part of its own that fits there by chance.

    Args:
        choose: the function that chooses among the parts of some numbers; it returns the part of each point.
        cost: of a choice, with what each part costs that it uses.
        count: number of parts.
        mass: of each point.
        fragment: fraction of the mass; parts with less are left out.
    """
    owner = choose(np.arange(count))
    while True:
        held = np.bincount(owner, mass, count) / mass.sum()
        kept = np.flatnonzero((held > 0) & (held >= min(fragment, held.max())))
        if len(kept) == np.count_nonzero(held):
            break
        owner = choose(kept)
    least = cost(owner)
    for smallest in kept[np.argsort(held[kept], kind="stable")][:-1]:
        fewer = choose(kept[kept != smallest])
        if (its_cost := cost(fewer)) < least:
            owner, least, kept = fewer, its_cost, kept[kept != smallest]
    return owner


def cost_of_parts(
    blocks: Blocks,
    y: Float[np.ndarray, "points parts 3"],
    costs: Float[np.ndarray, "points parts"],
    owner: Int[np.ndarray, "points"],
    rules: ChoiceRules,
    links: Links | None = None,
) -> float:
    """The sum that `choose_parts` makes small, for the part of each block."""
    choices = owner[:, None]
    chosen = np.take_along_axis(y, choices[:, :, None], 1)
    _, torn = pair_costs(blocks, chosen, choices, rules, links)
    return float(np.take_along_axis(costs, choices, 1).sum() + torn.sum(dtype=float))


def pair_costs(
    blocks: Blocks,
    y: Float[np.ndarray, "points choices 3"],
    choices: Int[np.ndarray, "points choices"],
    rules: ChoiceRules,
    links: Links | None,
) -> tuple[Int[np.ndarray, "pairs 2"], Float[np.ndarray, "pairs choices choices"]]:
    """Pairs of blocks, and what it costs to tear each, for each choice of the first and of the second.

    Args:
        blocks: the blocks.
        y: where each choice takes each block, Å.
        choices: parts among which each block chooses.
        rules: what tears cost.
        links: of the chain, if there is a model.
    """
    pairs, faces = blocks.pairs(), np.prod(blocks.size) / blocks.size
    cuts = [
        np.float32(rules.tie * face) * tear_costs(blocks, y, each, rules.torn)
        for face, each in zip(faces, pairs, strict=True)
    ]
    if links is not None:
        stretches = np.minimum(links.stretches(choices), rules.most_stretch)
        pairs, cuts = [*pairs, links.pairs], [*cuts, (rules.link * stretches).astype(np.float32)]
    return np.concatenate(pairs), np.concatenate(cuts)


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
    rounds: int = ChoiceRules.rounds,
) -> Int[np.ndarray, "points"]:
    """A label for each point, such that the sum of the labels' costs and of the pairs' costs is nearly the least.

    By messages among neighbours (min-sum belief propagation; Felzenszwalb & Huttenlocher 2006), damped by half.

    Args:
        costs: of each label for each point.
        pairs: neighbours.
        cuts: costs of the labels of each pair.
        rounds: of messages.
    """
    costs = np.minimum(costs - costs.min(1, keepdims=True), 1e6).astype(np.float32).T
    cuts = np.ascontiguousarray(np.moveaxis(cuts, 0, -1))  # numpy finds minima fast along the first axes
    first, second = pairs.T
    to_first, to_second = np.zeros((2, len(costs), len(pairs)), np.float32)

    def beliefs():
        return costs + np.stack(
            [
                np.bincount(first, a, costs.shape[1]) + np.bincount(second, b, costs.shape[1])
                for a, b in zip(to_first, to_second, strict=True)
            ]
        ).astype(np.float32)

    for _ in range(rounds):
        belief = beliefs()
        for_second = (cuts + (belief[:, first] - to_first)[:, None]).min(0)
        for_first = (cuts + (belief[:, second] - to_second)[None]).min(1)
        to_second = 0.5 * (to_second + for_second - for_second.min(0))
        to_first = 0.5 * (to_first + for_first - for_first.min(0))
    return beliefs().argmin(0)
