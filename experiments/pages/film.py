"""The frames of a run for its report: volumes that the page's script contours, and pictures of their surfaces."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from cryotrans_jax import plots
from cryotrans_jax.density import surface
from cryotrans_jax.fit import trajectory
from cryotrans_jax.io import cores
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.displacement import CELL, Motion, displacement_map

from .. import finished
from ..case import frame_number
from . import pictures
from .places import Places

ROOM = 4.0  # Å around the mass in a picture
REACH = 2 * trajectory.PullBack.skin + CELL  # Å around the mass, beyond which frames have no density
VOXELS = 1_000_000  # at most of a frame's density, from which its surface is drawn
COLOURS = 50_000  # voxels at most of a frame's displacement, by which its surface is coloured
FRAMES = 13  # at most in the animation and on the page


@dataclass
class CarriedMass:
    """The mass of the initial map and its motion.

    Attributes:
        points: positions (Å), shape (points, 3).
        rho: mass of each point.
        motion: of the mass.
        top: displacement at the end of the colour key (Å).
        places: bodies and predicted errors of the points.
    """

    points: np.ndarray
    rho: np.ndarray
    motion: Motion
    top: float
    places: Places


class Frame(NamedTuple):
    """A frame of the morph.

    Attributes:
        name: of its file.
        time: from 0 to 1.
        density: of the frame, around the molecule.
        displacement: of its density from start to end, Å.
        body: codes of the rigid bodies, on the grid of the displacement.
        error: codes of the predicted errors, likewise.
    """

    name: str
    time: float
    density: Map
    displacement: Map
    body: np.ndarray
    error: np.ndarray


def read_frames(folder: Path, count: int, initial: Map, generated: Map, moved: CarriedMass) -> list[Frame]:
    """Read the run's frames, at most FRAMES of them, cropped to the molecule.

    Args:
        folder: of the run, with its frame_NN.mrc.
        count: number of frames that the run made.
        initial: the initial map as carried, in place of a missing first frame.
        generated: the generated map, in place of a missing last frame.

    Returns:
        The frames by time, the first at 0 and the last at 1.
    """
    knots = moved.motion.displacements_at(moved.points)
    places = (moved.points + knots).reshape(-1, 3)
    low, high = places.min(0) - REACH, places.max(0) + REACH
    found = []
    for name, time, map_ in pick_evenly(run_frames(folder, count, initial, generated), FRAMES):
        box = crop(finished.load_map(folder, name) if map_ is None else map_, low, high)
        size, origin, shape = coarse_grid(box, COLOURS)
        colours = Map(np.zeros(shape, np.float32), size, origin)
        displacement = displacement_map(moved.motion, moved.points, colours, time)
        codes = moved.places.on_grid(moved.points + moved.motion.at_time(knots, time), colours)
        found.append(Frame(name, time, resampled(box, VOXELS), fill_empty(displacement), *codes))
    return found


def run_frames(folder: Path, count: int, initial: Map, generated: Map) -> list[tuple[str, float, Map | None]]:
    """Names, times and maps of the frames in the folder and of both ends; the map is None for a file in the folder."""
    times = trajectory.frame_times(count).tolist()
    names = {time: f"frame_{frame_number(number, count)}.mrc" for number, time in enumerate(times)}
    there = {time: (name, time, None) for time, name in names.items() if finished.has(folder, name)}
    ends = {0.0: ("the initial map", 0.0, initial), 1.0: ("generated.mrc", 1.0, generated)}
    return [entry for _, entry in sorted((ends | there).items())]


def pick_evenly(entries: Sequence, most: int) -> list:
    """At most `most` of the entries, evenly spaced, with the first and the last."""
    places = np.linspace(0, len(entries) - 1, min(len(entries), most)).round().astype(int)
    return [entries[k] for k in places]


def fill_empty(map_: Map) -> Map:
    """Replace zeros of a map by the nearest value that is not zero."""
    empty = map_.density == 0
    if empty.all():
        return map_
    nearest = ndimage.distance_transform_edt(empty, map_.voxel_size, return_distances=False, return_indices=True)
    return Map(map_.density[tuple(nearest)], map_.voxel_size, map_.origin)


def coloured_surface(frame: Frame, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Surface of a frame at a contour level: vertices (Å), triangles, displacements at the vertices (Å)."""
    density, displacement = frame.density, frame.displacement
    vertices, faces = surface.isosurface(density.density, level, density.voxel_size, density.origin)
    at = ((vertices - displacement.origin) / displacement.voxel_size).T
    return vertices, faces, ndimage.map_coordinates(displacement.density, at, order=1, mode="nearest")


def scene(moved: CarriedMass) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """View of the morph, as from `surface.best_view`, and centre and sides (Å) of the box that it shows."""
    places = moved.points + moved.motion.displacements_at(moved.points)
    view = surface.best_view(moved.points, places[-1] - moved.points)
    across = places.reshape(-1, 3) @ view.T
    low, high = across.min(0) - ROOM, across.max(0) + ROOM
    return view, view.T @ ((low + high) / 2), high - low


def draw_pictures(
    film: Sequence[Frame], level: float, moved: CarriedMass, title: str = "", names: str = ""
) -> list[Image.Image]:
    """Draw the frames' surfaces at a contour level, coloured by displacement, with a title and the maps' names."""
    view, centre, sides = scene(moved)
    size = tuple(round(pictures.FINER * side) for side in pictures.AREA)
    scale = min(size[0] / sides[1], size[1] / sides[0])

    def draw(frame: Frame) -> Image.Image:
        vertices, faces, far = coloured_surface(frame, level)
        colours = plots.displacement_colours(far, moved.top)
        picture = surface.render(vertices, faces, colours, view, centre, scale, size)
        return pictures.compose(picture, title, names, moved.top, frame.time)

    with ThreadPoolExecutor(cores.usable()) as pool:
        return [*pool.map(draw, film)]


def crop(map_: Map, low: np.ndarray, high: np.ndarray) -> Map:
    """Crop a map to the box between two corners (Å)."""
    start = np.maximum(np.floor((low - map_.origin) / map_.voxel_size), 0).astype(int)
    stop = np.minimum(np.ceil((high - map_.origin) / map_.voxel_size) + 1, map_.density.shape).astype(int)
    density = map_.density[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    return Map(density, map_.voxel_size, map_.origin + start * map_.voxel_size)


def coarse_grid(map_: Map, most: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Voxel size, origin and shape of a grid over the map's box: the map's own, or a coarser one of `most` voxels."""
    factor = max((map_.density.size / most) ** (1 / 3), 1.0)
    shape = np.maximum(np.floor(np.array(map_.density.shape) / factor), 2).astype(int)
    size = map_.voxel_size * map_.density.shape / shape
    return size, map_.origin + (size - map_.voxel_size) / 2, tuple(shape.tolist())


def resampled(map_: Map, most: int) -> Map:
    """Resample a map on the grid from `coarse_grid`, after a low-pass filter."""
    size, origin, shape = coarse_grid(map_, most)
    factor = np.array(map_.density.shape) / shape
    if np.all(factor == 1):
        return map_
    smooth = ndimage.gaussian_filter(map_.density, 0.5 * np.sqrt(factor**2 - 1), mode="nearest")
    return Map(ndimage.zoom(smooth, 1 / factor, order=1, mode="nearest", grid_mode=True), size, origin)
