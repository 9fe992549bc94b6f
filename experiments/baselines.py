"""Baselines: linear blend, transport barycentre, a flow by squared difference alone, interpolated models.

Each gives frames at times from 0 to 1 on the maps' grid, or a fit that does, so that all are scored alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ott.problems.linear.barycenter_problem import FixedBarycenterProblem
from ott.solvers.linear.discrete_barycenter import FixedBarycenter

from cryotrans_jax.core.transport import TINY, VoxelGrid
from cryotrans_jax.density import boxes, simulation
from cryotrans_jax.fit import prepare, recipes, schedule
from cryotrans_jax.fit.options import Resolutions, Thresholds
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.stage import Config, Stage
from cryotrans_jax.fit.supervise import Callbacks, warn_of_setback
from cryotrans_jax.fit.trajectory import Times
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.io.programs import program

EPSILON = 0.3  # squared voxels: as sharp as the frames that MorphOT's authors publish
SWEEPS = 60  # Sinkhorn iterations of each frame, which start from the potentials of the frame before
WINDOW = 16  # voxels along each axis over which mass can move
FAINT = 1e-3  # of a map's maximum: a barycentre is computed in the box around all stronger voxels


def blend(initial: Map, target: Map, times: Times) -> Iterator[Map]:
    """Linear blend (1 − t) f0 + t f1 at each time, as ChimeraX's `volume morph` shows."""
    for t in times:
        yield replace(initial, density=np.float32(1 - t) * initial.density + np.float32(t) * target.density)


def barycentre(
    initial: Map, target: Map, times: Times, epsilon: float = EPSILON, sweeps: int = SWEEPS, window: int = WINDOW
) -> Iterator[Map]:
    """Entropic Wasserstein-2 barycentre of two maps with the weights 1 − t and t at each time (as MorphOT).

    Computed by ott-jax's fixed-support solver (Janati et al. 2020, without debiasing) in the log domain. Densities are
    used as masses, negative ones as zero; both totals are scaled to the initial map's.

    Args:
        target: the target map, on the same grid.
        times: from 0 to 1.
        window: voxels along each axis over which mass can move.
    """
    masses = [np.maximum(m.density, 0) for m in (initial, target)]
    total = masses[0].sum(dtype=np.float64)
    shown = np.maximum(*(m / m.max() for m in masses)) > FAINT
    box = boxes.box_slices(shown)
    pair = jnp.stack([jnp.asarray(m[box] / m[box].sum(dtype=np.float64), jnp.float32) for m in masses])
    voxel = jnp.asarray(initial.voxel_size / initial.voxel_size.min(), jnp.float32)
    start = jnp.zeros((2, pair[0].size))
    for t in times:
        weights = jnp.array([1 - t, t], jnp.float32)
        between, start = mean_measure(pair, weights, voxel, epsilon, sweeps, window, start)
        density = np.zeros(initial.density.shape, np.float32)
        density[box] = total * np.asarray(between)
        yield replace(initial, density=density)


@program(static_argnames=("sweeps", "window"))
def mean_measure(
    pair: Float[Array, "2 x y z"],
    weights: Float[Array, "2"],
    voxel: Float[Array, "3"],
    epsilon: float | Float[Array, ""],
    sweeps: int,
    window: int,
    start: Float[Array, "2 voxels"],
) -> tuple[Float[Array, "x y z"], Float[Array, "2 voxels"]]:
    """Barycentre of two measures, and the potentials from which the next one may start."""
    geometry = VoxelGrid(pair.shape[1:], voxel, epsilon, window)
    measures = jnp.maximum(pair, TINY).reshape(2, -1)
    solver = FixedBarycenter(min_iterations=sweeps, max_iterations=sweeps, inner_iterations=sweeps)
    found = solver(FixedBarycenterProblem(geometry, measures, weights), start)
    return found.histogram.reshape(pair.shape[1:]), found.g


def squared_flow(
    initial: Map,
    target: Map,
    *,
    seed: int = 0,
    steps: float = 1.0,
    initial_threshold: float | None = None,
    target_threshold: float | None = None,
    resolutions: tuple[float | None, float | None] = (None, None),
    progress: Callable | None = None,
) -> Fit:
    """Fit by squared difference alone: the default recipe without its correspondences, and with one field.

    Args:
        target: the target map, on the same grid.
        steps: factor for the steps of all stages, as in `morph`.
        resolutions: of the initial map and the target, Å; None where unknown.
        progress: called with (config, stage, step, losses) every few steps.
    """
    thresholds = Thresholds(initial_threshold, target_threshold)
    problem = prepare.prepare(initial, [target], Resolutions(*resolutions), thresholds)
    config = squared_recipe(recipes.default(problem, seed)).scaled(steps)
    callbacks = Callbacks(lambda *at: progress and progress(config, *at), on_setback=warn_of_setback)
    fitting = schedule.run(schedule.Fitting.begin(problem, config, callbacks=callbacks))
    params = jax.tree.map(np.asarray, fitting.state.params)
    threshold = problem.report["initial"]["threshold"]
    return Fit(config, config.field, params, problem.frame, threshold, fitting.history, initial=initial)


def squared_recipe(config: Config) -> Config:
    """The stages of a recipe that start from a squared difference, without the others and the actions."""
    stages = (item for item in config.schedule if isinstance(item, Stage) and item.terms[0].matches)
    return replace(config, schedule=tuple(stages))


def interpolate_models(
    initial: gemmi.Structure, target: gemmi.Structure, like: Map, resolution: float, times: Times
) -> Iterator[Map]:
    """Simulate maps of models on the straight line between the models of two states.

    This baseline knows the answer: the last frame is the target's own model, at the given resolution. It moves the
    heavy atoms that both models have, by chain, residue number and name.

    Args:
        resolution: Å.
        times: from 0 to 1.
    """
    start, end, weights = common_heavy(initial, target)
    for t in times:
        yield simulation.simulate_map(
            (start + t * (end - start), weights), like.density.shape, like.voxel_size, like.origin, resolution
        )


def common_heavy(
    a: gemmi.Structure, b: gemmi.Structure
) -> tuple[Float[np.ndarray, "atoms 3"], Float[np.ndarray, "atoms 3"], Float[np.ndarray, "atoms"]]:
    """Positions of the heavy atoms that two models have in common, and their atomic numbers.

    Chain names may differ where each model has one chain.
    """
    one, other = (heavy_by_name(model) for model in (a, b))
    if all(len({chain for chain, _, _ in table}) == 1 for table in (one, other)):
        one, other = ({key[1:]: value for key, value in table.items()} for table in (one, other))
    shared = [key for key in one if key in other]
    if not shared:
        raise InputError("the models have no heavy atom in common: give them one naming of chains and residues")
    start, end = (np.array([table[key][0] for key in shared]) for table in (one, other))
    return start, end, np.array([one[key][1] for key in shared], np.float64)


def heavy_by_name(model: gemmi.Structure) -> dict[tuple[str, str, str], tuple[list[float], int]]:
    """Position and atomic number of the heavy atoms by chain, residue number and atom name."""
    return {
        (chain.name, str(residue.seqid), atom.name): (atom.pos.tolist(), atom.element.atomic_number)
        for chain, residue, atom in atoms.heavy_sites(model)
    }
