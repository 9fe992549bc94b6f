"""The benchmark: rows of all sections, comparison with an earlier run, and errors."""

import inspect
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rounding
from ott.geometry.grid import Grid

from cryotrans_jax.core import transport
from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.fit import devices, recipes, schedule, supervise, terms
from cryotrans_jax.fit.better_start import KeepBetterStart
from cryotrans_jax.fit.stage import Config, Stage
from experiments.studies import benchmark, benchmark_kernels, floor

pytestmark = pytest.mark.slow  # a minute of compilations
TINY = (
    "--voxel_size=4",
    "--repeats=1",
    "--sizes=8",
    "--pads=0",
    "--points=100",
    "--targets=2",
    "--steps=0.25",
    "--side=24",
    "--device_targets=2",
    "--many_devices=2",
    "--many_seconds=0.1",
)


SMALL = Field(Velocity(width=4, depth=1), 2)


def default(problem, seed=0):
    """One stage of each kind, of a network that compiles in a second."""
    unit = problem.voxel_size.min() / problem.frame.edge
    transport = terms.W2(float(4 * unit**2), iterations=1, window=2)
    schedule = (
        Stage((terms.Correspondences(), terms.Rigidity(1.0)), 4, 2e-3, 2e-3, bin=2, sampling=2),
        KeepBetterStart(Stage((transport,), 4, 2e-3, 2e-3, bin=2, sampling=2)),
        Stage((terms.Matched(blur=2.0), terms.Rigidity(0.01)), 4, 2e-3, 2e-3, spacing=8.0),
    )
    return Config(schedule, SMALL, seed=seed)


def paper(problem, seed=0, bin=1, resolutions=None):
    return Config((Stage((terms.W2(0.01, iterations=1),), 4, 1e-3, 1e-3),), SMALL)


@partial(jax.jit, static_argnames="layout")
def train_steps(count, rates, left, params, optimiser, batch, layout=devices.DeviceLayout()):  # noqa: B008
    """A program that leaves everything as it is, instead of a fit's, which takes seconds to compile."""
    return params, optimiser, jnp.zeros(rates.shape), jnp.zeros(len(rates))


def test_the_stand_in_takes_what_the_program_takes():
    assert list(inspect.signature(train_steps).parameters) == list(inspect.signature(devices.train_steps).parameters)


@pytest.fixture(scope="module")
def first(job, tmp_path_factory):
    """The folder of a run of all sections."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "default", default)
        patch.setattr(recipes, "paper", paper)
        for module in (devices, schedule, supervise):
            patch.setattr(module, "train_steps", train_steps)
        status, out, error = job(
            "benchmark", *TINY, f"--sections={','.join(benchmark.SECTIONS)}", f"--out_dir={folder}"
        )
    assert (status, error) == (0, "")
    (folder / "printed").write_text(out)
    return folder


@pytest.fixture(scope="module")
def rows(first):
    return json.loads((first / "benchmark.json").read_text())["rows"]


def test_each_section_gives_its_rows(rows):
    promised = (
        "kernel 8³ stock Grid / window 7",
        "sinkhorn: stock Grid / ours",
        *(f"step, rival w2: {part} [s]" for part in ("whole", "flow", "splat", "transport")),
        *(f"step, stage 1 points: {part} [s]" for part in ("whole", "flow", "distances", "rigidity")),
        *(f"step, stage 2 matched: {part} [s]" for part in ("whole", "flow", "splat", "matched L2", "rigidity")),
        *(
            f"default, stage 2 matched: {what}"
            for what in ("step [s]", "inputs [s]", "compile [s]", "working memory [MiB]")
        ),
        "paper, stage 1 w2: step [s]",
        "100 points: gradient of a W2 step [s]",
        "2 targets, default, stage 1 points: step [s]",
        "recipe paper, stage 1 w2: step with the stock Grid [s]",
        "recipe default, compilation included: fit [s]",
        "many: one process of one target, share of that",
        "many: 2 devices of one process, a target each, share of that",
        "many: two processes of one target, share of that",
        "device: paper, stage 1 w2: step / floor",
        "device: paper, cropped, stage 1 w2: step / floor",
        "device: default, stage 2 matched: floor [s]",
        "device: default, programs from the cache: fit [s]",
        "device: default, stage 2 matched: 2 targets / one",
        *(f"{section}: peak memory of the host so far [MiB]" for section in benchmark.SECTIONS),
    )
    assert not set(promised) - set(rows)
    assert any(label.startswith("box ") and "paper" in label for label in rows)
    assert all(np.isfinite(value) and value >= 0 for value in rows.values())


def test_ratios_are_those_of_the_times(rows):
    for ratio, above, below in (
        ("kernel 8³ stock Grid / window 7", "kernel 8³ stock Grid [s]", "kernel 8³ window 7 [s]"),
        ("sinkhorn: stock Grid / ours", "sinkhorn: stock Grid [s]", "sinkhorn: ours [s]"),
        *(
            (f"device: {name}: step / floor", f"device: {name}: step [s]", f"device: {name}: floor [s]")
            for name in (
                "paper, stage 1 w2",
                "default, stage 1 points",
                "default, stage 2 matched",
                "default, rival w2",
            )
        ),
    ):
        assert rows[ratio] == pytest.approx(rows[above] / rows[below])


def test_the_published_steps_count_by_the_stock_grids_time(rows):
    total = rows["recipe paper: 1 steps with the stock Grid [s]"]  # a quarter of four
    assert total == pytest.approx(rows["recipe paper, stage 1 w2: step with the stock Grid [s]"])
    if rows["recipe default: reaches the paper recipe's final FSC (1: yes)"]:
        for when in ("compilation included", "compiled before"):
            spent = rows[f"recipe default, {when}: to the paper recipe's final FSC [s]"]
            assert rows[f"recipes, default {when}: paper / default, time to that FSC"] == pytest.approx(total / spent)


def test_both_kernels_give_the_potentials_of_double_precision(rows):
    assert rows["sinkhorn: error of ours [epsilon]"] < 1e-3
    assert rows["sinkhorn: error of the stock Grid in float32 [epsilon]"] < 1e-2  # costs by differences of squares


def test_the_table_holds_every_row(first, rows):
    table = (first / "benchmark.md").read_text().splitlines()
    assert table[:2] == ["| what | value | earlier | ratio |", "|---|---|---|---|"]
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[2:]] == list(rows)
    parts = (first / "run.md").read_text().splitlines()
    printed = (first / "printed").read_text().splitlines()
    assert table[2:] == [line for line in printed if line not in parts]
    assert parts[0] == "| part | cold, wall [s] | cold, CPU [s] | warm, wall [s] | warm, CPU [s] |" and len(parts) > 10


def test_a_baseline_is_compared_with(job, tmp_path):
    earlier = {"kernel 8³ stock Grid [s]": 2.0, "gone [s]": 1.0}
    (tmp_path / "earlier.json").write_text(json.dumps({"rows": earlier}))
    baseline = f"--baseline={tmp_path / 'earlier.json'}"
    status, out, _ = job("benchmark", *TINY, "--sections=kernel", baseline, f"--out_dir={tmp_path / 'out'}")
    assert status == 0
    now = json.loads((tmp_path / "out" / "benchmark.json").read_text())["rows"]["kernel 8³ stock Grid [s]"]
    cells = next(line for line in out.splitlines() if line.startswith("| kernel 8³ stock Grid [s]")).split(" | ")
    assert cells[2] == "2" and cells[3] == f"{now / 2:.2f} |"
    other = next(line for line in out.splitlines() if line.startswith("| kernel 8³ window 7 [s]")).split("|")
    assert [cell.strip() for cell in other[3:]] == ["", "", ""]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--sections=kernel,speed"], "there is no section 'speed'"),
        (["--sizes=8,x"], "--sizes=8,x: 'x' is not a whole number from 8"),
        (["--points=-3"], "--points=-3: '-3' is not from 1"),
        (["--baseline=FOLDER/missing.json"], "missing.json"),
        (["--baseline=FOLDER/text.json"], "text.json is no benchmark"),
        (["--data_dir=FOLDER", "--sections=step"], "no FOLDER/adk/pair.json"),
        (["--cube=8", "--sections=sinkhorn"], "--cube=8 does not hold the maps"),
        (["--repeats=0"], "repeats"),
        (["--out_dir=FOLDER/held"], "holds a benchmark"),
    ],
)
def test_bad_input_ends_with_a_sentence(job, tmp_path, arguments, said):
    (tmp_path / "text.json").write_text("none")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "benchmark.json").write_text("{}")
    given = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    status, _, error = job("benchmark", f"--out_dir={tmp_path / 'out'}", *given)
    assert status == 2
    assert said.replace("FOLDER", str(tmp_path)) in error and error.count("\n") == 1


def test_the_stock_grid_takes_the_place_of_ours_and_gives_the_same():
    voxel, f = jnp.array([0.1, 0.12, 0.15]), jnp.asarray(np.random.default_rng(0).normal(0, 0.1, 60), jnp.float32)

    def applied():
        geometry = transport.VoxelGrid((4, 5, 3), voxel, 0.02, None)
        return type(geometry), jax.jit(lambda f: geometry.apply_lse_kernel(f, jnp.zeros_like(f), 0.02)[0])(f)

    kind, ours = applied()
    with benchmark_kernels.stock_grid():
        stock_kind, stock = applied()
    assert stock_kind is Grid and kind is not Grid and applied()[0] is kind
    np.testing.assert_allclose(ours, stock, atol=rounding(0.5, 50))


def test_a_loops_body_counts_as_often_as_it_runs():
    x = jnp.ones((16, 16))

    def products(rounds):
        return floor.cost(lambda x: jax.lax.fori_loop(0, rounds, lambda _, y: y @ x, x), x)

    assert products(1).operations == pytest.approx(2 * 16**3, rel=0.01)
    assert products(30).operations == pytest.approx(30 * products(1).operations, rel=0.01)  # and the loop's own counter
    twice = floor.cost(
        lambda x: jax.lax.fori_loop(0, 5, lambda _, y: jax.lax.fori_loop(0, 4, lambda _, z: z @ x, y), x), x
    )
    assert twice.operations == pytest.approx(20 * products(1).operations, rel=0.01)


def test_the_floor_is_set_by_the_scarcer_of_rate_and_bandwidth():
    assert floor.Cost(6.0, 8.0).seconds((2.0, 1.0)) == 8.0
    assert floor.Cost(6.0, 8.0).seconds((1.0, 2.0)) == 6.0


def test_peak_rates_are_as_given_or_measured():
    assert floor.peaks(2.0, 3.0)[:2] == (2.0, 3.0)
    operations, bandwidth, source = floor.peaks(None, 3.0)
    assert operations > 1e8 and bandwidth == 3.0 and source
