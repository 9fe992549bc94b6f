"""More frames from a finished run, without training again.

python -m experiments.predict --run_dir=DIR --frames=51
"""

from pathlib import Path

from absl import flags

from . import flags as shared
from .main import run

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Nothing; the flags of this job are there."""
    with shared.group("Run"):
        flags.DEFINE_string("run_dir", None, "FOLDER: of the run whose fit is used. Must be given.", required=True)
        flags.DEFINE_string("initial", None, "MAP: the initial map, if it is no longer where the run read it.")
    shared.define_models()
    with shared.group("Output"):
        flags.DEFINE_string("out_dir", None, "FOLDER: for the frames; <run_dir>/predict_<frames> if not given.")
    shared.define_output()
    shared.define_machine()


def main() -> None:
    """Nothing; writes the frames."""
    from cryotrans_jax import atoms
    from cryotrans_jax.files import InputError, checksum
    from cryotrans_jax.morphing import Fit

    from . import results
    from .inputs import as_used, check_inside, masks_used

    run_dir = Path(FLAGS.run_dir)
    saved = results.run_of(run_dir)
    source = saved["inputs"][saved["initial"]]
    path = Path(FLAGS.initial or source["file"])
    if not path.is_file():
        raise InputError(f"the run's initial map {path} is gone: say where it is now with --initial")
    if checksum(path) != source["sha256"]:
        raise InputError(f"{path} is not the initial map that the run was fitted to (checksums differ): find that one")
    masks = masks_used(saved, saved["initial"], saved["settings"].get("mask"))
    initial = as_used(saved, path, "initial", masks)
    fit = Fit.load(run_dir / "checkpoint", initial)
    model = None
    if FLAGS.model:
        model = atoms.read_model(FLAGS.model)
        check_inside(model, initial.density.shape, initial.voxel_size, initial.origin, FLAGS.model)
    out_dir = Path(FLAGS.out_dir or run_dir / f"predict_{FLAGS.frames}")
    earlier = results.made_in(out_dir, results.FRAMES)
    if earlier and not FLAGS.overwrite:
        raise InputError(f"{out_dir} holds frames already: give another --out_dir, or --overwrite to replace them")
    for used in filter(None, (path, FLAGS.model and Path(FLAGS.model))):
        if used.resolve() in {made.resolve() for made in earlier}:
            raise InputError(f"the input {used} is one of the files to be replaced: give another --out_dir")
    out_dir.mkdir(parents=True, exist_ok=True)
    for old in earlier:
        old.unlink()
    results.write_frames(fit, FLAGS.frames, FLAGS.render, out_dir)
    if model is not None:
        results.write_models(fit, model, FLAGS, out_dir)
    print(f"{FLAGS.frames} frames are in {out_dir}")


def command() -> None:
    """Nothing; the job is done as the command line says."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
