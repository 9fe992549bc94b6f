"""How far a result is to be trusted: its predicted errors, the verdict on it, and their files."""

from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from jaxtyping import Bool

from cryotrans_jax.fit.errors import Errors, predict_errors, target_quality
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms, selections, structures
from cryotrans_jax.io.maps import Map, write_map
from cryotrans_jax.scores.confidence import FOUND, LOST, Verdict, VerdictRules, judge

from .case import Case


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
    quality = target_quality(fit, aligned.targets[number], number, case.target_resolutions[number], halves)
    return predict_errors(fit, case.targets[number], quality, generated)


def write(errors: Errors, model: gemmi.Structure | None, generated: Map, folder: Path) -> dict[str, Any]:
    """Write error.mrc; return the verdict and a summary of the errors, for metrics.json."""
    write_map(folder / "error.mrc", errors.map(generated))
    found = judge(errors.error, errors.mass)
    named = doubtful_residues(errors, found, model) if model is not None else []
    return {
        "verdict": found.kind,
        "verdict_text": in_words(found, named),
        "predicted_error": found.error,
        "predicted_error_90": found.reach,
        "expected_wrong": found.wrong,
        "doubtful": found.doubtful_share,
        "unsupported": float(np.average(~errors.supported, weights=errors.mass)),
        "doubtful_residues": named,
    }


def doubtful_residues(errors: Errors, found: Verdict, model: gemmi.Structure) -> list[str]:
    """Selections that name the model's residues most of whose atoms are doubtful."""
    own: Bool[np.ndarray, "atoms"] = found.doubtful[errors.nearest(atoms.positions(model))]
    counts = [len(residue) for residue in selections.residues(model)]
    share = np.add.reduceat(own.astype(float), selections.first_atoms(model)) / np.maximum(counts, 1)
    return selections.name_residues(model, share > 0.5)


def in_words(found: Verdict, named: list[str]) -> str:
    """The verdict as a sentence, with selections of the doubtful residues."""
    limit = VerdictRules().limit
    if found.kind == LOST:
        return (
            f"motion probably not found: about {100 * found.wrong:.0f} % of the molecule is expected to be more than "
            f"{limit:g} Å from its place. Do not interpret the result without a check"
        )
    expected = f"predicted error {found.error:.1f} Å (median), 90 % of the molecule within {found.reach:.1f} Å"
    if found.kind == FOUND:
        return f"motion found: {expected}"
    where = f" ({structures.shortlist(named)})" if named else ""
    return (
        f"motion found, but not everywhere: {expected}; {100 * found.doubtful_share:.0f} % is probably more than "
        f"{limit:g} Å from its place{where}"
    )
