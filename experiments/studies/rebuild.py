"""Prepare the building and the refining of a model in a generated map, and score what Phenix has made of it.

python -m experiments.studies.rebuild --run_dir=DIR --reference=B.cif                      files and commands for Phenix
python -m experiments.studies.rebuild --run_dir=DIR --reference=B.cif --rebuilt=built.cif  scores of the built model
python -m experiments.studies.rebuild --run_dir=DIR --reference=B.cif --refined=fine.cif   scores of the refined model

The first command writes the folder DIR/rebuild: the sequence, the reference in the initial map's frame, build.sh, which
builds a model (map_to_model, then chain_comparison), and refine.sh, which refines the reference into the generated map
(real_space_refine). The paper's figures for real systems are against models that were refined in this way. Where Phenix
is on the path, the refinement is run and scored as well. Phenix is not part of this project, and scoring does not need
it. The scores of a built model count CA atoms within 3 Å; Phenix checks whether the right residue was built there.
"""

import shutil
import subprocess
from pathlib import Path

from absl import flags

from .. import flags as shared
from .. import paths, ranges
from ..main import run

FLAGS = flags.FLAGS
PHENIX = "phenix.real_space_refine"
BUILD = """#!/bin/sh
# Builds a model into the generated map and compares it with the reference; needs Phenix (https://phenix-online.org).
set -e
cd "$(dirname "$0")"
phenix.map_to_model ../generated.mrc seq_file=sequence.fasta resolution={resolution:g} pdb_out=rebuilt.pdb
phenix.chain_comparison reference.pdb rebuilt.pdb
phenix.map_model_cc ../generated.mrc rebuilt.pdb resolution={resolution:g}
"""
REFINE = """#!/bin/sh
# Refines the reference into the generated map; needs Phenix (https://phenix-online.org), which names the result itself.
set -e
cd "$(dirname "$0")"
mkdir -p refined
cd refined
phenix.real_space_refine ../reference.pdb ../../generated.mrc resolution={resolution:g}
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
    paths.define_path("refined", None, "MODEL: the reference, refined into the run's generated map, to score.")
    ranges.number("within", 3.0, "Å: largest distance at which two CA atoms correspond.", ranges.DISTANCE)
    shared.define_all_models()
    flags.DEFINE_bool("overwrite", False, "Replace the files in the folder.")


def main() -> None:
    """Write the folder and refine, or print and write the scores."""
    from .. import finished, run_folder

    run_dir = Path(FLAGS.run_dir)
    folder = run_dir / "rebuild"
    saved = finished.read_config(run_dir)
    finished.verify(run_dir, "generated.mrc")
    reference = load_reference(saved)
    resolution = saved["resolutions"]["initial"] or 3.0
    check_free(folder)
    with run_folder.claimed(run_dir, inside=["rebuild"]), run_folder.claimed(folder, kinds=["rebuild"]):
        if FLAGS.rebuilt:
            score_rebuilt(reference, folder)
        elif FLAGS.refined:
            score_refined(Path(FLAGS.refined), reference, resolution, run_dir)
        else:
            write_files(reference, resolution, folder)
            refine(reference, resolution, run_dir)


def check_free(folder: Path) -> None:
    """Raise InputError where what is to be written is there already, without --overwrite."""
    from cryotrans_jax.io.files import InputError

    scores = "coverage.json" if FLAGS.rebuilt else "refined.json" if FLAGS.refined else None
    if FLAGS.overwrite or not (folder / (scores or "build.sh")).exists():
        return
    if scores:
        raise InputError(f"{folder} holds scores already: add --overwrite to replace them")
    raise InputError(f"{folder} is there already: add --overwrite to replace its files")


def write_files(reference, resolution: float, folder: Path) -> None:
    """Write what Phenix needs: the reference, its sequence, and the commands."""
    from cryotrans_jax.io import atoms
    from cryotrans_jax.io.files import write_file

    from .. import run_folder

    with run_folder.replacing(folder, "rebuild"):
        atoms.write_model(folder / "reference.pdb", reference)
        write_file(folder / "sequence.fasta", fasta(reference))
        write_file(folder / "build.sh", BUILD.format(resolution=resolution))
        write_file(folder / "refine.sh", REFINE.format(resolution=resolution))
    print(f"sh {folder / 'build.sh'} builds a model with Phenix; score it with --rebuilt={folder / 'rebuilt.pdb'}")


def refine(reference, resolution: float, run_dir: Path) -> None:
    """Refine the reference into the generated map and score it, where Phenix is on the path; else say what to do.

    Raises:
        InputError: Phenix fails, or writes no model.
    """
    from cryotrans_jax.io.files import InputError

    folder = run_dir / "rebuild"
    script, log = folder / "refine.sh", folder / "refine.log"
    if shutil.which(PHENIX) is None:
        print(
            f"Phenix is not on the path, so the reference is not refined: run sh {script} where it is, and score the "
            "model that it writes with --refined"
        )
        return
    earlier = refined_models(folder)
    print(f"refining with Phenix, which takes long: see {log}", flush=True)
    with log.open("w") as output:
        status = subprocess.run(["sh", script], stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    models = refined_models(folder)
    if status or models == earlier:
        raise InputError(f"{PHENIX} ended with status {status} and wrote no model, or did not finish it: see {log}")
    score_refined(max(models)[1], reference, resolution, run_dir)


def refined_models(folder: Path) -> list[tuple[int, Path]]:
    """Models that Phenix has refined, each with the time (ns) when it was written."""
    found = sorted((folder / "refined").glob("*_real_space_refined*"))
    return [(path.stat().st_mtime_ns, path) for path in found if path.suffix in (".pdb", ".cif")]


def score_refined(path: Path, reference, resolution: float, run_dir: Path) -> None:
    """Print and write the FSC of the generated map with the refined model, and how far this is from the reference."""
    from cryotrans_jax.io import atoms
    from cryotrans_jax.scores import metrics

    from .. import finished, run_folder

    refined, generated = atoms.read_model(path, FLAGS.all_models), finished.load_map(run_dir, "generated.mrc")
    curve = metrics.model_map_fsc(generated, refined, resolution)
    found = {"refined": str(path), "fsc": metrics.resolution_at(*curve, 0.5)}
    found |= {"rmsd": metrics.ca_displacement(refined, reference)["rmsd"]}
    run_folder.write_json(run_dir / "rebuild" / "refined.json", found)
    print(f"FSC = 0.5 of the generated map with the refined model: {found['fsc']:.2f} Å")
    print(f"CA RMSD of the refined model from the reference: {found['rmsd']:.2f} Å (below 3 Å in the paper)")


def score_rebuilt(reference, folder: Path) -> None:
    """Print and write how much of the reference's backbone the built model covers."""
    from cryotrans_jax.io import atoms
    from cryotrans_jax.scores import metrics

    from .. import run_folder

    found = metrics.coverage(atoms.read_model(FLAGS.rebuilt, FLAGS.all_models), reference, FLAGS.within)
    run_folder.write_json(folder / "coverage.json", {"rebuilt": FLAGS.rebuilt, "within": FLAGS.within} | found)
    print(f"of the reference's CA atoms {100 * found['coverage']:.1f} % are found within {FLAGS.within:g} Å")
    print(f"of the rebuilt ones {100 * found['precision']:.1f} % are found; these are {found['rmsd']:.2f} Å rms off")
    print(f"of neighbours that are both found {100 * found['order']:.1f} % are neighbours in the rebuilt chain")


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
    """Sequences of a model's chains, of proteins and nucleic acids, in FASTA format."""
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
