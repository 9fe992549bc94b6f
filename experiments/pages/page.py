"""The text of report.html: self-contained, fetches nothing, and escapes names that come from files."""

import base64
import hashlib
import json
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cryotrans_jax.io.structures import shortlist

from ..score_rows import score_rows
from . import contents, packing, words
from .cautions import Caution, chosen, target_index
from .scene import body_colour, part_name

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = "surface", "ribbon", "viewer", "controls", "slices", "curves", "page"  # of the page, in this order
MOST_NAMED = 4  # hinges of a body in its table; metrics.json has all
MARK = re.compile(r"\{\{(\w+)\}\}")
FSC_TEXT = (
    "The generated map against the unfiltered target: a blurred or noisy target lowers the curve as much as a poor "
    "prediction. Pale: the initial map, where the morph starts."
)

ERRORS_TEXT = (
    "Distance of the carried residue from its true place that 68 % and 90 % of residues with such evidence do not "
    "exceed, as measured on maps whose answer is known. The model's B-factors and error.mrc have the first of these."
)


def build(
    config: dict,
    scores: dict,
    found: list[Caution],
    drawings: dict[str, str],
    stills: list[tuple[float, bytes]],
    data: dict,
    made: list[str],
) -> str:
    """Build the page."""
    library = (ASSETS / "three.js").read_text()
    program = "".join((ASSETS / f"{name}.js").read_text() for name in SCRIPTS)
    serious = sum(caution.serious for caution in found)
    filled = {
        "title": escape(f"{Path(config['initial']).name} → {config['target']}"),
        "version": escape(str(config["versions"].get("cryotrans-jax"))),
        "script_hashes": f"{digest(library)} {digest(program)}",  # the page runs no other, whatever a name contains
        "style": (ASSETS / "page.css").read_text(),
        "library": library,
        "script": program,
        "headline": words.headline(scores),
        "facts": facts(config),
        "verdict": verdict(scores),
        "cautions": caution_list(found),
        "cautions_summary": f"{serious} warning{'s' * (serious > 1)}" if serious else "No warnings, some notes",
        "cautions_open": "" if "verdict" in scores else " open",
        "alignment": words.alignment(config),
        "methods": words.methods(config, scores),
        "scores": score_table(scores),
        "bodies": body_table(scores),
        "last_frame": str(len(data["film"]["frames"]) - 1),
        "lowest": f"{np.log2(packing.LOWEST):g}",
        "highest": f"{np.log2(packing.HIGHEST):g}",
        "stills": "".join(f'<img src="data:image/png;base64,{packing.encode(png)}" alt="the surface of the map at '
                          f't = {time:.2f} of the morph">' for time, png in stills),
        "errors": section("How far to trust each residue", ERRORS_TEXT, drawings.get("errors")),
        "slices": drawings["slices"],
        "slices_text": slices_text(config, data),
        "fsc": drawings.get("fsc", "<p>No curves, as the target map is missing.</p>"),
        "fsc_text": FSC_TEXT,
        "loss": drawings.get("loss", "<p>No curves, as there is no loss.csv.</p>"),
        "settings": settings(config),
        "files": contents.file_table(made),
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }  # fmt: skip
    return MARK.sub(lambda mark: filled[mark[1]], (ASSETS / "page.html").read_text())


def digest(script: str) -> str:
    """The hash by which the page's policy lets a script run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def facts(config: dict) -> str:
    """A line about the run."""
    settings_, given = config["settings"], config["chosen"]
    start = chosen(config, "start")
    parts = [
        f"recipe {settings_['recipe']}",
        f"seed {settings_['seed']}",
        f"{settings_['frames']} frames ({settings_['render'] or config['recipe']['render']})",
        f"{given['initial']['volume']:.0f} Å³ carried",
        f"start from {start}" if start else "",
        f"cryotrans-jax {config['versions'].get('cryotrans-jax')} on {config.get('device', 'an unknown device')}",
    ]
    return escape(" · ".join(filter(None, parts)))


def section(title: str, text: str, figure: str | None) -> str:
    """A section with a figure; empty where there is none."""
    if figure is None:
        return ""
    return f"<section>\n<h2>{escape(title)}</h2>\n<p>{escape(text)}</p>\n<figure>{figure}</figure>\n</section>"


def verdict(scores: dict) -> str:
    """The verdict on the result, empty where errors were not predicted."""
    if "verdict" not in scores:
        return ""
    text = scores["verdict_text"]
    return f'<p class="verdict {scores["verdict"].replace(" ", "-")}">{escape(text[:1].upper() + text[1:])}.</p>'


def caution_list(found: list[Caution]) -> str:
    """The cautions as a list, with the serious ones marked."""
    rows = [
        f"<li{' class=warn' if serious else ''}><strong>{escape(what)}</strong> {escape(advice)}</li>"
        for serious, what, advice in found
    ]
    return '<ul class="cautions">\n' + "\n".join(rows) + "\n</ul>"


def score_table(scores: dict) -> str:
    """Table of the scores of the initial and of the generated map, with the spread between seeds."""
    rows: list[tuple[str, str, str]] = [*score_rows(scores)]
    rows.append(("mass of the generated map / mass carried", "1", f"{scores['mass_kept']:.3f}"))
    if "seed_spread_median" in scores:
        spread = f"{scores['seed_spread_median']:.2f} / {scores['seed_spread_95']:.2f}"
        rows.append(("spread between seeds, median / 95th percentile [Å]", "", spread))
    head = '<tr><th></th><th class="number">initial map</th><th class="number">generated map</th></tr>'
    body = "".join(
        f'<tr><th>{escape(label)}</th><td class="number">{before}</td><td class="number">{after}</td></tr>'
        for label, before, after in rows
    )
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def body_table(scores: dict) -> str:
    """How the rigid bodies or parts move, and in which frame; empty where the run does not say."""
    frame, parts = scores.get("result_frame"), scores.get("parts", [])
    text = f"<p>The frame of the result is {escape(frame)}.</p>" if frame else ""
    if not parts:
        return text
    predicted = all("error" in part for part in parts)
    names = ["mass [%]", "rotation [°]", "translation [Å]", "RMS deviation from rigid [Å]"]
    names += ["predicted error [Å]"] * predicted
    head = "<th>rigid body or part</th>" + "".join(f'<th class="number">{name}</th>' for name in names)
    body = ""
    for number, part in enumerate(parts, 1):
        copies = f" ({part['copies']} copies)" if "copies" in part else ""
        turn = f"{part['turn']:.1f}" + (f" ± {part['turn_error']:.1f}" if predicted else "")
        shift = f"{part['shift']:.1f}" + (f" ± {part['error']:.1f}" if predicted else "")
        cells = [f"{100 * part['share_of_mass']:.0f}", turn, shift, f"{part['from_rigid']:.2f}"]
        cells += [f"{part['error']:.1f}"] if predicted else []
        row = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        spot = f'<i style="background:{body_colour(number)}"></i>'
        body += f"<tr><th>{spot}{escape(part_name(part, number))}{copies}</th>{row}</tr>"
        if hinges := part.get("hinges"):
            text_ = f"hinges: {escape(shortlist(hinges, MOST_NAMED))}"
            body += f'<tr class="more"><td colspan="{len(names) + 1}">{text_}</td></tr>'
    return f'{text}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def slices_text(config: dict, data: dict) -> str:
    """Caption of the slices."""
    if "difference" not in data["volumes"]:
        return "The target map is gone, or its file has changed: only the initial and the generated map are shown."
    blur = chosen(config, "blur_variance") or 0.0
    generated = "the generated map"
    if blur > 0:
        generated += f", blurred as the target is (a Gaussian of {blur**0.5:.1f} Å)"
    target = "the target" if blur >= 0 else f"the target, blurred to it (a Gaussian of {(-blur) ** 0.5:.1f} Å)"
    return (
        f"Initial: the part that is carried. Difference: {generated} and scaled to fit, minus {target}; red where it "
        "has too much density, blue where too little, on a scale of its own. They are cut through what moves."
    )


def settings(config: dict) -> str:
    """Tables of the levels that were chosen, the inputs, the settings and the versions."""
    place, seen = target_index(config), config.get("contours")
    thresholds = {"initial": config["chosen"]["initial"], "target": config["chosen"]["targets"][place]}
    picked = {
        f"threshold of the {name} map": f"{used['threshold']:.4g} ({used['threshold_chosen']}), encloses "
        f"{100 * used['share_of_mass']:.1f} % of the mass in {used['volume']:.0f} Å³"
        for name, used in thresholds.items()
    }
    for name, look in zip(thresholds, (seen[0], seen[1 + place]), strict=True) if seen else ():
        text = f"{look['contour']:.4g} ({look['contour_chosen']}), encloses {look['contour_volume']:.0f} Å³"
        picked[f"display contour of the {name} map"] = text
    inputs = {name: f"{entry['file']}  sha256 {entry['sha256']}" for name, entry in config["inputs"].items()}
    parts = [table(picked), f"<details><summary>Inputs</summary>{table(inputs)}</details>"]
    for title, values in (("Settings", config["settings"]), ("Versions", config["versions"])):
        parts.append(f"<details><summary>{title}</summary>{table(values)}</details>")
    command = " ".join(str(word) for word in config.get("command", []))
    return "\n".join([*parts, f"<details><summary>Command</summary><code>{escape(command)}</code></details>"])


def table(values: dict[str, Any]) -> str:
    """Table of names and values."""
    rows = []
    for name, value in values.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
        rows.append(f'<tr><th>{escape(str(name))}</th><td class="value">{escape(shown)}</td></tr>')
    return f"<table><tbody>{''.join(rows)}</tbody></table>"
