"""Bodies by docking: pieces of the initial map are fitted into the target as rigid bodies, in any pose.

A domain that turns by a large angle, or passes behind another one, leaves the neighbourhoods by which `correspond`
recognises points. As a rigid body it can still be found anywhere in the target, by a search over all rotations and
shifts. Blocks of the initial map then choose among the poses that were found, by how well each explains the target
there and how little it tears the density. Where there is a model, its chain is not torn either, and bodies are also
turned about the residues by which they hang on their neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryotrans_jax.core.grid import binned
from cryotrans_jax.density.align import drop_duplicates, even_rotations
from cryotrans_jax.density.boxes import box_slices
from cryotrans_jax.density.overlap import Body, Overlap, Pose
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.density.simulation import SIGMA
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.borders import Blocks, BorderRules, choose_parts, make_blocks
from cryotrans_jax.motion.hinges import Density, HingeSearch, TurnedSide, turned_sides

Volume = Float[np.ndarray, "x y z"]
Mask = Bool[np.ndarray, "x y z"]


@dataclass(frozen=True)
class DockingSearch:
    """How pieces of the initial map are docked into the target.

    Attributes:
        resolution: at which densities are compared, Å, or the target's if that is coarser.
        coarse: resolution of the search for poses, in radii of gyration of the piece, but at least 1.4 times as coarse
            as that of the comparison.
        voxel: about the voxel size of the comparison, Å.
        pieces: balls of density that are docked, besides the whole.
        piece_mass: fraction of the mass in each.
        whole_poses: poses of the whole that are kept.
        piece_poses: poses of each piece that are kept.
        rotations: number of rotations that are tried.
        refined: poses of the search that are refined.
        block: side of the blocks that choose among the poses, Å.
        max_blocks: about as many at most; the sides are longer where there would be more.
        window: width of the neighbourhood over which densities are compared, in sides of a block.
        least_mass: fraction of the mass that has a pose at least, or the pose is dropped.
        rounds: of choosing and refining.
        searching: of these, rounds in which further poses are searched for.
        redocked: best bodies in whose rest of the target further poses are searched for.
        reach: Å by which the refinement of a body moves it at most.
        residue: largest distance of a residue from its block, in sides of a block.
        hinges: how bodies are turned about residues, where there is a model.
        choices: how blocks choose; see `BorderRules`.
    """

    resolution: float = 8.0
    coarse: float = 0.6
    voxel: float = 2.0
    pieces: int = 8
    piece_mass: float = 0.35
    whole_poses: int = 8
    piece_poses: int = 3
    rotations: int = 500
    refined: int = 8
    block: float = 4.0
    max_blocks: int = 6000
    window: float = 1.25
    least_mass: float = 0.06
    rounds: int = 7
    searching: int = 5
    redocked: int = 3
    reach: float = 6.0
    residue: float = 2.0
    hinges: HingeSearch = HingeSearch()
    choices: BorderRules = BorderRules(choices=8)


class Docked(NamedTuple):
    """Blocks of the initial map, and the rigid motion that each has chosen.

    Attributes:
        blocks: the blocks.
        owner: number of each block's motion.
        match: local correlation of the moved density with the target at each block.
        motions: the motions, from the initial map to the target, Å.
    """

    blocks: Blocks
    owner: Int[np.ndarray, "points"]
    match: Float[np.ndarray, "points"]
    motions: list[Transform]

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
        match: mean local correlation with the target.
    """

    own: Bool[np.ndarray, "points"]
    motion: Transform
    match: float


def dock_target(problem: Problem, target: int, search: DockingSearch = DockingSearch()) -> Docked:
    """Dock pieces of a problem's initial map into one of its targets.

    Densities are compared with all their detail and noise, within the target's mask.

    Args:
        problem: the prepared maps.
        target: number of the target.
        search: how pieces are docked.
    """
    factor = int(np.clip(2 ** np.round(np.log2(search.voxel / problem.voxel_size.min())), 1, 8))
    size = factor * problem.voxel_size
    origin = problem.frame.to_angstrom(problem.corner) + 0.5 * size
    shown = np.maximum(problem.densities[target], 0) * (problem.targets[target] > 0)
    both = problem.initial, shown
    start, end = (Map(binned(mass, factor).astype(np.float32), size, origin) for mass in both)
    resolution = float(np.sqrt(max(problem.residual_blurs[target], 0.0))) / SIGMA
    return dock(start, end, resolution, search, problem.chain)


def dock(
    initial: Map,
    target: Map,
    resolution: float = 0.0,
    search: DockingSearch = DockingSearch(),
    chain: Chain | None = None,
) -> Docked:
    """Dock pieces of the initial map into the target, and let blocks of the map choose among the poses.

    After each choice the bodies of equal motion are refined, and the best of them claim their places in the target, so
    that no two explain the same density. In the first rounds further poses are searched for in what they leave.

    Args:
        initial: the initial map's mass.
        target: the target's mass, on the same grid.
        resolution: of the target, Å.
        search: how pieces are docked.
        chain: of a model of the initial map.
    """
    docking = Docking(initial, target, max(resolution, search.resolution), search, chain)
    found = docking.choose(docking.candidates())
    for round_ in range(search.rounds):
        bodies = docking.refined(found)
        claims = docking.claims(bodies)
        further = docking.further(found, bodies, claims) if round_ < search.searching else []
        found = docking.choose([*(body.motion for body in bodies), *further], claims)
    return found


@dataclass(frozen=True)
class Docking:
    """The search in one pair of maps; attributes are the arguments of `dock`."""

    initial: Map
    target: Map
    resolution: float
    search: DockingSearch
    chain: Chain | None = None

    @cached_property
    def blocks(self) -> Blocks:
        """Blocks of the initial map."""
        volume = np.count_nonzero(self.initial.density) * np.prod(self.initial.voxel_size)
        side = max(self.search.block, float((volume / self.search.max_blocks) ** (1 / 3)))
        return make_blocks(self.initial.density, self.initial, side)

    @cached_property
    def sharp_target(self) -> Volume:
        """The target's density as it is compared."""
        return self.sharp(self.target.density)

    @cached_property
    def block_density(self) -> Float[np.ndarray, "points"]:
        """The initial map's density at the blocks, as it is compared."""
        return self.interpolate(self.sharp(self.initial.density), self.blocks.x)

    @cached_property
    def positions(self) -> Float[np.ndarray, "x y z 3"]:
        """Positions of the voxels, Å."""
        index = np.moveaxis(np.indices(self.initial.density.shape), 0, -1)
        return index * self.initial.voxel_size + self.initial.origin

    def sharp(self, density: Volume) -> Volume:
        """A density at the resolution without its own wider blur, so that details count, and not the bulk."""
        width = SIGMA * self.resolution / self.initial.voxel_size
        blur = ndimage.gaussian_filter(density, width, mode="constant")
        return blur - ndimage.gaussian_filter(blur, 2 * width, mode="constant")

    def interpolate(self, volume: Volume, x: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points"]:
        """Values of a volume on the grid at positions, Å; 0 outside."""
        at = ((x - self.initial.origin) / self.initial.voxel_size).T
        return ndimage.map_coordinates(volume, at, order=1, mode="constant")

    def body(self, density: Volume) -> Body | None:
        """A density on the grid as a body; None where it is too small to have an orientation."""
        if np.count_nonzero(density > 0) < 8:
            return None
        place = box_slices(density > 0)
        own, x, held = density[place], self.positions[density > 0], density[density > 0]
        centre = held @ x / held.sum()
        radius = float(np.sqrt(held @ ((x - centre) ** 2).sum(1) / held.sum()))
        return Body(own, self.initial.voxel_size, self.positions[place][0, 0, 0], centre, radius, 0.0)

    def voxels(self, own: Bool[np.ndarray, "points"]) -> Mask:
        """The voxels of some blocks."""
        return self.blocks.on_voxels(own, self.initial.density.shape) > 0

    def part(self, keep: Mask) -> Body | None:
        """A part of the initial map as a body."""
        return self.body(np.where(keep, self.initial.density, 0))

    def candidates(self) -> list[Transform]:
        """Poses of the whole, and of balls of density all over the initial map."""
        search, x, held = self.search, self.blocks.x, self.blocks.density
        found = self.poses(self.initial.density > 0, self.target.density, search.whole_poses)
        for centre in spread_points(x, search.pieces):
            away = np.linalg.norm(x - centre, axis=1)
            order = np.argsort(away)
            last = np.searchsorted(np.cumsum(held[order]), search.piece_mass * held.sum())
            ball = np.linalg.norm(self.positions - centre, axis=-1) <= away[order][last]
            found += self.poses(ball, self.target.density, search.piece_poses)
        return found

    def poses(self, keep: Mask, target: Volume, count: int) -> list[Transform]:
        """The best poses of a part of the initial map in a target density; none where either is too small."""
        fixed, moving = self.body(target), self.part(keep)
        if fixed is None or moving is None:
            return []
        coarse = max(1.4 * self.resolution, self.search.coarse * min(fixed.radius, moving.radius))
        poses = Overlap(fixed, moving, coarse, sharp=True).scan_shifts(even_rotations(self.search.rotations))
        fine = Overlap(fixed, moving, self.resolution, sharp=True)
        refined = [fine.maximise(pose, 1e-4) for pose in poses[: self.search.refined]]
        best = drop_duplicates(sorted(refined, key=lambda pose: -pose.score), moving)[:count]
        return [pose.motion(fixed, moving) for pose in best]

    def choose(self, motions: Sequence[Transform], claims: Sequence[Volume] = ()) -> Docked:
        """Let each block choose a motion.

        Args:
            motions: the motions: those of the bodies, and further ones.
            claims: density that the first motions' bodies explain (`claims`); each goes before those that follow.
        """
        blocks, free = self.blocks, self.sharp_target
        y = np.stack([motion(blocks.x) for motion in motions], axis=1)
        match = np.zeros(y.shape[:2])
        for number in range(len(motions)):
            match[:, number] = self.match(y[:, number], free)
            if number < len(claims):
                free = free - claims[number]
        links = self.chain and self.chain.links(blocks.x, self.residue_reach, motions)
        owner = choose_parts(blocks, y, np.prod(blocks.size) * (1 - match), self.search.choices, links)
        return Docked(blocks, owner, match[np.arange(len(owner)), owner], [*motions])

    def claims(self, bodies: Sequence[DockedBody]) -> list[Volume]:
        """Density that each body explains, on the scale of the target as it is compared."""
        carried = [self.sharp(self.moved(body)) for body in bodies]
        total = np.sum(carried, axis=0)
        scale = float(np.vdot(total, self.sharp_target) / max(np.vdot(total, total), 1e-30)) if carried else 0.0
        return [scale * each for each in carried]

    @property
    def residue_reach(self) -> float:
        """Largest distance of a residue from its block, Å."""
        return self.search.residue * float(self.blocks.size.max())

    def match(self, y: Float[np.ndarray, "points 3"], free: Volume) -> Float[np.ndarray, "points"]:
        """Local correlation of the blocks' density with the target at y, as far as the target is free there."""
        here, there = self.block_density, self.interpolate(free, y)
        width = self.search.window * float(self.blocks.size.max())
        every = self.interpolate(self.sharp_target, y)
        product, own, other = (self.blocks.neighbourhood_sum(a, width) for a in (here * there, here**2, every**2))
        return product / np.sqrt(np.maximum(own * other, 1e-30))

    def moved(self, body: DockedBody) -> Volume:
        """The mass of a body at its place in the target."""
        size, origin, back = self.initial.voxel_size, self.initial.origin, body.motion.inverse
        own, offset = np.where(self.voxels(body.own), self.initial.density, 0), (back(origin[None])[0] - origin) / size
        return ndimage.affine_transform(own, back.rotation * size / size[:, None], offset, order=1)

    def refined(self, found: Docked) -> list[DockedBody]:
        """The bodies that have enough mass, best first, each refined near its pose in what those before it leave."""
        held = np.bincount(found.owner, found.blocks.density, len(found.motions)) / found.blocks.density.sum()
        kept = [found.owner == number for number in np.flatnonzero(held >= min(self.search.least_mass, held.max()))]
        match = [float(np.average(found.match[own], weights=found.blocks.density[own])) for own in kept]
        worth = [-each * found.blocks.density[own].sum() ** 0.5 for each, own in zip(match, kept, strict=True)]
        left, bodies = self.target.density, list[DockedBody]()
        for number in np.argsort(worth, kind="stable"):
            own = kept[number]
            motion = self.refine(own, found.motions[found.owner[own][0]], left, 1e-6, self.search.reach)
            if motion is not None:
                bodies.append(DockedBody(own, motion, match[number]))
                left = self.without(left, bodies[-1])
        return bodies

    def refine(
        self, own: Bool[np.ndarray, "points"], motion: Transform, target: Volume, close: float, reach: float
    ) -> Transform | None:
        """The best motion of some blocks near one (`Overlap.maximise`) in a density; None where either is too small."""
        fixed, moving = self.body(target), self.part(self.voxels(own))
        if fixed is None or moving is None:
            return None
        start = Pose(Rotation.from_matrix(motion.rotation), motion(moving.centre[None])[0] - fixed.centre, 0.0)
        overlap = Overlap(fixed, moving, self.resolution, sharp=True)
        return overlap.maximise(start, close, reach).motion(fixed, moving)

    def without(self, target: Volume, body: DockedBody) -> Volume:
        """What a body at its place leaves of a target density."""
        scale = self.target.density.sum() / self.initial.density.sum()
        return np.maximum(target - scale * self.moved(body), 0)

    def further(self, found: Docked, bodies: Sequence[DockedBody], claims: Sequence[Volume]) -> list[Transform]:
        """Further motions: poses of the bodies in what better ones leave of the target, and turned sides of a chain."""
        left, poses = self.target.density, list[Transform]()
        for number, body in enumerate(bodies[: self.search.redocked]):
            left, rest = self.without(left, body), [each.own for each in bodies[number + 1 :]]
            for own in [*rest[:1], *([np.any(rest, axis=0)] if len(rest) > 1 else [])]:
                poses += self.poses(self.voxels(own), left, self.search.piece_poses)
        return poses + ([] if self.chain is None else self.turned(self.chain, found, bodies, claims))

    def turned(
        self, chain: Chain, found: Docked, bodies: Sequence[DockedBody], claims: Sequence[Volume]
    ) -> list[Transform]:
        """Motions of sides of the chain turned about residues of the best bodies, refined; best first."""
        blocks, search = self.blocks, self.search.hinges
        present = np.stack([motion(blocks.x) for motion in found.motions], 1)[np.arange(len(blocks.x)), found.owner]
        residue, sides = chain.residues_at(blocks.x, self.residue_reach), list[TurnedSide]()
        for body, claim in zip(bodies[: search.anchors], claims, strict=False):
            left, here = self.sharp_target - claim, self.interpolate(self.sharp_target, body.motion(blocks.x))
            explained = self.block_density * np.where(body.own, here, self.interpolate(left, present))
            given = Density(blocks.x, self.block_density, residue, explained, body.own)
            sides += turned_sides(chain, given, body.motion, replace(self.initial, density=left), search)
        motions: list[Transform] = []
        for side in sorted(sides, key=lambda side: -side.gain)[: search.refined]:
            own, x = np.isin(np.arange(len(blocks.x)), side.points), blocks.x[side.points]
            motion = self.refine(own, side.motion, self.target.density, 1e-4, search.settle)
            if motion is not None and all(rms_distance(motion(x), each(x)) > search.apart for each in motions):
                motions.append(motion)
            if len(motions) == search.kept:
                break
        return motions


def rms_distance(x: Float[np.ndarray, "points 3"], y: Float[np.ndarray, "points 3"]) -> float:
    """Rms distance of points from others."""
    return float(np.sqrt(((x - y) ** 2).sum(1).mean()))


def spread_points(x: Float[np.ndarray, "points 3"], count: int) -> Float[np.ndarray, "some 3"]:
    """Some of the points, each as far as possible from those before; the first is farthest from the middle."""
    away, chosen = ((x - x.mean(0)) ** 2).sum(1), list[int]()
    while len(chosen) < min(count, len(x)):
        chosen.append(int(away.argmax()))
        squared = ((x - x[chosen[-1]]) ** 2).sum(1)
        away = squared if len(chosen) == 1 else np.minimum(away, squared)
    return x[chosen]
