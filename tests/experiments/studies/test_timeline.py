"""The timeline of a command, and the guard against a run that becomes slower."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.studies import benchmark_run
from experiments.studies.timeline import Timeline, part_of

BASELINE = Path(__file__).parents[2] / "reference/speed.json"


@pytest.mark.parametrize(
    ("module", "function", "part"),
    [
        ("cryotrans_jax.motion.docking", "turned", "docking"),
        ("cryotrans_jax.fit.bodies", "find_bodies", "rigid bodies"),
        ("cryotrans_jax.fit.bodies", "redraw_borders", "borders"),
        ("experiments.frames", "write_models", "models"),
        ("jax._src.compiler", "backend_compile_and_load", "programs compiled"),
        ("cryotrans_jax.density.overlap", "score", None),  # serves alignment and docking
        ("numpy", "sum", None),
    ],
)
def test_functions_belong_to_the_part_of_the_run_that_is_named_most_closely(module, function, part):
    assert part_of(module, function) == part


def test_time_counts_for_the_innermost_function_that_belongs_to_a_part():
    inner = {"__name__": "cryotrans_jax.density.overlap"}
    outer = {"__name__": "cryotrans_jax.motion.docking"}
    exec("import sys\ndef score(): return sys._getframe()", inner)
    exec("def turned(score): return score()", outer)
    timeline = Timeline()
    assert timeline.part_of_frame(outer["turned"](inner["score"])) == "docking"
    assert timeline.part_of_frame(sys._getframe()) == "other"


def test_a_command_runs_as_it_is_and_its_time_is_recorded(tmp_path):
    out = tmp_path / "timeline.json"
    command = [
        sys.executable,
        "-m",
        "experiments.studies.timeline",
        str(out),
        "experiments.simulate",
        "--model=none.pdb",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    alone = subprocess.run([sys.executable, "-m", *command[4:]], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (alone.returncode, alone.stderr)
    found = json.loads(out.read_text())
    assert found["peak"] > 2**23
    assert 0 < found["wall"]["import"] <= sum(found["wall"].values())


def test_the_parts_of_a_run_become_one_table():
    wall, cpu = {"steps": 3.0, "import": 1.0}, {"steps": 5.0, "import": 1.0}
    programs = [
        {"program": "jit(f)", "what": "compiled", "seconds": 2.0},
        {"program": "g", "what": "traced", "seconds": 0.1},
    ]
    found = {"wall": wall, "cpu": cpu, "peak": 2**30, "programs": programs, "counts": {"cache_misses": 7}}
    rows = dict(benchmark_run.rows_of(found, "cold"))
    assert rows["run, cold: all, CPU [s]"] == 6
    assert rows["run, cold: programs, cache misses"] == 7
    assert rows["run, cold: jit(f) compiled [s]"] == 2
    assert not [label for label in rows if " g " in label]
    lines = benchmark_run.table(rows).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| all", "| steps", "| import"]
    assert lines[3] == "| steps | 3.0 | 5.0 | 0.0 | 0.0 |"


@pytest.mark.slow
def test_a_run_takes_no_more_than_it_did_within_generous_bounds(tmp_path):
    """CPU seconds are compared as multiples of a matrix product's on the same machine.

    The baseline is written by `python -m experiments.studies.benchmark --sections=run`, of whose benchmark.json it is a
    copy.
    """
    command = ["--sections=run", f"--out_dir={tmp_path}"]
    subprocess.run([sys.executable, "-m", "experiments.studies.benchmark", *command], check=True)
    before, now = (json.loads(path.read_text())["rows"] for path in (BASELINE, tmp_path / "benchmark.json"))
    compiled, memory = "run, cold: programs, cache misses", "run, cold: peak memory [MiB]"
    assert now[compiled] <= 1.2 * before[compiled]
    assert now[memory] <= 1.5 * before[memory]
    for when in ("cold", "warm"):
        product = f"run, {when}: product of 1500 x 1500 matrices [s]"
        for part in ("steps", "all"):
            label = f"run, {when}: {part}, CPU [s]"
            assert now[label] / now[product] <= 2.5 * before[label] / before[product], label
