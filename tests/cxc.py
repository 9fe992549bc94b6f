"""Minimal interpreter of ChimeraX scripts, after its user guide: records the open models and their poses."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cryotrans_jax.io.maps import read_map, same_grid

MAP, MODEL, SERIES = "map", "model", "series"
NUMBER = r"-?\d+(\.\d+)?(e[-+]?\d+)?"
COLOUR = r"#([0-9a-f]{6}|[0-9a-f]{8})"
PALETTE = rf"{NUMBER},{COLOUR}(:{NUMBER},{COLOUR})+"
OPTIONS = {  # command: its options, with the pattern of their values
    "volume": {
        "style": "surface|mesh|image",
        "level": NUMBER,
        "step": r"\d+",
        "color": COLOUR,
        "voxelSize": rf"{NUMBER}(,{NUMBER},{NUMBER})?",
    },
    "color sample": {"map": r"#\d+", "palette": PALETTE, "key": "true|false"},
    "color bfactor": {"palette": PALETTE},
    "cartoon": {},
}


@dataclass
class Opened:
    """An open model: its kind, files, contour levels, colours and pose, and whether it is shown."""

    kind: str
    files: list[Path]
    levels: list[float] = field(default_factory=list)
    colours: list[str] = field(default_factory=list)
    pose: np.ndarray = field(default_factory=lambda: np.eye(4)[:3])
    shown: bool = True


def record(script: Path) -> tuple[dict[int, Opened], list[int], list[int]]:
    """Run a script that records a film.

    Returns:
        The open models by number, the members of the series from 0 that are shown one after the other, and the
        coordinate sets from 1 of a trajectory likewise.

    Raises:
        AssertionError: ChimeraX would stop, or do something else.
    """
    note, first, *lines = script.read_text().splitlines()
    assert note.startswith("#") and first == "open view.cxc"
    models, shown, sets, recording, waited = run(script.parent / "view.cxc"), list[int](), list[int](), False, 0
    for line in lines:
        if line.startswith(("show ", "hide ")):
            show(line, models)
        elif line.startswith("movie record "):
            assert re.fullmatch(r"movie record size \d+,\d+ supersample \d+", line) and not recording
            recording = True
        elif found := re.fullmatch(r"vseries play #(\d+) jumpTo (\d+)", line):
            assert models[int(found[1])].kind == SERIES and int(found[2]) < len(models[int(found[1])].files)
            shown.append(int(found[2]))
        elif found := re.fullmatch(r"coordset #(\d+) (\d+)", line):
            assert models[int(found[1])].kind == MODEL and int(found[2]) >= 1
            sets.append(int(found[2]))
        elif found := re.fullmatch(r"wait (\d+)", line):
            waited += int(found[1]) * recording
        else:
            assert re.fullmatch(r"movie encode \S+\.mp4 framerate \d+", line) and line == lines[-1] and recording, line
    assert waited >= len(shown)
    return models, shown, sets


def run(script: Path) -> dict[int, Opened]:
    """Run a script, and return the open models by number.

    The colour key gets the next number of a model, so that nothing may be opened after it.

    Raises:
        AssertionError: ChimeraX would stop, or do something else.
    """
    models: dict[int, Opened] = {}
    keyed = False
    for line in script.read_text().splitlines():
        if line.startswith("#"):
            assert ";" not in line
        elif line.startswith("open "):
            assert not keyed, line
            open_files(line, script.parent, models)
        elif line.startswith("view matrix "):
            place(line, models)
        elif line.startswith(("hide ", "show ")):
            show(line, models)
        elif line not in ("lighting soft", "view"):
            style(line, models)
            keyed = keyed or line.endswith(" key true")
    return models


def show(line: str, models: dict[int, Opened]) -> None:
    """Show or hide a model: of a series only its parent, not its maps."""
    found = re.fullmatch(r"(hide|show) #!(\d+) models", line)
    assert found, line
    models[int(found[2])].shown = found[1] == "show"


def open_files(line: str, folder: Path, models: dict[int, Opened]) -> None:
    """Open the files; ChimeraX runs a script in the script's folder, and numbers models in order."""
    assert not re.search(r"[*?\[\];~\x00-\x1f]", line), line
    words = shlex.split(line)[1:]
    option = words[-2] if words[-1] == "true" else None
    assert option in (None, "vseries", "coordsets")
    names = words[:-2] if option else words
    files = [folder / name for name in names]
    assert files and all(
        file.is_file() and not Path(name).is_absolute() for file, name in zip(files, names, strict=True)
    )
    maps = all(file.suffix == ".mrc" for file in files)
    if option == "vseries":
        first, *others = map(read_map, files)
        assert maps and others and not any(same_grid(first, other) for other in others)
    else:
        assert len(files) == 1
        assert option is None or files[0].suffix in (".pdb", ".cif")
    kind = SERIES if option == "vseries" else MAP if maps else MODEL
    models[max(models, default=0) + 1] = Opened(kind, files)


def place(line: str, models: dict[int, Opened]) -> None:
    """Set the pose of a model, given by rows, from its own frame to the scene's."""
    found = re.fullmatch(rf"view matrix models #(\d+)((,{NUMBER}){{12}})", line)
    assert found, line
    models[int(found[1])].pose = np.array(found[2].split(",")[1:], float).reshape(3, 4)


def style(line: str, models: dict[int, Opened]) -> None:
    """Check a command with a model and options, and record a map's levels and colours."""
    command = next(name for name in OPTIONS if line.startswith(f"{name} #"))
    number, *words = line.removeprefix(f"{command} #").split()
    model, pairs = models[int(number)], list(zip(words[::2], words[1::2], strict=True))
    for option, value in pairs:
        assert re.fullmatch(OPTIONS[command][option], value), line
    assert (model.kind == MODEL) == (command in ("cartoon", "color bfactor")), line
    if command == "volume" and "level" in dict(pairs):
        model.levels = [float(value) for option, value in pairs if option == "level"]
        model.colours = [value for option, value in pairs if option == "color"]
        assert len(model.colours) in (0, 1, len(model.levels)), line
    if command == "color sample":
        assert models[int(dict(pairs)["map"][1:])].kind == MAP
