"""Start of a refinement of the carried model in other programs, with restraints by the predicted errors.

The commands are those of the programs' documentation; the programs themselves are not run in the tests.
"""

from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Float

from cryotrans_jax.io import atoms, selections
from cryotrans_jax.io.files import write_file

from .case import Case
from .exchange import UNSAFE, from_folder

START = "refine_start.cif"
GROUPS = 1.0, 2.0, 3.0  # Å: residues up to these predicted errors are restrained, the less the larger they are
KAPPA = 10.0  # strength of ISOLDE's restraints (its default) of residues in the first group
LIMIT = 2.0  # Å: residues up to this predicted error are held by Phenix
LOOSEST = 1.0  # Å: as far as Phenix's restraints pull


def write(model: gemmi.Structure, errors: Float[np.ndarray, "atoms"], case: Case, number: int, folder: Path) -> None:
    """Write refine_start.cif, isolde.cxc and phenix.eff.

    Args:
        model: the carried model in the frame of the result, with predicted errors as its B-factors.
        errors: the predicted errors of its atoms, Å.
        case: the case in the frame of the result.
        number: of the target in the case.
        folder: where to write.
    """
    if case.alignments:
        model = case.alignments[number].transform.inverse.move(model)
    atoms.write_model(folder / START, model)
    target = from_folder([*case.files.values()][1 + number], folder)
    each = of_residues(model, errors)
    write_file(folder / "isolde.cxc", isolde(model, each, target))
    write_file(folder / "phenix.eff", phenix(model, each, target, case.target_resolutions[number]))


def of_residues(model: gemmi.Structure, errors: Float[np.ndarray, "atoms"]) -> Float[np.ndarray, "residues"]:
    """Largest predicted error (Å) of the atoms of each residue."""
    return np.maximum.reduceat(errors, selections.first_atoms(model))


def isolde(model: gemmi.Structure, errors: Float[np.ndarray, "residues"], target: str) -> str:
    """Text of isolde.cxc: distances within residues of like predicted error are restrained to those of the model."""
    lines = [
        "# Start of a refinement in ISOLDE: open this file in a new session of ChimeraX.",
        "# Distances are restrained the less the larger the predicted errors are; above the last group not at all.",
        f"open {START}",
    ]
    if UNSAFE.search(target):
        lines += ["# The target map is left out: its path has characters with a special meaning in ChimeraX."]
        lines += ["isolde start"]
    else:
        lines += [f'open "{target}"', "isolde start", "clipper associate #2 toModel #1"]
    for least, most in zip((0.0, *GROUPS), GROUPS, strict=False):
        named = selections.name_residues(model, (errors > least) & (errors <= most))
        if named:
            chosen = "".join(f"/{name}" for name in named)
            lines += [f"# predicted error up to {most:g} Å"]
            lines += [f'isolde restrain distances "#1{chosen}" kappa {KAPPA / most**2:.3g}']
    return "\n".join(lines) + "\n"


def phenix(model: gemmi.Structure, errors: Float[np.ndarray, "residues"], target: str, resolution: float | None) -> str:
    """Text of phenix.eff: residues with a small predicted error are held where they are, as closely as that is."""
    held = errors <= LIMIT
    sigma = float(np.sqrt(np.mean(errors[held] ** 2))) if held.any() else LIMIT
    named = [name.partition(":") for name in selections.name_residues(model, held)]
    chosen = " or ".join(f"(chain '{chain}' and resseq {numbers.replace('-', ':')})" for chain, _, numbers in named)
    given = f" resolution={resolution:g}" if resolution else " resolution=RESOLUTION"
    return f"""\
# phenix.real_space_refine {START} "{target}"{given} phenix.eff
# Residues with a predicted error of at most {LIMIT:g} Å are held near their places; the others are free.
pdb_interpretation {{
  reference_coordinate_restraints {{
    enabled = {bool(named)}
    exclude_outliers = False
    selection = {chosen or "none"}
    sigma = {sigma:.2f}
    limit = {LOOSEST:.1f}
    top_out = True
  }}
}}
"""
