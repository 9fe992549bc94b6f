"""Files written whole or not at all, and the error that tells the user what is wrong with an input."""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


class InputError(ValueError):
    """An input that cannot be used; its message is one sentence: what was found, expected, and to be done."""


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffixes, that becomes `path` if the block succeeds.

    Readers therefore see the old file or the new one, never a part. A link is followed. If the block
    raises, the temporary file goes and `path` stays as it was.

    Raises:
        FileNotFoundError: the folder is not there.
    """
    final = Path(os.path.realpath(path))
    if not final.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(final.parent))
    temporary = final.with_name(f".{secrets.token_hex(4)}.{final.name}")
    try:
        yield temporary
        os.replace(temporary, final)
    except OSError as error:
        if error.errno and error.filename is None:  # as of a disk that is full: say where
            error.filename = str(final)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Nothing; the file holds the text, in UTF-8, or the bytes."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def checksum(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
