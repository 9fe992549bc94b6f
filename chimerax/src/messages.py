"""What the program prints, and what its exit status means."""

import re
import signal
from collections.abc import Sequence
from typing import NamedTuple

PROGRESS, WARNING, ERROR, INFO = "progress", "warning", "error", "info"  # kinds of lines
DONE, STOPPED, FAILED = "done", "stopped", "failed"  # how runs end
STEPS = re.compile(r"stage \d+/\d+ .*, step \d+/\d+: loss .*")
BY_SIGNAL = 128  # status of a program that a signal ended, less the signal's number


class Line(NamedTuple):
    """A line that the program printed: its kind, and its text without the word that names the kind."""

    kind: str
    text: str


class Outcome(NamedTuple):
    """How a run ended: DONE, STOPPED or FAILED, and a sentence for the user."""

    kind: str
    text: str


def read(text: str) -> Line:
    """Tell the progress of the fit, warnings and errors from all else that the program prints."""
    text = text.rstrip()
    for kind in (WARNING, ERROR):
        if text.startswith(f"{kind}: "):
            return Line(kind, text.removeprefix(f"{kind}: "))
    return Line(PROGRESS if STEPS.fullmatch(text) else INFO, text)


def outcome(status: int, lines: Sequence[Line], stopped: bool = False) -> Outcome:
    """Say how a run ended.

    Args:
        status: exit status of the program; less than 0 by a signal that it did not handle.
        lines: what it printed.
        stopped: whether the user stopped it.

    Returns:
        The outcome; where the program said in one sentence why it ended, its text is that sentence.
    """
    said = next((line.text for line in reversed(lines) if line.kind == ERROR), None)
    if status == 0:
        return Outcome(DONE, "the morph is done")
    if stopped:
        return Outcome(STOPPED, said or f"stopped {by_signal(status)}".strip())
    if said is not None:
        return Outcome(FAILED, said)
    if name := by_signal(status):
        return Outcome(FAILED, f"the program was ended {name}, perhaps for want of memory: the same command resumes it")
    last = next((line.text.strip() for line in reversed(lines) if line.text.strip()), "it printed nothing")
    return Outcome(FAILED, f"the program failed with status {status} ({last}): the log has all that it printed")


def by_signal(status: int) -> str:
    """Which signal ended a program, as "by SIGKILL"; empty where none did."""
    number = -status if status < 0 else status - BY_SIGNAL
    if number <= 0:
        return ""
    try:
        return f"by {signal.Signals(number).name}"
    except ValueError:
        return f"by signal {number}" if status < 0 else ""
