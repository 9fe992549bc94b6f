"""One file from a server, whole or not at all: resumed where a transfer broke off, and checked."""

import base64
import gzip
import hashlib
import json
import os
import re
import sys
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

from cryotrans_jax.files import ROOM, SQUEEZED, InputError, read_json, whole_file

from . import log
from .server import Refused, opened, printable

CHUNK = 1 << 18  # bytes read at a time
HEAD = 4096  # bytes by which a file's format is known
LEAST_RATE, WINDOW = 10_000, 60.0  # bytes a second: a transfer that is slower for so many seconds has broken off
PATIENCE = 24 * 3600.0  # seconds for a file; the next run goes on with what has come
TRIES = 5  # in a row that bring next to nothing, then it is given up
PAUSE = 1.0  # seconds before the second try in vain, twice as many before each further one
TRANSIENT = (408, 429, 500, 502, 503, 504)  # what a server may answer now and not in a while
EVERY = 10.0  # seconds between lines of progress in a log
DIGESTS = {"sha-256": "sha256", "sha-512": "sha512", "md5": "md5"}


class Format(NamedTuple):
    """A file's format: its name, and whether a file that begins with some bytes is of it."""

    name: str
    begins: Callable[[bytes], bool]


MRC = Format("an MRC map", lambda head: head[208:212] == b"MAP ")
MMCIF = Format("an mmCIF model", lambda head: re.match(rb"(\s|#.*\n)*data_", head, re.IGNORECASE) is not None)


class Damaged(Exception):
    """What came is not what was announced; the message follows the address."""


class TooLarge(InputError):
    """A file has more bytes than it may."""


def download(
    url: str, path: Path, what: str, limit: float = float("inf"), mirror: str = "", format: Format | None = None
) -> dict:
    """Fetch the file at an address.

    What has come so far stands in a hidden file beside it, also from one run to the next. Only the rest is asked for
    then (HTTP Range), if the server's ETag or date says that it still has the same. The length that the server
    announces is checked, its digest if it sends one, the checksums within a .gz file, and how the file begins.

    Args:
        url: the address.
        path: the file to write.
        what: the file's name in messages.
        limit: the bytes that it may have.
        mirror: the flag that names another server, for messages.
        format: what the file has to be; None for any.

    Returns:
        Its record: `url`, `bytes`, `sha256`.

    Raises:
        InputError: there is no such file or server, it is too large, damaged, or of another format.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        announced = transfer(url, part, what, limit, mirror)
        record = {"url": url, "bytes": part.stat().st_size, "sha256": checked(part, announced, format)}
    except TooLarge:
        forget(part)
        raise
    except Damaged as error:
        forget(part)
        other = f", or name another server with {mirror}" if mirror else ""
        raise InputError(f"{url} {error}: what came was thrown away; fetch it again{other}") from error
    os.replace(part, path)
    forget(part)
    return record


def transfer(url: str, part: Path, what: str, limit: float, mirror: str) -> dict[str, bytes]:
    """The digests that the server sent, by algorithm, of the file that `part` now holds in full; in several tries."""
    vain, begun = 0, time.monotonic()
    other = f", or name another server with {mirror}" if mirror else ""
    while True:
        before, at = size(part), time.monotonic()
        try:
            with asked(url, part) as reply:
                return receive(reply, url, part, what, limit)
        except Refused as error:
            instead = f": name another server with {mirror}" if mirror else ""
            raise InputError(f"{urlsplit(url).netloc} {error}{instead}") from error
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in (*TRANSIENT, 416):
                raise refused(error, url, what) from error
            if error.code == 416:  # what is here is no beginning of what is there
                forget(part)
            reason = f"answers {error.code} {printable(error.reason)}"
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, SSLError) as error:
            reason = f"does not answer, or breaks off ({printable(getattr(error, 'reason', error))})"
        spent = time.monotonic() - at
        vain = 0 if size(part) - before > LEAST_RATE * spent else vain + 1
        if vain == TRIES or at + spent - begun > PATIENCE:
            raise InputError(f"{urlsplit(url).netloc} {reason}: check the network, try again later{other}")
        if vain:
            time.sleep(PAUSE * 2 ** (vain - 1))


def asked(url: str, part: Path):
    """The server's reply when asked for the file, or for the rest of it where `part` holds the beginning."""
    headers = {"User-Agent": "cryotrans-jax"}
    if size(part) and (validator := noted(part, url)):
        headers |= {"Range": f"bytes={size(part)}-", "If-Range": validator}
    return opened(url, headers)


def noted(part: Path, url: str) -> str:
    """By what the server tells that the file at the address is still that of which `part` is the beginning, or ""."""
    try:
        note = read_json(beside(part))
    except (InputError, FileNotFoundError):
        return ""
    validator = note.get("validator")
    return validator if note.get("url") == url and isinstance(validator, str) and validator.isprintable() else ""


def receive(reply, url: str, part: Path, what: str, limit: float) -> dict[str, bytes]:
    """The digests in the reply, by algorithm; its bytes are now in `part`, after those there if it is the rest."""
    start, total = 0, reply.length
    if reply.status == 206:
        start = size(part)
        found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18})", reply.headers.get("Content-Range", ""))
        if not found or int(found[1]) != start:
            raise Damaged("sends another part than it was asked for")
        total = int(found[2])
    else:
        forget(part)
        validator = reply.headers.get("ETag") or reply.headers.get("Last-Modified") or ""
        with whole_file(beside(part)) as temporary:  # a weak ETag promises less than the same bytes
            temporary.write_text(json.dumps({"url": url, "validator": validator.removeprefix("W/") and validator}))
    if total and total > limit:
        raise TooLarge(f"{what} has {total / 1e9:.2g} GB, more than {limit / 1e9:.2g}: raise --max_gb to take it")
    pace = Pace()
    with part.open("ab") as file, Meter(what, start, total) as meter:
        while chunk := reply.read1(CHUNK if total is None else min(CHUNK, total - file.tell())):
            file.write(chunk)
            if file.tell() > limit:
                raise TooLarge(f"{what} has more than {limit / 1e9:.2g} GB: raise --max_gb to take it")
            pace(len(chunk))
            meter(len(chunk))
    if total is not None and size(part) < total:
        raise HTTPException(f"{size(part)} of {total} bytes came")
    return digests(reply.headers, start == 0)


def digests(headers, whole: bool) -> dict[str, bytes]:
    """The digests of a file by algorithm, as headers tell them with the `whole` file or with a part of it.

    Repr-Digest (RFC 9530) is the file's in either case, Digest (RFC 3230) and Content-MD5 (RFC 1864) with all of it.
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
    """The digest of an algorithm that is written in base64, None where the text is no such."""
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return value if len(value) == hashlib.new(DIGESTS[name]).digest_size else None


def checked(part: Path, announced: dict[str, bytes], format: Format | None) -> str:
    """The SHA-256 of the file, in hexadecimal.

    Raises Damaged where an announced digest or a .gz is not right, or the file begins as none of its format does.
    """
    sums = {name: hashlib.new(DIGESTS[name]) for name in {"sha-256", *announced}}
    with part.open("rb") as file:
        while chunk := file.read(CHUNK):
            for each in sums.values():
                each.update(chunk)
    for name, value in announced.items():
        if sums[name].digest() != value:
            raise Damaged(f"sends another {name} than that of what came ({value.hex()}, {sums[name].hexdigest()})")
    head = beginning(part)
    if format and not format.begins(head):
        begins = printable(head[:60].decode(errors="replace"))
        raise Damaged(f"is not {format.name}: it begins with {begins!r}")
    return sums["sha-256"].hexdigest()


def beginning(part: Path) -> bytes:
    """The first bytes of the file, of a .gz what they unpack to; the checksums in a .gz are checked.

    A small file may unpack to terabytes: what is beyond the bytes that `files.unpacked` would take is not looked at.
    Raises Damaged where a .gz is none.
    """
    if not part.name.endswith(".gz.part"):
        with part.open("rb") as file:
            return file.read(HEAD)
    left = max(ROOM, SQUEEZED * size(part))
    try:
        with gzip.open(part) as file:
            head = file.read(HEAD)
            while left > 0 and (chunk := file.read(CHUNK)):
                left -= len(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged(f"is no whole gzip file ({error})") from error
    return head


def refused(error: urllib.error.HTTPError, url: str, what: str) -> InputError:
    """What a server's refusal means."""
    if error.code in (404, 410):
        return InputError(f"the archive has no {what} ({url} is not there): check its number")
    return InputError(f"the archive refuses {what} ({url} answers {error.code} {printable(error.reason)})")


def size(path: Path) -> int:
    """The bytes in a file, 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def beside(part: Path) -> Path:
    """The file that says of what `part` is the beginning."""
    return part.with_name(part.name + ".json")


def forget(part: Path) -> None:
    """Nothing; what has come of a file is gone."""
    part.unlink(missing_ok=True)
    beside(part).unlink(missing_ok=True)


class Pace:
    """Whether a transfer is fast enough to wait for: LEAST_RATE on average over each WINDOW."""

    def __init__(self):
        """Begin the first window."""
        self.since, self.count, self.end = time.monotonic(), 0, time.monotonic() + PATIENCE

    def __call__(self, count: int) -> None:
        """Count so many more bytes. Raises TimeoutError where they come too slowly."""
        self.count, now = self.count + count, time.monotonic()
        if now > self.end:
            raise TimeoutError(f"not all has come in {PATIENCE / 3600:.0f} hours")
        if (spent := now - self.since) > WINDOW:
            if self.count < LEAST_RATE * spent:
                raise TimeoutError(f"less than {LEAST_RATE / 1e3:.0f} kB a second")
            self.since, self.count = now, 0


class Meter:
    """How far a transfer is: a bar where there is a terminal, and a line every few seconds where there is none."""

    def __init__(self, what: str, start: int, total: int | None):
        """`start` bytes of `total`, None if that is not known, are there already."""
        self.what, self.done, self.total, self.told = what, start, total, time.perf_counter()
        show = dict(unit="B", unit_scale=True, desc=what, leave=False, dynamic_ncols=True)
        self.bar = tqdm(total=total, initial=start, **show) if sys.stderr.isatty() else None

    def __enter__(self):
        """Itself."""
        return self

    def __exit__(self, *_):
        """Nothing; the bar is closed."""
        if self.bar is not None:
            self.bar.close()

    def __call__(self, count: int) -> None:
        """Nothing; so many more bytes are there."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif time.perf_counter() - self.told > EVERY:
            self.told = time.perf_counter()
            log.transfer(self.what, self.done, self.total)
