"""The list of pairs that a batch morphs: a table with a row for each pair, checked as a whole before anything runs."""

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from absl import flags
from mrcfile.dtypes import HEADER_DTYPE

from cryotrans_jax.io.files import InputError, open_unpacked
from cryotrans_jax.io.mrc import read_header

from .. import paths

NAME, MAPS = "name", ("initial", "target")
FILES = (*MAPS, "model", "reference", "mask", "target_mask", "target_half1", "target_half2")  # flags that name files
DELIMITERS = ",;\t"
ENDINGS = (".log", ".json", ".claim", ".csv", ".md", ".html")  # of what a batch writes beside the folders of its pairs
SUFFIXES = re.compile(r"\.(mrc|map|ccp4|gz|bz2)(?=\.|$)", re.IGNORECASE)
LONGEST = 100  # letters of a name, which becomes that of a folder


@dataclass(frozen=True)
class Pair:
    """A pair of maps to be morphed.

    Attributes:
        name: of the pair, and of its folder.
        folder: of the list, from which its files are named, and in which its run starts.
        files: paths of its files, by the flag of `experiments.run` that takes each.
        given: texts of its other flags, by name.
    """

    name: str
    folder: Path
    files: dict[str, Path]
    given: dict[str, str] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """Path of a file, by its flag, from wherever one is."""
        return self.folder / self.files[name]

    def settings(self, options: Mapping[str, flags.Flag]) -> dict[str, Any]:
        """Values of all flags but those that name files: the pair's own, and otherwise those of all pairs."""
        own = {name: flag_value(options[name], text) for name, text in self.given.items()}
        return {name: own.get(name, flag.value) for name, flag in options.items() if name not in FILES}

    def arguments(self, options: Mapping[str, flags.Flag]) -> list[str]:
        """The arguments of its run, but for the folder: those of all pairs that are not its own, and its own."""
        own = {name: str(path) for name, path in self.files.items()} | self.given
        shared = [flag.serialize() for name, flag in options.items() if flag.present and name not in own]
        return [line for text in shared for line in text.splitlines()] + [f"--{n}={text}" for n, text in own.items()]


def read_list(path: Path, options: Mapping[str, flags.Flag], with_files: bool = True) -> list[Pair]:
    """Read a list of pairs: a table separated by commas, semicolons or tabs, whose first row names the columns.

    Args:
        path: of the list. Files that it names are looked up from its folder.
        options: flags of a run that a column may be named after, besides `initial`, `target` and `name`.
        with_files: whether the files that it names have to be there.

    Returns:
        The pairs, in the order of the list.

    Raises:
        InputError: a column is unknown or missing, a cell empty that is needed, a value not one of its flag, a file
            missing, a name impossible or there twice.
    """
    (_, head), *rows = numbered_rows(path)
    columns, shared = read_head(path, head, options), shared_files(options)
    pairs: dict[int, Pair] = {}
    for number, cells in rows:
        where = f"row {number} of {path}"
        if len(cells) > len(columns):
            raise InputError(
                f"{where} has {len(cells)} cells and there are {len(columns)} columns: put a text with commas in quotes"
            )
        given = {name: cell for name, cell in zip(columns, cells, strict=False) if cell}
        files = shared | read_files(given, where)
        pair = Pair(read_name(given, where), path.parent.resolve(), files)
        if with_files:
            check_files(pair, where)
        pairs[number] = replace(pair, given=read_flags(given, pair.folder, options, where))
    check_names(path, pairs)
    return [*pairs.values()]


def numbered_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Rows of a table that are not empty, with their numbers from 1; the head and one pair at least."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}: give --pairs=FILE, a table with a column initial and a column target")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8: save the list as CSV (UTF-8)") from None
    first = text.lstrip().partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    try:
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [[cell.strip() for cell in row] for row in table]
    except csv.Error as error:
        raise InputError(f"{path} is not a table ({error}): save the list as CSV") from None
    found = [(number, row) for number, row in enumerate(rows, 1) if any(row)]
    if len(found) < 2:
        raise InputError(
            f"{path} lists no pairs: give a row of column names, initial and target, and a row for each pair"
        )
    return found


def read_head(path: Path, head: Sequence[str], options: Mapping[str, flags.Flag]) -> list[str]:
    """Names of the columns, as those of flags; raise InputError where one is missing, unknown or there twice."""
    columns = [cell.lower().removeprefix("--") for cell in head]
    known = (*MAPS, NAME, *options)
    if unknown := [cell for cell, name in zip(head, columns, strict=True) if name not in known]:
        raise InputError(
            f"{path} has a column {unknown[0]!r}, which is no flag that experiments.run has for a single pair: rename "
            "it, or leave it out"
        )
    if missing := [name for name in MAPS if name not in columns]:
        raise InputError(f"{path} has no column {missing[0]}: name the columns in its first row, initial and target")
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise InputError(f"{path} has two columns {twice[0]}: leave one out")
    return columns


def shared_files(options: Mapping[str, flags.Flag]) -> dict[str, Path]:
    """Files that the command line names for all pairs, by their flags."""
    found = {name: options[name].value for name in FILES if name in options and options[name].present}
    if several := [name for name, value in found.items() if isinstance(value, list) and len(value) != 1]:
        raise InputError(f"--{several[0]} names several files, and each pair has one target: name one, or use a column")
    return {name: Path(value[0] if isinstance(value, list) else value).absolute() for name, value in found.items()}


def read_files(given: Mapping[str, str], where: str) -> dict[str, Path]:
    """Paths of the files that a row's cells name, by their columns; raise InputError where a map is not named."""
    for name in MAPS:
        if name not in given:
            raise InputError(f"{where} has no {name} map: give its path in the column {name}")
    return {name: Path(os.path.expanduser(given[name])) for name in FILES if name in given}


def check_files(pair: Pair, where: str) -> None:
    """Raise InputError where a file of a pair is not there."""
    for name, path in pair.files.items():
        if not pair.file(name).is_file():
            what = "is a folder" if pair.file(name).is_dir() else "does not exist"
            raise InputError(f"{where} names the {name} {str(path)!r}, and {pair.file(name)} {what}: correct the cell")


def read_flags(given: Mapping[str, str], folder: Path, options: Mapping[str, flags.Flag], where: str) -> dict[str, str]:
    """Texts of the flags that a row's cells give, by their columns; raise InputError where a flag does not take one."""
    own = {name: text for name, text in given.items() if name not in (*FILES, NAME)}
    for name, text in own.items():
        if isinstance(options[name].parser, paths.PathParser) and (folder / text).exists():
            own[name] = str(folder / text)
        try:
            flag_value(options[name], text)
        except ValueError as error:
            said = str(error).rstrip(".")
            joined = f"{text} {said}" if said.startswith("is not ") else f"{text}: {said}"
            raise InputError(f"{where} has {name}={joined}; correct the cell") from None
    return own


def read_name(given: Mapping[str, str], where: str) -> str:
    """The name of a row's pair, or one made of the names of its maps; raise InputError where no folder can have it."""
    name = given.get(NAME) or "_to_".join(SUFFIXES.sub("", Path(given[each]).name) for each in MAPS)
    if why := impossible(name):
        raise InputError(f"{where} has a name {why}, {name!r}: give another, which becomes the name of a folder")
    return name


def flag_value(flag: flags.Flag, text: str) -> Any:
    """The value of a flag that a text gives; raise ValueError where it gives none."""
    value = flag.parser.parse(text)
    return [value] if isinstance(flag, flags.MultiFlag) else value


def impossible(name: str) -> str:
    """Why a folder cannot have this name, in words; empty where it can."""
    if name.startswith(".") or len(name) > LONGEST:
        return "that begins with a dot" if name.startswith(".") else f"of more than {LONGEST} letters"
    if "/" in name or "\\" in name or not name.isprintable():
        return "with a slash or a control character"
    if name.lower().endswith(ENDINGS):
        return "that ends as a file of the batch does"
    return ""


def check_names(path: Path, pairs: Mapping[int, Pair]) -> None:
    """Raise InputError where two pairs have one name; capitals do not count, as on some disks."""
    rows: dict[str, int] = {}
    for number, pair in pairs.items():
        if (earlier := rows.setdefault(pair.name.lower(), number)) != number:
            raise InputError(
                f"rows {earlier} and {number} of {path} are both named {pair.name!r}: give each a name of its own, in "
                "the column name"
            )


def by_size(pairs: Iterable[Pair]) -> list[Pair]:
    """Sort pairs by the box of the initial map, so that those of like shapes follow and share compiled programs."""
    return sorted(pairs, key=lambda pair: (*box(pair.file("initial")), "model" in pair.files, pair.name))


def box(path: Path) -> tuple[int, ...]:
    """Number of voxels of a map, and its sides; 0 where the header cannot be read, so that its run soon says why."""
    try:
        with open_unpacked(path) as (stream, _):
            header = read_header(path, stream.read(HEADER_DTYPE.itemsize))
    except (InputError, OSError):
        return (0, 0, 0, 0)
    x, y, z = (int(header[key]) for key in ("nx", "ny", "nz"))
    return x * y * z, x, y, z
