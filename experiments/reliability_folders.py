"""Damaged and prepared run folders, given to every command that reads one: the faults of a section of `reliability`.

python -m experiments.reliability_folders FOLDER     FOLDER has a.mrc, b.mrc and a finished run `undisturbed`

Each case is a copy of the run with one fault. Commands run in this process, one after the other, since starting a
process takes longer than what it does. A line of JSON is printed for each kind of fault.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

FRAMES = 2
BROKEN = {"empty": b"", "cut": b"{", "a list": b"[]", "null": b"null", "no text": b"\xff\xfe\x00"}  # of JSON
READERS = ("predict", "report")  # the commands that read a finished run
LINKED = ("frame_00.mrc", "generated.mrc", "displacement.mrc", "report.html", "metrics.json", "view.cxc", "morph.gif")


def main(folder: Path) -> None:
    """Print a row for each kind of fault: what it is, how many were tried, how many went well, and how that shows."""
    whole = folder / "undisturbed"
    finished(folder, whole)
    for fault, cases in (
        ("damaged: a file of the stored fit", stored_fits(folder, whole)),
        ("damaged: a record of the run", records(folder, whole)),
        ("damaged: the record of an unfinished run", unfinished(folder, whole)),
        ("prepared: a link in place of a result", links(folder, whole)),
        ("prepared: a link among results set aside", aside(folder, whole)),
    ):
        outcomes = [*cases]
        bad = [name for name, good in outcomes if not good]
        how = "a sound result or one sentence" if not bad else f"not so: {'; '.join(bad[:3])}"
        print(json.dumps([fault, len(outcomes), len(outcomes) - len(bad), how]), flush=True)


def finished(folder: Path, whole: Path) -> None:
    """See that the folder has a finished run with its report."""
    words = ["--align=none", "--steps=0.1", f"--frames={FRAMES}", f"--out_dir={whole}", "--overwrite", "--noresume"]
    assert ended("run", [f"--initial={folder}/a.mrc", f"--target={folder}/b.mrc", *words]) is None


def ended(name: str, words: list[str]) -> str | None:
    """Run a command in this process: None where it did its work, else the one sentence with which it ended.

    Raises whatever else it ends with.
    """
    import importlib

    from cryotrans_jax.io.files import InputError

    from .fuzz_kinds import ended_well

    try:
        ended_well(name, words, importlib.import_module(f"{__package__}.{name}").main)
    except InputError as error:
        return str(error)
    return None


def trial(folder: Path, whole: Path, damage: Callable[[Path], None]) -> Path:
    """Make a copy of the run with the damage done to it."""
    copy = folder / "trial"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy, symlinks=True)
    damage(copy)
    return copy


def sound(name: str, copy: Path, whole: Path, refused: bool = False) -> bool:
    """Whether a command on a damaged copy ends with one sentence or, unless it is to be `refused`, as on the whole."""
    words = [f"--run_dir={copy}"]
    if name == "predict":
        words += [f"--frames={FRAMES}", f"--out_dir={copy.with_name('predicted')}", "--overwrite"]
    try:
        message = ended(name, words)
    except BaseException as error:  # a traceback, or another status
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    if message is not None:
        return "\n" not in message
    made, expected = (place / "generated.mrc" for place in (copy.with_name("predicted"), whole))
    return not refused and (name != "predict" or made.read_bytes() == expected.read_bytes())


def stored_fits(folder: Path, whole: Path) -> Iterator[tuple[str, bool]]:
    """Every file of the stored fit cut to half, empty, gone, or with one bit turned over in its middle."""
    for file in sorted(p.relative_to(whole) for p in (whole / "checkpoint").rglob("*") if p.is_file()):
        data = (whole / file).read_bytes()
        half = len(data) // 2
        flipped = data[:half] + bytes([data[half] ^ 4]) + data[half + 1 :] if data else b"x"
        for how, damaged in (("cut", data[:half]), ("empty", b""), ("gone", None), ("a bit", flipped)):
            if damaged == data:
                continue
            copy = trial(folder, whole, lambda at, f=file, d=damaged: put(at / f, d))
            yield f"{file} {how}", sound("predict", copy, whole, refused=True)


def records(folder: Path, whole: Path) -> Iterator[tuple[str, bool]]:
    """config.json and metrics.json broken, to each command that reads a run."""
    for file in ("config.json", "metrics.json"):
        for how, data in [*BROKEN.items(), ("gone", None), ("half", (whole / file).read_bytes()[:200])]:
            for name in READERS:
                copy = trial(folder, whole, lambda at, f=file, d=data: put(at / f, d))
                yield f"{file} {how}, {name}", sound(name, copy, whole)


def unfinished(folder: Path, whole: Path) -> Iterator[tuple[str, bool]]:
    """The record of an unfinished run broken, to the command that would go on with it."""
    words = ["--align=none", "--steps=0.02", "--frames=2", "--report=false"]
    for how, data in BROKEN.items():
        place = folder / "trial"
        shutil.rmtree(place, ignore_errors=True)
        (place / "unfinished/0_of_1").mkdir(parents=True)
        put(place / "unfinished/0_of_1/run.json", data)
        maps = [f"--initial={folder}/a.mrc", f"--target={folder}/b.mrc"]
        try:
            message = ended("run", [*maps, f"--out_dir={place}", *words])
            yield how, message is None or "\n" not in message
        except BaseException as error:
            print(f"run.json {how}: {type(error).__name__}: {error}", file=sys.stderr)
            yield how, False


def links(folder: Path, whole: Path) -> Iterator[tuple[str, bool]]:
    """A link to a file outside in place of a result: no command writes or removes what it leads to."""
    outside = folder / "outside.txt"
    for file in LINKED:
        for name in READERS:

            def plant(at: Path, file: str = file) -> None:
                (at / file).unlink(missing_ok=True)
                (at / file).symlink_to(outside)

            outside.write_bytes(b"mine")
            copy = trial(folder, whole, plant)
            if name == "predict":
                (copy.with_name("predicted") / file).unlink(missing_ok=True)
                copy.with_name("predicted").mkdir(exist_ok=True)
                plant(copy.with_name("predicted"))
            kept = sound(name, copy, whole) and outside.is_file() and outside.read_bytes() == b"mine"
            yield f"{file}, {name}", kept
            shutil.rmtree(copy.with_name("predicted"), ignore_errors=True)


def aside(folder: Path, whole: Path) -> Iterator[tuple[str, bool]]:
    """Links among what an unfinished run has set aside: no foreign file is moved, changed or removed."""
    outside = folder / "outside"
    for link in ("earlier", "earlier/x", "seed_0"):
        shutil.rmtree(outside, ignore_errors=True)
        outside.mkdir()
        (outside / "frame_00.mrc").write_bytes(b"mine")
        (outside / "checkpoint").mkdir()

        def plant(at: Path, link: str = link) -> None:
            place = at / "unfinished/0_of_1" / link
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(outside, target_is_directory=True)

        copy = trial(folder, whole, plant)
        maps = [f"--initial={folder}/a.mrc", f"--target={folder}/b.mrc", "--overwrite", "--noresume"]
        words = ["--align=none", "--steps=0.02", "--frames=2", "--report=false", f"--out_dir={copy}"]
        try:
            message = ended("run", [*maps, *words])
            good = message is None or "\n" not in message
        except BaseException as error:
            print(f"{link}: {type(error).__name__}: {error}", file=sys.stderr)
            good = False
        left = (outside / "frame_00.mrc").is_file() and (outside / "frame_00.mrc").read_bytes() == b"mine"
        yield link, good and left and (outside / "checkpoint").is_dir()


def put(path: Path, data: bytes | None) -> None:
    """Give a file these bytes, or remove it."""
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
