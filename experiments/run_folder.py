"""The folders of results: claimed by one program at a time, replaced as a whole, read back as they were written.

Nothing is written, moved or removed through a link in such a folder; the folder itself may be one that the user made.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cryotrans_jax.checkpoints import remove
from cryotrans_jax.files import (
    SUMS,
    InputError,
    check_sum,
    checksum,
    read_checksums,
    read_json,
    readable,
    write_checksums,
    write_file,
)
from cryotrans_jax.maps import Map, MapLike, read_map
from cryotrans_jax.morphing import Fit

from . import lock, log

CHECKPOINT, UNFINISHED, TERMS = "checkpoint", "unfinished", "run.json"
FRAMES = re.compile(  # what a run, or predict, makes of a fit
    r"frame_\d+\.mrc|model_\d+\.cif|generated\.(mrc|cif|pdb)|trajectory\.(cif|pdb)|geometry\.csv"
)
RECORDS = re.compile(  # what a run writes about itself
    r"(config|metrics|transform|failed)\.json|folded\.mrc|loss\.csv|unexplained\.mrc|parts\.mrc|seed_spread\.mrc|displacement\.(mrc|cif)|view\.cxc"
    r"|report\.html|morph\.gif|reproduce\.(md|json)|SHA256SUMS"
    r"|fsc\.csv|fsc(_reference)?\.xml|(fsc|loss|slices)\.(svg|png)"
)
KINDS = {  # of results, each of which is replaced as a whole
    "frames": FRAMES,
    "records": RECORDS,
    "comparison": re.compile(r"compare\.(json|csv|txt)|along\.csv|(along|ends|halfway)\.(svg|png)"),
    "study": re.compile(r"study\.(md|csv|json|svg|png)|fsc\.csv|fsc\.xml|fsc_reference\.xml"),
    "study_maps": re.compile(r"(target|generated)_.*\.mrc"),
    "imbalance": re.compile(r"imbalance\.(json|md)|fsc\.(png|svg)|(common|rare|generated|truth)\.mrc"),
    "dynamics": re.compile(r"dynamics\.(csv|json|svg|png)"),
    "rebuild": re.compile(r"reference\.pdb|sequence\.fasta|build\.sh|coverage\.json"),
    "benchmark": re.compile(r"benchmark\.(json|md)"),
    "validation": re.compile(r"validate\.(json|md)"),
    "waypoints": re.compile(r"waypoints\.(json|md)"),
}
FOLDERS = re.compile(  # what a run makes in its folder, or in that of one target, and commands while they replace
    r"checkpoint|unfinished|inputs|target_frame|assembly"
    r"|\.checkpoint\.(new|old).*|\.(beginning|earlier|restoring|replaced)_\w+"
)
INSIDE = ("target_frame", "assembly")  # folders of results in that of a target
REPLACED = ".replaced"  # beside results that were set aside: what is in their place is new
GATHERING = "gathering"  # beside the folder "earlier" of an unfinished run: results that are being moved there, or back


# Writing


@contextlib.contextmanager
def claimed(
    folder: str | Path, process: int = 0, inside: Iterable[str] = (), kinds: Iterable[str] = ("frames", "records")
) -> Iterator[Path]:
    """Make the folder if needed, and keep other programs from writing to it within the block.

    What an earlier command that was killed had begun to replace is put back first.

    Args:
        folder: the folder of results; it may be a link.
        process: the number of this process among those of a distributed run.
        inside: further folders in it that will be written to, such as those of targets.
        kinds: the results that will be written, by their names in KINDS.

    Raises:
        InputError: it is no folder, cannot be written to, is in use, or holds links where results go.
    """
    folder = Path(folder)
    new = not os.path.lexists(folder)
    make(folder)
    try:
        with lock.held(folder, process):
            check_links(folder, inside, kinds)
            if process == 0:
                recover(folder)
            yield folder
    finally:
        if new:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def make(folder: Path) -> None:
    """Make a folder that can be written to. Raises InputError where that cannot be."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder: give another --out_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:  # rather now than when there is something to write
            file.write(bytes(1024))
    except OSError as error:
        raise InputError(f"nothing can be written to {folder} ({error.strerror}): give another --out_dir") from error


def check_links(folder: Path, inside: Iterable[str] = (), kinds: Iterable[str] = ("frames", "records")) -> None:
    """Raise InputError where the folder has a link or a folder in the place of a result, or a link in its own folders.

    The arguments are as for `claimed`.
    """
    inside, kinds = [*inside], [*kinds]
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        result = any(KINDS[kind].fullmatch(path.name) for kind in kinds)
        if not (result or path.name in inside or FOLDERS.fullmatch(path.name)):
            continue
        if path.is_symlink():
            raise InputError(f"{path} is a link, through which no results are written: remove it, or copy the folder")
        if result and path.is_dir():
            raise InputError(f"{path} is a folder in the place of a result: rename it, or give another folder")
        if path.name in inside:
            check_links(path, kinds=kinds)
        elif path.is_dir():
            check_no_links(path)


def check_no_links(folder: Path) -> None:
    """Raise InputError where the folder is a link, or has one anywhere below it."""
    below = (Path(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files))
    for path in (folder, *below):
        if path.is_symlink():
            raise InputError(f"{path} is a link, through which no results are moved: remove it, or copy the folder")


@contextlib.contextmanager
def replacing(folder: Path, kind: str) -> Iterator[None]:
    """Let the block replace the folder's results of a kind; if it fails, all of them are as they were before.

    The earlier ones stay in a folder beside them until the block has ended. It may put new files in their place and
    remove them, but not write into them. Should the program be killed, the next one that claims the folder puts them
    back. The checksums of a run's folder are brought up to date.
    """
    begun, kept, done = (folder / f".{when}_{kind}" for when in ("beginning", "earlier", "replaced"))
    remove(begun)
    begun.mkdir(parents=True)
    for path in made_in(folder, KINDS[kind]):
        second(path, begun / path.name)
    begun.rename(kept)
    try:
        with signed_again(folder, KINDS[kind]):
            yield
    except BaseException:
        restore(folder, kind)
        raise
    kept.rename(done)  # at once: half of them must not be put back, should this be cut short
    remove(done)


@contextlib.contextmanager
def growing(folder: Path, kind: str) -> Iterator[Path]:
    """Claim the folder, and give one in it in which results of a kind may grow, as a table does.

    At the end they take the place of the earlier ones. If the block fails, both stay where they are.
    """
    with claimed(folder, inside=["partial"], kinds=[kind]):
        partial = folder / "partial"
        partial.mkdir(exist_ok=True)
        for path in made_in(partial, KINDS[kind]):
            path.unlink()
        yield partial
        with replacing(folder, kind):
            for path in made_in(folder, KINDS[kind]):
                path.unlink()
            for path in made_in(partial, KINDS[kind]):
                path.rename(folder / path.name)
        with contextlib.suppress(OSError):  # it holds files of the user's
            partial.rmdir()


def second(path: Path, place: Path) -> None:
    """Give a file a second name, or make a copy where the disk knows no such names."""
    try:
        os.link(path, place)
    except OSError:
        shutil.copy2(path, place)


def restore(folder: Path, kind: str) -> None:
    """Put back the results of a kind that were being replaced, instead of what is there.

    In two steps, between which the folder with them is renamed, so that both may be cut short and done again.
    """
    kept, restoring = folder / f".earlier_{kind}", folder / f".restoring_{kind}"
    if kept.is_dir():
        for path in made_in(folder, KINDS[kind]):
            if not (kept / path.name).exists():
                remove(path)
        kept.rename(restoring)
    for path in restoring.iterdir():
        os.replace(path, folder / path.name)
        path.unlink(missing_ok=True)  # two names of one file stay
    restoring.rmdir()


def recover(folder: Path) -> None:
    """Put back results that a command was replacing when it was killed, in the folder and in those that it holds."""
    for place in [folder, *(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())]:
        for kind in KINDS:
            begun, kept, restoring, done = (
                place / f".{when}_{kind}" for when in ("beginning", "earlier", "restoring", "replaced")
            )
            if kept.exists() or restoring.exists():
                check_no_links(kept if kept.exists() else restoring)
                restore(place, kind)
                log.results_restored(place)
            remove(begun)
            remove(done)


def made_in(folder: Path, *kinds: re.Pattern) -> list[Path]:
    """The files in a folder with the names of results; of FRAMES and RECORDS if no kind is given."""
    if not folder.is_dir():
        return []
    kinds = kinds or (FRAMES, RECORDS)
    return [p for p in folder.iterdir() if not p.is_dir() and any(kind.fullmatch(p.name) for kind in kinds)]


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise InputError where the folder holds a run's results and they may not be replaced."""
    if not overwrite and (made_in(folder) or (folder / CHECKPOINT).exists()):
        raise InputError(f"{folder} holds another run: give another --out_dir, or --overwrite to replace its results")


def results_in(folders: Iterable[Path]) -> list[Path]:
    """The results of a run in the folders of its targets, in another frame and of an assembly as well."""
    folders = [*folders]
    found = [path for folder in folders for name in ("", *INSIDE) for path in made_in(folder / name)]
    return found + [folder / CHECKPOINT for folder in folders if (folder / CHECKPOINT / "arrays").is_dir()]


def set_aside(folders: Iterable[Path], out_dir: Path, aside: Path) -> None:
    """Move a run's earlier results out of the folders of its targets: to `aside`, from where `put_back` gets them.

    Where `aside` is there already, what is in the folders is what a run had begun to write when it was killed, and is
    removed.
    """
    if aside.is_dir():
        for path in results_in(folders):
            remove(path)
        return
    gathering = aside.with_name(GATHERING)
    for folder in folders:
        (gathering / folder.relative_to(out_dir)).mkdir(parents=True, exist_ok=True)
        (gathering / folder.relative_to(out_dir) / REPLACED).touch()
        for path in results_in([folder]):
            place = gathering / path.relative_to(out_dir)
            place.parent.mkdir(exist_ok=True)
            path.rename(place)
    gathering.rename(aside)  # from here on, what is in the run's folder is new


def put_back(aside: Path, out_dir: Path) -> None:
    """Move results that were set aside to their places again, if there are any, instead of what is there.

    In two steps, between which the folder with them is renamed, so that both may be cut short and done again.
    """
    gathering = aside.with_name(GATHERING)
    for place in (aside, gathering):
        if os.path.lexists(place):
            check_no_links(place)
    if aside.is_dir():
        replaced = [out_dir / mark.parent.relative_to(aside) for mark in aside.rglob(REPLACED)]
        for path in results_in(replaced):
            remove(path)
        aside.rename(gathering)
    if gathering.is_dir():
        move_into(gathering, out_dir)


def move_into(source: Path, place: Path) -> None:
    """Move what a folder holds into another one, folder by folder, and remove it."""
    for path in [*source.iterdir()]:
        if path.name == REPLACED:
            path.unlink()
        elif path.is_dir() and path.name != CHECKPOINT:
            move_into(path, place / path.name)
        else:
            place.mkdir(parents=True, exist_ok=True)
            path.replace(place / path.name)
    source.rmdir()


def write_json(path: Path, content: Any) -> None:
    """Write the content as JSON."""
    write_file(path, json.dumps(content, indent=2, default=str) + "\n")


# Checksums


def sign(folder: Path) -> None:
    """Write the checksums of a run's results, once they are there."""
    write_checksums(folder, {path.name: checksum(path) for path in made_in(folder) if path.name != SUMS})


@contextlib.contextmanager
def signed_again(folder: Path, kind: re.Pattern = RECORDS) -> Iterator[None]:
    """Bring a run's checksums up to date with those files of a kind that the block writes, replaces or removes.

    The other ones keep theirs, so that what was damaged before is not taken for sound. Does nothing in other folders.
    """

    def there() -> dict[str, tuple]:
        return {path.name: state(path) for path in made_in(folder, kind) if path.name != SUMS}

    before = there()
    yield
    if (folder / SUMS).is_file():
        now, sums = there(), read_checksums(folder)
        kept = {name: sum_ for name, sum_ in sums.items() if name in now or name not in before}
        new = {name: checksum(folder / name) for name in now if now[name] != before.get(name)}
        write_checksums(folder, kept | new)


def state(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written anew."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def sound(folder: Path, name: str) -> Path:
    """The file of a run's folder. Raises InputError where it is not as the run wrote it, or is missing."""
    path = folder / name
    if path.is_symlink():
        raise InputError(f"{path} is a link, where a run has a file: copy the file itself to this place")
    if not os.path.lexists(path):
        raise InputError(f"{folder} has no {name}: the run did not finish; repeat it with --overwrite")
    check_sum(folder, name, read_checksums(folder))
    return path


def has(folder: Path, name: str) -> bool:
    """Whether a run's folder has an entry of this name."""
    return os.path.lexists(folder / name)


# Reading back


def run_of(folder: Path) -> dict:
    """The config.json in the folder of a run's target. Raises InputError where there is none as a run writes it."""
    if not has(folder, "config.json"):
        if several := sorted(folder.glob("*/config.json")):
            raise InputError(f"{folder} holds several targets: name the folder of one, such as {several[0].parent}")
        raise InputError(f"{folder} holds no run (no config.json): give the --out_dir of a finished experiments.run")
    check_links(folder)
    wrong = f"{folder / 'config.json'} is not as a run writes it: restore it, or repeat the run with --overwrite"
    config = read_json(sound(folder, "config.json"), wrong)
    inputs = config.get("inputs")
    if not isinstance(inputs, dict) or config.get("initial") not in list(inputs):
        raise InputError(wrong)
    if not all(isinstance(e, dict) and {str} == {type(e.get(k)) for k in ("file", "sha256")} for e in inputs.values()):
        raise InputError(wrong)
    if not isinstance(config.get("targets"), list) or config.get("target") not in config["targets"]:
        raise InputError(wrong)
    if not all(isinstance(config.get(name), dict) for name in ("settings", "chosen", "versions")):
        raise InputError(wrong)
    return config


def runs_in(run_dir: Path) -> list[Path]:
    """The folder itself, or those in it, that hold a run of one target. Raises InputError where there are none."""
    configs = [run_dir / "config.json", *sorted(run_dir.glob("*/config.json"))]
    if found := [config.parent for config in configs if os.path.lexists(config)]:
        return found
    raise InputError(f"{run_dir} holds no run (no config.json): give the --out_dir of a finished experiments.run")


def scores_of(folder: Path) -> dict:
    """The metrics.json in the folder of a run's target."""
    return read_json(sound(folder, "metrics.json"))


def fit_of(folder: Path, initial: MapLike | None = None) -> Fit:
    """The fit in the folder of a run's target; without its initial map only atoms can be moved."""
    path = folder / CHECKPOINT
    if path.is_symlink() or not path.is_dir():
        raise InputError(f"{path} is missing or is not a folder: copy the run's folder again, or repeat the run")
    return Fit.load(path, initial)


def map_of(folder: Path, name: str) -> Map:
    """A map in the folder of a run's target."""
    return read_map(sound(folder, name))


def terms_of(folder: Path) -> dict | None:
    """The run.json of an unfinished run; None where the folder holds none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / TERMS
    if not os.path.lexists(path):
        return None
    wrong = f"{path} is damaged: begin the run anew, with --noresume --overwrite"
    if path.is_symlink() or not path.is_file():
        raise InputError(wrong)
    terms = read_json(path, wrong)
    kinds = {"settings": dict, "versions": dict, "inputs": dict, "processes": int, "devices": int, "failed": list}
    if not all(isinstance(terms.get(name), kind) for name, kind in kinds.items()):
        raise InputError(wrong)
    return terms


def as_written(folder: Path) -> AbstractContextManager[None]:
    """Raise InputError, within the block, for records that lack an entry or have it in another form."""
    return readable(
        f"the records in {folder} are not as a run writes them ({{error}}): restore config.json and metrics.json, "
        "or repeat the run with --overwrite"
    )
