"""Results in the formats of other programs: FSC curves as CSV and EMDB XML, and scripts for ChimeraX."""

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from cryotrans_jax.density.transform import IDENTITY, Transform
from cryotrans_jax.io.files import InputError, whole_file, write_file
from cryotrans_jax.plots import PALETTE, Curve, Drawing, png, svg

UNSAFE = re.compile(r"[\x00-\x1f\"*?\[\];]|^~")  # characters that ChimeraX does not take as part of a file name
PLAIN = re.compile(r"\w+:\d+(-\d+)?")  # selections that mean the same to ChimeraX
FRAME = re.compile(r"frame_\d+\.mrc")
TRAJECTORY = """\
# {{n}}: the model in every frame, hidden, with a slider
open {name} coordsets true
cartoon #{{n}}
hide #!{{n}} models"""
COLOURED = """\
# {{n}}: the carried model, hidden, coloured by {what} (its B-factors)
open {name}
cartoon #{{n}}
color bfactor #{{n}} palette {{{palette}}}
hide #!{{n}} models"""
FIRST = "# The morph of this folder in ChimeraX: open this file in a new session."
SHOWN = {  # the frames and files of a folder in the order in which they are opened, and the commands for number n
    "frames": """\
# {n}: the frames as a series, with a slider
open {frames}
volume #{n} style surface level {initial:.6g} step 1 color #b8c4d0""",
    "generated.mrc": """\
# {n}: the generated map
open generated.mrc
volume #{n} style surface level {initial:.6g} step 1""",
    "displacement.mrc": """\
# {n}: displacement of the density (Å), by which the generated map is coloured
open displacement.mrc
color sample #{before} map #{n} palette {palette}
hide #!{n} models""",
    "unexplained.mrc": """\
# {n}: target minus generated map, hidden: blue where the target has more density, red where less
open unexplained.mrc
volume #{n} style surface level {target:.6g} level -{target:.6g} step 1 color #2166ac color #b2182b
hide #!{n} models""",
    "displacement.cif": COLOURED.format(name="displacement.cif", what="displacement", palette="palette"),
    "trajectory.pdb": TRAJECTORY.format(name="trajectory.pdb"),
    "trajectory.cif": TRAJECTORY.format(name="trajectory.cif"),
    "error.mrc": """\
# {n}: predicted error (Å), hidden. To colour the generated map by it:
# color sample #2 map #{n} palette {errors} key true
open error.mrc
hide #!{n} models""",
    "generated.cif": COLOURED.format(name="generated.cif", what="predicted error", palette="errors"),
}
ERRORS = "0.5,#2166ac:1,#67a9cf:2,#f7e08a:3,#ef8a62:5,#b2182b"  # palette of predicted errors (Å): red is wrong
LAST = """\
# Shown at first are the generated map and the target. For the series: show #!1 models, and hide #!2 models.
hide #!1 models
lighting soft
view"""
RECORD = """\
# Records the morph and back as movie.mp4, in this folder: open it in ChimeraX. It takes a minute or two.
open view.cxc
show #!1 models
hide #!2 models
movie record size 1080,1080 supersample 3"""
REST, MOMENT = 20, 3  # pictures for which the ends are recorded, and the frames between
KEY = """\
# The colour key of the displacement: last, as ChimeraX numbers it among the models
color sample #{before} map #{n} palette {palette} key true"""


def write_fsc(folder: Path, curves: dict[str, Curve]) -> None:
    """Write fsc.csv with all curves, and those of the generated map in the EMDB's format.

    Args:
        folder: where to write.
        curves: by name, <target or reference>_<before or after>, all at the same frequencies.
    """
    with whole_file(folder / "fsc.csv") as temporary, temporary.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["frequency", "resolution", *curves])
        frequency = next(iter(curves.values()))[0]
        for k, value in enumerate(frequency):
            resolution = f"{1 / value:.6g}" if value else ""
            rows.writerow([f"{value:.8g}", resolution, *(f"{float(c[k]):.6g}" for _, c in curves.values())])
    for against, name in (("target", "fsc.xml"), ("reference", "fsc_reference.xml")):
        if f"{against}_after" in curves:
            write_file(folder / name, fsc_xml(curves[f"{against}_after"], f"generated map against the {against}"))


def write_drawing(folder: Path, name: str, drawing: Drawing) -> str:
    """Write a figure as name.svg and name.png; return the SVG element."""
    text = svg(drawing)
    write_file(folder / f"{name}.svg", text)
    write_file(folder / f"{name}.png", png(drawing))
    return text


def read_fsc(path: Path) -> dict[str, Curve]:
    """Read the curves in fsc.csv; raise InputError where there are none."""
    try:
        with path.open(newline="") as file:
            head, *rows = csv.reader(file)
        table = np.array([[float(cell or "inf") for cell in row] for row in rows])
        return {name: (table[:, 0], table[:, k]) for k, name in enumerate(head) if k > 1}
    except (ValueError, IndexError, csv.Error) as error:
        raise InputError(f"{path} holds no curves ({error}): remove it, and they are computed anew") from error


def fsc_xml(curve: Curve, title: str) -> str:
    """A Fourier shell correlation in the XML format of EMDB and PDBe."""
    root = ElementTree.Element("fsc", title=title, xaxis="Resolution (A-1)", yaxis="Correlation Coefficient")
    for x, y in zip(*curve, strict=True):
        point = ElementTree.SubElement(root, "coordinate")
        ElementTree.SubElement(point, "x").text = f"{x:.6f}"
        ElementTree.SubElement(point, "y").text = f"{y:.6f}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


class Body(NamedTuple):
    """A rigid body's colour, and selections of its residues (A:12-40)."""

    colour: str
    residues: Sequence[str]


class Target(NamedTuple):
    """A target map as a run used it.

    Attributes:
        file: the map's file.
        pose: transform that superposes it on the initial map.
        voxel_size: given instead of the file's own (Å, one number or three); None if not given.
        negated: whether the run negated it.
    """

    file: Path
    pose: Transform = IDENTITY
    voxel_size: list[float] | None = None
    negated: bool = False


def chimerax_script(
    folder: Path, levels: dict[str, float], top: float, target: Target | None, bodies: Sequence[Body] = ()
) -> str:
    """The text of view.cxc: commands that show a run's folder in ChimeraX, which runs them in that folder.

    The target is opened last, so that all else is shown if its file is gone and ChimeraX stops there. Only the colour
    key follows: ChimeraX gives it the next number of a model.

    Args:
        folder: of the run, with its results.
        levels: display contours of the "initial" and the "target" map.
        top: displacement at the end of the colour key (Å).
        target: the target map; None leaves it out.
        bodies: rigid bodies of the models.
    """
    made = sorted(path.name for path in folder.iterdir())
    frames = [name for name in made if FRAME.fullmatch(name)]
    values = {
        "errors": ERRORS,
        "frames": " ".join(frames) + " vseries true" * (len(frames) > 1),
        "palette": ":".join(f"{top * k / (len(PALETTE) - 1):g},{colour}" for k, colour in enumerate(PALETTE)),
        **levels,
    }
    shown = opened(made)
    texts = [SHOWN[name].format(n=n, before=n - 1, **values) for n, name in enumerate(shown, 1)]
    models = [n for n, name in enumerate(shown, 1) if name.endswith((".cif", ".pdb"))]
    lines = [FIRST, *texts, *body_colours(bodies, models), LAST]
    if target is not None:
        lines += target_map(folder, target, levels["target"], len(shown) + 1)
    if "displacement.mrc" in shown:
        before = shown.index("displacement.mrc")
        lines.append(KEY.format(n=before + 1, before=before, **values))
    return "\n".join(lines) + "\n"


def body_colours(bodies: Sequence[Body], models: Sequence[int]) -> list[str]:
    """Commands, as comments, that colour models of these numbers by rigid bodies."""
    if not models:
        return []
    which = ",".join(map(str, models))
    commands = [
        f"# color #{which}/{chain}:{numbers} {body.colour}"
        for body in bodies
        for chain, _, numbers in (each.partition(":") for each in body.residues if PLAIN.fullmatch(each))
    ]
    return ["# To colour the models by rigid bodies, run:", *commands] if commands else []


def recording_script(folder: Path) -> str:
    """The text of movie.cxc: commands that record the morph in ChimeraX; empty for a folder of fewer than two frames.

    Args:
        folder: of the run, with its results and view.cxc.
    """
    made = sorted(path.name for path in folder.iterdir())
    frames = [name for name in made if FRAME.fullmatch(name)]
    if len(frames) < 2:
        return ""
    series, model = 1, next((n for n, name in enumerate(opened(made), 1) if name.startswith("trajectory.")), None)
    lines = [RECORD, *([f"show #!{model} models"] if model else [])]
    for number in there_and_back(len(frames)):
        lines.append(f"vseries play #{series} jumpTo {number}")
        lines += [f"coordset #{model} {number + 1}"] if model else []
        lines.append(f"wait {REST if number in (0, len(frames) - 1) else MOMENT}")
    return "\n".join([*lines, "movie encode movie.mp4 framerate 25"]) + "\n"


def there_and_back(count: int) -> list[int]:
    """Numbers of the pictures of a film that plays forward and backward, in the order in which they are shown."""
    return [*range(count), *range(count - 2, 0, -1)]


def opened(made: Sequence[str]) -> list[str]:
    """What view.cxc opens of a folder's files but for the target, in order; the frames are one series."""
    if "error.mrc" not in made:  # then the model's B-factors are its own
        made = [name for name in made if name != "generated.cif"]
    return [name for name in SHOWN if name in ("frames", "generated.mrc", *made)]


def target_number(with_model: bool, with_error: bool) -> int:
    """Number of the target in view.cxc.

    Before it are four maps; with a model the model and its trajectory; with predicted errors their map and, with a
    model, the model coloured by them.
    """
    return 5 + 2 * with_model + with_error * (1 + with_model)


def target_map(folder: Path, target: Target, level: float, number: int) -> list[str]:
    """Commands that open the target, by its path relative to the folder, in the run's pose."""
    if not target.file.is_file():
        return ["# The target map is left out: its file is not where the run read it."]
    if target.negated:
        return ["# The target map is left out: its contrast is inverted in its file."]
    path = from_folder(target.file, folder)
    if UNSAFE.search(path):
        return ["# The target map is left out: its path has characters with a special meaning in ChimeraX."]
    size = ",".join(f"{edge:g}" for edge in target.voxel_size or ())
    return [
        f"# {number}: the target map, transparent",
        f'open "{path}"',
        *([f"volume #{number} voxelSize {size}"] if size else []),
        f"volume #{number} style surface level {level:.6g} step 1 color #5b7fa680",
        *([target.pose.chimerax(number)] if target.pose is not IDENTITY else []),
    ]


def from_folder(path: Path, folder: Path) -> str:
    """The path relative to the folder; absolute where that is impossible, as between drives."""
    try:
        relative = os.path.relpath(path.resolve(), folder.resolve())
    except ValueError:
        return path.resolve().as_posix()
    return Path(relative).as_posix()
