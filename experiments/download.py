"""Download one file: resume where a transfer broke off, check it, and write it whole or not at all."""

import base64
import gzip
import hashlib
import json
import os
import re
import time
import urllib.error
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from cryotrans_jax.io.files import MAX_RATIO, UNPACKED_BYTES, InputError, read_json, whole_file

from . import log
from .server import Refused, open_url, printable

CHUNK = 1 << 18  # bytes read at a time
HEAD = 4096  # bytes from which the format of a file is recognised
LEAST_RATE, WINDOW = 10_000, 60.0  # bytes/s, s: a transfer that is slower over this window has broken off
PATIENCE = 24 * 3600.0  # s for one file; the next command resumes the transfer
TRIES = 5  # attempts in a row that bring next to nothing
PAUSE = 1.0  # s before the second such attempt, doubled before each further one
TRANSIENT = (408, 429, 500, 502, 503, 504)  # statuses after which another attempt may succeed
DIGESTS = {"sha-256": "sha256", "sha-512": "sha512", "md5": "md5"}


class Format(NamedTuple):
    """A file format: its name, and a function that recognises it by the first bytes of a file."""

    name: str
    begins: Callable[[bytes], bool]


MRC = Format("an MRC map", lambda head: head[208:212] == b"MAP ")
MMCIF = Format("an mmCIF model", lambda head: re.match(rb"(\s|#.*\n)*data_", head, re.IGNORECASE) is not None)


class Damaged(Exception):
    """The file that came is not the one announced; the message is to follow the address."""


class TooLarge(InputError):
    """A file is larger than the limit."""


def download(
    url: str, path: Path, what: str, limit: float = float("inf"), mirror: str = "", format: Format | None = None
) -> dict:
    """Download the file at an address.

    The part that has come is kept in a hidden file beside it, also after the program has ended. Only the rest is
    requested then (HTTP Range), if the server's ETag or date shows that its file is the same. Checked are the length
    that the server announces, its digest if it sends one, the checksums in a .gz file, and how the file begins.

    Args:
        what: name of the file in messages.
        limit: size limit in bytes.
        mirror: flag that names another server, for messages.
        format: required format; None for any.

    Returns:
        The record of the file: `url`, `bytes`, `sha256`.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        announced = transfer(url, part, what, limit, mirror)
        record = {"url": url, "bytes": part.stat().st_size, "sha256": checked(part, announced, format)}
    except TooLarge:
        remove_part(part)
        raise
    except Damaged as error:
        remove_part(part)
        other = f", or name another server with {mirror}" if mirror else ""
        raise InputError(f"{url} {error}: the file was discarded; fetch it again{other}") from error
    os.replace(part, path)
    remove_part(part)
    return record


def transfer(url: str, part: Path, what: str, limit: float, mirror: str) -> dict[str, bytes]:
    """Download to `part` until it is complete, in several attempts; return the digests that the server sent.

    Args:
        part: the file to write, which may hold the beginning already.
    """
    vain, begin = 0, time.monotonic()
    other = f", or name another server with {mirror}" if mirror else ""
    while True:
        before, at = size(part), time.monotonic()
        try:
            with request(url, part) as reply:
                return receive(reply, url, part, what, limit)
        except Refused as error:
            instead = f": name another server with {mirror}" if mirror else ""
            raise InputError(f"{urlsplit(url).netloc} {error}{instead}") from error
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in (*TRANSIENT, 416):
                raise refused(error, url, what) from error
            if error.code == 416:  # the part is not the beginning of the server's file
                remove_part(part)
            reason = f"answers {error.code} {printable(error.reason)}"
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, SSLError) as error:
            reason = f"does not answer, or breaks off ({printable(getattr(error, 'reason', error))})"
        spent = time.monotonic() - at
        vain = 0 if size(part) - before > LEAST_RATE * spent else vain + 1
        if vain == TRIES or at + spent - begin > PATIENCE:
            raise InputError(f"{urlsplit(url).netloc} {reason}: check the network, try again later{other}")
        if vain:
            time.sleep(PAUSE * 2 ** (vain - 1))


def request(url: str, part: Path):
    """Request the file, or the rest of it where `part` holds the beginning; return the server's reply."""
    headers = {"User-Agent": "cryotrans-jax"}
    if size(part) and (validator := saved_validator(part, url)):
        headers |= {"Range": f"bytes={size(part)}-", "If-Range": validator}
    return open_url(url, headers)


def saved_validator(part: Path, url: str) -> str:
    """ETag or date of the file of which `part` is the beginning; "" if unknown, or if it is from another address."""
    try:
        note = read_json(note_path(part))
    except (InputError, FileNotFoundError):
        return ""
    validator = note.get("validator")
    return validator if note.get("url") == url and isinstance(validator, str) and validator.isprintable() else ""


def receive(reply, url: str, part: Path, what: str, limit: float) -> dict[str, bytes]:
    """Write the reply to `part`, after its present bytes if the reply is the rest; return the digests it announces."""
    start, total = 0, reply.length
    if reply.status == 206:
        start = size(part)
        found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18})", reply.headers.get("Content-Range", ""))
        if not found or int(found[1]) != start:
            raise Damaged("sends another part than requested")
        total = int(found[2])
    else:
        remove_part(part)
        validator = reply.headers.get("ETag") or reply.headers.get("Last-Modified") or ""
        with whole_file(note_path(part)) as temporary:  # a weak ETag does not promise the same bytes
            temporary.write_text(json.dumps({"url": url, "validator": validator.removeprefix("W/") and validator}))
    if total and total > limit:
        raise TooLarge(f"{what} has {total / 1e9:.2g} GB, more than {limit / 1e9:.2g}: raise --max_gb to take it")
    pace = Pace()
    shown = dict(unit="B", unit_scale=True, desc=what, leave=False, dynamic_ncols=True, disable=None)  # in a terminal
    with part.open("ab") as file, tqdm(total=total, initial=start, **shown) as bar:
        while chunk := reply.read1(CHUNK if total is None else min(CHUNK, total - file.tell())):
            file.write(chunk)
            if file.tell() > limit:
                raise TooLarge(f"{what} has more than {limit / 1e9:.2g} GB: raise --max_gb to take it")
            pace(len(chunk))
            bar.update(len(chunk))
    if total is not None and size(part) < total:
        raise HTTPException(f"{size(part)} of {total} bytes came")
    return digests(reply.headers, start == 0)


def digests(headers, whole: bool) -> dict[str, bytes]:
    """Digests of a file, by algorithm, from the headers of a reply.

    Args:
        headers: of the reply. Repr-Digest (RFC 9530) is always of the whole file, Digest (RFC 3230) and Content-MD5
            (RFC 1864) only where the reply is.
        whole: whether the reply has the whole file, not a part.
    """
    text = headers.get("Repr-Digest") or (whole and headers.get("Digest")) or ""
    found = re.findall(r"(sha-256|sha-512|md5)=:?([^\s,:;]*)", text, re.IGNORECASE)
    if whole and headers.get("Content-MD5"):
        found.append(("md5", headers["Content-MD5"].strip()))
    known = {name.lower(): digest(name.lower(), value) for name, value in found}
    for name in (name for name, value in known.items() if value is None):
        log.digest_invalid(name)
    return {name: value for name, value in known.items() if value is not None}


def digest(name: str, text: str) -> bytes | None:
    """Decode a digest from base64; None if the text is not a digest of this algorithm."""
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return value if len(value) == hashlib.new(DIGESTS[name]).digest_size else None


def checked(part: Path, announced: dict[str, bytes], format: Format | None) -> str:
    """Check a file, and return its SHA-256 in hexadecimal.

    Raises:
        Damaged: a digest differs, a .gz file is damaged, or the file is of another format.
    """
    sums = {name: hashlib.new(DIGESTS[name]) for name in {"sha-256", *announced}}
    with part.open("rb") as file:
        while chunk := file.read(CHUNK):
            for each in sums.values():
                each.update(chunk)
    for name, value in announced.items():
        if sums[name].digest() != value:
            raise Damaged(f"announces another {name} than the file has ({value.hex()}, {sums[name].hexdigest()})")
    head = beginning(part)
    if format and not format.begins(head):
        begins = printable(head[:60].decode(errors="replace"))
        raise Damaged(f"is not {format.name}: it begins with {begins!r}")
    return sums["sha-256"].hexdigest()


def beginning(part: Path) -> bytes:
    """First bytes of a file, unpacked if it is a .gz, whose checksums are checked.

    A small file may unpack to terabytes, so bytes beyond the limit of `files.open_unpacked` are not read.

    Raises:
        Damaged: a .gz file is not valid.
    """
    if not part.name.endswith(".gz.part"):
        with part.open("rb") as file:
            return file.read(HEAD)
    left = max(UNPACKED_BYTES, MAX_RATIO * size(part))
    try:
        with gzip.open(part) as file:
            head = file.read(HEAD)
            while left > 0 and (chunk := file.read(CHUNK)):
                left -= len(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged(f"is not a complete gzip file ({error})") from error
    return head


def refused(error: urllib.error.HTTPError, url: str, what: str) -> InputError:
    """The error to raise for a server's refusal."""
    if error.code in (404, 410):
        return InputError(f"the archive has no {what} ({url} is not there): check its number")
    return InputError(f"the archive refuses {what} ({url} answers {error.code} {printable(error.reason)})")


def size(path: Path) -> int:
    """Size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path.is_file() else 0


def note_path(part: Path) -> Path:
    """Path of the note that says of which file `part` is the beginning."""
    return part.with_name(part.name + ".json")


def remove_part(part: Path) -> None:
    """Remove an unfinished transfer."""
    part.unlink(missing_ok=True)
    note_path(part).unlink(missing_ok=True)


class Pace:
    """Check that a transfer has LEAST_RATE on average over each WINDOW."""

    def __init__(self):
        """Start the first window."""
        self.since, self.count, self.end = time.monotonic(), 0, time.monotonic() + PATIENCE

    def __call__(self, count: int) -> None:
        """Add bytes that came; raise TimeoutError where they come too slowly."""
        self.count, now = self.count + count, time.monotonic()
        if now > self.end:
            raise TimeoutError(f"not all has come in {PATIENCE / 3600:.0f} hours")
        if (spent := now - self.since) > WINDOW:
            if self.count < LEAST_RATE * spent:
                raise TimeoutError(f"less than {LEAST_RATE / 1e3:.0f} kB a second")
            self.since, self.count = now, 0
