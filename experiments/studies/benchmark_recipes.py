"""Section recipes of the benchmark: the time of the default recipe to the final FSC of the paper's."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit import trajectory
from cryotrans_jax.fit.schedule import Fitting, run
from cryotrans_jax.fit.stage import Config
from cryotrans_jax.fit.state import State
from cryotrans_jax.fit.supervise import Callbacks, warn_of_setback
from cryotrans_jax.fit.target_flow import Flow
from cryotrans_jax.scores import metrics

from ..case import Case
from . import benchmark_cases as cases
from .benchmark_cases import Rows, Steps
from .benchmark_kernels import narrowest_window, stock_grid

FLAGS = flags.FLAGS
POINTS = 20  # of an FSC curve along a fit, about
Place = tuple[int, int]  # number of the stage, and steps done in it


class Reached(NamedTuple):
    """Resolution reached in the course of a fit.

    Attributes:
        place: where the fit stood.
        fsc: Å, at which the FSC with the reference is 0.5.
    """

    place: Place
    fsc: float


def recipes() -> Rows:
    """Time each recipe, and the default one to the final FSC of the paper's; see `benchmark`."""
    case = cases.load()
    problem = cases.prepare_case(case, whole_box=True)
    config, fitted, curve = cases.paper_recipe(case, problem).scaled(FLAGS.steps), None, []
    with stock_grid():
        programs = [cases.compile_steps(problem, config, stage, count=1) for stage in config.stages]
        if FLAGS.paper_by_stock:
            fitted, curve = max(timeline(problem, config).values()), fsc_curve(case, problem, config)
    if not curve:
        begin = time.perf_counter()
        curve = fsc_curve(case, problem, windowed(problem, config))
        yield "recipe paper: the same with our kernel, FSC curve included [s]", time.perf_counter() - begin
    aim = curve[-1].fsc
    yield "recipe paper: FSC = 0.5 at the end [Å]", aim
    yield "recipe paper: FSC = 0.5 at its best [Å]", min(each.fsc for each in curve)

    problem = cases.prepare_case(case)
    ours = cases.default_recipe(problem).scaled(FLAGS.steps)
    curve = fsc_curve(case, problem, ours)
    steps, fits = times_in_turns(programs, problem, ours)
    by_stock = fitted or sum(stage.steps * spent for stage, spent in zip(config.stages, steps, strict=True))
    yield from stock_rows(config, programs, steps, by_stock)
    reached = next((each.place for each in curve if each.fsc <= aim), None)
    for when, spent in fits.items():
        yield f"recipe default, {when}: fit [s]", max(spent.values())
        if reached:
            yield f"recipe default, {when}: to the paper recipe's final FSC [s]", spent[reached]
            yield f"recipes, default {when}: paper / default, time to that FSC", by_stock / spent[reached]
    yield "recipe default: FSC = 0.5 at the end [Å]", curve[-1].fsc
    yield "recipe default: reaches the paper recipe's final FSC (1: yes)", float(reached is not None)


def windowed(problem: Problem, config: Config) -> Config:
    """The paper's recipe with the narrowest window of our kernel that is exact enough."""
    _, (term,) = cases.one_target(problem, config, config.stages[0])
    window, _ = narrowest_window(jnp.asarray(problem.initial), term.target, term.voxel, term.epsilon)
    return cases.with_window(config, window)


def times_in_turns(
    programs: Sequence[Steps], problem: Problem, config: Config
) -> tuple[list[float], dict[str, dict[Place, float]]]:
    """Time programs and two fits in turns, so that other work on this machine slows all of them down equally.

    Returns:
        Median seconds of a step of each program, and the times of a fit with nothing compiled and of one after it.
    """
    jax.clear_caches()
    steps, fits = [[each.seconds for each in programs]], {}
    for when in ("compilation included", "compiled before"):
        fits[when] = timeline(problem, config)
        steps.append([each.seconds for each in programs])
    return np.median(steps, axis=0).tolist(), fits


def stock_rows(config: Config, programs: Sequence[Steps], steps: Sequence[float], total: float) -> Rows:
    """Times of the paper's steps with the stock Grid, and their working memory."""
    for number, (stage, program, spent) in enumerate(zip(config.stages, programs, steps, strict=True), 1):
        label = f"recipe paper, stage {number} {stage.label}:"
        yield f"{label} step with the stock Grid [s]", spent
        yield f"{label} working memory with the stock Grid [MiB]", program.memory
    yield f"recipe paper: {sum(stage.steps for stage in config.stages)} steps with the stock Grid [s]", total


def timeline(problem: Problem, config: Config) -> dict[Place, float]:
    """Seconds from the start of a whole fit at which it reached each place."""
    begin, marks = time.perf_counter(), {}

    def note(stage: int, step: int, losses: np.ndarray) -> None:
        marks[stage, step] = time.perf_counter() - begin

    run(Fitting.begin(problem, config, callbacks=Callbacks(note, on_setback=warn_of_setback)))
    return marks


def fsc_curve(case: Case, problem: Problem, config: Config) -> list[Reached]:
    """Resolutions of the pulled-back map about twenty times along a fit, and at its end."""
    before = np.cumsum([0, *(stage.steps for stage in config.stages)])
    states: list[State] = []

    def done(state: State) -> int:
        return before[state.stage] + state.step

    def keep(state: State, losses: np.ndarray) -> None:
        if done(state) >= (done(states[-1]) if states else 0) + max(before[-1] // POINTS, 1):
            states.append(state)

    callbacks = Callbacks(on_state=keep, on_setback=warn_of_setback)
    end = run(Fitting.begin(problem, config, callbacks=callbacks)).state
    earlier = [state for state in states if done(state) < done(end)]
    return [resolution(case, problem, config, state) for state in (*earlier, end)]


def resolution(case: Case, problem: Problem, config: Config, state: State) -> Reached:
    """Resolution of the initial map that a fit's field carries to the end, against the reference."""
    params, threshold = jax.tree.map(lambda p: p[0], state.params), problem.report["initial"]["threshold"]
    flow = Flow(config.field, params, problem.frame)
    map_ = next(trajectory.pull_back(flow, case.initial, threshold, [1.0]))
    fsc = metrics.model_map_fsc(map_, case.references[0], case.initial_resolution)
    return Reached((state.stage, state.step), metrics.resolution_at(*fsc, 0.5))
