"""Entries are fetched whole or not at all, from a server on this machine that can be made to misbehave."""

import base64
import contextlib
import gzip
import hashlib
import io
import json
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cryotrans_jax.fit.options import Resolutions
from cryotrans_jax.io.files import InputError, checksum
from cryotrans_jax.io.maps import write_map
from experiments import archives, download, find
from experiments import server as server_module

ENTRY = {  # as the EMDB's interface gives it, cut down
    "emdb_id": "EMD-22001",
    "admin": {"title": "A protein"},
    "crossreferences": {"pdb_list": {"pdb_reference": [{"pdb_id": "6x2c"}]}},
    "structure_determination_list": {
        "structure_determination": [
            {"image_processing": [{"final_reconstruction": {"resolution": {"valueOf_": "8.5", "units": "Å"}}}]}
        ]
    },
    "map": {
        "file": "emd_22001.map.gz",
        "contour_list": {"contour": [{"level": 9.0}, {"primary": True, "level": 0.012, "source": "AUTHOR"}]},
    },
    "interpretation": {
        "half_map_list": {"half_map": [{"file": f"emd_22001_half_map_{k}.map.gz"} for k in (1, 2)]},
        "segmentation_list": {"segmentation": [{"file": "emd_22001_msk_1.map"}]},
    },
}
HALVES = ["emd_22001_half_map_1.map.gz", "emd_22001_half_map_2.map.gz"]


def mrc(data):
    """The bytes as a file that begins as an MRC map does."""
    return data[:208].ljust(208, b"\0") + b"MAP " + data[208:]


class Server:
    """What there is at which path, and the next misdeeds at a path: one is used up by each request for it."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.misdeeds: dict[str, list] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.headers: dict[str, dict[str, str]] = {}
        self.ranges, self.validator = True, True

    def answer(self, request):
        path, wanted = request.path, request.headers.get("Range")
        self.asked.append((path, wanted))
        misdeed = self.misdeeds[path].pop(0) if self.misdeeds.get(path) else None
        if path not in self.files:
            return request.send_error(404)
        if isinstance(misdeed, int) and misdeed < 0:
            return request.send_error(-misdeed)
        if callable(misdeed):
            return misdeed(request)
        data, tag = self.files[path], f'"{hashlib.md5(self.files[path]).hexdigest()}"'
        start = 0
        if wanted and self.ranges and request.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.validator:
            request.send_header("ETag", tag)
        for header, value in self.headers.get(path, {}).items():
            request.send_header(header, value)
        if misdeed != "no length":
            request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        body = data[start:]
        request.wfile.write(body[:misdeed] if isinstance(misdeed, int) else body)  # and the connection ends


@contextmanager
def serving(server):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.answer(self)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture
def server(maps, monkeypatch):
    """A server with one entry of either archive; waits between tries are short."""
    monkeypatch.setattr(download, "PAUSE", 0.001)
    server = Server()
    server.files = {"/pdb/6RAH.cif": b"data_6RAH\n" * 1000, "/api/EMD-22001": json.dumps(ENTRY).encode()}
    packed = gzip.compress(mrc(np.random.default_rng(0).bytes(300000)))
    server.files["/emdb/EMD-22001/map/emd_22001.map.gz"] = packed
    for name in HALVES:
        server.files[f"/emdb/EMD-22001/other/{name}"] = gzip.compress(mrc(name.encode() * 1000))
    server.files["/emdb/EMD-22001/masks/emd_22001_msk_1.map"] = mrc(b"mask" * 1000)
    with serving(server) as server.base:
        yield server


MAP = "/emdb/EMD-22001/map/emd_22001.map.gz"


def mirrors(server):
    return [f"--emdb_api={server.base}/api", f"--emdb_files={server.base}/emdb", f"--pdb_files={server.base}/pdb/"]


def archive(server, limit=1e9, replace=False):
    return archives.Archives(f"{server.base}/api", f"{server.base}/emdb", f"{server.base}/pdb", limit, replace)


def test_entries_are_fetched_with_all_that_belongs_to_them(server, job, tmp_path):
    folder = tmp_path / "data"
    status, printed, error = job("fetch", "6rah", "EMD-22001", f"--data_dir={folder}", *mirrors(server))
    assert status == 0, error
    for path, data in server.files.items():
        if "api" not in path:
            assert (folder / Path(path).name).read_bytes() == data
            assert f"{folder / Path(path).name}: fetched, " in printed
    names = {Path(path).name for path in server.files if "api" not in path} | {"emd_22001.json"}
    assert {path.name for path in folder.iterdir()} == names
    side = json.loads((folder / "emd_22001.json").read_text())
    assert (side["resolution"], side["contour"], side["models"]) == (8.5, 0.012, ["6X2C"])
    assert (side["half_maps"], side["masks"]) == (HALVES, ["emd_22001_msk_1.map"])
    for name, record in side["files"].items():
        assert record["sha256"] == checksum(folder / name) and record["bytes"] == (folder / name).stat().st_size


def test_what_is_there_is_not_fetched_again_and_what_was_changed_is_told(server, tmp_path):
    archives.fetch("EMD-22001", archive(server), tmp_path)
    server.asked.clear()
    archives.fetch("EMD-22001", archive(server), tmp_path)
    assert [path for path, _ in server.asked] == ["/api/EMD-22001"]
    (tmp_path / "emd_22001.map.gz").write_bytes(b"mine")
    with pytest.raises(InputError, match="no longer what was fetched: move it away, or add --overwrite"):
        archives.fetch("EMD-22001", archive(server), tmp_path)
    assert (tmp_path / "emd_22001.map.gz").read_bytes() == b"mine"
    archives.fetch("EMD-22001", archive(server, replace=True), tmp_path)
    assert (tmp_path / "emd_22001.map.gz").read_bytes() == server.files[MAP]


def test_files_of_the_users_own_are_left(server, tmp_path, capsys):
    for name in ("emd_22001.map.gz", "6RAH.cif"):
        (tmp_path / name).write_bytes(b"mine")
    for entry in ("EMD-22001", "6RAH"):
        archives.fetch(entry, archive(server), tmp_path, ("map",))
    assert {(tmp_path / name).read_bytes() for name in ("emd_22001.map.gz", "6RAH.cif")} == {b"mine"}
    assert "already there, not fetched by this program and not checked" in capsys.readouterr().out


def test_a_broken_transfer_goes_on_where_it_broke(server, tmp_path):
    server.misdeeds[MAP] = [100000, 50000]
    archives.fetch("EMD-22001", archive(server), tmp_path, ("map",))
    assert (tmp_path / "emd_22001.map.gz").read_bytes() == server.files[MAP]
    assert [wanted for path, wanted in server.asked if path == MAP] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_transfer_given_up_goes_on_in_the_next_run(server, tmp_path):
    server.misdeeds[MAP] = [100000] + [0] * download.TRIES
    with pytest.raises(InputError, match="breaks off .100000 of 3[0-9]{5} bytes came.*--emdb_files"):
        archives.fetch("EMD-22001", archive(server), tmp_path, ("map",))
    assert not (tmp_path / "emd_22001.map.gz").exists()  # nothing that looks whole
    archives.fetch("EMD-22001", archive(server), tmp_path, ("map",))
    assert server.asked[-1] == (MAP, "bytes=100000-")
    assert (tmp_path / "emd_22001.map.gz").read_bytes() == server.files[MAP]
    assert {path.name for path in tmp_path.iterdir()} == {"emd_22001.map.gz", "emd_22001.json"}


@pytest.mark.parametrize("trait", ["changed", "ranges", "validator"])
def test_two_versions_of_a_file_are_never_joined(server, tmp_path, trait):
    """The file is another by now, or the server knows no parts, or says nothing by which to know the file again."""
    server.misdeeds[MAP] = [100000] + [0] * download.TRIES
    if trait == "validator":
        server.validator = False
    with pytest.raises(InputError):
        archives.fetch("EMD-22001", archive(server), tmp_path, ("map",))
    if trait == "changed":
        server.files[MAP] = gzip.compress(mrc(np.random.default_rng(1).bytes(400000)))
    if trait == "ranges":
        server.ranges = False
    archives.fetch("EMD-22001", archive(server), tmp_path, ("map",))
    assert (tmp_path / "emd_22001.map.gz").read_bytes() == server.files[MAP]


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.misdeeds["/pdb/6RAH.cif"] = [-503, -429]
    assert archives.fetch("6RAH", archive(server), tmp_path)[0].read_bytes() == server.files["/pdb/6RAH.cif"]
    server.misdeeds["/api/EMD-22001"] = [-503] * download.TRIES
    with pytest.raises(InputError, match="answers 503 Service Unavailable: .*name another server with --emdb_api"):
        archives.fetch("EMD-22001", archive(server), tmp_path)


def digest(name, data):
    return base64.b64encode(hashlib.new(name, data).digest()).decode()


@pytest.mark.parametrize(
    "header, form, algorithm",
    [
        ("Repr-Digest", "sha-256=:{}:", "sha256"),
        ("Digest", "sha-512={}", "sha512"),
        ("Digest", "SHA-256={}", "sha256"),
        ("Content-MD5", "{}", "md5"),
    ],
)
def test_a_servers_digest_is_checked(server, tmp_path, header, form, algorithm):
    path = "/pdb/6RAH.cif"
    server.headers[path] = {header: form.format(digest(algorithm, b"another file"))}
    with pytest.raises(InputError, match="than the file has .*: the file was discarded"):
        archives.fetch("6RAH", archive(server), tmp_path)
    assert not list(tmp_path.iterdir())
    server.headers[path] = {header: form.format(digest(algorithm, server.files[path]))}
    assert archives.fetch("6RAH", archive(server), tmp_path)[0].is_file()


@pytest.mark.parametrize(
    "header, value",
    [
        ("Repr-Digest", "sha-256=:no base64!:"),
        ("Digest", "SHA-256=abc"),
        ("Digest", "md5="),
        ("Content-MD5", "d41d8cd98f00b204e9800998ecf8427e"),  # in hexadecimal
        ("Content-MD5", "é"),
    ],
)
def test_a_digest_that_is_none_is_told_and_not_compared(server, tmp_path, capsys, header, value):
    server.headers["/pdb/6RAH.cif"] = {header: value}
    assert archives.fetch("6RAH", archive(server), tmp_path)[0].read_bytes() == server.files["/pdb/6RAH.cif"]
    assert "is not a digest" in capsys.readouterr().err


def test_what_a_gzip_file_unpacks_to_is_looked_at_within_bounds(server, tmp_path, monkeypatch):
    """Kilobytes may unpack to terabytes; what is beyond the bound is damaged here, and nobody finds out."""
    zeros = gzip.compress(mrc(bytes(20_000_000)))
    server.files[MAP] = zeros[:-8] + bytes(8)
    monkeypatch.setattr(download, "MAX_RATIO", 10)
    monkeypatch.setattr(download, "UNPACKED_BYTES", 10_000_000)
    archives.fetch("EMD-22001", archive(server), tmp_path, ("map",))
    monkeypatch.setattr(download, "UNPACKED_BYTES", 30_000_000)
    with pytest.raises(InputError, match="is not a complete gzip file"):
        archives.fetch("EMD-22001", archive(server), tmp_path / "..", ("map",))


@pytest.mark.parametrize("path, entry", [(MAP, "EMD-22001"), ("/pdb/6RAH.cif", "6RAH")])
@pytest.mark.parametrize("data", [b"<!DOCTYPE html>\x1b[2J<html>", b"", b"\x00" * 5000])
def test_a_page_is_not_taken_for_an_entry(server, tmp_path, path, entry, data):
    server.files[path] = gzip.compress(data) if path == MAP else data
    with pytest.raises(InputError, match="is not an (MRC map|mmCIF model): it begins with '.*discarded") as raised:
        archives.fetch(entry, archive(server), tmp_path, ("map",))
    assert not list(tmp_path.iterdir()) and str(raised.value).isprintable()


@pytest.mark.parametrize("data", [b"data_6RAH\n", b"# from PDB-REDO\n\n#\nDATA_x\n"])
def test_a_model_may_begin_with_comments(server, tmp_path, data):
    server.files["/pdb/6RAH.cif"] = data
    assert archives.fetch("6RAH", archive(server), tmp_path)[0].read_bytes() == data


# ------------------------------------------------------------------------------------- servers that mean no good


def endless(request):
    """An answer without length or end; what does not hang up gets 100 MB."""
    request.send_response(200)
    request.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(1000):
            request.wfile.write(b"data_" * 20_000)


def dripping(request):
    """An answer of which a byte comes now and then."""
    request.send_response(200)
    request.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(1000):
            request.wfile.write(b"d")
            time.sleep(0.02)


def redirecting(to):
    """An answer that the file is elsewhere."""

    def answer(request):
        request.send_response(302)
        request.send_header("Location", to)
        request.end_headers()

    return answer


def test_a_part_of_a_file_that_has_no_length_is_refused(server, tmp_path):
    def answer(request):
        request.send_response(206)
        request.send_header("Content-Range", "bytes 0-1/" + "9" * 5000)
        request.end_headers()

    server.misdeeds["/pdb/6RAH.cif"] = [answer]
    with pytest.raises(InputError, match="sends another part than requested"):
        archives.fetch("6RAH", archive(server), tmp_path)


def test_an_endless_answer_leaves_nothing(server, tmp_path, monkeypatch):
    server.misdeeds = {"/pdb/6RAH.cif": [endless], "/api/EMD-22001": [endless]}
    with pytest.raises(InputError, match="PDB entry 6RAH has more than 0.001 GB"):
        archives.fetch("6RAH", archive(server, limit=1e6), tmp_path)
    monkeypatch.setattr(archives, "ENTRY_BYTES", 1e6)
    with pytest.raises(InputError, match="does not answer with a description"):
        archives.fetch("EMD-22001", archive(server), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_too_slow_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WINDOW", 0.1)
    server.misdeeds["/pdb/6RAH.cif"] = [dripping] * download.TRIES
    begin = time.monotonic()
    with pytest.raises(InputError, match="less than 10 kB a second.*check the network, try again later"):
        archives.fetch("6RAH", archive(server), tmp_path)
    assert time.monotonic() - begin < 5


def test_a_server_has_so_long_for_a_file(server, tmp_path, monkeypatch):
    """However often it is asked again, and though something comes each time."""
    monkeypatch.setattr(download, "PATIENCE", 0.0)
    server.misdeeds["/pdb/6RAH.cif"] = [5000] * 3
    with pytest.raises(InputError, match="try again later"):
        archives.fetch("6RAH", archive(server), tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/6RAH.cif", "http://127.0.0.1:1/\x1b[2J"])
def test_a_redirect_to_another_scheme_or_server_is_refused(server, tmp_path, to):
    server.misdeeds["/pdb/6RAH.cif"] = [redirecting(to)]
    with pytest.raises(InputError, match="redirects to .*same server|refuses PDB entry 6RAH") as raised:
        archives.fetch("6RAH", archive(server), tmp_path)
    assert str(raised.value).isprintable() and not list(tmp_path.iterdir())


def test_a_redirect_on_the_same_server_is_followed(server, tmp_path):
    server.files["/pdb/moved.cif"] = b"data_moved\n"
    for to in ("moved.cif", f"{server.base}/pdb/moved.cif"):
        server.misdeeds["/pdb/6RAH.cif"] = [redirecting(to)]
        (path,) = archives.fetch("6RAH", archive(server, replace=True), tmp_path)
        assert path.read_bytes() == b"data_moved\n"


@pytest.mark.parametrize("address, allowed", [("10.1.2.3", False), ("169.254.169.254", False), ("93.184.216.34", True)])
def test_a_redirect_from_the_internet_leads_to_no_private_address(monkeypatch, address, allowed):
    known = {"archive.org": "93.184.216.34", "new.org": address}
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port: [(2, 1, 6, "", (known[host], 0))])
    follow = server_module.Redirects("https://archive.org/a").redirect_request
    request, reply = urllib.request.Request("https://archive.org/a"), io.BytesIO()
    if allowed:
        assert follow(request, reply, 302, "", {}, "https://new.org/b").full_url == "https://new.org/b"
    else:
        with pytest.raises(server_module.Refused, match="https://new.org/b, which is no public address"):
            follow(request, reply, 302, "", {}, "https://new.org/b")


def test_what_a_server_says_is_printed_without_control_characters(server, job, tmp_path):
    def answer(request):
        request.send_response_only(403, "No\x1b[2J\x9b31m entry\u202e".encode().decode("latin-1"))
        request.end_headers()

    server.misdeeds["/pdb/6RAH.cif"] = [answer]
    status, _, error = job("fetch", "6RAH", f"--data_dir={tmp_path}", *mirrors(server))
    assert status == 2 and "answers 403 No?[2J" in error and error.rstrip("\n").isprintable()


@pytest.mark.parametrize("address", ["http://a..b", "http://[::1", "http://a:port", "https://", "http://a\x1b[2J"])
def test_an_address_that_is_none_is_told_in_one_line(job, tmp_path, address):
    status, _, error = job("fetch", "6RAH", f"--data_dir={tmp_path}", f"--pdb_files={address}")
    assert status == 2 and error.count("\n") == 1 and "is no address of a server" in error
    assert error.rstrip("\n").isprintable()


@pytest.mark.parametrize("names, said", [(["emd_22001.map"] * 2, "one file twice"), (range(100), "101 files, more")])
def test_files_of_an_entry_are_so_many_at_most_and_each_has_its_own_name(names, said):
    halves = [{"file": name if isinstance(name, str) else f"emd_22001_{name}.map"} for name in names]
    with pytest.raises(InputError, match=said):
        archives.metadata("22001", {"interpretation": {"half_map_list": {"half_map": halves}}})


def test_a_damaged_gzip_file_is_refused_though_its_length_is_right(server, tmp_path):
    data = bytearray(server.files[MAP])
    data[len(data) // 2] ^= 1
    server.files[MAP] = bytes(data)
    with pytest.raises(InputError, match="emd_22001.map.gz is not a complete gzip file"):
        archives.fetch("EMD-22001", archive(server), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("misdeed", [None, "no length"])
def test_a_file_that_is_too_large_is_not_fetched(server, job, tmp_path, misdeed):
    server.misdeeds["/pdb/6RAH.cif"] = [misdeed]
    flags = f"--data_dir={tmp_path}", "--max_gb=0.000005"
    status, _, error = job("fetch", "6RAH", *flags, *mirrors(server))
    size = "more than 5e-06 GB" if misdeed else "1e-05 GB, more than 5e-06"
    assert status == 2 and f"PDB entry 6RAH has {size}: raise --max_gb" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["9XYZ", "EMD-99999"])
def test_an_entry_that_is_not_there_is_told_in_one_line(server, job, tmp_path, name):
    status, _, error = job("fetch", name, f"--data_dir={tmp_path}", *mirrors(server))
    assert status == 2 and error.count("\n") == 1
    assert error.startswith("error: the archive has no ") and f"{name}" in error and "check its number" in error
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_down_is_told_in_one_line(server, job, tmp_path):
    with serving(Server()) as gone:
        pass
    status, _, error = job("fetch", "6RAH", f"--data_dir={tmp_path}", f"--pdb_files={gone}")
    assert status == 2 and error.count("\n") == 1
    assert f"error: {gone.removeprefix('http://')} does not answer" in error and "Connection refused" in error
    assert "name another server with --pdb_files" in error
    status, _, error = job("fetch", "6RAH", f"--data_dir={tmp_path}", "--pdb_files=file:///etc")
    assert status == 2 and "file:///etc/6RAH.cif is no address of a server" in error


@pytest.mark.parametrize("name", ["../6RAH", "6RA", "EMD-", "EMD-1/../2", "6RAH.cif", "٦RAH", "EMD-٢٢٠٠١"])
def test_what_is_no_number_is_refused_before_anything_is_asked(server, job, tmp_path, name):
    status, _, error = job("fetch", "6RAH", f"--entries={name}", f"--data_dir={tmp_path}", *mirrors(server))
    assert status == 2 and "is no entry's number" in error and not server.asked


@pytest.mark.parametrize(
    "file",
    [
        "../emd_22001.map",
        "/etc/emd_22001.map",
        "emd_22001/../../a.map",
        ".emd_22001",
        "passwd",
        7,
        "emd_9.map",
        "emd_22001.json",
        "emd_220011.map",
        "emd_22001.map.gz.part",
        "emd_22001",
        "emd_22001\x1b[2J.map",
        "emd_22001\n.map",
    ],
)
@pytest.mark.parametrize("part", ["map", "half", "mask"])
def test_no_name_from_a_server_leads_out_of_the_folder(server, tmp_path, file, part):
    entry = json.loads(json.dumps(ENTRY))
    inside = entry["interpretation"]
    place = {
        "map": entry["map"],
        "half": inside["half_map_list"]["half_map"][0],
        "mask": inside["segmentation_list"]["segmentation"][0],
    }
    place[part]["file"] = file
    server.files["/api/EMD-22001"] = json.dumps(entry).encode()
    with pytest.raises(InputError, match="which is not a name of its maps"):
        archives.fetch("EMD-22001", archive(server), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", [b"<html>", b"[1]", b"\xff\xfe", b""])
def test_a_description_that_is_none_is_explained(server, tmp_path, answer):
    server.files["/api/EMD-22001"] = answer
    with pytest.raises(InputError, match="EMD-22001 does not answer with a description"):
        archives.fetch("EMD-22001", archive(server), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_entry_may_say_little():
    entry = archives.metadata("22001", {})
    assert entry["map"] == ["emd_22001.map.gz"] and entry["half_maps"] == entry["masks"] == []
    assert entry["resolution"] is entry["contour"] is entry["title"] is None


def test_mirrors_may_be_named_by_the_environment(server, job, tmp_path, monkeypatch):
    monkeypatch.setenv("CRYOTRANS_PDB_FILES", f"{server.base}/pdb")
    assert job("fetch", "6RAH", f"--data_dir={tmp_path}")[0] == 0


def test_a_run_fetches_what_it_lacks_and_knows_what_the_archive_says(server, job, tmp_path, maps, monkeypatch):
    taken = {}

    def stop(initial, targets, options, **others):
        taken.update(options=options, maps=[initial, *targets])
        raise InputError("enough")

    monkeypatch.setattr("experiments.results.morph", stop)
    for number, map_ in zip(("22001", "22002"), maps, strict=False):
        write_map(tmp_path / "here.map.gz", map_)
        server.files[f"/emdb/EMD-{number}/map/emd_{number}.map.gz"] = (tmp_path / "here.map.gz").read_bytes()
    server.files["/api/EMD-22002"] = json.dumps({"emdb_id": "EMD-22002"}).encode()
    data = tmp_path / "data"
    command = [
        "--initial=EMD-22001",
        "--target=emd_22002.map.gz",
        f"--data_dir={data}",
        "--align=none",
        *mirrors(server),
    ]
    status, _, error = job("run", *command, f"--out_dir={tmp_path}/a")
    assert status == 2 and "for an entry of the EMDB --fetch" in error
    status, _, error = job("run", *command, f"--out_dir={tmp_path}/b", "--fetch")
    assert (status, error) == (2, "error: enough\n")
    for found, map_ in zip(taken["maps"], maps, strict=False):
        np.testing.assert_array_equal(found.density, map_.density)
    assert taken["options"].resolutions == Resolutions(8.5, [None])
    assert {path.name for path in data.iterdir()} == {
        f"emd_2200{k}{end}" for k in (1, 2) for end in (".json", ".map.gz")
    }
    assert archives.contour(data / "emd_22001.map.gz") == 0.012 and archives.contour(data / "emd_22002.map.gz") is None


@pytest.mark.parametrize("name, flag", [("fetch", "--pdb_files"), ("run", "--initial_resolution")])
def test_help_has_the_flags_that_jobs_share(job, name, flag):
    status, out, _ = job(name, "--help")
    assert status == 0 and flag in out


def test_names_of_missing_files_lead_to_their_entries():
    names = ["6RAI_5A.mrc", "x/6rah.cif", "EMD-1234", "emd_1234_half_map_2.map.gz", "emd_1234_msk_1.map", "mine.mrc"]
    expected = [("6RAI", ()), ("6rah", ()), *(("EMD-1234", (part,)) for part in ("map", "half_maps", "masks"))]
    assert list(archives.wanted(names)) == expected


@pytest.mark.parametrize(
    "one, two",
    [
        ("run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"),
        ("run_it025_half1_class001.mrc", "run_it025_half2_class001.mrc"),
        ("J12_005_volume_map_half_A.mrc", "J12_005_volume_map_half_B.mrc"),
        ("cryosparc_P1_J7_map_half_a.mrc.gz", "cryosparc_P1_J7_map_half_b.mrc.gz"),
        ("emd_22001_half_map_1.map.gz", "emd_22001_half_map_2.map.gz"),
        ("half1_of_half-map-1.mrc", "half1_of_half-map-2.mrc"),
        ("Half2.mrc", "Half1.mrc"),
    ],
)
def test_each_half_map_finds_the_other(tmp_path, one, two):
    folder = tmp_path / "half1"  # a folder's name is not meant
    folder.mkdir()
    for name in (one, two):
        (folder / name).touch()
    assert find.other_half_map(folder / one) == folder / two
    assert find.other_half_map(str(folder / two)) == folder / one


def test_a_half_map_without_the_other_is_explained(tmp_path):
    for name, sentence in (("half1.mrc", "the other half-map .*half2.mrc"), ("map_1.mrc", "have a half-map.s name")):
        with pytest.raises(InputError, match=sentence):
            find.other_half_map(tmp_path / name)
    with pytest.raises(InputError, match="have a half-map.s name"):
        find.other_half_map(tmp_path / "half12.mrc")
