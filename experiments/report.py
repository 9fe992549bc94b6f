"""Write the report of a finished run: the page, the pictures, and the files for other programs.

python -m experiments.report --run_dir=DIR
"""

from pathlib import Path

from absl import flags

from . import log, paths
from .main import command_of

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the flags of this command."""
    paths.define_path(
        "run_dir", None, "FOLDER: of a finished run; each of its targets gets a report. Must be given.", required=True
    )
    paths.define_path("initial", None, "MAP: the initial map, if it is no longer where the run read it.")
    paths.define_path("target", None, "MAP: the target map, likewise; for a run of several give the folder of one.")


def main() -> None:
    """Write the report of each target."""
    from cryotrans_jax.io.files import InputError

    from . import finished, run_folder
    from .pages import reading, story

    run_dir = Path(FLAGS.run_dir)
    folders = finished.runs_in(run_dir)
    if FLAGS.target and len(folders) > 1:
        raise InputError(f"{run_dir} holds several targets, --target is one map: give the folder of one as --run_dir")
    with run_folder.claimed(run_dir, inside=[folder.name for folder in folders if folder != run_dir]):
        for folder in folders:
            with finished.checked_records(folder), run_folder.replacing(folder, "records"):
                story.write_story(reading.read_story(folder, FLAGS.initial, FLAGS.target))
            log.report_written(folder / "report.html")


command = command_of(main, define_flags)

if __name__ == "__main__":
    command()
