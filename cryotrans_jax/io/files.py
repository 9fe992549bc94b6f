"""Write files whole or not at all, read untrusted files within bounds, and report unusable input to the user."""

import bz2
import contextlib
import errno
import gzip
import hashlib
import json
import os
import re
import secrets
import zlib
from collections.abc import Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any

CHUNK = 1 << 24  # bytes read at a time
UNPACKED_BYTES = 1 << 28  # bytes that any compressed file may unpack to
MAX_RATIO = 100  # compression ratio that a larger one may have; densities and coordinates come nowhere near
RECORD_BYTES = 50_000_000  # largest JSON record
STAMPS = {  # first bytes of files of other kinds
    b"version https://git-lfs": "is a git LFS pointer, not the {expected} itself: run git lfs pull",
    b"\x93NUMPY": "is a NumPy array (.npy): write it as {expected} first, with its voxel size",
    b"\x89HDF": "is an HDF5 file: convert it to {expected} first",
    b"\x89PNG": "is a PNG picture: give {expected}",
    b"\xff\xd8\xff": "is a JPEG picture: give {expected}",
    b"II*\0": "is a TIFF image: give {expected}",
    b"MM\0*": "is a TIFF image: give {expected}",
    b"%PDF": "is a PDF document: give {expected}",
    b"PK\x03\x04": "is a zip archive: unpack it first",
    b"7z\xbc\xaf": "is a 7z archive: unpack it first",
    b"\xfd7zXZ": "is compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: unpack it first",
}
PAGE = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|html|head|body)", re.IGNORECASE)
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\..+")  # name of a file that `whole_file` is still writing
DEPTH = 64  # deepest nesting of a JSON record
SUMS = "SHA256SUMS"  # a folder's checksums, in the format of the program sha256sum
SUM = re.compile(r"([0-9a-f]{64})  (\S.*)")  # a line of SHA256SUMS


class InputError(ValueError):
    """An input that cannot be used; its message is one sentence: what was found, what was expected, what to do."""


class InputWarning(UserWarning):
    """A remark on an input that is used nevertheless, in one sentence."""


@contextlib.contextmanager
def input_errors(sentence: str) -> Iterator[None]:
    """Turn errors of reading an unexpected record, within the block, into one sentence.

    Args:
        sentence: the message; "{error}" in it is replaced by the error.

    Raises:
        InputError: an entry is missing, or has another type or value than expected.
    """
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
        raise InputError(sentence.replace("{error}", found)) from error


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffixes, that becomes `path` if the block succeeds.

    Readers therefore see the old file or the new one, never a part. A link is followed. If the block raises, the
    temporary file is removed and `path` stays as it was.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    final = Path(os.path.realpath(path))
    if not final.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(final.parent))
    temporary = final.with_name(f".{secrets.token_hex(4)}.{final.name}")
    try:
        yield temporary
        os.replace(temporary, final)
    except OSError as error:
        if error.errno and error.filename is None:  # a full disk, for one: name the file
            error.filename = str(final)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def unfinished_files(folder: Path) -> list[Path]:
    """Find the temporary files that `whole_file` left in a folder and its subfolders when its process was killed."""
    named = (path for pattern in (".*.*", "*/.*.*") for path in folder.glob(pattern) if TEMPORARY.fullmatch(path.name))
    return [path for path in named if path.is_file() and not path.parent.is_symlink()]


@contextlib.contextmanager
def open_unpacked(path: str | os.PathLike) -> Iterator[tuple[BufferedIOBase, int | None]]:
    """Open a file as a stream of bytes, decompressed if its first bytes are those of gzip or bzip2.

    A compressed file may be a bomb, kilobytes that unpack to terabytes, so the number of bytes to read from it is
    limited to the larger of UNPACKED_BYTES and MAX_RATIO times its size.

    Yields:
        The stream, and the largest number of bytes to read from it, None for a plain file, which its own size limits.

    Raises:
        InputError: the compressed bytes are damaged.
    """
    with open(path, "rb") as file:
        magic = file.read(3)
    packed = gzip.open if magic[:2] == b"\x1f\x8b" else bz2.open if magic == b"BZh" else None
    try:
        with packed(path) if packed else open(path, "rb") as stream:
            yield stream, max(UNPACKED_BYTES, MAX_RATIO * os.path.getsize(path)) if packed else None
    except (EOFError, zlib.error, OSError) as error:
        if getattr(error, "errno", None):  # the disk fails, not the data
            raise
        raise InputError(f"{path} is a damaged compressed file ({error}): copy it again") from error


def foreign_format(head: bytes, expected: str) -> str:
    """Describe a file of another kind than expected, in words that follow its name; "" if the kind is unknown.

    Args:
        head: the first 512 bytes of the file, or all of them if it is shorter.
        expected: the kind of file that was expected, such as "map".
    """
    article = "an" if expected[0] in "aeiou" else "a"
    if not head:
        return f"is empty: give {article} {expected}"
    if PAGE.match(head):
        return f"is a web page, not {article} {expected}: download the file itself"
    for stamp, sentence in STAMPS.items():
        if head.startswith(stamp):
            return sentence.format(expected=expected if "itself" in sentence else f"{article} {expected}")
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    if expected != "map" and head[208:212] == b"MAP ":
        return f"is a map, not {article} {expected}: give one in PDB or mmCIF format"
    if expected == "map" and re.match(rb"(?:HEADER|ATOM  |HETATM|CRYST1|REMARK|data_)", head):
        return "is an atomic model, not a map: experiments.simulate makes a map of it"
    return ""


def read_bytes(stream: BufferedIOBase, count: int) -> bytearray:
    """Read the next `count` bytes, or fewer where the stream ends, in as much memory as they take."""
    data = bytearray()
    while len(data) < count and (chunk := stream.read(min(CHUNK, count - len(data)))):
        data += chunk
    return data


def read_json(path: str | os.PathLike, otherwise: str = "") -> dict[str, Any]:
    """Read the object in a JSON file.

    Args:
        path: path of the file.
        otherwise: the error message; by default one that names the file.

    Raises:
        InputError: the file does not hold a JSON object, is larger than RECORD_BYTES, or is nested deeper than DEPTH.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(RECORD_BYTES + 1)
        content = json.loads(text) if len(text) <= RECORD_BYTES else None
    except (ValueError, RecursionError):  # ValueError also where the bytes are not text
        content = None
    if not isinstance(content, dict) or _deeper(content, DEPTH):
        raise InputError(otherwise or f"{path} does not hold a JSON object as it should: remove it, or copy it again")
    return content


def _deeper(content: Any, depth: int) -> bool:
    """Whether lists and objects are nested deeper than `depth`."""
    level = [content]
    for _ in range(depth):
        level = [v for c in level if isinstance(c, dict | list) for v in (c.values() if isinstance(c, dict) else c)]
    return bool(level)


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Write bytes, or text as UTF-8 (a "?" for parts of file names that are not valid text), whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode(errors="replace") if isinstance(content, str) else content)


def checksum(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write a folder's checksum file, SHA256SUMS, which `sha256sum --check` reads as well.

    Args:
        folder: the folder of the files.
        sums: the SHA-256 of each file, by its path within the folder.
    """
    write_file(folder / SUMS, _listing(sums))


def read_checksums(folder: Path) -> dict[str, str]:
    """Read SHA256SUMS of a folder: the SHA-256 of each file, by its path within the folder.

    Raises:
        InputError: the file is missing, or not as `write_checksums` writes it.
    """
    path = folder / SUMS
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{folder} has no file {SUMS}: it is incomplete, or from an earlier version; make it anew")
    with open(path, "rb") as file:
        text = file.read(RECORD_BYTES).decode(errors="replace")
    sums = {match[2]: match[1] for match in map(SUM.fullmatch, text.splitlines()) if match}
    if _listing(sums) != text:
        raise InputError(f"{path} is damaged: copy the folder again, or make it anew")
    return sums


def check_sum(folder: Path, name: str, sums: Mapping[str, str]) -> None:
    """Raise InputError unless a file of the folder has the SHA-256 that is listed for it."""
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path} is missing or is not a file: copy {folder} again, or make it anew")
    if checksum(path) != sums.get(name):
        raise InputError(f"{path} is damaged (its checksum is not as in {SUMS}): copy {folder} again, or make it anew")


def _listing(sums: Mapping[str, str]) -> str:
    """Format SHA256SUMS."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
