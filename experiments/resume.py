"""Runs that stop and go on: what is kept of an unfinished run, in a folder of its own among the results."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import psutil

from cryotrans_jax.checkpoints import remove
from cryotrans_jax.files import InputError, halves
from cryotrans_jax.snapshots import Snapshot

from . import log, results, run_folder, signals
from .run_folder import TERMS, UNFINISHED

EARLIER = "earlier"  # in the folder of an unfinished run: results that it replaces

FREE = {  # settings that change nothing about a fit
    "frames", "render", "report", "idealise", "frame", "overwrite", "resume", "checkpoint_minutes", "out_dir",
    "coordinator", "distributed", "fetch", "max_gb", "emdb_api", "emdb_files", "pdb_files",
}  # fmt: skip
WRITING = 600.0  # s: a disk that has not taken a state by then does not answer
PAUSE = 10.0  # s: a stage's beginning is kept if nothing was for so long


class Keeper:
    """Keeps a run's fits as they go on, from time to time and where a stage begins, and gives them back.

    Each process of a run has a folder of its own below `unfinished` in the run's, and in that one for each seed, with
    the last snapshot that was written. They are written by a thread, so that the fit does not wait.
    """

    def __init__(self, out_dir: Path, settings: Any):
        """For the run in `out_dir` with these settings."""
        self.out_dir, self.settings = out_dir, settings
        self.folder = out_dir / UNFINISHED / f"{jax.process_index()}_of_{jax.process_count()}"
        self.every = 60 * settings.checkpoint_minutes
        self.writer, self.writing = ThreadPoolExecutor(1), None
        self.terms: dict = {}
        self.latest: tuple[int, Snapshot] | None = None
        self.kept: tuple[int, Snapshot] | None = None
        self.at, self.stage, self.complained = time.monotonic(), 0, False

    # Whether to go on

    def expected(self) -> bool:
        """Whether the folder holds an unfinished run with the same settings, as far as flags and versions tell.

        Raises InputError where it holds another, which is not to be replaced, or where there is none to resume.
        """
        if jax.process_index() == 0:  # before the other processes of this run begin
            leftovers(self.out_dir)
            if self.settings.resume is False and self.settings.overwrite:
                self.discard()
        found = self.found()
        if found is None:
            if self.settings.resume:
                raise InputError(
                    f"{self.out_dir} holds no unfinished run to resume: leave --resume out to begin one, or give its "
                    "--out_dir"
                )
            return False
        self.check(found, terms(self.settings))
        return self.found() is not None

    def begin(self, case: results.Case) -> None:
        """Nothing; the case's inputs are those of the unfinished run that goes on, if there is one."""
        case.sums = {name: results.checksum(path) for name, path in case.files.items()}
        self.terms = terms(self.settings, case)
        if (found := self.found()) is not None:
            self.check(found, self.terms)

    def found(self) -> dict | None:
        """The terms of the unfinished run that the folder holds, if it does. Raises InputError if they are damaged."""
        others = sorted(self.folder.parent.glob("*_of_*")) if jax.process_count() == 1 else []
        return next(filter(None, map(run_folder.terms_of, (self.folder, *others))), None)

    def check(self, before: dict, now: dict) -> None:
        """Nothing; an unfinished run on other terms is gone if it may be replaced. Raises InputError where not."""
        unlike = differences(before, now)
        if self.settings.resume is False:
            unlike = ["--noresume is given", *unlike]
        if not unlike:
            return
        told = f"{self.out_dir} holds an unfinished run, which cannot go on as {'; '.join(unlike[:3])}"
        if self.settings.resume:
            raise InputError(f"{told}: start it as before, or leave --resume out and add --overwrite to begin anew")
        if not self.settings.overwrite:
            raise InputError(f"{told}: start it as before, give another --out_dir, or --overwrite to begin anew")
        self.discard()

    def discard(self) -> None:
        """Nothing; what was kept is gone, and results that were to be replaced are back in their place."""
        put_back_all(self.out_dir)
        forget(self.folder.parent)

    @property
    def aside(self) -> Path:
        """Where results wait that the run is going to replace."""
        return self.folder / EARLIER

    # Keeping

    def begun(self, another: int) -> Snapshot | None:
        """Where the fit from a seed, so many after the first, goes on; None where it begins."""
        self.at, self.stage = time.monotonic(), 0
        for path in sorted((self.folder / f"seed_{another}").glob("[0-9]*"), reverse=True):
            if path.name.isdecimal():
                try:
                    found, _ = Snapshot.load(path)
                except (OSError, InputError) as error:
                    raise InputError(
                        f"the state kept in {path} cannot be read ({str(error).splitlines()[0]}): begin anew, with "
                        "--noresume --overwrite"
                    ) from error
                self.latest = self.kept = (another, found)
                self.stage = found.state.stage
                log.run_resumed(place(found), self.settings.seed + another, self.out_dir)
                return found
        return None

    def keep(self, another: int, snapshot: Snapshot) -> None:
        """Nothing; the fit from a seed stands there, which is written down if it is time to."""
        self.latest = (another, snapshot)
        signals.check_stopped()
        waited = time.monotonic() - self.at
        if waited >= self.every or (snapshot.state.stage != self.stage and waited > PAUSE):
            self.stage = snapshot.state.stage
            self.write(wait=not self.every)

    def finished(self, another: int) -> None:
        """Nothing; the fit from a seed has come to its end, which is being written down."""
        self.wait()
        self.write(wait=False)

    def write(self, wait: bool) -> None:
        """Nothing; the latest snapshot is being written, or is if told to `wait`, unless one is at this moment."""
        if self.latest is None or (not wait and self.writing and not self.writing.done()):
            return
        self.wait()
        self.at = time.monotonic()
        self.writing = self.writer.submit(self.write_now, *self.latest)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until what was being written is. Raises TimeoutError where the disk does not take it."""
        if isinstance(self.writing, Future):
            try:
                self.writing.result(WRITING)
            except TimeoutError as error:
                raise TimeoutError(
                    f"the fit's state could not be written to {self.folder} within {WRITING / 60:.0f} minutes: see "
                    "that the disk answers, or give another --out_dir"
                ) from error

    def write_now(self, another: int, snapshot: Snapshot) -> None:
        """Nothing; the snapshot is on disk in place of those before it; what hinders that is told once."""
        if self.kept and self.kept[1] is snapshot:
            return
        try:
            folder = self.folder / f"seed_{another}"
            folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / TERMS).exists():
                run_folder.write_json(self.folder / TERMS, self.terms)
            earlier = [path for path in folder.iterdir() if path.name.isdecimal()]
            number = max((int(path.name) for path in earlier), default=0) + 1
            snapshot.save(folder / f"{number:08d}")
            self.kept, self.complained = (another, snapshot), False
            for path in earlier:
                shutil.rmtree(path, ignore_errors=True)
        except OSError as error:
            if not self.complained:
                why = f"{error.strerror}: {error.filename}" if error.strerror else str(error)
                log.checkpoint_failed(why)
            self.complained = True

    # Stopping

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Within it, whatever stops the run leaves the fit on disk as far as it has come, and says how to go on."""
        with signals.Rescue(partial(self.write, wait=True), self.told):
            try:
                yield
            except InputError:  # of which the same command would come again
                self.wait()
                run_folder.put_back(self.aside, self.out_dir)
                forget(self.folder)
                raise
            except (KeyboardInterrupt, Exception) as error:
                with contextlib.suppress(KeyboardInterrupt, TimeoutError):
                    self.write(wait=True)
                if self.kept or isinstance(error, KeyboardInterrupt):
                    error.add_note(self.told())
                raise

    def told(self) -> str:
        """How to go on."""
        if self.kept is None:
            return "nothing is saved yet: run the same command to start again"
        another, snapshot = self.kept
        seed = f" from seed {self.settings.seed + another}" * (self.settings.seeds > 1)
        return f"the fit{seed} is saved at {place(snapshot)} in {self.folder}: run the same command to resume"

    def done(self) -> None:
        """Nothing; the run is finished, and nothing of it is left but its results."""
        self.wait()
        self.writer.shutdown()
        replaced = self.folder / "replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            self.aside.rename(replaced)  # at once: half of them must not be put back, should this be cut short
        forget(self.folder)
        with contextlib.suppress(OSError):  # other processes of the run may not be done
            self.folder.parent.rmdir()


def place(snapshot: Snapshot) -> str:
    """Where a fit stands, in words."""
    state = snapshot.state
    return "the end of the last stage" if snapshot.finished else f"step {state.step} of stage {state.stage + 1}"


def forget(folder: Path) -> None:
    """Nothing; the folder is gone, first of all what marks it as an unfinished run."""
    for path in [folder / TERMS, *folder.glob(f"*/{TERMS}")]:
        remove(path)
    shutil.rmtree(folder, ignore_errors=True)


def terms(settings: Any, case: results.Case | None = None) -> dict:
    """What decides the numbers of a run: settings, versions, processes, and of a case the inputs' checksums."""
    known = {
        "settings": {k: v for k, v in results.settings_of(settings).items() if k not in FREE},
        "versions": {name: results.version(name) for name in results.PACKAGES},
        "processes": jax.process_count(),
        "devices": jax.local_device_count(),  # which share the targets
    }
    if case is not None:
        known |= {"inputs": case.sums, "failed": sorted(case.failed)}
    return json.loads(json.dumps(known, default=str))


def differences(before: dict, now: dict) -> list[str]:
    """In words, how the terms of an unfinished run differ from those of this one, in so far as both are known."""
    found = []
    for kind, label in (("settings", "--{}"), ("versions", "{}'s version"), ("inputs", "the input {}")):
        if kind not in now:
            continue
        old, new = before[kind], now[kind]
        for name in [*old, *(name for name in new if name not in old)]:
            if old.get(name) != new.get(name):
                was = f" was {shown(old.get(name))} and is {shown(new.get(name))}" if kind != "inputs" else " changed"
                found.append(label.format(name) + was)
    for kind in ("processes", "devices"):
        if before[kind] != now[kind]:
            found.append(f"it had {before[kind]} {kind} and there are {now[kind]}")
    if now.get("failed", before["failed"]) != before["failed"]:
        found.append("other targets can be used now")
    return found


def put_back_all(out_dir: Path) -> None:
    """Put back the results that the processes of an unfinished run have set aside."""
    for own in sorted((out_dir / UNFINISHED).glob("*_of_*")):
        run_folder.put_back(own / EARLIER, out_dir)


def shown(value: Any) -> str:
    """A setting as it is typed."""
    return ",".join(map(str, value)) if isinstance(value, list) else "not given" if value is None else str(value)


def leftovers(out_dir: Path) -> None:
    """Nothing; what a run that was killed while it wrote, or at its very end, has left unremoved is gone.

    What is younger than this process may be another's of this run.
    """
    folder = out_dir / UNFINISHED
    if not folder.is_dir():
        return
    for path in halves(out_dir):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < psutil.Process().create_time():
                path.unlink()
    if not any(folder.glob(f"*/{TERMS}")) and all("_of_" in p.name for p in folder.iterdir()):
        put_back_all(out_dir)
        shutil.rmtree(folder, ignore_errors=True)
