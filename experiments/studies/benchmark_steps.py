"""Sections step, stages and scaling of the benchmark: the training step, by part, by stage and by size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from cryotrans_jax.core import losses, train
from cryotrans_jax.core.transport import w2
from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit.stage import Config, Stage

from . import benchmark_cases as cases
from . import floor
from .benchmark_cases import Rows

FLAGS = flags.FLAGS
WINDOW = 14  # voxels, of the paper's recipe in boxes of several sizes


def step() -> Rows:
    """Time a training step of each stage of the default recipe, and its parts."""
    problem = cases.prepare_case(cases.load())
    config = cases.default_recipe(problem)
    for name, stage in cases.named_stages(config):
        for part, (function, argument) in parts(problem, config, stage).items():
            yield f"step, {name}: {part} [s]", cases.seconds(jax.jit(jax.grad(function)), argument)


def parts(problem: Problem, config: Config, stage: Stage) -> dict[str, tuple[Callable, Any]]:
    """A training step and its parts, each a scalar function and the argument at which it is differentiated."""
    scene, terms = cases.one_target(problem, config, stage)
    params = cases.initial_params(config)
    carried = jax.jit(train.carry)(params, scene)
    found = {
        "whole": (lambda p: train.objective(p, scene, terms)[0], params),
        "flow": (lambda p: jnp.sum(train.carry(p, scene).x ** 2), params),
    }
    for term in terms:
        if isinstance(term, losses.OnGrid):
            put = lambda x, term=term: losses.OnGrid.carried_map(term, carried._replace(x=x))  # noqa: E731
            found["splat"] = lambda x, put=put: jnp.sum(put(x) ** 2), carried.x
            name, compare = comparison(term)
            found[name] = compare, jax.jit(put)(carried.x)
        else:
            found["rigidity" if isinstance(term, losses.Rigidity) else "distances"] = term, carried
    return found


def comparison(term: losses.OnGrid) -> tuple[str, Callable]:
    """Name of what a term does with the carried map, and a function of this map that does it."""
    target = term.target
    match term:
        case losses.W2():
            return "transport", lambda here: w2(here, target, term.voxel, term.epsilon, term.iterations, term.window)
        case losses.Matched():
            blurred = (lambda here: here) if term.blur is None else (lambda here: losses.blur(here, term.blur))
            return "matched L2", lambda here: losses.scale_invariant_l2(blurred(here), target, term.power)
        case _:
            return "L2", lambda here: losses.l2(here, target)


def stages() -> Rows:
    """Time the stages of both recipes; the paper's with the whole kernel, which takes seconds a step.

    Those of the default recipe with their lower bounds.
    """
    case = cases.load()
    operations, bandwidth, source = floor.peaks(FLAGS.peak_flops, FLAGS.peak_bandwidth)
    yield f"stages: operations a second, {source}", operations
    yield f"stages: bytes a second, {source}", bandwidth
    problem = cases.prepare_case(case)
    yield from cases.with_floor(problem, cases.default_recipe(problem), "default,", (operations, bandwidth))
    problem = cases.prepare_case(case, whole_box=True)
    yield from cases.stage_times(problem, cases.paper_recipe(case, problem), "paper,", count=1)


def scaling() -> Rows:
    """Measure a step against the size of the box, the number of points and the number of targets."""
    case = cases.load()
    for extra in FLAGS.pads:
        larger = cases.in_box(case, [n + extra for n in case.initial.density.shape])
        problem = cases.prepare_case(larger)
        label = f"box {'x'.join(map(str, larger.initial.density.shape))}, default,"
        yield from steps_and_memory(cases.stage_times(problem, cases.default_recipe(problem), label))
    for extra in FLAGS.pads[:2]:
        larger = cases.in_box(case, [n + extra for n in case.initial.density.shape])
        problem = cases.prepare_case(larger, whole_box=True)
        config = cases.with_window(cases.paper_recipe(case, problem), WINDOW)
        label = f"box {'x'.join(map(str, larger.initial.density.shape))}, paper with window {WINDOW},"
        yield from steps_and_memory(cases.stage_times(problem, config, label, count=1))
    problem = cases.prepare_case(case)
    config = cases.default_recipe(problem)
    yield from by_points(problem, config)
    for number in FLAGS.targets:
        yield from steps_and_memory(cases.stage_times(problem, config, f"{number} targets, default,", number))


def by_points(problem: Problem, config: Config) -> Rows:
    """Time the gradient of the recipe's last W2 stage for several numbers of points."""
    stage = next(stage for _, stage in reversed(cases.named_stages(config)) if stage.label == "w2")
    scene, terms = cases.one_target(problem, config, stage)
    params = cases.initial_params(config)
    gradient = jax.jit(jax.grad(lambda p, scene: train.objective(p, scene, terms)[0]))
    for number in FLAGS.points:
        rows = np.arange(number) % len(scene.x)
        points = scene._replace(x=scene.x[rows], rho=jnp.full(number, 1 / number))
        yield (
            f"{number} points: gradient of a W2 step [s]",
            cases.seconds(gradient, params, points),
        )


def steps_and_memory(rows: Rows) -> Rows:
    """Select the rows of steps and memory."""
    return (row for row in rows if "step" in row[0] or "memory" in row[0])
