"""Injects faults into runs and says what became of them: a table for docs/reliability.md.

python -m experiments.reliability --write=docs/reliability.md
python -m experiments.reliability --sections=signals,numbers

Sections: signals (those that a cluster sends), stops (signals where Python does not listen), locks (two runs in one
folder), disk (full, read-only), inputs (a map that vanishes), numbers (a fit whose parameters become no numbers),
targets (24, of which one is bad), mistakes (input that cannot be fitted), folders (damaged, or prepared by others),
damaged (files, by experiments.fuzz), kills (kill -9 at random times, then the same command again). Each is a function
that yields rows; the runs are of the built-in pair on coarse voxels, in programs of their own.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags

from . import paths, ranges, tables
from .main import run

FLAGS = flags.FLAGS
SECTIONS = (
    "signals", "stops", "locks", "disk", "inputs", "numbers", "targets", "mistakes", "folders", "damaged", "kills",
)  # fmt: skip
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
SAME = ("loss.csv", "generated.mrc", "frame_00.mrc", "frame_01.mrc", "displacement.mrc", "unexplained.mrc", "fsc.csv")
SEVERAL = ranges.Range(2, 10_000, "one of them is bad, and the others are compared")
VOXEL, RESOLUTIONS = 3.0, (8.0, 10.0)  # Å, of the maps
MOST_KILLS = 1000  # of one run, which goes on in between
LONGEST = 1800  # s, after which a run counts as one that hangs
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
NOBODY = "import os, experiments.inputs, experiments.resume; os.geteuid() or os.seteuid(65534)"  # not the superuser
WRONG = """
import jax, numpy as np
from cryotrans_jax import train
real, calls = train.train_steps, []
def steps(*call):
    calls.append(1)
    params, adam, loss, error = real(*call)
    if {when}:
        params = jax.tree.map(lambda p: p.at[{target}].set(np.nan), params)
    return params, adam, loss, error
steps.lower = real.lower
train.train_steps = steps
"""


STARTED, GONE = 15.0, 10.0  # s: after which a run has begun its work, and within which a stop is to end it
COLLECTING = """
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


class Row(NamedTuple):
    """A kind of fault, how many of it there were, of how many the run came out as it should, and how that shows."""

    fault: str
    tried: int
    survived: int
    outcome: str


class Ended(NamedTuple):
    """How a run ended: its status (None: it was killed), what it printed, and its errors."""

    status: int | None
    printed: str
    errors: str

    @property
    def said(self) -> str:
        """The last line of the errors; all of them where something else is there than our own words."""
        return self.errors if "Traceback" in self.errors else (self.errors.strip().splitlines() or [""])[-1]


def define_flags() -> None:
    """Nothing; the flags of this job are there."""
    flags.DEFINE_list("sections", list(SECTIONS), f"Which faults, of {', '.join(SECTIONS)}.")
    paths.define_path("out_dir", "runs/reliability", "Folder for the runs, which are left there.")
    ranges.whole_number("kills", 50, "How often a run is killed at a random time.", ranges.COUNT)
    ranges.whole_number("several", 24, "Number of targets in section targets.", SEVERAL)
    ranges.whole_number("damaged", 20_000, "Number of files in section damaged.", ranges.COUNT)
    paths.define_path("data_dir", None, "FOLDER: section damaged damages maps and models in it and below as well.")
    ranges.whole_number("seed", 0, "Seed of the times at which runs are killed, and of damaged files.", ranges.SEED)
    paths.define_path("write", None, "A page into which the table goes, between its markers.")


def main() -> None:
    """Nothing; prints the table's rows, and writes them where asked to. Fails where a run came out as it should not."""
    from cryotrans_jax.files import InputError

    from .fuzz import need_limits

    need_limits()
    if unknown := [name for name in FLAGS.sections if name not in SECTIONS]:
        raise InputError(f"there is no section {unknown[0]!r}: choose among {', '.join(SECTIONS)}")
    out_dir = Path(FLAGS.out_dir).absolute()
    if out_dir.exists():
        raise InputError(f"{out_dir} is there: give another --out_dir")
    make_maps(out_dir)
    rows = []
    for section in FLAGS.sections:
        for row in globals()[section](out_dir):
            rows = [*(other for other in rows if other.fault != row.fault), row]  # that of kills grows
            print(line(row), flush=True)
            if FLAGS.write:
                write(Path(FLAGS.write), row)
    if failed := [row.fault for row in rows if row.survived < row.tried]:
        raise InputError(f"not all runs came out as they should: {', '.join(failed)}")


def make_maps(folder: Path) -> None:
    """Nothing; the folder has the maps a.mrc and b.mrc of the built-in pair, and nan.mrc, which is none."""
    import numpy as np

    from cryotrans_jax import atoms
    from cryotrans_jax.demo import hinge_pair
    from cryotrans_jax.maps import write_map

    folder.mkdir(parents=True)
    models = hinge_pair()
    grid = atoms.common_grid(list(models), VOXEL, 6.0)
    for name, model, resolution in zip("ab", models, RESOLUTIONS, strict=True):
        write_map(folder / f"{name}.mrc", atoms.simulate_map(model, *grid, resolution))
    (folder / "nan.mrc").write_bytes((folder / "b.mrc").read_bytes()[:-4] + np.float32(np.nan).tobytes())
    os.chmod(folder, 0o755)


def order(folder: Path, out: Path, *more: str, before: str = "") -> list[str]:
    """The command of a run from a.mrc to b.mrc into `out`; `before` is a program to run first in the same process."""
    job = "import experiments.run as r; r.command()"
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also when in the background
    how = ["--align=none", "--steps=0.1", "--frames=2", "--report=false", "--checkpoint_minutes=0", f"--out_dir={out}"]
    maps = [f"--initial={folder}/a.mrc", *([] if any("--target=" in m for m in more) else [f"--target={folder}/b.mrc"])]
    return [sys.executable, "-c", f"{heeds}\n{before}\n{job}", *maps, *how, *more]


def await_snapshot(process: subprocess.Popen, out: Path) -> None:
    """Wait until a run has kept its state, or has ended; kill it after LONGEST seconds."""
    end = time.monotonic() + LONGEST
    while process.poll() is None and not list(out.glob("unfinished/*/seed_0/0*")):
        if time.monotonic() > end:
            process.kill()
            process.wait()
        time.sleep(0.05)


def finish(words: list[str], kill_after: float | None = None) -> Ended:
    """How a run ended, left alone or killed (kill -9) after so many seconds."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, error = process.communicate(timeout=kill_after or LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Ended(None, "", "killed")
    return Ended(process.returncode, out, error)


def same(one: Path, other: Path) -> bool:
    """Whether two folders of results hold the same files, with the same bytes where these do not tell of the run."""
    names = [{path.name for path in folder.iterdir()} for folder in (one, other)]
    return names[0] == names[1] and all((one / n).read_bytes() == (other / n).read_bytes() for n in SAME)


def undisturbed(folder: Path) -> Path:
    """The folder of a run that nothing disturbs."""
    out = folder / "undisturbed"
    if not out.exists():
        ended = finish(order(folder, out))
        assert ended.status == 0, ended.said
    return out


def kills(folder: Path) -> Iterator[Row]:
    """Runs killed again and again, at times anywhere in a whole run, until they end; all end with the same files."""
    import numpy as np

    random, whole, begin = np.random.default_rng(FLAGS.seed), undisturbed(folder), time.monotonic()
    finish(order(folder, whole, "--overwrite"))  # its programs are compiled now
    seconds = time.monotonic() - begin
    killed, kept, runs, good = 0, 0, 0, 0
    while killed < FLAGS.kills and runs < 10 + 10 * FLAGS.kills:  # some end before they are killed
        out, own, ended = folder / f"killed_{runs}", 0, Ended(None, "", "")
        for _ in range(MOST_KILLS):
            if ended.status is not None:
                break
            ended = finish(order(folder, out), random.uniform(0, 1.2 * seconds))
            own += ended.status is None
            kept += "Run resumed from" in ended.printed
            if ended.status == 2 and "holds another run" in ended.said:  # killed when all was done
                ended = ended._replace(status=0)
        runs, killed, good = runs + 1, killed + own, good + own * (ended.status == 0 and same(whole, out))
        told = f"the same command ended {runs} runs with the same files, {kept} of them from a state that was kept"
        yield Row("kill -9 at a random time", killed, good, told)


def signals(folder: Path) -> Iterator[Row]:
    """Runs that get a signal in the middle end at once, say how to go on, and do."""
    whole = undisturbed(folder)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
        out, number = folder / name, getattr(signal, name)
        process = subprocess.Popen(order(folder, out), stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
        await_snapshot(process, out)
        process.send_signal(number)
        said = (process.communicate()[1].strip().splitlines() or [""])[-1]
        clean = process.returncode == 128 + number and "run the same command to resume" in said
        again = finish(order(folder, out))
        good = clean and again.status == 0 and "Run resumed from" in again.printed and same(whole, out)
        yield Row(name, 1, int(good), f"status {process.returncode}; then the same files")


def stops(folder: Path) -> Iterator[Row]:
    """A signal that comes while a program is compiled, or inside a garbage collection, ends the run within 10 s."""
    sleeping = (
        "import ctypes; import experiments.results as r; r.fit_case = lambda *a, **k: ctypes.CDLL(None).sleep(120)"
    )
    collecting = COLLECTING.format(seconds=120)
    for fault, before in (("SIGTERM while C code runs", sleeping), ("SIGINT in a garbage collection", collecting)):
        number = getattr(signal, fault.split()[0])
        words = order(folder, folder / fault.replace(" ", "_"), before=before)
        process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        time.sleep(STARTED)
        begin = time.monotonic()
        process.send_signal(number)
        try:
            errors = process.communicate(timeout=GONE)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            errors = process.communicate()[1]
        seconds = time.monotonic() - begin
        good = process.returncode == 128 + number and "Traceback" not in errors and "ignored" not in errors
        yield Row(fault, 1, int(good and seconds < GONE), f"status {process.returncode} after {seconds:.0f} s")


def locks(folder: Path) -> Iterator[Row]:
    """Of two runs in one folder one goes on and the other says so; the lock of a killed run is taken over."""
    whole, out = undisturbed(folder), folder / "locked"
    first = subprocess.Popen(order(folder, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    second = finish(order(folder, out))
    errors = first.communicate()[1]
    ended = sorted([Ended(first.returncode, "", errors), second], key=lambda one: one.status or 0)
    good = [one.status for one in ended] == [0, 2] and same(whole, out)
    yield Row("two runs in one folder", 1, int(good), f"one with the same files, the other {quoted(ended[1], folder)}")
    out = folder / "left_locked"
    process = subprocess.Popen(order(folder, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("unfinished/*/seed_0/0*")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    ended = finish(order(folder, out))
    yield Row("the lock of a run that was killed", 1, int(ended.status == 0 and same(whole, out)), "the same files")


def folders(folder: Path) -> Iterator[Row]:
    """Run folders that are damaged, or prepared by others, given to every command that reads one."""
    own = folder / "folders"
    own.mkdir()
    for name in ("a.mrc", "b.mrc"):
        (own / name).write_bytes((folder / name).read_bytes())
    ended = finish([sys.executable, "-m", "experiments.reliability_folders", str(own)])
    for text in ended.printed.splitlines():
        if text.startswith("["):
            fault, tried, survived, how = json.loads(text)
            yield Row(fault, tried, survived, how)
    if ended.status != 0:
        yield Row("damaged and prepared folders", 1, 0, quoted(ended, folder))


def disk(folder: Path) -> Iterator[Row]:
    """A disk that takes no large file, and a folder that takes none, leave what is there as it is, and say so."""
    whole = undisturbed(folder)
    out = folder / "full"
    finish(order(folder, out, "--seed=1"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    ended = finish(order(folder, out, "--overwrite", before=LIMITED))
    kept = all(path.is_file() and path.read_bytes() == data for path, data in before.items())
    again = finish(order(folder, out, "--overwrite"))
    told = ended.said.startswith("error: ")  # and not what libraries make of it
    good = ended.status == 2 and told and kept and again.status == 0 and same(whole, out)
    yield Row("disk full when results are written", 1, int(good), f"earlier results kept; {quoted(ended, folder)}")
    shut = folder / "shut"
    shut.mkdir(mode=0o555)
    ended = finish(order(folder, shut, before=NOBODY))
    good = ended.status == 2 and "nothing can be written" in ended.said and not any(shut.iterdir())
    yield Row("read-only folder", 1, int(good), quoted(ended, folder))


def inputs(folder: Path) -> Iterator[Row]:
    """An input that vanishes while it is fitted is not needed any more; before a run goes on, it is missed."""
    import shutil

    whole = undisturbed(folder)
    for name, killed in (("an input vanishes during the fit", False), ("and is missing when it goes on", True)):
        own, out = folder / f"inputs_{killed}", folder / f"vanished_{killed}"
        own.mkdir()
        for map_ in "ab":
            shutil.copy(folder / f"{map_}.mrc", own)
        process = subprocess.Popen(order(own, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        await_snapshot(process, out)
        (own / "b.mrc").unlink()
        if killed:
            process.kill()
        process.wait()
        if not killed:
            yield Row(name, 1, int(process.returncode == 0 and same(whole, out)), "the same files")
            continue
        ended = finish(order(own, out))
        shutil.copy(folder / "b.mrc", own)
        good = ended.status == 2 and "no map" in ended.said and finish(order(own, out)).status == 0
        yield Row(name, 1, int(good and same(whole, out)), f"{quoted(ended, folder)}; once back, the same files")


def numbers(folder: Path) -> Iterator[Row]:
    """A fit whose parameters become NaN once goes on; one where they always do says so, and writes nothing."""
    out = folder / "once"
    ended = finish(order(folder, out, before=WRONG.format(when="len(calls) == 3", target=0)))
    before, after = (
        json.loads((out / "metrics.json").read_text())[f"correlation_matched_{w}"] for w in ("before", "after")
    )
    good = ended.status == 0 and after > 0.5 + 0.5 * before
    told = f"back to the best state; correlation {before:.2f} before, {after:.2f} after"
    yield Row("NaN in the parameters, once", 1, int(good), told)
    out = folder / "always"
    ended = finish(order(folder, out, before=WRONG.format(when="True", target=0)))
    good = ended.status == 2 and "the fit went wrong" in ended.said and not (out / "generated.mrc").exists()
    yield Row("NaN in the parameters, always", 1, int(good), quoted(ended, folder))


def targets(folder: Path) -> Iterator[Row]:
    """Of many targets one is bad, as a file or while it is fitted: the others are done, and the status says so."""
    import shutil

    names = [folder / "many" / f"t{number:02d}.mrc" for number in range(FLAGS.several)]
    names[0].parent.mkdir()
    for name in names:
        shutil.copy(folder / "b.mrc", name)
    given = f"--target={','.join(map(str, names))}"
    for fault, before in (
        ("bad in the fit", WRONG.format(when="True", target=5)),
        ("bad as a file", ""),
    ):
        if not before:
            shutil.copy(folder / "nan.mrc", names[5])
        out = folder / fault.replace(" ", "_")
        ended = finish(order(folder, out, given, before=before))
        done = [name.stem for name in names if (out / name.stem / "generated.mrc").is_file()]
        told = (out / "t05/failed.json").is_file()
        good = ended.status == 3 and len(done) == len(names) - 1 and told and "t05" in ended.said
        yield Row(f"one of {len(names)} targets {fault}", 1, int(good), f"{len(done)} done; {quoted(ended, folder)}")


def mistakes(folder: Path) -> Iterator[Row]:
    """Input that cannot be fitted is told in one sentence, leaves no file behind and none changed."""
    own, earlier = folder / "mistakes", undisturbed(folder)
    make_mistakes(own, folder / "b.mrc")
    before = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
    cases = {
        "a file that is no map": f"--target={own}/text.mrc",
        "a truncated map": f"--target={own}/truncated.mrc",
        "a stack of images": f"--target={own}/stack.mrc",
        "complex values": f"--target={own}/complex.mrc",
        "NaN in a map": f"--target={folder}/nan.mrc",
        "one value throughout": f"--target={own}/constant.mrc",
        "nothing above the threshold": "--target_threshold=1000",
        "maps that do not overlap, not to be aligned": f"--target={own}/far.mrc",
        "a model outside the map": f"--model={own}/far.pdb",
        "an unknown value of a flag": "--recipe=best",
        "a folder that holds another run": f"--out_dir={earlier}",
    }
    for number, (fault, flag) in enumerate(cases.items()):
        out = folder / f"mistake_{number}"
        ended = finish(order(folder, out, flag, "--seed=3"))
        clean = ended.status == 2 and ended.errors.count("\n") == 1 and ended.said.startswith("error: ")
        untouched = not any(out.glob("*")) and all(path.read_bytes() == data for path, data in before.items())
        yield Row(fault, 1, int(clean and untouched), quoted(ended, folder))


def make_mistakes(folder: Path, good: Path) -> None:
    """Nothing; the folder has files of the kinds that `mistakes` names, made from a good map."""
    from dataclasses import replace

    import mrcfile
    import numpy as np

    from cryotrans_jax import atoms, demo
    from cryotrans_jax.maps import read_map, write_map

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
    start, _ = demo.hinge_pair()
    atoms.write_model(folder / "far.pdb", atoms.with_positions(start, atoms.positions(start) + 1000))


def damaged(folder: Path) -> Iterator[Row]:
    """Damaged files of every kind end as a result or as one clear error, soon and without much memory."""
    given = [f"--{name}={FLAGS[name].value}" for name in ("seed", "data_dir") if FLAGS[name].value is not None]
    job = f"--count={FLAGS.damaged}", f"--out_dir={folder / 'fuzz'}"
    finish([sys.executable, "-c", "import experiments.fuzz as f; f.command()", *job, *given])
    for row in json.loads((folder / "fuzz/fuzz.json").read_text()):
        good = row["results"] + row["errors"]
        most = f"{row['worst_mib']:.0f} MiB and {row['worst_seconds']:.2g} s at most"
        told = f"{row['results']} results, {row['errors']} errors of one sentence; {most}"
        yield Row(f"damaged: {row['kind']}", row["tried"], good, told)


def quoted(ended: Ended, folder: Path) -> str:
    """Status and message of a run, without this machine's folder."""
    return f"status {ended.status}, `{ended.said.replace(f'{folder}/', '')}`"


def line(row: Row) -> str:
    """The row in Markdown."""
    return tables.row([row.fault, row.tried, row.survived, row.outcome.replace("|", "/")])


def write(page: Path, row: Row) -> None:
    """Nothing; the table between the page's markers has the row, instead of an earlier one of the same fault.

    Raises InputError where the page has no markers.
    """
    from cryotrans_jax.files import write_file

    above, inside, below = tables.parted(page, BEGIN, END)
    earlier = [each for each in inside.splitlines() if each.startswith("| ")][1:]  # without the title
    rows = {each.split(" | ")[0]: each for each in [*earlier, line(row)]}
    table = ["| fault | tried | as it should | how it shows |", "|---|---|---|---|", *rows.values()]
    write_file(page, above + "\n\n" + "\n".join(table) + "\n\n" + below)


def command() -> None:
    """Nothing; the job is done as the command line says."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
