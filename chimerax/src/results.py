"""Open a result beside the models that are already open: renumber its script, which counts models from 1."""

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from .request import Refused

SCRIPT = "view.cxc"
MODEL = re.compile(r"#(!?)(\d{1,3})(?![0-9A-Fa-f])")  # a number of a model; colours have six or eight digits


def script_of(folder: Path) -> Path:
    """The script that shows a result.

    Args:
        folder: of the run, or of one of its targets.

    Raises:
        Refused: there is none.
    """
    script = folder / SCRIPT
    if script.is_file():
        return script.absolute()
    inside = sorted(path.parent.name for path in folder.glob(f"*/{SCRIPT}"))
    if inside:
        raise Refused(f"{folder} holds results of several targets: give the folder of one, {' or '.join(inside)}")
    raise Refused(f"{folder} holds no {SCRIPT}: give the folder of a finished run")


def commands(script: Path) -> list[str]:
    """The commands of a script, without comments and empty lines."""
    lines = (line.strip() for line in script.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def renumbered(command: str, numbers: Mapping[int, int]) -> str:
    """A command of a script with other numbers of models.

    Args:
        command: as the script has it.
        numbers: the number of each model in ChimeraX, by that in the script.
    """
    return MODEL.sub(lambda found: f"#{found[1]}{numbers.get(int(found[2]), int(found[2]))}", command)


def show(folder: Path, run: Callable[[str], object], open_numbers: Callable[[], set[int]]) -> dict[int, int]:
    """Run the script of a result, in its folder, with the numbers that its models get.

    Args:
        folder: of the run, or of one of its targets.
        run: runs a command of ChimeraX.
        open_numbers: gives the numbers of all open models, not of those within others.

    Returns:
        The number of each model, by that in the script.

    Raises:
        Refused: there is no script, or one of its files could not be opened.
    """
    script = script_of(folder)
    numbers: dict[int, int] = {}
    with contextlib.chdir(script.parent):
        for command in commands(script):
            before = open_numbers()
            run(renumbered(command, numbers))
            if command.startswith("open "):
                new = open_numbers() - before
                if not new:
                    raise Refused(f"ChimeraX opened nothing for the command {command!r} of {script}")
                numbers[len(numbers) + 1] = min(new)
    return numbers
