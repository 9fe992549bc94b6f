"""Whatever a stranger's file holds, what comes of it is a result or one InputError."""

import bz2
import gzip
import io
import json
import math
import os
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from mrcfile.dtypes import HEADER_DTYPE

from cryotrans_jax.density import demo, simulation
from cryotrans_jax.io import atoms, maps, selections
from cryotrans_jax.io.files import DEPTH, MAX_RATIO, UNPACKED_BYTES, InputError, open_unpacked, read_json
from cryotrans_jax.io.maps import Map, read_map, write_map
from experiments import archives, exchange, find, finished, pairs, run_folder
from experiments.pages import reading
from tests.tools import fuzz, fuzz_damage, fuzz_kinds

MODEL, _ = demo.hinge_pair()
quick = settings(max_examples=60, deadline=None, derandomize=True)  # the same examples on every machine
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The bytes of a small map."""
    path = tmp_path_factory.mktemp("plain") / "a.mrc"
    density = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    write_map(path, Map(density, np.array([1.5, 2.0, 0.75]), np.array([-7.5, 11.3, 40.1])))
    return path.read_bytes()


def stored(data, suffix):
    """A file of these bytes, in a folder that lasts as long as the tests."""
    folder = Path(tempfile.gettempdir()) / f"input_{os.getpid()}"
    folder.mkdir(exist_ok=True)
    (folder / f"a{suffix}").write_bytes(data)
    return folder / f"a{suffix}"


def with_fields(data, **fields):
    """The bytes of a map with fields of its header set."""
    header = np.frombuffer(data[: HEADER_DTYPE.itemsize], HEADER_DTYPE).copy()
    for name, value in fields.items():
        header[name] = value
    return header.tobytes() + data[HEADER_DTYPE.itemsize :]


def result_or_error(read, *arguments):
    """What is read, or the message."""
    try:
        return read(*arguments)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) > 20
        return str(error)


# ------------------------------------------------------------------------------------- laws, by properties

integers = st.sampled_from(fuzz_damage.INTEGERS) | st.integers(-(2**31), 2**31 - 1)
floats = st.floats(width=32)


@quick
@given(
    whole=st.dictionaries(
        st.sampled_from("nx ny nz mode nxstart nystart nzstart mx my mz mapc mapr maps ispg nsymbt".split()), integers
    ),
    cell=st.none() | st.tuples(floats, floats, floats),
    angles=st.none() | st.tuples(floats, floats, floats),
    origin=st.none() | st.tuples(floats, floats, floats),
)
def test_any_header_is_a_map_or_an_error(plain, whole, cell, angles, origin):
    triples = {"cella": cell, "cellb": angles, "origin": origin}
    fields = whole | {name: value for name, value in triples.items() if value is not None}
    found = result_or_error(read_map, stored(with_fields(plain, **fields), ".mrc"))
    if isinstance(found, Map):
        assert np.isfinite(found.density).all() and np.abs(found.origin).max() <= maps.FARTHEST + 1e3 * 64
        assert maps.VOXELS[0] * 0.03 <= found.voxel_size.min() and found.voxel_size.max() <= maps.VOXELS[1]


@quick
@given(
    density=npst.arrays(np.float32, (3, 4, 2), elements=st.floats(-(2.0**43), 2.0**43, width=32)),
    size=npst.arrays(np.float32, 3, elements=st.floats(0.125, 64.0, width=32)),
    origin=npst.arrays(np.float32, 3, elements=st.floats(-1e4, 1e4, width=32)),
    suffix=st.sampled_from([".mrc", ".map.gz", ".ccp4.bz2"]),
)
def test_a_map_that_is_written_is_read_as_it_was(density, size, origin, suffix):
    density[0, 0, 0], density[2, 3, 1] = 1.0, 2.0  # never flat
    path = stored(b"", suffix)
    write_map(path, Map(density, size.astype(float), origin.astype(float)))
    again = read_map(path)
    np.testing.assert_array_equal(again.density, density)
    np.testing.assert_allclose(again.voxel_size, size, rtol=1e-6)
    if np.abs(origin).max() > 0:
        np.testing.assert_allclose(again.origin, origin, rtol=1e-6, atol=1e-30)


@quick
@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_model_or_an_error(data):
    found = result_or_error(atoms.read_model, stored(data, ".cif"))
    assert isinstance(found, str) or found[0].count_atom_sites()


@quick
@given(JSON)
def test_any_answer_of_an_archive_is_an_entry_or_an_error(value):
    path = stored(json.dumps(value).encode(), ".json")
    content = result_or_error(read_json, path)
    assert isinstance(content, dict) == isinstance(value, dict)
    for told in (value, {"map": {"file": value, "contour_list": {"contour": value}}}):
        if isinstance(told, dict):
            found = result_or_error(archives.metadata, "1234", told)
            assert isinstance(found, str) or all(archives.MAP.fullmatch(name) for name in found["map"])


@quick
@given(st.lists(st.text("a.-/\\ m", max_size=6).map(lambda t: t + ".mrc"), min_size=1, max_size=4))
def test_targets_have_folders_of_their_own_in_the_run_s(names):
    stems = find.unique_stems(names)
    assert len({*stems}) == len(names)
    for stem in stems:
        assert Path(stem).name == stem and (Path("/out") / stem).resolve().parent == Path("/out")


@quick
@given(st.text("A1:-;,9 é１", max_size=12) | st.text(max_size=12))
def test_any_selection_is_of_residues_or_an_error(text):
    found = result_or_error(selections.select_residues, MODEL, text, "--parts")
    assert isinstance(found, str) or len(found)


@quick
@given(st.text(max_size=60))
def test_any_text_is_curves_and_losses_or_an_error(text):
    path = stored(text.encode(errors="replace"), ".csv")
    for read in (exchange.read_fsc, reading.read_losses):
        result_or_error(read, path)


# ------------------------------------------------------------------------------------- bombs, and what is out of reach


@pytest.fixture
def small():
    """A context in which Python and numpy may have 64 MiB at once."""

    class Small:
        def __enter__(self):
            tracemalloc.start()

        def __exit__(self, *_):
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 64 << 20, peak

    return Small()


@pytest.mark.parametrize("side", [10**6, 65535])
def test_a_header_that_claims_too_much_allocates_nothing(tmp_path, plain, small, side):
    for pack in (bytes, gzip.compress, bz2.compress):
        (tmp_path / "a.mrc").write_bytes(pack(with_fields(plain, nx=side, ny=side, nz=side)))
        with small, pytest.raises(InputError, match="not an MRC file|truncated|unpack it first"):
            read_map(tmp_path / "a.mrc")


@pytest.mark.parametrize("pack", [gzip, bz2])
def test_bombs_are_not_unpacked(tmp_path, plain, small, pack):
    """A map of 1000³ zeros, of which the file need not even hold the end; and so many bytes as a model."""
    bomb = with_fields(plain, nx=1000, ny=1000, nz=1000)[: HEADER_DTYPE.itemsize]
    (tmp_path / "a.mrc").write_bytes(pack.compress(bomb + bytes(1 << 20)))
    with small, pytest.raises(InputError, match="would unpack to 4000000000 bytes .* unpack it first"):
        read_map(tmp_path / "a.mrc")
    (tmp_path / "b.mrc").write_bytes(pack.compress(with_fields(plain, nsymbt=2**31 - 1)))
    with small, pytest.raises(InputError, match="unpack it first"):
        read_map(tmp_path / "b.mrc")


def test_a_compressed_model_is_taken_up_to_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("cryotrans_jax.io.files.UNPACKED_BYTES", 1 << 20)
    (tmp_path / "a.pdb.gz").write_bytes(gzip.compress(b"REMARK\n" * (1 << 20)))
    with pytest.raises(InputError, match="unpacks to more than .* unpack it first"):
        atoms.read_model(tmp_path / "a.pdb.gz")


def test_what_a_compressed_file_may_hold_grows_with_it(tmp_path):
    for length in (100, 4_000_000):
        (tmp_path / "a.gz").write_bytes(gzip.compress(os.urandom(length), 1))
        with open_unpacked(tmp_path / "a.gz") as (stream, most):
            assert len(stream.read()) == length
            assert most == max(UNPACKED_BYTES, MAX_RATIO * (tmp_path / "a.gz").stat().st_size)
    (tmp_path / "a").write_bytes(b"plain")
    with open_unpacked(tmp_path / "a") as (stream, most):
        assert stream.read() == b"plain" and most is None


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(cella=(1e30, 9, 9)), "voxels of 2e.29, .* outside 0.01 to 1000: give their size"),
        (dict(cella=(1e-30, 9, 9)), "voxels of 2e-31"),
        (dict(origin=(0, 3e38, 0)), "lies at .0, 3e.38, 0. Å by its header: set its origin"),
        (dict(origin=(0, 0, 0), nxstart=2**31 - 1), "lies at .3.22123e.09, 0, 0"),
        (dict(cellb=(90, np.inf, 90)), "an impossible cell"),
        (dict(cellb=(90, 90, 2.0), cella=(5, 600, 9)), "too skewed a cell"),
    ],
)
def test_a_place_that_is_none_is_explained(tmp_path, plain, fields, sentence, monkeypatch):
    monkeypatch.setattr(maps, "GROWTH_FREE", 1000)
    (tmp_path / "a.mrc").write_bytes(with_fields(plain, **fields))
    with pytest.raises(InputError, match=sentence):
        read_map(tmp_path / "a.mrc")


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_values_whose_squares_are_lost_are_explained(tmp_path, plain, scale):
    values = np.frombuffer(plain[HEADER_DTYPE.itemsize :], "<f4") * np.float32(scale)
    (tmp_path / "a.mrc").write_bytes(plain[: HEADER_DTYPE.itemsize] + values.tobytes())
    with pytest.raises(InputError, match=r"values of up to .*e.(29|30|31), which cannot be squared: scale them"):
        read_map(tmp_path / "a.mrc")


# ------------------------------------------------------------------------------------- what the fuzzer found

LINE = "ATOM      1  CA  ALA A   1      10.000  11.000  12.000  1.00 20.00           C\n"


def test_names_that_are_no_text_are_read_byte_for_byte(tmp_path):
    """A name that is no UTF-8 cannot be had from gemmi; and PDB has columns of bytes."""
    text = "REMARK Ångström\n".encode("latin-1") + LINE.encode().replace(b"ALA A", b"A\xd3A \xba")
    (tmp_path / "a.pdb").write_bytes(text)
    model = atoms.read_model(tmp_path / "a.pdb")
    assert [(chain.name, chain[0].name) for chain in model[0]] == [("?", "A?A")]
    np.testing.assert_array_equal(atoms.positions(model), [[10, 11, 12]])


def test_a_residue_without_a_number_is_for_mmcif_and_in_no_range(tmp_path):
    (tmp_path / "a.pdb").write_text(LINE)
    model = atoms.read_model(tmp_path / "a.pdb")
    model[0][0][0].seqid.num = None
    assert "without a number" in atoms.pdb_obstacle(model)
    with pytest.raises(InputError, match="selects no residue"):
        selections.select_residues(model, "A:1-9", "--parts")


def test_an_atom_beyond_reach_is_explained(tmp_path):
    (tmp_path / "a.pdb").write_text(LINE)
    model = atoms.read_model(tmp_path / "a.pdb")
    atoms.write_model(tmp_path / "a.cif", atoms.with_positions(model, np.full_like(atoms.positions(model), 98765432.0)))
    with pytest.raises(InputError, match="an atom 9.87654e.07 Å from 0"):
        atoms.read_model(tmp_path / "a.cif")


def test_a_stray_atom_makes_no_box(tmp_path):
    (tmp_path / "a.pdb").write_text(LINE + LINE.replace("  10.000  11.000", "9999.0009999.000"))
    with pytest.raises(InputError, match="the box about the models would be .* voxels, more than .*: take"):
        simulation.common_grid([atoms.read_model(tmp_path / "a.pdb")] * 2, 0.1, 1.0)


def test_a_box_that_the_memory_does_not_hold_is_not_made(tmp_path, monkeypatch):
    (tmp_path / "a.pdb").write_text(LINE)
    model = atoms.read_model(tmp_path / "a.pdb")
    shape, *_ = simulation.common_grid([model], 1.0, 3.0)
    monkeypatch.setattr(simulation.memory, "available", lambda: 8.0 * np.prod(shape))
    with pytest.raises(InputError, match="more than there is memory for"):
        simulation.common_grid([model], 1.0, 3.0)


def test_json_is_bounded_in_depth_and_size(tmp_path, monkeypatch):
    for depth in (DEPTH + 1, 100_000):
        (tmp_path / "a.json").write_text('{"a":' * depth + "0" + "}" * depth)
        with pytest.raises(InputError, match="does not hold a JSON object"):
            read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(json.dumps({"a": [0] * 100}))
    assert read_json(tmp_path / "a.json") == {"a": [0] * 100}
    monkeypatch.setattr("cryotrans_jax.io.files.RECORD_BYTES", 100)
    with pytest.raises(InputError, match="does not hold a JSON object"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("value", ["abc", 1e400, 10**400, -1, 0, [3.0], {"x": 1}, None])
def test_what_stands_beside_a_map_is_a_number_or_nothing(tmp_path, value):
    told = {"map": ["emd_1234.map"], "resolution": value, "contour": value, "files": value}
    (tmp_path / "emd_1234.json").write_text(json.dumps(told))
    (tmp_path / "emd_1234.map").write_bytes(b"")
    assert find.resolution_of("emd_1234.map", str(tmp_path)) is None
    level = archives.contour(tmp_path / "emd_1234.map")
    assert level is None or math.isfinite(level)
    assert archives.file_records(tmp_path / "emd_1234.json") == (value if isinstance(value, dict) else {})


@pytest.mark.parametrize("name", ["6ABC_0A.mrc", f"6ABC_{'9' * 400}A.mrc"])
def test_a_name_with_an_impossible_resolution_is_explained(name):
    with pytest.raises(InputError, match="names a resolution of (0|inf) Å"):
        find.resolution_in_name(name)


@pytest.mark.parametrize("name", ["../a.pdb", "/etc/passwd", "..", "", 3, None])
def test_a_pair_names_files_of_its_own_folder(tmp_path, name):
    (tmp_path / "pair.json").write_text(json.dumps({"initial": name, "target": name}))
    (tmp_path.parent / "a.pdb").write_text(LINE)
    with pytest.raises(InputError, match="names of files in its own folder"):
        pairs.load_pair(tmp_path, 7.0)
    with pytest.raises(InputError, match="has no none.pdb"):
        pairs.file_of_pair(tmp_path, "none.pdb")


def npz(path, header=None, **arrays):
    """An .npz, the header of whose arrays says something else if given."""
    import zipfile

    with zipfile.ZipFile(path, "w") as packed:
        for name, array in arrays.items():
            np.lib.format.write_array(stream := io.BytesIO(), array, allow_pickle=True)
            data = stream.getvalue()
            packed.writestr(f"{name}.npy", data.replace(*header) if header else data)
    return path


def test_frames_are_read_without_pickles_and_within_bounds(tmp_path, small):
    index, xyz = np.array([2, 0]), np.arange(18.0).reshape(3, 2, 3)
    for order in (xyz, np.asfortranarray(xyz)):
        read = pairs.read_frames(npz(tmp_path / "a.npz", atom_index=index, xyz=order))
        for a, b in zip(read, (index, xyz), strict=True):
            np.testing.assert_array_equal(a, b)
    bad = [
        npz(tmp_path / "b.npz", atom_index=index, xyz=np.array([print, 1], object)),
        npz(tmp_path / "c.npz", (b"(3, 2, 3), }", b"(9999999,9,9)}"), atom_index=index, xyz=xyz),
        npz(tmp_path / "d.npz", (b"(3, 2, 3), }", b"(3, 2, 9), }"), atom_index=index, xyz=xyz),
        npz(tmp_path / "e.npz", atom_index=index, xyz=xyz[:, :1]),
        npz(tmp_path / "f.npz", atom_index=index),
        tmp_path / "g.npz",
    ]
    bad[-1].write_bytes(bad[0].read_bytes()[:100])
    for path in bad:
        with small, pytest.raises(InputError, match="holds no frames|has frames"):
            pairs.read_frames(path)


@pytest.mark.parametrize("change", [dict(inputs=[]), dict(initial="b"), dict(target="x"), dict(chosen=3), dict(a=0)])
def test_a_run_s_settings_are_as_a_run_writes_them(tmp_path, change):
    (config,) = (json.loads(text) for text in fuzz_kinds.record_seeds(None) if text[:1] == b"{")
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    run_folder.sign(tmp_path)
    if "a" in change:
        assert finished.read_config(tmp_path) == config | change
    else:
        with pytest.raises(InputError, match="config.json is not as a run writes it"):
            finished.read_config(tmp_path)


@pytest.mark.parametrize("flag", ["--steps=nan", "--steps=inf", "--target_resolution=nan", "--initial_threshold=-inf"])
def test_a_flag_that_is_no_number_is_refused(job, flag):
    status, _, error = job("run", flag)
    assert status == 2 and error.startswith(f"error: {flag} is not from ")


# ------------------------------------------------------------------------------------- the fuzzer itself


def test_the_same_seed_makes_the_same_damage(plain):
    made = [
        [fuzz_damage.mutate(np.random.default_rng([seed, k]), [plain, b'{"a": [1]}']) for k in range(30)]
        for seed in (0, 0, 1)
    ]
    assert made[0] == made[1] != made[2] and len({*made[0]}) > 25


def test_every_outcome_is_told_apart(tmp_path, monkeypatch):
    folder, kept = tmp_path / "a" / "b", tmp_path.parent / "kept"
    folder.mkdir(parents=True)
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)

    def fail(error):
        raise error

    def hang():
        while True:
            pass

    import signal

    before = signal.signal(signal.SIGPROF, fuzz.raise_hung)
    try:
        for expected, read in {
            "results": lambda *_: None,
            "errors": lambda *_: fail(InputError("one sentence")),
            "tracebacks": lambda *_: fail(KeyError("a")),
            "hangs": lambda *_: hang(),
        }.items():
            assert fuzz.outcome_of(read, folder, b"", None, kept) == expected
        assert "KeyError" in kept.with_suffix(".txt").read_text()
        leave = lambda *_: (tmp_path / "out").mkdir()  # noqa: E731
        assert fuzz.outcome_of(leave, folder, b"", None, kept) == "tracebacks"
    finally:
        signal.signal(signal.SIGPROF, before)


@pytest.mark.slow
def test_a_thousand_damaged_files_end_in_results_and_errors(job, tmp_path):
    status, out, error = job("fuzz", "--count=1000", f"--out_dir={tmp_path}")
    assert status == 0, (out, error)
    rows = json.loads((tmp_path / "fuzz.json").read_text())
    assert {row["kind"] for row in rows} == {*fuzz_kinds.KINDS} and not [*(tmp_path / "found").iterdir()]
    assert all(row["errors"] and row["results"] + row["errors"] == row["tried"] for row in rows)
    assert all(row["results"] for row in rows if row["kind"] in ("map", "model", "flags"))
