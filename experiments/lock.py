"""Lock files, by which only one program at a time writes to a folder.

A lock is a file, created only if it does not exist, that names its owner: host, process, and when that started. The
owner renews the file's time as long as it runs. A lock whose owner on this host has ended is taken over. Processes on
other hosts cannot be queried, so their lock is valid until the file has not been renewed for ABANDONED seconds.

Each process of a distributed run has a lock file of its own. The first process makes sure that there is no other
program; the others create theirs after it, and check only that file.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from cryotrans_jax.io.files import InputError, write_file

from . import log

NAME = re.compile(r"running(_\d+)?\.lock")
RENEWED = 30.0  # s between renewals of a lock by its owner
SILENT = 300.0  # s without renewal, after which a process of this host that cannot be queried counts as ended
ABANDONED = 3600.0  # s without renewal, after which a process of another host counts as ended
SAME_START = 60.0  # s by which start times of one process may differ, as system clocks are adjusted
BOOT, NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
HELD: dict[Path, str] = {}  # lock files of this process, and their contents


@contextlib.contextmanager
def held(folder: Path, process: int = 0) -> Iterator[None]:
    """Hold the lock of a folder within the block; blocks of one process may be nested.

    Args:
        folder: an existing folder that is going to be written to.
        process: number of this process in a distributed run.

    Raises:
        InputError: another program writes to the folder, to a folder in it, or to its parent.
    """
    path = folder.resolve() / ("running.lock" if process == 0 else f"running_{process}.lock")
    if path in HELD:
        yield
        return
    with owned(path):
        if process == 0:
            check_others(path)
        yield


@contextlib.contextmanager
def owned(path: Path) -> Iterator[None]:
    """Own a lock file within the block, and renew it; unlike `held`, this looks at no other lock.

    Raises:
        InputError: another program owns it.
    """
    HELD[path] = acquire(path)
    try:
        with renewing(path):
            yield
    finally:
        release(path)


def acquire(path: Path) -> str:
    """Create the lock file, or take it over from an owner that has ended; return its content."""
    content = json.dumps(this_process())
    while not create(path, content):
        if not owner_ended(path):
            continue
        guard = path.with_suffix(".takeover")  # so that of two programs only one takes the lock over
        if not create(guard, content):
            raise InputError(f"another program is taking over {path}: try again, or remove {guard} if none is running")
        try:
            if owner_ended(path):
                write_file(path, content)
                log.lock_taken_over(path)
                return content
        finally:
            guard.unlink(missing_ok=True)
    return content


def release(path: Path) -> None:
    """Remove the lock file if it still is this process's."""
    content = HELD.pop(path)
    with contextlib.suppress(OSError):
        if path.read_text() == content:
            path.unlink()


def create(path: Path, content: str) -> bool:
    """Create the file unless it exists; return whether it was created."""
    try:
        with open(path, "x") as file:
            file.write(content)
    except FileExistsError:
        return False
    except OSError:  # from the disk, after the file was created
        path.unlink(missing_ok=True)
        raise
    return True


def check_others(path: Path) -> None:
    """Raise InputError where the folder of this lock, a folder in it or its parent has another valid lock.

    Each of two programs checks after it has created its own lock, so that at least one sees the other.
    """
    folder = path.parent
    found = [*folder.glob("running*.lock"), *folder.glob("*/running*.lock"), *folder.parent.glob("running*.lock")]
    for other in found:
        if NAME.fullmatch(other.name) and other not in HELD and owner_ended(other) and other.parent == folder:
            other.unlink(missing_ok=True)  # left by another process of a distributed run


def owner_ended(path: Path) -> bool:
    """Whether the owner of a lock has ended; False where the file is gone.

    Raises:
        InputError: the owner runs or may run, or the file is not a lock.
    """
    try:
        if path.is_symlink() or not path.is_file():
            if not os.path.lexists(path):
                return False
            raise InputError(f"{path} is a link or a folder, where a lock is a plain file: remove it")
        content, renewed_at = path.read_text(errors="replace"), path.stat().st_mtime
    except FileNotFoundError:
        return False
    owner, silent = parse_owner(content), disk_time(path.parent) - renewed_at
    if content and owner is None:
        raise InputError(f"{path} is not a lock that this program has written: rename it, or give another folder")
    if has_ended(owner, silent):
        return True
    who = f"process {owner['pid']} on {owner['host']}" if owner else "a program that is just starting"
    raise InputError(
        f"{path.parent} is in use by {who}: wait for its end, or give another folder; if it runs no more, remove {path}"
    )


def has_ended(owner: dict[str, Any] | None, silent: float) -> bool:
    """Whether an owner has ended; None is an owner that has not written its name yet.

    Args:
        silent: seconds since it renewed its lock.
    """
    here = this_process()
    if owner is None:
        return silent > SILENT
    if owner["host"] != here["host"]:
        return silent > ABANDONED
    if owner["machine"] != here["machine"]:  # before a reboot, or in another container
        return silent > SILENT
    try:
        process = psutil.Process(owner["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        same = abs(process.create_time() - owner["started"]) < SAME_START
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        same = True
    return not same and silent > SILENT


def parse_owner(content: str) -> dict[str, Any] | None:
    """The owner that a lock file names; None if it names none."""
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):
        return None
    kinds = {"host": str, "machine": str, "pid": int, "started": float, "token": str}
    known = isinstance(owner, dict) and {key: type(value) for key, value in owner.items()} == kinds
    return owner if known and 0 < owner["pid"] < 2**31 else None


def this_process() -> dict[str, Any]:
    """This process as a lock file names it; the token distinguishes it from a later process with the same number."""
    return {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": os.getpid(),
        "started": float(psutil.Process().create_time()),
        "token": secrets.token_hex(8),
    }


def machine() -> str:
    """Identifier of this host and boot, and of the container, as host names may repeat; "" where there is none."""
    try:
        return f"{BOOT.read_text().strip()} {os.readlink(NAMESPACE)}"
    except OSError:
        return ""


def disk_time(folder: Path) -> float:
    """Current time by the clock of the folder's file system."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # a folder that is only read
        return time.time()


@contextlib.contextmanager
def renewing(path: Path) -> Iterator[None]:
    """Renew the lock file's time every RENEWED seconds within the block."""
    done = threading.Event()

    def renew() -> None:
        while not done.wait(RENEWED):
            with contextlib.suppress(OSError):
                if path.read_text() == HELD[path]:
                    os.utime(path)

    thread = threading.Thread(target=renew, daemon=True, name="lock")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
