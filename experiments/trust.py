"""How far a result is to be trusted: its predicted errors, the verdict on it, and their files."""

from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from jaxtyping import Bool

from cryotrans_jax.fit.errors import Errors, predict_errors, target_noise
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms, selections
from cryotrans_jax.io.maps import Map, write_map
from cryotrans_jax.scores.confidence import FOUND, LOST, ErrorModel, Verdict, VerdictRules, judge

from .case import Case

MOST_NAMED = 6  # runs of doubtful residues that a verdict names


def predict(fit: Fit, aligned: Case, case: Case, number: int, generated: Map) -> Errors:
    """Predict the errors of a fit of one target.

    Args:
        fit: the fit.
        aligned: the case in the frame of the alignment, in which its half-maps are.
        case: the same in the frame of the result.
        number: of the target in the case.
        generated: the generated map.
    """
    halves = aligned.halves[number] if aligned.halves else None
    noise = target_noise(fit, aligned.targets[number], 0, case.target_resolutions[number], halves)
    return predict_errors(fit, case.targets[number], noise, generated)


def write(errors: Errors, model: gemmi.Structure | None, generated: Map, folder: Path) -> dict[str, Any]:
    """Write error.mrc; return the verdict and a summary of the errors, for metrics.json."""
    write_map(folder / "error.mrc", errors.map(generated))
    found, known = judge(errors.error, errors.mass), ErrorModel()
    named = doubtful_residues(errors, found, model) if model is not None else []
    wide = float(np.quantile(errors.error, 0.9)) * known.within(0.9)
    return {
        "verdict": found.kind,
        "verdict_text": in_words(found, wide, named),
        "predicted_error": found.error,
        "predicted_error_90": wide,
        "expected_wrong": found.wrong,
        "doubtful": float(np.average(found.doubtful, weights=errors.mass)),
        "unsupported": float(np.average(~errors.supported, weights=errors.mass)),
        "doubtful_residues": named,
    }


def doubtful_residues(errors: Errors, found: Verdict, model: gemmi.Structure) -> list[str]:
    """Selections that name the model's residues most of whose atoms are doubtful."""
    own: Bool[np.ndarray, "atoms"] = found.doubtful[errors.nearest(atoms.positions(model))]
    counts = [len(residue) for residue in selections.residues(model)]
    share = np.add.reduceat(own.astype(float), np.cumsum([0, *counts[:-1]])) / np.maximum(counts, 1)
    return selections.name_residues(model, share > 0.5)


def in_words(found: Verdict, wide: float, named: list[str]) -> str:
    """The verdict as a sentence.

    Args:
        found: the verdict.
        wide: distance (Å) within which nearly all of the molecule is expected.
        named: selections of the doubtful residues.
    """
    limit = VerdictRules().limit
    if found.kind == LOST:
        return (
            f"motion not found: about {100 * found.wrong:.0f} % of the molecule is expected to be more than "
            f"{limit:g} Å from its place. Do not interpret the result"
        )
    expected = f"predicted error {found.error:.1f} Å (median)"
    if found.kind == FOUND:
        return f"motion found: {expected}, {wide:.1f} Å at most for nearly all of the molecule"
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    where = f" ({', '.join(named[:MOST_NAMED])}{more})" if named else ""
    return (
        f"motion found, but not everywhere: {expected}; {100 * np.mean(found.doubtful):.0f} % of the molecule is "
        f"probably more than {limit:g} Å from its place{where}"
    )
