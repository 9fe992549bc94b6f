"""Repeat a run from its config.json: settings, inputs, and the whole schedule."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from cryotrans_jax.fit.options import Preparation
from cryotrans_jax.fit.record import from_plain
from cryotrans_jax.fit.stage import Config
from cryotrans_jax.io.files import InputError

from . import paths
from .parse import parse_waypoints

RECIPE = ("recipe", "steps", "bin", "schedule", "width")  # flags that a schedule has been made by
OF_THIS_RUN = (
    "config",
    "out_dir",
    "overwrite",
    "resume",
    "fetch",
    "distributed",
    "coordinator",
    "processes",
    "process",
)


class Repeated(NamedTuple):
    """What a config.json holds besides settings and inputs.

    Attributes:
        config: schedule, network, supervision and seed.
        preparation: the rules by which maps were prepared.
    """

    config: Config
    preparation: Preparation


def apply(values: flags.FlagValues, path: Path) -> Repeated:
    """Set the flags that a config.json records and the command line does not give.

    Inputs are looked up where the recorded run found them.

    Args:
        values: the flags of this run.
        path: the config.json of another.

    Raises:
        InputError: the file is no config.json of this version, or a flag of the command line would change its schedule.
    """
    record = read(path)
    if changed := [name for name in RECIPE if values[name].present]:
        raise InputError(
            f"--{changed[0]} is given with --config, which has the whole schedule: edit the stages in {path}, or leave "
            f"--{changed[0]} out"
        )
    files = {name: entry["file"] for name, entry in record["inputs"].items()}
    for name, value in record["settings"].items():
        if name not in OF_THIS_RUN and name in values and not values[name].present:
            set_flag(values, name, LOCATE[name](value, files) if name in LOCATE else value, path)
    config, preparation = (from_plain(record[name]) for name in ("recipe", "preparation"))
    if not isinstance(config, Config):
        raise InputError(f"the recipe in {path} is no configuration of a fit: take a config.json as a run wrote it")
    if not isinstance(preparation, Preparation):
        raise InputError(f"the preparation in {path} is none: take a config.json as a run wrote it")
    return Repeated(config, preparation)


def read(path: Path) -> dict[str, Any]:
    """The contents of a config.json."""
    try:
        record = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}): give the config.json of a run") from None
    for key in ("settings", "inputs", "preparation", "recipe"):
        if not isinstance(record, dict) or key not in record:
            raise InputError(f"{path} has no {key!r}: give the config.json of a run")
    return record


def located(value: Any, files: dict[str, str]) -> Any:
    """The names in a recorded value, each replaced by the file that it stood for."""
    if isinstance(value, list):
        return [located(each, files) for each in value]
    return files.get(value, value) if isinstance(value, str) else value


def located_parts(value: str, files: dict[str, str]) -> str:
    """The names of label map or masks in a recorded --parts, each replaced by its file."""
    return ",".join(files.get(name, name) for name in paths.split(value))


def located_waypoints(value: list[str], files: dict[str, str]) -> list[str]:
    """The names in a recorded --waypoint, each replaced by its file."""
    return [f"{files.get(name, name)}@{time:g}" for name, time in parse_waypoints(value)]


# The flags that name inputs, each with the function that replaces names by files
LOCATE: dict[str, Callable[[Any, dict[str, str]], Any]] = dict.fromkeys(
    ("initial", "target", "target_half1", "target_half2", "mask", "target_mask", "model", "reference", "symmetry"),
    located,
) | {"parts": located_parts, "waypoint": located_waypoints}


def set_flag(values: flags.FlagValues, name: str, value: Any, path: Path) -> None:
    """Set a flag to a recorded value, or raise InputError if it does not take it."""
    try:
        if value is None:
            values[name].value = None
        else:
            values[name].parse(value)
    except (flags.IllegalFlagValueError, ValueError, TypeError) as error:
        raise InputError(f"the setting {name!r} in {path} cannot be {value!r} ({error}): correct it there") from None
