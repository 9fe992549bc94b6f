"""Damage files: cut, splice and flip bits of whole files, and change the contents of sound ones."""

import io
import tarfile
from collections.abc import Callable
from typing import Any

WORDS = (  # in place of a word of a text, or of a flag's value
    "", "0", "-0", "-1", "1e-30", "1e30", "1e308", "1e999", "1e400", "1e9", "2147483648", "nan", "inf",
    "-inf", "NaN", "99999999999999999999", "?",
    ".", "..", "../../x", "...mrc", "/etc/passwd", "<script>", "'", '"', ";", ",", "é", "\ufeff", "\udcff", "x" * 300,
    "A:1-9", "true", "null", "[]", "{}", "%s", "0x7f", "１２", "data_", "loop_", "ENDMDL", "HETATM",
)  # fmt: skip
VALUES = (None, True, 0, -1, 10**400, 1e308, float("nan"), "", "../../x", "<b>", [], {}, [[]], {"": None}, "x" * 300)
INTEGERS = (0, 1, -1, 2, 3, 127, 401, 32767, 65535, 65536, 10**6, 2**31 - 1, -(2**31))
FLOATS = (0.0, -1.0, 1e-45, 1e-3, 90.0, 179.9, 180.0, 1e6, 3e38, float("inf"), float("nan"))
OUTLIERS = (1e1, 1e3, 1e4, 1e6, 1e9)  # relative to a map's largest value


def mutate(random, seeds: list[bytes]) -> bytes:
    """Damage one of the files one to four times, and perhaps compress it before, in between or after."""
    import bz2
    import gzip

    data = bytearray(seeds[random.integers(len(seeds))])
    packing = random.choice([0, 0, 0, 1, 2, 3])  # 1: not at all; 0: like the seed
    ways: list[Callable] = [flip_bits, cut, splice, set_extremes, replace_words]
    if data[:1] == b"{":  # a JSON text, which the other ways hardly ever leave valid
        ways = [replace_values] if random.random() < 0.7 else [replace_values, *ways]
    for _ in range(random.integers(1, 5)):
        data = ways[random.integers(len(ways))](random, data, seeds)
    if packing > 1:
        data = bytearray(gzip.compress(data, mtime=0) if packing == 2 else bz2.compress(data))
        if random.random() < 0.5:
            data = (flip_bits, cut)[random.integers(2)](random, data, seeds)
    return bytes(data)


def flip_bits(random, data: bytearray, seeds) -> bytearray:
    """Flip up to 16 bits, half of the time in the first KiB."""
    reach = min(len(data), 1024) if random.random() < 0.5 else len(data)
    for _ in range(random.integers(1, 17) if reach else 0):
        data[random.integers(reach)] ^= 1 << int(random.integers(8))
    return data


def cut(random, data: bytearray, seeds) -> bytearray:
    """Cut off the end, remove a piece, or repeat one."""
    if not data:
        return data
    start, stop = sorted(int(k) for k in random.integers(len(data) + 1, size=2))
    return [data[:start], data[:start] + data[stop:], data[:stop] + data[start:]][random.integers(3)]


def splice(random, data: bytearray, seeds) -> bytearray:
    """Join the beginning of a file and the end of another."""
    other = seeds[random.integers(len(seeds))]
    at = int(random.integers(min(len(data), len(other)) + 1))
    return data[:at] + other[at:]


def set_extremes(random, data: bytearray, seeds) -> bytearray:
    """Set one to three of the first 256 words, the fields of an MRC header, to extreme numbers."""
    import struct

    for _ in range(random.integers(1, 4)):
        at = 4 * int(random.integers(256 if random.random() < 0.3 else 56))
        order = "<>"[random.random() < 0.1]
        if random.random() < 0.5:
            word = struct.pack(f"{order}i", INTEGERS[random.integers(len(INTEGERS))])
        else:
            word = struct.pack(f"{order}f", FLOATS[random.integers(len(FLOATS))])
        if at + 4 <= len(data):
            data[at : at + 4] = word
    return data


def replace_words(random, data: bytearray, seeds) -> bytearray:
    """Replace one to three words of a text."""
    import re

    words = [m.span() for m in re.finditer(rb"[^\s,:\[\]{}\"]+", bytes(data[:100_000]))]
    for _ in range(random.integers(1, 4) if words else 0):
        start, stop = words[random.integers(len(words))]
        new = WORDS[random.integers(len(WORDS))].encode(errors="surrogateescape")
        if random.random() < 0.5:  # keep the columns
            new = new[: stop - start].ljust(stop - start)
        data = data[:start] + new + data[stop:]
    return data


def replace_values(random, data: bytearray, seeds) -> bytearray:
    """Replace a value of a JSON text, or nest the text many times."""
    import json

    try:
        content = json.loads(bytes(data))
    except (ValueError, RecursionError):
        return data
    places = [*places_in(content)]
    if places:
        holder, key = places[random.integers(len(places))]
        holder[key] = VALUES[random.integers(len(VALUES))]
    text = json.dumps(content)
    depth = int(random.choice([0, 0, 0, 0, 0, 0, 50, 3000]))
    return bytearray(('{"a":[' * depth + text + "]}" * depth).encode())


def places_in(content: Any):
    """Yield all places in a JSON value, as pairs of container and key."""
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield content, key
        yield from places_in(content[key])


def change_densities(random, seeds: list[bytes]) -> bytes:
    """Change densities or voxel size of one of the maps (uncompressed, mode 2) within the rules of the format."""
    import numpy as np

    data = bytearray(seeds[random.integers(len(seeds))])
    values = np.frombuffer(bytes(data[1024:]), "<f4").copy()
    for _ in range(random.integers(1, 4)):
        way = random.integers(8)
        top = float(np.abs(values).max()) or 1.0
        if way < 2:  # hot and cold voxels, single or adjacent
            at = (random.integers(values.size) + np.arange(random.integers(1, 6))) % values.size
            values[at] = random.choice([-1, 1]) * top * random.choice(OUTLIERS)
        elif way == 2:  # inverted contrast
            values = -values
        elif way == 3:
            values += np.float32(top * random.choice([-2.0, 0.5, 10.0]))
        elif way == 4:
            values *= np.float32(random.choice([1e-6, 1e6]))
        elif way == 5:
            values += random.normal(0, random.choice([0.1, 1.0, 3.0]) * top, values.size).astype(np.float32)
        elif way == 6:  # only a part remains
            values[: random.integers(values.size)] = 0
        else:  # voxel size in other units
            cell = np.frombuffer(bytes(data[40:52]), "<f4") * np.float32(random.choice([0.1, 10.0]))
            data[40:52] = cell.tobytes()
    return bytes(data[:1024]) + values.tobytes()


def damage_folder(random, seeds: list[bytes]) -> bytes:
    """Damage, empty, remove or replace one file of one of the folders, which are tar files."""
    with tarfile.open(fileobj=io.BytesIO(seeds[random.integers(len(seeds))])) as packed:
        files = {one.name: packed.extractfile(one).read() for one in packed if one.isfile()}
    name, other = (sorted(files)[random.integers(len(files))] for _ in range(2))
    way = random.integers(6)
    if way == 0:
        del files[name]
    elif way == 1:
        files[name] = files[other]
    elif way == 2:
        files[name] = b""
    elif way == 3:
        files[name] = bytes(cut(random, bytearray(files[name]), []))
    else:
        files[name] = bytes(flip_bits(random, bytearray(files[name]), []))
    return pack_folder(files)


def pack_folder(files: dict[str, bytes]) -> bytes:
    """Pack files, given by name, into the bytes of a tar file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    return out.getvalue()
