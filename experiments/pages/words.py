"""What the page says in words: its headline, how the target was aligned, and a paragraph for a paper's methods."""

from html import escape

import numpy as np

from cryotrans_jax.density.transform import Transform

from .cautions import chosen
from .scene import part_name

LEAST_TURN, LEAST_SHIFT = 1.0, 0.5  # degrees and Å: smaller motions are not worth a headline
PAPER = (
    "CryoTRANS: predicting high-resolution maps of rare conformations from self-supervised trajectories in cryo-EM, "
    "Communications Biology (2024)"
)
VERDICTS = {"found": "motion found", "partly found": "found, but not everywhere", "not found": "probably not found"}


def headline(scores: dict) -> str:
    """The motion in words and numbers: what moves most, how well it fits the target, and the verdict."""
    said = [motion(scores)]
    before, after = (scores.get(f"correlation_matched_{when}") for when in ("before", "after"))
    if before is not None and after is not None:
        said.append(f"correlation with the target {before:.2f} → {after:.2f}")
    if "verdict" in scores:
        said.append(VERDICTS[scores["verdict"]])
    text = "; ".join(filter(None, said)) or "The morph"
    return escape(text[0].upper() + text[1:])


def motion(scores: dict) -> str:
    """What moves most, and by how much; empty where the run does not say."""
    parts = list(enumerate(scores.get("parts", []), 1))
    moves = [(part["share_of_mass"] * part["shift"], part, number) for number, part in parts if is_moved(part)]
    if not moves:
        return "No rigid body moves by itself" if parts else ""
    _, part, number = max(moves, key=lambda each: each[0])
    name = part_name(part, number)
    return f"{name[0].upper()}{name[1:]} rotates by {part['turn']:.0f}° and shifts by {part['shift']:.0f} Å"


def is_moved(part: dict) -> bool:
    """Whether a body or part moves enough to be named."""
    return part["turn"] >= LEAST_TURN or part["shift"] >= LEAST_SHIFT


def alignment(config: dict) -> str:
    """A section on how the target was superposed; empty where it was not moved."""
    record = config.get("alignment")
    if not record:
        return ""
    found = Transform.from_matrix(record["transform"])
    rows = "".join(
        "<tr>" + "".join(f'<td class="number">{value:.4f}</td>' for value in row) + "</tr>" for row in found.matrix[:3]
    )
    text = (
        f"The target was rotated by {found.angle:.1f}° and translated by {np.linalg.norm(found.shift):.1f} Å onto the "
        "initial map. The matrix acts on positions in its file (Å); it is kept in transform.json."
    )
    return f"<section>\n<h2>Alignment</h2>\n<p>{escape(text)}</p>\n<table><tbody>{rows}</tbody></table>\n</section>"


def methods(config: dict, scores: dict) -> str:
    """A paragraph for the methods of a paper."""
    versions, settings, resolutions = config["versions"], config["settings"], config.get("resolutions", {})
    known = {"initial": resolutions.get("initial"), "target": None}
    targets = resolutions.get("targets") or []
    known["target"] = targets[0] if len(targets) == 1 else None
    given = {name: f" ({value:g} Å)" if value else "" for name, value in known.items()}
    blur = chosen(config, "blur_variance") or 0.0
    sentences = [
        f"The density map of the common conformation{given['initial']} was morphed into that of the rare "
        f"conformation{given['target']} with cryotrans-jax {versions.get('cryotrans-jax')} (an implementation of "
        f"CryoTRANS [1] in JAX {versions.get('jax')} with OTT-JAX {versions.get('ott-jax')}), recipe "
        f"“{settings['recipe']}”, seed {settings['seed']}.",
    ]
    if blur > 0:
        sentences.append(f"Maps were compared at the target's resolution (a Gaussian of {blur**0.5:.2f} Å).")
    if scores.get("parts"):
        sentences.append(f"{len(scores['parts'])} rigid bodies were found in the motion.")
    if settings.get("model"):
        sentences.append("The atomic model of the initial state was carried by the same flow.")
    before, after = (scores.get(f"correlation_matched_{when}") for when in ("before", "after"))
    if before is not None and after is not None:
        sentences.append(f"The correlation with the target at its resolution rose from {before:.3f} to {after:.3f}.")
    if "verdict" in scores:
        sentences.append(
            f"The predicted error of the carried density is {scores['predicted_error']:.1f} Å (median); 90 % of it is "
            f"expected within {scores['predicted_error_90']:.1f} Å."
        )
    return escape(" ".join([*sentences, f"[1] {PAPER}."]))
