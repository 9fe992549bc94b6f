"""Schedules: `paper`, the published one with its constants, and `default`, coarse to fine at matched resolution."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.density.boxes import power_of_two
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit.backbone import Backbone
from cryotrans_jax.fit.better_end import KeepStart
from cryotrans_jax.fit.better_start import KeepBetterStart
from cryotrans_jax.fit.bodies import DockBodies, FindRigidBodies, RedrawBorders
from cryotrans_jax.fit.optimisers import Adam
from cryotrans_jax.fit.stage import Config, Stage
from cryotrans_jax.fit.targets import Balance
from cryotrans_jax.fit.terms import L2, W2, Correspondences, Matched, PublishedRigidity, Rigidity
from cryotrans_jax.io.files import InputError
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.screw import Screw

# The published recipe, each number with its place in the paper. Its masses (negatives and values under the threshold
# set to 0, the initial map divided by its maximum, the target scaled to its total) are made by `prepare.prepare`, and
# log(max(a, 1e-20)) is taken with `transport.TINY`.
PAPER_NETWORK = Velocity(width=100, depth=2, slope=0.01, init_std=0.01)  # eq. 2: two layers of leaky ReLU, N(0, 0.01²)
PAPER_EULER_STEPS = 10  # eq. 5: M, with a step of 1/M
PAPER_W2 = W2(epsilon=1e-4, iterations=5)  # eq. 3: ε in unit boxes squared, Sinkhorn iterations; on the whole grid
PAPER_RATES = {"w2": 1e-3, "l2": 1e-4}  # Adam's learning rates in the two stages, both constant
PAPER_STEPS = {3: 2000, 5: 4000, 7: 2000}  # table of recipes, TmrAB: W2 steps by the target's resolution in Å
PAPER_L2_STEPS = 15000  # table of recipes, TmrAB at 3 Å: L2 steps, where both maps have the same resolution
PAPER_UNKNOWN = 7.0  # Å: taken for a target of unknown resolution (ours)
SAME_RESOLUTION = 0.5  # Å²: maps with a blur below this between them have the same resolution (3 Å and 4.3 Å; ours)
BINS = 1, 2, 4, 8  # by which the crop can be binned; the paper's multi-scale option has 2 and 4

# The default recipe
# Å: voxels for the correspondences, the first L2 stages and the last ones
COARSE, MIDDLE, FINE = 4.0, 2.0, 1.0
WINDOW = 7  # voxels: initial window of the transport, which the training loop widens where it is too narrow
BLURS = 2.0, 1.0  # Å: blur of both maps in the L2 stages but the last
WIDE_BLUR = 4.0  # Å: the same in the stage after the rigid bodies are found; wider, to attract density left behind
MAX_VOXELS = 1_000_000  # about as many voxels at most have mass in the L2 stages
SLIP = 0.03  # strain (17 % in one direction) beyond which the rigidity hardly grows, so that domains slide
WAVE = 20.0  # Å per radian: distance over which the velocity field can change from the start
PATIENCE = 2  # chunks of steps without a gain, after which an L2 stage skips to its final phase
EULER_STEPS = 5
B2 = 0.9  # decay of Adam's mean of squared gradients: they fall tenfold within some fifty steps of a stage
MAX_POINTS = 3000  # about as many points at most follow the correspondences
LATTICE_SPACINGS = 5.0, 4.0  # Å between the nodes of the control lattice on voxels of 2 Å and 1 Å
MAX_NODES = 20_000  # about as many at most, unless memory rather than resolution makes the voxels wide


@dataclass(frozen=True)
class Schedule:
    """What the paper chooses for each system.

    Attributes:
        stages: (loss "w2" or "l2", steps, learning rate) of each stage, or (loss, steps, learning rate, bin) from
            coarse to fine, such as bins 4, 2 and 1; empty: those of TmrAB.
        width: units in each hidden layer.
    """

    stages: tuple[tuple[str, int, float] | tuple[str, int, float, int], ...] = ()
    width: int = PAPER_NETWORK.width


def paper(
    problem: Problem,
    seed: int = 0,
    bin: int = 1,
    resolutions: Sequence[float | None] = (),
    schedule: Schedule = Schedule(),
    rigidity: float | None = None,
) -> Config:
    """The published recipe: W2 (eq. 3), then L2 for targets that have the resolution of the initial map.

    Each target has the steps that are published for its resolution, as if it were alone. Frames are splatted (eq. 6
    and 7), and the unit box is that of the maps.

    Args:
        problem: the prepared maps.
        seed: of the network's initial weights.
        bin: factor by which maps are binned in stages without a bin of their own (the paper's multi-scale option).
        resolutions: of each target, Å; None, or none given: PAPER_UNKNOWN.
        schedule: stages and width; without stages: those published for TmrAB at the nearest resolution.
        rigidity: λ of the rigidity (eq. 13), or 1 where `problem.stiffness` has that of each part (eq. 15); None: no
            rigidity, as for the four simulated systems.

    Raises:
        InputError: a stage has a loss or a bin that there is none of.
    """

    def stage(loss: str, steps: int | Sequence[int], rate: float, own: int | None = None) -> Stage:
        term, factor = paper_term(loss), bin if own is None else own
        if factor not in BINS:
            raise InputError(f"maps cannot be binned by {factor}: give 1, 2, 4 or 8")
        terms = (term,) if rigidity is None else (term, PublishedRigidity(rigidity, term))
        each = [steps] if isinstance(steps, int) else steps
        own_steps = tuple(each) if len(set(each)) > 1 else ()
        return Stage(terms, max(each), rate, rate, bin=factor, sampling=factor, target_steps=own_steps)

    stages: Sequence[tuple[Any, ...]] = schedule.stages or tuple(
        (loss, n, PAPER_RATES[loss]) for loss, n in paper_steps(problem, resolutions)
    )
    field = Field(PAPER_NETWORK.clone(width=schedule.width), PAPER_EULER_STEPS)
    return Config(tuple(stage(*each) for each in stages), field, seed=seed, render="splat", whole_box=True)


def paper_term(loss: str) -> W2 | L2:
    """The term of a published loss, by its name; raise InputError if there is none of that name."""
    terms: dict[str, W2 | L2] = {"w2": PAPER_W2, "l2": L2()}
    if loss not in terms:
        raise InputError(f"the paper has no loss {loss!r}: choose one of {', '.join(terms)}")
    return terms[loss]


def paper_steps(problem: Problem, resolutions: Sequence[float | None]) -> list[tuple[str, list[int]]]:
    """Loss and steps of the stages published for TmrAB: for each trajectory those for its target's resolution.

    The trajectory through waypoints is that of its last target, and has the L2 stage if all its targets may have it.
    """
    known = [resolution or PAPER_UNKNOWN for resolution in resolutions or [None] * problem.trajectories]
    transport = [PAPER_STEPS[min(PAPER_STEPS, key=lambda r: abs(r - own))] for own in known]
    same = np.abs(problem.blurs) < SAME_RESOLUTION
    squared = [PAPER_L2_STEPS * bool(own) for own in ([same.all()] if problem.waypoints else same)]
    return [("w2", transport), ("l2", squared)] if any(squared) else [("w2", transport)]


def default(problem: Problem, seed: int = 0) -> Config:
    """The default recipe: correspondences find the motion, L2 at matched resolution refines it on 2 and 1 Å voxels.

    - All stages compare within the crop. Very large molecules are compared on coarser voxels.
    - The L2 stages integrate the flow on a control lattice. All but the last blur both maps a little more, so that a
      helix is attracted by its own density from further away than by its neighbour's.
    - The rigidity lets domains slip along their borders and holds each together. This allows for a network that can
      follow both: besides the positions it sees sines of them, which change over WAVE. Once each body has a motion of
      its own, less strain is let off where there is noise.
    - After the first stage on 2 Å voxels the rigid bodies are found. In all later stages each has its own motion, a
      screw with a field beside it (`FindRigidBodies`, `Screw`), so that they may slide along each other. With nearly
      everything in place, both maps are then blurred by WIDE_BLUR for one stage: this attracts a helix that was left
      behind from further away than before.
    - In the stages with bodies learning rates are lower, as every step of the optimiser moves whole bodies, the
      rigidity is weighted by the target's information (`targets.rigidity_factor`), and the backbone of a model keeps
      its distances.
    - Mass that the target does not have is downweighted in the L2 stages, gradually in the first of them.
    - Where the flow cannot follow the correspondences (parts that look alike, too much noise), a start by W2 is tried.
    - Bodies that are found by docking pieces of the map are tried as well: these are found whatever the angle by which
      they turn, and in more noise.
    - Adam averages squared gradients over ten steps instead of a thousand (B2). The gradients of a stage's first steps
      are so large that they would shorten all later steps.
    - A flow that fits the target no better than the initial map does as it is, is not kept.

    Args:
        problem: the prepared maps.
        seed: of the network's initial weights.
    """
    size = problem.voxel_size.min()
    coarse, middle, fine = (power_of_two(wanted / size) for wanted in (COARSE, MIDDLE, FINE))
    voxels = (problem.initial > 0).sum()
    while coarse < 8 and voxels / coarse**3 > MAX_POINTS:
        coarse *= 2
    while fine < 8 and voxels / fine**3 > MAX_VOXELS:
        fine *= 2
    middle = max(middle, fine)
    volume = problem.molecule.sum() * problem.voxel_size.prod()
    least = max(1.5 * size, (volume / MAX_NODES) ** (1 / 3))  # between nodes, for their cost
    wide = min(2.5 * middle * size, max(LATTICE_SPACINGS[0], least))
    narrow = min(max(4 * size, 2.5 * fine * size), max(LATTICE_SPACINGS[1], least))
    coarsely, finely = (dict(bin=n, sampling=n, spacing=apart) for n, apart in ((middle, wide), (fine, narrow)))

    def refine(
        steps: int, rate: float, final: float, blur: float, on: dict = coarsely, slip: float = Balance.noisy_slip
    ) -> Stage:
        rigidity = Rigidity(1.0, SLIP, balanced=True, balance=Balance(noisy_slip=slip))
        terms = Matched(blur, 1.0, 1.0), rigidity, Backbone()
        return Stage(terms, steps, rate, final, **on, patience=PATIENCE)

    voxel = coarse * size / problem.frame.edge
    transport = Stage((W2(0.45 * voxel**2, window=WINDOW),), 90, 2e-3, 2e-4, bin=coarse, sampling=coarse)
    first = Stage((Correspondences(), Rigidity(10.0, SLIP)), 175, 3e-3, 1e-5, bin=coarse, sampling=coarse)
    schedule = (
        first,
        KeepBetterStart(transport),
        Stage((Matched(BLURS[0], 0.0, 1.0), Rigidity(1.0, SLIP)), 125, 4e-3, 5e-4, **coarsely, patience=PATIENCE),
        FindRigidBodies(),
        DockBodies(trial=replace(refine(25, 1e-3, 1e-4, 0.0, slip=SLIP), patience=0)),
        refine(50, 5e-4, 1e-4, WIDE_BLUR),
        refine(125, 5e-4, 1e-4, BLURS[0]),
        RedrawBorders(),
        refine(75, 1e-3, 5e-4, BLURS[1], finely),
        refine(150, 1e-3, 2e-5, 0.0, finely),
        KeepStart(),
    )
    return Config(schedule, screw_and_network(problem), optimiser=Adam(b2=B2), seed=seed)


def screw_and_network(problem: Problem) -> Screw:
    """The motion of the default recipe."""
    network = Velocity(centre=0.5, waves=32, wave_number=problem.frame.edge / WAVE)
    bends = len(problem.waypoints) + 1  # the path may bend at each waypoint
    steps = max(2 * EULER_STEPS, 2 * bends) if bends > 1 else EULER_STEPS
    return Screw(Field(network, steps), problem.waypoints)


@runtime_checkable
class Recipe(Protocol):
    """A function that makes the configuration of a fit for a prepared problem; `options` are `fit.options.Options`."""

    def __call__(self, problem: Problem, options: Any) -> Config:
        """Make the configuration."""


@dataclass(frozen=True)
class Default:
    """The default recipe, see `default`."""

    def __call__(self, problem: Problem, options: Any) -> Config:
        """Make the configuration."""
        return default(problem, options.seed)


@dataclass(frozen=True)
class Paper:
    """The published recipe, see `paper`.

    Attributes:
        bin: factor by which maps are binned in stages without a bin of their own (the paper's multi-scale option).
        schedule: stages and width; without stages: the steps published for TmrAB at the nearest resolution.
        whole_box: the unit box is that of the maps.
        weighs_noise: the noise of a target, and so its half-maps, have an effect.
        weighs_rigidity: `Options.part_rigidity` is the λ of each part, or one λ of the whole; empty: no rigidity.
    """

    bin: int = 1
    schedule: Schedule = Schedule()
    whole_box: ClassVar[bool] = True
    weighs_noise: ClassVar[bool] = False
    weighs_rigidity: ClassVar[bool] = True

    def __call__(self, problem: Problem, options: Any) -> Config:
        """Make the configuration."""
        known, weights = options.resolutions.of_targets(problem.trajectories), options.part_rigidity
        rigidity = None if not weights else 1.0 if isinstance(options.parts, Partition) else float(weights[0])
        return paper(problem, options.seed, self.bin, known, self.schedule, rigidity)


RECIPES: dict[str, Recipe] = {"default": Default(), "paper": Paper()}


def find_recipe(name: str) -> Recipe:
    """The recipe of this name; raise InputError if there is none."""
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
