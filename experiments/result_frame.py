"""The frame of a run's result: the body that the flags keep still, and the target and its reference in its frame."""

from dataclasses import replace
from typing import Any

import gemmi
import numpy as np

from cryotrans_jax.density.align import Alignment
from cryotrans_jax.density.transform import IDENTITY, resampled
from cryotrans_jax.fit.frame import place_target
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.io.selections import only

from .case import Case, Original
from .settings import InputSettings


def add_still(case: Case, settings: InputSettings) -> None:
    """Add to the case what the settings let stay still, as `Options.still` has it.

    The targets of a case are aligned before the fit, so that the fit does not know whether their frames were one.
    """
    symmetric = case.symmetry is not None or case.repeated is not None
    if settings.still == "none":
        case.still = "none"
    elif settings.still == "auto":
        case.still = "largest" if case.alignments and settings.align != "none" and not symmetric else "auto"
    elif case.model is None:
        raise InputError(f"--still={settings.still} selects residues: give the model with --model, or auto, or none")
    elif symmetric:
        raise InputError(f"--still={settings.still} is given with --symmetry, about whose axes all is kept: give one")
    else:
        case.still = only(case.model, settings.still, "--still")


def in_result_frame(case: Case, number: int, fit: Fit) -> Case:
    """The case with a target and its reference in the frame of the result of its fit.

    The target is resampled once, from the map as it was before its alignment.

    Args:
        case: the case as it was fitted.
        number: of the target in the case.
        fit: of this target.
    """
    still = fit.flow().still
    if not still.present:
        return case
    alignments = [*(case.alignments or [Alignment()] * len(case.targets))]
    targets, references = [*case.targets], [*case.references]
    alignments[number] = found = place_target(alignments[number], fit)
    original = case.originals[number] if case.originals else Original(targets[number])
    targets[number] = resampled(original.map, case.initial, found.transform)
    reference = references[number] if references else None
    if isinstance(reference, gemmi.Structure):
        references[number] = still.end.move(reference)
    elif isinstance(reference, Map):
        references[number] = resampled(original.reference or reference, case.initial, found.transform)
    return replace(case, alignments=alignments, targets=targets, references=references)


def frame_scores(fit: Fit) -> dict[str, str | float]:
    """The frame of a fit's result in words, and the motion (degrees, Å) of what stays still in it, for metrics.json."""
    still = fit.flow().still
    if not still.present:
        return {"result_frame": still.text}
    pose = still.poses([1.0])[0]
    return {
        "result_frame": f"that in which {still.text}",
        "still_rotation": pose.transform.angle,
        "still_translation": float(np.linalg.norm(pose.shift)),
    }


def frame_record(fit: Fit) -> dict[str, Any]:
    """Record of the frame of a fit's result, for config.json."""
    still = fit.flow().still
    return {
        "result_frame": {
            "is": frame_scores(fit)["result_frame"],
            "transform": (still.end if still.present else IDENTITY).matrix.tolist(),
            "transform_is": "4 x 4 matrix from the frame of the alignment to that of the result at the end, Å",
        }
    }
