"""Kinds of input for the fuzzer: sound files of each kind, and their readers."""

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from absl import flags

from experiments.main import run

from .fuzz_damage import change_densities, damage_folder, mutate
from .fuzz_files import (
    checkpoint_seeds,
    entry_seeds,
    map_seeds,
    model_seeds,
    read_a_checkpoint,
    read_a_map,
    read_a_model,
    read_an_entry,
    read_labels,
)

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
    from experiments.pages import page, reading
    from experiments.studies import benchmark

    path = folder / "config.json"
    path.write_bytes(data)
    for use in (exchange.read_fsc, reading.read_losses, lambda p: benchmark.read_rows(str(p))):
        with contextlib.suppress(InputError):
            use(path)
    run_folder.sign(folder)
    config = finished.read_config(folder)
    with finished.checked_records(folder):
        reading.display_contours(config), reading.target_name(config), reading.find_unchanged(config, config["initial"])
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
    lines = [fixed + more for more in (several, bounds, places, numbers, parts, halves)]
    lines.append(["seed.mrc", "half1.mrc", *fixed[2:]])
    return ["\n".join(line).encode() for line in lines]


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
            run(work, getattr(module_of(name), "NAMES", ()))
    except SystemExit as stopped:
        lines = [line for line in error.getvalue().splitlines() if not line.startswith("warning: ")]
        if stopped.code and (stopped.code != 2 or len(lines) != 1):
            raise
        if stopped.code:
            raise InputError(lines[0]) from None
    finally:
        sys.argv = before


def module_of(name: str) -> ModuleType:
    """Module of a command."""
    (home,) = (home for home in ("experiments", "experiments.studies") if find_spec(f"{home}.{name}"))
    return importlib.import_module(f"{home}.{name}")


def define_only(name: str) -> None:
    """Define the flags of a command, and no others."""
    for defined in list(flags.FLAGS):
        if defined not in ("help", "helpfull", "helpshort", "helpxml"):
            delattr(flags.FLAGS, defined)
    module_of(name).define_flags()


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
