"""Prepare the building of a model into a generated map, and score the backbone of the built model.

python -m experiments.studies.rebuild --run_dir=DIR --reference=B.cif                      files and commands for Phenix
python -m experiments.studies.rebuild --run_dir=DIR --reference=B.cif --rebuilt=built.cif  scores of the built model

The first command writes the folder DIR/rebuild: the sequence, the reference in the initial map's frame, and build.sh,
which calls Phenix (map_to_model, then chain_comparison). Phenix is not part of this project, and scoring does not need
it. The scores count CA atoms within 3 Å; Phenix checks whether the right residue was built there.
"""

from pathlib import Path

from absl import flags

from .. import flags as shared
from .. import paths, ranges
from ..main import run

FLAGS = flags.FLAGS
BUILD = """#!/bin/sh
# Builds a model into the generated map and compares it with the reference; needs Phenix (https://phenix-online.org).
set -e
cd "$(dirname "$0")"
phenix.map_to_model ../generated.mrc seq_file=sequence.fasta resolution={resolution:g} pdb_out=rebuilt.pdb
phenix.chain_comparison reference.pdb rebuilt.pdb
phenix.map_model_cc ../generated.mrc rebuilt.pdb resolution={resolution:g}
"""


def define_flags() -> None:
    """Define the flags of this command."""
    paths.define_path(
        "run_dir", None, "FOLDER: of the run; for several targets that of one. Must be given.", required=True
    )
    paths.define_path(
        "reference", None, "MODEL: of the target state, in the target map's frame; the run's if not given."
    )
    paths.define_path("rebuilt", None, "MODEL: built into the run's generated map, to score.")
    ranges.number("within", 3.0, "Å: largest distance at which two CA atoms correspond.", ranges.DISTANCE)
    shared.define_all_models()
    flags.DEFINE_bool("overwrite", False, "Replace the files in the folder.")


def main() -> None:
    """Write the folder, or print and write the scores."""
    from cryotrans_jax.io import atoms
    from cryotrans_jax.io.files import InputError, write_file
    from cryotrans_jax.scores import metrics

    from .. import finished, run_folder

    run_dir = Path(FLAGS.run_dir)
    folder = run_dir / "rebuild"
    saved = finished.read_config(run_dir)
    finished.verify(run_dir, "generated.mrc")
    reference = load_reference(saved)
    if FLAGS.rebuilt:
        if (folder / "coverage.json").exists() and not FLAGS.overwrite:
            raise InputError(f"{folder} holds scores already: add --overwrite to replace them")
        found = metrics.coverage(atoms.read_model(FLAGS.rebuilt, FLAGS.all_models), reference, FLAGS.within)
        with run_folder.claimed(run_dir, inside=["rebuild"]), run_folder.claimed(folder, kinds=["rebuild"]):
            run_folder.write_json(folder / "coverage.json", {"rebuilt": FLAGS.rebuilt, "within": FLAGS.within} | found)
        print(f"of the reference's CA atoms {100 * found['coverage']:.1f} % are found within {FLAGS.within:g} Å")
        print(
            f"of the rebuilt ones {100 * found['precision']:.1f} % are found; these are {found['rmsd']:.2f} Å rms off"
        )
        print(f"of neighbours that are both found {100 * found['order']:.1f} % are neighbours in the rebuilt chain")
        return
    if (folder / "build.sh").exists() and not FLAGS.overwrite:
        raise InputError(f"{folder} is there already: add --overwrite to replace its files")
    resolution = saved["resolutions"]["initial"] or 3.0
    with run_folder.claimed(run_dir, inside=["rebuild"]), run_folder.claimed(folder, kinds=["rebuild"]):
        with run_folder.replacing(folder, "rebuild"):
            atoms.write_model(folder / "reference.pdb", reference)
            write_file(folder / "sequence.fasta", fasta(reference))
            write_file(folder / "build.sh", BUILD.format(resolution=resolution))
    print(f"sh {folder / 'build.sh'} builds a model with Phenix; score it with --rebuilt={folder / 'rebuilt.pdb'}")


def load_reference(saved: dict):
    """Read the reference's model and move it into the initial map's frame, in which the generated map is.

    Raises:
        InputError: the run had no reference or several, and --reference is not given.
    """
    from cryotrans_jax.density.transform import Transform
    from cryotrans_jax.io import atoms
    from cryotrans_jax.io.files import InputError

    known = saved["settings"].get("reference") or []
    name = FLAGS.reference or (known[0] if len(known) == 1 else None)
    if name is None:
        raise InputError("the run had no reference, or several: name the target state's model with --reference")
    whole = FLAGS.all_models or saved["settings"].get("all_models", False)
    model = atoms.read_model(FLAGS.reference or saved["inputs"][name]["file"], whole)
    alignment = saved.get("alignment")
    return Transform.from_matrix(alignment["transform"]).move(model) if alignment else model


def fasta(model) -> str:
    """Sequences of a model's protein chains in FASTA format."""
    import gemmi

    model = model.clone()
    model.setup_entities()
    lines = []
    for chain in model[0]:
        names = [residue.name for residue in chain.get_polymer()]
        if letters := gemmi.one_letter_code(names):
            lines += [f">{chain.name}", letters]
    return "\n".join(lines) + "\n"


def command() -> None:
    """Run the command with the flags of the command line."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
