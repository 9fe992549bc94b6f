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
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.parse import urlsplit

from tqdm import tqdm

from cryotrans_jax.files import InputError, read_json, whole_file

CHUNK = 1 << 18  # bytes read at a time
TIMEOUT = 30.0  # seconds without a byte after which a server counts as silent
TRIES = 5  # in a row that bring nothing, then it is given up
PAUSE = 1.0  # seconds before the second try in vain, twice as many before each further one
TRANSIENT = (408, 429, 500, 502, 503, 504)  # what a server may answer now and not in a while
EVERY = 10.0  # seconds between lines of progress in a log
DIGESTS = {"sha-256": "sha256", "sha-512": "sha512", "md5": "md5"}


class Damaged(Exception):
    """What came is not what was announced; the message follows the address."""


def download(url: str, path: Path, what: str, limit: float = float("inf"), mirror: str = "") -> dict:
    """The record (`url`, `bytes`, `sha256`) of the file, which now holds what the address does.

    What has come so far stands in a hidden file beside it, also from one run to the next. Only the rest is asked for
    then (HTTP Range), if the server's ETag or date says that it still has the same. The length that the server
    announces is checked, its digest if it sends one, and the checksums within a .gz file.

    `what` names the file in messages, `limit` is in bytes, and `mirror` is the flag that names another server.

    Raises InputError where there is no such file or server, it is too large, or what came is damaged.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        announced = transfer(url, part, what, limit, mirror)
        record = {"url": url, "bytes": part.stat().st_size, "sha256": checked(part, announced)}
    except Damaged as error:
        forget(part)
        raise InputError(f"{url} {error}: what came was thrown away; fetch it again") from error
    os.replace(part, path)
    forget(part)
    return record


def transfer(url: str, part: Path, what: str, limit: float, mirror: str) -> dict[str, bytes]:
    """The digests that the server sent, by algorithm, of the file that `part` now holds in full; in several tries."""
    vain = 0
    while True:
        before = size(part)
        try:
            with asked(url, part) as reply:
                return receive(reply, url, part, what, limit)
        except urllib.error.HTTPError as error:
            if error.code not in (*TRANSIENT, 416):
                raise refused(error, url, what) from error
            if error.code == 416:  # what is here is no beginning of what is there
                forget(part)
            reason = f"answers {error.code} {error.reason}"
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, SSLError) as error:
            reason = f"does not answer, or breaks off ({getattr(error, 'reason', error)})"
        vain = 0 if size(part) > before else vain + 1
        if vain == TRIES:
            other = f", or name another server with {mirror}" if mirror else ""
            raise InputError(f"{urlsplit(url).netloc} {reason}: check the network, try again later{other}")
        if vain:
            time.sleep(PAUSE * 2 ** (vain - 1))


def asked(url: str, part: Path):
    """The server's reply when asked for the file, or for the rest of it where `part` holds the beginning."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{url} is no address of a server: give one of the form https://...")
    headers = {"User-Agent": "cryotrans-jax"}
    if size(part) and (validator := noted(part, url)):
        headers |= {"Range": f"bytes={size(part)}-", "If-Range": validator}
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)


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
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", reply.headers.get("Content-Range", ""))
        if not found or int(found[1]) != start:
            raise Damaged("sends another part than it was asked for")
        total = int(found[2])
    else:
        forget(part)
        validator = reply.headers.get("ETag") or reply.headers.get("Last-Modified") or ""
        with whole_file(beside(part)) as temporary:  # a weak ETag promises less than the same bytes
            temporary.write_text(json.dumps({"url": url, "validator": validator.removeprefix("W/") and validator}))
    check_size(total or 0, what, limit)
    with part.open("ab") as file, Meter(what, start, total) as meter:
        while chunk := reply.read(CHUNK):
            file.write(chunk)
            check_size(file.tell(), what, limit)
            meter(len(chunk))
    if total is not None and size(part) < total:
        raise HTTPException(f"{size(part)} of {total} bytes came")
    return digests(reply.headers, start == 0)


def digests(headers, whole: bool) -> dict[str, bytes]:
    """The digests of a file by algorithm, as headers tell them with the `whole` file or with a part of it.

    Repr-Digest (RFC 9530) is the file's in either case, Digest (RFC 3230) and Content-MD5 (RFC 1864) with all of it.
    """
    text = headers.get("Repr-Digest") or (whole and headers.get("Digest")) or ""
    found = re.findall(r"(sha-256|sha-512|md5)=:?([A-Za-z0-9+/]+=*):?", text, re.IGNORECASE)
    if whole and headers.get("Content-MD5"):
        found.append(("md5", headers["Content-MD5"]))
    return {name.lower(): base64.b64decode(value) for name, value in found}


def checked(part: Path, announced: dict[str, bytes]) -> str:
    """The SHA-256 of the file, in hexadecimal. Raises Damaged where an announced digest or a .gz is not right."""
    sums = {name: hashlib.new(DIGESTS[name]) for name in {"sha-256", *announced}}
    with part.open("rb") as file:
        while chunk := file.read(CHUNK):
            for each in sums.values():
                each.update(chunk)
    for name, value in announced.items():
        if sums[name].digest() != value:
            raise Damaged(f"sends another {name} than that of what came ({value.hex()}, {sums[name].hexdigest()})")
    if part.name.endswith(".gz.part"):
        try:
            with gzip.open(part) as file:
                while file.read(CHUNK):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            raise Damaged(f"is no whole gzip file ({error})") from error
    return sums["sha-256"].hexdigest()


def refused(error: urllib.error.HTTPError, url: str, what: str) -> InputError:
    """What a server's refusal means."""
    if error.code in (404, 410):
        return InputError(f"the archive has no {what} ({url} is not there): check its number")
    return InputError(f"the archive refuses {what} ({url} answers {error.code} {error.reason})")


def check_size(count: int, what: str, limit: float) -> None:
    """Nothing; raises InputError where a file has more bytes than it may."""
    if count > limit:
        raise InputError(f"{what} has {count / 1e9:.2g} GB, more than {limit / 1e9:.2g}: raise --max_gb to take it")


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
            of = f" of {self.total / 1e6:.0f}" if self.total else ""
            print(f"{self.what}: {self.done / 1e6:.0f}{of} MB", file=sys.stderr, flush=True)
