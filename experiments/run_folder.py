"""Folders of results: used by one program at a time, replaced as a whole, and checked when they are read back.

Nothing is written, moved or removed through a link inside such a folder; the folder itself may be a link of the user's.
"""

import contextlib
import csv
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryotrans_jax.io.checkpoints import remove
from cryotrans_jax.io.files import (
    SUMS,
    InputError,
    checksum,
    read_checksums,
    read_json,
    whole_file,
    write_checksums,
    write_file,
)
from cryotrans_jax.io.maps import Map, read_map, same_grid, write_map

from . import lock, log

CHECKPOINT, UNFINISHED, TERMS = "checkpoint", "unfinished", "run.json"
FRAMES = re.compile(  # what run and predict write of a fit
    r"frame_\d+\.mrc|model_\d+\.cif|generated\.(mrc|cif|pdb)|trajectory\.(cif|pdb)|geometry\.csv"
)
RECORDS = re.compile(  # what a run writes about itself
    r"(config|metrics|transform|failed)\.json|loss\.csv|(view|movie)\.cxc"
    r"|(folded|unexplained|parts|seed_spread|error)\.mrc"
    r"|displacement(_[xyz])?\.mrc|displacement\.(cif|npz)"
    r"|refine_start\.cif|isolde\.cxc|phenix\.eff"
    r"|report\.html|README\.txt|morph\.(gif|mp4)|reproduce\.(md|json)|SHA256SUMS"
    r"|fsc\.csv|fsc(_reference)?\.xml|(fsc|loss|slices|errors)\.(svg|png)"
)
KINDS = {  # kinds of results; each kind is replaced as a whole
    "run": re.compile(f"{FRAMES.pattern}|{RECORDS.pattern}"),  # with the folders of OWN
    "frames": FRAMES,
    "records": RECORDS,
    "comparison": re.compile(r"compare\.(json|csv|txt)|along\.csv|(along|ends|halfway)\.(svg|png)"),
    "study": re.compile(r"study\.(md|csv|json|svg|png)|fsc\.csv|fsc\.xml|fsc_reference\.xml"),
    "study_maps": re.compile(r"(target|generated)_.*\.mrc"),
    "imbalance": re.compile(r"imbalance\.(json|md)|fsc\.(png|svg)|(common|rare|generated|truth)\.mrc"),
    "dynamics": re.compile(r"dynamics\.(csv|json|svg|png)"),
    "rebuild": re.compile(r"reference\.pdb|sequence\.fasta|build\.sh|refine\.sh|coverage\.json|refined\.json"),
    "benchmark": re.compile(r"(benchmark\.(json|md)|run\.md)"),
    "validation": re.compile(r"validate\.(json|md)"),
    "calibration": re.compile(r"calibrate\.(json|md)|reliability\.(svg|png)"),
    "waypoints": re.compile(r"waypoints\.(json|md)"),
}
FOLDERS = re.compile(  # made by a run in its folder or that of a target, and by commands while they replace results
    r"checkpoint|unfinished|inputs|target_frame|assembly"
    r"|\.checkpoint\.(new|old).*|\.(beginning|earlier|restoring|replaced)_\w+"
)
INSIDE = ("target_frame", "assembly")  # folders of results in a target's folder
OWN = (CHECKPOINT, *INSIDE)


# Writing


@contextlib.contextmanager
def claimed(
    folder: str | Path, process: int = 0, inside: Iterable[str] = (), kinds: Iterable[str] = ("frames", "records")
) -> Iterator[Path]:
    """Make the folder if needed, and keep other programs from writing to it within the block.

    Results that a killed command was replacing are restored first.

    Args:
        folder: the folder of results; it may be a link.
        process: number of this process in a distributed run.
        inside: folders in it that will be written to as well, such as those of targets.
        kinds: the results that will be written, as keys of KINDS.

    Raises:
        InputError: the path is not a folder, cannot be written to, is in use, or has links in the place of results.
    """
    folder = Path(folder)
    new = not os.path.lexists(folder)
    make_folder(folder)
    try:
        with lock.held(folder, process):
            check_links(folder, inside, kinds)
            if process == 0:
                recover(folder)
            yield folder
    finally:
        if new:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def make_folder(folder: Path) -> None:
    """Make a folder; raise InputError where it cannot be made or written to."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder: give another --out_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:  # better to fail now than after the fit
            file.write(bytes(1024))
    except OSError as error:
        raise InputError(f"nothing can be written to {folder} ({error.strerror}): give another --out_dir") from error


def check_links(folder: Path, inside: Iterable[str] = (), kinds: Iterable[str] = ("frames", "records")) -> None:
    """Raise InputError where the folder has a link or a folder in the place of a result, or a link in its folders."""
    inside, kinds = [*inside], [*kinds]
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        result = any(KINDS[kind].fullmatch(path.name) for kind in kinds)
        if not (result or path.name in inside or FOLDERS.fullmatch(path.name)):
            continue
        if path.is_symlink():
            raise InputError(f"{path} is a link, through which no results are written: remove it, or copy the folder")
        if result and path.is_dir():
            raise InputError(f"{path} is a folder in the place of a result: rename it, or give another folder")
        if path.name in inside:
            check_links(path, kinds=kinds)
        elif path.is_dir():
            check_no_links(path)


def check_no_links(folder: Path) -> None:
    """Raise InputError where the folder is a link, or has one anywhere in it."""
    below = (Path(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files))
    for path in (folder, *below):
        if path.is_symlink():
            raise InputError(f"{path} is a link, through which no results are moved: remove it, or copy the folder")


@contextlib.contextmanager
def replacing(folder: Path, kind: str) -> Iterator[None]:
    """Let the block replace the folder's results of a kind as `keeping` does, and update a run's checksums."""
    with keeping(folder, kind), updating_checksums(folder, KINDS[kind]):
        yield


@contextlib.contextmanager
def replacing_run(folders: Iterable[Path]) -> Iterator[None]:
    """Remove a run's earlier results from the folders of its targets, and restore all of them if the block fails."""
    folders = [*folders]
    with contextlib.ExitStack() as kept:
        for folder in folders:
            kept.enter_context(keeping(folder, "run"))
        for path in results_in(folders):
            remove(path)
        yield


@contextlib.contextmanager
def keeping(folder: Path, kind: str) -> Iterator[None]:
    """Keep the folder's results of a kind until the block has ended, and restore all of them if it fails.

    They stay in a folder beside them. The block may put new files in their place and remove them, but not write into
    them. If the program is killed, the next one that claims the folder restores them.
    """
    begun, kept, done = (folder / f".{when}_{kind}" for when in ("beginning", "earlier", "replaced"))
    remove(begun)
    begun.mkdir(parents=True)
    for path in entries(folder, kind):
        link_or_copy(path, begun / path.name)
    begun.rename(kept)
    try:
        yield
    except BaseException:
        restore(folder, kind)
        raise
    kept.rename(done)  # in one step, so that a kill never leaves half of them to be restored
    remove(done)


@contextlib.contextmanager
def growing(folder: Path, kind: str) -> Iterator[Path]:
    """Claim the folder, and yield a folder in it for results of a kind that grow, such as a table.

    At the end they replace the earlier ones. If the block fails, both stay where they are.
    """
    with claimed(folder, inside=["partial"], kinds=[kind]):
        partial = folder / "partial"
        partial.mkdir(exist_ok=True)
        for path in result_files(partial, KINDS[kind]):
            path.unlink()
        yield partial
        with replacing(folder, kind):
            for path in result_files(folder, KINDS[kind]):
                path.unlink()
            for path in result_files(partial, KINDS[kind]):
                path.rename(folder / path.name)
        with contextlib.suppress(OSError):  # it may hold files of the user's
            partial.rmdir()


def link_or_copy(path: str | Path, place: str | Path) -> None:
    """Make hard links to a file, or to all files of a folder; copies where the disk has no hard links."""
    if os.path.isdir(path):
        shutil.copytree(path, place, copy_function=link_or_copy)
        return
    try:
        os.link(path, place)
    except OSError:
        shutil.copy2(path, place)


def restore(folder: Path, kind: str) -> None:
    """Restore the results of a kind that were being replaced, and remove what is in their place.

    In two steps, with a rename of their folder in between, so that each can be interrupted and repeated.
    """
    kept, restoring = folder / f".earlier_{kind}", folder / f".restoring_{kind}"
    if kept.is_dir():
        for path in entries(folder, kind):
            if not (kept / path.name).exists():
                remove(path)
        kept.rename(restoring)
    for path in restoring.iterdir():
        if path.is_dir():
            remove(folder / path.name)
        os.replace(path, folder / path.name)
        path.unlink(missing_ok=True)  # os.replace leaves two hard links of one file
    restoring.rmdir()


def recover(folder: Path) -> None:
    """Restore results that a killed command was replacing, in the folder and in the folders in it."""
    for place in [folder, *(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())]:
        for kind in KINDS:
            begun, kept, restoring, done = (
                place / f".{when}_{kind}" for when in ("beginning", "earlier", "restoring", "replaced")
            )
            if kept.exists() or restoring.exists():
                check_no_links(kept if kept.exists() else restoring)
                restore(place, kind)
                log.results_restored(place)
            remove(begun)
            remove(done)


def result_files(folder: Path, *kinds: re.Pattern) -> list[Path]:
    """Files in a folder that have names of results of these kinds; FRAMES and RECORDS if no kind is given."""
    if not folder.is_dir():
        return []
    kinds = kinds or (FRAMES, RECORDS)
    return [p for p in folder.iterdir() if not p.is_dir() and any(kind.fullmatch(p.name) for kind in kinds)]


def entries(folder: Path, kind: str) -> list[Path]:
    """Results of a kind in a folder: files, and of a run the folders of OWN."""
    own = [folder / name for name in OWN if kind == "run" and (folder / name).is_dir()]
    return result_files(folder, KINDS[kind]) + own


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise InputError where the folder holds a run's results, unless they may be replaced."""
    if not overwrite and (result_files(folder) or (folder / CHECKPOINT).exists()):
        raise InputError(f"{folder} holds another run: give another --out_dir, or --overwrite to replace its results")


def check_unused(folder: Path, kind: str, what: str, overwrite: bool) -> None:
    """Raise InputError where the folder holds results of a kind, in words `what`, unless they may be replaced."""
    if not overwrite and result_files(folder, KINDS[kind]):
        raise InputError(f"{folder} holds {what}: give another --out_dir, or --overwrite to replace it")


def results_in(folders: Iterable[Path]) -> list[Path]:
    """Results of a run in the folders of its targets, with those in the target's frame and of the assembly."""
    folders = [*folders]
    found = [path for folder in folders for name in ("", *INSIDE) for path in result_files(folder / name)]
    return found + [folder / CHECKPOINT for folder in folders if (folder / CHECKPOINT / "arrays").is_dir()]


def write_json(path: Path, content: Any) -> None:
    """Write the content as JSON."""
    write_file(path, json.dumps(content, indent=2, default=str) + "\n")


# Checksums


def sign(folder: Path) -> None:
    """Write the checksums of a run's results."""
    write_checksums(folder, {path.name: checksum(path) for path in result_files(folder) if path.name != SUMS})


@contextlib.contextmanager
def updating_checksums(folder: Path, kind: re.Pattern = RECORDS) -> Iterator[None]:
    """Update a run's checksums for the files of a kind that the block writes, replaces or removes.

    Other files keep theirs, so that earlier damage is still found. A folder without checksums stays without them.
    """

    def states() -> dict[str, tuple]:
        return {path.name: file_state(path) for path in result_files(folder, kind) if path.name != SUMS}

    before = states()
    yield
    if (folder / SUMS).is_file():
        now, sums = states(), read_checksums(folder)
        kept = {name: sum_ for name, sum_ in sums.items() if name in now or name not in before}
        new = {name: checksum(folder / name) for name in now if now[name] != before.get(name)}
        write_checksums(folder, kept | new)


def file_state(path: Path) -> tuple[int, int, int]:
    """Inode, size and time of a file, which change when it is replaced or written."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_terms(folder: Path) -> dict | None:
    """Read run.json of an unfinished run, None if there is none; raise InputError where it is damaged."""
    path = folder / TERMS
    if not os.path.lexists(path):
        return None
    wrong = f"{path} is damaged: begin the run anew, with --noresume --overwrite"
    if path.is_symlink() or not path.is_file():
        raise InputError(wrong)
    terms = read_json(path, wrong)
    kinds = {"settings": dict, "versions": dict, "inputs": dict, "processes": int, "devices": int, "failed": list}
    if not all(isinstance(terms.get(name), kind) for name, kind in kinds.items()):
        raise InputError(wrong)
    return terms


def write_input(path: Path, map_: Map) -> None:
    """Write the map, unless the file holds it already: another process of the run may have written it."""
    with contextlib.suppress(InputError, OSError):
        there = read_map(path)
        rounding = 1e-5 * np.abs(map_.density).max()  # processors round differently
        if same_grid(there, map_) is None and np.allclose(there.density, map_.density, rtol=0, atol=rounding):
            return
    write_map(path, map_)


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Write rows as CSV, headed by their keys."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
