"""Section device of the benchmark: sizes that suit a GPU, with lower bounds of their times."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import jax
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

from cryotrans_jax.io import exported

from . import benchmark_cases as cases
from . import floor
from .benchmark_cases import Rows
from .benchmark_recipes import timeline, windowed

FLAGS = flags.FLAGS
PUBLISHED_STEP = 0.0648  # s, the paper's W2 step at 160³ on an unnamed GPU
CACHE = ("jax_enable_compilation_cache", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def device() -> Rows:
    """Measure the paper's step and the default recipe at --side³ with their floors, and several targets against one."""
    case = cases.in_box(cases.load(), [FLAGS.side] * 3)
    operations, bandwidth, source = floor.peaks(FLAGS.peak_flops, FLAGS.peak_bandwidth)
    yield f"device: operations a second, {source}", operations
    yield f"device: bytes a second, {source}", bandwidth
    problem = cases.prepare_case(case, whole_box=True)
    config = cases.paper_recipe(case, problem)
    config = replace(config, schedule=config.schedule[:1])
    yield "device: points of mass", float((problem.initial > 0).sum())
    for label, value in cases.with_floor(problem, config, "device: paper,", (operations, bandwidth)):
        yield label, value
        if label.endswith("step [s]"):
            yield "device: published step, 64.8 ms at 160³ / ours", PUBLISHED_STEP / value
    problem = cases.prepare_case(case)
    config = windowed(problem, config)  # in the crop, as the default recipe has it, and as exact
    yield from cases.with_floor(problem, config, "device: paper, cropped,", (operations, bandwidth))
    config = cases.default_recipe(problem)
    yield from cases.with_floor(problem, config, "device: default,", (operations, bandwidth))
    cold, warm = cold_and_warm(lambda: timeline(problem, config.scaled(FLAGS.device_steps)))
    yield "device: default, nothing compiled: fit [s]", cold
    yield "device: default, programs from the cache: fit [s]", warm
    number = FLAGS.device_targets
    for name, stage in cases.named_stages(config):
        one, several = (cases.compile_steps(problem, config, stage, n).seconds for n in (1, number))
        yield f"device: default, {name}: {number} targets / one", several / one


def cold_and_warm(fit: Callable) -> tuple[float, float]:
    """Seconds of a fit with nothing compiled, and of one with its programs in the caches on disk, as in a rerun."""
    before, spent = {name: getattr(jax.config, name) for name in CACHE}, []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, value in zip(CACHE, (True, folder, 0.0), strict=True):
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            for _ in range(2):
                jax.clear_caches()
                exported.opened.cache_clear()
                begin = time.perf_counter()
                fit()
                spent.append(time.perf_counter() - begin)
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
    return spent[0], spent[1]
