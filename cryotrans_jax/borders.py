"""Borders: where one part ends and the next begins, drawn anew by what the parts' own flows do to the density."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import ndimage

from cryotrans_jax.maps import Map
from cryotrans_jax.partition import Partition, Points, complete_labels, mass_points, remove_fragments, smallest_mass
from cryotrans_jax.prepare import carried_mass

BLOCK = 2.0  # Å: of the blocks of density that go with one part or another
REACH = 8.0  # Å on either side of a border within which density may turn out to belong to the other part
WINDOW = 3.0  # Å: width of the neighbourhood over which density is compared to find out
TIE = 1.0  # Å: how thick a layer of density that is not like the target's at all costs as much as a cut
TORN = 4.0  # Å: from which on it is all one how far the sides of a cut are carried apart
ROUNDS = 30  # of messages among neighbours
CHOICES = 6  # parts at most among which a block chooses: those that cost it least


class Blocks(NamedTuple):
    """The carried density of a map in blocks: their centres of mass, mean densities, and places on a grid."""

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

    def neighbourhood_sum(self, values: Float[np.ndarray, "points"]) -> Float[np.ndarray, "points"]:
        """Weighted sums over the neighbourhood of each block."""
        spread = ndimage.gaussian_filter(self.on_grid(values), WINDOW / self.size, mode="constant")
        return spread[self.filled]

    def pairs(self) -> list[Int[np.ndarray, "pairs 2"]]:
        """The numbers of blocks that share a face, for each axis across which they do."""
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
) -> Partition:
    """The partition with its borders where the parts' own flows explain the target best, and tear the least.

    `carries` are the parts' flows: `carry(xyz, times)` says where positions (n, 3) in Å have come to. The maps are at
    matched resolution; density is carried where the initial one is not below the threshold. It may go with any part
    within REACH. What that costs is by how much the target where the part takes it differs from it; and where
    neighbours go with parts that carry them apart, TIE times the face that they share, the more the denser both are.
    So a border runs through the gap between two domains, or where their flows agree, and cuts no chain. The partition
    is returned as it is if a part would almost vanish, or if no voxel is above the threshold. `copies` is the number
    of copies of each part.
    """
    mass = carried_mass(initial.density, threshold)
    if not mass.any():  # the map blurred to the target's resolution may lie below the threshold everywhere
        return partition
    blocks = make_blocks(mass, initial)
    own = partition.part_at(blocks.x)
    y = np.stack([carry(blocks.x, [1.0])[0] for carry in carries], axis=1)
    costs = np.prod(blocks.size) * differences(blocks, own, y, initial, target)
    choices = np.argsort(costs, axis=1, kind="stable")[:, :CHOICES]
    costs, y = np.take_along_axis(costs, choices, 1), np.take_along_axis(y, choices[:, :, None], 1)
    faces = np.prod(blocks.size) / blocks.size
    pairs = blocks.pairs()
    cuts = [np.float32(TIE * face) * tear_costs(blocks, y, each) for face, each in zip(faces, pairs, strict=True)]
    chosen = least_cost_labels(costs, np.concatenate(pairs), np.concatenate(cuts))
    owner = choices[np.arange(len(choices)), chosen]
    labels = np.zeros(blocks.filled.shape, int)
    labels[blocks.filled] = owner + 1
    for axis, factor in enumerate(blocks.factor):
        labels = labels.repeat(factor, axis)
    shape = initial.density.shape
    labels = np.where(initial.density >= threshold, labels[tuple(map(slice, shape))], 0)
    better = remove_fragments(labels, initial.voxel_size, copies)
    held = np.bincount(better.ravel(), initial.density.ravel(), len(carries) + 1)[1:]
    least = smallest_mass(np.count_nonzero(labels) * np.prod(initial.voxel_size), copies)
    return complete_labels(better, initial) if held.min() > least * held.sum() else partition


def make_blocks(mass: Float[np.ndarray, "x y z"], initial: Map) -> Blocks:
    """The mass, which is carried of the initial map, in blocks of about BLOCK."""
    x, held, filled, factor = mass_points(mass, initial, BLOCK)
    return Blocks(x, held / np.prod(factor), filled, factor * initial.voxel_size, factor)


def differences(
    blocks: Blocks, own: Int[np.ndarray, "points"], y: Float[np.ndarray, "points parts 3"], initial: Map, target: Map
) -> Float[np.ndarray, "points parts"]:
    """How much the initial density about each block differs from the target's to where each part takes it.

    Mean squares over the neighbourhood, next to those of the density itself, up to the maps' scale; infinite beyond
    REACH of the part. `own` is each block's part so far.
    """
    here = density_at(initial, blocks.x)
    there = np.stack([density_at(target, y[:, part]) for part in range(y.shape[1])], axis=1)
    now = there[np.arange(len(own)), own]
    scale = np.vdot(here, now) / max(np.vdot(now, now), 1e-30)
    found = np.full(there.shape, np.inf)
    for part in range(y.shape[1]):
        away = ndimage.distance_transform_edt(blocks.on_grid(own == part) == 0, sampling=blocks.size)
        near = away[blocks.filled] < REACH
        off = blocks.neighbourhood_sum(near * (here - scale * there[:, part]) ** 2)
        found[near, part] = (off / np.maximum(blocks.neighbourhood_sum(near * here**2), 1e-30))[near]
    return found


def density_at(map_: Map, xyz: Points) -> Float[np.ndarray, "points"]:
    """The map's density at positions in Å."""
    return ndimage.map_coordinates(map_.density, ((xyz - map_.origin) / map_.voxel_size).T, order=1)


def tear_costs(
    blocks: Blocks, y: Float[np.ndarray, "points choices 3"], pairs: Int[np.ndarray, "pairs 2"]
) -> Float[np.ndarray, "pairs choices choices"]:
    """How badly each pair of neighbours is torn, 0 to 1 times its density, by what the first and the second go with.

    By the distance that they gain, next to TORN; the density is the lesser of the two, next to the mean of all.
    """
    first, second = pairs.T
    before = np.linalg.norm(blocks.x[first] - blocks.x[second], axis=-1)
    held = np.minimum(blocks.density[first], blocks.density[second]) / blocks.density.mean()
    found = np.empty((len(pairs), y.shape[1], y.shape[1]), np.float32)
    for one, other in np.ndindex(found.shape[1:]):  # by itself: all at once would take some GiB of large maps
        after = np.linalg.norm(y[first, one] - y[second, other], axis=-1)
        found[:, one, other] = held * np.clip((after - before) / TORN, 0, 1)
    return found


def least_cost_labels(
    costs: Float[np.ndarray, "points labels"],
    pairs: Int[np.ndarray, "pairs 2"],
    cuts: Float[np.ndarray, "pairs labels labels"],
) -> Int[np.ndarray, "points"]:
    """A label for each point, so that the costs of all labels and of all pairs' labels are nearly the least in sum.

    By messages among neighbours (min-sum belief propagation; Felzenszwalb & Huttenlocher 2006), damped by half.
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

    for _ in range(ROUNDS):
        belief = beliefs()
        for_second = ((belief[first] - to_first)[:, :, None] + cuts).min(1)
        for_first = ((belief[second] - to_second)[:, None, :] + cuts).min(2)
        to_second = 0.5 * (to_second + for_second - for_second.min(1, keepdims=True))
        to_first = 0.5 * (to_first + for_first - for_first.min(1, keepdims=True))
    return beliefs().argmin(1)
