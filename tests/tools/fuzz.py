"""Feed damaged files and odd flags to every reader: each must give a result or one clear error, fast and in bounds.

python -m tests.tools.fuzz --count=20000 --out_dir=runs/fuzz

Whole files, of the built-in pair and of --data_dir, are cut and spliced, their bits are flipped, and fields are set to
extremes, before or after compression. Maps get values that a header allows, stored fits lose a file or a bit, and every
command gets numbers far out of bounds. Each kind is read in a separate process, which may use a GiB of memory and ten
seconds of processor time for a file. A file that ends in anything but a result or an InputError is kept, with its
traceback, in the folder found. The same seed makes the same files.
"""

import contextlib
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from experiments import paths, ranges, tables
from experiments.main import run

from .fuzz_kinds import KINDS

FLAGS = flags.FLAGS

SECONDS = 10.0  # of processor time for one file, independent of the load of the machine
MAX_SILENCE = 300.0  # s without a report, after which a process counts as hanging, in C code or while it waits
MEMORY = 1 << 30  # bytes that a process may use in addition to its loaded libraries
OUTCOMES = ("results", "errors", "tracebacks", "hangs", "crashes")
COLUMNS = {
    "kind": "{}",
    "tried": "{}",
    **dict.fromkeys(OUTCOMES, "{}"),
    "worst_mib": "{:.0f}",
    "worst_seconds": "{:.2g}",
}


def define_flags() -> None:
    """Define the flags of this command."""
    ranges.whole_number("count", 2000, "N: number of files, and sets of flags, to try.", ranges.COUNT)
    ranges.whole_number("seed", 0, "N: seed of the damage.", ranges.SEED)
    flags.DEFINE_list("kinds", [], f"KIND,...: only these, of {', '.join(KINDS)}.")
    paths.define_path("data_dir", None, "FOLDER: maps and models in it and its subfolders are damaged as well.")
    paths.define_path("out_dir", "runs/fuzz", "FOLDER: for fuzz.json, fuzz.md and found; earlier results are replaced.")


def main() -> None:
    """Try all kinds; print and write the table.

    Raises:
        InputError: at the end, if a file was misread.
    """
    from cryotrans_jax.io.files import InputError

    require_limits()
    if unknown := set(FLAGS.kinds) - set(KINDS):
        raise InputError(f"--kinds={','.join(sorted(unknown))}: they are {', '.join(KINDS)}")
    out_dir = Path(FLAGS.out_dir)
    (out_dir / "found").mkdir(parents=True, exist_ok=True)
    whole = sum(KINDS[kind].share for kind in FLAGS.kinds or KINDS)
    rows = []
    for kind in FLAGS.kinds or KINDS:
        count = max(round(FLAGS.count * KINDS[kind].share / whole), 1)
        rows.append(try_kind(kind, count, FLAGS.seed, FLAGS.data_dir, out_dir))
        print(tables.styled_row(rows[-1], COLUMNS), flush=True)
        write_table(rows, out_dir)
    if bad := sum(row[outcome] for row in rows for outcome in OUTCOMES[2:]):
        raise InputError(f"{bad} files were misread: they and their tracebacks are in {out_dir}/found")


def require_limits() -> None:
    """Check that the system can limit the memory and the files of a process.

    Raises:
        InputError: it cannot.
    """
    from cryotrans_jax.io.files import InputError

    try:
        import resource  # noqa: F401
    except ImportError:
        raise InputError(
            "this study limits the memory of a process: run it on Linux or macOS, which can do that"
        ) from None


def write_table(rows: list[dict], out_dir: Path) -> None:
    """Write fuzz.json and fuzz.md into the folder."""
    from cryotrans_jax.io.files import write_file
    from experiments.run_folder import write_json

    write_json(out_dir / "fuzz.json", rows)
    write_file(out_dir / "fuzz.md", tables.styled(rows, COLUMNS))


# --------------------------------------------------------------------------------- processes that read


def try_kind(kind: str, count: int, seed: int, data_dir: str | None, out_dir: Path) -> dict:
    """Try `count` files of a kind and return its row; each process starts where the last one ended."""
    from multiprocessing import get_context

    row = {"kind": kind, "tried": count, **dict.fromkeys(OUTCOMES, 0), "worst_mib": 0.0, "worst_seconds": 0.0}
    spawn, number = get_context("spawn"), 0
    while number < count:
        ours, theirs = spawn.Pipe()
        child = spawn.Process(
            target=read_files, args=(theirs, kind, number, count, seed, data_dir, str(out_dir.absolute()))
        )
        child.start()
        theirs.close()
        begun = False
        with contextlib.suppress(EOFError):  # the process has ended or crashed
            if not ours.poll(600) or ours.recv() != "ready":
                raise RuntimeError(f"the process that reads {kind} files does not start")
            begun = True
            while ours.poll(MAX_SILENCE):
                outcome, seconds, mib = ours.recv()
                row[outcome] += 1
                row["worst_seconds"], row["worst_mib"] = max(row["worst_seconds"], seconds), max(row["worst_mib"], mib)
                number += 1
        if not begun:
            raise RuntimeError(f"the process that reads {kind} files ends before the first")
        if number < count:
            row["hangs" if child.is_alive() else "crashes"] += 1
            number += 1
        child.kill()
        child.join()
    return row


def limit_memory() -> None:
    """Limit what this process may take from now on to MEMORY bytes, where the system says what it has."""
    import resource

    if (statm := Path("/proc/self/statm")).exists():
        held = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))


def read_files(pipe, kind: str, first: int, count: int, seed: int, data_dir: str | None, out_dir: str) -> None:
    """Read the files from `first` on, and send the outcome, the seconds and the peak MiB of each.

    A file is kept until it has been read without a fault, so that a file that crashes the process remains.
    """
    import resource
    from binascii import crc32

    import numpy as np

    from cryotrans_jax.io.files import InputWarning

    os.environ["JAX_PLATFORMS"] = "cpu"
    warnings.simplefilter("error", RuntimeWarning)
    warnings.simplefilter("ignore", InputWarning)
    _, make, read, damage = KINDS[kind]
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "a" / "b"  # files written outside of it are noticed above
        folder.mkdir(parents=True)
        os.chdir(folder)
        seeds = make(Path(data_dir) if data_dir else None)
        read(folder, seeds[0], np.random.default_rng(0))  # load the libraries, and see that a sound file can be read
        limit_memory()
        signal.signal(signal.SIGPROF, raise_hung)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pipe.send("ready")
        for number in range(first, count):
            random = np.random.default_rng([seed, crc32(kind.encode()), number])
            kept = Path(out_dir) / "found" / f"{kind}_{number}"
            data = damage(random, seeds)
            kept.write_bytes(data)
            begin = time.process_time()
            outcome = outcome_of(read, folder, data, random, kept)
            if outcome in OUTCOMES[:2]:
                kept.unlink()
            seconds, now = time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            pipe.send((outcome, seconds, (now - peak) / 1024))


class Hung(BaseException):
    """Raised when a file takes too long."""


def raise_hung(*_: Any) -> None:
    """Raise Hung (signal handler)."""
    raise Hung


def outcome_of(read: Callable, folder: Path, data: bytes, random, kept: Path) -> str:
    """Read a file and classify the outcome; a traceback, or a note of an outside file, is written beside `kept`."""
    import signal
    import traceback

    from cryotrans_jax.io.files import InputError

    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        read(folder, data, random)
        outcome = "results"
    except InputError as error:
        outcome = "errors" if "\n" not in str(error) else "tracebacks"
    except Hung:
        outcome = "hangs"
    except BaseException:
        kept.with_suffix(".txt").write_text(traceback.format_exc(), errors="replace")
        outcome = "tracebacks"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if {path.name for path in folder.parents[1].rglob("*") if folder not in path.parents} != {"a", "b"}:
        kept.with_suffix(".txt").write_text("a name led out of the folder\n")
        outcome = "tracebacks"
    return outcome


def command() -> None:
    """Run the command with the flags of the command line."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
