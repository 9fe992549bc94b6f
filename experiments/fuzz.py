"""Feeds damaged files and odd flags to all that reads them: each must give a result or one clear error, soon and small.

python -m experiments.fuzz --count=20000 --out_dir=runs/fuzz

Whole files, of the built-in pair and of --data_dir, are cut, spliced, flipped bit by bit, and have fields set to
extremes, before or after they are compressed. Each kind of file is read in a process of its own, which may take a GiB
and, for a file, ten seconds of the processor. What ends in anything but a result or an InputError is kept, with its
traceback, in the folder found. The same seed makes the same files.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from . import paths, ranges, tables
from .main import run

FLAGS = flags.FLAGS

SECONDS = 10.0  # of the processor for one file, whatever else the machine does
PATIENCE = 300.0  # s without a word in which a process that hangs in C, or waits for something, is waited for
MEMORY = 1 << 30  # bytes that a process may take besides what it has when its libraries are loaded
LARGEST = 400_000  # bytes of a file of --data_dir that is taken
OUTCOMES = ("results", "errors", "tracebacks", "hangs", "crashes")
COLUMNS = {
    "kind": "{}",
    "tried": "{}",
    **dict.fromkeys(OUTCOMES, "{}"),
    "worst_mib": "{:.0f}",
    "worst_seconds": "{:.2g}",
}
WORDS = (  # in place of a word of a text, or a value of a flag
    "", "0", "-0", "-1", "1e-30", "1e30", "1e308", "1e999", "nan", "inf", "-inf", "NaN", "99999999999999999999", "?",
    ".", "..", "../../x", "...mrc", "/etc/passwd", "<script>", "'", '"', ";", ",", "é", "\ufeff", "\udcff", "x" * 300,
    "A:1-9", "true", "null", "[]", "{}", "%s", "0x7f", "１２", "data_", "loop_", "ENDMDL", "HETATM",
)  # fmt: skip
VALUES = (None, True, 0, -1, 10**400, 1e308, float("nan"), "", "../../x", "<b>", [], {}, [[]], {"": None}, "x" * 300)
INTEGERS = (0, 1, -1, 2, 3, 127, 401, 32767, 65535, 65536, 10**6, 2**31 - 1, -(2**31))
FLOATS = (0.0, -1.0, 1e-45, 1e-3, 90.0, 179.9, 180.0, 1e6, 3e38, float("inf"), float("nan"))


def define_flags() -> None:
    """Nothing; the flags of this job are there."""
    ranges.whole_number("count", 2000, "N: files, and sets of flags, to try.", ranges.COUNT)
    ranges.whole_number("seed", 0, "N: from which they are drawn.", ranges.SEED)
    flags.DEFINE_list("kinds", [], f"KIND,...: only these, of {', '.join(KINDS)}.")
    paths.define_path("data_dir", None, "FOLDER: maps and models in it and below are damaged as well.")
    paths.define_path("out_dir", "runs/fuzz", "FOLDER: for fuzz.json, fuzz.md and found; what is there is replaced.")


def main() -> None:
    """Nothing; prints and writes the table. Raises InputError, at the end, where something was found."""
    from cryotrans_jax.files import InputError

    need_limits()
    if unknown := set(FLAGS.kinds) - set(KINDS):
        raise InputError(f"--kinds={','.join(sorted(unknown))}: they are {', '.join(KINDS)}")
    out_dir = Path(FLAGS.out_dir)
    (out_dir / "found").mkdir(parents=True, exist_ok=True)
    whole = sum(KINDS[kind][0] for kind in FLAGS.kinds or KINDS)
    rows = []
    for kind in FLAGS.kinds or KINDS:
        count = max(round(FLAGS.count * KINDS[kind][0] / whole), 1)
        rows.append(tried(kind, count, FLAGS.seed, FLAGS.data_dir, out_dir))
        print(tables.styled_row(rows[-1], COLUMNS), flush=True)
        write_table(rows, out_dir)
    if bad := sum(row[outcome] for row in rows for outcome in OUTCOMES[2:]):
        raise InputError(
            f"{bad} files were not read as they should be: they and what came of them are in {out_dir}/found"
        )


def need_limits() -> None:
    """Raise InputError on a system that sets no limits to the memory and the files of a process."""
    from cryotrans_jax.files import InputError

    try:
        import resource  # noqa: F401
    except ImportError:
        raise InputError(
            "this study limits what a process takes: run it on Linux or macOS, which can do that"
        ) from None


def write_table(rows: list[dict], out_dir: Path) -> None:
    """Nothing; the folder holds fuzz.json and fuzz.md."""
    from cryotrans_jax.files import write_file

    from .run_folder import write_json

    write_json(out_dir / "fuzz.json", rows)
    write_file(out_dir / "fuzz.md", tables.styled(rows, COLUMNS))


# --------------------------------------------------------------------------------- processes that read


def tried(kind: str, count: int, seed: int, data_dir: str | None, out_dir: Path) -> dict:
    """The row of a kind: what came of so many of its files, each process starting where the last one ended."""
    from multiprocessing import get_context

    row = {"kind": kind, "tried": count, **dict.fromkeys(OUTCOMES, 0), "worst_mib": 0.0, "worst_seconds": 0.0}
    spawn, number = get_context("spawn"), 0
    while number < count:
        ours, theirs = spawn.Pipe()
        child = spawn.Process(target=work, args=(theirs, kind, number, count, seed, data_dir, str(out_dir.absolute())))
        child.start()
        theirs.close()
        begun = False
        with contextlib.suppress(EOFError):  # it is done, or dead
            if not ours.poll(600) or ours.recv() != "ready":
                raise RuntimeError(f"the process that reads {kind} files does not start")
            begun = True
            while ours.poll(PATIENCE):
                outcome, seconds, mib = ours.recv()
                row[outcome] += 1
                row["worst_seconds"], row["worst_mib"] = max(row["worst_seconds"], seconds), max(row["worst_mib"], mib)
                number += 1
        if not begun:
            raise RuntimeError(f"the process that reads {kind} files ends before the first")
        if number < count:
            row["hangs" if child.is_alive() else "crashes"] += 1
            number += 1
        child.kill()
        child.join()
    return row


def work(pipe, kind: str, first: int, count: int, seed: int, data_dir: str | None, out_dir: str) -> None:
    """Nothing; says of each file from the `first` on what came of it, in how many seconds, with how many MiB so far.

    A file is kept until it is read without a fault, so that one on which the process dies is there.
    """
    import resource
    import signal
    import tempfile
    import time
    import warnings
    from binascii import crc32

    import numpy as np

    from cryotrans_jax.files import InputWarning

    os.environ["JAX_PLATFORMS"] = "cpu"
    warnings.simplefilter("error", RuntimeWarning)
    warnings.simplefilter("ignore", InputWarning)
    _, make, read = KINDS[kind]
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "a" / "b"  # what leaves it is seen above
        folder.mkdir(parents=True)
        os.chdir(folder)
        seeds = make(Path(data_dir) if data_dir else None)
        read(
            folder, seeds[0], np.random.default_rng(0)
        )  # libraries are loaded, and all of this is one that can be read
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
        if pages:
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
        signal.signal(signal.SIGPROF, hung)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pipe.send("ready")
        for number in range(first, count):
            random = np.random.default_rng([seed, crc32(kind.encode()), number])
            kept = Path(out_dir) / "found" / f"{kind}_{number}"
            data = mutated(random, seeds)
            kept.write_bytes(data)
            begin = time.process_time()
            outcome = outcome_of(read, folder, data, random, kept)
            if outcome in OUTCOMES[:2]:
                kept.unlink()
            seconds, now = time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            pipe.send((outcome, seconds, (now - peak) / 1024))


class Hung(BaseException):
    """A file took too long."""


def hung(*_: Any) -> None:
    """Raises Hung."""
    raise Hung


def outcome_of(read: Callable, folder: Path, data: bytes, random, kept: Path) -> str:
    """What comes of reading the file; a traceback, or what was found beside the folder, is written beside `kept`."""
    import signal
    import traceback

    from cryotrans_jax.files import InputError

    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        read(folder, data, random)
        outcome = "results"
    except InputError as error:
        outcome = "errors" if "\n" not in str(error) else "tracebacks"
    except Hung:
        outcome = "hangs"
    except BaseException:
        kept.with_suffix(".txt").write_text(traceback.format_exc(), errors="replace")
        outcome = "tracebacks"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if {path.name for path in folder.parents[1].rglob("*") if folder not in path.parents} != {"a", "b"}:
        kept.with_suffix(".txt").write_text("a name led out of the folder\n")
        outcome = "tracebacks"
    return outcome


# --------------------------------------------------------------------------------- how files are damaged


def mutated(random, seeds: list[bytes]) -> bytes:
    """One of the files, damaged once to four times, and perhaps compressed before, between or after."""
    import bz2
    import gzip

    data = bytearray(seeds[random.integers(len(seeds))])
    packing = random.choice([0, 0, 0, 1, 2, 3])  # 1: not at all; 0: as the seed is
    ways: list[Callable] = [flipped, cut, spliced, extreme, worded]
    if data[:1] == b"{":  # a JSON text, which the others hardly ever leave one
        ways = [valued] if random.random() < 0.7 else [valued, *ways]
    for _ in range(random.integers(1, 5)):
        data = ways[random.integers(len(ways))](random, data, seeds)
    if packing > 1:
        data = bytearray(gzip.compress(data, mtime=0) if packing == 2 else bz2.compress(data))
        if random.random() < 0.5:
            data = (flipped, cut)[random.integers(2)](random, data, seeds)
    return bytes(data)


def flipped(random, data: bytearray, seeds) -> bytearray:
    """With up to 16 bits flipped, half of the time in the first KiB."""
    reach = min(len(data), 1024) if random.random() < 0.5 else len(data)
    for _ in range(random.integers(1, 17) if reach else 0):
        data[random.integers(reach)] ^= 1 << int(random.integers(8))
    return data


def cut(random, data: bytearray, seeds) -> bytearray:
    """Cut off somewhere, or with a piece missing or twice."""
    if not data:
        return data
    start, stop = sorted(int(k) for k in random.integers(len(data) + 1, size=2))
    return [data[:start], data[:start] + data[stop:], data[:stop] + data[start:]][random.integers(3)]


def spliced(random, data: bytearray, seeds) -> bytearray:
    """The beginning of it and the end of another."""
    other = seeds[random.integers(len(seeds))]
    at = int(random.integers(min(len(data), len(other)) + 1))
    return data[:at] + other[at:]


def extreme(random, data: bytearray, seeds) -> bytearray:
    """With one to three words of the first 256, as MRC has its fields, set to extreme numbers."""
    import struct

    for _ in range(random.integers(1, 4)):
        at = 4 * int(random.integers(256 if random.random() < 0.3 else 56))
        order = "<>"[random.random() < 0.1]
        if random.random() < 0.5:
            word = struct.pack(f"{order}i", INTEGERS[random.integers(len(INTEGERS))])
        else:
            word = struct.pack(f"{order}f", FLOATS[random.integers(len(FLOATS))])
        if at + 4 <= len(data):
            data[at : at + 4] = word
    return data


def worded(random, data: bytearray, seeds) -> bytearray:
    """With one to three words of a text replaced by others."""
    import re

    words = [m.span() for m in re.finditer(rb"[^\s,:\[\]{}\"]+", bytes(data[:100_000]))]
    for _ in range(random.integers(1, 4) if words else 0):
        start, stop = words[random.integers(len(words))]
        new = WORDS[random.integers(len(WORDS))].encode(errors="surrogateescape")
        if random.random() < 0.5:  # columns stay where they are
            new = new[: stop - start].ljust(stop - start)
        data = data[:start] + new + data[stop:]
    return data


def valued(random, data: bytearray, seeds) -> bytearray:
    """With a value of a JSON text replaced by another, or wrapped many times."""
    import json

    try:
        content = json.loads(bytes(data))
    except (ValueError, RecursionError):
        return data
    places = [*inside(content)]
    if places:
        holder, key = places[random.integers(len(places))]
        holder[key] = VALUES[random.integers(len(VALUES))]
    text = json.dumps(content)
    depth = int(random.choice([0, 0, 0, 0, 0, 0, 50, 3000]))
    return bytearray(('{"a":[' * depth + text + "]}" * depth).encode())


def inside(content: Any):
    """All places in a JSON value, as pairs of what holds the value and its key."""
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield content, key
        yield from inside(content[key])


# --------------------------------------------------------------------------------- what is read, and how


def map_seeds(data_dir: Path | None) -> list[bytes]:
    """Small maps of the built-in pair, of all modes, on a skewed cell, compressed, and real ones."""
    import bz2
    import gzip

    import numpy as np

    from cryotrans_jax import atoms, demo, maps

    start, _ = demo.hinge_pair()
    size, origin = np.array([5.0, 6.0, 7.0]), np.array([-17.0, -12.0, -21.0])
    map_ = atoms.simulate_map(start, (8, 7, 12), size, origin, 12.0)
    maps.write_map("seed.mrc", map_)
    plain = Path("seed.mrc").read_bytes()
    skewed = bytearray(plain)
    skewed[52:64] = np.array([80, 95, 110], "<f4").tobytes()
    narrow = bytearray(plain[:1024] + np.rint(100 * map_.density.T / map_.density.max()).astype("<i2").tobytes())
    narrow[12:16] = np.array(1, "<i4").tobytes()
    labels = bytearray(plain[:1024] + np.rint(3 * map_.density.T / map_.density.max()).astype("<f4").tobytes())
    made = [plain, bytes(skewed), bytes(narrow), bytes(labels), gzip.compress(plain, mtime=0), bz2.compress(plain)]
    return made + real(data_dir, (".mrc", ".map", ".map.gz", ".map.bz2"))


def model_seeds(data_dir: Path | None) -> list[bytes]:
    """Small models, as PDB and mmCIF and compressed, and the first lines of real ones."""
    import gzip

    from cryotrans_jax import atoms, demo

    start, _ = demo.hinge_pair()
    while len(start[0][0]) > 12:
        del start[0][0][12]
    atoms.write_model("seed.pdb", start)
    atoms.write_model("seed.cif", start)
    made = [Path(name).read_bytes() for name in ("seed.pdb", "seed.cif")]
    given = [b"".join(text.splitlines(keepends=True)[:300]) for text in real(data_dir, (".pdb", ".cif", ".ent"))]
    return [*made, *(gzip.compress(text, mtime=0) for text in made), *given]


def real(data_dir: Path | None, suffixes: tuple[str, ...]) -> list[bytes]:
    """The files of the folder and below that end so and are not large."""
    found = sorted(data_dir.rglob("*")) if data_dir else []
    return [p.read_bytes() for p in found if p.name.endswith(suffixes) and p.stat().st_size < LARGEST]


def read_a_map(folder: Path, data: bytes, random) -> None:
    """Nothing; the map was read, looked at, and written again."""
    from cryotrans_jax import contour, maps

    (folder / "a.mrc").write_bytes(data)
    map_ = maps.read_map(folder / "a.mrc")
    maps.describe(map_)
    contour.describe(map_, None)
    maps.write_map(folder / "b.mrc", map_)
    maps.read_map(folder / "b.mrc")


def read_labels(folder: Path, data: bytes, random) -> None:
    """Nothing; the map was read as labels, as a mask of two, and as one to multiply with."""
    from cryotrans_jax import maps, mask, partition
    from cryotrans_jax.files import InputError

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
    """Nothing; the model was read, looked at, turned into a map, and written again."""
    import numpy as np

    from cryotrans_jax import atoms, partition
    from cryotrans_jax.files import InputError

    (folder / "a.pdb").write_bytes(data)
    model = atoms.read_model(folder / "a.pdb")
    atoms.molecular_weight(model)
    with contextlib.suppress(InputError):
        partition.selected(model, "A:2-4")
    with contextlib.suppress(InputError):
        atoms.superpose(model, atoms.read_model(folder / "seed.pdb"))
    atoms.simulate_map(
        model, (8, 7, 12), 6.0, np.zeros(3), 12.0
    )  # a box about it may be large, and is refused elsewhere
    atoms.write_model(folder / "b.cif", model)
    atoms.read_model(folder / "b.cif")
    if atoms.pdb_obstacle(model) is None:
        atoms.write_model(folder / "b.pdb", model)
        atoms.read_model(folder / "b.pdb")


def entry_seeds(data_dir: Path | None) -> list[bytes]:
    """What the EMDB says of an entry, and what is written of it beside the map."""
    import json

    contours = {"contour": [{"primary": True, "level": 0.5}, {"level": "1.5"}]}
    image = {"image_processing": [{"final_reconstruction": {"resolution": {"valueOf_": "3.2"}}}]}
    said = {
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
    return [json.dumps(value).encode() for value in (said, beside)]


def read_an_entry(folder: Path, data: bytes, random) -> None:
    """Nothing; the text was taken as an entry of the EMDB, as the file beside a map, as a broken transfer's note."""
    from cryotrans_jax.files import InputError

    from . import archives, download, inputs

    path, part = folder / "emd_1234.map.gz", folder / ".x.part"
    for place in (folder / "emd_1234.json", path, part, download.beside(part)):
        place.write_bytes(data)
    download.noted(part, "https://a/b")
    with contextlib.suppress(InputError):
        archives.described("1234", archives.read_json(folder / "emd_1234.json"))
    records = archives.told_files(folder / "emd_1234.json")
    with contextlib.suppress(InputError), contextlib.redirect_stdout(None):
        archives.kept(path, next(filter(archives.known, records.values()), None), False)
    level, resolution = archives.contour(path), inputs.resolution_of(path.name, str(folder))
    assert level is None or isinstance(level, float)
    assert resolution is None or ranges.RESOLUTION.least <= resolution <= ranges.RESOLUTION.most


def record_seeds(data_dir: Path | None) -> list[bytes]:
    """What a run writes of itself, and a benchmark."""
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
    """Nothing; the text was taken as a run's settings, its curves, its losses, and as a benchmark."""
    from cryotrans_jax.files import InputError

    from . import benchmark, exchange, page, run_folder, story

    path = folder / "config.json"
    path.write_bytes(data)
    for use in (exchange.read_fsc, story.losses, lambda p: benchmark.read_rows(str(p))):
        with contextlib.suppress(InputError):
            use(path)
    run_folder.sign(folder)
    config = run_folder.run_of(folder)
    with run_folder.as_written(folder):
        story.levels(config), story.target_name(config), story.unchanged(config, config["initial"])
        page.facts(config), page.settings(config), page.morph_text(config)


def pair_seeds(data_dir: Path | None) -> list[bytes]:
    """A pair.json with the way between its states, and that way as .npz."""
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
    """Nothing; the bytes were taken as the description of a pair, or as its frames."""
    from cryotrans_jax import atoms

    from . import validate

    seeds = pair_seeds(None)
    text = data[:1] == b"{"
    (folder / "pair.json").write_bytes(data if text else seeds[0])
    (folder / "way.npz").write_bytes(seeds[1] if text else data)
    validate.known_path(folder, atoms.read_model(folder / "seed.pdb"))


def flag_seeds(data_dir: Path | None) -> list[bytes]:
    """Command lines of the main job, a word each line, for maps that are there; some have odd names."""
    map_seeds(None)
    model_seeds(None)
    for name in ("...mrc", "6abc_0A.mrc", "<script>.mrc", "half1.mrc", "half2.mrc"):
        Path(name).write_bytes(Path("seed.mrc").read_bytes())
    fixed = ["--initial=seed.mrc", "--target=seed.mrc", "--align=none", "--parts=none", "--data_dir=.", "--out_dir=out"]
    several = ["--target=...mrc,<script>.mrc", "--target_mask=seed.mrc", "--reference=seed.pdb", "--overwrite"]
    numbers = ["--steps=0.1", "--frames=2", "--mass_kda=15", "--seed=1", "--mask_radius=30", "--initial_threshold=0.01"]
    parts = ["--parts=A:1-5;A:6-12", "--model=seed.cif", "--initial_resolution=9", "--target_resolution=9"]
    halves = ["--target_half1=half1.mrc", "--waypoint=seed.mrc@0.5", "--bin=1", "--target_threshold=0.01", "--seeds=1"]
    return ["\n".join(fixed + more).encode() for more in (several, numbers, parts, halves)]


def read_flags(folder: Path, data: bytes, random) -> None:
    """Nothing; the main job took the flags and has all that it is to fit.

    Raises InputError where it ended with one line, as it does for bad input.
    """
    import io
    import shutil
    import sys

    from cryotrans_jax.files import InputError

    from . import resume
    from . import run as job

    for name in list(flags.FLAGS):
        if name not in ("help", "helpfull", "helpshort", "helpxml"):
            delattr(flags.FLAGS, name)
    job.define_flags()
    words = [word.decode(errors="surrogateescape") for word in data.split(b"\n")]
    words = [word for word in words if not word.startswith(("--fetch", "--out_dir", "--flagfile")) and "\0" not in word]

    def load() -> None:
        job.load(folder / "out", resume.Keeper(folder / "out", flags.FLAGS))

    before, error = sys.argv, io.StringIO()
    sys.argv = ["run.py", *words]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
            run(load)
    except SystemExit as stopped:
        if stopped.code and (stopped.code != 2 or error.getvalue().count("\n") != 1):
            raise
        if stopped.code:
            raise InputError(error.getvalue().strip()) from None
    finally:
        sys.argv = before
        shutil.rmtree(folder / "out", ignore_errors=True)


KINDS: dict[str, tuple[float, Callable, Callable]] = {  # its share of the files, seeds, and what reads them
    "map": (8, map_seeds, read_a_map),
    "labels": (2, map_seeds, read_labels),
    "model": (8, model_seeds, read_a_model),
    "entry": (2, entry_seeds, read_an_entry),
    "records": (2, record_seeds, read_records),
    "pair": (1, pair_seeds, read_a_pair),
    "flags": (1, flag_seeds, read_flags),
}


def command() -> None:
    """Nothing; the job is done as the command line says."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
