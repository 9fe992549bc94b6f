"""Sections kernel and sinkhorn of the benchmark: the transport's kernel against ott-jax's stock `Grid`."""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ott.geometry.grid import Grid
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn as solvers
from scipy.ndimage import gaussian_filter

from cryotrans_jax.core import transport
from cryotrans_jax.density.boxes import box_slices
from cryotrans_jax.fit.prepare import CROP_MULTIPLE
from cryotrans_jax.fit.stage import Supervision
from cryotrans_jax.io.files import InputError

from . import benchmark_cases as cases
from .benchmark_cases import Rows

FLAGS = flags.FLAGS
EPSILON = 1e-4  # of the box, as published
MARGIN = 10  # voxels around the mass
SWEEPS = 5  # Sinkhorn iterations


@contextlib.contextmanager
def stock_grid() -> Iterator[None]:
    """Replace the transport's kernel by that of ott's `Grid`, as in the published recipe with ott-jax."""

    def stock(shape, voxel, epsilon, window):
        return Grid(x=[jnp.arange(n) * voxel[k] for k, n in enumerate(shape)], epsilon=epsilon)

    jax.clear_caches()  # the caches cannot distinguish programs with the two kernels
    with mock.patch.object(transport, "VoxelGrid", stock):
        yield
    jax.clear_caches()


def narrowest_window(a, b, voxel, epsilon: float) -> tuple[int | None, float]:
    """Narrowest window of the transport whose error bound is small enough for the training loop, and that bound.

    Windows are 7, 15, 23, ... voxels, which use all slices of a group; None stands for the whole grid.
    """
    bounded = jax.jit(transport.w2_and_error, static_argnums=(3, 4, 5))
    for window in range(7, max(a.shape) - 1, 8):
        if (bound := float(bounded(a, b, voxel, epsilon, SWEEPS, window)[1])) <= Supervision().term_error:
            return window, bound
    return None, 0.0


def kernel() -> Rows:
    """Time one application of the log-domain kernel, and yield seconds and ratios."""
    for n in FLAGS.sizes:
        smooth = gaussian_filter(np.random.default_rng(0).normal(size=(n, n, n)), n / 15)
        f = jnp.asarray(1e-3 * smooth / smooth.std(), jnp.float32).ravel()
        centres = (jnp.arange(n) + 0.5) / n
        kinds = {"stock Grid": Grid(x=[centres] * 3, epsilon=EPSILON)}
        for window in (7, 14, 28, None):
            kinds[f"window {window or 'whole'}"] = transport.VoxelGrid((n,) * 3, (1 / n,) * 3, EPSILON, window)
        spent = {}
        for name, grid in kinds.items():
            apply = jax.jit(lambda f, grid=grid: grid.apply_lse_kernel(f, jnp.zeros_like(f), EPSILON)[0])
            spent[name] = cases.seconds(apply, f)
            yield f"kernel {n}³ {name} [s]", spent[name]
            if name != "stock Grid":
                yield f"kernel {n}³ stock Grid / {name}", spent["stock Grid"] / spent[name]


def sinkhorn() -> Rows:
    """Time five iterations at full sampling with the stock Grid and our kernel; yield the errors of both.

    The stock Grid uses a cube, ours the crop to the mass and a margin. Epsilon is that of the cube. Errors are those of
    the potentials where there is mass, against the stock Grid in double precision.
    """
    cube, voxel = masses_in_cube()
    crop = box_slices(np.maximum(*cube) > 0, MARGIN)
    stock = stock_potentials(voxel)
    slow = cases.seconds(stock, *cube)
    a, b = (jnp.asarray(m[crop]) for m in cube)
    window, bound = narrowest_window(a, b, voxel, EPSILON)
    ours = jax.jit(lambda a, b: transport.potentials(a, b, voxel, EPSILON, SWEEPS, window))
    fast = cases.seconds(ours, a, b)
    theirs, found = ([np.asarray(p, np.float64) for p in pair] for pair in (stock(*cube), ours(a, b)))
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        exact = [np.asarray(p) for p in stock(*(m.astype(np.float64) for m in cube))]

    def error(found, where=()):
        """Largest difference of the potentials on the mass, in epsilon."""
        differences = [np.abs(f - e[where])[m[where] > 0] for f, e, m in zip(found, exact, cube, strict=True)]
        return max(float(d.max()) for d in differences) / EPSILON

    yield "sinkhorn: side of the stock Grid's cube [voxels]", len(cube[0])
    yield "sinkhorn: stock Grid [s]", slow
    yield "sinkhorn: ours [s]", fast
    yield "sinkhorn: stock Grid / ours", slow / fast
    yield "sinkhorn: voxels of the cube / of the crop", cube[0].size / a.size
    yield "sinkhorn: window [voxels]", window or max(a.shape)
    yield "sinkhorn: bound on the window's error [epsilon]", bound
    yield "sinkhorn: error of ours [epsilon]", error(found, crop)
    yield "sinkhorn: error of the stock Grid in float32 [epsilon]", error(theirs)


def masses_in_cube() -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Masses of the initial map and the target in a cube, and the sides of a voxel in unit boxes."""
    case = cases.load()
    least = max(case.initial.density.shape)
    side = -(-(FLAGS.cube or least) // CROP_MULTIPLE) * CROP_MULTIPLE
    if side < least:
        raise InputError(f"--cube={side} does not hold the maps, which have {least} voxels along one side")
    problem = cases.prepare_case(cases.in_box(case, [side] * 3), whole_box=True)
    return (problem.initial, problem.targets[0]), problem.voxel_size / problem.frame.edge


def stock_potentials(voxel: np.ndarray) -> Callable:
    """Function that computes the potentials between two measures by the stock Grid; `voxel` are a voxel's sides."""
    solver = solvers.Sinkhorn(inner_iterations=SWEEPS, min_iterations=SWEEPS, max_iterations=SWEEPS)

    @jax.jit
    def potentials(a, b):
        a, b = jnp.maximum(a, transport.TINY), jnp.maximum(b, transport.TINY)
        axes = [jnp.arange(n, dtype=a.dtype) * v for n, v in zip(a.shape, voxel, strict=True)]
        out = solver(linear_problem.LinearProblem(Grid(x=axes, epsilon=EPSILON), a.ravel(), b.ravel()))
        return tuple(p.reshape(a.shape) - EPSILON * jnp.log(m) for p, m in ((out.f, a), (out.g, b)))

    return potentials
