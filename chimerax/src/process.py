"""The program as a process of its own, beside ChimeraX."""

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .request import Refused

PROGRAM = "cryotrans"  # the command, where the user has named no other
RUN = re.compile(r"(.*[.-])?run")  # last words that are the command run itself: run, cryotrans-run, experiments.run
GRACE = 20.0  # s for the program to save its state and end; it takes at most ten


def command_of(program: str) -> list[str]:
    """Words with which the command line of a run begins.

    Args:
        program: name or path of the program, or the words that start it, such as "python -m cryotrans_jax.experiments".
            A name is looked up as in a terminal, and then among the scripts of this Python and of the user.

    Raises:
        Refused: there is no such program, or a quote is not closed.
    """
    path = Path(program.strip()).expanduser()
    try:
        first, *others = [str(path)] if path.is_file() else shlex.split(program) or [PROGRAM]
    except ValueError as error:
        raise Refused(f"the program {program} cannot be read ({error}): write it as in a terminal") from error
    first = os.path.expanduser(first)
    places = os.pathsep.join((sysconfig.get_path("scripts"), os.path.expanduser("~/.local/bin")))
    found = shutil.which(first) or shutil.which(first, path=places)
    if found is None:
        raise Refused(
            f"no program {first} was found: install cryotrans-jax, and name its program once, with "
            f'program "/path/to/environment/bin/{PROGRAM}"'
        )
    command = [os.path.abspath(found), *others]
    return command if RUN.fullmatch(Path(command[-1]).name) else [*command, "run"]


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Environment of the program: that of ChimeraX without what concerns ChimeraX's Python.

    Args:
        own: the environment of ChimeraX.
    """
    kept = {name: value for name, value in own.items() if not name.lstrip("_").startswith(("PYTHON", "PYVENV"))}
    return kept | {"PYTHONIOENCODING": "utf-8"}


class Run:
    """A run of the program.

    Attributes:
        stopped: whether `stop` was called while it ran.
    """

    def __init__(self, command: Sequence[str]):
        """Prepare a run.

        Args:
            command: the program and its arguments.
        """
        self.command, self.stopped = [*command], False
        self.process: subprocess.Popen[str] | None = None

    def start(self, on_line: Callable[[str], object], on_end: Callable[[int], object]) -> None:
        """Start the program, and return at once.

        Args:
            on_line: called with each line that the program prints, to stdout or stderr, in a thread of its own.
            on_end: called with its exit status, in the same thread; less than 0 by a signal.

        Raises:
            Refused: the program cannot be started.
        """
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env=environment(os.environ),
                start_new_session=True,  # Ctrl-C in the terminal of ChimeraX is not for it
            )
        except OSError as error:
            raise Refused(f"{self.command[0]} cannot be started ({error.strerror}): name another program") from error

        def listen() -> None:
            with process:
                for line in process.stdout or ():
                    on_line(line.rstrip("\n"))
            on_end(process.returncode)

        self.process = process
        threading.Thread(target=listen, name=PROGRAM, daemon=True).start()

    def stop(self) -> bool:
        """Let the program save its state and end; kill it where it has not ended after GRACE.

        Returns:
            Whether it was still running.
        """
        if self.process is None or self.process.poll() is not None:
            return False
        if not self.stopped:
            self.stopped = True
            timer = threading.Timer(GRACE, self.process.kill)
            timer.daemon = True
            timer.start()
            self.process.terminate()
        return True
