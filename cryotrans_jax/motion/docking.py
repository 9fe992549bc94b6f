"""Bodies by docking: pieces of the initial map are fitted into the target as rigid bodies, in any pose.

A domain that turns by a large angle, or passes behind another one, leaves the neighbourhoods by which `correspond`
recognises points. As a rigid body it can still be found anywhere in the target, by a search over all rotations and
shifts. Blocks of the initial map then choose among the poses that were found, by how well each explains the target
there and how little it tears the density.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.borders import Blocks, BorderRules, choose_parts, make_blocks

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
        poor: correlation below which a body is docked once more, where the others leave room.
        rounds: of choosing and refining.
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
    poor: float = 0.6
    rounds: int = 5
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
        keep: its voxels.
        motion: its motion.
        match: mean local correlation with the target.
    """

    keep: Mask
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
    return dock(start, end, float(np.sqrt(max(problem.residual_blurs[target], 0.0))) / SIGMA, search)


def dock(initial: Map, target: Map, resolution: float = 0.0, search: DockingSearch = DockingSearch()) -> Docked:
    """Dock pieces of the initial map into the target, and let blocks of the map choose among the poses.

    After each choice the bodies of equal motion are refined, and the best of them claim their places in the target, so
    that no two explain the same density. Once, bodies that fit poorly are docked into what the others leave.

    Args:
        initial: the initial map's mass.
        target: the target's mass, on the same grid.
        resolution: of the target, Å.
        search: how pieces are docked.
    """
    docking = Docking(initial, target, max(resolution, search.resolution), search)
    found = docking.choose(docking.candidates())
    for round_ in range(search.rounds):
        bodies = docking.refined(found)
        further = docking.redocked(bodies) if round_ == 1 else []
        found = docking.choose([*(body.motion for body in bodies), *further], bodies)
    return found


@dataclass(frozen=True)
class Docking:
    """The search in one pair of maps; attributes are the arguments of `dock`."""

    initial: Map
    target: Map
    resolution: float
    search: DockingSearch

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

    def choose(self, motions: Sequence[Transform], bodies: Sequence[DockedBody] = ()) -> Docked:
        """Let each block choose a motion.

        Args:
            motions: the motions: those of the bodies, and further ones.
            bodies: each claims its place in the target before those that follow.
        """
        blocks, free = self.blocks, self.sharp_target
        y = np.stack([motion(blocks.x) for motion in motions], axis=1)
        carried = [self.sharp(self.moved(body)) for body in bodies]
        total = np.sum(carried, 0) if carried else np.zeros_like(free)
        scale = float(np.vdot(total, free) / max(np.vdot(total, total), 1e-30))
        match = np.zeros(y.shape[:2])
        for number in range(len(motions)):
            match[:, number] = self.match(y[:, number], free)
            if number < len(carried):
                free = free - scale * carried[number]
        owner = choose_parts(blocks, y, np.prod(blocks.size) * (1 - match), self.search.choices)
        return Docked(blocks, owner, match[np.arange(len(owner)), owner], [*motions])

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
        own, offset = np.where(body.keep, self.initial.density, 0), (back(origin[None])[0] - origin) / size
        return ndimage.affine_transform(own, back.rotation * size / size[:, None], offset, order=1)

    def refined(self, found: Docked) -> list[DockedBody]:
        """The bodies that have enough mass, each in its best pose near the present one; best first."""
        held = np.bincount(found.owner, found.blocks.density, len(found.motions)) / found.blocks.density.sum()
        fixed, ranked = self.body(self.target.density), []
        for number in np.flatnonzero(held >= min(self.search.least_mass, held.max())):
            own, motion = found.owner == number, found.motions[number]
            keep = found.blocks.on_voxels(own, self.initial.density.shape) > 0
            moving = self.part(keep)
            if fixed is None or moving is None:
                continue
            start = Pose(Rotation.from_matrix(motion.rotation), motion(moving.centre[None])[0] - fixed.centre, 0.0)
            better = Overlap(fixed, moving, self.resolution, sharp=True).maximise(start, 1e-6)
            match = float(np.average(found.match[own], weights=found.blocks.density[own]))
            ranked.append((match * np.sqrt(held[number]), DockedBody(keep, better.motion(fixed, moving), match)))
        return [body for _, body in sorted(ranked, key=lambda each: -each[0])]

    def redocked(self, bodies: Sequence[DockedBody]) -> list[Transform]:
        """Further poses of the bodies that fit poorly, in what the others leave of the target."""
        poor, good = ([b for b in bodies if (b.match < self.search.poor) == low] for low in (True, False))
        if not poor or not good:
            return []
        scale = self.target.density.sum() / self.initial.density.sum()
        left = np.maximum(self.target.density - scale * np.sum([self.moved(body) for body in good], 0), 0)
        return [pose for body in poor for pose in self.poses(body.keep, left, self.search.piece_poses)]


def spread_points(x: Float[np.ndarray, "points 3"], count: int) -> Float[np.ndarray, "some 3"]:
    """Some of the points, each as far as possible from those before; the first is farthest from the middle."""
    away, chosen = ((x - x.mean(0)) ** 2).sum(1), list[int]()
    while len(chosen) < min(count, len(x)):
        chosen.append(int(away.argmax()))
        squared = ((x - x[chosen[-1]]) ** 2).sum(1)
        away = squared if len(chosen) == 1 else np.minimum(away, squared)
    return x[chosen]
