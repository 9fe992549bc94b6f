"""What a run's frames show: their surfaces as pictures of the morph, and as volumes that the page's script contours."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from cryotrans_jax import plots, surface, trajectory
from cryotrans_jax.maps import Map
from cryotrans_jax.motion import CELL, Motion, displacement_map

from . import run_folder
from .results import frame_number

ROOM = 4.0  # Å about the thresholded mass that a picture shows
REACH = 2 * trajectory.SKIN + CELL  # Å about it, beyond which frames hold no density
VOXELS = 450_000  # of a frame's density, from which its surface is drawn
COLOURS = 50_000  # voxels of a frame's displacement, by which its surface is coloured
FRAMES = 13  # at most, of the animation and of the page
SIDE = 600  # pixels of a picture's longer side, before it is halved
NARROWEST = 320  # pixels, so that its key has room


@dataclass
class Moved:
    """Points of the initial map's mass (Å), their masses, how they move, and the end of the key to how far (Å)."""

    points: np.ndarray
    rho: np.ndarray
    motion: Motion
    top: float


class Frame(NamedTuple):
    """A frame's name, time and density, and how far (Å) the density at each place moves from start to end."""

    name: str
    time: float
    density: Map
    displacement: Map


def frames(folder: Path, count: int, initial: Map, generated: Map, moved: Moved) -> list[Frame]:
    """Read the run's frames about the molecule, FRAMES of them at most.

    Args:
        folder: of the run, with its frame_NN.mrc.
        count: of the frames that the run made.
        initial: what is carried of the initial map; stands in for a first frame that is not there.
        generated: the generated map; stands in for a last frame that is not there.
        moved: the mass and its motion.

    Returns:
        The frames by rising time, the first at 0 and the last at 1.
    """
    places = (moved.points + moved.motion.knots(moved.points)).reshape(-1, 3)
    low, high = places.min(0) - REACH, places.max(0) + REACH
    found = []
    for name, time, map_ in evenly(run_frames(folder, count, initial, generated), FRAMES):
        box = part(run_folder.load_map(folder, name) if map_ is None else map_, low, high)
        size, origin, shape = coarser(box, COLOURS)
        colours = Map(np.zeros(shape, np.float32), size, origin)
        displacement = displacement_map(moved.motion, moved.points, colours, time)
        found.append(Frame(name, time, resampled(box, VOXELS), filled(displacement)))
    return found


def run_frames(folder: Path, count: int, initial: Map, generated: Map) -> list[tuple[str, float, Map | None]]:
    """Names, times and maps of all frames that are there, None for a map in the folder's file, and of both ends."""
    times = trajectory.frame_times(count).tolist()
    names = {time: f"frame_{frame_number(number, count)}.mrc" for number, time in enumerate(times)}
    there = {time: (name, time, None) for time, name in names.items() if run_folder.has(folder, name)}
    ends = {0.0: ("the initial map", 0.0, initial), 1.0: ("generated.mrc", 1.0, generated)}
    return [entry for _, entry in sorted((ends | there).items())]


def evenly(entries: Sequence, most: int) -> list:
    """`most` of the entries at most, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(entries) - 1, min(len(entries), most)).round().astype(int)
    return [entries[k] for k in places]


def filled(map_: Map) -> Map:
    """The map with the nearest value where it is zero."""
    empty = map_.density == 0
    if empty.all():
        return map_
    nearest = ndimage.distance_transform_edt(empty, map_.voxel_size, return_distances=False, return_indices=True)
    return Map(map_.density[tuple(nearest)], map_.voxel_size, map_.origin)


def surfaces(film: Sequence[Frame], level: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Vertices (Å), triangles and displacements (Å) at the vertices of each frame's surface at a contour level."""
    for _, _, density, displacement in film:
        vertices, faces = surface.isosurface(density.density, level, density.voxel_size, density.origin)
        at = ((vertices - displacement.origin) / displacement.voxel_size).T
        yield vertices, faces, ndimage.map_coordinates(displacement.density, at, order=1, mode="nearest")


def scene(moved: Moved) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The view of the morph, as from `surface.best_view`, and the middle and the sides (Å) of what is seen in it."""
    places = moved.points + moved.motion.knots(moved.points)
    view = surface.best_view(moved.points, places[-1] - moved.points)
    across = places.reshape(-1, 3) @ view.T
    low, high = across.min(0) - ROOM, across.max(0) + ROOM
    return view, view.T @ ((low + high) / 2), high - low


def pictures(film: Sequence[Frame], level: float, moved: Moved) -> list[Image.Image]:
    """The frames' surfaces at a contour level, coloured by displacement."""
    view, centre, sides = scene(moved)
    sides = sides[:2]
    scale = SIDE / sides.max()
    height, width = (2 * int(np.ceil(side * scale / 2)) for side in (sides[1], max(sides[0], NARROWEST / scale)))
    drawn = []
    for frame, (vertices, faces, far) in zip(film, surfaces(film, level), strict=True):
        colours = plots.coloured(far, moved.top)
        picture = surface.render(vertices, faces, colours, view, centre, scale, (height, width))
        drawn.append(plots.captioned(picture, moved.top, frame.time))
    return drawn


def part(map_: Map, low: np.ndarray, high: np.ndarray) -> Map:
    """The part of a map between two corners (Å)."""
    start = np.maximum(np.floor((low - map_.origin) / map_.voxel_size), 0).astype(int)
    stop = np.minimum(np.ceil((high - map_.origin) / map_.voxel_size) + 1, map_.density.shape).astype(int)
    density = map_.density[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    return Map(density, map_.voxel_size, map_.origin + start * map_.voxel_size)


def coarser(map_: Map, most: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Voxel size, origin and shape of a grid over the map's box: the map's own, or one with `most` voxels."""
    factor = max((map_.density.size / most) ** (1 / 3), 1.0)
    shape = np.maximum(np.floor(np.array(map_.density.shape) / factor), 2).astype(int)
    size = map_.voxel_size * map_.density.shape / shape
    return size, map_.origin + (size - map_.voxel_size) / 2, tuple(shape.tolist())


def resampled(map_: Map, most: int) -> Map:
    """The map on the grid from `coarser`, without what is too fine for it."""
    size, origin, shape = coarser(map_, most)
    factor = np.array(map_.density.shape) / shape
    if np.all(factor == 1):
        return map_
    smooth = ndimage.gaussian_filter(map_.density, 0.5 * np.sqrt(factor**2 - 1), mode="nearest")
    return Map(ndimage.zoom(smooth, 1 / factor, order=1, mode="nearest", grid_mode=True), size, origin)
