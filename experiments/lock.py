"""A folder is written to by one program at a time: the lock file, and how one that was left behind is taken over.

The lock is a file, created only if it is not there, that names its owner: host, process and when that began. The owner
renews the file's time as long as it runs. A lock whose owner on this host has ended is taken over. Whether a process on
another host runs cannot be asked, so its lock counts until the file has not been renewed for ABANDONED seconds.

The processes of one distributed run have a lock file each. The first makes sure that there is no other program; the
rest take theirs after it has begun, and look only after their own file.
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

from cryotrans_jax.files import InputError, write_file

from . import log

NAME = re.compile(r"running(_\d+)?\.lock")
RENEWED = 30.0  # s: an owner renews its lock so often
SILENT = 300.0  # s without renewal, after which a process of this host that cannot be asked for has ended
ABANDONED = 3600.0  # s without renewal, after which a process of another host has ended
SAME_START = 60.0  # s within which two times are of one process: the clock from which they are counted is adjusted
BOOT, NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
HELD: dict[Path, str] = {}  # locks of this process, with their contents


@contextlib.contextmanager
def held(folder: Path, process: int = 0) -> Iterator[None]:
    """Hold the lock of a folder, which must be there; a block within a block that holds it already is free to.

    Args:
        folder: the folder that is going to be written to.
        process: the number of this process among those of a distributed run.

    Raises:
        InputError: another program writes to the folder, to one in it, or to the one that it is in.
    """
    path = folder.resolve() / ("running.lock" if process == 0 else f"running_{process}.lock")
    if path in HELD:
        yield
        return
    HELD[path] = take(path)
    try:
        if process == 0:
            check_others(path)
        with renewed(path):
            yield
    finally:
        release(path)


def take(path: Path) -> str:
    """Create the lock file, or take it over from an owner that has ended, and return its content."""
    content = json.dumps(this_process())
    while not create(path, content):
        if not ended(path):
            continue
        guard = path.with_suffix(".takeover")  # so that two programs cannot take it over from one another
        if not create(guard, content):
            raise InputError(f"another program is taking over {path}: try again, or remove {guard} if none is running")
        try:
            if ended(path):
                write_file(path, content)
                log.lock_taken_over(path)
                return content
        finally:
            guard.unlink(missing_ok=True)
    return content


def release(path: Path) -> None:
    """Remove the lock file if it is still this process's own."""
    content = HELD.pop(path)
    with contextlib.suppress(OSError):
        if path.read_text() == content:
            path.unlink()


def create(path: Path, content: str) -> bool:
    """Create the file unless there is one already; return whether it was created."""
    try:
        with open(path, "x") as file:
            file.write(content)
    except FileExistsError:
        return False
    except OSError:  # of the disk, where the file may be there
        path.unlink(missing_ok=True)
        raise
    return True


def check_others(path: Path) -> None:
    """Raise InputError where the folder of this lock, one in it or the one that it is in has another that counts.

    Each of two programs looks for the other after it has created its own lock, so that at least one sees the other.
    """
    folder = path.parent
    found = [*folder.glob("running*.lock"), *folder.glob("*/running*.lock"), *folder.parent.glob("running*.lock")]
    for other in found:
        if NAME.fullmatch(other.name) and other not in HELD and ended(other) and other.parent == folder:
            other.unlink(missing_ok=True)  # of another process of a distributed run


def ended(path: Path) -> bool:
    """Whether the owner of a lock has ended; False where the file is gone.

    Raises:
        InputError: it runs, or may run.
    """
    try:
        if path.is_symlink() or not path.is_file():
            if not os.path.lexists(path):
                return False
            raise InputError(f"{path} is a link or a folder, where a lock is a plain file: remove it")
        content, renewed_at = path.read_text(errors="replace"), path.stat().st_mtime
    except FileNotFoundError:
        return False
    owner, silent = owner_in(content), file_time(path.parent) - renewed_at
    if content and owner is None:
        raise InputError(f"{path} is not a lock that this program has written: rename it, or give another folder")
    if has_ended(owner, silent):
        return True
    who = f"process {owner['pid']} on {owner['host']}" if owner else "a program that is just beginning"
    raise InputError(
        f"{path.parent} is in use by {who}: wait for its end, or give another folder; if it runs no more, remove {path}"
    )


def has_ended(owner: dict[str, Any] | None, silent: float) -> bool:
    """Whether an owner has ended, whose lock was renewed so many seconds ago; None is one that has not said who."""
    here = this_process()
    if owner is None:
        return silent > SILENT
    if owner["host"] != here["host"]:
        return silent > ABANDONED
    if owner["machine"] != here["machine"]:  # started since, or another container
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


def owner_in(content: str) -> dict[str, Any] | None:
    """The owner that a lock file names, or None."""
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):
        return None
    kinds = {"host": str, "machine": str, "pid": int, "started": float, "token": str}
    known = isinstance(owner, dict) and {key: type(value) for key, value in owner.items()} == kinds
    return owner if known and 0 < owner["pid"] < 2**31 else None


def this_process() -> dict[str, Any]:
    """This process as a lock file names it; the token tells it from a later one of the same number."""
    return {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": os.getpid(),
        "started": float(psutil.Process().create_time()),
        "token": secrets.token_hex(8),
    }


def machine() -> str:
    """What tells this host, since its last start, from another of the same name, as containers may have; else ""."""
    try:
        return f"{BOOT.read_text().strip()} {os.readlink(NAMESPACE)}"
    except OSError:
        return ""


def file_time(folder: Path) -> float:
    """Now, by the clock of the disk on which the folder is."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # one that is only looked at
        return time.time()


@contextlib.contextmanager
def renewed(path: Path) -> Iterator[None]:
    """Within it the lock file's time is renewed every RENEWED seconds."""
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
