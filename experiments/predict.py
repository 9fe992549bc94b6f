"""More frames from a finished run, without training again.

python -m experiments.predict --run_dir=DIR --frames=51
"""

from pathlib import Path

from absl import flags

from . import flags as shared
from . import log, paths
from .main import command_of

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the flags of this command."""
    with shared.group("Run"):
        paths.define_path("run_dir", None, "FOLDER: of the run whose fit is used. Must be given.", required=True)
        paths.define_path("initial", None, "MAP: the initial map, if it is no longer where the run read it.")
    shared.define_models()
    with shared.group("Output"):
        paths.define_path("out_dir", None, "FOLDER: for the frames; <run_dir>/predict_<frames> if not given.")
    shared.define_output()
    shared.define_machine()


def main() -> None:
    """Write the frames."""
    import contextlib

    from . import frames, run_folder, settings, vectors

    run_dir = Path(FLAGS.run_dir)
    out_dir = Path(FLAGS.out_dir or run_dir / f"predict_{FLAGS.frames}")
    with contextlib.ExitStack() as claims:
        if inside := entry_of_run(run_dir, out_dir):
            claims.enter_context(run_folder.claimed(run_dir, inside=[inside]))
        fit, initial = load_fit(run_dir)
        model = carried_model(fit)
        check_free(out_dir, initial)
        claims.enter_context(run_folder.claimed(out_dir))
        claims.enter_context(run_folder.replacing(out_dir, "frames"))
        for old in run_folder.result_files(out_dir, run_folder.FRAMES):
            old.unlink()
        places = [frames.Place(out_dir)]
        frames.write_frames(frames.with_render(fit, FLAGS.render), FLAGS.frames, places)
        if model is not None:
            output = settings.from_flags(settings.OutputSettings)
            frames.write_models(fit, model, output, places, errors=vectors.errors_of_atoms(run_dir, model))
    log.frames_written(FLAGS.frames, out_dir)


def entry_of_run(run_dir: Path, out_dir: Path) -> str:
    """Name of the entry of `run_dir` that is, or contains, `out_dir`; "" if that is not inside."""
    path = out_dir.absolute()
    around = zip((path, *path.parents), path.parents, strict=False)
    return next((child.name for child, parent in around if parent.resolve() == run_dir.resolve()), "")


def load_fit(run_dir: Path):
    """Load the run's fit and the path of its initial map; raise InputError where one is missing or changed."""
    from cryotrans_jax.io.files import InputError, checksum

    from . import finished
    from .masks import masks_used, read_as_used

    saved = finished.read_config(run_dir)
    source = saved["inputs"][saved["initial"]]
    path = Path(FLAGS.initial or source["file"])
    if not path.is_file():
        raise InputError(f"the run's initial map {path} is gone: say where it is now with --initial")
    if checksum(path) != source["sha256"]:
        raise InputError(f"{path} is not the initial map that the run was fitted to (checksums differ): find that one")
    with finished.checked_records(run_dir):
        masks = masks_used(saved, saved["initial"], saved["settings"].get("mask"))
        initial = read_as_used(saved, path, "initial", masks)
        return finished.load_fit(run_dir, initial), path


def carried_model(fit):
    """Read the model that the flags name, and check that it lies in the initial map; None if they name none."""
    from cryotrans_jax.io import atoms

    from .inputs import check_inside

    if not FLAGS.model:
        return None
    model, initial = atoms.read_model(FLAGS.model, FLAGS.all_models), fit.initial
    check_inside(model, initial.density.shape, initial.voxel_size, initial.origin, FLAGS.model)
    return model


def check_free(out_dir: Path, initial: Path) -> None:
    """Raise InputError where frames would replace others without --overwrite, or replace an input."""
    from cryotrans_jax.io.files import InputError

    from . import run_folder

    earlier = run_folder.result_files(out_dir, run_folder.FRAMES)
    if earlier and not FLAGS.overwrite:
        raise InputError(f"{out_dir} holds frames already: give another --out_dir, or --overwrite to replace them")
    for used in filter(None, (initial, FLAGS.model and Path(FLAGS.model))):
        if used.resolve() in {made.resolve() for made in earlier}:
            raise InputError(f"the input {used} is one of the files to be replaced: give another --out_dir")


command = command_of(main, define_flags)

if __name__ == "__main__":
    command()
