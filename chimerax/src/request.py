"""What a morph is asked to do: its folder, and the arguments of the program."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

GIVEN = {  # flags that the command of ChimeraX gives itself, and what the user gives it instead
    "initial": "the first map",
    "target": 'the map after "to"',
    "out_dir": '"directory"',
    "model": '"model"',
    "initial_resolution": '"resolutions"',
    "target_resolution": '"resolutions"',
}


class Refused(Exception):
    """What was asked cannot be done; the message is a sentence for the user."""


@dataclass(frozen=True)
class Request:
    """A morph of one map into another.

    Attributes:
        initial: file of the sharp map.
        target: file of the map to reach.
        folder: of the run.
        model: file of a model of the initial state; None without one.
        resolutions: of the two maps (Å); None to let the program find them.
        options: further flags of the program, as in a terminal.
    """

    initial: Path
    target: Path
    folder: Path
    model: Path | None = None
    resolutions: tuple[float, float] | None = None
    options: str = ""

    def arguments(self) -> list[str]:
        """Arguments of `cryotrans run`.

        Raises:
            Refused: as `words` does.
        """
        found = [f"--initial={self.initial}", f"--target={listed(self.target)}", f"--out_dir={self.folder}"]
        if self.model is not None:
            found.append(f"--model={self.model}")
        if self.resolutions is not None:
            initial, target = self.resolutions
            found += [f"--initial_resolution={initial:g}", f"--target_resolution={target:g}"]
        return found + words(self.options)


def listed(path: Path) -> str:
    """A path as a list whose items are separated by commas: in double quotes where it has a comma or a quote."""
    text = str(path)
    return '"' + text.replace('"', '""') + '"' if set(',"') & set(text) else text


def words(options: str) -> list[str]:
    """Split further flags of the program, as a shell does.

    Raises:
        Refused: a quote is not closed, or a flag is one that the command of ChimeraX gives.
    """
    try:
        found = shlex.split(options)
    except ValueError as error:
        raise Refused(f"the options {options} cannot be read ({error}): write them as in a terminal") from error
    for name in map(flag, found):
        if name in GIVEN:
            raise Refused(f"--{name} is among the options: give {GIVEN[name]} instead")
    return found


def flag(word: str) -> str | None:
    """Name of the flag that a word of a command line sets; None where the word is a value."""
    return word.lstrip("-").split("=")[0] if word.startswith("-") else None


def default_folder(initial: str, target: str, base: Path) -> Path:
    """Folder of a run for which none is given: runs/<initial>_to_<target> in `base`, as the program names it.

    Args:
        initial: name of the initial map.
        target: name of the target map.
        base: the working directory.
    """
    stems = [re.sub(r"[^\w-]+", "_", Path(name).name.split(".")[0]).strip("_") or "map" for name in (initial, target)]
    return base / "runs" / "_to_".join(stems)


def check_folder(folder: Path, options: str) -> None:
    """Make sure that no finished run is in the folder, before maps are written there; an unfinished one is resumed.

    Args:
        folder: of the run; it need not exist.
        options: further flags of the program, among which --overwrite allows it.

    Raises:
        Refused: the folder has the results of another run, or as `words` does.
    """
    overwrite = "overwrite" in map(flag, words(options))
    if (folder / "SHA256SUMS").exists() and not (folder / "unfinished").exists() and not overwrite:
        raise Refused(f'{folder} holds another run: give another "directory", or options "--overwrite"')
