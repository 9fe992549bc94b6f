"""Maps, models, entries of the EMDB and stored fits for the fuzzer: sound files, and their readers."""

import contextlib
import io
import tarfile
from pathlib import Path

from experiments import ranges

from .fuzz_damage import pack_folder

MAX_SEED_BYTES = 400_000  # bytes, largest file of --data_dir that is used


def map_seeds(data_dir: Path | None) -> list[bytes]:
    """Small maps of the built-in pair, of all modes, on a skewed cell, compressed, and real ones."""
    import bz2
    import gzip

    import numpy as np

    from cryotrans_jax.density import demo, simulation
    from cryotrans_jax.io import maps

    start, _ = demo.hinge_pair()
    size, origin = np.array([5.0, 6.0, 7.0]), np.array([-17.0, -12.0, -21.0])
    map_ = simulation.simulate_map(start, (8, 7, 12), size, origin, 12.0)
    maps.write_map("seed.mrc", map_)
    plain = Path("seed.mrc").read_bytes()
    skewed = bytearray(plain)
    skewed[52:64] = np.array([80, 95, 110], "<f4").tobytes()
    narrow = bytearray(plain[:1024] + np.rint(100 * map_.density.T / map_.density.max()).astype("<i2").tobytes())
    narrow[12:16] = np.array(1, "<i4").tobytes()
    labels = bytearray(plain[:1024] + np.rint(3 * map_.density.T / map_.density.max()).astype("<f4").tobytes())
    made = [plain, bytes(skewed), bytes(narrow), bytes(labels), gzip.compress(plain, mtime=0), bz2.compress(plain)]
    return made + files_of(data_dir, (".mrc", ".map", ".map.gz", ".map.bz2"))


def model_seeds(data_dir: Path | None) -> list[bytes]:
    """Small models, as PDB and mmCIF and compressed, and the first lines of real ones."""
    import gzip

    from cryotrans_jax.density import demo
    from cryotrans_jax.io import atoms

    start, _ = demo.hinge_pair()
    while len(start[0][0]) > 12:
        del start[0][0][12]
    atoms.write_model("seed.pdb", start)
    atoms.write_model("seed.cif", start)
    made = [Path(name).read_bytes() for name in ("seed.pdb", "seed.cif")]
    given = [b"".join(text.splitlines(keepends=True)[:300]) for text in files_of(data_dir, (".pdb", ".cif", ".ent"))]
    return [*made, *(gzip.compress(text, mtime=0) for text in made), *given]


def files_of(data_dir: Path | None, suffixes: tuple[str, ...]) -> list[bytes]:
    """Read the small files with these suffixes in the folder and its subfolders."""
    found = sorted(data_dir.rglob("*")) if data_dir else []
    return [p.read_bytes() for p in found if p.name.endswith(suffixes) and p.stat().st_size < MAX_SEED_BYTES]


def read_a_map(folder: Path, data: bytes, random) -> None:
    """Read the map, describe it, and write it again."""
    from cryotrans_jax.density import contour
    from cryotrans_jax.io import maps

    (folder / "a.mrc").write_bytes(data)
    map_ = maps.read_map(folder / "a.mrc")
    maps.describe(map_)
    contour.describe(map_, None)
    maps.write_map(folder / "b.mrc", map_)
    maps.read_map(folder / "b.mrc")


def read_labels(folder: Path, data: bytes, random) -> None:
    """Read the map as labels, as one of two masks, and as a mask to multiply with."""
    from cryotrans_jax.density import mask
    from cryotrans_jax.io import maps
    from cryotrans_jax.io.files import InputError
    from cryotrans_jax.motion import partition

    (folder / "a.mrc").write_bytes(data)
    initial = maps.read_map(folder / "seed.mrc")
    given = maps.read_map(folder / "a.mrc")
    uses = [
        lambda: partition.from_labels(given, initial),
        lambda: partition.from_masks([given, initial], initial),
        lambda: mask.masked(initial, given, "a.mrc"),
    ]
    for use in uses:
        with contextlib.suppress(InputError):
            use()


def read_a_model(folder: Path, data: bytes, random) -> None:
    """Read the model, compute its weight, select residues, superpose it, simulate its map, and write it again."""
    import numpy as np

    from cryotrans_jax.density import simulation
    from cryotrans_jax.io import atoms, selections
    from cryotrans_jax.io.files import InputError

    (folder / "a.pdb").write_bytes(data)
    model = atoms.read_model(folder / "a.pdb")
    atoms.molecular_weight(model)
    with contextlib.suppress(InputError):
        selections.select_residues(model, "A:2-4", "--parts")
    with contextlib.suppress(InputError):
        atoms.superpose(model, atoms.read_model(folder / "seed.pdb"))
    simulation.simulate_map(
        model, (8, 7, 12), 6.0, np.zeros(3), 12.0
    )  # a box about the model may be too large; that is refused elsewhere
    atoms.write_model(folder / "b.cif", model)
    atoms.read_model(folder / "b.cif")
    if atoms.pdb_obstacle(model) is None:
        atoms.write_model(folder / "b.pdb", model)
        atoms.read_model(folder / "b.pdb")


def entry_seeds(data_dir: Path | None) -> list[bytes]:
    """An entry's record from the EMDB, and the file that is written beside the map."""
    import json

    contours = {"contour": [{"primary": True, "level": 0.5}, {"level": "1.5"}]}
    image = {"image_processing": [{"final_reconstruction": {"resolution": {"valueOf_": "3.2"}}}]}
    entry = {
        "admin": {"title": "a <b>map</b>"},
        "map": {"file": "emd_1234.map.gz", "contour_list": contours},
        "structure_determination_list": {"structure_determination": [image]},
        "interpretation": {"half_map_list": {"half_map": [{"file": "emd_1234_half_map_1.map.gz"}]}},
    }
    record = {"url": "https://a/b", "bytes": 5, "sha256": "ab"}
    beside = {
        "entry": "EMD-1234", "resolution": 3.2, "contour": 0.5, "map": ["emd_1234.map.gz"], "half_maps": [],
        "files": {"emd_1234.map.gz": record}, "url": "https://a/b", "validator": '"x"',
    }  # fmt: skip
    return [json.dumps(value).encode() for value in (entry, beside)]


def read_an_entry(folder: Path, data: bytes, random) -> None:
    """Read the text as an entry of the EMDB, as the file beside a map, and as the note of an interrupted transfer."""
    from cryotrans_jax.io.files import InputError
    from experiments import archives, download, find

    path, part = folder / "emd_1234.map.gz", folder / ".x.part"
    for place in (folder / "emd_1234.json", path, part, download.note_path(part)):
        place.write_bytes(data)
    download.saved_validator(part, "https://a/b")
    with contextlib.suppress(InputError):
        archives.metadata("1234", archives.read_json(folder / "emd_1234.json"))
    records = archives.file_records(folder / "emd_1234.json")
    with contextlib.suppress(InputError), contextlib.redirect_stdout(None):
        archives.is_fetched(path, next(filter(archives.is_record, records.values()), None), False)
    level, resolution = archives.contour(path), find.resolution_of(path.name, str(folder))
    assert level is None or isinstance(level, float)
    assert resolution is None or ranges.RESOLUTION.least <= resolution <= ranges.RESOLUTION.most


def stored_arrays() -> dict:
    """Arrays like those of a fit, the same every time."""
    import numpy as np

    random = np.random.default_rng(0)
    shapes = {"kernel": (3, 20), "bias": (20,), "labels": (6, 5, 4)}
    return {"arrays": {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}}


def checkpoint_seeds(data_dir: Path | None) -> list[bytes]:
    """A stored fit, as a tar file of its folder."""
    from cryotrans_jax.io import checkpoints

    checkpoints.save("seed_fit", stored_arrays(), {"stage": 3, "losses": [1.5, 0.5], "names": ["a"]})
    folder = Path("seed_fit")
    return [pack_folder({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()})]


def read_a_checkpoint(folder: Path, data: bytes, random) -> None:
    """Restore the stored fit; if that succeeds, it must equal the original."""
    import shutil

    import numpy as np

    from cryotrans_jax.io import checkpoints

    place = folder / "fit"
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as packed:
            packed.extractall(place, filter="data")
        arrays, described = checkpoints.restore(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    assert described == {"stage": 3, "losses": [1.5, 0.5], "names": ["a"]}
    for name, array in stored_arrays()["arrays"].items():
        assert np.array_equal(arrays["arrays"][name], array)
