"""Isosurfaces are closed and right way out; a picture shows what is nearest, lit, and nothing beyond its outline."""

import numpy as np
import pytest

from cryotrans_jax.density import surface

VOXEL, ORIGIN = np.array([1.0, 1.2, 0.9]), np.array([-7.0, 3.0, 11.0])
CENTRE, RADIUS = np.array([5.0, 17.0, 24.0]), 9.0
SIZE = 120, 100  # height, width
FRONT = np.eye(3)  # right is x, up is y, the viewer at z = +infinity


@pytest.fixture(scope="module")
def ball():
    """A density that is 1 at RADIUS from CENTRE and falls off linearly."""
    grid = ORIGIN + VOXEL * np.stack(np.meshgrid(*map(np.arange, (26, 24, 30)), indexing="ij"), -1)
    return (1 + RADIUS - np.linalg.norm(grid - CENTRE, axis=-1)).astype(np.float32)


@pytest.fixture(scope="module")
def sphere(ball):
    return surface.isosurface(ball, 1.0, VOXEL, ORIGIN)


def volume(vertices, faces):
    """What the surface encloses, by Gauss's theorem: above 0 where its triangles face outwards."""
    a, b, c = np.moveaxis(vertices.astype(np.float64)[faces], 1, 0)
    return np.einsum("fi,fi->", a, np.cross(b, c)) / 6


def closed(faces):
    """Whether every edge of a triangle is run through once in each direction."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return {tuple(e) for e in edges.tolist()} == {tuple(e) for e in edges[:, ::-1].tolist()}


def test_a_surface_stands_where_the_density_has_the_level(sphere):
    vertices, faces = sphere
    np.testing.assert_allclose(np.linalg.norm(vertices - CENTRE, axis=1), RADIUS, atol=0.05)  # voxel² / 8 RADIUS
    assert closed(faces)
    assert volume(vertices, faces) == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.01)


def test_a_surface_is_closed_at_the_sides_of_the_box(ball):
    vertices, faces = surface.isosurface(ball[:13], 1.0, VOXEL, ORIGIN)  # cut through near the middle
    assert closed(faces) and volume(vertices, faces) > 0.4 * 4 / 3 * np.pi * RADIUS**3


def test_there_is_no_surface_where_nothing_is_above_the_level(ball):
    vertices, faces = surface.isosurface(ball, float(ball.max()), VOXEL, ORIGIN)
    assert len(vertices) == len(faces) == 0
    picture = surface.render(vertices, faces, vertices, FRONT, CENTRE, 4.0, SIZE)
    assert picture.shape == (*SIZE, 3) and (picture == 255).all()


def test_a_picture_covers_the_outline_and_nothing_else(sphere):
    vertices, faces = sphere
    red = np.broadcast_to(np.float32([1, 0, 0]), vertices.shape)
    picture = surface.render(vertices, faces, red, FRONT, CENTRE, 4.0, SIZE)
    row, column = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    away = np.hypot(row - SIZE[0] / 2, column - SIZE[1] / 2) / 4.0
    reds = (picture[..., 0] > 0) & (picture[..., 1:] == 0).all(-1)
    assert reds[away < RADIUS - 0.5].all()  # two pixels of outline and rounding
    assert (picture[away > RADIUS + 0.5] == 255).all()
    # lit from above, the right and the front
    light = picture[..., 0].astype(int)
    middle, far = SIZE[0] // 2, int(4 * 0.6 * RADIUS)
    assert light[middle - far, SIZE[1] // 2 + far // 2] > light[middle + far, SIZE[1] // 2 - far // 2]


def test_what_is_nearer_hides_what_is_farther(sphere):
    vertices, faces = sphere
    both = np.concatenate([vertices, vertices + np.float32([0, 0, 30])])
    twice = np.concatenate([faces, faces + len(vertices)])
    colours = np.repeat(np.float32([[1, 0, 0], [0, 1, 0]]), len(vertices), axis=0)
    middle = SIZE[0] // 2, SIZE[1] // 2
    for view, seen in ((FRONT, 1), (FRONT * [[-1], [1], [-1]], 0)):  # from the front, and from behind
        picture = surface.render(both, twice, colours, view.astype(float), CENTRE, 3.0, SIZE)
        assert picture[middle].argmax() == seen


def test_hidden_triangles_are_left_out_but_for_those_seen_through_a_gap(sphere):
    """Of two concentric spheres, the outer one with a window through which the inner one is seen."""
    vertices, faces = sphere
    inner, outer = vertices - CENTRE, 1.5 * (vertices - CENTRE)
    window = (np.hypot(*outer[faces].mean(1).T[:2]) < 4) & (outer[faces].mean(1)[:, 2] > 0)
    corners = np.concatenate([inner[faces], outer[faces[~window]]]) * [3, 3, 3] + [SIZE[1] / 2, SIZE[0] / 2, 0]
    corners = corners.astype(np.float32)
    colours = np.repeat(np.float32([[10, 200, 30], [200, 10, 30]]), [len(faces), (~window).sum()], axis=0)
    colours = np.repeat(colours[:, None], 3, axis=1)
    left_out = surface.hidden(corners, SIZE)
    assert left_out.mean() > 0.4  # the backs, and most of the inner front
    (depth, picture), (fewer, the_same) = (
        surface.rasterise(corners[some], colours[some], SIZE) for some in (slice(None), ~left_out)
    )
    np.testing.assert_array_equal(np.isfinite(fewer), np.isfinite(depth))
    assert (picture[SIZE[0] // 2, SIZE[1] // 2] == [10, 200, 30]).all()
    assert (picture != the_same).any(-1).mean() < 0.002


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_hides_a_single_triangle(count):
    corners = np.float32([[(10, 10, 5), (90, 12, -5), (40, 90, 0)]])[:count]
    assert not surface.hidden(corners, SIZE).any()


def test_sides_that_are_seen_edge_on_are_not_drawn():
    """Of a box whose front and back are red and whose sides, with corners of their own, are green."""
    square = np.float32([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = [np.insert(square, axis, side, axis=1) for axis in range(3) for side in (-1, 1)]
    faces = np.concatenate([[[k, k + 1, k + 2], [k, k + 2, k + 3]] for k in range(0, 24, 4)]).astype(np.int32)
    faces = np.concatenate([faces, faces[:, ::-1]])  # whichever way round they look outwards
    colours = np.repeat(np.float32([[0, 1, 0]] * 4 + [[1, 0, 0]] * 2), 4, axis=0)
    picture = surface.render(np.concatenate(corners), faces, colours, FRONT, np.zeros(3), 20.0, SIZE)
    assert (picture[41:79, 31:69, 0] > 0).all() and not picture[40:80, 30:70, 1:].any()


@pytest.mark.parametrize("depths", [(3.0, 3.0, 3.0), (0.0, 55.0, 40.0), (-7.0, 1.0, -40.0)])
def test_a_triangle_is_drawn_without_holes_at_the_depth_of_its_plane(depths):
    """A long one: points are no further apart than a pixel in each direction."""
    flat, size = np.array([[2.0, 3.0], [70.0, 45.0], [45.0, 70.0]]), (80, 75)
    corners = np.concatenate([flat, np.array(depths)[:, None]], 1)[None].astype(np.float32)
    colours = np.broadcast_to(np.float32([10, 200, 30]), (1, 3, 3)).copy()
    depth, picture = surface.rasterise(corners, colours, size)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    weights = np.linalg.solve(np.vstack([flat.T, np.ones(3)]), np.stack([x, y, np.ones_like(x)]).reshape(3, -1))
    least = weights.min(0).reshape(size)
    drawn = np.isfinite(depth)
    assert drawn[least > 0.03].all() and not drawn[least < -0.05].any()  # a pixel is 0.02 of the way across
    steep = np.abs(np.linalg.lstsq(np.c_[flat, np.ones(3)], np.array(depths), rcond=None)[0][:2]).sum()
    plane = (np.array(depths) @ weights).reshape(size)
    np.testing.assert_allclose(depth[drawn], plane[drawn], atol=0.5 * steep + 1e-3)  # within the pixel
    np.testing.assert_allclose(picture[drawn], np.tile([10, 200, 30], (drawn.sum(), 1)), atol=1)  # cut to whole numbers
    assert (picture[~drawn] == 255).all()


@pytest.mark.parametrize("corners", [[(-80, -70), (90, -75), (-75, 95)], [(-40, 0), (40, -40), (0, 40)]])
def test_a_triangle_larger_than_the_picture_covers_all_of_it(corners):
    """From corner to corner, though most of it and all of its corners are outside."""
    corners = np.float32([[(*corner, 5) for corner in corners]])
    depth, picture = surface.rasterise(corners, np.full((1, 3, 3), 100, np.float32), (9, 8))
    np.testing.assert_allclose(depth, 5, atol=1e-5)
    np.testing.assert_allclose(picture, 100, atol=1)


def test_outlines_are_drawn_on_what_lies_behind():
    depth = np.zeros((5, 7))
    depth[2, 3] = 4.0
    beside = np.zeros((5, 7), bool)
    beside[[1, 3, 2, 2], [3, 3, 2, 4]] = True
    np.testing.assert_array_equal(surface.outline(depth, 3.9), beside)
    assert not surface.outline(depth, 4.0).any()


def test_the_view_shows_the_motion_and_the_length():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(500, 3)) * [3, 10, 5]
    shift = np.outer(rng.uniform(1, 2, 500), [0.8, 0, 0.6])  # along x and z
    view = surface.best_view(points, shift)
    np.testing.assert_allclose(view @ view.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(view) == pytest.approx(1)
    assert abs(view[2] @ [0.8, 0, 0.6]) < 0.02 and view[1, 1] > 0.98
    # and where nothing moves it is still a view
    assert np.linalg.det(surface.best_view(points, 0 * shift)) == pytest.approx(1)
