"""Measures where time goes, on this machine, in one run.

python -m experiments.benchmark --out_dir=runs/benchmark
python -m experiments.benchmark --sections=kernel,step --baseline=runs/earlier/benchmark.json

Sections: kernel (one application against ott-jax's stock Grid), sinkhorn (five iterations on a real problem, cropped
and windowed, against the stock Grid on the whole box), step (one training step by part), stages (compile and step time
of each recipe's stages), scaling (box, targets), recipes (time to the same FSC).
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

from absl import flags

from experiments.main import run

FLAGS = flags.FLAGS
SECTIONS = ("kernel", "sinkhorn", "step", "stages", "scaling", "recipes")


def define_flags() -> None:
    """Nothing; the flags of this job are there."""
    flags.DEFINE_multi_enum(
        "sections", None, SECTIONS, "What to measure; everything if not given.", module_name=__name__
    )
    flags.DEFINE_string("out_dir", "runs/benchmark", "Folder for benchmark.json and benchmark.md.")
    flags.DEFINE_string("baseline", None, "A benchmark.json of an earlier run to compare with.")
    flags.DEFINE_string("data_dir", None, "Folder of pairs (see experiments.validate); the built-in pair if not given.")
    flags.DEFINE_string("pair", "adk", "The pair in --data_dir.")
    flags.DEFINE_float("resolution", 7.0, "Resolution of the target map, Å.", lower_bound=0.1)
    flags.DEFINE_integer("repeats", 7, "Times that each thing is timed; the median counts.", lower_bound=1)
    flags.DEFINE_float("paper_steps", 1.0, "Multiplies the paper recipe's number of steps.", lower_bound=1e-4)
    flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")


def main() -> None:
    """Nothing; prints and writes the table, anew after every section."""
    from cryotrans_jax.files import InputError
    from experiments.results import write_json

    out_dir = Path(FLAGS.out_dir)
    if (out_dir / "benchmark.json").exists() and not FLAGS.overwrite:
        raise InputError(f"{out_dir} holds a benchmark: give another --out_dir, or --overwrite to replace it")
    earlier = json.loads(Path(FLAGS.baseline).read_text())["rows"] if FLAGS.baseline else {}
    out_dir.mkdir(parents=True, exist_ok=True)
    rows: dict[str, float] = {}
    for name in FLAGS.sections or SECTIONS:
        for label, value in globals()[name]():
            rows[label] = value
            print(line(label, value, earlier), flush=True)
        write_json(out_dir / "benchmark.json", {"machine": machine(), "rows": rows})
    text = "| what | value | earlier | ratio |\n|---|---|---|---|\n" + "\n".join(
        line(k, v, earlier) for k, v in rows.items()
    )
    (out_dir / "benchmark.md").write_text(text + "\n")


def line(label: str, value: float, earlier: dict[str, float]) -> str:
    """A row of the table in Markdown; ratio is now over then."""
    before = earlier.get(label)
    compared = f"{before:.4g} | {value / before:.2f}" if before else " | "
    return f"| {label} | {value:.4g} | {compared} |"


def machine() -> dict:
    """What was measured on, and with what."""
    import os

    import jax

    from experiments.results import PACKAGES, version

    device = jax.devices()[0]
    return {"device": device.device_kind, "devices": jax.device_count(), "cores": os.cpu_count()} | {
        name: version(name) for name in PACKAGES
    }


def seconds(call: Callable, *arguments) -> tuple[float, float]:
    """Median seconds of a call once compiled, and those of the first call beyond that (compilation)."""
    import jax
    import numpy as np

    def timed():
        begin = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        return time.perf_counter() - begin

    first = timed()
    median = float(np.median([timed() for _ in range(FLAGS.repeats)]))
    return median, first - median


def load():
    """The case that is measured on: the built-in pair, or a pair from --data_dir."""
    from cryotrans_jax import atoms
    from experiments.demo import hinge_pair
    from experiments.results import Case
    from experiments.validate import load_pair

    if FLAGS.data_dir:
        return load_pair(Path(FLAGS.data_dir) / FLAGS.pair, FLAGS.resolution)
    start, end = hinge_pair()
    grid = atoms.common_grid([start, end], 1.0, 3.0)
    maps = [atoms.simulate_map(m, *grid, r) for m, r in ((start, 3.0), (end, FLAGS.resolution))]
    return Case(maps[0], [maps[1]], {}, ["built-in"], 3.0, [FLAGS.resolution], start, [end])


def prepared(whole_box: bool = False):
    """The case, its problem, and the default recipe's stages for it."""
    from cryotrans_jax import prepare, recipes

    case = load()
    problem = prepare.prepare(case.initial, case.targets, whole_box=whole_box)
    return case, problem, recipes.default(problem)


def kernel():
    """Rows: one application of the log-domain kernel at epsilon 1e-4 of the box, in seconds, and ratios."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from ott.geometry.grid import Grid
    from scipy.ndimage import gaussian_filter

    from cryotrans_jax.transport import VoxelGrid

    for n in (44, 64, 88):
        smooth = gaussian_filter(np.random.default_rng(0).normal(size=(n, n, n)), n / 15)
        f = jnp.asarray(1e-3 * smooth / smooth.std(), jnp.float32).ravel()
        centres = (jnp.arange(n) + 0.5) / n
        kinds = {"stock Grid": Grid(x=[centres] * 3, epsilon=1e-4)}
        kinds |= {f"window {w or 'whole'}": VoxelGrid((n,) * 3, (1 / n,) * 3, 1e-4, w) for w in (8, 20, None)}
        stock = None
        for name, grid in kinds.items():
            apply = jax.jit(lambda f, grid=grid: grid.apply_lse_kernel(f, jnp.zeros_like(f), 1e-4)[0])
            median, _ = seconds(apply, f)
            yield f"kernel {n}³ {name} [s]", median
            stock = stock or median
            if median is not stock:
                yield f"kernel {n}³ stock Grid / {name}", stock / median


def sinkhorn():
    """Rows: five Sinkhorn iterations on the case at its own sampling, and how far the potentials on the mass differ."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from ott.geometry.grid import Grid
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as solvers

    from cryotrans_jax.transport import TINY, potentials, window_for

    case, whole, _ = prepared(whole_box=True)
    _, crop, _ = prepared()
    epsilon = 1e-4
    side = max(whole.initial.shape)
    pad = [(0, side - n) for n in whole.initial.shape]
    cube = [jnp.maximum(jnp.asarray(np.pad(m, pad)), TINY) for m in (whole.initial, whole.masses[0])]
    solver = solvers.Sinkhorn(inner_iterations=5, min_iterations=5, max_iterations=5)
    grid = Grid(x=[(jnp.arange(side) + 0.5) / side] * 3, epsilon=epsilon)
    stock = jax.jit(lambda a, b: solver(linear_problem.LinearProblem(grid, a.ravel(), b.ravel())).f)
    slow, _ = seconds(stock, *cube)
    # The same epsilon in Å² on the crop, in whose unit box lengths are larger.
    scale = whole.frame.edge / crop.frame.edge
    size = crop.voxel_size / crop.frame.edge
    motion = float(np.percentile(np.linalg.norm(displacement(case), axis=1), 100)) / crop.frame.edge
    window = window_for(motion, float(size.min()), epsilon * scale**2)
    ours = jax.jit(lambda a, b: potentials(a, b, size, epsilon * scale**2, 5, window)[0])
    a, b = jnp.asarray(crop.initial), jnp.asarray(crop.masses[0])
    fast, _ = seconds(ours, a, b)
    yield f"sinkhorn stock Grid {side}³ [s]", slow
    yield f"sinkhorn crop {'x'.join(map(str, crop.initial.shape))} window {window} [s]", fast
    yield "sinkhorn stock / ours", slow / fast
    reference = np.asarray(stock(*cube)).reshape((side,) * 3) - epsilon * np.log(np.asarray(cube[0]))
    inside = np.argwhere(crop.initial > 0)
    found = np.asarray(ours(a, b))[tuple(inside.T)] / scale**2
    yield (
        "sinkhorn largest difference on the mass [epsilon]",
        float(np.abs(found - reference[tuple((inside + crop.start).T)]).max() / epsilon),
    )


def displacement(case):
    """Displacements (n, 3) in Å of the CA atoms between the case's two models."""
    from cryotrans_jax.atoms import common_ca

    start, end = common_ca(case.model, case.references[0])
    return end - start


def step():
    """Rows: seconds of a training step of the default recipe's first and last stage, and of its parts."""
    import jax

    from cryotrans_jax import train

    _, problem, config = prepared()
    params = jax.tree.map(lambda p: p[0], train.start(config, 1).params)
    for stage in (config.stages[0], config.stages[-1]):
        for name, (function, argument) in parts(problem, config, stage, params).items():
            yield f"step {stage.loss} bin {stage.bin} {name} [s]", seconds(jax.jit(jax.grad(function)), argument)[0]


def parts(problem, config, stage, params) -> dict[str, tuple[Callable, object]]:
    """A training step and its parts, each a scalar function and the argument that it is differentiated at."""
    import jax
    import jax.numpy as jnp

    from cryotrans_jax import losses, train
    from cryotrans_jax.splat import splat
    from cryotrans_jax.transport import w2

    level, targets, blur = train.stage_inputs(problem, stage)
    target, kernel = targets[0], None if blur is None else jax.tree.map(lambda m: m[0], blur)
    moved, nodes = train.carry(config, params, level)

    def put(x):
        return splat(x, level.rho, target.shape, level.corner, level.voxel)

    def compare(volume):
        if stage.loss == "w2":
            return w2(volume, target, level.voxel, stage.epsilon, stage.iterations, stage.window)
        return losses.l2(losses.blur(volume, kernel) if kernel else volume, target)

    found = {
        "whole": (lambda p: train.objective(config, stage, p, level, target, kernel)[0], params),
        "flow": (lambda p: jnp.sum(train.carry(config, p, level)[0] ** 2), params),
        "splat": (lambda x: jnp.sum(put(x) ** 2), moved),
        "transport" if stage.loss == "w2" else "matched L2": (compare, put(moved)),
    }
    if stage.rigidity:
        found["rigidity"] = (lambda n: losses.rigidity(n, level.tetrahedra, level.edges, level.share), nodes)
    return found


def stage_times(problem, config, label: str, targets: int = 1, count: int = 5):
    """Rows: seconds of a step and of the compilation of each stage, with the number of points that the network sees."""
    import jax.numpy as jnp

    from cryotrans_jax import train

    for number, stage in enumerate(config.stages):
        inputs = train.stage_inputs(problem, stage)
        state = train.start(config, targets)
        start = jnp.zeros(25), jnp.int32(count), state.params, state.optimiser
        median, compile_ = seconds(train.train_steps, config.flow, stage.program, *start, *inputs)
        points = inputs[0].x.shape[0] if inputs[0].lattice is None else inputs[0].lattice.nodes.shape[0]
        name = f"{label} stage {number + 1} {stage.loss} bin {stage.bin}, {points} points in the flow"
        yield f"{name}: step [s]", median / count
        yield f"{name}: compile [s]", compile_


def stages():
    """Rows: stage_times of both recipes."""
    from cryotrans_jax import recipes

    _, problem, config = prepared()
    yield from stage_times(problem, config, "default")
    _, problem, _ = prepared(whole_box=True)
    yield from stage_times(problem, recipes.paper(problem), "paper")


def scaling():
    """Rows: seconds of a step of the default recipe for larger boxes about the same molecule, and for more targets."""
    import numpy as np

    from cryotrans_jax import prepare, recipes
    from cryotrans_jax.maps import Map

    case = load()
    for extra in (0, 32, 96):
        maps = [Map(np.pad(m.density, extra // 2), m.voxel_size, m.origin - extra // 2 * m.voxel_size) for m in
                (case.initial, case.targets[0])]  # fmt: skip
        problem = prepare.prepare(maps[0], maps[1:])
        label = f"default, box {'x'.join(map(str, maps[0].density.shape))},"
        yield from (row for row in stage_times(problem, recipes.default(problem), label) if "compile" not in row[0])
    for number in (1, 2, 4, 8):
        problem = prepare.prepare(case.initial, case.targets * number)
        rows = stage_times(problem, recipes.default(problem), f"default, {number} targets,", number)
        yield from (row for row in rows if "compile" not in row[0])


def recipes():
    """Rows: seconds of each recipe, compilation included, and of ours to the FSC at which the paper's ends."""
    import jax

    from cryotrans_jax import metrics, prepare, train, trajectory
    from cryotrans_jax import recipes as schedules

    case = load()
    curves = {}
    for name in ("paper", "default"):
        problem = prepare.prepare(case.initial, case.targets, whole_box=name == "paper")
        config = schedules.RECIPES[name](problem)
        if name == "paper":
            config = train.Config(**{**vars(config), "stages": train.scaled(config.stages, FLAGS.paper_steps)})
        state, spent, curve = train.start(config, 1), 0.0, []
        total = sum(s.steps for s in config.stages)
        while (done := sum(s.steps for s in config.stages[: state.stage]) + state.step) < total:
            begin = time.perf_counter()
            stop = done + max(total // 20, 25)
            before = [sum(s.steps for s in config.stages[:k]) for k in range(len(config.stages))]
            reached = lambda stage, step, _, stop=stop, before=before: before[stage] + step >= stop  # noqa: E731
            state, _ = train.fit(problem, config, state, reached)
            spent += time.perf_counter() - begin
            params = jax.tree.map(lambda p: p[0], state.params)
            level = problem.report["initial"]["threshold"]
            map_ = next(trajectory.pull_back(config, params, problem.frame, case.initial, level, [1.0]))
            fsc = metrics.resolution_at(*metrics.model_map_fsc(map_, case.references[0], 3.0), 0.5)
            curve.append((spent, fsc))
        curves[name] = curve
        yield f"recipe {name}: fit [s]", spent
        yield f"recipe {name}: FSC = 0.5 at the end [Å]", curve[-1][1]
    aim = curves["paper"][-1][1]
    reached = [spent for spent, fsc in curves["default"] if fsc <= aim]
    if reached:
        yield "recipe default: to the paper recipe's final FSC [s]", reached[0]
        yield "recipes: paper / default, time to that FSC", curves["paper"][-1][0] / reached[0]


if __name__ == "__main__":
    define_flags()
    run(main)
