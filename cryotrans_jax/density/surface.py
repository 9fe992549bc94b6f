"""Compute isosurfaces, and render them with NumPy, without a display or graphics card."""

import functools

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.ndimage import minimum_filter

LIGHT = np.array([0.35, 0.45, 0.82])  # direction to the light: right, up, viewer; about unit length
AMBIENT = 0.42  # brightness of faces turned away from the light
PITCH = 0.9  # pixels: largest spacing of a triangle's points, so that no pixel inside is missed
DEPTHS = 1 << 20  # number of depth values
EDGE = 0.025  # of the scene's depth: a step this deep draws an outline
CELLS = 6  # along the longest side of all triangles, by which hidden triangles are found
AROUND = 5  # cells around a corner in which a triangle behind all others is hidden


def isosurface(
    density: Float[np.ndarray, "x y z"],
    level: float,
    voxel_size: Float[np.ndarray, "3"],
    origin: Float[np.ndarray, "3"],
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "f 3"]]:
    """Compute the isosurface of a density at a positive contour, closed at the sides of the box.

    Args:
        density: the density.
        level: contour, above 0.
        voxel_size: Å, along each axis.
        origin: position of the centre of voxel (0, 0, 0), Å.

    Returns:
        Vertices [Å] and triangles, whose corners run counter-clockwise as seen from outside, where the density is
        lower. Both are empty if the density never exceeds the contour.
    """
    from skimage.measure import marching_cubes

    if not density.max() > level:
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)
    # "ascent" for counter-clockwise corners: scikit-image assumes axes z, y, x, which mirrors the orientation
    vertices, faces, _, _ = marching_cubes(np.pad(density, 1), level, gradient_direction="ascent")
    return ((vertices - 1) * voxel_size + origin).astype(np.float32), faces.astype(np.int32)


def best_view(points: Float[np.ndarray, "n 3"], shift: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "3 3"]:
    """Choose a view that shows a shift, with the molecule upright.

    The line of sight is the direction of least shift; the longest side of the molecule is up.

    Args:
        points: positions in the molecule, Å.
        shift: shift of each point, Å.

    Returns:
        The rotation to the view; its rows are right, up and towards the viewer.
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
    """Render a coloured surface, lit and with outlines, on white, in parallel projection.

    Args:
        vertices: Å.
        faces: triangles.
        colours: red, green and blue of each vertex, 0 to 1.
        view: rotation to the view, as from `best_view`.
        centre: point in the middle of the picture, Å.
        scale: pixels per Å.
        size: height and width of the picture, pixels.
    """
    seen = ((vertices - centre) @ view.T).astype(np.float32)
    normals = np.cross(seen[faces[:, 1]] - seen[faces[:, 0]], seen[faces[:, 2]] - seen[faces[:, 0]])
    lit = (255 * colours * brightness(normals, faces, len(seen))[:, None]).astype(np.float32)
    place = seen * (scale, -scale, scale) + (size[1] / 2, size[0] / 2, 0)
    front = faces[normals[:, 2] > 0]
    corners = place[front].astype(np.float32)
    drawn = ~hidden(corners, size)
    depth, picture = rasterise(corners[drawn], lit[front[drawn]], size)
    edge = EDGE * np.ptp(place[:, 2]) if len(place) else 0.0
    picture[outline(depth, edge)] *= 0.3
    return picture.astype(np.uint8)


def brightness(normals: Float[np.ndarray, "f 3"], faces: Int[np.ndarray, "f 3"], count: int) -> Float[np.ndarray, "v"]:
    """Brightness (0 to 1) of each of `count` vertices under LIGHT, smoothed over adjacent triangles."""
    corners = faces.ravel()
    each = [np.bincount(corners, np.repeat(component, 3), count) for component in normals.T]
    direction = np.stack(each, -1) / np.maximum(np.sqrt(sum(c**2 for c in each)), 1e-9)[:, None]
    return AMBIENT + (1 - AMBIENT) * np.clip(direction @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)


def hidden(corners: Float[np.ndarray, "f 3 3"], size: tuple[int, int]) -> Bool[np.ndarray, "f"]:
    """Mask of triangles that lie behind others around all of their corners, and need not be drawn.

    All are drawn in a small picture first, whose pixels are cells. A triangle can still be left out where it is seen
    through a gap narrower than a cell.

    Args:
        corners: as for `rasterise`.
        size: height and width of the picture, pixels.
    """
    cell = float(longest_sides(corners).max(initial=CELLS)) / CELLS
    height, width = (int(pixels / cell) + 1 for pixels in size)
    small = corners / np.array([cell, cell, 1], np.float32)
    depth, _ = rasterise(small, np.zeros_like(small), (height, width))
    depth = minimum_filter(depth, AROUND, mode="constant", cval=-np.inf)
    column, row = small[..., 0].astype(int).clip(0, width - 1), small[..., 1].astype(int).clip(0, height - 1)
    return (corners[..., 2].max(1, keepdims=True) < depth[row, column]).all(1)


def rasterise(
    corners: Float[np.ndarray, "f 3 3"], colours: Float[np.ndarray, "f 3 3"], size: tuple[int, int]
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w 3"]]:
    """Draw triangles with a depth buffer.

    A triangle is drawn as points no further apart than PITCH pixels, and each pixel keeps its nearest point: depth and
    colour are packed into one integer, depth first, so that one maximum keeps both.

    Args:
        corners: positions of each triangle's corners: column and row [pixels], and depth.
        colours: red, green and blue of each corner, 0 to 255.
        size: height and width of the picture, pixels.

    Returns:
        Depth (-inf on the background) and colour (white on the background) of each pixel.
    """
    kept = np.zeros(size[0] * size[1], np.int64)
    low, high = (corners[..., 2].min(), corners[..., 2].max()) if len(corners) else (0.0, 1.0)
    step = max(float(high - low), 1e-6) / DEPTHS
    parts = np.maximum(np.ceil(longest_sides(corners) / PITCH), 1).astype(int)
    each = np.concatenate([corners, colours], -1).transpose(1, 2, 0)  # by corner, x y z red green blue, triangle
    for count in np.unique(parts).tolist():
        chosen = np.ascontiguousarray(each[..., parts == count])
        # this order lets NumPy add corner by corner, four times as fast as any other
        x, y, z, *colour = np.einsum("kcf,kp->cfp", chosen, barycentric(count)).reshape(6, -1)
        column, row = x.astype(np.int32), y.astype(np.int32)
        inside = (x >= 0) & (column < size[1]) & (y >= 0) & (row < size[0])
        packed = np.maximum((z - low) / step + 1, 1).astype(np.int64)  # rounding may put z below low
        for component in colour:
            packed = packed << 8 | component.astype(np.int64)
        np.maximum.at(kept, row[inside] * size[1] + column[inside], packed[inside])
    kept = kept.reshape(size)
    picture = np.stack([kept >> 16 & 255, kept >> 8 & 255, kept & 255], -1).astype(np.float32)
    picture[kept == 0] = 255
    return np.where(kept > 0, (kept >> 24) * step + low, -np.inf), picture


def longest_sides(corners: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, "f"]:
    """Longest side of each triangle along the picture's columns or rows, pixels."""
    return np.abs(corners - np.roll(corners, 1, axis=1))[..., :2].max((1, 2))


@functools.cache
def barycentric(parts: int) -> Float[np.ndarray, "3 p"]:
    """Barycentric coordinates of points spread over a triangle, with `parts` intervals along each side."""
    i, j = np.meshgrid(np.arange(parts + 1), np.arange(parts + 1), indexing="ij")
    inside = i + j <= parts
    a, b = i[inside] / parts, j[inside] / parts
    return np.stack([a, b, 1 - a - b]).astype(np.float32)


def outline(depth: Float[np.ndarray, "h w"], edge: float) -> Bool[np.ndarray, "h w"]:
    """Mask of pixels with a neighbour more than `edge` nearer to the viewer."""
    padded = np.pad(depth, 1, constant_values=-np.inf)
    beside = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.maximum.reduce(beside) > depth + edge
