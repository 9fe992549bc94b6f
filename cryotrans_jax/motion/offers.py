"""Motions that are offered to the blocks of an initial map, and the rigid bodies that their choice makes.

A block chooses a motion by how well it explains the target, and with it a body. No density of the target is explained
twice: a body claims its place, and what it claims is not free for others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cryotrans_jax.density.transform import Transform
from cryotrans_jax.io.chain import Chain, Links
from cryotrans_jax.motion.labelling import Blocks, ChoiceRules, choose_few, choose_parts, cost_of_parts
from cryotrans_jax.motion.pieces import Pieces, Volume


@dataclass(frozen=True)
class BodyRules:
    """What bodies cost.

    Attributes:
        body: volume of density, quite unlike the target's, that costs as much as one more body, as a fraction of all
            blocks.
        fragment: fraction of the mass that a body has at least.
        window: width of the neighbourhood over which densities are compared, in sides of a block.
        residue: largest distance of a residue from its block, in sides of a block.
        choices: what tears cost, and how blocks choose.
    """

    body: float = 0.01
    fragment: float = 0.02
    window: float = 1.25
    residue: float = 2.0
    choices: ChoiceRules = ChoiceRules(choices=8)

    def reach(self, blocks: Blocks) -> float:
        """Largest distance of a residue from its block, Å."""
        return self.residue * float(blocks.size.max())


class Docked(NamedTuple):
    """Blocks of the initial map, and the rigid motion that each has chosen.

    Attributes:
        blocks: the blocks.
        owner: number of each block's motion.
        match: local correlation of the moved density with the target at each block.
        motions: the motions, from the initial map to the target, Å.
        cost: volume of the moved blocks that is unlike the target, and what tears, breaks of the chain and bodies
            cost, Å³; lower is better.
    """

    blocks: Blocks
    owner: Int[np.ndarray, "points"]
    match: Float[np.ndarray, "points"]
    motions: list[Transform]
    cost: float

    @property
    def moved(self) -> Float[np.ndarray, "points 3"]:
        """Where the blocks' motions take them, Å."""
        each = np.stack([motion(self.blocks.x) for motion in self.motions], axis=1)
        return each[np.arange(len(self.owner)), self.owner]

    def bodies(self, inside: Bool[np.ndarray, "points"], least: float) -> "DockedBodies":
        """The motions that enough of some blocks have chosen.

        Args:
            inside: the blocks.
            least: fraction of their mass that a body has at least; the largest body has no bound.
        """
        held = np.bincount(self.owner[inside], self.blocks.density[inside], len(self.motions))
        chosen = np.flatnonzero(held >= min(least * held.sum(), held.max()))
        kept = inside & np.isin(self.owner, chosen)
        labels = 1 + np.searchsorted(chosen, self.owner[kept])
        return DockedBodies(self.blocks.x[kept], labels, [self.motions[number] for number in chosen])


class DockedBodies(NamedTuple):
    """Points of bodies that were docked.

    Attributes:
        x: positions in the initial map, Å.
        labels: body of each, from 1.
        motions: of each body, Å.
    """

    x: Float[np.ndarray, "points 3"]
    labels: Int[np.ndarray, "points"]
    motions: list[Transform]


class DockedBody(NamedTuple):
    """Blocks that move as one body.

    Attributes:
        own: which blocks.
        motion: their motion.
        moved: their mass where it takes them.
        claim: density of the target that they explain, as it is compared.
    """

    own: Bool[np.ndarray, "points"]
    motion: Transform
    moved: Volume
    claim: Volume


class Offers(NamedTuple):
    """Motions among which the blocks choose.

    Attributes:
        pieces: the maps.
        chain: of a model of the initial map; None: no model.
        rules: what bodies cost.
        motions: the motions, Å.
        y: where each takes each block, Å.
        match: local correlation at each block of the moved density with target density that no other body explains.
    """

    pieces: Pieces
    chain: Chain | None
    rules: BodyRules
    motions: list[Transform]
    y: Float[np.ndarray, "points motions 3"]
    match: Float[np.ndarray, "points motions"]

    @classmethod
    def of(
        cls,
        pieces: Pieces,
        chain: Chain | None,
        rules: BodyRules,
        bodies: Sequence[DockedBody],
        motions: Sequence[Transform] = (),
    ) -> "Offers":
        """The motions of bodies, best first, and others."""
        every = [*(body.motion for body in bodies), *motions]
        y = np.stack([motion(pieces.blocks.x) for motion in every], axis=1)
        match = local_correlations(pieces, rules, y, free_target(pieces, bodies, y))
        return cls(pieces, chain, rules, every, y, match)

    @property
    def unlike(self) -> Float[np.ndarray, "points motions"]:
        """Volume of each block that is unlike the target where each motion takes it, Å³."""
        return np.prod(self.pieces.blocks.size) * (1 - self.match)

    def links(self, kept: Int[np.ndarray, "kept"]) -> Links | None:
        """Links of the chain, for some of the motions."""
        blocks = self.pieces.blocks
        motions = [self.motions[number] for number in kept]
        return self.chain and self.chain.links(blocks.x, self.rules.reach(blocks), motions)

    def best(self) -> Docked:
        """The blocks with the choice of least cost, among as few motions as are worth a body."""
        mass = self.pieces.blocks.density
        return self.docked(choose_few(self.choose, self.cost, len(self.motions), mass, self.rules.fragment))

    def choose(self, kept: Int[np.ndarray, "kept"]) -> Int[np.ndarray, "points"]:
        """Let each block choose among some of the motions."""
        y, unlike, links = self.y[:, kept], self.unlike[:, kept], self.links(kept)
        return kept[choose_parts(self.pieces.blocks, y, unlike, self.rules.choices, links)]

    def cost(self, owner: Int[np.ndarray, "points"]) -> float:
        """What a choice costs, Å³."""
        kept = np.unique(owner)
        own, y, unlike, links = np.searchsorted(kept, owner), self.y[:, kept], self.unlike[:, kept], self.links(kept)
        torn = cost_of_parts(self.pieces.blocks, y, unlike, own, self.rules.choices, links)
        return torn + self.rules.body * len(kept) * np.prod(self.pieces.blocks.size) * len(owner)

    def docked(self, owner: Int[np.ndarray, "points"]) -> Docked:
        """The blocks with their choice."""
        match = self.match[np.arange(len(owner)), owner]
        return Docked(self.pieces.blocks, owner, match, self.motions, self.cost(owner))


def free_target(
    pieces: Pieces, bodies: Sequence[DockedBody], y: Float[np.ndarray, "points motions 3"]
) -> Float[np.ndarray, "points motions"]:
    """Target density that is still to be explained where each motion takes the blocks, as it is compared.

    For a block that stays with its body this is what better bodies leave, and for one that leaves its body what all
    others leave.

    Args:
        pieces: the maps.
        bodies: the bodies, best first; with none the whole target is free.
        y: where each motion takes the blocks, Å; the first motions are those of the bodies.
    """
    left = pieces.sharp_target - sum(body.claim for body in bodies)
    free = np.stack([pieces.interpolate(left, each) for each in np.moveaxis(y, 1, 0)], axis=1)
    better = pieces.sharp_target
    for place, body in enumerate(bodies):
        without_others = left + body.claim
        for motion in range(y.shape[1]):
            volume = better if motion == place else without_others
            free[body.own, motion] = pieces.interpolate(volume, y[body.own, motion])
        better = better - body.claim
    return free


def local_correlations(
    pieces: Pieces,
    rules: BodyRules,
    y: Float[np.ndarray, "points motions 3"],
    free: Float[np.ndarray, "points motions"],
) -> Float[np.ndarray, "points motions"]:
    """Local correlation of the moved blocks with the target density that no other body explains.

    At the target's edge claims may exceed its density by far, so the correlation is clipped to -1 and 1.
    """
    blocks, here, found = pieces.blocks, pieces.block_density, list[np.ndarray]()
    width = rules.window * float(blocks.size.max())
    own = blocks.neighbourhood_sum(here**2, width)
    for motion in range(y.shape[1]):
        every = pieces.interpolate(pieces.sharp_target, y[:, motion])
        product, other = (blocks.neighbourhood_sum(a, width) for a in (here * free[:, motion], every**2))
        found.append(np.clip(product / np.sqrt(np.maximum(own * other, 1e-30)), -1, 1))
    return np.stack(found, axis=1)
