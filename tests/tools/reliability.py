"""Inject faults into runs and tabulate the outcomes for docs/results/reliability.md.

python -m tests.tools.reliability --write=docs/results/reliability.md
python -m tests.tools.reliability --sections=signals,numbers

Sections: signals (those that a cluster sends), stops (signals while Python cannot handle them), locks (two runs in one
folder), disk (full, read-only), inputs (a map that vanishes), numbers (a fit whose parameters become NaN), targets (24,
one of them bad), mistakes (input that cannot be fitted), folders (damaged, or prepared by others), damaged (files, by
tests.tools.fuzz), kills (kill -9 at random times, then the same command again). Each is a function that yields rows.
The runs are of the built-in pair on coarse voxels, in separate processes.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments import paths, ranges, tables
from experiments.main import run

from .reliability_runs import (
    DROP_PRIVILEGES,
    GC_PATCH,
    LIMIT_FILE_SIZE,
    NAN_PATCH,
    Ended,
    await_snapshot,
    make_maps,
    make_mistakes,
    quote,
    run_command,
    run_to_end,
    same_results,
    undisturbed_run,
)

FLAGS = flags.FLAGS
SECTIONS = (
    "signals", "stops", "locks", "disk", "inputs", "numbers", "targets", "mistakes", "folders", "damaged", "kills",
)  # fmt: skip
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
SEVERAL = ranges.Range(2, 10_000, "one of them is bad, and the others are compared")
MAX_KILLS = 1000  # of one run, which resumes in between
START_SECONDS, STOP_SECONDS = 15.0, 10.0  # s: until a run has begun its work, and to its end after a signal


class Row(NamedTuple):
    """A kind of fault, how many were tried, in how many the run came out as it should, and the evidence."""

    fault: str
    tried: int
    survived: int
    outcome: str


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_list("sections", list(SECTIONS), f"Which faults, of {', '.join(SECTIONS)}.")
    paths.define_path("out_dir", "runs/reliability", "Folder for the runs, which are left there.")
    ranges.whole_number("kills", 50, "How often a run is killed at a random time.", ranges.COUNT)
    ranges.whole_number("several", 24, "Number of targets in section targets.", SEVERAL)
    ranges.whole_number("damaged", 20_000, "Number of files in section damaged.", ranges.COUNT)
    paths.define_path("data_dir", None, "FOLDER: section damaged damages maps and models in it and below as well.")
    ranges.whole_number("seed", 0, "Seed of the times at which runs are killed, and of damaged files.", ranges.SEED)
    paths.define_path("write", None, "A page into which the table goes, between its markers.")


def main() -> None:
    """Run the sections; print their rows, and write them into the page of --write.

    Raises:
        InputError: a run did not come out as it should.
    """
    from cryotrans_jax.io.files import InputError

    from .fuzz import require_limits

    require_limits()
    if unknown := [name for name in FLAGS.sections if name not in SECTIONS]:
        raise InputError(f"there is no section {unknown[0]!r}: choose among {', '.join(SECTIONS)}")
    out_dir = Path(FLAGS.out_dir).absolute()
    if out_dir.exists():
        raise InputError(f"{out_dir} is there: give another --out_dir")
    make_maps(out_dir)
    rows = []
    for section in FLAGS.sections:
        for row in globals()[section](out_dir):
            rows = [*(other for other in rows if other.fault != row.fault), row]  # the row of kills is updated
            print(line(row), flush=True)
            if FLAGS.write:
                write(Path(FLAGS.write), row)
    if failed := [row.fault for row in rows if row.survived < row.tried]:
        raise InputError(f"not all runs came out as they should: {', '.join(failed)}")


def kills(folder: Path) -> Iterator[Row]:
    """Kill runs repeatedly, at random times within a whole run, until they end; all must end with the same files."""
    import numpy as np

    random, whole, begin = np.random.default_rng(FLAGS.seed), undisturbed_run(folder), time.monotonic()
    run_to_end(run_command(folder, whole, "--overwrite"))  # its programs are compiled now
    seconds = time.monotonic() - begin
    killed, kept, runs, good = 0, 0, 0, 0
    while killed < FLAGS.kills and runs < 10 + 10 * FLAGS.kills:  # some end before they are killed
        out, own, ended = folder / f"killed_{runs}", 0, Ended(None, "", "")
        for _ in range(MAX_KILLS):
            if ended.status is not None:
                break
            ended = run_to_end(run_command(folder, out), random.uniform(0, 1.2 * seconds))
            own += ended.status is None
            kept += "Run resumed from" in ended.printed
            if ended.status == 2 and "holds another run" in ended.last_line:  # killed when all was done
                ended = ended._replace(status=0)
        runs, killed, good = runs + 1, killed + own, good + own * (ended.status == 0 and same_results(whole, out))
        outcome = f"the same command ended {runs} runs with the same files, {kept} of them from a state that was kept"
        yield Row("kill -9 at a random time", killed, good, outcome)


def signals(folder: Path) -> Iterator[Row]:
    """Send a signal in the middle of a run: it must end at once, say how to resume, and resume."""
    whole = undisturbed_run(folder)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
        out, number = folder / name, getattr(signal, name)
        process = subprocess.Popen(
            run_command(folder, out), stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
        )
        await_snapshot(process, out)
        process.send_signal(number)
        said = (process.communicate()[1].strip().splitlines() or [""])[-1]
        clean = process.returncode == 128 + number and "run the same command to resume" in said
        again = run_to_end(run_command(folder, out))
        good = clean and again.status == 0 and "Run resumed from" in again.printed and same_results(whole, out)
        yield Row(name, 1, int(good), f"status {process.returncode}; then the same files")


def stops(folder: Path) -> Iterator[Row]:
    """Send a signal while C code runs, or inside a garbage collection: the run must end within 10 s."""
    sleeping = (
        "import ctypes; import experiments.results as r; r.fit_case = lambda *a, **k: ctypes.CDLL(None).sleep(120)"
    )
    collecting = GC_PATCH.format(seconds=120)
    for fault, before in (("SIGTERM while C code runs", sleeping), ("SIGINT in a garbage collection", collecting)):
        number = getattr(signal, fault.split()[0])
        words = run_command(folder, folder / fault.replace(" ", "_"), before=before)
        process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        time.sleep(START_SECONDS)
        begin = time.monotonic()
        process.send_signal(number)
        try:
            errors = process.communicate(timeout=STOP_SECONDS)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            errors = process.communicate()[1]
        seconds = time.monotonic() - begin
        good = process.returncode == 128 + number and "Traceback" not in errors and "ignored" not in errors
        yield Row(fault, 1, int(good and seconds < STOP_SECONDS), f"status {process.returncode} after {seconds:.0f} s")


def locks(folder: Path) -> Iterator[Row]:
    """Start two runs in one folder: one must continue and the other be refused; a killed run's lock is taken over."""
    whole, out = undisturbed_run(folder), folder / "locked"
    first = subprocess.Popen(run_command(folder, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    second = run_to_end(run_command(folder, out))
    errors = first.communicate()[1]
    ended = sorted([Ended(first.returncode, "", errors), second], key=lambda one: one.status or 0)
    good = [one.status for one in ended] == [0, 2] and same_results(whole, out)
    yield Row("two runs in one folder", 1, int(good), f"one with the same files, the other {quote(ended[1], folder)}")
    out = folder / "left_locked"
    process = subprocess.Popen(run_command(folder, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("unfinished/*/seed_0/0*")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    ended = run_to_end(run_command(folder, out))
    yield Row(
        "the lock of a run that was killed", 1, int(ended.status == 0 and same_results(whole, out)), "the same files"
    )


def folders(folder: Path) -> Iterator[Row]:
    """Give damaged or prepared run folders to every command that reads one."""
    own = folder / "folders"
    own.mkdir()
    for name in ("a.mrc", "b.mrc"):
        (own / name).write_bytes((folder / name).read_bytes())
    ended = run_to_end([sys.executable, "-m", "tests.tools.reliability_folders", str(own)])
    for text in ended.printed.splitlines():
        if text.startswith("["):
            fault, tried, survived, how = json.loads(text)
            yield Row(fault, tried, survived, how)
    if ended.status != 0:
        yield Row("damaged and prepared folders", 1, 0, quote(ended, folder))


def disk(folder: Path) -> Iterator[Row]:
    """Limit the file size, or make the folder read-only: existing files must stay, and the error must say so."""
    whole = undisturbed_run(folder)
    out = folder / "full"
    run_to_end(run_command(folder, out, "--seed=1"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    ended = run_to_end(run_command(folder, out, "--overwrite", before=LIMIT_FILE_SIZE))
    kept = all(path.is_file() and path.read_bytes() == data for path, data in before.items())
    again = run_to_end(run_command(folder, out, "--overwrite"))
    own_message = ended.last_line.startswith("error: ")  # and not a library's message
    good = ended.status == 2 and own_message and kept and again.status == 0 and same_results(whole, out)
    yield Row("disk full when results are written", 1, int(good), f"earlier results kept; {quote(ended, folder)}")
    shut = folder / "shut"
    shut.mkdir(mode=0o555)
    ended = run_to_end(run_command(folder, shut, before=DROP_PRIVILEGES))
    good = ended.status == 2 and "nothing can be written" in ended.last_line and not any(shut.iterdir())
    yield Row("read-only folder", 1, int(good), quote(ended, folder))


def inputs(folder: Path) -> Iterator[Row]:
    """Remove an input: during the fit it is no longer needed; before a run resumes, it is reported missing."""
    import shutil

    whole = undisturbed_run(folder)
    for name, killed in (("an input vanishes during the fit", False), ("and is missing when it goes on", True)):
        own, out = folder / f"inputs_{killed}", folder / f"vanished_{killed}"
        own.mkdir()
        for map_ in "ab":
            shutil.copy(folder / f"{map_}.mrc", own)
        process = subprocess.Popen(run_command(own, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        await_snapshot(process, out)
        (own / "b.mrc").unlink()
        if killed:
            process.kill()
        process.wait()
        if not killed:
            yield Row(name, 1, int(process.returncode == 0 and same_results(whole, out)), "the same files")
            continue
        ended = run_to_end(run_command(own, out))
        shutil.copy(folder / "b.mrc", own)
        good = ended.status == 2 and "no map" in ended.last_line and run_to_end(run_command(own, out)).status == 0
        yield Row(name, 1, int(good and same_results(whole, out)), f"{quote(ended, folder)}; once back, the same files")


def numbers(folder: Path) -> Iterator[Row]:
    """Set parameters to NaN: once, and the fit must recover; always, and it must fail without results."""
    out = folder / "once"
    ended = run_to_end(run_command(folder, out, before=NAN_PATCH.format(when="len(calls) == 3", target=0)))
    before, after = (
        json.loads((out / "metrics.json").read_text())[f"correlation_matched_{w}"] for w in ("before", "after")
    )
    good = ended.status == 0 and after > 0.5 + 0.5 * before
    outcome = f"back to the best state; correlation {before:.2f} before, {after:.2f} after"
    yield Row("NaN in the parameters, once", 1, int(good), outcome)
    out = folder / "always"
    ended = run_to_end(run_command(folder, out, before=NAN_PATCH.format(when="True", target=0)))
    good = ended.status == 2 and "the fit went wrong" in ended.last_line and not (out / "generated.mrc").exists()
    yield Row("NaN in the parameters, always", 1, int(good), quote(ended, folder))


def targets(folder: Path) -> Iterator[Row]:
    """Make one of many targets bad, as a file or in the fit: the others are done, and the status says so."""
    import shutil

    names = [folder / "many" / f"t{number:02d}.mrc" for number in range(FLAGS.several)]
    names[0].parent.mkdir()
    for name in names:
        shutil.copy(folder / "b.mrc", name)
    given = f"--target={','.join(map(str, names))}"
    for fault, before in (
        ("bad in the fit", NAN_PATCH.format(when="True", target=5)),
        ("bad as a file", ""),
    ):
        if not before:
            shutil.copy(folder / "nan.mrc", names[5])
        out = folder / fault.replace(" ", "_")
        ended = run_to_end(run_command(folder, out, given, before=before))
        done = [name.stem for name in names if (out / name.stem / "generated.mrc").is_file()]
        reported = (out / "t05/failed.json").is_file()
        good = ended.status == 3 and len(done) == len(names) - 1 and reported and "t05" in ended.last_line
        yield Row(f"one of {len(names)} targets {fault}", 1, int(good), f"{len(done)} done; {quote(ended, folder)}")


def mistakes(folder: Path) -> Iterator[Row]:
    """Give input that cannot be fitted: one sentence must say so, with no file left behind and none changed."""
    own, earlier = folder / "mistakes", undisturbed_run(folder)
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
        ended = run_to_end(run_command(folder, out, flag, "--seed=3"))
        clean = ended.status == 2 and ended.errors.count("\n") == 1 and ended.last_line.startswith("error: ")
        untouched = not any(out.glob("*")) and all(path.read_bytes() == data for path, data in before.items())
        yield Row(fault, 1, int(clean and untouched), quote(ended, folder))


def damaged(folder: Path) -> Iterator[Row]:
    """Read damaged files of every kind: each must give a result or one clear error, fast and in little memory."""
    given = [f"--{name}={FLAGS[name].value}" for name in ("seed", "data_dir") if FLAGS[name].value is not None]
    job = f"--count={FLAGS.damaged}", f"--out_dir={folder / 'fuzz'}"
    run_to_end([sys.executable, "-c", "import tests.tools.fuzz as f; f.command()", *job, *given])
    for row in json.loads((folder / "fuzz/fuzz.json").read_text()):
        good = row["results"] + row["errors"]
        most = f"{row['worst_mib']:.0f} MiB and {row['worst_seconds']:.2g} s at most"
        outcome = f"{row['results']} results, {row['errors']} errors of one sentence; {most}"
        yield Row(f"damaged: {row['kind']}", row["tried"], good, outcome)


def line(row: Row) -> str:
    """Format a row in Markdown."""
    return tables.row([row.fault, row.tried, row.survived, row.outcome.replace("|", "/")])


def write(page: Path, row: Row) -> None:
    """Write a row into the table between the page's markers, replacing an earlier one of the same fault.

    Raises:
        InputError: the page has no markers.
    """
    from cryotrans_jax.io.files import write_file

    above, inside, below = tables.parted(page, BEGIN, END)
    earlier = [each for each in inside.splitlines() if each.startswith("| ")][1:]  # without the heads
    rows = {each.split(" | ")[0]: each for each in [*earlier, line(row)]}
    table = ["| fault | tried | as it should | how it shows |", "|---|---|---|---|", *rows.values()]
    write_file(page, above + "\n\n" + "\n".join(table) + "\n\n" + below)


def command() -> None:
    """Run the command with the flags of the command line."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
