"""Save the state of an unfinished run in a folder among its results, and resume from it."""

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

from cryotrans_jax.fit.snapshots import Snapshot
from cryotrans_jax.io.checkpoints import remove
from cryotrans_jax.io.files import InputError, checksum, unfinished_files

from . import log, record, run_folder, signals
from .case import Case
from .run_folder import TERMS, UNFINISHED

FREE = {  # settings that do not change a fit
    "frames", "render", "report", "idealise", "frame", "still", "overwrite", "resume", "checkpoint_minutes", "out_dir",
    "coordinator", "distributed", "fetch", "max_gb", "emdb_api", "emdb_files", "pdb_files",
}  # fmt: skip
WRITING = 600.0  # s to write a state, after which the disk is taken not to answer
PAUSE = 10.0  # s since the last save, after which the beginning of a stage is saved


class Keeper:
    """Save the fits of a run at intervals and where a stage begins, and load them to resume.

    Each process of a run has a folder below `unfinished` in the run's folder, with a folder for each seed that holds
    its last snapshot. A thread writes them, so that the fit does not wait.
    """

    def __init__(self, out_dir: Path, settings: Any):
        """Keep the run in `out_dir` with these settings, the values of the flags."""
        self.out_dir, self.settings = out_dir, settings
        self.folder = out_dir / UNFINISHED / f"{jax.process_index()}_of_{jax.process_count()}"
        self.every = 60 * settings.checkpoint_minutes
        self.writer, self.writing = ThreadPoolExecutor(1), None
        self.terms: dict = {}
        self.latest: tuple[int, Snapshot] | None = None
        self.kept: tuple[int, Snapshot] | None = None
        self.at, self.stage, self.complained = time.monotonic(), 0, False

    # Whether to resume

    def can_resume(self) -> bool:
        """Whether the folder holds an unfinished run with the same settings and versions.

        Raises:
            InputError: it holds another unfinished run, which may not be replaced, or none with --resume.
        """
        if jax.process_index() == 0:  # before the other processes of this run begin
            remove_leftovers(self.out_dir)
            if self.settings.resume is False and self.settings.overwrite:
                self.discard()
        found = self.saved_terms()
        if found is None:
            if self.settings.resume:
                raise InputError(
                    f"{self.out_dir} holds no unfinished run to resume: leave --resume out to begin one, or give its "
                    "--out_dir"
                )
            return False
        self.check(found, terms(self.settings))
        return self.saved_terms() is not None

    def begin(self, case: Case) -> None:
        """Record the checksums of the case's inputs, and compare them with the unfinished run's, if there is one."""
        case.sums = {name: checksum(path) for name, path in case.files.items()}
        self.terms = terms(self.settings, case)
        if (found := self.saved_terms()) is not None:
            self.check(found, self.terms)

    def saved_terms(self) -> dict | None:
        """Terms of the unfinished run in the folder, None if there is none; raise InputError if they are damaged."""
        others = sorted(self.folder.parent.glob("*_of_*")) if jax.process_count() == 1 else []
        return next(filter(None, map(run_folder.read_terms, (self.folder, *others))), None)

    def check(self, before: dict, now: dict) -> None:
        """Discard an unfinished run with other terms if it may be replaced; else raise InputError."""
        unlike = differences(before, now)
        if self.settings.resume is False:
            unlike = ["--noresume is given", *unlike]
        if not unlike:
            return
        found = f"{self.out_dir} holds an unfinished run that cannot be resumed, as {'; '.join(unlike[:3])}"
        if self.settings.resume:
            raise InputError(f"{found}: start it as before, or leave --resume out and add --overwrite to begin anew")
        if not self.settings.overwrite:
            raise InputError(f"{found}: start it as before, give another --out_dir, or --overwrite to begin anew")
        self.discard()

    def discard(self) -> None:
        """Remove the saved states."""
        remove_saved(self.folder.parent)

    # Saving

    def load_snapshot(self, seed_number: int) -> Snapshot | None:
        """Load the snapshot from which to resume the fit of a seed; None where that starts from the beginning."""
        self.at, self.stage = time.monotonic(), 0
        for path in sorted((self.folder / f"seed_{seed_number}").glob("[0-9]*"), reverse=True):
            if path.name.isdecimal():
                try:
                    found, _ = Snapshot.load(path)
                except (OSError, InputError) as error:
                    raise InputError(
                        f"the state kept in {path} cannot be read ({str(error).splitlines()[0]}): begin anew, with "
                        "--noresume --overwrite"
                    ) from error
                self.latest = self.kept = (seed_number, found)
                self.stage = found.state.stage
                log.run_resumed(position(found), self.settings.seed + seed_number, self.out_dir)
                return found
        return None

    def keep(self, seed_number: int, snapshot: Snapshot) -> None:
        """Take a snapshot of the fit of a seed, and start to write it if the last one is old enough."""
        self.latest = (seed_number, snapshot)
        signals.check_stopped()
        waited = time.monotonic() - self.at
        if waited >= self.every or (snapshot.state.stage != self.stage and waited > PAUSE):
            self.stage = snapshot.state.stage
            self.write(wait=not self.every)

    def finish_seed(self) -> None:
        """Start to write the end of a seed's fit."""
        self.wait()
        self.write(wait=False)

    def write(self, wait: bool) -> None:
        """Start to write the latest snapshot, unless another is being written; `wait` until it is on disk."""
        if self.latest is None or (not wait and self.writing and not self.writing.done()):
            return
        self.wait()
        self.at = time.monotonic()
        self.writing = self.writer.submit(self.write_now, *self.latest)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until the snapshot is on disk; raise TimeoutError after WRITING seconds."""
        if isinstance(self.writing, Future):
            try:
                self.writing.result(WRITING)
            except TimeoutError as error:
                raise TimeoutError(
                    f"the fit's state could not be written to {self.folder} within {WRITING / 60:.0f} minutes: see "
                    "that the disk answers, or give another --out_dir"
                ) from error

    def write_now(self, seed_number: int, snapshot: Snapshot) -> None:
        """Write the snapshot in place of earlier ones; warn, once, where that fails."""
        if self.kept and self.kept[1] is snapshot:
            return
        try:
            folder = self.folder / f"seed_{seed_number}"
            folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / TERMS).exists():
                run_folder.write_json(self.folder / TERMS, self.terms)
            earlier = [path for path in folder.iterdir() if path.name.isdecimal()]
            number = max((int(path.name) for path in earlier), default=0) + 1
            snapshot.save(folder / f"{number:08d}")
            self.kept, self.complained = (seed_number, snapshot), False
            for path in earlier:
                shutil.rmtree(path, ignore_errors=True)
        except OSError as error:
            if not self.complained:
                why = f"{error.strerror}: {error.filename}" if error.strerror else str(error)
                log.checkpoint_failed(why)
            self.complained = True

    # Stopping

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Save the fit where anything stops the run in this context, and add to the error how to resume."""
        with signals.Rescue(partial(self.write, wait=True), self.describe):
            try:
                yield
            except InputError:  # which the same command would raise again
                self.wait()
                remove_saved(self.folder)
                raise
            except (KeyboardInterrupt, Exception) as error:
                with contextlib.suppress(KeyboardInterrupt, TimeoutError):
                    self.write(wait=True)
                if self.kept or isinstance(error, KeyboardInterrupt):
                    error.add_note(self.describe())
                raise

    def describe(self) -> str:
        """Say what is saved and how to resume."""
        if self.kept is None:
            return "nothing is saved yet: run the same command to start again"
        seed_number, snapshot = self.kept
        seed = f" from seed {self.settings.seed + seed_number}" * (self.settings.seeds > 1)
        return f"the fit{seed} is saved at {position(snapshot)} in {self.folder}: run the same command to resume"

    def finish(self) -> None:
        """Remove the saved states, once the results are complete."""
        self.wait()
        self.writer.shutdown()
        remove_saved(self.folder)
        with contextlib.suppress(OSError):  # other processes of the run may not be done
            self.folder.parent.rmdir()


def position(snapshot: Snapshot) -> str:
    """Position of a fit in its schedule, in words."""
    state = snapshot.state
    return "the end of the last stage" if snapshot.finished else f"step {state.step} of stage {state.stage + 1}"


def remove_saved(folder: Path) -> None:
    """Remove the folder of an unfinished run; first run.json, which marks it as one."""
    for path in [folder / TERMS, *folder.glob(f"*/{TERMS}")]:
        remove(path)
    shutil.rmtree(folder, ignore_errors=True)


def terms(settings: Any, case: Case | None = None) -> dict:
    """The terms that decide the numbers of a run: settings, versions, processes, devices, checksums of its inputs."""
    known = {
        "settings": {k: v for k, v in record.settings_of(settings).items() if k not in FREE},
        "versions": {name: record.version(name) for name in record.PACKAGES},
        "processes": jax.process_count(),
        "devices": jax.local_device_count(),  # the targets are distributed over them
    }
    if case is not None:
        known |= {"inputs": case.sums, "failed": sorted(case.failed)}
    return json.loads(json.dumps(known, default=str))


def differences(before: dict, now: dict) -> list[str]:
    """Describe how the terms of an unfinished run differ from those of this one, as far as both are known."""
    found = []
    for kind, label in (("settings", "--{}"), ("versions", "{}'s version"), ("inputs", "the input {}")):
        if kind not in now:
            continue
        old, new = before[kind], now[kind]
        for name in [*old, *(name for name in new if name not in old)]:
            if old.get(name) != new.get(name):
                was = (
                    f" was {format_setting(old.get(name))} and is {format_setting(new.get(name))}"
                    if kind != "inputs"
                    else " changed"
                )
                found.append(label.format(name) + was)
    for kind in ("processes", "devices"):
        if before[kind] != now[kind]:
            found.append(f"it had {before[kind]} {kind} and there are {now[kind]}")
    if now.get("failed", before["failed"]) != before["failed"]:
        found.append("other targets can be used now")
    return found


def format_setting(value: Any) -> str:
    """A setting as one types it."""
    return ",".join(map(str, value)) if isinstance(value, list) else "not given" if value is None else str(value)


def remove_leftovers(out_dir: Path) -> None:
    """Remove what a run left behind that was killed while it wrote, or at its very end.

    Files younger than this process are left: they may belong to another process of this run.
    """
    folder = out_dir / UNFINISHED
    if not folder.is_dir():
        return
    for path in unfinished_files(out_dir):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < psutil.Process().create_time():
                path.unlink()
    if not any(folder.glob(f"*/{TERMS}")) and all("_of_" in p.name for p in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
