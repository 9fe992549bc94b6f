"""Measure time and memory on this machine, in one run.

python -m experiments.studies.benchmark --out_dir=runs/benchmark
python -m experiments.studies.benchmark --sections=kernel,step --baseline=runs/earlier/benchmark.json

Sections: kernel (one application against ott-jax's stock Grid), sinkhorn (five iterations on a real problem, cropped
and windowed, against the stock Grid on a cube), step (one training step by part), stages (compile and step time of
each recipe's stages), scaling (boxes, points, targets), recipes (time to the same FSC), device (a GPU's sizes: the
paper's step, the default recipe, several targets; each with its lower bound).

Section recipes runs the whole default recipe twice. It also runs every step of the paper's recipe, but with our kernel:
the potentials are the same (section sinkhorn), and so is the FSC after each step. The time stated for that recipe is
the number of its steps times the time of a step with ott's stock Grid, measured here, without compilation.
--paper_by_stock fits all its steps with the stock Grid, which takes hours on a CPU.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags

from .. import paths, ranges
from ..main import run

FLAGS = flags.FLAGS
SECTIONS = ("kernel", "sinkhorn", "step", "stages", "scaling", "recipes", "device")
PUBLISHED_STEP = 0.0648  # s, the paper's W2 step at 160³ on an unnamed GPU
PADS = ranges.Range(0, 1024, "it is added to the sides of a box in voxels")
POINTS = ranges.Range(1, 100_000_000, "it is a number of points that fit into memory")
TARGETS = ranges.Range(1, 10_000, "it is a number of targets fitted at once")
PEAK = ranges.Range(1, 1e21, "it is counted in single operations or bytes a second")
Rows = Iterator[tuple[str, float]]


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_list("sections", list(SECTIONS[:-1]), f"What to measure, of {', '.join(SECTIONS)}.")
    paths.define_path("out_dir", "runs/benchmark", "Folder for benchmark.json and benchmark.md.")
    flags.DEFINE_string("baseline", None, "A benchmark.json of an earlier run to compare with.")
    paths.define_path(
        "data_dir", None, "Folder of pairs (see experiments.studies.validate); the built-in pair if not given."
    )
    flags.DEFINE_string("pair", "adk", "The pair in --data_dir.")
    ranges.number("resolution", 7.0, "Resolution of the target map, Å.", ranges.RESOLUTION)
    ranges.number("voxel_size", 1.0, "Voxel size of the built-in pair's maps, Å.", ranges.VOXEL_SIZE)
    ranges.whole_number("repeats", 7, "Number of timings of each call; the median is reported.", ranges.COUNT)
    ranges.whole_numbers("sizes", [44, 64, 88], "Sides of the cubes of section kernel, in voxels.", ranges.SIDE)
    ranges.whole_number(
        "cube", None, "Side of the stock Grid's cube in section sinkhorn; the box's longest if not given.", ranges.SIDE
    )
    ranges.whole_numbers("pads", [0, 32, 96], "Voxels added to the box's sides in section scaling.", PADS)
    ranges.whole_numbers("points", [1000, 4000, 16000, 64000], "Numbers of points in section scaling.", POINTS)
    ranges.whole_numbers("targets", [1, 2, 4, 8], "Numbers of targets in section scaling.", TARGETS)
    ranges.number("steps", 1.0, "Multiplies both recipes' steps in section recipes.", ranges.STEPS)
    flags.DEFINE_bool("paper_by_stock", False, "Fit the paper's recipe with the stock Grid in section recipes.")
    ranges.whole_number("side", 160, "Side in voxels of the cube of section device.", ranges.SIDE)
    ranges.whole_number("device_targets", 16, "Number of targets in section device.", TARGETS)
    ranges.number("device_steps", 1.0, "Multiplies the default recipe's steps in section device.", ranges.STEPS)
    ranges.number("peak_flops", None, "float32 operations a second of the device, where unknown.", PEAK)
    ranges.number("peak_bandwidth", None, "Bytes a second of the device, where unknown.", PEAK)
    flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")


def main() -> None:
    """Run the sections; print and write the table, updated after every section."""
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # so that compilation is measured
    from cryotrans_jax.io.files import InputError, write_file

    from .. import run_folder

    out_dir = Path(FLAGS.out_dir)
    if unknown := [name for name in FLAGS.sections if name not in SECTIONS]:
        raise InputError(f"there is no section {unknown[0]!r}: choose among {', '.join(SECTIONS)}")
    if (out_dir / "benchmark.json").exists() and not FLAGS.overwrite:
        raise InputError(f"{out_dir} holds a benchmark: give another --out_dir, or --overwrite to replace it")
    earlier = read_rows(FLAGS.baseline) if FLAGS.baseline else {}
    rows: dict[str, float] = {}
    with run_folder.growing(out_dir, "benchmark") as growing:
        for section in FLAGS.sections:
            for label, value in rows_of(section):
                rows[label] = value
                print(line(label, value, earlier), flush=True)
            run_folder.write_json(growing / "benchmark.json", {"machine": machine(), "rows": rows})
            table = [
                "| what | value | earlier | ratio |",
                "|---|---|---|---|",
                *(line(k, v, earlier) for k, v in rows.items()),
            ]
            write_file(growing / "benchmark.md", "\n".join(table) + "\n")


def rows_of(section: str) -> Rows:
    """Rows of a section, and the peak memory after it."""
    import jax

    from cryotrans_jax.io import memory

    yield from globals()[section]()
    yield f"{section}: peak memory of the host so far [MiB]", memory.peak() / 2**20
    if (stats := jax.local_devices()[0].memory_stats()) and "peak_bytes_in_use" in stats:
        yield f"{section}: peak memory of the device so far [MiB]", stats["peak_bytes_in_use"] / 2**20


def read_rows(path: str) -> dict[str, float]:
    """Read the rows of an earlier run.

    Raises:
        InputError: the file is not a benchmark.json.
    """
    from cryotrans_jax.io.files import InputError, read_json

    try:
        rows = read_json(path)["rows"]
        return {label: float(value) for label, value in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise InputError(f"{path} is no benchmark: give the benchmark.json of an earlier run") from None


def line(label: str, value: float, earlier: dict[str, float]) -> str:
    """Format a row of the table in Markdown; the ratio is new / earlier."""
    before = earlier.get(label)
    compared = f"{before:.4g} | {value / before:.2f}" if before else " | "
    return f"| {label} | {value:.4g} | {compared} |"


def machine() -> dict:
    """Device, cores and versions of the measurement."""
    import jax

    from ..record import PACKAGES, version

    device = jax.devices()[0]
    return {"device": device.device_kind, "devices": jax.device_count(), "cores": os.cpu_count()} | {
        name: version(name) for name in PACKAGES
    }


def seconds(call: Callable, *arguments) -> float:
    """Median seconds of a call, after a first one that compiles."""
    import jax
    import numpy as np

    jax.block_until_ready(call(*arguments))
    spent = []
    for _ in range(FLAGS.repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        spent.append(time.perf_counter() - begin)
    return float(np.median(spent))


def load():
    """Load the case: the built-in pair, or a pair from --data_dir."""
    from cryotrans_jax.density import simulation
    from cryotrans_jax.density.demo import hinge_pair

    from ..case import Case
    from ..inputs import check_detail
    from ..pairs import load_pair, pair_folder

    if FLAGS.data_dir:
        return load_pair(pair_folder(FLAGS.data_dir, FLAGS.pair), FLAGS.resolution)
    check_detail(FLAGS.resolution, FLAGS.voxel_size)
    start, end = hinge_pair()
    grid = simulation.common_grid([start, end], FLAGS.voxel_size, 3.0)
    maps = [simulation.simulate_map(m, *grid, r) for m, r in ((start, 3.0), (end, FLAGS.resolution))]
    return Case(maps[0], [maps[1]], {}, ["built-in"], 3.0, [FLAGS.resolution], start, [end])


def prepare_case(case, **how):
    """Prepare a case with its known resolutions; `how` is passed to prepare."""
    from cryotrans_jax.fit import prepare

    return prepare.prepare(
        case.initial,
        case.targets,
        initial_resolution=case.initial_resolution,
        target_resolutions=case.target_resolutions,
        **how,
    )


def paper_recipe(case, problem):
    """Published recipe for a case."""
    from cryotrans_jax.fit import recipes

    return recipes.paper(problem, resolutions=(case.initial_resolution, case.target_resolutions[0]))


@contextlib.contextmanager
def stock_grid():
    """Replace the transport's kernel by that of ott's `Grid`, as in the published recipe with ott-jax."""
    from unittest import mock

    import jax
    import jax.numpy as jnp
    from ott.geometry.grid import Grid

    from cryotrans_jax.core import transport

    def stock(shape, voxel, epsilon, window):
        return Grid(x=[jnp.arange(n) * voxel[k] for k, n in enumerate(shape)], epsilon=epsilon)

    jax.clear_caches()  # the caches cannot distinguish programs with the two kernels
    with mock.patch.object(transport, "VoxelGrid", stock):
        yield
    jax.clear_caches()


def narrowest_window(a, b, voxel, epsilon: float) -> tuple[int | None, float]:
    """Narrowest window of the transport whose error bound is small enough for the training loop, and that bound.

    Windows are 7, 15, 23, ... voxels, which use all slices of a group; None stands for the whole grid.
    """
    import jax

    from cryotrans_jax.core.transport import w2_and_error
    from cryotrans_jax.fit.train import WINDOW_ERROR

    bounded = jax.jit(w2_and_error, static_argnums=(3, 4, 5))
    for window in range(7, max(a.shape) - 1, 8):
        if (bound := float(bounded(a, b, voxel, epsilon, 5, window)[1])) <= WINDOW_ERROR:
            return window, bound
    return None, 0.0


def kernel() -> Rows:
    """Time one application of the log-domain kernel at epsilon 1e-4 of the box, and yield seconds and ratios."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from ott.geometry.grid import Grid
    from scipy.ndimage import gaussian_filter

    from cryotrans_jax.core.transport import VoxelGrid

    for n in FLAGS.sizes:
        smooth = gaussian_filter(np.random.default_rng(0).normal(size=(n, n, n)), n / 15)
        f = jnp.asarray(1e-3 * smooth / smooth.std(), jnp.float32).ravel()
        centres = (jnp.arange(n) + 0.5) / n
        kinds = {"stock Grid": Grid(x=[centres] * 3, epsilon=1e-4)}
        kinds |= {f"window {w or 'whole'}": VoxelGrid((n,) * 3, (1 / n,) * 3, 1e-4, w) for w in (7, 14, 28, None)}
        spent = {}
        for name, grid in kinds.items():
            apply = jax.jit(lambda f, grid=grid: grid.apply_lse_kernel(f, jnp.zeros_like(f), 1e-4)[0])
            spent[name] = seconds(apply, f)
            yield f"kernel {n}³ {name} [s]", spent[name]
            if name != "stock Grid":
                yield f"kernel {n}³ stock Grid / {name}", spent["stock Grid"] / spent[name]


def sinkhorn() -> Rows:
    """Time five iterations at full sampling with the stock Grid and our kernel; yield the errors of both.

    The stock Grid uses a cube, ours the crop to the mass and 10 voxels around it. Epsilon is 1e-4 of the cube. Errors
    are those of the potentials where there is mass, against the stock Grid in double precision.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from ott.geometry.grid import Grid
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as solvers

    from cryotrans_jax.core.grid import bounding_box
    from cryotrans_jax.core.transport import TINY, potentials
    from cryotrans_jax.fit.prepare import CROP_MULTIPLE
    from cryotrans_jax.io.files import InputError

    case, epsilon = load(), 1e-4
    least = max(case.initial.density.shape)
    side = -(-(FLAGS.cube or least) // CROP_MULTIPLE) * CROP_MULTIPLE
    if side < least:
        raise InputError(f"--cube={side} does not hold the maps, which have {least} voxels along one side")
    problem = prepare_case(in_box(case, [side] * 3), whole_box=True)
    cube, voxel = (problem.initial, problem.masses[0]), problem.voxel_size / problem.frame.edge
    low, high = bounding_box(np.maximum(*cube) > 0)
    crop = tuple(slice(max(start - 10, 0), stop + 10) for start, stop in zip(low, high, strict=True))
    solver = solvers.Sinkhorn(inner_iterations=5, min_iterations=5, max_iterations=5)

    @jax.jit
    def stock(a, b):
        a, b = jnp.maximum(a, TINY), jnp.maximum(b, TINY)
        axes = [jnp.arange(side, dtype=a.dtype) * v for v in voxel]
        out = solver(linear_problem.LinearProblem(Grid(x=axes, epsilon=epsilon), a.ravel(), b.ravel()))
        return tuple(p.reshape(a.shape) - epsilon * jnp.log(m) for p, m in ((out.f, a), (out.g, b)))

    def error(found, exact, where=()):
        """Largest difference of the potentials on the mass, in epsilon."""
        differences = [np.abs(f - e[where])[m[where] > 0] for f, e, m in zip(found, exact, cube, strict=True)]
        return max(float(d.max()) for d in differences) / epsilon

    slow = seconds(stock, *cube)
    a, b = (jnp.asarray(m[crop]) for m in cube)
    window, bound = narrowest_window(a, b, voxel, epsilon)
    ours = jax.jit(lambda a, b: potentials(a, b, voxel, epsilon, 5, window))
    fast = seconds(ours, a, b)
    theirs, found = ([np.asarray(p, np.float64) for p in pair] for pair in (stock(*cube), ours(a, b)))
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        exact = [np.asarray(p) for p in stock(*(m.astype(np.float64) for m in cube))]
    yield "sinkhorn: side of the stock Grid's cube [voxels]", side
    yield "sinkhorn: stock Grid [s]", slow
    yield "sinkhorn: ours [s]", fast
    yield "sinkhorn: stock Grid / ours", slow / fast
    yield "sinkhorn: voxels of the cube / of the crop", side**3 / a.size
    yield "sinkhorn: window [voxels]", window or max(a.shape)
    yield "sinkhorn: bound on the window's error [epsilon]", bound
    yield "sinkhorn: error of ours [epsilon]", error(found, exact, crop)
    yield "sinkhorn: error of the stock Grid in float32 [epsilon]", error(theirs, exact)


def step() -> Rows:
    """Time a training step of each stage of the default recipe, and its parts."""
    import jax

    from cryotrans_jax.fit import recipes, train

    problem = prepare_case(load())
    config = recipes.default(problem)
    params = jax.tree.map(lambda p: p[0], train.initial_state(config, 1).params)
    for name, stage in named_stages(config):
        for part, (function, argument) in parts(problem, config, stage, params).items():
            yield f"step, {name}: {part} [s]", seconds(jax.jit(jax.grad(function)), argument)


def named_stages(config) -> list[tuple[str, object]]:
    """Stages of a schedule with their names, and the alternative start if there is one."""
    stages = [(f"stage {k + 1} {stage.loss}", stage) for k, stage in enumerate(config.stages)]
    return [*stages, (f"rival {config.rival.loss}", config.rival)] if config.rival else stages


def parts(problem, config, stage, params) -> dict[str, tuple[Callable, object]]:
    """A training step and its parts, each a scalar function and the argument at which it is differentiated."""
    import jax
    import jax.numpy as jnp

    from cryotrans_jax.core import losses
    from cryotrans_jax.core.splat import splat
    from cryotrans_jax.core.transport import w2
    from cryotrans_jax.fit import train

    level, goal = one_target(train.stage_inputs(problem, stage))
    moved, nodes = jax.jit(train.carry, static_argnums=0)(config.flow, params, level)

    def put(x):
        return splat(x, level.rho, goal.volume.shape, level.corner, level.voxel)

    def compare(volume):
        if stage.loss == "w2":
            return w2(volume, goal.volume, level.voxel, stage.epsilon, stage.iterations, stage.window)
        blurred = volume if goal.blur is None else losses.blur(volume, goal.blur)
        if stage.loss == "matched":
            return losses.scale_invariant_l2(blurred, goal.volume, goal.power)
        return losses.l2(blurred, goal.volume)

    found = {
        "whole": (lambda p: train.objective(config, stage, p, level, goal)[0], params),
        "flow": (lambda p: jnp.sum(train.carry(config, p, level)[0] ** 2), params),
    }
    if stage.loss == "points":
        found["distances"] = lambda x: train.data_term(stage, x, level, goal)[0], moved
    else:
        found["splat"] = lambda x: jnp.sum(put(x) ** 2), moved
        found[{"w2": "transport", "matched": "matched L2"}.get(stage.loss, "L2")] = compare, jax.jit(put)(moved)
    if stage.rigidity:
        strain = lambda n: losses.rigidity(n, level.tetrahedra, level.edges, level.mass_fraction, stage.slip)  # noqa: E731
        found["rigidity"] = strain, nodes
    return found


def one_target(inputs: tuple) -> tuple:
    """Level of a stage, and its goal for the first target alone."""
    import jax

    return inputs[0], jax.tree.map(lambda m: m[0], inputs[1])


def program(config, stage, inputs, targets: int = 1, count: int = 5) -> tuple[Callable, float, float]:
    """Compile `count` steps of a stage.

    Args:
        config: schedule.
        stage: stage.
        inputs: inputs of the stage for one target.
        targets: number of copies of the target.
        count: number of steps in a call.

    Returns:
        The call, the seconds of its compilation, and its working memory in MiB.
    """
    import jax
    import jax.numpy as jnp

    from cryotrans_jax.fit import train

    level, goal = inputs
    goal, state = jax.tree.map(lambda m: jnp.repeat(m, targets, axis=0), goal), train.initial_state(config, targets)
    rates, powers = jnp.zeros((targets, count)), jnp.zeros(targets)
    at = jnp.int32(count), rates, powers, state.params, state.optimiser, level, goal
    spread = train.DeviceLayout(batch=1 if jax.default_backend() == "cpu" else None)
    begin = time.perf_counter()
    compiled = train.train_steps.lower(config.flow, stage.program, *at, spread).compile()
    spent = time.perf_counter() - begin
    analysis = compiled.memory_analysis()
    return lambda: compiled(*at), spent, analysis.temp_size_in_bytes / 2**20 if analysis else float("nan")


def stage_times(problem, config, label: str, targets: int = 1, count: int = 5) -> Rows:
    """Time the inputs, the compilation and a step of each stage, with the working memory of its program."""
    from cryotrans_jax.fit import train

    for name, stage in named_stages(config):
        begin = time.perf_counter()
        inputs = train.stage_inputs(problem, stage)
        making = time.perf_counter() - begin
        call, compiling, memory = program(config, stage, inputs, targets, count)
        yield f"{label} {name}: step [s]", seconds(call) / count
        yield f"{label} {name}: inputs [s]", making
        yield f"{label} {name}: compile [s]", compiling
        yield f"{label} {name}: working memory [MiB]", memory


def stages() -> Rows:
    """Time the stages of both recipes; the paper's with the whole kernel, which takes seconds a step."""
    from cryotrans_jax.fit import recipes

    case = load()
    problem = prepare_case(case)
    yield from stage_times(problem, recipes.default(problem), "default,")
    problem = prepare_case(case, whole_box=True)
    yield from stage_times(problem, paper_recipe(case, problem), "paper,", count=1)


def scaling() -> Rows:
    """Measure a step against the size of the box, the number of points and the number of targets."""
    from dataclasses import replace

    import jax
    import jax.numpy as jnp
    import numpy as np

    from cryotrans_jax.fit import recipes, train

    case = load()
    for extra in FLAGS.pads:
        larger = in_box(case, [n + extra for n in case.initial.density.shape])
        problem = prepare_case(larger)
        label = f"box {'x'.join(map(str, larger.initial.density.shape))}, default,"
        yield from steps_and_memory(stage_times(problem, recipes.default(problem), label))
    for extra in FLAGS.pads[:2]:
        larger = in_box(case, [n + extra for n in case.initial.density.shape])
        problem = prepare_case(larger, whole_box=True)
        config = paper_recipe(case, problem)
        config = replace(config, stages=tuple(replace(s, window=14 if s.loss == "w2" else None) for s in config.stages))
        label = f"box {'x'.join(map(str, larger.initial.density.shape))}, paper with window 14,"
        yield from steps_and_memory(stage_times(problem, config, label, count=1))
    problem = prepare_case(case)
    config = recipes.default(problem)
    stage = next(stage for _, stage in reversed(named_stages(config)) if stage.loss == "w2")
    level, goal = one_target(train.stage_inputs(problem, stage))
    x, params = np.asarray(level.x), jax.tree.map(lambda p: p[0], train.initial_state(config, 1).params)
    gradient = jax.jit(jax.grad(lambda p, level: train.objective(config, stage, p, level, goal)[0]))
    for number in FLAGS.points:
        rows = np.arange(number) % len(x)
        yield (
            f"{number} points: gradient of a W2 step [s]",
            seconds(gradient, params, level._replace(x=level.x[rows], rho=jnp.full(number, 1 / number))),
        )
    for number in FLAGS.targets:
        yield from steps_and_memory(stage_times(problem, config, f"{number} targets, default,", number))


def steps_and_memory(rows: Rows) -> Rows:
    """Select the rows of steps and memory."""
    return (row for row in rows if "step" in row[0] or "memory" in row[0])


def in_box(case, shape):
    """Crop or pad the maps of a case to a box of another shape about the same centre."""
    from dataclasses import replace

    import numpy as np

    from cryotrans_jax.io.maps import Map

    def put(map_):
        low = [(n - m) // 2 for n, m in zip(shape, map_.density.shape, strict=True)]
        out = np.zeros(shape, np.float32)
        there = [slice(max(at, 0), max(at, 0) + m) for at, m in zip(low, map_.density.shape, strict=True)]
        here = [slice(max(-at, 0), max(-at, 0) + n) for at, n in zip(low, shape, strict=True)]
        out[tuple(there)] = map_.density[tuple(here)]
        return Map(out, map_.voxel_size, map_.origin - low * map_.voxel_size)

    return replace(case, initial=put(case.initial), targets=[put(t) for t in case.targets])


def recipes() -> Rows:
    """Time each recipe, and ours to the final FSC of the paper's; see the top of this file."""
    from dataclasses import replace

    import jax
    import jax.numpy as jnp
    import numpy as np

    from cryotrans_jax.fit import recipes as schedules
    from cryotrans_jax.fit import train

    case = load()
    problem = prepare_case(case, whole_box=True)
    published = paper_recipe(case, problem)
    config = replace(published, stages=train.scale_steps(published.stages, FLAGS.steps))
    with stock_grid():
        programs = [program(config, s, train.stage_inputs(problem, s), count=1) for s in config.stages]
        if FLAGS.paper_by_stock:
            fitted = timeline(problem, config)[-1][1]
            curve = checkpoints(case, problem, config)
    if not FLAGS.paper_by_stock:
        level, goal = one_target(train.stage_inputs(problem, config.stages[0]))
        window, _ = narrowest_window(jnp.asarray(problem.initial), goal.volume, level.voxel, config.stages[0].epsilon)
        within = tuple(replace(s, window=window if s.loss == "w2" else None) for s in config.stages)
        begin = time.perf_counter()
        curve = checkpoints(case, problem, replace(config, stages=within))
        yield "recipe paper: the same with our kernel, FSC curve included [s]", time.perf_counter() - begin
    aim = curve[-1][1]
    yield "recipe paper: FSC = 0.5 at the end [Å]", aim
    yield "recipe paper: FSC = 0.5 at its best [Å]", min(fsc for _, fsc in curve)

    problem = prepare_case(case)
    ours = schedules.default(problem)
    ours = replace(ours, stages=train.scale_steps(ours.stages, FLAGS.steps))
    curve, fits = checkpoints(case, problem, ours), {}
    jax.clear_caches()
    # In turns, so that other work on this machine slows both down equally.
    steps = [[seconds(call) for call, _, _ in programs]]
    for when in ("compilation included", "compiled before"):
        fits[when] = dict(timeline(problem, ours))
        steps.append([seconds(call) for call, _, _ in programs])
    by_stock = 0.0
    for number, (stage, spent) in enumerate(zip(config.stages, np.median(steps, axis=0), strict=True)):
        label = f"recipe paper, stage {number + 1} {stage.loss}:"
        yield f"{label} step with the stock Grid [s]", float(spent)
        yield f"{label} working memory with the stock Grid [MiB]", programs[number][2]
        by_stock += stage.steps * float(spent)
    by_stock = fitted if FLAGS.paper_by_stock else by_stock
    yield f"recipe paper: {sum(s.steps for s in config.stages)} steps with the stock Grid [s]", by_stock
    reached = next((at for at, fsc in curve if fsc <= aim), None)
    for when, spent in fits.items():
        yield f"recipe default, {when}: fit [s]", max(spent.values())
        if reached:
            yield f"recipe default, {when}: to the paper recipe's final FSC [s]", spent[reached]
            yield f"recipes, default {when}: paper / default, time to that FSC", by_stock / spent[reached]
    yield "recipe default: FSC = 0.5 at the end [Å]", curve[-1][1]
    yield "recipe default: reaches the paper recipe's final FSC (1: yes)", float(reached is not None)


def timeline(problem, config) -> list[tuple[tuple[int, int], float]]:
    """Seconds from the start of a whole fit, with one field for all, at which each (stage, step) was done."""
    from cryotrans_jax.fit import train

    begin, marks = time.perf_counter(), []

    def note(stage, step, losses):
        marks.append(((stage, step), time.perf_counter() - begin))

    train.fit(problem, config, progress=note)
    return marks


def checkpoints(case, problem, config) -> list[tuple[tuple[int, int], float]]:
    """Resolution (Å) at FSC = 0.5 of the pulled-back map, by (stage, step), twenty times along a fit."""
    import jax

    from cryotrans_jax.fit import train, trajectory
    from cryotrans_jax.scores import metrics

    before = [sum(s.steps for s in config.stages[:k]) for k in range(len(config.stages) + 1)]
    state, curve = train.initial_state(config, 1), []
    ended, done = False, 0
    while not ended:
        stop = done + max(before[-1] // 20, 1)
        reached = lambda stage, step, _, stop=stop: before[stage] + step >= stop  # noqa: E731
        state, _ = train.fit(problem, config, state, reached)
        ended = before[state.stage] + state.step < stop  # a stage may stop early
        done = before[state.stage] + state.step
        params = jax.tree.map(lambda p: p[0], state.params)
        threshold = problem.report["initial"]["threshold"]
        map_ = next(trajectory.pull_back(config, params, problem.frame, case.initial, threshold, [1.0]))
        fsc = metrics.model_map_fsc(map_, case.references[0], case.initial_resolution)
        curve.append(((state.stage, state.step), metrics.resolution_at(*fsc, 0.5)))
    return curve


def device() -> Rows:
    """Measure the paper's step and the default recipe at --side³ with their floors, and several targets against one."""
    from dataclasses import replace

    from cryotrans_jax.fit import recipes as schedules
    from cryotrans_jax.fit import train

    from . import floor

    case = in_box(load(), [FLAGS.side] * 3)
    operations, bandwidth, source = floor.peaks(FLAGS.peak_flops, FLAGS.peak_bandwidth)
    yield f"device: operations a second, {source}", operations
    yield f"device: bytes a second, {source}", bandwidth
    problem = prepare_case(case, whole_box=True)
    config = paper_recipe(case, problem)
    config = replace(config, stages=config.stages[:1])
    yield "device: points of mass", float((problem.initial > 0).sum())
    for row in with_floor(problem, config, "device: paper,", (operations, bandwidth)):
        yield row
        if row[0].endswith("step [s]"):
            yield "device: published step, 64.8 ms at 160³ / ours", PUBLISHED_STEP / row[1]
    problem = prepare_case(case)
    config = schedules.default(problem)
    yield from with_floor(problem, config, "device: default,", (operations, bandwidth))
    short = replace(config, stages=train.scale_steps(config.stages, FLAGS.device_steps))
    cold, warm = cold_and_warm(lambda: timeline(problem, short))
    yield "device: default, nothing compiled: fit [s]", cold
    yield "device: default, programs from the cache: fit [s]", warm
    number = FLAGS.device_targets
    for name, stage in named_stages(config):
        inputs = train.stage_inputs(problem, stage)
        one, several = (seconds(program(config, stage, inputs, n)[0]) for n in (1, number))
        yield f"device: default, {name}: {number} targets / one", several / one


def with_floor(problem, config, label: str, peaks: tuple[float, float]) -> Rows:
    """Time the stages, with the floor of a step by XLA's count of operations and bytes, and the ratio to it."""
    import jax

    from cryotrans_jax.fit import train

    from . import floor

    params = jax.tree.map(lambda p: p[0], train.initial_state(config, 1).params)
    rows = dict(stage_times(problem, config, label))
    for name, stage in named_stages(config):
        loss = lambda p, level, goal, stage=stage: train.objective(config, stage, p, level, goal)[0]  # noqa: E731
        least = floor.cost(jax.grad(loss), params, *one_target(train.stage_inputs(problem, stage)))
        rows[f"{label} {name}: operations a step"] = least.operations
        rows[f"{label} {name}: bytes a step"] = least.bytes
        rows[f"{label} {name}: floor [s]"] = least.seconds(peaks)
        rows[f"{label} {name}: step / floor"] = rows[f"{label} {name}: step [s]"] / least.seconds(peaks)
    yield from rows.items()


def cold_and_warm(fit: Callable) -> tuple[float, float]:
    """Seconds of a fit with nothing compiled, and of one with its programs in JAX's cache on disk, as in a rerun."""
    import tempfile

    import jax
    from jax.experimental.compilation_cache import compilation_cache

    names = ("jax_enable_compilation_cache", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before, spent = {name: getattr(jax.config, name) for name in names}, []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, value in zip(names, (True, folder, 0.0), strict=True):
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            for _ in range(2):
                jax.clear_caches()
                begin = time.perf_counter()
                fit()
                spent.append(time.perf_counter() - begin)
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
    return spent[0], spent[1]


def command() -> None:
    """Run the command with the flags of the command line."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
