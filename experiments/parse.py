"""Parse the flags whose values have several parts: waypoints, and the stages of the recipe paper."""

import re
from typing import Any

from cryotrans_jax.fit.recipes import Schedule
from cryotrans_jax.io.files import InputError

from . import paths, ranges

STAGE = re.compile(r"(?P<loss>w2|l2):(?P<steps>[1-9][0-9]*):(?P<rate>[0-9]*\.?[0-9]+(e-?[0-9]+)?)(:(?P<bin>[1248]))?")
WAYPOINT = re.compile(r"(?P<name>.+?)@(?P<time>[0-9]*\.?[0-9]+)(,|$)")


def parse_waypoints(given: list[str]) -> list[tuple[str, float]]:
    """Parse the values of --waypoint, such as a.mrc@0.3,b.mrc@0.6."""
    found = []
    for texts in given:
        while texts:
            if not (match := WAYPOINT.match(texts)):
                raise InputError(
                    f"--waypoint={texts} is not FILE@TIME: give a map and a time between 0 and 1, such as mid.mrc@0.5"
                )
            time = in_range(match["time"], ranges.TIME, f"--waypoint={texts}: the time")
            found.append((paths.expand(match["name"]), time))
            texts = texts[match.end() :]
    return found


def parse_schedule(given: list[str] | None, width: int | None, factor: float = 1.0) -> Schedule | None:
    """Parse the schedule of the recipe paper.

    Args:
        given: the stages, as the values of --schedule.
        factor: by which the numbers of steps will be multiplied.

    Returns:
        The schedule; None if neither stages nor a width are given.

    Raises:
        InputError: a stage is not of the form LOSS:STEPS:RATE[:BIN], or a number is out of range.
    """
    if not given and not width:
        return None
    stages = []
    for text in given or []:
        if not (match := STAGE.fullmatch(text)):
            raise InputError(
                f"--schedule={text} is not LOSS:STEPS:RATE or LOSS:STEPS:RATE:BIN: give stages such as w2:2000:1e-3, "
                "or with a bin of 1, 2, 4 or 8 w2:2000:1e-3:4"
            )
        steps = in_range(match["steps"], ranges.STAGE_STEPS, f"--schedule={text}: the number of steps", int)
        made = max(1, round(steps * factor))
        in_range(made, ranges.STAGE_STEPS, f"--schedule={text}: the number of steps times --steps,", int)
        rate = in_range(match["rate"], ranges.LEARNING_RATE, f"--schedule={text}: the learning rate")
        stages.append((match["loss"], steps, rate, *([int(match["bin"])] if match["bin"] else [])))
    return Schedule(tuple(stages), width or Schedule.width)


def in_range(given: str | float, allowed: ranges.Range, label: str, kind: type = float) -> Any:
    """Read a number that is only a part of a flag's value.

    Args:
        label: how the message names the number.
        kind: `float`, or `int` for whole numbers.
    """
    try:
        return allowed.number(given, kind)
    except ValueError as error:
        raise InputError(f"{label} {given} {error}") from None
