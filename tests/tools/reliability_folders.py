"""Give damaged and prepared run folders to every command that reads one: a section of `reliability`.

python -m tests.tools.reliability_folders FOLDER     FOLDER has a.mrc, b.mrc and a finished run `undisturbed`

Each case is a copy of the run with one fault. Commands run in this process, one after the other, because starting a
process takes longer than its work. A line of JSON is printed for each kind of fault.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

FRAMES = 2
BROKEN = {
    "empty": b"",
    "cut": b"{",
    "a list": b"[]",
    "null": b"null",
    "no text": b"\xff\xfe\x00",
}  # contents in place of JSON
READERS = ("predict", "report")  # the commands that read a finished run
LINKED = ("frame_00.mrc", "generated.mrc", "displacement.mrc", "report.html", "metrics.json", "view.cxc", "morph.gif")


def main(folder: Path) -> None:
    """Print a row for each kind of fault: its name, how many were tried, how many went well, and the evidence."""
    whole = folder / "undisturbed"
    ensure_finished_run(folder, whole)
    for fault, cases in (
        ("damaged: a file of the stored fit", stored_fits(folder, whole)),
        ("damaged: a record of the run", records(folder, whole)),
        ("damaged: the record of an unfinished run", unfinished(folder, whole)),
        ("prepared: a link in place of a result", links(folder, whole)),
        ("prepared: a link among results set aside", links_set_aside(folder, whole)),
    ):
        outcomes = [*cases]
        bad = [name for name, good in outcomes if not good]
        how = "a sound result or one sentence" if not bad else f"not so: {'; '.join(bad[:3])}"
        print(json.dumps([fault, len(outcomes), len(outcomes) - len(bad), how]), flush=True)


def ensure_finished_run(folder: Path, whole: Path) -> None:
    """Make sure that the folder has a finished run with its report."""
    words = ["--align=none", "--steps=0.1", f"--frames={FRAMES}", f"--out_dir={whole}", "--overwrite", "--noresume"]
    assert run_here("run", [f"--initial={folder}/a.mrc", f"--target={folder}/b.mrc", *words]) is None


def run_here(name: str, words: list[str]) -> str | None:
    """Run a command in this process; any other exception than InputError is passed on.

    Returns:
        The message of its InputError, or None if it succeeded.
    """
    from cryotrans_jax.io.files import InputError

    from .fuzz_kinds import module_of, run_command

    try:
        run_command(name, words, module_of(name).main)
    except InputError as error:
        return str(error)
    return None


def damaged_copy(folder: Path, whole: Path, damage: Callable[[Path], None]) -> Path:
    """Copy the run and damage the copy."""
    copy = folder / "trial"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy, symlinks=True)
    damage(copy)
    return copy


def ends_well(name: str, copy: Path, whole: Path, refused: bool = False) -> bool:
    """Whether a command on a damaged copy ends with one sentence or, unless `refused`, with the undamaged result."""
    words = [f"--run_dir={copy}"]
    if name == "predict":
        words += [f"--frames={FRAMES}", f"--out_dir={copy.with_name('predicted')}", "--overwrite"]
    try:
        message = run_here(name, words)
    except BaseException as error:  # a traceback, or another status
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    if message is not None:
        return "\n" not in message
    made, expected = (place / "generated.mrc" for place in (copy.with_name("predicted"), whole))
    return not refused and (name != "predict" or made.read_bytes() == expected.read_bytes())


def stored_fits(folder: Path, whole: Path) -> Iterator[tuple[str, bool]]:
    """Cut every file of the stored fit to half, empty it, remove it, or flip one bit in its middle."""
    for file in sorted(p.relative_to(whole) for p in (whole / "checkpoint").rglob("*") if p.is_file()):
        data = (whole / file).read_bytes()
        half = len(data) // 2
        flipped = data[:half] + bytes([data[half] ^ 4]) + data[half + 1 :] if data else b"x"
        for how, damaged in (("cut", data[:half]), ("empty", b""), ("gone", None), ("a bit", flipped)):
            if damaged == data:
                continue
            copy = damaged_copy(folder, whole, lambda at, f=file, d=damaged: write_or_remove(at / f, d))
            yield f"{file} {how}", ends_well("predict", copy, whole, refused=True)


def records(folder: Path, whole: Path) -> Iterator[tuple[str, bool]]:
    """Break config.json and metrics.json, for each command that reads a run."""
    for file in ("config.json", "metrics.json"):
        for how, data in [*BROKEN.items(), ("gone", None), ("half", (whole / file).read_bytes()[:200])]:
            for name in READERS:
                copy = damaged_copy(folder, whole, lambda at, f=file, d=data: write_or_remove(at / f, d))
                yield f"{file} {how}, {name}", ends_well(name, copy, whole)


def unfinished(folder: Path, whole: Path) -> Iterator[tuple[str, bool]]:
    """Break the record of an unfinished run, for the command that would resume it."""
    words = ["--align=none", "--steps=0.02", "--frames=2", "--report=false"]
    for how, data in BROKEN.items():
        place = folder / "trial"
        shutil.rmtree(place, ignore_errors=True)
        (place / "unfinished/0_of_1").mkdir(parents=True)
        write_or_remove(place / "unfinished/0_of_1/run.json", data)
        maps = [f"--initial={folder}/a.mrc", f"--target={folder}/b.mrc"]
        try:
            message = run_here("run", [*maps, f"--out_dir={place}", *words])
            yield how, message is None or "\n" not in message
        except BaseException as error:
            print(f"run.json {how}: {type(error).__name__}: {error}", file=sys.stderr)
            yield how, False


def links(folder: Path, whole: Path) -> Iterator[tuple[str, bool]]:
    """Put a link to an outside file in place of a result: no command may write or remove that file."""
    outside = folder / "outside.txt"
    for file in LINKED:
        for name in READERS:

            def plant(at: Path, file: str = file) -> None:
                (at / file).unlink(missing_ok=True)
                (at / file).symlink_to(outside)

            outside.write_bytes(b"mine")
            copy = damaged_copy(folder, whole, plant)
            if name == "predict":
                (copy.with_name("predicted") / file).unlink(missing_ok=True)
                copy.with_name("predicted").mkdir(exist_ok=True)
                plant(copy.with_name("predicted"))
            kept = ends_well(name, copy, whole) and outside.is_file() and outside.read_bytes() == b"mine"
            yield f"{file}, {name}", kept
            shutil.rmtree(copy.with_name("predicted"), ignore_errors=True)


def links_set_aside(folder: Path, whole: Path) -> Iterator[tuple[str, bool]]:
    """Put links among the results that an unfinished run has set aside: no outside file may be changed."""
    outside = folder / "outside"
    for link in (".earlier_run", ".earlier_run/x", "unfinished/0_of_1/seed_0"):
        shutil.rmtree(outside, ignore_errors=True)
        outside.mkdir()
        (outside / "frame_00.mrc").write_bytes(b"mine")
        (outside / "checkpoint").mkdir()

        def plant(at: Path, link: str = link) -> None:
            place = at / link
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(outside, target_is_directory=True)

        copy = damaged_copy(folder, whole, plant)
        maps = [f"--initial={folder}/a.mrc", f"--target={folder}/b.mrc", "--overwrite", "--noresume"]
        words = ["--align=none", "--steps=0.02", "--frames=2", "--report=false", f"--out_dir={copy}"]
        try:
            message = run_here("run", [*maps, *words])
            good = message is None or "\n" not in message
        except BaseException as error:
            print(f"{link}: {type(error).__name__}: {error}", file=sys.stderr)
            good = False
        left = (outside / "frame_00.mrc").is_file() and (outside / "frame_00.mrc").read_bytes() == b"mine"
        yield link, good and left and (outside / "checkpoint").is_dir()


def write_or_remove(path: Path, data: bytes | None) -> None:
    """Write these bytes into a file, or remove it if `data` is None."""
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
