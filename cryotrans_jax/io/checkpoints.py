"""Save and restore a fit: arrays and their description in one orbax checkpoint, written whole or not at all.

A checkpoint holds the SHA-256 of each of its files, and is restored only if they are as they were written.
"""

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from cryotrans_jax.io.files import SUMS, InputError, check_sum, checksum, input_errors, read_checksums, write_checksums

MARGIN = 2**17  # bytes that orbax writes besides the arrays
ORBAX_LOCK = threading.Lock()  # orbax counts its writes per process and confuses those of two threads


def save(path: str | os.PathLike, arrays: PyTree, description: dict[str, Any]) -> None:
    """Save arrays and their description in a folder.

    A checkpoint that exists is replaced once the new one is complete. Where JAX runs in several processes, each saves
    independently, without waiting for the others.

    Args:
        path: path of the folder.
        arrays: nested dicts of arrays; lists of them as `to_numbered` makes them. Any may be empty.
        description: plain JSON values.

    Raises:
        OSError: it cannot be written; an existing checkpoint is unchanged.
    """
    if jax.process_count() > 1:  # orbax lets only process 0 write, but a child is outside JAX's runtime
        with ProcessPoolExecutor(1, get_context("spawn")) as child:
            child.submit(write_in_child, path, jax.device_get(arrays), description).result()
    else:
        write(path, arrays, description)


def write(path: str | os.PathLike, arrays: PyTree, description: dict[str, Any]) -> None:
    """Save a checkpoint, as `save`, in the only process of JAX."""
    path = Path(path).absolute()
    check_room(path, sum(np.asarray(array).nbytes for array in jax.tree.leaves(arrays)))
    new, old = (path.with_name(f".{path.name}.{which}") for which in ("new", "old"))
    remove(new)
    try:
        with ORBAX_LOCK, ocp.Checkpointer(handler()) as checkpointer:
            full, empty = split_empty(arrays)
            described = {"description": description, "empty": empty}
            parts = ocp.args.Composite(arrays=ocp.args.StandardSave(full), description=ocp.args.JsonSave(described))
            checkpointer.save(new, args=parts, force=True)
        write_checksums(new, {name: checksum(new / name) for name in contents(new)})
        remove(old)
        if os.path.lexists(path):  # moved here, because orbax would delete it before the new one is complete
            path.rename(old)
        new.rename(path)
    except (ValueError, RuntimeError) as error:  # orbax reports disk errors so, at length
        raise OSError(errno.EIO, "the checkpoint cannot be written (is the disk full?)", str(path)) from error
    finally:
        remove(new)
        for part in path.parent.glob(f"{new.name}.orbax-checkpoint-tmp*"):
            remove(part)
    remove(old)


def check_room(path: Path, size: int) -> None:
    """Check that the disk has room for `size` bytes beside `path`.

    Orbax's threads would each print a traceback when the disk is full.

    Raises:
        OSError: the disk has no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=path.parent, buffering=0) as file:  # without a name: it leaves nothing behind
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size + MARGIN)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or errno.EIO), str(path)) from error


def remove(path: Path) -> None:
    """Remove a folder, a file or a link, but never the target of a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def contents(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, except SHA256SUMS and hidden ones (of a file manager).

    Raises:
        InputError: there is a link, a pipe or a device among them.
    """
    found = []
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise InputError(f"{path} is a link or no plain file, which a checkpoint never holds: remove {folder}")
        found += [Path(place, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return sorted(set(found) - {SUMS})


def check(folder: Path) -> None:
    """Raise InputError unless the checkpoint has exactly the files listed, each as it was written."""
    found, sums = contents(folder), read_checksums(folder)
    for name in sums:
        check_sum(folder, name, sums)
    if unlisted := set(found) - set(sums):
        raise InputError(f"{folder / min(unlisted)} is not listed in {SUMS}: copy {folder} again, or make it anew")


def version_errors(path: str | os.PathLike, kind: str) -> AbstractContextManager[None]:
    """Raise InputError, within the block, for a checkpoint that lacks entries that this version expects.

    Args:
        path: path of the checkpoint.
        kind: what it should be, for the message, such as "a fit".
    """
    return input_errors(
        f"{path} is not {kind} of this version ({{error}}): use the version that wrote it, or make it anew"
    )


def write_in_child(*arguments: Any) -> None:
    """Save a checkpoint, as `write`, in a child process that leaves the accelerators to its parent."""
    jax.config.update("jax_platforms", "cpu")
    write(*arguments)


def restore(path: str | os.PathLike) -> tuple[PyTree, dict[str, Any]]:
    """Restore the arrays (NumPy, nested dicts) and the description saved under `path`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        InputError: it is damaged, incomplete, or of a version that wrote no checksums.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no checkpoint here", str(path))
    check(path)
    with version_errors(path, "a checkpoint"), ocp.Checkpointer(handler()) as checkpointer:
        parts = ocp.args.Composite(arrays=ocp.args.StandardRestore(), description=ocp.args.JsonRestore())
        restored = checkpointer.restore(path, args=parts)
        described = restored["description"]
        return join_empty(restored["arrays"], described["empty"]), described["description"]


def to_numbered(arrays: Iterable) -> dict[str, Any]:
    """A dict of the arrays whose keys sort in their order."""
    return {f"{number:03d}": array for number, array in enumerate(arrays)}


def from_numbered(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The arrays of a dict from `to_numbered`."""
    return tuple(arrays[key] for key in sorted(arrays))


def split_empty(tree: PyTree, path: tuple[str, ...] = ()) -> tuple[dict, list]:
    """Split a nested dict into the arrays that orbax takes, and what it does not take, as JSON values.

    Arrays of size 0 become [path, shape, type], and dicts without entries [path].
    """
    full: dict[str, Any] = {}
    empty: list[list] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            inside, none = split_empty(value, (*path, key))
            full, empty = full | ({key: inside} if inside else {}), empty + none
        elif isinstance(value, dict):
            empty.append([[*path, key]])
        elif np.size(value):
            full[key] = np.asarray(value)
        else:
            empty.append([[*path, key], list(np.shape(value)), str(np.asarray(value).dtype)])
    return full, empty


def join_empty(full: PyTree, empty: list) -> dict:
    """Undo `split_empty`."""
    for path, *kind in empty:
        place = full
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = np.zeros(*kind) if kind else {}
    return full


def handler() -> ocp.CompositeCheckpointHandler:
    """Orbax's handler for the two parts of a checkpoint."""
    return ocp.CompositeCheckpointHandler(
        arrays=ocp.StandardCheckpointHandler(), description=ocp.JsonCheckpointHandler()
    )
