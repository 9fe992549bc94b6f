"""Schedules: `paper`, the published one with its constants, and `default`, coarse to fine at matched resolution."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cryotrans_jax.prepare import Problem
from cryotrans_jax.train import Config, Stage

PAPER_STEPS = {3: 2000, 5: 4000, 7: 2000}  # of W2 by the target's resolution, for TmrAB
PAPER_L2_STEPS = 15000  # the same, where both maps have one resolution
SAME_RESOLUTION = 0.5  # Å²: blur between two maps below which they count as of one resolution (3 Å and 4.3 Å)
# Å: of the correspondences' points, and of the voxels on which the first and the later L2 stages compare
COARSE, MIDDLE, FINE = 4.0, 2.0, 1.0
WINDOW = 7  # voxels of the transport: where the training loop starts; it widens the window where that is too narrow
BLURS = 2.0, 1.0  # Å: by which the L2 stages but the last blur both maps
WIDE_BLUR = 4.0  # Å: the same once bodies are known, for what is left where it was
MAX_VOXELS = 1_000_000  # about so many voxels at most carry the mass in the L2 stages
SLIP = 0.03  # strain (of 17 % in one direction) beyond which the rigidity hardly grows
WAVE = 20.0  # Å a radian: over which the velocity field can change from the start
PATIENCE = 2  # chunks of steps without a gain, after which an L2 stage goes to its end
EULER_STEPS = 5
MAX_POINTS = 3000  # about so many points at most follow the correspondences
LATTICE_SPACINGS = 5.0, 4.0  # Å between the nodes of the control lattice on voxels of 2 Å and 1 Å
MAX_NODES = 20_000  # about so many at most, as long as voxels are wide for want of resolution and not of memory


@dataclass(frozen=True)
class Schedule:
    """What the paper chooses for each system: stages of (loss "w2" or "l2", steps, learning rate), and the width.

    Without stages they are TmrAB's; `width` is the number of units in a hidden layer.
    """

    stages: tuple[tuple[str, int, float], ...] = ()
    width: int = 100


def paper(
    problem: Problem,
    seed: int = 0,
    bin: int = 1,
    resolutions: tuple[float, float] | None = None,
    schedule: Schedule | None = None,
) -> Config:
    """The published recipe: W2 at epsilon 1e-4, then L2 where both maps have the same resolution.

    Adam at 1e-3, then 1e-4, for the numbers of steps published for TmrAB at the nearest resolution, or as a `schedule`
    says. With `bin`, maps are binned by that factor (the paper's multi-scale option). The transport's kernel reaches as
    far as the box.
    """
    schedule = schedule or Schedule()
    own = tuple(
        Stage(loss, steps, rate, rate, bin=bin, sampling=bin, epsilon=1e-4 if loss == "w2" else 0.0)
        for loss, steps, rate in schedule.stages
    )
    if own:
        return Config(stages=own, width=schedule.width, waypoints=problem.waypoints, seed=seed)
    target = resolutions[1] if resolutions else 7.0
    transport = PAPER_STEPS[min(PAPER_STEPS, key=lambda r: abs(r - target))]
    squared = PAPER_L2_STEPS if np.abs(problem.blurs).max() < SAME_RESOLUTION else 0
    stages = [
        Stage("w2", transport, 1e-3, 1e-3, bin=bin, sampling=bin, epsilon=1e-4),
        Stage("l2", squared, 1e-4, 1e-4, bin=bin, sampling=bin),
    ]
    left = tuple(s for s in stages if s.steps)
    return Config(stages=left, width=schedule.width, waypoints=problem.waypoints, seed=seed)


def default(problem: Problem, seed: int = 0) -> Config:
    """Correspondences find the motion, then L2 at matched resolution on voxels of 2 and 1 Å makes it exact.

    All within the crop. The L2 stages integrate the flow on a control lattice; all but the last blur both maps a
    little more, so that a helix is drawn by its own density from further away than by its neighbour's. The rigidity
    lets domains slip along their borders and holds them together within, which allows for a network that can follow
    both: besides the positions it sees sines of them, which change over WAVE. Very large molecules are compared on
    coarser voxels.

    After the first stage on 2 Å voxels the bodies that move nearly rigidly are known; all later ones have a field for
    each of them (`Config.bodies`), so that they may slide along each other. With nearly everything in place both maps
    are then blurred by WIDE for a while: a helix that was left behind is drawn from further away than before. In the
    last two stages the rigidity weighs by what the target tells (`prepare.holds`).

    Mass that the target does not have is let go in the L2 stages, by and by in the first of them.

    Where the flow cannot follow the correspondences (parts that look alike, too much noise), a start by W2 is tried.
    """
    size = problem.voxel_size.min()
    coarse, middle, fine = (power_of_two(wanted / size) for wanted in (COARSE, MIDDLE, FINE))
    voxels = (problem.initial > 0).sum()
    while coarse < 8 and voxels / coarse**3 > MAX_POINTS:
        coarse *= 2
    while fine < 8 and voxels / fine**3 > MAX_VOXELS:
        fine *= 2
    middle = max(middle, fine)
    least = max(
        1.5 * size, (voxels * problem.voxel_size.prod() / MAX_NODES) ** (1 / 3)
    )  # between nodes, for their cost
    wide = min(2.5 * middle * size, max(LATTICE_SPACINGS[0], least))
    narrow = min(max(4 * size, 2.5 * fine * size), max(LATTICE_SPACINGS[1], least))
    closer = partial(Stage, "matched", rigidity=1.0, slip=SLIP, patience=PATIENCE, lighten=1.0, final_lighten=1.0)
    first = closer(250, 2e-3, 5e-4, bin=middle, sampling=middle, spacing=wide, blur=BLURS[0])
    stages = (
        Stage("points", 250, 3e-3, 1e-5, bin=coarse, sampling=coarse, rigidity=10.0, slip=SLIP),
        replace(first, lighten=0.0),
        replace(first, steps=100, blur=WIDE_BLUR),
        first,
        closer(150, 1e-3, 5e-4, bin=fine, sampling=fine, spacing=narrow, blur=BLURS[1], balanced=True),
        closer(300, 1e-3, 2e-5, bin=fine, sampling=fine, spacing=narrow, balanced=True),
    )
    voxel = coarse * size / problem.frame.edge
    transport = Stage(
        "w2", 500, 1e-3, 2e-4, bin=coarse, sampling=coarse, epsilon=0.45 * voxel**2, window=WINDOW
    )  # fmt: skip
    waves = {"waves": 32, "wave_number": problem.frame.edge / WAVE}
    passed = problem.waypoints
    steps = max(2 * EULER_STEPS, 2 * (len(passed) + 1)) if passed else EULER_STEPS  # a path may bend at each of them
    more = {"waypoints": passed, "euler_steps": steps, "seed": seed}
    return Config(stages=stages, rival=transport, centre=0.5, bodies=2, redrawn=4, **waves, **more)


def power_of_two(wanted: float) -> int:
    """The power of two (at most 8, which the crop is aligned to) nearest to the wanted factor, at least 1."""
    return int(2 ** np.clip(np.round(np.log2(max(wanted, 1.0))), 0, 3))


RECIPES: dict[str, Callable[..., Config]] = {"default": default, "paper": paper}
