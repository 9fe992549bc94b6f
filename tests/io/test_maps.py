"""Maps keep values, voxel size and place through files; what is no map says so."""

import bz2
import gzip
import io
import itertools
import sys
import types
import zipfile
from pathlib import Path

import jax.numpy as jnp
import mrcfile
import numpy as np
import pytest
from mrcfile.dtypes import HEADER_DTYPE

from cryotrans_jax.io import maps
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, describe, has_voxel_size, read_map, same_grid, write_map

FORMATS = Path(__file__).parents[3] / "shared/data/maps/formats"
VOXEL, ORIGIN = np.array([1.5, 2.0, 0.75]), np.array([-7.5, 11.3, 40.1])


@pytest.fixture
def density():
    return np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)


def store(path, density, order=(1, 2, 3), **fields):
    """Write x, y, z values by mrcfile alone, columns, rows and sections along the axes of `order`."""
    compression = {".gz": "gzip", ".bz2": "bzip2"}.get(path.suffix)
    with mrcfile.new(path, compression=compression, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(density.transpose([axis - 1 for axis in order[::-1]])))
        file.header.mapc, file.header.mapr, file.header.maps = order
        file.header.mx, file.header.my, file.header.mz = density.shape
        file.header.cella = tuple(VOXEL * density.shape)
        file.header.ispg = 1
        for key, value in fields.items():
            file.header[key] = value
    return path


def is_valid(path):
    return mrcfile.validate(path, print_file=io.StringIO())


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_every_axis_order_reads_as_x_y_z(tmp_path, density, order):
    start = np.array([3, -4, 5])  # along x, y, z; stored along columns, rows, sections
    along = dict(zip(("nxstart", "nystart", "nzstart"), start[np.array(order) - 1], strict=True))
    map = read_map(store(tmp_path / "a.mrc", density, order, **along))
    np.testing.assert_array_equal(map.density, density)
    np.testing.assert_allclose(map.voxel_size, VOXEL, rtol=1e-6)
    np.testing.assert_allclose(map.origin, start * VOXEL, rtol=1e-6)
    placed = read_map(store(tmp_path / "b.mrc", density, order, origin=tuple(ORIGIN), **along))
    np.testing.assert_allclose(placed.origin, ORIGIN, rtol=1e-6)


@pytest.mark.parametrize("name", ["a.mrc", "a.map", "a.ccp4", "a.mrc.gz", "a.map.bz2"])
def test_round_trip_keeps_everything_and_is_valid(tmp_path, density, name):
    write_map(tmp_path / name, Map(density, VOXEL, ORIGIN))
    map = read_map(tmp_path / name)
    np.testing.assert_array_equal(map.density, density)
    np.testing.assert_allclose(map.voxel_size, VOXEL, rtol=1e-6)
    np.testing.assert_allclose(map.origin, ORIGIN, rtol=1e-6)
    assert is_valid(tmp_path / name)


def test_start_is_written_where_the_origin_is_whole_voxels(tmp_path, density):
    for origin, start in ((VOXEL * (2, -3, 4), (2, -3, 4)), (ORIGIN, (0, 0, 0))):
        write_map(tmp_path / "a.mrc", Map(density, VOXEL, origin))
        with mrcfile.open(tmp_path / "a.mrc") as file:
            assert file.nstart.item() == start and file.is_volume() and int(file.header.mode) == 2


def test_equal_maps_give_equal_bytes(tmp_path, density):
    for name in "ab":
        write_map(tmp_path / f"{name}.mrc", Map(density, VOXEL, ORIGIN))
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()


@pytest.mark.parametrize("kind", ["i1", "i2", "u2", "f2", "f4"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_real_mode_and_byte_order_is_read(tmp_path, kind, order):
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    map = read_map(store(tmp_path / "a.mrc", values.astype(order + kind)))
    np.testing.assert_array_equal(map.density, values)
    assert map.density.dtype == np.float32


def test_old_headers_are_accepted(tmp_path, density):
    old = dict(map=b"", machst=0, nversion=0, mapc=0, mapr=0, maps=0, cellb=(0, 0, 0), mx=0, my=0, mz=0, ispg=0)
    map = read_map(store(tmp_path / "a.mrc", density, **old))
    np.testing.assert_array_equal(map.density, density)
    np.testing.assert_allclose(map.voxel_size, VOXEL, rtol=1e-6)


def test_compression_is_known_by_content(tmp_path, density):
    plain = store(tmp_path / "a.mrc", density).read_bytes()
    for pack in (gzip.compress, bz2.compress):
        (tmp_path / "b.mrc").write_bytes(pack(plain))
        np.testing.assert_array_equal(read_map(tmp_path / "b.mrc").density, density)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(ispg=401, mz=1), "stack of volumes"),
        (dict(ispg=401, mz=0), "stack of volumes"),
        (dict(ispg=0, mz=1), "stack of 7 images"),
        (dict(mode=4), "complex numbers"),
        (dict(mode=3), "complex numbers"),
        (dict(mode=101), "MRC mode 101"),
        (dict(cella=(0, 0, 0)), "no voxel size"),
        (dict(cellb=(90, 10, 150)), "impossible cell .*10.0, 150.0"),
        (dict(cellb=(90, 94.3, 0)), "impossible cell .*94.3, 0.0"),
        (dict(mapc=1, mapr=1, maps=3), "axis order"),
        (
            dict(nz=30000, ny=30000, nx=30000),
            "truncated: .* 30000 x 30000 x 30000 voxels, 108000000000000 bytes",
        ),
        (dict(nsymbt=2_000_000_000), "truncated"),
        (dict(nz=1), "2D image"),
        (dict(nz=0), "not an MRC file"),
    ],
)
def test_a_bad_header_is_explained(tmp_path, density, fields, sentence):
    path = store(tmp_path / "bad.mrc", density, **fields)
    with pytest.raises(InputError, match=rf"bad\.mrc .*{sentence}"):
        read_map(path)


def stored_by_numpy(array):
    """The bytes of a .npy file."""
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def zipped(content):
    """The bytes of a zip archive."""
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("a.mrc", content)
    return file.getvalue()


BYTES = np.arange(256, dtype=np.uint8).repeat(2).reshape(8, 8, 8)


def imod(order, flags):
    """What IMOD writes into the header's free bytes: its stamp and its flags."""
    return bytes(40) + np.array([1146047817, flags], order + "i4").tobytes() + bytes(36)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "flags, low, high, signed",
    [
        (0, 0, 255, False),  # IMOD before 4.2.23
        (4, 0, 0, False),  # other flags
        (1, -128, 127, True),
        (5, 0, 255, True),  # the flag counts
        (None, 0, 255, False),
        (None, 0, 200, False),
        (None, -128, 127, True),
        (None, 0, 127, True),
        (None, 0, -1, True),  # unset
    ],
)
def test_bytes_are_unsigned_where_the_header_shows_it(tmp_path, order, flags, low, high, signed):
    path = store(tmp_path / "a.mrc", BYTES.view(np.int8).astype(order + "i1"), dmin=low, dmax=high)
    header = np.frombuffer(path.read_bytes()[:1024], HEADER_DTYPE).copy()
    header["extra2"] = bytes(84) if flags is None else imod(order, flags)
    if order == ">":  # a byte's own order shows in nothing: the header's is swapped by hand
        header = header.astype(HEADER_DTYPE.newbyteorder(">"))
    path.write_bytes(header.tobytes() + path.read_bytes()[1024:])
    np.testing.assert_array_equal(read_map(path).density, BYTES.view(np.int8) if signed else BYTES)


def test_a_volume_stack_of_one_volume_is_that_volume(tmp_path, density):
    map = read_map(store(tmp_path / "a.mrc", density, ispg=401, mz=density.shape[2]))
    np.testing.assert_array_equal(map.density, density)


@pytest.mark.parametrize("cell", [(0, 0, 0), (0.5, 0.6, 0.7), (np.nan, 1, 1), tuple(VOXEL)])
@pytest.mark.parametrize("given", [1.25, (1.5, 2.0, 0.75)])
def test_a_voxel_size_that_is_given_stands_for_the_headers(tmp_path, density, cell, given):
    """The start is in voxels, and moves with their size; ORIGIN is in Å, and does not."""
    start = dict(nxstart=3, nystart=-4, nzstart=5)
    path = store(tmp_path / "a.mrc", density, cella=cell, **start)
    map, size = read_map(path, voxel_size=given), np.broadcast_to(given, 3)
    np.testing.assert_allclose(map.voxel_size, size)
    np.testing.assert_allclose(map.origin, size * (3, -4, 5))
    placed = store(tmp_path / "b.mrc", density, cella=cell, origin=tuple(ORIGIN), **start)
    np.testing.assert_allclose(read_map(placed, given).origin, ORIGIN, rtol=1e-6)
    assert has_voxel_size(path) == (np.nan_to_num(cell[0]) > 0)


def test_the_message_on_a_missing_voxel_size_names_the_flags(tmp_path, density):
    with pytest.raises(InputError, match="no voxel size.*--voxel_size, or --target_voxel_size for a target"):
        read_map(store(tmp_path / "a.mrc", density, cella=(0, 0, 0)))
    path = store(tmp_path / "b.mrc", density)
    for wrong in ((0, 1, 1), -1.0, (1.0, 2.0), np.nan):
        with pytest.raises(InputError, match="is not one positive number in Å, or three"):
            read_map(path, voxel_size=wrong)


@pytest.mark.parametrize(
    "value, sentence", [(np.nan, "1 values that are NaN"), (np.inf, "1 values that are NaN or infinite")]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # mrcfile's, while storing
def test_values_that_are_not_finite_are_counted(tmp_path, density, value, sentence):
    density[1, 2, 3] = value
    with pytest.raises(InputError, match=sentence):
        read_map(store(tmp_path / "a.mrc", density))
    with pytest.raises(InputError, match="not finite"):
        write_map(tmp_path / "b.mrc", Map(density, VOXEL, ORIGIN))


def test_what_is_no_map_is_explained(tmp_path, density):
    whole = store(tmp_path / "whole.mrc", density).read_bytes()
    bad = {
        "text.mrc": (b"ATOM      1  N   MET A   1 \n" * 60, "is an atomic model"),
        "other.mrc": (b"anything else" * 99, "not an MRC file"),
        "page.mrc": (b"\n<!doctype HTML><html><body>404</body></html>", "is a web page"),
        "pointer.mrc": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run git lfs pull"),
        "picture.mrc": (b"\x89PNG\r\n\x1a\n" + bytes(2000), "is a PNG picture"),
        "array.mrc": (stored_by_numpy(density), r"is a NumPy array \(.npy\)"),
        "archive.mrc": (zipped(whole), "is a zip archive"),
        "short.mrc": (b"abc", "not an MRC file"),
        "empty.mrc": (b"", "is empty"),
        "cut.mrc": (whole[:-1], "truncated"),
        "cut.mrc.gz": (gzip.compress(whole)[:-20], "damaged compressed"),
        "cut.mrc.bz2": (bz2.compress(whole)[:-20], "damaged compressed"),
        "spoilt.mrc.bz2": (b"BZh9" + b"spoilt" * 9, "damaged compressed"),
        "flat.mrc": (whole[:1024] + bytes(len(whole) - 1024), "has the value 0 throughout"),
    }
    for name, (content, sentence) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} .*{sentence}"):
            read_map(tmp_path / name)
    with pytest.raises(InputError, match="none.mrc does not exist"):
        read_map(tmp_path / "none.mrc")
    with pytest.raises(InputError, match="is a folder"):
        read_map(tmp_path)
    with pytest.raises(InputError, match="not a map's name"):
        write_map(tmp_path / "a.txt", Map(density, VOXEL, ORIGIN))


def test_same_grid_says_what_differs(density):
    map = Map(density, VOXEL, ORIGIN)
    assert same_grid(map, Map(2 * density, VOXEL * 1.0005, ORIGIN + 0.09 * VOXEL)) is None
    assert "5 x 6 x 7 against 5 x 6 x 6 voxels" in same_grid(map, Map(density[..., :6], VOXEL, ORIGIN))
    assert "voxels of (1.5, 2, 0.75) against" in same_grid(map, Map(density, VOXEL * 1.002, ORIGIN))
    assert "origin (-7.5, 11.3, 40.1) against" in same_grid(map, Map(density, VOXEL, ORIGIN + [0, 0, 0.08]))
    assert "5 x 6 x 7 voxels" in describe(map)


EXPECTED = {  # voxel size and origin from the headers, by hand
    "EMD-3197.map": (11.4, (-22.8, 0, 0)),
    "emd_3197.map.gz": (11.4, (-22.8, 0, 0)),
    "emd_8249.map": (5.28, (-63.36, -63.36, -63.36)),
    "trpv1_noncubic.mrc": (1.21, (-24.2, -32.67, -54.45)),
}


@pytest.mark.skipif(not FORMATS.is_dir(), reason="needs the real maps in ../shared/data/maps/formats")
@pytest.mark.parametrize("name", EXPECTED)
def test_real_files_are_read_and_written(tmp_path, name):
    voxel_size, origin = EXPECTED[name]
    map = read_map(FORMATS / name)
    np.testing.assert_allclose(map.voxel_size, voxel_size, rtol=1e-5)
    np.testing.assert_allclose(map.origin, origin, rtol=1e-5)
    with mrcfile.open(FORMATS / name, permissive=True) as file:  # all are stored in the order x, y, z
        np.testing.assert_array_equal(map.density, file.data.T)
    write_map(tmp_path / name, map)
    again = read_map(tmp_path / name)
    assert same_grid(map, again) is None and is_valid(tmp_path / name)
    np.testing.assert_array_equal(again.density, map.density)


def blob(position, centre):
    """A Gaussian of 2 Å about a centre, at positions (..., 3), all in Å."""
    return np.exp(-((position - centre) ** 2).sum(-1) / 8).astype(np.float32)


@pytest.mark.parametrize("angles", [(90, 94.3, 90), (75, 110, 120)])
@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_density_on_a_skewed_cell_is_read_where_it_is(tmp_path, angles, order):
    """a along x, b in the plane of x and y, by the cosines of the angles; a blob is found at its place in Å."""
    alpha, beta, gamma = np.cos(np.radians(angles))
    a, b = np.array([1.0, 0, 0]), np.array([gamma, np.sqrt(1 - gamma**2), 0])
    along = (alpha - beta * gamma) / b[1]
    steps = np.stack([a, b, [beta, along, np.sqrt(1 - beta**2 - along**2)]], 1) * (0.8, 0.9, 0.7)
    shape, start = (40, 36, 44), np.array([-10, 4, 7])
    at = (np.stack(np.indices(shape), -1) + start) @ steps.T
    centre = at.reshape(-1, 3).mean(0) + [1.0, -0.5, 0.7]
    fields = dict(zip(("nxstart", "nystart", "nzstart"), start[np.array(order) - 1], strict=True))
    cell = tuple(np.array(shape) * (0.8, 0.9, 0.7))
    map = read_map(store(tmp_path / "a.mrc", blob(at, centre), order, cella=cell, cellb=angles, **fields))
    np.testing.assert_allclose(map.voxel_size, np.diag(steps), rtol=1e-5)
    there = map.origin + map.voxel_size * np.stack(np.indices(map.density.shape), -1)
    np.testing.assert_allclose(map.density, blob(there, centre), atol=2e-3)  # cubic splines, and the blob's rim
    placed = store(tmp_path / "b.mrc", blob(at, centre), order, cella=cell, cellb=angles, origin=(5, 6, 7), **fields)
    np.testing.assert_allclose(read_map(placed).origin - map.origin, np.array([5, 6, 7]) - steps @ start, atol=1e-4)


@pytest.mark.skipif(not FORMATS.is_dir(), reason="needs the real maps in ../shared/data/maps/formats")
@pytest.mark.parametrize("name", ["EMD-3001.map", "EMD-3001.map.bz2"])
def test_the_real_skewed_crystal_map_is_read(tmp_path, name):
    """Stored as z, x, y; the cell 17.93, 4.71, 33.03 Å with beta 94.33° in 40, 12, 72 voxels, from 0, -12, -21 on.

    The third axis leans by 72 steps of 0.4588 cos 94.33° = -0.0346 Å towards -x, 2.49 Å or 5.6 voxels.
    """
    map = read_map(FORMATS / name)
    voxel = np.array([17.93 / 40, 4.71 / 12, 33.03 / 72 * np.sin(np.radians(94.326))])
    np.testing.assert_allclose(map.voxel_size, voxel, rtol=1e-5)
    assert map.density.shape == (43 + 6, 25, 73)
    np.testing.assert_allclose(map.origin, voxel * (-21 - 6, -12, 0), rtol=1e-5)
    with mrcfile.open(FORMATS / name, permissive=True) as file:
        stored = file.data.transpose(1, 0, 2)  # sections y, rows x, columns z
    np.testing.assert_allclose(map.density[6:, :, 0], stored[:, :, 0], atol=1e-5)  # the first layer leans by nothing
    write_map(tmp_path / "a.mrc", map)
    again = read_map(tmp_path / "a.mrc")
    assert same_grid(map, again) is None and is_valid(tmp_path / "a.mrc")
    np.testing.assert_array_equal(again.density, map.density)


def test_a_map_is_interpolated_linearly_and_is_0_outside():
    density = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    map_ = Map(density, np.array([1.0, 2.0, 0.5]), np.array([-3.0, 7.0, 1.0]))
    voxels = np.argwhere(density[:-1] < np.inf)
    x, step = map_.origin + voxels * map_.voxel_size, np.array([1.0, 0, 0])
    here, there = density[tuple(voxels.T)], density[1:][tuple(voxels.T)]
    np.testing.assert_allclose(map_.interpolate(x + 0.25 * step), 0.75 * here + 0.25 * there, atol=1e-6)
    assert not map_.interpolate(x - 10 * step).any()


def test_a_further_format_is_read_by_the_module_that_is_named_for_its_suffix(tmp_path, monkeypatch):
    """With the given voxel size; what it returns is checked as any map is, and nothing is written in that format."""
    shape, module = (4, 5, 6), types.ModuleType("arrays")
    module.read = lambda path, voxel_size: Map(np.load(path).astype(np.float32), voxel_size, np.zeros(3))
    monkeypatch.setitem(sys.modules, "arrays", module)
    monkeypatch.setitem(maps.READERS, ".npy", "arrays")
    values = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "a.npy", values)
    found = read_map(tmp_path / "a.npy", 2.0)
    np.testing.assert_array_equal(found.density, values.astype(np.float32))
    assert found.voxel_size.tolist() == [2.0] * 3
    with pytest.raises(InputError, match="has voxels of 100000, 100000, 100000 Å"):
        read_map(tmp_path / "a.npy", 1e5)
    np.save(tmp_path / "b.npy", np.ones(shape))
    with pytest.raises(InputError, match="has the value 1 throughout"):
        read_map(tmp_path / "b.npy", 2.0)
    with pytest.raises(InputError, match="is not a map's name"):
        write_map(tmp_path / "c.npy", found)


# ------------------------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize(
    "of", [np.asarray, jnp.asarray, lambda a: a.astype(np.int16), lambda a: jnp.asarray(a, "bfloat16")]
)
def test_an_array_is_a_map_by_its_voxel_size(of):
    """Axis k is coordinate k, and the file has the same values at the same places."""
    values = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    for size in (1.5, [1.5] * 3, np.full(3, 1.5)):
        map_ = maps.Map(of(values), size)
        assert isinstance(map_.density, np.ndarray) and map_.density.dtype.kind == "f"
        np.testing.assert_array_equal(map_.density, values)
        np.testing.assert_array_equal([map_.voxel_size, map_.origin], [[1.5] * 3, [0.0] * 3])
    place = np.array([[1.5, 3.0, 4.5]])
    assert map_.interpolate(place) == values[1, 2, 3]
    assert maps.Map(values, 1.5, (1.5, 0, 0)).interpolate(place) == values[0, 2, 3]


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: maps.Map(np.zeros((2, 3)), 1.0), "shape \\(2, 3\\) is no map: give three axes"),
        (lambda: maps.Map(np.zeros((1, 2, 3, 4)), 1.0), "is no map: give three axes"),
        (lambda: maps.Map(np.zeros((2, 3, 4), complex), 1.0), "array of complex128 .* is no map"),
        (lambda: maps.Map(np.zeros((2, 3, 4)), 0.0), "voxel size 0.0 for the map is not one positive number"),
        (lambda: maps.Map(np.zeros((2, 3, 4)), [1.0, 2.0]), "is not one positive number in Å, or three"),
        (lambda: maps.Map(np.zeros((2, 3, 4)), 1.0, [0.0, np.nan, 0.0]), "the origin .* is not three numbers"),
    ],
)
def test_an_array_that_is_no_map_is_refused_in_one_sentence(unchecked, make, sentence):
    with pytest.raises(InputError, match=sentence) as refused:
        make()
    assert "\n" not in str(refused.value)
