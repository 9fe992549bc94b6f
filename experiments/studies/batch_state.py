"""What a batch knows of its pairs: how each is run, and whether its folder holds that run already.

Beside the folder NAME of a pair there are the output of its run, NAME.log, and what became of it, NAME.json; while it
is being morphed also NAME.claim, by which only one program at a time takes it.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from cryotrans_jax.io.files import InputError, checksum, read_json

from .. import finished, resume, run_folder
from .batch_list import FILES, Pair

LOG, RECORD, CLAIM = ".log", ".json", ".claim"
TABLES = ("batch.csv", "batch.md", "index.html")
WITHOUT = resume.FREE - {"frames", "render", "idealise", "frame", "still"} | {"data_dir"}  # change no result


@dataclass(frozen=True)
class Plan:
    """How the pairs of a batch are run.

    Attributes:
        out_dir: folder of the batch, which has a folder for each pair.
        options: flags of a run, with their values for all pairs.
        overwrite: whether runs of other inputs or settings may be replaced.
        at_once: number of pairs that are run at the same time.
    """

    out_dir: Path
    options: Mapping[str, flags.Flag]
    overwrite: bool = False
    at_once: int = 1


def beside(out_dir: Path, pair: Pair, ending: str) -> Path:
    """Path of a file beside the folder of a pair."""
    return out_dir / f"{pair.name}{ending}"


def command(pair: Pair, plan: Plan) -> list[str]:
    """The command that morphs a pair into its folder."""
    module = f"{(__package__ or '').rpartition('.')[0]}.run"
    replacing = ["--overwrite"] if plan.overwrite else []
    place = f"--out_dir={plan.out_dir / pair.name}"
    return [sys.executable, "-m", module, *pair.arguments(plan.options), place, *replacing]


def environment() -> dict[str, str]:
    """The environment of a run, which starts in the list's folder but imports nothing from there."""
    given = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if __package__ == "experiments.studies":  # in a checkout, from which it is imported
        given.insert(0, str(Path(__file__).parents[2]))
    return os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(given)}


def is_done(pair: Pair, plan: Plan) -> bool:
    """Whether the folder of a pair holds a finished run of the same inputs and settings.

    Raises:
        InputError: it holds another run, or a damaged one, that may not be replaced.
    """
    folder = plan.out_dir / pair.name
    if not is_finished(folder):
        return False
    try:
        config = finished.read_config(folder)
        finished.read_scores(folder)
        if unlike := differences(config, pair, plan.options):
            raise InputError(
                f"{folder} holds a run of other inputs or settings, as {'; '.join(unlike[:3])}: give another "
                "--out_dir, or --overwrite to replace its results"
            )
    except InputError:
        if plan.overwrite:
            return False
        raise
    return True


def is_finished(folder: Path) -> bool:
    """Whether a folder holds the results of a run, and nothing of one that was stopped."""
    stopped = any(finished.has(folder, name) for name in (run_folder.UNFINISHED, ".earlier_run", ".restoring_run"))
    return finished.has(folder, "config.json") and finished.has(folder, "metrics.json") and not stopped


def differences(config: dict, pair: Pair, options: Mapping[str, flags.Flag]) -> list[str]:
    """Describe how a pair differs from a run by its config.json: in its files, by checksums, and in settings."""
    recorded, inputs, found, compared = config["settings"], config["inputs"], [], set()
    for name in FILES:
        value = recorded.get(name) or []
        named = value if isinstance(value, list) else [value]
        before = [inputs.get(each, {}).get("sha256") for each in named]
        compared.update(named)
        if before != ([checksum(pair.file(name))] if name in pair.files else []):
            found.append(f"the file for --{name} is another one")
    for name, entry in inputs.items():  # such as parts and waypoints
        if name not in compared and Path(entry["file"]).is_file() and checksum(entry["file"]) != entry["sha256"]:
            found.append(f"the file {name} has changed")
    now = json.loads(json.dumps(pair.settings(options), default=str))
    for name, value in now.items():
        if name not in WITHOUT and recorded.get(name) != value:
            was, is_ = resume.format_setting(recorded.get(name)), resume.format_setting(value)
            found.append(f"--{name} was {was} and is {is_}")
    return found


def read_record(out_dir: Path, pair: Pair) -> dict[str, Any]:
    """What became of a pair when it was last run; empty where it was not, or where its record is damaged."""
    try:
        return read_json(beside(out_dir, pair, RECORD))
    except (InputError, OSError):
        return {}


def record(out_dir: Path, pair: Pair, failed: str = "", seconds: float = 0.0, stopped: bool = False) -> None:
    """Write what became of a pair.

    Args:
        failed: why it is not done; empty where it is, or where it was stopped.
        seconds: that this run of it took; those of an earlier one that was stopped are added.
        stopped: whether it was stopped, and is to be resumed.
    """
    earlier = read_record(out_dir, pair)
    before = float(earlier.get("seconds", 0.0)) if earlier.get("stopped") or not seconds else 0.0
    content = {"seconds": round(before + seconds, 1), "stopped": stopped} | ({"failed": failed} if failed else {})
    run_folder.write_json(beside(out_dir, pair, RECORD), content)


def check_links(out_dir: Path, pairs: list[Pair]) -> None:
    """Raise InputError where a file that the batch writes is a link, or a folder."""
    names = [*TABLES, *(f"{pair.name}{ending}" for pair in pairs for ending in (LOG, RECORD, CLAIM))]
    for path in (out_dir / name for name in names):
        if path.is_symlink() or path.is_dir():
            raise InputError(f"{path} is a link or a folder, in the place of a file that is written: remove it")
