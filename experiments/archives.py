"""Entries of the public archives: which files belong to them, and what the EMDB says of its maps."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryotrans_jax.files import InputError, checksum, read_json, whole_file

from . import log
from .download import MMCIF, MRC, TooLarge, download
from .ranges import RESOLUTION
from .server import printable

EMDB = re.compile(r"emd[-_]?([0-9]{4,6})", re.IGNORECASE)
PDB = re.compile(r"(?:pdb_0000)?([0-9][a-z0-9]{3})", re.IGNORECASE)
MAP = re.compile(r"emd_(?P<number>[0-9]+)(?![0-9])[A-Za-z0-9_.-]{0,80}\.(map|mrc|ccp4)(\.gz)?", re.IGNORECASE)
MOST_FILES = 100  # of an entry
PARTS = {"map": "map", "half_maps": "other", "masks": "masks"}  # what belongs to an entry, and its folder there
ENTRY_BYTES = 5e7  # an entry's description has no more


@dataclass(frozen=True)
class Archives:
    """Where the archives are, as addresses without the part that names the entry.

    A file may have `limit` bytes at most; `replace` fetches anew what is there but not as it was fetched.
    """

    emdb_api: str
    emdb_files: str
    pdb_files: str
    limit: float
    replace: bool = False


def of(settings, replace: bool = False) -> Archives:
    """The archives that the flags name."""
    bases = (settings.emdb_api, settings.emdb_files, settings.pdb_files)
    return Archives(*(base.rstrip("/") for base in bases), limit=1e9 * settings.max_gb, replace=replace)


def fetch(name: str, archives: Archives, folder: Path, parts: tuple[str, ...] = tuple(PARTS)) -> list[Path]:
    """The files of an entry (6RAH, EMD-22001), all of them in the folder now; those that were there are kept.

    Of a map's entry the `parts` that it has. Raises InputError where the name is none, or something cannot be had.
    """
    check_name(name)
    if found := EMDB.fullmatch(name):
        return fetch_map(found[1], archives, folder, parts)
    return [fetch_model(PDB.fullmatch(name)[1].upper(), archives, folder)]


def check_name(name: str) -> None:
    """Nothing; raises InputError where the name is no entry's number."""
    if not EMDB.fullmatch(name) and not PDB.fullmatch(name):
        raise InputError(f"{name!r} is no entry's number: give those of the PDB like 6RAH, of the EMDB like EMD-22001")


def fetch_model(entry: str, archives: Archives, folder: Path) -> Path:
    """The mmCIF file of an entry in the PDB, in the folder now."""
    path = folder / f"{entry}.cif"
    if path.is_file() and not archives.replace:
        log.file_present(path)
        return path
    url = f"{archives.pdb_files}/{entry}.cif"
    record = download(url, path, f"PDB entry {entry}", archives.limit, "--pdb_files", MMCIF)
    log.file_fetched(path, record["bytes"])
    return path


def fetch_map(number: str, archives: Archives, folder: Path, parts: tuple[str, ...]) -> list[Path]:
    """The files of an entry in the EMDB, in the folder now, and emd_<number>.json, which says what is `described`."""
    beside = side_path(folder, number)
    entry = described(number, ask(number, archives, folder))
    records = {file: told for file, told in told_files(beside).items() if known(told)}
    paths = []
    for part in parts:
        if not entry[part]:
            log.part_missing(f"EMD-{number}", part.replace("_", " "))
        for file in entry[part]:
            path = folder / file
            if not kept(path, records.get(file), archives.replace):
                url = f"{archives.emdb_files}/EMD-{number}/{PARTS[part]}/{file}"
                records[file] = download(url, path, f"{file} of EMD-{number}", archives.limit, "--emdb_files", MRC)
                log.file_fetched(path, records[file]["bytes"])
            paths.append(path)
            write_side(beside, entry | {"files": records})
    return paths


def ask(number: str, archives: Archives, folder: Path) -> dict:
    """What the EMDB says of an entry, as its interface gives it."""
    url, path = f"{archives.emdb_api}/EMD-{number}", folder / f".emd_{number}.entry"
    no_description = f"{url} does not answer with a description: is --emdb_api the EMDB's interface?"
    try:
        download(url, path, f"entry EMD-{number}", ENTRY_BYTES, "--emdb_api")
        return read_json(path, no_description)
    except TooLarge as error:
        raise InputError(no_description) from error
    finally:
        path.unlink(missing_ok=True)


def described(number: str, content: dict) -> dict:
    """Of all that the EMDB says of an entry what is of use: `resolution` (Å), `contour`, the names of its files.

    None where the EMDB does not tell a number. Raises InputError where a file's name is no plain one of a map, or
    stands for two files.
    """
    image = content, "structure_determination_list", "structure_determination", "image_processing"
    contours = [c for c in at(content, "map", "contour_list", "contour") if isinstance(c, dict)]
    contours.sort(key=lambda c: not c.get("primary"))
    inside = content, "interpretation"
    entry = {
        "entry": f"EMD-{number}",
        "title": next((printable(title) for title in at(content, "admin", "title")), None),
        "resolution": number_in(at(*image, "final_reconstruction", "resolution", "valueOf_")),
        "contour": number_in(at(contours, "level")),
        "models": [
            str(model).upper() for model in at(content, "crossreferences", "pdb_list", "pdb_reference", "pdb_id")
        ],
        "map": at(content, "map", "file")[:1] or [f"emd_{number}.map.gz"],
        "half_maps": at(*inside, "half_map_list", "half_map", "file"),
        "masks": at(*inside, "segmentation_list", "segmentation", "file"),
    }
    check_names(number, [file for part in PARTS for file in entry[part]])
    return entry


def check_names(number: str, names: list) -> None:
    """Raise InputError where the names of an entry's files are not plain ones of its own maps, each for one file."""
    if len(names) > MOST_FILES:
        raise InputError(f"EMD-{number} names {len(names)} files, more than {MOST_FILES}: none is fetched")
    for file in names:
        match = MAP.fullmatch(file) if isinstance(file, str) else None
        if not match or match["number"] != number:
            name = printable(repr(file))
            raise InputError(f"EMD-{number} names a file {name}, which is no plain name of its own: it is not fetched")
    if len({file.lower() for file in names}) < len(names):
        raise InputError(f"EMD-{number} names one file twice: it is not fetched")


def told_files(beside: Path) -> dict:
    """What stands in the file beside a map about the files that were fetched, by their names."""
    files = read_json(beside).get("files") if beside.is_file() else None
    return files if isinstance(files, dict) else {}


def known(record: Any) -> bool:
    """Whether this is the record of a file as `download` gives it."""
    return isinstance(record, dict) and isinstance(record.get("bytes"), int) and isinstance(record.get("sha256"), str)


def at(content: Any, *keys: str) -> list:
    """All values under these keys, one below the other; every item of a list on the way, nothing for a missing key."""
    if isinstance(content, list):
        return [value for each in content for value in at(each, *keys)]
    if not keys:
        return [content]
    return at(content[keys[0]], *keys[1:]) if isinstance(content, dict) and keys[0] in content else []


def number_in(values: list) -> float | None:
    """The first value as a number, None where there is none that is finite."""
    for value in values:
        try:
            if math.isfinite(found := float(value)):
                return found
        except (TypeError, ValueError, OverflowError):
            continue
    return None


def kept(path: Path, record: dict | None, replace: bool) -> bool:
    """Whether a file stays as it is: it is what was fetched, or nothing is known of it.

    Raises InputError where it is not what was fetched, and may not be replaced.
    """
    if not path.is_file():
        return False
    if record is None:
        if not replace:
            log.file_present(path, checked=False)
        return not replace
    if path.stat().st_size == record["bytes"] and checksum(path) == record["sha256"]:
        log.file_present(path)
        return True
    if not replace:
        raise InputError(f"{path} is no longer what was fetched: move it away, or add --overwrite to fetch it anew")
    return False


def side_path(folder: Path, number: str) -> Path:
    """The file that tells what the EMDB says of an entry."""
    return folder / f"emd_{number}.json"


def side(path: Path) -> dict:
    """What stands in the file beside a map of the EMDB, if the map is one of those that it names; otherwise nothing.

    `resolution` and `contour` are numbers, or not there; a resolution is one that a map can have.
    """
    found = EMDB.match(path.name)
    told = side_path(path.parent, found[1]) if found else None
    if not told or not told.is_file():
        return {}
    entry = read_json(told)
    if path.name not in at(entry, "map") + at(entry, "half_maps"):
        return {}
    numbers = {name: number_in([entry.get(name)]) for name in ("resolution", "contour")}
    if not RESOLUTION.least <= (numbers["resolution"] or 0.0) <= RESOLUTION.most:
        numbers["resolution"] = None
    return entry | numbers


def contour(path: Path) -> float | None:
    """The level with which a map of the EMDB was deposited, where the file beside it tells."""
    entry = side(path)
    return entry.get("contour") if path.name in at(entry, "map") else None


def write_side(path: Path, entry: dict) -> None:
    """Nothing; the file tells of an entry."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(entry, indent=2, ensure_ascii=False) + "\n")


def wanted(names: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Of names of missing files those of entries, each with the parts of a map's entry that the file is one of."""
    for name in names:
        stem = Path(name).name
        if found := EMDB.match(stem):
            part = "half_maps" if "half" in stem else "masks" if "msk" in stem else "map"
            yield f"EMD-{found[1]}", (part,)
        elif found := re.fullmatch(rf"{PDB.pattern}(_[0-9.]+A\.mrc|\.cif)", stem, re.IGNORECASE):
            yield found[1], ()
