"""Runs into which `reliability` injects faults: their maps, their commands, their ends and their results."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import mrcfile
import numpy as np

from cryotrans_jax.density import simulation
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import read_map, write_map

COMPARED_FILES = (
    "loss.csv",
    "generated.mrc",
    "frame_00.mrc",
    "frame_01.mrc",
    "displacement.mrc",
    "unexplained.mrc",
    "fsc.csv",
)
VOXEL, RESOLUTIONS = 3.0, (8.0, 10.0)  # Å, of the maps
TIMEOUT = 1800  # s, after which a run counts as hanging
LIMIT_FILE_SIZE = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
DROP_PRIVILEGES = (
    "import os, experiments.load, experiments.resume; os.geteuid() or os.seteuid(65534)"  # not the superuser
)
NAN_PATCH = """
import jax, numpy as np
from cryotrans_jax.fit import supervise
real, calls = supervise.train_steps, []
def steps(*call):
    calls.append(1)
    params, adam, loss, error = real(*call)
    if {when}:
        params = jax.tree.map(lambda p: p.at[{target}].set(np.nan), params)
    return params, adam, loss, error
supervise.train_steps = steps
"""
GC_PATCH = """
import gc, time, experiments.results as results
def collect(phase, info):
    if phase == "start":
        time.sleep(1)
def fit(*case, **more):
    gc.callbacks.append(collect)
    end = time.monotonic() + {seconds}
    while time.monotonic() < end:
        gc.collect()
results.fit_case = fit
"""


class Ended(NamedTuple):
    """Exit status of a run (None: it was killed), its output, and its errors."""

    status: int | None
    printed: str
    errors: str

    @property
    def last_line(self) -> str:
        """Last line of the errors; all of them if they contain a traceback."""
        return self.errors if "Traceback" in self.errors else (self.errors.strip().splitlines() or [""])[-1]


def make_maps(folder: Path) -> None:
    """Write the maps a.mrc and b.mrc of the built-in pair, and nan.mrc, which is not valid, into the folder."""
    folder.mkdir(parents=True)
    models = hinge_pair()
    grid = simulation.common_grid(list(models), VOXEL, 6.0)
    for name, model, resolution in zip("ab", models, RESOLUTIONS, strict=True):
        write_map(folder / f"{name}.mrc", simulation.simulate_map(model, *grid, resolution))
    (folder / "nan.mrc").write_bytes((folder / "b.mrc").read_bytes()[:-4] + np.float32(np.nan).tobytes())
    os.chmod(folder, 0o755)


def run_command(folder: Path, out: Path, *more: str, before: str = "") -> list[str]:
    """Command of a run from a.mrc to b.mrc into `out`; `before` is code to execute first in the same process."""
    job = "import experiments.run as r; r.command()"
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also in the background
    how = ["--align=none", "--steps=0.1", "--frames=2", "--report=false", "--checkpoint_minutes=0", f"--out_dir={out}"]
    maps = [f"--initial={folder}/a.mrc", *([] if any("--target=" in m for m in more) else [f"--target={folder}/b.mrc"])]
    return [sys.executable, "-c", f"{heeds}\n{before}\n{job}", *maps, *how, *more]


def await_snapshot(process: subprocess.Popen, out: Path) -> None:
    """Wait until a run has saved its state, or has ended; kill it after TIMEOUT seconds."""
    end = time.monotonic() + TIMEOUT
    while process.poll() is None and not list(out.glob("unfinished/*/seed_0/0*")):
        if time.monotonic() > end:
            process.kill()
            process.wait()
        time.sleep(0.05)


def run_to_end(words: list[str], kill_after: float | None = None) -> Ended:
    """Run a command to its end, or kill it (kill -9) after `kill_after` seconds."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, error = process.communicate(timeout=kill_after or TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Ended(None, "", "killed")
    return Ended(process.returncode, out, error)


def same_results(one: Path, other: Path) -> bool:
    """Whether two folders of results have the same files, and equal bytes in those that do not describe the run."""
    names = [{path.name for path in folder.iterdir()} for folder in (one, other)]
    return names[0] == names[1] and all((one / n).read_bytes() == (other / n).read_bytes() for n in COMPARED_FILES)


def undisturbed_run(folder: Path) -> Path:
    """Folder of an undisturbed run, which is made at the first call."""
    out = folder / "undisturbed"
    if not out.exists():
        ended = run_to_end(run_command(folder, out))
        assert ended.status == 0, ended.last_line
    return out


def make_mistakes(folder: Path, good: Path) -> None:
    """Write the bad files that `mistakes` uses into the folder, made from a good map."""
    folder.mkdir()
    (folder / "text.mrc").write_text("This is no map.\n" * 100)
    (folder / "truncated.mrc").write_bytes(good.read_bytes()[:-1000])
    map_ = read_map(good)
    with mrcfile.new(folder / "stack.mrc", map_.density) as file:
        file.set_image_stack()
    with mrcfile.new(folder / "complex.mrc", map_.density.astype(np.complex64)):
        pass
    write_map(folder / "constant.mrc", replace(map_, density=np.ones_like(map_.density)))
    write_map(folder / "far.mrc", replace(map_, origin=map_.origin + 1000))
    start, _ = hinge_pair()
    atoms.write_model(folder / "far.pdb", atoms.with_positions(start, atoms.positions(start) + 1000))


def quote(ended: Ended, folder: Path) -> str:
    """Format status and message of a run, without the path of this machine."""
    return f"status {ended.status}, `{ended.last_line.replace(f'{folder}/', '')}`"
