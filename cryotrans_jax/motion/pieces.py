"""Pieces of an initial map as rigid bodies: their best poses in a target, and what they leave of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from cryotrans_jax.density.align import even_rotations, refine_once
from cryotrans_jax.density.boxes import box_slices
from cryotrans_jax.density.overlap import Body, Filtered, Overlap, Placement, maximise
from cryotrans_jax.density.simulation import SIGMA
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.borders import Blocks, make_blocks

Volume = Float[np.ndarray, "x y z"]
Mask = Bool[np.ndarray, "x y z"]


@dataclass(frozen=True)
class PoseSearch:
    """How the poses of a piece in a target are searched for.

    Attributes:
        coarse: resolution of the search, in radii of gyration of the piece, but at least 1.4 times as coarse as that
            of the comparison.
        rotations: number of rotations that are tried.
        refined: poses of the search that are refined.
        spacing: of the points of a piece, in units of the resolution.
    """

    coarse: float = 0.6
    rotations: int = 500
    refined: int = 8
    spacing: float = 0.5


@dataclass(frozen=True)
class Pieces:
    """The masses of an initial map and of a target, and the blocks from which pieces of the initial map are made.

    Attributes:
        initial: the initial map's mass.
        target: the target's mass, on the same grid.
        resolution: at which densities are compared, Å.
        block: side of the blocks, Å.
        max_blocks: about as many at most; the sides are longer where there would be more.
        search: how poses are searched for.
    """

    initial: Map
    target: Map
    resolution: float
    block: float
    max_blocks: int
    search: PoseSearch

    @cached_property
    def blocks(self) -> Blocks:
        """Blocks of the initial map."""
        volume = np.count_nonzero(self.initial.density) * np.prod(self.initial.voxel_size)
        side = max(self.block, float((volume / self.max_blocks) ** (1 / 3)))
        return make_blocks(self.initial.density, self.initial, side)

    @cached_property
    def whole_target(self) -> Filtered | None:
        """The whole target as it is compared."""
        return self.filtered(self.target.density)

    @cached_property
    def sharp_target(self) -> Volume:
        """The target's density on its voxels as it is compared."""
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

    def ball(self, centre: Float[np.ndarray, "3"], share: float) -> Mask:
        """The voxels of the ball about a position (Å) that holds this share of the mass."""
        away = np.linalg.norm(self.blocks.x - centre, axis=1)
        order, held = np.argsort(away), self.blocks.density
        last = np.searchsorted(np.cumsum(held[order]), share * held.sum())
        return np.linalg.norm(self.positions - centre, axis=-1) <= away[order][last]

    def part(self, keep: Mask) -> Body | None:
        """A part of the initial map as a body."""
        return self.body(np.where(keep, self.initial.density, 0))

    def filtered(self, density: Volume) -> Filtered | None:
        """A density of the target as it is compared; None where it is too small."""
        body = self.body(density)
        return body and Filtered(body, self.resolution, sharp=True)

    def poses(self, keep: Mask, target: Filtered | None, count: int) -> list[Transform]:
        """The best poses of a part of the initial map in a target density; none where either is too small."""
        moving = self.part(keep)
        if target is None or moving is None:
            return []
        fixed = target.body
        coarse = max(1.4 * self.resolution, self.search.coarse * min(fixed.radius, moving.radius))
        scan = Overlap(replace(target, resolution=coarse), moving, self.search.spacing)
        begun = scan.scan_shifts(even_rotations(self.search.rotations))
        best = refine_once(Overlap(target, moving, self.search.spacing), begun[: self.search.refined], 1e-4)[:count]
        return [pose.motion(fixed, moving) for pose in best]

    def refine(
        self,
        pieces: Sequence[tuple[Bool[np.ndarray, "points"], Transform]],
        target: Filtered | None,
        close: float,
        reach: float,
    ) -> list[Transform]:
        """The best motions near given ones (`overlap.maximise`) of pieces in a density of the target.

        Args:
            pieces: which blocks are in each piece, and its motion. A piece that is too small keeps it.
            target: as from `filtered`.
            close: gain of the correlation that is none.
            reach: Å by which a piece may move at most.
        """
        found = [motion for _, motion in pieces]
        if target is None:
            return found
        parts = [self.part(self.voxels(own)) for own, _ in pieces]
        bodies = {number: body for number, body in enumerate(parts) if body is not None}
        begun = [Placement.of(found[number], target.body, body) for number, body in bodies.items()]
        overlaps = [Overlap(target, body, self.search.spacing) for body in bodies.values()]
        for number, pose in zip(bodies, maximise(overlaps, begun, close, reach), strict=True):
            found[number] = pose.motion(target.body, bodies[number])
        return found

    def moved(self, own: Bool[np.ndarray, "points"], motion: Transform) -> Volume:
        """The mass of some blocks where a motion takes it."""
        size, origin, back = self.initial.voxel_size, self.initial.origin, motion.inverse
        mass, offset = np.where(self.voxels(own), self.initial.density, 0), (back(origin[None])[0] - origin) / size
        return ndimage.affine_transform(mass, back.rotation * size / size[:, None], offset, order=1)

    def without(self, target: Volume, moved: Volume) -> Volume:
        """What moved mass leaves of a target density."""
        scale = self.target.density.sum() / self.initial.density.sum()
        return np.maximum(target - scale * moved, 0)
