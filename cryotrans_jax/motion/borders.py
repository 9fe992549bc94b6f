"""Borders between parts, redrawn by what the parts' own flows do to the density."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from cryotrans_jax.density.thresholds import carried_mass
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.labelling import Blocks, ChoiceRules, choose_parts, make_blocks
from cryotrans_jax.motion.partition import Partition, SmallestPart, complete_labels, remove_fragments


@dataclass(frozen=True)
class BorderRules:
    """How the borders of parts are redrawn.

    Attributes:
        block: side of the blocks of density that are assigned to parts, Å.
        reach: Å on either side of a border within which density may change its part.
        window: width of the neighbourhood over which densities are compared, Å.
        choices: how blocks choose; see `ChoiceRules`.
        smallest: how small a part, or a fragment of one, may be.
    """

    block: float = 2.0
    reach: float = 8.0
    window: float = 3.0
    choices: ChoiceRules = ChoiceRules()
    smallest: SmallestPart = SmallestPart()


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
    `ChoiceRules.tie` times the face that they share, more for denser blocks. So a border runs through the gap between
    two domains, or where their flows agree, and cuts no chain.

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
    owner = choose_parts(blocks, y, costs, rules.choices)
    labels = blocks.on_voxels(owner + 1, initial.density.shape).astype(np.int16)
    labels = np.where(initial.density >= threshold, labels, 0)
    better = remove_fragments(labels, initial.voxel_size, copies, rules.smallest)
    kept = better > 0
    held = np.bincount(better[kept], initial.density[kept], len(carries) + 1)[1:]
    least = rules.smallest.fraction(np.count_nonzero(labels) * np.prod(initial.voxel_size), copies)
    return complete_labels(better, initial) if held.min() > least * held.sum() else partition


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
