"""The grid's fast kernel is exact, and W2 obeys the laws of entropic transport."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rounding
from ott.geometry import grid, pointcloud
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn
from scipy.linalg import sqrtm
from scipy.special import logsumexp

from cryotrans_jax.core.splat import splat
from cryotrans_jax.core.transport import (
    VoxelGrid,
    exp2_below_zero,
    lse_along,
    potentials,
    w2,
    w2_and_error,
    window_error,
    window_for,
)

SHAPE = (5, 6, 7)
VOXEL = np.array([0.11, 0.17, 0.08])  # unit boxes
EPSILON = 0.02
BOX = (12, 11, 13)
SIDE = np.array([0.07, 0.08, 0.075])
POTENTIALS = jax.jit(potentials, static_argnums=(3, 4, 5))
ERROR = jax.jit(window_error, static_argnums=(5, 6))
W2 = jax.jit(jax.value_and_grad(w2), static_argnums=(3, 4, 5))


def centres(shape, voxel):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * voxel


def gaussian(mean, covariance, shape=BOX, voxel=SIDE):
    """A normal distribution on the grid, of mass 1."""
    d = centres(shape, voxel) - mean
    density = np.exp(-0.5 * np.einsum("...i,ij,...j", d, np.linalg.inv(covariance), d))
    return jnp.asarray(density / density.sum(), jnp.float32)


@pytest.fixture(scope="module")
def masses():
    a, b = np.random.default_rng(0).uniform(0.1, 1, (2, *SHAPE))
    return jnp.asarray(a / a.sum(), jnp.float32), jnp.asarray(b / b.sum(), jnp.float32)


@pytest.fixture(scope="module")
def blobs():
    a = gaussian([0.3, 0.45, 0.5], np.diag([0.10, 0.12, 0.09]) ** 2)
    b = gaussian([0.5, 0.4, 0.4], np.diag([0.09, 0.10, 0.13]) ** 2)
    return a, b


@pytest.mark.parametrize(
    "axis, shape, window",
    [(0, (37, 2, 3), w) for w in (None, 0, 3, 20)]
    + [(1, (3, 5, 2), w) for w in (None, 1)]
    + [(2, (2, 3, 17), w) for w in (None, 11, 16)]
    + [(1, (2, 1, 3), None)],
)
def test_lse_along_is_the_dense_sum(axis, shape, window):
    h = np.random.default_rng(0).normal(0, 30, shape).astype(np.float32)
    k = np.arange(shape[axis])
    offset = k[:, None] - k
    kernel = np.where(np.abs(offset) <= (len(k) if window is None else window), -0.3 * offset**2, -np.inf)
    terms = np.moveaxis(h, axis, -1)[..., None, :] + kernel
    exact = np.moveaxis(logsumexp(terms, axis=-1), -1, axis)
    found = jax.jit(lse_along, static_argnums=(1, 3))(jnp.asarray(h), axis, 0.3, window)
    np.testing.assert_allclose(found, exact, atol=rounding(100.0, 4))  # sums up to this size


@pytest.mark.parametrize("axis", [0, 1])
def test_the_kernel_is_that_of_the_grid_and_of_the_dense_cost(axis):
    rng = np.random.default_rng(1)
    f, g = (jnp.asarray(rng.normal(0, 0.1, np.prod(SHAPE)), jnp.float32) for _ in range(2))
    axes = [jnp.arange(n) * v for n, v in zip(SHAPE, VOXEL, strict=True)]
    points = jnp.asarray(centres(SHAPE, VOXEL).reshape(-1, 3), jnp.float32)
    geometries = (
        VoxelGrid(SHAPE, VOXEL, EPSILON),
        grid.Grid(x=axes, epsilon=EPSILON),
        pointcloud.PointCloud(points, epsilon=EPSILON),
    )
    apply = jax.jit(lambda geometry: geometry.apply_lse_kernel(f, g, EPSILON, axis=axis)[0])
    ours, stock, full = (apply(geometry) for geometry in geometries)
    for other in (stock, full):
        np.testing.assert_allclose(ours, other, atol=rounding(0.5, 50))  # three sums of up to 7 terms, or one of 210


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="how XLA fuses is another matter elsewhere")
def test_no_pass_is_computed_twice():
    """XLA computes again what it takes for cheap: three passes must cost three times as much as one."""

    def operations(axes):
        def passes(h):
            for axis in axes:
                h = lse_along(h, axis, 0.3, 4)
            return h

        said = jax.jit(passes).lower(jnp.zeros((8, 8, 8))).compile().cost_analysis()
        return (said[0] if isinstance(said, list) else said)["flops"]

    assert operations((0, 1, 2)) < 1.1 * (operations((0,)) + operations((1,)) + operations((2,)))


def test_five_iterations_give_the_potentials_of_the_stock_grid(blobs):
    a, b = (jnp.maximum(m, 1e-20) for m in blobs)  # an empty voxel's mass, as in the paper
    axes = [jnp.arange(n) * v for n, v in zip(BOX, SIDE, strict=True)]
    problem = linear_problem.LinearProblem(grid.Grid(x=axes, epsilon=0.01), a.ravel(), b.ravel())
    # one inner iteration: the solver looks at the error after each, and must not stop at any
    solver = sinkhorn.Sinkhorn(inner_iterations=1, min_iterations=5, max_iterations=5, threshold=-1.0)
    out = jax.jit(solver)(problem)
    assert len(out.errors) == 5 and out.errors[-1] > 1e-4  # not converged, so that the number of iterations counts
    phi, psi = POTENTIALS(*blobs, SIDE, 0.01, 5, None)
    # ours are without the logarithm of the mass, which is up to 0.46
    np.testing.assert_allclose(
        phi.ravel(), out.f - 0.01 * jnp.log(a.ravel()), atol=rounding(0.5, 150)
    )  # five times two sums, three axes each
    np.testing.assert_allclose(psi.ravel(), out.g - 0.01 * jnp.log(b.ravel()), atol=rounding(0.5, 150))


@pytest.mark.slow
def test_w2_is_symmetric_once_converged(blobs):
    a, b = blobs
    there, back = (float(W2(*pair, SIDE, 0.01, 100, None)[0]) for pair in ((a, b), (b, a)))
    assert there == pytest.approx(back, rel=1e-4)


def entropic_gaussians(m, n, a, b, epsilon):
    """Entropic transport of N(m, a) to N(n, b) in closed form (Janati et al. 2020, theorem 1; there 2 σ² = ε)."""
    s = epsilon / 2
    root = sqrtm(a).real
    d = sqrtm(4 * root @ b @ root + s**2 * np.eye(3)).real
    inner = 3 * s * (1 - np.log(2 * s)) + s * np.log(np.linalg.det(d + s * np.eye(3)))
    return ((m - n) ** 2).sum() + np.trace(a + b - d) + inner


def test_w2_of_gaussians_has_its_closed_form():
    shape, voxel = (16, 15, 17), np.array([0.060, 0.063, 0.0566])
    m, n = np.array([0.40, 0.5, 0.5]), np.array([0.55, 0.42, 0.47])
    a = np.array([[0.0060, 0.0010, 0], [0.0010, 0.0050, 0], [0, 0, 0.0070]])
    b = np.array([[0.0080, 0, 0], [0, 0.0060, -0.0020], [0, -0.0020, 0.0050]])
    root = sqrtm(a).real
    bures = np.trace(a + b - 2 * sqrtm(root @ b @ root).real)
    plain = ((m - n) ** 2).sum() + bures
    epsilon = 0.004
    found = float(W2(gaussian(m, a, shape, voxel), gaussian(n, b, shape, voxel), voxel, epsilon, 20, None)[0])
    # the box cuts the Gaussians at 5 deviations, and a voxel is less than one: the grid's own errors are small
    assert found == pytest.approx(entropic_gaussians(m, n, a, b, epsilon), rel=5e-3)
    # the entropy's price for an axis of deviation 0.08 is about (epsilon / 2) (1 + log(2 * 0.08² / epsilon))
    assert entropic_gaussians(m, n, a, b, 1e-9) == pytest.approx(plain, rel=1e-5)
    assert abs(found - plain) < 4 * epsilon


def test_the_gradient_is_the_potential_and_finite_in_empty_voxels(blobs):
    a, b = (jnp.where(m > 1e-3, m, 0) for m in blobs)
    a, b = a / a.sum(), b / b.sum()
    assert (a == 0).sum() > 100
    _, gradient = W2(a, b, SIDE, 0.01, 5, None)
    phi, _ = POTENTIALS(a, b, SIDE, 0.01, 5, None)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient, phi, atol=rounding(0.5, 50))


def test_the_gradient_is_that_of_finite_differences_once_converged(masses):
    """Envelope theorem: moving mass from one voxel to another changes the distance by the potentials' difference."""
    with jax.enable_x64(True):
        a, b = (jnp.asarray(np.asarray(m), jnp.float64) for m in masses)
        a, b, voxel, h = a / a.sum(), b / b.sum(), jnp.asarray(VOXEL), 1e-6
        _, phi = W2(a, b, voxel, EPSILON, 200, None)
        for i, j in (((0, 5, 6), (4, 2, 1)), ((3, 3, 2), (2, 0, 4))):
            up, down = (W2(a.at[i].add(s * h).at[j].add(-s * h), b, voxel, EPSILON, 200, None)[0] for s in (1, -1))
            assert (up - down) / (2 * h) == pytest.approx(float(phi[i] - phi[j]), rel=1e-5)


def test_w2_over_the_mass_does_not_depend_on_the_unit_of_mass(blobs):
    a, b = blobs
    once, thousandfold = (float(W2(m * a, m * b, SIDE, 0.01, 5, None)[0]) for m in (1, 1000))
    assert thousandfold == pytest.approx(once, rel=1e-3)


@pytest.mark.slow
def test_a_window_wider_than_the_motion_changes_nothing(blobs):
    epsilon = 0.002
    motion = 0.2  # along each axis the blobs' mass moves by less
    reach = window_for(motion, SIDE.min(), epsilon)
    assert reach < max(BOX) - 1
    a, b = blobs
    full, windowed, narrow = (W2(a, b, SIDE, epsilon, 50, w) for w in (None, reach, 2))
    assert windowed[0] == pytest.approx(float(full[0]), rel=1e-4)
    assert abs(narrow[0] - full[0]) > 0.05 * full[0]
    # where there is mass; against potentials of the distance's size, 0.06
    np.testing.assert_allclose(windowed[1][a > 1e-5], full[1][a > 1e-5], atol=1e-4)


@pytest.mark.parametrize(
    "motion, voxel, epsilon", [(0.5, 0.05, 4e-4), (0.0, 0.1, 1e-2), (0.3, 0.02, 1e-4), (0.3, 2e-3, 1e-3)]
)
def test_window_for_leaves_out_less_than_a_billionth(motion, voxel, epsilon):
    """The coupling about the motion is a Gaussian of variance epsilon / 2: the window's edge is six deviations on."""
    window = window_for(motion, voxel, epsilon)
    beyond = window * voxel - motion
    assert np.exp(-(beyond**2) / epsilon) < 2e-8  # exp(-18)
    assert np.exp(-((beyond - voxel) ** 2) / epsilon) > 1e-8 or beyond < voxel  # and no wider than it need be


@pytest.mark.slow
def test_the_gradient_along_a_translation_is_twice_the_distance():
    """W2 of a shape and its translate by d is d² (and a constant), so moving the points by s changes it by 2 s·d."""
    d = np.array([0.10, -0.08, 0.06])
    x = jnp.asarray(np.random.default_rng(0).normal(0.42, 0.05, (400, 3)), jnp.float32)
    rho = jnp.full(400, 1 / 400)
    corner = -0.5 * SIDE  # a grid whose first voxel is centred at 0

    @jax.jit
    def force(x, y):
        target = splat(y, rho, BOX, corner, SIDE)
        return jax.grad(lambda x: w2(splat(x, rho, BOX, corner, SIDE), target, SIDE, 0.01, 50))(x).sum(0)

    # the points' places among the voxels differ from one to the other: a few per cent of a step
    np.testing.assert_allclose(force(x + d, x), 2 * d, atol=0.02 * np.linalg.norm(2 * d))
    np.testing.assert_allclose(force(x, x), 0, atol=1e-3)


def test_the_window_error_bounds_what_a_window_changes():
    a, b = (gaussian(m, np.diag([0.1, 0.12, 0.15]) ** 2, SHAPE, VOXEL) for m in ([0.2, 0.4, 0.3], [0.25, 0.45, 0.2]))
    epsilon = 0.006
    exact = POTENTIALS(a, b, VOXEL, epsilon, 5, None)
    bounds, changes = [], []
    for window in (1, 5):
        found = POTENTIALS(a, b, VOXEL, epsilon, 5, window)
        both = zip(*(map(np.asarray, each) for each in (found, exact, (a, b))), strict=True)
        changed = max(float((np.abs(f - e) * (m > 1e-6)).max()) for f, e, m in both)
        bounds.append(float(ERROR(*found, a, b, VOXEL, epsilon, window)))
        changes.append(changed / epsilon)
        assert changes[-1] <= bounds[-1] + 1e-3  # float32 resolves potentials of order 1 to 1e-4 epsilon
    assert changes[0] > 0.1
    assert bounds == sorted(bounds, reverse=True) and bounds[-1] < 1e-2 < 1 < bounds[0]


def test_powers_of_two_are_right_to_three_millionths_and_never_smaller_than_the_least_float():
    t = np.concatenate([np.linspace(-126, 0, 20001), -np.arange(127.0), np.arange(-126, 0) + 0.5]).astype(np.float32)
    found = np.asarray(jax.jit(exp2_below_zero)(jnp.asarray(t)), np.float64)
    np.testing.assert_allclose(found, np.exp2(t.astype(np.float64)), rtol=3e-6)
    below = np.asarray(exp2_below_zero(jnp.float32([-126.5, -1e6, -np.inf])))
    np.testing.assert_allclose(below, 2.0**-126, rtol=3e-6)


def test_five_iterations_are_the_papers_and_the_error_is_that_of_their_potentials(masses):
    """The defaults; and where there is no window there is no error."""

    @jax.jit
    def every(a, b):
        phi, psi = potentials(a, b, VOXEL, EPSILON, 5, 2)
        bound = window_error(phi, psi, a, b, VOXEL, EPSILON, 2)
        return w2_and_error(a, b, VOXEL, EPSILON, window=2), (jnp.vdot(phi, a) + jnp.vdot(psi, b), bound)

    found, expected = every(*masses)
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # masses that are divided by 1 are rounded
    assert found[1] > 0 == jax.jit(lambda a, b: w2_and_error(a, b, VOXEL, EPSILON, 1)[1])(*masses)


@pytest.mark.parametrize("exchanged", [False, True])
def test_the_window_error_is_that_of_its_formula(exchanged):
    """Of the heaviest left out beside the least that is held, for both directions; empty voxels hold nothing."""
    rng, window = np.random.default_rng(2), 3
    phi, psi = rng.normal(0, 2 * EPSILON, (2, *SHAPE)) + [[[[3 * EPSILON]]], [[[0.0]]]]
    a, b = rng.uniform(0, 1, (2, *SHAPE)) ** 6 * (rng.uniform(size=(2, *SHAPE)) < 0.7)
    if exchanged:
        phi, psi, a, b = psi, phi, b, a

    def bound(phi, psi, a, b):
        left_out = b.size * (b * np.exp(psi / EPSILON)).max() * np.exp(-(((window + 1) * VOXEL.min()) ** 2) / EPSILON)
        return np.log1p(left_out * np.exp(phi[a > 0] / EPSILON).max())

    expected = max(bound(phi, psi, a, b), bound(psi, phi, b, a))
    given = (jnp.asarray(v, jnp.float32) for v in (phi, psi, a, b))
    assert ERROR(*given, VOXEL, EPSILON, window) == pytest.approx(expected, rel=1e-4)


def test_the_kernel_takes_what_that_of_the_stock_grid_takes():
    ours, stock = (inspect.signature(kind.apply_lse_kernel).parameters for kind in (VoxelGrid, grid.Grid))
    assert [(one.name, one.default) for one in ours.values()] == [(one.name, one.default) for one in stock.values()]
