"""What the sections of the benchmark share: the case, its recipes, compiled steps of a stage, and timings."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from cryotrans_jax.core import train
from cryotrans_jax.core.train import Scene
from cryotrans_jax.density import simulation
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit import devices, prepare, recipes
from cryotrans_jax.fit.better_start import KeepBetterStart
from cryotrans_jax.fit.options import Preparation, Resolutions
from cryotrans_jax.fit.stage import Config, Stage, stage_inputs
from cryotrans_jax.fit.state import initial_state
from cryotrans_jax.fit.terms import W2
from cryotrans_jax.io.maps import Map

from ..case import Case
from ..inputs import check_detail
from ..pairs import load_pair, pair_folder
from . import floor

FLAGS = flags.FLAGS
Rows = Iterator[tuple[str, float]]


def load() -> Case:
    """Load the case: the built-in pair, or a pair from --data_dir."""
    if FLAGS.data_dir:
        return load_pair(pair_folder(FLAGS.data_dir, FLAGS.pair), FLAGS.resolution)
    check_detail(FLAGS.resolution, FLAGS.voxel_size)
    start, end = hinge_pair()
    grid = simulation.common_grid([start, end], FLAGS.voxel_size, 3.0)
    maps = [simulation.simulate_map(m, *grid, r) for m, r in ((start, 3.0), (end, FLAGS.resolution))]
    return Case(maps[0], [maps[1]], {}, ["built-in"], 3.0, [FLAGS.resolution], start, [end])


def in_box(case: Case, shape: Sequence[int]) -> Case:
    """Crop or pad the maps of a case to a box of another shape about the same centre."""

    def put(map_: Map) -> Map:
        low = np.array([(n - m) // 2 for n, m in zip(shape, map_.density.shape, strict=True)])
        out = np.zeros(shape, np.float32)
        there = [slice(max(at, 0), max(at, 0) + m) for at, m in zip(low, map_.density.shape, strict=True)]
        here = [slice(max(-at, 0), max(-at, 0) + n) for at, n in zip(low, shape, strict=True)]
        out[tuple(there)] = map_.density[tuple(here)]
        return Map(out, map_.voxel_size, map_.origin - low * map_.voxel_size)

    return replace(case, initial=put(case.initial), targets=[put(t) for t in case.targets])


def prepare_case(case: Case, whole_box: bool = False) -> Problem:
    """Prepare a case with its known resolutions, in the whole box or in the crop to the mass."""
    resolutions = Resolutions(case.initial_resolution, case.target_resolutions)
    return prepare.prepare(case.initial, case.targets, resolutions, rules=Preparation(whole_box=whole_box))


def paper_recipe(case: Case, problem: Problem) -> Config:
    """Published recipe for a case."""
    return recipes.paper(problem, resolutions=case.target_resolutions)


def default_recipe(problem: Problem) -> Config:
    """Default recipe, with one velocity field for the whole."""
    return recipes.default(problem).without_division()


def with_window(config: Config, window: int | None) -> Config:
    """The same recipe with another window of the transport in all its stages."""

    def changed(stage: Stage) -> Stage:
        terms = (replace(term, window=window) if isinstance(term, W2) else term for term in stage.terms)
        return replace(stage, terms=tuple(terms))

    return replace(config, schedule=tuple(map(changed, config.stages)))


def named_stages(config: Config) -> list[tuple[str, Stage]]:
    """Stages of a schedule with their names, and the alternative start if there is one."""
    stages = [(f"stage {number} {stage.label}", stage) for number, stage in enumerate(config.stages, 1)]
    others = [item.other for item in config.schedule if isinstance(item, KeepBetterStart)]
    return stages + [(f"rival {stage.label}", stage) for stage in others]


def initial_params(config: Config) -> Any:
    """Initial parameters for one target."""
    return jax.tree.map(lambda p: p[0], initial_state(config.field, config.seed, 1).params)


def one_target(problem: Problem, config: Config, stage: Stage) -> tuple[Scene, tuple]:
    """Points of mass and terms of a stage for the first target."""
    return stage_inputs(problem, config.field, stage).of_target(0)


def seconds(call: Callable, *arguments: Any) -> float:
    """Median seconds of a call, after a first one that compiles."""
    jax.block_until_ready(call(*arguments))
    spent = []
    for _ in range(FLAGS.repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        spent.append(time.perf_counter() - begin)
    return float(np.median(spent))


class Steps(NamedTuple):
    """Compiled steps of a stage.

    Attributes:
        call: makes the steps.
        count: number of steps in a call.
        inputs: seconds in which the points of mass and the terms were made.
        compilation: seconds.
        memory: working memory, MiB.
    """

    call: Callable
    count: int
    inputs: float
    compilation: float
    memory: float

    @property
    def seconds(self) -> float:
        """Median seconds of a step."""
        return seconds(self.call) / self.count


def compile_steps(
    problem: Problem,
    config: Config,
    stage: Stage,
    targets: int = 1,
    count: int = 5,
    layout: devices.DeviceLayout | None = None,
) -> Steps:
    """Compile `count` steps of a stage, for a number of copies of the first target; on one device without a layout."""
    begin = time.perf_counter()
    batch = stage_inputs(problem.select([0] * targets), config.field, stage)
    inputs = time.perf_counter() - begin
    state = initial_state(config.field, config.seed, targets)
    zeros = jnp.zeros((targets, count)), jnp.zeros(targets)
    call = jnp.int32(count), *zeros, state.params, state.optimiser, batch
    layout = layout or devices.DeviceLayout(batch=1 if jax.default_backend() == "cpu" else None)
    begin = time.perf_counter()
    compiled = devices.train_steps.lower(*call, layout).compile()
    compilation = time.perf_counter() - begin
    memory = devices.compiled_memory(compiled)[1] / 2**20
    return Steps(lambda: compiled(*call), count, inputs, compilation, memory)


def stage_times(problem: Problem, config: Config, label: str, targets: int = 1, count: int = 5) -> Rows:
    """Time the inputs, the compilation and a step of each stage, with the working memory of its program."""
    for name, stage in named_stages(config):
        steps = compile_steps(problem, config, stage, targets, count)
        yield f"{label} {name}: step [s]", steps.seconds
        yield f"{label} {name}: inputs [s]", steps.inputs
        yield f"{label} {name}: compile [s]", steps.compilation
        yield f"{label} {name}: working memory [MiB]", steps.memory


def with_floor(problem: Problem, config: Config, label: str, peaks: tuple[float, float]) -> Rows:
    """Time the stages, with the floor of a step by XLA's count of operations and bytes, and the ratio to it."""
    rows = dict(stage_times(problem, config, label))
    gradient = jax.grad(lambda *call: train.objective(*call)[0])
    for name, stage in named_stages(config):
        least = floor.cost(gradient, initial_params(config), *one_target(problem, config, stage))
        rows[f"{label} {name}: operations a step"] = least.operations
        rows[f"{label} {name}: bytes a step"] = least.bytes
        rows[f"{label} {name}: floor [s]"] = least.seconds(peaks)
        rows[f"{label} {name}: step / floor"] = rows[f"{label} {name}: step [s]"] / least.seconds(peaks)
    yield from rows.items()
