"""The record of a run: settings, versions, inputs with their checksums, and what was chosen by rule."""

import platform
import sys
from importlib import metadata
from typing import Any

import jax

from cryotrans_jax.density.align import Agreement
from cryotrans_jax.fit.record import to_plain
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io.files import checksum

from .case import Case
from .exchange import target_number

PACKAGES = (
    "cryotrans-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "ott-jax",
    "gemmi",
    "mrcfile",
    "numpy",
    "scipy",
)


def alignment_record(case: Case, number: int, with_error: bool) -> dict:
    """Record of a target's superposition, for config.json and transform.json; empty if there was none.

    Args:
        case: the case in the frame of the result.
        number: of the target.
        with_error: whether errors are predicted.
    """
    if not case.alignments:
        return {}
    found = case.alignments[number]
    agreement = found.agreement
    return {
        "alignment": {"status": found.status, "moved": found.moved, "inside": found.inside}
        | (agreement._asdict() if agreement else dict.fromkeys(Agreement._fields))
        | {
            "transform": found.transform.matrix.tolist(),
            "transform_is": "4 x 4 matrix from the target's frame to the initial map's, Å",
            "chimerax": found.transform.chimerax(target_number(case.model is not None, with_error)),
            "rotation": found.transform.angle,
            "wrong_hand": agreement.wrong_hand if agreement and agreement.mirrored is not None else None,
        }
    }


def describe(fit: Fit, case: Case, settings: Any) -> dict:
    """Everything that decided a run, for config.json: settings, versions, checksums, what was chosen by rule."""
    report = {key: value for key, value in fit.report.items() if key != "origin"}
    return {
        "command": sys.argv,
        "settings": settings_of(settings),
        "preparation": to_plain(case.preparation),
        "recipe": to_plain(fit.config),
        "initial": next(iter(case.files)),
        "targets": case.target_names,
        **({"failed": case.failed} if case.failed else {}),
        "inputs": {
            n: {"file": str(p.resolve()), "sha256": case.sums.get(n) or checksum(p)} for n, p in case.files.items()
        },
        "resolutions": {"initial": case.initial_resolution, "targets": case.target_resolutions},
        "waypoints": [{"waypoint": waypoint.name, "time": waypoint.time} for waypoint in case.waypoints],
        "chosen": report,
        "contours": case.contours,
        "doubts": [doubt._asdict() for doubt in case.doubts],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "processes": jax.process_count(),
        "device": jax.local_devices()[0].device_kind,
    }


def settings_of(settings: Any) -> dict:
    """Values of the flags that this program defines, without those of libraries."""
    modules = settings.flags_by_module_dict()
    own = [name for name in modules if name.startswith(f"{__package__}.") or name in ("__main__", sys.argv[0])]
    return {flag.name: flag.value for name in own for flag in modules[name]}


def version(package: str) -> str:
    """Installed version of a package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
