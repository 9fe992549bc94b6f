"""The commands of ChimeraX: cryotrans morph, cryotrans stop and cryotrans open.

Written against the Programmer's Manual of ChimeraX; all that can be done without ChimeraX is in the other modules.
"""

import contextlib
import tempfile
from pathlib import Path

from chimerax.atomic import AtomicStructureArg
from chimerax.core.commands import CmdDesc, FileNameArg, Float2Arg, OpenFolderNameArg, SaveFolderNameArg, StringArg
from chimerax.core.commands import run as run_command
from chimerax.core.errors import UserError
from chimerax.core.settings import Settings
from chimerax.map import MapArg

from . import inputs, messages, process, request, results

NAME = "cryotrans"


class ProgramSettings(Settings):
    """What is remembered from one session to the next: the program, as the user named it last."""

    AUTO_SAVE = {"program": process.PROGRAM}


class Job:
    """The run in progress of a session; there is one at most."""

    def __init__(self, session, command, folder, given):
        """Prepare a run.

        Args:
            session: of ChimeraX.
            command: the program and its arguments.
            folder: of the run.
            given: the models that it is made from, which are hidden when the result is opened.
        """
        self.session, self.folder, self.given = session, folder, given
        self.run, self.lines = process.Run(command), []

    def start(self):
        """Start the program; what it prints and its end are handed on to the thread of the user interface."""
        safely = self.session.ui.thread_safe
        self.quitting = self.session.triggers.add_handler("app quit", lambda *_: self.run.stop())
        self.session.cryotrans_job = self
        try:
            self.run.start(lambda text: safely(self.hear, text), lambda status: safely(self.end, status))
        except request.Refused:
            self.leave()
            raise

    def leave(self):
        """Make room for another run."""
        self.session.triggers.remove_handler(self.quitting)
        self.session.cryotrans_job = None

    def hear(self, text):
        """Show a line that the program printed: progress in the status line, all else in the log as well."""
        line, logger = messages.read(text), self.session.logger
        self.lines.append(line)
        if line.kind == messages.WARNING:
            logger.warning(line.text)
        elif line.kind == messages.INFO:
            logger.info(line.text)
        if line.text.strip():
            logger.status(f"CryoTRANS: {line.text}")

    def end(self, status):
        """Open the result of a run that has ended, or say why there is none."""
        self.leave()
        found, logger = messages.outcome(status, self.lines, self.run.stopped), self.session.logger
        logger.status(f"CryoTRANS: {found.text}")
        if found.kind == messages.FAILED:
            logger.error(f"CryoTRANS: {found.text}")
        elif found.kind == messages.STOPPED:
            logger.info(f"CryoTRANS: {found.text}. The same command resumes it.")
        else:
            self.show()

    def show(self):
        """Open the result, and hide the models that it was made from."""
        try:
            open_result(self.session, self.folder)
        except UserError as error:
            self.session.logger.error(f"CryoTRANS: {error}")
            return
        for model in self.given:
            if not model.deleted:
                model.display = False


@contextlib.contextmanager
def user_errors():
    """Report refusals and file errors as ChimeraX's user errors, without a traceback."""
    try:
        yield
    except request.Refused as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error


def job_of(session):
    """The run in progress of a session; None if there is none."""
    return getattr(session, "cryotrans_job", None)


def morph(session, initial, to, model=None, resolutions=None, directory=None, program=None, options=""):
    """Start a morph of one map into another, and open the result when it is done.

    Args:
        session: of ChimeraX.
        initial: the sharp map.
        to: the map to reach.
        model: an atomic model of the initial state, in its place in the initial map.
        resolutions: of the two maps (Å).
        directory: folder of the run.
        program: name or path of the program, or the words that start it; remembered.
        options: further flags of the program, as in a terminal.

    Raises:
        UserError: a run is in progress, or the program or the folder cannot be used.
    """
    if job_of(session) is not None:
        raise UserError(f"a morph is in progress in {job_of(session).folder}: wait for it, or end it by cryotrans stop")
    settings = ProgramSettings(session, NAME)
    with user_errors():
        command = process.command_of(program or settings.program)
        named = request.default_folder(initial.name, to.name, Path.cwd())
        folder = Path(directory).expanduser().absolute() if directory else named
        request.check_folder(folder, options)
        asked = request.Request(
            map_file(session, initial, folder / "inputs" / "initial.mrc"),
            map_file(session, to, folder / "inputs" / "target.mrc"),
            folder,
            None if model is None else model_file(session, model, initial, folder / "inputs" / "model.cif"),
            resolutions,
            options,
        )
        given = [each for each in (initial, to, model) if each is not None]
        Job(session, command + asked.arguments(), folder, given).start()
    if program:
        settings.program = program
    session.logger.info(f"CryoTRANS: running in {folder}; cryotrans stop ends it")


def map_file(session, map_, place):
    """The file of a map: the one that it was opened from, or `place`, where it is written."""
    return inputs.file_of(map_.data) or written(
        session, place, f"models {map_.atomspec} region all step 1 maskZone false"
    )


def model_file(session, model, initial, place):
    """The file of a model, written relative to the initial map, in which it may have been fitted."""
    return written(session, place, f"models {model.atomspec} relModel {initial.atomspec}")


def written(session, place, what):
    """Write what the words of a save command say to a file, unless it is there already."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        new = Path(scratch) / place.name
        run_command(session, f"save {FileNameArg.unparse(str(new))} {what}")
        inputs.replace(new, place)
    return place


def stop(session):
    """Stop the run in progress; the same command resumes it.

    Args:
        session: of ChimeraX.

    Raises:
        UserError: there is none.
    """
    if job_of(session) is None or not job_of(session).run.stop():
        raise UserError("no morph is in progress")
    session.logger.status("CryoTRANS: the program saves its state and ends")


def open_result(session, folder):
    """Open a result beside the models that are open.

    Args:
        session: of ChimeraX.
        folder: of the run.

    Raises:
        UserError: it has no result.
    """
    with user_errors():
        results.show(
            Path(folder).expanduser().absolute(),
            lambda command: run_command(session, command),
            lambda: {model.id[0] for model in session.models.list() if model.id},
        )


COMMANDS = {
    "cryotrans morph": (
        morph,
        CmdDesc(
            required=[("initial", MapArg)],
            keyword=[
                ("to", MapArg),
                ("model", AtomicStructureArg),
                ("resolutions", Float2Arg),
                ("directory", SaveFolderNameArg),
                ("program", StringArg),
                ("options", StringArg),
            ],
            required_arguments=["to"],
            synopsis="Morph one map into another",
        ),
    ),
    "cryotrans stop": (stop, CmdDesc(synopsis="Stop the morph in progress, so that it can be resumed")),
    "cryotrans open": (
        open_result,
        CmdDesc(required=[("folder", OpenFolderNameArg)], synopsis="Open the result of a morph"),
    ),
}
