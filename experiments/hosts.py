"""Several processes, on one host or many, share a run's targets: JAX's own runtime joins them."""

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

ADDRESS = re.compile(r"(.+):([0-9]{1,5})")
JOINING = 300  # s: processes wait so long for one another at the start
PATIENCE = 30 * 24 * 3600  # s: processes that are done wait so long for those that still fit; a dead one is noticed
NAMES = ("coordinator", "processes", "process")

Result = TypeVar("Result")


def join(settings: Any) -> None:
    """Nothing; this process is one of those of the run, if the flags say that there are several.

    Must come before JAX is used. A process that has joined already stays so. What is printed from then on begins with
    [process/processes]. Raises InputError where flags contradict one another, or the processes do not find each other.
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
    """Nothing; process 0 can take the port, and the others reach it. Raises InputError where not.

    JAX's runtime ends the program by itself in these cases, with no error that could be caught.
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
    """Nothing; JAX's runtime has joined this process to the others: at the address, of so many, the number of this.

    Without a place JAX finds it out (SLURM, TPU pods, Open MPI and others).
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
    """The numbers of the targets that this process fits: every so manieth, so that all have as many to within one."""
    return range(jax.process_index(), targets, jax.process_count())


def after_first(work: Callable[[], Result]) -> Result:
    """work(), which process 0 does before the others begin. Raises InputError in those if process 0 failed.

    For what must not be done at the same time: to look whether a folder is free, and to fill it.
    """
    if jax.process_count() == 1:
        return work()
    if jax.process_index() == 0:
        done = False
        try:
            result = work()
            done = True
        finally:  # the others wait for word, good or bad
            multihost_utils.broadcast_one_to_all(np.int32(done))
        return result
    if not multihost_utils.broadcast_one_to_all(np.int32(False)):
        raise InputError("process 0 could not begin, and says why: see there")
    return work()


class Labelled:
    """A text stream whose every line begins with a label, written line by line so that processes do not mix."""

    def __init__(self, stream: TextIO, label: str):
        """Lines go to `stream`."""
        self.stream, self.label, self.begun = stream, label, ""

    def write(self, text: str) -> int:
        """The number of characters taken; whole lines are passed on at once."""
        *lines, self.begun = (self.begun + text).split("\n")
        if lines:
            self.stream.write("".join(f"{self.label}{line}\n" for line in lines))
            self.stream.flush()
        return len(text)

    def flush(self) -> None:
        """Nothing; whole lines are out already."""
        self.stream.flush()

    def isatty(self) -> bool:
        """False: several processes cannot share a progress bar."""
        return False

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked for is the stream's."""
        return getattr(self.stream, name)
