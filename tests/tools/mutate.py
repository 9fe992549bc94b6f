"""Mutation testing: make small changes to the package's pure modules, each of which their tests should notice.

    python -m tests.tools.mutate --count=300 --seed=0

A mutant is a module with one operator, constant, call or statement changed. Its module's tests run in a separate
process, forked from one that has imported JAX; the source files are never written. A mutant survives if all tests pass.
Mutants known to be equivalent are listed in `equivalent.txt`, with the reason, and are not run.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib
import importlib.machinery
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from .mutants import ROOT, Mutant, module_text, mutants, path_of

EQUIVALENT = Path(__file__).with_name("equivalent.txt")
MARKS = ("<!-- mutation run: begin -->", "<!-- mutation run: end -->")  # around the table in a page
HEAVY = ("beartype", "flax.linen", "gemmi", "hypothesis", "jax", "mrcfile", "optax", "orbax.checkpoint", "pytest")
HEAVY += ("ott.solvers.linear.sinkhorn", "scipy.optimize", "scipy.spatial.transform", "skimage.measure", "tmtools")
FAULT = 70  # exit status of a process that could not run the tests
SLACK, LEAST = 4.0, 30.0  # relative to the tests' own time, and s at least: a mutant that takes longer is stopped

TESTS = {  # the test files of each module, without "test_" and ".py"; with its folder where a name occurs twice
    "baselines": ("baselines",),
    "backbone": ("backbone",),
    "borders": ("borders",),
    "confidence": ("confidence",),
    "correspond": ("correspond",),
    "displacement": ("displacement",),
    "errors": ("errors",),
    "files": ("files",),
    "flow": ("flow",),
    "fsc": ("metrics",),
    "geometry": ("geometry",),
    "labelling": ("labelling", "borders"),
    "lattice": ("lattice",),
    "local_fit": ("local_fit",),
    "losses": ("losses",),
    "mask": ("mask",),
    "metrics": ("metrics", "dynamics"),
    "micelle": ("micelle",),
    "molecule": ("molecule",),
    "motion/rigid_bodies": ("rigid_bodies",),
    "noise": ("noise",),
    "partition": ("partition", "rigid_bodies"),
    "projection": ("projection",),
    "qscore": ("qscore",),
    "recipes": ("recipes",),
    "similarity": ("metrics",),
    "splat": ("splat",),
    "surface": ("surface",),
    "symmetric": ("flow", "symmetry", "velocity"),
    "symmetry": ("symmetry",),
    "transport": ("transport",),
    "velocity": ("velocity",),
    "motion/waypoints": ("flow", "waypoints"),
}


class Timed:
    """A pytest plugin that runs the fastest tests first, and records the time of each."""

    def __init__(self, known: dict[str, float]):
        """Store the known seconds of each test, by name."""
        self.known, self.seconds = known, Counter()

    def pytest_collection_modifyitems(self, items):
        """Sort the tests by their time."""
        items.sort(key=lambda item: self.known.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report):
        """Record the time of a test and of its fixtures."""
        self.seconds[report.nodeid] += report.duration


def serve(path: Path, source: str) -> None:
    """Make Python import a module from this source instead of its file."""
    loader = importlib.machinery.SourceFileLoader
    read, stats = loader.get_data, loader.path_stats

    def get_data(self, wanted):
        return source.encode() if Path(wanted) == path else read(self, wanted)

    def path_stats(self, wanted):
        if Path(wanted) == path:
            raise OSError("compiled files of this module are neither read nor written")
        return stats(self, wanted)

    loader.get_data, loader.path_stats = get_data, path_stats


def start_tests(module: str, source: str, seconds: Path) -> int:
    """Run a module's tests on this source in a separate process, and return its process id.

    Args:
        module: the module's name.
        source: its text.
        seconds: a JSON file with the seconds of each test, which is read if it exists and otherwise written.
    """
    child = os.fork()
    if child:
        return child
    status = FAULT
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with open(seconds.with_suffix(f".{os.getpid()}.log"), "w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        status = in_child(module, source, seconds)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def in_child(module: str, source: str, seconds: Path) -> int:
    """Exit status of pytest for a module's tests on this source."""
    import pytest

    serve(path_of(module), source)
    known = json.loads(seconds.read_text()) if seconds.exists() else {}
    timed = Timed(known)
    files = [str(path) for name in TESTS[module] for path in ROOT.glob(f"tests/**/test_{name}.py")]
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    status = pytest.main([*options, *files], plugins=[timed])
    if not known and not status:
        seconds.write_text(json.dumps(timed.seconds))
    sys.stdout.flush()
    return int(status)


def poll(child: int, since: float, limit: float) -> str | None:
    """Outcome of a mutant's process: "killed", "survived", "stopped" past its limit, None while it runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    if not done and time.monotonic() - since < limit:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # including processes that its tests have started
    if not done:
        os.waitpid(child, 0)
        return "stopped"
    code = os.waitstatus_to_exitcode(status)
    return {0: "survived", FAULT: "fault"}.get(code, "killed")


def outcomes(chosen: Sequence[Mutant], seconds: Path, limit: float, jobs: int) -> Iterator[tuple[Mutant, str]]:
    """Yield each mutant of one module with its outcome, in the order in which their processes end."""
    waiting, running = list(chosen), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop(0)
                running[start_tests(mutant.module, mutant.source(), seconds)] = mutant, time.monotonic()
            for child, (mutant, since) in list(running.items()):
                if fate := poll(child, since, limit):
                    del running[child]
                    if fate == "fault":
                        log = seconds.with_suffix(f".{child}.log").read_text()
                        raise RuntimeError(f"the tests could not be run for {mutant}:\n{log}")
                    yield mutant, fate
            time.sleep(0.02)
    finally:
        for child in running:
            os.killpg(child, signal.SIGKILL)


def run_module(module: str, chosen: Sequence[Mutant], jobs: int) -> Iterator[tuple[Mutant, str]]:
    """Yield each mutant of a module with its outcome, after its tests have passed on the unchanged module."""
    text = module_text(module)
    with tempfile.TemporaryDirectory() as folder:
        seconds = Path(folder) / "seconds.json"
        begin = time.monotonic()
        plain = Mutant(module, 0, 0, "unchanged", "", lambda: ast.unparse(ast.parse(text)))
        for _ in range(2):  # in the files' order, then the fastest first
            if [fate for _, fate in outcomes([plain], seconds, 3600, 1)] != ["survived"]:
                logs = "".join(log.read_text() for log in Path(folder).glob("*.log"))
                raise RuntimeError(f"the tests of {module} fail on the unchanged module:\n{logs}")
        limit = max(LEAST, SLACK * (time.monotonic() - begin))
        yield from outcomes(chosen, seconds, limit, jobs)


def equivalents() -> dict[tuple[str, str, str], str]:
    """Reasons of known equivalent mutants, by module, line of the source and change.

    The file has blocks of four lines: the module, the line of the source, the change as a survivor is printed, and the
    reason. Blank lines separate blocks, and lines with # are remarks.
    """
    lines = [line.strip() for line in EQUIVALENT.read_text().splitlines() if not line.startswith("#")]
    blocks = [block.split("\n") for block in re.split(r"\n{2,}", "\n".join(lines).strip()) if block]
    if wrong := [block for block in blocks if len(block) != 4]:
        raise ValueError(f"{EQUIVALENT.name} has a block that is not of four lines: {wrong[0]}")
    return {(module, line, change): reason for module, line, change, reason in blocks}


def sample(modules: Sequence[str], count: int, seed: int) -> dict[str, list[Mutant]]:
    """So many mutants, as evenly from the modules as their sizes allow, by a seed."""
    every = {module: mutants(module, module_text(module)) for module in modules}
    shares, left = {}, count
    for number, module in enumerate(sorted(modules, key=lambda name: len(every[name]))):
        shares[module] = min(len(every[module]), round(left / (len(modules) - number)))
        left -= shares[module]
    return {module: random.Random(f"{seed} {module}").sample(every[module], shares[module]) for module in modules}


def table(counts: dict[str, Counter]) -> str:
    """Format the result by module in Markdown."""
    rows = ["| module | mutants | killed | survived | equivalent |", "|---|---|---|---|---|"]
    total = sum(counts.values(), Counter())
    for name, found in [*counts.items(), ("all", total)]:
        killed, all_ = found["killed"] + found["stopped"], sum(found.values())
        rows.append(f"| {name} | {all_} | {killed} | {found['survived']} | {found['equivalent']} |")
    return "\n".join(rows)


def survival(counts: dict[str, Counter]) -> float:
    """Share of surviving mutants among those that are not equivalent."""
    total = sum(counts.values(), Counter())
    return total["survived"] / max(sum(total.values()) - total["equivalent"], 1)


class Fates:
    """Outcomes of earlier runs, in a JSON file; a mutant once killed stays killed, as tests are only added."""

    def __init__(self, path: Path | None):
        """Read the file, if there is one."""
        self.path = path
        self.known = json.loads(path.read_text()) if path and path.exists() else {}

    def killed(self, mutant: Mutant) -> bool:
        """Whether a mutant was killed, or stopped because it did not end."""
        return self.known.get(self.key(mutant)) in ("killed", "stopped")

    def keep(self, mutant: Mutant, fate: str) -> None:
        """Record the outcome of a mutant."""
        self.known[self.key(mutant)] = fate
        if self.path:
            self.path.write_text(json.dumps(self.known, indent=0))

    def key(self, mutant: Mutant) -> str:
        """Name of the mutant with a checksum of its whole text."""
        return f"{mutant} {hashlib.sha256(mutant.source().encode()).hexdigest()[:16]}"


def mutate(chosen: dict[str, list[Mutant]], fates: Fates, jobs: int = 1) -> dict[str, Counter]:
    """Run the tests on the mutants, print the survivors, and count the outcomes by module."""
    known, counts = equivalents(), {}
    for module, some in chosen.items():
        tried = [one for one in some if (module, one.statement, one.change) not in known]
        left = [one for one in tried if not fates.killed(one)]
        counts[module] = Counter(killed=len(tried) - len(left), equivalent=len(some) - len(tried))
        begin = time.monotonic()
        for mutant, fate in run_module(module, left, jobs) if left else ():
            counts[module][fate] += 1
            fates.keep(mutant, fate)
            if fate == "survived":
                print(mutant, flush=True)
        print(f"{module}: {dict(counts[module])} in {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    return counts


def warm_up(cache: str) -> None:
    """Import the package's dependencies once for all mutants, without starting any of JAX's devices."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    for name in HEAVY:
        importlib.import_module(name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run mutants and print the survivors and the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.mutate", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=300, help="number of mutants in all")
    parser.add_argument("--seed", type=int, default=0, help="seed of their choice")
    parser.add_argument("--modules", default=",".join(TESTS), help="names, separated by commas")
    parser.add_argument("--fates", type=Path, help="a file of outcomes: killed mutants are not run again")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--write", type=Path, help="a page with two marks around the table")
    given = parser.parse_args(arguments)
    modules = given.modules.split(",")
    if unknown := set(modules) - set(TESTS):
        parser.error(f"no tests are known for {', '.join(sorted(unknown))}: choose from {', '.join(TESTS)}")
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no mutant's process is left behind
    chosen = sample(modules, given.count, given.seed)
    with tempfile.TemporaryDirectory() as cache:
        warm_up(cache)
        counts = mutate(chosen, Fates(given.fates), given.jobs)
    text = f"{table(counts)}\n\nSurvived: {survival(counts):.1%} of those that are not equivalent."
    print(text)
    if given.write:
        before, rest = given.write.read_text().split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        given.write.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
