"""Repair the text of PDB files: put shifted columns back, and refuse lines that hold no atom.

The format: wwPDB, Protein Data Bank Contents Guide, version 3.30. Also handled are serial numbers of more than five
digits, residue numbers of five, residue names of four letters (CHARMM), columns 73 to 80 as they were before 1996,
molecules that follow one another without a TER record, and models that are separated by END.
"""

import re
from collections.abc import Iterator

ATOM = re.compile(rb"ATOM|HETA", re.IGNORECASE)
SERIAL = re.compile(rb"(?:ATOM  |HETATM) *(\d+)", re.IGNORECASE)
DECIMALS = 3, 2, 1, 4, 5  # of coordinates; the format has three
NUMBERED = re.compile(rb" *\d+")  # columns 77 to 80 before 1996: line number
ENTRY = re.compile(rb"\d[0-9A-Z]{3}")  # columns 73 to 76 before 1996: PDB entry
CHARGE = re.compile(rb" *|\d[+-]|[+-]\d| [+-]|[+-] ")
DIGITS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
XYZ, RESIDUE = slice(30, 54), slice(22, 26)


class FormatError(ValueError):
    """A line that does not fit the format."""


def correct_columns(text: bytes) -> tuple[bytes, dict[str, str]]:
    """Put all columns where the PDB format has them, and end each molecule and model with its record.

    Args:
        text: the text of a PDB file.

    Returns:
        The text, and the four-letter residue names by the three-letter ones that replace them in it.

    Raises:
        FormatError: a line of an atom has no coordinates or no residue number in its columns, and these are not merely
            shifted.
    """
    lines = text.splitlines()
    places = [place for place, line in enumerate(lines) if ATOM.match(line)]
    if not any(all(map(_layout(count).match, (lines[k] for k in places))) for count in DECIMALS):
        _shift_back(lines, places)
    names = _shorten_names(lines, places)
    for place in places:
        if lines[place][22:27].isdigit():
            lines[place] = lines[place][:22] + _hybrid_36(int(lines[place][22:27])) + lines[place][27:]
        if len(lines[place]) > 76:
            lines[place] = _with_element(lines[place])
    last = places[-1] if places else 0
    return b"\n".join(_with_terminators(lines, last)) + b"\n", names


def _layout(decimals: int) -> re.Pattern[bytes]:
    """Compile the pattern of an atom's line whose coordinates have this number of decimals."""
    number = rb"|".join(rb" {%d}[-\d]\d{%d}|[-\d]\d{%d} {%d}" % (4 - n, n - 1, n - 1, 4 - n) for n in range(1, 5))
    residue = rb"(?: {4}|[A-Z][0-9A-Z]{3}|[a-z][0-9a-z]{3}|%b)" % number
    whole = 7 - decimals
    digits = rb"|".join(rb" {%d}[-\d]\d{%d}" % (whole - n, n - 1) for n in range(1, whole + 1))
    coordinate = rb"(?:(?: {%d}|%b)\.\d{%d}| {5}nan| {4}-nan)" % (whole, digits, decimals)
    return re.compile(rb".{22}%b.{4}(?:%b){3}" % (residue, coordinate), re.IGNORECASE)


def _shift_back(lines: list[bytes], places: list[int]) -> None:
    """Shift the columns of atoms' lines, and of ANISOU lines after them, back into place."""
    fits = _layout(DECIMALS[0])
    for place in places:
        for cut in _cuts(lines[place]):
            if fits.match(shifted := _without_columns(lines[place], cut)):
                break
        else:
            raise FormatError(_describe_fault(lines[place], place + 1))
        lines[place] = shifted
        if place + 1 < len(lines) and lines[place + 1][:6].upper() == b"ANISOU":
            lines[place + 1] = _without_columns(lines[place + 1], cut)


def _cuts(line: bytes) -> Iterator[list[tuple[int, int]]]:
    """Columns to remove, for each possible repair: the excess digits of the serial and residue numbers."""
    yield []
    serial = SERIAL.match(line)
    extra = max(serial.end(1) - 11, 0) if serial else 0
    first = [(6, 6 + extra)] if extra else []
    if first:
        yield first
    if _without_columns(line, first)[22:28].rstrip().isdigit():  # five digits, then the column of the insertion code
        yield [*first, (27 + extra, 28 + extra)]


def _without_columns(line: bytes, cuts: list[tuple[int, int]]) -> bytes:
    """Remove ranges of columns from a line."""
    for begin, end in reversed(cuts):
        line = line[:begin] + line[end:]
    return line


def _describe_fault(line: bytes, number: int) -> str:
    """Describe the fault in the line of an atom."""
    if _layout(DECIMALS[0]).match(line[:22] + b"   1" + line[26:]):
        return f"line {number} has {line[RESIDUE].decode()!r} in columns 23 to 26 instead of a residue number"
    return f"line {number} has {line[XYZ].decode()!r} in columns 31 to 54 instead of three coordinates"


def _shorten_names(lines: list[bytes], places: list[int]) -> dict[str, str]:
    """Replace four-letter residue names (column 21 is used, and no chain is named) by unused three-letter ones."""
    long: dict[bytes, bytes] = {}
    for place in places:
        line = lines[place]
        if line[20:21] != b" " and line[21:22] == b" ":
            short = long.setdefault(line[17:21], b"~%02X" % len(long))
            lines[place] = line[:17] + short + b" " + line[21:]
    return {short.decode(): name.decode().strip() for name, short in long.items()}


def _hybrid_36(number: int) -> bytes:
    """Encode a five-digit residue number in four columns and a blank, as gemmi reads it: 10000 is A000."""
    value, text = number - 10_000 + 10 * 36**3, b""
    for _ in range(4):
        value, digit = divmod(value, 36)
        text = DIGITS[digit : digit + 1] + text
    return text + b" "


def _with_element(line: bytes) -> bytes:
    """Keep only an element and a charge in columns 77 to 80; blank them where they hold something else."""
    if NUMBERED.fullmatch(line[76:80]) and len(line) >= 80:
        return line[: 72 if ENTRY.fullmatch(line[72:76]) else 76]
    element = line[76:78] if line[76:78].replace(b" ", b"").isalpha() else b"  "
    charge = line[78:80] if CHARGE.fullmatch(line[78:80]) else b""
    return line[:76] + element + charge


def _with_terminators(lines: list[bytes], last: int) -> Iterator[bytes]:
    """Add TER where a chain begins anew and ENDMDL after every model, and number models from 1.

    A chain begins anew where a residue number comes again with an atom that it had before.
    """
    seen: set[tuple[bytes, bytes, bytes]] = set()
    residue, models, is_open = None, 0, False
    for place, line in enumerate(lines):
        record = line[:6].upper().rstrip()
        if ATOM.match(line):
            now = line[20:27], line[72:76].strip()
            if now != residue and (*now, line[12:17]) in seen:
                yield b"TER"
                seen.clear()
            residue = now
            seen.add((*now, line[12:17]))
        elif record == b"MODEL":
            if is_open:
                yield b"ENDMDL"
            models, is_open, residue = models + 1, True, None
            line = b"MODEL %8d" % models
            seen.clear()
        elif record in (b"TER", b"ENDMDL", b"END"):
            line = b"ENDMDL" if record == b"END" and place < last else line
            is_open = is_open and record == b"TER"
            residue = None
            seen.clear()
        yield line
