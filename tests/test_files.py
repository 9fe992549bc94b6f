"""Files appear whole or not at all."""

import hashlib

import pytest

from cryotrans_jax.files import InputError, checksum, whole_file


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
