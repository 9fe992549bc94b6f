"""Entries of the PDB and the EMDB: the files that belong to them, and the EMDB's metadata of maps."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryotrans_jax.io.files import InputError, checksum, read_json, write_file

from . import log
from .download import MMCIF, MRC, TooLarge, download
from .ranges import RESOLUTION
from .server import printable

EMDB = re.compile(r"emd[-_]?([0-9]{4,6})", re.IGNORECASE)
PDB = re.compile(r"(?:pdb_0000)?([0-9][a-z0-9]{3})", re.IGNORECASE)
MAP = re.compile(r"emd_(?P<number>[0-9]+)(?![0-9])[A-Za-z0-9_.-]{0,80}\.(map|mrc|ccp4)(\.gz)?", re.IGNORECASE)
MOST_FILES = 100  # of one entry
PARTS = {"map": "map", "half_maps": "other", "masks": "masks"}  # parts of an entry, and their folders in the archive
ENTRY_BYTES = 5e7  # size limit of an entry's description


@dataclass(frozen=True)
class Archives:
    """Addresses of the archives, without the part that names the entry.

    Attributes:
        emdb_api: of descriptions of EMDB entries.
        emdb_files: of EMDB maps.
        pdb_files: of PDB models.
        limit: size limit of a file in bytes.
        replace: whether to fetch again files that are there but not as they were fetched.
    """

    emdb_api: str
    emdb_files: str
    pdb_files: str
    limit: float
    replace: bool = False


def fetch(name: str, archives: Archives, folder: Path, parts: tuple[str, ...] = tuple(PARTS)) -> list[Path]:
    """Fetch the files of an entry that are not in the folder yet.

    Args:
        name: of the entry, such as 6RAH or EMD-22001.
        archives: where to fetch from.
        folder: where to write.
        parts: of an EMDB entry; parts that it does not have are skipped.

    Returns:
        The paths of all files of the entry.
    """
    check_name(name)
    if found := EMDB.fullmatch(name):
        return fetch_map(found[1], archives, folder, parts)
    return [fetch_model(PDB.fullmatch(name)[1].upper(), archives, folder)]


def check_name(name: str) -> None:
    """Raise InputError where the name is not an entry's of the PDB or the EMDB."""
    if not EMDB.fullmatch(name) and not PDB.fullmatch(name):
        raise InputError(f"{name!r} is no entry's number: give those of the PDB like 6RAH, of the EMDB like EMD-22001")


def fetch_model(entry: str, archives: Archives, folder: Path) -> Path:
    """Fetch the mmCIF file of a PDB entry, and return its path."""
    path = folder / f"{entry}.cif"
    if path.is_file() and not archives.replace:
        log.file_present(path)
        return path
    url = f"{archives.pdb_files}/{entry}.cif"
    record = download(url, path, f"PDB entry {entry}", archives.limit, "--pdb_files", MMCIF)
    log.file_fetched(path, record["bytes"])
    return path


def fetch_map(number: str, archives: Archives, folder: Path, parts: tuple[str, ...]) -> list[Path]:
    """Fetch files of an EMDB entry, write its `metadata` to emd_<number>.json, and return the files' paths."""
    record_path = metadata_path(folder, number)
    entry = metadata(number, fetch_description(number, archives, folder))
    records = {file: record for file, record in file_records(record_path).items() if is_record(record)}
    paths = []
    for part in parts:
        if not entry[part]:
            log.part_missing(f"EMD-{number}", part.replace("_", " "))
        for file in entry[part]:
            path = folder / file
            if not is_fetched(path, records.get(file), archives.replace):
                url = f"{archives.emdb_files}/EMD-{number}/{PARTS[part]}/{file}"
                records[file] = download(url, path, f"{file} of EMD-{number}", archives.limit, "--emdb_files", MRC)
                log.file_fetched(path, records[file]["bytes"])
            paths.append(path)
            content = json.dumps(entry | {"files": records}, indent=2, ensure_ascii=False)
            write_file(record_path, content + "\n")
    return paths


def fetch_description(number: str, archives: Archives, folder: Path) -> dict:
    """Fetch the description of an EMDB entry, as the EMDB's interface gives it."""
    url, path = f"{archives.emdb_api}/EMD-{number}", folder / f".emd_{number}.entry"
    no_description = f"{url} does not answer with a description: is --emdb_api the EMDB's interface?"
    try:
        download(url, path, f"entry EMD-{number}", ENTRY_BYTES, "--emdb_api")
        return read_json(path, no_description)
    except TooLarge as error:
        raise InputError(no_description) from error
    finally:
        path.unlink(missing_ok=True)


def metadata(number: str, content: dict) -> dict:
    """Select from an entry's description what this program uses: `resolution` (Å), `contour`, names of files.

    Returns:
        The metadata; numbers that the EMDB does not give are None.
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
    """Raise InputError where file names are too many, repeated, or not plain names of maps of this entry."""
    if len(names) > MOST_FILES:
        raise InputError(f"EMD-{number} names {len(names)} files, more than {MOST_FILES}: nothing is fetched")
    for file in names:
        match = MAP.fullmatch(file) if isinstance(file, str) else None
        if not match or match["number"] != number:
            name = printable(repr(file))
            raise InputError(f"EMD-{number} names a file {name}, which is not a name of its maps: it is not fetched")
    if len({file.lower() for file in names}) < len(names):
        raise InputError(f"EMD-{number} names one file twice: it is not fetched")


def file_records(path: Path) -> dict:
    """Records of the files that were fetched, by name, in an entry's metadata file."""
    files = read_json(path).get("files") if path.is_file() else None
    return files if isinstance(files, dict) else {}


def is_record(record: Any) -> bool:
    """Whether this is a record of a file as `download` returns it."""
    return isinstance(record, dict) and isinstance(record.get("bytes"), int) and isinstance(record.get("sha256"), str)


def at(content: Any, *keys: str) -> list:
    """All values under these nested keys; lists on the way contribute every item, missing keys nothing."""
    if isinstance(content, list):
        return [value for each in content for value in at(each, *keys)]
    if not keys:
        return [content]
    return at(content[keys[0]], *keys[1:]) if isinstance(content, dict) and keys[0] in content else []


def number_in(values: list) -> float | None:
    """The first value that is a finite number; None if there is none."""
    for value in values:
        try:
            if math.isfinite(found := float(value)):
                return found
        except (TypeError, ValueError, OverflowError):
            continue
    return None


def is_fetched(path: Path, record: dict | None, replace: bool) -> bool:
    """Whether a file need not be fetched.

    Args:
        record: of the file when it was fetched; None for a file from elsewhere, which is left unchecked.
        replace: whether a file may be replaced that is from elsewhere, or has changed.
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


def metadata_path(folder: Path, number: str) -> Path:
    """Path of the metadata file of an EMDB entry."""
    return folder / f"emd_{number}.json"


def read_metadata(path: Path) -> dict:
    """Metadata of a map of the EMDB; empty for another map, or without a metadata file that names the map.

    Args:
        path: of the map; the metadata file is in the same folder.

    Returns:
        The metadata; `resolution` (Å) and `contour` are numbers or None, a resolution within the possible range.
    """
    match = EMDB.match(path.name)
    record_path = metadata_path(path.parent, match[1]) if match else None
    if not record_path or not record_path.is_file():
        return {}
    entry = read_json(record_path)
    if path.name not in at(entry, "map") + at(entry, "half_maps"):
        return {}
    numbers = {name: number_in([entry.get(name)]) for name in ("resolution", "contour")}
    if not RESOLUTION.least <= (numbers["resolution"] or 0.0) <= RESOLUTION.most:
        numbers["resolution"] = None
    return entry | numbers


def contour(path: Path) -> float | None:
    """Contour level with which a map of the EMDB was deposited; None if it is not known."""
    entry = read_metadata(path)
    return entry.get("contour") if path.name in at(entry, "map") else None


def wanted(names: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The entries, among names of missing files, each with the part of the entry that the file is."""
    for name in names:
        stem = Path(name).name
        if found := EMDB.match(stem):
            part = "half_maps" if "half" in stem else "masks" if "msk" in stem else "map"
            yield f"EMD-{found[1]}", (part,)
        elif found := re.fullmatch(rf"{PDB.pattern}(_[0-9.]+A\.mrc|\.cif)", stem, re.IGNORECASE):
            yield found[1], ()
