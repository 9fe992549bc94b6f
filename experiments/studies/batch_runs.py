"""The runs of a batch: each pair is morphed by a process of its own, whose output is kept, several at the same time."""

import contextlib
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryotrans_jax.io import cores
from cryotrans_jax.io.files import InputError

from .. import lock, log, signals
from . import batch_table
from .batch_list import Pair
from .batch_state import CLAIM, LOG, Plan, beside, command, environment, is_done, read_record, record

POLL = 0.1  # s between looks at the processes
LEAVING = signals.GRACE - 1  # s for runs to save their states, before the batch itself has to end
BUSY = "another program is morphing it"


@dataclass(frozen=True)
class Started:
    """A pair that is being morphed.

    Attributes:
        pair: the pair.
        process: of its run.
        begin: when that began, s.
        offset: bytes of its log that are older.
        claim: gives the pair back when it is closed.
        cores: that it may use.
    """

    pair: Pair
    process: subprocess.Popen
    begin: float
    offset: int
    claim: contextlib.ExitStack
    cores: set[int]


class Batch:
    """Runs pairs as planned, and says how far it is.

    Attributes:
        plan: how they are run.
        not_done: why pairs are not done, by their names.
    """

    def __init__(self, plan: Plan):
        """Plan to run pairs so."""
        self.plan = plan
        self.not_done: dict[str, str] = {}
        self.running: list[Started] = []
        self.free = cores.shares(plan.at_once)
        self.begun, self.ended, self.count = 0, 0, 0
        self.seconds: list[float] = []

    def run(self, pairs: Sequence[Pair]) -> None:
        """Run those that are not done, in this order; where the batch is stopped, stop those that run."""
        waiting = deque(pair for pair in pairs if not self.is_settled(pair))
        self.count, self.begun, self.ended = len(pairs), len(pairs) - len(waiting), len(pairs) - len(waiting)
        kept = self.ended - len(self.not_done)
        log.info(f"{counted(self.count)}: {kept} done already, {len(waiting)} to morph, {self.plan.at_once} at a time")
        for name, why in self.not_done.items():
            log.info(f"{name}: failed: {why}")
        try:
            while waiting or self.running:
                while waiting and len(self.running) < self.plan.at_once:
                    self.start(waiting.popleft())
                time.sleep(POLL)
                for started in [each for each in self.running if each.process.poll() is not None]:
                    self.finish(started)
        except BaseException as error:
            self.stop()
            if isinstance(error, KeyboardInterrupt):
                error.add_note("the runs are saved: give the same command to go on")
            raise

    def is_settled(self, pair: Pair) -> bool:
        """Whether nothing is to be run for a pair: it is done, or its folder holds another run."""
        out_dir = self.plan.out_dir
        try:
            if not is_done(pair, self.plan):
                return False
        except InputError as error:
            self.not_done[pair.name] = str(error)
            record(out_dir, pair, str(error))
            return True
        if read_record(out_dir, pair).get("failed"):
            record(out_dir, pair)
        return True

    def start(self, pair: Pair) -> None:
        """Start to morph a pair, unless another program does."""
        out_dir, self.begun = self.plan.out_dir, self.begun + 1
        claim = contextlib.ExitStack()
        try:
            claim.enter_context(lock.owned(beside(out_dir, pair, CLAIM)))
            lock.owner_ended(out_dir / pair.name / "running.lock")
        except InputError as error:
            claim.close()
            self.not_done[pair.name] = BUSY
            self.tell(pair, f"left out, as {BUSY}: {error}")
            return
        if self.is_settled(pair):  # meanwhile, by another program
            claim.close()
            self.tell(pair, "done already")
            return
        arguments = command(pair, self.plan)
        with beside(out_dir, pair, LOG).open("ab") as output:
            output.write(f"$ {subprocess.list2cmdline(arguments)}\n".encode(errors="replace"))
            output.flush()
            offset = output.tell()
            process = subprocess.Popen(
                arguments,
                cwd=pair.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal signals the batch alone, which passes it on
            )
            own = self.free.pop()
            cores.bind(process.pid, own)
            self.running.append(Started(pair, process, time.monotonic(), offset, claim, own))
        log.info(f"{pair.name}: begins ({self.begun} of {self.count})")

    def finish(self, started: Started) -> None:
        """Note what became of a pair whose process has ended."""
        pair, seconds = started.pair, time.monotonic() - started.begin
        self.running.remove(started)
        self.free.append(started.cores)
        failed = ""
        if status := started.process.returncode:
            failed = last_error(beside(self.plan.out_dir, pair, LOG), started.offset, status)
            self.not_done[pair.name] = failed
        else:
            self.seconds.append(seconds)
        record(self.plan.out_dir, pair, failed, seconds)
        started.claim.close()
        said = failed or batch_table.in_words(batch_table.row(pair, self.plan.out_dir))
        self.tell(pair, f"{'failed ' if failed else ''}after {duration(seconds)}: {said}")

    def tell(self, pair: Pair, what: str) -> None:
        """Say what became of a pair, how many have ended, and how long the others may take."""
        self.ended += 1
        log.info(f"{pair.name}: {what} ({self.ended} of {self.count} ended{self.time_left()})")

    def time_left(self) -> str:
        """How long the pairs that are left may take, by those that were morphed, in words."""
        left = self.count - self.ended
        if not left or not self.seconds:
            return ""
        rounds = -(-left // self.plan.at_once)
        return f", about {duration(rounds * sum(self.seconds) / len(self.seconds))} left"

    def stop(self) -> None:
        """Stop the processes that run, so that they save their states, and wait for them as long as there is time."""
        told = [each for each in self.running if not has_caught(each.process.pid)]
        for each in told:
            each.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + LEAVING
        while time.monotonic() < end and any(each.process.poll() is None for each in self.running):
            time.sleep(POLL)
        for each in self.running:
            if each not in told:
                each.process.send_signal(signal.SIGTERM)
            record(self.plan.out_dir, each.pair, "", time.monotonic() - each.begin, stopped=True)
            each.claim.close()


def has_caught(process: int) -> bool:
    """Whether a run was signalled already, as by a cluster that signals all of a job: it then handles no second one.

    A second signal would end it before its state is saved. Only Linux tells.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        handled = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    except (OSError, StopIteration, ValueError):
        return False
    return not handled >> (signal.SIGTERM - 1) & 1


def last_error(path: Path, offset: int, status: int) -> str:
    """Why a run failed, in one sentence: its last error, or last line; what killed it, if it said nothing.

    Args:
        path: of its log.
        offset: bytes of the log that are older than this run.
        status: with which it ended; minus the number of the signal that killed it.
    """
    if status < 0:
        named = signal.Signals(-status).name if -status in {*signal.Signals} else f"signal {-status}"
        short = ", perhaps for want of memory" if named == "SIGKILL" else ""
        return f"its process was killed by {named}{short}"
    with path.open("rb") as file:
        file.seek(offset)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"it ended with status {status}"])[-1]


def counted(pairs: int) -> str:
    """A number of pairs, in words."""
    return f"{pairs} pair{'s' * (pairs != 1)}"


def duration(seconds: float) -> str:
    """A time in words, as exactly as it is known."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
