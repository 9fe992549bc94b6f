"""Runs of several processes, on one host or many, that share the targets; JAX's runtime connects them."""

import re
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from cryotrans_jax.io.files import InputError

from .settings import HostSettings

ADDRESS = re.compile(r"(.+):([0-9]{1,5})")
JOINING = 300  # s that processes wait for one another at the start
PATIENCE = 30 * 24 * 3600  # s that finished processes wait for those that still fit; a dead one is noticed
NAMES = ("coordinator", "processes", "process")

Result = TypeVar("Result")


def join(settings: HostSettings) -> None:
    """Join this process to the others of the run, if there are several.

    Call it before JAX is used; further calls do nothing. Lines printed from then on begin with [process/processes].

    Raises:
        InputError: flags contradict each other, or the processes do not find each other.
    """
    if jax.distributed.is_initialized():
        return
    given = {name: getattr(settings, name) for name in NAMES}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(NAMES):
        if settings.distributed:
            connect()
        return
    if missing:
        raise InputError(f"--coordinator, --processes and --process go together: give {' and '.join(missing)} as well")
    if settings.distributed is False:
        raise InputError("--nodistributed contradicts --coordinator: leave one of them out")
    if not (address := ADDRESS.fullmatch(settings.coordinator)) or not 0 < int(address[2]) < 65536:
        raise InputError(f"--coordinator={settings.coordinator} is no address: give process 0's as HOST:PORT")
    if settings.process >= settings.processes:
        raise InputError(
            f"--process={settings.process} is not one of --processes={settings.processes}: they are counted from 0"
        )
    probe(address[1], int(address[2]), settings.process == 0)
    connect(settings.coordinator, settings.processes, settings.process)


def probe(host: str, port: int, first: bool) -> None:
    """Check that process 0 can open the port, and that the others reach it, as JAX's runtime exits if they cannot.

    Args:
        host: of process 0.
        port: of process 0.
        first: whether this is process 0.

    Raises:
        InputError: the port is taken, or not reached within JOINING seconds.
    """
    end = time.monotonic() + JOINING
    while True:
        try:
            with socket.create_server(("", port)) if first else socket.create_connection((host.strip("[]"), port), 5):
                return
        except OSError as error:
            if first:
                raise InputError(f"port {port} cannot be taken ({error.strerror}): name another one") from error
            if time.monotonic() > end:
                raise InputError(
                    f"process 0 cannot be reached at {host}:{port} ({error.strerror or error}): start it within "
                    f"{JOINING} s of the others, and see that this host can reach that one"
                ) from error
            time.sleep(0.5)


def connect(*place: Any) -> None:
    """Connect this process to the others by JAX's runtime, and label its output.

    Args:
        place: address of process 0, number of processes, number of this process; if left out JAX finds them (SLURM,
            TPU pods, Open MPI and others).
    """
    try:
        jax.distributed.initialize(*place, initialization_timeout=JOINING, shutdown_timeout_seconds=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the processes could not be joined ({str(error).splitlines()[0]}): where JAX does not recognise the "
            "cluster, give --coordinator, --processes and --process"
        ) from error
    if jax.process_count() > 1:
        label = f"[{jax.process_index()}/{jax.process_count()}] "
        sys.stdout, sys.stderr = Labelled(sys.stdout, label), Labelled(sys.stderr, label)


def share(targets: int) -> range:
    """Numbers of the targets that this process fits: every n-th for n processes, so all fit as many to within one."""
    return range(jax.process_index(), targets, jax.process_count())


def after_first(work: Callable[[], Result]) -> Result:
    """Call `work` in process 0, and in the others after that, such as to check a folder before others write to it.

    Raises:
        InputError: in the other processes, if process 0 failed.
    """
    if jax.process_count() == 1:
        return work()
    if jax.process_index() == 0:
        done = False
        try:
            result = work()
            done = True
        finally:  # the others wait for the outcome, good or bad
            multihost_utils.broadcast_one_to_all(np.int32(done))
        return result
    if not multihost_utils.broadcast_one_to_all(np.int32(False)):
        raise InputError("process 0 could not start: see its error message")
    return work()


class Labelled:
    """A text stream that adds a label to each line, written line by line so that those of processes do not mix."""

    def __init__(self, stream: TextIO, label: str):
        """Write lines to `stream`."""
        self.stream, self.label, self.unfinished = stream, label, ""

    def write(self, text: str) -> int:
        """Write complete lines at once, and keep the rest; return the number of characters taken."""
        *lines, self.unfinished = (self.unfinished + text).split("\n")
        if lines:
            self.stream.write("".join(f"{self.label}{line}\n" for line in lines))
            self.stream.flush()
        return len(text)

    def flush(self) -> None:
        """Flush the stream; an incomplete line stays here."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Return False, as several processes cannot share a progress bar."""
        return False

    def __getattr__(self, name: str) -> Any:
        """Take all other attributes from the stream."""
        return getattr(self.stream, name)
