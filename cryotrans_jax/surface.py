"""Isosurfaces, and pictures of them drawn without a display: numpy is the graphics card."""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

LIGHT = np.array([0.35, 0.45, 0.82])  # towards the light: right, up, viewer; about unit length
AMBIENT = 0.42  # brightness of what faces away from the light
PITCH = 0.9  # pixels between the points by which a triangle is drawn, at most: no pixel inside is missed
DEPTHS = 1 << 20  # steps of depth that are told apart
EDGE = 0.025  # of the scene's depth: a step as deep draws an outline


def isosurface(
    density: Float[np.ndarray, "x y z"],
    level: float,
    voxel_size: Float[np.ndarray, "3"],
    origin: Float[np.ndarray, "3"],
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    """Vertices (Å) and triangles of the surface on which the density has a level above 0, closed at the box's sides.

    The corners of a triangle follow each other to the left as seen from outside, where the density is lower. Empty
    where the density nowhere exceeds the level.
    """
    from skimage.measure import marching_cubes

    if not density.max() > level:
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)
    # "ascent" for corners to the left: scikit-image thinks of axes z, y, x, seen in which left is right
    vertices, faces, _, _ = marching_cubes(np.pad(density, 1), level, gradient_direction="ascent")
    return ((vertices - 1) * voxel_size + origin).astype(np.float32), faces.astype(np.int32)


def best_view(points: Float[np.ndarray, "n 3"], shift: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "3 3"]:
    """A view as a rotation (rows: right, up, towards the viewer) in which the shift is seen and the molecule stands up.

    One looks along the direction in which things are shifted least; the longest side of the molecule is up.
    """
    spread = np.cov(points.T)
    moved = shift.T @ shift / len(shift)
    towards = np.linalg.eigh(moved + 1e-3 * spread)[1][:, 0]
    flat = np.eye(3) - np.outer(towards, towards)
    up = np.linalg.eigh(flat @ spread @ flat)[1][:, -1]
    up *= 1 if up[np.abs(up).argmax()] > 0 else -1
    return np.stack([np.cross(up, towards), up, towards])


def render(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    colours: Float[np.ndarray, "v 3"],
    view: Float[np.ndarray, "3 3"],
    centre: Float[np.ndarray, "3"],
    scale: float,
    size: tuple[int, int],
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of a coloured surface, lit, with outlines, on white: parallel projection, `scale` pixels an Å.

    `colours` are red, green and blue from 0 to 1; `view` is as in `best_view`; `centre` (Å) is in the middle of the
    picture, which is `size` = (height, width) pixels.
    """
    seen = ((vertices - centre) @ view.T).astype(np.float32)
    normals = np.cross(seen[faces[:, 1]] - seen[faces[:, 0]], seen[faces[:, 2]] - seen[faces[:, 0]])
    lit = (255 * colours * brightness(normals, faces, len(seen))[:, None]).astype(np.float32)
    place = seen * (scale, -scale, scale) + (size[1] / 2, size[0] / 2, 0)
    front = faces[normals[:, 2] > 0]
    depth, picture = nearest(place[front].astype(np.float32), lit[front], size)
    edge = EDGE * np.ptp(place[:, 2]) if len(place) else 0.0
    picture[outline(depth, edge)] *= 0.3
    return picture.astype(np.uint8)


def brightness(normals: Float[np.ndarray, "f 3"], faces: Int[np.ndarray, "f 3"], count: int) -> Float[np.ndarray, "v"]:
    """Brightness (0 to 1) of each of `count` vertices under LIGHT, smooth over the triangles that meet there."""
    corners = faces.ravel()
    each = [np.bincount(corners, np.repeat(component, 3), count) for component in normals.T]
    direction = np.stack(each, -1) / np.maximum(np.sqrt(sum(c**2 for c in each)), 1e-9)[:, None]
    return AMBIENT + (1 - AMBIENT) * np.clip(direction @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)


def nearest(
    corners: Float[np.ndarray, "f 3 3"], colours: Float[np.ndarray, "f 3 3"], size: tuple[int, int]
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w 3"]]:
    """Depth (-inf where there is nothing) and colour (white there) of the triangles nearest to the viewer.

    A triangle is drawn as points no further apart than PITCH pixels, and of the points in one pixel the nearest is
    kept: depth stands above colour in one whole number, so that one maximum keeps both.
    """
    kept = np.zeros(size[0] * size[1], np.int64)
    low, high = (corners[..., 2].min(), corners[..., 2].max()) if len(corners) else (0.0, 1.0)
    step = max(float(high - low), 1e-6) / DEPTHS
    sides = np.abs(corners - np.roll(corners, 1, axis=1))[..., :2].max((1, 2))
    parts = np.maximum(np.ceil(sides / PITCH), 1).astype(int)
    each = np.concatenate([corners, colours], -1).transpose(1, 2, 0)  # by corner, x y z red green blue, triangle
    for count in np.unique(parts).tolist():
        chosen = np.ascontiguousarray(each[..., parts == count])
        # numpy adds corner by corner here: four times as fast as in any other order
        x, y, z, *colour = np.einsum("kcf,kp->cfp", chosen, barycentric(count)).reshape(6, -1)
        column, row = x.astype(np.int32), y.astype(np.int32)
        inside = (x >= 0) & (column < size[1]) & (y >= 0) & (row < size[0])
        packed = np.maximum((z - low) / step + 1, 1).astype(np.int64)  # also where z is rounded to below low
        for component in colour:
            packed = packed << 8 | component.astype(np.int64)
        np.maximum.at(kept, row[inside] * size[1] + column[inside], packed[inside])
    kept = kept.reshape(size)
    picture = np.stack([kept >> 16 & 255, kept >> 8 & 255, kept & 255], -1).astype(np.float32)
    picture[kept == 0] = 255
    return np.where(kept > 0, (kept >> 24) * step + low, -np.inf), picture


def barycentric(parts: int) -> Float[np.ndarray, "3 p"]:
    """Weights of a triangle's corners for points spread over it, `parts` intervals along each side."""
    i, j = np.meshgrid(np.arange(parts + 1), np.arange(parts + 1), indexing="ij")
    inside = i + j <= parts
    a, b = i[inside] / parts, j[inside] / parts
    return np.stack([a, b, 1 - a - b]).astype(np.float32)


def outline(depth: Float[np.ndarray, "h w"], edge: float) -> Bool[np.ndarray, "h w"]:
    """Pixels with a neighbour that stands more than `edge` nearer to the viewer."""
    padded = np.pad(depth, 1, constant_values=-np.inf)
    beside = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.maximum.reduce(beside) > depth + edge
