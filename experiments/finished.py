"""Read the folder of a finished run, each file checked against the run's checksums."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io.files import InputError, check_sum, input_errors, read_checksums, read_json
from cryotrans_jax.io.maps import Map, MapLike, read_map

from .run_folder import CHECKPOINT, check_links


def read_config(folder: Path) -> dict:
    """Read config.json in the folder of a run's target; raise InputError where it is missing or malformed."""
    if not has(folder, "config.json"):
        if several := sorted(folder.glob("*/config.json")):
            raise InputError(f"{folder} holds several targets: name the folder of one, such as {several[0].parent}")
        raise InputError(f"{folder} holds no run (no config.json): give the --out_dir of a finished experiments.run")
    check_links(folder)
    wrong = f"{folder / 'config.json'} is not as a run writes it: restore it, or repeat the run with --overwrite"
    config = read_json(verify(folder, "config.json"), wrong)
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
    """Folders of the run's targets: `run_dir` itself or folders in it; raise InputError where there are none."""
    configs = [run_dir / "config.json", *sorted(run_dir.glob("*/config.json"))]
    if found := [config.parent for config in configs if os.path.lexists(config)]:
        return found
    raise InputError(f"{run_dir} holds no run (no config.json): give the --out_dir of a finished experiments.run")


def read_scores(folder: Path) -> dict:
    """Read metrics.json in the folder of a run's target."""
    return read_json(verify(folder, "metrics.json"))


def load_fit(folder: Path, initial: MapLike | None = None) -> Fit:
    """Load the fit in the folder of a run's target; without its initial map it can carry only atoms."""
    path = folder / CHECKPOINT
    if path.is_symlink() or not path.is_dir():
        raise InputError(f"{path} is missing or is not a folder: copy the run's folder again, or repeat the run")
    return Fit.load(path, initial)


def load_map(folder: Path, name: str) -> Map:
    """Read a map in the folder of a run's target."""
    return read_map(verify(folder, name))


def checked_records(folder: Path) -> AbstractContextManager[None]:
    """Raise InputError, within the block, where records lack an entry or have it in another form."""
    return input_errors(
        f"the records in {folder} are not as a run writes them ({{error}}): restore config.json and metrics.json, "
        "or repeat the run with --overwrite"
    )


def verify(folder: Path, name: str) -> Path:
    """Path of a file in a run's folder; raise InputError where it is missing or not as the run wrote it."""
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
