"""Kinds of input for the fuzzer: sound files of each kind, and their readers."""

import contextlib
import importlib
import io
import tarfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from absl import flags

from experiments import ranges
from experiments.main import run

from .fuzz_damage import change_densities, damage_folder, mutate, pack_folder

MAX_SEED_BYTES = 400_000  # bytes, largest file of --data_dir that is used
COMMANDS = (
    "run", "predict", "report", "simulate", "fetch", "compare", "reproduce", "study", "trajectory", "rebuild",
    "validate", "imbalance", "waypoints", "benchmark",
)  # fmt: skip
ANSWER_BYTES = 100_000  # largest file fetched from the fuzzer's own server


class Kind(NamedTuple):
    """A kind of input: its share of all trials, sound files, the reader, and the damage."""

    share: float
    seeds: Callable
    read: Callable
    damage: Callable = mutate


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
    from cryotrans_jax.io import atoms
    from cryotrans_jax.io.files import InputError
    from cryotrans_jax.motion import partition

    (folder / "a.pdb").write_bytes(data)
    model = atoms.read_model(folder / "a.pdb")
    atoms.molecular_weight(model)
    with contextlib.suppress(InputError):
        partition.select_residues(model, "A:2-4")
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


def record_seeds(data_dir: Path | None) -> list[bytes]:
    """Records of a run, and a benchmark."""
    import json

    used = {"threshold": 0.1, "threshold_chosen": "by rule", "share_of_mass": 0.9, "volume": 5000.0, "contour": 0.2}
    used |= {"contour_chosen": "by rule", "contour_volume": 4000.0}
    settings = {"recipe": "default", "seed": 0, "frames": 3, "render": "splat", "target": ["b.mrc"], "mask": None}
    config = {
        "initial": "a.mrc",
        "target": "b",
        "targets": ["b"],
        "inputs": {name: {"file": name, "sha256": "00"} for name in ("a.mrc", "b.mrc")},
        "settings": settings,
        "chosen": {"initial": used, "targets": [used], "blur_variance": [1.5], "start": ["correspondences"]},
        "contours": [used, used],
        "versions": {"cryotrans-jax": "0.1.0"},
        "command": ["run", "<script>"],
        "rows": {"a step [s]": 0.5},
    }
    loss = b"stage,name,step,loss\n0,matched,0,1.5\n0,matched,1,1.2\n"
    return [json.dumps(config).encode(), loss, b"frequency,resolution,target_after\n0,,1\n0.1,10,0.9\n"]


def read_records(folder: Path, data: bytes, random) -> None:
    """Read the text as a run's settings, its curves, its losses, and as a benchmark."""
    from cryotrans_jax.io.files import InputError
    from experiments import exchange, finished, run_folder
    from experiments.pages import page, story
    from experiments.studies import benchmark

    path = folder / "config.json"
    path.write_bytes(data)
    for use in (exchange.read_fsc, story.read_losses, lambda p: benchmark.read_rows(str(p))):
        with contextlib.suppress(InputError):
            use(path)
    run_folder.sign(folder)
    config = finished.read_config(folder)
    with finished.checked_records(folder):
        story.display_contours(config), story.target_name(config), story.find_unchanged(config, config["initial"])
        page.facts(config), page.settings(config)


def pair_seeds(data_dir: Path | None) -> list[bytes]:
    """A pair.json with the path between its states, and that path as .npz."""
    import json

    import numpy as np

    model_seeds(None)
    named = {"initial": "seed.pdb", "target": "seed.pdb", "path": {"models": ["seed.cif"], "frames": "way.npz"}}
    way = {"atom_index": np.arange(4), "xyz": np.ones((2, 4, 3), np.float32)}
    np.savez_compressed("way.npz", **way)
    packed = Path("way.npz").read_bytes()
    np.savez("way.npz", **way)
    return [json.dumps(named).encode(), Path("way.npz").read_bytes(), packed]


def read_a_pair(folder: Path, data: bytes, random) -> None:
    """Read the bytes as the description of a pair, or as its frames."""
    from cryotrans_jax.io import atoms
    from experiments import pairs

    seeds = pair_seeds(None)
    text = data[:1] == b"{"
    (folder / "pair.json").write_bytes(data if text else seeds[0])
    (folder / "way.npz").write_bytes(seeds[1] if text else data)
    pairs.known_path(folder, atoms.read_model(folder / "seed.pdb"))


def flag_seeds(data_dir: Path | None) -> list[bytes]:
    """Command lines of experiments.run, one word a line, for existing maps, some with odd names."""
    map_seeds(None)
    model_seeds(None)
    for name in ("...mrc", "6abc_0A.mrc", "<script>.mrc", "half1.mrc", "half2.mrc"):
        Path(name).write_bytes(Path("seed.mrc").read_bytes())
    fixed = ["--initial=seed.mrc", "--target=seed.mrc", "--align=none", "--parts=none", "--data_dir=.", "--out_dir=out"]
    several = ["--target=...mrc,<script>.mrc", "--target_mask=seed.mrc", "--reference=seed.pdb", "--overwrite"]
    bounds = ["--recipe=paper", "--width=4", "--schedule=w2:2:1e-3,l2:2:1e-4", "--checkpoint_minutes=1", "--steps=0.1"]
    places = ["--symmetry=C2", "--symmetry_axis=0,0,1", "--symmetry_centre=0,0,0", "--part_rigidity=1,3", "--seed=1"]
    numbers = ["--steps=0.1", "--frames=2", "--mass_kda=15", "--seed=1", "--mask_radius=30", "--initial_threshold=0.01"]
    parts = ["--parts=A:1-5;A:6-12", "--model=seed.cif", "--initial_resolution=9", "--target_resolution=9"]
    halves = ["--target_half1=half1.mrc", "--waypoint=seed.mrc@0.5", "--bin=1", "--target_threshold=0.01", "--seeds=1"]
    return ["\n".join(fixed + more).encode() for more in (several, bounds, places, numbers, parts, halves)]


def read_flags(folder: Path, data: bytes, random) -> None:
    """Parse a command line of experiments.run and prepare its fit.

    Raises:
        InputError: the command ends with one line, as for bad input.
    """
    words = [word.decode(errors="surrogateescape") for word in data.split(b"\n")]
    words = [word for word in words if not word.startswith(("--fetch", "--out_dir", "--flagfile")) and "\0" not in word]
    prepare_run(folder, words)


def prepare_run(folder: Path, words: list[str]) -> None:
    """Prepare a run with these words on its command line, in the folder `out`.

    Raises:
        InputError: the command ends with one line.
    """
    import shutil

    from experiments import resume, settings
    from experiments import run as job

    def load() -> None:
        job.prepare(settings.inputs(), folder / "out", resume.Keeper(folder / "out", flags.FLAGS))

    (folder / "out").mkdir()
    try:
        run_command("run", words, load)
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)


def run_command(name: str, words: list[str], work: Callable[[], None]) -> None:
    """Do the work with a command's flags.

    Args:
        name: name of the command.
        words: its arguments.
        work: called once the flags are parsed.

    Raises:
        InputError: the command ends with status 2 and one line.
    """
    import sys

    from cryotrans_jax.io.files import InputError

    define_only(name)
    before, error = sys.argv, io.StringIO()
    sys.argv = [f"{name}.py", *words]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
            run(work)
    except SystemExit as stopped:
        lines = [line for line in error.getvalue().splitlines() if not line.startswith("warning: ")]
        if stopped.code and (stopped.code != 2 or len(lines) != 1):
            raise
        if stopped.code:
            raise InputError(lines[0]) from None
    finally:
        sys.argv = before


def define_only(name: str) -> None:
    """Define the flags of a command, and no others."""
    for defined in list(flags.FLAGS):
        if defined not in ("help", "helpfull", "helpshort", "helpxml"):
            delattr(flags.FLAGS, defined)
    command_module(name).define_flags()


def command_module(name: str) -> ModuleType:
    """Import the module of a command or a study."""
    home = "experiments" if find_spec(f"experiments.{name}") else "experiments.studies"
    return importlib.import_module(f"{home}.{name}")


def number_seeds(data_dir: Path | None) -> list[bytes]:
    """A command line of each command with all its numeric flags, one word a line after the name."""
    made = []
    for name in COMMANDS:
        run_command(name, ["--help"], lambda: None)
        numeric = [
            f for f in flags.FLAGS if flags.FLAGS[f].parser.syntactic_help.startswith(("a number", "an integer"))
        ]
        made.append("\n".join([name, *(f"--{flag}=1" for flag in sorted(numeric))]).encode())
    return made


def read_numbers(folder: Path, data: bytes, random) -> None:
    """Parse the command line of a command, and stop there."""
    name, *words = (word.decode(errors="surrogateescape") for word in data.split(b"\n"))
    words = [word for word in words if not word.startswith("--flagfile") and "\0" not in word]
    run_command(name if name in COMMANDS else "run", words, lambda: None)


def density_seeds(data_dir: Path | None) -> list[bytes]:
    """Uncompressed maps of the built-in pair's two states, in which the format allows any value."""
    import numpy as np

    from cryotrans_jax.density import demo, simulation
    from cryotrans_jax.io import maps

    made = []
    for name, model in zip(("seed.mrc", "other.mrc"), demo.hinge_pair(), strict=True):
        map_ = simulation.simulate_map(model, (12, 12, 16), 5.0, np.array([-30.0, -30.0, -40.0]), 12.0)
        maps.write_map(name, map_)
        made.append(Path(name).read_bytes())
    return made


def read_a_target(folder: Path, data: bytes, random) -> None:
    """Use the map as the target of a run, or as its initial map, and do all steps before the fit."""
    (folder / "a.mrc").write_bytes(data)
    names = ("a.mrc", "seed.mrc") if random.random() < 0.3 else ("seed.mrc", "a.mrc")
    prepare_run(folder, [f"--initial={names[0]}", f"--target={names[1]}", "--parts=none", "--data_dir=."])


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


def answer_seeds(data_dir: Path | None) -> list[bytes]:
    """Answers of servers to a request for an entry: whole, with digests, in chunks, or with a redirect."""
    import base64
    import gzip
    import hashlib
    import json

    model_seeds(None)
    map_seeds(None)
    cif, map_ = Path("seed.cif").read_bytes(), gzip.compress(Path("seed.mrc").read_bytes(), mtime=0)
    sums = f"Digest: sha-256={base64.b64encode(hashlib.sha256(cif).digest()).decode()}", 'ETag: "a"'
    entry = json.dumps({"map": {"file": "emd_1234.map.gz"}, "admin": {"title": "a"}}).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (cif[:300], cif[300:])) + b"0\r\n\r\n"
    return [
        make_answer("200 OK", cif, f"Content-Length: {len(cif)}", *sums),
        make_answer("200 OK", chunks, "Transfer-Encoding: chunked"),
        make_answer("200 OK", map_, f"Content-Length: {len(map_)}", "Content-MD5: 1B2M2Y8AsgTpgAmY7PhCfg=="),
        make_answer("200 OK", entry, f"Content-Length: {len(entry)}"),
        make_answer("302 Found", b"", "Location: http://127.0.0.1:1/x", "Content-Length: 0"),
        make_answer("503 Service Unavailable", b"<html>busy</html>", "Retry-After: 1"),
    ]


def make_answer(status: str, body: bytes, *headers: str) -> bytes:
    """Make an HTTP answer with this status, headers and body."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "Connection: close", "", ""]).encode() + body


def read_an_answer(folder: Path, data: bytes, random) -> None:
    """Fetch a model and a map's entry from a server that gives this answer to every request."""
    import shutil

    from cryotrans_jax.io.files import InputError
    from experiments import archives, download

    download.PAUSE, place, printed = 0.0, folder / "fetched", io.StringIO()
    errors = []
    with serve_answer(data) as base:
        archive = archives.Archives(base, base, base, limit=ANSWER_BYTES)
        for name in ("6RAH", "EMD-1234"):
            place.mkdir(exist_ok=True)
            try:
                with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                    archives.fetch(name, archive, place)
            except InputError as error:
                errors.append(error)
            assert all(path.stat().st_size <= ANSWER_BYTES for path in place.iterdir())
            shutil.rmtree(place)
    assert all(c.isprintable() or c in "\n\r" for c in printed.getvalue() + "".join(map(str, errors)))
    if len(errors) == 2:
        raise errors[0]


@contextlib.contextmanager
def serve_answer(data: bytes) -> Iterator[str]:
    """Serve the same bytes to every request, on this machine; yields the address."""
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the server is closed at the end
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(5)
                        connection.recv(65536)
                        connection.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


KINDS = {
    "map": Kind(8, map_seeds, read_a_map),
    "labels": Kind(2, map_seeds, read_labels),
    "model": Kind(8, model_seeds, read_a_model),
    "entry": Kind(2, entry_seeds, read_an_entry),
    "records": Kind(2, record_seeds, read_records),
    "pair": Kind(1, pair_seeds, read_a_pair),
    "flags": Kind(1, flag_seeds, read_flags),
    "numbers": Kind(1, number_seeds, read_numbers),
    "densities": Kind(0.2, density_seeds, read_a_target, change_densities),
    "answers": Kind(1, answer_seeds, read_an_answer),
    "checkpoint": Kind(1, checkpoint_seeds, read_a_checkpoint, damage_folder),
}
