"""Evidence and true errors of the residues of a fit, as the validation records them and the calibration reads them."""

from typing import Any

import gemmi
import numpy as np

from cryotrans_jax.fit.errors import predict_errors, target_quality
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms

from ..case import Case
from .calibration import TRUE

DIGITS = 4  # significant ones that are kept


def of_residues(fit: Fit, case: Case, moved: gemmi.Structure, truth: gemmi.Structure) -> dict[str, Any]:
    """Measure the evidence of each residue's error, and the error, of a fit of one target.

    Args:
        fit: in the frame of the alignment.
        case: its maps, and the initial model.
        moved: the carried model.
        truth: the model of the target state, in the frame of the alignment.

    Returns:
        Lists by name: the true errors (Å), and the fields of `Evidence`.
    """
    target, resolution = case.targets[0], case.target_resolutions[0]
    quality = target_quality(fit, target, 0, resolution, case.halves[0] if case.halves else None)
    found = predict_errors(fit, target, quality)
    assert case.model is not None
    start, end, right = atoms.common_ca(case.model, moved, truth)
    nearest = found.nearest(start)
    values = {name: value[nearest] for name, value in found.evidence._asdict().items()}
    values |= {TRUE: np.linalg.norm(end - right, axis=-1)}
    return {name: rounded(value) for name, value in values.items()}


def rounded(values: np.ndarray) -> Any:
    """Numbers to as many digits as are kept."""
    return [rounded(value) for value in values] if values.ndim else float(f"{float(values):.{DIGITS}g}")
