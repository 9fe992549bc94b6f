"""Find the files that users name, in the data folder or in the public archives."""

import itertools
import re
from pathlib import Path

from cryotrans_jax.io.files import InputError

from . import archives, ranges

ENTRY = re.compile(r"(?P<entry>[0-9][A-Za-z0-9]{3}|pdb_[0-9a-z]{8})_(?P<resolution>[0-9]+(?:\.[0-9]+)?)A\.mrc")
HALF = re.compile(r"(half[-_]?(?:map)?[-_]?)([12abAB])(?![0-9A-Za-z])", re.IGNORECASE)
OTHER = {"1": "2", "2": "1", "A": "B", "B": "A", "a": "b", "b": "a"}
MODEL_SUFFIXES = (".cif", ".pdb", ".cif.gz", ".pdb.gz", ".ent")
INITIAL = "6RAH_3A.mrc"  # TmrAB, the paper's first system


def existing_file(name: str, data_dir: str) -> Path:
    """The file of that name, here or in the data folder; raise InputError where there is none."""
    path = find(name, data_dir)
    if path is None:
        raise InputError(f"no file {name} here or in {data_dir}: give the path of a file, or another --data_dir")
    return path


def one_for_each(names: list[str], targets: int, kind: str) -> list[str | None]:
    """Names of files of a kind for a number of targets: one for all or one for each; None for each if none is given."""
    if len(names) not in (0, 1, targets):
        raise InputError(f"{len(names)} {kind} for {targets} targets: give one, or one for each target")
    return [*(names or [None])] * targets if len(names) < 2 else [*names]


def unique_stems(names: list[str]) -> list[str]:
    """File names without folders and suffixes, with a number where two would be the same."""
    stems: list[str] = []
    for name in names:
        stem = Path(name).name.split(".mrc")[0].split(".map")[0].lstrip(".") or "target"  # never the folder above
        tries = (stem if k == 1 else f"{stem}_{k}" for k in itertools.count(1))
        stems.append(next(s for s in tries if s not in stems))
    return stems


def resolution_in_name(name: str) -> float | None:
    """Resolution (Å) in a name like 6RAH_3A.mrc; None if it has another form."""
    if not (match := ENTRY.fullmatch(Path(name).name)):
        return None
    resolution = float(match["resolution"])
    if not ranges.RESOLUTION.least <= resolution <= ranges.RESOLUTION.most:
        raise InputError(f"{Path(name).name} names a resolution of {resolution:g} Å, which no map has: rename the file")
    return resolution


def resolution_of(name: str, data_dir: str) -> float | None:
    """Resolution (Å) of a map, from its name or from the EMDB; None if neither has it."""
    path = find(name, data_dir)
    return resolution_in_name(name) or (archives.read_metadata(path).get("resolution") if path else None)


def find(name: str, data_dir: str) -> Path | None:
    """The file of that path, or in the data folder, where EMD-22001 is emd_22001.map.gz; None if missing."""
    places = [Path(name), Path(data_dir) / name]
    if entry := archives.EMDB.fullmatch(name):
        places += [Path(data_dir) / f"emd_{entry[1]}.map{suffix}" for suffix in (".gz", "")]
    for path in places:
        if path.is_file():
            return path
    return None


def other_half_map(path: str | Path) -> Path:
    """The other of two half-maps: run_half2_class001_unfil.mrc for run_half1_class001_unfil.mrc, and so on."""
    path = Path(path)
    found = [*HALF.finditer(path.name)]
    if not found:
        raise InputError(f"{path} does not have a half-map's name (half1, half_map_2, map_half_A ...): name both")
    which = found[-1]
    other = path.with_name(path.name[: which.start(2)] + OTHER[which[2]] + path.name[which.end(2) :])
    if not other.is_file():
        raise InputError(f"the other half-map {other} of {path} is not there: put it there, or name both")
    return other


def find_entry(name: str, data_dir: str) -> Path:
    """The model in the data folder from which the map `name` can be simulated."""
    match = ENTRY.fullmatch(Path(name).name)
    if not match:
        raise InputError(
            f"no map {name} here or in {data_dir}: give the path of a file, another --data_dir, or for an entry of the "
            "EMDB --fetch"
        )
    entry = match["entry"]
    if path := find_model(entry, data_dir):
        return path
    raise InputError(
        f"no map {name} here or in {data_dir}, and no {entry}.cif or {entry}.pdb there to make it from: download "
        f"{entry}.cif from the PDB (https://files.rcsb.org/download/{entry.upper()}.cif) into {data_dir}, or --fetch"
    )


def find_model(entry: str, data_dir: str) -> Path | None:
    """The model of an entry, or of another name without its suffix, in the data folder; None if missing."""
    for stem in (entry.upper(), entry.lower(), entry):
        for suffix in MODEL_SUFFIXES:
            if (path := Path(data_dir) / (stem + suffix)).is_file():
                return path
    return None


def base_model(initial: str, data_dir: str) -> Path | None:
    """The model on which targets' models are superposed where the initial map itself is not simulated, if any."""
    try:
        return find_entry(initial, data_dir)
    except InputError:
        return None
