"""The rows of the table of scores, as a run prints it and its report shows it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

SCORES = (  # label, name in metrics.json, format  # label, name in metrics.json without _before and _after, format
    ("correlation with the target map", "correlation_with_target", "{:.3f}"),
    ("correlation at the target's resolution", "correlation_matched", "{:.3f}"),
    ("FSC = 0.5 against the target map [Å]", "fsc_with_target", "{:.2f}"),
    ("FSC = 0.5 against the reference [Å]", "fsc", "{:.2f}"),
    ("FSC = 0.143 against the reference [Å]", "fsc_0.143", "{:.2f}"),
    ("CA RMSD to the reference [Å]", "rmsd", "{:.2f}"),
    ("CA RMSD, displaced residues (> 3 Å) [Å]", "moved_rmsd", "{:.2f}"),
    ("TM-score to the reference", "tm_score", "{:.3f}"),
    ("Q-score of the model in its own map", "model_q_score", "{:.3f}"),
    ("Q-score of the reference model", "q_score", "{:.3f}"),
    ("fraction of CA-CA distances 3.8 ± 0.3 Å", "ca_bonds", "{:.3f}"),
    ("bond-length RMSD [Å]", "bond_rms", "{:.3f}"),
    ("chirality outliers", "mirrored", "{:.0f}"),
    ("clashes (heavy atoms within 2.2 Å)", "clashes", "{:.0f}"),
)
NEVER = 1.001  # times the Nyquist limit: a curve that is reported to fall there never fell


class Score(NamedTuple):
    """A row of the table of scores; empty where there is no value."""

    label: str
    initial: str
    generated: str


def score_rows(scores: Mapping[str, Any]) -> list[Score]:
    """The rows for which metrics.json has values."""
    return [
        Score(label, *(cell(scores, key, when, style) for when in ("before", "after")))
        for label, key, style in SCORES
        if f"{key}_after" in scores
    ]


def cell(scores: Mapping[str, Any], key: str, when: str, style: str) -> str:
    """A score in its format; where a Fourier shell correlation never falls, that says so."""
    value = scores[f"{key}_{when}"]
    if key.startswith("fsc") and value <= NEVER * scores.get("nyquist", 0.0):
        return f"≤ {value:.1f} (Nyquist)"
    return style.format(value)
