"""The files of maps that are open in ChimeraX: those that they were opened from, or written ones."""

import hashlib
import os
from pathlib import Path
from typing import Any

SUFFIXES = (".mrc", ".map", ".ccp4")  # of files that the program reads
HEADER, LABELS = 1024, 220  # bytes of an MRC header, and where its labels begin, which may have the time of writing
CHUNK = 2**24  # bytes that are read at once


def file_of(grid: Any) -> Path | None:
    """The file that holds a map as ChimeraX has it; None where the map has to be written first.

    Args:
        grid: data of the map, a `GridData` of ChimeraX. It was not read from one map in one file, or has been changed
            since, if it is writable (an array in memory), or has another origin or voxel size than the file.
    """
    path = grid.path
    if not isinstance(path, str) or not path or grid.grid_id or getattr(grid, "writable", False):
        return None
    moved = tuple(grid.origin) != tuple(grid.original_origin) or tuple(grid.step) != tuple(grid.original_step)
    found = Path(path)
    return None if moved or found.suffix.lower() not in SUFFIXES or not found.is_file() else found.absolute()


def replace(new: Path, old: Path) -> None:
    """Move a file that was just written to its place, unless the same is there already.

    A file that stays as it was lets the program resume a run that was stopped.

    Args:
        new: the file that was written.
        old: its place; maps there may differ in the labels of their headers.
    """
    if old.is_file() and old.stat().st_size == new.stat().st_size and digest(old) == digest(new):
        new.unlink()
    else:
        os.replace(new, old)


def digest(path: Path) -> str:
    """Checksum of a file; of a map without the labels of its header."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        if path.suffix == ".mrc":
            found.update(file.read(LABELS))
            file.seek(HEADER)
        while part := file.read(CHUNK):
            found.update(part)
    return found.hexdigest()
