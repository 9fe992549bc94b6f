"""--help and the page of flags: every flag of a job is there once, in its group, with what it takes and its default."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import run, usage

ROOT = Path(__file__).parents[2]
JOBS = {path.stem: path for path in (ROOT / "experiments").rglob("*.py") if "def define_flags" in path.read_text()}
DEFINED = re.compile(r"(?:flags\.DEFINE_\w+|ranges\.\w+|define_(?:paths?|size))\(\s*\"(\w+)\"")
FORM = re.compile(r"^  --(?:\[no\])?(\w+)", re.MULTILINE)


@pytest.mark.parametrize("name", JOBS)
def test_help_has_each_of_the_jobs_flags_once(job, name):
    status, out, error = job(name, "--help")
    shown = FORM.findall(out)
    assert (status, error) == (0, "") and len(shown) == len(set(shown))
    assert set(DEFINED.findall(JOBS[name].read_text())) <= set(shown)


def test_help_tells_forms_defaults_and_groups(job):
    _, out, _ = job("run", "--help")
    words = " ".join(out.split())
    assert words.startswith("Morph one density map into another: write")
    for said in (
        "--initial_resolution=Å Resolution of the initial map;",
        "--align=<auto|none> Superpose targets",
        "--frames=N Number of frames, from 0 to 1 in time. [11]",
        "--seed=N Seed of the network's first weights. [0]",
        "--[no]report Write report.html, which shows and explains the run, and its pictures beside the results. [yes]",
        "--waypoint=FILE@TIME,... A map that the flow has to pass",
    ):
        assert said in words
    titles = re.findall(r"^(\S.*):$", out, re.MULTILINE)
    assert titles[:3] == ["Most used", "Maps", "Alignment"] and titles[-1] == "Public archives"
    first = FORM.findall(out.split("\nMaps:")[0])
    assert first == [*run.COMMON] and len(first) == 10 and first[:2] == ["initial", "target"]
    assert not usage.options_by_group()  # the job's flags are gone with it, and so are their groups


def test_the_groups_of_another_job_do_not_stay(job):
    _, whole, _ = job("run", "--help")
    _, predict, _ = job("predict", "--help")
    assert "Run:\n  --run_dir" in predict and "Run:" not in whole
    assert job("run", "--help")[1] == whole


def test_help_is_asked_for_in_a_new_process_and_quick():
    """It loads nothing that takes long to load."""
    program = "import atexit, sys; atexit.register(lambda: print('loaded', *sys.modules, file=sys.stderr)); "
    program += "import experiments.run as run; run.command()"
    command = [sys.executable, "-c", program, "-h"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"})
    assert done.returncode == 0 and "--initial=MAP" in done.stdout
    assert "experiments.run" in done.stderr.split()
    assert not {"jax", "numpy", "scipy", "gemmi", "flax", "ott", "skimage"} & set(done.stderr.split())
    assert max(map(len, done.stdout.split("Maps:")[1].splitlines())) <= 80


def test_a_reader_that_ends_early_ends_nothing():
    """As `head` does, or a pager that is left."""
    command = [sys.executable, "-m", "experiments.run", "--help"]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.stdout.close()
    assert started.stderr.read() == "" and started.wait() == 0
    started.stderr.close()


def test_the_page_holds_what_help_holds(job):
    page = subprocess.run(
        [sys.executable, "-m", "experiments.usage", "run"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    _, out, _ = job("run", "--help")
    listed = re.findall(r"^\| `--(?:\[no\])?(\w+)", page, re.MULTILINE)
    assert listed == FORM.findall(out)
    assert "| `--align=<auto\\|none>` | Superpose targets" in page and "| `auto` |" in page
