"""What the files of a run's folder are: for its page, and as the folder's README.txt."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from urllib.parse import quote

from ..log import commands_as_typed

FILES = (  # pattern, description
    (r"report\.html", "the whole run in one page, for any browser"),
    (r"generated\.mrc", "the initial map carried to the target's conformation: the prediction"),
    (r"frame_\d+\.mrc", "the pseudo-trajectory, from the initial map to the generated one"),
    (r"generated\.(cif|pdb)", "the model carried to the target's conformation"),
    (r"model_\d+\.cif", "the model in every frame"),
    (r"trajectory\.(pdb|cif)", "these models as one movie for ChimeraX, PyMOL and VMD"),
    (r"geometry\.csv", "bonds, chirality and clashes of the model in every frame"),
    (r"view\.cxc", "open it in ChimeraX: frames, generated map coloured by displacement, target, models"),
    (r"displacement\.mrc", "displacement (Å) of the density at each voxel of the generated map, to colour surfaces by"),
    (r"displacement\.cif", "the carried model with each atom's displacement (Å) as its B-factor"),
    (r"displacement_[xyz]\.mrc", "the components (Å) of that displacement"),
    (r"displacement\.npz", "displacement vectors (Å) of points of mass, with bodies and predicted errors, for NumPy"),
    (
        r"unexplained\.mrc",
        "target less generated map, at the target's resolution: above zero the target has more",
    ),
    (r"error\.mrc", "predicted error (Å) of the density at each voxel of the generated map, to colour surfaces by"),
    (r"refine_start\.cif", "the carried model in the frame of the target's file, to be refined against it"),
    (r"isolde\.cxc|phenix\.eff", "starts its refinement in ISOLDE or Phenix, with restraints by the predicted errors"),
    (r"seed_spread\.mrc", "distance (Å) between the places to which fits from several seeds carry the same density"),
    (r"folded\.mrc", "1 where the flow folds, as the determinant of its Jacobian is not positive"),
    (r"morph\.(mp4|gif)", "the morph as a film, for a web page and for a talk"),
    (r"movie\.cxc", "records a film of the morph in ChimeraX"),
    (r"fsc\.csv", "the Fourier shell correlations"),
    (r"fsc(_reference)?\.xml", "the Fourier shell correlation of the generated map, in the EMDB's format"),
    (r"(fsc|loss|slices|errors)\.(svg|png)", "the figures of the report"),
    (r"metrics\.json", "the scores"),
    (r"config\.json", "every setting, version and input with its checksum"),
    (r"loss\.csv", "the loss at every step"),
    (r"parts\.mrc", "number of the rigid body or part of each voxel of the initial map"),
    (r"transform\.json", "how the target was superposed on the initial map"),
    (r"SHA256SUMS", "checksums of these files"),
    (r"README\.txt", "this list"),
    (r"checkpoint", "the fit itself, from which experiments.predict makes more frames"),
)

FEW = 3  # files of one kind that are named one by one
WIDTH = 100  # letters of a line of README.txt
FIRST = """\
The morph of {initial} into {target}, by cryotrans-jax {version}.

{verdict}
Begin with report.html, in any browser. In ChimeraX: open view.cxc, in a new session; movie.cxc records a film.
Maps, models and coordinates are in the frame of the result, in Å; how to use them and how to judge them is in the
documentation, under "Use".
"""


def link(name: str) -> str:
    """A relative link to a file of the folder."""
    return f'<a href="{quote(name)}"><code>{escape(name)}</code></a>'


def file_table(made: Sequence[str]) -> str:
    """Table of the run's files, each linked, and what they are; many of one kind are folded."""
    rows = []
    for names, what in listed(made):
        links = " ".join(map(link, names))
        if len(names) > FEW:
            links = f"<details><summary><code>{escape(shortened(names))}</code></summary>{links}</details>"
        rows.append(f'<tr><td>{links}</td><td class="value">{escape(what)}</td></tr>')
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def listed(made: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """The files of a folder, those of one kind together, with what they are."""
    for pattern, what in FILES:
        if names := sorted(name for name in made if re.fullmatch(pattern, name)):
            yield names, commands_as_typed(what)


def shortened(names: Sequence[str]) -> str:
    """Names of one kind, many of them by the first and the last."""
    return " ".join(names if len(names) <= FEW else [names[0], "…", names[-1]])


def folder_text(made: Sequence[str], config: dict, scores: dict) -> str:
    """The text of README.txt.

    Args:
        made: names of the folder's files.
        config: config.json.
        scores: metrics.json.
    """
    said = scores.get("verdict_text")
    verdict = textwrap.fill(f"Verdict: {said}.", WIDTH) + "\n" if said else ""
    version = config["versions"].get("cryotrans-jax")
    text = FIRST.format(initial=config["initial"], target=config["target"], version=version, verdict=verdict)
    for names, what in listed(made):
        text += "\n" + textwrap.fill(f"{shortened(names)}: {what}", WIDTH, subsequent_indent="    ")
    return text + "\n"
