"""Files appear whole or not at all."""

import bz2
import errno
import gzip
import hashlib
import io
import json
import secrets

import pytest

from cryotrans_jax.io import files
from cryotrans_jax.io.files import (
    InputError,
    checksum,
    open_unpacked,
    read_bytes,
    read_json,
    unfinished_files,
    whole_file,
    write_file,
)


def test_whole_file_has_the_suffixes_and_folder_of_the_path(tmp_path):
    with whole_file(tmp_path / "map.mrc.gz") as temporary:
        assert temporary.parent == tmp_path.resolve() and temporary.suffixes[-2:] == [".mrc", ".gz"]
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["map.mrc.gz"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    (tmp_path / "map.mrc").write_text("old")
    with pytest.raises(failure), whole_file(tmp_path / "map.mrc") as temporary:
        temporary.write_text("half")
        raise failure
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with whole_file(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_a_missing_folder_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="no such folder.*nowhere"),
        whole_file(tmp_path / "nowhere/map.mrc"),
    ):
        pass


def test_checksum_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert checksum(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_of_the_disk_names_the_file_that_was_written(tmp_path, number):
    with pytest.raises(OSError) as raised, whole_file(tmp_path / "map.mrc"):
        raise OSError(number, "as the disk says")
    assert raised.value.filename == str((tmp_path / "map.mrc").resolve())
    with pytest.raises(OSError) as raised, whole_file(tmp_path / "map.mrc"):
        raise OSError(number, "as the disk says", "another")
    assert raised.value.filename == "another"
    with pytest.raises(OSError) as raised, whole_file(tmp_path / "map.mrc"):
        raise OSError("with no number")
    assert raised.value.filename is None


def test_files_that_a_killed_process_left_are_found_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(files.Path, "unlink", lambda *_, **__: None)  # a process that is killed tidies nothing
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "a.mrc", tmp_path / "in" / "b.json"):
        with pytest.raises(KeyboardInterrupt):
            write_file(path, "half")
    (tmp_path / ".0123abcd.folder.x").mkdir()
    for name in (".hidden.mrc", "a.mrc", ".0123abcd", ".0123ABCD.a.mrc"):
        (tmp_path / name).write_text("the user's own")
    assert sorted(path.name[10:] for path in unfinished_files(tmp_path)) == ["a.mrc", "b.json"]


def test_text_is_written_as_utf8_and_bytes_as_they_are(tmp_path):
    for content, expected in (("Å", "Å".encode()), (b"\xff\x00", b"\xff\x00"), ("a\udcffb", b"a?b")):
        write_file(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == expected


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_compressed_files_are_unpacked_and_bounded_and_plain_ones_are_not(tmp_path, monkeypatch, pack):
    """A compressed file may unpack to UNPACKED_BYTES, or to MAX_RATIO times its size where that is more."""
    data = secrets.token_bytes(5000)
    for content, bounded in ((data, False), (pack(data), True)):
        (tmp_path / "file").write_bytes(content)
        for room in (10, 10**7, files.UNPACKED_BYTES):
            monkeypatch.setattr(files, "UNPACKED_BYTES", room)
            with open_unpacked(tmp_path / "file") as (stream, most):
                assert stream.read() == data
                assert most == (max(room, files.MAX_RATIO * len(content)) if bounded else None)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_damaged_compressed_files_are_refused_and_missing_ones_are_missing(tmp_path, pack):
    (tmp_path / "cut").write_bytes(pack(secrets.token_bytes(5000))[:-3000])
    with pytest.raises(InputError, match="cut is a damaged compressed file .*: copy it again"):
        with open_unpacked(tmp_path / "cut") as (stream, _):
            stream.read()
    with pytest.raises(FileNotFoundError), open_unpacked(tmp_path / "none"):
        pass


def test_a_small_compressed_file_may_unpack_to_256_mib(tmp_path):
    (tmp_path / "file").write_bytes(gzip.compress(b"small"))
    with open_unpacked(tmp_path / "file") as (_, most):
        assert most == 256 * 1024**2


@pytest.mark.parametrize("chunk", [1, 3, 100, files.CHUNK])
def test_no_more_is_taken_of_a_stream_than_asked_for_nor_than_there_is(monkeypatch, chunk):
    monkeypatch.setattr(files, "CHUNK", chunk)
    stream = io.BytesIO(b"0123456789")
    assert [read_bytes(stream, count) for count in (0, 4, 5, 9, 9)] == [b"", b"0123", b"45678", b"9", b""]


def nested(depth):
    """An object with lists in it, so many levels deep in all."""
    return {"in": json.loads("[" * (depth - 1) + "]" * (depth - 1))} if depth > 1 else {}


def test_a_json_file_holds_an_object_within_bounds(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    content = {"a": [1, {"b": "Å"}]}
    path.write_text(json.dumps(content))
    assert read_json(path) == content
    monkeypatch.setattr(files, "RECORD_BYTES", path.stat().st_size)
    assert read_json(path) == content
    monkeypatch.setattr(files, "RECORD_BYTES", path.stat().st_size - 1)
    with pytest.raises(InputError, match="file.json does not hold a JSON object"):
        read_json(path)
    monkeypatch.undo()
    path.write_text(json.dumps(nested(files.DEPTH)))
    assert read_json(path) == nested(files.DEPTH)
    for text in (json.dumps(nested(files.DEPTH + 1)), "[" * 10**5, "[1]", "{", "\0"):
        path.write_text(text)
        with pytest.raises(InputError, match="^remove the run$"):
            read_json(path, "remove the run")
