"""Schedules: `paper`, the published one with its constants, and `default`, coarse to fine at matched resolution."""

from collections.abc import Callable

import numpy as np

from cryotrans_jax.prepare import Problem
from cryotrans_jax.train import Config, Stage
from cryotrans_jax.transport import window_for

PAPER_STEPS = {
    3: (2000, 15000),
    5: (5000, 0),
    7: (2000, 0),
}  # W2 and L2 steps by the target's resolution, TmrAB's
COARSE, FINE, NODES = (
    4.0,
    2.0,
    5.0,
)  # Å: voxels of the transport, voxels of the matched stage, control lattice


def paper(problem: Problem, seed: int = 0, bin: int = 1, resolutions: tuple[float, float] | None = None) -> Config:
    """The published recipe: W2 at epsilon 1e-4, then L2 where both maps have the same resolution.

    Adam at 1e-3, then 1e-4, for the numbers of steps published for the nearest simulated case. With `bin`, maps
    are binned by that factor (the paper's multi-scale option). The transport's kernel reaches as far as the box.
    """
    target = resolutions[1] if resolutions else 7.0
    transport, squared = PAPER_STEPS[min(PAPER_STEPS, key=lambda r: abs(r - target))]
    stages = [
        Stage("w2", transport, 1e-3, 1e-3, bin=bin, sampling=bin, epsilon=1e-4),
        Stage("l2", squared, 1e-4, 1e-4, bin=bin, sampling=bin),
    ]
    return Config(stages=tuple(s for s in stages if s.steps), seed=seed)


def default(problem: Problem, seed: int = 0) -> Config:
    """Coarse to fine: W2 on voxels of about 4 Å finds the motion, L2 at matched resolution on 2 Å makes it exact.

    Both within the crop; the second with the flow on a control lattice and a light rigidity, which keeps the parts
    of the molecule that the target cannot resolve together.
    """
    size = problem.voxel_size.min()
    coarse = whole_factor(COARSE / size)
    fine = whole_factor(FINE / size)
    voxel = coarse * size / problem.frame.edge
    epsilon = 0.15 * voxel**2
    extent = max(problem.initial.shape * problem.voxel_size) / problem.frame.edge
    stages = (
        Stage(
            "w2", 400, 1e-3, 1e-3,
            bin=coarse, sampling=coarse, epsilon=epsilon, window=window_for(extent / 2, voxel, epsilon),
        ),
        Stage(
            "matched", 600, 2e-3, 5e-5,
            bin=fine, sampling=fine, spacing=max(NODES, 2 * fine * size), rigidity=0.03,
        ),
    )  # fmt: skip
    return Config(stages=stages, centre=0.5, seed=seed)


def whole_factor(wanted: float) -> int:
    """The power of two (at most 8, which the crop is aligned to) nearest to the wanted factor, at least 1."""
    return int(2 ** np.clip(np.round(np.log2(max(wanted, 1.0))), 0, 3))


RECIPES: dict[str, Callable[..., Config]] = {"default": default, "paper": paper}
