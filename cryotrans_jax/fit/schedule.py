"""Run a schedule: its stages, and the actions between them, by one loop."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from cryotrans_jax.core.batch import Batch
from cryotrans_jax.core.flow import FieldMotion
from cryotrans_jax.density.align import Alignment
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit.background import Background
from cryotrans_jax.fit.devices import DeviceLayout, check_memory, compiled_memory, fit_to_memory, train_steps
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.snapshots import Snapshot
from cryotrans_jax.fit.stage import Action, Config, Stage, stage_inputs
from cryotrans_jax.fit.state import State, all_failed, begin_stage, initial_state
from cryotrans_jax.fit.supervise import SILENT, Callbacks, Setting, crop_of, fit_stage
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.symmetric import replicate_fields


@dataclass(frozen=True)
class Fitting:
    """A fit in progress, which stages and actions take and return.

    Attributes:
        whole: the prepared maps.
        problem: the same, divided into the parts that have fields.
        config: the configuration.
        field: the motion by one velocity field, with waypoints and symmetry.
        state: parameters, optimiser, and where the schedule stands.
        targets: number of targets, or trajectories; the state has more where copies of the last one fill up devices.
        layout: how targets are laid out over devices.
        callbacks: functions that are called after every chunk of steps.
        initial: the initial map.
        report: values that were chosen by rule in the preparation of the maps, for the fit's report.
        alignments: how each target was aligned to the initial map.
        given_parts: for each target the parts that were given; empty where none were.
        partitions: for each target its rigid bodies; empty before they are found.
        bodies_rms: for each target the RMS deviations (Å) from rigid-body motion with one body, two and so on.
        history: the losses (steps, targets) of each stage so far.
        inputs: points of mass and terms of the last stage.
        stopped: whether the progress callback asked to stop.
    """

    whole: Problem
    problem: Problem
    config: Config
    field: FieldMotion
    state: State
    targets: int
    layout: DeviceLayout = DeviceLayout()
    callbacks: Callbacks = SILENT
    initial: Map | None = None
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    alignments: tuple[Alignment, ...] = ()
    given_parts: tuple[Partition, ...] = ()
    partitions: tuple[Partition, ...] = ()
    bodies_rms: tuple[tuple[float, ...], ...] = ()
    history: tuple[np.ndarray, ...] = ()
    inputs: Batch | None = None
    stopped: bool = False

    @classmethod
    def begin(cls, problem: Problem, config: Config, field: FieldMotion | None = None, **others: Any) -> "Fitting":
        """A fit of a problem before its first step.

        Args:
            problem: the prepared maps, divided into parts if the parts are given.
            config: the configuration.
            field: the motion by one velocity field; None: the configuration's, without waypoints and symmetry.
            **others: further attributes.
        """
        field = config.field if field is None else field
        begun: dict[str, Any] = {"state": first_state(problem, config, field), "targets": problem.trajectories}
        return cls(problem, problem, config, field, **begun | others)

    @property
    def initial_map(self) -> Map:
        """The initial map; raises ValueError in a fit that was begun without it."""
        if self.initial is None:
            raise ValueError("this action needs the initial map: begin the fit with it")
        return self.initial

    @property
    def over(self) -> bool:
        """Whether nothing more is to be done: every target was given up, or a callback asked to stop."""
        return self.stopped or all_failed(self.state)

    @property
    def next_stage(self) -> Stage:
        """The stage after the one that the state stands in."""
        return self.config.stages[self.state.stage + 1]

    def make_inputs(self, stage: Stage) -> Batch:
        """Make the points of mass and the terms of a stage."""
        return stage_inputs(self.problem, self.field, stage)

    def setting(self, callbacks: Callbacks) -> Setting:
        """What stays the same during a fit, with these callbacks."""
        return Setting(self.config.supervision, callbacks, self.layout, crop_of(self.problem))

    def try_stage(self, stage: Stage, states: Sequence[State]) -> list[tuple[State, np.ndarray]]:
        """Fit a stage from each of some states, silently.

        Returns:
            For each the state after the stage, and its losses (steps, targets).
        """
        inputs, setting = self.make_inputs(stage), self.setting(SILENT)
        return [fit_stage(stage, self.make_inputs, inputs, state, setting)[:2] for state in states]

    def try_anew(self, stage: Stage, states: Sequence[State]) -> list[tuple[State, np.ndarray]]:
        """The same for a stage that is begun anew from each of the states."""
        begun = [begin_stage(state._replace(failed=(), setbacks=()), self.state.stage) for state in states]
        return self.try_stage(stage, begun)

    def fit(self) -> Fit:
        """The fit as it stands, which makes maps, frames and models."""
        state, count, params = self.state, self.targets, self.state.params
        if self.partitions:  # with a symmetry, the copies of a body become parts like any others
            params = replicate_fields(self.field, params, self.whole.operators)
        return Fit(
            config=self.config,
            field=self.field,
            params=jax.tree.map(lambda p: np.asarray(p)[:count], params),
            frame=self.problem.frame,
            threshold=self.problem.report["initial"]["threshold"],
            history=tuple(losses[:, :count] for losses in self.history),
            report=self.report | self.decisions,
            partitions=(self.partitions or self.given_parts)[:count],
            initial=self.initial,
            alignments=self.alignments,
            failed=state.failed[:count],
        )

    @property
    def decisions(self) -> dict[str, Any]:
        """What the fit has decided for each target, for its report: start, setbacks, bodies."""
        state, count = self.state, self.targets
        names = {"points": "correspondences", "docked": "docking", "w2": "transport"}
        labels = state.starts[:count] or (self.config.stages[0].label,) * count
        found: dict = {"start": [names.get(label, label) for label in labels]}
        if state.setbacks:
            found["setbacks"] = [*state.setbacks[:count]]
        if any(isinstance(item, Action) and item.divides for item in self.config.schedule):
            found["bodies_rms"] = [[*off] for off in self.bodies_rms[:count]]
        return found

    def snapshot(self, finished: bool = False) -> Snapshot:
        """Snapshot from which the fit can be resumed."""
        state = self.state._replace(stage=len(self.config.stages)) if finished else self.state
        return Snapshot(state, self.history, self.partitions, self.bodies_rms, finished)


def first_state(problem: Problem, config: Config, field: FieldMotion) -> State:
    """State of a fit before its first step."""
    return initial_state(field, config.seed, problem.trajectories, problem.parts, config.optimiser)


def run(fitting: Fitting, on_snapshot: Callable[[Snapshot], None] | None = None) -> Fitting:
    """Run the schedule from where the state stands.

    Args:
        fitting: the fit so far.
        on_snapshot: called with a snapshot after every chunk of steps.

    Returns:
        The fit after the schedule.

    Raises:
        InputError: a stage needs more memory than there is.
    """
    schedule, first = fitting.config.schedule, fitting.state.stage
    numbers = list(itertools.accumulate((isinstance(item, Stage) for item in schedule), initial=-1))[1:]
    left = [place for place, number in enumerate(numbers) if number >= first]  # the others were done before
    with Compiler() as compiler, Background() as background:
        actions = ((place, item) for place in left if isinstance(item := schedule[place], Action))
        acting = {place: item.ahead(fitting, background) for place, item in actions}
        for place in left:
            item, number = schedule[place], numbers[place]
            if fitting.over:
                break
            if isinstance(item, Action):
                fitting = act(item, acting[place], fitting)
                if item.divides:
                    compiler.forget()
                continue
            if number > fitting.state.stage:
                fitting = replace(fitting, state=begin_stage(fitting.state, number))
            inputs = compiler.inputs(fitting, schedule[place:], number)
            fitting = run_stage(replace(fitting, inputs=inputs), item, on_snapshot)
    return fitting


def act(action: Action, acting: Callable[[Fitting], Any], fitting: Fitting) -> Fitting:
    """Do what an action has begun ahead, between two stages; raise TypeError if it does not return the fit."""
    found = acting(fitting)
    if not isinstance(found, Fitting):
        raise TypeError(f"{type(action).__name__} returned {found!r}: return the fit, changed or not")
    return found


def run_stage(fitting: Fitting, stage: Stage, on_snapshot: Callable[[Snapshot], None] | None) -> Fitting:
    """Run one stage, and record its losses."""
    assert fitting.inputs is not None
    earlier, chunks = fitting.history[: fitting.state.stage], list(fitting.history[fitting.state.stage :])

    def on_state(state: State, losses: np.ndarray) -> None:
        chunks.append(losses)
        fitting.callbacks.on_state(state, losses)
        if on_snapshot:
            on_snapshot(replace(fitting, state=state, history=(*earlier, np.concatenate(chunks))).snapshot())

    setting = fitting.setting(fitting.callbacks._replace(on_state=on_state))
    state, losses, stopped = fit_stage(stage, fitting.make_inputs, fitting.inputs, fitting.state, setting)
    history = (*earlier, np.concatenate(chunks) if chunks else losses)
    return replace(fitting, state=state, history=history, stopped=stopped)


class Compiler:
    """Compiles the programs of the stages that follow, one after the other, while the first of them runs."""

    def __init__(self) -> None:
        """Begin with no program."""
        self.background = ThreadPoolExecutor(1)
        self.coming: dict[int, Future] = {}

    def __enter__(self) -> "Compiler":
        """Return this object."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Cancel what has not begun."""
        self.background.shutdown(wait=False, cancel_futures=True)

    def forget(self) -> None:
        """Forget programs of another division into parts."""
        self.coming = {}

    def inputs(self, fitting: Fitting, schedule: tuple[Stage | Action, ...], number: int) -> Batch:
        """Inputs of the first stage of the rest of the schedule, which has this number.

        Programs of the stages up to the next division into parts are compiled in the background.

        Raises:
            InputError: one of them needs more memory than there is.
        """
        if not self.coming:
            undivided = itertools.takewhile(lambda item: isinstance(item, Stage) or not item.divides, schedule)
            stages = [item for item in undivided if isinstance(item, Stage)]
            self.coming = {
                n: self.background.submit(compile_stage, fitting, stage, n) for n, stage in enumerate(stages, number)
            }
        for later in self.coming.values():
            if later.done():  # raise an error of a later stage now
                later.result()
        return self.coming.pop(number).result()


def compile_stage(fitting: Fitting, stage: Stage, number: int) -> Batch:
    """Make the inputs of a stage, and compile its steps without calling them, which would take memory."""
    inputs, count, chunk = fitting.make_inputs(stage), fitting.problem.trajectories, fitting.config.supervision.chunk
    zeros = np.int32(0), np.zeros((count, chunk), np.float32), np.zeros(count, np.float32)
    call = *zeros, fitting.state.params, fitting.state.optimiser, inputs
    compiled = train_steps.compile(*call, fit_to_memory(fitting.layout, *call))
    check_memory(number, sum(compiled_memory(compiled)), fitting.layout)
    return inputs
