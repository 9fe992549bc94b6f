"""Results in the formats of other programs: FSC curves as CSV and EMDB's XML, a ChimeraX script, a coloured model."""

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from cryotrans_jax.files import InputError, whole_file, write_file
from cryotrans_jax.plots import PALETTE, Curve

UNSAFE = re.compile(r"[\x00-\x1f\"*?\[\];]")  # what ChimeraX would not take as part of a file's name


def write_fsc(folder: Path, curves: dict[str, Curve]) -> None:
    """Nothing; the folder holds fsc.csv with all curves, and the generated map's alone as EMDB takes them.

    Names are <target or reference>_<before or after>; all have the same frequencies.
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


def read_fsc(path: Path) -> dict[str, Curve]:
    """The curves in an fsc.csv. Raises InputError where there are none."""
    try:
        with path.open(newline="") as file:
            head, *rows = csv.reader(file)
        table = np.array([[float(cell or "inf") for cell in row] for row in rows])
        return {name: (table[:, 0], table[:, k]) for k, name in enumerate(head) if k > 1}
    except (ValueError, IndexError, csv.Error) as error:
        raise InputError(f"{path} holds no curves ({error}): remove it, and they are computed anew") from error


def fsc_xml(curve: Curve, title: str) -> str:
    """A Fourier shell correlation in the XML in which EMDB and PDBe take and give it."""
    root = ElementTree.Element("fsc", title=title, xaxis="Resolution (A-1)", yaxis="Correlation Coefficient")
    for x, y in zip(*curve, strict=True):
        point = ElementTree.SubElement(root, "coordinate")
        ElementTree.SubElement(point, "x").text = f"{x:.6f}"
        ElementTree.SubElement(point, "y").text = f"{y:.6f}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def chimerax_script(
    frames: list[str],
    models: list[str],
    level: float,
    target: tuple[Path, float] | None,
    top: float,
    coloured_model: bool,
) -> str:
    """Commands that show a run's folder in ChimeraX, which runs them there.

    `frames` and `models` are names of files in their order; `level` is the initial map's contour level, `target` a
    map's file and level, and `top` the displacement in Å at the colours' end. Maps are numbered as they are opened.
    """
    palette = ":".join(f"{top * k / (len(PALETTE) - 1):g},{colour}" for k, colour in enumerate(PALETTE))
    lines = [
        "# Shows this folder's morph in ChimeraX: open this file in a new session.",
        "# 1: the frames as a series, with a slider; 2: the generated map, coloured by how far (Å) each part has come",
        f"open {' '.join(frames)}" + " vseries true" * (len(frames) > 1),
        f"volume #1 style surface level {level:.6g} step 1 color #b8c4d0",
        "open generated.mrc",
        "open displacement.mrc",
        f"volume #2 style surface level {level:.6g} step 1",
        f"color sample #2 map #3 palette {palette} key true",
        "hide #3 models",
    ]
    number = 4
    if target and UNSAFE.search(str(target[0])):
        lines.append("# the target map is left out: its name has characters that have a meaning in ChimeraX")
    elif target:
        lines += [
            f"# {number}: the target map, transparent",
            f'open "{target[0]}"',
            f"volume #{number} style surface level {target[1]:.6g} step 1 color #5b7fa680",
        ]
        number += 1
    if coloured_model:
        lines += [
            f"# {number}: the carried model, coloured by displacement (its B-factors)",
            "open displacement.cif",
            f"cartoon #{number}",
            f"color bfactor #{number} palette {palette}",
            f"hide #{number} models",
        ]
        number += 1
    if len(models) > 1:
        last = number + len(models) - 1
        lines += [
            f"# {number} to {last}: the model in every frame, with a slider",
            f"open {' '.join(models)}",
            f"mseries slider #{number}-{last}",
        ]
    lines += [
        "# at first the generated map and the target are shown; `show #1 models; hide #2 models` shows the series",
        "hide #1 models",
        "lighting soft",
        "view",
    ]
    return "\n".join(lines) + "\n"
