"""The schedule of a fit as data: stages, and the actions between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import numpy as np

from cryotrans_jax.core.batch import Batch
from cryotrans_jax.core.flow import Field, FieldMotion
from cryotrans_jax.core.losses import Term
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit.background import Background
from cryotrans_jax.fit.levels import Level, Sampling, make_levels
from cryotrans_jax.fit.optimisers import Adam, OptimiserSettings
from cryotrans_jax.fit.terms import TermSettings
from cryotrans_jax.fit.trajectory import PullBack
from cryotrans_jax.io.files import InputError
from cryotrans_jax.motion.waypoints import AtEachTime


@dataclass(frozen=True)
class Stage:
    """One stage of the schedule: terms, and the steps that minimise their sum.

    Attributes:
        terms: settings of the terms.
        steps: number of steps.
        learning_rate: at the start.
        final_learning_rate: at the end, reached along half a cosine; equal to `learning_rate` for a constant one.
        bin: voxel size of the comparison grid, in voxels of the map.
        sampling: distance between the points of mass, in voxels of the map.
        spacing: of the control lattice, Å; 0 integrates the flow at every point.
        patience: chunks of steps without a gain before early stopping skips to the final phase; 0: all steps are made.
        target_steps: each target's number of steps, 0 where it leaves the stage out: it makes them as it would alone,
            and then stays as it is while others go on; at most `steps`. Empty: all targets make `steps`.
    """

    terms: tuple[TermSettings, ...]
    steps: int
    learning_rate: float
    final_learning_rate: float
    bin: int = 1
    sampling: int = 1
    spacing: float = 0.0
    patience: int = 0
    target_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the terms; raise TypeError if they are not a tuple of settings of terms."""
        if not (isinstance(self.terms, tuple) and all(isinstance(term, TermSettings) for term in self.terms)):
            raise TypeError(f"the terms of a stage are {self.terms!r}: give a tuple of `TermSettings`")

    @property
    def label(self) -> str:
        """Name of the stage's first term, for people."""
        return self.terms[0].label

    @property
    def floor(self) -> float:
        """Loss below which only a fit of noise takes the stage."""
        return sum(term.floor for term in self.terms)

    @property
    def annealing(self) -> np.ndarray:
        """Fraction of the way to the final values left at each step (steps,): from 1 to 0 along half a cosine."""
        return 0.5 + 0.5 * np.cos(np.pi * np.arange(self.steps) / max(self.steps, 1))

    @property
    def rates(self) -> np.ndarray:
        """Learning rate of each step (steps,)."""
        return self.final_learning_rate + self.annealing * (self.learning_rate - self.final_learning_rate)

    def refined(self) -> "Stage":
        """The stage with more exact terms, for when their error is too large."""
        return replace(self, terms=tuple(term.refined() for term in self.terms))

    def scaled(self, factor: float) -> "Stage":
        """The stage with `factor` times the steps, and at least one."""
        steps, *each = (max(1, round(n * factor)) if n else 0 for n in (self.steps, *self.target_steps))
        return replace(self, steps=steps, target_steps=tuple(each))

    def shortened(self, most: int) -> "Stage":
        """The stage with at most this number of steps."""
        return replace(self, steps=min(self.steps, most), target_steps=tuple(min(n, most) for n in self.target_steps))

    def of_each(self, count: int) -> list["Stage"]:
        """The stage as each of `count` targets makes it."""
        return [replace(self, steps=n, target_steps=()) for n in self.target_steps or (self.steps,) * count]

    def select(self, targets: Sequence[int]) -> "Stage":
        """The stage for the targets of these numbers, in this order."""
        return replace(self, target_steps=tuple(self.target_steps[k] for k in targets)) if self.target_steps else self


class Action:
    """Something done between two stages, such as the search for rigid bodies.

    Subclasses are frozen dataclasses of plain values (text, numbers, tuples, dataclasses of these), which the record of
    a run can hold, with a method `__call__`. An action follows a stage.

    Attributes:
        divides: whether it may divide the initial map into parts, so that the later stages' programs are other ones.
    """

    divides: ClassVar[bool] = False

    def __call__(self, fitting: Any) -> Any:
        """Take the fit so far (`schedule.Fitting`), and return it with what the action has changed."""
        raise NotImplementedError

    def ahead(self, fitting: Any, background: Background) -> Callable[[Any], Any]:
        """Start work that needs no result of a stage when the fit starts; return the function to call in its turn.

        Args:
            fitting: the fit before the stages.
            background: does the work beside them.
        """
        return self

    def scaled(self, factor: float) -> "Action":
        """The action with `factor` times the steps, where it makes some."""
        return self


@dataclass(frozen=True)
class Supervision:
    """When to stop a stage early, and what to do about a fit that diverges.

    A target diverges if its loss or parameters are not finite, its loss grows, or its mass leaves the crop. Then its
    best parameters in the stage are restored and its learning rate is divided. After some restarts it is given up.

    Attributes:
        chunk: steps in one call of the compiled program, after which the losses are looked at.
        min_gain: a chunk gains if it lowers the loss by more than this fraction of it.
        loss_floor: floor for the loss in that comparison.
        final_phase: fraction of a stage's steps, with falling learning rates, that early stopping does not skip.
        term_error: largest error of a term; where it is larger the term is refined. In the unit of the term's error.
        divergence_ratio: a loss above this many times that of the stage's first chunk has diverged.
        divergence_floor: floor for the loss of the first chunk in that comparison.
        max_mass_outside: largest fraction of the mass outside the crop.
        rate_divisor: divides the learning rate whenever a target's best parameters are restored.
        max_restarts: number of such restarts in a fit before the target is given up.
    """

    chunk: int = 25
    min_gain: float = 0.005
    loss_floor: float = 0.01
    final_phase: float = 0.2
    term_error: float = 1e-2
    divergence_ratio: float = 10.0
    divergence_floor: float = 0.1
    max_mass_outside: float = 0.25
    rate_divisor: float = 4.0
    max_restarts: int = 3

    def final_phase_of(self, stage: Stage) -> int:
        """First step of a stage's final phase, to which early stopping may skip."""
        return stage.steps - round(self.final_phase * stage.steps)


@dataclass(frozen=True)
class Config:
    """Everything that decides a fit, besides the maps and how they are prepared.

    Attributes:
        schedule: the stages, and the actions between them.
        field: the motion by one velocity field: its network, and the number of Euler steps.
        supervision: early stopping, and recovery from divergence.
        seed: of the network's initial weights.
        optimiser: makes the steps of all stages, with their learning rates.
        render: how frames are made, unless another way is asked for: "pull_back" or "splat"; see `Fit.frames`.
        pull_back: widths and spacings of frames that are pulled back.
        whole_box: whether the unit box is that of the maps, as in the paper; else it encloses the molecule.
    """

    schedule: tuple[Stage | Action, ...]
    field: FieldMotion = Field()
    supervision: Supervision = Supervision()
    seed: int = 0
    optimiser: OptimiserSettings = Adam()
    render: str = "pull_back"
    pull_back: PullBack = PullBack()
    whole_box: bool = False

    def __post_init__(self) -> None:
        """Check that the schedule can be run.

        Raises:
            InputError: it begins with an action.
            TypeError: the optimiser is no `OptimiserSettings`.
        """
        if not isinstance(self.optimiser, OptimiserSettings):
            raise TypeError(f"the optimiser is {self.optimiser!r}: give settings such as `fit.optimisers.Adam()`")
        if self.schedule and isinstance(self.schedule[0], Action):
            name = type(self.schedule[0]).__name__
            raise InputError(f"the schedule begins with {name}: begin it with a stage, after which actions may follow")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages without the actions."""
        return tuple(item for item in self.schedule if isinstance(item, Stage))

    def scaled(self, factor: float) -> "Config":
        """The same with `factor` times the steps of every stage, and at least one."""
        return replace(self, schedule=tuple(item.scaled(factor) for item in self.schedule))

    def select(self, targets: Sequence[int]) -> "Config":
        """The same for the targets of these numbers, in this order."""
        stages = (item.select(targets) if isinstance(item, Stage) else item for item in self.schedule)
        return replace(self, schedule=tuple(stages))

    def without_division(self) -> "Config":
        """The same without the actions that divide the initial map into parts."""
        return replace(self, schedule=tuple(i for i in self.schedule if isinstance(i, Stage) or not i.divides))


def stage_inputs(problem: Problem, field: FieldMotion, stage: Stage) -> Batch:
    """Make the points of mass and the terms of a stage, for each trajectory.

    Args:
        problem: the prepared maps.
        field: the motion by one velocity field.
        stage: the stage.
    """
    rigid = any(term.rigid for term in stage.terms)
    levels = make_levels(problem, field, Sampling(stage.bin, stage.sampling, stage.spacing, rigid))
    each = enumerate(levels)
    return Batch.of([(level.scene, make_terms(problem, stage.terms, level, stage.bin, k)) for k, level in each])


def make_terms(
    problem: Problem, settings: tuple[TermSettings, ...], level: Level, bin_: int, trajectory: int
) -> tuple[Term, ...]:
    """Make the terms of a trajectory: those of its target, or with waypoints those of all targets at their times."""

    def of_target(target: int) -> tuple[Term, ...]:
        made = tuple(term.make(problem, level, bin_, target) for term in settings)
        for term in made:
            if jax.tree_util.all_leaves([term]):
                raise TypeError(f"{type(term).__name__} is no pytree: decorate the class with flax.struct.dataclass")
        return made

    if not problem.waypoints:
        return of_target(trajectory)
    return (AtEachTime(Batch.of([of_target(target) for target in range(len(problem.targets))])),)
